/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Integer sums of 4- or 8-bit codes of up to 16 ranks. A lane takes 16 bytes of each part, and adds codes where they lie: even
 * and odd ones of a word apart, each in twice its width, which no sum of 16 codes leaves. So all parts of a tile take eight
 * registers. The sums then go through shared memory to the lanes that have four neighbours of each 128 elements: there own values
 * are read and output is written, as runs of memory.
 */
#include "kernels/cuda/combine_parts.h"
#include "kernels/cuda/quads.h"

#include <type_traits>

enum { QUAD = IQ_QUAD, STRIDE = IQ_QUADS_STRIDE, WORDS = 4, STAGE_WORDS = 32 * 2 * WORDS };

/* What the kernel is for. */
enum { WRITE, REQUANTIZE, MEASURE };

/* ---- sums in the stage ---- */

/* Four sums as they lie side by side in the stage: even ones, odd ones, in pairs of an upper and a lower half. */
template <int width> struct summed_quad;
template <> struct summed_quad<4> {
    typedef uint16_t half_t;
    static __device__ __forceinline__ uint32_t at(uint32_t quad)
    {
        return quad / 2 * 4 + quad % 2;
    } /* the odd ones are 2 further */
    enum { ODD = 2, SHIFT = 8, MASK = 0xff, EVEN_LANES = 0x0f0f0f0f };
};
template <> struct summed_quad<8> {
    typedef uint32_t half_t;
    static __device__ __forceinline__ uint32_t at(uint32_t quad) { return quad * 2; }
    enum { ODD = 1, SHIFT = 16, MASK = 0xffff, EVEN_LANES = 0x00ff00ff };
};

template <int width> static __device__ __forceinline__ iq_codes_t read_quad(const uint32_t *stage, uint32_t quad)
{
    typedef summed_quad<width> form;
    const typename form::half_t *from = (const typename form::half_t *)stage + form::at(quad);
    uint32_t even = from[0], odd = from[form::ODD];
    return {{even & form::MASK, odd & form::MASK, even >> form::SHIFT, odd >> form::SHIFT}};
}

template <int width> static __device__ __forceinline__ void write_quad(uint32_t *stage, uint32_t quad, const iq_codes_t &sum)
{
    typedef summed_quad<width> form;
    typename form::half_t *to = (typename form::half_t *)stage + form::at(quad);
    to[0] = (typename form::half_t)(sum.item[0] | sum.item[2] << form::SHIFT);
    to[form::ODD] = (typename form::half_t)(sum.item[1] | sum.item[3] << form::SHIFT);
}

/* ---- parts ---- */

typedef iq_vector<uint32_t, WORDS> codes_of_lane_t;

/* Four codes side by side. */
template <int width> using quad_word_t = typename std::conditional<width == 4, uint16_t, uint32_t>::type;

/* Not zero if a code of the word is 2^width - 1: the largest one is one less. */
template <int width> static __device__ __forceinline__ uint32_t excess(uint32_t word)
{
    word &= word >> 1;
    word &= word >> 2;
    return width == 4 ? word & 0x11111111u : word & word >> 4 & 0x01010101u;
}

template <int width>
static __device__ __forceinline__ void add_words(const codes_of_lane_t &codes, uint32_t sum[2 * WORDS], uint32_t &too_large)
{
    constexpr uint32_t lanes = summed_quad<width>::EVEN_LANES;
#pragma unroll
    for (int w = 0; w < WORDS; w++) {
        too_large |= excess<width>(codes.item[w]);
        sum[2 * w] += codes.item[w] & lanes;
        sum[2 * w + 1] += codes.item[w] >> width & lanes;
    }
}

/* The lane's 16 bytes of a tile that ends early, or that lies anywhere. `left` elements remain from the tile's first on. */
template <int width>
static __device__ __forceinline__ codes_of_lane_t load_ragged(const unsigned char *tile, uint32_t left, uint32_t *fault)
{
    uint32_t bytes = (left + 7) / 8 * width;
    codes_of_lane_t codes;
#pragma unroll
    for (int w = 0; w < WORDS; w++) {
        uint32_t at = threadIdx.x % 32 * 16 + w * 4, word = 0, live = at * 8 / width;
        if (at + 4 <= bytes) {
            word = *(const uint32_t *)(tile + at);
        } else {
#pragma unroll 1
            for (uint32_t i = at; i < bytes; i++)
                word |= (uint32_t)tile[i] << (i - at) * 8;
        }
        live = live >= left ? 0 : left - live; /* so many codes of this word exist, or more */
        uint32_t mask = live >= 32 / width ? UINT32_MAX : (1u << live * width) - 1u;
        if ((word & ~mask) != 0)
            iq_report_fault(fault, IQ_CUDA_BAD_PADDING);
        codes.item[w] = word & mask;
    }
    return codes;
}

