/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Codec `intsgd`: integers on one grid for all ranks, so small that the sum over all of them is as wide as one: what is added on
 * the way (by a switch, say) never grows.
 *
 *   T = 2^(bits-1) - 1, L = floor(T / N), 2^E the first power of two above all ranks' magnitudes, step = 2^E / L
 *   codes -L..L, so any sum of up to N ranks' codes is in -T..T; it travels as sum + T in `bits` bits
 *
 *   partial(k), result: [sums]                    alone (allgather), with a step of its own for N = 1: [step][codes]
 *
 * The step is a power of two by an integer, not the finest one possible: ranks agree on an exponent. L is rounded down, not the
 * step's inverse, so no code is beyond its share and rounding is unbiased.
 *
 * By history (scale=history, calls that have one) ranks need not agree: step = sqrt(2 N r / d), d elements, r the moving average
 * of |mean of the results|^2 over earlier calls, 9 parts old to 1 part new.
 */
#include "base/status.h"
#include "base/util.h"
#include "codec/convert.h"
#include "codec/dense.h"
#include "codec/intsgd.h"
#include "kernels/share_math.h"

#include <float.h>
#include <math.h>

int iq_intsgd_most_ranks(const iq_codec_t *codec) { return iq_intsgd_top(codec); }

isgq_result_t iq_intsgd_supports(const iq_codec_t *codec, isgq_data_type_t datatype, isgq_red_op_t op)
{
    (void)codec;
    if (!iq_is_small_float(datatype))
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "quantizer '%s' takes f32, f16 and bf16, not %s", "intsgd",
                       iq_datatype_name(datatype));
    if (op != ISGQ_SUM && op != ISGQ_AVG)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "quantizer '%s' takes sum and avg, not %s", "intsgd", iq_red_op_name(op));
    return ISGQ_SUCCESS;
}

/* ---- the step ---- */

bool iq_intsgd_needs_scales(const iq_codec_t *codec) { return codec->shared; }

size_t iq_intsgd_one_scale(const iq_codec_t *codec, size_t count)
{
    (void)codec, (void)count;
    return 1;
}

size_t iq_intsgd_scales_unit(const iq_codec_t *codec)
{
    (void)codec;
    return 1;
}

isgq_red_op_t iq_intsgd_scales_op(const iq_codec_t *codec)
{
    (void)codec;
    return ISGQ_MAX;
}

static float largest(isgq_data_type_t datatype, const void *src, size_t count)
{
    float tile[IQ_CODEC_TILE], most = 0.0f;
    for (size_t i = 0; i < count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(count - i, IQ_CODEC_TILE);
        float found = iq_kernels()->absmax(iq_load_f32(datatype, src, i, n, tile), n);
        most = found > most ? found : most;
    }
    return most;
}

static void local_scales(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, float *scales)
{
    float most = largest(call->datatype, src, span.count);
    (void)codec;
    scales[0] = most > scales[0] ? most : scales[0];
}

static void close_scales(const iq_codec_t *codec, const iq_codec_call_t *call, size_t count, float *scales)
{
    (void)codec, (void)call, (void)count, (void)scales;
}

static void open_scales(const iq_codec_t *codec, const iq_codec_call_t *call, size_t count, float *scales)
{
    (void)count;
    scales[0] = iq_share_step(scales[0], iq_intsgd_share(codec, call));
}

static float limit(const iq_codec_t *codec, const iq_codec_call_t *call, float scale) { return scale * (float)iq_intsgd_share(codec, call); }

/* ---- history: [calls, r, the square of the result that is being learned] ---- */

enum { CALLS_AT, AVERAGE_AT, SQUARE_AT };
#define KEPT 0.9

static bool history_scales(const iq_codec_t *codec, const iq_codec_call_t *call, float *scales)
{
    if (call->history == NULL || call->history[CALLS_AT] == 0.0)
        return false;
    double step = sqrt(2.0 * (double)call->nranks * call->history[AVERAGE_AT] / (double)call->count);
    scales[0] = (float)step;
    return step * iq_intsgd_share(codec, call) <= (double)FLT_MAX && scales[0] >= IQ_SMALLEST_SCALE;
}

