/* SPDX-License-Identifier: Apache-2.0 */
/* Offsets of one rank for stratified rounding: see strata.h. */
#include "codec/strata.h"

#include "kernels/philox.h"

/*
 * Fisher and Yates swap entry i with a random entry j <= i, for i = N-1 down to 1. Only where one rank goes is wanted, so only
 * that is followed: no memory for the permutation.
 */
void iq_strata_fill(uint64_t key, int nranks, int rank, uint32_t strata[IQ_STRATA])
{
    for (uint32_t s = 0; s < IQ_STRATA; s++) {
        uint32_t place = (uint32_t)rank;
        for (uint32_t i = (uint32_t)nranks - 1; i > 0; i--) {
            iq_philox_block_t block = iq_draw(key, 0, IQ_STREAM_STRATA, s, 4 * (uint64_t)i);
            uint32_t j = (uint32_t)(((uint64_t)block.word[0] * (i + 1)) >> 32);
            place = place == i ? j : place == j ? i : place;
        }
        strata[s] = (uint32_t)(((uint64_t)place << 24) / (uint32_t)nranks);
    }
}
