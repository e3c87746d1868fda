/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A lossy result e = found - due is checked in three ways. Each element: |e| is below the steps that its rounding took. The whole:
 * sum e^2 is about what roundings of variance step^2 / 4 add up to. And along the exact result: sum e * due is about 0, so neither
 * zeros nor a flipped sign nor a missing rank can pass for noise.
 */
#include "soak/soak_check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const soak_text_t soak_dense_texts[SOAK_DENSE_TEXTS] = {
    {.text = "fp16", .cast = 0x1p-11},
    {.text = "bf16", .cast = 0x1p-8},
    {.text = "uniform:bits=1", .bits = 1, .bucket = 1024},
    {.text = "uniform:bits=3,bucket=64", .bits = 3, .bucket = 64},
    {.text = "uniform:bits=4,rounding=nearest", .bits = 4, .bucket = 1024, .nearest = true},
    {.text = "uniform:bits=6,sum=requantized", .bits = 6, .bucket = 1024},
    {.text = "uniform:bits=8,scale=local,bucket=tensor", .bits = 8},
    {.text = "uniform:bits=2,sum=exact,bucket=tensor", .bits = 2, .exact = true},
    {.text = "isgq:bits=4,coding=none", .bits = 4, .bucket = 1024},
    {.text = "isgq:bits=2.5", .bits = 2, .wide = 4}, /* one step for the tensor */
};

const soak_text_t soak_factor_texts[SOAK_FACTOR_TEXTS] = {
    {.text = "factor:width=4/4", .width_x = 4, .width_delta = 4},
    {.text = "factor:width=2/8,rounding=nearest", .width_x = 2, .width_delta = 8, .nearest = true},
    {.text = "isgq:bits=4", .budget = 4, .bits = 8, .wide = 4}, /* the product has four bits more, and one step */
    {.text = "isgq:bits=2", .budget = 2, .bits = 6, .wide = 4},
    {.text = "none"},
    {.text = "dense=uniform:bits=4;factored=factor:width=3", .width_x = 3, .width_delta = 3, .bits = 4, .bucket = 1024},
};

enum { AUTO_EXACT_RANKS = 8 };

/* Above an expectation: much where few numbers scatter. */
#define SIGMAS 7.0
#define EXCESS 1.3
#define EXCESS_OF_FEW 7.0
#define EXCESS_OF_VERY_FEW 14.0

/* Sums over the tensor: squared errors, what is expected of them, and the error along the exact result with its variance. */
typedef struct whole {
    double error, expected, norm, along, variance, draws;
    bool nearest;
} whole_t;

static double roundoff(isgq_data_type_t type)
{
    return type == ISGQ_FLOAT16 ? 0x1p-11 : type == ISGQ_BFLOAT16 ? 0x1p-8 : 0x1p-24;
}

static void whole_add(whole_t *whole, double error, double due, double variance)
{
    whole->error += error * error;
    whole->norm += due * due;
    whole->along += error * due;
    whole->expected += variance;
    whole->variance += variance * due * due;
}

static void whole_check(iq_rank_t *rank, const whole_t *w, isgq_data_type_t type, const char *text)
{
    double u = roundoff(type), draws = fmax(w->draws, 0.25);
    double slack = EXCESS + EXCESS_OF_FEW / sqrt(draws) + EXCESS_OF_VERY_FEW / draws,
           base = (4 * u * u + 1e-5 * 1e-5) * w->norm + 1e-9;
    double along = SIGMAS * sqrt(w->variance) + (w->nearest ? sqrt(w->expected * w->norm) : 0) + (2 * u + 1e-5) * w->norm + 1e-9;
    RANK_CHECK(rank, w->error <= slack * w->expected + base, "%s: squared error %g where %g is expected, of %g", text, w->error,
               w->expected, w->norm);
    RANK_CHECK(rank, fabs(w->along) <= along, "%s: the error along the exact result is %g of %g, at most %g is likely", text,
               w->along, w->norm, along);
}

/* ---- dense ---- */

/* What was summed: values[part * stride + element]. */
typedef struct parts {
    const double *values;
    size_t stride, count;
    int nparts;
    double divisor, absolute;
    double others; /* largest magnitude of what else is in the last bucket */
} parts_t;

static double largest(const parts_t *parts, size_t first, size_t count)
{
    double most = first + count == parts->count ? parts->others : 0;
    for (int p = 0; p < parts->nparts; p++)
        for (size_t i = first; i < first + count; i++)
            most = fmax(most, fabs(parts->values[(size_t)p * parts->stride + i]));
    return most;
}

/* Steps of one rounding of each part, and of one of the sum. */
typedef struct steps {
    double part, sum;
} steps_t;

