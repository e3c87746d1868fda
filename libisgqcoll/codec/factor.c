/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sizes and layouts of the factored codec, and conversion of element types.
 *
 * Every size here depends only on what all ranks know (max_batch, never batch): ranks agree on them without asking.
 */
#include "base/util.h"
#include "codec/factor_internal.h"
#include "codec/factor_whole.h"
#include "kernels/factor_dither.h"
#include "kernels/kernels.h"

#include <string.h>

/* A budget never asks for less than this: below it the headers alone would leave no room for any row. */
#define LEAST_BUDGET_BYTES 32

/* Element numbers within a factor have 42 bits in the random counter. */
#define MAX_ELEMENTS ((size_t)1 << 42)

static bool widths_are_legal(const iq_factor_spec_t *spec)
{
    if (spec->method == IQ_FACTOR_MSE || spec->method == IQ_FACTOR_MVU)
        return spec->levels == 2 || spec->levels == 4 || spec->levels == 8;
    if (spec->budget_nmse > 0)
        return spec->budget_nmse <= 1;
    if (spec->budget_bits != 0)
        return spec->budget_bits >= 0x1p-10 && spec->budget_bits <= 64;
    return spec->width_x >= IQ_FACTOR_MIN_WIDTH && spec->width_x <= IQ_FACTOR_MAX_WIDTH &&
           spec->width_delta >= IQ_FACTOR_MIN_WIDTH && spec->width_delta <= IQ_FACTOR_MAX_WIDTH;
}

/* Are all sums below 2^53? */
static bool sums_are_exact(const iq_factor_spec_t *spec, const iq_factor_call_t *call)
{
    if (spec->method != IQ_FACTOR_ROWS)
        return iq_factor_whole_most(spec, call, true) > 0;
    return !spec->dither || iq_dither_bits((uint64_t)call->nranks * call->max_batch) >= 0;
}

uint32_t iq_factor_fraction(const iq_factor_spec_t *spec, const iq_factor_call_t *call)
{
    int32_t bits = iq_dither_bits((uint64_t)call->nranks * call->max_batch);
    return (spec->dither || spec->method == IQ_FACTOR_DITHERED) && bits >= 0 ? (uint32_t)bits + 1 : 0;
}

static bool shape_is_legal(const iq_factor_call_t *call)
{
    size_t rows, elements, outputs;
    return call->nranks > 0 && iq_checked_mul((size_t)call->nranks, call->max_batch, &rows) && rows <= IQ_FACTOR_MAX_ROWS &&
           call->m < MAX_ELEMENTS && call->n < MAX_ELEMENTS &&
           iq_checked_mul(call->max_batch, iq_max(call->m, call->n), &elements) && elements <= MAX_ELEMENTS &&
           iq_checked_mul(call->m, call->n, &outputs) && outputs <= SIZE_MAX / 16;
}

size_t iq_factor_most_rows(const iq_factor_spec_t *spec, size_t batch, bool want_bias)
{
    return batch + (spec->svd && want_bias && batch > 0);
}

size_t iq_factor_budget(const iq_factor_spec_t *spec, const iq_factor_call_t *call, size_t batch)
{
    double bytes = spec->budget_bits * (double)batch * ((double)call->m + (double)call->n) / 8;
    return (bytes < LEAST_BUDGET_BYTES ? LEAST_BUDGET_BYTES : (size_t)bytes) - IQ_FACTOR_HEADER_BYTES;
}

/* A largest row. In version 2 zero planes come on top of codes. */
static size_t row_bytes(const iq_factor_spec_t *spec, const iq_factor_call_t *call)
{
    bool fixed = spec->width_x != 0, fine = iq_factor_is_fine(spec);
    return iq_factor_row_header(call->want_bias) + iq_packed_bytes(call->m, fixed ? spec->width_x : IQ_FACTOR_MAX_WIDTH) +
           iq_packed_bytes(call->n, fixed ? spec->width_delta : IQ_FACTOR_MAX_WIDTH) +
           (fine ? iq_packed_bytes(call->m, 1) + iq_packed_bytes(call->n, 1) : 0);
}

/* Budget mode: rows are sampled in the order of their bytes, so a sample exceeds its mean by less than the largest row. (Points
 * u, u+1, ... on a line of probabilities meet a growing function f: all but the last are below f's mean over the unit to their
 * right.) */
