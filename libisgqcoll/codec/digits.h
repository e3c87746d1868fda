/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Codes of any number of symbols, packed with few bits wasted. A few codes are the digits of one number, a group, and groups lie side
 * by side in a little-endian bit stream:
 *
 *   symbols   codes a group   bits a group   bits a code
 *   3         5               8              1.6
 *   5         3               7              2.33
 *   9         5               16             3.2
 *   others    1               those of symbols - 1
 *
 * A group is c0 + symbols * (c1 + symbols * (c2 + ...)). Digits beyond the last code and bits beyond the last group are zero.
 */
#ifndef ISGQ_CODEC_DIGITS_H
#define ISGQ_CODEC_DIGITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The largest iq_digits_unit. */
#define IQ_DIGITS_UNIT_MOST 24

typedef struct iq_digits {
    unsigned symbols; /* 2..65536 */
    unsigned count;   /* codes a group */
    unsigned bits;    /* bits a group, 1..16 */
} iq_digits_t;

iq_digits_t iq_digits_of(unsigned symbols);

/* So many codes fill whole bytes: where a stream may be cut into pieces that are packed one after the other. */
size_t iq_digits_unit(const iq_digits_t *digits);

/* Bytes of `count` codes. Groups that are no whole bytes come by eights, as iq_packed_bytes has it. */
size_t iq_digits_bytes(const iq_digits_t *digits, size_t count);

/* Codes are below `symbols`. */
void iq_digits_pack(const iq_digits_t *digits, const uint16_t *codes, size_t count, void *packed);

/* False if no sender writes these bytes; codes are then undefined, but below 65536. */
bool iq_digits_unpack(const iq_digits_t *digits, const void *packed, size_t count, uint16_t *codes);

#endif
