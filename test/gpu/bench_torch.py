#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The work of bench_gpu's rows for f32 in plain PyTorch operations: what a program does without kernels of its own.

usage: bench_torch.py [--quick]

Prints JSON lines with bench_gpu's names, sizes and counts of bytes, so that rates compare: every operation here goes over memory again, and
a row's bytes are still those that must be read and written once. Exit status 77 where there is no PyTorch with a GPU.
"""
import json
import sys

try:
    import torch
except ImportError:
    print("skipped: no PyTorch here")
    sys.exit(77)

BUCKET = 1024
QUICK = "--quick" in sys.argv[1:]
COUNT, SETS, WARM, REPETITIONS = (8 * BUCKET, 2, 1, 2) if QUICK else (16 << 20, 8, 4, 20)


def microseconds(work):
    """Median over repetitions of one use of `work`, which gets the number of a set of buffers; as in bench_kernels.c."""
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(WARM + REPETITIONS + 1)]
    for mark in marks[:-1]:
        mark.record()
        for number in range(SETS):
            work(number)
    marks[-1].record()
    torch.cuda.synchronize()
    times = sorted(a.elapsed_time(b) * 1e3 / SETS for a, b in zip(marks[WARM:], marks[WARM + 1:]))
    return (times[(len(times) - 1) // 2] + times[len(times) // 2]) / 2


def measure(values):
    return values.view(-1, BUCKET).abs().amax(dim=1, keepdim=True)


def encode(values, scales, bits, stochastic):
    """Codes 0..top of a grid between -scale and +scale, packed."""
    top = (1 << bits) - 2
    y = values.view(-1, BUCKET) * ((top // 2) / scales) + top // 2
    y = torch.floor(y + torch.rand_like(y)) if stochastic else torch.floor(y + 0.5)
    codes = y.clamp_(0, top).to(torch.uint8).view(-1)
    return codes if bits == 8 else codes[0::2] | (codes[1::2] << 4)


def decode(packed, scales, bits):
    top = (1 << bits) - 2
    codes = packed if bits == 8 else torch.stack((packed & 15, packed >> 4), dim=1).view(-1)
    return ((codes.to(torch.float32) * 2 - top).view(-1, BUCKET) * (scales / top)).view(-1)


def add_to(total, values):
    total += values


def main():
    if not torch.cuda.is_available():
        print("skipped: PyTorch sees no GPU here")
        return 77
    device = torch.cuda.get_device_properties(0)
    print(json.dumps({"part": "device", "name": device.name, "torch": torch.__version__, "quick": QUICK}), flush=True)
    torch.manual_seed(1)
    values = [torch.rand(COUNT, device="cuda") * 2 - 1 for _ in range(SETS)]
    outputs = [torch.zeros(COUNT, device="cuda") for _ in range(SETS)]
    scales = [measure(v) for v in values]
    f32, scale_bytes, copy = 4 * COUNT, 4 * COUNT // BUCKET, None

    def row(name, moved, work, **more):
        nonlocal copy
        us = microseconds(work)
        gbs = moved / us * 1e-3
        copy = copy or gbs
        found = {} if QUICK else {"us": round(us, 3), "gbs": round(gbs, 2), "ratio": round(gbs / copy, 4)}
        print(json.dumps({"part": "torch", "name": name, "type": "f32", "count": COUNT, "bytes": moved, **more, **found}), flush=True)

    row("copy", 2 * f32, lambda i: outputs[i].copy_(values[i]))
    row("reduce", 3 * f32, lambda i: add_to(outputs[i], values[i]))
    row("measure", f32 + scale_bytes, lambda i: measure(values[i]), bucket=BUCKET)
    for bits in (4, 8):
        shape = {"bits": bits, "width": bits, "bucket": BUCKET}
        packed_bytes = COUNT * bits // 8
        packed = [encode(v, s, bits, False) for v, s in zip(values, scales)]
        worst = (decode(packed[0], scales[0], bits) - values[0]).abs().max().item() * ((1 << bits) - 2)
        if worst > 1.01:  # half of a step is 1 / top of the scale, and scales are below 1
            print(f"what was encoded decodes to values off by {worst:.3f} half steps", file=sys.stderr)
            return 1
        for rounding in ("nearest", "stochastic"):
            row("encode", f32 + packed_bytes + scale_bytes, lambda i: encode(values[i], scales[i], bits, rounding == "stochastic"), rounding=rounding,
                **shape)
        row("decode", packed_bytes + f32 + scale_bytes, lambda i: decode(packed[i], scales[i], bits), **shape)
        row("decode-add", packed_bytes + 2 * f32 + scale_bytes, lambda i: add_to(outputs[i], decode(packed[i], scales[i], bits)), **shape)
    return 0


if __name__ == "__main__":
    sys.exit(main())
