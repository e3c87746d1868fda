/* SPDX-License-Identifier: Apache-2.0 */
/* AVX2 and BMI2: vectors of eight, and packing in one instruction for eight codes. */
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

#include "kernels/cpu/body.h"
