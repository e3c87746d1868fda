/* SPDX-License-Identifier: Apache-2.0 */
/* Small arithmetic and time helpers that every layer needs. */
#ifndef ISGQ_BASE_UTIL_H
#define ISGQ_BASE_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#define IQ_CACHE_LINE 64
#define IQ_ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))

static inline size_t iq_min(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t iq_max(size_t a, size_t b) { return a > b ? a : b; }

/* `value` rounded up to a multiple of `unit` (any unit above 0). */
static inline size_t iq_align_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }
static inline size_t iq_ceil_div(size_t value, size_t unit) { return value / unit + (value % unit != 0); }

/* *product = a * b; false on overflow. */
static inline bool iq_checked_mul(size_t a, size_t b, size_t *product) { return !__builtin_mul_overflow(a, b, product); }

/* Bits needed to write 0..max. */
static inline unsigned iq_bit_width(uint64_t max) { return max == 0 ? 0 : 64u - (unsigned)__builtin_clzll(max); }

/* Monotonic clock, nanoseconds. */
static inline uint64_t iq_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* FNV-1a over bytes, chained through `hash` (start with IQ_HASH_START). Not for secrets. */
#define IQ_HASH_START 0xcbf29ce484222325ull
static inline uint64_t iq_hash(uint64_t hash, const void *data, size_t bytes)
{
    const unsigned char *p = data;
    for (size_t i = 0; i < bytes; i++)
        hash = (hash ^ p[i]) * 0x100000001b3ull;
    return hash;
}

#endif