static void learn(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *dst, double *history)
{
    float tile[IQ_CODEC_TILE];
    double divisor = call->op == ISGQ_AVG ? 1.0 : (double)call->nranks;
    (void)codec;
    if (span.first == 0)
        history[SQUARE_AT] = 0.0;
    for (size_t i = 0; i < span.count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(span.count - i, IQ_CODEC_TILE);
        const iq_f32_any_t *values = iq_load_f32(call->datatype, dst, i, n, tile);
        for (size_t j = 0; j < n; j++)
            history[SQUARE_AT] += (double)values[j] / divisor * ((double)values[j] / divisor);
    }
    if (span.first + span.count < call->count || !isfinite(history[SQUARE_AT])) /* a result with NaN teaches nothing */
        return;
    double kept = history[CALLS_AT] == 0.0 ? 0.0 : KEPT;
    history[AVERAGE_AT] = kept * history[AVERAGE_AT] + (1.0 - kept) * history[SQUARE_AT];
    history[CALLS_AT] += 1.0;
}

/* ---- values to codes, codes to values; at most a tile ---- */

/* Values of a span, one rank's own or a finished sum. */
typedef struct values {
    const iq_codec_t *codec;
    const iq_codec_call_t *call;
    isgq_data_type_t datatype;
    const void *data;
    uint64_t first; /* number of the first element */
    float step;
    bool is_sum;
} values_t;

/* code + L */
static void quantize(const values_t *values, size_t offset, size_t count, uint8_t *codes)
{
    float tile[IQ_CODEC_TILE];
    int32_t share = iq_intsgd_share(values->codec, values->call);
    bool moves = values->step > 0.0f && !iq_not_finite(values->step);
    iq_grid_t grid = {.inverse = moves ? 1.0f / values->step : 0.0f,
                      .low = -share,
                      .high = share,
                      .stochastic = true,
                      .stream = values->is_sum ? IQ_STREAM_RESULT : IQ_STREAM_OWN,
                      .rank = values->is_sum ? 0 : (uint32_t)values->call->rank,
                      .seed = values->call->seed,
                      .call = values->call->call};
    const iq_f32_any_t *from = iq_load_f32(values->datatype, values->data, offset, count, tile);
    iq_kernels()->quantize(&grid, values->first + offset, from, count, codes);
}

static void write_codes(const values_t *values, size_t count, unsigned char *packed)
{
    uint8_t codes[IQ_CODEC_TILE];
    unsigned bits = values->codec->bits;
    int32_t up = iq_intsgd_top(values->codec) - iq_intsgd_share(values->codec, values->call);
    for (size_t i = 0; i < count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(count - i, IQ_CODEC_TILE);
        quantize(values, i, n, codes);
        for (size_t j = 0; j < n; j++)
            codes[j] = (uint8_t)(codes[j] + up);
        iq_kernels()->pack8(codes, n, bits, packed + i / 8 * bits);
    }
}

/* [step][codes], with the step of these values. */
static void write_alone(values_t values, size_t count, void *message)
{
    if (count == 0)
        return;
    values.step = iq_share_step(largest(values.datatype, values.data, count), iq_intsgd_share(values.codec, values.call));
    *(iq_f32_any_t *)message = values.step;
    write_codes(&values, count, (unsigned char *)message + sizeof(float));
}

/* Sums of codes as values. A step of NaN or Inf makes NaN. */
static void to_values(const int32_t *sums, size_t count, float step, float divisor, float *tile)
{
    float unit = iq_not_finite(step) ? iq_bits_float(0x7fc00000u) : step;
    for (size_t i = 0; i < count; i++)
        tile[i] = (float)sums[i] * unit / divisor;
}

