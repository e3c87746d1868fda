/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Small allreduces of a group travel together: same bits as alone, fewer messages, right statistics, and ranks that disagree are told the value.
 */
#include "support/cases.h"
#include "support/check_main.h"
#include "support/samples.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CALLS 89 /* more than are queued at once; the last is of the first kind */

/* ---- the same bits, whatever travels with a call ---- */

/* Kinds of calls that take turns: each fuses with its like alone, or with none. */
typedef struct kind {
    const char *quantizer;
    isgq_data_type_t type;
    isgq_red_op_t op;
} kind_t;

static const kind_t kinds[] = {
    {"none", ISGQ_FLOAT32, ISGQ_SUM},
    {"uniform:bits=3", ISGQ_FLOAT32, ISGQ_SUM},
    {"none", ISGQ_FLOAT32, ISGQ_MAX},
    {"none", ISGQ_BFLOAT16, ISGQ_AVG},
    {"bf16", ISGQ_FLOAT32, ISGQ_SUM},
    {"uniform:bits=4,bucket=64,rounding=stratified", ISGQ_FLOAT16, ISGQ_AVG},
    {"uniform:bits=5,scale=local,bucket=64", ISGQ_FLOAT32, ISGQ_SUM}, /* not fused: where a message ends shows */
    {"fp16", ISGQ_FLOAT32, ISGQ_AVG},
};
#define KINDS (sizeof(kinds) / sizeof(kinds[0]))

/* 1 to 2700 elements, none at times, and now and then more than is fused. */
static size_t count_of(size_t call) { return call % 29 == 28 ? 20000 : call % 23 == 22 ? 0 : 1 + call * call / 3; }

static size_t bytes_of(isgq_data_type_t type) { return type == ISGQ_FLOAT32 ? 4 : 2; }

static bool is_fused(iq_rank_t *rank)
{
    isgqx_call_record_t record = {.size = sizeof(record)};
    RANK_OK(rank, isgqx_last_call(rank->comm, &record));
    return strncmp(record.why, "fused with ", 11) == 0;
}

static void bits_body(iq_rank_t *rank)
{
    bool grouped = rank->argument != NULL;
    isgq_quantizer_t quantizers[KINDS];
    isgq_call_options_t adds = {.size = sizeof(adds), .accumulate = 1};
    void *in[CALLS], *out[CALLS];
    bool fused = false;
    for (size_t k = 0; k < KINDS; k++)
        quantizers[k] = iq_quantizer(rank, kinds[k].quantizer);
    if (grouped)
        RANK_OK(rank, isgq_group_start());
    for (size_t i = 0; i < CALLS; i++) {
        const kind_t *kind = &kinds[i % KINDS];
        size_t count = count_of(i), bytes = bytes_of(kind->type);
        bool accumulates = i / KINDS % 3 == 1;
        in[i] = malloc((count + 1) * bytes);
        out[i] = i % 5 == 0 && !accumulates ? in[i] : calloc(count + 1, bytes);
        iq_samples_fill(kind->type, i, rank->rank, 0, count, in[i]);
        if (accumulates)
            iq_samples_fill(kind->type, 1000 + i, 0, 0, count, out[i]); /* equal on all ranks, so that results are */
        RANK_OK(rank, isgq_allreduce(in[i], out[i], count, kind->type, kind->op, quantizers[i % KINDS], rank->comm, NULL, accumulates ? &adds : NULL));
        if (!grouped)
            fused |= is_fused(rank);
    }
    for (size_t k = 0; k < KINDS; k++)
        isgq_quantizer_destroy(quantizers[k]);
    if (grouped)
        RANK_OK(rank, isgq_group_end());
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    RANK_CHECK(rank, !fused, "a call outside of groups was fused");
    RANK_CHECK(rank, is_fused(rank) == (grouped && rank->nranks > 1), "the last call was fused in no group, or not in one");
    for (size_t i = 0; i < CALLS; i++) {
        rank->values[i] = isgqx_hash(out[i], count_of(i) * bytes_of(kinds[i % KINDS].type));
        iq_rank_agree(rank, rank->values[i], "a fused call");
        if (out[i] != in[i])
            free(out[i]);
        free(in[i]);
    }
}

