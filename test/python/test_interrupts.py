# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C, at every place where one rank waits for another: it comes at once, and what it leaves behind neither hangs nor crashes."""
import contextlib
import os
import pathlib
import signal
import threading
import time

import numpy
import pytest

import isgqcoll
import ranks

ONES = numpy.ones


def flag(name):
    return pathlib.Path(os.environ["TEST_STORE"]).parent / name


def await_flag(name):
    while not flag(name).exists():
        time.sleep(0.01)


@contextlib.contextmanager
def control_c(is_time=lambda: True, number=signal.SIGINT):
    """KeyboardInterrupt in the block, soon after it has begun and is_time()."""
    started = time.monotonic()

    def interrupt():
        while not is_time():
            time.sleep(0.01)
        time.sleep(0.15)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        yield
    assert time.monotonic() - started < 20  # of a machine that is busy; what is interrupted would wait for a minute and more


def waits(rank, nranks):
    """For a call of a rank that comes late: the call is there afterwards, and another can be waited for."""
    comm, value = isgqcoll.Communicator(), ONES(1000)
    comm.barrier()
    if rank == 0:
        with control_c(lambda: comm.sequence == 2):
            comm.allreduce(value)
        with control_c():
            for _ in range(500):  # more than can be queued
                comm.allreduce(ONES(1000), async_op=True)
        made = comm.sequence - 2
        flag("made").write_text(str(made))
        comm.synchronize()
    else:
        await_flag("made")
        time.sleep(0.1)
        comm.allreduce(value)
        for _ in range(int(flag("made").read_text())):
            comm.allreduce(ONES(1000))
    assert value[999] == nranks
    if rank == 0:
        with control_c(), comm:  # at its end, while the other rank does not come
            pass
        return
    with pytest.raises(isgqcoll.RemoteError, match="rank 0"):
        for _ in range(2000):
            time.sleep(0.01)
            comm.synchronize()


def test_waits():
    ranks.run(waits, 2)


def meets(rank, nranks):
    """At the beginning, in three ways; who comes after an interrupted rank is told."""
    started = time.monotonic()
    if rank == 0:
        with control_c():
            isgqcoll.Communicator()
        flag("interrupted").touch()
    else:
        await_flag("interrupted")
        with pytest.raises(isgqcoll.Error):
            isgqcoll.Communicator().barrier()

    def broken(_mine):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        isgqcoll.Communicator.from_allgather(nranks, rank, broken)
    with control_c():
        isgqcoll.Communicator.from_allgather(nranks, rank, lambda _mine: time.sleep(60))
    with control_c():
        isgqcoll.Communicator.from_id(2, isgqcoll.unique_id(), 0)
    comm = isgqcoll.Communicator()
    if rank == 0:
        with control_c():
            comm.split(0)
        comm.destroy()
    else:
        with pytest.raises(isgqcoll.RemoteError, match="rank 0"):
            for _ in range(2000):
                time.sleep(0.01)
                comm.synchronize()
    return time.monotonic() - started


def test_meets():
    assert max(ranks.run(meets, 2)) < 60


def handlers(rank, nranks):
    """A handler that uses the communicator while the call that it interrupts waits."""
    comm, seen, arrays = isgqcoll.Communicator(), [], [ONES(8), ONES(8)]

    def handle(_number, _frame):
        seen.append(comm.test(comm.sequence))
        comm.allreduce(arrays[1], async_op=True)
        flag("handled").touch()
        raise KeyboardInterrupt

    if rank == 0:
        signal.signal(signal.SIGUSR1, handle)
        with control_c(lambda: comm.sequence == 1, signal.SIGUSR1):
            comm.allreduce(arrays[0])
        comm.synchronize()
        assert seen == [False]
    else:
        await_flag("handled")
        for array in arrays:
            comm.allreduce(array)
    assert arrays[0][7] == arrays[1][7] == nranks
    comm.finalize()


def test_handlers():
    ranks.run(handlers, 2)
