/* SPDX-License-Identifier: Apache-2.0 */
/*
 * First look at the factors: measure every row once, choose widths and keep probabilities, find the heaviest weights.
 *
 * Sums of floats go through the lanes of kernels/factor_rows.h, so that they are the same at every SIMD width and on GPUs.
 */
#include "base/util.h"
#include "codec/factor_internal.h"
#include "kernels/quant_math.h"

#include <math.h>

#define LANES IQ_FACTOR_LANES

typedef struct lanes {
    double sum_squares[LANES];
    uint32_t peak[LANES], nonzero[LANES], negative[LANES];
} lanes_t;

/* `count` is a multiple of LANES, at most IQ_FACTOR_CHUNK. */
static void measure_chunk(const float *values, size_t count, lanes_t *lanes)
{
    for (size_t i = 0; i < count; i += LANES)
        for (size_t lane = 0; lane < LANES; lane++) {
            uint32_t bits = iq_float_bits(values[i + lane]);
            uint32_t magnitude = bits & 0x7fffffffu;
            double value = (double)iq_bits_float(magnitude);
            lanes->peak[lane] = magnitude > lanes->peak[lane] ? magnitude : lanes->peak[lane];
            lanes->nonzero[lane] += magnitude != 0;
            lanes->negative[lane] |= bits > 0x80000000u;
            lanes->sum_squares[lane] += value * value;
        }
}

static double fold(double *lanes)
{
    for (size_t half = LANES / 2; half > 0; half /= 2)
        for (size_t lane = 0; lane < half; lane++)
            lanes[lane] += lanes[lane + half];
    return lanes[0];
}

/* One row of one factor; false if a value is NaN or Inf. */
static bool measure(isgq_data_type_t datatype, const void *factor, size_t first, size_t count, iq_factor_side_t *side,
                    bool *negative)
{
    size_t nonzero = 0;
    uint32_t peak = 0, any_negative = 0;
    double sum_squares = 0;
    for (size_t done = 0; done < count; done += IQ_FACTOR_CHUNK) {
        float values[IQ_FACTOR_CHUNK];
        lanes_t lanes = {{0}, {0}, {0}, {0}};
        size_t part = iq_min(count - done, IQ_FACTOR_CHUNK);
        measure_chunk(values, iq_factor_load_lanes(datatype, factor, first + done, part, values), &lanes);
        for (size_t lane = 0; lane < LANES; lane++) {
            peak = lanes.peak[lane] > peak ? lanes.peak[lane] : peak;
            nonzero += lanes.nonzero[lane];
            any_negative |= lanes.negative[lane];
        }
        sum_squares += fold(lanes.sum_squares);
    }
    *side = (iq_factor_side_t){.sum_squares = sum_squares, .nonzero = nonzero, .max_abs = iq_bits_float(peak)};
    *negative |= any_negative != 0;
    return peak < 0x7f800000u;
}

static void measure_rows(const iq_factor_call_t *call, const void *x, const void *delta, iq_factor_state_t *state)
{
    bool finite = true, negative = false, ignored = false;
    for (size_t r = 0; r < call->batch; r++) {
        iq_factor_row_t *row = &state->rows[r];
        finite &= measure(call->datatype, x, r * call->m, call->m, &row->x, &negative);
        finite &= measure(call->datatype, delta, r * call->n, call->n, &row->delta, &ignored);
    }
    state->facts->finite = finite;
    state->facts->unsigned_x = !negative;
}

static void keep_all(const iq_factor_spec_t *spec, const iq_factor_call_t *call, iq_factor_state_t *state)
{
    iq_factor_shape_t shape = iq_factor_shape(call);
    for (size_t r = 0; r < call->batch; r++)
        iq_factor_keep(&shape, spec->width_x, spec->width_delta, &state->rows[r]);
}

/* By bytes, then by number: Shell sort, which needs no memory. */
static void sort_rows(const iq_factor_call_t *call, iq_factor_state_t *state)
{
    const iq_factor_row_t *rows = state->rows;
    uint32_t *order = state->order;
    for (size_t r = 0; r < call->batch; r++)
        order[r] = (uint32_t)r;
    for (size_t gap = call->batch / 2; gap > 0; gap = gap == 2 ? 1 : gap * 4 / 9)
        for (size_t i = gap; i < call->batch; i++) {
            uint32_t moved = order[i];
            size_t j = i;
            for (; j >= gap; j -= gap) {
                uint32_t other = order[j - gap];
                if (rows[other].bytes < rows[moved].bytes || (rows[other].bytes == rows[moved].bytes && other < moved))
                    break;
                order[j] = other;
            }
            order[j] = moved;
        }
}

void iq_factor_prepare(const iq_factor_spec_t *spec, const iq_factor_call_t *call, const void *x, const void *delta, void *memory,
                       float peaks[2])
{
    iq_factor_state_t state = iq_factor_state(spec, call, memory);
    iq_factor_call_t own;
    *state.facts = (iq_factor_facts_t){.bias_apart = spec->svd, .budget_batch = call->batch};
    measure_rows(call, x, delta, &state);
    if (state.facts->finite && spec->svd) {
        iq_factor_decompose(call, x, delta, &state);
        own = iq_factor_svd_call(call, &state);
        call = &own;
        x = state.svd_x;
        delta = state.svd_delta;
        measure_rows(call, x, delta, &state); /* again: it may have left the range of floats */
    }
    if (!state.facts->finite) {
        peaks[0] = peaks[1] = INFINITY;
        return;
    }
    if (spec->method != IQ_FACTOR_ROWS) {
        iq_factor_prepare_whole(spec, call, x, delta, &state, peaks);
        return;
    }
    if (iq_factor_is_fine(spec))
        iq_factor_allot_fine(spec, call, x, delta, &state);
    else if (spec->budget_bits != 0)
        iq_factor_allot(spec, call, x, delta, &state);
    else
        keep_all(spec, call, &state);
    sort_rows(call, &state);
    double b = 0, c = 0;
    for (size_t r = 0; r < call->batch; r++)
        if (state.rows[r].keep != 0) {
            bool has_bias = iq_factor_has_bias(state.facts, call->want_bias, &state.rows[r]);
            iq_factor_weights_t weights = iq_factor_weigh(&state.rows[r], state.facts->unsigned_x, state.rows[r].keep, has_bias);
            b = has_bias ? iq_larger(b, weights.b) : b;
            c = iq_larger(c, weights.c);
        }
    peaks[0] = call->want_bias ? iq_factor_peak(b) : 0;
    peaks[1] = iq_factor_peak(c);
}
