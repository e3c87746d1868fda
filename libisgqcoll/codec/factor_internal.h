/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of the factored codec share: the state between prepare and encode. Arithmetic on rows is in
 * kernels/factor_rows.h. */
#ifndef ISGQ_CODEC_FACTOR_INTERNAL_H
#define ISGQ_CODEC_FACTOR_INTERNAL_H

#include "codec/factor.h"

/* Rows of all ranks together: 2^23 * 255 * 127 * 15 * 2^(J-1) < 2^53, so that every sum is exact in int64 and in double. */
#define IQ_FACTOR_MAX_ROWS ((size_t)1 << 23)

/* The state's parts; `order` lists the rows by growing `bytes`. */
typedef struct iq_factor_facts {
    bool finite, unsigned_x;
} iq_factor_facts_t;

typedef struct iq_factor_state {
    iq_factor_facts_t *facts;
    iq_factor_row_t *rows;
    uint32_t *order;
    uint8_t *codes; /* scratch, one row */
} iq_factor_state_t;

iq_factor_state_t iq_factor_state(const iq_factor_call_t *call, void *memory);

static inline iq_factor_shape_t iq_factor_shape(const iq_factor_call_t *call)
{
    return (iq_factor_shape_t){call->m, call->n, call->want_bias};
}

/* Bytes that the budget leaves for rows, and the smallest blob a budget may ask for. */
size_t iq_factor_budget(const iq_factor_spec_t *spec, const iq_factor_call_t *call, size_t batch);

/* Choose widths and keep probabilities of all rows so that the expected bytes meet the budget. */
void iq_factor_allot(const iq_factor_spec_t *spec, const iq_factor_call_t *call, const void *x, const void *delta,
                     iq_factor_state_t *state);

/* Elements first..first+count-1 as float; `count` at most IQ_FACTOR_CHUNK. `memory` need not be aligned. */
void iq_factor_load(isgq_data_type_t datatype, const void *memory, size_t first, size_t count, float *values);

/* The same, then zeros up to a multiple of IQ_FACTOR_LANES, which is returned. */
size_t iq_factor_load_lanes(isgq_data_type_t datatype, const void *memory, size_t first, size_t count, float *values);

#endif
