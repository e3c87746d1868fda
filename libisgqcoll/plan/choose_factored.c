/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a factored call travels: the fewest bytes that a rank sends, among the ways that the quantizer has and that fit into
 * scratch.
 *
 *     gather   (N-1) * blob                                  every rank's factors to every rank
 *     reduce   2 (N-1) / N * m * n * bytes of an integer     the ranks' integer products, summed
 *     dense    2 (N-1) / N * m * n * wire bits / 8           the ranks' own gradients, quantized
 *
 *     owner    (N-1) * (columns of factors, and 1/N of m * n values)   every rank makes one block of the gradient
 *
 *     share    as gather, between hosts                      the ranks of a host divide what gather leaves to each of them
 *
 * With a tuning table the least time of plan/cost.h decides instead, among all but owner, whose time is not known. gather, share, owner and reduce
 * give the same bits, so the choice between them is free. Share is gather with copies inside a host instead of work: where gather is best, the time
 * of either decides. One rank sends nothing and still takes gather: its factors are quantized as they would be in company.
 */
#include "plan/plan.h"

#include "base/status.h"
#include "plan/plan_build.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

const iq_factored_way_text_t iq_factored_ways[IQ_FACTORED_WAY_COUNT] = {
    [IQ_FACTORED_GATHER] = {"gather", "quantized factors travel: N-1 times a rank's own; every rank multiplies all rows"},
    [IQ_FACTORED_REDUCE] = {"reduce", "integer products travel: 2(N-1)/N of m*n integers; every rank multiplies its own rows"},
    [IQ_FACTORED_SHARE] = {"share", "as gather, but the ranks of a host divide decoding and product and pass the parts on in shared memory"},
    [IQ_FACTORED_OWNER] = {"owner", "columns of factors travel to the rank that multiplies them, then finished blocks: 1/sqrt(N) of gather, and (N-1)/N of m*n values"},
    [IQ_FACTORED_DENSE] = {"dense", "quantized gradients travel: 2(N-1)/N of m*n codes; the factors' form is not used"},
};

typedef struct factored_option {
    double bytes; /* that a rank sends */
    bool exists;
    size_t scratch_needed;
} factored_option_t;

static void weigh(const iq_factored_choice_request_t *request, factored_option_t options[IQ_FACTORED_WAY_COUNT])
{
    double others = request->nranks - 1;
    double elements = 2 * others / request->nranks * (double)request->m * (double)request->n;
    options[IQ_FACTORED_GATHER] =
        (factored_option_t){others * (double)request->blob_bytes, request->may_gather, request->scratch_needed_gather};
    options[IQ_FACTORED_REDUCE] =
        (factored_option_t){elements * (double)request->sum_element_bytes, request->may_gather, request->scratch_needed_reduce};
    options[IQ_FACTORED_SHARE] = (factored_option_t){options[IQ_FACTORED_GATHER].bytes, request->may_gather && request->ranks_per_host > 0,
                                                     request->scratch_needed_share};
    options[IQ_FACTORED_OWNER] =
        (factored_option_t){request->owner_bytes, request->may_gather && request->may_own, request->scratch_needed_owner};
    options[IQ_FACTORED_DENSE] = (factored_option_t){elements * request->dense_bits / 8, true, 0};
}

