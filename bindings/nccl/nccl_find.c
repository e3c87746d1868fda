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

enum { COPIES = 8 };

typedef struct search {
    struct stat copies[COPIES]; /* this object, and others of its kind: never the answer */
    int ncopies;
    char found[4096];
} search_t;

/* How this object is known when it is met under another path: two that took each other for the real library would call each other for ever. */
extern const char isgq_drop_in;
__attribute__((visibility("default"))) const char isgq_drop_in = 1;

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
    if (stat(path, &file) != 0 || !S_ISREG(file.st_mode))
        return 0;
    for (int i = 0; i < search->ncopies; i++)
        if (file.st_dev == search->copies[i].st_dev && file.st_ino == search->copies[i].st_ino)
            return 0;
    return 1;
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

static int find(search_t *search)
{
    static const char *const folders[] = {
        "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib",
        "/usr/local/cuda/lib64",     "/usr/local/cuda/lib"};
    int found = dl_iterate_phdr(look_at_loaded, search) || look_in_path(search, secure_getenv("LD_LIBRARY_PATH"));
    for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]) && !found; i++)
        found = take(search, folders[i], "");
    return found;
}

/* NULL: it cannot be opened, or is a copy of this object. */
static void *open_found(search_t *search, char *reason, size_t room)
{
    void *handle = dlopen(search->found, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL)
        snprintf(reason, room, "%s", dlerror());
    if (handle == NULL || dlsym(handle, "isgq_drop_in") == NULL)
        return handle;
    snprintf(reason, room, "%s is no NCCL but a copy of this preload; ISGQ_NCCL_LIB names the real one", search->found);
    if (search->ncopies < COPIES)
        (void)stat(search->found, &search->copies[search->ncopies++]);
    dlclose(handle);
    return NULL;
}

void *iq_nccl_open_real(char *reason, size_t room)
{
    static search_t search;
    const char *named = secure_getenv("ISGQ_NCCL_LIB");
    void *handle = NULL;
    identify_self(&search.copies[0]);
    search.ncopies = 1;
    if (named != NULL && named[0] != '\0') {
        if (!is_other_file(&search, named)) {
            snprintf(reason, room, "ISGQ_NCCL_LIB=%s is no file, or is this preload itself", named);
            return NULL;
        }
        snprintf(search.found, sizeof(search.found), "%s", named);
        return open_found(&search, reason, room);
    }
    snprintf(reason, room, "no real " SONAME " was found; ISGQ_NCCL_LIB names it");
    for (int copies = 0; handle == NULL && copies < search.ncopies && find(&search); copies++)
        handle = open_found(&search, reason, room);
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
