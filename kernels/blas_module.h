/* SPDX-License-Identifier: Apache-2.0 */
/* The table of module "blas". Sizes are int because those of CBLAS are; kernels/gemm.c keeps larger ones to itself. */
#ifndef ISGQ_KERNELS_BLAS_MODULE_H
#define ISGQ_KERNELS_BLAS_MODULE_H

#include "base/module.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct iq_blas_module {
    iq_module_t module;
    void (*set_threads)(int threads);
    void (*gemm_tn_f64)(int m, int n, int k, const double *a, int lda, const double *b, int ldb, double *c, int ldc,
                        bool accumulate);
    void (*gemm_tn_f32)(int m, int n, int k, const float *a, int lda, const float *b, int ldb, float *c, int ldc,
                        bool accumulate);
    int (*product_svd)(int rows, int m, int n, double *x, double *delta, double *scratch); /* as iq_product_svd; NULL: no LAPACK */
} iq_blas_module_t;

/* Doubles of scratch for the decomposition of a product of `rows` rows. */
typedef struct iq_product_svd_layout {
    size_t square, wide, work; /* of each */
} iq_product_svd_layout_t;

static inline iq_product_svd_layout_t iq_product_svd_lay(size_t rows, size_t m, size_t n)
{
    size_t longest = m > n ? m : n;
    return (iq_product_svd_layout_t){rows * rows, longest * rows, 5 * rows * rows + 100 * rows + 8192};
}

static inline size_t iq_product_svd_doubles(size_t rows, size_t m, size_t n)
{
    iq_product_svd_layout_t lay = iq_product_svd_lay(rows, m, n);
    return 7 * rows + 3 * lay.square + lay.wide + lay.work; /* 2 tau, values, 4 for integers */
}

#endif
