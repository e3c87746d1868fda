/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is known of one MPI communicator: hung onto it as an attribute, so that it goes when the communicator goes. It comes at the first
 * MPI_Allreduce, where the ranks compare their policies: that is one small MPI_Allreduce more, and the one thing that all ranks do whatever
 * their policy is.
 */
#ifndef ISGQ_MPI_COMM_H
#define ISGQ_MPI_COMM_H

#include "bindings/preload/library.h"
#include "bindings/preload/policy.h"

#include <mpi.h>

typedef struct iq_mpi_comm {
    struct iq_mpi_comm *next, **before; /* all of them, for the end of the program */
    char name[MPI_MAX_OBJECT_NAME + 1];
    int rank, nranks;
    uint32_t named;   /* rules that speak of it; 0 if its ranks do not agree */
    bool refused;     /* no communicator of ours could be made: its calls pass through */
    isgq_comm_t comm; /* NULL before the first call under a rule */
    isgq_quantizer_t quantizers[IQ_POLICY_RULES];
    void *buffer; /* for doubles, and for what is not aligned */
    size_t buffer_bytes;
} iq_mpi_comm_t;

/* The process's policy, read at the first call; off with one line if it is wrong. */
const iq_policy_t *iq_mpi_policy(void);

/* What is known of `comm`; collective when it is first seen. */
iq_mpi_comm_t *iq_mpi_comm_of(MPI_Comm comm);

/* A communicator of ours with the same ranks, and quantizers for all rules. Collective; false on all ranks or on none. */
bool iq_mpi_comm_open(iq_mpi_comm_t *state, MPI_Comm comm);

/*
 * One turn of waiting for what is not MPI's: MPI promises that its messages move while a rank is inside any blocking call of MPI, so they must
 * here as well. Waits a little longer between turns when there have been many.
 */
void iq_mpi_keep_going(unsigned turn);

/* Add what a communicator did to the totals, and let it go. */
void iq_mpi_comm_close(iq_mpi_comm_t *state);

#endif
