/* SPDX-License-Identifier: Apache-2.0 */
/* The plan cache: a small array searched linearly, newest hit first by probability; a plan is at most 4 KiB. */
#include "core/plan_cache.h"

#include "base/status.h"

#include <stdlib.h>

isgq_result_t iq_plan_cache_init(iq_plan_cache_t *cache, size_t count)
{
    cache->entries = calloc(count, sizeof(*cache->entries));
    cache->count = count;
    cache->clock = 0;
    if (cache->entries == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "plan cache: no memory for %zu plans", count);
    return ISGQ_SUCCESS;
}

void iq_plan_cache_fini(iq_plan_cache_t *cache)
{
    free(cache->entries);
    cache->entries = NULL;
    cache->count = 0;
}

static bool same_request(const iq_plan_request_t *a, const iq_plan_request_t *b)
{
    return a->collective == b->collective && a->count == b->count && a->chunk == b->chunk && a->block_unit == b->block_unit &&
           a->root == b->root && a->rank == b->rank && a->nranks == b->nranks && a->slots == b->slots && a->dealt == b->dealt &&
           a->lanes == b->lanes && a->rounds == b->rounds;
}

isgq_result_t iq_plan_cache_get(iq_plan_cache_t *cache, const iq_algorithm_t *algorithm, const iq_plan_request_t *request, const iq_plan_t **plan)
{
    iq_plan_entry_t *oldest = &cache->entries[0];
    for (size_t i = 0; i < cache->count; i++) {
        iq_plan_entry_t *entry = &cache->entries[i];
        if (entry->algorithm == algorithm && same_request(&entry->request, request)) {
            entry->used = ++cache->clock;
            *plan = &entry->plan;
            return ISGQ_SUCCESS;
        }
        if (entry->used < oldest->used)
            oldest = entry;
    }
    oldest->algorithm = NULL;
    IQ_TRY(algorithm->build(request, &oldest->plan));
    oldest->request = *request;
    oldest->algorithm = algorithm;
    oldest->used = ++cache->clock;
    *plan = &oldest->plan;
    return ISGQ_SUCCESS;
}
