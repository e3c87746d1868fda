/* SPDX-License-Identifier: Apache-2.0 */
/* Groups of the plan simulator: entering one, crossing of messages, leaving it. */
#include "support/plan_sim_rounds.h"

#include "base/util.h"

#include <stdarg.h>
#include <stdio.h>

__attribute__((format(printf, 2, 3))) static void fail(iq_sim_rounds_t *rounds, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (rounds->error[0] == '\0')
        vsnprintf(rounds->error, sizeof(rounds->error), format, args);
    va_end(args);
}

static bool receives(const iq_plan_t *plan, const iq_action_t *action)
{
    static const bool kinds[IQ_STEP_KIND_COUNT] = {
        [IQ_STEP_REDUCE] = true,   [IQ_STEP_RECV_RESULT] = true, [IQ_STEP_HOP] = true,
        [IQ_STEP_LAST_HOP] = true, [IQ_STEP_FORWARD] = true,     [IQ_STEP_AWAIT] = true,
    };
    return kinds[action->kind] && action->peer != plan->rank;
}

static bool sends(const iq_action_t *action)
{
    return action->kind == IQ_STEP_SEND_OWN || action->kind == IQ_STEP_SEND_RESULT || action->kind == IQ_STEP_SIGNAL || action->to >= 0;
}

/* What the rank receives in its next round: of this action and those that follow. */
static void look_ahead(iq_sim_rounds_t *rounds, int rank, const iq_action_t *action, iq_plan_cursor_t cursor)
{
    const iq_plan_t *plan = &rounds->plans[rank];
    uint32_t round = rounds->ranks[rank].next;
    iq_action_t ahead = {0};
    if (action == NULL)
        return;
    ahead = *action;
    do {
        if (!receives(plan, &ahead))
            continue;
        if (ahead.receive_round < round)
            fail(rounds, "receives in round %u when %u is next", ahead.receive_round, round);
        if (ahead.receive_round != round || ahead.peer < 0 || ahead.peer >= rounds->nranks)
            return;
        rounds->pairs[ahead.peer][rank].wanted++;
    } while (iq_plan_next(plan, &cursor, &ahead));
}

static void enter(iq_sim_rounds_t *rounds, int rank, const iq_action_t *action, iq_plan_cursor_t cursor)
{
    for (int peer = 0; peer < rounds->nranks; peer++) {
        iq_sim_pair_t *out = &rounds->pairs[rank][peer];
        if (rounds->pairs[peer][rank].arrived > 0)
            fail(rounds, "begins round %u with a message from %d unread", rounds->ranks[rank].next, peer);
        out->offered = out->posted;
        out->posted = 0;
        rounds->peak = (unsigned)iq_max(rounds->peak, out->offered);
    }
    look_ahead(rounds, rank, action, cursor);
    rounds->ranks[rank].in_group = true;
}

/* What can cross from `from` to `to` does. */
static void cross(iq_sim_rounds_t *rounds, int from, int to)
{
    iq_sim_pair_t *pair = &rounds->pairs[from][to];
    while (pair->offered > 0 && pair->wanted > 0) {
        if (rounds->ranks[from].next != rounds->ranks[to].next)
            fail(rounds, "a message from %d in its round %u meets %d in round %u", from, rounds->ranks[from].next, to,
                 rounds->ranks[to].next);
        pair->offered--;
        pair->wanted--;
        pair->arrived++;
    }
}

/* True when the rank may leave its group. */
static bool is_complete(iq_sim_rounds_t *rounds, int rank)
{
    bool complete = true;
    for (int peer = 0; peer < rounds->nranks; peer++) {
        cross(rounds, rank, peer);
        cross(rounds, peer, rank);
        complete = complete && rounds->pairs[rank][peer].offered == 0 && rounds->pairs[peer][rank].wanted == 0;
    }
    return complete;
}

static bool has_posted(const iq_sim_rounds_t *rounds, int rank)
{
    unsigned posted = 0;
    for (int peer = 0; peer < rounds->nranks; peer++)
        posted += rounds->pairs[rank][peer].posted;
    return posted > 0;
}

bool iq_sim_rounds_reach(iq_sim_rounds_t *rounds, int rank, const iq_action_t *action, iq_plan_cursor_t cursor, bool *moved)
{
    uint32_t target = rounds->ranks[rank].next;
    if (action == NULL)
        target += has_posted(rounds, rank) || rounds->ranks[rank].in_group;
    else if (receives(&rounds->plans[rank], action))
        target = action->receive_round + 1;
    else if (sends(action))
        target = action->send_round;
    while (rounds->ranks[rank].next < target && rounds->error[0] == '\0') {
        if (!rounds->ranks[rank].in_group) {
            enter(rounds, rank, action, cursor);
            *moved = true;
        }
        if (!is_complete(rounds, rank))
            return false;
        rounds->ranks[rank].in_group = false;
        rounds->ranks[rank].next++;
        *moved = true;
    }
    return rounds->error[0] == '\0';
}

void iq_sim_rounds_sent(iq_sim_rounds_t *rounds, int rank, int to, uint32_t round)
{
    if (round != rounds->ranks[rank].next)
        fail(rounds, "sends in round %u when %u is next", round, rounds->ranks[rank].next);
    rounds->pairs[rank][to].posted++;
}

bool iq_sim_rounds_take(iq_sim_rounds_t *rounds, int from, int rank)
{
    if (rounds->pairs[from][rank].arrived == 0)
        return false;
    rounds->pairs[from][rank].arrived--;
    return true;
}
