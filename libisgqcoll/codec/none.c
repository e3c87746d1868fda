/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Codec `none`: nothing is lost. Every type travels as it is; half types are summed in f32 and rounded once at the end, so their
 * partial sums travel as f32. Integers wrap modulo 2^n. Floats are summed in the order in which the plan adds them.
 *
 * The arithmetic is one row of functions for each type that accumulators can have.
 */
#include "base/status.h"
#include "base/util.h"
#include "codec/convert.h"
#include "codec/dense.h"
#include "kernels/kernels.h"
#include "kernels/stream.h"

#include <string.h>

/* ---- arithmetic on accumulators ---- */

typedef void (*reduce_fn)(void *acc, const void *src, size_t count);
typedef void (*divide_fn)(const void *src, size_t count, int nranks, void *dst);

typedef struct arithmetic {
    reduce_fn reduce[5]; /* by isgq_red_op_t */
    divide_fn divide;
} arithmetic_t;

#define DEFINE_REDUCE(function, type, expression)                  \
    static void function(void *acc, const void *src, size_t count) \
    {                                                              \
        typedef type any_t IQ_UNALIGNED;                           \
        any_t *sum = acc;                                          \
        const any_t *term = src;                                   \
        for (size_t i = 0; i < count; i++) {                       \
            type a = sum[i], b = term[i];                          \
            sum[i] = (type)(expression);                           \
        }                                                          \
    }

#define DEFINE_DIVIDE(function, type, wide)                                    \
    static void function(const void *src, size_t count, int nranks, void *dst) \
    {                                                                          \
        typedef type any_t IQ_UNALIGNED;                                       \
        const any_t *from = src;                                               \
        any_t *to = dst;                                                       \
        for (size_t i = 0; i < count; i++)                                     \
            to[i] = (type)((wide)from[i] / (wide)nranks);                      \
    }

