/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The stages of a factored call where all ranks work on devices: everything happens there. Every trip only enqueues, and no
 * host needs to know what the data are, so that a call can be streamed, and captured in a graph.
 *
 *     gather    prepare, plan: max of peaks, encode, plan: gather messages, decode, product
 *     reduce    prepare, plan: max of peaks, encode, decode own, integers, plan: sum of integers, deliver
 *
 * A message is a blob behind a table of its rows (kernels/cuda/factor_module.h). How long it is only the device knows: a stream
 * sends as much as the longest could have, hosts that carry it look into it. The dense way is that of run_factored.c.
 */
#include "base/util.h"
#include "codec/factor_device.h"
#include "core/run.h"

bool iq_factored_all_on_devices(isgq_comm_t comm)
{
    if (comm->gpu == NULL)
        return false;
    for (int r = 0; r < comm->nranks; r++)
        if (comm->peers[r].device_type != ISGQ_DEVICE_CUDA)
            return false;
    return true;
}

/* ---- trips ---- */

/* This rank's message: gather has a place for each rank's. */
static unsigned char *own_message(isgq_comm_t comm, const iq_run_t *run)
{
    const iq_factored_run_t *factored = &run->factored;
    return factored->blobs + (run->call->way == IQ_FACTORED_GATHER ? (size_t)comm->rank * factored->blob_stride : 0);
}

static isgq_result_t work_prepare(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_device_t *device = run->site->device;
    iq_factored_run_t *factored = &run->factored;
    (void)comm;
    (void)trip;
    return device->cuda->factor->prepare(device->ordinal, device->stream, &factored->on_device, factored->x, factored->delta,
                                         factored->state, factored->shared_peaks);
}

static isgq_result_t work_encode(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_device_t *device = run->site->device;
    iq_factored_run_t *factored = &run->factored;
    (void)trip;
    return device->cuda->factor->encode(device->ordinal, device->stream, &factored->on_device, factored->x, factored->delta,
                                        factored->state, factored->shared_peaks, own_message(comm, run));
}

/* Of all ranks' messages, or of this rank's only one. */
static int message_count(isgq_comm_t comm, const iq_run_t *run)
{
    return run->call->way == IQ_FACTORED_GATHER ? comm->nranks : 1;
}

static isgq_result_t work_decode(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_device_t *device = run->site->device;
    iq_factored_run_t *factored = &run->factored;
    (void)trip;
    return device->cuda->factor->decode(device->ordinal, device->stream, &factored->on_device, factored->blobs,
                                        message_count(comm, run), factored->product_scratch, device->fault);
}

/* How sums become gradient or bias. */
static iq_cuda_outcome_t outcome_of(const iq_run_t *run, bool bias)
{
    const iq_call_t *call = run->call;
    return (iq_cuda_outcome_t){.type = call->datatype,
                               .data = bias ? call->factors.bias : call->recv,
                               .divisor = call->op == ISGQ_AVG ? run->factored.call.nranks : 1,
                               .accumulate = call->accumulate,
                               .peaks = run->factored.shared_peaks,
                               .peak = bias ? 0 : 1,
                               .want_bias = run->factored.call.want_bias};
}

/* Sums as they are: those of the gradient, then those of the bias. */
static iq_cuda_outcome_t sums_of(const iq_run_t *run, bool bias)
{
    const iq_factor_call_t *call = &run->factored.call;
    isgq_data_type_t type = iq_factor_sum_type(&run->call->factor, call);
    size_t first = bias ? call->m * call->n : 0;
    return (iq_cuda_outcome_t){
        .type = type, .data = (unsigned char *)run->factored.sums + first * iq_datatype_bytes(type), .scale = 1, .divisor = 1};
}

static isgq_result_t multiply(isgq_comm_t comm, iq_run_t *run, iq_cuda_outcome_t grad, iq_cuda_outcome_t bias)
{
    const iq_device_t *device = run->site->device;
    iq_factored_run_t *factored = &run->factored;
    return device->cuda->factor->multiply(device->ordinal, device->stream, &factored->on_device, factored->product_scratch,
                                          message_count(comm, run), &grad, &bias);
}

static isgq_result_t work_product(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    (void)trip;
    return multiply(comm, run, outcome_of(run, false), outcome_of(run, true));
}

static isgq_result_t work_integers(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    (void)trip;
    return multiply(comm, run, sums_of(run, false), sums_of(run, true));
}

