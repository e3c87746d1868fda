#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The drop-in for NCCL programs: its symbols, its transparency before the real library, and the host emulation.

usage: test_nccl.py BUILD_DIR NCCL_INCLUDE_DIR [CASE...]     exit status 77 if nothing could run
"""
import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

BUILD = INCLUDE = ""
RULE = "quantize comm=gradients type=f32 op=sum,avg bytes=64k- with=uniform:bits=4"
BOUND = 0.02


def shim():
    return os.path.join(BUILD, "lib", "isgq", "libnccl.so.2")


def client(name):
    return os.path.join(BUILD, "bin", name)


def run(*command, timeout=60, **variables):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ISGQ_", "NCCL_", "LD_"))}
    return subprocess.run(command, env={**kept, **variables}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True,
                          timeout=timeout, check=False)


def real_library():
    """Beside the header that the clients were compiled with."""
    for folder in ("../lib64", "../lib", "../../lib/x86_64-linux-gnu", "../lib/x86_64-linux-gnu"):
        path = os.path.realpath(os.path.join(INCLUDE, folder, "libnccl.so.2"))
        if os.path.exists(path):
            return path
    return None


class Case(unittest.TestCase):
    def succeeds(self, done):
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done


class Symbols(Case):
    def exported(self, path):
        names = self.succeeds(run("nm", "-D", "--defined-only", path)).stdout.split("\n")
        return {line.split()[2].split("@")[0] for line in names if len(line.split()) == 3 and "nccl" in line}

    def test_header(self):
        """Whatever the header declares is there, under both of its names."""
        with open(os.path.join(INCLUDE, "nccl.h"), encoding="utf-8") as header:
            declared = set(re.findall(r"\b(p?nccl[A-Z]\w+)\s*\(", re.sub(r"/\*.*?\*/|//[^\n]*|#define[^\n]*", "", header.read(), flags=re.S)))
        self.assertGreater(len(declared), 60)
        self.assertEqual(declared - self.exported(shim()), set())

    def test_real(self):
        if real_library() is None:
            self.skipTest("no libnccl.so.2 beside nccl.h")
        self.assertEqual({name for name in self.exported(real_library()) if re.fullmatch(r"p?nccl[A-Z]\w+", name)} - self.exported(shim()), set())

    def test_name_and_needs(self):
        dynamic = self.succeeds(run("readelf", "-d", shim())).stdout
        self.assertIn("Library soname: [libnccl.so.2]", dynamic)
        self.assertEqual(re.findall(r"NEEDED.*\[(.*)\]", dynamic), ["libc.so.6"])

    def test_inert(self):
        for command in (["/bin/ls", "/"], ["/bin/sh", "-c", "echo"], [sys.executable, "-c", "pass"]):
            done = self.succeeds(run(*command, LD_PRELOAD=shim(), LD_DEBUG="files", ISGQ_POLICY="nonsense", ISGQ_NCCL_HOST="1"))
            self.assertIn("libnccl.so.2", done.stderr)
            self.assertNotIn("isgq nccl", done.stderr)
            self.assertNotIn("libisgq_nccl_host", done.stderr)


class Real(Case):
    """In front of the real library, without a GPU: the same answers, however a program gets at it."""

    def setUp(self):
        if real_library() is None:
            self.skipTest("no libnccl.so.2 beside nccl.h")
        self.plain = self.succeeds(run(client("nccl_answers"), real_library(), LD_LIBRARY_PATH=os.path.dirname(real_library()))).stdout
        self.assertIn("id is random: 1", self.plain)

    def test_linked(self):
        done = self.succeeds(run(client("nccl_answers"), LD_PRELOAD=shim(), ISGQ_NCCL_LIB=real_library()))
        self.assertEqual(done.stdout, self.plain)

    def test_opened_by_name(self):
        done = self.succeeds(run(client("nccl_answers"), "libnccl.so.2", LD_PRELOAD=shim(), ISGQ_NCCL_LIB=real_library()))
        self.assertEqual(done.stdout, self.plain)

    def test_opened_by_path(self):
        """Only LD_AUDIT is in the way of that: the emulation answers, or the real library behind the shim."""
        audit = os.path.join(os.path.dirname(shim()), "libisgq_audit.so")
        done = self.succeeds(run(client("nccl_answers"), real_library(), LD_PRELOAD=shim(), ISGQ_NCCL_HOST="1"))
        self.assertNotIn("host emulation", done.stderr)
        done = self.succeeds(run(client("nccl_answers"), real_library(), LD_AUDIT=audit, ISGQ_NCCL_HOST="1"))
        self.assertIn("host emulation", done.stderr)
        self.assertIn("init 0\n", done.stdout)
        done = self.succeeds(run(client("nccl_answers"), real_library(), LD_AUDIT=audit, ISGQ_NCCL_LIB=real_library()))
        self.assertEqual(done.stdout, self.plain)

    def test_found_by_itself(self):
        done = self.succeeds(run(client("nccl_answers"), LD_PRELOAD=shim(), LD_LIBRARY_PATH=os.path.dirname(real_library())))
        self.assertEqual(done.stdout, self.plain)

    def test_with_a_policy(self):
        """The engine in front of some functions changes none of their answers."""
        for policy in (RULE, "record", "nonsense"):
            done = self.succeeds(run(client("nccl_answers"), ISGQ_NCCL_LIB=real_library(), ISGQ_POLICY=policy))
            self.assertEqual(done.stdout, self.plain)

    def test_none(self):
        """No library at all, or this one named as the real one: results and one sentence, no endless loop."""
        done = run(client("nccl_answers"), ISGQ_NCCL_LIB=shim())
        self.assertIn("is this preload itself", done.stderr)
        self.assertIn("version 2 0", done.stdout)

    def test_older_library(self):
        """A library that lacks a function: ncclInvalidUsage and a sentence; what it has is passed on."""
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            self.skipTest("no compiler")
        with tempfile.TemporaryDirectory() as folder:
            source, library = os.path.join(folder, "old.c"), os.path.join(folder, "libnccl.so.2")
            with open(source, "w", encoding="utf-8") as file:
                file.write("int ncclGetVersion(int *v) { if (v) *v = 21801; return v ? 0 : 4; }\n")
            self.succeeds(run(compiler, "-shared", "-fPIC", "-o", library, source))
            done = run(client("nccl_answers"), ISGQ_NCCL_LIB=library)
            self.assertIn("version 0 21801", done.stdout)
            self.assertIn("id 5", done.stdout)
            self.assertIn("ncclGetUniqueId was called: the NCCL library that is used has no such function", done.stderr)


    def test_copies(self):
        """Two copies of the drop-in never take each other for the real library."""
        with tempfile.TemporaryDirectory() as folder:
            copy = shutil.copy(shim(), folder)
            for variables in ({"LD_LIBRARY_PATH": folder}, {"ISGQ_NCCL_LIB": copy}, {"LD_PRELOAD": f"{shim()}:{copy}"}):
                done = self.succeeds(run(client("nccl_answers"), timeout=10, **{"LD_PRELOAD": shim(), **variables}))
                self.assertRegex(done.stdout + done.stderr, r"version 0 \d+|a copy of this preload|no real libnccl")


class Host(Case):
    def host(self, *words, **variables):
        return run(client("nccl_client"), *words, ISGQ_NCCL_HOST="1", **variables)

    def test_processes(self):
        for nranks in (1, 2, 3, 8):
            done = self.succeeds(self.host("processes", str(nranks), "everything"))
            self.assertEqual(done.stderr.count("host emulation: buffers are host memory"), nranks)
            self.assertIn("ncclSend was called: it is not part of the host emulation", done.stderr)

    def test_one_thread(self):
        for nranks in (1, 2, 5, 8):
            self.succeeds(self.host("thread", str(nranks), "everything"))

    def test_threads(self):
        """Each rank a thread that begins and ends at its own time; what was destroyed is refused and never read."""
        self.succeeds(self.host("threads", "4", "short", timeout=20, MALLOC_PERTURB_="85"))

    def test_preloaded_by_path(self):
        """Not only linked: opened by name, as JAX and TensorFlow do."""
        library = ctypes.CDLL(shim(), mode=ctypes.RTLD_GLOBAL)  # this process: no emulation was asked for
        self.assertTrue(hasattr(library, "ncclAllReduce"))
        done = self.succeeds(run(client("nccl_answers"), "libnccl.so.2", LD_PRELOAD=shim(), ISGQ_NCCL_HOST="1"))
        self.assertIn("init 0\n", done.stdout)
        self.assertIn("init of rank 7 of 2: 4", done.stdout)

    def test_closed_and_forked(self):
        """However it came into the process: preloaded, or found first by name and really closed."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        for way in ({"LD_PRELOAD": shim()}, {"LD_LIBRARY_PATH": os.path.dirname(shim())}):
            for policy in ("off", RULE, f"record:{folder.name}/what"):
                done = self.succeeds(run(client("nccl_corners"), "close", timeout=20, ISGQ_NCCL_HOST="1", ISGQ_POLICY=policy, **way))
                self.assertEqual(done.stdout, "sum 0\ndestroy 0\nclose 0\n" * 3)
                done = self.succeeds(run(client("nccl_corners"), "fork", timeout=20, ISGQ_NCCL_HOST="1", ISGQ_POLICY=policy, **way))
                self.assertEqual(done.stdout, "child refused\nparent 0\n")

    def test_program_for_gpus(self):
        """Nothing in it is changed or recompiled: a stand-in for the CUDA runtime, and a policy."""
        for policy in ("off", RULE):
            done = self.succeeds(run(client("nccl_program"), "3", ISGQ_NCCL_HOST="1", ISGQ_POLICY=policy, ISGQ_LOG="info"))
            error = float(re.search("steps 20 error (.*)", done.stdout)[1])
            self.assertTrue(0 < error < 0.1 if policy == RULE else error < 1e-8, error)
            self.assertEqual("20 calls quantized" in done.stderr, policy == RULE, done.stderr)

    def test_abort(self):
        self.succeeds(self.host("processes", "3", "abort"))


