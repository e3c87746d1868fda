/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blobs of the methods of factor_whole.h: prepare and encode.
 *
 *   blob     as version 1 up to the rows (factor_encode.c), with version 3 (isgq-mse, isgq-mvu) or 4 (isgq-dithered), flag 1 never set, flag 4
 *            where the symbols are coded, bytes 2-3 the blob's length modulo 2^16; nothing follows if there are no rows
 *   weights  C, and B if the call wants the bias, of every row
 *   centers  version 3: i16 for each level of X, then of Delta: symbols 1, 2, ...; symbol 0 is 0
 *   symbols  of all of X, then of all of Delta. Version 3: as digits of levels + 1 symbols (digits.h). Version 4: row by row, packed in the
 *            width of the factor, q + 2^(w-1) - 1, or 2^w - 1 for a value that is exactly 0. Coded: row by row, X then Delta, through the
 *            adaptive coder, whichever is shorter
 */
#include "codec/factor_whole.h"

#include "base/util.h"
#include "codec/digits.h"
#include "codec/factor_symbols.h"
#include "kernels/factor_dither.h"
#include "kernels/kernels.h"

#include <math.h>
#include <string.h>

int32_t iq_factor_whole_most(const iq_factor_spec_t *spec, const iq_factor_call_t *call, bool is_x)
{
    uint64_t rows = (uint64_t)call->nranks * call->max_batch;
    if (spec->method == IQ_FACTOR_DITHERED)
        return iq_dither_bits(rows) < 0 ? -1 : iq_factor_levels(is_x ? spec->width_x : spec->width_delta, false);
    for (int bits = 12; bits >= 8; bits--) /* rows * 15 * 2^11 * 2^(2 bits) < 2^53 */
        if (rows <= (uint64_t)1 << (38 - 2 * bits))
            return (1 << bits) - 1;
    return -1;
}

/* ---- prepare ---- */

static void fit(const iq_factor_spec_t *spec, const iq_factor_call_t *call, iq_factor_state_t *state)
{
    iq_factor_whole_t *whole = state->whole;
    double squares[2] = {0, 0}, nonzero[2] = {0, 0};
    for (size_t r = 0; r < call->batch; r++) {
        squares[0] += state->rows[r].x.sum_squares;
        squares[1] += state->rows[r].delta.sum_squares;
        nonzero[0] += (double)state->rows[r].x.nonzero;
        nonzero[1] += (double)state->rows[r].delta.nonzero;
    }
    iq_fit_assign(call, nonzero[0] > 0 ? sqrt(squares[0] / nonzero[0]) : 0, state->facts->unsigned_x, &whole->x);
    iq_fit_assign(call, nonzero[1] > 0 ? sqrt(squares[1] / nonzero[1]) : 0, false, &whole->delta);
    iq_fit_centers(call, spec->method == IQ_FACTOR_MVU, &whole->x, &whole->delta);
}

static double largest_center(const iq_fit_factor_t *factor)
{
    double most = 0;
    for (unsigned i = 1; i <= factor->levels; i++)
        most = iq_larger(most, fabs(factor->centers[i]));
    return most;
}

void iq_factor_prepare_whole(const iq_factor_spec_t *spec, const iq_factor_call_t *call, const void *x, const void *delta,
                             iq_factor_state_t *state, float peaks[2])
{
    iq_factor_whole_t *whole = state->whole;
    double most_x = 0, most_delta = 0;
    for (size_t r = 0; r < call->batch; r++) {
        most_x = iq_larger(most_x, (double)state->rows[r].x.max_abs);
        most_delta = iq_larger(most_delta, (double)state->rows[r].delta.max_abs);
    }
    *whole = (iq_factor_whole_t){.x = {.values = x, .symbols = state->all_symbols, .columns = call->m, .levels = spec->levels},
                                 .delta = {.values = delta,
                                           .symbols = state->all_symbols + call->batch * call->m,
                                           .columns = call->n,
                                           .levels = spec->levels}};
    if (spec->method != IQ_FACTOR_DITHERED) {
        fit(spec, call, state);
        most_x = most_x > 0 ? largest_center(&whole->x) : 0;
        most_delta = most_delta > 0 ? largest_center(&whole->delta) : 0;
    }
    whole->b = most_delta / iq_factor_whole_most(spec, call, false);
    if (call->want_bias)
        whole->b = iq_factor_up(whole->b);
    whole->c = iq_factor_up(whole->b * most_x / iq_factor_whole_most(spec, call, true));
    peaks[0] = call->want_bias ? iq_factor_peak(whole->b) : 0;
    peaks[1] = iq_factor_peak(whole->c);
}

