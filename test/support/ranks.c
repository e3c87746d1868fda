/* SPDX-License-Identifier: Apache-2.0 */
/* Ranks for tests: see ranks.h. */
#include "support/ranks.h"

#include "netlab/lab.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WATCHDOG_S 60u
#define PATIENCE_NS 30000000000u /* of one rank waiting for another outside the library */

typedef struct slot {
    atomic_int ended; /* the body has returned or failed */
    char failure[IQ_RANK_FAILURE_BYTES];
    uint64_t values[IQ_RANK_VALUES];
    uint64_t agreed;
} slot_t;

typedef struct iq_ranks_shared {
    atomic_int id_made, failures;
    isgq_unique_id_t id;
    atomic_uint arrived; /* at the barrier, ever */
    _Atomic uint64_t flags[IQ_RANK_FLAGS];
    slot_t slots[IQ_RANKS_MOST];
} shared_t;

/* What a rank's thread or process starts from. */
typedef struct start {
    const iq_ranks_t *ranks;
    iq_rank_t rank;
    pthread_t thread;
    pid_t pid; /* 0: has ended */
    int wait_status;
} start_t;

/* The harness itself cannot go on. Works outside Check too. */
#define REQUIRE(condition, ...)           \
    do {                                  \
        if (!(condition)) {               \
            fprintf(stderr, __VA_ARGS__); \
            fputc('\n', stderr);          \
            abort();                      \
        }                                 \
    } while (0)

uint64_t iq_test_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void iq_test_pause(void)
{
    const struct timespec pause = {0, 200000};
    nanosleep(&pause, NULL);
}

bool iq_test_one_line(const char *text) { return text != NULL && text[0] != '\0' && strchr(text, '\n') == NULL; }

int iq_test_rank_counts(void) { return iq_lab_hosts() >= 4 ? 3 : IQ_TEST_SANITIZED ? 5 : 9; }

int iq_test_nranks(int index)
{
    static const int few[] = {1, 2, 3, 5, 9};
    if (iq_lab_hosts() >= 4)
        return few[2 + index];
    return IQ_TEST_SANITIZED ? few[index] : index + 1;
}

/* ---- for bodies ---- */

_Noreturn void iq_rank_fail(iq_rank_t *rank, const char *file, int line, const char *format, ...)
{
    char text[IQ_RANK_FAILURE_BYTES - 128];
    const char *name = strrchr(file, '/');
    slot_t *slot = &rank->shared->slots[rank->rank];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    snprintf(slot->failure, sizeof(slot->failure), "rank %d of %d, %s:%d: %s", rank->rank, rank->nranks,
             name != NULL ? name + 1 : file, line, text);
    atomic_fetch_add(&rank->shared->failures, 1);
    longjmp(rank->failed, 1);
}

void iq_rank_ok(iq_rank_t *rank, isgq_result_t result, const char *call, const char *file, int line)
{
    if (result != ISGQ_SUCCESS)
        iq_rank_fail(rank, file, line, "%.160s: %s: %s", call, isgq_get_error_string(result), isgq_get_last_error());
}

void iq_rank_status(iq_rank_t *rank, isgq_result_t result, isgq_result_t expected, const char *call, const char *file, int line)
{
    if (result != expected)
        iq_rank_fail(rank, file, line, "%.160s: status %d where %d was due (%s)", call, (int)result, (int)expected,
                     isgq_get_last_error());
    if (!iq_test_one_line(isgq_get_last_error()))
        iq_rank_fail(rank, file, line, "%.160s: the text is not one line: \"%s\"", call, isgq_get_last_error());
}

/* One look while waiting for other ranks: fails if one of them has failed, or nothing happened for too long. */
static void look(iq_rank_t *rank, uint64_t started_ns, const char *what)
{
    if (atomic_load(&rank->shared->failures) > 0)
        iq_rank_fail(rank, __FILE__, __LINE__, "gave up waiting for %s: another rank failed", what);
    if (iq_test_now_ns() - started_ns > PATIENCE_NS)
        iq_rank_fail(rank, __FILE__, __LINE__, "waited too long for %s", what);
    iq_test_pause();
}

isgq_unique_id_t iq_rank_id(iq_rank_t *rank)
{
    shared_t *shared = rank->shared;
    uint64_t started = iq_test_now_ns();
    if (rank->rank == 0 && atomic_load(&shared->id_made) == 0) {
        RANK_OK(rank, isgq_get_unique_id(&shared->id));
        atomic_store(&shared->id_made, 1);
    }
    while (atomic_load(&shared->id_made) == 0)
        look(rank, started, "the unique id");
    return shared->id;
}

void iq_rank_meet(iq_rank_t *rank)
{
    shared_t *shared = rank->shared;
    unsigned all = (unsigned)rank->nranks;
    unsigned last = atomic_fetch_add(&shared->arrived, 1) / all * all + all;
    uint64_t started = iq_test_now_ns();
    for (unsigned turn = 0; (int)(atomic_load(&shared->arrived) - last) < 0; turn++) {
        if (turn < 100)
            sched_yield();
        else
            look(rank, started, "the others to meet");
    }
}

