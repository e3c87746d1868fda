/* SPDX-License-Identifier: Apache-2.0 */
/* Plans: every algorithm, simulated for 1..17 ranks; the simulator itself, tried on plans that are wrong; blocks, bytes, texts. */
#include "base/util.h"
#include "plan/plan.h"
#include "support/check_main.h"
#include "support/plan_sim.h"

#include <stdio.h>
#include <string.h>

#define MAX_RANKS 17

static iq_plan_t plans[IQ_SIM_MAX_RANKS];
static iq_sim_report_t report;

static bool sums_in_ring_order(const iq_algorithm_t *algorithm) { return strcmp(algorithm->name, "ring") == 0; }

static void build_all(const iq_algorithm_t *algorithm, iq_plan_request_t request)
{
    request.collective = algorithm->collective;
    for (request.rank = 0; request.rank < request.nranks; request.rank++)
        ck_assert_int_eq(algorithm->build(&request, &plans[request.rank]), ISGQ_SUCCESS);
}

static bool simulate(const iq_algorithm_t *algorithm, int nranks, iq_sim_options_t options)
{
    options.ring_order = sums_in_ring_order(algorithm);
    return iq_sim_run(plans, nranks, &options, &report);
}

/* Links exactly as large as the plan was told. */
static void prove(const iq_algorithm_t *algorithm, iq_plan_request_t request)
{
    build_all(algorithm, request);
    ck_assert_msg(simulate(algorithm, request.nranks, (iq_sim_options_t){.capacity = request.slots}),
                  "%s %s, %d ranks, root %d, count %zu, unit %zu, chunk %zu, slots %u: %s",
                  iq_collective_name(algorithm->collective), algorithm->name, request.nranks, request.root, request.count,
                  request.block_unit, request.chunk, request.slots, report.error);
    ck_assert_uint_le(report.peak, request.slots);
}

static void prove_shapes(const iq_algorithm_t *algorithm, int nranks, int root, size_t count)
{
    static const size_t units[] = {1, 4, 32}, chunks[] = {1, 7, 64};
    static const unsigned slots[] = {2, 3, 4, 8};
    size_t nunits = algorithm->collective == IQ_ALLREDUCE ? IQ_ARRAY_SIZE(units) : 1;
    for (size_t u = 0; u < nunits; u++)
        for (size_t c = 0; c < IQ_ARRAY_SIZE(chunks); c++)
            for (size_t s = 0; s < IQ_ARRAY_SIZE(slots) + 1; s++)
                if (count / chunks[c] <= 40)
                    prove(algorithm, (iq_plan_request_t){.nranks = nranks,
                                                         .root = root,
                                                         .count = count,
                                                         .block_unit = units[u],
                                                         .chunk = chunks[c],
                                                         .slots = slots[s % IQ_ARRAY_SIZE(slots)],
                                                         .dealt = s == IQ_ARRAY_SIZE(slots)});
}

/* All algorithms of a collective, all rank counts, awkward element counts. */
static void prove_collective(iq_collective_t collective)
{
    for (const iq_algorithm_t *row = iq_algorithms; row->name != NULL; row++)
        for (int nranks = 1; row->collective == collective && nranks <= MAX_RANKS; nranks++) {
            size_t n = (size_t)nranks;
            bool whole_parts = collective == IQ_REDUCE_SCATTER || collective == IQ_ALLGATHER || collective == IQ_ALLTOALL;
            const size_t counts[] = {0, 1, 2, 3, n - 1, n, n + 1, 31, 97, 8 * n + 5, 509, 1024};
            const size_t parts[] = {0, 1, 2, 3, 13, 64};
            for (size_t i = 0; i < (whole_parts ? IQ_ARRAY_SIZE(parts) : IQ_ARRAY_SIZE(counts)); i++)
                prove_shapes(row, nranks, nranks / 3, whole_parts ? parts[i] * n : counts[i]);
        }
}

