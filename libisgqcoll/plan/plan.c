/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The walk over a plan, the text of its actions, and the table of all algorithms.
 *
 * iq_plan_next is on the hot path of small calls: it divides nowhere, and a loop that has nothing to do at t is skipped in one
 * test.
 */
#include "plan/plan.h"

#include "base/util.h"
#include "plan/plan_build.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

const iq_algorithm_t iq_algorithms[] = {
    {"direct", IQ_ALLREDUCE, 0, iq_build_allreduce_direct,
     "each rank sums one block, then sends it to all: 2 rounds, (N-1)/N of contribution and result"},
    {"ring", IQ_ALLREDUCE, IQ_NEEDS_PARTIAL_SUMS, iq_build_allreduce_ring,
     "sums travel around the ring, then results: 2(N-1) rounds, neighbours only"},
    {"exchange", IQ_ALLREDUCE, IQ_ROUNDS_LATE, iq_build_allreduce_exchange,
     "all send everything to all, all sum: 1 round, N-1 times the contribution"},
    {"board", IQ_ALLREDUCE, IQ_ROUNDS_LATE | IQ_NEEDS_BOARDS, iq_build_allreduce_board,
     "all write once to memory that all read, all sum: 1 round, the contribution once; ranks of one host"},
    {"levels", IQ_ALLREDUCE, IQ_IN_LEVELS, iq_build_allreduce_direct,
     "sums inside each host as they are, direct between hosts, shared out again inside: only the sums of hosts are quantized"},
    {"direct", IQ_REDUCE_SCATTER, 0, iq_build_reduce_scatter_direct,
     "each rank sums its block: 1 round, (N-1)/N of the contribution"},
    {"ring", IQ_REDUCE_SCATTER, IQ_NEEDS_PARTIAL_SUMS, iq_build_reduce_scatter_ring,
     "sums travel around the ring: N-1 rounds, neighbours only"},
    {"direct", IQ_ALLGATHER, 0, iq_build_allgather_direct, "each rank sends its part to all: 1 round, N-1 times the part"},
    {"ring", IQ_ALLGATHER, 0, iq_build_allgather_ring, "parts travel around the ring: N-1 rounds, neighbours only"},
    {"direct", IQ_BROADCAST, 0, iq_build_broadcast_direct, "the root sends to all: 1 round, N-1 times the tensor from the root"},
    {"chain", IQ_BROADCAST, 0, iq_build_broadcast_chain,
     "chunks travel from the root along all ranks: N-1 rounds, every rank sends the tensor once"},
    {"direct", IQ_ALLTOALL, 0, iq_build_alltoall_direct, "each rank sends every other its part: 1 round, N-1 parts"},
    {"dissemination", IQ_BARRIER, 0, iq_build_barrier_dissemination, "signals 1, 2, 4, ... ranks ahead: log2 N rounds"},
    {NULL, IQ_COLLECTIVE_COUNT, 0, NULL, NULL},
};

static const char *const collective_names[IQ_COLLECTIVE_COUNT] = {
    [IQ_ALLREDUCE] = "allreduce", [IQ_REDUCE_SCATTER] = "reduce_scatter",
    [IQ_ALLGATHER] = "allgather", [IQ_BROADCAST] = "broadcast",
    [IQ_BARRIER] = "barrier",       [IQ_ALLTOALL] = "alltoall",
};

static const char *const step_kind_names[IQ_STEP_KIND_COUNT] = {
    [IQ_STEP_SEND_OWN] = "send_own",
    [IQ_STEP_REDUCE] = "reduce",
    [IQ_STEP_FINISH] = "finish",
    [IQ_STEP_DELIVER] = "deliver",
    [IQ_STEP_SEND_RESULT] = "send_result",
    [IQ_STEP_RECV_RESULT] = "recv_result",
    [IQ_STEP_HOP] = "hop",
    [IQ_STEP_LAST_HOP] = "last_hop",
    [IQ_STEP_FORWARD] = "forward",
    [IQ_STEP_SIGNAL] = "signal",
    [IQ_STEP_AWAIT] = "await",
    [IQ_STEP_POST] = "post",
    [IQ_STEP_SUM] = "sum",
    [IQ_STEP_SEND_PART] = "send_part",
};

const iq_algorithm_t *iq_algorithm_find(iq_collective_t collective, const char *name)
{
    for (const iq_algorithm_t *row = iq_algorithms; row->name != NULL; row++)
        if (row->collective == collective && strcmp(row->name, name) == 0)
            return row;
    return NULL;
}

const char *iq_collective_name(iq_collective_t collective)
{
    return (unsigned)collective < IQ_COLLECTIVE_COUNT ? collective_names[collective] : "unknown";
}

const char *iq_step_kind_name(iq_step_kind_t kind)
{
    return (unsigned)kind < IQ_STEP_KIND_COUNT ? step_kind_names[kind] : "unknown";
}

/* ---- the walk ---- */

static int place(const iq_plan_t *plan, iq_place_t where, int k)
{
    int value;
    switch ((iq_rule_t)where.rule) {
    case IQ_RULE_INDEX: value = where.arg + k; break;
    case IQ_RULE_AHEAD: value = plan->rank + where.arg + k; break;
    case IQ_RULE_BEHIND: value = plan->rank - where.arg - k; break;
    case IQ_RULE_NEXT: value = plan->rank + where.arg; break;
    case IQ_RULE_PREV: value = plan->rank - where.arg; break;
    case IQ_RULE_LEAP: value = plan->rank + (1 << k); break;
    case IQ_RULE_LEAP_BACK: value = plan->rank - (1 << k); break;
    case IQ_RULE_FIXED: return where.arg;
    default: return -1;
    }
    while (value >= plan->nranks) /* once or twice: cheaper than a division */
        value -= plan->nranks;
    while (value < 0)
        value += plan->nranks;
    return value;
}

