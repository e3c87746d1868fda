/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products of two factors' rows in double precision, written as what is asked for: the gradient itself, or the integers that
 * make it. For rows that were decoded on the host, and for gradients that are no factors' any more; rows decoded on the device
 * are multiplied in factor_multiply.cu.
 *
 * A block makes tiles of 64 x 64 outputs. Sixteen rows at a time lie in shared memory, and a thread adds them to sixteen
 * outputs of its own, 16 rows and 16 columns apart: threads that are neighbours read and write neighbours.
 *
 * Rows of codes: a weight times a code is an integer below 2^23, its product with another code below 2^30, and sums of all
 * ranks' rows stay below 2^53 (codec/factor_internal.h). A double holds every one of them, so nothing is ever rounded: products
 * and sums have the same bits in any order, with and without a fused multiply-add, as on CPUs. Sums start at +0, so that none
 * is -0. Only the last multiplication, division and conversion round.
 *
 * Rows of values: the sums are rounded, in the order of rows.
 */
#include "kernels/cuda/product_parts.h"

enum { TILE = 64, PANEL_ROWS = 16, ACROSS = 16, EACH = TILE / ACROSS };

static_assert(IQ_CUDA_THREADS == ACROSS * ACROSS, "a thread for each 4 x 4 outputs of a tile");

/* ---- what comes in ---- */

struct of_codes {
    typedef int16_t item_t;
    static __device__ __forceinline__ double widen(int16_t code) { return (double)code; }
};

template <typename as_t> struct of_values {
    typedef typename as_t::item_t item_t;
    static __device__ __forceinline__ double widen(item_t item) { return (double)as_t::widen(item); }
};

struct of_int32 {
    typedef int32_t item_t;
    static __device__ __forceinline__ double widen(int32_t sum) { return (double)sum; }
};

struct of_int64 {
    typedef int64_t item_t;
    static __device__ __forceinline__ double widen(int64_t sum) { return (double)sum; }
};

/* ---- the product ---- */

typedef struct product_args {
    const int64_t *weights;
    const void *q, *p;
    size_t rows, m, n, across, tiles; /* `across`: tiles that lie side by side */
    iq_finish_t finish;
} product_args_t;

/* One instruction; contraction is off for the sake of other files. */
static __device__ __forceinline__ double multiply_add(double a, double b, double sum)
{
#ifdef __CUDA_ARCH__
    return __fma_rn(a, b, sum);
#else
    return a * b + sum;
#endif
}

/* Rows first, first + 1, ... of columns first_column, ... of a factor; zeros where there is none. NULL: a column of ones. */
template <typename of_t>
static __device__ __forceinline__ void load_panel(double (&panel)[PANEL_ROWS][TILE], const int64_t *weights, const void *factor,
                                                  size_t rows, size_t columns, size_t first, size_t first_column)
{
    const typename of_t::item_t *items = (const typename of_t::item_t *)factor;
    unsigned column = threadIdx.x % TILE;
#pragma unroll
    for (unsigned r = threadIdx.x / TILE; r < PANEL_ROWS; r += IQ_CUDA_THREADS / TILE) {
        size_t row = first + r;
        double value = 0;
        if (row < rows && first_column + column < columns) {
            value = items != NULL ? of_t::widen(items[row * columns + first_column + column]) : 1;
            if (weights != NULL)
                value *= (double)weights[row];
        }
        panel[r][column] = value;
    }
}

static __device__ __forceinline__ void add_panel(const double (&a)[PANEL_ROWS][TILE], const double (&b)[PANEL_ROWS][TILE],
                                                 unsigned ty, unsigned tx, double (&sums)[EACH][EACH])
{
#pragma unroll
    for (int r = 0; r < PANEL_ROWS; r++) {
        double left[EACH], right[EACH];
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            left[k] = a[r][ty + ACROSS * k];
            right[k] = b[r][tx + ACROSS * k];
        }
#pragma unroll
        for (int i = 0; i < EACH; i++)
#pragma unroll
            for (int j = 0; j < EACH; j++)
                sums[i][j] = multiply_add(left[i], right[j], sums[i][j]);
    }
}

template <typename of_t, typename to_t>
static __global__ void __launch_bounds__(IQ_CUDA_THREADS) multiply_rows(product_args_t args)
{
    __shared__ double a[PANEL_ROWS][TILE], b[PANEL_ROWS][TILE];
    unsigned tx = threadIdx.x % ACROSS, ty = threadIdx.x / ACROSS;
    iq_find_scale(args.finish);
    for (size_t tile = blockIdx.x; tile < args.tiles; tile += gridDim.x) {
        size_t first_i = tile / args.across * TILE, first_j = tile % args.across * TILE;
        double sums[EACH][EACH] = {};
        for (size_t first = 0; first < args.rows; first += PANEL_ROWS) {
            load_panel<of_t>(a, args.weights, args.q, args.rows, args.m, first, first_i);
            load_panel<of_t>(b, NULL, args.p, args.rows, args.n, first, first_j);
            __syncthreads();
            add_panel(a, b, ty, tx, sums);
            __syncthreads();
        }
#pragma unroll
        for (int i = 0; i < EACH; i++)
#pragma unroll
            for (int j = 0; j < EACH; j++) {
                size_t row = first_i + ty + ACROSS * i, column = first_j + tx + ACROSS * j;
                if (row < args.m && column < args.n)
                    to_t::store(args.finish, row * args.n + column, sums[i][j]);
            }
    }
}

/* ---- integers to values ---- */

typedef struct convert_args {
    const void *src;
    size_t count;
    iq_finish_t finish;
} convert_args_t;

