/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The real libnccl.so.2. This object has its name, so neither dlopen by name nor RTLD_NEXT can find it: it is opened by path. In turn:
 * ISGQ_NCCL_LIB; one that is loaded already; beside the libraries of PyTorch; the library path; the loader's cache; CUDA's folder.
 */
#include "bindings/nccl/nccl_resolve.h"

#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define SONAME "libnccl.so.2"

typedef struct search {
    struct stat self; /* this object: never the answer */
    char found[4096];
} search_t;

static void identify_self(struct stat *self)
{
    static const char here = 0;
    Dl_info info;
    memset(self, 0, sizeof(*self));
    if (dladdr(&here, &info) != 0)
        (void)stat(info.dli_fname, self);
}

static int is_other_file(const search_t *search, const char *path)
{
    struct stat file;
    return stat(path, &file) == 0 && S_ISREG(file.st_mode) &&
           (file.st_dev != search->self.st_dev || file.st_ino != search->self.st_ino);
}

static int take(search_t *search, const char *folder, const char *rest)
{
    char path[4096];
    if (folder[0] == '\0' || snprintf(path, sizeof(path), "%s/%s" SONAME, folder, rest) >= (int)sizeof(path) ||
        !is_other_file(search, path))
        return 0;
    snprintf(search->found, sizeof(search->found), "%s", path);
    return 1;
}

static const char *base_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

/* A loaded libnccl that is not this one, or the place where PyTorch's wheels have it. */
static int look_at_loaded(struct dl_phdr_info *info, size_t bytes, void *context)
{
    search_t *search = context;
    const char *name = base_of(info->dlpi_name);
    (void)bytes;
    if (strncmp(name, SONAME, strlen(SONAME)) == 0 && is_other_file(search, info->dlpi_name)) {
        snprintf(search->found, sizeof(search->found), "%s", info->dlpi_name);
        return 1;
    }
    if (strncmp(name, "libtorch_cuda", strlen("libtorch_cuda")) == 0) {
        char folder[4096];
        snprintf(folder, sizeof(folder), "%.*s", (int)(name - info->dlpi_name - 1), info->dlpi_name);
        return take(search, folder, "") || take(search, folder, "../../nvidia/nccl/lib/");
    }
    return 0;
}

static int look_in_path(search_t *search, const char *path)
{
    char folder[4096];
    for (size_t length; path != NULL && *path != '\0'; path += length + (path[length] != '\0')) {
        length = strcspn(path, ":;");
        snprintf(folder, sizeof(folder), "%.*s", (int)length, path);
        if (take(search, folder, ""))
            return 1;
    }
    return 0;
}

void *iq_nccl_open_real(char *reason, size_t room)
{
    static const char *const folders[] = {
        "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib",
        "/usr/local/cuda/lib64",     "/usr/local/cuda/lib"};
    static search_t search;
    const char *named = secure_getenv("ISGQ_NCCL_LIB");
    int found = 0;
    identify_self(&search.self);
    if (named != NULL && named[0] != '\0') {
        if (!is_other_file(&search, named)) {
            snprintf(reason, room, "ISGQ_NCCL_LIB=%s is no file, or is this preload itself", named);
            return NULL;
        }
        snprintf(search.found, sizeof(search.found), "%s", named);
        found = 1;
    }
    found = found || dl_iterate_phdr(look_at_loaded, &search) || look_in_path(&search, secure_getenv("LD_LIBRARY_PATH"));
    for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]) && !found; i++)
        found = take(&search, folders[i], "");
    if (!found) {
        snprintf(reason, room, "no real " SONAME " was found; ISGQ_NCCL_LIB names it");
        return NULL;
    }
    void *handle = dlopen(search.found, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL)
        snprintf(reason, room, "%s", dlerror());
    return handle;
}

int iq_nccl_has_gpu(void)
{
    int (*init)(unsigned) = NULL, (*get_count)(int *) = NULL, count = 0;
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL), *address;
    if (driver == NULL)
        return 0;
    address = dlsym(driver, "cuInit");
    memcpy(&init, &address, sizeof(address));
    address = dlsym(driver, "cuDeviceGetCount");
    memcpy(&get_count, &address, sizeof(address));
    return init != NULL && get_count != NULL && init(0) == 0 && get_count(&count) == 0 && count > 0;
}
