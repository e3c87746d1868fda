/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Factors to a blob. The format, version 1; all integers little-endian, all codes packed as kernels/kernels.h says:
 *
 *   blob     byte 0      version, 1
 *            byte 1      flags: 1 codes of X are unsigned; 2 rows carry B (the call wants the bias)
 *            bytes 2-3   0
 *            bytes 4-7   number of rows that follow
 *   row      C           1 byte, weight of the outer product
 *            B           1 byte, weight of the bias contribution; only with flag 2
 *            form        bits 0-2 width of the codes of X, minus 1; bits 3-5 the same of delta; bit 6: X has a zero plane;
 *                        bit 7: delta has one
 *            codes of X  unless C is 0, which is a row without X: its width bits and bit 6 are 0
 *            codes of delta
 *   weight   bits 0-2 m, bits 3-7 e: (8 + m) << (e - 1), e in 1..J, times a power of two that follows from the shared peak;
 *            0 is absent. A row has C or B or both.
 *   codes    without zero plane: one code for each column. With: one bit for each column, 1 where the value is not 0, padded to
 *            a byte, then the codes of these columns; never a code that means 0.
 *   code     of width w: value + 2^(w-1) - 1 for signed values of at most 2^(w-1) - 1; the value itself for unsigned ones.
 *
 * The power of two: the shared peak, itself a weight, has e = J; with flag 2, e = J - 1. C and B each have a peak of their own.
 * A blob without rows is what a rank without rows sends, and every rank if any of them had NaN or Inf (then a shared peak is not
 * finite). In fixed mode every width is that of the quantizer. The order of rows has no meaning.
 */
#include "base/status.h"
#include "base/util.h"
#include "codec/factor_internal.h"
#include "kernels/kernels.h"

#include <string.h>

typedef struct encoder {
    const iq_factor_spec_t *spec;
    const iq_factor_call_t *call;
    const void *x, *delta;
    iq_factor_state_t state;
    iq_factor_frame_t frame;
} encoder_t;

/* Codes of one row of one factor. */
static void round_side(const encoder_t *encoder, bool is_x, size_t r, unsigned width, iq_factor_step_t step, uint8_t *codes)
{
    const iq_factor_call_t *call = encoder->call;
    bool is_unsigned = is_x && encoder->state.facts->unsigned_x;
    const void *factor = is_x ? encoder->x : encoder->delta;
    size_t count = is_x ? call->m : call->n, first = r * count;
    iq_grid_t grid = {.inverse = step.inverse,
                      .low = is_unsigned ? 0 : -iq_factor_levels(width, false),
                      .high = iq_factor_levels(width, is_unsigned),
                      .stochastic = !encoder->spec->nearest,
                      .stream = is_x ? IQ_STREAM_FACTOR_X : IQ_STREAM_FACTOR_DELTA,
                      .rank = (uint32_t)call->rank,
                      .seed = call->seed,
                      .call = call->call};
    float values[IQ_FACTOR_CHUNK];
    for (size_t done = 0, part; done < count; done += part) {
        part = iq_min(count - done, IQ_FACTOR_CHUNK - (first + done) % 4); /* random numbers come in fours */
        iq_factor_load(call->datatype, factor, first + done, part, values);
        if (step.lift > 1)
            for (size_t i = 0; i < part; i++)
                values[i] *= step.lift;
        iq_kernels()->quantize(&grid, first + done, values, part, codes + done);
    }
}

/* Squeeze `codes` to the `nonzero` ones that are not `zero`; bit i of the plane says whether code i is one of them. */
static void pack_plane(uint8_t *codes, size_t count, uint8_t zero, uint8_t *plane)
{
    size_t kept = 0;
    memset(plane, 0, iq_packed_bytes(count, 1));
    for (size_t i = 0; i < count; i++) {
        uint8_t code = codes[i], set = code != zero;
        plane[i / 8] |= (uint8_t)(set << (i % 8));
        codes[kept] = code;
        kept += set;
    }
}

/* One factor's row in the blob; returns its bytes. */
static size_t write_side(const encoder_t *encoder, bool is_x, size_t r, unsigned width, iq_factor_step_t step, uint8_t *out,
                         bool *has_plane)
{
    uint8_t *codes = encoder->state.codes;
    size_t count = is_x ? encoder->call->m : encoder->call->n, nonzero = 0;
    uint8_t zero = is_x && encoder->state.facts->unsigned_x ? 0 : (uint8_t)iq_factor_levels(width, false);
    round_side(encoder, is_x, r, width, step, codes);
    for (size_t i = 0; i < count; i++)
        nonzero += codes[i] != zero;
    size_t plane_bytes = iq_packed_bytes(count, 1), bytes = iq_factor_side_bytes(count, nonzero, width);
    *has_plane = bytes < iq_packed_bytes(count, width);
    if (*has_plane) {
        pack_plane(codes, count, zero, out);
        iq_kernels()->pack8(codes, nonzero, width, out + plane_bytes);
    } else {
        iq_kernels()->pack8(codes, count, width, out);
    }
    return bytes;
}