/* Sums of codes of `parts` ranks out of a message. */
static isgq_result_t read_sums(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const unsigned char *packed,
                               size_t offset, size_t count, int parts, int32_t *sums)
{
    uint8_t codes[IQ_CODEC_TILE];
    int32_t top = iq_intsgd_top(codec), most = parts * iq_intsgd_share(codec, call), worst = 0;
    iq_kernels()->unpack8(packed + offset / 8 * codec->bits, count, codec->bits, codes);
    for (size_t i = 0; i < count; i++) {
        sums[i] = (int32_t)codes[i] - top;
        int32_t magnitude = sums[i] < 0 ? -sums[i] : sums[i];
        worst = magnitude > worst ? magnitude : worst;
    }
    if (worst > most)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec intsgd: a sum of %d is beyond %d in elements %zu to %zu", worst, most,
                       span.first + offset, span.first + offset + count - 1);
    return ISGQ_SUCCESS;
}

static isgq_result_t check_padding(const iq_codec_t *codec, iq_span_t span, const unsigned char *packed)
{
    if (!iq_packed_is_clean(packed, span.count, codec->bits))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec intsgd: bits set after the last code, element %zu", span.first + span.count - 1);
    return ISGQ_SUCCESS;
}

/* Sums of `parts` ranks' codes to values of `datatype`. */
static isgq_result_t read_values(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span,
                                 const unsigned char *packed, float step, isgq_data_type_t datatype, bool accumulate, void *dst)
{
    int32_t sums[IQ_CODEC_TILE];
    float tile[IQ_CODEC_TILE], divisor = call->op == ISGQ_AVG ? (float)call->nranks : 1.0f;
    for (size_t i = 0; i < span.count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(span.count - i, IQ_CODEC_TILE);
        IQ_TRY(read_sums(codec, call, span, packed, i, n, call->nranks, sums));
        to_values(sums, n, step, divisor, tile);
        iq_store_f32(datatype, tile, n, accumulate, dst, i);
    }
    return check_padding(codec, span, packed);
}

/* [step][codes] */
static isgq_result_t read_alone(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message,
                                isgq_data_type_t datatype, bool accumulate, void *dst)
{
    if (span.count == 0)
        return ISGQ_SUCCESS;
    float step = *(const iq_f32_any_t *)message;
    if (iq_float_bits(step) > 0x7f800000u)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec intsgd: the step of a message is negative or NaN");
    return read_values(codec, call, span, (const unsigned char *)message + sizeof(float), step, datatype, accumulate, dst);
}

/* ---- the codec ---- */

bool iq_intsgd_result_is_exact(const iq_codec_t *codec, const iq_codec_call_t *call)
{
    (void)call;
    return codec->shared;
}

size_t iq_intsgd_acc_bytes(const iq_codec_t *codec, const iq_codec_call_t *call)
{
    (void)codec, (void)call;
    return 4; /* int32_t sums, or the float of who is alone */
}

size_t iq_intsgd_result_bytes(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span)
{
    (void)call;
    return (codec->shared || span.count == 0 ? 0 : sizeof(float)) + iq_packed_bytes(span.count, codec->bits);
}

size_t iq_intsgd_partial_bytes(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, int parts)
{
    (void)parts;
    return iq_intsgd_result_bytes(codec, call, span);
}

static float shared_step(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span)
{
    return codec->shared && span.count > 0 ? call->scales[0] : 0.0f;
}

static values_t own_values(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src)
{
    return (values_t){codec, call, call->datatype, src, span.first, shared_step(codec, call, span), false};
}

static void encode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *message)
{
    values_t values = own_values(codec, call, span, src);
    if (codec->shared)
        write_codes(&values, span.count, message);
    else
        write_alone(values, span.count, message);
}

