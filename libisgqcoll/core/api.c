/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The collectives of isgqcoll.h: check every argument, say in one sentence what is wrong with the first bad one, decide, queue. Nothing else.
 */
#include "base/util.h"
#include "core/gpu.h"
#include "core/tensor.h"

#include <string.h>

/* Of a factor, in each direction: products of two stay far from overflow. */
#define MOST_COLUMNS ((size_t)1 << 31)

/* ---- argument checks; `operation` starts every sentence ---- */

static isgq_result_t check_types(const char *operation, isgq_data_type_t datatype, isgq_red_op_t op)
{
    if (iq_datatype_bytes(datatype) == 0)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "%s: datatype is %d", operation, (int)datatype);
    if ((int)op < ISGQ_SUM || (int)op > ISGQ_AVG)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "%s: op is %d", operation, (int)op);
    return ISGQ_SUCCESS;
}

/* A buffer of `count` elements: there if it must be, aligned to its elements, addressable, where the communicator works. */
static isgq_result_t check_buffer(isgq_comm_t comm, const char *operation, const char *name, const void *buffer, size_t count, size_t element_bytes)
{
    size_t bytes;
    if (!iq_checked_mul(count, element_bytes, &bytes) || bytes > SIZE_MAX / 4)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "%s: %zu elements of %zu bytes overflow", operation, count, element_bytes);
    if (count > 0 && buffer == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "%s: %s is NULL", operation, name);
    if ((uintptr_t)buffer % element_bytes != 0)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "%s: %s is not aligned to its %zu-byte elements", operation, name, element_bytes);
    if ((uintptr_t)buffer > UINTPTR_MAX - bytes)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "%s: %s and %zu bytes wrap around the address space", operation, name, bytes);
    return count == 0 ? ISGQ_SUCCESS : iq_gpu_check_buffer(comm, operation, name, buffer);
}

static bool overlap(const void *a, size_t a_bytes, const void *b, size_t b_bytes)
{
    uintptr_t first = (uintptr_t)a, second = (uintptr_t)b;
    return a_bytes > 0 && b_bytes > 0 && first < second + b_bytes && second < first + a_bytes;
}

/* Send and receive buffers may be disjoint, or coincide as `in_place` says. */
static isgq_result_t check_overlap(const char *operation, const void *send, size_t send_bytes, const void *recv, size_t recv_bytes,
                                   const void *in_place)
{
    if (send != in_place && overlap(send, send_bytes, recv, recv_bytes))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "%s: sendbuff and recvbuff overlap without being in place", operation);
    return ISGQ_SUCCESS;
}

static isgq_result_t check_options(const char *operation, const isgq_call_options_t *options)
{
    if (options != NULL && options->size != sizeof(*options))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "%s: options->size is %zu, this library's is %zu", operation, options->size,
                       sizeof(*options));
    return ISGQ_SUCCESS;
}

/* ---- the common end of every call ---- */

static isgq_result_t launch(isgq_comm_t comm, iq_call_t *call, isgq_quantizer_t quantizer, const isgq_call_options_t *options)
{
    isgq_result_t result;
    call->quantizer = quantizer != NULL ? quantizer : comm->quantizer;
    call->accumulate = options != NULL && options->accumulate != 0;
    call->timeout_ms = options != NULL && options->timeout_ms != 0 ? options->timeout_ms : comm->timeout_ms;
    IQ_TRY(iq_comm_check(comm));
    iq_tensor_lend_shape(options != NULL ? options->tensor : NULL, call);
    IQ_TRY(iq_decide(comm, call, options != NULL ? options->algorithm : NULL));
    IQ_TRY(iq_tensor_use(comm, options != NULL ? options->tensor : NULL, call));
    if (iq_group_defer(comm, call, &result))
        return result;
    return iq_submit(comm, &call, 1);
}

