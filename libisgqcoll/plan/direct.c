/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Direct algorithms: every rank owns one block, talks to every other rank, and adds contributions in rank order 0..N-1.
 *
 * Sends go to the next rank first, then to the one after it, so that no rank is everybody's first. Sums wait for rank 0 first
 * all the same: the order in which floats are added is a promise.
 *
 * Overlap: with room for S messages on a link, own chunks travel S/2 chunks ahead of the sums, and results are read S/2 chunks
 * after they were sent. A link then never holds more than S messages, and both kinds leave and arrive in the same order:
 *
 *     S = 2                                       S = 3
 *     t = 0   send own 0                          t = 0   send own 0
 *     t = 1   sum 0, send own 1, read result 0    t = 1   send own 1, sum 0
 *     t = 2   sum 1, send own 2, read result 1    t = 2   send own 2, sum 1, read result 0
 */
#include "plan/plan_build.h"

#include "base/status.h"

static void loop_send_own(iq_plan_t *plan, unsigned lag)
{
    iq_plan_loop(plan, plan->nranks - 1, lag);
    iq_plan_step(plan, (iq_step_t){.kind = IQ_STEP_SEND_OWN, .peer = iq_ahead(1), .block = iq_ahead(1), .parts = 1});
}

/* The owner's part: all contributions to its block in rank order, then the last word. */
static void loop_reduce(iq_plan_t *plan, unsigned lag, iq_step_kind_t last)
{
    iq_plan_loop(plan, plan->nranks, lag);
    iq_plan_step(plan,
                 (iq_step_t){.kind = IQ_STEP_REDUCE, .peer = iq_in_order(), .block = iq_self(), .parts = 1, .parts_per_trip = 1});
    iq_plan_loop(plan, 1, lag);
    iq_plan_step(plan, (iq_step_t){.kind = (uint8_t)last, .block = iq_self()});
}

static void loop_send_result(iq_plan_t *plan, unsigned lag)
{
    iq_plan_loop(plan, plan->nranks - 1, lag);
    iq_plan_step(plan, (iq_step_t){.kind = IQ_STEP_SEND_RESULT, .peer = iq_ahead(1), .block = iq_self()});
}

static void loop_recv_result(iq_plan_t *plan, unsigned lag)
{
    iq_plan_loop(plan, plan->nranks - 1, lag);
    iq_plan_step(plan, (iq_step_t){.kind = IQ_STEP_RECV_RESULT, .peer = iq_behind(1), .block = iq_behind(1)});
}

isgq_result_t iq_build_allreduce_direct(const iq_plan_request_t *request, iq_plan_t *plan)
{
    unsigned slots = iq_plan_slots(request), ahead = slots / 2;
    IQ_TRY(iq_plan_begin(plan, request, "direct", IQ_ALLREDUCE, request->nranks));
    if (slots % 2 == 1)
        loop_send_own(plan, 0);
    loop_reduce(plan, ahead, IQ_STEP_FINISH);
    loop_send_result(plan, ahead);
    if (slots % 2 == 0)
        loop_send_own(plan, 0);
    loop_recv_result(plan, slots - 1);
    iq_plan_end(plan);
    return ISGQ_SUCCESS;
}

isgq_result_t iq_build_reduce_scatter_direct(const iq_plan_request_t *request, iq_plan_t *plan)
{
    IQ_TRY(iq_plan_begin(plan, request, "direct", IQ_REDUCE_SCATTER, iq_plan_lanes(request)));
    loop_send_own(plan, 0);
    loop_reduce(plan, iq_plan_slots(request) - 1, IQ_STEP_DELIVER);
    iq_plan_end(plan);
    return ISGQ_SUCCESS;
}

isgq_result_t iq_build_allgather_direct(const iq_plan_request_t *request, iq_plan_t *plan)
{
    IQ_TRY(iq_plan_begin(plan, request, "direct", IQ_ALLGATHER, iq_plan_lanes(request)));
    iq_plan_loop_own(plan, 0, iq_self(), IQ_STEP_FINISH);
    loop_send_result(plan, 0);
    loop_recv_result(plan, iq_plan_slots(request) - 1);
    iq_plan_end(plan);
    return ISGQ_SUCCESS;
}

/* Nothing is summed: every block of the output is a part of another rank's input. */
isgq_result_t iq_build_alltoall_direct(const iq_plan_request_t *request, iq_plan_t *plan)
{
    IQ_TRY(iq_plan_begin(plan, request, "direct", IQ_ALLTOALL, request->nranks));
    iq_plan_loop_own(plan, 0, iq_self(), IQ_STEP_DELIVER);
    iq_plan_loop(plan, plan->nranks - 1, 0);
    iq_plan_step(plan, (iq_step_t){.kind = IQ_STEP_SEND_PART, .peer = iq_ahead(1), .block = iq_self()});
    loop_recv_result(plan, iq_plan_slots(request) - 1);
    iq_plan_end(plan);
    return ISGQ_SUCCESS;
}