template <typename of_t, typename to_t>
static __global__ void __launch_bounds__(IQ_CUDA_THREADS) convert_sums(convert_args_t args)
{
    size_t threads = (size_t)gridDim.x * IQ_CUDA_THREADS;
    iq_find_scale(args.finish);
    for (size_t i = (size_t)blockIdx.x * IQ_CUDA_THREADS + threadIdx.x; i < args.count; i += threads)
        to_t::store(args.finish, i, of_t::widen(((const typename of_t::item_t *)args.src)[i]));
}

/* ---- launches ---- */

typedef struct row {
    bool codes;
    isgq_data_type_t src_type, dst_type;
    isgq_result_t (*product)(int device, isgq_stream_t stream, size_t blocks, const product_args_t &args);
    isgq_result_t (*convert)(int device, isgq_stream_t stream, size_t blocks, const convert_args_t &args);
    isgq_result_t (*warm)(int device);
} row_t;

template <typename of_t, typename to_t> static row_t product_row(bool codes, isgq_data_type_t src_type, isgq_data_type_t dst_type)
{
    return {codes,    src_type,
            dst_type, iq_cuda_launch<multiply_rows<of_t, to_t>, product_args_t>,
            NULL,     iq_cuda_load<multiply_rows<of_t, to_t>>};
}

template <typename of_t, typename to_t> static row_t convert_row(isgq_data_type_t src_type, isgq_data_type_t dst_type)
{
    return {false,
            src_type,
            dst_type,
            NULL,
            iq_cuda_launch<convert_sums<of_t, to_t>, convert_args_t>,
            iq_cuda_load<convert_sums<of_t, to_t>>};
}

static const row_t rows[] = {
    product_row<of_codes, iq_to_values<iq_as_f32>>(true, ISGQ_FLOAT32, ISGQ_FLOAT32),
    product_row<of_codes, iq_to_values<iq_as_f16>>(true, ISGQ_FLOAT16, ISGQ_FLOAT16),
    product_row<of_codes, iq_to_values<iq_as_bf16>>(true, ISGQ_BFLOAT16, ISGQ_BFLOAT16),
    product_row<of_codes, iq_to_integers<int32_t>>(true, ISGQ_INT32, ISGQ_INT32),
    product_row<of_codes, iq_to_integers<int64_t>>(true, ISGQ_INT64, ISGQ_INT64),
    product_row<of_values<iq_as_f32>, iq_to_values<iq_as_f32>>(false, ISGQ_FLOAT32, ISGQ_FLOAT32),
    product_row<of_values<iq_as_f16>, iq_to_values<iq_as_f32>>(false, ISGQ_FLOAT16, ISGQ_FLOAT32),
    product_row<of_values<iq_as_bf16>, iq_to_values<iq_as_f32>>(false, ISGQ_BFLOAT16, ISGQ_FLOAT32),
    convert_row<of_int32, iq_to_values<iq_as_f32>>(ISGQ_INT32, ISGQ_FLOAT32),
    convert_row<of_int32, iq_to_values<iq_as_f16>>(ISGQ_INT32, ISGQ_FLOAT16),
    convert_row<of_int32, iq_to_values<iq_as_bf16>>(ISGQ_INT32, ISGQ_BFLOAT16),
    convert_row<of_int64, iq_to_values<iq_as_f32>>(ISGQ_INT64, ISGQ_FLOAT32),
    convert_row<of_int64, iq_to_values<iq_as_f16>>(ISGQ_INT64, ISGQ_FLOAT16),
    convert_row<of_int64, iq_to_values<iq_as_bf16>>(ISGQ_INT64, ISGQ_BFLOAT16),
};

static size_t tiles_along(size_t count) { return (count - 1) / TILE + 1; }

isgq_result_t iq_cuda_run_product(int device, isgq_stream_t stream, const iq_cuda_product_t *product)
{
    if (product->m == 0 || product->n == 0)
        return ISGQ_SUCCESS;
    isgq_data_type_t dst_type = product->outcome.type, src_type = product->codes ? dst_type : product->type;
    for (const row_t &row : rows)
        if (row.product != NULL && row.codes == product->codes && row.src_type == src_type && row.dst_type == dst_type) {
            ON_DEVICE(device);
            size_t across = tiles_along(product->n), tiles = across * tiles_along(product->m);
            return row.product(device, stream, tiles,
                               {product->weights, product->q, product->p, product->rows, product->m, product->n, across, tiles,
                                iq_finish_of(product->outcome)});
        }
    return IQ_FAIL(ISGQ_ERR_INTERNAL, "product: no rows of %s %d into type %d", product->codes ? "codes for type" : "type",
                   (int)src_type, (int)dst_type);
}

isgq_result_t iq_cuda_run_convert(int device, isgq_stream_t stream, const iq_cuda_convert_t *convert)
{
    if (convert->count == 0)
        return ISGQ_SUCCESS;
    for (const row_t &row : rows)
        if (row.convert != NULL && row.src_type == convert->type && row.dst_type == convert->outcome.type) {
            ON_DEVICE(device);
            return row.convert(device, stream, (convert->count - 1) / IQ_CUDA_THREADS + 1,
                               {convert->src, convert->count, iq_finish_of(convert->outcome)});
        }
    return IQ_FAIL(ISGQ_ERR_INTERNAL, "convert: no sums of type %d into type %d", (int)convert->type, (int)convert->outcome.type);
}

isgq_result_t iq_cuda_warm_product(int device)
{
    for (const row_t &row : rows)
        IQ_TRY(row.warm(device));
    return ISGQ_SUCCESS;
}
