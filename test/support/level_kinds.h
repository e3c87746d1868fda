/* SPDX-License-Identifier: Apache-2.0 */
/* Models of codec `levels` with settings, for tests that hold for all of them. */
#ifndef ISGQ_TEST_SUPPORT_LEVEL_KINDS_H
#define ISGQ_TEST_SUPPORT_LEVEL_KINDS_H

#include "codec/levels.h"

typedef struct level_kind {
    const char *family;
    unsigned bits; /* 0: the family's */
    iq_norm_t norm;
    size_t bucket;  /* 0: the family's */
    bool is_random; /* messages depend on random numbers */
} level_kind_t;

enum { LEVEL_KINDS = 13 };

extern const level_kind_t level_kinds[LEVEL_KINDS];

iq_codec_t level_kind_codec(int kind);

/* Those that rotate: buckets that are powers of two, and others. */
enum { ROTATED_KINDS = 4 };

iq_codec_t rotated_kind_codec(int kind);

#endif
