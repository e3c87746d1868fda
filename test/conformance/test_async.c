/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls return once queued, the work goes on without anybody waiting, and the counters tell the truth. Parts of invariants 7
 * and 9 of the design, and what isgqcoll.h says of sequence numbers and statistics.
 */
#include "support/cases.h"
#include "support/check_main.h"
#include "support/samples.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define FRAME 32 /* bytes in front of every message */

/* ---- queueing and waiting ---- */

/* Rank 0 makes its calls only when the others' have returned. */
static void returns_body(iq_rank_t *rank)
{
    enum { CALLS = 10, COUNT = 50000 };
    float *buffers = malloc(CALLS * COUNT * sizeof(*buffers));
    uint64_t sequence = 99, before;
    for (int i = 0; i < CALLS * COUNT; i++)
        buffers[i] = (float)(i / COUNT);
    RANK_OK(rank, isgq_comm_get_sequence(rank->comm, &sequence));
    RANK_CHECK(rank, sequence == 0, "the first call has number %d", (int)sequence + 1);
    if (rank->rank == 0)
        iq_rank_await(rank, 0, (uint64_t)rank->nranks - 1);
    for (int call = 0; call < CALLS; call++) {
        RANK_OK(rank, isgq_allreduce(buffers + call * COUNT, buffers + call * COUNT, COUNT, ISGQ_FLOAT32, ISGQ_SUM, NULL,
                                     rank->comm, NULL, NULL));
        before = sequence;
        RANK_OK(rank, isgq_comm_get_sequence(rank->comm, &sequence));
        RANK_CHECK(rank, sequence == before + 1, "call %d after call %d", (int)sequence, (int)before);
    }
    atomic_fetch_add(&rank->flags[0], 1);
    for (uint64_t call = 0; call < CALLS; call += 3) {
        RANK_OK(rank, isgq_comm_wait(rank->comm, call + 1));
        for (uint64_t earlier = 0; earlier <= call; earlier++)
            RANK_CHECK(rank, buffers[earlier * COUNT + COUNT - 1] == (float)(earlier * (uint64_t)rank->nranks),
                       "call %d is not done", (int)earlier + 1);
    }
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    for (int i = 0; i < CALLS * COUNT; i++)
        RANK_CHECK(rank, buffers[i] == (float)(i / COUNT * rank->nranks), "element %d is wrong", i);
    free(buffers);
}

