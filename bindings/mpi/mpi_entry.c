/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is preloaded: MPI_Allreduce as a program sees it, in C and Fortran. It is inert in programs without MPI: it links libc alone, and its
 * constructor is empty. At the first call it looks which MPI the process has (also one that an interpreter loaded for itself), and
 * opens the engine that was compiled for that one. Without a fitting engine it says so once and passes every call on.
 */
#include "bindings/mpi/mpi_engine.h"
#include "bindings/preload/say.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define EXPORTED __attribute__((visibility("default")))

typedef int allreduce_fn(const void *, void *, int, intptr_t, intptr_t, intptr_t);
typedef int allreduce_c_fn(const void *, void *, int64_t, intptr_t, intptr_t, intptr_t);
typedef void fortran_fn(void *, void *, int *, int *, int *, int *, int *);

EXPORTED allreduce_fn MPI_Allreduce;
EXPORTED allreduce_c_fn MPI_Allreduce_c;
EXPORTED fortran_fn ompi_allreduce_f, mpi_allreduce, mpi_allreduce_, mpi_allreduce__, MPI_ALLREDUCE;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static void *mpi; /* handle of the library that holds PMPI_Allreduce */
static const iq_mpi_engine_t *engine;
static bool is_openmpi;
static allreduce_fn *real_allreduce;
static allreduce_c_fn *real_allreduce_c;
static fortran_fn *real_fortran;
static const void *fortran_in_place, *fortran_bottom;

static void find(void *handle, const char *name, void *function)
{
    void *address = dlsym(handle, name);
    memcpy(function, &address, sizeof(address));
}

/* Libraries that an interpreter loaded with RTLD_LOCAL are not in anybody's search order: ask each. */
static int look_inside(struct dl_phdr_info *info, size_t bytes, void *found)
{
    void *handle = info->dlpi_name[0] != '\0' ? dlopen(info->dlpi_name, RTLD_LAZY | RTLD_NOLOAD) : NULL;
    (void)bytes;
    if (handle == NULL)
        return 0;
    *(void **)found = dlsym(handle, "PMPI_Allreduce");
    dlclose(handle);
    return *(void **)found != NULL;
}

/* The engine's own references are met by this library, so it must be visible to all, as it is in linked programs anyway. */
static void *open_mpi(void)
{
    Dl_info where;
    void *function = dlsym(RTLD_NEXT, "PMPI_Allreduce");
    if (function == NULL)
        dl_iterate_phdr(look_inside, &function);
    return function != NULL && dladdr(function, &where) != 0 ? dlopen(where.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_GLOBAL)
                                                             : NULL;
}

/* Fortran's functions and constants are in a library of their own. */
static void *fortran_symbol(const char *name)
{
    void *address = dlsym(RTLD_NEXT, name);
    return address != NULL ? address : dlsym(RTLD_DEFAULT, name);
}

static void begin(void)
{
    iq_say_as("isgq mpi", -1);
    mpi = open_mpi();
    if (mpi == NULL) {
        iq_say(IQ_SAY_ERROR, "MPI_Allreduce was called, but no loaded library has PMPI_Allreduce: this MPI cannot be preloaded");
        abort();
    }
    find(mpi, "PMPI_Allreduce", &real_allreduce);
    find(mpi, "PMPI_Allreduce_c", &real_allreduce_c);
    void *address = fortran_symbol("pmpi_allreduce_");
    memcpy(&real_fortran, &address, sizeof(address));
    fortran_in_place = dlsym(RTLD_DEFAULT, "mpi_fortran_in_place_");
    fortran_bottom = dlsym(RTLD_DEFAULT, "mpi_fortran_bottom_");
    is_openmpi = dlsym(mpi, "ompi_mpi_comm_world") != NULL;
    const char *name = is_openmpi ? "libisgq_mpi_openmpi.so" : "libisgq_mpi_mpich.so";
    void *handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (handle != NULL)
        engine = dlsym(handle, IQ_MPI_ENGINE);
    if (engine == NULL)
        iq_say(IQ_SAY_WARN, "this MPI %s, and there is no engine for it (%s); every call passes through",
               is_openmpi ? "is Open MPI" : "has MPICH's interface", dlerror());
}

static bool done_here(const iq_mpi_call_t *call, int *status)
{
    pthread_once(&once, begin);
    return engine != NULL && engine->allreduce(call, status);
}

int MPI_Allreduce(const void *send, void *recv, int count, intptr_t type, intptr_t op, intptr_t comm)
{
    iq_mpi_call_t call = {send, recv, count, type, op, comm};
    int status;
    return done_here(&call, &status) ? status : real_allreduce(send, recv, count, type, op, comm);
}

/* Large counts, from MPI 4 on. A program that calls it was linked with an MPI that has it. */
int MPI_Allreduce_c(const void *send, void *recv, int64_t count, intptr_t type, intptr_t op, intptr_t comm)
{
    iq_mpi_call_t call = {send, recv, count, type, op, comm};
    int status;
    if (done_here(&call, &status))
        return status;
    if (real_allreduce_c == NULL) {
        iq_say(IQ_SAY_ERROR, "MPI_Allreduce_c was called, but this MPI has none");
        abort();
    }
    return real_allreduce_c(send, recv, count, type, op, comm);
}

/*
 * Open MPI's Fortran goes to PMPI_Allreduce directly (the module mpi_f08 through ompi_allreduce_f), MPICH's to MPI_Allreduce: so here only
 * the former is served. In place and bottom are addresses of Fortran's own.
 */
void ompi_allreduce_f(void *send, void *recv, int *count, int *type, int *op, int *comm, int *error)
{
    int status;
    pthread_once(&once, begin);
    if (is_openmpi && engine != NULL && send != fortran_bottom && recv != fortran_bottom) {
        const void *from = send == fortran_in_place ? (void *)1 /* MPI_IN_PLACE */ : send;
        iq_mpi_call_t call = engine->from_fortran(from, recv, count, type, op, comm);
        if (engine->allreduce(&call, &status)) {
            if (error != NULL)
                *error = status;
            return;
        }
    }
    if (real_fortran == NULL) {
        iq_say(IQ_SAY_ERROR, "MPI_ALLREDUCE was called from Fortran, but there is no pmpi_allreduce_");
        abort();
    }
    real_fortran(send, recv, count, type, op, comm, error);
}

#define ALSO(name) void name(void *, void *, int *, int *, int *, int *, int *) __attribute__((alias("ompi_allreduce_f")))
ALSO(mpi_allreduce);
ALSO(mpi_allreduce_);
ALSO(mpi_allreduce__);
ALSO(MPI_ALLREDUCE);
