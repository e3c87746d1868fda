/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Codec `exponential`: the exponential form of Global-QSGD. All values of a bucket are zero or a power of two of its largest
 * magnitude over all ranks, and so are sums of them: two codes become one, at random and right on average
 * (kernels/exponent_math.h). A sum is as wide as a contribution, however many are in it.
 *
 *   partial(k), result: [codes]      not shared (one contribution, which is only moved): [scale of each bucket, f32][codes]
 *
 * Where additions are random their order matters, so each has random bits of its own and belongs to one place in a tree: the
 * accumulator adds contributions two by two, then those sums two by two, and so on, as digits of a binary counter carry. The one
 * that joins contributions up to number m to those behind has the word of rank m. So whoever adds the same contributions in the
 * same order gets the same bits, and a sum of N contributions lies at most ceil(log2 N) powers above them, where a sum made one
 * by one might lie N - 1.
 *
 *   accumulator: [contributions, u16][sum of 2^i contributions: a code, or none] for i = 0, 1, ...
 *
 * As partial(k) a sum travels as one code: rings add one by one.
 */
#include "base/status.h"
#include "base/util.h"
#include "codec/convert.h"
#include "codec/dense.h"
#include "codec/exponential.h"
#include "codec/uniform.h"
#include "kernels/exponent_math.h"

#include <string.h>

/* ---- buckets ---- */

static const iq_f32_any_t *shared_scales(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span)
{
    return call->scales + iq_uniform_scale_at(codec, call, span);
}

/* Where random words are. */
static iq_grid_t place_of(const iq_codec_call_t *call, uint32_t stream, uint32_t rank)
{
    return (iq_grid_t){.seed = call->seed, .call = call->call, .stream = stream, .rank = rank};
}

/* ---- own values to codes ---- */

typedef struct values {
    const iq_codec_t *codec;
    const iq_codec_call_t *call;
    iq_span_t span;
    const void *data;
    isgq_data_type_t datatype;
    uint32_t stream, rank;
} values_t;

static values_t own_values(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src)
{
    return (values_t){codec, call, span, src, call->datatype, IQ_STREAM_OWN, (uint32_t)call->rank};
}

static void measure(const values_t *values, iq_f32_any_t *scales)
{
    float tile[IQ_CODEC_TILE];
    for (size_t i = 0; i < values->span.count; i += IQ_CODEC_TILE) {
        size_t end = iq_min(i + IQ_CODEC_TILE, values->span.count);
        const iq_f32_any_t *from = iq_load_f32(values->datatype, values->data, i, end - i, tile);
        iq_uniform_run_t run = {.offset = i};
        while (iq_uniform_next_run(values->codec, values->span, end, &run)) {
            float most = iq_kernels()->absmax(from + (run.offset - i), run.count);
            scales[run.bucket] = most > scales[run.bucket] ? most : scales[run.bucket];
        }
    }
}

static uint8_t encode_value(const values_t *values, float value, float scale, uint32_t random24)
{
    uint32_t sign = iq_exponential_sign(values->codec), bits = iq_float_bits(value);
    double ratio = (double)iq_bits_float(bits & 0x7fffffffu) / (double)scale;
    uint32_t exponent = iq_exponent_round(ratio, iq_exponential_head(values->codec, values->call), sign, random24);
    return (uint8_t)(exponent == 0 ? 0 : exponent | (bits >> 31) * sign);
}

/* At most a tile. Where the scale is 0 or not finite all codes are 0. */
static void quantize(const values_t *values, const iq_f32_any_t *scales, size_t offset, size_t count, uint8_t *codes)
{
    float tile[IQ_CODEC_TILE];
    uint32_t words[IQ_CODEC_TILE];
    const iq_f32_any_t *from = iq_load_f32(values->datatype, values->data, offset, count, tile);
    iq_grid_t place = place_of(values->call, values->stream, values->rank);
    iq_uniform_run_t run = {.offset = offset};
    iq_kernels()->draw(&place, values->span.first + offset, count, words);
    while (iq_uniform_next_run(values->codec, values->span, offset + count, &run)) {
        size_t at = run.offset - offset;
        float scale = scales[run.bucket];
        if (scale == 0.0f || iq_not_finite(scale)) {
            memset(codes + at, 0, run.count);
            continue;
        }
        for (size_t i = at; i < at + run.count; i++)
            codes[i] = encode_value(values, from[i], scale, words[i] >> 8);
    }
}

