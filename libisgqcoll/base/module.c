/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loading of modules: one slot per module, filled at the first request and kept for the life of the process, failures too, so that
 * every later request gives the same answer. ISGQ_BUILT_MODULES lists what this build has; the build system defines it. A folder that
 * the user names may hold others.
 */
#include "base/module.h"

#include "base/config.h"
#include "base/util.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef ISGQ_BUILT_MODULES
#define ISGQ_BUILT_MODULES "ucx hwloc blas cuda"
#endif

typedef struct slot {
    const char *name, *option; /* what builds it */
    bool tried;
    const iq_module_t *module; /* NULL: it failed, `error` says why */
    char error[IQ_ERROR_TEXT_BYTES];
} slot_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static slot_t slots[] = {
    {.name = "ucx", .option = "ISGQ_WITH_UCX"},
    {.name = "hwloc", .option = "ISGQ_WITH_HWLOC"},
    {.name = "blas", .option = "ISGQ_WITH_BLAS"},
    {.name = "cuda", .option = "ISGQ_WITH_CUDA"},
};

static slot_t *find_slot(const char *name)
{
    for (size_t i = 0; i < IQ_ARRAY_SIZE(slots); i++)
        if (strcmp(slots[i].name, name) == 0)
            return &slots[i];
    return NULL;
}

/* Is `name` one of the words of ISGQ_BUILT_MODULES? */
static bool was_built(const char *name)
{
    size_t length = strlen(name);
    const char *word = ISGQ_BUILT_MODULES;
    while (*word != '\0') {
        size_t word_length = strcspn(word, " ");
        if (word_length == length && memcmp(word, name, length) == 0)
            return true;
        word += word_length + strspn(word + word_length, " ");
    }
    return false;
}

/* ISGQ_MODULE_DIR, else the folder isgqcoll/ beside the file that holds this very function. */
static bool module_path(const char *name, char path[PATH_MAX])
{
    const char *folder = iq_config()->module_dir;
    Dl_info self;
    int length;
    if (folder[0] != '\0') {
        length = snprintf(path, PATH_MAX, "%s/isgqcoll-%s.so", folder, name);
    } else {
        if (dladdr(slots, &self) == 0 || self.dli_fname == NULL)
            return false;
        const char *slash = strrchr(self.dli_fname, '/');
        int folder_length = slash == NULL ? 0 : (int)(slash - self.dli_fname + 1);
        length = snprintf(path, PATH_MAX, "%.*sisgqcoll/isgqcoll-%s.so", folder_length, self.dli_fname, name);
    }
    return length > 0 && length < PATH_MAX;
}

static isgq_result_t load(slot_t *slot)
{
    static const iq_services_t services = {iq_fail, iq_log_enabled, iq_log_write};
    const char *name = slot->name;
    char path[PATH_MAX], symbol[64];
    void *handle;

    bool built = was_built(name);
    if (!built && iq_config()->module_dir[0] == '\0')
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "module %s: this library was built without it (%s=OFF)", name, slot->option);
    if (!module_path(name, path))
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "module %s: the library does not know where it lies; set ISGQ_MODULE_DIR", name);

    /* UCX installs handlers for fatal signals when it is loaded, and reads this variable at that moment, not later. Signals belong
     * to the program; one that wants UCX's handlers says so by setting the variable itself. */
    if (strcmp(name, "ucx") == 0) {
        setenv("UCX_HANDLE_ERRORS", "none", 0);
        setenv("UCX_LOG_FILE", "stderr", 0); /* stdout is the program's too */
    }

    handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL && !built)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "module %s: %s; this library was built without it (%s=OFF)", name, dlerror(), slot->option);
    if (handle == NULL)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "module %s: %s", name, dlerror());
    snprintf(symbol, sizeof(symbol), "iq_module_%s", name);
    const iq_module_t *found = dlsym(handle, symbol);
    if (found == NULL || found->abi != IQ_MODULE_ABI) {
        dlclose(handle);
        return found == NULL ? IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "module %s: %s is no module of isgqcoll", name, path)
                             : IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "module %s: %s belongs to another version of isgqcoll", name, path);
    }
    found->start(&services);
    IQ_DEBUG("module %s loaded from %s", name, path);
    slot->module = found;
    return ISGQ_SUCCESS;
}

const iq_module_t *iq_module_load(const char *name)
{
    slot_t *slot = find_slot(name);
    if (slot == NULL) {
        IQ_FAIL(ISGQ_ERR_INTERNAL, "module %s: there is no such module", name);
        return NULL;
    }
    pthread_mutex_lock(&lock);
    if (!slot->tried) {
        if (load(slot) != ISGQ_SUCCESS)
            snprintf(slot->error, sizeof(slot->error), "%s", iq_last_error());
        slot->tried = true;
    }
    if (slot->module == NULL)
        iq_set_last_error(slot->error);
    pthread_mutex_unlock(&lock);
    return slot->module;
}

bool iq_library_in_use(const char *name)
{
    void *handle = dlopen(name, RTLD_LAZY | RTLD_NOLOAD);
    if (handle != NULL)
        dlclose(handle);
    return handle != NULL;
}
