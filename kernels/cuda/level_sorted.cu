/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Levels of orq, which come from the sorted values of a bucket: see codec/levels_fitted.c. A bitonic network sorts them in shared
 * memory, as integers that order as floats do; when the levels are known the values are loaded once more.
 */
#include "kernels/cuda/level_encode.h"

/* Ascending, with the largest keys from `count` to the next power of two. */
template <typename team_t> static __device__ __forceinline__ void sort_values(const team_t &team, uint32_t count)
{
    uint32_t *word = team.room->word, end = 1;
    while (end < count)
        end *= 2;
    for (uint32_t i = team.lane; i < end; i += team.size)
        word[iq_level_at(i)] = i < count ? iq_float_key(iq_bits_float(word[iq_level_at(i)])) : 0xffffffffu;
    team.sync();
    for (uint32_t run = 2; run <= end; run *= 2) {
        for (uint32_t far = run / 2; far > 0; far /= 2) {
            for (uint32_t pair = team.lane; pair < end / 2; pair += team.size) {
                uint32_t i = 2 * pair - pair % far, a = word[iq_level_at(i)], b = word[iq_level_at(i + far)];
                if ((a > b) == ((i & run) == 0)) {
                    word[iq_level_at(i)] = b;
                    word[iq_level_at(i + far)] = a;
                }
            }
            team.sync();
        }
    }
}

template <typename team_t> static __device__ __forceinline__ float sorted_value(const team_t &team, uint32_t i)
{
    return iq_key_float(team.room->word[iq_level_at(i)]);
}

/* The first of the sorted values that is not below `level`, or that is above it. */
template <typename team_t>
static __device__ __forceinline__ uint32_t place_of(const team_t &team, uint32_t count, float level, bool above)
{
    uint32_t low = 0, high = count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        float value = sorted_value(team, middle);
        if (value < level || (above && value == level))
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Half a warp's; the whole warp must call this. */
template <typename team_t>
static __device__ __forceinline__ float level_between(const team_t &team, uint32_t count, float low, float high)
{
    uint32_t first = place_of(team, count, low, false), end = place_of(team, count, high, true);
    double width = (double)high - (double)low;
    double sum = iq_sum_in_order(width > 0.0 ? end - first : 0u,
                                 [&](uint32_t i) { return (double)sorted_value(team, first + i) - (double)low; });
    return width > 0.0 ? sorted_value(team, iq_orq_place(first, end, sum, width)) : low;
}

template <typename team_t> struct orq {
    struct fitted_t {
        const float *levels;
        uint32_t count;
    };
    static constexpr bool uses_random = true;

    /* Intervals are halved until there are enough, each by half a warp. */
    static __device__ __forceinline__ fitted_t fit(const iq_level_args_t &args, const iq_level_run_t &run, const team_t &team, float)
    {
        uint32_t last = args.call.levels - 1, half = team.lane / IQ_LEVEL_LANES, halves = team.size / IQ_LEVEL_LANES;
        float *levels = team.header();
        sort_values(team, run.count);
        if (team.lane == 0) {
            levels[0] = sorted_value(team, 0);
            levels[last] = sorted_value(team, run.count - 1);
        }
        team.sync();
        for (uint32_t step = last; step > 1; step /= 2) {
            for (uint32_t k = 0; k < last / step; k += halves) {
                uint32_t i = (k + half) * step;
                bool is_one = i < last;
                float level = level_between(team, run.count, levels[is_one ? i : 0], levels[is_one ? i + step : 0]);
                if (is_one && team.lane % IQ_LEVEL_LANES == 0)
                    levels[i + step / 2] = level;
            }
            team.sync();
        }
        iq_level_load(args, run, team);
        team.sync();
        return {levels, args.call.levels};
    }

    static __device__ __forceinline__ uint32_t code(const fitted_t &fitted, float value, uint32_t random24)
    {
        uint32_t below = iq_level_below(fitted.levels, fitted.count, value);
        return below + (random24 < iq_level_fraction(value, fitted.levels[below], fitted.levels[below + 1]));
    }
};

isgq_result_t iq_level_encode_sorted(int device, isgq_stream_t stream, const iq_level_args_t &args)
{
    return iq_level_launch_encode<orq>(device, stream, args);
}

isgq_result_t iq_level_warm_sorted(int device) { return iq_level_load_encode<orq>(device); }
