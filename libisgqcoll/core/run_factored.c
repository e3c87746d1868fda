/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stages of a factored call, five ways to the same kind of result. Gather, share (run_factored_share.c), owner (run_factored_owner.c) and reduce give the same bits (codec/factor.h);
 * dense multiplies first and quantizes the product.
 *
 * Where all ranks work on devices, gather and reduce are run_factored_device.c. Else encoding, gathering and decoding happen on the host,
 * and where factors are taken from and the gradient is made is a row of functions: those of this file for host memory, those of
 * run_factored_gpu.c for devices.
 */
#include "base/util.h"
#include "codec/convert.h"
#include "core/run.h"

#include <string.h>

void iq_factored_prepare(iq_run_t *run)
{
    iq_factored_run_t *factored = &run->factored;
    iq_factor_prepare(&run->call->factor, &factored->call, factored->x, factored->delta, factored->state, factored->peaks);
    memcpy(factored->shared_peaks, factored->peaks, sizeof(factored->peaks));
}

static isgq_result_t work_prepare(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    (void)comm;
    (void)trip;
    iq_factored_prepare(run);
    return ISGQ_SUCCESS;
}

static isgq_result_t work_encode(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    (void)trip;
    iq_factored_run_t *factored = &run->factored;
    bool travels = run->call->way != IQ_FACTORED_REDUCE && run->call->way != IQ_FACTORED_OWNER;
    iq_factor_rows_t *own = run->call->way != IQ_FACTORED_SHARE || iq_factored_shares_own_first(comm) ? &factored->rows : NULL;
    size_t slot = travels ? (size_t)comm->rank : 0;
    unsigned char *blob = factored->blobs + slot * factored->blob_stride;
    memcpy(factored->peaks, factored->shared_peaks, sizeof(factored->peaks));
    factored->blob_bytes[slot] =
        iq_factor_encode(&run->call->factor, &factored->call, factored->x, factored->delta, factored->state, factored->peaks, blob, own);
    iq_assert(factored->blob_bytes[slot] <= factored->blob_stride);
    factored->arrived[slot] = true;
    if (travels)
        run->own_bytes += factored->blob_bytes[slot];
    return ISGQ_SUCCESS;
}

/* Blobs are decoded in the order in which plans bring them: this rank's own, that of the rank before it, and so on. Rows may come in any order. */
static size_t blob_of(isgq_comm_t comm, size_t trip)
{
    size_t rank = (size_t)comm->rank;
    return trip <= rank ? rank - trip : rank + (size_t)comm->nranks - trip;
}

static bool blob_is_there(isgq_comm_t comm, const iq_run_t *run, size_t trip) { return run->factored.arrived[blob_of(comm, trip)]; }

/* Trip t: one of the blobs. Encoding left this rank's own rows. */
static isgq_result_t work_decode(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    iq_factored_run_t *factored = &run->factored;
    size_t from = blob_of(comm, trip);
    if (from == (size_t)comm->rank)
        return ISGQ_SUCCESS;
    return iq_factor_decode(&run->call->factor, &factored->call, (int)from, factored->blobs + from * factored->blob_stride, factored->blob_bytes[from],
                            &factored->rows);
}

static isgq_result_t work_product(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    iq_factored_run_t *factored = &run->factored;
    const iq_call_t *call = run->call;
    (void)comm;
    return iq_factor_product(&factored->call, &factored->rows, factored->peaks, trip, call->op == ISGQ_AVG, call->accumulate, call->recv,
                             call->factors.bias, factored->product_scratch);
}

static isgq_result_t work_integers(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    iq_factored_run_t *factored = &run->factored;
    (void)comm;
    return iq_factor_product_integers(&run->call->factor, &factored->call, &factored->rows, trip, factored->sums, factored->product_scratch);
}

static isgq_result_t work_from_integers(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    iq_factored_run_t *factored = &run->factored;
    const iq_call_t *call = run->call;
    (void)comm;
    iq_factor_from_integers(&call->factor, &factored->call, factored->sums, factored->peaks, trip, call->op == ISGQ_AVG, call->accumulate,
                            call->recv, call->factors.bias);
    return ISGQ_SUCCESS;
}

static isgq_result_t work_local_gradient(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    iq_factored_run_t *factored = &run->factored;
    const isgq_factors_t *factors = &run->call->factors;
    float *grad = factored->sums;
    float *bias = factors->bias != NULL ? grad + factors->m * factors->n : NULL;
    (void)comm;
    return iq_factor_local_gradient(&factored->call, factors->x, factors->delta, grad, bias, trip, factored->product_scratch);
}

