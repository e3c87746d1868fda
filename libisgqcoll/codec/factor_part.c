/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Some columns of decoded rows as bytes, for the rank that makes a block of the gradient from them (core/run_factored_owner.c).
 *
 * These are the integers that every rank would have decoded, so the block's sums are what all of the gradient's are elsewhere. Weights stay
 * as they are; codes of a row, from its smallest on, take as many bits as its largest asks for. The bytes may come from a network:
 * whatever pack would not write is ISGQ_ERR_CORRUPT, but for a smallest code that is none of the row's and codes wider than need be.
 *
 *     u32 rows; a row:  u16 C [, u16 B], columns of X, columns of Delta;   columns:  u8 width (0..16), i16 smallest code, codes
 */
#include "base/status.h"
#include "base/util.h"
#include "codec/factor_internal.h"
#include "kernels/kernels.h"

#include <string.h>

enum { HEADER_BYTES = 4, WEIGHT_BYTES = 2, SIDE_BYTES = 3, MOST_WIDTH = 16 };

_Static_assert(15 << (IQ_FACTOR_OCTAVES - 1) <= UINT16_MAX, "a weight fits 16 bits");

static size_t side_bytes(size_t columns, unsigned width) { return columns == 0 ? 0 : SIDE_BYTES + iq_packed_bytes(columns, width); }

size_t iq_factor_part_bytes(const iq_factor_call_t *call, const iq_factor_part_t *part, unsigned width)
{
    size_t row = (call->want_bias ? 2 : 1) * WEIGHT_BYTES + side_bytes(part->m, width) + side_bytes(part->n, width);
    return HEADER_BYTES + call->max_batch * row;
}

/* Subtracting the dither makes codes longer by its bits. */
unsigned iq_factor_part_width(const iq_factor_spec_t *spec, const iq_factor_call_t *call)
{
    unsigned width = spec->width_x > spec->width_delta ? spec->width_x : spec->width_delta;
    width = (width != 0 ? width : 8) + iq_factor_fraction(spec, call);
    return width < MOST_WIDTH ? width : MOST_WIDTH;
}

static uint8_t *put16(uint8_t *at, unsigned value)
{
    at[0] = (uint8_t)value;
    at[1] = (uint8_t)(value >> 8);
    return at + 2;
}

static unsigned get16(const uint8_t *at) { return at[0] | (unsigned)at[1] << 8; }

/* ---- writing ---- */

static uint8_t *put_side(const int16_t *codes, size_t columns, uint8_t *at)
{
    int least = INT16_MAX, most = INT16_MIN;
    unsigned width = 0;
    if (columns == 0)
        return at;
    for (size_t i = 0; i < columns; i++) {
        least = codes[i] < least ? codes[i] : least;
        most = codes[i] > most ? codes[i] : most;
    }
    while ((most - least) >> width != 0)
        width++;
    *at++ = (uint8_t)width;
    at = put16(at, (uint16_t)least);
    for (size_t done = 0; done < columns && width > 0; done += IQ_FACTOR_CHUNK) {
        uint32_t above[IQ_FACTOR_CHUNK];
        size_t count = iq_min(columns - done, IQ_FACTOR_CHUNK);
        for (size_t i = 0; i < count; i++)
            above[i] = (uint32_t)(codes[done + i] - least);
        iq_kernels()->pack32((const iq_u32_any_t *)above, count, width, at + iq_packed_bytes(done, width));
    }
    return at + iq_packed_bytes(columns, width);
}

size_t iq_factor_part_pack(const iq_factor_call_t *call, const iq_factor_rows_t *rows, const iq_factor_part_t *part, void *bytes)
{
    uint8_t *at = put16(put16(bytes, (unsigned)rows->count & 0xffff), (unsigned)(rows->count >> 16));
    for (size_t r = 0; r < rows->count; r++) {
        at = put16(at, (unsigned)rows->weight_c[r]);
        if (call->want_bias)
            at = put16(at, (unsigned)rows->weight_b[r]);
        at = put_side(rows->q + r * call->m + part->i, part->m, at);
        at = put_side(rows->p + r * call->n + part->j, part->n, at);
    }
    return (size_t)(at - (uint8_t *)bytes);
}

/* ---- reading ---- */

/* Larger codes than the quantizer's, `limit`, would make sums that are not exact. */
static bool get_side(iq_factor_reader_t *reader, size_t columns, int32_t limit, int16_t *codes)
{
    if (columns == 0)
        return true;
    const uint8_t *head = iq_factor_take(reader, SIDE_BYTES);
    if (head == NULL || head[0] > MOST_WIDTH)
        return false;
    unsigned width = head[0];
    int least = (int16_t)get16(head + 1), most = least;
    const uint8_t *packed = iq_factor_take(reader, iq_packed_bytes(columns, width));
    if (packed == NULL || (width > 0 && !iq_packed_is_clean(packed, columns, width)))
        return false;
    for (size_t done = 0; done < columns; done += IQ_FACTOR_CHUNK) {
        uint32_t above[IQ_FACTOR_CHUNK] = {0};
        size_t count = iq_min(columns - done, IQ_FACTOR_CHUNK);
        if (width > 0)
            iq_kernels()->unpack32(packed + iq_packed_bytes(done, width), count, width, (iq_u32_any_t *)above);
        for (size_t i = 0; i < count; i++) {
            int code = least + (int)above[i];
            most = code > most ? code : most;
            codes[done + i] = (int16_t)code;
        }
    }
    return most <= limit && least >= -limit;
}

/* 0, or (8 + m) * 2^e. */
static bool weight_is_right(unsigned weight)
{
    unsigned e = 0;
    while (weight >> e > 15)
        e++;
    return weight == 0 || (weight >> e >= 8 && weight >> e << e == weight && e < IQ_FACTOR_OCTAVES);
}

isgq_result_t iq_factor_part_open(const iq_factor_spec_t *spec, const iq_factor_call_t *block, const void *bytes, size_t count,
                                  iq_factor_rows_t *rows)
{
    int32_t most_x = iq_factor_most_code(spec, block, true), most_delta = iq_factor_most_code(spec, block, false);
    iq_factor_reader_t reader = {bytes, (const uint8_t *)bytes + count};
    size_t weights = (block->want_bias ? 2 : 1) * WEIGHT_BYTES, first = rows->count;
    const uint8_t *head = iq_factor_take(&reader, HEADER_BYTES);
    size_t there = head == NULL ? 0 : get16(head) | (size_t)get16(head + 2) << 16;
    if (head == NULL || there > block->max_batch || there > rows->capacity - first)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "part of factors: %zu rows in %zu bytes, of a batch of %zu", there, count, block->max_batch);
    for (size_t r = 0; r < there; r++) {
        const uint8_t *at = iq_factor_take(&reader, weights);
        if (at == NULL || !weight_is_right(get16(at)) || !weight_is_right(get16(at + weights - WEIGHT_BYTES)) ||
            !get_side(&reader, block->m, most_x, rows->q + (first + r) * block->m) || !get_side(&reader, block->n, most_delta, rows->p + (first + r) * block->n))
            return IQ_FAIL(ISGQ_ERR_CORRUPT, "part of factors: row %zu of %zu is damaged", r, there);
        rows->weight_c[first + r] = get16(at);
        if (block->want_bias)
            rows->weight_b[first + r] = get16(at + WEIGHT_BYTES);
    }
    if (reader.at != reader.end)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "part of factors: %zu bytes after its last row", (size_t)(reader.end - reader.at));
    rows->count += there;
    return ISGQ_SUCCESS;
}
