/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes to integers: see coded_message.h. They may come from anybody. */
#include "base/status.h"
#include "base/util.h"
#include "codec/coded_message.h"
#include "codec/coded_shapes.h"
#include "codec/coder.h"
#include "kernels/kernels.h"

#include <pthread.h>
#include <string.h>

static size_t get_u16(const unsigned char *from) { return (size_t)from[0] | (size_t)from[1] << 8; }

static isgq_result_t read_packed(const unsigned char *packed, size_t count, unsigned width, int32_t *codes)
{
    uint32_t folded[256];
    for (size_t i = 0; i < count; i += IQ_ARRAY_SIZE(folded)) {
        size_t n = iq_min(count - i, IQ_ARRAY_SIZE(folded));
        iq_kernels()->unpack32(packed + i / 8 * width, n, width, folded);
        for (size_t j = 0; j < n; j++)
            codes[i + j] = iq_unfold(folded[j]);
    }
    if (!iq_packed_is_clean(packed, count, width))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: bits set after the last of %zu integers", count);
    return ISGQ_SUCCESS;
}

/* Bits of extras, from the lowest of the first byte on. */
typedef struct bits {
    const unsigned char *from;
    size_t bytes, used;
    uint64_t waiting;
    unsigned there; /* of `waiting`; what is above is those that follow, or zeros */
} bits_t;

static inline void refill(bits_t *bits)
{
    if (bits->bytes - bits->used >= 8) {
        bits->waiting |= *(const iq_u64_any_t *)(bits->from + bits->used) << bits->there;
        bits->used += (63 - bits->there) / 8;
        bits->there |= 56;
    } else {
        for (; bits->there < 56 && bits->used < bits->bytes; bits->there += 8)
            bits->waiting |= (uint64_t)bits->from[bits->used++] << bits->there;
    }
}

/* Were these all, and zeros after the last? */
static isgq_result_t check_rest(const bits_t *bits)
{
    size_t used = bits->used - bits->there / 8;
    uint64_t rest = bits->waiting & ((1u << bits->there % 8) - 1);
    if (used != bits->bytes || rest != 0)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: %zu bytes of extras where %zu are used", bits->bytes, used);
    return ISGQ_SUCCESS;
}

static isgq_result_t read_open_class(uint32_t class, unsigned signs, bits_t *bits, int32_t *code)
{
    if (class >= IQ_CLASSES)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: class %u of %d", class, IQ_CLASSES);
    unsigned width = iq_class_bits(class);
    if (bits->there < width)
        refill(bits);
    if (bits->there < width)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: %zu bytes of extras end within an integer", bits->bytes);
    *code = iq_unfold_signs(iq_class_first(class) + ((uint32_t)bits->waiting & ((1u << width) - 1)), signs);
    bits->waiting >>= width;
    bits->there -= width;
    return ISGQ_SUCCESS;
}

/* Runs of plain symbols are taken as vectors. */
static isgq_result_t read_classes(const unsigned char *symbols, size_t count, unsigned signs, const unsigned char *extras,
                                  size_t bytes, int32_t *codes)
{
    enum { RUN = 64 };
    bits_t bits = {.from = extras, .bytes = bytes};
    int32_t table[IQ_PLAIN];
    for (uint32_t folded = 0; folded < IQ_PLAIN; folded++)
        table[folded] = iq_unfold_signs(folded, signs);
    for (size_t i = 0, n; i < count; i += n) {
        unsigned any = 0;
        n = iq_min(count - i, RUN);
        for (size_t j = i; j < i + n; j++)
            any |= symbols[j];
        for (size_t j = i; j < i + n && any >= IQ_PLAIN; j++) {
            if (symbols[j] < IQ_PLAIN)
                codes[j] = table[symbols[j]];
            else
                IQ_TRY(read_open_class(symbols[j], signs, &bits, &codes[j]));
        }
        if (any >= IQ_PLAIN)
            continue;
        if (signs == IQ_SIGNS_BOTH)
            for (size_t j = i; j < i + n; j++)
                codes[j] = iq_unfold(symbols[j]);
        else
            for (size_t j = i; j < i + n; j++)
                codes[j] = table[symbols[j]];
    }
    return check_rest(&bits);
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

/* What a word of an alphabet stands for. */
typedef struct word {
    int8_t codes[6];
    bool escapes, is_none;
} word_t;

static word_t words[IQ_ARRAY_SIZE(iq_alphabets)][IQ_SIGNS_MINUS + 1][256];
static pthread_once_t words_once = PTHREAD_ONCE_INIT;

static void list_words(const iq_alphabet_t *alphabet, unsigned signs, word_t to[256])
{
    uint32_t last = alphabet->escapes ? alphabet->letters - 1 : UINT32_MAX;
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t rest = i;
        for (uint32_t digit = 0; digit < alphabet->digits; digit++, rest /= alphabet->letters) {
            uint32_t letter = rest % alphabet->letters;
            to[i].codes[digit] = (int8_t)iq_unfold_signs(letter, signs);
            to[i].escapes |= letter == last;
        }
        to[i].is_none = rest != 0;
    }
}

