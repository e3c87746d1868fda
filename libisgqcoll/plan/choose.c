/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which algorithm runs a dense collective. Every input is equal on all ranks, so all choose alike.
 *
 * Bits come first: where two algorithms could differ in the last bit, the size does not decide between them, or fusing small
 * tensors into a large one would change results. So exchange stands in for direct only where the result is not rounded again,
 * and an automatic ring sums only what may be added in any order. Bytes and rounds decide the rest.
 */
#include "plan/plan.h"

#include "base/status.h"
#include "base/util.h"
#include "plan/plan_build.h"

#include <stdio.h>
#include <string.h>

#define EXCHANGE_MAX_RANKS 16
#define BOARD_MAX_RANKS 8 /* beyond, reading all contributions takes longer than a second round */
#define MESSAGE_BYTES 60.0 /* of a coded one, besides codes: frame, headers, tables */
#define EXCHANGE_MAX_BYTES (32.0 * 1024) /* that a rank sends: what one more round costs */
#define CHAIN_MIN_BYTES (64.0 * 1024)    /* of the tensor: below, rounds cost more than the root's link */
#define RING_MIN_RANKS 17                /* below, every rank can well talk to every other */
#define RING_MIN_BLOCK_BYTES (64.0 * 1024)

bool iq_algorithm_known(const char *name)
{
    for (const iq_algorithm_t *row = iq_algorithms; row->name != NULL; row++)
        if (strcmp(row->name, name) == 0)
            return true;
    for (int way = 0; way < IQ_FACTORED_WAY_COUNT; way++)
        if (strcmp(iq_factored_ways[way].name, name) == 0)
            return true;
    return false;
}

void iq_format_bytes(double bytes, char *text, size_t text_bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    size_t unit = 0;
    while (bytes >= 1023.5 && unit + 1 < IQ_ARRAY_SIZE(units)) {
        bytes /= 1024;
        unit++;
    }
    bool whole = unit == 0 || bytes >= 9.95 || bytes == (double)(int)bytes;
    snprintf(text, text_bytes, "%.*f %s", whole ? 0 : 1, bytes, units[unit]);
}

/* ---- a forced name ---- */

static isgq_result_t reject_name(const iq_choice_request_t *request)
{
    char names[128] = "auto";
    size_t used = strlen(names);
    for (const iq_algorithm_t *row = iq_algorithms; row->name != NULL && used < sizeof(names); row++)
        if (row->collective == request->collective)
            used += (size_t)snprintf(names + used, sizeof(names) - used, ", %s", row->name);
    return IQ_FAIL(iq_algorithm_known(request->forced) ? ISGQ_ERR_UNSUPPORTED : ISGQ_ERR_INVALID_ARGUMENT,
                   "algorithm \"%.32s\": %s has %s", request->forced, iq_collective_name(request->collective), names);
}

static isgq_result_t choose_forced(const iq_choice_request_t *request, const iq_algorithm_t **algorithm, char *why,
                                   size_t why_bytes)
{
    const iq_algorithm_t *row = iq_algorithm_find(request->collective, request->forced);
    if (row == NULL)
        return reject_name(request);
    /* two ranks never pass on a sum of more than one contribution */
    if ((row->needs & IQ_NEEDS_PARTIAL_SUMS) && !request->partial_sums_exact && request->nranks > 2)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED,
                       "algorithm \"%s\": %s over %d ranks with this quantizer would round again at every hop", row->name,
                       iq_collective_name(request->collective), request->nranks);
    if ((row->needs & IQ_NEEDS_BOARDS) && !request->boards && request->nranks > 1)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "algorithm \"%s\" is for ranks of one host that share memory, on host memory", row->name);
    snprintf(why, why_bytes, "%s was asked for", row->name);
    *algorithm = row;
    return ISGQ_SUCCESS;
}

/* ---- auto ---- */

static bool ring_fits(const iq_choice_request_t *request)
{
    double block_bytes = (double)request->count / request->nranks * request->result_bits / 8;
    return request->nranks >= RING_MIN_RANKS && block_bytes >= RING_MIN_BLOCK_BYTES;
}

