/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What nvcc gives to kernels, for a C++ compiler. A thread of a kernel is a fiber; all fibers of a block run on the thread of their
 * stream, so that `static thread_local` is what a block shares. Overloads are CUDA's own and no more: what does not compile there
 * (atomicAdd on uint64_t, say) should not compile here.
 */
#ifndef CUDASIM_DEVICE_H
#define CUDASIM_DEVICE_H

#include <cudasim_types.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static thread_local
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

/* ---- where a thread is ---- */

extern __thread uint3 threadIdx, blockIdx;
extern __thread dim3 blockDim, gridDim;
static constexpr int warpSize = 32;

/* ---- what threads do together ---- */

typedef enum cudasim_warp {
    CUDASIM_WARP_SYNC,
    CUDASIM_WARP_SHUFFLE, /* the value of lane `from` */
    CUDASIM_WARP_BALLOT,
    CUDASIM_WARP_MAX_INT,
    CUDASIM_WARP_MAX_UNSIGNED,
    CUDASIM_WARP_MIN_INT,
    CUDASIM_WARP_MIN_UNSIGNED,
    CUDASIM_WARP_ADD,
    CUDASIM_WARP_AND,
    CUDASIM_WARP_OR,
    CUDASIM_WARP_XOR,
} cudasim_warp_t;

/* Waits for all threads of the block; returns for how many of them `predicate` is not 0. */
extern "C" unsigned int cudasim_block_barrier(int predicate);

/* Waits for all lanes of the mask, which call this with the same mask and operation. */
extern "C" uint64_t cudasim_warp_step(unsigned int mask, cudasim_warp_t operation, uint64_t value, unsigned int from);

extern "C" unsigned int cudasim_lane(void);
extern "C" [[noreturn]] void cudasim_trap(void);

static inline void __syncthreads(void) { (void)cudasim_block_barrier(0); }
static inline int __syncthreads_count(int predicate) { return static_cast<int>(cudasim_block_barrier(predicate)); }
static inline int __syncthreads_or(int predicate) { return cudasim_block_barrier(predicate) != 0; }
static inline int __syncthreads_and(int predicate)
{
    return cudasim_block_barrier(predicate) == blockDim.x * blockDim.y * blockDim.z;
}
static inline void __syncwarp(unsigned int mask = 0xffffffffu) { (void)cudasim_warp_step(mask, CUDASIM_WARP_SYNC, 0, 0); }

