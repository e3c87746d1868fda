/* SPDX-License-Identifier: Apache-2.0 */
/* Blobs of isgq-mse, isgq-mvu and isgq-dithered (factor_whole.c) to rows of integers. */
#include "base/status.h"
#include "base/util.h"
#include "codec/digits.h"
#include "codec/factor_symbols.h"
#include "codec/factor_whole.h"
#include "kernels/factor_dither.h"
#include "kernels/kernels.h"

#include <string.h>

size_t iq_factor_whole_packed(const iq_factor_spec_t *spec, const iq_factor_call_t *call, size_t rows)
{
    if (spec->method == IQ_FACTOR_DITHERED)
        return rows * (iq_packed_bytes(call->m, spec->width_x) + iq_packed_bytes(call->n, spec->width_delta));
    iq_digits_t digits = iq_digits_of(spec->levels + 1);
    return iq_digits_bytes(&digits, rows * call->m) + iq_digits_bytes(&digits, rows * call->n);
}

size_t iq_factor_whole_bytes(const iq_factor_spec_t *spec, const iq_factor_call_t *call)
{
    size_t centers = spec->method == IQ_FACTOR_DITHERED ? 0 : 4 * (size_t)spec->levels;
    return IQ_FACTOR_HEADER_BYTES + (call->want_bias ? 2 : 1) + centers + iq_factor_whole_packed(spec, call, call->max_batch);
}

/* One factor of a blob: codes or symbols arrive in `codes` [rows x columns] and become values there. */
typedef struct part {
    bool is_x;
    size_t columns, rows;
    unsigned width;
    int16_t *codes, centers[IQ_SYMBOLS_MOST];
} part_t;

typedef struct decoder {
    const iq_factor_spec_t *spec;
    const iq_factor_call_t *call;
    int from;
    part_t x, delta;
} decoder_t;

static bool read_centers(const decoder_t *decoder, iq_factor_reader_t *reader, part_t *part)
{
    int32_t most = iq_factor_whole_most(decoder->spec, decoder->call, part->is_x);
    const uint8_t *at = iq_factor_take(reader, 2 * (size_t)decoder->spec->levels);
    if (at == NULL)
        return false;
    part->centers[0] = 0;
    for (unsigned i = 1; i <= decoder->spec->levels; i++, at += 2) {
        uint16_t word = (uint16_t)(at[0] | at[1] << 8);
        memcpy(&part->centers[i], &word, sizeof(word));
        if (part->centers[i] < -most || part->centers[i] > most)
            return false;
    }
    return true;
}

static bool unpack_dithered(part_t *part, iq_factor_reader_t *reader)
{
    int32_t most = iq_factor_levels(part->width, false);
    for (size_t r = 0; r < part->rows; r++) {
        const uint8_t *packed = iq_factor_take(reader, iq_packed_bytes(part->columns, part->width));
        int16_t *codes = part->codes + r * part->columns;
        uint8_t chunk[IQ_FACTOR_CHUNK];
        if (packed == NULL || !iq_packed_is_clean(packed, part->columns, part->width))
            return false;
        for (size_t done = 0; done < part->columns; done += IQ_FACTOR_CHUNK) {
            size_t count = iq_min(part->columns - done, IQ_FACTOR_CHUNK);
            iq_kernels()->unpack8(packed + iq_packed_bytes(done, part->width), count, part->width, chunk);
            for (size_t i = 0; i < count; i++)
                codes[done + i] = (int16_t)(chunk[i] == 2 * most + 1 ? IQ_CODE_ABSENT : chunk[i] - most);
        }
    }
    return true;
}

static bool unpack_symbols(const decoder_t *decoder, part_t *part, iq_factor_reader_t *reader)
{
    if (decoder->spec->method == IQ_FACTOR_DITHERED)
        return unpack_dithered(part, reader);
    iq_digits_t digits = iq_digits_of(decoder->spec->levels + 1);
    const uint8_t *packed = iq_factor_take(reader, iq_digits_bytes(&digits, part->rows * part->columns));
    return packed != NULL && iq_digits_unpack(&digits, packed, part->rows * part->columns, (uint16_t *)part->codes);
}

static void read_row(const decoder_t *decoder, part_t *part, size_t r, iq_symbols_t *symbols, iq_bit_reader_t *bits)
{
    int16_t *codes = part->codes + r * part->columns;
    iq_symbol_row_t row = {.count = part->columns, .octaves = part->width - 1, .is_signed = true, .plane = true};
    if (decoder->spec->method == IQ_FACTOR_DITHERED)
        iq_symbols_read(symbols, &row, bits, codes);
    else
        iq_symbols_read_levels(symbols, part->columns, decoder->spec->levels, bits, (uint16_t *)codes);
}

