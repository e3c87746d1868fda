/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From messages to rows for the product. The first kernel counts the rows of each band, the second gives every row its
 * position, the third unpacks eight positions at a time. Positions come as threads happen to ask for them: sums of integers
 * have no order.
 *
 * Messages are not trusted. A table whose entries meet end to end, from the blob's header to its last byte, with every row as
 * long as its header and planes say, is the only one that fits the blob: what a reader from front to back would refuse is found
 * by readers of single rows.
 */
#include "kernels/cuda/factor_bands.h"

enum { GROUP = IQ_FACTOR_GROUP, SPAN = IQ_FACTOR_SPAN, ROWS = IQ_CUDA_WARPS };

typedef struct decode_args {
    iq_factor_messages_t messages;
    iq_cuda_factor_bands_t *bands;
    uint32_t *places; /* 1 + (rank * max_batch + row) * 2 + digit; 0: nothing lies there */
    uint64_t *shares;
    uint32_t *words[2];
    uint64_t columns[2]; /* words in a row of them */
} decode_args_t;

/* ---- positions ---- */

/* Row i of all that there may be; false if there is none. */
static __device__ __forceinline__ bool find_entry(const iq_factor_messages_t &messages, uint32_t i, iq_factor_entry_t *entry)
{
    uint32_t rank = i / messages.max_batch, r = i % messages.max_batch;
    bool unsigned_x, good;
    if (r >= iq_factor_count(messages, rank, &unsigned_x, &good))
        return false;
    *entry = iq_factor_entry_of(messages, rank, r, unsigned_x);
    return true;
}

/* The headers of all blobs. */
static __device__ void check_blobs(const iq_factor_messages_t &messages)
{
    uint64_t threads = (uint64_t)gridDim.x * IQ_CUDA_THREADS;
    for (uint64_t rank = (uint64_t)blockIdx.x * IQ_CUDA_THREADS + threadIdx.x; rank < (uint64_t)messages.ranks; rank += threads) {
        bool unsigned_x, good;
        (void)iq_factor_count(messages, rank, &unsigned_x, &good);
        if (!good)
            iq_report_fault(messages.fault, IQ_CUDA_BAD_BLOB);
    }
}

/* What this block adds to each band: every thread one row at most. *low and *high: how many of the block's come before this
 * one. */
static __device__ __forceinline__ void join_bands(uint32_t (&counts)[IQ_FACTOR_BANDS], bool there,
                                                  const iq_factor_recipe_t &recipe, uint32_t *low, uint32_t *high)
{
    if (threadIdx.x < IQ_FACTOR_BANDS)
        counts[threadIdx.x] = 0;
    __syncthreads();
    if (there)
        *low = atomicAdd(&counts[recipe.band], 1u);
    if (there && recipe.split)
        *high = atomicAdd(&counts[recipe.band + IQ_FACTOR_DIGIT_BITS], 1u);
    __syncthreads();
}

static __global__ void __launch_bounds__(IQ_CUDA_THREADS) count_rows(decode_args_t args)
{
    __shared__ uint32_t counts[IQ_FACTOR_BANDS];
    uint32_t most = (uint32_t)args.messages.ranks * args.messages.max_batch;
    check_blobs(args.messages);
    for (uint32_t first = blockIdx.x * IQ_CUDA_THREADS; first < most; first += gridDim.x * IQ_CUDA_THREADS) {
        uint32_t i = first + threadIdx.x;
        iq_factor_entry_t entry = {};
        iq_factor_recipe_t recipe = {};
        uint32_t low = 0, high = 0;
        bool listed = i < most && find_entry(args.messages, i, &entry), there = listed && entry.good;
        if (there)
            recipe = iq_factor_recipe_of(entry);
        else if (listed)
            iq_report_fault(args.messages.fault, IQ_CUDA_BAD_BLOB);
        join_bands(counts, there, recipe, &low, &high);
        if (threadIdx.x < IQ_FACTOR_BANDS && counts[threadIdx.x] != 0)
            atomicAdd(&args.bands->rows[threadIdx.x], counts[threadIdx.x]);
        __syncthreads();
    }
}

/* Where bands start: whole steps each. */
static __device__ __forceinline__ uint32_t band_start(const iq_cuda_factor_bands_t *bands, uint32_t band)
{
    uint32_t start = 0;
    for (uint32_t k = 0; k < band; k++)
        start += (bands->rows[k] + IQ_FACTOR_STEP_ROWS - 1) / IQ_FACTOR_STEP_ROWS * IQ_FACTOR_STEP_ROWS;
    return start;
}

