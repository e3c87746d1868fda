# SPDX-License-Identifier: Apache-2.0
"""Quantizers, and what a gradient tensor remembers between calls."""
from __future__ import annotations

import ctypes
from typing import Any, Callable, Union

from ._library import lib
from .arguments import text as as_text, whole
from .arrays import DATATYPES
from .errors import InvalidArgument, InvalidUsage, check


class _Owned:
    """A handle of C, freed with its last holder: calls hold it while they are made, whatever becomes of the object that it is of."""

    __slots__ = ("pointer", "_free")

    def __init__(self, pointer: ctypes.c_void_p, free: Callable[[ctypes.c_void_p], None]) -> None:
        self.pointer, self._free = pointer, free

    def __del__(self) -> None:
        self._free(self.pointer)


class Quantizer:
    """How values are made small, from its text: "none", "isgq:bits=4", "uniform:bits=8", ... (docs/numerics.md has them all).

    Immutable; threads and communicators may share it. InvalidArgument names the first word that is wrong and the nearest right one.
    """

    def __init__(self, text: str) -> None:
        pointer = ctypes.c_void_p()
        check(lib.isgq_quantizer_create(ctypes.byref(pointer), as_text(text, "a quantizer")))
        self._owned = _Owned(pointer, lib.isgq_quantizer_destroy)
        self.text = text

    @property
    def pointer(self) -> ctypes.c_void_p:
        """isgq_quantizer_t; lives as long as this."""
        return self._owned.pointer

    def max_bytes(self, count: int, dtype: str = "float32") -> int:
        """Most bytes of one message that carries a rank's contribution to `count` elements, frame not counted. Unsupported of a quantizer for
        factored calls only."""
        if dtype not in DATATYPES:
            raise InvalidArgument(f"max_bytes: unknown type {dtype}; known are {', '.join(DATATYPES)}")
        most = ctypes.c_size_t()
        check(lib.isgq_quantizer_max_bytes(self.pointer, DATATYPES[dtype][0], whole(count, "max_bytes: count"), ctypes.byref(most)))
        return most.value

    def __repr__(self) -> str:
        return f"Quantizer({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Quantizer) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return Quantizer, (self.text,)


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
    its first call until it is reset or loaded. `save` and `load` carry it over a restart. All methods but `destroy` raise InvalidUsage after it,
    and while calls that name it are in flight.
    """

    def __init__(self, name: str, count: int, *, shape: tuple[int, int] | None = None) -> None:
        pointer, elements = ctypes.c_void_p(), whole(count, f"tensor state {name!r}: count")
        check(lib.isgq_tensor_create(ctypes.byref(pointer), as_text(name, "the name of a tensor state"), elements))
        self._owned: _Owned | None = _Owned(pointer, lib.isgq_tensor_destroy)
        self.name, self.count = name, elements
        if shape is not None:
            self.set_shape(*shape)

    def hold(self) -> _Owned:
        """isgq_tensor_t with who owns it, which calls hold; InvalidUsage after destroy."""
        owned = self._owned
        if owned is None:
            raise InvalidUsage(f"tensor state {self.name!r} was destroyed")
        return owned

    @property
    def handle(self) -> ctypes.c_void_p:
        """isgq_tensor_t; InvalidUsage after destroy."""
        return self.hold().pointer

    def set_shape(self, rows: int, columns: int) -> None:
        """How the tensor is a matrix, row by row; "powersgd" needs it. rows * columns is count."""
        owned = self.hold()
        check(lib.isgq_tensor_shape(owned.pointer, whole(rows, "set_shape: rows"), whole(columns, "set_shape: columns")))

    def reset(self) -> None:
        """Forget everything."""
        owned = self.hold()
        check(lib.isgq_tensor_reset(owned.pointer))

    def save(self) -> bytes:
        """This rank's state, for a checkpoint: its residual is its own."""
        owned, size = self.hold(), ctypes.c_size_t()
        check(lib.isgq_tensor_save(owned.pointer, None, ctypes.byref(size)))
        room = ctypes.create_string_buffer(max(size.value, 1))
        check(lib.isgq_tensor_save(owned.pointer, room, ctypes.byref(size)))
        return room.raw[: size.value]

    def load(self, state: Any) -> None:
        """Counterpart of `save`, on a tensor state of the same name and count. state: bytes, or what has such memory. Corrupt if it is damaged; then
        nothing changes."""
        owned = self.hold()
        try:
            saved = bytes(memoryview(state))
        except TypeError:
            raise InvalidArgument(f"load: a state is bytes, not {type(state).__name__}") from None
        check(lib.isgq_tensor_load(owned.pointer, saved, len(saved)))

    def destroy(self) -> None:
        """Free it; calls in flight keep what they need. A second time it does nothing."""
        self._owned = None
