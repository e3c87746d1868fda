/* SPDX-License-Identifier: Apache-2.0 */
/* See factor_symbols.h. Writer and reader take the same steps in the same order. */
#include "codec/factor_symbols.h"

void iq_symbols_open(iq_symbols_t *symbols, size_t count, iq_bit_model_t *columns)
{
    const iq_bit_model_t fresh = iq_bit_model_fresh();
    symbols->columns = columns;
    for (size_t i = 0; i < count; i++)
        columns[i] = fresh;
    for (int i = 0; i < IQ_COLUMN_CLASSES; i++)
        symbols->present[i][0] = symbols->present[i][1] = fresh;
    for (int i = 0; i < IQ_OCTAVES_MOST; i++)
        symbols->octave[i] = symbols->first[i] = symbols->second[i][0] = symbols->second[i][1] = fresh;
    for (int i = 0; i < 8; i++)
        symbols->level[i] = fresh;
}

static iq_bit_model_t *model_of_presence(iq_symbols_t *symbols, size_t column, bool before)
{
    return &symbols->present[symbols->columns[column].ones / (65536 / IQ_COLUMN_CLASSES)][before];
}

/* Bits of the number, 0 for 0. */
static unsigned length_of(unsigned number)
{
    unsigned length = 0;
    for (; number > 0; number >>= 1)
        length++;
    return length;
}

static void write_code(iq_symbols_t *symbols, const iq_symbol_row_t *row, int code, iq_bit_writer_t *writer)
{
    unsigned size = (unsigned)(code < 0 ? -code : code), length = length_of(size), octave = row->octaves - length, rest = length;
    for (unsigned i = 0; i < row->octaves && i <= octave; i++)
        iq_bit_write(writer, &symbols->octave[i], i == octave);
    if (length > 1) {
        bool first = size >> (length - 2) & 1u;
        iq_bit_write(writer, &symbols->first[octave], first);
        if (length > 2)
            iq_bit_write(writer, &symbols->second[octave][first], size >> (length - 3) & 1u);
    }
    rest = length > 3 ? length - 3 : 0;
    unsigned even = size & ((1u << rest) - 1);
    if (row->is_signed && size > 0) {
        even = even << 1 | (code < 0);
        rest++;
    }
    if (rest > 0)
        iq_bit_write_even(writer, even, rest);
}

static int read_code(iq_symbols_t *symbols, const iq_symbol_row_t *row, iq_bit_reader_t *reader)
{
    unsigned octave = 0;
    while (octave < row->octaves && !iq_bit_read(reader, &symbols->octave[octave]))
        octave++;
    unsigned length = row->octaves - octave, size = length > 0, rest = length > 3 ? length - 3 : 0;
    if (length > 1) {
        bool first = iq_bit_read(reader, &symbols->first[octave]);
        size = size << 1 | first;
        if (length > 2)
            size = size << 1 | iq_bit_read(reader, &symbols->second[octave][first]);
    }
    bool has_sign = row->is_signed && size > 0;
    unsigned even = rest + has_sign > 0 ? iq_bit_read_even(reader, rest + has_sign) : 0;
    size = size << rest | even >> has_sign;
    return has_sign && (even & 1) ? -(int)size : (int)size;
}

void iq_symbols_write(iq_symbols_t *symbols, const iq_symbol_row_t *row, const int16_t *codes, iq_bit_writer_t *writer)
{
    bool before = true;
    for (size_t i = 0; i < row->count; i++) {
        if (row->plane) {
            bool present = codes[i] != IQ_CODE_ABSENT;
            iq_bit_write(writer, model_of_presence(symbols, i, before), present);
            iq_bit_model_learn(&symbols->columns[i], present, IQ_COLUMN_SEEN_MOST);
            before = present;
            if (!present)
                continue;
        }
        write_code(symbols, row, codes[i], writer);
    }
}

void iq_symbols_read(iq_symbols_t *symbols, const iq_symbol_row_t *row, iq_bit_reader_t *reader, int16_t *codes)
{
    bool before = true;
    for (size_t i = 0; i < row->count; i++) {
        if (row->plane) {
            bool present = iq_bit_read(reader, model_of_presence(symbols, i, before));
            iq_bit_model_learn(&symbols->columns[i], present, IQ_COLUMN_SEEN_MOST);
            before = present;
            if (!present) {
                codes[i] = IQ_CODE_ABSENT;
                continue;
            }
        }
        codes[i] = (int16_t)read_code(symbols, row, reader);
    }
}

void iq_symbols_write_levels(iq_symbols_t *symbols, const uint16_t *row, size_t count, unsigned levels, iq_bit_writer_t *writer)
{
    bool before = true;
    for (size_t i = 0; i < count; i++) {
        bool present = row[i] != 0;
        iq_bit_write(writer, model_of_presence(symbols, i, before), present);
        iq_bit_model_learn(&symbols->columns[i], present, IQ_COLUMN_SEEN_MOST);
        before = present;
        if (!present)
            continue;
        unsigned number = row[i] - 1u, node = 1;
        for (unsigned half = levels / 2; half > 0; half /= 2) {
            bool upper = number & half;
            iq_bit_write(writer, &symbols->level[node], upper);
            node = 2 * node + upper;
        }
    }
}

void iq_symbols_read_levels(iq_symbols_t *symbols, size_t count, unsigned levels, iq_bit_reader_t *reader, uint16_t *row)
{
    bool before = true;
    for (size_t i = 0; i < count; i++) {
        bool present = iq_bit_read(reader, model_of_presence(symbols, i, before));
        iq_bit_model_learn(&symbols->columns[i], present, IQ_COLUMN_SEEN_MOST);
        before = present;
        unsigned node = 1;
        for (unsigned half = levels / 2; present && half > 0; half /= 2)
            node = 2 * node + iq_bit_read(reader, &symbols->level[node]);
        row[i] = (uint16_t)(present ? node - levels + 1 : 0);
    }
}

double iq_symbols_plane_bits(iq_symbols_t *symbols, const float *values, size_t count)
{
    double bits = 0;
    bool before = true;
    for (size_t i = 0; i < count; i++) {
        bool present = values[i] < 0 || values[i] > 0;
        iq_bit_model_t *model = model_of_presence(symbols, i, before);
        double ones = model->ones / 65536.0;
        bits += iq_bits_of(present ? ones : 1 - ones);
        iq_bit_model_learn(model, present, IQ_BIT_MODEL_SEEN_MOST);
        iq_bit_model_learn(&symbols->columns[i], present, IQ_COLUMN_SEEN_MOST);
        before = present;
    }
    return bits;
}
