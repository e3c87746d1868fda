#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Who may include whom. The two tables below are the rules; everything else is reading #include lines.

Usage: check_layering.py [ROOT]
"""
import pathlib
import re
import sys

# First match wins: (files, what their quoted includes may begin with). Every file may include its own folder's headers.
PUBLIC = ["isgqcoll.h", "isgqcoll_ext.h"]
CPP = "isgqcoll.hpp"
LAYERS = [
    ("libisgqcoll/include/", PUBLIC),
    ("libisgqcoll/base/", PUBLIC + ["base/"]),
    ("kernels/", PUBLIC + ["base/", "kernels/"]),
    ("libisgqcoll/transport/wire", PUBLIC + ["base/", "transport/", "kernels/cuda/cuda_module.h"]),
    ("libisgqcoll/transport/nccl", PUBLIC + ["base/", "transport/", "kernels/cuda/cuda_module.h"]),
    ("libisgqcoll/transport/cuda_ipc", PUBLIC + ["base/", "transport/", "kernels/cuda/cuda_module.h"]),
    ("libisgqcoll/transport/", PUBLIC + ["base/", "transport/"]),
    ("libisgqcoll/codec/", PUBLIC + ["base/", "codec/", "kernels/"]),
    ("libisgqcoll/plan/", PUBLIC + ["base/", "plan/", "codec/codec.h"]),
    ("libisgqcoll/core/", PUBLIC + ["base/", "kernels/", "transport/", "codec/", "plan/", "core/"]),
    ("perf/bench_rows.c", PUBLIC + ["kernels/", "tools/common/"]),  # measures the kernels themselves
    ("perf/", PUBLIC + ["perf/", "tools/common/"]),
    ("tools/", PUBLIC + ["tools/"]),
    ("bindings/cpp/", PUBLIC + ["isgqcoll/"]),  # installed as they are
    ("bindings/", PUBLIC + ["bindings/"]),
    ("test/conformance/", PUBLIC + ["conformance/", "support/"]),
    ("test/package/", PUBLIC),
    ("docs/examples/", []),  # a user's programs
    ("test/", [""]),
]

# Headers of other projects, and the only files that may know them.
FOREIGN = [
    (r"uc[pst]/.*", r"libisgqcoll/transport/ucx_module\.c"),
    (r"hwloc\.h", r"libisgqcoll/transport/hwloc_module\.c"),
    (r"sodium\.h", r"libisgqcoll/transport/auth_sodium\.c"),
    (r"zstd\.h", r"libisgqcoll/codec/coder_zstd\.c"),
    (r"cblas\.h", r"kernels/blas_module\.c|perf/train_blas\.c"),
    (r"cublas_v2\.h", r"perf/train_cuda\.cu|test/cudasim/.*"),
    (r"gelf\.h", r"tools/doctor_elf\.c"),
    (r"zlib\.h", r"tools/common/idx_gzip\.c"),
    (r"mpi\.h", r"perf/peers/mpi_.*\.c|bindings/mpi/.*|test/mpi/.*"),
    (r"gloo/.*", r"perf/peers/gloo_.*\.cpp"),
    (r"oneapi/ccl\.hpp", r"perf/peers/oneccl_.*\.cpp"),
    (r"isgqcoll\.h(pp)?", r"test/package/.*|docs/examples/.*"),
    (r"check\.h", r"test/.*"),
    (r"nccl\.h", r"test/.*"),
    (r"dlfcn\.h", r"bindings/(preload/library|mpi/mpi_entry|nccl/(nccl_(find|resolve)|gpu_comm|audit|source_api))\.c|libisgqcoll/(base/module|transport/nccl_library)\.c|kernels/(gemm|blas_module)\.c|perf/train_ops\.c|test/.*"),
    (r"cublasLt\.h", r"test/gpu/bench_cublaslt\.c"),
    (r"cuda(_runtime(_api)?)?\.h", r"kernels/cuda/.*|perf/train_cuda\.cu|test/.*"),
    (r"cudasim(_device|_types)?\.h", r"test/.*"),
    (r"[a-z_]+", r"kernels/cuda/.*|test/(cudasim|cpp)/.*|perf/peers/.*\.cpp|bindings/cpp/.*|docs/examples/.*"),  # C++'s own
    (r"sanitizer/[a-z_]+\.h", r"test/cudasim/.*"),
    (r"immintrin\.h|arm_neon\.h|xmmintrin\.h", r"kernels/cpu/.*|libisgqcoll/core/.*"),
]

SYSTEM = re.compile(
    r"(arpa|linux|net|netinet|sys)/[a-z0-9_./]+|"
    r"(complex|ctype|dirent|errno|fcntl|fenv|float|fnmatch|getopt|ifaddrs|inttypes|limits|link|locale|math|netdb|poll|pthread|pwd|sched|"
    r"semaphore|setjmp|signal|spawn|stdalign|stdarg|stdatomic|stdbool|stddef|stdint|stdio|stdlib|stdnoreturn|string|strings|"
    r"time|ucontext|unistd|wchar)\.h")

INCLUDE = re.compile(r'^\s*#\s*include\s+(["<])([^">]+)[">]')


def problems_of_quoted(root, path, name):
    allowed = next(rule for prefix, rule in LAYERS if path.startswith(prefix))
    if not any(name.startswith(prefix) for prefix in allowed):
        yield f'may not include "{name}"'
    if "/" not in name and name not in PUBLIC + [CPP]:
        yield f'includes "{name}" without its folder'
    places = ["", "libisgqcoll/", "libisgqcoll/include/", "bindings/", "bindings/cpp/", "test/"]
    if not any((root / place / name).is_file() for place in places):
        yield f'includes "{name}", which does not exist'


def problems_of_angled(path, name):
    if SYSTEM.fullmatch(name):
        return
    owners = [owner for pattern, owner in FOREIGN if re.fullmatch(pattern, name)]
    if not owners:
        yield f"includes <{name}>, which this script does not know"
    elif not any(re.fullmatch(owner, path) for owner in owners):
        yield f"may not include <{name}>, only {' '.join(owners)} may"


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    files = [file for top in ("libisgqcoll", "kernels", "perf", "tools", "bindings", "test", "docs")
             for file in sorted((root / top).rglob("*")) if file.suffix in (".c", ".h", ".cu", ".cpp", ".hpp", ".def")]
    bad = 0
    for file in files:
        path = str(file.relative_to(root))
        for number, line in enumerate(file.read_text().splitlines(), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            name = match.group(2)
            found = problems_of_quoted(root, path, name) if match.group(1) == '"' else problems_of_angled(path, name)
            for problem in found:
                print(f"{path}:{number}: {problem}")
                bad += 1
    print(f"layering: {len(files)} files, {bad} problems")
    return 1 if bad or not files else 0


if __name__ == "__main__":
    sys.exit(main())
