/* SPDX-License-Identifier: Apache-2.0 */
/* PowerSGD's arithmetic: a matrix of low rank comes back, columns are orthonormal, directions that were lost are drawn anew. */
#include "support/check_main.h"

#include "codec/powersgd.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 37, COLUMNS = 53, RANK = 4, COUNT = ROWS * COLUMNS };

static float noise(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return (float)(int32_t)*state * 0x1p-31f;
}

/* A matrix of rank `rank`. */
static void make_matrix(unsigned rank, uint32_t seed, float *v)
{
    memset(v, 0, COUNT * sizeof(float));
    for (unsigned k = 0; k < rank; k++) {
        float left[ROWS], right[COLUMNS];
        for (size_t i = 0; i < ROWS; i++)
            left[i] = noise(&seed);
        for (size_t j = 0; j < COLUMNS; j++)
            right[j] = noise(&seed);
        for (size_t e = 0; e < COUNT; e++)
            v[e] += left[e / COLUMNS] * right[e % COLUMNS];
    }
}

/* One call on one rank; the relative squared error of what it delivers. */
static double one_call(const float *v, unsigned rank, float *q)
{
    float p[ROWS * RANK], out[COUNT];
    double error = 0.0, norm = 0.0;
    iq_powersgd_left(v, COLUMNS, rank, q, 0, 20, p);
    iq_powersgd_left(v, COLUMNS, rank, q, 20, ROWS - 20, p);
    iq_powersgd_orthonormal(p, ROWS, rank);
    iq_powersgd_right(v, ROWS, COLUMNS, rank, p, q);
    iq_powersgd_product(p, q, COLUMNS, rank, 0, 100, out);
    iq_powersgd_product(p, q, COLUMNS, rank, 100, COUNT - 100, out + 100);
    for (size_t e = 0; e < COUNT; e++) {
        double difference = (double)out[e] - (double)v[e];
        error += difference * difference;
        norm += (double)v[e] * (double)v[e];
    }
    return norm == 0.0 ? error : error / norm;
}

START_TEST(low_rank_comes_back)
{
    float v[COUNT], q[COLUMNS * RANK];
    for (unsigned rank = 1; rank <= RANK; rank++) {
        memset(q, 0, sizeof(q));
        iq_powersgd_start(7, rank, COLUMNS, rank, q);
        make_matrix(rank, rank, v);
        double error = one_call(v, rank, q);
        ck_assert_msg(error < 1e-10, "rank %u: %g", rank, error);
    }
}
END_TEST

/* Calls go on from the last one's Q: on the same matrix the error falls to that of the best rank-r matrix or near it. */
START_TEST(calls_go_on)
{
    float v[COUNT], q[COLUMNS * RANK] = {0};
    double first, last = 0.0;
    make_matrix(20, 3, v);
    iq_powersgd_start(7, 1, COLUMNS, RANK, q);
    first = one_call(v, RANK, q);
    for (int call = 0; call < 30; call++)
        last = one_call(v, RANK, q);
    ck_assert_msg(last < 0.9 * first && last > 0.0, "%g, then %g", first, last);
}
END_TEST

START_TEST(columns_are_orthonormal)
{
    float p[ROWS * RANK];
    uint32_t seed = 11;
    for (size_t i = 0; i < ROWS * RANK; i++)
        p[i] = noise(&seed) * 1e-20f;
    for (size_t i = 0; i < ROWS; i++)
        p[i * RANK + 2] = 3.0f * p[i * RANK] - p[i * RANK + 1]; /* depends on both */
    iq_powersgd_orthonormal(p, ROWS, RANK);
    for (unsigned a = 0; a < RANK; a++)
        for (unsigned b = 0; b <= a; b++) {
            double sum = 0.0, wanted = a == b && a != 2 ? 1.0 : 0.0;
            for (size_t i = 0; i < ROWS; i++)
                sum += (double)p[i * RANK + a] * (double)p[i * RANK + b];
            ck_assert_msg(fabs(sum - wanted) < 1e-5, "columns %u and %u: %g", a, b, sum);
        }
}
END_TEST

START_TEST(lost_directions_are_drawn_anew)
{
    float q[COLUMNS * RANK], again[COLUMNS * RANK], v[COUNT] = {0};
    memset(q, 0, sizeof(q));
    iq_powersgd_start(7, 1, COLUMNS, RANK, q);
    ck_assert(one_call(v, RANK, q) == 0.0); /* of a matrix of zeros nothing is left */
    for (size_t i = 0; i < COLUMNS * RANK; i++)
        ck_assert(q[i] == 0.0f);
    for (size_t j = 0; j < COLUMNS; j++)
        q[j * RANK + 1] = 0.25f;
    memcpy(again, q, sizeof(q));
    iq_powersgd_start(7, 2, COLUMNS, RANK, q);
    iq_powersgd_start(7, 2, COLUMNS, RANK, again);
    ck_assert_mem_eq(q, again, sizeof(q));
    size_t zeros = 0;
    for (size_t i = 0; i < COLUMNS * RANK; i++) {
        zeros += q[i] == 0.0f;
        ck_assert(i % RANK != 1 || q[i] == 0.25f);
        ck_assert(fabsf(q[i]) <= 1.0f);
    }
    ck_assert_uint_eq(zeros, 0);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("powersgd");
    TCase *tcase = tcase_create("matrices");
    tcase_add_test(tcase, low_rank_comes_back);
    tcase_add_test(tcase, calls_go_on);
    tcase_add_test(tcase, columns_are_orthonormal);
    tcase_add_test(tcase, lost_directions_are_drawn_anew);
    suite_add_tcase(suite, tcase);
    return suite;
}
