/* SPDX-License-Identifier: Apache-2.0 */
/* isgqcoll-blas.so: OpenBLAS behind the table of kernels/blas_module.h. The only file that knows CBLAS; links nothing of the
 * library. */
#include "kernels/blas_module.h"

#include <cblas.h>

static void start(const iq_services_t *services) { (void)services; }

static void gemm_tn_f64(int m, int n, int k, const double *a, int lda, const double *b, int ldb, double *c, int ldc,
                        bool accumulate)
{
    cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, m, n, k, 1, a, lda, b, ldb, accumulate ? 1 : 0, c, ldc);
}

static void gemm_tn_f32(int m, int n, int k, const float *a, int lda, const float *b, int ldb, float *c, int ldc, bool accumulate)
{
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, m, n, k, 1, a, lda, b, ldb, accumulate ? 1 : 0, c, ldc);
}

extern const iq_blas_module_t iq_module_blas;

ISGQ_API const iq_blas_module_t iq_module_blas = {
    .module = {.abi = IQ_MODULE_ABI, .start = start},
    .set_threads = openblas_set_num_threads,
    .gemm_tn_f64 = gemm_tn_f64,
    .gemm_tn_f32 = gemm_tn_f32,
};
