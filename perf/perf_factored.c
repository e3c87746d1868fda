/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Factored cases: input like a layer's (X after a ReLU, rows of Delta of different weight), and the check against the exact
 * product.
 *
 * A factored quantizer promises no bound for a single element (a budget may drop rows, without bias), so the whole gradient's
 * squared error and its shift along the exact gradient are held against what the definition makes expected; perf/README.md has the
 * formulas. A call that went dense is checked like any dense one. Each rank checks its n-th of the rows of the gradient.
 */
#include "perf/perf.h"
#include "tools/common/options.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LIGHTEST_ROW = 5 }; /* rows of Delta weigh 1, 1/2, ... 1/32 */

/* Slack above an expectation: most of the energy is in a sixth of the rows. */
#define MOST_EXCESS 1.2
#define EXCESS_OF_FEW 6.0
#define EXCESS_OF_VERY_FEW 12.0
#define MOST_SIGMAS 6.0

/* Errors of rounding to nearest need not cancel over rows. */
#define NOT_RANDOM 4.0

#define HEAVY_ROWS 6.0

/* Levels fitted to the gradient: the error is at most that of the levels before the fit, times this, and of the bias gradient, which they are
 * not fitted to, times that; and it lies across what was delivered, up to a share of the norm. */
#define FITTED_EXCESS 1.2
#define FITTED_BIAS_EXCESS 3.0
#define FITTED_ALONG 0.1

/* Rounding is spread over columns and rows, leaving out rows over rows alone: along the exact gradient lies one of so many parts. */
#define MOST_ROW_SHARES 8.0

/* fp32 products of so many rows, relative to the largest terms. */
#define PRODUCT_ROUNDOFF 0x1p-22

typedef struct product {
    const iq_perf_setup_t *setup;
    const iq_perf_case_t *test;
    size_t first, rows, n; /* rows first..first+rows-1 of the gradient [m x n] */
    double *exact;         /* [rows x n], all ranks; what is delivered of it */
    double *bias;          /* [n], or NULL */
    double *parts;         /* dense way: [nranks][rows x n]; NULL otherwise */
    double *bias_parts;    /* [nranks][n] */
    double *start;         /* [rows x n], then n of the bias: what levels make of it before they are fitted; used if `fitted` */
    bool fitted;
    double largest, divisor;
    iq_perf_noise_t noise;
} product_t;

static double *numbers(size_t count)
{
    double *memory = calloc(count > 0 ? count : 1, sizeof(double));

    if (memory == NULL)
        iq_die(IQ_EXIT_FAILED, "no memory for %zu doubles", count);
    return memory;
}

void iq_perf_factors(const iq_perf_setup_t *setup, const iq_perf_case_t *test, int rank, double *x, double *delta)
{
    iq_perf_source_t source = {.seed = setup->seed, .type = test->type, .real = true, .nranks = setup->nranks};
    size_t nx = test->rows * test->m, ndelta = test->rows * test->n;

    iq_perf_values(&source, rank, 0, nx, x);
    iq_perf_values(&source, rank, nx, ndelta, delta);
    for (size_t i = 0; i < nx; i++)
        x[i] = x[i] > 0.0 ? x[i] : 0.0;
    for (size_t i = 0; i < ndelta; i++)
        delta[i] = ldexp(delta[i], -(int)(i / test->n % (LIGHTEST_ROW + 1)));
    iq_perf_round(test->type->type, delta, ndelta);
}

/* This rank's part of one rank's product: rows product->first.. of transpose(x) * delta. */
static void multiply(const product_t *product, const double *x, const double *delta, double *to)
{
    const iq_perf_case_t *test = product->test;

    for (size_t row = 0; row < test->rows; row++)
        for (size_t i = 0; i < product->rows; i++) {
            double factor = x[row * test->m + product->first + i];
            const double *from = delta + row * product->n;
            for (size_t j = 0; factor != 0.0 && j < product->n; j++)
                to[i * product->n + j] += factor * from[j];
        }
}

static void sum_rows(const iq_perf_case_t *test, const double *delta, double *to)
{
    for (size_t row = 0; row < test->rows; row++)
        for (size_t j = 0; j < test->n; j++)
            to[j] += delta[row * test->n + j];
}

