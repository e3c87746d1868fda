/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which codec, which algorithm, which way: decided when a call is made, from values that are equal on all ranks, so that all ranks decide alike
 * without a message.
 */
#include "base/config.h"
#include "base/util.h"
#include "codec/device.h"
#include "codec/powersgd.h"
#include "codec/factor_device.h"
#include "codec/guarded.h"
#include "isgqcoll_ext.h"
#include "core/gpu.h"
#include "core/run.h"
#include "core/tuned.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const iq_collective_t kind_collectives[IQ_CALL_KIND_COUNT] = {IQ_ALLREDUCE, IQ_REDUCE_SCATTER, IQ_ALLGATHER,
                                                                     IQ_BROADCAST, IQ_BARRIER,        IQ_ALLREDUCE};

static bool quantizable(isgq_data_type_t datatype)
{
    return datatype == ISGQ_FLOAT32 || datatype == ISGQ_FLOAT16 || datatype == ISGQ_BFLOAT16;
}

double iq_decide_bits(const iq_codec_t *codec, isgq_data_type_t datatype, int nranks, bool result)
{
    const size_t sample = 32768;
    iq_codec_call_t call = {.datatype = datatype, .nranks = nranks};
    iq_span_t span = {0, sample};
    if (codec->ops->mean_bits != NULL)
        return codec->ops->mean_bits(codec, &call, result);
    size_t bytes = result ? codec->ops->result_bytes(codec, &call, span) : codec->ops->partial_bytes(codec, &call, span, 1);
    return 8.0 * (double)bytes / (double)sample;
}

/* Integers, and codes that stay integers: any order of addition gives the same bits. */
static bool order_free(const iq_codec_t *codec, isgq_data_type_t datatype, isgq_red_op_t op, bool exact)
{
    bool floating = quantizable(datatype) || datatype == ISGQ_FLOAT64;
    return !floating || (exact && codec->ops != iq_codec_none.ops) || op == ISGQ_MAX || op == ISGQ_MIN;
}

isgq_result_t iq_decide_algorithm(iq_collective_t collective, int nranks, int nhosts, bool boards, const iq_codec_t *codec, isgq_data_type_t datatype,
                                  isgq_red_op_t op, size_t count, const char *forced, const iq_algorithm_t **algorithm, char *why,
                                  size_t why_bytes)
{
    bool sums = collective == IQ_ALLREDUCE || collective == IQ_REDUCE_SCATTER;
    int parts = sums ? nranks : 1; /* what is only moved is a sum of one, with scales of its own */
    iq_codec_t moved = *codec;
    moved.shared &= sums;
    iq_codec_call_t call = {.datatype = datatype, .op = op, .nranks = parts, .count = count};
    bool exact = codec->ops->result_is_exact(&moved, &call);
    iq_choice_request_t request = {.collective = collective,
                                   .nranks = nranks,
                                   .nhosts = nhosts,
                                   .boards = boards,
                                   .count = count,
                                   .element_bytes = iq_datatype_bytes(datatype),
                                   .partial_bits = iq_decide_bits(&moved, datatype, parts, false),
                                   .result_bits = iq_decide_bits(&moved, datatype, parts, true),
                                   .partial_sums_exact = codec->ops->passes_sums == NULL || codec->ops->passes_sums(codec),
                                   .lossless = codec->ops == iq_codec_none.ops,
                                   .result_exact = exact,
                                   .any_order = order_free(codec, datatype, op, exact),
                                   .spares = codec->ops->varies,
                                   .forced = forced};
    return iq_choose(&request, algorithm, why, why_bytes);
}