class Policies(Case):
    def errors(self, *words, what="quantized", **variables):
        done = self.succeeds(run(client("nccl_client"), *words, what, ISGQ_NCCL_HOST="1", **variables))
        return dict(re.findall(r"^(\w+) (\S+)$", done.stdout, re.M)), done.stderr

    def test_off(self):
        self.assertEqual({float(e) for e in self.errors("processes", "4")[0].values()}, {0})
        self.assertEqual({float(e) for e in self.errors("processes", "4", ISGQ_POLICY="off")[0].values()}, {0})

    def test_on(self):
        error, _ = self.errors("processes", "4", ISGQ_POLICY=RULE)
        self.assertTrue(0 < float(error["large"]) < BOUND, error)
        self.assertEqual(float(error["small"]), 0)

    def test_pair(self):
        """reduce_scatter and allgather, if a rule names them: each alone, then both; the sum in one call stays exact."""
        found, rule = [], RULE.replace("64k-", "16k-")
        self.assertEqual(float(self.errors("processes", "4", what="pair", ISGQ_POLICY=rule)[0]["pair"]), 0)
        for calls in ("reduce_scatter", "allgather", "reduce_scatter,allgather"):
            self.assertEqual(float(self.errors("processes", "4", ISGQ_POLICY=f"{rule} call={calls}")[0]["large"]), 0)
            found.append(float(self.errors("processes", "4", what="pair", ISGQ_POLICY=f"{rule} call={calls}")[0]["pair"]))
        self.assertTrue(all(0 < error < BOUND for error in found), found)
        self.assertGreater(found[2], max(found[:2]))

    def test_bytes(self):
        """What rank 0 says at its end: a fifth of an fp32 ring's bytes at most."""
        _, said = self.errors("processes", "4", ISGQ_POLICY=RULE, ISGQ_LOG="info")
        inputs, sent = map(int, re.search(r"\"gradients\", rank 0: \d+ calls, (\d+) bytes in, (\d+) sent", said).groups())
        self.assertLess(sent, inputs * 2 * 3 / 4 / 5)

    def test_record(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "policy")
            error, _ = self.errors("processes", "2", ISGQ_POLICY=f"record:{path}")
            self.assertEqual(float(error["large"]), 0)
            with open(f"{path}.0", encoding="utf-8") as file:
                self.assertIn("quantize comm=gradients type=f32 bytes=160000- with=isgq:bits=4", file.read())

    def test_unnamed(self):
        error, _ = self.errors("thread", "4", ISGQ_POLICY=RULE)  # ncclCommInitAll names nothing
        self.assertEqual(float(error["large"]), 0)
        error, _ = self.errors("thread", "4", ISGQ_POLICY=RULE.replace("gradients", "unnamed"))
        self.assertGreater(float(error["large"]), 0)

    def test_mistake(self):
        error, said = self.errors("processes", "2", ISGQ_POLICY="quantize comm=* type=f32")
        self.assertIn("bytes= is missing", said)
        self.assertEqual(float(error["large"]), 0)
        error, said = self.errors("processes", "2", ISGQ_POLICY=RULE.replace("uniform", "unifrom"))
        self.assertIn("unifrom", said)
        self.assertEqual(float(error["large"]), 0)


