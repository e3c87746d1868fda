/* SPDX-License-Identifier: Apache-2.0 */
/* The control channel's public functions: check, leave a request for the thread, wait for its answer. control_internal.h is the
 * map. */
#include "transport/control_internal.h"

#include "base/util.h"
#include "transport/auth.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define VERDICT_NS (2 * IQ_SECOND) /* for rank 0 to name who is late */

static isgq_result_t check_params(const iq_control_params_t *params)
{
    if (params->nranks < 1)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "nranks is %d, must be at least 1", params->nranks);
    if (params->rank < 0 || params->rank >= params->nranks)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "rank is %d, must be in 0..%d", params->rank, params->nranks - 1);
    return params->nranks > 1 ? iq_auth_permits(params->rendezvous) : ISGQ_SUCCESS;
}

static void init_sync(iq_control_t *control)
{
    pthread_condattr_t attributes;
    pthread_mutex_init(&control->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&control->changed, &attributes);
    pthread_condattr_destroy(&attributes);
}

static void free_control(iq_control_t *control)
{
    for (int i = 0; i < control->nmembers; i++)
        iq_member_close(&control->members[i]);
    if (control->wake_fd >= 0)
        close(control->wake_fd);
    pthread_cond_destroy(&control->changed);
    pthread_mutex_destroy(&control->lock);
    free(control->search.answers);
    free(control->collection.present);
    free(control->collection.data);
    free(control->members);
    free(control->polls);
    free(control);
}

static bool allocate_parts(iq_control_t *control)
{
    bool root = iq_control_is_root(control);
    size_t nranks = (size_t)control->nranks;

    control->nmembers = root ? control->nranks : 1;
    control->members = calloc((size_t)control->nmembers, sizeof(*control->members));
    if (control->members == NULL) {
        control->nmembers = 0;
        return false;
    }
    for (int i = 0; i < control->nmembers; i++)
        control->members[i] = (iq_member_t){.conn.fd = -1, .pidfd = -1};
    control->polls = calloc((size_t)(1 + 2 * control->nmembers), sizeof(*control->polls));
    control->collection.present = calloc(root ? nranks : 1, sizeof(*control->collection.present));
    control->search.answers = calloc(root ? nranks : 1, sizeof(*control->search.answers));
    return control->polls != NULL && control->collection.present != NULL && control->search.answers != NULL;
}

static isgq_result_t allocate_control(const iq_control_params_t *params, iq_control_t **control)
{
    iq_control_t *self = calloc(1, sizeof(*self));
    if (self == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "no memory for the control channel");
    self->rank = params->rank;
    self->nranks = params->nranks;
    self->events = params->events;
    self->listening = params->events.failed != NULL;
    init_sync(self);
    self->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    bool allocated = allocate_parts(self);
    if (allocated && self->wake_fd >= 0) {
        *control = self;
        return ISGQ_SUCCESS;
    }
    int error = errno;
    free_control(self);
    if (!allocated)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "no memory for the control channel of %d ranks", params->nranks);
    return IQ_FAIL(ISGQ_ERR_SYSTEM, "control channel: no event descriptor: %s", strerror(error));
}

/* The program's signals are not this thread's business. */
static isgq_result_t start_thread(iq_control_t *control)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&control->thread, NULL, iq_control_main, control);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0)
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "control channel: no thread: %s", strerror(error));
    pthread_setname_np(control->thread, "isgq-control");
    return ISGQ_SUCCESS;
}

static isgq_result_t meet(iq_control_t *control, const iq_rendezvous_t *rendezvous, int version, uint64_t deadline_ns)
{
    isgq_result_t result = iq_control_is_root(control) ? iq_meet(control, rendezvous, version, deadline_ns)
                                                       : iq_join(control, rendezvous, version, deadline_ns);
    return result == ISGQ_SUCCESS ? start_thread(control) : result;
}

static void remove_file(const iq_rendezvous_t *rendezvous)
{
    if (rendezvous->file == NULL)
        return;
    unlink(rendezvous->file);
    free(rendezvous->file);
}

void iq_rendezvous_drop(const iq_rendezvous_t *rendezvous)
{
    if (rendezvous->listen_fd >= 0)
        close(rendezvous->listen_fd);
    remove_file(rendezvous);
}

isgq_result_t iq_control_open_version(const iq_control_params_t *params, int version, iq_control_t **control)
{
    const iq_rendezvous_t *rendezvous = params->rendezvous;
    iq_control_t *self = NULL;
    isgq_result_t result = check_params(params);

    if (result == ISGQ_SUCCESS)
        result = allocate_control(params, &self);
    if (result != ISGQ_SUCCESS) {
        if (rendezvous->listen_fd >= 0)
            close(rendezvous->listen_fd);
    } else {
        result = meet(self, rendezvous, version, params->deadline_ns); /* closes the listener */
    }
    remove_file(rendezvous);
    if (result == ISGQ_SUCCESS)
        *control = self;
    else if (self != NULL)
        free_control(self);
    return result;
}