/* Every rank's factors: exact sums, or the parts of the dense way, and the expected noise. */
static void make_exact(product_t *product, bool want_bias)
{
    const iq_perf_case_t *test = product->test;
    double *x = numbers(test->rows * test->m), *delta = numbers(test->rows * test->n);
    size_t elements = product->rows * product->n;

    for (int rank = 0; rank < product->setup->nranks; rank++) {
        bool dense = product->parts != NULL;
        iq_perf_factors(product->setup, test, rank, x, delta);
        multiply(product, x, delta, dense ? product->parts + (size_t)rank * elements : product->exact);
        if (want_bias)
            sum_rows(test, delta, dense ? product->bias_parts + (size_t)rank * test->n : product->bias);
        if (dense)
            continue;
        iq_perf_noise_add(&product->noise, test, want_bias, x, delta);
        product->fitted = iq_perf_centers(test, x, delta);
        if (product->fitted) {
            multiply(product, x, delta, product->start);
            sum_rows(test, delta, product->start + elements);
        }
    }
    free(x);
    free(delta);
}

/* ---- factors travelled ---- */

static bool is_expected(const product_t *product, const double sums[3], double expected, double elements)
{
    const iq_perf_case_t *test = product->test;
    bool nearest = strstr(test->quantizer_text, "nearest") != NULL;
    double u = iq_perf_unit_roundoff(test->type->type), norm = sums[1], rows = (double)test->rows * product->setup->nranks;
    double noise = (nearest ? NOT_RANDOM : 1.0) * expected / (product->divisor * product->divisor);
    double base = (4.0 * u * u + 1e-9) * norm + elements * (test->type->bytes == 2 ? 0x1p-48 : 0.0);
    double draws = fmax(0.25, fmin(elements, product->noise.draws / HEAVY_ROWS));
    double slack = MOST_EXCESS + EXCESS_OF_FEW / sqrt(draws) + EXCESS_OF_VERY_FEW / draws;
    double columns = fmin((double)test->m, (double)test->n), shares = rows / HEAVY_ROWS;
    double directions =
        product->noise.only_rounding ? columns * fmax(1.0, fmin(MOST_ROW_SHARES, shares / 4.0)) : fmin(columns, 2.0 * shares);
    double sigma = sqrt(noise * norm / fmax(1.0, fmin(directions, elements / 2.0)));
    double shift = MOST_SIGMAS * sigma + (nearest ? sqrt(noise * norm) : 0.0) + (u + 1e-5) * norm;

    return sums[0] <= slack * noise + base && fabs(sums[2]) <= shift;
}

/* Sums of squared error, squared norm, error * exact. */
static void compare(const product_t *product, const double *exact, const void *delivered, size_t first, size_t count,
                    double sums[3])
{
    const iq_perf_case_t *test = product->test;
    double got;

    for (size_t i = 0; i < count; i++) {
        iq_perf_load(test->type->type, (const char *)delivered + (first + i) * test->type->bytes, 1, &got);
        double want = exact[i] / product->divisor;
        sums[0] += (got - want) * (got - want);
        sums[1] += want * want;
        sums[2] += (got - want) * want;
    }
}

/* Squared error of the levels before the fit. */
static double start_error(const product_t *product, const double *start, const double *exact, size_t count)
{
    double sum = 0.0;

    for (size_t i = 0; i < count; i++)
        sum += (start[i] - exact[i]) * (start[i] - exact[i]);
    return sum / (product->divisor * product->divisor);
}

static void check_fitted(product_t *product, const double sums[3], const double bias_sums[3], bool has_bias,
                         iq_perf_result_t *result)
{
    size_t elements = product->rows * product->n;
    double start = start_error(product, product->start, product->exact, elements);

    iq_perf_combine(product->setup, ISGQ_SUM, &start, 1);
    result->wrong = !(sums[0] <= FITTED_EXCESS * start + 1e-9 * sums[1] && fabs(sums[0] + sums[2]) <= FITTED_ALONG * sums[1]);
    if (has_bias) {
        start = start_error(product, product->start + elements, product->bias, product->n);
        result->wrong += !(bias_sums[0] <= FITTED_BIAS_EXCESS * start + 1e-9 * bias_sums[1]);
    }
}

