#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""docs/configuration.md, made from config_vars.def.

Usage: config_docs.py [--check] [ROOT]     without --check the page is written, with it the page must be what would be written
"""
import pathlib
import re
import sys

KINDS = {
    "text": "text",
    "bytes": "bytes: a number, optionally followed by k, m or g",
    "u32": "number",
    "u64": "number, decimal or 0x",
    "flag": "0 or 1",
}

HEAD = """\
<!-- Made by tools/checks/config_docs.py from libisgqcoll/base/config_vars.def; do not edit. -->
# Environment variables

All variables are read once, at the first use of the library, and are constant afterwards. An empty variable counts as unset. A bad
value is one warning and the default; an unknown `ISGQ_` variable is one warning with the nearest right name (names that begin with
`ISGQ_NCCL_`, `ISGQ_MPI_` or `ISGQ_PYTHON_` belong to the bindings). `isgq_info --config` prints the values in effect.

| variable | default | kind | meaning |
|---|---|---|---|
"""

ROW = re.compile(r'^X\((\w+), (\w+), "(\w+)", "((?:[^"\\]|\\.)*)", "((?:[^"\\]|\\.)*)"\)$')


def page(root):
    lines = []
    for line in (root / "libisgqcoll/base/config_vars.def").read_text().splitlines():
        if not line.startswith("X("):
            continue
        match = ROW.match(line)
        if not match:
            sys.exit(f"config_vars.def: not one row on one line: {line}")
        _, kind, name, default, text = match.groups()
        text = text.replace('\\"', '"').replace("|", "\\|")
        default = f"`{default}`" if default else "(empty)"
        lines.append(f"| `ISGQ_{name}` | {default} | {KINDS[kind]} | {text} |\n")
    if not lines:
        sys.exit("config_vars.def holds no rows")
    return HEAD + "".join(lines)


def main():
    arguments = [argument for argument in sys.argv[1:] if argument != "--check"]
    root = pathlib.Path(arguments[0] if arguments else ".")
    target = root / "docs/configuration.md"
    if "--check" not in sys.argv:
        target.write_text(page(root))
    elif not target.is_file() or target.read_text() != page(root):
        sys.exit("docs/configuration.md is stale: run tools/checks/config_docs.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
