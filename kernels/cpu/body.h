/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernels, once. Each file of this folder includes this one with
 *     ROW, ROW_NAME   the table and its name
 *     TARGET          an attribute that names the instruction set, or nothing
 *     usable          is this CPU able to run it?
 *     draw_tile       random words, see rows.h
 *     QUANTIZE_MANY   optional: codes of the first elements of a run, and how many they are
 *     PACK_MANY       optional: packs the first codes, and how many they are
 *     DECODE_MANY     optional: decodes the first codes, and how many they are
 *     SQUEEZE, SPREAD eight bytes below 2^width to 8 * width bits side by side, and back (bits above 8 * width do not matter)
 * Loops are plain C over short fixed tiles, which compilers turn into vectors of whatever width TARGET allows: the bits cannot
 * differ because the arithmetic is the same source (contraction is off). Only what compilers do badly is left to the rows.
 */
#include "kernels/cpu/rows.h"

#include "kernels/hadamard.h"

#include <string.h>

#ifndef QUANTIZE_MANY
#define QUANTIZE_MANY(grid, first, src, count, codes) 0
#endif

#ifndef PACK_MANY
#define PACK_MANY(codes, count, width, out, bytes) 0
#endif

#ifndef DECODE_MANY
#define DECODE_MANY(in, count, width, offset, unit, add, dst, most) 0
#endif

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "packed codes and messages are little-endian");

/* ---- scales ---- */

TARGET static float absmax(const iq_f32_any_t *src, size_t count)
{
    /* Magnitudes of floats order as their bits do, and NaN is above Inf. */
    const iq_u32_any_t *bits = (const iq_u32_any_t *)src;
    int32_t lanes[16] = {0};
    size_t i = 0;
    for (; i + 16 <= count; i += 16) {
        for (int lane = 0; lane < 16; lane++) {
            int32_t magnitude = (int32_t)(bits[i + lane] & 0x7fffffffu);
            lanes[lane] = magnitude > lanes[lane] ? magnitude : lanes[lane];
        }
    }
    int32_t most = 0;
    for (; i < count; i++) {
        int32_t magnitude = (int32_t)(bits[i] & 0x7fffffffu);
        most = magnitude > most ? magnitude : most;
    }
    for (int lane = 0; lane < 16; lane++)
        most = lanes[lane] > most ? lanes[lane] : most;
    return iq_bits_float(most > 0x7f800000 ? 0x7f800000u : (uint32_t)most);
}

/* ---- random words ---- */

static inline uint32_t quads_of(size_t elements) { return (uint32_t)((elements + 3) / 4); }

TARGET static void draw(const iq_grid_t *grid, uint64_t first, size_t count, uint32_t *words)
{
    _Alignas(64) uint32_t random[TILE];
    while (count > 0) {
        size_t skip = first % 4, n = TILE - skip < count ? TILE - skip : count;
        bool whole = n == TILE && grid->strata == NULL;
        draw_tile(grid, first / 4, quads_of(skip + n), whole ? words : random);
        if (whole) {
        } else if (grid->strata == NULL) {
            memcpy(words, random + skip, n * sizeof(*words));
        } else {
            for (size_t i = 0; i < n; i++)
                words[i] = iq_stratified_bits(random[skip + i], grid->strata);
        }
        first += n;
        words += n;
        count -= n;
    }
}

/* ---- values to codes ---- */

/* Codes of a tile, from 24 random bits each, or none. */
TARGET static void round_tile(const iq_grid_t *grid, const iq_f32_any_t *src, const uint32_t *random24, size_t count, uint8_t *codes)
{
    const float inverse = grid->inverse, shift = grid->shift;
    const int32_t low = grid->low, high = grid->high;
    if (random24 == NULL) {
        for (size_t i = 0; i < count; i++)
            codes[i] = (uint8_t)(iq_round_nearest(src[i] * inverse + shift, low, high) - low);
    } else {
        for (size_t i = 0; i < count; i++)
            codes[i] = (uint8_t)(iq_round_stochastic(src[i] * inverse + shift, random24[i], low, high) - low);
    }
}

TARGET static void random_tile(const iq_grid_t *grid, uint64_t first, size_t count, uint32_t *random24)
{
    draw_tile(grid, first / 4, quads_of(first % 4 + count), random24);
    if (grid->strata == NULL) {
        for (size_t i = 0; i < first % 4 + count; i++)
            random24[i] >>= 8;
    } else {
        for (size_t i = 0; i < first % 4 + count; i++)
            random24[i] = iq_stratified_bits(random24[i], grid->strata);
    }
}

