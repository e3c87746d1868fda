/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The product of decoded rows on tensor cores. Rows are 8-bit integers in bands of equal exponents (factor_module.h), so a tile
 * of outputs goes through all bands with sums of 32 bits, and at the end of each adds them, shifted by the band's exponent, to
 * sums of 64 bits. Every sum is exact: a band's are at most 127 * 127 * 2^17 before they are added, and the whole stays below
 * 2^53 (codec/factor_internal.h).
 *
 * A block makes a tile, in steps of 32 rows. Steps to come are on their way into shared memory while one is multiplied. Words
 * of four rows by one column are what the tensor cores' operands are made of, so shared memory is read as it is; lines of it
 * are 8 words longer than they must be, so that the 32 words that a warp reads at a time lie in 32 banks.
 */
#include "kernels/cuda/factor_bands.h"
#include "kernels/cuda/product_parts.h"

enum {
    STEP_WORDS = IQ_FACTOR_STEP_ROWS / 4, /* lines of words in a step */
    STAGES = 4,
    WARPS_DOWN = 2, /* warps of a block share its tile: two down, four across */
    WARPS_ACROSS = IQ_CUDA_WARPS / WARPS_DOWN,
    PIECE = 4,                                   /* words that are copied at a time */
    MOST_STEPS = (1 << 17) / IQ_FACTOR_STEP_ROWS /* with sums of 32 bits */
};

typedef struct multiply_args {
    const iq_cuda_factor_bands_t *bands;
    const uint32_t *words[2];
    uint64_t columns[2]; /* words in a line */
    uint64_t m, n, across, tiles;
    iq_finish_t finish;
} multiply_args_t;

/* ---- copies into shared memory that nobody waits for yet ---- */

/* 16 bytes, or as many zeros. */
static __device__ __forceinline__ void copy_piece(uint32_t *to, const uint32_t *from, bool there)
{
#ifdef __CUDA_ARCH__
    uint32_t address = (uint32_t)__cvta_generic_to_shared(to), bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
#else
    for (int i = 0; i < PIECE; i++)
        to[i] = there ? from[i] : 0;
#endif
}

