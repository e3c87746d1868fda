# SPDX-License-Identifier: Apache-2.0
"""Codec kernels of this library beside pypiquant's (PCCL's): one core, 4 and 8 bits, bytes of f32 per second, memcpy beside each.

    compare_codec.py LIBRARY BYTES REPETITIONS        measures libpiquant.so alone and prints JSON; perf/compare calls it
"""
import ctypes
import json
import pathlib
import random
import statistics
import subprocess
import sys
import time

from compare_peers import find

KERNELS = ("absmax", "encode-nearest", "encode-stochastic", "decode-add")
PIQUANT_CODES = {4: 3, 8: 4}  # its names of types: f32 is 0
NEAREST, STOCHASTIC, ADD = 0, 1, 1


def own_rows(binaries, size, repetitions):
    """The fastest row of each kernel and width, or a sentence."""
    program = pathlib.Path(binaries) / "bench_kernels"
    if not program.exists():
        return f"{program} was not built"
    best = {}
    for width in PIQUANT_CODES:
        ran = subprocess.run([program, "-w", str(width), "-b", str(size), "-i", str(repetitions), "-k", ",".join(KERNELS), "-J", "-"],
                             capture_output=True, text=True, check=False)
        if ran.returncode != 0:
            return (ran.stderr.strip().splitlines() or ["bench_kernels failed"])[-1]
        for row in json.loads(ran.stdout):
            key = row["kernel"], width
            if key not in best or row["ratio"] > best[key]["ratio"]:
                best[key] = {"who": "isgqcoll", "kernel": row["kernel"], "width": width, "row": row["row"], "gbs": row["gbs"],
                             "memcpy_gbs": row["memcpy_gbs"], "ratio": row["ratio"]}
    return list(best.values())


def floats(size):
    """Bell-shaped values: a block again and again."""
    numbers = random.Random(1)
    block = (ctypes.c_float * 65536)(*[numbers.gauss(0, 1) for _ in range(65536)])
    buffer = ctypes.create_string_buffer(size)
    for at in range(0, size, ctypes.sizeof(block)):
        ctypes.memmove(ctypes.byref(buffer, at), block, min(ctypes.sizeof(block), size - at))
    return buffer


def piquant_calls(library, context, values, codes, sums, width):
    """What stands beside each of our kernels."""
    code, count = PIQUANT_CODES[width], ctypes.c_size_t(len(values) // 4)
    scale, zero = ctypes.c_float(), ctypes.c_int64()

    def scan():
        library.piquant_compute_quant_params_float32(context, values, count, code, ctypes.byref(scale), ctypes.byref(zero))

    def quantize(mode):
        return lambda: library.piquant_quantize(context, values, 0, codes, code, count, scale, zero, mode)

    scan()
    return {"absmax": scan, "encode-nearest": quantize(NEAREST), "encode-stochastic": quantize(STOCHASTIC),
            "decode-add": lambda: library.piquant_dequantize(context, codes, code, sums, 0, count, scale, zero, ADD)}


def seconds_of(call):
    """Of all threads: the library computes in one of its own."""
    start = time.process_time()
    call()
    return time.process_time() - start


def piquant_rows(path, size, repetitions):
    library = ctypes.CDLL(path)
    library.piquant_context_create.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.piquant_context_create(ctypes.c_size_t(1)))
    values, sums, codes = floats(size), ctypes.create_string_buffer(size), ctypes.create_string_buffer(size)
    rows = []
    for width in PIQUANT_CODES:
        for kernel, call in piquant_calls(library, context, values, codes, sums, width).items():
            call()
            pairs = [(seconds_of(lambda: ctypes.memmove(sums, values, size)), seconds_of(call)) for _ in range(repetitions)]
            copy, own = (statistics.median(column) for column in zip(*pairs))
            rows.append({"who": "pypiquant", "kernel": kernel, "width": width, "row": "its choice", "gbs": size / own * 1e-9,
                         "memcpy_gbs": size / copy * 1e-9, "ratio": statistics.median(a / b for a, b in pairs)})
    return rows


def peer_rows(search, size, repetitions):
    library = find(search, "piquant/libpiquant.so")
    if library is None:
        return "not installed (pip install pypiquant)"
    ran = subprocess.run([sys.executable, __file__, str(library), str(size), str(repetitions)], capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        return (ran.stderr.strip().splitlines() or [f"exit status {ran.returncode}"])[-1]
    return json.loads(ran.stdout)


if __name__ == "__main__":
    json.dump(piquant_rows(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])), sys.stdout)
