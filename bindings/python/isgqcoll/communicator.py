# SPDX-License-Identifier: Apache-2.0
"""Communicators: groups of ranks, and the collectives they call.

Every rank makes the same calls in the same order. A call waits for its result unless it is told not to (async_op=True), in a group, or on
device memory, where the stream goes on when it is complete.
"""
from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional, Sequence, TypedDict

from . import _library
from ._library import CallOptions, Config, Factors, RecordStruct, StatsStruct, UniqueId, lib
from .arguments import INT_MAX, milliseconds, text, whole
from .arrays import Buffer, view
from .calls import CallRecord, Stats, Work, groups
from .errand import Ask, interruptible
from .errors import Error, InvalidArgument, InvalidUsage, check
from .lifetime import Handle, Held, Lifetime
from .memory import Memory, as_array
from .quantizer import QuantizerLike, TensorState, quantizer as as_quantizer

if TYPE_CHECKING:
    from typing_extensions import Unpack

OPERATIONS = {"sum": 0, "prod": 1, "max": 2, "min": 3, "avg": 4}
DEVICES = {"auto": 0, "cuda": 1, "cpu": 2}
MOST_KEPT = 64  # calls that nobody waited for, before a look at which of them are complete


def unique_id() -> bytes:
    """128 bytes that rank 0 makes and hands to all others for `Communicator.from_id`. They contain the job's secret."""
    made = UniqueId()
    check(lib.isgq_get_unique_id(ctypes.byref(made)))
    return ctypes.string_at(ctypes.byref(made), _library.UNIQUE_ID_BYTES)


def _operation(op: str, call: str) -> int:
    if not isinstance(op, str) or op not in OPERATIONS:
        raise InvalidArgument(f"{call}: unknown operation {op!r}; known are {', '.join(OPERATIONS)}")
    return OPERATIONS[op]


class Options(TypedDict, total=False):
    """Of a communicator; what is not given follows the variable of the environment, then the built-in default (docs/configuration.md)."""

    quantizer: QuantizerLike
    """for calls that name none: a text or a Quantizer; ISGQ_QUANTIZER"""
    device: str
    """"cpu" (default): arrays in host memory; "cuda": on the device that is current"""
    transports: Optional[str]
    """allowed ones, as "shm,ucx"; ISGQ_TRANSPORTS"""
    chunk_bytes: int
    """pipeline chunk, bytes of input; ISGQ_CHUNK_BYTES"""
    timeout: Optional[float]
    """seconds without progress after which a call fails; ISGQ_TIMEOUT_MS"""
    seed: int
    """of every random decision, equal on all ranks; ISGQ_SEED"""


def _configuration(
    quantizer: QuantizerLike = None,
    device: str = "auto",
    transports: Optional[str] = None,
    chunk_bytes: int = 0,
    timeout: Optional[float] = None,
    seed: int = 0,
) -> tuple[Config, Any]:
    """isgq_comm_config_t, and what it points at."""
    if device not in DEVICES:
        raise InvalidArgument(f"unknown device {device!r}; known are {', '.join(DEVICES)}")
    default = as_quantizer(quantizer)
    allowed = None if transports is None else text(transports, "transports")
    config = Config(
        ctypes.sizeof(Config),
        DEVICES[device],
        allowed,
        default and default.pointer,
        whole(chunk_bytes, "chunk_bytes"),
        milliseconds(timeout, "timeout"),
        whole(seed, "seed"),
    )
    return config, (default, allowed)


