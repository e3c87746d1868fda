/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Running calls: convert what the library does not know, post the calls of all communicators in one group of the library's own, wait for all of
 * them, convert back. A call alone is a group of one. Gathers, scatters and reductions to one rank are made of the collectives that the
 * library has; they send more than NCCL would, which is no matter for an emulation.
 */
#include "bindings/nccl/host_group.h"

#include "bindings/nccl/host_convert.h"
#include "bindings/nccl/nccl_policy.h"
#include "bindings/preload/say.h"
#include "bindings/preload/tally.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORTED __attribute__((visibility("default")))

static _Thread_local int depth;
static _Thread_local iq_host_call_t *kept;
static _Thread_local size_t nkept, room;
static _Thread_local iq_host_result_t first_error; /* of calls inside the group */

bool iq_host_in_group(void) { return depth > 0; }

static bool is_reduction(const iq_host_call_t *call) { return call->kind <= HOST_REDUCE_SCATTER; }
static bool is_fp8(int type) { return type == HOST_FP8_E4M3 || type == HOST_FP8_E5M2; }

/* Elements that the call reads, and that it writes into a buffer of the library's. */
static size_t input_count(const iq_host_call_t *call)
{
    bool all = call->kind == HOST_REDUCE_SCATTER || call->kind == HOST_ALLTOALL || call->kind == HOST_SCATTER;
    return call->count * (all ? (size_t)call->comm->nranks : 1);
}

static size_t output_count(const iq_host_call_t *call)
{
    size_t nranks = (size_t)call->comm->nranks;
    switch (call->kind) {
    case HOST_ALLGATHER:
    case HOST_GATHER:
    case HOST_SCATTER: return call->count * nranks;
    case HOST_ALLTOALL: return call->count * nranks * nranks;
    default: return call->count;
    }
}

/* Where the library writes: the caller's buffer if that is whole and of the right type. */
static bool wants_scratch_to(const iq_host_call_t *call)
{
    bool root = call->comm->rank == call->root;
    return (is_reduction(call) && is_fp8(call->type)) || call->kind == HOST_ALLTOALL || call->kind == HOST_SCATTER ||
           ((call->kind == HOST_REDUCE || call->kind == HOST_GATHER) && !root);
}

static bool wants_scratch_from(const iq_host_call_t *call)
{
    return is_reduction(call) && (is_fp8(call->type) || call->scalar.used);
}

static iq_host_result_t prepare(iq_host_call_t *call)
{
    bool fp8 = is_reduction(call) && is_fp8(call->type);
    size_t element = fp8 ? sizeof(float) : iq_nccl_type_bytes(call->type), inputs = input_count(call);
    call->run_type = fp8 ? ISGQ_FLOAT32 : is_fp8(call->type) ? ISGQ_UINT8 : call->type;
    /* The library looks at what it is given; what is converted or copied here is looked at here. */
    if ((wants_scratch_from(call) && call->send == NULL) ||
        (wants_scratch_to(call) && call->recv == NULL && call->kind != HOST_GATHER &&
         (call->kind != HOST_REDUCE || call->comm->rank == call->root)))
        return iq_host_fail(HOST_INVALID_ARGUMENT, "a call of %zu elements: a buffer is NULL", call->count);
    call->from = call->send;
    call->to = call->recv;
    if (wants_scratch_from(call)) {
        call->scratch_from = malloc(inputs * element + 1);
        call->from = call->scratch_from;
    }
    if (wants_scratch_to(call)) {
        call->scratch_to = malloc(output_count(call) * element + 1);
        call->to = call->scratch_to;
    }
    if ((wants_scratch_from(call) && call->scratch_from == NULL) || (wants_scratch_to(call) && call->scratch_to == NULL))
        return iq_host_fail(HOST_SYSTEM, "no memory for a call of %zu elements", call->count);
    if (fp8 && call->scalar.used) { /* rounded to the type before it is summed, as everywhere */
        uint8_t *scaled = call->scratch_from;
        float *values = call->scratch_from;
        iq_host_scale(call->type, &call->scalar, call->send, scaled + inputs * (sizeof(float) - 1), inputs);
        iq_host_from_fp8(call->type, scaled + inputs * (sizeof(float) - 1), values, inputs);
    } else if (fp8) {
        iq_host_from_fp8(call->type, call->send, call->scratch_from, inputs);
    } else if (call->scalar.used) {
        iq_host_scale(call->type, &call->scalar, call->send, call->scratch_from, inputs);
    }
    return HOST_SUCCESS;
}

