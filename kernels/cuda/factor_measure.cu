/* SPDX-License-Identifier: Apache-2.0 */
/*
 * First look at the factors: what each row is like, and, for budgets, what rounding it would add. A warp measures a row of one
 * factor.
 *
 * Four lanes share a chunk of 256 elements; each holds four of the chunk's 16 lanes of sums (kernels/factor_rows.h), so that it
 * loads four neighbours at a time. A warp has eight chunks in hand.
 */
#include "kernels/cuda/factor_parts.h"

enum { QUAD = 4, SHARERS = IQ_FACTOR_LANES / QUAD, CHUNKS = 32 / SHARERS, STEPS = IQ_FACTOR_CHUNK / IQ_FACTOR_LANES };

/* ---- elements ---- */

static __device__ __forceinline__ bool is_negative(float value) { return iq_float_bits(value) > 0x80000000u; }
static __device__ __forceinline__ bool is_negative(uint16_t half) { return half > 0x8000u; }

/* Elements i .. i + 3 of a row; zeros beyond its end. */
template <typename as_t>
static __device__ __forceinline__ iq_vector<typename as_t::item_t, QUAD> load_quad(const typename as_t::item_t *row, uint64_t i,
                                                                                   uint64_t columns, bool aligned)
{
    iq_vector<typename as_t::item_t, QUAD> quad = {};
    if (aligned && i + QUAD <= columns)
        return iq_load<QUAD>(row + i);
#pragma unroll
    for (int j = 0; j < QUAD; j++)
        if (i + j < columns)
            quad.item[j] = row[i + j];
    return quad;
}

/* Row `r` of a factor, and whether it may be loaded in quads. */
template <typename as_t>
static __device__ __forceinline__ const typename as_t::item_t *row_of(const iq_factor_operand_t &operand, uint64_t r,
                                                                      bool *aligned)
{
    const typename as_t::item_t *row = (const typename as_t::item_t *)operand.data + r * operand.columns;
    *aligned = (uintptr_t)row % (QUAD * sizeof(*row)) == 0;
    return row;
}

/* ---- sums ---- */

