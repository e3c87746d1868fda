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
#include "kernels/level_math.h"

static unsigned symbols(const iq_codec_t *codec) { return 2 * (unsigned)iq_mx_half(codec->bits) + 1; }

static void encode(const iq_codec_t *codec, const iq_level_draw_t *draw, const float *values, size_t count, void *header,
                   uint16_t *codes)
{
    uint8_t narrow[IQ_CODEC_TILE];
    int32_t half = iq_mx_half(codec->bits);
    uint32_t field = iq_mx_field(iq_kernels()->absmax(values, count), half);
    iq_grid_t grid = {
        .inverse = 1.0f / iq_mx_step(field),
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

static isgq_result_t decode(const iq_codec_t *codec, const iq_level_draw_t *draw, const void *header, const uint16_t *codes,
                            size_t count, float *values)
{
    uint32_t field = *(const unsigned char *)header;
    (void)draw;
    if (field > IQ_MX_FIELD_MOST)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "quantizer 'mx': exponent %u above %d in a message", field, IQ_MX_FIELD_MOST);
    int32_t half = iq_mx_half(codec->bits);
    float step = iq_mx_step(field);
    for (size_t i = 0; i < count; i++)
        values[i] = iq_mx_value(codes[i] - half, step);
    return ISGQ_SUCCESS;
}

const iq_level_model_t iq_level_mx = {
    .name = "mx",
    .symbols = symbols,
    .header_bytes = 1,
    .encode = encode,
    .decode = decode,
};
