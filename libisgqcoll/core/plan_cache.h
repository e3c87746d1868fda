/* SPDX-License-Identifier: Apache-2.0 */
/* A bounded cache of plans, least recently used out first. Used under the communicator's progress lock. */
#ifndef ISGQ_CORE_PLAN_CACHE_H
#define ISGQ_CORE_PLAN_CACHE_H

#include "plan/plan.h"

typedef struct iq_plan_entry {
    iq_plan_request_t request;
    const iq_algorithm_t *algorithm; /* NULL: free */
    uint64_t used;
    iq_plan_t plan;
} iq_plan_entry_t;

typedef struct iq_plan_cache {
    iq_plan_entry_t *entries;
    size_t count;
    uint64_t clock;
} iq_plan_cache_t;

isgq_result_t iq_plan_cache_init(iq_plan_cache_t *cache, size_t count);
void iq_plan_cache_fini(iq_plan_cache_t *cache);

/* The plan for a request, built if it is not there. It stays valid for the next 7 calls of this function at least. */
isgq_result_t iq_plan_cache_get(iq_plan_cache_t *cache, const iq_algorithm_t *algorithm, const iq_plan_request_t *request, const iq_plan_t **plan);

#endif