static isgq_result_t choose_forced(const iq_factored_choice_request_t *request, const factored_option_t *options,
                                   iq_factored_way_t *way)
{
    for (int i = 0; i < IQ_FACTORED_WAY_COUNT; i++) {
        if (strcmp(iq_factored_ways[i].name, request->forced) != 0)
            continue;
        if (!options[i].exists && i == IQ_FACTORED_SHARE && request->may_gather)
            return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "algorithm \"share\": all ranks must work on host memory, with as many ranks on every host");
        if (!options[i].exists && i == IQ_FACTORED_OWNER && request->may_gather)
            return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "algorithm \"owner\": all ranks must work on host memory");
        if (!options[i].exists)
            return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "algorithm \"%s\": this quantizer has no factored form", request->forced);
        if (options[i].scratch_needed > request->scratch_limit)
            return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "algorithm \"%s\": %zu bytes of scratch needed, ISGQ_SCRATCH_BYTES is %zu",
                           request->forced, options[i].scratch_needed, request->scratch_limit);
        *way = (iq_factored_way_t)i;
        return ISGQ_SUCCESS;
    }
    return IQ_FAIL(iq_algorithm_known(request->forced) ? ISGQ_ERR_UNSUPPORTED : ISGQ_ERR_INVALID_ARGUMENT,
                   "algorithm \"%.32s\": factored calls have auto, gather, share, owner, reduce, dense", request->forced);
}

/* "factors 86 KiB, integers 4.7 MiB (scratch), dense 0.6 MiB" */
static void explain(const iq_factored_choice_request_t *request, const factored_option_t *options, char *why, size_t why_bytes)
{
    static const char *const nouns[IQ_FACTORED_WAY_COUNT] = {"factors", "integers", "dense", NULL, "owners"}; /* sharing sends as many as gathering */
    size_t used = 0;
    if (why_bytes > 0)
        why[0] = '\0';
    for (int i = 0; i < IQ_FACTORED_WAY_COUNT && used < why_bytes; i++) {
        if (nouns[i] == NULL)
            continue;
        char size[24];
        const char *remark = options[i].scratch_needed > request->scratch_limit ? " (scratch)" : "";
        iq_format_bytes(options[i].bytes, size, sizeof(size));
        if (options[i].exists)
            used += (size_t)snprintf(why + used, why_bytes - used, "%s%s %s%s", used == 0 ? "" : ", ", nouns[i], size, remark);
    }
}

/* ---- time ---- */

/* Where nothing was measured: one core of the machine of docs/performance.md. A byte is copied into a queue and out of it. */
static const iq_cost_machine_t assumed = {.nlevels = 1, .levels = {{1, 15e-6, 1e9}}, .copy_rate = 2e9, .product_rate = 1e9 / 0.06,
                                          .factor_rate = 25e6};

/* What coding one rank's factors takes, either way: the assumed machine's time, as much faster as the machine codes faster. */
static double factor_seconds(const iq_factored_choice_request_t *request, const iq_cost_machine_t *machine)
{
    return 1e-9 * request->decode_ns * assumed.factor_rate / machine->factor_rate;
}

/* Seconds that sharing saves: a rank does not do what the others of its host do for it, but copies rows and gradient to and from each of them,
 * in two more stages in which ranks wait for each other. */
static double sharing_saves(const iq_factored_choice_request_t *request)
{
    const iq_cost_machine_t *machine = request->machine != NULL ? request->machine : &assumed;
    double host = request->ranks_per_host, rows = (double)request->nranks * (double)request->max_batch;
    double product = (double)request->m * (double)request->n, row = (double)request->m + (double)request->n;
    double saved = (1 - 1 / host) * (request->nranks * factor_seconds(request, machine) + rows * product / machine->product_rate);
    double copied = (1 - 1 / host) * (rows * row * sizeof(int16_t) + product * sizeof(float));
    return saved - copied / machine->copy_rate - 2 * machine->levels[0].latency;
}

static bool fits(const iq_factored_choice_request_t *request, const factored_option_t *option)
{
    return option->exists && option->scratch_needed <= request->scratch_limit;
}

static bool may_share(const iq_factored_choice_request_t *request, const factored_option_t *options)
{
    return request->ranks_per_host > 1 && fits(request, &options[IQ_FACTORED_SHARE]);
}

