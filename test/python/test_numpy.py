# SPDX-License-Identifier: Apache-2.0
"""The package on NumPy arrays: every collective, in 2 and 4 ranks, against what NumPy says."""
import numpy
import pytest

import isgqcoll
import ranks


def values(rank, count=1000):
    return numpy.random.default_rng(rank).standard_normal(count).astype(numpy.float32)


def collectives(rank, nranks):
    mine, every = values(rank), [values(peer) for peer in range(nranks)]
    with isgqcoll.Communicator() as comm:
        assert (comm.rank, comm.nranks) == (rank, nranks)
        total = numpy.sum(every, axis=0, dtype=numpy.float64)
        out = numpy.empty_like(mine)
        assert comm.allreduce(mine, out, op="avg") is out
        numpy.testing.assert_allclose(out, total / nranks, atol=1e-6)
        numpy.testing.assert_array_equal(mine, every[rank])
        assert comm.allreduce(mine, op="max") is mine
        numpy.testing.assert_array_equal(mine, numpy.max(every, axis=0))
        part = numpy.empty(500 // nranks, numpy.float32)
        comm.reduce_scatter(every[rank][: 500 // nranks * nranks].copy(), part)
        numpy.testing.assert_allclose(part, total[rank * part.size : (rank + 1) * part.size], atol=1e-6)
        table = numpy.empty((nranks, 1000), numpy.float32)
        comm.allgather(every[rank], table)
        numpy.testing.assert_array_equal(table, every)
        word = numpy.array([rank], numpy.int64)
        comm.broadcast(word, root=nranks - 1)
        assert word[0] == nranks - 1
        comm.barrier()
    with pytest.raises(isgqcoll.InvalidUsage, match="destroyed"):
        comm.barrier()


@pytest.mark.parametrize("nranks", [2, 4])
def test_collectives(nranks):
    ranks.run(collectives, nranks)


def launched(rank, nranks):
    """A group that waits for nothing is launched all the same."""
    with isgqcoll.Communicator() as comm:
        mine = numpy.full(10, rank + 1.0, numpy.float32)
        with isgqcoll.group(wait=False):
            comm.allreduce(mine)
        comm.synchronize()
        assert mine[0] == 3


def test_group_without_wait():
    ranks.run(launched, 2)
