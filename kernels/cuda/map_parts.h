/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What kernels on elements are made of: element types, buckets, and the steps between values and codes. A launch works on a piece of
 * at most IQ_CUDA_PIECE elements, so that indices within it fit 32 bits.
 */
#ifndef ISGQ_KERNELS_CUDA_MAP_PARTS_H
#define ISGQ_KERNELS_CUDA_MAP_PARTS_H

#include "kernels/cuda/cuda_common.h"
#include "kernels/quant_math.h"

#define IQ_CUDA_PIECE ((size_t)1 << 30)

/* ---- buckets ---- */

/* Bucket of element i of a piece, counted from that of element 0: 0 before `head`, then one more every bucket's length. The division
 * is a multiplication, exact for numbers below 2^31 (Granlund and Montgomery, PLDI 1994). */
typedef struct iq_buckets {
    uint32_t head, length, multiplier, shift;
} iq_buckets_t;

static inline iq_buckets_t iq_buckets_of(uint64_t first, size_t bucket)
{
    iq_buckets_t buckets = {UINT32_MAX, 0, 0, 0};
    if (bucket == 0 || bucket - first % bucket >= IQ_CUDA_PIECE)
        return buckets;
    uint64_t length = bucket < (uint64_t)1 << 31 ? bucket : (uint64_t)1 << 31; /* a piece does not reach the end of a longer one */
    uint32_t bits = 0;
    while (((uint64_t)1 << bits) < length)
        bits++;
    /* 2^(31 + bits) / length rounded up; a length of 2^31 makes 2^62. */
    buckets.multiplier = (uint32_t)((((uint64_t)1 << (31 + bits)) + length - 1) / length);
    buckets.shift = 31 + bits;
    buckets.head = (uint32_t)(bucket - first % bucket);
    buckets.length = (uint32_t)length;
    return buckets;
}

__device__ __forceinline__ uint32_t iq_bucket_at(const iq_buckets_t &buckets, uint32_t i)
{
    return i < buckets.head ? 0 : 1 + (uint32_t)(((uint64_t)(i - buckets.head) * buckets.multiplier) >> buckets.shift);
}

/* The first element after a bucket. */
__device__ __forceinline__ uint32_t iq_bucket_end(const iq_buckets_t &buckets, uint32_t bucket)
{
    return buckets.head + bucket * buckets.length;
}

/* ---- random bits ---- */

/* The number of the call: every replay of a graph has one of its own. */
__device__ __forceinline__ uint64_t iq_call_now(uint64_t call, const uint32_t *replays)
{
    return replays == NULL ? call : call + ((uint64_t)__ldg(replays) << 32);
}

/* ---- elements ---- */

/* Conversions of the hardware, with the bits of quant_math.h but for a NaN's. */
__device__ __forceinline__ float iq_widen_f16(uint16_t half)
{
#ifdef __CUDA_ARCH__
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
    return value;
#else
    return iq_f16_to_float(half);
#endif
}

__device__ __forceinline__ uint16_t iq_narrow_f16(float value)
{
#ifdef __CUDA_ARCH__
    uint16_t half;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
#else
    return iq_float_to_f16(value);
#endif
}

__device__ __forceinline__ uint16_t iq_narrow_bf16(float value)
{
#ifdef __CUDA_ARCH__
    uint16_t half;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(half) : "f"(value));
    return half;
#else
    return iq_float_to_bf16(value);
#endif
}

struct iq_as_f32 {
    typedef float item_t;
    static __device__ __forceinline__ float widen(float value) { return value; }
    static __device__ __forceinline__ float narrow(float value) { return value; }
};

struct iq_as_f16 {
    typedef uint16_t item_t;
    static __device__ __forceinline__ float widen(uint16_t half) { return iq_widen_f16(half); }
    static __device__ __forceinline__ uint16_t narrow(float value) { return iq_narrow_f16(value); }
};

struct iq_as_bf16 {
    typedef uint16_t item_t;
    static __device__ __forceinline__ float widen(uint16_t half) { return iq_bf16_to_float(half); }
    static __device__ __forceinline__ uint16_t narrow(float value) { return iq_narrow_bf16(value); }
};

/* `count` neighbours that one instruction loads or stores. */
template <typename item_t, int count> struct alignas(sizeof(item_t) * count) iq_vector {
    item_t item[count];
};

template <int count, typename item_t> __device__ __forceinline__ iq_vector<item_t, count> iq_load(const item_t *from)
{
    return *(const iq_vector<item_t, count> *)from;
}

template <typename item_t, int count> __device__ __forceinline__ void iq_store(item_t *to, const iq_vector<item_t, count> &vector)
{
    *(iq_vector<item_t, count> *)to = vector;
}

/* ---- steps ---- */

__device__ __forceinline__ void iq_report_fault(uint32_t *fault, iq_cuda_fault_t what)
{
    if (fault != NULL)
        *(volatile uint32_t *)fault = what;
}

__device__ __forceinline__ float iq_code_value(uint32_t code, int32_t zero, float unit)
{
    return (float)((int32_t)(2 * code - (uint32_t)zero)) * unit;
}

/* ---- arguments of a launch ---- */

/* An iq_cuda_grid_t for one piece. */
typedef struct iq_grid_args {
    bool used, stochastic;
    bool regular;                /* random bits of elements 4k to 4k + 3 are one block, with the counter below */
    uint32_t top;
    int32_t low, high, base;
    float shift;
    const float *scales;
    uint64_t first;              /* number of element 0 */
    uint32_t tag;                /* stream and rank, as iq_draw has them in its counter */
    uint32_t counter0, counter1; /* Philox counter of element 0 */
    uint64_t seed, call;
    const uint32_t *replays, *strata;
} iq_grid_args_t;

