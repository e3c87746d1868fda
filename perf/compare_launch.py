# SPDX-License-Identifier: Apache-2.0
"""Starting the ranks of one run: on this host, or one in each host of a lab (test/netlab). A program finds ISGQ_RANK and the like."""
import contextlib
import os
import pathlib
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "test" / "netlab"))
import netlab  # noqa: E402

LONGEST_REASON = 200
POLL_S = 0.2


class Failed(Exception):
    """A run that gave no result; its text is one line."""


class Place:
    """Where ranks run: `lab` is None for this host. `order[r]` is the host of rank r, one rank a host unless said otherwise."""

    def __init__(self, lab=None, rate="", bind=False):
        self.lab, self.bind = lab, bind
        self.name = rate if lab else "one host"
        self.order = list(range(len(lab.hosts))) if lab else None

    def addresses(self):
        return [f"10.77.0.{i + 1}" for i in range(len(self.lab.hosts))]

    def inside(self, host, command):
        return ["ip", "netns", "exec", self.lab.hosts[host], *command] if self.lab else command

    def binds(self, nranks):
        """Whether each rank gets a core of its own."""
        return self.bind and not self.lab and nranks <= len(os.sched_getaffinity(0))

    def environment(self):
        if not self.lab:
            return {"ISGQ_MASTER_ADDR": "127.0.0.1"}
        return {"ISGQ_MASTER_ADDR": netlab.FIRST_ADDRESS, "ISGQ_INTERFACE": netlab.INTERFACE, "NETLAB_HOSTS": ",".join(self.lab.hosts)}


@contextlib.contextmanager
def lab_of(hosts, rate):
    """A lab, or Failed where namespaces cannot be made; no rate: no limit."""
    lab = netlab.Lab(hosts, rate)
    try:
        lab.__enter__()
    except (OSError, subprocess.CalledProcessError) as error:
        raise Failed(f"no lab: {error}") from error
    try:
        yield lab
    finally:
        handlers = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
        lab.__exit__(None, None, None)  # which ignores both signals from then on
        for number, handler in handlers:
            signal.signal(number, handler)


@contextlib.contextmanager
def place_of(rate, hosts, bind=False):
    """This host for no rate, its ranks bound to cores or not; else a lab, or Failed where there can be none."""
    if not rate:
        yield Place(bind=bind)
        return
    with lab_of(hosts, rate) as lab:
        yield Place(lab, rate)


@contextlib.contextmanager
def place_alone(nranks):
    """One host in a network namespace of its own: what its loopback interface counts is its ranks' traffic. Failed as above."""
    with lab_of(1, "") as lab:
        place = Place(lab, "one host")
        place.order = [0] * nranks
        yield place


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def clean_environment(**more):
    """Nothing of a launcher that may have started us."""
    launchers = ("ISGQ_RANK", "ISGQ_NRANKS", "ISGQ_MASTER", "OMPI_", "PMI", "SLURM_", "TORCHELASTIC_")
    return {**{k: v for k, v in os.environ.items() if not k.startswith(launchers)}, **more}


def last_line(path):
    text = re.sub(r"\x1b\[[0-9;]*m", "", path.read_text(errors="replace"))  # colours
    lines = [line.strip() for line in text.splitlines() if re.search(r"\w", line)]
    return lines[-1][:LONGEST_REASON] if lines else ""


def wait_all(processes, timeout, log):
    """Failed with the log's last line as soon as one fails or the time is up; nothing is left behind."""
    end, running = time.monotonic() + timeout, list(processes)
    try:
        while running:
            for process in running:
                if (process.poll() or 0) != 0:
                    raise Failed(last_line(log) or f"exit status {process.returncode}")
            running = [process for process in running if process.returncode is None]
            if running and time.monotonic() > end:
                raise Failed(f"not finished after {timeout} s")
            with contextlib.suppress(subprocess.TimeoutExpired):
                if running:
                    running[0].wait(timeout=POLL_S)
    finally:
        for process in processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def run_once(place, command, environment, timeout):
    """A launcher of its own (mpirun), in the lab's first host."""
    run_all([place.inside(0, command)], [{**place.environment(), **environment}], timeout)


def run_ranks(place, nranks, command, environment, timeout):
    common = {**place.environment(), **environment, "ISGQ_NRANKS": str(nranks), "ISGQ_MASTER_PORT": str(free_port()),
              "ISGQ_SECRET": secrets.token_hex(16)}
    hosts = place.order or [0] * nranks
    cores = sorted(os.sched_getaffinity(0))
    bound = [["taskset", "-c", str(cores[rank])] if place.binds(nranks) else [] for rank in range(nranks)]
    run_all([place.inside(hosts[rank], [*bound[rank], *command]) for rank in range(nranks)],
            [dict(common, ISGQ_RANK=str(rank)) for rank in range(nranks)], timeout)


def run_once_here(command, timeout):
    """A program that needs no ranks and no lab."""
    run_all([command], [{}], timeout)


def run_all(commands, environments, timeout):
    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder) / "log"
        with log.open("w") as sink:
            processes = []
            try:
                for command, environment in zip(commands, environments):
                    processes.append(subprocess.Popen(command, env=clean_environment(**environment), start_new_session=True, stdin=subprocess.DEVNULL,
                                                      stdout=sink, stderr=sink))
            except OSError as error:
                for process in processes:
                    process.kill()
                    process.wait()
                raise Failed(str(error)) from error
            wait_all(processes, timeout, log)