static __global__ void __launch_bounds__(IQ_CUDA_THREADS) place_rows(decode_args_t args)
{
    __shared__ uint32_t counts[IQ_FACTOR_BANDS], starts[IQ_FACTOR_BANDS];
    uint32_t most = (uint32_t)args.messages.ranks * args.messages.max_batch;
    for (uint32_t first = blockIdx.x * IQ_CUDA_THREADS; first < most; first += gridDim.x * IQ_CUDA_THREADS) {
        uint32_t i = first + threadIdx.x;
        iq_factor_entry_t entry = {};
        iq_factor_recipe_t recipe = {};
        uint32_t low = 0, high = 0;
        bool there = i < most && find_entry(args.messages, i, &entry) && entry.good;
        if (there)
            recipe = iq_factor_recipe_of(entry);
        join_bands(counts, there, recipe, &low, &high);
        if (threadIdx.x < IQ_FACTOR_BANDS && counts[threadIdx.x] != 0)
            starts[threadIdx.x] =
                band_start(args.bands, threadIdx.x) + atomicAdd(&args.bands->placed[threadIdx.x], counts[threadIdx.x]);
        __syncthreads();
        if (there) {
            uint32_t position = starts[recipe.band] + low;
            args.places[position] = 1 + 2 * i;
            if (args.messages.want_bias)
                args.shares[position] = iq_factor_share(entry.b, recipe.weight_p);
        }
        if (there && recipe.split)
            args.places[starts[recipe.band + IQ_FACTOR_DIGIT_BITS] + high] = 2 + 2 * i;
        __syncthreads();
    }
}

/* ---- codes ---- */

/* One factor's part of a row, as a warp reads it. */
typedef struct reader {
    const uint8_t *blob;
    uint64_t columns;
    uint32_t plane, codes, end; /* where these start in the blob; `plane` is 0 if there is none */
    uint32_t width, zero, most; /* `zero`: the code of 0 */
    uint32_t before;            /* codes of columns before */
    bool bad;
} reader_t;

/* `count` bits, at most 64, from bit `bit` on of what starts at byte `start` of the blob. Whole words are read, which
 * messages hold. */
static __device__ __forceinline__ uint64_t read_bits(const uint8_t *blob, uint32_t start, uint64_t bit, uint32_t count)
{
    uint64_t at = (uint64_t)start * 8 + bit;
    const uint32_t *words = (const uint32_t *)blob + at / 32;
    uint32_t shift = (uint32_t)(at % 32);
    uint64_t low = count == 0 ? 0 : words[0], middle = shift + count > 32 ? words[1] : 0,
             high = shift + count > 64 ? words[2] : 0;
    uint64_t bits = (low | middle << 32) >> shift | (shift == 0 ? 0 : high << (64 - shift));
    return count >= 64 ? bits : bits & (((uint64_t)1 << count) - 1);
}

/* Bits of the plane, all of which are set where there is none, for the columns i .. i + 7. */
static __device__ __forceinline__ uint32_t read_plane(reader_t &reader, uint64_t i)
{
    uint32_t valid = iq_factor_valid(i, reader.columns), all = (1u << valid) - 1;
    if (reader.plane == 0 || valid == 0)
        return all;
    uint32_t set = reader.blob[reader.plane + i / GROUP];
    reader.bad |= (set & ~all) != 0;
    return set & all;
}

/* How long is this part? A warp counts the bits of the plane. */
static __device__ __forceinline__ uint64_t count_codes(reader_t &reader)
{
    uint64_t present = 0;
    if (reader.plane == 0)
        return reader.columns;
    for (uint64_t first = 0; first < reader.columns; first += SPAN)
        present += __reduce_add_sync(IQ_ALL_LANES, (uint32_t)__popc(read_plane(reader, first + iq_factor_lane() * GROUP)));
    return present;
}