void iq_plan_block(const iq_plan_t *plan, uint32_t block, size_t *first, size_t *count)
{
    size_t longer_before = iq_min(block, plan->longer_blocks);
    size_t units = plan->block_units + (block < plan->longer_blocks);
    size_t start = iq_min(plan->count, plan->block_unit * (plan->block_units * block + longer_before));
    *first = start;
    *count = iq_min(plan->count - start, plan->block_unit * units);
}

/* Which chunk of the tensor is chunk `chunk` of block `block` where they are dealt: forth and back, so that a trend cancels. */
static uint32_t dealt_chunk(const iq_plan_t *plan, uint32_t block, uint32_t chunk)
{
    return chunk * plan->nblocks + (chunk % 2 == 0 ? block : plan->nblocks - 1 - block);
}

/* The part of the tensor that is chunk `chunk` of block `block`; false if there is none. */
static bool find_span(const iq_plan_t *plan, uint32_t block, uint32_t chunk, iq_action_t *action)
{
    size_t first, count, skipped = plan->dealt ? 0 : plan->chunk * chunk;
    iq_plan_block(plan, plan->dealt ? dealt_chunk(plan, block, chunk) : block, &first, &count);
    if (skipped >= count)
        return false;
    action->block = block;
    action->first = first + skipped;
    action->count = iq_min(plan->chunk, count - skipped);
    return true;
}

/* The action of the cursor's step on `chunk`; false if its span is empty. */
static bool make_action(const iq_plan_t *plan, const iq_plan_cursor_t *cursor, const iq_loop_t *loop, uint32_t chunk,
                        iq_action_t *action)
{
    uint16_t index = (uint16_t)(loop->first_step + cursor->step);
    const iq_step_t *step = &plan->steps[index];
    int k = (int)cursor->k;
    int block = step->block.rule == IQ_RULE_NONE ? 0 : place(plan, step->block, k);
    action->kind = (iq_step_kind_t)step->kind;
    action->chunk = chunk;
    action->step = index;
    if (step->kind == IQ_STEP_SIGNAL || step->kind == IQ_STEP_AWAIT) {
        action->block = 0;
        action->first = action->count = 0;
    } else if (!find_span(plan, (uint32_t)block, chunk, action)) {
        return false;
    }
    action->peer = place(plan, step->peer, k);
    action->to = place(plan, step->to, k);
    action->parts = step->parts + k * step->parts_per_trip;
    action->receive_round = action->send_round = 0;
    if (plan->rounds != 0)
        iq_plan_find_rounds(plan, cursor, action);
    return true;
}

/* One step further; steps run fastest, then the chunks of the group, then k, then the loops, then t. */
static void move_on(const iq_plan_t *plan, iq_plan_cursor_t *cursor, const iq_loop_t *loop)
{
    if (++cursor->step < loop->nsteps)
        return;
    cursor->step = 0;
    if (++cursor->member < plan->group)
        return;
    cursor->member = 0;
    if (++cursor->k < loop->trips)
        return;
    cursor->k = 0;
    cursor->loop++;
}

bool iq_plan_next(const iq_plan_t *plan, iq_plan_cursor_t *cursor, iq_action_t *action)
{
    iq_plan_cursor_t at = *cursor; /* in registers: empty spans are passed by in a tight loop */
    bool found = false;
    while (!found && at.t < plan->iterations) {
        if (at.loop == plan->nloops) {
            at.loop = 0;
            at.t++;
            continue;
        }
        const iq_loop_t *loop = &plan->loops[at.loop];
        uint64_t group = at.t - loop->lag; /* before the first group it wraps to something huge */
        if (group >= plan->ngroups) {
            at.loop++;
            continue;
        }
        uint64_t chunk = group * plan->group + at.member;
        found = chunk < plan->nchunks && make_action(plan, &at, loop, (uint32_t)chunk, action);
        move_on(plan, &at, loop);
    }
    *cursor = at;
    return found;
}

/* ---- text ---- */

/* " from 3", " own", " to 2" and the like: who is at the other ends. */
static void format_ends(const iq_plan_t *plan, const iq_action_t *action, char *text, size_t bytes)
{
    switch (action->kind) {
    case IQ_STEP_SEND_OWN:
    case IQ_STEP_SEND_RESULT:
    case IQ_STEP_SEND_PART:
    case IQ_STEP_SIGNAL: snprintf(text, bytes, "to %d", action->peer); return;
    case IQ_STEP_FINISH:
    case IQ_STEP_DELIVER: snprintf(text, bytes, "here"); return;
    case IQ_STEP_POST: snprintf(text, bytes, "to all"); return;
    case IQ_STEP_SUM: snprintf(text, bytes, "from all"); return;
    default:
        if (action->peer == plan->rank)
            snprintf(text, bytes, "own");
        else if (action->to >= 0)
            snprintf(text, bytes, "from %d to %d", action->peer, action->to);
        else
            snprintf(text, bytes, "from %d", action->peer);
    }
}

void iq_action_format(const iq_plan_t *plan, const iq_action_t *action, char *text, size_t bytes)
{
    char ends[48], parts[24] = "";
    format_ends(plan, action, ends, sizeof(ends));
    if (action->parts > 0)
        snprintf(parts, sizeof(parts), "  sum of %d", action->parts);
    if (action->count == 0)
        snprintf(text, bytes, "%-11s %s", iq_step_kind_name(action->kind), ends);
    else
        snprintf(text, bytes, "%-11s %-15s block %" PRIu32 " chunk %" PRIu32 "  elements %zu..%zu%s",
                 iq_step_kind_name(action->kind), ends, action->block, action->chunk, action->first,
                 action->first + action->count - 1, parts);
}
