#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Several hosts on one machine: network namespaces joined by a bridge, links limited to a rate; always taken down again.

  netlab.py -n 4 --rate 500mbit -- PROGRAM ARGS...      run one rank of PROGRAM in each of 4 hosts
  netlab.py -n 2 --outside -- PROGRAM ARGS...           run PROGRAM once; it puts its own processes into the hosts

Each rank finds ISGQ_RANK, ISGQ_NRANKS, ISGQ_MASTER_ADDR, ISGQ_SECRET and ISGQ_INTERFACE in its environment; {interface} in ARGS is
replaced by the interface's name. A program outside finds NETLAB_HOSTS, the names of the hosts' namespaces separated by commas, and
NETLAB_ADDRESS, the address of the first host; test/netlab/lab.c is what enters them.

Needs root and iproute2; exits 77 where namespaces cannot be made, 1 if a rank failed, else with the status of the program outside.
"""
import argparse
import os
import secrets
import shutil
import signal
import subprocess
import sys

SKIPPED = 77
INTERFACE = "isgq0"
FIRST_ADDRESS = "10.77.0.1"
GRACE_S = 5  # for a program outside to end its own children


def ip(*words):
    subprocess.run(["ip", *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


class Lab:
    """N hosts 10.77.0.1.. on one bridge; the bridge lives in a namespace of its own, so nothing of it is seen outside."""

    def __init__(self, hosts, rate):
        self.prefix = "isgq%x" % os.getpid()
        self.hosts = [f"{self.prefix}h{i}" for i in range(hosts)]
        self.switch = f"{self.prefix}sw"
        self.rate = rate

    def __enter__(self):
        try:
            self._build()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _build(self):
        ip("netns", "add", self.switch)
        ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self.switch, "link", "set", "br0", "up")
        for i, host in enumerate(self.hosts):
            ip("netns", "add", host)
            ip("-n", self.switch, "link", "add", f"p{i}", "type", "veth", "peer", "name", INTERFACE, "netns", host)
            ip("-n", self.switch, "link", "set", f"p{i}", "master", "br0", "up")
            ip("-n", host, "addr", "add", f"10.77.0.{i + 1}/24", "dev", INTERFACE)
            ip("-n", host, "link", "set", INTERFACE, "up")
            ip("-n", host, "link", "set", "lo", "up")
            if self.rate:
                for namespace, device in ((host, INTERFACE), (self.switch, f"p{i}")):
                    subprocess.run(["tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", "rate", self.rate, "burst", "256kb",
                                    "latency", "50ms"], check=True, stderr=subprocess.PIPE)
        ip("netns", "exec", self.hosts[0], "true")  # where /sys cannot be mounted nothing can run inside

    def __exit__(self, *_):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        for host in self.hosts:
            kill_all(host)
        for namespace in [*self.hosts, self.switch]:
            subprocess.run(["ip", "netns", "del", namespace], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)

    def run(self, command, ranks_per_host, timeout):
        nranks = len(self.hosts) * ranks_per_host
        secret = secrets.token_hex(16)
        ranks = []
        for rank in range(nranks):
            host = self.hosts[rank // ranks_per_host]
            environment = dict(os.environ, ISGQ_RANK=str(rank), ISGQ_NRANKS=str(nranks), ISGQ_MASTER_ADDR=FIRST_ADDRESS,
                               ISGQ_MASTER_PORT="29533", ISGQ_SECRET=secret, ISGQ_INTERFACE=INTERFACE)
            words = [word.replace("{interface}", INTERFACE) for word in command]
            ranks.append(subprocess.Popen(["ip", "netns", "exec", host, *words], env=environment, start_new_session=True,
                                          stdout=None if rank == 0 else subprocess.DEVNULL))
        return wait_for(ranks, timeout)

    def run_outside(self, command, timeout):
        environment = dict(os.environ, NETLAB_HOSTS=",".join(self.hosts), NETLAB_ADDRESS=FIRST_ADDRESS)
        program = subprocess.Popen(command, env=environment, start_new_session=True)  # Check passes signals on to its whole group
        try:
            status = program.wait(timeout=timeout)
            return status if status >= 0 else 1
        except subprocess.TimeoutExpired:
            print(f"netlab: not finished after {timeout} s", file=sys.stderr)
            return 1
        finally:
            end(program)


def kill_all(host):
    """What still lives in a host when the lab goes: namespaces last as long as their processes."""
    found = subprocess.run(["ip", "netns", "pids", host], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    for pid in found.stdout.split():
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            pass


def end(program):
    """Politely first: Check ends the test that is running, which no signal to us would reach."""
    if program.poll() is not None:
        return
    program.terminate()
    try:
        program.wait(timeout=GRACE_S)
    except subprocess.TimeoutExpired:
        program.kill()
        program.wait()


def wait_for(ranks, timeout):
    """Exit status 0 if all ranks ended with 0; the rest is ended as soon as one fails or the time is up."""
    status = 0
    try:
        for process in ranks:
            if process.wait(timeout=timeout) != 0:
                status = 1
    except subprocess.TimeoutExpired:
        print(f"netlab: not finished after {timeout} s", file=sys.stderr)
        status = 1
    finally:
        for process in ranks:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    return status


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--hosts", type=int, default=2, help="hosts (default 2)")
    parser.add_argument("-r", "--ranks-per-host", type=int, default=1, help="ranks on each host (default 1)")
    parser.add_argument("--outside", action="store_true", help="start PROGRAM once, outside of the hosts, which it enters by itself")
    parser.add_argument("--rate", default="", help="of every link and direction, e.g. 200mbit, 1gbit (default: no limit)")
    parser.add_argument("--timeout", type=int, default=240, help="seconds (default 240)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- PROGRAM ARGS")
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("no program given")
    if shutil.which(command[0]) is None:
        parser.error(f"{command[0]} is no program")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        with Lab(options.hosts, options.rate) as lab:
            if options.outside:
                return lab.run_outside(command, options.timeout)
            return lab.run(command, options.ranks_per_host, options.timeout)
    except (FileNotFoundError, PermissionError) as error:
        print(f"netlab: skipped, {error}", file=sys.stderr)
        return SKIPPED
    except subprocess.CalledProcessError as error:
        print(f"netlab: skipped, {' '.join(error.cmd)}: {error.stderr.decode().strip()}", file=sys.stderr)
        return SKIPPED


if __name__ == "__main__":
    sys.exit(main())
