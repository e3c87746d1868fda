/* SPDX-License-Identifier: Apache-2.0 */
/* The table of dense codecs, and the names of types and reductions. */
#include "codec/codec.h"

#include "base/util.h"
#include "codec/dense.h"

const iq_codec_ops_t *const iq_codecs[] = {&iq_codec_none_ops, &iq_codec_fp16_ops, &iq_codec_bf16_ops, &iq_codec_uniform_ops,
                                           &iq_codec_uniform_norm_ops, &iq_codec_exponential_ops, &iq_codec_intsgd_ops,
                                           &iq_codec_levels_ops, NULL};

const iq_codec_t iq_codec_none = {.ops = &iq_codec_none_ops};

static const struct {
    size_t bytes;
    const char *name;
} datatypes[] = {
    [ISGQ_INT8] = {1, "i8"},     [ISGQ_UINT8] = {1, "u8"},      [ISGQ_INT32] = {4, "i32"},   [ISGQ_UINT32] = {4, "u32"},
    [ISGQ_INT64] = {8, "i64"},   [ISGQ_UINT64] = {8, "u64"},    [ISGQ_FLOAT16] = {2, "f16"}, [ISGQ_FLOAT32] = {4, "f32"},
    [ISGQ_FLOAT64] = {8, "f64"}, [ISGQ_BFLOAT16] = {2, "bf16"},
};

static const char *const red_ops[] = {
    [ISGQ_SUM] = "sum", [ISGQ_PROD] = "prod", [ISGQ_MAX] = "max", [ISGQ_MIN] = "min", [ISGQ_AVG] = "avg",
};

size_t iq_datatype_bytes(isgq_data_type_t datatype)
{
    return (size_t)datatype < IQ_ARRAY_SIZE(datatypes) ? datatypes[datatype].bytes : 0;
}

const char *iq_datatype_name(isgq_data_type_t datatype)
{
    return (size_t)datatype < IQ_ARRAY_SIZE(datatypes) ? datatypes[datatype].name : "unknown";
}

const char *iq_red_op_name(isgq_red_op_t op) { return (size_t)op < IQ_ARRAY_SIZE(red_ops) ? red_ops[op] : "unknown"; }
