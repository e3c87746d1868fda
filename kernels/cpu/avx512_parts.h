/* SPDX-License-Identifier: Apache-2.0 */
/* What rows of 512-bit vectors have in common: random words and rounding, sixteen values at a time. TARGET names the instruction
 * set. */
#ifndef ISGQ_KERNELS_CPU_AVX512_PARTS_H
#define ISGQ_KERNELS_CPU_AVX512_PARTS_H

#include "kernels/cpu/rows.h"

#include <immintrin.h>
#include <string.h>

#define PART TARGET static inline __attribute__((always_inline))

/* ---- random words ---- */

/* The upper halves of 64-bit lanes in their lower halves; a shuffle, because shifts compete with multiplications for a port. */
PART __m512i upper_half(__m512i lanes) { return _mm512_castps_si512(_mm512_movehdup_ps(_mm512_castsi512_ps(lanes))); }

enum { MOST_VECTORS = 4 };

/* Words 0 to 3 of 8 * `vectors` blocks, each in the lower half of a 64-bit lane: the multiplication takes just those halves and leaves
 * high and low word together, and what is in the upper halves never matters. */
typedef struct counters {
    __m512i c0[MOST_VECTORS], c1[MOST_VECTORS], c2[MOST_VECTORS], c3[MOST_VECTORS];
} counters_t;

PART __m512i numbers_from(uint64_t quad) { return _mm512_add_epi64(_mm512_set1_epi64((long long)quad), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7)); }

/* exclusive or of three */
PART __m512i mix(__m512i a, __m512i b, __m512i c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }

PART void rounds(counters_t *c, int vectors, const iq_grid_t *grid, int from, int to)
{
    const __m512i multiplier0 = _mm512_set1_epi64(0xD2511F53), multiplier1 = _mm512_set1_epi64(0xCD9E8D57);
    uint32_t key0 = (uint32_t)grid->seed + (uint32_t)from * 0x9E3779B9u, key1 = (uint32_t)(grid->seed >> 32) + (uint32_t)from * 0xBB67AE85u;
#pragma GCC unroll 10
    for (int round = from; round < to; round++) {
        const __m512i keys0 = _mm512_set1_epi64(key0), keys1 = _mm512_set1_epi64(key1);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            __m512i product0 = _mm512_mul_epu32(multiplier0, c->c0[v]), product1 = _mm512_mul_epu32(multiplier1, c->c2[v]);
            c->c0[v] = mix(upper_half(product1), c->c1[v], keys0);
            c->c2[v] = mix(upper_half(product0), c->c3[v], keys1);
            c->c1[v] = product1;
            c->c3[v] = product0;
        }
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
}

/* Rounds 0 and 1 of consecutive blocks: as long as the counter's upper words stay the same, half of each round does too. */
PART void begin(counters_t *c, int vectors, const iq_grid_t *grid, uint64_t quad)
{
    const uint32_t key0 = (uint32_t)grid->seed, key1 = (uint32_t)(grid->seed >> 32), upper = ((uint32_t)(quad >> 32) & 0xff);
    const uint64_t first1 = (uint64_t)(uint32_t)grid->call * 0xCD9E8D57u;
    const uint32_t first0 = (uint32_t)(first1 >> 32) ^ (upper | grid->stream << 8 | grid->rank << 16) ^ key0;
    const uint64_t second0 = (uint64_t)first0 * 0xD2511F53u;
    const __m512i own0 = _mm512_set1_epi64((uint32_t)(grid->call >> 32) ^ key1), own1 = _mm512_set1_epi64((uint32_t)first1 ^ (key0 + 0x9E3779B9u)),
                  own2 = _mm512_set1_epi64((uint32_t)(second0 >> 32) ^ (key1 + 0xBB67AE85u));
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
        __m512i product0 = _mm512_mul_epu32(_mm512_set1_epi64(0xD2511F53), numbers_from(quad + 8 * (uint64_t)v));
        __m512i product1 = _mm512_mul_epu32(_mm512_set1_epi64(0xCD9E8D57), _mm512_xor_si512(upper_half(product0), own0));
        c->c0[v] = _mm512_xor_si512(upper_half(product1), own1);
        c->c1[v] = product1;
        c->c2[v] = _mm512_xor_si512(product0, own2);
        c->c3[v] = _mm512_set1_epi64((uint32_t)second0);
    }
}

