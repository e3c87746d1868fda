/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Factors to a blob of version 2: dithered rows, or rows whose codes go through the adaptive coder, or both.
 *
 *   blob     as version 1 up to the rows (factor_encode.c), with version 2 and flag 4: the codes are coded; bytes 2-3 are the blob's length,
 *            modulo 2^16
 *   heads    C, B, form of every row, one row after the other, as in version 1
 *   codes    of X, then of Delta, of every row; packed, or as one message of the adaptive coder (factor_symbols.h), whichever is shorter
 *
 * A row of a factor that has an exact zero has a zero plane, where zeros are exact and have no code; the other codes may be that of 0. The
 * place of a row in the blob is also its number where dither is drawn.
 */
#include "base/status.h"
#include "base/util.h"
#include "codec/factor_internal.h"
#include "codec/factor_symbols.h"
#include "kernels/factor_dither.h"
#include "kernels/kernels.h"

#include <string.h>

typedef struct encoder {
    const iq_factor_spec_t *spec;
    const iq_factor_call_t *call;
    const void *x, *delta;
    iq_factor_state_t state;
    iq_factor_frame_t frame;
    int32_t dither_bits;
    iq_factor_rows_t *own; /* takes the codes as they are made, or NULL */
} encoder_t;

/* One factor's part of a sampled row. */
typedef struct part {
    bool is_x, plane;
    size_t row, place, count, present;
    unsigned width;
    iq_factor_step_t step;
} part_t;

static part_t part_of(const encoder_t *encoder, bool is_x, size_t r, size_t place, const iq_factor_form_t *form)
{
    const iq_factor_row_t *row = &encoder->state.rows[r];
    const iq_factor_side_t *side = is_x ? &row->x : &row->delta;
    size_t count = is_x ? encoder->call->m : encoder->call->n;
    return (part_t){.is_x = is_x,
                    .plane = side->nonzero < count,
                    .row = r,
                    .place = place,
                    .count = count,
                    .present = side->nonzero,
                    .width = is_x ? row->width_x : row->width_delta,
                    .step = is_x ? iq_factor_step_x(form) : iq_factor_step_delta(form)};
}

static size_t packed_bytes(const part_t *part)
{
    return (part->plane ? iq_packed_bytes(part->count, 1) : 0) + iq_packed_bytes(part->present, part->width);
}

static bool is_unsigned(const encoder_t *encoder, const part_t *part) { return part->is_x && encoder->state.facts->unsigned_x; }

/* Codes of columns `first`.. of a part, `count` of them, from their values. */
static void round_chunk(const encoder_t *encoder, const part_t *part, size_t first, size_t count, const float *values, int16_t *codes)
{
    const iq_factor_call_t *call = encoder->call;
    uint32_t rank = (uint32_t)call->rank, dither_stream = part->is_x ? IQ_STREAM_DITHER_X : IQ_STREAM_DITHER_DELTA;
    size_t element = part->row * part->count + first, block = part->place * iq_ceil_div(part->count, IQ_DITHER_BLOCK);
    int32_t high = iq_factor_levels(part->width, is_unsigned(encoder, part)), low = is_unsigned(encoder, part) ? 0 : -high;
    iq_philox_block_t random = {{0}};
    uint8_t k[IQ_DITHER_BLOCK] = {0};
    for (size_t i = 0; i < count; i++) {
        float y = values[i] * part->step.lift * part->step.inverse;
        if (!encoder->spec->nearest && (i == 0 || (element + i) % 4 == 0))
            random = iq_draw(call->seed, call->call, part->is_x ? IQ_STREAM_FACTOR_X : IQ_STREAM_FACTOR_DELTA, rank, element + i);
        if (encoder->spec->dither && (first + i) % IQ_DITHER_BLOCK == 0)
            iq_dither_block(call->seed, call->call, dither_stream, rank, block + (first + i) / IQ_DITHER_BLOCK, encoder->dither_bits, k);
        uint32_t random24 = random.word[(element + i) % 4] >> 8;
        int32_t code = encoder->spec->nearest  ? iq_round_nearest(y, low, high)
                       : encoder->spec->dither ? iq_dither_round(y, random24, k[(first + i) % IQ_DITHER_BLOCK], encoder->dither_bits, low, high)
                                               : iq_round_stochastic(y, random24, low, high);
        codes[i] = (iq_float_bits(values[i]) & 0x7fffffffu) == 0 ? IQ_CODE_ABSENT : (int16_t)code;
    }
}

