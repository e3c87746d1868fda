#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What ptxas makes of the kernels on elements and of those for factored calls: no local memory, 16 bytes at a time where most bytes are moved, and
tensor cores.

With cuobjdump or nvdisasm in PATH or beside nvcc, loads and stores are those of the machine code for sm_90, else those of the PTX.
Usage: cuda_resources.py SOURCE_DIR NVCC   (exit status 77: no nvcc)
"""
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

FILES = ["combine.cu", "combine_codes.cu", "combine_values.cu", "factor_choose.cu", "factor_decode.cu", "factor_measure.cu",
         "factor_multiply.cu", "factor_write.cu", "lanes.cu", "level_decode.cu", "level_eden.cu", "level_fitted.cu",
         "level_plain.cu", "level_sorted.cu", "level_table.cu", "map.cu", "map_quads.cu", "measure.cu", "moments.cu",
         "ternary.cu"]
WIDE_LOAD = re.compile(r"LDG\.E(\.[A-Z]+)*\.128|ld\.global(\.nc)?\.v4\.[a-z]32")
WIDE_STORE = re.compile(r"STG\.E(\.[A-Z]+)*\.128|st\.global\.v4\.[a-z]32")
WIDE_COPY = re.compile(r"LDGSTS\.E(\.[A-Z]+)*\.128|cp\.async\.cg\.shared\.global [^;]*, 16\b")
TENSOR = re.compile(r"IMMA\.16832\.S8\.S8|mma\.sync\.aligned\.m16n8k32\.row\.col\.s32\.s8\.s8\.s32")
ACCESSES = {WIDE_LOAD: "loads of 16 bytes", WIDE_STORE: "stores of 16 bytes", WIDE_COPY: "copies of 16 bytes into shared memory",
            TENSOR: "products of 8-bit integers on tensor cores"}
LOCAL = re.compile(r"\b(LDL|STL)\b|\b(ld|st)\.local")

# The kernels that move most bytes: what their mangled names hold, and the accesses that each must have.
HOT = [
    (r"encode_quadsI9iq_as_f32Li4E", [WIDE_LOAD]),
    (r"encode_quadsI9iq_as_f32Li8E", [WIDE_LOAD]),
    (r"encode_quadsI9iq_as_f32Li0E", [WIDE_LOAD, WIDE_STORE]),
    (r"decode_quadsI9iq_as_f32Li4E", [WIDE_LOAD, WIDE_STORE]),
    (r"decode_quadsI9iq_as_f32Li8E", [WIDE_LOAD, WIDE_STORE]),
    (r"decode_quadsI9iq_as_f32Li0E", [WIDE_LOAD, WIDE_STORE]),
    (r"sum_quadsILi4E", [WIDE_LOAD, WIDE_STORE]),
    (r"sum_quadsILi8E", [WIDE_LOAD, WIDE_STORE]),
    (r"measure_allI9iq_as_f32", [WIDE_LOAD]),
    (r"combine_codesI9iq_as_f32Li4ELi0E", [WIDE_LOAD, WIDE_STORE]),
    (r"combine_codesI9iq_as_f32Li8ELi0E", [WIDE_LOAD, WIDE_STORE]),
    (r"combine_codesI9iq_as_f32Li4ELi1E", [WIDE_LOAD, WIDE_STORE]),
    (r"combine_codesI9iq_as_f32Li8ELi1E", [WIDE_LOAD, WIDE_STORE]),
    (r"combine_valuesI9iq_as_f32S0_E", [WIDE_LOAD, WIDE_STORE]),
    (r"encode_lanesI9iq_as_f32Li3E", [WIDE_LOAD]),
    (r"encode_lanesI9iq_as_f32Li4E", [WIDE_LOAD]),
    (r"decode_lanesI9iq_as_f32Li3E", [WIDE_LOAD, WIDE_STORE]),
    (r"decode_lanesI9iq_as_f32Li4E", [WIDE_LOAD, WIDE_STORE]),
    (r"encode_ternaryI9iq_as_f32", [WIDE_LOAD]),
    (r"decode_ternaryI9iq_as_f32", [WIDE_LOAD, WIDE_STORE]),
    (r"short_bucketsI9iq_as_f32Lb1E", [WIDE_LOAD]),
    (r"long_cellsI9iq_as_f32Lb0E", [WIDE_LOAD]),
    (r"measure_rowsI9iq_as_f32", [WIDE_LOAD]),
    (r"spread_rowsI9iq_as_f32", [WIDE_LOAD]),
    (r"round_rowsI9iq_as_f32", [WIDE_LOAD]),
    (r"iq_level_encodeI4qsgdLi32E", [WIDE_LOAD]),
    (r"iq_level_encodeI7naturalLi256E", [WIDE_LOAD]),
    (r"iq_level_encodeI6onebitLi256E", [WIDE_LOAD]),
    (r"iq_level_encodeI7ef_signLi256E", [WIDE_LOAD]),
    (r"iq_level_encodeI9bingrad_bLi256E", [WIDE_LOAD]),
    (r"iq_level_encodeI10bingrad_pbLi256E", [WIDE_LOAD]),
    (r"iq_level_encodeI3orqLi256E", [WIDE_LOAD]),
    (r"iq_level_encodeI4edenLi32E", [WIDE_LOAD]),
    (r"decode_levelsI4qsgd9iq_as_f32Li32E", [WIDE_STORE]),
    (r"decode_levelsI7natural9iq_as_f32Li256E", [WIDE_STORE]),
    (r"decode_levelsI6listed9iq_as_f32Li256E", [WIDE_STORE]),
    (r"decode_levelsI8mirrored9iq_as_f32Li256E", [WIDE_STORE]),
    (r"decode_edenI9iq_as_f32Li32E", [WIDE_STORE]),
    (r"multiply_bandsILi4ELi4E12iq_to_valuesI9iq_as_f32E", [WIDE_COPY, TENSOR]),
    (r"multiply_bandsILi2ELi2E12iq_to_valuesI9iq_as_f32E", [WIDE_COPY, TENSOR]),
]


def tool_beside(nvcc, name):
    beside = pathlib.Path(nvcc).resolve().parent / name
    return str(beside) if beside.is_file() else shutil.which(name)


def compile_one(root, nvcc, file, cubin):
    """ptxas's report on one file; the PTX stays beside the cubin."""
    include = [f"-I{root / folder}" for folder in ("", "libisgqcoll", "libisgqcoll/include")]
    made = subprocess.run([nvcc, "-std=c++17", "-O3", "--fmad=false", "-arch=sm_90", "-Xptxas=-v", *include, "--keep", "--keep-dir",
                           str(cubin.parent), "--cubin", str(root / "kernels/cuda" / file), "-o", str(cubin)],
                          capture_output=True, text=True, check=False)
    if made.returncode != 0:
        sys.exit(f"nvcc cannot compile {file}:\n{made.stderr}")
    return made.stderr + made.stdout


