#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the programs promise on their command lines: run them, small, and look at exit status, stderr and JSON.

usage: test_programs.py BIN_DIR [CASE...]      standard library only; exit status 0 if every case passed, 77 if nothing could run
"""
import gzip
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

BIN = ""

PERF_FIELDS = {
    "coll", "dtype", "op", "quantizer", "algorithm", "transport", "why", "nranks", "count", "bytes", "time_us", "p99_us", "iters",
    "algbw_gbs", "busbw_gbs", "wire_bytes", "ratio", "nmse", "bound", "wrong", "hash",
}
TRAIN_FIELDS = {
    "mode", "quantizer", "nranks", "epochs", "batch", "accuracy", "loss", "nmse", "seconds", "comm_seconds", "grad_bytes", "ratio", "gain",
    "hash",
}
LEVELS = ["onebit", "ef-sign", "bingrad-b", "bingrad-pb", "orq-3", "orq-5", "orq-9", "natural", "qsgd", "qsgd:bits=2", "qsgd:bits=8",
          "qsgd:bits=3,norm=max", "drive", "eden:bits=1", "eden", "mx", "mx:bits=4,rounding=nearest"]
SUMS = ["uniform:bits=3,rounding=stratified", "global-qsgd", "global-qsgd:levels=3,bucket=1024", "global-qsgd:norm=l2,bucket=512", "terngrad",
        "terngrad:clip=0", "intsgd", "global-qsgd-exp", "global-qsgd-exp:bits=4,bucket=1024"]
FACTORED = ["factor:width=4,rounding=dither", "factor:width=4,coding=range", "isgq:nmse=0.01", "isgq-mse", "isgq-mse:levels=8",
            "isgq-mvu", "isgq-dithered", "isgq-dithered:width=8"]
LOW_RANK = ["powersgd:rank=1", "powersgd:rank=6,feedback=off"]
CODED = ["isgq:bits=2,coding=zstd", "isgq:bits=4.5,coding=zstd", "isgq:nmse=0.01,coding=zstd", "isgq:nmse=0.3,coding=zstd"]
PROGRAMS = ["isgq_perf", "isgq_train", "isgq_quality", "isgq_info", "isgq_plan", "isgq_model", "isgq_tune"]


def have(program):
    return os.access(os.path.join(BIN, program), os.X_OK)


def environment(**more):
    """Nothing of a launcher that may have started the tests."""
    launchers = ("ISGQ_", "OMPI_", "PMI", "SLURM_", "TORCHELASTIC_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(launchers)}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        kept.pop(name, None)
    return {**kept, **more}


def run(program, *arguments, timeout=110, **more):
    return subprocess.run([os.path.join(BIN, program), *arguments], env=environment(**more), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, timeout=timeout, check=False)


def write_idx(folder, name, dimensions, data, compress=False):
    blob = struct.pack(">BBBB", 0, 0, 8, len(dimensions)) + b"".join(struct.pack(">I", d) for d in dimensions) + data
    path = os.path.join(folder, name + (".gz" if compress else ""))
    with (gzip.open(path, "wb") if compress else open(path, "wb")) as file:
        file.write(blob)
    return path


def write_data_set(folder, train=256, test=64, side=4, classes=3, compress=False):
    """Images whose class shows as a bright row: easy to learn."""
    numbers = random.Random(1)
    for prefix, count in (("train", train), ("t10k", test)):
        labels = bytes(numbers.randrange(classes) for _ in range(count))
        pixels = bytes(min(255, numbers.randrange(60) + (180 if i // side == label else 0)) for label in labels for i in range(side * side))
        write_idx(folder, prefix + "-images-idx3-ubyte", (count, side, side), pixels, compress)
        write_idx(folder, prefix + "-labels-idx1-ubyte", (count,), labels, compress)


class Case(unittest.TestCase):
    def setUp(self):
        for program in getattr(self, "needs", []):
            if not have(program):
                self.skipTest(program + " was not built")

    def succeed(self, program, *arguments, **more):
        result = run(program, *arguments, **more)
        self.assertEqual(result.returncode, 0, f"{program} {arguments}: {result.stderr}")
        return result

    def refuse(self, program, *arguments, status=2, mention="", **more):
        """The program ends with that status and says one line."""
        result = run(program, *arguments, **more)
        self.assertEqual(result.returncode, status, f"{program} {arguments}: {result.stdout}{result.stderr}")
        self.assertEqual(result.stderr.count("\n"), 1, f"{program} {arguments}: {result.stderr}")
        self.assertTrue(result.stderr.startswith(program + ": "), result.stderr)
        self.assertIn(mention, result.stderr)
        self.assertEqual(result.stdout, "")

    def has_coder(self):
        return "libzstd" not in run("isgq_perf", "-n", "2", "-e", "64", "-q", "isgq:coding=zstd").stderr

    def need_coder(self):
        if not self.has_coder():
            self.skipTest("a build without libzstd")

    def rows(self, program, *arguments, **more):
        less = ("--bound-bytes", "64k") if program == "isgq_perf" else ()  # copying 64 MiB would take longer than most sweeps
        return json.loads(self.succeed(program, *arguments, *less, "-J", "-", **more).stdout)


class Options(Case):
    def test_help_names_every_option_and_default(self):
        for program in filter(have, PROGRAMS):
            text = self.succeed(program, "--help").stdout
            self.assertTrue(text.startswith("usage: " + program))
            self.assertIn("--json", text)
            self.assertEqual(self.succeed(program, "-h").stdout, text)
        if have("isgq_perf"):
            text = self.succeed("isgq_perf", "--help").stdout
            for option in "-n -b -e -f -d -o -q -a -t -w -i -p --misalign -s -J --rows --m --n".split():
                self.assertRegex(text, r"(^|\s)" + re.escape(option) + r"[, ]", option)

    def test_version(self):
        for program in filter(have, PROGRAMS):
            self.assertRegex(self.succeed(program, "--version").stdout, "^" + program + r" \d+\.\d+\.\d+ \(libisgqcoll \d+\.\d+\.\d+\)\n$")

    def test_unknown_options(self):
        for program in filter(have, PROGRAMS):
            self.refuse(program, "--no-such-option", mention="--no-such-option")
            self.refuse(program, "-Z", mention="-Z")
            self.refuse(program, "word", mention="word")


class PerfOptions(Case):
    needs = ["isgq_perf"]

    def test_bad_values(self):
        for arguments, mention in (
                (["-n", "0"], "--nranks"), (["-n", "two"], "two"), (["-n"], "--nranks"), (["-i", "-3"], "-3"), (["-b", "1x"], "1x"),
                (["-b", "1.5m"], "1.5m"), (["-e", "99999999999999999999g"], "--maxbytes"), (["-f", "1"], "--stepfactor"),
                (["-n", "2", "-d", "f33"], "f33"), (["-n", "2", "-o", "mean"], "mean"), (["-n", "2", "-c", "alltoall"], "alltoall"),
                (["-n", "2", "-c", "allreduce,,broadcast"], "empty"), (["-n", "2", "-q", "unifrom:bits=4"], "unifrom"),
                (["-n", "2", "-q", "uniform:bits=99"], "99"), (["--inplace=yes"], "--inplace"), (["--memory", "gpu"], "gpu")):
            self.refuse("isgq_perf", *arguments, mention=mention)

    def test_impossible_combinations(self):
        self.refuse("isgq_perf", "-n", "2", "-b", "2m", "-e", "1m", mention="--minbytes")
        self.refuse("isgq_perf", "-n", "2", "-c", "factored", "-b", "8", mention="--minbytes")
        self.refuse("isgq_perf", "-n", "2", "-c", "factored", "-p", mention="--inplace")
        self.refuse("isgq_perf", "-n", "2", "--rows", "8", mention="--rows")
        self.refuse("isgq_perf", "-n", "2", "-c", "broadcast", "--root", "2", mention="--root")
        self.refuse("isgq_perf", "-n", "2", "--bound-bytes", "100k", mention="--bound-bytes")
        self.refuse("isgq_perf", "-n", "2", "-e", "64", "-o", "max", "-q", "uniform:bits=4", mention="uniform")
        self.refuse("isgq_perf", "-n", "2", "-e", "64", "--misalign", "1", mention="aligned")
        self.refuse("isgq_perf", "-n", "2", "-e", "64", "-a", "no-such-way", mention="no-such-way")
        self.refuse("isgq_perf", "-n", "2", "-t", "nccl", mention="nccl")
        self.refuse("isgq_perf", "-n", "2", "-t", "shm,foo", mention="foo")
        self.refuse("isgq_perf", "-n", "2", "-t", "local", mention="shm")
        self.refuse("isgq_perf", "-n", "2", "-J", "/nonexistent/folder/file", mention="/nonexistent/folder/file")

    def test_a_wrong_quantizer_is_named_once(self):
        for program in ("isgq_perf", "isgq_plan"):
            if have(program):
                self.assertEqual(run(program, "-n", "2", "-q", "foo").stderr.count("quantizer 'foo':"), 1, program)

    def test_no_launcher(self):
        self.refuse("isgq_perf", "-e", "64", mention="-n")

    def test_algorithms_are_listed(self):
        text = self.succeed("isgq_perf", "-a", "help").stdout
        for name in ("allreduce", "factored", "ring", "direct", "gather", "reduce"):
            self.assertIn(name, text)


class Perf(Case):
    needs = ["isgq_perf"]

    def sweep(self, *arguments, **more):
        rows = self.rows("isgq_perf", "-w", "0", "-i", "1", *arguments, **more)
        self.assertGreater(len(rows), 0)
        for row in rows:
            self.assertLessEqual(PERF_FIELDS, set(row), row)
            self.assertEqual(row["wrong"], 0, row)
            self.assertNotIn("auto", (row["algorithm"], row["transport"]))
            self.assertRegex(row["hash"], "^[0-9a-f]{16}$")
            self.assertGreaterEqual(row["p99_us"], row["time_us"])
        return rows

    def test_everything_exact(self):
        for nranks in (1, 3):
            rows = self.sweep("-n", str(nranks), "-c", "allreduce,reduce_scatter,allgather,broadcast", "-d", "all", "-o", "all", "-b", "0",
                              "-e", "4k", "-f", "32")
            self.assertEqual({row["dtype"] for row in rows}, {"i8", "u8", "i32", "u32", "i64", "u64", "f16", "bf16", "f32", "f64"})
            self.assertEqual({row["op"] for row in rows}, {"sum", "prod", "max", "min", "avg", "none"})
            self.assertEqual({row["coll"] for row in rows}, {"allreduce", "reduce_scatter", "allgather", "broadcast"})
            self.assertEqual({row["nranks"] for row in rows}, {nranks})
            self.assertIn(0, {row["bytes"] for row in rows})
            self.assertTrue(all(row["nmse"] == 0 for row in rows))

    def test_quantizers(self):
        quantizers = ["fp16", "bf16", "uniform:bits=1", "uniform:bits=3,rounding=nearest", "uniform:bits=4,scale=local", "uniform:bits=8",
                      "isgq:bits=4", "isgq:bits=2.5"]
        for nranks in (1, 4):
            rows = self.sweep("-n", str(nranks), "-c", "allreduce,reduce_scatter,allgather", "-d", "f32,f16,bf16", "-o", "sum,avg", "-q",
                              ";".join(quantizers), "-b", "0", "-e", "64k", "-f", "128")
            self.assertEqual(len({row["quantizer"] for row in rows}), len(quantizers))
            coarse = [row["nmse"] for row in rows if row["quantizer"].startswith("uniform:bits=1,") and row["bytes"] > 32768]
            fine = [row["nmse"] for row in rows if row["quantizer"].startswith("uniform:bits=8,") and row["bytes"] > 32768]
            self.assertGreater(min(coarse), 10 * max(fine))

    def test_levels(self):
        for nranks, dtype, op in (("1", "f32", "sum"), ("3", "f32", "avg"), ("4", "bf16", "sum")):
            for quantizers in (LEVELS, SUMS):
                rows = self.sweep("-n", nranks, "-c", "allreduce,reduce_scatter,allgather", "-d", dtype, "-o", op, "-q", ";".join(quantizers),
                                  "-b", "0", "-e", "64k", "-f", "128")
                self.assertEqual(len({row["quantizer"] for row in rows}), len(quantizers))

    def test_low_rank(self):
        for nranks, dtype, op in (("1", "f32", "sum"), ("3", "f32", "avg"), ("2", "bf16", "sum")):
            rows = self.sweep("-n", nranks, "-d", dtype, "-o", op, "-q", ";".join(LOW_RANK), "-b", "0", "-e", "64k", "-f", "128")
            self.assertEqual(len({row["quantizer"] for row in rows}), len(LOW_RANK))
            self.assertGreater(max(row["nmse"] for row in rows), 0.5)  # noise has no low rank

    def test_coded(self):
        self.need_coder()
        for nranks, dtype, op in (("1", "f32", "sum"), ("3", "f32", "avg"), ("4", "bf16", "sum")):
            rows = self.sweep("-n", nranks, "-c", "allreduce,reduce_scatter,allgather", "-d", dtype, "-o", op, "-q", ";".join(CODED), "-b", "0",
                              "-e", "256k", "-f", "256")
            self.assertEqual(len({row["quantizer"] for row in rows}), len(CODED))

    def test_factored(self):
        for nranks in (1, 2, 3):
            rows = self.sweep("-n", str(nranks), "-c", "factored", "--rows", "9", "--m", "37", "--n", "23", "--bias", "-d", "f32,f16,bf16",
                              "-o", "sum,avg", "-q", "none;factor:width=4/4;factor:width=8/3;isgq:bits=4;isgq:bits=8")
            self.assertEqual(len(rows), 30)

    def test_published_factors(self):
        for nranks, dtype, op, rows in (("1", "f32", "sum", "9"), ("3", "f32", "avg", "24"), ("2", "bf16", "sum", "0")):
            self.sweep("-n", nranks, "-c", "factored", "--rows", rows, "--m", "37", "--n", "23", "--bias", "-d", dtype, "-o", op, "-q",
                       ";".join(text for text in FACTORED if self.has_coder() or "nmse" not in text))

    def test_one_answer_for_every_factored_way(self):
        hashes = {way: [row["hash"] for row in self.sweep("-n", "3", "-c", "factored", "--rows", "8", "--m", "31", "--n", "17", "-q",
                                                          "isgq:bits=4", "-a", way)] for way in ("gather", "reduce")}
        self.assertEqual(hashes["gather"], hashes["reduce"])

    def test_placement(self):
        for arguments in (["-p"], ["--misalign", "4"], ["--misalign", "20", "-p"], ["--memory", "isgq"], ["--calls", "4"]):
            self.sweep("-n", "2", "-c", "allreduce,reduce_scatter,allgather,broadcast", "-b", "0", "-e", "300k", "-f", "64", "-q",
                       "none;uniform:bits=4", "--root", "1", *arguments)

    def test_reruns_give_the_same_bits(self):
        first, second = (self.sweep("-n", "2", "-q", "isgq:bits=4", "-b", "16k", "-e", "16k", "-s", "7") for _ in range(2))
        other = self.sweep("-n", "2", "-q", "isgq:bits=4", "-b", "16k", "-e", "16k", "-s", "8")
        self.assertEqual(first[0]["hash"], second[0]["hash"])
        self.assertNotEqual(first[0]["hash"], other[0]["hash"])

    def test_ratio_follows_the_bits(self):
        row = self.sweep("-n", "2", "-q", "uniform:bits=4", "-b", "1m", "-e", "1m")[0]
        self.assertGreater(row["ratio"], 6.0)
        self.assertLess(row["ratio"], 8.1)
        row = self.sweep("-n", "2", "-b", "1m", "-e", "1m")[0]
        self.assertGreater(row["ratio"], 0.95)
        self.assertLess(row["ratio"], 1.01)

    def test_table(self):
        text = self.succeed("isgq_perf", "-n", "2", "-b", "1k", "-e", "4k", "-f", "2", "-i", "2").stdout.splitlines()
        head = next(i for i, line in enumerate(text) if line.startswith("coll"))
        self.assertIn("busbw", text[head])
        self.assertIn("GB/s", text[head + 1])
        self.assertEqual(len(text) - head - 2, 3)

    def test_json_file_beside_table(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "rows.json")
            text = self.succeed("isgq_perf", "-n", "2", "-b", "64", "-e", "64", "-i", "2", "-J", path).stdout
            self.assertIn("busbw", text)
            with open(path, encoding="ascii") as file:
                self.assertEqual(len(json.load(file)), 1)


class Spoiling:
    """Results that are spoiled on purpose (spoil.c) must be counted as wrong."""
    needs = ["isgq_perf"]

    def setUp(self):
        super().setUp()
        self.library = os.path.join(os.path.dirname(os.path.abspath(BIN)), "lib", "isgq_spoil.so")
        if not os.path.exists(self.library):
            self.skipTest("the library that spoils is for builds without sanitizers")

    def notice(self, how, *arguments):
        result = run("isgq_perf", "-n", "4", "-w", "0", "-i", "1", "--bound-bytes", "64k", "-J", "-", *arguments, LD_PRELOAD=self.library, SPOIL=how)
        self.assertEqual(result.returncode, 1, result.stderr)
        rows = json.loads(result.stdout)
        self.assertGreater(len(rows), 0)
        self.assertEqual([(row["coll"], row["quantizer"], row["nmse"]) for row in rows if row["wrong"] == 0], [], how)

    def notice_dense(self, quantizers, scatter=()):
        """`scatter`: errs so much that a missing rank does not show (perf/README.md). It takes more elements to see that than zeros or signs."""
        for how, size in (("zero", "128k"), ("flip", "128k"), ("lost", "256k")):
            texts = [text for text in quantizers if how != "lost" or text not in scatter]
            self.notice(how, "-c", "allreduce,reduce_scatter,allgather", "-b", size, "-e", size, "-q", ";".join(texts))


class Spoiled(Spoiling, Case):
    def test_dense(self):
        quantizers = ["fp16", "bf16", "uniform:bits=4,rounding=nearest", "isgq:bits=2", "isgq:bits=2.5", "isgq:bits=4"]
        self.notice_dense(quantizers + [f"uniform:bits={bits},scale={scale}" for bits in (1, 3, 4, 8) for scale in ("shared", "local")])


class SpoiledLevels(Spoiling, Case):
    def test_levels(self):
        self.notice_dense(LEVELS, scatter=("ef-sign", "qsgd:bits=2"))


class SpoiledSums(Spoiling, Case):
    def test_sums(self):
        self.notice_dense(SUMS)

    def test_low_rank(self):
        for how in ("zero", "flip", "lost"):
            self.notice(how, "-b", "64k", "-e", "64k", "-q", ";".join(LOW_RANK))


class SpoiledCodes(Spoiling, Case):
    def test_coded(self):
        self.need_coder()
        self.notice_dense(CODED)


class SpoiledFactors(Spoiling, Case):
    def test_factored(self):
        shape = ("-c", "factored", "--rows", "96", "--m", "300", "--n", "200", "--bias")
        quantizers = "factor:width=3;factor:width=4;factor:width=4,rounding=nearest;isgq:bits=2;isgq:bits=4;isgq:bits=8;uniform:bits=4"
        for how in ("zero", "flip", "lost"):
            self.notice(how, *shape, "-q", quantizers)
        for how in ("zero", "flip"):
            self.notice(how, *shape, "-q", "factor:width=2;isgq-mse:levels=2;isgq-dithered:width=2")

    def test_published(self):
        quantizers = ";".join(text for text in FACTORED if self.has_coder() or "nmse" not in text)
        for how in ("zero", "flip", "lost"):
            self.notice(how, "-c", "factored", "--rows", "96", "--m", "300", "--n", "200", "--bias", "-q", quantizers)


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(word) for word in file.read().split()]


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


class Launch(Case):
    needs = ["isgq_perf"]

    def start(self):
        """Four ranks that would run for hours; returns the parent and the ranks once all have started."""
        parent = subprocess.Popen([os.path.join(BIN, "isgq_perf"), "-n", "4", "-i", "1000000", "-b", "64k", "-e", "64k"],
                                  env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, universal_newlines=True)
        self.addCleanup(parent.stderr.close)
        self.addCleanup(parent.wait)
        self.addCleanup(parent.kill)
        deadline = time.monotonic() + 30
        while len(children_of(parent.pid)) < 4:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)
        time.sleep(0.5)  # let them meet; the test holds at any moment
        return parent, children_of(parent.pid)

    def gone(self, ranks):
        deadline = time.monotonic() + 20
        while any(map(is_alive, ranks)):
            self.assertLess(time.monotonic(), deadline, "ranks are left behind")
            time.sleep(0.05)

    def test_a_killed_rank_ends_the_job(self):
        parent, ranks = self.start()
        os.kill(ranks[2], signal.SIGKILL)
        self.assertEqual(parent.wait(timeout=30), 1)
        self.assertIn("signal 9", parent.stderr.read())
        self.gone(ranks)

    def test_a_signal_reaches_all_ranks(self):
        parent, ranks = self.start()
        parent.send_signal(signal.SIGTERM)
        self.assertEqual(parent.wait(timeout=30), -signal.SIGTERM)
        self.gone(ranks)

    def test_ranks_die_with_the_parent(self):
        parent, ranks = self.start()
        parent.kill()
        parent.wait()
        self.gone(ranks)


class Train(Case):
    needs = ["isgq_train"]

    def setUp(self):
        super().setUp()
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = temporary.name

    def arguments(self, *more):
        return ("-n", "2", "--data", self.folder, "--layers", "16,12,3", "--batch", "8", "--epochs", "8", "--lr", "0.5", *more)

    def unpacks(self):
        """Does the program read .gz files? In builds without zlib it says that it does not."""
        folder = os.path.join(self.folder, "packed")
        os.mkdir(folder)
        write_data_set(folder, compress=True)
        result = run("isgq_train", *self.arguments("--data", folder, "--epochs", "1"))
        if result.returncode != 0:
            self.refuse("isgq_train", *self.arguments("--data", folder), mention="without zlib")
        return result.returncode == 0

    def test_modes(self):
        write_data_set(self.folder)
        rows = self.rows("isgq_train", *self.arguments("--grad", "exact,dense,factored,coarse,dense:uniform:bits=4,scale=local,factored:none"))
        self.assertEqual([row["mode"] for row in rows], ["exact", "dense", "factored", "coarse", "dense", "factored"])
        for row in rows:
            self.assertLessEqual(TRAIN_FIELDS, set(row), row)
            self.assertEqual((row["nranks"], row["epochs"], row["batch"], row["steps"]), (2, 8, 8, 128))
        exact, dense, factored, coarse = rows[:4]
        self.assertEqual(exact["nmse"], 0)
        self.assertGreater(exact["accuracy"], 95)
        self.assertGreater(factored["accuracy"], 90)
        self.assertGreater(coarse["nmse"], 5 * dense["nmse"])
        self.assertGreater(coarse["accuracy"], 60)
        self.assertLess(rows[5]["nmse"], 1e-9)
        self.assertGreaterEqual(exact["grad_bytes"], 128 * 4 * (17 * 12 + 13 * 3))
        self.assertLess(exact["ratio"], 1.01)
        self.assertLess(dense["grad_bytes"], exact["grad_bytes"])

    def test_one_run_for_any_number_of_ranks(self):
        write_data_set(self.folder, compress=self.unpacks())
        losses = []
        for nranks in ("1", "2", "3"):
            rows = self.rows("isgq_train", "-n", nranks, "--data", self.folder, "--layers", "16,12,3", "--total-batch", "16", "--epochs", "1",
                             "--grad", "exact")
            losses.append(rows[0]["loss"])
        self.assertAlmostEqual(losses[0], losses[1], places=4)
        self.assertAlmostEqual(losses[0], losses[2], places=4)

    def test_table(self):
        write_data_set(self.folder)
        text = self.succeed("isgq_train", *self.arguments("--grad", "exact,factored")).stdout
        self.assertRegex(text, r"(?m)^mode .* hash")
        self.assertRegex(text, r"(?m)^factored +isgq:bits=4 ")

    def test_options(self):
        write_data_set(self.folder)
        for more, mention in ((["--grad", "exakt"], "exakt"), (["--grad", "exact:none"], "exact"), (["--layers", "16"], "--layers"),
                              (["--layers", "15,3"], "16 pixels"), (["--layers", "16,2"], "label"), (["--total-batch", "8"], "--batch"),
                              (["--batch", "1000"], "256"), (["--lr", "fast"], "fast"), (["-q", "isgq:bots=4"], "bots"), (["-t", "nccl"], "nccl")):
            self.refuse("isgq_train", *self.arguments(*more), mention=mention)

    def test_damaged_files(self):
        name = "train-images-idx3-ubyte"
        path = os.path.join(self.folder, name)
        write_data_set(self.folder)
        with open(path, "rb") as file:
            good = file.read()
        damaged = {
            "cut": (good[:-1], "ends after"), "longer": (good + b"x", "more bytes"), "header cut": (good[:7], "ends after"), "empty": (b"", "ends after"),
            "magic": (b"\1" + good[1:], "not an IDX file"), "type": (good[:2] + b"\x0d" + good[3:], "type 13"),
            "dimensions": (good[:3] + b"\1" + good[4:], "1 dimensions"), "no rows": (good[:4] + bytes(4) + good[8:], "dimension 0 is 0"),
            "huge": (good[:4] + b"\xff" * 12 + good[16:], "dimension"), "text": (b"<html>" + good[6:], "not an IDX file"),
        }
        for blob, mention in damaged.values():
            with open(path, "wb") as file:
                file.write(blob)
            self.refuse("isgq_train", *self.arguments(), mention=mention)
        os.remove(path)
        self.refuse("isgq_train", *self.arguments(), mention="no such file")
        self.refuse("isgq_train", *self.arguments("--data", "/nonexistent"), mention="/nonexistent")
        if self.unpacks():
            self.damaged_archives(path, good)

    def damaged_archives(self, path, good):
        packed = gzip.compress(good)
        wrong_sum = packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:]
        for blob in (packed[:-20], packed[:-4], packed[:30] + bytes([packed[30] ^ 255]) + packed[31:], wrong_sum):
            with open(path + ".gz", "wb") as file:
                file.write(blob)
            self.refuse("isgq_train", *self.arguments(), mention=os.path.basename(path))

    def test_labels_must_match(self):
        write_data_set(self.folder)
        write_idx(self.folder, "train-labels-idx1-ubyte", (255,), bytes(255))
        self.refuse("isgq_train", *self.arguments(), mention="255 labels")


class Info(Case):
    needs = ["isgq_info"]

    def test_variables(self):
        rows = self.rows("isgq_info", ISGQ_CHUNK_BYTES="128k")
        variables = {row["name"]: row for row in rows if row["kind"] == "variable"}
        self.assertIn("ISGQ_TIMEOUT_MS", variables)
        self.assertEqual(variables["ISGQ_CHUNK_BYTES"]["default"], "64k")
        self.assertNotEqual(variables["ISGQ_CHUNK_BYTES"]["value"], "64k")
        self.assertTrue(all(row["help"] for row in variables.values()))
        self.assertTrue(any(row["line"].startswith("devices ") for row in rows if row["kind"] == "info"))
        self.assertEqual(json.loads(self.succeed("isgq_info", "--json").stdout)[-1]["kind"], "variable")
        self.assertIn("ISGQ_SEED = ", self.succeed("isgq_info", "--config").stdout)


def main(usage):
    global BIN
    if len(sys.argv) < 2 or not os.path.isdir(sys.argv[1]):
        sys.exit(usage)
    BIN = sys.argv[1]
    if not any(map(have, PROGRAMS)):
        print("no program in", BIN)
        sys.exit(77)
    result = unittest.main(argv=[sys.argv[0], *sys.argv[2:]], exit=False).result
    if result.testsRun > 0 and len(result.skipped) == result.testsRun:
        print("skipped:", "; ".join(sorted({reason for _, reason in result.skipped})))
        sys.exit(77)
    sys.exit(not result.wasSuccessful())


if __name__ == "__main__":
    main(__doc__)
