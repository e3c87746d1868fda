/* SPDX-License-Identifier: Apache-2.0 */
/* What calls ask of a tensor's identity. */
#ifndef ISGQ_CORE_TENSOR_H
#define ISGQ_CORE_TENSOR_H

#include "isgqcoll.h"

/* A call of `count` elements names this tensor (or NULL): count must be the tensor's own. Counts the call. */
isgq_result_t iq_tensor_use(isgq_tensor_t tensor, size_t count, const char *operation);

#endif
