/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Quantizers whose levels follow from a bucket's values, by their definitions (docs/numerics.md): what perf_tally.c rounds with.
 *
 * Doubles and plain loops, nothing of the library: what is compared here has been written twice. Random decisions are others than
 * the library's, so only sums over many elements can be compared.
 */
#include "perf/perf.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 8192 /* values of a bucket */ };

double iq_perf_roll(iq_perf_dice_t *dice) { return iq_perf_uniform(dice->seed, dice->rolled++); }

/* low or high, at random and without bias for values in between. */
static double between(iq_perf_dice_t *dice, double value, double low, double high)
{
    if (high <= low)
        return low;
    return iq_perf_roll(dice) < (value - low) / (high - low) ? high : low;
}

static double mean(const double *values, size_t count, bool of_magnitudes)
{
    double sum = 0.0;

    for (size_t i = 0; i < count; i++)
        sum += of_magnitudes ? fabs(values[i]) : values[i];
    return sum / (double)count;
}

/* Values on either side of a threshold become the mean of theirs. */
static void round_pair(double threshold, bool is_upper, double *values, size_t count)
{
    double sums[2] = {0}, counts[2] = {0};

    for (size_t i = 0; i < count; i++) {
        int upper = values[i] > threshold || (is_upper && values[i] == threshold);
        sums[upper] += values[i];
        counts[upper] += 1.0;
    }
    for (size_t i = 0; i < count; i++) {
        int upper = values[i] > threshold || (is_upper && values[i] == threshold);
        values[i] = sums[upper] / counts[upper];
    }
}

static void round_onebit(const iq_perf_grid_t *grid, iq_perf_dice_t *dice, double *values, size_t count)
{
    (void)grid, (void)dice;
    round_pair(0.0, false, values, count);
}

static void round_bingrad_b(const iq_perf_grid_t *grid, iq_perf_dice_t *dice, double *values, size_t count)
{
    (void)grid, (void)dice;
    round_pair(mean(values, count, false), true, values, count);
}

static void round_ef_sign(const iq_perf_grid_t *grid, iq_perf_dice_t *dice, double *values, size_t count)
{
    double magnitude = mean(values, count, true);

    (void)grid, (void)dice;
    for (size_t i = 0; i < count; i++)
        values[i] = values[i] >= 0.0 ? magnitude : -magnitude;
}

/* b = mean of |v| [|v| > b], by bisection: the left side rises with b, the right one falls. */
static void round_bingrad_pb(const iq_perf_grid_t *grid, iq_perf_dice_t *dice, double *values, size_t count)
{
    double low = 0.0, high = 0.0;

    (void)grid;
    for (size_t i = 0; i < count; i++)
        high = fmax(high, fabs(values[i]));
    for (int step = 0; step < 60; step++) {
        double middle = 0.5 * (low + high), sum = 0.0;
        for (size_t i = 0; i < count; i++)
            sum += fabs(values[i]) > middle ? fabs(values[i]) : 0.0;
        *(sum / (double)count > middle ? &low : &high) = middle;
    }
    for (size_t i = 0; i < count; i++)
        values[i] = between(dice, fmin(fmax(values[i], -high), high), -high, high);
}

/* ---- orq ---- */

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* So many of the values between low and high are above the level as random rounding to these two would round up. */
static double level_between(const double *sorted, size_t count, double low, double high)
{
    double up = 0.0;
    size_t first = 0, end = count;

    while (first < count && sorted[first] < low)
        first++;
    while (end > first && sorted[end - 1] > high)
        end--;
    if (high <= low || end == first)
        return low;
    for (size_t i = first; i < end; i++)
        up += (sorted[i] - low) / (high - low);
    double place = floor((double)end - up);
    return sorted[(size_t)fmin(fmax(place, (double)first), (double)(end - 1))];
}

static void round_orq(const iq_perf_grid_t *grid, iq_perf_dice_t *dice, double *values, size_t count)
{
    double sorted[MOST], levels[16];
    size_t last = grid->levels - 1;

    memcpy(sorted, values, count * sizeof(double));
    qsort(sorted, count, sizeof(double), ascending);
    levels[0] = sorted[0];
    levels[last] = sorted[count - 1];
    for (size_t step = last; step > 1; step /= 2)
        for (size_t i = 0; i < last; i += step)
            levels[i + step / 2] = level_between(sorted, count, levels[i], levels[i + step]);
    for (size_t i = 0; i < count; i++) {
        size_t below = 0;
        while (below + 2 <= last && values[i] >= levels[below + 1])
            below++;
        values[i] = between(dice, values[i], levels[below], levels[below + 1]);
    }
}

/* ---- grids that do not depend on how values are spread ---- */

static void round_qsgd(const iq_perf_grid_t *grid, iq_perf_dice_t *dice, double *values, size_t count)
{
    double norm = 0.0, half = exp2(grid->bits - 1.0) - 1.0;

    for (size_t i = 0; i < count; i++)
        norm = grid->l2 ? norm + values[i] * values[i] : fmax(norm, fabs(values[i]));
    double step = (grid->l2 ? sqrt(norm) : norm) / half;
    for (size_t i = 0; i < count && step > 0.0; i++)
        values[i] = between(dice, values[i], step * floor(values[i] / step), step * (floor(values[i] / step) + 1.0));
}

static void round_natural(const iq_perf_grid_t *grid, iq_perf_dice_t *dice, double *values, size_t count)
{
    (void)grid;
    for (size_t i = 0; i < count; i++) {
        double magnitude = fabs(values[i]);
        if (magnitude < 0x1p-120)
            continue;
        double power = exp2(floor(log2(magnitude)));
        values[i] = copysign(between(dice, magnitude, power, 2.0 * power), values[i]);
    }
}

