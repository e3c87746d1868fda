/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sums without loss: reductions and divisions of every type, with the rules of codec `none`. Integers wrap modulo 2^n; a maximum does
 * not depend on the order, as any NaN makes the one quiet NaN and +0 is above -0. A lane takes 16 bytes of the wider type at a time.
 */
#include "kernels/cuda/map_parts.h"

#include <type_traits>

/* ---- element types ---- */

/* Types that accumulators have: as they are. */
template <typename type_t> struct plain {
    typedef type_t item_t;
    static __device__ __forceinline__ type_t widen(type_t item) { return item; }
    static __device__ __forceinline__ type_t narrow(type_t item) { return item; }
};

/* Arithmetic modulo 2^n happens in this type, others in their own. */
template <typename type_t, bool = std::is_integral<type_t>::value> struct modular {
    typedef type_t type;
};
template <typename type_t> struct modular<type_t, true> {
    typedef std::make_unsigned_t<std::conditional_t<sizeof(type_t) < 4, int, type_t>> type; /* no promotion to int behind it */
};

static __device__ __forceinline__ bool is_negative(float value) { return iq_float_bits(value) >> 31 != 0; }

static __device__ __forceinline__ bool is_negative(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits >> 63 != 0;
}

static __device__ __forceinline__ void quiet_nan(float *value) { *value = iq_bits_float(0x7fc00000u); }

static __device__ __forceinline__ void quiet_nan(double *value)
{
    uint64_t bits = 0x7ff8000000000000u;
    memcpy(value, &bits, sizeof(bits));
}

struct op_sum {
    template <typename type_t> static __device__ __forceinline__ type_t of(type_t a, type_t b)
    {
        typedef typename modular<type_t>::type wrap_t;
        return (type_t)((wrap_t)a + (wrap_t)b);
    }
};

struct op_prod {
    template <typename type_t> static __device__ __forceinline__ type_t of(type_t a, type_t b)
    {
        typedef typename modular<type_t>::type wrap_t;
        return (type_t)((wrap_t)a * (wrap_t)b);
    }
};

template <bool largest> struct op_extreme {
    template <typename type_t> static __device__ __forceinline__ type_t of(type_t a, type_t b)
    {
        bool keep = largest ? a > b : a < b;
        if constexpr (std::is_floating_point<type_t>::value) {
            type_t nan;
            quiet_nan(&nan);
            if (a != a || b != b)
                return nan;
            keep = keep || (a == b && is_negative(b) == largest);
        }
        return keep ? a : b;
    }
};

/* ---- reduce ---- */

typedef struct reduce_args {
    const void *src;
    void *acc;
    size_t count;
    isgq_red_op_t op;
    bool first;
    bool aligned;
} reduce_args_t;

template <typename op_t, typename type_t, int length>
static __device__ __forceinline__ void combine(iq_vector<type_t, length> &sum, const iq_vector<type_t, length> &term)
{
#pragma unroll
    for (int j = 0; j < length; j++)
        sum.item[j] = op_t::of(sum.item[j], term.item[j]);
}

template <typename type_t, int length>
static __device__ __forceinline__ void apply(isgq_red_op_t op, iq_vector<type_t, length> &sum, const iq_vector<type_t, length> &term)
{
    switch (op) {
    case ISGQ_PROD: combine<op_prod>(sum, term); break;
    case ISGQ_MAX: combine<op_extreme<true>>(sum, term); break;
    case ISGQ_MIN: combine<op_extreme<false>>(sum, term); break;
    default: combine<op_sum>(sum, term);
    }
}

/* `length` elements; of one only, any alignment will do. */
template <typename type_t, typename as_t, int length>
static __device__ __forceinline__ void reduce_some(const reduce_args_t &args, size_t i)
{
    typedef typename as_t::item_t item_t;
    iq_vector<type_t, length> *acc = (iq_vector<type_t, length> *)((type_t *)args.acc + i), sum, term;
    iq_vector<item_t, length> src = *(const iq_vector<item_t, length> *)((const item_t *)args.src + i);
#pragma unroll
    for (int j = 0; j < length; j++)
        term.item[j] = as_t::widen(src.item[j]);
    if (!args.first) {
        sum = *acc;
        apply(args.op, sum, term);
        term = sum;
    }
    *acc = term;
}

