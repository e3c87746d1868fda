/* SPDX-License-Identifier: Apache-2.0 */
/* The rows of this folder, for kernels.c, and what their files share. */
#ifndef ISGQ_KERNELS_CPU_ROWS_H
#define ISGQ_KERNELS_CPU_ROWS_H

#include "kernels/kernels.h"

/* A row's draw_tile(grid, quad, quads, random) makes the random words of elements 4 * quad .. 4 * (quad + quads) - 1, or more,
 * up to a tile. */
enum { QUADS = 64, TILE = 4 * QUADS };

/* Asks for values that will be needed: hardware that looks ahead stops at the end of a page, and knows nothing of what comes after a
 * while of computing. AHEAD was the best of 1 to 16 KiB. Beyond the end it asks in vain, which is allowed. */
enum { AHEAD = 512 };
static inline void iq_ask_for(const iq_f32_any_t *values, size_t count)
{
    for (size_t i = 0; i < count; i += 16)
        __builtin_prefetch((const char *)values + i * sizeof(float), 0);
}

extern const iq_kernels_t iq_kernels_portable;
extern const iq_kernels_t iq_kernels_avx2;   /* x86-64 builds only */
extern const iq_kernels_t iq_kernels_avx512; /* x86-64 builds only */
extern const iq_kernels_t iq_kernels_neon;   /* 64-bit ARM builds only */

#endif