void iq_rank_await(iq_rank_t *rank, int flag, uint64_t value)
{
    uint64_t started = iq_test_now_ns();
    while (atomic_load(&rank->flags[flag]) < value)
        look(rank, started, "a flag");
}

void iq_rank_agree(iq_rank_t *rank, uint64_t value, const char *what)
{
    slot_t *slots = rank->shared->slots;
    slots[rank->rank].agreed = value;
    iq_rank_meet(rank);
    for (int r = 0; r < rank->nranks; r++)
        RANK_CHECK(rank, slots[r].agreed == value, "%s: %016llx here, %016llx on rank %d", what, (unsigned long long)value,
                   (unsigned long long)slots[r].agreed, r);
    iq_rank_meet(rank);
}

/* ---- one rank ---- */

static void join(iq_rank_t *rank, const isgq_comm_config_t *config)
{
    isgq_comm_t comm = NULL;
    RANK_OK(rank, isgq_comm_init_rank(&comm, rank->nranks, iq_rank_id(rank), rank->rank, config));
    rank->comm = comm;
}

static bool in_lab(const iq_ranks_t *ranks) { return !ranks->home && iq_lab_hosts() > 0; }

/* Proof that a run in the lab did not stay on one host. */
static void check_network(iq_rank_t *rank)
{
    isgqx_call_record_t record = {.size = sizeof(record)};
    RANK_OK(rank, isgqx_last_call(rank->comm, &record));
    RANK_CHECK(rank, rank->nranks == 1 || iq_lab_hosts() == 1 || strstr(record.transport, "ucx") != NULL,
               "in a lab, but ranks talk over %s", record.transport);
}

static void leave(iq_rank_t *rank, const iq_ranks_t *ranks)
{
    isgq_comm_t comm = rank->comm;
    if (comm == NULL)
        return;
    if (!ranks->broken && in_lab(ranks))
        check_network(rank);
    if (!ranks->broken)
        RANK_OK(rank, isgq_comm_finalize(comm));
    rank->comm = NULL;
    RANK_OK(rank, isgq_comm_destroy(comm));
}

static void live(start_t *start)
{
    iq_rank_t *rank = &start->rank;
    if (setjmp(rank->failed) == 0) {
        if (!start->ranks->apart)
            join(rank, start->ranks->config);
        start->ranks->body(rank);
        leave(rank, start->ranks);
    } else if (rank->comm != NULL) {
        isgq_comm_destroy(rank->comm); /* aborts, so that the others wake */
    }
    atomic_store(&rank->shared->slots[rank->rank].ended, 1);
}

static void *thread_main(void *argument)
{
    live(argument);
    return NULL;
}

static void set_variable(const char *assignment)
{
    char name[64];
    size_t length = strcspn(assignment, "=");
    snprintf(name, sizeof(name), "%.*s", (int)length, assignment);
    setenv(name, assignment + length + 1, 1);
}

static bool are_threads(const iq_ranks_t *ranks) { return ranks->kind == IQ_RANKS_THREADS && !in_lab(ranks); }

/* Find a host of one's own, or pretend. */
static void settle(const iq_ranks_t *ranks, int rank)
{
    char host[32];
    int hosts = ranks->hosts != 0 ? ranks->hosts : ranks->nranks;
    if (in_lab(ranks)) {
        iq_lab_enter(rank % iq_lab_hosts());
    } else if (ranks->kind == IQ_RANKS_HOSTS) {
        snprintf(host, sizeof(host), "ISGQ_HOSTID=host-%d", rank % hosts);
        set_variable(host);
        set_variable("ISGQ_INTERFACE=lo");
    }
}

static _Noreturn void process_main(start_t *start)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    settle(start->ranks, start->rank.rank);
    for (const char *const *variable = start->ranks->environment; variable != NULL && *variable != NULL; variable++)
        set_variable(*variable);
    live(start);
    _exit(0);
}

/* ---- all ranks ---- */

static unsigned watchdog_s(const iq_ranks_t *ranks) { return ranks->watchdog_s != 0 ? ranks->watchdog_s : WATCHDOG_S; }

static void start_thread(start_t *start)
{
    REQUIRE(pthread_create(&start->thread, NULL, thread_main, start) == 0, "no thread for a rank");
}

static void start_process(start_t *start)
{
    fflush(NULL);
    start->pid = fork();
    REQUIRE(start->pid >= 0, "fork: %s", strerror(errno));
    if (start->pid == 0)
        process_main(start);
}

static void await_threads(const iq_ranks_t *ranks, start_t *starts)
{
    int nranks = ranks->nranks;
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += (time_t)watchdog_s(ranks);
    for (int r = 0; r < nranks; r++)
        REQUIRE(pthread_timedjoin_np(starts[r].thread, NULL, &deadline) == 0,
                "rank %d of %d (a thread) hangs; rank 0 said \"%s\"", r, nranks, starts[0].rank.shared->slots[0].failure);
}

static bool is_lost(const iq_ranks_t *ranks, int rank) { return (ranks->lost >> rank & 1) != 0; }

