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
    size_t count;        /* elements of the whole tensor; 0 where nobody knows or asks */
    bool accumulate;     /* decode and deliver add to the output (in the output's type, by float or integer addition) */
    const float *scales; /* what ranks agreed on: uniform's scale of bucket first_bucket, first_bucket + 1, ...; NULL if the codec shares none */
    size_t first_bucket;
    float *seen;            /* guarded: [bucket] the largest magnitude that any rank had there, of what was delivered so far (codec/guarded.h) */
    bool holds;             /* guarded: results go to the output as the messages of the codec beneath, to be decoded later */
    const struct iq_fused *fused; /* fused: the parts and their own calls (codec/fused.h) */
    const uint32_t *strata; /* [IQ_STRATA] this rank's offsets for rounding=stratified (codec/strata.h) */
    const uint32_t *all_strata; /* [nranks][IQ_STRATA] those of all ranks, or NULL: who needs one has to make it */
    struct iq_device *device; /* where data in device memory is worked on (codec/device.h); NULL: host memory */
    const double *history; /* [IQ_HISTORY] what `learn` made of earlier results of the same tensor, zeros at first, equal on all
                            * ranks; NULL: the call has none */
} iq_codec_call_t;

typedef enum iq_rounding {
    IQ_ROUND_NEAREST,
    IQ_ROUND_STOCHASTIC,
    IQ_ROUND_STRATIFIED /* stochastic, and the ranks' random numbers are spread evenly: their errors cancel */
} iq_rounding_t;

typedef enum iq_norm { IQ_NORM_MAX, IQ_NORM_L2 } iq_norm_t;

/* What a call that names its tensor does about the error of the last one. */
typedef enum iq_feedback {
    IQ_FEEDBACK_OFF,
    IQ_FEEDBACK_FULL,    /* all of it is added to the next gradient: for biased codecs, which shrink it */
    IQ_FEEDBACK_WEIGHTED /* a part, 1 / (1 + variance): for unbiased codecs of high variance */
} iq_feedback_t;

struct iq_codec_ops;
struct iq_level_model; /* codec/levels.h */
struct iq_family;      /* codec/quantizer_text.h */

#define IQ_STRATA 256
#define IQ_HISTORY 16 /* doubles */
#define IQ_SCALES_IN_ONE_ROUND 32 /* that are summed: more of them go where they are fewest bytes */

/* One dense codec with its settings: a value, copied freely. */
typedef struct iq_codec {
    const struct iq_codec_ops *ops;
    const struct iq_family *family;     /* what the text named, for texts; NULL: made without one */
    const struct iq_level_model *model; /* levels: which */
    unsigned bits;          /* code width 1..8 */
    unsigned levels;        /* uniform: codes -levels..levels; 0: as many as `bits` hold */
    size_t bucket;          /* elements per scale; 0 is the whole tensor */
    iq_rounding_t rounding;
    iq_norm_t norm;         /* uniform: what the scale is */
    float clip;             /* uniform: scales are at most so many standard deviations of a rank's tensor; 0: no limit */
    bool shared;            /* uniform: one scale per bucket for all ranks */
    bool predict;           /* shared scales may be guessed from the tensor's earlier calls */
    int exact;              /* uniform, shared: 1 the result is the exact integer sum, 0 requantized once by its owner, -1 by nranks (exact up to 8) */
    iq_feedback_t feedback;
    unsigned power_rank;    /* powersgd: rows of its factors. No codec of its own: what is sent are its factors, as they are; 0: another */
    const struct iq_codec_ops *guarded; /* guarded: the codec beneath */
    double budget_bits, budget_nmse; /* coded: what may be spent, one of them is 0 */
} iq_codec_t;

