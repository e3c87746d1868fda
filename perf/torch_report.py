# SPDX-License-Identifier: Apache-2.0
"""perf/torch_compare's runs as a table and as a plot."""
import statistics

MARKERS = "os^vDP*Xhp<>"


def bytes_of(row, interface):
    """Bytes of a rank and step, and where they were counted: in shared memory no interface sees them."""
    if row["wire_bytes"] is not None and interface in ("", "lo"):
        return row["wire_bytes"], "wire_bytes"
    return row["interface_bytes"], "interface" if interface else "not measured: no network namespace"


def ring_bytes(row):
    """What a rank sends in a ring of fp32."""
    return 2 * (row["ranks"] - 1) / row["ranks"] * 4 * row["parameters"]


def summary(runs):
    """One row for each place, model and method: medians over the runs that came to an end, in the order of the first; mean of accuracies."""
    groups = {}
    for run in runs:
        groups.setdefault((run["place"], run["model"], run["method"]), []).append(run)
    rows = []
    for (place, model, method), group in groups.items():
        good = [run for run in group if "failed" not in run]
        row = {"place": place, "model": model, "method": method, "runs": len(good), "failed": next((run["failed"] for run in group if "failed" in run), None)}
        rows.append(row)
        if not good:
            continue
        row["equal"] = all(run["equal"] for run in good)
        row["bytes_from"] = good[0]["bytes_from"]
        row["seeds"] = len({run["seed"] for run in good})
        for name in ("seconds", "communication_seconds", "cpu_seconds", "local_seconds", "local_cpu_seconds", "bytes", "nmse", "loss"):
            values = [run[name] for run in good if run.get(name) is not None]
            row[name] = statistics.median(values) if values else None
        accuracies = [run["accuracy"] for run in good if "accuracy" in run]
        row["accuracy"] = statistics.mean(accuracies) if accuracies else None
        row["accuracies"] = (min(accuracies), max(accuracies)) if accuracies else None
        row["ratio"] = ring_bytes(good[0]) / row["bytes"] if row["bytes"] else None
    for row in rows:
        plain = next((other for other in rows if (other["place"], other["model"], other["method"]) == (row["place"], row["model"], "gloo")), {})
        row["faster"] = plain["seconds"] / row["seconds"] if plain.get("seconds") and row.get("seconds") else None
    return rows


def shown(value, form):
    return "" if value is None else format(value, form)


def accuracy(row):
    if row["accuracy"] is None:
        return ""
    low, high = row["accuracies"]
    return f"{row['accuracy']:.2f}" + (f" ({low:.2f} to {high:.2f})" if row["seeds"] > 1 else "")


def line(row):
    if not row["runs"]:
        reason = row["failed"].replace("|", "/")
        return f"| {row['place']} | {row['model']} | `{row['method']}` | failed: {reason} | | | | | | | | |"
    cells = [row["place"], row["model"], f"`{row['method']}`", shown(row["seconds"] * 1e3, ".1f"), shown(row["communication_seconds"] * 1e3, ".1f"),
             shown(row["cpu_seconds"] * 1e3, ".1f"), shown(row["faster"], ".2f"), shown(row["bytes"], ",.0f").replace(",", " ") + ("" if row["bytes_from"] == "interface" else " †"),
             shown(row["ratio"], ".1f"), accuracy(row), shown(row["loss"], ".4f"), shown(row["nmse"], ".2g")]  # fmt: skip
    return "| " + " | ".join(cells) + " |" + ("" if row["equal"] else " ranks' weights differ!")


def markdown(runs, machine):
    """The table, and what was measured how."""
    rows = summary(runs)
    loads = [run["load"] for run in runs] or [0]
    version = next((run["torch"] for run in runs if "torch" in run), "not found")
    elsewhere = sorted({row["bytes_from"] for row in rows if row["runs"]} - {"interface"})
    marked = f"; † {', '.join(elsewhere)}" if elsewhere else ""
    return [
        f"PyTorch {version}, {machine['cpu']}, {machine['cores']} cores, {machine['date']}, load {min(loads):.0f} to {max(loads):.0f}",
        "",
        "| place | model | method | step, ms | communication, ms | CPU, ms | faster than gloo | bytes | ratio | accuracy, % | loss | nmse |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *map(line, rows),
        "",
        "step: median over steps of the slowest rank, all included. communication: forward and backward less the same without sums. CPU: a rank's "
        f"processor time in a step. bytes: sent by a rank in a step, counted at its host's interface, headers too{marked}. ratio: bytes that a rank "
        "sends in an fp32 ring over bytes.",
    ]


def bars(axis, rows, model, methods):
    """Time per step of each method, a group for each place."""
    places = list(dict.fromkeys(row["place"] for row in rows if row["model"] == model))
    width = 0.8 / len(methods)
    for number, method in enumerate(methods):
        own = [(places.index(row["place"]) + (number - (len(methods) - 1) / 2) * width, row["seconds"] * 1e3)
               for row in rows if row["model"] == model and row["method"] == method and row["runs"]]  # fmt: skip
        if own:
            axis.bar(*zip(*own), width, color=f"C{number % 10}", label=method)
    axis.set(title=model, ylabel="time of a step, ms")
    axis.set_xticks(range(len(places)), places)
    axis.grid(True, axis="y", alpha=0.2)


def scatter(axis, rows, model, methods):
    """What a method reaches against what it sends; loss where there is nothing to be right about."""
    name = "loss" if model == "recommender" else "accuracy"
    for number, method in enumerate(methods):
        own = [(row["bytes"], row[name]) for row in rows if row["model"] == model and row["method"] == method and row["runs"] and row["bytes"]
               and row[name] is not None]  # fmt: skip
        if own:
            axis.plot(*zip(*own), MARKERS[number % len(MARKERS)], color=f"C{number % 10}", label=method)
    axis.set(title=model, xlabel="bytes of a rank and step", ylabel="loss" if name == "loss" else "accuracy, %", xscale="log")
    axis.grid(True, which="both", alpha=0.2)


def draw(rows, path):
    """Upper row: time; lower row, if anything was trained: accuracy. Whether it was written."""
    if not any(row["runs"] for row in rows):
        return False
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "torch_compare"  # equal input, equal file
    from matplotlib import pyplot

    models, methods = (list(dict.fromkeys(row[name] for row in rows)) for name in ("model", "method"))
    trained = any(row["runs"] and row["loss"] is not None for row in rows)
    figure, axes = pyplot.subplots(1 + trained, len(models), figsize=(5 * len(models) + 1, 4 * (1 + trained)), squeeze=False, layout="constrained")
    for column, model in enumerate(models):
        bars(axes[0][column], rows, model, methods)
        if trained:
            scatter(axes[1][column], rows, model, methods)
    axes[0][-1].legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, metadata={"Date": None} if str(path).endswith(".svg") else None)
    pyplot.close(figure)
    return True
