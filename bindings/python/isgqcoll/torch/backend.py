# SPDX-License-Identifier: Apache-2.0
"""The c10d backend "isgq": torch.distributed's collectives on tensors of the CPU, without a line compiled against PyTorch.

    isgqcoll.torch.register_backend(quantizer="isgq:bits=4")
    torch.distributed.init_process_group("isgq")

A process group in Python, which torch 1.13 and 2 take alike. What the library lacks is built from what it has (gather, scatter, reduce,
all_to_all cost as much as an allgather or allreduce) or raises NotImplementedError.
"""
from __future__ import annotations

import functools
import inspect
import threading
from typing import Any, Callable, Iterable, NamedTuple

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Work as C10dWork

from ..calls import group as calls_together
from ..communicator import Communicator
from ..errors import InvalidArgument
from ..quantizer import quantizer as as_quantizer
from .completion import Completion
from .group import leave, leave_with
from .policy import EXACT

NAME = "isgq"
_OPERATIONS = {"SUM": "sum", "AVG": "avg", "PRODUCT": "prod", "MIN": "min", "MAX": "max"}
_BITWISE: dict[str, Callable[[Any, Any], Any]] = {"BAND": torch.bitwise_and, "BOR": torch.bitwise_or, "BXOR": torch.bitwise_xor}
_BOOLEAN = {"SUM": "max", "MAX": "max", "BOR": "max", "PRODUCT": "min", "MIN": "min", "BAND": "min"}
ALIVE = 256  # works that nobody waited for: older torch keeps only the C++ half of one that C++ is to wait for
_SUMMED = {torch.int8, torch.uint8, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64, torch.bfloat16}


class Settings(NamedTuple):
    """Of groups that will be made."""

    quantizer: str | None = None
    exact_below: int = 1024
    config: dict[str, Any] = {}


_settings = Settings()


def register_backend(quantizer: Any = None, exact_below: int = 1024, **config: Any) -> None:
    """Make "isgq" known to torch.distributed. A second call changes the settings for groups that are made later. Equal on all ranks.

    quantizer: of sums and averages of floating point numbers (all_reduce, reduce_scatter); None: that of ISGQ_QUANTIZER, or "none".
    Losses, metrics and buffers are such sums too: what has fewer elements than exact_below is never quantized, nor are integers, other
    operations, or copies. config: options of Communicator.
    """
    global _settings
    made = as_quantizer(quantizer)
    _settings = Settings(made.text if made else None, exact_below, config)
    if not hasattr(dist.Backend, NAME.upper()):
        devices = {"devices": ["cpu", "cuda"]} if "devices" in inspect.signature(dist.Backend.register_backend).parameters else {}
        dist.Backend.register_backend(NAME, _create, **devices)


def _create(store: Any, rank: int, size: int, timeout: Any) -> "ProcessGroup":
    return ProcessGroup(store, rank, size, timeout)


def _operation(opts: Any) -> str:
    """Name of ReduceOp; SUM if the caller did not say."""
    operation = getattr(opts, "reduceOp", dist.ReduceOp.SUM)
    for name in (*_OPERATIONS, *_BITWISE):
        if operation == getattr(dist.ReduceOp, name):
            return name
    raise NotImplementedError(f"backend {NAME}: reduction {operation} is not there; {', '.join((*_OPERATIONS, *_BITWISE))} are")


def _missing(call: str) -> NotImplementedError:
    return NotImplementedError(f"backend {NAME} has no {call}: the library has calls of all ranks only; use a second group of backend gloo for it")


def _bytes(tensor: Any) -> Any:
    """A dense tensor's memory as bytes, for copies of any type."""
    return tensor.detach().reshape(-1).view(torch.uint8)


