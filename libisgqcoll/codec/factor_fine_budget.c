/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a budget is spent where codes are dithered or coded: as factor_budget.c does it, but with the bytes that a row is expected to take in
 * the adaptive coder. These follow from how long its codes are, in bits, counted for every width and valued by how often all rows have such
 * lengths, and from what zero planes cost when as many rows as are likely to be sent come one after the other.
 *
 * Where an error is to be met instead of a number of bytes, the price is the highest at which the rows' expected error is within it.
 */
#include "base/util.h"
#include "codec/factor_internal.h"
#include "codec/factor_symbols.h"
#include "kernels/factor_dither.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* Lengths of codes: 0 to 8 bits. */
enum { LENGTHS = IQ_FACTOR_MAX_WIDTH + 1 };

/* Prices tried for an error, between 2^-60 and 2^20 times that at which the first row would be left out. */
enum { STEPS = 24 };

typedef struct lengths {
    double count[IQ_FACTOR_WIDTHS][LENGTHS];
} lengths_t;

typedef struct allotment {
    const iq_factor_spec_t *spec;
    const iq_factor_call_t *call;
    iq_factor_state_t *state;
    iq_factor_shape_t shape;
    double plane_x, plane_delta; /* mean bytes of a zero plane */
} allotment_t;

/* ---- what rows cost ---- */

/* Lengths of the codes of `count` values in units of the row's largest; zeros have none. */
static void count_lengths(const float *values, size_t count, bool is_unsigned, lengths_t *lengths)
{
    float fineness[IQ_FACTOR_WIDTHS];
    for (unsigned w = 0; w < IQ_FACTOR_WIDTHS; w++)
        fineness[w] = iq_factor_fineness(IQ_FACTOR_MIN_WIDTH + w, is_unsigned);
    for (size_t i = 0; i < count; i++) {
        float size = fabsf(values[i]);
        if (!(size > 0))
            continue;
        for (unsigned w = 0; w < IQ_FACTOR_WIDTHS; w++) {
            int length = (int)(iq_float_bits(size * fineness[w] + 0.5f) >> 23) - 126; /* of the nearest integer */
            lengths->count[w][length > 0 ? length : 0]++;
        }
    }
}

static void count_row(const iq_factor_call_t *call, const void *factor, size_t r, size_t columns, const iq_factor_side_t *side,
                      bool is_unsigned, lengths_t *lengths)
{
    for (size_t done = 0; done < columns; done += IQ_FACTOR_CHUNK) {
        float values[IQ_FACTOR_CHUNK];
        size_t count = iq_min(columns - done, IQ_FACTOR_CHUNK);
        iq_factor_load(call->datatype, factor, r * columns + done, count, values);
        for (size_t i = 0; i < count; i++)
            values[i] /= side->max_abs;
        count_lengths(values, count, is_unsigned, lengths);
    }
}

static double plane_of_row(const iq_factor_call_t *call, const void *factor, size_t r, size_t columns, iq_symbols_t *symbols)
{
    iq_bit_model_t *first = symbols->columns;
    double bits = 0;
    for (size_t done = 0; done < columns; done += IQ_FACTOR_CHUNK, symbols->columns += IQ_FACTOR_CHUNK) {
        float values[IQ_FACTOR_CHUNK];
        size_t count = iq_min(columns - done, IQ_FACTOR_CHUNK);
        iq_factor_load(call->datatype, factor, r * columns + done, count, values);
        bits += iq_symbols_plane_bits(symbols, values, count);
    }
    symbols->columns = first;
    return bits;
}

/* Mean bits of a code of each length: the logarithm of how rare it is, and the bits below the leading one with the sign. */
static void value_lengths(const lengths_t *lengths, bool is_unsigned, lengths_t *bits)
{
    for (unsigned w = 0; w < IQ_FACTOR_WIDTHS; w++) {
        double total = 0;
        for (int length = 0; length < LENGTHS; length++)
            total += lengths->count[w][length] + 0.1;
        for (int length = 0; length < LENGTHS; length++)
            bits->count[w][length] = iq_bits_of((lengths->count[w][length] + 0.1) / total) + (length > 1 ? length - 1 : 0) +
                                     (length > 0 && !is_unsigned ? 1 : 0);
    }
}

