/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What NCCL answers where there is no GPU: version, texts, results. Linked with it, or opened by name or path as some frameworks do.
 *
 * usage: nccl_answers [LIBRARY]
 */
#include <dlfcn.h>
#include <nccl.h>
#include <stdio.h>
#include <string.h>

static void *library;

/* The linked function, or the one in the library that was opened. */
#define CALL(name) ((__typeof__(&name))(library != NULL ? dlsym(library, #name) : (void *)&name))

int main(int argc, char **argv)
{
    int version = 0, count = 0;
    ncclUniqueId id, zero = {{0}};
    ncclComm_t comm = NULL;
    float x = 1, y = 0;
    if (argc > 1 && (library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL)) == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 2;
    }
    int got = CALL(ncclGetVersion)(&version);
    printf("version %d %d\n", got, version);
    printf("no version %d\n", CALL(ncclGetVersion)(NULL));
    memset(&id, 0, sizeof(id));
    printf("id %d\n", CALL(ncclGetUniqueId)(&id));
    printf("id is random: %d\n", memcmp(&id, &zero, sizeof(id)) != 0);
    printf("init %d\n", CALL(ncclCommInitRank)(&comm, 1, id, 0));
    printf("init of rank 7 of 2: %d\n", CALL(ncclCommInitRank)(&comm, 2, id, 7));
    printf("last error \"%s\"\n", CALL(ncclGetLastError)(NULL));
    for (int result = 0; result < ncclNumResults; result++)
        printf("%d: %s\n", result, CALL(ncclGetErrorString)((ncclResult_t)result));
    printf("allreduce %d\n", CALL(ncclAllReduce)(&x, &y, 1, ncclFloat, ncclSum, NULL, NULL));
    printf("count %d\n", CALL(ncclCommCount)(NULL, &count));
    printf("destroy %d abort %d\n", CALL(ncclCommDestroy)(NULL), CALL(ncclCommAbort)(NULL));
    int start = CALL(ncclGroupStart)(), end = CALL(ncclGroupEnd)();
    printf("group %d %d %d\n", start, end, CALL(ncclGroupEnd)());
    return 0;
}
