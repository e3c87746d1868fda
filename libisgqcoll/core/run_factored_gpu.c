/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a factored call does on a device where some ranks work on host memory. The thin factors come to the host, where the codec works as
 * it does for those ranks; decoded rows go back, and the gradient is made where it belongs: it never crosses the bus. (Where all ranks work
 * on devices, only the dense way is here; the others are run_factored_device.c.)
 *
 *     factors --> host: prepare, peaks, encode, blobs, decode --> rows --> gradient, or integers that are summed first
 *
 * Copies pass through the two pinned buffers that messages are staged in, one piece a trip: while the device moves one piece, the
 * host fills or empties the other buffer, and nobody blocks. The last trip of a stage leaves both buffers free.
 */
#include "base/util.h"
#include "core/gpu.h"
#include "core/run.h"

#include <string.h>

/* ---- copies in pieces ---- */

typedef struct part {
    void *dst;
    const void *src;
    size_t bytes;
} part_t;

typedef struct parts {
    part_t part[4];
    int count;
} parts_t;

static void add_part(parts_t *parts, void *dst, const void *src, size_t bytes)
{
    parts->part[parts->count++] = (part_t){dst, src, bytes};
}

static size_t count_pieces(isgq_comm_t comm, const parts_t *parts)
{
    size_t pieces = 0;
    for (int i = 0; i < parts->count; i++)
        pieces += iq_ceil_div(parts->part[i].bytes, comm->slot_bytes);
    return pieces;
}

static part_t find_piece(isgq_comm_t comm, const parts_t *parts, size_t index)
{
    const part_t *part = parts->part;
    for (size_t pieces; index >= (pieces = iq_ceil_div(part->bytes, comm->slot_bytes)); part++)
        index -= pieces;
    size_t offset = index * comm->slot_bytes;
    return (part_t){(char *)part->dst + offset, (const char *)part->src + offset, iq_min(comm->slot_bytes, part->bytes - offset)};
}

static void *buffer_of(isgq_comm_t comm, size_t index) { return index % 2 == 0 ? iq_gpu_outgoing(comm) : iq_gpu_incoming(comm); }

/* ---- factors to the host ---- */

static parts_t parts_of_factors(const iq_run_t *run)
{
    const isgq_factors_t *factors = &run->call->factors;
    parts_t parts = {.count = 0};
    size_t row_bytes = factors->batch * iq_datatype_bytes(run->call->datatype);
    add_part(&parts, (void *)(uintptr_t)run->factored.x, factors->x, row_bytes * factors->m);
    add_part(&parts, (void *)(uintptr_t)run->factored.delta, factors->delta, row_bytes * factors->n);
    return parts;
}

/* One more than there are pieces. */
static size_t prepare_trips(isgq_comm_t comm, const iq_run_t *run)
{
    parts_t parts = parts_of_factors(run);
    return count_pieces(comm, &parts) + 1;
}

/* Trip i: piece i leaves the device, piece i - 1 goes to its place. */
static isgq_result_t gpu_prepare(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    parts_t parts = parts_of_factors(run);
    size_t pieces = count_pieces(comm, &parts);
    part_t piece;
    isgq_result_t result = iq_gpu_finish(comm, "factors"); /* piece trip - 1 is in its buffer */
    if (result != ISGQ_SUCCESS)
        return result;
    if (trip < pieces) {
        piece = find_piece(comm, &parts, trip);
        iq_device_copy(iq_gpu_device(comm), buffer_of(comm, trip), piece.src, piece.bytes);
    }
    if (trip > 0) {
        piece = find_piece(comm, &parts, trip - 1);
        memcpy(piece.dst, buffer_of(comm, trip - 1), piece.bytes);
    }
    if (trip == pieces)
        iq_factored_prepare(run);
    return ISGQ_SUCCESS;
}

/* ---- rows to the device ---- */

static size_t bytes_of_rows(const iq_factor_call_t *call, size_t capacity)
{
    iq_factor_rows_t rows;
    return iq_factor_rows_layout(call, capacity, NULL, &rows);
}

