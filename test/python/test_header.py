# SPDX-License-Identifier: Apache-2.0
"""_library.py against isgqcoll.h: structures as a compiler lays them out, and every public function."""
import ctypes
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from isgqcoll import _library, errors

INCLUDE = pathlib.Path(__file__).resolve().parents[2] / "libisgqcoll" / "include"
STRUCTS = {
    "isgq_unique_id_t": _library.UniqueId,
    "isgq_comm_config_t": _library.Config,
    "isgq_call_options_t": _library.CallOptions,
    "isgq_factors_t": _library.Factors,
    "isgq_stats_t": _library.StatsStruct,
    "isgq_config_var_t": _library.ConfigVar,
    "isgqx_call_record_t": _library.RecordStruct,
}
# Reasons why the package has no use for them.
UNBOUND = {
    "isgq_comm_init_nccl": "wraps an ncclComm_t, which Python programs do not hold",
    "isgq_comm_wait": "waits without looking at signals; isgq_comm_wait_for does",
    "isgq_comm_synchronize": "likewise",
    "isgq_get_error_string": "a text",
    "isgq_get_last_error": "a text",
    "isgq_comm_get_last_error": "a text",
    "isgq_quantizer_destroy": "returns nothing",
    "isgq_tensor_destroy": "returns nothing",
}


def test_structures(tmp_path):
    compiler = shutil.which("cc") or pytest.skip("no compiler")
    lines = []
    for name, struct in STRUCTS.items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        lines += [f'printf("{name}.{field} %zu\\n", offsetof({name}, {field}));' for field, _ in struct._fields_]
    source = tmp_path / "layout.c"
    source.write_text('#include <isgqcoll_ext.h>\n#include <stdio.h>\nint main(void) {\n' + "\n".join(lines) + "\n}\n")
    subprocess.run([compiler, "-I", INCLUDE, source, "-o", tmp_path / "layout"], check=True)
    said = dict(line.split() for line in subprocess.run([tmp_path / "layout"], capture_output=True, text=True, check=True).stdout.splitlines())
    for name, struct in STRUCTS.items():
        assert int(said[name]) == ctypes.sizeof(struct), name
        for field, _ in struct._fields_:
            assert int(said[f"{name}.{field}"]) == getattr(struct, field).offset, f"{name}.{field}"


def test_functions():
    text = re.sub(r"/\*.*?\*/", "", (INCLUDE / "isgqcoll.h").read_text(encoding="utf-8"), flags=re.S)
    declared = {match[1]: match[2] for match in re.finditer(r"\b(isgq_\w+)\s*\(([^()]*)\);", text)}
    assert len(declared) > 40
    bound = {**_library.FUNCTIONS, **_library.TEXTS, **_library.NOTHING}
    assert set(declared) - set(bound) - set(UNBOUND) == set()
    assert {name for name in bound if not name.startswith("isgqx_")} - set(declared) == set()
    for name, parameters in declared.items():
        if name in bound:
            count = 0 if parameters.strip() in ("", "void") else parameters.count(",") + 1
            assert len(bound[name]) == count, name


def test_statuses():
    text = (INCLUDE / "isgqcoll.h").read_text(encoding="utf-8")
    for name, value in re.findall(r"X\((ERR_\w+), (\d+),", text):
        kind = type(errors.failure(int(value), b"text"))
        assert (kind.name, kind.status) == (f"ISGQ_{name}", int(value))
    assert str(errors.failure(4, b"")) == "an argument is invalid"


def test_series():
    numbers = re.findall(r"#define ISGQ_VERSION_(?:MAJOR|MINOR) (\d+)", (INCLUDE / "isgqcoll.h").read_text(encoding="utf-8"))
    assert _library.SONAME == f"libisgqcoll.so.{numbers[0]}.{numbers[1]}" and _library.SERIES == int(numbers[0]) * 100 + int(numbers[1])


def imported(**variables):
    """What "import isgqcoll" of another process says."""
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(_library.__file__).parents[1]), **variables}
    ran = subprocess.run([sys.executable, "-S", "-c", "import isgqcoll"], env=environment, capture_output=True, text=True, check=False)
    return ran.stderr if ran.returncode else ""


def test_libraries(tmp_path):
    """A library that is missing, another's, too old or too new: ImportError with its name."""
    compiler = shutil.which("cc") or pytest.skip("no compiler")
    every = sorted({**_library.FUNCTIONS, **_library.TEXTS, **_library.NOTHING})
    for name, functions, version, text in (
        ("other", ["isgq_get_version"], 100, "has no isgq_"),
        ("old", every, 99, "is version 0.0.99; this package is for 0.1"),
        ("new", every, 200, "is version 0.2.0; this package is for 0.1"),
    ):
        library = tmp_path / f"lib{name}.so"
        source = "".join(f"int {function}(int *v) {{ *v = {version}; return 0; }}\n" for function in functions)
        subprocess.run([compiler, "-shared", "-fPIC", "-xc", "-", "-o", library], input=source.encode(), check=True)
        said = imported(ISGQ_PYTHON_LIBRARY=str(library))
        assert "ImportError: isgqcoll: " in said and str(library) in said and text in said, said
    text = tmp_path / "text.so"
    text.write_text("not a library")
    for missing in (str(text), "/no/such/libisgqcoll.so"):
        said = imported(ISGQ_PYTHON_LIBRARY=missing)
        assert "ImportError: isgqcoll: cannot load" in said and missing in said and "ISGQ_PYTHON_LIBRARY" in said, said
    assert "libisgqcoll.so.0.1" in imported(ISGQ_PYTHON_LIBRARY="", LD_LIBRARY_PATH="")  # nothing is named, and none is installed
