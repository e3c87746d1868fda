/* SPDX-License-Identifier: Apache-2.0 */
/* The ways to a communicator: unique id, launcher environment, the caller's allgather, a parent communicator. */
#include "base/config.h"
#include "base/util.h"
#include "core/gpu.h"
#include "kernels/cuda/cuda_module.h"
#include "kernels/philox.h"
#include "transport/nccl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static isgq_result_t check_ranks(const char *operation, isgq_comm_t *comm, int nranks, int rank)
{
    if (comm == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "%s: comm is NULL", operation);
    if (nranks < 1 || nranks > IQ_PLAN_MAX_RANKS)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "%s: nranks is %d; it must be 1 to %d", operation, nranks, IQ_PLAN_MAX_RANKS);
    if (rank < 0 || rank >= nranks)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "%s: rank is %d; it must be 0 to %d", operation, rank, nranks - 1);
    return ISGQ_SUCCESS;
}

isgq_result_t iq_comm_join(isgq_comm_t *comm, int nranks, isgq_unique_id_t id, int rank, int device, const isgq_comm_config_t *config)
{
    iq_rendezvous_t rendezvous;
    IQ_TRY(iq_rendezvous_from_id(&id, rank, &rendezvous));
    return iq_comm_create(comm, nranks, rank, (iq_origin_t){.device = device}, &rendezvous, config);
}

isgq_result_t isgq_get_unique_id(isgq_unique_id_t *id)
{
    if (id == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "get_unique_id: id is NULL");
    return iq_rendezvous_new_id(id);
}

isgq_result_t isgq_comm_init_rank(isgq_comm_t *comm, int nranks, isgq_unique_id_t id, int rank, const isgq_comm_config_t *config)
{
    isgq_result_t result = check_ranks("comm_init_rank", comm, nranks, rank);
    if (result != ISGQ_SUCCESS)
        return iq_group_refuse(NULL, result);
    if (iq_group_defer_init(comm, nranks, id, rank, config))
        return ISGQ_SUCCESS;
    return iq_comm_join(comm, nranks, id, rank, IQ_CURRENT_DEVICE, config);
}

isgq_result_t isgq_comm_init_env(isgq_comm_t *comm, const isgq_comm_config_t *config)
{
    iq_rendezvous_t rendezvous;
    int rank, nranks;
    uint64_t deadline = iq_now_ns() + (uint64_t)iq_config()->init_timeout_ms * 1000000u;
    if (comm == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "comm_init_env: comm is NULL");
    IQ_TRY(iq_group_forbid("comm_init_env"));
    IQ_TRY(iq_rendezvous_from_environment(deadline, &rank, &nranks, &rendezvous));
    return iq_comm_create(comm, nranks, rank, (iq_origin_t){.device = IQ_CURRENT_DEVICE}, &rendezvous, config);
}

isgq_result_t isgq_comm_init_oob(isgq_comm_t *comm, int nranks, int rank, isgq_oob_allgather_fn allgather, void *context,
                                 const isgq_comm_config_t *config)
{
    struct {
        isgq_unique_id_t id;
        int32_t result;
    } mine, *all;
    IQ_TRY(check_ranks("comm_init_oob", comm, nranks, rank));
    if (allgather == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "comm_init_oob: allgather is NULL");
    IQ_TRY(iq_group_forbid("comm_init_oob"));
    memset(&mine, 0, sizeof(mine));
    if (rank == 0)
        mine.result = (int32_t)isgq_get_unique_id(&mine.id);
    all = calloc((size_t)nranks, sizeof(*all));
    int error = all == NULL ? ENOMEM : allgather(context, &mine, all, sizeof(mine));
    if (error != 0) {
        iq_rendezvous_drop_id(&mine.id);
        free(all);
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "comm_init_oob: the exchange between %d ranks failed with %d", nranks, error);
    }
    isgq_unique_id_t id = all[0].id;
    int32_t refused = all[0].result;
    free(all);
    if (refused != 0)
        return IQ_FAIL((isgq_result_t)refused, "comm_init_oob: rank 0 could not listen");
    return iq_comm_join(comm, nranks, id, rank, IQ_CURRENT_DEVICE, config);
}

/* The ranks meet as always; where, rank 0 tells the others over NCCL. */
static isgq_result_t join_nccl(isgq_comm_t *comm, struct ncclComm *nccl_comm, const isgq_comm_config_t *config)
{
    struct {
        isgq_unique_id_t id;
        int32_t result;
    } told;
    int nranks, rank, device;
    iq_rendezvous_t rendezvous;
    uint64_t deadline = iq_now_ns() + (uint64_t)iq_config()->init_timeout_ms * 1000000u;
    const iq_cuda_module_t *cuda = (const iq_cuda_module_t *)iq_module_load("cuda");
    if (cuda == NULL)
        return ISGQ_ERR_UNSUPPORTED;
    IQ_TRY(iq_nccl_describe(nccl_comm, &nranks, &rank, &device));
    memset(&told, 0, sizeof(told));
    if (rank == 0)
        told.result = (int32_t)isgq_get_unique_id(&told.id);
    isgq_unique_id_t listening = told.id;
    isgq_result_t result = iq_nccl_tell(nccl_comm, cuda, device, &told, sizeof(told), deadline);
    if (result != ISGQ_SUCCESS) {
        iq_rendezvous_drop_id(&listening);
        return result;
    }
    if (told.result != 0)
        return IQ_FAIL((isgq_result_t)told.result, "comm_init_nccl: rank 0 could not listen");
    IQ_TRY(iq_rendezvous_from_id(&told.id, rank, &rendezvous));
    return iq_comm_create(comm, nranks, rank, (iq_origin_t){.device = device, .native = nccl_comm}, &rendezvous, config);
}

