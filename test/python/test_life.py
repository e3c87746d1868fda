# SPDX-License-Identifier: Apache-2.0
"""Beginnings and ends: what was destroyed, ranks that die or disagree, threads, forks, Ctrl-C, programs that just stop."""
import gc
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy
import pytest

import isgqcoll
import ranks
from isgqcoll import calls

ONES = numpy.ones


def destroyed(rank, nranks):
    comm = isgqcoll.Communicator()
    work = comm.allreduce(ONES(1000), async_op=True)
    comm.finalize()
    comm.destroy()
    comm.destroy()
    array = ONES(3)
    for call in (lambda: comm.allreduce(array), lambda: comm.sequence, comm.stats, comm.last_call, comm.reset_stats, comm.own_bytes, comm.barrier,
                 comm.synchronize, comm.finalize, comm.abort, lambda: comm.split(0), lambda: comm.empty(3), lambda: comm.handle):  # fmt: skip
        with pytest.raises(isgqcoll.InvalidUsage, match="was destroyed"):
            call()
    assert comm.destroyed and work.done() and work.wait()[0] == nranks  # complete before
    state = isgqcoll.TensorState("weight", 3)
    state.destroy()
    with pytest.raises(isgqcoll.InvalidUsage, match="'weight' was destroyed"):
        state.reset()
    state.destroy()
    assert "destroyed" in repr(comm)
    comm = isgqcoll.Communicator()
    with pytest.raises(isgqcoll.Error, match="was destroyed|aborted|died"):  # another rank may have done it first
        work = comm.allreduce(ONES(1000), async_op=True)
        comm.destroy()
        work.wait()


def test_destroyed():
    ranks.run(destroyed, 2)


def dies(rank, nranks):
    comm = isgqcoll.Communicator()
    comm.barrier()
    gather(b"", rank, nranks)  # not before the barrier is over for all
    if rank == 1:
        os._exit(3)
    started = time.monotonic()
    with pytest.raises(ConnectionError, match="rank 1"):
        comm.allreduce(ONES(1 << 20))
    with pytest.raises(isgqcoll.RemoteError):
        comm.barrier()
    comm.destroy()
    return time.monotonic() - started


def test_a_rank_dies():
    assert ranks.run(dies, 3, may_die=[1])[0] < 30


def disagrees(rank, nranks):
    with pytest.raises(isgqcoll.Mismatch, match="count"):
        with isgqcoll.Communicator() as comm:
            comm.allreduce(ONES(100 + rank))
    comm = isgqcoll.Communicator.from_allgather(nranks, rank, lambda mine: gather(mine, rank, nranks), timeout=1.0)
    if rank == 0:
        with pytest.raises(TimeoutError, match="rank 1"):
            comm.allreduce(ONES(10))
        return
    with pytest.raises(isgqcoll.Error):  # found out when it comes at last
        time.sleep(3)
        comm.allreduce(ONES(10))


def gather(mine, rank, nranks):
    """An allgather through files, as a caller may have one."""
    folder = pathlib.Path(os.environ["TEST_STORE"]).parent
    number = gather.calls = getattr(gather, "calls", 0) + 1
    (folder / f"part.{number}.{rank}").write_bytes(mine)
    (folder / f"part.{number}.{rank}.done").touch()
    while not all((folder / f"part.{number}.{peer}.done").exists() for peer in range(nranks)):
        time.sleep(0.01)
    return [(folder / f"part.{number}.{peer}").read_bytes() for peer in range(nranks)]


def test_ranks_disagree():
    ranks.run(disagrees, 2)


def bad_beginnings(_rank, _nranks):
    for name in list(os.environ):
        if name.startswith(("ISGQ_", "RANK", "WORLD_SIZE", "OMPI_", "PMI", "SLURM_")):
            del os.environ[name]

    def broken(_mine):
        raise KeyError("no store")

    with pytest.raises(KeyError, match="no store"):
        isgqcoll.Communicator.from_allgather(2, 0, broken)
    with pytest.raises(isgqcoll.InvalidArgument, match="returned 1 bytes"):
        isgqcoll.Communicator.from_allgather(2, 0, lambda mine: [b"x"])
    with pytest.raises(TypeError):
        isgqcoll.Communicator.from_allgather(2, 0, lambda mine: [3])
    with pytest.raises(ValueError, match="128 bytes, not 3"):
        isgqcoll.Communicator.from_id(2, b"abc", 0)
    with pytest.raises(ValueError, match="bytes, not str"):
        isgqcoll.Communicator.from_id(2, "a" * 128, 0)
    with pytest.raises(ValueError, match="unknown device"):
        isgqcoll.Communicator(device="tpu")
    with pytest.raises(TypeError):
        isgqcoll.Communicator(quantiser="none")
    with pytest.raises(isgqcoll.InvalidUsage, match="launcher"):
        isgqcoll.Communicator()
    with pytest.raises(isgqcoll.Error):  # without a device or its module
        isgqcoll.Communicator.from_id(1, isgqcoll.unique_id(), 0, device="cuda")


