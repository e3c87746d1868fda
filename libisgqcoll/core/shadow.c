/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shadows (ISGQ_SHADOW): every k-th quantized allreduce is done once more, exactly, and the results are compared. All ranks do so for the same calls.
 *
 *   dense      copy of own input as f32, the call, exact allreduce of the copy in place, comparison
 *   factored   the call, local gradient from the factors, exact allreduce of it in place, comparison
 *
 * The comparison is made in double, element after element, from values that are equal on all ranks, and so is its result. A call that was to add to its
 * output writes to it instead, and what was there is added when both results have been seen: the same sum of two values. What the exact allreduce sent is no part of the call's bytes.
 */
#include "base/log.h"
#include "base/util.h"
#include "codec/convert.h"
#include "core/run.h"

#include <string.h>

#define PIECE_ELEMENTS 16384 /* of one trip; whole tiles */

static bool is_quantized(const iq_call_t *call)
{
    bool dense = call->kind == IQ_CALL_ALLREDUCE || (call->kind == IQ_CALL_FACTORED && call->way == IQ_FACTORED_DENSE);
    return dense ? call->codec.ops != iq_codec_none.ops || call->power_rank != 0 : call->kind == IQ_CALL_FACTORED;
}

/* Columns of the bias gradient, which is not compared, but lies behind the gradient where that is f32. */
static size_t bias_count(const iq_call_t *call)
{
    return call->kind == IQ_CALL_FACTORED && call->factors.bias != NULL ? call->factors.n : 0;
}

static iq_span_t piece(const iq_run_t *run, size_t trip)
{
    size_t first = trip * PIECE_ELEMENTS;
    return (iq_span_t){first, iq_min(PIECE_ELEMENTS, run->call->count - first)};
}

static size_t pieces(const iq_run_t *run) { return iq_ceil_div(run->call->count, PIECE_ELEMENTS); }

/* ---- before the call ---- */

static void keep_output(const iq_run_t *run, iq_span_t span)
{
    const iq_call_t *call = run->call;
    size_t bytes = iq_datatype_bytes(call->datatype), bias = bias_count(call);
    memcpy(run->shadow.before + span.first * bytes, (const unsigned char *)call->recv + span.first * bytes, span.count * bytes);
    if (bias > 0 && span.first == 0)
        memcpy(run->shadow.before + call->count * bytes, call->factors.bias, bias * bytes);
}

static isgq_result_t work_copy(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_call_t *call = run->call;
    iq_span_t span = piece(run, trip);
    float tile[IQ_CODEC_TILE];
    (void)comm;
    if (run->shadow.accumulates)
        keep_output(run, span);
    for (size_t i = 0; i < span.count && call->kind == IQ_CALL_ALLREDUCE; i += IQ_CODEC_TILE) {
        size_t n = iq_min(span.count - i, IQ_CODEC_TILE);
        memcpy(run->shadow.exact + span.first + i, iq_load_f32(call->datatype, call->send, span.first + i, n, tile), n * sizeof(float));
    }
    return ISGQ_SUCCESS;
}

void iq_shadow_begin(isgq_comm_t comm, iq_run_t *run)
{
    if (comm->shadow_every == 0 || !is_quantized(run->call) || run->call->count == 0)
        return;
    run->shadow.runs = ++comm->shadow_turn % comm->shadow_every == 0;
    if (run->shadow.runs)
        iq_run_add_work(run, "copy for the shadow", work_copy, pieces(run));
}

/* ---- after it ---- */

/* The call's own messages end here. */
static isgq_result_t work_shadow(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    (void)comm, (void)trip;
    run->shadow.call_wire_bytes = run->wire_bytes;
    run->shadow.call_own_bytes = run->own_bytes;
    run->factored.sums = run->shadow.exact;
    run->factored.product_scratch = run->shadow.product_scratch;
    return ISGQ_SUCCESS;
}

static void compare_tile(iq_shadow_t *shadow, const iq_f32_any_t *result, const float *exact, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        double error = (double)result[i] - (double)exact[i];
        shadow->error += error * error;
        shadow->square += (double)exact[i] * (double)exact[i];
    }
}

