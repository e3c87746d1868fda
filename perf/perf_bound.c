/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The speed that memory allows: every rank copies a buffer of its own at the same time. B of every table and of every comparison,
 * so its size never depends on the sweep.
 */
#include "perf/perf.h"
#include "tools/common/options.h"

#include <stdlib.h>
#include <string.h>

enum { COPIES = 7 };

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static char *take(const iq_perf_setup_t *setup, size_t bytes)
{
    char *memory = setup->device ? iq_perf_memory(setup, bytes) : malloc(bytes);

    if (memory == NULL)
        iq_die(IQ_EXIT_FAILED, "rank %d: no memory for two buffers of %zu bytes", setup->rank, bytes);
    return memory;
}

static void give_back(const iq_perf_setup_t *setup, char *memory)
{
    if (setup->device)
        iq_check(isgq_mem_free(memory, setup->comm), setup->rank, "isgq_mem_free");
    else
        free(memory);
}

/* Memory that nobody has written may not exist yet. `bytes`: a power of two, as is the block. */
static void touch(const iq_perf_setup_t *setup, char *memory, size_t bytes)
{
    char block[4096];

    memset(block, 1, sizeof(block));
    iq_perf_copy(setup, memory, block, sizeof(block));
    for (size_t done = sizeof(block); done < bytes; done *= 2)
        iq_perf_copy(setup, memory + done, memory, done);
}

double iq_perf_copy_bound(const iq_perf_setup_t *setup)
{
    size_t bytes = setup->bound_bytes;
    double seconds[COPIES];
    char *from = take(setup, bytes), *to = take(setup, bytes);

    touch(setup, from, bytes);
    touch(setup, to, bytes);
    for (int i = 0; i < COPIES; i++) {
        if (!setup->device)
            memset(from, i, bytes);
        iq_perf_barrier(setup);
        double start = iq_perf_now();
        iq_perf_copy(setup, to, from, bytes);
        seconds[i] = iq_perf_now() - start;
    }
    iq_perf_combine(setup, ISGQ_MAX, seconds, COPIES);
    qsort(seconds, COPIES, sizeof(seconds[0]), ascending);
    give_back(setup, from);
    give_back(setup, to);
    return (double)bytes / seconds[COPIES / 2] * 1e-9;
}
