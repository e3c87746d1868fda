/* SPDX-License-Identifier: Apache-2.0 */
/* isgq_train's products on hosts: cblas_sgemm. */
#include "perf/train_ops.h"

#include <cblas.h>

void iq_train_gemm(bool a_turned, bool b_turned, size_t m, size_t n, size_t k, const float *a, const float *b, float beta,
                   float *c)
{
    cblas_sgemm(CblasRowMajor, a_turned ? CblasTrans : CblasNoTrans, b_turned ? CblasTrans : CblasNoTrans, (int)m, (int)n, (int)k,
                1.0f, a, (int)(a_turned ? m : k), b, (int)(b_turned ? k : n), beta, c, (int)n);
}
