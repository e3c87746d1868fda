/* SPDX-License-Identifier: Apache-2.0 */
/* Integers to bytes and back: see coded_message.h. The shape is chosen by the size that a histogram of the symbols lets
 * expect. */
#include "codec/coded_message.h"

#include "base/status.h"
#include "base/util.h"
#include "codec/coded_math.h"
#include "codec/coder.h"
#include "kernels/kernels.h"

#include <stdbool.h>
#include <stdlib.h>

enum {
    SHAPE_ZERO,   /* all integers are 0: nothing follows */
    SHAPE_PACKED, /* so many bits each: no extras, no coder */
    SHAPE_CLASSES,
    SHAPE_SPARSE, /* the extras say which integers are not 0, the block of these follows: positive ones less 1 */
    SHAPE_SMALL   /* from here on: rows of `alphabets` */
};

/* How many letters, and how many of them make a byte. Without escape: only where nothing is beyond the alphabet. */
typedef struct alphabet {
    uint32_t letters, digits;
    bool escapes;
} alphabet_t;

static const alphabet_t alphabets[] = {{16, 2, true}, {12, 2, true}, {6, 3, true}, {5, 3, false}, {4, 4, true}, {3, 5, false}};

static uint32_t fold(int32_t code) { return ((uint32_t)code << 1) ^ (uint32_t)(code >> 31); }
static int32_t unfold(uint32_t folded) { return (int32_t)(folded >> 1) ^ -(int32_t)(folded & 1); }

/* With one sign alone, magnitudes do. */
enum { SIGNS_BOTH, SIGNS_PLUS, SIGNS_MINUS };
static uint32_t fold_signs(int32_t code, unsigned signs) { return signs == SIGNS_BOTH ? fold(code) : (uint32_t)abs(code); }
static int32_t unfold_signs(uint32_t folded, unsigned signs)
{
    return signs == SIGNS_BOTH ? unfold(folded) : signs == SIGNS_PLUS ? (int32_t)folded : (int32_t)(0 - folded);
}

/* ---- classes ---- */

enum { PLAIN = 32, PLAIN_BITS = 5, SPLIT_BITS = 3, CLASSES = PLAIN + (32 - PLAIN_BITS) * (1 << SPLIT_BITS) };

static uint32_t class_of(uint32_t folded)
{
    if (folded < PLAIN)
        return folded;
    unsigned exponent = 31u - (unsigned)__builtin_clz(folded);
    return PLAIN + ((exponent - PLAIN_BITS) << SPLIT_BITS) + ((folded >> (exponent - SPLIT_BITS)) & ((1u << SPLIT_BITS) - 1));
}

/* Bits that a class leaves open. */
static unsigned class_bits(uint32_t class)
{
    return class < PLAIN ? 0 : ((class - PLAIN) >> SPLIT_BITS) + PLAIN_BITS - SPLIT_BITS;
}

static uint32_t class_first(uint32_t class)
{
    if (class < PLAIN)
        return class;
    return (((class - PLAIN) & ((1u << SPLIT_BITS) - 1)) | 1u << SPLIT_BITS) << class_bits(class);
}

/* ---- choosing ---- */

typedef struct tally {
    uint32_t counts[CLASSES];
    size_t count;
    unsigned signs;
    uint32_t most; /* at least as large as the largest; the largest itself if that is plain */
} tally_t;

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
    for (uint32_t class = 0; class < CLASSES; class ++) {
        double there = (double)tally->counts[class];
        entropy += entropy_of(there, n);
        extras += there * class_bits(class);
        kinds += there > 0.0;
    }
    return coder_bytes(n, entropy / n, kinds, (double)tally->counts[0] / n) + extras / 8;
}

static double expected_small(const tally_t *tally, const alphabet_t *alphabet)
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
    for (uint32_t class = PLAIN; class < CLASSES && rest > 0.0; class ++) /* 7 bits a byte */
        escapes += (double)tally->counts[class] * ((class_bits(class) + SPLIT_BITS) / 7);
    return coder_bytes(n / alphabet->digits, entropy / n * alphabet->digits, words, likely) + (alphabet->escapes ? escapes : 0.0);
}

