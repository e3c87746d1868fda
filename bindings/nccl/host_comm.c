/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Communicators of the host emulation: made alone, for all ranks of a thread at once, in a group, or by a split; ended by destroy, or by an abort
 * from another thread while a call is inside.
 */
#include "bindings/nccl/host_comm.h"

#include "bindings/nccl/host_group.h"
#include "bindings/preload/say.h"
#include "bindings/preload/tally.h"

#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORTED __attribute__((visibility("default")))

static _Thread_local char last_error[512];
static pthread_once_t once = PTHREAD_ONCE_INIT;
static iq_policy_t policy;

/* Of the open group of this thread: communicators that will exist when it ends. */
enum { PENDING = 1024 };
typedef struct pending {
    iq_host_comm_t *comm;
    iq_host_id_t id;
} pending_t;
static _Thread_local pending_t *pending;
static _Thread_local size_t npending;

/* Communicators of this process from the moment their making begins, and those that are leaving: see ncclCommDestroy. */
static pthread_mutex_t living_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static iq_host_comm_t *living;
static size_t nliving, nleaving;
static int first_rank = -1; /* of the process's first communicator: whose record it is */

/* With living_lock held: the place in the list that holds `comm`, or its end. */
static iq_host_comm_t **place_of(const iq_host_comm_t *comm)
{
    iq_host_comm_t **place = &living;
    while (*place != NULL && *place != comm)
        place = &(*place)->next;
    return place;
}

/* Whoever takes a communicator out is the one who ends it. */
static bool take_out(iq_host_comm_t *comm)
{
    pthread_mutex_lock(&living_lock);
    iq_host_comm_t **place = place_of(comm);
    bool found = *place != NULL;
    if (found) {
        *place = comm->next;
        nliving--;
    }
    pthread_mutex_unlock(&living_lock);
    return found;
}

const char *iq_host_last_error(void) { return last_error; }

iq_host_result_t iq_host_fail(iq_host_result_t result, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof(last_error), format, arguments);
    va_end(arguments);
    iq_say(IQ_SAY_INFO, "%s", last_error);
    return result;
}

const iq_library_t *iq_host_library(void)
{
    const char *error;
    const iq_library_t *library = iq_library(&error);
    if (library == NULL)
        (void)iq_host_fail(HOST_SYSTEM, "%s", error);
    return library;
}

static void begin(void)
{
    char error[IQ_POLICY_ERROR];
    iq_say_as("isgq nccl", -1);
    if (!iq_policy_parse(&policy, secure_getenv("ISGQ_POLICY"), error))
        iq_say(IQ_SAY_WARN, "%s; nothing is quantized", error);
}

const iq_policy_t *iq_host_policy(void)
{
    pthread_once(&once, begin);
    return &policy;
}

/* The library's own codes have no number in NCCL. Time-outs are 8, which NCCL up to 2.28 does not know: ncclRemoteError says it best. */
iq_host_result_t iq_host_result(isgq_result_t result, const char *what)
{
    const char *error;
    if (result == ISGQ_SUCCESS)
        return HOST_SUCCESS;
    const iq_library_t *library = iq_library(&error);
    iq_host_result_t mapped = result == ISGQ_ERR_TIMEOUT       ? HOST_REMOTE
                              : result == ISGQ_ERR_UNSUPPORTED ? HOST_INVALID_ARGUMENT
                              : result == ISGQ_ERR_MISMATCH    ? HOST_INVALID_USAGE
                              : result == ISGQ_ERR_NO_MEMORY   ? HOST_SYSTEM
                              : result == ISGQ_ERR_CORRUPT     ? HOST_REMOTE
                                                               : (iq_host_result_t)result;
    return iq_host_fail(mapped, "%s: %s: %s", what, library->get_error_string(result), library->get_last_error());
}

iq_host_result_t iq_host_comm_check(const iq_host_comm_t *comm, const char *call)
{
    if (comm == NULL)
        return iq_host_fail(HOST_INVALID_ARGUMENT, "%s: comm is NULL", call);
    pthread_mutex_lock(&living_lock);
    bool lives = *place_of(comm) != NULL;
    pthread_mutex_unlock(&living_lock);
    if (!lives)
        return iq_host_fail(HOST_INVALID_ARGUMENT, "%s: comm %p was destroyed, or was not made by the host emulation", call,
                            (const void *)comm);
    return HOST_SUCCESS;
}

