/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ncclAllReduce, ncclReduceScatter and ncclAllGather under a policy, groups, and the making of communicators. A call that a rule names is enqueued on the caller's stream by
 * libisgqcoll; inside a group that happens after the real group has ended, since its messages are groups themselves.
 */
#include "bindings/nccl/gpu_engine.h"
#include "bindings/nccl/nccl_policy.h"

#include "bindings/preload/say.h"
#include "bindings/preload/tally.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORTED __attribute__((visibility("default")))
#define FUNCTION(name, ...)                               \
    EXPORTED iq_host_result_t iq_gpu_##name(__VA_ARGS__); \
    iq_host_result_t iq_gpu_##name(__VA_ARGS__)

typedef struct sum {
    iq_policy_call_t call;
    const void *send;
    void *recv;
    size_t count;
    int type, op;
    iq_gpu_comm_t *comm; /* held */
    iq_host_stream_t stream;
    isgq_quantizer_t quantizer;
} sum_t;

typedef struct made {
    iq_real_comm_t *place;
    iq_host_config_t config;
    char name[64];
} made_t;

/*
 * NCCL calls its own functions by their names, and so does libisgqcoll from within a call: what comes while this thread is inside the real library
 * or the other one is theirs and passes.
 */
static _Thread_local int inside;
#define REAL(call) (inside++, real_ = (call), inside--, real_)

static _Thread_local int depth;
static _Thread_local sum_t *sums;
static _Thread_local size_t nsums, sums_room;
static _Thread_local made_t *made;
static _Thread_local size_t nmade;

/* The quantizer of a call, or NULL: it passes through, and was counted. */
static isgq_quantizer_t quantizer_of(const sum_t *s)
{
    const iq_policy_t *policy = iq_gpu_policy();
    const iq_gpu_comm_t *comm = s->comm;
    const char *why = "recorded only";
    const iq_policy_rule_t *rule = NULL;
    iq_policy_seen_t seen = {.call = s->call,
                             .type = iq_nccl_policy_type(s->type),
                             .op = iq_nccl_policy_op(s->op),
                             .bytes = s->count * iq_nccl_type_bytes(s->type)};
    if (s->call == IQ_POLICY_REDUCE_SCATTER)
        seen.bytes *= (uint64_t)comm->nranks;
    if (policy->mode == IQ_POLICY_RECORD)
        iq_nccl_record(&seen, comm->name, comm->nranks, s->type);
    else
        rule = iq_policy_match(policy, comm->named, &seen, &why);
    if (rule != NULL && comm->inner == NULL)
        why = comm->refused;
    if (rule != NULL && comm->inner != NULL)
        return comm->quantizers[rule - policy->rules];
    iq_tally_passed(why);
    if (iq_says(IQ_SAY_DEBUG))
        iq_say(IQ_SAY_DEBUG, "%s of %zu elements of type %d on communicator \"%s\" passed through: %s",
               iq_policy_call_name(s->call), s->count, s->type, comm->name, why);
    return NULL;
}

static isgq_result_t enqueue(const iq_library_t *library, const sum_t *s)
{
    isgq_data_type_t type = (isgq_data_type_t)s->type;
    isgq_red_op_t op = (isgq_red_op_t)s->op;
    isgq_stream_t stream = (isgq_stream_t)s->stream;
    if (s->call == IQ_POLICY_REDUCE_SCATTER)
        return library->reduce_scatter(s->send, s->recv, s->count, type, op, s->quantizer, s->comm->inner, stream, NULL);
    if (s->call == IQ_POLICY_ALLGATHER)
        return library->allgather(s->send, s->recv, s->count, type, s->quantizer, s->comm->inner, stream, NULL);
    return library->allreduce(s->send, s->recv, s->count, type, op, s->quantizer, s->comm->inner, stream, NULL);
}

static iq_host_result_t conclude(const iq_library_t *library, const sum_t *s, isgq_result_t result)
{
    if (result == ISGQ_SUCCESS)
        iq_tally_done();
    else
        iq_say(IQ_SAY_ERROR, "%s of %zu elements on communicator \"%s\": %s: %s", iq_policy_call_name(s->call), s->count,
               s->comm->name, library->get_error_string(result), library->get_last_error());
    return iq_gpu_result(result);
}