class Work(C10dWork):  # type: ignore[misc, unused-ignore]
    """Calls under way, and what is left to do after them. Both `wait` and the future's thread may do it; it is done once."""

    def __init__(self, group: "ProcessGroup", result: list[Any], finish: Callable[[], None] | None = None) -> None:
        super().__init__()
        self._comm, self._completion, self._sequence = group.communicator, group._completion, group.communicator.sequence
        self._result, self._finish, self._once = result, finish, threading.Lock()
        self._failure: BaseException | None = None
        self._future: Any = None
        self._alive = group._alive
        self._alive[id(self)] = self
        while len(self._alive) > ALIVE and next(iter(self._alive.values())).is_completed():
            del self._alive[next(iter(self._alive))]

    def _end(self, failure: BaseException | None) -> list[Any]:
        with self._once:
            if failure is not None:
                self._failure = failure
                raise failure
            finish, self._finish = self._finish, None
            if finish is not None:
                finish()
        return self._result

    def wait(self, timeout: Any = None) -> bool:
        """Block until the result is there. The library's own time-out holds."""
        self._alive.pop(id(self), None)
        if any(tensor.is_cuda for tensor in self._result):
            self._end(None)  # in the order of the stream
            return True
        try:
            self._comm.wait(self._sequence)
        except Exception as error:
            self._failure = error
            raise
        self._end(None)
        return True

    def synchronize(self) -> None:
        """As wait."""
        self.wait()

    def get_future(self) -> Any:
        """A future with the list of results."""
        self._alive.pop(id(self), None)
        if self._future is None:
            cuda = [tensor.device for tensor in self._result if tensor.is_cuda]
            if cuda:
                self._future = torch.futures.Future(devices=sorted(set(cuda), key=str))
                self._future.set_result(self._end(None))
            else:
                self._future = self._completion.future(self._sequence, self._end)
        return self._future

    def is_completed(self) -> bool:
        """Never blocks."""
        return self._failure is not None or self._comm.test(self._sequence)

    def is_success(self) -> bool:
        """Complete, and not by an error."""
        return self._failure is None and self.is_completed()

    def exception(self) -> Any:
        """What it failed with, or None."""
        return self._failure

    def result(self) -> list[Any]:
        """Tensors that hold the result once `wait` has returned."""
        return self._result


