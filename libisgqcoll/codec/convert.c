/* SPDX-License-Identifier: Apache-2.0 */
/* Conversions of convert.h: f32 passes through, half types go through the kernels. */
#include "codec/convert.h"

#include <string.h>

bool iq_is_small_float(isgq_data_type_t datatype)
{
    return datatype == ISGQ_FLOAT32 || datatype == ISGQ_FLOAT16 || datatype == ISGQ_BFLOAT16;
}

const iq_f32_any_t *iq_load_f32(isgq_data_type_t datatype, const void *src, size_t offset, size_t count, float *tile)
{
    const iq_u16_any_t *halves = src;
    if (datatype == ISGQ_FLOAT32)
        return (const iq_f32_any_t *)src + offset;
    if (datatype == ISGQ_FLOAT16)
        iq_kernels()->f16_to_f32(halves + offset, count, tile);
    else
        iq_kernels()->bf16_to_f32(halves + offset, count, tile);
    return tile;
}

static void round_to_half(isgq_data_type_t datatype, const iq_f32_any_t *values, size_t count, iq_u16_any_t *halves)
{
    if (datatype == ISGQ_FLOAT16)
        iq_kernels()->f32_to_f16(values, count, halves);
    else
        iq_kernels()->f32_to_bf16(values, count, halves);
}

static void add_to(iq_f32_any_t *dst, const iq_f32_any_t *values, size_t count)
{
    for (size_t i = 0; i < count; i++)
        dst[i] += values[i];
}

/* At most a tile. */
static void add_halves(isgq_data_type_t datatype, const iq_f32_any_t *values, size_t count, iq_u16_any_t *dst)
{
    uint16_t rounded[IQ_CODEC_TILE];
    float term[IQ_CODEC_TILE], sum[IQ_CODEC_TILE];
    round_to_half(datatype, values, count, rounded);
    iq_load_f32(datatype, rounded, 0, count, term);
    iq_load_f32(datatype, dst, 0, count, sum);
    add_to(sum, term, count);
    round_to_half(datatype, sum, count, dst);
}

void iq_store_f32(isgq_data_type_t datatype, const iq_f32_any_t *values, size_t count, bool accumulate, void *dst, size_t offset)
{
    if (count == 0)
        return; /* dst may be NULL */
    if (datatype == ISGQ_FLOAT32 && accumulate) {
        add_to((iq_f32_any_t *)dst + offset, values, count);
    } else if (datatype == ISGQ_FLOAT32) {
        memcpy((iq_f32_any_t *)dst + offset, values, count * sizeof(float));
    } else if (!accumulate) {
        round_to_half(datatype, values, count, (iq_u16_any_t *)dst + offset);
    } else {
        for (size_t done = 0, n; done < count; done += n) {
            n = count - done < IQ_CODEC_TILE ? count - done : IQ_CODEC_TILE;
            add_halves(datatype, values + done, n, (iq_u16_any_t *)dst + offset + done);
        }
    }
}
