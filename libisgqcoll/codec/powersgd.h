/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The arithmetic of PowerSGD (Vogels et al., NeurIPS 2019, arXiv:1905.13727): a gradient as a matrix V [rows x columns] is sent as
 * P [rows x rank] and Q [columns x rank], one step of the power method that goes on from the last call's Q:
 *
 *   P = V Q, summed over ranks;   P made orthonormal;   Q = transpose(V) P, summed over ranks;   V ~ P transpose(Q)
 *
 * All matrices are row-major. What is summed over ranks may come from any BLAS; what every rank does for itself with equal inputs
 * (iq_powersgd_orthonormal, _product) has the same bits everywhere.
 */
#ifndef ISGQ_CODEC_POWERSGD_H
#define ISGQ_CODEC_POWERSGD_H

#include <stddef.h>
#include <stdint.h>

#define IQ_POWERSGD_RANK_MOST 64

/* Columns of Q that are zero, all of them before the first call, get random directions: the same on all ranks for one key and call. */
void iq_powersgd_start(uint64_t key, uint64_t call, size_t columns, unsigned rank, float *q);

/* Rows first..first+count-1 of P = V Q. */
void iq_powersgd_left(const float *v, size_t columns, unsigned rank, const float *q, size_t first, size_t count, float *p);

/* Columns of P to unit length and at right angles, in order (modified Gram-Schmidt in double). A column that depends on those before
 * it becomes zero. */
void iq_powersgd_orthonormal(float *p, size_t rows, unsigned rank);

/* Q = transpose(V) P. */
void iq_powersgd_right(const float *v, size_t rows, size_t columns, unsigned rank, const float *p, float *q);

/* Elements first..first+count-1 of P transpose(Q), row by row. */
void iq_powersgd_product(const float *p, const float *q, size_t columns, unsigned rank, size_t first, size_t count, float *values);

#endif
