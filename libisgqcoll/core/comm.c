/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The object itself: its memory, its failure, its end. How ranks come together is join.c.
 */
#include "core/comm.h"

#include "base/config.h"
#include "base/log.h"
#include "base/process.h"
#include "base/util.h"
#include "codec/strata.h"
#include "core/gpu.h"
#include "core/run.h"
#include "core/tensor.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- failure ---- */

void iq_comm_fail(isgq_comm_t comm, isgq_result_t result, const char *text)
{
    pthread_mutex_lock(&comm->failure_lock);
    bool first = atomic_load(&comm->failed) == 0;
    if (first) {
        snprintf(comm->failure_text, sizeof(comm->failure_text), "%s", text);
        atomic_store(&comm->failed, (int)result);
    }
    pthread_mutex_unlock(&comm->failure_lock);
    if (!first)
        return;
    IQ_ERROR("%s", text);
    iq_gpu_failed(comm);
    for (int i = 0; i < comm->ntransports; i++)
        comm->transports[i]->ops->wake(comm->transports[i]);
}

isgq_result_t iq_comm_check(isgq_comm_t comm)
{
    isgq_result_t result = (isgq_result_t)atomic_load(&comm->failed);
    if (result != ISGQ_SUCCESS)
        iq_set_last_error(comm->failure_text);
    return result;
}

isgq_result_t iq_comm_check_handle(isgq_comm_t comm, const char *operation)
{
    if (comm == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "%s: comm is NULL", operation);
    if (comm->pid != iq_process_id())
        return IQ_FAIL(ISGQ_ERR_INVALID_USAGE, "%s: the communicator belongs to process %d; a forked child may not use it", operation,
                       (int)comm->pid);
    return ISGQ_SUCCESS;
}

/* ---- memory ---- */

size_t iq_scratch_reserved(const iq_site_t *site)
{
    return 4 * iq_max(site->chunk_bytes, 1024) + site->slot_bytes + site->chunk_bytes / 4 + 4096;
}

static isgq_result_t take_memory(isgq_comm_t comm)
{
    comm->site = (iq_site_t){.memory = &comm->scratch, .host = &comm->scratch, .plans = &comm->plans, .chunk_bytes = comm->chunk_bytes,
                             .slot_bytes = comm->slot_bytes, .slots = IQ_SLOTS};
    comm->scratch_reserved = iq_scratch_reserved(&comm->site);
    if (comm->scratch.bytes < comm->scratch_reserved + (1u << 20))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "ISGQ_SCRATCH_BYTES is %zu; chunks of %zu bytes need at least %zu", comm->scratch.bytes,
                       comm->chunk_bytes, comm->scratch_reserved + (1u << 20));
    if (comm->device_type == ISGQ_DEVICE_HOST) { /* else iq_gpu_open */
        size_t bytes = comm->scratch.bytes + iq_own_error_room(comm->chunk_bytes);
        void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (base == MAP_FAILED)
            return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "cannot reserve %zu bytes of scratch (ISGQ_SCRATCH_BYTES): %s", comm->scratch.bytes,
                           strerror(errno));
        comm->scratch.base = base;
        comm->scratch.mapped = bytes;
        comm->own_room = comm->scratch.base + comm->scratch.bytes;
    }
    comm->run = calloc(1, sizeof(*comm->run));
    comm->calls = calloc(IQ_QUEUE_CALLS, sizeof(*comm->calls));
    comm->decisions = calloc(IQ_DECISIONS, sizeof(*comm->decisions));
    if (comm->run == NULL || comm->calls == NULL || comm->decisions == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "queue of %d calls", IQ_QUEUE_CALLS);
    return iq_plan_cache_init(&comm->plans, iq_max(iq_config()->plan_cache, 8));
}

