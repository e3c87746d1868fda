/* SPDX-License-Identifier: Apache-2.0 */
/* The table of module "blas". Sizes are int because those of CBLAS are; kernels/gemm.c keeps larger ones to itself. */
#ifndef ISGQ_KERNELS_BLAS_MODULE_H
#define ISGQ_KERNELS_BLAS_MODULE_H

#include "base/module.h"

#include <stdbool.h>

typedef struct iq_blas_module {
    iq_module_t module;
    void (*set_threads)(int threads);
    void (*gemm_tn_f64)(int m, int n, int k, const double *a, int lda, const double *b, int ldb, double *c, int ldc,
                        bool accumulate);
    void (*gemm_tn_f32)(int m, int n, int k, const float *a, int lda, const float *b, int ldb, float *c, int ldc,
                        bool accumulate);
} iq_blas_module_t;

#endif