size_t iq_factor_blob_bytes(const iq_factor_spec_t *spec, const iq_factor_call_t *call)
{
    if (!widths_are_legal(spec) || !shape_is_legal(call) || !sums_are_exact(spec, call))
        return 0;
    if (spec->method != IQ_FACTOR_ROWS)
        return iq_factor_whole_bytes(spec, call);
    size_t row = row_bytes(spec, call), all = call->max_batch * row, share = spec->coded ? IQ_FACTOR_PACKED_SHARE : 1;
    if (spec->budget_bits == 0)
        return IQ_FACTOR_HEADER_BYTES + all;
    return IQ_FACTOR_HEADER_BYTES + iq_min(all, share * iq_factor_budget(spec, call, call->max_batch) + row);
}

/* Coded ones meet their budget, but a blob may be longer; what an error will take is not known before. */
size_t iq_factor_mean_bytes(const iq_factor_spec_t *spec, const iq_factor_call_t *call)
{
    iq_factor_spec_t half = {.budget_bits = IQ_FACTOR_MAX_WIDTH / 2};
    size_t most = iq_factor_blob_bytes(spec, call);
    if (spec->budget_nmse > 0)
        return iq_min(most, iq_factor_budget(&half, call, call->max_batch));
    return spec->coded && spec->budget_bits != 0 ? iq_min(most, iq_factor_budget(spec, call, call->max_batch)) : most;
}

/* Offsets of the state's parts; the last is the end. */
enum { STATE_FACTS, STATE_ROWS, STATE_ORDER, STATE_CODES, STATE_SYMBOLS, STATE_COLUMNS, STATE_RATES, STATE_WHOLE, STATE_ALL, STATE_SVD_X, STATE_SVD_DELTA,
       STATE_SVD_SCRATCH, STATE_PARTS };

static void lay_state(const iq_factor_spec_t *spec, const iq_factor_call_t *call, size_t offsets[STATE_PARTS + 1])
{
    size_t longest = iq_max(call->m, call->n), all = spec->method == IQ_FACTOR_MSE || spec->method == IQ_FACTOR_MVU ? call->max_batch : 0;
    bool fine = iq_factor_is_fine(spec), plain = spec->method == IQ_FACTOR_ROWS && !fine;
    const size_t bytes[STATE_PARTS] = {[STATE_FACTS] = sizeof(iq_factor_facts_t),
                                       [STATE_ROWS] = call->max_batch * sizeof(iq_factor_row_t),
                                       [STATE_ORDER] = call->max_batch * sizeof(uint32_t),
                                       [STATE_CODES] = longest,
                                       [STATE_SYMBOLS] = plain ? 0 : longest * sizeof(int16_t),
                                       [STATE_COLUMNS] = plain ? 0 : (call->m + call->n) * sizeof(iq_bit_model_t),
                                       [STATE_RATES] = fine ? call->max_batch * sizeof(iq_factor_rate_t) : 0,
                                       [STATE_WHOLE] = sizeof(iq_factor_whole_t),
                                       [STATE_ALL] = all * (call->m + call->n) * sizeof(uint16_t),
                                       [STATE_SVD_X] = spec->svd ? call->max_batch * call->m * sizeof(float) : 0,
                                       [STATE_SVD_DELTA] = spec->svd ? call->max_batch * call->n * sizeof(float) : 0,
                                       [STATE_SVD_SCRATCH] = spec->svd ? iq_factor_svd_scratch(call) : 0};
    offsets[0] = 0;
    for (int part = 0; part < STATE_PARTS; part++)
        offsets[part + 1] = offsets[part] + iq_align_up(bytes[part], IQ_CACHE_LINE);
}

size_t iq_factor_state_bytes(const iq_factor_spec_t *spec, const iq_factor_call_t *call)
{
    size_t offsets[STATE_PARTS + 1];
    lay_state(spec, call, offsets);
    return offsets[STATE_PARTS];
}

iq_factor_state_t iq_factor_state(const iq_factor_spec_t *spec, const iq_factor_call_t *call, void *memory)
{
    size_t offsets[STATE_PARTS + 1];
    char *base = memory;
    lay_state(spec, call, offsets);
    return (iq_factor_state_t){.facts = (iq_factor_facts_t *)(void *)(base + offsets[STATE_FACTS]),
                               .rows = (iq_factor_row_t *)(void *)(base + offsets[STATE_ROWS]),
                               .order = (uint32_t *)(void *)(base + offsets[STATE_ORDER]),
                               .codes = (uint8_t *)(base + offsets[STATE_CODES]),
                               .symbols = (int16_t *)(void *)(base + offsets[STATE_SYMBOLS]),
                               .columns = (iq_bit_model_t *)(void *)(base + offsets[STATE_COLUMNS]),
                               .rates = (iq_factor_rate_t *)(void *)(base + offsets[STATE_RATES]),
                               .whole = (iq_factor_whole_t *)(void *)(base + offsets[STATE_WHOLE]),
                               .svd_x = (float *)(void *)(base + offsets[STATE_SVD_X]),
                               .svd_delta = (float *)(void *)(base + offsets[STATE_SVD_DELTA]),
                               .svd_scratch = (double *)(void *)(base + offsets[STATE_SVD_SCRATCH]),
                               .all_symbols = (uint16_t *)(void *)(base + offsets[STATE_ALL])};
}