/* Undo everything that was done, in reverse; each part may be absent. */
void iq_comm_release(isgq_comm_t comm)
{
    iq_progress_stop(comm);
    if (comm->control != NULL)
        iq_control_close(comm->control);
    while (comm->ntransports > 0) {
        iq_transport_t *transport = comm->transports[--comm->ntransports];
        transport->ops->close(transport);
    }
    if (comm->gpu == NULL)
        iq_memory_release(comm);
    iq_views_close(comm->views);
    iq_gpu_close(comm);
    iq_plan_cache_fini(&comm->plans);
    if (comm->run != NULL && comm->run->call != NULL && comm->run->call->tensor != NULL)
        iq_tensor_forget(comm->run->call->tensor);
    for (int i = 0; comm->calls != NULL && i < IQ_QUEUE_CALLS; i++) {
        if (comm->calls[i].streamed && comm->calls[i].tensor != NULL) /* all that are not complete may have begun */
            iq_tensor_forget(comm->calls[i].tensor);
        isgq_quantizer_destroy(comm->calls[i].quantizer);
        iq_tensor_release(comm->calls[i].tensor);
    }
    if (comm->scratch.mapped != 0)
        munmap(comm->scratch.base, comm->scratch.mapped);
    iq_decisions_forget(comm);
    isgq_quantizer_destroy(comm->quantizer);
    free(comm->calls);
    free(comm->run);
    free(comm->links);
    free(comm->boards);
    free(comm->posted);
    free(comm->peers);
    free(comm->all_strata);
    free(comm->host_ranks);
    free(comm->lane_ranks);
    pthread_cond_destroy(&comm->queue_changed);
    pthread_mutex_destroy(&comm->queue_lock);
    pthread_mutex_destroy(&comm->progress_lock);
    pthread_mutex_destroy(&comm->failure_lock);
    free(comm);
}

/* ---- a communicator that has met nobody yet ---- */

static const iq_config_t *copy_settings(isgq_comm_t comm, const isgq_comm_config_t *config)
{
    const iq_config_t *global = iq_config();
    comm->config = *config;
    comm->seed = config->seed != 0 ? config->seed : global->seed;
    comm->key = comm->seed ^ comm->lineage; /* lineages are as good as random: one key means one seed and one lineage */
    iq_strata_fill(comm->key, comm->nranks, comm->rank, comm->strata);
    if (comm->nranks <= IQ_STRATA_KEPT_RANKS)
        comm->all_strata = malloc((size_t)comm->nranks * sizeof(*comm->all_strata));
    if (comm->all_strata != NULL)
        iq_strata_fill_all(comm->key, comm->nranks, comm->all_strata);
    comm->chunk_bytes = config->chunk_bytes != 0 ? config->chunk_bytes : global->chunk_bytes;
    comm->shadow_every = global->shadow;
    comm->timeout_ms = config->timeout_ms != 0 ? config->timeout_ms : global->timeout_ms;
    comm->scratch.bytes = iq_align_up(global->scratch_bytes, 4096);
    comm->device_type = config->device_type == ISGQ_DEVICE_CUDA ? ISGQ_DEVICE_CUDA : ISGQ_DEVICE_HOST;
    snprintf(comm->transports_allowed, sizeof(comm->transports_allowed), "%s",
             config->transports != NULL ? config->transports : global->transports);
    snprintf(comm->algorithm, sizeof(comm->algorithm), "%s", global->algorithm);
    return global;
}

static isgq_result_t check_config(const isgq_comm_config_t *config)
{
    if (config->size != sizeof(*config))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "config->size is %zu, this library's is %zu; start from ISGQ_COMM_CONFIG_INIT", config->size,
                       sizeof(*config));
    if (config->device_type != ISGQ_DEVICE_AUTO && config->device_type != ISGQ_DEVICE_HOST && config->device_type != ISGQ_DEVICE_CUDA)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "config->device_type is %d", (int)config->device_type);
    return ISGQ_SUCCESS;
}

static isgq_result_t check_chunk(size_t chunk_bytes)
{
    if (chunk_bytes < 4096 || chunk_bytes > (16u << 20))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "chunk_bytes is %zu; it must be 4096 to 16777216", chunk_bytes);
    return ISGQ_SUCCESS;
}

/* Waited for until a time of the clock that is never set. */
static void init_condition(pthread_cond_t *condition)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(condition, &attributes);
    pthread_condattr_destroy(&attributes);
}

