/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Entropy coding of a few letters whose frequencies the message tells: the range variant of asymmetric numeral systems (J. Duda, 2013).
 *
 * Letters may be coded by several tables: which one serves a letter both ends know beforehand. Code words are as short as frequencies
 * allow, fractions of a bit included. Integers alone, so both ends agree on any machine.
 *
 *   bytes: [u8 which tables occur][6 bits a letter of each: its frequency, in quarters of an octave][u32 states][u16 words]
 */
#ifndef ISGQ_CODEC_LETTER_CODER_H
#define ISGQ_CODEC_LETTER_CODER_H

#include "isgqcoll.h"

#include <stddef.h>
#include <stdint.h>

enum { IQ_LETTERS_MOST = 32, IQ_LETTER_TABLES = 4, IQ_LETTERS_AT_ONCE = 16384 };

/* How often each letter occurs by each table. */
typedef struct iq_letter_counts {
    uint32_t of[IQ_LETTER_TABLES][IQ_LETTERS_MOST];
} iq_letter_counts_t;

/* letters[i] < nletters, counted in `counts`; tables[i] < IQ_LETTER_TABLES, or NULL for the first table
 * alone. At most IQ_LETTERS_AT_ONCE. Returns the bytes written, or 0
 * if they would be `room` or more. */
size_t iq_letters_write(const uint8_t *letters, const uint8_t *tables, size_t count, unsigned nletters,
                        const iq_letter_counts_t *counts, unsigned char *to, size_t room);

/* The reverse. The bytes may come from anybody: ISGQ_ERR_CORRUPT. */
isgq_result_t iq_letters_read(const unsigned char *from, size_t bytes, const uint8_t *tables, size_t count, unsigned nletters,
                              uint8_t *letters);

/* Bits that iq_letters_write takes beyond the entropy, but for what depends on the letters. */
double iq_letters_overhead(unsigned tables, unsigned nletters, size_t count);

#endif
