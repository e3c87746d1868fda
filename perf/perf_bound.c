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

double iq_perf_copy_bound(const iq_perf_setup_t *setup)
{
    size_t bytes = IQ_PERF_BOUND_BYTES;
    double seconds[COPIES];
    char *from = malloc(bytes), *to = malloc(bytes);

    if (from == NULL || to == NULL)
        iq_die(IQ_EXIT_FAILED, "rank %d: no memory for two buffers of %zu bytes", setup->rank, bytes);
    memset(to, 1, bytes);
    for (int i = 0; i < COPIES; i++) {
        memset(from, i, bytes);
        iq_perf_barrier(setup);
        double start = iq_perf_now();
        memcpy(to, from, bytes);
        seconds[i] = iq_perf_now() - start;
        __asm__ volatile("" : : "r"(to) : "memory"); /* the copy must happen */
    }
    iq_perf_combine(setup, ISGQ_MAX, seconds, COPIES);
    qsort(seconds, COPIES, sizeof(seconds[0]), ascending);
    free(from);
    free(to);
    return (double)bytes / seconds[COPIES / 2] * 1e-9;
}