/* Where decoded rows lie on the device: packed, as many as there are. */
static iq_factor_rows_t rows_on_device(const iq_factored_run_t *factored)
{
    iq_factor_rows_t rows = {0};
    iq_factor_rows_layout(&factored->call, factored->rows.count, factored->product_scratch, &rows);
    rows.count = factored->rows.count;
    return rows;
}

static parts_t parts_of_rows(const iq_factored_run_t *factored, const iq_factor_rows_t *rows, const iq_factor_rows_t *device)
{
    parts_t parts = {.count = 0};
    size_t count = rows->count;
    add_part(&parts, device->weight_c, rows->weight_c, count * sizeof(int64_t));
    if (factored->call.want_bias)
        add_part(&parts, device->weight_b, rows->weight_b, count * sizeof(int64_t));
    add_part(&parts, device->q, rows->q, count * factored->call.m * sizeof(int16_t));
    add_part(&parts, device->p, rows->p, count * factored->call.n * sizeof(int16_t));
    return parts;
}

/* One more than the most pieces that there can be: how many rows ranks send is seen later. */
static size_t product_trips(isgq_comm_t comm, const iq_run_t *run)
{
    iq_factor_rows_t most = run->factored.rows;
    most.count = most.capacity;
    parts_t parts = parts_of_rows(&run->factored, &most, &most);
    return count_pieces(comm, &parts) + 1;
}

/* Trip i: piece i to its place. *there: all of them were, and the buffers are free. */
static isgq_result_t send_rows(isgq_comm_t comm, const iq_factored_run_t *factored, size_t trip, bool *there)
{
    iq_factor_rows_t device = rows_on_device(factored);
    parts_t parts = parts_of_rows(factored, &factored->rows, &device);
    part_t piece = {0};
    *there = trip >= count_pieces(comm, &parts);
    if (!*there) {
        piece = find_piece(comm, &parts, trip);
        if (!iq_gpu_busy(comm)) /* else it lies there already; piece trip - 2 has left this buffer */
            memcpy(buffer_of(comm, trip), piece.src, piece.bytes);
    }
    isgq_result_t result = iq_gpu_finish(comm, "rows");
    if (result == ISGQ_SUCCESS && !*there)
        iq_device_copy(iq_gpu_device(comm), piece.dst, buffer_of(comm, trip), piece.bytes);
    return result;
}

/* ---- the gradient ---- */

/* How sums become gradient or bias. */
static iq_cuda_outcome_t outcome_of(const iq_run_t *run, bool bias)
{
    const iq_call_t *call = run->call;
    return (iq_cuda_outcome_t){.type = call->datatype,
                               .data = bias ? call->factors.bias : call->recv,
                               .scale = iq_factor_scale(&run->factored.call, run->factored.peaks, bias),
                               .divisor = call->op == ISGQ_AVG ? run->factored.call.nranks : 1,
                               .accumulate = call->accumulate};
}

/* Sums of `type` in scratch as they are: those of the gradient, then those of the bias. */
static iq_cuda_outcome_t sums_of(const iq_run_t *run, isgq_data_type_t type, bool bias)
{
    const iq_factor_call_t *call = &run->factored.call;
    size_t first = bias ? call->m * call->n : 0;
    return (iq_cuda_outcome_t){
        .type = type, .data = (char *)run->factored.sums + first * iq_datatype_bytes(type), .scale = 1, .divisor = 1};
}

/* The bias is the product of a column of ones. */
static iq_cuda_product_t of_ones(iq_cuda_product_t product, const int64_t *weights, iq_cuda_outcome_t outcome)
{
    product.weights = weights;
    product.q = NULL;
    product.m = 1;
    product.outcome = outcome;
    return product;
}

static void multiply_codes(isgq_comm_t comm, const iq_factored_run_t *factored, iq_cuda_outcome_t grad, iq_cuda_outcome_t bias)
{
    iq_factor_rows_t rows = rows_on_device(factored);
    const iq_factor_call_t *call = &factored->call;
    iq_cuda_product_t product = {.codes = true,
                                 .weights = rows.weight_c,
                                 .q = rows.q,
                                 .p = rows.p,
                                 .rows = rows.count,
                                 .m = call->m,
                                 .n = call->n,
                                 .outcome = grad};
    iq_device_product(iq_gpu_device(comm), &product);
    product = of_ones(product, rows.weight_b, bias);
    if (call->want_bias)
        iq_device_product(iq_gpu_device(comm), &product);
}

