/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ring algorithms: rank r receives from r - 1 and sends to r + 1 only. The sum of block b starts at rank b + 1, grows by one
 * contribution a hop and ends at rank b, so contributions are added in the order b + 1, b + 2, ..., b. Results then travel the
 * same way round.
 *
 * One plan serves lossless codecs (the plain ring) and integer codecs (partial sums that widen from hop to hop).
 *
 * Overlap: with room for S messages on a link, a group of S/2 chunks travels side by side, so a rank works on one while another
 * is on the wire; the next group starts before the last messages of this one are read. Were all chunks in flight at once, 2(N-1)
 * messages would have to fit on a link.
 */
#include "plan/plan_build.h"

#include "base/status.h"

static isgq_result_t begin(iq_plan_t *plan, const iq_plan_request_t *request, iq_collective_t collective)
{
    IQ_TRY(iq_plan_begin(plan, request, "ring", collective, request->nranks));
    iq_plan_set_group(plan, request->rounds ? 1 : iq_plan_slots(request) / 2);
    return ISGQ_SUCCESS;
}

/* The lag of all loops but those that send own data. In rounds nothing overlaps, so there the loops stand in their natural order. */
static unsigned late(const iq_plan_t *plan) { return plan->rounds == 0; }

static void loop_send_own(iq_plan_t *plan)
{
    iq_plan_loop(plan, 1, 0);
    iq_plan_step(plan, (iq_step_t){.kind = IQ_STEP_SEND_OWN, .peer = iq_next(1), .block = iq_prev(1), .parts = 1});
}

static void loop_hops(iq_plan_t *plan)
{
    iq_plan_loop(plan, plan->nranks - 2, late(plan));
    iq_plan_step(
        plan,
        (iq_step_t){
            .kind = IQ_STEP_HOP, .peer = iq_prev(1), .to = iq_next(1), .block = iq_behind(2), .parts = 2, .parts_per_trip = 1});
}

static void loop_last_hop(iq_plan_t *plan, iq_place_t to)
{
    iq_plan_loop(plan, 1, late(plan));
    iq_plan_step(
        plan,
        (iq_step_t){.kind = IQ_STEP_LAST_HOP, .peer = iq_prev(1), .to = to, .block = iq_self(), .parts = (int16_t)plan->nranks});
}

static void loop_forward(iq_plan_t *plan)
{
    iq_plan_loop(plan, plan->nranks - 2, late(plan));
    iq_plan_step(plan, (iq_step_t){.kind = IQ_STEP_FORWARD, .peer = iq_prev(1), .to = iq_next(1), .block = iq_behind(1)});
}

static void loop_recv_last(iq_plan_t *plan)
{
    iq_plan_loop(plan, 1, late(plan));
    iq_plan_step(plan, (iq_step_t){.kind = IQ_STEP_RECV_RESULT, .peer = iq_prev(1), .block = iq_next(1)});
}

/* Loops of lag 0 stand behind those that receive and send, and before the last that only receive: see above. */
isgq_result_t iq_build_allreduce_ring(const iq_plan_request_t *request, iq_plan_t *plan)
{
    IQ_TRY(begin(plan, request, IQ_ALLREDUCE));
    if (plan->nranks == 1) {
        iq_plan_loop_own(plan, 0, iq_self(), IQ_STEP_FINISH);
    } else {
        if (request->rounds)
            loop_send_own(plan);
        loop_hops(plan);
        loop_last_hop(plan, iq_next(1));
        loop_forward(plan);
        if (!request->rounds)
            loop_send_own(plan);
        loop_recv_last(plan);
    }
    iq_plan_end(plan);
    return ISGQ_SUCCESS;
}

isgq_result_t iq_build_reduce_scatter_ring(const iq_plan_request_t *request, iq_plan_t *plan)
{
    IQ_TRY(begin(plan, request, IQ_REDUCE_SCATTER));
    if (plan->nranks == 1) {
        iq_plan_loop_own(plan, 0, iq_self(), IQ_STEP_DELIVER);
    } else {
        if (request->rounds)
            loop_send_own(plan);
        loop_hops(plan);
        if (!request->rounds)
            loop_send_own(plan);
        loop_last_hop(plan, (iq_place_t){0});
    }
    iq_plan_end(plan);
    return ISGQ_SUCCESS;
}

static void loop_own(iq_plan_t *plan)
{
    iq_plan_loop_own(plan, 0, iq_self(), IQ_STEP_FINISH);
    if (plan->nranks > 1)
        iq_plan_step(plan, (iq_step_t){.kind = IQ_STEP_SEND_RESULT, .peer = iq_next(1), .block = iq_self()});
}

isgq_result_t iq_build_allgather_ring(const iq_plan_request_t *request, iq_plan_t *plan)
{
    IQ_TRY(begin(plan, request, IQ_ALLGATHER));
    if (plan->nranks == 1) {
        loop_own(plan);
    } else if (request->rounds) {
        loop_own(plan);
        loop_forward(plan);
        loop_recv_last(plan);
    } else {
        loop_forward(plan);
        loop_own(plan);
        loop_recv_last(plan);
    }
    iq_plan_end(plan);
    return ISGQ_SUCCESS;
}
