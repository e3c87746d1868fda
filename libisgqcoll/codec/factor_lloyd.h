/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lloyd-Max levels of a normal density of variance 1, folded to its absolute value, with a bin of its own for zero: what isgq-mse and
 * isgq-mvu begin with. With both signs, `count` levels for each of them.
 *
 * A level is the mean of its bin, and bins end halfway between levels: with the density f(t) = 2 exp(-t^2 / 2) / sqrt(2 pi) and bin k from
 * t(k) to t(k+1), level k = integral of t f over integral of f = (phi(t(k)) - phi(t(k+1))) / (Phi(t(k+1)) - Phi(t(k))); t(0) = 1e-6.
 */
#ifndef ISGQ_CODEC_FACTOR_LLOYD_H
#define ISGQ_CODEC_FACTOR_LLOYD_H

/* What is not larger is 0. */
#define IQ_LLOYD_ZERO 1e-6f

/* 1, 2, 4 or 8 levels, growing. */
const float *iq_lloyd_levels(unsigned count);

#endif
