#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draw what isgq_quality -J wrote: error against bits on the wire, a panel for each source and kind of call, a curve for each quantizer.

    isgq_quality -n 4 --source normal -J normal.json; isgq_quality -n 4 --source train -J train.json
    perf/plot_quality.py normal.json train.json -o quality          writes quality.svg and quality.png

A curve joins settings of one quantizer that differ in bits, levels, width or nmse only. Needs matplotlib (Debian: python3-matplotlib).
"""
import argparse
import json
import pathlib
import re
import sys

SIZES = re.compile(r"[:,](bits|levels|width|nmse)=[^,;]*")  # options that move a point along its curve
STYLES = [marker + line for line in ("-", "--", ":") for marker in "os^vDP*X"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=pathlib.Path, help="JSON of isgq_quality")
    parser.add_argument("-o", "--output", default="quality", help="name without .svg and .png (default %(default)s)")
    return parser.parse_args()


def curve_of(row):
    """"uniform:rounding=stratified" for "uniform:bits=4,rounding=stratified"; orq-3 and orq-5 are one curve, too."""
    text = SIZES.sub(lambda match: match.group(0)[0], row["typed"])
    text = re.sub(r"^(orq)-\d", r"\1", text)
    return re.sub(r":,+", ":", text).rstrip(":,")


def panels_of(rows):
    """{(source, kind): {curve: [(bits, nmse), ...]}}, without rows that a logarithm cannot show."""
    panels = {}
    for row in rows:
        if row["bits"] and row["nmse"]:
            curves = panels.setdefault((row["source"], row["kind"]), {})
            curves.setdefault(curve_of(row), []).append((row["bits"], row["nmse"]))
    return panels


def draw(pyplot, panels):
    figure, axes = pyplot.subplots(1, len(panels), figsize=(6.5 * len(panels), 6), squeeze=False, layout="constrained")
    names = sorted({curve for curves in panels.values() for curve in curves})
    for axis, ((source, kind), curves) in zip(axes[0], panels.items()):
        for curve, points in sorted(curves.items()):
            number = names.index(curve)
            axis.plot(*zip(*sorted(points)), STYLES[number // 10 % len(STYLES)], color=f"C{number % 10}", label=curve, markersize=5)
        axis.set(title=f"{pathlib.Path(source).name}, {kind}", xlabel="bits on the wire per element", ylabel="NMSE", xscale="log", yscale="log")
        axis.grid(True, which="both", alpha=0.2)
        axis.legend(fontsize="x-small")
    return figure


def main():
    options = arguments()
    try:
        import matplotlib
    except ImportError:
        sys.exit("plot_quality.py needs matplotlib: install python3-matplotlib")
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "isgq_quality"  # equal input, equal file
    from matplotlib import pyplot
    panels = panels_of([row for path in options.files for row in json.loads(path.read_text())])
    if not panels:
        sys.exit("plot_quality.py: no row has an error above 0")
    figure = draw(pyplot, panels)
    figure.savefig(options.output + ".svg", metadata={"Date": None})
    figure.savefig(options.output + ".png", dpi=120)


if __name__ == "__main__":
    main()