/* Reserve count * each bytes at *offset, on a cache line. */
static bool reserve(size_t *offset, size_t count, size_t each, size_t *at)
{
    size_t bytes;
    if (!iq_checked_mul(count, each, &bytes) || bytes > SIZE_MAX / 8 - IQ_CACHE_LINE || *offset > SIZE_MAX / 2)
        return false;
    *at = *offset;
    *offset += iq_align_up(bytes, IQ_CACHE_LINE);
    return true;
}

/* A value through the range coder, and one that is packed. */
#define CODED_VALUE_NS 20.0
#define PACKED_VALUE_NS 2.0

double iq_factor_decode_ns(const iq_factor_spec_t *spec, const iq_factor_call_t *call)
{
    return (double)call->max_batch * ((double)call->m + (double)call->n) * (spec->coded ? CODED_VALUE_NS : PACKED_VALUE_NS);
}

size_t iq_factor_rows_layout(const iq_factor_call_t *call, size_t capacity, void *memory, iq_factor_rows_t *rows)
{
    size_t total = 0, weight_c, weight_b, q, p, columns, row_q, row_p;
    if (!iq_checked_mul(call->m, sizeof(int16_t), &row_q) || !iq_checked_mul(call->n, sizeof(int16_t), &row_p) ||
        !reserve(&total, capacity, sizeof(int64_t), &weight_c) ||
        !reserve(&total, call->want_bias ? capacity : 0, sizeof(int64_t), &weight_b) || !reserve(&total, capacity, row_q, &q) ||
        !reserve(&total, capacity, row_p, &p) || !reserve(&total, capacity > 0 ? row_q + row_p : 0, sizeof(iq_bit_model_t) / sizeof(int16_t), &columns))
        return 0;
    if (memory != NULL) {
        char *base = memory;
        *rows = (iq_factor_rows_t){.capacity = capacity,
                                   .weight_c = (int64_t *)(void *)(base + weight_c),
                                   .weight_b = call->want_bias ? (int64_t *)(void *)(base + weight_b) : NULL,
                                   .q = (int16_t *)(void *)(base + q),
                                   .p = (int16_t *)(void *)(base + p),
                                   .columns = base + columns};
    }
    return iq_max(total, IQ_CACHE_LINE);
}

isgq_data_type_t iq_factor_sum_type(const iq_factor_spec_t *spec, const iq_factor_call_t *call)
{
    if (spec->budget_bits != 0 || spec->budget_nmse > 0 || spec->dither || spec->method != IQ_FACTOR_ROWS)
        return ISGQ_INT64;
    uint64_t per_row = (uint64_t)iq_factor_levels(spec->width_x, true) * (uint64_t)iq_factor_levels(spec->width_delta, false) *
                       (15u << (IQ_FACTOR_OCTAVES - 1));
    return (uint64_t)call->nranks * call->max_batch <= INT32_MAX / per_row ? ISGQ_INT32 : ISGQ_INT64;
}

/* Types of two bytes. */
static void load_halves(isgq_data_type_t datatype, const void *memory, size_t first, size_t count, float *values)
{
    const iq_u16_any_t *halves = (const iq_u16_any_t *)memory + first;
    if (datatype == ISGQ_BFLOAT16)
        iq_kernels()->bf16_to_f32(halves, count, values);
    else
        iq_kernels()->f16_to_f32(halves, count, values);
}

void iq_factor_load(isgq_data_type_t datatype, const void *memory, size_t first, size_t count, float *values)
{
    if (datatype == ISGQ_FLOAT32)
        memcpy(values, (const char *)memory + first * sizeof(float), count * sizeof(float));
    else
        load_halves(datatype, memory, first, count, values);
}

size_t iq_factor_load_lanes(isgq_data_type_t datatype, const void *memory, size_t first, size_t count, float *values)
{
    size_t padded = iq_align_up(count, IQ_FACTOR_LANES);
    iq_factor_load(datatype, memory, first, count, values);
    memset(values + count, 0, (padded - count) * sizeof(float));
    return padded;
}
