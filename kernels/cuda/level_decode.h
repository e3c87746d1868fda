/* SPDX-License-Identifier: Apache-2.0 */
/* Messages back to values: the codes of a run, what a damaged message shows, and values to where they belong. */
#ifndef ISGQ_KERNELS_CUDA_LEVEL_DECODE_H
#define ISGQ_KERNELS_CUDA_LEVEL_DECODE_H

#include "kernels/cuda/level_parts.h"

/* ---- codes ---- */

/* The groups of a run; group 0 has the run's first code. */
typedef struct iq_level_codes {
    const uint8_t *bytes;   /* with the first bit of group 0 */
    const uint8_t *end;     /* of the message */
    uint32_t bit;           /* of group 0 within its byte */
    uint32_t digit;         /* of the run's first code within group 0 */
    size_t left;            /* codes from group 0 to the end of the span */
} iq_level_codes_t;

static __device__ __forceinline__ iq_level_codes_t iq_level_codes_of(const iq_level_args_t &args, const iq_level_run_t &run)
{
    const iq_cuda_levels_t &call = args.call;
    const uint8_t *codes = (const uint8_t *)call.message + args.codes;
    size_t group = run.begin / call.group_codes, units = (call.count - 1) / call.unit + 1;
    iq_level_codes_t found = {codes + group / 8 * call.group_bits, codes + units * iq_unit_bytes(call), 0,
                              (uint32_t)(run.begin - group * call.group_codes), call.count - group * call.group_codes};
    found.bit = (uint32_t)(group % 8) * call.group_bits;
    return found;
}

static __device__ __forceinline__ uint32_t iq_level_group(const iq_cuda_levels_t &call, const iq_level_codes_t &codes, uint32_t group)
{
    uint32_t bit = codes.bit + group * call.group_bits;
    const uint8_t *from = codes.bytes + bit / 8;
    uint32_t both = from[0] | (from + 1 < codes.end ? (uint32_t)from[1] << 8 : 0u); /* groups have 16 bits at most, or 9 */
    return both >> bit % 8 & ((1u << call.group_bits) - 1u);
}

/* Code i of the run. Groups are checked where their first digit is taken, those that do not begin in the run elsewhere. */
static __device__ __forceinline__ uint32_t iq_level_code_at(const iq_cuda_levels_t &call, const iq_level_codes_t &codes, uint32_t i)
{
    if (call.group_codes == 1) {
        uint32_t code = iq_level_group(call, codes, i);
        if (code >= call.symbols)
            iq_report_fault(call.fault, IQ_CUDA_BAD_CODE);
        return code;
    }
    uint32_t place = codes.digit + i, group = place / call.group_codes, digit = place % call.group_codes;
    uint32_t value = iq_level_group(call, codes, group);
    if (digit == 0) {
        uint32_t digits = call.group_codes, rest = value;
        digits = digits < codes.left - place ? digits : (uint32_t)(codes.left - place);
        for (uint32_t k = 0; k < digits; k++)
            rest /= call.symbols;
        if (rest != 0)
            iq_report_fault(call.fault, IQ_CUDA_BAD_CODE);
    }
    for (uint32_t k = 0; k < digit; k++)
        value /= call.symbols;
    return value % call.symbols;
}

/* One thread: bits of the last unit that belong to no code are zero; those of a group are in iq_level_code_at. */
static __device__ __forceinline__ void iq_level_check_padding(const iq_level_args_t &args)
{
    const iq_cuda_levels_t &call = args.call;
    size_t unit = (call.count - 1) / call.unit;
    uint32_t groups = ((uint32_t)(call.count - unit * call.unit) - 1) / call.group_codes + 1;
    uint32_t bytes = iq_unit_bytes(call), used = groups * call.group_bits;
    const uint8_t *from = (const uint8_t *)call.message + args.codes + unit * bytes;
    uint32_t rest = used % 8 != 0 ? from[used / 8] >> used % 8 : 0u;
    for (uint32_t i = (used + 7) / 8; i < bytes; i++)
        rest |= from[i];
    if (rest != 0)
        iq_report_fault(call.fault, IQ_CUDA_BAD_PADDING);
}

/* ---- headers ---- */

/* The run's header to shared memory; the codes of a bucket that is not finite are zero, which the caller sees to. */
template <typename team_t>
static __device__ __forceinline__ bool iq_level_read_header(const iq_level_args_t &args, const iq_level_run_t &run, const team_t &team)
{
    const uint8_t *from = (const uint8_t *)args.call.message + run.index * args.call.header_bytes;
    uint32_t other = 0;
    team.sync();
    for (uint32_t i = team.lane; i < args.call.header_bytes; i += team.size) {
        ((uint8_t *)team.room->header)[i] = from[i];
        other |= from[i] ^ 0xffu;
    }
    return team.largest(other) != 0;
}

static __device__ __forceinline__ void iq_level_bad_header(const iq_level_args_t &args, bool is_bad)
{
    if (is_bad)
        iq_report_fault(args.call.fault, IQ_CUDA_BAD_HEADER);
}

/* ---- values ---- */

/* value(i) of all elements of a run, four at a time. */
template <typename as_t, typename team_t, typename value_t>
static __device__ __forceinline__ void iq_level_store(const iq_level_args_t &args, const iq_level_run_t &run, const team_t &team,
                                                      const value_t &value)
{
    typedef typename as_t::item_t item_t;
    item_t *to = (item_t *)args.call.values + run.begin;
    bool aligned = (uintptr_t)to % (IQ_QUAD * sizeof(*to)) == 0;
    for (uint32_t i = team.lane * IQ_QUAD; i < run.count; i += team.size * IQ_QUAD) {
        float found[IQ_QUAD];
#pragma unroll
        for (uint32_t j = 0; j < IQ_QUAD; j++)
            found[j] = i + j < run.count ? value(i + j) : 0.0f;
        iq_store_quad<as_t>(to, aligned, args.call.accumulate, i, run.count, found);
    }
}

/* NaN, where codes are zero. */
template <typename as_t, typename team_t>
static __device__ __forceinline__ void iq_level_store_nan(const iq_level_args_t &args, const iq_level_run_t &run, const team_t &team,
                                                          const iq_level_codes_t &codes)
{
    iq_level_store<as_t>(args, run, team, [&](uint32_t i) {
        if (iq_level_code_at(args.call, codes, i) != 0)
            iq_report_fault(args.call.fault, IQ_CUDA_BAD_CODE);
        return iq_bits_float(0x7fc00000u); /* the quiet NaN */
    });
}

#endif