static void check_gathered(product_t *product, const void *grad, const void *bias, iq_perf_result_t *result)
{
    const iq_perf_case_t *test = product->test;
    double sums[3] = {0}, bias_sums[3] = {0}, nmse = iq_perf_promised_nmse(test->quantizer_text);

    compare(product, product->exact, grad, product->first * product->n, product->rows * product->n, sums);
    iq_perf_combine(product->setup, ISGQ_SUM, sums, 3);
    result->nmse = sums[0] == 0.0 ? 0.0 : sums[0] / sums[1];
    if (bias != NULL)
        compare(product, product->bias, bias, 0, product->n, bias_sums);
    if (product->fitted) {
        check_fitted(product, sums, bias_sums, bias != NULL, result);
        return;
    }
    if (nmse > 0.0) { /* a row's part of the first is X + 1 times that of the bias */
        product->noise.gradient = nmse * sums[1] * product->divisor * product->divisor;
        product->noise.bias = product->noise.gradient / product->noise.least_x;
    }
    result->wrong = !is_expected(product, sums, product->noise.gradient, (double)test->m * (double)test->n);
    if (bias != NULL)
        result->wrong += !is_expected(product, bias_sums, product->noise.bias, (double)product->n);
}

/* ---- products travelled ---- */

static double largest(const double *values, size_t count, double least)
{
    for (size_t i = 0; i < count; i++)
        least = fmax(least, fabs(values[i]));
    return least;
}

static uint64_t tally_part(const product_t *product, double *parts, size_t count, const void *delivered, size_t first,
                           double least_max, double *nmse)
{
    const iq_perf_case_t *test = product->test;
    size_t step = iq_perf_block_elements(product->setup->nranks);
    iq_perf_tally_t tally = iq_perf_tally_open(product->setup, test, "dense");
    double *got = numbers(count);

    tally.promise.absolute += PRODUCT_ROUNDOFF * (double)test->rows * IQ_PERF_REAL_MAX * IQ_PERF_REAL_MAX;
    iq_perf_load(test->type->type, (const char *)delivered + first * test->type->bytes, count, got);
    for (size_t at = 0; at < count; at += step) {
        iq_perf_block_t block = {.values = parts + at,
                                 .stride = count,
                                 .count = count - at < step ? count - at : step,
                                 .got = got + at,
                                 .divisor = product->divisor,
                                 .max = product->largest,
                                 .least_max = tally.promise.grid.bucket == 0 ? product->largest
                                                                             : least_max}; /* one scale for all blocks */
        iq_perf_tally_add(&tally, &block);
    }
    free(got);
    return iq_perf_tally_close(product->setup, &tally, test->type->type, nmse);
}

/* Gradient and bias are one tensor then: every rank checks its n-th of the one, and all of the other. */
static void check_dense(product_t *product, const void *grad, const void *bias, iq_perf_result_t *result)
{
    size_t elements = product->rows * product->n, nranks = (size_t)product->setup->nranks;
    double ignored;

    product->largest = largest(product->parts, nranks * elements, 0.0);
    if (bias != NULL)
        product->largest = largest(product->bias_parts, nranks * product->n, product->largest);
    iq_perf_combine(product->setup, ISGQ_MAX, &product->largest, 1);
    result->wrong = tally_part(product, product->parts, elements, grad, product->first * product->n, 0.0, &result->nmse);
    if (bias != NULL)
        result->wrong += tally_part(product, product->bias_parts, product->n, bias, 0, product->largest, &ignored);
}

void iq_perf_check_factored(const iq_perf_setup_t *setup, const iq_perf_case_t *test, const void *grad, const void *bias,
                            iq_perf_result_t *result)
{
    size_t n = (size_t)setup->nranks, first = test->m * (size_t)setup->rank / n, end = test->m * ((size_t)setup->rank + 1) / n;
    bool dense = strcmp(result->record.algorithm, "dense") == 0;
    product_t product = {.setup = setup, .test = test, .first = first, .rows = end - first, .n = test->n};

    product.divisor = test->op == ISGQ_AVG ? setup->nranks : 1.0;
    product.exact = numbers(dense ? 0 : product.rows * product.n);
    product.bias = numbers(product.n);
    product.parts = dense ? numbers(n * product.rows * product.n) : NULL;
    product.bias_parts = numbers(n * product.n);
    product.start = numbers(dense ? 0 : (product.rows + 1) * product.n);
    make_exact(&product, bias != NULL);
    if (dense)
        check_dense(&product, grad, bias, result);
    else
        check_gathered(&product, grad, bias, result);
    free(product.exact);
    free(product.bias);
    free(product.parts);
    free(product.bias_parts);
    free(product.start);
}
