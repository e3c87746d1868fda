/* SPDX-License-Identifier: Apache-2.0 */
/* What the soak test's lossy quantizers promise, and results held to it: element by element, and the tensor as a whole. */
#ifndef ISGQ_TEST_SOAK_CHECK_H
#define ISGQ_TEST_SOAK_CHECK_H

#include "support/samples.h"

/* A quantizer as docs/numerics.md defines it. `isgq`: the budget of a factored call, and the grid that a dense one leads to. */
typedef struct soak_text {
    const char *text;
    double cast;   /* unit roundoff, or 0 */
    unsigned bits; /* of a uniform grid, or 0 */
    size_t bucket; /* 0: tensor */
    bool nearest, exact;
    unsigned width_x, width_delta; /* of factors, or 0 */
    double budget;                 /* wire bits of a factor's element, or 0 */
    double wide;                   /* entropy coded: a single element may be off by so many steps of that grid; the whole may not; or 0 */
} soak_text_t;

extern const soak_text_t soak_dense_texts[], soak_factor_texts[];
#define SOAK_DENSE_TEXTS 10
#define SOAK_FACTOR_TEXTS 6

typedef struct soak_layer {
    isgq_data_type_t type;
    size_t m, n, max_batch;
    uint64_t salt;
} soak_layer_t;

size_t soak_batch_of(const soak_layer_t *layer, int rank);

/* Element of X (which 0) or Delta (which 1). */
double soak_factor_at(const soak_layer_t *layer, int which, size_t row, size_t column, int rank);

/* The whole of `out`, an allreduce of iq_samples. */
void soak_check_dense(iq_rank_t *rank, const soak_text_t *text, isgq_data_type_t type, isgq_red_op_t op, uint64_t salt,
                      size_t count, const void *out);

/* The whole gradient. `dense`: the ranks' products were quantized, not their factors. */
void soak_check_gradient(iq_rank_t *rank, const soak_text_t *text, const soak_layer_t *layer, bool dense, const void *out);

#endif
