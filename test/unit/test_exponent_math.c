/* SPDX-License-Identifier: Apache-2.0 */
/* Powers of two as codes: sums of all pairs with the probabilities of all random words, and rounding to a code. */
#include "support/check_main.h"
#include "support/codec_run.h"
#include "support/require.h"

#include "kernels/exponent_math.h"

#include <math.h>

/* A sign alone is none. */
static bool is_code(uint32_t code, uint32_t sign) { return code == 0 || (code & (sign - 1)) != 0; }

/* Expectation and variance of a sum over all counts of leading zeros, with their probabilities. */
static void add_exactly(uint32_t a, uint32_t b, uint32_t sign, double *mean, double *variance)
{
    double exact = iq_exponent_value(a, sign, 1.0) + iq_exponent_value(b, sign, 1.0);
    *mean = *variance = 0.0;
    for (unsigned zeros = 0; zeros <= 32; zeros++) {
        double chance = ldexp(1.0, zeros < 32 ? -(int)zeros - 1 : -32);
        uint32_t sum = iq_exponent_add(a, b, sign, zeros < 32 ? 0x80000000u >> zeros : 0);
        REQUIRE(sum < 2 * sign && is_code(sum, sign));
        double value = iq_exponent_value(sum, sign, 1.0);
        *mean += chance * value;
        *variance += chance * (value - exact) * (value - exact);
    }
}

START_TEST(sums_of_all_codes_are_right_on_average)
{
    uint32_t sign = 1u << (_i - 1);
    for (uint32_t a = 0; a < 2 * sign; a++) {
        for (uint32_t b = 0; b < 2 * sign; b++) {
            if (!is_code(a, sign) || !is_code(b, sign))
                continue;
            double value_a = iq_exponent_value(a, sign, 1.0), value_b = iq_exponent_value(b, sign, 1.0), mean, variance;
            double large = fmax(fabs(value_a), fabs(value_b)), small = fmin(fabs(value_a), fabs(value_b));
            add_exactly(a, b, sign, &mean, &variance);
            bool is_alike = value_a * value_b > 0.0;
            if (is_alike && large == 1.0) { /* no code above: the sum stays */
                REQUIRE(mean == copysign(1.0, value_a) && fabs(variance - small * small) < 1e-15);
                continue;
            }
            if (small < ldexp(large, is_alike ? -32 : -33)) { /* beyond 32 random bits */
                REQUIRE(fabs(mean - (value_a + value_b)) <= small);
                continue;
            }
            REQUIRE(mean == value_a + value_b);
            REQUIRE(variance <= (value_a + value_b) * (value_a + value_b) / 8);
            if (small == 0.0 || (small == large))
                REQUIRE(variance == 0.0);
        }
    }
}
END_TEST

START_TEST(signs_and_sizes_of_sums)
{
    uint32_t sign = 1u << (_i - 1);
    for (uint32_t a = 0; a < 2 * sign; a++) {
        for (uint32_t b = 0; b < 2 * sign; b++) {
            uint32_t word = codec_random() >> codec_random() % 32, sum = iq_exponent_add(a, b, sign, word);
            if (!is_code(a, sign) || !is_code(b, sign))
                continue;
            double value_a = iq_exponent_value(a, sign, 1.0), value_b = iq_exponent_value(b, sign, 1.0);
            double value = iq_exponent_value(sum, sign, 1.0), large = fmax(fabs(value_a), fabs(value_b));
            REQUIRE(sum == iq_exponent_add(b, a, sign, word));
            REQUIRE((sum ^ (sum == 0 ? 0 : sign)) == iq_exponent_add(a == 0 ? 0 : a ^ sign, b == 0 ? 0 : b ^ sign, sign, word));
            REQUIRE(value * (value_a + value_b) > 0.0 || (value == 0.0 && value_a == -value_b));
            REQUIRE(fabs(value) <= 2 * large && (value == 0.0 || fabs(value) >= large / 2));
            REQUIRE(sum == iq_exponent_add(a, b, sign, word == 0 ? 0 : 0x80000000u >> iq_leading_zeros(word)));
        }
    }
}
END_TEST

START_TEST(values_are_rounded_right_on_average)
{
    uint32_t sign = 1u << (_i - 1);
    for (int round = 0; round < 20000; round++) {
        uint32_t head = codec_random() % sign, low = 0, high = 1u << 24;
        double ratio = fabs((double)codec_random_unit()) * ldexp(1.0, -(int)(codec_random() % (2 * sign)));
        if (round < 200)
            ratio = ldexp(1.0, -round);
        uint32_t upper = iq_exponent_round(ratio, head, sign, 0), lower = iq_exponent_round(ratio, head, sign, high - 1);
        while (low < high) { /* the first random number that rounds down */
            uint32_t middle = (low + high) / 2;
            if (iq_exponent_round(ratio, head, sign, middle) == upper)
                low = middle + 1;
            else
                high = middle;
        }
        double largest = ldexp(1.0, (int)head), chance = ldexp(low, -24);
        double value = chance * iq_exponent_value(upper, sign, largest) + (1 - chance) * iq_exponent_value(lower, sign, largest);
        REQUIRE(upper < sign && lower < sign);
        /* 24 random bits resolve so much of the distance to the next code, or to the smallest */
        REQUIRE(fabs(value - ratio) <= ldexp(fmax(ratio, iq_exponent_value(sign - 1, sign, largest)), -24));
        if (round < 200 && upper == lower && upper != 0)
            REQUIRE(value == ratio);
    }
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("exponent_math");
    TCase *tcase = tcase_create("addition");
    tcase_add_loop_test(tcase, sums_of_all_codes_are_right_on_average, 3, 9);
    tcase_add_loop_test(tcase, signs_and_sizes_of_sums, 3, 9);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("rounding");
    tcase_add_loop_test(tcase, values_are_rounded_right_on_average, 3, 9);
    suite_add_tcase(suite, tcase);
    return suite;
}
