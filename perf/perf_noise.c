/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The squared error that a factored quantizer's definition makes expected (docs/numerics.md, section 7).
 *
 * A row with squared norms X, D, rounding variances v, w and probability p adds (X + v)(D + w) / p - X D. Fixed widths say all of
 * it. A budget's own choice has the least error that its bytes allow; so every choice that keeps the budget bounds it from above,
 * and the best one with the same widths for all rows is near. isgq-dithered has one scale for all rows.
 */
#include "perf/perf.h"
#include "tools/common/options.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LEAST_WIDTH = 2, MOST_WIDTH = 8, WIDTHS = MOST_WIDTH + 1, RECIPE_BYTES = 256 };

/* Grid of row weights: rounding up makes a step at most so much larger. */
#define STEP_GROWTH 1.125

/* Bytes of a blob and of a row besides its codes, at most. */
#define BLOB_BYTES 8.0
#define ROW_BYTES 3.0

/* Squared norms of a row, and rounding variances by width. */
typedef struct row {
    double x2, delta2, vx[WIDTHS], vdelta[WIDTHS];
} row_t;

typedef struct recipe {
    bool nearest;
    bool dither;                   /* subtractive: the same variance for every value that is not zero */
    bool whole;                    /* a scale for a rank's factor, not for each row */
    unsigned width_x, width_delta; /* 0: a budget */
    double bits;
} recipe_t;

static recipe_t read_recipe(const char *quantizer_text)
{
    recipe_t recipe = {0};
    char text[RECIPE_BYTES];

    iq_perf_recipe(quantizer_text, "factored=", text, sizeof(text));
    const char *width = strstr(text, "width=");
    if (width == NULL || sscanf(width, "width=%u/%u", &recipe.width_x, &recipe.width_delta) != 2)
        recipe.bits = iq_perf_setting(text, "bits", 4.0);
    recipe.nearest = strstr(text, "nearest") != NULL;
    recipe.whole = strncmp(text, "isgq-dithered", 13) == 0;
    recipe.dither = strstr(text, "dither") != NULL || strncmp(text, "isgq:", 5) == 0 || strcmp(text, "isgq") == 0;
    return recipe;
}

/* Codes up to `levels` for values up to `max`. */
static double rounding_variance(const double *values, size_t count, double max, double levels, const recipe_t *recipe)
{
    double sum = 0.0, step = STEP_GROWTH * max / levels;

    for (size_t i = 0; i < count && max > 0.0; i++) {
        double y = fabs(values[i]) / step, part = y - floor(y);
        double least = fmin(part, 1.0 - part);
        sum += step * step * (recipe->nearest ? least * least : recipe->dither ? (y > 0.0) / 12.0 : part * (1.0 - part));
    }
    return sum;
}

static double largest(const double *values, size_t count, double least)
{
    for (size_t i = 0; i < count; i++)
        least = fmax(least, fabs(values[i]));
    return least;
}

/* A row; `least` is what its scale is at least. */
static void measure(const double *values, size_t count, double least, bool is_unsigned, const recipe_t *recipe, double *squares,
                    double *variances)
{
    double max = largest(values, count, least);

    *squares = 0.0;
    for (size_t i = 0; i < count; i++)
        *squares += values[i] * values[i];
    for (int width = LEAST_WIDTH; width <= MOST_WIDTH; width++)
        variances[width] = rounding_variance(values, count, max, exp2(width - (is_unsigned ? 0 : 1)) - 1.0, recipe);
}

/* What the rows cost: the expected error of all, the least value of X + 1. */
typedef struct outcome {
    double gradient, bias, least_x;
} outcome_t;

typedef struct choice {
    unsigned width_x, width_delta;
    double scale; /* p = min(1, scale * weight) */
    bool bias;
} choice_t;

static double keep_probability(const choice_t *choice, const row_t *row)
{
    double weight = sqrt((row->x2 + row->vx[choice->width_x] + choice->bias) * (row->delta2 + row->vdelta[choice->width_delta]));

    return fmin(1.0, choice->scale * weight);
}

