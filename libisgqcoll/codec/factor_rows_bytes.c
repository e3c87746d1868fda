/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decoded rows as bytes, for ranks of one host: how many, the weights, and the codes, without gaps. Nothing is packed, since these bytes
 * never leave the host. They are another process's all the same: what could not have come out of a decoder would make sums that are not exact.
 */
#include "base/status.h"
#include "base/util.h"
#include "codec/factor_whole.h"

#include <string.h>

typedef struct sizes {
    size_t weights, q, p; /* bytes of one row: both weights, and the codes of either factor */
} sizes_t;

static sizes_t sizes_of(const iq_factor_call_t *call)
{
    return (sizes_t){(call->want_bias ? 2 : 1) * sizeof(int64_t), call->m * sizeof(int16_t), call->n * sizeof(int16_t)};
}

static size_t bytes_of(const sizes_t *sizes, size_t count)
{
    return iq_align_up(sizeof(uint64_t) + count * (sizes->weights + sizes->q + sizes->p), sizeof(uint64_t));
}

size_t iq_factor_rows_bytes(const iq_factor_call_t *call)
{
    sizes_t sizes = sizes_of(call);
    if (iq_factor_rows_layout(call, call->max_batch, NULL, NULL) == 0) /* needs as much and more, and looks for overflow */
        return 0;
    return bytes_of(&sizes, call->max_batch);
}

static char *append(char *at, const void *from, size_t bytes)
{
    if (bytes > 0)
        memcpy(at, from, bytes);
    return at + bytes;
}

size_t iq_factor_rows_pack(const iq_factor_call_t *call, const iq_factor_rows_t *rows, void *packed)
{
    sizes_t sizes = sizes_of(call);
    uint64_t count = rows->count;
    char *at = append(packed, &count, sizeof(count));
    at = append(at, rows->weight_c, rows->count * sizeof(int64_t));
    if (call->want_bias)
        at = append(at, rows->weight_b, rows->count * sizeof(int64_t));
    at = append(at, rows->q, rows->count * sizes.q);
    at = append(at, rows->p, rows->count * sizes.p);
    size_t bytes = bytes_of(&sizes, rows->count);
    memset(at, 0, bytes - (size_t)(at - (char *)packed));
    return bytes;
}

/* 0, or (8 + m) * 2^(e - 1). */
static bool is_weight(int64_t weight)
{
    const int64_t most = (int64_t)15 << (IQ_FACTOR_OCTAVES - 1);
    if (weight == 0)
        return true;
    if (weight < 8 || weight > most)
        return false;
    while (weight > 15 && weight % 2 == 0)
        weight /= 2;
    return weight <= 15;
}

static bool weights_are_right(const int64_t *weights, size_t count)
{
    bool right = true;
    for (size_t r = 0; r < count; r++)
        right &= is_weight(weights[r]);
    return right;
}

int32_t iq_factor_most_code(const iq_factor_spec_t *spec, const iq_factor_call_t *call, bool is_x)
{
    unsigned width = spec->width_x == 0 ? IQ_FACTOR_MAX_WIDTH : is_x ? spec->width_x : spec->width_delta;
    int32_t most = spec->method == IQ_FACTOR_ROWS ? iq_factor_levels(width, is_x) : iq_factor_whole_most(spec, call, is_x);
    int32_t fine = (int32_t)1 << call->fraction; /* dither adds less than half a step */
    return most * fine + (fine > 1 ? fine / 2 - 1 : 0);
}

static bool codes_are_right(const int16_t *codes, size_t count, int32_t most)
{
    bool right = true;
    for (size_t i = 0; i < count; i++)
        right &= codes[i] >= -most && codes[i] <= most;
    return right;
}

isgq_result_t iq_factor_rows_open(const iq_factor_spec_t *spec, const iq_factor_call_t *call, void *packed, size_t bytes,
                                  iq_factor_rows_t *rows, size_t *used)
{
    sizes_t sizes = sizes_of(call);
    char *at = packed;
    uint64_t count = 0;
    if (bytes >= sizeof(count))
        memcpy(&count, at, sizeof(count));
    if (bytes < sizeof(count) || count > call->max_batch || bytes_of(&sizes, (size_t)count) > bytes)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "decoded rows: %llu rows in %zu bytes, of a batch of %zu", (unsigned long long)count, bytes,
                       call->max_batch);
    at += sizeof(count);
    *rows = (iq_factor_rows_t){.capacity = (size_t)count, .count = (size_t)count, .weight_c = (int64_t *)(void *)at};
    at += count * sizeof(int64_t);
    if (call->want_bias) {
        rows->weight_b = (int64_t *)(void *)at;
        at += count * sizeof(int64_t);
    }
    rows->q = (int16_t *)(void *)at;
    rows->p = (int16_t *)(void *)(at + count * sizes.q);
    *used = bytes_of(&sizes, (size_t)count);
    if (!weights_are_right(rows->weight_c, rows->count) || (call->want_bias && !weights_are_right(rows->weight_b, rows->count)))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "decoded rows: a weight is not on the grid");
    if (!codes_are_right(rows->q, rows->count * call->m, iq_factor_most_code(spec, call, true)) ||
        !codes_are_right(rows->p, rows->count * call->n, iq_factor_most_code(spec, call, false)))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "decoded rows: a code is larger than this quantizer's");
    return ISGQ_SUCCESS;
}
