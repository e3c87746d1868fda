# SPDX-License-Identifier: Apache-2.0
"""Arrays of other libraries: taken without a copy, or refused with a sentence; one rank is enough."""
import array
import os

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


class DLPack:
    def __init__(self, values):
        self.values = values

    def __dlpack__(self, stream=None):
        return self.values.__dlpack__()

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


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
            (array.array("f", [1.0]), "array is no array"),
            (None, "NoneType is no array"),
            (numpy.float32(3), "scalar"),
            (Interface("__cuda_array_interface__", ones), "on a CUDA device"),
            (Interface("__array_interface__", ones, data=None), "does not say where"),
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
        with pytest.raises(ValueError, match="exceeds|max_batch"):
            comm.allreduce_factored(x, delta, grad, max_batch=numpy.int64(7))
        with pytest.raises(ValueError, match="root"):
            comm.broadcast(ones, root=nranks)
        comm.allreduce(ones)  # nothing of that did harm
        assert ones[0] == nranks


def test_refused():
    ranks.run(refused, 2)


def test_quantizers():
    for text, error in (("isgq:bots=4", "did you mean 'bits'"), ("uniform:bits=9", "9"), ("", ""), ("isgq\0:bits=4", "zero byte"), (7, "not from int")):
        with pytest.raises(isgqcoll.InvalidArgument, match=error):
            isgqcoll.Quantizer(text)
    four = isgqcoll.Quantizer("uniform:bits=4")
    assert four == isgqcoll.Quantizer("uniform:bits=4") and repr(four) == "Quantizer('uniform:bits=4')"
    assert 500 <= four.max_bytes(1000) < 600
    with pytest.raises(ValueError, match="unknown type"):
        four.max_bytes(10, "complex64")
    with pytest.raises(NotImplementedError):
        isgqcoll.Quantizer("factor:width=4").max_bytes(10)
