/* SPDX-License-Identifier: Apache-2.0 */
/* PowerSGD once more, of all ranks in one place and in double. Residuals are v - mean result, as PyTorch has them. */
#ifndef ISGQ_TEST_SUPPORT_LOW_RANK_TWIN_H
#define ISGQ_TEST_SUPPORT_LOW_RANK_TWIN_H

#include "isgqcoll.h"

#include <stdbool.h>
#include <stddef.h>

/* Several spans, rows across them. */
enum { LOW_RANK_ROWS = 61, LOW_RANK_COLUMNS = 470, LOW_RANK_COUNT = LOW_RANK_ROWS * LOW_RANK_COLUMNS, LOW_RANK_RANKS = 5, LOW_RANK_VECTORS = 6 };

typedef struct low_rank_twin {
    int nranks, vectors;
    double q[LOW_RANK_VECTORS][LOW_RANK_COLUMNS];
    double residuals[LOW_RANK_RANKS][LOW_RANK_COUNT]; /* before a call: with the gradients added */
    double out[LOW_RANK_COUNT];                       /* the sum */
} low_rank_twin_t;

void low_rank_twin_call(low_rank_twin_t *twin, bool keeps);

/* A first call goes from random directions. twin->q is what they became; it delivers the projection of the sum on what that says. */
void low_rank_twin_first(low_rank_twin_t *twin, isgq_red_op_t op, bool keeps, const float *out);

/* The largest difference between what was delivered and the twin's result, relative to the largest value of the twin's. */
double low_rank_twin_differs(const low_rank_twin_t *twin, isgq_red_op_t op, const float *out);

#endif