START_TEST(fused_calls_have_the_bits_of_single_ones)
{
    static iq_ranks_values_t alone, together;
    static const int nranks[] = {1, 2, 3, 5, 9}; /* 5 in two rounds, 9 without exact sums and boards */
    iq_ranks_t ranks = {.nranks = nranks[_i], .body = bits_body};
    iq_ranks_run(&ranks, &alone);
    ranks.argument = &ranks;
    iq_ranks_run(&ranks, &together);
    for (int i = 0; i < CALLS; i++)
        ck_assert_msg(together.of[0][i] == alone.of[0][i], "call %d has other bits when it is fused", i);
}
END_TEST

/* ---- statistics ---- */

#define TENSORS 50
#define ELEMENTS 1000

/* Biases between weights: 50 of 4000 bytes go in as few messages as their bytes need, and every call has its part. */
static void statistics_body(iq_rank_t *rank)
{
    static float in[IQ_RANKS_MOST][TENSORS][ELEMENTS], out[IQ_RANKS_MOST][TENSORS][ELEMENTS];
    const char *expected = rank->argument;
    isgq_stats_t stats = {.size = sizeof(stats)};
    isgqx_call_record_t record = {.size = sizeof(record)};
    uint64_t payload = (uint64_t)TENSORS * ELEMENTS * sizeof(float);
    RANK_OK(rank, isgq_group_start());
    for (int i = 0; i < TENSORS; i++)
        RANK_OK(rank, isgq_allreduce(in[rank->rank][i], out[rank->rank][i], ELEMENTS, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL));
    RANK_OK(rank, isgq_group_end());
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    RANK_OK(rank, isgq_comm_get_stats(rank->comm, &stats));
    RANK_OK(rank, isgqx_last_call(rank->comm, &record));
    RANK_CHECK(rank, stats.calls == TENSORS && stats.input_bytes == payload, "%d calls of %d bytes", (int)stats.calls, (int)stats.input_bytes);
    RANK_CHECK(rank, stats.wire_bytes > payload && stats.wire_bytes < payload + 8 * 32, "%d bytes sent for %d", (int)stats.wire_bytes, (int)payload);
    RANK_CHECK(rank, strncmp(record.why, expected, strlen(expected)) == 0, "the reason is \"%s\"", record.why);
    RANK_CHECK(rank, record.sequence == TENSORS && record.wire_bytes == stats.wire_bytes / TENSORS, "call %d of %d bytes, all are %d",
               (int)record.sequence, (int)record.wire_bytes, (int)stats.wire_bytes);
}

