/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Life and death of the wire "nccl". NCCL's own functions that make and end communicators may wait for other ranks or for CUDA graphs, so
 * each runs on a thread of its own, which holds the wire until it comes back. A wire that was let go ends its communicator by aborting it,
 * which stops what NCCL runs on the GPU; the application's communicator is never touched.
 */
#include "transport/nccl_wire.h"

#include "base/log.h"
#include "base/status.h"
#include "base/util.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CALL_SECONDS 5              /* a thread that is in NCCL for longer is stuck there, and aborting is what lets it out */
#define CLOSE_NS 2000000000ull /* to wait for the end, lest the process ends in the middle of it */

/* ---- holders ---- */

static bool make_box(iq_nccl_box_t *box, int nranks)
{
    box->room = IQ_NCCL_MESSAGES * (size_t)nranks;
    box->messages = calloc(box->room, sizeof(*box->messages));
    return box->messages != NULL;
}

iq_nccl_t *iq_nccl_new(const iq_wire_params_t *params, const iq_nccl_functions_t *nccl)
{
    uint64_t now = iq_now_ns(), left = params->deadline_ns > now ? params->deadline_ns - now : 0;
    pthread_condattr_t clock;
    iq_nccl_t *wire = calloc(1, sizeof(*wire));
    if (wire == NULL)
        return NULL;
    *wire = (iq_nccl_t){.base.ops = &iq_wire_nccl,
                        .nccl = nccl,
                        .cuda = params->cuda,
                        .rank = params->rank,
                        .nranks = params->nranks,
                        .device = params->device,
                        .slot_bytes = params->slot_bytes,
                        .comm = params->native,
                        .own = params->native == NULL,
                        .holders = 1,
                        .deadline_ns = now + left - iq_min(left / 4, 1000000000u)}; /* ranks have to tell each other then */
    if (!make_box(&wire->out, params->nranks) || !make_box(&wire->in, params->nranks)) {
        free(wire->out.messages);
        free(wire->in.messages);
        free(wire);
        return NULL;
    }
    pthread_rwlock_init(&wire->gate, NULL);
    pthread_mutex_init(&wire->lock, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&wire->changed, &clock);
    pthread_condattr_destroy(&clock);
    return wire;
}

static void release(iq_nccl_t *wire)
{
    pthread_mutex_lock(&wire->lock);
    bool last = --wire->holders == 0;
    pthread_mutex_unlock(&wire->lock);
    if (!last)
        return;
    if (wire->out.memory != NULL)
        wire->cuda->shared_free(wire->device, wire->out.memory);
    pthread_cond_destroy(&wire->changed);
    pthread_mutex_destroy(&wire->lock);
    pthread_rwlock_destroy(&wire->gate);
    free(wire->out.messages);
    free(wire->in.messages);
    free(wire);
}

/* A thread that holds the wire. With the lock. */
static bool start(iq_nccl_t *wire, void *(*function)(void *), pthread_t *thread)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* the application's signals are not ours */
    int error = pthread_create(thread, NULL, function, wire);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    wire->holders += error == 0;
    return error == 0;
}

/* Waits until *done, with the lock; false at the deadline. */
static bool wait_until(iq_nccl_t *wire, const bool *done, uint64_t deadline_ns)
{
    struct timespec deadline = {.tv_sec = (time_t)(deadline_ns / 1000000000u), .tv_nsec = (long)(deadline_ns % 1000000000u)};
    while (!*done)
        if (pthread_cond_timedwait(&wire->changed, &wire->lock, &deadline) == ETIMEDOUT)
            return *done;
    return true;
}

static void say(iq_nccl_t *wire, bool *done)
{
    pthread_mutex_lock(&wire->lock);
    *done = true;
    pthread_cond_broadcast(&wire->changed);
    pthread_mutex_unlock(&wire->lock);
}

/* ---- end ---- */

/* Nobody enters any more; whoever is inside is waited for, or is stuck. */
static bool close_gate(iq_nccl_t *wire)
{
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += CALL_SECONDS;
    return pthread_rwlock_timedwrlock(&wire->gate, &deadline) == 0;
}

