/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory of isgq_mem_alloc, host or device memory as the communicator works on: a list per communicator, so that a pointer from elsewhere is refused without
 * being looked at, and whatever was not freed goes with the communicator.
 */
#include "base/util.h"
#include "core/gpu.h"

#include <stdlib.h>
#include <unistd.h>

#define LEAST_VIEWED ((size_t)64 << 10) /* mappings are few and whole pages */

typedef struct iq_memory {
    struct iq_memory *next;
    void *data;
    size_t bytes;
    bool viewed;   /* other ranks can map it, at: */
    uint64_t base;
} iq_memory_t;

static isgq_result_t take(isgq_comm_t comm, size_t bytes, iq_memory_t *memory)
{
    *memory = (iq_memory_t){.bytes = bytes};
    if (comm->gpu != NULL)
        return iq_gpu_alloc(comm, bytes, &memory->data);
    if (comm->views != NULL && bytes >= LEAST_VIEWED)
        memory->data = iq_views_alloc(comm->views, bytes, &memory->base);
    memory->viewed = memory->data != NULL;
    if (memory->data == NULL)
        memory->data = aligned_alloc(IQ_CACHE_LINE, iq_align_up(bytes, IQ_CACHE_LINE));
    return memory->data != NULL ? ISGQ_SUCCESS : IQ_FAIL(ISGQ_ERR_NO_MEMORY, "mem_alloc: %zu bytes", bytes);
}

static void give_back(isgq_comm_t comm, iq_memory_t *memory)
{
    if (comm->gpu != NULL)
        iq_gpu_free(comm, memory->data);
    else if (memory->viewed)
        iq_views_free(comm->views, memory->data, memory->base, memory->bytes);
    else
        free(memory->data);
    free(memory);
}

isgq_result_t isgq_mem_alloc(void **ptr, isgq_comm_t comm, size_t bytes)
{
    IQ_TRY(iq_comm_check_handle(comm, "mem_alloc"));
    if (ptr == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "mem_alloc: ptr is NULL");
    if (bytes == 0 || bytes > SIZE_MAX / 4)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "mem_alloc: bytes is %zu", bytes);
    iq_memory_t *memory = malloc(sizeof(*memory));
    if (memory == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "mem_alloc: %zu bytes", bytes);
    isgq_result_t result = take(comm, bytes, memory);
    if (result != ISGQ_SUCCESS) {
        free(memory);
        return result;
    }
    void *data = memory->data;
    pthread_mutex_lock(&comm->queue_lock);
    memory->next = comm->memory;
    comm->memory = memory;
    pthread_mutex_unlock(&comm->queue_lock);
    *ptr = data;
    return ISGQ_SUCCESS;
}

/* Take the entry of `data` out of the list; NULL if it is not there. */
static iq_memory_t *take_entry(isgq_comm_t comm, const void *data)
{
    pthread_mutex_lock(&comm->queue_lock);
    iq_memory_t **link = &comm->memory;
    while (*link != NULL && (*link)->data != data)
        link = &(*link)->next;
    iq_memory_t *memory = *link;
    if (memory != NULL)
        *link = memory->next;
    pthread_mutex_unlock(&comm->queue_lock);
    return memory;
}

isgq_result_t isgq_mem_free(void *ptr, isgq_comm_t comm)
{
    if (ptr == NULL)
        return ISGQ_SUCCESS;
    IQ_TRY(iq_comm_check_handle(comm, "mem_free"));
    iq_memory_t *memory = take_entry(comm, ptr);
    if (memory == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "mem_free: the memory is not from isgq_mem_alloc of this communicator, or was freed");
    give_back(comm, memory);
    return ISGQ_SUCCESS;
}

bool iq_memory_view(isgq_comm_t comm, const void *data, size_t bytes, iq_view_t *view)
{
    bool found = false;
    pthread_mutex_lock(&comm->queue_lock);
    for (const iq_memory_t *memory = comm->memory; memory != NULL && !found; memory = memory->next) {
        uintptr_t at = (uintptr_t)data - (uintptr_t)memory->data;
        found = memory->viewed && at <= memory->bytes && bytes <= memory->bytes - at;
        if (found)
            *view = (iq_view_t){.base = memory->base, .bytes = iq_align_up(memory->bytes, (size_t)sysconf(_SC_PAGESIZE)), .at = at};
    }
    pthread_mutex_unlock(&comm->queue_lock);
    return found;
}

void iq_memory_release(isgq_comm_t comm)
{
    while (comm->memory != NULL) {
        iq_memory_t *memory = comm->memory;
        comm->memory = memory->next;
        give_back(comm, memory);
    }
}