/* Shared scales of `count` elements lie in scratch beside `other` bytes: refuse here, on all ranks alike, what would not fit later. */
static isgq_result_t check_scales(isgq_comm_t comm, const iq_call_t *call, size_t count, size_t other)
{
    size_t limit = comm->scratch.bytes - comm->scratch_reserved;
    other += comm->devices ? iq_codec_device_scratch(&call->codec, 1) : 0;
    size_t kinds = iq_codec_predicts(&call->codec) ? 3 : 1; /* guessed, seen, agreed */
    size_t scales = call->codec.shared ? kinds * iq_codec_scales(&call->codec, count) * sizeof(float) : 0;
    if (other > limit || scales + 6 * IQ_CACHE_LINE > limit - other)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "%s of %zu elements needs %zu bytes of scratch; ISGQ_SCRATCH_BYTES is %zu",
                       iq_call_kind_name(call->kind), count, other + scales, comm->scratch.bytes);
    return ISGQ_SUCCESS;
}

/* Some codecs are there for host memory alone, and devices do not bring their tensors there. */
static isgq_result_t check_devices(isgq_comm_t comm, const iq_call_t *call)
{
    if (comm->devices && !iq_call_is_hosted(comm, call) && (call->codec.power_rank != 0 || !iq_codec_has_device(&call->codec)))
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "%s: quantizer '%s' is for host memory only in this version, and there are ranks on devices",
                       iq_call_kind_name(call->kind), isgqx_quantizer_text(call->quantizer));
    return ISGQ_SUCCESS;
}

/* Of a call that hosts do: a copy of the tensor, and what lies beside it. Equal on all ranks, those that need no copy too. */
static isgq_result_t check_hosted(isgq_comm_t comm, iq_call_t *call)
{
    size_t used = strlen(call->why), most = IQ_GPU_HOST_BYTES(comm->scratch.bytes) - comm->scratch.bytes;
    if (!iq_call_is_hosted(comm, call))
        return ISGQ_SUCCESS;
    if (iq_hosted_bytes(call) > most)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "%s: quantizer '%s' is hosts' work, and a copy of %zu bytes does not fit; with ISGQ_SCRATCH_BYTES of %zu up to %zu do",
                       iq_call_kind_name(call->kind), isgqx_quantizer_text(call->quantizer), iq_hosted_bytes(call), comm->scratch.bytes, most);
    snprintf(call->why + used, sizeof(call->why) - used, "%son hosts", used > 0 ? ", " : "");
    return ISGQ_SUCCESS;
}

/* Some codecs' sums have room for so many ranks. */
static isgq_result_t check_ranks(isgq_comm_t comm, const iq_call_t *call)
{
    const iq_codec_ops_t *ops = call->codec.ops;
    int most = ops->most_ranks == NULL || call->kind == IQ_CALL_ALLGATHER ? comm->nranks : ops->most_ranks(&call->codec);
    if (comm->nranks > most)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "%s: quantizer '%s' adds up %d ranks at most, and there are %d", iq_call_kind_name(call->kind),
                       isgqx_quantizer_text(call->quantizer), most, comm->nranks);
    return ISGQ_SUCCESS;
}

/* Factors of P and Q, and the rank's own Q, in scratch. */
static isgq_result_t check_power_scratch(isgq_comm_t comm, const iq_call_t *call)
{
    size_t limit = comm->scratch.bytes - comm->scratch_reserved;
    size_t needed = (call->rows + call->columns) * call->power_rank * sizeof(float) + 4 * IQ_CACHE_LINE;
    if (needed > limit)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "allreduce of %zu rows of %zu columns needs %zu bytes of scratch for %u directions; ISGQ_SCRATCH_BYTES is %zu",
                       call->rows, call->columns, needed, call->power_rank, comm->scratch.bytes);
    return ISGQ_SUCCESS;
}