static steps_t steps_of(const soak_text_t *text, double most, int nparts)
{
    double levels = text->bits == 1 ? 0.5 : exp2(text->bits - 1.0) - 1;
    bool local = strstr(text->text, "local") != NULL,
         again = strstr(text->text, "requantized") != NULL || strstr(text->text, "isgq") != NULL;
    if (text->bits == 0)
        return (steps_t){0, 0};
    again |= local || (!text->exact && nparts > AUTO_EXACT_RANKS);
    return (steps_t){most / levels, again ? nparts * most / levels : 0};
}

static void check_element(iq_rank_t *rank, const soak_text_t *text, const parts_t *parts, isgq_data_type_t type, steps_t steps,
                          size_t i, double found, whole_t *whole)
{
    double due = 0, size = 0, n = parts->nparts, u = roundoff(type), d = parts->divisor;
    for (int p = 0; p < parts->nparts; p++) {
        due += parts->values[(size_t)p * parts->stride + i];
        size += fabs(parts->values[(size_t)p * parts->stride + i]);
    }
    double rounding = (n * steps.part + steps.sum) * (text->nearest ? 0.5 : text->wide > 0 ? text->wide : 1.0);
    double tiny = (n + 2) * (text->cast > 0 || type == ISGQ_FLOAT16 ? 0x1p-24 : 0x1p-120) + parts->absolute;
    double allowed = rounding * (1.0001 + 2 * u) + ((n + 1) * (text->cast + 0x1p-22) + 2 * u) * size + tiny;
    RANK_CHECK(rank, fabs(found - due / d) <= allowed / d + 0x1p-24 * (type == ISGQ_FLOAT16), "%s: element %zu is %g, not %g",
               text->text, i, found, due / d);
    whole_add(whole, found - due / d, due / d, (n * steps.part * steps.part + steps.sum * steps.sum) / 4 / (d * d));
}

static void check_parts(iq_rank_t *rank, const soak_text_t *text, const parts_t *parts, isgq_data_type_t type, const void *out)
{
    whole_t whole = {.nearest = text->nearest};
    size_t bucket = text->bucket == 0 || parts->count < text->bucket ? parts->count : text->bucket;
    for (size_t first = 0; first < parts->count; first += bucket) {
        size_t count = parts->count - first < bucket ? parts->count - first : bucket;
        steps_t steps = steps_of(text, largest(parts, first, count), parts->nparts);
        for (size_t i = first; i < first + count; i++)
            check_element(rank, text, parts, type, steps, i, iq_numbers_get(type, out, i), &whole);
    }
    whole.draws = (double)(parts->count < 64 ? parts->count : 64);
    if (text->bits > 0) /* casts are held to a small error everywhere already */
        whole_check(rank, &whole, type, text->text);
}

static double *numbers(size_t count) { return calloc(count + 1, sizeof(double)); }

void soak_check_dense(iq_rank_t *rank, const soak_text_t *text, isgq_data_type_t type, isgq_red_op_t op, uint64_t salt,
                      size_t count, const void *out)
{
    double *values = numbers(count * (size_t)rank->nranks);
    parts_t parts = {
        .values = values, .stride = count, .count = count, .nparts = rank->nranks, .divisor = op == ISGQ_AVG ? rank->nranks : 1};
    for (int p = 0; p < rank->nranks; p++)
        for (size_t i = 0; i < count; i++)
            values[(size_t)p * count + i] = iq_sample(type, salt, p, i);
    check_parts(rank, text, &parts, type, out);
    free(values);
}

/* ---- factored ---- */

size_t soak_batch_of(const soak_layer_t *layer, int rank)
{
    return (size_t)(layer->salt + (uint64_t)rank * 5) % (layer->max_batch + 1);
}

double soak_factor_at(const soak_layer_t *layer, int which, size_t row, size_t column, int rank)
{
    return iq_sample(layer->type, layer->salt + (uint64_t)which + row * 1000, rank, column % 64);
}

/* Squared norm of a row, and the variance of rounding it to codes of that width. */
typedef struct energy {
    double squares, rounding;
} energy_t;

static energy_t row_energy(const double *values, size_t count, double levels)
{
    energy_t energy = {0, 0};
    double most = 0, nonzero = 0;
    for (size_t i = 0; i < count; i++) {
        most = fmax(most, fabs(values[i]));
        nonzero += values[i] != 0;
        energy.squares += values[i] * values[i];
    }
    double step = 1.125 * most / levels;
    energy.rounding = nonzero * step * step / 4;
    return energy;
}

