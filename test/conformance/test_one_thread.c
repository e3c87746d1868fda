/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One thread that holds several ranks, as a driver of several devices does; and other callers at the edge of what is allowed: a watchdog that destroys while
 * another thread waits, pointers from elsewhere, shapes that cannot be. Each of these once failed.
 */
#include "isgqcoll.h"
#include "isgqcoll_ext.h"

#include "support/check_main.h"

#include <check.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { RANKS = 2 };

static void join_all(isgq_comm_t comms[RANKS], const isgq_comm_config_t *config)
{
    isgq_unique_id_t id;
    ck_assert_int_eq(isgq_get_unique_id(&id), ISGQ_SUCCESS);
    ck_assert_int_eq(isgq_group_start(), ISGQ_SUCCESS);
    for (int r = 0; r < RANKS; r++)
        ck_assert_int_eq(isgq_comm_init_rank(&comms[r], RANKS, id, r, config), ISGQ_SUCCESS);
    ck_assert_msg(isgq_group_end() == ISGQ_SUCCESS, "%s", isgq_get_last_error());
}

static void leave_all(isgq_comm_t comms[RANKS])
{
    for (int r = 0; r < RANKS; r++)
        ck_assert_int_eq(isgq_comm_destroy(comms[r]), ISGQ_SUCCESS);
}

/* More calls than a queue holds, all of rank 0 before all of rank 1: queueing must not wait for what the same thread has yet to queue. */
START_TEST(a_group_longer_than_the_queue)
{
    enum { CALLS = 700 };
    static int32_t in[RANKS][CALLS], out[RANKS][CALLS];
    isgq_comm_t comms[RANKS];
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    config.timeout_ms = 20000;
    join_all(comms, &config);
    ck_assert_int_eq(isgq_group_start(), ISGQ_SUCCESS);
    for (int r = 0; r < RANKS; r++)
        for (int i = 0; i < CALLS; i++) {
            in[r][i] = 1000 * r + i;
            ck_assert_int_eq(isgq_allreduce(&in[r][i], &out[r][i], 1, ISGQ_INT32, ISGQ_SUM, NULL, comms[r], NULL, NULL), ISGQ_SUCCESS);
        }
    ck_assert_msg(isgq_group_end() == ISGQ_SUCCESS, "%s", isgq_get_last_error());
    for (int r = 0; r < RANKS; r++)
        ck_assert_msg(isgq_comm_synchronize(comms[r]) == ISGQ_SUCCESS, "%s", isgq_get_last_error());
    for (int r = 0; r < RANKS; r++)
        for (int i = 0; i < CALLS; i++)
            ck_assert_int_eq(out[r][i], 1000 + 2 * i);
    leave_all(comms);
}
END_TEST

/* What a configuration points at may go as soon as the call has returned, also inside a group. */
START_TEST(a_configuration_is_kept)
{
    isgq_comm_t comms[RANKS];
    isgq_unique_id_t id;
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    isgq_quantizer_t quantizer;
    char *transports = strdup("local");
    ck_assert_int_eq(isgq_quantizer_create(&quantizer, "uniform:bits=3"), ISGQ_SUCCESS);
    config.quantizer = quantizer;
    config.transports = transports;
    ck_assert_int_eq(isgq_get_unique_id(&id), ISGQ_SUCCESS);
    ck_assert_int_eq(isgq_group_start(), ISGQ_SUCCESS);
    for (int r = 0; r < RANKS; r++)
        ck_assert_int_eq(isgq_comm_init_rank(&comms[r], RANKS, id, r, &config), ISGQ_SUCCESS);
    isgq_quantizer_destroy(quantizer);
    memset(transports, 'x', strlen(transports));
    free(transports);
    ck_assert_msg(isgq_group_end() == ISGQ_SUCCESS, "%s", isgq_get_last_error());
    leave_all(comms);
}
END_TEST

