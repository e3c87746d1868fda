/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tensor's memory as bytes for a checkpoint: a header, then the residual if there is one. The header ends with a checksum of itself and begins
 * with one of the residual, so no byte changes unseen. In the machine's byte order: state is for the rank that saved it.
 */
#include "base/util.h"
#include "core/tensor.h"

#include <stdlib.h>
#include <string.h>

#define STATE_MAGIC 0x51535449u /* "ITSQ" */
#define STATE_VERSION 2

typedef struct state {
    uint32_t magic, version;
    uint64_t count, calls, name_hash;
    uint64_t corrected, learner, learned;
    uint64_t residual_bytes, residual_hash;
    double variance;
    double history[IQ_HISTORY];
    uint64_t checksum; /* of everything before */
} state_t;

static uint64_t name_hash(isgq_tensor_t tensor) { return iq_hash(IQ_HASH_START, tensor->name, strlen(tensor->name)); }

static uint64_t checksum(const state_t *state) { return iq_hash(IQ_HASH_START, state, offsetof(state_t, checksum)); }

static isgq_result_t check_idle(isgq_tensor_t tensor, const char *operation)
{
    if (atomic_load(&tensor->holders) > 1)
        return IQ_FAIL(ISGQ_ERR_INVALID_USAGE, "%s: calls on %s are in flight; wait for them first", operation, tensor->name);
    return ISGQ_SUCCESS;
}

isgq_result_t isgq_tensor_save(isgq_tensor_t tensor, void *buffer, size_t *bytes)
{
    if (tensor == NULL || bytes == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "tensor_save: %s is NULL", tensor == NULL ? "tensor" : "bytes");
    size_t residual_bytes = tensor->residual != NULL ? tensor->count * sizeof(float) : 0;
    size_t needed = sizeof(state_t) + residual_bytes;
    if (buffer == NULL) {
        *bytes = needed;
        return ISGQ_SUCCESS;
    }
    IQ_TRY(check_idle(tensor, "tensor_save"));
    if (*bytes < needed)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "tensor_save: %zu bytes of room, %zu are needed", *bytes, needed);
    state_t state;
    memset(&state, 0, sizeof(state));
    state.magic = STATE_MAGIC;
    state.version = STATE_VERSION;
    state.count = tensor->count;
    state.calls = tensor->calls;
    state.name_hash = name_hash(tensor);
    state.corrected = tensor->corrected;
    state.learner = tensor->learner;
    state.learned = tensor->learned;
    state.residual_bytes = residual_bytes;
    state.residual_hash = iq_hash(IQ_HASH_START, tensor->residual, residual_bytes);
    state.variance = tensor->variance;
    memcpy(state.history, tensor->history, sizeof(state.history));
    state.checksum = checksum(&state);
    memcpy(buffer, &state, sizeof(state));
    if (residual_bytes > 0)
        memcpy((unsigned char *)buffer + sizeof(state), tensor->residual, residual_bytes);
    *bytes = needed;
    return ISGQ_SUCCESS;
}

/* The header of `bytes` bytes of state. */
static isgq_result_t read_header(isgq_tensor_t tensor, const void *buffer, size_t bytes, state_t *state)
{
    memset(state, 0, sizeof(*state));
    memcpy(state, buffer, iq_min(bytes, sizeof(*state)));
    if (state->magic == STATE_MAGIC && state->version != STATE_VERSION)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "tensor_load: the state of %s is of version %u, this library reads %d", tensor->name,
                       state->version, STATE_VERSION);
    if (bytes < sizeof(*state))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "tensor_load: %zu bytes; a state has at least %zu", bytes, sizeof(*state));
    if (state->magic != STATE_MAGIC || state->checksum != checksum(state))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "tensor_load: the state of %s is damaged", tensor->name);
    if (bytes - sizeof(*state) != state->residual_bytes)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "tensor_load: %zu bytes where %zu were saved", bytes,
                       sizeof(*state) + (size_t)state->residual_bytes);
    if (state->count != tensor->count || state->name_hash != name_hash(tensor))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "tensor_load: the state is of another tensor than %s with %zu elements",
                       tensor->name, tensor->count);
    if (state->residual_bytes != 0 && state->residual_bytes != tensor->count * sizeof(float))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "tensor_load: the state of %s has a residual of %zu bytes", tensor->name,
                       (size_t)state->residual_bytes);
    return ISGQ_SUCCESS;
}

/* The residual as it was, or none. */
static isgq_result_t load_residual(isgq_tensor_t tensor, const state_t *state, const void *residual)
{
    size_t bytes = (size_t)state->residual_bytes;
    if (state->residual_hash != iq_hash(IQ_HASH_START, residual, bytes))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "tensor_load: the residual of %s is damaged", tensor->name);
    if (bytes == 0) {
        free(tensor->residual);
        tensor->residual = NULL;
        return ISGQ_SUCCESS;
    }
    if (tensor->residual == NULL)
        tensor->residual = malloc(bytes);
    if (tensor->residual == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "tensor_load: the residual of %s", tensor->name);
    memcpy(tensor->residual, residual, bytes);
    return ISGQ_SUCCESS;
}

isgq_result_t isgq_tensor_load(isgq_tensor_t tensor, const void *buffer, size_t bytes)
{
    state_t state;
    if (tensor == NULL || buffer == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "tensor_load: %s is NULL", tensor == NULL ? "tensor" : "buffer");
    IQ_TRY(check_idle(tensor, "tensor_load"));
    IQ_TRY(read_header(tensor, buffer, bytes, &state));
    IQ_TRY(load_residual(tensor, &state, (const unsigned char *)buffer + sizeof(state)));
    tensor->comm = 0; /* of whoever goes on with it */
    tensor->calls = state.calls;
    tensor->corrected = state.corrected;
    tensor->learner = state.learner;
    tensor->learned = state.learned;
    tensor->variance = state.variance;
    memcpy(tensor->history, state.history, sizeof(tensor->history));
    return ISGQ_SUCCESS;
}
