/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Codes of powers of two: from values, into and out of sums, to values. A lane has eight elements, as in map.cu. A sum in memory is a
 * counter of contributions and slots (codec/exponential.c); all elements of a run have as many contributions, so which slots are
 * taken is the same for all lanes.
 */
#include "kernels/cuda/map_groups.h"
#include "kernels/exponent_math.h"

enum { COUNT_BYTES = 2 };

typedef struct exponent_args {
    const void *src;
    void *dst;
    uint32_t count;
    iq_buckets_t buckets;
    isgq_data_type_t type;
    bool aligned, accumulate, first, foreign_scales;
    unsigned bits;
    uint32_t sign, head, least, slots, parts;
    double largest_of_one;
    const float *scales;
    iq_grid_args_t own, sums; /* where random bits are; `rank` of sums is the number of a contribution */
    uint32_t *fault;
} exponent_args_t;

/* ---- values ---- */

static __device__ __forceinline__ bool is_empty(float scale) { return scale == 0.0f || iq_not_finite(scale); }

static __device__ __forceinline__ float scale_at(const exponent_args_t &args, uint32_t bucket)
{
    float scale = __ldg(args.scales + bucket);
    if (args.foreign_scales && iq_float_bits(scale) > 0x7f800000u)
        iq_report_fault(args.fault, IQ_CUDA_BAD_SCALE);
    return scale;
}

static __device__ __forceinline__ void values_to_codes(const exponent_args_t &args, iq_group_t at, uint32_t code[IQ_GROUP])
{
    float value[IQ_GROUP];
    uint32_t random[IQ_GROUP + 4];
    iq_load_group(args.type, args.src, args.aligned, at, value);
    iq_draw_group(args.own, args.own.first + at.i, random);
    iq_for_buckets(
        args.buckets, at, [&](uint32_t bucket) { return scale_at(args, bucket); },
        [&](uint32_t j, float scale) {
            uint32_t bits = iq_float_bits(value[j]), exponent = 0;
            if (!is_empty(scale))
                exponent = iq_exponent_round((double)iq_bits_float(bits & 0x7fffffffu) / (double)scale, args.head, args.sign, random[j] >> 8);
            code[j] = exponent == 0 ? 0 : exponent | (bits >> 31) * args.sign;
        });
}

static __device__ __forceinline__ void codes_to_values(const exponent_args_t &args, iq_group_t at, const uint32_t code[IQ_GROUP])
{
    float value[IQ_GROUP];
    iq_for_buckets(
        args.buckets, at, [&](uint32_t bucket) { return scale_at(args, bucket); },
        [&](uint32_t j, float scale) {
            double largest = (double)scale * args.largest_of_one;
            value[j] = iq_not_finite(scale) ? iq_bits_float(0x7fc00000u) : (float)iq_exponent_value(code[j], args.sign, largest);
        });
    iq_store_group(args.type, args.dst, args.aligned, args.accumulate, at, value);
}

/* Of a message: none but those that a sender writes. */
static __device__ __forceinline__ void check_codes(const exponent_args_t &args, iq_group_t at, const uint32_t code[IQ_GROUP])
{
    bool wrong = false;
    iq_for_buckets(
        args.buckets, at, [&](uint32_t bucket) { return scale_at(args, bucket); },
        [&](uint32_t j, float scale) {
            uint32_t exponent = code[j] & (args.sign - 1);
            bool stands = exponent == 0 ? code[j] == 0 : exponent >= args.least && !is_empty(scale);
            wrong |= j < at.live && !stands;
        });
    if (wrong)
        iq_report_fault(args.fault, IQ_CUDA_BAD_CODE);
}

/* ---- sums ---- */

static __device__ __forceinline__ unsigned char *sum_at(const void *sums, const exponent_args_t &args, iq_group_t at)
{
    return (unsigned char *)(uintptr_t)sums + (size_t)at.i * (COUNT_BYTES + args.slots);
}

/* code = what is in a slot + code, with the words of contribution `rank`. */
static __device__ __forceinline__ void add_slot(const exponent_args_t &args, iq_group_t at, const unsigned char *sum, uint32_t slot,
                                                uint32_t rank, uint32_t code[IQ_GROUP])
{
    uint32_t random[IQ_GROUP + 4];
    iq_grid_args_t words = args.sums;
    words.tag |= rank << 16;
    iq_draw_group(words, words.first + at.i, random);
#pragma unroll
    for (uint32_t j = 0; j < IQ_GROUP; j++)
        if (j < at.live)
            code[j] = iq_exponent_add(sum[j * (COUNT_BYTES + args.slots) + COUNT_BYTES + slot], code[j], args.sign, random[j]);
}

