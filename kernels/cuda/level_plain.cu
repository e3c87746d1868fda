/* SPDX-License-Identifier: Apache-2.0 */
/* Levels that do not depend on how a bucket's values are spread: qsgd, natural and mx. See codec/levels_plain.c and mx.c. */
#include "kernels/cuda/level_encode.h"

template <typename team_t> struct qsgd {
    struct fitted_t {
        float inverse;
        int32_t half;
    };
    static constexpr bool uses_random = true;

    static __device__ __forceinline__ fitted_t fit(const iq_level_args_t &args, const iq_level_run_t &run, const team_t &team, float most)
    {
        uint32_t top = iq_qsgd_top(args.call.bits);
        float norm = most;
        if (args.call.euclidean) {
            if (team.lane < 32) {
                double squares = iq_sum_in_order(run.count, [&](uint32_t i) {
                    double value = (double)team.value(i);
                    return value * value;
                });
                if (team.lane == 0)
                    team.header()[0] = iq_euclidean_norm(squares);
            }
            team.sync();
            norm = team.header()[0];
        }
        norm = norm < IQ_LARGEST_NORM ? norm : IQ_LARGEST_NORM;
        team.sync();
        if (team.lane == 0)
            team.header()[0] = norm;
        return {iq_inverse_step(top, norm), (int32_t)(top / 2)};
    }

    static __device__ __forceinline__ uint32_t code(const fitted_t &fitted, float value, uint32_t random24)
    {
        return (uint32_t)(iq_round_stochastic(value * fitted.inverse, random24, -fitted.half, fitted.half) + fitted.half);
    }
};

template <typename team_t> struct natural {
    struct fitted_t {
    };
    static constexpr bool uses_random = true;

    static __device__ __forceinline__ fitted_t fit(const iq_level_args_t &, const iq_level_run_t &, const team_t &team, float)
    {
        if (team.lane == 0)
            team.room->header[0] = 0;
        return {};
    }

    static __device__ __forceinline__ uint32_t code(const fitted_t &, float value, uint32_t random24)
    {
        return iq_natural_code(value, random24);
    }
};

template <typename team_t> struct mx_power {
    struct fitted_t {
        float inverse;
        int32_t half;
    };

    static __device__ __forceinline__ fitted_t fit(const iq_level_args_t &args, const iq_level_run_t &, const team_t &team, float most)
    {
        int32_t half = iq_mx_half(args.call.bits);
        uint32_t field = iq_mx_field(most, half);
        if (team.lane == 0)
            team.room->header[0] = field;
        return {1.0f / iq_mx_step(field), half};
    }
};

template <typename team_t> struct mx : mx_power<team_t> {
    typedef typename mx_power<team_t>::fitted_t fitted_t;
    static constexpr bool uses_random = true;

    static __device__ __forceinline__ uint32_t code(const fitted_t &fitted, float value, uint32_t random24)
    {
        return (uint32_t)(iq_round_stochastic(value * fitted.inverse, random24, -fitted.half, fitted.half) + fitted.half);
    }
};

template <typename team_t> struct mx_nearest : mx_power<team_t> {
    typedef typename mx_power<team_t>::fitted_t fitted_t;
    static constexpr bool uses_random = false;

    static __device__ __forceinline__ uint32_t code(const fitted_t &fitted, float value, uint32_t)
    {
        return (uint32_t)(iq_round_nearest(value * fitted.inverse, -fitted.half, fitted.half) + fitted.half);
    }
};

isgq_result_t iq_level_encode_plain(int device, isgq_stream_t stream, const iq_level_args_t &args)
{
    switch (args.call.kind) {
    case IQ_CUDA_QSGD: return iq_level_launch_encode<qsgd>(device, stream, args);
    case IQ_CUDA_NATURAL: return iq_level_launch_encode<natural>(device, stream, args);
    default:
        if (args.call.nearest)
            return iq_level_launch_encode<mx_nearest>(device, stream, args);
        return iq_level_launch_encode<mx>(device, stream, args);
    }
}

isgq_result_t iq_level_warm_plain(int device)
{
    IQ_TRY(iq_level_load_encode<qsgd>(device));
    IQ_TRY(iq_level_load_encode<natural>(device));
    IQ_TRY(iq_level_load_encode<mx>(device));
    return iq_level_load_encode<mx_nearest>(device);
}