static void list_all_words(void)
{
    for (size_t i = 0; i < IQ_ARRAY_SIZE(iq_alphabets); i++)
        for (unsigned signs = 0; signs <= IQ_SIGNS_MINUS; signs++)
            list_words(&iq_alphabets[i], signs, words[i][signs]);
}

/* Adds what is beyond the alphabet to the letters of one word. */
static isgq_result_t read_escapes(const iq_alphabet_t *alphabet, uint32_t word, unsigned signs, const unsigned char *extras,
                                  size_t bytes, size_t *used, int32_t *codes)
{
    uint32_t beyond = 0;
    for (uint32_t digit = 0; word > 0; digit++, word /= alphabet->letters) {
        if (word % alphabet->letters != alphabet->letters - 1)
            continue;
        IQ_TRY(read_escape(extras, bytes, used, &beyond));
        codes[digit] = iq_unfold_signs(alphabet->letters - 1 + beyond, signs);
    }
    return ISGQ_SUCCESS;
}

static isgq_result_t read_small(const iq_alphabet_t *alphabet, const unsigned char *symbols, size_t count, unsigned signs,
                                const unsigned char *extras, size_t bytes, int32_t *codes)
{
    const word_t *mine = words[alphabet - iq_alphabets][signs];
    const size_t digits = alphabet->digits;
    size_t used = 0, whole = count / digits;
    bool strange = false;
    (void)pthread_once(&words_once, list_all_words);
    for (size_t n = 0; n * digits < count; n++) {
        int32_t last[8], *to = n < whole ? codes + n * digits : last;
        const word_t *word = &mine[symbols[n]];
        for (size_t digit = 0; digit < digits; digit++)
            to[digit] = word->codes[digit];
        strange |= word->is_none;
        if (word->escapes && !word->is_none)
            IQ_TRY(read_escapes(alphabet, symbols[n], signs, extras, bytes, &used, to));
        for (size_t digit = 0; digit < digits && n == whole; digit++) { /* fewer than a word */
            if (n * digits + digit < count)
                codes[n * digits + digit] = last[digit];
            else
                strange |= last[digit] != 0;
        }
    }
    if (strange)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: a byte that is not %zu symbols of %u", digits, alphabet->letters);
    if (used != bytes)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: %zu bytes of extras where %zu are used", bytes, used);
    return ISGQ_SUCCESS;
}

static isgq_result_t read_coded(const unsigned char *block, size_t count, int32_t *codes)
{
    unsigned char symbols[IQ_CODED_BLOCK];
    size_t nextras = get_u16(block + 2), coded = get_u16(block + 4);
    const unsigned char *extras = block + IQ_CODED_BLOCK_HEADER;
    const iq_alphabet_t *alphabet = block[0] == IQ_SHAPE_CLASSES ? NULL : &iq_alphabets[block[0] - IQ_SHAPE_SMALL];
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
    if (there == 0 || bytes < IQ_CODED_BLOCK_HEADER || others[0] == IQ_SHAPE_SPARSE)
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
    case IQ_SHAPE_PACKED: return read_packed(block + IQ_CODED_BLOCK_HEADER, count, block[1], codes);
    case IQ_SHAPE_SPARSE: return read_sparse(block, count, codes);
    default: return read_coded(block, count, codes);
    }
}

static isgq_result_t check_codes(const int32_t *codes, size_t count)
{
    uint32_t any = 0; /* bits of the magnitudes: the limit is a power of two */
    for (size_t i = 0; i < count; i++)
        any |= iq_fold(codes[i]) >> 1;
    return any < IQ_CODED_LARGEST ? ISGQ_SUCCESS : IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: an integer of magnitude beyond 2^29");
}

isgq_result_t iq_coded_read(const unsigned char *block, size_t room, size_t count, int32_t *codes, size_t *used)
{
    if (room < IQ_CODED_BLOCK_HEADER)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: a block of %zu bytes", room);
    unsigned shape = block[0], width = block[1];
    size_t after = get_u16(block + 2) + get_u16(block + 4);
    *used = IQ_CODED_BLOCK_HEADER + (shape == IQ_SHAPE_PACKED ? iq_packed_bytes(count, width) : after);
    bool sized = shape == IQ_SHAPE_PACKED   ? width >= 1 && width <= 32 && after == 0
                 : shape == IQ_SHAPE_ZERO   ? width == 0 && after == 0
                 : shape == IQ_SHAPE_SPARSE ? width == 0
                                            : width <= IQ_SIGNS_MINUS;
    if (shape >= IQ_SHAPE_SMALL + IQ_ARRAY_SIZE(iq_alphabets) || !sized || *used > room)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: a block of shape %u, width %u and %zu bytes where %zu are left", shape,
                       width, *used, room);
    if (shape == IQ_SHAPE_ZERO) {
        memset(codes, 0, count * sizeof(*codes));
        return ISGQ_SUCCESS;
    }
    IQ_TRY(read_shape(block, count, codes));
    return check_codes(codes, count);
}
