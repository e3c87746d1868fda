# SPDX-License-Identifier: Apache-2.0
"""Communicators of process groups: made once for each group, through whatever backend it has, and left when the group ends.

Python sees the end of a group at another moment on every rank, and to leave takes all ranks (Communicator.finalize): a thread does it, and
keeps nobody waiting but the end of the program.
"""
from __future__ import annotations

import atexit
import contextlib
import sys
import threading
import time
import weakref
from typing import Any

import torch.distributed as dist

from ..communicator import Communicator
from ..errors import Error, InvalidUsage
from ..lifetime import LEAVE_SECONDS
from ..quantizer import Quantizer

_made: weakref.WeakKeyDictionary[Any, dict[Any, Communicator]] = weakref.WeakKeyDictionary()
_leaving: weakref.WeakKeyDictionary[Communicator, threading.Thread] = weakref.WeakKeyDictionary()


def _finalize(comm: Communicator) -> None:
    for end in (comm.finalize, comm.destroy):
        with contextlib.suppress(Error):  # a rank died or aborted: whoever waited for a call was told. Or a forked child's, which is not ours
            end()


def leave(comm: Communicator) -> threading.Thread:
    """Leave with all ranks, each as soon as it may; the thread that does. A second time it is the same one."""
    thread = threading.Thread(target=_finalize, args=(comm,), name="isgqcoll leave", daemon=True)
    first = _leaving.setdefault(comm, thread)
    if first is thread:
        thread.start()
    return first


def leave_with(owner: Any, comm: Communicator) -> None:
    """Leave when `owner` is collected; what is left at the end of the program ends as every communicator."""
    weakref.finalize(owner, leave, comm).atexit = False


def _wait_for_leaving() -> None:
    """Slower ranks are to get what they still wait for; but an exception's end is told to them at once."""
    end = time.monotonic() + (0.0 if hasattr(sys, "last_type") else LEAVE_SECONDS)
    for thread in list(_leaving.values()):
        thread.join(max(0.0, end - time.monotonic()))


atexit.register(_wait_for_leaving)


def process_group(group: Any = None) -> Any:
    """`group`, or the default one. InvalidUsage if there is none or this rank is not in it."""
    if group is None:
        if not dist.is_initialized():
            raise InvalidUsage("torch.distributed has no process group yet; call torch.distributed.init_process_group first")
        group = dist.group.WORLD
    if group is dist.GroupMember.NON_GROUP_MEMBER or dist.get_rank(group) < 0:
        raise InvalidUsage("this rank is not in the process group")
    return group


def communicator(group: Any = None, **config: Any) -> Communicator:
    """The communicator of a process group (None: the default one), made by the first call, which is collective; later ones give the same.

    config: options of Communicator; each set of them has a communicator of its own. Bootstraps over the group's backend, any. It is left when
    the group is destroyed or the program ends; `release` leaves it at once.
    """
    group = process_group(group)
    if not config and hasattr(group, "communicator"):  # one of the backend "isgq"
        own: Communicator = group.communicator
        return own
    key = tuple(sorted((name, value.text if isinstance(value, Quantizer) else value) for name, value in config.items()))
    made = _made.setdefault(group, {})
    found = made.get(key)
    if found is None or found._handle is None:
        nranks = dist.get_world_size(group)

        def allgather(mine: bytes) -> list[bytes]:
            parts: list[Any] = [None] * nranks
            dist.all_gather_object(parts, mine, group=group)
            return parts

        found = made[key] = Communicator.from_allgather(nranks, dist.get_rank(group), allgather, **config)
        leave_with(group, found)
    return found


def release(group: Any = None) -> None:
    """Leave all communicators of a process group. Collective."""
    for comm in _made.pop(process_group(group), {}).values():
        leave(comm).join()
