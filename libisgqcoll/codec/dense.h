/* SPDX-License-Identifier: Apache-2.0 */
/* The rows of iq_codecs and their twins for device memory, for the files of this folder. */
#ifndef ISGQ_CODEC_DENSE_H
#define ISGQ_CODEC_DENSE_H

#include "codec/codec.h"

extern const iq_codec_ops_t iq_codec_none_ops, iq_codec_none_cuda_ops;
extern const iq_codec_ops_t iq_codec_fp16_ops, iq_codec_fp16_cuda_ops;
extern const iq_codec_ops_t iq_codec_bf16_ops, iq_codec_bf16_cuda_ops;
extern const iq_codec_ops_t iq_codec_uniform_ops, iq_codec_uniform_cuda_ops;
extern const iq_codec_ops_t iq_codec_uniform_norm_ops, iq_codec_uniform_norm_cuda_ops; /* whose shared scales are not maxima */
extern const iq_codec_ops_t iq_codec_exponential_ops, iq_codec_exponential_cuda_ops;
extern const iq_codec_ops_t iq_codec_intsgd_ops, iq_codec_intsgd_cuda_ops;
extern const iq_codec_ops_t iq_codec_levels_ops, iq_codec_levels_cuda_ops; /* the latter for all models but some, iq_levels_on_device */

/* For host memory only. */
extern const iq_codec_ops_t iq_codec_coded_ops;
extern const iq_codec_ops_t iq_codec_intsgd_history_ops; /* intsgd whose step follows from earlier results */

/* What a codec's rows have in common: what is supported and how large it is does not depend on where data lies. */
#define IQ_DECLARE_CODEC_SHAPE(codec_name)                                                                                   \
    isgq_result_t iq_##codec_name##_supports(const iq_codec_t *codec, isgq_data_type_t datatype, isgq_red_op_t op);          \
    bool iq_##codec_name##_needs_scales(const iq_codec_t *codec);                                                            \
    bool iq_##codec_name##_result_is_exact(const iq_codec_t *codec, const iq_codec_call_t *call);                            \
    size_t iq_##codec_name##_acc_bytes(const iq_codec_t *codec, const iq_codec_call_t *call);                                \
    size_t iq_##codec_name##_partial_bytes(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, int parts); \
    size_t iq_##codec_name##_result_bytes(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span)

#define IQ_CODEC_SHAPE(codec_name)                                                                  \
    .supports = iq_##codec_name##_supports, .needs_scales = iq_##codec_name##_needs_scales,         \
    .result_is_exact = iq_##codec_name##_result_is_exact, .acc_bytes = iq_##codec_name##_acc_bytes, \
    .partial_bytes = iq_##codec_name##_partial_bytes, .result_bytes = iq_##codec_name##_result_bytes

IQ_DECLARE_CODEC_SHAPE(none);
IQ_DECLARE_CODEC_SHAPE(cast);
IQ_DECLARE_CODEC_SHAPE(uniform);
IQ_DECLARE_CODEC_SHAPE(exponential);
IQ_DECLARE_CODEC_SHAPE(intsgd);
IQ_DECLARE_CODEC_SHAPE(levels);

/* iq_codec_combine of the rows for device memory; 1 <= nparts <= IQ_CUDA_PARTS. */
#define IQ_DECLARE_CODEC_COMBINE(codec_name)                                                                         \
    bool iq_##codec_name##_combine(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, int nparts, \
                                   const void *const messages[], int own, const void *src, void *dst, void *result)

IQ_DECLARE_CODEC_COMBINE(none);
IQ_DECLARE_CODEC_COMBINE(cast);
IQ_DECLARE_CODEC_COMBINE(uniform);
IQ_DECLARE_CODEC_COMBINE(intsgd);

/* Is the model there for device memory, and iq_codec_device_scratch of it. */
bool iq_levels_on_device(const iq_codec_t *codec);
size_t iq_levels_device_scratch(const iq_codec_t *codec, size_t count);

/* The types that sums of codec none have, and that codecs fp16 and bf16 send. */
isgq_data_type_t iq_none_acc_type(const iq_codec_call_t *call);
isgq_data_type_t iq_cast_wire_type(const iq_codec_t *codec);

#endif
