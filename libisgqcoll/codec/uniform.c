/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Codec `uniform`: codes 0..top on a grid between -max and +max of a bucket, value = (2 * code - top) * max / top.
 * With L = 2^(bits-1) - 1 there are 2L + 1 codes, so zero is one of them; a single bit means -max or +max.
 *
 * Shared scales: all ranks agreed on every bucket's max, so codes add up. A sum of k ranks' codes is at most k * top and travels
 * in just the bits for that; the sum of integers is the same whatever the route. Local scales: messages carry their own, sums are
 * f32.
 *
 *   shared:   partial(k) [sums, width of k * top]               exact result: partial(nranks)
 *   local:    partial(1) [scales][codes]  partial(k) [f32]      requantized result: [scales][codes]
 *
 * [scales] has one f32 for each bucket that the span touches. A bucket with NaN or Inf has scale Inf and decodes to NaN.
 *
 * With codec->levels there are so many codes on either side of zero, and three of them take 1.6 bits. What is shared may be
 * another scale than the maximum (uniform_scales.c); values beyond it get the outermost code. Messages that carry scales carry
 * maxima.
 */
#include "codec/uniform.h"

#include "base/status.h"
#include "base/util.h"
#include "codec/convert.h"
#include "codec/dense.h"
#include "codec/digits.h"
#include "codec/families.h"

#include <string.h>

/* Codes that are worked on at once where five share a byte: whole bytes, and within a tile. */
#define TERNARY_TILE 960

/* Above this many ranks widening sums cost more than a second rounding. */
#define EXACT_MAX_RANKS 8

/* ---- scales ---- */

static const iq_f32_any_t *shared_scales(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span)
{
    return call->scales + iq_uniform_scale_at(codec, call, span);
}

static isgq_result_t check_scales(const iq_f32_any_t *scales, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (iq_float_bits(scales[i]) > 0x7f800000u)
            return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec uniform: scale %zu of a message is negative or NaN", i);
    }
    return ISGQ_SUCCESS;
}

/* ---- values of a span: a rank's input, or a finished sum ---- */

typedef struct values {
    const iq_codec_t *codec;
    const iq_codec_call_t *call;
    iq_span_t span;
    const void *data;
    bool is_sum; /* data is the accumulator */
} values_t;

/* The sum of shared codes as values. */
static void load_code_sums(const values_t *values, const iq_u32_any_t *sums, size_t offset, size_t count, float *tile)
{
    const iq_codec_t *codec = values->codec;
    const iq_f32_any_t *scales = shared_scales(codec, values->call, values->span);
    int32_t zero = iq_uniform_zero(codec, values->call->nranks);
    iq_uniform_run_t run = {.offset = offset};
    while (iq_uniform_next_run(codec, values->span, offset + count, &run))
        iq_kernels()->dequantize(sums + (run.offset - offset), run.count, zero,
                                 iq_half_step(iq_uniform_top(codec), scales[run.bucket]), iq_uniform_divisor(values->call),
                                 tile + (run.offset - offset));
}

/* At most a tile, starting at `offset` of the span. */
static const iq_f32_any_t *load(const values_t *values, size_t offset, size_t count, float *tile)
{
    const iq_f32_any_t *sums = values->data;
    if (!values->is_sum)
        return iq_load_f32(values->call->datatype, values->data, offset, count, tile);
    if (values->codec->shared) {
        load_code_sums(values, (const iq_u32_any_t *)values->data + offset, offset, count, tile);
        return tile;
    }
    for (size_t i = 0; i < count; i++)
        tile[i] = sums[offset + i] / iq_uniform_divisor(values->call);
    return tile;
}

/* scales[bucket] = max(what is there, largest magnitude). */
static void measure(const values_t *values, iq_f32_any_t *scales)
{
    float tile[IQ_CODEC_TILE];
    for (size_t i = 0; i < values->span.count; i += IQ_CODEC_TILE) {
        size_t end = iq_min(i + IQ_CODEC_TILE, values->span.count);
        const iq_f32_any_t *from = load(values, i, end - i, tile);
        iq_uniform_run_t run = {.offset = i};
        while (iq_uniform_next_run(values->codec, values->span, end, &run)) {
            float most = iq_kernels()->absmax(from + (run.offset - i), run.count);
            scales[run.bucket] = most > scales[run.bucket] ? most : scales[run.bucket];
        }
    }
}

