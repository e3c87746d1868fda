/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a step of a plan does with data, whoever moves its messages: run_plan.c for links that hosts serve, exec_stream.c for wires.
 * On device memory these functions launch work; on host memory they do it.
 */
#ifndef ISGQ_CORE_STEP_H
#define ISGQ_CORE_STEP_H

#include "core/run.h"

/* One action with the part of the stage's data that it works on. */
typedef struct iq_step_data {
    const iq_stage_t *stage;
    const iq_action_t *action;
    iq_span_t span;
    const unsigned char *src; /* own input of the span */
    unsigned char *dst;       /* output of the span */
} iq_step_data_t;

iq_step_data_t iq_step_data(const iq_stage_t *stage, const iq_action_t *action);

/* Bytes of a partial sum of `parts` contributions, and of a result. */
size_t iq_step_partial_bytes(const iq_step_data_t *data, int parts);
size_t iq_step_result_bytes(const iq_step_data_t *data);

/* Bytes of a message that was written: `most`, or what it says itself where lengths vary. */
size_t iq_step_message_bytes(const iq_step_data_t *data, const void *message, size_t most);

/* ISGQ_ERR_CORRUPT if a message that arrived has another length than it says, where lengths vary. */
isgq_result_t iq_step_check_length(const iq_step_data_t *data, const void *message, size_t bytes);

/* Where the step sums: the output itself where values are summed as they are and own input does not lie there, else scratch. */
void *iq_step_accumulator(const iq_step_data_t *data);

void iq_step_encode(const iq_step_data_t *data, void *message);
void iq_step_add_own(const iq_step_data_t *data, void *acc, bool first);
isgq_result_t iq_step_add(const iq_step_data_t *data, const void *message, int parts, void *acc, bool first);
void iq_step_store(const iq_step_data_t *data, const void *acc, int parts, void *message);

/* The output: the sum of partial(1) of all ranks in rank order, NULL standing for own input. */
isgq_result_t iq_step_sum(const iq_step_data_t *data, const void *const messages[], int nranks);

/* Output, and the result message if it is not NULL, from an accumulator. */
isgq_result_t iq_step_finish_into(const iq_step_data_t *data, const void *acc, void *message);

/* FINISH and DELIVER. */
isgq_result_t iq_step_finish(const iq_step_data_t *data);
isgq_result_t iq_step_deliver(const iq_step_data_t *data);

/* The result message that FINISH left. */
const void *iq_step_result(const iq_step_data_t *data);

/* A result message to the output. */
isgq_result_t iq_step_decode(const iq_step_data_t *data, const void *message);

#endif
