/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Factored cases: input like a layer's (X after a ReLU, rows of Delta of different weight), and the check against the exact
 * product.
 *
 * A factored quantizer promises no bound for a single element (a budget may drop rows, without bias), so the whole gradient's
 * squared error is held against what the definition makes expected; perf/README.md has the formula. Each rank checks its n-th of
 * the rows of the gradient.
 */
#include "perf/perf.h"
#include "tools/common/options.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LIGHTEST_ROW = 5 }; /* rows of Delta weigh 1, 1/2, ... 1/32 */

/* Grid of row weights: rounding up makes a step at most so much larger. */
#define STEP_GROWTH 1.125

typedef struct product {
    size_t first, rows, n; /* rows first..first+rows-1 of the gradient [m x n] */
    double *sum;           /* [rows x n], all ranks */
    double *local;         /* [rows x n], one rank */
    double largest_local;
} product_t;

/* What the sums over all rows of all ranks say: the expected squared error of gradient and bias. */
typedef struct noise {
    double gradient, bias;
} noise_t;

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

/* Add this rank's part of one rank's product: rows product->first.. of transpose(x) * delta. */
static void add_product(product_t *product, const iq_perf_case_t *test, const double *x, const double *delta)
{
    size_t elements = product->rows * product->n;

    memset(product->local, 0, elements * sizeof(double));
    for (size_t row = 0; row < test->rows; row++)
        for (size_t i = 0; i < product->rows; i++) {
            double factor = x[row * test->m + product->first + i];
            double *to = product->local + i * product->n;
            const double *from = delta + row * product->n;
            for (size_t j = 0; factor != 0.0 && j < product->n; j++)
                to[j] += factor * from[j];
        }
    for (size_t i = 0; i < elements; i++) {
        product->sum[i] += product->local[i];
        product->largest_local = fmax(product->largest_local, fabs(product->local[i]));
    }
}

static void measure_row(const double *row, size_t count, double *largest, double *squares)
{
    *largest = *squares = 0.0;
    for (size_t i = 0; i < count; i++) {
        *largest = fmax(*largest, fabs(row[i]));
        *squares += row[i] * row[i];
    }
}

/* Expected squared error of one rank's rows: rounding with steps a, b adds at most a^2 / 4, b^2 / 4 an element, dropping
 * rows the rest. */
static void add_noise(noise_t *noise, const iq_perf_factor_promise_t *promise, const iq_perf_case_t *test, const double *x,
                      const double *delta)
{
    double m = (double)test->m, n = (double)test->n, p = promise->keep;

    for (size_t row = 0; row < test->rows; row++) {
        double max_x, max_delta, x2, delta2;
        measure_row(x + row * test->m, test->m, &max_x, &x2);
        measure_row(delta + row * test->n, test->n, &max_delta, &delta2);
        double a = STEP_GROWTH * max_x / promise->levels_x, b = STEP_GROWTH * max_delta / promise->levels_delta;
        double va = m * a * a / 4.0, vb = n * b * b / 4.0;
        noise->gradient += x2 * delta2 * (1.0 / p - 1.0) + (x2 * vb + delta2 * va + va * vb) / p;
        noise->bias += delta2 * (1.0 / p - 1.0) + vb / p;
    }
}

/* sums: squared error, squared norm of this part. */
static void compare(const double *exact, const void *delivered, const iq_perf_case_t *test, size_t first, size_t count,
                    double divisor, double *error, double *norm)
{
    double got;

    for (size_t i = 0; i < count; i++) {
        iq_perf_load(test->type->type, (const char *)delivered + (first + i) * test->type->bytes, 1, &got);
        double want = exact[i] / divisor;
        *error += (got - want) * (got - want);
        *norm += want * want;
    }
}

/* Squared error that a dense quantizer may add to the sum of the ranks' own products. */
static double dense_allowance(const iq_perf_setup_t *setup, const iq_perf_case_t *test, double largest_local, double elements)
{
    iq_perf_bound_t bound = iq_perf_bound(test->quantizer_text, test->type->type, setup->nranks, setup->nranks);
    double element = (bound.relative * setup->nranks + bound.step) * largest_local + bound.absolute;

    return elements * element * element;
}

