/* SPDX-License-Identifier: Apache-2.0 */
/* The factored codec's ranks in a loop, for its tests: factors, one exchange of blobs, the sum, and what the sum should be. */
#ifndef ISGQ_TEST_SUPPORT_FACTOR_RANKS_H
#define ISGQ_TEST_SUPPORT_FACTOR_RANKS_H

#include "base/util.h"
#include "codec/factor.h"
#include "kernels/quant_math.h"

#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MOST_RANKS 9

/* ck_assert costs a message to the runner even when it holds; this is for inner loops. */
static inline void require(bool holds, const char *what)
{
    if (!holds)
        ck_abort_msg("%s", what);
}

typedef struct ranks {
    iq_factor_spec_t spec;
    iq_factor_call_t call; /* batch and rank are set for each rank */
    size_t batch[MOST_RANKS];
    void *x[MOST_RANKS], *delta[MOST_RANKS];
    unsigned char *blob[MOST_RANKS];
    size_t bytes[MOST_RANKS];
    float peaks[2];
    void *state, *memory, *scratch;
    iq_factor_rows_t rows;
} ranks_t;

/* A normal variate, from a counter. */
static inline double normal(uint64_t seed, uint64_t index)
{
    iq_philox_block_t block = iq_draw(seed, 0, 77, 0, index * 4);
    double u = (block.word[0] + 0.5) / 4294967296.0, v = (block.word[1] + 0.5) / 4294967296.0;
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

static inline float value_at(isgq_data_type_t type, const void *memory, size_t i)
{
    if (type == ISGQ_FLOAT32)
        return ((const float *)memory)[i];
    uint16_t half = ((const uint16_t *)memory)[i];
    return type == ISGQ_FLOAT16 ? iq_f16_to_float(half) : iq_bf16_to_float(half);
}

static inline void set_value(isgq_data_type_t type, void *memory, size_t i, double value)
{
    if (type == ISGQ_FLOAT32)
        ((float *)memory)[i] = (float)value;
    else
        ((uint16_t *)memory)[i] = type == ISGQ_FLOAT16 ? iq_float_to_f16((float)value) : iq_float_to_bf16((float)value);
}

static inline size_t value_bytes(isgq_data_type_t type) { return type == ISGQ_FLOAT32 ? 4 : 2; }

/* Ranks with batch[] rows each, all values 0. call.max_batch is the largest. */
static inline ranks_t *ranks_create(iq_factor_spec_t spec, iq_factor_call_t call, const size_t *batch)
{
    ranks_t *ranks = calloc(1, sizeof(*ranks));
    ranks->spec = spec;
    ranks->call = call;
    for (int r = 0; r < call.nranks; r++)
        ranks->call.max_batch = iq_max(ranks->call.max_batch, batch[r]);
    ranks->call.max_batch = iq_factor_most_rows(&spec, ranks->call.max_batch, call.want_bias);
    ranks->call.fraction = iq_factor_fraction(&spec, &ranks->call);
    size_t bound = iq_factor_blob_bytes(&spec, &ranks->call), capacity = (size_t)call.nranks * ranks->call.max_batch;
    require(bound > 0, "no bound");
    for (int r = 0; r < call.nranks; r++) {
        ranks->batch[r] = batch[r];
        ranks->x[r] = calloc(batch[r] * call.m + 1, value_bytes(call.datatype));
        ranks->delta[r] = calloc(batch[r] * call.n + 1, value_bytes(call.datatype));
        ranks->blob[r] = malloc(bound); /* exact, for the address sanitizer */
    }
    ranks->state = aligned_alloc(64, iq_align_up(iq_factor_state_bytes(&spec, &ranks->call), 64));
    ranks->memory = aligned_alloc(64, iq_factor_rows_layout(&ranks->call, capacity, NULL, NULL));
    ranks->scratch = aligned_alloc(64, iq_align_up(iq_factor_product_scratch(&ranks->call, capacity), 64));
    iq_factor_rows_layout(&ranks->call, capacity, ranks->memory, &ranks->rows);
    return ranks;
}

static inline void ranks_destroy(ranks_t *ranks)
{
    for (int r = 0; r < ranks->call.nranks; r++) {
        free(ranks->x[r]);
        free(ranks->delta[r]);
        free(ranks->blob[r]);
    }
    free(ranks->state);
    free(ranks->memory);
    free(ranks->scratch);
    free(ranks);
}

static inline iq_factor_call_t call_of(const ranks_t *ranks, int r)
{
    iq_factor_call_t call = ranks->call;
    call.rank = r;
    call.batch = ranks->batch[r];
    return call;
}

/* Normal factors; `relu` clears the negative values of X; rows of delta vary by 2^(spread * normal). */
static inline void fill_normal(ranks_t *ranks, uint64_t seed, bool relu, double spread)
{
    isgq_data_type_t type = ranks->call.datatype;
    size_t m = ranks->call.m, n = ranks->call.n;
    uint64_t index = 0;
    for (int r = 0; r < ranks->call.nranks; r++)
        for (size_t row = 0; row < ranks->batch[r]; row++) {
            double scale = exp2(spread * normal(seed + 1, index + row));
            for (size_t i = 0; i < m; i++) {
                double value = normal(seed, index++);
                set_value(type, ranks->x[r], row * m + i, relu && value < 0 ? 0 : value);
            }
            for (size_t j = 0; j < n; j++)
                set_value(type, ranks->delta[r], row * n + j, 0.01 * scale * normal(seed, index++));
        }
}

/* Prepare and encode on every rank, as call number `number`. Returns all bytes. */
static inline size_t encode_all(ranks_t *ranks, uint64_t number)
{
    size_t total = 0, bound = iq_factor_blob_bytes(&ranks->spec, &ranks->call);
    ranks->call.call = number;
    ranks->peaks[0] = ranks->peaks[1] = 0;
    for (int r = 0; r < ranks->call.nranks; r++) {
        iq_factor_call_t call = call_of(ranks, r);
        float peaks[2];
        iq_factor_prepare(&ranks->spec, &call, ranks->x[r], ranks->delta[r], ranks->state, peaks);
        ranks->peaks[0] = fmaxf(ranks->peaks[0], peaks[0]);
        ranks->peaks[1] = fmaxf(ranks->peaks[1], peaks[1]);
    }
    for (int r = 0; r < ranks->call.nranks; r++) {
        iq_factor_call_t call = call_of(ranks, r);
        float own[2];
        iq_factor_prepare(&ranks->spec, &call, ranks->x[r], ranks->delta[r], ranks->state, own);
        ranks->bytes[r] =
            iq_factor_encode(&ranks->spec, &call, ranks->x[r], ranks->delta[r], ranks->state, ranks->peaks, ranks->blob[r], NULL);
        require(ranks->bytes[r] <= bound, "a blob beyond its bound");
        total += ranks->bytes[r];
    }
    return total;
}

/* Decode the blobs of ranks 0..nranks-1, or backwards. */
static inline void decode_all(ranks_t *ranks, bool backwards)
{
    ranks->rows.count = 0;
    for (int i = 0; i < ranks->call.nranks; i++) {
        int r = backwards ? ranks->call.nranks - 1 - i : i;
        require(iq_factor_decode(&ranks->spec, &ranks->call, r, ranks->blob[r], ranks->bytes[r], &ranks->rows) == ISGQ_SUCCESS,
                "a blob of ours was refused");
    }
}

static inline void product_all(ranks_t *ranks, bool avg, bool accumulate, void *grad, void *bias)
{
    for (size_t tile = 0; tile < iq_factor_product_tiles(&ranks->call); tile++)
        require(iq_factor_product(&ranks->call, &ranks->rows, ranks->peaks, tile, avg, accumulate, grad, bias, ranks->scratch) ==
                    ISGQ_SUCCESS,
                "a product failed");
}

/* The true sums, in double: grad [m x n], bias [n]. */
static inline void exact_sums(const ranks_t *ranks, double *grad, double *bias)
{
    size_t m = ranks->call.m, n = ranks->call.n;
    memset(grad, 0, m * n * sizeof(*grad));
    memset(bias, 0, n * sizeof(*bias));
    for (int r = 0; r < ranks->call.nranks; r++)
        for (size_t row = 0; row < ranks->batch[r]; row++)
            for (size_t j = 0; j < n; j++) {
                double delta = value_at(ranks->call.datatype, ranks->delta[r], row * n + j);
                bias[j] += delta;
                for (size_t i = 0; i < m; i++)
                    grad[i * n + j] += value_at(ranks->call.datatype, ranks->x[r], row * m + i) * delta;
            }
}

static inline iq_factor_spec_t widths(unsigned x, unsigned delta)
{
    return (iq_factor_spec_t){.width_x = x, .width_delta = delta};
}

static inline iq_factor_spec_t budget(double bits) { return (iq_factor_spec_t){.budget_bits = bits}; }

static inline iq_factor_call_t shape(int nranks, size_t m, size_t n, bool bias)
{
    return (iq_factor_call_t){.datatype = ISGQ_FLOAT32, .nranks = nranks, .seed = 0x1234567, .m = m, .n = n, .want_bias = bias};
}

#endif
