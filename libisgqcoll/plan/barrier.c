/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Barrier by dissemination (Hensgen, Finkel, Manber: Two algorithms for barrier synchronization, 1988): in round k signal the
 * rank 2^k ahead and await the one 2^k behind. After ceil(log2 N) rounds word of every rank has reached every rank.
 */
#include "plan/plan_build.h"

#include "base/status.h"
#include "base/util.h"

isgq_result_t iq_build_barrier_dissemination(const iq_plan_request_t *request, iq_plan_t *plan)
{
    IQ_TRY(iq_plan_begin(plan, request, "dissemination", IQ_BARRIER, 1));
    iq_plan_loop(plan, (int)iq_bit_width((uint64_t)plan->nranks - 1), 0);
    iq_plan_step(plan, (iq_step_t){.kind = IQ_STEP_SIGNAL, .peer = {IQ_RULE_LEAP, 0}});
    iq_plan_step(plan, (iq_step_t){.kind = IQ_STEP_AWAIT, .peer = {IQ_RULE_LEAP_BACK, 0}});
    iq_plan_end(plan);
    return ISGQ_SUCCESS;
}
