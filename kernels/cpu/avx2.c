/* SPDX-License-Identifier: Apache-2.0 */
/* AVX2 and BMI2: vectors of eight, packing in one instruction for eight codes. */
#include "kernels/cpu/rows.h"

#include <immintrin.h>
#include <string.h>

#define ROW iq_kernels_avx2
#define ROW_NAME "avx2"
#define TARGET __attribute__((target("avx2,bmi2")))

/* The `width` lower bits of every byte. */
#define BYTE_MASK(width) ((0xffull >> (8 - (width))) * 0x0101010101010101ull)
#define SQUEEZE(group, width) _pext_u64(group, BYTE_MASK(width))
#define SPREAD(group, width) _pdep_u64(group, BYTE_MASK(width))

static bool usable(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2"); }

/* The upper halves of 64-bit lanes in their lower halves. */
TARGET static inline __m256i upper_half(__m256i lanes) { return _mm256_castps_si256(_mm256_movehdup_ps(_mm256_castsi256_ps(lanes))); }

/* Philox on 4 * VECTORS blocks at once, each in the lower half of a 64-bit lane: the multiplication takes just those halves and
 * leaves high and low word together, and what is in the upper halves never matters. Two vectors, because a round waits for the
 * one before. */
enum { VECTORS = 2 };

TARGET static inline void draw_vectors(const iq_grid_t *grid, uint64_t quad, uint32_t *random)
{
    const __m256i multiplier0 = _mm256_set1_epi64x(0xD2511F53), multiplier1 = _mm256_set1_epi64x(0xCD9E8D57);
    const __m256i tag = _mm256_set1_epi64x((grid->stream << 8) | (grid->rank << 16));
    uint32_t key0 = (uint32_t)grid->seed, key1 = (uint32_t)(grid->seed >> 32);
    __m256i c0[VECTORS], c1[VECTORS], c2[VECTORS], c3[VECTORS];
    for (int v = 0; v < VECTORS; v++) {
        c0[v] = _mm256_add_epi64(_mm256_set1_epi64x((long long)quad + 4 * v), _mm256_setr_epi64x(0, 1, 2, 3));
        c1[v] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi64(c0[v], 32), _mm256_set1_epi64x(0xff)), tag);
        c2[v] = _mm256_set1_epi64x((long long)(grid->call & 0xffffffff));
        c3[v] = _mm256_set1_epi64x((long long)(grid->call >> 32));
    }
#pragma GCC unroll 10
    for (int round = 0; round < IQ_PHILOX_ROUNDS; round++) {
        const __m256i keys0 = _mm256_set1_epi64x(key0), keys1 = _mm256_set1_epi64x(key1);
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) {
            __m256i product0 = _mm256_mul_epu32(multiplier0, c0[v]), product1 = _mm256_mul_epu32(multiplier1, c2[v]);
            c0[v] = _mm256_xor_si256(_mm256_xor_si256(upper_half(product1), c1[v]), keys0);
            c2[v] = _mm256_xor_si256(_mm256_xor_si256(upper_half(product0), c3[v]), keys1);
            c1[v] = product1;
            c3[v] = product0;
        }
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    for (int v = 0; v < VECTORS; v++) {
        __m256i first = _mm256_blend_epi32(c0[v], _mm256_slli_epi64(c1[v], 32), 0xaa); /* words 0 and 1 of each block */
        __m256i second = _mm256_blend_epi32(c2[v], _mm256_slli_epi64(c3[v], 32), 0xaa);
        __m256i even = _mm256_unpacklo_epi64(first, second); /* blocks 0 and 2 */
        __m256i odd = _mm256_unpackhi_epi64(first, second);
        _mm256_storeu_si256((__m256i *)(random + 16 * v), _mm256_permute2x128_si256(even, odd, 0x20));
        _mm256_storeu_si256((__m256i *)(random + 16 * v + 8), _mm256_permute2x128_si256(even, odd, 0x31));
    }
}

TARGET static void draw_tile(const iq_grid_t *grid, uint64_t quad, uint32_t quads, uint32_t *random)
{
    for (uint32_t block = 0; block < quads; block += 4 * VECTORS)
        draw_vectors(grid, quad + block, random + 4 * block);
}

#define VECTOR __m256
#define REGISTER "v"
#define LANES 8
#define LOAD(from) _mm256_loadu_ps((const float *)(from))
#define STORE(to, vector) _mm256_storeu_ps((float *)(to), vector)
#define STREAM(to, vector) _mm256_stream_ps((float *)(to), vector)
#define ADD _mm256_add_ps
#define DIVIDE _mm256_div_ps
#define SPREAD_FLOAT _mm256_set1_ps
#include "kernels/cpu/sum_body.h"

#define BITS __m256i
#define LOAD_BITS(from) _mm256_loadu_si256((const __m256i *)(const void *)(from))
#define STORE_BITS(to, bits) _mm256_storeu_si256((__m256i *)(void *)(to), bits)
#define REPEAT(from) _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)(from)))
#define SHUFFLE _mm256_shuffle_epi8
#define SHIFT_DOWN _mm256_srlv_epi32
#define AND _mm256_and_si256
#define MINUS _mm256_sub_epi32
#define MOST_OF _mm256_max_epu32
#define SPREAD_BITS _mm256_set1_epi32
#define TO_FLOAT _mm256_cvtepi32_ps
#define MULTIPLY _mm256_mul_ps
#include "kernels/cpu/decode_body.h"

#include "kernels/cpu/body.h"