/* Never looks into what `comm` points to before it is known to live: it may have been destroyed, or aborted by another thread just now. */
iq_host_result_t iq_host_comm_enter(iq_host_comm_t *comm, const char *call)
{
    pthread_mutex_lock(&living_lock);
    bool lives = comm != NULL && *place_of(comm) != NULL;
    if (lives)
        atomic_fetch_add(&comm->users, 1);
    pthread_mutex_unlock(&living_lock);
    return lives ? HOST_SUCCESS : iq_host_comm_check(comm, call);
}

void iq_host_comm_leave(iq_host_comm_t *comm) { atomic_fetch_sub(&comm->users, 1); }

static iq_host_comm_t *new_comm(int nranks, int rank, int device, const iq_host_config_t *config)
{
    iq_host_comm_t *comm = calloc(1, sizeof(*comm));
    if (comm == NULL)
        return NULL;
    comm->nranks = nranks;
    comm->rank = rank;
    comm->device = device;
    bool named = config != NULL && config->size >= offsetof(iq_host_config_t, comm_name) + sizeof(config->comm_name) &&
                 config->comm_name != NULL;
    snprintf(comm->name, sizeof(comm->name), "%s", named ? config->comm_name : "unnamed");
    pthread_mutex_lock(&living_lock);
    comm->next = living;
    living = comm;
    nliving++;
    first_rank = first_rank < 0 ? rank : first_rank;
    pthread_mutex_unlock(&living_lock);
    return comm;
}

static void free_comm(iq_host_comm_t *comm)
{
    const iq_library_t *library = iq_host_library();
    for (size_t i = 0; library != NULL && i < IQ_POLICY_RULES; i++)
        if (comm->quantizers[i] != NULL)
            library->quantizer_destroy(comm->quantizers[i]);
    free(comm);
}

/* One whose making failed. */
static void drop_comm(iq_host_comm_t *comm)
{
    (void)take_out(comm);
    free_comm(comm);
}

static isgq_result_t join(const iq_library_t *library, iq_host_comm_t *comm, const iq_host_id_t *id)
{
    isgq_unique_id_t unique;
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    _Static_assert(sizeof(unique) == sizeof(*id), "both are 128 bytes");
    memcpy(&unique, id, sizeof(unique));
    config.device_type = ISGQ_DEVICE_HOST;
    return library->comm_init_rank(&comm->inner, comm->nranks, unique, comm->rank, &config);
}

static iq_host_result_t make(iq_host_comm_t **out, int nranks, const iq_host_id_t *id, int rank, int device,
                             const iq_host_config_t *config)
{
    const iq_library_t *library = iq_host_library();
    if (out == NULL || nranks < 1 || rank < 0 || rank >= nranks)
        return iq_host_fail(HOST_INVALID_ARGUMENT, "ncclCommInitRank: rank %d of %d ranks%s", rank, nranks,
                            out == NULL ? ", comm is NULL" : "");
    if (library == NULL)
        return HOST_SYSTEM;
    iq_host_comm_t *comm = new_comm(nranks, rank, device, config);
    if (comm == NULL)
        return iq_host_fail(HOST_SYSTEM, "ncclCommInitRank: no memory");
    if (iq_host_in_group()) {
        if (pending == NULL)
            pending = calloc(PENDING, sizeof(*pending));
        if (pending == NULL || npending == PENDING) {
            drop_comm(comm);
            return iq_host_fail(HOST_SYSTEM, "ncclCommInitRank: more than %d communicators in one group", PENDING);
        }
        pending[npending++] = (pending_t){comm, *id};
        *out = comm;
        return HOST_SUCCESS;
    }
    iq_host_result_t result = iq_host_result(join(library, comm, id), "ncclCommInitRank");
    if (result != HOST_SUCCESS) {
        drop_comm(comm);
        return result;
    }
    *out = comm;
    return HOST_SUCCESS;
}