static bool read_coded(decoder_t *decoder, iq_factor_reader_t *reader, iq_bit_model_t *columns)
{
    size_t left = (size_t)(reader->end - reader->at);
    iq_bit_reader_t bits = iq_bit_reader_of(iq_factor_take(reader, left), left);
    iq_symbols_t of_x, of_delta;
    iq_symbols_open(&of_x, decoder->call->m, columns);
    iq_symbols_open(&of_delta, decoder->call->n, columns + decoder->call->m);
    for (size_t r = 0; r < decoder->x.rows; r++) {
        read_row(decoder, &decoder->x, r, &of_x, &bits);
        read_row(decoder, &decoder->delta, r, &of_delta, &bits);
    }
    return iq_bit_read_end(&bits);
}

static void finish(const decoder_t *decoder, part_t *part)
{
    const iq_factor_call_t *call = decoder->call;
    size_t blocks = iq_ceil_div(part->columns, IQ_DITHER_BLOCK);
    int32_t dither_bits = iq_dither_bits((uint64_t)call->nranks * call->max_batch);
    uint8_t k[IQ_DITHER_BLOCK];
    for (size_t r = 0; r < part->rows; r++)
        for (size_t i = 0; i < part->columns; i++) {
            int16_t *code = part->codes + r * part->columns + i;
            if (decoder->spec->method != IQ_FACTOR_DITHERED) {
                *code = part->centers[*code];
                continue;
            }
            if (i % IQ_DITHER_BLOCK == 0)
                iq_dither_block(call->seed, call->call, part->is_x ? IQ_STREAM_DITHER_X : IQ_STREAM_DITHER_DELTA, (uint32_t)decoder->from,
                                r * blocks + i / IQ_DITHER_BLOCK, dither_bits, k);
            *code = (int16_t)(*code == IQ_CODE_ABSENT ? 0 : iq_dither_value(*code, k[i % IQ_DITHER_BLOCK], dither_bits));
        }
}

/* Everything behind the header. */
static bool read_rows(decoder_t *decoder, bool coded, iq_factor_reader_t *reader, iq_factor_rows_t *rows)
{
    const iq_factor_call_t *call = decoder->call;
    size_t count = decoder->x.rows;
    const uint8_t *weights = iq_factor_take(reader, call->want_bias ? 2 : 1);
    if (weights == NULL)
        return false;
    for (size_t r = 0; r < count; r++)
        if (!iq_factor_read_weights(call, weights, rows, rows->count + r))
            return false;
    if (decoder->spec->method != IQ_FACTOR_DITHERED &&
        (!read_centers(decoder, reader, &decoder->x) || !read_centers(decoder, reader, &decoder->delta)))
        return false;
    bool good = coded ? read_coded(decoder, reader, rows->columns)
                      : unpack_symbols(decoder, &decoder->x, reader) && unpack_symbols(decoder, &decoder->delta, reader);
    if (!good)
        return false;
    finish(decoder, &decoder->x);
    finish(decoder, &decoder->delta);
    return true;
}

isgq_result_t iq_factor_decode_whole(const iq_factor_spec_t *spec, const iq_factor_call_t *call, int from, const void *blob, size_t bytes,
                                     iq_factor_rows_t *rows)
{
    iq_factor_reader_t reader = {blob, (const uint8_t *)blob + bytes};
    decoder_t decoder = {.spec = spec, .call = call, .from = from};
    unsigned flags;
    size_t count;
    IQ_TRY(iq_factor_read_header(call, iq_factor_whole_version(spec), spec->coded ? IQ_FACTOR_FLAG_CODED : 0, rows, &reader, &flags, &count));
    if (flags & IQ_FACTOR_FLAG_UNSIGNED || (count == 0 && flags & IQ_FACTOR_FLAG_CODED))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "factored blob: flags %u are not those of this quantizer", flags);
    decoder.x = (part_t){.is_x = true, .columns = call->m, .rows = count, .width = spec->width_x, .codes = rows->q + rows->count * call->m};
    decoder.delta = (part_t){.columns = call->n, .rows = count, .width = spec->width_delta, .codes = rows->p + rows->count * call->n};
    if (count > 0 && !read_rows(&decoder, flags & IQ_FACTOR_FLAG_CODED, &reader, rows))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "factored blob: its %zu rows are damaged", count);
    if (reader.at != reader.end)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "factored blob: %zu bytes after its last row", (size_t)(reader.end - reader.at));
    rows->count += count;
    return ISGQ_SUCCESS;
}