/* A chunk's 16 lanes as a tree: 8 apart, 4 apart, 2 apart, 1 apart. */
template <typename sum_t> static __device__ __forceinline__ sum_t fold_chunk(sum_t (&sums)[QUAD])
{
#pragma unroll
    for (int far = SHARERS / 2; far > 0; far /= 2)
#pragma unroll
        for (int j = 0; j < QUAD; j++)
            sums[j] += __shfl_xor_sync(IQ_ALL_LANES, sums[j], far);
    return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

/* Chunks in their order. */
template <typename sum_t> static __device__ __forceinline__ sum_t add_chunks(sum_t total, sum_t chunk)
{
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
        total += __shfl_sync(IQ_ALL_LANES, chunk, c * SHARERS);
    return total;
}

/* Of this lane's first quad in the warp's chunks from column `first` on; the next ones are IQ_FACTOR_LANES apart. */
static __device__ __forceinline__ uint64_t lane_start(uint64_t first)
{
    return first + iq_factor_lane() / SHARERS * IQ_FACTOR_CHUNK + iq_factor_lane() % SHARERS * QUAD;
}

/* ---- rows ---- */

/* What a lane has seen of a row. */
typedef struct seen {
    uint32_t peak, nonzero, negative;
} seen_t;

template <typename as_t>
static __device__ __forceinline__ void measure_chunks(const typename as_t::item_t *row, uint64_t start, uint64_t columns,
                                                      bool aligned, seen_t &seen, double (&sums)[QUAD])
{
#pragma unroll 4
    for (int step = 0; step < STEPS; step++) {
        iq_vector<typename as_t::item_t, QUAD> quad = load_quad<as_t>(row, start + step * IQ_FACTOR_LANES, columns, aligned);
#pragma unroll
        for (int j = 0; j < QUAD; j++) {
            uint32_t magnitude = iq_float_bits(as_t::widen(quad.item[j])) & 0x7fffffffu;
            double value = (double)iq_bits_float(magnitude);
            seen.peak = magnitude > seen.peak ? magnitude : seen.peak;
            seen.nonzero += magnitude != 0;
            seen.negative |= is_negative(quad.item[j]);
            sums[j] += value * value;
        }
    }
}

template <typename as_t> static __device__ __forceinline__ void measure_row(const iq_factor_args_t &args, int side, uint64_t r)
{
    const iq_factor_operand_t &operand = args.operand[side];
    bool aligned;
    const typename as_t::item_t *row = row_of<as_t>(operand, r, &aligned);
    iq_factor_side_t *result = side == 0 ? &args.rows[r].x : &args.rows[r].delta;
    uint64_t nonzero = 0;
    seen_t seen = {0, 0, 0};
    double total = 0;
    for (uint64_t first = 0; first < operand.columns; first += CHUNKS * IQ_FACTOR_CHUNK) {
        double sums[QUAD] = {0, 0, 0, 0};
        seen.nonzero = 0;
        measure_chunks<as_t>(row, lane_start(first), operand.columns, aligned, seen, sums);
        total = add_chunks(total, fold_chunk(sums));
        nonzero += __reduce_add_sync(IQ_ALL_LANES, seen.nonzero);
    }
    uint32_t peak = __reduce_max_sync(IQ_ALL_LANES, seen.peak), negative = __reduce_or_sync(IQ_ALL_LANES, seen.negative);
    if (iq_factor_lane() < IQ_FACTOR_WIDTHS)
        result->variance[iq_factor_lane()] = 0;
    if (iq_factor_lane() != 0)
        return;
    result->sum_squares = total;
    result->nonzero = nonzero;
    result->max_abs = iq_bits_float(peak);
    if (peak >= 0x7f800000u)
        atomicOr(&args.facts->bad, 1u);
    if (side == 0 && negative != 0)
        atomicOr(&args.facts->negative, 1u);
}

template <typename as_t> static __global__ void __launch_bounds__(IQ_CUDA_THREADS) measure_rows(iq_factor_args_t args)
{
    for (uint64_t i = iq_factor_warp(); i < 2 * args.call.batch; i += iq_factor_warps())
        measure_row<as_t>(args, (int)(i % 2), i / 2);
}

/* ---- variances ---- */

/* A row's values are first divided by its largest, so that squares stay within floats. */
template <typename as_t>
static __device__ __forceinline__ void spread_row(const iq_factor_args_t &args, int side, uint64_t r, bool is_unsigned)
{
    const iq_factor_operand_t &operand = args.operand[side];
    bool aligned;
    const typename as_t::item_t *row = row_of<as_t>(operand, r, &aligned);
    iq_factor_side_t *result = side == 0 ? &args.rows[r].x : &args.rows[r].delta;
    float peak = result->max_abs, totals[IQ_FACTOR_WIDTHS] = {};
    for (uint64_t first = 0; first < operand.columns; first += CHUNKS * IQ_FACTOR_CHUNK) {
        float sums[IQ_FACTOR_WIDTHS][QUAD] = {};
#pragma unroll 1
        for (int step = 0; step < STEPS; step++) {
            iq_vector<typename as_t::item_t, QUAD> quad =
                load_quad<as_t>(row, lane_start(first) + step * IQ_FACTOR_LANES, operand.columns, aligned);
#pragma unroll
            for (int j = 0; j < QUAD; j++) {
                float value = as_t::widen(quad.item[j]) / peak;
#pragma unroll
                for (int w = 0; w < IQ_FACTOR_WIDTHS; w++)
                    sums[w][j] += iq_factor_spread(fabsf(value) * iq_factor_fineness(IQ_FACTOR_MIN_WIDTH + w, is_unsigned));
            }
        }
#pragma unroll
        for (int w = 0; w < IQ_FACTOR_WIDTHS; w++)
            totals[w] = add_chunks(totals[w], fold_chunk(sums[w]));
    }
#pragma unroll
    for (int w = 0; w < IQ_FACTOR_WIDTHS; w++)
        if (iq_factor_lane() == 0)
            result->variance[w] = iq_factor_variance(IQ_FACTOR_MIN_WIDTH + w, is_unsigned, totals[w]);
}

/* Rows that contribute nothing are left out, as is an X that is all zero. */
template <typename as_t> static __global__ void __launch_bounds__(IQ_CUDA_THREADS, 2) spread_rows(iq_factor_args_t args)
{
    bool unsigned_x = args.facts->negative == 0;
    if (args.facts->bad != 0)
        return;
    for (uint64_t i = iq_factor_warp(); i < 2 * args.call.batch; i += iq_factor_warps()) {
        const iq_factor_row_t *row = &args.rows[i / 2];
        if (!iq_factor_counts(row, args.shape.want_bias))
            continue;
        if (i % 2 == 1)
            spread_row<as_t>(args, 1, i / 2, false);
        else if (row->x.max_abs > 0)
            spread_row<as_t>(args, 0, i / 2, unsigned_x);
    }
}

/* ---- launches ---- */

isgq_result_t iq_factor_measure(int device, isgq_stream_t stream, const iq_factor_args_t &args)
{
    size_t blocks = iq_factor_blocks(2 * args.call.batch);
    switch (args.call.type) {
    case ISGQ_FLOAT32: return iq_cuda_launch<measure_rows<iq_as_f32>>(device, stream, blocks, args);
    case ISGQ_FLOAT16: return iq_cuda_launch<measure_rows<iq_as_f16>>(device, stream, blocks, args);
    default: return iq_cuda_launch<measure_rows<iq_as_bf16>>(device, stream, blocks, args);
    }
}

isgq_result_t iq_factor_spread_rows(int device, isgq_stream_t stream, const iq_factor_args_t &args)
{
    size_t blocks = iq_factor_blocks(2 * args.call.batch);
    switch (args.call.type) {
    case ISGQ_FLOAT32: return iq_cuda_launch<spread_rows<iq_as_f32>>(device, stream, blocks, args);
    case ISGQ_FLOAT16: return iq_cuda_launch<spread_rows<iq_as_f16>>(device, stream, blocks, args);
    default: return iq_cuda_launch<spread_rows<iq_as_bf16>>(device, stream, blocks, args);
    }
}

isgq_result_t iq_factor_warm_measure(int device)
{
    return iq_cuda_load<measure_rows<iq_as_f32>, measure_rows<iq_as_f16>, measure_rows<iq_as_bf16>, spread_rows<iq_as_f32>,
                        spread_rows<iq_as_f16>, spread_rows<iq_as_bf16>>(device);
}