class ProcessGroup(dist.ProcessGroup):  # type: ignore[misc, unused-ignore]
    """Ranks of torch.distributed on a communicator of isgqcoll, `communicator`."""

    def __init__(self, store: Any, rank: int, size: int, timeout: Any) -> None:
        super().__init__(rank, size)
        self.settings, self._rank, self._size = _settings, rank, size
        rounds = iter(range(1 << 30))

        def allgather(mine: bytes) -> list[bytes]:
            number = next(rounds)
            store.set(f"isgq/{number}/{rank}", mine.hex())
            return [bytes.fromhex(store.get(f"isgq/{number}/{peer}").decode()) for peer in range(size)]

        config = {"timeout": timeout.total_seconds(), **self.settings.config}
        self.communicator = Communicator.from_allgather(size, rank, allgather, **config)
        self._completion = Completion(self.communicator)
        self._alive: dict[int, Work] = {}
        leave_with(self, self.communicator)

    # ---- what torch asks of a group ----

    def getBackendName(self) -> str:
        """For torch's messages."""
        return NAME

    name = getBackendName

    def rank(self) -> int:
        """Of this process in the group."""
        return self._rank

    def size(self) -> int:
        """Ranks of the group."""
        return self._size

    def shutdown(self) -> None:
        """torch 2 calls it in destroy_process_group; all ranks do."""
        leave(self.communicator)

    def abort(self) -> None:
        """End the calls of all ranks with an error."""
        self.communicator.abort()

    def _set_sequence_number_for_group(self) -> None:
        return None

    def _get_sequence_number_for_group(self) -> int:
        return self.communicator.sequence

    def _start_coalescing(self, device: Any = None) -> None:
        return None

    def _end_coalescing(self, device: Any = None) -> Work:
        return Work(self, [])

    start_coalescing, end_coalescing = _start_coalescing, _end_coalescing

    # ---- helpers ----

    def _stream(self, tensor: Any) -> int | None:
        return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else None

    def _quantizer(self, tensor: Any, operation: str) -> str | None:
        """Sums of many floating point numbers alone are quantized; None is the communicator's default."""
        summed = operation in ("SUM", "AVG") and tensor.is_floating_point() and tensor.numel() >= self.settings.exact_below
        return self.settings.quantizer if summed else EXACT

    def _gathered(self, tensor: Any) -> Any:
        """Every rank's elements, [size, count] in bytes, of the calls that are under way."""
        mine = _bytes(tensor.contiguous())
        table = torch.empty((self._size, mine.numel()), dtype=torch.uint8, device=mine.device)
        if mine.numel():
            self.communicator.allgather(mine, table, quantizer=EXACT, stream=self._stream(mine), async_op=True)
        return table

    def _reduce(self, tensor: Any, operation: str) -> Callable[[], None] | None:
        """Begin to reduce a tensor in place; what is left to do, or None."""
        if tensor.is_sparse:
            raise _missing(f"all_reduce of sparse tensors ({tensor.layout})")
        if tensor.dtype is torch.bool and operation in _BOOLEAN:
            dense = tensor.contiguous()
            self.communicator.allreduce(_bytes(dense), op=_BOOLEAN[operation], quantizer=EXACT, stream=self._stream(tensor), async_op=True)
        elif operation in _BITWISE:
            table = self._gathered(tensor)
            return lambda: _fold(tensor, table, _BITWISE[operation])
        elif tensor.is_complex() and operation in ("SUM", "AVG"):
            dense = tensor.contiguous()
            return self._then_copy(tensor, dense, self._reduce(torch.view_as_real(dense), operation))
        else:
            dense = tensor.contiguous() if tensor.dtype in _SUMMED else tensor.to(torch.int32 if tensor.dtype is torch.int16 else tensor.dtype)
            self.communicator.allreduce(
                dense.detach(), op=_OPERATIONS[operation], quantizer=self._quantizer(tensor, operation), stream=self._stream(tensor), async_op=True
            )
        return self._then_copy(tensor, dense, None)

    @staticmethod
    def _then_copy(tensor: Any, dense: Any, before: Callable[[], None] | None) -> Callable[[], None] | None:
        if dense is tensor:
            return before

        def finish() -> None:
            if before is not None:
                before()
            tensor.copy_(dense)

        return finish

    # ---- collectives ----

    def allreduce(self, tensors: list[Any], opts: Any = None) -> Work:
        """Sum, average, product, extremes or bitwise operations, in place; tensors may be several."""
        tensors = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
        operation = _operation(opts)
        with calls_together(wait=False):
            left = [self._reduce(tensor, operation) for tensor in tensors if tensor.numel()]
        return Work(self, tensors, _all(left))

    allreduce_coalesced = allreduce

    def reduce(self, tensors: list[Any], opts: Any) -> Work:
        """An allreduce whose result only the root keeps."""
        copies = [tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors]
        work = self.allreduce(copies, opts)
        finish = work._finish if opts.rootRank != self._rank else _all([work._finish, *_copies(tensors, copies)])
        return Work(self, list(tensors), finish)

    def broadcast(self, tensors: list[Any], opts: Any) -> Work:
        """The root's elements, of any type."""
        root, left = opts.rootRank, []
        for tensor in tensors:
            dense = tensor.detach().contiguous()
            if dense.numel():
                self.communicator.broadcast(_bytes(dense), root=root, stream=self._stream(dense), async_op=True)
            left.append(self._then_copy(tensor, dense, None) if dense.data_ptr() != tensor.data_ptr() else None)
        return Work(self, list(tensors), _all(left))

    def allgather(self, output_tensors: list[list[Any]], input_tensors: list[Any], opts: Any = None) -> Work:
        """Every rank's tensor, of equal shapes."""
        tables = [self._gathered(tensor) for tensor in input_tensors]
        left = [_part(out, table[peer]) for outs, table in zip(output_tensors, tables) for peer, out in enumerate(outs)]
        return Work(self, [out for outs in output_tensors for out in outs], _all(left))

    def allgather_coalesced(self, output_lists: list[list[Any]], input_list: list[Any], opts: Any = None) -> Work:
        """Several tensors; output_lists[peer][i] is the peer's i-th."""
        tables = [self._gathered(tensor) for tensor in input_list]
        left = [_part(out, tables[i][peer]) for peer, outs in enumerate(output_lists) for i, out in enumerate(outs)]
        return Work(self, [out for outs in output_lists for out in outs], _all(left))

    def _allgather_base(self, output: Any, tensor: Any, opts: Any = None) -> Work:
        table = self._gathered(tensor)
        return Work(self, [output], _part(output, table))

    all_gather_single = _allgather_base

    def _each(self, call: Callable[[Any, Any, Any], Work], outputs: list[Any], inputs: list[Any], opts: Any) -> Work:
        works = [call(output, tensor, opts) for output, tensor in zip(outputs, inputs)]
        return Work(self, list(outputs), _all([work._finish for work in works]))

    def all_gather_single_coalesced(self, outputs: list[Any], inputs: list[Any], opts: Any = None) -> Work:
        """Several at once."""
        return self._each(self._allgather_base, outputs, inputs, opts)

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def _reduce_scatter_base(self, output: Any, tensor: Any, opts: Any = None) -> Work:
        operation = _operation(opts)
        if operation not in _OPERATIONS or tensor.dtype not in _SUMMED:
            raise NotImplementedError(f"backend {NAME}: reduce_scatter of {tensor.dtype} by {operation} is not there")
        if tensor.numel() != output.numel() * self._size:
            raise InvalidArgument(f"reduce_scatter: the input has {tensor.numel()} elements, the output {output.numel()} on each of {self._size} ranks")
        dense = output.detach().contiguous()
        quantizer = self._quantizer(tensor, operation)
        send = tensor.detach().contiguous()
        self.communicator.reduce_scatter(
            send, dense, op=_OPERATIONS[operation], quantizer=quantizer, stream=self._stream(output), async_op=True
        )
        return Work(self, [output], self._then_copy(output, dense, None) if dense.data_ptr() != output.data_ptr() else None)

    reduce_scatter_single = _reduce_scatter_base

    def reduce_scatter_single_coalesced(self, outputs: list[Any], inputs: list[Any], opts: Any = None) -> Work:
        """Several at once."""
        return self._each(self._reduce_scatter_base, outputs, inputs, opts)

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def reduce_scatter(self, output_tensors: list[Any], input_tensors: list[list[Any]], opts: Any = None) -> Work:
        """Rank r keeps the sum of all ranks' r-th tensors, of equal shapes."""
        joined = [torch.cat([part.detach().reshape(-1) for part in parts]) for parts in input_tensors]
        return self._each(self._reduce_scatter_base, output_tensors, joined, opts)

    def gather(self, output_tensors: list[list[Any]], input_tensors: list[Any], opts: Any) -> Work:
        """An allgather that only the root keeps."""
        tables = [self._gathered(tensor) for tensor in input_tensors]
        outputs = output_tensors if opts.rootRank == self._rank else []
        left = [_part(out, table[peer]) for outs, table in zip(outputs, tables) for peer, out in enumerate(outs)]
        return Work(self, [out for outs in outputs for out in outs], _all(left))

    def scatter(self, output_tensors: list[Any], input_tensors: list[list[Any]], opts: Any) -> Work:
        """A broadcast of which each rank keeps its part."""
        left: list[Callable[[], None] | None] = []
        for i, output in enumerate(output_tensors):
            table = torch.empty((self._size, output.numel() * output.element_size()), dtype=torch.uint8, device=output.device)
            if opts.rootRank == self._rank:
                for row, part in zip(table, input_tensors[i]):
                    row.copy_(_bytes(part.contiguous()))
            if output.numel():
                self.communicator.broadcast(table, root=opts.rootRank, stream=self._stream(output), async_op=True)
            left.append(_part(output, table[self._rank]))
        return Work(self, list(output_tensors), _all(left))

    def alltoall(self, outputs: list[Any], inputs: list[Any], opts: Any = None) -> Work:
        """Built from an allgather: N times the bytes of a true one."""
        sent = torch.cat([_bytes(part.contiguous()) for part in inputs])
        sizes = torch.tensor([part.numel() * part.element_size() for part in inputs])
        every = torch.empty((self._size, self._size), dtype=torch.int64)
        self.communicator.allgather(sizes, every, quantizer=EXACT)
        room = torch.zeros(int(every.sum(1).max()), dtype=torch.uint8, device=sent.device)
        room[: sent.numel()] = sent
        table, left = self._gathered(room), []
        for peer, output in enumerate(outputs):
            first, count = int(every[peer, : self._rank].sum()), int(every[peer, self._rank])
            if count != output.numel() * output.element_size():
                raise InvalidArgument(f"all_to_all: rank {peer} sends {count} bytes to rank {self._rank}, which has room for {output.numel()} elements")
            left.append(_part(output, table[peer, first : first + count]))
        return Work(self, list(outputs), _all(left))

    def alltoall_base(self, output: Any, tensor: Any, output_splits: list[int], input_splits: list[int], opts: Any = None) -> Work:
        """The same with one tensor, cut along its first dimension."""
        outs, ins = (
            list(whole.split(list(splits) or [whole.shape[0] // self._size] * self._size))
            for whole, splits in ((output, output_splits), (tensor, input_splits))
        )
        return self.alltoall(outs, ins, opts)

    all_to_all_single = alltoall_base

    def barrier(self, opts: Any = None) -> Work:
        """Complete once every rank has called it."""
        self.communicator.barrier(async_op=True)
        return Work(self, [])

    def monitored_barrier(self, timeout: Any = None, wait_all_ranks: bool = False) -> None:
        """A barrier; the library names the rank that is missing."""
        self.communicator.barrier()

    def send(self, tensors: list[Any], dst: int, tag: int = 0) -> Work:
        """Not there."""
        raise _missing("send")

    def recv(self, tensors: list[Any], src: int, tag: int = 0) -> Work:
        """Not there."""
        raise _missing("recv")

    def recv_anysource(self, tensors: list[Any], tag: int = 0) -> Work:
        """Not there."""
        raise _missing("recv")


def _all(steps: Iterable[Callable[[], None] | None]) -> Callable[[], None] | None:
    """One after the other."""
    left = [step for step in steps if step is not None]
    if not left:
        return None

    def finish() -> None:
        for step in left:
            step()

    return finish


def _part(output: Any, row: Any) -> Callable[[], None]:
    """Copy bytes to where a tensor of any type and strides is."""
    return lambda: output.detach().copy_(row.reshape(-1).view(output.dtype).view(output.shape))


def _copies(targets: list[Any], sources: list[Any]) -> list[Callable[[], None]]:
    return [functools.partial(target.detach().copy_, source) for target, source in zip(targets, sources)]


def _fold(tensor: Any, table: Any, operation: Callable[[Any, Any], Any]) -> None:
    rows = [row.view(tensor.dtype).view(tensor.shape) for row in table]
    for row in rows[1:]:
        rows[0] = operation(rows[0], row)
    tensor.copy_(rows[0])
