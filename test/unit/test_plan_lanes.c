/* SPDX-License-Identifier: Apache-2.0 */
/* Plans inside a host whose first ranks alone have blocks, the lanes of algorithm `levels`: the others give and take. */
#include "base/util.h"
#include "support/check_main.h"
#include "support/plan_sim.h"

#include <check.h>

#define MOST_RANKS 9

static void prove(iq_plan_request_t request)
{
    static iq_plan_t plans[MOST_RANKS];
    static iq_sim_report_t report;
    iq_sim_options_t options = {.capacity = request.slots};
    size_t first, count;
    for (request.rank = 0; request.rank < request.nranks; request.rank++)
        ck_assert_int_eq(iq_algorithm_find(request.collective, "direct")->build(&request, &plans[request.rank]), ISGQ_SUCCESS);
    ck_assert_msg(iq_sim_run(plans, request.nranks, &options, &report), "%s, %d lanes of %d ranks, count %zu, chunk %zu, slots %u: %s",
                  iq_collective_name(request.collective), request.lanes, request.nranks, request.count, request.chunk, request.slots, report.error);
    for (int rank = 0; rank < request.nranks; rank++) {
        iq_plan_block(&plans[0], (uint32_t)rank, &first, &count);
        ck_assert_msg(rank < request.lanes || count == 0, "rank %d of %d lanes has %zu elements", rank, request.lanes, count);
        ck_assert_msg(count == 0 || first % request.block_unit == 0 || request.count < request.block_unit, "lane %d begins at %zu", rank, first);
    }
}

/* Every element is summed once, with every contribution, and reaches all. */
START_TEST(lanes)
{
    static const iq_collective_t collectives[] = {IQ_REDUCE_SCATTER, IQ_ALLGATHER};
    static const size_t counts[] = {0, 1, 31, 33, 64, 509, 1024}, chunks[] = {7, 64};
    for (int nranks = 1; nranks <= MOST_RANKS; nranks++)
        for (int nlanes = 1; nlanes <= nranks; nlanes++)
            for (size_t c = 0; c < IQ_ARRAY_SIZE(counts) * 4; c++)
                prove((iq_plan_request_t){.collective = collectives[c % 2],
                                          .nranks = nranks,
                                          .lanes = nlanes,
                                          .count = counts[c / 4],
                                          .block_unit = 32,
                                          .chunk = chunks[c / 2 % 2],
                                          .slots = 2 + (unsigned)c % 3});
}
END_TEST

START_TEST(more_lanes_than_ranks)
{
    iq_plan_t plan;
    iq_plan_request_t request = {.collective = IQ_ALLGATHER, .nranks = 3, .lanes = 4, .count = 12, .block_unit = 32, .chunk = 7, .slots = 2};
    ck_assert_int_eq(iq_algorithm_find(IQ_ALLGATHER, "direct")->build(&request, &plan), ISGQ_ERR_INVALID_ARGUMENT);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("plan_lanes");
    TCase *tcase = tcase_create("lanes");
    tcase_add_test(tcase, lanes);
    tcase_add_test(tcase, more_lanes_than_ranks);
    suite_add_tcase(suite, tcase);
    return suite;
}
