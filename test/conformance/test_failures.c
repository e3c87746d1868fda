/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When ranks fail: everybody learns of it in time, the text names the rank at fault and not its neighbour, the communicator
 * stays dead, and nothing is left behind. Invariants 7 and 8 of the design.
 */
#include "support/cases.h"
#include "support/check_main.h"
#include "support/samples.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define SECOND 1000000000u
#define COUNT 100000 /* of elements in a call: some chunks have the full size */
#define DEATH_NS (IQ_TEST_SANITIZED ? 10u : 5u) * (uint64_t)SECOND

/* The number after "rank " at the text's next mention, or -1; *text moves behind it. */
static long next_rank(const char **text)
{
    char *end;
    const char *at = strstr(*text, "rank ");
    long rank = at == NULL ? -1 : strtol(at + 5, &end, 10);
    *text = at == NULL ? "" : end;
    return rank;
}

/* The first rank that the text names is the culprit; a reporter may stand before it ("rank 3: ..."), witnesses may follow. */
static bool names_rank(const char *text, int culprit)
{
    bool reported = strncmp(text, "rank ", 5) == 0;
    long first = next_rank(&text);
    return first == culprit || (reported && text[0] == ':' && next_rank(&text) == culprit);
}

/* The communicator is dead for good: the same status and the same culprit everywhere, at once. */
static void check_dead(iq_rank_t *rank, isgq_result_t due, int culprit)
{
    isgq_result_t async = ISGQ_SUCCESS;
    float in[8] = {0}, out[8];
    uint64_t started = iq_test_now_ns();
    RANK_OK(rank, isgq_comm_get_async_error(rank->comm, &async));
    RANK_CHECK(rank, async == due, "the async error is %d, not %d", (int)async, (int)due);
    RANK_CHECK(rank, iq_test_one_line(isgq_comm_get_last_error(rank->comm)), "the communicator's text is no line");
    RANK_CHECK(rank, names_rank(isgq_comm_get_last_error(rank->comm), culprit), "the text does not name rank %d", culprit);
    RANK_STATUS(rank, isgq_allreduce(in, out, 8, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL), due);
    RANK_STATUS(rank, isgq_barrier(rank->comm, NULL), due);
    RANK_STATUS(rank, isgq_comm_synchronize(rank->comm), due);
    RANK_CHECK(rank, names_rank(isgq_get_last_error(), culprit), "\"%s\" does not name rank %d", isgq_get_last_error(), culprit);
    RANK_CHECK(rank, iq_test_now_ns() - started < SECOND, "a dead communicator still makes callers wait");
}

/* Calls until one fails; it must fail in time with this status. */
static void call_until_failure(iq_rank_t *rank, const char *algorithm, isgq_result_t due, uint64_t limit_ns)
{
    isgq_call_options_t options = {.size = sizeof(options), .algorithm = algorithm};
    float *buffer = calloc(COUNT, sizeof(*buffer));
    uint64_t started = iq_test_now_ns();
    isgq_result_t result = ISGQ_SUCCESS;
    while (result == ISGQ_SUCCESS && iq_test_now_ns() - started < 40 * (uint64_t)SECOND) {
        result = isgq_allreduce(buffer, buffer, COUNT, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, &options);
        if (result == ISGQ_SUCCESS)
            result = isgq_comm_synchronize(rank->comm);
    }
    uint64_t hit = atomic_load(&rank->flags[0]), now = iq_test_now_ns();
    free(buffer);
    RANK_CHECK(rank, result == due, "status %d instead of %d: %s", (int)result, (int)due, isgq_get_last_error());
    RANK_CHECK(rank, hit != 0, "failed before the victim was hit: %s", isgq_get_last_error());
    RANK_CHECK(rank, now - hit < limit_ns, "learned of it only after %.1f s", (double)(now - hit) * 1e-9);
}

/* ---- a rank dies ---- */

typedef struct death {
    int victim;
    int signal_number; /* 0: _exit */
    const char *algorithm;
    uint32_t timeout_ms;
} death_t;

static void hit_oneself(iq_rank_t *rank, const death_t *death)
{
    isgq_call_options_t options = {.size = sizeof(options), .algorithm = death->algorithm};
    float *buffer = calloc(COUNT, sizeof(*buffer));
    for (int call = 0; call < 20; call++) {
        RANK_OK(rank, isgq_allreduce(buffer, buffer, COUNT, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, &options));
        if (call < 19)
            RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    }
    atomic_store(&rank->flags[0], iq_test_now_ns()); /* in the middle of the last call */
    if (death->signal_number == 0)
        _exit(0);
    kill(getpid(), death->signal_number);
    iq_rank_await(rank, 15, 1); /* a stopped process gets no further */
}