static void add_own(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *acc, bool first)
{
    uint8_t codes[IQ_CODEC_TILE];
    float tile[IQ_CODEC_TILE];
    iq_u32_any_t *sums = acc;
    uint32_t share = (uint32_t)iq_intsgd_share(codec, call);
    values_t values = own_values(codec, call, span, src);
    for (size_t i = 0; i < span.count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(span.count - i, IQ_CODEC_TILE);
        if (!codec->shared) { /* finish quantizes it */
            iq_store_f32(ISGQ_FLOAT32, iq_load_f32(call->datatype, src, i, n, tile), n, !first, acc, i);
            continue;
        }
        quantize(&values, i, n, codes);
        for (size_t j = 0; j < n; j++)
            sums[i + j] = (first ? 0 : sums[i + j]) + codes[j] - share;
    }
}

static isgq_result_t add(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, int parts,
                         void *acc, bool first)
{
    int32_t sums[IQ_CODEC_TILE];
    iq_u32_any_t *all = acc;
    if (!codec->shared)
        return read_alone(codec, call, span, message, ISGQ_FLOAT32, !first, acc);
    for (size_t i = 0; i < span.count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(span.count - i, IQ_CODEC_TILE);
        IQ_TRY(read_sums(codec, call, span, message, i, n, parts, sums));
        for (size_t j = 0; j < n; j++)
            all[i + j] = (first ? 0 : all[i + j]) + (uint32_t)sums[j];
    }
    return check_padding(codec, span, message);
}

static void store(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, int parts, void *message)
{
    uint32_t codes[IQ_CODEC_TILE];
    const iq_u32_any_t *sums = acc;
    (void)parts;
    if (!codec->shared) {
        write_alone((values_t){codec, call, ISGQ_FLOAT32, acc, span.first, 0.0f, false}, span.count, message);
        return;
    }
    for (size_t i = 0; i < span.count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(span.count - i, IQ_CODEC_TILE);
        for (size_t j = 0; j < n; j++)
            codes[j] = sums[i + j] + (uint32_t)iq_intsgd_top(codec);
        iq_kernels()->pack32(codes, n, codec->bits, (unsigned char *)message + i / 8 * codec->bits);
    }
}

static void finish(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *message)
{
    if (codec->shared)
        store(codec, call, span, acc, call->nranks, message);
    else
        write_alone((values_t){codec, call, ISGQ_FLOAT32, acc, span.first, 0.0f, true}, span.count, message);
}

static isgq_result_t decode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, void *dst)
{
    if (!codec->shared)
        return read_alone(codec, call, span, message, call->datatype, call->accumulate, dst);
    return read_values(codec, call, span, message, shared_step(codec, call, span), call->datatype, call->accumulate, dst);
}

static void deliver(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *dst)
{
    int32_t sums[IQ_CODEC_TILE];
    float tile[IQ_CODEC_TILE], divisor = call->op == ISGQ_AVG ? (float)call->nranks : 1.0f;
    const iq_u32_any_t *all = acc;
    for (size_t i = 0; i < span.count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(span.count - i, IQ_CODEC_TILE);
        for (size_t j = 0; j < n && codec->shared; j++)
            sums[j] = (int32_t)all[i + j];
        if (codec->shared)
            to_values(sums, n, shared_step(codec, call, span), divisor, tile);
        iq_store_f32(call->datatype, codec->shared ? tile : (const iq_f32_any_t *)acc + i, n, call->accumulate, dst, i);
    }
}

#define ROW \
    .name = "intsgd", IQ_CODEC_SHAPE(intsgd), .most_ranks = iq_intsgd_most_ranks, .room_scales = iq_intsgd_one_scale, \
    .shared_scales = iq_intsgd_one_scale, .scales_unit = iq_intsgd_scales_unit, .scales_op = iq_intsgd_scales_op, \
    .local_scales = local_scales, .close_scales = close_scales, .open_scales = open_scales, .limit = limit, \
    .encode = encode, .add_own = add_own, .add = add, .store = store, .finish = finish, .decode = decode, .deliver = deliver

const iq_codec_ops_t iq_codec_intsgd_ops = {ROW};

const iq_codec_ops_t iq_codec_intsgd_history_ops = {ROW, .history_scales = history_scales, .learn = learn};
