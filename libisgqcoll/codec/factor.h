/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The factored codec: rows of X [batch x m] and Delta [batch x n] to integer codes, and codes to G = transpose(X) * Delta.
 *
 * Row r of X and of Delta contribute one outer product. With integer codes q, p and dyadic row weights C_r, B_r,
 *     G ~ sum over all rows of C_r * outer(q_r, p_r),      bias ~ sum of B_r * p_r,
 * where C_r = (integer up to 15 * 2^(J-1)) * 2^E with one E for all ranks: the sum is a sum of integers times one power of two,
 * hence the same bits for any order, algorithm, chunking, rank count and device (docs/numerics.md).
 *
 * A rank's call goes:  prepare -> [MAX allreduce of 2 floats] -> encode -> blob;   blob -> decode -> rows;   rows -> product.
 */
#ifndef ISGQ_CODEC_FACTOR_H
#define ISGQ_CODEC_FACTOR_H

#include "isgqcoll.h"
#include "kernels/factor_rows.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* How rows become codes. */
typedef enum iq_factor_method {
    IQ_FACTOR_ROWS,    /* a scale for each row */
    IQ_FACTOR_MSE,     /* isgq-mse: one set of levels for a factor, fitted to the gradient (ISGQ, AAAI 2020) */
    IQ_FACTOR_MVU,     /* isgq-mvu: the same, and the sum over all elements of the gradient is kept */
    IQ_FACTOR_DITHERED /* isgq-dithered: one scale for a factor, subtractive dither, exact zeros kept */
} iq_factor_method_t;

/* "factor:width=bx/bd": fixed widths, every row. "isgq:bits=b" and "factor:bits=b": a budget of wire bits per factor
 * element; the rank picks widths and keep probabilities by itself. */
typedef struct iq_factor_spec {
    unsigned width_x; /* 2..8, fixed mode; isgq-dithered: of both factors */
    unsigned width_delta;
    double budget_bits; /* 0: fixed widths, or budget_nmse */
    double budget_nmse; /* 0, or the error to be met with as few bits as that takes */
    bool nearest;       /* rounding=nearest (biased), else stochastic */
    bool dither;        /* rounding=dither: subtractive */
    bool coded;         /* blobs go through the entropy coder */
    bool svd;           /* rows=svd: other rows with the same product are sent, and the bias as a row of its own */
    iq_factor_method_t method;
    unsigned levels;    /* isgq-mse, isgq-mvu: of either factor, zero not counted: 2, 4 or 8 */
} iq_factor_spec_t;

/* Is this spec there for device memory? */
bool iq_factor_has_device(const iq_factor_spec_t *spec);

typedef struct iq_factor_call {
    isgq_data_type_t datatype; /* FLOAT32, FLOAT16, BFLOAT16: of x, delta, grad and bias */
    int nranks, rank;
    uint64_t seed, call; /* as in iq_codec_call_t */
    size_t max_batch, m, n; /* equal on every rank */
    size_t batch;           /* this rank's rows */
    bool want_bias;
    uint32_t fraction; /* iq_factor_fraction of the quantizer and this shape */
} iq_factor_call_t;

/* Decoded codes of X and of Delta are multiples of 2^-fraction of their steps, held as integers. Equal on all ranks. */
uint32_t iq_factor_fraction(const iq_factor_spec_t *spec, const iq_factor_call_t *call);

/* Rows that a rank may send where it has up to `batch`: what max_batch of a call is. rows=svd adds one for the bias. */
size_t iq_factor_most_rows(const iq_factor_spec_t *spec, size_t batch, bool want_bias);

/* Most bytes that encode writes on any rank, whatever the data. Equal on all ranks. In budget mode: the budget of max_batch rows
 * (at least 32 bytes) and one largest row more; the mean meets the budget of the rank's own rows. 0 if widths or budget are out
 * of range, if sizes overflow, or if all ranks may have more than 2^23 rows together (sums would not stay below 2^53). */
size_t iq_factor_blob_bytes(const iq_factor_spec_t *spec, const iq_factor_call_t *call);

