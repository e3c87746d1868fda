# SPDX-License-Identifier: Apache-2.0
"""The NumPy example, as people start it."""
import gzip
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


def shortened(folder, part, count):
    """The first pictures of a part of Fashion-MNIST, in files of the same form."""
    source = pathlib.Path("/usr/share/datasets/fashion-mnist")
    for name, head, each in ((f"{part}-images-idx3-ubyte.gz", 16, 784), (f"{part}-labels-idx1-ubyte.gz", 8, 1)):
        if not (source / name).exists():
            pytest.skip("no Fashion-MNIST")
        with gzip.open(source / name) as whole, gzip.open(folder / name, "wb", compresslevel=1) as part_of_it:
            part_of_it.write(whole.read(head + count * each))


def test_numpy_factored(tmp_path):
    shortened(tmp_path, "train", 4000)
    shortened(tmp_path, "t10k", 1000)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "bindings" / "python"), "OPENBLAS_NUM_THREADS": "1", "ISGQ_JOB": str(tmp_path), "ISGQ_NRANKS": "2"}
    command = [sys.executable, "-X", "dev", "-W", "error", ROOT / "docs" / "examples" / "numpy_factored.py", tmp_path]
    started = [subprocess.Popen(command, env={**environment, "ISGQ_RANK": str(rank)}, stdout=subprocess.PIPE, text=True) for rank in range(2)]
    said = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0] and said[1] == ""
    right, fewer = re.fullmatch(r"2 ranks: (\S+) % right, (\d+) times fewer bytes than gradients have\n", said[0]).groups()
    assert float(right) > 55 and int(fewer) > 20, said