/* PowerSGD where the tensor is a matrix and its factors are smaller; other tensors are sent as they are, as other implementations do. */
static isgq_result_t decide_power(isgq_comm_t comm, iq_call_t *call, const char *algorithm)
{
    const char *text = isgqx_quantizer_text(call->quantizer);
    unsigned rank = call->codec.power_rank;
    iq_feedback_t feedback = call->codec.feedback;
    if (call->kind != IQ_CALL_ALLREDUCE)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "%s: quantizer '%s' is for allreduce alone", iq_call_kind_name(call->kind), text);
    if (call->op != ISGQ_SUM && call->op != ISGQ_AVG)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "allreduce: quantizer '%s' takes sum and avg, not %s", text, iq_red_op_name(call->op));
    if (algorithm != NULL && strcmp(algorithm, "levels") == 0)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "allreduce: algorithm \"levels\" does not do quantizer '%s', whose factors are summed exactly", text);
    if (!call->names_tensor)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "allreduce: quantizer '%s' needs options->tensor, which keeps its directions", text);
    call->codec = iq_codec_none;
    call->fallback = !iq_powersgd_pays(call->rows, call->columns, rank);
    call->power_rank = call->fallback ? 0 : rank;
    call->codec.feedback = call->fallback ? IQ_FEEDBACK_OFF : feedback;
    IQ_TRY(check_power_scratch(comm, call));
    isgq_data_type_t datatype = call->fallback ? call->datatype : ISGQ_FLOAT32;
    size_t count = call->fallback ? call->count : rank * (call->rows + call->columns);
    IQ_TRY(iq_decide_algorithm(IQ_ALLREDUCE, comm->nranks, comm->nhosts, comm->has_boards, &iq_codec_none, datatype, call->op, count, algorithm,
                               &call->algorithm,
                               call->why, sizeof(call->why)));
    if (call->fallback && call->columns == 0)
        snprintf(call->why, sizeof(call->why), "the tensor has no shape: sent as it is");
    else if (call->fallback)
        snprintf(call->why, sizeof(call->why), "%u directions of %zu x %zu are not fewer numbers", rank, call->rows, call->columns);
    return ISGQ_SUCCESS;
}

/* ---- by time, with a tuning table (docs/adr/0017) ---- */

/*
 * Quantizers with a memory stay as they are asked for: what it holds is of quantized calls among all ranks. Whether the call names a tensor, which
 * would keep it, is no rank's business but its own, so nothing that ranks must decide alike may depend on it.
 */
static bool remembers(const iq_codec_t *codec)
{
    return codec->feedback != IQ_FEEDBACK_OFF || codec->ops->learn != NULL || iq_codec_predicts(codec);
}

/* Values as they are are all that a quantizer promises, and better. */
static bool may_be_exact(const iq_call_t *call)
{
    return iq_config()->exact_if_faster && call->codec.ops != iq_codec_none.ops && !remembers(&call->codec);
}

/* Room for sums beside the output is counted whether or not this rank needs it. */
static bool may_be_in_levels(isgq_comm_t comm, const iq_call_t *call)
{
    return call->kind == IQ_CALL_ALLREDUCE && comm->nhosts > 1 && comm->host_size > 1 && quantizable(call->datatype) &&
           !remembers(&call->codec) && call->count < SIZE_MAX / 16 &&
           check_scales(comm, call, call->count, call->count * sizeof(float) + IQ_CACHE_LINE) == ISGQ_SUCCESS;
}

/* The route of a dense call that no algorithm was forced on, and the codec that goes with it. */
static iq_tuned_route_t take_route(isgq_comm_t comm, iq_call_t *call, char *why, size_t why_bytes)
{
    iq_tuned_route_t route = {0};
    bool exact = may_be_exact(call), in_levels = may_be_in_levels(comm, call);
    if (comm->nranks > 1 && (exact || in_levels))
        route = iq_tuned_choose(comm, &call->codec, kind_collectives[call->kind], call->datatype, call->count, exact, in_levels, why, why_bytes);
    if (route.exact) {
        call->codec = iq_codec_none;
        call->fallback = true;
    }
    return route;
}

/* ---- calls ---- */

