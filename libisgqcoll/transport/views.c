/* SPDX-License-Identifier: Apache-2.0 */
/* Regions of one file, see views.h. What other ranks say of theirs is checked before anything is mapped. */
#include "transport/views.h"

#include "base/status.h"
#include "base/util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define KEPT 16 /* mappings for each rank: tensors come round again, often in many buffers */

typedef struct mapping {
    void *memory; /* NULL: none */
    int rank;
    uint64_t base, bytes;
    uint64_t used; /* when last */
} mapping_t;

struct iq_views {
    int fd, nranks, rank;
    uint64_t start, page;
    atomic_uint_fast64_t taken; /* of own region */
    uint64_t turn;
    size_t nmappings;
    mapping_t mappings[];
};

iq_views_t *iq_views_open(int fd, uint64_t start, int nranks, int rank)
{
    size_t nmappings = KEPT * (size_t)nranks;
    iq_views_t *views = fd < 0 ? NULL : calloc(1, sizeof(*views) + nmappings * sizeof(mapping_t));
    if (views == NULL) {
        if (fd >= 0)
            close(fd);
        return NULL;
    }
    views->fd = fd;
    views->nranks = nranks;
    views->rank = rank;
    views->start = start;
    views->page = (uint64_t)sysconf(_SC_PAGESIZE);
    views->nmappings = nmappings;
    return views;
}

static void unmap(mapping_t *mapping)
{
    if (mapping->memory != NULL)
        munmap(mapping->memory, mapping->bytes);
    mapping->memory = NULL;
}

void iq_views_close(iq_views_t *views)
{
    if (views == NULL)
        return;
    for (size_t i = 0; i < views->nmappings; i++)
        unmap(&views->mappings[i]);
    close(views->fd);
    free(views);
}

static void *map(const iq_views_t *views, int rank, uint64_t base, uint64_t bytes)
{
    off_t place = (off_t)(views->start + (uint64_t)rank * IQ_VIEWS_REGION + base);
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, views->fd, place);
    return memory == MAP_FAILED ? NULL : memory;
}

void *iq_views_alloc(iq_views_t *views, size_t bytes, uint64_t *base)
{
    uint64_t size = iq_align_up(bytes, views->page);
    if (bytes > IQ_VIEWS_REGION || atomic_load(&views->taken) > IQ_VIEWS_REGION)
        return NULL;
    *base = atomic_fetch_add(&views->taken, size);
    return *base > IQ_VIEWS_REGION - size ? NULL : map(views, views->rank, *base, size);
}

void iq_views_free(iq_views_t *views, void *memory, uint64_t base, size_t bytes)
{
    uint64_t size = iq_align_up(bytes, views->page);
    munmap(memory, size);
    (void)fallocate(views->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                    (off_t)(views->start + (uint64_t)views->rank * IQ_VIEWS_REGION + base), (off_t)size);
}

/* The mapping of an allocation, or the one that has been out of use for longest. */
static mapping_t *find(iq_views_t *views, int rank, const iq_view_t *view)
{
    mapping_t *oldest = &views->mappings[0];
    for (size_t i = 0; i < views->nmappings; i++) {
        mapping_t *mapping = &views->mappings[i];
        if (mapping->memory != NULL && mapping->rank == rank && mapping->base == view->base && mapping->bytes == view->bytes)
            return mapping;
        if (mapping->memory == NULL ? oldest->memory != NULL : oldest->memory != NULL && mapping->used < oldest->used)
            oldest = mapping;
    }
    unmap(oldest);
    return oldest;
}

isgq_result_t iq_views_map(iq_views_t *views, int rank, const iq_view_t *view, size_t bytes, unsigned char **memory)
{
    if (view->bytes == 0 || view->bytes > IQ_VIEWS_REGION || view->base > IQ_VIEWS_REGION - view->bytes ||
        (view->base | view->bytes) % views->page != 0 || view->at > view->bytes || bytes > view->bytes - view->at)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "shm: rank %d says that %zu bytes lie at %llu in %llu bytes at %llu of its memory", rank, bytes,
                       (unsigned long long)view->at, (unsigned long long)view->bytes, (unsigned long long)view->base);
    mapping_t *mapping = find(views, rank, view);
    if (mapping->memory == NULL) {
        *mapping = (mapping_t){.memory = map(views, rank, view->base, view->bytes), .rank = rank, .base = view->base, .bytes = view->bytes};
        if (mapping->memory == NULL)
            return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "shm: map %llu bytes of rank %d: %s", (unsigned long long)view->bytes, rank, strerror(errno));
    }
    mapping->used = ++views->turn;
    *memory = (unsigned char *)mapping->memory + view->at;
    return ISGQ_SUCCESS;
}