static void death_body(iq_rank_t *rank)
{
    const death_t *death = rank->argument;
    if (rank->rank == death->victim)
        hit_oneself(rank, death);
    call_until_failure(rank, death->algorithm, ISGQ_ERR_REMOTE, DEATH_NS);
    check_dead(rank, ISGQ_ERR_REMOTE, death->victim);
}

static void run_death(iq_ranks_kind_t kind, int nranks, death_t death)
{
    iq_ranks_t ranks = {.kind = kind,
                        .nranks = nranks,
                        .body = death_body,
                        .argument = &death,
                        .broken = true,
                        .lost = 1u << death.victim,
                        .lost_signal = death.signal_number};
    iq_ranks_run(&ranks, NULL);
}

START_TEST(killed_rank_is_named)
{
    run_death(IQ_RANKS_PROCESSES, 4, (death_t){_i, SIGKILL, _i % 2 ? "ring" : NULL, 0});
}
END_TEST

START_TEST(exited_rank_is_named)
{
    run_death(IQ_RANKS_PROCESSES, 3, (death_t){_i, 0, NULL, 0});
}
END_TEST

START_TEST(killed_host_is_named)
{
    if (iq_ranks_have_network())
        run_death(IQ_RANKS_HOSTS, 4, (death_t){_i, SIGKILL, _i % 2 ? "levels" : "ring", 0});
}
END_TEST

/* ---- a rank stops ---- */

static void stopped_body(iq_rank_t *rank)
{
    const death_t *death = rank->argument;
    if (rank->rank == death->victim)
        hit_oneself(rank, death);
    call_until_failure(rank, death->algorithm, ISGQ_ERR_TIMEOUT, death->timeout_ms * 1000000ull + DEATH_NS);
    check_dead(rank, ISGQ_ERR_TIMEOUT, death->victim);
}

static void run_stopped(iq_ranks_kind_t kind, int victim)
{
    death_t death = {victim, SIGSTOP, "ring", 700};
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    config.timeout_ms = death.timeout_ms;
    iq_ranks_t ranks = {
        .kind = kind, .nranks = 4, .body = stopped_body, .argument = &death, .broken = true, .lost = 1u << victim};
    ranks.config = &config;
    iq_ranks_run(&ranks, NULL);
}

START_TEST(stopped_rank_is_named)
{
    run_stopped(IQ_RANKS_PROCESSES, _i);
}
END_TEST

START_TEST(stopped_host_is_named)
{
    if (iq_ranks_have_network())
        run_stopped(IQ_RANKS_HOSTS, _i);
}
END_TEST

/* ---- a rank never makes the call ---- */

static void absent_body(iq_rank_t *rank)
{
    const int *victim = rank->argument;
    isgq_result_t async = ISGQ_SUCCESS;
    if (rank->rank != *victim) {
        atomic_store(&rank->flags[0], iq_test_now_ns());
        call_until_failure(rank, "ring", ISGQ_ERR_TIMEOUT, 600 * 1000000ull + DEATH_NS);
        check_dead(rank, ISGQ_ERR_TIMEOUT, *victim);
        atomic_fetch_add(&rank->flags[1], 1);
        return;
    }
    iq_rank_await(rank, 1, (uint64_t)rank->nranks - 1);
    uint64_t started = iq_test_now_ns(); /* the culprit learns of it too */
    while (async == ISGQ_SUCCESS && iq_test_now_ns() - started < DEATH_NS) {
        RANK_OK(rank, isgq_comm_get_async_error(rank->comm, &async));
        iq_test_pause();
    }
    check_dead(rank, ISGQ_ERR_TIMEOUT, *victim);
}

