# SPDX-License-Identifier: Apache-2.0
"""Buffers of other libraries, without copies: NumPy, PyTorch, CuPy, JAX and whatever else speaks one of the array protocols.

`view` looks for, in this order: PyTorch's own methods, `__array_interface__`, `__cuda_array_interface__`, `__dlpack__`, Python's buffers.
"""
from __future__ import annotations

import ctypes
import math
import sys
from typing import Any, NamedTuple

from .errors import InvalidArgument

# Names as NumPy, PyTorch and DLPack users know them: isgq_data_type_t and bytes of an element.
DATATYPES = {
    "int8": (0, 1),
    "uint8": (1, 1),
    "int32": (2, 4),
    "uint32": (3, 4),
    "int64": (4, 8),
    "uint64": (5, 8),
    "float16": (6, 2),
    "float32": (7, 4),
    "float64": (8, 8),
    "bfloat16": (9, 2),
}

_NATIVE = "<" if sys.byteorder == "little" else ">"
_NAMES = {
    "i1": "int8", "u1": "uint8", "i4": "int32", "u4": "uint32", "i8": "int64", "u8": "uint64", "f2": "float16", "f4": "float32", "f8": "float64",
}  # fmt: skip
TYPESTR = {name: _NATIVE + code for code, name in _NAMES.items()}
_DLPACK_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat"}
_DLPACK_CPU, _DLPACK_CUDA, _DLPACK_CUDA_HOST, _DLPACK_CUDA_MANAGED = 1, 2, 3, 13  # the last two are for hosts and devices
_DLPACK_READ_ONLY = 1


class Buffer(NamedTuple):
    """Memory of an array that is dense, row by row. `owner` keeps it alive."""

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    on_device: bool
    owner: Any

    @property
    def elements(self) -> int:
        """How many."""
        return math.prod(self.shape)

    @property
    def datatype(self) -> int:
        """isgq_data_type_t."""
        return DATATYPES[self.dtype][0]

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.elements * DATATYPES[self.dtype][1]


class _DLDevice(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int), ("number", ctypes.c_int)]


class _DLDataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _DLDevice),
        ("ndim", ctypes.c_int),
        ("dtype", _DLDataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _DLVersioned(ctypes.Structure):
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _DLTensor),
    ]


class _PyBuffer(ctypes.Structure):
    """Py_buffer."""

    _fields_ = [
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    ]


def _known(dtype: str, what: str) -> str:
    if dtype not in DATATYPES:
        raise InvalidArgument(f"{what}: elements of type {dtype} are not summed; known are {', '.join(DATATYPES)}")
    return dtype


def _check_dense(shape: tuple[int, ...], strides: tuple[int, ...] | None, item: int, what: str) -> None:
    """Strides, in the unit of `item`, of an array that has no gaps and lies row by row."""
    if strides is None or math.prod(shape) == 0:
        return
    expected = item
    for length, stride in zip(reversed(shape), reversed(strides)):
        if length != 1 and stride != expected:
            raise InvalidArgument(f"{what}: shape {shape} with strides {strides} is not contiguous; pass a contiguous copy")
        expected *= length


def _of_torch(array: Any, what: str) -> Buffer:
    if str(array.layout) != "torch.strided":
        raise InvalidArgument(f"{what}: a tensor of layout {array.layout}; only dense (strided) tensors are summed")
    if not array.is_contiguous():
        raise InvalidArgument(f"{what}: shape {tuple(array.shape)} with strides {array.stride()} is not contiguous; pass a contiguous copy")
    if array.is_neg():
        raise InvalidArgument(f"{what}: a view of negated memory; pass tensor.resolve_neg()")
    kind = array.device.type
    if kind not in ("cpu", "cuda"):
        raise InvalidArgument(f"{what}: a tensor on {array.device}; only cpu and cuda are served")
    dtype = _known(str(array.dtype).removeprefix("torch."), what)
    return Buffer(array.data_ptr(), tuple(array.shape), dtype, kind == "cuda", array)


def _interface_type(array: Any, typestr: str, what: str) -> str:
    if typestr[0] not in (_NATIVE, "|", "="):
        raise InvalidArgument(f"{what}: elements of byte order {typestr!r} are not those of this machine")
    if typestr[1] == "V" and str(getattr(array, "dtype", "")) == "bfloat16":  # that of ml_dtypes, which NumPy knows as two bytes
        return "bfloat16"
    return _known(_NAMES.get(typestr[1:], typestr), what)