bool iq_host_comm_pending(void) { return npending > 0; }

/* All at once, since their ranks may be waiting for each other. */
iq_host_result_t iq_host_comm_join_all(void)
{
    const iq_library_t *library = iq_host_library();
    iq_host_result_t result = iq_host_result(library->group_start(), "ncclGroupEnd");
    for (size_t i = 0; i < npending && result == HOST_SUCCESS; i++) {
        if ((result = iq_host_comm_enter(pending[i].comm, "ncclGroupEnd")) != HOST_SUCCESS)
            break; /* ended inside the group that makes it */
        result = iq_host_result(join(library, pending[i].comm, &pending[i].id), "ncclCommInitRank");
        iq_host_comm_leave(pending[i].comm);
    }
    iq_host_result_t end = iq_host_result(library->group_end(), "ncclCommInitRank in a group");
    npending = 0;
    free(pending);
    pending = NULL;
    return result != HOST_SUCCESS ? result : end;
}

EXPORTED iq_host_result_t iq_host_ncclGetUniqueId(iq_host_id_t *id);
iq_host_result_t iq_host_ncclGetUniqueId(iq_host_id_t *id)
{
    const iq_library_t *library = iq_host_library();
    isgq_unique_id_t unique;
    (void)iq_host_policy();
    if (id == NULL)
        return iq_host_fail(HOST_INVALID_ARGUMENT, "ncclGetUniqueId: uniqueId is NULL");
    if (library == NULL)
        return HOST_SYSTEM;
    iq_host_result_t result = iq_host_result(library->get_unique_id(&unique), "ncclGetUniqueId");
    if (result == HOST_SUCCESS)
        memcpy(id, &unique, sizeof(*id));
    return result;
}

EXPORTED iq_host_result_t iq_host_ncclCommInitRank(iq_host_comm_t **comm, int nranks, iq_host_id_t id, int rank);
iq_host_result_t iq_host_ncclCommInitRank(iq_host_comm_t **comm, int nranks, iq_host_id_t id, int rank)
{
    return make(comm, nranks, &id, rank, 0, NULL);
}

EXPORTED iq_host_result_t iq_host_ncclCommInitRankConfig(iq_host_comm_t **comm, int nranks, iq_host_id_t id, int rank,
                                                         const iq_host_config_t *config);
iq_host_result_t iq_host_ncclCommInitRankConfig(iq_host_comm_t **comm, int nranks, iq_host_id_t id, int rank,
                                                const iq_host_config_t *config)
{
    return make(comm, nranks, &id, rank, 0, config);
}

/* Several roots spread the load of thousands of ranks; here the first is enough. */
EXPORTED iq_host_result_t iq_host_ncclCommInitRankScalable(iq_host_comm_t **comm, int nranks, int rank, int nids,
                                                           const iq_host_id_t *ids, const iq_host_config_t *config);
iq_host_result_t iq_host_ncclCommInitRankScalable(iq_host_comm_t **comm, int nranks, int rank, int nids, const iq_host_id_t *ids,
                                                  const iq_host_config_t *config)
{
    if (nids < 1 || ids == NULL)
        return iq_host_fail(HOST_INVALID_ARGUMENT, "ncclCommInitRankScalable: no unique id");
    return make(comm, nranks, &ids[0], rank, 0, config);
}

static iq_host_result_t join_all_of(iq_host_comm_t **comms, int ndev, const int *devices)
{
    iq_host_id_t id;
    const iq_library_t *library = iq_host_library();
    iq_host_result_t result = iq_host_ncclGetUniqueId(&id);
    if (result == HOST_SUCCESS)
        result = iq_host_result(library->group_start(), "ncclCommInitAll");
    if (result != HOST_SUCCESS)
        return result;
    for (int i = 0; i < ndev && result == HOST_SUCCESS; i++) {
        comms[i] = new_comm(ndev, i, devices != NULL ? devices[i] : i, NULL);
        result = comms[i] == NULL ? iq_host_fail(HOST_SYSTEM, "ncclCommInitAll: no memory")
                                  : iq_host_result(join(library, comms[i], &id), "ncclCommInitAll");
    }
    iq_host_result_t end = iq_host_result(library->group_end(), "ncclCommInitAll");
    return result != HOST_SUCCESS ? result : end;
}

