/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Coming together: meet (control channel), agree (one allgather of settings), connect (transports). A failure at any point is told to the other
 * ranks, which then fail with the same text instead of waiting for the deadline.
 */
#include "base/config.h"
#include "base/log.h"
#include "base/util.h"
#include "core/exec_stream.h"
#include "core/gpu.h"
#include "core/run.h"
#include "core/tuned.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* ---- what the control channel asks ---- */

static void on_status(void *context, iq_rank_status_t *status)
{
    isgq_comm_t comm = context;
    memset(status, 0, sizeof(*status));
    status->completed = atomic_load(&comm->completed);
    status->current = atomic_load(&comm->current);
    status->awaited = status->current != 0 ? atomic_load(&comm->awaited) : -1;
    snprintf(status->text, sizeof(status->text), status->current != 0 ? "call %llu" : "idle after call %llu",
             (unsigned long long)(status->current != 0 ? status->current : status->completed));
}

static bool on_arguments(void *context, uint64_t sequence, char text[IQ_ARGUMENTS_TEXT_BYTES])
{
    return iq_call_arguments(context, sequence, text);
}

static void on_failed(void *context, isgq_result_t result, int culprit, const char *text)
{
    (void)culprit; /* the text names it */
    iq_comm_fail(context, result, text);
}

/* ---- agreement ---- */

#define SETTINGS_BYTES 800

/* What ranks tell each other at the start. */
typedef struct hello {
    iq_peer_t peer;
    uint64_t token; /* rank 0's names the communicator */
    int32_t tells_table; /* rank 0's: it has a tuning table, and tells it when ranks are connected */
    char settings[SETTINGS_BYTES]; /* "name value\n" lines that must be equal */
} hello_t;

static void write_settings(isgq_comm_t comm, char text[SETTINGS_BYTES])
{
    snprintf(text, SETTINGS_BYTES, "ISGQ_CHUNK_BYTES %zu\nISGQ_WIRE_CHUNK_BYTES %zu\nISGQ_WIRE_SUM %d\nISGQ_FUSE_BYTES %zu\nISGQ_SCRATCH_BYTES %zu\nISGQ_SEED %llu\nISGQ_TRANSPORTS %s\n"
                                   "ISGQ_SHADOW %u\nISGQ_EXACT_IF_FASTER %d\nISGQ_ALGORITHM %s\ndefault quantizer %s\n",
             comm->chunk_bytes, iq_config()->wire_chunk_bytes, iq_config()->wire_sum, iq_config()->fuse_bytes, comm->scratch.bytes, (unsigned long long)comm->seed, comm->transports_allowed, iq_config()->shadow,
             iq_config()->exact_if_faster, comm->algorithm, comm->quantizer->text);
}

/* The first line that differs, as a sentence. */
static isgq_result_t compare_settings(const char *ours, const char *theirs, int our_rank, int their_rank)
{
    while (*ours != '\0' && *theirs != '\0') {
        size_t a = strcspn(ours, "\n"), b = strcspn(theirs, "\n");
        if (a != b || memcmp(ours, theirs, a) != 0) {
            const char *value_a = memrchr(ours, ' ', a), *value_b = memrchr(theirs, ' ', b);
            size_t name = value_a != NULL ? (size_t)(value_a - ours) : a;
            return IQ_FAIL(ISGQ_ERR_MISMATCH, "ranks disagree: %.*s is%.*s on rank %d and%.*s on rank %d", (int)name, ours,
                           (int)(a - name), ours + name, our_rank, value_b != NULL ? (int)(b - (size_t)(value_b - theirs)) : 0,
                           value_b != NULL ? value_b : "", their_rank);
        }
        ours += a + (ours[a] == '\n');
        theirs += b + (theirs[b] == '\n');
    }
    return ISGQ_SUCCESS;
}

