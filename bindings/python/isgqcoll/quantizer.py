# SPDX-License-Identifier: Apache-2.0
"""Quantizers, and what a gradient tensor remembers between calls."""
from __future__ import annotations

import ctypes
import operator
from typing import Union

from ._library import lib
from .arrays import DATATYPES
from .errors import InvalidArgument, InvalidUsage, check


def _text(value: str, what: str) -> bytes:
    """As C takes it: a zero byte would end it in silence."""
    if "\0" in value:
        raise InvalidArgument(f"{what} {value!r}: there is a zero byte in its text")
    return value.encode()


class Quantizer:
    """How values are made small, from its text: "none", "isgq:bits=4", "uniform:bits=8", ... (docs/numerics.md has them all).

    Immutable; threads and communicators may share it.
    """

    def __init__(self, text: str) -> None:
        self._handle = ctypes.c_void_p()
        if not isinstance(text, str):
            raise InvalidArgument(f"a quantizer is made from its text, not from {type(text).__name__}")
        check(lib.isgq_quantizer_create(ctypes.byref(self._handle), _text(text, "quantizer")))
        self.text = text

    def max_bytes(self, count: int, dtype: str = "float32") -> int:
        """Most bytes of one message that carries a rank's contribution to `count` elements, frame not counted."""
        if dtype not in DATATYPES:
            raise InvalidArgument(f"max_bytes: unknown type {dtype}; known are {', '.join(DATATYPES)}")
        most = ctypes.c_size_t()
        check(lib.isgq_quantizer_max_bytes(self._handle, DATATYPES[dtype][0], count, ctypes.byref(most)))
        return most.value

    def __repr__(self) -> str:
        return f"Quantizer({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Quantizer) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return Quantizer, (self.text,)

    def __del__(self) -> None:
        if getattr(self, "_handle", None) and lib is not None:
            lib.isgq_quantizer_destroy(self._handle)


QuantizerLike = Union[Quantizer, str, None]

_made: dict[str, Quantizer] = {}


def quantizer(value: QuantizerLike) -> Quantizer | None:
    """A Quantizer from itself or its text; texts that were used before give the same object. None stays None: the communicator's default."""
    if value is None or isinstance(value, Quantizer):
        return value
    found = _made.get(value) if isinstance(value, str) else None
    if found is None:
        found = Quantizer(value)
        _made[value] = found
    return found


class TensorState:
    """What one gradient tensor remembers between calls: the residual of error feedback, directions of "powersgd", guessed scales.

    Pass it as `tensor=` to the calls on that gradient. `name` and `count` (elements) are equal on all ranks. It belongs to the communicator of
    its first call. `save` and `load` carry it over a restart.
    """

    def __init__(self, name: str, count: int, *, shape: tuple[int, int] | None = None) -> None:
        self._handle = ctypes.c_void_p()
        elements = operator.index(count)
        if elements < 0:
            raise InvalidArgument(f"tensor state {name!r}: {elements} elements")
        check(lib.isgq_tensor_create(ctypes.byref(self._handle), _text(name, "tensor state"), elements))
        self.name, self.count = name, elements
        if shape is not None:
            self.set_shape(*shape)

    @property
    def handle(self) -> ctypes.c_void_p:
        """isgq_tensor_t; InvalidUsage after destroy."""
        if not self._handle:
            raise InvalidUsage(f"tensor state {self.name!r} was destroyed")
        return self._handle

    def set_shape(self, rows: int, columns: int) -> None:
        """How the tensor is a matrix, row by row; "powersgd" needs it."""
        check(lib.isgq_tensor_shape(self.handle, rows, columns))

    def reset(self) -> None:
        """Forget everything."""
        check(lib.isgq_tensor_reset(self.handle))

    def save(self) -> bytes:
        """This rank's state, for a checkpoint."""
        size = ctypes.c_size_t()
        check(lib.isgq_tensor_save(self.handle, None, ctypes.byref(size)))
        room = ctypes.create_string_buffer(max(size.value, 1))
        check(lib.isgq_tensor_save(self.handle, room, ctypes.byref(size)))
        return room.raw[: size.value]

    def load(self, state: bytes) -> None:
        """Counterpart of `save`, on a tensor state of the same name and count. Corrupt if it is damaged; then nothing changes."""
        room = ctypes.create_string_buffer(state, max(len(state), 1))
        check(lib.isgq_tensor_load(self.handle, room, len(state)))

    def destroy(self) -> None:
        """Free it; calls in flight keep what they need."""
        if self._handle:
            lib.isgq_tensor_destroy(self._handle)
            self._handle = ctypes.c_void_p()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) and lib is not None:
            self.destroy()
