/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers for tests: see numbers.h. The references are slow and obvious on purpose. */
#include "support/numbers.h"
#include "support/ranks.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const iq_type_t iq_types[IQ_TYPE_COUNT] = {
    [ISGQ_INT8] = {ISGQ_INT8, "i8", 1, false, true},       [ISGQ_UINT8] = {ISGQ_UINT8, "u8", 1, false, false},
    [ISGQ_INT32] = {ISGQ_INT32, "i32", 4, false, true},    [ISGQ_UINT32] = {ISGQ_UINT32, "u32", 4, false, false},
    [ISGQ_INT64] = {ISGQ_INT64, "i64", 8, false, true},    [ISGQ_UINT64] = {ISGQ_UINT64, "u64", 8, false, false},
    [ISGQ_FLOAT16] = {ISGQ_FLOAT16, "f16", 2, true, true}, [ISGQ_FLOAT32] = {ISGQ_FLOAT32, "f32", 4, true, true},
    [ISGQ_FLOAT64] = {ISGQ_FLOAT64, "f64", 8, true, true}, [ISGQ_BFLOAT16] = {ISGQ_BFLOAT16, "bf16", 2, true, true},
};

uint64_t iq_mix(uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t x = a * 0x9e3779b97f4a7c15u + b * 0xc2b2ae3d27d4eb4fu + c * 0x165667b19e3779f9u + 0x27d4eb2f165667c5u;
    for (int round = 0; round < 2; round++) {
        x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
        x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    }
    return x ^ x >> 31;
}

float iq_mix_unit(uint64_t a, uint64_t b, uint64_t c) { return (float)((int32_t)(iq_mix(a, b, c) >> 40) - (1 << 23)) * 0x1p-23f; }

/* ---- half types ---- */

static double get_f16(uint16_t bits)
{
    int exponent = bits >> 10 & 31;
    double mantissa = bits & 1023, value;
    if (exponent == 31)
        value = mantissa != 0 ? NAN : INFINITY;
    else
        value = exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);
    return bits >> 15 ? -value : value;
}

static uint16_t set_f16(double value)
{
    uint16_t sign = signbit(value) ? 0x8000 : 0;
    double size = fabs(value);
    if (isnan(value))
        return sign | 0x7e00;
    if (size >= 65520)
        return sign | 0x7c00;
    int exponent = size < 0x1p-14 ? -14 : ilogb(size);
    return (uint16_t)(sign + (uint16_t)((exponent + 14) * 1024 +
                                        (int)rint(ldexp(size, 10 - exponent)))); /* a carry moves up the exponent */
}

static double get_bf16(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof(value));
    return (double)value;
}

