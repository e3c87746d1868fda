# SPDX-License-Identifier: Apache-2.0
"""What a call leaves behind: Work for those that are not awaited at once, groups of calls, counters and records."""
from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any, Iterator, NamedTuple

from ._library import RecordStruct, StatsStruct, lib
from .errors import Error, InvalidUsage, check
from .lifetime import Handle, Held

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

    def __init__(self, comm: "Communicator", held: Held, result: Any) -> None:
        self._comm, self._held, self._result = comm, held, result

    def _number(self) -> int:
        number = self._held.number
        if number is None:
            raise InvalidUsage("the call is in a group that has not ended")
        return number

    def wait(self) -> Any:
        """Block until the call is complete; its result. Ctrl-C interrupts the wait, not the call. Errors: as of the call; InvalidUsage inside its
        group, and after destroy unless the call was known to be complete."""
        number = self._number()
        if not self._held.complete:
            self._comm.wait(number)
        return self._result

    def done(self) -> bool:
        """Is it complete? Never blocks."""
        number = self._number()
        return self._held.complete or self._comm.test(number)


class _Groups(threading.local):
    """Of this thread: how deep groups are nested, and the calls that the outermost holds, by the handles they are for."""

    def __init__(self) -> None:
        self.depth, self.process = 0, 0
        self.held: dict[Handle, list[Held]] = {}

    def start(self) -> None:
        """One group more."""
        if self.depth == 0:
            self.process = os.getpid()
            check(lib.isgq_group_start())
        self.depth += 1

    def keep(self, handle: Handle, held: Held) -> None:
        """For a call that is launched at the end of the outermost group."""
        self.held.setdefault(handle, []).append(held)

    def end(self) -> dict[Handle, list[Held]]:
        """One less; launches what the outermost holds, and returns it."""
        self.depth -= 1
        if self.depth > 0:
            return {}
        held, self.held = self.held, {}
        if self.process != os.getpid():
            check(lib.isgq_group_end())  # the parent's: refused, and forgotten
            return {}
        for handle, calls in held.items():
            with contextlib.suppress(Error):  # it has failed: the end says so
                handle.await_room(len(calls))
        with contextlib.ExitStack() as locks:
            for handle in sorted(held, key=id):  # one order in all threads
                locks.enter_context(handle.lock)
            for handle, calls in held.items():
                last = handle.sequence()
                for call in calls:
                    last += 1
                    call.number = last
                handle.kept.extend(calls)
            check(lib.isgq_group_end())  # else communicators have failed, and what they kept goes with them
        return held

    def refuse(self, error: BaseException) -> None:
        """An exception has left the block: the outermost group launches nothing."""
        reason = f"a group was left by {type(error).__name__}: {error}".translate({0: " ", 10: " "})
        lib.isgq_group_refuse(None, InvalidUsage.status, reason.encode(errors="replace"))
        with contextlib.suppress(Error):  # it says the same
            self.end()


groups = _Groups()


@contextlib.contextmanager
def group(*, wait: bool = True) -> Iterator[None]:
    """Launch the calls of a with-block together; small allreduces among them travel in common messages. Groups nest; the outermost launches.

    Calls inside return at once. At the end those on host memory are awaited, or with wait=False none is: then the communicators' `synchronize` does it.
    If the block raises, or a call of it was refused by the library, nothing of it is launched, and its communicators fail on every rank, with the
    exception's text.
    """
    groups.start()
    try:
        yield
    except BaseException as error:
        groups.refuse(error)
        raise
    for handle, calls in groups.end().items():
        while wait and not handle.on_device and not handle.wait_slice(calls[-1].number or 0):
            pass