static isgq_result_t decide_collective(isgq_comm_t comm, iq_call_t *call, const char *algorithm)
{
    char timed_why[sizeof(call->why)] = "";
    bool moves = call->kind == IQ_CALL_BROADCAST || call->kind == IQ_CALL_BARRIER;
    call->codec = iq_codec_none;
    if (!moves) {
        if (call->kind == IQ_CALL_ALLGATHER)
            IQ_TRY(iq_quantizer_moved(call->quantizer, comm->devices, &call->codec));
        else
            IQ_TRY(iq_quantizer_dense(call->quantizer, comm->nranks, comm->devices, &call->codec));
        if ((call->codec.ops != iq_codec_none.ops || call->codec.power_rank != 0) && !quantizable(call->datatype)) {
            call->codec = iq_codec_none;
            call->fallback = true;
        }
        IQ_TRY(call->codec.ops->supports(&call->codec, call->datatype, call->kind == IQ_CALL_ALLGATHER ? ISGQ_SUM : call->op));
        IQ_TRY(check_devices(comm, call));
        IQ_TRY(check_ranks(comm, call));
    }
    if (call->codec.power_rank != 0)
        return decide_power(comm, call, algorithm);
    if (comm->tuned && algorithm == NULL && !moves && take_route(comm, call, timed_why, sizeof(timed_why)).in_levels)
        algorithm = "levels";
    IQ_TRY(iq_decide_algorithm(kind_collectives[call->kind], comm->nranks, comm->nhosts, comm->has_boards, &call->codec, call->datatype, call->op,
                               call->count, algorithm, &call->algorithm, call->why, sizeof(call->why)));
    bool levels = call->algorithm->needs & IQ_IN_LEVELS;
    if (levels)
        IQ_TRY(iq_levels_check(comm, call));
    IQ_TRY(check_scales(comm, call, call->count, levels ? iq_levels_scratch(call) : 0));
    if (timed_why[0] != '\0')
        snprintf(call->why, sizeof(call->why), "%s", timed_why);
    else if (call->fallback)
        snprintf(call->why, sizeof(call->why), "%s is never quantized", iq_datatype_name(call->datatype));
    return ISGQ_SUCCESS;
}

static iq_factor_call_t shape_of(isgq_comm_t comm, const iq_call_t *call)
{
    return (iq_factor_call_t){.datatype = call->datatype,
                              .nranks = comm->nranks,
                              .rank = comm->rank,
                              .max_batch = call->max_batch,
                              .m = call->factors.m,
                              .n = call->factors.n,
                              .batch = call->factors.batch,
                              .want_bias = call->factors.bias != NULL};
}

/* Scratch of one way, roughly: blobs, decoded rows, product. The exact layout is taken when the call runs; both come from equal values. */
static size_t scratch_needed(isgq_comm_t comm, const iq_call_t *call, const iq_factor_call_t *shape, size_t blob_bytes, size_t ranks,
                             size_t batches, size_t sums_bytes)
{
    iq_factor_rows_t rows;
    size_t capacity = batches * shape->max_batch;
    if (comm->devices && ranks > 0 && iq_factored_all_on_devices(comm))
        return iq_factor_device_bytes(&call->factor, shape, ranks) + sums_bytes;
    return ranks * (blob_bytes + IQ_CACHE_LINE + sizeof(size_t) + sizeof(bool)) + iq_factor_rows_layout(shape, capacity, NULL, &rows) +
           iq_factor_product_scratch(shape, capacity) + iq_factor_state_bytes(&call->factor, shape) + sums_bytes + 9 * IQ_CACHE_LINE;
}

/* With a tuning table: values as they are on the dense way, if these are faster there. Returns whether they are, and what that way takes. */
static bool take_dense_route(isgq_comm_t comm, iq_call_t *call, bool forced, size_t product, double *seconds)
{
    char why[sizeof(call->why)];
    if (!comm->tuned || comm->nranks < 2)
        return false;
    iq_tuned_route_t route = iq_tuned_choose(comm, &call->codec, IQ_ALLREDUCE, ISGQ_FLOAT32, product, !forced && may_be_exact(call), false, why,
                                             sizeof(why));
    if (route.exact)
        call->codec = iq_codec_none;
    *seconds = route.seconds;
    return route.exact;
}

static isgq_result_t check_dense_way(isgq_comm_t comm, const iq_call_t *call, const iq_factor_call_t *shape, size_t sums)
{
    IQ_TRY(check_devices(comm, call));
    IQ_TRY(check_ranks(comm, call));
    return check_scales(comm, call, sums, scratch_needed(comm, call, shape, 0, 0, 0, sums * sizeof(float)));
}