/* Whole multiples of a power of two: the smallest with which no code is beyond the last. */
static void round_mx(const iq_perf_grid_t *grid, iq_perf_dice_t *dice, double *values, size_t count)
{
    double most = 0.0, half = exp2(grid->bits - 1.0) - 1.0;

    for (size_t i = 0; i < count; i++)
        most = fmax(most, fabs(values[i]));
    if (most < 0x1p-110)
        return;
    double step = exp2(ceil(log2(most / half)));
    for (size_t i = 0; i < count; i++) {
        double low = step * floor(values[i] / step);
        values[i] = grid->nearest ? step * floor(values[i] / step + 0.5) : between(dice, values[i], low, low + step);
    }
}

/* ---- eden ---- */

/* Centroids of the positive half of a normal distribution, the best ones for so many. */
static const double centroids[5][8] = {
    {0},
    {0.79788},
    {0.45278, 1.51042},
    {0.24509, 0.75601, 1.34391, 2.15195},
    {0.12840, 0.38805, 0.65676, 0.94234, 1.25623, 1.61805, 2.06902, 2.73259},
};

static void hadamard(double *values, size_t count)
{
    for (size_t half = 1; half < count; half *= 2)
        for (size_t i = 0; i < count; i++)
            if ((i & half) == 0) {
                double sum = values[i] + values[i + half];
                values[i + half] = values[i] - values[i + half];
                values[i] = sum;
            }
    for (size_t i = 0; i < count; i++)
        values[i] /= sqrt((double)count);
}

double iq_perf_normal_level(unsigned bits, double value)
{
    double best = centroids[bits][0];

    for (size_t i = 1; i < (size_t)1 << (bits - 1); i++)
        if (fabs(fabs(value) - centroids[bits][i]) < fabs(fabs(value) - best))
            best = centroids[bits][i];
    return copysign(best, value);
}

/* A random rotation, the nearest centroids, and the scale that makes it right in the mean. */
static void round_eden(const iq_perf_grid_t *grid, iq_perf_dice_t *dice, double *values, size_t count)
{
    double rotated[2 * MOST] = {0}, signs[MOST], codes[2 * MOST], squares = 0.0, along = 0.0;
    size_t padded = 1;

    while (padded < count)
        padded *= 2;
    for (size_t i = 0; i < count; i++) {
        signs[i] = iq_perf_roll(dice) < 0.5 ? -1.0 : 1.0;
        rotated[i] = signs[i] * values[i];
        squares += values[i] * values[i];
    }
    if (squares == 0.0)
        return;
    hadamard(rotated, padded);
    double unit = sqrt((double)padded / squares);
    for (size_t i = 0; i < padded; i++) {
        codes[i] = iq_perf_normal_level(grid->bits, rotated[i] * unit);
        along += codes[i] * rotated[i];
    }
    hadamard(codes, padded);
    for (size_t i = 0; i < count; i++)
        values[i] = signs[i] * codes[i] * squares / along;
}

/* ---- the table ---- */

static const struct family {
    const char *name;
    iq_perf_round_fn round;
    unsigned bits, levels;
    size_t bucket;
    double
        reach; /* |rounded value| is at most so many times the bucket's largest magnitude; 0: nothing can be said of one element */
    bool fixed; /* nothing is random */
} families[] = {
    {"onebit", round_onebit, 1, 2, 2048, 1.0, true},       {"ef-sign", round_ef_sign, 1, 2, 2048, 1.0, true},
    {"bingrad-b", round_bingrad_b, 1, 2, 2048, 1.0, true}, {"bingrad-pb", round_bingrad_pb, 1, 2, 2048, 1.0, false},
    {"orq-3", round_orq, 2, 3, 2048, 1.0, false},          {"orq-5", round_orq, 3, 5, 2048, 1.0, false},
    {"orq-9", round_orq, 4, 9, 2048, 1.0, false},          {"natural", round_natural, 9, 0, 2048, 2.0, false},
    {"qsgd", round_qsgd, 4, 0, 512, 1.0, false},           {"mx", round_mx, 8, 0, 32, 2.0, false},
    {"drive", round_eden, 1, 0, 1024, 0.0, false},         {"eden", round_eden, 4, 0, 1024, 0.0, false},
};

bool iq_perf_levels(const char *recipe, iq_perf_grid_t *grid)
{
    size_t length = strcspn(recipe, ":");

    for (size_t i = 0; i < sizeof(families) / sizeof(families[0]); i++) {
        const struct family *family = &families[i];
        if (strlen(family->name) != length || strncmp(recipe, family->name, length) != 0)
            continue;
        *grid = (iq_perf_grid_t){.round = family->round,
                                 .bits = (unsigned)iq_perf_setting(recipe, "bits", family->bits),
                                 .levels = family->levels,
                                 .bucket = (size_t)iq_perf_setting(recipe, "bucket", (double)family->bucket),
                                 .l2 = strcmp(family->name, "qsgd") == 0 && strstr(recipe, "norm=max") == NULL,
                                 .nearest = strstr(recipe, "rounding=nearest") != NULL,
                                 .fixed = family->fixed,
                                 .again = true};
        double norm = grid->l2 ? sqrt((double)grid->bucket) : 1.0; /* of values up to 1 */
        grid->reach = family->reach == 0.0 ? INFINITY : family->reach * norm;
        return true;
    }
    return false;
}
