# SPDX-License-Identifier: Apache-2.0
"""Arrays of other libraries: taken without a copy, or refused with a sentence; one rank is enough."""
import array
import ctypes
import os
import pathlib
import subprocess
import sys

import numpy
import pytest

import isgqcoll
import isgqcoll.arrays
import ranks

torch = pytest.importorskip("torch") if os.path.exists("/usr/lib/python3/dist-packages/torch") else None


class Interface:
    """Has nothing but one protocol's attribute."""

    def __init__(self, name, values, **changes):
        self.values = values
        setattr(self, name, {**values.__array_interface__, **changes})


class Named(Interface):
    """NumPy arrays of types that other libraries brought say no more than that elements have two bytes."""

    def __init__(self, dtype, values, **changes):
        super().__init__("__array_interface__", values, **changes)
        self.dtype = dtype


class DLPack:
    def __init__(self, values):
        self.values = values

    def __dlpack__(self, stream=None):  # no max_version: older exporters know none
        return self.values.__dlpack__()

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


class NewDLPack:
    """Exports as DLPack 1.0 says, always; `flags` 1: to be read only."""

    class Tensor(ctypes.Structure):
        _fields_ = [("major", ctypes.c_uint32), ("minor", ctypes.c_uint32), ("manager", ctypes.c_void_p), ("deleter", ctypes.c_void_p),
                    ("flags", ctypes.c_uint64), ("tensor", isgqcoll.arrays._DLTensor)]  # fmt: skip

    def __init__(self, values, flags=0, major=1, old_refused=False):
        self.values, self.old_refused, self.shape = values, old_refused, (ctypes.c_int64 * values.ndim)(*values.shape)
        tensor = isgqcoll.arrays._DLTensor(values.ctypes.data, (1, 0), values.ndim, (2, 32, 1), self.shape, None, 0)
        self.made = self.Tensor(major, 0, None, None, flags, tensor)

    def __dlpack__(self, stream=None, max_version=None):
        if self.old_refused and max_version is None:
            raise BufferError("read-only memory needs DLPack 1.0")
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self.made), b"dltensor_versioned", None)


def protocols(rank, nranks):
    with isgqcoll.Communicator() as comm:
        for dtype in ("int8", "uint8", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64"):
            values = numpy.arange(12, dtype=dtype).reshape(3, 4)
            assert comm.allreduce(values) is values and values[2, 3] == 11 * nranks
        values = numpy.ones(5, numpy.float32)
        comm.allreduce(Interface("__array_interface__", values))
        comm.allreduce(DLPack(values))
        comm.allreduce(values[::-1][::-1])  # strides of a dense array
        comm.allreduce(values.reshape(5, 1)[:, 0])
        assert values[4] == nranks**4
        comm.allreduce(NewDLPack(values))
        sums = array.array("f", bytes(20))
        comm.allreduce(NewDLPack(values, flags=1, old_refused=True), sums)  # read only is enough to send
        assert list(sums) == [nranks**6] * 5
        words = bytearray(4)
        comm.allreduce(memoryview(b"\1\2\3\4"), words)
        assert list(words) == [nranks * i for i in (1, 2, 3, 4)]
        assert list(comm.allreduce((ctypes.c_double * 3)(1, 2, 3))) == [nranks * i for i in (1, 2, 3)]
        upper_halves = Named("bfloat16", numpy.array([0x3F80, 0x4000], numpy.uint16), typestr="<V2")
        comm.allreduce(upper_halves)
        assert upper_halves.values.tolist() == [0x4000, 0x4080]  # 2 and 4
        assert comm.allreduce(numpy.array(3, numpy.float32)) == 3 * nranks  # no dimensions: one element
        assert comm.allreduce(numpy.empty((0, 7), numpy.float32)).shape == (0, 7)
        words = comm.empty((2, 3), "int64")
        words[:] = rank
        comm.allreduce(words, op="max")
    words += 1  # the memory outlives its communicator
    return words.tolist()


def test_protocols():
    assert ranks.run(protocols, 2) == [[[2, 2, 2]] * 2] * 2


def tensors(rank, nranks):
    with isgqcoll.Communicator() as comm:
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8):
            value = torch.full((3, 2), rank + 1, dtype=dtype)
            comm.allreduce(value)
            assert value.tolist() == [[nranks * (nranks + 1) / 2] * 2] * 3
        weight = torch.ones(4, requires_grad=True)
        (weight * 2).sum().backward()
        comm.allreduce(weight.grad)
        comm.allreduce(weight)  # a leaf's memory, beside autograd
        assert weight.grad.tolist() == [2.0 * nranks] * 4
        for bad, text in ((torch.ones(4, 4).t(), "not contiguous"), (torch.ones(3, dtype=torch.complex64), "complex64"),
                          (torch.eye(3).to_sparse(), "layout"), (torch.ones(3, device="meta"), "only cpu and cuda")):  # fmt: skip
            with pytest.raises(isgqcoll.InvalidArgument, match=text):
                comm.allreduce(bad)


