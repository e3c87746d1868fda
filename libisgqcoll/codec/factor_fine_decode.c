/* SPDX-License-Identifier: Apache-2.0 */
/* A blob of version 2 (factor_fine_encode.c) to rows of small integers: codes, less the dither that their sender added. */
#include "base/status.h"
#include "base/util.h"
#include "codec/factor_internal.h"
#include "codec/factor_symbols.h"
#include "kernels/factor_dither.h"
#include "kernels/kernels.h"

typedef struct decoder {
    const iq_factor_spec_t *spec;
    const iq_factor_call_t *call;
    int from;
    bool unsigned_x, coded;
    iq_factor_reader_t packed;
    iq_bit_reader_t bits;
    iq_symbols_t symbols[2]; /* of Delta, of X */
} decoder_t;

/* One factor's part of a row, as its head tells. */
typedef struct part {
    bool is_x, is_unsigned, plane;
    size_t count, place;
    unsigned width;
    int16_t *codes;
} part_t;

/* The next codes, from the last so that none is overwritten too soon; `present` of them are there. */
static bool spread_codes(const part_t *part, const uint8_t *plane, const uint8_t *packed, size_t present)
{
    int zero = part->is_unsigned ? 0 : iq_factor_levels(part->width, false), bad = 0;
    int most = part->is_unsigned ? iq_factor_levels(part->width, true) : 2 * zero;
    uint8_t codes[IQ_FACTOR_CHUNK];
    for (size_t done = 0; done < present; done += IQ_FACTOR_CHUNK) {
        size_t count = iq_min(present - done, IQ_FACTOR_CHUNK);
        iq_kernels()->unpack8(packed + iq_packed_bytes(done, part->width), count, part->width, codes);
        for (size_t i = 0; i < count; i++) {
            bad |= codes[i] > most;
            part->codes[done + i] = (int16_t)(codes[i] - zero);
        }
    }
    for (size_t i = part->count; plane != NULL && i-- > 0;) {
        bool set = plane[i / 8] >> (i % 8) & 1;
        present -= set;
        part->codes[i] = set ? part->codes[present] : IQ_CODE_ABSENT;
    }
    return bad == 0;
}

static bool unpack_part(decoder_t *decoder, const part_t *part)
{
    const uint8_t *plane = NULL;
    size_t present = part->count;
    if (part->plane) {
        plane = iq_factor_take(&decoder->packed, iq_packed_bytes(part->count, 1));
        if (plane == NULL || !iq_packed_is_clean(plane, part->count, 1))
            return false;
        present = iq_factor_count_bits(plane, iq_packed_bytes(part->count, 1));
    }
    const uint8_t *packed = iq_factor_take(&decoder->packed, iq_packed_bytes(present, part->width));
    return packed != NULL && iq_packed_is_clean(packed, present, part->width) && spread_codes(part, plane, packed, present);
}

void iq_factor_to_values(const iq_factor_spec_t *spec, const iq_factor_call_t *call, int from, bool is_x, size_t place, int16_t *codes)
{
    uint32_t stream = is_x ? IQ_STREAM_DITHER_X : IQ_STREAM_DITHER_DELTA;
    size_t count = is_x ? call->m : call->n, block = place * iq_ceil_div(count, IQ_DITHER_BLOCK);
    int32_t bits = iq_dither_bits((uint64_t)call->nranks * call->max_batch);
    uint8_t k[IQ_DITHER_BLOCK];
    for (size_t i = 0; i < count; i++) {
        if (spec->dither && i % IQ_DITHER_BLOCK == 0)
            iq_dither_block(call->seed, call->call, stream, (uint32_t)from, block + i / IQ_DITHER_BLOCK, bits, k);
        if (codes[i] == IQ_CODE_ABSENT)
            codes[i] = 0;
        else if (spec->dither)
            codes[i] = (int16_t)iq_dither_value(codes[i], k[i % IQ_DITHER_BLOCK], bits);
    }
}

