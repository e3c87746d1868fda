# SPDX-License-Identifier: Apache-2.0
"""The examples for PyTorch, as torchrun starts them, on little data."""
import os
import pathlib
import re
import subprocess
import sys

import pytest

pytest.importorskip("torch")

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = pathlib.Path("/usr/share/datasets/fashion-mnist")


def run(folder, name, *arguments):
    """On two ranks. Where output goes is said for rank 1 alone: torchrun 1.13 fails under Python 3.11 where it is said for all, by default too."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--redirects", "1:1", "--tee", "1:1"]
    command += ["--log_dir", str(folder), str(ROOT / "docs" / "examples" / name), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "bindings" / "python"), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDEVMODE", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not DATA.exists(), reason=f"no {DATA}")
def test_ddp_hook(tmp_path):
    printed = run(tmp_path, "torch_ddp_hook.py", "--samples", "320", "--epochs", "2", "--batch", "16")
    losses = [float(found) for found in re.findall(r"loss ([0-9.]+)", printed)]
    assert len(losses) == 2 and losses[1] < 0.9 * losses[0], printed
    assert float(re.search(r"([0-9.]+) times fewer", printed)[1]) > 4, printed


@pytest.mark.skipif(not DATA.exists(), reason=f"no {DATA}")
def test_factored(tmp_path):
    printed = run(tmp_path, "torch_factored.py", "--samples", "640", "--epochs", "3", "--batch", "16")
    losses = [float(found) for found in re.findall(r"loss ([0-9.]+)", printed)]
    assert len(losses) == 3 and losses[2] < 0.9 * losses[0] and "factored" in printed, printed
    assert float(re.search(r"([0-9.]+) times fewer", printed)[1]) > 20, printed


@pytest.mark.skipif(not DATA.exists(), reason=f"no {DATA}")
def test_horovod_style(tmp_path):
    printed = run(tmp_path, "horovod_style.py", "--samples", "640", "--steps", "21")
    losses = [float(found) for found in re.findall(r"step \d+: loss ([0-9.]+)", printed)]
    sent, of = map(int, re.search(r"sent (\d+) of (\d+) bytes", printed).groups())
    assert losses[-1] < 0.9 * losses[0] and "ranks agree: True" in printed and sent < of / 3, printed
