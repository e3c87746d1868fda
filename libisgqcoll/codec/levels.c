/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Codec `levels`: see levels.h. What models have in common is here: messages, buckets and the sum in f32.
 *
 *   partial(1), result: [header of each bucket that the span touches][codes, packed as digits.h says]      partial(k): f32
 *
 * A header is made of the part of the bucket that its message carries, so where blocks and chunks are cut inside buckets the cut
 * decides bits. Codes run on from one bucket to the next without a gap. A part with NaN or Inf has a header of all bytes 0xff and
 * codes 0, and decodes to NaN.
 */
#include "codec/levels.h"

#include "base/status.h"
#include "base/util.h"
#include "codec/convert.h"
#include "codec/dense.h"
#include "codec/digits.h"
#include "codec/families.h"

#include <string.h>

/* Room for the codes of one bucket behind those that the last one left. */
enum { CODES_MOST = IQ_LEVELS_BUCKET_MOST + IQ_DIGITS_UNIT_MOST };

size_t iq_levels_header_bytes(const iq_codec_t *codec)
{
    return codec->model->header != NULL ? codec->model->header(codec) : codec->model->header_bytes;
}

iq_digits_t iq_levels_digits(const iq_codec_t *codec) { return iq_digits_of(codec->model->symbols(codec)); }

/* Headers are aligned here, which they are not in messages. */
typedef union header {
    unsigned char bytes[IQ_LEVELS_HEADER_MOST];
    double align;
} header_t;

/* What users call it. */
static const char *name_of(const iq_codec_t *codec)
{
    if (codec->family != NULL)
        return codec->family->name;
    return codec->model != NULL ? codec->model->name : codec->ops->name;
}

/* ---- what models share ---- */

void iq_level_random(const iq_level_draw_t *draw, size_t offset, size_t count, uint32_t *random24)
{
    uint64_t element = draw->first + offset;
    for (size_t i = 0; i < count;) {
        iq_philox_block_t block = iq_draw(draw->seed, draw->call, draw->stream, draw->rank, element + i);
        for (size_t word = (element + i) % 4; word < 4 && i < count; word++, i++)
            random24[i] = block.word[word] >> 8;
    }
}

isgq_result_t iq_level_check(const iq_codec_t *codec, const float *levels, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (iq_not_finite(levels[i]) || (i > 0 && levels[i] < levels[i - 1]))
            return IQ_FAIL(ISGQ_ERR_CORRUPT, "quantizer '%s': level %zu of a message is %g", name_of(codec), i, (double)levels[i]);
    }
    return ISGQ_SUCCESS;
}

/* ---- buckets ---- */

/* A run of a span's elements within one bucket. Start with zeros. */
typedef struct run {
    size_t offset, count; /* elements, from the span's first */
} run_t;

static bool next_run(const iq_codec_t *codec, iq_span_t span, run_t *run)
{
    run->offset += run->count;
    if (run->offset >= span.count)
        return false;
    run->count = iq_min(span.count - run->offset, codec->bucket - (span.first + run->offset) % codec->bucket);
    return true;
}

/* Buckets that a span touches: the headers of its message. */
size_t iq_levels_buckets(const iq_codec_t *codec, iq_span_t span)
{
    return span.count == 0 ? 0 : (span.first + span.count - 1) / codec->bucket - span.first / codec->bucket + 1;
}

static size_t message_bytes(const iq_codec_t *codec, iq_span_t span)
{
    if (span.count == 0)
        return 0;
    iq_digits_t digits = iq_levels_digits(codec);
    return iq_levels_buckets(codec, span) * iq_levels_header_bytes(codec) + iq_digits_bytes(&digits, span.count);
}

/* ---- values of a span: a rank's input, or a finished sum ---- */

typedef struct values {
    const iq_codec_t *codec;
    const iq_codec_call_t *call;
    iq_span_t span;
    const void *data;
    bool is_sum; /* data is the accumulator */
} values_t;

static void load(const values_t *values, size_t offset, size_t count, float *to)
{
    const iq_f32_any_t *sums = values->data;
    if (!values->is_sum) {
        const iq_f32_any_t *from = iq_load_f32(values->call->datatype, values->data, offset, count, to);
        if (from != to)
            memcpy(to, from, count * sizeof(float));
        return;
    }
    float divisor = values->call->op == ISGQ_AVG ? (float)values->call->nranks : 1.0f;
    for (size_t i = 0; i < count; i++)
        to[i] = sums[offset + i] / divisor;
}

