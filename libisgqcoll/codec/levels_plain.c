/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Levels that do not depend on how a bucket's values are spread.
 *
 *   qsgd      a grid between -norm and +norm, the bucket's Euclidean norm or its largest magnitude   header: norm, f32
 *   natural   zero and powers of two                                                                 header: 0, one byte
 *
 * Both round at random and without bias (natural: below 2^127).
 */
#include "base/status.h"
#include "base/util.h"
#include "codec/convert.h"
#include "codec/levels.h"
#include "kernels/level_fit.h"

#include <string.h>

/* ---- qsgd ---- */

static uint32_t qsgd_top(const iq_codec_t *codec) { return iq_qsgd_top(codec->bits); }

static unsigned qsgd_symbols(const iq_codec_t *codec) { return qsgd_top(codec) + 1; }

static float euclidean_norm(const float *values, size_t count)
{
    iq_level_sum_t sum = {{0}};
    for (size_t i = 0; i < count; i++)
        sum.lane[i % IQ_LEVEL_LANES] += (double)values[i] * (double)values[i];
    return iq_euclidean_norm(iq_level_fold(&sum));
}

static void qsgd_encode(const iq_codec_t *codec, const iq_level_draw_t *draw, const float *values, size_t count, void *header,
                        uint16_t *codes)
{
    uint8_t narrow[IQ_CODEC_TILE];
    int32_t half = (int32_t)(qsgd_top(codec) / 2);
    float norm = codec->norm == IQ_NORM_L2 ? euclidean_norm(values, count) : iq_kernels()->absmax(values, count);
    norm = norm < IQ_LARGEST_NORM ? norm : IQ_LARGEST_NORM;
    iq_grid_t grid = {
        .inverse = iq_inverse_step(qsgd_top(codec), norm),
        .low = -half,
        .high = half,
        .stochastic = true,
        .stream = draw->stream,
        .rank = draw->rank,
        .seed = draw->seed,
        .call = draw->call,
    };
    memcpy(header, &norm, sizeof(norm));
    for (size_t i = 0; i < count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(count - i, IQ_CODEC_TILE);
        iq_kernels()->quantize(&grid, draw->first + i, values + i, n, narrow);
        for (size_t j = 0; j < n; j++)
            codes[i + j] = narrow[j];
    }
}

static isgq_result_t qsgd_decode(const iq_codec_t *codec, const iq_level_draw_t *draw, const void *header, const uint16_t *codes,
                                 size_t count, float *values)
{
    float norm;
    (void)draw;
    memcpy(&norm, header, sizeof(norm));
    if (iq_float_bits(norm) > iq_float_bits(IQ_LARGEST_NORM))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "quantizer 'qsgd': a norm of %g in a message", (double)norm);
    int32_t top = (int32_t)qsgd_top(codec);
    float unit = iq_half_step((uint32_t)top, norm);
    for (size_t i = 0; i < count; i++)
        values[i] = (float)(2 * codes[i] - top) * unit;
    return ISGQ_SUCCESS;
}

const iq_level_model_t iq_level_qsgd = {
    .name = "qsgd",
    .symbols = qsgd_symbols,
    .header_bytes = sizeof(float),
    .encode = qsgd_encode,
    .decode = qsgd_decode,
};

/* ---- natural ---- */

static unsigned natural_symbols(const iq_codec_t *codec)
{
    (void)codec;
    return 512;
}

static void natural_encode(const iq_codec_t *codec, const iq_level_draw_t *draw, const float *values, size_t count, void *header,
                           uint16_t *codes)
{
    uint32_t random24[IQ_CODEC_TILE];
    (void)codec;
    *(unsigned char *)header = 0;
    for (size_t i = 0; i < count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(count - i, IQ_CODEC_TILE);
        iq_level_random(draw, i, n, random24);
        for (size_t j = 0; j < n; j++)
            codes[i + j] = (uint16_t)iq_natural_code(values[i + j], random24[j]);
    }
}

static isgq_result_t natural_decode(const iq_codec_t *codec, const iq_level_draw_t *draw, const void *header, const uint16_t *codes,
                                    size_t count, float *values)
{
    int good = *(const unsigned char *)header == 0;
    (void)codec, (void)draw;
    for (size_t i = 0; i < count; i++) {
        good &= iq_natural_is_code(codes[i]);
        values[i] = iq_natural_value(codes[i]);
    }
    if (!good)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "quantizer 'natural': a code or header of a message that is none");
    return ISGQ_SUCCESS;
}

const iq_level_model_t iq_level_natural = {
    .name = "natural",
    .symbols = natural_symbols,
    .header_bytes = 1,
    .encode = natural_encode,
    .decode = natural_decode,
};
