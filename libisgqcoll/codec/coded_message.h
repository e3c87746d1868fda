/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Integers to bytes and back: blocks of at most IQ_CODED_BLOCK of them, each in the shape that makes it small.
 *
 *   block = [u8 shape][u8 width, signs or letters][u16 bytes of extras][u16 coded bytes][extras][coded symbols]
 *
 * Integers 0 -1 1 -2 2 ... are taken as 0 1 2 3 4 ..., those of one sign as their magnitudes. In shape `classes` a symbol is a
 * byte that says in which class such a number lies (0..31 each for itself, then eight classes an octave), these bytes go through
 * zstd (coder.h), and the extras are the bits below. In shape `letters` there are few symbols, of which the last one says that what is
 * beyond it follows among the extras, which are a block of another shape; they go through letter_coder.h, by tables
 * that depend on what is known of each integer (its context), if the second byte says so. What does not shrink is packed.
 *
 * A context is what both ends know of the random number with which the integer was rounded: in which eighth of [0, 1) it lay.
 * Integers whose context is in the upper half are taken with the other sign, by the tables of the lower one.
 */
#ifndef ISGQ_CODEC_CODED_MESSAGE_H
#define ISGQ_CODEC_CODED_MESSAGE_H

#include "isgqcoll.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IQ_CODED_BLOCK 16384
#define IQ_CODED_BLOCK_HEADER 6
#define IQ_CODED_CONTEXTS 8

/* No integer is larger, on either side. */
#define IQ_CODED_LARGEST (1 << 29)

/* The most that `count` <= IQ_CODED_BLOCK integers take. */
static inline size_t iq_coded_block_bytes(size_t count) { return IQ_CODED_BLOCK_HEADER + (count + 7) / 8 * 8 * sizeof(uint32_t); }

/* Would contexts help? They do where most integers are small. */
bool iq_coded_likes_contexts(const int32_t *codes, size_t count);

/* contexts[i] < IQ_CODED_CONTEXTS, or NULL. Returns the bytes written, at most iq_coded_block_bytes(count), all of which may be written
 * to. */
size_t iq_coded_write(const int32_t *codes, const uint8_t *contexts, size_t count, unsigned char *block);

/* Does the block that begins there, `room` bytes before the end of its message, ask for the contexts it was written with? */
bool iq_coded_asks_for_contexts(const unsigned char *block, size_t room);

/* Reads it. It may come from anybody: ISGQ_ERR_CORRUPT. *used: its bytes. */
isgq_result_t iq_coded_read(const unsigned char *block, size_t room, const uint8_t *contexts, size_t count, int32_t *codes,
                            size_t *used);

#endif