static isgq_result_t allreduce(const void *sendbuff, void *recvbuff, size_t count, isgq_data_type_t datatype, isgq_red_op_t op,
                               isgq_quantizer_t quantizer, isgq_comm_t comm, isgq_stream_t stream, const isgq_call_options_t *options)
{
    size_t bytes = iq_datatype_bytes(datatype);
    IQ_TRY(check_types("allreduce", datatype, op));
    IQ_TRY(check_buffer(comm, "allreduce", "sendbuff", sendbuff, count, bytes));
    IQ_TRY(check_buffer(comm, "allreduce", "recvbuff", recvbuff, count, bytes));
    IQ_TRY(check_overlap("allreduce", sendbuff, count * bytes, recvbuff, count * bytes, recvbuff));
    IQ_TRY(iq_gpu_check_stream(comm, "allreduce", stream));
    IQ_TRY(check_options("allreduce", options));
    iq_call_t call = {.kind = IQ_CALL_ALLREDUCE, .datatype = datatype, .op = op, .send = sendbuff, .recv = recvbuff, .count = count,
                      .stream = stream, .input_bytes = count * bytes};
    return launch(comm, &call, quantizer, options);
}

isgq_result_t isgq_allreduce(const void *sendbuff, void *recvbuff, size_t count, isgq_data_type_t datatype, isgq_red_op_t op,
                             isgq_quantizer_t quantizer, isgq_comm_t comm, isgq_stream_t stream, const isgq_call_options_t *options)
{
    isgq_result_t result = iq_comm_check_handle(comm, "allreduce");
    if (result == ISGQ_SUCCESS)
        result = allreduce(sendbuff, recvbuff, count, datatype, op, quantizer, comm, stream, options);
    return iq_group_refuse(comm, result);
}

isgq_result_t iq_check_factored_shape(size_t m, size_t n, size_t max_batch, isgq_data_type_t datatype)
{
    size_t elements;
    if (datatype != ISGQ_FLOAT32 && datatype != ISGQ_FLOAT16 && datatype != ISGQ_BFLOAT16)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "allreduce_factored: datatype is %s; factors are f32, f16 or bf16",
                       iq_datatype_name(datatype));
    if (m > MOST_COLUMNS || n > MOST_COLUMNS || max_batch > MOST_COLUMNS)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "allreduce_factored: m %zu, n %zu or max_batch %zu is beyond %zu", m, n,
                       max_batch, (size_t)MOST_COLUMNS);
    if (!iq_checked_mul(m, n, &elements) || elements > SIZE_MAX / 32) /* 64-bit sums, and scratch beside them */
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "allreduce_factored: m %zu times n %zu overflows", m, n);
    return ISGQ_SUCCESS;
}

static isgq_result_t check_factors(isgq_comm_t comm, const isgq_factors_t *factors, size_t max_batch, isgq_data_type_t datatype)
{
    size_t bytes = iq_datatype_bytes(datatype), elements;
    if (factors == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "allreduce_factored: factors is NULL");
    if (factors->size != sizeof(*factors))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "allreduce_factored: factors->size is %zu, this library's is %zu", factors->size,
                       sizeof(*factors));
    if (factors->batch > max_batch)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "allreduce_factored: batch %zu exceeds max_batch %zu", factors->batch, max_batch);
    IQ_TRY(iq_check_factored_shape(factors->m, factors->n, max_batch, datatype));
    if (!iq_checked_mul(factors->batch, factors->m, &elements))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "allreduce_factored: batch %zu times m %zu overflows", factors->batch, factors->m);
    IQ_TRY(check_buffer(comm, "allreduce_factored", "factors->x", factors->x, elements, bytes));
    if (!iq_checked_mul(factors->batch, factors->n, &elements))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "allreduce_factored: batch %zu times n %zu overflows", factors->batch, factors->n);
    IQ_TRY(check_buffer(comm, "allreduce_factored", "factors->delta", factors->delta, elements, bytes));
    return factors->bias == NULL ? ISGQ_SUCCESS : check_buffer(comm, "allreduce_factored", "factors->bias", factors->bias, factors->n, bytes);
}

static isgq_result_t check_gradient(const isgq_factors_t *factors, const void *grad, size_t bytes)
{
    size_t grad_bytes = factors->m * factors->n * bytes;
    if (overlap(grad, grad_bytes, factors->x, factors->batch * factors->m * bytes) ||
        overlap(grad, grad_bytes, factors->delta, factors->batch * factors->n * bytes))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "allreduce_factored: grad overlaps the factors");
    if (factors->bias != NULL && (overlap(factors->bias, factors->n * bytes, grad, grad_bytes) ||
                                  overlap(factors->bias, factors->n * bytes, factors->x, factors->batch * factors->m * bytes) ||
                                  overlap(factors->bias, factors->n * bytes, factors->delta, factors->batch * factors->n * bytes)))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "allreduce_factored: bias overlaps grad or the factors");
    return ISGQ_SUCCESS;
}

