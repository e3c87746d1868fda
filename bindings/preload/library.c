/* SPDX-License-Identifier: Apache-2.0 */
/* Find libisgqcoll beside this object (its run path says where), and every function in it. */
#include "bindings/preload/library.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

static pthread_once_t once = PTHREAD_ONCE_INIT;
static iq_library_t library;
static char problem[256];

static void find(void *handle, const char *name, void *function)
{
    void *address = dlsym(handle, name);
    if (address == NULL && problem[0] == '\0')
        snprintf(problem, sizeof(problem), "%s has no %s", ISGQ_SONAME, name);
    memcpy(function, &address, sizeof(address));
}

static void open_library(void)
{
    void *handle = dlopen(ISGQ_SONAME, RTLD_NOW | RTLD_LOCAL);
    int version = 0;
    if (handle == NULL) {
        snprintf(problem, sizeof(problem), "%s", dlerror());
        return;
    }
#define X(name) find(handle, "isgq_" #name, &library.name);
    IQ_LIBRARY_FUNCTIONS(X)
#undef X
    find(handle, "isgqx_use_nccl", &library.use_nccl);
    if (problem[0] == '\0' && (library.get_version(&version) != ISGQ_SUCCESS || version / 100 != ISGQ_VERSION_CODE / 100))
        snprintf(problem, sizeof(problem), "%s is version %d, %d was expected", ISGQ_SONAME, version, ISGQ_VERSION_CODE);
}

const iq_library_t *iq_library(const char **error)
{
    pthread_once(&once, open_library);
    *error = problem;
    return problem[0] == '\0' ? &library : NULL;
}
