/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rounds, for links that hold no message: what is sent in round r is received in round r, and both ends must know r beforehand.
 *
 * A round ends where a rank sends after it received, because what it sends may depend on that: steps that only send share a round
 * until something is received, steps that only receive belong to the round that is on, and a step that passes on what it receives
 * sends it one round later. This looks at loops and steps only, never at spans, so ranks agree also where a block is empty. Each
 * iteration takes the same number of rounds:
 *
 *     allreduce                      direct 2, exchange 1, ring 2 (N - 1)
 *     reduce_scatter and allgather   direct 1, ring N - 1
 *     alltoall                       direct 1
 *     broadcast                      direct 1, chain 1, but there every rank begins a round later than the one before it
 *     barrier                        log2 N
 */
#include "plan/plan_build.h"

/* What a step does to rounds. A sum that starts from own data has no message. */
static const struct {
    bool receives, sends; /* passing on to `to` is sending too */
} kinds[IQ_STEP_KIND_COUNT] = {
    [IQ_STEP_SEND_OWN] = {.sends = true},     [IQ_STEP_REDUCE] = {.receives = true},   [IQ_STEP_SEND_RESULT] = {.sends = true},
    [IQ_STEP_RECV_RESULT] = {.receives = true}, [IQ_STEP_HOP] = {.receives = true},    [IQ_STEP_LAST_HOP] = {.receives = true},
    [IQ_STEP_SEND_PART] = {.sends = true},
    [IQ_STEP_FORWARD] = {.receives = true},   [IQ_STEP_SIGNAL] = {.sends = true},      [IQ_STEP_AWAIT] = {.receives = true},
};

typedef struct progress {
    uint16_t round;
    bool received; /* in this round, since its sends */
} progress_t;

static void number_step(iq_step_t *step, progress_t *at)
{
    bool is_own = step->peer.rule == IQ_RULE_NEXT && step->peer.arg == 0;
    bool receives = kinds[step->kind].receives && !is_own;
    bool sends = kinds[step->kind].sends || step->to.rule != IQ_RULE_NONE;
    if (sends && !receives && at->received)
        *at = (progress_t){.round = (uint16_t)(at->round + 1)};
    step->receive_round = at->round;
    if (sends && receives)
        *at = (progress_t){.round = (uint16_t)(at->round + 1)};
    else if (receives)
        at->received = true;
    step->send_round = at->round;
}

static void number_trip(const iq_loop_t *loop, iq_step_t *steps, progress_t *at)
{
    for (int i = 0; i < loop->nsteps; i++)
        number_step(&steps[i], at);
}

/* From its second trip on, a loop repeats itself: two trips tell all of them. */
static void number_loop(iq_plan_t *plan, iq_loop_t *loop, progress_t *at)
{
    iq_step_t again[IQ_PLAN_MAX_STEPS];
    iq_step_t *steps = &plan->steps[loop->first_step];
    for (int i = 0; i < loop->nsteps; i++)
        again[i] = steps[i];
    number_trip(loop, steps, at);
    if (loop->trips < 2)
        return;
    uint16_t before = at->round;
    number_trip(loop, again, at);
    loop->rounds_per_trip = (uint16_t)(at->round - before);
    at->round = (uint16_t)(at->round + loop->rounds_per_trip * (loop->trips - 2));
}

void iq_plan_number_rounds(iq_plan_t *plan)
{
    progress_t at = {0};
    for (int i = 0; i < plan->nloops; i++)
        number_loop(plan, &plan->loops[i], &at);
    plan->rounds = (uint32_t)at.round + 1;
}

void iq_plan_stagger_rounds(iq_plan_t *plan, int first)
{
    plan->first_round = (uint32_t)first;
    plan->rounds = 1;
}

void iq_plan_find_rounds(const iq_plan_t *plan, const iq_plan_cursor_t *cursor, iq_action_t *action)
{
    const iq_step_t *step = &plan->steps[action->step];
    uint32_t start = plan->first_round + (uint32_t)cursor->t * plan->rounds + cursor->k * plan->loops[cursor->loop].rounds_per_trip;
    if (kinds[step->kind].receives) /* an own contribution too: it may be the first of a sum whose other parts are messages */
        action->receive_round = start + step->receive_round;
    if (kinds[step->kind].sends || action->to >= 0)
        action->send_round = start + step->send_round;
}
