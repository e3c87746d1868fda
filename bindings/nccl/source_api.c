/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The functions of isgq_nccl.h: the engine's where there is a policy, else NCCL's own. Where the shim of NCCL's name is in front as well, that one
 * does the work: calls go to it.
 */
#include "bindings/nccl/gpu_engine.h"

#include "bindings/preload/say.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#define EXPORTED __attribute__((visibility("default")))

static pthread_once_t once = PTHREAD_ONCE_INIT;
static iq_real_t functions;

static void find(void *handle, const char *prefix, const char *name, void *function)
{
    char symbol[96] = "";
    strncat(symbol, prefix, 16);
    strncat(symbol, name, sizeof(symbol) - 17);
    void *address = dlsym(handle, symbol);
    if (address != NULL)
        memcpy(function, &address, sizeof(address));
}

static void find_all(void *handle, const char *prefix)
{
#define X(name, parameters) find(handle, prefix, #name, &functions.name);
    IQ_REAL_FUNCTIONS(X)
#undef X
}

static void begin(void)
{
    const char *policy = secure_getenv("ISGQ_POLICY");
    void *any = dlsym(RTLD_DEFAULT, "ncclAllReduce"), *address;
    void (*start)(void *) = NULL;
    Dl_info where;
    find_all(RTLD_DEFAULT, "");
    if (any == NULL || dladdr(any, &where) == 0 || strstr(where.dli_fname, "/isgq/libnccl.so") != NULL || policy == NULL ||
        policy[0] == '\0' || strcmp(policy, "off") == 0)
        return;
    iq_say_as("isgq nccl", -1);
    void *real = dlopen(where.dli_fname, RTLD_LAZY | RTLD_NOLOAD), *engine = dlopen("libisgq_nccl_gpu.so", RTLD_NOW | RTLD_LOCAL);
    address = engine != NULL ? dlsym(engine, "iq_gpu_begin") : NULL;
    memcpy(&start, &address, sizeof(address));
    if (real == NULL || start == NULL) {
        iq_say(IQ_SAY_WARN, "%s; ISGQ_POLICY has no effect, every call passes through",
               engine == NULL ? dlerror() : "NCCL is no shared library");
        return;
    }
    start(real);
    find_all(engine, "iq_gpu_");
}

#define CALL(name, parameters, arguments)                     \
    EXPORTED iq_host_result_t isgqNccl##name parameters;      \
    iq_host_result_t isgqNccl##name parameters                \
    {                                                         \
        pthread_once(&once, begin);                           \
        if (functions.nccl##name == NULL)                     \
            return HOST_SYSTEM; /* no NCCL in this process */ \
        return functions.nccl##name arguments;                \
    }

CALL(AllReduce, (const void *send, void *recv, size_t count, int type, int op, iq_real_comm_t comm, iq_host_stream_t stream),
     (send, recv, count, type, op, comm, stream))
CALL(ReduceScatter, (const void *send, void *recv, size_t count, int type, int op, iq_real_comm_t comm, iq_host_stream_t stream),
     (send, recv, count, type, op, comm, stream))
CALL(AllGather, (const void *send, void *recv, size_t count, int type, iq_real_comm_t comm, iq_host_stream_t stream),
     (send, recv, count, type, comm, stream))
CALL(GroupStart, (void), ())
CALL(GroupEnd, (void), ())
CALL(CommInitRank, (iq_real_comm_t * comm, int nranks, iq_host_id_t id, int rank), (comm, nranks, id, rank))
CALL(CommInitRankConfig, (iq_real_comm_t * comm, int nranks, iq_host_id_t id, int rank, const iq_host_config_t *config),
     (comm, nranks, id, rank, config))
CALL(CommSplit, (iq_real_comm_t comm, int color, int key, iq_real_comm_t *out, const iq_host_config_t *config),
     (comm, color, key, out, config))
CALL(CommDestroy, (iq_real_comm_t comm), (comm))
CALL(CommAbort, (iq_real_comm_t comm), (comm))
CALL(CommGetAsyncError, (iq_real_comm_t comm, iq_host_result_t *error), (comm, error))
