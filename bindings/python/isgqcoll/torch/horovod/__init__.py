# SPDX-License-Identifier: Apache-2.0
"""Horovod's names for PyTorch: a script written for it switches by its import line.

    import isgqcoll.torch.horovod as hvd          # was: import horovod.torch as hvd

Started by torchrun, mpirun or srun; torch.distributed is not needed. Gradients are quantized if DistributedOptimizer is told so:
compression=hvd.Compression.isgq(bits=4). docs/pytorch.md says what differs.
"""
from .compression import Compression
from .operations import (
    Adasum,
    Average,
    Max,
    Min,
    Product,
    Sum,
    allgather,
    allgather_async,
    allgather_object,
    allreduce,
    allreduce_,
    allreduce_async,
    allreduce_async_,
    alltoall,
    barrier,
    broadcast,
    broadcast_,
    broadcast_async,
    broadcast_async_,
    broadcast_object,
    grouped_allreduce,
    grouped_allreduce_,
    grouped_allreduce_async,
    grouped_allreduce_async_,
    join,
    poll,
    reducescatter,
    synchronize,
)
from .optimizer import DistributedOptimizer
from .parameters import broadcast_optimizer_state, broadcast_parameters
from .world import (
    ccl_built,
    communicator,
    cross_rank,
    cross_size,
    cuda_built,
    ddl_built,
    gloo_built,
    gloo_enabled,
    init,
    is_homogeneous,
    is_initialized,
    local_rank,
    local_size,
    mpi_built,
    mpi_enabled,
    mpi_threads_supported,
    nccl_built,
    rank,
    rocm_built,
    shutdown,
    size,
)

__all__ = [name for name in dir() if not name.startswith("_") and name not in ("compression", "operations", "optimizer", "parameters", "world")]
