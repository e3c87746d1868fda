/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What results are measured against: the error that a quantizer's definition allows, and the speed that memory allows.
 */
#include "perf/perf.h"
#include "tools/common/options.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PART_BYTES = 256 };

double iq_perf_unit_roundoff(isgq_data_type_t type)
{
    switch (type) {
    case ISGQ_FLOAT16: return 0x1p-11;
    case ISGQ_BFLOAT16: return 0x1p-8;
    case ISGQ_FLOAT32: return 0x1p-24;
    default: return 0.0;
    }
}

/* The recipe for one kind of call in "dense=...;factored=...", or the whole text. */
static void take_part(const char *text, const char *kind, char *part, size_t bytes)
{
    const char *at = strstr(text, kind);

    snprintf(part, bytes, "%s", at != NULL ? at + strlen(kind) : text);
    part[strcspn(part, ";")] = '\0';
}

static bool is_family(const char *text, const char *family)
{
    size_t length = strlen(family);

    return strncmp(text, family, length) == 0 && (text[length] == '\0' || text[length] == ':');
}

/* The number behind `key` in "family:key=number,...", or `otherwise`. */
static double setting(const char *text, const char *key, double otherwise)
{
    size_t length = strlen(key);

    for (const char *at = strchr(text, ':'); at != NULL; at = strchr(at + 1, ','))
        if (strncmp(at + 1, key, length) == 0 && at[1 + length] == '=')
            return strtod(at + 2 + length, NULL);
    return otherwise;
}

/* Spacing of codes of so many bits, for values up to 1. One bit: -1 and 1. */
static double code_step(double bits) { return bits < 2.0 ? 2.0 : 1.0 / (exp2(floor(bits) - 1.0) - 1.0); }

iq_perf_bound_t iq_perf_bound(const char *quantizer_text, isgq_data_type_t type, int parts, int nranks)
{
    double u = 0.0, bits = 0.0;
    iq_perf_bound_t bound = {0};
    char text[PART_BYTES];

    take_part(quantizer_text, "dense=", text, sizeof(text));
    if (is_family(text, "fp16"))
        u = 0x1p-11;
    else if (is_family(text, "bf16"))
        u = 0x1p-8;
    else if (is_family(text, "uniform"))
        bits = setting(text, "bits", 1.0);
    else if (is_family(text, "isgq")) /* a budget for both phases: the exact sum may take log2 of the ranks, headers a bit */
        bits = fmax(1.0, floor(setting(text, "bits", 1.0)) - ceil(0.5 * log2(nranks)) - 1.0);
    if (u > 0.0) { /* each part is rounded once, the running sum at most once per part */
        bound.relative = (parts + 1) * u;
        bound.absolute = (parts + 1) * 0x1p-25;
    }
    if (bits > 0.0) /* each part is off by less than a step, the requantized sum by a step of parts * max */
        bound.step = 2.0 * parts * code_step(bits);
    bound.relative += (parts + 1) * 0x1p-23 + 2.0 * iq_perf_unit_roundoff(type); /* fp32 arithmetic, and the result's own type */
    bound.absolute += type == ISGQ_FLOAT16 ? 0x1p-24 : 0x1p-126;
    return bound;
}

iq_perf_factor_promise_t iq_perf_factor_promise(const char *quantizer_text, size_t m, size_t n)
{
    iq_perf_factor_promise_t promise = {3.0, 3.0, 1.0};
    char text[PART_BYTES];
    unsigned x, delta;

    take_part(quantizer_text, "factored=", text, sizeof(text));
    const char *width = strstr(text, "width=");
    if (width != NULL && sscanf(width, "width=%u/%u", &x, &delta) == 2) {
        promise.levels_x = exp2(x - 1.0) - 1.0;
        promise.levels_delta = exp2(delta - 1.0) - 1.0;
    } else { /* a budget can always be met by 3-bit codes for all rows and a keep probability */
        double cost = 4.0 + 40.0 / (double)(m + n);
        promise.keep = fmin(1.0, setting(text, "bits", 1.0) / cost);
    }
    return promise;
}

enum { COPIES = 7 };

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

double iq_perf_copy_bound(const iq_perf_setup_t *setup)
{
    size_t bytes = setup->bound_bytes;
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
