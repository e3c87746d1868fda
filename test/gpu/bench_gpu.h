/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of bench_gpu share: its settings, its rows' output, and how it ends when something fails. */
#ifndef ISGQ_TEST_GPU_BENCH_H
#define ISGQ_TEST_GPU_BENCH_H

#include "isgqcoll.h"

#include <cuda_runtime.h>
#include <stdbool.h>
#include <stddef.h>

typedef struct bench {
    bool json, quick;
    bool simulated; /* the device computes on a CPU: rows run, and no time is printed */
    size_t count;   /* elements of a buffer */
    size_t sets;    /* of buffers, used in turn */
    size_t warm, repetitions;
    double copy_gbs; /* the reference of the kernels' rows; 0: not yet measured */
} bench_t;

/* One row of the output. NULL and 0: the column is empty. */
typedef struct bench_row {
    const char *part; /* "kernel" or "call" */
    const char *name, *type, *rounding, *quantizer;
    const char *way, *mode; /* of calls */
    const char *skipped;    /* why there is no time */
    unsigned bits, width, ranks;
    size_t bucket, count, bytes;
    bool tensor; /* one scale for all */
    bool rated;  /* has a share of the copy */
} bench_row_t;

void bench_head(const bench_t *bench, const char *part);

/* `microseconds` are sorted here; their median counts. */
void bench_put(bench_t *bench, const bench_row_t *row, float *microseconds, size_t count);

_Noreturn void bench_die(const char *file, int line, const char *call, const char *why);

/* A call of the library or of module "cuda" succeeds; a call of CUDA does. */
#define TRY(call)                                                              \
    do {                                                                       \
        if ((call) != ISGQ_SUCCESS)                                            \
            bench_die(__FILE__, __LINE__, #call, isgq_get_last_error());       \
    } while (0)

#define TRY_CUDA(call)                                                         \
    do {                                                                       \
        cudaError_t try_cuda_status = (call);                                  \
        if (try_cuda_status != cudaSuccess)                                    \
            bench_die(__FILE__, __LINE__, #call, cudaGetErrorString(try_cuda_status)); \
    } while (0)

/* Uniform in [-1, 1), the same in every run. */
void bench_fill(float *values, size_t count, unsigned salt);

void bench_kernels(bench_t *bench); /* bench_kernels.c */
void bench_steps(bench_t *bench);   /* bench_steps.c, after the copy of bench_kernels */
void bench_factors(bench_t *bench); /* bench_factors.c, after the copy of bench_kernels */
void bench_calls(bench_t *bench);   /* bench_calls.c */

#endif
