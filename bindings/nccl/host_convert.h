/* SPDX-License-Identifier: Apache-2.0 */
/* Types that the library does not sum by itself: 8-bit floats, and inputs times a scalar. */
#ifndef ISGQ_NCCL_HOST_CONVERT_H
#define ISGQ_NCCL_HOST_CONVERT_H

#include "bindings/nccl/host_comm.h"

/* 8-bit floats (HOST_FP8_*) to floats and back, nearest even; e4m3 has no infinities: what is too large becomes NaN there. */
void iq_host_from_fp8(int type, const uint8_t *from, float *to, size_t count);
void iq_host_to_fp8(int type, const float *from, uint8_t *to, size_t count);

/* to[i] = scalar * from[i] in the arithmetic of `type`; 16-bit floats are multiplied as floats and rounded once. May be in place. */
void iq_host_scale(int type, const iq_host_scalar_t *scalar, const void *from, void *to, size_t count);

#endif
