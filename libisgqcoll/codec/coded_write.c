/* SPDX-License-Identifier: Apache-2.0 */
/* Integers to bytes: see coded_message.h. The shape is chosen by the size that a histogram of the symbols lets
 * expect. */
#include "codec/coded_message.h"

#include "base/status.h"
#include "base/util.h"
#include "codec/coded_math.h"
#include "codec/coded_shapes.h"
#include "codec/coder.h"
#include "kernels/kernels.h"

#include <string.h>

/* ---- choosing ---- */

typedef struct tally {
    uint32_t counts[IQ_CLASSES];
    size_t count;
    unsigned signs;
    uint32_t most; /* at least as large as the largest; the largest itself if that is plain */
} tally_t;

/* Codes, folded, to their classes, and the bits of all together. */
static uint32_t find_classes(const int32_t *codes, size_t count, unsigned signs, unsigned char *classes)
{
    uint32_t all = 0;
    if (signs == IQ_SIGNS_BOTH) {
        for (size_t i = 0; i < count; i++) {
            uint32_t folded = iq_fold(codes[i]);
            classes[i] = (unsigned char)folded;
            all |= folded;
        }
    } else {
        for (size_t i = 0; i < count; i++) {
            uint32_t magnitude = (uint32_t)abs(codes[i]);
            classes[i] = (unsigned char)magnitude;
            all |= magnitude;
        }
    }
    for (size_t i = 0; i < count && all >= IQ_PLAIN; i++)
        classes[i] = (unsigned char)iq_class_of(iq_fold_signs(codes[i], signs));
    return all;
}

/* Side by side in four tables: one number often follows itself, and a counter is slow to be read just after it was written. */
static void count_bytes(const unsigned char *bytes, size_t count, uint32_t counts[IQ_CLASSES])
{
    uint32_t lanes[4][256] = {{0}};
    size_t i = 0;
    for (; i + 4 <= count; i += 4)
        for (size_t lane = 0; lane < 4; lane++)
            lanes[lane][bytes[i + lane]]++;
    for (; i < count; i++)
        lanes[0][bytes[i]]++;
    for (size_t class = 0; class < IQ_CLASSES; class ++)
        counts[class] = lanes[0][class] + lanes[1][class] + lanes[2][class] + lanes[3][class];
}

static void count_classes(const int32_t *codes, size_t count, tally_t *tally, unsigned char *classes)
{
    bool plus = false, minus = false;
    tally->count = count;
    for (size_t i = 0; i < count && !(plus && minus); i++) {
        plus |= codes[i] > 0;
        minus |= codes[i] < 0;
    }
    tally->signs = !minus ? IQ_SIGNS_PLUS : !plus ? IQ_SIGNS_MINUS : IQ_SIGNS_BOTH;
    tally->most = find_classes(codes, count, tally->signs, classes);
    count_bytes(classes, count, tally->counts);
}

static double entropy_of(double n, double count) { return n > 0.0 ? -n * iq_log2(n / count) : 0.0; }

/* What the coder's own description takes, and how far its code words are from ideal. */
#define CODER_BYTES 8.0
#define BYTES_OF_A_WORD 0.32
#define LOSS_OF_A_WORD 0.035

/* `words` words of `bits` bits each, of which there are `kinds`, the likeliest with probability `likely`. */
static double coder_bytes(double words, double bits, double kinds, double likely)
{
    if (likely >= 1.0)
        return CODER_BYTES;
    if (likely > 0.5) /* a code word has at least one bit */
        bits += 1.0 + likely * iq_log2(likely) + (1.0 - likely) * iq_log2(1.0 - likely);
    if (kinds > words / 6)
        kinds = words / 6;
    return words * (bits + LOSS_OF_A_WORD) / 8 + CODER_BYTES + BYTES_OF_A_WORD * kinds;
}

static double expected_classes(const tally_t *tally)
{
    double n = (double)tally->count, entropy = 0.0, extras = 0.0, kinds = 0.0;
    for (uint32_t class = 0; class < IQ_CLASSES; class ++) {
        double there = (double)tally->counts[class];
        entropy += entropy_of(there, n);
        extras += there * iq_class_bits(class);
        kinds += there > 0.0;
    }
    return coder_bytes(n, entropy / n, kinds, (double)tally->counts[0] / n) + extras / 8;
}

static double expected_small(const tally_t *tally, const iq_alphabet_t *alphabet)
{
    uint32_t last = alphabet->letters - 1;
    double n = (double)tally->count, rest = n, entropy = 0.0, kinds = 0.0, likely = 1.0, words = 1.0;
    if (!alphabet->escapes && tally->most > last)
        return 1e300;
    for (uint32_t letter = 0; letter < last; letter++) {
        double there = (double)tally->counts[letter];
        rest -= there;
        entropy += entropy_of(there, n);
        kinds += there > 0.0;
    }
    entropy += entropy_of(rest, n);
    kinds += rest > 0.0;
    for (uint32_t digit = 0; digit < alphabet->digits; digit++) {
        likely *= (double)tally->counts[0] / n;
        words *= kinds;
    }
    double escapes = rest;
    for (uint32_t class = IQ_PLAIN; class < IQ_CLASSES && rest > 0.0; class ++) /* 7 bits a byte */
        escapes += (double)tally->counts[class] * ((iq_class_bits(class) + IQ_SPLIT_BITS) / 7);
    return coder_bytes(n / alphabet->digits, entropy / n * alphabet->digits, words, likely) + (alphabet->escapes ? escapes : 0.0);
}

