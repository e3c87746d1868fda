/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The arithmetic of PowerSGD (Vogels et al., NeurIPS 2019, arXiv:1905.13727): a gradient as a matrix V [rows x columns] is sent as
 * P [rank x rows] and Q [rank x columns], one step of the power method that goes on from the last call's Q:
 *
 *   Q made orthonormal;   P = Q transpose(V), summed over ranks;   P made orthonormal;   Q = P V, summed over ranks;   V ~ transpose(P) Q
 *
 * V lies row by row, P and Q as `rank` vectors one behind the other: the paper's matrices, transposed. Elements of V are worked on in
 * spans that callers cut; what is added to P and Q depends on where a span begins and ends, and on nothing else.
 */
#ifndef ISGQ_CODEC_POWERSGD_H
#define ISGQ_CODEC_POWERSGD_H

#include "kernels/kernels.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IQ_POWERSGD_RANK_MOST 64

/* Is it fewer numbers than the matrix itself? */
bool iq_powersgd_pays(size_t rows, size_t columns, unsigned rank);

/* A vector of zeros, as all of Q is before the first call, gets a random direction: the same on all ranks for one key and call. */
void iq_powersgd_start(uint64_t key, uint64_t call, unsigned number, size_t length, float *vector);

/* Vector `number` to unit length, at right angles to those before it (modified Gram-Schmidt in double, twice). If it depends on them
 * it becomes zero. */
void iq_powersgd_orthonormal(float *vectors, size_t length, unsigned number);

/* Of elements first..first+count-1 of V, which begin at `v`: P += Q transpose(V), and Q += P V. */
void iq_powersgd_left(const iq_f32_any_t *v, size_t rows, size_t columns, unsigned rank, const float *q, size_t first, size_t count,
                      float *p);
void iq_powersgd_right(const iq_f32_any_t *v, size_t rows, size_t columns, unsigned rank, const float *p, size_t first, size_t count,
                       float *q);

/* Elements first..first+count-1 of transpose(P) Q. */
void iq_powersgd_product(const float *p, const float *q, size_t rows, size_t columns, unsigned rank, size_t first, size_t count,
                         float *values);

#endif
