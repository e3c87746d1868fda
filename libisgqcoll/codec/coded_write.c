/* SPDX-License-Identifier: Apache-2.0 */
/* Integers to bytes: see coded_message.h. The shape is chosen by the size that a histogram of the symbols lets
 * expect. */
#include "codec/coded_message.h"

#include "base/status.h"
#include "base/util.h"
#include "codec/coded_math.h"
#include "codec/coded_shapes.h"
#include "codec/coder.h"
#include "codec/letter_coder.h"
#include "kernels/kernels.h"

#include <stdlib.h>
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

/* ---- letters ---- */

/* Integers as letters, before what is beyond the last one is cut off, and how many there are. */
typedef struct spelling {
    uint8_t letters[IQ_CODED_BLOCK], tables[IQ_CODED_BLOCK];
    uint32_t many[IQ_LETTER_TABLES][IQ_LETTERS_MOST]; /* the last: all beyond */
    unsigned nletters;
} spelling_t;

static uint32_t fold_in(int32_t code, uint8_t context) { return iq_fold(iq_is_mirrored(context) ? -code : code); }

static void spell(const int32_t *codes, const uint8_t *contexts, size_t count, spelling_t *spelling)
{
    uint8_t both[IQ_CODED_BLOCK]; /* a table and a letter of it */
    uint32_t counts[IQ_CLASSES];
    for (size_t i = 0; i < count; i++) {
        uint32_t folded = contexts == NULL ? iq_fold(codes[i]) : fold_in(codes[i], contexts[i]);
        spelling->letters[i] = (uint8_t)(folded < IQ_LETTERS_MOST ? folded : IQ_LETTERS_MOST - 1);
    }
    for (size_t i = 0; i < count && contexts != NULL; i++) {
        spelling->tables[i] = iq_table_of(contexts[i]);
        both[i] = (uint8_t)(spelling->tables[i] * IQ_LETTERS_MOST + spelling->letters[i]);
    }
    count_bytes(contexts == NULL ? spelling->letters : both, count, counts);
    memcpy(spelling->many, counts, sizeof(spelling->many));
}

/* What is beyond the last letter takes about so many bytes. */
#define BYTES_OF_ESCAPE 0.7

/* The best number of letters; returns the bytes to be expected. */
static double choose_letters(uint32_t many[IQ_LETTER_TABLES][IQ_LETTERS_MOST], size_t count, unsigned *nletters)
{
    double bits = 0.0, best = 1e300, escapes = (double)count, rest[IQ_LETTER_TABLES], all[IQ_LETTER_TABLES];
    unsigned tables = 0;
    for (unsigned t = 0; t < IQ_LETTER_TABLES; t++) {
        all[t] = 0.0;
        for (unsigned i = 0; i < IQ_LETTERS_MOST; i++)
            all[t] += (double)many[t][i];
        rest[t] = all[t];
        tables += all[t] > 0.0;
    }
    for (unsigned last = 1; last < IQ_LETTERS_MOST && escapes > 0.0; last++) {
        double open = 0.0;
        escapes = 0.0;
        for (unsigned t = 0; t < IQ_LETTER_TABLES; t++) {
            double there = (double)many[t][last - 1];
            rest[t] -= there;
            bits += entropy_of(there, all[t]);
            open += entropy_of(rest[t], all[t]);
            escapes += rest[t];
        }
        double bytes = (bits + open + iq_letters_overhead(tables, last + 1, count)) / 8 + BYTES_OF_ESCAPE * escapes;
        if (bytes < best) {
            best = bytes;
            *nletters = last + 1;
        }
    }
    return best;
}

