# SPDX-License-Identifier: Apache-2.0
"""An optimizer that averages gradients while backward computes them, with Horovod's arguments and methods.

Calls are made in one order on all ranks, whatever the order in which gradients become ready: first the reverse of the parameters', from the
second step on the order that rank 0 saw in the first. Parameters follow each other in buckets; a bucket is a group of calls and begins when
its last gradient is there and the bucket before has begun.
"""
from __future__ import annotations

import contextlib
import warnings
from typing import Any, Callable, Iterator

import torch

from ...calls import group as calls_together
from ...errors import InvalidArgument, InvalidUsage
from ..remembered import Memory
from ..policy import EXACT, Policy
from .compression import Compression
from .operations import Average, broadcast_object, operation, stream_of
from .world import communicator, size

BUCKET_BYTES = 1 << 20  # of gradients: enough to fill a call's pipeline, little enough to begin early


def _names(optimizer: Any, named_parameters: Any) -> dict[Any, str]:
    own = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if named_parameters is None:
        return {parameter: f"allreduce.noname.{i}" for i, parameter in enumerate(own)}
    named = list(named_parameters)
    if any(not isinstance(pair, tuple) for pair in named):
        raise ValueError("named_parameters should be a sequence of tuples (name, parameter), usually produced by model.named_parameters().")
    if len({name for name, _ in named}) != len(named):
        raise ValueError("Parameter names in named_parameters must be unique.")
    names = {parameter: name for name, parameter in named}
    if any(parameter not in names for parameter in own):
        raise ValueError("named_parameters was specified, but one or more model parameters were not named.")
    return names


def _when_ready(parameter: Any, ready: Callable[[Any], None]) -> Any:
    """Call ready(parameter) whenever backward has added to its gradient; what must be kept for that."""
    if hasattr(parameter, "register_post_accumulate_grad_hook"):
        return parameter.register_post_accumulate_grad_hook(ready)
    accumulator = parameter.expand_as(parameter).grad_fn.next_functions[0][0]  # torch 1
    accumulator.register_hook(lambda *_: ready(parameter))
    return accumulator


class Reducer:
    """Gradients of one optimizer: which are ready, which are on their way."""

    def __init__(self, names: dict[Any, str], parameters: list[Any], compression: Any, passes: int, op: str, sparse_as_dense: bool) -> None:
        self.comm, self.names, self.compression, self.op = communicator(), names, compression, op
        self.policy: Policy = getattr(compression, "policy", Compression.none.policy)
        self.memory, self.step, self._passes, self._sparse_as_dense = Memory(self.comm), 0, passes, sparse_as_dense
        self._buckets = _cut(parameters[::-1])
        self._arrived: list[Any] | None = []  # until an order is agreed on
        self._waiting = {parameter: passes for parameter in parameters}
        self._next, self._left = 0, [len(bucket) for bucket in self._buckets]
        self._place = {parameter: i for i, bucket in enumerate(self._buckets) for parameter in bucket}
        self._under_way: list[tuple[Any, Any, Any]] = []
        self.kept = [_when_ready(parameter, self.ready) for parameter in parameters]

    def set_passes(self, passes: int) -> None:
        """Backward passes before a gradient is sent."""
        self._passes = passes
        self._waiting = dict.fromkeys(self._waiting, passes)

    def busy(self) -> bool:
        """Is anything on its way?"""
        return bool(self._under_way)

    def ready(self, parameter: Any) -> None:
        """Backward has added to a gradient."""
        if self._waiting[parameter] <= 0:
            raise InvalidUsage(
                f"gradient of {self.names[parameter]} was computed more than backward_passes_per_step times before step() or synchronize(); "
                "raise backward_passes_per_step to accumulate gradients locally"
            )
        self._waiting[parameter] -= 1
        if self._waiting[parameter] == 0:
            if self._arrived is not None:
                self._arrived.append(parameter)
            self._left[self._place[parameter]] -= 1
            while self._next < len(self._buckets) and self._left[self._next] == 0:
                self._send(self._next)

    def _send(self, number: int) -> None:
        self._next = number + 1
        with calls_together(wait=False):
            for parameter in self._buckets[number]:
                self._reduce(parameter)

    def _reduce(self, parameter: Any) -> None:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if parameter.grad.is_sparse:
            if not self._sparse_as_dense:
                raise InvalidArgument(f"gradient of {self.names[parameter]} is sparse; only dense ones are summed: pass sparse_as_dense=True")
            parameter.grad = parameter.grad.to_dense()
        small, context = self.compression.compress(parameter.grad.detach())
        dense = small.contiguous()
        text = self.policy.choose(self.names[parameter], parameter, self.step)
        tensor = None if text == EXACT else self.memory.tensor(self.names[parameter], parameter)
        if dense.numel():
            self.comm.allreduce(dense, op=self.op, quantizer=text, tensor=tensor, stream=stream_of(dense), async_op=True)
        self._under_way.append((parameter, dense, context))

    def finish(self) -> None:
        """Send what has not been sent, wait for all, and begin the next step."""
        for number in range(self._next, len(self._buckets)):
            self._send(number)
        sent, self._under_way = self._under_way, []
        self.comm.synchronize()
        for parameter, dense, context in sent:
            result = self.compression.decompress(dense, context)
            if result.data_ptr() != parameter.grad.data_ptr():
                parameter.grad.copy_(result)
        if self._arrived is not None:
            self._agree(self._arrived)
            self._arrived = None
        self.step += 1
        self._next, self._left = 0, [len(bucket) for bucket in self._buckets]
        self._waiting = dict.fromkeys(self._waiting, self._passes)

    def _agree(self, arrived: list[Any]) -> None:
        """The order of rank 0's first step is everybody's from now on."""
        parameters = list(self._waiting)
        number = {parameter: i for i, parameter in enumerate(parameters)}
        order = broadcast_object([number[parameter] for parameter in dict.fromkeys([*arrived, *reversed(parameters)])])
        self._buckets = _cut([parameters[i] for i in order])
        self._place = {parameter: i for i, bucket in enumerate(self._buckets) for parameter in bucket}


