/* SPDX-License-Identifier: Apache-2.0 */
/*
 * isgq_perf's input data, and the conversion between doubles and element types.
 *
 * Exactness is bought with range: with n ranks and a type that holds integers up to `limit`, inputs are integers up to limit / n,
 * so no order of additions can round. An average needs a sum that n divides, so there every input is a multiple of n.
 */
#include "perf/perf.h"

#include <math.h>
#include <string.h>

#define FLOAT_SCALE 0.125 /* exact inputs of float types are fractions too */

static uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static uint64_t stream_key(uint64_t seed, int rank) { return mix(seed * 0x9e3779b97f4a7c15u + (uint64_t)rank + 1u); }

static uint64_t draw(uint64_t key, uint64_t element) { return mix(key + element * 0x9e3779b97f4a7c15u); }

double iq_perf_uniform(uint64_t seed, uint64_t number)
{
    return (double)(draw(mix(seed ^ 0x6a09e667f3bcc909u), number) >> 11) * 0x1p-53;
}

/* Largest integer up to which sums stay exact. */
static double exact_limit(isgq_data_type_t type)
{
    switch (type) {
    case ISGQ_INT8: return 127.0;
    case ISGQ_UINT8: return 255.0;
    case ISGQ_FLOAT16: return 2048.0;
    case ISGQ_BFLOAT16: return 256.0;
    case ISGQ_INT64:
    case ISGQ_UINT64:
    case ISGQ_FLOAT64: return 1099511627776.0; /* 2^40 */
    default: return 1048576.0;                 /* 2^20 */
    }
}

static bool is_unsigned(isgq_data_type_t type) { return type == ISGQ_UINT8 || type == ISGQ_UINT32 || type == ISGQ_UINT64; }

static double scale_of(isgq_data_type_t type)
{
    return type == ISGQ_FLOAT16 || type == ISGQ_FLOAT32 || type == ISGQ_FLOAT64 || type == ISGQ_BFLOAT16 ? FLOAT_SCALE : 1.0;
}

/* An integer in -limit..limit, or 0..limit for unsigned types. */
static double integer_in(uint64_t bits, double limit, bool positive)
{
    double low = positive ? 0.0 : -limit;

    return low + floor((double)(bits >> 11) * 0x1p-53 * (limit - low + 1.0));
}

/* Sum of four uniform numbers: exact in 21 bits. */
static double bell(uint64_t bits)
{
    double sum = (double)(bits & 0xffff) + (double)(bits >> 16 & 0xffff) + (double)(bits >> 32 & 0xffff) + (double)(bits >> 48);

    return (sum * 0x1p-16 - 2.0) * 1.75;
}

static void real_values(const iq_perf_source_t *source, int rank, size_t first, size_t count, double *values)
{
    uint64_t key = stream_key(source->seed, rank);

    for (size_t i = 0; i < count; i++)
        values[i] = bell(draw(key, first + i));
    if (source->type->bytes < 4)
        iq_perf_round(source->type->type, values, count);
}

/* Products of 1, 2, -1, -2: at most six ranks contribute a 2. */
static void prod_values(const iq_perf_source_t *source, int rank, size_t first, size_t count, double *values)
{
    uint64_t key = stream_key(source->seed, rank);
    bool positive = is_unsigned(source->type->type);

    for (size_t i = 0; i < count; i++) {
        uint64_t bits = draw(key, first + i);
        double magnitude = rank < 6 && (bits & 1u) ? 2.0 : 1.0;
        values[i] = !positive && (bits & 2u) ? -magnitude : magnitude;
    }
}

/* Too many ranks for every one to contribute to every element: one of them does. */
static void lone_values(const iq_perf_source_t *source, int rank, size_t first, size_t count, double *values)
{
    uint64_t key = stream_key(source->seed, -1);
    double limit = exact_limit(source->type->type), ranks = source->nranks;
    double unit = source->op != ISGQ_AVG ? 1.0 : ranks <= limit ? ranks : 0.0;

    for (size_t i = 0; i < count; i++)
        values[i] = draw(key, first + i) % (uint64_t)source->nranks == (uint64_t)rank ? unit * scale_of(source->type->type) : 0.0;
}

static void exact_values(const iq_perf_source_t *source, int rank, size_t first, size_t count, double *values)
{
    uint64_t key = stream_key(source->seed, rank);
    isgq_data_type_t type = source->type->type;
    double limit = exact_limit(type), ranks = source->nranks, unit = scale_of(type);

    if (source->op == ISGQ_SUM)
        limit = floor(limit / ranks);
    if (source->op == ISGQ_AVG) {
        limit = floor(limit / (ranks * ranks));
        unit *= ranks;
    }
    if (limit < 1.0) {
        lone_values(source, rank, first, count, values);
        return;
    }
    for (size_t i = 0; i < count; i++)
        values[i] = unit * integer_in(draw(key, first + i), limit, is_unsigned(type));
}