static const int16_t *round_part(const encoder_t *encoder, const part_t *part)
{
    const void *factor = part->is_x ? encoder->x : encoder->delta;
    iq_factor_rows_t *own = encoder->own;
    int16_t *symbols = own == NULL ? encoder->state.symbols : (part->is_x ? own->q : own->p) + (own->count + part->place) * part->count;
    float values[IQ_FACTOR_CHUNK];
    for (size_t done = 0, count; done < part->count; done += count) {
        count = iq_min(part->count - done, IQ_FACTOR_CHUNK);
        iq_factor_load(encoder->call->datatype, factor, part->row * part->count + done, count, values);
        round_chunk(encoder, part, done, count, values, symbols + done);
    }
    return symbols;
}

/* ---- heads ---- */

static void write_head(const encoder_t *encoder, size_t r, const iq_factor_form_t *form, uint8_t *out)
{
    const iq_factor_row_t *row = &encoder->state.rows[r];
    uint32_t shape = (row->width_delta - 1) << 3 | (row->delta.nonzero < encoder->call->n ? IQ_FACTOR_PLANE_DELTA : 0);
    if (form->c > 0)
        shape |= (row->width_x - 1) | (row->x.nonzero < encoder->call->m ? IQ_FACTOR_PLANE_X : 0);
    *out++ = form->c > 0 ? iq_factor_weight_byte(form->c, &encoder->frame.grid_c) : 0;
    if (encoder->call->want_bias)
        *out++ = form->on_grid_b ? iq_factor_weight_byte(form->b, &encoder->frame.grid_b) : 0;
    *out = (uint8_t)shape;
}

/* Returns the number of rows; *packed: bytes of all their codes if packed. */
static size_t write_heads(const encoder_t *encoder, uint8_t *out, size_t *packed)
{
    iq_factor_sampler_t sampler = iq_factor_sampler_of(encoder->call, &encoder->state, &encoder->frame);
    iq_factor_form_t form;
    size_t r, count = 0;
    *packed = 0;
    for (; iq_factor_sample(&sampler, &r, &form); count++) {
        part_t x = part_of(encoder, true, r, count, &form), delta = part_of(encoder, false, r, count, &form);
        write_head(encoder, r, &form, out + count * iq_factor_row_header(encoder->call->want_bias));
        *packed += (form.c > 0 ? packed_bytes(&x) : 0) + packed_bytes(&delta);
    }
    return count;
}

/* ---- codes, packed ---- */

static uint8_t *pack_part(const encoder_t *encoder, const part_t *part, uint8_t *out)
{
    const int16_t *symbols = round_part(encoder, part);
    int zero = is_unsigned(encoder, part) ? 0 : iq_factor_levels(part->width, false);
    uint8_t *plane = out, *codes = encoder->state.codes;
    size_t present = 0;
    if (part->plane) {
        memset(plane, 0, iq_packed_bytes(part->count, 1));
        out += iq_packed_bytes(part->count, 1);
    }
    for (size_t i = 0; i < part->count; i++)
        if (symbols[i] != IQ_CODE_ABSENT) {
            if (part->plane)
                plane[i / 8] |= (uint8_t)(1 << i % 8);
            codes[present++] = (uint8_t)(symbols[i] + zero);
        }
    iq_kernels()->pack8(codes, present, part->width, out);
    return out + iq_packed_bytes(present, part->width);
}

static void pack_codes(const encoder_t *encoder, uint8_t *out)
{
    iq_factor_sampler_t sampler = iq_factor_sampler_of(encoder->call, &encoder->state, &encoder->frame);
    iq_factor_form_t form;
    size_t r;
    for (size_t place = 0; iq_factor_sample(&sampler, &r, &form); place++) {
        part_t x = part_of(encoder, true, r, place, &form), delta = part_of(encoder, false, r, place, &form);
        if (form.c > 0)
            out = pack_part(encoder, &x, out);
        out = pack_part(encoder, &delta, out);
    }
}

/* ---- codes through the coder ---- */

static void code_part(const encoder_t *encoder, const part_t *part, iq_symbols_t *symbols, iq_bit_writer_t *writer)
{
    bool has_sign = !is_unsigned(encoder, part);
    iq_symbol_row_t row = {.count = part->count, .octaves = part->width - has_sign, .is_signed = has_sign, .plane = part->plane};
    iq_symbols_write(symbols, &row, round_part(encoder, part), writer);
}

