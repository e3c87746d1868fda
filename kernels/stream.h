/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Copies past the caches, for what nobody reads soon: a line is written without being read first. Where a CPU has no such stores they are
 * plain copies.
 */
#ifndef ISGQ_KERNELS_STREAM_H
#define ISGQ_KERNELS_STREAM_H

#include <stddef.h>

/* Tensors from this size on are no longer in the caches when the caller looks at them. */
#define IQ_STREAM_BYTES ((size_t)8 << 20)

void iq_stream(void *dst, const void *src, size_t bytes);

/* The same, and as many bytes at `ahead` that will be read soon are fetched meanwhile: what is written waits for memory, and so does what is read. */
void iq_stream_ahead(void *dst, const void *src, size_t bytes, const void *ahead);

/* Before anybody else is told that what was copied is there. */
void iq_stream_end(void);

#endif
