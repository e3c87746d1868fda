/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ncclAllReduce under a policy, groups, and the making of communicators. A call that a rule names is enqueued on the caller's stream by
 * libisgqcoll; inside a group that happens after the real group has ended, since its messages are groups themselves.
 */
#include "bindings/nccl/gpu_engine.h"

#include "bindings/preload/record.h"
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

static uint32_t policy_type(int type)
{
    return type == ISGQ_FLOAT32    ? IQ_POLICY_F32
           : type == ISGQ_FLOAT16  ? IQ_POLICY_F16
           : type == ISGQ_BFLOAT16 ? IQ_POLICY_BF16
                                   : 0;
}

static uint32_t policy_op(int op) { return op == ISGQ_SUM ? IQ_POLICY_SUM : op == ISGQ_AVG ? IQ_POLICY_AVG : 0; }

static size_t type_bytes(int type)
{
    static const unsigned char bytes[HOST_TYPES] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
    return type >= 0 && type < HOST_TYPES ? bytes[type] : 1;
}

static void record(const iq_gpu_comm_t *comm, size_t count, int type, int op)
{
    char other[16];
    snprintf(other, sizeof(other), "<%d>", type);
    iq_record_call_t call = {.collective = "allreduce",
                             .comm = comm->name,
                             .type = policy_type(type) != 0 ? iq_policy_type_name(policy_type(type)) : other,
                             .op = policy_op(op) != 0 ? iq_policy_op_name(policy_op(op)) : "<other>",
                             .nranks = comm->nranks,
                             .bytes = count * type_bytes(type)};
    iq_record_add(&call);
}

/* The quantizer of a call, or NULL: it passes through, and was counted. */
static isgq_quantizer_t quantizer_of(const iq_gpu_comm_t *comm, size_t count, int type, int op)
{
    const iq_policy_t *policy = iq_gpu_policy();
    const char *why = "recorded only";
    const iq_policy_rule_t *rule = NULL;
    if (policy->mode == IQ_POLICY_RECORD)
        record(comm, count, type, op);
    else
        rule = iq_policy_match(policy, comm->named, policy_type(type), policy_op(op), count * type_bytes(type), &why);
    if (rule != NULL && comm->inner == NULL)
        why = comm->refused;
    if (rule != NULL && comm->inner != NULL)
        return comm->quantizers[rule - policy->rules];
    iq_tally_passed(why);
    if (iq_says(IQ_SAY_DEBUG))
        iq_say(IQ_SAY_DEBUG, "ncclAllReduce of %zu elements of type %d on communicator \"%s\" passed through: %s", count, type,
               comm->name, why);
    return NULL;
}

static isgq_result_t enqueue(const iq_library_t *library, const sum_t *s)
{
    return library->allreduce(s->send, s->recv, s->count, (isgq_data_type_t)s->type, (isgq_red_op_t)s->op, s->quantizer,
                              s->comm->inner, (isgq_stream_t)s->stream, NULL);
}

static iq_host_result_t conclude(const iq_library_t *library, const sum_t *s, isgq_result_t result)
{
    if (result == ISGQ_SUCCESS)
        iq_tally_done();
    else
        iq_say(IQ_SAY_ERROR, "ncclAllReduce of %zu elements on communicator \"%s\": %s: %s", s->count, s->comm->name,
               library->get_error_string(result), library->get_last_error());
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

FUNCTION(ncclAllReduce, const void *send, void *recv, size_t count, int type, int op, iq_real_comm_t real,
         iq_host_stream_t stream)
{
    const char *error;
    iq_host_result_t real_;
    iq_gpu_comm_t *comm = real != NULL && inside == 0 ? iq_gpu_comm_get(real) : NULL;
    sum_t s = {send, recv, count, type, op, comm, stream, NULL};
    if (comm != NULL)
        s.quantizer = quantizer_of(comm, count, type, op);
    if (s.quantizer == NULL) {
        if (comm != NULL)
            iq_gpu_comm_put(comm);
        return REAL(iq_real.ncclAllReduce(send, recv, count, type, op, real, stream));
    }
    if (depth > 0 && keep(&s) == HOST_SUCCESS)
        return HOST_SUCCESS;
    iq_host_result_t result = HOST_SYSTEM;
    if (depth == 0) {
        const iq_library_t *library = iq_library(&error);
        inside++;
        result = conclude(library, &s, enqueue(library, &s));
        inside--;
    }
    iq_gpu_comm_put(comm);
    return result;
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

iq_host_result_t iq_gpu_keep_comm(iq_real_comm_t *place, const iq_host_config_t *config)
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
        return iq_gpu_keep_comm(comm, config);
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