static uint16_t set_bf16(double value)
{
    float narrow = (float)value;
    uint32_t bits;
    memcpy(&bits, &narrow, sizeof(bits));
    if (isnan(value))
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

double iq_numbers_get(isgq_data_type_t type, const void *src, size_t index)
{
    switch (type) {
    case ISGQ_FLOAT32: return (double)((const float *)src)[index];
    case ISGQ_FLOAT64: return ((const double *)src)[index];
    case ISGQ_FLOAT16: return get_f16(((const uint16_t *)src)[index]);
    case ISGQ_BFLOAT16: return get_bf16(((const uint16_t *)src)[index]);
    default: return NAN;
    }
}

void iq_numbers_set(isgq_data_type_t type, void *dst, size_t index, double value)
{
    switch (type) {
    case ISGQ_FLOAT32: ((float *)dst)[index] = (float)value; break;
    case ISGQ_FLOAT64: ((double *)dst)[index] = value; break;
    case ISGQ_FLOAT16: ((uint16_t *)dst)[index] = set_f16(value); break;
    case ISGQ_BFLOAT16: ((uint16_t *)dst)[index] = set_bf16(value); break;
    default: break;
    }
}

/* ---- integers: 64 bits, cut to the type's width after every step ---- */

static uint64_t cut(const iq_type_t *type, uint64_t value)
{
    unsigned spare = 64 - 8 * (unsigned)type->bytes;
    return type->is_signed ? (uint64_t)((int64_t)(value << spare) >> spare) : value << spare >> spare;
}

static uint64_t load_integer(const iq_type_t *type, const void *src, size_t index)
{
    uint64_t value = 0;
    memcpy(&value, (const unsigned char *)src + index * type->bytes, type->bytes); /* little endian */
    return cut(type, value);
}

static void store_integer(const iq_type_t *type, void *dst, size_t index, uint64_t value)
{
    memcpy((unsigned char *)dst + index * type->bytes, &value, type->bytes);
}

static uint64_t combine_integers(const iq_type_t *type, isgq_red_op_t op, uint64_t a, uint64_t b)
{
    bool less = type->is_signed ? (int64_t)a < (int64_t)b : a < b;
    switch (op) {
    case ISGQ_PROD: return cut(type, a * b);
    case ISGQ_MAX: return less ? b : a;
    case ISGQ_MIN: return less ? a : b;
    default: return cut(type, a + b);
    }
}

static uint64_t divide_integer(const iq_type_t *type, uint64_t sum, int nranks)
{
    return type->is_signed ? (uint64_t)((int64_t)sum / nranks) : sum / (uint64_t)nranks;
}

/* ---- one element ---- */

static double float_at(isgq_red_op_t op, uint64_t salt, int rank, size_t index)
{
    uint64_t bits = iq_mix(salt, (uint64_t)rank, index);
    if (op == ISGQ_PROD)
        return (bits & 8 ? -1.0 : 1.0) * ldexp(1.0, (int)(bits % 3) - 1);
    return (double)(bits % 17) - 8.0;
}

static double combine_floats(isgq_red_op_t op, double a, double b)
{
    switch (op) {
    case ISGQ_PROD: return a * b;
    case ISGQ_MAX: return a > b ? a : b;
    case ISGQ_MIN: return a < b ? a : b;
    default: return a + b;
    }
}

/* Half types are divided in f32, then rounded. */
static double divide_float(isgq_data_type_t type, double sum, int nranks)
{
    return type == ISGQ_FLOAT64 ? sum / nranks : (double)((float)sum / (float)nranks);
}

void iq_numbers_fill(isgq_data_type_t type, isgq_red_op_t op, uint64_t salt, int rank, size_t first, size_t count, void *dst)
{
    for (size_t i = 0; i < count; i++) {
        if (iq_types[type].is_float)
            iq_numbers_set(type, dst, i, float_at(op, salt, rank, first + i));
        else
            store_integer(&iq_types[type], dst, i, iq_mix(salt, (uint64_t)rank, first + i));
    }
}

static double reduce_float(isgq_data_type_t type, isgq_red_op_t op, uint64_t salt, int nranks, size_t index)
{
    double result = float_at(op, salt, 0, index);
    for (int r = 1; r < nranks; r++)
        result = combine_floats(op, result, float_at(op, salt, r, index));
    return op == ISGQ_AVG ? divide_float(type, result, nranks) : result;
}

static uint64_t reduce_integer(const iq_type_t *type, isgq_red_op_t op, uint64_t salt, int nranks, size_t index)
{
    uint64_t result = cut(type, iq_mix(salt, 0, index));
    for (int r = 1; r < nranks; r++)
        result = combine_integers(type, op, result, cut(type, iq_mix(salt, (uint64_t)r, index)));
    return op == ISGQ_AVG ? divide_integer(type, result, nranks) : result;
}

void iq_numbers_reduce(isgq_data_type_t type, isgq_red_op_t op, uint64_t salt, int nranks, size_t first, size_t count, void *dst)
{
    for (size_t i = 0; i < count; i++) {
        if (iq_types[type].is_float)
            iq_numbers_set(type, dst, i, reduce_float(type, op, salt, nranks, first + i));
        else
            store_integer(&iq_types[type], dst, i, reduce_integer(&iq_types[type], op, salt, nranks, first + i));
    }
}

void iq_numbers_add(isgq_data_type_t type, const void *values, size_t count, void *dst)
{
    for (size_t i = 0; i < count; i++) {
        if (iq_types[type].is_float)
            iq_numbers_set(type, dst, i, iq_numbers_get(type, dst, i) + iq_numbers_get(type, values, i));
        else
            store_integer(&iq_types[type], dst, i,
                          load_integer(&iq_types[type], dst, i) + load_integer(&iq_types[type], values, i));
    }
}

/* ---- buffers ---- */

#define GUARD_BYTES 64
#define TAIL_BYTES (IQ_TEST_SANITIZED ? 0 : GUARD_BYTES) /* sanitizers see the end of an allocation better than we do */
#define GUARD 0xa5

iq_buffer_t iq_buffer_new(size_t bytes, size_t skew)
{
    iq_buffer_t buffer = {.bytes = bytes};
    size_t room = GUARD_BYTES + 63 + skew + bytes + TAIL_BYTES;
    buffer.memory = malloc(room);
    if (buffer.memory == NULL)
        abort();
    memset(buffer.memory, GUARD, room);
    buffer.data = (unsigned char *)(((uintptr_t)buffer.memory + GUARD_BYTES + 63) / 64 * 64 + skew);
    return buffer;
}

bool iq_buffer_intact(const iq_buffer_t *buffer)
{
    for (const unsigned char *p = buffer->memory; p < buffer->data; p++)
        if (*p != GUARD)
            return false;
    for (int i = 0; i < TAIL_BYTES; i++)
        if (buffer->data[buffer->bytes + i] != GUARD)
            return false;
    return true;
}

void iq_buffer_free(iq_buffer_t *buffer)
{
    free(buffer->memory);
    buffer->memory = NULL;
}
