# SPDX-License-Identifier: Apache-2.0
"""Ranks for tests: functions that run in N processes at once, forked so that what is imported need not be imported again.

    def body(rank, nranks, scale): ...                 # at module level or not: it is forked, not pickled
    results = ranks.run(body, 4, 2.5)                  # what each returned, in rank order; a failed rank fails the test, with its traceback

The environment is that of a launcher, so Communicator() finds its peers; `init_torch` joins the same ranks through PyTorch. A body's
communicators end with its process. The parent must not have run anything in threads before: no torch operations in it.
"""
import multiprocessing
import os
import pathlib
import pickle
import signal
import sys
import tempfile
import time
import traceback

FORK = multiprocessing.get_context("fork")
_count = 0


def init_torch(backend="gloo"):
    """torch.distributed among the ranks of this run, through a file: no ports to collide."""
    import torch.distributed as dist

    store = dist.FileStore(os.environ["TEST_STORE"], int(os.environ["WORLD_SIZE"]))
    dist.init_process_group(backend, store=store, rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))


def _environment(rank, nranks, store):
    global _count
    os.environ.update(
        ISGQ_JOB=f"{os.getppid()}.{_count}", ISGQ_RANK=str(rank), ISGQ_NRANKS=str(nranks), RANK=str(rank), WORLD_SIZE=str(nranks),
        LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(nranks), TEST_STORE=store, OMP_NUM_THREADS="1",
    )  # fmt: skip
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _child(body, rank, nranks, arguments, keywords, store, pipe):
    _environment(rank, nranks, store)
    try:
        answer = (True, body(rank, nranks, *arguments, **keywords))
        pickle.dumps(answer)
    except BaseException:  # noqa: BLE001 - also SystemExit and KeyboardInterrupt of a test
        answer = (False, traceback.format_exc())
    pipe.send(answer)
    pipe.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if answer[0] else 1)  # no finalizers of what was imported: communicators that were left are seen by the others


def _collect(processes, pipes, seconds):
    """Answers by rank; None of ranks that died or are still running when time is up."""
    end, answers = time.monotonic() + seconds, {}
    while len(answers) < len(pipes):
        waiting = {pipes[rank]: rank for rank in range(len(pipes)) if rank not in answers}
        ready = multiprocessing.connection.wait(list(waiting), max(0, end - time.monotonic()))
        for pipe in ready:
            try:
                answers[waiting[pipe]] = pipe.recv()
            except EOFError:
                processes[waiting[pipe]].join(5)
                answers[waiting[pipe]] = (None, f"died with exit status {processes[waiting[pipe]].exitcode}")
        if not ready:
            for rank in waiting.values():
                answers[rank] = (None, f"still running after {seconds} s")
    return [answers[rank] for rank in range(len(pipes))]


def run(body, nranks, *arguments, seconds=120, may_die=(), **keywords):
    """What body(rank, nranks, ...) returned on each rank. may_die: ranks that are expected to end without an answer."""
    global _count
    _count += 1
    with tempfile.TemporaryDirectory() as folder:
        processes, pipes = [], []
        for rank in range(nranks):
            mine, theirs = FORK.Pipe(duplex=False)
            store = str(pathlib.Path(folder) / "store")
            process = FORK.Process(target=_child, args=(body, rank, nranks, arguments, keywords, store, theirs))
            process.start()
            theirs.close()
            processes.append(process)
            pipes.append(mine)
        try:
            answers = _collect(processes, pipes, seconds)
        finally:
            for process in processes:
                process.join(5)
                if process.is_alive():
                    os.kill(process.pid, signal.SIGKILL)
                    process.join()
    bad = [f"---- rank {rank} ----\n{text}" for rank, (good, text) in enumerate(answers) if not good and rank not in may_die]
    assert not bad, "\n".join(bad)
    return [value if good else None for good, value in answers]
