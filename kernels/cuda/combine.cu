/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sums of several parts in one pass: every byte of a part is read once and the sum stays in registers. The sums that most calls
 * have are in combine_codes.cu and combine_values.cu; the kernel here knows all forms, widths and alignments at run time.
 */
#include "kernels/cuda/combine_parts.h"
#include "kernels/cuda/map_groups.h"

/* ---- parts ---- */

/* Own values; as codes where they are wanted as such. */
template <bool integers>
static __device__ __forceinline__ void take_own(const iq_combine_args_t &args, iq_group_t at, uint32_t code[IQ_GROUP],
                                                float value[IQ_GROUP])
{
    if (at.live == 0)
        return;
    iq_load_group(args.own_type, args.own_data, args.own_aligned, at, value);
    iq_round_through(args.through, value);
    if (args.own_grid.used) {
        iq_quantize_group(args.own_grid, args.buckets, at, value, code);
        if (!integers)
            iq_grid_values(args.own_grid, args.buckets, at, code, value);
    }
}

/* Codes of three levels, five to a byte: those of eight elements lie in two or three bytes, and a warp's side by side. */
static __device__ __forceinline__ void take_ternary(const iq_combine_args_t &args, uint32_t part, iq_group_t at, uint32_t code[IQ_GROUP])
{
    enum { BYTES = 3, DIGITS = 5, GROUPS_OF_FIVE = 243 };
    const unsigned char *src = (const unsigned char *)args.parts[part].data;
    uint32_t byte = at.i / DIGITS, skip = at.i - byte * DIGITS, last = (args.count - 1) / DIGITS, digits = 0;
    bool too_large = false;
#pragma unroll
    for (uint32_t b = 0; b < BYTES; b++) {
        uint32_t group = byte + b <= last ? src[byte + b] : 0;
        too_large |= group >= GROUPS_OF_FIVE;
#pragma unroll
        for (uint32_t d = 0; d < DIGITS; d++) {
            uint32_t rest = group / 3;
            digits |= (group - 3 * rest) << 2 * (b * DIGITS + d);
            group = rest;
        }
    }
    digits >>= 2 * skip;
    if (too_large)
        iq_report_fault(args.fault, IQ_CUDA_BAD_CODE);
    if (at.i + at.live == args.count && digits >> 2 * at.live != 0)
        iq_report_fault(args.fault, IQ_CUDA_BAD_PADDING);
#pragma unroll
    for (uint32_t j = 0; j < IQ_GROUP; j++)
        code[j] = j < at.live ? digits >> 2 * j & 3u : 0;
}

/* All lanes of a warp together. */
template <bool integers>
static __device__ __forceinline__ void take_part(const iq_combine_args_t &args, uint32_t part, uint32_t *stage, uint32_t tile,
                                                 uint32_t left, iq_group_t at, uint32_t code[IQ_GROUP], float value[IQ_GROUP])
{
    if (part == args.own) {
        take_own<integers>(args, at, code, value);
    } else if (integers && args.part_form == IQ_CUDA_TERNARY) {
        if (at.live > 0)
            take_ternary(args, part, at, code);
    } else if (integers || args.part_form == IQ_CUDA_CODES) {
        iq_load_packed(args.parts[part].data, args.part_width, stage, tile, left);
        iq_unpack(args.part_width, args.part_least, args.part_most, args.fault, stage, at, code);
        if (integers) {
#pragma unroll
            for (int j = 0; j < IQ_GROUP; j++)
                code[j] += args.offset;
        }
        __syncwarp(); /* all have read the stage */
        if (!integers && at.live > 0)
            iq_codes_to_values(args.meaning, args.parts[part].scales, args.buckets, args.fault, at, code, value);
    } else if (at.live > 0) {
        iq_load_group(args.part_type, args.parts[part].data, args.parts_aligned, at, value);
    }
}