static isgq_result_t allreduce_factored(const isgq_factors_t *factors, size_t max_batch, void *grad, isgq_data_type_t datatype,
                                        isgq_red_op_t op, isgq_quantizer_t quantizer, isgq_comm_t comm, isgq_stream_t stream,
                                        const isgq_call_options_t *options)
{
    size_t bytes = iq_datatype_bytes(datatype);
    IQ_TRY(check_types("allreduce_factored", datatype, op));
    IQ_TRY(check_factors(comm, factors, max_batch, datatype));
    IQ_TRY(check_buffer(comm, "allreduce_factored", "grad", grad, factors->m * factors->n, bytes));
    IQ_TRY(check_gradient(factors, grad, bytes));
    if (op != ISGQ_SUM && op != ISGQ_AVG)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "allreduce_factored: op is %s; only sum and avg make a gradient", iq_red_op_name(op));
    IQ_TRY(iq_gpu_check_stream(comm, "allreduce_factored", stream));
    IQ_TRY(check_options("allreduce_factored", options));
    iq_call_t call = {.kind = IQ_CALL_FACTORED, .datatype = datatype, .op = op, .recv = grad, .count = factors->m * factors->n,
                      .factors = *factors, .max_batch = max_batch, .stream = stream, .input_bytes = factors->m * factors->n * bytes};
    return launch(comm, &call, quantizer, options);
}

isgq_result_t isgq_allreduce_factored(const isgq_factors_t *factors, size_t max_batch, void *grad, isgq_data_type_t datatype,
                                      isgq_red_op_t op, isgq_quantizer_t quantizer, isgq_comm_t comm, isgq_stream_t stream,
                                      const isgq_call_options_t *options)
{
    isgq_result_t result = iq_comm_check_handle(comm, "allreduce_factored");
    if (result == ISGQ_SUCCESS)
        result = allreduce_factored(factors, max_batch, grad, datatype, op, quantizer, comm, stream, options);
    return iq_group_refuse(comm, result);
}

static isgq_result_t check_total(const char *operation, isgq_comm_t comm, size_t part, size_t bytes, size_t *total)
{
    size_t total_bytes;
    if (!iq_checked_mul(part, (size_t)comm->nranks, total) || !iq_checked_mul(*total, bytes, &total_bytes))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "%s: %zu elements on each of %d ranks overflow", operation, part, comm->nranks);
    return ISGQ_SUCCESS;
}

static isgq_result_t reduce_scatter(const void *sendbuff, void *recvbuff, size_t recvcount, isgq_data_type_t datatype, isgq_red_op_t op,
                                    isgq_quantizer_t quantizer, isgq_comm_t comm, isgq_stream_t stream, const isgq_call_options_t *options)
{
    size_t bytes = iq_datatype_bytes(datatype), total;
    IQ_TRY(check_types("reduce_scatter", datatype, op));
    IQ_TRY(check_total("reduce_scatter", comm, recvcount, bytes, &total));
    IQ_TRY(check_buffer(comm, "reduce_scatter", "sendbuff", sendbuff, total, bytes));
    IQ_TRY(check_buffer(comm, "reduce_scatter", "recvbuff", recvbuff, recvcount, bytes));
    const char *own = (const char *)recvbuff - (size_t)comm->rank * recvcount * bytes;
    IQ_TRY(check_overlap("reduce_scatter", sendbuff, total * bytes, recvbuff, recvcount * bytes, own));
    IQ_TRY(iq_gpu_check_stream(comm, "reduce_scatter", stream));
    IQ_TRY(check_options("reduce_scatter", options));
    iq_call_t call = {.kind = IQ_CALL_REDUCE_SCATTER, .datatype = datatype, .op = op, .send = sendbuff, .recv = recvbuff, .count = total,
                      .stream = stream, .input_bytes = total * bytes};
    return launch(comm, &call, quantizer, options);
}

isgq_result_t isgq_reduce_scatter(const void *sendbuff, void *recvbuff, size_t recvcount, isgq_data_type_t datatype, isgq_red_op_t op,
                                  isgq_quantizer_t quantizer, isgq_comm_t comm, isgq_stream_t stream, const isgq_call_options_t *options)
{
    isgq_result_t result = iq_comm_check_handle(comm, "reduce_scatter");
    if (result == ISGQ_SUCCESS)
        result = reduce_scatter(sendbuff, recvbuff, recvcount, datatype, op, quantizer, comm, stream, options);
    return iq_group_refuse(comm, result);
}

