#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What isgq_quality says of quantizers whose errors are known: exact ones, unbiased and biased ones, and results that are spoiled.

usage: test_quality.py BIN_DIR [CASE...]      standard library only; exit status as test_programs.py
"""
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

import test_programs
from test_programs import Case, main, run, write_data_set

FIELDS = {"source", "kind", "quantizer", "typed", "family", "nranks", "count", "draws", "correlation", "bits", "ratio", "gain", "nmse", "bias",
          "encode_gbs", "decode_gbs"}


class QualityCase:
    needs = ["isgq_quality"]

    def quality(self, *arguments, **more):
        rows = self.rows("isgq_quality", *arguments, **more)
        self.assertGreater(len(rows), 0)
        for row in rows:
            self.assertEqual(set(row), FIELDS)
            self.assertAlmostEqual(row["bits"] * row["ratio"], 32, places=3)
            self.assertGreaterEqual(row["nmse"], 0)
        return rows

    def drawn(self, quantizers, *arguments, count="32k", **more):
        return self.quality("-n", "2", "--count", count, "-q", quantizers, *arguments, **more)

    def folder(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        return temporary.name

    def floats(self, values):
        path = os.path.join(self.folder(), "values.f32")
        with open(path, "wb") as file:
            file.write(struct.pack(f"<{len(values)}f", *values))
        return path


class Quality(QualityCase, Case):
    def test_rows(self):
        rows = self.drawn("none;uniform:bits=4;isgq:bits=3", "--draws", "4")
        self.assertEqual([row["family"] for row in rows], ["none", "uniform", "isgq"])
        self.assertEqual([row["typed"] for row in rows], ["none", "uniform:bits=4", "isgq:bits=3"])
        for row in rows:
            self.assertEqual((row["source"], row["kind"], row["nranks"], row["count"], row["draws"]), ("normal", "dense", 2, 32768, 4))
            self.assertGreater(row["encode_gbs"], 0)
            self.assertGreater(row["decode_gbs"], 0)
        self.assertLess(rows[0]["nmse"], 1e-13)
        self.assertLess(abs(rows[0]["bits"] - 32), 0.1)

    def test_table(self):
        text = self.succeed("isgq_quality", "-n", "2", "--count", "1k", "--draws", "2", "-q", "none;uniform:bits=4").stdout.splitlines()
        self.assertRegex(text[0], "^# isgq_quality: normal, 1024 elements on each of 2 ranks, 2 draws, seed 1")
        self.assertRegex(text[1], "^kind +quantizer +family +bits +ratio +gain +nmse +bias +encode +decode$")
        self.assertRegex(text[2], "^ +std err +GB/s +GB/s$")
        self.assertRegex(text[4], "^dense +uniform:bits=4 +uniform ")
        self.assertEqual(len(text), 5)

    def test_table_of_ratios(self):
        """Half way between two budgets the error is their geometric mean; beyond them nothing is compared."""
        rows = [("isgq:bits=2", 2, 0.4), ("isgq:bits=4", 4, 0.1), ("isgq:nmse=0.1", 3, 9), ("eden:bits=3", 3, 0.6), ("natural", 9, 0.1)]
        path = os.path.join(self.folder(), "rows.json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump([{"source": "normal", "kind": "dense", "typed": typed, "family": typed.partition(":")[0], "bits": bits, "nmse": nmse}
                       for typed, bits, nmse in rows], file)
        program = pathlib.Path(__file__).parents[2] / "perf" / "quality_table.py"
        text = subprocess.run([sys.executable, program, path], stdout=subprocess.PIPE, check=True, text=True).stdout
        self.assertIn("| `isgq:nmse=0.1` | 3.00 | 9 |", text)
        self.assertIn("| `eden:bits=3` | 3.00 | 0.6 (3) |", text)
        self.assertIn("| `natural` | 9.00 | 0.1 |", text)

    def test_all_presets_run_or_are_named(self):
        result = self.succeed("isgq_quality", "-n", "2", "--count", "4k", "--draws", "2", "-J", "-")
        typed = [row["typed"] for row in json.loads(result.stdout)]
        self.assertEqual(len(typed), len(set(typed)))
        for preset in ("none", "fp16", "bf16", "uniform:bits=2", "isgq:bits=8,coding=none", "eden:bits=4", "onebit", "terngrad"):
            self.assertTrue(preset in typed or preset in result.stderr, preset)
        self.assertLessEqual(result.stderr.count("\n"), 1)
        self.assertNotIn("factor:width=4", typed)

    def test_a_seed_decides_everything(self):
        first, second, other = (self.drawn("uniform:bits=3;isgq:bits=2", "--draws", "4", "-s", seed) for seed in ("7", "7", "8"))
        for row in (*first, *second, *other):
            for name in ("encode_gbs", "decode_gbs"):
                del row[name]
        self.assertEqual(first, second)
        self.assertNotEqual([row["nmse"] for row in first], [row["nmse"] for row in other])

    def test_the_bytes_are_those_of_the_call(self):
        if not test_programs.have("isgq_perf"):
            self.skipTest("isgq_perf was not built")
        for nranks, quantizers in (("2", ["none", "uniform:bits=4", "bf16"]), ("3", ["isgq:bits=2,coding=none", "uniform:bits=8,scale=local"])):
            rows = self.quality("-n", nranks, "--count", "64k", "--draws", "3", "-q", ";".join(quantizers))
            calls = self.rows("isgq_perf", "-n", nranks, "-o", "avg", "-b", "256k", "-e", "256k", "-i", "1", "-w", "0", "-q",
                              ";".join(quantizers))
            self.assertEqual([row["quantizer"] for row in rows], [row["quantizer"] for row in calls])
            for row, call in zip(rows, calls):
                self.assertAlmostEqual(row["ratio"], call["ratio"], places=4)

    def test_refusals(self):
        for arguments, mention in (
                (["--count", "0"], "--count"), (["-q", "unifrom"], "unifrom"), (["--source", "/nonexistent"], "/nonexistent"),
                (["--kind", "sparse"], "sparse"), (["--kind", "both"], "train"), (["--steps", "5"], "--steps"), (["--draws", "1"], "--draws"),
                (["--correlation", "2"], "--correlation"), (["-q", "none;;none"], "empty"), (["-q", "factor:width=4"], "factored"),
                (["--source", "train", "--steps", "5,5"], "5"), (["--source", "train", "--steps", "x"], "x"),
                (["--source", "train", "--layer", "9"], "--layer"), (["--m", "8"], "--m"), (["--source", "factors", "--count", "8"], "--count"),
                (["--source", "factors", "--steps", "5"], "--steps"), (["--batch", "8"], "--batch"), (["--source", "train", "--count", "8"], "--count"),
                (["--source", "train", "--data", "/nonexistent"], "/nonexistent"), (["-t", "nccl"], "nccl"),
                (["-J", "/nonexistent/file"], "/nonexistent/file")):
            self.refuse("isgq_quality", "-n", "2", "--seed", "1", *arguments, mention=mention)
        self.refuse("isgq_quality", "--count", "64", mention="-n")


class QualityOracles(QualityCase, Case):
    """Figures that follow from the definition."""

    def test_distributions(self):
        for source in ("normal", "laplace", "student3"):
            for correlation in (0.0, 0.5, 1.0):
                row = self.drawn("none", "--draws", "2", "--source", source, "--correlation", str(correlation), count="64k")[0]
                self.assertAlmostEqual(row["correlation"], correlation, delta=0.1 if source == "student3" else 0.02)

    def test_heavier_tails_err_more(self):
        errors = [self.drawn("uniform:bits=4", "--draws", "4", "--source", source)[0]["nmse"] for source in ("normal", "laplace", "student3")]
        self.assertLess(2 * errors[0], errors[1])
        self.assertLess(2 * errors[1], errors[2])

    def test_a_file_of_what_16_bits_hold(self):
        path = self.floats([float(i % 61 - 30) / 4 for i in range(4099)])  # the sums too
        rows = self.quality("-n", "2", "--source", path, "--draws", "2", "-q", "none;fp16;uniform:bits=8")
        self.assertEqual([row["count"] for row in rows], [2049] * 3)
        self.assertEqual([row["nmse"] for row in rows[:2]], [0, 0])
        self.assertEqual(rows[1]["bias"], 0)
        self.assertGreater(rows[2]["nmse"], 0)
        rows = self.quality("-n", "2", "--source", path, "--count", "1k", "--draws", "2", "-q", "fp16")
        self.assertEqual((rows[0]["count"], rows[0]["nmse"]), (1024, 0))

    def test_a_file_of_rank_one(self):
        part = [float(i // 96 % 7 - 3) * float(i % 96 % 11 - 5) for i in range(96 * 96)]
        rows = self.quality("-n", "2", "--source", self.floats(part + part), "--draws", "4", "-q",
                            "powersgd:rank=1;powersgd:rank=4,feedback=off;powersgd:rank=60")
        for row in rows:
            self.assertLess(row["nmse"], 1e-9)
            self.assertIsNone(row["encode_gbs"])
        self.assertGreater(rows[0]["ratio"], 38)  # 9216 numbers are 192
        self.assertLess(abs(rows[2]["ratio"] - 1), 0.1)  # sent as it is

    def test_bad_files(self):
        values = [1.0] * 64
        values[37] = float("nan")
        self.refuse("isgq_quality", "-n", "2", "--source", self.floats(values), mention="element 37 is not finite")
        self.refuse("isgq_quality", "-n", "2", "--source", self.floats([1.0]), mention="too few")
        with open(self.floats([1.0, 2.0]), "ab") as file:
            file.write(b"x")
        self.refuse("isgq_quality", "-n", "2", "--source", file.name, mention="9 bytes")

    def test_a_file_of_zeros(self):
        row = self.quality("-n", "2", "--source", self.floats([0.0] * 64), "--draws", "2", "-q", "uniform:bits=4")[0]
        self.assertEqual((row["nmse"], row["bias"]), (0, 0))

    def test_bias(self):
        for source in ("normal", "student3"):
            rows = self.drawn("none;uniform:bits=1;uniform:bits=4;uniform:bits=4,scale=local;isgq:bits=3,coding=none", "--source", source)
            for row in rows:
                self.assertLess(row["bias"], 5, row)
            rows = self.drawn("fp16;bf16;uniform:bits=2,rounding=nearest;uniform:bits=4,rounding=nearest", "--source", source)
            for row in rows:
                self.assertGreater(row["bias"], 20, row)

    def test_spoiled_results_have_known_errors(self):
        library = os.path.join(os.path.dirname(os.path.abspath(test_programs.BIN)), "lib", "isgq_spoil.so")
        if not os.path.exists(library):
            self.skipTest("the library that spoils is for builds without sanitizers")
        for how, nmse in (("zero", 1.0), ("flip", 4.0)):
            row = self.drawn("bf16", "--draws", "2", LD_PRELOAD=library, SPOIL=how)[0]
            self.assertAlmostEqual(row["nmse"], nmse, places=3)
            self.assertGreater(row["bias"], 1e4)
        row = self.drawn("bf16", "--draws", "2", "--correlation", "0", LD_PRELOAD=library, SPOIL="lost")[0]
        self.assertAlmostEqual(row["nmse"], 0.5, delta=0.02)  # one of two independent ranks


class QualityTraining(QualityCase, Case):
    def train(self, *arguments):
        folder = self.folder()
        write_data_set(folder)
        return self.quality("-n", "2", "--source", "train", "--data", folder, "--layers", "16,12,3", "--batch", "8", "--lr", "0.5",
                            "--steps", "0,5,40", *arguments)

    def test_both_kinds(self):
        rows = self.train("-q", "none;uniform:bits=8;isgq:bits=8", "--draws", "8")
        self.assertEqual([(row["kind"], row["family"]) for row in rows],
                         [(kind, family) for kind in ("dense", "factored") for family in ("none", "uniform", "isgq")])
        for row in rows:
            self.assertEqual(row["count"], 17 * 12 + 13 * 3)
            self.assertLess(row["nmse"], 1e-12 if row["family"] == "none" else 1e-2)
            self.assertEqual(row["encode_gbs"] is None, row["kind"] == "factored")

    def test_one_layer(self):
        rows = self.train("-q", "uniform:bits=4", "--kind", "dense", "--layer", "2", "--draws", "2")
        self.assertEqual([row["count"] for row in rows], [13 * 3])

    def test_factors_are_unbiased(self):
        for row in self.train("-q", "factor:width=4;factor:bits=4", "--kind", "factored"):
            self.assertLess(row["bias"], 5, row)

    def test_drawn_factors(self):
        rows = self.quality("-n", "2", "--source", "factors", "--batch", "16", "--m", "60", "--n", "40", "--draws", "4", "-q",
                            "none;uniform:bits=4;isgq:bits=8;isgq:bits=2")
        self.assertEqual([row["kind"] for row in rows].count("factored"), 4)
        found = {(row["kind"], row["typed"]): row for row in rows}
        for row in rows:
            self.assertEqual(row["count"], 61 * 40)
        for kind in ("dense", "factored"):  # the product of the factors is the gradient: nothing is lost but float rounding
            self.assertLess(found[kind, "none"]["nmse"], 1e-12)
        self.assertLess(found["factored", "isgq:bits=8"]["nmse"], 1e-3)
        self.assertGreater(found["factored", "isgq:bits=2"]["nmse"], found["factored", "isgq:bits=8"]["nmse"])

    def test_no_such_step(self):
        folder = self.folder()
        write_data_set(folder)
        arguments = ("-n", "2", "--source", "train", "--data", folder, "--layers", "16,12,3", "--batch", "8")
        self.refuse("isgq_quality", *arguments, "--epochs", "2", "--steps", "32", mention="no step 32 in 2 epochs of 16 steps")
        self.refuse("isgq_quality", *arguments, "--batch", "200", mention="256 training images")
        self.refuse("isgq_quality", *arguments, "--layers", "15,3", mention="16 pixels")

    def test_it_is_the_training_of_isgq_train(self):
        """The error of one quantizer over the first steps of either program: the same gradients, other random numbers."""
        if not test_programs.have("isgq_train"):
            self.skipTest("isgq_train was not built")
        folder = self.folder()
        write_data_set(folder)
        common = ("-n", "2", "--data", folder, "--layers", "16,12,3", "--batch", "8", "--lr", "0.5", "--epochs", "3")
        trained = self.rows("isgq_train", *common, "--grad", "dense:fp16")[0]  # one measured step: 0
        row = self.quality("--source", "train", *common, "--steps", "0", "--kind", "dense", "-q", "fp16", "--draws", "2")[0]
        self.assertAlmostEqual(row["nmse"] / trained["nmse"], 1, places=4)


if __name__ == "__main__":
    main(__doc__)
