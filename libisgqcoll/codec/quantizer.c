/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Quantizer objects: immutable settings behind a reference count. The canonical text is written from the settings alone, so equal
 * settings cannot have different texts. `isgq` in a dense call means the best setting within its budget for that number of ranks.
 */
#include "codec/quantizer.h"

#include "base/status.h"
#include "base/util.h"
#include "codec/dense.h"
#include "codec/quantizer_text.h"
#include "isgqcoll_ext.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- canonical text ---- */

typedef struct text_part {
    char text[IQ_QUANTIZER_TEXT_BYTES / 2 - 8];
} text_part_t;

/* "4", "2.5" */
static text_part_t bits_text(double bits)
{
    text_part_t part;
    unsigned micro = (unsigned)(bits * IQ_QUANTIZER_MICRO + 0.5);
    int length = snprintf(part.text, sizeof(part.text), "%u.%06u", micro / IQ_QUANTIZER_MICRO, micro % IQ_QUANTIZER_MICRO);
    while (part.text[length - 1] == '0')
        part.text[--length] = '\0';
    if (part.text[length - 1] == '.')
        part.text[length - 1] = '\0';
    return part;
}

static text_part_t isgq_text(double bits)
{
    text_part_t part;
    snprintf(part.text, sizeof(part.text), "isgq:bits=%.16s", bits_text(bits).text);
    return part;
}

static text_part_t codec_text(const iq_codec_t *codec)
{
    text_part_t part;
    char bucket[24] = "tensor";
    if (codec->bucket != 0)
        snprintf(bucket, sizeof(bucket), "%zu", codec->bucket);
    if (codec->ops != &iq_codec_uniform_ops)
        snprintf(part.text, sizeof(part.text), "%s", codec->ops->name);
    else
        snprintf(part.text, sizeof(part.text), "uniform:bits=%u,rounding=%s,scale=%s,bucket=%s%s", codec->bits,
                 codec->rounding == IQ_ROUND_NEAREST ? "nearest" : "stochastic", codec->shared ? "shared" : "local", bucket,
                 !codec->shared      ? ""
                 : codec->exact < 0  ? ",sum=auto"
                 : codec->exact == 0 ? ",sum=requantized"
                                     : ",sum=exact");
    return part;
}

void iq_codec_text(const iq_codec_t *codec, char *text, size_t bytes) { snprintf(text, bytes, "%s", codec_text(codec).text); }

static text_part_t dense_text(const struct isgq_quantizer *quantizer)
{
    return quantizer->isgq ? isgq_text(quantizer->budget_bits) : codec_text(&quantizer->dense);
}

static text_part_t factored_text(const iq_factor_spec_t *spec)
{
    text_part_t part;
    const char *rounding = spec->nearest ? "nearest" : "stochastic";
    if (spec->budget_bits > 0.0)
        snprintf(part.text, sizeof(part.text), "factor:bits=%.16s,rounding=%s", bits_text(spec->budget_bits).text, rounding);
    else
        snprintf(part.text, sizeof(part.text), "factor:width=%u/%u,rounding=%s", spec->width_x, spec->width_delta, rounding);
    return part;
}

/* `isgq` is both halves with one budget. */
static bool is_isgq_whole(const struct isgq_quantizer *quantizer)
{
    return quantizer->isgq && quantizer->has_factored && !quantizer->factored.nearest &&
           quantizer->factored.budget_bits == quantizer->budget_bits;
}

static void write_text(isgq_quantizer_t quantizer)
{
    char *text = quantizer->text;
    size_t room = sizeof(quantizer->text);
    if (is_isgq_whole(quantizer))
        snprintf(text, room, "%s", isgq_text(quantizer->budget_bits).text);
    else if (quantizer->has_dense && quantizer->has_factored)
        snprintf(text, room, "dense=%s;factored=%s", dense_text(quantizer).text, factored_text(&quantizer->factored).text);
    else if (quantizer->has_factored)
        snprintf(text, room, "%s", factored_text(&quantizer->factored).text);
    else
        snprintf(text, room, "%s%s", quantizer->isgq ? "dense=" : "", dense_text(quantizer).text);
}

/* ---- objects ---- */

isgq_result_t isgq_quantizer_create(isgq_quantizer_t *quantizer, const char *text)
{
    if (quantizer == NULL || text == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer create: %s is NULL", quantizer == NULL ? "the handle" : "the text");
    isgq_quantizer_t made = calloc(1, sizeof(*made));
    if (made == NULL)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "quantizer create: %zu bytes", sizeof(*made));
    isgq_result_t result = iq_quantizer_parse(text, made);
    if (result != ISGQ_SUCCESS)
        goto free_made;
    write_text(made);
    made->references = 1;
    *quantizer = made;
    return ISGQ_SUCCESS;

free_made:
    free(made);
    return result;
}

void iq_quantizer_retain(isgq_quantizer_t quantizer) { __atomic_add_fetch(&quantizer->references, 1, __ATOMIC_RELAXED); }

void isgq_quantizer_destroy(isgq_quantizer_t quantizer)
{
    if (quantizer != NULL && __atomic_sub_fetch(&quantizer->references, 1, __ATOMIC_ACQ_REL) == 0)
        free(quantizer);
}