static __device__ __forceinline__ void end_copies(void)
{
#ifdef __CUDA_ARCH__
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/* All but the last STAGES - 2 groups of this thread's copies have arrived. */
static __device__ __forceinline__ void await_copies(void)
{
#ifdef __CUDA_ARCH__
    asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
#endif
}

/* ---- a tile: 32 DOWN x 32 ACROSS outputs ---- */

template <int DOWN, int ACROSS> struct tile {
    enum { ROWS = 16 * DOWN * WARPS_DOWN, COLUMNS = 8 * ACROSS * WARPS_ACROSS, PAD = 8 };

    /* One step of both factors. */
    struct stage_t {
        alignas(16) uint32_t q[STEP_WORDS][ROWS + PAD], p[STEP_WORDS][COLUMNS + PAD];
    };

    /* A thread's outputs: of each 16 x 8 part of its warp's, two neighbours in a row, and two eight rows below. */
    struct sums_t {
        int32_t narrow[DOWN][ACROSS][4];
        int64_t wide[DOWN][ACROSS][4];
    };

    /* Where this thread's outputs begin. */
    static __device__ __forceinline__ uint32_t first_row(void)
    {
        return threadIdx.x / 32 / WARPS_ACROSS * 16 * DOWN + threadIdx.x % 32 / 4;
    }
    static __device__ __forceinline__ uint32_t first_column(void) { return threadIdx.x / 32 % WARPS_ACROSS * 8 * ACROSS; }

    /* Pieces of a step that a thread copies: the first half of them are those of q. */
    enum {
        Q_PIECES = STEP_WORDS * ROWS / PIECE,
        PIECES = Q_PIECES + STEP_WORDS * COLUMNS / PIECE,
        EACH = PIECES / IQ_CUDA_THREADS
    };
    static_assert(PIECES % IQ_CUDA_THREADS == 0, "every thread copies as many pieces");

    /* Where this thread's pieces come from, and where they go in a stage. */
    struct copies_t {
        const uint32_t *from[EACH];
        uint64_t onward[EACH]; /* from one step to the next */
        uint32_t to[EACH];
        bool there[EACH];
    };

    static __device__ __forceinline__ copies_t copies_of(const multiply_args_t &args, uint64_t first_i, uint64_t first_j)
    {
        copies_t copies;
#pragma unroll
        for (uint32_t k = 0; k < EACH; k++) {
            uint32_t piece = threadIdx.x + k * IQ_CUDA_THREADS;
            bool is_q = piece < Q_PIECES;
            uint32_t i = is_q ? piece : piece - Q_PIECES, in_line = (is_q ? ROWS : COLUMNS) / PIECE;
            uint32_t line = i / in_line, column = i % in_line * PIECE;
            uint64_t columns = is_q ? args.columns[0] : args.columns[1], at = (is_q ? first_i : first_j) + column;
            copies.there[k] = at < columns;
            copies.from[k] = (is_q ? args.words[0] : args.words[1]) + (copies.there[k] ? line * columns + at : 0);
            copies.onward[k] = STEP_WORDS * columns;
            copies.to[k] = is_q ? line * (ROWS + PAD) + column : STEP_WORDS * (ROWS + PAD) + line * (COLUMNS + PAD) + column;
        }
        return copies;
    }

    /* The next step, if there is one. */
    static __device__ __forceinline__ void copy_step(stage_t &stage, copies_t &copies, bool there)
    {
        if (there) {
#pragma unroll
            for (uint32_t k = 0; k < EACH; k++) {
                copy_piece((uint32_t *)&stage + copies.to[k], copies.from[k], copies.there[k]);
                copies.from[k] += copies.onward[k];
            }
        }
        end_copies();
    }

#ifdef __CUDA_ARCH__
    static __device__ __forceinline__ void multiply_step(const stage_t &stage, sums_t &sums)
    {
        uint32_t line = threadIdx.x % 4, row = first_row(), column = first_column() + threadIdx.x % 32 / 4, q[DOWN][4],
                 p[ACROSS][2];
#pragma unroll
        for (int i = 0; i < DOWN; i++)
#pragma unroll
            for (int k = 0; k < 4; k++)
                q[i][k] = stage.q[line + k / 2 * 4][row + 16 * i + k % 2 * 8];
#pragma unroll
        for (int j = 0; j < ACROSS; j++)
#pragma unroll
            for (int k = 0; k < 2; k++)
                p[j][k] = stage.p[line + k * 4][column + 8 * j];
#pragma unroll
        for (int i = 0; i < DOWN; i++)
#pragma unroll
            for (int j = 0; j < ACROSS; j++)
                asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
                    "%3};"
                    : "+r"(sums.narrow[i][j][0]), "+r"(sums.narrow[i][j][1]), "+r"(sums.narrow[i][j][2]),
                      "+r"(sums.narrow[i][j][3])
                    : "r"(q[i][0]), "r"(q[i][1]), "r"(q[i][2]), "r"(q[i][3]), "r"(p[j][0]), "r"(p[j][1]));
    }
#else
    static int32_t multiply_words(uint32_t a, uint32_t b)
    {
        int32_t sum = 0;
        for (int k = 0; k < 32; k += 8)
            sum += (int8_t)(a >> k) * (int8_t)(b >> k);
        return sum;
    }

    static void multiply_step(const stage_t &stage, sums_t &sums)
    {
        uint32_t row = first_row(), column = first_column() + threadIdx.x % 4 * 2;
        for (int i = 0; i < DOWN; i++)
            for (int j = 0; j < ACROSS; j++)
                for (int k = 0; k < 4; k++)
                    for (int line = 0; line < STEP_WORDS; line++)
                        sums.narrow[i][j][k] +=
                            multiply_words(stage.q[line][row + 16 * i + k / 2 * 8], stage.p[line][column + 8 * j + k % 2]);
    }
#endif

    static __device__ __forceinline__ void clear(sums_t &sums)
    {
#pragma unroll
        for (int i = 0; i < DOWN; i++)
#pragma unroll
            for (int j = 0; j < ACROSS; j++)
#pragma unroll
                for (int k = 0; k < 4; k++)
                    sums.narrow[i][j][k] = 0, sums.wide[i][j][k] = 0;
    }

    /* The end of a band. */
    static __device__ __forceinline__ void widen(sums_t &sums, uint32_t band)
    {
        int32_t power = 1 << band;
#pragma unroll
        for (int i = 0; i < DOWN; i++)
#pragma unroll
            for (int j = 0; j < ACROSS; j++)
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    sums.wide[i][j][k] += (int64_t)sums.narrow[i][j][k] * power;
                    sums.narrow[i][j][k] = 0;
                }
    }

    template <typename to_t>
    static __device__ __forceinline__ void store(const multiply_args_t &args, const sums_t &sums, uint64_t first_i,
                                                 uint64_t first_j)
    {
#pragma unroll
        for (int i = 0; i < DOWN; i++)
#pragma unroll
            for (int j = 0; j < ACROSS; j++)
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    uint64_t row = first_i + first_row() + 16 * i + k / 2 * 8;
                    uint64_t column = first_j + first_column() + threadIdx.x % 4 * 2 + 8 * j + k % 2;
                    if (row < args.m && column < args.n)
                        to_t::store(args.finish, row * args.n + column, (double)sums.wide[i][j][k]);
                }
    }
};

/* ---- the product ---- */