/* ---- messages ---- */

/* One run's header and codes. A sum's random numbers do not depend on who owns it. */
static void encode_run(const values_t *values, const run_t *run, header_t *header, uint16_t *codes)
{
    float bucket[IQ_LEVELS_BUCKET_MOST];
    const iq_codec_t *codec = values->codec;
    iq_level_draw_t draw = {
        .seed = values->call->seed,
        .call = values->call->call,
        .stream = values->is_sum ? IQ_STREAM_RESULT : IQ_STREAM_OWN,
        .rank = values->is_sum ? 0 : (uint32_t)values->call->rank,
        .first = values->span.first + run->offset,
    };
    load(values, run->offset, run->count, bucket);
    if (iq_not_finite(iq_kernels()->absmax(bucket, run->count))) {
        memset(header->bytes, 0xff, iq_levels_header_bytes(codec));
        memset(codes, 0, run->count * sizeof(*codes));
    } else {
        codec->model->encode(codec, &draw, bucket, run->count, header->bytes, codes);
    }
}

static void write_message(const values_t *values, void *message)
{
    header_t header;
    uint16_t codes[CODES_MOST];
    const iq_codec_t *codec = values->codec;
    if (values->span.count == 0)
        return;
    iq_digits_t digits = iq_levels_digits(codec);
    size_t each = iq_levels_header_bytes(codec), unit = iq_digits_unit(&digits), held = 0;
    unsigned char *headers = message, *packed = headers + iq_levels_buckets(codec, values->span) * each;
    run_t run = {0};
    while (next_run(codec, values->span, &run)) {
        encode_run(values, &run, &header, codes + held);
        memcpy(headers, header.bytes, each);
        headers += each;
        held += run.count;
        size_t ready = run.offset + run.count == values->span.count ? held : held / unit * unit;
        iq_digits_pack(&digits, codes, ready, packed);
        packed += iq_digits_bytes(&digits, ready);
        held -= ready;
        memmove(codes, codes + ready, held * sizeof(*codes));
    }
}

static bool is_not_finite(const header_t *header, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        if (header->bytes[i] != 0xff)
            return false;
    }
    return true;
}

/* The reverse of encode_run. */
static isgq_result_t decode_run(const iq_codec_t *codec, const iq_level_draw_t *draw, const header_t *header,
                                const uint16_t *codes, size_t count, float *bucket)
{
    if (!is_not_finite(header, iq_levels_header_bytes(codec)))
        return codec->model->decode(codec, draw, header->bytes, codes, count, bucket);
    for (size_t i = 0; i < count; i++) {
        if (codes[i] != 0)
            return IQ_FAIL(ISGQ_ERR_CORRUPT, "quantizer '%s': code %u in a bucket that is not finite", name_of(codec), codes[i]);
        bucket[i] = iq_bits_float(0x7fc00000u); /* the quiet NaN */
    }
    return ISGQ_SUCCESS;
}

/* What the values of a message become. */
typedef struct target {
    isgq_data_type_t datatype;
    bool accumulate;
    void *dst;
} target_t;

static isgq_result_t read_message(const iq_codec_t *codec, const iq_level_draw_t *draw, iq_span_t span, const void *message,
                                  const target_t *target)
{
    header_t header;
    uint16_t codes[CODES_MOST];
    float bucket[IQ_LEVELS_BUCKET_MOST];
    if (span.count == 0)
        return ISGQ_SUCCESS;
    iq_digits_t digits = iq_levels_digits(codec);
    size_t each = iq_levels_header_bytes(codec), unit = iq_digits_unit(&digits), held = 0, left = span.count;
    const unsigned char *headers = message, *packed = headers + iq_levels_buckets(codec, span) * each;
    run_t run = {0};
    while (next_run(codec, span, &run)) {
        iq_level_draw_t place = *draw;
        size_t more = run.count > held ? iq_min(iq_align_up(run.count - held, unit), left) : 0;
        if (!iq_digits_unpack(&digits, packed, more, codes + held))
            return IQ_FAIL(ISGQ_ERR_CORRUPT, "quantizer '%s': bits that are no codes before element %zu", name_of(codec),
                           span.first + span.count - (left - more));
        packed += iq_digits_bytes(&digits, more);
        left -= more;
        held += more;
        memcpy(header.bytes, headers, each);
        headers += each;
        place.first = span.first + run.offset;
        IQ_TRY(decode_run(codec, &place, &header, codes, run.count, bucket));
        iq_store_f32(target->datatype, bucket, run.count, target->accumulate, target->dst, run.offset);
        held -= run.count;
        memmove(codes, codes + run.count, held * sizeof(*codes));
    }
    return ISGQ_SUCCESS;
}

