#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""isgq_perf --device cuda and what isgq_info says of GPUs: on the GPU of test/cudasim, and on a real one where there is one.

usage: test_device.py BIN_DIR [CASE...]      standard library only; exit status as test_programs.py
"""
import os

import test_programs
from test_programs import Case, main

QUANTIZERS = ("none;fp16;bf16;uniform:bits=1;uniform:bits=3,rounding=nearest;uniform:bits=4;uniform:bits=8,scale=local;"
              "isgq:bits=2.5;isgq:bits=4")
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


def compare(case, more, *arguments):
    """The same sweep on host and device memory: nothing is wrong, and not a bit differs, but of f32 products: each makes its own."""
    found = {device: case.rows("isgq_perf", "-w", "1", "-i", "2", *arguments, "--device", device, **more) for device in ("host", "cuda")}
    case.assertGreater(len(found["host"]), 0)
    for row in found["host"] + found["cuda"]:
        case.assertEqual(row["wrong"], 0, row)
    case.assertEqual({row["device"] for row in found["host"]}, {"host memory"})
    for row in found["cuda"]:
        case.assertRegex(row["device"], r"^device \d+, .")
    fields = ("coll", "dtype", "op", "quantizer", "bytes", "algorithm", "wire_bytes", "nmse", "hash")
    host, cuda = ([tuple(row[field] for field in (fields[:-2] if row["algorithm"] == "dense" else fields)) for row in found[device]]
                  for device in ("host", "cuda"))
    case.assertEqual(host, cuda)


def compare_everything(case, more):
    compare(case, more, "-n", "2", "-c", COLLECTIVES, "-q", QUANTIZERS, "-o", "sum,avg", "-b", "0", "-e", "64k", "-f", "128")
    compare(case, more, "-n", "3", "-c", COLLECTIVES, "-q", "uniform:bits=4;uniform:bits=2,scale=local", "-d", "f16,bf16", "-b", "60", "-e", "6000",
            "-f", "10", "--root", "1")
    compare(case, more, "-n", "2", "-c", COLLECTIVES, "-d", "all", "-o", "all", "-b", "0", "-e", "4k", "-f", "1024")


def compare_placement(case, more):
    for arguments in (["-p"], ["--misalign", "4"], ["--misalign", "20", "-p"], ["--memory", "isgq"], ["--calls", "3"], ["-a", "ring"], ["-n", "1"]):
        compare(case, more, "-n", "2", "-c", "allreduce" if "-a" in arguments else COLLECTIVES, "-b", "0", "-e", "64k", "-f", "128", "-q",
                "none;uniform:bits=4", *arguments)


def compare_factored(case, more):
    shape = ["-c", "factored", "--rows", "9", "--m", "37", "--n", "23", "--bias"]
    compare(case, more, "-n", "2", *shape, "-d", "f32,f16,bf16", "-o", "sum,avg", "-q", "none;factor:width=4/4;factor:width=8/3;isgq:bits=4")
    for way in ("gather", "reduce"):
        compare(case, more, "-n", "3", *shape, "-q", "isgq:bits=4", "-a", way)


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
                                   r"PCI [0-9a-f:.]+, stream memory operations: yes$")
        self.assertIn("cuda: loaded", " ".join(self.about("module", lines)))

    def test_old_driver(self):
        self.assertRegex(self.about("device", self.lines(CUDASIM_NO_WORDS="1", **simulated(self)))[0], "stream memory operations: no$")

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
