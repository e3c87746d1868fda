/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Groups: the calling thread's collectives and initialisations, kept until the outermost isgq_group_end.
 *
 * Every grouped call is checked and decided when it is made; nothing is queued before the end. One refused call refuses the group: nothing is
 * launched on this rank, and the communicators in it are failed so that no other rank waits for what will not come.
 */
#include "base/process.h"
#include "core/gpu.h"
#include "core/tensor.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct deferred_call {
    isgq_comm_t comm;
    iq_call_t call;
} deferred_call_t;

typedef struct deferred_init {
    isgq_comm_t *comm;
    int nranks, rank, device;
    isgq_unique_id_t id;
    isgq_comm_config_t config;
    bool has_config;
    char transports[64]; /* what config.transports pointed at */
    pthread_t thread;
    isgq_result_t result;
    char text[IQ_ERROR_TEXT_BYTES];
} deferred_init_t;

typedef struct group {
    int depth;
    pid_t process; /* that started it: a child that is forked inside has a copy */
    deferred_call_t *calls;
    size_t ncalls, call_room;
    deferred_init_t *inits;
    size_t ninits, init_room;
    isgq_result_t refused;
    char text[IQ_ERROR_TEXT_BYTES];
    isgq_comm_t refusing;
} group_t;

static _Thread_local group_t group;

/* The arrays stay with their thread, so that a group of a known size allocates nothing; they go when the thread ends. */
static pthread_key_t thread_end;
static pthread_once_t thread_end_once = PTHREAD_ONCE_INIT;

static void free_arrays(void *argument)
{
    group_t *ending = argument;
    free(ending->calls);
    free(ending->inits);
    *ending = (group_t){0};
}

static void make_thread_end(void) { (void)pthread_key_create(&thread_end, free_arrays); }

/* Room for one more element; false without memory. */
static bool grow(void **array, size_t count, size_t *room, size_t bytes)
{
    if (count < *room)
        return true;
    size_t wanted = *room == 0 ? 16 : 2 * *room;
    pthread_once(&thread_end_once, make_thread_end);
    pthread_setspecific(thread_end, &group);
    void *bigger = realloc(*array, wanted * bytes);
    if (bigger == NULL)
        return false;
    *array = bigger;
    *room = wanted;
    return true;
}

static void drop_call(const iq_call_t *call)
{
    isgq_quantizer_destroy(call->quantizer);
    iq_tensor_release(call->tensor);
}

/* The caller may drop what its configuration points at as soon as the call returns. */
static void keep_config(deferred_init_t *init, const isgq_comm_config_t *config)
{
    init->config = *config;
    if (config->quantizer != NULL)
        iq_quantizer_retain(config->quantizer);
    if (config->transports == NULL)
        return;
    snprintf(init->transports, sizeof(init->transports), "%s", config->transports);
}

static void drop_init(deferred_init_t *init)
{
    isgq_quantizer_destroy(init->config.quantizer);
    explicit_bzero(&init->id, sizeof(init->id)); /* holds the secret */
}

/* Whatever was left of it. */
static void clear_group(void)
{
    for (size_t i = 0; i < group.ncalls; i++)
        if (group.calls[i].comm != NULL)
            drop_call(&group.calls[i].call);
    for (size_t i = 0; i < group.ninits; i++)
        drop_init(&group.inits[i]);
    group.depth = 0;
    group.ncalls = group.ninits = 0;
    group.refused = ISGQ_SUCCESS;
    group.refusing = NULL;
}

/* Is a group open? In a child that was forked inside one there is none: the calls are the parent's. */
static bool is_open(void)
{
    if (group.depth > 0 && group.process != iq_process_id())
        clear_group();
    return group.depth > 0;
}

static void refuse(isgq_comm_t comm, isgq_result_t result, const char *text)
{
    if (group.refused != ISGQ_SUCCESS)
        return;
    group.refused = result;
    group.refusing = comm;
    snprintf(group.text, sizeof(group.text), "%s", text);
}