/* Returns the bytes, or `room` if they would not be fewer. */
static size_t code_codes(const encoder_t *encoder, uint8_t *out, size_t room)
{
    iq_factor_sampler_t sampler = iq_factor_sampler_of(encoder->call, &encoder->state, &encoder->frame);
    iq_bit_writer_t writer = iq_bit_writer_of(out, room);
    iq_symbols_t of_x, of_delta;
    iq_factor_form_t form;
    size_t r;
    iq_symbols_open(&of_x, encoder->call->m, encoder->state.columns);
    iq_symbols_open(&of_delta, encoder->call->n, encoder->state.columns + encoder->call->m);
    for (size_t place = 0; !writer.full && iq_factor_sample(&sampler, &r, &form); place++) {
        part_t x = part_of(encoder, true, r, place, &form), delta = part_of(encoder, false, r, place, &form);
        if (form.c > 0)
            code_part(encoder, &x, &of_x, &writer);
        code_part(encoder, &delta, &of_delta, &writer);
    }
    size_t bytes = iq_bit_write_end(&writer, out);
    return writer.full ? room : bytes;
}

/* Codes that went into the blob to what decoding makes of them. */
static void keep_rows(const encoder_t *encoder, const uint8_t *heads, size_t count)
{
    const iq_factor_call_t *call = encoder->call;
    iq_factor_rows_t *own = encoder->own;
    for (size_t place = 0; place < count; place++, own->count++) {
        int16_t *q = own->q + own->count * call->m, *p = own->p + own->count * call->n;
        bool right = iq_factor_read_weights(call, heads + place * iq_factor_row_header(call->want_bias), own, own->count);
        iq_assert(right);
        (void)right;
        for (size_t i = 0; i < call->m && own->weight_c[own->count] == 0; i++)
            q[i] = 0;
        if (own->weight_c[own->count] != 0)
            iq_factor_to_values(encoder->spec, call, call->rank, true, place, q);
        iq_factor_to_values(encoder->spec, call, call->rank, false, place, p);
    }
}

size_t iq_factor_encode_fine(const iq_factor_spec_t *spec, const iq_factor_call_t *call, const void *x, const void *delta,
                             void *memory, const float peaks[2], void *blob, iq_factor_rows_t *rows)
{
    iq_factor_state_t state = iq_factor_state(spec, call, memory);
    iq_factor_call_t own = spec->svd ? iq_factor_svd_call(call, &state) : *call;
    encoder_t encoder = {.spec = spec,
                         .call = &own,
                         .x = spec->svd ? state.svd_x : x,
                         .delta = spec->svd ? state.svd_delta : delta,
                         .state = state,
                         .own = rows,
                         .dither_bits = iq_dither_bits((uint64_t)call->nranks * call->max_batch)};
    uint8_t *out = blob;
    size_t count = 0, packed = 0, bytes = IQ_FACTOR_HEADER_BYTES;
    const iq_factor_facts_t *facts = encoder.state.facts;
    bool coded = false;
    encoder.frame = iq_factor_frame_of(call->want_bias, facts->unsigned_x, peaks[0], peaks[1]);
    if (facts->finite && !iq_not_finite(peaks[0]) && !iq_not_finite(peaks[1])) {
        iq_factor_fit_rows(spec, &own, &encoder.frame, &encoder.state);
        count = write_heads(&encoder, out + bytes, &packed);
        bytes += count * iq_factor_row_header(call->want_bias);
        size_t coded_bytes = spec->coded ? code_codes(&encoder, out + bytes, packed) : packed;
        coded = coded_bytes < packed;
        if (!coded)
            pack_codes(&encoder, out + bytes);
        bytes += coded ? coded_bytes : packed;
        if (rows != NULL)
            keep_rows(&encoder, out + IQ_FACTOR_HEADER_BYTES, count);
    }
    unsigned flags = (facts->unsigned_x ? IQ_FACTOR_FLAG_UNSIGNED : 0u) | (call->want_bias ? IQ_FACTOR_FLAG_BIAS : 0u) |
                     (coded ? IQ_FACTOR_FLAG_CODED : 0u);
    iq_factor_write_header(IQ_FACTOR_VERSION_FINE, flags, count, bytes, out);
    return bytes;
}