/* One factor's part from byte `start` on; reads nothing beyond byte `end`. */
static __device__ __forceinline__ reader_t open_reader(const uint8_t *blob, uint64_t columns, uint32_t start, uint32_t end,
                                                       uint32_t width, bool is_unsigned, bool has_plane)
{
    reader_t reader = {blob, columns, 0, start, start, width, 0, 0, 0, false};
    uint64_t plane_bytes = has_plane ? iq_factor_packed(columns, 1) : 0;
    reader.zero = is_unsigned ? 0 : (uint32_t)iq_factor_levels(width, false);
    reader.most = is_unsigned ? (uint32_t)iq_factor_levels(width, true) : 2 * reader.zero;
    reader.bad = plane_bytes > end - start;
    if (reader.bad)
        return reader;
    reader.plane = has_plane ? start : 0;
    reader.codes = start + (uint32_t)plane_bytes;
    uint64_t present = count_codes(reader), bytes = iq_factor_packed(present, width), used = present * width;
    reader.bad |= bytes > end - reader.codes;
    if (reader.bad)
        return reader;
    reader.end = reader.codes + (uint32_t)bytes;
    reader.bad |= read_bits(blob, reader.codes, used, (uint32_t)(8 * bytes - used)) != 0; /* bits after the last code */
    return reader;
}

/* This lane's eight values of 256 columns from column `first` on, as codes less zero. */
static __device__ __forceinline__ void read_span(reader_t &reader, uint64_t first, int32_t (&values)[GROUP])
{
    uint32_t set = read_plane(reader, first + iq_factor_lane() * GROUP), count = (uint32_t)__popc(set);
    uint32_t place = reader.before + iq_factor_before(count), mask = (1u << reader.width) - 1;
    uint64_t bits = read_bits(reader.blob, reader.codes, (uint64_t)place * reader.width, count * reader.width);
    reader.before += __reduce_add_sync(IQ_ALL_LANES, count);
#pragma unroll
    for (uint32_t j = 0; j < GROUP; j++) {
        bool there = (set >> j & 1) != 0;
        uint32_t code = there ? (uint32_t)bits & mask : reader.zero;
        reader.bad |= code > reader.most || (there && reader.plane != 0 && code == reader.zero);
        values[j] = (int32_t)code - (int32_t)reader.zero;
        bits = there ? bits >> reader.width : bits;
    }
}

/* ---- rows of 8-bit integers ---- */

/* What a warp does at its position. */
typedef struct task {
    iq_factor_entry_t entry;
    iq_factor_recipe_t recipe;
    const uint8_t *blob;
    bool there, high; /* `high`: the second digit */
} task_t;

static __device__ __forceinline__ task_t task_at(const decode_args_t &args, uint64_t position)
{
    uint32_t place = args.places[position];
    task_t task = {};
    if (place == 0)
        return task;
    task.there = find_entry(args.messages, (place - 1) / 2, &task.entry);
    task.high = (place - 1) % 2 != 0;
    task.recipe = iq_factor_recipe_of(task.entry);
    task.blob = iq_factor_blob(args.messages, (place - 1) / 2 / args.messages.max_batch);
    return task;
}

/* The byte that is stored for a value. */
static __device__ __forceinline__ uint8_t stored(const task_t &task, int side, int32_t value)
{
    if (side == 1)
        return (uint8_t)(value * (int32_t)task.recipe.weight_p);
    int32_t product = value * (int32_t)task.recipe.weight_q * (1 << task.recipe.shift);
    if (!task.recipe.split)
        return (uint8_t)product;
    return (uint8_t)(task.high ? product >> IQ_FACTOR_DIGIT_BITS : product & ((1 << IQ_FACTOR_DIGIT_BITS) - 1));
}

typedef struct desk {
    alignas(16) uint8_t bytes[ROWS / 4][SPAN][4];
} desk_t;

/* One factor of eight rows: every warp reads one, the block writes words of four. */
static __device__ __forceinline__ void unpack_side(const decode_args_t &args, int side, uint64_t position, const task_t &task,
                                                   reader_t &reader, bool reads, desk_t &desk)
{
    uint64_t columns = side == 0 ? args.messages.m : args.messages.n;
    uint32_t row = threadIdx.x / 32, lane = iq_factor_lane();
    for (uint64_t first = 0; first < columns; first += SPAN) {
        int32_t values[GROUP] = {};
        uint64_t bytes = 0;
        if (reads)
            read_span(reader, first, values);
#pragma unroll
        for (int j = 0; j < GROUP; j++)
            bytes |= (uint64_t)(reads ? stored(task, side, values[j]) : 0) << (8 * j);
        __syncthreads();
#pragma unroll
        for (uint32_t k = 0; k < GROUP; k++) { /* lanes four apart start at different columns: no bank is hit twice */
            uint32_t j = (k + lane / 4) % GROUP;
            desk.bytes[row / 4][lane * GROUP + j][row % 4] = (uint8_t)(bytes >> (8 * j));
        }
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < ROWS / 4 * SPAN; i += IQ_CUDA_THREADS) {
            uint64_t column = first + i % SPAN;
            if (column < args.columns[side])
                args.words[side][(position / 4 + i / SPAN) * args.columns[side] + column] =
                    *(const uint32_t *)desk.bytes[i / SPAN][i % SPAN];
        }
    }
}

