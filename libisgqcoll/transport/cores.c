/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranks and hardware threads are matched as Kuhn does it: who finds all of its own taken asks their owners to move elsewhere. Where sets are equal or
 * disjoint nobody has to move.
 */
#include "transport/cores.h"

#include "base/util.h"

#include <sched.h>
#include <stddef.h>
#include <string.h>

#define KERNEL_CORES (1 << 20) /* no kernel has more */

iq_core_set_t iq_core_set(void)
{
    iq_core_set_t found = {{0}};
    bool read = false;
    for (int cpus = IQ_CORES; !read && cpus <= KERNEL_CORES; cpus *= 2) { /* the set grows until the kernel's fits */
        size_t bytes = CPU_ALLOC_SIZE(cpus);
        cpu_set_t *set = CPU_ALLOC(cpus);
        read = set != NULL && sched_getaffinity(0, bytes, set) == 0;
        for (int cpu = 0; read && cpu < cpus; cpu++)
            if (CPU_ISSET_S((size_t)cpu, bytes, set))
                found.words[cpu % IQ_CORES / 64] |= 1ull << cpu % 64;
        CPU_FREE(set);
    }
    if (!read)
        memset(&found, 0xff, sizeof(found));
    return found;
}

typedef struct matching {
    const iq_core_set_t *sets;
    int owner[IQ_CORES]; /* -1: free */
    iq_core_set_t asked; /* in this search */
} matching_t;

/* A core of `rank`'s set that is free or has not been asked for in this search; -1 if there is none. */
static int candidate(const matching_t *matching, int rank, bool free_only)
{
    for (int word = 0; word < IQ_CORES / 64; word++) {
        uint64_t left = matching->sets[rank].words[word] & ~matching->asked.words[word];
        for (; left != 0; left &= left - 1) {
            int core = word * 64 + __builtin_ctzll(left);
            if (!free_only || matching->owner[core] < 0)
                return core;
        }
    }
    return -1;
}

static bool place(matching_t *matching, int rank)
{
    int core = candidate(matching, rank, true);
    while (core < 0) {
        core = candidate(matching, rank, false);
        if (core < 0)
            return false;
        matching->asked.words[core / 64] |= 1ull << core % 64;
        if (!place(matching, matching->owner[core]))
            core = -1;
    }
    matching->owner[core] = rank;
    return true;
}

bool iq_cores_suffice(const iq_core_set_t *sets, int count)
{
    matching_t matching = {.sets = sets};
    for (int core = 0; core < IQ_CORES; core++)
        matching.owner[core] = -1;
    for (int rank = 0; rank < count; rank++) {
        matching.asked = (iq_core_set_t){{0}};
        if (count > IQ_CORES || !place(&matching, rank))
            return false;
    }
    return true;
}
