# SPDX-License-Identifier: Apache-2.0
"""One backward, and the calls that belong to it: what all ranks agree on, in which order calls are made, and when gradients are complete.

    first parameter that autograd is done with   agreement 1 begins: for each unit the largest row count that forwards announced
    while backward goes on                       units are launched in their fixed order, each once it is ready and agreement 1 is there
    end of backward                              the units that are left; a rank that did not reach a layer contributes no rows
                                                 agreement 2: rows and gradients that came too late, parameters that anybody reached
                                                 a second round for what was late; gradients are written; backward() returns

Both agreements are MAX allreduces of a few integers, so that all ranks make the same calls with the same limits whatever each of them did.
"""
from __future__ import annotations

import weakref
from typing import Any, Sequence

import torch
from torch import nn

from ..errors import InvalidUsage
from .factored_dense import EXACT, Reporter
from .factored_units import Unit

MEASURE_EVERY = 100  # passes; calls of such a pass are awaited one by one, to learn what each did


def _queue(callback: Any) -> None:
    torch.autograd.Variable._execution_engine.queue_callback(callback)


def in_backward() -> bool:
    """Is autograd running a backward in this thread?"""
    try:
        _queue(lambda: None)
    except RuntimeError:
        return False
    return True


class Passes:
    """The backwards of one model."""

    def __init__(self, comm: Any) -> None:
        self.comm, self.reporter = comm, Reporter(comm)
        self.units: list[Unit] = []
        self.active = False  # between the first event of a backward and its end
        self.enabled = True  # not under no_sync
        self.forward_synced: bool | None = None  # what `enabled` was in the last forward: as DDP has it, that decides
        self.ddp: weakref.ref[Any] | None = None
        self.measured: dict[str, tuple[int, bool, list[Any]]] = {}
        self.count = 0
        self._watching = False
        self._outer = False  # the end of the backward of the whole model's output will be told
        self._synced = True
        self._next = 0
        self._agreed: list[int] | None = None
        self._agreement: tuple[torch.Tensor, Any] | None = None
        self._hooks: list[Any] = []
        self._nodes: list[Any] = []

    # ---- what autograd tells ----

    def attach(self, units: Sequence[Unit]) -> None:
        """Hear of every parameter when autograd is done with it."""
        self.units = list(units)
        for unit in self.units:
            for _, param in unit.named:
                frozen = not param.requires_grad
                param.requires_grad_(True)
                node = param.expand_as(param).grad_fn.next_functions[0][0]
                param.requires_grad_(not frozen)
                self._nodes.append(node)  # a parameter does not keep its own
                self._hooks.append(node.register_hook(lambda _, grads, unit=unit, param=param: self._fire(unit, param, grads[0] is not None)))

    def detach(self) -> None:
        """Hear no more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._nodes, self.units = [], [], []

    def leave_to(self, ddp: Any) -> None:
        """DDP has taken all parameters that have no factors."""
        self.ddp = weakref.ref(ddp)
        self.units = [unit for unit in self.units if unit.factored]

    def _fire(self, unit: Unit, param: nn.Parameter, landed: bool) -> None:
        if self.ddp is not None and not unit.factored:
            return
        self._begin()
        unit.fire(param, landed)
        if self._synced:
            self._advance(self._has_agreed())

    def watch(self) -> None:
        """Factors were recorded: forget at the end of this backward those that no weight has claimed."""
        if not self._watching:
            _queue(self._forget)
            self._watching = True

    def _forget(self) -> None:
        self._watching = False
        for unit in self.units:
            if unit.factored:
                unit.unclaimed = []  # type: ignore[attr-defined]

    def outermost(self) -> None:
        """Backward has come to the model's output. Reentrant checkpointing nests backwards in this one; their ends are not its end."""
        if not self._outer and not self.active:
            _queue(self._end_outermost)
            self._outer = True

    def _end_outermost(self) -> None:
        self._outer = False
        if self.active:
            self._finish()

    # ---- forward ----

    @property
    def synchronizes(self) -> bool:
        """Would a forward now lead to a backward that is synchronized?"""
        ddp = None if self.ddp is None else self.ddp()
        return self.enabled and (ddp is None or bool(ddp.require_backward_grad_sync))

    def forward(self) -> None:
        """The whole model's forward begins."""
        self.check_ended()
        if torch.is_grad_enabled() and not self.active:
            self.forward_synced = self.synchronizes

    def check_ended(self) -> None:
        """A backward that an exception ended midway has made some of its calls, perhaps not the same as on other ranks."""
        if not (self.active or self._watching or self._outer) or in_backward():
            return
        self._forget()
        self._outer = False
        if not self.active:
            return
        if self._synced:
            raise InvalidUsage("factored: the last backward() did not come to its end, and the calls that it made cannot be taken back; start again from a checkpoint")
        self._reset()

    # ---- a pass ----

    def _begin(self) -> None:
        if self.active:
            return
        if not self._outer:
            _queue(self._finish)
        self.active, self._next = True, 0
        self._synced = self.synchronizes if self.forward_synced is None else self.forward_synced
        if self._synced:
            said = [unit.announce() for unit in self.units]
            self.reporter.measuring = self.count % MEASURE_EVERY == 0
            self._agreed, self._agreement = None, self._agree([rows for rows, _ in said] + [int(dense) for _, dense in said])

    def _agree(self, values: Sequence[int]) -> tuple[torch.Tensor, Any]:
        """The largest of each value over all ranks, to come."""
        tensor = torch.tensor(values, dtype=torch.int64)
        return tensor, self.comm.allreduce(tensor, op="max", quantizer=EXACT, async_op=True)

    def _has_agreed(self) -> bool:
        if self._agreed is None:
            assert self._agreement is not None
            tensor, work = self._agreement
            if not work.done():
                return False
            self._agreed = tensor.tolist()
        return True

    def _advance(self, agreed: bool, *, all_of_them: bool = False) -> None:
        """Launch the units whose turn it is."""
        while agreed and self._next < len(self.units) and (all_of_them or self.units[self._next].ready()):
            assert self._agreed is not None
            unit, rows, dense = self.units[self._next], self._agreed[self._next], self._agreed[self._next + len(self.units)]
            self._next += 1
            unit.launch(rows, bool(dense), self.comm, self.reporter)

    @torch.no_grad()  # autograd ends in the mode of whoever called backward
    def _finish(self) -> None:
        """At the end of backward: everything that is left, then the gradients."""
        if self._synced:
            assert self._agreement is not None
            self._agreement[1].wait()
            self._advance(self._has_agreed(), all_of_them=True)
            reached = self._second_round()
            for unit in self.units:
                unit.complete(reached)
            self._note()
        self._reset()

    def _second_round(self) -> set[nn.Parameter]:
        """Agreement 2, which also waits for all calls before it, and what follows from it."""
        count = len(self.units)
        left = [unit.leftover() for unit in self.units]
        params = [(unit, param) for unit in self.units for _, param in unit.named]
        values, work = self._agree(
            [rows for rows, _ in left] + [int(dense) for _, dense in left] + [int(param in unit.reached) for unit, param in params]
        )
        work.wait()
        agreed = values.tolist()
        for unit, rows, dense in zip(self.units, agreed[:count], agreed[count : 2 * count]):
            unit.relaunch(rows, bool(dense), self.comm, self.reporter)
        self.comm.synchronize()
        return {param for (_, param), reached in zip(params, agreed[2 * count :]) if reached}

    def _note(self) -> None:
        """Keep what the library said of a measured pass."""
        if self.reporter.measuring:
            for unit in self.units:
                records = [*getattr(unit, "records", ()), *(record for total in unit.sums for record in total.records)]
                self.measured[unit.name] = (unit.agreed_rows, unit.dense_done, records)
        for unit in self.units:
            for total in unit.sums:
                total.records = []
        self.reporter.measuring = False
        self.count += 1

    def _reset(self) -> None:
        self.active = False
        for unit in self.units:
            unit.reset(self._synced)
        self.forward_synced = None
        self._agreement = self._agreed = None
