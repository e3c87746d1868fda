/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Levels fitted to a bucket's values.
 *
 *   onebit       v > 0 or not; the levels are the means of the two kinds                       header: lower, upper
 *   ef_sign      the sign (+ for zero) times the mean magnitude                                 header: magnitude
 *   bingrad_b    v at least the mean or not; the levels are the means of the two kinds          header: lower, upper
 *   bingrad_pb   -b or b: random rounding in between, clipped beyond; b = mean of |v| [|v| > b]  header: b
 *   orq          3, 5 or 9 levels that give unbiased rounding the least variance               header: the levels
 *
 * Headers are f32. Means are taken in double and rounded once; where the values are equal they are the level. bingrad_b and
 * bingrad_pb are BinGrad's, and orq is ORQ of An Xu, Zhouyuan Huo and Heng Huang, arXiv:2002.11082.
 */
#include "base/status.h"
#include "base/util.h"
#include "codec/convert.h"
#include "codec/float_sort.h"
#include "codec/levels.h"
#include "kernels/level_fit.h"

#include <math.h>
#include <string.h>

static unsigned two_symbols(const iq_codec_t *codec)
{
    (void)codec;
    return 2;
}

/* ---- two levels on either side of a threshold ---- */

/* Codes are 1 for values above the threshold, or for those on it as well; levels[code] is the mean of its values. */
static void split_at(double threshold, bool is_upper, const float *values, size_t count, float levels[2], uint16_t *codes)
{
    iq_level_sum_t sums[2] = {{{0}}};
    uint32_t counts[2] = {0, 0};
    for (size_t i = 0; i < count; i++) {
        unsigned code = (double)values[i] > threshold || (is_upper && (double)values[i] == threshold);
        codes[i] = (uint16_t)code;
        sums[code].lane[i % IQ_LEVEL_LANES] += (double)values[i];
        counts[code]++;
    }
    for (int code = 0; code <= 1; code++)
        levels[code] = iq_level_mean(iq_level_fold(&sums[code]), counts[code]);
}

static void onebit_encode(const iq_codec_t *codec, const iq_level_draw_t *draw, const float *values, size_t count, void *header,
                          uint16_t *codes)
{
    (void)codec, (void)draw;
    split_at(0.0, false, values, count, header, codes);
}

static void bingrad_b_encode(const iq_codec_t *codec, const iq_level_draw_t *draw, const float *values, size_t count, void *header,
                             uint16_t *codes)
{
    iq_level_sum_t sum = {{0}};
    float *levels = header;
    (void)codec, (void)draw;
    for (size_t i = 0; i < count; i++)
        sum.lane[i % IQ_LEVEL_LANES] += (double)values[i];
    split_at(iq_level_fold(&sum) / (double)count, true, values, count, levels, codes);
    if (levels[0] > levels[1]) /* no value below the mean: all are equal */
        levels[0] = levels[1];
}

static isgq_result_t pair_decode(const iq_codec_t *codec, const iq_level_draw_t *draw, const void *header, const uint16_t *codes,
                                 size_t count, float *values)
{
    const float *levels = header;
    (void)draw;
    IQ_TRY(iq_level_check(codec, levels, 2));
    for (size_t i = 0; i < count; i++)
        values[i] = levels[codes[i]];
    return ISGQ_SUCCESS;
}

const iq_level_model_t iq_level_onebit = {
    .name = "onebit",
    .symbols = two_symbols,
    .header_bytes = 2 * sizeof(float),
    .encode = onebit_encode,
    .decode = pair_decode,
};

const iq_level_model_t iq_level_bingrad_b = {
    .name = "bingrad-b",
    .symbols = two_symbols,
    .header_bytes = 2 * sizeof(float),
    .encode = bingrad_b_encode,
    .decode = pair_decode,
};

/* ---- a magnitude with either sign ---- */

static void ef_sign_encode(const iq_codec_t *codec, const iq_level_draw_t *draw, const float *values, size_t count, void *header,
                           uint16_t *codes)
{
    iq_level_sum_t sum = {{0}};
    (void)codec, (void)draw;
    for (size_t i = 0; i < count; i++) {
        sum.lane[i % IQ_LEVEL_LANES] += fabs((double)values[i]);
        codes[i] = values[i] >= 0.0f;
    }
    *(float *)header = iq_level_mean(iq_level_fold(&sum), (uint32_t)count);
}

/* Magnitudes that are above `at`: they come first then. Returns how many, and adds their sum. */
static size_t part_above(float *sizes, size_t count, float at, double grain, double *sum)
{
    size_t above = 0;
    for (size_t i = 0; i < count; i++) {
        float size = sizes[i];
        sizes[i] = sizes[above];
        sizes[above] = size;
        if (size > at) {
            *sum += iq_level_grained(size, grain);
            above++;
        }
    }
    return above;
}

/* The least float that is balanced, by halving what lies between one that is not and one that is; only magnitudes in between are
 * gone over again. */
static float balanced_magnitude(const float *values, size_t count)
{
    float room[IQ_LEVELS_BUCKET_MOST], *sizes = room;
    double beyond = 0.0, grain = iq_level_grain(iq_kernels()->absmax(values, count)); /* beyond: the sum of those above `high` */
    size_t left = count;
    int64_t low = -1, high = (int64_t)iq_float_bits(iq_kernels()->absmax(values, count));
    for (size_t i = 0; i < count; i++)
        sizes[i] = fabsf(values[i]);
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        double sum = beyond;
        size_t above = part_above(sizes, left, iq_bits_float((uint32_t)middle), grain, &sum);
        if (iq_is_balanced(sum, (uint32_t)count, iq_bits_float((uint32_t)middle))) {
            high = middle;
            beyond = sum;
            sizes += above;
            left -= above;
        } else {
            low = middle;
            left = above;
        }
    }
    return iq_balanced_magnitude((uint32_t)high, beyond, (uint32_t)count);
}

