/* SPDX-License-Identifier: Apache-2.0 */
/*
 * f32 sums of values as they come, in the order of the parts: a lane adds two quads of all parts, which lie side by side in a
 * warp. Own values are of another type where messages are rounded; elsewhere they are a part like any other.
 */
#include "kernels/cuda/combine_parts.h"
#include "kernels/cuda/quads.h"

#include <type_traits>

enum { QUAD = IQ_QUAD, QUADS = 2, STRIDE = IQ_QUADS_STRIDE, TILE = QUADS * STRIDE };

/* ---- `length` neighbours: a quad, or one element of any alignment ---- */

template <typename as_t, int length>
static __device__ __forceinline__ void load_values(const void *data, uint32_t i, float value[length])
{
    iq_vector<typename as_t::item_t, length> item = iq_load<length>((const typename as_t::item_t *)data + i);
#pragma unroll
    for (int j = 0; j < length; j++)
        value[j] = as_t::widen(item.item[j]);
}

template <typename as_t, int length>
static __device__ __forceinline__ void store_values(void *data, uint32_t i, bool accumulate, const float value[length])
{
    iq_vector<typename as_t::item_t, length> item;
    float before[length];
    if (accumulate)
        load_values<as_t, length>(data, i, before);
#pragma unroll
    for (int j = 0; j < length; j++) {
        item.item[j] = as_t::narrow(value[j]);
        if (accumulate)
            item.item[j] = as_t::narrow(before[j] + as_t::widen(item.item[j]));
    }
    iq_store((typename as_t::item_t *)data + i, item);
}

/* Rounded as messages are. */
template <typename part_as, int length> static __device__ __forceinline__ void round_values(float value[length])
{
#pragma unroll
    for (int j = 0; j < length; j++)
        value[j] = part_as::widen(part_as::narrow(value[j]));
}

template <typename part_as, typename own_as, int length>
static __device__ __forceinline__ void load_part(const iq_combine_args_t &args, uint32_t part, uint32_t i, float value[length])
{
    if (!std::is_same<part_as, own_as>::value && part == args.own) {
        load_values<own_as, length>(args.own_data, i, value);
        round_values<part_as, length>(value);
    } else {
        load_values<part_as, length>(args.parts[part].data, i, value);
    }
}

template <typename part_as, typename own_as, int length>
static __device__ __forceinline__ void finish_values(const iq_combine_args_t &args, uint32_t i, float total[length])
{
    if (args.sum.divisor != 1.0f) {
#pragma unroll
        for (int j = 0; j < length; j++)
            total[j] = total[j] / args.sum.divisor;
    }
    if (args.result != NULL) {
        round_values<part_as, length>(total);
        store_values<part_as, length>(args.result, i, false, total);
    }
    if (args.output != NULL)
        store_values<own_as, length>(args.output, i, args.accumulate, total);
}

/* ---- the kernel ---- */

template <typename part_as, typename own_as>
static __global__ void __launch_bounds__(IQ_CUDA_THREADS) combine_values(iq_combine_args_t args)
{
    uint32_t tiles = (args.count - 1) / TILE + 1, lane = threadIdx.x % 32;
    for (uint32_t tile = blockIdx.x * IQ_CUDA_WARPS + threadIdx.x / 32; tile < tiles; tile += gridDim.x * IQ_CUDA_WARPS) {
        uint32_t i = tile * TILE + lane * QUAD, end = (tile + 1) * TILE;
        if (args.parts_aligned && end <= args.count) {
            float total[QUADS][QUAD];
#pragma unroll
            for (int q = 0; q < QUADS; q++)
                load_part<part_as, own_as, QUAD>(args, 0, i + q * STRIDE, total[q]);
#pragma unroll 4
            for (uint32_t part = 1; part < args.nparts; part++) {
                float value[QUADS][QUAD];
#pragma unroll
                for (int q = 0; q < QUADS; q++)
                    load_part<part_as, own_as, QUAD>(args, part, i + q * STRIDE, value[q]);
#pragma unroll
                for (int q = 0; q < QUADS; q++) {
#pragma unroll
                    for (int j = 0; j < QUAD; j++)
                        total[q][j] += value[q][j];
                }
            }
#pragma unroll
            for (int q = 0; q < QUADS; q++)
                finish_values<part_as, own_as, QUAD>(args, i + q * STRIDE, total[q]);
        } else {
#pragma unroll 1
            for (i = tile * TILE + lane; i < end && i < args.count; i += 32) {
                float total[1], value[1];
                load_part<part_as, own_as, 1>(args, 0, i, total);
#pragma unroll 1
                for (uint32_t part = 1; part < args.nparts; part++) {
                    load_part<part_as, own_as, 1>(args, part, i, value);
                    total[0] += value[0];
                }
                finish_values<part_as, own_as, 1>(args, i, total);
            }
        }
    }
}

