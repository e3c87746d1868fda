/* SPDX-License-Identifier: Apache-2.0 */
/* ISGQ_POLICY=record: what a program does, counted, and the policy that would fit it. */
#ifndef ISGQ_PRELOAD_RECORD_H
#define ISGQ_PRELOAD_RECORD_H

#include <stdbool.h>
#include <stdint.h>

enum { IQ_RECORD_NAME = 64 };

typedef struct iq_record_call {
    const char *collective, *comm;
    const char *type, *op; /* as rules name them, or as the program's library does in angle brackets: no rule can name those */
    int nranks;
    uint64_t bytes; /* of one rank's input */
} iq_record_call_t;

/* Count one call. Any thread. */
void iq_record_add(const iq_record_call_t *call);

/*
 * Write what was counted to FILE.RANK: a table as comments, and a proposed rule for every communicator with large sums of floats. The file is
 * a policy: ISGQ_POLICY=@FILE.RANK. False: it cannot be written, and errno says why.
 */
bool iq_record_write(const char *file, int rank);

#endif
