/* SPDX-License-Identifier: Apache-2.0 */
/* What became of the program's calls, told at its end. */
#ifndef ISGQ_MPI_COUNT_H
#define ISGQ_MPI_COUNT_H

#include "bindings/preload/policy.h"

/* One call done here, or passed through for a reason (a text that stays). Any thread. */
void iq_mpi_count_done(void);
void iq_mpi_count_passed(const char *why);

void iq_mpi_count_bytes(uint64_t input, uint64_t wire);

/* One line of level info, and the record if that is what the policy is for. */
void iq_mpi_report(const iq_policy_t *policy);

#endif
