/* SPDX-License-Identifier: Apache-2.0 */
/* What programs have to do for `powersgd`, which works on tensors with a shape and a memory. */
#ifndef ISGQ_PERF_LOW_RANK_H
#define ISGQ_PERF_LOW_RANK_H

#include "isgqcoll.h"

#include <stdbool.h>
#include <stddef.h>

/* Does a canonical text mean it for dense calls? *rank: how many directions. */
bool iq_low_rank(const char *text, unsigned *rank);

/* For `count` elements without a shape of their own: as near to a square as their number allows. */
void iq_low_rank_shape(size_t count, size_t *rows, size_t *columns);

/* Are its factors fewer numbers than the matrix? Else it is sent as it is. */
bool iq_low_rank_pays(size_t rows, size_t columns, unsigned rank);

#endif
