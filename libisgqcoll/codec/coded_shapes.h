/* SPDX-License-Identifier: Apache-2.0 */
/* What writer and reader of blocks have in common: shapes, iq_alphabets and classes. See coded_message.h. */
#ifndef ISGQ_CODEC_CODED_SHAPES_H
#define ISGQ_CODEC_CODED_SHAPES_H

#include "codec/coded_message.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

enum {
    IQ_SHAPE_ZERO,   /* all integers are 0: nothing follows */
    IQ_SHAPE_PACKED, /* so many bits each: no extras, no coder */
    IQ_SHAPE_CLASSES,
    IQ_SHAPE_LETTERS
};

/* The second byte of IQ_SHAPE_LETTERS: how many letters less 1, and whether what is known told them apart. */
#define IQ_LETTERS_MASK 31u
#define IQ_LETTERS_KNOWN 32u

/* What is known mirrors: where i of IQ_CODED_CONTEXTS says that integers tend upwards, the last but i says the same of downwards. */
static inline bool iq_is_mirrored(uint8_t context) { return context >= IQ_CODED_CONTEXTS / 2; }
static inline uint8_t iq_table_of(uint8_t context)
{
    return (uint8_t)(iq_is_mirrored(context) ? IQ_CODED_CONTEXTS - 1 - context : context);
}

static inline uint32_t iq_fold(int32_t code) { return ((uint32_t)code << 1) ^ (uint32_t)(code >> 31); }
static inline int32_t iq_unfold(uint32_t folded) { return (int32_t)(folded >> 1) ^ -(int32_t)(folded & 1); }

/* With one sign alone, magnitudes do. */
enum { IQ_SIGNS_BOTH, IQ_SIGNS_PLUS, IQ_SIGNS_MINUS };
static inline uint32_t iq_fold_signs(int32_t code, unsigned signs)
{
    return signs == IQ_SIGNS_BOTH ? iq_fold(code) : (uint32_t)abs(code);
}
static inline int32_t iq_unfold_signs(uint32_t folded, unsigned signs)
{
    return signs == IQ_SIGNS_BOTH ? iq_unfold(folded) : signs == IQ_SIGNS_PLUS ? (int32_t)folded : (int32_t)(0 - folded);
}

/* ---- classes ---- */

enum { IQ_PLAIN = 32, IQ_PLAIN_BITS = 5, IQ_SPLIT_BITS = 3, IQ_CLASSES = IQ_PLAIN + (32 - IQ_PLAIN_BITS) * (1 << IQ_SPLIT_BITS) };

static inline uint32_t iq_class_of(uint32_t folded)
{
    if (folded < IQ_PLAIN)
        return folded;
    unsigned exponent = 31u - (unsigned)__builtin_clz(folded);
    return IQ_PLAIN + ((exponent - IQ_PLAIN_BITS) << IQ_SPLIT_BITS) +
           ((folded >> (exponent - IQ_SPLIT_BITS)) & ((1u << IQ_SPLIT_BITS) - 1));
}

/* Bits that a class leaves open. */
static inline unsigned iq_class_bits(uint32_t class)
{
    return class < IQ_PLAIN ? 0 : ((class - IQ_PLAIN) >> IQ_SPLIT_BITS) + IQ_PLAIN_BITS - IQ_SPLIT_BITS;
}

static inline uint32_t iq_class_first(uint32_t class)
{
    if (class < IQ_PLAIN)
        return class;
    return (((class - IQ_PLAIN) & ((1u << IQ_SPLIT_BITS) - 1)) | 1u << IQ_SPLIT_BITS) << iq_class_bits(class);
}

#endif
