/* SPDX-License-Identifier: Apache-2.0 */
/* A small table of different calls, in the order in which they came first; what does not fit any more is counted as such. */
#include "bindings/preload/record.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CALLS = 1024, WORTH_BYTES = 64 << 10 }; /* smaller sums cost latency, not bytes */

typedef struct counted {
    char collective[24], comm[IQ_RECORD_NAME], type[24], op[24];
    int nranks;
    uint64_t bytes, calls;
} counted_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static counted_t *counted;
static int ncounted;
static uint64_t lost; /* calls beyond the table */

static bool same(const counted_t *c, const iq_record_call_t *call)
{
    return c->bytes == call->bytes && c->nranks == call->nranks && strncmp(c->comm, call->comm, sizeof(c->comm) - 1) == 0 &&
           strcmp(c->collective, call->collective) == 0 && strcmp(c->type, call->type) == 0 && strcmp(c->op, call->op) == 0;
}

void iq_record_add(const iq_record_call_t *call)
{
    int i = 0;
    pthread_mutex_lock(&lock);
    if (counted == NULL)
        counted = calloc(CALLS, sizeof(*counted));
    while (counted != NULL && i < ncounted && !same(&counted[i], call))
        i++;
    if (counted == NULL || i == CALLS) {
        lost++;
    } else {
        counted_t *c = &counted[i];
        if (i == ncounted) {
            snprintf(c->collective, sizeof(c->collective), "%s", call->collective);
            snprintf(c->comm, sizeof(c->comm), "%s", call->comm);
            snprintf(c->type, sizeof(c->type), "%s", call->type);
            snprintf(c->op, sizeof(c->op), "%s", call->op);
            c->nranks = call->nranks;
            c->bytes = call->bytes;
            ncounted++;
        }
        c->calls++;
    }
    pthread_mutex_unlock(&lock);
}

static bool worth(const counted_t *c)
{
    return strcmp(c->collective, "allreduce") == 0 && strcmp(c->type, "f32") == 0 && c->nranks > 1 && c->bytes >= WORTH_BYTES &&
           (strcmp(c->op, "sum") == 0 || strcmp(c->op, "avg") == 0);
}

/*
 * Blanks and control characters, and what separates rules or has a meaning in patterns, become "?", which fits any one letter. A name that may have
 * lost its end ends in "*".
 */
static void pattern_of(const char *comm, char *pattern)
{
    snprintf(pattern, IQ_RECORD_NAME, "%s", comm);
    for (char *p = pattern; *p != '\0'; p++)
        if ((unsigned char)*p < ' ' || strchr(" ;#*?[]\\", *p) != NULL)
            *p = '?';
    if (strlen(pattern) == IQ_RECORD_NAME - 1)
        pattern[IQ_RECORD_NAME - 2] = '*';
}

/* A line of the table must stay one. */
static void write_name(FILE *file, const char *comm)
{
    for (; *comm != '\0'; comm++)
        fputc((unsigned char)*comm < ' ' ? '?' : *comm, file);
    fputc('\n', file);
}

/* One rule for each communicator: the smallest of its sums that are worth it names the range. */
static void propose(FILE *file, int i)
{
    char pattern[IQ_RECORD_NAME];
    uint64_t least = counted[i].bytes;
    for (int k = 0; k < ncounted; k++) {
        if (!worth(&counted[k]) || strcmp(counted[k].comm, counted[i].comm) != 0)
            continue;
        if (k < i)
            return; /* it was proposed then */
        least = counted[k].bytes < least ? counted[k].bytes : least;
    }
    pattern_of(counted[i].comm, pattern);
    fprintf(file, "quantize comm=%s type=f32 bytes=%llu- with=isgq:bits=4\n", pattern[0] != '\0' ? pattern : "*",
            (unsigned long long)least);
}

bool iq_record_write(const char *path, int rank)
{
    char name[256];
    bool any = false;
    snprintf(name, sizeof(name), "%s.%d", path, rank);
    FILE *file = fopen(name, "we");
    if (file == NULL)
        return false;
    pthread_mutex_lock(&lock);
    fprintf(file, "# What rank %d did:\n#\n#      calls         bytes  ranks  %-14s %-12s %-12s communicator\n", rank,
            "collective", "type", "operation");
    for (int i = 0; i < ncounted; i++) {
        fprintf(file, "# %10llu  %12llu  %5d  %-14s %-12s %-12s ", (unsigned long long)counted[i].calls,
                (unsigned long long)counted[i].bytes, counted[i].nranks, counted[i].collective, counted[i].type, counted[i].op);
        write_name(file, counted[i].comm);
    }
    if (lost > 0)
        fprintf(file, "# and %llu calls of more kinds than the %d that are told apart\n", (unsigned long long)lost, CALLS);
    fprintf(file, "#\n# A proposal. Sums that a solver compares or divides by must stay exact: exclude their communicators, or "
                  "name the others.\n");
    for (int i = 0; i < ncounted; i++) {
        if (!worth(&counted[i]))
            continue;
        propose(file, i);
        any = true;
    }
    if (!any)
        fprintf(file, "# (no sums of 32-bit floats of %d bytes or more were seen: nothing to gain)\n", WORTH_BYTES);
    pthread_mutex_unlock(&lock);
    return fclose(file) == 0;
}
