/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Element types and reductions as the programs write them, and the few library calls that every program makes in the same way.
 */
#ifndef ISGQ_TOOLS_NAMES_H
#define ISGQ_TOOLS_NAMES_H

#include "isgqcoll.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct iq_type_name {
    const char *name; /* "f32" */
    isgq_data_type_t type;
    size_t bytes;
    bool quantizable; /* floats of at most 32 bits */
} iq_type_name_t;

typedef struct iq_op_name {
    const char *name; /* "sum" */
    isgq_red_op_t op;
} iq_op_name_t;

extern const iq_type_name_t iq_type_names[]; /* ends with name NULL */
extern const iq_op_name_t iq_op_names[];     /* ends with name NULL */

/* The row of that name, or the end of the program with one line. */
const iq_type_name_t *iq_type_by_name(const char *name);
const iq_op_name_t *iq_op_by_name(const char *name);

/* A quantizer, or the end of the program (status 2) with the library's sentence. */
isgq_quantizer_t iq_quantizer_or_die(const char *text);

/* End the program (status 2) unless this build has every transport in the list, and one of them connects so many ranks that were
 * started here (0: a launcher's). */
void iq_transports_or_die(const char *list, size_t local_ranks);

/* End the program with status 1 and one line unless the call succeeded: "rank 2: allreduce: <the library's text>".
 * A rank below 0 is not known yet and not named. */
void iq_check(isgq_result_t result, int rank, const char *what);

#endif
