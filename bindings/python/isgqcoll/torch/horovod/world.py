# SPDX-License-Identifier: Apache-2.0
"""The ranks of a Horovod script: one communicator for the process, from the launcher's environment."""
from __future__ import annotations

import socket
from typing import Any, NamedTuple

import numpy

from ...communicator import Communicator, unique_id
from ...errors import InvalidUsage
from ...lifetime import LEAVE_SECONDS
from ..group import leave
from ..remembered import Memory

HOST_BYTES = 256  # of a host's name


class World(NamedTuple):
    """Ranks, and where they are."""

    comm: Communicator
    local_rank: int
    local_size: int
    cross_rank: int
    cross_size: int
    homogeneous: bool
    memory: Memory  # of calls with names


_world: World | None = None


def _hosts(comm: Communicator) -> list[bytes]:
    mine = numpy.zeros(HOST_BYTES, numpy.uint8)
    name = socket.gethostname().encode()[:HOST_BYTES]
    mine[: len(name)] = list(name)
    table = numpy.empty((comm.nranks, HOST_BYTES), numpy.uint8)
    comm.allgather(mine, table, quantizer="none")
    return [row.tobytes() for row in table]


def _join(config: dict[str, Any]) -> Communicator:
    try:
        return Communicator(**config)
    except InvalidUsage as error:
        if "launcher" not in str(error):
            raise
        return Communicator.from_id(1, unique_id(), 0, **config)  # run without one: Horovod counts one rank then, too


def init(comm: Any = None, process_sets: Any = None, **config: Any) -> None:
    """Join the ranks that torchrun, mpirun or srun started; without a launcher there is one. A second call does nothing.

    config: options of isgqcoll.Communicator (timeout in seconds, seed, transports, device).
    """
    global _world
    if comm is not None or process_sets:
        raise NotImplementedError("init: subsets of ranks (comm, process_sets) are not there; all ranks of the launcher take part")
    if _world is not None:
        return
    joined = _join(config)
    hosts = _hosts(joined)
    here = [rank for rank, host in enumerate(hosts) if host == hosts[joined.rank]]
    local = here.index(joined.rank)
    peers = [rank for rank, host in enumerate(hosts) if hosts[:rank].count(host) == local]  # one of each host that has so many
    homogeneous = len({hosts.count(host) for host in hosts}) == 1
    _world = World(joined, local, len(here), peers.index(joined.rank), len(peers), homogeneous, Memory(joined))


def shutdown() -> None:
    """Leave, with the others if they come within some seconds. `init` may follow."""
    global _world
    left, _world = _world, None
    if left is not None:
        leave(left.comm).join(LEAVE_SECONDS)
        left.comm.destroy()


def is_initialized() -> bool:
    """Between init and shutdown?"""
    return _world is not None


def world() -> World:
    """InvalidUsage before init."""
    if _world is None:
        raise InvalidUsage("Horovod has not been initialized; use hvd.init()")
    return _world


def communicator() -> Communicator:
    """What all calls use: for its statistics, or for calls of isgqcoll's own."""
    return world().comm


def rank() -> int:
    """Of this process."""
    return communicator().rank


def size() -> int:
    """Number of ranks."""
    return communicator().nranks


def local_rank() -> int:
    """Of this process among those of its host."""
    return world().local_rank


def local_size() -> int:
    """Ranks of this host."""
    return world().local_size


def cross_rank() -> int:
    """Of this process's host among those that have its local rank."""
    return world().cross_rank


def cross_size() -> int:
    """Hosts that have this local rank."""
    return world().cross_size


def is_homogeneous() -> bool:
    """Does every host have as many ranks?"""
    return world().homogeneous


def _no() -> bool:
    """Horovod's libraries are not in use."""
    return False


mpi_built = mpi_enabled = mpi_threads_supported = gloo_built = gloo_enabled = nccl_built = cuda_built = rocm_built = ddl_built = ccl_built = _no