/* Row `r` in one of its forms; returns its bytes. */
static size_t write_row(const encoder_t *encoder, size_t r, const iq_factor_form_t *form, uint8_t *out)
{
    const iq_factor_row_t *row = &encoder->state.rows[r];
    bool plane_x = false, plane_delta;
    uint8_t *at = out;
    *at++ = form->c > 0 ? iq_factor_weight_byte(form->c, &encoder->frame.grid_c) : 0;
    if (encoder->call->want_bias)
        *at++ = form->on_grid_b ? iq_factor_weight_byte(form->b, &encoder->frame.grid_b) : 0;
    uint8_t *shape = at++;
    *shape = (uint8_t)((row->width_delta - 1) << 3);
    if (form->c > 0) {
        at += write_side(encoder, true, r, row->width_x, iq_factor_step_x(form), at, &plane_x);
        *shape |= (uint8_t)((row->width_x - 1) | (plane_x ? IQ_FACTOR_PLANE_X : 0));
    }
    at += write_side(encoder, false, r, row->width_delta, iq_factor_step_delta(form), at, &plane_delta);
    *shape |= plane_delta ? IQ_FACTOR_PLANE_DELTA : 0;
    return (size_t)(at - out);
}

iq_factor_sampler_t iq_factor_sampler_of(const iq_factor_call_t *call, const iq_factor_state_t *state, const iq_factor_frame_t *frame)
{
    uint32_t point = iq_draw(call->seed, call->call, IQ_STREAM_ROWS, (uint32_t)call->rank, 0).word[0];
    return (iq_factor_sampler_t){.state = state, .frame = frame, .batch = call->batch, .point = point};
}

bool iq_factor_sample(iq_factor_sampler_t *sampler, size_t *row, iq_factor_form_t *form)
{
    for (;;) {
        while (sampler->form == sampler->forms) {
            if (sampler->index == sampler->batch)
                return false;
            sampler->row = sampler->state->order[sampler->index++];
            if (sampler->state->rows[sampler->row].keep == 0)
                continue;
            iq_factor_frame_t own = iq_factor_frame_of_row(sampler->state->facts, sampler->frame, &sampler->state->rows[sampler->row]);
            sampler->forms = iq_factor_forms(&own, &sampler->state->rows[sampler->row], sampler->option);
            sampler->form = 0;
        }
        *row = sampler->row;
        *form = sampler->option[sampler->form++];
        uint64_t start = sampler->start;
        sampler->start += form->keep;
        if (iq_factor_points_below(sampler->point, sampler->start) > iq_factor_points_below(sampler->point, start))
            return true;
    }
}

void iq_factor_fit_rows(const iq_factor_spec_t *spec, const iq_factor_call_t *call, const iq_factor_frame_t *frame, iq_factor_state_t *state)
{
    for (size_t r = 0; r < call->batch && spec->width_x == 0; r++)
        if (state->rows[r].keep != 0) {
            iq_factor_frame_t own = iq_factor_frame_of_row(state->facts, frame, &state->rows[r]);
            iq_factor_fit_grid(&own, &state->rows[r]);
        }
}

static size_t write_rows(const encoder_t *encoder, uint8_t *out, uint32_t *count)
{
    iq_factor_sampler_t sampler = iq_factor_sampler_of(encoder->call, &encoder->state, &encoder->frame);
    iq_factor_form_t form;
    uint8_t *at = out;
    size_t r;
    for (; iq_factor_sample(&sampler, &r, &form); (*count)++)
        at += write_row(encoder, r, &form, at);
    return (size_t)(at - out);
}

void iq_factor_write_header(unsigned version, unsigned flags, size_t count, size_t bytes, uint8_t *out)
{
    size_t told = version == IQ_FACTOR_VERSION ? 0 : bytes;
    out[0] = (uint8_t)version;
    out[1] = (uint8_t)flags;
    out[2] = (uint8_t)told;
    out[3] = (uint8_t)(told >> 8);
    for (int i = 0; i < 4; i++)
        out[4 + i] = (uint8_t)(count >> 8 * i);
}

static size_t encode_plain(const iq_factor_spec_t *spec, const iq_factor_call_t *call, const void *x, const void *delta, void *memory,
                           const float peaks[2], void *blob)
{
    encoder_t encoder = {.spec = spec, .call = call, .x = x, .delta = delta, .state = iq_factor_state(spec, call, memory)};
    uint8_t *out = blob;
    uint32_t count = 0;
    size_t bytes = IQ_FACTOR_HEADER_BYTES;
    bool finite = encoder.state.facts->finite && !iq_not_finite(peaks[0]) && !iq_not_finite(peaks[1]);
    encoder.frame = iq_factor_frame_of(call->want_bias, encoder.state.facts->unsigned_x, peaks[0], peaks[1]);
    if (finite)
        iq_factor_fit_rows(spec, call, &encoder.frame, &encoder.state);
    if (finite)
        bytes += write_rows(&encoder, out + bytes, &count);
    unsigned flags = (encoder.state.facts->unsigned_x ? IQ_FACTOR_FLAG_UNSIGNED : 0u) | (call->want_bias ? IQ_FACTOR_FLAG_BIAS : 0u);
    iq_factor_write_header(IQ_FACTOR_VERSION, flags, count, bytes, out);
    return bytes;
}

size_t iq_factor_encode(const iq_factor_spec_t *spec, const iq_factor_call_t *call, const void *x, const void *delta, void *memory,
                        const float peaks[2], void *blob, iq_factor_rows_t *own)
{
    if (iq_factor_is_fine(spec))
        return iq_factor_encode_fine(spec, call, x, delta, memory, peaks, blob, own);
    bool whole = spec->method != IQ_FACTOR_ROWS;
    size_t bytes = whole ? iq_factor_encode_whole(spec, call, memory, peaks, blob) : encode_plain(spec, call, x, delta, memory, peaks, blob);
    isgq_result_t result = own != NULL ? iq_factor_decode(spec, call, call->rank, blob, bytes, own) : ISGQ_SUCCESS;
    iq_assert(result == ISGQ_SUCCESS);
    (void)result;
    return bytes;
}