/* Wait for one rank's end, for ever if `flags` is 0. */
static void reap(start_t *start, int flags)
{
    if (start->pid > 0 && waitpid(start->pid, &start->wait_status, flags) == start->pid)
        start->pid = 0;
}

static void await_processes(const iq_ranks_t *ranks, start_t *starts)
{
    uint64_t started = iq_test_now_ns();
    int alive = 1;
    while (alive > 0) {
        alive = 0;
        for (int r = 0; r < ranks->nranks; r++) {
            reap(&starts[r], WNOHANG);
            alive += starts[r].pid > 0 && !is_lost(ranks, r);
            if (starts[r].pid > 0 && iq_test_now_ns() - started > watchdog_s(ranks) * 1000000000ull)
                kill(starts[r].pid, SIGKILL);
        }
        if (alive > 0)
            iq_test_pause();
    }
    for (int r = 0; r < ranks->nranks; r++) {
        if (starts[r].pid > 0)
            kill(starts[r].pid, SIGKILL);
        reap(&starts[r], 0);
    }
}

/* A sentence for a process that ended in another way than it should have. */
static void judge_process(const iq_ranks_t *ranks, start_t *start)
{
    int rank = start->rank.rank, status = start->wait_status;
    int signal_number = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    slot_t *slot = &start->rank.shared->slots[rank];
    if (is_lost(ranks, rank)) {
        if (ranks->lost_signal != 0 && signal_number != ranks->lost_signal)
            snprintf(slot->failure, sizeof(slot->failure), "rank %d should have died of signal %d, not %d", rank,
                     ranks->lost_signal, signal_number);
        return;
    }
    if (signal_number == SIGKILL && atomic_load(&slot->ended) == 0)
        snprintf(slot->failure, sizeof(slot->failure), "rank %d of %d (a process) hangs", rank, ranks->nranks);
    else if (signal_number != 0)
        snprintf(slot->failure, sizeof(slot->failure), "rank %d of %d (a process) died of signal %d", rank, ranks->nranks,
                 signal_number);
    else if (WEXITSTATUS(status) != 0 && slot->failure[0] == '\0')
        snprintf(slot->failure, sizeof(slot->failure), "rank %d of %d (a process) exited with %d", rank, ranks->nranks,
                 WEXITSTATUS(status));
}

static void start_all(const iq_ranks_t *ranks, start_t *starts, shared_t *shared)
{
    for (int r = 0; r < ranks->nranks; r++) {
        start_t *start = &starts[r];
        start->ranks = ranks;
        start->rank = (iq_rank_t){.rank = r,
                                  .nranks = ranks->nranks,
                                  .argument = ranks->argument,
                                  .values = shared->slots[r].values,
                                  .flags = shared->flags,
                                  .shared = shared};
    }
    for (int r = 0; r < ranks->nranks; r++)
        are_threads(ranks) ? start_thread(&starts[r]) : start_process(&starts[r]);
}

static void collect(const shared_t *shared, int nranks, iq_ranks_values_t *values, char *failures, size_t bytes)
{
    size_t used = 0;
    failures[0] = '\0';
    for (int r = 0; r < nranks; r++) {
        const slot_t *slot = &shared->slots[r];
        if (slot->failure[0] != '\0' && used < bytes)
            used += (size_t)snprintf(failures + used, bytes - used, "%s%s", used > 0 ? "\n" : "", slot->failure);
        if (values != NULL)
            memcpy(values->of[r], slot->values, sizeof(slot->values));
    }
}

bool iq_ranks_try(const iq_ranks_t *ranks, iq_ranks_values_t *values, char *failures, size_t bytes)
{
    REQUIRE(ranks->nranks >= 1 && ranks->nranks <= IQ_RANKS_MOST, "%d ranks", ranks->nranks);
    shared_t *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    start_t *starts = calloc((size_t)ranks->nranks, sizeof(*starts));
    REQUIRE(shared != MAP_FAILED && starts != NULL, "no memory for ranks");
    start_all(ranks, starts, shared);
    if (are_threads(ranks)) {
        await_threads(ranks, starts);
    } else {
        await_processes(ranks, starts);
        for (int r = 0; r < ranks->nranks; r++)
            judge_process(ranks, &starts[r]);
    }
    collect(shared, ranks->nranks, values, failures, bytes);
    free(starts);
    munmap(shared, sizeof(*shared));
    return failures[0] == '\0';
}

/* ---- is there a network? ---- */

static void find_ucx(void *context, const char *line)
{
    if (strncmp(line, "module", 6) == 0 && strstr(line, "ucx: loaded") != NULL)
        *(bool *)context = true;
}

bool iq_ranks_have_network(void)
{
    int status = 0;
    fflush(NULL);
    pid_t pid = fork();
    REQUIRE(pid >= 0, "fork: %s", strerror(errno));
    if (pid == 0) {
        bool found = false;
        isgqx_info_print(find_ucx, &found);
        _exit(found ? 0 : 1);
    }
    REQUIRE(waitpid(pid, &status, 0) == pid, "waitpid: %s", strerror(errno));
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}
