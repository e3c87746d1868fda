/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sums in memory of isgq_mem_alloc: the bits of algorithm direct on ordinary memory, for all types, on any part of an allocation, also where one rank's
 * buffers are elsewhere; and fewer bytes sent where all ranks' are there.
 */
#include "support/cases.h"
#include "support/check_main.h"
#include "support/samples.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define COUNT ((size_t)600001) /* blocks of different lengths */

static const struct {
    isgq_data_type_t type;
    isgq_red_op_t op;
    size_t bytes;
} sums[] = {{ISGQ_FLOAT32, ISGQ_SUM, 4}, {ISGQ_FLOAT32, ISGQ_AVG, 4}, {ISGQ_FLOAT32, ISGQ_MAX, 4}, {ISGQ_BFLOAT16, ISGQ_AVG, 2},
            {ISGQ_FLOAT16, ISGQ_SUM, 2}, {ISGQ_FLOAT64, ISGQ_PROD, 8}, {ISGQ_INT32, ISGQ_AVG, 4}};
enum { SUMS = sizeof(sums) / sizeof(sums[0]) };

static void *alloc(iq_rank_t *rank, size_t bytes)
{
    void *memory = NULL;
    RANK_OK(rank, isgq_mem_alloc(&memory, rank->comm, bytes));
    return memory;
}

static void fill(iq_rank_t *rank, int i, void *dst)
{
    if (sums[i].type == ISGQ_INT32)
        for (size_t k = 0; k < COUNT; k++)
            ((int32_t *)dst)[k] = (int32_t)(k * 2654435761u) + 77 * rank->rank;
    else if (sums[i].type == ISGQ_FLOAT64)
        for (size_t k = 0; k < COUNT; k++)
            ((double *)dst)[k] = 1.0 + iq_sample(ISGQ_FLOAT32, (uint64_t)i, rank->rank, k % 5003);
    else
        iq_samples_fill(sums[i].type, (uint64_t)i, rank->rank, 0, COUNT, dst);
}

static void sum_up(iq_rank_t *rank, int i, const void *in, void *out, const char *algorithm)
{
    isgq_call_options_t options = {.size = sizeof(options)};
    options.algorithm = algorithm;
    RANK_OK(rank, isgq_allreduce(in, out, COUNT, sums[i].type, sums[i].op, NULL, rank->comm, NULL, &options));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
}

static uint64_t bytes_sent(iq_rank_t *rank)
{
    isgqx_call_record_t record = {.size = sizeof(record)};
    RANK_OK(rank, isgqx_last_call(rank->comm, &record));
    return record.wire_bytes;
}

/* The same sum in ordinary memory by direct; apart; in place; at odd places of one allocation. */
static void check_sum(iq_rank_t *rank, int i, unsigned char *memory, unsigned char *second)
{
    const char *algorithm = rank->argument;
    size_t bytes = COUNT * sums[i].bytes, n = (size_t)rank->nranks, odd = (size_t)(rank->rank + 1) * 8;
    unsigned char *in = malloc(bytes), *due = malloc(bytes);
    fill(rank, i, in);
    sum_up(rank, i, in, due, "direct");
    memcpy(memory, in, bytes);
    sum_up(rank, i, memory, second, algorithm);
    uint64_t sent = bytes_sent(rank);
    RANK_CHECK(rank, memcmp(second, due, bytes) == 0, "sum %d is not that of direct", i);
    RANK_CHECK(rank, memcmp(memory, in, bytes) == 0, "sum %d changed its input", i);
    RANK_CHECK(rank, sent <= bytes * (n - 1) / n + 4096, "sum %d: %zu bytes sent are more than others' parts of a block", i, (size_t)sent);
    sum_up(rank, i, memory, memory, algorithm);
    RANK_CHECK(rank, memcmp(memory, due, bytes) == 0, "sum %d in place is not that of direct", i);
    memcpy(memory + odd, in, bytes);
    sum_up(rank, i, memory + odd, memory + odd + bytes, algorithm);
    RANK_CHECK(rank, memcmp(memory + odd + bytes, due, bytes) == 0, "sum %d at an odd place is not that of direct", i);
    RANK_CHECK(rank, memcmp(memory + odd, in, bytes) == 0, "sum %d at an odd place changed its input", i);
    free(in);
    free(due);
}

