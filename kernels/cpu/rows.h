/* SPDX-License-Identifier: Apache-2.0 */
/* The rows of this folder, for kernels.c. */
#ifndef ISGQ_KERNELS_CPU_ROWS_H
#define ISGQ_KERNELS_CPU_ROWS_H

#include "kernels/kernels.h"

extern const iq_kernels_t iq_kernels_portable;
extern const iq_kernels_t iq_kernels_avx2;   /* x86-64 builds only */
extern const iq_kernels_t iq_kernels_avx512; /* x86-64 builds only */

#endif
