#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""perf/compare and perf/ring_bandwidth: what they make of recorded runs, and a tiny run against whatever is installed.

usage: test_compare.py BIN_DIR [CASE...]      standard library only; exit status as test_programs.py
"""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from test_programs import Case, environment, main
import test_programs

PERF = pathlib.Path(__file__).resolve().parents[2] / "perf"
sys.path.insert(0, str(PERF))
import compare_launch  # noqa: E402
import compare_peers  # noqa: E402
import compare_report  # noqa: E402


def run_of(contender, time_us, bound, place="one host", **more):
    row = {"time_us": time_us, "p99_us": 2 * time_us, "wrong": 0, "nmse": 0, **more}
    return {"place": place, "nranks": 4, "contender": contender, "library": contender.startswith("isgqcoll"), "quantized": "=" in contender,
            "bound": bound, "rows": {1 << 20: row}, "missing": None, "repeated": 0}


def missing_of(contender):
    return {**run_of(contender, 1, 1), "bound": None, "rows": {}, "missing": "not installed (pip install it)"}


def script(name, *words, timeout=60):
    return subprocess.run([sys.executable, str(PERF / name), *words], env=environment(), capture_output=True, text=True, timeout=timeout, check=False)


class CompareSummary(Case):
    def test_slowest_rank_of_each_iteration(self):
        with tempfile.TemporaryDirectory() as folder:
            for rank, (copies, calls) in enumerate((("1 1 4", "0.001 0.002 0.009"), ("2 1 1", "0.003 0.001 0.001"))):
                pathlib.Path(folder, f"rank.{rank}").write_text(f"bound 2000000000 {copies}\nsize 4096 {rank} 0.{rank} {calls}\n")
            bound, rows = compare_peers.read_ranks(folder, 2)
            self.assertEqual(bound, 1.0)  # 2 GB in the median of 2, 1, 4 s
            self.assertEqual(rows[4096], {"time_us": 3000.0, "p99_us": 9000.0, "wrong": 1, "nmse": 0.1})
            with self.assertRaises(compare_launch.Failed):
                compare_peers.read_ranks(folder, 3)

    def test_disturbed_runs_are_those_of_a_low_bound(self):
        runs = [run_of("isgqcoll none", 100, 10.0), run_of("Gloo", 300, 8.9), run_of("MPICH", 300, 9.1), run_of("Gloo", 300, 1.0, "200mbit"),
                run_of("MPICH", 300, 9.0, "200mbit"), missing_of("UCC")]
        self.assertEqual([run["contender"] for run in compare_report.disturbed(runs)], ["Gloo"])
        marked = {row["contender"]: row.get("disturbed") for row in compare_report.summary(runs) if row["place"] == "one host"}
        self.assertEqual(marked, {"isgqcoll none": False, "Gloo": True, "MPICH": False, "UCC": None})

    def test_table_has_medians_the_best_exact_peer_and_who_is_missing(self):
        runs = [run_of("isgqcoll none", time, 10) for time in (90, 100, 500)]
        runs += [run_of("Gloo", 300, 10), run_of("MPICH", 200, 10), run_of("PCCL bits=8", 50, 10), missing_of("UCC")]
        runs[4]["rows"][1 << 20]["wrong"] = 7
        text = "\n".join(compare_report.markdown(compare_report.summary(runs), {}, {}))
        self.assertIn("| 1 MiB | 100 | 300 | 200 (7 wrong) | 50 | MPICH | 2.00 |", text)
        self.assertIn("- UCC: not installed (pip install it)", text)

    def test_bytes_over_the_measured_rate_are_the_limit(self):
        exact = {"nranks": 4, "bytes": 1000}
        self.assertEqual(compare_report.link_seconds(exact, 100), 15)  # 2 * 3/4 * 1000 bytes
        self.assertEqual(compare_report.link_seconds({**exact, "wire_bytes": 300}, 100), 3)

    def test_a_sweep_where_sizes_allow_one(self):
        self.assertEqual(compare_peers.sweeps([8, 64, 512]), [["-b", "8", "-e", "512", "-f", "8"]])
        self.assertEqual(compare_peers.sweeps([8, 64, 100]), [["-b", str(size), "-e", str(size)] for size in (8, 64, 100)])
        self.assertEqual(compare_report.sizes_of("1m,8,4k"), [8, 4096, 1 << 20])


class CompareRuns(Case):
    needs = ["isgq_perf"]

    def test_one_host_against_what_is_installed(self):
        with tempfile.TemporaryDirectory() as folder:
            ran = script("compare", test_programs.BIN, "--places", "host", "-n", "2", "--sizes", "8,4k", "-w", "1", "-i", "2", "--repeat", "1",
                         "--retries", "0", "-q", "none;uniform:bits=4", "--only", "isgqcoll,open mpi,mpich,gloo,ucc", "--build", folder, "-J", "-")
            self.assertEqual(ran.returncode, 0, ran.stderr)
            rows = json.loads(ran.stdout)["summary"]
        at = {(row["contender"], row.get("bytes")): row for row in rows}
        for name in ("isgqcoll none", "isgqcoll uniform:bits=4"):
            self.assertGreater(at[name, 4096]["time_us"], 0, ran.stderr)
            self.assertEqual(at[name, 8]["wrong"], 0)
        for name in ("Open MPI", "MPICH", "Gloo", "UCC"):
            found = [row for row in rows if row["contender"] == name]
            if "missing" in found[0]:
                self.assertRegex(found[0]["missing"], r"^not installed \(apt-get install ")
            else:
                self.assertEqual([(row["bytes"], row["wrong"], row["nmse"]) for row in found], [(8, 0, 0), (4096, 0, 0)])
                self.assertGreater(found[0]["bound"], 0)

    def test_a_failing_contender_is_a_row(self):
        with tempfile.TemporaryDirectory() as folder:
            broken = pathlib.Path(folder, "isgq_perf")
            broken.write_text("#!/bin/sh\necho it is broken >&2\nexit 3\n")
            broken.chmod(0o755)
            ran = script("compare", folder, "--places", "host", "-n", "2", "--sizes", "8", "--repeat", "1", "-q", "none", "--only", "isgqcoll")
        self.assertEqual(ran.returncode, 0, ran.stderr)
        self.assertIn("- isgqcoll none: failed: it is broken", ran.stdout)

    def test_refusals(self):
        for words, mention in ((["--only", "nccl"], "nccl: none of"), (["--program", "gloo=/nowhere"], "/nowhere is no file"), (["--sizes", "7"], "'7'"), (["-n", "1"], "2 or more")):
            ran = script("compare", test_programs.BIN, *words)
            self.assertEqual(ran.returncode, 2, ran.stderr)
            self.assertIn(mention, ran.stderr)
        ran = script("ring_bandwidth", test_programs.BIN, "--rate", "1gbit", "--orders", "0:1:2:0")
        self.assertEqual(ran.returncode, 2, ran.stderr)
        self.assertIn("--orders 0:1:2:0", ran.stderr)

    def test_ring(self):
        ran = script("ring_bandwidth", test_programs.BIN, "-n", "2", "--sizes", "64k", "-q", "none;uniform:bits=8", "-i", "2", "--repeat", "1", "-J", "-")
        self.assertEqual(ran.returncode, 0, ran.stderr)
        rows = {row["quantizer"]: row for row in json.loads(ran.stdout)}
        self.assertGreater(rows["none"]["wire_bytes"], 3 * rows["uniform:bits=8"]["wire_bytes"])
        for row in rows.values():
            self.assertAlmostEqual(row["hop_gbs"], row["wire_bytes"] / row["time_us"] * 1e-3, places=9)
            self.assertAlmostEqual(row["share"] * row["bound_gbs"], row["link_gbs"], places=9)


class CompareOrders(Case):
    def test_hops_of_the_busiest_link(self):
        loader = {"__name__": "ring", "__file__": str(PERF / "ring_bandwidth")}
        exec(compile((PERF / "ring_bandwidth").read_text(), "ring_bandwidth", "exec"), loader)  # a program without .py
        for name, order, hops in (("packed", [0, 0, 1, 1], 1), ("alternating", [0, 1, 0, 1], 2), ("0:1:1:0", [0, 1, 1, 0], 1)):
            self.assertEqual(loader["order_of"](name, 4, 2), order)
            self.assertEqual(loader["busiest"](order), hops)


if __name__ == "__main__":
    os.environ.setdefault("LC_ALL", "C")
    main(__doc__)
