/* SPDX-License-Identifier: Apache-2.0 */
/* Codes as digits of groups: see digits.h. Groups are made and taken apart here, and laid side by side by the kernels' packing. */
#include "codec/digits.h"

#include "base/util.h"
#include "kernels/kernels.h"

#include <string.h>

/* Groups that are worked on at once: a multiple of 8. */
enum { GROUPS = 256 };

iq_digits_t iq_digits_of(unsigned symbols)
{
    switch (symbols) {
    case 3: return (iq_digits_t){3, 5, 8};
    case 5: return (iq_digits_t){5, 3, 7};
    case 9: return (iq_digits_t){9, 5, 16};
    default: return (iq_digits_t){symbols, 1, iq_bit_width(symbols - 1)};
    }
}

static bool is_bytes(const iq_digits_t *digits) { return digits->bits % 8 == 0; }

size_t iq_digits_unit(const iq_digits_t *digits) { return is_bytes(digits) ? digits->count : 8 * (size_t)digits->count; }

size_t iq_digits_bytes(const iq_digits_t *digits, size_t count)
{
    size_t groups = iq_ceil_div(count, digits->count);
    return is_bytes(digits) ? groups * (digits->bits / 8) : iq_packed_bytes(groups, digits->bits);
}

/* ---- groups to bytes and back; at most GROUPS of them ---- */

static void write_groups(const iq_digits_t *digits, const uint32_t *groups, size_t count, unsigned char *packed)
{
    if (digits->bits == 8) {
        for (size_t i = 0; i < count; i++)
            packed[i] = (unsigned char)groups[i];
    } else if (digits->bits == 16) {
        for (size_t i = 0; i < count; i++)
            ((iq_u16_any_t *)packed)[i] = (uint16_t)groups[i];
    } else {
        iq_kernels()->pack32(groups, count, digits->bits, packed);
    }
}

static bool read_groups(const iq_digits_t *digits, const unsigned char *packed, size_t count, uint32_t *groups)
{
    if (digits->bits == 8) {
        for (size_t i = 0; i < count; i++)
            groups[i] = packed[i];
    } else if (digits->bits == 16) {
        for (size_t i = 0; i < count; i++)
            groups[i] = ((const iq_u16_any_t *)packed)[i];
    } else {
        iq_kernels()->unpack32(packed, count, digits->bits, groups);
        return iq_packed_is_clean(packed, count, digits->bits);
    }
    return true;
}

/* ---- codes to groups and back: the base is a constant where these are called ---- */

static inline uint32_t join(const uint16_t *codes, size_t count, uint32_t symbols)
{
    uint32_t group = 0;
    for (size_t i = count; i-- > 0;)
        group = group * symbols + codes[i];
    return group;
}

static inline void join_all(const uint16_t *codes, size_t count, uint32_t symbols, size_t each, uint32_t *groups)
{
    size_t whole = count / each;
    for (size_t g = 0; g < whole; g++)
        groups[g] = join(codes + g * each, each, symbols);
    if (count % each != 0)
        groups[whole] = join(codes + whole * each, count % each, symbols);
}

/* What is left of the group when its digits are taken: 0, or it is none. */
static inline uint32_t split(uint32_t group, size_t count, uint32_t symbols, uint16_t *codes)
{
    for (size_t i = 0; i < count; i++) {
        codes[i] = (uint16_t)(group % symbols);
        group /= symbols;
    }
    return group;
}

static inline uint32_t split_all(const uint32_t *groups, size_t count, uint32_t symbols, size_t each, uint16_t *codes)
{
    size_t whole = count / each;
    uint32_t left = 0;
    for (size_t g = 0; g < whole; g++)
        left |= split(groups[g], each, symbols, codes + g * each);
    if (count % each != 0)
        left |= split(groups[whole], count % each, symbols, codes + whole * each);
    return left;
}

static void join_codes(const iq_digits_t *digits, const uint16_t *codes, size_t count, uint32_t *groups)
{
    switch (digits->symbols) {
    case 3: join_all(codes, count, 3, 5, groups); break;
    case 5: join_all(codes, count, 5, 3, groups); break;
    case 9: join_all(codes, count, 9, 5, groups); break;
    default:
        for (size_t i = 0; i < count; i++)
            groups[i] = codes[i];
    }
}

static bool split_groups(const iq_digits_t *digits, const uint32_t *groups, size_t count, uint16_t *codes)
{
    uint32_t most = 0;
    switch (digits->symbols) {
    case 3: return split_all(groups, count, 3, 5, codes) == 0;
    case 5: return split_all(groups, count, 5, 3, codes) == 0;
    case 9: return split_all(groups, count, 9, 5, codes) == 0;
    default:
        for (size_t i = 0; i < count; i++) {
            codes[i] = (uint16_t)groups[i];
            most = groups[i] > most ? groups[i] : most;
        }
        return most < digits->symbols;
    }
}

/* ---- a tile of groups at a time ---- */

void iq_digits_pack(const iq_digits_t *digits, const uint16_t *codes, size_t count, void *packed)
{
    uint32_t groups[GROUPS];
    unsigned char *out = packed;
    for (size_t n; count > 0; codes += n, count -= n) {
        n = iq_min(count, (size_t)GROUPS * digits->count);
        join_codes(digits, codes, n, groups);
        write_groups(digits, groups, iq_ceil_div(n, digits->count), out);
        out += iq_digits_bytes(digits, n);
    }
}

bool iq_digits_unpack(const iq_digits_t *digits, const void *packed, size_t count, uint16_t *codes)
{
    uint32_t groups[GROUPS];
    const unsigned char *in = packed;
    bool good = true;
    for (size_t n; count > 0; codes += n, count -= n) {
        n = iq_min(count, (size_t)GROUPS * digits->count);
        good &= read_groups(digits, in, iq_ceil_div(n, digits->count), groups);
        good &= split_groups(digits, groups, n, codes);
        in += iq_digits_bytes(digits, n);
    }
    return good;
}
