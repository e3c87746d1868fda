/* SPDX-License-Identifier: Apache-2.0 */
/* AVX-512 and BMI2: as avx2.c, with vectors of sixteen. */

#define ROW iq_kernels_avx512
#define ROW_NAME "avx512"
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,bmi2")))

#include "kernels/cpu/avx512_parts.h"

#include <string.h>

#define QUANTIZE_MANY quantize_many
#define PACK_MANY pack_many

/* The `width` lower bits of every byte. */
#define BYTE_MASK(width) ((0xffull >> (8 - (width))) * 0x0101010101010101ull)
#define SQUEEZE(group, width) _pext_u64(group, BYTE_MASK(width))
#define SPREAD(group, width) _pdep_u64(group, BYTE_MASK(width))

static bool usable(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("bmi2");
}

#define VECTOR __m512
#define REGISTER "v"
#define LANES 16
#define LOAD(from) _mm512_loadu_ps(from)
#define STORE(to, vector) _mm512_storeu_ps(to, vector)
#define STREAM(to, vector) _mm512_stream_ps((float *)(to), vector)
#define ADD _mm512_add_ps
#define DIVIDE _mm512_div_ps
#define SPREAD_FLOAT _mm512_set1_ps
#include "kernels/cpu/sum_body.h"

#define BITS __m512i
#define LOAD_BITS(from) _mm512_loadu_si512(from)
#define STORE_BITS(to, bits) _mm512_storeu_si512(to, bits)
#define REPEAT(from) _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(const void *)(from)))
#define SHUFFLE _mm512_shuffle_epi8
#define SHIFT_DOWN _mm512_srlv_epi32
#define AND _mm512_and_si512
#define MINUS _mm512_sub_epi32
#define MOST_OF _mm512_max_epu32
#define SPREAD_BITS _mm512_set1_epi32
#define TO_FLOAT _mm512_cvtepi32_ps
#define MULTIPLY _mm512_mul_ps
#include "kernels/cpu/decode_body.h"

#include "kernels/cpu/body.h"
