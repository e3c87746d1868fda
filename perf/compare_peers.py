# SPDX-License-Identifier: Apache-2.0
"""Who takes part in perf/compare: whether it is installed, its program, how its ranks start, and what they measured."""
import glob
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

from compare_launch import ROOT, Failed, netlab, run_once, run_ranks

AGENT = ROOT / "perf" / "peers" / "netns_agent.sh"
SOURCES = ROOT / "perf" / "peers"


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def slowest(ranks):
    """Lists of seconds of all ranks: the slowest rank of each iteration."""
    return [max(times) for times in zip(*ranks)]


def read_ranks(folder, nranks):
    """What peer_measure.h wrote: (B in GB/s, rows by size)."""
    lines = []
    for rank in range(nranks):
        path = pathlib.Path(folder) / f"rank.{rank}"
        if not path.exists():
            raise Failed(f"rank {rank} left no result")
        lines.append([line.split() for line in path.read_text().splitlines()])
    bound, rows = None, {}
    for same in zip(*lines):
        kind, size = same[0][0], int(same[0][1])
        first = 2 if kind == "bound" else 4
        seconds = slowest([[float(word) for word in words[first:]] for words in same])
        if kind == "bound":
            bound = size / statistics.median(seconds) * 1e-9
        else:
            rows[size] = {"time_us": statistics.median(seconds) * 1e6, "p99_us": percentile(seconds, 0.99) * 1e6,
                          "wrong": sum(int(words[2]) for words in same), "nmse": max(float(words[3]) for words in same)}
    if not rows or bound is None:
        raise Failed("no result")
    return bound, rows


class Contender:
    """One column of the comparison. `missing`: the sentence that says why there is none."""
    library = False  # this library, not a peer
    quantized = False
    least = 0  # bytes below which it does not work

    def __init__(self, name):
        self.name, self.missing = name, None

    def measure(self, place, nranks, sizes, warmup, iterations, timeout):
        """(B, {bytes: row}); Failed if it did not come to an end."""
        sizes = [size for size in sizes if size >= self.least]
        if not sizes:
            raise Failed(f"works from {self.least} B on")
        with tempfile.TemporaryDirectory() as folder:
            self.start(place, nranks, [folder, str(warmup), str(iterations), *map(str, sizes)], timeout)
            return read_ranks(folder, nranks)

    def compile(self, folder, compiler, source, *words):
        """The program, made anew when its source is newer."""
        program = pathlib.Path(folder) / (self.name.split()[0].lower() + "_allreduce")
        if shutil.which(compiler) is None:
            self.missing = f"{compiler} is not installed"
            return program
        newest = max((SOURCES / name).stat().st_mtime for name in (source, "peer_measure.h"))
        if not program.exists() or program.stat().st_mtime < newest:
            program.parent.mkdir(parents=True, exist_ok=True)
            command = [compiler, "-O2", f"-I{ROOT}", "-o", str(program), str(SOURCES / source), *words]
            made = subprocess.run(command, capture_output=True, text=True, check=False)
            if made.returncode != 0:
                errors = [line for line in made.stderr.splitlines() if "error" in line or "undefined" in line]
                self.missing = "does not compile: " + (errors or made.stderr.splitlines() or ["no reason given"])[0]
        return program


class Isgq(Contender):
    library = True

    def __init__(self, binaries, quantizer, algorithm="auto"):
        super().__init__("isgqcoll " + quantizer)
        self.program, self.quantizer, self.algorithm = pathlib.Path(binaries) / "isgq_perf", quantizer, algorithm
        self.quantized = quantizer != "none"
        if not self.program.exists():
            self.missing = f"{self.program} was not built"

    def measure(self, place, nranks, sizes, warmup, iterations, timeout):
        bound, rows = [], {}
        for words in sweeps(sizes):
            with tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder) / "rows.json"
                run_ranks(place, nranks, [str(self.program), *words, "-q", self.quantizer, "-a", self.algorithm, "-w", str(warmup), "-i",
                                          str(iterations), "-J", str(path)], {}, timeout)
                found = json.loads(path.read_text())
            keep = ("time_us", "p99_us", "wrong", "nmse", "wire_bytes", "ratio", "algorithm", "transport", "why")
            for row in found:
                bound.append(row["bound"])
                rows[row["bytes"]] = {name: row[name] for name in keep}
        if set(rows) != set(sizes):
            raise Failed(f"{self.quantizer}: no row for {sorted(set(sizes) - set(rows))} B")
        return max(bound), rows


