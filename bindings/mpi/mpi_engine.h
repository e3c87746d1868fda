/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Between the object that is preloaded, which knows no MPI's handles, and the engines, one compiled with each MPI's mpi.h.
 *
 * Handles are pointers in Open MPI and ints in MPICH; in an integer as wide as a register either passes unchanged.
 */
#ifndef ISGQ_MPI_ENGINE_H
#define ISGQ_MPI_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct iq_mpi_call {
    const void *send;
    void *recv;
    int64_t count;
    intptr_t type, op, comm;
} iq_mpi_call_t;

typedef struct iq_mpi_engine {
    /*
     * Do an MPI_Allreduce here if the policy says so. False: it is the MPI's own to do (and was counted as passed through); else *status is
     * what MPI_Allreduce returns.
     */
    bool (*allreduce)(const iq_mpi_call_t *call, int *status);
    /* C handles of Fortran's. */
    iq_mpi_call_t (*from_fortran)(const void *send, void *recv, const int *count, const int *type, const int *op,
                                  const int *comm);
} iq_mpi_engine_t;

/* The symbol that an engine exports. */
#define IQ_MPI_ENGINE "iq_mpi_engine"
extern const iq_mpi_engine_t iq_mpi_engine;

#endif