static bool read_part(decoder_t *decoder, const part_t *part)
{
    if (part->width < IQ_FACTOR_MIN_WIDTH)
        return false;
    if (decoder->coded) {
        iq_symbol_row_t row = {.count = part->count,
                               .octaves = part->width - !part->is_unsigned,
                               .is_signed = !part->is_unsigned,
                               .plane = part->plane};
        iq_symbols_read(&decoder->symbols[part->is_x], &row, &decoder->bits, part->codes);
    } else if (!unpack_part(decoder, part)) {
        return false;
    }
    iq_factor_to_values(decoder->spec, decoder->call, decoder->from, part->is_x, part->place, part->codes);
    return true;
}

static bool read_row(decoder_t *decoder, const uint8_t *head, iq_factor_rows_t *rows, size_t place)
{
    const iq_factor_spec_t *spec = decoder->spec;
    const iq_factor_call_t *call = decoder->call;
    size_t row = rows->count + place;
    uint8_t shape = head[call->want_bias ? 2 : 1];
    part_t x = {.is_x = true,
                .is_unsigned = decoder->unsigned_x,
                .plane = shape & IQ_FACTOR_PLANE_X,
                .count = call->m,
                .place = place,
                .width = (shape & 7u) + 1,
                .codes = rows->q + row * call->m};
    part_t delta = {.plane = shape & IQ_FACTOR_PLANE_DELTA,
                    .count = call->n,
                    .place = place,
                    .width = (shape >> 3 & 7u) + 1,
                    .codes = rows->p + row * call->n};
    if (!iq_factor_read_weights(call, head, rows, row))
        return false;
    bool has_x = rows->weight_c[row] != 0, fixed = spec->width_x != 0;
    if (!has_x && (!call->want_bias || rows->weight_b[row] == 0 || x.width != 1 || x.plane))
        return false;
    if (fixed && ((has_x && x.width != spec->width_x) || delta.width != spec->width_delta))
        return false;
    for (size_t i = 0; i < call->m && !has_x; i++)
        x.codes[i] = 0;
    return (!has_x || read_part(decoder, &x)) && read_part(decoder, &delta);
}

isgq_result_t iq_factor_decode_fine(const iq_factor_spec_t *spec, const iq_factor_call_t *call, int from, const void *blob, size_t bytes,
                                    iq_factor_rows_t *rows)
{
    decoder_t decoder = {.spec = spec,
                         .call = call,
                         .from = from,
                         .packed = {blob, (const uint8_t *)blob + bytes}};
    unsigned flags;
    size_t count, head = iq_factor_row_header(call->want_bias);
    IQ_TRY(iq_factor_read_header(call, IQ_FACTOR_VERSION_FINE, spec->coded ? IQ_FACTOR_FLAG_CODED : 0, rows, &decoder.packed, &flags, &count));
    const uint8_t *heads = iq_factor_take(&decoder.packed, count * head);
    if (heads == NULL)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "factored blob: %zu bytes are less than the heads of %zu rows", bytes, count);
    decoder.unsigned_x = flags & IQ_FACTOR_FLAG_UNSIGNED;
    decoder.coded = flags & IQ_FACTOR_FLAG_CODED;
    if (decoder.coded) {
        iq_bit_model_t *columns = rows->columns;
        size_t left = (size_t)(decoder.packed.end - decoder.packed.at);
        decoder.bits = iq_bit_reader_of(iq_factor_take(&decoder.packed, left), left);
        iq_symbols_open(&decoder.symbols[1], call->m, columns);
        iq_symbols_open(&decoder.symbols[0], call->n, columns + call->m);
    }
    for (size_t r = 0; r < count; r++)
        if (!read_row(&decoder, heads + r * head, rows, r))
            return IQ_FAIL(ISGQ_ERR_CORRUPT, "factored blob: row %zu of %zu is damaged", r, count);
    if (decoder.packed.at != decoder.packed.end || (decoder.coded && !iq_bit_read_end(&decoder.bits)))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "factored blob: the codes of %zu rows do not end with it", count);
    rows->count += count;
    return ISGQ_SUCCESS;
}
