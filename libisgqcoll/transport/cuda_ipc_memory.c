/* SPDX-License-Identifier: Apache-2.0 */
/*
 * When a rank's device memory is freed. Peers write into it, and memory that another process has open must not be freed, but a
 * rank that closes waits for nobody. So every rank says in shared memory that it has closed, and memory whose other users have
 * not is kept in a list of the process; whoever opens or closes a wire of this kind later frees what has become free. Among
 * ranks of one process nothing is left when the last one has closed. Otherwise at most the memory of the ranks that closed
 * before their peers stays, until the next wire or the end of the process; that of a rank whose peer was killed stays to the
 * end.
 */
#include "transport/cuda_ipc.h"

#include "base/log.h"

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static iq_cuda_ipc_memory_t *retired;

static bool used(const iq_cuda_ipc_memory_t *memory)
{
    const iq_cuda_ipc_rank_t *ranks = memory->segment.memory;
    for (int rank = 0; rank < memory->nranks; rank++)
        if (atomic_load(&ranks[rank].closed) == 0)
            return true;
    return false;
}

void iq_cuda_ipc_discard(iq_cuda_ipc_memory_t *memory)
{
    if (memory == NULL)
        return;
    if (memory->base != NULL)
        memory->cuda->shared_free(memory->device, memory->base);
    iq_segment_leave(&memory->segment);
    free(memory);
}

void iq_cuda_ipc_sweep(void)
{
    iq_cuda_ipc_memory_t *unused = NULL, **place = &retired;
    pthread_mutex_lock(&lock);
    while (*place != NULL) {
        iq_cuda_ipc_memory_t *memory = *place;
        if (memory->process != getpid() || used(memory)) { /* a forked child inherits the list, but no device memory */
            place = &memory->next;
            continue;
        }
        *place = memory->next;
        memory->next = unused;
        unused = memory;
    }
    pthread_mutex_unlock(&lock);

    while (unused != NULL) { /* apart from the lock: this may wait for the device */
        iq_cuda_ipc_memory_t *memory = unused;
        unused = memory->next;
        iq_cuda_ipc_discard(memory);
    }
}

void iq_cuda_ipc_retire(iq_cuda_ipc_memory_t *memory, int rank)
{
    iq_cuda_ipc_rank_t *ranks = memory->segment.memory;
    memory->process = getpid();
    pthread_mutex_lock(&lock); /* so that the last of this process's ranks finds all others in the list */
    memory->next = retired;
    retired = memory;
    atomic_store(&ranks[rank].closed, 1);
    if (used(memory))
        IQ_DEBUG("cuda_ipc: %zu bytes of device %d stay until the other ranks have closed", memory->bytes, memory->device);
    pthread_mutex_unlock(&lock);
    iq_cuda_ipc_sweep();
}
