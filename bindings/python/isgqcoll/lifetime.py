# SPDX-License-Identifier: Apache-2.0
"""The life of a communicator's handle, also at the end of the program.

Whoever uses the handle holds its Handle, and the last one to let go frees it: threads that wait, arrays in its memory, calls of groups. Destroying
a communicator aborts what these wait for and lets go; there is no moment at which a thread could find it freed, or at which Ctrl-C could leave a
count wrong. A forked child has a copy, which is of no use: every use of it is refused, and nothing is freed.
"""
from __future__ import annotations

import atexit
import collections
import contextlib
import ctypes
import os
import sys
import threading
import warnings
import weakref
from typing import Any, Callable

from ._library import lib
from .errand import interruptible
from .errors import Error, InvalidUsage, check, failure, last_failure

SLICE_MS = 100  # of a wait, between looks at signals
QUEUED = 240  # calls in flight before this package waits, where signals are looked at; the library waits at 256, where they are not
LEAVE_SECONDS = 10.0  # at the end of the program, for slower ranks to come to theirs; then they see a death


class Held:
    """What a call needs alive until it is complete. number: of the call; None while its group has not ended."""

    __slots__ = ("number", "what", "complete")

    def __init__(self, what: Any) -> None:
        self.number: int | None = None
        self.what = what
        self.complete = False


class Handle:
    """Owner of an isgq_comm_t, and of what its calls in flight need."""

    def __init__(self, pointer: ctypes.c_void_p, on_device: bool) -> None:
        self.pointer, self.on_device, self.pid = pointer, on_device, os.getpid()
        self.lock = threading.RLock()  # calls are made one at a time
        self.kept: collections.deque[Held] = collections.deque()
        self.finalized = False
        self.completed = 0  # calls, as far as is known here

    def __del__(self) -> None:
        if self.pid == os.getpid():
            lib.isgq_comm_destroy(self.pointer)  # aborts first unless it was finalized

    def check_process(self) -> None:
        """InvalidUsage in a forked child."""
        if self.pid != os.getpid():
            raise InvalidUsage(f"the communicator belongs to process {self.pid}; a forked child may not use it, but may make its own")

    def sequence(self) -> int:
        """Number of the last call."""
        number = ctypes.c_uint64()
        check(lib.isgq_comm_get_sequence(self.pointer, ctypes.byref(number)))
        return number.value

    def make(self, held: Held, call: Callable[[], int]) -> None:
        """Queue a call in C that needs this. It is kept before, under the number that the call will have: should an exception of a signal handler
        come right after, it is kept."""
        with self.lock:
            held.number = self.sequence() + 1
            self.kept.append(held)
            status = call()
            if status != 0:
                error = last_failure(status)
                self.kept.remove(held)
                raise error

    def test(self, number: int) -> bool:
        """Are that call and all before it complete?"""
        done = ctypes.c_int()
        if number > self.completed:
            check(lib.isgq_comm_test(self.pointer, number, ctypes.byref(done)))
            if not done.value:
                return False
            self.forget(number)
        return True

    def wait_slice(self, number: int) -> bool:
        """Wait a little; is it complete now?"""
        done = ctypes.c_int()
        if number > self.completed:
            status = lib.isgq_comm_wait_for(self.pointer, number, SLICE_MS, ctypes.byref(done))
            if status != 0:
                error = last_failure(status)
                self.check_failure()  # says more than that a call of a group was not launched
                raise error
            if not done.value:
                return False
            self.forget(number)
        return True

    def await_room(self, calls: int) -> None:
        """For so many more. The library would wait too, but not look at signals."""
        last = self.sequence()
        while last + calls - self.completed > QUEUED and not self.wait_slice(min(last, last + calls - QUEUED)):
            pass

    def forget(self, number: int) -> None:
        """Buffers of calls that are complete are the caller's again."""
        gone = []  # after the lock: to free them may run anybody's code
        with self.lock:
            self.completed = max(self.completed, number)
            while self.kept and self.kept[0].number is not None and self.kept[0].number <= self.completed:
                held = self.kept.popleft()
                gone.append(held.what)
                held.what, held.complete = None, True

    def check_failure(self) -> None:
        """Raise what went wrong after the last call, as the death of a rank."""
        error = ctypes.c_int()
        check(lib.isgq_comm_get_async_error(self.pointer, ctypes.byref(error)))
        if error.value:
            raise failure(error.value, lib.isgq_comm_get_last_error(self.pointer))

    def finalize(self) -> None:
        """Leave, with all others."""
        check(lib.isgq_comm_finalize(self.pointer))
        self.finalized = True

    def abort(self) -> None:
        """Tell all ranks, and wake this one's threads."""
        check(lib.isgq_comm_abort(self.pointer))


