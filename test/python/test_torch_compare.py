# SPDX-License-Identifier: Apache-2.0
"""perf/torch_compare in its smallest form: two ranks on this host, drawn clicks, and a method that cannot run."""
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
PROGRAM = pathlib.Path(__file__).resolve().parents[2] / "perf" / "torch_compare"


def compare(folder, *arguments):
    library, package = os.environ.get("ISGQ_PYTHON_LIBRARY"), os.environ.get("ISGQ_PYTHON")
    command = [sys.executable, str(PROGRAM), "--python", sys.executable, "-n", "2", "--places", "host", "--models", "recommender", "-J", str(folder / "json"),
               *(["--library", library] if library else []), *(["--package", package] if package else []), *arguments]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout, json.loads((folder / "json").read_text(encoding="utf-8"))


def test_two_methods_and_one_that_fails(tmp_path):
    table, told = compare(tmp_path, "--steps", "3", "--warmup", "2", "--methods", "gloo;factored:isgq:bits=4;factored:nonsense")
    gloo, ours, wrong = told["runs"]
    assert told["machine"]["cores"] >= 1
    for run in (gloo, ours):
        assert run["equal"] and run["timed_steps"] == 3 and run["parameters"] == 8 * 1000 * 16 + 142 * 1024 + 1025 * 1024 + 1025
        assert 0 < run["work_seconds"] <= run["seconds"] and run["cpu_seconds"] > 0
    assert gloo["wire_bytes"] is None and (gloo["bytes"] is None or gloo["bytes"] > 4 * gloo["parameters"])  # 2 (N - 1) / N = 1 times fp32
    assert 0 < ours["bytes"] == ours["wire_bytes"] < gloo["parameters"]
    assert "nonsense" in wrong["failed"]
    assert re.search(r"\| host \| recommender \| `gloo` \| \d", table)
    assert re.search(r"\| host \| recommender \| `factored:isgq:bits=4` \| (?:[^|]+ \| ){4}[\d ]+ † \|", table)
    assert "| `factored:nonsense` | failed: " in table
    assert "the slowest rank" in table and "wire_bytes" in table


def test_arguments_are_checked():
    ran = subprocess.run([sys.executable, str(PROGRAM), "--models", "alexnet"], capture_output=True, text=True, check=False)
    assert ran.returncode == 2 and "no model 'alexnet'" in ran.stderr
