/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Large sums of values as they are where all ranks' buffers are in memory that the others can map (ADR 0024). The ranks tell each other where theirs are;
 * then each adds up one block of everybody's inputs and writes it to everybody's outputs: all data are read once and written once, as in a
 * copy. When all have done so the outputs are complete. Where somebody's buffers are elsewhere, the boards follow instead; everybody knows.
 *
 *     tell | verdict | sum in place | all have summed | boards
 *                      ^ either these two stages        ^ or this one
 *
 * Contributions are added in rank order, so the bits are those of board and direct.
 */
#include "base/util.h"
#include "core/run.h"
#include "kernels/stream.h"

#include <string.h>

#define LEAST_BYTES ((size_t)1 << 20) /* less is not worth the two rounds */
#define TRIP_BYTES ((size_t)64 << 10)
#define TILE_BYTES ((size_t)4 << 10)
#define BLOCK_UNIT 64 /* elements: blocks share no line where tensors begin at one */

typedef struct offer {
    iq_view_t input, output;
    uint64_t unused[2];
} offer_t;

_Static_assert(sizeof(offer_t) == 64, "blobs of a gather are multiples of 32 bytes");

typedef struct iq_views_run {
    offer_t *offers;          /* [nranks] */
    unsigned char **outputs;  /* [nranks] */
    const unsigned char **inputs;
    iq_codec_call_t codec_call;
    size_t bytes;             /* of an element */
    size_t first, end, trip;  /* this rank's block, elements of a trip */
    unsigned char *tile;
} views_run_t;

bool iq_views_may_serve(isgq_comm_t comm, const iq_run_t *run, const iq_algorithm_t *algorithm, const iq_codec_t *codec,
                        const iq_codec_call_t *codec_call)
{
    bool as_it_is = codec->ops == iq_codec_none.ops && !run->shadow.runs && !run->own_error.corrects && !run->own_error.measures;
    return comm->may_view && run->call->kind == IQ_CALL_ALLREDUCE && (algorithm->needs & IQ_NEEDS_BOARDS) && as_it_is &&
           codec_call->count * iq_datatype_bytes(codec_call->datatype) >= LEAST_BYTES;
}

/* Where everybody's buffers are, unless one is where others cannot map it. */
static isgq_result_t find_buffers(isgq_comm_t comm, views_run_t *views, const iq_call_t *call, bool *all)
{
    size_t bytes = views->codec_call.count * views->bytes;
    *all = comm->views != NULL;
    for (int rank = 0; rank < comm->nranks; rank++)
        *all &= views->offers[rank].input.bytes != 0 && views->offers[rank].output.bytes != 0;
    for (int rank = 0; rank < comm->nranks && *all; rank++) {
        unsigned char *input = NULL;
        if (rank == comm->rank) {
            views->inputs[rank] = call->send;
            views->outputs[rank] = call->recv;
            continue;
        }
        IQ_TRY(iq_views_map(comm->views, rank, &views->offers[rank].input, bytes, &input));
        IQ_TRY(iq_views_map(comm->views, rank, &views->offers[rank].output, bytes, &views->outputs[rank]));
        views->inputs[rank] = input;
    }
    return ISGQ_SUCCESS;
}

static isgq_result_t work_verdict(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    iq_stage_t *behind = &run->stages[run->stage + 1];
    bool all;
    (void)trip;
    IQ_TRY(find_buffers(comm, run->views, run->call, &all));
    behind[0].skipped = behind[1].skipped = !all;
    behind[2].skipped = all;
    return ISGQ_SUCCESS;
}

