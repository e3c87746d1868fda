#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""isgq_perf and isgq_train with --device cuda, and what isgq_info says of GPUs: on the GPU of test/cudasim, and on a real one where there is one.

usage: test_device.py BIN_DIR [CASE...]      standard library only; exit status as test_programs.py
"""
import os
import shutil
import tempfile

import test_programs
from test_programs import Case, main, write_data_set

QUANTIZERS = ("none;fp16;bf16;uniform:bits=1;uniform:bits=3,rounding=nearest;uniform:bits=4;uniform:bits=8,scale=local;"
              "isgq:bits=2.5,coding=none;isgq:bits=4,coding=none;qsgd:bits=2;orq-9:bucket=96;eden:bits=3")
COLLECTIVES = "allreduce,reduce_scatter,allgather,broadcast"


def simulated(case):
    """The environment in which the module "cuda" is the simulated one."""
    folder = os.path.join(os.path.dirname(os.path.abspath(test_programs.BIN)), "lib", "isgqcoll-simulated")
    if not os.path.exists(os.path.join(folder, "isgqcoll-cuda.so")):
        case.skipTest("the module for the simulated GPU was not built")
    return {"ISGQ_MODULE_DIR": folder}


def real(case):
    lines = [row.get("line", "") for row in case.rows("isgq_info")]
    if not any(line.startswith("device ") for line in lines):
        case.skipTest("no GPU: " + next(line for line in lines if line.startswith("devices")))
    return {}


def compare(case, more, *arguments, staged=False):
    """The same sweep on host and device memory: nothing is wrong, and not a bit differs, but of f32 products: each makes its own. With `staged` hosts
    carry the messages, and their bytes are the same too; links between devices need fewer around a message."""
    runs = {"host": ("host", {}), "cuda": ("cuda", {**more, "ISGQ_TRANSPORTS": "local,shm,ucx"} if staged else more)}
    found = {run: case.rows("isgq_perf", "-w", "1", "-i", "2", *arguments, "--device", device, **environment)
             for run, (device, environment) in runs.items()}
    case.assertGreater(len(found["host"]), 0)
    for row in sum(found.values(), []):
        case.assertEqual(row["wrong"], 0, row)
    case.assertEqual({row["device"] for row in found["host"]}, {"host memory"})
    for row in found["cuda"]:
        case.assertRegex(row["device"], r"^device \d+, .")
    fields = ("coll", "dtype", "op", "quantizer", "bytes", "nmse", "hash")
    results = {run: [tuple(row[field] for field in (fields[:-2] if row["algorithm"] == "dense" else fields)) for row in rows]
               for run, rows in found.items()}
    case.assertEqual(results["host"], results["cuda"])
    for host, cuda in zip(found["host"], found["cuda"]):  # boards and sharing are for hosts alone, and have the bits of the others
        if host["algorithm"] not in ("board", "share"):
            case.assertEqual(host["algorithm"], cuda["algorithm"], cuda)
    for host, cuda in zip(found["host"], found["cuda"]):
        low, high = host["wire_bytes"] if staged else 0, host["wire_bytes"] + (0 if staged else 64)  # hosts still agree, by messages of 32 bytes
        high *= host["nranks"]  # what hosts write once for all, scales too, goes to each rank where there is a device
        if host["coll"] == "factored":  # on devices blobs have a table of their rows, and streams send them in their greatest length
            high = host["wire_bytes"] * host["nranks"] + (4 * host["rows"] + 64) * (host["nranks"] - 1) if staged else 3 * high
        case.assertLessEqual(low, cuda["wire_bytes"], cuda)
        case.assertLessEqual(cuda["wire_bytes"], high, cuda)


def compare_everything(case, more):
    compare(case, more, "-n", "2", "-c", COLLECTIVES, "-q", QUANTIZERS, "-o", "sum,avg", "-b", "0", "-e", "64k", "-f", "128")
    for staged in (False, True):
        compare(case, more, "-n", "3", "-c", COLLECTIVES, "-q", "uniform:bits=4;uniform:bits=2,scale=local", "-d", "f16,bf16", "-b", "60", "-e", "6000",
                "-f", "10", "--root", "1", staged=staged)
    compare(case, more, "-n", "2", "-c", COLLECTIVES, "-d", "all", "-o", "all", "-b", "0", "-e", "4k", "-f", "1024")


def compare_placement(case, more):
    for arguments in (["-p"], ["--misalign", "4"], ["--misalign", "20", "-p"], ["--memory", "isgq"], ["--calls", "3"], ["-a", "ring"], ["-n", "1"]):
        compare(case, more, "-n", "2", "-c", "allreduce" if "-a" in arguments else COLLECTIVES, "-b", "0", "-e", "64k", "-f", "128", "-q",
                "none;uniform:bits=4", *arguments)


def compare_factored(case, more):
    shape = ["-c", "factored", "--rows", "9", "--m", "37", "--n", "23", "--bias"]
    compare(case, more, "-n", "2", *shape, "-d", "f32,f16,bf16", "-o", "sum,avg", "-q", "none;factor:width=4/4;factor:width=8/3;factor:bits=4")
    for way in ("gather", "reduce"):
        compare(case, more, "-n", "3", *shape, "-q", "factor:bits=4", "-a", way)
        compare(case, more, "-n", "3", *shape, "-q", "factor:bits=4", "-a", way, staged=True)


MODES = "exact,dense:uniform:bits=4,factored:factor:bits=4,coarse,dense:uniform:bits=4,scale=local,factored:factor:width=4/4,factored:none"


class Training:
    """Ranks are processes that share a GPU; the network is small and easy to train."""
    needs = ["isgq_train", "isgq_info"]

    def setUp(self):
        super().setUp()
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        write_data_set(self.folder)

    def arguments(self, *more):
        return ("--data", self.folder, "--layers", "16,40,12,3", "--total-batch", "16", "--lr", "0.5", *more)

    def train(self, more, *arguments):
        return self.rows("isgq_train", *self.arguments(*arguments), **more)

    def compare(self, more):
        """As on hosts, but for products' last bits: what is sent (to the byte, but where a budget's choices depend on values); how well gradients
        arrive; what is learnt."""
        arguments = ("-n", "2", "--epochs", "4", "--grad")
        host = self.train({}, *arguments, MODES)
        self.compare_rows(host, self.train(more, *arguments, MODES, "--device", "cuda"), False)
        self.compare_rows(host[:3], self.train(more, *arguments, "exact,dense:uniform:bits=4,factored:factor:bits=4", "--device", "cuda", "-t", "shm"), True)

    def compare_rows(self, host, cuda, same_links):
        """Links between devices need fewer bytes around a message than those between hosts; factors have a table of rows there, and travel in their greatest
        length where no host looks into them."""
        self.assertEqual({row["device"] for row in host}, {"host memory"})
        self.assertEqual(len(cuda), len(host))
        for one, other in zip(host, cuda):
            self.assertEqual(list(one), list(other))
            self.assertRegex(other["device"], r"^device \d+, .")
            for field in ("mode", "quantizer", "nranks", "epochs", "batch", "total_batch", "steps"):
                self.assertEqual(one[field], other[field], other)
            more = (1.5 if same_links else 3) if one["mode"] == "factored" else 1
            slack = 1.01 if one["quantizer"].startswith(("isgq", "factor:bits")) else 1  # a budget's choices depend on values
            self.assertLessEqual(other["gain"], one["gain"] * slack, other)
            self.assertGreaterEqual(other["gain"] * more, one["gain"] / slack, other)
            self.assertLessEqual(other["grad_bytes"], one["grad_bytes"] * more * slack, other)
            if same_links:
                self.assertGreaterEqual(other["grad_bytes"] * slack, one["grad_bytes"], other)
            self.assertAlmostEqual(one["nmse"], other["nmse"], delta=0.25 * one["nmse"] + 1e-9, msg=other)
            self.assertGreater(other["accuracy"], 60 if one["mode"] == "coarse" else 90, other)
        self.assertEqual(cuda[0]["nmse"], 0)
        self.assertAlmostEqual(host[0]["loss"], cuda[0]["loss"], delta=1e-3)

    def compare_ranks(self, more):
        """The same steps from any number of ranks, and the loss falls."""
        short, *all_long = (self.train(more, "-n", nranks, "--epochs", epochs, "--grad", "exact", "--device", "cuda")[0]
                            for nranks, epochs in (("2", "1"), ("1", "4"), ("3", "4")))
        for row in all_long:
            self.assertLess(row["loss"], 0.5 * short["loss"])
            self.assertAlmostEqual(row["loss"], all_long[0]["loss"], places=3)

    def compare_runs(self, more):
        """The same bits each time."""
        first, second = (self.train(more, "-n", "2", "--epochs", "2", "--grad", "exact,factored", "--device", "cuda") for _ in range(2))
        self.assertEqual([row["hash"] for row in first], [row["hash"] for row in second])


class SimulatedTrain(Training, Case):
    def test_as_on_hosts(self):
        self.compare(simulated(self))

    def test_any_number_of_ranks(self):
        self.compare_ranks(simulated(self))

    def test_layout(self):
        arguments = self.arguments("-n", "2", "--epochs", "1", "--grad", "exact,factored")
        host = self.succeed("isgq_train", *arguments).stdout.splitlines()
        cuda = self.succeed("isgq_train", *arguments, "--device", "cuda", **simulated(self)).stdout.splitlines()
        self.assertEqual(cuda.pop(1), "# network and gradients: device 0, Simulated GPU")
        self.assertEqual(host[:3], cuda[:3])
        self.assertEqual([len(line.split()) for line in host], [len(line.split()) for line in cuda])


class SimulatedTrainOrder(Training, Case):
    def test_same_bits(self):
        self.compare_runs(simulated(self))

    def test_late_streams(self):
        arguments = ("-n", "2", "--epochs", "1", "--grad", "dense,factored", "--device", "cuda")
        hashes = [[row["hash"] for row in self.train({**simulated(self), **late}, *arguments)] for late in ({}, {"CUDASIM_DELAY": "100"})]
        self.assertEqual(hashes[0], hashes[1])


class GpuTrain(Training, Case):
    def test_as_on_hosts(self):
        self.compare(real(self))

    def test_any_number_of_ranks(self):
        self.compare_ranks(real(self))

    def test_same_bits(self):
        self.compare_runs(real(self))


class TrainRefused(Training, Case):
    def refuse_cuda(self, mention, **more):
        self.refuse("isgq_train", *self.arguments("-n", "2", "--device", "cuda"), status=1, mention=mention, **more)

    def test_options(self):
        self.refuse("isgq_train", *self.arguments("-n", "2", "--device", "gpu"), mention="'gpu'")

    def test_no_module(self):
        self.refuse_cuda("module cuda", ISGQ_MODULE_DIR="/nonexistent")

    def test_no_gpu(self):
        self.refuse_cuda("no CUDA-capable device", CUDASIM_DEVICES="0", **simulated(self))

    def test_no_part_for_gpus(self):
        folder = tempfile.mkdtemp(dir=self.folder)
        os.symlink(os.path.join(simulated(self)["ISGQ_MODULE_DIR"], "isgqcoll-cuda.so"), os.path.join(folder, "isgqcoll-cuda.so"))
        self.refuse_cuda("isgq-train-cuda.so", ISGQ_MODULE_DIR=folder)

    def test_failures_of_cuda(self):
        for function in ("cublasCreate", "cublasSgemm", "cudaEventCreate"):
            result = test_programs.run("isgq_train", *self.arguments("-n", "1", "--device", "cuda"), CUDASIM_FAIL=function + ":1", **simulated(self))
            self.assertEqual((result.returncode, result.stdout), (1, ""), result.stderr)
            self.assertRegex(result.stderr, rf"(?m)^isgq_train: (rank 0: )?{function}: .+\n")


class SimulatedPerf(Case):
    needs = ["isgq_perf", "isgq_info"]

    def test_everything(self):
        compare_everything(self, simulated(self))

    def test_factored(self):
        compare_factored(self, simulated(self))

    def test_head(self):
        text = self.succeed("isgq_perf", "-n", "2", "--device", "cuda", "-e", "64", "-i", "2", **simulated(self)).stdout
        self.assertIn("# buffers: device 0, Simulated GPU\n", text)
        self.assertIn("# buffers: host memory\n", self.succeed("isgq_perf", "-n", "2", "-e", "64", "-i", "2").stdout)


class SimulatedPlacement(Case):
    needs = ["isgq_perf", "isgq_info"]

    def test_placement(self):
        compare_placement(self, simulated(self))

    def test_late_streams(self):
        compare(self, {**simulated(self), "CUDASIM_DELAY": "300"}, "-n", "2", "-c", COLLECTIVES, "-q", "none;uniform:bits=4", "-b", "8", "-e", "4k",
                "-f", "512")


class GpuPerf(Case):
    """Bits, not times: several ranks share the GPU."""
    needs = ["isgq_perf", "isgq_info"]

    def test_everything(self):
        compare_everything(self, real(self))

    def test_factored(self):
        compare_factored(self, real(self))

    def test_placement(self):
        compare_placement(self, real(self))


class Refused(Case):
    needs = ["isgq_perf"]

    def test_options(self):
        self.refuse("isgq_perf", "-n", "2", "--device", "gpu", mention="'gpu'")
        self.refuse("isgq_perf", "-n", "2", "--device", "cuda", "--memory", "malloc", mention="--memory")

    def test_no_module(self):
        self.refuse("isgq_perf", "-n", "2", "--device", "cuda", status=1, mention="module cuda", ISGQ_MODULE_DIR="/nonexistent")

    def test_no_gpu(self):
        self.refuse("isgq_perf", "-n", "2", "--device", "cuda", status=1, mention="no CUDA-capable device", CUDASIM_DEVICES="0", **simulated(self))


class DeviceInfo(Case):
    needs = ["isgq_info"]

    def lines(self, **more):
        return [row["line"] for row in self.rows("isgq_info", **more) if row["kind"] == "info"]

    def about(self, word, lines):
        return [line for line in lines if line.split()[0] == word]

    def test_devices(self):
        lines = self.lines(CUDASIM_DEVICES="2", **simulated(self))
        self.assertEqual(self.about("devices", lines), ["devices     host memory"])
        devices = self.about("device", lines)
        self.assertEqual(len(devices), 2)
        for number, line in enumerate(devices):
            self.assertRegex(line, rf"^device +{number}: Simulated GPU, compute capability \d+\.\d+, \d+ MiB, \d+ processors, "
                                   r"PCI [0-9a-f:.]+, stream memory operations: yes, streams wait for other ranks: yes$")
        self.assertIn("cuda: loaded", " ".join(self.about("module", lines)))

    def test_old_driver(self):
        self.assertRegex(self.about("device", self.lines(CUDASIM_NO_WORDS="1", **simulated(self)))[0], "stream memory operations: no, streams wait for other ranks: no$")

    def test_no_gpu(self):
        lines = self.lines(CUDASIM_DEVICES="0", **simulated(self))
        self.assertEqual(self.about("device", lines), [])
        self.assertRegex(self.about("devices", lines)[0], "^devices +host memory; cudaGetDeviceCount: no CUDA-capable device")

    def test_no_module(self):
        lines = self.lines(ISGQ_MODULE_DIR="/nonexistent")
        self.assertEqual(self.about("device", lines), [])
        self.assertRegex(self.about("devices", lines)[0], "^devices +host memory; module cuda: ")


if __name__ == "__main__":
    main(__doc__)
