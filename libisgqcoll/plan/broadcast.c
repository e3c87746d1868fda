/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Broadcast: the root sends to all (direct), or chunks run down the chain root, root + 1, ..., root - 1. The root passes its own
 * tensor through the codec too, so that it ends with the bits that everybody gets.
 */
#include "plan/plan_build.h"

#include "base/status.h"

isgq_result_t iq_build_broadcast_direct(const iq_plan_request_t *request, iq_plan_t *plan)
{
    IQ_TRY(iq_plan_begin(plan, request, "direct", IQ_BROADCAST, 1));
    if (plan->rank == plan->root) {
        iq_plan_loop_own(plan, 0, (iq_place_t){0}, IQ_STEP_FINISH);
        iq_plan_loop(plan, plan->nranks - 1, 0);
        iq_plan_step(plan, (iq_step_t){.kind = IQ_STEP_SEND_RESULT, .peer = iq_ahead(1)});
    } else {
        iq_plan_loop(plan, 1, 0);
        iq_plan_step(plan, (iq_step_t){.kind = IQ_STEP_RECV_RESULT, .peer = iq_fixed(plan->root)});
    }
    iq_plan_end(plan);
    return ISGQ_SUCCESS;
}

isgq_result_t iq_build_broadcast_chain(const iq_plan_request_t *request, iq_plan_t *plan)
{
    IQ_TRY(iq_plan_begin(plan, request, "chain", IQ_BROADCAST, 1));
    int position = (plan->rank - plan->root + plan->nranks) % plan->nranks;
    bool is_last = position == plan->nranks - 1;
    if (position == 0) {
        iq_plan_loop_own(plan, 0, (iq_place_t){0}, IQ_STEP_FINISH);
        if (!is_last)
            iq_plan_step(plan, (iq_step_t){.kind = IQ_STEP_SEND_RESULT, .peer = iq_next(1)});
    } else {
        iq_step_kind_t kind = is_last ? IQ_STEP_RECV_RESULT : IQ_STEP_FORWARD;
        iq_plan_loop(plan, 1, 0);
        iq_plan_step(plan, (iq_step_t){.kind = (uint8_t)kind, .peer = iq_prev(1), .to = is_last ? (iq_place_t){0} : iq_next(1)});
    }
    iq_plan_end(plan);
    if (request->rounds)
        iq_plan_stagger_rounds(plan, position == 0 ? 0 : position - 1); /* it receives what its neighbour sends in that round */
    return ISGQ_SUCCESS;
}
