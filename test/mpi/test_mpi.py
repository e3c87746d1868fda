#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""MPI programs that know nothing of this library, run as they are and with libisgq_mpi.so in front.

usage: test_mpi.py BUILD_DIR CLIENTS_DIR openmpi|mpich [CASE...]     exit status 77 if nothing could run
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

BUILD = CLIENTS = ABI = ""
NRANKS = 4
RULE = "quantize comm=gradients* type=f32,f64 bytes=64k- with=uniform:bits=4"
BOUND = 0.02  # relative error of uniform:bits=4 on the clients' values is .0054
EXACT_LINES = {"few", "none", "world", "ints"}  # too small, of another communicator, of another type


def launcher(nranks):
    if ABI == "openmpi":
        return ["mpirun.openmpi", "--allow-run-as-root", "--oversubscribe", "--mca", "btl", "tcp,self", "-n", str(nranks)]  # senders have work to do
    return ["mpiexec.mpich", "-n", str(nranks)]


def environment(**more):
    return {**{k: v for k, v in os.environ.items() if not k.startswith(("ISGQ_", "OMPI_", "PMI", "LD_PRELOAD"))}, **more}


def preload(build=None):
    return os.path.join(build or BUILD, "lib", "isgq", "libisgq_mpi.so")


def run(client, *arguments, nranks=NRANKS, preloaded=True, **variables):
    """Variables go to the ranks through env, since launchers differ in what they pass on."""
    words = [f"{name}={value}" for name, value in variables.items()]
    if preloaded:
        words.append(f"LD_PRELOAD={preload()}")
    command = [*launcher(nranks), "env", *words, os.path.join(CLIENTS, f"{client}.{ABI}"), *arguments]
    done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=100,
                          check=False)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def errors(done):
    """{"floats": relative error} of mpi_corners and mpi_sums."""
    return {name: float(value) for name, value in re.findall(r"^(\w+) +([0-9.]+E?e?[-+]\d+)$", done.stdout, re.M)}


class Case(unittest.TestCase):
    def setUp(self):
        if shutil.which(launcher(1)[0]) is None:
            self.skipTest(f"no {launcher(1)[0]}")

    def fortran(self):
        return [client for client in ("mpi_sums", "mpi_sums_f08") if os.path.exists(os.path.join(CLIENTS, f"{client}.{ABI}"))]


class Exact(Case):
    """What was not named stays as it is, bit by bit."""

    def test_solver(self):
        plain = run("mpi_cg", preloaded=False).stdout
        self.assertIn(" converged", plain)
        self.assertEqual(run("mpi_cg").stdout, plain)
        self.assertEqual(run("mpi_cg", ISGQ_POLICY=RULE).stdout, plain)

    def test_solver_with_a_large_sum(self):
        """The field is quantized, the dot products are not: as many iterations, another hash."""
        plain = run("mpi_cg", preloaded=False).stdout.split(",")
        named = run("mpi_cg", ISGQ_POLICY="quantize comm=field type=f32 bytes=16k- with=uniform:bits=8").stdout.split(",")
        self.assertEqual(named[:2], plain[:2])
        self.assertNotEqual(named[2], plain[2])

    def test_excluded(self):
        done = run("mpi_corners", ISGQ_POLICY=f"{RULE}; exclude comm=gradients")
        error = errors(done)
        self.assertEqual((error["floats"], error["doubles"]), (0, 0), done.stdout)
        self.assertGreater(error["copy"], 0)

    def test_training_off(self):
        plain, off = (re.sub(r" seconds.*", "", run("mpi_train", preloaded=p, ISGQ_POLICY="off").stdout) for p in (False, True))
        self.assertEqual(off, plain)


class Quantized(Case):
    def test_corners(self):
        done = run("mpi_corners", ISGQ_POLICY=RULE, ISGQ_LOG="info")
        error = errors(done)
        for name in ("floats", "in_place", "unaligned", "doubles", "copy", "copy_alone"):
            self.assertTrue(0 < error[name] < BOUND, f"{name}: {error[name]}")
        for name in EXACT_LINES:
            self.assertEqual(error[name], 0, name)
        self.assertIn("maximum 0 wrong", done.stdout)
        self.assertIn("intercommunicator right", done.stdout)
        self.assertNotIn("LOST", done.stdout)
        self.assertNotIn("error", done.stderr)
        inputs, sent = map(int, re.search(r"rank 0: 7 calls quantized \((\d+) bytes in, (\d+) sent\)", done.stderr).groups())
        self.assertLess(sent, inputs * 2 * 3 / 4 / 5)  # an fp32 ring of 4 ranks sends 3/2 of the input; this a fifth of it at most

    def test_rank_counts(self):
        for nranks in (1, 2, 3, 5):
            error = errors(run("mpi_corners", nranks=nranks, ISGQ_POLICY=RULE))
            self.assertEqual(error["floats"] > 0, nranks > 1, (nranks, error))
            self.assertLess(error["floats"], BOUND)

    def test_fortran(self):
        if not self.fortran():
            self.skipTest("no Fortran compiler")
        for client in self.fortran():
            plain, named = errors(run(client)), errors(run(client, ISGQ_POLICY=RULE))
            self.assertEqual(set(plain), {"floats", "in_place", "doubles"})
            self.assertEqual(set(plain.values()), {0})
            for name, error in named.items():
                self.assertTrue(0 < error < BOUND, f"{client}, {name}: {error}")

    def test_training(self):
        plain, named = run("mpi_train", preloaded=False).stdout, run("mpi_train", ISGQ_POLICY=RULE).stdout
        losses = [float(re.search(r"loss ([0-9.]+)", text).group(1)) for text in (plain, named)]
        self.assertIn(" equal ", named)
        self.assertNotEqual(*losses)
        self.assertAlmostEqual(*losses, delta=0.01)