/* The best among all but SHAPE_SPARSE. */
static unsigned best_dense(const tally_t *tally, double *least)
{
    unsigned best = SHAPE_CLASSES;
    *least = expected_classes(tally);
    for (unsigned i = 0; i < IQ_ARRAY_SIZE(alphabets); i++) {
        double bytes = expected_small(tally, &alphabets[i]);
        if (bytes < *least) {
            *least = bytes;
            best = SHAPE_SMALL + i;
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
    for (uint32_t class = 1; class < CLASSES; class ++) {
        uint32_t less = tally->signs == SIGNS_BOTH ? (class % 2 == 1 ? 0 : 2) : tally->signs == SIGNS_PLUS;
        others.counts[class < PLAIN ? class - less : class] += tally->counts[class];
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

static size_t get_u16(const unsigned char *from) { return (size_t)from[0] | (size_t)from[1] << 8; }

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
            folded[j] = fold(codes[i + j]);
        iq_kernels()->pack32(folded, n, width, block + IQ_CODED_BLOCK_HEADER + i / 8 * width);
    }
    put_header(block, SHAPE_PACKED, width, 0, 0);
    return IQ_CODED_BLOCK_HEADER + iq_packed_bytes(count, width);
}

/* Symbols of all integers, and their open bits to `extras`. Returns the bytes of these, or SIZE_MAX if they are `room` or
 * more. */
static size_t write_classes(const int32_t *codes, size_t count, unsigned signs, unsigned char *symbols, unsigned char *extras,
                            size_t room)
{
    uint64_t waiting = 0;
    unsigned bits = 0;
    size_t used = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t folded = fold_signs(codes[i], signs), class = class_of(folded);
        symbols[i] = (unsigned char)class;
        waiting |= (uint64_t)(folded - class_first(class)) << bits;
        bits += class_bits(class);
        for (; bits >= 8; bits -= 8, waiting >>= 8) {
            if (used == room)
                return SIZE_MAX;
            extras[used++] = (unsigned char)waiting;
        }
    }
    if (bits > 0 && used < room)
        extras[used++] = (unsigned char)waiting;
    return used < room ? used : SIZE_MAX;
}

/* The same for a small alphabet; *nsymbols bytes. */
static size_t write_small(const alphabet_t *alphabet, const int32_t *codes, size_t count, unsigned signs, unsigned char *symbols,
                          size_t *nsymbols, unsigned char *extras, size_t room)
{
    uint32_t last = alphabet->escapes ? alphabet->letters - 1 : UINT32_MAX;
    size_t used = 0, n = 0;
    for (size_t i = 0; i < count; n++) {
        uint32_t word = 0, weight = 1;
        for (uint32_t digit = 0; digit < alphabet->digits && i < count; digit++, i++) {
            uint32_t letter = fold_signs(codes[i], signs);
            if (letter >= last) {
                uint32_t beyond = letter - last;
                if (room - used < 6)
                    return SIZE_MAX;
                for (; beyond >= 128; beyond >>= 7)
                    extras[used++] = (unsigned char)(beyond | 128);
                extras[used++] = (unsigned char)beyond;
                letter = last;
            }
            word += letter * weight;
            weight *= alphabet->letters;
        }
        symbols[n] = (unsigned char)word;
    }
    *nsymbols = n;
    return used;
}

/* 0 if it would be `room` bytes or more. */
static size_t write_coded(const int32_t *codes, size_t count, unsigned signs, unsigned shape, unsigned char *block, size_t room)
{
    unsigned char symbols[IQ_CODED_BLOCK], *extras = block + IQ_CODED_BLOCK_HEADER;
    size_t left = iq_min(room - IQ_CODED_BLOCK_HEADER, 0xffff), nsymbols = count, used;
    if (shape == SHAPE_CLASSES)
        used = write_classes(codes, count, signs, symbols, extras, left);
    else
        used = write_small(&alphabets[shape - SHAPE_SMALL], codes, count, signs, symbols, &nsymbols, extras, left);
    if (used == SIZE_MAX)
        return 0;
    size_t coded = iq_coder_encode(symbols, nsymbols, extras + used, left - used);
    put_header(block, shape, signs, used, coded);
    return coded == 0 ? 0 : IQ_CODED_BLOCK_HEADER + used + coded;
}

static void count_classes(const int32_t *codes, size_t count, tally_t *tally)
{
    int32_t any = 0, all = -1;
    memset(tally, 0, sizeof(*tally));
    tally->count = count;
    for (size_t i = 0; i < count; i++) {
        any |= codes[i];
        all &= codes[i] - (codes[i] <= 0); /* negative, and zero too */
    }
    tally->signs = any >= 0 ? SIGNS_PLUS : all < 0 ? SIGNS_MINUS : SIGNS_BOTH;
    for (size_t i = 0; i < count; i++) {
        uint32_t folded = fold_signs(codes[i], tally->signs);
        tally->most |= folded;
        tally->counts[class_of(folded)]++;
    }
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
    put_header(block, SHAPE_SPARSE, 0, nflags, bytes);
    return fixed + bytes;
}

static size_t write_block(const int32_t *codes, size_t count, bool may_be_sparse, unsigned char *block)
{
    tally_t tally;
    double expected;
    count_classes(codes, count, &tally);
    unsigned width = iq_bit_width(tally.most) + (tally.signs != SIGNS_BOTH);
    if (tally.most == 0) {
        put_header(block, SHAPE_ZERO, 0, 0, 0);
        return IQ_CODED_BLOCK_HEADER;
    }
    while (tally.most < PLAIN && tally.counts[tally.most] == 0) /* from the bits that occur to the largest number */
        tally.most--;
    size_t packed = IQ_CODED_BLOCK_HEADER + iq_packed_bytes(count, width);
    unsigned shape = best_dense(&tally, &expected);
    size_t written = may_be_sparse && expected_sparse(&tally) < expected ? write_sparse(codes, count, block, packed) : 0;
    if (written == 0)
        written = write_coded(codes, count, tally.signs, shape, block, packed);
    return written > 0 ? written : write_packed(codes, count, width, block);
}

size_t iq_coded_write(const int32_t *codes, size_t count, unsigned char *block) { return write_block(codes, count, true, block); }

/* ---- reading ---- */

static isgq_result_t read_packed(const unsigned char *packed, size_t count, unsigned width, int32_t *codes)
{
    uint32_t folded[256];
    for (size_t i = 0; i < count; i += IQ_ARRAY_SIZE(folded)) {
        size_t n = iq_min(count - i, IQ_ARRAY_SIZE(folded));
        iq_kernels()->unpack32(packed + i / 8 * width, n, width, folded);
        for (size_t j = 0; j < n; j++)
            codes[i + j] = unfold(folded[j]);
    }
    if (!iq_packed_is_clean(packed, count, width))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: bits set after the last of %zu integers", count);
    return ISGQ_SUCCESS;
}

static isgq_result_t read_classes(const unsigned char *symbols, size_t count, unsigned signs, const unsigned char *extras,
                                  size_t bytes, int32_t *codes)
{
    uint64_t waiting = 0;
    unsigned there = 0;
    size_t used = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t class = symbols[i];
        if (class >= CLASSES)
            return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: class %u of %d", class, CLASSES);
        unsigned bits = class_bits(class);
        for (; there < bits && used < bytes; there += 8)
            waiting |= (uint64_t)extras[used++] << there;
        if (there < bits)
            return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: %zu bytes of extras end at integer %zu of %zu", bytes, i, count);
        codes[i] = unfold_signs(class_first(class) + ((uint32_t)waiting & ((1u << bits) - 1)), signs);
        waiting >>= bits;
        there -= bits;
    }
    if (used != bytes || waiting != 0)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: %zu bytes of extras where %zu are used", bytes, used);
    return ISGQ_SUCCESS;
}

