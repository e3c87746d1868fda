/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Codec `coded`: one step for the whole tensor and all ranks, codes without limits, entropy coding.
 *
 * A rank's code is its value over the step, rounded by stratified rounding. Codes add up as integers, exactly, whatever the
 * route. The owner of a block rounds the sum of codes to multiples of a whole number k, with a random offset that all ranks
 * know, and every rank takes back what is known of the errors:
 *
 *   sum of codes Q          result c = floor((Q + d) / k), d uniform in 0..k-1           k = 1: the result is exact
 *   value = step * (k c + mend_result * ((k - 1)/2 - d) + mend_own * (w - 1/2))          w: where the strata of the element begin
 *
 * Step, k and what is taken back (0 to 1) follow from the budget and what ranks agreed on (coded.h). Only sums are taken: what
 * is moved as it is (allgather) goes through uniform.
 *
 *   message: [u32 length][u32 kind, and whose][blocks of integers]
 */
#include "codec/coded.h"

#include "base/status.h"
#include "base/util.h"
#include "codec/coded_message.h"
#include "codec/coder.h"
#include "codec/convert.h"
#include "codec/dense.h"
#include "codec/strata.h"

#include <string.h>

enum {
    KIND_CODES,
    KIND_NOTHING, /* no value is finite, or none differs from 0 */
    KIND_OWN,     /* codes of one rank, whose number is in the upper bits */
    KIND_BITS = 8,
    HEADER = 8
};

/* Codes in one block: as many as the stack and one table of the coder serve well. */
#define BLOCK IQ_CODED_BLOCK

static isgq_result_t supports(const iq_codec_t *codec, isgq_data_type_t datatype, isgq_red_op_t op)
{
    (void)codec;
    if (!iq_coder_present())
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "quantizer 'isgq' with coding=zstd needs a build with libzstd");
    if (!iq_is_small_float(datatype))
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "quantizer 'isgq' takes f32, f16 and bf16, not %s", iq_datatype_name(datatype));
    if (op != ISGQ_SUM && op != ISGQ_AVG)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "quantizer 'isgq' takes sum and avg, not %s", iq_red_op_name(op));
    return ISGQ_SUCCESS;
}

static bool needs_scales(const iq_codec_t *codec)
{
    (void)codec;
    return true;
}

static size_t room_scales(const iq_codec_t *codec, size_t count) { return iq_coded_layout(codec, count).room; }
static size_t shared_scales(const iq_codec_t *codec, size_t count) { return iq_coded_layout(codec, count).shared; }

static size_t scales_unit(const iq_codec_t *codec)
{
    (void)codec;
    return IQ_CODED_UNIT;
}

static isgq_red_op_t scales_op(const iq_codec_t *codec)
{
    (void)codec;
    return ISGQ_SUM;
}

/* Of long tensors only known once the scales are open; before that nobody may count on it. */
static bool result_is_exact(const iq_codec_t *codec, const iq_codec_call_t *call)
{
    (void)codec;
    if (call->count > 0 && iq_coded_is_short(call->count))
        return true;
    return call->scales != NULL && iq_coded_plan(call).merge == 1.0f;
}

static size_t acc_bytes(const iq_codec_t *codec, const iq_codec_call_t *call)
{
    (void)codec, (void)call;
    return 4; /* int32_t sums of codes */
}

static size_t most_bytes(iq_span_t span)
{
    size_t blocks = span.count / BLOCK, rest = span.count % BLOCK;
    return HEADER + blocks * iq_coded_block_bytes(BLOCK) + (rest > 0 ? iq_coded_block_bytes(rest) : 0);
}

static size_t partial_bytes(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, int parts)
{
    (void)codec, (void)call, (void)parts;
    return most_bytes(span);
}

static size_t result_bytes(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span)
{
    (void)codec, (void)call;
    return most_bytes(span);
}

static double mean_bits(const iq_codec_t *codec, const iq_codec_call_t *call, bool result)
{
    (void)call, (void)result;
    return codec->budget_bits > 0.0 ? codec->budget_bits : 4.0;
}

/* ---- rounding ---- */

static void draw_words(const iq_codec_call_t *call, uint32_t stream, const uint32_t *strata, uint64_t first, size_t count,
                       uint32_t *words)
{
    iq_grid_t grid = {.stream = stream, .seed = call->seed, .call = call->call, .strata = strata};
    iq_kernels()->draw(&grid, first, count, words);
}