class Policies(Case):
    def says(self, text, *expected, client="mpi_corners", **variables):
        """One line says it, and everything is as without."""
        done = run(client, ISGQ_POLICY=text, **variables)
        for words in expected:
            self.assertIn(words, done.stderr)
        self.assertEqual(set(errors(done).values()), {0}, done.stdout)

    def test_mistakes(self):
        self.says("quantise comm=*", "begins no rule")
        self.says("quantize comm=* type=f32 bytes=64k-", "with= is missing")
        self.says("quantize comm=* type=f32 bytes=64k- with=unifrom:bits=4", "unifrom", "pass through")
        self.says("@/no/such/file", "cannot be opened")

    def test_ranks_disagree(self):
        """Rank 1 has no policy, then another name for the communicator."""
        command = [*launcher(1), "env", f"ISGQ_POLICY={RULE}", f"LD_PRELOAD={preload()}", os.path.join(CLIENTS, f"mpi_corners.{ABI}"), ":",
                   "-n", "1", "env", "ISGQ_POLICY=off", f"LD_PRELOAD={preload()}", os.path.join(CLIENTS, f"mpi_corners.{ABI}")]
        done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=100,
                              check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("differs between its ranks", done.stderr)
        self.assertEqual(set(errors(done).values()), {0})
        done = run("mpi_corners", "other", ISGQ_POLICY=RULE)
        self.assertIn("the name, and with it the rules that fit, differs", done.stderr)
        self.assertEqual(errors(done)["floats"], 0)
        self.assertGreater(errors(done)["copy"], 0)

    def test_record(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "policy")
            self.says(f"record:{path}", f"is in {path}.RANK")
            with open(f"{path}.0", encoding="utf-8") as file:
                text = file.read()
            self.assertIn("quantize comm=gradients type=f32 bytes=160000- with=isgq:bits=4", text)
            self.assertRegex(text, r"# +1 +160000 +4 +allreduce +<MPI_INT> +sum +gradients\n")
            self.assertGreater(errors(run("mpi_corners", ISGQ_POLICY=f"@{path}.0"))["floats"], 0)

    def test_inert(self):
        """Programs without MPI notice nothing: nothing is opened, nothing is said."""
        for command in (["/bin/ls", "/"], ["/bin/sh", "-c", "echo"], [sys.executable, "-c", "pass"]):
            done = subprocess.run(command, env=environment(LD_PRELOAD=preload(), LD_DEBUG="files", ISGQ_POLICY="nonsense"),
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=60, check=False)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("libisgq_mpi.so", done.stderr)
            self.assertNotIn("libisgqcoll", done.stderr)
            self.assertNotIn("isgq mpi:", done.stderr)

    def test_isgq_run(self):
        """Options become the policy that they say; what names no communicator quantizes nothing."""
        program = os.path.join(BUILD, "bin", "isgq_run")
        client = os.path.join(CLIENTS, f"mpi_corners.{ABI}")
        done = subprocess.run([*launcher(2), program, "-q", "uniform:bits=4", "--comm", "gradients", "--", client], env=environment(),
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=100, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue(0 < errors(done)["floats"] < BOUND)
        self.assertEqual(errors(done)["copy"], 0)
        for words, expected in ((["--bits", "4", "--", client], "--comm is missing"), (["--", ], "no program"), ([client], "is not an option"),
                                (["-q", "unifrom", "--comm", "*", "--", client], "unifrom"), (["--comm", "x", "--", client], "belong to"),
                                (["--bits", "4", "--record", "x", "--", client], "is enough")):
            wrong = subprocess.run([program, *words], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
                                   timeout=20, check=False)
            self.assertEqual(wrong.returncode, 2, words)
            self.assertIn(expected, wrong.stderr)

    def test_no_engine(self):
        """An object without its engines beside it passes everything on."""
        with tempfile.TemporaryDirectory() as folder:
            lonely = shutil.copy(preload(), folder)
            done = run("mpi_corners", nranks=2, preloaded=False, ISGQ_POLICY=RULE, LD_PRELOAD=lonely)
            self.assertIn("there is no engine for it", done.stderr)
            self.assertEqual(set(errors(done).values()), {0})


if __name__ == "__main__":
    BUILD, CLIENTS, ABI = sys.argv[1:4]
    names = [f"{__name__}.{name}" for name in sys.argv[4:]]
    suite = unittest.defaultTestLoader.loadTestsFromNames(names) if names else unittest.defaultTestLoader.loadTestsFromModule(sys.modules[__name__])
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    sys.exit(1 if not result.wasSuccessful() else 77 if len(result.skipped) == result.testsRun else 0)
