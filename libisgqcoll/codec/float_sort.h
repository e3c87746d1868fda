/* SPDX-License-Identifier: Apache-2.0 */
/* Sorting the values of a bucket. */
#ifndef ISGQ_CODEC_FLOAT_SORT_H
#define ISGQ_CODEC_FLOAT_SORT_H

#include <stddef.h>

/* Puts finite values in ascending order, -0 before +0; count <= IQ_LEVELS_BUCKET_MOST. Does not allocate, as qsort may. */
void iq_sort_floats(float *values, size_t count);

#endif
