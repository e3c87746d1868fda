# SPDX-License-Identifier: Apache-2.0
"""Exceptions: one class for each status of the C library, with the library's own sentence.

Each is an Error and, where Python has a word for it, that too: an invalid argument is a ValueError, a time-out a TimeoutError, a lost peer a ConnectionError.
"""
from __future__ import annotations

import builtins

from ._library import lib


class Error(RuntimeError):
    """A call failed. `status` is the number of the C status, `name` its name in isgqcoll.h."""

    status = -1
    name = "unknown"


class CudaError(Error):
    """A CUDA call failed."""

    status, name = 1, "ISGQ_ERR_CUDA"


class SystemCallError(Error, OSError):
    """A system call failed."""

    status, name = 2, "ISGQ_ERR_SYSTEM"


class InternalError(Error):
    """The library found itself in a state that should not exist: please report it."""

    status, name = 3, "ISGQ_ERR_INTERNAL"


class InvalidArgument(Error, ValueError):
    """An argument is invalid."""

    status, name = 4, "ISGQ_ERR_INVALID_ARGUMENT"


class InvalidUsage(Error):
    """Calls were made in an invalid order, on what was destroyed, or in a forked child."""

    status, name = 5, "ISGQ_ERR_INVALID_USAGE"


class RemoteError(Error, ConnectionError):
    """A peer failed, or the connection to it was lost."""

    status, name = 6, "ISGQ_ERR_REMOTE"


class TimeoutError(Error, builtins.TimeoutError):  # noqa: A001 - and Python's own too
    """The other ranks did not come in time."""

    status, name = 8, "ISGQ_ERR_TIMEOUT"


class Unsupported(Error, NotImplementedError):
    """This build or device cannot do that."""

    status, name = 100, "ISGQ_ERR_UNSUPPORTED"


class Mismatch(Error):
    """Ranks disagree on arguments or configuration."""

    status, name = 101, "ISGQ_ERR_MISMATCH"


class OutOfMemory(Error, MemoryError):
    """Host or device memory ran out."""

    status, name = 102, "ISGQ_ERR_NO_MEMORY"


class Corrupt(Error):
    """What was received failed validation."""

    status, name = 103, "ISGQ_ERR_CORRUPT"


_CLASSES = {
    kind.status: kind
    for kind in (
        CudaError, SystemCallError, InternalError, InvalidArgument, InvalidUsage, RemoteError, TimeoutError, Unsupported, Mismatch, OutOfMemory, Corrupt,
    )
}  # fmt: skip


def failure(status: int, text: bytes) -> Error:
    """The exception for a status, with the library's sentence if it has one."""
    return _CLASSES.get(status, Error)((text or lib.isgq_get_error_string(status)).decode(errors="replace"))


def last_failure(status: int) -> Error:
    """The exception for the calling thread's last call, which failed."""
    return failure(status, lib.isgq_get_last_error())


def check(status: int) -> None:
    """Raise what the calling thread's last call failed with."""
    if status != 0:
        raise last_failure(status)