/* ---- encode ---- */

typedef struct encoder {
    const iq_factor_spec_t *spec;
    const iq_factor_call_t *call;
    iq_factor_state_t state;
    double steps[2]; /* of Delta, of X */
    int32_t dither_bits;
} encoder_t;

/* The byte of a weight, or of the lightest by chance, or 0. */
static uint8_t weight_byte(double weight, const iq_factor_grid_t *grid, uint32_t random)
{
    if (!(weight > 0))
        return 0;
    if (weight >= grid->lightest)
        return iq_factor_weight_byte(weight, grid);
    return (double)random < weight / grid->lightest * (double)IQ_FACTOR_CERTAIN ? iq_factor_weight_byte(grid->lightest, grid) : 0;
}

/* Levels as multiples of the factor's step. */
static uint8_t *write_centers(const encoder_t *encoder, bool is_x, uint8_t *out)
{
    const iq_fit_factor_t *factor = is_x ? &encoder->state.whole->x : &encoder->state.whole->delta;
    int32_t most = iq_factor_whole_most(encoder->spec, encoder->call, is_x);
    for (unsigned i = 1; i <= factor->levels; i++, out += 2) {
        double units = encoder->steps[is_x] > 0 ? factor->centers[i] / encoder->steps[is_x] : 0;
        int32_t center = (int32_t)floor(units + 0.5);
        center = center < -most ? -most : center > most ? most : center;
        out[0] = (uint8_t)center;
        out[1] = (uint8_t)(center >> 8);
    }
    return out;
}

/* Row r of a factor of isgq-dithered: codes q, or IQ_CODE_ABSENT for zeros. */
static const int16_t *dither_row(const encoder_t *encoder, bool is_x, size_t r)
{
    const iq_factor_call_t *call = encoder->call;
    const iq_fit_factor_t *factor = is_x ? &encoder->state.whole->x : &encoder->state.whole->delta;
    uint32_t rank = (uint32_t)call->rank, dither_stream = is_x ? IQ_STREAM_DITHER_X : IQ_STREAM_DITHER_DELTA;
    int32_t high = iq_factor_whole_most(encoder->spec, call, is_x);
    iq_factor_step_t step = {1, 0};
    iq_philox_block_t random = {{0}};
    uint8_t k[IQ_DITHER_BLOCK] = {0};
    float values[IQ_FACTOR_CHUNK];
    if (encoder->steps[is_x] > 0)
        step = iq_factor_step_of(1 / encoder->steps[is_x]);
    for (size_t i = 0; i < factor->columns; i++) {
        size_t element = r * factor->columns + i;
        if (i % IQ_FACTOR_CHUNK == 0)
            iq_factor_load(call->datatype, factor->values, element, iq_min(factor->columns - i, IQ_FACTOR_CHUNK), values);
        if (i == 0 || element % 4 == 0)
            random = iq_draw(call->seed, call->call, is_x ? IQ_STREAM_FACTOR_X : IQ_STREAM_FACTOR_DELTA, rank, element);
        if (i % IQ_DITHER_BLOCK == 0)
            iq_dither_block(call->seed, call->call, dither_stream, rank,
                            r * iq_ceil_div(factor->columns, IQ_DITHER_BLOCK) + i / IQ_DITHER_BLOCK, encoder->dither_bits, k);
        float value = values[i % IQ_FACTOR_CHUNK];
        int32_t q = iq_dither_round(value * step.lift * step.inverse, random.word[element % 4] >> 8, k[i % IQ_DITHER_BLOCK],
                                    encoder->dither_bits, -high, high);
        encoder->state.symbols[i] = (iq_float_bits(value) & 0x7fffffffu) == 0 ? IQ_CODE_ABSENT : (int16_t)q;
    }
    return encoder->state.symbols;
}

static void pack_dithered(const encoder_t *encoder, bool is_x, uint8_t *out)
{
    size_t columns = is_x ? encoder->call->m : encoder->call->n;
    unsigned width = is_x ? encoder->spec->width_x : encoder->spec->width_delta;
    int32_t most = iq_factor_levels(width, false);
    for (size_t r = 0; r < encoder->call->batch; r++, out += iq_packed_bytes(columns, width)) {
        const int16_t *codes = dither_row(encoder, is_x, r);
        for (size_t i = 0; i < columns; i++)
            encoder->state.codes[i] = (uint8_t)(codes[i] == IQ_CODE_ABSENT ? 2 * most + 1 : codes[i] + most);
        iq_kernels()->pack8(encoder->state.codes, columns, width, out);
    }
}

