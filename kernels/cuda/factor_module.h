/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What module "cuda" does for factored calls: the codec of libisgqcoll/codec/factor.h on device memory, blob for blob and bit
 * for bit, and the product on tensor cores. Everything only enqueues; nothing needs to know what the data are.
 *
 *     factors --prepare--> state, peaks    state, shared peaks --encode--> message
 *     messages --decode--> rows            rows --multiply--> sums
 *
 * A message is a blob behind a table of where its rows start: rows have lengths of their own, and without the table only one
 * thread could find them. Receivers believe neither.
 *
 *     uint32_t  starts[max_batch + 1]   of rows, from the start of the blob; behind the last row: the blob's length,
 *                                       which the last entry always is
 *     blob      at the next multiple of 64
 *
 * Rows for the product are 8-bit integers. A row weighs (8 + m) 2^(e-1): 8 + m is multiplied into the codes of one factor,
 * e - 1 is what is left, and rows of equal exponents lie together, in bands. The product multiplies the bands as they are with
 * 32-bit sums, and adds them up with their exponents in 64 bits. What does not fit 8 bits becomes two rows: its lower seven
 * bits, and, seven bands above, the rest.
 */
#ifndef ISGQ_KERNELS_CUDA_FACTOR_MODULE_H
#define ISGQ_KERNELS_CUDA_FACTOR_MODULE_H

#include "isgqcoll.h"
#include "kernels/factor_rows.h"

#include <stdint.h>

typedef struct iq_cuda_outcome iq_cuda_outcome_t; /* cuda_module.h */

typedef struct iq_cuda_factor_call {
    isgq_data_type_t type; /* f32, f16 or bf16: of both factors */
    int rank;
    uint64_t seed, call;
    const uint32_t *replays; /* as in iq_cuda_grid_t */
    size_t max_batch, batch, m, n;
    bool want_bias, nearest;
    uint32_t width_x, width_delta; /* of every row; 0: a budget */
    double budget;                 /* bytes that the blob's rows may take, header excluded */
    size_t blob_bytes;             /* most that a blob takes on any rank, below 2^32 */
} iq_cuda_factor_call_t;

/* Bands of exponents 0..18, and the rows that speak for the bias alone. Each fills whole steps of the product. */
enum { IQ_FACTOR_BANDS = 20, IQ_FACTOR_STEP_ROWS = 32, IQ_FACTOR_DIGIT_BITS = 7 };