/* Wrapping arithmetic is the same for both signs; `wide` holds the type and any number of ranks. */
#define DEFINE_INTEGERS(bits, signed_wide, unsigned_wide)     \
    DEFINE_REDUCE(sum_##bits, uint##bits##_t, a + b)          \
    DEFINE_REDUCE(prod_##bits, uint##bits##_t, a *b)          \
    DEFINE_REDUCE(max_i##bits, int##bits##_t, a > b ? a : b)  \
    DEFINE_REDUCE(min_i##bits, int##bits##_t, a < b ? a : b)  \
    DEFINE_REDUCE(max_u##bits, uint##bits##_t, a > b ? a : b) \
    DEFINE_REDUCE(min_u##bits, uint##bits##_t, a < b ? a : b) \
    DEFINE_DIVIDE(divide_i##bits, int##bits##_t, signed_wide) \
    DEFINE_DIVIDE(divide_u##bits, uint##bits##_t, unsigned_wide)

/* Maxima are independent of the order: any NaN gives the one quiet NaN, and +0 is above -0. */
#define DEFINE_FLOATS(name, type, nan, sign)                                                        \
    DEFINE_REDUCE(sum_##name, type, a + b)                                                          \
    DEFINE_REDUCE(prod_##name, type, a *b)                                                          \
    DEFINE_REDUCE(max_##name, type, a != a || b != b ? nan : a > b || (a == b && sign(b)) ? a : b)  \
    DEFINE_REDUCE(min_##name, type, a != a || b != b ? nan : a < b || (a == b && !sign(b)) ? a : b) \
    DEFINE_DIVIDE(divide_##name, type, type)

DEFINE_INTEGERS(8, int, int)
DEFINE_INTEGERS(32, int64_t, int64_t)
DEFINE_INTEGERS(64, int64_t, uint64_t)
DEFINE_FLOATS(f32, float, __builtin_nanf(""), __builtin_signbit)
DEFINE_FLOATS(f64, double, __builtin_nan(""), __builtin_signbit)

#define ARITHMETIC(sum, prod, max, min, divide) \
    {                                           \
        {sum, prod, max, min, sum}, divide      \
    }

static const arithmetic_t arithmetics[] = {
    [ISGQ_INT8] = ARITHMETIC(sum_8, prod_8, max_i8, min_i8, divide_i8),
    [ISGQ_UINT8] = ARITHMETIC(sum_8, prod_8, max_u8, min_u8, divide_u8),
    [ISGQ_INT32] = ARITHMETIC(sum_32, prod_32, max_i32, min_i32, divide_i32),
    [ISGQ_UINT32] = ARITHMETIC(sum_32, prod_32, max_u32, min_u32, divide_u32),
    [ISGQ_INT64] = ARITHMETIC(sum_64, prod_64, max_i64, min_i64, divide_i64),
    [ISGQ_UINT64] = ARITHMETIC(sum_64, prod_64, max_u64, min_u64, divide_u64),
    [ISGQ_FLOAT32] = ARITHMETIC(sum_f32, prod_f32, max_f32, min_f32, divide_f32),
    [ISGQ_FLOAT64] = ARITHMETIC(sum_f64, prod_f64, max_f64, min_f64, divide_f64),
};

/* ---- accumulators ---- */

static bool is_half(const iq_codec_call_t *call) { return call->datatype == ISGQ_FLOAT16 || call->datatype == ISGQ_BFLOAT16; }

isgq_data_type_t iq_none_acc_type(const iq_codec_call_t *call) { return is_half(call) ? ISGQ_FLOAT32 : call->datatype; }

size_t iq_none_acc_bytes(const iq_codec_t *codec, const iq_codec_call_t *call)
{
    (void)codec;
    return iq_datatype_bytes(iq_none_acc_type(call));
}

/* acc op= values of the accumulator's type. */
static void reduce_wide(const iq_codec_call_t *call, const void *src, size_t count, void *acc, bool first)
{
    if (first)
        memcpy(acc, src, count * iq_datatype_bytes(iq_none_acc_type(call)));
    else
        arithmetics[iq_none_acc_type(call)].reduce[call->op](acc, src, count);
}

/* acc op= values of the tensor's type. */
static void reduce_native(const iq_codec_call_t *call, const void *src, size_t count, void *acc, bool first)
{
    float tile[IQ_CODEC_TILE];
    if (!is_half(call)) {
        reduce_wide(call, src, count, acc, first);
        return;
    }
    for (size_t i = 0; i < count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(count - i, IQ_CODEC_TILE);
        iq_load_f32(call->datatype, src, i, n, tile);
        reduce_wide(call, tile, n, (iq_f32_any_t *)acc + i, first);
    }
}

/* Accumulator to the tensor's type, divided by `divisor` ranks. At most a tile of half types, else any count. */
static void narrow(const iq_codec_call_t *call, const void *acc, size_t count, int divisor, void *dst)
{
    float tile[IQ_CODEC_TILE];
    const arithmetic_t *arithmetic = &arithmetics[iq_none_acc_type(call)];
    if (divisor == 1 && !is_half(call)) {
        memcpy(dst, acc, count * iq_datatype_bytes(call->datatype));
    } else if (!is_half(call)) {
        arithmetic->divide(acc, count, divisor, dst);
    } else if (divisor == 1) {
        iq_store_f32(call->datatype, acc, count, false, dst, 0);
    } else {
        arithmetic->divide(acc, count, divisor, tile);
        iq_store_f32(call->datatype, tile, count, false, dst, 0);
    }
}

static void narrow_all(const iq_codec_call_t *call, const void *acc, size_t count, int divisor, void *dst)
{
    size_t from = iq_datatype_bytes(iq_none_acc_type(call)), to = iq_datatype_bytes(call->datatype);
    size_t step = is_half(call) ? IQ_CODEC_TILE : count;
    for (size_t i = 0; i < count; i += step)
        narrow(call, (const unsigned char *)acc + i * from, iq_min(count - i, step), divisor, (unsigned char *)dst + i * to);
}

static int divisor_of(const iq_codec_call_t *call) { return call->op == ISGQ_AVG ? call->nranks : 1; }

/* dst += values, both of the tensor's type. */
static void accumulate_native(const iq_codec_call_t *call, const void *src, size_t count, void *dst)
{
    float tile[IQ_CODEC_TILE];
    if (!is_half(call)) {
        arithmetics[call->datatype].reduce[ISGQ_SUM](dst, src, count);
        return;
    }
    for (size_t i = 0; i < count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(count - i, IQ_CODEC_TILE);
        iq_load_f32(call->datatype, src, i, n, tile);
        iq_store_f32(call->datatype, tile, n, true, dst, i);
    }
}

/* ---- the codec ---- */

isgq_result_t iq_none_supports(const iq_codec_t *codec, isgq_data_type_t datatype, isgq_red_op_t op)
{
    (void)codec;
    if (iq_datatype_bytes(datatype) == 0)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "datatype %d is unknown", (int)datatype);
    if ((unsigned)op > ISGQ_AVG)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "reduction %d is unknown", (int)op);
    return ISGQ_SUCCESS;
}

bool iq_none_needs_scales(const iq_codec_t *codec)
{
    (void)codec;
    return false;
}

static void local_scales(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, float *scales)
{
    (void)codec, (void)call, (void)span, (void)src, (void)scales; /* there are none */
}

bool iq_none_result_is_exact(const iq_codec_t *codec, const iq_codec_call_t *call)
{
    (void)codec, (void)call;
    return true;
}

size_t iq_none_result_bytes(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span)
{
    (void)codec;
    return span.count * iq_datatype_bytes(call->datatype);
}

size_t iq_none_partial_bytes(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, int parts)
{
    return parts == 1 ? iq_none_result_bytes(codec, call, span) : span.count * iq_none_acc_bytes(codec, call);
}

static void encode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *message)
{
    memcpy(message, src, iq_none_result_bytes(codec, call, span));
}

static void add_own(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *acc, bool first)
{
    (void)codec;
    reduce_native(call, src, span.count, acc, first);
}

static isgq_result_t add(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, int parts,
                         void *acc, bool first)
{
    (void)codec;
    if (parts == 1)
        reduce_native(call, message, span.count, acc, first);
    else
        reduce_wide(call, message, span.count, acc, first);
    return ISGQ_SUCCESS;
}

static void store(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, int parts, void *message)
{
    if (parts == 1)
        narrow_all(call, acc, span.count, 1, message);
    else
        memcpy(message, acc, span.count * iq_none_acc_bytes(codec, call));
}

static void finish(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *message)
{
    (void)codec;
    narrow_all(call, acc, span.count, divisor_of(call), message);
}

static isgq_result_t decode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, void *dst)
{
    if (call->accumulate)
        accumulate_native(call, message, span.count, dst);
    else
        memcpy(dst, message, iq_none_result_bytes(codec, call, span));
    return ISGQ_SUCCESS;
}

static void deliver(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *dst)
{
    uint64_t tile[IQ_CODEC_TILE]; /* elements of any type */
    size_t from = iq_none_acc_bytes(codec, call), to = iq_datatype_bytes(call->datatype);
    if (!call->accumulate) {
        narrow_all(call, acc, span.count, divisor_of(call), dst);
        return;
    }
    for (size_t i = 0; i < span.count; i += IQ_CODEC_TILE) {
        size_t n = iq_min(span.count - i, IQ_CODEC_TILE);
        narrow(call, (const unsigned char *)acc + i * from, n, divisor_of(call), tile);
        accumulate_native(call, tile, n, (unsigned char *)dst + i * to);
    }
}

/* ---- all ranks at once ---- */

/* Floats in one pass, straight to the output. Nothing of own input has been overwritten before it is read: output i depends on elements i. */
static void sum_floats(const iq_codec_call_t *call, size_t count, const void *const messages[], const void *src, void *dst,
                       const iq_sum_output_t *output)
{
    const void *terms[IQ_SUM_TERMS];
    for (int rank = 0; rank < call->nranks; rank++)
        terms[rank] = messages[rank] == NULL ? src : messages[rank];
    iq_kernels()->sum(terms, call->nranks, count, (float)divisor_of(call), dst, output);
}

/* All contributions to `count` elements of the span from number `from` on, in rank order. */
static void sum_tile(const iq_codec_call_t *call, size_t from, size_t count, const void *const messages[], const void *src, void *acc)
{
    size_t skipped = from * iq_datatype_bytes(call->datatype);
    for (int rank = 0; rank < call->nranks; rank++)
        reduce_native(call, (const unsigned char *)(messages[rank] == NULL ? src : messages[rank]) + skipped, count, acc, rank == 0);
}

/* Anything else in tiles that stay in the innermost cache. Where the tensor is larger than caches, the output goes past them. */
static void sum(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *const messages[], const void *src,
                const void *ahead, void *dst)
{
    enum { SUM_TILE = 1024 };
    _Alignas(64) uint64_t acc[SUM_TILE], values[SUM_TILE]; /* elements of any type */
    size_t bytes = iq_datatype_bytes(call->datatype);
    iq_sum_output_t output = {.streams = call->count * bytes >= IQ_STREAM_BYTES && !call->accumulate, .ahead = ahead};
    if (call->datatype == ISGQ_FLOAT32 && (call->op == ISGQ_SUM || call->op == ISGQ_AVG) && call->nranks > 1 &&
        call->nranks <= IQ_SUM_TERMS && !call->accumulate) {
        sum_floats(call, span.count, messages, src, dst, &output);
        iq_stream_end();
        return;
    }
    for (size_t i = 0; i < span.count; i += SUM_TILE) {
        size_t n = iq_min(span.count - i, SUM_TILE);
        unsigned char *to = (unsigned char *)dst + i * bytes;
        sum_tile(call, i, n, messages, src, acc);
        narrow_all(call, acc, n, divisor_of(call), values);
        if (output.streams)
            iq_stream(to, values, n * bytes);
        else
            (void)decode(codec, call, (iq_span_t){i, n}, values, to);
    }
    iq_stream_end();
}

const iq_codec_ops_t iq_codec_none_ops = {
    .name = "none",
    IQ_CODEC_SHAPE(none),
    .local_scales = local_scales,
    .encode = encode,
    .add_own = add_own,
    .add = add,
    .store = store,
    .finish = finish,
    .decode = decode,
    .deliver = deliver,
    .sum = sum,
};
