/* SPDX-License-Identifier: Apache-2.0 */
/* One value at a time: this is for developing and testing, not for speed. */
#include "bindings/nccl/host_convert.h"

#include <math.h>
#include <string.h>

/* A float format: sign, exponent bits, mantissa bits, and whether the largest exponent is for infinities and NaN (else only all ones is NaN). */
typedef struct format {
    int exponent, mantissa;
    bool infinities;
} format_t;

static const format_t half = {5, 10, true}, bfloat = {8, 7, true}, e4m3 = {4, 3, false}, e5m2 = {5, 2, true};

static double decode(const format_t *f, uint32_t bits)
{
    int bias = (1 << (f->exponent - 1)) - 1, largest = (1 << f->exponent) - 1;
    int exponent = (int)(bits >> f->mantissa) & largest;
    uint32_t all = (1u << f->mantissa) - 1, mantissa = bits & all;
    double sign = (bits >> (f->exponent + f->mantissa) & 1) != 0 ? -1 : 1;
    if (exponent == largest && f->infinities)
        return mantissa != 0 ? (double)NAN : sign * (double)INFINITY;
    if (exponent == largest && mantissa == all)
        return (double)NAN;
    if (exponent == 0)
        return sign * ldexp(mantissa, 1 - bias - f->mantissa);
    return sign * ldexp((double)(mantissa + all + 1), exponent - bias - f->mantissa);
}

/* Nearest, ties to even: rint in units of the last place. */
static uint32_t encode(const format_t *f, double value)
{
    int bias = (1 << (f->exponent - 1)) - 1, largest = (1 << f->exponent) - 1, exponent;
    uint32_t all = (1u << f->mantissa) - 1, sign = signbit(value) ? 1u << (f->exponent + f->mantissa) : 0;
    uint32_t nan = ((uint32_t)largest << f->mantissa) | (f->infinities ? (all + 1) >> 1 : all);
    uint32_t overflow = f->infinities ? (uint32_t)largest << f->mantissa : nan;
    double size = fabs(value);
    if (isnan(value))
        return sign | nan;
    if (isinf(value))
        return sign | overflow;
    (void)frexp(size, &exponent);
    exponent =
        exponent - 1 < 1 - bias || size == 0 ? 1 - bias : exponent - 1; /* of the leading bit; denormals share the smallest */
    double units = rint(ldexp(size, f->mantissa - exponent));
    uint32_t bits =
        (uint32_t)units + ((uint32_t)(exponent + bias - 1) << f->mantissa); /* the leading bit counts the exponent up by one */
    return sign | (bits >= overflow ? overflow : bits);
}

static const format_t *format_of(int type)
{
    return type == ISGQ_FLOAT16 ? &half : type == ISGQ_BFLOAT16 ? &bfloat : type == HOST_FP8_E4M3 ? &e4m3 : &e5m2;
}

void iq_host_from_fp8(int type, const uint8_t *from, float *to, size_t count)
{
    for (size_t i = 0; i < count; i++)
        to[i] = (float)decode(format_of(type), from[i]);
}

void iq_host_to_fp8(int type, const float *from, uint8_t *to, size_t count)
{
    for (size_t i = 0; i < count; i++)
        to[i] = (uint8_t)encode(format_of(type), (double)from[i]);
}

/* Integers wrap around, as the hardware's do. */
#define SCALE(ctype, wide)                                          \
    do {                                                            \
        ctype factor, value;                                        \
        memcpy(&factor, scalar, sizeof(factor));                    \
        for (size_t i = 0; i < count; i++) {                        \
            memcpy(&value, in + i * sizeof(value), sizeof(value));  \
            value = (ctype)((wide)value * (wide)factor);            \
            memcpy(out + i * sizeof(value), &value, sizeof(value)); \
        }                                                           \
    } while (0)

static void scale_16(const format_t *f, const unsigned char *scalar, const unsigned char *in, unsigned char *out, size_t count)
{
    uint16_t factor, bits;
    memcpy(&factor, scalar, sizeof(factor));
    for (size_t i = 0; i < count; i++) {
        memcpy(&bits, in + i * sizeof(bits), sizeof(bits));
        bits = (uint16_t)encode(f, (double)((float)decode(f, bits) * (float)decode(f, factor)));
        memcpy(out + i * sizeof(bits), &bits, sizeof(bits));
    }
}

static void scale_8(const format_t *f, const unsigned char *scalar, const unsigned char *in, unsigned char *out, size_t count)
{
    for (size_t i = 0; i < count; i++)
        out[i] = (unsigned char)encode(f, decode(f, in[i]) * decode(f, scalar[0]));
}

void iq_host_scale(int type, const iq_host_scalar_t *operand, const void *from, void *to, size_t count)
{
    const unsigned char *in = from, *scalar = operand->later ? operand->pointer : operand->value;
    unsigned char *out = to;
    switch (type) {
    case ISGQ_INT8:
    case ISGQ_UINT8: SCALE(uint8_t, unsigned); break;
    case ISGQ_INT32:
    case ISGQ_UINT32: SCALE(uint32_t, uint32_t); break;
    case ISGQ_INT64:
    case ISGQ_UINT64: SCALE(uint64_t, uint64_t); break;
    case ISGQ_FLOAT32: SCALE(float, float); break;
    case ISGQ_FLOAT64: SCALE(double, double); break;
    case ISGQ_FLOAT16:
    case ISGQ_BFLOAT16: scale_16(format_of(type), scalar, in, out, count); break;
    default: scale_8(format_of(type), scalar, in, out, count); break;
    }
}
