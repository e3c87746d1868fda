/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Way `share` of a factored call: factors are gathered as in way `gather`, but the ranks of a host divide the work that gathering leaves
 * to each. A rank decodes some of the blobs and passes the rows on; then it multiplies all rows for a band of the gradient, and the
 * bands are gathered. Sums of integers do not depend on who makes them, so the bits are those of `gather` (ADR 0014).
 *
 * What travels inside the host is a few copies in shared memory. It is counted in shared_bytes, not in wire_bytes: between hosts goes
 * what `gather` sends.
 */
#include "base/util.h"
#include "codec/convert.h"
#include "core/run.h"

#include <string.h>

typedef struct iq_factored_share {
    size_t each;               /* blobs that a rank of the host decodes */
    unsigned char *packed;     /* [host_size x packed_stride]: their rows */
    size_t packed_stride, *packed_bytes;
    iq_factor_rows_t *rows;    /* [nranks], linked: where the rows lie in `packed` */
    size_t band;               /* rows of the gradient that a rank of the host makes; the last ones make what is left */
    float *values;             /* the gradient: the caller's, or in scratch */
    size_t *band_bytes;
} iq_factored_share_t;

static size_t each_of(isgq_comm_t comm) { return iq_ceil_div((size_t)comm->nranks, (size_t)comm->host_size); }

static size_t packed_stride(isgq_comm_t comm, const iq_factor_call_t *call)
{
    return iq_align_up(each_of(comm) * iq_factor_rows_bytes(call), IQ_CACHE_LINE);
}

static size_t band_rows(isgq_comm_t comm, size_t m) { return iq_ceil_div(m, (size_t)comm->host_size); }

static iq_factor_band_t band_of(isgq_comm_t comm, size_t m, int member)
{
    size_t first = iq_min(band_rows(comm, m) * (size_t)member, m);
    return (iq_factor_band_t){first, iq_min(band_rows(comm, m), m - first)};
}

size_t iq_factored_share_bytes(isgq_comm_t comm, const iq_factor_call_t *call)
{
    size_t host = (size_t)comm->host_size;
    return sizeof(iq_factored_share_t) + host * (packed_stride(comm, call) + 2 * sizeof(size_t)) +
           (size_t)comm->nranks * sizeof(iq_factor_rows_t) + host * band_rows(comm, call->m) * call->n * sizeof(float) + 6 * IQ_CACHE_LINE;
}

/* Are the rows that this rank decodes first its own? Then encoding leaves them. */
bool iq_factored_shares_own_first(isgq_comm_t comm) { return (size_t)comm->host_index * each_of(comm) == (size_t)comm->rank; }

/* ---- work ---- */

static bool blob_is_there(isgq_comm_t comm, const iq_run_t *run, size_t trip)
{
    size_t from = (size_t)comm->host_index * run->factored.share->each + trip;
    return from >= (size_t)comm->nranks || run->factored.arrived[from];
}

/* Trip t: the t-th of this rank's blobs. */
static isgq_result_t work_decode(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    iq_factored_run_t *factored = &run->factored;
    iq_factored_share_t *share = factored->share;
    size_t me = (size_t)comm->host_index, from = me * share->each + trip;
    if (from >= (size_t)comm->nranks)
        return ISGQ_SUCCESS;
    if (trip > 0 || !iq_factored_shares_own_first(comm)) {
        factored->rows.count = 0;
        IQ_TRY(iq_factor_decode(&run->call->factor, &factored->call, (int)from, factored->blobs + from * factored->blob_stride,
                                factored->blob_bytes[from], &factored->rows));
    }
    unsigned char *to = share->packed + me * share->packed_stride + share->packed_bytes[me];
    share->packed_bytes[me] += iq_factor_rows_pack(&factored->call, &factored->rows, to);
    return ISGQ_SUCCESS;
}

/* All blobs' rows, where they arrived. */
static isgq_result_t work_open(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    iq_factored_share_t *share = run->factored.share;
    size_t blob = 0, nranks = (size_t)comm->nranks;
    (void)trip;
    for (size_t member = 0; member < (size_t)comm->host_size; member++) {
        unsigned char *at = share->packed + member * share->packed_stride;
        size_t left = share->packed_bytes[member], used;
        for (size_t i = 0; i < share->each && blob < nranks; i++, blob++) {
            IQ_TRY(iq_factor_rows_open(&run->call->factor, &run->factored.call, at, left, &share->rows[blob], &used));
            share->rows[blob].next = blob + 1 < nranks ? &share->rows[blob + 1] : NULL;
            at += used;
            left -= used;
        }
        if (left != 0)
            return IQ_FAIL(ISGQ_ERR_CORRUPT, "decoded rows of rank %d: %zu bytes after the last", comm->host_ranks[member], left);
    }
    return ISGQ_SUCCESS;
}

