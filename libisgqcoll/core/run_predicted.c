/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dense calls whose shared scales are guessed: see predict.h for the rule, codec/guarded.h for the messages. Nothing is agreed on before the data:
 *
 *   plan, guarded    the call under the guessed scales; every rank learns all ranks' maxima from the messages that it gets anyhow
 *   verdict          from the maxima, which are equal on all ranks: the call stands, or it is repaired
 *   results          stands, and what was made may not be where it belongs before: to the output, and to the residual
 *   plan             repaired: the call under the maxima, as if they had been agreed on, from input that nothing has changed
 *
 * So a call that is repaired has the bits of one that was never predicted, and costs its data twice but no agreement.
 */
#include "base/util.h"
#include "codec/guarded.h"
#include "core/run.h"
#include "core/tensor.h"

#include <float.h>
#include <string.h>

#define PIECE_ELEMENTS 16384 /* of one trip, so that hosts look at the network in between */

/* The plan that is there for repairs comes behind verdict and results. */
enum { PLAN_BEHIND_VERDICT = 2 };

static void learn(const iq_run_t *run, const float *maxima)
{
    iq_prediction_learn(&run->call->tensor->prediction, run->prediction.scales, maxima);
}

/* ---- calls that agree, and remember what on ---- */

static isgq_result_t work_learn(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    (void)comm, (void)trip;
    learn(run, run->scales);
    return ISGQ_SUCCESS;
}

void iq_run_add_learning(iq_run_t *run)
{
    if (run->prediction.learns)
        iq_run_add_work(run, "largest values", work_learn, 1);
}

const char *iq_run_prediction_text(const iq_run_t *run)
{
    if (!run->prediction.guards)
        return "";
    return run->prediction.repairs ? "; scales guessed, repaired" : "; scales guessed";
}

/* ---- calls that guess ---- */

/* The largest finite value: what the outermost code means has to be one too. */
static float most_of(isgq_data_type_t datatype)
{
    return datatype == ISGQ_FLOAT16 ? 65504.0f : datatype == ISGQ_BFLOAT16 ? 0x1.fep127f : FLT_MAX;
}

/* Scales that the tensor's history gives, or the rule. */
static bool guess(iq_run_t *run, const iq_codec_t *codec, const iq_codec_call_t *codec_call)
{
    const iq_codec_ops_t *ops = codec->ops;
    iq_prediction_t *memory = &run->call->tensor->prediction;
    if (!iq_prediction_due(memory))
        return false;
    if (ops->history_scales != NULL)
        return ops->history_scales(codec, codec_call, run->scales);
    iq_prediction_guess(memory, run->prediction.scales, most_of(codec_call->datatype), run->scales);
    if (ops->open_scales != NULL)
        ops->open_scales(codec, codec_call, codec_call->count, run->scales);
    return true;
}

isgq_result_t iq_run_predict(iq_run_t *run, const iq_codec_t *codec, const iq_codec_call_t *codec_call)
{
    const iq_codec_ops_t *ops = codec->ops;
    iq_prediction_run_t *prediction = &run->prediction;
    if (run->call->history == 0 || !iq_codec_predicts(codec))
        return ISGQ_SUCCESS;
    if (run->call->history == 1) {
        iq_prediction_forget(&run->call->tensor->prediction);
        memset(run->call->tensor->prediction.levels, 0, iq_tensor_levels(run->call->tensor) * sizeof(float)); /* all of it is saved */
    }
    prediction->scales = ops->shared_scales == NULL ? iq_codec_scales(codec, codec_call->count) : ops->shared_scales(codec, codec_call->count);
    prediction->guards = guess(run, codec, codec_call);
    prediction->learns = !prediction->guards;
    if (!prediction->guards)
        return ISGQ_SUCCESS;
    prediction->seen = iq_scratch_take(run, prediction->scales * sizeof(float));
    prediction->agreed = iq_scratch_take(run, prediction->scales * sizeof(float));
    if (prediction->seen == NULL || prediction->agreed == NULL)
        return ISGQ_ERR_NO_MEMORY;
    memset(prediction->seen, 0, prediction->scales * sizeof(float));
    return ISGQ_SUCCESS;
}

/* ---- the verdict ---- */