class Gpu(Case):
    """The engine for GPUs on the simulated one: the program's own communicator, streams and graphs."""
    rule = "quantize comm=unnamed type=f32 bytes=64k- with=uniform:bits=4"

    def setUp(self):
        self.library = os.path.join(BUILD, "lib", "libnccl-simulated.so")
        if not os.path.exists(client("nccl_gpu_client")):
            self.skipTest("no simulated GPU in this build")

    def sums(self, nranks, program="nccl_gpu_client", **variables):
        done = self.succeeds(run(client(program), str(nranks), ISGQ_NCCL_LIB=self.library,
                                 ISGQ_MODULE_DIR=os.path.join(BUILD, "lib", "isgqcoll-simulated"), **variables))
        return [(name, float(error)) for name, error in re.findall(r"^(\w+) (\S+)$", done.stdout, re.M)], done.stderr

    def test_off(self):
        for policy in ("", "off"):
            found, _ = self.sums(2, ISGQ_POLICY=policy)
            self.assertEqual([name for name, _ in found], ["alone", "grouped", "few", "pair", "replayed", "replayed"])
            self.assertEqual({error for _, error in found}, {0})

    def test_on(self):
        for nranks in (2, 4):
            found, said = self.sums(nranks, ISGQ_POLICY=self.rule, ISGQ_LOG="info")
            for name, error in found:
                self.assertTrue(error == 0 if name in ("few", "pair") else 0 < error < BOUND, found)
            replays = [error for name, error in found if name == "replayed"]
            self.assertNotEqual(*replays)  # fresh random numbers
            self.assertIn("3 calls quantized", said)
            self.assertIn("1 passed through: no rule names its size", said)

    def test_pair(self):
        """reduce_scatter and allgather, if a rule names them; the sums in one call stay exact."""
        errors = []
        for calls in ("reduce_scatter", "allgather", "reduce_scatter,allgather"):
            found = dict(self.sums(4, ISGQ_POLICY=f"{self.rule} call={calls}".replace("64k-", "16k-"))[0])
            self.assertEqual((found["alone"], found["replayed"]), (0, 0))
            errors.append(found["pair"])
        self.assertTrue(all(0 < error < BOUND for error in errors), errors)
        self.assertGreater(errors[2], max(errors[:2]))

    def test_ended_in_group(self):
        self.succeeds(run(client("nccl_gpu_client"), "2", "end", timeout=20, ISGQ_NCCL_LIB=self.library, ISGQ_POLICY=self.rule,
                          ISGQ_MODULE_DIR=os.path.join(BUILD, "lib", "isgqcoll-simulated")))

    def test_source(self):
        """Calls replaced in the source: the same sums, bit by bit."""
        for policy in ("off", self.rule):
            self.assertEqual(self.sums(2, "nccl_source_client", ISGQ_POLICY=policy)[0], self.sums(2, ISGQ_POLICY=policy)[0])

    def test_other_communicator(self):
        found, _ = self.sums(2, ISGQ_POLICY=self.rule.replace("unnamed", "gradients"))
        self.assertEqual({error for _, error in found}, {0})

    def test_cannot_join(self):
        """A module that is missing, a quantizer that is none: one sentence, and the program goes on as it would."""
        found, said = self.sums(2, ISGQ_POLICY=self.rule.replace("uniform", "unifrom"))
        self.assertEqual({error for _, error in found}, {0})
        self.assertIn("unifrom", said)
        self.assertIn("its calls pass through", said)

    def test_record(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "policy")
            found, _ = self.sums(2, ISGQ_POLICY=f"record:{path}")
            self.assertEqual({error for _, error in found}, {0})
            with open(f"{path}.0", encoding="utf-8") as file:
                self.assertIn("quantize comm=unnamed type=f32 bytes=160000- with=isgq:bits=4", file.read())


