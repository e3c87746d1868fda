/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Way `owner` of a factored call: every rank makes one block of the gradient. Ranks stand on a grid of r x c, r * c = N; rank (i, j) owns
 * block i of the gradient's rows and block j of its columns, and needs no more than those columns of X and of Delta, from
 * all ranks. So a rank encodes its factors, which leaves their codes, sends every owner its columns of the integers
 * (codec/factor_part.c), multiplies what it receives, and the finished blocks are gathered. Sums of integers do not depend
 * on who makes them, and values travel as they are: the bits are those of `gather` (ADR 0018).
 *
 * The bias of block j is made by rank (0, j).
 */
#include "base/util.h"
#include "codec/convert.h"
#include "core/run.h"

#include <string.h>

typedef struct iq_factored_owner {
    iq_factor_call_t block;   /* of this rank's block: m and n are its own */
    iq_factor_rows_t rows;    /* all ranks', of these columns */
    unsigned char *out, *in;  /* [nranks x part_stride] for, and from, every rank */
    size_t part_stride, *out_bytes, *in_bytes;
    bool *arrived;
    unsigned char *blocks;    /* [nranks x block_stride] the block's rows, then its bias if it has one */
    size_t block_stride, *block_bytes;
} iq_factored_owner_t;

/* ---- who owns what ---- */

/* As square as N can be cut; r <= c. */
static int grid_down(int nranks)
{
    int down = 1;
    for (int r = 2; r <= nranks / r; r++)
        down = nranks % r == 0 ? r : down;
    return down;
}

static size_t cut(size_t columns, int parts, int index) { return iq_min(columns, iq_ceil_div(columns, (size_t)parts) * (size_t)index); }

static iq_factor_part_t part_of(const iq_factor_call_t *call, int rank)
{
    int down = grid_down(call->nranks), across = call->nranks / down, i = rank / across, j = rank % across;
    size_t first_m = cut(call->m, down, i), first_n = cut(call->n, across, j);
    return (iq_factor_part_t){first_m, cut(call->m, down, i + 1) - first_m, first_n, cut(call->n, across, j + 1) - first_n};
}

static bool makes_bias(const iq_factor_call_t *call, int rank)
{
    return call->want_bias && rank < call->nranks / grid_down(call->nranks);
}

static size_t block_bytes(const iq_factor_call_t *call, int rank)
{
    iq_factor_part_t part = part_of(call, rank);
    return (part.m + (makes_bias(call, rank) ? 1 : 0)) * part.n * iq_datatype_bytes(call->datatype);
}

/* Rank 0 has the largest block. */
static size_t block_stride(const iq_factor_call_t *call)
{
    return iq_max(iq_align_up(block_bytes(call, 0), IQ_CACHE_LINE), IQ_CACHE_LINE);
}

static size_t part_stride(const iq_factor_call_t *call)
{
    iq_factor_part_t largest = part_of(call, 0);
    return iq_align_up(iq_factor_part_bytes(call, &largest, 16), IQ_CACHE_LINE);
}

static iq_factor_call_t block_call(const iq_factor_call_t *call, int rank)
{
    iq_factor_part_t part = part_of(call, rank);
    iq_factor_call_t block = *call;
    block.m = part.m;
    block.n = part.n;
    return block;
}

size_t iq_factored_owner_bytes(const iq_factor_call_t *factors)
{
    size_t nranks = (size_t)factors->nranks;
    iq_factor_call_t largest = block_call(factors, 0);
    return sizeof(iq_factored_owner_t) + nranks * (2 * part_stride(factors) + block_stride(factors) + 3 * sizeof(size_t) + sizeof(bool)) +
           iq_factor_rows_layout(&largest, nranks * factors->max_batch, NULL, NULL) + 9 * IQ_CACHE_LINE;
}

double iq_factored_owner_sends(const iq_call_t *call, const iq_factor_call_t *factors)
{
    iq_factor_part_t part = part_of(factors, 0);
    unsigned width = iq_factor_part_width(&call->factor, factors);
    return (factors->nranks - 1) *
           ((double)iq_factor_part_bytes(factors, &part, width) + (double)block_bytes(factors, 0));
}

