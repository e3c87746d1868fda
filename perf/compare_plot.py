# SPDX-License-Identifier: Apache-2.0
"""perf/compare's plots as SVG: bandwidth and latency against size on one host, time against link speed in the lab, limits drawn in."""
from compare_report import groups_of, link_seconds, size_text

MARKERS = "os^vDP*Xhp<>"
SMALL = 64 << 10


def curves_of(rows):
    curves = {}
    for row in rows:
        if "missing" not in row:
            curves.setdefault(row["contender"], []).append(row)
    return curves


def plot_curves(axis, curves, names, x, y):
    for name, rows in curves.items():
        number = names.index(name)
        points = sorted((x(row), y(row)) for row in rows)
        axis.plot(*zip(*points), marker=MARKERS[number % len(MARKERS)], color=f"C{number % 10}", markersize=4, linewidth=1.2, label=name)


def sizes_figure(pyplot, rows, small):
    """A panel for each number of ranks; `small`: time of short calls, else bandwidth of all, with the bound B."""
    groups = {key: group for key, group in groups_of(rows).items() if key[0] == "one host" and curves_of(group)}
    if not groups:
        return None
    names = list(dict.fromkeys(row["contender"] for row in rows))
    figure, axes = pyplot.subplots(1, len(groups), figsize=(6.5 * len(groups), 5), squeeze=False, layout="constrained")
    for axis, ((_, nranks), group) in zip(axes[0], groups.items()):
        shown = [row for row in group if "missing" not in row and (not small or row["bytes"] <= SMALL)]
        plot_curves(axis, curves_of(shown), names, lambda row: row["bytes"], lambda row: row["time_us"] if small else row["algbw_gbs"])
        if not small:
            axis.axhline(max(row["bound"] for row in shown), color="black", linestyle="--", linewidth=1, label="bound B: a copy")
        axis.set(title=f"one host, {nranks} ranks", xlabel="bytes of a rank's input", xscale="log", yscale="log",
                 ylabel="time, us" if small else "bytes / time, GB/s")
        axis.grid(True, which="major", alpha=0.3)
        axis.legend(fontsize="x-small")
    return figure


def links_figure(pyplot, rows, links):
    """Time against the measured rate of a link, for the largest size; dotted: what the bytes need."""
    shown = [row for row in rows if "missing" not in row and row["place"] in links]
    if not shown:
        return None
    largest = max(row["bytes"] for row in shown)
    shown = [row for row in shown if row["bytes"] == largest]
    names = list(dict.fromkeys(row["contender"] for row in shown))
    figure, axis = pyplot.subplots(figsize=(7, 5.5), layout="constrained")
    plot_curves(axis, curves_of(shown), names, lambda row: links[row["place"]] * 8e-6, lambda row: row["time_us"] * 1e-6)
    for name, own in curves_of(shown).items():
        if own[0]["library"]:
            points = sorted((links[row["place"]] * 8e-6, link_seconds(row, links[row["place"]])) for row in own)
            axis.plot(*zip(*points), ":", color=f"C{names.index(name) % 10}", linewidth=1, label=f"limit: bytes of {name}")
    axis.set(title=f"{shown[0]['nranks']} hosts, {size_text(largest)}", xlabel="measured TCP rate of a link, Mbit/s", ylabel="time, s", xscale="log",
             yscale="log")
    axis.grid(True, which="both", alpha=0.2)
    axis.legend(fontsize="x-small")
    return figure


def draw(rows, links, prefix):
    """Names of the files that were written; [] and no error without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "compare"  # equal input, equal file
    from matplotlib import pyplot
    figures = {"bandwidth": sizes_figure(pyplot, rows, False), "latency": sizes_figure(pyplot, rows, True), "links": links_figure(pyplot, rows, links)}
    written = []
    for name, figure in figures.items():
        if figure is not None:
            written.append(f"{prefix}-{name}.svg")
            figure.savefig(written[-1], metadata={"Date": None})
            pyplot.close(figure)
    return written
