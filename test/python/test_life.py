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

ONES = numpy.ones


def destroyed(rank, nranks):
    comm = isgqcoll.Communicator()
    work = comm.allreduce(ONES(1000), async_op=True)
    comm.finalize()
    comm.destroy()
    comm.destroy()
    array = ONES(3)
    for call in (lambda: comm.allreduce(array), lambda: comm.sequence, comm.stats, comm.last_call, comm.reset_stats, comm.own_bytes, comm.barrier,
                 comm.synchronize, comm.finalize, comm.abort, work.wait, work.done, lambda: comm.split(0), lambda: comm.empty(3)):  # fmt: skip
        with pytest.raises(isgqcoll.InvalidUsage, match="was destroyed"):
            call()
    state = isgqcoll.TensorState("weight", 3)
    state.destroy()
    with pytest.raises(isgqcoll.InvalidUsage, match="'weight' was destroyed"):
        state.reset()
    assert "destroyed" in repr(comm)


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


def test_bad_beginnings(monkeypatch):
    def broken(mine):
        raise KeyError("no store")

    with pytest.raises(KeyError, match="no store"):
        isgqcoll.Communicator.from_allgather(2, 0, broken)
    with pytest.raises(isgqcoll.InvalidArgument, match="returned 1 bytes"):
        isgqcoll.Communicator.from_allgather(2, 0, lambda mine: [b"x"])
    with pytest.raises(ValueError, match="128 bytes, not 3"):
        isgqcoll.Communicator.from_id(2, b"abc", 0)
    with pytest.raises(ValueError, match="unknown device"):
        isgqcoll.Communicator(device="tpu")
    with pytest.raises(TypeError):
        isgqcoll.Communicator(quantiser="none")
    for name in list(os.environ):
        if name.startswith(("ISGQ_", "RANK", "WORLD_SIZE", "OMPI_", "PMI", "SLURM_")):
            monkeypatch.delenv(name)
    with pytest.raises(isgqcoll.InvalidUsage, match="launcher"):
        isgqcoll.Communicator()


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
    comm.barrier()
    seen = []
    if rank == 0:  # a call that waits for rank 1 while another thread takes the communicator away
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


def forks(rank, nranks):
    comm = isgqcoll.Communicator()
    memory = comm.empty(10)
    memory[:] = 1
    child = os.fork()
    if child == 0:
        good = 1
        try:
            comm.allreduce(ONES(3))
        except isgqcoll.InvalidUsage:
            good = 0
        comm.destroy()
        del comm, memory
        gc.collect()
        os._exit(good)
    assert os.waitpid(child, 0)[1] == 0
    assert comm.allreduce(memory)[0] == nranks
    comm.finalize()
    comm.destroy()


def test_forks():
    ranks.run(forks, 2)


def interrupted(rank, nranks):
    """Ctrl-C while waiting for a rank that does not come; the call is still there afterwards."""
    comm = isgqcoll.Communicator()
    comm.barrier()
    value = ONES(1000)
    if rank == 0:
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            comm.allreduce(value)
        (pathlib.Path(os.environ["TEST_STORE"]).parent / "go").touch()
        comm.synchronize()
    else:
        while not (pathlib.Path(os.environ["TEST_STORE"]).parent / "go").exists():
            time.sleep(0.01)
        comm.allreduce(value)
    assert value[999] == nranks
    comm.finalize()
    if rank == 0:  # nobody else comes to this one
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            isgqcoll.Communicator()


def test_interrupted():
    ranks.run(interrupted, 2)


def groups(rank, nranks):
    comm = isgqcoll.Communicator()
    values, memory = [numpy.full(100, float(i), numpy.float32) for i in range(20)], ONES(7)
    with isgqcoll.group():
        works = [comm.allreduce(value, async_op=True) for value in values]
        with isgqcoll.group():
            comm.allreduce(memory)
    assert memory[0] == nranks
    assert all(work.done() for work in works)
    assert [value[99] for value in values] == [i * nranks for i in range(20)]
    for _ in range(300):  # nobody waits: buffers of calls that are complete are let go all the same
        comm.allreduce(values[2], op="max", async_op=True)
    comm.synchronize()
    assert len(comm._kept) == 0
    comm.barrier()
    with pytest.raises(ZeroDivisionError if rank == 0 else isgqcoll.InvalidUsage, match="division by zero"):
        with isgqcoll.group():
            comm.allreduce(values[1])
            1 / rank
    with pytest.raises(isgqcoll.InvalidUsage, match="group was left by ZeroDivisionError"):
        comm.barrier()
    comm.destroy()


def test_groups():
    ranks.run(groups, 2)


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
    stats = comm.stats()
    assert stats.calls == 42 and stats.wire_bytes < stats.input_bytes
    assert comm.last_call().sequence == 42 and comm.last_call().why
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


def programs(end, nranks=2):
    environment = {**os.environ, "PYTHONPATH": sys.path[0] if "bindings" in sys.path[0] else sys.path[1], "ISGQ_NRANKS": str(nranks)}
    started = [
        subprocess.Popen([sys.executable, "-X", "dev", "-W", "error", "-c", SCRIPT.format(end=end)],
                         env={**environment, "ISGQ_JOB": f"{os.getpid()}.{end}", "ISGQ_RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(nranks)
    ]  # fmt: skip
    try:
        return [(process.communicate(timeout=60)[1], process.returncode) for process in started]
    finally:
        for process in started:
            process.kill()


def test_programs_that_just_stop():
    """Open communicators, memory and calls at the end: left in peace, or by an exception, which the others see."""
    for end in ("", "del comm", "loop = [comm]; loop.append(loop)", "work = comm.allreduce(memory, async_op=True)", "sys.modules.clear()"):
        for said, status in programs(end):
            assert status == 0 and "Traceback" not in said, (end, said)
    (said, status), (other, other_status) = programs("if comm.rank == 0: raise RuntimeError('stop')\ncomm.allreduce(memory)")
    assert status == 1 and "RuntimeError: stop" in said
    assert other_status == 1 and "RemoteError" in other and "rank 0" in other


def test_libraries():
    """A library that is missing, another's, or too old: ImportError with its name."""
    folder = pathlib.Path(os.environ.get("TMPDIR", "/tmp")) / f"isgq-old-{os.getpid()}"
    folder.mkdir()
    try:
        other = folder / "libother.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-xc", "-", "-o", str(other)], input=b"int isgq_get_version(int *v) { *v = 1; return 0; }", check=True)
        for library, text in (("/no/such/libisgqcoll.so", "cannot load"), (str(other), "has no isgq_")):
            environment = {**os.environ, "ISGQ_PYTHON_LIBRARY": library, "PYTHONPATH": ":".join(sys.path[:2])}
            said = subprocess.run([sys.executable, "-c", "import isgqcoll"], env=environment, capture_output=True, text=True, check=False)
            assert said.returncode == 1 and "ImportError: isgqcoll: " in said.stderr and text in said.stderr and library in said.stderr
    finally:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
