/* SPDX-License-Identifier: Apache-2.0 */
/* Copies past the caches, see stream.h: every x86-64 CPU can. */
#include "kernels/stream.h"

#include <stdint.h>
#include <string.h>

#ifdef __x86_64__

#include <immintrin.h>

/* A prefetch never faults, wherever it looks. */
static inline __attribute__((always_inline)) void copy_lines(void *dst, const void *src, size_t bytes, const char *ahead)
{
    unsigned char *to = dst;
    const unsigned char *from = src;
    size_t head = -(uintptr_t)to % 64, done = head < bytes ? head : bytes;
    memcpy(to, from, done);
    for (; done + 64 <= bytes; done += 64) { /* whole lines: part of one would be read after all */
        if (ahead != NULL)
            _mm_prefetch(ahead + done, _MM_HINT_T0);
        for (size_t i = 0; i < 64; i += 16)
            _mm_stream_si128((__m128i *)(void *)(to + done + i), _mm_loadu_si128((const __m128i *)(const void *)(from + done + i)));
    }
    memcpy(to + done, from + done, bytes - done);
}

void iq_stream(void *dst, const void *src, size_t bytes) { copy_lines(dst, src, bytes, NULL); }

void iq_stream_ahead(void *dst, const void *src, size_t bytes, const void *ahead) { copy_lines(dst, src, bytes, ahead); }

void iq_stream_end(void) { _mm_sfence(); }

#else

void iq_stream(void *dst, const void *src, size_t bytes) { memcpy(dst, src, bytes); }

void iq_stream_ahead(void *dst, const void *src, size_t bytes, const void *ahead)
{
    (void)ahead;
    memcpy(dst, src, bytes);
}

void iq_stream_end(void) {}

#endif
