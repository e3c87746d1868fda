# SPDX-License-Identifier: Apache-2.0
"""What pyproject.toml cannot say: the version is that of isgqcoll.h, and the wheel contains the C library with its modules.

The library comes from the build folder that ISGQ_PYTHON_BUILD names, else CMake builds it (Release, with the options in CMAKE_ARGS), which wants
the source tree that this folder is part of.
"""
import os
import pathlib
import re
import shlex
import shutil
import subprocess

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.dist import Distribution
from wheel.bdist_wheel import bdist_wheel

ROOT = pathlib.Path(__file__).resolve().parents[2]
HEADER = ROOT / "libisgqcoll" / "include" / "isgqcoll.h"


def version():
    if not HEADER.exists():
        raise SystemExit(f"isgqcoll: {HEADER} is missing; build the wheel inside the source tree: pip wheel ./bindings/python")
    numbers = dict(re.findall(r"#define ISGQ_VERSION_(MAJOR|MINOR|PATCH) (\d+)", HEADER.read_text(encoding="utf-8")))
    return "{MAJOR}.{MINOR}.{PATCH}".format(**numbers)


def built(temporary):
    """A folder with lib/libisgqcoll.so.* and lib/isgqcoll/."""
    named = os.environ.get("ISGQ_PYTHON_BUILD")
    if named:
        return pathlib.Path(named)
    folder = pathlib.Path(temporary) / "cmake"
    options = shlex.split(os.environ.get("CMAKE_ARGS", ""))
    subprocess.run(["cmake", "-S", ROOT, "-B", folder, "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_TESTING=OFF", *options], check=True)
    subprocess.run(["cmake", "--build", folder, "--target", "libraries", "--parallel", str(os.cpu_count())], check=True)
    return folder


class BuildWithLibrary(build_py):
    """Python files, then lib/ beside them, where _library.py looks first."""

    def run(self):
        super().run()
        source = built(self.get_finalized_command("build").build_temp) / "lib"
        target = pathlib.Path(self.build_lib) / "isgqcoll" / "lib"
        soname = "libisgqcoll.so." + version().rpartition(".")[0]
        if not (source / soname).exists():
            raise SystemExit(f"isgqcoll: there is no {soname} in {source}")
        shutil.rmtree(target, ignore_errors=True)
        (target / "isgqcoll").mkdir(parents=True)
        shutil.copy(source / soname, target / soname)  # the file behind the link
        for module in (source / "isgqcoll").glob("isgqcoll-*.so"):
            shutil.copy(module, target / "isgqcoll")


class Wheel(bdist_wheel):
    """Any Python 3, this kind of machine."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


class WithLibrary(Distribution):
    """Not pure: it belongs to one kind of machine."""

    def has_ext_modules(self):
        return True


setup(version=version(), cmdclass={"build_py": BuildWithLibrary, "bdist_wheel": Wheel}, distclass=WithLibrary)
