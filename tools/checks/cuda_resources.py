#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What nvcc makes of the kernels on elements and of those for factored calls: 16 bytes at a time where most bytes are moved, tensor cores, and no
arrays in local memory. Reads the PTX for sm_90: out of the built module where that holds it in plain (nvcc -no-compress, as bootstrap asks), else
it compiles the files again, which takes minutes. Spills are found by ptxas where the module is built: bootstrap asks it to fail on them.

Usage: cuda_resources.py SOURCE_DIR NVCC [MODULE]   (exit status 77: no nvcc)
"""
import pathlib
import re
import subprocess
import sys
import tempfile

FILES = ["combine.cu", "combine_codes.cu", "combine_values.cu", "factor_choose.cu", "factor_decode.cu", "factor_measure.cu",
         "factor_multiply.cu", "factor_write.cu", "lanes.cu", "level_decode.cu", "level_eden.cu", "level_fitted.cu",
         "level_plain.cu", "level_sorted.cu", "level_table.cu", "map.cu", "map_quads.cu", "measure.cu", "moments.cu",
         "ternary.cu"]
WIDE_LOAD = re.compile(r"ld\.global(\.nc)?\.v4\.[a-z]32")
WIDE_STORE = re.compile(r"st\.global\.v4\.[a-z]32")
WIDE_COPY = re.compile(r"cp\.async\.cg\.shared\.global [^;]*, 16\b")
TENSOR = re.compile(r"mma\.sync\.aligned\.m16n8k32\.row\.col\.s32\.s8\.s8\.s32")
ACCESSES = {WIDE_LOAD: "loads of 16 bytes", WIDE_STORE: "stores of 16 bytes", WIDE_COPY: "copies of 16 bytes into shared memory",
            TENSOR: "products of 8-bit integers on tensor cores"}
LOCAL = re.compile(r"\b(ld|st)\.local")

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
    (r"iq_level_encodeI2mxLi32E", [WIDE_LOAD]),
    (r"iq_level_encodeI10mx_nearestLi32E", [WIDE_LOAD]),
    (r"iq_level_encodeI6onebitLi256E", [WIDE_LOAD]),
    (r"iq_level_encodeI7ef_signLi256E", [WIDE_LOAD]),
    (r"iq_level_encodeI9bingrad_bLi256E", [WIDE_LOAD]),
    (r"iq_level_encodeI10bingrad_pbLi256E", [WIDE_LOAD]),
    (r"iq_level_encodeI3orqLi256E", [WIDE_LOAD]),
    (r"iq_level_encodeI4edenLi32E", [WIDE_LOAD]),
    (r"decode_levelsI4qsgd9iq_as_f32Li32E", [WIDE_STORE]),
    (r"decode_levelsI7natural9iq_as_f32Li256E", [WIDE_STORE]),
    (r"decode_levelsI2mx9iq_as_f32Li32E", [WIDE_STORE]),
    (r"decode_levelsI6listed9iq_as_f32Li256E", [WIDE_STORE]),
    (r"decode_levelsI8mirrored9iq_as_f32Li256E", [WIDE_STORE]),
    (r"decode_edenI9iq_as_f32Li32E", [WIDE_STORE]),
    (r"multiply_bandsILi4ELi4E12iq_to_valuesI9iq_as_f32E", [WIDE_COPY, TENSOR]),
    (r"multiply_bandsILi2ELi2E12iq_to_valuesI9iq_as_f32E", [WIDE_COPY, TENSOR]),
]


def listing(root, nvcc, folder, file):
    """The PTX of one file."""
    include = [f"-I{root / part}" for part in ("", "libisgqcoll", "libisgqcoll/include")]
    ptx = folder / f"{file}.ptx"
    made = subprocess.run([nvcc, "-std=c++17", "-O3", "--fmad=false", "-arch=sm_90", *include, "--ptx", str(root / "kernels/cuda" / file), "-o",
                           str(ptx)], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        sys.exit(f"nvcc cannot compile {file}:\n{made.stderr}")
    return ptx.read_text()


def listings_in(module):
    """The PTX that lies uncompressed in a module: one text for each file, ended by a zero."""
    found = re.findall(rb"^\.version [0-9.]+\s+\.target sm_90\b[^\0]*", module.read_bytes() if module.exists() else b"", flags=re.M)
    return [text.decode() for text in found]


def bodies(text):
    """{kernel: its code}"""
    parts = re.split(r"^(?:\.text\.|\s*Function : |(?:\.visible |\.weak )?\.entry )([A-Za-z_0-9$]+)[:(]?.*$", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2]))


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
    listings = listings_in(pathlib.Path(sys.argv[3])) if len(sys.argv) > 3 else []
    compiled = not listings
    if compiled:
        with tempfile.TemporaryDirectory() as folder:
            listings = [listing(root, nvcc, pathlib.Path(folder), file) for file in FILES]
    code = {}
    for text in listings:
        code.update(bodies(text))
    problems = list(problems_of_code(code))
    for problem in problems:
        print(problem)
    print(f"cuda: {len(code)} kernels {'compiled' if compiled else 'read from the module'}, {len(problems)} problems")
    return 1 if problems or not code else 0


if __name__ == "__main__":
    sys.exit(main())