static isgq_result_t work_deliver(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_factor_call_t *call = &run->factored.call;
    (void)comm;
    (void)trip;
    for (int bias = 0; bias <= (call->want_bias ? 1 : 0); bias++) {
        iq_cuda_outcome_t sums = sums_of(run, bias != 0);
        iq_cuda_convert_t convert = {.type = sums.type,
                                     .src = sums.data,
                                     .outcome = outcome_of(run, bias != 0),
                                     .count = bias != 0 ? call->n : call->m * call->n};
        iq_device_convert(run->site->device, &convert);
    }
    return ISGQ_SUCCESS;
}

/* ---- stages ---- */

static isgq_result_t take_memory(iq_run_t *run, size_t ranks)
{
    iq_factored_run_t *factored = &run->factored;
    const iq_cuda_factor_call_t *call = &factored->on_device;
    if (iq_factor_device_bytes(&run->call->factor, &factored->call, ranks) > run->site->memory->bytes)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "factored call: more scratch needed than ISGQ_SCRATCH_BYTES, %zu",
                       run->site->memory->bytes);
    factored->blob_stride = iq_cuda_factor_message_bytes(call->max_batch, call->blob_bytes);
    factored->blobs = iq_scratch_take(run, ranks * factored->blob_stride);
    factored->shared_peaks = iq_scratch_take(run, 2 * sizeof(float));
    factored->state = iq_scratch_take(run, iq_cuda_factor_lay_state(call->max_batch, call->m, call->n).bytes);
    factored->product_scratch = iq_scratch_take(run, iq_cuda_factor_lay_rows(call, ranks).bytes);
    return factored->blobs != NULL && factored->shared_peaks != NULL && factored->state != NULL &&
                   factored->product_scratch != NULL
               ? ISGQ_SUCCESS
               : ISGQ_ERR_NO_MEMORY;
}

static isgq_result_t add_encoding(isgq_comm_t comm, iq_run_t *run)
{
    iq_run_add_work(run, "prepare", work_prepare, 1);
    IQ_TRY(iq_run_add_exact(comm, run, "maximum of peaks", ISGQ_FLOAT32, ISGQ_MAX, 2, run->factored.shared_peaks, true));
    iq_run_add_work(run, "encode", work_encode, 1);
    return ISGQ_SUCCESS;
}

static isgq_result_t begin_gather(isgq_comm_t comm, iq_run_t *run)
{
    IQ_TRY(take_memory(run, (size_t)comm->nranks));
    IQ_TRY(add_encoding(comm, run));
    iq_gather_t gather = {.name = "gather", .blobs = run->factored.blobs, .stride = run->factored.blob_stride, .on_device = true};
    IQ_TRY(iq_run_add_gather(comm, run, &gather));
    if (!run->site->streams) { /* the table's last entry */
        run->stages[run->nstages - 1].length_at = run->call->max_batch * sizeof(uint32_t);
        run->stages[run->nstages - 1].length_from = iq_cuda_factor_blob_at(run->call->max_batch);
    }
    iq_run_add_work(run, "decode", work_decode, 1);
    iq_run_add_work(run, "product", work_product, 1);
    return ISGQ_SUCCESS;
}

static isgq_result_t begin_reduce(isgq_comm_t comm, iq_run_t *run)
{
    const iq_factor_call_t *call = &run->factored.call;
    isgq_data_type_t type = iq_factor_sum_type(&run->call->factor, call);
    size_t sums = call->m * call->n + (call->want_bias ? call->n : 0);
    IQ_TRY(take_memory(run, 1));
    run->factored.sums = iq_scratch_take(run, sums * iq_datatype_bytes(type));
    if (run->factored.sums == NULL)
        return ISGQ_ERR_NO_MEMORY;
    IQ_TRY(add_encoding(comm, run));
    iq_run_add_work(run, "decode", work_decode, 1);
    iq_run_add_work(run, "integer product", work_integers, 1);
    IQ_TRY(iq_run_add_exact(comm, run, "sum of integers", type, ISGQ_SUM, sums, run->factored.sums, true));
    iq_run_add_work(run, "deliver", work_deliver, 1);
    return ISGQ_SUCCESS;
}

isgq_result_t iq_run_begin_on_devices(isgq_comm_t comm, iq_run_t *run)
{
    iq_factored_run_t *factored = &run->factored;
    factored->x = run->call->factors.x;
    factored->delta = run->call->factors.delta;
    factored->on_device = iq_factor_on_device(&run->call->factor, &factored->call, run->site->device->replays);
    return run->call->way == IQ_FACTORED_GATHER ? begin_gather(comm, run) : begin_reduce(comm, run);
}
