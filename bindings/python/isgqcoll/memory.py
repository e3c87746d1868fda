# SPDX-License-Identifier: Apache-2.0
"""Memory of isgq_mem_alloc as an array."""
from __future__ import annotations

import contextlib
import ctypes
import math
import os
from typing import Any

from ._library import lib
from .arguments import SIZE_MAX, whole
from .arrays import DATATYPES, TYPESTR
from .errors import InvalidArgument, check
from .lifetime import Handle


class Memory:
    """An array of isgq_mem_alloc that is freed with this object; views of it hold it. It holds its communicator in C, of which it is a part."""

    pointer = 0

    def __init__(self, handle: Handle, shape: Any, dtype: Any) -> None:
        name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", str(dtype).removeprefix("torch."))
        if name not in TYPESTR:
            raise InvalidArgument(f"empty: unknown type {name}; known are {', '.join(TYPESTR)} (others are views: two bytes for each bfloat16)")
        self.shape = tuple(whole(length, "empty: shape") for length in (shape if isinstance(shape, (tuple, list)) else (shape,)))
        self.dtype, pointer = name, ctypes.c_void_p()
        size = whole(math.prod(self.shape) * DATATYPES[name][1], "empty: bytes", SIZE_MAX // 4)
        check(lib.isgq_mem_alloc(ctypes.byref(pointer), handle.pointer, max(1, size)))
        self._handle, self.pointer = handle, pointer.value or 0
        interface = {"version": 3, "shape": self.shape, "typestr": TYPESTR[name], "data": (self.pointer, False), "strides": None}
        if handle.on_device:
            self.__cuda_array_interface__ = interface
        else:
            self.__array_interface__ = interface

    @property
    def buffer(self) -> memoryview:
        """Its bytes, in host memory only; `cast` gives them a type. A view, which holds the memory."""
        if self._handle.on_device:
            raise InvalidArgument("buffer: the memory is a CUDA device's")
        size = math.prod(self.shape) * DATATYPES[self.dtype][1]
        kind: Any = type("Block", (ctypes.c_ubyte * size,), {})  # has room for attributes, other than an array of ctypes itself
        block = kind.from_address(self.pointer)
        block.memory = self
        return memoryview(block).cast("B")

    def __del__(self) -> None:
        if self.pointer and self._handle.pid == os.getpid():  # a forked child's is the parent's
            lib.isgq_mem_free(self.pointer, self._handle.pointer)


def as_array(memory: Memory) -> Any:
    """NumPy's, if it is in host memory and NumPy is there."""
    if not hasattr(memory, "__cuda_array_interface__"):
        with contextlib.suppress(ImportError):
            import numpy

            return numpy.asarray(memory)
    return memory
