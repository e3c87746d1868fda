/* SPDX-License-Identifier: Apache-2.0 */
/* NCCL's collectives and the rest of its functions, as the host emulation answers them: arguments checked in NCCL's order, then a call for the group. */
#include "bindings/nccl/host_group.h"
#include "bindings/nccl/nccl_policy.h"

#include <stdlib.h>
#include <string.h>

#define EXPORTED __attribute__((visibility("default")))
#define COLLECTIVE(name, ...)                              \
    EXPORTED iq_host_result_t iq_host_##name(__VA_ARGS__); \
    iq_host_result_t iq_host_##name(__VA_ARGS__)

static iq_host_result_t check_operation(iq_host_call_t *call, const char *name)
{
    int slot = call->op - HOST_BUILT_IN_OPS;
    if (call->op < 0 || (slot >= 0 && (slot >= HOST_SCALARS || !call->comm->scalars[slot].used)))
        return iq_host_fail(HOST_INVALID_ARGUMENT, "%s: %d is no operation of this communicator", name, call->op);
    if (slot < 0)
        return HOST_SUCCESS;
    if (call->comm->scalars[slot].type != call->type)
        return iq_host_fail(HOST_INVALID_ARGUMENT, "%s: the operation was made for type %d, not %d", name,
                            call->comm->scalars[slot].type, call->type);
    call->scalar = call->comm->scalars[slot];
    call->op = ISGQ_SUM;
    return HOST_SUCCESS;
}

static iq_host_result_t check_call(iq_host_call_t *call, const char *name)
{
    iq_host_result_t result = iq_host_comm_check(call->comm, name);
    if (result != HOST_SUCCESS)
        return result;
    if (iq_nccl_type_bytes(call->type) == 0)
        return iq_host_fail(HOST_INVALID_ARGUMENT, "%s: %d is no data type", name, call->type);
    if (call->root < 0 || call->root >= call->comm->nranks)
        return iq_host_fail(HOST_INVALID_ARGUMENT, "%s: there is no rank %d among %d", name, call->root, call->comm->nranks);
    return call->kind <= HOST_REDUCE_SCATTER ? check_operation(call, name) : HOST_SUCCESS;
}

static iq_host_result_t submit(iq_host_call_t call, const char *name)
{
    iq_host_result_t result = check_call(&call, name);
    if (result != HOST_SUCCESS) {
        iq_host_group_refuse(result);
        return result;
    }
    return call.count == 0 ? HOST_SUCCESS : iq_host_submit(&call);
}

COLLECTIVE(ncclAllReduce, const void *send, void *recv, size_t count, int type, int op, iq_host_comm_t *comm,
           iq_host_stream_t stream)
{
    (void)stream;
    return submit(
        (iq_host_call_t){
            .kind = HOST_ALLREDUCE, .comm = comm, .send = send, .recv = recv, .count = count, .type = type, .op = op},
        "ncclAllReduce");
}

COLLECTIVE(ncclReduce, const void *send, void *recv, size_t count, int type, int op, int root, iq_host_comm_t *comm,
           iq_host_stream_t stream)
{
    (void)stream;
    return submit(
        (iq_host_call_t){
            .kind = HOST_REDUCE, .comm = comm, .send = send, .recv = recv, .count = count, .type = type, .op = op, .root = root},
        "ncclReduce");
}

COLLECTIVE(ncclReduceScatter, const void *send, void *recv, size_t count, int type, int op, iq_host_comm_t *comm,
           iq_host_stream_t stream)
{
    (void)stream;
    return submit(
        (iq_host_call_t){
            .kind = HOST_REDUCE_SCATTER, .comm = comm, .send = send, .recv = recv, .count = count, .type = type, .op = op},
        "ncclReduceScatter");
}

COLLECTIVE(ncclAllGather, const void *send, void *recv, size_t count, int type, iq_host_comm_t *comm, iq_host_stream_t stream)
{
    (void)stream;
    return submit(
        (iq_host_call_t){.kind = HOST_ALLGATHER, .comm = comm, .send = send, .recv = recv, .count = count, .type = type},
        "ncclAllGather");
}

COLLECTIVE(ncclBroadcast, const void *send, void *recv, size_t count, int type, int root, iq_host_comm_t *comm,
           iq_host_stream_t stream)
{
    (void)stream;
    return submit(
        (iq_host_call_t){
            .kind = HOST_BROADCAST, .comm = comm, .send = send, .recv = recv, .count = count, .type = type, .root = root},
        "ncclBroadcast");
}

COLLECTIVE(ncclBcast, void *buffer, size_t count, int type, int root, iq_host_comm_t *comm, iq_host_stream_t stream)
{
    return iq_host_ncclBroadcast(buffer, buffer, count, type, root, comm, stream);
}

COLLECTIVE(ncclAlltoAll, const void *send, void *recv, size_t count, int type, iq_host_comm_t *comm, iq_host_stream_t stream)
{
    (void)stream;
    return submit((iq_host_call_t){.kind = HOST_ALLTOALL, .comm = comm, .send = send, .recv = recv, .count = count, .type = type},
                  "ncclAlltoAll");
}

COLLECTIVE(ncclGather, const void *send, void *recv, size_t count, int type, int root, iq_host_comm_t *comm,
           iq_host_stream_t stream)
{
    (void)stream;
    return submit(
        (iq_host_call_t){
            .kind = HOST_GATHER, .comm = comm, .send = send, .recv = recv, .count = count, .type = type, .root = root},
        "ncclGather");
}

