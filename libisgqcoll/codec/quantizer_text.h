/* SPDX-License-Identifier: Apache-2.0 */
/* Texts of quantizers, for quantizer.c: parsing, and the one canonical form that equal settings have. */
#ifndef ISGQ_CODEC_QUANTIZER_TEXT_H
#define ISGQ_CODEC_QUANTIZER_TEXT_H

#include "codec/quantizer.h"

/* Fractions in texts are whole millionths, read and written as integers: texts do not depend on the locale. */
#define IQ_QUANTIZER_MICRO 1000000u

/* Settings of `text` into a zeroed quantizer (all but its canonical text and references). ISGQ_ERR_INVALID_ARGUMENT, or
 * ISGQ_ERR_UNSUPPORTED for what this version or build does not have. */
isgq_result_t iq_quantizer_parse(const char *text, isgq_quantizer_t quantizer);

/* "uniform:bits=4,rounding=...": the family and all its options. Returns the length, as snprintf does. */
int iq_recipe_text(const iq_recipe_t *recipe, char *text, size_t room);

/* A family by its name, with its defaults, or NULL. */
const struct iq_family *iq_family_find(const char *name);
iq_codec_t iq_family_codec(const struct iq_family *family);

#endif