template <typename type_t, typename as_t> static __global__ void __launch_bounds__(IQ_CUDA_THREADS) reduce_all(reduce_args_t args)
{
    constexpr int length = 16 / (int)sizeof(type_t);
    size_t thread = (size_t)blockIdx.x * IQ_CUDA_THREADS + threadIdx.x, threads = (size_t)gridDim.x * IQ_CUDA_THREADS;
    size_t vectors = args.aligned ? args.count / length : 0;
    for (size_t i = thread; i < vectors; i += threads)
        reduce_some<type_t, as_t, length>(args, i * length);
    for (size_t i = vectors * length + thread; i < args.count; i += threads)
        reduce_some<type_t, as_t, 1>(args, i);
}

/* ---- divide ---- */

typedef struct divide_args {
    const void *src;
    void *dst;
    size_t count;
    int divisor;
    bool accumulate;
    bool aligned;
} divide_args_t;

/* What codec `none` divides in: it holds the type and any number of ranks. */
template <typename type_t> struct quotient {
    typedef std::conditional_t<std::is_floating_point<type_t>::value, type_t,
                               std::conditional_t<sizeof(type_t) == 1, int,
                                                  std::conditional_t<std::is_same<type_t, uint64_t>::value, uint64_t, int64_t>>>
        type;
};

template <typename type_t, typename as_t, int length>
static __device__ __forceinline__ void divide_some(const divide_args_t &args, size_t i)
{
    typedef typename as_t::item_t item_t;
    typedef typename quotient<type_t>::type wide_t;
    iq_vector<item_t, length> *dst = (iq_vector<item_t, length> *)((item_t *)args.dst + i), result;
    iq_vector<type_t, length> src = *(const iq_vector<type_t, length> *)((const type_t *)args.src + i);
    if (args.divisor != 1) {
#pragma unroll
        for (int j = 0; j < length; j++)
            src.item[j] = (type_t)((wide_t)src.item[j] / (wide_t)args.divisor);
    }
#pragma unroll
    for (int j = 0; j < length; j++)
        result.item[j] = as_t::narrow(src.item[j]);
    if (args.accumulate) {
        iq_vector<item_t, length> before = *dst;
#pragma unroll
        for (int j = 0; j < length; j++)
            result.item[j] = as_t::narrow(op_sum::of(as_t::widen(before.item[j]), as_t::widen(result.item[j])));
    }
    *dst = result;
}

template <typename type_t, typename as_t> static __global__ void __launch_bounds__(IQ_CUDA_THREADS) divide_all(divide_args_t args)
{
    constexpr int length = sizeof(type_t) == 1 ? 4 : 16 / (int)sizeof(type_t); /* sixteen divisions would be much code */
    size_t thread = (size_t)blockIdx.x * IQ_CUDA_THREADS + threadIdx.x, threads = (size_t)gridDim.x * IQ_CUDA_THREADS;
    size_t vectors = args.aligned ? args.count / length : 0;
    for (size_t i = thread; i < vectors; i += threads)
        divide_some<type_t, as_t, length>(args, i * length);
    for (size_t i = vectors * length + thread; i < args.count; i += threads)
        divide_some<type_t, as_t, 1>(args, i);
}

/* ---- launches ---- */

template <typename type_t, typename as_t>
static isgq_result_t launch_reduce(int device, isgq_stream_t stream, size_t blocks, const reduce_args_t &args)
{
    return iq_cuda_launch<reduce_all<type_t, as_t>>(device, stream, blocks, args);
}

template <typename type_t, typename as_t>
static isgq_result_t launch_divide(int device, isgq_stream_t stream, size_t blocks, const divide_args_t &args)
{
    return iq_cuda_launch<divide_all<type_t, as_t>>(device, stream, blocks, args);
}

/* Both tables have a row for each type of an accumulator, then two for halves beside f32. */
typedef isgq_result_t (*reduce_fn)(int device, isgq_stream_t stream, size_t blocks, const reduce_args_t &args);
typedef isgq_result_t (*divide_fn)(int device, isgq_stream_t stream, size_t blocks, const divide_args_t &args);

