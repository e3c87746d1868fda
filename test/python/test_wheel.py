# SPDX-License-Identifier: Apache-2.0
"""The wheel, made of this build's library: installed into an environment of its own, it runs from any folder."""
import os
import pathlib
import subprocess
import sys
import zipfile

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[2] / "bindings" / "python"
SCRIPT = """
import os, numpy, isgqcoll
assert "site-packages" in isgqcoll.__file__ and "site-packages" in isgqcoll._library.lib._name, isgqcoll._library.lib._name
with isgqcoll.Communicator(quantizer="uniform:bits=8") as comm:
    print(comm.allreduce(numpy.ones(1000, numpy.float32), op="avg")[999])
"""


def run(*command, **variables):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ISGQ_", "PYTHON"))}
    return subprocess.run(command, env={**kept, **variables}, capture_output=True, text=True, check=False)


def test_wheel(tmp_path):
    if run(sys.executable, "-c", "import setuptools, wheel, venv, ensurepip").returncode != 0 or run(sys.executable, "-m", "pip", "--version").returncode != 0:
        pytest.skip("no pip, setuptools, wheel or venv")
    build = pathlib.Path(os.environ["ISGQ_PYTHON_LIBRARY"]).parents[1]
    copied = tmp_path / "source"
    (copied / "bindings").mkdir(parents=True)  # pip builds in the tree, and would leave its folders there
    subprocess.run(["cp", "-r", PACKAGE, copied / "bindings" / "python"], check=True)
    (copied / "libisgqcoll").symlink_to(PACKAGE.parents[1] / "libisgqcoll")
    made = run(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-q", "-w", tmp_path, copied / "bindings" / "python",
               ISGQ_PYTHON_BUILD=str(build))  # fmt: skip
    assert made.returncode == 0, made.stderr
    (wheel,) = tmp_path.glob("isgqcoll-*-py3-none-linux_*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "isgqcoll/py.typed" in names and any("isgqcoll/lib/libisgqcoll.so." in name for name in names)
    modules = {f"isgqcoll/lib/isgqcoll/{module.name}" for module in (build / "lib" / "isgqcoll").glob("isgqcoll-*.so")}
    assert modules <= set(names), modules
    home = tmp_path / "env"
    assert run(sys.executable, "-m", "venv", "--system-site-packages", home).returncode == 0
    installed = run(home / "bin" / "pip", "install", "-q", "--no-deps", "--no-index", wheel)
    assert installed.returncode == 0, installed.stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    started = [
        subprocess.Popen([home / "bin" / "python", "-X", "dev", "-W", "error", "-c", SCRIPT], cwd=empty, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                         env={"ISGQ_JOB": str(tmp_path), "ISGQ_RANK": str(rank), "ISGQ_NRANKS": "2"})
        for rank in range(2)
    ]  # fmt: skip
    for process in started:
        assert process.communicate(timeout=60)[0] == "1.0\n" and process.returncode == 0
