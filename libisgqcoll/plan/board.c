/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Board, for ranks that share memory: everybody writes its contribution once, where all others read it, and adds all of them in rank order
 * straight to its output. The same bits as direct where the result is not rounded again.
 *
 * A rank writes S - 1 chunks ahead of its sums: ranks that share a core then work that long before they have to wait for each other.
 */
#include "plan/plan_build.h"

#include "base/status.h"

isgq_result_t iq_build_allreduce_board(const iq_plan_request_t *request, iq_plan_t *plan)
{
    IQ_TRY(iq_plan_begin(plan, request, "board", IQ_ALLREDUCE, 1));
    iq_plan_loop(plan, request->nranks > 1, 0);
    iq_plan_step(plan, (iq_step_t){.kind = IQ_STEP_POST, .parts = 1});
    iq_plan_loop(plan, 1, iq_plan_slots(request) - 1);
    iq_plan_step(plan, (iq_step_t){.kind = IQ_STEP_SUM, .parts = (int16_t)request->nranks});
    iq_plan_end(plan);
    return ISGQ_SUCCESS;
}