static isgq_result_t post(const iq_library_t *library, const iq_host_call_t *c)
{
    isgq_data_type_t type = (isgq_data_type_t)c->run_type;
    isgq_red_op_t op = (isgq_red_op_t)c->op;
    isgq_comm_t comm = c->comm->inner;
    switch (c->kind) {
    case HOST_ALLREDUCE:
    case HOST_REDUCE: return library->allreduce(c->from, c->to, c->count, type, op, c->quantizer, comm, NULL, NULL);
    case HOST_REDUCE_SCATTER: return library->reduce_scatter(c->from, c->to, c->count, type, op, c->quantizer, comm, NULL, NULL);
    case HOST_ALLGATHER:
    case HOST_GATHER: return library->allgather(c->from, c->to, c->count, type, c->quantizer, comm, NULL, NULL);
    case HOST_ALLTOALL:
        return library->allgather(c->from, c->to, c->count * (size_t)c->comm->nranks, type, NULL, comm, NULL, NULL);
    case HOST_BROADCAST: return library->broadcast(c->from, c->to, c->count, type, c->root, comm, NULL);
    default: return library->broadcast(c->from, c->to, c->count * (size_t)c->comm->nranks, type, c->root, comm, NULL);
    }
}

/* From the library's buffer to the caller's. */
static void finish(const iq_host_call_t *call)
{
    size_t bytes = call->count * iq_nccl_type_bytes(call->type), rank = (size_t)call->comm->rank,
           nranks = (size_t)call->comm->nranks;
    const char *scratch = call->scratch_to;
    if (scratch == NULL)
        return;
    if (is_reduction(call) && is_fp8(call->type)) {
        if (call->kind != HOST_REDUCE || call->comm->rank == call->root)
            iq_host_to_fp8(call->type, call->scratch_to, call->recv, call->count);
    } else if (call->kind == HOST_SCATTER) {
        memcpy(call->recv, scratch + rank * bytes, bytes);
    } else if (call->kind == HOST_ALLTOALL) {
        for (size_t from = 0; from < nranks; from++)
            memcpy((char *)call->recv + from * bytes, scratch + (from * nranks + rank) * bytes, bytes);
    }
}

/* What the ranks compare once: equal numbers have a least number and a least complement that are complements. */
typedef struct agreement {
    iq_host_comm_t *comm;
    uint64_t mine[4], least[4];
} agreement_t;

static bool seen_before(const agreement_t *agreements, size_t count, const iq_host_comm_t *comm)
{
    while (count > 0 && agreements[count - 1].comm != comm)
        count--;
    return count > 0;
}

/* What rules call it, 0: nothing. */
static uint32_t policy_call(iq_host_kind_t kind)
{
    return kind == HOST_ALLREDUCE        ? IQ_POLICY_ALLREDUCE
           : kind == HOST_REDUCE_SCATTER ? IQ_POLICY_REDUCE_SCATTER
           : kind == HOST_ALLGATHER      ? IQ_POLICY_ALLGATHER
                                         : 0;
}

static size_t list_new(const iq_host_call_t *calls, size_t count, agreement_t *agreements)
{
    const iq_policy_t *policy = iq_host_policy();
    size_t found = 0;
    for (size_t i = 0; i < count; i++) {
        iq_host_comm_t *comm = calls[i].comm;
        if (policy_call(calls[i].kind) == 0 || comm->agreed || seen_before(agreements, found, comm))
            continue;
        uint64_t hash = policy->hash + ISGQ_VERSION_CODE, named = iq_policy_named(policy, comm->name, comm->nranks);
        agreements[found++] = (agreement_t){.comm = comm, .mine = {hash, ~hash, named, ~named}};
    }
    return found;
}