def listing(root, nvcc, folder, file):
    """The report, and the text of the code."""
    cubin = folder / f"{file}.cubin"
    report = compile_one(root, nvcc, file, cubin)
    for name, options in (("nvdisasm", ["-c"]), ("cuobjdump", ["-sass"])):
        tool = tool_beside(nvcc, name)
        if tool:
            read = subprocess.run([tool, *options, str(cubin)], capture_output=True, text=True, check=False)
            if read.returncode == 0:
                return report, read.stdout
    return report, (folder / file).with_suffix(".ptx").read_text()


def bodies(text):
    """{kernel: its code}"""
    parts = re.split(r"^(?:\.text\.|\s*Function : |(?:\.visible |\.weak )?\.entry )([A-Za-z_0-9$]+)[:(]?.*$", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2]))


def problems_of_report(report):
    for name, stack, stores, loads in re.findall(
            r"Function properties for (\S+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report):
        if (stack, stores, loads) != ("0", "0", "0"):
            yield f"{name}: {stack} bytes of stack, {stores} and {loads} bytes of spills"


def problems_of_code(code):
    for name, body in code.items():
        if LOCAL.search(body):
            yield f"{name}: uses local memory"
    for pattern, needed in HOT:
        body = next((code[name] for name in code if re.search(pattern, name)), None)
        if body is None:
            yield f"{pattern}: no such kernel"
            continue
        for access in needed:
            if not access.search(body):
                yield f"{pattern}: no {ACCESSES[access]}"


def main():
    root, nvcc = pathlib.Path(sys.argv[1]).resolve(), sys.argv[2] if len(sys.argv) > 2 else ""
    if not nvcc:
        print("skipped: this build has no nvcc")
        return 77
    code, problems, kernels = {}, [], 0
    with tempfile.TemporaryDirectory() as folder:
        for file in FILES:
            report, text = listing(root, nvcc, pathlib.Path(folder), file)
            kernels += report.count("Function properties for")
            problems += problems_of_report(report)
            code.update(bodies(text))
    problems += problems_of_code(code)
    for problem in problems:
        print(problem)
    print(f"cuda: {kernels} kernels, {len(problems)} problems")
    return 1 if problems or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
