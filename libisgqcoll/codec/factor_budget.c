/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a budget of bytes is spent: every row gets its own widths and keep probability.
 *
 * A row with squared norms X and D whose rounding adds variances v and w costs `bytes` and, kept with probability p, adds the
 * expected squared error (X + v)(D + w) / p - X D. For a price per byte the best p is min(1, sqrt((X + v)(D + w) / (price *
 * bytes))); among the widths the best has the least error + price * bytes * p. The price is the one at which the expected bytes
 * meet the budget.
 */
#include "base/util.h"
#include "codec/factor_internal.h"

#include <float.h>
#include <math.h>

/* Widths of x and delta differ by at most so much. */
#define WIDTH_SPREAD 2

/* Rounding weights up makes steps this much larger on average. */
#define STEP_GROWTH 1.06f

#define BISECTIONS 18

/* sums[lane] += f (1 - f), f the fractions of |value| * inverse: the variances of stochastic rounding. `count` in whole lanes. */
static void add_variances(const float *values, size_t count, float inverse, float *sums)
{
    for (size_t i = 0; i < count; i += IQ_FACTOR_LANES)
        for (size_t lane = 0; lane < IQ_FACTOR_LANES; lane++) {
            float y = fabsf(values[i + lane]) * inverse;
            float fraction = y - (float)(int32_t)y;
            sums[lane] += fraction - fraction * fraction;
        }
}

/* What rounding a row would add at every width. A row's values are first divided by its largest, so that squares stay within
 * floats. */
static void measure_variances(isgq_data_type_t datatype, const void *factor, size_t first, size_t count, bool is_unsigned,
                              iq_factor_side_t *side)
{
    float sums[IQ_FACTOR_WIDTHS][IQ_FACTOR_LANES] = {{0}};
    for (size_t done = 0; done < count; done += IQ_FACTOR_CHUNK) {
        float values[IQ_FACTOR_CHUNK];
        size_t padded = iq_factor_load_lanes(datatype, factor, first + done, iq_min(count - done, IQ_FACTOR_CHUNK), values);
        for (size_t i = 0; i < padded; i++)
            values[i] /= side->max_abs;
        for (unsigned w = 0; w < IQ_FACTOR_WIDTHS; w++)
            add_variances(values, padded, (float)iq_factor_levels(IQ_FACTOR_MIN_WIDTH + w, is_unsigned) / STEP_GROWTH, sums[w]);
    }
    for (unsigned w = 0; w < IQ_FACTOR_WIDTHS; w++) {
        float step = STEP_GROWTH / (float)iq_factor_levels(IQ_FACTOR_MIN_WIDTH + w, is_unsigned);
        for (size_t half = IQ_FACTOR_LANES / 2; half > 0; half /= 2)
            for (size_t lane = 0; lane < half; lane++)
                sums[w][lane] += sums[w][lane + half];
        side->variance[w] = step * step * sums[w][0];
    }
}

/* One factor's row at every width. */
typedef struct options {
    double energy[IQ_FACTOR_WIDTHS]; /* expected squared norm of the rounded row */
    size_t bytes[IQ_FACTOR_WIDTHS];
} options_t;

static void list_options(const iq_factor_side_t *side, size_t count, options_t *options)
{
    double square = (double)side->max_abs * (double)side->max_abs;
    for (unsigned w = 0; w < IQ_FACTOR_WIDTHS; w++) {
        options->energy[w] = side->sum_squares + square * (double)side->variance[w];
        options->bytes[w] = side->max_abs > 0 ? iq_factor_side_bytes(count, side->nonzero, IQ_FACTOR_MIN_WIDTH + w) : 0;
    }
}

/* Even multiples of 2^-32, never 0. */
static uint64_t keep_units(double p)
{
    uint64_t units = p >= 1 ? IQ_FACTOR_CERTAIN : 2 * (uint64_t)(p * (double)(IQ_FACTOR_CERTAIN / 2));
    return units < 2 ? 2 : units;
}

