/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Levels `eden` (1 to 4 bits; with one bit it is DRIVE): a bucket is rotated at random, after which its values are about normal
 * whatever they were, and go to the nearest of the 2^bits levels that serve the normal distribution best (Lloyd-Max). Decoding
 * rotates back and multiplies with
 *
 *   |x|^2 / <levels, rotated x>
 *
 * which makes the decoded vector's component along x just |x|: unbiased over rotations, where the nearest level itself shrinks.
 *
 *   header: [multiplier, f32][rank whose rotation it is, u16]
 */
#include "base/status.h"
#include "base/util.h"
#include "codec/levels.h"
#include "kernels/hadamard.h"
#include "kernels/kernels.h"
#include "kernels/level_math.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { HEADER_BYTES = sizeof(float) + sizeof(uint16_t) };

#define LEVELS_MOST 16

/* The levels above zero; those below are the same. */
static const float upper_levels[][LEVELS_MOST / 2] = {
    {0.7978845608f},
    {0.4527800346f, 1.5104176085f},
    {0.2450941789f, 0.7560052812f, 1.3439092785f, 2.1519457045f},
    {0.1283950299f, 0.3880482995f, 0.6567591185f, 0.9423404565f, 1.2562311973f, 1.6180463860f, 2.0690172265f, 2.7325895710f},
};

static unsigned symbols(const iq_codec_t *codec) { return 1u << codec->bits; }

/* All levels in ascending order: codes name them. */
static void list_levels(const iq_codec_t *codec, float *levels)
{
    size_t half = symbols(codec) / 2;
    for (size_t i = 0; i < half; i++) {
        levels[half + i] = upper_levels[codec->bits - 1][i];
        levels[half - 1 - i] = -upper_levels[codec->bits - 1][i];
    }
}

static iq_rotation_t rotation_of(const iq_level_draw_t *draw, uint32_t rank)
{
    return (iq_rotation_t){.seed = draw->seed,
                           .call = draw->call,
                           .rank = rank,
                           .is_result = draw->stream == IQ_STREAM_RESULT,
                           .first = draw->first};
}

/* A power of two near the largest magnitude, with a finite inverse: sums of any values divided by it stay small. */
static float unit_of(const float *values, size_t count)
{
    uint32_t exponent = iq_float_bits(iq_kernels()->absmax(values, count)) >> 23;
    exponent = exponent < 1 ? 1 : exponent > 253 ? 253 : exponent;
    return iq_bits_float(exponent << 23);
}

static double sum_of_squares(const float *values, size_t count)
{
    iq_level_sum_t sum = {{0}};
    for (size_t i = 0; i < count; i++)
        sum.lane[i % IQ_LEVEL_LANES] += (double)values[i] * (double)values[i];
    return iq_level_fold(&sum);
}

/* The nearest level of every value times `scale`. */
static void choose(const float *levels, size_t nlevels, const float *values, size_t count, float scale, uint16_t *codes)
{
    for (size_t i = 0; i < count; i++)
        codes[i] = 0;
    for (size_t k = 1; k < nlevels; k++) {
        float border = 0.5f * (levels[k - 1] + levels[k]);
        for (size_t i = 0; i < count; i++)
            codes[i] = (uint16_t)(codes[i] + (values[i] * scale > border));
    }
}

/* <levels, values> */
static double product(const float *levels, const uint16_t *codes, const float *values, size_t count)
{
    iq_level_sum_t sum = {{0}};
    for (size_t i = 0; i < count; i++)
        sum.lane[i % IQ_LEVEL_LANES] += (double)levels[codes[i]] * (double)values[i];
    return iq_level_fold(&sum);
}

static void encode(const iq_codec_t *codec, const iq_level_draw_t *draw, const float *values, size_t count, void *header,
                   uint16_t *codes)
{
    float rotated[IQ_LEVELS_BUCKET_MOST], room[IQ_LEVELS_BUCKET_MOST], levels[LEVELS_MOST];
    float multiplier = 0.0f, unit = unit_of(values, count), inverse = 1.0f / unit;
    uint16_t rank = (uint16_t)draw->rank;
    iq_rotation_t rotation = rotation_of(draw, rank);
    for (size_t i = 0; i < count; i++)
        rotated[i] = values[i] * inverse;
    double square = sum_of_squares(rotated, count);
    if (square > 0.0) {
        list_levels(codec, levels);
        iq_rotate(&rotation, rotated, count, room);
        choose(levels, symbols(codec), rotated, count, (float)sqrt((double)count / square), codes);
        double exact = square / product(levels, codes, rotated, count) * (double)unit;
        multiplier = (float)fmin(exact, (double)FLT_MAX);
    } else {
        memset(codes, 0, count * sizeof(*codes));
    }
    memcpy(header, &multiplier, sizeof(multiplier));
    memcpy((unsigned char *)header + sizeof(multiplier), &rank, sizeof(rank));
}

static isgq_result_t decode(const iq_codec_t *codec, const iq_level_draw_t *draw, const void *header, const uint16_t *codes,
                            size_t count, float *values)
{
    float room[IQ_LEVELS_BUCKET_MOST], levels[LEVELS_MOST], multiplier;
    uint16_t rank;
    memcpy(&multiplier, header, sizeof(multiplier));
    memcpy(&rank, (const unsigned char *)header + sizeof(multiplier), sizeof(rank));
    if (iq_float_bits(multiplier) >= 0x7f800000u)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "quantizer 'eden': a multiplier of %g in a message", (double)multiplier);
    if (multiplier == 0.0f) {
        memset(values, 0, count * sizeof(*values));
        return ISGQ_SUCCESS;
    }
    iq_rotation_t rotation = rotation_of(draw, rank);
    list_levels(codec, levels);
    for (size_t i = 0; i < count; i++)
        values[i] = levels[codes[i]];
    iq_rotate_back(&rotation, values, count, room);
    for (size_t i = 0; i < count; i++) {
        float value = values[i] * multiplier;
        value = value < FLT_MAX ? value : FLT_MAX;
        values[i] = value > -FLT_MAX ? value : -FLT_MAX;
    }
    return ISGQ_SUCCESS;
}

const iq_level_model_t iq_level_eden = {
    .name = "eden",
    .symbols = symbols,
    .header_bytes = HEADER_BYTES,
    .encode = encode,
    .decode = decode,
};
