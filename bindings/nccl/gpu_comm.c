/* SPDX-License-Identifier: Apache-2.0 */
/* Communicators of the program: known from their making to their end, in a list beside the real library. */
#include "bindings/nccl/gpu_engine.h"

#include "bindings/preload/say.h"
#include "bindings/preload/tally.h"

#include <dlfcn.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORTED __attribute__((visibility("default")))

iq_real_t iq_real;
static void *real_handle;
static iq_policy_t policy;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static iq_gpu_comm_t *comms;
static pthread_t *leaving; /* communicators on their way out, see destroy */
static size_t nleaving;
static int first_rank = -1; /* of the process's first communicator: whom lines and records speak of */

const iq_policy_t *iq_gpu_policy(void) { return &policy; }

static void *find_real(void *context, const char *symbol)
{
    (void)context;
    return dlsym(real_handle, symbol);
}

/* Called by the shim when the real library has been opened and before any call reaches it. */
EXPORTED void iq_gpu_begin(void *handle);
void iq_gpu_begin(void *handle)
{
    char error[IQ_POLICY_ERROR];
    void *address;
    real_handle = handle;
#define X(name, parameters)         \
    address = dlsym(handle, #name); \
    memcpy(&iq_real.name, &address, sizeof(address));
    IQ_REAL_FUNCTIONS(X)
#undef X
    if (!iq_policy_parse(&policy, secure_getenv("ISGQ_POLICY"), error))
        iq_say(IQ_SAY_WARN, "%s; nothing is quantized", error);
}

iq_host_result_t iq_gpu_result(isgq_result_t result)
{
    return result == ISGQ_ERR_TIMEOUT || result == ISGQ_ERR_CORRUPT ? HOST_REMOTE
           : result == ISGQ_ERR_UNSUPPORTED                         ? HOST_INVALID_ARGUMENT
           : result == ISGQ_ERR_MISMATCH                            ? HOST_INVALID_USAGE
           : result == ISGQ_ERR_NO_MEMORY                           ? HOST_SYSTEM
                                                                    : (iq_host_result_t)result;
}

static const char *open_inner(iq_gpu_comm_t *comm)
{
    const char *error;
    const iq_library_t *library = iq_library(&error);
    static bool told;
    if (library == NULL)
        return error;
    if (!told && library->use_nccl(find_real, NULL) != ISGQ_SUCCESS)
        return library->get_last_error();
    told = true;
    for (size_t i = 0; i < policy.nrules; i++)
        if (!policy.rules[i].exclude && library->quantizer_create(&comm->quantizers[i], policy.rules[i].with) != ISGQ_SUCCESS)
            return library->get_last_error();
    return library->comm_init_nccl(&comm->inner, comm->real, NULL) == ISGQ_SUCCESS ? NULL : library->get_last_error();
}

static void join(iq_gpu_comm_t *comm, const char *refused)
{
    comm->named = iq_policy_named(&policy, comm->name, comm->nranks);
    if (comm->named == 0)
        return;
    const char *problem = refused != NULL ? refused : open_inner(comm);
    if (problem == NULL) {
        iq_say(comm->rank == 0 ? IQ_SAY_INFO : IQ_SAY_DEBUG,
               "communicator \"%s\", %d ranks: sums are quantized as the policy says", comm->name, comm->nranks);
        return;
    }
    iq_say(IQ_SAY_WARN, "communicator \"%s\", rank %d: %s; its calls pass through", comm->name, comm->rank, problem);
    comm->refused = "its communicator could not be joined";
}

void iq_gpu_comm_add(iq_real_comm_t real, const iq_host_config_t *config, const char *refused)
{
    iq_gpu_comm_t *comm = calloc(1, sizeof(*comm));
    bool named = config != NULL && config->size >= offsetof(iq_host_config_t, comm_name) + sizeof(config->comm_name) &&
                 config->comm_name != NULL;
    if (comm == NULL || real == NULL || iq_real.ncclCommCount(real, &comm->nranks) != HOST_SUCCESS ||
        iq_real.ncclCommUserRank(real, &comm->rank) != HOST_SUCCESS) {
        free(comm);
        return;
    }
    comm->real = real;
    snprintf(comm->name, sizeof(comm->name), "%s", named ? config->comm_name : "unnamed");
    if (first_rank < 0) {
        first_rank = comm->rank;
        iq_say_as("isgq nccl", first_rank);
    }
    if (policy.mode == IQ_POLICY_QUANTIZE)
        join(comm, config != NULL && config->blocking == 0 ? "non-blocking communicators are left alone" : refused);
    pthread_mutex_lock(&lock);
    comm->next = comms;
    comms = comm;
    pthread_mutex_unlock(&lock);
}

iq_gpu_comm_t *iq_gpu_comm_get(iq_real_comm_t real)
{
    pthread_mutex_lock(&lock);
    iq_gpu_comm_t *comm = comms;
    while (comm != NULL && comm->real != real)
        comm = comm->next;
    if (comm != NULL)
        comm->users++;
    pthread_mutex_unlock(&lock);
    return comm;
}

void iq_gpu_comm_put(iq_gpu_comm_t *comm)
{
    pthread_mutex_lock(&lock);
    comm->users--;
    pthread_mutex_unlock(&lock);
}

static iq_gpu_comm_t *take_out(iq_real_comm_t real)
{
    pthread_mutex_lock(&lock);
    iq_gpu_comm_t **place = &comms;
    while (*place != NULL && (*place)->real != real)
        place = &(*place)->next;
    iq_gpu_comm_t *comm = *place;
    if (comm != NULL)
        *place = comm->next;
    pthread_mutex_unlock(&lock);
    return comm;
}

/* Calls that are inside have left. */
static void wait_for_users(iq_gpu_comm_t *comm)
{
    for (int users = 1; users > 0; (void)sched_yield()) {
        pthread_mutex_lock(&lock);
        users = comm->users;
        pthread_mutex_unlock(&lock);
    }
}

static void release(iq_gpu_comm_t *comm, const iq_library_t *library)
{
    isgq_stats_t stats = {.size = sizeof(stats)};
    if (comm->inner != NULL && library->comm_get_stats(comm->inner, &stats) == ISGQ_SUCCESS)
        iq_tally_bytes(stats.input_bytes, stats.wire_bytes);
    if (comm->inner != NULL)
        (void)library->comm_destroy(comm->inner);
    for (size_t i = 0; i < policy.nrules; i++)
        if (comm->quantizers[i] != NULL)
            library->quantizer_destroy(comm->quantizers[i]);
    free(comm);
}

/* Ours first, since it lives on the real one. Leaving waits for the other ranks, which may be this thread's next calls: hence a thread. */
static void *leave(void *argument)
{
    iq_gpu_comm_t *comm = argument;
    iq_real_comm_t real = comm->real;
    const char *error;
    const iq_library_t *library = iq_library(&error);
    (void)library->comm_finalize(comm->inner);
    release(comm, library);
    (void)iq_real.ncclCommDestroy(real);
    return NULL;
}

static bool leave_on_a_thread(iq_gpu_comm_t *comm)
{
    pthread_mutex_lock(&lock);
    pthread_t *more = realloc(leaving, (nleaving + 1) * sizeof(*leaving));
    if (more != NULL)
        leaving = more;
    bool begun = more != NULL && pthread_create(&leaving[nleaving], NULL, leave, comm) == 0;
    nleaving += begun;
    pthread_mutex_unlock(&lock);
    return begun;
}

/* Whoever ends the last communicator waits for all, and tells what was done. */
static void after_the_last(void)
{
    pthread_mutex_lock(&lock);
    bool last = comms == NULL;
    pthread_t *threads = leaving;
    size_t count = last ? nleaving : 0;
    if (last) {
        leaving = NULL;
        nleaving = 0;
    }
    pthread_mutex_unlock(&lock);
    for (size_t i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    if (last) {
        free(threads);
        iq_tally_report(&policy, first_rank < 0 ? 0 : first_rank);
    }
}

EXPORTED iq_host_result_t iq_gpu_ncclCommDestroy(iq_real_comm_t real);
iq_host_result_t iq_gpu_ncclCommDestroy(iq_real_comm_t real)
{
    iq_gpu_comm_t *comm = real != NULL ? take_out(real) : NULL;
    iq_host_result_t result = HOST_SUCCESS;
    if (comm == NULL)
        return iq_real.ncclCommDestroy(real);
    iq_gpu_drop_kept(real);
    wait_for_users(comm);
    if (comm->inner == NULL) {
        const char *error;
        release(comm, iq_library(&error));
        result = iq_real.ncclCommDestroy(real);
    } else if (!leave_on_a_thread(comm)) {
        (void)leave(comm);
    }
    after_the_last();
    return result;
}

EXPORTED iq_host_result_t iq_gpu_ncclCommAbort(iq_real_comm_t real);
iq_host_result_t iq_gpu_ncclCommAbort(iq_real_comm_t real)
{
    iq_gpu_comm_t *comm = real != NULL ? take_out(real) : NULL;
    const char *error;
    if (comm == NULL)
        return iq_real.ncclCommAbort(real);
    iq_gpu_drop_kept(real);
    const iq_library_t *library = iq_library(&error);
    if (comm->inner != NULL)
        (void)library->comm_abort(comm->inner);
    iq_host_result_t result = iq_real.ncclCommAbort(real); /* which frees streams that wait for others */
    wait_for_users(comm);
    release(comm, library);
    after_the_last();
    return result;
}

EXPORTED iq_host_result_t iq_gpu_ncclCommGetAsyncError(iq_real_comm_t real, iq_host_result_t *error);
iq_host_result_t iq_gpu_ncclCommGetAsyncError(iq_real_comm_t real, iq_host_result_t *error)
{
    iq_host_result_t result = iq_real.ncclCommGetAsyncError(real, error);
    iq_gpu_comm_t *comm = result == HOST_SUCCESS && error != NULL && *error == HOST_SUCCESS ? iq_gpu_comm_get(real) : NULL;
    if (comm == NULL)
        return result;
    isgq_result_t inner = ISGQ_SUCCESS;
    const char *text;
    if (comm->inner != NULL && iq_library(&text)->comm_get_async_error(comm->inner, &inner) == ISGQ_SUCCESS &&
        inner != ISGQ_SUCCESS)
        *error = iq_gpu_result(inner);
    iq_gpu_comm_put(comm);
    return result;
}
