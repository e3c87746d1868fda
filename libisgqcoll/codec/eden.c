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
#include "kernels/level_fit.h"

#include <string.h>

enum { HEADER_BYTES = sizeof(float) + sizeof(uint16_t) };

static unsigned symbols(const iq_codec_t *codec) { return 1u << codec->bits; }

/* All levels in ascending order: codes name them. */
static void list_levels(const iq_codec_t *codec, float *levels)
{
    for (uint32_t code = 0; code < symbols(codec); code++)
        levels[code] = iq_eden_level(codec->bits, code);
}

static iq_rotation_t rotation_of(const iq_level_draw_t *draw, uint32_t rank)
{
    return (iq_rotation_t){.seed = draw->seed,
                           .call = draw->call,
                           .rank = rank,
                           .is_result = draw->stream == IQ_STREAM_RESULT,
                           .first = draw->first};
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
        float border = iq_eden_border(levels[k - 1], levels[k]);
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
    float rotated[IQ_LEVELS_BUCKET_MOST], room[IQ_LEVELS_BUCKET_MOST], levels[IQ_EDEN_SYMBOLS_MOST];
    float multiplier = 0.0f, unit = iq_eden_unit(iq_kernels()->absmax(values, count)), inverse = 1.0f / unit;
    uint16_t rank = (uint16_t)draw->rank;
    iq_rotation_t rotation = rotation_of(draw, rank);
    for (size_t i = 0; i < count; i++)
        rotated[i] = values[i] * inverse;
    double square = sum_of_squares(rotated, count);
    if (square > 0.0) {
        list_levels(codec, levels);
        iq_rotate(&rotation, rotated, count, room);
        choose(levels, symbols(codec), rotated, count, iq_eden_scale((uint32_t)count, square), codes);
        multiplier = iq_eden_multiplier(square, product(levels, codes, rotated, count), unit);
    } else {
        memset(codes, 0, count * sizeof(*codes));
    }
    memcpy(header, &multiplier, sizeof(multiplier));
    memcpy((unsigned char *)header + sizeof(multiplier), &rank, sizeof(rank));
}

static isgq_result_t decode(const iq_codec_t *codec, const iq_level_draw_t *draw, const void *header, const uint16_t *codes,
                            size_t count, float *values)
{
    float room[IQ_LEVELS_BUCKET_MOST], levels[IQ_EDEN_SYMBOLS_MOST], multiplier;
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
    for (size_t i = 0; i < count; i++)
        values[i] = iq_eden_value(values[i], multiplier);
    return ISGQ_SUCCESS;
}

const iq_level_model_t iq_level_eden = {
    .name = "eden",
    .symbols = symbols,
    .header_bytes = HEADER_BYTES,
    .encode = encode,
    .decode = decode,
};
