# SPDX-License-Identifier: Apache-2.0
"""Horovod's collectives on tensors. Every rank makes the same calls in the same order; names do not reorder them, they tell apart what is
remembered of calls with error feedback.
"""
from __future__ import annotations

import pickle
from typing import Any, Callable, Iterable

import torch

from ...calls import group as calls_together
from ...errors import InvalidArgument
from ..policy import EXACT
from .compression import Compression
from .world import communicator, world


class _Operation:
    def __init__(self, name: str, op: str | None) -> None:
        self.name, self.op = name, op

    def __repr__(self) -> str:
        return self.name


Average, Sum, Min, Max, Product = (_Operation(*pair) for pair in (("Average", "avg"), ("Sum", "sum"), ("Min", "min"), ("Max", "max"), ("Product", "prod")))
Adasum = _Operation("Adasum", None)

_SUMMED = {torch.int8, torch.uint8, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64, torch.bfloat16}


def operation(op: Any, average: bool | None = None) -> str:
    """Of the library; both of Horovod's ways to say it."""
    if average is not None:
        if op is not None:
            raise ValueError("The op parameter supersedes average. Please provide only one of them.")
        op = Average if average else Sum
    op = Average if op is None else op
    if op is Adasum:
        raise NotImplementedError("Adasum is not there: it combines gradients pair by pair, which is no sum; use hvd.Average or hvd.Sum")
    if not isinstance(op, _Operation) or op.op is None:
        raise InvalidArgument(f"unknown op {op!r}; there are hvd.Average, Sum, Min, Max and Product")
    return op.op


def stream_of(tensor: Any) -> int | None:
    """The current stream of a tensor on a GPU. Not run on a GPU yet."""
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else None


class Handle:
    """A call under way; give it to `synchronize` or `poll`."""

    def __init__(self, finish: Callable[[], Any]) -> None:
        self._comm = communicator()
        self._sequence: int | None = self._comm.sequence
        self._finish: Callable[[], Any] | None = finish
        self._result: Any = None

    def wait(self) -> Any:
        """The result; again if asked again."""
        if self._finish is not None:
            assert self._sequence is not None
            self._comm.wait(self._sequence)
            self._result, self._finish = self._finish(), None
        return self._result

    def done(self) -> bool:
        """Never blocks."""
        return self._finish is None or (self._sequence is not None and self._comm.test(self._sequence))


def synchronize(handle: Handle) -> Any:
    """Wait for a call of *_async; its result."""
    return handle.wait()


def poll(handle: Handle) -> bool:
    """Is it complete? `synchronize` will not block then."""
    return handle.done()


# ---- allreduce ----


def _begin(tensor: Any, target: Any, op: str, quantizer: str, name: str | None, before: float) -> Callable[[], Any]:
    """Begin to reduce into `target`, which may be the tensor; what is left to do gives it back."""
    source = tensor.detach()
    work = target.detach()
    if source.data_ptr() != work.data_ptr():
        work.copy_(source)
    dense = work if work.is_contiguous() and work.dtype in _SUMMED else work.contiguous().to(work.dtype if work.dtype in _SUMMED else torch.int32)
    if before != 1.0:
        dense.mul_(before)
    if not dense.dtype.is_floating_point or op not in ("sum", "avg"):
        quantizer = EXACT
    remembered = None if name is None or quantizer == EXACT else world().memory.tensor(f"{name}.{dense.numel()}", dense)
    if dense.numel():
        communicator().allreduce(dense, op=op, quantizer=quantizer, tensor=remembered, stream=stream_of(dense), async_op=True)

    def finish() -> Any:
        if dense.data_ptr() != work.data_ptr():
            work.copy_(dense)
        return target

    return finish


def _reduce_all(
    pairs: list[tuple[Any, Any]], name: str | None, op: str, compression: Any, before: float, after: float
) -> Callable[[], list[Any]]:
    left = []
    with calls_together(wait=False):
        for i, (tensor, target) in enumerate(pairs):
            small, context = compression.compress(tensor)
            called = None if name is None else f"{name}.{i}" if len(pairs) > 1 else name
            room = target if small is tensor else torch.empty_like(small)
            left.append((_begin(small, room, op, getattr(compression, "quantizer", EXACT), called, before), context, target))

    def finish() -> list[Any]:
        results = []
        for step, context, target in left:
            result = compression.decompress(step(), context)
            if after != 1.0:
                result.detach().mul_(after)
            if result is not target:
                target.detach().copy_(result)
            results.append(target)
        return results

    return finish


def _first(finish: Callable[[], list[Any]]) -> Callable[[], Any]:
    return lambda: finish()[0]