template <bool integers>
static __device__ __forceinline__ void add_parts(const iq_combine_args_t &args, uint32_t *stage, uint32_t tile, uint32_t left,
                                                 iq_group_t at, uint32_t sum[IQ_GROUP], float total[IQ_GROUP])
{
#pragma unroll 1
    for (uint32_t part = 0; part < args.nparts; part++) {
        uint32_t code[IQ_GROUP] = {0};
        float value[IQ_GROUP] = {0};
        take_part<integers>(args, part, stage, tile, left, at, code, value);
#pragma unroll
        for (int j = 0; j < IQ_GROUP; j++) {
            if (integers)
                sum[j] += code[j];
            else
                total[j] = part == 0 ? value[j] : total[j] + value[j];
        }
    }
}

/* ---- what becomes of the sum ---- */

static __device__ __forceinline__ void raise_group(const iq_combine_args_t &args, iq_group_t at, const float value[IQ_GROUP])
{
    uint32_t bucket = iq_bucket_at(args.buckets, at.i), most = 0;
#pragma unroll
    for (uint32_t j = 0; j < IQ_GROUP; j++) {
        if (j >= at.live)
            continue;
        uint32_t next = iq_bucket_at(args.buckets, at.i + j);
        if (next != bucket) {
            iq_raise(args.measure + bucket, most);
            bucket = next;
            most = 0;
        }
        most = iq_magnitude(value[j]) > most ? iq_magnitude(value[j]) : most;
    }
    iq_raise(args.measure + bucket, most);
}

/* Values of the sum become values of the result, which is written if it consists of values; codes are left in `code`. */
static __device__ __forceinline__ void make_result(const iq_combine_args_t &args, iq_group_t at, float value[IQ_GROUP],
                                                   uint32_t code[IQ_GROUP])
{
    if (args.result_form == IQ_CUDA_VALUES) {
        iq_round_through(args.result_type, value);
        iq_store_group(args.result_type, args.result, args.result_aligned, false, at, value);
    } else if (args.result_grid.used) {
        iq_quantize_group(args.result_grid, args.buckets, at, value, code);
        iq_grid_values(args.result_grid, args.buckets, at, code, value);
    }
}

template <bool integers> static __global__ void __launch_bounds__(IQ_CUDA_THREADS) combine_any(iq_combine_args_t args)
{
    __shared__ uint32_t stages[IQ_CUDA_WARPS][IQ_STAGE_WORDS];
    uint32_t *stage = stages[threadIdx.x / 32];
    uint32_t tiles = (args.count - 1) / IQ_GROUPS_TILE + 1;
    for (uint32_t tile = blockIdx.x * IQ_CUDA_WARPS + threadIdx.x / 32; tile < tiles; tile += gridDim.x * IQ_CUDA_WARPS) {
        uint32_t left = args.count - tile * IQ_GROUPS_TILE;
        iq_group_t at = iq_group_at(tile, left);
        uint32_t code[IQ_GROUP] = {0};
        float value[IQ_GROUP] = {0};
        add_parts<integers>(args, stage, tile, left, at, code, value);
        if (at.live > 0) {
            if (integers)
                iq_codes_to_values(args.sum, args.sum.scales, args.buckets, args.fault, at, code, value);
            iq_divide_group(args.sum.divisor, value);
            if (args.measure != NULL)
                raise_group(args, at, value);
            if (args.result != NULL)
                make_result(args, at, value, code);
            if (args.output != NULL)
                iq_store_group(args.output_type, args.output, args.output_aligned, args.accumulate, at, value);
        }
        if (integers && !args.result_grid.used) {
#pragma unroll
            for (int j = 0; j < IQ_GROUP; j++)
                code[j] -= args.offset;
        }
        if (args.result != NULL && args.result_form == IQ_CUDA_CODES)
            iq_store_packed(args.result, args.result_width, stage, tile, left, at, code);
    }
}

/* ---- launches ---- */

static const void *advance(const void *data, iq_cuda_form_t form, isgq_data_type_t type, unsigned width, size_t done)
{
    return data == NULL ? NULL : (const char *)data + iq_offset_of(form, type, width, done);
}

