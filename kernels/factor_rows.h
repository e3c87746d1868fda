/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows of the factored codec: how one is measured, what it costs, what it weighs, whether and how it is sent. Shared by C and
 * CUDA: same source, same bits (compile with contraction off). Everything is IEEE arithmetic on single rows; sums over the
 * elements of a row, and over rows, are taken in lanes that are the same everywhere.
 *
 * Row weights. A row is kept with probability p and then weighs B = up(max|delta| / (L_d p)) and C = up(B max|x| / L_x), where
 * L are the largest codes and up() rounds up to (8 + m) 2^k, m in 0..7. Its steps are d = B p for delta and a = C / B for x, so
 * that C q p / p_keep and B p / p_keep are unbiased whatever B and C are: a larger weight is a coarser step and nothing else.
 */
#ifndef ISGQ_KERNELS_FACTOR_ROWS_H
#define ISGQ_KERNELS_FACTOR_ROWS_H

#include "kernels/quant_math.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>

/* Octaves that row weights span; lighter rows are kept at the lightest weight with the matching probability. */
#define IQ_FACTOR_OCTAVES 12

/* The blob, see libisgqcoll/codec/factor_encode.c. */
enum {
    IQ_FACTOR_VERSION = 1,
    IQ_FACTOR_VERSION_FINE = 2,    /* rows dithered or coded; this and the next ones on host memory only */
    IQ_FACTOR_VERSION_CENTERS = 3, /* isgq-mse, isgq-mvu */
    IQ_FACTOR_VERSION_DITHERED = 4,
    IQ_FACTOR_HEADER_BYTES = 8,
    IQ_FACTOR_FLAG_UNSIGNED = 1, /* header: codes of X are 0..2^w-1 */
    IQ_FACTOR_FLAG_BIAS = 2,     /* header: rows carry B */
    IQ_FACTOR_FLAG_CODED = 4,    /* header: codes are coded, not packed; not in version 1 */
    IQ_FACTOR_PLANE_X = 0x40,    /* row: X is a zero plane and the non-zero codes */
    IQ_FACTOR_PLANE_DELTA = 0x80
};

enum { IQ_FACTOR_MIN_WIDTH = 2, IQ_FACTOR_MAX_WIDTH = 8, IQ_FACTOR_WIDTHS = IQ_FACTOR_MAX_WIDTH - IQ_FACTOR_MIN_WIDTH + 1 };

/* Keep probabilities are even multiples of 2^-32: exact, and half of one is a probability too. */
#define IQ_FACTOR_CERTAIN ((uint64_t)1 << 32)

/*
 * Sums over a row: element i goes to lane i mod 16 of chunk i / 256; the lanes of a chunk are folded as a tree (8 onto 8, 4 onto
 * 4, ...), and the chunks added in their order. Sums over rows: row r goes to lane r mod 512, and the lanes are folded likewise.
 */
enum { IQ_FACTOR_CHUNK = 256, IQ_FACTOR_LANES = 16, IQ_FACTOR_ROW_LANES = 512 };

/* A row of one factor, measured. */
typedef struct iq_factor_side {
    double sum_squares;
    uint64_t nonzero;
    float max_abs;
    float variance[IQ_FACTOR_WIDTHS]; /* that rounding adds, in squares of max_abs; budget mode */
} iq_factor_side_t;

typedef struct iq_factor_row {
    iq_factor_side_t x, delta;
    uint64_t keep;  /* probability in units of 2^-32; 0: the row contributes nothing */
    uint64_t bytes; /* most bytes it takes in the blob */
    uint32_t width_x, width_delta;
} iq_factor_row_t;

/* What all rows of a call have in common. */
typedef struct iq_factor_shape {
    uint64_t m, n;
    bool want_bias;
} iq_factor_shape_t;

/* ---- sizes ---- */

/* Largest code of a width. */
IQ_DEVICE int32_t iq_factor_levels(uint32_t width, bool is_unsigned)
{
    return is_unsigned ? (1 << width) - 1 : (1 << (width - 1)) - 1;
}