/* Bytes that a blob of max_batch rows is expected to have, by which ways are compared. */
size_t iq_factor_mean_bytes(const iq_factor_spec_t *spec, const iq_factor_call_t *call);

/* Nanoseconds that decoding such a blob takes, roughly and on the machine of docs/performance.md. Equal on all ranks. */
double iq_factor_decode_ns(const iq_factor_spec_t *spec, const iq_factor_call_t *call);

/* Scratch that prepare fills and encode uses, 64-byte aligned. */
size_t iq_factor_state_bytes(const iq_factor_spec_t *spec, const iq_factor_call_t *call);

/* Row maxima, widths, keep probabilities. peaks[0] = largest B (0 without want_bias), peaks[1] = largest C (0 if no rows); NaN or
 * Inf in the input gives +Inf in both. The caller takes the maximum of both over all ranks. */
void iq_factor_prepare(const iq_factor_spec_t *spec, const iq_factor_call_t *call, const void *x, const void *delta, void *state,
                       float peaks[2]);

/* Decoded rows of all ranks, appended blob by blob. Codes are small integers. The caller provides the arrays
 * (iq_factor_rows_layout). */
typedef struct iq_factor_rows {
    size_t capacity; /* rows there is room for: nranks * max_batch (gather) or max_batch (product reduction) */
    size_t count;
    int64_t *weight_c; /* [capacity] C_r / 2^E_c */
    int64_t *weight_b; /* [capacity] B_r / 2^E_b; only if the bias is wanted */
    int16_t *q;        /* [capacity x m] */
    int16_t *p;        /* [capacity x n] */
    void *columns;     /* what a decoder learns on its way, m + n times 4 bytes */
    const struct iq_factor_rows *next; /* more rows of the same sum, or NULL */
} iq_factor_rows_t;

/* Write this rank's blob; returns its bytes, at most iq_factor_blob_bytes. peaks are the shared ones. `own`, unless it is NULL, gets the
 * rows that decoding the blob would append: the encoder knows its codes. */
size_t iq_factor_encode(const iq_factor_spec_t *spec, const iq_factor_call_t *call, const void *x, const void *delta, void *state,
                        const float peaks[2], void *blob, iq_factor_rows_t *own);

/* Bytes for `capacity` rows, and pointers into `memory` (64-byte aligned; NULL to ask for the size only). 0 on overflow. */
size_t iq_factor_rows_layout(const iq_factor_call_t *call, size_t capacity, void *memory, iq_factor_rows_t *rows);

/* Validate one blob of rank `from` (it may come from the network: ISGQ_ERR_CORRUPT) and append its rows. */
isgq_result_t iq_factor_decode(const iq_factor_spec_t *spec, const iq_factor_call_t *call, int from, const void *blob, size_t bytes,
                               iq_factor_rows_t *rows);

/* ---- decoded rows as bytes: ranks of one host pass them on, so that one of them has to decode a blob ---- */

/* Most bytes of a blob's rows, a multiple of 8. 0 on overflow. */
size_t iq_factor_rows_bytes(const iq_factor_call_t *call);

/* rows to bytes, 8-byte aligned; returns how many. */
size_t iq_factor_rows_pack(const iq_factor_call_t *call, const iq_factor_rows_t *rows, void *packed);

/* The other way, in place: `rows` points into the bytes. *used of them are read. ISGQ_ERR_CORRUPT if there are more rows than a batch has, if
 * they are cut short, or if a weight or a code is none of this quantizer's. */
isgq_result_t iq_factor_rows_open(const iq_factor_spec_t *spec, const iq_factor_call_t *call, void *packed, size_t bytes,
                                  iq_factor_rows_t *rows, size_t *used);

/* ---- columns of decoded rows as bytes: for the rank that makes a block of the gradient ---- */

/* Columns i..i+m-1 of X and j..j+n-1 of Delta. */
typedef struct iq_factor_part {
    size_t i, m, j, n;
} iq_factor_part_t;