EXPORTED iq_host_result_t iq_host_ncclCommInitAll(iq_host_comm_t **comms, int ndev, const int *devices);
iq_host_result_t iq_host_ncclCommInitAll(iq_host_comm_t **comms, int ndev, const int *devices)
{
    if (comms == NULL || ndev < 1)
        return iq_host_fail(HOST_INVALID_ARGUMENT, "ncclCommInitAll: %d devices", ndev);
    for (int i = 0; i < ndev; i++)
        comms[i] = NULL;
    iq_host_result_t result = join_all_of(comms, ndev, devices);
    for (int i = 0; i < ndev && result != HOST_SUCCESS; i++)
        if (comms[i] != NULL) {
            (void)iq_host_library()->comm_destroy(comms[i]->inner);
            drop_comm(comms[i]);
            comms[i] = NULL;
        }
    return result;
}

EXPORTED iq_host_result_t iq_host_ncclCommSplit(iq_host_comm_t *comm, int color, int key, iq_host_comm_t **out,
                                                const iq_host_config_t *config);
iq_host_result_t iq_host_ncclCommSplit(iq_host_comm_t *comm, int color, int key, iq_host_comm_t **out,
                                       const iq_host_config_t *config)
{
    isgq_comm_t inner = NULL;
    int nranks, rank;
    if (out == NULL || (color < 0 && color != HOST_SPLIT_NOCOLOR))
        return iq_host_fail(HOST_INVALID_ARGUMENT, "ncclCommSplit: color %d%s", color, out == NULL ? ", newcomm is NULL" : "");
    if (iq_host_comm_check(comm, "ncclCommSplit") != HOST_SUCCESS)
        return HOST_INVALID_ARGUMENT;
    if (iq_host_in_group())
        return iq_host_fail(HOST_INVALID_USAGE, "ncclCommSplit: not inside a group in the host emulation");
    const iq_library_t *library = iq_host_library();
    if (iq_host_comm_enter(comm, "ncclCommSplit") != HOST_SUCCESS)
        return HOST_INVALID_ARGUMENT;
    iq_host_result_t result = iq_host_result(library->comm_split(comm->inner, color, key, &inner, NULL), "ncclCommSplit");
    iq_host_comm_leave(comm);
    *out = NULL;
    if (result != HOST_SUCCESS || inner == NULL)
        return result;
    (void)library->comm_count(inner, &nranks);
    (void)library->comm_user_rank(inner, &rank);
    *out = new_comm(nranks, rank, comm->device, config);
    if (*out == NULL) {
        (void)library->comm_destroy(inner);
        return iq_host_fail(HOST_SYSTEM, "ncclCommSplit: no memory");
    }
    (*out)->inner = inner;
    return HOST_SUCCESS;
}

EXPORTED iq_host_result_t iq_host_ncclCommFinalize(iq_host_comm_t *comm);
iq_host_result_t iq_host_ncclCommFinalize(iq_host_comm_t *comm)
{
    if (iq_host_comm_check(comm, "ncclCommFinalize") != HOST_SUCCESS)
        return HOST_INVALID_ARGUMENT;
    return HOST_SUCCESS; /* calls are complete when they return: nothing is left to wait for */
}

/*
 * Leaving a communicator waits for its other ranks, and those may be this thread's own, about to be destroyed next. So each leaves on a thread
 * of its own, and whoever destroys the process's last communicator waits for all of them.
 */
static void say_totals(const iq_library_t *library, const iq_host_comm_t *comm)
{
    isgq_stats_t stats = {.size = sizeof(stats)};
    if (library->comm_get_stats(comm->inner, &stats) != ISGQ_SUCCESS)
        return;
    iq_tally_bytes(stats.input_bytes, stats.wire_bytes);
    if (iq_says(IQ_SAY_INFO))
        iq_say(IQ_SAY_INFO, "communicator \"%s\", rank %d: %llu calls, %llu bytes in, %llu sent", comm->name, comm->rank,
               (unsigned long long)stats.calls, (unsigned long long)stats.input_bytes, (unsigned long long)stats.wire_bytes);
}

