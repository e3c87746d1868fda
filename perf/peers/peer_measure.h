/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every peer's program does, so that all are measured alike and as isgq_perf measures: fp32 sum, malloc'ed buffers, the input refilled
 * between iterations, a barrier, the clock, the call, the clock. Then one more call into an output full of 0xff bytes, which is checked.
 *
 * A program is called as PROGRAM FOLDER WARMUP ITERATIONS BYTES... and each rank writes FOLDER/rank.N, one line a measurement:
 *   bound BYTES seconds...               a copy of its own buffer in each iteration, all ranks at once: isgq_perf's bound B
 *   size BYTES wrong nmse seconds...     the call, in each iteration
 * Who reads them takes the slowest rank of each iteration. C and C++.
 */
#ifndef ISGQ_PERF_PEER_MEASURE_H
#define ISGQ_PERF_PEER_MEASURE_H

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PEER_BOUND_BYTES = 64 << 20, PEER_BOUND_COPIES = 7, PEER_PERIOD = 1000 };

typedef struct peer {
    int rank, nranks;
    bool exact; /* sums of small integers must be right to the bit */
    void *state;
    void (*allreduce)(void *state, float *send, float *receive, size_t count);
    void (*barrier)(void *state);
} peer_t;

static inline double peer_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static inline void peer_die(const char *what)
{
    fprintf(stderr, "%s\n", what);
    exit(1);
}

/* A rank's number and the like come from who starts the ranks; 0 is not among the answers to a missing one. */
static inline const char *peer_environment(const char *name)
{
    const char *text = getenv(name);

    if (text == NULL)
        fprintf(stderr, "%s is not set: perf/compare starts this program\n", name);
    if (text == NULL)
        exit(2);
    return text;
}

static inline float *peer_buffer(size_t bytes)
{
    float *memory = (float *)malloc(bytes + 1);

    if (memory == NULL)
        peer_die("no memory");
    memset(memory, 0, bytes + 1);
    return memory;
}

static inline void peer_bound(const peer_t *peer, FILE *to)
{
    float *from = peer_buffer(PEER_BOUND_BYTES), *copy = peer_buffer(PEER_BOUND_BYTES);

    fprintf(to, "bound %d", PEER_BOUND_BYTES);
    for (int i = 0; i < PEER_BOUND_COPIES; i++) {
        memset(from, i, PEER_BOUND_BYTES);
        peer->barrier(peer->state);
        double start = peer_now();
        memcpy(copy, from, PEER_BOUND_BYTES);
        fprintf(to, " %.9f", peer_now() - start);
    }
    fprintf(to, "\n");
    free(from);
    free(copy);
}

static inline float peer_value(size_t element, int rank) { return (float)((element + (size_t)rank) % PEER_PERIOD); }

/* Elements that are wrong, and the squared error in proportion: the inputs repeat, so a period of exact sums is all there is. */
static inline size_t peer_wrong(const peer_t *peer, const float *result, size_t count, double *nmse)
{
    double exact[PEER_PERIOD] = {0}, error = 0, energy = 1e-300;
    size_t wrong = 0;

    for (int rank = 0; rank < peer->nranks; rank++)
        for (size_t j = 0; j < PEER_PERIOD; j++)
            exact[j] += (double)peer_value(j, rank);
    for (size_t j = 0; j < count; j++) {
        double right = exact[j % PEER_PERIOD], off = (double)result[j] - right;
        wrong += peer->exact ? !(off == 0) : !isfinite(off);
        error += off * off;
        energy += right * right;
    }
    *nmse = error / energy;
    return wrong;
}

static inline void peer_size(const peer_t *peer, FILE *to, size_t bytes, int warmup, int iterations)
{
    size_t count = bytes / sizeof(float), wrong;
    float *pristine = peer_buffer(bytes), *send = peer_buffer(bytes), *receive = peer_buffer(bytes);
    double *seconds = (double *)malloc((size_t)(iterations + 1) * sizeof(double)), nmse;

    for (size_t j = 0; j < count; j++)
        pristine[j] = peer_value(j, peer->rank);
    for (int i = -warmup; i < iterations; i++) {
        memcpy(send, pristine, bytes);
        peer->barrier(peer->state);
        double start = peer_now();
        peer->allreduce(peer->state, send, receive, count);
        seconds[i < 0 ? 0 : i] = peer_now() - start;
    }
    memcpy(send, pristine, bytes);
    memset(receive, 0xff, bytes);
    peer->allreduce(peer->state, send, receive, count);
    wrong = peer_wrong(peer, receive, count, &nmse);
    fprintf(to, "size %zu %zu %.6g", bytes, wrong, nmse);
    for (int i = 0; i < iterations; i++)
        fprintf(to, " %.9f", seconds[i]);
    fprintf(to, "\n");
    fflush(to);
    free(pristine);
    free(send);
    free(receive);
    free(seconds);
}

static inline int peer_measure(const peer_t *peer, int argc, char **argv)
{
    char path[4096];
    FILE *to;

    if (argc < 5)
        peer_die("usage: PROGRAM FOLDER WARMUP ITERATIONS BYTES...");
    snprintf(path, sizeof(path), "%s/rank.%d", argv[1], peer->rank);
    to = fopen(path, "w");
    if (to == NULL)
        peer_die("cannot write to the folder");
    peer_bound(peer, to);
    for (int i = 4; i < argc; i++)
        peer_size(peer, to, strtoull(argv[i], NULL, 10), (int)strtol(argv[2], NULL, 10), (int)strtol(argv[3], NULL, 10));
    return fclose(to) == 0 ? 0 : 1;
}

#endif