static inline size_t iq_cuda_factor_round(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

/* ---- messages ---- */

static inline size_t iq_cuda_factor_blob_at(size_t max_batch)
{
    return iq_cuda_factor_round((max_batch + 1) * sizeof(uint32_t), 64);
}

static inline size_t iq_cuda_factor_message_bytes(size_t max_batch, size_t blob_bytes)
{
    return iq_cuda_factor_blob_at(max_batch) + iq_cuda_factor_round(blob_bytes, 64) + 64; /* reads go in words */
}

/* ---- state: from prepare to encode ---- */

typedef struct iq_cuda_factor_facts {
    uint32_t bad, negative; /* not 0: some value is NaN or Inf; some value of X is negative */
    uint32_t picks;
} iq_cuda_factor_facts_t;

/* A row that is sent. */
typedef struct iq_cuda_factor_pick {
    uint32_t row, start; /* in the factors, in the blob */
    uint32_t nonzero[2]; /* codes of X and of delta */
    uint8_t c, b;        /* weights, 0: absent */
    uint8_t width_x, width_delta;
    iq_factor_step_t step[2];
} iq_cuda_factor_pick_t;

typedef struct iq_cuda_factor_state {
    size_t rows, order, picks, codes; /* where they start */
    size_t columns[2];                /* bytes of a row of codes */
    size_t bytes;
} iq_cuda_factor_state_t;

static inline iq_cuda_factor_state_t iq_cuda_factor_lay_state(size_t max_batch, size_t m, size_t n)
{
    iq_cuda_factor_state_t state = {0, 0, 0, 0, {0, 0}, 0};
    state.columns[0] = iq_cuda_factor_round(m, 8);
    state.columns[1] = iq_cuda_factor_round(n, 8);
    state.rows = iq_cuda_factor_round(sizeof(iq_cuda_factor_facts_t), 64);
    state.order = state.rows + iq_cuda_factor_round(max_batch * sizeof(iq_factor_row_t), 64);
    state.picks = state.order + iq_cuda_factor_round(max_batch * sizeof(uint32_t), 64);
    state.codes = state.picks + iq_cuda_factor_round(max_batch * sizeof(iq_cuda_factor_pick_t), 64);
    state.bytes = state.codes + max_batch * (state.columns[0] + state.columns[1]);
    return state;
}

/* ---- rows: from decode to the product ---- */

typedef struct iq_cuda_factor_bands {
    uint32_t rows[IQ_FACTOR_BANDS], placed[IQ_FACTOR_BANDS];
} iq_cuda_factor_bands_t;

/* Four rows by one column are a word, the first row lowest: words[position / 4][column]. */
typedef struct iq_cuda_factor_rows {
    size_t positions;            /* of 8-bit rows, those included that only fill steps */
    size_t places, shares, bias; /* where these start: what lies at a position, what it adds to the bias, sums of the bias */
    size_t words[2];             /* X and delta */
    size_t columns[2];           /* words of four rows */
    size_t bytes;
} iq_cuda_factor_rows_t;

/* Does every row of such codes fit 8 bits, whatever its weight? */
static inline bool iq_cuda_factor_is_narrow(uint32_t width_x, uint32_t width_delta)
{
    return width_x != 0 && (width_x <= 3 || (width_x <= 7 && width_delta <= 4));
}

/* For the rows of so many ranks. */
static inline iq_cuda_factor_rows_t iq_cuda_factor_lay_rows(const iq_cuda_factor_call_t *call, size_t ranks)
{
    iq_cuda_factor_rows_t rows = {0, 0, 0, 0, {0, 0}, {0, 0}, 0};
    size_t most = ranks * call->max_batch * (iq_cuda_factor_is_narrow(call->width_x, call->width_delta) ? 1 : 2);
    rows.positions = iq_cuda_factor_round(most, IQ_FACTOR_STEP_ROWS) + IQ_FACTOR_BANDS * IQ_FACTOR_STEP_ROWS;
    rows.columns[0] = iq_cuda_factor_round(call->m, 4);
    rows.columns[1] = iq_cuda_factor_round(call->n, 4);
    rows.places = iq_cuda_factor_round(sizeof(iq_cuda_factor_bands_t), 64);
    rows.shares = rows.places + rows.positions * sizeof(uint32_t);
    rows.bias = rows.shares + (call->want_bias ? rows.positions * sizeof(uint64_t) : 0);
    rows.words[0] = iq_cuda_factor_round(rows.bias + (call->want_bias ? call->n * sizeof(uint64_t) : 0), 64);
    rows.words[1] = rows.words[0] + rows.positions * rows.columns[0];
    rows.bytes = rows.words[1] + rows.positions * rows.columns[1];
    return rows;
}

/* ---- the table ---- */

/* All memory is device memory, aligned to 64 bytes but for the factors, which are aligned to their elements. */
typedef struct iq_cuda_factor_table {
    /* As iq_factor_prepare. */
    isgq_result_t (*prepare)(int device, isgq_stream_t stream, const iq_cuda_factor_call_t *call, const void *x,
                             const void *delta, void *state, float *peaks);

    /* As iq_factor_encode; `peaks` are the shared ones. */
    isgq_result_t (*encode)(int device, isgq_stream_t stream, const iq_cuda_factor_call_t *call, const void *x, const void *delta,
                            void *state, const float *peaks, void *message);

    /* The messages of `ranks` ranks, iq_cuda_factor_message_bytes apart. What iq_factor_decode refuses, and a table that
     * does not fit, is IQ_CUDA_BAD_BLOB at `fault`; then the rows are garbage, and nothing else is touched. */
    isgq_result_t (*decode)(int device, isgq_stream_t stream, const iq_cuda_factor_call_t *call, const void *messages, int ranks,
                            void *rows, uint32_t *fault);

    /* The sums of decoded rows of `ranks` ranks, m x n of the gradient and n of the bias if it is wanted, as often as one
     * likes. */
    isgq_result_t (*multiply)(int device, isgq_stream_t stream, const iq_cuda_factor_call_t *call, void *rows, int ranks,
                              const iq_cuda_outcome_t *grad, const iq_cuda_outcome_t *bias);
} iq_cuda_factor_table_t;

#endif
