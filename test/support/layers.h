/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Layers for tests of factored calls: factors whose rows are known by number, one call of them, and what they make exactly.
 *
 * Sizes of rows differ by a few octaves, a quarter of the elements is zero.
 */
#ifndef ISGQ_TEST_SUPPORT_LAYERS_H
#define ISGQ_TEST_SUPPORT_LAYERS_H

#include "support/numbers.h"
#include "support/ranks.h"

typedef struct layer {
    size_t m, n, max_batch;
    bool bias, unsigned_x;
    isgq_data_type_t type;
    isgq_red_op_t op;
    int whole; /* 0: batches differ between ranks; else this many rows in all, shared out in order */
} iq_layer_t;

/* One rank's call, and what all ranks' rows make exactly. */
typedef struct call {
    const iq_layer_t *layer;
    size_t batch, first_row;
    iq_buffer_t x, delta, grad, bias;
} iq_layer_call_t;

/* All ranks' rows in double. */
typedef struct reference {
    const iq_layer_t *layer;
    int nranks;
    size_t rows;
    double *x, *delta, *max_x, *max_delta;
} iq_layer_sums_t;

/*
 * Exact values of one element, and the error that codes of these widths may have: less than one step each, grid rounded up
 * by an eighth.
 */
typedef struct exact {
    double value, size, allowed;
} iq_layer_exact_t;

/* `place`: whose rows this rank brings. */
iq_layer_call_t iq_layer_call_new(const iq_layer_t *layer, int place, int nranks);

/* Make the call and wait for it. NULL algorithm: the library's choice. */
void iq_layer_call_run(iq_rank_t *rank, iq_layer_call_t *call, isgq_quantizer_t quantizer, const char *algorithm,
                       bool accumulate);

uint64_t iq_layer_call_hash(const iq_layer_call_t *call); /* of gradient and bias */
void iq_layer_call_free(iq_layer_call_t *call);

iq_layer_sums_t iq_layer_sums_new(const iq_layer_t *layer, int nranks);
void iq_layer_sums_free(iq_layer_sums_t *all);

/* Element (i, j) of the gradient, or j of the bias. */
iq_layer_exact_t iq_layer_exact(const iq_layer_sums_t *all, unsigned width_x, unsigned width_delta, size_t i, size_t j,
                                bool bias);

#endif