/* All of a grid but its step. A sum's random bits do not depend on who owns it; stratified ones are drawn for all ranks together. */
static iq_grid_t grid_of(const values_t *values)
{
    const iq_codec_t *codec = values->codec;
    int32_t half = (int32_t)(iq_uniform_top(codec) / 2);
    bool stratified = codec->rounding == IQ_ROUND_STRATIFIED && codec->shared && !values->is_sum;
    iq_grid_t grid = {
        .shift = codec->bits == 1 ? 0.5f : 0.0f,
        .low = -half,
        .high = codec->bits == 1 ? 1 : half,
        .stochastic = codec->rounding != IQ_ROUND_NEAREST,
        .stream = values->is_sum ? IQ_STREAM_RESULT
                  : stratified   ? IQ_STREAM_STRATA
                                 : IQ_STREAM_OWN,
        .rank = values->is_sum || stratified ? 0 : (uint32_t)values->call->rank,
        .seed = values->call->seed,
        .call = values->call->call,
        .strata = stratified ? values->call->strata : NULL,
    };
    return grid;
}

/* Do all buckets of the span begin with a whole byte of codes? Then nothing but the step changes between them. */
static bool is_regular(const iq_codec_t *codec, iq_span_t span)
{
    return codec->bucket == 0 || (codec->bucket % 8 == 0 && span.first % 8 == 0);
}

/* At most a tile, to codes or, of a regular span, to packed codes; the other is NULL. */
static void quantize(const values_t *values, const iq_f32_any_t *scales, size_t offset, size_t count, uint8_t *codes,
                     unsigned char *packed)
{
    float tile[IQ_CODEC_TILE];
    const iq_codec_t *codec = values->codec;
    const iq_f32_any_t *from = load(values, offset, count, tile);
    iq_grid_t grid = grid_of(values);
    iq_uniform_run_t run = {.offset = offset};
    while (iq_uniform_next_run(codec, values->span, offset + count, &run)) {
        size_t first = values->span.first + run.offset, at = run.offset - offset;
        grid.inverse = iq_inverse_step(iq_uniform_top(codec), scales[run.bucket]);
        if (packed != NULL)
            iq_kernels()->encode(&grid, first, from + at, run.count, codec->bits, packed + at / 8 * codec->bits);
        else
            iq_kernels()->quantize(&grid, first, from + at, run.count, codes + at);
    }
}

static size_t tile_of(const iq_codec_t *codec) { return codec->levels == 1 ? TERNARY_TILE : IQ_CODEC_TILE; }

static void write_codes(const values_t *values, const iq_f32_any_t *scales, unsigned char *packed)
{
    uint8_t codes[IQ_CODEC_TILE];
    uint16_t digits[TERNARY_TILE];
    iq_digits_t ternary = iq_digits_of(3);
    const iq_codec_t *codec = values->codec;
    for (size_t i = 0, n; i < values->span.count; i += n) {
        unsigned char *at = packed + iq_uniform_packed_bytes(codec, i, 1);
        n = iq_min(values->span.count - i, tile_of(codec));
        if (codec->levels != 1 && is_regular(codec, values->span)) {
            quantize(values, scales, i, n, NULL, at);
            continue;
        }
        quantize(values, scales, i, n, codes, NULL);
        if (codec->levels != 1) {
            iq_kernels()->pack8(codes, n, codec->bits, at);
            continue;
        }
        for (size_t j = 0; j < n; j++)
            digits[j] = codes[j];
        iq_digits_pack(&ternary, digits, n, at);
    }
}

/* Sums of `parts` ranks' codes. */
static void write_sums(const iq_codec_t *codec, const iq_u32_any_t *sums, size_t count, int parts, unsigned char *packed)
{
    uint16_t digits[TERNARY_TILE];
    iq_digits_t ternary = iq_digits_of(3);
    if (!iq_uniform_is_ternary(codec, parts)) {
        iq_kernels()->pack32(sums, count, iq_uniform_width(codec, parts), packed);
        return;
    }
    for (size_t i = 0; i < count; i += TERNARY_TILE) {
        size_t n = iq_min(count - i, TERNARY_TILE);
        for (size_t j = 0; j < n; j++)
            digits[j] = (uint16_t)sums[i + j];
        iq_digits_pack(&ternary, digits, n, packed + iq_uniform_packed_bytes(codec, i, parts));
    }
}

