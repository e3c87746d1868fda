/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Quantizers: the text form that users write, parsed once into immutable settings for each kind of call.
 *
 * Grammar and meaning: docs/numerics.md. `isgq` stands for a default that may depend on the number of ranks and on where they work, so
 * the settings are asked for per call shape.
 */
#ifndef ISGQ_CODEC_QUANTIZER_H
#define ISGQ_CODEC_QUANTIZER_H

#include "codec/codec.h"
#include "codec/factor.h"

#define IQ_QUANTIZER_TEXT_BYTES 256

/* What one recipe of a text says. */
typedef struct iq_recipe {
    const struct iq_family *family;
    bool is_isgq;            /* settings follow from the budget */
    bool says_coding;        /* isgq: the text names a coding, so the build's default does not count */
    iq_codec_t codec;        /* of dense calls; codec.ops is NULL if the family is for factors only */
    iq_factor_spec_t factor; /* of factored calls, where the family has them */
} iq_recipe_t;

/* isgq with a budget of bits whose text asks for the coder itself: on devices too, where it is hosts' work. */
static inline bool iq_recipe_insists(const iq_recipe_t *recipe)
{
    return recipe->is_isgq && recipe->says_coding && recipe->factor.coded && recipe->codec.budget_nmse == 0.0;
}

struct isgq_quantizer {
    unsigned references; /* atomic */
    char text[IQ_QUANTIZER_TEXT_BYTES]; /* canonical form: equal settings, equal text */
    bool has_dense, has_factored;
    iq_recipe_t dense, factored;
};

void iq_quantizer_retain(isgq_quantizer_t quantizer);

/* Settings of a dense call. `devices`: some rank works on device memory, where fewer codecs are. ISGQ_ERR_UNSUPPORTED with a sentence if
 * the quantizer is for factors only. */
isgq_result_t iq_quantizer_dense(isgq_quantizer_t quantizer, int nranks, bool devices, iq_codec_t *codec);

/* The same for a call that moves values and sums nothing: `isgq` is uniform codes within its budget there. */
isgq_result_t iq_quantizer_moved(isgq_quantizer_t quantizer, bool devices, iq_codec_t *codec);

/* What a factored call does with the product where factors would be more bytes: the dense half if the user named one; for `isgq`, whose budget
 * counts factor elements, dense `isgq` with four bits more, which errs about as its factors do (`coding=none`: 8-bit codes; `nmse`: the same
 * error); otherwise nothing is lost. */
void iq_quantizer_product(isgq_quantizer_t quantizer, int nranks, bool devices, iq_codec_t *codec);

/* A codec's settings as a quantizer's text: "fp16", "uniform:bits=4,...". */
void iq_codec_text(const iq_codec_t *codec, char *text, size_t bytes);

/* Settings of a factored call; *dense_only is set for quantizers without a factored form (the call then quantizes the product). */
isgq_result_t iq_quantizer_factored(isgq_quantizer_t quantizer, bool devices, iq_factor_spec_t *spec, bool *dense_only);

#endif
