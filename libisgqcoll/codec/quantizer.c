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

/* `isgq` is both halves with one budget. */
static bool is_isgq_whole(const struct isgq_quantizer *quantizer)
{
    const iq_recipe_t *dense = &quantizer->dense, *factored = &quantizer->factored;
    return quantizer->has_dense && quantizer->has_factored && dense->is_isgq && factored->is_isgq &&
           dense->codec.ops == factored->codec.ops && iq_recipe_insists(dense) == iq_recipe_insists(factored) &&
           dense->factor.svd == factored->factor.svd && dense->codec.budget_bits == factored->codec.budget_bits &&
           dense->codec.budget_nmse == factored->codec.budget_nmse;
}

static void write_text(isgq_quantizer_t quantizer)
{
    char *text = quantizer->text;
    size_t room = sizeof(quantizer->text);
    int used = 0;
    bool both = quantizer->has_dense && quantizer->has_factored;
    if (is_isgq_whole(quantizer)) {
        iq_recipe_text(&quantizer->dense, text, room);
        return;
    }
    if (quantizer->has_dense) {
        used = snprintf(text, room, "%s", both || quantizer->dense.is_isgq ? "dense=" : "");
        used += iq_recipe_text(&quantizer->dense, text + used, room - (size_t)used);
    }
    if (quantizer->has_factored) {
        used += snprintf(text + used, room - (size_t)used, "%s%s", both ? ";" : "",
                         both || quantizer->factored.is_isgq ? "factored=" : "");
        iq_recipe_text(&quantizer->factored, text + used, room - (size_t)used);
    }
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

/* On devices entropy coding is hosts' work: taken where it is asked for, by name or by an error. */
isgq_result_t iq_quantizer_dense(isgq_quantizer_t quantizer, int nranks, bool devices, iq_codec_t *codec)
{
    const iq_recipe_t *recipe = &quantizer->dense;
    bool coded = recipe->codec.ops == &iq_codec_coded_ops && (!devices || recipe->says_coding || recipe->codec.budget_nmse > 0.0);
    if (!quantizer->has_dense)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED,
                       "quantizer '%s' is for factored calls only; add a dense part: dense=...;factored=...", quantizer->text);
    *codec = recipe->codec;
    if (recipe->is_isgq && !coded)
        *codec = best_within(recipe->codec.budget_bits, nranks);
    return ISGQ_SUCCESS;
}

isgq_result_t iq_quantizer_moved(isgq_quantizer_t quantizer, bool devices, iq_codec_t *codec)
{
    const iq_codec_t *asked = &quantizer->dense.codec;
    IQ_TRY(iq_quantizer_dense(quantizer, 1, devices, codec));
    if (codec->ops == &iq_codec_coded_ops)
        *codec = best_within(asked->budget_bits > 0.0 ? asked->budget_bits : 8.0, 1);
    return ISGQ_SUCCESS;
}

/* With so many bits more an element of a product errs about as much as factors within their budget do. */
#define PRODUCT_BITS 4.0

void iq_quantizer_product(isgq_quantizer_t quantizer, int nranks, bool devices, iq_codec_t *codec)
{
    static const iq_codec_t eight_bits = {
        .ops = &iq_codec_uniform_ops, .bits = 8, .bucket = 1024, .rounding = IQ_ROUND_STOCHASTIC, .shared = true, .exact = -1};
    const iq_codec_t *dense = &quantizer->dense.codec;
    if (is_isgq_whole(quantizer) && (devices || dense->ops != &iq_codec_coded_ops)) {
        *codec = eight_bits;
    } else if (is_isgq_whole(quantizer)) {
        *codec = *dense;
        if (dense->budget_bits > 0.0)
            codec->budget_bits = dense->budget_bits + PRODUCT_BITS < 8.0 ? dense->budget_bits + PRODUCT_BITS : 8.0;
    } else if (!quantizer->has_dense || dense->power_rank != 0 || iq_quantizer_dense(quantizer, nranks, devices, codec) != ISGQ_SUCCESS) {
        *codec = iq_codec_none;
    } else if (devices && codec->ops == &iq_codec_coded_ops) { /* a product does not go to the host */
        *codec = dense->budget_bits > 0.0 ? best_within(dense->budget_bits, nranks) : iq_codec_none;
    }
}

isgq_result_t iq_quantizer_factored(isgq_quantizer_t quantizer, bool devices, iq_factor_spec_t *spec, bool *dense_only)
{
    *dense_only = !quantizer->has_factored;
    *spec = quantizer->factored.factor;
    if (*dense_only || !devices || iq_factor_has_device(spec))
        return ISGQ_SUCCESS;
    if (!quantizer->factored.is_isgq || spec->budget_nmse > 0.0 || spec->svd || iq_recipe_insists(&quantizer->factored))
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "quantizer '%s' is for factors in host memory only in this version, and there are ranks on devices",
                       quantizer->text);
    *spec = (iq_factor_spec_t){.budget_bits = spec->budget_bits};
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
    IQ_TRY(iq_quantizer_dense(quantizer, 1, false, &codec)); /* isgq: one rank gets the most bits */
    if (datatype != ISGQ_FLOAT32 && datatype != ISGQ_FLOAT16 && datatype != ISGQ_BFLOAT16)
        codec = iq_codec_none; /* never quantized */
    codec.shared = false;      /* scales of shared ones travel apart, but count */
    iq_span_t across = {codec.bucket > 1 ? codec.bucket - 1 : 0, count}; /* a message may start within a bucket, and touch one more */
    *bytes = iq_max(codec.ops->partial_bytes(&codec, &call, whole, 1), codec.ops->partial_bytes(&codec, &call, across, 1));
    return ISGQ_SUCCESS;
}