static isgq_result_t decide_factored(isgq_comm_t comm, iq_call_t *call, const char *algorithm)
{
    iq_factor_call_t shape = shape_of(comm, call);
    bool dense_only;
    char dense_why[64];
    size_t product = call->factors.m * call->factors.n, sums = product + (call->factors.bias != NULL ? call->factors.n : 0);
    IQ_TRY(iq_quantizer_factored(call->quantizer, comm->devices, &call->factor, &dense_only));
    if (dense_only && call->quantizer->dense.codec.power_rank != 0)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "factored: quantizer '%s' is for allreduce alone", isgqx_quantizer_text(call->quantizer));
    if (call->max_batch == 0) /* no rows anywhere: nothing is coded, so nothing needs room for it */
        call->factor = (iq_factor_spec_t){.width_x = 4, .width_delta = 4};
    shape.max_batch = iq_factor_most_rows(&call->factor, call->max_batch, shape.want_bias);
    iq_quantizer_product(call->quantizer, comm->nranks, comm->devices, &call->codec);
    double dense_seconds = 0;
    bool exact = take_dense_route(comm, call, algorithm != NULL, product, &dense_seconds);
    IQ_TRY(iq_decide_algorithm(IQ_ALLREDUCE, comm->nranks, comm->nhosts, comm->has_boards, &call->codec, ISGQ_FLOAT32, call->op,
                               product, NULL, &call->algorithm, dense_why, sizeof(dense_why)));
    size_t limit = comm->scratch.bytes - comm->scratch_reserved;
    iq_factored_choice_request_t request = {
        .nranks = comm->nranks,
        .m = call->factors.m,
        .n = call->factors.n,
        .max_batch = call->max_batch,
        .dense_bits = (iq_decide_bits(&call->codec, ISGQ_FLOAT32, comm->nranks, false) +
                       iq_decide_bits(&call->codec, ISGQ_FLOAT32, comm->nranks, true)) / 2,
        .scratch_limit = limit,
        .may_gather = !dense_only,
        .forced = algorithm};
    if (!dense_only) {
        size_t most = iq_factor_blob_bytes(&call->factor, &shape);
        request.blob_bytes = iq_factor_mean_bytes(&call->factor, &shape);
        if (most == 0)
            request.may_gather = false;
        request.sum_element_bytes = iq_datatype_bytes(iq_factor_sum_type(&call->factor, &shape));
        request.scratch_needed_gather = scratch_needed(comm, call, &shape, most, (size_t)comm->nranks, (size_t)comm->nranks, 0);
        request.scratch_needed_reduce = scratch_needed(comm, call, &shape, most, 1, 1, sums * request.sum_element_bytes);
        request.may_own = !comm->devices;
        if (request.may_own && most != 0) {
            shape.fraction = iq_factor_fraction(&call->factor, &shape);
            request.owner_bytes = iq_factored_owner_sends(call, &shape);
            request.scratch_needed_owner = scratch_needed(comm, call, &shape, most, 1, 1, iq_factored_owner_bytes(&shape));
        }
        request.decode_ns = iq_factor_decode_ns(&call->factor, &shape);
        request.ranks_per_host = comm->devices || !comm->hosts_alike ? 0 : comm->host_size;
        if (request.ranks_per_host > 0)
            request.scratch_needed_share =
                scratch_needed(comm, call, &shape, most, (size_t)comm->nranks, 1, iq_factored_share_bytes(comm, &shape));
    }
    if (comm->tuned) {
        request.machine = &comm->machine;
        request.dense_seconds = check_dense_way(comm, call, &shape, sums) == ISGQ_SUCCESS ? dense_seconds : INFINITY;
    }
    IQ_TRY(iq_choose_factored(&request, &call->way, call->why, sizeof(call->why)));
    bool dense = call->way == IQ_FACTORED_DENSE;
    call->fallback = dense && call->codec.ops == iq_codec_none.ops && (exact || !dense_only);
    if (dense && exact)
        strncat(call->why, ", values as they are", sizeof(call->why) - strlen(call->why) - 1);
    return dense ? check_dense_way(comm, call, &shape, sums) : ISGQ_SUCCESS;
}

