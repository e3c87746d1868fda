/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which rows are sent, and how: widths and keep probabilities from what was measured, peaks; and, when the peaks of all ranks
 * are known, the order of rows and the sample of them. The arithmetic is that of kernels/factor_rows.h.
 *
 * Every step of the search for a price asks all rows, so it is one block, which has a thread for each lane of sums over rows.
 */
#include "kernels/cuda/factor_parts.h"

/* ---- what a block does together ---- */

struct sum_of {
    static __device__ __forceinline__ double of(double a, double b) { return a + b; }
};

struct largest_of {
    static __device__ __forceinline__ double of(double a, double b) { return iq_larger(a, b); }
};

/* Lanes as a tree, 256 apart, 128 apart, ...: one warp does it, of which each thread has every 32nd. All threads get the
 * result. */
template <typename op> static __device__ double fold_lanes(double value)
{
    enum { EACH = IQ_FACTOR_ROW_LANES / 32 };
    __shared__ double lanes[IQ_FACTOR_ROW_LANES], result;
    lanes[threadIdx.x] = value;
    __syncthreads();
    if (threadIdx.x < 32) {
        double own[EACH];
#pragma unroll
        for (int k = 0; k < EACH; k++)
            own[k] = lanes[threadIdx.x + 32 * k];
#pragma unroll
        for (int half = EACH / 2; half > 0; half /= 2) {
#pragma unroll
            for (int k = 0; k < EACH / 2; k++)
                if (k < half)
                    own[k] = op::of(own[k], own[(k + half) % EACH]);
        }
        for (int half = 16; half > 0; half /= 2)
            own[0] = op::of(own[0], __shfl_xor_sync(IQ_ALL_LANES, own[0], half));
        if (threadIdx.x == 0)
            result = own[0];
    }
    __syncthreads();
    return result;
}

/* ---- widths and keep probabilities ---- */

/* Choose for every row; returns the expected bytes. */
static __device__ double choose_all(const iq_factor_args_t &args, double price)
{
    double expected = 0;
    for (uint64_t r = threadIdx.x; r < args.call.batch; r += IQ_FACTOR_THREADS)
        if (args.rows[r].keep != 0) {
            iq_factor_choose(&args.shape, price, &args.rows[r]);
            expected += iq_factor_expected(&args.rows[r]);
        }
    return fold_lanes<sum_of>(expected);
}

static __device__ double first_price(const iq_factor_args_t &args)
{
    double price = 0;
    for (uint64_t r = threadIdx.x; r < args.call.batch; r += IQ_FACTOR_THREADS)
        if (args.rows[r].keep != 0)
            price = iq_larger(price, iq_factor_price(&args.rows[r], args.shape.want_bias));
    return fold_lanes<largest_of>(price);
}

static __device__ void meet_budget(const iq_factor_args_t &args)
{
    iq_factor_search_t search = iq_factor_search_from(args.call.budget);
    double expected;
    for (uint64_t r = threadIdx.x; r < args.call.batch; r += IQ_FACTOR_THREADS) {
        args.rows[r].keep = iq_factor_counts(&args.rows[r], args.shape.want_bias) ? IQ_FACTOR_CERTAIN : 0;
        args.rows[r].bytes = 0;
    }
    do { /* every thread goes the same way */
        expected = choose_all(args, search.price);
        if (search.phase == IQ_FACTOR_AT_ZERO)
            search.first = first_price(args);
    } while (iq_factor_search_on(&search, expected));
}

static __device__ void find_peaks(const iq_factor_args_t &args)
{
    bool unsigned_x = args.facts->negative == 0;
    double b = 0, c = 0;
    for (uint64_t r = threadIdx.x; r < args.call.batch; r += IQ_FACTOR_THREADS)
        if (args.rows[r].keep != 0) {
            iq_factor_weights_t weights = iq_factor_weigh(&args.rows[r], unsigned_x, args.rows[r].keep, args.shape.want_bias);
            b = iq_larger(b, weights.b);
            c = iq_larger(c, weights.c);
        }
    b = fold_lanes<largest_of>(b);
    c = fold_lanes<largest_of>(c);
    if (threadIdx.x == 0) {
        args.peaks[0] = args.shape.want_bias ? iq_factor_peak(b) : 0;
        args.peaks[1] = iq_factor_peak(c);
    }
}

static __global__ void __launch_bounds__(IQ_FACTOR_THREADS) allot_rows(iq_factor_args_t args)
{
    if (args.facts->bad != 0) {
        if (threadIdx.x < 2)
            args.peaks[threadIdx.x] = iq_bits_float(0x7f800000u);
        return;
    }
    if (args.call.width_x == 0)
        meet_budget(args);
    else
        for (uint64_t r = threadIdx.x; r < args.call.batch; r += IQ_FACTOR_THREADS)
            iq_factor_keep(&args.shape, args.call.width_x, args.call.width_delta, &args.rows[r]);
    find_peaks(args);
}

/* ---- order ---- */

