/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Values to codes in lanes of 32-bit words, and sums of such words back to values: what any allreduce of integers can add up, as
 * long as a lane holds the sum. A warp takes 128 words at a time. Values are read and written as quads side by side, words too;
 * between the two the codes lie in shared memory, as a word's lanes need not be a divisor of anything. The usual numbers of lanes
 * are known to the compiler.
 */
#include "kernels/cuda/quads.h"

enum { QUAD = IQ_QUAD, STRIDE = IQ_QUADS_STRIDE, WORDS = 128, MOST_LANES = 32 };

/* A map between values and words of `lanes` lanes. */
typedef struct lanes_args {
    iq_map_args_t map;
    uint32_t lanes, width;
} lanes_args_t;

/* `known` lanes, or those that the launch has if that is 0; then random bits may be irregular, too. */
template <int known> static __device__ __forceinline__ uint32_t lanes_of(const lanes_args_t &args)
{
    return known ? known : args.lanes;
}

/* ---- values to lanes ---- */

static __device__ __forceinline__ uint32_t gather(const unsigned char *code, uint32_t lanes, uint32_t width)
{
    uint32_t word = 0;
#pragma unroll
    for (uint32_t lane = 0; lane < lanes; lane++)
        word |= (uint32_t)code[lane] << lane * width;
    return word;
}

/* What the scale of a bucket comes to, kept until a lane gets to another bucket. */
typedef struct factor {
    uint32_t bucket;
    float value;
} factor_t;

/* Four codes below 256 in a word. */
template <typename as_t, bool regular>
static __device__ __forceinline__ uint32_t encode_quad(const iq_map_args_t &map, uint64_t call, uint32_t i, factor_t &inverse)
{
    if (i >= map.count)
        return 0;
    uint32_t bucket = iq_bucket_at(map.buckets, i);
    bool even = iq_is_even(map.count, map.buckets, i + QUAD, bucket);
    float value[QUAD];
    iq_load_quad<as_t>(map.src, map.src_aligned, i, map.count, value);
    if (bucket != inverse.bucket)
        inverse = {bucket, iq_inverse_at(map.grid, bucket)};
    iq_codes_t code = iq_quad_codes<regular>(map.grid, map.buckets, call, i, map.count, even, inverse.value, value);
    return code.item[0] | code.item[1] << 8 | code.item[2] << 16 | code.item[3] << 24;
}

template <typename as_t, int known> static __global__ void __launch_bounds__(IQ_CUDA_THREADS) encode_lanes(lanes_args_t args)
{
    __shared__ __align__(16) unsigned char stages[IQ_CUDA_WARPS][WORDS * (known ? known : MOST_LANES)];
    unsigned char *stage = stages[threadIdx.x / 32];
    uint32_t lanes = lanes_of<known>(args), lane = threadIdx.x % 32, length = WORDS * lanes,
             tiles = (args.map.count - 1) / length + 1;
    uint32_t words = (args.map.count - 1) / lanes + 1;
    uint64_t call = iq_call_now(args.map.grid.call, args.map.grid.replays);
    factor_t inverse = {UINT32_MAX, 0.0f};
    for (uint32_t tile = blockIdx.x * IQ_CUDA_WARPS + threadIdx.x / 32; tile < tiles; tile += gridDim.x * IQ_CUDA_WARPS) {
#pragma unroll(known ? known : 1)
        for (uint32_t q = 0; q < lanes; q++)
            ((uint32_t *)stage)[q * 32 + lane] =
                encode_quad<as_t, known != 0>(args.map, call, tile * length + q * STRIDE + lane * QUAD, inverse);
        __syncwarp();
#pragma unroll
        for (uint32_t w = 0; w < WORDS / 32; w++) {
            uint32_t mine = w * 32 + lane;
            if (tile * WORDS + mine < words)
                ((uint32_t *)args.map.dst)[tile * WORDS + mine] = gather(stage + mine * lanes, lanes, args.width);
        }
        __syncwarp(); /* all have read the stage */
    }
}

/* ---- lanes to values ---- */

/* A tile's words to the stage, 0 beyond the last. */
static __device__ __forceinline__ void load_words(const iq_map_args_t &map, uint32_t first, uint32_t words, uint32_t *stage)
{
    const uint32_t *src = (const uint32_t *)map.src;
    uint32_t lane = threadIdx.x % 32;
    if (map.src_aligned && first + WORDS <= words) {
        iq_store(stage + 4 * lane, iq_load<4>(src + first + 4 * lane));
    } else {
#pragma unroll 1
        for (uint32_t i = lane; i < WORDS; i += 32)
            stage[i] = first + i < words ? src[first + i] : 0;
    }
    __syncwarp();
}

/* Four lanes that follow each other, from element e of the stage on. */
template <int known>
static __device__ __forceinline__ iq_codes_t read_lanes(const lanes_args_t &args, const uint32_t *stage, uint32_t e)
{
    uint32_t lanes = lanes_of<known>(args), mask = 0xffffffffu >> (32 - args.width);
    uint32_t word = e * (65535 / lanes + 1) >> 16, lane = e - word * lanes; /* exact below 2^14 for the lanes that there are */
    iq_codes_t code;
#pragma unroll
    for (int j = 0; j < QUAD; j++) {
        code.item[j] = stage[word] >> lane * args.width & mask;
        lane++;
        word += lane == lanes;
        lane = lane == lanes ? 0 : lane;
    }
    return code;
}