/* ISGQ_ALGORITHM holds for the collectives that have an algorithm of that name; a name given with the call must fit. */
static const char *forced_algorithm(isgq_comm_t comm, const iq_call_t *call, const char *algorithm)
{
    if (algorithm != NULL)
        return strcmp(algorithm, "auto") == 0 ? NULL : algorithm;
    if (call->kind != IQ_CALL_FACTORED)
        return iq_algorithm_find(kind_collectives[call->kind], comm->algorithm) != NULL ? comm->algorithm : NULL;
    for (int way = 0; way < IQ_FACTORED_WAY_COUNT; way++)
        if (strcmp(iq_factored_ways[way].name, comm->algorithm) == 0)
            return comm->algorithm;
    return NULL;
}

static isgq_result_t decide(isgq_comm_t comm, iq_call_t *call, const char *algorithm)
{
    const char *forced = forced_algorithm(comm, call, algorithm);
    if (call->kind == IQ_CALL_FACTORED)
        return decide_factored(comm, call, forced);
    IQ_TRY(decide_collective(comm, call, forced));
    IQ_TRY(check_hosted(comm, call));
    call->may_fuse = iq_fuse_may(comm, call, forced);
    return ISGQ_SUCCESS;
}

/* ---- what was decided before ---- */

/* Where a call's decision is if there is one. */
static iq_decision_t *find_decision(isgq_comm_t comm, const iq_call_t *call)
{
    uint64_t key = (call->count ^ (uint64_t)(uintptr_t)call->quantizer << 8) * 8 + (uint64_t)call->kind * 64 + (uint64_t)call->datatype;
    return &comm->decisions[(key * 0x9e3779b97f4a7c15ull) >> 32 & (IQ_DECISIONS - 1)];
}

static bool is_of(const iq_decision_t *decision, const iq_call_t *call)
{
    return decision->quantizer == call->quantizer && decision->kind == call->kind && decision->count == call->count &&
           decision->datatype == call->datatype && decision->op == call->op && decision->accumulate == call->accumulate;
}

static void keep_decision(iq_decision_t *decision, const iq_call_t *call)
{
    isgq_quantizer_destroy(decision->quantizer);
    *decision = (iq_decision_t){.quantizer = call->quantizer, .kind = call->kind, .datatype = call->datatype, .op = call->op,
                                .count = call->count, .accumulate = call->accumulate, .fallback = call->fallback, .may_fuse = call->may_fuse, .codec = call->codec,
                                .algorithm = call->algorithm};
    memcpy(decision->why, call->why, sizeof(decision->why));
    iq_quantizer_retain(decision->quantizer);
}

void iq_decisions_forget(isgq_comm_t comm)
{
    for (int i = 0; comm->decisions != NULL && i < IQ_DECISIONS; i++)
        isgq_quantizer_destroy(comm->decisions[i].quantizer);
    free(comm->decisions);
    comm->decisions = NULL;
}

/* Deciding is pure, so what it made of an equal call holds again: small calls take little longer than deciding and saying why. */
isgq_result_t iq_decide(isgq_comm_t comm, iq_call_t *call, const char *algorithm)
{
    if (call->kind == IQ_CALL_FACTORED || call->names_tensor || algorithm != NULL || call->quantizer == NULL)
        return decide(comm, call, algorithm);
    iq_decision_t *decision = find_decision(comm, call);
    if (!is_of(decision, call)) {
        IQ_TRY(decide(comm, call, NULL));
        keep_decision(decision, call);
        return ISGQ_SUCCESS;
    }
    call->fallback = decision->fallback;
    call->may_fuse = decision->may_fuse;
    call->codec = decision->codec;
    call->algorithm = decision->algorithm;
    memcpy(call->why, decision->why, sizeof(call->why));
    return ISGQ_SUCCESS;
}
