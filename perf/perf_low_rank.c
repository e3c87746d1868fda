/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checking `powersgd`: a call on a new tensor delivers the projection of the exact sum on so many directions, which ones is its own
 * affair. So the directions are taken from what it delivered, orthonormalised in double, the exact sum is projected on them, and
 * every element is compared. A result of higher rank, or scaled, or off by a rank's contribution, is no projection.
 *
 * Rank 0 does it alone. The figure nmse is against the exact sum.
 */
#include "perf/low_rank.h"
#include "perf/perf.h"
#include "tools/common/options.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 2048 };

typedef struct check {
    size_t rows, columns, rank;
    double *exact, *got; /* [rows x columns] */
    double *basis;       /* [rank x rows] */
    double *row;         /* [rank x columns], basis times exact */
} check_t;

static double *doubles(size_t count)
{
    double *memory = calloc(count + 1, sizeof(double));

    if (memory == NULL)
        iq_die(IQ_EXIT_FAILED, "no memory for %zu doubles", count);
    return memory;
}

static void sum_inputs(const iq_perf_setup_t *setup, const iq_perf_case_t *test, double *exact)
{
    iq_perf_source_t source = iq_perf_case_source(setup, test);
    double values[BLOCK];

    for (size_t first = 0; first < test->count; first += BLOCK) {
        size_t count = test->count - first < BLOCK ? test->count - first : BLOCK;
        for (int rank = 0; rank < setup->nranks; rank++) {
            iq_perf_values(&source, rank, first, count, values);
            for (size_t i = 0; i < count; i++)
                exact[first + i] += values[i] / (test->op == ISGQ_AVG ? setup->nranks : 1.0);
        }
    }
}

/* What is left of a vector besides those before it, to unit length; nothing is left of one that depends on them. */
static void orthonormalise(check_t *check, size_t k)
{
    double *vector = check->basis + k * check->rows, whole = 0.0, left = 0.0;

    for (size_t i = 0; i < check->rows; i++)
        whole += vector[i] * vector[i];
    for (size_t other = 0; other < 2 * k; other++) { /* twice, for rounding */
        const double *before = check->basis + other % k * check->rows;
        double share = 0.0;
        for (size_t i = 0; i < check->rows; i++)
            share += vector[i] * before[i];
        for (size_t i = 0; i < check->rows; i++)
            vector[i] -= share * before[i];
    }
    for (size_t i = 0; i < check->rows; i++)
        left += vector[i] * vector[i];
    for (size_t i = 0; i < check->rows; i++)
        vector[i] = left > 1e-12 * whole ? vector[i] / sqrt(left) : 0.0;
}

/* Directions of the rows' space: random combinations of what was delivered. */
static void find_basis(check_t *check, uint64_t seed)
{
    for (size_t k = 0; k < check->rank; k++) {
        for (size_t j = 0; j < check->columns; j++) {
            double share = 2.0 * iq_perf_uniform(seed + 77, k * check->columns + j) - 1.0;
            for (size_t i = 0; i < check->rows; i++)
                check->basis[k * check->rows + i] += share * check->got[i * check->columns + j];
        }
        orthonormalise(check, k);
    }
}

static void project(check_t *check)
{
    for (size_t k = 0; k < check->rank; k++)
        for (size_t i = 0; i < check->rows; i++)
            for (size_t j = 0; j < check->columns; j++)
                check->row[k * check->columns + j] += check->basis[k * check->rows + i] * check->exact[i * check->columns + j];
}

static double projected(const check_t *check, size_t element)
{
    double sum = 0.0;

    for (size_t k = 0; k < check->rank; k++)
        sum += check->basis[k * check->rows + element / check->columns] * check->row[k * check->columns + element % check->columns];
    return sum;
}

static void compare(const check_t *check, const iq_perf_case_t *test, double sums[3])
{
    double most = 0.0, tolerance = 1e-3 + 16.0 * iq_perf_unit_roundoff(test->type->type);

    for (size_t e = 0; e < test->count; e++)
        most = fmax(most, fabs(check->got[e]));
    for (size_t e = 0; e < test->count; e++) {
        double error = check->got[e] - check->exact[e];
        sums[0] += !(fabs(check->got[e] - projected(check, e)) <= tolerance * most); /* a NaN is wrong too */
        sums[1] += error * error;
        sums[2] += check->exact[e] * check->exact[e];
    }
    sums[0] += !(most > 0.0);
}

bool iq_perf_check_low_rank(const iq_perf_setup_t *setup, const iq_perf_case_t *test, const void *delivered, iq_perf_result_t *result)
{
    check_t check = {0};
    unsigned rank;
    double sums[3] = {0};

    if (!test->type->quantizable || !iq_low_rank(test->quantizer_text, &rank))
        return false;
    iq_low_rank_shape(test->count, &check.rows, &check.columns);
    if (!iq_low_rank_pays(check.rows, check.columns, rank))
        return false;
    check.rank = rank;
    if (setup->rank == 0) {
        check.exact = doubles(test->count);
        check.got = doubles(test->count);
        check.basis = doubles(rank * check.rows);
        check.row = doubles(rank * check.columns);
        sum_inputs(setup, test, check.exact);
        iq_perf_load(test->type->type, delivered, test->count, check.got);
        find_basis(&check, setup->seed);
        project(&check);
        compare(&check, test, sums);
        free(check.exact);
        free(check.got);
        free(check.basis);
        free(check.row);
    }
    iq_perf_combine(setup, ISGQ_SUM, sums, 3);
    result->wrong = (uint64_t)sums[0];
    result->nmse = sums[2] > 0.0 ? sums[1] / sums[2] : sums[1];
    return true;
}
