/* SPDX-License-Identifier: Apache-2.0 */
/* Levels that do not depend on how a bucket's values are spread: qsgd and natural. See codec/levels_plain.c. */
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

isgq_result_t iq_level_encode_plain(int device, isgq_stream_t stream, const iq_level_args_t &args)
{
    if (args.call.kind == IQ_CUDA_QSGD)
        return iq_level_launch_encode<qsgd>(device, stream, args);
    return iq_level_launch_encode<natural>(device, stream, args);
}

isgq_result_t iq_level_warm_plain(int device)
{
    IQ_TRY(iq_level_load_encode<qsgd>(device));
    return iq_level_load_encode<natural>(device);
}
