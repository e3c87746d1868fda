/* SPDX-License-Identifier: Apache-2.0 */
/* See control_ranks.h. */
#include "support/control_ranks.h"

#include "transport/auth.h"

#include <check.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void give_status(void *context, iq_rank_status_t *status)
{
    control_rank_t *rank = context;
    *status = rank->status;
}

static bool give_arguments(void *context, uint64_t sequence, char text[IQ_ARGUMENTS_TEXT_BYTES])
{
    control_rank_t *rank = context;
    if (rank->arguments == NULL || sequence != rank->call)
        return false;
    snprintf(text, IQ_ARGUMENTS_TEXT_BYTES, "%s", rank->arguments);
    return true;
}

static void take_failure(void *context, isgq_result_t result, int culprit, const char *text)
{
    control_rank_t *rank = context;
    pthread_mutex_lock(&rank->lock);
    rank->failures++;
    rank->failure = result;
    rank->culprit = culprit;
    snprintf(rank->text, sizeof(rank->text), "%s", text);
    pthread_cond_broadcast(&rank->changed);
    pthread_mutex_unlock(&rank->lock);
}

bool have_proofs(void)
{
    iq_rendezvous_t place = {.kind = IQ_ADDRESS_TCP, .text = "127.0.0.1"};
    return iq_auth_permits(&place) == ISGQ_SUCCESS;
}

void control_ranks_init(control_rank_t *ranks, int nranks, iq_address_kind_t kind)
{
    isgq_unique_id_t id;
    iq_rendezvous_t place = {
        .kind = IQ_ADDRESS_TCP, .text = "127.0.0.1", .has_secret = true, .secret = {1, 2, 3}, .listen_fd = -1};
    int listen_fd = -1;

    kind = have_proofs() ? kind : IQ_ADDRESS_UNIX;
    memset(ranks, 0, (size_t)nranks * sizeof(*ranks));
    if (kind == IQ_ADDRESS_TCP)
        ck_assert_int_eq(iq_socket_listen(&place, "", &listen_fd), ISGQ_SUCCESS);
    else
        ck_assert_int_eq(iq_rendezvous_new_id(&id), ISGQ_SUCCESS);
    for (int i = 0; i < nranks; i++) {
        control_rank_t *rank = &ranks[i];
        rank->rank = i;
        rank->nranks = nranks;
        rank->version = ISGQ_VERSION_CODE;
        rank->deadline_ns = iq_now_ns() + SOON_NS;
        rank->status.awaited = -1;
        pthread_mutex_init(&rank->lock, NULL);
        pthread_cond_init(&rank->changed, NULL);
        if (kind == IQ_ADDRESS_UNIX)
            ck_assert_int_eq(iq_rendezvous_from_id(&id, i, &rank->place), ISGQ_SUCCESS);
        else
            rank->place = place;
    }
    if (kind == IQ_ADDRESS_TCP)
        ranks[0].place.listen_fd = listen_fd;
}

typedef struct job {
    control_rank_t *rank;
    control_rank_fn fn;
} job_t;

static void *run_job(void *argument)
{
    job_t *job = argument;
    job->fn(job->rank);
    return NULL;
}

void control_ranks_each(control_rank_t *ranks, int count, control_rank_fn fn)
{
    pthread_t threads[64];
    job_t jobs[64];

    ck_assert_int_le(count, 64);
    for (int i = 0; i < count; i++) {
        jobs[i] = (job_t){.rank = &ranks[i], .fn = fn};
        ck_assert_int_eq(pthread_create(&threads[i], NULL, run_job, &jobs[i]), 0);
    }
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
}

static void note_result(control_rank_t *rank, isgq_result_t result)
{
    rank->result = result;
    snprintf(rank->error, sizeof(rank->error), "%s", result == ISGQ_SUCCESS ? "" : iq_last_error());
}

void control_rank_open(control_rank_t *rank)
{
    iq_control_events_t events = {.context = rank, .status = give_status, .arguments = give_arguments, .failed = take_failure};
    iq_control_params_t params = {.rank = rank->rank,
                                  .nranks = rank->nranks,
                                  .rendezvous = &rank->place,
                                  .deadline_ns = rank->deadline_ns,
                                  .events = events};

    rank->control = NULL;
    note_result(rank, iq_control_open_version(&params, rank->version, &rank->control));
}

void control_rank_barrier(control_rank_t *rank)
{
    uint8_t mine = 0, all[MAX_RANKS];
    (void)iq_control_allgather(rank->control, &mine, all, 1, iq_now_ns() + SOON_NS);
}

void control_rank_goodbye(control_rank_t *rank) { note_result(rank, iq_control_goodbye(rank->control, iq_now_ns() + SOON_NS)); }

void control_rank_close(control_rank_t *rank)
{
    iq_control_close(rank->control);
    rank->control = NULL;
}

pid_t control_rank_fork(control_rank_t *ranks, int rank, control_rank_fn fn)
{
    pid_t pid = fork();
    ck_assert_int_ge(pid, 0);
    if (pid > 0)
        return pid;
    if (rank != 0)
        close(ranks[0].place.listen_fd);
    control_rank_open(&ranks[rank]);
    if (ranks[rank].result != ISGQ_SUCCESS)
        _exit(1);
    control_rank_barrier(&ranks[rank]);
    fn(&ranks[rank]);
    _exit(0);
}

bool control_rank_reap(pid_t pid)
{
    int status = 0;
    return waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

bool control_rank_wait_failed(control_rank_t *rank, uint64_t limit_ns)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += (time_t)(limit_ns / IQ_SECOND) + 1;
    int error = 0;
    pthread_mutex_lock(&rank->lock);
    while (rank->failures == 0 && error == 0)
        error = pthread_cond_timedwait(&rank->changed, &rank->lock, &until);
    bool failed = rank->failures > 0;
    pthread_mutex_unlock(&rank->lock);
    return failed;
}

int count_descriptors(void)
{
    int count = 0;
    DIR *folder = opendir("/proc/self/fd");
    ck_assert_ptr_nonnull(folder);
    while (readdir(folder) != NULL)
        count++;
    closedir(folder);
    return count;
}
