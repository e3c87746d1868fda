# SPDX-License-Identifier: Apache-2.0
"""What perf/compare makes of its runs: medians, which runs have to be repeated, and Markdown tables."""
import argparse
import statistics

BOUND_SHARE = 0.9  # a run whose bound B is lower than this share of the best one was disturbed
LARGE = 1 << 20
UNITS = {"k": 10, "m": 20, "g": 30}


def sizes_of(text):
    """Sizes of a command line, ascending; a word that is none is an argparse error."""
    return sorted({size_of(word) for word in text.split(",")})


def size_of(text):
    shift = UNITS.get(text[-1:].lower(), 0)
    digits = text[:-1] if shift else text
    if not digits.isdigit() or int(digits) == 0 or (int(digits) << shift) % 4:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes divisible by 4 (k, m, g may follow)")
    return int(digits) << shift


def size_text(size):
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << shift and size % (1 << shift) == 0:
            return f"{size >> shift} {unit}"
    return f"{size} B"


def groups_of(runs):
    """Runs of one place and number of ranks, which are compared with each other."""
    groups = {}
    for run in runs:
        groups.setdefault((run["place"], run["nranks"]), []).append(run)
    return groups


def disturbed(runs):
    """The runs of this host that have to be repeated. In a lab links set the pace, not memory."""
    found = []
    for (place, _), group in groups_of(runs).items():
        best = max((run["bound"] for run in group if run["bound"]), default=None)
        found += [run for run in group if place == "one host" and run["bound"] and run["bound"] < BOUND_SHARE * best]
    return found


def summary(runs):
    """One row for each place, number of ranks, contender and size: medians over the repeats."""
    low = {id(run) for run in disturbed(runs)}
    rows = []
    for (place, nranks), group in groups_of(runs).items():
        for name in dict.fromkeys(run["contender"] for run in group):
            own = [run for run in group if run["contender"] == name]
            good = [run for run in own if run["rows"]]
            if not good:
                rows.append({"place": place, "nranks": nranks, "contender": name, "missing": own[0]["missing"]})
            for size in sorted({size for run in good for size in run["rows"]}):
                rows.append(middle(place, nranks, name, size, [run for run in good if size in run["rows"]], low))
    return rows


def middle(place, nranks, name, size, runs, low):
    found = [run["rows"][size] for run in runs]
    time_us = statistics.median(row["time_us"] for row in found)
    row = {"place": place, "nranks": nranks, "contender": name, "bytes": size, "time_us": time_us, "algbw_gbs": size / time_us * 1e-3,
           "p99_us": max(one["p99_us"] for one in found), "times_us": [one["time_us"] for one in found],
           "bound": statistics.median(run["bound"] for run in runs), "bounds": [run["bound"] for run in runs],
           "disturbed": any(id(run) in low for run in runs), "repeated": sum(run["repeated"] for run in runs),
           "wrong": sum(one["wrong"] for one in found), "nmse": max(one["nmse"] for one in found), "library": runs[0]["library"],
           "quantized": runs[0]["quantized"]}
    for field in ("wire_bytes", "ratio", "algorithm", "transport", "why"):
        if field in found[0]:
            row[field] = found[0][field]
    return row


def best_peer(rows, size):
    """The fastest exact peer."""
    peers = [row for row in rows if "missing" not in row and row["bytes"] == size and not row["library"] and not row["quantized"]]
    return min(peers, key=lambda row: row["time_us"], default=None)


def figure(value):
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def cell(row, rate):
    if row is None:
        return "-"
    text = figure(row["algbw_gbs"] if rate else row["time_us"]) + ("*" if row["disturbed"] else "")
    return text + (f" ({row['wrong']} wrong)" if row["wrong"] else "")


def table(rows, sizes, rate):
    """Sizes down, contenders across; the last columns: the best exact peer, and how many times faster the best own row without quantizing is."""
    names = list(dict.fromkeys(row["contender"] for row in rows if "missing" not in row))
    at = {(row["contender"], row["bytes"]): row for row in rows if "missing" not in row}
    lines = ["| bytes | " + " | ".join(f"`{name}`" for name in names) + " | best exact peer | times as fast: isgqcoll none |", "|---" * (len(names) + 3) + "|"]
    for size in sizes:
        peer, own = best_peer(rows, size), at.get(("isgqcoll none", size))
        ratio = f"{peer['time_us'] / own['time_us']:.2f}" if peer and own else "-"
        cells = [cell(at.get((name, size)), rate) for name in names]
        lines.append(f"| {size_text(size)} | " + " | ".join(cells) + f" | {peer['contender'] if peer else '-'} | {ratio} |")
    return lines


def bounds_line(rows):
    """B of each contender's runs, in GB/s."""
    bounds = {row["contender"]: row["bound"] for row in rows if "missing" not in row}
    return "Bound B in GB/s: " + ", ".join(f"{name} {bound:.1f}" for name, bound in bounds.items()) + "."


def limit_line(rows, rate):
    """How much of the link's measured rate each contender's bytes use: bytes a rank must send over rate, over time. An exact sum's are a ring's."""
    largest = max((row["bytes"] for row in rows if "missing" not in row), default=None)
    parts = []
    for row in rows:
        counted = row.get("library") or not row.get("quantized")  # nobody counts a quantizing peer's bytes
        if "missing" not in row and row["bytes"] == largest and counted:
            parts.append(f"{row['contender']} {link_seconds(row, rate) / (row['time_us'] * 1e-6):.2f}")
    return f"Time that the bytes need at the measured {rate * 8e-6:.0f} Mbit/s over time taken, {size_text(largest)}: " + ", ".join(parts) + "."


def link_seconds(row, rate):
    nranks = row["nranks"]
    return row.get("wire_bytes", 2 * (nranks - 1) / nranks * row["bytes"]) / rate


def markdown(rows, links, codec):
    lines = []
    for (place, nranks), group in groups_of(rows).items():
        lines += ["", f"### {place}, {nranks} ranks", ""]
        sizes = sorted({row["bytes"] for row in group if "missing" not in row})
        if sizes:
            lines += ["Microseconds, median over iterations of the slowest rank.", "", *table(group, sizes, False), ""]
        large = [size for size in sizes if size >= LARGE]
        if large:
            lines += ["GB/s of input.", "", *table(group, large, True), ""]
        if sizes:
            lines.append(bounds_line(group))
        if place in links and sizes:
            lines.append(limit_line(group, links[place]))
        if any(row.get("disturbed") for row in group):
            again = ", also when repeated" if any(row.get("repeated") for row in group) else ""
            lines.append(f"*: B was below {BOUND_SHARE:.0%} of the best run's{again}.")
        lines += [f"- {row['contender']}: {row['missing']}" for row in group if "missing" in row]
    return lines + codec_lines(codec)


def codec_lines(codec):
    if not codec:
        return []
    lines = ["", "### Codec kernels, one core", "", "| kernel | bits | who | row | GB/s of f32 | memcpy | over memcpy |", "|---|---|---|---|---|---|---|"]
    rows = [row for found in codec.values() if isinstance(found, list) for row in found]
    for row in sorted(rows, key=lambda row: (row["kernel"], row["width"], row["who"])):
        lines.append(f"| {row['kernel']} | {row['width']} | {row['who']} | {row['row']} | {row['gbs']:.2f} | {row['memcpy_gbs']:.2f} | {row['ratio']:.2f} |")
    return lines + [f"- {who}: {found}" for who, found in codec.items() if not isinstance(found, list)]