static iq_host_result_t keep(const sum_t *s)
{
    if (nsums == sums_room) {
        size_t more = sums_room == 0 ? 64 : 2 * sums_room;
        sum_t *larger = realloc(sums, more * sizeof(*sums));
        if (larger == NULL)
            return HOST_SYSTEM;
        sums = larger;
        sums_room = more;
    }
    sums[nsums++] = *s;
    return HOST_SUCCESS;
}

void iq_gpu_drop_kept(iq_real_comm_t real)
{
    size_t left = 0;
    for (size_t i = 0; i < nsums; i++) {
        if (sums[i].comm->real == real)
            iq_gpu_comm_put(sums[i].comm);
        else
            sums[left++] = sums[i];
    }
    nsums = left;
}

/* Is the call done here? Then *result is what it returns; else it is the real library's. */
static bool taken(sum_t *s, iq_real_comm_t real, iq_host_result_t *result)
{
    const char *error;
    s->comm = real != NULL && inside == 0 ? iq_gpu_comm_get(real) : NULL;
    if (s->comm == NULL)
        return false;
    s->quantizer = quantizer_of(s);
    if (s->quantizer == NULL) {
        iq_gpu_comm_put(s->comm);
        return false;
    }
    *result = HOST_SYSTEM;
    if (depth > 0 && keep(s) == HOST_SUCCESS) {
        *result = HOST_SUCCESS;
        return true;
    }
    if (depth == 0) {
        const iq_library_t *library = iq_library(&error);
        inside++;
        *result = conclude(library, s, enqueue(library, s));
        inside--;
    }
    iq_gpu_comm_put(s->comm);
    return true;
}

FUNCTION(ncclAllReduce, const void *send, void *recv, size_t count, int type, int op, iq_real_comm_t real,
         iq_host_stream_t stream)
{
    iq_host_result_t real_, result;
    sum_t s = {.call = IQ_POLICY_ALLREDUCE, .send = send, .recv = recv, .count = count, .type = type, .op = op, .stream = stream};
    return taken(&s, real, &result) ? result : REAL(iq_real.ncclAllReduce(send, recv, count, type, op, real, stream));
}

FUNCTION(ncclReduceScatter, const void *send, void *recv, size_t count, int type, int op, iq_real_comm_t real,
         iq_host_stream_t stream)
{
    iq_host_result_t real_, result;
    sum_t s = {
        .call = IQ_POLICY_REDUCE_SCATTER, .send = send, .recv = recv, .count = count, .type = type, .op = op, .stream = stream};
    return taken(&s, real, &result) ? result : REAL(iq_real.ncclReduceScatter(send, recv, count, type, op, real, stream));
}

FUNCTION(ncclAllGather, const void *send, void *recv, size_t count, int type, iq_real_comm_t real, iq_host_stream_t stream)
{
    iq_host_result_t real_, result;
    sum_t s = {.call = IQ_POLICY_ALLGATHER, .send = send, .recv = recv, .count = count, .type = type, .stream = stream};
    return taken(&s, real, &result) ? result : REAL(iq_real.ncclAllGather(send, recv, count, type, real, stream));
}

FUNCTION(ncclGroupStart, void)
{
    iq_host_result_t real_, result = REAL(iq_real.ncclGroupStart());
    depth += inside == 0 && result == HOST_SUCCESS;
    return result;
}

/* One thread may have kept calls of several ranks: together, as they would have been. */
static iq_host_result_t run_kept(bool wanted)
{
    const char *error;
    const iq_library_t *library = iq_library(&error);
    isgq_result_t result = wanted ? library->group_start() : ISGQ_SUCCESS;
    for (size_t i = 0; i < nsums && wanted && result == ISGQ_SUCCESS; i++)
        result = enqueue(library, &sums[i]);
    if (wanted) {
        isgq_result_t end = library->group_end();
        result = result == ISGQ_SUCCESS ? end : result;
    }
    for (size_t i = 0; i < nsums; i++) {
        if (wanted)
            (void)conclude(library, &sums[i], result);
        iq_gpu_comm_put(sums[i].comm);
    }
    free(sums);
    sums = NULL;
    nsums = sums_room = 0;
    return iq_gpu_result(result);
}

