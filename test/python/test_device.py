# SPDX-License-Identifier: Apache-2.0
"""Device memory, on the simulated GPU: what is a device's goes to communicators of devices, and nothing else does."""
import ctypes
import gc
import os
import pathlib

import numpy
import pytest

import isgqcoll
import ranks

MODULES = pathlib.Path(os.environ.get("TEST_BIN", "/nonexistent")).parent / "lib" / "isgqcoll-simulated"
pytestmark = pytest.mark.skipif(not (MODULES / "isgqcoll-cuda.so").exists(), reason="no simulated GPU")


def numbers(memory):
    """The simulated device's memory is the host's, for who knows."""
    return (ctypes.c_float * memory.shape[0]).from_address(memory.pointer)


class Pointed:
    """Nothing but the protocol of CUDA arrays, with the stream that newer ones name."""

    def __init__(self, memory):
        self.__cuda_array_interface__ = {**memory.__cuda_array_interface__, "stream": 1}
        self.memory = memory


def on_device(rank, nranks):
    os.environ["ISGQ_MODULE_DIR"] = str(MODULES)  # before the library reads it
    with isgqcoll.Communicator(device="cuda") as comm:
        memory = comm.empty(1000)
        assert comm.on_device and not hasattr(memory, "__array_interface__")
        with pytest.raises(isgqcoll.InvalidArgument, match="a CUDA device's"):
            memory.buffer
        values = numbers(memory)
        values[:] = [rank + 1.0] * 1000
        assert comm.allreduce(memory, quantizer="uniform:bits=8") is memory  # the host goes on
        comm.synchronize()
        assert abs(values[999] - sum(range(1, nranks + 1))) < 0.1
        values[:] = [1.0] * 1000
        assert comm.allreduce(Pointed(memory), async_op=True).wait().memory is memory and values[999] == nranks
        with isgqcoll.group():
            comm.allreduce(memory, op="max")
        for _ in range(100):
            comm.allreduce(memory, op="max", async_op=True)
        comm.synchronize()
        assert values[0] == nranks and len(comm._owned.kept) == 0
        with pytest.raises(isgqcoll.InvalidArgument, match="is host memory; this communicator works on memory of device 0"):
            comm.allreduce(numpy.ones(5, numpy.float32))
        half = comm.split(0, quantizer="fp16")
        assert half.on_device and half.nranks == nranks
        half.finalize()
        half.destroy()
        with isgqcoll.Communicator(seed=5) as host:
            with pytest.raises(isgqcoll.InvalidArgument, match="on a CUDA device, but"):
                host.allreduce(memory)
    del memory
    gc.collect()


def test_on_device():
    ranks.run(on_device, 2)