class Doctor(Case):
    """isgq_doctor's verdicts on small programs made for it."""

    def setUp(self):
        self.compiler = shutil.which("cc") or shutil.which("gcc")
        if self.compiler is None or not os.path.exists(client("isgq_doctor")):
            self.skipTest("no compiler, or isgq_doctor was built without libelf")
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def made(self, text, *words):
        source, path = (os.path.join(self.folder.name, name) for name in ("p.c", "p"))
        with open(source, "w", encoding="utf-8") as file:
            file.write(text)
        self.succeeds(run(self.compiler, "-o", path, source, *words))
        return path

    def verdict(self, path, interface="NCCL"):
        done = run(client("isgq_doctor"), "-J", "-", "--", path)
        row, = (row for row in json.loads(done.stdout) if row["interface"] == interface)
        self.assertEqual(done.returncode, 1 if "missed" in done.stdout else 0, done.stdout)
        return row["verdict"], row["why"]

    def test_linked(self):
        self.assertEqual(self.verdict(client("nccl_answers"))[0], "caught")
        self.assertEqual(self.verdict(client("nccl_answers"), "MPI")[0], "not used")
        self.assertEqual(self.verdict("/bin/ls")[0], "not used")

    def test_inside(self):
        path = self.made("int ncclAllReduce(void) { return 0; } int main(void) { return ncclAllReduce(); }")
        self.assertEqual(self.verdict(path), ("missed", "it is linked into the program itself"))

    def test_static(self):
        self.assertEqual(self.verdict(self.made("int main(void) { return 0; }", "-static"))[0], "not used")
        path = self.made("int ncclAllReduce(void) { return 0; } int main(void) { return ncclAllReduce(); }", "-static")
        self.assertEqual(self.verdict(path)[0], "missed")

    def test_opened(self):
        opens = '#include <dlfcn.h>\nint main(void) { return dlopen("%s", 1) == 0; }'
        self.assertEqual(self.verdict(self.made(opens % "libnccl.so.2"))[0], "decided later")
        verdict, why = self.verdict(self.made(opens % "/opt/old/libnccl.so.2"))
        self.assertEqual(verdict, "missed")
        self.assertIn("/opt/old/libnccl.so.2", why)

    def test_own_loader(self):
        """A loader that the program brings along is not run."""
        trace = os.path.join(self.folder.name, "was-run")
        loader = os.path.join(self.folder.name, "ld-linux-own.so")
        with open(loader, "w", encoding="utf-8") as file:
            file.write(f"#!/bin/sh\ntouch {trace}\n")
        os.chmod(loader, 0o755)
        self.verdict(self.made("int main(void) { return 0; }", f"-Wl,--dynamic-linker={loader}"))
        self.assertFalse(os.path.exists(trace))

    def test_isgq_run(self):
        """Both preloads: NCCL programs too."""
        done = self.succeeds(run(client("isgq_run"), "--bits", "4", "--comm", "gradients", "--", client("nccl_client"), "processes", "2",
                                 "quantized", ISGQ_NCCL_HOST="1"))
        self.assertRegex(done.stdout, r"large [1-9]")
        self.assertIn("/libnccl.so.2", self.succeeds(run(client("isgq_run"), "--dry-run", "--", "/bin/ls")).stdout)

    def test_privileged(self):
        path = shutil.copy(client("nccl_answers"), self.folder.name)
        os.chmod(path, 0o4755)
        self.assertIn("ignores LD_PRELOAD", self.verdict(path)[1])

    def test_script(self):
        path = os.path.join(self.folder.name, "script")
        with open(path, "w", encoding="utf-8") as file:
            file.write("#!/usr/bin/env python3\n")
        self.assertEqual(self.verdict(path), ("decided later", "a script of python3"))

    def test_mistakes(self):
        for words in ([], ["--"], ["--", "/no/such/program"], ["--", "no-such-program"], ["--", self.folder.name]):
            done = run(client("isgq_doctor"), *words)
            self.assertEqual((done.returncode, done.stderr.count("\n")), (2, 1), done.stderr)


if __name__ == "__main__":
    BUILD, INCLUDE = sys.argv[1:3]
    names = [f"{__name__}.{name}" for name in sys.argv[3:]]
    suite = unittest.defaultTestLoader.loadTestsFromNames(names) if names else unittest.defaultTestLoader.loadTestsFromModule(sys.modules[__name__])
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    sys.exit(1 if not result.wasSuccessful() else 77 if len(result.skipped) == result.testsRun else 0)