static iq_host_result_t conclude(const iq_library_t *library, const agreement_t *agreement)
{
    iq_host_comm_t *comm = agreement->comm;
    const iq_policy_t *policy = iq_host_policy();
    const uint64_t *least = agreement->least;
    comm->agreed = true;
    if (least[0] != ~least[1] || least[2] != ~least[3]) {
        if (comm->rank == 0)
            iq_say(IQ_SAY_WARN, "communicator \"%s\": %s between its ranks, so nothing is quantized on it", comm->name,
                   least[0] != ~least[1] ? "ISGQ_POLICY or the library's version differs"
                                         : "the name, and with it the rules that fit, differs");
        return HOST_SUCCESS;
    }
    comm->named = (uint32_t)agreement->mine[2];
    for (size_t i = 0; i < policy->nrules && comm->named != 0; i++)
        if (!policy->rules[i].exclude && library->quantizer_create(&comm->quantizers[i], policy->rules[i].with) != ISGQ_SUCCESS) {
            iq_say(IQ_SAY_WARN, "communicator \"%s\": %s; its calls pass through", comm->name, library->get_last_error());
            comm->named = 0; /* on every rank: the texts are equal */
        }
    return HOST_SUCCESS;
}

static iq_host_result_t agree(const iq_library_t *library, const iq_host_call_t *calls, size_t count)
{
    agreement_t *agreements = calloc(count, sizeof(*agreements));
    if (agreements == NULL)
        return iq_host_fail(HOST_SYSTEM, "no memory for a group of %zu calls", count);
    size_t found = list_new(calls, count, agreements);
    iq_host_result_t result = found > 0 ? iq_host_result(library->group_start(), "policies") : HOST_SUCCESS;
    for (size_t i = 0; i < found && result == HOST_SUCCESS; i++)
        result = iq_host_result(library->allreduce(agreements[i].mine, agreements[i].least, 4, ISGQ_UINT64, ISGQ_MIN, NULL,
                                                   agreements[i].comm->inner, NULL, NULL),
                                "policies");
    if (found > 0) {
        iq_host_result_t end = iq_host_result(library->group_end(), "policies");
        result = result != HOST_SUCCESS ? result : end;
    }
    for (size_t i = 0; i < found && result == HOST_SUCCESS; i++)
        result = iq_host_result(library->comm_synchronize(agreements[i].comm->inner), "policies");
    for (size_t i = 0; i < found && result == HOST_SUCCESS; i++)
        result = conclude(library, &agreements[i]);
    free(agreements);
    return result;
}

static void apply_policy(iq_host_call_t *call)
{
    const iq_policy_t *policy = iq_host_policy();
    const char *why = "ISGQ_POLICY is off";
    const iq_policy_rule_t *rule = NULL;
    uint32_t op = call->op == ISGQ_SUM && !call->scalar.used ? IQ_POLICY_SUM : call->op == ISGQ_AVG ? IQ_POLICY_AVG : 0;
    iq_policy_seen_t seen = {.call = policy_call(call->kind),
                             .type = iq_nccl_policy_type(call->type),
                             .op = op,
                             .bytes = input_count(call) * iq_nccl_type_bytes(call->type)};
    if (seen.call == 0)
        return;
    if (policy->mode == IQ_POLICY_RECORD) {
        iq_nccl_record(&seen, call->comm->name, call->comm->nranks, call->type);
        why = "recorded only";
    } else if (policy->mode == IQ_POLICY_QUANTIZE) {
        rule = iq_policy_match(policy, call->comm->named, &seen, &why);
    }
    if (rule != NULL) {
        call->quantizer = call->comm->quantizers[rule - policy->rules];
        iq_tally_done();
        return;
    }
    iq_tally_passed(why);
    if (iq_says(IQ_SAY_DEBUG))
        iq_say(IQ_SAY_DEBUG, "%s of %zu elements of type %d on communicator \"%s\" passed through: %s",
               iq_policy_call_name(seen.call), call->count, call->type, call->comm->name, why);
}