/* Most bytes of a part of max_batch rows whose codes take at most `width` bits; 16 are always enough. And how many bits codes are expected to take. */
size_t iq_factor_part_bytes(const iq_factor_call_t *call, const iq_factor_part_t *part, unsigned width);
unsigned iq_factor_part_width(const iq_factor_spec_t *spec, const iq_factor_call_t *call);

/* Rows to bytes; returns how many. */
size_t iq_factor_part_pack(const iq_factor_call_t *call, const iq_factor_rows_t *rows, const iq_factor_part_t *part, void *bytes);

/* The other way: the rows are appended to those of a call whose m and n are the part's. ISGQ_ERR_CORRUPT as iq_factor_decode. */
isgq_result_t iq_factor_part_open(const iq_factor_spec_t *spec, const iq_factor_call_t *block, const void *bytes, size_t count,
                                  iq_factor_rows_t *rows);

/* Working memory of a product of `rows` rows, and the number of tiles it is cut into (so that an executor can pause between
 * tiles). */
size_t iq_factor_product_scratch(const iq_factor_call_t *call, size_t rows);
size_t iq_factor_product_tiles(const iq_factor_call_t *call);

/* If a shared peak is not finite some rank had NaN or Inf: encode writes an empty blob and the product is NaN everywhere.
 * Tile `tile` of grad = sum * 2^E / (avg ? nranks : 1), added to grad if accumulate. Tile 0 also writes `bias` if it is not NULL
 * (want_bias must be set then), or adds to it. There is at least one tile, even if m or n is 0. */
isgq_result_t iq_factor_product(const iq_factor_call_t *call, const iq_factor_rows_t *rows, const float peaks[2], size_t tile,
                                bool avg, bool accumulate, void *grad, void *bias, void *scratch);

/* The same for rows first..first+count-1 of the gradient alone, in f32, row `first` at values[0]; and the bias alone. Together they
 * are iq_factor_product, whoever makes which part. */
typedef struct iq_factor_band {
    size_t first, count;
} iq_factor_band_t;

size_t iq_factor_band_tiles(const iq_factor_call_t *call, iq_factor_band_t band);
void iq_factor_product_band(const iq_factor_call_t *call, const iq_factor_rows_t *rows, const float peaks[2], iq_factor_band_t band,
                            size_t tile, bool avg, float *values, void *scratch);
void iq_factor_bias(const iq_factor_call_t *call, const iq_factor_rows_t *rows, const float peaks[2], bool avg, bool accumulate,
                    void *bias, void *scratch);

/* 2^E of the gradient's sums, or of the bias's; NaN if a shared peak is not finite. For products that are made elsewhere. */
double iq_factor_scale(const iq_factor_call_t *call, const float peaks[2], bool bias);

/* Product reduction: the integers themselves. INT32 if nranks * max_batch rows cannot overflow it, else INT64. The array holds
 * m * n sums, then n sums of the bias if it is wanted. */
isgq_data_type_t iq_factor_sum_type(const iq_factor_spec_t *spec, const iq_factor_call_t *call);
isgq_result_t iq_factor_product_integers(const iq_factor_spec_t *spec, const iq_factor_call_t *call, const iq_factor_rows_t *rows,
                                         size_t tile, void *sums, void *scratch);

/* The finished sums to grad (and bias), tile by tile, exactly the bits that iq_factor_product would have written. */
void iq_factor_from_integers(const iq_factor_spec_t *spec, const iq_factor_call_t *call, const void *sums, const float peaks[2],
                             size_t tile, bool avg, bool accumulate, void *grad, void *bias);

/* The exact gradient of this rank alone, for the dense path: grad = transpose(x) * delta in f32 [m x n], bias sums [n] or NULL,
 * tile by tile (scratch as for the product). The order of these float sums is that of the build's BLAS: only what an allreduce
 * makes of them is the same on all ranks. */
isgq_result_t iq_factor_local_gradient(const iq_factor_call_t *call, const void *x, const void *delta, float *grad, float *bias,
                                       size_t tile, void *scratch);

#endif