/* [scales][codes] */
static void write_scaled(const values_t *values, void *message)
{
    iq_f32_any_t *scales = message;
    size_t nscales = iq_uniform_buckets(values->codec, values->span);
    for (size_t i = 0; i < nscales; i++)
        scales[i] = 0.0f;
    measure(values, scales);
    write_codes(values, scales, (unsigned char *)(scales + nscales));
}

/* ---- reading packed codes ---- */

/* Packed sums of `parts` ranks' codes in a message. */
typedef struct packed {
    const iq_codec_t *codec;
    const unsigned char *bytes;
    int parts;
} packed_t;

/* False if five digits are not what a byte says, or there are digits after the last. */
static bool unpack_ternary(const unsigned char *bytes, size_t count, uint32_t *codes)
{
    uint16_t digits[TERNARY_TILE];
    iq_digits_t ternary = iq_digits_of(3);
    bool good = iq_digits_unpack(&ternary, bytes, count, digits);
    for (size_t i = 0; i < count; i++)
        codes[i] = digits[i];
    return good;
}

static isgq_result_t refuse_code(uint32_t found, uint32_t most, size_t first, size_t count)
{
    return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec uniform: code %u above %u in elements %zu to %zu", found, most, first, first + count - 1);
}

/* At most a tile. */
static isgq_result_t unpack(const packed_t *packed, iq_span_t span, size_t offset, size_t count, uint32_t *codes, bool first,
                            void *sums)
{
    const iq_codec_t *codec = packed->codec;
    const unsigned char *at = packed->bytes + iq_uniform_packed_bytes(codec, offset, packed->parts);
    uint32_t most = iq_uniform_most(codec, packed->parts);
    if (!iq_uniform_is_ternary(codec, packed->parts))
        iq_kernels()->unpack32(at, count, iq_uniform_width(codec, packed->parts), codes);
    else if (!unpack_ternary(at, count, codes))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec uniform: a byte is not five of three levels in elements %zu to %zu",
                       span.first + offset, span.first + offset + count - 1);
    uint32_t found = iq_kernels()->add32(codes, count, first, sums);
    if (found > most)
        return refuse_code(found, most, span.first + offset, count);
    return ISGQ_SUCCESS;
}

static isgq_result_t check_padding(const packed_t *packed, iq_span_t span)
{
    if (!iq_uniform_is_ternary(packed->codec, packed->parts) &&
        !iq_packed_is_clean(packed->bytes, span.count, iq_uniform_width(packed->codec, packed->parts)))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec uniform: bits set after the last code, element %zu", span.first + span.count - 1);
    return ISGQ_SUCCESS;
}

/* What the values of codes become. */
typedef struct target {
    isgq_data_type_t datatype;
    bool accumulate;
    void *dst;
} target_t;

/* Sums of codes of a regular span, of at most 8 bits, straight to f32. */
static isgq_result_t decode_runs(const packed_t *packed, iq_span_t span, const iq_f32_any_t *scales, float divisor,
                                 const target_t *target)
{
    const iq_codec_t *codec = packed->codec;
    unsigned width = iq_uniform_width(codec, packed->parts);
    uint32_t most = iq_uniform_most(codec, packed->parts);
    iq_uniform_run_t run = {0};
    while (iq_uniform_next_run(codec, span, span.count, &run)) {
        uint32_t found = iq_kernels()->decode(packed->bytes + run.offset / 8 * width, run.count, width,
                                              iq_uniform_zero(codec, packed->parts),
                                              iq_half_step(iq_uniform_top(codec), scales[run.bucket]), divisor, target->accumulate,
                                              (iq_f32_any_t *)target->dst + run.offset);
        if (found > most)
            return refuse_code(found, most, span.first + run.offset, run.count);
    }
    return check_padding(packed, span);
}

/* Sums of codes to values. */
static isgq_result_t read_codes(const packed_t *packed, iq_span_t span, const iq_f32_any_t *scales, float divisor,
                                const target_t *target)
{
    uint32_t codes[IQ_CODEC_TILE];
    float tile[IQ_CODEC_TILE];
    const iq_codec_t *codec = packed->codec;
    int32_t zero = iq_uniform_zero(codec, packed->parts);
    if (target->datatype == ISGQ_FLOAT32 && is_regular(codec, span) && !iq_uniform_is_ternary(codec, packed->parts) &&
        iq_uniform_width(codec, packed->parts) <= 8)
        return decode_runs(packed, span, scales, divisor, target);
    for (size_t i = 0; i < span.count; i += tile_of(codec)) {
        size_t end = iq_min(i + tile_of(codec), span.count);
        iq_uniform_run_t run = {.offset = i};
        IQ_TRY(unpack(packed, span, i, end - i, codes, true, codes));
        while (iq_uniform_next_run(codec, span, end, &run))
            iq_kernels()->dequantize(codes + (run.offset - i), run.count, zero,
                                     iq_half_step(iq_uniform_top(codec), scales[run.bucket]), divisor, tile + (run.offset - i));
        iq_store_f32(target->datatype, tile, end - i, target->accumulate, target->dst, i);
    }
    return check_padding(packed, span);
}