/* The dense result, f32 in scratch, to the caller's gradient and bias. */
static isgq_result_t work_copy_out(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_call_t *call = run->call;
    const float *values = run->factored.sums;
    size_t product = call->factors.m * call->factors.n;
    (void)comm;
    (void)trip;
    iq_store_f32(call->datatype, values, product, call->accumulate, call->recv, 0);
    if (call->factors.bias != NULL)
        iq_store_f32(call->datatype, values + product, call->factors.n, call->accumulate, call->factors.bias, 0);
    return ISGQ_SUCCESS;
}

static size_t one_trip(isgq_comm_t comm, const iq_run_t *run)
{
    (void)comm;
    (void)run;
    return 1;
}

static size_t trips_of_tiles(isgq_comm_t comm, const iq_run_t *run)
{
    (void)comm;
    return iq_factor_product_tiles(&run->factored.call);
}

static const iq_factored_work_t on_host = {.prepare = work_prepare,
                                           .product = work_product,
                                           .integers = work_integers,
                                           .from_integers = work_from_integers,
                                           .local_gradient = work_local_gradient,
                                           .copy_out = work_copy_out,
                                           .prepare_trips = one_trip,
                                           .product_trips = trips_of_tiles,
                                           .tiles = iq_factor_product_tiles,
                                           .product_scratch = iq_factor_product_scratch};

isgq_result_t iq_factored_take_memory(iq_run_t *run, size_t ranks, size_t batches)
{
    iq_factored_run_t *factored = &run->factored;
    iq_factor_call_t *call = &factored->call;
    size_t capacity = batches * call->max_batch;
    factored->blob_stride = iq_align_up(iq_factor_blob_bytes(&run->call->factor, call), IQ_CACHE_LINE);
    factored->blob_bytes = iq_host_take(run, ranks * sizeof(size_t));
    factored->arrived = iq_host_take(run, ranks * sizeof(bool));
    factored->blobs = iq_host_take(run, ranks * factored->blob_stride);
    factored->shared_peaks = iq_host_take(run, sizeof(factored->peaks));
    factored->state = iq_host_take(run, iq_factor_state_bytes(&run->call->factor, call));
    void *rows = iq_host_take(run, iq_factor_rows_layout(call, capacity, NULL, &factored->rows));
    factored->product_scratch = iq_scratch_take(run, factored->work->product_scratch(call, capacity));
    if (factored->blob_bytes == NULL || factored->arrived == NULL || factored->blobs == NULL || factored->shared_peaks == NULL || factored->state == NULL || rows == NULL ||
        factored->product_scratch == NULL)
        return ISGQ_ERR_NO_MEMORY;
    memset(factored->blob_bytes, 0, ranks * sizeof(size_t));
    memset(factored->arrived, 0, ranks * sizeof(bool));
    iq_factor_rows_layout(call, capacity, rows, &factored->rows);
    return ISGQ_SUCCESS;
}

/* The factors where the codec can read them: the caller's, or room for copies. */
static isgq_result_t take_factors(isgq_comm_t comm, iq_run_t *run)
{
    iq_factored_run_t *factored = &run->factored;
    const isgq_factors_t *factors = &run->call->factors;
    size_t row_bytes = factors->batch * iq_datatype_bytes(run->call->datatype);
    if (comm->gpu == NULL) {
        factored->x = factors->x;
        factored->delta = factors->delta;
        return ISGQ_SUCCESS;
    }
    factored->x = iq_host_take(run, row_bytes * factors->m);
    factored->delta = iq_host_take(run, row_bytes * factors->n);
    return factored->x != NULL && factored->delta != NULL ? ISGQ_SUCCESS : ISGQ_ERR_NO_MEMORY;
}

isgq_result_t iq_factored_add_encoding(isgq_comm_t comm, iq_run_t *run)
{
    iq_factored_run_t *factored = &run->factored;
    IQ_TRY(take_factors(comm, run));
    iq_run_add_work(run, "prepare", factored->work->prepare, factored->work->prepare_trips(comm, run));
    IQ_TRY(iq_run_add_exact(comm, run, "maximum of peaks", ISGQ_FLOAT32, ISGQ_MAX, 2, factored->shared_peaks, false));
    iq_run_add_work(run, "encode", work_encode, 1);
    return ISGQ_SUCCESS;
}