START_TEST(allreduce)
{
    prove_collective(IQ_ALLREDUCE);
}
END_TEST

START_TEST(reduce_scatter)
{
    prove_collective(IQ_REDUCE_SCATTER);
}
END_TEST

START_TEST(allgather)
{
    prove_collective(IQ_ALLGATHER);
    prove_collective(IQ_ALLTOALL);
}
END_TEST

START_TEST(broadcast)
{
    prove_collective(IQ_BROADCAST);
    for (const iq_algorithm_t *row = iq_algorithms; row->name != NULL; row++)
        for (int nranks = 1; row->collective == IQ_BROADCAST && nranks <= MAX_RANKS; nranks++)
            for (int root = 0; root < nranks; root++)
                prove_shapes(row, nranks, root, 67);
}
END_TEST

START_TEST(barrier)
{
    for (int nranks = 1; nranks <= IQ_SIM_MAX_RANKS; nranks++)
        prove(iq_algorithm_find(IQ_BARRIER, "dissemination"), (iq_plan_request_t){.nranks = nranks, .slots = 2});
}
END_TEST

/* The outcome does not depend on who runs when, on larger links, or on when slots are given back. */
START_TEST(any_schedule)
{
    for (const iq_algorithm_t *row = iq_algorithms; row->name != NULL; row++)
        for (int nranks = 1; nranks <= 9; nranks++)
            for (unsigned slots = 2; slots <= 5; slots++) {
                size_t count = 40 * (size_t)nranks;
                build_all(row, (iq_plan_request_t){
                                   .nranks = nranks, .root = nranks - 1, .count = count, .block_unit = 4, .chunk = 9, .slots = slots});
                for (uint64_t seed = 0; seed < 6; seed++) {
                    iq_sim_options_t options = {.capacity = slots, .seed = seed, .schedule = (iq_sim_schedule_t)(seed % 3)};
                    ck_assert_msg(simulate(row, nranks, options), "%s %d: %s", row->name, nranks, report.error);
                    options.releases_early = true;
                    ck_assert_msg(simulate(row, nranks, options), "%s %d: %s", row->name, nranks, report.error);
                    options.capacity = 0;
                    ck_assert_msg(simulate(row, nranks, options), "%s %d: %s", row->name, nranks, report.error);
                }
            }
}
END_TEST

/* A request that says nothing about slots gets a plan for two, the fewest that transports have. */
START_TEST(fewest_slots)
{
    for (const iq_algorithm_t *row = iq_algorithms; row->name != NULL; row++)
        for (unsigned slots = 0; slots <= 2; slots++) {
            build_all(row, (iq_plan_request_t){.nranks = 6, .count = 600, .block_unit = 1, .chunk = 10, .slots = slots});
            ck_assert_msg(simulate(row, 6, (iq_sim_options_t){.capacity = 2}), "%s: %s", row->name, report.error);
        }
}
END_TEST

/* ---- plans that are wrong ---- */

static iq_place_t mirrored(iq_place_t place)
{
    static const uint8_t mirror[] = {
        [IQ_RULE_NONE] = IQ_RULE_NONE,    [IQ_RULE_INDEX] = IQ_RULE_BEHIND,   [IQ_RULE_AHEAD] = IQ_RULE_BEHIND,
        [IQ_RULE_BEHIND] = IQ_RULE_AHEAD, [IQ_RULE_NEXT] = IQ_RULE_PREV,      [IQ_RULE_PREV] = IQ_RULE_NEXT,
        [IQ_RULE_FIXED] = IQ_RULE_FIXED,  [IQ_RULE_LEAP] = IQ_RULE_LEAP_BACK, [IQ_RULE_LEAP_BACK] = IQ_RULE_LEAP};
    place.rule = mirror[place.rule];
    return place;
}

static bool same_place(iq_place_t a, iq_place_t b) { return a.rule == b.rule && a.arg == b.arg; }

