/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the files of the factored codec share: the state between prepare and encode, the grid of row weights, the blob's
 * constants.
 *
 * Row weights. A row is kept with probability p and then weighs B = up(max|delta| / (L_d p)) and C = up(B max|x| / L_x), where L
 * are the largest codes and up() rounds up to (8 + m) 2^k, m in 0..7. Its steps are d = B p for delta and a = C / B for x, so
 * that C q p / p_keep and B p / p_keep are unbiased whatever B and C are: a larger weight is a coarser step and nothing else.
 */
#ifndef ISGQ_CODEC_FACTOR_INTERNAL_H
#define ISGQ_CODEC_FACTOR_INTERNAL_H

#include "codec/factor.h"

/* The blob, see factor_encode.c. */
enum {
    IQ_FACTOR_VERSION = 1,
    IQ_FACTOR_HEADER_BYTES = 8,
    IQ_FACTOR_FLAG_UNSIGNED = 1, /* header: codes of X are 0..2^w-1 */
    IQ_FACTOR_FLAG_BIAS = 2,     /* header: rows carry B */
    IQ_FACTOR_PLANE_X = 0x40,    /* row: X is a zero plane and the non-zero codes */
    IQ_FACTOR_PLANE_DELTA = 0x80
};

enum { IQ_FACTOR_MIN_WIDTH = 2, IQ_FACTOR_MAX_WIDTH = 8, IQ_FACTOR_WIDTHS = IQ_FACTOR_MAX_WIDTH - IQ_FACTOR_MIN_WIDTH + 1 };

/* Rows of all ranks together: 2^23 * 255 * 127 * 15 * 2^(J-1) < 2^53, so that every sum is exact in int64 and in double. */
#define IQ_FACTOR_MAX_ROWS ((size_t)1 << 23)

/* Keep probabilities are even multiples of 2^-32: exact, and half of one is a probability too. */
#define IQ_FACTOR_CERTAIN ((uint64_t)1 << 32)

/* Elements that are converted, rounded or stored at a time, and the lanes in which sums of floats are taken: the same at every
 * SIMD width. */
#define IQ_FACTOR_CHUNK 256
#define IQ_FACTOR_LANES 16

/* A row of one factor, measured. */
typedef struct iq_factor_side {
    double sum_squares;
    size_t nonzero;
    float max_abs;
    float variance[IQ_FACTOR_WIDTHS]; /* that rounding adds, in squares of max_abs; budget mode */
} iq_factor_side_t;

typedef struct iq_factor_row {
    iq_factor_side_t x, delta;
    uint64_t keep; /* probability in units of 2^-32; 0: the row contributes nothing */
    size_t bytes;  /* most bytes it takes in the blob */
    unsigned width_x, width_delta;
} iq_factor_row_t;

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

/* Largest code of a width. */
static inline int32_t iq_factor_levels(unsigned width, bool is_unsigned)
{
    return is_unsigned ? (1 << width) - 1 : (1 << (width - 1)) - 1;
}

/* C, B if wanted, widths and zero-plane flags. */
static inline size_t iq_factor_row_header(const iq_factor_call_t *call) { return call->want_bias ? 3 : 2; }

/* Bytes of `count` codes, `nonzero` of them not zero: in full or with a zero plane, whichever is less. */
size_t iq_factor_side_bytes(size_t count, size_t nonzero, unsigned width);

/* Bytes that the budget leaves for rows, and the smallest blob a budget may ask for. */
size_t iq_factor_budget(const iq_factor_spec_t *spec, const iq_factor_call_t *call, size_t batch);

/* Choose widths and keep probabilities of all rows so that the expected bytes meet the budget. */
void iq_factor_allot(const iq_factor_spec_t *spec, const iq_factor_call_t *call, const void *x, const void *delta,
                     iq_factor_state_t *state);

/* Where the weights of one kind (B or C) lie: integer * 2^exponent, from `lightest` to `heaviest`. */
typedef struct iq_factor_grid {
    int exponent;
    double lightest, heaviest;
} iq_factor_grid_t;

iq_factor_grid_t iq_factor_grid(const iq_factor_call_t *call, float peak);

/* The least (8 + m) 2^k that is not below `value`; 0 for 0. */
double iq_factor_up(double value);

/* Weights of a row kept with probability keep / 2^32; B is on a grid only if `grid_b`. C is 0 for a row without x. */
typedef struct iq_factor_weights {
    double b, c;
} iq_factor_weights_t;

iq_factor_weights_t iq_factor_weights(const iq_factor_row_t *row, bool unsigned_x, uint64_t keep, bool grid_b);

/* Elements first..first+count-1 as float; `count` at most IQ_FACTOR_CHUNK. `memory` need not be aligned. */
void iq_factor_load(isgq_data_type_t datatype, const void *memory, size_t first, size_t count, float *values);

/* The same, then zeros up to a multiple of IQ_FACTOR_LANES, which is returned. */
size_t iq_factor_load_lanes(isgq_data_type_t datatype, const void *memory, size_t first, size_t count, float *values);

#endif