static inline unsigned int __ballot_sync(unsigned int mask, int predicate)
{
    return static_cast<unsigned int>(cudasim_warp_step(mask, CUDASIM_WARP_BALLOT, predicate != 0, 0));
}
static inline int __any_sync(unsigned int mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
static inline int __all_sync(unsigned int mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

template <typename T> static inline T cudasim_shuffle(unsigned int mask, T value, unsigned int from)
{
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles take values of 4 or 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(value));
    bits = cudasim_warp_step(mask, CUDASIM_WARP_SHUFFLE, bits, from);
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* CUDA has these for int, unsigned, long, long long, float and double; a width divides the warp into parts of a power of two. */
template <typename T> static inline T __shfl_sync(unsigned int mask, T value, int from, int width = warpSize)
{
    unsigned int part = static_cast<unsigned int>(width), lane = cudasim_lane();
    return cudasim_shuffle(mask, value, (lane & ~(part - 1)) | (static_cast<unsigned int>(from) & (part - 1)));
}
template <typename T> static inline T __shfl_up_sync(unsigned int mask, T value, unsigned int delta, int width = warpSize)
{
    unsigned int part = static_cast<unsigned int>(width), lane = cudasim_lane();
    return cudasim_shuffle(mask, value, (lane & (part - 1)) < delta ? lane : lane - delta);
}
template <typename T> static inline T __shfl_down_sync(unsigned int mask, T value, unsigned int delta, int width = warpSize)
{
    unsigned int part = static_cast<unsigned int>(width), lane = cudasim_lane();
    return cudasim_shuffle(mask, value, (lane & (part - 1)) + delta >= part ? lane : lane + delta);
}
template <typename T> static inline T __shfl_xor_sync(unsigned int mask, T value, int bits, int width = warpSize)
{
    /* Lanes of a later part answer with their own value, those of an earlier one can be read. */
    unsigned int part = static_cast<unsigned int>(width), lane = cudasim_lane(), from = lane ^ static_cast<unsigned int>(bits);
    return cudasim_shuffle(mask, value, from > (lane | (part - 1)) ? lane : from);
}

#define CUDASIM_REDUCE(name, type, operation)                                                              \
    static inline type name(unsigned int mask, type value)                                                 \
    {                                                                                                      \
        return static_cast<type>(cudasim_warp_step(mask, operation, static_cast<unsigned int>(value), 0)); \
    }
CUDASIM_REDUCE(__reduce_max_sync, int, CUDASIM_WARP_MAX_INT)
CUDASIM_REDUCE(__reduce_max_sync, unsigned int, CUDASIM_WARP_MAX_UNSIGNED)
CUDASIM_REDUCE(__reduce_min_sync, int, CUDASIM_WARP_MIN_INT)
CUDASIM_REDUCE(__reduce_min_sync, unsigned int, CUDASIM_WARP_MIN_UNSIGNED)
CUDASIM_REDUCE(__reduce_add_sync, int, CUDASIM_WARP_ADD)
CUDASIM_REDUCE(__reduce_add_sync, unsigned int, CUDASIM_WARP_ADD)
CUDASIM_REDUCE(__reduce_and_sync, unsigned int, CUDASIM_WARP_AND)
CUDASIM_REDUCE(__reduce_or_sync, unsigned int, CUDASIM_WARP_OR)
CUDASIM_REDUCE(__reduce_xor_sync, unsigned int, CUDASIM_WARP_XOR)
#undef CUDASIM_REDUCE

/* ---- memory ---- */

static inline void __threadfence_block(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __threadfence_system(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void __trap(void) { cudasim_trap(); }

template <typename T> static inline T __ldg(const T *from) { return *from; }
template <typename T> static inline T __ldcs(const T *from) { return *from; }
template <typename T> static inline T __ldca(const T *from) { return *from; }
template <typename T> static inline T __ldcg(const T *from) { return *from; }
template <typename T> static inline void __stcs(T *to, T value) { *to = value; }
template <typename T> static inline void __stcg(T *to, T value) { *to = value; }
template <typename T> static inline void __stwb(T *to, T value) { *to = value; }

/* Atomics do not order other accesses. */
#define CUDASIM_ATOMICS(type)                                                                                            \
    static inline type atomicAdd(type *word, type value) { return __atomic_fetch_add(word, value, __ATOMIC_RELAXED); }   \
    static inline type atomicExch(type *word, type value) { return __atomic_exchange_n(word, value, __ATOMIC_RELAXED); } \
    static inline type atomicAnd(type *word, type value) { return __atomic_fetch_and(word, value, __ATOMIC_RELAXED); }   \
    static inline type atomicOr(type *word, type value) { return __atomic_fetch_or(word, value, __ATOMIC_RELAXED); }     \
    static inline type atomicXor(type *word, type value) { return __atomic_fetch_xor(word, value, __ATOMIC_RELAXED); }   \
    static inline type atomicCAS(type *word, type compare, type value)                                                   \
    {                                                                                                                    \
        __atomic_compare_exchange_n(word, &compare, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);                   \
        return compare;                                                                                                  \
    }                                                                                                                    \
    static inline type atomicMax(type *word, type value)                                                                 \
    {                                                                                                                    \
        type old = __atomic_load_n(word, __ATOMIC_RELAXED);                                                              \
        while (old < value && !__atomic_compare_exchange_n(word, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) \
            ;                                                                                                            \
        return old;                                                                                                      \
    }                                                                                                                    \
    static inline type atomicMin(type *word, type value)                                                                 \
    {                                                                                                                    \
        type old = __atomic_load_n(word, __ATOMIC_RELAXED);                                                              \
        while (value < old && !__atomic_compare_exchange_n(word, &old, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) \
            ;                                                                                                            \
        return old;                                                                                                      \
    }
CUDASIM_ATOMICS(int)
CUDASIM_ATOMICS(unsigned int)
CUDASIM_ATOMICS(unsigned long long)
#undef CUDASIM_ATOMICS

static inline int atomicSub(int *word, int value) { return __atomic_fetch_sub(word, value, __ATOMIC_RELAXED); }
static inline unsigned int atomicSub(unsigned int *word, unsigned int value)
{
    return __atomic_fetch_sub(word, value, __ATOMIC_RELAXED);
}

/* ---- bits ---- */

template <typename To, typename From> static inline To cudasim_bits(From from)
{
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    memcpy(&to, &from, sizeof(to));
    return to;
}

static inline unsigned int __float_as_uint(float value) { return cudasim_bits<unsigned int>(value); }
static inline int __float_as_int(float value) { return cudasim_bits<int>(value); }
static inline float __uint_as_float(unsigned int bits) { return cudasim_bits<float>(bits); }
static inline float __int_as_float(int bits) { return cudasim_bits<float>(bits); }
static inline long long __double_as_longlong(double value) { return cudasim_bits<long long>(value); }
static inline double __longlong_as_double(long long bits) { return cudasim_bits<double>(bits); }

static inline int __popc(unsigned int bits) { return __builtin_popcount(bits); }
static inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
static inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned int>(bits)); }
static inline int __clzll(long long bits) { return bits == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(bits)); }
static inline int __ffs(int bits) { return __builtin_ffs(bits); }
static inline int __ffsll(long long bits) { return __builtin_ffsll(bits); }
static inline unsigned int __umulhi(unsigned int a, unsigned int b) { return static_cast<unsigned int>((uint64_t{a} * b) >> 32); }
static inline unsigned int __funnelshift_l(unsigned int low, unsigned int high, unsigned int shift)
{
    return static_cast<unsigned int>((((uint64_t{high} << 32) | low) << (shift & 31)) >> 32);
}
static inline unsigned int __funnelshift_r(unsigned int low, unsigned int high, unsigned int shift)
{
    return static_cast<unsigned int>(((uint64_t{high} << 32) | low) >> (shift & 31));
}
static inline unsigned int __brev(unsigned int bits)
{
    unsigned int reversed = 0;
    for (int i = 0; i < 32; i++)
        reversed |= ((bits >> i) & 1u) << (31 - i);
    return reversed;
}
/* Selectors 0..7 only; CUDA's copies of a sign (bit 3) are not here. */
static inline unsigned int __byte_perm(unsigned int x, unsigned int y, unsigned int selector)
{
    uint64_t bytes = (uint64_t{y} << 32) | x, result = 0;
    for (unsigned int i = 0; i < 4; i++)
        result |= ((bytes >> (8 * ((selector >> (4 * i)) & 7))) & 0xff) << (8 * i);
    return static_cast<unsigned int>(result);
}

/* ---- arithmetic that is rounded once, whatever the flags ---- */

static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline float __uint2float_rn(unsigned int value) { return static_cast<float>(value); }
static inline float __int2float_rn(int value) { return static_cast<float>(value); }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __ddiv_rn(double a, double b) { return a / b; }

/* Rounded down: the nearest, or the one below if that is more than the sum (Knuth's exact error of a sum tells). */
static inline float __fadd_rd(float a, float b)
{
    float sum = a + b, of_b = sum - a, error = (a - (sum - of_b)) + (b - of_b);
    if (isinf(sum))
        return sum > 0 && !isinf(a) && !isinf(b) ? __FLT_MAX__ : sum;
    if (sum == 0 && (signbit(a) || signbit(b)))
        return -0.0f;
    return error < 0 ? nextafterf(sum, -INFINITY) : sum;
}

static inline int min(int a, int b) { return b < a ? b : a; }
static inline int max(int a, int b) { return a < b ? b : a; }
static inline unsigned int min(unsigned int a, unsigned int b) { return b < a ? b : a; }
static inline unsigned int max(unsigned int a, unsigned int b) { return a < b ? b : a; }
static inline long min(long a, long b) { return b < a ? b : a; }
static inline long max(long a, long b) { return a < b ? b : a; }
static inline unsigned long min(unsigned long a, unsigned long b) { return b < a ? b : a; }
static inline unsigned long max(unsigned long a, unsigned long b) { return a < b ? b : a; }
static inline long long min(long long a, long long b) { return b < a ? b : a; }
static inline long long max(long long a, long long b) { return a < b ? b : a; }
static inline unsigned long long min(unsigned long long a, unsigned long long b) { return b < a ? b : a; }
static inline unsigned long long max(unsigned long long a, unsigned long long b) { return a < b ? b : a; }
static inline float min(float a, float b) { return fminf(a, b); }
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }

#endif