/* Expected squared error of rows of these widths, each sent with probability `keep`. */
static double rows_error(const soak_layer_t *layer, const double *x, const double *delta, size_t rows, unsigned width_x,
                         unsigned width_delta, double keep)
{
    double sum = 0;
    for (size_t r = 0; r < rows; r++) {
        energy_t a = row_energy(x + r * layer->m, layer->m, exp2(width_x - 1.0) - 1);
        energy_t b = row_energy(delta + r * layer->n, layer->n, exp2(width_delta - 1.0) - 1);
        sum += (a.squares + a.rounding) * (b.squares + b.rounding) / keep - a.squares * b.squares;
    }
    return sum;
}

/* A budget's own choice is at least as good as the same width for all rows. The bias gradient has its share: 2 for that. */
static double budget_error(const soak_layer_t *layer, const double *x, const double *delta, size_t rows, double budget)
{
    double best = INFINITY, bytes = fmax(32, budget * (double)(rows * (layer->m + layer->n)) / 8) - 8;
    for (unsigned width = 2; width <= 8; width++) {
        double row = 3.0 + (double)(((layer->m + 7) / 8 + (layer->n + 7) / 8) * width);
        double keep = fmin(1.0, bytes / (row * (double)rows));
        best = fmin(best, rows_error(layer, x, delta, rows, width, width, keep));
    }
    return rows > 0 ? 2 * best : 0;
}

/* The largest element of a rank's bias gradient, which follows the product in a dense call. */
static double largest_bias(const soak_layer_t *layer, int rank)
{
    double most = 0;
    for (size_t j = 0; j < layer->n; j++) {
        double sum = 0;
        for (size_t r = 0; r < soak_batch_of(layer, rank); r++)
            sum += soak_factor_at(layer, 1, r, j, rank);
        most = fmax(most, fabs(sum));
    }
    return most;
}

/* One rank's factors; adds to the gradient, and what is expected of its error. */
static double add_rank(const soak_text_t *text, const soak_layer_t *layer, int rank, double *grad)
{
    size_t rows = soak_batch_of(layer, rank), m = layer->m, n = layer->n;
    double *x = numbers(rows * m), *delta = numbers(rows * n), expected = 0;
    for (size_t r = 0; r < rows; r++) {
        for (size_t i = 0; i < m; i++)
            x[r * m + i] = soak_factor_at(layer, 0, r, i, rank);
        for (size_t j = 0; j < n; j++)
            delta[r * n + j] = soak_factor_at(layer, 1, r, j, rank);
        for (size_t i = 0; i < m; i++)
            for (size_t j = 0; j < n; j++)
                grad[i * n + j] += x[r * m + i] * delta[r * n + j];
    }
    if (text->width_x > 0)
        expected = rows_error(layer, x, delta, rows, text->width_x, text->width_delta, 1);
    else if (text->budget > 0)
        expected = budget_error(layer, x, delta, rows, text->budget);
    free(x);
    free(delta);
    return expected;
}

/* Errors of rows spread over the whole gradient: their variance along it is at most their energy. */
static void check_rows(iq_rank_t *rank, const soak_text_t *text, const soak_layer_t *layer, const double *due, double expected,
                       const void *out)
{
    whole_t whole = {.nearest = text->nearest};
    double rows = 0, elements = (double)(layer->m * layer->n);
    for (int r = 0; r < rank->nranks; r++)
        rows += (double)soak_batch_of(layer, r);
    for (size_t i = 0; i < layer->m * layer->n; i++)
        whole_add(&whole, iq_numbers_get(layer->type, out, i) - due[i], due[i], 0);
    whole.draws = fmin(elements, rows / 4);
    whole.expected = expected * (text->nearest ? 4 : 1);
    whole.variance = whole.expected * whole.norm;
    whole_check(rank, &whole, layer->type, text->text);
}

void soak_check_gradient(iq_rank_t *rank, const soak_text_t *text, const soak_layer_t *layer, bool dense, const void *out)
{
    size_t elements = layer->m * layer->n, nparts = (size_t)rank->nranks;
    double *grads = numbers(elements * nparts), expected = 0;
    for (size_t r = 0; r < nparts; r++) /* of its own, or one for all */
        expected += add_rank(text, layer, (int)r, grads + (dense ? r * elements : 0));
    parts_t parts = {
        .values = grads, .stride = elements, .count = elements, .nparts = rank->nranks, .divisor = 1, .absolute = 1e-4};
    for (int r = 0; r < rank->nranks; r++)
        parts.others = fmax(parts.others, largest_bias(layer, r));
    if (dense)
        check_parts(rank, text, &parts, layer->type, out);
    else
        check_rows(rank, text, layer, grads, expected, out);
    free(grads);
}
