/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who answers a call to NCCL, decided at the first one: the real library, with an engine before the few functions that a policy concerns; or, where ISGQ_NCCL_HOST=1 asks for it and there is no GPU, the engine
 * that does the same over host memory. A symbol that the answering side lacks returns ncclInvalidUsage and says so once.
 */
#include "bindings/nccl/nccl_resolve.h"

#include "bindings/preload/say.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HOST_ENGINE "libisgq_nccl_host.so"
#define GPU_ENGINE "libisgq_nccl_gpu.so"

static const char *const names[] = {
#define X(name) #name,
#include "bindings/nccl/nccl_symbols.def"
#undef X
};
enum { NAMES = sizeof(names) / sizeof(names[0]) };

extern void *iq_nccl_table[NAMES];

static pthread_once_t once = PTHREAD_ONCE_INIT;
static void *library; /* who answers */
static void *engine;  /* who answers first what a policy concerns, or NULL */
static const char *prefix = "";
static char reason[512];

/* Without a policy nothing stands between the program and its library. */
static void open_gpu_engine(void)
{
    const char *policy = secure_getenv("ISGQ_POLICY");
    void (*start)(void *) = NULL, *address;
    if (policy == NULL || policy[0] == '\0' || strcmp(policy, "off") == 0)
        return;
    engine = dlopen(GPU_ENGINE, RTLD_NOW | RTLD_LOCAL);
    address = engine != NULL ? dlsym(engine, "iq_gpu_begin") : NULL;
    memcpy(&start, &address, sizeof(address));
    if (start != NULL)
        start(library);
    else
        iq_say(IQ_SAY_WARN, "%s; ISGQ_POLICY has no effect, every call passes through", dlerror());
}

static void begin(void)
{
    const char *host = secure_getenv("ISGQ_NCCL_HOST");
    iq_say_as("isgq nccl", -1);
    if (host != NULL && strcmp(host, "1") == 0) {
        if (!iq_nccl_has_gpu()) {
            prefix = "iq_host_";
            library = dlopen(HOST_ENGINE, RTLD_NOW | RTLD_LOCAL);
            if (library == NULL)
                snprintf(reason, sizeof(reason), "%s", dlerror());
            else
                iq_say(IQ_SAY_WARN,
                       "host emulation: buffers are host memory, calls are complete when they return, no GPU code is executed");
            return;
        }
        iq_say(IQ_SAY_WARN, "ISGQ_NCCL_HOST=1 is for machines without a GPU; this one has one, and NCCL is used");
    }
    library = iq_nccl_open_real(reason, sizeof(reason));
    if (library != NULL)
        open_gpu_engine();
}

/* Calls that nobody answers. The text functions return a text, everything else a result. */
static int answer_nobody(void) { return library == NULL ? IQ_NCCL_SYSTEM_ERROR : IQ_NCCL_INVALID_USAGE; }

static const char *answer_text(void)
{
    return reason[0] != '\0' ? reason : "this function is not in the NCCL library that is used";
}

static void *address_of(const char *name)
{
    char symbol[128];
    const char *bare = prefix[0] != '\0' && name[0] == 'p' ? name + 1 : name; /* the engine has no profiling names */
    snprintf(symbol, sizeof(symbol), "iq_gpu_%s", name);                      /* pnccl... is the way past the engine */
    void *address = engine != NULL ? dlsym(engine, symbol) : NULL;
    if (address != NULL && dlsym(library, name) != NULL)
        return address;
    snprintf(symbol, sizeof(symbol), "%s%s", prefix, bare);
    return library != NULL ? dlsym(library, symbol) : NULL;
}

void *iq_nccl_resolve(size_t index)
{
    const char *name = names[index];
    pthread_once(&once, begin);
    void *address = address_of(name);
    if (address == NULL) {
        bool is_text = strstr(name, "ErrorString") != NULL || strstr(name, "LastError") != NULL;
        const char *(*text)(void) = answer_text;
        int (*result)(void) = answer_nobody;
        memcpy(&address, is_text ? (void *)&text : (void *)&result, sizeof(address));
        iq_say(IQ_SAY_WARN, "%s was called: %s", name,
               library == NULL     ? reason
               : prefix[0] != '\0' ? "it is not part of the host emulation, and returns ncclInvalidUsage"
                                   : "the NCCL library that is used has no such function, and it returns ncclInvalidUsage");
    }
    __atomic_store_n(&iq_nccl_table[index], address, __ATOMIC_RELEASE);
    return address;
}
