# SPDX-License-Identifier: Apache-2.0
"""Memory of isgq_mem_alloc as an array."""
from __future__ import annotations

import contextlib
import ctypes
import math
import operator
from typing import TYPE_CHECKING, Any

from ._library import lib
from .arrays import DATATYPES, TYPESTR
from .errors import InvalidArgument, check

if TYPE_CHECKING:
    from .communicator import Communicator


class Memory:
    """An array of isgq_mem_alloc that is freed with this object; views of it hold it. A communicator that is destroyed before is not freed in C
    until the last of its memory is gone, since that would go with it."""

    pointer = 0

    def __init__(self, comm: "Communicator", shape: Any, dtype: str) -> None:
        self.shape = tuple(operator.index(length) for length in (shape if isinstance(shape, (tuple, list)) else (shape,)))
        if dtype not in TYPESTR:
            raise InvalidArgument(f"empty: unknown type {dtype}; known are {', '.join(TYPESTR)}")
        if min(self.shape, default=1) < 0:
            raise InvalidArgument(f"empty: shape {self.shape}")
        pointer = ctypes.c_void_p()
        with comm._use() as handle:
            check(lib.isgq_mem_alloc(ctypes.byref(pointer), handle, max(1, math.prod(self.shape) * DATATYPES[dtype][1])))
            self._blocks = comm._blocks
            self._blocks.take(handle)
        self.pointer = pointer.value or 0
        self.__array_interface__ = {"version": 3, "shape": self.shape, "typestr": TYPESTR[dtype], "data": (self.pointer, False)}

    def __del__(self) -> None:
        if self.pointer:
            self._blocks.give_back(self.pointer)


def as_array(memory: Memory) -> Any:
    """NumPy's, if the program uses NumPy or has it."""
    with contextlib.suppress(ImportError):
        import numpy

        return numpy.asarray(memory)
    return memory
