/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Levels `mx`: integers of 4 or 8 bits times a power of two that a bucket of 32 shares, as in the microscaling formats with
 * integer elements (MXINT8, and the same with 4 bits). The power is the smallest with which no value is clipped.
 *
 *   header: [exponent + 127, one byte: 0..253]      codes: -7..7 or -127..127, plus 7 or 127
 */
#include "base/status.h"
#include "base/util.h"
#include "codec/convert.h"
#include "codec/levels.h"
#include "kernels/kernels.h"

#include <float.h>
#include <string.h>

enum {
    EXPONENT_BIAS = 127,
    EXPONENT_FIELD_MOST = 253 /* 2^126: the largest float is less than 4 of these */
};

/* The largest code on one side. */
static int32_t half_of(const iq_codec_t *codec) { return (1 << (codec->bits - 1)) - 1; }

static unsigned symbols(const iq_codec_t *codec) { return 2 * (unsigned)half_of(codec) + 1; }

/* The field of the smallest exponent e with most <= half * 2^e; 2^-127 is the finest step that there is. */
static uint32_t exponent_field(float most, int32_t half)
{
    uint32_t value = iq_float_bits(most), full = iq_float_bits((float)half);
    int32_t field = (int32_t)(value >> 23) - ((int32_t)(full >> 23) - EXPONENT_BIAS);
    field += (value & 0x7fffffu) > (full & 0x7fffffu);
    return (uint32_t)(field > 0 ? field : 0);
}

/* 2^exponent: below 2^-126 it is a denormal number. */
static float step_of(uint32_t field) { return iq_bits_float(field == 0 ? 0x400000u : field << 23); }

static void encode(const iq_codec_t *codec, const iq_level_draw_t *draw, const float *values, size_t count, void *header,
                   uint16_t *codes)
{
    uint8_t narrow[IQ_CODEC_TILE];
    int32_t half = half_of(codec);
    uint32_t field = exponent_field(iq_kernels()->absmax(values, count), half);
    iq_grid_t grid = {
        .inverse = 1.0f / step_of(field),
        .low = -half,
        .high = half,
        .stochastic = codec->rounding == IQ_ROUND_STOCHASTIC,
        .stream = draw->stream,
        .rank = draw->rank,
        .seed = draw->seed,
        .call = draw->call,
    };
    *(unsigned char *)header = (unsigned char)field;
    for (size_t i = 0; i < count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(count - i, IQ_CODEC_TILE);
        iq_kernels()->quantize(&grid, draw->first + i, values + i, n, narrow);
        for (size_t j = 0; j < n; j++)
            codes[i + j] = narrow[j];
    }
}

/* Four steps of 2^126 are beyond f32, to which a value just below may have been rounded. */
static isgq_result_t decode(const iq_codec_t *codec, const iq_level_draw_t *draw, const void *header, const uint16_t *codes,
                            size_t count, float *values)
{
    uint32_t field = *(const unsigned char *)header;
    (void)draw;
    if (field > EXPONENT_FIELD_MOST)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "quantizer 'mx': exponent %u above %d in a message", field, EXPONENT_FIELD_MOST);
    int32_t half = half_of(codec);
    float step = step_of(field);
    for (size_t i = 0; i < count; i++) {
        float value = (float)(codes[i] - half) * step;
        value = value < FLT_MAX ? value : FLT_MAX;
        values[i] = value > -FLT_MAX ? value : -FLT_MAX;
    }
    return ISGQ_SUCCESS;
}

const iq_level_model_t iq_level_mx = {
    .name = "mx",
    .symbols = symbols,
    .header_bytes = 1,
    .encode = encode,
    .decode = decode,
};
