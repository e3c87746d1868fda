# SPDX-License-Identifier: Apache-2.0
"""Buffers of other libraries, without copies: NumPy, PyTorch, CuPy, JAX and whatever else speaks one of the three array protocols.

`view` looks for, in this order: PyTorch's own methods, `__array_interface__`, `__cuda_array_interface__`, `__dlpack__`.
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
_DLPACK_CPU, _DLPACK_CUDA, _DLPACK_CUDA_HOST, _DLPACK_CUDA_MANAGED = 1, 2, 3, 13


class Buffer(NamedTuple):
    """Memory of an array that is dense, row by row. `owner` keeps it alive."""

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    on_device: bool
    owner: Any
    pinned: bool = False  # host memory that devices reach too, as far as is known

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


def _is_pinned(tensor: Any) -> bool:
    """PyTorch asks CUDA, which a program on CPUs has no need to wake."""
    torch = sys.modules["torch"]
    return bool(torch.cuda.is_initialized() and tensor.is_pinned())


def _of_torch(array: Any, what: str) -> Buffer:
    if str(array.layout) != "torch.strided":
        raise InvalidArgument(f"{what}: a tensor of layout {array.layout}; only dense (strided) tensors are summed")
    if not array.is_contiguous():
        raise InvalidArgument(f"{what}: shape {tuple(array.shape)} with strides {array.stride()} is not contiguous; pass a contiguous copy")
    kind = array.device.type
    if kind not in ("cpu", "cuda"):
        raise InvalidArgument(f"{what}: a tensor on {array.device}; only cpu and cuda are served")
    dtype = _known(str(array.dtype).removeprefix("torch."), what)
    return Buffer(array.data_ptr(), tuple(array.shape), dtype, kind == "cuda", array, kind == "cpu" and _is_pinned(array))


def _of_interface(array: Any, interface: dict[str, Any], on_device: bool, writable: bool, what: str) -> Buffer:
    typestr, shape = interface["typestr"], tuple(interface["shape"])
    if typestr[0] not in (_NATIVE, "|", "="):
        raise InvalidArgument(f"{what}: elements of byte order {typestr!r} are not those of this machine")
    dtype = _known(_NAMES.get(typestr[1:], typestr), what)
    _check_dense(shape, interface.get("strides"), DATATYPES[dtype][1], what)
    data = interface.get("data")
    if data is None:
        raise InvalidArgument(f"{what}: {type(array).__name__} does not say where its data are")
    if writable and data[1]:
        raise InvalidArgument(f"{what}: the array is read-only")
    return Buffer(int(data[0] or 0), shape, dtype, on_device, (array, interface))


def _of_dlpack(array: Any, what: str) -> Buffer:
    capsule = array.__dlpack__()
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    tensor = _DLTensor.from_address(get(capsule, b"dltensor"))
    dims = range(tensor.ndim)
    shape = tuple(tensor.shape[i] for i in dims)
    dtype = f"{_DLPACK_KINDS.get(tensor.dtype.code, f'kind {tensor.dtype.code}')}{tensor.dtype.bits}"
    if tensor.dtype.lanes != 1:
        dtype += f"x{tensor.dtype.lanes}"
    _known(dtype, what)
    _check_dense(shape, tuple(tensor.strides[i] for i in dims) if tensor.strides else None, 1, what)
    if tensor.device.kind not in (_DLPACK_CPU, _DLPACK_CUDA, _DLPACK_CUDA_HOST, _DLPACK_CUDA_MANAGED):
        raise InvalidArgument(f"{what}: memory of DLPack device kind {tensor.device.kind}; only CPUs and CUDA are served")
    on_device = tensor.device.kind in (_DLPACK_CUDA, _DLPACK_CUDA_MANAGED)
    return Buffer((tensor.data or 0) + tensor.byte_offset, shape, dtype, on_device, (array, capsule), tensor.device.kind == _DLPACK_CUDA_HOST)


def view(array: Any, what: str, *, writable: bool = False) -> Buffer:
    """The memory of `array`, checked: dense, of a known type, writable if it is to be written.

    `what` names it in the error, as "allreduce: send". No data are copied; the result keeps `array` alive.
    """
    if hasattr(array, "data_ptr") and hasattr(array, "is_contiguous"):
        return _of_torch(array, what)
    if "numpy" in sys.modules and isinstance(array, sys.modules["numpy"].generic):
        raise InvalidArgument(f"{what}: a NumPy scalar cannot be written to; numpy.array({array!r}) can")  # its interface is that of a copy
    interface = getattr(array, "__array_interface__", None)
    if interface is not None:
        return _of_interface(array, interface, False, writable, what)
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is not None:
        return _of_interface(array, interface, True, writable, what)
    if hasattr(array, "__dlpack__"):
        return _of_dlpack(array, what)
    raise InvalidArgument(f"{what}: {type(array).__name__} is no array (NumPy, PyTorch, __array_interface__, __cuda_array_interface__ or DLPack)")