void iq_perf_values(const iq_perf_source_t *source, int rank, size_t first, size_t count, double *values)
{
    if (source->real)
        real_values(source, rank, first, count, values);
    else if (source->op == ISGQ_PROD)
        prod_values(source, rank, first, count, values);
    else
        exact_values(source, rank, first, count, values);
}

/* ---- conversion ---- */

static float bits_to_float(uint32_t bits)
{
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

static uint16_t to_bf16(double value)
{
    float single = (float)value;
    uint32_t bits;

    memcpy(&bits, &single, sizeof(bits));
    if (single != single)
        return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static uint16_t to_f16(double value)
{
    uint16_t sign = signbit(value) ? 0x8000u : 0u;
    double magnitude = fabs(value);

    if (value != value)
        return 0x7e00u;
    if (magnitude >= 65520.0)
        return (uint16_t)(sign | 0x7c00u);
    int exponent = magnitude >= 0x1p-14 ? ilogb(magnitude) : -14; /* below: subnormal, the spacing of 2^-14 */
    double steps = rint(ldexp(magnitude, 10 - exponent));         /* 1024..2048, less if subnormal */
    return (uint16_t)(sign | (uint16_t)((exponent + 14) * 1024 + (int)steps));
}

static double from_f16(uint16_t half)
{
    int exponent = half >> 10 & 31, mantissa = half & 1023;
    double sign = half & 0x8000u ? -1.0 : 1.0;

    if (exponent == 31)
        return mantissa ? NAN : sign * INFINITY;
    return sign * (exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24));
}

/* Elements may be misaligned: bytes are copied, never dereferenced. */
#define STORE_AS(ctype, expression)                                      \
    do {                                                                 \
        char *to = elements;                                             \
        for (size_t i = 0; i < count; i++) {                             \
            ctype element = expression;                                  \
            memcpy(to + i * sizeof(element), &element, sizeof(element)); \
        }                                                                \
    } while (0)

void iq_perf_store(isgq_data_type_t type, const double *values, size_t count, void *elements)
{
    switch (type) {
    case ISGQ_INT8: STORE_AS(int8_t, (int8_t)values[i]); break;
    case ISGQ_UINT8: STORE_AS(uint8_t, (uint8_t)values[i]); break;
    case ISGQ_INT32: STORE_AS(int32_t, (int32_t)values[i]); break;
    case ISGQ_UINT32: STORE_AS(uint32_t, (uint32_t)values[i]); break;
    case ISGQ_INT64: STORE_AS(int64_t, (int64_t)values[i]); break;
    case ISGQ_UINT64: STORE_AS(uint64_t, (uint64_t)values[i]); break;
    case ISGQ_FLOAT16: STORE_AS(uint16_t, to_f16(values[i])); break;
    case ISGQ_FLOAT32: STORE_AS(float, (float)values[i]); break;
    case ISGQ_FLOAT64: STORE_AS(double, values[i]); break;
    case ISGQ_BFLOAT16: STORE_AS(uint16_t, to_bf16(values[i])); break;
    }
}

#define LOAD_AS(ctype, expression)                                         \
    do {                                                                   \
        const char *from = elements;                                       \
        for (size_t i = 0; i < count; i++) {                               \
            ctype element;                                                 \
            memcpy(&element, from + i * sizeof(element), sizeof(element)); \
            values[i] = expression;                                        \
        }                                                                  \
    } while (0)

void iq_perf_load(isgq_data_type_t type, const void *elements, size_t count, double *values)
{
    switch (type) {
    case ISGQ_INT8: LOAD_AS(int8_t, element); break;
    case ISGQ_UINT8: LOAD_AS(uint8_t, element); break;
    case ISGQ_INT32: LOAD_AS(int32_t, element); break;
    case ISGQ_UINT32: LOAD_AS(uint32_t, element); break;
    case ISGQ_INT64: LOAD_AS(int64_t, (double)element); break;
    case ISGQ_UINT64: LOAD_AS(uint64_t, (double)element); break;
    case ISGQ_FLOAT16: LOAD_AS(uint16_t, from_f16(element)); break;
    case ISGQ_FLOAT32: LOAD_AS(float, element); break;
    case ISGQ_FLOAT64: LOAD_AS(double, element); break;
    case ISGQ_BFLOAT16: LOAD_AS(uint16_t, bits_to_float((uint32_t)element << 16)); break;
    }
}

void iq_perf_round(isgq_data_type_t type, double *values, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t element = 0;
        iq_perf_store(type, values + i, 1, &element);
        iq_perf_load(type, &element, 1, values + i);
    }
}