def allreduce_async_(
    tensor: Any, average: bool | None = None, name: str | None = None, op: Any = None, prescale_factor: float = 1.0,
    postscale_factor: float = 1.0, compression: Any = Compression.none,
) -> Handle:  # fmt: skip
    """Begin to reduce in place."""
    return Handle(_first(_reduce_all([(tensor, tensor)], name, operation(op, average), compression, prescale_factor, postscale_factor)))


def allreduce_async(
    tensor: Any, average: bool | None = None, name: str | None = None, op: Any = None, prescale_factor: float = 1.0,
    postscale_factor: float = 1.0, compression: Any = Compression.none,
) -> Handle:  # fmt: skip
    """Begin to reduce into a new tensor."""
    target = torch.empty_like(tensor, requires_grad=False)
    return Handle(_first(_reduce_all([(tensor, target)], name, operation(op, average), compression, prescale_factor, postscale_factor)))


class _Allreduce(torch.autograd.Function):  # type: ignore[misc, unused-ignore]
    @staticmethod
    def forward(ctx: Any, tensor: Any, *arguments: Any) -> Any:
        ctx.arguments = arguments
        average, name, compression, op, before, after = arguments
        return synchronize(allreduce_async(tensor, average, name, op, before, after, compression))

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        average, _name, compression, op, before, after = ctx.arguments
        return (synchronize(allreduce_async(gradient.contiguous(), average, None, op, before, after, compression)), *[None] * 6)


def allreduce(
    tensor: Any, average: bool | None = None, name: str | None = None, compression: Any = Compression.none, op: Any = None,
    prescale_factor: float = 1.0, postscale_factor: float = 1.0,
) -> Any:  # fmt: skip
    """The average (or what op says) over all ranks, as a new tensor. Gradients flow through it."""
    return _Allreduce.apply(tensor, average, name, compression, op, prescale_factor, postscale_factor)


def allreduce_(
    tensor: Any, average: bool | None = None, name: str | None = None, op: Any = None, prescale_factor: float = 1.0,
    postscale_factor: float = 1.0, compression: Any = Compression.none,
) -> Any:  # fmt: skip
    """The same in place."""
    return synchronize(allreduce_async_(tensor, average, name, op, prescale_factor, postscale_factor, compression))


def grouped_allreduce_async_(
    tensors: Iterable[Any], average: bool | None = None, name: str | None = None, op: Any = None, prescale_factor: float = 1.0,
    postscale_factor: float = 1.0, compression: Any = Compression.none,
) -> Handle:  # fmt: skip
    """Begin to reduce several in place; small ones travel together."""
    pairs = [(tensor, tensor) for tensor in tensors]
    return Handle(_reduce_all(pairs, name, operation(op, average), compression, prescale_factor, postscale_factor))


def grouped_allreduce_async(tensors: Iterable[Any], *arguments: Any, **keywords: Any) -> Handle:
    """Begin to reduce several into new tensors."""
    return grouped_allreduce_async_([tensor.detach().clone() for tensor in tensors], *arguments, **keywords)


def grouped_allreduce_(tensors: Iterable[Any], *arguments: Any, **keywords: Any) -> list[Any]:
    """Reduce several in place."""
    return list(synchronize(grouped_allreduce_async_(tensors, *arguments, **keywords)))


def grouped_allreduce(
    tensors: Iterable[Any], average: bool | None = None, name: str | None = None, compression: Any = Compression.none, op: Any = None,
    prescale_factor: float = 1.0, postscale_factor: float = 1.0,
) -> list[Any]:  # fmt: skip
    """Reduce several into new tensors; they carry no gradients."""
    return list(synchronize(grouped_allreduce_async(tensors, average, name, op, prescale_factor, postscale_factor, compression)))


# ---- copies ----


def _bytes(tensor: Any) -> Any:
    return tensor.detach().reshape(-1).view(torch.uint8)


def _all_rows(tensor: Any) -> list[int]:
    """First dimensions of all ranks; all other dimensions and types are equal."""
    mine = torch.tensor([tensor.shape[0]])
    every = torch.empty(communicator().nranks, dtype=torch.int64)
    communicator().allgather(mine, every, quantizer=EXACT)
    return [int(rows) for rows in every]


