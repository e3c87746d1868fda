# SPDX-License-Identifier: Apache-2.0
"""Calls that nobody waits for at once: works, groups, and what keeps their arrays alive."""
import gc
import threading
import weakref

import numpy
import pytest

import isgqcoll
import ranks

ONES = numpy.ones


class Watched(numpy.ndarray):
    """An array that can be weakly referred to."""


def watched(values):
    return numpy.asarray(values, numpy.float32).view(Watched)


def groups(rank, nranks):
    comm, other = isgqcoll.Communicator(), isgqcoll.Communicator(seed=2)
    values, memory = [numpy.full(100, float(i), numpy.float32) for i in range(20)], ONES(7)
    with isgqcoll.group():
        works = [comm.allreduce(value, async_op=True) for value in values]
        with isgqcoll.group():
            other.allreduce(memory)
        with pytest.raises(isgqcoll.InvalidUsage, match="has not ended"):
            works[0].wait()
        with pytest.raises(isgqcoll.InvalidUsage, match="inside a group"):
            comm.split(0)
        with pytest.raises(isgqcoll.InvalidUsage, match="inside a group"):
            isgqcoll.Communicator()
    assert memory[0] == nranks
    assert all(work.done() for work in works)
    assert [value[99] for value in values] == [i * nranks for i in range(20)]
    with isgqcoll.group(wait=False):
        works = [comm.allreduce(ONES(10), async_op=True) for _ in range(300)]  # more than the library queues
    assert works[299].wait()[9] == nranks and works[0].done()
    comm.finalize()
    with pytest.raises(isgqcoll.InvalidUsage, match="was finalized"), isgqcoll.group():
        comm.allreduce(memory)
    other.barrier()
    meeting = isgqcoll.Communicator(seed=3)
    with pytest.raises(ZeroDivisionError if rank == 0 else isgqcoll.InvalidUsage, match="division by zero"):
        with isgqcoll.group():
            other.allreduce(values[1])
            with isgqcoll.group():
                other.allreduce(memory)
                1 / rank
    with pytest.raises(isgqcoll.InvalidUsage, match="group was left by ZeroDivisionError"):
        other.barrier()
    meeting.barrier()  # whoever ends before the others have heard is dead to them
    meeting.finalize()
    other.destroy()


@pytest.mark.parametrize("nranks", [2, 4])
def test_groups(nranks):
    ranks.run(groups, nranks)


def kept(rank, nranks):
    comm = isgqcoll.Communicator()
    array = watched(ONES(1 << 20))
    gone = weakref.ref(array)
    work = comm.allreduce(array, async_op=True) if rank == 0 else comm.barrier(async_op=True)
    del array
    gc.collect()
    assert (gone() is None) == (rank > 0)
    with pytest.raises(isgqcoll.Mismatch, match="allreduce on rank 0 and barrier on rank 1"):
        work.wait()
    assert (gone() is None) == (rank > 0)  # the library's thread may not have left it yet
    comm.destroy()
    del work
    gc.collect()
    assert gone() is None
    comm, other, last = isgqcoll.Communicator(), isgqcoll.Communicator(), []
    for _ in range(300):  # nobody waits: buffers of calls that are complete are let go all the same
        array = watched(ONES(100))
        last.append(weakref.ref(array))
        comm.allreduce(array, op="max", async_op=True)
    del array
    assert len(comm._owned.kept) < 300
    comm.synchronize()
    assert len(comm._owned.kept) == 0 and not any(each() is not None for each in last)
    other.barrier()
    with pytest.raises(isgqcoll.RemoteError, match="aborted"), isgqcoll.group():  # its end finds the communicator destroyed by another thread
        comm.allreduce(watched(ONES(10)))
        destroyer = threading.Thread(target=comm.destroy)
        destroyer.start()
        destroyer.join()
    other.finalize()


def test_kept():
    ranks.run(kept, 2)
