/* SPDX-License-Identifier: Apache-2.0 */
/* To be written. */
#include "base/status.h"
#include "codec/dense.h"

static isgq_result_t supports(const iq_codec_t *codec, isgq_data_type_t datatype, isgq_red_op_t op)
{
    (void)datatype, (void)op;
    return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "quantizer '%s' is not part of this version", codec->ops->name);
}

const iq_codec_ops_t iq_codec_coded_ops = {.name = "coded", .supports = supports};