static void pack_symbols(const encoder_t *encoder, uint8_t *out)
{
    const iq_factor_call_t *call = encoder->call;
    if (encoder->spec->method == IQ_FACTOR_DITHERED) {
        pack_dithered(encoder, true, out);
        pack_dithered(encoder, false, out + call->batch * iq_packed_bytes(call->m, encoder->spec->width_x));
        return;
    }
    iq_digits_t digits = iq_digits_of(encoder->spec->levels + 1);
    iq_digits_pack(&digits, encoder->state.whole->x.symbols, call->batch * call->m, out);
    iq_digits_pack(&digits, encoder->state.whole->delta.symbols, call->batch * call->n,
                   out + iq_digits_bytes(&digits, call->batch * call->m));
}

static void code_row(const encoder_t *encoder, bool is_x, size_t r, iq_symbols_t *symbols, iq_bit_writer_t *writer)
{
    size_t columns = is_x ? encoder->call->m : encoder->call->n;
    if (encoder->spec->method == IQ_FACTOR_DITHERED) {
        unsigned width = is_x ? encoder->spec->width_x : encoder->spec->width_delta;
        iq_symbol_row_t row = {.count = columns, .octaves = width - 1, .is_signed = true, .plane = true};
        iq_symbols_write(symbols, &row, dither_row(encoder, is_x, r), writer);
    } else {
        const uint16_t *from = (is_x ? encoder->state.whole->x.symbols : encoder->state.whole->delta.symbols) + r * columns;
        iq_symbols_write_levels(symbols, from, columns, encoder->spec->levels, writer);
    }
}

/* Returns the bytes, or `room` if they would not be fewer. */
static size_t code_symbols(const encoder_t *encoder, uint8_t *out, size_t room)
{
    iq_bit_writer_t writer = iq_bit_writer_of(out, room);
    iq_symbols_t of_x, of_delta;
    iq_symbols_open(&of_x, encoder->call->m, encoder->state.columns);
    iq_symbols_open(&of_delta, encoder->call->n, encoder->state.columns + encoder->call->m);
    for (size_t r = 0; r < encoder->call->batch && !writer.full; r++) {
        code_row(encoder, true, r, &of_x, &writer);
        code_row(encoder, false, r, &of_delta, &writer);
    }
    size_t bytes = iq_bit_write_end(&writer, out);
    return writer.full ? room : bytes;
}

size_t iq_factor_encode_whole(const iq_factor_spec_t *spec, const iq_factor_call_t *call, void *memory, const float peaks[2], void *blob)
{
    encoder_t encoder = {.spec = spec,
                         .call = call,
                         .state = iq_factor_state(spec, call, memory),
                         .dither_bits = iq_dither_bits((uint64_t)call->nranks * call->max_batch)};
    const iq_factor_whole_t *whole = encoder.state.whole;
    uint8_t *out = blob, *at = out + IQ_FACTOR_HEADER_BYTES;
    bool coded = false, finite = encoder.state.facts->finite && !iq_not_finite(peaks[0]) && !iq_not_finite(peaks[1]);
    unsigned bias = call->want_bias ? IQ_FACTOR_FLAG_BIAS : 0;
    size_t count = finite ? call->batch : 0;
    if (count > 0) {
        iq_factor_frame_t frame = iq_factor_frame_of(call->want_bias, false, peaks[0], peaks[1]);
        iq_philox_block_t random = iq_draw(call->seed, call->call, IQ_STREAM_ROWS, (uint32_t)call->rank, 0);
        encoder.steps[1] = whole->b > 0 ? whole->c / whole->b : 0;
        encoder.steps[0] = whole->b;
        *at++ = weight_byte(whole->c, &frame.grid_c, random.word[0]);
        if (call->want_bias)
            *at++ = weight_byte(whole->b, &frame.grid_b, random.word[1]);
        for (int side = 1; side >= 0 && spec->method != IQ_FACTOR_DITHERED; side--)
            at = write_centers(&encoder, side == 1, at);
        size_t packed = iq_factor_whole_packed(spec, call, count), coded_bytes = spec->coded ? code_symbols(&encoder, at, packed) : packed;
        coded = coded_bytes < packed;
        if (!coded)
            pack_symbols(&encoder, at);
        at += coded ? coded_bytes : packed;
    }
    iq_factor_write_header(iq_factor_whole_version(spec), bias | (coded ? IQ_FACTOR_FLAG_CODED : 0u), count, (size_t)(at - out), out);
    return (size_t)(at - out);
}