/* The sums of all parts but own to the stage. */
template <int width>
static __device__ __forceinline__ void add_parts(const iq_combine_args_t &args, uint32_t start, uint32_t *stage,
                                                 uint32_t &too_large)
{
    uint32_t left = args.count - start, lane = threadIdx.x % 32, sum[2 * WORDS] = {0};
    size_t offset = (size_t)(start / 8) * width;
    if (args.parts_aligned && left >= STRIDE * 32 / width) {
#pragma unroll 4
        for (uint32_t part = 0; part < args.nparts; part++)
            add_words<width>(iq_load<WORDS>((const uint32_t *)((const char *)args.parts[part].data + offset) + lane * WORDS), sum,
                             too_large);
    } else {
#pragma unroll 1
        for (uint32_t part = 0; part < args.nparts; part++)
            add_words<width>(load_ragged<width>((const unsigned char *)args.parts[part].data + offset, left, args.fault), sum,
                             too_large);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        codes_of_lane_t words = {{sum[4 * half], sum[4 * half + 1], sum[4 * half + 2], sum[4 * half + 3]}};
        iq_store(stage + lane * 2 * WORDS + 4 * half, words);
    }
}

/* ---- scales ---- */

/* What the values of a bucket are multiplied with, kept until a lane gets to another. */
typedef struct factors {
    uint32_t bucket;
    float own_inverse, unit, result_inverse, result_unit;
} factors_t;

template <int purpose>
static __device__ __forceinline__ void look_up(const iq_combine_args_t &args, uint32_t bucket, factors_t &factors)
{
    if (bucket == factors.bucket)
        return;
    factors.bucket = bucket;
    factors.unit = iq_unit_at(args.sum, args.sum.scales, args.fault, bucket);
    if (args.own_grid.used)
        factors.own_inverse = iq_inverse_at(args.own_grid, bucket);
    if (purpose == REQUANTIZE) {
        factors.result_inverse = iq_inverse_at(args.result_grid, bucket);
        factors.result_unit = iq_half_step(args.result_grid.top, __ldg(args.result_grid.scales + bucket));
    }
}

/* ---- what becomes of the sum ---- */

static __device__ __forceinline__ void raise_quad(const iq_combine_args_t &args, uint32_t i, bool even, uint32_t bucket,
                                                  const float value[QUAD])
{
    uint32_t most = 0;
#pragma unroll
    for (uint32_t j = 0; j < QUAD; j++) {
        if (!even && i + j < args.count)
            iq_raise(args.measure + iq_bucket_at(args.buckets, i + j), iq_magnitude(value[j]));
        most = iq_magnitude(value[j]) > most ? iq_magnitude(value[j]) : most;
    }
    if (even)
        iq_raise(args.measure + bucket, most);
}

/* Packed sums of a tile: each lane makes whole words of the run, of whatever sums lie in them. */
template <int width>
static __device__ __forceinline__ void pack_tile(const iq_combine_args_t &args, uint32_t start, const uint32_t *stage)
{
    typedef typename std::conditional<width == 4, uint8_t, uint16_t>::type sum_t;
    constexpr uint32_t length = 32 / width, halves = length / 2; /* codes of a word of a part */
    const sum_t *sums = (const sum_t *)stage;
    uint32_t to = args.result_width, left = args.count - start, live = left < STRIDE * length ? left : STRIDE * length;
    uint32_t bytes = (live + 7) / 8 * to, reciprocal = 0xffffffffu / to + 1;
    unsigned char *dst = (unsigned char *)args.result + (size_t)(start / 8) * to;
    auto sum_at = [&](uint32_t e) { return (uint32_t)sums[e / length * length + (e & 1) * halves + e % length / 2]; };
#pragma unroll 1
    for (uint32_t at = threadIdx.x % 32 * 4; at < bytes; at += 32 * 4) {
        uint32_t e = (uint32_t)(iq_multiply_wide(at * 8, reciprocal) >> 32), used = at * 8 - e * to;
        uint32_t word = sum_at(e) >> used;
        for (used = to - used, e++; used < 32; used += to, e++)
            word |= sum_at(e) << used;
        if (at + 4 <= bytes) {
            *(uint32_t *)(dst + at) = word;
        } else {
#pragma unroll 1
            for (uint32_t i = at; i < bytes; i++, word >>= 8)
                dst[i] = (unsigned char)word;
        }
    }
}