bool iq_group_defer(isgq_comm_t comm, const iq_call_t *call, isgq_result_t *result)
{
    if (!is_open())
        return false;
    *result = ISGQ_SUCCESS;
    if (!grow((void **)&group.calls, group.ncalls, &group.call_room, sizeof(*group.calls))) {
        *result = IQ_FAIL(ISGQ_ERR_NO_MEMORY, "group of %zu calls", group.ncalls);
        return true;
    }
    group.calls[group.ncalls++] = (deferred_call_t){.comm = comm, .call = *call};
    iq_quantizer_retain(call->quantizer);
    iq_tensor_hold(call->tensor);
    return true;
}

isgq_result_t iq_group_refuse(isgq_comm_t comm, isgq_result_t result)
{
    if (result != ISGQ_SUCCESS && is_open())
        refuse(comm, result, iq_last_error());
    return result;
}

bool iq_group_defer_init(isgq_comm_t *comm, int nranks, isgq_unique_id_t id, int rank, const isgq_comm_config_t *config)
{
    if (!is_open())
        return false;
    if (!grow((void **)&group.inits, group.ninits, &group.init_room, sizeof(*group.inits))) {
        refuse(NULL, ISGQ_ERR_NO_MEMORY, "group: no memory for another initialisation");
        return true;
    }
    deferred_init_t *init = &group.inits[group.ninits++];
    *init = (deferred_init_t){.comm = comm, .nranks = nranks, .rank = rank, .id = id, .device = iq_gpu_current(config), .has_config = config != NULL};
    if (config != NULL)
        keep_config(init, config);
    return true;
}

isgq_result_t iq_group_forbid(const char *operation)
{
    if (is_open())
        return IQ_FAIL(ISGQ_ERR_INVALID_USAGE, "%s: not inside a group; it waits for the other ranks", operation);
    return ISGQ_SUCCESS;
}

static void *run_init(void *argument)
{
    deferred_init_t *init = argument;
    if (init->config.transports != NULL)
        init->config.transports = init->transports;
    init->result = iq_comm_join(init->comm, init->nranks, init->id, init->rank, init->device, init->has_config ? &init->config : NULL);
    snprintf(init->text, sizeof(init->text), "%s", iq_last_error());
    return NULL;
}

/* One thread each: joining is collective, and one thread of the caller may hold several ranks. */
static void run_inits(void)
{
    size_t started = 0;
    for (; started < group.ninits; started++)
        if (pthread_create(&group.inits[started].thread, NULL, run_init, &group.inits[started]) != 0)
            break;
    if (started < group.ninits)
        refuse(NULL, ISGQ_ERR_SYSTEM, "group: cannot start a thread to join a communicator");
    for (size_t i = 0; i < started; i++) {
        pthread_join(group.inits[i].thread, NULL);
        if (group.inits[i].result != ISGQ_SUCCESS)
            refuse(NULL, group.inits[i].result, group.inits[i].text);
    }
}

static void fail_comm(isgq_comm_t comm)
{
    char text[IQ_ERROR_TEXT_BYTES];
    if (comm == NULL || atomic_load(&comm->failed) != 0)
        return;
    snprintf(text, sizeof(text), "rank %d: a group was not launched: %.400s", comm->rank, group.text);
    iq_control_abort(comm->control, group.refused, comm->rank, text);
    iq_comm_fail(comm, group.refused, text);
}

/* Calls of one communicator that are queued at once. */
typedef struct window {
    isgq_comm_t comm;
    size_t ncalls;
    deferred_call_t *deferred[IQ_FUSE_CALLS];
    iq_call_t *calls[IQ_FUSE_CALLS];
} window_t;

