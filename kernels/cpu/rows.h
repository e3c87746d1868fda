/* SPDX-License-Identifier: Apache-2.0 */
/* The rows of this folder, for kernels.c, and what their files share. */
#ifndef ISGQ_KERNELS_CPU_ROWS_H
#define ISGQ_KERNELS_CPU_ROWS_H

#include "kernels/kernels.h"

/* A row's draw_tile(grid, quad, quads, random) makes the random words of elements 4 * quad .. 4 * (quad + quads) - 1, or more,
 * up to a tile. */
enum { QUADS = 64, TILE = 4 * QUADS };

extern const iq_kernels_t iq_kernels_portable;
extern const iq_kernels_t iq_kernels_avx2;   /* x86-64 builds only */
extern const iq_kernels_t iq_kernels_avx512; /* x86-64 builds only */

#endif
