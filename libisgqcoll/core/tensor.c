/* SPDX-License-Identifier: Apache-2.0 */
/* Tensor identities as handles: made, used by calls, reset, freed. Saving and loading is tensor_state.c. */
#include "core/tensor_device.h"

#include "base/util.h"
#include "codec/guarded.h"
#include "codec/powersgd.h"
#include "core/gpu.h"

#include <stdlib.h>
#include <string.h>

isgq_result_t isgq_tensor_create(isgq_tensor_t *tensor, const char *name, size_t count)
{
    if (tensor == NULL || name == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "tensor_create: %s is NULL", tensor == NULL ? "tensor" : "name");
    if (strlen(name) >= IQ_TENSOR_NAME_BYTES)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "tensor_create: the name has %zu characters, at most %d fit", strlen(name),
                       IQ_TENSOR_NAME_BYTES - 1);
    isgq_tensor_t made = calloc(1, sizeof(*made));
    if (made == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "tensor_create: %s", name);
    memcpy(made->name, name, strlen(name) + 1);
    made->count = count;
    atomic_store(&made->holders, 1);
    *tensor = made;
    return ISGQ_SUCCESS;
}

void iq_tensor_hold(isgq_tensor_t tensor)
{
    if (tensor != NULL)
        atomic_fetch_add(&tensor->holders, 1);
}

void iq_tensor_release(isgq_tensor_t tensor)
{
    if (tensor == NULL || atomic_fetch_sub(&tensor->holders, 1) > 1)
        return;
    iq_tensor_free_buffers(tensor);
    free(tensor->next_residual);
    free(tensor->held);
    free(tensor->prediction.levels);
    free(tensor->directions);
    free(tensor);
}

void isgq_tensor_destroy(isgq_tensor_t tensor) { iq_tensor_release(tensor); }

void iq_tensor_forget(isgq_tensor_t tensor)
{
    tensor->comm = tensor->calls = tensor->corrected = tensor->learner = tensor->learned = tensor->mark = tensor->loaded = 0;
    tensor->variance = 0.0;
    tensor->power_rank = 0;
    iq_prediction_forget(&tensor->prediction);
    if (iq_tensor_clear(tensor, tensor->residual, tensor->count * sizeof(float)) != ISGQ_SUCCESS ||
        iq_tensor_clear(tensor, tensor->state, sizeof(*tensor->state)) != ISGQ_SUCCESS)
        iq_tensor_free_buffers(tensor); /* the device is lost */
}

isgq_result_t isgq_tensor_reset(isgq_tensor_t tensor)
{
    if (tensor == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "tensor_reset: tensor is NULL");
    if (atomic_load(&tensor->holders) > 1)
        return IQ_FAIL(ISGQ_ERR_INVALID_USAGE, "tensor_reset: calls on %s are in flight; wait for them first", tensor->name);
    iq_tensor_forget(tensor);
    return ISGQ_SUCCESS;
}

isgq_result_t isgq_tensor_shape(isgq_tensor_t tensor, size_t rows, size_t columns)
{
    size_t count;
    if (tensor == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "tensor_shape: tensor is NULL");
    if (!iq_checked_mul(rows, columns, &count) || count != tensor->count)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "tensor_shape: %zu rows of %zu columns are not the %zu elements of %s", rows, columns,
                       tensor->count, tensor->name);
    if (tensor->rows == rows && tensor->columns == columns)
        return ISGQ_SUCCESS;
    if (atomic_load(&tensor->holders) > 1)
        return IQ_FAIL(ISGQ_ERR_INVALID_USAGE, "tensor_shape: calls on %s are in flight; wait for them first", tensor->name);
    free(tensor->directions);
    tensor->directions = NULL;
    tensor->power_rank = 0;
    tensor->learner = tensor->learned = 0;
    tensor->rows = rows;
    tensor->columns = columns;
    return ISGQ_SUCCESS;
}

/* ---- what a call needs ---- */

void iq_tensor_lend_shape(isgq_tensor_t tensor, iq_call_t *call)
{
    call->names_tensor = tensor != NULL;
    call->rows = tensor != NULL ? tensor->rows : 0;
    call->columns = tensor != NULL ? tensor->columns : 0;
}

/* For any rank: while calls of one are in flight a call of another may come. What no call touches takes no memory. */
isgq_result_t iq_tensor_make_directions(isgq_tensor_t tensor)
{
    unsigned most = 1;
    while (most < IQ_POWERSGD_RANK_MOST && iq_powersgd_pays(tensor->rows, tensor->columns, most + 1))
        most++;
    if (tensor->directions == NULL)
        tensor->directions = calloc(most * tensor->columns, sizeof(float));
    return tensor->directions != NULL
               ? ISGQ_SUCCESS
               : IQ_FAIL(ISGQ_ERR_NO_MEMORY, "tensor %s: %u directions of %zu elements", tensor->name, most, tensor->columns);
}

/* Zeros. */
static isgq_result_t allocate_some(isgq_tensor_t tensor, const char *what, size_t count, float **buffer)
{
    if (*buffer != NULL || tensor->count == 0)
        return ISGQ_SUCCESS;
    *buffer = calloc(count, sizeof(float));
    return *buffer != NULL ? ISGQ_SUCCESS
                           : IQ_FAIL(ISGQ_ERR_NO_MEMORY, "tensor %s: %s of %zu elements", tensor->name, what, tensor->count);
}

