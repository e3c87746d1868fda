/* SPDX-License-Identifier: Apache-2.0 */
/* A product of 8-bit integers by cuBLASLt, to compare with. Loaded when it is asked for: nothing is linked. */
#ifndef ISGQ_TEST_GPU_BENCH_CUBLASLT_H
#define ISGQ_TEST_GPU_BENCH_CUBLASLT_H

#include <cuda_runtime.h>
#include <stdbool.h>
#include <stddef.h>

/* c [m x n, int32, by columns] = transpose(a) * b; a [rows x m] and b [rows x n] by columns, int8. false, with the reason,
 * if there is no cuBLASLt, or none for this shape. */
bool bench_cublaslt_open(size_t rows, size_t m, size_t n, const char **why);
bool bench_cublaslt_run(const void *a, const void *b, void *c, void *workspace, size_t workspace_bytes, cudaStream_t stream);

enum { BENCH_CUBLASLT_WORKSPACE = 32 << 20 };

#endif