/* How far a squared error of `elements` numbers may lie above its expectation: one element much, many hardly. */
static double slack(const iq_perf_case_t *test, double elements)
{
    double nearest = strstr(test->quantizer_text, "nearest") != NULL ? 4.0 : 1.0; /* errors of rows do not cancel */

    return nearest * (4.0 + 12.0 / sqrt(elements));
}

typedef struct verdict {
    const iq_perf_setup_t *setup;
    const iq_perf_case_t *test;
    bool dense;
    double divisor, largest_local;
} verdict_t;

static bool acceptable(const verdict_t *v, double error, double norm, double expected, double elements)
{
    double u = iq_perf_unit_roundoff(v->test->type->type);
    double allowed = (4.0 * u * u + 1e-9) * norm + elements * 0x1p-48 * (v->test->type->bytes == 2 ? 1.0 : 0.0);

    if (v->dense)
        allowed += dense_allowance(v->setup, v->test, v->largest_local, elements) / (v->divisor * v->divisor);
    else
        allowed += slack(v->test, elements) * expected / (v->divisor * v->divisor);
    return error <= allowed;
}

/* Add one rank's bias gradient; a dense call quantizes it together with the product. */
static void add_bias(product_t *product, const iq_perf_case_t *test, const double *delta, double *bias)
{
    for (size_t j = 0; j < test->n; j++) {
        double local = 0.0;
        for (size_t row = 0; row < test->rows; row++)
            local += delta[row * test->n + j];
        bias[j] += local;
        product->largest_local = fmax(product->largest_local, fabs(local));
    }
}

/* Every rank's factors: the exact part of the gradient, the exact bias [n] if there is one, the expected noise. */
static void gather_exact(const iq_perf_setup_t *setup, const iq_perf_case_t *test, product_t *product, double *bias,
                         noise_t *noise)
{
    iq_perf_factor_promise_t promise = iq_perf_factor_promise(test->quantizer_text, test->m, test->n);
    double *x = numbers(test->rows * test->m), *delta = numbers(test->rows * test->n);

    for (int rank = 0; rank < setup->nranks; rank++) {
        iq_perf_factors(setup, test, rank, x, delta);
        add_product(product, test, x, delta);
        add_noise(noise, &promise, test, x, delta);
        if (bias != NULL)
            add_bias(product, test, delta, bias);
    }
    free(x);
    free(delta);
}

void iq_perf_check_factored(const iq_perf_setup_t *setup, const iq_perf_case_t *test, const void *grad, const void *bias,
                            iq_perf_result_t *result)
{
    size_t first = test->m * (size_t)setup->rank / (size_t)setup->nranks;
    size_t end = test->m * ((size_t)setup->rank + 1) / (size_t)setup->nranks;
    product_t product = {.first = first, .rows = end - first, .n = test->n};
    verdict_t v = {.setup = setup, .test = test, .dense = strcmp(result->record.algorithm, "dense") == 0 || test->lossless};
    double *exact_bias = bias != NULL ? numbers(test->n) : NULL, sums[2] = {0}, bias_error = 0, bias_norm = 0;
    noise_t noise = {0};

    product.sum = numbers(product.rows * product.n);
    product.local = numbers(product.rows * product.n);
    gather_exact(setup, test, &product, exact_bias, &noise);
    v.divisor = test->op == ISGQ_AVG ? setup->nranks : 1.0;
    v.largest_local = product.largest_local;
    iq_perf_combine(setup, ISGQ_MAX, &v.largest_local, 1);
    compare(product.sum, grad, test, first * test->n, product.rows * test->n, v.divisor, &sums[0], &sums[1]);
    iq_perf_combine(setup, ISGQ_SUM, sums, 2);
    result->nmse = sums[0] == 0.0 ? 0.0 : sums[0] / sums[1];
    result->wrong = !acceptable(&v, sums[0], sums[1], noise.gradient, (double)test->m * (double)test->n);
    if (bias != NULL) {
        compare(exact_bias, bias, test, 0, test->n, v.divisor, &bias_error, &bias_norm);
        result->wrong += !acceptable(&v, bias_error, bias_norm, noise.bias, (double)test->n);
    }
    free(product.sum);
    free(product.local);
    free(exact_bias);
}