/* Make mistake number `mistake` in a step; false if that changes nothing there. */
static bool spoil_step(iq_step_t *step, const iq_loop_t *loop, uint32_t nblocks, int mistake)
{
    bool fixed_distance = step->peer.rule == IQ_RULE_LEAP || step->peer.rule == IQ_RULE_LEAP_BACK;
    bool sends_one_to_all = step->peer.rule == IQ_RULE_AHEAD && step->block.rule != IQ_RULE_AHEAD; /* any order of peers will do */
    bool is_self = step->peer.rule == IQ_RULE_NEXT && step->peer.arg == 0;
    iq_place_t old = step->peer;
    switch (mistake) {
    case 0: step->kind = (uint8_t)((step->kind + 1) % IQ_STEP_KIND_COUNT); return true;
    case 1: step->peer.arg++; return step->peer.rule != IQ_RULE_NONE && !fixed_distance;
    case 2: step->to.arg++; return step->to.rule != IQ_RULE_NONE;
    case 3: step->block.arg++; return nblocks > 1 && step->block.rule != IQ_RULE_NONE;
    case 4: step->parts++; return step->parts > 1;
    case 5: step->parts_per_trip++; return step->parts > 0 && loop->trips > 1;
    case 6: step->peer = mirrored(old); return !same_place(step->peer, old) && !is_self && !sends_one_to_all;
    case 7: step->block.arg--; return nblocks > 1 && step->block.rule != IQ_RULE_NONE;
    default: return false;
    }
}

static void expect_caught(const iq_algorithm_t *algorithm, int nranks, int victim, const char *what, int step, int mistake)
{
    ck_assert_msg(!simulate(algorithm, nranks, (iq_sim_options_t){.capacity = 4}), "%s %s, rank %d: %s %d, mistake %d was not noticed",
                  iq_collective_name(algorithm->collective), algorithm->name, victim, what, step, mistake);
}

static void spoil_steps(const iq_algorithm_t *algorithm, int nranks, int victim)
{
    const iq_plan_t good = plans[victim];
    for (int l = 0; l < good.nloops; l++)
        for (int s = good.loops[l].first_step; s < good.loops[l].first_step + good.loops[l].nsteps; s++)
            for (int mistake = 0; mistake < 8; mistake++) {
                if (spoil_step(&plans[victim].steps[s], &good.loops[l], good.nblocks, mistake))
                    expect_caught(algorithm, nranks, victim, "step", s, mistake);
                plans[victim] = good;
            }
}

static void spoil_loops(const iq_algorithm_t *algorithm, int nranks, int victim)
{
    const iq_plan_t good = plans[victim];
    for (int l = 0; l < good.nloops; l++) {
        plans[victim].loops[l].trips--;
        if (plans[victim].loops[l].trips == 0)
            plans[victim].loops[l].lag = UINT16_MAX; /* never */
        expect_caught(algorithm, nranks, victim, "loop", l, -1);
        plans[victim] = good;
        plans[victim].loops[l].trips++;
        expect_caught(algorithm, nranks, victim, "loop", l, 1);
        plans[victim] = good;
    }
    if (good.count == 0)
        return;
    plans[victim].chunk++;
    expect_caught(algorithm, nranks, victim, "chunk", 0, 1);
    plans[victim] = good;
    plans[victim].nchunks--;
    plans[victim].ngroups = iq_ceil_div(plans[victim].nchunks, good.group);
    expect_caught(algorithm, nranks, victim, "nchunks", 0, -1);
    plans[victim] = good;
}

START_TEST(mistakes_are_caught)
{
    for (const iq_algorithm_t *row = iq_algorithms; row->name != NULL; row++)
        for (int victim = 0; victim < 5; victim++) {
            build_all(row, (iq_plan_request_t){.nranks = 5, .root = 2, .count = 250, .block_unit = 2, .chunk = 8, .slots = 4});
            spoil_steps(row, 5, victim);
            spoil_loops(row, 5, victim);
        }
}
END_TEST