/* [scales][codes] */
static isgq_result_t read_scaled(const iq_codec_t *codec, iq_span_t span, const void *message, const target_t *target)
{
    const iq_f32_any_t *scales = message;
    size_t nscales = iq_uniform_buckets(codec, span);
    packed_t packed = {codec, (const unsigned char *)(scales + nscales), 1};
    IQ_TRY(check_scales(scales, nscales));
    return read_codes(&packed, span, scales, 1.0f, target);
}

/* ---- the codec ---- */

isgq_result_t iq_uniform_supports(const iq_codec_t *codec, isgq_data_type_t datatype, isgq_red_op_t op)
{
    const char *name = codec->family == NULL ? codec->ops->name : codec->family->name;
    if (!iq_is_small_float(datatype))
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "quantizer '%s' takes f32, f16 and bf16, not %s", name, iq_datatype_name(datatype));
    if (op != ISGQ_SUM && op != ISGQ_AVG)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "quantizer '%s' takes sum and avg, not %s", name, iq_red_op_name(op));
    return ISGQ_SUCCESS;
}

bool iq_uniform_needs_scales(const iq_codec_t *codec) { return codec->shared; }

static void local_scales(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, float *scales)
{
    values_t values = {codec, call, span, src, false};
    measure(&values, scales + iq_uniform_scale_at(codec, call, span));
}

size_t iq_uniform_acc_bytes(const iq_codec_t *codec, const iq_codec_call_t *call)
{
    (void)codec, (void)call;
    return 4; /* uint32_t sums of codes, or float */
}

static size_t scaled_bytes(const iq_codec_t *codec, iq_span_t span)
{
    return iq_uniform_codes_at(codec, span) + iq_uniform_packed_bytes(codec, span.count, 1);
}

bool iq_uniform_result_is_exact(const iq_codec_t *codec, const iq_codec_call_t *call)
{
    return codec->shared && (codec->exact < 0 ? call->nranks <= EXACT_MAX_RANKS : codec->exact > 0);
}

size_t iq_uniform_partial_bytes(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, int parts)
{
    (void)call;
    if (codec->shared)
        return iq_uniform_packed_bytes(codec, span.count, parts);
    return parts == 1 ? scaled_bytes(codec, span) : span.count * sizeof(float);
}

size_t iq_uniform_result_bytes(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span)
{
    return iq_uniform_result_is_exact(codec, call) ? iq_uniform_partial_bytes(codec, call, span, call->nranks)
                                                   : scaled_bytes(codec, span);
}

static void encode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *message)
{
    values_t values = {codec, call, span, src, false};
    if (codec->shared)
        write_codes(&values, shared_scales(codec, call, span), message);
    else
        write_scaled(&values, message);
}

/* Own values are quantized as the other ranks see them: where every rank adds up all contributions, all must add the same. */
static void add_own_local(const values_t *values, iq_f32_any_t *sums, bool first)
{
    uint8_t codes[IQ_CODEC_TILE];
    uint32_t wide[IQ_CODEC_TILE];
    float tile[IQ_CODEC_TILE];
    const iq_codec_t *codec = values->codec;
    size_t element_bytes = iq_datatype_bytes(values->call->datatype);
    iq_uniform_run_t run = {0};
    while (iq_uniform_next_run(codec, values->span, values->span.count, &run)) {
        values_t part = *values;
        float scale = 0.0f;
        part.span = (iq_span_t){values->span.first + run.offset, run.count};
        part.data = (const unsigned char *)values->data + run.offset * element_bytes;
        measure(&part, &scale);
        for (size_t i = 0; i < run.count; i += IQ_CODEC_TILE) {
            size_t n = iq_min(run.count - i, IQ_CODEC_TILE);
            quantize(&part, &scale, i, n, codes, NULL);
            iq_kernels()->add8(codes, n, true, wide);
            iq_kernels()->dequantize(wide, n, (int32_t)iq_uniform_top(codec), iq_half_step(iq_uniform_top(codec), scale), 1.0f,
                                     tile);
            iq_store_f32(ISGQ_FLOAT32, tile, n, !first, sums, run.offset + i);
        }
    }
}

