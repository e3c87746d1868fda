# SPDX-License-Identifier: Apache-2.0
"""The NumPy example, as people start it."""
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_numpy_allreduce():
    mpirun = shutil.which("mpirun.openmpi") or pytest.skip("no Open MPI")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "bindings" / "python"), "OPENBLAS_NUM_THREADS": "1"}
    command = [mpirun, "--allow-run-as-root", "--oversubscribe", "-n", "4", sys.executable, ROOT / "docs" / "examples" / "numpy_allreduce.py"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    sent = {name: (int(size), float(error or 0)) for name, size, error in re.findall(r"^(\w+) +(\d+) bytes[^,\n]*(?:, error (\S+))?", ran.stdout, re.M)}
    assert sent["dense"][0] < sent["exact"][0] / 2 and sent["factored"][0] < sent["dense"][0] / 4, sent
    assert sent["factored"][1] < sent["dense"][1] < 0.1, sent
