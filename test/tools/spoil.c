/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A library that lies, for LD_PRELOAD: quantized calls deliver something else than they should, on all ranks alike. Programs that
 * check results must notice.
 *
 *     SPOIL=zero   all results are 0         SPOIL=flip   the sign is wrong         SPOIL=lost   rank 0's input counts as zeros
 *
 * f32 only. Calls with the quantizer `none` are left alone: they carry the programs' own exchanges.
 */
#include "isgqcoll.h"
#include "isgqcoll_ext.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static bool is_mode(const char *mode)
{
    const char *asked = getenv("SPOIL");
    return asked != NULL && strcmp(asked, mode) == 0;
}

static bool is_quantized(isgq_quantizer_t quantizer)
{
    return quantizer != NULL && strcmp(isgqx_quantizer_text(quantizer), "none") != 0;
}

/* The library's own function of that name. */
static void find(const char *name, void *function)
{
    void *symbol = dlsym(RTLD_NEXT, name);
    if (symbol == NULL)
        abort();
    memcpy(function, &symbol, sizeof(symbol));
}

static isgq_result_t spoil(isgq_result_t result, isgq_comm_t comm, float *values, size_t count)
{
    if (result != ISGQ_SUCCESS || is_mode("lost") || values == NULL)
        return result;
    result = isgq_comm_synchronize(comm);
    for (size_t i = 0; i < count; i++)
        values[i] = is_mode("zero") ? 0.0f : -values[i];
    return result;
}

/* What this rank contributes: its input, or zeros that are never freed (the call may still read them). */
static const void *input(isgq_comm_t comm, const void *values, size_t count)
{
    int rank = -1;
    if (!is_mode("lost") || isgq_comm_user_rank(comm, &rank) != ISGQ_SUCCESS || rank != 0)
        return values;
    static float *zeros;
    static size_t room;
    if (count > room) {
        zeros = calloc(count, sizeof(float));
        room = count;
    }
    return zeros;
}

isgq_result_t isgq_allreduce(const void *sendbuff, void *recvbuff, size_t count, isgq_data_type_t datatype, isgq_red_op_t op,
                             isgq_quantizer_t quantizer, isgq_comm_t comm, isgq_stream_t stream,
                             const isgq_call_options_t *options)
{
    isgq_result_t (*real)(const void *, void *, size_t, isgq_data_type_t, isgq_red_op_t, isgq_quantizer_t, isgq_comm_t,
                          isgq_stream_t, const isgq_call_options_t *);
    find("isgq_allreduce", &real);
    if (datatype != ISGQ_FLOAT32 || !is_quantized(quantizer))
        return real(sendbuff, recvbuff, count, datatype, op, quantizer, comm, stream, options);
    return spoil(real(input(comm, sendbuff, count), recvbuff, count, datatype, op, quantizer, comm, stream, options), comm,
                 recvbuff, count);
}

isgq_result_t isgq_reduce_scatter(const void *sendbuff, void *recvbuff, size_t recvcount, isgq_data_type_t datatype,
                                  isgq_red_op_t op, isgq_quantizer_t quantizer, isgq_comm_t comm, isgq_stream_t stream,
                                  const isgq_call_options_t *options)
{
    int nranks = 1;
    isgq_result_t (*real)(const void *, void *, size_t, isgq_data_type_t, isgq_red_op_t, isgq_quantizer_t, isgq_comm_t,
                          isgq_stream_t, const isgq_call_options_t *);
    find("isgq_reduce_scatter", &real);
    if (datatype != ISGQ_FLOAT32 || !is_quantized(quantizer) || isgq_comm_count(comm, &nranks) != ISGQ_SUCCESS)
        return real(sendbuff, recvbuff, recvcount, datatype, op, quantizer, comm, stream, options);
    return spoil(real(input(comm, sendbuff, recvcount * (size_t)nranks), recvbuff, recvcount, datatype, op, quantizer, comm,
                      stream, options),
                 comm, recvbuff, recvcount);
}

isgq_result_t isgq_allgather(const void *sendbuff, void *recvbuff, size_t sendcount, isgq_data_type_t datatype,
                             isgq_quantizer_t quantizer, isgq_comm_t comm, isgq_stream_t stream,
                             const isgq_call_options_t *options)
{
    int nranks = 1;
    isgq_result_t (*real)(const void *, void *, size_t, isgq_data_type_t, isgq_quantizer_t, isgq_comm_t, isgq_stream_t,
                          const isgq_call_options_t *);
    find("isgq_allgather", &real);
    if (datatype != ISGQ_FLOAT32 || !is_quantized(quantizer) || isgq_comm_count(comm, &nranks) != ISGQ_SUCCESS)
        return real(sendbuff, recvbuff, sendcount, datatype, quantizer, comm, stream, options);
    return spoil(real(input(comm, sendbuff, sendcount), recvbuff, sendcount, datatype, quantizer, comm, stream, options), comm,
                 recvbuff, sendcount * (size_t)nranks);
}

isgq_result_t isgq_allreduce_factored(const isgq_factors_t *factors, size_t max_batch, void *grad, isgq_data_type_t datatype,
                                      isgq_red_op_t op, isgq_quantizer_t quantizer, isgq_comm_t comm, isgq_stream_t stream,
                                      const isgq_call_options_t *options)
{
    isgq_factors_t changed = *factors;
    isgq_result_t (*real)(const isgq_factors_t *, size_t, void *, isgq_data_type_t, isgq_red_op_t, isgq_quantizer_t, isgq_comm_t,
                          isgq_stream_t, const isgq_call_options_t *);
    find("isgq_allreduce_factored", &real);
    if (datatype != ISGQ_FLOAT32 || !is_quantized(quantizer))
        return real(factors, max_batch, grad, datatype, op, quantizer, comm, stream, options);
    changed.delta = input(comm, factors->delta, factors->batch * factors->n);
    isgq_result_t result = real(&changed, max_batch, grad, datatype, op, quantizer, comm, stream, options);
    result = spoil(result, comm, grad, factors->m * factors->n);
    return spoil(result, comm, factors->bias, factors->n);
}