typedef struct row {
    isgq_data_type_t acc_type, other_type;
    reduce_fn reduce;
    divide_fn divide;
    isgq_result_t (*warm)(int device);
} row_t;

template <typename type_t, typename as_t> static isgq_result_t warm(int device)
{
    return iq_cuda_load<reduce_all<type_t, as_t>, divide_all<type_t, as_t>>(device);
}

template <typename type_t, typename as_t> static row_t row_of(isgq_data_type_t acc_type, isgq_data_type_t other_type)
{
    return {acc_type, other_type, launch_reduce<type_t, as_t>, launch_divide<type_t, as_t>, warm<type_t, as_t>};
}

static const row_t rows[] = {
    row_of<int8_t, plain<int8_t>>(ISGQ_INT8, ISGQ_INT8),
    row_of<uint8_t, plain<uint8_t>>(ISGQ_UINT8, ISGQ_UINT8),
    row_of<int32_t, plain<int32_t>>(ISGQ_INT32, ISGQ_INT32),
    row_of<uint32_t, plain<uint32_t>>(ISGQ_UINT32, ISGQ_UINT32),
    row_of<int64_t, plain<int64_t>>(ISGQ_INT64, ISGQ_INT64),
    row_of<uint64_t, plain<uint64_t>>(ISGQ_UINT64, ISGQ_UINT64),
    row_of<float, plain<float>>(ISGQ_FLOAT32, ISGQ_FLOAT32),
    row_of<double, plain<double>>(ISGQ_FLOAT64, ISGQ_FLOAT64),
    row_of<float, iq_as_f16>(ISGQ_FLOAT32, ISGQ_FLOAT16),
    row_of<float, iq_as_bf16>(ISGQ_FLOAT32, ISGQ_BFLOAT16),
};

static const row_t *find_row(isgq_data_type_t acc_type, isgq_data_type_t other_type)
{
    for (const row_t &row : rows)
        if (row.acc_type == acc_type && row.other_type == other_type)
            return &row;
    return NULL;
}

static bool are_aligned(const void *one, const void *other) { return ((uintptr_t)one | (uintptr_t)other) % 16 == 0; }

/* A lane takes at least four elements of most types; more blocks than needed do no harm. */
static size_t blocks_for(size_t count) { return (count - 1) / (4 * IQ_CUDA_THREADS) + 1; }

isgq_result_t iq_cuda_run_reduce(int device, isgq_stream_t stream, const iq_cuda_reduce_t *reduce)
{
    if (reduce->count == 0)
        return ISGQ_SUCCESS;
    const row_t *row = find_row(reduce->acc_type, reduce->src_type);
    if (row == NULL)
        return IQ_FAIL(ISGQ_ERR_INTERNAL, "reduce: no values of type %d into accumulators of type %d", (int)reduce->src_type,
                       (int)reduce->acc_type);
    ON_DEVICE(device);
    reduce_args_t args = {reduce->src,   reduce->acc, reduce->count, reduce->op, reduce->first,
                          are_aligned(reduce->src, reduce->acc)};
    return row->reduce(device, stream, blocks_for(args.count), args);
}

isgq_result_t iq_cuda_run_divide(int device, isgq_stream_t stream, const iq_cuda_divide_t *divide)
{
    if (divide->count == 0)
        return ISGQ_SUCCESS;
    const row_t *row = find_row(divide->src_type, divide->dst_type);
    if (row == NULL)
        return IQ_FAIL(ISGQ_ERR_INTERNAL, "divide: no accumulators of type %d into values of type %d", (int)divide->src_type,
                       (int)divide->dst_type);
    ON_DEVICE(device);
    divide_args_t args = {divide->src,        divide->dst, divide->count, divide->divisor, divide->accumulate,
                          are_aligned(divide->src, divide->dst)};
    return row->divide(device, stream, blocks_for(args.count), args);
}

isgq_result_t iq_cuda_warm_native(int device)
{
    for (const row_t &row : rows)
        IQ_TRY(row.warm(device));
    return ISGQ_SUCCESS;
}