START_TEST(a_null_communicator_refuses_the_group)
{
    isgq_comm_t comms[RANKS];
    int32_t value = 1, sum;
    uint64_t sequence;
    join_all(comms, NULL);
    ck_assert_int_eq(isgq_group_start(), ISGQ_SUCCESS);
    ck_assert_int_eq(isgq_allreduce(&value, &sum, 1, ISGQ_INT32, ISGQ_SUM, NULL, comms[0], NULL, NULL), ISGQ_SUCCESS);
    ck_assert_int_eq(isgq_allreduce(&value, &sum, 1, ISGQ_INT32, ISGQ_SUM, NULL, NULL, NULL, NULL), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_int_eq(isgq_group_end(), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_int_eq(isgq_comm_get_sequence(comms[0], &sequence), ISGQ_SUCCESS);
    ck_assert_uint_eq(sequence, 0);
    leave_all(comms);
}
END_TEST

START_TEST(collective_creation_is_forbidden_in_groups)
{
    isgq_comm_t comms[RANKS], part = NULL;
    join_all(comms, NULL);
    ck_assert_int_eq(isgq_group_start(), ISGQ_SUCCESS);
    ck_assert_int_eq(isgq_comm_split(comms[0], 0, 0, &part, NULL), ISGQ_ERR_INVALID_USAGE);
    ck_assert_int_eq(isgq_comm_init_env(&part, NULL), ISGQ_ERR_INVALID_USAGE);
    ck_assert_int_eq(isgq_group_end(), ISGQ_SUCCESS);
    leave_all(comms);
}
END_TEST

/* ---- a watchdog ---- */

static isgq_result_t waited;

static void *wait_for_ever(void *argument)
{
    isgq_comm_t comm = argument;
    static float x[64 * 4000], delta[64 * 4000], *grad;
    grad = malloc(4000 * 4000 * sizeof(float));
    isgq_factors_t factors = {.size = sizeof(factors), .x = x, .delta = delta, .batch = 64, .m = 4000, .n = 4000};
    waited = isgq_allreduce_factored(&factors, 64, grad, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL);
    if (waited == ISGQ_SUCCESS)
        waited = isgq_comm_synchronize(comm);
    free(grad);
    return NULL;
}

/* Abort and destroy from one thread while another works and waits: memory goes when the last caller has left. */
START_TEST(a_watchdog_destroys)
{
    isgq_comm_t comms[RANKS];
    pthread_t waiter;
    uint64_t sequence = 0;
    join_all(comms, NULL);
    ck_assert_int_eq(pthread_create(&waiter, NULL, wait_for_ever, comms[0]), 0);
    while (sequence == 0)
        ck_assert_int_eq(isgq_comm_get_sequence(comms[0], &sequence), ISGQ_SUCCESS);
    usleep(20000 + 2000 * (useconds_t)_i); /* by then it waits */
    ck_assert_int_eq(isgq_comm_abort(comms[0]), ISGQ_SUCCESS);
    leave_all(comms); /* while the waiter may still be inside */
    pthread_join(waiter, NULL);
    ck_assert_int_eq(waited, ISGQ_ERR_REMOTE);
}
END_TEST

/* ---- what cannot be ---- */

START_TEST(foreign_memory_is_refused)
{
    isgq_comm_t comms[RANKS];
    void *mine;
    long page = sysconf(_SC_PAGESIZE);
    unsigned char *pages = mmap(NULL, 2 * (size_t)page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(pages, MAP_FAILED);
    join_all(comms, NULL);
    ck_assert_int_eq(isgq_mem_free(pages + page, comms[0]), ISGQ_ERR_INVALID_ARGUMENT); /* not even readable */
    ck_assert_int_eq(isgq_mem_alloc(&mine, comms[0], 100), ISGQ_SUCCESS);
    ck_assert_int_eq(isgq_mem_free(mine, comms[1]), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_int_eq(isgq_mem_free(mine, comms[0]), ISGQ_SUCCESS);
    ck_assert_int_eq(isgq_mem_free(mine, comms[0]), ISGQ_ERR_INVALID_ARGUMENT); /* twice */
    ck_assert_int_eq(isgq_mem_alloc(&mine, comms[0], 100), ISGQ_SUCCESS);       /* goes with the communicator */
    leave_all(comms);
    munmap(pages, 2 * (size_t)page);
}
END_TEST

START_TEST(absurd_factors_end_at_once)
{
    static const size_t shapes[][2] = {{SIZE_MAX, 0}, {0, SIZE_MAX - 1}, {(size_t)1 << 22, 0}, {0, (size_t)1 << 22}};
    isgq_comm_t comm;
    isgq_unique_id_t id;
    ck_assert_int_eq(isgq_get_unique_id(&id), ISGQ_SUCCESS);
    ck_assert_int_eq(isgq_comm_init_rank(&comm, 1, id, 0, NULL), ISGQ_SUCCESS);
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++) {
        isgq_factors_t factors = {.size = sizeof(factors), .m = shapes[i][0], .n = shapes[i][1]};
        isgq_result_t result = isgq_allreduce_factored(&factors, 0, NULL, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL);
        ck_assert_msg(result == (i < 2 ? ISGQ_ERR_INVALID_ARGUMENT : ISGQ_SUCCESS), "shape %zu: %s", i, isgq_get_last_error());
        ck_assert_int_eq(isgq_comm_synchronize(comm), ISGQ_SUCCESS);
    }
    ck_assert_int_eq(isgq_comm_destroy(comm), ISGQ_SUCCESS);
}
END_TEST

/* Scales of the smallest buckets for a tensor of which only the address is used: refused when the call is made, and the communicator goes on. */
START_TEST(scratch_is_checked_when_a_call_is_made)
{
    isgq_comm_t comm;
    isgq_unique_id_t id;
    isgq_quantizer_t quantizer;
    static float one = 1, sum;
    ck_assert_int_eq(isgq_get_unique_id(&id), ISGQ_SUCCESS);
    ck_assert_int_eq(isgq_comm_init_rank(&comm, 1, id, 0, NULL), ISGQ_SUCCESS);
    ck_assert_int_eq(isgq_quantizer_create(&quantizer, "uniform:bits=4,bucket=32"), ISGQ_SUCCESS);
    ck_assert_int_eq(isgq_allreduce(&one, &one, (size_t)1 << 40, ISGQ_FLOAT32, ISGQ_SUM, quantizer, comm, NULL, NULL), ISGQ_ERR_NO_MEMORY);
    ck_assert_ptr_ne(strstr(isgq_get_last_error(), "ISGQ_SCRATCH_BYTES"), NULL);
    ck_assert_int_eq(isgq_allreduce(&one, &sum, 1, ISGQ_FLOAT32, ISGQ_SUM, quantizer, comm, NULL, NULL), ISGQ_SUCCESS);
    ck_assert_int_eq(isgq_comm_synchronize(comm), ISGQ_SUCCESS);
    isgq_quantizer_destroy(quantizer);
    ck_assert_int_eq(isgq_comm_destroy(comm), ISGQ_SUCCESS);
}
END_TEST

/* A tensor of 64 KiB shows that time spent waiting for a late rank is counted as such. */
static void *come_late(void *argument)
{
    static float late[16384];
    isgq_comm_t comm = argument;
    usleep(200000);
    if (isgq_allreduce(late, late, 16384, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL) == ISGQ_SUCCESS)
        (void)isgq_comm_synchronize(comm);
    return NULL;
}

START_TEST(waiting_is_counted_as_transfer)
{
    static float early[16384];
    isgq_comm_t comms[RANKS];
    pthread_t late;
    isgq_stats_t stats = {.size = sizeof(stats)};
    join_all(comms, NULL);
    ck_assert_int_eq(pthread_create(&late, NULL, come_late, comms[1]), 0);
    ck_assert_int_eq(isgq_allreduce(early, early, 16384, ISGQ_FLOAT32, ISGQ_SUM, NULL, comms[0], NULL, NULL), ISGQ_SUCCESS);
    usleep(20000); /* the communicator's thread begins to wait, the caller goes on */
    ck_assert_int_eq(isgq_comm_synchronize(comms[0]), ISGQ_SUCCESS);
    pthread_join(late, NULL);
    ck_assert_int_eq(isgq_comm_get_stats(comms[0], &stats), ISGQ_SUCCESS);
    ck_assert_msg(stats.transfer_ns > 100000000u, "%llu ns", (unsigned long long)stats.transfer_ns);
    leave_all(comms);
}
END_TEST

static void add(Suite *suite, TCase *tcase, const TTest *test, int times)
{
    tcase_set_timeout(tcase, 100);
    tcase_add_loop_test(tcase, test, 0, times);
    suite_add_tcase(suite, tcase);
}

Suite *iq_suite(void)
{
    Suite *suite = suite_create("one_thread");
    add(suite, tcase_create("long_group"), a_group_longer_than_the_queue, 1);
    add(suite, tcase_create("configuration"), a_configuration_is_kept, 1);
    add(suite, tcase_create("null"), a_null_communicator_refuses_the_group, 1);
    add(suite, tcase_create("creation"), collective_creation_is_forbidden_in_groups, 1);
    add(suite, tcase_create("watchdog"), a_watchdog_destroys, 8);
    add(suite, tcase_create("memory"), foreign_memory_is_refused, 1);
    add(suite, tcase_create("absurd"), absurd_factors_end_at_once, 1);
    add(suite, tcase_create("scratch"), scratch_is_checked_when_a_call_is_made, 1);
    add(suite, tcase_create("waiting"), waiting_is_counted_as_transfer, 1);
    return suite;
}
