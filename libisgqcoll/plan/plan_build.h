/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What builders write plans with. A builder reads like the algorithm: begin, then loops with their steps, then end.
 *
 *     IQ_TRY(iq_plan_begin(plan, request, "direct", IQ_ALLREDUCE, request->nranks));
 *     iq_plan_loop(plan, others, lag);
 *     iq_plan_step(plan, (iq_step_t){.kind = IQ_STEP_SEND_OWN, .peer = iq_ahead(1), .block = iq_ahead(1), .parts = 1});
 *     iq_plan_end(plan);
 */
#ifndef ISGQ_PLAN_PLAN_BUILD_H
#define ISGQ_PLAN_PLAN_BUILD_H

#include "plan/plan.h"

static inline iq_place_t iq_in_order(void) { return (iq_place_t){IQ_RULE_INDEX, 0}; }
static inline iq_place_t iq_ahead(int arg) { return (iq_place_t){IQ_RULE_AHEAD, (int16_t)arg}; }
static inline iq_place_t iq_behind(int arg) { return (iq_place_t){IQ_RULE_BEHIND, (int16_t)arg}; }
static inline iq_place_t iq_next(int arg) { return (iq_place_t){IQ_RULE_NEXT, (int16_t)arg}; }
static inline iq_place_t iq_prev(int arg) { return (iq_place_t){IQ_RULE_PREV, (int16_t)arg}; }
static inline iq_place_t iq_fixed(int arg) { return (iq_place_t){IQ_RULE_FIXED, (int16_t)arg}; }
static inline iq_place_t iq_self(void) { return iq_next(0); }

/* Checks the request and cuts the tensor into `nblocks` blocks; no loops yet. */
isgq_result_t iq_plan_begin(iq_plan_t *plan, const iq_plan_request_t *request, const char *algorithm, iq_collective_t collective,
                            int nblocks);

/* Messages a link holds, as the request says: 2..IQ_PLAN_USEFUL_SLOTS. More slots than that buy nothing. A plan of rounds has 1, which
 * is no room to run ahead: every lag is 0. */
#define IQ_PLAN_USEFUL_SLOTS 8
unsigned iq_plan_slots(const iq_plan_request_t *request);

/* Blocks of a reduce_scatter or allgather: those of ranks beyond are empty. */
int iq_plan_lanes(const iq_plan_request_t *request);

/* Chunks that travel side by side; before iq_plan_end. */
void iq_plan_set_group(iq_plan_t *plan, unsigned group);

/* Opens a loop; steps that follow belong to it. With no trips it will do nothing. */
void iq_plan_loop(iq_plan_t *plan, int trips, unsigned lag);
void iq_plan_step(iq_plan_t *plan, iq_step_t step);

/* A loop that takes this rank's own span alone and finishes it: FINISH or DELIVER. More steps may follow. */
void iq_plan_loop_own(iq_plan_t *plan, unsigned lag, iq_place_t block, iq_step_kind_t last);

void iq_plan_end(iq_plan_t *plan);

/* Rounds are numbered at the end. Builders whose ranks begin at different times then say in which round this one does, and that an
 * iteration begins one round after the other although it takes more. */
void iq_plan_number_rounds(iq_plan_t *plan);
void iq_plan_stagger_rounds(iq_plan_t *plan, int first);

/* The rounds of the action that the walk makes at the cursor, where it has messages. */
void iq_plan_find_rounds(const iq_plan_t *plan, const iq_plan_cursor_t *cursor, iq_action_t *action);

/* For texts that say why: 65536 is "64 KiB". */
void iq_format_bytes(double bytes, char *text, size_t text_bytes);

/* A name of any algorithm or factored way. */
bool iq_algorithm_known(const char *name);

/* The builders, one per row of iq_algorithms. */
isgq_result_t iq_build_allreduce_direct(const iq_plan_request_t *request, iq_plan_t *plan);
isgq_result_t iq_build_allreduce_ring(const iq_plan_request_t *request, iq_plan_t *plan);
isgq_result_t iq_build_allreduce_exchange(const iq_plan_request_t *request, iq_plan_t *plan);
isgq_result_t iq_build_allreduce_board(const iq_plan_request_t *request, iq_plan_t *plan);
isgq_result_t iq_build_reduce_scatter_direct(const iq_plan_request_t *request, iq_plan_t *plan);
isgq_result_t iq_build_reduce_scatter_ring(const iq_plan_request_t *request, iq_plan_t *plan);
isgq_result_t iq_build_allgather_direct(const iq_plan_request_t *request, iq_plan_t *plan);
isgq_result_t iq_build_allgather_ring(const iq_plan_request_t *request, iq_plan_t *plan);
isgq_result_t iq_build_alltoall_direct(const iq_plan_request_t *request, iq_plan_t *plan);
isgq_result_t iq_build_broadcast_direct(const iq_plan_request_t *request, iq_plan_t *plan);
isgq_result_t iq_build_broadcast_chain(const iq_plan_request_t *request, iq_plan_t *plan);
isgq_result_t iq_build_barrier_dissemination(const iq_plan_request_t *request, iq_plan_t *plan);

#endif
