# SPDX-License-Identifier: Apache-2.0
"""Communicators: groups of ranks, and the collectives they call.

Every rank makes the same calls in the same order. A call waits for its result unless it is told not to (async_op=True), in a group, or on
device memory, where the stream goes on when it is complete.
"""
from __future__ import annotations

import ctypes
import operator
from typing import Any, Callable, Sequence

from . import _library
from ._library import CallOptions, Config, Factors, RecordStruct, StatsStruct, UniqueId, lib
from .arrays import Buffer, view
from .calls import CallRecord, Stats, Work, groups
from .errors import InvalidArgument, InvalidUsage, check, failure
from .lifetime import Lifetime, interruptible
from .memory import Memory, as_array
from .quantizer import QuantizerLike, TensorState, quantizer as as_quantizer

OPERATIONS = {"sum": 0, "prod": 1, "max": 2, "min": 3, "avg": 4}
DEVICES = {"auto": 0, "cuda": 1, "cpu": 2}
SLICE_MS = 100  # of a wait, between looks at signals
MOST_KEPT = 64  # calls that nobody waited for, before a look at which of them are complete


def unique_id() -> bytes:
    """Bytes that rank 0 makes and hands to all others for `Communicator.from_id`. They contain the job's secret."""
    made = UniqueId()
    check(lib.isgq_get_unique_id(ctypes.byref(made)))
    return ctypes.string_at(ctypes.byref(made), _library.UNIQUE_ID_BYTES)


def _operation(op: str, call: str) -> int:
    if op not in OPERATIONS:
        raise InvalidArgument(f"{call}: unknown operation {op!r}; known are {', '.join(OPERATIONS)}")
    return OPERATIONS[op]


def _milliseconds(seconds: float | None) -> int:
    return 0 if seconds is None else max(1, round(seconds * 1000))


def _configuration(
    quantizer: QuantizerLike = None, device: str = "auto", transports: str | None = None, chunk_bytes: int = 0, timeout: float | None = None, seed: int = 0
) -> Config:
    """isgq_comm_config_t. quantizer: for calls that name none; timeout: seconds; transports: as "shm,ucx"; seed: equal on all ranks."""
    if device not in DEVICES:
        raise InvalidArgument(f"unknown device {device!r}; known are {', '.join(DEVICES)}")
    default = as_quantizer(quantizer)
    return Config(
        ctypes.sizeof(Config),
        DEVICES[device],
        transports.encode() if transports else None,
        default._handle if default else None,
        chunk_bytes,
        _milliseconds(timeout),
        seed,
    )


