/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes over the application's communicator, before this library's ranks know each other: rank 0 tells the others where to meet. Like any
 * call of NCCL this waits for all ranks of that communicator; once NCCL has taken it, only until the deadline.
 */
#include "transport/nccl.h"

#include "base/status.h"
#include "base/util.h"
#include "kernels/cuda/cuda_module.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

/* Host memory that the GPU writes to, so that nobody has to wait in CUDA. */
typedef struct notice {
    const iq_cuda_module_t *cuda;
    int device;
    isgq_stream_t stream;
    iq_cuda_event_t done;
    void *memory; /* of the device */
    void *host;
    bool pinned;
} notice_t;

#define PAGE 4096

static void discard(notice_t *notice)
{
    if (notice->pinned)
        notice->cuda->unpin(notice->host);
    if (notice->memory != NULL)
        notice->cuda->shared_free(notice->device, notice->memory);
    if (notice->done != NULL)
        notice->cuda->event_destroy(notice->device, notice->done);
    if (notice->stream != NULL)
        notice->cuda->stream_destroy(notice->device, notice->stream);
    free(notice->host);
}

static isgq_result_t make(notice_t *notice, size_t bytes)
{
    const iq_cuda_module_t *cuda = notice->cuda;
    notice->host = aligned_alloc(PAGE, iq_align_up(bytes, PAGE));
    if (notice->host == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "nccl: %zu bytes to tell", bytes);
    IQ_TRY(cuda->stream_create(notice->device, &notice->stream));
    IQ_TRY(cuda->event_create(notice->device, &notice->done));
    IQ_TRY(cuda->shared_alloc(notice->device, bytes, &notice->memory));
    IQ_TRY(cuda->pin(notice->device, notice->host, iq_align_up(bytes, PAGE)));
    notice->pinned = true;
    return ISGQ_SUCCESS;
}

static isgq_result_t finish_call(const iq_nccl_functions_t *nccl, iq_nccl_comm_t comm, iq_nccl_result_t result, uint64_t deadline_ns)
{
    while (result == IQ_NCCL_IN_PROGRESS && iq_now_ns() < deadline_ns) {
        iq_nccl_result_t asked = nccl->comm_get_async_error(comm, &result);
        result = asked != IQ_NCCL_SUCCESS ? asked : result;
        sched_yield();
    }
    return iq_nccl_result(nccl, comm, result, "broadcast");
}

/* In a group, because old versions of NCCL launch on the current device otherwise. */
static iq_nccl_result_t enqueue(notice_t *notice, const iq_nccl_functions_t *nccl, iq_nccl_comm_t comm, size_t bytes)
{
    iq_nccl_result_t result = nccl->group_start();
    if (result != IQ_NCCL_SUCCESS)
        return result;
    result = nccl->broadcast(notice->memory, notice->memory, bytes, IQ_NCCL_UINT8, 0, comm, notice->stream);
    iq_nccl_result_t ended = nccl->group_end();
    return result != IQ_NCCL_SUCCESS ? result : ended;
}

static isgq_result_t broadcast(notice_t *notice, const iq_nccl_functions_t *nccl, iq_nccl_comm_t comm, size_t bytes, uint64_t deadline_ns)
{
    const iq_cuda_module_t *cuda = notice->cuda;
    isgq_result_t result;
    IQ_TRY(cuda->copy(notice->device, notice->stream, notice->memory, notice->host, bytes));
    IQ_TRY(finish_call(nccl, comm, enqueue(notice, nccl, comm, bytes), deadline_ns));
    IQ_TRY(cuda->copy(notice->device, notice->stream, notice->host, notice->memory, bytes));
    IQ_TRY(cuda->event_record(notice->device, notice->done, notice->stream));
    while ((result = cuda->event_poll(notice->device, notice->done)) == ISGQ_IN_PROGRESS && iq_now_ns() < deadline_ns)
        sched_yield();
    return result;
}

isgq_result_t iq_nccl_tell(iq_nccl_comm_t comm, const iq_cuda_module_t *cuda, int device, void *data, size_t bytes, uint64_t deadline_ns)
{
    const iq_nccl_functions_t *nccl;
    notice_t notice = {.cuda = cuda, .device = device};
    IQ_TRY(iq_nccl_load(&nccl));
    isgq_result_t result = make(&notice, bytes);
    if (result == ISGQ_SUCCESS) {
        memcpy(notice.host, data, bytes);
        result = broadcast(&notice, nccl, comm, bytes, deadline_ns);
    }
    if (result == ISGQ_IN_PROGRESS) /* the stream may still write: its memory stays */
        return IQ_FAIL(ISGQ_ERR_TIMEOUT, "nccl: rank 0 of the application's communicator did not tell in time where to meet");
    if (result == ISGQ_SUCCESS)
        memcpy(data, notice.host, bytes);
    discard(&notice);
    return result;
}