/* More in flight than links hold: a deadlock, and the report says so. */
START_TEST(deadlock_is_caught)
{
    static const char *const names[] = {"direct", "ring"};
    for (size_t i = 0; i < IQ_ARRAY_SIZE(names); i++) {
        const iq_algorithm_t *algorithm = iq_algorithm_find(IQ_ALLREDUCE, names[i]);
        build_all(algorithm, (iq_plan_request_t){.nranks = 4, .count = 400, .block_unit = 1, .chunk = 10, .slots = 4});
        ck_assert(!simulate(algorithm, 4, (iq_sim_options_t){.capacity = 1}));
        ck_assert_ptr_nonnull(strstr(report.error, "deadlock"));
    }
}
END_TEST

/* ---- blocks, bytes ---- */

START_TEST(blocks_are_even)
{
    for (int nranks = 1; nranks <= MAX_RANKS; nranks++)
        for (size_t count = 0; count < 300; count++)
            for (size_t unit = 1; unit <= 32; unit += 31) {
                size_t end = 0, shortest = SIZE_MAX, longest = 0;
                build_all(iq_algorithm_find(IQ_ALLREDUCE, "direct"),
                          (iq_plan_request_t){.nranks = nranks, .count = count, .block_unit = unit, .chunk = 50});
                for (uint32_t b = 0; b < plans[0].nblocks; b++) {
                    size_t first, length;
                    iq_plan_block(&plans[0], b, &first, &length);
                    ck_assert_uint_eq(first, end);
                    ck_assert(first % unit == 0 || first == count);
                    end += length;
                    shortest = iq_min(shortest, length);
                    longest = iq_max(longest, length);
                }
                ck_assert_uint_eq(end, count);
                ck_assert_uint_eq(plans[0].nchunks, iq_ceil_div(longest, 50));
                ck_assert_uint_lt(longest - shortest, 2 * unit); /* one unit, and what the last one lacks */
            }
}
END_TEST

static uint64_t sent_partial(int rank)
{
    uint64_t sum = 0;
    for (int parts = 1; parts <= IQ_SIM_MAX_RANKS; parts++)
        sum += report.sent[rank].partial[parts];
    return sum;
}

/* What each rank sends, in closed form, where blocks are equal. */
static void check_traffic(iq_collective_t collective, const char *name, int nranks, uint64_t partial, uint64_t result, uint64_t messages)
{
    const iq_algorithm_t *algorithm = iq_algorithm_find(collective, name);
    build_all(algorithm,
              (iq_plan_request_t){.nranks = nranks, .count = 60 * (size_t)nranks, .block_unit = 4, .chunk = 20, .slots = 4});
    ck_assert(simulate(algorithm, nranks, (iq_sim_options_t){.capacity = 4}));
    for (int rank = 0; rank < nranks; rank++) {
        ck_assert_uint_eq(sent_partial(rank), partial);
        ck_assert_uint_eq(report.sent[rank].result, result);
        ck_assert_uint_eq(report.sent[rank].messages, messages);
    }
}

START_TEST(traffic)
{
    for (int nranks = 2; nranks <= MAX_RANKS; nranks++) {
        uint64_t others = (uint64_t)nranks - 1, moved = 60 * others; /* (N-1)/N of the tensor */
        check_traffic(IQ_ALLREDUCE, "direct", nranks, moved, moved, 2 * 3 * others);
        check_traffic(IQ_ALLREDUCE, "ring", nranks, moved, moved, 2 * 3 * others);
        for (int parts = 1; parts < nranks; parts++) /* a block at every width */
            ck_assert_uint_eq(report.sent[0].partial[parts], 60);
        check_traffic(IQ_ALLREDUCE, "exchange", nranks, moved * (uint64_t)nranks, 0, 3 * (uint64_t)nranks * others);
        check_traffic(IQ_ALLREDUCE, "board", nranks, 60 * (uint64_t)nranks, 0, 3 * (uint64_t)nranks);
        check_traffic(IQ_REDUCE_SCATTER, "direct", nranks, moved, 0, 3 * others);
        check_traffic(IQ_REDUCE_SCATTER, "ring", nranks, moved, 0, 3 * others);
        check_traffic(IQ_ALLGATHER, "direct", nranks, 0, moved, 3 * others);
        check_traffic(IQ_ALLGATHER, "ring", nranks, 0, moved, 3 * others);
        check_traffic(IQ_ALLTOALL, "direct", nranks, 0, moved, 3 * others);
    }
}
END_TEST

