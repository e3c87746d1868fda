/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Codecs: values to wire bytes and back, for dense tensors. A codec knows nothing of ranks' links or of algorithms.
 *
 * Three kinds of message exist, and an algorithm is a way to move them:
 *   partial(k)  the sum of k ranks' contributions; partial(1) is what one rank has to say
 *   result      the finished sum in the form that every rank decodes to the same bits
 * and one working form that never travels:
 *   accumulator an array of acc_bytes per element
 *
 *      own input --encode--> partial(1)            accumulator --store(k)--> partial(k)
 *      own input --add_own--> accumulator          accumulator --finish----> result --decode--> output
 *      partial(k) --add-----> accumulator          accumulator --deliver-------------------------> output
 *
 * Every function works on a span: elements first..first+count-1 of the tensor. Source, destination, accumulator and message
 * pointers point at the span's first element or byte. Nothing here allocates, locks or fails on valid input. Random decisions come
 * from Philox counters made of (seed, call, rank, element): independent of chunking, so the same element gets the same code
 * however the tensor is cut. Buckets too are cut by element number: element e lies in bucket e / bucket.
 */
#ifndef ISGQ_CODEC_CODEC_H
#define ISGQ_CODEC_CODEC_H

#include "isgqcoll.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct iq_span {
    size_t first; /* element number within the tensor */
    size_t count; /* elements */
} iq_span_t;

/* What one call tells the codec. Equal on all ranks except `rank`. */
typedef struct iq_codec_call {
    isgq_data_type_t datatype;
    isgq_red_op_t op;
    int nranks;          /* contributions in the finished sum */
    int rank;            /* for independent random numbers */
    uint64_t seed;       /* the communicator's key: its seed and where it comes from */
    uint64_t call;       /* call number on the communicator */
    bool accumulate;     /* decode and deliver add to the output (in the output's type, by float or integer addition) */
    const float *scales; /* shared scale (max |x| over ranks) of bucket first_bucket, first_bucket + 1, ...; NULL if the codec shares none */
    size_t first_bucket;
    struct iq_device *device; /* where data in device memory is worked on (codec/device.h); NULL: host memory */
} iq_codec_call_t;

typedef enum iq_rounding { IQ_ROUND_NEAREST, IQ_ROUND_STOCHASTIC } iq_rounding_t;

struct iq_codec_ops;

/* One dense codec with its settings: a value, copied freely. */
typedef struct iq_codec {
    const struct iq_codec_ops *ops;
    unsigned bits;          /* uniform: code width 1..8 */
    size_t bucket;          /* uniform: elements per scale; 0 is the whole tensor */
    iq_rounding_t rounding; /* uniform */
    bool shared;            /* uniform: one scale per bucket for all ranks */
    int exact;              /* uniform, shared: 1 the result is the exact integer sum, 0 requantized once by its owner, -1 by nranks (exact up to 8) */
} iq_codec_t;

typedef struct iq_codec_ops {
    const char *name; /* "none", "fp16", "bf16", "uniform" */

    /* ISGQ_SUCCESS, or IQ_FAIL with one sentence: this type or reduction with this codec. */
    isgq_result_t (*supports)(const iq_codec_t *codec, isgq_data_type_t datatype, isgq_red_op_t op);

    /* The call needs `scales` before encoding: the caller runs local_scales, a MAX allreduce, then sets call->scales. */
    bool (*needs_scales)(const iq_codec_t *codec);

    /* scales[b - call->first_bucket] = max |src| over the part of bucket b in the span, maximum with what is there already
     * (the caller clears first). NaN and Inf become +Inf. */
    void (*local_scales)(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, float *scales);

    /* The result is the sum itself, not rounded again: any algorithm gives the same bits, and deliver equals finish + decode. */
    bool (*result_is_exact)(const iq_codec_t *codec, const iq_codec_call_t *call);

    size_t (*acc_bytes)(const iq_codec_t *codec, const iq_codec_call_t *call);                                    /* per element */
    size_t (*partial_bytes)(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, int parts);     /* exact size */
    size_t (*result_bytes)(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span);                 /* exact size */

    void (*encode)(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *message);

    /* `first`: overwrite the accumulator instead of reducing into it. */
    void (*add_own)(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *acc, bool first);

    /* `message` holds exactly partial_bytes(parts) bytes from another rank; contents are validated (ISGQ_ERR_CORRUPT). */
    isgq_result_t (*add)(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, int parts,
                         void *acc, bool first);
    void (*store)(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, int parts, void *message);
    void (*finish)(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *message);
    isgq_result_t (*decode)(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, void *dst);
    void (*deliver)(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *dst);
} iq_codec_ops_t;

/* All dense codecs, ends with NULL. Adding one is one file and one row, and the same for device memory (codec/device.h); tests pick
 * it up. */
extern const iq_codec_ops_t *const iq_codecs[];

/* The lossless codec, used for scales, integers and broadcasts. */
extern const iq_codec_t iq_codec_none;

/* Scales of a tensor of `count` elements: one a bucket. */
static inline size_t iq_codec_scales(const iq_codec_t *codec, size_t count)
{
    if (count == 0)
        return 0;
    return codec->bucket == 0 ? 1 : (count - 1) / codec->bucket + 1;
}

/* Bytes of one element; 0 for an unknown type. */
size_t iq_datatype_bytes(isgq_data_type_t datatype);
const char *iq_datatype_name(isgq_data_type_t datatype); /* "f32", "i8", ...: what programs print and accept */
const char *iq_red_op_name(isgq_red_op_t op);            /* "sum", "prod", "max", "min", "avg" */

#endif