/* The same where they do not: once in 2^34 elements. */
TARGET static __attribute__((noinline)) void begin_anywhere(counters_t *c, int vectors, const iq_grid_t *grid, uint64_t quad)
{
    const __m512i tag = _mm512_set1_epi64((grid->stream << 8) | (grid->rank << 16));
    for (int v = 0; v < vectors; v++) {
        c->c0[v] = numbers_from(quad + 8 * (uint64_t)v);
        c->c1[v] = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi64(c->c0[v], 32), _mm512_set1_epi64(0xff)), tag);
        c->c2[v] = _mm512_set1_epi64((long long)(grid->call & 0xffffffff));
        c->c3[v] = _mm512_set1_epi64((long long)(grid->call >> 32));
    }
    rounds(c, vectors, grid, 0, 2);
}

/* The words of 8 * `vectors` blocks. Several vectors, because a round waits for the one before. */
PART void draw_vectors(const iq_grid_t *grid, uint64_t quad, int vectors, __m512i *random)
{
    const __m512i lower = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), upper = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
    counters_t c;
    if ((uint32_t)quad <= UINT32_MAX - 8 * (uint32_t)vectors) {
        begin(&c, vectors, grid, quad);
    } else {
        counters_t slow;
        begin_anywhere(&slow, vectors, grid, quad);
        c = slow;
    }
    rounds(&c, vectors, grid, 2, IQ_PHILOX_ROUNDS);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
        __m512i first = _mm512_mask_shuffle_epi32(c.c0[v], 0xaaaa, c.c1[v], 0xA0); /* words 0 and 1 of each block */
        __m512i second = _mm512_mask_shuffle_epi32(c.c2[v], 0xaaaa, c.c3[v], 0xA0);
        random[2 * v] = _mm512_permutex2var_epi64(first, lower, second);
        random[2 * v + 1] = _mm512_permutex2var_epi64(first, upper, second);
    }
}

TARGET static void draw_tile(const iq_grid_t *grid, uint64_t quad, uint32_t quads, uint32_t *random)
{
    for (uint32_t block = 0; block < quads; block += 16) {
        __m512i words[4];
        draw_vectors(grid, quad + block, 2, words);
        for (int v = 0; v < 4; v++)
            _mm512_storeu_si512(random + 4 * block + 16 * v, words[v]);
    }
}

/* ---- rounding ---- */

enum { BLOCK = 128 }; /* elements whose random words are made together */

/* Where rounding goes up from the integer below: as iq_round_stochastic, or iq_round_nearest without words. */
PART __mmask16 goes_up(const iq_grid_t *grid, __m512 fraction, const __m512i *words)
{
    if (words == NULL)
        return _mm512_cmp_ps_mask(fraction, _mm512_set1_ps(0.5f), _CMP_GE_OQ);
    __m512i random24 = _mm512_srli_epi32(*words, 8);
    if (grid->strata != NULL) {
        __m512i offsets = _mm512_i32gather_epi32(_mm512_and_si512(*words, _mm512_set1_epi32(0xff)), grid->strata, 4);
        random24 = _mm512_and_si512(_mm512_add_epi32(random24, offsets), _mm512_set1_epi32(0xffffff));
    }
    return _mm512_cmplt_epi32_mask(random24, _mm512_cvttps_epi32(_mm512_mul_ps(fraction, _mm512_set1_ps(16777216.0f))));
}

