# SPDX-License-Identifier: Apache-2.0
"""Communicators of process groups: made once for each group, through whatever backend it has, and left when the group or the process ends.

To leave takes all ranks (Communicator.finalize). A thread for each communicator does it, so that the end of a group, which Python sees at a
moment of its own on every rank, keeps nobody waiting; and at the end of the process a rank that waits in vain for the others gives up.
"""
from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from typing import Any

import torch.distributed as dist

from ..communicator import Communicator
from ..errors import Error, InvalidUsage
from ..quantizer import Quantizer

LEAVE_SECONDS = 10.0  # at the end of the process, for slower ranks to come to theirs; then they see a death


class Membership:
    """A communicator, and the thread that will leave it when `owner`, if any, is collected or the process ends, whichever is first."""

    def __init__(self, comm: Communicator, owner: Any = None) -> None:
        self.comm = comm
        self._asked, self._left = threading.Event(), threading.Event()
        threading.Thread(target=self._leave_when_asked, name="isgqcoll leave", daemon=True).start()
        if owner is not None:
            weakref.finalize(owner, self.ask_to_leave).atexit = False
        _members.append(self)

    def _leave_when_asked(self) -> None:
        self._asked.wait()
        for leave in (self.comm.finalize, self.comm.destroy):
            try:
                leave()
            except Error:  # a rank died or aborted: whoever waited for a call was told
                pass
        if self in _members:
            _members.remove(self)
        self._left.set()

    def ask_to_leave(self) -> None:
        """Begin to leave; returns at once."""
        self._asked.set()

    def leave(self) -> None:
        """Leave; returns when all have. Collective."""
        self._asked.set()
        self._left.wait()

    def leave_by(self, deadline: float) -> None:
        """Leave with the others or, if they have not come by then (time.monotonic), without them."""
        if not self._left.wait(max(0.0, deadline - time.monotonic())):
            with self.comm._lock:
                if self.comm._handle is not None:
                    self.comm.abort()
            self._left.wait(LEAVE_SECONDS)


_members: list[Membership] = []
_made: weakref.WeakKeyDictionary[Any, dict[Any, Membership]] = weakref.WeakKeyDictionary()


def _forget_all() -> None:
    """In a forked child: the communicators and their threads are the parent's."""
    _members.clear()
    _made.clear()


os.register_at_fork(after_in_child=_forget_all)


def _leave_all() -> None:
    failed = hasattr(sys, "last_type")  # the script ends by an exception: the others are to know at once
    deadline = time.monotonic() + (0.0 if failed else LEAVE_SECONDS)
    members = list(_members)
    if not failed:
        for member in members:
            member.ask_to_leave()
    for member in members:
        member.leave_by(deadline)


atexit.register(_leave_all)


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
    the group is destroyed or the process ends; `release` leaves it at once.
    """
    group = process_group(group)
    if not config and hasattr(group, "communicator"):  # one of the backend "isgq"
        return group.communicator
    key = tuple(sorted((name, value.text if isinstance(value, Quantizer) else value) for name, value in config.items()))
    members = _made.setdefault(group, {})
    member = members.get(key)
    if member is None or member.comm._handle is None:
        nranks = dist.get_world_size(group)

        def allgather(mine: bytes) -> list[bytes]:
            parts: list[Any] = [None] * nranks
            dist.all_gather_object(parts, mine, group=group)
            return parts

        comm = Communicator.from_allgather(nranks, dist.get_rank(group), allgather, **config)
        member = members[key] = Membership(comm, group)
    return member.comm


def release(group: Any = None) -> None:
    """Leave all communicators of a process group. Collective."""
    for member in _made.pop(process_group(group), {}).values():
        member.leave()