START_TEST(every_call_has_its_part_of_the_bytes)
{
    char expected[] = "fused with 49 others: 2 ranks, ";
    iq_ranks_t ranks = {.nranks = 2, .body = statistics_body, .argument = expected};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- ranks that disagree ---- */

enum { ODD_COUNT, ODD_OP, ODD_GROUP, ODD_QUANTIZER, ODDITIES };
static const char *const odd_texts[ODDITIES][2] = {
    {"call 3: count is 30", "31 on rank 1"}, {"call 2: op is sum", "max on rank 1"}, {"call 1: grouped is 3", "1 on rank 1"}, {"call 3: quantizer is", ""}};

static void disagreeing_body(iq_rank_t *rank)
{
    int oddity = *(const int *)rank->argument;
    bool odd = rank->rank == 1, alone = odd && oddity == ODD_GROUP;
    static float in[3][3][40], out[3][3][40];
    isgq_quantizer_t fp16 = iq_quantizer(rank, "fp16");
    isgq_result_t result = ISGQ_SUCCESS;
    if (!alone)
        RANK_OK(rank, isgq_group_start());
    for (int i = 0; i < 3 && result == ISGQ_SUCCESS; i++) {
        size_t count = odd && oddity == ODD_COUNT && i == 2 ? 31 : 10 * (size_t)(i + 1);
        isgq_red_op_t op = odd && oddity == ODD_OP && i == 1 ? ISGQ_MAX : ISGQ_SUM;
        isgq_quantizer_t quantizer = odd && oddity == ODD_QUANTIZER && i == 2 ? fp16 : NULL;
        result = isgq_allreduce(in[rank->rank][i], out[rank->rank][i], count, ISGQ_FLOAT32, op, quantizer, rank->comm, NULL, NULL);
    }
    isgq_quantizer_destroy(fp16);
    if (!alone && result == ISGQ_SUCCESS)
        result = isgq_group_end();
    if (result == ISGQ_SUCCESS)
        result = isgq_comm_synchronize(rank->comm);
    RANK_CHECK(rank, result == ISGQ_ERR_MISMATCH && strstr(isgq_get_last_error(), odd_texts[oddity][0]) != NULL &&
               strstr(isgq_get_last_error(), odd_texts[oddity][1]) != NULL, "\"%s\" is not \"%s ... %s\"", isgq_get_last_error(),
               odd_texts[oddity][0], odd_texts[oddity][1]);
}

START_TEST(what_differs_is_named)
{
    iq_ranks_t ranks = {.nranks = 3, .body = disagreeing_body, .argument = &_i, .broken = true};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- buffers that depend on one another ---- */

static void dependent_body(iq_rank_t *rank)
{
    float a[64] = {0}, b[8], c[8];
    RANK_OK(rank, isgq_group_start());
    RANK_OK(rank, isgq_allreduce(a, b, 8, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL));
    RANK_OK(rank, isgq_barrier(rank->comm, NULL));
    RANK_OK(rank, isgq_allreduce(b, c, 8, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL));
    iq_rank_meet(rank); /* the first group that ends fails the communicator */
    RANK_STATUS(rank, isgq_group_end(), ISGQ_ERR_INVALID_USAGE);
    RANK_CHECK(rank, strstr(isgq_get_last_error(), "ISGQ_FUSE_BYTES") != NULL, "\"%s\" does not say what to do", isgq_get_last_error());
}

START_TEST(calls_that_read_what_others_write_are_refused)
{
    iq_ranks_t ranks = {.nranks = 2, .body = dependent_body, .broken = true};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* They are done in order where nothing is fused. */
static void chained_body(iq_rank_t *rank)
{
    float a[8], b[8], c[8];
    for (int i = 0; i < 8; i++)
        a[i] = (float)i;
    RANK_OK(rank, isgq_group_start());
    RANK_OK(rank, isgq_allreduce(a, b, 8, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL));
    RANK_OK(rank, isgq_allreduce(b, c, 8, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL));
    RANK_OK(rank, isgq_group_end());
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    RANK_CHECK(rank, c[7] == 28.0f && !is_fused(rank), "7 summed twice over 2 ranks is %g", (double)c[7]);
}

START_TEST(nothing_is_fused_with_zero_bytes)
{
    static const char *const environment[] = {"ISGQ_FUSE_BYTES=0", NULL};
    iq_ranks_t ranks = {.kind = IQ_RANKS_PROCESSES, .nranks = 2, .body = chained_body, .environment = environment};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- a setting that must be equal ---- */

static void settle_body(iq_rank_t *rank)
{
    isgq_comm_t comm = NULL;
    setenv("ISGQ_FUSE_BYTES", rank->rank == 1 ? "8k" : "4k", 1); /* read at the first call */
    RANK_STATUS(rank, isgq_comm_init_rank(&comm, rank->nranks, iq_rank_id(rank), rank->rank, NULL), ISGQ_ERR_MISMATCH);
    RANK_CHECK(rank, strstr(isgq_get_last_error(), "ISGQ_FUSE_BYTES is 4096 on rank 0 and 8192 on rank 1") != NULL, "\"%s\"",
               isgq_get_last_error());
}

START_TEST(ranks_fuse_the_same_sizes)
{
    iq_ranks_t ranks = {.kind = IQ_RANKS_PROCESSES, .nranks = 2, .body = settle_body, .apart = true};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("fused");
    iq_add_case(suite, tcase_create("bits"), fused_calls_have_the_bits_of_single_ones, 5);
    iq_add_case(suite, tcase_create("statistics"), every_call_has_its_part_of_the_bytes, 1);
    iq_add_case(suite, tcase_create("mismatch"), what_differs_is_named, ODDITIES);
    iq_add_case(suite, tcase_create("dependent"), calls_that_read_what_others_write_are_refused, 1);
    iq_add_case(suite, tcase_create("off"), nothing_is_fused_with_zero_bytes, 1);
    iq_add_case(suite, tcase_create("settings"), ranks_fuse_the_same_sizes, 1);
    return suite;
}
