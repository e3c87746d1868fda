/* SPDX-License-Identifier: Apache-2.0 */
/* The parser of quantizer texts, for quantizer.c. */
#ifndef ISGQ_CODEC_QUANTIZER_TEXT_H
#define ISGQ_CODEC_QUANTIZER_TEXT_H

#include "codec/quantizer.h"

/* Fractional bits are whole millionths, read and written as integers: texts do not depend on the locale. */
#define IQ_QUANTIZER_MICRO 1000000u

/* Settings of `text` into a zeroed quantizer (all but its canonical text and references). ISGQ_ERR_INVALID_ARGUMENT or, for words
 * of later versions, ISGQ_ERR_UNSUPPORTED. */
isgq_result_t iq_quantizer_parse(const char *text, isgq_quantizer_t quantizer);

#endif