isgq_result_t iq_comm_new(int nranks, int rank, iq_origin_t origin, const isgq_comm_config_t *config, isgq_comm_t *out)
{
    static const isgq_comm_config_t defaults = ISGQ_COMM_CONFIG_INIT;
    if (config == NULL)
        config = &defaults;
    IQ_TRY(check_config(config));
    if (nranks > IQ_PLAN_MAX_RANKS)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "nranks is %d; at most %d ranks make a communicator", nranks, IQ_PLAN_MAX_RANKS);
    isgq_comm_t comm = calloc(1, sizeof(*comm));
    if (comm == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "communicator");
    comm->rank = rank;
    comm->nranks = nranks;
    static _Atomic uint64_t made;
    comm->number = atomic_fetch_add(&made, 1) + 1;
    comm->lineage = origin.lineage;
    if (origin.tuning != NULL)
        comm->tuning = *origin.tuning;
    comm->device = origin.device;
    comm->native = origin.native;
    comm->pid = iq_process_id();
    atomic_store(&comm->awaited, -1);
    pthread_mutex_init(&comm->progress_lock, NULL);
    pthread_mutex_init(&comm->queue_lock, NULL);
    pthread_mutex_init(&comm->failure_lock, NULL);
    init_condition(&comm->queue_changed);
    const iq_config_t *global = copy_settings(comm, config);
    isgq_result_t result = check_chunk(comm->chunk_bytes);
    comm->chunk_bytes = comm->chunk_bytes / 256 * 256;
    /* The widest message: 16-bit input whose partial sums travel as 32 bits, scales of the smallest buckets, the frame. */
    comm->slot_bytes = iq_align_up(2 * comm->chunk_bytes + comm->chunk_bytes / 8 + 4096, IQ_CACHE_LINE);
    comm->init_deadline_ns = iq_now_ns() + (uint64_t)global->init_timeout_ms * 1000000u;
    if (result == ISGQ_SUCCESS && config->quantizer != NULL) {
        comm->quantizer = config->quantizer;
        iq_quantizer_retain(comm->quantizer);
    } else if (result == ISGQ_SUCCESS) {
        result = isgq_quantizer_create(&comm->quantizer, global->quantizer);
    }
    if (result == ISGQ_SUCCESS)
        result = take_memory(comm);
    if (result != ISGQ_SUCCESS) {
        iq_comm_release(comm);
        return result;
    }
    *out = comm;
    return ISGQ_SUCCESS;
}

/* ---- the end ---- */

isgq_result_t isgq_comm_finalize(isgq_comm_t comm)
{
    IQ_TRY(iq_comm_check_handle(comm, "comm_finalize"));
    if (comm->finalized)
        return IQ_FAIL(ISGQ_ERR_INVALID_USAGE, "comm_finalize: called twice");
    comm->finalized = true;
    IQ_TRY(iq_progress_synchronize(comm));
    return iq_control_goodbye(comm->control, iq_now_ns() + (uint64_t)comm->timeout_ms * 1000000u);
}

isgq_result_t isgq_comm_abort(isgq_comm_t comm)
{
    char text[96];
    if (comm == NULL)
        return ISGQ_SUCCESS;
    IQ_TRY(iq_comm_check_handle(comm, "comm_abort"));
    snprintf(text, sizeof(text), "rank %d aborted the communicator", comm->rank);
    iq_control_abort(comm->control, ISGQ_ERR_REMOTE, comm->rank, text);
    iq_comm_fail(comm, ISGQ_ERR_REMOTE, text);
    return ISGQ_SUCCESS;
}

isgq_result_t isgq_comm_destroy(isgq_comm_t comm)
{
    if (comm == NULL)
        return ISGQ_SUCCESS;
    IQ_TRY(iq_comm_check_handle(comm, "comm_destroy"));
    if (!comm->finalized && atomic_load(&comm->failed) == 0)
        (void)isgq_comm_abort(comm);
    while (atomic_load(&comm->users) > 0) /* a failed communicator sends them home within a chunk's work */
        sched_yield();
    iq_comm_release(comm);
    return ISGQ_SUCCESS;
}
