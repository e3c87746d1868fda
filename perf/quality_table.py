#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Print what isgq_quality -J wrote as two Markdown tables: one family's rows, and how many times more all others err at equal bits.

    isgq_quality -n 8 --source normal --kind dense -q "all;isgq:bits=1.5" -J normal.json; ...
    perf/quality_table.py train.json normal.json

A column for each file. Between the family's own rows its error is taken on a straight line of log(nmse) over bits; beyond them nothing is said.
"""
import argparse
import json
import math
import pathlib
import sys


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=pathlib.Path, help="JSON of isgq_quality, one source each")
    parser.add_argument("--family", default="isgq", help="what the others are compared with (default %(default)s)")
    parser.add_argument("--kind", default="dense", choices=("dense", "factored"), help="default %(default)s")
    return parser.parse_args()


def is_reference(row, family):
    """A row of the family's default form: nothing but its budget is set."""
    return row["family"] == family and "," not in row["typed"]


def curve(rows, family):
    """[(bits, log nmse)] of budgets in bits: those of an error are rows, but no part of the line."""
    points = [(row["bits"], math.log(row["nmse"])) for row in rows if is_reference(row, family) and "nmse=" not in row["typed"] and row["nmse"]]
    return sorted(points)


def at(points, bits):
    for (left, low), (right, high) in zip(points, points[1:]):
        if left <= bits <= right:
            return math.exp(low + (high - low) * (bits - left) / (right - left))
    return None


def number(value):
    if value == 0:
        return "0"
    if 0.001 <= abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:.2e}"


def budgets(tables, family):
    """Rows of the family, in ascending budgets."""
    names = {row["typed"]: None for rows in tables.values() for row in rows if is_reference(row, family)}
    def key(name):
        word, _, value = name.partition("=")
        return word, -float(value) if "nmse" in word else float(value or 0)
    lines = ["| quantizer |" + "".join(f" bits, {source} | nmse |" for source in tables), "|---|" + "---|---|" * len(tables)]
    for name in sorted(names, key=key):
        cells = []
        for rows in tables.values():
            row = next((row for row in rows if row["typed"] == name), None)
            cells.append(" - | - |" if row is None else f" {row['bits']:.2f} | {number(row['nmse'])} |")
        lines.append(f"| `{name}` |" + "".join(cells))
    return lines


def others(tables, family):
    first = next(iter(tables.values()))
    names = [row["typed"] for row in sorted(first, key=lambda row: row["bits"]) if not is_reference(row, family) and row["nmse"] > 1e-12]
    lines = ["| quantizer | bits |" + "".join(f" {source} |" for source in tables), "|---|---|" + "---|" * len(tables)]
    for name in names:
        cells = []
        for rows in tables.values():
            row = next((row for row in rows if row["typed"] == name), None)
            here = row and at(curve(rows, family), row["bits"])
            cells.append(" - |" if row is None else f" {number(row['nmse'])}" + (f" ({row['nmse'] / here:.2g}) |" if here else " |"))
        bits = next(row["bits"] for row in first if row["typed"] == name)
        lines.append(f"| `{name}` | {bits:.2f} |" + "".join(cells))
    return lines


def main():
    options = arguments()
    tables = {}
    for path in options.files:
        try:
            rows = [row for row in json.loads(path.read_text()) if row["kind"] == options.kind]
        except (OSError, ValueError, KeyError) as error:
            sys.exit(f"quality_table.py: {path}: {error}")
        if not rows:
            sys.exit(f"quality_table.py: {path} has no rows of kind {options.kind}")
        if not curve(rows, options.family):
            sys.exit(f"quality_table.py: {path} has no rows of {options.family}")
        tables[rows[0]["source"]] = rows
    print("\n".join([*budgets(tables, options.family), "", *others(tables, options.family)]))


if __name__ == "__main__":
    main()
