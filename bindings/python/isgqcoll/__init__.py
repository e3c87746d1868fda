# SPDX-License-Identifier: Apache-2.0
"""isgqcoll: sums of gradients across processes, with far fewer bytes.

    import isgqcoll, numpy
    with isgqcoll.Communicator(quantizer="isgq:bits=4") as comm:    # ranks as torchrun, mpirun or srun started them
        gradient = numpy.ones(1000, dtype=numpy.float32)
        comm.allreduce(gradient, op="avg")

Arrays are NumPy's, PyTorch's, or any that speak `__array_interface__`, `__cuda_array_interface__` or DLPack; they are never copied. Errors are
exceptions with the library's sentence. `isgqcoll.torch` has what PyTorch needs.
"""
from ._library import version
from .calls import CallRecord, Stats, Work, group
from .communicator import Communicator, unique_id
from .errors import (
    Corrupt,
    CudaError,
    Error,
    InternalError,
    InvalidArgument,
    InvalidUsage,
    Mismatch,
    OutOfMemory,
    RemoteError,
    SystemCallError,
    TimeoutError,
    Unsupported,
)
from .quantizer import Quantizer, TensorState

__version__ = version()

__all__ = [
    "CallRecord",
    "Communicator",
    "Corrupt",
    "CudaError",
    "Error",
    "InternalError",
    "InvalidArgument",
    "InvalidUsage",
    "Mismatch",
    "OutOfMemory",
    "Quantizer",
    "RemoteError",
    "Stats",
    "SystemCallError",
    "TensorState",
    "TimeoutError",
    "Unsupported",
    "Work",
    "group",
    "unique_id",
    "version",
]
