/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What programs do to a library besides calling it: they close it and open it again, and they fork with communicators in hand. It opens NCCL by name, on the
 * host emulation, and has one rank.
 *
 * usage: nccl_corners close|fork
 */
#include <dlfcn.h>
#include <nccl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static void *library;
#define CALL(name) ((__typeof__(&name))dlsym(library, #name))

static void open_library(void)
{
    library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(2);
    }
}

static ncclComm_t join(void)
{
    ncclUniqueId id;
    ncclComm_t comm = NULL;
    if (CALL(ncclGetUniqueId)(&id) != ncclSuccess || CALL(ncclCommInitRank)(&comm, 1, id, 0) != ncclSuccess)
        exit(1);
    return comm;
}

static int sum(ncclComm_t comm)
{
    float x = 3, y = 0;
    int result = CALL(ncclAllReduce)(&x, &y, 1, ncclFloat, ncclSum, comm, NULL);
    return result == ncclSuccess && y != 3 ? -1 : result;
}

static int closed_and_opened(void)
{
    for (int again = 0; again < 3; again++) {
        open_library();
        ncclComm_t comm = join();
        printf("sum %d\n", sum(comm));
        printf("destroy %d\n", CALL(ncclCommDestroy)(comm));
        printf("close %d\n", dlclose(library));
    }
    return 0;
}

/* The child's calls fail at once, and its end, with all that is done at exit, leaves the parent's communicator alone. */
static int forked(void)
{
    open_library();
    ncclComm_t comm = join();
    int status = sum(comm);
    fflush(stdout);
    if (fork() == 0) {
        printf("child %s\n", sum(comm) != ncclSuccess ? "refused" : "went on");
        exit(0);
    }
    if (wait(&status) < 0 || !WIFEXITED(status) || WEXITSTATUS(status) != 0)
        return 1;
    printf("parent %d\n", sum(comm));
    return CALL(ncclCommDestroy)(comm) != ncclSuccess;
}

int main(int argc, char **argv)
{
    if (argc != 2)
        return 2;
    return strcmp(argv[1], "close") == 0 ? closed_and_opened() : forked();
}