/* ---- launches ---- */

template <typename part_as, typename own_as>
static isgq_result_t launch(int device, isgq_stream_t stream, const iq_combine_args_t &args)
{
    return iq_cuda_launch<combine_values<part_as, own_as>>(device, stream, (args.count - 1) / (TILE * IQ_CUDA_WARPS) + 1, args);
}

template <typename part_as, typename own_as> static isgq_result_t warm(int device)
{
    return iq_cuda_load<combine_values<part_as, own_as>>(device);
}

typedef struct row {
    isgq_data_type_t part_type, own_type;
    isgq_result_t (*launch)(int device, isgq_stream_t stream, const iq_combine_args_t &args);
    isgq_result_t (*warm)(int device);
} row_t;

template <typename part_as, typename own_as> static row_t row_of(isgq_data_type_t part_type, isgq_data_type_t own_type)
{
    return {part_type, own_type, launch<part_as, own_as>, warm<part_as, own_as>};
}

/* Parts as they are, and halves of other values. */
static const row_t rows[] = {
    row_of<iq_as_f32, iq_as_f32>(ISGQ_FLOAT32, ISGQ_FLOAT32),     row_of<iq_as_f16, iq_as_f16>(ISGQ_FLOAT16, ISGQ_FLOAT16),
    row_of<iq_as_bf16, iq_as_bf16>(ISGQ_BFLOAT16, ISGQ_BFLOAT16), row_of<iq_as_f16, iq_as_f32>(ISGQ_FLOAT16, ISGQ_FLOAT32),
    row_of<iq_as_f16, iq_as_bf16>(ISGQ_FLOAT16, ISGQ_BFLOAT16),   row_of<iq_as_bf16, iq_as_f32>(ISGQ_BFLOAT16, ISGQ_FLOAT32),
    row_of<iq_as_bf16, iq_as_f16>(ISGQ_BFLOAT16, ISGQ_FLOAT16),
};

/* Own values are rounded to what messages consist of, by `through` or because they are of that type. */
static bool fits_own(const iq_combine_args_t *args)
{
    if (args->own == UINT32_MAX)
        return true;
    bool rounds = args->through == ISGQ_FLOAT16 || args->through == ISGQ_BFLOAT16;
    return !args->own_grid.used && (args->output == NULL || args->output_type == args->own_type) &&
           (rounds ? args->through == args->part_type : args->own_type == args->part_type);
}

static bool fits(const iq_combine_args_t *args)
{
    return args->part_form == IQ_CUDA_VALUES && args->measure == NULL && fits_own(args) &&
           (args->result == NULL || (args->result_form == IQ_CUDA_VALUES && args->result_type == args->part_type));
}

bool iq_cuda_combine_values(int device, isgq_stream_t stream, const iq_combine_args_t *given, isgq_result_t *result)
{
    isgq_data_type_t own_type = given->own != UINT32_MAX ? given->own_type
                                : given->output != NULL  ? given->output_type
                                                         : given->part_type;
    if (!fits(given))
        return false;
    for (const row_t &row : rows) {
        if (row.part_type != given->part_type || row.own_type != own_type)
            continue;
        iq_combine_args_t args = *given; /* all of it moves 16 or 8 bytes at a time, or none */
        args.parts_aligned = args.parts_aligned && args.own_aligned && args.result_aligned && args.output_aligned;
        *result = row.launch(device, stream, args);
        return true;
    }
    return false;
}

isgq_result_t iq_cuda_warm_combine_values(int device)
{
    for (const row_t &row : rows)
        IQ_TRY(row.warm(device));
    return ISGQ_SUCCESS;
}