static void sums_body(iq_rank_t *rank)
{
    unsigned char *memory = alloc(rank, 2 * COUNT * 8 + 4096), *second = alloc(rank, COUNT * 8);
    for (int i = 0; i < SUMS; i++)
        check_sum(rank, i, memory, second);
    RANK_OK(rank, isgq_mem_free(second, rank->comm));
}

/* Beyond 8 ranks the library does not take boards by itself. */
START_TEST(bits_are_those_of_direct)
{
    static const int nranks[] = {2, 3, 5, 9};
    iq_ranks_t ranks = {.kind = IQ_RANKS_PROCESSES, .nranks = nranks[_i], .body = sums_body, .argument = nranks[_i] > 8 ? "board" : NULL};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* One rank's input or output is elsewhere, another one each time: everybody goes by the boards. Buffers come and go. */
static void mixed_body(iq_rank_t *rank)
{
    size_t bytes = COUNT * 4;
    float *in = malloc(bytes), *out = malloc(bytes), *due = malloc(bytes);
    fill(rank, 0, in);
    sum_up(rank, 0, in, due, "direct");
    for (int turn = 0; turn < 3 * rank->nranks; turn++) {
        bool odd = turn / 3 == rank->rank;
        float *viewed_in = alloc(rank, bytes), *viewed_out = alloc(rank, bytes);
        memcpy(viewed_in, in, bytes);
        float *to = odd && turn % 3 == 1 ? out : viewed_out;
        sum_up(rank, 0, odd && turn % 3 == 0 ? in : viewed_in, to, NULL);
        bool all = turn % 3 == 2;
        RANK_CHECK(rank, memcmp(to, due, bytes) == 0, "turn %d is not the sum of direct", turn);
        RANK_CHECK(rank, (bytes_sent(rank) < bytes) == all, "turn %d: %zu bytes sent", turn, (size_t)bytes_sent(rank));
        RANK_OK(rank, isgq_mem_free(viewed_in, rank->comm));
        RANK_OK(rank, isgq_mem_free(viewed_out, rank->comm));
    }
    free(in);
    free(out);
    free(due);
}

START_TEST(memory_of_both_kinds)
{
    iq_ranks_t ranks = {.kind = IQ_RANKS_PROCESSES, .nranks = 3, .body = mixed_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* NaN and Inf of any rank show on all. Threads have no views and the same results. */
static void strange_body(iq_rank_t *rank)
{
    float *in = alloc(rank, COUNT * 4), *out = alloc(rank, COUNT * 4);
    for (size_t k = 0; k < COUNT; k++)
        in[k] = 1.0f;
    in[1000 * (size_t)rank->rank + 7] = NAN;
    in[COUNT - 1 - (size_t)rank->rank] = -INFINITY;
    sum_up(rank, 0, in, out, NULL);
    for (size_t k = 0, strange; k < COUNT; k++) {
        strange = (k % 1000 == 7 && k / 1000 < (size_t)rank->nranks) + 2 * (COUNT - 1 - k < (size_t)rank->nranks);
        RANK_CHECK(rank, strange == 1 ? isnan(out[k]) : strange == 2 ? isinf(out[k]) : out[k] == (float)rank->nranks,
                   "element %zu is %g", k, (double)out[k]);
    }
}

START_TEST(nothing_is_hidden)
{
    iq_ranks_t ranks = {.kind = _i == 0 ? IQ_RANKS_PROCESSES : IQ_RANKS_THREADS, .nranks = 3, .body = strange_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* No room for long files: the same without views. */
START_TEST(files_may_be_limited)
{
    iq_ranks_t ranks = {.kind = IQ_RANKS_PROCESSES, .nranks = 2, .body = strange_body};
    struct rlimit before, limited;
    ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &before), 0);
    limited = before;
    limited.rlim_cur = (rlim_t)1 << 34;
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limited), 0);
    iq_ranks_run(&ranks, NULL);
    ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &before), 0);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("in_place");
    iq_add_case(suite, tcase_create("bits"), bits_are_those_of_direct, 4);
    iq_add_case(suite, tcase_create("mixed"), memory_of_both_kinds, 1);
    iq_add_case(suite, tcase_create("strange"), nothing_is_hidden, 2);
    iq_add_case(suite, tcase_create("limited"), files_may_be_limited, 1);
    return suite;
}