def test_bad_beginnings():
    ranks.run(bad_beginnings, 1)


def by_id(rank, nranks):
    identity = gather(isgqcoll.unique_id() if rank == 0 else b"", rank, nranks)[0]
    assert len(identity) == 128
    with isgqcoll.Communicator.from_id(nranks, identity, rank) as comm:
        half = comm.split(rank % 2, -rank)
        assert half.nranks == nranks // 2 and half.rank == (nranks - 1 - rank) // 2
        assert half.allreduce(numpy.array([rank]))[0] == sum(range(rank % 2, nranks, 2))
        assert (comm.split(-1 if rank else 0) is None) == (rank > 0)


def test_ids_and_splits():
    ranks.run(by_id, 4)


def threads(rank, nranks):
    comm = isgqcoll.Communicator()
    total, lock = [0.0], threading.Lock()

    def sums():
        for _ in range(50):  # equal calls: their order does not matter
            value = comm.allreduce(ONES(64))[0]
            with lock:
                total[0] += value

    workers = [threading.Thread(target=sums) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert total[0] == 200 * nranks
    for destroyer in range(nranks):
        taken_away(rank == destroyer)


def taken_away(here):
    """A call that waits for another rank while another thread destroys the communicator."""
    comm, seen = isgqcoll.Communicator(), []
    comm.barrier()
    if here:
        waiter = threading.Thread(target=lambda: seen.append(pytest.raises(isgqcoll.Error, comm.allreduce, ONES(8))))
        waiter.start()
        time.sleep(0.3)
        comm.destroy()
        waiter.join(30)
        assert not waiter.is_alive() and len(seen) == 1
    else:
        with pytest.raises(isgqcoll.RemoteError):
            while True:
                time.sleep(0.05)
                comm.synchronize()  # nothing to wait for, until the news are here


def test_threads():
    ranks.run(threads, 2)


def hold_for_a_while(lock):
    with lock:
        time.sleep(0.3)


def in_child(comm, memory):
    """Nothing of the parent's can be used, whatever its threads held at that moment; what is one's own can."""
    for call in (lambda: comm.allreduce(ONES(3)), lambda: comm.sequence, comm.stats, comm.abort, comm.synchronize, lambda: comm.empty(3)):
        with pytest.raises(isgqcoll.InvalidUsage, match="forked child"):
            call()
    comm.destroy()
    memory[0] = 1
    del comm, memory
    gc.collect()
    with pytest.raises(isgqcoll.InvalidUsage, match="forked inside a group"):
        calls.groups.end()
    with isgqcoll.Communicator.from_id(1, isgqcoll.unique_id(), 0) as own:
        own.barrier()
    return 0


def forks(rank, nranks):
    comm = isgqcoll.Communicator()
    memory = comm.empty(10)
    memory[:] = 1
    threading.Thread(target=hold_for_a_while, args=(comm._lock,), daemon=True).start()
    with isgqcoll.group():
        comm.allreduce(ONES(3))
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(in_child(comm, memory))
        assert os.waitpid(child, 0)[1] == 0
    assert comm.allreduce(memory)[0] == nranks
    comm.finalize()
    comm.destroy()


def test_forks():
    ranks.run(forks, 2)


def remembers(rank, nranks):
    comm = isgqcoll.Communicator(quantizer="onebit")
    state, gradient = isgqcoll.TensorState("w", 1000), numpy.random.default_rng(rank).standard_normal(1000).astype(numpy.float32)
    exact, mean = comm.allreduce(gradient.copy(), quantizer="none", op="avg"), 0
    for step in range(40):
        mean = mean + comm.allreduce(gradient.copy(), op="avg", tensor=state) / 40
        if step == 20:
            saved = state.save()
            state.destroy()
            state = isgqcoll.TensorState("w", 1000)
            state.load(saved)
    once = comm.allreduce(gradient.copy(), op="avg")
    assert numpy.sum((mean - exact) ** 2) < 0.2 * numpy.sum((once - exact) ** 2)
    with pytest.raises(isgqcoll.Corrupt):
        state.load(saved[:-5])
    with pytest.raises(isgqcoll.InvalidArgument, match="not int"):
        state.load(7)
    with pytest.raises(isgqcoll.InvalidArgument, match="another tensor"):
        isgqcoll.TensorState("v", 1000).load(saved)
    stats = comm.stats()
    assert stats.calls == 42 and stats.wire_bytes < stats.input_bytes
    assert comm.last_call().sequence == 42 and comm.last_call().why
    work = comm.allreduce(gradient, tensor=state, async_op=True)
    state.destroy()  # the call keeps it
    work.wait()
    with isgqcoll.Communicator() as other, pytest.raises(isgqcoll.InvalidUsage, match="another communicator"):
        state = isgqcoll.TensorState("gr\u00f6\u00dfe", numpy.int64(1000))
        comm.allreduce(gradient, tensor=state)
        other.allreduce(gradient, tensor=state, quantizer="onebit")
    comm.finalize()


def test_states_and_counters():
    ranks.run(remembers, 2)


SCRIPT = """
import os, sys, threading, time, numpy, isgqcoll
comm = isgqcoll.Communicator(quantizer="none")
memory = comm.empty(1000)
memory[:] = 1
if comm.rank == 1:
    time.sleep(0.5)
comm.allreduce(memory)
assert memory[0] == comm.nranks
{end}
"""


FORK = """
child = os.fork()
assert child == 0 or os.waitpid(child, 0)[1] == 0
"""


def programs(end, nranks=2):
    environment = {**os.environ, "PYTHONPATH": sys.path[0] if "bindings" in sys.path[0] else sys.path[1], "ISGQ_NRANKS": str(nranks)}
    started = [
        subprocess.Popen([sys.executable, "-X", "dev", "-W", "error", "-c", SCRIPT.format(end=end)],
                         env={**environment, "ISGQ_JOB": f"{os.getpid()}.{abs(hash(end))}", "ISGQ_RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(nranks)
    ]  # fmt: skip
    try:
        return [(process.communicate(timeout=60)[1], process.returncode) for process in started]
    finally:
        for process in started:
            process.kill()


def test_programs_that_just_stop():
    """Open communicators, memory and calls at the end: left in peace, or by an exception, which the others see."""
    for end in ("", "loop = [comm]; loop.append(loop)", "work = comm.allreduce(memory, async_op=True)", FORK):
        for said, status in programs(end):
            assert status == 0 and "Traceback" not in said, (end, said)
    (said, status), (other, other_status) = programs("if comm.rank == 0: raise RuntimeError('stop')\ncomm.allreduce(memory)")
    assert status == 1 and "RuntimeError: stop" in said
    assert other_status == 1 and "RemoteError" in other and "rank 0" in other


def dropped(rank, nranks):
    comm = isgqcoll.Communicator()
    words = comm.empty(100000, "int64")  # large enough that other ranks could map it
    view = words.reshape(100, 1000)[3:, ::2]
    words[:] = rank
    loop = [comm]
    loop.append(loop)
    with pytest.warns(ResourceWarning, match="dropped"):
        del comm, loop
        gc.collect()
    del words
    gc.collect()
    assert view.sum() == rank * view.size  # what is left of the communicator is its memory
    threads_before = threading.active_count()
    for _ in range(3):
        comm = isgqcoll.Communicator()
        comm.barrier()
        comm.finalize()
        comm.destroy()
    assert threading.active_count() == threads_before
    return len(os.listdir("/proc/self/task"))


def test_dropped():
    """A communicator that nobody refers to is aborted, and leaves no thread."""
    assert max(ranks.run(dropped, 1)) <= 5  # this one, the one for the end, two of the communicator whose memory is still there


def agree_badly(rank, nranks):
    with pytest.raises(isgqcoll.Mismatch, match="ISGQ_SEED is 1 on rank 0 and 2 on rank 1"):
        isgqcoll.Communicator(seed=rank + 1)
    with pytest.raises(isgqcoll.Error, match="root is 7") as raised, isgqcoll.Communicator() as comm, isgqcoll.group():
        comm.allreduce(ONES(10))
        comm.broadcast(ONES(3), root=rank and 7)  # refused on rank 1, which takes the group along everywhere
    return type(raised.value).__name__


def test_refused_in_a_group():
    assert ranks.run(agree_badly, 2) == ["InvalidArgument"] * 2