isgq_result_t isgq_comm_init_nccl(isgq_comm_t *comm, struct ncclComm *nccl_comm, const isgq_comm_config_t *config)
{
    isgq_comm_config_t on_device = ISGQ_COMM_CONFIG_INIT;
    if (comm == NULL || nccl_comm == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "comm_init_nccl: %s is NULL", comm == NULL ? "comm" : "nccl_comm");
    IQ_TRY(iq_group_forbid("comm_init_nccl"));
    if (config != NULL && config->size != sizeof(*config))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "comm_init_nccl: config->size is %zu, this library's is %zu", config->size, sizeof(*config));
    if (config != NULL)
        on_device = *config;
    on_device.device_type = ISGQ_DEVICE_CUDA;
    return join_nccl(comm, nccl_comm, &on_device);
}

/* ---- split ---- */

typedef struct membership {
    int32_t color, key, rank;
} membership_t;

static int by_key(const void *a, const void *b)
{
    const membership_t *left = a, *right = b;
    if (left->key != right->key)
        return left->key < right->key ? -1 : 1;
    return left->rank < right->rank ? -1 : left->rank > right->rank;
}

/* The members of `color` to the front in their new order; returns how many. */
static int select_members(membership_t *all, int nranks, int color)
{
    int members = 0;
    for (int r = 0; r < nranks; r++)
        if (all[r].color == color)
            all[members++] = all[r];
    qsort(all, (size_t)members, sizeof(*all), by_key);
    return members;
}

/* What every member knows: whose child, by which split, of which color. Philox, so that related lineages look unrelated. */
static uint64_t lineage_of_child(isgq_comm_t parent, int color)
{
    iq_philox_block_t block = iq_philox((uint32_t)parent->splits, (uint32_t)(parent->splits >> 32), (uint32_t)color, 0,
                                        (uint32_t)parent->lineage, (uint32_t)(parent->lineage >> 32));
    return block.word[0] | (uint64_t)block.word[1] << 32;
}

static isgq_result_t split_with(isgq_comm_t comm, int color, int key, isgq_comm_t *new_comm, const isgq_comm_config_t *config,
                                membership_t *all, isgq_unique_id_t *ids)
{
    membership_t mine = {.color = color < 0 ? -1 : color, .key = key, .rank = comm->rank};
    uint64_t deadline = iq_now_ns() + (uint64_t)iq_config()->init_timeout_ms * 1000000u;
    isgq_unique_id_t id = {{0}};
    iq_rendezvous_t rendezvous;
    int new_rank = 0;
    IQ_TRY(iq_control_allgather(comm->control, &mine, all, sizeof(mine), deadline));
    comm->splits++; /* whatever becomes of it: all ranks have come this far */
    int members = color < 0 ? 0 : select_members(all, comm->nranks, color);
    while (new_rank < members && all[new_rank].rank != comm->rank)
        new_rank++;
    isgq_result_t made = members > 0 && new_rank == 0 ? isgq_get_unique_id(&id) : ISGQ_SUCCESS;
    isgq_result_t told = iq_control_allgather(comm->control, &id, ids, sizeof(id), deadline); /* everybody takes part, whatever happened */
    if (told != ISGQ_SUCCESS)
        iq_rendezvous_drop_id(&id);
    IQ_TRY(told);
    IQ_TRY(made);
    if (members == 0) {
        *new_comm = NULL;
        return ISGQ_SUCCESS;
    }
    IQ_TRY(iq_rendezvous_from_id(&ids[all[0].rank], new_rank, &rendezvous));
    iq_origin_t origin = {.lineage = lineage_of_child(comm, color),
                          .tuning = &comm->tuning,
                          .device = comm->gpu != NULL ? iq_gpu_device(comm)->ordinal : IQ_CURRENT_DEVICE};
    return iq_comm_create(new_comm, members, new_rank, origin, &rendezvous, config);
}

isgq_result_t isgq_comm_split(isgq_comm_t comm, int color, int key, isgq_comm_t *new_comm, const isgq_comm_config_t *config)
{
    IQ_TRY(iq_comm_check_handle(comm, "comm_split"));
    if (new_comm == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "comm_split: new_comm is NULL");
    IQ_TRY(iq_group_forbid("comm_split"));
    IQ_TRY(iq_comm_check(comm));
    isgq_comm_config_t inherited = comm->config;
    inherited.quantizer = comm->quantizer;
    inherited.transports = comm->transports_allowed;
    if (comm->gpu != NULL) /* making streams and pinning memory could wait for a stream that waits for a call */
        IQ_TRY(iq_progress_synchronize(comm));
    membership_t *all = calloc((size_t)comm->nranks, sizeof(*all));
    isgq_unique_id_t *ids = calloc((size_t)comm->nranks, sizeof(*ids));
    isgq_result_t result = all == NULL || ids == NULL ? IQ_FAIL(ISGQ_ERR_NO_MEMORY, "comm_split: %d ranks", comm->nranks) : ISGQ_SUCCESS;
    if (result == ISGQ_SUCCESS)
        result = split_with(comm, color, key, new_comm, config != NULL ? config : &inherited, all, ids);
    free(all);
    free(ids);
    return result;
}