const char *isgqx_quantizer_text(isgq_quantizer_t quantizer) { return quantizer == NULL ? "" : quantizer->text; }

/* ---- settings of a call ---- */

/*
 * Wire bits an element, mean of both phases: the shared scales are agreed on by a maximum over ranks (32 bits a bucket each way),
 * codes go out in `bits` and come back as wide sums or as codes with scales of their own.
 */
static double wire_bits(const iq_codec_t *codec, int nranks)
{
    uint64_t top = codec->bits == 1 ? 1 : (1u << codec->bits) - 2;
    double scale_bits = 32.0 / (double)codec->bucket;
    double back = codec->exact ? iq_bit_width((uint64_t)nranks * top) : codec->bits + scale_bits;
    return scale_bits + (codec->bits + back) / 2;
}

/* Rounding variance of the sum in some unit: step squared, twice if the sum is rounded again to about the same relative step. */
static double expected_error(const iq_codec_t *codec)
{
    double levels = codec->bits == 1 ? 0.5 : (double)((1u << (codec->bits - 1)) - 1);
    return (codec->exact ? 1.0 : 2.0) / (levels * levels);
}

/* Scales come on top of whole code widths: so much above the budget is still within it, or bits=4 could not use 4-bit codes. */
#define SLACK_BITS 0.05

/* Within the budget the smaller error wins; where nothing fits, the fewer bits. */
static bool is_better(const iq_codec_t *a, const iq_codec_t *b, double budget_bits, int nranks)
{
    double most = budget_bits + SLACK_BITS;
    bool a_fits = wire_bits(a, nranks) <= most, b_fits = wire_bits(b, nranks) <= most;
    if (a_fits != b_fits)
        return a_fits;
    return a_fits ? expected_error(a) < expected_error(b) : wire_bits(a, nranks) < wire_bits(b, nranks);
}

static iq_codec_t best_within(double budget_bits, int nranks)
{
    iq_codec_t codec = {.ops = &iq_codec_uniform_ops, .bucket = 1024, .rounding = IQ_ROUND_STOCHASTIC, .shared = true};
    iq_codec_t best = codec;
    best.bits = 1;
    for (codec.bits = 1; codec.bits <= 8; codec.bits++) {
        for (codec.exact = 0; codec.exact <= 1; codec.exact++) {
            if (is_better(&codec, &best, budget_bits, nranks))
                best = codec;
        }
    }
    return best;
}

isgq_result_t iq_quantizer_dense(isgq_quantizer_t quantizer, int nranks, iq_codec_t *codec)
{
    if (!quantizer->has_dense)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED,
                       "quantizer '%s' is for factored calls only; add a dense part: dense=...;factored=...", quantizer->text);
    *codec = quantizer->isgq ? best_within(quantizer->budget_bits, nranks) : quantizer->dense;
    return ISGQ_SUCCESS;
}

void iq_quantizer_product(isgq_quantizer_t quantizer, int nranks, iq_codec_t *codec)
{
    static const iq_codec_t eight_bits = {
        .ops = &iq_codec_uniform_ops, .bits = 8, .bucket = 1024, .rounding = IQ_ROUND_STOCHASTIC, .shared = true, .exact = -1};
    if (is_isgq_whole(quantizer))
        *codec = eight_bits;
    else if (!quantizer->has_dense || iq_quantizer_dense(quantizer, nranks, codec) != ISGQ_SUCCESS)
        *codec = iq_codec_none;
}

isgq_result_t iq_quantizer_factored(isgq_quantizer_t quantizer, iq_factor_spec_t *spec, bool *dense_only)
{
    *dense_only = !quantizer->has_factored;
    *spec = quantizer->factored;
    return ISGQ_SUCCESS;
}

isgq_result_t isgq_quantizer_max_bytes(isgq_quantizer_t quantizer, isgq_data_type_t datatype, size_t count, size_t *bytes)
{
    iq_codec_t codec;
    iq_codec_call_t call = {.datatype = datatype, .op = ISGQ_SUM, .nranks = 1};
    iq_span_t whole = {0, count};
    if (quantizer == NULL || bytes == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer max bytes: %s is NULL",
                       quantizer == NULL ? "the quantizer" : "the result");
    if (iq_datatype_bytes(datatype) == 0)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer max bytes: datatype %d is unknown", (int)datatype);
    if (count > SIZE_MAX / 16)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer max bytes: %zu elements overflow", count);
    IQ_TRY(iq_quantizer_dense(quantizer, 1, &codec)); /* isgq: one rank gets the most bits */
    if (datatype != ISGQ_FLOAT32 && datatype != ISGQ_FLOAT16 && datatype != ISGQ_BFLOAT16)
        codec = iq_codec_none; /* never quantized */
    codec.shared = false;      /* scales of shared ones travel apart, but count */
    iq_span_t across = {codec.bucket > 1 ? codec.bucket - 1 : 0, count}; /* a message may start within a bucket, and touch one more */
    *bytes = iq_max(codec.ops->partial_bytes(&codec, &call, whole, 1), codec.ops->partial_bytes(&codec, &call, across, 1));
    return ISGQ_SUCCESS;
}