/* In one round all contributions go to everybody, in two a part to its owner and results to all, in twice as many messages. */
static bool one_round_spares(const iq_choice_request_t *request)
{
    double one = (double)request->count * request->partial_bits;
    double two = (double)request->count / request->nranks * (request->partial_bits + request->result_bits);
    return one - two <= 8.0 * MESSAGE_BYTES;
}

static const char *pick_allreduce(const iq_choice_request_t *request, const char **reason)
{
    double sent = (request->nranks - 1) * (double)request->count * request->partial_bits / 8;
    if (request->boards && request->nranks <= BOARD_MAX_RANKS &&
        (request->lossless || (request->result_exact && sent <= EXCHANGE_MAX_BYTES))) {
        *reason = "one host, written once and read in place";
        return "board";
    }
    if (request->nranks <= EXCHANGE_MAX_RANKS && sent <= EXCHANGE_MAX_BYTES && (request->result_exact || request->lossless) &&
        (!request->spares || one_round_spares(request))) {
        *reason = "one round";
        return "exchange";
    }
    if (ring_fits(request) && request->lossless && request->partial_sums_exact && request->any_order) {
        *reason = "neighbours only, as few bytes as direct";
        return "ring";
    }
    *reason = "fewest bytes in two rounds";
    return "direct";
}

static const char *pick_reduce_scatter(const iq_choice_request_t *request, const char **reason)
{
    if (ring_fits(request) && request->lossless && request->partial_sums_exact && request->any_order) {
        *reason = "neighbours only, as few bytes as direct";
        return "ring";
    }
    *reason = "fewest bytes in one round";
    return "direct";
}

static const char *pick_allgather(const iq_choice_request_t *request, const char **reason)
{
    if (ring_fits(request)) {
        *reason = "neighbours only, as few bytes as direct";
        return "ring";
    }
    *reason = "fewest bytes in one round";
    return "direct";
}

static const char *pick_broadcast(const iq_choice_request_t *request, const char **reason)
{
    if (request->nranks > 2 && (double)request->count * request->result_bits / 8 >= CHAIN_MIN_BYTES) {
        *reason = "every rank sends it once";
        return "chain";
    }
    *reason = "one round";
    return "direct";
}

static const char *pick_alltoall(const iq_choice_request_t *request, const char **reason)
{
    (void)request;
    *reason = "one round";
    return "direct";
}

static const char *pick_barrier(const iq_choice_request_t *request, const char **reason)
{
    (void)request;
    *reason = "fewest rounds";
    return "dissemination";
}

typedef const char *(*pick_fn)(const iq_choice_request_t *request, const char **reason);

static const pick_fn picks[IQ_COLLECTIVE_COUNT] = {
    [IQ_ALLREDUCE] = pick_allreduce, [IQ_REDUCE_SCATTER] = pick_reduce_scatter,
    [IQ_ALLGATHER] = pick_allgather, [IQ_BROADCAST] = pick_broadcast,
    [IQ_BARRIER] = pick_barrier,     [IQ_ALLTOALL] = pick_alltoall,
};

isgq_result_t iq_choose(const iq_choice_request_t *request, const iq_algorithm_t **algorithm, char *why, size_t why_bytes)
{
    char size[24];
    const char *name, *reason = "nobody to talk to";
    if ((unsigned)request->collective >= IQ_COLLECTIVE_COUNT)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "no collective has number %d", (int)request->collective);
    if (request->forced != NULL && strcmp(request->forced, "auto") != 0)
        return choose_forced(request, algorithm, why, why_bytes);
    name = request->collective == IQ_BARRIER ? "dissemination" : "direct";
    if (request->nranks > 1)
        name = picks[request->collective](request, &reason);
    iq_format_bytes((double)request->count * (double)request->element_bytes, size, sizeof(size));
    snprintf(why, why_bytes, "%d rank%s, %s: %s", request->nranks, request->nranks == 1 ? "" : "s", size, reason);
    *algorithm = iq_algorithm_find(request->collective, name);
    return ISGQ_SUCCESS;
}
