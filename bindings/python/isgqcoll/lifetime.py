# SPDX-License-Identifier: Apache-2.0
"""The life of a communicator's handle: who may use it, in which process, and how it ends, also at the end of the program.

A thread that uses the handle is counted, and the handle is freed when the last one has left; destroying aborts what these wait for. In a forked
child every use is refused, and nothing is freed: it is the parent's.
"""
from __future__ import annotations

import atexit
import collections
import contextlib
import ctypes
import os
import sys
import threading
import time
import weakref
from typing import Any, Callable, Iterator

from ._library import lib
from .errors import Error, InvalidUsage, check

LEAVE_SECONDS = 10.0  # at the end of the program, for slower ranks to come to theirs; then they see a death


def interruptible(call: Callable[[], int]) -> None:
    """A call that blocks in C without looking at signals, on a thread of its own: Ctrl-C then ends the wait, and the thread is left alone."""
    if threading.current_thread() is not threading.main_thread():
        check(call())
        return
    failure: list[BaseException] = []
    done = threading.Event()

    def work() -> None:
        try:
            check(call())
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited
            failure.append(error)
        done.set()

    threading.Thread(target=work, name="isgqcoll call", daemon=True).start()
    done.wait()
    if failure:
        raise failure[0]


class Blocks:
    """Memory of isgq_mem_alloc that is out. It goes with its communicator in C, so that is freed after the last of it."""

    def __init__(self) -> None:
        self._lock, self._pid = threading.RLock(), os.getpid()  # a collector may run within a call
        self._out, self._handle, self._ended = 0, ctypes.c_void_p(), False

    def take(self, handle: ctypes.c_void_p) -> None:
        """One block more."""
        with self._lock:
            self._out, self._handle = self._out + 1, handle

    def give_back(self, pointer: int) -> None:
        """One less; the last one of a communicator that has ended takes that along. A forked child frees nothing."""
        if self._pid != os.getpid():
            return
        with self._lock:
            lib.isgq_mem_free(pointer, self._handle)
            self._out -= 1
            if self._out == 0 and self._ended:
                lib.isgq_comm_destroy(self._handle)

    def end(self, handle: ctypes.c_void_p) -> int:
        """Free the communicator, now or after the last block; a status."""
        with self._lock:
            if self._out == 0:
                return int(lib.isgq_comm_destroy(handle))
            self._ended = True
            return 0


class Lifetime:
    """Owner of an isgq_comm_t."""

    _handle: ctypes.c_void_p | None = None

    def _begin(self, handle: ctypes.c_void_p) -> None:
        self._lock = threading.RLock()  # calls are made one at a time
        self._users, self._idle = 0, threading.Condition(threading.Lock())
        self._kept: collections.deque[tuple[int, Any]] = collections.deque()
        self._pid, self._finalized = os.getpid(), False
        self._blocks = Blocks()
        self._handle = handle
        _alive.add(self)

    @property
    def handle(self) -> ctypes.c_void_p:
        """isgq_comm_t; InvalidUsage after destroy, and in a forked child."""
        if self._handle is None:
            raise InvalidUsage("the communicator was destroyed")
        if self._pid != os.getpid():
            raise InvalidUsage("the communicator is the parent's; a forked process makes its own")
        return self._handle

    @contextlib.contextmanager
    def _use(self) -> Iterator[ctypes.c_void_p]:
        """The handle, which is not freed meanwhile."""
        handle = self.handle
        with self._idle:
            handle = self.handle
            self._users += 1
        try:
            yield handle
        finally:
            with self._idle:
                self._users -= 1
                self._idle.notify_all()

    def synchronize(self) -> None:
        """Block until all calls are complete."""
        raise NotImplementedError

    def finalize(self) -> None:
        """Wait for all calls, then leave. Collective; `destroy` follows."""
        self.synchronize()
        with self._use() as handle:
            interruptible(lambda: lib.isgq_comm_finalize(handle))
            self._finalized = True

    def abort(self) -> None:
        """Stop outstanding calls on every rank; they raise RemoteError. From any thread."""
        with self._use() as handle:
            check(lib.isgq_comm_abort(handle))

    def destroy(self) -> None:
        """Free what this rank holds; aborts first unless it was finalized. A second time, or in a forked child, it does nothing."""
        if self._handle is None or self._pid != os.getpid():
            return
        with self._idle:
            handle, self._handle = self._handle, None
            if handle is None:
                return
            if not self._finalized:
                lib.isgq_comm_abort(handle)
            while self._users > 0:
                self._idle.wait()
        _alive.discard(self)
        status = self._blocks.end(handle)
        self._kept.clear()
        check(status)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, kind: Any, _value: Any, _trace: Any) -> None:
        try:
            if kind is None and self._handle is not None:
                self.finalize()
        finally:
            self.destroy()

    def __del__(self) -> None:
        if self._handle is not None and self._pid == os.getpid():
            handle, self._handle = self._handle, None
            if not self._finalized:
                lib.isgq_comm_abort(handle)
            self._blocks.end(handle)

    # ---- what calls in flight hold ----

    @property
    def sequence(self) -> int:
        """Number of the last call."""
        raise NotImplementedError

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


_alive: "weakref.WeakSet[Lifetime]" = weakref.WeakSet()


def _leave(comm: Lifetime) -> None:
    with contextlib.suppress(Error):
        comm.finalize()


def _leave_all() -> None:
    """Left open at the end of the program: finalized, so that slower ranks get what they wait for, unless an exception ended it."""
    open_ones = [comm for comm in _alive if comm._handle is not None and comm._pid == os.getpid()]
    if not hasattr(sys, "last_type"):
        threads = [threading.Thread(target=_leave, args=(comm,), daemon=True) for comm in open_ones]
        end = time.monotonic() + LEAVE_SECONDS
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
    for comm in open_ones:
        with contextlib.suppress(Error):
            comm.destroy()


atexit.register(_leave_all)