/* All ranks together, where blocks are not equal; roots of broadcasts. */
START_TEST(traffic_in_all)
{
    static const struct {
        iq_collective_t collective;
        const char *name;
        uint64_t from_root, in_all; /* times the tensor, 5 ranks */
    } rows[] = {{IQ_ALLREDUCE, "direct", 0, 8},
                {IQ_ALLREDUCE, "ring", 0, 8},
                {IQ_BROADCAST, "direct", 4, 4},
                {IQ_BROADCAST, "chain", 1, 4}};
    for (size_t i = 0; i < IQ_ARRAY_SIZE(rows); i++) {
        const iq_algorithm_t *algorithm = iq_algorithm_find(rows[i].collective, rows[i].name);
        uint64_t in_all = 0;
        build_all(algorithm,
                  (iq_plan_request_t){.nranks = 5, .root = 3, .count = 1001, .block_unit = 32, .chunk = 64, .slots = 4});
        ck_assert(simulate(algorithm, 5, (iq_sim_options_t){.capacity = 4}));
        for (int rank = 0; rank < 5; rank++)
            in_all += sent_partial(rank) + report.sent[rank].result;
        ck_assert_uint_eq(in_all, rows[i].in_all * 1001);
        if (rows[i].from_root > 0)
            ck_assert_uint_eq(report.sent[3].result, rows[i].from_root * 1001);
    }
}
END_TEST

/* ---- walk and texts ---- */

static void check_text(iq_collective_t collective, const char *name, iq_plan_request_t request, const char *due)
{
    char text[4096] = "";
    iq_plan_cursor_t cursor = {0};
    iq_action_t action;
    request.collective = collective;
    ck_assert_int_eq(iq_algorithm_find(collective, name)->build(&request, &plans[0]), ISGQ_SUCCESS);
    while (iq_plan_next(&plans[0], &cursor, &action)) {
        size_t used = strlen(text);
        iq_action_format(&plans[0], &action, text + used, sizeof(text) - used - 2);
        strcat(text, "\n");
    }
    ck_assert_str_eq(text, due);
    ck_assert(!iq_plan_next(&plans[0], &cursor, &action)); /* the end stays the end */
}

