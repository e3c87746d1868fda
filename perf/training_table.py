#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Train the paper's network with several quantizers and several seeds, and print one table: accuracy, error, ratio, gain.

    perf/training_table.py build/release/bin -n 4 --batch 128 --epochs 2 --seeds 1,2,3 exact isgq:bits=4 factored:isgq:bits=2 ...

A quantizer stands for its dense call; "factored:" in front of it for its factored one; "exact" for f32. Runs that fail or diverge
are rows like the others. Rows are Markdown, in the order given; accuracy is the mean over seeds, with the smallest and largest.
"""
import argparse
import json
import math
import pathlib
import statistics
import subprocess
import sys


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bin", type=pathlib.Path, help="folder of the programs")
    parser.add_argument("quantizers", nargs="+", help='"exact", a quantizer, or "factored:" and a quantizer')
    parser.add_argument("-n", "--nranks", default=4, type=int, help="local ranks (default %(default)s)")
    parser.add_argument("--batch", default=128, type=int, help="rows of each rank (default %(default)s)")
    parser.add_argument("--total-batch", type=int, help="rows of all ranks together, instead of --batch")
    parser.add_argument("--epochs", default=2, type=int, help="default %(default)s")
    parser.add_argument("--seeds", default="1,2,3", help="default %(default)s")
    parser.add_argument("--json", type=pathlib.Path, help="where to write all rows of all runs")
    return parser.parse_args()


def train(options, quantizer, seed):
    """The row that isgq_train prints, or the sentence with which it ended."""
    mode, text = "dense", quantizer
    if quantizer == "exact":
        mode, text = "exact", "none"
    elif quantizer.startswith("factored:"):
        mode, text = "factored", quantizer.removeprefix("factored:")
    rows = ["--total-batch", str(options.total_batch)] if options.total_batch else ["--batch", str(options.batch)]
    command = [str(options.bin / "isgq_train"), "-n", str(options.nranks), "--grad", mode, "-q", text, "--epochs", str(options.epochs),
               *rows, "--seed", str(seed), "-J", "-"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        return (ran.stderr.strip().splitlines() or [f"exit status {ran.returncode}"])[-1]
    return json.loads(ran.stdout)[0]


def number(value):
    """What is not finite is null in JSON: the training diverged."""
    return math.inf if value is None else value


def line(quantizer, rows):
    good = [row for row in rows if isinstance(row, dict)]
    if not good:
        return f"| `{quantizer}` | {rows[0]} | | | | |"
    accuracy = [row["accuracy"] for row in good]
    middle = {name: statistics.median(number(row[name]) for row in good) for name in ("nmse", "ratio", "gain", "seconds")}
    return (f"| `{quantizer}` | {statistics.mean(accuracy):.2f} ({min(accuracy):.2f} to {max(accuracy):.2f}) | {middle['nmse']:.2g} | "
            f"{middle['ratio']:.1f} | {middle['gain']:.1f} | {middle['seconds']:.0f} |")


def main():
    options = arguments()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    everything = []
    print("| quantizer | accuracy, % | nmse | ratio | gain | seconds |\n|---|---|---|---|---|---|", flush=True)
    for quantizer in options.quantizers:
        rows = []
        for seed in seeds:
            print(f"{quantizer}, seed {seed}", file=sys.stderr, flush=True)
            rows.append(train(options, quantizer, seed))
            everything.append({"quantizer": quantizer, "seed": seed, "result": rows[-1]})
        print(line(quantizer, rows), flush=True)
    if options.json:
        options.json.write_text(json.dumps(everything, indent=1) + "\n")


if __name__ == "__main__":
    main()