/* ---- work ---- */

/* Trip r: what rank r needs of the rows that encoding left. This rank's own part is where others' arrive. */
static isgq_result_t work_part(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    iq_factored_owner_t *owner = run->factored.owner;
    bool own = trip == (size_t)comm->rank;
    iq_factor_part_t part = part_of(&run->factored.call, (int)trip);
    unsigned char *to = (own ? owner->in : owner->out) + trip * owner->part_stride;
    size_t bytes = iq_factor_part_pack(&run->factored.call, &run->factored.rows, &part, to);
    owner->out_bytes[trip] = bytes;
    run->own_bytes += bytes;
    if (own) {
        owner->in_bytes[trip] = bytes;
        owner->arrived[trip] = true;
    }
    return ISGQ_SUCCESS;
}

static size_t sender_of(isgq_comm_t comm, size_t trip) /* the order in which the plan brings them */
{
    size_t rank = (size_t)comm->rank;
    return trip <= rank ? rank - trip : rank + (size_t)comm->nranks - trip;
}

static bool part_is_there(isgq_comm_t comm, const iq_run_t *run, size_t trip)
{
    return run->factored.owner->arrived[sender_of(comm, trip)];
}

static isgq_result_t work_open(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    iq_factored_owner_t *owner = run->factored.owner;
    size_t from = sender_of(comm, trip);
    return iq_factor_part_open(&run->call->factor, &owner->block, owner->in + from * owner->part_stride, owner->in_bytes[from], &owner->rows);
}

static isgq_result_t work_product(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_factored_run_t *factored = &run->factored;
    const iq_factored_owner_t *owner = factored->owner;
    const iq_factor_call_t *block = &owner->block;
    unsigned char *grad = owner->blocks + (size_t)comm->rank * owner->block_stride;
    void *bias = makes_bias(&factored->call, comm->rank) ? grad + block->m * block->n * iq_datatype_bytes(run->factored.call.datatype) : NULL;
    return iq_factor_product(block, &owner->rows, factored->peaks, trip, run->call->op == ISGQ_AVG, false, grad, bias, factored->product_scratch);
}

/* `count` values from a block to the caller's array. Blocks are what a call that overwrites has: whether to add is each rank's own business. */
static void deliver(const iq_call_t *call, const unsigned char *from, size_t count, void *to, size_t first)
{
    size_t bytes = iq_datatype_bytes(call->datatype);
    float tile[IQ_CODEC_TILE];
    if (!call->accumulate && count > 0)
        memcpy((unsigned char *)to + first * bytes, from, count * bytes);
    for (size_t done = 0, n; call->accumulate && done < count; done += n) {
        n = iq_min(count - done, IQ_CODEC_TILE);
        iq_store_f32(call->datatype, iq_load_f32(call->datatype, from, done, n, tile), n, true, to, first + done);
    }
}

/* Trip r: the block of rank r. */
static isgq_result_t work_deliver(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_call_t *call = run->call;
    const iq_factored_owner_t *owner = run->factored.owner;
    const unsigned char *block = owner->blocks + trip * owner->block_stride;
    iq_factor_part_t part = part_of(&run->factored.call, (int)trip);
    size_t row = part.n * iq_datatype_bytes(run->factored.call.datatype);
    (void)comm;
    if (owner->block_bytes[trip] != block_bytes(&run->factored.call, (int)trip))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "gradient of rank %zu: %zu bytes are not its block", trip, owner->block_bytes[trip]);
    for (size_t i = 0; i < part.m; i++)
        deliver(call, block + i * row, part.n, call->recv, (part.i + i) * call->factors.n + part.j);
    if (makes_bias(&run->factored.call, (int)trip))
        deliver(call, block + part.m * row, part.n, call->factors.bias, part.j);
    return ISGQ_SUCCESS;
}

/* ---- stages ---- */