/* Steps after which bands end. */
static __device__ __forceinline__ void find_ends(const iq_cuda_factor_bands_t *bands, uint32_t (&ends)[IQ_FACTOR_BANDS])
{
    if (threadIdx.x < IQ_FACTOR_BANDS) {
        uint32_t steps = 0;
        for (uint32_t band = 0; band <= threadIdx.x; band++)
            steps += (bands->rows[band] + IQ_FACTOR_STEP_ROWS - 1) / IQ_FACTOR_STEP_ROWS;
        ends[threadIdx.x] = steps;
    }
    __syncthreads();
}

template <int DOWN, int ACROSS, typename to_t>
static __global__ void __launch_bounds__(IQ_CUDA_THREADS) multiply_bands(multiply_args_t args)
{
    typedef tile<DOWN, ACROSS> tile_t;
    __shared__ typename tile_t::stage_t stages[STAGES];
    __shared__ uint32_t ends[IQ_FACTOR_BANDS];
    iq_find_scale(args.finish);
    find_ends(args.bands, ends);
    uint32_t steps = ends[IQ_FACTOR_BIAS_BAND - 1];
    for (uint64_t index = blockIdx.x; index < args.tiles; index += gridDim.x) {
        uint64_t first_i = index / args.across * tile_t::ROWS, first_j = index % args.across * tile_t::COLUMNS;
        typename tile_t::copies_t copies = tile_t::copies_of(args, first_i, first_j);
        typename tile_t::sums_t sums;
        uint32_t step = 0;
        tile_t::clear(sums);
        for (; step < STAGES - 1; step++)
            tile_t::copy_step(stages[step], copies, step < steps);
        step = 0;
        for (uint32_t band = 0; band < IQ_FACTOR_BIAS_BAND; band++)
            while (step < ends[band]) {
                uint32_t stop = ends[band] - step < MOST_STEPS ? ends[band] : step + MOST_STEPS;
                for (; step < stop; step++) {
                    await_copies();
                    __syncthreads(); /* and nobody reads the step before this one any more */
                    tile_t::copy_step(stages[(step + STAGES - 1) % STAGES], copies, step + STAGES - 1 < steps);
                    tile_t::multiply_step(stages[step % STAGES], sums);
                }
                tile_t::widen(sums, band);
            }
        tile_t::template store<to_t>(args, sums, first_i, first_j);
        __syncthreads();
    }
}

/* ---- the bias ---- */

enum { BIAS_LINES = 64 }; /* of words, for a block */

typedef struct bias_args {
    const iq_cuda_factor_bands_t *bands;
    const uint32_t *words;
    const uint64_t *shares;
    unsigned long long *sums;
    uint64_t columns, n, across;
    iq_finish_t finish;
} bias_args_t;

/* Sums of shares times codes, modulo 2^64: see iq_factor_share. */
static __global__ void __launch_bounds__(IQ_CUDA_THREADS) sum_shares(bias_args_t args)
{
    __shared__ uint32_t ends[IQ_FACTOR_BANDS];
    find_ends(args.bands, ends);
    uint64_t lines = (uint64_t)ends[IQ_FACTOR_BIAS_BAND] * STEP_WORDS,
             parts = args.across * ((lines + BIAS_LINES - 1) / BIAS_LINES);
    for (uint64_t part = blockIdx.x; part < parts; part += gridDim.x) {
        uint64_t column = part % args.across * IQ_CUDA_THREADS + threadIdx.x, line = part / args.across * BIAS_LINES, sum = 0;
        uint64_t end = line + BIAS_LINES < lines ? line + BIAS_LINES : lines;
        if (column >= args.n)
            continue;
        for (; line < end; line++) {
            uint32_t word = args.words[line * args.columns + column];
#pragma unroll
            for (int k = 0; k < 4; k++)
                sum += args.shares[4 * line + k] * (uint64_t)(int64_t)(int8_t)(word >> (8 * k));
        }
        atomicAdd(&args.sums[column], (unsigned long long)sum);
    }
}

template <typename to_t> static __global__ void __launch_bounds__(IQ_CUDA_THREADS) finish_bias(bias_args_t args)
{
    iq_find_scale(args.finish);
    for (uint64_t j = (uint64_t)blockIdx.x * IQ_CUDA_THREADS + threadIdx.x; j < args.n;
         j += (uint64_t)gridDim.x * IQ_CUDA_THREADS)
        to_t::store(args.finish, j, (double)((int64_t)args.sums[j] >> 3));
}

/* ---- launches ---- */

typedef struct row {
    isgq_data_type_t type;
    isgq_result_t (*large)(int device, isgq_stream_t stream, size_t blocks, const multiply_args_t &args);
    isgq_result_t (*small)(int device, isgq_stream_t stream, size_t blocks, const multiply_args_t &args);
    isgq_result_t (*bias)(int device, isgq_stream_t stream, size_t blocks, const bias_args_t &args);
    isgq_result_t (*warm)(int device);
} row_t;