/* ---- the kernel ---- */

/* `args.meaning` is that of the result's codes. */
template <typename as_t, int width, int purpose>
static __device__ __forceinline__ void finish_quad(const iq_combine_args_t &args, uint64_t own_call, uint64_t result_call,
                                                   uint32_t i, bool even, const factors_t &factors, uint32_t *stage,
                                                   uint32_t quad)
{
    iq_codes_t sum = read_quad<width>(stage, quad);
    float value[QUAD];
    if (args.own_grid.used) {
        iq_load_quad<as_t>(args.own_data, args.own_aligned, i, args.count, value);
        iq_codes_t own =
            iq_quad_codes<true>(args.own_grid, args.buckets, own_call, i, args.count, even, factors.own_inverse, value);
#pragma unroll
        for (int j = 0; j < QUAD; j++)
            sum.item[j] += own.item[j];
        if (purpose == WRITE && args.result != NULL)
            write_quad<width>(stage, quad, sum);
    }
    if (purpose == WRITE && args.output == NULL)
        return;
    iq_quad_values(args.sum, args.buckets, args.fault, i, args.count, even, factors.unit, sum, value);
    if (purpose == MEASURE)
        raise_quad(args, i, even, factors.bucket, value);
    if (purpose == REQUANTIZE) {
        iq_codes_t code =
            iq_quad_codes<true>(args.result_grid, args.buckets, result_call, i, args.count, even, factors.result_inverse, value);
        uint32_t word = code.item[0] | code.item[1] << width | code.item[2] << 2 * width | code.item[3] << 3 * width;
        ((quad_word_t<width> *)args.result)[i / QUAD] = (quad_word_t<width>)word;
        if (args.output != NULL)
            iq_quad_values(args.meaning, args.buckets, args.fault, i, args.count, even, factors.result_unit, code, value);
    }
    if (purpose != MEASURE && args.output != NULL)
        iq_store_quad<as_t>(args.output, args.output_aligned, args.accumulate, i, args.count, value);
}

template <typename as_t, int width, int purpose>
static __global__ void __launch_bounds__(IQ_CUDA_THREADS) combine_codes(iq_combine_args_t args)
{
    constexpr uint32_t quads = 32 / width, length = quads * STRIDE; /* of a tile */
    __shared__ __align__(16) uint32_t stages[IQ_CUDA_WARPS][STAGE_WORDS];
    uint32_t *stage = stages[threadIdx.x / 32], lane = threadIdx.x % 32, tiles = (args.count - 1) / length + 1, too_large = 0;
    uint64_t own_call = iq_call_now(args.own_grid.call, args.own_grid.replays);
    uint64_t result_call = iq_call_now(args.result_grid.call, args.result_grid.replays);
    factors_t factors = {UINT32_MAX, 0.0f, 0.0f, 0.0f, 0.0f};
    for (uint32_t tile = blockIdx.x * IQ_CUDA_WARPS + threadIdx.x / 32; tile < tiles; tile += gridDim.x * IQ_CUDA_WARPS) {
        add_parts<width>(args, tile * length, stage, too_large);
        __syncwarp();
#pragma unroll(purpose == REQUANTIZE ? 1 : 2)
        for (uint32_t q = 0; q < quads; q++) {
            uint32_t i = tile * length + q * STRIDE + lane * QUAD, bucket = iq_bucket_at(args.buckets, i);
            if (i < args.count) {
                look_up<purpose>(args, bucket, factors);
                finish_quad<as_t, width, purpose>(args, own_call, result_call, i,
                                                  iq_is_even(args.count, args.buckets, i + QUAD, bucket), factors, stage,
                                                  q * 32 + lane);
            } else if (purpose == REQUANTIZE && i < iq_coded(args.count)) {
                ((quad_word_t<width> *)args.result)[i / QUAD] = 0;
            }
        }
        __syncwarp();
        if (purpose == WRITE && args.result != NULL) {
            pack_tile<width>(args, tile * length, stage);
            __syncwarp();
        }
    }
    if (too_large != 0)
        iq_report_fault(args.fault, IQ_CUDA_BAD_CODE);
}

