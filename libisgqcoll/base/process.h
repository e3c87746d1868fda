/* SPDX-License-Identifier: Apache-2.0 */
/* Which process this is, for checks in every call. */
#ifndef ISGQ_BASE_PROCESS_H
#define ISGQ_BASE_PROCESS_H

#include <sys/types.h>

/* getpid() without a system call each time. Right in forked children too, however they were forked. */
pid_t iq_process_id(void);

#endif
