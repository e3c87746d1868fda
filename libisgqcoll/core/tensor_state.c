/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tensor's memory as bytes for a checkpoint: a header, then the residual, the directions of PowerSGD and the levels of guessed scales, where there are such. The header ends with a checksum of
 * itself and has those of the others, so no byte changes unseen. In the machine's byte order: state is for the rank that saved it.
 */
#include "base/util.h"
#include "codec/powersgd.h"
#include "core/tensor_device.h"

#include <stdlib.h>
#include <string.h>

#define STATE_MAGIC 0x51535449u /* "ITSQ" */
#define STATE_VERSION 4

typedef struct state {
    uint32_t magic, version;
    uint64_t count, calls, name_hash;
    uint64_t corrected, learner, learned, mark;
    uint64_t rows, columns, power_rank; /* shape, and vectors among the directions; 0: none */
    uint64_t residual_bytes, residual_hash, directions_bytes, directions_hash, levels_bytes, levels_hash;
    uint32_t failures, waits; /* of guesses */
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
    size_t directions_bytes = tensor->power_rank * tensor->columns * sizeof(float);
    size_t levels_bytes = tensor->prediction.levels != NULL ? iq_tensor_levels(tensor) * sizeof(float) : 0;
    if (buffer == NULL) { /* calls in flight may be about to fill the levels */
        *bytes = sizeof(state_t) + residual_bytes + directions_bytes + levels_bytes;
        return ISGQ_SUCCESS;
    }
    IQ_TRY(check_idle(tensor, "tensor_save"));
    levels_bytes = tensor->prediction.known ? levels_bytes : 0;
    size_t needed = sizeof(state_t) + residual_bytes + directions_bytes + levels_bytes;
    if (*bytes < needed)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "tensor_save: %zu bytes of room, %zu are needed", *bytes, needed);
    state_t state;
    memset(&state, 0, sizeof(state));
    state.magic = STATE_MAGIC;
    state.version = STATE_VERSION;
    state.count = tensor->count;
    state.calls = tensor->calls;
    state.name_hash = name_hash(tensor);
    state.learner = tensor->learner;
    state.learned = tensor->learned;
    state.mark = tensor->mark;
    unsigned char *parts = (unsigned char *)buffer + sizeof(state);
    IQ_TRY(iq_tensor_estimates(tensor, &state.variance, &state.corrected));
    IQ_TRY(iq_tensor_copy(tensor, parts, tensor->residual, residual_bytes));
    state.residual_bytes = residual_bytes;
    state.residual_hash = iq_hash(IQ_HASH_START, parts, residual_bytes);
    state.rows = tensor->rows;
    state.columns = tensor->columns;
    state.power_rank = tensor->power_rank;
    state.directions_bytes = directions_bytes;
    state.directions_hash = iq_hash(IQ_HASH_START, tensor->directions, directions_bytes);
    state.levels_bytes = levels_bytes;
    state.levels_hash = iq_hash(IQ_HASH_START, tensor->prediction.levels, levels_bytes);
    state.failures = tensor->prediction.failures;
    state.waits = tensor->prediction.waits;
    memcpy(state.history, tensor->history, sizeof(state.history));
    state.checksum = checksum(&state);
    memcpy(buffer, &state, sizeof(state));
    if (directions_bytes > 0)
        memcpy(parts + residual_bytes, tensor->directions, directions_bytes);
    if (levels_bytes > 0)
        memcpy(parts + residual_bytes + directions_bytes, tensor->prediction.levels, levels_bytes);
    *bytes = needed;
    return ISGQ_SUCCESS;
}

/* The shape must be the tensor's, if both have one, and the directions those of a rank that pays. */
static isgq_result_t check_shape(isgq_tensor_t tensor, const state_t *state)
{
    size_t rows = (size_t)state->rows, columns = (size_t)state->columns, rank = (size_t)state->power_rank, count;
    bool has_shape = rows != 0 || columns != 0;
    if (has_shape && (!iq_checked_mul(rows, columns, &count) || count != tensor->count))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "tensor_load: the state of %s has %zu rows of %zu columns", tensor->name, rows, columns);
    if (rank > IQ_POWERSGD_RANK_MOST || (rank > 0 && !iq_powersgd_pays(rows, columns, (unsigned)rank)) ||
        state->directions_bytes != rank * columns * sizeof(float))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "tensor_load: the state of %s has %zu directions in %zu bytes", tensor->name, rank,
                       (size_t)state->directions_bytes);
    if (has_shape && (tensor->rows != 0 || tensor->columns != 0) && (tensor->rows != rows || tensor->columns != columns))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "tensor_load: the state of %s is of %zu rows of %zu columns, the tensor of %zu of %zu",
                       tensor->name, rows, columns, tensor->rows, tensor->columns);
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
    size_t rest = bytes - sizeof(*state), residual = (size_t)state->residual_bytes;
    if (residual > rest || rest - residual != state->directions_bytes + state->levels_bytes)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "tensor_load: %zu bytes where %zu were saved", bytes,
                       sizeof(*state) + residual + (size_t)(state->directions_bytes + state->levels_bytes));
    if (state->count != tensor->count || state->name_hash != name_hash(tensor))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "tensor_load: the state is of another tensor than %s with %zu elements",
                       tensor->name, tensor->count);
    if (state->residual_bytes != 0 && state->residual_bytes != tensor->count * sizeof(float))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "tensor_load: the state of %s has a residual of %zu bytes", tensor->name,
                       (size_t)state->residual_bytes);
    if (state->levels_bytes != 0 && state->levels_bytes != iq_tensor_levels(tensor) * sizeof(float))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "tensor_load: the state of %s has levels of %zu bytes", tensor->name, (size_t)state->levels_bytes);
    return check_shape(tensor, state);
}

