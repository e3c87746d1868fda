/* SPDX-License-Identifier: Apache-2.0 */
/* PowerSGD's arithmetic: a matrix of low rank comes back, vectors are orthonormal, directions that were lost are drawn anew. */
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

/* One call on one rank, P and Q in two spans; the relative squared error of what it delivers. */
static double one_call(const float *v, unsigned rank, float *q)
{
    float p[RANK * ROWS] = {0}, out[COUNT];
    double error = 0.0, norm = 0.0;
    for (unsigned k = 0; k < rank; k++)
        iq_powersgd_orthonormal(q, COLUMNS, k);
    iq_powersgd_left(v, ROWS, COLUMNS, rank, q, 0, 1000, p);
    iq_powersgd_left(v + 1000, ROWS, COLUMNS, rank, q, 1000, COUNT - 1000, p);
    for (unsigned k = 0; k < rank; k++)
        iq_powersgd_orthonormal(p, ROWS, k);
    memset(q, 0, rank * COLUMNS * sizeof(float));
    iq_powersgd_right(v, ROWS, COLUMNS, rank, p, 0, 77, q);
    iq_powersgd_right(v + 77, ROWS, COLUMNS, rank, p, 77, COUNT - 77, q);
    iq_powersgd_product(p, q, ROWS, COLUMNS, rank, 0, 100, out);
    iq_powersgd_product(p, q, ROWS, COLUMNS, rank, 100, COUNT - 100, out + 100);
    for (size_t e = 0; e < COUNT; e++) {
        double difference = (double)out[e] - (double)v[e];
        error += difference * difference;
        norm += (double)v[e] * (double)v[e];
    }
    return norm == 0.0 ? error : error / norm;
}

static void start(uint64_t call, unsigned rank, float *q)
{
    for (unsigned k = 0; k < rank; k++)
        iq_powersgd_start(7, call, k, COLUMNS, q + k * COLUMNS);
}

/* Also of tiny and of huge numbers, and where rows of it are wanted that it does not have. */
START_TEST(low_rank_comes_back)
{
    float v[COUNT], q[COLUMNS * RANK];
    static const float sizes[] = {1.0f, 1e-25f, 1e30f};
    for (unsigned rank = 1; rank <= RANK; rank++) {
        for (unsigned i = 0; i < 3 * rank; i++) {
            memset(q, 0, sizeof(q));
            start(rank, rank, q);
            make_matrix(1 + i / 3, rank, v);
            for (size_t e = 0; e < COUNT; e++)
                v[e] *= sizes[i % 3];
            double error = one_call(v, rank, q);
            ck_assert_msg(error < 1e-11, "rank %u of %u, times %g: %g", 1 + i / 3, rank, (double)sizes[i % 3], error);
        }
    }
}
END_TEST

/* Calls go on from the last one's Q: on the same matrix the error falls to that of the best rank-r matrix or near it. */
START_TEST(calls_go_on)
{
    float v[COUNT], q[COLUMNS * RANK] = {0};
    double first, last = 0.0;
    make_matrix(20, 3, v);
    start(1, RANK, q);
    first = one_call(v, RANK, q);
    for (int call = 0; call < 30; call++)
        last = one_call(v, RANK, q);
    ck_assert_msg(last < 0.9 * first && last > 0.0, "%g, then %g", first, last);
}
END_TEST

/* Vector 2 depends on the others, vector 3 almost does: what little is its own has the right angles all the same. */
START_TEST(vectors_are_orthonormal)
{
    float p[RANK * ROWS];
    uint32_t seed = 11;
    for (size_t i = 0; i < RANK * ROWS; i++)
        p[i] = noise(&seed) * 1e-20f;
    for (size_t i = 0; i < ROWS; i++) {
        p[2 * ROWS + i] = 3.0f * p[i] - p[ROWS + i];
        p[3 * ROWS + i] = p[i] + 2e-5f * p[3 * ROWS + i];
    }
    for (unsigned k = 0; k < RANK; k++)
        iq_powersgd_orthonormal(p, ROWS, k);
    for (unsigned a = 0; a < RANK; a++)
        for (unsigned b = 0; b <= a; b++) {
            double sum = 0.0, wanted = a == b && a != 2 ? 1.0 : 0.0;
            for (size_t i = 0; i < ROWS; i++)
                sum += (double)p[a * ROWS + i] * (double)p[b * ROWS + i];
            ck_assert_msg(fabs(sum - wanted) < 1e-6, "vectors %u and %u: %g", a, b, sum);
        }
}
END_TEST

START_TEST(lost_directions_are_drawn_anew)
{
    float q[RANK * COLUMNS] = {0}, again[RANK * COLUMNS], v[COUNT] = {0};
    start(1, RANK, q);
    ck_assert(one_call(v, RANK, q) == 0.0); /* of a matrix of zeros nothing is left */
    for (size_t i = 0; i < RANK * COLUMNS; i++)
        ck_assert(q[i] == 0.0f);
    for (size_t j = 0; j < COLUMNS; j++)
        q[COLUMNS + j] = 0.25f;
    memcpy(again, q, sizeof(q));
    start(2, RANK, q);
    start(2, RANK, again);
    ck_assert_mem_eq(q, again, sizeof(q));
    for (size_t i = 0; i < RANK * COLUMNS; i++) {
        ck_assert(q[i] != 0.0f && fabsf(q[i]) <= 1.0f);
        ck_assert(i / COLUMNS != 1 || q[i] == 0.25f);
    }
}
END_TEST

START_TEST(what_is_not_finite_shows)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        float q[RANK * COLUMNS] = {0}, v[COUNT];
        start(1, RANK, q);
        make_matrix(20, 3, v);
        v[500] = bad[i];
        ck_assert(isnan(one_call(v, RANK, q)));
        for (size_t j = 0; j < RANK * COLUMNS; j++)
            ck_assert(isnan(q[j]));
    }
}
END_TEST

START_TEST(it_has_to_pay)
{
    ck_assert(iq_powersgd_pays(784, 1000, 4) && iq_powersgd_pays(3, 100, 2) && !iq_powersgd_pays(2, 100, 2));
    ck_assert(!iq_powersgd_pays(1, 1000, 1) && !iq_powersgd_pays(1000, 1, 1) && !iq_powersgd_pays(0, 0, 1));
    ck_assert(!iq_powersgd_pays(8, 8, 4) && iq_powersgd_pays(9, 8, 4) && iq_powersgd_pays((size_t)1 << 31, (size_t)1 << 31, 64));
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("powersgd");
    TCase *tcase = tcase_create("matrices");
    tcase_add_test(tcase, low_rank_comes_back);
    tcase_add_test(tcase, calls_go_on);
    tcase_add_test(tcase, vectors_are_orthonormal);
    tcase_add_test(tcase, lost_directions_are_drawn_anew);
    tcase_add_test(tcase, what_is_not_finite_shows);
    tcase_add_test(tcase, it_has_to_pay);
    suite_add_tcase(suite, tcase);
    return suite;
}