TARGET static void quantize(const iq_grid_t *grid, uint64_t first, const iq_f32_any_t *src, size_t count, uint8_t *codes)
{
    _Alignas(64) uint32_t random24[TILE];
    size_t done = QUANTIZE_MANY(grid, first, src, count, codes);
    if (!grid->stochastic) {
        round_tile(grid, src + done, NULL, count - done, codes + done);
        return;
    }
    for (size_t i = done, n; i < count; i += n) {
        size_t skip = (first + i) % 4;
        n = TILE - skip < count - i ? TILE - skip : count - i;
        random_tile(grid, first + i, n, random24);
        round_tile(grid, src + i, random24 + skip, n, codes + i);
    }
}

TARGET static void quantize32(const iq_grid_t *grid, uint64_t first, const iq_f32_any_t *src, size_t count, int32_t *codes)
{
    _Alignas(64) uint32_t random24[TILE];
    const float inverse = grid->inverse, shift = grid->shift;
    const int32_t low = grid->low, high = grid->high;
    for (size_t i = 0, n; i < count; i += n) {
        size_t skip = (first + i) % 4;
        n = TILE - skip < count - i ? TILE - skip : count - i;
        random_tile(grid, first + i, n, random24);
        for (size_t j = 0; j < n; j++)
            codes[i + j] = iq_round_stochastic(src[i + j] * inverse + shift, random24[skip + j], low, high);
    }
}

/* ---- packing ---- */

/* Eight bytes below 2^width side by side in 8 * width bits, and back. */
TARGET static void pack8(const uint8_t *codes, size_t count, unsigned width, void *packed)
{
    unsigned char *out = packed;
    size_t bytes = iq_packed_bytes(count, width), i = PACK_MANY(codes, count, width, out, bytes), at = i / 8 * width;
    for (; i + 8 <= count && at + 8 <= bytes; i += 8, at += width) {
        uint64_t group;
        memcpy(&group, codes + i, 8);
        group = SQUEEZE(group, width);
        memcpy(out + at, &group, 8); /* what is beyond `width` bytes is overwritten by the next groups */
    }
    for (; i < count; i += 8, at += width) {
        uint64_t group = 0;
        memcpy(&group, codes + i, count - i < 8 ? count - i : 8);
        group = SQUEEZE(group, width);
        memcpy(out + at, &group, width);
    }
}

TARGET static void unpack8(const void *packed, size_t count, unsigned width, uint8_t *codes)
{
    const unsigned char *in = packed;
    size_t bytes = iq_packed_bytes(count, width), i = 0, at = 0;
    for (; i + 8 <= count && at + 8 <= bytes; i += 8, at += width) {
        uint64_t group;
        memcpy(&group, in + at, 8);
        group = SPREAD(group, width);
        memcpy(codes + i, &group, 8);
    }
    for (; i < count; i += 8, at += width) {
        uint64_t group = 0;
        memcpy(&group, in + at, width);
        group = SPREAD(group, width);
        memcpy(codes + i, &group, count - i < 8 ? count - i : 8);
    }
}

/* ---- values to packed codes, and back ---- */

TARGET static void encode(const iq_grid_t *grid, uint64_t first, const iq_f32_any_t *src, size_t count, unsigned width, void *packed)
{
    unsigned char *out = packed;
    _Alignas(64) uint8_t codes[4 * TILE];
    if (width == 8) { /* nothing to pack */
        quantize(grid, first, src, count, out);
        memset(out + count, 0, iq_packed_bytes(count, 8) - count);
        return;
    }
    for (size_t i = 0, n; i < count; i += n) {
        n = count - i < sizeof(codes) ? count - i : sizeof(codes);
        quantize(grid, first + i, src + i, n, codes);
        pack8(codes, n, width, out + i / 8 * width);
    }
}

TARGET static uint8_t largest(const uint8_t *codes, size_t count)
{
    uint8_t lanes[64] = {0}, most = 0;
    size_t i = 0;
    for (; i + 64 <= count; i += 64) {
        for (int lane = 0; lane < 64; lane++)
            lanes[lane] = codes[i + lane] > lanes[lane] ? codes[i + lane] : lanes[lane];
    }
    for (; i < count; i++)
        most = codes[i] > most ? codes[i] : most;
    for (int lane = 0; lane < 64; lane++)
        most = lanes[lane] > most ? lanes[lane] : most;
    return most;
}