static isgq_result_t allgather(const void *sendbuff, void *recvbuff, size_t sendcount, isgq_data_type_t datatype, isgq_quantizer_t quantizer,
                               isgq_comm_t comm, isgq_stream_t stream, const isgq_call_options_t *options)
{
    size_t bytes = iq_datatype_bytes(datatype), total;
    IQ_TRY(check_types("allgather", datatype, ISGQ_SUM));
    IQ_TRY(check_total("allgather", comm, sendcount, bytes, &total));
    IQ_TRY(check_buffer(comm, "allgather", "sendbuff", sendbuff, sendcount, bytes));
    IQ_TRY(check_buffer(comm, "allgather", "recvbuff", recvbuff, total, bytes));
    const char *own = (const char *)recvbuff + (size_t)comm->rank * sendcount * bytes;
    IQ_TRY(check_overlap("allgather", sendbuff, sendcount * bytes, recvbuff, total * bytes, own));
    IQ_TRY(iq_gpu_check_stream(comm, "allgather", stream));
    IQ_TRY(check_options("allgather", options));
    iq_call_t call = {.kind = IQ_CALL_ALLGATHER, .datatype = datatype, .op = ISGQ_SUM, .send = sendbuff, .recv = recvbuff, .count = total,
                      .stream = stream, .input_bytes = sendcount * bytes};
    return launch(comm, &call, quantizer, options);
}

isgq_result_t isgq_allgather(const void *sendbuff, void *recvbuff, size_t sendcount, isgq_data_type_t datatype, isgq_quantizer_t quantizer,
                             isgq_comm_t comm, isgq_stream_t stream, const isgq_call_options_t *options)
{
    isgq_result_t result = iq_comm_check_handle(comm, "allgather");
    if (result == ISGQ_SUCCESS)
        result = allgather(sendbuff, recvbuff, sendcount, datatype, quantizer, comm, stream, options);
    return iq_group_refuse(comm, result);
}

static isgq_result_t broadcast(const void *sendbuff, void *recvbuff, size_t count, isgq_data_type_t datatype, int root, isgq_comm_t comm,
                               isgq_stream_t stream)
{
    size_t bytes = iq_datatype_bytes(datatype);
    bool is_root = comm->rank == root;
    IQ_TRY(check_types("broadcast", datatype, ISGQ_SUM));
    if (root < 0 || root >= comm->nranks)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "broadcast: root is %d; it must be 0 to %d", root, comm->nranks - 1);
    if (is_root)
        IQ_TRY(check_buffer(comm, "broadcast", "sendbuff", sendbuff, count, bytes));
    IQ_TRY(check_buffer(comm, "broadcast", "recvbuff", recvbuff, count, bytes));
    if (is_root)
        IQ_TRY(check_overlap("broadcast", sendbuff, count * bytes, recvbuff, count * bytes, recvbuff));
    IQ_TRY(iq_gpu_check_stream(comm, "broadcast", stream));
    iq_call_t call = {.kind = IQ_CALL_BROADCAST, .datatype = datatype, .op = ISGQ_SUM, .send = sendbuff, .recv = recvbuff, .count = count,
                      .root = root, .stream = stream, .input_bytes = is_root ? count * bytes : 0};
    return launch(comm, &call, NULL, NULL);
}

isgq_result_t isgq_broadcast(const void *sendbuff, void *recvbuff, size_t count, isgq_data_type_t datatype, int root, isgq_comm_t comm,
                             isgq_stream_t stream)
{
    isgq_result_t result = iq_comm_check_handle(comm, "broadcast");
    if (result == ISGQ_SUCCESS)
        result = broadcast(sendbuff, recvbuff, count, datatype, root, comm, stream);
    return iq_group_refuse(comm, result);
}

isgq_result_t isgq_barrier(isgq_comm_t comm, isgq_stream_t stream)
{
    iq_call_t call = {.kind = IQ_CALL_BARRIER, .datatype = ISGQ_UINT8, .stream = stream};
    isgq_result_t result = iq_comm_check_handle(comm, "barrier");
    if (result == ISGQ_SUCCESS)
        result = iq_gpu_check_stream(comm, "barrier", stream);
    if (result == ISGQ_SUCCESS)
        result = launch(comm, &call, NULL, NULL);
    return iq_group_refuse(comm, result);
}
