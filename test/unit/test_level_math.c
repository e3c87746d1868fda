/* SPDX-License-Identifier: Apache-2.0 */
/* What models of codec `levels` are made of, without luck: probabilities, powers of two, order. */
#include "support/check_main.h"
#include "support/codec_run.h"
#include "support/require.h"

#include "codec/float_sort.h"
#include "codec/levels.h"
#include "kernels/level_math.h"

#include <float.h>
#include <math.h>

static double square(double value) { return value * value; }

START_TEST(fractions_are_exact)
{
    for (int round = 0; round < 200000; round++) {
        float low = codec_random_unit() * ldexpf(1.0f, (int)(codec_random() % 250) - 125), high = low;
        high += fabsf(codec_random_unit()) * fabsf(low);
        float value = low + (high - low) * fabsf(codec_random_unit());
        value = fminf(fmaxf(value, low), high);
        double fraction = (double)iq_level_fraction(value, low, high) / 16777216.0;
        REQUIRE(fraction <= 1.0);
        if (low < high)
            REQUIRE(fabs(fraction * ((double)high - (double)low) - ((double)value - (double)low)) <= 0x1p-23 * ((double)high - (double)low));
        REQUIRE(iq_level_fraction(low, low, high) == 0 && iq_level_fraction(high, low, high) == (low < high ? 1u << 24 : 0));
    }
    ck_assert_uint_eq(iq_level_fraction(FLT_MAX, -FLT_MAX, FLT_MAX), 1u << 24);
    ck_assert_uint_eq(iq_level_fraction(0.0f, -FLT_MAX, FLT_MAX), 1u << 23);
    ck_assert_uint_eq(iq_level_fraction(0x1p-149f, 0.0f, 0x1p-148f), 1u << 23);
}
END_TEST

/* The two neighbours, in exactly the proportion that has the value as mean. */
START_TEST(natural_is_unbiased_value_by_value)
{
    for (int round = 0; round < 200000; round++) {
        float value = iq_bits_float(codec_random());
        if (iq_not_finite(value))
            continue;
        uint32_t fraction = (iq_float_bits(value) & 0x7fffffu) << 1;
        double down = (double)iq_natural_value(iq_natural_code(value, 0xffffff)), up = (double)iq_natural_value(iq_natural_code(value, 0));
        REQUIRE(iq_natural_is_code(iq_natural_code(value, 0)) && iq_natural_is_code(iq_natural_code(value, 0xffffff)));
        if (fraction > 0) { /* the last random number that rounds up, and the first that does not */
            REQUIRE((double)iq_natural_value(iq_natural_code(value, fraction - 1)) == up);
            REQUIRE((double)iq_natural_value(iq_natural_code(value, fraction)) == down);
        }
        double p = fraction / 16777216.0, size = fabs((double)value);
        REQUIRE(size >= 0x1p127 ? up == down : (1 - p) * down + p * up == (double)value);
        REQUIRE(fabs(down) <= fmax(size, 0x1p-127) && (size < 0x1p-126 ? fabs(up) <= 0x1p-126 : fabs(up) <= 2 * size));
        REQUIRE(size < 0x1p-126 || size >= 0x1p127 || (up - (double)value) * ((double)value - down) <= square(size) / 8);
    }
    ck_assert(iq_natural_value(iq_natural_code(FLT_MAX, 0)) == 0x1p127f);
    ck_assert(iq_natural_value(iq_natural_code(-0x1p-126f, 0)) == -0x1p-126f);
    ck_assert_uint_eq(iq_natural_code(-0.0f, 0), 0);
    ck_assert_uint_eq(iq_natural_code(-0x1p-149f, 5), 0);
}
END_TEST

START_TEST(sorting_orders)
{
    static float values[IQ_LEVELS_BUCKET_MOST];
    for (int round = 0; round < 300; round++) {
        size_t count = (size_t)round < 290 ? codec_random() % 70 : IQ_LEVELS_BUCKET_MOST;
        double sum = 0.0, after = 0.0;
        for (size_t i = 0; i < count; i++) {
            do
                values[i] = round % 3 == 0 ? iq_bits_float(codec_random()) : (float)(codec_random() % 9) - 4.0f;
            while (iq_not_finite(values[i]));
            sum += iq_float_bits(values[i]);
        }
        iq_sort_floats(values, count);
        for (size_t i = 0; i < count; i++) {
            after += iq_float_bits(values[i]);
            REQUIRE(i == 0 || values[i - 1] <= values[i]);
        }
        ck_assert(sum == after);
    }
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("level_math");
    TCase *tcase = tcase_create("rounding");
    tcase_add_test(tcase, fractions_are_exact);
    tcase_add_test(tcase, natural_is_unbiased_value_by_value);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("order");
    tcase_add_test(tcase, sorting_orders);
    suite_add_tcase(suite, tcase);
    return suite;
}
