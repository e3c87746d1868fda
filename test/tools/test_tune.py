#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""isgq_tune end to end: what it writes is what isgq_perf and isgq_model take, and what does not fit is said in one line.

usage: test_tune.py BIN_DIR [CASE...]      standard library only; exit status as test_programs.py
"""
import json
import os
import pathlib
import tempfile

from test_programs import Case, environment, main, run

TINY = ["-n", "2", "-b", "256", "-e", "4k", "-i", "3", "-q", "uniform:bits=4;isgq:bits=4"]


class Tune(Case):
    needs = ["isgq_tune", "isgq_perf", "isgq_model", "isgq_plan"]

    def setUp(self):
        super().setUp()
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.table = os.path.join(self.folder.name, "table")

    def perf(self):
        result = run("isgq_perf", "-n", "2", "-b", "64k", "-e", "64k", "-i", "1", "-q", "uniform:bits=4", "-J", "-", ISGQ_TUNE_TABLE=self.table)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stderr, "")
        return json.loads(result.stdout)[0]

    def plan(self, nranks="2"):
        """Where a call is decided without ranks."""
        result = run("isgq_plan", "-n", nranks, "-r", "0", "--count", "16k", "-q", "uniform:bits=4", ISGQ_TUNE_TABLE=self.table)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result

    def change(self, key, value):
        """The table with one line changed."""
        with open(self.table, encoding="utf-8") as file:
            lines = file.readlines()
        changed = [f"{key} = {value}\n" if line.startswith(key + " = ") else line for line in lines]
        self.assertNotEqual(lines, changed)
        with open(self.table, "w", encoding="utf-8") as file:
            file.writelines(changed)

    def test_measured_written_and_used(self):
        rows = self.rows("isgq_tune", *TINY, "-o", self.table)
        self.assertIn(4096, [row["bytes"] for row in rows if row["of"] == "isgq:bits=4" and row["measured"] == "allreduce"])
        self.assertEqual({row["measured"] for row in rows}, {"allreduce", "link", "copy", "sum", "product", "factors", "encode", "decode", "predicted"})
        self.assertTrue(all(row["time_us"] > 0 for row in rows if row["measured"] not in ("link",)))
        self.assertEqual([row["bytes"] for row in rows if row["of"] == "inside a host" and row["measured"] == "allreduce"], [256, 1024, 4096])
        for key in ("host_rate", "copy_rate", "sum_rate"):
            self.change(key, "1e12")  # links that make codes a loss
        self.change("host_latency", "1e-9")  # as measured on a busy machine it might be all that counts
        row = self.perf()
        self.assertIn("values as they are", row["why"])
        self.assertEqual(row["nmse"], 0)
        self.assertIn("values as they are", self.plan().stdout)
        self.change("host_rate", "1e3")  # and a gain
        self.assertNotIn("values as they are", self.perf()["why"])
        seen = self.rows("isgq_model", "--table", self.table, "-l", "100x100", "-q", "none")
        self.assertEqual({row["nranks"] for row in seen}, {2})
        wire = next(row["wire_s"] for row in seen if row["way"] == "direct")
        self.assertAlmostEqual(wire, 4 * 100 * 100 / 1e3)
        other = self.rows("isgq_model", "--table", self.table, "--cluster", "4@1GB/s:1us", "--copy", "1", "-l", "100x100", "-q", "none")
        self.assertEqual({row["nranks"] for row in other}, {4})
        self.tables_that_do_not_fit()

    def tables_that_do_not_fit(self):
        """One line says why, and nothing else is different."""
        good = pathlib.Path(self.table).read_text(encoding="utf-8")
        warnings = [self.plan("3").stderr]
        self.assertIn("2 ranks per host, here 3", warnings[0])
        for key, value, words in (("cpu", "Abacus", "another machine"), ("cores", "999", "999 cores"), ("hosts", "many", "line"),
                                  ("version", "2", "format 2")):
            self.change(key, value)
            warnings.append(self.plan().stderr)
            self.assertIn(words, warnings[-1])
            pathlib.Path(self.table).write_text(good, encoding="utf-8")
        os.unlink(self.table)
        warnings.append(self.plan().stderr)
        for warning in warnings:
            self.assertEqual(warning.count("\n"), 1, warning)
            self.assertIn("not used", warning)

    def test_refusals(self):
        self.refuse("isgq_tune", "-n", "1")
        self.refuse("isgq_tune", "-n", "2", "-b", "4M", "-e", "4M", mention="--end")
        self.refuse("isgq_model", "--table", "/nowhere/table", mention="cannot be read")
        self.refuse("isgq_tune", "-n", "2", "-o", "/nowhere/table", mention="/nowhere/table")
        self.refuse("isgq_tune", *TINY[:-1], "none", "-o", self.table, status=2, mention="none")
        self.assertIn("-n RANKS", run("isgq_tune").stderr)
        self.assertNotIn("ISGQ_TUNE_TABLE", environment())


if __name__ == "__main__":
    main(__doc__)
