/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What tensors add to a dense call: values with the residual of error feedback before it, the codec's history after it.
 *
 * Whether a rank has a residual is its own affair, messages do not show it; so the stage of error feedback is there for every call whose codec has feedback, and
 * empty on ranks without a tensor. A history is read by the codec, and ranks that differ in it disagree on the call.
 */
#include "base/util.h"
#include "core/run.h"
#include "core/tensor.h"

#include <string.h>

#define PIECE_ELEMENTS 16384 /* of one trip, so that hosts look at the network in between */

static iq_span_t piece(size_t trip, size_t count)
{
    size_t first = trip * PIECE_ELEMENTS;
    return (iq_span_t){first, iq_min(PIECE_ELEMENTS, count - first)};
}

/* ---- error feedback ---- */

static isgq_result_t work_feedback(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_stage_t *data = &run->stages[run->stage];
    (void)comm;
    while (data->own == NULL)
        data++;
    if (run->own_error.device != NULL)
        iq_own_error_add_on_device(&run->own_error, data->plan->count);
    else
        iq_own_error_add(&run->own_error, piece(trip, data->plan->count));
    return ISGQ_SUCCESS;
}

void iq_run_add_feedback(isgq_comm_t comm, iq_run_t *run, const iq_codec_t *codec, size_t count, const void **src, void *dst,
                         isgq_data_type_t *datatype)
{
    const iq_call_t *call = run->call;
    iq_own_error_t *own = &run->own_error;
    isgq_tensor_t tensor = call->tensor;
    size_t trips = run->site->device != NULL ? count > 0 : iq_ceil_div(count, PIECE_ELEMENTS);
    own->measures = !comm->devices && iq_accuracy_wanted(comm, call);
    if (comm->own_room != NULL)
        iq_own_error_place(own, comm->own_room, run->site->chunk_bytes);
    if (codec->feedback == IQ_FEEDBACK_OFF)
        return;
    iq_run_add_work(run, "error feedback", work_feedback, call->corrects ? trips : 0);
    if (!call->corrects || count == 0)
        return;
    own->corrects = true;
    own->gradient = *src;
    own->datatype = *datatype;
    own->residual = tensor->residual;
    own->corrected = tensor->count;
    own->weighted = codec->feedback == IQ_FEEDBACK_WEIGHTED;
    own->beta = own->weighted ? iq_feedback_beta(tensor->variance) : 1.0f;
    own->device = run->site->device;
    own->state = tensor->state;
    own->input = iq_tensor_uses_output(call) ? dst : tensor->input;
    *src = own->input;
    *datatype = ISGQ_FLOAT32;
}

static isgq_result_t work_estimate(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    (void)comm, (void)trip;
    iq_own_error_take_estimate(&run->own_error);
    return ISGQ_SUCCESS;
}

/* On a device it is the stream that learns: a graph may do the call again. */
void iq_run_add_estimate(iq_run_t *run)
{
    if (run->own_error.corrects && run->own_error.device != NULL)
        iq_run_add_work(run, "estimate", work_estimate, 1);
}

void iq_run_keep_estimates(iq_run_t *run)
{
    const iq_own_error_t *own = &run->own_error;
    isgq_tensor_t tensor = run->call->tensor;
    if (!run->call->corrects || !own->corrects || own->device != NULL)
        return;
    tensor->variance = iq_feedback_variance(tensor->variance, tensor->corrected == 0, iq_exact_value(&own->error), iq_exact_value(&own->square));
    tensor->corrected++;
}

/* ---- history ---- */

const double *iq_run_history(iq_run_t *run)
{
    isgq_tensor_t tensor = run->call->tensor;
    if (run->call->history == 0)
        return NULL;
    if (run->call->history == 1)
        memset(tensor->history, 0, sizeof(tensor->history));
    memcpy(run->history, tensor->history, sizeof(run->history));
    return run->history;
}

static isgq_result_t work_history(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_stage_t *data = &run->stages[run->stage - 1];
    iq_span_t span = piece(trip, data->plan->count);
    (void)comm;
    data->codec.ops->learn(&data->codec, &data->codec_call, span, data->dst + span.first * data->element_bytes,
                           run->call->tensor->history);
    return ISGQ_SUCCESS;
}

void iq_run_add_history(iq_run_t *run)
{
    if (run->call->history != 0 && run->call->codec.ops->learn != NULL)
        iq_run_add_work(run, "history", work_history, iq_ceil_div(run->call->count, PIECE_ELEMENTS));
}
