/* SPDX-License-Identifier: Apache-2.0 */
/* Where NCCL's functions come from, and what their results mean. */
#include "transport/nccl.h"

#include "base/config.h"
#include "base/log.h"
#include "base/status.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define SONAME "libnccl.so.2"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
    iq_nccl_find_fn find; /* of iq_nccl_use */
    void *context;
    bool tried;
    isgq_result_t result;
    iq_nccl_functions_t functions;
    char error[IQ_ERROR_TEXT_BYTES];
} library;

isgq_result_t iq_nccl_use(iq_nccl_find_fn find, void *context)
{
    pthread_mutex_lock(&lock);
    bool tried = library.tried;
    if (!tried) {
        library.find = find;
        library.context = context;
    }
    pthread_mutex_unlock(&lock);
    return tried ? IQ_FAIL(ISGQ_ERR_INVALID_USAGE, "nccl: this process has looked for NCCL already") : ISGQ_SUCCESS;
}

static void *find_in_library(void *handle, const char *symbol) { return dlsym(handle, symbol); }

/* A program's own NCCL comes first: there must not be two in one process. It is never unloaded. */
static isgq_result_t open_library(void **handle)
{
    const char *named = iq_config()->nccl_lib;
    if (named[0] != '\0') {
        *handle = dlopen(named, RTLD_NOW | RTLD_LOCAL);
        return *handle != NULL ? ISGQ_SUCCESS : IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "nccl: ISGQ_NCCL_LIB: %s", dlerror());
    }
    *handle = dlopen(SONAME, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
    if (*handle == NULL)
        *handle = dlopen(SONAME, RTLD_NOW | RTLD_LOCAL);
    return *handle != NULL ? ISGQ_SUCCESS : IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "nccl: %s; ISGQ_NCCL_LIB can name the library", dlerror());
}

static isgq_result_t find_functions(iq_nccl_find_fn find, void *context, iq_nccl_functions_t *functions)
{
    void *address;
#define X(member, symbol, required, result, parameters)                                            \
    address = find(context, #symbol);                                                              \
    if (address == NULL && (required))                                                             \
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "nccl: the library has no function %s", #symbol);     \
    _Static_assert(sizeof(functions->member) == sizeof(address), "functions have addresses");      \
    memcpy(&functions->member, &address, sizeof(address));
    IQ_NCCL_FUNCTIONS(X)
#undef X
    return ISGQ_SUCCESS;
}

static isgq_result_t load(iq_nccl_functions_t *functions)
{
    iq_nccl_find_fn find = library.find;
    void *context = library.context;
    if (find == NULL) {
        find = find_in_library;
        IQ_TRY(open_library(&context));
    }
    IQ_TRY(find_functions(find, context, functions));
    IQ_TRY(iq_nccl_result(functions, NULL, functions->get_version(&functions->version), "version"));
    if (functions->version < IQ_NCCL_OLDEST)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "nccl: its version is %d; the oldest that this library works with is %d (2.10)",
                       functions->version, IQ_NCCL_OLDEST);
    IQ_INFO("nccl: version %d", functions->version);
    return ISGQ_SUCCESS;
}

isgq_result_t iq_nccl_load(const iq_nccl_functions_t **functions)
{
    pthread_mutex_lock(&lock);
    if (!library.tried) {
        library.tried = true;
        library.result = load(&library.functions);
        if (library.result != ISGQ_SUCCESS)
            snprintf(library.error, sizeof(library.error), "%s", iq_last_error());
    }
    if (library.result != ISGQ_SUCCESS)
        iq_set_last_error(library.error);
    pthread_mutex_unlock(&lock);
    *functions = &library.functions;
    return library.result;
}

/* The numbers of ncclResult_t are those of isgq_result_t. */
isgq_result_t iq_nccl_result(const iq_nccl_functions_t *nccl, iq_nccl_comm_t comm, iq_nccl_result_t result, const char *what)
{
    const char *more = "";
    if (result == IQ_NCCL_SUCCESS)
        return ISGQ_SUCCESS;
    if (result == IQ_NCCL_IN_PROGRESS)
        return ISGQ_IN_PROGRESS;
    if (nccl->get_last_error != NULL)
        more = nccl->get_last_error(comm);
    if (more == NULL)
        more = "";
    return IQ_FAIL(result <= ISGQ_ERR_REMOTE ? (isgq_result_t)result : ISGQ_ERR_INTERNAL, "nccl: %s: %s%s%.*s", what,
                   nccl->get_error_string(result), more[0] != '\0' ? ": " : "", (int)strcspn(more, "\n"), more);
}

isgq_result_t iq_nccl_describe(iq_nccl_comm_t comm, int *nranks, int *rank, int *device)
{
    const iq_nccl_functions_t *nccl;
    IQ_TRY(iq_nccl_load(&nccl));
    IQ_TRY(iq_nccl_result(nccl, comm, nccl->comm_count(comm, nranks), "number of ranks"));
    IQ_TRY(iq_nccl_result(nccl, comm, nccl->comm_user_rank(comm, rank), "rank"));
    return iq_nccl_result(nccl, comm, nccl->comm_cu_device(comm, device), "device");
}