/* The best choice for one row at a price. The bias is one more column of X that holds 1 and is not rounded. */
static void choose(const iq_factor_call_t *call, double price, iq_factor_row_t *row)
{
    options_t x, delta;
    double bias = call->want_bias ? 1 : 0, best = INFINITY;
    list_options(&row->x, call->m, &x);
    list_options(&row->delta, call->n, &delta);
    for (int i = 0; i < IQ_FACTOR_WIDTHS; i++)
        for (int j = i < WIDTH_SPREAD ? 0 : i - WIDTH_SPREAD; j < IQ_FACTOR_WIDTHS && j <= i + WIDTH_SPREAD; j++) {
            size_t bytes = iq_factor_row_header(call) + x.bytes[i] + delta.bytes[j];
            double energy = (x.energy[i] + bias) * delta.energy[j];
            double cost = price * (double)bytes;
            double loss = energy >= cost ? energy + cost : 2 * sqrt(energy) * sqrt(cost);
            if (loss < best) {
                best = loss;
                row->keep = energy >= cost ? IQ_FACTOR_CERTAIN : keep_units(sqrt(energy / cost));
                row->bytes = bytes;
                row->width_x = (unsigned)(IQ_FACTOR_MIN_WIDTH + i);
                row->width_delta = (unsigned)(IQ_FACTOR_MIN_WIDTH + j);
            }
        }
}

/* Choose for every row; returns the expected bytes. */
static double choose_all(const iq_factor_call_t *call, double price, iq_factor_state_t *state)
{
    double expected = 0;
    for (size_t r = 0; r < call->batch; r++) {
        iq_factor_row_t *row = &state->rows[r];
        if (row->keep != 0) {
            choose(call, price, row);
            expected += (double)row->bytes * ((double)row->keep / (double)IQ_FACTOR_CERTAIN);
        }
    }
    return expected;
}

/* A price between those of all rows, to start from. */
static double first_price(const iq_factor_call_t *call, const iq_factor_state_t *state)
{
    double price = DBL_MIN;
    for (size_t r = 0; r < call->batch; r++) {
        const iq_factor_row_t *row = &state->rows[r];
        if (row->keep != 0)
            price = fmax(price, (row->x.sum_squares + (call->want_bias ? 1 : 0)) * row->delta.sum_squares / (double)row->bytes);
    }
    return price;
}

/* Rows that contribute anything are candidates, and get their variances. */
static void list_candidates(const iq_factor_call_t *call, const void *x, const void *delta, iq_factor_state_t *state)
{
    for (size_t r = 0; r < call->batch; r++) {
        iq_factor_row_t *row = &state->rows[r];
        bool has_x = row->x.max_abs > 0, counts = row->delta.max_abs > 0 && (has_x || call->want_bias);
        row->keep = counts ? IQ_FACTOR_CERTAIN : 0;
        row->bytes = 0;
        if (counts && has_x)
            measure_variances(call->datatype, x, r * call->m, call->m, state->facts->unsigned_x, &row->x);
        if (counts)
            measure_variances(call->datatype, delta, r * call->n, call->n, false, &row->delta);
    }
}

void iq_factor_allot(const iq_factor_spec_t *spec, const iq_factor_call_t *call, const void *x, const void *delta,
                     iq_factor_state_t *state)
{
    double budget = (double)iq_factor_budget(spec, call, call->batch);
    list_candidates(call, x, delta, state);
    if (choose_all(call, 0, state) <= budget)
        return;
    double high = first_price(call, state), low;
    while (choose_all(call, high, state) > budget && high < DBL_MAX / 64)
        high *= 64;
    for (low = high / 64; low > 0 && choose_all(call, low, state) <= budget; low /= 64)
        high = low;
    for (int i = 0; i < BISECTIONS; i++) {
        double middle = sqrt(low) * sqrt(high);
        if (choose_all(call, middle, state) <= budget)
            high = middle;
        else
            low = middle;
    }
    choose_all(call, high, state);
}