/* ---- the codec ---- */

isgq_result_t iq_levels_supports(const iq_codec_t *codec, isgq_data_type_t datatype, isgq_red_op_t op)
{
    if (!iq_is_small_float(datatype))
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "quantizer '%s' takes f32, f16 and bf16, not %s", name_of(codec),
                       iq_datatype_name(datatype));
    if (op != ISGQ_SUM && op != ISGQ_AVG)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "quantizer '%s' takes sum and avg, not %s", name_of(codec), iq_red_op_name(op));
    return ISGQ_SUCCESS;
}

bool iq_levels_needs_scales(const iq_codec_t *codec)
{
    (void)codec;
    return false;
}

bool iq_levels_result_is_exact(const iq_codec_t *codec, const iq_codec_call_t *call)
{
    (void)codec, (void)call;
    return false;
}

size_t iq_levels_acc_bytes(const iq_codec_t *codec, const iq_codec_call_t *call)
{
    (void)codec, (void)call;
    return sizeof(float);
}

size_t iq_levels_partial_bytes(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, int parts)
{
    (void)call;
    return parts == 1 ? message_bytes(codec, span) : span.count * sizeof(float);
}

size_t iq_levels_result_bytes(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span)
{
    (void)call;
    return message_bytes(codec, span);
}

static void encode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *message)
{
    write_message(&(values_t){codec, call, span, src, false}, message);
}

/* Own values count as the other ranks see them: where every rank adds up all contributions, all must add the same. A contribution
 * that is the only one is left to finish. */
static void add_own(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *acc, bool first)
{
    header_t header;
    uint16_t codes[IQ_LEVELS_BUCKET_MOST];
    float bucket[IQ_LEVELS_BUCKET_MOST];
    values_t values = {codec, call, span, src, false};
    iq_level_draw_t draw = {.seed = call->seed, .call = call->call, .stream = IQ_STREAM_OWN};
    run_t run = {0};
    while (next_run(codec, span, &run)) {
        draw.first = span.first + run.offset;
        if (call->nranks > 1) {
            encode_run(&values, &run, &header, codes);
            isgq_result_t result = decode_run(codec, &draw, &header, codes, run.count, bucket);
            iq_assert(result == ISGQ_SUCCESS);
            (void)result;
        } else {
            load(&values, run.offset, run.count, bucket);
        }
        iq_store_f32(ISGQ_FLOAT32, bucket, run.count, !first, acc, run.offset);
    }
}

static isgq_result_t add(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, int parts,
                         void *acc, bool first)
{
    iq_level_draw_t draw = {.seed = call->seed, .call = call->call, .stream = IQ_STREAM_OWN};
    if (parts == 1)
        return read_message(codec, &draw, span, message, &(target_t){ISGQ_FLOAT32, !first, acc});
    iq_store_f32(ISGQ_FLOAT32, message, span.count, !first, acc, 0);
    return ISGQ_SUCCESS;
}

static void store(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, int parts, void *message)
{
    iq_codec_call_t as_input = *call;
    as_input.datatype = ISGQ_FLOAT32;
    if (parts == 1)
        write_message(&(values_t){codec, &as_input, span, acc, false}, message);
    else
        memcpy(message, acc, span.count * sizeof(float));
}

static void finish(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *message)
{
    write_message(&(values_t){codec, call, span, acc, true}, message);
}

static isgq_result_t decode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, void *dst)
{
    iq_level_draw_t draw = {.seed = call->seed, .call = call->call, .stream = IQ_STREAM_RESULT};
    return read_message(codec, &draw, span, message, &(target_t){call->datatype, call->accumulate, dst});
}

static void deliver(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *dst)
{
    float tile[IQ_CODEC_TILE];
    values_t sum = {codec, call, span, acc, true};
    for (size_t i = 0; i < span.count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(span.count - i, IQ_CODEC_TILE);
        load(&sum, i, n, tile);
        iq_store_f32(call->datatype, tile, n, call->accumulate, dst, i);
    }
}

const iq_codec_ops_t iq_codec_levels_ops = {
    .name = "levels",
    IQ_CODEC_SHAPE(levels),
    .encode = encode,
    .add_own = add_own,
    .add = add,
    .store = store,
    .finish = finish,
    .decode = decode,
    .deliver = deliver,
};
