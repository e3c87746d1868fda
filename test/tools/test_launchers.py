#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""isgq_perf started by real launchers, whose environment says who the ranks are. Skipped where a launcher is not installed.

usage: test_launchers.py BIN_DIR [CASE...]      standard library only; exit status as test_programs.py
"""
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile

import test_programs
from test_programs import Case, environment, main

NRANKS = 4
TIMEOUT_S = 50


def start(command):
    return subprocess.run(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
                          timeout=TIMEOUT_S, check=False)


def launch(launcher, quantizer):
    program = os.path.join(test_programs.BIN, "isgq_perf")
    return start([*launcher, program, "-c", "allreduce", "-b", "4k", "-e", "4k", "-i", "2", "-q", quantizer, "-J", "-"])


def check_launcher(case, launcher):
    """The ranks find each other and agree; a failure reaches the launcher's exit status."""
    good, bad = launch(launcher, "uniform:bits=4"), launch(launcher, "unifrom")
    case.assertEqual(good.returncode, 0, good.stderr)
    row, = json.loads(good.stdout)
    case.assertEqual((row["nranks"], row["wrong"]), (NRANKS, 0), row)
    case.assertNotEqual(bad.returncode, 0)
    case.assertIn("unifrom", bad.stderr + bad.stdout)


class Mpirun(Case):
    needs = ["isgq_perf"]

    def test_mpirun(self):
        if shutil.which("mpirun") is None:
            self.skipTest("no mpirun")
        open_mpi = "Open MPI" in start(["mpirun", "--version"]).stdout
        check_launcher(self, ["mpirun", *(["--allow-run-as-root", "--oversubscribe"] if open_mpi else []), "-n", str(NRANKS)])


class Torchrun(Case):
    needs = ["isgq_perf"]

    def test_torchrun(self):
        if importlib.util.find_spec("torch") is None:
            self.skipTest("no torch")
        with tempfile.TemporaryDirectory() as folder:
            logs = ["--redirects=1:1", "--tee=1:1", f"--log_dir={folder}"]  # the defaults of PyTorch 1.13 fail with Python 3.11
            check_launcher(self, [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={NRANKS}", *logs, "--no_python"])


if __name__ == "__main__":
    main(__doc__)