class Lifetime:
    """What every communicator can do whatever it is for: be used, be left, end."""

    _owned: Handle | None = None

    def _begin(self, handle: Handle) -> None:
        self._lock = handle.lock
        self._owned = handle
        _leaver.watch(self)

    def _use(self) -> Handle:
        """The handle, which lives as long as the caller holds it. InvalidUsage after destroy, and in a forked child."""
        handle = self._owned
        if handle is None:
            raise InvalidUsage("the communicator was destroyed")
        handle.check_process()
        return handle

    @property
    def _handle(self) -> ctypes.c_void_p | None:
        """isgq_comm_t; None after destroy."""
        handle = self._owned
        return None if handle is None else handle.pointer

    @property
    def handle(self) -> ctypes.c_void_p:
        """isgq_comm_t, for callers of the C library; valid until destroy. InvalidUsage after it, and in a forked child."""
        return self._use().pointer

    @property
    def destroyed(self) -> bool:
        """Was destroy called?"""
        return self._owned is None

    @property
    def sequence(self) -> int:
        """Number of the last call; calls are numbered from 1."""
        return self._use().sequence()

    def wait(self, sequence: int) -> None:
        """Block until that call and all before it are complete. Ctrl-C ends the wait; the call goes on."""
        while not self._use().wait_slice(sequence):  # anew each time: another thread may destroy it meanwhile
            pass

    def test(self, sequence: int) -> bool:
        """Are that call and all before it complete? Never blocks."""
        return self._use().test(sequence)

    def synchronize(self) -> None:
        """Block until all calls are complete. Raises also what went wrong after the last of them, as the death of a rank."""
        self.wait(self.sequence)
        self._use().check_failure()

    def finalize(self) -> None:
        """Wait for all calls, then leave. Collective; `destroy` follows. Ctrl-C ends the wait for the other ranks."""
        self.synchronize()
        handle = self._use()
        interruptible(lambda _ask: handle.finalize())

    def abort(self) -> None:
        """Stop outstanding calls on every rank; they raise RemoteError. From any thread."""
        self._use().abort()

    def destroy(self) -> None:
        """Free what this rank holds; aborts first unless it was finalized. From any thread: others that wait get an exception. A second time, or in
        a forked child, it does nothing."""
        handle, self._owned = self._owned, None
        if handle is not None and handle.pid == os.getpid() and not handle.finalized:
            handle.abort()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: Any, _value: Any, _trace: Any) -> None:
        try:
            if kind is None and self._owned is not None:
                self.finalize()
        finally:
            self.destroy()

    def __del__(self) -> None:
        handle = self._owned
        if handle is not None and handle.pid == os.getpid():
            if not handle.finalized:
                warnings.warn(f"{self!r} was dropped and is aborted; finalize it, or use it in a with-block", ResourceWarning, source=self, stacklevel=2)
            self.destroy()


class _Leaver:
    """What is still open when the program ends is finalized, so that slower ranks get what they wait for, unless an exception ended the program.

    Its thread is there from the first communicator on: at the end Python starts none.
    """

    def __init__(self) -> None:
        self._open: weakref.WeakKeyDictionary[Lifetime, None] = weakref.WeakKeyDictionary()  # in the order in which they were made
        self._pid = 0
        self._asked = self._left = threading.Event()

    def watch(self, comm: Lifetime) -> None:
        """From now on."""
        self._open[comm] = None
        if self._pid != os.getpid():
            self._pid, self._asked, self._left = os.getpid(), threading.Event(), threading.Event()
            threading.Thread(target=self._run, args=(self._asked, self._left), name="isgqcoll leave", daemon=True).start()

    def _mine(self) -> list[Lifetime]:
        return [comm for comm in list(self._open) if comm._owned is not None and comm._owned.pid == os.getpid()]

    def _run(self, asked: threading.Event, left: threading.Event) -> None:
        asked.wait()
        for comm in self._mine():
            with contextlib.suppress(Error):
                comm.finalize()
        left.set()

    def leave(self) -> None:
        """At the end of the program."""
        if self._pid == os.getpid() and self._mine() and not hasattr(sys, "last_type"):
            self._asked.set()
            self._left.wait(LEAVE_SECONDS)
        for comm in self._mine():
            with contextlib.suppress(Error):
                comm.destroy()


_leaver = _Leaver()
atexit.register(_leaver.leave)