@pytest.mark.skipif(torch is None, reason="no PyTorch")
def test_tensors():
    ranks.run(tensors, 2)


def refused(rank, nranks):
    fixed = numpy.ones(4, numpy.float32)
    fixed.flags.writeable = False
    ones = numpy.ones(4, numpy.float32)
    with isgqcoll.Communicator() as comm:
        for bad, text in (
            (numpy.ones((4, 4), numpy.float32).T, "not contiguous"),
            (numpy.ones(4, bool), "b1"),
            (numpy.ones(4, complex), "c16"),
            (numpy.ones(4, object), "O"),
            (numpy.ones(4, ">f4"), "byte order"),
            (fixed, "read-only"),
            ([1.0, 2.0], "list is no array"),
            (b"bytes", "read-only"),
            (memoryview(array.array("f", [1.0] * 4))[::2], "not contiguous"),
            ((ctypes.c_float.__ctype_be__ * 3)(), "byte order"),
            (array.array("u", "ab"), "type w|type u"),
            (None, "NoneType is no array"),
            (numpy.float32(3), "scalar"),
            (Interface("__cuda_array_interface__", ones), "on a CUDA device"),
            (Interface("__array_interface__", ones, data=None), "does not say where"),
            (Interface("__array_interface__", ones, data=ones.tobytes()), "does not say where"),
            (Interface("__array_interface__", ones, typestr="<V4"), "<V4"),
            (Interface("__array_interface__", ones, typestr=""), "broken"),
            (Interface("__array_interface__", ones, shape=None), "broken"),
            (Interface("__array_interface__", ones, shape=(-4,)), "broken"),
            (Interface("__array_interface__", ones, mask=ones), "masked"),
            (Interface("__array_interface__", ones, data=(ones.ctypes.data + 1, False)), "not aligned"),
            (Interface("__array_interface__", ones, shape=(2**61,)), "overflow"),
            (NewDLPack(ones, flags=1), "read-only"),
            (NewDLPack(ones, old_refused=True), "needs DLPack 1.0"),
            (NewDLPack(ones, major=2), "DLPack 2.0"),
            (DLPack(fixed), "readonly|read-only"),
            (DLPack(ones.astype("c16")), "kind 5"),
            (DLPack(numpy.ones((4, 4))[:, 1:]), "not contiguous"),
        ):
            with pytest.raises(isgqcoll.InvalidArgument, match=text):
                comm.allreduce(bad)
        with pytest.raises(ValueError, match="recv is float32"):
            comm.allreduce(ones, numpy.ones(5, numpy.float32))
        with pytest.raises(ValueError, match="overlap"):
            comm.allreduce(ones[:3], ones[1:])
        with pytest.raises(ValueError, match="unknown operation 'mean'"):
            comm.allreduce(ones, op="mean")
        with pytest.raises(ValueError, match="4 times|2 times"):
            comm.allgather(ones, ones)
        x, delta, grad = (numpy.ones(shape, numpy.float32) for shape in ((8, 3), (8, 5), (3, 5)))
        for arrays, text in (((x, delta[:7], grad), r"\[batch, m\]"), ((x, delta, grad.T.copy()), r"\[m, n\]"), ((x, delta.astype("f8"), grad), "one type"),
                             ((x[0], delta, grad), r"\[batch, m\]")):  # fmt: skip
            with pytest.raises(ValueError, match=text):
                comm.allreduce_factored(*arrays)
        with pytest.raises(ValueError, match="max_batch is -1"):
            comm.allreduce_factored(x, delta, grad, max_batch=-1)
        with pytest.raises(ValueError, match="overlap"):
            comm.allreduce_factored(x, delta, x.reshape(-1)[:15].reshape(3, 5))
        with pytest.raises(ValueError, match="exceeds|max_batch"):
            comm.allreduce_factored(x, delta, grad, max_batch=numpy.int64(7))
        for call, text in (
            (lambda: comm.broadcast(ones, root=nranks), "root is 2"),
            (lambda: comm.broadcast(ones, root=-1), "root is -1"),
            (lambda: comm.broadcast(ones, root=1.0), "whole number"),
            (lambda: comm.allreduce(ones, stream=2**64), "stream is"),
            (lambda: comm.allreduce(ones, stream=8), "takes no stream"),
            (lambda: comm.allreduce(ones, timeout=float("nan")), "timeout is nan"),
            (lambda: comm.allreduce(ones, timeout=-1), "timeout is -1"),
            (lambda: comm.allreduce(ones, timeout=10**7), "timeout is 10000000"),
            (lambda: comm.allreduce(ones, timeout="soon"), "number of seconds"),
            (lambda: comm.allreduce(ones, algorithm="dir\0ect"), "zero byte"),
            (lambda: comm.allreduce(ones, algorithm=3), "not int"),
            (lambda: comm.allreduce(ones, quantizer=b"none"), "not bytes"),
            (lambda: comm.allreduce(ones, op=["sum"]), "unknown operation"),
            (lambda: comm.allreduce(ones, tensor=isgqcoll.TensorState("w", 5), quantizer="onebit"), "5 elements"),
            (lambda: comm.split(2**40), "color is"),
            (lambda: comm.empty(2**62), "bytes is"),
            (lambda: comm.empty((3, -1)), "shape is -1"),
            (lambda: comm.empty("3"), "whole number"),
            (lambda: comm.empty(3, "bfloat16"), "two bytes for each bfloat16"),
            (lambda: isgqcoll.TensorState("w", -1), "count is -1"),
            (lambda: isgqcoll.TensorState("w" * 1000, 1), "1000 characters"),
            (lambda: isgqcoll.TensorState("\ud800", 1), "surrogates"),
            (lambda: isgqcoll.TensorState("w", 2**64), "count is"),
            (lambda: isgqcoll.TensorState("w", 6, shape=(2, 2)), "not the 6 elements"),
            (lambda: isgqcoll.Communicator(timeout=0), "timeout is 0"),
            (lambda: isgqcoll.Communicator(chunk_bytes=-4096), "chunk_bytes is -4096"),
            (lambda: isgqcoll.Communicator(seed=2**64), "seed is"),
            (lambda: isgqcoll.Communicator(transports="shm\0"), "zero byte"),
            (lambda: isgqcoll.Communicator.from_id(2**40, bytes(128), 0), "nranks is"),
            (lambda: isgqcoll.Communicator.from_id(2, bytes(128), 2), "rank is 2"),
        ):
            with pytest.raises(isgqcoll.InvalidArgument, match=text):
                call()
        assert comm.empty(numpy.int64(3), numpy.float16).dtype == numpy.float16
        comm.allreduce(ones)  # nothing of that did harm
        assert ones[0] == nranks