isgq_result_t iq_control_open(const iq_control_params_t *params, iq_control_t **control)
{
    return iq_control_open_version(params, ISGQ_VERSION_CODE, control);
}

/* Under the lock. */
static void request(iq_control_t *control, unsigned what)
{
    control->requests |= what;
    iq_control_wake(control);
}

void iq_control_start(iq_control_t *control, const iq_control_events_t *events)
{
    pthread_mutex_lock(&control->lock);
    control->events = *events;
    control->listening = true;
    request(control, 0);
    pthread_mutex_unlock(&control->lock);
}

/* Under the lock; false when the time is up. */
static bool wait_for_round(iq_control_t *control, uint64_t deadline_ns)
{
    struct timespec until = {.tv_sec = (time_t)(deadline_ns / IQ_SECOND), .tv_nsec = (long)(deadline_ns % IQ_SECOND)};
    while (!control->round.done && !control->failure.set)
        if (pthread_cond_timedwait(&control->changed, &control->lock, &until) == ETIMEDOUT)
            return control->round.done || control->failure.set;
    return true;
}

/* Take part in a round. At the deadline rank 0 names who is late, and that ends the communicator. */
static isgq_result_t run_round(iq_control_t *control, iq_round_kind_t kind, const void *send, void *recv, size_t bytes,
                               uint64_t deadline_ns)
{
    pthread_mutex_lock(&control->lock);
    if (control->round.active) {
        pthread_mutex_unlock(&control->lock);
        return IQ_FAIL(ISGQ_ERR_INVALID_USAGE, "two allgathers of one control channel at a time");
    }
    if (!control->failure.set) {
        control->round = (iq_round_t){
            .number = control->round.number + 1, .active = true, .kind = kind, .send = send, .recv = recv, .bytes = bytes};
        request(control, IQ_REQUEST_ROUND);
    }
    bool answered = wait_for_round(control, deadline_ns);
    if (!answered) {
        request(control, IQ_REQUEST_LATE);
        answered = wait_for_round(control, iq_now_ns() + VERDICT_NS);
    }
    bool done = control->round.active && control->round.done;
    control->round.active = false;
    pthread_mutex_unlock(&control->lock);

    if (done)
        return ISGQ_SUCCESS;
    if (!answered)
        iq_control_fail(control, false, ISGQ_ERR_TIMEOUT, 0,
                        "rank 0 does not answer: stopped or cut off? (rank %d waited in round %llu of the control channel)", control->rank,
                        (unsigned long long)control->round.number);
    pthread_mutex_lock(&control->lock);
    iq_failure_t failure = control->failure;
    pthread_mutex_unlock(&control->lock);
    return IQ_FAIL(failure.result, "%s", failure.text);
}

isgq_result_t iq_control_allgather(iq_control_t *control, const void *send, void *recv, size_t bytes, uint64_t deadline_ns)
{
    if (bytes > IQ_GATHER_BYTES)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "control allgather: bytes is %zu, must be at most %zu", bytes, IQ_GATHER_BYTES);
    return run_round(control, IQ_ROUND_GATHER, send, recv, bytes, deadline_ns);
}

isgq_result_t iq_control_goodbye(iq_control_t *control, uint64_t deadline_ns)
{
    return run_round(control, IQ_ROUND_GOODBYE, NULL, NULL, 0, deadline_ns);
}

void iq_control_abort(iq_control_t *control, isgq_result_t result, int culprit, const char *text)
{
    iq_control_fail(control, false, result, culprit, "%s", text);
}

static void leave_report(iq_control_t *control, const iq_report_t *report)
{
    pthread_mutex_lock(&control->lock);
    if ((control->requests & IQ_REQUEST_REPORT) == 0) {
        control->report = *report;
        request(control, IQ_REQUEST_REPORT);
    }
    pthread_mutex_unlock(&control->lock);
}

void iq_control_report_stall(iq_control_t *control, uint64_t sequence, int awaited, const char *step)
{
    iq_report_t report = {.kind = IQ_REPORT_STALL, .rank = control->rank, .peer = awaited, .sequence = sequence};
    snprintf(report.step, sizeof(report.step), "%s", step);
    leave_report(control, &report);
}

void iq_control_report_mismatch(iq_control_t *control, uint64_t first, uint64_t last, int peer)
{
    iq_report_t report = {.kind = IQ_REPORT_MISMATCH, .rank = control->rank, .peer = peer, .sequence = first, .last = last};
    snprintf(report.step, sizeof(report.step), "a frame of another call");
    leave_report(control, &report);
}

void iq_control_close(iq_control_t *control)
{
    if (control == NULL)
        return;
    pthread_mutex_lock(&control->lock);
    request(control, IQ_REQUEST_STOP);
    pthread_mutex_unlock(&control->lock);
    pthread_join(control->thread, NULL);
    free_control(control);
}