/* The next calls on the communicator of call `first`, from that on. Windows follow from the group alone, so ranks that group alike fuse alike. */
static void next_window(size_t first, window_t *window)
{
    size_t most = iq_fuse_window(group.calls[first].comm);
    window->comm = group.calls[first].comm;
    window->ncalls = 0;
    for (size_t i = first; i < group.ncalls && window->ncalls < most; i++) {
        if (group.calls[i].comm != window->comm)
            continue;
        window->deferred[window->ncalls] = &group.calls[i];
        window->calls[window->ncalls++] = &group.calls[i].call;
    }
}

static void launch(const window_t *window)
{
    isgq_result_t result = iq_fuse(window->comm, window->calls, window->ncalls);
    if (result == ISGQ_SUCCESS)
        result = iq_submit(window->comm, window->calls, window->ncalls);
    if (result != ISGQ_SUCCESS)
        refuse(window->comm, result, iq_last_error());
    for (size_t i = 0; i < window->ncalls; i++) {
        drop_call(window->calls[i]);
        window->deferred[i]->comm = NULL;
    }
}

/* One pass over the calls that are left, in order; a communicator whose queue is full sits the rest of the pass out. */
static size_t launch_pass(void)
{
    size_t launched = 0;
    window_t window;
    for (size_t i = 0; i < group.ncalls; i++)
        if (group.calls[i].comm != NULL)
            group.calls[i].comm->group_skips = false;
    for (size_t i = 0; i < group.ncalls && group.refused == ISGQ_SUCCESS; i++) {
        isgq_comm_t comm = group.calls[i].comm;
        if (comm == NULL || comm->group_skips)
            continue;
        next_window(i, &window);
        comm->group_skips = iq_queue_full(comm, window.ncalls);
        if (comm->group_skips)
            continue;
        launch(&window);
        launched += window.ncalls;
    }
    return launched;
}

/* Of the first call that is left; false if none is. */
static bool first_left(window_t *window)
{
    for (size_t i = 0; i < group.ncalls; i++) {
        if (group.calls[i].comm == NULL)
            continue;
        next_window(i, window);
        return true;
    }
    return false;
}

/* The thread may hold several ranks of one job, so it never waits for one while it could queue calls on another. */
static void launch_calls(void)
{
    window_t left;
    while (group.refused == ISGQ_SUCCESS && first_left(&left))
        if (launch_pass() == 0 && iq_queue_wait(left.comm, left.ncalls) != ISGQ_SUCCESS)
            refuse(left.comm, iq_comm_check(left.comm), iq_last_error());
}

static isgq_result_t end_outermost(void)
{
    if (group.refused == ISGQ_SUCCESS)
        run_inits();
    else
        for (size_t i = 0; i < group.ninits; i++)
            if (group.inits[i].rank == 0)
                iq_rendezvous_drop_id(&group.inits[i].id);
    if (group.refused == ISGQ_SUCCESS)
        launch_calls();
    isgq_result_t result = group.refused;
    if (result != ISGQ_SUCCESS) {
        fail_comm(group.refusing);
        for (size_t i = 0; i < group.ncalls; i++)
            fail_comm(group.calls[i].comm);
        iq_set_last_error(group.text);
    }
    clear_group();
    return result;
}

isgq_result_t isgq_group_start(void)
{
    if (!is_open())
        group.process = iq_process_id();
    group.depth++;
    return ISGQ_SUCCESS;
}

isgq_result_t isgq_group_end(void)
{
    if (!is_open())
        return IQ_FAIL(ISGQ_ERR_INVALID_USAGE, "group_end without group_start%s",
                       group.process != 0 && group.process != iq_process_id() ? " in this process; it was forked inside a group, which is its parent's" : "");
    if (group.depth > 1) {
        group.depth--;
        return ISGQ_SUCCESS;
    }
    return end_outermost();
}

isgq_result_t isgq_group_refuse(isgq_comm_t comm, isgq_result_t result, const char *reason)
{
    if (result == ISGQ_SUCCESS || reason == NULL || reason[0] == '\0')
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "group_refuse: %s", result == ISGQ_SUCCESS ? "result is success" : "no reason");
    iq_set_last_error(reason);
    return iq_group_refuse(comm, result);
}
