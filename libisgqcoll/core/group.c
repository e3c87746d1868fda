/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Groups: the calling thread's collectives and initialisations, kept until the outermost isgq_group_end.
 *
 * Every grouped call is checked and decided when it is made; nothing is queued before the end. One refused call refuses the group: nothing is
 * launched on this rank, and the communicators in it are failed so that no other rank waits for what will not come.
 */
#include "core/comm.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct deferred_call {
    isgq_comm_t comm;
    iq_call_t call;
} deferred_call_t;

typedef struct deferred_init {
    isgq_comm_t *comm;
    int nranks, rank;
    isgq_unique_id_t id;
    isgq_comm_config_t config;
    bool has_config;
    pthread_t thread;
    isgq_result_t result;
    char text[IQ_ERROR_TEXT_BYTES];
} deferred_init_t;

typedef struct group {
    int depth;
    deferred_call_t *calls;
    size_t ncalls, call_room;
    deferred_init_t *inits;
    size_t ninits, init_room;
    isgq_result_t refused;
    char text[IQ_ERROR_TEXT_BYTES];
    isgq_comm_t refusing;
} group_t;

static _Thread_local group_t group;

/* Room for one more element; false without memory. */
static bool grow(void **array, size_t count, size_t *room, size_t bytes)
{
    if (count < *room)
        return true;
    size_t wanted = *room == 0 ? 16 : 2 * *room;
    void *bigger = realloc(*array, wanted * bytes);
    if (bigger == NULL)
        return false;
    *array = bigger;
    *room = wanted;
    return true;
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
    if (group.depth == 0)
        return false;
    *result = ISGQ_SUCCESS;
    if (!grow((void **)&group.calls, group.ncalls, &group.call_room, sizeof(*group.calls))) {
        *result = IQ_FAIL(ISGQ_ERR_NO_MEMORY, "group of %zu calls", group.ncalls);
        return true;
    }
    group.calls[group.ncalls++] = (deferred_call_t){.comm = comm, .call = *call};
    iq_quantizer_retain(call->quantizer);
    return true;
}

isgq_result_t iq_group_refuse(isgq_comm_t comm, isgq_result_t result)
{
    if (group.depth > 0 && result != ISGQ_SUCCESS)
        refuse(comm, result, iq_last_error());
    return result;
}

bool iq_group_defer_init(isgq_comm_t *comm, int nranks, isgq_unique_id_t id, int rank, const isgq_comm_config_t *config)
{
    if (group.depth == 0)
        return false;
    if (!grow((void **)&group.inits, group.ninits, &group.init_room, sizeof(*group.inits))) {
        refuse(NULL, ISGQ_ERR_NO_MEMORY, "group: no memory for another initialisation");
        return true;
    }
    deferred_init_t *init = &group.inits[group.ninits++];
    *init = (deferred_init_t){.comm = comm, .nranks = nranks, .rank = rank, .id = id, .has_config = config != NULL};
    if (config != NULL)
        init->config = *config;
    return true;
}

static void *run_init(void *argument)
{
    deferred_init_t *init = argument;
    init->result = iq_comm_join(init->comm, init->nranks, init->id, init->rank, init->has_config ? &init->config : NULL);
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

static void launch_calls(void)
{
    for (size_t i = 0; i < group.ncalls && group.refused == ISGQ_SUCCESS; i++) {
        isgq_result_t result = iq_submit(group.calls[i].comm, &group.calls[i].call);
        if (result != ISGQ_SUCCESS)
            refuse(group.calls[i].comm, result, iq_last_error());
    }
}

static isgq_result_t end_outermost(void)
{
    if (group.refused == ISGQ_SUCCESS)
        run_inits();
    if (group.refused == ISGQ_SUCCESS)
        launch_calls();
    isgq_result_t result = group.refused;
    if (result != ISGQ_SUCCESS) {
        fail_comm(group.refusing);
        for (size_t i = 0; i < group.ncalls; i++)
            fail_comm(group.calls[i].comm);
        iq_set_last_error(group.text);
    }
    for (size_t i = 0; i < group.ncalls; i++)
        isgq_quantizer_destroy(group.calls[i].call.quantizer);
    free(group.calls);
    free(group.inits);
    group = (group_t){0};
    return result;
}

isgq_result_t isgq_group_start(void)
{
    group.depth++;
    return ISGQ_SUCCESS;
}

isgq_result_t isgq_group_end(void)
{
    if (group.depth == 0)
        return IQ_FAIL(ISGQ_ERR_INVALID_USAGE, "group_end without group_start");
    if (group.depth > 1) {
        group.depth--;
        return ISGQ_SUCCESS;
    }
    return end_outermost();
}