/* Codes of sixteen values: the operations of quant_math.h in the same order. */
PART __m512i codes_of(const iq_grid_t *grid, __m512 values, const __m512i *words)
{
    const __m512 low = _mm512_set1_ps((float)grid->low), high = _mm512_set1_ps((float)grid->high);
    __m512 y = _mm512_add_ps(_mm512_mul_ps(values, _mm512_set1_ps(grid->inverse)), _mm512_set1_ps(grid->shift));
    y = _mm512_min_ps(_mm512_max_ps(y, low), high); /* max(NaN, low) is low */
    __m512i whole = _mm512_cvt_roundps_epi32(y, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    /* Not reduce_ps: that would round the difference down too, and quant_math.h rounds it to nearest. */
    __m512 fraction = _mm512_sub_ps(y, _mm512_cvtepi32_ps(whole));
    __m512i code = _mm512_sub_epi32(whole, _mm512_set1_epi32(grid->low));
    return _mm512_mask_sub_epi32(code, goes_up(grid, fraction, words), code, _mm512_set1_epi32(-1));
}

PART void quantize_block(const iq_grid_t *grid, uint64_t first, const iq_f32_any_t *src, uint8_t *codes)
{
    __m512i words[8], code[8];
    iq_ask_for(src + AHEAD, BLOCK);
    if (grid->stochastic)
        draw_vectors(grid, first / 4, 4, words);
#pragma GCC unroll 8
    for (int v = 0; v < 8; v++)
        code[v] = codes_of(grid, _mm512_loadu_ps(src + 16 * v), grid->stochastic ? &words[v] : NULL);
#pragma GCC unroll 2
    for (int v = 0; v < 8; v += 4) {
        __m512i bytes = _mm512_packus_epi16(_mm512_packus_epi32(code[v], code[v + 1]), _mm512_packus_epi32(code[v + 2], code[v + 3]));
        /* Packing works within 128 bits: four codes of each vector in turn. */
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        _mm512_storeu_si512(codes + 16 * v, _mm512_permutexvar_epi32(order, bytes));
    }
}

/* Codes of the first elements, whole blocks; how many they are is returned. */
TARGET static size_t quantize_many(const iq_grid_t *grid, uint64_t first, const iq_f32_any_t *src, size_t count, uint8_t *codes)
{
    const iq_grid_t plain = {.inverse = grid->inverse, .shift = grid->shift, .low = grid->low, .high = grid->high};
    const iq_grid_t random = {.inverse = grid->inverse, .shift = grid->shift, .low = grid->low, .high = grid->high, .stochastic = true,
                              .stream = grid->stream, .rank = grid->rank, .seed = grid->seed, .call = grid->call};
    size_t i = 0;
    if (!grid->stochastic) {
        for (; i + BLOCK <= count; i += BLOCK)
            quantize_block(&plain, first + i, src + i, codes + i);
    } else if (first % 4 == 0 && grid->strata == NULL) {
        for (; i + BLOCK <= count; i += BLOCK)
            quantize_block(&random, first + i, src + i, codes + i);
    } else if (first % 4 == 0) {
        for (; i + BLOCK <= count; i += BLOCK)
            quantize_block(grid, first + i, src + i, codes + i);
    }
    return i;
}

/* ---- packing ---- */

/* Packs the first codes; how many they are is returned. `bytes`: room at `out`. Neighbours become one, three times: twice by multiplying
 * the upper one and adding, then by a shift. Sixteen bytes are written for 2 * width. */
TARGET static size_t pack_many(const uint8_t *codes, size_t count, unsigned width, unsigned char *out, size_t bytes)
{
    const __m512i two = _mm512_set1_epi16((short)(1u | 1u << width << 8)), four = _mm512_set1_epi32((int)(1u | 1u << 2 * width << 16));
    const __m512i lower = _mm512_set1_epi64((long long)((1ull << 4 * width) - 1)), by4 = _mm512_set1_epi64((long long)(32 - 4 * width));
    /* The first `width` bytes of both halves side by side: byte k comes from k, from `width` on from k + 8 - width. */
    const __m128i place = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), own = _mm_set1_epi8((char)width);
    const __mmask16 second = _mm_cmpge_epi8_mask(place, own);
    const __m512i order = _mm512_broadcast_i32x4(_mm_mask_add_epi8(place, second, place, _mm_set1_epi8((char)(8 - width))));
    size_t i = 0, at = 0;
    if (width == 8) {
        memcpy(out, codes, count / 8 * 8);
        return count / 8 * 8;
    }
    if (width == 4) {
        for (; i + 64 <= count; i += 64)
            _mm256_storeu_si256((__m256i *)(void *)(out + i / 2),
                                _mm512_cvtepi16_epi8(_mm512_maddubs_epi16(two, _mm512_loadu_si512(codes + i))));
        return i;
    }
    for (; i + 64 <= count && at + 6 * width + 16 <= bytes; i += 64, at += 8 * width) {
        __m512i lanes = _mm512_madd_epi16(_mm512_maddubs_epi16(two, _mm512_loadu_si512(codes + i)), four);
        lanes = _mm512_ternarylogic_epi64(lower, lanes, _mm512_srlv_epi64(lanes, by4), 0xca); /* lower ? lanes : shifted */
        lanes = _mm512_shuffle_epi8(lanes, order);
        _mm_storeu_si128((__m128i *)(out + at), _mm512_castsi512_si128(lanes));
        _mm_storeu_si128((__m128i *)(out + at + 2 * width), _mm512_extracti32x4_epi32(lanes, 1));
        _mm_storeu_si128((__m128i *)(out + at + 4 * width), _mm512_extracti32x4_epi32(lanes, 2));
        _mm_storeu_si128((__m128i *)(out + at + 6 * width), _mm512_extracti32x4_epi32(lanes, 3));
    }
    return i;
}

#endif
