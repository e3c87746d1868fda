#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""From what run.sh left behind to one JSON file and to tables.

usage: report.py LOGS [--json FILE] [--quiet | --markdown]

  LOGS        the folder gpu-report.logs of run.sh; what is missing in it is missing in the report
  --json      write everything to FILE
  --quiet     print nothing
  --markdown  print the tables of docs/performance-gpu.md instead of the short ones
"""
import argparse
import json
import pathlib
import sys

ABSENT = "not yet run"
GOAL = 0.85  # of the copy, for f32 at 4 and 8 bits
GOAL_ROWS = ("encode", "decode", "decode-add", "add")
PRODUCTS = ("product", "cuBLASLt int8")
ROW_KEY = ("name", "type", "bits", "width", "bucket", "rounding")


def rows_of(path):
    """The JSON objects of a file that has one a line, whether or not its writer came to the end."""
    found = []
    if path.is_file():
        for line in path.read_text(errors="replace").splitlines():
            try:
                row = json.loads(line.strip().strip("[],"))
            except ValueError:
                continue
            if isinstance(row, dict):
                found.append(row)
    return found


def part(rows, name):
    return [row for row in rows if row.get("part") == name]


def collect(logs):
    meta = logs / "meta.txt"
    report = dict(line.split("=", 1) for line in meta.read_text(errors="replace").splitlines() if "=" in line) if meta.is_file() else {}
    steps = []
    if (logs / "steps.txt").is_file():
        for line in (logs / "steps.txt").read_text(errors="replace").splitlines():
            kind, name, result, seconds, note = (line.split("|", 4) + [""] * 5)[:5]
            steps.append({"kind": kind, "name": name, "result": result, "seconds": float(seconds or 0), **({"note": note} if note else {})})
    for kind, name in (("test", "tests"), ("sanitizer", "sanitizers")):
        report[name] = [{k: v for k, v in step.items() if k != "kind"} for step in steps if step["kind"] == kind]
    for test in report["tests"]:
        test["way"] = test["name"].split(".")[0]
    report["passed"] = sum(step["result"] == "passed" for step in report["tests"])
    report["failed"] = sum(step["result"] in ("failed", "timed out", "not run") for step in report["tests"])
    report["skipped"] = [step["name"] for step in report["tests"] if step["result"] == "skipped"]
    report["steps"] = [step for step in steps if step["kind"] not in ("test", "sanitizer")]
    kernels, calls, torch = (rows_of(logs / f"{name}.out") for name in ("kernels", "calls", "torch"))
    report["device"] = (part(kernels, "device") or part(calls, "device") or [None])[0]
    report["kernels"] = part(kernels, "kernel")
    report["factors"] = part(kernels, "factor")
    report["calls"] = part(calls, "call")
    report["torch_device"] = (part(torch, "device") or [None])[0]
    report["torch"] = part(torch, "torch")
    report["isgq_perf"] = [{"way": path.stem[len("perf_"):].rpartition("_")[0], **row} for path in sorted(logs.glob("perf_*.out")) for row in rows_of(path)]
    report["isgq_train"] = [row for path in sorted(logs.glob("train_*.out")) for row in rows_of(path)]
    return report


# ---- tables: a head and rows of texts ----

def number(row, name, form):
    return ABSENT if row is None or row.get(name) is None else form.format(row[name])


def has_goal(row):
    return row["name"] in GOAL_ROWS and row["type"] == "f32" and row.get("bits") == row.get("width")


def verdict(row):
    if not has_goal(row):
        return ""
    text = f"{100 * GOAL:.0f} %"
    return text if row.get("ratio") is None else text + (": met" if row["ratio"] >= GOAL else ": missed")


def kernels_table(report):
    rivals = {tuple(row.get(key) for key in ROW_KEY): row for row in report["torch"]}
    rows = []
    for row in report["kernels"]:
        rival = rivals.get(tuple(row.get(key) for key in ROW_KEY))
        in_torch = row["type"] == "f32" and row["name"] in ("copy", "reduce", "measure", "encode", "decode", "decode-add") and \
            row.get("bucket", 1024) == 1024 and row.get("width") == row.get("bits")
        bucket = "tensor" if row.get("bucket") == 0 else str(row.get("bucket", ""))
        rows.append([row["name"], row["type"], str(row.get("bits", "")), str(row.get("width", "")), bucket, row.get("rounding", ""),
                     number(row, "us", "{:.2f}"), number(row, "gbs", "{:.0f}"), number({**row, "share": 100 * row["ratio"]} if "ratio" in row else None,
                                                                                         "share", "{:.1f} %"),
                     verdict(row), number(rival, "us", "{:.2f}") if in_torch else ""])
    return ["kernel", "type", "bits", "width", "bucket", "rounding", "us", "GB/s", "of copy", "goal", "PyTorch us"], rows


def factors_table(report):
    rows = [[row["name"], str(row["rows"]), str(row["m"]), str(row["n"]), row["quantizer"], row.get("skipped") or number(row, "us", "{:.1f}"),
             "" if row["name"] in PRODUCTS else number(row, "gbs", "{:.0f}"), number(row, "tops", "{:.0f}") if row["name"] in PRODUCTS else "",
             "" if row["name"] == PRODUCTS[1] else number({"share": 100 * row["ratio"]} if "ratio" in row else None, "share", "{:.1f} %")]
            for row in report["factors"]]
    return ["factors", "rows", "m", "n", "quantizer", "us", "GB/s", "TOPS", "of copy, of cuBLASLt"], rows


def calls_table(report):
    rows = [[row["name"], str(row["ranks"]), row["way"], row["mode"], row["quantizer"], str(row["bytes"])] +
            ([row["skipped"], ""] if "skipped" in row else [number(row, "us", "{:.0f}"), number(row, "gbs", "{:.2f}")]) for row in report["calls"]]
    return ["call", "ranks", "over", "mode", "quantizer", "bytes", "us", "GB/s"], rows


def perf_table(report):
    rows = [[row.get("coll", ""), str(row.get("nranks", "")), row["way"], row.get("quantizer", ""), str(row.get("bytes", "")), number(row, "time_us", "{:.0f}"),
             number(row, "algbw_gbs", "{:.2f}"), number(row, "nmse", "{:.2e}"), str(row.get("wrong", ""))] for row in report["isgq_perf"]]
    return ["isgq_perf", "ranks", "over", "quantizer", "bytes", "us", "GB/s", "nmse", "wrong"], rows


def train_table(report):
    rows = [[row.get("mode", ""), str(row.get("nranks", "")), row.get("quantizer", ""), str(row.get("batch", "")), number(row, "accuracy", "{:.2f}"),
             number(row, "loss", "{:.4f}"), number(row, "nmse", "{:.2e}"), number(row, "seconds", "{:.2f}"), number(row, "comm_seconds", "{:.2f}"),
             str(row.get("grad_bytes", "")), number(row, "ratio", "{:.2f}")] for row in report["isgq_train"]]
    return ["isgq_train", "ranks", "quantizer", "rows/rank", "accuracy %", "loss", "nmse", "s", "calls s", "bytes", "ratio"], rows


def tests_table(report):
    results = ("passed", "failed", "timed out", "not run", "skipped")
    ways = list(dict.fromkeys(test["way"] for test in report["tests"]))
    rows = [[way] + [str(sum(test["way"] == way and test["result"] == result for test in report["tests"])) for result in results] for way in ways]
    return ["tests over", *results], rows


def steps_table(report, everything):
    steps = report["tests"] + report["sanitizers"] + report["steps"]
    rows = [[step["name"], step["result"], f"{step['seconds']:.1f}", step.get("note", "")[:120]] for step in steps if everything or step["result"] != "passed"]
    return ["step", "result", "seconds", "note"], rows


def print_plain(table):
    head, rows = table
    if not rows:
        return
    widths = [max(len(row[i]) for row in [head] + rows) for i in range(len(head))]
    print()
    for row in [head] + rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())


def print_markdown(table):
    head, rows = table
    print()
    for row in [head, ["---"] * len(head)] + rows:
        print("| " + " | ".join(text.replace("|", "/") for text in row) + " |")


def machine(report):
    return f"{report.get('gpu', 'no GPU')}, driver {report.get('driver', '?')}, CUDA {report.get('cuda', '?')}, nvcc {report.get('nvcc', '?')}, " \
           f"{report.get('date', '?')}, commit {report.get('commit', 'unknown')}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("logs", type=pathlib.Path)
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--quiet", action="store_true")
    kind.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    report = collect(options.logs)
    if options.json:
        text = json.dumps(report, indent=1) + "\n"
        partial = options.json.with_name(options.json.name + ".partial")
        partial.write_text(text)
        partial.replace(options.json)
    if options.quiet:
        return 0
    put = print_markdown if options.markdown else print_plain
    print("\n" + machine(report))
    for table in (kernels_table(report), factors_table(report), calls_table(report), perf_table(report), train_table(report), tests_table(report),
                  steps_table(report, options.markdown)):
        put(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