static isgq_result_t allocate(isgq_tensor_t tensor, const char *what, float **buffer)
{
    return allocate_some(tensor, what, tensor->count, buffer);
}

/* Where the tensor's buffers lie. */
static isgq_result_t allocate_placed(isgq_tensor_t tensor, float **buffer)
{
    return *buffer != NULL || tensor->count == 0 ? ISGQ_SUCCESS : iq_tensor_alloc(tensor, tensor->count * sizeof(float), (void **)buffer);
}

/* Is there a contribution of this rank's that a codec with error feedback encodes? */
static bool has_feedback(const iq_call_t *call)
{
    bool sums = call->kind == IQ_CALL_ALLREDUCE || call->kind == IQ_CALL_REDUCE_SCATTER ||
                (call->kind == IQ_CALL_FACTORED && call->way == IQ_FACTORED_DENSE);
    return sums && call->codec.feedback != IQ_FEEDBACK_OFF && (call->codec.ops != iq_codec_none.ops || call->power_rank != 0);
}

/* A factored call's output is f32 in scratch here. */
bool iq_tensor_uses_output(const iq_call_t *call)
{
    bool plain = call->kind == IQ_CALL_ALLREDUCE && call->datatype == ISGQ_FLOAT32 && !call->accumulate;
    return plain || call->kind == IQ_CALL_FACTORED;
}

static isgq_result_t prepare_feedback(isgq_comm_t comm, isgq_tensor_t tensor, iq_call_t *call)
{
    bool hosted = iq_call_is_hosted(comm, call);
    IQ_TRY(iq_tensor_place(tensor, hosted ? NULL : comm));
    if (!hosted)
        IQ_TRY(iq_gpu_take_own_room(comm));
    IQ_TRY(allocate_placed(tensor, &tensor->residual));
    if (!iq_tensor_uses_output(call) && call->power_rank == 0)
        IQ_TRY(allocate_placed(tensor, &tensor->input));
    call->corrects = true;
    return ISGQ_SUCCESS;
}

/* What predicted calls keep until all ranks know that the guess held. */
static isgq_result_t prepare_prediction(isgq_tensor_t tensor, const iq_call_t *call)
{
    IQ_TRY(allocate_some(tensor, "the largest values", iq_tensor_levels(tensor), &tensor->prediction.levels));
    if (call->corrects)
        IQ_TRY(allocate(tensor, "the next residual", &tensor->next_residual));
    bool in_place = call->send == call->recv || (call->corrects && iq_tensor_uses_output(call));
    size_t room = tensor->count + IQ_GUARDED_SLACK / sizeof(float);
    return in_place ? allocate_some(tensor, "results", room, &tensor->held) : ISGQ_SUCCESS;
}

/* Is there anything to remember of the calls of this codec? */
static bool has_history(isgq_comm_t comm, const iq_call_t *call)
{
    bool predicts = iq_codec_predicts(&call->codec) && comm->nranks > 1;
    return (call->codec.ops->learn != NULL || predicts) && call->kind == IQ_CALL_ALLREDUCE && !call->accumulate && !comm->devices &&
           (call->algorithm->needs & IQ_IN_LEVELS) == 0; /* no rank sees what becomes of all scales there */
}

/* A history is for one codec with its settings: others begin anew. */
static void count_history(isgq_tensor_t tensor, iq_call_t *call)
{
    uint64_t learner = iq_hash(IQ_HASH_START, call->quantizer->text, strlen(call->quantizer->text));
    if (tensor->learner != learner)
        tensor->learned = 0;
    tensor->learner = learner;
    call->history = 1 + tensor->learned++;
}

uint64_t iq_tensor_mark(isgq_tensor_t tensor, const iq_call_t *call, uint64_t sequence)
{
    uint64_t known[] = {tensor->mark, tensor->loaded}, before = call->history == 1 ? 0 : iq_hash(IQ_HASH_START, known, sizeof(known));
    uint64_t now[] = {before, sequence};
    tensor->mark = iq_hash(IQ_HASH_START, now, sizeof(now));
    tensor->loaded = 0;
    return before;
}

isgq_result_t iq_tensor_use(isgq_comm_t comm, isgq_tensor_t tensor, iq_call_t *call)
{
    const char *operation = iq_call_kind_name(call->kind);
    if (tensor == NULL)
        return ISGQ_SUCCESS;
    if (tensor->count != call->count)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "%s: options->tensor %s has %zu elements, the call %zu", operation, tensor->name,
                       tensor->count, call->count);
    if (tensor->comm != 0 && tensor->comm != comm->number) /* whether it is held now depends on the time, and differs between ranks */
        return IQ_FAIL(ISGQ_ERR_INVALID_USAGE, "%s: options->tensor %s remembers calls on another communicator; reset or load it first",
                       operation, tensor->name);
    if (has_feedback(call))
        IQ_TRY(prepare_feedback(comm, tensor, call));
    if (call->power_rank != 0) {
        IQ_TRY(iq_tensor_make_directions(tensor));
        tensor->power_rank = call->power_rank;
        count_history(tensor, call);
    }
    if (has_history(comm, call)) {
        if (iq_codec_predicts(&call->codec))
            IQ_TRY(prepare_prediction(tensor, call));
        count_history(tensor, call);
    }
    if (call->corrects || call->history != 0) {
        tensor->comm = comm->number;
        call->tensor = tensor;
    }
    tensor->calls++;
    return ISGQ_SUCCESS;
}