def _cut(parameters: list[Any]) -> list[list[Any]]:
    """Buckets of about BUCKET_BYTES, in order."""
    buckets: list[list[Any]] = []
    room = 0
    for parameter in parameters:
        if room <= 0:
            buckets.append([])
            room = BUCKET_BYTES
        buckets[-1].append(parameter)
        room -= parameter.numel() * parameter.element_size()
    return buckets


class _Distributed:
    """Methods that an optimizer's class gets in front of its own."""

    _base: Any  # the optimizer's own class
    _reducer: Reducer | None
    _synchronized: bool
    _should_synchronize: bool

    def synchronize(self) -> None:
        """Wait until all gradients are averaged: before clipping, say. Then step() belongs into skip_synchronize()."""
        if self._reducer is not None:
            self._reducer.finish()
        self._synchronized = True

    @contextlib.contextmanager
    def skip_synchronize(self) -> Iterator[None]:
        """step() inside does not wait for gradients, since synchronize() was called."""
        self._should_synchronize = False
        try:
            yield
        finally:
            self._should_synchronize = True

    def step(self, closure: Any = None) -> Any:
        """Wait for the averages, then step. A closure is evaluated once, before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._should_synchronize:
            if self._synchronized:
                warnings.warn(
                    "optimizer.step() called without optimizer.skip_synchronize() context after optimizer.synchronize(). This can cause "
                    "training slowdown. You may want to consider using optimizer.skip_synchronize() context.",
                    stacklevel=2,
                )
            self.synchronize()
        self._synchronized = False
        result = self._base.step(self)
        return result if closure is None else loss

    def zero_grad(self, *arguments: Any, **keywords: Any) -> Any:
        """Not between backward and step."""
        if self._reducer is not None and self._reducer.busy():
            raise InvalidUsage("optimizer.zero_grad() was called after loss.backward() but before optimizer.step() or optimizer.synchronize()")
        return self._base.zero_grad(self, *arguments, **keywords)

    def set_backward_passes_per_step(self, passes: int) -> None:
        """As the argument of DistributedOptimizer, from the next step on."""
        if self._reducer is not None:
            self._reducer.set_passes(passes)

    def residuals_state_dict(self) -> dict[str, Any]:
        """What quantizers remember of this rank's gradients, for a checkpoint of each rank; state_dict() is the optimizer's own."""
        return {} if self._reducer is None else self._reducer.memory.state_dict(self._reducer.step)

    def load_residuals_state_dict(self, state: dict[str, Any]) -> None:
        """Counterpart of `residuals_state_dict`."""
        if self._reducer is not None:
            self._reducer.step = self._reducer.memory.load_state_dict(state)


def DistributedOptimizer(  # noqa: N802 - Horovod's name
    optimizer: Any, named_parameters: Any = None, compression: Any = Compression.none, backward_passes_per_step: int = 1, op: Any = Average,
    gradient_predivide_factor: float = 1.0, num_groups: int = 0, groups: Any = None, sparse_as_dense: bool = False,
) -> Any:  # fmt: skip
    """An optimizer of the same class, parameters and state, whose step() uses gradients averaged over all ranks.

    gradient_predivide_factor changes nothing but the rounding in Horovod; sums are made in float32 and divided last here, so it is ignored, as
    are num_groups and groups: small gradients travel together anyway.
    """
    if gradient_predivide_factor != 1.0 and op is not Average:
        raise ValueError("gradient_predivide_factor not supported with op != Average")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise InvalidArgument("torch.optim.LBFGS evaluates gradients several times in a step; DistributedOptimizer averages them once")
    methods = {name: value for name, value in vars(_Distributed).items() if not name.startswith("__")}
    made: Any = object.__new__(type(type(optimizer).__name__, (type(optimizer),), methods))
    made.__dict__.update(optimizer.__dict__)
    made.__dict__.pop("step", None)  # a scheduler's wrapper around the other one's
    made._base, made._synchronized, made._should_synchronize, made._reducer = type(optimizer), False, True, None
    names, reduction = _names(optimizer, named_parameters), operation(op)
    if size() > 1:
        wanted = [parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.requires_grad]
        made._reducer = Reducer(names, wanted, compression, backward_passes_per_step, reduction, sparse_as_dense)
    return made
