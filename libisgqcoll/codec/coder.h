/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Entropy coding of bytes, by zstd. A build without it has the other file, which is never present.
 *
 * Symbols are expected to be independent and unevenly distributed; what zstd finds beyond that is welcome and not needed.
 */
#ifndef ISGQ_CODEC_CODER_H
#define ISGQ_CODEC_CODER_H

#include "isgqcoll.h"

#include <stdbool.h>
#include <stddef.h>

/* Does this build have the coder? */
bool iq_coder_present(void);

/*
 * `count` bytes of `src` to `dst`, which has room for `room`. Returns the bytes written, or 0 if they would be `room` or more, or
 * where there is no coder. The calling thread keeps a working memory between calls. Equal bytes give equal bytes with one version of zstd.
 */
size_t iq_coder_encode(const void *src, size_t count, void *dst, size_t room);

/* The reverse: exactly `count` bytes, or ISGQ_ERR_CORRUPT. The bytes may come from anybody. */
isgq_result_t iq_coder_decode(const void *src, size_t bytes, void *dst, size_t count);

#endif