static void set_rates(const lengths_t *lengths, const lengths_t *bits, float *rates)
{
    for (unsigned w = 0; w < IQ_FACTOR_WIDTHS; w++) {
        double sum = 0;
        for (int length = 0; length < LENGTHS; length++)
            sum += lengths->count[w][length] * bits->count[w][length];
        rates[w] = (float)(sum / 8);
    }
}

static double packed_side(size_t columns, const iq_factor_side_t *side, unsigned width)
{
    return (double)((side->nonzero < columns ? iq_factor_packed(columns, 1) : 0) + iq_factor_packed(side->nonzero, width));
}

static void set_packed_rates(size_t columns, const iq_factor_side_t *side, float *rates)
{
    for (unsigned w = 0; w < IQ_FACTOR_WIDTHS; w++)
        rates[w] = side->max_abs > 0 ? (float)packed_side(columns, side, IQ_FACTOR_MIN_WIDTH + w) : 0;
}

/* One factor's rates of all candidates; the bytes of their planes so far, row by row, in the planes' places. */
static void rate_factor(const allotment_t *allotment, const void *factor, bool is_x)
{
    const iq_factor_call_t *call = allotment->call;
    iq_factor_state_t *state = allotment->state;
    size_t columns = is_x ? call->m : call->n;
    bool is_unsigned = is_x && state->facts->unsigned_x;
    lengths_t all = {0}, bits;
    iq_symbols_t symbols;
    double planes = 0;
    iq_symbols_open(&symbols, columns, state->columns);
    for (int pass = 0; pass < 2; pass++) {
        for (size_t r = 0; r < call->batch; r++) {
            const iq_factor_side_t *side = is_x ? &state->rows[r].x : &state->rows[r].delta;
            iq_factor_rate_t *rate = &state->rates[r];
            lengths_t own = {0};
            if (state->rows[r].keep == 0 || !(side->max_abs > 0))
                continue;
            count_row(call, factor, r, columns, side, is_unsigned, pass == 0 ? &all : &own);
            if (pass == 1)
                set_rates(&own, &bits, is_x ? rate->x : rate->delta);
            else if (side->nonzero < columns)
                planes += plane_of_row(call, factor, r, columns, &symbols) / 8;
            if (pass == 0)
                *(is_x ? &rate->planes_x : &rate->planes_delta) = (float)planes;
        }
        value_lengths(&all, is_unsigned, &bits);
    }
}

/* Mean bytes of a plane if `share` of the candidates' rows are sent. */
static double mean_plane(const allotment_t *allotment, bool is_x, double share)
{
    const iq_factor_state_t *state = allotment->state;
    size_t columns = is_x ? allotment->call->m : allotment->call->n, rows = 0, seen = 0;
    double last = 0;
    for (size_t r = 0; r < allotment->call->batch; r++) {
        const iq_factor_side_t *side = is_x ? &state->rows[r].x : &state->rows[r].delta;
        rows += state->rows[r].keep != 0 && side->max_abs > 0 && side->nonzero < columns;
    }
    for (size_t r = 0; r < allotment->call->batch && (double)seen < share * (double)rows; r++) {
        const iq_factor_side_t *side = is_x ? &state->rows[r].x : &state->rows[r].delta;
        if (state->rows[r].keep == 0 || !(side->max_abs > 0) || side->nonzero == columns)
            continue;
        last = (double)(is_x ? state->rates[r].planes_x : state->rates[r].planes_delta);
        seen++;
    }
    return seen == 0 ? 0 : last / (double)seen;
}

/* ---- one row ---- */

/* Dither adds the same whatever the values are. */
static void dither_variances(const iq_factor_call_t *call, bool is_unsigned, iq_factor_side_t *side)
{
    int32_t bits = iq_dither_bits((uint64_t)call->nranks * call->max_batch);
    double grain = bits < 0 ? 1 : 1.0 / (double)((uint64_t)1 << 2 * bits);
    for (unsigned w = 0; w < IQ_FACTOR_WIDTHS; w++)
        side->variance[w] =
            iq_factor_variance(IQ_FACTOR_MIN_WIDTH + w, is_unsigned, (float)((1 + grain) / 12 * (double)side->nonzero));
}