static isgq_result_t take_memory(isgq_comm_t comm, iq_run_t *run)
{
    const iq_factor_call_t *call = &run->factored.call;
    size_t nranks = (size_t)comm->nranks, me = (size_t)comm->rank, capacity = nranks * call->max_batch;
    iq_factored_owner_t *owner = run->factored.owner = iq_host_take(run, sizeof(*owner));
    if (owner == NULL)
        return ISGQ_ERR_NO_MEMORY;
    *owner = (iq_factored_owner_t){.block = block_call(call, comm->rank),
                                   .part_stride = part_stride(call),
                                   .block_stride = block_stride(call)};
    iq_factor_call_t largest = block_call(call, 0); /* the same room on every rank */
    void *rows = iq_host_take(run, iq_factor_rows_layout(&largest, capacity, NULL, NULL));
    owner->out = iq_host_take(run, nranks * owner->part_stride);
    owner->in = iq_host_take(run, nranks * owner->part_stride);
    owner->out_bytes = iq_host_take(run, nranks * sizeof(size_t));
    owner->in_bytes = iq_host_take(run, nranks * sizeof(size_t));
    owner->block_bytes = iq_host_take(run, nranks * sizeof(size_t));
    owner->arrived = iq_host_take(run, nranks * sizeof(bool));
    owner->blocks = iq_host_take(run, nranks * owner->block_stride);
    if (rows == NULL || owner->out == NULL || owner->in == NULL || owner->out_bytes == NULL || owner->in_bytes == NULL ||
        owner->block_bytes == NULL || owner->arrived == NULL || owner->blocks == NULL)
        return ISGQ_ERR_NO_MEMORY;
    iq_factor_rows_layout(&owner->block, capacity, rows, &owner->rows);
    memset(owner->in_bytes, 0, nranks * sizeof(size_t));
    memset(owner->block_bytes, 0, nranks * sizeof(size_t));
    memset(owner->arrived, 0, nranks * sizeof(bool));
    owner->block_bytes[me] = block_bytes(call, comm->rank);
    return ISGQ_SUCCESS;
}

static isgq_result_t add_parts(isgq_comm_t comm, iq_run_t *run)
{
    iq_factored_owner_t *owner = run->factored.owner;
    const iq_algorithm_t *direct = iq_algorithm_find(IQ_ALLTOALL, "direct");
    iq_codec_call_t codec_call = {.datatype = ISGQ_UINT8, .op = ISGQ_SUM, .nranks = 1, .rank = comm->rank};
    iq_stage_t *stage;
    IQ_TRY(iq_run_add_plan(comm, run, "parts", direct, &iq_codec_none, &codec_call, owner->part_stride * (size_t)comm->nranks, false,
                           iq_run_everybody(comm), &stage));
    stage->src = owner->out;
    stage->dst = owner->in;
    stage->part_lengths = owner->out_bytes;
    stage->lengths = owner->in_bytes;
    stage->stride = owner->part_stride;
    stage->arrived = owner->arrived;
    return ISGQ_SUCCESS;
}

isgq_result_t iq_factored_begin_owner(isgq_comm_t comm, iq_run_t *run)
{
    size_t nranks = (size_t)comm->nranks;
    IQ_TRY(iq_factored_take_memory(run, 1, 1));
    IQ_TRY(take_memory(comm, run));
    iq_factored_owner_t *owner = run->factored.owner;
    iq_gather_t blocks = {"blocks", owner->blocks, owner->block_stride, owner->block_bytes, false, false, NULL};
    IQ_TRY(iq_factored_add_encoding(comm, run));
    iq_run_add_work(run, "cut", work_part, nranks);
    IQ_TRY(add_parts(comm, run));
    iq_run_add_eager_work(run, "open parts", work_open, part_is_there, nranks);
    iq_run_add_work(run, "product", work_product, iq_factor_product_tiles(&owner->block));
    IQ_TRY(iq_run_add_gather(comm, run, &blocks));
    iq_run_add_work(run, "deliver", work_deliver, nranks);
    return ISGQ_SUCCESS;
}