START_TEST(absent_rank_is_named)
{
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    int victim = _i % 4;
    config.timeout_ms = 600;
    iq_ranks_t ranks = {.nranks = 4, .body = absent_body, .argument = &victim, .config = &config, .broken = true};
    if (_i < 4 && iq_ranks_have_network())
        ranks.kind = IQ_RANKS_HOSTS; /* what waits for the victim there is UCX's */
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* The timeout of one call, by its options. */
static void call_timeout_body(iq_rank_t *rank)
{
    isgq_call_options_t options = {.size = sizeof(options), .timeout_ms = 300};
    float buffer[8] = {0};
    uint64_t started = iq_test_now_ns();
    if (rank->rank == 0) {
        iq_rank_await(rank, 0, 1);
        return;
    }
    RANK_OK(rank, isgq_allreduce(buffer, buffer, 8, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, &options));
    RANK_STATUS(rank, isgq_comm_synchronize(rank->comm), ISGQ_ERR_TIMEOUT);
    uint64_t waited = iq_test_now_ns() - started;
    RANK_CHECK(rank, waited > 290 * 1000000ull && waited < 300 * 1000000ull + DEATH_NS, "gave up after %.2f s",
               (double)waited * 1e-9);
    RANK_CHECK(rank, names_rank(isgq_get_last_error(), 0), "\"%s\" does not name rank 0", isgq_get_last_error());
    atomic_store(&rank->flags[0], 1);
}

START_TEST(one_calls_timeout)
{
    iq_ranks_t ranks = {.nranks = 2, .body = call_timeout_body, .broken = true};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- a rank never joins ---- */

static void missing_body(iq_rank_t *rank)
{
    const int *victim = rank->argument;
    isgq_comm_t comm = NULL;
    isgq_unique_id_t id = iq_rank_id(rank);
    iq_rank_meet(rank); /* nobody else is late */
    uint64_t started = iq_test_now_ns();
    if (rank->rank == *victim) { /* rank 0 holds the listening socket: it stays until the others are gone */
        iq_rank_await(rank, 0, (uint64_t)rank->nranks - 1);
        return;
    }
    RANK_STATUS(rank, isgq_comm_init_rank(&comm, rank->nranks, id, rank->rank, NULL), ISGQ_ERR_TIMEOUT);
    RANK_CHECK(rank, comm == NULL, "a handle was written");
    RANK_CHECK(rank, iq_test_now_ns() - started < 1200 * 1000000ull + DEATH_NS, "joining gave up after %.1f s",
               (double)(iq_test_now_ns() - started) * 1e-9);
    RANK_CHECK(rank, names_rank(isgq_get_last_error(), *victim), "\"%s\" does not name rank %d", isgq_get_last_error(), *victim);
    atomic_fetch_add(&rank->flags[0], 1);
}

START_TEST(missing_rank_is_named)
{
    static const char *const environment[] = {"ISGQ_INIT_TIMEOUT_MS=1200", NULL};
    iq_ranks_t ranks = {.kind = IQ_RANKS_PROCESSES,
                        .nranks = 4,
                        .body = missing_body,
                        .argument = &_i,
                        .environment = environment,
                        .apart = true};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

static void *kill_soon(void *argument)
{
    iq_rank_t *rank = argument;
    uint64_t started = iq_test_now_ns();
    while (iq_test_now_ns() - started < SECOND / 4) /* by then it has joined rank 0 and waits for rank 2 */
        iq_test_pause();
    atomic_store(&rank->flags[0], iq_test_now_ns());
    kill(getpid(), SIGKILL);
    return NULL;
}

static void dies_joining_body(iq_rank_t *rank)
{
    isgq_comm_t comm = NULL;
    isgq_unique_id_t id = iq_rank_id(rank);
    pthread_t killer;
    if (rank->rank == 2) {
        iq_rank_await(rank, 1, 1);
        return;
    }
    if (rank->rank == 1)
        RANK_CHECK(rank, pthread_create(&killer, NULL, kill_soon, rank) == 0, "no thread");
    RANK_STATUS(rank, isgq_comm_init_rank(&comm, rank->nranks, id, rank->rank, NULL), ISGQ_ERR_REMOTE);
    RANK_CHECK(rank, iq_test_now_ns() - atomic_load(&rank->flags[0]) < DEATH_NS, "too late");
    RANK_CHECK(rank, names_rank(isgq_get_last_error(), 1), "\"%s\" does not name rank 1", isgq_get_last_error());
    atomic_store(&rank->flags[1], 1);
}

START_TEST(rank_that_dies_while_joining_is_named)
{
    iq_ranks_t ranks = {
        .kind = IQ_RANKS_PROCESSES, .nranks = 3, .body = dies_joining_body, .apart = true, .lost = 2, .lost_signal = SIGKILL};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- abort ---- */

static void *abort_later(void *argument)
{
    iq_rank_t *rank = argument;
    uint64_t started = iq_test_now_ns();
    while (iq_test_now_ns() - started < SECOND / 20) /* the waits below sleep by then */
        iq_test_pause();
    atomic_store(&rank->flags[0], iq_test_now_ns());
    return (void *)(intptr_t)isgq_comm_abort(rank->comm);
}

/* Rank 0 never calls; ranks 1 and 2 wait; another thread aborts rank 1's communicator. */
static void abort_body(iq_rank_t *rank)
{
    float buffer[100] = {0};
    pthread_t thread;
    void *result = NULL;
    isgq_result_t heard = ISGQ_SUCCESS;
    if (rank->rank > 0)
        RANK_OK(rank, isgq_allreduce(buffer, buffer, 100, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL));
    iq_rank_meet(rank);
    if (rank->rank == 1)
        RANK_CHECK(rank, pthread_create(&thread, NULL, abort_later, rank) == 0, "no thread");
    if (rank->rank == 0)
        iq_rank_await(rank, 1, 2);
    else
        RANK_STATUS(rank, isgq_comm_synchronize(rank->comm), ISGQ_ERR_REMOTE);
    while (isgq_comm_get_async_error(rank->comm, &heard) == ISGQ_SUCCESS && heard == ISGQ_SUCCESS)
        iq_test_pause(); /* rank 0 passes the news on before it looks at it */
    RANK_CHECK(rank, iq_test_now_ns() - atomic_load(&rank->flags[0]) < 2 * (uint64_t)SECOND, "woke late");
    atomic_fetch_add(&rank->flags[1], 1);
    check_dead(rank, ISGQ_ERR_REMOTE, 1);
    if (rank->rank == 1) {
        pthread_join(thread, &result);
        RANK_OK(rank, (isgq_result_t)(intptr_t)result);
    }
}

START_TEST(abort_wakes_everybody)
{
    iq_ranks_t ranks = {.kind = _i == 0 ? IQ_RANKS_THREADS : IQ_RANKS_PROCESSES, .nranks = 3, .body = abort_body, .broken = true};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- leaving without goodbye ---- */

static void destroy_body(iq_rank_t *rank)
{
    isgq_comm_t comm = rank->comm;
    float buffer[4] = {0};
    RANK_OK(rank, isgq_allreduce(buffer, buffer, 4, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL));
    RANK_OK(rank, isgq_comm_synchronize(comm));
    iq_rank_meet(rank);
    if (rank->rank == 2) {
        rank->comm = NULL;
        atomic_store(&rank->flags[0], iq_test_now_ns());
        RANK_OK(rank, isgq_comm_destroy(comm));
        return;
    }
    call_until_failure(rank, NULL, ISGQ_ERR_REMOTE, DEATH_NS);
    check_dead(rank, ISGQ_ERR_REMOTE, 2);
}

START_TEST(destroy_without_finalize)
{
    iq_ranks_t ranks = {
        .kind = _i == 0 ? IQ_RANKS_THREADS : IQ_RANKS_PROCESSES, .nranks = 3, .body = destroy_body, .broken = true};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* Destroying with calls still queued: no crash, no hang. */
static void destroy_queued_body(iq_rank_t *rank)
{
    isgq_comm_t comm = rank->comm;
    float *buffer = calloc(50000, sizeof(*buffer));
    for (int call = 0; call < 20 && rank->rank != 0; call++)
        RANK_OK(rank, isgq_allreduce(buffer, buffer, 50000, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL));
    iq_rank_meet(rank);
    rank->comm = NULL;
    RANK_OK(rank, isgq_comm_destroy(comm));
    free(buffer);
}

START_TEST(destroy_with_calls_queued)
{
    iq_ranks_t ranks = {.nranks = 3, .body = destroy_queued_body, .broken = true};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- nothing is left behind ---- */

static int count_entries(const char *path, const char *part)
{
    int entries = 0;
    DIR *folder = opendir(path);
    for (struct dirent *entry = folder != NULL ? readdir(folder) : NULL; entry != NULL; entry = readdir(folder))
        entries += entry->d_name[0] != '.' && strstr(entry->d_name, part) != NULL;
    if (folder != NULL)
        closedir(folder);
    return entries;
}

/* Threads end a moment after they are joined: waits for `due` of them. */
static int count_threads(int due)
{
    uint64_t started = iq_test_now_ns();
    while (count_entries("/proc/self/task", "") > due && iq_test_now_ns() - started < SECOND)
        iq_test_pause();
    return count_entries("/proc/self/task", "");
}

static void use_body(iq_rank_t *rank)
{
    float *out = malloc(30000 * sizeof(*out));
    isgq_quantizer_t quantizer = iq_quantizer(rank, "uniform:bits=4");
    iq_allreduce_samples(rank, NULL, ISGQ_FLOAT32, ISGQ_SUM, 1, 30000, NULL, out);
    iq_allreduce_samples(rank, quantizer, ISGQ_FLOAT32, ISGQ_SUM, 1, 30000, NULL, out);
    isgq_quantizer_destroy(quantizer);
    free(out);
}

/* A rank in a process of its own: what it has open before and after a communicator. */
static void tidy_body(iq_rank_t *rank)
{
    isgq_comm_t comm = NULL;
    isgq_unique_id_t id = iq_rank_id(rank);
    bool clean = rank->argument == NULL;
    int files = 0, threads = 0;
    for (int turn = 0; turn < 3; turn++) { /* modules may stay open after the first */
        if (turn > 0) {
            if (rank->rank == 0)
                RANK_OK(rank, isgq_get_unique_id((isgq_unique_id_t *)(void *)&rank->flags[0]));
            iq_rank_meet(rank);
            memcpy(&id, (void *)&rank->flags[0], sizeof(id)); /* 128 bytes, 16 flags */
            iq_rank_meet(rank);
        }
        RANK_OK(rank, isgq_comm_init_rank(&comm, rank->nranks, id, rank->rank, NULL));
        rank->comm = comm;
        use_body(rank);
        if (clean)
            RANK_OK(rank, isgq_comm_finalize(comm));
        rank->comm = NULL;
        iq_rank_meet(rank);
        RANK_OK(rank, isgq_comm_destroy(comm));
        iq_rank_meet(rank);
        if (turn == 0) {
            files = count_entries("/proc/self/fd", "");
            threads = IQ_TEST_SANITIZED ? count_entries("/proc/self/task", "") : 1; /* sanitizers may have one of their own */
        }
        RANK_CHECK(rank, count_entries("/proc/self/fd", "") == files, "not %d files open as before", files);
        RANK_CHECK(rank, count_threads(threads) == threads, "%d threads, %d before", count_threads(threads), threads);
    }
    RANK_CHECK(rank, waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD, "a child process was left");
}

_Static_assert(sizeof(isgq_unique_id_t) == IQ_RANK_FLAGS * sizeof(uint64_t), "an id fits into the flags");

START_TEST(nothing_is_left_behind)
{
    int before = count_entries("/dev/shm", "isgq");
    iq_ranks_t ranks = {.kind = _i < 2 ? IQ_RANKS_PROCESSES : IQ_RANKS_HOSTS, .nranks = 3, .body = tidy_body, .apart = true};
    ranks.argument = _i % 2 ? &ranks : NULL;
    if (_i < 2 || iq_ranks_have_network())
        iq_ranks_run(&ranks, NULL);
    run_death(IQ_RANKS_PROCESSES, 3, (death_t){1, SIGKILL, NULL, 0});
    ck_assert_int_eq(count_entries("/dev/shm", "isgq"), before);
    ck_assert(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("failures");
    iq_add_case(suite, tcase_create("killed"), killed_rank_is_named, 4);
    iq_add_case(suite, tcase_create("exited"), exited_rank_is_named, 2);
    iq_add_case(suite, tcase_create("killed_host"), killed_host_is_named, 2);
    iq_add_case(suite, tcase_create("stopped"), stopped_rank_is_named, 3);
    iq_add_case(suite, tcase_create("stopped_host"), stopped_host_is_named, 2);
    iq_add_case(suite, tcase_create("missing"), missing_rank_is_named, 3);
    iq_add_case(suite, tcase_create("died_joining"), rank_that_dies_while_joining_is_named, 1);
    iq_add_case(suite, tcase_create("leftovers"), nothing_is_left_behind, 3);
    iq_add_case(suite, tcase_create("absent"), absent_rank_is_named, 8);
    iq_add_case(suite, tcase_create("call_timeout"), one_calls_timeout, 1);
    iq_add_case(suite, tcase_create("abort"), abort_wakes_everybody, 2);
    TCase *destroy = iq_add_case(suite, tcase_create("destroy"), destroy_without_finalize, 2);
    tcase_add_test(destroy, destroy_with_calls_queued);
    return suite;
}