/* The best among all but IQ_SHAPE_SPARSE. */
static unsigned best_dense(const tally_t *tally, double *least)
{
    unsigned best = IQ_SHAPE_CLASSES;
    *least = expected_classes(tally);
    for (unsigned i = 0; i < IQ_ARRAY_SIZE(iq_alphabets); i++) {
        double bytes = expected_small(tally, &iq_alphabets[i]);
        if (bytes < *least) {
            *least = bytes;
            best = IQ_SHAPE_SMALL + i;
        }
    }
    return best;
}

/* Integers that are not 0, the positive ones less 1: 1 2 3 4 ... become 1 0 3 2 ... */
static double expected_sparse(const tally_t *tally)
{
    tally_t others = {.count = tally->count - tally->counts[0], .most = tally->most};
    double n = (double)tally->count, zeros = (double)tally->counts[0], bytes;
    if (zeros < n / 2 || others.count == 0)
        return 1e300;
    for (uint32_t class = 1; class < IQ_CLASSES; class ++) {
        uint32_t less = tally->signs == IQ_SIGNS_BOTH ? (class % 2 == 1 ? 0 : 2) : tally->signs == IQ_SIGNS_PLUS;
        others.counts[class < IQ_PLAIN ? class - less : class] += tally->counts[class];
    }
    (void)best_dense(&others, &bytes);
    double bits = (entropy_of(zeros, n) + entropy_of(n - zeros, n)) / n, likely = zeros / n;
    likely *= likely;
    likely *= likely;
    return coder_bytes(n / 8, 8 * bits, 256.0, likely * likely) + IQ_CODED_BLOCK_HEADER + bytes;
}

/* ---- writing ---- */

static void put_u16(unsigned char *to, size_t value)
{
    to[0] = (unsigned char)value;
    to[1] = (unsigned char)(value >> 8);
}

static void put_header(unsigned char *block, unsigned shape, unsigned width, size_t extras, size_t coded)
{
    block[0] = (unsigned char)shape;
    block[1] = (unsigned char)width;
    put_u16(block + 2, extras);
    put_u16(block + 4, coded);
}

static size_t write_packed(const int32_t *codes, size_t count, unsigned width, unsigned char *block)
{
    uint32_t folded[256];
    for (size_t i = 0; i < count; i += IQ_ARRAY_SIZE(folded)) {
        size_t n = iq_min(count - i, IQ_ARRAY_SIZE(folded));
        for (size_t j = 0; j < n; j++)
            folded[j] = iq_fold(codes[i + j]);
        iq_kernels()->pack32(folded, n, width, block + IQ_CODED_BLOCK_HEADER + i / 8 * width);
    }
    put_header(block, IQ_SHAPE_PACKED, width, 0, 0);
    return IQ_CODED_BLOCK_HEADER + iq_packed_bytes(count, width);
}

/* The open bits of all integers to `extras`. Returns the bytes of these, or SIZE_MAX if they are `room` or more. */
static size_t write_classes(const int32_t *codes, const unsigned char *classes, size_t count, unsigned signs,
                            unsigned char *extras, size_t room)
{
    uint64_t waiting = 0;
    unsigned bits = 0;
    size_t used = 0;
    for (size_t i = 0; i < count; i++) {
        if (classes[i] < IQ_PLAIN)
            continue;
        waiting |= (uint64_t)(iq_fold_signs(codes[i], signs) - iq_class_first(classes[i])) << bits;
        bits += iq_class_bits(classes[i]);
        if (bits >= 32) {
            if (room - used < 4)
                return SIZE_MAX;
            *(iq_u32_any_t *)(extras + used) = (uint32_t)waiting;
            used += 4;
            bits -= 32;
            waiting >>= 32;
        }
    }
    for (unsigned left = 0; left < bits; left += 8, waiting >>= 8) {
        if (used == room)
            return SIZE_MAX;
        extras[used++] = (unsigned char)waiting;
    }
    return used < room ? used : SIZE_MAX;
}