static void bingrad_pb_encode(const iq_codec_t *codec, const iq_level_draw_t *draw, const float *values, size_t count, void *header,
                              uint16_t *codes)
{
    uint32_t random24[IQ_CODEC_TILE];
    float most = balanced_magnitude(values, count);
    (void)codec;
    *(float *)header = most;
    for (size_t i = 0; i < count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(count - i, IQ_CODEC_TILE);
        iq_level_random(draw, i, n, random24);
        for (size_t j = 0; j < n; j++)
            codes[i + j] = random24[j] < iq_level_fraction(fminf(fmaxf(values[i + j], -most), most), -most, most);
    }
}

static isgq_result_t sign_decode(const iq_codec_t *codec, const iq_level_draw_t *draw, const void *header, const uint16_t *codes,
                                 size_t count, float *values)
{
    float most = *(const float *)header;
    (void)draw;
    const float levels[] = {-most, most};
    IQ_TRY(iq_level_check(codec, levels, 2));
    for (size_t i = 0; i < count; i++)
        values[i] = most == 0.0f ? 0.0f : levels[codes[i]];
    return ISGQ_SUCCESS;
}

const iq_level_model_t iq_level_ef_sign = {
    .name = "ef-sign",
    .symbols = two_symbols,
    .header_bytes = sizeof(float),
    .encode = ef_sign_encode,
    .decode = sign_decode,
};

const iq_level_model_t iq_level_bingrad_pb = {
    .name = "bingrad-pb",
    .symbols = two_symbols,
    .header_bytes = sizeof(float),
    .encode = bingrad_pb_encode,
    .decode = sign_decode,
};

/* ---- orq ---- */

enum { ORQ_MOST = 9 };

static unsigned orq_symbols(const iq_codec_t *codec) { return codec->levels; }

static size_t orq_header(const iq_codec_t *codec) { return codec->levels * sizeof(float); }

/* The first of the sorted values that is not below `level`, or that is above it. */
static size_t place_of(const float *sorted, size_t count, float level, bool above)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (sorted[middle] < level || (above && sorted[middle] == level))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/*
 * The level between two others that adds the least variance: as many values lie between it and `high` as random rounding from `low`
 * to `high` would round up.
 */
static float level_between(const float *sorted, size_t count, float low, float high)
{
    iq_level_sum_t sum = {{0}};
    size_t first = place_of(sorted, count, low, false), end = place_of(sorted, count, high, true);
    double width = (double)high - (double)low;
    if (width <= 0.0)
        return low;
    for (size_t i = first; i < end; i++)
        sum.lane[(i - first) % IQ_LEVEL_LANES] += (double)sorted[i] - (double)low;
    return sorted[iq_orq_place((uint32_t)first, (uint32_t)end, iq_level_fold(&sum), width)];
}

/* Intervals are halved until there are enough: 3, 5, 9 levels. */
static void fit_orq(const float *values, size_t count, unsigned nlevels, float *levels)
{
    float sorted[IQ_LEVELS_BUCKET_MOST];
    memcpy(sorted, values, count * sizeof(*sorted));
    iq_sort_floats(sorted, count);
    levels[0] = sorted[0];
    levels[nlevels - 1] = sorted[count - 1];
    for (unsigned step = nlevels - 1; step > 1; step /= 2) {
        for (unsigned i = 0; i + 1 < nlevels; i += step)
            levels[i + step / 2] = level_between(sorted, count, levels[i], levels[i + step]);
    }
}

static void orq_encode(const iq_codec_t *codec, const iq_level_draw_t *draw, const float *values, size_t count, void *header,
                       uint16_t *codes)
{
    uint32_t random24[IQ_CODEC_TILE];
    float *levels = header;
    fit_orq(values, count, codec->levels, levels);
    for (size_t i = 0; i < count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(count - i, IQ_CODEC_TILE);
        iq_level_random(draw, i, n, random24);
        for (size_t j = 0; j < n; j++) {
            uint32_t below = iq_level_below(levels, codec->levels, values[i + j]);
            uint32_t up = random24[j] < iq_level_fraction(values[i + j], levels[below], levels[below + 1]);
            codes[i + j] = (uint16_t)(below + up);
        }
    }
}

static isgq_result_t orq_decode(const iq_codec_t *codec, const iq_level_draw_t *draw, const void *header, const uint16_t *codes,
                                size_t count, float *values)
{
    const float *levels = header;
    (void)draw;
    IQ_TRY(iq_level_check(codec, levels, codec->levels));
    for (size_t i = 0; i < count; i++)
        values[i] = levels[codes[i]];
    return ISGQ_SUCCESS;
}

_Static_assert(ORQ_MOST * sizeof(float) <= IQ_LEVELS_HEADER_MOST, "levels of orq fit a header");

const iq_level_model_t iq_level_orq = {
    .name = "orq",
    .symbols = orq_symbols,
    .header = orq_header,
    .encode = orq_encode,
    .decode = orq_decode,
};
