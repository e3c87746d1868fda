/* SPDX-License-Identifier: Apache-2.0 */
/* Real-valued inputs for lossy calls, their exact sums, and one call of each kind from a short description. */
#ifndef ISGQ_TEST_SUPPORT_SAMPLES_H
#define ISGQ_TEST_SUPPORT_SAMPLES_H

#include "support/numbers.h"
#include "support/ranks.h"

/* Gradient-like values: every 64 elements have a size of their own, a quarter is exactly zero. Rounded to the type. */
double iq_sample(isgq_data_type_t type, uint64_t salt, int rank, size_t index);
void iq_samples_fill(isgq_data_type_t type, uint64_t salt, int rank, size_t first, size_t count, void *dst);

/* The sum (or mean) over ranks in double. */
double iq_samples_sum(isgq_data_type_t type, isgq_red_op_t op, uint64_t salt, int nranks, size_t index);

/* Largest magnitude over ranks and elements first..first+count-1. */
double iq_samples_max(isgq_data_type_t type, uint64_t salt, int nranks, size_t first, size_t count);

/* A quantizer, or the test fails. */
isgq_quantizer_t iq_quantizer(iq_rank_t *rank, const char *text);

/* An allreduce of samples into `out`, finished. NULL algorithm: the library's choice. */
void iq_allreduce_samples(iq_rank_t *rank, isgq_quantizer_t quantizer, isgq_data_type_t type, isgq_red_op_t op, uint64_t salt,
                          size_t count, const char *algorithm, void *out);

#endif