def allgather_async(tensor: Any, name: str | None = None) -> Handle:
    """Begin to join all ranks' tensors along the first dimension, whose length may differ. Waits for the lengths."""
    source = tensor.detach().reshape(1) if tensor.dim() == 0 else tensor.detach()
    rows = _all_rows(source)
    most, item = max(rows), torch.Size(source.shape[1:]).numel() * source.element_size()
    mine = torch.zeros(most * item, dtype=torch.uint8, device=source.device)
    mine[: source.numel() * source.element_size()] = _bytes(source.contiguous())
    table = torch.empty((len(rows), most * item), dtype=torch.uint8, device=source.device)
    if mine.numel():
        communicator().allgather(mine, table, quantizer=EXACT, stream=stream_of(mine), async_op=True)

    def finish() -> Any:
        parts = [row[: count * item] for row, count in zip(table, rows)]
        return torch.cat(parts).view(source.dtype).view(sum(rows), *source.shape[1:])

    return Handle(finish)


class _Allgather(torch.autograd.Function):  # type: ignore[misc, unused-ignore]
    @staticmethod
    def forward(ctx: Any, tensor: Any, name: str | None) -> Any:
        ctx.shape = tensor.shape
        return synchronize(allgather_async(tensor, name))

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        total = allreduce_(gradient.clone(memory_format=torch.contiguous_format), op=Sum)
        rows = _all_rows(torch.empty(ctx.shape or 1))
        first = sum(rows[: communicator().rank])
        return total[first : first + rows[communicator().rank]].reshape(ctx.shape), None


def allgather(tensor: Any, name: str | None = None) -> Any:
    """All ranks' tensors, joined along the first dimension, whose length may differ. Gradients flow through it."""
    return _Allgather.apply(tensor, name)


def broadcast_async_(tensor: Any, root_rank: int, name: str | None = None) -> Handle:
    """Begin to copy the root's elements into the tensor."""
    work = tensor.detach()
    dense = work.contiguous()
    if dense.numel():
        communicator().broadcast(_bytes(dense), root=root_rank, stream=stream_of(dense), async_op=True)

    def finish() -> Any:
        if dense.data_ptr() != work.data_ptr():
            work.copy_(dense)
        return tensor

    return Handle(finish)


def broadcast_async(tensor: Any, root_rank: int, name: str | None = None) -> Handle:
    """Begin to copy the root's elements into a new tensor."""
    return broadcast_async_(tensor.detach().clone(), root_rank, name)


def broadcast_(tensor: Any, root_rank: int, name: str | None = None) -> Any:
    """Copy the root's elements into the tensor."""
    return synchronize(broadcast_async_(tensor, root_rank, name))


class _Broadcast(torch.autograd.Function):  # type: ignore[misc, unused-ignore]
    @staticmethod
    def forward(ctx: Any, tensor: Any, root_rank: int, name: str | None) -> Any:
        ctx.root_rank = root_rank
        return synchronize(broadcast_async(tensor, root_rank, name))

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        total = allreduce_(gradient.clone(memory_format=torch.contiguous_format), op=Sum)
        return total if communicator().rank == ctx.root_rank else torch.zeros_like(total), None, None


def broadcast(tensor: Any, root_rank: int, name: str | None = None) -> Any:
    """The root's elements, as a new tensor. Gradients flow through it."""
    return _Broadcast.apply(tensor, root_rank, name)


def broadcast_object(obj: Any = None, root_rank: int = 0, name: str | None = None) -> Any:
    """The root's object, pickled on the way: trust the root."""
    comm = communicator()
    data = torch.frombuffer(bytearray(pickle.dumps(obj)), dtype=torch.uint8) if comm.rank == root_rank else None
    count = torch.tensor([0 if data is None else data.numel()])
    comm.broadcast(count, root=root_rank)
    room = torch.empty(int(count), dtype=torch.uint8) if data is None else data
    comm.broadcast(room, root=root_rank)
    return obj if data is not None else pickle.loads(room.numpy().tobytes())


def allgather_object(obj: Any, name: str | None = None) -> list[Any]:
    """Every rank's object, in rank order, pickled on the way: trust all ranks."""
    data = torch.frombuffer(bytearray(pickle.dumps(obj)), dtype=torch.uint8)
    rows = _all_rows(data)
    joined = synchronize(allgather_async(data))
    return [pickle.loads(part.numpy().tobytes()) for part in joined.split(rows)]


def barrier() -> None:
    """Until every rank has called it."""
    communicator().barrier()


def _not_there(name: str, why: str) -> Callable[..., Any]:
    def refuse(*_arguments: Any, **_keywords: Any) -> Any:
        raise NotImplementedError(f"{name} is not there: {why}")

    refuse.__doc__ = f"Not there: {why}"
    return refuse


join = _not_there("join", "a rank without data cannot know which calls the others make; give every rank as many batches")
alltoall = _not_there("alltoall", "the library has no call that sends each rank another part; allgather and take your part")
reducescatter = _not_there("reducescatter", "use hvd.communicator().reduce_scatter, which wants equal parts")