def sweeps(sizes):
    """Options of isgq_perf: one sweep where each size is the same multiple of the one before, else a run for each."""
    steps = {b // a if b % a == 0 else 0 for a, b in zip(sizes, sizes[1:])}
    if len(steps) == 1 and max(steps) > 1:
        return [["-b", str(sizes[0]), "-e", str(sizes[-1]), "-f", str(max(steps))]]
    return [["-b", str(size), "-e", str(size)] for size in sizes]


class OpenMpi(Contender):
    more = ()

    def __init__(self, folder, name="Open MPI"):
        super().__init__(name)
        if not shutil.which("mpirun.openmpi") or not shutil.which("mpicc.openmpi"):
            self.missing = "not installed (apt-get install openmpi-bin libopenmpi-dev)"
            return
        self.program = self.compile(folder, "mpicc.openmpi", "mpi_allreduce.c")

    def start(self, place, nranks, arguments, timeout):
        command = ["mpirun.openmpi", "--allow-run-as-root", "--oversubscribe", "--bind-to", "core" if place.binds(nranks) else "none", "-np",
                   str(nranks), *self.more]
        if place.lab:
            only = netlab.INTERFACE
            command += ["--host", ",".join(place.addresses()), "--mca", "plm_rsh_agent", str(AGENT), "--mca", "plm_rsh_no_tree_spawn", "1",
                        "--mca", "pml", "ob1", "--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", only,
                        "--mca", "oob_tcp_if_include", only]
        run_once(place, [*command, str(self.program), *arguments], {}, timeout)


class Ucc(OpenMpi):
    """UCC by way of an Open MPI that was built with it."""
    more = ("--mca", "coll_ucc_enable", "1", "--mca", "coll_ucc_priority", "100")

    def __init__(self, folder):
        super().__init__(folder, "UCC")
        if not self.missing and not glob.glob("/usr/lib/*/openmpi/lib*/openmpi*/mca_coll_ucc.so"):
            self.missing = "not installed (apt-get install libucc-dev, and an Open MPI built with it)"


class Mpich(Contender):
    def __init__(self, folder):
        super().__init__("MPICH")
        if not shutil.which("mpiexec.hydra") or not shutil.which("mpicc.mpich"):
            self.missing = "not installed (apt-get install mpich libmpich-dev)"
            return
        self.program = self.compile(folder, "mpicc.mpich", "mpi_allreduce.c")

    def start(self, place, nranks, arguments, timeout):
        command, environment = ["mpiexec.hydra", "-bind-to", "core" if place.binds(nranks) else "none", "-n", str(nranks)], {}
        if place.lab:
            command += ["-launcher", "ssh", "-launcher-exec", str(AGENT), "-hosts", ",".join(place.addresses()), "-iface", netlab.INTERFACE]
            environment = {"UCX_TLS": "tcp,self", "UCX_NET_DEVICES": netlab.INTERFACE, "FI_PROVIDER": "tcp"}
        run_once(place, [*command, str(self.program), *arguments], environment, timeout)


class Gloo(Contender):
    def __init__(self, folder):
        super().__init__("Gloo")
        if not pathlib.Path("/usr/include/gloo/allreduce.h").exists():
            self.missing = "not installed (apt-get install libgloo-dev)"
            return
        self.program = self.compile(folder, "g++", "gloo_allreduce.cpp", "-std=c++17", "-lgloo", "-lpthread")

    def start(self, place, nranks, arguments, timeout):
        run_ranks(place, nranks, [str(self.program), *arguments], {}, timeout)


def find(search, name):
    """A file of a Python package or of a prefix: `search` first, then where this Python looks."""
    for root in [*search, sys.prefix, *filter(None, sys.path)]:
        path = pathlib.Path(root) / name
        if path.is_file():
            return path
    return None


def load_error(library):
    """Why a library cannot be loaded, in its own process; None if it can."""
    tried = subprocess.run([sys.executable, "-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1])", str(library)], capture_output=True,
                           text=True, check=False)
    return None if tried.returncode == 0 else (tried.stderr.strip().splitlines() or ["no reason given"])[-1]


class Pccl(Contender):
    def __init__(self, folder, search, quantized):
        super().__init__("PCCL uint8" if quantized else "PCCL")
        self.quantized = quantized
        self.least = 1024 if quantized else 0  # it aborts when all values of a rank's chunk are equal, as one value is
        library = find(search, "pccl/libpccl.so")
        if library is None:
            self.missing = "not installed (pip install pypccl)"
            return
        error = load_error(library)
        if error:
            self.missing = "does not load: " + error
            return
        self.program = self.compile(folder, "gcc", "pccl_allreduce.c", str(library), f"-Wl,-rpath,{library.parent}")

    def start(self, place, nranks, arguments, timeout):
        run_ranks(place, nranks, [str(self.program), *arguments], {"PCCL_QUANTIZED": "1"} if self.quantized else {}, timeout)


class OneCcl(Contender):
    def __init__(self, folder, search):
        super().__init__("oneCCL")
        header, library = find(search, "include/oneapi/ccl.hpp"), find(search, "lib/libccl.so")
        if header is None or library is None:
            self.missing = "not installed (pip install oneccl-cpu oneccl-cpu-devel)"
            return
        error = load_error(library)
        if error:
            self.missing = "does not load: " + error
            return
        self.folder = library.parent
        self.program = self.compile(folder, "g++", "oneccl_allreduce.cpp", "-std=c++17", f"-I{header.parent.parent}", str(library),
                                    f"-Wl,-rpath,{self.folder}", f"-Wl,-rpath-link,{self.folder}")

    def start(self, place, nranks, arguments, timeout):
        environment = {"CCL_ATL_TRANSPORT": "ofi", "FI_PROVIDER_PATH": str(self.folder)}
        if place.lab:
            environment.update(FI_PROVIDER="tcp", FI_TCP_IFACE=netlab.INTERFACE, CCL_KVS_IFACE=netlab.INTERFACE, CCL_ATL_SHM="0")
        run_ranks(place, nranks, [str(self.program), *arguments], environment, timeout)


def contenders(binaries, quantizers, folder, search):
    everyone = [Isgq(binaries, quantizer) for quantizer in quantizers]
    return everyone + [OpenMpi(folder), Mpich(folder), Gloo(folder), Pccl(folder, search, False), Pccl(folder, search, True),
                       OneCcl(folder, search), Ucc(folder)]


def take_programs(everyone, texts):
    """NAME=PATH: programs that others built; each serves every contender of that name ("pccl": with and without quantizing)."""
    for text in texts:
        name, _, path = text.partition("=")
        named = of_names(everyone, [name])
        if not pathlib.Path(path).is_file():
            raise ValueError(f"--program {text}: {path or 'nothing'} is no file")
        for one in named:
            one.program, one.missing = pathlib.Path(path).resolve(), None


def of_names(everyone, words):
    """Those whose name begins with one of the words, upper or lower case; ValueError for a word that nobody's does."""
    for word in words:
        if not any(one.name.lower().startswith(word.lower()) for one in everyone):
            raise ValueError(f"{word}: none of {', '.join(one.name for one in everyone)}")
    return [one for one in everyone if not words or any(one.name.lower().startswith(word.lower()) for word in words)]
