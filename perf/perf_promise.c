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

/* Codes of any length: the steps of short tensors, where lengths tell the most, may be so much coarser than those of codes of one length. */
#define CODED_STEPS 4.0

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

double iq_perf_promised_nmse(const char *quantizer_text)
{
    char recipe[PART_BYTES];

    iq_perf_recipe(quantizer_text, "factored=", recipe, sizeof(recipe));
    return is_family(recipe, "isgq") ? iq_perf_setting(recipe, "nmse", 0.0) : 0.0;
}

/* L: largest code on one side. One bit: -1/2 and 1/2. */
static double largest_code(unsigned bits) { return bits == 1 ? 0.5 : exp2(bits - 1.0) - 1.0; }

static double largest_of(const iq_perf_grid_t *grid)
{
    return grid->levels > 0 ? (double)grid->levels : largest_code(grid->bits);
}

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

/* The coder is the default, and the canonical text says where it is not there. */
static bool is_coded(const char *recipe) { return is_family(recipe, "isgq") && !is_set(recipe, "coding", "none"); }

/* Codes that are summed exactly under a scale of all ranks: of the tensor unless the text says otherwise. */
static iq_perf_grid_t summed_grid(const char *recipe, bool reduces, int nranks)
{
    iq_perf_grid_t grid = {.bits = 8, .shared = true, .bucket = (size_t)iq_perf_setting(recipe, "bucket", 0.0)};

    if (is_family(recipe, "terngrad")) {
        grid.levels = 1;
        grid.clip = reduces ? iq_perf_setting(recipe, "clip", 2.5) : 0.0; /* messages of their own carry maxima */
    } else if (is_family(recipe, "global-qsgd")) {
        grid.levels = (size_t)iq_perf_setting(recipe, "levels", 127.0);
        grid.l2 = reduces && is_set(recipe, "norm", "l2");
    } else { /* intsgd: all sums are as wide as one code */
        grid.levels = (size_t)largest_code((unsigned)iq_perf_setting(recipe, "bits", 8.0)) / (size_t)(reduces ? nranks : 1);
        grid.power_of_two = true;
    }
    return grid;
}

/* Powers of two of the largest magnitude, as many as codes can tell, some of them above it for sums. */
static iq_perf_grid_t power_grid(const char *recipe, bool reduces, int nranks)
{
    iq_perf_grid_t grid = {.bits = (unsigned)iq_perf_setting(recipe, "bits", 8.0),
                           .shared = true,
                           .bucket = (size_t)iq_perf_setting(recipe, "bucket", 0.0)};
    double last = exp2(grid.bits - 1.0) - 1.0, head = reduces && nranks > 1 ? ceil(log2(nranks)) + floor(last / 8.0) : 0.0;

    grid.smallest = exp2(head + 1.0 - last);
    return grid;
}

/* How far one rounded value can be off, in units of the largest magnitude in the tensor. */
static double step_of(const iq_perf_grid_t *grid, double parts, double elements)
{
    if (grid->smallest > 0.0) /* two of the same power make the next one, and so on up the tree */
        return 1.0 + exp2(ceil(log2(parts))) / parts + grid->smallest;
    double scale = grid->power_of_two ? 2.0
                   : grid->l2         ? sqrt(parts * (grid->bucket == 0 ? elements : (double)grid->bucket))
                                      : 1.0;

    return (grid->nearest ? 0.5 : 1.0) * scale / largest_of(grid) + (grid->clip > 0.0 ? 1.0 : 0.0);
}

double iq_perf_case_elements(const iq_perf_case_t *test, int nranks)
{
    double count = (double)test->count;

    return test->collective == IQ_PERF_REDUCE_SCATTER ? count * nranks
                                                      : count; /* an allgather's parts have scales of their own */
}