typedef struct iq_codec_ops {
    const char *name; /* "none", "fp16", "bf16", "uniform" */

    /* Messages may be shorter than their *_bytes say: they begin with their length, 4 bytes, which who moves them has compared
     * with what arrived before add and decode see them. */
    bool varies;

    /* ISGQ_SUCCESS, or IQ_FAIL with one sentence: this type or reduction with this codec. */
    isgq_result_t (*supports)(const iq_codec_t *codec, isgq_data_type_t datatype, isgq_red_op_t op);

    /* The most ranks whose sum it holds; NULL: any number. */
    int (*most_ranks)(const iq_codec_t *codec);

    /* Or NULL, which is yes: may a sum of some contributions be passed on for others to add to (a ring)? No where it would saturate. */
    bool (*passes_sums)(const iq_codec_t *codec);

    /* The call needs `scales` before encoding: the caller clears them, runs local_scales over the whole tensor in order, then
     * close_scales, an allreduce of the first shared_scales of them, open_scales, and sets call->scales. */
    bool (*needs_scales)(const iq_codec_t *codec);

    /* What is agreed on if that is not one maximum a bucket; all of them or none (NULL). The room may be larger than what is shared. */
    size_t (*room_scales)(const iq_codec_t *codec, size_t count);   /* floats of room */
    size_t (*shared_scales)(const iq_codec_t *codec, size_t count); /* those that the allreduce takes */
    size_t (*scales_unit)(const iq_codec_t *codec);                 /* local_scales gets spans that begin at multiples of it */
    isgq_red_op_t (*scales_op)(const iq_codec_t *codec);            /* MAX or SUM */
    void (*close_scales)(const iq_codec_t *codec, const iq_codec_call_t *call, size_t count, float *scales);
    void (*open_scales)(const iq_codec_t *codec, const iq_codec_call_t *call, size_t count, float *scales);

    /* Or NULL: scales as open_scales leaves them, from call->history alone; false: it gives none. */
    bool (*history_scales)(const iq_codec_t *codec, const iq_codec_call_t *call, float *scales);

    /* The largest magnitude that codes under an open scale stand for; NULL: the scale. */
    float (*limit)(const iq_codec_t *codec, const iq_codec_call_t *call, float scale);

    /* scales[b - call->first_bucket] = max |src| over the part of bucket b in the span, maximum with what is there already
     * (the caller clears first), or what the codec makes of the span. NaN and Inf become +Inf. */
    void (*local_scales)(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, float *scales);

    /* The result is the sum itself, not rounded again: any algorithm gives the same bits, and deliver equals finish + decode. */
    bool (*result_is_exact)(const iq_codec_t *codec, const iq_codec_call_t *call);

    size_t (*acc_bytes)(const iq_codec_t *codec, const iq_codec_call_t *call);                                    /* per element */
    size_t (*partial_bytes)(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, int parts);     /* exact size */
    size_t (*result_bytes)(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span);                 /* exact size */

    /* Bits an element that are to be expected of partial(1), or of a result; NULL: those of the *_bytes. */
    double (*mean_bits)(const iq_codec_t *codec, const iq_codec_call_t *call, bool result);

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

    /* Or NULL: add (add_own with `src` where messages[rank] is NULL) for every rank in order and deliver, in one go. [call->nranks]
     * `ahead`: own input that will be encoded next, as much as in `src`, or NULL; it may be fetched meanwhile. */
    void (*sum)(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *const messages[], const void *src,
                const void *ahead, void *dst);

    /* Who wants to know what became of a rank's own contribution delivers an accumulator that holds nothing else, for a call of one
     * rank, or with `counts_parts`, whose accumulators know how many contributions they have, for the same call. */
    bool counts_parts;

    /* Or NULL. After an allreduce that has a history: the delivered result, in spans from element 0 to call->count, in order.
     * `history` is the tensor's and kept between calls; call->history has what it held when the call began. */
    void (*learn)(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *dst, double *history);
} iq_codec_ops_t;

/* All dense codecs, ends with NULL. Adding one is one file and one row, and the same for device memory (codec/device.h); tests pick
 * it up. */
extern const iq_codec_ops_t *const iq_codecs[];

/* The lossless codec, used for scales, integers and broadcasts. */
extern const iq_codec_t iq_codec_none;

/* Scales of a tensor of `count` elements, before and while ranks agree on them: one a bucket if the codec does not say more. */
static inline size_t iq_codec_scales(const iq_codec_t *codec, size_t count)
{
    if (count == 0)
        return 0;
    if (codec->ops != NULL && codec->ops->room_scales != NULL)
        return codec->ops->room_scales(codec, count);
    return codec->bucket == 0 ? 1 : (count - 1) / codec->bucket + 1;
}

/* Bytes of one element; 0 for an unknown type. */
size_t iq_datatype_bytes(isgq_data_type_t datatype);
const char *iq_datatype_name(isgq_data_type_t datatype); /* "f32", "i8", ...: what programs print and accept */
const char *iq_red_op_name(isgq_red_op_t op);            /* "sum", "prod", "max", "min", "avg" */

#endif