/* Contexts of a rank's own codes, coded_message.h: `strata` are this rank's, or NULL where words are taken as they are. */
static void own_contexts(const iq_codec_call_t *call, uint64_t first, const uint32_t *strata, size_t count, uint8_t *contexts)
{
    enum { CONTEXT_BITS = 3 };
    _Static_assert(1 << CONTEXT_BITS == IQ_CODED_CONTEXTS, "the uppermost bits are the context");
    uint32_t words[IQ_CODEC_TILE];
    unsigned below = (strata != NULL ? 24 : 32) - CONTEXT_BITS;
    for (size_t i = 0; i < count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(count - i, IQ_CODEC_TILE);
        draw_words(call, IQ_STREAM_STRATA, strata, first + i, n, words);
        for (size_t j = 0; j < n; j++)
            contexts[i + j] = (uint8_t)(words[j] >> below);
    }
}

static float inverse_of(float step) { return step > 0.0f ? 1.0f / step : 0.0f; }

/* Codes of elements offset..offset+count-1 of the span. Every element's random number depends on nothing but its place. */
static void quantize(const iq_codec_call_t *call, iq_span_t span, const void *src, size_t offset, size_t count, float step,
                     int32_t *codes)
{
    enum { MOST = IQ_CODED_LARGEST / 2 };
    float tile[IQ_CODEC_TILE];
    iq_grid_t grid = {.inverse = inverse_of(step),
                      .low = -MOST,
                      .high = MOST,
                      .stochastic = true,
                      .stream = IQ_STREAM_STRATA,
                      .seed = call->seed,
                      .call = call->call,
                      .strata = call->strata};
    for (size_t i = 0; i < count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(count - i, IQ_CODEC_TILE);
        const iq_f32_any_t *values = iq_load_f32(call->datatype, src, offset + i, n, tile);
        iq_kernels()->quantize32(&grid, span.first + offset + i, values, n, codes + i);
    }
}

/* d of elements, in 0..k-1. */
static void draw_offsets(const iq_codec_call_t *call, uint64_t first, uint32_t k, size_t count, uint32_t *offsets)
{
    draw_words(call, IQ_STREAM_RESULT, NULL, first, count, offsets);
    for (size_t i = 0; i < count; i++)
        offsets[i] = (uint32_t)(((uint64_t)(offsets[i] >> 8) * k) >> 24);
}

/* Context of a result: where d lies in 0..k-1. That of k-1-d mirrors that of d. */
static uint8_t result_context(uint32_t d, uint32_t k)
{
    bool upper = 2 * d >= k;
    uint32_t low = upper ? k - 1 - d : d, context = (2 * low + 1) * (IQ_CODED_CONTEXTS / 2) / k;
    context = context < IQ_CODED_CONTEXTS / 2 ? context : IQ_CODED_CONTEXTS / 2 - 1;
    return (uint8_t)(upper ? IQ_CODED_CONTEXTS - 1 - context : context);
}

static void result_contexts(const uint32_t *offsets, uint32_t k, size_t count, uint8_t *contexts)
{
    uint8_t known[256] = {0}; /* divisions are dear, and few offsets differ */
    for (uint32_t d = 0; d < k && d < IQ_ARRAY_SIZE(known); d++)
        known[d] = result_context(d, k);
    for (size_t i = 0; i < count; i++)
        contexts[i] = offsets[i] < IQ_ARRAY_SIZE(known) ? known[offsets[i]] : result_context(offsets[i], k);
}

/* Sums of codes to results. */
static void merge(const uint32_t *offsets, uint32_t k, size_t count, int32_t *sums)
{
    int32_t divisor = (int32_t)k;
    double inverse = 1.0 / (double)k;
    for (size_t i = 0; i < count; i++) { /* vectors have no division of integers; the quotient is off by 1 at most */
        int32_t sum = (int32_t)((uint32_t)sums[i] + offsets[i]), quotient = (int32_t)((double)sum * inverse);
        int32_t rest = sum - quotient * divisor;
        sums[i] = quotient + (rest >= divisor) - (rest < 0);
    }
}

