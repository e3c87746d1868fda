/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a budget of bytes is spent: every row gets its own widths and keep probability.
 *
 * A row with squared norms X and D whose rounding adds variances v and w costs `bytes` and, kept with probability p, adds the
 * expected squared error (X + v)(D + w) / p - X D. For a price per byte the best p is min(1, sqrt((X + v)(D + w) / (price *
 * bytes))); among the widths the best has the least error + price * bytes * p. The price is the one at which the expected bytes
 * meet the budget. The choice for one row and the search for the price are in kernels/factor_rows.h.
 */
#include "base/util.h"
#include "codec/factor_internal.h"

#include <math.h>

enum { LANES = IQ_FACTOR_LANES, ROW_LANES = IQ_FACTOR_ROW_LANES };

/* Sum of the spreads of |value| * fineness, `count` of them in whole lanes, at most IQ_FACTOR_CHUNK. */
static float sum_spreads(const float *values, size_t count, float fineness)
{
    float sums[LANES] = {0};
    for (size_t i = 0; i < count; i += LANES)
        for (size_t lane = 0; lane < LANES; lane++)
            sums[lane] += iq_factor_spread(fabsf(values[i + lane]) * fineness);
    for (size_t half = LANES / 2; half > 0; half /= 2)
        for (size_t lane = 0; lane < half; lane++)
            sums[lane] += sums[lane + half];
    return sums[0];
}

/* What rounding a row would add at every width. A row's values are first divided by its largest, so that squares stay within
 * floats. */
void iq_factor_measure_variances(isgq_data_type_t datatype, const void *factor, size_t first, size_t count, bool is_unsigned,
                                 iq_factor_side_t *side)
{
    float sums[IQ_FACTOR_WIDTHS] = {0};
    for (size_t done = 0; done < count; done += IQ_FACTOR_CHUNK) {
        float values[IQ_FACTOR_CHUNK];
        size_t padded = iq_factor_load_lanes(datatype, factor, first + done, iq_min(count - done, IQ_FACTOR_CHUNK), values);
        for (size_t i = 0; i < padded; i++)
            values[i] /= side->max_abs;
        for (unsigned w = 0; w < IQ_FACTOR_WIDTHS; w++)
            sums[w] += sum_spreads(values, padded, iq_factor_fineness(IQ_FACTOR_MIN_WIDTH + w, is_unsigned));
    }
    for (unsigned w = 0; w < IQ_FACTOR_WIDTHS; w++)
        side->variance[w] = iq_factor_variance(IQ_FACTOR_MIN_WIDTH + w, is_unsigned, sums[w]);
}

/* Choose for every row; returns the expected bytes. Lanes that hold nothing are not folded. */
static double choose_all(const iq_factor_shape_t *shape, size_t batch, double price, iq_factor_row_t *rows)
{
    double lanes[ROW_LANES] = {0};
    size_t half = 1;
    for (size_t r = 0; r < batch; r++)
        if (rows[r].keep != 0) {
            iq_factor_choose(shape, price, &rows[r]);
            lanes[r % ROW_LANES] += iq_factor_expected(&rows[r]);
        }
    while (half < ROW_LANES && half < batch)
        half *= 2;
    for (half /= 2; half > 0; half /= 2)
        for (size_t lane = 0; lane < half; lane++)
            lanes[lane] += lanes[lane + half];
    return lanes[0];
}

static double first_price(bool want_bias, size_t batch, const iq_factor_row_t *rows)
{
    double price = 0;
    for (size_t r = 0; r < batch; r++)
        if (rows[r].keep != 0)
            price = iq_larger(price, iq_factor_price(&rows[r], want_bias));
    return price;
}

/* Rows that contribute anything are candidates, and get their variances. */
static void list_candidates(const iq_factor_call_t *call, const void *x, const void *delta, iq_factor_state_t *state)
{
    for (size_t r = 0; r < call->batch; r++) {
        iq_factor_row_t *row = &state->rows[r];
        bool counts = iq_factor_counts(row, call->want_bias);
        row->keep = counts ? IQ_FACTOR_CERTAIN : 0;
        row->bytes = 0;
        if (counts && row->x.max_abs > 0)
            iq_factor_measure_variances(call->datatype, x, r * call->m, call->m, state->facts->unsigned_x, &row->x);
        if (counts)
            iq_factor_measure_variances(call->datatype, delta, r * call->n, call->n, false, &row->delta);
    }
}

void iq_factor_allot(const iq_factor_spec_t *spec, const iq_factor_call_t *call, const void *x, const void *delta,
                     iq_factor_state_t *state)
{
    iq_factor_shape_t shape = iq_factor_shape(call);
    iq_factor_search_t search = iq_factor_search_from((double)iq_factor_budget(spec, call, call->batch));
    double expected;
    list_candidates(call, x, delta, state);
    do {
        expected = choose_all(&shape, call->batch, search.price, state->rows);
        if (search.phase == IQ_FACTOR_AT_ZERO)
            search.first = first_price(call->want_bias, call->batch, state->rows);
    } while (iq_factor_search_on(&search, expected));
}
