/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stratified rounding: all ranks round the same element with random numbers that lie evenly in [0, 1), 1/N apart, so that their
 * rounding errors cancel where their values are alike and are as unbiased as ever where they are not.
 *
 * Element e of a call has a common number v in [0, 1) and one of IQ_STRATA permutations of the ranks, both drawn without the
 * rank; rank i rounds with u_i = v + permutation[i] / N, modulo 1. So u_i, taken alone, is as evenly distributed as v, whichever
 * permutations a communicator has. Permutations, not the ranks in their order: against that an input can conspire.
 */
#ifndef ISGQ_CODEC_STRATA_H
#define ISGQ_CODEC_STRATA_H

#include "codec/codec.h"

/* This rank's permutation[rank] / N in units of 2^-24, rounded down, for each permutation, from the communicator's key: the same
 * permutations on all ranks. 1 <= nranks <= 65536. */
void iq_strata_fill(uint64_t key, int nranks, int rank, uint32_t strata[IQ_STRATA]);

/* Those of all ranks, in about the time of one: strata[rank] is what iq_strata_fill says. At most this many ranks. */
enum { IQ_STRATA_KEPT_RANKS = 32 };
void iq_strata_fill_all(uint64_t key, int nranks, uint32_t (*strata)[IQ_STRATA]);

#endif