static void *end_main(void *argument)
{
    iq_nccl_t *wire = argument;
    const iq_nccl_functions_t *nccl = wire->nccl;
    iq_log_identity(wire->rank, wire->nranks);
    bool closed = close_gate(wire);
    isgq_result_t result = wire->cuda->use(wire->device);
    if (result == ISGQ_SUCCESS)
        result = iq_nccl_result(nccl, NULL, wire->orderly ? nccl->comm_destroy(wire->comm) : nccl->comm_abort(wire->comm),
                                wire->orderly ? "destroy" : "abort");
    if (result != ISGQ_SUCCESS)
        IQ_INFO("%s", iq_last_error());
    if (closed)
        pthread_rwlock_unlock(&wire->gate);
    say(wire, &wire->ended);
    release(wire);
    return NULL;
}

/* Once, when nobody may enter any more. */
static void end_communicator(iq_nccl_t *wire)
{
    pthread_mutex_lock(&wire->lock);
    if (wire->own && wire->comm != NULL && !wire->ending && !wire->ended) {
        wire->ending = start(wire, end_main, &wire->ender);
        wire->ended = !wire->ending;
        if (wire->ended)
            IQ_WARN("nccl: rank %d has no thread to end its communicator with, and leaves it behind", wire->rank);
        else if (wire->closed)
            pthread_detach(wire->ender);
    }
    pthread_mutex_unlock(&wire->lock);
}

void iq_nccl_let_go(iq_wire_t *base)
{
    iq_nccl_t *wire = (iq_nccl_t *)base;
    if (atomic_exchange(&wire->gone, true))
        return;
    if (wire->own)
        end_communicator(wire);
    else
        IQ_WARN("nccl: rank %d has given up; its streams wait until the application aborts its NCCL communicator", wire->rank);
}

/* Wait for the end, if there is one, unless it lasts as long as a graph. */
static void join_ender(iq_nccl_t *wire)
{
    pthread_mutex_lock(&wire->lock);
    uint64_t patience = atomic_load(&wire->captured) ? 0 : CLOSE_NS;
    bool ending = wire->ending, ended = ending && wait_until(wire, &wire->ended, iq_now_ns() + patience);
    wire->closed = true;
    pthread_mutex_unlock(&wire->lock);
    if (ended)
        pthread_join(wire->ender, NULL);
    else if (ending)
        pthread_detach(wire->ender);
    if (ending && !ended)
        IQ_INFO("nccl: rank %d does not wait any longer for NCCL to end its communicator", wire->rank);
}

void iq_nccl_close(iq_wire_t *base)
{
    iq_nccl_t *wire = (iq_nccl_t *)base;
    if (!atomic_load(&wire->gone)) {
        wire->orderly = true;
        atomic_store(&wire->gone, true);
    }
    end_communicator(wire);
    join_ender(wire);
    release(wire);
}

/* ---- connecting ---- */

static void *connect_main(void *argument)
{
    iq_nccl_t *wire = argument;
    iq_log_identity(wire->rank, wire->nranks);
    isgq_result_t result = iq_nccl_connect(wire);
    wire->result = result;
    if (result != ISGQ_SUCCESS)
        snprintf(wire->text, sizeof(wire->text), "%s", iq_last_error());
    say(wire, &wire->connected);
    if (atomic_load(&wire->gone)) /* nobody waited; the communicator may have come after that */
        end_communicator(wire);
    release(wire);
    return NULL;
}

isgq_result_t iq_nccl_connect_apart(iq_nccl_t *wire)
{
    pthread_mutex_lock(&wire->lock);
    bool started = start(wire, connect_main, &wire->connector);
    bool connected = started && wait_until(wire, &wire->connected, wire->deadline_ns);
    pthread_mutex_unlock(&wire->lock);
    if (!started)
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "nccl: cannot start a thread");
    if (!connected) {
        atomic_store(&wire->gone, true);
        end_communicator(wire);
        pthread_detach(wire->connector);
        return IQ_FAIL(ISGQ_ERR_TIMEOUT, "nccl: the ranks did not come together in time");
    }
    pthread_join(wire->connector, NULL);
    if (wire->result != ISGQ_SUCCESS)
        iq_set_last_error(wire->text);
    return wire->result;
}
