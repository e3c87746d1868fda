/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One MPI_Allreduce: is it a sum of floats that the policy names, and if so, done by libisgqcoll. What decides is equal on all ranks by
 * MPI's own rules (type signature, count, operation) or was agreed on (mpi_comm.c), so all ranks go the same way.
 */
#include "bindings/mpi/mpi_comm.h"
#include "bindings/mpi/mpi_engine.h"
#include "bindings/preload/record.h"
#include "bindings/preload/say.h"
#include "bindings/preload/tally.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct call {
    const void *send;
    void *recv;
    size_t count;
    uint32_t type, op; /* as the policy names them, 0: it cannot */
    size_t element;    /* bytes */
} call_t;

static uint32_t type_of(MPI_Datatype type)
{
    if (type == MPI_FLOAT || type == MPI_REAL || type == MPI_REAL4)
        return IQ_POLICY_F32;
    return type == MPI_DOUBLE || type == MPI_DOUBLE_PRECISION || type == MPI_REAL8 ? IQ_POLICY_F64 : 0;
}

static void record(const iq_mpi_comm_t *state, const call_t *call, MPI_Datatype type, MPI_Op op)
{
    char type_name[MPI_MAX_OBJECT_NAME + 1] = "derived", shown[MPI_MAX_OBJECT_NAME + 3];
    int length = 0, size = 0;
    if (call->type == 0) {
        PMPI_Type_get_name(type, type_name, &length);
        PMPI_Type_size(type, &size);
    }
    snprintf(shown, sizeof(shown), "<%s>", type_name);
    iq_record_call_t seen = {.collective = "allreduce",
                             .comm = state->name,
                             .type = call->type != 0 ? iq_policy_type_name(call->type) : shown,
                             .op = op == MPI_SUM   ? "sum"
                                   : op == MPI_MAX ? "<max>"
                                   : op == MPI_MIN ? "<min>"
                                                   : "<other>",
                             .nranks = state->nranks,
                             .bytes = call->count * (call->type != 0 ? call->element : (size_t)size)};
    iq_record_add(&seen);
}

/* Room for `bytes` that are kept for the next call. */
static void *buffer_of(iq_mpi_comm_t *state, size_t bytes)
{
    if (state->buffer_bytes < bytes) {
        free(state->buffer);
        state->buffer = malloc(bytes);
        state->buffer_bytes = state->buffer != NULL ? bytes : 0;
    }
    return state->buffer;
}

/* The communicator's own thread does the work; here the MPI is kept going, since another rank may first need what this one is sending. */
static isgq_result_t wait_for(const iq_library_t *library, const iq_mpi_comm_t *state)
{
    uint64_t last = 0;
    int done = 0;
    isgq_result_t result = library->comm_get_sequence(state->comm, &last);
    for (unsigned turn = 0; result == ISGQ_SUCCESS; turn++) {
        result = library->comm_test(state->comm, last, &done);
        if (done != 0)
            return library->comm_synchronize(state->comm);
        iq_mpi_keep_going(turn);
    }
    return result;
}

static isgq_result_t sum(const iq_library_t *library, iq_mpi_comm_t *state, const void *send, void *recv, size_t count,
                         isgq_quantizer_t quantizer)
{
    isgq_result_t result = library->allreduce(send, recv, count, ISGQ_FLOAT32, ISGQ_SUM, quantizer, state->comm, NULL, NULL);
    return result != ISGQ_SUCCESS ? result : wait_for(library, state);
}

/* Doubles are summed as floats, since nothing is left of their other digits; what is not aligned goes through a copy. */
static isgq_result_t sum_copy(const iq_library_t *library, iq_mpi_comm_t *state, const call_t *call, isgq_quantizer_t quantizer)
{
    float *values = buffer_of(state, call->count * sizeof(float));
    const char *send = call->send;
    if (values == NULL) {
        (void)library->comm_abort(state->comm); /* the others must not wait for this rank */
        return ISGQ_ERR_NO_MEMORY;
    }
    for (size_t i = 0; i < call->count; i++) {
        double wide;
        memcpy(call->type == IQ_POLICY_F64 ? (void *)&wide : (void *)&values[i], send + i * call->element, call->element);
        if (call->type == IQ_POLICY_F64)
            values[i] = (float)wide;
    }
    isgq_result_t result = sum(library, state, values, values, call->count, quantizer);
    for (size_t i = 0; result == ISGQ_SUCCESS && i < call->count; i++) {
        double wide = values[i];
        memcpy((char *)call->recv + i * call->element, call->type == IQ_POLICY_F64 ? (void *)&wide : (void *)&values[i],
               call->element);
    }
    return result;
}