static isgq_result_t agree(isgq_comm_t comm, uint64_t deadline, uint64_t *token)
{
    hello_t mine;
    isgq_result_t result;
    hello_t *all = calloc((size_t)comm->nranks, sizeof(*all));
    comm->peers = calloc((size_t)comm->nranks, sizeof(*comm->peers));
    if (all == NULL || comm->peers == NULL) {
        free(all);
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "communicator of %d ranks", comm->nranks);
    }
    memset(&mine, 0, sizeof(mine));
    iq_peer_describe(&mine.peer);
    mine.peer.device_type = (int32_t)comm->device_type;
    if (getrandom(&mine.token, sizeof(mine.token), 0) != (ssize_t)sizeof(mine.token))
        mine.token = iq_now_ns() ^ mine.peer.process;
    mine.tells_table = comm->lineage == 0 && iq_config()->tune_table[0] != '\0';
    write_settings(comm, mine.settings);
    result = iq_control_allgather(comm->control, &mine, all, sizeof(mine), deadline);
    for (int r = 0; r < comm->nranks && result == ISGQ_SUCCESS; r++) {
        all[r].settings[SETTINGS_BYTES - 1] = '\0';
        comm->peers[r] = all[r].peer;
        comm->devices |= all[r].peer.device_type == ISGQ_DEVICE_CUDA;
        result = compare_settings(all[0].settings, all[r].settings, 0, r);
    }
    if (comm->devices) {
        comm->scratch.bytes = iq_min(comm->scratch.bytes, IQ_GPU_SCRATCH_BYTES);
        comm->shadow_every = 0;
        if (iq_config()->shadow != 0)
            IQ_WARN("ISGQ_SHADOW is for communicators on host memory only; nothing is compared here");
    }
    comm->tells_table = all[0].tells_table != 0;
    *token = all[0].token;
    free(all);
    return result;
}

/* ---- connecting ---- */

static bool any_pair_uses(isgq_comm_t comm, const iq_transport_ops_t *ops)
{
    for (int a = 0; a < comm->nranks; a++)
        for (int b = 0; b < a; b++)
            if (iq_transport_choose(comm->transports_allowed, &comm->peers[a], &comm->peers[b]) == ops)
                return true;
    return false;
}

/* One transport joins all pairs, and has boards. Ranks on devices do not use them. */
static bool have_boards(isgq_comm_t comm)
{
    const iq_transport_ops_t *ops = comm->nranks < 2 ? NULL : iq_transport_choose(comm->transports_allowed, &comm->peers[0], &comm->peers[1]);
    if (ops == NULL || ops->board == NULL || comm->devices || comm->nranks > IQ_BOARDS)
        return false;
    for (int a = 0; a < comm->nranks; a++)
        for (int b = 0; b < a; b++)
            if (iq_transport_choose(comm->transports_allowed, &comm->peers[a], &comm->peers[b]) != ops)
                return false;
    return true;
}

static isgq_result_t check_pairs(isgq_comm_t comm)
{
    for (int a = 0; a < comm->nranks; a++)
        for (int b = 0; b < a; b++)
            if (iq_transport_choose(comm->transports_allowed, &comm->peers[a], &comm->peers[b]) == NULL)
                return IQ_FAIL(ISGQ_ERR_UNSUPPORTED,
                               "no transport of ISGQ_TRANSPORTS (%s) that this build has connects ranks %d and %d (%s)",
                               comm->transports_allowed, b, a,
                               comm->peers[a].host == comm->peers[b].host ? "they share a host" : "they are on different hosts");
    return ISGQ_SUCCESS;
}

static isgq_result_t control_allgather(void *context, const void *send, void *recv, size_t bytes)
{
    isgq_comm_t comm = context;
    return iq_control_allgather(comm->control, send, recv, bytes, comm->init_deadline_ns);
}

static isgq_result_t open_transport(isgq_comm_t comm, const iq_transport_ops_t *ops, uint64_t token, bool *mine)
{
    iq_transport_params_t params = {.rank = comm->rank,
                                    .nranks = comm->nranks,
                                    .peers = comm->peers,
                                    .mine = mine,
                                    .boards = comm->has_boards,
                                    .token = token,
                                    .slot_bytes = comm->slot_bytes,
                                    .slots = IQ_SLOTS,
                                    .allgather = control_allgather,
                                    .allgather_context = comm,
                                    .deadline_ns = comm->init_deadline_ns,
                                    .interface = iq_config()->interface};
    bool used = false;
    iq_transport_t *transport;
    for (int r = 0; r < comm->nranks; r++) {
        mine[r] = r != comm->rank && iq_transport_choose(comm->transports_allowed, &comm->peers[comm->rank], &comm->peers[r]) == ops;
        used |= mine[r];
    }
    IQ_TRY(ops->open(&params, &transport));
    comm->transports[comm->ntransports++] = transport;
    for (int r = 0; r < comm->nranks; r++)
        if (mine[r])
            comm->links[r] = ops->link(transport, r);
    for (int r = 0; r < comm->nranks && comm->has_boards; r++)
        comm->boards[r] = ops->board(transport, r);
    if (comm->has_boards && ops->views != NULL) {
        comm->may_view = true;
        comm->views = ops->views(transport);
    }
    if (used) {
        size_t length = strlen(comm->transport_names);
        snprintf(comm->transport_names + length, sizeof(comm->transport_names) - length, "%s%s", length > 0 ? "+" : "", ops->name);
    }
    return ISGQ_SUCCESS;
}

