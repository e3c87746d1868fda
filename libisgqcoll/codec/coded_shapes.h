/* SPDX-License-Identifier: Apache-2.0 */
/* What writer and reader of blocks have in common: shapes, iq_alphabets and classes. See coded_message.h. */
#ifndef ISGQ_CODEC_CODED_SHAPES_H
#define ISGQ_CODEC_CODED_SHAPES_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

enum {
    IQ_SHAPE_ZERO,   /* all integers are 0: nothing follows */
    IQ_SHAPE_PACKED, /* so many bits each: no extras, no coder */
    IQ_SHAPE_CLASSES,
    IQ_SHAPE_SPARSE, /* the extras say which integers are not 0, the block of these follows: positive ones less 1 */
    IQ_SHAPE_SMALL   /* from here on: rows of `iq_alphabets` */
};

/* How many letters, and how many of them make a byte. Without escape: only where nothing is beyond the alphabet. */
typedef struct iq_alphabet {
    uint32_t letters, digits;
    bool escapes;
} iq_alphabet_t;

static const iq_alphabet_t iq_alphabets[] = {{16, 2, true}, {12, 2, true}, {6, 3, true},
                                             {5, 3, false}, {4, 4, true},  {3, 5, false}};

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