static bool is_aligned(const call_t *call) { return ((uintptr_t)call->send | (uintptr_t)call->recv) % sizeof(float) == 0; }

static int quantized(const iq_library_t *library, iq_mpi_comm_t *state, MPI_Comm comm, const call_t *call,
                     isgq_quantizer_t quantizer)
{
    bool direct = call->type == IQ_POLICY_F32 && is_aligned(call);
    isgq_result_t result =
        direct ? sum(library, state, call->send, call->recv, call->count, quantizer) : sum_copy(library, state, call, quantizer);
    if (result == ISGQ_SUCCESS) {
        iq_tally_done();
        return MPI_SUCCESS;
    }
    iq_say(IQ_SAY_ERROR, "MPI_Allreduce of %zu elements on communicator \"%s\": %s: %s", call->count, state->name,
           library->get_error_string(result), library->get_last_error());
    PMPI_Comm_call_errhandler(comm, MPI_ERR_OTHER);
    return MPI_ERR_OTHER;
}

static bool pass(const iq_mpi_comm_t *state, const call_t *call, const char *why)
{
    iq_tally_passed(why);
    if (iq_says(IQ_SAY_DEBUG))
        iq_say(IQ_SAY_DEBUG, "MPI_Allreduce of %zu elements, type %s, on communicator \"%s\" passed through: %s", call->count,
               iq_policy_type_name(call->type), state->name, why);
    return false;
}

static bool allreduce(const iq_mpi_call_t *asked, int *status)
{
    MPI_Datatype type = (MPI_Datatype)asked->type;
    MPI_Op op = (MPI_Op)asked->op;
    MPI_Comm comm = (MPI_Comm)asked->comm;
    const iq_library_t *library;
    const char *why;

    if (comm == MPI_COMM_NULL || asked->count < 0) /* the MPI's own words for it */
        return false;
    iq_mpi_comm_t *state = iq_mpi_comm_of(comm);
    const iq_policy_t *policy = iq_mpi_policy();
    call_t call = {.send = asked->send == MPI_IN_PLACE ? asked->recv : asked->send,
                   .recv = asked->recv,
                   .count = (size_t)asked->count,
                   .type = type_of(type),
                   .op = op == MPI_SUM ? IQ_POLICY_SUM : 0};
    call.element = call.type == IQ_POLICY_F64 ? sizeof(double) : sizeof(float);
    if (policy->mode != IQ_POLICY_QUANTIZE) {
        if (policy->mode == IQ_POLICY_RECORD)
            record(state, &call, type, op);
        return pass(state, &call, policy->mode == IQ_POLICY_RECORD ? "recorded only" : "ISGQ_POLICY is off");
    }
    iq_policy_seen_t seen = {.call = IQ_POLICY_ALLREDUCE, .type = call.type, .op = call.op, .bytes = call.count * call.element};
    const iq_policy_rule_t *rule = iq_policy_match(policy, state->named, &seen, &why);
    if (rule == NULL)
        return pass(state, &call, why);
    if (state->refused || (state->comm == NULL && !iq_mpi_comm_open(state, comm)))
        return pass(state, &call, "its communicator could not be joined");
    library = iq_library(&why);
    *status = quantized(library, state, comm, &call, state->quantizers[rule - policy->rules]);
    return true;
}

static iq_mpi_call_t from_fortran(const void *send, void *recv, const int *count, const int *type, const int *op, const int *comm)
{
    return (iq_mpi_call_t){
        send, recv, *count, (intptr_t)PMPI_Type_f2c(*type), (intptr_t)PMPI_Op_f2c(*op), (intptr_t)PMPI_Comm_f2c(*comm)};
}

__attribute__((visibility("default"))) const iq_mpi_engine_t iq_mpi_engine = {allreduce, from_fortran};