static iq_host_result_t post_all(const iq_library_t *library, iq_host_call_t *calls, size_t count)
{
    iq_host_result_t result = HOST_SUCCESS;
    for (size_t i = 0; i < count && result == HOST_SUCCESS; i++)
        result = prepare(&calls[i]);
    if (result == HOST_SUCCESS)
        result = iq_host_result(library->group_start(), "ncclGroupEnd");
    if (result != HOST_SUCCESS)
        return result;
    for (size_t i = 0; i < count && result == HOST_SUCCESS; i++) {
        apply_policy(&calls[i]);
        result = iq_host_result(post(library, &calls[i]), "collective");
    }
    iq_host_result_t end = iq_host_result(library->group_end(), "collective");
    return result != HOST_SUCCESS ? result : end;
}

iq_host_result_t iq_host_run(iq_host_call_t *calls, size_t count)
{
    const iq_library_t *library = iq_host_library();
    size_t entered = 0;
    iq_host_result_t result = HOST_SUCCESS;
    while (entered < count && (result = iq_host_comm_enter(calls[entered].comm, "ncclGroupEnd")) == HOST_SUCCESS)
        entered++;
    if (result == HOST_SUCCESS)
        result = agree(library, calls, count);
    if (result == HOST_SUCCESS)
        result = post_all(library, calls, count);
    for (size_t i = 0; i < entered; i++) { /* also after a failure: calls of other communicators may still use the buffers */
        iq_host_result_t end = iq_host_result(library->comm_synchronize(calls[i].comm->inner), "collective");
        result = result != HOST_SUCCESS ? result : end;
    }
    for (size_t i = 0; i < entered; i++) {
        if (result == HOST_SUCCESS)
            finish(&calls[i]);
        free(calls[i].scratch_from);
        free(calls[i].scratch_to);
        iq_host_comm_leave(calls[i].comm);
    }
    return result;
}

iq_host_result_t iq_host_submit(const iq_host_call_t *call)
{
    iq_host_call_t alone = *call;
    if (depth == 0)
        return iq_host_run(&alone, 1);
    if (nkept == room) {
        size_t more = room == 0 ? 64 : 2 * room;
        iq_host_call_t *larger = realloc(kept, more * sizeof(*kept));
        if (larger == NULL)
            return first_error = iq_host_fail(HOST_SYSTEM, "no memory for a group of %zu calls", more);
        kept = larger;
        room = more;
    }
    kept[nkept++] = *call;
    return HOST_SUCCESS;
}

void iq_host_group_refuse(iq_host_result_t result)
{
    if (depth > 0 && first_error == HOST_SUCCESS)
        first_error = result;
}

EXPORTED iq_host_result_t iq_host_ncclGroupStart(void);
iq_host_result_t iq_host_ncclGroupStart(void)
{
    if (iq_host_library() == NULL)
        return HOST_SYSTEM;
    depth++;
    return HOST_SUCCESS;
}

EXPORTED iq_host_result_t iq_host_ncclGroupEnd(void);
iq_host_result_t iq_host_ncclGroupEnd(void)
{
    if (depth == 0)
        return iq_host_fail(HOST_INVALID_USAGE, "ncclGroupEnd: there is no open group");
    if (--depth > 0)
        return HOST_SUCCESS;
    iq_host_result_t result = first_error;
    if (iq_host_comm_pending()) {
        iq_host_result_t joined = iq_host_comm_join_all();
        result = result != HOST_SUCCESS ? result : joined;
    }
    if (result == HOST_SUCCESS && nkept > 0)
        result = iq_host_run(kept, nkept);
    free(kept);
    kept = NULL;
    nkept = room = 0;
    first_error = HOST_SUCCESS;
    return result;
}