def test_refused():
    ranks.run(refused, 2)


def test_quantizers():
    for text, error in (("isgq:bots=4", "did you mean 'bits'"), ("uniform:bits=9", "9"), ("", ""), ("isgq\0:bits=4", "zero byte"), (7, "not int")):
        with pytest.raises(isgqcoll.InvalidArgument, match=error):
            isgqcoll.Quantizer(text)
    four = isgqcoll.Quantizer("uniform:bits=4")
    assert four == isgqcoll.Quantizer("uniform:bits=4") and repr(four) == "Quantizer('uniform:bits=4')"
    assert 500 <= four.max_bytes(1000) < 600
    assert four.max_bytes(numpy.int32(1000)) == four.max_bytes(1000)
    with pytest.raises(ValueError, match="count is -1"):
        four.max_bytes(-1)
    with pytest.raises(ValueError, match="unknown type"):
        four.max_bytes(10, "complex64")
    with pytest.raises(NotImplementedError):
        isgqcoll.Quantizer("factor:width=4").max_bytes(10)


ALONE = """
import sys
sys.modules["numpy"] = None                 # as if it were not installed
import array, gc, isgqcoll
comm = isgqcoll.Communicator()
memory = comm.empty(6, "float64")
sums = array.array("d", range(6))
assert comm.allreduce(sums, memory) is memory and comm.allgather(memory, array.array("d", bytes(48)))[5] == 5
assert memory.shape == (6,) and memory.dtype == "float64" and memory.__array_interface__["data"][0] == memory.pointer
numbers = memory.buffer.cast("d")
comm.finalize()
comm.destroy()
del memory
gc.collect()
numbers[0] = 7.0
assert numbers.tolist() == [7, 1, 2, 3, 4, 5]
"""


def test_without_numpy():
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(isgqcoll.__file__).parents[1]), "ISGQ_RANK": "0", "ISGQ_NRANKS": "1"}
    ran = subprocess.run([sys.executable, "-X", "dev", "-W", "error", "-c", ALONE], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and ran.stderr == "", ran.stderr