static void add_made(bool wanted)
{
    for (size_t i = 0; i < nmade && wanted; i++) {
        made[i].config.comm_name = made[i].name[0] != '\0' ? made[i].name : NULL;
        iq_gpu_comm_add(*made[i].place, &made[i].config, nmade > 1 ? "one thread made several communicators in a group" : NULL);
    }
    free(made);
    made = NULL;
    nmade = 0;
}

FUNCTION(ncclGroupEnd, void)
{
    iq_host_result_t real_, result = REAL(iq_real.ncclGroupEnd());
    if (inside > 0)
        return result;
    depth -= depth > 0;
    if (depth > 0)
        return result;
    inside++;
    add_made(result == HOST_SUCCESS);
    iq_host_result_t ours = nsums > 0 ? run_kept(result == HOST_SUCCESS) : HOST_SUCCESS;
    inside--;
    return result != HOST_SUCCESS ? result : ours;
}

/* Known when the outermost group has ended: what was made in it exists only then. */
static iq_host_result_t keep_comm(iq_real_comm_t *place, const iq_host_config_t *config)
{
    made_t *more = realloc(made, (nmade + 1) * sizeof(*made));
    if (more == NULL)
        return HOST_SYSTEM;
    made = more;
    made_t *m = &made[nmade++];
    memset(m, 0, sizeof(*m));
    m->place = place;
    m->config.size = sizeof(m->config);
    m->config.blocking = config != NULL ? config->blocking : 1;
    if (config != NULL && config->size >= offsetof(iq_host_config_t, comm_name) + sizeof(config->comm_name) &&
        config->comm_name != NULL)
        snprintf(m->name, sizeof(m->name), "%s", config->comm_name);
    return HOST_SUCCESS;
}

/* What the real library said, after the communicator is known here too. */
static iq_host_result_t made_one(iq_host_result_t result, iq_real_comm_t *comm, const iq_host_config_t *config)
{
    if (result != HOST_SUCCESS || comm == NULL || inside > 0)
        return result;
    if (depth > 0)
        return keep_comm(comm, config);
    inside++;
    iq_gpu_comm_add(*comm, config, NULL);
    inside--;
    return HOST_SUCCESS;
}

FUNCTION(ncclCommInitRank, iq_real_comm_t *comm, int nranks, iq_host_id_t id, int rank)
{
    iq_host_result_t real_;
    return made_one(REAL(iq_real.ncclCommInitRank(comm, nranks, id, rank)), comm, NULL);
}

FUNCTION(ncclCommInitRankConfig, iq_real_comm_t *comm, int nranks, iq_host_id_t id, int rank, const iq_host_config_t *config)
{
    iq_host_result_t real_;
    return made_one(REAL(iq_real.ncclCommInitRankConfig(comm, nranks, id, rank, config)), comm, config);
}

FUNCTION(ncclCommInitRankScalable, iq_real_comm_t *comm, int nranks, int rank, int nids, const iq_host_id_t *ids,
         const iq_host_config_t *config)
{
    iq_host_result_t real_;
    return made_one(REAL(iq_real.ncclCommInitRankScalable(comm, nranks, rank, nids, ids, config)), comm, config);
}

FUNCTION(ncclCommSplit, iq_real_comm_t comm, int color, int key, iq_real_comm_t *out, const iq_host_config_t *config)
{
    iq_host_result_t real_, result = REAL(iq_real.ncclCommSplit(comm, color, key, out, config));
    return result == HOST_SUCCESS && depth == 0 && (out == NULL || *out == NULL) ? result : made_one(result, out, config);
}

/* All ranks are this thread's: joining one by one would wait for ever. */
FUNCTION(ncclCommInitAll, iq_real_comm_t *comms, int ndev, const int *devices)
{
    iq_host_result_t real_, result = REAL(iq_real.ncclCommInitAll(comms, ndev, devices));
    for (int i = 0; i < ndev && result == HOST_SUCCESS && comms != NULL && inside == 0; i++)
        iq_gpu_comm_add(comms[i], NULL, "one thread made all of its ranks by ncclCommInitAll");
    return result;
}
