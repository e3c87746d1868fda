/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scales: the largest magnitude in each bucket. Magnitudes of floats order as their bits do, with NaN above Inf, so maxima are taken
 * of integers: within a lane, then within a warp, then with one atomic operation for each bucket that the warp went through.
 */
#include "kernels/cuda/map_parts.h"

#include <type_traits>

enum { QUAD = 4, QUADS = 4, STRIDE = 32 * QUAD, TILE = QUADS * STRIDE };

typedef struct measure_args {
    const void *src;
    uint32_t count;
    iq_buckets_t buckets;
    bool aligned;
    uint32_t top;
    int32_t zero;
    float divisor;
    const float *source_scales;
    float *scales;
} measure_args_t;

/* Sums of codes as values; a shim of the element types. */
struct as_sums {
    typedef uint32_t item_t;
};

template <typename as_t>
static __device__ __forceinline__ uint32_t magnitude(const measure_args_t &args, typename as_t::item_t item, float unit)
{
    float value;
    if constexpr (std::is_same<as_t, as_sums>::value)
        value = iq_code_value(item, args.zero, unit);
    else
        value = as_t::widen(item);
    if (args.divisor != 1.0f)
        value = value / args.divisor;
    return iq_float_bits(value) & 0x7fffffffu;
}

template <typename as_t> static __device__ __forceinline__ float unit_at(const measure_args_t &args, uint32_t bucket)
{
    if constexpr (std::is_same<as_t, as_sums>::value)
        return iq_half_step(args.top, __ldg(args.source_scales + bucket));
    else
        return 0.0f;
}

static __device__ __forceinline__ void raise_scale(const measure_args_t &args, uint32_t bucket, uint32_t most)
{
    uint32_t *scale = (uint32_t *)args.scales + bucket;
    most = most > 0x7f800000u ? 0x7f800000u : most;
    if (most > *(volatile uint32_t *)scale) /* scales only grow: an old one can only be too small */
        atomicMax(scale, most);
}

/* What a warp knows of the bucket that it is in; the same bucket in all lanes. */
typedef struct running {
    uint32_t bucket, most;
} running_t;

static __device__ __forceinline__ void flush(const measure_args_t &args, const running_t &running)
{
    uint32_t most = __reduce_max_sync(0xffffffffu, running.most);
    if (threadIdx.x % 32 == 0)
        raise_scale(args, running.bucket, most);
}

static __device__ __forceinline__ void go_on(const measure_args_t &args, running_t &running, uint32_t bucket)
{
    if (bucket != running.bucket) {
        flush(args, running);
        running = {bucket, 0};
    }
}

template <typename as_t>
static __device__ __forceinline__ uint32_t measure_tile(const measure_args_t &args, uint32_t i, float unit, uint32_t most)
{
    typedef typename as_t::item_t item_t;
    const item_t *src = (const item_t *)args.src + i;
    iq_vector<item_t, QUAD> item[QUADS];
#pragma unroll
    for (int u = 0; u < QUADS; u++)
        item[u] = iq_load<QUAD>(src + u * STRIDE);
#pragma unroll
    for (int u = 0; u < QUADS; u++) {
#pragma unroll
        for (int j = 0; j < QUAD; j++) {
            uint32_t found = magnitude<as_t>(args, item[u].item[j], unit);
            most = found > most ? found : most;
        }
    }
    return most;
}

/* 32 elements, some of which may not exist. */
template <typename as_t> static __device__ __forceinline__ void measure_row(const measure_args_t &args, uint32_t start, running_t &running)
{
    uint32_t i = start + threadIdx.x % 32, end = start + 32 < args.count ? start + 32 : args.count;
    uint32_t bucket = iq_bucket_at(args.buckets, start), found = 0;
    bool one = end <= iq_bucket_end(args.buckets, bucket);
    if (i < end) {
        uint32_t mine = one ? bucket : iq_bucket_at(args.buckets, i);
        found = magnitude<as_t>(args, ((const typename as_t::item_t *)args.src)[i], unit_at<as_t>(args, mine));
        if (!one)
            raise_scale(args, mine, found);
    }
    if (one) {
        go_on(args, running, bucket);
        running.most = found > running.most ? found : running.most;
    }
}

template <typename as_t> static __global__ void __launch_bounds__(IQ_CUDA_THREADS) measure_all(measure_args_t args)
{
    uint32_t tiles = (args.count - 1) / TILE + 1, lane = threadIdx.x % 32;
    running_t running = {0, 0};
    for (uint32_t tile = blockIdx.x * IQ_CUDA_WARPS + threadIdx.x / 32; tile < tiles; tile += gridDim.x * IQ_CUDA_WARPS) {
        uint32_t start = tile * TILE, end = start + TILE, bucket = iq_bucket_at(args.buckets, start);
        if (args.aligned && end <= args.count && end <= iq_bucket_end(args.buckets, bucket)) {
            go_on(args, running, bucket);
            running.most = measure_tile<as_t>(args, start + lane * QUAD, unit_at<as_t>(args, bucket), running.most);
        } else {
#pragma unroll 1
            for (; start < end && start < args.count; start += 32)
                measure_row<as_t>(args, start, running);
        }
    }
    flush(args, running);
}

static isgq_result_t launch(int device, isgq_stream_t stream, const iq_cuda_source_t *source, const measure_args_t &args)
{
    size_t blocks = (args.count - 1) / (TILE * IQ_CUDA_WARPS) + 1;
    if (source->form == IQ_CUDA_SUMS)
        return iq_cuda_launch<measure_all<as_sums>>(device, stream, blocks, args);
    switch (source->type) {
    case ISGQ_FLOAT32: return iq_cuda_launch<measure_all<iq_as_f32>>(device, stream, blocks, args);
    case ISGQ_FLOAT16: return iq_cuda_launch<measure_all<iq_as_f16>>(device, stream, blocks, args);
    default: return iq_cuda_launch<measure_all<iq_as_bf16>>(device, stream, blocks, args);
    }
}

isgq_result_t iq_cuda_run_measure(int device, isgq_stream_t stream, const iq_cuda_source_t *source, uint64_t first, size_t bucket,
                              size_t count, float *scales)
{
    if (count == 0)
        return ISGQ_SUCCESS;
    if (source->form == IQ_CUDA_CODES)
        return IQ_FAIL(ISGQ_ERR_INTERNAL, "measure: packed codes have no scales to find");
    ON_DEVICE(device);
    size_t bytes = source->form == IQ_CUDA_SUMS || source->type == ISGQ_FLOAT32 ? 4 : 2;
    for (size_t done = 0, length; done < count; done += length) {
        size_t skipped = bucket == 0 ? 0 : (size_t)((first % bucket + done) / bucket);
        measure_args_t args = {};
        length = count - done < IQ_CUDA_PIECE ? count - done : IQ_CUDA_PIECE;
        args.src = (const char *)source->data + done * bytes;
        args.count = (uint32_t)length;
        args.buckets = iq_buckets_of(first + done, bucket);
        args.aligned = (uintptr_t)args.src % 16 == 0;
        args.top = source->top;
        args.zero = source->zero;
        args.divisor = source->divisor;
        args.source_scales = source->scales == NULL ? NULL : source->scales + skipped;
        args.scales = scales + skipped;
        IQ_TRY(launch(device, stream, source, args));
    }
    return ISGQ_SUCCESS;
}

isgq_result_t iq_cuda_warm_measure(int device)
{
    return iq_cuda_load<measure_all<as_sums>, measure_all<iq_as_f32>, measure_all<iq_as_f16>, measure_all<iq_as_bf16>>(device);
}