/* Rows, and in the trip after the last piece all of the product. Trips that are left over are passed by. */
static isgq_result_t multiply_trip(isgq_comm_t comm, iq_run_t *run, size_t trip, iq_cuda_outcome_t grad, iq_cuda_outcome_t bias)
{
    bool there;
    isgq_result_t result = send_rows(comm, &run->factored, trip, &there);
    if (result == ISGQ_SUCCESS && there) {
        multiply_codes(comm, &run->factored, grad, bias);
        run->trip = run->stages[run->stage].trips - 1;
    }
    return result;
}

static isgq_result_t gpu_product(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    return multiply_trip(comm, run, trip, outcome_of(run, false), outcome_of(run, true));
}

static isgq_result_t gpu_integers(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    isgq_data_type_t type = iq_factor_sum_type(&run->call->factor, &run->factored.call);
    return multiply_trip(comm, run, trip, sums_of(run, type, false), sums_of(run, type, true));
}

static isgq_result_t gpu_from_integers(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_factor_call_t *call = &run->factored.call;
    isgq_data_type_t type = iq_factor_sum_type(&run->call->factor, call);
    (void)comm;
    (void)trip;
    for (int bias = 0; bias <= (call->want_bias ? 1 : 0); bias++) {
        iq_cuda_convert_t convert = {.type = type,
                                     .src = sums_of(run, type, bias != 0).data,
                                     .outcome = outcome_of(run, bias != 0),
                                     .count = bias != 0 ? call->n : call->m * call->n};
        iq_device_convert(run->site->device, &convert);
    }
    return ISGQ_SUCCESS;
}

/* ---- the dense way ---- */

static isgq_result_t gpu_local_gradient(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const isgq_factors_t *factors = &run->call->factors;
    iq_cuda_product_t product = {.type = run->call->datatype,
                                 .q = factors->x,
                                 .p = factors->delta,
                                 .rows = factors->batch,
                                 .m = factors->m,
                                 .n = factors->n,
                                 .outcome = sums_of(run, ISGQ_FLOAT32, false)};
    (void)comm;
    (void)trip;
    iq_device_product(run->site->device, &product);
    product = of_ones(product, NULL, sums_of(run, ISGQ_FLOAT32, true));
    if (factors->bias != NULL)
        iq_device_product(run->site->device, &product);
    return ISGQ_SUCCESS;
}

/* The dense result, f32 in scratch, to the caller's gradient and bias. */
static isgq_result_t gpu_copy_out(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_call_t *call = run->call;
    size_t counts[2] = {call->factors.m * call->factors.n, call->factors.bias != NULL ? call->factors.n : 0};
    (void)comm;
    (void)trip;
    for (int bias = 0; bias < 2; bias++) {
        iq_cuda_divide_t copy = {.src_type = ISGQ_FLOAT32,
                                 .dst_type = call->datatype,
                                 .src = sums_of(run, ISGQ_FLOAT32, bias != 0).data,
                                 .dst = bias != 0 ? call->factors.bias : call->recv,
                                 .divisor = 1,
                                 .accumulate = call->accumulate,
                                 .count = counts[bias]};
        iq_device_divide(run->site->device, &copy);
    }
    return ISGQ_SUCCESS;
}

static size_t one_launch(const iq_factor_call_t *call)
{
    (void)call;
    return 1;
}

const iq_factored_work_t iq_factored_on_device = {.prepare = gpu_prepare,
                                                  .product = gpu_product,
                                                  .integers = gpu_integers,
                                                  .from_integers = gpu_from_integers,
                                                  .local_gradient = gpu_local_gradient,
                                                  .copy_out = gpu_copy_out,
                                                  .prepare_trips = prepare_trips,
                                                  .product_trips = product_trips,
                                                  .tiles = one_launch,
                                                  .product_scratch = bytes_of_rows};