/* ---- launches ---- */

template <typename as_t, int width>
static isgq_result_t launch_width(int device, isgq_stream_t stream, const iq_combine_args_t &args)
{
    size_t blocks = (args.count - 1) / (STRIDE * 32 / width * IQ_CUDA_WARPS) + 1;
    if (args.measure != NULL)
        return iq_cuda_launch<combine_codes<as_t, width, MEASURE>>(device, stream, blocks, args);
    if (args.result_grid.used)
        return iq_cuda_launch<combine_codes<as_t, width, REQUANTIZE>>(device, stream, blocks, args);
    return iq_cuda_launch<combine_codes<as_t, width, WRITE>>(device, stream, blocks, args);
}

template <typename as_t> static isgq_result_t launch(int device, isgq_stream_t stream, const iq_combine_args_t &args)
{
    return args.part_width == 4 ? launch_width<as_t, 4>(device, stream, args) : launch_width<as_t, 8>(device, stream, args);
}

/* Own values as codes of the parts' width, and output of the same type. */
static bool fits_own(const iq_combine_args_t *args)
{
    if (args->own == UINT32_MAX)
        return true;
    return args->own_grid.used && args->own_grid.top == args->part_most && iq_grid_fits_quads(&args->own_grid) &&
           args->through != ISGQ_FLOAT16 && args->through != ISGQ_BFLOAT16 &&
           (args->output == NULL || args->output_type == args->own_type);
}

static bool fits_result(const iq_combine_args_t *args)
{
    if (args->measure != NULL || args->result == NULL)
        return true;
    if (args->result_form != IQ_CUDA_CODES)
        return false;
    if (args->result_grid.used)
        return args->result_width == args->part_width && args->result_grid.top < 1u << args->result_width &&
               iq_grid_fits_quads(&args->result_grid);
    return args->result_width >= args->part_width && (uint64_t)args->nparts * args->part_most >> args->result_width == 0;
}

bool iq_cuda_combine_codes(int device, isgq_stream_t stream, const iq_combine_args_t *given, isgq_result_t *result)
{
    iq_combine_args_t args = *given;
    if (args.part_form != IQ_CUDA_CODES || args.offset != 0 || (args.part_width != 4 && args.part_width != 8) || args.part_most != (1u << args.part_width) - 2u || !fits_own(given) ||
        !fits_result(given))
        return false;
    if (args.own != UINT32_MAX) {
        for (uint32_t i = args.own + 1; i < args.nparts; i++) /* integers have no order */
            args.parts[i - 1] = args.parts[i];
        args.nparts--;
    }
    args.result_grid.used = args.result_grid.used && args.result != NULL;
    args.meaning = {args.result_grid.scales, false, args.result_grid.top, (int32_t)args.result_grid.top, 1.0f};
    switch (args.own == UINT32_MAX ? args.output_type : args.own_type) {
    case ISGQ_FLOAT16: *result = launch<iq_as_f16>(device, stream, args); break;
    case ISGQ_BFLOAT16: *result = launch<iq_as_bf16>(device, stream, args); break;
    default: *result = launch<iq_as_f32>(device, stream, args);
    }
    return true;
}

template <typename as_t, int width> static isgq_result_t load_width(int device)
{
    return iq_cuda_load<combine_codes<as_t, width, WRITE>, combine_codes<as_t, width, REQUANTIZE>,
                        combine_codes<as_t, width, MEASURE>>(device);
}

template <typename as_t> static isgq_result_t load_type(int device)
{
    IQ_TRY((load_width<as_t, 4>(device)));
    return load_width<as_t, 8>(device);
}

isgq_result_t iq_cuda_warm_combine_codes(int device)
{
    IQ_TRY(load_type<iq_as_f32>(device));
    IQ_TRY(load_type<iq_as_f16>(device));
    return load_type<iq_as_bf16>(device);
}