static isgq_result_t begin_gather(isgq_comm_t comm, iq_run_t *run)
{
    iq_factored_run_t *factored = &run->factored;
    IQ_TRY(iq_factored_take_memory(run, (size_t)comm->nranks, (size_t)comm->nranks));
    IQ_TRY(iq_factored_add_encoding(comm, run));
    iq_gather_t gather = {"gather", factored->blobs, factored->blob_stride, factored->blob_bytes, false, false, factored->arrived};
    IQ_TRY(iq_run_add_gather(comm, run, &gather));
    iq_run_add_eager_work(run, "decode", work_decode, blob_is_there, (size_t)comm->nranks);
    iq_run_add_work(run, "product", factored->work->product, factored->work->product_trips(comm, run));
    return ISGQ_SUCCESS;
}

static isgq_result_t begin_reduce(isgq_comm_t comm, iq_run_t *run)
{
    iq_factored_run_t *factored = &run->factored;
    const iq_factor_call_t *call = &factored->call;
    isgq_data_type_t type = iq_factor_sum_type(&run->call->factor, call);
    size_t sums = call->m * call->n + (call->want_bias ? call->n : 0);
    IQ_TRY(iq_factored_take_memory(run, 1, 1));
    factored->sums = iq_scratch_take(run, sums * iq_datatype_bytes(type));
    if (factored->sums == NULL)
        return ISGQ_ERR_NO_MEMORY;
    IQ_TRY(iq_factored_add_encoding(comm, run));
    iq_run_add_work(run, "integer product", factored->work->integers, factored->work->product_trips(comm, run));
    IQ_TRY(iq_run_add_exact(comm, run, "sum of integers", type, ISGQ_SUM, sums, factored->sums, comm->gpu != NULL));
    iq_run_add_work(run, "deliver", factored->work->from_integers, factored->work->tiles(call));
    return ISGQ_SUCCESS;
}

static isgq_result_t begin_dense(isgq_comm_t comm, iq_run_t *run)
{
    iq_factored_run_t *factored = &run->factored;
    const iq_call_t *call = run->call;
    size_t count = call->factors.m * call->factors.n + (call->factors.bias != NULL ? call->factors.n : 0);
    factored->sums = iq_scratch_take(run, count * sizeof(float));
    factored->product_scratch = iq_scratch_take(run, factored->work->product_scratch(&factored->call, 0));
    if (factored->sums == NULL || factored->product_scratch == NULL)
        return ISGQ_ERR_NO_MEMORY;
    iq_run_add_work(run, "local gradient", factored->work->local_gradient, factored->work->tiles(&factored->call));
    IQ_TRY(iq_run_add_dense(comm, run, call->algorithm, call->codec, ISGQ_FLOAT32, call->op, count, factored->sums, factored->sums, false));
    iq_run_add_work(run, "copy out", factored->work->copy_out, 1);
    return ISGQ_SUCCESS;
}

isgq_result_t iq_run_begin_factored(isgq_comm_t comm, iq_run_t *run)
{
    const iq_call_t *call = run->call;
    memset(&run->factored, 0, sizeof(run->factored));
    run->factored.work = comm->gpu != NULL ? &iq_factored_on_device : &on_host;
    run->factored.call = (iq_factor_call_t){.datatype = call->datatype,
                                            .nranks = comm->nranks,
                                            .rank = comm->rank,
                                            .seed = comm->key,
                                            .call = call->sequence,
                                            .max_batch = iq_factor_most_rows(&call->factor, call->max_batch, call->factors.bias != NULL),
                                            .m = call->factors.m,
                                            .n = call->factors.n,
                                            .batch = call->factors.batch,
                                            .want_bias = call->factors.bias != NULL};
    run->factored.call.fraction = iq_factor_fraction(&call->factor, &run->factored.call);
    if (call->way != IQ_FACTORED_DENSE && iq_factored_all_on_devices(comm))
        return iq_run_begin_on_devices(comm, run);
    if (call->way == IQ_FACTORED_GATHER)
        return begin_gather(comm, run);
    if (call->way == IQ_FACTORED_SHARE)
        return iq_factored_begin_share(comm, run);
    if (call->way == IQ_FACTORED_OWNER)
        return iq_factored_begin_owner(comm, run);
    return call->way == IQ_FACTORED_REDUCE ? begin_reduce(comm, run) : begin_dense(comm, run);
}
