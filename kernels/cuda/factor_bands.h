/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How rows of a blob become rows of 8-bit integers in bands of equal exponents; see factor_module.h.
 *
 * A row of codes q, p weighs w 2^(e-1), w in 8..15. If w p fits 8 bits and q does, w goes to p; else if w q fits, to q; else w
 * q is cut in two. Where bits are left, q or w q is shifted up by part of e - 1, so that rows of neighbouring exponents share a
 * band: each band costs the product a bit.
 */
#ifndef ISGQ_KERNELS_CUDA_FACTOR_BANDS_H
#define ISGQ_KERNELS_CUDA_FACTOR_BANDS_H

#include "kernels/cuda/factor_parts.h"

/* The band of rows without C. */
enum { IQ_FACTOR_BIAS_BAND = IQ_FACTOR_BANDS - 1 };

/* A row's part of a blob, so far as its header tells. */
typedef struct iq_factor_entry {
    uint32_t start, end; /* of its codes, in the blob */
    uint32_t width_x, width_delta;
    uint8_t c, b;
    bool unsigned_x, plane_x, plane_delta;
    bool good;
} iq_factor_entry_t;

typedef struct iq_factor_recipe {
    uint32_t weight_q, weight_p; /* what codes are multiplied with; one of them is 1 */
    uint32_t shift;              /* then those of q are shifted up */
    uint32_t band;               /* of the row, or of its lower digit */
    bool split;                  /* two digits */
} iq_factor_recipe_t;

/* The bits that w q takes at most, or q alone, go up to `room` by a shift. */
static __device__ __forceinline__ iq_factor_recipe_t iq_factor_shifted(uint32_t weight_q, uint32_t weight_p, uint32_t e,
                                                                       uint32_t bits, uint32_t room, bool split)
{
    uint32_t shift = (e - 1) % (room - bits + 1);
    iq_factor_recipe_t recipe = {weight_q, weight_p, shift, e - 1 - shift, split};
    return recipe;
}

static __device__ __forceinline__ iq_factor_recipe_t iq_factor_recipe_of(const iq_factor_entry_t &entry)
{
    uint32_t e = entry.c >> 3, w = 8 + (entry.c & 7u);
    if (e == 0) {
        iq_factor_recipe_t bias = {1, 1, 0, IQ_FACTOR_BIAS_BAND, false};
        return bias;
    }
    /* Unsigned codes have all bits of their width, signed ones a bit less: counted alike, so that ranks share bands. */
    if (entry.width_x <= 7 && entry.width_delta <= 4)
        return iq_factor_shifted(1, w, e, entry.width_x, 7, false);
    if (entry.width_x <= 3)
        return iq_factor_shifted(w, 1, e, entry.width_x + 4, 7, false);
    return iq_factor_shifted(w, 1, e, entry.width_x + 4, 2 * IQ_FACTOR_DIGIT_BITS, true);
}

/* ---- blobs ---- */

typedef struct iq_factor_messages {
    const uint8_t *data;
    uint64_t stride, blob_at, blob_bytes, m, n;
    uint32_t max_batch;
    int ranks;
    bool want_bias;
    uint32_t width_x, width_delta;
    uint32_t *fault;
} iq_factor_messages_t;

static __device__ __forceinline__ const uint32_t *iq_factor_starts(const iq_factor_messages_t &messages, uint64_t rank)
{
    return (const uint32_t *)(messages.data + rank * messages.stride);
}

static __device__ __forceinline__ const uint8_t *iq_factor_blob(const iq_factor_messages_t &messages, uint64_t rank)
{
    return messages.data + rank * messages.stride + messages.blob_at;
}

/* The rows of a rank's blob; 0 and *good is false if its header is damaged. */
static __device__ __forceinline__ uint32_t iq_factor_count(const iq_factor_messages_t &messages, uint64_t rank, bool *unsigned_x,
                                                           bool *good)
{
    const uint8_t *blob = iq_factor_blob(messages, rank);
    const uint32_t *starts = iq_factor_starts(messages, rank);
    uint32_t count = *(const uint32_t *)(blob + 4), flags = blob[1];
    *unsigned_x = (flags & IQ_FACTOR_FLAG_UNSIGNED) != 0;
    *good = blob[0] == IQ_FACTOR_VERSION && blob[2] == 0 && blob[3] == 0 && count <= messages.max_batch &&
            (flags & ~(uint32_t)IQ_FACTOR_FLAG_UNSIGNED) == (messages.want_bias ? IQ_FACTOR_FLAG_BIAS : 0);
    *good = *good && starts[0] == IQ_FACTOR_HEADER_BYTES && starts[count] <= messages.blob_bytes &&
            starts[count] == starts[messages.max_batch]; /* the blob's length, whatever the count says */
    return *good ? count : 0;
}

static __device__ __forceinline__ bool iq_factor_weight_is_legal(uint8_t byte)
{
    return byte >> 3 <= IQ_FACTOR_OCTAVES && (byte >> 3 > 0 || byte == 0);
}

/* Row `r` of a blob, which has so many; whether its codes are good is seen when they are read. */
static __device__ __forceinline__ iq_factor_entry_t iq_factor_entry_of(const iq_factor_messages_t &messages, uint64_t rank,
                                                                       uint32_t r, bool unsigned_x)
{
    const uint32_t *starts = iq_factor_starts(messages, rank);
    uint32_t start = starts[r], end = starts[r + 1], header = iq_factor_row_header(messages.want_bias);
    iq_factor_entry_t entry = {};
    if (end < start || end - start < header || end > messages.blob_bytes)
        return entry;
    const uint8_t *at = iq_factor_blob(messages, rank) + start;
    uint32_t form = at[header - 1];
    entry.start = start + header;
    entry.end = end;
    entry.c = at[0];
    entry.b = messages.want_bias ? at[1] : 0;
    entry.unsigned_x = unsigned_x;
    entry.width_x = (form & 7u) + 1;
    entry.width_delta = (form >> 3 & 7u) + 1;
    entry.plane_x = (form & IQ_FACTOR_PLANE_X) != 0;
    entry.plane_delta = (form & IQ_FACTOR_PLANE_DELTA) != 0;
    bool fixed = messages.width_x != 0, has_x = entry.c != 0;
    entry.good = iq_factor_weight_is_legal(entry.c) && iq_factor_weight_is_legal(entry.b) &&
                 entry.width_delta >= IQ_FACTOR_MIN_WIDTH && (!fixed || entry.width_delta == messages.width_delta);
    if (has_x)
        entry.good = entry.good && entry.width_x >= IQ_FACTOR_MIN_WIDTH && (!fixed || entry.width_x == messages.width_x);
    else
        entry.good = entry.good && entry.b != 0 && entry.width_x == 1 && !entry.plane_x;
    return entry;
}

/* ---- what a row adds to the bias ---- */

/*
 * p may be stored as w p, and B is not a multiple of w: so positions carry 8 B / w as numbers modulo 2^64, where odd numbers have
 * inverses and w is odd but for a power of two up to 8. Sums of shares times stored codes are eight times the bias, exactly.
 */
static __device__ __forceinline__ uint64_t iq_factor_share(uint32_t b, uint32_t w)
{
    uint64_t weight = b == 0 ? 0 : (uint64_t)(8 + (b & 7u)) << ((b >> 3) - 1), eights = 8, odd = w;
    for (; odd % 2 == 0; odd /= 2)
        eights /= 2;
    uint64_t inverse = odd;
    for (int i = 0; i < 5; i++) /* Newton: correct bits double, from three */
        inverse *= 2 - odd * inverse;
    return weight * eights * inverse;
}

#endif
