/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A blob to rows of small integers. The bytes may come from a network: whatever factor_encode.c would not write is
 * ISGQ_ERR_CORRUPT, found before anything beyond the blob or the arrays is touched.
 */
#include "base/status.h"
#include "base/util.h"
#include "codec/factor_internal.h"
#include "kernels/kernels.h"

/* 0 is a legal weight: absent. */
static bool read_weight(uint8_t byte, int64_t *weight)
{
    unsigned e = byte >> 3, m = byte & 7u;
    *weight = e == 0 ? 0 : (int64_t)(8 + m) << (e - 1);
    return e <= IQ_FACTOR_OCTAVES && (e > 0 || m == 0);
}

/* Packed codes to values; false if one is out of range, or is zero where a zero plane promised none. */
static bool read_codes(const uint8_t *packed, size_t count, unsigned width, bool is_unsigned, bool has_plane, int16_t *values)
{
    uint8_t codes[IQ_FACTOR_CHUNK];
    int zero = is_unsigned ? 0 : iq_factor_levels(width, false), bad = 0;
    int most = is_unsigned ? iq_factor_levels(width, true) : 2 * zero, forbidden = has_plane ? zero : -1;
    if (!iq_packed_is_clean(packed, count, width))
        return false;
    for (size_t done = 0; done < count; done += IQ_FACTOR_CHUNK) {
        size_t part = iq_min(count - done, IQ_FACTOR_CHUNK);
        iq_kernels()->unpack8(packed + iq_packed_bytes(done, width), part, width, codes);
        for (size_t i = 0; i < part; i++) {
            bad |= (codes[i] > most) | (codes[i] == forbidden);
            values[done + i] = (int16_t)(codes[i] - zero);
        }
    }
    return bad == 0;
}

/* Move the first `left` values to the columns that the plane names, from the last one so that none is overwritten too soon. */
static void spread(const uint8_t *plane, size_t count, size_t left, int16_t *values)
{
    for (size_t i = count; i-- > 0;) {
        unsigned set = plane[i / 8] >> (i % 8) & 1u;
        left -= set;
        values[i] = (int16_t)(set ? values[left] : 0);
    }
}

size_t iq_factor_count_bits(const uint8_t *plane, size_t bytes)
{
    size_t bits = 0;
    for (size_t i = 0; i < bytes; i++)
        bits += (size_t)__builtin_popcount(plane[i]);
    return bits;
}

/* One factor's row. */
static bool read_side(iq_factor_reader_t *reader, size_t count, unsigned width, bool is_unsigned, bool has_plane, int16_t *values)
{
    const uint8_t *plane = NULL;
    size_t present = count;
    if (width < IQ_FACTOR_MIN_WIDTH)
        return false;
    if (has_plane) {
        plane = iq_factor_take(reader, iq_packed_bytes(count, 1));
        if (plane == NULL || !iq_packed_is_clean(plane, count, 1))
            return false;
        present = iq_factor_count_bits(plane, iq_packed_bytes(count, 1));
    }
    const uint8_t *packed = iq_factor_take(reader, iq_packed_bytes(present, width));
    if (packed == NULL || !read_codes(packed, present, width, is_unsigned, has_plane, values))
        return false;
    if (has_plane)
        spread(plane, count, present, values);
    return true;
}

bool iq_factor_read_weights(const iq_factor_call_t *call, const uint8_t *header, iq_factor_rows_t *rows, size_t row)
{
    return read_weight(header[0], &rows->weight_c[row]) && (!call->want_bias || read_weight(header[1], &rows->weight_b[row]));
}

static bool read_row(const iq_factor_spec_t *spec, const iq_factor_call_t *call, bool unsigned_x, iq_factor_reader_t *reader,
                     iq_factor_rows_t *rows, size_t row)
{
    int16_t *q = rows->q + row * call->m, *p = rows->p + row * call->n;
    const uint8_t *header = iq_factor_take(reader, iq_factor_row_header(call->want_bias));
    if (header == NULL || !iq_factor_read_weights(call, header, rows, row))
        return false;
    uint8_t shape = header[call->want_bias ? 2 : 1];
    unsigned width_x = (shape & 7u) + 1, width_delta = (shape >> 3 & 7u) + 1;
    bool has_x = rows->weight_c[row] != 0, fixed = spec->budget_bits == 0;
    if (!has_x && (!call->want_bias || rows->weight_b[row] == 0 || width_x != 1 || (shape & IQ_FACTOR_PLANE_X)))
        return false;
    if (fixed && ((has_x && width_x != spec->width_x) || width_delta != spec->width_delta))
        return false;
    if (!has_x)
        for (size_t i = 0; i < call->m; i++)
            q[i] = 0;
    else if (!read_side(reader, call->m, width_x, unsigned_x, shape & IQ_FACTOR_PLANE_X, q))
        return false;
    return read_side(reader, call->n, width_delta, false, shape & IQ_FACTOR_PLANE_DELTA, p);
}

isgq_result_t iq_factor_read_header(const iq_factor_call_t *call, unsigned version, unsigned also, const iq_factor_rows_t *rows,
                                    iq_factor_reader_t *reader, unsigned *flags, size_t *count)
{
    size_t bytes = (size_t)(reader->end - reader->at);
    const uint8_t *header = iq_factor_take(reader, IQ_FACTOR_HEADER_BYTES);
    if (header == NULL)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "factored blob: %zu bytes are less than its header", bytes);
    if (header[0] != version)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "factored blob: version %u, not %u", header[0], version);
    unsigned bias = call->want_bias ? IQ_FACTOR_FLAG_BIAS : 0;
    *flags = header[1];
    size_t told = version == IQ_FACTOR_VERSION ? 0 : bytes;
    if ((*flags & ~(also | IQ_FACTOR_FLAG_UNSIGNED)) != bias || header[2] != (told & 0xff) || header[3] != (told >> 8 & 0xff))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "factored blob: flags %u %u %u are not those of this call", *flags, header[2], header[3]);
    *count = header[4] | (size_t)header[5] << 8 | (size_t)header[6] << 16 | (size_t)header[7] << 24;
    if (*count > call->max_batch || *count > rows->capacity - rows->count)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "factored blob: %zu rows, more than a batch of %zu", *count, call->max_batch);
    return ISGQ_SUCCESS;
}

isgq_result_t iq_factor_decode(const iq_factor_spec_t *spec, const iq_factor_call_t *call, int from, const void *blob, size_t bytes,
                               iq_factor_rows_t *rows)
{
    iq_factor_reader_t reader = {blob, (const uint8_t *)blob + bytes};
    unsigned flags;
    size_t count;
    if (spec->method != IQ_FACTOR_ROWS)
        return iq_factor_decode_whole(spec, call, from, blob, bytes, rows);
    if (iq_factor_is_fine(spec))
        return iq_factor_decode_fine(spec, call, from, blob, bytes, rows);
    IQ_TRY(iq_factor_read_header(call, IQ_FACTOR_VERSION, 0, rows, &reader, &flags, &count));
    for (size_t r = 0; r < count; r++)
        if (!read_row(spec, call, flags & IQ_FACTOR_FLAG_UNSIGNED, &reader, rows, rows->count + r))
            return IQ_FAIL(ISGQ_ERR_CORRUPT, "factored blob: row %zu of %zu is damaged", r, count);
    if (reader.at != reader.end)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "factored blob: %zu bytes after its last row", (size_t)(reader.end - reader.at));
    rows->count += count;
    return ISGQ_SUCCESS;
}
