/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Finds the table for --device. That for GPUs is a shared object of its own, which lies beside the library's modules and is found as they are:
 * the program itself links no CUDA.
 */
#include "perf/train_ops.h"
#include "tools/common/names.h"
#include "tools/common/options.h"

#include "isgqcoll_ext.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#define OBJECT "isgq-train-cuda.so"
#define SYMBOL "iq_module_train_cuda"

/* Ends what is said where there is no such object; the build system knows. */
#ifdef ISGQ_TRAIN_CUDA
#define NOT_BUILT ""
#else
#define NOT_BUILT "; this program was built without it (ISGQ_WITH_CUDA=OFF)"
#endif

static const char *configured_folder(void)
{
    isgq_config_var_t variable = {.size = sizeof(variable)};

    for (size_t i = 0; isgq_get_config_var(i, &variable) == ISGQ_SUCCESS; i++)
        if (strcmp(variable.name, "ISGQ_MODULE_DIR") == 0)
            return variable.value;
    return "";
}

/* ISGQ_MODULE_DIR, else the folder isgqcoll/ beside the library. */
static void object_path(char path[PATH_MAX])
{
    const char *folder = configured_folder();
    void *library = dlsym(RTLD_DEFAULT, "isgq_get_version");
    Dl_info where;
    int length;

    if (folder[0] != '\0') {
        length = snprintf(path, PATH_MAX, "%s/" OBJECT, folder);
    } else {
        if (library == NULL || dladdr(library, &where) == 0 || where.dli_fname == NULL)
            iq_die(IQ_EXIT_FAILED, "--device cuda: nobody knows where the library lies; set ISGQ_MODULE_DIR");
        const char *slash = strrchr(where.dli_fname, '/');
        length = snprintf(path, PATH_MAX, "%.*sisgqcoll/" OBJECT, slash == NULL ? 0 : (int)(slash - where.dli_fname + 1),
                          where.dli_fname);
    }
    if (length < 0 || length >= PATH_MAX)
        iq_die(IQ_EXIT_FAILED, "--device cuda: the path of " OBJECT " is too long");
}

static const iq_train_ops_t *load_cuda(void)
{
    char path[PATH_MAX];
    int devices;

    iq_check(isgqx_device_count(&devices), -1, "--device cuda");
    object_path(path);
    void *object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (object == NULL)
        iq_die(IQ_EXIT_FAILED, "--device cuda: %s" NOT_BUILT, dlerror());
    const iq_train_ops_t *ops = dlsym(object, SYMBOL);
    if (ops == NULL || ops->abi != IQ_TRAIN_OPS_ABI)
        iq_die(IQ_EXIT_FAILED, "--device cuda: %s belongs to another version of this program", path);
    return ops;
}

const iq_train_ops_t *iq_train_ops_find(const char *device)
{
    if (strcmp(device, "host") == 0)
        return &iq_train_ops_host;
    if (strcmp(device, "cuda") == 0)
        return load_cuda();
    iq_die(IQ_EXIT_USAGE, "--device: '%s' is neither host nor cuda", device);
}
