/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a quantizer's canonical text to what its definition promises (docs/numerics.md): the error of one element, and the grid on
 * which perf_tally.c rounds for itself.
 */
#include "perf/perf.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PART_BYTES = 256, EXACT_RANKS = 8 /* sum=auto is exact up to so many */ };

double iq_perf_unit_roundoff(isgq_data_type_t type)
{
    switch (type) {
    case ISGQ_FLOAT16: return 0x1p-11;
    case ISGQ_BFLOAT16: return 0x1p-8;
    case ISGQ_FLOAT32: return 0x1p-24;
    default: return 0.0;
    }
}

void iq_perf_recipe(const char *text, const char *kind, char *recipe, size_t bytes)
{
    const char *at = strstr(text, kind);

    snprintf(recipe, bytes, "%s", at != NULL ? at + strlen(kind) : text);
    recipe[strcspn(recipe, ";")] = '\0';
}

static bool is_family(const char *recipe, const char *family)
{
    size_t length = strlen(family);

    return strncmp(recipe, family, length) == 0 && (recipe[length] == '\0' || recipe[length] == ':');
}

/* What stands behind `key` in "family:key=value,...", or NULL. */
static const char *setting(const char *recipe, const char *key)
{
    size_t length = strlen(key);

    for (const char *at = strchr(recipe, ':'); at != NULL; at = strchr(at + 1, ','))
        if (strncmp(at + 1, key, length) == 0 && at[1 + length] == '=')
            return at + 2 + length;
    return NULL;
}

static bool is_set(const char *recipe, const char *key, const char *value)
{
    const char *found = setting(recipe, key);

    return found != NULL && strncmp(found, value, strlen(value)) == 0;
}

double iq_perf_setting(const char *recipe, const char *key, double otherwise)
{
    const char *found = setting(recipe, key);

    return found != NULL ? strtod(found, NULL) : otherwise;
}

/* L: largest code on one side. One bit: -1/2 and 1/2. */
static double largest_code(unsigned bits) { return bits == 1 ? 0.5 : exp2(bits - 1.0) - 1.0; }

/* `isgq`, dense: the least error, 1 / L^2 for each rounding, among what the budget of bits on the wire allows. */
static iq_perf_grid_t budget_grid(double budget, int nranks)
{
    iq_perf_grid_t best = {.bits = 1, .bucket = 1024, .shared = true, .again = true};
    double least = INFINITY;

    for (unsigned bits = 1; bits <= 8; bits++) {
        double top = bits == 1 ? 1.0 : exp2(bits) - 2.0, scales = 32.0 / 1024.0;
        double back[] = {floor(log2(nranks * top)) + 1.0, bits + scales}; /* exact sums, or codes again */
        for (int again = 0; again <= 1; again++) {
            double error = (again ? 2.0 : 1.0) / (largest_code(bits) * largest_code(bits));
            if (scales + (bits + back[again]) / 2.0 > budget + 0.05 || error >= least)
                continue;
            least = error;
            best.bits = bits;
            best.again = again;
        }
    }
    return best;
}

static iq_perf_grid_t uniform_grid(const char *recipe, int nranks)
{
    iq_perf_grid_t grid = {.bits = (unsigned)iq_perf_setting(recipe, "bits", 4.0),
                           .bucket = is_set(recipe, "bucket", "tensor") ? 0 : (size_t)iq_perf_setting(recipe, "bucket", 1024.0),
                           .nearest = is_set(recipe, "rounding", "nearest"),
                           .shared = !is_set(recipe, "scale", "local")};

    grid.again =
        !grid.shared || is_set(recipe, "sum", "requantized") || (!is_set(recipe, "sum", "exact") && nranks > EXACT_RANKS);
    return grid;
}

/* The quantizer that a factored call uses on the ranks' own products. */
static void product_recipe(const char *text, char *recipe, size_t bytes)
{
    iq_perf_recipe(text, "dense=", recipe, bytes);
    if (is_family(text, "isgq"))
        snprintf(recipe, bytes, "uniform:bits=8");
    else if (is_family(text, "factor"))
        snprintf(recipe, bytes, "none");
}

iq_perf_promise_t iq_perf_promise(const iq_perf_case_t *test, const char *algorithm, int nranks)
{
    bool reduces = test->collective != IQ_PERF_ALLGATHER && test->collective != IQ_PERF_BROADCAST;
    bool product = test->collective == IQ_PERF_FACTORED;
    double parts = reduces ? nranks : 1.0, u = iq_perf_unit_roundoff(test->type->type), cast = 0.0;
    iq_perf_promise_t promise = {.parts = (int)parts};
    char recipe[PART_BYTES];

    if (product)
        product_recipe(test->quantizer_text, recipe, sizeof(recipe));
    else
        iq_perf_recipe(test->quantizer_text, "dense=", recipe, sizeof(recipe));
    if (is_family(recipe, "fp16"))
        cast = 0x1p-11;
    else if (is_family(recipe, "bf16"))
        cast = 0x1p-8;
    else if (is_family(recipe, "uniform"))
        promise.grid = uniform_grid(recipe, nranks);
    else if (is_family(recipe, "isgq"))
        promise.grid = budget_grid(iq_perf_setting(recipe, "bits", 4.0), nranks);
    if (test->collective == IQ_PERF_ALLGATHER)
        promise.grid.shared = false;
    if (test->collective == IQ_PERF_ALLGATHER || test->collective == IQ_PERF_REDUCE_SCATTER || strcmp(algorithm, "exchange") == 0)
        promise.grid.again = false;
    if (cast > 0.0) { /* each part is rounded once, the running sum at most once per part */
        promise.relative = (parts + 1.0) * cast;
        promise.absolute = (parts + 1.0) * 0x1p-25;
    }
    if (promise.grid.bits >
        0) /* each part is off by less than a step, the sum of them by a step of the largest sum there can be */
        promise.step = (promise.grid.nearest ? 0.5 : 1.0) * (promise.grid.again ? 2.0 : 1.0) * parts * (1.0 + 2.0 * u + 0x1p-20) /
                       largest_code(promise.grid.bits);
    promise.relative += (parts + 1.0) * 0x1p-23 + 2.0 * u; /* fp32 arithmetic, and the result's own type */
    promise.absolute += test->type->type == ISGQ_FLOAT16 ? 0x1p-24 : 0x1p-126;
    return promise;
}

double iq_perf_round_to(const iq_perf_grid_t *grid, double value, double max, double random)
{
    double half = largest_code(grid->bits), shift = grid->bits == 1 ? 0.5 : 0.0;

    if (max == 0.0)
        return 0.0;
    double y = value / max * half + shift, code = floor(y);
    code += grid->nearest ? y - code >= 0.5 : random < y - code;
    code = fmin(fmax(code, grid->bits == 1 ? 0.0 : -half), grid->bits == 1 ? 1.0 : half);
    return (code - shift) * max / half;
}
