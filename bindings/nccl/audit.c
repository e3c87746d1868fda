/* SPDX-License-Identifier: Apache-2.0 */
/*
 * For programs that open NCCL by an absolute path, where a preload cannot be in the way: LD_AUDIT=.../libisgq_audit.so has the loader ask here for
 * every library, and libnccl.so.2 becomes the one beside this object. What that one asks for itself, the real library, it gets.
 */
#include <dlfcn.h>
#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORTED __attribute__((visibility("default")))
#define NAME "libnccl.so.2"

EXPORTED unsigned la_version(unsigned version);
EXPORTED unsigned la_objopen(struct link_map *map, Lmid_t lmid, uintptr_t *cookie);
EXPORTED char *la_objsearch(const char *name, uintptr_t *cookie, unsigned flag);

enum { OTHER, SHIM };
static char shim[4096];

static const char *base_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

unsigned la_version(unsigned version)
{
    static const char here = 0;
    Dl_info info;
    if (dladdr(&here, &info) != 0) {
        int folder = (int)(base_of(info.dli_fname) - info.dli_fname);
        snprintf(shim, sizeof(shim), "%.*s" NAME, folder, info.dli_fname);
    }
    return version < LAV_CURRENT ? version : LAV_CURRENT;
}

/* Who asks is told apart by this cookie. Nobody's calls are audited, only where libraries are looked for. */
unsigned la_objopen(struct link_map *map, Lmid_t lmid, uintptr_t *cookie)
{
    (void)lmid;
    *cookie = strcmp(map->l_name, shim) == 0 ? SHIM : OTHER;
    return 0;
}

char *la_objsearch(const char *name, uintptr_t *cookie, unsigned flag)
{
    (void)flag;
    if (*cookie != SHIM && strncmp(base_of(name), NAME, strlen(NAME)) == 0 && shim[0] != '\0')
        return shim;
    return (char *)(uintptr_t)name; /* the interface's own lack of a const */
}
