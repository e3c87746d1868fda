/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Integers to bytes and back: blocks of at most IQ_CODED_BLOCK of them, each in the shape that makes it small.
 *
 *   block = [u8 shape][u8 width, or signs][u16 bytes of extras][u16 coded bytes][extras][coded symbols]
 *
 * Integers 0 -1 1 -2 2 ... are taken as 0 1 2 3 4 ..., those of one sign as their magnitudes. In shape `classes` a symbol is a
 * byte that says in which class such a number lies (0..31 each for itself, then eight classes an octave) and the extras are its
 * bits below that. In shapes with a small alphabet several symbols make a byte, and the largest symbol of the alphabet says that
 * what is beyond it follows among the extras, 7 bits a byte, lowest first, the upper bit for more. Bytes of symbols go through
 * the coder. Where most integers are 0, one bit each says which, through the coder too, and the others follow as a block of
 * their own. What does not shrink is packed.
 */
#ifndef ISGQ_CODEC_CODED_MESSAGE_H
#define ISGQ_CODEC_CODED_MESSAGE_H

#include "isgqcoll.h"

#include <stddef.h>
#include <stdint.h>

#define IQ_CODED_BLOCK 16384
#define IQ_CODED_BLOCK_HEADER 6

/* No integer is larger, on either side. */
#define IQ_CODED_LARGEST (1 << 29)

/* The most that `count` <= IQ_CODED_BLOCK integers take. */
static inline size_t iq_coded_block_bytes(size_t count) { return IQ_CODED_BLOCK_HEADER + (count + 7) / 8 * 8 * sizeof(uint32_t); }

/* Returns the bytes written, at most iq_coded_block_bytes(count), all of which may be written to. */
size_t iq_coded_write(const int32_t *codes, size_t count, unsigned char *block);

/* Reads the block that begins there; `room` bytes are left of the message. It may come from anybody: ISGQ_ERR_CORRUPT. *used:
 * its bytes. */
isgq_result_t iq_coded_read(const unsigned char *block, size_t room, size_t count, int32_t *codes, size_t *used);

#endif
