/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Codec `levels`: every bucket has a few levels of its own, fitted to its values by a model, and codes that name them. Codes of two
 * ranks have different meanings, so a sum takes two steps: the owner of a block decodes all contributions, adds them in f32 in
 * rank order and encodes the sum once more, with levels of its own.
 *
 *   partial(1), result: [header of each bucket that the span touches][codes]      partial(k): f32
 *
 * A model works on one bucket, or on that part of it that a message carries: at most IQ_LEVELS_BUCKET_MOST values.
 */
#ifndef ISGQ_CODEC_LEVELS_H
#define ISGQ_CODEC_LEVELS_H

#include "codec/codec.h"
#include "codec/digits.h"

#define IQ_LEVELS_BUCKET_MOST 8192
#define IQ_LEVELS_HEADER_MOST 64

/* Where a bucket's random numbers are: word (element mod 4) of iq_draw(seed, call, stream, rank, element). Who decodes another
 * rank's contribution does not know whose it is: decode has rank 0 always, and what it must know of the rank is in the header. */
typedef struct iq_level_draw {
    uint64_t seed, call;
    uint32_t stream, rank;
    uint64_t first; /* number of the bucket's (or the part's) first element in the tensor */
} iq_level_draw_t;

typedef struct iq_level_model {
    const char *name; /* for error texts */

    /* Symbols of a code, 2..512: codes are 0..symbols-1, and how they are packed follows from that. */
    unsigned (*symbols)(const iq_codec_t *codec);
    size_t header_bytes; /* of one bucket, where it does not depend on the settings: 1 to IQ_LEVELS_HEADER_MOST */
    size_t (*header)(const iq_codec_t *codec); /* where it does; else NULL */

    /* count >= 1 values, all finite, to a header and codes. Headers are aligned for any type here, in messages they are not. No
     * header of all bytes 0xff: it says that a value is not finite. */
    void (*encode)(const iq_codec_t *codec, const iq_level_draw_t *draw, const float *values, size_t count, void *header,
                   uint16_t *codes);

    /* The reverse. The header may come from anybody: ISGQ_ERR_CORRUPT with a sentence if no encoder writes it. Codes are below
     * `symbols`. A header of `not finite` never gets here: see levels.c. */
    isgq_result_t (*decode)(const iq_codec_t *codec, const iq_level_draw_t *draw, const void *header, const uint16_t *codes,
                            size_t count, float *values);
} iq_level_model_t;

/* What messages are made of, on hosts and on devices. */
size_t iq_levels_header_bytes(const iq_codec_t *codec); /* of one bucket */
iq_digits_t iq_levels_digits(const iq_codec_t *codec);
size_t iq_levels_buckets(const iq_codec_t *codec, iq_span_t span); /* that it touches: the headers of its message */

/* The 24 random bits of elements draw->first + offset and on. */
void iq_level_random(const iq_level_draw_t *draw, size_t offset, size_t count, uint32_t *random24);

/* ISGQ_SUCCESS, or ISGQ_ERR_CORRUPT: finite floats in ascending order, as levels of a header are. */
isgq_result_t iq_level_check(const iq_codec_t *codec, const float *levels, size_t count);

extern const iq_level_model_t iq_level_qsgd, iq_level_onebit, iq_level_ef_sign, iq_level_bingrad_b, iq_level_bingrad_pb, iq_level_orq,
    iq_level_natural, iq_level_eden, iq_level_mx;

#endif