COLLECTIVE(ncclScatter, const void *send, void *recv, size_t count, int type, int root, iq_host_comm_t *comm,
           iq_host_stream_t stream)
{
    (void)stream;
    return submit(
        (iq_host_call_t){
            .kind = HOST_SCATTER, .comm = comm, .send = send, .recv = recv, .count = count, .type = type, .root = root},
        "ncclScatter");
}

COLLECTIVE(ncclRedOpCreatePreMulSum, int *op, void *scalar, int type, int residence, iq_host_comm_t *comm)
{
    iq_host_result_t result = iq_host_comm_check(comm, "ncclRedOpCreatePreMulSum");
    int slot = 0;
    if (result != HOST_SUCCESS)
        return result;
    if (op == NULL || scalar == NULL || iq_nccl_type_bytes(type) == 0)
        return iq_host_fail(HOST_INVALID_ARGUMENT, "ncclRedOpCreatePreMulSum: op or scalar is NULL, or %d is no data type", type);
    while (slot < HOST_SCALARS && comm->scalars[slot].used)
        slot++;
    if (slot == HOST_SCALARS)
        return iq_host_fail(HOST_INTERNAL, "ncclRedOpCreatePreMulSum: %d operations exist already", HOST_SCALARS);
    iq_host_scalar_t *made = &comm->scalars[slot];
    *made = (iq_host_scalar_t){.used = true, .type = type, .later = residence == 0, .pointer = scalar};
    if (!made->later)
        memcpy(made->value, scalar, iq_nccl_type_bytes(type));
    *op = HOST_BUILT_IN_OPS + slot;
    return HOST_SUCCESS;
}

COLLECTIVE(ncclRedOpDestroy, int op, iq_host_comm_t *comm)
{
    iq_host_result_t result = iq_host_comm_check(comm, "ncclRedOpDestroy");
    if (result != HOST_SUCCESS)
        return result;
    int slot = op - HOST_BUILT_IN_OPS;
    if (slot < 0 || slot >= HOST_SCALARS || !comm->scalars[slot].used)
        return iq_host_fail(HOST_INVALID_ARGUMENT, "ncclRedOpDestroy: %d was not made by ncclRedOpCreatePreMulSum", op);
    comm->scalars[slot].used = false;
    return HOST_SUCCESS;
}

COLLECTIVE(ncclGetVersion, int *version)
{
    if (version == NULL)
        return HOST_INVALID_ARGUMENT;
    *version = IQ_HOST_VERSION;
    return HOST_SUCCESS;
}

EXPORTED const char *iq_host_ncclGetErrorString(iq_host_result_t result);
const char *iq_host_ncclGetErrorString(iq_host_result_t result)
{
    static const char *const texts[] = {"no error",
                                        "unhandled cuda error",
                                        "unhandled system error",
                                        "internal error",
                                        "invalid argument",
                                        "invalid usage",
                                        "remote process exited or there was a network error",
                                        "NCCL operation in progress"};
    return result >= 0 && result < (int)(sizeof(texts) / sizeof(texts[0])) ? texts[result] : "unknown result code";
}

EXPORTED const char *iq_host_ncclGetLastError(const iq_host_comm_t *comm);
const char *iq_host_ncclGetLastError(const iq_host_comm_t *comm)
{
    (void)comm; /* as in NCCL: the calling thread's */
    return iq_host_last_error();
}

EXPORTED void iq_host_ncclResetDebugInit(void);
void iq_host_ncclResetDebugInit(void) {}

COLLECTIVE(ncclMemAlloc, void **memory, size_t bytes)
{
    if (memory == NULL)
        return iq_host_fail(HOST_INVALID_ARGUMENT, "ncclMemAlloc: ptr is NULL");
    return posix_memalign(memory, 4096, bytes > 0 ? bytes : 1) == 0 ? HOST_SUCCESS
                                                                    : iq_host_fail(HOST_SYSTEM, "ncclMemAlloc: no memory");
}

COLLECTIVE(ncclMemFree, void *memory)
{
    free(memory);
    return HOST_SUCCESS;
}

/* Registration makes transfers faster where hardware does them; here there is nothing to make faster. */
COLLECTIVE(ncclCommRegister, const iq_host_comm_t *comm, void *memory, size_t bytes, void **handle)
{
    iq_host_result_t result = iq_host_comm_check(comm, "ncclCommRegister");
    if (result == HOST_SUCCESS && (memory == NULL || bytes == 0 || handle == NULL))
        return iq_host_fail(HOST_INVALID_ARGUMENT, "ncclCommRegister: no memory or no handle");
    if (result == HOST_SUCCESS)
        *handle = memory;
    return result;
}

COLLECTIVE(ncclCommDeregister, const iq_host_comm_t *comm, void *handle)
{
    (void)handle;
    return iq_host_comm_check(comm, "ncclCommDeregister");
}

/* NULL is NCCL's own answer where windows are not supported. */
COLLECTIVE(ncclCommWindowRegister, iq_host_comm_t *comm, void *memory, size_t bytes, void **window, int flags)
{
    iq_host_result_t result = iq_host_comm_check(comm, "ncclCommWindowRegister");
    (void)memory, (void)bytes, (void)flags;
    if (result == HOST_SUCCESS && window != NULL)
        *window = NULL;
    return result;
}

COLLECTIVE(ncclCommWindowDeregister, iq_host_comm_t *comm, void *window)
{
    (void)window;
    return iq_host_comm_check(comm, "ncclCommWindowDeregister");
}
