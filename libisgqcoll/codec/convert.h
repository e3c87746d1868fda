/* SPDX-License-Identifier: Apache-2.0 */
/* Between the tensor's element type and the f32 that codecs compute in, a tile at a time. */
#ifndef ISGQ_CODEC_CONVERT_H
#define ISGQ_CODEC_CONVERT_H

#include "isgqcoll.h"
#include "kernels/kernels.h"

#include <stdbool.h>
#include <stddef.h>

/* Elements that codecs work on at once: small enough for the stack and the first-level cache; a multiple of 8, so packed codes of
 * a tile are whole bytes. */
#define IQ_CODEC_TILE 1024

/* FLOAT32, FLOAT16 or BFLOAT16? */
bool iq_is_small_float(isgq_data_type_t datatype);

/* Elements offset..offset+count-1 of src (FLOAT32, FLOAT16, BFLOAT16) as f32: src itself if it is f32, else `tile`, filled. */
const iq_f32_any_t *iq_load_f32(isgq_data_type_t datatype, const void *src, size_t offset, size_t count, float *tile);

/* The inverse. Values are rounded to the type first; `accumulate` then adds in that type. */
void iq_store_f32(isgq_data_type_t datatype, const iq_f32_any_t *values, size_t count, bool accumulate, void *dst, size_t offset);

#endif