START_TEST(texts)
{
    check_text(IQ_ALLREDUCE, "direct", (iq_plan_request_t){.nranks = 2, .count = 6, .block_unit = 1, .chunk = 2, .slots = 2},
               "send_own    to 1            block 1 chunk 0  elements 3..4  sum of 1\n"
               "reduce      own             block 0 chunk 0  elements 0..1  sum of 1\n"
               "reduce      from 1          block 0 chunk 0  elements 0..1  sum of 2\n"
               "finish      here            block 0 chunk 0  elements 0..1\n"
               "send_result to 1            block 0 chunk 0  elements 0..1\n"
               "send_own    to 1            block 1 chunk 1  elements 5..5  sum of 1\n"
               "recv_result from 1          block 1 chunk 0  elements 3..4\n"
               "reduce      own             block 0 chunk 1  elements 2..2  sum of 1\n"
               "reduce      from 1          block 0 chunk 1  elements 2..2  sum of 2\n"
               "finish      here            block 0 chunk 1  elements 2..2\n"
               "send_result to 1            block 0 chunk 1  elements 2..2\n"
               "recv_result from 1          block 1 chunk 1  elements 5..5\n");
    check_text(IQ_ALLREDUCE, "ring", (iq_plan_request_t){.nranks = 3, .count = 12, .block_unit = 1, .chunk = 2, .slots = 4},
               "send_own    to 1            block 2 chunk 0  elements 8..9  sum of 1\n"
               "send_own    to 1            block 2 chunk 1  elements 10..11  sum of 1\n"
               "hop         from 2 to 1     block 1 chunk 0  elements 4..5  sum of 2\n"
               "hop         from 2 to 1     block 1 chunk 1  elements 6..7  sum of 2\n"
               "last_hop    from 2 to 1     block 0 chunk 0  elements 0..1  sum of 3\n"
               "last_hop    from 2 to 1     block 0 chunk 1  elements 2..3  sum of 3\n"
               "forward     from 2 to 1     block 2 chunk 0  elements 8..9\n"
               "forward     from 2 to 1     block 2 chunk 1  elements 10..11\n"
               "recv_result from 2          block 1 chunk 0  elements 4..5\n"
               "recv_result from 2          block 1 chunk 1  elements 6..7\n");
    check_text(IQ_ALLREDUCE, "exchange",
               (iq_plan_request_t){.rank = 1, .nranks = 2, .count = 5, .block_unit = 32, .chunk = 8, .slots = 4},
               "send_own    to 0            block 0 chunk 0  elements 0..4  sum of 1\n"
               "reduce      from 0          block 0 chunk 0  elements 0..4  sum of 1\n"
               "reduce      own             block 0 chunk 0  elements 0..4  sum of 2\n"
               "deliver     here            block 0 chunk 0  elements 0..4\n");
    check_text(IQ_ALLREDUCE, "board", (iq_plan_request_t){.nranks = 3, .count = 5, .block_unit = 32, .chunk = 8, .slots = 4},
               "post        to all          block 0 chunk 0  elements 0..4  sum of 1\nsum         from all        block 0 chunk 0  elements 0..4  sum of 3\n");
    check_text(IQ_BARRIER, "dissemination", (iq_plan_request_t){.nranks = 3},
               "signal      to 1\n"
               "await       from 2\n"
               "signal      to 2\n"
               "await       from 1\n");
}
END_TEST

/* The longest tensor there can be: nothing overflows, and every element comes out once. */
START_TEST(long_tensors)
{
    iq_plan_request_t request = {.collective = IQ_ALLREDUCE,
                                 .rank = 3,
                                 .nranks = 8,
                                 .count = PTRDIFF_MAX,
                                 .block_unit = 32,
                                 .chunk = (size_t)1 << 40,
                                 .slots = 4};
    iq_plan_cursor_t cursor = {0};
    iq_action_t action;
    uint64_t actions = 0, elements = 0;
    ck_assert_int_eq(iq_algorithm_find(IQ_ALLREDUCE, "direct")->build(&request, &plans[0]), ISGQ_SUCCESS);
    while (iq_plan_next(&plans[0], &cursor, &action)) {
        actions++;
        if (action.kind == IQ_STEP_FINISH || action.kind == IQ_STEP_RECV_RESULT)
            elements += action.count;
    }
    ck_assert_uint_eq(elements, PTRDIFF_MAX);
    ck_assert_uint_eq(actions, (uint64_t)plans[0].nchunks * (7 + 8 + 1 + 7 + 7));
}
END_TEST

