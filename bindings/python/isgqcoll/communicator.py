# SPDX-License-Identifier: Apache-2.0
"""Communicators: groups of ranks, and the collectives they call.

Every rank makes the same calls in the same order. A call waits for its result unless it is told not to (async_op=True), in a group, or on
device memory, where the stream goes on when it is complete.
"""
from __future__ import annotations

import collections
import ctypes
import os
import threading
from typing import Any, Callable, Sequence

from . import _library
from ._library import CallOptions, Config, Factors, RecordStruct, StatsStruct, UniqueId, lib
from .arrays import Buffer, view
from .calls import CallRecord, Stats, Work, groups
from .errors import InvalidArgument, InvalidUsage, check
from .quantizer import QuantizerLike, TensorState, quantizer as as_quantizer

OPERATIONS = {"sum": 0, "prod": 1, "max": 2, "min": 3, "avg": 4}
DEVICES = {"auto": 0, "cuda": 1, "cpu": 2}
SLICE_MS = 100  # of a wait, between looks at signals


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


class Communicator:
    """Ranks that sum arrays. Made from the launcher's environment (torchrun, mpirun, srun, or ISGQ_RANK and ISGQ_NRANKS), or by one of `from_id`,
    `from_allgather`, `split`; all of them are collective and take the same options:

    quantizer (for calls that name none), device ("cpu" or "cuda"), transports ("shm,ucx"), chunk_bytes, timeout (seconds without progress), seed.

    As a context manager it is finalized at the end, or aborted if the block raised. Calls of several threads take their turn, in whatever order.
    """

    def __init__(self, **config: Any) -> None:
        self._open(lambda handle, options: lib.isgq_comm_init_env(handle, options), config)

    def _open(self, join: Callable[[Any, Any], int], config: dict[str, Any]) -> None:
        self._handle: ctypes.c_void_p | None = None
        self._lock = threading.RLock()
        self._kept: collections.deque[tuple[int, Any]] = collections.deque()
        self._pid = os.getpid()
        handle, options = ctypes.c_void_p(), _configuration(**config)
        check(join(ctypes.byref(handle), ctypes.byref(options)))
        self._handle = handle
        rank, nranks = ctypes.c_int(), ctypes.c_int()
        check(lib.isgq_comm_user_rank(handle, ctypes.byref(rank)))
        check(lib.isgq_comm_count(handle, ctypes.byref(nranks)))
        self.rank, self.nranks = rank.value, nranks.value

    @classmethod
    def _made(cls, join: Callable[[Any, Any], int], config: dict[str, Any]) -> "Communicator":
        comm = cls.__new__(cls)
        comm._open(join, config)
        return comm

    @classmethod
    def from_id(cls, nranks: int, identity: bytes, rank: int, **config: Any) -> "Communicator":
        """Join by the bytes of `unique_id`, equal on every rank."""
        if len(identity) != _library.UNIQUE_ID_BYTES:
            raise InvalidArgument(f"a unique id has {_library.UNIQUE_ID_BYTES} bytes, not {len(identity)}")
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
            return cls._made(lambda handle, options: lib.isgq_comm_init_oob(handle, nranks, rank, callback, None, options), config)
        except Exception:
            if failure:
                raise failure[0] from None
            raise

    def split(self, color: int, key: int = 0, **config: Any) -> "Communicator | None":
        """Ranks of equal color share a new communicator, ordered by key; a negative color joins none and gets None."""
        parent = self.handle
        if color >= 0:
            return self._made(
                lambda handle, options: lib.isgq_comm_split(parent, color, key, handle, options if config else None),
                config,
            )
        nothing = ctypes.c_void_p()
        check(lib.isgq_comm_split(parent, color, key, ctypes.byref(nothing), None))
        return None

    # ---- its life ----

    @property
    def handle(self) -> ctypes.c_void_p:
        """isgq_comm_t; InvalidUsage after destroy."""
        if self._handle is None:
            raise InvalidUsage("the communicator was destroyed")
        return self._handle

    def finalize(self) -> None:
        """Wait for all calls, then leave. Collective; `destroy` follows."""
        self.synchronize()
        check(lib.isgq_comm_finalize(self.handle))

    def abort(self) -> None:
        """Stop outstanding calls on every rank; they raise RemoteError. From any thread."""
        check(lib.isgq_comm_abort(self.handle))

    def destroy(self) -> None:
        """Free what this rank holds; aborts first unless it was finalized. A second time it does nothing."""
        with self._lock:
            handle, self._handle = self._handle, None
            if handle is not None and self._pid == os.getpid():
                status = lib.isgq_comm_destroy(handle)
                self._kept.clear()
                check(status)

    def __enter__(self) -> "Communicator":
        return self

    def __exit__(self, kind: Any, _value: Any, _trace: Any) -> None:
        try:
            if kind is None and self._handle is not None:
                self.finalize()
        finally:
            self.destroy()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None and lib is not None and self._pid == os.getpid():
            handle, self._handle = self._handle, None
            lib.isgq_comm_destroy(handle)

    def __repr__(self) -> str:
        return f"<Communicator rank {self.rank} of {self.nranks}{'' if self._handle else ', destroyed'}>"

    # ---- waiting ----

    @property
    def sequence(self) -> int:
        """Number of the last call; calls are numbered from 1."""
        number = ctypes.c_uint64()
        check(lib.isgq_comm_get_sequence(self.handle, ctypes.byref(number)))
        return number.value

    def wait(self, sequence: int) -> None:
        """Block until that call and all before it are complete. Ctrl-C ends the wait; the call goes on."""
        handle, done = self.handle, ctypes.c_int()
        while not done.value:
            check(lib.isgq_comm_wait_for(handle, sequence, SLICE_MS, ctypes.byref(done)))
        self._forget(sequence)

    def test(self, sequence: int) -> bool:
        """Are that call and all before it complete? Never blocks."""
        done = ctypes.c_int()
        check(lib.isgq_comm_test(self.handle, sequence, ctypes.byref(done)))
        if done.value:
            self._forget(sequence)
        return bool(done.value)

    def synchronize(self) -> None:
        """Block until all calls are complete."""
        self.wait(self.sequence)

    def _keep(self, held: Any) -> None:
        """Until all calls made so far are complete."""
        with self._lock:
            if self._handle is not None:
                self._kept.append((self.sequence, held))

    def _forget(self, sequence: int) -> None:
        """Buffers of calls that are complete are the caller's again."""
        with self._lock:
            while self._kept and self._kept[0][0] <= sequence:
                self._kept.popleft()

    # ---- collectives ----

    def _options(self, tensor: TensorState | None, accumulate: bool, algorithm: str | None, timeout: float | None) -> CallOptions:
        name = algorithm.encode() if algorithm else None
        return CallOptions(ctypes.sizeof(CallOptions), tensor.handle if tensor else None, int(accumulate), name, _milliseconds(timeout))

    def _launch(self, name: str, arguments: Sequence[Any], buffers: Sequence[Any], result: Any, async_op: bool) -> Any:
        """Make the call, keep what it needs alive, and wait unless something speaks against it."""
        grouped = groups.depth > 0
        with self._lock:
            check(getattr(lib, name)(*arguments))
            sequence = self.sequence
            if grouped:
                groups.keep(self, (arguments, buffers))
            else:
                self._kept.append((sequence, (arguments, buffers)))
        work = Work(self, None if grouped else sequence, result)
        if async_op:
            return work
        on_device = any(isinstance(buffer, Buffer) and buffer.on_device for buffer in buffers)
        return result if grouped or on_device else work.wait()

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
            "isgq_allreduce",
            (source.pointer, target.pointer, source.count, source.datatype, _operation(op, "allreduce"), used and used._handle, self.handle, stream, options),
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
        most = batch if max_batch is None else max_batch
        operation = _operation(op, "allreduce_factored")
        return self._launch(
            "isgq_allreduce_factored",
            (factors, most, product.pointer, left.datatype, operation, used and used._handle, self.handle, stream, options),
            (left, right, product, column, used, tensor),
            grad,
            async_op,
        )

    def reduce_scatter(
        self, send: Any, recv: Any, *, op: str = "sum", quantizer: QuantizerLike = None, stream: int | None = None, async_op: bool = False
    ) -> Any:
        """Reduce over all ranks; rank r gets the r-th of nranks equal parts. send: nranks times the elements of recv."""
        source, target = view(send, "reduce_scatter: send"), view(recv, "reduce_scatter: recv", writable=True)
        if source.dtype != target.dtype or source.count != target.count * self.nranks:
            raise InvalidArgument(
                f"reduce_scatter: send is {source.dtype} {source.shape}, recv {target.dtype} {target.shape}; send has {self.nranks} times recv's elements"
            )
        used = as_quantizer(quantizer)
        operation = _operation(op, "reduce_scatter")
        return self._launch(
            "isgq_reduce_scatter",
            (source.pointer, target.pointer, target.count, target.datatype, operation, used and used._handle, self.handle, stream, None),
            (source, target, used),
            recv,
            async_op,
        )

    def allgather(self, send: Any, recv: Any, *, quantizer: QuantizerLike = None, stream: int | None = None, async_op: bool = False) -> Any:
        """Every rank's elements, in rank order. recv: nranks times the elements of send."""
        source, target = view(send, "allgather: send"), view(recv, "allgather: recv", writable=True)
        if source.dtype != target.dtype or target.count != source.count * self.nranks:
            raise InvalidArgument(
                f"allgather: recv is {target.dtype} {target.shape}, send {source.dtype} {source.shape}; recv has {self.nranks} times send's elements"
            )
        used = as_quantizer(quantizer)
        return self._launch(
            "isgq_allgather",
            (source.pointer, target.pointer, source.count, source.datatype, used and used._handle, self.handle, stream, None),
            (source, target, used),
            recv,
            async_op,
        )

    def broadcast(self, array: Any, *, root: int = 0, stream: int | None = None, async_op: bool = False) -> Any:
        """Copy root's elements into the array of every rank, exactly."""
        buffer = view(array, "broadcast", writable=self.rank != root)
        return self._launch(
            "isgq_broadcast",
            (buffer.pointer, buffer.pointer, buffer.count, buffer.datatype, root, self.handle, stream),
            (buffer,),
            array,
            async_op,
        )

    def barrier(self, *, stream: int | None = None, async_op: bool = False) -> Any:
        """Complete once every rank has called it."""
        return self._launch("isgq_barrier", (self.handle, stream), (), None, async_op)

    # ---- introspection ----

    def stats(self) -> Stats:
        """Counters since the communicator was made or reset."""
        filled = StatsStruct(size=ctypes.sizeof(StatsStruct))
        check(lib.isgq_comm_get_stats(self.handle, ctypes.byref(filled)))
        return Stats.of(filled)

    def reset_stats(self) -> None:
        """Set all counters to zero."""
        check(lib.isgq_comm_reset_stats(self.handle))

    def last_call(self) -> CallRecord:
        """What the last finished call did."""
        filled = RecordStruct(size=ctypes.sizeof(RecordStruct))
        check(lib.isgqx_last_call(self.handle, ctypes.byref(filled)))
        return CallRecord.of(filled)

    def own_bytes(self) -> int:
        """Bytes of this rank's own contributions, however many ranks each went to: what the papers' gain is measured with."""
        total = ctypes.c_uint64()
        check(lib.isgqx_own_bytes(self.handle, ctypes.byref(total)))
        return total.value


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