def _of_interface(array: Any, interface: Any, on_device: bool, writable: bool, what: str) -> Buffer:
    try:
        typestr, shape, data = str(interface["typestr"]), tuple(int(length) for length in interface["shape"]), interface.get("data")
        strides = None if interface.get("strides") is None else tuple(int(stride) for stride in interface["strides"])
        if len(typestr) < 3 or min(shape, default=0) < 0:
            raise ValueError(f"type {typestr!r}, shape {shape}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidArgument(f"{what}: the array interface of {type(array).__name__} is broken: {error!r}") from None
    dtype = _interface_type(array, typestr, what)
    _check_dense(shape, strides, DATATYPES[dtype][1], what)
    if not isinstance(data, tuple) or len(data) != 2 or not isinstance(data[0], (int, type(None))):
        raise InvalidArgument(f"{what}: {type(array).__name__} does not say where its data are")
    if interface.get("mask") is not None:
        raise InvalidArgument(f"{what}: {type(array).__name__} is masked; fill it first")
    if writable and data[1]:
        raise InvalidArgument(f"{what}: the array is read-only")
    return Buffer(data[0] or 0, shape, dtype, on_device, (array, interface))


def _capsule_of(array: Any, writable: bool, what: str) -> Any:
    """With no version asked for, all exporters answer; but those of what is read-only may only say so in the newer form."""
    try:
        return array.__dlpack__()
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        refusal = error
    if not writable:
        try:
            return array.__dlpack__(max_version=(1, 0))
        except (BufferError, RuntimeError, TypeError, ValueError):
            pass
    raise InvalidArgument(f"{what}: {type(array).__name__} does not give its memory: {refusal}") from refusal


def _tensor_of(capsule: Any, what: str) -> tuple[_DLTensor, bool]:
    """What is in the capsule, and may it only be read."""
    is_valid, get = ctypes.pythonapi.PyCapsule_IsValid, ctypes.pythonapi.PyCapsule_GetPointer
    is_valid.restype, is_valid.argtypes = ctypes.c_int, [ctypes.py_object, ctypes.c_char_p]
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    if is_valid(capsule, b"dltensor"):
        return _DLTensor.from_address(get(capsule, b"dltensor")), False
    if is_valid(capsule, b"dltensor_versioned"):
        versioned = _DLVersioned.from_address(get(capsule, b"dltensor_versioned"))
        if versioned.major == 1:
            return versioned.tensor, bool(versioned.flags & _DLPACK_READ_ONLY)
        raise InvalidArgument(f"{what}: DLPack {versioned.major}.{versioned.minor}; versions before 2 are understood")
    raise InvalidArgument(f"{what}: no DLPack capsule, or one that was used")


def _of_dlpack(array: Any, writable: bool, what: str) -> Buffer:
    capsule = _capsule_of(array, writable, what)
    tensor, read_only = _tensor_of(capsule, what)
    dims = range(tensor.ndim)
    shape = tuple(tensor.shape[i] for i in dims)
    dtype = f"{_DLPACK_KINDS.get(tensor.dtype.code, f'kind {tensor.dtype.code}')}{tensor.dtype.bits}"
    if tensor.dtype.lanes != 1:
        dtype += f"x{tensor.dtype.lanes}"
    _known(dtype, what)
    _check_dense(shape, tuple(tensor.strides[i] for i in dims) if tensor.strides else None, 1, what)
    if tensor.device.kind not in (_DLPACK_CPU, _DLPACK_CUDA, _DLPACK_CUDA_HOST, _DLPACK_CUDA_MANAGED):
        raise InvalidArgument(f"{what}: memory of DLPack device kind {tensor.device.kind}; only CPUs and CUDA are served")
    if writable and read_only:
        raise InvalidArgument(f"{what}: the array is read-only")
    return Buffer((tensor.data or 0) + tensor.byte_offset, shape, dtype, tensor.device.kind == _DLPACK_CUDA, (array, capsule))


def _of_python(held: memoryview, writable: bool, what: str) -> Buffer:
    """array.array, bytearray, ctypes' arrays, mmap."""
    order, code = ("@", held.format) if len(held.format) == 1 else (held.format[0], held.format[1:])
    if order in "<>!" and order != _NATIVE:
        raise InvalidArgument(f"{what}: elements of format {held.format!r} are not in the byte order of this machine")
    kind = {**dict.fromkeys("bhilqn", "int"), **dict.fromkeys("BHILQN", "uint"), **dict.fromkeys("efd", "float")}.get(code)
    dtype = _known(held.format if kind is None else f"{kind}{8 * held.itemsize}", what)
    if not held.c_contiguous:
        raise InvalidArgument(f"{what}: shape {held.shape} with strides {held.strides} is not contiguous; pass a contiguous copy")
    if writable and held.readonly:
        raise InvalidArgument(f"{what}: the array is read-only")
    found = _PyBuffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(held), ctypes.byref(found), 0)
    pointer = found.buf or 0
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(found))  # `held` goes on keeping it where it is
    return Buffer(pointer, tuple(held.shape or ()), dtype, False, held)


def view(array: Any, what: str, *, writable: bool = False) -> Buffer:
    """The memory of `array`, checked: dense, of a known type, writable if it is to be written.

    `what` names it in the error, as "allreduce: send". No data are copied; the result keeps `array` alive.
    """
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(array, torch.Tensor):
        return _of_torch(array, what)
    if numpy is not None and isinstance(array, numpy.generic):
        raise InvalidArgument(f"{what}: a NumPy scalar cannot be written to; numpy.array({array!r}) can")  # its interface is that of a copy
    interface = getattr(array, "__array_interface__", None)
    if interface is not None:
        return _of_interface(array, interface, False, writable, what)
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is not None:
        return _of_interface(array, interface, True, writable, what)
    if hasattr(array, "__dlpack__"):
        return _of_dlpack(array, writable, what)
    try:
        held = memoryview(array)
    except (BufferError, TypeError, ValueError):
        known = "NumPy, PyTorch, __array_interface__, __cuda_array_interface__, DLPack or Python's buffers"
        raise InvalidArgument(f"{what}: {type(array).__name__} is no array ({known})") from None
    return _of_python(held, writable, what)