template <typename to_t> static row_t row_of(isgq_data_type_t type)
{
    return {type, iq_cuda_launch<multiply_bands<4, 4, to_t>, multiply_args_t>,
            iq_cuda_launch<multiply_bands<2, 2, to_t>, multiply_args_t>, iq_cuda_launch<finish_bias<to_t>, bias_args_t>,
            iq_cuda_load<multiply_bands<4, 4, to_t>, multiply_bands<2, 2, to_t>, finish_bias<to_t>>};
}

static const row_t table[] = {
    row_of<iq_to_values<iq_as_f32>>(ISGQ_FLOAT32),   row_of<iq_to_values<iq_as_f16>>(ISGQ_FLOAT16),
    row_of<iq_to_values<iq_as_bf16>>(ISGQ_BFLOAT16), row_of<iq_to_integers<int32_t>>(ISGQ_INT32),
    row_of<iq_to_integers<int64_t>>(ISGQ_INT64),
};

static isgq_result_t find_row(isgq_data_type_t type, const row_t **found)
{
    for (const row_t &row : table)
        if (row.type == type) {
            *found = &row;
            return ISGQ_SUCCESS;
        }
    return IQ_FAIL(ISGQ_ERR_INTERNAL, "product of decoded rows: no outcome of type %d", (int)type);
}

static size_t tiles_along(size_t count, size_t tile) { return (count + tile - 1) / tile; }

/* Large tiles need fewer bytes for each output, if there are enough of them for all processors. */
static isgq_result_t multiply_tiles(int device, isgq_stream_t stream, const row_t *row, multiply_args_t &args)
{
    typedef tile<4, 4> large_t;
    typedef tile<2, 2> small_t;
    int processors = 0;
    CUDA_TRY(cudaDeviceGetAttribute, &processors, cudaDevAttrMultiProcessorCount, device);
    bool large = tiles_along(args.m, large_t::ROWS) * tiles_along(args.n, large_t::COLUMNS) >= (size_t)processors;
    args.across = tiles_along(args.n, large ? (size_t)large_t::COLUMNS : (size_t)small_t::COLUMNS);
    args.tiles = args.across * tiles_along(args.m, large ? (size_t)large_t::ROWS : (size_t)small_t::ROWS);
    return (large ? row->large : row->small)(device, stream, args.tiles, args);
}

static isgq_result_t multiply_bias(int device, isgq_stream_t stream, const row_t *row, const bias_args_t &args, size_t positions)
{
    CUDA_TRY(cudaMemsetAsync, args.sums, 0, args.n * sizeof(*args.sums), stream);
    IQ_TRY(iq_cuda_launch<sum_shares>(device, stream, args.across * tiles_along(positions / 4, BIAS_LINES), args));
    return row->bias(device, stream, args.across, args);
}

isgq_result_t iq_factor_multiply_rows(int device, isgq_stream_t stream, const iq_cuda_factor_call_t *call, void *rows, int ranks,
                                      const iq_cuda_outcome_t *grad, const iq_cuda_outcome_t *bias)
{
    iq_cuda_factor_rows_t layout = iq_cuda_factor_lay_rows(call, (size_t)ranks);
    char *base = (char *)rows;
    multiply_args_t args = {};
    bias_args_t sums = {};
    const row_t *row = NULL;
    args.bands = sums.bands = (const iq_cuda_factor_bands_t *)base;
    for (int side = 0; side < 2; side++) {
        args.words[side] = (const uint32_t *)(base + layout.words[side]);
        args.columns[side] = layout.columns[side];
    }
    args.m = call->m;
    args.n = sums.n = call->n;
    args.finish = iq_finish_of(*grad);
    IQ_TRY(find_row(grad->type, &row));
    if (call->m > 0 && call->n > 0)
        IQ_TRY(multiply_tiles(device, stream, row, args));
    if (!call->want_bias || call->n == 0)
        return ISGQ_SUCCESS;
    IQ_TRY(find_row(bias->type, &row));
    sums.words = args.words[1];
    sums.columns = layout.columns[1];
    sums.shares = (const uint64_t *)(base + layout.shares);
    sums.sums = (unsigned long long *)(base + layout.bias);
    sums.across = tiles_along(call->n, IQ_CUDA_THREADS);
    sums.finish = iq_finish_of(*bias);
    return multiply_bias(device, stream, row, sums, layout.positions);
}

isgq_result_t iq_factor_warm_multiply(int device)
{
    IQ_TRY(iq_cuda_load<sum_shares>(device));
    for (const row_t &row : table)
        IQ_TRY(row.warm(device));
    return ISGQ_SUCCESS;
}