/* One escape at extras[*used]. */
static isgq_result_t read_escape(const unsigned char *extras, size_t bytes, size_t *used, uint32_t *beyond)
{
    uint64_t value = 0;
    unsigned shift = 0;
    bool more = true;
    for (; more; shift += 7) {
        if (*used == bytes || shift > 28)
            return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: an escape of more than %u bits, or cut off, at byte %zu of %zu", shift,
                           *used, bytes);
        value |= (uint64_t)(extras[*used] & 127) << shift;
        more = (extras[(*used)++] & 128) != 0;
    }
    if (value > UINT32_MAX / 2)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: an escape beyond 31 bits");
    *beyond = (uint32_t)value;
    return ISGQ_SUCCESS;
}

static isgq_result_t read_small(const alphabet_t *alphabet, const unsigned char *symbols, size_t count, unsigned signs,
                                const unsigned char *extras, size_t bytes, int32_t *codes)
{
    uint32_t last = alphabet->escapes ? alphabet->letters - 1 : UINT32_MAX, beyond = 0;
    size_t used = 0, n = 0;
    for (size_t i = 0; i < count; n++) {
        uint32_t word = symbols[n];
        for (uint32_t digit = 0; digit < alphabet->digits && i < count; digit++, i++) {
            uint32_t letter = word % alphabet->letters;
            word /= alphabet->letters;
            if (letter == last) {
                IQ_TRY(read_escape(extras, bytes, &used, &beyond));
                letter += beyond;
            }
            codes[i] = unfold_signs(letter, signs);
        }
        if (word != 0)
            return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: byte %u of %u symbols of %u", symbols[n], alphabet->digits,
                           alphabet->letters);
    }
    if (used != bytes)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: %zu bytes of extras where %zu are used", bytes, used);
    return ISGQ_SUCCESS;
}

