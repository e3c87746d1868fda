/* SPDX-License-Identifier: Apache-2.0 */
/* The rows of iq_codecs, for the files of this folder. */
#ifndef ISGQ_CODEC_DENSE_H
#define ISGQ_CODEC_DENSE_H

#include "codec/codec.h"

extern const iq_codec_ops_t iq_codec_none_ops;
extern const iq_codec_ops_t iq_codec_fp16_ops;
extern const iq_codec_ops_t iq_codec_bf16_ops;
extern const iq_codec_ops_t iq_codec_uniform_ops;

#endif