static int count_hosts(isgq_comm_t comm)
{
    int hosts = 0;
    for (int a = 0; a < comm->nranks; a++) {
        bool seen = false;
        for (int b = 0; b < a; b++)
            seen |= comm->peers[b].host == comm->peers[a].host;
        hosts += !seen;
    }
    return hosts;
}

/* The rank that is number `index` on the host of rank `r`, or -1. */
static int rank_on_host_of(isgq_comm_t comm, int r, int index)
{
    for (int other = 0; other < comm->nranks; other++)
        if (comm->peers[other].host == comm->peers[r].host && index-- == 0)
            return other;
    return -1;
}

/* Hosts are counted by their first ranks. */
static void find_lanes(isgq_comm_t comm)
{
    int host = 0, lane;
    comm->lanes = comm->host_size;
    for (int r = 0; r < comm->nranks; r++)
        while (rank_on_host_of(comm, r, comm->lanes - 1) < 0)
            comm->lanes--;
    lane = comm->host_index < comm->lanes ? comm->host_index : 0;
    for (int r = 0; r < comm->nranks; r++) {
        if (rank_on_host_of(comm, r, 0) != r)
            continue;
        if (r == comm->host_ranks[0])
            comm->lane_index = host;
        comm->lane_ranks[host++] = rank_on_host_of(comm, r, lane);
    }
}

/* The ranks of this host, and whether the other hosts have as many. */
static isgq_result_t find_neighbours(isgq_comm_t comm)
{
    comm->host_ranks = calloc((size_t)comm->nranks, sizeof(*comm->host_ranks));
    comm->lane_ranks = calloc((size_t)comm->nhosts, sizeof(*comm->lane_ranks));
    if (comm->host_ranks == NULL || comm->lane_ranks == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "neighbours among %d ranks", comm->nranks);
    comm->hosts_alike = true;
    for (int r = 0; r < comm->nranks; r++) {
        int there = 0;
        for (int other = 0; other < comm->nranks; other++)
            there += comm->peers[other].host == comm->peers[r].host;
        comm->hosts_alike &= there * comm->nhosts == comm->nranks;
        if (comm->peers[r].host != comm->peers[comm->rank].host)
            continue;
        if (r == comm->rank)
            comm->host_index = comm->host_size;
        comm->host_ranks[comm->host_size++] = r;
    }
    find_lanes(comm);
    iq_levels_prepare(comm);
    return ISGQ_SUCCESS;
}

/* Whether the ranks of this host cannot have a hardware thread each. Ranks that are bound to one of their own can, however few each has. */
static isgq_result_t find_crowd(isgq_comm_t comm)
{
    iq_core_set_t *sets = calloc((size_t)comm->host_size, sizeof(*sets));
    if (sets == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "hardware threads of %d ranks", comm->host_size);
    for (int i = 0; i < comm->host_size; i++)
        sets[i] = comm->peers[comm->host_ranks[i]].cores;
    comm->crowded = !iq_cores_suffice(sets, comm->host_size);
    free(sets);
    return ISGQ_SUCCESS;
}