/* The bytes that letters take without contexts: those tell little of codes of several bits, and tables cost short messages most. */
static double expected_plainly(const tally_t *tally)
{
    uint32_t many[IQ_LETTER_TABLES][IQ_LETTERS_MOST] = {{0}};
    unsigned nletters;
    for (unsigned class = 0; class < IQ_CLASSES; class ++) /* plain ones are what is folded */
        many[0][iq_min(class, IQ_LETTERS_MOST - 1)] += tally->counts[class];
    return choose_letters(many, tally->count, &nletters);
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

/* 0 if it would be `room` bytes or more. */
static size_t write_coded(const int32_t *codes, const unsigned char *classes, size_t count, unsigned signs, unsigned char *block,
                          size_t room)
{
    unsigned char *extras = block + IQ_CODED_BLOCK_HEADER;
    size_t left = iq_min(room - IQ_CODED_BLOCK_HEADER, 0xffff), used = write_classes(codes, classes, count, signs, extras, left);
    if (used == SIZE_MAX)
        return 0;
    size_t coded = iq_coder_encode(classes, count, extras + used, left - used);
    put_header(block, IQ_SHAPE_CLASSES, signs, used, coded);
    return coded == 0 ? 0 : IQ_CODED_BLOCK_HEADER + used + coded;
}

/* Without letters. */
static size_t write_wide(const int32_t *codes, const unsigned char *classes, const tally_t *tally, unsigned char *block)
{
    unsigned width = iq_bit_width(tally->most) + (tally->signs != IQ_SIGNS_BOTH);
    size_t written = write_coded(codes, classes, tally->count, tally->signs, block,
                                 IQ_CODED_BLOCK_HEADER + iq_packed_bytes(tally->count, width));
    return written > 0 ? written : write_packed(codes, tally->count, width, block);
}

/* What is beyond the last letter, as a block without letters; SIZE_MAX if there is no room for it. */
static size_t write_escapes(const int32_t *codes, const uint8_t *contexts, const spelling_t *spelling, size_t count,
                            unsigned char *extras, size_t room)
{
    unsigned char classes[IQ_CODED_BLOCK];
    int32_t beyond[IQ_CODED_BLOCK];
    tally_t tally;
    size_t n = 0;
    uint32_t last = spelling->nletters - 1;
    for (const uint8_t *at = spelling->letters, *end = at + count; (at = memchr(at, (int)last, (size_t)(end - at))) != NULL; at++) {
        size_t i = (size_t)(at - spelling->letters);
        beyond[n++] = (int32_t)(fold_in(codes[i], contexts == NULL ? 0 : contexts[i]) - last);
    }
    if (n == 0)
        return 0;
    if (iq_coded_block_bytes(n) > room)
        return SIZE_MAX;
    count_classes(beyond, n, &tally, classes);
    return write_wide(beyond, classes, &tally, extras);
}

/* 0 if it would be `room` bytes or more. */
static size_t write_letters(const int32_t *codes, const uint8_t *contexts, spelling_t *spelling, size_t count,
                            unsigned char *block, size_t room)
{
    uint32_t last = spelling->nletters - 1;
    unsigned char *extras = block + IQ_CODED_BLOCK_HEADER;
    size_t left = iq_min(room - IQ_CODED_BLOCK_HEADER, 0xffff);
    iq_letter_counts_t counts = {{{0}}};
    for (size_t i = 0; i < count; i++)
        spelling->letters[i] = spelling->letters[i] < last ? spelling->letters[i] : (uint8_t)last;
    size_t used = write_escapes(codes, contexts, spelling, count, extras, left);
    if (used == SIZE_MAX)
        return 0;
    for (unsigned t = 0; t < IQ_LETTER_TABLES; t++)
        for (unsigned i = 0; i < IQ_LETTERS_MOST; i++)
            counts.of[t][iq_min(i, last)] += spelling->many[t][i];
    size_t coded =
        iq_letters_write(spelling->letters, contexts == NULL ? NULL : spelling->tables, count, spelling->nletters, &counts, extras + used, left - used);
    put_header(block, IQ_SHAPE_LETTERS, (spelling->nletters - 1) | (contexts != NULL ? IQ_LETTERS_KNOWN : 0), used, coded);
    return coded == 0 ? 0 : IQ_CODED_BLOCK_HEADER + used + coded;
}

/* Above so many bits an integer letters and contexts are not worth trying. */
#define LETTERS_BITS 4.0

size_t iq_coded_write(const int32_t *codes, const uint8_t *contexts, size_t count, unsigned char *block)
{
    unsigned char classes[IQ_CODED_BLOCK];
    spelling_t spelling;
    tally_t tally;
    count_classes(codes, count, &tally, classes);
    unsigned width = iq_bit_width(tally.most) + (tally.signs != IQ_SIGNS_BOTH);
    if (tally.most == 0) {
        put_header(block, IQ_SHAPE_ZERO, 0, 0, 0);
        return IQ_CODED_BLOCK_HEADER;
    }
    size_t packed = IQ_CODED_BLOCK_HEADER + iq_packed_bytes(count, width), written = 0;
    double expected = expected_classes(&tally);
    if (tally.signs != IQ_SIGNS_BOTH) /* contexts take it that what is upwards is as likely as its mirror image */
        contexts = NULL;
    if (expected * 8 < LETTERS_BITS * (double)count &&
        tally.most < IQ_CODED_LARGEST / 2) { /* so that what is beyond can be written */
        spell(codes, contexts, count, &spelling);
        double best = choose_letters(spelling.many, count, &spelling.nletters);
        if (contexts != NULL && expected_plainly(&tally) <= best) {
            contexts = NULL;
            spell(codes, NULL, count, &spelling);
            best = choose_letters(spelling.many, count, &spelling.nletters);
        }
        if (best < expected)
            written = write_letters(codes, contexts, &spelling, count, block, packed);
    }
    return written > 0 ? written : write_wide(codes, classes, &tally, block);
}

bool iq_coded_likes_contexts(const int32_t *codes, size_t count)
{
    enum { EVERY = 16, SMALL = 2 };
    uint64_t sum = 0;
    for (size_t i = 0; i < count; i += EVERY)
        sum += (uint64_t)llabs(codes[i]);
    return sum < SMALL * iq_ceil_div(count, EVERY);
}