static void write_codes(const values_t *values, const iq_f32_any_t *scales, unsigned char *packed)
{
    uint8_t codes[IQ_CODEC_TILE];
    unsigned bits = values->codec->bits;
    for (size_t i = 0; i < values->span.count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(values->span.count - i, IQ_CODEC_TILE);
        quantize(values, scales, i, n, codes);
        iq_kernels()->pack8(codes, n, bits, packed + i / 8 * bits);
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

/* ---- sums ---- */

/* Random words for the additions in a tile of sums, drawn when they are first asked for: a slot's are mostly of one rank. */
typedef struct words {
    const iq_codec_call_t *call;
    uint64_t first; /* element */
    size_t count;
    uint32_t rank[IQ_EXPONENTIAL_SLOTS]; /* UINT32_MAX: not drawn */
    uint32_t word[IQ_EXPONENTIAL_SLOTS][IQ_CODEC_TILE];
} words_t;

static void no_words(words_t *words, const iq_codec_call_t *call, uint64_t first, size_t count)
{
    words->call = call;
    words->first = first;
    words->count = count;
    memset(words->rank, 0xff, sizeof(words->rank));
}

static uint32_t word_of(words_t *words, size_t slot, uint32_t rank, size_t i)
{
    if (words->rank[slot] != rank) {
        iq_grid_t place = place_of(words->call, IQ_STREAM_RESULT, rank);
        words->rank[slot] = rank;
        iq_kernels()->draw(&place, words->first, words->count, words->word[slot]);
    }
    return words->word[slot][i];
}

static size_t acc_size(const iq_codec_call_t *call) { return IQ_EXPONENTIAL_COUNT_BYTES + iq_exponential_slots(call); }

static uint32_t contributions_in(const unsigned char *sum)
{
    uint16_t count;
    memcpy(&count, sum, sizeof(count));
    return count;
}

static void set_contributions(unsigned char *sum, uint32_t count)
{
    uint16_t narrow = (uint16_t)count;
    memcpy(sum, &narrow, sizeof(narrow));
}

/* `code`, of `parts` contributions, into the accumulator of element i of a tile. */
static void add_code(const iq_codec_t *codec, size_t i, uint32_t code, uint32_t parts, words_t *words, unsigned char *sum)
{
    size_t last = iq_exponential_slots(words->call) - 1, slot = iq_min(iq_bit_width(parts) - 1, last);
    unsigned char *slots = sum + IQ_EXPONENTIAL_COUNT_BYTES;
    uint32_t count = contributions_in(sum) + parts, behind = parts;
    while (slots[slot] != iq_exponential_none(codec)) {
        code = iq_exponent_add(slots[slot], code, iq_exponential_sign(codec), word_of(words, slot, count - behind, i));
        slots[slot] = iq_exponential_none(codec);
        behind += 1u << slot;
        slot = iq_min(slot + 1, last);
    }
    slots[slot] = (unsigned char)code;
    set_contributions(sum, count);
}

/* The sum of all slots, the later contributions first. */
static uint32_t total(const iq_codec_t *codec, size_t i, words_t *words, const unsigned char *sum)
{
    const unsigned char *slots = sum + IQ_EXPONENTIAL_COUNT_BYTES;
    size_t slot = 0;
    uint32_t count = contributions_in(sum);
    while (slots[slot] == iq_exponential_none(codec))
        slot++;
    uint32_t code = slots[slot], behind = 1u << slot;
    for (slot++; slot < iq_exponential_slots(words->call); slot++) {
        if (slots[slot] == iq_exponential_none(codec))
            continue;
        code = iq_exponent_add(slots[slot], code, iq_exponential_sign(codec), word_of(words, slot, count - behind, i));
        behind += 1u << slot;
    }
    return code;
}

/* At most a tile. */
static void add_codes(const iq_codec_t *codec, const iq_codec_call_t *call, uint64_t first_element, const uint8_t *codes,
                      size_t count, int parts, unsigned char *acc, bool first)
{
    words_t words;
    size_t size = acc_size(call);
    no_words(&words, call, first_element, count);
    for (size_t i = 0; i < count; i++) {
        if (first) {
            memset(acc + i * size, 0, IQ_EXPONENTIAL_COUNT_BYTES);
            memset(acc + i * size + IQ_EXPONENTIAL_COUNT_BYTES, iq_exponential_none(codec), size - IQ_EXPONENTIAL_COUNT_BYTES);
        }
        add_code(codec, i, codes[i], (uint32_t)parts, &words, acc + i * size);
    }
}

/* At most a tile. */
static void totals(const iq_codec_t *codec, const iq_codec_call_t *call, uint64_t first_element, const unsigned char *acc,
                   size_t count, uint8_t *codes)
{
    words_t words;
    no_words(&words, call, first_element, count);
    for (size_t i = 0; i < count; i++)
        codes[i] = (uint8_t)total(codec, i, &words, acc + i * acc_size(call));
}

/* ---- codes of a message ---- */

static bool is_code(uint32_t code, uint32_t sign, uint32_t least)
{
    uint32_t exponent = code & (sign - 1);
    return exponent == 0 ? code == 0 : exponent >= least;
}

/* At most a tile. `parts` as in partial(parts); 0: a result. */
static isgq_result_t unpack(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const iq_f32_any_t *scales,
                            int parts, const unsigned char *packed, size_t offset, size_t count, uint8_t *codes)
{
    uint32_t sign = iq_exponential_sign(codec), least = iq_exponential_least(codec, call, parts);
    iq_uniform_run_t run = {.offset = offset};
    iq_kernels()->unpack8(packed + offset / 8 * codec->bits, count, codec->bits, codes);
    while (iq_uniform_next_run(codec, span, offset + count, &run)) {
        bool is_empty = scales[run.bucket] == 0.0f || iq_not_finite(scales[run.bucket]);
        for (size_t i = run.offset - offset; i < run.offset - offset + run.count; i++) {
            if (!is_code(codes[i], sign, is_empty ? sign : least))
                return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec exponential: code %u for element %zu in a sum of %d", codes[i],
                               span.first + offset + i, parts == 0 ? call->nranks : parts);
        }
    }
    return ISGQ_SUCCESS;
}

static isgq_result_t check_padding(const iq_codec_t *codec, iq_span_t span, const unsigned char *packed)
{
    if (!iq_packed_is_clean(packed, span.count, codec->bits))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec exponential: bits set after the last code, element %zu",
                       span.first + span.count - 1);
    return ISGQ_SUCCESS;
}