/* Did the guess hold? prediction->agreed becomes what would have been agreed on. */
static bool stands(const iq_run_t *run, const iq_stage_t *plan)
{
    const iq_prediction_run_t *prediction = &run->prediction;
    const iq_codec_t *codec = &plan->codec;
    const iq_codec_call_t *call = &plan->codec_call;
    iq_verdict_sums_t sums = {0};
    memcpy(prediction->agreed, prediction->seen, prediction->scales * sizeof(float));
    if (codec->ops->open_scales != NULL)
        codec->ops->open_scales(codec, call, call->count, prediction->agreed);
    for (size_t i = 0; i < prediction->scales; i++)
        iq_prediction_compare(&sums, iq_codec_limit(codec, call, run->scales[i]), prediction->seen[i],
                              iq_codec_limit(codec, call, prediction->agreed[i]));
    bool by_rule = codec->ops->history_scales != NULL; /* that rule's steps are what was asked for, however wide */
    return !sums.beyond && (by_rule || !iq_prediction_too_wide(&sums));
}

/* What was seen of own errors was seen in vain. */
static void forget_errors(iq_own_error_t *own)
{
    own->next = NULL;
    own->error = own->square = (iq_exact_t){{0}};
    own->residual_square = 0.0;
    own->count = own->zeros = own->limits = own->lost = 0;
}

static isgq_result_t work_verdict(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    iq_prediction_run_t *prediction = &run->prediction;
    iq_stage_t *results = &run->stages[run->stage + 1], *plan = &run->stages[run->stage + PLAN_BEHIND_VERDICT];
    (void)comm, (void)trip;
    prediction->repairs = !stands(run, plan);
    iq_prediction_count(&run->call->tensor->prediction, !prediction->repairs);
    learn(run, prediction->seen);
    results->skipped = prediction->repairs;
    plan->skipped = !prediction->repairs;
    if (!prediction->repairs)
        return ISGQ_SUCCESS;
    memcpy(run->scales, prediction->agreed, prediction->scales * sizeof(float));
    forget_errors(&run->own_error);
    return ISGQ_SUCCESS;
}

/* ---- results that had to wait for it ---- */

/* Results are held as messages, which are small, in the spans in which they came: trip after trip, a chunk of each block. */
static isgq_result_t decode_held(const iq_stage_t *plan, const iq_stage_t *guarded, size_t trip)
{
    size_t first, count, chunk = plan->plan->chunk, offset = trip / plan->plan->nblocks * chunk;
    iq_plan_block(plan->plan, (uint32_t)(trip % plan->plan->nblocks), &first, &count);
    if (offset >= count)
        return ISGQ_SUCCESS;
    iq_span_t span = {first + offset, iq_min(chunk, count - offset)};
    return plan->codec.ops->decode(&plan->codec, &plan->codec_call, span, guarded->dst + span.first * guarded->element_bytes,
                                   plan->dst + span.first * plan->element_bytes);
}

static void copy_residual(const iq_own_error_t *own, size_t trip)
{
    size_t first = trip * PIECE_ELEMENTS;
    if (first < own->corrected)
        memcpy(own->residual + first, own->next + first, iq_min(PIECE_ELEMENTS, own->corrected - first) * sizeof(float));
}

static isgq_result_t work_results(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_stage_t *plan = &run->stages[run->stage + 1], *guarded = &run->stages[run->stage - PLAN_BEHIND_VERDICT];
    (void)comm;
    if (run->own_error.next != NULL)
        copy_residual(&run->own_error, trip);
    return guarded->codec_call.holds ? decode_held(plan, guarded, trip) : ISGQ_SUCCESS;
}

/* Input that lies where the output goes, and the residual, stay as they are until the verdict. */
void iq_run_add_verdict(iq_run_t *run, iq_stage_t *guarded)
{
    const iq_call_t *call = run->call;
    size_t trips = 0;
    guarded->codec = iq_codec_guarded(&guarded->codec);
    guarded->codec_call.seen = guarded->own_call.seen = run->prediction.seen;
    if (guarded->src == guarded->dst) {
        guarded->codec_call.holds = true;
        guarded->dst = (unsigned char *)call->tensor->held;
        guarded->element_bytes = sizeof(float);
        trips = (size_t)guarded->plan->nblocks * guarded->plan->nchunks;
    }
    if (run->own_error.corrects) {
        run->own_error.next = call->tensor->next_residual;
        trips = iq_max(trips, iq_ceil_div(run->own_error.corrected, PIECE_ELEMENTS));
    }
    iq_run_add_work(run, "verdict", work_verdict, 1);
    iq_run_add_work(run, "results", work_results, trips);
}