static isgq_result_t work_product(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_factored_run_t *factored = &run->factored;
    iq_factor_band_t band = band_of(comm, factored->call.m, comm->host_index);
    iq_factor_product_band(&factored->call, factored->share->rows, factored->peaks, band, trip, run->call->op == ISGQ_AVG,
                           factored->share->values + band.first * factored->call.n, factored->product_scratch);
    return ISGQ_SUCCESS;
}

/* The bias takes no more than a row of the product, so every rank makes it. */
static isgq_result_t work_deliver(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_call_t *call = run->call;
    const iq_factored_run_t *factored = &run->factored;
    const iq_factored_share_t *share = factored->share;
    size_t row_bytes = call->factors.n * sizeof(float);
    (void)trip;
    for (int member = 0; member < comm->host_size; member++)
        if (share->band_bytes[member] != band_of(comm, call->factors.m, member).count * row_bytes)
            return IQ_FAIL(ISGQ_ERR_CORRUPT, "gradient of rank %d: %zu bytes are not its band", comm->host_ranks[member],
                           share->band_bytes[member]);
    if (share->values != call->recv)
        iq_store_f32(call->datatype, share->values, call->factors.m * call->factors.n, call->accumulate, call->recv, 0);
    if (call->factors.bias != NULL)
        iq_factor_bias(&factored->call, share->rows, factored->peaks, call->op == ISGQ_AVG, call->accumulate, call->factors.bias,
                       factored->product_scratch);
    return ISGQ_SUCCESS;
}

/* ---- stages ---- */

/* The caller's gradient serves if bands fill it, it is f32 and nothing is to be added to it. A call that is only printed has none. */
static bool values_fit(isgq_comm_t comm, const iq_call_t *call)
{
    return call->recv != NULL && call->datatype == ISGQ_FLOAT32 && !call->accumulate && call->factors.m % (size_t)comm->host_size == 0 &&
           (uintptr_t)call->recv % sizeof(float) == 0;
}

static isgq_result_t take_memory(isgq_comm_t comm, iq_run_t *run)
{
    const iq_factor_call_t *call = &run->factored.call;
    size_t host = (size_t)comm->host_size, me = (size_t)comm->host_index, values = host * band_rows(comm, call->m) * call->n;
    iq_factored_share_t *share = run->factored.share = iq_host_take(run, sizeof(*share));
    if (share == NULL)
        return ISGQ_ERR_NO_MEMORY;
    *share = (iq_factored_share_t){.each = each_of(comm), .packed_stride = packed_stride(comm, call), .band = band_rows(comm, call->m)};
    share->packed = iq_host_take(run, host * share->packed_stride);
    share->packed_bytes = iq_host_take(run, host * sizeof(size_t));
    share->band_bytes = iq_host_take(run, host * sizeof(size_t));
    share->rows = iq_host_take(run, (size_t)comm->nranks * sizeof(iq_factor_rows_t));
    share->values = values_fit(comm, run->call) ? run->call->recv : iq_host_take(run, values * sizeof(float));
    if (share->packed == NULL || share->packed_bytes == NULL || share->band_bytes == NULL || share->rows == NULL ||
        (share->values == NULL && values > 0))
        return ISGQ_ERR_NO_MEMORY;
    memset(share->packed_bytes, 0, host * sizeof(size_t));
    memset(share->band_bytes, 0, host * sizeof(size_t));
    share->band_bytes[me] = band_of(comm, call->m, (int)me).count * call->n * sizeof(float);
    return ISGQ_SUCCESS;
}

isgq_result_t iq_factored_begin_share(isgq_comm_t comm, iq_run_t *run)
{
    iq_factored_run_t *factored = &run->factored;
    IQ_TRY(iq_factored_take_memory(run, (size_t)comm->nranks, 1));
    IQ_TRY(take_memory(comm, run));
    iq_factored_share_t *share = factored->share;
    iq_gather_t blobs = {"gather", factored->blobs, factored->blob_stride, factored->blob_bytes, false, false, factored->arrived};
    iq_gather_t rows = {"rows", share->packed, share->packed_stride, share->packed_bytes, true, false, NULL};
    iq_gather_t bands = {"bands", share->values, share->band * factored->call.n * sizeof(float), share->band_bytes, true, false, NULL};
    IQ_TRY(iq_factored_add_encoding(comm, run));
    IQ_TRY(iq_run_add_gather(comm, run, &blobs));
    iq_run_add_eager_work(run, "decode", work_decode, blob_is_there, share->each);
    IQ_TRY(iq_run_add_gather(comm, run, &rows));
    iq_run_add_work(run, "open rows", work_open, 1);
    iq_run_add_work(run, "product", work_product, iq_factor_band_tiles(&factored->call, band_of(comm, factored->call.m, comm->host_index)));
    IQ_TRY(iq_run_add_gather(comm, run, &bands));
    iq_run_add_work(run, "deliver", work_deliver, 1);
    return ISGQ_SUCCESS;
}
