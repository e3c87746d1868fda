/* SPDX-License-Identifier: Apache-2.0 */
/* Plans of rounds: every algorithm, simulated for 1..17 ranks on links that hold nothing; plans whose rounds are wrong. */
#include "base/util.h"
#include "plan/plan.h"
#include "support/check_main.h"
#include "support/plan_sim.h"

#include <string.h>

#define MAX_RANKS 17

static iq_plan_t plans[IQ_SIM_MAX_RANKS];
static iq_sim_report_t report;

static void build_all(const iq_algorithm_t *algorithm, iq_plan_request_t request)
{
    request.collective = algorithm->collective;
    request.rounds = true;
    for (request.rank = 0; request.rank < request.nranks; request.rank++)
        ck_assert_int_eq(algorithm->build(&request, &plans[request.rank]), ISGQ_SUCCESS);
}

static bool simulate(const iq_algorithm_t *algorithm, int nranks, iq_sim_schedule_t schedule)
{
    iq_sim_options_t options = {
        .rounds = true, .ring_order = strcmp(algorithm->name, "ring") == 0, .schedule = schedule, .seed = (uint64_t)nranks};
    return iq_sim_run(plans, nranks, &options, &report);
}

/* A pair of ranks exchanges at most one message a round and direction: that is the staging memory a wire needs. */
static void prove(const iq_algorithm_t *algorithm, iq_plan_request_t request)
{
    int schedules = request.count < 40 ? IQ_SIM_RANDOM : IQ_SIM_LOWEST_FIRST; /* the outcome is the same under all */
    build_all(algorithm, request);
    for (int schedule = IQ_SIM_LOWEST_FIRST; schedule <= schedules; schedule++) {
        ck_assert_msg(simulate(algorithm, request.nranks, (iq_sim_schedule_t)schedule),
                      "%s %s, %d ranks, root %d, count %zu, unit %zu, chunk %zu: %s", iq_collective_name(algorithm->collective),
                      algorithm->name, request.nranks, request.root, request.count, request.block_unit, request.chunk, report.error);
        ck_assert_uint_le(report.peak, 1);
    }
}

static void prove_shapes(const iq_algorithm_t *algorithm, int nranks, int root, size_t count)
{
    static const size_t units[] = {1, 32}, chunks[] = {1, 7, 64};
    size_t nunits = algorithm->collective == IQ_ALLREDUCE ? IQ_ARRAY_SIZE(units) : 1;
    for (size_t u = 0; u < nunits; u++)
        for (size_t c = 0; c < IQ_ARRAY_SIZE(chunks) + 1; c++)
            if (count / chunks[c % IQ_ARRAY_SIZE(chunks)] <= 40)
                prove(algorithm, (iq_plan_request_t){.nranks = nranks,
                                                     .root = root,
                                                     .count = count,
                                                     .block_unit = units[u],
                                                     .chunk = chunks[c % IQ_ARRAY_SIZE(chunks)],
                                                     .dealt = c == IQ_ARRAY_SIZE(chunks)});
}

