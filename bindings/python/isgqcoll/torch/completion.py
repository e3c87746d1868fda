# SPDX-License-Identifier: Apache-2.0
"""Futures of PyTorch that end when calls do. One thread for each user waits for its calls in order, so that backward goes on meanwhile."""
from __future__ import annotations

import queue
import threading
import weakref
from typing import Any, Callable

import torch

from ..communicator import Communicator


def _serve(comm: Communicator, waiting: "queue.SimpleQueue[Any]") -> None:
    while True:
        item = waiting.get()
        if item is None:
            return
        sequence, future, note = item
        failure = None
        try:
            comm.wait(sequence)
        except BaseException as error:  # noqa: BLE001 - all of it belongs to whoever waits for the future
            failure = error
            note(error)
        future.set_result(failure)
        del item, future, failure, note


class Completion:
    """Makes futures for the calls of one communicator; `note` is told of failures, in the waiting thread."""

    def __init__(self, comm: Communicator, note: Callable[[BaseException], None]) -> None:
        self._comm, self._note = comm, note
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        weakref.finalize(self, self._waiting.put, None).atexit = False

    def future(self, value: Any) -> "torch.futures.Future[Any]":
        """Has `value` when all calls made so far are complete, or raises what they failed with."""
        if self._thread is None:
            self._thread = threading.Thread(target=_serve, args=(self._comm, self._waiting), name="isgqcoll futures", daemon=True)
            self._thread.start()
        ended: torch.futures.Future[Any] = torch.futures.Future()

        def result(done: "torch.futures.Future[Any]") -> Any:
            failure = done.value()
            if failure is not None:
                raise failure
            return value

        made = ended.then(result)  # a callback that raises gives C++ an error; Future.set_exception would give it a result
        self._waiting.put((self._comm.sequence, ended, self._note))
        return made