class Communicator(Lifetime):
    """Ranks that sum arrays. Made from the launcher's environment (torchrun, mpirun, srun, or ISGQ_RANK and ISGQ_NRANKS), or by one of `from_id`,
    `from_allgather`, `split`; all of them are collective and take the same options:

    quantizer (for calls that name none), device ("cpu" or "cuda"), transports ("shm,ucx"), chunk_bytes, timeout (seconds without progress), seed.

    As a context manager it is finalized at the end, or aborted if the block raised. Calls of several threads take their turn, in whatever order.
    What is still open when the program ends is finalized then, or aborted if it ends by an exception.
    """

    def __init__(self, **config: Any) -> None:
        self._open(lambda handle, options: lib.isgq_comm_init_env(handle, options), config)

    def _open(self, join: Callable[[Any, Any], int], config: dict[str, Any], *, here: bool = False) -> None:
        """here: on the calling thread, which cannot be interrupted meanwhile."""
        handle, options = ctypes.c_void_p(), _configuration(**config)
        if here or options.device_type == DEVICES["cuda"] or groups.depth > 0:  # a device or a group belongs to its thread
            check(join(ctypes.byref(handle), ctypes.byref(options)))
        else:
            interruptible(lambda: join(ctypes.byref(handle), ctypes.byref(options)))
        rank, nranks = ctypes.c_int(), ctypes.c_int()
        if groups.depth == 0:  # else it is complete when the group is
            check(lib.isgq_comm_user_rank(handle, ctypes.byref(rank)))
            check(lib.isgq_comm_count(handle, ctypes.byref(nranks)))
        self.rank, self.nranks = rank.value, nranks.value
        self.on_device = options.device_type == DEVICES["cuda"]
        self._begin(handle)

    @classmethod
    def _made(cls, join: Callable[[Any, Any], int], config: dict[str, Any], *, here: bool = False) -> "Communicator":
        comm = cls.__new__(cls)
        comm._open(join, config, here=here)
        return comm

    @classmethod
    def from_id(cls, nranks: int, identity: bytes, rank: int, **config: Any) -> "Communicator":
        """Join by the bytes of `unique_id`, equal on every rank."""
        if len(identity) != _library.UNIQUE_ID_BYTES:
            raise InvalidArgument(f"a unique id has {_library.UNIQUE_ID_BYTES} bytes, not {len(identity)}")
        if groups.depth > 0:
            raise InvalidUsage("from_id: not inside a group")
        made = UniqueId.from_buffer_copy(identity)
        return cls._made(lambda handle, options: lib.isgq_comm_init_rank(handle, nranks, made, rank, options), config)

    @classmethod
    def from_allgather(cls, nranks: int, rank: int, allgather: Callable[[bytes], Sequence[bytes]], **config: Any) -> "Communicator":
        """Join ranks that can already talk: allgather(bytes) returns every rank's bytes, in rank order. It is called a few times, here only."""
        failure: list[BaseException] = []

        def exchange(_context: Any, send: int, receive: int, size: int) -> int:
            try:
                parts = b"".join(allgather(ctypes.string_at(send, size)))
                if len(parts) != nranks * size:
                    raise InvalidArgument(f"from_allgather: the caller's allgather returned {len(parts)} bytes of {nranks} ranks, not {nranks * size}")
                ctypes.memmove(receive, parts, len(parts))
                return 0
            except BaseException as error:  # noqa: BLE001 - nothing may pass through C
                failure.append(error)
                return 1

        callback = _library.ALLGATHER(exchange)
        try:
            return cls._made(lambda handle, options: lib.isgq_comm_init_oob(handle, nranks, rank, callback, None, options), config, here=True)
        except Exception:
            if failure:
                raise failure[0] from None
            raise

    def split(self, color: int, key: int = 0, **config: Any) -> "Communicator | None":
        """Ranks of equal color share a new communicator, ordered by key; a negative color joins none and gets None. Without options: the parent's."""
        with self._use() as parent:
            if color >= 0:
                inherited = not config
                if inherited and self.on_device:
                    config = {"device": "cuda"}
                return self._made(
                    lambda handle, options: lib.isgq_comm_split(parent, color, key, handle, None if inherited else options), config, here=True
                )
            nothing = ctypes.c_void_p()
            check(lib.isgq_comm_split(parent, color, key, ctypes.byref(nothing), None))
            return None

    def __repr__(self) -> str:
        return f"<Communicator rank {self.rank} of {self.nranks}{'' if self._handle else ', destroyed'}>"

    # ---- waiting ----

    @property
    def sequence(self) -> int:
        """Number of the last call; calls are numbered from 1."""
        number = ctypes.c_uint64()
        with self._use() as handle:
            check(lib.isgq_comm_get_sequence(handle, ctypes.byref(number)))
        return number.value

    def wait(self, sequence: int) -> None:
        """Block until that call and all before it are complete. Ctrl-C ends the wait; the call goes on."""
        done = ctypes.c_int()
        while not done.value:
            with self._use() as handle:  # anew each time: another thread may destroy it meanwhile
                check(lib.isgq_comm_wait_for(handle, sequence, SLICE_MS, ctypes.byref(done)))
        self._forget(sequence)

    def test(self, sequence: int) -> bool:
        """Are that call and all before it complete? Never blocks."""
        done = ctypes.c_int()
        with self._use() as handle:
            check(lib.isgq_comm_test(handle, sequence, ctypes.byref(done)))
        if done.value:
            self._forget(sequence)
        return bool(done.value)

    def synchronize(self) -> None:
        """Block until all calls are complete. Raises also what went wrong after the last of them, as the death of a rank."""
        self.wait(self.sequence)
        error = ctypes.c_int()
        with self._use() as handle:
            check(lib.isgq_comm_get_async_error(handle, ctypes.byref(error)))
            if error.value:
                raise failure(error.value, lib.isgq_comm_get_last_error(handle))

    # ---- collectives ----

    def _options(self, tensor: TensorState | None, accumulate: bool, algorithm: str | None, timeout: float | None) -> CallOptions:
        name = algorithm.encode() if algorithm else None
        return CallOptions(ctypes.sizeof(CallOptions), tensor.handle if tensor else None, int(accumulate), name, _milliseconds(timeout))

    def _check_place(self, call: str, buffers: Sequence[Any]) -> None:
        """Memory that the communicator cannot reach is never handed to it."""
        for buffer in buffers:
            if not isinstance(buffer, Buffer) or buffer.elements == 0:
                continue
            if buffer.on_device and not self.on_device:
                raise InvalidArgument(f"{call}: an array is on a CUDA device, but this communicator works on host memory; make one with device='cuda'")
            if self.on_device and not (buffer.on_device or buffer.pinned):
                raise InvalidArgument(f"{call}: an array is in ordinary host memory, but this communicator works on a CUDA device")

    def _launch(self, call: str, arguments: Sequence[Any], buffers: Sequence[Any], result: Any, async_op: bool) -> Any:
        """Make the call (with the handle in front of the last arguments, where None stands for it), keep what it needs alive, and wait unless
        something speaks against it."""
        self._check_place(call, buffers)
        grouped = groups.depth > 0
        with self._lock, self._use() as handle:
            check(getattr(lib, "isgq_" + call)(*(handle if argument is self else argument for argument in arguments)))
            sequence = self.sequence
            if grouped:
                groups.keep(self, (arguments, buffers))
            else:
                self._kept.append((sequence, (arguments, buffers)))
        work = Work(self, None if grouped else sequence, result)
        if not (async_op or grouped or self.on_device):
            return work.wait()
        if len(self._kept) > MOST_KEPT:
            self.test(self._kept[0][0])
        return work if async_op else result

    def allreduce(
        self,
        send: Any,
        recv: Any = None,
        *,
        op: str = "sum",
        quantizer: QuantizerLike = None,
        tensor: TensorState | None = None,
        accumulate: bool = False,
        algorithm: str | None = None,
        timeout: float | None = None,
        stream: int | None = None,
        async_op: bool = False,
    ) -> Any:
        """Reduce arrays of equal shape over all ranks; every rank gets the same bits.

        send: any shape; recv: the same, or None for in place. op: "sum", "avg", "max", "min", "prod"; with a quantizer "sum" or "avg".
        tensor: what is remembered between calls; accumulate: add to recv instead of overwriting it; timeout: seconds; stream: a CUDA stream's
        number. Returns recv, or Work with async_op.
        """
        source = view(send, "allreduce: send", writable=recv is None)
        target = source if recv is None else view(recv, "allreduce: recv", writable=True)
        if (target.shape, target.dtype) != (source.shape, source.dtype):
            raise InvalidArgument(f"allreduce: recv is {target.dtype} {target.shape}, send {source.dtype} {source.shape}")
        used, options = as_quantizer(quantizer), self._options(tensor, accumulate, algorithm, timeout)
        return self._launch(
            "allreduce",
            (source.pointer, target.pointer, source.elements, source.datatype, _operation(op, "allreduce"), used and used._handle, self, stream, options),
            (source, target, used, tensor),
            send if recv is None else recv,
            async_op,
        )

    def allreduce_factored(
        self,
        x: Any,
        delta: Any,
        grad: Any,
        *,
        bias: Any = None,
        max_batch: int | None = None,
        op: str = "sum",
        quantizer: QuantizerLike = None,
        tensor: TensorState | None = None,
        accumulate: bool = False,
        algorithm: str | None = None,
        timeout: float | None = None,
        stream: int | None = None,
        async_op: bool = False,
    ) -> Any:
        """Sum over ranks of transpose(x) @ delta, exchanging the two factors (ISGQ, AAAI 2020).

        x: [batch, m]; delta: [batch, n]; grad: [m, n], receives the sum; bias: [n], receives the summed columns of delta. All of one type.
        batch may differ between ranks and be 0; max_batch bounds it on all of them and is equal everywhere (default: this rank's batch).
        The rest, and what is returned (grad), as in `allreduce`.
        """
        left, right = view(x, "allreduce_factored: x"), view(delta, "allreduce_factored: delta")
        product = view(grad, "allreduce_factored: grad", writable=True)
        column = None if bias is None else view(bias, "allreduce_factored: bias", writable=True)
        _check_factors(left, right, product, column)
        batch, columns, rows = left.shape[0], left.shape[1], right.shape[1]
        factors = Factors(ctypes.sizeof(Factors), left.pointer, right.pointer, batch, columns, rows, column and column.pointer)
        used, options = as_quantizer(quantizer), self._options(tensor, accumulate, algorithm, timeout)
        most = batch if max_batch is None else _count(max_batch, "allreduce_factored: max_batch")
        operation = _operation(op, "allreduce_factored")
        return self._launch(
            "allreduce_factored",
            (factors, most, product.pointer, left.datatype, operation, used and used._handle, self, stream, options),
            (left, right, product, column, used, tensor),
            grad,
            async_op,
        )

    def reduce_scatter(
        self, send: Any, recv: Any, *, op: str = "sum", quantizer: QuantizerLike = None, stream: int | None = None, async_op: bool = False
    ) -> Any:
        """Reduce over all ranks; rank r gets the r-th of nranks equal parts. send: nranks times the elements of recv."""
        source, target = view(send, "reduce_scatter: send"), view(recv, "reduce_scatter: recv", writable=True)
        if source.dtype != target.dtype or source.elements != target.elements * self.nranks:
            raise InvalidArgument(
                f"reduce_scatter: send is {source.dtype} {source.shape}, recv {target.dtype} {target.shape}; send has {self.nranks} times recv's elements"
            )
        used = as_quantizer(quantizer)
        operation = _operation(op, "reduce_scatter")
        return self._launch(
            "reduce_scatter",
            (source.pointer, target.pointer, target.elements, target.datatype, operation, used and used._handle, self, stream, None),
            (source, target, used),
            recv,
            async_op,
        )

    def allgather(self, send: Any, recv: Any, *, quantizer: QuantizerLike = None, stream: int | None = None, async_op: bool = False) -> Any:
        """Every rank's elements, in rank order. recv: nranks times the elements of send."""
        source, target = view(send, "allgather: send"), view(recv, "allgather: recv", writable=True)
        if source.dtype != target.dtype or target.elements != source.elements * self.nranks:
            raise InvalidArgument(
                f"allgather: recv is {target.dtype} {target.shape}, send {source.dtype} {source.shape}; recv has {self.nranks} times send's elements"
            )
        used = as_quantizer(quantizer)
        return self._launch(
            "allgather",
            (source.pointer, target.pointer, source.elements, source.datatype, used and used._handle, self, stream, None),
            (source, target, used),
            recv,
            async_op,
        )

    def broadcast(self, array: Any, *, root: int = 0, stream: int | None = None, async_op: bool = False) -> Any:
        """Copy root's elements into the array of every rank, exactly."""
        buffer = view(array, "broadcast", writable=self.rank != root)
        return self._launch(
            "broadcast",
            (buffer.pointer, buffer.pointer, buffer.elements, buffer.datatype, operator.index(root), self, stream),
            (buffer,),
            array,
            async_op,
        )

    def barrier(self, *, stream: int | None = None, async_op: bool = False) -> Any:
        """Complete once every rank has called it."""
        return self._launch("barrier", (self, stream), (), None, async_op)

    # ---- memory ----

    def empty(self, shape: Any, dtype: str = "float32") -> Any:
        """An array in memory of isgq_mem_alloc: large sums among processes of one host are faster where all ranks' arrays are from here (ADR 0024).

        shape: a number or a tuple; dtype: a name as "float32". A NumPy array if NumPy is there, else an object with `__array_interface__`. Its contents
        are undefined. It is freed with its last view, which may be after the communicator's end.
        """
        return as_array(Memory(self, shape, dtype))

    # ---- introspection ----

    def stats(self) -> Stats:
        """Counters since the communicator was made or reset."""
        filled = StatsStruct(size=ctypes.sizeof(StatsStruct))
        with self._use() as handle:
            check(lib.isgq_comm_get_stats(handle, ctypes.byref(filled)))
        return Stats.of(filled)

    def reset_stats(self) -> None:
        """Set all counters to zero."""
        with self._use() as handle:
            check(lib.isgq_comm_reset_stats(handle))

    def last_call(self) -> CallRecord:
        """What the last finished call did."""
        filled = RecordStruct(size=ctypes.sizeof(RecordStruct))
        with self._use() as handle:
            check(lib.isgqx_last_call(handle, ctypes.byref(filled)))
        return CallRecord.of(filled)

    def own_bytes(self) -> int:
        """Bytes of this rank's own contributions, however many ranks each went to: what the papers' gain is measured with."""
        total = ctypes.c_uint64()
        with self._use() as handle:
            check(lib.isgqx_own_bytes(handle, ctypes.byref(total)))
        return total.value


def _count(value: Any, what: str) -> int:
    """A number that may be NumPy's; ctypes would take a negative one for a huge one."""
    number = operator.index(value)
    if number < 0:
        raise InvalidArgument(f"{what} is {number}")
    return number


def _check_factors(x: Buffer, delta: Buffer, grad: Buffer, bias: Buffer | None) -> None:
    shapes = f"x {x.dtype} {x.shape}, delta {delta.dtype} {delta.shape}, grad {grad.dtype} {grad.shape}"
    if bias is not None:
        shapes += f", bias {bias.dtype} {bias.shape}"
    if len(x.shape) != 2 or len(delta.shape) != 2 or x.shape[0] != delta.shape[0]:
        raise InvalidArgument(f"allreduce_factored: x is [batch, m] and delta [batch, n]; got {shapes}")
    if grad.shape != (x.shape[1], delta.shape[1]) or (bias is not None and bias.shape != (delta.shape[1],)):
        raise InvalidArgument(f"allreduce_factored: grad is [m, n] and bias [n]; got {shapes}")
    if len({x.dtype, delta.dtype, grad.dtype} | ({bias.dtype} if bias else set())) != 1:
        raise InvalidArgument(f"allreduce_factored: all arrays have one type; got {shapes}")
