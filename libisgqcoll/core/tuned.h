/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tuning table at work. Rank 0 reads ISGQ_TUNE_TABLE and tells all ranks its numbers in the exchange of settings: whatever files other ranks
 * have, all decide from the same numbers. A table that does not fit is one warning of rank 0's, and no rank has one. Communicators that are split
 * off have their parent's.
 */
#ifndef ISGQ_CORE_TUNED_H
#define ISGQ_CORE_TUNED_H

#include "core/comm.h"
#include "plan/cost.h"

/* On rank 0, when ranks are connected: what it tells. *table is all zero where there is none, or where it was measured elsewhere. Never fails. */
void iq_tuned_load(isgq_comm_t comm, isgqx_tuning_t *table);

/* On every rank: from now on calls are decided by this table, unless it is all zero. */
void iq_tuned_take(isgq_comm_t comm, const isgqx_tuning_t *table);

/* The quantizer of the table that is most like this one: the longest common beginning of their texts, or the first. */
const isgqx_tuned_codec_t *iq_tuned_codec(const isgqx_tuning_t *table, const char *quantizer);

/* A dense tensor of f32 or narrower as the cost model sees it. */
iq_cost_dense_t iq_tuned_describe(const iq_codec_t *codec, isgq_data_type_t datatype, double elements, int contributions);

/* How a dense sum or allgather might run, and what it takes then. */
typedef struct iq_tuned_route {
    bool exact;     /* values as they are, whatever the quantizer */
    bool in_levels; /* an allreduce: hosts first (core/run_levels.c) */
    double seconds;
} iq_tuned_route_t;

/*
 * Only with a table: the route for so many elements. It leaves the first, the codec between all ranks, where another takes so much less time
 * that it is worth other bits. `why` says what was compared, and is left alone where nothing was.
 */
iq_tuned_route_t iq_tuned_choose(isgq_comm_t comm, const iq_codec_t *codec, iq_collective_t collective, isgq_data_type_t datatype, size_t count,
                                 bool may_be_exact, bool may_be_in_levels, char *why, size_t why_bytes);

#endif