/* A part of the state that is there, as it was; *copy is new. */
static isgq_result_t read_part(isgq_tensor_t tensor, const char *what, const void *from, size_t bytes, uint64_t hash, float **copy)
{
    *copy = NULL;
    if (hash != iq_hash(IQ_HASH_START, from, bytes))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "tensor_load: the %s of %s is damaged", what, tensor->name);
    if (bytes == 0)
        return ISGQ_SUCCESS;
    *copy = malloc(bytes);
    if (*copy == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "tensor_load: the %s of %s", what, tensor->name);
    memcpy(*copy, from, bytes);
    return ISGQ_SUCCESS;
}

/* The tensor's room is for any rank that pays; `directions` have what the state's has. */
static isgq_result_t take_directions(isgq_tensor_t tensor, const state_t *state, const float *directions)
{
    size_t rows = tensor->rows, columns = tensor->columns;
    if (state->columns != 0) {
        tensor->rows = (size_t)state->rows;
        tensor->columns = (size_t)state->columns;
    }
    if (state->power_rank != 0 && iq_tensor_make_directions(tensor) != ISGQ_SUCCESS) {
        tensor->rows = rows;
        tensor->columns = columns;
        return ISGQ_ERR_NO_MEMORY;
    }
    tensor->power_rank = (unsigned)state->power_rank;
    if (state->power_rank != 0)
        memcpy(tensor->directions, directions, (size_t)state->directions_bytes);
    return ISGQ_SUCCESS;
}

/* Of what ranks have in common: ranks that load memories of different runs must not go on together. */
static uint64_t contents(const state_t *state)
{
    uint64_t parts[] = {state->directions_hash, state->levels_hash, state->failures, state->waits};
    return iq_hash(iq_hash(IQ_HASH_START, parts, sizeof(parts)), state->history, sizeof(state->history));
}

static void take_state(isgq_tensor_t tensor, const state_t *state, float *residual, float *levels)
{
    iq_tensor_free_buffers(tensor);
    free(tensor->prediction.levels);
    tensor->residual = residual;
    tensor->prediction = (iq_prediction_t){
        .levels = levels, .known = levels != NULL, .failures = state->failures, .waits = state->waits};
    tensor->comm = 0; /* of whoever goes on with it */
    tensor->calls = state->calls;
    tensor->corrected = state->corrected;
    tensor->learner = state->learner;
    tensor->learned = state->learned;
    tensor->mark = state->mark;
    tensor->loaded = contents(state);
    tensor->variance = state->variance;
    memcpy(tensor->history, state->history, sizeof(tensor->history));
}

isgq_result_t isgq_tensor_load(isgq_tensor_t tensor, const void *buffer, size_t bytes)
{
    state_t state;
    float *residual = NULL, *directions = NULL, *levels = NULL;
    if (tensor == NULL || buffer == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "tensor_load: %s is NULL", tensor == NULL ? "tensor" : "buffer");
    IQ_TRY(check_idle(tensor, "tensor_load"));
    IQ_TRY(read_header(tensor, buffer, bytes, &state));
    const unsigned char *parts = (const unsigned char *)buffer + sizeof(state);
    isgq_result_t result = read_part(tensor, "residual", parts, (size_t)state.residual_bytes, state.residual_hash, &residual);
    if (result == ISGQ_SUCCESS)
        result = read_part(tensor, "memory of directions", parts + state.residual_bytes, (size_t)state.directions_bytes,
                           state.directions_hash, &directions);
    if (result == ISGQ_SUCCESS)
        result = read_part(tensor, "levels", parts + state.residual_bytes + state.directions_bytes, (size_t)state.levels_bytes,
                           state.levels_hash, &levels);
    if (result == ISGQ_SUCCESS)
        result = take_directions(tensor, &state, directions);
    if (result == ISGQ_SUCCESS)
        take_state(tensor, &state, residual, levels);
    else {
        free(residual);
        free(levels);
    }
    free(directions);
    return result;
}