/* The value of a code, unless there is a divisor. */
static inline float value_of(uint8_t code, int32_t offset, float unit) { return (float)(2 * (int32_t)code - offset) * unit; }

TARGET static uint32_t decode(const void *packed, size_t count, unsigned width, int32_t offset, float unit, float divisor, bool add,
                              iq_f32_any_t *dst)
{
    const unsigned char *in = packed;
    _Alignas(64) uint8_t codes[TILE];
    uint32_t most = 0;
    size_t done = divisor == 1.0f ? DECODE_MANY(in, count, width, offset, unit, add, dst, &most) : 0;
    dst += done;
    for (size_t i = done; i < count; i += TILE, dst += TILE) {
        size_t n = count - i < TILE ? count - i : TILE;
        if (add)
            iq_ask_for(dst + AHEAD, TILE);
        unpack8(in + i / 8 * width, n, width, codes);
        uint8_t found = largest(codes, n);
        most = found > most ? found : most;
        if (divisor != 1.0f && add) {
            for (size_t j = 0; j < n; j++)
                dst[j] += value_of(codes[j], offset, unit) / divisor;
        } else if (divisor != 1.0f) {
            for (size_t j = 0; j < n; j++)
                dst[j] = value_of(codes[j], offset, unit) / divisor;
        } else if (add) {
            for (size_t j = 0; j < n; j++)
                dst[j] += value_of(codes[j], offset, unit);
        } else {
            for (size_t j = 0; j < n; j++)
                dst[j] = value_of(codes[j], offset, unit);
        }
    }
    return most;
}

/* ---- packing codes of any width ---- */

/* Eight codes of any width. */
TARGET static void pack_group(const uint32_t codes[8], unsigned width, unsigned char *out)
{
    uint64_t bits = 0;
    unsigned used = 0;
    for (int i = 0; i < 8; i++) {
        bits |= (uint64_t)codes[i] << used;
        used += width;
        if (used >= 32) {
            uint32_t word = (uint32_t)bits;
            memcpy(out, &word, 4);
            out += 4;
            bits >>= 32;
            used -= 32;
        }
    }
    memcpy(out, &bits, used / 8);
}

/* Reads up to 8 bytes beyond the group. */
TARGET static void unpack_group(const unsigned char *in, unsigned width, uint32_t codes[8])
{
    uint32_t mask = 0xffffffffu >> (32 - width);
    for (unsigned i = 0; i < 8; i++) {
        uint64_t word;
        memcpy(&word, in + i * width / 8, 8);
        codes[i] = (uint32_t)(word >> (i * width % 8)) & mask;
    }
}

TARGET static void pack_narrow(const iq_u32_any_t *codes, size_t count, unsigned width, unsigned char *out)
{
    uint8_t narrow[TILE];
    for (size_t i = 0; i < count; i += TILE) {
        size_t n = count - i < TILE ? count - i : TILE;
        for (size_t j = 0; j < n; j++)
            narrow[j] = (uint8_t)codes[i + j];
        pack8(narrow, n, width, out + i / 8 * width);
    }
}

TARGET static void unpack_narrow(const unsigned char *in, size_t count, unsigned width, iq_u32_any_t *codes)
{
    uint8_t narrow[TILE];
    for (size_t i = 0; i < count; i += TILE) {
        size_t n = count - i < TILE ? count - i : TILE;
        unpack8(in + i / 8 * width, n, width, narrow);
        for (size_t j = 0; j < n; j++)
            codes[i + j] = narrow[j];
    }
}

TARGET static void pack32(const iq_u32_any_t *codes, size_t count, unsigned width, void *packed)
{
    unsigned char *out = packed;
    if (width <= 8) {
        pack_narrow(codes, count, width, out);
        return;
    }
    for (size_t i = 0; i < count; i += 8, out += width) {
        uint32_t group[8] = {0};
        memcpy(group, codes + i, (count - i < 8 ? count - i : 8) * 4);
        pack_group(group, width, out);
    }
}

TARGET static void unpack32(const void *packed, size_t count, unsigned width, iq_u32_any_t *codes)
{
    const unsigned char *in = packed;
    if (width <= 8) {
        unpack_narrow(in, count, width, codes);
        return;
    }
    size_t i = 0;
    for (; i + 16 <= count; i += 8, in += width) { /* the next group is at least 9 bytes */
        uint32_t group[8];
        unpack_group(in, width, group);
        memcpy(codes + i, group, sizeof(group));
    }
    for (; i < count; i += 8, in += width) {
        uint32_t group[8];
        unsigned char last[32 + 8] = {0};
        memcpy(last, in, width);
        unpack_group(last, width, group);
        memcpy(codes + i, group, (count - i < 8 ? count - i : 8) * 4);
    }
}