static __device__ __forceinline__ void set_slot(const exponent_args_t &args, iq_group_t at, unsigned char *sum, uint32_t slot,
                                                const uint32_t code[IQ_GROUP])
{
#pragma unroll
    for (uint32_t j = 0; j < IQ_GROUP; j++)
        if (j < at.live)
            sum[j * (COUNT_BYTES + args.slots) + COUNT_BYTES + slot] = (unsigned char)code[j];
}

static __device__ __forceinline__ void clear_slot(const exponent_args_t &args, iq_group_t at, unsigned char *sum, uint32_t slot)
{
    for (uint32_t j = 0; j < at.live; j++)
        sum[j * (COUNT_BYTES + args.slots) + COUNT_BYTES + slot] = (unsigned char)args.sign;
}

static __device__ __forceinline__ bool is_taken(const exponent_args_t &args, const unsigned char *sum, uint32_t slot)
{
    return sum[COUNT_BYTES + slot] != args.sign;
}

static __device__ __forceinline__ uint32_t contributions(const unsigned char *sum) { return sum[0] | (uint32_t)sum[1] << 8; }

/* `parts` contributions as one code; a binary counter's carry. */
static __device__ __forceinline__ void add_codes(const exponent_args_t &args, iq_group_t at, uint32_t code[IQ_GROUP])
{
    unsigned char *sum = sum_at(args.dst, args, at);
    uint32_t last = args.slots - 1, slot = 31 - iq_leading_zeros(args.parts), behind = args.parts;
    uint32_t count = args.parts + (args.first ? 0 : contributions(sum));
    slot = slot < last ? slot : last;
    for (uint32_t i = 0; i < args.slots && args.first; i++)
        clear_slot(args, at, sum, i);
    while (!args.first && is_taken(args, sum, slot)) {
        add_slot(args, at, sum, slot, count - behind, code);
        clear_slot(args, at, sum, slot);
        behind += 1u << slot;
        slot = slot + 1 < last ? slot + 1 : last;
    }
    set_slot(args, at, sum, slot, code);
    for (uint32_t j = 0; j < at.live; j++) {
        sum[j * (COUNT_BYTES + args.slots)] = (unsigned char)count;
        sum[j * (COUNT_BYTES + args.slots) + 1] = (unsigned char)(count >> 8);
    }
}

/* All slots together, the later contributions first. */
static __device__ __forceinline__ void total_codes(const exponent_args_t &args, iq_group_t at, uint32_t code[IQ_GROUP])
{
    const unsigned char *sum = sum_at(args.src, args, at);
    uint32_t count = contributions(sum), slot = 0;
    while (slot + 1 < args.slots && !is_taken(args, sum, slot))
        slot++;
    uint32_t behind = 1u << slot;
#pragma unroll
    for (uint32_t j = 0; j < IQ_GROUP; j++)
        code[j] = j < at.live ? sum[j * (COUNT_BYTES + args.slots) + COUNT_BYTES + slot] : 0;
    for (slot++; slot < args.slots; slot++) {
        if (is_taken(args, sum, slot)) {
            add_slot(args, at, sum, slot, count - behind, code);
            behind += 1u << slot;
        }
    }
}

/* ---- the kernel ---- */

enum { RESIDENT = 3 }; /* blocks of a processor: left to itself nvcc spills for a fourth */

template <int from, int to> static __global__ void __launch_bounds__(IQ_CUDA_THREADS, RESIDENT) exponent_any(exponent_args_t args)
{
    __shared__ uint32_t stages[IQ_CUDA_WARPS][IQ_STAGE_WORDS];
    uint32_t *stage = stages[threadIdx.x / 32];
    uint32_t tiles = (args.count - 1) / IQ_GROUPS_TILE + 1;
    for (uint32_t tile = blockIdx.x * IQ_CUDA_WARPS + threadIdx.x / 32; tile < tiles; tile += gridDim.x * IQ_CUDA_WARPS) {
        uint32_t left = args.count - tile * IQ_GROUPS_TILE;
        iq_group_t at = iq_group_at(tile, left);
        uint32_t code[IQ_GROUP] = {0};
        if (from == IQ_CUDA_CODES) {
            iq_load_packed(args.src, args.bits, stage, tile, left);
            iq_unpack(args.bits, 0, 2 * args.sign - 1, args.fault, stage, at, code);
        }
        if (at.live > 0) {
            if (from == IQ_CUDA_CODES)
                check_codes(args, at, code);
            else if (from == IQ_CUDA_SUMS)
                total_codes(args, at, code);
            else
                values_to_codes(args, at, code);
            if (to == IQ_CUDA_SUMS)
                add_codes(args, at, code);
            else if (to == IQ_CUDA_VALUES)
                codes_to_values(args, at, code);
        }
        if (to == IQ_CUDA_CODES)
            iq_store_packed(args.dst, args.bits, stage, tile, left, at, code);
        else if (from == IQ_CUDA_CODES)
            __syncwarp(); /* all have read the stage */
    }
}

