# SPDX-License-Identifier: Apache-2.0
"""A communication hook for DistributedDataParallel: gradients are averaged in few bytes, while backward goes on.

    state = isgqcoll.torch.State(model=model, quantizer="isgq:bits=4")
    ddp.register_comm_hook(state, isgqcoll.torch.hook)

Every quantized parameter is a call of its own, and so are the exact stretches between them; the calls of a bucket are one group. So neither
bits nor residuals depend on how DDP fills its buckets, which it does anew after the first step.
"""
from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..calls import group as calls_together
from ..communicator import Communicator
from ..errors import Error, InvalidArgument
from .completion import Completion
from .group import communicator, process_group as checked_group
from .remembered import Memory
from .policy import EXACT, Policy, Rules, Warmup

class Stretch(NamedTuple):
    """Elements of a bucket that are one call. `parameter` is None for exact ones, which may span several."""

    first: int
    elements: int
    quantizer: str
    parameter: Any = None


class State:
    """What the hook needs and remembers; one for each DDP model.

    process_group: DDP's. model: the module, wrapped or not, or an iterable of (name, parameter); names parameters for rules and checkpoints,
    without it they are parameter.0, parameter.1, ... in the order of DDP's first buckets. quantizer, rules, exact_below, warmup: see Policy.
    config: options of Communicator (timeout in seconds, seed, transports).

    Errors end backward with the library's sentence; `error` has the exception itself, and later hooks raise it.
    """

    def __init__(
        self,
        process_group: Any = None,
        quantizer: Any = "isgq:bits=4",
        *,
        model: Any = None,
        rules: Rules = (),
        exact_below: int = 1024,
        warmup: Warmup = 0,
        **config: Any,
    ) -> None:
        self.policy = Policy(quantizer, rules, exact_below, warmup)
        self.step = 0
        self.error: BaseException | None = None
        self.communicator: Communicator = communicator(process_group, **_for_device(checked_group(process_group), config))
        self._completion = Completion(self.communicator)
        self._names = _names(model)
        self._unnamed = 0
        self._memory = Memory(self.communicator)
        self._streams: dict[Any, Any] = {}

    def _note(self, error: BaseException) -> None:
        self.error = self.error or error

    def _ended(self, buffer: Any, failure: BaseException | None) -> Any:
        if failure is not None:
            self._note(failure)
            raise failure
        return buffer

    # ---- what is remembered ----

    def name(self, parameter: Any) -> str:
        """Of a parameter, as rules and checkpoints have it."""
        found = self._names.get(parameter)
        if found is None:
            found = self._names[parameter] = f"parameter.{self._unnamed}"
            self._unnamed += 1
        return found

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint, of this rank: residuals differ between ranks, so each saves its own."""
        return self._memory.state_dict(self.step)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Counterpart of `state_dict`; at any time between steps."""
        self.step = self._memory.load_state_dict(state)

    # ---- one bucket ----

    def _stretches(self, bucket: Any, buffer: Any) -> list[Stretch]:
        """The bucket, cut into calls, in the order of its elements."""
        if self.policy.all_exact(self.step):
            return [Stretch(0, buffer.numel(), EXACT)]
        cut: list[Stretch] = []
        start, size, end = buffer.data_ptr(), buffer.element_size(), 0
        for parameter, gradient in zip(bucket.parameters(), bucket.gradients()):
            text = self.policy.choose(self.name(parameter), parameter, self.step)
            if text == EXACT or gradient.numel() == 0:
                continue
            first = (gradient.data_ptr() - start) // size
            if first > end:
                cut.append(Stretch(end, first - end, EXACT))
            cut.append(Stretch(first, gradient.numel(), text, parameter))
            end = first + gradient.numel()
        if end < buffer.numel():
            cut.append(Stretch(end, buffer.numel() - end, EXACT))
        return cut

    def _call(self, buffer: Any, cut: list[Stretch], stream: int | None) -> None:
        comm = self.communicator
        with calls_together(wait=False):
            for stretch in cut:
                part = buffer.narrow(0, stretch.first, stretch.elements)
                owner = stretch.parameter
                tensor = None if owner is None else self._memory.tensor(self.name(owner), owner)
                comm.allreduce(part, op="avg", quantizer=stretch.quantizer, tensor=tensor, stream=stream, async_op=True)

    def _on_device(self, buffer: Any, cut: list[Stretch]) -> "torch.futures.Future[Any]":
        """On a stream of our own, behind the gradients; the future makes DDP's stream wait for it. Not run on a GPU yet."""
        device = buffer.device
        stream = self._streams.setdefault(device, torch.cuda.Stream(device))
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            self._call(buffer, cut, stream.cuda_stream)
            buffer.record_stream(stream)
            future: torch.futures.Future[Any] = torch.futures.Future(devices=[device])
            future.set_result(buffer)
        return future

    def reduce(self, bucket: Any) -> "torch.futures.Future[Any]":
        """Average a bucket of gradients in place."""
        if self.error is not None:
            raise self.error
        buffer = bucket.buffer()
        if buffer.is_sparse:
            raise InvalidArgument("the hook averages dense gradients only; make the embedding with sparse=False")
        try:
            cut = self._stretches(bucket, buffer)
            if buffer.is_cuda:
                future = self._on_device(buffer, cut)
            else:
                self._call(buffer, cut, None)
                future = self._completion.future(self.communicator.sequence, lambda failure: self._ended(buffer, failure))
        except Error as error:
            self._note(error)
            raise
        if bucket.is_last():
            self.step += 1
        return future


def hook(state: State, bucket: Any) -> "torch.futures.Future[Any]":
    """For DistributedDataParallel.register_comm_hook."""
    return state.reduce(bucket)


hook.__annotations__.update({"bucket": torch.distributed.GradBucket, "return": torch.futures.Future[torch.Tensor]})  # DDP looks at them


def _for_device(group: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Gradients are where NCCL is."""
    if "device" not in config and torch.distributed.get_backend(group) == "nccl":
        return {**config, "device": "cuda"}
    return config


def _names(model: Any) -> dict[Any, str]:
    if model is None:
        return {}
    named = model.named_parameters() if hasattr(model, "named_parameters") else model
    return {parameter: name.removeprefix("module.") for name, parameter in named}