static outcome_t judge(const choice_t *choice, const row_t *rows, size_t count)
{
    outcome_t outcome = {.least_x = INFINITY};

    for (size_t r = 0; r < count; r++) {
        const row_t *row = &rows[r];
        double p = keep_probability(choice, row), delta2 = row->delta2 + row->vdelta[choice->width_delta];
        if (p == 0.0) /* a row without content */
            continue;
        outcome.gradient += (row->x2 + row->vx[choice->width_x]) * delta2 / p - row->x2 * row->delta2;
        outcome.bias += delta2 / p - row->delta2;
        outcome.least_x = fmin(outcome.least_x, row->x2 + 1.0);
    }
    return outcome;
}

/* The largest scale that keeps the expected number of rows. */
static void meet_budget(choice_t *choice, const row_t *rows, size_t count, double most_rows)
{
    double low = -60.0, high = 60.0;

    for (int i = 0; i < 24; i++) {
        double kept = 0.0;
        choice->scale = exp2((low + high) / 2.0);
        for (size_t r = 0; r < count; r++)
            kept += keep_probability(choice, &rows[r]);
        *(kept > most_rows ? &high : &low) = (low + high) / 2.0;
    }
    choice->scale = exp2(low);
}

/* Error of gradient and bias together is what a budget makes small. */
static double total(const outcome_t *outcome, bool bias) { return outcome->gradient + (bias ? outcome->bias : 0.0); }

static outcome_t best_within(const iq_perf_case_t *test, double bits, bool bias, const row_t *rows)
{
    double budget = fmax(32.0, bits * (double)(test->rows * (test->m + test->n)) / 8.0) - BLOB_BYTES;
    outcome_t best = {.gradient = INFINITY};

    for (unsigned x = LEAST_WIDTH; x <= MOST_WIDTH; x++)
        for (unsigned delta = LEAST_WIDTH; delta <= MOST_WIDTH; delta++) {
            choice_t choice = {.width_x = x, .width_delta = delta, .bias = bias};
            double bytes = ROW_BYTES + (double)((test->m + 7) / 8 * x + (test->n + 7) / 8 * delta);
            if ((x > delta ? x - delta : delta - x) > 2)
                continue;
            meet_budget(&choice, rows, test->rows, budget / bytes);
            outcome_t outcome = judge(&choice, rows, test->rows);
            if (total(&outcome, bias) < total(&best, bias))
                best = outcome;
        }
    return best;
}

static void add_outcome(iq_perf_noise_t *noise, const outcome_t *outcome, const recipe_t *recipe, bool bias)
{
    bool budget = recipe->width_x == 0;
    double gradient = budget ? total(outcome, bias) : outcome->gradient;

    noise->gradient += gradient;
    /* a budget may share its error between the two otherwise than our choice; each row's part of the first is X + 1 times the second */
    noise->bias += budget && gradient > 0.0 ? gradient / outcome->least_x : outcome->bias;
}

void iq_perf_noise_add(iq_perf_noise_t *noise, const iq_perf_case_t *test, bool bias, const double *x, const double *delta)
{
    recipe_t recipe = read_recipe(test->quantizer_text);
    row_t *rows = calloc(test->rows + 1, sizeof(row_t));
    choice_t fixed = {.width_x = recipe.width_x, .width_delta = recipe.width_delta, .scale = INFINITY, .bias = bias};
    double least_x = recipe.whole ? largest(x, test->rows * test->m, 0.0) : 0.0;
    double least_delta = recipe.whole ? largest(delta, test->rows * test->n, 0.0) : 0.0;
    bool is_unsigned = !recipe.whole;

    if (rows == NULL)
        iq_die(IQ_EXIT_FAILED, "no memory for %zu rows", test->rows);
    for (size_t i = 0; i < test->rows * test->m; i++)
        is_unsigned &= x[i] >= 0.0;
    for (size_t r = 0; r < test->rows; r++) {
        measure(x + r * test->m, test->m, least_x, is_unsigned, &recipe, &rows[r].x2, rows[r].vx);
        measure(delta + r * test->n, test->n, least_delta, false, &recipe, &rows[r].delta2, rows[r].vdelta);
    }
    outcome_t outcome = recipe.width_x > 0 ? judge(&fixed, rows, test->rows) : best_within(test, recipe.bits, bias, rows);
    noise->least_x = noise->draws == 0.0 ? outcome.least_x : fmin(noise->least_x, outcome.least_x);
    add_outcome(noise, &outcome, &recipe, bias);
    noise->only_rounding = recipe.width_x > 0;
    noise->draws += (double)test->rows * (recipe.width_x > 0 ? (double)(test->m + test->n) : 1.0);
    free(rows);
}
