/* SPDX-License-Identifier: Apache-2.0 */
/* Offsets of one rank for stratified rounding: see strata.h. */
#include "codec/strata.h"

#include "kernels/philox.h"

/*
 * Fisher and Yates swap entry i with a random entry j <= i, for i = N-1 down to 1. Only where some ranks go is wanted, so only
 * these are followed: no memory for the permutation.
 */
static void follow(uint64_t key, int nranks, uint32_t s, int nplaces, uint32_t *places)
{
    for (uint32_t i = (uint32_t)nranks - 1; i > 0; i--) {
        iq_philox_block_t block = iq_draw(key, 0, IQ_STREAM_STRATA, s, 4 * (uint64_t)i);
        uint32_t j = (uint32_t)(((uint64_t)block.word[0] * (i + 1)) >> 32);
        for (int k = 0; k < nplaces; k++)
            places[k] = places[k] == i ? j : places[k] == j ? i : places[k];
    }
}

static uint32_t offset_of(uint32_t place, int nranks) { return (uint32_t)(((uint64_t)place << 24) / (uint32_t)nranks); }

void iq_strata_fill(uint64_t key, int nranks, int rank, uint32_t strata[IQ_STRATA])
{
    for (uint32_t s = 0; s < IQ_STRATA; s++) {
        uint32_t place = (uint32_t)rank;
        follow(key, nranks, s, 1, &place);
        strata[s] = offset_of(place, nranks);
    }
}

void iq_strata_fill_all(uint64_t key, int nranks, uint32_t (*strata)[IQ_STRATA])
{
    for (uint32_t s = 0; s < IQ_STRATA; s++) {
        uint32_t places[IQ_STRATA_KEPT_RANKS];
        for (int rank = 0; rank < nranks; rank++)
            places[rank] = (uint32_t)rank;
        follow(key, nranks, s, nranks, places);
        for (int rank = 0; rank < nranks; rank++)
            strata[rank][s] = offset_of(places[rank], nranks);
    }
}