/* output += what was there */
static void add_before(const iq_run_t *run, size_t first, size_t count, void *output, size_t output_first)
{
    float tile[IQ_CODEC_TILE];
    isgq_data_type_t datatype = run->call->datatype;
    const iq_f32_any_t *before = iq_load_f32(datatype, run->shadow.before, first, count, tile);
    iq_store_f32(datatype, before, count, true, output, output_first);
}

static isgq_result_t work_compare(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_call_t *call = run->call;
    iq_shadow_t *shadow = &run->shadow;
    iq_span_t span = piece(run, trip);
    float tile[IQ_CODEC_TILE];
    (void)comm;
    for (size_t i = span.first, n; i < span.first + span.count; i += n) {
        n = iq_min(span.first + span.count - i, IQ_CODEC_TILE);
        compare_tile(shadow, iq_load_f32(call->datatype, call->recv, i, n, tile), shadow->exact + i, n);
        if (shadow->accumulates)
            add_before(run, i, n, call->recv, i);
    }
    if (trip > 0)
        return ISGQ_SUCCESS;
    for (size_t i = 0, n; i < bias_count(call) && shadow->accumulates; i += n) {
        n = iq_min(bias_count(call) - i, IQ_CODEC_TILE);
        add_before(run, call->count + i, n, call->factors.bias, i);
    }
    shadow->wire_bytes = run->wire_bytes - shadow->call_wire_bytes;
    run->wire_bytes = shadow->call_wire_bytes;
    run->own_bytes = shadow->call_own_bytes;
    return ISGQ_SUCCESS;
}

/* All ranks have as much scratch left. */
static bool take_room(iq_run_t *run)
{
    const iq_call_t *call = run->call;
    iq_shadow_t *shadow = &run->shadow;
    iq_scratch_t *memory = run->site->memory;
    bool factored = call->kind == IQ_CALL_FACTORED;
    size_t elements = call->count + bias_count(call), bytes = iq_datatype_bytes(call->datatype);
    size_t product = factored ? run->factored.work->product_scratch(&run->factored.call, 0) : 0;
    if (elements * (sizeof(float) + bytes) + product + 4 * IQ_CACHE_LINE > memory->bytes - memory->used)
        return false;
    shadow->exact = iq_scratch_take(run, elements * sizeof(float));
    shadow->before = iq_scratch_take(run, elements * bytes);
    if (factored)
        shadow->product_scratch = iq_scratch_take(run, product);
    return true;
}

/* The output shows the result alone until it has been compared. */
static void set_accumulate_aside(iq_run_t *run)
{
    run->shadow.accumulates = run->call->accumulate;
    run->call->accumulate = false;
    for (int i = 0; i < run->nstages; i++)
        run->stages[i].codec_call.accumulate = run->stages[i].own_call.accumulate = false;
}

isgq_result_t iq_shadow_end(isgq_comm_t comm, iq_run_t *run)
{
    const iq_call_t *call = run->call;
    if (!run->shadow.runs)
        return ISGQ_SUCCESS;
    if (!take_room(run)) {
        IQ_INFO("call %llu: no exact call beside it, ISGQ_SCRATCH_BYTES %zu are too few", (unsigned long long)call->sequence,
                comm->scratch.bytes);
        run->stages[0].trips = 0;
        run->shadow.runs = false;
        return ISGQ_SUCCESS;
    }
    set_accumulate_aside(run);
    iq_run_add_work(run, "shadow", work_shadow, 1);
    if (call->kind == IQ_CALL_FACTORED)
        iq_run_add_work(run, "local gradient", run->factored.work->local_gradient, run->factored.work->tiles(&run->factored.call));
    IQ_TRY(iq_run_add_exact(comm, run, "exact sum", ISGQ_FLOAT32, call->op, call->count, run->shadow.exact, false));
    iq_run_add_work(run, "comparison", work_compare, pieces(run));
    return ISGQ_SUCCESS;
}
