# SPDX-License-Identifier: Apache-2.0
"""Futures of PyTorch that end when calls do. One thread for each user waits for its calls in order, so that backward goes on meanwhile."""
from __future__ import annotations

import queue
import threading
import weakref
from typing import Any, Callable

import torch

from ..communicator import Communicator


def _serve(comm: Communicator, waiting: queue.SimpleQueue[Any]) -> None:
    while True:
        item = waiting.get()
        if item is None:
            return
        sequence, future = item
        failure = None
        try:
            comm.wait(sequence)
        except BaseException as error:  # noqa: BLE001 - all of it belongs to whoever waits for the future
            failure = error
        future.set_result(failure)
        del item, future, failure


class Completion:
    """Makes futures for the calls of one communicator."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        weakref.finalize(self, self._waiting.put, None).atexit = False

    def future(self, sequence: int, finish: Callable[[BaseException | None], Any]) -> torch.futures.Future[Any]:
        """Has what `finish` returns, which is called once that call and all before it are complete, with what they failed with or None."""
        if self._thread is None:
            self._thread = threading.Thread(target=_serve, args=(self._comm, self._waiting), name="isgqcoll futures", daemon=True)
            self._thread.start()
        ended: torch.futures.Future[Any] = torch.futures.Future()
        # A callback that raises gives C++ an error with its text; Future.set_exception would give it a result.
        made = ended.then(lambda done: finish(done.value()))
        self._waiting.put((sequence, ended))
        return made
