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

/* One instruction. From plain C compilers make a product of 64-bit numbers, or two of 32 bits. */
__device__ __forceinline__ uint64_t iq_multiply_wide(uint32_t a, uint32_t b)
{
#ifdef __CUDA_ARCH__
    uint64_t product;
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
    return product;
#else
    return (uint64_t)a * b;
#endif
}

/* iq_philox of philox.h with that product: half the instructions. */
__device__ __forceinline__ iq_philox_block_t iq_cuda_philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1)
{
#pragma unroll
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = iq_multiply_wide(0xD2511F53u, c0), p1 = iq_multiply_wide(0xCD9E8D57u, c2);
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    iq_philox_block_t block = {{c0, c1, c2, c3}};
    return block;
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

/* One piece of an iq_cuda_map_t. */
typedef struct iq_map_args {
    const void *src;
    void *dst;
    uint32_t count;
    iq_buckets_t buckets;
    isgq_data_type_t src_type, dst_type, through;
    unsigned src_width, dst_width;
    bool src_aligned, dst_aligned; /* elements may be moved 16 bytes at a time */
    bool accumulate, as_values, foreign_scales;
    uint32_t most, top;
    int32_t zero;
    float divisor;
    const float *scales, *grid_scales;
    bool quantize, stochastic;
    bool regular;                  /* random bits of elements 4k to 4k + 3 are one block, with the counter below */
    uint32_t grid_top;
    int32_t low, high;
    float shift;
    uint32_t tag;                  /* stream and rank, as iq_draw has them in its counter */
    uint64_t seed, call, first;
    uint32_t counter0, counter1;   /* Philox counter of element 0 */
    uint32_t *fault;
} iq_map_args_t;

/* Kernels on quads of elements, for the forms that move most bytes; false if there is none for these. */
bool iq_cuda_map_quads(int device, isgq_stream_t stream, const iq_cuda_map_t *map, const iq_map_args_t *args, isgq_result_t *result);
isgq_result_t iq_cuda_warm_quads(int device);

#endif