/* Is a code too large? */
template <typename as_t>
static __device__ __forceinline__ bool decode_quad(const iq_map_args_t &map, uint32_t i, const iq_codes_t &code, factor_t &unit)
{
    uint32_t bucket = iq_bucket_at(map.buckets, i);
    bool even = iq_is_even(map.count, map.buckets, i + QUAD, bucket), too_large = false;
    float value[QUAD];
    if (bucket != unit.bucket)
        unit = {bucket, iq_unit_at(map.meaning, map.meaning.scales, map.fault, bucket)};
#pragma unroll
    for (uint32_t j = 0; j < QUAD; j++)
        too_large |= code.item[j] > map.most && i + j < map.count;
    iq_quad_values(map.meaning, map.buckets, map.fault, i, map.count, even, unit.value, code, value);
    iq_store_quad<as_t>(map.dst, map.dst_aligned, map.accumulate, i, map.count, value);
    return too_large;
}

/* Asked for full occupancy, ptxas would rather spill a register than give up two blocks of eight: six are asked for. */
template <typename as_t, int known> static __global__ void __launch_bounds__(IQ_CUDA_THREADS, 6) decode_lanes(lanes_args_t args)
{
    __shared__ __align__(16) uint32_t stages[IQ_CUDA_WARPS][WORDS];
    uint32_t *stage = stages[threadIdx.x / 32], lanes = lanes_of<known>(args), lane = threadIdx.x % 32, length = WORDS * lanes;
    uint32_t tiles = (args.map.count - 1) / length + 1, words = (args.map.count - 1) / lanes + 1;
    factor_t unit = {UINT32_MAX, 0.0f};
    bool too_large = false;
    for (uint32_t tile = blockIdx.x * IQ_CUDA_WARPS + threadIdx.x / 32; tile < tiles; tile += gridDim.x * IQ_CUDA_WARPS) {
        load_words(args.map, tile * WORDS, words, stage);
#pragma unroll(known > 4 ? 2 : known ? known : 1)
        for (uint32_t q = 0; q < lanes; q++) {
            uint32_t e = q * STRIDE + lane * QUAD;
            if (tile * length + e < args.map.count)
                too_large |= decode_quad<as_t>(args.map, tile * length + e, read_lanes<known>(args, stage, e), unit);
        }
        __syncwarp(); /* all have read the stage */
    }
    if (too_large)
        iq_report_fault(args.map.fault, IQ_CUDA_BAD_CODE);
}

/* ---- launches ---- */

static unsigned width_of(const iq_cuda_map_t *map)
{
    return map->target.form == IQ_CUDA_LANES ? map->target.width : map->source.width;
}

size_t iq_cuda_lanes_piece(const iq_cuda_map_t *map) { return IQ_CUDA_PIECE - IQ_CUDA_PIECE % (WORDS * (32 / width_of(map))); }

template <typename as_t, int known>
static isgq_result_t launch_known(int device, isgq_stream_t stream, bool encodes, const lanes_args_t &args)
{
    size_t blocks = (args.map.count - 1) / ((size_t)WORDS * args.lanes * IQ_CUDA_WARPS) + 1;
    return encodes ? iq_cuda_launch<encode_lanes<as_t, known>>(device, stream, blocks, args)
                   : iq_cuda_launch<decode_lanes<as_t, known>>(device, stream, blocks, args);
}

template <typename as_t> static isgq_result_t launch(int device, isgq_stream_t stream, bool encodes, const lanes_args_t &args)
{
    bool regular = !encodes || args.map.grid.regular;
    switch (regular ? args.lanes : 0) {
    case 2: return launch_known<as_t, 2>(device, stream, encodes, args);
    case 3: return launch_known<as_t, 3>(device, stream, encodes, args);
    case 4: return launch_known<as_t, 4>(device, stream, encodes, args);
    case 5: return launch_known<as_t, 5>(device, stream, encodes, args);
    case 6: return launch_known<as_t, 6>(device, stream, encodes, args);
    default: return launch_known<as_t, 0>(device, stream, encodes, args);
    }
}

isgq_result_t iq_cuda_map_lanes(int device, isgq_stream_t stream, const iq_cuda_map_t *map, const iq_map_args_t *pieces)
{
    lanes_args_t args = {*pieces, 32 / width_of(map), width_of(map)};
    bool encodes = map->source.form == IQ_CUDA_VALUES, rounds = map->through == ISGQ_FLOAT16 || map->through == ISGQ_BFLOAT16;
    bool known = encodes ? map->grid.used && map->grid.top < 256 && map->source.divisor == 1.0f
                         : map->target.form == IQ_CUDA_VALUES && !map->grid.used;
    if (!known || rounds)
        return IQ_FAIL(ISGQ_ERR_INTERNAL, "map: lanes are made of values on a grid, and become values");
    switch (encodes ? map->source.type : map->target.type) {
    case ISGQ_FLOAT32: return launch<iq_as_f32>(device, stream, encodes, args);
    case ISGQ_FLOAT16: return launch<iq_as_f16>(device, stream, encodes, args);
    default: return launch<iq_as_bf16>(device, stream, encodes, args);
    }
}

template <typename as_t> static isgq_result_t load_all(int device)
{
    return iq_cuda_load<encode_lanes<as_t, 0>, encode_lanes<as_t, 2>, encode_lanes<as_t, 3>, encode_lanes<as_t, 4>,
                        encode_lanes<as_t, 5>, encode_lanes<as_t, 6>, decode_lanes<as_t, 0>, decode_lanes<as_t, 2>,
                        decode_lanes<as_t, 3>, decode_lanes<as_t, 4>, decode_lanes<as_t, 5>, decode_lanes<as_t, 6>>(device);
}

isgq_result_t iq_cuda_warm_lanes(int device)
{
    IQ_TRY(load_all<iq_as_f32>(device));
    IQ_TRY(load_all<iq_as_f16>(device));
    return load_all<iq_as_bf16>(device);
}