/* Scales from `skipped` buckets on are those of a piece of `count` elements that starts with element `first`. */
static inline iq_grid_args_t iq_grid_args_of(const iq_cuda_grid_t *grid, uint64_t first, size_t count, size_t skipped)
{
    iq_grid_args_t args = {};
    int32_t half = (int32_t)(grid->top / 2);
    uint64_t quad = first / 4;
    args.used = grid->used;
    args.stochastic = grid->stochastic;
    args.regular = first % 4 == 0 && (quad + count / 4 + 1) >> 32 == quad >> 32;
    args.top = grid->top;
    args.low = grid->top == 1 ? 0 : -half;
    args.base = args.low;
    args.high = grid->top == 1 ? 1 : half;
    if (grid->reach > 0) {
        args.low = -grid->reach;
        args.high = grid->reach;
        args.base = grid->base;
    }
    args.shift = grid->top == 1 ? 0.5f : 0.0f;
    args.scales = grid->scales == NULL ? NULL : grid->scales + skipped;
    args.first = first;
    args.tag = (grid->stream << 8) | (grid->rank << 16);
    args.counter0 = (uint32_t)quad;
    args.counter1 = ((uint32_t)(quad >> 32) & 0xffu) | args.tag;
    args.seed = grid->seed;
    args.call = grid->call;
    args.replays = grid->replays;
    args.strata = grid->strata;
    return args;
}

/* Words whose 24 upper bits are what to round with. */
template <int count> static __device__ __forceinline__ void iq_stratify(const iq_grid_args_t &grid, uint32_t word[count])
{
    if (grid.strata == NULL)
        return;
#pragma unroll
    for (int j = 0; j < count; j++)
        word[j] = iq_stratified_bits(word[j], grid.strata) << 8;
}

/* What codes or their sums stand for in one piece. */
typedef struct iq_meaning {
    const float *scales;
    bool foreign_scales;
    uint32_t top;
    int32_t zero;
    float divisor; /* of values too */
} iq_meaning_t;

static inline iq_meaning_t iq_meaning_of(const iq_cuda_source_t *source, size_t skipped)
{
    iq_meaning_t meaning = {};
    meaning.scales = source->scales == NULL ? NULL : source->scales + skipped;
    meaning.foreign_scales = source->foreign_scales;
    meaning.top = source->top;
    meaning.zero = source->zero;
    meaning.divisor = source->divisor;
    return meaning;
}

/* What twice a code less `zero` is multiplied with. Scales may be others than the meaning's own. */
static __device__ __forceinline__ float iq_unit_at(const iq_meaning_t &meaning, const float *scales, uint32_t *fault, uint32_t bucket)
{
    float scale = __ldg(scales + bucket);
    if (meaning.foreign_scales && iq_float_bits(scale) > 0x7f800000u)
        iq_report_fault(fault, IQ_CUDA_BAD_SCALE);
    return iq_half_step(meaning.top, scale);
}

static __device__ __forceinline__ float iq_inverse_at(const iq_grid_args_t &grid, uint32_t bucket)
{
    return iq_inverse_step(grid.top, __ldg(grid.scales + bucket));
}

/* Buckets that end before element `done` of a run. */
static inline size_t iq_buckets_before(uint64_t first, size_t bucket, size_t done)
{
    return bucket == 0 ? 0 : (size_t)((first % bucket + done) / bucket);
}

/* Bytes from a run's start to its element `i`, a multiple of eight, of the lanes of a word, or of five. */
static inline size_t iq_offset_of(iq_cuda_form_t form, isgq_data_type_t type, unsigned width, size_t i)
{
    if (form == IQ_CUDA_CODES)
        return i / 8 * width;
    if (form == IQ_CUDA_LANES)
        return i / (32 / width) * 4;
    if (form == IQ_CUDA_TERNARY)
        return i / 5;
    return i * (form == IQ_CUDA_SUMS || type == ISGQ_FLOAT32 ? 4 : 2);
}

/* May elements be moved 16 bytes at a time? */
static inline bool iq_is_aligned(const void *pointer) { return (uintptr_t)pointer % 16 == 0; }

/* One piece of an iq_cuda_map_t. */
typedef struct iq_map_args {
    const void *src;
    void *dst;
    uint32_t count;
    iq_buckets_t buckets;
    isgq_data_type_t src_type, dst_type, through;
    unsigned src_width, dst_width;
    bool src_aligned, dst_aligned;
    bool accumulate, as_values;
    uint32_t least, most, offset;
    iq_meaning_t meaning;
    iq_grid_args_t grid;
    uint32_t *fault;
} iq_map_args_t;

/* Kernels on quads of elements, for the forms that move most bytes; false if there is none for these. */
bool iq_cuda_map_quads(int device, isgq_stream_t stream, const iq_cuda_map_t *map, const iq_map_args_t *args, isgq_result_t *result);
isgq_result_t iq_cuda_warm_quads(int device);

/* Maps to and from lanes; pieces end with a whole tile of them. */
size_t iq_cuda_lanes_piece(const iq_cuda_map_t *map);
isgq_result_t iq_cuda_map_lanes(int device, isgq_stream_t stream, const iq_cuda_map_t *map, const iq_map_args_t *args);
isgq_result_t iq_cuda_warm_lanes(int device);

/* Maps to and from codes of three levels, likewise. */
size_t iq_cuda_ternary_piece(void);
isgq_result_t iq_cuda_map_ternary(int device, isgq_stream_t stream, const iq_cuda_map_t *map, const iq_map_args_t *args);
isgq_result_t iq_cuda_warm_ternary(int device);

#endif