/* Values of at most a tile of codes. */
static void dequantize(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const iq_f32_any_t *scales,
                       size_t offset, size_t count, const uint8_t *codes, void *dst)
{
    float tile[IQ_CODEC_TILE];
    uint32_t sign = iq_exponential_sign(codec);
    double largest_of_one = iq_exponential_largest(codec, call);
    iq_uniform_run_t run = {.offset = offset};
    while (iq_uniform_next_run(codec, span, offset + count, &run)) {
        float scale = scales[run.bucket];
        double largest = (double)scale * largest_of_one;
        for (size_t i = run.offset - offset; i < run.offset - offset + run.count; i++)
            tile[i] = iq_not_finite(scale) ? iq_bits_float(0x7fc00000u) : (float)iq_exponent_value(codes[i], sign, largest);
    }
    iq_store_f32(call->datatype, tile, count, call->accumulate, dst, offset);
}

/* ---- the codec ---- */

isgq_result_t iq_exponential_supports(const iq_codec_t *codec, isgq_data_type_t datatype, isgq_red_op_t op)
{
    (void)codec;
    if (!iq_is_small_float(datatype))
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "quantizer 'global-qsgd-exp' takes f32, f16 and bf16, not %s",
                       iq_datatype_name(datatype));
    if (op != ISGQ_SUM && op != ISGQ_AVG)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "quantizer 'global-qsgd-exp' takes sum and avg, not %s", iq_red_op_name(op));
    return ISGQ_SUCCESS;
}

bool iq_exponential_needs_scales(const iq_codec_t *codec) { return codec->shared; }

static void local_scales(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, float *scales)
{
    values_t values = own_values(codec, call, span, src);
    measure(&values, scales + iq_uniform_scale_at(codec, call, span));
}

/* Another order of the same contributions has another sum. */
bool iq_exponential_result_is_exact(const iq_codec_t *codec, const iq_codec_call_t *call)
{
    (void)codec, (void)call;
    return false;
}

size_t iq_exponential_acc_bytes(const iq_codec_t *codec, const iq_codec_call_t *call)
{
    return codec->shared ? acc_size(call) : sizeof(float);
}

size_t iq_exponential_result_bytes(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span)
{
    (void)call;
    return (codec->shared ? 0 : iq_uniform_codes_at(codec, span)) + iq_packed_bytes(span.count, codec->bits);
}

size_t iq_exponential_partial_bytes(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, int parts)
{
    (void)parts;
    return iq_exponential_result_bytes(codec, call, span);
}

static void encode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *message)
{
    values_t values = own_values(codec, call, span, src);
    if (codec->shared)
        write_codes(&values, shared_scales(codec, call, span), message);
    else
        write_scaled(&values, message);
}

