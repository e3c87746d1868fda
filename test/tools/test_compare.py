#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""perf/compare, perf/ring_bandwidth and perf/check_model: what they make of recorded runs, and a tiny run against whatever is installed.

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


def program_of(name):
    """The functions of a program without .py."""
    loader = {"__name__": name, "__file__": str(PERF / name)}
    exec(compile((PERF / name).read_text(), name, "exec"), loader)
    return loader


class CompareModel(Case):
    def test_chooser_beside_the_best_fixed_choice(self):
        check = program_of("check_model")["Check"](None, compare_launch.Place(), 2, "/nowhere")
        check.times = {("dense", "none", 64): {"direct": [8.0, 20.0, 8.0], "levels": [9.0, 9.0, 10.0], "chooser": [9.0, 9.0, 9.0]},
                       ("dense", "bf16", 64): {"direct": [5.0, 6.0, 7.0], "levels": [7.0, 7.0, 7.0], "chooser": [5.5, 6.0, 8.4]}}
        check.whys = {(("dense", quantizer, 64), "chooser"): "because" for quantizer in ("none", "bf16")}
        none, bf16 = check.choices()
        self.assertEqual((none["best"], none["fixed_ms"]), ("none direct", {"none direct": 8, "none levels": 9}))
        self.assertAlmostEqual(none["over_none"], 9 / 8 - 1)
        self.assertEqual((bf16["best"], bf16["chooser_ms"]), ("direct", 6))
        self.assertAlmostEqual(bf16["over_best"], 0.1)  # the median of 1.1, 1 and 1.2
        self.assertAlmostEqual(bf16["over_none"], 5.5 / 8 - 1)
        check.predict = lambda quantizer, size: {"direct": 4.0, "levels": 10.5}
        rows = {(row["quantizer"], row["algorithm"]): row["deviation"] for row in check.predictions()}
        self.assertEqual(rows, {("none", "direct"): -0.5, ("none", "levels"): 10.5 / 9 - 1, ("bf16", "direct"): 4 / 6 - 1, ("bf16", "levels"): 0.5})
        text = program_of("check_model")["markdown"](check.predictions(), check.choices())
        self.assertIn("| +50 % |", text)
        self.assertIn("**direct 6**, levels 7, none direct 8", text)

    def test_tiny_run(self):
        ran = script("check_model", test_programs.BIN, "--places", "host", "--sizes", "4k", "-q", "uniform:bits=4", "-w", "0", "-i", "1", "--repeat", "1",
                     "--factored", "none", "-J", "-")
        self.assertEqual(ran.returncode, 0, ran.stderr)
        rows = json.loads(ran.stdout)
        self.assertEqual({row["quantizer"] for row in rows["predictions"]}, {"none", "uniform:bits=4"})
        self.assertEqual({(row["call"], row["quantizer"]) for row in rows["choices"]},
                         {("dense", "none"), ("dense", "uniform:bits=4")})
        self.assertTrue(all(row["predicted_ms"] > 0 for row in rows["predictions"]))


class CompareOrders(Case):
    def test_hops_of_the_busiest_link(self):
        loader = program_of("ring_bandwidth")
        for name, order, hops in (("packed", [0, 0, 1, 1], 1), ("alternating", [0, 1, 0, 1], 2), ("0:1:1:0", [0, 1, 1, 0], 1)):
            self.assertEqual(loader["order_of"](name, 4, 2), order)
            self.assertEqual(loader["busiest"](order), hops)


if __name__ == "__main__":
    os.environ.setdefault("LC_ALL", "C")
    main(__doc__)