static void *leave(void *argument)
{
    iq_host_comm_t *comm = argument;
    const iq_library_t *library = iq_host_library();
    while (atomic_load(&comm->users) > 0)
        (void)sched_yield();
    say_totals(library, comm);
    (void)library->comm_finalize(comm->inner); /* what went wrong was said when it did */
    (void)library->comm_destroy(comm->inner);
    free_comm(comm);
    pthread_mutex_lock(&living_lock);
    nleaving--;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&living_lock);
    return NULL;
}

/* Without a thread: at once, which is right where a process has one rank. */
static void begin_to_leave(iq_host_comm_t *comm)
{
    pthread_t thread;
    pthread_mutex_lock(&living_lock);
    nleaving++;
    pthread_mutex_unlock(&living_lock);
    if (pthread_create(&thread, NULL, leave, comm) == 0)
        pthread_detach(thread);
    else
        (void)leave(comm);
}

static void wait_if_last(void)
{
    pthread_mutex_lock(&living_lock);
    bool last = nliving == 0;
    while (nliving == 0 && nleaving > 0)
        pthread_cond_wait(&changed, &living_lock);
    pthread_mutex_unlock(&living_lock);
    if (last)
        iq_tally_report(&policy, first_rank);
}

EXPORTED iq_host_result_t iq_host_ncclCommDestroy(iq_host_comm_t *comm);
iq_host_result_t iq_host_ncclCommDestroy(iq_host_comm_t *comm)
{
    if (comm == NULL)
        return HOST_SUCCESS;
    if (!take_out(comm))
        return iq_host_comm_check(comm, "ncclCommDestroy");
    begin_to_leave(comm);
    wait_if_last();
    return HOST_SUCCESS;
}

/* From any thread: whoever is inside a call is woken by the library and leaves before the memory goes. */
EXPORTED iq_host_result_t iq_host_ncclCommAbort(iq_host_comm_t *comm);
iq_host_result_t iq_host_ncclCommAbort(iq_host_comm_t *comm)
{
    if (comm == NULL)
        return HOST_SUCCESS;
    if (!take_out(comm))
        return iq_host_comm_check(comm, "ncclCommAbort");
    const iq_library_t *library = iq_host_library();
    (void)library->comm_abort(comm->inner);
    while (atomic_load(&comm->users) > 0)
        (void)sched_yield();
    (void)library->comm_destroy(comm->inner);
    free_comm(comm);
    wait_if_last();
    return HOST_SUCCESS;
}

EXPORTED iq_host_result_t iq_host_ncclCommGetAsyncError(iq_host_comm_t *comm, iq_host_result_t *error);
iq_host_result_t iq_host_ncclCommGetAsyncError(iq_host_comm_t *comm, iq_host_result_t *error)
{
    isgq_result_t inner = ISGQ_SUCCESS;
    if (error == NULL || iq_host_comm_check(comm, "ncclCommGetAsyncError") != HOST_SUCCESS)
        return HOST_INVALID_ARGUMENT;
    iq_host_result_t result =
        iq_host_result(iq_host_library()->comm_get_async_error(comm->inner, &inner), "ncclCommGetAsyncError");
    *error = inner == ISGQ_SUCCESS ? HOST_SUCCESS : iq_host_result(inner, "communicator");
    return result;
}

#define QUERY(name, field)                                                            \
    EXPORTED iq_host_result_t iq_host_##name(const iq_host_comm_t *comm, int *value); \
    iq_host_result_t iq_host_##name(const iq_host_comm_t *comm, int *value)           \
    {                                                                                 \
        if (value == NULL || iq_host_comm_check(comm, #name) != HOST_SUCCESS)         \
            return HOST_INVALID_ARGUMENT;                                             \
        *value = comm->field;                                                         \
        return HOST_SUCCESS;                                                          \
    }
QUERY(ncclCommCount, nranks)
QUERY(ncclCommUserRank, rank)
QUERY(ncclCommCuDevice, device)