/* C, B if wanted, widths and zero-plane flags. */
IQ_DEVICE uint32_t iq_factor_row_header(bool want_bias) { return want_bias ? 3 : 2; }

/* Bytes of so many packed codes; as iq_packed_bytes of kernels.h. */
IQ_DEVICE uint64_t iq_factor_packed(uint64_t count, uint32_t width) { return (count / 8 + (count % 8 != 0)) * width; }

/* Bytes of `count` codes, `nonzero` of them not zero: in full or with a zero plane, whichever is less. */
IQ_DEVICE uint64_t iq_factor_side_bytes(uint64_t count, uint64_t nonzero, uint32_t width)
{
    uint64_t full = iq_factor_packed(count, width), plane = iq_factor_packed(count, 1) + iq_factor_packed(nonzero, width);
    return full < plane ? full : plane;
}

/* ---- doubles ---- */

IQ_DEVICE uint64_t iq_double_bits(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

IQ_DEVICE double iq_bits_double(uint64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* 2^exponent, which is no subnormal. */
IQ_DEVICE double iq_power_of_two(int exponent) { return iq_bits_double((uint64_t)(exponent + 1023) << 52); }

/* The exponent of frexp: value is in [1/2, 1) * 2^it. 0 for 0; no subnormals. */
IQ_DEVICE int iq_exponent_of(double value) { return value == 0 ? 0 : (int)(iq_double_bits(value) >> 52 & 0x7ff) - 1022; }

IQ_DEVICE double iq_larger(double a, double b) { return a > b ? a : b; }
IQ_DEVICE double iq_smaller(double a, double b) { return a < b ? a : b; }

/* ---- measuring ---- */

/* Rounding weights up makes steps this much larger on average. */
#define IQ_FACTOR_STEP_GROWTH 1.06f

/* Levels per step growth: what |value| / max_abs is multiplied with at a width. */
IQ_DEVICE float iq_factor_fineness(uint32_t width, bool is_unsigned)
{
    return (float)iq_factor_levels(width, is_unsigned) / IQ_FACTOR_STEP_GROWTH;
}

/* f (1 - f), f the fraction of y >= 0: the variance of stochastic rounding. */
IQ_DEVICE float iq_factor_spread(float y)
{
    float fraction = y - (float)(int32_t)y;
    return fraction - fraction * fraction;
}

/* A row's variance at a width from its sum of spreads. */
IQ_DEVICE float iq_factor_variance(uint32_t width, bool is_unsigned, float sum)
{
    float step = IQ_FACTOR_STEP_GROWTH / (float)iq_factor_levels(width, is_unsigned);
    return step * step * sum;
}

/* Does the row contribute anything? */
IQ_DEVICE bool iq_factor_counts(const iq_factor_row_t *row, bool want_bias)
{
    return row->delta.max_abs > 0 && (row->x.max_abs > 0 || want_bias);
}

/* ---- fixed widths: every row that contributes anything ---- */

IQ_DEVICE void iq_factor_keep(const iq_factor_shape_t *shape, uint32_t width_x, uint32_t width_delta, iq_factor_row_t *row)
{
    row->keep = iq_factor_counts(row, shape->want_bias) ? IQ_FACTOR_CERTAIN : 0;
    row->width_x = width_x;
    row->width_delta = width_delta;
    row->bytes = iq_factor_row_header(shape->want_bias) + iq_factor_side_bytes(shape->n, row->delta.nonzero, width_delta) +
                 (row->x.max_abs > 0 ? iq_factor_side_bytes(shape->m, row->x.nonzero, width_x) : 0);
}

/* ---- budgets: see libisgqcoll/codec/factor_budget.c ---- */

/* Widths of x and delta differ by at most so much. */
enum { IQ_FACTOR_WIDTH_SPREAD = 2, IQ_FACTOR_BISECTIONS = 18 };

/* Even multiples of 2^-32, never 0. */
IQ_DEVICE uint64_t iq_factor_keep_units(double p)
{
    uint64_t units = p >= 1 ? IQ_FACTOR_CERTAIN : 2 * (uint64_t)(p * (double)(IQ_FACTOR_CERTAIN / 2));
    return units < 2 ? 2 : units;
}

/* A row at one pair of widths: expected squared norm of its rounded outer product, and its bytes. */
typedef struct iq_factor_option {
    double energy, merit;
    uint64_t bytes;
    uint32_t width_x, width_delta;
} iq_factor_option_t;

IQ_DEVICE double iq_factor_energy(const iq_factor_side_t *side, int w)
{
    return side->sum_squares + (double)side->max_abs * (double)side->max_abs * (double)side->variance[w];
}

/*
 * The best choice for one row at a price a byte. Its loss is energy + cost where energy >= cost and the row is kept for
 * certain, else 2 sqrt(energy cost) with probability sqrt(energy / cost): the least of the one kind and the least of the other,
 * which needs no root, meet in the end. The bias is one more column of X that holds 1 and is not rounded.
 */
IQ_DEVICE void iq_factor_choose(const iq_factor_shape_t *shape, double price, iq_factor_row_t *row)
{
    iq_factor_option_t sure = {0, (double)INFINITY, 0, 0, 0}, maybe = sure;
    uint32_t header = iq_factor_row_header(shape->want_bias);
    for (int i = 0; i < IQ_FACTOR_WIDTHS; i++) {
        uint32_t width_x = (uint32_t)(IQ_FACTOR_MIN_WIDTH + i);
        double energy_x = iq_factor_energy(&row->x, i) + (shape->want_bias ? 1 : 0);
        uint64_t bytes_x = header + (row->x.max_abs > 0 ? iq_factor_side_bytes(shape->m, row->x.nonzero, width_x) : 0);
        for (int j = 0; j < IQ_FACTOR_WIDTHS; j++) {
            if (j > i + IQ_FACTOR_WIDTH_SPREAD || i > j + IQ_FACTOR_WIDTH_SPREAD)
                continue;
            uint32_t width_delta = (uint32_t)(IQ_FACTOR_MIN_WIDTH + j);
            uint64_t bytes = bytes_x + iq_factor_side_bytes(shape->n, row->delta.nonzero, width_delta);
            double energy = energy_x * iq_factor_energy(&row->delta, j), cost = price * (double)bytes;
            bool certain = energy >= cost;
            double merit = certain ? energy + cost : energy * (double)bytes;
            iq_factor_option_t option = {energy, merit, bytes, width_x, width_delta};
            if (certain && merit < sure.merit)
                sure = option;
            if (!certain && merit < maybe.merit)
                maybe = option;
        }
    }
    double cost = price * (double)maybe.bytes;
    bool certain = sure.bytes != 0 && (maybe.bytes == 0 || !(2 * sqrt(maybe.energy) * sqrt(cost) < sure.merit));
    row->keep = certain ? IQ_FACTOR_CERTAIN : iq_factor_keep_units(sqrt(maybe.energy / cost));
    row->bytes = certain ? sure.bytes : maybe.bytes;
    row->width_x = certain ? sure.width_x : maybe.width_x;
    row->width_delta = certain ? sure.width_delta : maybe.width_delta;
}

/* A row's share of the expected bytes. */
IQ_DEVICE double iq_factor_expected(const iq_factor_row_t *row)
{
    return (double)row->bytes * ((double)row->keep / (double)IQ_FACTOR_CERTAIN);
}

/* The price at which a row that was chosen at price 0 starts to be left out; the search starts from the highest. */
IQ_DEVICE double iq_factor_price(const iq_factor_row_t *row, bool want_bias)
{
    return (row->x.sum_squares + (want_bias ? 1 : 0)) * row->delta.sum_squares / (double)row->bytes;
}

/* The search for the price, a step at a time: choose for all rows at `price`, then ask with the bytes expected. */
typedef struct iq_factor_search {
    double budget, first; /* `first`: highest iq_factor_price, set after the choice at price 0 */
    double price, low, high;
    int phase, left;
} iq_factor_search_t;

enum { IQ_FACTOR_AT_ZERO, IQ_FACTOR_GOING_UP, IQ_FACTOR_GOING_DOWN, IQ_FACTOR_BISECTING, IQ_FACTOR_FOUND };

IQ_DEVICE void iq_factor_bisect(iq_factor_search_t *search)
{
    bool more = search->left-- > 0;
    search->phase = more ? IQ_FACTOR_BISECTING : IQ_FACTOR_FOUND;
    search->price = more ? sqrt(search->low) * sqrt(search->high) : search->high;
}

IQ_DEVICE void iq_factor_go_down(iq_factor_search_t *search)
{
    search->low = search->high / 64;
    search->phase = IQ_FACTOR_GOING_DOWN;
    search->price = search->low;
    if (!(search->low > 0))
        iq_factor_bisect(search);
}

/* false: the rows are as they should be. Else choose again at search->price. */
IQ_DEVICE bool iq_factor_search_on(iq_factor_search_t *search, double expected)
{
    bool fits = expected <= search->budget;
    if (search->phase == IQ_FACTOR_FOUND || (search->phase == IQ_FACTOR_AT_ZERO && fits))
        return false;
    if (search->phase == IQ_FACTOR_AT_ZERO) {
        search->phase = IQ_FACTOR_GOING_UP;
        search->price = search->high = iq_larger(search->first, DBL_MIN);
    } else if (search->phase == IQ_FACTOR_GOING_UP) {
        if (!fits && search->high < DBL_MAX / 64)
            search->price = search->high *= 64;
        else
            iq_factor_go_down(search);
    } else if (search->phase == IQ_FACTOR_GOING_DOWN) {
        if (fits) {
            search->high = search->low;
            iq_factor_go_down(search);
        } else {
            iq_factor_bisect(search);
        }
    } else {
        if (fits)
            search->high = search->price;
        else
            search->low = search->price;
        iq_factor_bisect(search);
    }
    return true;
}

IQ_DEVICE iq_factor_search_t iq_factor_search_from(double budget)
{
    iq_factor_search_t search = {budget, 0, 0, 0, 0, IQ_FACTOR_AT_ZERO, IQ_FACTOR_BISECTIONS};
    return search;
}

/* ---- weights ---- */

/* Peaks stay clear of subnormal floats; rows below are light rows like any others. */
#define IQ_FACTOR_LEAST_PEAK 0x1p-120

IQ_DEVICE float iq_factor_peak(double weight)
{
    if (weight > 0 && weight < IQ_FACTOR_LEAST_PEAK)
        weight = IQ_FACTOR_LEAST_PEAK;
    return weight > (double)FLT_MAX ? INFINITY : (float)weight;
}

/* The least (8 + m) 2^k that is not below `value`, which is 0 or no subnormal. */
IQ_DEVICE double iq_factor_up(double value)
{
    const uint64_t rest = ((uint64_t)1 << 49) - 1; /* below three bits of mantissa */
    return iq_bits_double((iq_double_bits(value) + rest) & ~rest);
}

/* Where the weights of one kind (B or C) lie: integer * 2^exponent, from `lightest` to `heaviest`. */
typedef struct iq_factor_grid {
    int exponent;
    double lightest, heaviest;
} iq_factor_grid_t;

/* With a bias the heaviest rows stay one octave below the top: a row that must be split sends each half with half its
 * probability. */
IQ_DEVICE iq_factor_grid_t iq_factor_grid_of(bool want_bias, float peak)
{
    int exponent = iq_exponent_of((double)peak) - (IQ_FACTOR_OCTAVES - (want_bias ? 1 : 0)) - 3;
    iq_factor_grid_t grid = {exponent, 8 * iq_power_of_two(exponent), 15 * iq_power_of_two(exponent + IQ_FACTOR_OCTAVES - 1)};
    return grid;
}

/* A weight on the grid as m and e. */
IQ_DEVICE uint8_t iq_factor_weight_byte(double weight, const iq_factor_grid_t *grid)
{
    uint32_t e = (uint32_t)(iq_exponent_of(weight) - 3 - grid->exponent);
    return (uint8_t)(e << 3 | (uint32_t)(iq_double_bits(weight) >> 49 & 7));
}

/* Weights of a row kept with probability keep / 2^32; B is on a grid only if `grid_b`. C is 0 for a row without x. */
typedef struct iq_factor_weights {
    double b, c;
} iq_factor_weights_t;

IQ_DEVICE double iq_factor_weight_c(const iq_factor_row_t *row, bool unsigned_x, double b)
{
    return iq_factor_up(b * (double)row->x.max_abs / iq_factor_levels(row->width_x, unsigned_x));
}

IQ_DEVICE iq_factor_weights_t iq_factor_weigh(const iq_factor_row_t *row, bool unsigned_x, uint64_t keep, bool grid_b)
{
    double p = (double)keep / (double)IQ_FACTOR_CERTAIN;
    double b = (double)row->delta.max_abs / (iq_factor_levels(row->width_delta, false) * p);
    if (grid_b)
        b = iq_factor_up(b);
    iq_factor_weights_t weights = {b, iq_factor_weight_c(row, unsigned_x, b)};
    return weights;
}

/* ---- forms ---- */

/* What a rank's rows share when the peaks are known. */
typedef struct iq_factor_frame {
    bool want_bias, unsigned_x;
    iq_factor_grid_t grid_b, grid_c;
} iq_factor_frame_t;

IQ_DEVICE iq_factor_frame_t iq_factor_frame_of(bool want_bias, bool unsigned_x, float peak_b, float peak_c)
{
    iq_factor_frame_t frame = {want_bias, unsigned_x, iq_factor_grid_of(want_bias, peak_b), iq_factor_grid_of(want_bias, peak_c)};
    return frame;
}

/* What becomes of a kept row: a whole row has both weights. Zero is absent. */
typedef struct iq_factor_form {
    uint64_t keep;
    double b, c;    /* weights; b also sets the steps, so it is never 0 */
    bool on_grid_b; /* B is sent */
} iq_factor_form_t;

IQ_DEVICE iq_factor_weights_t iq_factor_form_weights(const iq_factor_frame_t *frame, const iq_factor_row_t *row, uint64_t keep,
                                                     bool grid_b)
{
    iq_factor_weights_t weights = iq_factor_weigh(row, frame->unsigned_x, keep, grid_b);
    if (grid_b && weights.b < frame->grid_b.lightest) {
        weights.b = frame->grid_b.lightest;
        weights.c = iq_factor_weight_c(row, frame->unsigned_x, weights.b);
    }
    if (weights.c > 0)
        weights.c = iq_larger(weights.c, frame->grid_c.lightest);
    return weights;
}

IQ_DEVICE uint64_t iq_factor_scaled(uint64_t keep, double share)
{
    uint64_t units = (uint64_t)((double)keep * share);
    return units > 0 ? units : 1;
}

/*
 * The forms of a row: one, or two of which at most one is sent. A row below the grid is kept less often, so that it weighs what
 * the lightest row weighs. If only one of its two weights is light, the other may leave the grid at the top: then half the time
 * the row speaks for the product and half the time for the bias, each with a probability of its own.
 */
IQ_DEVICE int iq_factor_forms(const iq_factor_frame_t *frame, const iq_factor_row_t *row, iq_factor_form_t forms[2])
{
    bool bias = frame->want_bias, has_x = row->x.max_abs > 0;
    iq_factor_weights_t plain = iq_factor_weigh(row, frame->unsigned_x, row->keep, bias);
    double share_b = bias ? iq_smaller(1, plain.b / frame->grid_b.lightest) : 1;
    double share_c = has_x ? iq_smaller(1, plain.c / frame->grid_c.lightest) : 1;
    uint64_t keep = share_b < 1 || share_c < 1 ? iq_factor_scaled(row->keep, iq_smaller(share_b, share_c)) : row->keep;
    iq_factor_weights_t whole = iq_factor_form_weights(frame, row, keep, bias);
    iq_factor_form_t form = {keep, whole.b, whole.c, bias};
    forms[0] = form;
    if (!bias || !has_x || (whole.b <= frame->grid_b.heaviest && whole.c <= frame->grid_c.heaviest))
        return 1;
    uint64_t keep_product = iq_factor_scaled(row->keep, share_c / 2), keep_bias = iq_factor_scaled(row->keep, share_b / 2);
    iq_factor_weights_t product = iq_factor_form_weights(frame, row, keep_product, false);
    iq_factor_form_t for_product = {keep_product, product.b, product.c, false};
    iq_factor_form_t for_bias = {keep_bias, iq_factor_form_weights(frame, row, keep_bias, true).b, 0, true};
    forms[0] = for_product;
    forms[1] = for_bias;
    return 2;
}

/* Expected squared norm of what the row's forms add to gradient and bias, up to what no form changes. */
IQ_DEVICE double iq_factor_loss(const iq_factor_frame_t *frame, const iq_factor_row_t *row)
{
    iq_factor_form_t forms[2];
    int count = iq_factor_forms(frame, row, forms);
    double x = iq_factor_energy(&row->x, (int)row->width_x - IQ_FACTOR_MIN_WIDTH), bias = frame->want_bias ? 1 : 0;
    double delta = iq_factor_energy(&row->delta, (int)row->width_delta - IQ_FACTOR_MIN_WIDTH);
    if (count == 1)
        return (x + bias) * delta / (double)forms[0].keep;
    return x * delta / (double)forms[0].keep + bias * delta / (double)forms[1].keep;
}

/*
 * Budgets choose widths before the grid is known. A row that turns out to be light there is better off with narrower codes, whose steps
 * and hence weights are larger: it is kept more often, in fewer bytes.
 */
IQ_DEVICE void iq_factor_fit_grid(const iq_factor_frame_t *frame, iq_factor_row_t *row)
{
    iq_factor_form_t forms[2];
    if (iq_factor_forms(frame, row, forms) == 1 && forms[0].keep == row->keep)
        return;
    double least = iq_factor_loss(frame, row);
    uint32_t most_x = row->width_x, most_delta = row->width_delta, best_x = most_x, best_delta = most_delta;
    for (uint32_t x = most_x; x >= IQ_FACTOR_MIN_WIDTH; x--)
        for (uint32_t delta = most_delta; delta >= IQ_FACTOR_MIN_WIDTH; delta--) {
            row->width_x = x; /* tried in place: a copy of the row would lie in a GPU's local memory */
            row->width_delta = delta;
            double loss = iq_factor_loss(frame, row);
            if (loss < least) {
                least = loss;
                best_x = x;
                best_delta = delta;
            }
        }
    row->width_x = best_x;
    row->width_delta = best_delta;
}

/* ---- rounding ---- */

/* What values are multiplied with, one factor after the other. */
typedef struct iq_factor_step {
    float lift, inverse;
} iq_factor_step_t;

/* A reciprocal step beyond floats belongs to values near the smallest: both are brought to the middle. */
IQ_DEVICE iq_factor_step_t iq_factor_step_of(double inverse)
{
    float lift = inverse > 0x1p100 ? 0x1p60f : 1;
    iq_factor_step_t step = {lift, (float)(inverse / (double)lift)};
    return step;
}

IQ_DEVICE iq_factor_step_t iq_factor_step_x(const iq_factor_form_t *form) { return iq_factor_step_of(form->b / form->c); }

IQ_DEVICE iq_factor_step_t iq_factor_step_delta(const iq_factor_form_t *form)
{
    double p = (double)form->keep / (double)IQ_FACTOR_CERTAIN;
    return iq_factor_step_of(1 / (form->b * p));
}

/* ---- sampling ---- */

/* Points lie at `point`, point + 2^32, ...: how many of them are below `end`. A form that begins at s is sent if a point
 * falls into s .. s + keep - 1. */
IQ_DEVICE uint64_t iq_factor_points_below(uint32_t point, uint64_t end)
{
    return end > point ? ((end - 1 - point) >> 32) + 1 : 0;
}

#endif