/* Results to values; k = 1: sums of codes, without offsets. At most a tile. */
static void values_of(const iq_codec_call_t *call, uint64_t first, const int32_t *results, const uint32_t *offsets, size_t count,
                      uint32_t k, float *values)
{
    static const uint32_t none[IQ_CODEC_TILE];
    iq_coded_plan_t plan = iq_coded_plan(call);
    uint32_t words[IQ_CODEC_TILE], ranks = (uint32_t)call->nranks;
    const uint32_t *strata = ranks == 1 ? call->strata : NULL;
    float divisor = call->op == ISGQ_AVG ? (float)call->nranks : 1.0f, middle = (float)(k - 1) / 2;
    if (plan.mend_own > 0.0f) { /* w: the lowest of all ranks' numbers, times N; of one rank's code, its own number */
        draw_words(call, IQ_STREAM_STRATA, strata, first, count, words);
        for (size_t i = 0; i < count && strata == NULL; i++)
            words[i] = ((words[i] >> 8) * ranks) & 0xffffffu;
    }
    if (plan.mend_own > 0.0f || (k > 1 && plan.mend_result > 0.0f)) { /* what is not taken back is 0 times something */
        const uint32_t *w = plan.mend_own > 0.0f ? words : none, *d = k > 1 ? offsets : none;
        for (size_t i = 0; i < count; i++) {
            float value = (float)((double)results[i] * (double)k); /* the product is exact */
            value += plan.mend_result * (middle - (float)(int32_t)d[i]);
            value += plan.mend_own * ((float)(int32_t)w[i] * 0x1p-24f - 0.5f);
            values[i] = value * plan.step;
        }
    } else {
        for (size_t i = 0; i < count; i++)
            values[i] = (float)((double)results[i] * (double)k) * plan.step;
    }
    for (size_t i = 0; i < count && divisor != 1.0f; i++)
        values[i] /= divisor;
}

static void store_values(const iq_codec_call_t *call, iq_span_t span, const int32_t *results, const uint32_t *offsets,
                         size_t offset, size_t count, uint32_t k, void *dst)
{
    float tile[IQ_CODEC_TILE];
    for (size_t i = 0; i < count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(count - i, IQ_CODEC_TILE);
        values_of(call, span.first + offset + i, results + i, k > 1 ? offsets + i : NULL, n, k, tile);
        iq_store_f32(call->datatype, tile, n, call->accumulate, dst, offset + i);
    }
}

/* ---- messages ---- */

static void put_header(unsigned char *message, size_t bytes, uint32_t kind)
{
    ((iq_u32_any_t *)message)[0] = (uint32_t)bytes;
    ((iq_u32_any_t *)message)[1] = kind;
}

/* Nothing follows the header where the plan says it all. */
static bool says_nothing(const iq_codec_call_t *call)
{
    float step = iq_coded_plan(call).step;
    return iq_not_finite(step) || step == 0.0f;
}

/* What is known of the integers of a message. */
typedef struct contexts {
    bool own;                /* codes of one rank, rounded with ... */
    const uint32_t *strata;  /* ... its strata, or NULL */
    const uint32_t *offsets; /* of results; neither: nothing */
} contexts_t;

typedef struct reader {
    const unsigned char *at;
    size_t left;
    contexts_t contexts;
} reader_t;

static void make_contexts(const iq_codec_call_t *call, const contexts_t *which, uint64_t first, size_t count, uint8_t *contexts)
{
    if (which->own)
        own_contexts(call, first, which->strata, count, contexts);
    else
        result_contexts(which->offsets, (uint32_t)iq_coded_plan(call).merge, count, contexts);
}

static size_t write_block(const iq_codec_call_t *call, contexts_t which, uint64_t first, const int32_t *codes, size_t count,
                          unsigned char *at)
{
    uint8_t contexts[BLOCK];
    bool known = (which.own || which.offsets != NULL) && iq_coded_knows(call) && iq_coded_likes_contexts(codes, count);
    if (known)
        make_contexts(call, &which, first, count, contexts);
    return iq_coded_write(codes, known ? contexts : NULL, count, at);
}

static isgq_result_t open_message(const void *message, iq_span_t span, uint32_t kind, reader_t *reader)
{
    const iq_u32_any_t *header = message;
    if (header[0] < HEADER)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: a message of %u bytes has no header", header[0]);
    if (header[0] > most_bytes(span) || header[1] != kind)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: a message of %u bytes of kind %u where kind %u was due", header[0],
                       header[1], kind);
    *reader = (reader_t){.at = (const unsigned char *)message + HEADER, .left = header[0] - HEADER};
    return ISGQ_SUCCESS;
}

