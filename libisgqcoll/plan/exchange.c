/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exchange, for small allreduces: everybody sends its whole contribution to everybody and adds all of them in rank order. One
 * round instead of two, and the same bits as direct where the result is not rounded again.
 */
#include "plan/plan_build.h"

#include "base/status.h"

isgq_result_t iq_build_allreduce_exchange(const iq_plan_request_t *request, iq_plan_t *plan)
{
    unsigned late = iq_plan_slots(request) - 1;
    IQ_TRY(iq_plan_begin(plan, request, "exchange", IQ_ALLREDUCE, 1));
    iq_plan_loop(plan, plan->nranks - 1, 0);
    iq_plan_step(plan, (iq_step_t){.kind = IQ_STEP_SEND_OWN, .peer = iq_ahead(1), .parts = 1});
    iq_plan_loop(plan, plan->nranks, late);
    iq_plan_step(plan, (iq_step_t){.kind = IQ_STEP_REDUCE, .peer = iq_in_order(), .parts = 1, .parts_per_trip = 1});
    iq_plan_loop(plan, 1, late);
    iq_plan_step(plan, (iq_step_t){.kind = IQ_STEP_DELIVER});
    iq_plan_end(plan);
    return ISGQ_SUCCESS;
}
