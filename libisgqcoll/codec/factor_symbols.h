/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Codes of a factor's rows as bits for the adaptive coder: what the two ends know of a code before they have it.
 *
 * Whether a value is exactly 0 depends on its column (a unit that was silent for other rows, a border of images) and, a little, on its
 * neighbour. How large a code is, in octaves below the largest, is the same from width to width, since every row is measured by its own
 * largest value. Of the bits below the leading one the first two are not quite even, the others are; signs are even.
 */
#ifndef ISGQ_CODEC_FACTOR_SYMBOLS_H
#define ISGQ_CODEC_FACTOR_SYMBOLS_H

#include "codec/bit_coder.h"
#include "kernels/factor_rows.h"

/* How long a column is remembered, and the classes that columns are told apart by. */
enum { IQ_COLUMN_SEEN_MOST = 12, IQ_COLUMN_CLASSES = 8, IQ_OCTAVES_MOST = 9 };

typedef struct iq_symbols {
    iq_bit_model_t present[IQ_COLUMN_CLASSES][2]; /* by the column's class, and whether the value before was there */
    iq_bit_model_t octave[IQ_OCTAVES_MOST];       /* is it this one, if none above? */
    iq_bit_model_t first[IQ_OCTAVES_MOST], second[IQ_OCTAVES_MOST][2];
    iq_bit_model_t level[8]; /* of a few levels: the bits of its number, by those before */
    iq_bit_model_t *columns; /* how often each column was not 0 */
} iq_symbols_t;

/* `columns` has room for `count`. */
void iq_symbols_open(iq_symbols_t *symbols, size_t count, iq_bit_model_t *columns);

/* Stands where a value is exactly 0 and has no code. */
#define IQ_CODE_ABSENT INT16_MIN

/* What both ends know of a row: absolute values are below 2^octaves. Without `plane` nothing is absent. */
typedef struct iq_symbol_row {
    size_t count;
    unsigned octaves;
    bool is_signed, plane;
} iq_symbol_row_t;

void iq_symbols_write(iq_symbols_t *symbols, const iq_symbol_row_t *row, const int16_t *codes, iq_bit_writer_t *writer);
void iq_symbols_read(iq_symbols_t *symbols, const iq_symbol_row_t *row, iq_bit_reader_t *reader, int16_t *codes);

/* A row of symbols 0..levels, where 0 is absent; levels is 2, 4 or 8. */
void iq_symbols_write_levels(iq_symbols_t *symbols, const uint16_t *row, size_t count, unsigned levels, iq_bit_writer_t *writer);
void iq_symbols_read_levels(iq_symbols_t *symbols, size_t count, unsigned levels, iq_bit_reader_t *reader, uint16_t *row);

/* -log2(p), 0 < p <= 1, to a hundredth: arithmetic alone, so that it is the same everywhere. */
static inline double iq_bits_of(double p)
{
    int exponent = iq_exponent_of(p);
    double rest = p * iq_power_of_two(1 - exponent) - 1; /* p is (1 + rest) 2^(exponent - 1) */
    return 1 - exponent - rest * (1.3465 - 0.3465 * rest);
}

/* Bits that saying which of these values are absent takes, were they the next row. */
double iq_symbols_plane_bits(iq_symbols_t *symbols, const float *values, size_t count);

#endif
