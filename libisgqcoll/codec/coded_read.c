/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes to integers: see coded_message.h. They may come from anybody. */
#include "base/status.h"
#include "base/util.h"
#include "codec/coded_message.h"
#include "codec/coded_shapes.h"
#include "codec/coder.h"
#include "codec/letter_coder.h"
#include "kernels/kernels.h"

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

static isgq_result_t read_letters(const unsigned char *block, const uint8_t *contexts, size_t count, int32_t *codes)
{
    uint8_t letters[IQ_CODED_BLOCK], tables[IQ_CODED_BLOCK];
    int32_t beyond[IQ_CODED_BLOCK];
    uint32_t last = block[1] & IQ_LETTERS_MASK;
    size_t bytes = get_u16(block + 2), used = 0, escapes = 0;
    const unsigned char *extras = block + IQ_CODED_BLOCK_HEADER;
    if ((block[1] & IQ_LETTERS_KNOWN) == 0)
        contexts = NULL;
    for (size_t i = 0; i < count && contexts != NULL; i++)
        tables[i] = iq_table_of(contexts[i]);
    IQ_TRY(iq_letters_read(extras + bytes, get_u16(block + 4), contexts != NULL ? tables : NULL, count, last + 1, letters));
    for (size_t i = 0; i < count; i++)
        escapes += letters[i] == last;
    if (escapes > 0 && bytes > 0 && extras[0] == IQ_SHAPE_LETTERS)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: letters beyond letters");
    if (escapes > 0)
        IQ_TRY(iq_coded_read(extras, bytes, NULL, escapes, beyond, &used));
    if (used != bytes)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: %zu bytes of extras where %zu are used", bytes, used);
    for (size_t i = 0; i < escapes; i++)
        if (beyond[i] < 0)
            return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: %d beyond the last letter", beyond[i]);
    if (contexts == NULL)
        for (size_t i = 0; i < count; i++)
            codes[i] = iq_unfold(letters[i]);
    else
        for (size_t i = 0; i < count; i++) {
            int32_t flip = -(int32_t)iq_is_mirrored(contexts[i]);
            codes[i] = (iq_unfold(letters[i]) ^ flip) - flip;
        }
    for (size_t i = 0, n = 0; n < escapes; n++, i++) {
        i = (size_t)((uint8_t *)memchr(letters + i, (int)last, count - i) - letters);
        int32_t flip = contexts == NULL ? 0 : -(int32_t)iq_is_mirrored(contexts[i]);
        codes[i] = (iq_unfold(last + (uint32_t)beyond[n]) ^ flip) - flip;
    }
    return ISGQ_SUCCESS;
}

static isgq_result_t read_coded(const unsigned char *block, size_t count, int32_t *codes)
{
    unsigned char symbols[IQ_CODED_BLOCK];
    size_t nextras = get_u16(block + 2), coded = get_u16(block + 4);
    const unsigned char *extras = block + IQ_CODED_BLOCK_HEADER;
    IQ_TRY(iq_coder_decode(extras + nextras, coded, symbols, count));
    return read_classes(symbols, count, block[1], extras, nextras, codes);
}

/* ---- blocks ---- */

static isgq_result_t read_shape(const unsigned char *block, const uint8_t *contexts, size_t count, int32_t *codes)
{
    switch (block[0]) {
    case IQ_SHAPE_PACKED: return read_packed(block + IQ_CODED_BLOCK_HEADER, count, block[1], codes);
    case IQ_SHAPE_LETTERS: return read_letters(block, contexts, count, codes);
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

bool iq_coded_asks_for_contexts(const unsigned char *block, size_t room)
{
    return room >= IQ_CODED_BLOCK_HEADER && block[0] == IQ_SHAPE_LETTERS && (block[1] & IQ_LETTERS_KNOWN) != 0;
}

/* Does the second byte fit the shape, and what `after` says of bytes that follow? */
static bool is_sound(unsigned shape, unsigned second, size_t after)
{
    switch (shape) {
    case IQ_SHAPE_ZERO: return second == 0 && after == 0;
    case IQ_SHAPE_PACKED: return second >= 1 && second <= 32 && after == 0;
    case IQ_SHAPE_CLASSES: return second <= IQ_SIGNS_MINUS;
    case IQ_SHAPE_LETTERS: return second < 2 * IQ_LETTERS_KNOWN && (second & IQ_LETTERS_MASK) > 0;
    default: return false;
    }
}

isgq_result_t iq_coded_read(const unsigned char *block, size_t room, const uint8_t *contexts, size_t count, int32_t *codes,
                            size_t *used)
{
    if (room < IQ_CODED_BLOCK_HEADER)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: a block of %zu bytes", room);
    unsigned shape = block[0], second = block[1];
    size_t after = get_u16(block + 2) + get_u16(block + 4);
    *used = IQ_CODED_BLOCK_HEADER + (shape == IQ_SHAPE_PACKED ? iq_packed_bytes(count, second) : after);
    if (!is_sound(shape, second, after) || *used > room)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: a block of shape %u, %u and %zu bytes where %zu are left", shape, second,
                       *used, room);
    if (contexts == NULL && iq_coded_asks_for_contexts(block, room))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: a block asks for contexts where there are none");
    if (shape == IQ_SHAPE_ZERO) {
        memset(codes, 0, count * sizeof(*codes));
        return ISGQ_SUCCESS;
    }
    IQ_TRY(read_shape(block, contexts, count, codes));
    return check_codes(codes, count);
}