/* What is beyond the alphabet. */
static size_t write_escapes(const iq_alphabet_t *alphabet, const int32_t *codes, const unsigned char *classes, size_t count,
                            unsigned signs, unsigned char *extras, size_t room)
{
    uint32_t last = alphabet->letters - 1;
    size_t used = 0;
    for (size_t i = 0; i < count && alphabet->escapes; i++) {
        if (classes[i] < last)
            continue;
        uint32_t beyond = iq_fold_signs(codes[i], signs) - last;
        if (room - used < 6)
            return SIZE_MAX;
        for (; beyond >= 128; beyond >>= 7)
            extras[used++] = (unsigned char)(beyond | 128);
        extras[used++] = (unsigned char)beyond;
    }
    return used;
}

/* Letters to bytes; returns how many. */
static size_t write_words(const iq_alphabet_t *alphabet, const unsigned char *classes, size_t count, unsigned char *words)
{
    uint32_t letters = alphabet->letters, last = letters - 1, digits = alphabet->digits;
    size_t nwords = iq_ceil_div(count, digits);
    for (size_t n = 0; n < nwords; n++) { /* the last word may have fewer */
        uint32_t word = 0;
        for (size_t i = iq_min(n * digits + digits, count); i-- > n * digits;)
            word = word * letters + (classes[i] < last ? classes[i] : last);
        words[n] = (unsigned char)word;
    }
    return nwords;
}

/* 0 if it would be `room` bytes or more. */
static size_t write_coded(const int32_t *codes, const unsigned char *classes, size_t count, unsigned signs, unsigned shape,
                          unsigned char *block, size_t room)
{
    unsigned char words[IQ_CODED_BLOCK], *extras = block + IQ_CODED_BLOCK_HEADER;
    const iq_alphabet_t *alphabet = shape == IQ_SHAPE_CLASSES ? NULL : &iq_alphabets[shape - IQ_SHAPE_SMALL];
    size_t left = iq_min(room - IQ_CODED_BLOCK_HEADER, 0xffff), used;
    used = alphabet == NULL ? write_classes(codes, classes, count, signs, extras, left)
                            : write_escapes(alphabet, codes, classes, count, signs, extras, left);
    if (used == SIZE_MAX)
        return 0;
    size_t nwords = alphabet == NULL ? count : write_words(alphabet, classes, count, words);
    size_t coded = iq_coder_encode(alphabet == NULL ? classes : words, nwords, extras + used, left - used);
    put_header(block, shape, signs, used, coded);
    return coded == 0 ? 0 : IQ_CODED_BLOCK_HEADER + used + coded;
}

static size_t write_block(const int32_t *codes, size_t count, bool may_be_sparse, unsigned char *block);

/* 0: no shorter than packed. */
static size_t write_sparse(const int32_t *codes, size_t count, unsigned char *block, size_t room)
{
    unsigned char flags[IQ_CODED_BLOCK / 8] = {0}, others_block[IQ_CODED_BLOCK_HEADER + IQ_CODED_BLOCK / 2 * sizeof(uint32_t)];
    int32_t others[IQ_CODED_BLOCK / 2];
    size_t there = 0, limit = iq_min(room - IQ_CODED_BLOCK_HEADER, 0xffff);
    for (size_t i = 0; i < count; i++) {
        if (codes[i] == 0)
            continue;
        flags[i / 8] |= (unsigned char)(1u << i % 8);
        others[there++] = codes[i] - (codes[i] > 0);
    }
    size_t nflags = iq_coder_encode(flags, iq_ceil_div(count, 8), block + IQ_CODED_BLOCK_HEADER, limit);
    if (nflags == 0)
        return 0;
    size_t bytes = write_block(others, there, false, others_block), fixed = IQ_CODED_BLOCK_HEADER + nflags;
    if (fixed + bytes >= room)
        return 0;
    memcpy(block + fixed, others_block, bytes);
    put_header(block, IQ_SHAPE_SPARSE, 0, nflags, bytes);
    return fixed + bytes;
}

static size_t write_block(const int32_t *codes, size_t count, bool may_be_sparse, unsigned char *block)
{
    unsigned char classes[IQ_CODED_BLOCK];
    tally_t tally;
    double expected;
    count_classes(codes, count, &tally, classes);
    unsigned width = iq_bit_width(tally.most) + (tally.signs != IQ_SIGNS_BOTH);
    if (tally.most == 0) {
        put_header(block, IQ_SHAPE_ZERO, 0, 0, 0);
        return IQ_CODED_BLOCK_HEADER;
    }
    while (tally.most < IQ_PLAIN && tally.counts[tally.most] == 0) /* from the bits that occur to the largest number */
        tally.most--;
    size_t packed = IQ_CODED_BLOCK_HEADER + iq_packed_bytes(count, width);
    unsigned shape = best_dense(&tally, &expected);
    size_t written = may_be_sparse && expected_sparse(&tally) < expected ? write_sparse(codes, count, block, packed) : 0;
    if (written == 0)
        written = write_coded(codes, classes, count, tally.signs, shape, block, packed);
    return written > 0 ? written : write_packed(codes, count, width, block);
}

size_t iq_coded_write(const int32_t *codes, size_t count, unsigned char *block) { return write_block(codes, count, true, block); }