/* The bias as one more column of X. */
static double bias_column(const allotment_t *allotment, const iq_factor_row_t *row)
{
    return iq_factor_has_bias(allotment->state->facts, allotment->shape.want_bias, row) ? 1 : 0;
}

/* As iq_factor_choose. */
static void choose(const allotment_t *allotment, double price, iq_factor_row_t *row, iq_factor_rate_t *rate)
{
    const iq_factor_shape_t *shape = &allotment->shape;
    double best = (double)INFINITY, column = bias_column(allotment, row);
    for (unsigned i = 0; i < IQ_FACTOR_WIDTHS; i++)
        for (unsigned j = 0; j < IQ_FACTOR_WIDTHS; j++) {
            if (j > i + IQ_FACTOR_WIDTH_SPREAD || i > j + IQ_FACTOR_WIDTH_SPREAD)
                continue;
            bool plane_x = row->x.max_abs > 0 && row->x.nonzero < shape->m, plane_delta = row->delta.nonzero < shape->n;
            double bytes = iq_factor_row_header(shape->want_bias) + (row->x.max_abs > 0 ? (double)rate->x[i] : 0) +
                           (double)rate->delta[j] + (plane_x ? allotment->plane_x : 0) + (plane_delta ? allotment->plane_delta : 0);
            double energy = (iq_factor_energy(&row->x, (int)i) + column) * iq_factor_energy(&row->delta, (int)j), cost = price * bytes;
            double loss = energy >= cost ? energy + cost : 2 * sqrt(energy) * sqrt(cost);
            if (!(loss < best))
                continue;
            best = loss;
            rate->bytes = (float)bytes;
            rate->energy = energy;
            row->keep = energy >= cost ? IQ_FACTOR_CERTAIN : iq_factor_keep_units(sqrt(energy / cost));
            row->width_x = IQ_FACTOR_MIN_WIDTH + i;
            row->width_delta = IQ_FACTOR_MIN_WIDTH + j;
        }
    row->bytes = (uint64_t)((row->x.max_abs > 0 ? packed_side(shape->m, &row->x, row->width_x) : 0) +
                            packed_side(shape->n, &row->delta, row->width_delta)) +
                 iq_factor_row_header(shape->want_bias);
}

/* ---- all rows ---- */

typedef struct outcome {
    double bytes, packed, error, rows, candidates;
} outcome_t;

static outcome_t choose_all(const allotment_t *allotment, double price)
{
    iq_factor_state_t *state = allotment->state;
    outcome_t outcome = {0};
    for (size_t r = 0; r < allotment->call->batch; r++) {
        iq_factor_row_t *row = &state->rows[r];
        if (row->keep == 0)
            continue;
        choose(allotment, price, row, &state->rates[r]);
        double p = (double)row->keep / (double)IQ_FACTOR_CERTAIN;
        outcome.bytes += p * (double)state->rates[r].bytes;
        outcome.packed += p * (double)row->bytes;
        outcome.error += state->rates[r].energy / p -
                         (row->x.sum_squares + bias_column(allotment, row)) * row->delta.sum_squares;
        outcome.rows += p;
        outcome.candidates++;
    }
    return outcome;
}

/* The price at which the first of the rows would be left out. */
static double first_price(const allotment_t *allotment)
{
    const iq_factor_state_t *state = allotment->state;
    double price = 0;
    for (size_t r = 0; r < allotment->call->batch; r++)
        if (state->rows[r].keep != 0)
            price = iq_larger(price, iq_factor_price(&state->rows[r], bias_column(allotment, &state->rows[r]) > 0));
    return price;
}

static outcome_t meet_bytes(const allotment_t *allotment)
{
    double budget = (double)iq_factor_budget(allotment->spec, allotment->call, allotment->state->facts->budget_batch);
    iq_factor_search_t search = iq_factor_search_from(budget);
    outcome_t outcome;
    double expected;
    do {
        outcome = choose_all(allotment, search.price);
        expected = allotment->spec->coded ? iq_larger(outcome.bytes, outcome.packed / IQ_FACTOR_PACKED_SHARE) : outcome.packed;
        if (search.phase == IQ_FACTOR_AT_ZERO)
            search.first = first_price(allotment);
    } while (iq_factor_search_on(&search, expected));
    return outcome;
}