static isgq_result_t next_block(const iq_codec_call_t *call, reader_t *reader, uint64_t first, size_t count, int32_t *codes)
{
    uint8_t contexts[BLOCK];
    size_t used = 0;
    bool known = (reader->contexts.own || reader->contexts.offsets != NULL) && iq_coded_asks_for_contexts(reader->at, reader->left);
    if (known)
        make_contexts(call, &reader->contexts, first, count, contexts);
    IQ_TRY(iq_coded_read(reader->at, reader->left, known ? contexts : NULL, count, codes, &used));
    reader->at += used;
    reader->left -= used;
    return ISGQ_SUCCESS;
}

static isgq_result_t close_message(const reader_t *reader)
{
    if (reader->left > 0)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: %zu bytes after the last block", reader->left);
    return ISGQ_SUCCESS;
}

/* ---- codes ---- */

static void encode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *message)
{
    int32_t codes[BLOCK];
    unsigned char *at = (unsigned char *)message + HEADER;
    (void)codec;
    for (size_t i = 0; i < span.count && !says_nothing(call); i += BLOCK) {
        size_t n = iq_min(span.count - i, BLOCK);
        quantize(call, span, src, i, n, iq_coded_plan(call).step, codes);
        at += write_block(call, (contexts_t){.own = true, .strata = call->strata}, span.first + i, codes, n, at);
    }
    put_header(message, (size_t)(at - (unsigned char *)message),
               says_nothing(call) ? KIND_NOTHING : KIND_OWN | (uint32_t)call->rank << KIND_BITS);
}

static void add_codes(const int32_t *codes, size_t count, bool first, iq_u32_any_t *sums)
{
    for (size_t i = 0; i < count; i++)
        sums[i] = (first ? 0 : sums[i]) + (uint32_t)codes[i];
}

/* Codes that ranks make are far smaller: a sum that large was sent by somebody who makes them up. */
static isgq_result_t check_sums(iq_span_t span, size_t offset, size_t count, const iq_u32_any_t *sums)
{
    uint32_t outside = 0;
    for (size_t i = 0; i < count; i++)
        outside |= sums[i] + IQ_CODED_LARGEST >= 2u * IQ_CODED_LARGEST;
    if (outside)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: the sum of codes in elements %zu to %zu is beyond what ranks can send",
                       span.first + offset, span.first + offset + count - 1);
    return ISGQ_SUCCESS;
}

static void add_own(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *acc, bool first)
{
    int32_t codes[IQ_CODEC_TILE];
    (void)codec;
    for (size_t i = 0; i < span.count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(span.count - i, IQ_CODEC_TILE);
        if (says_nothing(call))
            memset(codes, 0, n * sizeof(*codes));
        else
            quantize(call, span, src, i, n, iq_coded_plan(call).step, codes);
        add_codes(codes, n, first, (iq_u32_any_t *)acc + i);
    }
}

/* Codes of one rank, which says who it is, or sums of several. `room`: for strata that are another rank's. */
static isgq_result_t open_codes(const iq_codec_call_t *call, iq_span_t span, const void *message, uint32_t room[IQ_STRATA],
                                reader_t *reader)
{
    const iq_u32_any_t *head = message;
    uint32_t kind = head[0] >= 2 * sizeof(*head) ? head[1] : 0, rank = kind >> KIND_BITS; /* open_message refuses what is shorter */
    if (says_nothing(call) || (kind & ((1u << KIND_BITS) - 1)) != KIND_OWN)
        return open_message(message, span, says_nothing(call) ? KIND_NOTHING : KIND_CODES, reader);
    IQ_TRY(open_message(message, span, kind, reader));
    if (call->nranks > 1 && rank >= (uint32_t)call->nranks)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec coded: codes of rank %u of %d", rank, call->nranks);
    reader->contexts = (contexts_t){.own = iq_coded_knows(call), .strata = call->strata};
    if (call->nranks > 1 && call->all_strata != NULL) {
        reader->contexts.strata = call->all_strata + (size_t)rank * IQ_STRATA;
    } else if (call->nranks > 1 && call->strata != NULL && rank != (uint32_t)call->rank && reader->contexts.own) {
        iq_strata_fill(call->seed, call->nranks, (int)rank, room);
        reader->contexts.strata = room;
    }
    return ISGQ_SUCCESS;
}