/* Elements of the block's trip number `trip`: sums in a tile that stays in the innermost cache, and from there to all outputs. */
static isgq_result_t work_sum(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    views_run_t *views = run->views;
    size_t first = views->first + trip * views->trip, end = iq_min(first + views->trip, views->end), tile = TILE_BYTES / views->bytes;
    iq_codec_call_t codec_call = views->codec_call;
    for (; first < end; first += tile) {
        size_t count = iq_min(tile, end - first), at = first * views->bytes;
        codec_call.count = count; /* as large as a tile: it does not go past the caches */
        for (int rank = 0; rank < comm->nranks; rank++)
            comm->posted[rank] = rank == comm->rank ? NULL : views->inputs[rank] + at;
        iq_codec_none.ops->sum(&iq_codec_none, &codec_call, (iq_span_t){0, count}, comm->posted, views->inputs[comm->rank] + at, NULL,
                              views->tile);
        size_t next = first + count < views->end ? at + count * views->bytes : at;
        for (int i = 0; i < comm->nranks; i++) { /* not all to the same one at a time; and one input of the next tile meanwhile */
            int rank = (comm->rank + i) % comm->nranks;
            iq_stream_ahead(views->outputs[rank] + at, views->tile, count * views->bytes, views->inputs[rank] + next);
        }
        run->wire_bytes += (uint64_t)(comm->nranks - 1) * count * views->bytes;
    }
    iq_stream_end();
    comm->posted[comm->rank] = NULL;
    if (trip == 0)
        run->own_bytes += views->codec_call.count * views->bytes;
    return ISGQ_SUCCESS;
}

static views_run_t *take_views(isgq_comm_t comm, iq_run_t *run, const iq_codec_call_t *codec_call)
{
    size_t n = (size_t)comm->nranks, rank = (size_t)comm->rank, units = iq_ceil_div(codec_call->count, BLOCK_UNIT);
    views_run_t *views = iq_scratch_take(run, sizeof(*views));
    offer_t *offers = iq_scratch_take(run, n * sizeof(*offers));
    unsigned char **pointers = iq_scratch_take(run, 2 * n * sizeof(*pointers)), *tile = iq_scratch_take(run, TILE_BYTES);
    if (views == NULL || offers == NULL || pointers == NULL || tile == NULL)
        return NULL;
    *views = (views_run_t){.offers = offers, .outputs = pointers, .inputs = (const unsigned char **)(pointers + n), .codec_call = *codec_call,
                           .bytes = iq_datatype_bytes(codec_call->datatype), .tile = tile};
    views->first = iq_min(units * rank / n * BLOCK_UNIT, codec_call->count);
    views->end = iq_min(units * (rank + 1) / n * BLOCK_UNIT, codec_call->count);
    views->trip = TRIP_BYTES / views->bytes;
    return views;
}

/* The stages before the plan on boards, which is to be the next one. */
isgq_result_t iq_run_add_views(isgq_comm_t comm, iq_run_t *run, const iq_codec_call_t *codec_call)
{
    const iq_algorithm_t *barrier;
    iq_stage_t *stage;
    iq_members_t all = iq_run_everybody(comm);
    iq_codec_call_t nothing = {.datatype = ISGQ_UINT8, .nranks = 1, .rank = comm->rank};
    views_run_t *views = take_views(comm, run, codec_call);
    size_t *lengths = iq_scratch_take(run, (size_t)comm->nranks * sizeof(*lengths));
    if (views == NULL || lengths == NULL)
        return ISGQ_ERR_NO_MEMORY;
    run->views = views;
    size_t bytes = codec_call->count * views->bytes;
    offer_t *own = &views->offers[comm->rank];
    memset(own, 0, sizeof(*own));
    if (codec_call->accumulate || /* others overwrite outputs; that this rank adds is nothing they know of */
        !iq_memory_view(comm, run->call->send, bytes, &own->input) || !iq_memory_view(comm, run->call->recv, bytes, &own->output))
        memset(own, 0, sizeof(*own));
    for (int rank = 0; rank < comm->nranks; rank++)
        lengths[rank] = rank == comm->rank ? sizeof(*own) : 0;
    IQ_TRY(iq_run_add_gather(comm, run, &(iq_gather_t){.name = "where buffers are", .blobs = views->offers, .stride = sizeof(*own), .lengths = lengths}));
    iq_run_add_work(run, "verdict", work_verdict, 1);
    iq_run_add_work(run, "sum in place", work_sum, iq_ceil_div(views->end - views->first, views->trip));
    IQ_TRY(iq_run_exact_algorithm(comm, &all, IQ_BARRIER, ISGQ_UINT8, ISGQ_SUM, 0, &barrier));
    return iq_run_add_plan(comm, run, "all have summed", barrier, &iq_codec_none, &nothing, 0, false, all, &stage);
}