/* ---- sums of codes, and back to values ---- */

TARGET static uint32_t add8(const uint8_t *codes, size_t count, bool first, iq_u32_any_t *sums)
{
    uint8_t most = 0;
    for (size_t i = 0; i < count; i++)
        most = codes[i] > most ? codes[i] : most;
    if (first) {
        for (size_t i = 0; i < count; i++)
            sums[i] = codes[i];
    } else {
        for (size_t i = 0; i < count; i++)
            sums[i] += codes[i];
    }
    return most;
}

TARGET static uint32_t add32(const iq_u32_any_t *codes, size_t count, bool first, iq_u32_any_t *sums)
{
    uint32_t most = 0;
    for (size_t i = 0; i < count; i++)
        most = codes[i] > most ? codes[i] : most;
    if (first) {
        memmove(sums, codes, count * sizeof(*sums));
    } else {
        for (size_t i = 0; i < count; i++)
            sums[i] += codes[i];
    }
    return most;
}

TARGET static void dequantize(const iq_u32_any_t *sums, size_t count, int32_t offset, float unit, float divisor,
                              iq_f32_any_t *dst)
{
    if (divisor == 1.0f) {
        for (size_t i = 0; i < count; i++)
            dst[i] = (float)((int32_t)(2 * sums[i]) - offset) * unit;
    } else {
        for (size_t i = 0; i < count; i++)
            dst[i] = (float)((int32_t)(2 * sums[i]) - offset) * unit / divisor;
    }
}

/* ---- rotations ---- */

TARGET static void hadamard(float *values, size_t count, float *room)
{
    float *from = values, *to = room;
    for (size_t done = 1; done < count; done *= 2) {
        float *swapped = from;
        for (size_t i = 0; i < count / 2; i++)
            iq_hadamard_pair(from, count / 2, i, to);
        from = to;
        to = swapped;
    }
    if (from != values)
        memcpy(values, from, count * sizeof(*values));
}

TARGET static void flip(const uint32_t *signs, size_t first, float factor, float *values, size_t count)
{
    for (size_t i = 0; i < count;) {
        size_t lane = (first + i) % 32, n = 32 - lane < count - i ? 32 - lane : count - i;
        uint32_t word = signs[(first + i) / 32] >> lane;
        if (n == 32) {
            for (uint32_t bit = 0; bit < 32; bit++)
                values[i + bit] *= iq_signed_factor(factor, word, bit);
        } else {
            for (uint32_t bit = 0; bit < n; bit++)
                values[i + bit] *= iq_signed_factor(factor, word, bit);
        }
        i += n;
    }
}

/* ---- conversions ---- */

TARGET static void f32_to_f16(const iq_f32_any_t *src, size_t count, iq_u16_any_t *dst)
{
    for (size_t i = 0; i < count; i++)
        dst[i] = iq_float_to_f16(src[i]);
}

TARGET static void f16_to_f32(const iq_u16_any_t *src, size_t count, iq_f32_any_t *dst)
{
    for (size_t i = 0; i < count; i++)
        dst[i] = iq_f16_to_float(src[i]);
}

TARGET static void f32_to_bf16(const iq_f32_any_t *src, size_t count, iq_u16_any_t *dst)
{
    for (size_t i = 0; i < count; i++)
        dst[i] = iq_float_to_bf16(src[i]);
}

TARGET static void bf16_to_f32(const iq_u16_any_t *src, size_t count, iq_f32_any_t *dst)
{
    for (size_t i = 0; i < count; i++)
        dst[i] = iq_bf16_to_float(src[i]);
}

const iq_kernels_t ROW = {
    .name = ROW_NAME,
    .usable = usable,
    .absmax = absmax,
    .quantize = quantize,
    .quantize32 = quantize32,
    .encode = encode,
    .decode = decode,
    .pack8 = pack8,
    .unpack8 = unpack8,
    .pack32 = pack32,
    .unpack32 = unpack32,
    .add8 = add8,
    .add32 = add32,
    .dequantize = dequantize,
    .draw = draw,
    .hadamard = hadamard,
    .flip = flip,
    .sum = SUM,
    .f32_to_f16 = f32_to_f16,
    .f16_to_f32 = f16_to_f32,
    .f32_to_bf16 = f32_to_bf16,
    .bf16_to_f32 = bf16_to_f32,
};
