/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Start local ranks: the program runs itself once per rank, with ISGQ_RANK, ISGQ_NRANKS and ISGQ_JOB in the environment.
 */
#ifndef ISGQ_TOOLS_LAUNCH_H
#define ISGQ_TOOLS_LAUNCH_H

#include <stdbool.h>

/* Was this process started by iq_launch? */
bool iq_launch_is_rank(void);

/*
 * Start `nranks` copies of this program with the same arguments, wait for all of them, and return the exit status for the parent:
 * 0 if all ranks ended with 0, 2 if the ranks that failed all ended with 2, else 1. When one fails the others have a second to
 * end by themselves, then they are stopped. SIGINT, SIGTERM, SIGHUP and SIGQUIT are passed on. Ranks die with the parent, however
 * it dies.
 */
int iq_launch(int nranks, char **argv);

#endif