class Communicator(Lifetime):
    """Ranks that sum arrays. Made from the launcher's environment (torchrun, mpirun, srun, or ISGQ_RANK and ISGQ_NRANKS), or by one of `from_id`,
    `from_allgather`, `split`; all of them are collective and take the same `Options`.

    As a context manager it is finalized at the end, or aborted if the block raised. What is still open when the program ends is finalized then, or
    aborted if it ends by an exception. Calls of several threads take their turn, in whatever order.

    rank: 0 to nranks-1; nranks: how many; on_device: are arrays those of a CUDA device, not of the host.

    Errors of all ways to make one: Mismatch when ranks disagree; builtins.TimeoutError when one does not come within ISGQ_INIT_TIMEOUT_MS;
    InvalidUsage when no launcher is recognised, or inside a group; Unsupported; SystemCallError. Ctrl-C ends the wait for other ranks.
    """

    def __init__(self, **config: "Unpack[Options]") -> None:
        self._open(lambda handle, options, _ask: lib.isgq_comm_init_env(handle, options), config)

    def _open(self, join: Callable[[Any, Any, Ask], int], config: Options) -> None:
        """join(handle, config, ask) makes it in C; ask(question) is question(), on the calling thread."""
        options, kept = _configuration(**config)
        on_device = options.device_type == DEVICES["cuda"]
        if groups.depth > 0:
            raise InvalidUsage("a communicator is not made inside a group: that waits for the other ranks")

        def work(ask: Ask) -> Handle:
            pointer, _needed = ctypes.c_void_p(), kept
            check(join(ctypes.byref(pointer), ctypes.byref(options), ask))
            return Handle(pointer, on_device)

        # The current CUDA device belongs to its thread.
        handle = work(lambda question: question()) if on_device else interruptible(work)
        rank, nranks = ctypes.c_int(), ctypes.c_int()
        check(lib.isgq_comm_user_rank(handle.pointer, ctypes.byref(rank)))
        check(lib.isgq_comm_count(handle.pointer, ctypes.byref(nranks)))
        self.rank, self.nranks, self.on_device = rank.value, nranks.value, on_device
        self._config = config
        self._begin(handle)

    @classmethod
    def _made(cls, join: Callable[[Any, Any, Ask], int], config: Options) -> "Communicator":
        comm = cls.__new__(cls)
        comm._open(join, config)
        return comm

    @classmethod
    def from_id(cls, nranks: int, identity: bytes, rank: int, **config: "Unpack[Options]") -> "Communicator":
        """Join by the bytes of `unique_id`, equal on every rank."""
        if not isinstance(identity, (bytes, bytearray, memoryview)):
            raise InvalidArgument(f"from_id: a unique id is bytes, not {type(identity).__name__}")
        if len(identity) != _library.UNIQUE_ID_BYTES:
            raise InvalidArgument(f"from_id: a unique id has {_library.UNIQUE_ID_BYTES} bytes, not {len(identity)}")
        made, ranks, own = UniqueId.from_buffer_copy(identity), whole(nranks, "from_id: nranks", INT_MAX), whole(rank, "from_id: rank", INT_MAX)
        return cls._made(lambda handle, options, _ask: lib.isgq_comm_init_rank(handle, ranks, made, own, options), config)

    @classmethod
    def from_allgather(
        cls, nranks: int, rank: int, allgather: Callable[[bytes], Sequence[bytes]], **config: "Unpack[Options]"
    ) -> "Communicator":
        """Join ranks that can already talk: allgather(bytes) returns every rank's bytes, in rank order. It is called a few times, here only, on the
        calling thread; what it raises comes out of here."""
        ranks, own = whole(nranks, "from_allgather: nranks", INT_MAX), whole(rank, "from_allgather: rank", INT_MAX)
        failures: list[BaseException] = []

        def join(handle: Any, options: Any, ask: Ask) -> int:
            def exchange(_context: Any, send: int, receive: int, size: int) -> int:
                try:
                    mine = ctypes.string_at(send, size)
                    parts = b"".join(ask(lambda: allgather(mine)))
                    if len(parts) != ranks * size:
                        raise InvalidArgument(f"from_allgather: the caller's allgather returned {len(parts)} bytes of {ranks} ranks, not {ranks * size}")
                    ctypes.memmove(receive, parts, len(parts))
                    return 0
                except BaseException as error:  # noqa: BLE001 - nothing may pass through C
                    failures.append(error)
                    return 1

            callback = _library.ALLGATHER(exchange)
            return int(lib.isgq_comm_init_oob(handle, ranks, own, callback, None, options))

        try:
            return cls._made(join, config)
        except Error:
            if failures:
                raise failures[0] from None
            raise

    def split(self, color: int, key: int = 0, **config: "Unpack[Options]") -> "Communicator | None":
        """Ranks of equal color share a new communicator, ordered by key; a negative color joins none and gets None. Options that are not given are
        the parent's."""
        parent = self._use()
        group, order = whole(color, "split: color", INT_MAX, -INT_MAX), whole(key, "split: key", INT_MAX, -INT_MAX)
        if group >= 0:
            inherited: Options = {**self._config, **config}
            return self._made(
                lambda handle, options, _ask: lib.isgq_comm_split(parent.pointer, group, order, handle, options), inherited
            )

        def pass_by(_ask: Ask) -> None:
            nothing = ctypes.c_void_p()
            check(lib.isgq_comm_split(parent.pointer, group, order, ctypes.byref(nothing), None))

        pass_by(lambda question: question()) if self.on_device else interruptible(pass_by)
        return None

    def __repr__(self) -> str:
        return f"<Communicator rank {self.rank} of {self.nranks}{', destroyed' if self.destroyed else ''}>"

    # ---- collectives ----

    def _launch(self, call: str, buffers: Sequence[Buffer], make: Callable[[ctypes.c_void_p], int], result: Any, async_op: bool) -> Any:
        """make(handle) is the call in C. What it refers to is kept alive until the call is complete, and that is waited for unless something speaks
        against it."""
        handle = self._use()
        for buffer in buffers:  # the opposite the library sees for itself: it asks CUDA, which knows what is pinned
            if buffer.on_device and buffer.elements > 0 and not self.on_device:
                raise InvalidArgument(f"{call}: an array is on a CUDA device, but this communicator works on host memory; make one with device='cuda'")
        held = Held((make, buffers))
        work = Work(self, held, result)
        if groups.depth > 0:
            groups.keep(handle, held)
            with handle.lock:
                check(make(handle.pointer))
            return work if async_op else result
        if not self.on_device:
            handle.await_room(1)
        handle.make(held, lambda: make(handle.pointer))
        if not (async_op or self.on_device):
            return work.wait()
        if len(handle.kept) > MOST_KEPT:
            handle.test(handle.kept[0].number or 0)
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

        Errors of all calls: InvalidArgument, Unsupported and InvalidUsage before anything is sent; Mismatch if ranks make different calls, TimeoutError
        if one does not come, RemoteError if one dies or aborts, each on all ranks.
        """
        source = view(send, "allreduce: send", writable=recv is None)
        target = source if recv is None else view(recv, "allreduce: recv", writable=True)
        if (target.shape, target.dtype) != (source.shape, source.dtype):
            raise InvalidArgument(f"allreduce: recv is {target.dtype} {target.shape}, send {source.dtype} {source.shape}")
        code, how, queue = _operation(op, "allreduce"), _quantizer(quantizer), _stream(stream, "allreduce")
        options = _call_options("allreduce", tensor, accumulate, algorithm, timeout)
        return self._launch(
            "allreduce",
            (source, target),
            lambda comm: lib.isgq_allreduce(source.pointer, target.pointer, source.elements, source.datatype, code, how.pointer, comm, queue, options.struct),
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

        x: [batch, m]; delta: [batch, n]; grad: [m, n], receives the sum; bias: [n], receives the summed columns of delta. All of one type: float32,
        float16 or bfloat16. batch may differ between ranks and be 0; max_batch bounds it on all of them and is equal everywhere (default: this
        rank's batch). op: "sum" or "avg". The rest, what is returned (grad), and the errors as in `allreduce`.
        """
        left, right = view(x, "allreduce_factored: x"), view(delta, "allreduce_factored: delta")
        product = view(grad, "allreduce_factored: grad", writable=True)
        column = None if bias is None else view(bias, "allreduce_factored: bias", writable=True)
        _check_factors(left, right, product, column)
        batch, columns, rows = left.shape[0], left.shape[1], right.shape[1]
        factors = Factors(ctypes.sizeof(Factors), left.pointer, right.pointer, batch, columns, rows, column and column.pointer)
        most = batch if max_batch is None else whole(max_batch, "allreduce_factored: max_batch")
        code, how, queue = _operation(op, "allreduce_factored"), _quantizer(quantizer), _stream(stream, "allreduce_factored")
        options = _call_options("allreduce_factored", tensor, accumulate, algorithm, timeout)
        return self._launch(
            "allreduce_factored",
            (left, right, product) + (() if column is None else (column,)),
            lambda comm: lib.isgq_allreduce_factored(
                factors, most, product.pointer, left.datatype, code, how.pointer, comm, queue, options.struct
            ),
            grad,
            async_op,
        )

    def reduce_scatter(
        self, send: Any, recv: Any, *, op: str = "sum", quantizer: QuantizerLike = None, stream: int | None = None, async_op: bool = False
    ) -> Any:
        """Reduce over all ranks; rank r gets the r-th of nranks equal parts. send: nranks times the elements of recv, in any shape. Returns recv, or Work
        with async_op."""
        source, target = view(send, "reduce_scatter: send"), view(recv, "reduce_scatter: recv", writable=True)
        if source.dtype != target.dtype or source.elements != target.elements * self.nranks:
            raise InvalidArgument(
                f"reduce_scatter: send is {source.dtype} {source.shape}, recv {target.dtype} {target.shape}; send has {self.nranks} times recv's elements"
            )
        code, how, queue = _operation(op, "reduce_scatter"), _quantizer(quantizer), _stream(stream, "reduce_scatter")
        return self._launch(
            "reduce_scatter",
            (source, target),
            lambda comm: lib.isgq_reduce_scatter(source.pointer, target.pointer, target.elements, target.datatype, code, how.pointer, comm, queue, None),
            recv,
            async_op,
        )

    def allgather(self, send: Any, recv: Any, *, quantizer: QuantizerLike = None, stream: int | None = None, async_op: bool = False) -> Any:
        """Every rank's elements, in rank order. recv: nranks times the elements of send, in any shape. Returns recv, or Work with async_op."""
        source, target = view(send, "allgather: send"), view(recv, "allgather: recv", writable=True)
        if source.dtype != target.dtype or target.elements != source.elements * self.nranks:
            raise InvalidArgument(
                f"allgather: recv is {target.dtype} {target.shape}, send {source.dtype} {source.shape}; recv has {self.nranks} times send's elements"
            )
        how, queue = _quantizer(quantizer), _stream(stream, "allgather")
        return self._launch(
            "allgather",
            (source, target),
            lambda comm: lib.isgq_allgather(source.pointer, target.pointer, source.elements, source.datatype, how.pointer, comm, queue, None),
            recv,
            async_op,
        )

    def broadcast(self, array: Any, *, root: int = 0, stream: int | None = None, async_op: bool = False) -> Any:
        """Copy root's elements into the array of every rank, exactly. Returns array, or Work with async_op."""
        buffer = view(array, "broadcast", writable=self.rank != root)
        source, queue = whole(root, "broadcast: root", INT_MAX), _stream(stream, "broadcast")
        return self._launch(
            "broadcast",
            (buffer,),
            lambda comm: lib.isgq_broadcast(buffer.pointer, buffer.pointer, buffer.elements, buffer.datatype, source, comm, queue),
            array,
            async_op,
        )

    def barrier(self, *, stream: int | None = None, async_op: bool = False) -> Any:
        """Complete once every rank has called it. Returns None, or Work with async_op."""
        queue = _stream(stream, "barrier")
        return self._launch("barrier", (), lambda comm: lib.isgq_barrier(comm, queue), None, async_op)

    # ---- memory ----

    def empty(self, shape: Any, dtype: str = "float32") -> Any:
        """An array in memory of isgq_mem_alloc: large sums among processes of one host are faster where all ranks' arrays are from here (ADR 0024).

        shape: a number or a tuple; dtype: a name as "float32", or NumPy's type. A NumPy array if NumPy is there, else a `Memory`, which has
        `__array_interface__`; on a device a `Memory` with `__cuda_array_interface__`. Its contents are undefined. It is freed with its last view,
        which may be after the communicator's end.
        """
        return as_array(Memory(self._use(), shape, dtype))

    # ---- introspection ----

    def stats(self) -> Stats:
        """Counters since the communicator was made or reset."""
        filled, handle = StatsStruct(size=ctypes.sizeof(StatsStruct)), self._use()
        check(lib.isgq_comm_get_stats(handle.pointer, ctypes.byref(filled)))
        return Stats.of(filled)

    def reset_stats(self) -> None:
        """Set all counters to zero."""
        handle = self._use()
        check(lib.isgq_comm_reset_stats(handle.pointer))

    def last_call(self) -> CallRecord:
        """What the last finished call did."""
        filled, handle = RecordStruct(size=ctypes.sizeof(RecordStruct)), self._use()
        check(lib.isgqx_last_call(handle.pointer, ctypes.byref(filled)))
        return CallRecord.of(filled)

    def own_bytes(self) -> int:
        """Bytes of this rank's own contributions, however many ranks each went to: what the papers' gain is measured with."""
        total, handle = ctypes.c_uint64(), self._use()
        check(lib.isgqx_own_bytes(handle.pointer, ctypes.byref(total)))
        return total.value


class _CallOptions(NamedTuple):
    """isgq_call_options_t, and the owner of the tensor that it names."""

    struct: CallOptions
    owner: Any


def _call_options(call: str, tensor: TensorState | None, accumulate: bool, algorithm: str | None, timeout: float | None) -> _CallOptions:
    owner = None if tensor is None else tensor.hold()
    name = None if algorithm is None else text(algorithm, f"{call}: algorithm")
    wait = milliseconds(timeout, f"{call}: timeout")
    return _CallOptions(CallOptions(ctypes.sizeof(CallOptions), None if owner is None else owner.pointer, int(bool(accumulate)), name, wait), owner)


class _Default:
    """No quantizer: the communicator's."""

    pointer = None


_DEFAULT = _Default()


def _quantizer(value: QuantizerLike) -> Any:
    return as_quantizer(value) or _DEFAULT


def _stream(stream: int | None, call: str) -> int | None:
    return None if stream is None else whole(stream, f"{call}: stream")


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