/* What each way takes on the machine; integers travel as values do. */
static void time_ways(const iq_factored_choice_request_t *request, const factored_option_t *options, double seconds[IQ_FACTORED_WAY_COUNT])
{
    double rows = (double)request->max_batch, m = (double)request->m, n = (double)request->n;
    double own = rows * m * n / request->machine->product_rate, words = (double)request->sum_element_bytes / 4;
    double code = factor_seconds(request, request->machine);
    iq_cost_machine_t wires = *request->machine; /* codes of factors are counted here */
    wires.encode_rate = wires.decode_rate = INFINITY;
    const iq_cost_factors_t factors = {rows, m, n, rows > 0 ? 8 * (double)request->blob_bytes / (rows * (m + n)) : 0, 0};
    const iq_cost_dense_t integers = {.elements = words * m * n, .partial_bits = 32, .result_bits = 32};
    seconds[IQ_FACTORED_GATHER] = iq_cost_factored(&wires, IQ_COST_GATHER, &factors).total + (request->nranks + 1) * code;
    seconds[IQ_FACTORED_REDUCE] = iq_cost_dense(request->machine, IQ_COST_DIRECT, &integers).total + own + 2 * code;
    seconds[IQ_FACTORED_DENSE] = request->dense_seconds + own;
    seconds[IQ_FACTORED_SHARE] = seconds[IQ_FACTORED_GATHER] - (may_share(request, options) ? sharing_saves(request) : 0);
}

static iq_factored_way_t fastest(const iq_factored_choice_request_t *request, const factored_option_t *options, char *why, size_t why_bytes)
{
    static const iq_factored_way_t order[] = {IQ_FACTORED_GATHER, IQ_FACTORED_SHARE, IQ_FACTORED_REDUCE, IQ_FACTORED_DENSE}; /* of ties */
    double seconds[IQ_FACTORED_WAY_COUNT];
    iq_factored_way_t best = IQ_FACTORED_DENSE;
    size_t used = 0;
    time_ways(request, options, seconds);
    if (why_bytes > 0)
        why[0] = '\0';
    for (size_t i = 0; i < sizeof(order) / sizeof(order[0]); i++) {
        iq_factored_way_t way = order[i];
        if (way == IQ_FACTORED_SHARE ? !may_share(request, options) : !fits(request, &options[way]))
            continue;
        if (used < why_bytes)
            used += (size_t)snprintf(why + used, why_bytes - used, "%s%s %.3g ms", used == 0 ? "" : ", ", iq_factored_ways[way].name,
                                     1e3 * seconds[way]);
        if (seconds[way] < seconds[best] || (seconds[way] == seconds[best] && best == IQ_FACTORED_DENSE))
            best = way;
    }
    return best;
}

isgq_result_t iq_choose_factored(const iq_factored_choice_request_t *request, iq_factored_way_t *way, char *why, size_t why_bytes)
{
    factored_option_t options[IQ_FACTORED_WAY_COUNT];
    iq_factored_way_t best = IQ_FACTORED_DENSE;
    weigh(request, options);
    if (request->forced != NULL && strcmp(request->forced, "auto") != 0) {
        IQ_TRY(choose_forced(request, options, way));
        snprintf(why, why_bytes, "%s was asked for", request->forced);
        return ISGQ_SUCCESS;
    }
    if (request->machine != NULL && request->nranks > 1) {
        *way = fastest(request, options, why, why_bytes);
        return ISGQ_SUCCESS;
    }
    for (int i = IQ_FACTORED_REDUCE; i >= IQ_FACTORED_GATHER; i--) /* a tie goes to the one further left */
        if (fits(request, &options[i]) && options[i].bytes <= options[best].bytes)
            best = (iq_factored_way_t)i;
    const factored_option_t *owner = &options[IQ_FACTORED_OWNER];
    if (owner->exists && owner->scratch_needed <= request->scratch_limit && owner->bytes < options[best].bytes)
        best = IQ_FACTORED_OWNER;
    explain(request, options, why, why_bytes);
    if (best == IQ_FACTORED_GATHER && may_share(request, options) && sharing_saves(request) > 0)
        best = IQ_FACTORED_SHARE;
    *way = best;
    return ISGQ_SUCCESS;
}