START_TEST(calls_return_once_queued)
{
    iq_ranks_t ranks = {.kind = _i == 1 ? IQ_RANKS_PROCESSES : IQ_RANKS_THREADS, .nranks = 3, .body = returns_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* Nobody waits: isgq_comm_test never blocks, the communicators' threads do the work. */
static void polled_body(iq_rank_t *rank)
{
    enum { COUNT = 100000 };
    isgq_quantizer_t quantizer = iq_quantizer(rank, "uniform:bits=4");
    float *in = malloc(COUNT * sizeof(*in)), *out = malloc(COUNT * sizeof(*out));
    uint64_t sequence = 0, started = iq_test_now_ns();
    int done = 0;
    iq_samples_fill(ISGQ_FLOAT32, 1, rank->rank, 0, COUNT, in);
    RANK_OK(rank, isgq_allreduce(in, out, COUNT, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, NULL));
    RANK_OK(rank, isgq_barrier(rank->comm, NULL));
    RANK_OK(rank, isgq_comm_get_sequence(rank->comm, &sequence));
    while (!done && iq_test_now_ns() - started < 20000000000u) {
        RANK_OK(rank, isgq_comm_test(rank->comm, sequence, &done));
        iq_test_pause();
    }
    RANK_CHECK(rank, done == 1, "nobody waits, and nobody does the work");
    RANK_OK(rank, isgq_comm_test(rank->comm, sequence - 1, &done));
    RANK_CHECK(rank, done == 1, "a later call is done, an earlier one is not");
    iq_rank_agree(rank, isgqx_hash(out, COUNT * sizeof(*out)), "the sum");
    RANK_CHECK(rank, fabs((double)out[5] - iq_samples_sum(ISGQ_FLOAT32, ISGQ_SUM, 1, rank->nranks, 5)) < 2.0 * rank->nranks,
               "a wrong sum");
    isgq_quantizer_destroy(quantizer);
    free(in);
    free(out);
}

START_TEST(work_goes_on_without_waiting)
{
    iq_ranks_t ranks = {.kind = _i == 1 ? IQ_RANKS_PROCESSES : IQ_RANKS_THREADS, .nranks = 3, .body = polled_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* A wait that ends by the clock leaves the call to the communicator's thread, also when it was in the middle of it. */
static void impatient_body(iq_rank_t *rank)
{
    enum { COUNT = 300000 };
    float *values = calloc(COUNT, sizeof(*values));
    uint64_t sequence = 0;
    int done = 1;
    values[COUNT - 1] = 1.0f;
    if (rank->rank == 0)
        iq_rank_await(rank, 0, (uint64_t)rank->nranks - 1); /* until all others have given up waiting for rank 0 once */
    RANK_OK(rank, isgq_allreduce(values, values, COUNT, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL));
    RANK_OK(rank, isgq_comm_get_sequence(rank->comm, &sequence));
    if (rank->rank != 0) {
        RANK_OK(rank, isgq_comm_wait_for(rank->comm, sequence, 0, &done));
        RANK_CHECK(rank, done == 0, "done without rank 0");
        RANK_OK(rank, isgq_comm_wait_for(rank->comm, sequence, 5, &done));
        RANK_CHECK(rank, done == 0, "done without rank 0");
        atomic_fetch_add(&rank->flags[0], 1);
        for (uint64_t started = iq_test_now_ns(); !done && iq_test_now_ns() - started < 20000000000u; iq_test_pause())
            RANK_OK(rank, isgq_comm_test(rank->comm, sequence, &done));
    }
    RANK_OK(rank, isgq_comm_wait_for(rank->comm, sequence, 20000, &done));
    RANK_CHECK(rank, done == 1 && values[COUNT - 1] == (float)rank->nranks, "done %d, sum %g", done, (double)values[COUNT - 1]);
    free(values);
}

START_TEST(waits_end_by_the_clock)
{
    iq_ranks_t ranks = {.kind = _i == 1 ? IQ_RANKS_PROCESSES : IQ_RANKS_THREADS, .nranks = 3, .body = impatient_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* Some ranks wait while others leave the work to their threads. */
static void mixed_body(iq_rank_t *rank)
{
    int32_t values[200];
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < 200; i++)
            values[i] = i + round;
        RANK_OK(rank, isgq_allreduce(values, values, 200, ISGQ_INT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL));
        if ((rank->rank + round) % 3 == 0)
            RANK_OK(rank, isgq_comm_synchronize(rank->comm));
        iq_rank_meet(rank); /* not the library's: whoever waits here drives nothing */
        RANK_OK(rank, isgq_comm_synchronize(rank->comm));
        for (int i = 0; i < 200; i++)
            RANK_CHECK(rank, values[i] == (i + round) * rank->nranks, "round %d: a wrong sum", round);
        iq_rank_meet(rank);
    }
}

START_TEST(waiters_and_threads_mix)
{
    iq_ranks_t ranks = {.kind = _i == 1 ? IQ_RANKS_PROCESSES : IQ_RANKS_THREADS, .nranks = 4, .body = mixed_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/*
 * The communicators' threads nap while callers do their own work, the longer the more of it there was, and sleep when nothing comes. Whatever they
 * are at, calls that nobody waits for are done.
 */
static void habits_body(iq_rank_t *rank)
{
    int64_t value = 1, late[2];
    for (int round = 0; round < 12; round++) {
        for (int call = 0; call < 40 * (round % 4); call++) {
            RANK_OK(rank, isgq_allreduce(&value, &value, 1, ISGQ_INT64, ISGQ_MAX, NULL, rank->comm, NULL, NULL));
            RANK_OK(rank, isgq_comm_synchronize(rank->comm));
        }
        if (round % 3 == 2)
            nanosleep(&(struct timespec){.tv_nsec = 3000000}, NULL);
        int unwaited = 1 + round % 2, done = 0;
        uint64_t sequence = 0, started = iq_test_now_ns();
        for (int i = 0; i < unwaited; i++) {
            late[i] = round + i;
            RANK_OK(rank, isgq_allreduce(&late[i], &late[i], 1, ISGQ_INT64, ISGQ_SUM, NULL, rank->comm, NULL, NULL));
        }
        RANK_OK(rank, isgq_comm_get_sequence(rank->comm, &sequence));
        while (!done && iq_test_now_ns() - started < 20000000000u) {
            RANK_OK(rank, isgq_comm_test(rank->comm, sequence, &done));
            iq_test_pause();
        }
        RANK_CHECK(rank, done == 1, "round %d: nobody waits, and nobody does the work", round);
        for (int i = 0; i < unwaited; i++)
            RANK_CHECK(rank, late[i] == (int64_t)(round + i) * rank->nranks, "round %d: a wrong sum", round);
    }
}

START_TEST(threads_come_back_from_naps)
{
    iq_ranks_t ranks = {.kind = _i == 1 ? IQ_RANKS_PROCESSES : IQ_RANKS_THREADS, .nranks = 2, .body = habits_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* More calls than the queue holds, of all sizes, without a wait in between. */
static void many_body(iq_rank_t *rank)
{
    enum { CALLS = 1000 };
    int64_t *values = malloc(CALLS * 64 * sizeof(*values));
    uint64_t sequence = 0;
    for (int i = 0; i < CALLS * 64; i++)
        values[i] = i;
    for (int call = 0; call < CALLS; call++)
        RANK_OK(rank, isgq_allreduce(values + call * 64, values + call * 64, (size_t)(call % 65), ISGQ_INT64, ISGQ_SUM, NULL,
                                     rank->comm, NULL, NULL));
    RANK_OK(rank, isgq_comm_get_sequence(rank->comm, &sequence));
    RANK_CHECK(rank, sequence == CALLS, "the last of %d calls has number %d", CALLS, (int)sequence);
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    for (int call = 0; call < CALLS; call++)
        for (int i = 0; i < 64; i++)
            RANK_CHECK(rank, values[call * 64 + i] == (int64_t)(call * 64 + i) * (i < call % 65 ? rank->nranks : 1),
                       "call %d is wrong", call + 1);
    free(values);
}

START_TEST(a_thousand_calls)
{
    iq_ranks_t ranks = {.kind = _i == 1 ? IQ_RANKS_PROCESSES : IQ_RANKS_THREADS, .nranks = 3, .body = many_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- what the counters say ---- */

static isgqx_call_record_t call_record(iq_rank_t *rank, const char *quantizer, size_t count, const char *algorithm)
{
    isgqx_call_record_t record = {.size = sizeof(record)};
    isgq_quantizer_t made = iq_quantizer(rank, quantizer);
    float *out = malloc(count * sizeof(*out));
    iq_allreduce_samples(rank, made, ISGQ_FLOAT32, ISGQ_SUM, 1, count, algorithm, out);
    RANK_OK(rank, isgqx_last_call(rank->comm, &record));
    free(out);
    isgq_quantizer_destroy(made);
    return record;
}

/*
 * Blocks of one length, chunks of 1024 elements. Direct and ring: N-1 blocks out and N-1 back; exchange: everything to
 * everybody; board: everything once. One frame for every message, nothing else.
 */
static void bytes_body(iq_rank_t *rank)
{
    uint64_t n = (uint64_t)rank->nranks, chunks = 5, count = n * chunks * 1024, others = n - 1;
    isgqx_call_record_t record = call_record(rank, "none", count, "direct");
    uint64_t due = 2 * others * chunks * (4096 + FRAME);
    RANK_CHECK(rank, record.wire_bytes == due, "direct sent %d bytes, not %d", (int)record.wire_bytes, (int)due);
    RANK_CHECK(rank, record.own_bytes == 4 * count && record.input_bytes == 4 * count, "own %d, input %d of %d bytes",
               (int)record.own_bytes, (int)record.input_bytes, (int)count * 4);
    record = call_record(rank, "none", count, "ring");
    RANK_CHECK(rank, record.wire_bytes == due, "ring sent %d bytes, not %d", (int)record.wire_bytes, (int)due);
    RANK_CHECK(rank, record.own_bytes == 4 * count, "ring: own %d of %d bytes", (int)record.own_bytes, (int)count * 4);
    record = call_record(rank, "none", count, "exchange");
    due = others * n * chunks * (4096 + FRAME);
    RANK_CHECK(rank, record.wire_bytes == due, "exchange sent %d bytes, not %d", (int)record.wire_bytes, (int)due);
    record = call_record(rank, "none", count, "board");
    due = n == 1 ? 0 : n * chunks * (4096 + FRAME);
    if (iq_lab_hosts() > 1) /* there are none between hosts */
        due = 2 * others * chunks * (4096 + FRAME);
    RANK_CHECK(rank, record.wire_bytes == due, "board wrote %d bytes, not %d", (int)record.wire_bytes, (int)due);
    record = call_record(rank, "uniform:bits=4,scale=local,bucket=1024", count, "direct");
    due = 2 * others * chunks * (512 + 4 + FRAME);
    RANK_CHECK(rank, record.wire_bytes == due, "4 bits: sent %d bytes, not %d", (int)record.wire_bytes, (int)due);
    RANK_CHECK(rank, n == 1 || record.own_bytes == n * chunks * (512 + 4), "4 bits: own %d bytes", (int)record.own_bytes);
    record = call_record(rank, "fp16", count, "direct");
    due = 2 * others * chunks * (2048 + FRAME);
    RANK_CHECK(rank, record.wire_bytes == due, "fp16: sent %d bytes, not %d", (int)record.wire_bytes, (int)due);
    record = call_record(rank, "uniform:bits=4,sum=exact,bucket=1024", count, "direct");
    double bits = ceil(log2((double)n * 14 + 1)); /* sums of n codes from 0 to 14 */
    due = others * chunks * (512 + (uint64_t)(128 * bits) + 2 * FRAME);
    uint64_t scales = 4 * n * chunks; /* their maximum takes one or two rounds */
    RANK_CHECK(rank,
               record.wire_bytes >= due + (n > 1 ? scales : 0) &&
                   record.wire_bytes <= due + others * (2 * scales + 2 * FRAME * (scales / 4096 + 1)),
               "exact sum: sent %d bytes, %d without scales", (int)record.wire_bytes, (int)due);
    if (iq_lab_hosts() > 1 || n > 8) /* beyond 8 ranks the scales' maxima go from rank to rank */
        return;
    record = call_record(rank, "uniform:bits=4,sum=exact,bucket=1024", count, "board");
    due = n == 1 ? 0 : n * chunks * (512 + FRAME) + scales + FRAME; /* a post counts once, whoever reads it: the codes', and that of the scales */
    RANK_CHECK(rank, record.wire_bytes == due, "exact sum on boards: wrote %d bytes, not %d", (int)record.wire_bytes, (int)due);
}

START_TEST(wire_bytes_follow_from_the_shape)
{
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    config.chunk_bytes = 4096;
    iq_ranks_t ranks = {.nranks = iq_test_nranks(_i), .body = bytes_body, .config = &config};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

static void stats_body(iq_rank_t *rank)
{
    isgq_stats_t stats = {.size = sizeof(stats)}, after = {.size = sizeof(after)};
    isgqx_call_record_t record;
    uint64_t own = 0, owned = 0, sent = 0, read = 0;
    for (size_t i = 1; i <= 8; i++) {
        record = call_record(rank, i % 2 ? "none" : "uniform:bits=3", i * 1000, NULL);
        RANK_CHECK(rank, record.sequence == i, "the record is of call %d, not %d", (int)record.sequence, (int)i);
        RANK_CHECK(rank, record.time_ns > 0 && record.input_bytes == i * 4000, "time %d, input %d", (int)record.time_ns,
                   (int)record.input_bytes);
        RANK_CHECK(rank, iq_lab_hosts() > 0 || strcmp(record.transport, rank->nranks == 1 ? "none" : "local") == 0,
                   "the transport is %s", record.transport);
        sent += record.wire_bytes;
        owned += record.own_bytes;
        read += record.input_bytes;
    }
    RANK_OK(rank, isgq_comm_get_stats(rank->comm, &stats));
    RANK_OK(rank, isgqx_own_bytes(rank->comm, &own));
    RANK_CHECK(rank,
               stats.calls == 8 && stats.wire_bytes == sent && stats.input_bytes == read && own == owned &&
                   stats.fallback_calls == 0,
               "%d calls, %d of %d bytes sent, %d of %d read, %d of %d own", (int)stats.calls, (int)stats.wire_bytes, (int)sent,
               (int)stats.input_bytes, (int)read, (int)own, (int)owned);
    RANK_CHECK(rank, stats.quantize_ns > 0, "no time was spent");
    RANK_OK(rank, isgq_comm_reset_stats(rank->comm));
    RANK_OK(rank, isgq_comm_get_stats(rank->comm, &after));
    RANK_OK(rank, isgqx_own_bytes(rank->comm, &own));
    RANK_CHECK(rank,
               after.calls == 0 && after.wire_bytes == 0 && after.input_bytes == 0 && after.transfer_ns == 0 &&
                   after.quantize_ns == 0 && own == 0,
               "the reset left something");
    RANK_CHECK(rank, after.size == sizeof(after), "the reset lost the size");
    record = call_record(rank, "none", 10, NULL);
    RANK_CHECK(rank, record.sequence == 9, "the reset changed the numbers of calls");
}

START_TEST(statistics_add_up)
{
    iq_ranks_t ranks = {.nranks = 1 + _i, .body = stats_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

START_TEST(fixed_formulas)
{
    ck_assert_double_eq_tol(isgqx_fp32_ring_bytes(1000, 4), 6000.0, 1e-9);
    ck_assert_double_eq_tol(isgqx_fp32_ring_bytes(1000, 1), 0.0, 1e-9);
    ck_assert_uint_eq(isgqx_hash("", 0), 0xcbf29ce484222325u); /* published FNV-1a vectors */
    ck_assert_uint_eq(isgqx_hash("a", 1), 0xaf63dc4c8601ec8cu);
    ck_assert_uint_eq(isgqx_hash("foobar", 6), 0x85944171f73967e8u);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("async");
    iq_add_case(suite, tcase_create("returns"), calls_return_once_queued, 2);
    iq_add_case(suite, tcase_create("polled"), work_goes_on_without_waiting, 2);
    iq_add_case(suite, tcase_create("impatient"), waits_end_by_the_clock, 2);
    iq_add_case(suite, tcase_create("mixed"), waiters_and_threads_mix, 2);
    iq_add_case(suite, tcase_create("habits"), threads_come_back_from_naps, 2);
    iq_add_case(suite, tcase_create("many"), a_thousand_calls, 2);
    iq_add_case(suite, tcase_create("wire_bytes"), wire_bytes_follow_from_the_shape, IQ_RANK_COUNTS);
    iq_add_case(suite, tcase_create("stats"), statistics_add_up, 3);
    iq_add_case(suite, tcase_create("formulas"), fixed_formulas, 1);
    return suite;
}
