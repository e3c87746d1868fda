# SPDX-License-Identifier: Apache-2.0
"""Calls that block in C without looking at signals, on a thread of their own, so that Ctrl-C ends the wait for them.

Python runs signal handlers on the main thread only, between its own instructions. A call made there directly would hold Ctrl-C back until it
returns, which for ranks that never come is minutes later. Who waits for an errand also runs what it asks back: the caller's own functions see the
caller's thread.
"""
from __future__ import annotations

import queue
import threading
from typing import Any, Callable, TypeVar

T = TypeVar("T")
Ask = Callable[[Callable[[], Any]], Any]

ABANDONED_SECONDS = 1.0  # between looks of an errand that asks at whether anybody is left to answer


class _Errand:
    """`work(ask)` on a thread. Its outcome and its questions come through one queue."""

    def __init__(self, work: Callable[[Ask], Any]) -> None:
        self._work, self._abandoned = work, False
        self._news: queue.SimpleQueue[tuple[Callable[[], Any] | None, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="isgqcoll call", daemon=True).start()

    def _run(self) -> None:
        try:
            outcome = (True, self._work(self._ask))
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited
            outcome = (False, error)
        self._news.put((None, outcome))

    def _ask(self, question: Callable[[], Any]) -> Any:
        answer: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
        self._news.put((question, answer))
        while not self._abandoned:
            try:
                good, value = answer.get(timeout=ABANDONED_SECONDS)
            except queue.Empty:
                continue
            if good:
                return value
            raise value
        raise InterruptedError("whoever asked for this was interrupted")

    def outcome(self) -> Any:
        """What the work returned or raised; here its questions are answered. An exception, as of Ctrl-C, leaves the work to itself."""
        try:
            while True:
                question, rest = self._news.get()
                if question is None:
                    break
                try:
                    rest.put((True, question()))
                except Exception as error:  # noqa: BLE001 - the errand's to deal with
                    rest.put((False, error))
        except BaseException:
            self._abandoned = True
            raise
        good, value = rest
        if not good:
            raise value
        return value


def interruptible(work: Callable[[Ask], T]) -> T:
    """What work(ask) returns. On the main thread Ctrl-C ends the wait for it: work goes on by itself, and must own what it uses and what it makes."""
    if threading.current_thread() is not threading.main_thread():
        return work(lambda question: question())
    result: T = _Errand(work).outcome()
    return result
