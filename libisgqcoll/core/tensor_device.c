/* SPDX-License-Identifier: Apache-2.0 */
/* Where a tensor's buffers lie: see tensor_device.h. */
#include "core/tensor_device.h"

#include "core/gpu.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

/* ---- work on a stream that lives for one piece of it ---- */

typedef struct errand {
    const iq_cuda_module_t *cuda;
    int ordinal;
    isgq_stream_t stream;
    iq_cuda_event_t done;
} errand_t;

static isgq_result_t begin(isgq_tensor_t tensor, errand_t *errand)
{
    *errand = (errand_t){.cuda = tensor->cuda, .ordinal = tensor->ordinal};
    IQ_TRY(errand->cuda->stream_create(errand->ordinal, &errand->stream));
    isgq_result_t result = errand->cuda->event_create(errand->ordinal, &errand->done);
    if (result != ISGQ_SUCCESS)
        errand->cuda->stream_destroy(errand->ordinal, errand->stream);
    return result;
}

/* `result` is that of what was enqueued. The stream waits for nobody, so this ends. */
static isgq_result_t end(errand_t *errand, isgq_result_t result)
{
    if (result == ISGQ_SUCCESS)
        result = errand->cuda->event_record(errand->ordinal, errand->done, errand->stream);
    if (result == ISGQ_SUCCESS)
        while ((result = errand->cuda->event_poll(errand->ordinal, errand->done)) == ISGQ_IN_PROGRESS)
            sched_yield();
    errand->cuda->event_destroy(errand->ordinal, errand->done);
    errand->cuda->stream_destroy(errand->ordinal, errand->stream);
    return result;
}

/* ---- buffers ---- */

static isgq_result_t alloc_on_device(isgq_tensor_t tensor, size_t bytes, void **memory)
{
    errand_t errand;
    IQ_TRY(begin(tensor, &errand));
    isgq_result_t result = errand.cuda->alloc(errand.ordinal, errand.stream, bytes, memory);
    if (result == ISGQ_SUCCESS) {
        result = errand.cuda->clear(errand.ordinal, errand.stream, *memory, bytes);
        if (result != ISGQ_SUCCESS) {
            errand.cuda->release(errand.ordinal, errand.stream, *memory);
            *memory = NULL;
        }
    }
    return end(&errand, result);
}

isgq_result_t iq_tensor_alloc(isgq_tensor_t tensor, size_t bytes, void **memory)
{
    if (tensor->cuda != NULL)
        return alloc_on_device(tensor, bytes, memory);
    *memory = calloc(1, bytes);
    return *memory != NULL ? ISGQ_SUCCESS : IQ_FAIL(ISGQ_ERR_NO_MEMORY, "tensor %s: %zu bytes", tensor->name, bytes);
}

void iq_tensor_free(isgq_tensor_t tensor, void *memory)
{
    errand_t errand;
    if (tensor->cuda == NULL) {
        free(memory);
    } else if (memory != NULL && begin(tensor, &errand) == ISGQ_SUCCESS) {
        errand.cuda->release(errand.ordinal, errand.stream, memory);
        (void)end(&errand, ISGQ_SUCCESS);
    }
}

isgq_result_t iq_tensor_copy(isgq_tensor_t tensor, void *dst, const void *src, size_t bytes)
{
    errand_t errand;
    if (bytes == 0)
        return ISGQ_SUCCESS;
    if (tensor->cuda == NULL) {
        memcpy(dst, src, bytes);
        return ISGQ_SUCCESS;
    }
    IQ_TRY(begin(tensor, &errand));
    return end(&errand, errand.cuda->copy(errand.ordinal, errand.stream, dst, src, bytes));
}

isgq_result_t iq_tensor_clear(isgq_tensor_t tensor, void *memory, size_t bytes)
{
    errand_t errand;
    if (memory == NULL || bytes == 0)
        return ISGQ_SUCCESS;
    if (tensor->cuda == NULL) {
        memset(memory, 0, bytes);
        return ISGQ_SUCCESS;
    }
    IQ_TRY(begin(tensor, &errand));
    return end(&errand, errand.cuda->clear(errand.ordinal, errand.stream, memory, bytes));
}

/* ---- places ---- */

isgq_result_t iq_tensor_estimates(isgq_tensor_t tensor, double *variance, uint64_t *corrected)
{
    iq_feedback_state_t state = {.variance = tensor->variance, .calls = tensor->corrected};
    if (tensor->state != NULL)
        IQ_TRY(iq_tensor_copy(tensor, &state, tensor->state, sizeof(state)));
    *variance = state.variance;
    *corrected = state.calls;
    return ISGQ_SUCCESS;
}

static bool lies_with(isgq_tensor_t tensor, isgq_comm_t comm)
{
    const iq_device_t *device = comm != NULL && comm->gpu != NULL ? iq_gpu_device(comm) : NULL;
    return device == NULL ? tensor->cuda == NULL : tensor->cuda != NULL && tensor->ordinal == device->ordinal;
}

/* What a new place begins with; the rest is made when a call asks for it. */
static isgq_result_t fill(isgq_tensor_t tensor, const float *residual)
{
    iq_feedback_state_t state = {.variance = tensor->variance, .calls = tensor->corrected};
    size_t bytes = tensor->count * sizeof(float);
    if (tensor->cuda != NULL) {
        IQ_TRY(iq_tensor_alloc(tensor, sizeof(state), (void **)&tensor->state));
        IQ_TRY(iq_tensor_copy(tensor, tensor->state, &state, sizeof(state)));
    }
    if (residual == NULL || bytes == 0)
        return ISGQ_SUCCESS;
    IQ_TRY(iq_tensor_alloc(tensor, bytes, (void **)&tensor->residual));
    return iq_tensor_copy(tensor, tensor->residual, residual, bytes);
}

void iq_tensor_free_buffers(isgq_tensor_t tensor)
{
    iq_tensor_free(tensor, tensor->residual);
    iq_tensor_free(tensor, tensor->input);
    iq_tensor_free(tensor, tensor->state);
    tensor->residual = tensor->input = NULL;
    tensor->state = NULL;
    tensor->cuda = NULL;
}

isgq_result_t iq_tensor_place(isgq_tensor_t tensor, isgq_comm_t comm)
{
    size_t bytes = tensor->count * sizeof(float);
    float *kept = NULL;
    if (lies_with(tensor, comm))
        return ISGQ_SUCCESS;
    if (atomic_load(&tensor->holders) > 1)
        return IQ_FAIL(ISGQ_ERR_INVALID_USAGE, "tensor %s: its residual would have to move between host and device, and calls on it are in flight; wait for them first",
                       tensor->name);
    IQ_TRY(iq_tensor_estimates(tensor, &tensor->variance, &tensor->corrected));
    if (tensor->residual != NULL) {
        kept = malloc(bytes);
        if (kept == NULL)
            return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "tensor %s: %zu bytes on their way between host and device", tensor->name, bytes);
    }
    isgq_result_t result = kept != NULL ? iq_tensor_copy(tensor, kept, tensor->residual, bytes) : ISGQ_SUCCESS;
    if (result == ISGQ_SUCCESS) {
        iq_tensor_free_buffers(tensor);
        if (comm != NULL && comm->gpu != NULL) {
            tensor->cuda = iq_gpu_device(comm)->cuda;
            tensor->ordinal = iq_gpu_device(comm)->ordinal;
        }
        result = fill(tensor, kept);
        if (result != ISGQ_SUCCESS)
            iq_tensor_free_buffers(tensor); /* what was remembered is lost, and the next call begins anew */
    }
    free(kept);
    return result;
}
