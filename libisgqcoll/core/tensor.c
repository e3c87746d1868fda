/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tensor identities: what the library remembers of one gradient between calls. Today that is how often it was reduced; residuals and predicted
 * steps will hang here too. Saved state is a header with version and checksum, then the name.
 */
#include "core/tensor.h"

#include "base/status.h"
#include "base/util.h"

#include <stdlib.h>
#include <string.h>

#define TENSOR_MAGIC 0x51535449u /* "ITSQ" */
#define TENSOR_VERSION 1
#define TENSOR_NAME_BYTES 256

struct isgq_tensor {
    char name[TENSOR_NAME_BYTES];
    size_t count;
    uint64_t calls;
};

typedef struct saved {
    uint32_t magic, version;
    uint64_t count, calls, name_hash;
    uint64_t checksum; /* of everything before */
} saved_t;

isgq_result_t isgq_tensor_create(isgq_tensor_t *tensor, const char *name, size_t count)
{
    if (tensor == NULL || name == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "tensor_create: %s is NULL", tensor == NULL ? "tensor" : "name");
    if (strlen(name) >= TENSOR_NAME_BYTES)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "tensor_create: the name has %zu characters, at most %d fit", strlen(name), TENSOR_NAME_BYTES - 1);
    isgq_tensor_t made = calloc(1, sizeof(*made));
    if (made == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "tensor_create: %s", name);
    memcpy(made->name, name, strlen(name) + 1);
    made->count = count;
    *tensor = made;
    return ISGQ_SUCCESS;
}

isgq_result_t iq_tensor_use(isgq_tensor_t tensor, size_t count, const char *operation)
{
    if (tensor == NULL)
        return ISGQ_SUCCESS;
    if (tensor->count != count)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "%s: options->tensor %s has %zu elements, the call %zu", operation, tensor->name, tensor->count, count);
    tensor->calls++;
    return ISGQ_SUCCESS;
}

isgq_result_t isgq_tensor_reset(isgq_tensor_t tensor)
{
    if (tensor == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "tensor_reset: tensor is NULL");
    tensor->calls = 0;
    return ISGQ_SUCCESS;
}

static saved_t snapshot(isgq_tensor_t tensor)
{
    saved_t saved = {.magic = TENSOR_MAGIC,
                     .version = TENSOR_VERSION,
                     .count = tensor->count,
                     .calls = tensor->calls,
                     .name_hash = iq_hash(IQ_HASH_START, tensor->name, strlen(tensor->name))};
    saved.checksum = iq_hash(IQ_HASH_START, &saved, offsetof(saved_t, checksum));
    return saved;
}

isgq_result_t isgq_tensor_save(isgq_tensor_t tensor, void *buffer, size_t *bytes)
{
    if (tensor == NULL || bytes == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "tensor_save: %s is NULL", tensor == NULL ? "tensor" : "bytes");
    if (buffer != NULL && *bytes < sizeof(saved_t))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "tensor_save: %zu bytes of room, %zu are needed", *bytes, sizeof(saved_t));
    saved_t saved = snapshot(tensor);
    if (buffer != NULL)
        memcpy(buffer, &saved, sizeof(saved));
    *bytes = sizeof(saved);
    return ISGQ_SUCCESS;
}

isgq_result_t isgq_tensor_load(isgq_tensor_t tensor, const void *buffer, size_t bytes)
{
    saved_t saved;
    if (tensor == NULL || buffer == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "tensor_load: %s is NULL", tensor == NULL ? "tensor" : "buffer");
    if (bytes != sizeof(saved))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "tensor_load: %zu bytes where %zu were saved", bytes, sizeof(saved));
    memcpy(&saved, buffer, sizeof(saved));
    if (saved.magic != TENSOR_MAGIC || saved.checksum != iq_hash(IQ_HASH_START, &saved, offsetof(saved_t, checksum)))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "tensor_load: the state of %s is damaged", tensor->name);
    if (saved.version != TENSOR_VERSION)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "tensor_load: state of version %u, this library reads %d", saved.version, TENSOR_VERSION);
    if (saved.count != tensor->count || saved.name_hash != snapshot(tensor).name_hash)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "tensor_load: the state is of another tensor than %s with %zu elements", tensor->name, tensor->count);
    tensor->calls = saved.calls;
    return ISGQ_SUCCESS;
}

void isgq_tensor_destroy(isgq_tensor_t tensor) { free(tensor); }