static void prove_collective(iq_collective_t collective)
{
    for (const iq_algorithm_t *row = iq_algorithms; row->name != NULL; row++)
        for (int nranks = 1; row->collective == collective && !(row->needs & IQ_NEEDS_BOARDS) && nranks <= MAX_RANKS; nranks++) {
            size_t n = (size_t)nranks;
            bool whole_parts = collective == IQ_REDUCE_SCATTER || collective == IQ_ALLGATHER || collective == IQ_ALLTOALL;
            const size_t counts[] = {0, 1, 3, n - 1, n, n + 1, 31, 97, 8 * n + 5, 509};
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
        prove(iq_algorithm_find(IQ_BARRIER, "dissemination"), (iq_plan_request_t){.nranks = nranks});
}
END_TEST

/* ---- numbers ---- */

/* As many rounds as the algorithm's text says, on every rank. 40 elements a rank in chunks of 10; rank 0 is the root. */
static void check_count(iq_collective_t collective, const char *name, int nranks, uint32_t first, uint32_t end)
{
    const iq_algorithm_t *algorithm = iq_algorithm_find(collective, name);
    bool one_block = collective == IQ_BROADCAST || strcmp(name, "exchange") == 0;
    uint32_t lowest = UINT32_MAX, highest = 0;
    build_all(algorithm, (iq_plan_request_t){
                             .nranks = nranks, .count = 40 * (one_block ? 1 : (size_t)nranks), .block_unit = 1, .chunk = 10});
    for (int rank = 0; rank < nranks; rank++) {
        iq_plan_cursor_t cursor = {0};
        iq_action_t action;
        while (iq_plan_next(&plans[rank], &cursor, &action))
            if (action.kind != IQ_STEP_FINISH && action.kind != IQ_STEP_DELIVER && action.peer != rank) {
                lowest = (uint32_t)iq_min(lowest, iq_max(action.receive_round, action.send_round));
                highest = (uint32_t)iq_max(highest, iq_max(action.receive_round, action.send_round));
            }
    }
    ck_assert_msg(lowest == first && highest + 1 == end, "%s %s, %d ranks: rounds %u to %u", iq_collective_name(collective), name,
                  nranks, lowest, highest);
}

START_TEST(counts)
{
    for (uint32_t n = 2; n <= MAX_RANKS; n++) {
        int nranks = (int)n;
        check_count(IQ_ALLREDUCE, "direct", nranks, 0, 4 * 2);
        check_count(IQ_ALLREDUCE, "exchange", nranks, 0, 4);
        check_count(IQ_ALLREDUCE, "ring", nranks, 0, 4 * 2 * (n - 1));
        check_count(IQ_REDUCE_SCATTER, "direct", nranks, 0, 4);
        check_count(IQ_REDUCE_SCATTER, "ring", nranks, 0, 4 * (n - 1));
        check_count(IQ_ALLGATHER, "direct", nranks, 0, 4);
        check_count(IQ_ALLGATHER, "ring", nranks, 0, 4 * (n - 1));
        check_count(IQ_BROADCAST, "direct", nranks, 0, 4);
        check_count(IQ_BROADCAST, "chain", nranks, 0, 4 + n - 2);
        check_count(IQ_BARRIER, "dissemination", nranks, 0, (uint32_t)iq_bit_width(n - 1));
    }
}
END_TEST

/* Where a block is empty its messages are missing, but not their rounds. */
START_TEST(empty_blocks_have_rounds)
{
    iq_plan_cursor_t cursor = {0};
    iq_action_t action;
    build_all(iq_algorithm_find(IQ_ALLREDUCE, "ring"), (iq_plan_request_t){.nranks = 4, .count = 1, .block_unit = 1, .chunk = 8});
    ck_assert(iq_plan_next(&plans[2], &cursor, &action)); /* only block 0 has something: rank 2 adds to it on its way 1, 2, 3, 0 */
    ck_assert_int_eq(action.kind, IQ_STEP_HOP);
    ck_assert_uint_eq(action.receive_round, 0);
    ck_assert_uint_eq(action.send_round, 1);
    ck_assert(iq_plan_next(&plans[2], &cursor, &action)); /* and hands it on when it comes round again */
    ck_assert_int_eq(action.kind, IQ_STEP_FORWARD);
    ck_assert_uint_eq(action.receive_round, 4);
    ck_assert_uint_eq(action.send_round, 5);
    ck_assert(!iq_plan_next(&plans[2], &cursor, &action));
}
END_TEST

/* Parts of a sum that are taken together come from one round, the rank's own among them. */
START_TEST(sums_have_one_round)
{
    iq_plan_cursor_t cursor = {0};
    iq_action_t action;
    build_all(iq_algorithm_find(IQ_ALLREDUCE, "direct"), (iq_plan_request_t){.nranks = 3, .count = 60, .block_unit = 1, .chunk = 10});
    for (int rank = 0; rank < 3; rank++, cursor = (iq_plan_cursor_t){0})
        while (iq_plan_next(&plans[rank], &cursor, &action))
            if (action.kind == IQ_STEP_REDUCE)
                ck_assert_uint_eq(action.receive_round, 2 * action.chunk);
}
END_TEST

START_TEST(too_many_rounds)
{
    const iq_algorithm_t *ring = iq_algorithm_find(IQ_ALLREDUCE, "ring");
    iq_plan_request_t request = {.collective = IQ_ALLREDUCE, .nranks = 1024, .count = (size_t)1 << 40, .block_unit = 1, .chunk = 64};
    ck_assert_int_eq(ring->build(&request, &plans[0]), ISGQ_SUCCESS);
    request.rounds = true; /* 2^24 chunks of 2^11 rounds are more than 32 bits count */
    ck_assert_int_eq(ring->build(&request, &plans[0]), ISGQ_ERR_INVALID_ARGUMENT);
    request.chunk = 1024;
    ck_assert_int_eq(ring->build(&request, &plans[0]), ISGQ_SUCCESS);
}
END_TEST

/* ---- plans without rounds ---- */

static void mix(uint64_t *hash, uint64_t value)
{
    *hash = (*hash ^ value) * 0x100000001b3ull;
    *hash ^= *hash >> 29;
}

static void mix_action(uint64_t *hash, const iq_action_t *action)
{
    mix(hash, (uint64_t)action->kind);
    mix(hash, (uint64_t)(action->peer + 1));
    mix(hash, (uint64_t)(action->to + 1));
    mix(hash, action->first);
    mix(hash, action->count);
    mix(hash, (uint64_t)action->parts);
    mix(hash, action->block);
    mix(hash, action->chunk);
    mix(hash, action->step);
}

/* The walks of all algorithms that there were before there were rounds, hashed then: ranks of different versions would meet other messages. */
START_TEST(slots_know_no_rounds)
{
    uint64_t hash = 0xcbf29ce484222325ull;
    for (const iq_algorithm_t *row = iq_algorithms; row->name != NULL; row++)
        for (int nranks = 1; nranks <= 9 && !(row->needs & (IQ_NEEDS_BOARDS | IQ_IN_LEVELS)) && row->collective != IQ_ALLTOALL; nranks++)
            for (int rank = 0; rank < nranks; rank++)
                for (unsigned slots = 2; slots <= 5; slots++) {
                    iq_plan_request_t request = {.collective = row->collective,
                                                 .rank = rank,
                                                 .nranks = nranks,
                                                 .root = nranks / 3,
                                                 .count = 37 * (size_t)nranks,
                                                 .block_unit = 4,
                                                 .chunk = 9,
                                                 .slots = slots};
                    iq_plan_cursor_t cursor = {0};
                    iq_action_t action;
                    ck_assert_int_eq(row->build(&request, &plans[0]), ISGQ_SUCCESS);
                    while (iq_plan_next(&plans[0], &cursor, &action)) {
                        mix_action(&hash, &action);
                        ck_assert_uint_eq(action.receive_round + action.send_round, 0);
                    }
                }
    ck_assert_uint_eq(hash, 0xef7f5a4fabc8b010ull);
}
END_TEST

/* ---- plans that are wrong ---- */

static bool kind_receives(unsigned kind)
{
    return kind == IQ_STEP_REDUCE || kind == IQ_STEP_RECV_RESULT || kind == IQ_STEP_HOP || kind == IQ_STEP_LAST_HOP ||
           kind == IQ_STEP_FORWARD || kind == IQ_STEP_AWAIT;
}

static bool kind_sends(const iq_step_t *step)
{
    return step->kind == IQ_STEP_SEND_OWN || step->kind == IQ_STEP_SEND_RESULT || step->kind == IQ_STEP_SIGNAL ||
           step->to.rule != IQ_RULE_NONE;
}

/* Make mistake number `mistake` in the rounds of a plan, at loop l; false if that changes nothing. */
static bool spoil(iq_plan_t *plan, int l, int mistake)
{
    iq_loop_t *loop = &plan->loops[l];
    iq_step_t *step = &plan->steps[loop->first_step];
    bool is_own = step->peer.rule == IQ_RULE_NEXT && step->peer.arg == 0;
    bool has_messages = !is_own && (kind_receives(step->kind) || kind_sends(step));
    switch (mistake) {
    case 0: step->receive_round++; return !is_own && kind_receives(step->kind);
    case 1: step->receive_round--; return !is_own && kind_receives(step->kind);
    case 2: step->send_round++; return kind_sends(step);
    case 3: step->send_round--; return kind_sends(step);
    case 4: loop->rounds_per_trip++; return has_messages && loop->trips > 1;
    case 5: plan->rounds++; return has_messages;
    case 6: plan->rounds--; return has_messages && plan->rounds > 0;
    case 7: plan->first_round++; return has_messages;
    default: return false;
    }
}

START_TEST(wrong_rounds_are_caught)
{
    for (const iq_algorithm_t *row = iq_algorithms; row->name != NULL; row++)
        for (int victim = 0; victim < 5; victim++) {
            build_all(row, (iq_plan_request_t){.nranks = 5, .root = 2, .count = 250, .block_unit = 2, .chunk = 8});
            const iq_plan_t good = plans[victim];
            ck_assert(simulate(row, 5, IQ_SIM_RANDOM));
            for (int l = 0; l < good.nloops; l++)
                for (int mistake = 0; mistake < 8; mistake++) {
                    bool iterates = good.iterations > 1 || mistake < 5 || mistake == 7;
                    if (spoil(&plans[victim], l, mistake) && iterates)
                        ck_assert_msg(!simulate(row, 5, IQ_SIM_RANDOM), "%s %s, rank %d: loop %d, mistake %d was not noticed",
                                      iq_collective_name(row->collective), row->name, victim, l, mistake);
                    plans[victim] = good;
                }
        }
}
END_TEST

/* Ranks that agree on numbers, but receive before they send: a cycle of groups that wait for each other, and the report says so. */
START_TEST(cycles_are_caught)
{
    build_all(iq_algorithm_find(IQ_BARRIER, "dissemination"), (iq_plan_request_t){.nranks = 3});
    for (int rank = 0; rank < 3; rank++) {
        iq_step_t signal = plans[rank].steps[0];
        plans[rank].steps[0] = plans[rank].steps[1];
        plans[rank].steps[1] = signal;
        plans[rank].steps[1].send_round = 1;
        plans[rank].loops[0].rounds_per_trip = 1;
    }
    ck_assert(!simulate(iq_algorithm_find(IQ_BARRIER, "dissemination"), 3, IQ_SIM_LOWEST_FIRST));
    ck_assert_ptr_nonnull(strstr(report.error, "deadlock"));
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
    Suite *suite = suite_create("plan_rounds");
    TCase *tcase;
    tcase_add_test(add_case(suite, tcase_create("allreduce")), allreduce);
    tcase_add_test(add_case(suite, tcase_create("reduce_scatter")), reduce_scatter);
    tcase_add_test(add_case(suite, tcase_create("allgather")), allgather);
    tcase_add_test(add_case(suite, tcase_create("broadcast")), broadcast);
    tcase_add_test(add_case(suite, tcase_create("barrier")), barrier);
    tcase = add_case(suite, tcase_create("numbers"));
    tcase_add_test(tcase, counts);
    tcase_add_test(tcase, empty_blocks_have_rounds);
    tcase_add_test(tcase, sums_have_one_round);
    tcase_add_test(tcase, too_many_rounds);
    tcase_add_test(tcase, slots_know_no_rounds);
    tcase = add_case(suite, tcase_create("mistakes"));
    tcase_add_test(tcase, wrong_rounds_are_caught);
    tcase_add_test(tcase, cycles_are_caught);
    return suite;
}