/* Energy that the error is measured by: that of the rows' products, as if no two rows were alike. */
static double energy_of_rows(const allotment_t *allotment)
{
    double energy = 0;
    for (size_t r = 0; r < allotment->call->batch; r++) {
        const iq_factor_row_t *row = &allotment->state->rows[r];
        if (row->keep != 0)
            energy += (row->x.sum_squares + bias_column(allotment, row)) * row->delta.sum_squares;
    }
    return energy;
}

static outcome_t meet_error(const allotment_t *allotment)
{
    double most = allotment->spec->budget_nmse * energy_of_rows(allotment);
    outcome_t outcome = choose_all(allotment, 0);
    if (!(outcome.error < most))
        return outcome; /* all rows in their widest codes: there is nothing better */
    double first = iq_larger(first_price(allotment), DBL_MIN);
    double low = iq_larger(first * 0x1p-60, DBL_MIN), high = first * 0x1p20;
    for (int step = 0; step < STEPS; step++) {
        double price = sqrt(low) * sqrt(high);
        if (choose_all(allotment, price).error <= most)
            low = price;
        else
            high = price;
    }
    outcome = choose_all(allotment, low);
    return outcome.error <= most ? outcome : choose_all(allotment, 0);
}

/* Rows that contribute anything are candidates. */
static void list_candidates(const allotment_t *allotment, const void *x, const void *delta)
{
    const iq_factor_call_t *call = allotment->call;
    const iq_factor_spec_t *spec = allotment->spec;
    iq_factor_state_t *state = allotment->state;
    for (size_t r = 0; r < call->batch; r++) {
        iq_factor_row_t *row = &state->rows[r];
        bool counts = iq_factor_counts(row, call->want_bias), has_x = counts && row->x.max_abs > 0;
        row->keep = counts ? IQ_FACTOR_CERTAIN : 0;
        row->bytes = 0;
        state->rates[r] = (iq_factor_rate_t){0};
        if (spec->dither) {
            dither_variances(call, state->facts->unsigned_x, &row->x);
            dither_variances(call, false, &row->delta);
        } else {
            if (has_x)
                iq_factor_measure_variances(call->datatype, x, r * call->m, call->m, state->facts->unsigned_x, &row->x);
            if (counts)
                iq_factor_measure_variances(call->datatype, delta, r * call->n, call->n, false, &row->delta);
        }
        if (!spec->coded) {
            set_packed_rates(call->m, &row->x, state->rates[r].x);
            set_packed_rates(call->n, &row->delta, state->rates[r].delta);
        }
    }
}

static void keep_all(const allotment_t *allotment)
{
    const iq_factor_spec_t *spec = allotment->spec;
    for (size_t r = 0; r < allotment->call->batch; r++) {
        iq_factor_row_t *row = &allotment->state->rows[r];
        iq_factor_keep(&allotment->shape, spec->width_x, spec->width_delta, row);
        row->bytes = iq_factor_row_header(allotment->shape.want_bias) +
                     (uint64_t)(packed_side(allotment->call->n, &row->delta, spec->width_delta) +
                                (row->x.max_abs > 0 ? packed_side(allotment->call->m, &row->x, spec->width_x) : 0));
    }
}

void iq_factor_allot_fine(const iq_factor_spec_t *spec, const iq_factor_call_t *call, const void *x, const void *delta,
                          iq_factor_state_t *state)
{
    allotment_t allotment = {.spec = spec, .call = call, .state = state, .shape = iq_factor_shape(call)};
    outcome_t outcome = {0};
    if (spec->width_x != 0) {
        keep_all(&allotment);
        return;
    }
    list_candidates(&allotment, x, delta);
    if (spec->coded) {
        rate_factor(&allotment, x, true);
        rate_factor(&allotment, delta, false);
    }
    for (int pass = 0; pass < (spec->coded ? 2 : 1); pass++) { /* planes get dearer the fewer rows there are to learn from */
        double share = pass == 0 || outcome.candidates == 0 ? 1 : outcome.rows / outcome.candidates;
        if (spec->coded) {
            allotment.plane_x = mean_plane(&allotment, true, share);
            allotment.plane_delta = mean_plane(&allotment, false, share);
        }
        outcome = spec->budget_nmse > 0 ? meet_error(&allotment) : meet_bytes(&allotment);
    }
}
