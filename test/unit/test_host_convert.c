/* SPDX-License-Identifier: Apache-2.0 */
/* 8-bit floats and scaled inputs of NCCL's host emulation: every code, rounding to even, what is too large, and arithmetic in the type. */
#include "bindings/nccl/host_convert.h"

#include "support/check_main.h"

#include <math.h>
#include <string.h>

static const int types[] = {HOST_FP8_E4M3, HOST_FP8_E5M2};

static float decode(int type, unsigned code)
{
    uint8_t byte = (uint8_t)code;
    float value;
    iq_host_from_fp8(type, &byte, &value, 1);
    return value;
}

static unsigned encode(int type, float value)
{
    uint8_t byte;
    iq_host_to_fp8(type, &value, &byte, 1);
    return byte;
}

START_TEST(every_code)
{
    for (size_t t = 0; t < 2; t++)
        for (unsigned code = 0; code < 256; code++) {
            float value = decode(types[t], code);
            ck_assert_msg(isnan(value) ? isnan(decode(types[t], encode(types[t], value))) : encode(types[t], value) == code,
                          "type %d, code %u, value %g", types[t], code, (double)value);
        }
}
END_TEST

START_TEST(known_values)
{
    ck_assert(decode(HOST_FP8_E4M3, 0x38) == 1 && decode(HOST_FP8_E5M2, 0x3c) == 1);
    ck_assert(decode(HOST_FP8_E4M3, 0x7e) == 448 && decode(HOST_FP8_E5M2, 0x7b) == 57344);
    ck_assert(decode(HOST_FP8_E4M3, 1) == ldexpf(1, -9) && decode(HOST_FP8_E5M2, 1) == ldexpf(1, -16));
    ck_assert(isnan(decode(HOST_FP8_E4M3, 0x7f)) && isinf(decode(HOST_FP8_E5M2, 0x7c)) && isnan(decode(HOST_FP8_E5M2, 0x7d)));
    ck_assert(signbit(decode(HOST_FP8_E4M3, 0x80)));
}
END_TEST

/* Halfway between two neighbours goes to the even code; a hair more to the upper one, whatever the exponent. */
START_TEST(ties)
{
    for (size_t t = 0; t < 2; t++)
        for (unsigned code = 0; code + 1 < (types[t] == HOST_FP8_E4M3 ? 0x7fu : 0x7cu); code++) {
            float low = decode(types[t], code), high = decode(types[t], code + 1), middle = (low + high) / 2;
            ck_assert_uint_eq(encode(types[t], middle), code % 2 == 0 ? code : code + 1);
            ck_assert_uint_eq(encode(types[t], nextafterf(middle, high)), code + 1);
            ck_assert_uint_eq(encode(types[t], nextafterf(middle, low)), code);
            ck_assert_uint_eq(encode(types[t], -middle), 0x80u + (code % 2 == 0 ? code : code + 1));
        }
}
END_TEST

START_TEST(too_large)
{
    ck_assert_uint_eq(encode(HOST_FP8_E4M3, 464), 0x7e); /* the tie with what would be 480 goes to even */
    ck_assert(isnan(decode(HOST_FP8_E4M3, encode(HOST_FP8_E4M3, 465))));
    ck_assert(isnan(decode(HOST_FP8_E4M3, encode(HOST_FP8_E4M3, INFINITY))));
    ck_assert_uint_eq(encode(HOST_FP8_E5M2, 61440), 0x7c);
    ck_assert_uint_eq(encode(HOST_FP8_E5M2, -INFINITY), 0xfc);
    ck_assert(isnan(decode(HOST_FP8_E5M2, encode(HOST_FP8_E5M2, NAN))));
    ck_assert_uint_eq(encode(HOST_FP8_E5M2, 1e-30f), 0);
}
END_TEST

/* In the type's own arithmetic: integers wrap, 16-bit floats are rounded once. */
START_TEST(scaling)
{
    iq_host_scalar_t scalar = {.used = true, .type = ISGQ_INT8};
    int8_t bytes[2] = {100, -3}, three = 3;
    memcpy(scalar.value, &three, sizeof(three));
    iq_host_scale(ISGQ_INT8, &scalar, bytes, bytes, 2);
    ck_assert_int_eq(bytes[0], 300 - 256);
    ck_assert_int_eq(bytes[1], -9);
    double tenth = .1, values[1] = {3};
    scalar = (iq_host_scalar_t){.used = true, .type = ISGQ_FLOAT64, .later = true, .pointer = &tenth};
    iq_host_scale(ISGQ_FLOAT64, &scalar, values, values, 1);
    ck_assert(values[0] == 3 * .1);
    uint16_t half = 0x3555, product; /* nearest to 1/3 */
    scalar = (iq_host_scalar_t){.used = true, .type = ISGQ_FLOAT16};
    memcpy(scalar.value, &half, sizeof(half));
    iq_host_scale(ISGQ_FLOAT16, &scalar, &(uint16_t){0x4200}, &product, 1); /* times 3: .99975585..., between 0x3bff and 0x3c00 */
    ck_assert_uint_eq(product, 0x3c00);
    uint16_t large = 0x7bff;
    memcpy(scalar.value, &large, sizeof(large));
    iq_host_scale(ISGQ_FLOAT16, &scalar, &(uint16_t){0x4000}, &product, 1);
    ck_assert_uint_eq(product, 0x7c00); /* infinite */
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("host_convert");
    TCase *test = tcase_create("fp8");
    tcase_add_test(test, every_code);
    tcase_add_test(test, known_values);
    tcase_add_test(test, ties);
    tcase_add_test(test, too_large);
    suite_add_tcase(suite, test);
    test = tcase_create("scale");
    tcase_add_test(test, scaling);
    suite_add_tcase(suite, test);
    return suite;
}