/* The parts of the piece from `done` on. */
static void take_parts(const iq_cuda_combine_t *combine, size_t done, size_t skipped, iq_combine_args_t *args)
{
    const iq_cuda_source_t *part = &combine->part;
    args->nparts = combine->nparts;
    args->own = combine->own < 0 ? UINT32_MAX : (uint32_t)combine->own;
    args->part_form = part->form;
    args->part_type = part->type;
    args->part_width = part->width;
    args->part_least = part->least;
    args->part_most = part->most;
    args->offset = combine->offset;
    args->own_type = combine->own_type;
    args->through = combine->through;
    args->parts_aligned = true;
    for (uint32_t i = 0; i < combine->nparts; i++) {
        iq_cuda_form_t form = i == args->own ? IQ_CUDA_VALUES : part->form;
        isgq_data_type_t type = i == args->own ? combine->own_type : part->type;
        iq_cuda_part_t *to = &args->parts[i];
        to->data = advance(combine->parts[i].data, form, type, part->width, done);
        to->scales = combine->parts[i].scales == NULL ? NULL : combine->parts[i].scales + skipped;
        if (i == args->own)
            args->own_data = to->data;
        else
            args->parts_aligned = args->parts_aligned && iq_is_aligned(to->data);
    }
    args->own_aligned = iq_is_aligned(args->own_data);
}

/* The piece of `count` elements from `done` on. */
static iq_combine_args_t piece_of(const iq_cuda_combine_t *combine, size_t done, size_t count)
{
    const iq_cuda_target_t *result = &combine->result, *output = &combine->output;
    size_t skipped = iq_buckets_before(combine->first, combine->bucket, done);
    iq_combine_args_t args = {};
    take_parts(combine, done, skipped, &args);
    args.count = (uint32_t)count;
    uint64_t first = combine->first + done;
    args.buckets = iq_buckets_of(first, combine->bucket);
    args.result_form = result->form;
    args.result_type = result->type;
    args.result_width = result->width;
    args.output_type = output->type;
    args.accumulate = output->accumulate;
    if (combine->measure == NULL) {
        args.result = (void *)advance(result->data, result->form, result->type, result->width, done);
        args.output = (void *)advance(output->data, IQ_CUDA_VALUES, output->type, 0, done);
    } else {
        args.measure = (uint32_t *)combine->measure + skipped;
    }
    args.result_aligned = iq_is_aligned(args.result);
    args.output_aligned = iq_is_aligned(args.output);
    args.meaning = iq_meaning_of(&combine->part, 0);
    args.sum = iq_meaning_of(&combine->sum, skipped);
    args.own_grid = iq_grid_args_of(&combine->own_grid, first, count, skipped);
    args.own_grid.used = args.own_grid.used && combine->own >= 0;
    args.result_grid = iq_grid_args_of(&combine->result_grid, first, count, skipped);
    args.fault = combine->fault;
    return args;
}

isgq_result_t iq_cuda_run_combine(int device, isgq_stream_t stream, const iq_cuda_combine_t *combine)
{
    if (combine->count == 0)
        return ISGQ_SUCCESS;
    if (combine->nparts < 1 || combine->nparts > IQ_CUDA_PARTS)
        return IQ_FAIL(ISGQ_ERR_INTERNAL, "combine: %u parts, but sums have 1 to %d", combine->nparts, IQ_CUDA_PARTS);
    ON_DEVICE(device);
    const size_t piece = IQ_CUDA_PIECE / 1280 * 1280; /* whole tiles, and whole bytes of five codes */
    for (size_t done = 0, count; done < combine->count; done += count) {
        isgq_result_t result = ISGQ_SUCCESS;
        count = combine->count - done < piece ? combine->count - done : piece;
        iq_combine_args_t args = piece_of(combine, done, count);
        size_t blocks = (count - 1) / (IQ_GROUPS_TILE * IQ_CUDA_WARPS) + 1;
        if (combine->integers && iq_cuda_combine_codes(device, stream, &args, &result))
            ;
        else if (!combine->integers && iq_cuda_combine_values(device, stream, &args, &result))
            ;
        else if (combine->integers)
            result = iq_cuda_launch<combine_any<true>>(device, stream, blocks, args);
        else
            result = iq_cuda_launch<combine_any<false>>(device, stream, blocks, args);
        IQ_TRY(result);
    }
    return ISGQ_SUCCESS;
}

isgq_result_t iq_cuda_warm_combine(int device)
{
    IQ_TRY(iq_cuda_warm_combine_codes(device));
    IQ_TRY(iq_cuda_warm_combine_values(device));
    return iq_cuda_load<combine_any<true>, combine_any<false>>(device);
}
