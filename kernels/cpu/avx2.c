/* SPDX-License-Identifier: Apache-2.0 */
/* AVX2 and BMI2: vectors of eight, packing in one instruction for eight codes. */
#include "kernels/cpu/rows.h"

#include <immintrin.h>

#define ROW iq_kernels_avx2
#define ROW_NAME "avx2"
#define TARGET __attribute__((target("avx2,bmi2")))

/* The `width` lower bits of every byte. */
#define BYTE_MASK(width) ((0xffull >> (8 - (width))) * 0x0101010101010101ull)
#define SQUEEZE(group, width) _pext_u64(group, BYTE_MASK(width))
#define SPREAD(group, width) _pdep_u64(group, BYTE_MASK(width))

static bool usable(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2"); }

/* Philox on 4 blocks at once, each in the lower half of a 64-bit lane: the multiplication takes just those halves and leaves high
 * and low word together, and what is in the upper halves never matters. */
TARGET static void draw_tile(const iq_grid_t *grid, uint64_t quad, uint32_t quads, uint32_t *random)
{
    const __m256i multiplier0 = _mm256_set1_epi64x(0xD2511F53), multiplier1 = _mm256_set1_epi64x(0xCD9E8D57);
    const __m256i low = _mm256_set1_epi64x(0xffffffff), tag = _mm256_set1_epi64x((grid->stream << 8) | (grid->rank << 16));
    __m256i key0[10], key1[10];
    for (uint32_t round = 0; round < 10; round++) {
        key0[round] = _mm256_set1_epi64x((uint32_t)grid->seed + round * 0x9E3779B9u);
        key1[round] = _mm256_set1_epi64x((uint32_t)(grid->seed >> 32) + round * 0xBB67AE85u);
    }
    for (uint32_t block = 0; block < quads; block += 4) {
        __m256i c0 = _mm256_add_epi64(_mm256_set1_epi64x((long long)quad + block), _mm256_setr_epi64x(0, 1, 2, 3));
        __m256i c1 = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi64(c0, 32), _mm256_set1_epi64x(0xff)), tag);
        __m256i c2 = _mm256_set1_epi64x((long long)(grid->call & 0xffffffff)),
                c3 = _mm256_set1_epi64x((long long)(grid->call >> 32));
        for (int round = 0; round < 10; round++) {
            __m256i product0 = _mm256_mul_epu32(multiplier0, c0), product1 = _mm256_mul_epu32(multiplier1, c2);
            c0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(product1, 32), c1), key0[round]);
            c2 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(product0, 32), c3), key1[round]);
            c1 = product1;
            c3 = product0;
        }
        __m256i first = _mm256_or_si256(_mm256_and_si256(c0, low), _mm256_slli_epi64(c1, 32));
        __m256i second = _mm256_or_si256(_mm256_and_si256(c2, low), _mm256_slli_epi64(c3, 32));
        __m256i even = _mm256_unpacklo_epi64(first, second); /* blocks 0 and 2 */
        __m256i odd = _mm256_unpackhi_epi64(first, second);
        _mm256_storeu_si256((__m256i *)(random + 4 * block), _mm256_permute2x128_si256(even, odd, 0x20));
        _mm256_storeu_si256((__m256i *)(random + 4 * block + 8), _mm256_permute2x128_si256(even, odd, 0x31));
    }
}

#include "kernels/cpu/body.h"
