/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Numbers for tests: inputs whose reductions are known exactly, the reductions themselves, and buffers with guarded ends.
 *
 * Float inputs are small integers (or powers of two for products), so every order of summation gives the same bits; integers
 * are any. Element `index` of rank `rank` follows from (salt, rank, index) alone.
 */
#ifndef ISGQ_TEST_SUPPORT_NUMBERS_H
#define ISGQ_TEST_SUPPORT_NUMBERS_H

#include "isgqcoll.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IQ_TYPE_COUNT 10

typedef struct iq_type {
    isgq_data_type_t type;
    const char *name;
    size_t bytes;
    bool is_float, is_signed;
} iq_type_t;

extern const iq_type_t iq_types[IQ_TYPE_COUNT]; /* at [isgq_data_type_t] */

/* 64 well mixed bits. */
uint64_t iq_mix(uint64_t a, uint64_t b, uint64_t c);

/* In [-1, 1), as float holds it. */
float iq_mix_unit(uint64_t a, uint64_t b, uint64_t c);

/* Elements first, first + 1, ... of one rank. */
void iq_numbers_fill(isgq_data_type_t type, isgq_red_op_t op, uint64_t salt, int rank, size_t first, size_t count, void *dst);

/* What reducing them over ranks 0..nranks-1 gives. */
void iq_numbers_reduce(isgq_data_type_t type, isgq_red_op_t op, uint64_t salt, int nranks, size_t first, size_t count, void *dst);

/* dst += values in their type: integers wrap, floats round once. */
void iq_numbers_add(isgq_data_type_t type, const void *values, size_t count, void *dst);

/* Floats of any width. set rounds to the nearest, ties to even. */
double iq_numbers_get(isgq_data_type_t type, const void *src, size_t index);
void iq_numbers_set(isgq_data_type_t type, void *dst, size_t index, double value);

/* Memory of exactly `bytes` at an address that is `skew` past a cache line, with patterns before and after. */
typedef struct iq_buffer {
    unsigned char *memory, *data;
    size_t bytes;
} iq_buffer_t;

iq_buffer_t iq_buffer_new(size_t bytes, size_t skew);
bool iq_buffer_intact(const iq_buffer_t *buffer); /* nobody wrote outside */
void iq_buffer_free(iq_buffer_t *buffer);

#endif