static isgq_result_t read_coded(const unsigned char *block, size_t count, int32_t *codes)
{
    unsigned char symbols[IQ_CODED_BLOCK];
    size_t nextras = get_u16(block + 2), coded = get_u16(block + 4);
    const unsigned char *extras = block + IQ_CODED_BLOCK_HEADER;
    const alphabet_t *alphabet = block[0] == SHAPE_CLASSES ? NULL : &alphabets[block[0] - SHAPE_SMALL];
    IQ_TRY(iq_coder_decode(extras + nextras, coded, symbols, alphabet == NULL ? count : iq_ceil_div(count, alphabet->digits)));
    return alphabet == NULL ? read_classes(symbols, count, block[1], extras, nextras, codes)
                            : read_small(alphabet, symbols, count, block[1], extras, nextras, codes);
}

static isgq_result_t read_sparse(const unsigned char *block, size_t count, int32_t *codes)
{
    unsigned char flags[IQ_CODED_BLOCK / 8];
    size_t nflags = get_u16(block + 2), bytes = get_u16(block + 4), there = 0, used = 0;
    const unsigned char *others = block + IQ_CODED_BLOCK_HEADER + nflags;
    IQ_TRY(iq_coder_decode(block + IQ_CODED_BLOCK_HEADER, nflags, flags, iq_ceil_div(count, 8)));
    for (size_t i = 0; i < count; i++)
        there += flags[i / 8] >> i % 8 & 1;
    if (there == 0 || bytes < IQ_CODED_BLOCK_HEADER || others[0] == SHAPE_SPARSE)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: %zu of %zu integers in a block of %zu bytes", there, count, bytes);
    IQ_TRY(iq_coded_read(others, bytes, there, codes, &used));
    if (used != bytes)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: %zu bytes of a block where %zu are used", bytes, used);
    for (size_t i = count; i-- > 0;) { /* from the end, so that none is overwritten before it has moved */
        bool other = (flags[i / 8] >> i % 8 & 1) != 0;
        int32_t code = other ? codes[--there] : 0;
        codes[i] = code + (other && code >= 0);
    }
    return ISGQ_SUCCESS;
}

static isgq_result_t read_shape(const unsigned char *block, size_t count, int32_t *codes)
{
    switch (block[0]) {
    case SHAPE_PACKED: return read_packed(block + IQ_CODED_BLOCK_HEADER, count, block[1], codes);
    case SHAPE_SPARSE: return read_sparse(block, count, codes);
    default: return read_coded(block, count, codes);
    }
}

static isgq_result_t check_codes(const int32_t *codes, size_t count)
{
    uint32_t largest = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t magnitude = fold(codes[i]) >> 1;
        largest = magnitude > largest ? magnitude : largest;
    }
    return largest < IQ_CODED_LARGEST ? ISGQ_SUCCESS
                                      : IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: an integer of magnitude %u", largest);
}

isgq_result_t iq_coded_read(const unsigned char *block, size_t room, size_t count, int32_t *codes, size_t *used)
{
    if (room < IQ_CODED_BLOCK_HEADER)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: a block of %zu bytes", room);
    unsigned shape = block[0], width = block[1];
    size_t after = get_u16(block + 2) + get_u16(block + 4);
    *used = IQ_CODED_BLOCK_HEADER + (shape == SHAPE_PACKED ? iq_packed_bytes(count, width) : after);
    bool sized = shape == SHAPE_PACKED   ? width >= 1 && width <= 32 && after == 0
                 : shape == SHAPE_ZERO   ? width == 0 && after == 0
                 : shape == SHAPE_SPARSE ? width == 0
                                         : width <= SIGNS_MINUS;
    if (shape >= SHAPE_SMALL + IQ_ARRAY_SIZE(alphabets) || !sized || *used > room)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: a block of shape %u, width %u and %zu bytes where %zu are left", shape,
                       width, *used, room);
    if (shape == SHAPE_ZERO) {
        memset(codes, 0, count * sizeof(*codes));
        return ISGQ_SUCCESS;
    }
    IQ_TRY(read_shape(block, count, codes));
    return check_codes(codes, count);
}