static void add_own(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *acc, bool first)
{
    uint8_t codes[IQ_CODEC_TILE];
    float tile[IQ_CODEC_TILE];
    values_t values = own_values(codec, call, span, src);
    for (size_t i = 0; i < span.count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(span.count - i, IQ_CODEC_TILE);
        if (codec->shared) {
            quantize(&values, shared_scales(codec, call, span), i, n, codes);
            add_codes(codec, call, span.first + i, codes, n, 1, (unsigned char *)acc + i * acc_size(call), first);
        } else { /* the only contribution: finish quantizes it */
            iq_store_f32(ISGQ_FLOAT32, iq_load_f32(call->datatype, src, i, n, tile), n, false, acc, i);
        }
    }
}

/* [scales][codes] */
static isgq_result_t read_scaled(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message,
                                 void *dst)
{
    uint8_t codes[IQ_CODEC_TILE];
    const iq_f32_any_t *scales = message;
    size_t nscales = iq_uniform_buckets(codec, span);
    const unsigned char *packed = (const unsigned char *)(scales + nscales);
    for (size_t i = 0; i < nscales; i++) {
        if (iq_float_bits(scales[i]) > 0x7f800000u)
            return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec exponential: scale %zu of a message is negative or NaN", i);
    }
    for (size_t i = 0; i < span.count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(span.count - i, IQ_CODEC_TILE);
        IQ_TRY(unpack(codec, call, span, scales, 1, packed, i, n, codes));
        dequantize(codec, call, span, scales, i, n, codes, dst);
    }
    return check_padding(codec, span, packed);
}

static isgq_result_t add(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, int parts,
                         void *acc, bool first)
{
    uint8_t codes[IQ_CODEC_TILE];
    iq_codec_call_t as_sum = *call;
    as_sum.datatype = ISGQ_FLOAT32;
    as_sum.accumulate = !first;
    if (!codec->shared)
        return read_scaled(codec, &as_sum, span, message, acc);
    for (size_t i = 0; i < span.count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(span.count - i, IQ_CODEC_TILE);
        IQ_TRY(unpack(codec, call, span, shared_scales(codec, call, span), parts, message, i, n, codes));
        add_codes(codec, call, span.first + i, codes, n, parts, (unsigned char *)acc + i * acc_size(call), first);
    }
    return check_padding(codec, span, message);
}

/* A finished sum, or one on its way. */
static void write_totals(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *message)
{
    uint8_t codes[IQ_CODEC_TILE];
    for (size_t i = 0; i < span.count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(span.count - i, IQ_CODEC_TILE);
        totals(codec, call, span.first + i, (const unsigned char *)acc + i * acc_size(call), n, codes);
        iq_kernels()->pack8(codes, n, codec->bits, (unsigned char *)message + i / 8 * codec->bits);
    }
}

static void write_sums(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, uint32_t stream,
                       void *message)
{
    values_t sum = {codec, call, span, acc, ISGQ_FLOAT32, stream, stream == IQ_STREAM_OWN ? (uint32_t)call->rank : 0};
    if (codec->shared)
        write_totals(codec, call, span, acc, message);
    else
        write_scaled(&sum, message);
}

static void store(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, int parts, void *message)
{
    (void)parts;
    write_sums(codec, call, span, acc, IQ_STREAM_OWN, message);
}

static void finish(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *message)
{
    write_sums(codec, call, span, acc, IQ_STREAM_RESULT, message);
}

static isgq_result_t decode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, void *dst)
{
    uint8_t codes[IQ_CODEC_TILE];
    if (!codec->shared)
        return read_scaled(codec, call, span, message, dst);
    const iq_f32_any_t *scales = shared_scales(codec, call, span);
    for (size_t i = 0; i < span.count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(span.count - i, IQ_CODEC_TILE);
        IQ_TRY(unpack(codec, call, span, scales, 0, message, i, n, codes));
        dequantize(codec, call, span, scales, i, n, codes, dst);
    }
    return check_padding(codec, span, message);
}

static void deliver(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *dst)
{
    uint8_t codes[IQ_CODEC_TILE];
    if (!codec->shared) {
        iq_store_f32(call->datatype, acc, span.count, call->accumulate, dst, 0);
        return;
    }
    for (size_t i = 0; i < span.count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(span.count - i, IQ_CODEC_TILE);
        totals(codec, call, span.first + i, (const unsigned char *)acc + i * acc_size(call), n, codes);
        dequantize(codec, call, span, shared_scales(codec, call, span), i, n, codes, dst);
    }
}

const iq_codec_ops_t iq_codec_exponential_ops = {
    .name = "exponential",
    IQ_CODEC_SHAPE(exponential),
    .local_scales = local_scales,
    .encode = encode,
    .add_own = add_own,
    .add = add,
    .store = store,
    .finish = finish,
    .decode = decode,
    .deliver = deliver,
    .counts_parts = true,
    .most_ranks = iq_exponential_most_ranks,
    .passes_sums = iq_exponential_passes_sums,
};