/* By bytes, then by number: every row counts those before it. That is quadratic work, but little for each pair of rows, and
 * where rows are so many that it shows, their product takes longer still. */
static __global__ void __launch_bounds__(IQ_CUDA_THREADS) sort_rows(iq_factor_args_t args)
{
    __shared__ unsigned long long bytes[IQ_CUDA_THREADS];
    uint64_t batch = args.call.batch;
    for (uint64_t first = (uint64_t)blockIdx.x * IQ_CUDA_THREADS; first < batch; first += (uint64_t)gridDim.x * IQ_CUDA_THREADS) {
        uint64_t r = first + threadIdx.x, own = r < batch ? args.rows[r].bytes : 0, place = 0;
        for (uint64_t start = 0; start < batch; start += IQ_CUDA_THREADS) {
            uint64_t count = batch - start < IQ_CUDA_THREADS ? batch - start : (uint64_t)IQ_CUDA_THREADS;
            __syncthreads();
            if (threadIdx.x < count)
                bytes[threadIdx.x] = args.rows[start + threadIdx.x].bytes;
            __syncthreads();
            for (uint64_t i = 0; i < count; i++)
                place += bytes[i] < own || (bytes[i] == own && start + i < r);
        }
        if (r < batch)
            args.order[place] = (uint32_t)r;
    }
}

/* ---- the sample ---- */

static __device__ iq_cuda_factor_pick_t make_pick(const iq_factor_frame_t &frame, const iq_factor_row_t &row, uint32_t r,
                                                  iq_factor_form_t form)
{
    iq_cuda_factor_pick_t pick = {};
    pick.row = r;
    if (form.c > 0) {
        pick.c = iq_factor_weight_byte(form.c, &frame.grid_c);
        pick.step[0] = iq_factor_step_x(&form);
    }
    pick.b = form.on_grid_b ? iq_factor_weight_byte(form.b, &frame.grid_b) : 0;
    pick.step[1] = iq_factor_step_delta(&form);
    pick.width_x = (uint8_t)row.width_x;
    pick.width_delta = (uint8_t)row.width_delta;
    return pick;
}

/* Rows lie on a line, each as long as it is likely; points one apart, the first at random, choose. */
static __global__ void __launch_bounds__(IQ_FACTOR_THREADS, 1) pick_rows(iq_factor_args_t args)
{
    float peak_b = args.shared_peaks[0], peak_c = args.shared_peaks[1];
    iq_factor_frame_t frame = iq_factor_frame_of(args.shape.want_bias, args.facts->negative == 0, peak_b, peak_c);
    uint64_t call = iq_call_now(args.call.call, args.call.replays), batch = args.call.batch;
    uint32_t point = iq_draw(args.call.seed, call, IQ_STREAM_ROWS, (uint32_t)args.call.rank, 0).word[0];
    unsigned long long start = 0, picks = 0, total;
    if (args.facts->bad != 0 || iq_not_finite(peak_b) || iq_not_finite(peak_c))
        batch = 0;
    for (uint64_t first = 0; first < batch; first += IQ_FACTOR_THREADS) {
        uint64_t i = first + threadIdx.x;
        uint32_t r = i < batch ? args.order[i] : 0;
        iq_factor_form_t forms[2] = {};
        bool listed = i < batch && args.rows[r].keep != 0;
        if (listed && args.call.width_x == 0)
            iq_factor_fit_grid(&frame, &args.rows[r]);
        int options = listed ? iq_factor_forms(&frame, &args.rows[r], forms) : 0;
        uint64_t length_0 = options > 0 ? forms[0].keep : 0, length_1 = options > 1 ? forms[1].keep : 0;
        uint64_t from = start + iq_factor_before_in_block(length_0 + length_1, &total);
        start += total;
        uint64_t below = iq_factor_points_below(point, from), below_0 = iq_factor_points_below(point, from + length_0),
                 below_1 = iq_factor_points_below(point, from + length_0 + length_1);
        bool picked = below_1 > below;
        uint64_t place = picks + iq_factor_before_in_block(picked ? 1 : 0, &total);
        picks += total;
        if (picked)
            args.picks[place] = make_pick(frame, args.rows[r], r, below_0 > below ? forms[0] : forms[1]);
    }
    if (threadIdx.x == 0)
        args.facts->picks = (uint32_t)picks;
}

/* ---- launches ---- */

isgq_result_t iq_factor_allot_rows(int device, isgq_stream_t stream, const iq_factor_args_t &args)
{
    (void)device;
    return iq_factor_launch_block<allot_rows>(stream, args);
}

isgq_result_t iq_factor_pick_rows(int device, isgq_stream_t stream, const iq_factor_args_t &args)
{
    if (args.call.batch > 0)
        IQ_TRY(iq_cuda_launch<sort_rows>(device, stream, args.call.batch / IQ_CUDA_THREADS + 1, args));
    return iq_factor_launch_block<pick_rows>(stream, args);
}

isgq_result_t iq_factor_warm_choose(int device) { return iq_cuda_load<allot_rows, sort_rows, pick_rows>(device); }