/* ---- launches ---- */

static size_t offset_of(const iq_cuda_exponent_t *exponent, iq_cuda_form_t form, size_t i)
{
    return form == IQ_CUDA_SUMS ? i * (COUNT_BYTES + exponent->slots) : iq_offset_of(form, exponent->type, exponent->bits, i);
}

static exponent_args_t piece_of(const iq_cuda_exponent_t *exponent, size_t done, size_t count)
{
    size_t skipped = iq_buckets_before(exponent->first, exponent->bucket, done);
    iq_cuda_grid_t grid = {};
    exponent_args_t args = {};
    grid.stream = exponent->stream;
    grid.rank = exponent->rank;
    grid.seed = exponent->seed;
    grid.call = exponent->call;
    grid.replays = exponent->replays;
    args.own = iq_grid_args_of(&grid, exponent->first + done, count, 0);
    grid.stream = IQ_STREAM_RESULT;
    grid.rank = 0;
    args.sums = iq_grid_args_of(&grid, exponent->first + done, count, 0);
    args.src = (const char *)exponent->src + offset_of(exponent, exponent->from, done);
    args.dst = (char *)exponent->dst + offset_of(exponent, exponent->to, done);
    args.count = (uint32_t)count;
    args.buckets = iq_buckets_of(exponent->first + done, exponent->bucket);
    args.type = exponent->type;
    args.aligned = iq_is_aligned(exponent->from == IQ_CUDA_VALUES ? args.src : args.dst);
    args.accumulate = exponent->accumulate;
    args.first = exponent->starts;
    args.foreign_scales = exponent->foreign_scales;
    args.bits = exponent->bits;
    args.sign = 1u << (exponent->bits - 1);
    args.head = exponent->head;
    args.least = exponent->least;
    args.slots = exponent->slots;
    args.parts = exponent->parts;
    args.largest_of_one = exponent->largest_of_one;
    args.scales = exponent->scales + skipped;
    args.fault = exponent->fault;
    return args;
}

template <int from> static isgq_result_t launch(int device, isgq_stream_t stream, iq_cuda_form_t to, const exponent_args_t &args)
{
    constexpr int other = from == IQ_CUDA_SUMS ? IQ_CUDA_VALUES : IQ_CUDA_SUMS; /* to values, or into sums */
    constexpr int last = from == IQ_CUDA_CODES ? IQ_CUDA_VALUES : IQ_CUDA_CODES;
    size_t blocks = (args.count - 1) / (IQ_GROUPS_TILE * IQ_CUDA_WARPS) + 1;
    return to == other ? iq_cuda_launch<exponent_any<from, other>>(device, stream, blocks, args)
                       : iq_cuda_launch<exponent_any<from, last>>(device, stream, blocks, args);
}

isgq_result_t iq_cuda_run_exponent(int device, isgq_stream_t stream, const iq_cuda_exponent_t *exponent)
{
    ON_DEVICE(device);
    for (size_t done = 0, count; done < exponent->count; done += count) {
        count = exponent->count - done < IQ_CUDA_PIECE ? exponent->count - done : IQ_CUDA_PIECE;
        exponent_args_t args = piece_of(exponent, done, count);
        switch (exponent->from) {
        case IQ_CUDA_VALUES: IQ_TRY(launch<IQ_CUDA_VALUES>(device, stream, exponent->to, args)); break;
        case IQ_CUDA_SUMS: IQ_TRY(launch<IQ_CUDA_SUMS>(device, stream, exponent->to, args)); break;
        default: IQ_TRY(launch<IQ_CUDA_CODES>(device, stream, exponent->to, args));
        }
    }
    return ISGQ_SUCCESS;
}

isgq_result_t iq_cuda_warm_exponent(int device)
{
    return iq_cuda_load<exponent_any<IQ_CUDA_VALUES, IQ_CUDA_CODES>, exponent_any<IQ_CUDA_VALUES, IQ_CUDA_SUMS>,
                        exponent_any<IQ_CUDA_CODES, IQ_CUDA_SUMS>, exponent_any<IQ_CUDA_CODES, IQ_CUDA_VALUES>,
                        exponent_any<IQ_CUDA_SUMS, IQ_CUDA_CODES>, exponent_any<IQ_CUDA_SUMS, IQ_CUDA_VALUES>>(device);
}