static void add_own(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *acc, bool first)
{
    uint8_t codes[IQ_CODEC_TILE];
    float tile[IQ_CODEC_TILE];
    values_t values = {codec, call, span, src, false};
    if (!codec->shared && call->nranks > 1) {
        add_own_local(&values, acc, first);
        return;
    }
    for (size_t i = 0; i < span.count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(span.count - i, IQ_CODEC_TILE);
        if (codec->shared) {
            quantize(&values, shared_scales(codec, call, span), i, n, codes, NULL);
            iq_kernels()->add8(codes, n, first, (iq_u32_any_t *)acc + i);
        } else { /* the only contribution: finish quantizes it */
            iq_store_f32(ISGQ_FLOAT32, load(&values, i, n, tile), n, !first, acc, i);
        }
    }
}

static isgq_result_t add_shared(const iq_codec_t *codec, iq_span_t span, const void *message, int parts, void *acc, bool first)
{
    uint32_t codes[IQ_CODEC_TILE];
    packed_t packed = {codec, message, parts};
    for (size_t i = 0; i < span.count; i += tile_of(codec))
        IQ_TRY(unpack(&packed, span, i, iq_min(span.count - i, tile_of(codec)), codes, first, (iq_u32_any_t *)acc + i));
    return check_padding(&packed, span);
}

static isgq_result_t add(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, int parts,
                         void *acc, bool first)
{
    target_t sums = {ISGQ_FLOAT32, !first, acc};
    (void)call;
    if (codec->shared)
        return add_shared(codec, span, message, parts, acc, first);
    if (parts == 1)
        return read_scaled(codec, span, message, &sums);
    iq_store_f32(ISGQ_FLOAT32, message, span.count, !first, acc, 0);
    return ISGQ_SUCCESS;
}

static void store(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, int parts, void *message)
{
    values_t one = {codec, call, span, acc, false};
    iq_codec_call_t as_input = *call;
    as_input.datatype = ISGQ_FLOAT32;
    one.call = &as_input;
    if (codec->shared)
        write_sums(codec, acc, span.count, parts, message);
    else if (parts == 1)
        write_scaled(&one, message);
    else
        memcpy(message, acc, span.count * sizeof(float));
}

static void finish(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *message)
{
    values_t sum = {codec, call, span, acc, true};
    if (iq_uniform_result_is_exact(codec, call))
        store(codec, call, span, acc, call->nranks, message);
    else
        write_scaled(&sum, message);
}

static isgq_result_t decode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, void *dst)
{
    target_t output = {call->datatype, call->accumulate, dst};
    packed_t sums = {codec, message, call->nranks};
    if (!iq_uniform_result_is_exact(codec, call))
        return read_scaled(codec, span, message, &output);
    return read_codes(&sums, span, shared_scales(codec, call, span), iq_uniform_divisor(call), &output);
}

static void deliver(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *dst)
{
    float tile[IQ_CODEC_TILE];
    values_t sum = {codec, call, span, acc, true};
    for (size_t i = 0; i < span.count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(span.count - i, IQ_CODEC_TILE);
        iq_store_f32(call->datatype, load(&sum, i, n, tile), n, call->accumulate, dst, i);
    }
}

#define HOST_ROW                                                                                                  \
    .name = "uniform", IQ_CODEC_SHAPE(uniform), .encode = encode, .add_own = add_own, .add = add, .store = store, \
    .finish = finish, .decode = decode, .deliver = deliver

const iq_codec_ops_t iq_codec_uniform_ops = {HOST_ROW, .local_scales = local_scales};

const iq_codec_ops_t iq_codec_uniform_norm_ops = {
    HOST_ROW,
    .room_scales = iq_uniform_room_scales,
    .shared_scales = iq_uniform_shared_scales,
    .scales_unit = iq_uniform_scales_unit,
    .scales_op = iq_uniform_scales_op,
    .local_scales = iq_uniform_norm_scales,
    .close_scales = iq_uniform_close_scales,
    .open_scales = iq_uniform_open_scales,
};
