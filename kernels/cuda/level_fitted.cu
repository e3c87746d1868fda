/* SPDX-License-Identifier: Apache-2.0 */
/* Levels fitted to a bucket's values without sorting them: onebit, ef_sign, bingrad_b and bingrad_pb. See codec/levels_fitted.c. */
#include "kernels/cuda/level_encode.h"

/* Codes are 1 above the threshold, or on it as well. */
struct threshold_t {
    double at;
    bool is_upper;
    __device__ __forceinline__ uint32_t code(float value) const
    {
        return (double)value > at || (is_upper && (double)value == at);
    }
};

/* header()[code] becomes the mean of the code's values; 0 if there are none. The sums of the two lie side by side in a warp. */
template <typename team_t>
static __device__ __forceinline__ void split_at(const iq_level_run_t &run, const team_t &team, const threshold_t &threshold)
{
    if (team.lane < 32) {
        uint32_t mine = team.lane / IQ_LEVEL_LANES, found = 0;
        double sum = iq_sum_in_order(run.count, [&](uint32_t i) {
            float value = team.value(i);
            bool is_mine = threshold.code(value) == mine;
            found += is_mine;
            return is_mine ? (double)value : 0.0;
        });
#pragma unroll
        for (int far = IQ_LEVEL_LANES / 2; far > 0; far /= 2)
            found += __shfl_xor_sync(0xffffffffu, found, far);
        if (team.lane % IQ_LEVEL_LANES == 0)
            team.header()[mine] = iq_level_mean(sum, found);
    }
}

template <typename team_t> struct onebit {
    typedef threshold_t fitted_t;
    static constexpr bool uses_random = false;

    static __device__ __forceinline__ fitted_t fit(const iq_level_args_t &, const iq_level_run_t &run, const team_t &team, float)
    {
        fitted_t fitted = {0.0, false};
        split_at(run, team, fitted);
        team.sync();
        return fitted;
    }

    static __device__ __forceinline__ uint32_t code(const fitted_t &fitted, float value, uint32_t) { return fitted.code(value); }
};

template <typename team_t> struct bingrad_b {
    typedef threshold_t fitted_t;
    static constexpr bool uses_random = false;

    static __device__ __forceinline__ fitted_t fit(const iq_level_args_t &, const iq_level_run_t &run, const team_t &team, float)
    {
        double sum = iq_run_sum(run, team, [&](uint32_t i) { return (double)team.value(i); });
        fitted_t fitted = {sum / (double)run.count, true};
        split_at(run, team, fitted);
        team.sync();
        if (team.lane == 0 && team.header()[0] > team.header()[1]) /* no value below the mean: all are equal */
            team.header()[0] = team.header()[1];
        return fitted;
    }

    static __device__ __forceinline__ uint32_t code(const fitted_t &fitted, float value, uint32_t) { return fitted.code(value); }
};

template <typename team_t> struct ef_sign {
    struct fitted_t {
    };
    static constexpr bool uses_random = false;

    static __device__ __forceinline__ fitted_t fit(const iq_level_args_t &, const iq_level_run_t &run, const team_t &team, float)
    {
        double sum = iq_run_sum(run, team, [&](uint32_t i) { return fabs((double)team.value(i)); });
        if (team.lane == 0)
            team.header()[0] = iq_level_mean(sum, run.count);
        return {};
    }

    static __device__ __forceinline__ uint32_t code(const fitted_t &, float value, uint32_t) { return value >= 0.0f; }
};

template <typename team_t> struct bingrad_pb {
    struct fitted_t {
        float most;
    };
    static constexpr bool uses_random = true;

    static __device__ __forceinline__ double sum_above(const iq_level_run_t &run, const team_t &team, float at, double grain)
    {
        double sum = 0.0;
        for (uint32_t i = team.lane; i < run.count; i += team.size) {
            float size = fabsf(team.value(i));
            sum += size > at ? iq_level_grained(size, grain) : 0.0;
        }
        return team.total(sum);
    }

    /* As balanced_magnitude of levels_fitted.c, whose sums are these: they are exact. */
    static __device__ __forceinline__ fitted_t fit(const iq_level_args_t &, const iq_level_run_t &run, const team_t &team, float most)
    {
        double grain = iq_level_grain(most), beyond = 0.0;
        int32_t low = -1, high = (int32_t)iq_float_bits(most);
        while (high - low > 1) {
            int32_t middle = low + (high - low) / 2;
            float at = iq_bits_float((uint32_t)middle);
            double sum = sum_above(run, team, at, grain);
            if (iq_is_balanced(sum, run.count, at)) {
                high = middle;
                beyond = sum;
            } else {
                low = middle;
            }
        }
        fitted_t fitted = {iq_balanced_magnitude((uint32_t)high, beyond, run.count)};
        if (team.lane == 0)
            team.header()[0] = fitted.most;
        return fitted;
    }

    static __device__ __forceinline__ uint32_t code(const fitted_t &fitted, float value, uint32_t random24)
    {
        float most = fitted.most;
        return random24 < iq_level_fraction(fminf(fmaxf(value, -most), most), -most, most);
    }
};

isgq_result_t iq_level_encode_fitted(int device, isgq_stream_t stream, const iq_level_args_t &args)
{
    switch (args.call.kind) {
    case IQ_CUDA_ONEBIT: return iq_level_launch_encode<onebit>(device, stream, args);
    case IQ_CUDA_EF_SIGN: return iq_level_launch_encode<ef_sign>(device, stream, args);
    case IQ_CUDA_BINGRAD_B: return iq_level_launch_encode<bingrad_b>(device, stream, args);
    default: return iq_level_launch_encode<bingrad_pb>(device, stream, args);
    }
}

isgq_result_t iq_level_warm_fitted(int device)
{
    IQ_TRY(iq_level_load_encode<onebit>(device));
    IQ_TRY(iq_level_load_encode<ef_sign>(device));
    IQ_TRY(iq_level_load_encode<bingrad_b>(device));
    return iq_level_load_encode<bingrad_pb>(device);
}
