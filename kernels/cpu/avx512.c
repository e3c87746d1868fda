/* SPDX-License-Identifier: Apache-2.0 */
/* AVX-512 and BMI2: as avx2.c, with vectors of sixteen. */

#define ROW iq_kernels_avx512
#define ROW_NAME "avx512"
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,bmi2")))

#include "kernels/cpu/avx512_parts.h"
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

#include "kernels/cpu/body.h"