static isgq_result_t connect_ranks(isgq_comm_t comm, uint64_t token)
{
    isgq_result_t result = ISGQ_SUCCESS;
    bool *mine = calloc((size_t)comm->nranks, sizeof(*mine));
    comm->links = calloc((size_t)comm->nranks, sizeof(*comm->links));
    comm->boards = calloc((size_t)comm->nranks, sizeof(*comm->boards));
    comm->posted = calloc((size_t)comm->nranks, sizeof(*comm->posted));
    if (mine == NULL || comm->links == NULL || comm->boards == NULL || comm->posted == NULL) {
        free(mine);
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "links to %d ranks", comm->nranks);
    }
    comm->nhosts = count_hosts(comm);
    result = find_neighbours(comm);
    if (result == ISGQ_SUCCESS)
        result = find_crowd(comm);
    comm->has_boards = have_boards(comm);
    if (result == ISGQ_SUCCESS)
        result = check_pairs(comm);
    for (size_t i = 0; iq_transports[i] != NULL && result == ISGQ_SUCCESS; i++)
        if (any_pair_uses(comm, iq_transports[i]))
            result = open_transport(comm, iq_transports[i], token, mine);
    free(mine);
    if (comm->transport_names[0] == '\0')
        snprintf(comm->transport_names, sizeof(comm->transport_names), "none");
    return result;
}

/* ---- all of it ---- */

/* Nobody returns before everybody is connected; rank 0 tells its tuning table, if it has one. Children have their parent's. */
static isgq_result_t finish_together(isgq_comm_t comm)
{
    size_t bytes = comm->tells_table ? sizeof(isgqx_tuning_t) : 1;
    unsigned char *all = calloc((size_t)comm->nranks + 1, bytes);
    if (all == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "communicator of %d ranks", comm->nranks);
    isgqx_tuning_t *mine = (isgqx_tuning_t *)(void *)(all + (size_t)comm->nranks * bytes);
    if (comm->tells_table && comm->rank == 0)
        iq_tuned_load(comm, mine);
    isgq_result_t result = iq_control_allgather(comm->control, mine, all, bytes, comm->init_deadline_ns);
    if (result == ISGQ_SUCCESS)
        iq_tuned_take(comm, comm->tells_table ? (const isgqx_tuning_t *)(const void *)all : &comm->tuning);
    free(all);
    return result;
}

static isgq_result_t meet(isgq_comm_t comm, const iq_rendezvous_t *rendezvous)
{
    uint64_t token = 0;
    iq_control_params_t params = {.rank = comm->rank, .nranks = comm->nranks, .rendezvous = rendezvous, .deadline_ns = comm->init_deadline_ns};
    iq_control_events_t events = {.context = comm, .status = on_status, .arguments = on_arguments, .failed = on_failed};
    IQ_TRY(iq_control_open(&params, &comm->control));
    isgq_result_t result = comm->device_type == ISGQ_DEVICE_CUDA ? iq_gpu_open(comm) : ISGQ_SUCCESS;
    if (result == ISGQ_SUCCESS)
        result = agree(comm, comm->init_deadline_ns, &token);
    if (result == ISGQ_SUCCESS)
        result = connect_ranks(comm, token);
    if (result == ISGQ_SUCCESS)
        result = iq_stream_open(comm, token);
    if (result == ISGQ_SUCCESS)
        result = iq_progress_start(comm);
    if (result == ISGQ_SUCCESS)
        result = finish_together(comm);
    if (result == ISGQ_SUCCESS) {
        iq_gpu_watch(comm);
        iq_control_start(comm->control, &events);
        IQ_INFO("joined: %d ranks on %d hosts over %s, quantizer %s", comm->nranks, comm->nhosts, comm->transport_names, comm->quantizer->text);
    } else {
        char text[IQ_ERROR_TEXT_BYTES];
        snprintf(text, sizeof(text), "%s", iq_last_error());
        iq_control_abort(comm->control, result, comm->rank, text);
        iq_set_last_error(text);
    }
    return result;
}

isgq_result_t iq_comm_create(isgq_comm_t *out, int nranks, int rank, iq_origin_t origin, const iq_rendezvous_t *rendezvous,
                             const isgq_comm_config_t *config)
{
    isgq_comm_t comm;
    iq_log_identity(rank, nranks);
    isgq_result_t result = iq_comm_new(nranks, rank, origin, config, &comm);
    if (result != ISGQ_SUCCESS) { /* the others find out at their deadline, and name this rank */
        iq_rendezvous_drop(rendezvous);
        return result;
    }
    result = meet(comm, rendezvous);
    if (result != ISGQ_SUCCESS) {
        iq_comm_release(comm);
        return result;
    }
    *out = comm;
    return ISGQ_SUCCESS;
}
