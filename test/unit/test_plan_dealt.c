/* SPDX-License-Identifier: Apache-2.0 */
/* Plans that deal chunks out in turns: how the tensor is cut, and who has what. That such plans work is proved with all others. */
#include "base/util.h"
#include "plan/plan.h"
#include "support/check_main.h"

enum { MAX_RANKS = 17 };

static iq_plan_t plans[MAX_RANKS];

static void build_all(const iq_algorithm_t *algorithm, iq_plan_request_t request)
{
    request.collective = algorithm->collective;
    for (request.rank = 0; request.rank < request.nranks; request.rank++)
        ck_assert_int_eq(algorithm->build(&request, &plans[request.rank]), ISGQ_SUCCESS);
}

/* Chunks of a tensor that is dealt out follow one another, are even, and every block gets as many, forth and back. */
START_TEST(chunks_are_dealt)
{
    for (int nranks = 2; nranks <= MAX_RANKS; nranks++)
        for (size_t count = 1; count < 300; count += 7) {
            iq_plan_request_t request = {.nranks = nranks, .count = count, .block_unit = 2, .chunk = 10, .slots = 2, .dealt = true};
            build_all(iq_algorithm_find(IQ_ALLREDUCE, "direct"), request);
            uint32_t nchunks = (uint32_t)nranks * plans[0].nchunks;
            size_t end = 0, shortest = SIZE_MAX, longest = 0;
            ck_assert_uint_eq(plans[0].nchunks, iq_ceil_div(count, 10 * (size_t)nranks));
            for (uint32_t c = 0; c < nchunks; c++) {
                size_t first, length;
                iq_plan_block(&plans[0], c, &first, &length);
                ck_assert_uint_eq(first, end);
                end += length;
                shortest = iq_min(shortest, length);
                longest = iq_max(longest, length);
            }
            ck_assert_uint_eq(end, count);
            ck_assert_uint_le(longest, 10);
            ck_assert_uint_lt(longest - shortest, 4);
        }
}
END_TEST

START_TEST(chunks_go_forth_and_back)
{
    static const size_t first[2][3] = {{0, 70, 80}, {10, 60, 90}};
    iq_plan_request_t request = {.nranks = 4, .count = 120, .block_unit = 1, .chunk = 10, .slots = 2, .dealt = true};
    build_all(iq_algorithm_find(IQ_ALLREDUCE, "direct"), request);
    for (int rank = 0; rank < 2; rank++) {
        iq_plan_cursor_t cursor = {0};
        iq_action_t action;
        unsigned found = 0;
        while (iq_plan_next(&plans[rank], &cursor, &action))
            if (action.kind == IQ_STEP_FINISH) {
                ck_assert_uint_lt(found, 3);
                ck_assert_uint_eq(action.first, first[rank][found++]);
                ck_assert_uint_eq(action.count, 10);
            }
        ck_assert_uint_eq(found, 3);
    }
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("plan_dealt");
    TCase *tcase = tcase_create("dealt");
    tcase_add_test(tcase, chunks_are_dealt);
    tcase_add_test(tcase, chunks_go_forth_and_back);
    suite_add_tcase(suite, tcase);
    return suite;
}
