/* SPDX-License-Identifier: Apache-2.0 */
/* Products of integers held in doubles are the same bits from every backend; products of floats are near. */
#include "kernels/gemm.h"
#include "kernels/quant_math.h"
#include "support/check_main.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Guard values around C show writes outside. */
enum { MOST = 150, PAD = 3 };
static double a64[MOST * (MOST + PAD)], b64[MOST * (MOST + PAD)], c64[MOST * (MOST + PAD)], r64[MOST * (MOST + PAD)];
static float a32[MOST * (MOST + PAD)], b32[MOST * (MOST + PAD)], c32[MOST * (MOST + PAD)], r32[MOST * (MOST + PAD)];

/* Integers as the factored codec has them: A up to 22 bits, B up to 7, zeros among them. */
static void fill(uint64_t seed)
{
    for (size_t i = 0; i < MOST * (MOST + PAD); i++) {
        iq_philox_block_t block = iq_draw(seed, 0, 1, 0, i * 4);
        a64[i] = block.word[3] % 3 == 0 ? 0 : (double)(int32_t)(block.word[0] % 8388607u) - 4194303.0;
        b64[i] = (double)(int32_t)(block.word[1] % 255u) - 127.0;
        c64[i] = r64[i] = (double)(int32_t)(block.word[2] % 1000u);
        a32[i] = (float)(a64[i] / 4194304);
        b32[i] = (float)(b64[i] / 128);
        c32[i] = r32[i] = (float)c64[i];
    }
}

static void naive(size_t m, size_t n, size_t k, size_t lda, size_t ldb, size_t ldc, bool accumulate)
{
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            int64_t sum = accumulate ? (int64_t)r64[i * ldc + j] : 0;
            double near = accumulate ? (double)r32[i * ldc + j] : 0;
            for (size_t r = 0; r < k; r++) {
                sum += (int64_t)a64[r * lda + i] * (int64_t)b64[r * ldb + j];
                near += (double)a32[r * lda + i] * (double)b32[r * ldb + j];
            }
            r64[i * ldc + j] = (double)sum;
            r32[i * ldc + j] = (float)near;
        }
}

static const size_t shapes[][3] = {{1, 1, 1}, {5, 3, 2}, {7, 150, 1}, {150, 7, 150}, {128, 129, 33}, {64, 64, 0}, {0, 5, 5}};

START_TEST(test_exact)
{
    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++)
        for (int variant = 0; variant < 4; variant++) {
            size_t m = shapes[s][0], n = shapes[s][1], k = shapes[s][2], lda = m + PAD, ldb = n + 1, ldc = n + 2;
            bool accumulate = variant % 2 != 0;
            fill(s + 1);
            naive(m, n, k, lda, ldb, ldc, accumulate);
            (variant < 2 ? iq_gemm_tn_f64 : iq_gemm_reference_f64)(m, n, k, a64, lda, b64, ldb, c64, ldc, accumulate);
            ck_assert_msg(memcmp(c64, r64, sizeof(c64)) == 0, "shape %zu variant %d on %s", s, variant, iq_gemm_backend());
        }
}
END_TEST

START_TEST(test_float)
{
    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++)
        for (int variant = 0; variant < 4; variant++) {
            size_t m = shapes[s][0], n = shapes[s][1], k = shapes[s][2], lda = m + PAD, ldb = n + 1, ldc = n + 2;
            fill(s + 1);
            naive(m, n, k, lda, ldb, ldc, variant % 2 != 0);
            (variant < 2 ? iq_gemm_tn_f32 : iq_gemm_reference_f32)(m, n, k, a32, lda, b32, ldb, c32, ldc, variant % 2 != 0);
            for (size_t i = 0; i < MOST * (MOST + PAD); i++)
                ck_assert_float_eq_tol(c32[i], r32[i], 1e-3f);
        }
}
END_TEST

/* 0 * Inf and 0 * NaN show. */
START_TEST(test_not_finite)
{
    float zero[2] = {0, 1}, bad[2] = {INFINITY, 1}, out[1];
    iq_gemm_tn_f32(1, 1, 2, zero, 1, bad, 1, out, 1, false);
    ck_assert(isnan(out[0]));
    iq_gemm_reference_f32(1, 1, 2, zero, 1, bad, 1, out, 1, false);
    ck_assert(isnan(out[0]));
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("gemm");
    TCase *exact = tcase_create("exact"), *near = tcase_create("float");
    tcase_add_test(exact, test_exact);
    tcase_add_test(near, test_float);
    tcase_add_test(near, test_not_finite);
    suite_add_tcase(suite, exact);
    suite_add_tcase(suite, near);
    return suite;
}