static isgq_result_t add(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, int parts,
                         void *acc, bool first)
{
    int32_t codes[BLOCK];
    uint32_t strata[IQ_STRATA];
    reader_t reader = {0};
    (void)codec, (void)parts;
    IQ_TRY(open_codes(call, span, message, strata, &reader));
    for (size_t i = 0; i < span.count; i += BLOCK) {
        size_t n = iq_min(span.count - i, BLOCK);
        if (says_nothing(call))
            memset(codes, 0, n * sizeof(*codes));
        else
            IQ_TRY(next_block(call, &reader, span.first + i, n, codes));
        add_codes(codes, n, first, (iq_u32_any_t *)acc + i);
        IQ_TRY(check_sums(span, i, n, (iq_u32_any_t *)acc + i));
    }
    return close_message(&reader);
}

/* Sums of codes as they are, or as results. */
static void write_sums(const iq_codec_call_t *call, iq_span_t span, const iq_u32_any_t *sums, uint32_t k, unsigned char *message)
{
    int32_t codes[BLOCK];
    uint32_t offsets[BLOCK];
    unsigned char *at = message + HEADER;
    for (size_t i = 0; i < span.count && !says_nothing(call); i += BLOCK) {
        size_t n = iq_min(span.count - i, BLOCK);
        memcpy(codes, sums + i, n * sizeof(*codes));
        if (k > 1) {
            draw_offsets(call, span.first + i, k, n, offsets);
            merge(offsets, k, n, codes);
        }
        at += write_block(call, (contexts_t){.offsets = k > 1 ? offsets : NULL}, span.first + i, codes, n, at);
    }
    put_header(message, (size_t)(at - message), says_nothing(call) ? KIND_NOTHING : KIND_CODES);
}

static void store(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, int parts, void *message)
{
    (void)codec, (void)parts;
    write_sums(call, span, acc, 1, message);
}

static void finish(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *message)
{
    (void)codec;
    write_sums(call, span, acc, (uint32_t)iq_coded_plan(call).merge, message);
}

static isgq_result_t decode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, void *dst)
{
    int32_t results[BLOCK];
    uint32_t offsets[BLOCK], k = (uint32_t)iq_coded_plan(call).merge;
    reader_t reader = {0};
    (void)codec;
    IQ_TRY(open_message(message, span, says_nothing(call) ? KIND_NOTHING : KIND_CODES, &reader));
    reader.contexts.offsets = k > 1 ? offsets : NULL;
    for (size_t i = 0; i < span.count; i += BLOCK) {
        size_t n = iq_min(span.count - i, BLOCK);
        if (k > 1)
            draw_offsets(call, span.first + i, k, n, offsets);
        if (says_nothing(call))
            memset(results, 0, n * sizeof(*results));
        else
            IQ_TRY(next_block(call, &reader, span.first + i, n, results));
        store_values(call, span, results, offsets, i, n, k, dst);
    }
    return close_message(&reader);
}

static void deliver(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *dst)
{
    int32_t sums[IQ_CODEC_TILE];
    (void)codec;
    for (size_t i = 0; i < span.count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(span.count - i, IQ_CODEC_TILE);
        memcpy(sums, (const iq_u32_any_t *)acc + i, n * sizeof(*sums));
        store_values(call, span, sums, NULL, i, n, 1, dst);
    }
}

const iq_codec_ops_t iq_codec_coded_ops = {
    .name = "coded",
    .varies = true,
    .supports = supports,
    .needs_scales = needs_scales,
    .room_scales = room_scales,
    .shared_scales = shared_scales,
    .scales_unit = scales_unit,
    .scales_op = scales_op,
    .close_scales = iq_coded_close_scales,
    .open_scales = iq_coded_open_scales,
    .local_scales = iq_coded_local_scales,
    .result_is_exact = result_is_exact,
    .acc_bytes = acc_bytes,
    .partial_bytes = partial_bytes,
    .result_bytes = result_bytes,
    .mean_bits = mean_bits,
    .encode = encode,
    .add_own = add_own,
    .add = add,
    .store = store,
    .finish = finish,
    .decode = decode,
    .deliver = deliver,
};
