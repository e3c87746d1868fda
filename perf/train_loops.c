/* SPDX-License-Identifier: Apache-2.0 */
/* isgq_train's products on hosts in builds without BLAS: plain loops, many times slower. */
#include "perf/train_ops.h"

/* c += factor * b */
static void add_row(float *restrict c, const float *restrict b, size_t n, float factor)
{
    for (size_t j = 0; j < n; j++)
        c[j] += factor * b[j];
}

static float dot(const float *restrict a, const float *restrict b, size_t k)
{
    float sums[8] = {0};
    size_t l = 0;

    for (; l + 8 <= k; l += 8)
        for (size_t i = 0; i < 8; i++)
            sums[i] += a[l + i] * b[l + i];
    for (; l < k; l++)
        sums[0] += a[l] * b[l];
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

void iq_train_gemm(bool a_turned, bool b_turned, size_t m, size_t n, size_t k, const float *a, const float *b, float beta,
                   float *c)
{
    for (size_t i = 0; i < m; i++) {
        float *row = c + i * n;
        for (size_t j = 0; j < n; j++) /* 0 * c, even where c is no number */
            row[j] = beta == 0.0f ? 0.0f : beta * row[j];
        for (size_t j = 0; b_turned && j < n; j++) /* nobody turns both */
            row[j] += dot(a + i * k, b + j * k, k);
        for (size_t l = 0; !b_turned && l < k; l++)
            add_row(row, b + l * n, n, a_turned ? a[l * m + i] : a[i * k + l]);
    }
}
