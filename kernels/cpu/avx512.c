/* SPDX-License-Identifier: Apache-2.0 */
/* AVX-512 and BMI2: as avx2.c, with vectors of sixteen. */
#include "kernels/cpu/rows.h"

#include <immintrin.h>

#define ROW iq_kernels_avx512
#define ROW_NAME "avx512"
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,bmi2")))

/* The `width` lower bits of every byte. */
#define BYTE_MASK(width) ((0xffull >> (8 - (width))) * 0x0101010101010101ull)
#define SQUEEZE(group, width) _pext_u64(group, BYTE_MASK(width))
#define SPREAD(group, width) _pdep_u64(group, BYTE_MASK(width))

static bool usable(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("bmi2");
}

/* Philox on 8 blocks at once, each in the lower half of a 64-bit lane: the multiplication takes just those halves and leaves high
 * and low word together, and what is in the upper halves never matters. */
TARGET static void draw_tile(const iq_grid_t *grid, uint64_t quad, uint32_t quads, uint32_t *random)
{
    const __m512i multiplier0 = _mm512_set1_epi64(0xD2511F53), multiplier1 = _mm512_set1_epi64(0xCD9E8D57);
    const __m512i low = _mm512_set1_epi64(0xffffffff), tag = _mm512_set1_epi64((grid->stream << 8) | (grid->rank << 16));
    __m512i key0[10], key1[10];
    for (uint32_t round = 0; round < 10; round++) {
        key0[round] = _mm512_set1_epi64((uint32_t)grid->seed + round * 0x9E3779B9u);
        key1[round] = _mm512_set1_epi64((uint32_t)(grid->seed >> 32) + round * 0xBB67AE85u);
    }
    for (uint32_t block = 0; block < quads; block += 8) {
        __m512i c0 = _mm512_add_epi64(_mm512_set1_epi64((long long)quad + block), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
        __m512i c1 = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi64(c0, 32), _mm512_set1_epi64(0xff)), tag);
        __m512i c2 = _mm512_set1_epi64((long long)(grid->call & 0xffffffff)),
                c3 = _mm512_set1_epi64((long long)(grid->call >> 32));
        for (int round = 0; round < 10; round++) {
            __m512i product0 = _mm512_mul_epu32(multiplier0, c0), product1 = _mm512_mul_epu32(multiplier1, c2);
            c0 = _mm512_xor_si512(_mm512_xor_si512(_mm512_srli_epi64(product1, 32), c1), key0[round]);
            c2 = _mm512_xor_si512(_mm512_xor_si512(_mm512_srli_epi64(product0, 32), c3), key1[round]);
            c1 = product1;
            c3 = product0;
        }
        __m512i first = _mm512_or_si512(_mm512_and_si512(c0, low), _mm512_slli_epi64(c1, 32));
        __m512i second = _mm512_or_si512(_mm512_and_si512(c2, low), _mm512_slli_epi64(c3, 32));
        __m512i even = _mm512_unpacklo_epi64(first, second); /* blocks 0, 2, 4 and 6 */
        __m512i odd = _mm512_unpackhi_epi64(first, second);
        const __m512i lower = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), upper = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
        _mm512_storeu_si512(random + 4 * block, _mm512_permutex2var_epi64(even, lower, odd));
        _mm512_storeu_si512(random + 4 * block + 16, _mm512_permutex2var_epi64(even, upper, odd));
    }
}

#include "kernels/cpu/body.h"