static __device__ void unpack_rows(const decode_args_t &args, uint64_t position, desk_t &desk)
{
    task_t task = task_at(args, position + threadIdx.x / 32);
    const iq_factor_entry_t &entry = task.entry;
    reader_t x = {}, delta = {};
    bool has_x = task.there && entry.c != 0;
    x.end = entry.start;
    if (has_x)
        x = open_reader(task.blob, args.messages.m, entry.start, entry.end, entry.width_x, entry.unsigned_x, entry.plane_x);
    has_x = has_x && __any_sync(IQ_ALL_LANES, x.bad) == 0;
    bool bad = x.bad, reads = task.there && __any_sync(IQ_ALL_LANES, bad) == 0;
    if (reads)
        delta = open_reader(task.blob, args.messages.n, x.end, entry.end, entry.width_delta, false, entry.plane_delta);
    bad |= delta.bad || (reads && delta.end != entry.end);
    reads = reads && __any_sync(IQ_ALL_LANES, bad) == 0;
    unpack_side(args, 0, position, task, x, reads && has_x, desk);
    unpack_side(args, 1, position, task, delta, reads, desk);
    if (bad || x.bad || delta.bad)
        iq_report_fault(args.messages.fault, IQ_CUDA_BAD_BLOB);
}

static __global__ void __launch_bounds__(IQ_CUDA_THREADS, 3) unpack_all(decode_args_t args)
{
    __shared__ desk_t desk;
    uint64_t positions = band_start(args.bands, IQ_FACTOR_BANDS);
    for (uint64_t position = (uint64_t)blockIdx.x * ROWS; position < positions; position += (uint64_t)gridDim.x * ROWS)
        unpack_rows(args, position, desk);
}

/* ---- launches ---- */

static decode_args_t args_of(const iq_cuda_factor_call_t *call, const iq_cuda_factor_rows_t &layout, const void *messages,
                             int ranks, void *rows, uint32_t *fault)
{
    char *base = (char *)rows;
    decode_args_t args = {};
    args.messages.data = (const uint8_t *)messages;
    args.messages.stride = iq_cuda_factor_message_bytes(call->max_batch, call->blob_bytes);
    args.messages.blob_at = iq_cuda_factor_blob_at(call->max_batch);
    args.messages.blob_bytes = call->blob_bytes;
    args.messages.max_batch = (uint32_t)call->max_batch; /* and all ranks' rows are below 2^24 */
    args.messages.m = call->m;
    args.messages.n = call->n;
    args.messages.ranks = ranks;
    args.messages.want_bias = call->want_bias;
    args.messages.width_x = call->width_x;
    args.messages.width_delta = call->width_delta;
    args.messages.fault = fault;
    args.bands = (iq_cuda_factor_bands_t *)base;
    args.places = (uint32_t *)(base + layout.places);
    args.shares = (uint64_t *)(base + layout.shares);
    for (int side = 0; side < 2; side++) {
        args.words[side] = (uint32_t *)(base + layout.words[side]);
        args.columns[side] = layout.columns[side];
    }
    return args;
}

isgq_result_t iq_factor_decode_rows(int device, isgq_stream_t stream, const iq_cuda_factor_call_t *call, const void *messages,
                                    int ranks, void *rows, uint32_t *fault)
{
    iq_cuda_factor_rows_t layout = iq_cuda_factor_lay_rows(call, (size_t)ranks);
    decode_args_t args = args_of(call, layout, messages, ranks, rows, fault);
    size_t most = (size_t)ranks * call->max_batch, blocks = most / IQ_CUDA_THREADS + 1;
    CUDA_TRY(cudaMemsetAsync, rows, 0, layout.bias, stream); /* bands, places, shares */
    IQ_TRY(iq_cuda_launch<count_rows>(device, stream, blocks, args));
    IQ_TRY(iq_cuda_launch<place_rows>(device, stream, blocks, args));
    return iq_cuda_launch<unpack_all>(device, stream, layout.positions / ROWS, args);
}

isgq_result_t iq_factor_warm_decode(int device) { return iq_cuda_load<count_rows, place_rows, unpack_all>(device); }
