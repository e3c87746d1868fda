# SPDX-License-Identifier: Apache-2.0
"""What a call leaves behind: Work for those that are not awaited at once, groups of calls, counters and records."""
from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any, Iterator, NamedTuple

from ._library import RecordStruct, StatsStruct, lib
from .errors import InvalidUsage, check

if TYPE_CHECKING:
    from .communicator import Communicator


class Stats(NamedTuple):
    """Counters of a communicator since it was made or reset; isgqcoll.h, isgq_stats_t, explains each."""

    calls: int
    input_bytes: int
    wire_bytes: int
    fallback_calls: int
    quantize_ns: int
    transfer_ns: int
    accuracy_calls: int
    nmse: float
    mean_nmse: float
    zeros: float
    mean_zeros: float
    limits: float
    mean_limits: float
    residual_norm: float
    mean_residual_norm: float
    lost_errors: int
    shadow_calls: int
    shadow_bytes: int
    shadow_nmse: float
    mean_shadow_nmse: float
    shared_bytes: int
    predicted_calls: int
    repaired_calls: int

    @classmethod
    def of(cls, filled: StatsStruct) -> "Stats":
        """From the C structure."""
        return cls(*(getattr(filled, name) for name in cls._fields))


class CallRecord(NamedTuple):
    """What the last finished call did: algorithm, transport, why it was chosen, bytes and nanoseconds."""

    sequence: int
    algorithm: str
    transport: str
    why: str
    input_bytes: int
    wire_bytes: int
    own_bytes: int
    time_ns: int

    @classmethod
    def of(cls, filled: RecordStruct) -> "CallRecord":
        """From the C structure."""
        def value(name: str) -> Any:
            found = getattr(filled, name)
            return found.decode(errors="replace") if isinstance(found, bytes) else found

        return cls(*(value(name) for name in cls._fields))


class Work:
    """A call under way. Its buffers are kept alive until it is complete; they are not to be touched before `wait` has returned."""

    def __init__(self, comm: "Communicator", sequence: int | None, result: Any) -> None:
        self._comm, self._sequence, self._result = comm, sequence, result

    def _number(self) -> int:
        return self._comm.sequence if self._sequence is None else self._sequence  # of a group: it was launched with the last call

    def wait(self) -> Any:
        """Block until the call is complete; its result. Ctrl-C interrupts the wait, not the call."""
        self._comm.wait(self._number())
        return self._result

    def done(self) -> bool:
        """Is it complete? Never blocks."""
        return self._comm.test(self._number())


class _Groups(threading.local):
    """Of this thread: how deep groups are nested, and what the outermost holds for each communicator."""

    def __init__(self) -> None:
        self.depth = 0
        self.held: dict["Communicator", list[Any]] = {}

    def keep(self, comm: "Communicator", what: Any) -> None:
        """Buffers of a call that is launched at the end of the outermost group."""
        self.held.setdefault(comm, []).append(what)


groups = _Groups()


@contextlib.contextmanager
def group(*, wait: bool = True) -> Iterator[None]:
    """Launch the calls of a with-block together; small allreduces among them travel in common messages.

    Calls inside return at once. At the end all of them are awaited, or with wait=False none is: then the communicators' `synchronize` does it.
    If the block raises, nothing of it is launched, and its communicators fail on every rank, with the exception's text.
    """
    check(lib.isgq_group_start())
    groups.depth += 1
    try:
        yield
    except BaseException as error:
        _end_group(error)
        raise
    launched = _end_group()
    for comm in launched if wait else ():
        comm.synchronize()


def _end_group(error: BaseException | None = None) -> "list[Communicator]":
    """The communicators of what was launched, if this was the outermost group."""
    groups.depth -= 1
    held = groups.held
    if groups.depth == 0:
        groups.held = {}
    if error is not None:
        lib.isgq_group_refuse(None, InvalidUsage.status, f"a group was left by {type(error).__name__}: {error}".encode())
        lib.isgq_group_end()  # says the same
        return []
    check(lib.isgq_group_end())
    if groups.depth > 0:
        return []
    for comm, what in held.items():
        comm._keep(what)
    return list(held)
