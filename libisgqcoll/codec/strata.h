/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stratified rounding: all ranks round the same element with random numbers that are spread evenly over [0, 1), one in each N-th
 * part, so that their rounding errors cancel where their values are alike and are as unbiased as ever where they are not.
 *
 * Element e of a call has a common number v in [0, 1) and one of IQ_STRATA permutations of the ranks, both drawn without the rank;
 * rank i rounds with u_i = (v + permutation[i]) / N. Permutations, not cyclic shifts: against those an input can conspire.
 */
#ifndef ISGQ_CODEC_STRATA_H
#define ISGQ_CODEC_STRATA_H

#include "codec/codec.h"

/* This rank's place in each permutation, from the communicator's key: the same permutations on all ranks. 1 <= nranks <= 65536. */
void iq_strata_fill(uint64_t key, int nranks, int rank, uint16_t strata[IQ_STRATA]);

#endif
