/* SPDX-License-Identifier: Apache-2.0 */
/* The few calls that builders write plans with: checks, cutting the tensor, appending loops and steps. */
#include "plan/plan_build.h"

#include "base/status.h"
#include "base/util.h"

#include <string.h>

static isgq_result_t check_request(const iq_plan_request_t *request, const char *algorithm, iq_collective_t collective)
{
    const char *name = iq_collective_name(collective);
    if (request->collective != collective)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "plan: algorithm %s of %s does no %s", algorithm, name,
                       iq_collective_name(request->collective));
    if (request->nranks < 1 || request->nranks > IQ_PLAN_MAX_RANKS)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "plan %s: %d ranks, 1 to %d are possible", name, request->nranks, IQ_PLAN_MAX_RANKS);
    if (request->rank < 0 || request->rank >= request->nranks)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "plan %s: rank %d of %d", name, request->rank, request->nranks);
    if (collective == IQ_BROADCAST && (request->root < 0 || request->root >= request->nranks))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "plan %s: root %d of %d", name, request->root, request->nranks);
    if (collective == IQ_BARRIER)
        return ISGQ_SUCCESS;
    if (request->chunk == 0)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "plan %s: chunks of 0 elements", name);
    if (request->count > PTRDIFF_MAX)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "plan %s: %zu elements are more than memory holds", name, request->count);
    if (request->lanes < 0 || request->lanes > request->nranks)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "plan %s: %d lanes of %d ranks", name, request->lanes, request->nranks);
    if ((collective == IQ_REDUCE_SCATTER || collective == IQ_ALLGATHER || collective == IQ_ALLTOALL) && request->lanes == 0 && request->count % (size_t)request->nranks != 0)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "plan %s: %zu elements for %d ranks", name, request->count, request->nranks);
    return ISGQ_SUCCESS;
}

/* What blocks are made of: allreduce wants whole buckets, the others cut exactly. */
static size_t block_unit(const iq_plan_request_t *request, int nblocks)
{
    size_t unit = request->count / (size_t)nblocks;
    if ((request->collective == IQ_ALLREDUCE && nblocks > 1) || request->lanes > 0)
        unit = iq_min(request->block_unit, request->count);
    return iq_max(unit, 1);
}

/* Into parts that differ by a unit at most, the longer ones first. */
static void cut(iq_plan_t *plan, size_t units, size_t parts)
{
    plan->block_units = units / parts;
    plan->longer_blocks = (uint32_t)(units % parts);
}

isgq_result_t iq_plan_begin(iq_plan_t *plan, const iq_plan_request_t *request, const char *algorithm, iq_collective_t collective,
                            int nblocks)
{
    size_t first, longest;
    IQ_TRY(check_request(request, algorithm, collective));
    memset(plan, 0, sizeof(*plan));
    plan->algorithm = algorithm;
    plan->collective = collective;
    plan->rank = request->rank;
    plan->nranks = request->nranks;
    plan->root = request->root;
    plan->nblocks = (uint32_t)nblocks;
    plan->nchunks = plan->group = 1;
    plan->rounds = request->rounds;
    if (collective == IQ_BARRIER)
        return ISGQ_SUCCESS;

    plan->count = request->count;
    plan->chunk = request->chunk;
    plan->block_unit = block_unit(request, nblocks);
    plan->dealt = request->dealt && collective == IQ_ALLREDUCE && nblocks > 1;
    if (plan->dealt)
        plan->block_unit = iq_min(plan->block_unit, plan->chunk);
    size_t units = iq_ceil_div(plan->count, plan->block_unit);
    cut(plan, units, (size_t)nblocks);
    iq_plan_block(plan, 0, &first, &longest);
    size_t nchunks = plan->dealt ? iq_ceil_div(units, (size_t)nblocks * (plan->chunk / plan->block_unit)) : iq_ceil_div(longest, plan->chunk);
    uint64_t rounds_per_chunk = request->rounds ? 2 * (uint64_t)plan->nranks : 1; /* at most; rounds are counted in 32 bits too */
    uint64_t counted = plan->dealt ? iq_max(rounds_per_chunk, (uint64_t)nblocks) : rounds_per_chunk;
    if (nchunks > UINT32_MAX / counted)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "plan %s: chunks of %zu elements are too small for %zu",
                       iq_collective_name(collective), plan->chunk, plan->count);
    plan->nchunks = (uint32_t)nchunks;
    if (plan->dealt && nchunks > 0)
        cut(plan, units, (size_t)nblocks * nchunks);
    return ISGQ_SUCCESS;
}

unsigned iq_plan_slots(const iq_plan_request_t *request)
{
    return request->rounds ? 1 : (unsigned)iq_min(iq_max(request->slots, 2), IQ_PLAN_USEFUL_SLOTS);
}

int iq_plan_lanes(const iq_plan_request_t *request) { return request->lanes > 0 ? request->lanes : request->nranks; }

void iq_plan_set_group(iq_plan_t *plan, unsigned group) { plan->group = group; }

void iq_plan_loop(iq_plan_t *plan, int trips, unsigned lag)
{
    iq_assert(plan->nloops < IQ_PLAN_MAX_LOOPS && trips >= 0);
    plan->loops[plan->nloops++] = (iq_loop_t){.trips = (uint16_t)trips, .first_step = plan->nsteps, .lag = (uint16_t)lag};
}

void iq_plan_step(iq_plan_t *plan, iq_step_t step)
{
    iq_assert(plan->nloops > 0 && plan->nsteps < IQ_PLAN_MAX_STEPS);
    plan->steps[plan->nsteps++] = step;
    plan->loops[plan->nloops - 1].nsteps++;
}

void iq_plan_loop_own(iq_plan_t *plan, unsigned lag, iq_place_t block, iq_step_kind_t last)
{
    iq_plan_loop(plan, 1, lag);
    iq_plan_step(plan, (iq_step_t){.kind = IQ_STEP_REDUCE, .peer = iq_self(), .block = block, .parts = 1});
    iq_plan_step(plan, (iq_step_t){.kind = (uint8_t)last, .block = block});
}

/* Loops without trips or steps go, so that the walk need not look. */
static void drop_empty_loops(iq_plan_t *plan)
{
    uint16_t kept = 0;
    for (uint16_t i = 0; i < plan->nloops; i++)
        if (plan->loops[i].trips > 0 && plan->loops[i].nsteps > 0)
            plan->loops[kept++] = plan->loops[i];
    plan->nloops = kept;
}

void iq_plan_end(iq_plan_t *plan)
{
    unsigned lag = 0;
    drop_empty_loops(plan);
    for (uint16_t i = 0; i < plan->nloops; i++)
        lag = plan->loops[i].lag > lag ? plan->loops[i].lag : lag;
    plan->ngroups = iq_ceil_div(plan->nchunks, plan->group);
    plan->iterations = plan->ngroups == 0 || plan->nloops == 0 ? 0 : plan->ngroups + lag;
    if (plan->rounds != 0)
        iq_plan_number_rounds(plan);
}