START_TEST(bad_requests)
{
    const iq_plan_request_t good = {
        .collective = IQ_ALLGATHER, .rank = 1, .nranks = 4, .count = 100, .block_unit = 1, .chunk = 10};
    const iq_algorithm_t *ring = iq_algorithm_find(IQ_ALLGATHER, "ring"), *chain = iq_algorithm_find(IQ_BROADCAST, "chain");
    iq_plan_request_t bad = good;
    ck_assert_int_eq(ring->build(&good, &plans[0]), ISGQ_SUCCESS);
    ck_assert_int_eq(chain->build(&good, &plans[0]), ISGQ_ERR_UNSUPPORTED);
    bad.count = 99;
    ck_assert_int_eq(ring->build(&bad, &plans[0]), ISGQ_ERR_INVALID_ARGUMENT);
    bad = good;
    bad.rank = 4;
    ck_assert_int_eq(ring->build(&bad, &plans[0]), ISGQ_ERR_INVALID_ARGUMENT);
    bad = good;
    bad.chunk = 0;
    ck_assert_int_eq(ring->build(&bad, &plans[0]), ISGQ_ERR_INVALID_ARGUMENT);
    bad = good;
    bad.nranks = IQ_PLAN_MAX_RANKS + 1;
    ck_assert_int_eq(ring->build(&bad, &plans[0]), ISGQ_ERR_UNSUPPORTED);
    bad = good;
    bad.count = (size_t)PTRDIFF_MAX + 1;
    ck_assert_int_eq(ring->build(&bad, &plans[0]), ISGQ_ERR_INVALID_ARGUMENT);
    bad = good;
    bad.count = (size_t)4 << 40;
    bad.chunk = 1; /* more chunks than 32 bits count */
    ck_assert_int_eq(ring->build(&bad, &plans[0]), ISGQ_ERR_INVALID_ARGUMENT);
    bad = good;
    bad.collective = IQ_BROADCAST;
    bad.root = 4;
    ck_assert_int_eq(chain->build(&bad, &plans[0]), ISGQ_ERR_INVALID_ARGUMENT);
}
END_TEST

START_TEST(names)
{
    ck_assert_ptr_null(iq_algorithm_find(IQ_BARRIER, "ring"));
    ck_assert_ptr_null(iq_algorithm_find(IQ_ALLREDUCE, "fastest"));
    ck_assert_str_eq(iq_collective_name(IQ_COLLECTIVE_COUNT), "unknown");
    for (int kind = 0; kind < IQ_STEP_KIND_COUNT; kind++)
        ck_assert_str_ne(iq_step_kind_name((iq_step_kind_t)kind), "unknown");
    for (const iq_algorithm_t *row = iq_algorithms; row->name != NULL; row++) {
        ck_assert_ptr_eq(iq_algorithm_find(row->collective, row->name), row);
        ck_assert_uint_gt(strlen(row->help), 10);
    }
}
END_TEST

static TCase *add_case(Suite *suite, TCase *tcase)
{
    tcase_set_timeout(tcase, 120);
    suite_add_tcase(suite, tcase);
    return tcase;
}

Suite *iq_suite(void)
{
    Suite *suite = suite_create("plan");
    TCase *tcase;
    tcase_add_test(add_case(suite, tcase_create("allreduce")), allreduce);
    tcase_add_test(add_case(suite, tcase_create("reduce_scatter")), reduce_scatter);
    tcase_add_test(add_case(suite, tcase_create("allgather")), allgather);
    tcase_add_test(add_case(suite, tcase_create("broadcast")), broadcast);
    tcase_add_test(add_case(suite, tcase_create("barrier")), barrier);
    tcase = add_case(suite, tcase_create("schedules"));
    tcase_add_test(tcase, any_schedule);
    tcase_add_test(tcase, fewest_slots);
    tcase = add_case(suite, tcase_create("mistakes"));
    tcase_add_test(tcase, mistakes_are_caught);
    tcase_add_test(tcase, deadlock_is_caught);
    tcase = add_case(suite, tcase_create("shares"));
    tcase_add_test(tcase, blocks_are_even);
    tcase_add_test(tcase, traffic);
    tcase_add_test(tcase, traffic_in_all);
    tcase = add_case(suite, tcase_create("walk"));
    tcase_add_test(tcase, texts);
    tcase_add_test(tcase, long_tensors);
    tcase_add_test(tcase, bad_requests);
    tcase_add_test(tcase, names);
    return suite;
}