/* The quantizer that a factored call uses on the ranks' own products. */
static void product_recipe(const char *text, char *recipe, size_t bytes)
{
    iq_perf_recipe(text, "dense=", recipe, bytes);
    if (is_coded(text) && setting(text, "nmse") != NULL)
        snprintf(recipe, bytes, "isgq:nmse=%g", iq_perf_setting(text, "nmse", 1.0));
    else if (is_coded(text))
        snprintf(recipe, bytes, "isgq:bits=%g", fmin(iq_perf_setting(text, "bits", 4.0) + 4.0, 8.0));
    else if (is_family(text, "isgq"))
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
    bool levels = iq_perf_levels(recipe, &promise.grid);
    if (is_family(recipe, "fp16"))
        cast = 0x1p-11;
    else if (is_family(recipe, "bf16"))
        cast = 0x1p-8;
    else if (is_family(recipe, "uniform"))
        promise.grid = uniform_grid(recipe, nranks);
    else if (is_family(recipe, "terngrad") || is_family(recipe, "global-qsgd") || is_family(recipe, "intsgd"))
        promise.grid = summed_grid(recipe, reduces, nranks);
    else if (is_family(recipe, "global-qsgd-exp"))
        promise.grid = power_grid(recipe, reduces, nranks);
    else if (is_family(recipe, "isgq") && setting(recipe, "nmse") != NULL)
        promise.nmse = iq_perf_setting(recipe, "nmse", 1.0);
    else if (is_family(recipe, "isgq")) /* coding=zstd may not do worse than coding=none */
        promise.grid = budget_grid(iq_perf_setting(recipe, "bits", 4.0), nranks);
    if (test->collective == IQ_PERF_ALLGATHER)
        promise.grid.shared = false;
    if (test->collective == IQ_PERF_ALLGATHER || test->collective == IQ_PERF_REDUCE_SCATTER || strcmp(algorithm, "exchange") == 0)
        promise.grid.again = false;
    if (cast > 0.0) { /* each part is rounded once, the running sum at most once per part */
        promise.relative = (parts + 1.0) * cast;
        promise.absolute = (parts + 1.0) * 0x1p-25;
    }
    if (promise.nmse > 0.0) /* no value is off by more than the largest there is, of either rounding */
        promise.step = 2.0 * parts;
    else if (levels) /* each part is off by less than it and its rounded value can be apart, and so is the sum of them */
        promise.step = parts * ((1.0 + promise.grid.reach) * (promise.grid.again ? 1.0 + promise.grid.reach : 1.0));
    else if (promise.grid.bits >
             0) /* each part is off by less than a step, the sum of them by a step of the largest sum there can be */
        promise.step = step_of(&promise.grid, parts, iq_perf_case_elements(test, nranks)) * (promise.grid.again ? 2.0 : 1.0) *
                       parts * (1.0 + 2.0 * u + 0x1p-20) * (is_coded(recipe) ? CODED_STEPS : 1.0);
    promise.relative += (parts + 1.0) * 0x1p-23 + 2.0 * u; /* fp32 arithmetic, and the result's own type */
    promise.absolute += test->type->type == ISGQ_FLOAT16 ? 0x1p-24 : 0x1p-126;
    return promise;
}

double iq_perf_power(double value, double smallest, double random)
{
    double magnitude = fabs(value);

    if (magnitude < smallest)
        return random < magnitude / smallest ? copysign(smallest, value) : 0.0;
    if (magnitude < 0x1p-900)
        return 0.0;
    double power = exp2(floor(log2(magnitude)));
    return copysign(random < magnitude / power - 1.0 ? 2.0 * power : power, value);
}

double iq_perf_round_to(const iq_perf_grid_t *grid, double value, double max, double random)
{
    if (grid->smallest > 0.0) /* of the scale and not of 1 are the levels powers */
        return max == 0.0 ? 0.0 : max * iq_perf_power(value / max, grid->smallest, random);

    double half = largest_of(grid), shift = grid->bits == 1 ? 0.5 : 0.0;

    if (max == 0.0)
        return 0.0;
    double y = value / max * half + shift, code = floor(y);
    code += grid->nearest ? y - code >= 0.5 : random < y - code;
    code = fmin(fmax(code, grid->bits == 1 ? 0.0 : -half), grid->bits == 1 ? 1.0 : half);
    return (code - shift) * max / half;
}
