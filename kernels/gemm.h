/* SPDX-License-Identifier: Apache-2.0 */
/*
 * C [m x n] = transpose(A) * B, or C += it: A [k x m], B [k x n], all row-major with leading dimensions lda, ldb, ldc.
 *
 * The BLAS module multiplies if this build has it and it loads, else the reference. In double the callers' values are integers
 * whose sums stay below 2^53, so both give the same bits; in float the order of the sum is the backend's.
 */
#ifndef ISGQ_KERNELS_GEMM_H
#define ISGQ_KERNELS_GEMM_H

#include <stdbool.h>
#include <stddef.h>

void iq_gemm_tn_f64(size_t m, size_t n, size_t k, const double *a, size_t lda, const double *b, size_t ldb, double *c, size_t ldc,
                    bool accumulate);
void iq_gemm_tn_f32(size_t m, size_t n, size_t k, const float *a, size_t lda, const float *b, size_t ldb, float *c, size_t ldc,
                    bool accumulate);

/* Plain loops; sums in the order of k. */
void iq_gemm_reference_f64(size_t m, size_t n, size_t k, const double *a, size_t lda, const double *b, size_t ldb, double *c,
                           size_t ldc, bool accumulate);
void iq_gemm_reference_f32(size_t m, size_t n, size_t k, const float *a, size_t lda, const float *b, size_t ldb, float *c,
                           size_t ldc, bool accumulate);

/*
 * Rows with the same product, as few as it takes: transpose(x) * delta is kept, x [rows x m], delta [rows x n] become the singular vectors of
 * it, each scaled by the root of its value, the heaviest first. Returns how many, at most the least of rows, m and n; negative: there is no
 * LAPACK here, sizes are beyond it, or it did not converge, and x and delta are lost. Not the same bits on other machines.
 */
int iq_product_svd(size_t rows, size_t m, size_t n, double *x, double *delta, double *scratch);
size_t iq_product_svd_scratch(size_t rows, size_t m, size_t n); /* bytes */
bool iq_product_svd_present(void);

/* "blas" or "reference"; loads the module like a first product. */
const char *iq_gemm_backend(void);

#endif
