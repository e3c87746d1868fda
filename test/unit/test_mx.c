/* SPDX-License-Identifier: Apache-2.0 */
/* The levels `mx`: the exponent that a block gets, errors below a step, exact multiples, no bias, extremes, damage. */
#include "support/check_main.h"
#include "support/codec_run.h"
#include "support/require.h"

#include "base/status.h"
#include "base/util.h"
#include "codec/levels.h"
#include "kernels/quant_math.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 32
#define COUNT 4003

static float values[BLOCK], decoded[BLOCK], inputs[CODEC_RUN_MAX_RANKS][COUNT], out[COUNT], again[COUNT];
static uint16_t codes[BLOCK];
static uint64_t header[IQ_LEVELS_HEADER_MOST / 8];

static iq_codec_t make_codec(unsigned bits, iq_rounding_t rounding)
{
    iq_codec_t codec = codec_of_family("mx");
    codec.bits = bits;
    codec.rounding = rounding;
    return codec;
}

static unsigned char field(void) { return *(unsigned char *)header; }

/* One block to codes and back. */
static void round_trip(unsigned bits, iq_rounding_t rounding, uint64_t call)
{
    iq_codec_t codec = make_codec(bits, rounding);
    iq_level_draw_t draw = {.seed = 3, .call = call, .stream = IQ_STREAM_OWN, .rank = 1, .first = 64};
    codec.model->encode(&codec, &draw, values, BLOCK, header, codes);
    for (size_t i = 0; i < BLOCK; i++)
        REQUIRE(codes[i] < codec.model->symbols(&codec));
    ck_assert_int_eq(codec.model->decode(&codec, &draw, header, codes, BLOCK, decoded), ISGQ_SUCCESS);
}

static int half_of(unsigned bits) { return (1 << (bits - 1)) - 1; }

/* The smallest exponent from -127 on with most <= half * 2^exponent. */
static int expected_exponent(unsigned bits, float most)
{
    int exponent = -127;
    while ((double)most > ldexp(half_of(bits), exponent))
        exponent++;
    return exponent;
}

/* ---- exponents ---- */

START_TEST(exponents_are_the_smallest_that_clip_nothing)
{
    for (unsigned bits = 4; bits <= 8; bits += 4) {
        for (int exponent = -149; exponent <= 127; exponent++) {
            const double parts[] = {1.0, 1 + 0x1p-23, 1.4, 1.75, 1.75 + 0x1p-23, 1.984375, 1.984375 + 0x1p-23, 2 - 0x1p-23};
            for (size_t k = 0; k < IQ_ARRAY_SIZE(parts); k++) {
                float most = (float)ldexp(parts[k], exponent);
                if (!isfinite(most))
                    continue;
                memset(values, 0, sizeof(values));
                values[k] = -most;
                round_trip(bits, IQ_ROUND_STOCHASTIC, 1);
                int expected = expected_exponent(bits, most);
                REQUIRE(field() == expected + 127);
                REQUIRE(fabs((double)decoded[k] + (double)most) < ldexp(1.0, expected));
            }
        }
    }
}
END_TEST

START_TEST(multiples_of_the_step_are_exact)
{
    for (unsigned bits = 4; bits <= 8; bits += 4) {
        for (int exponent = -127; exponent <= 121; exponent++) {
            int half = half_of(bits);
            for (int i = 0; i < BLOCK; i++)
                values[i] = (float)ldexp(i == 7 ? half : (int)(codec_random() % (unsigned)(2 * half + 1)) - half, exponent);
            for (int rounding = IQ_ROUND_NEAREST; rounding <= IQ_ROUND_STOCHASTIC; rounding++) {
                round_trip(bits, (iq_rounding_t)rounding, 1);
                for (size_t i = 0; i < BLOCK; i++)
                    REQUIRE(decoded[i] == values[i]);
            }
        }
    }
}
END_TEST

/* ---- errors ---- */

START_TEST(errors_are_below_a_step)
{
    for (int round = 0; round < 4000; round++) {
        unsigned bits = round % 2 ? 8 : 4;
        iq_rounding_t rounding = round % 4 < 2 ? IQ_ROUND_NEAREST : IQ_ROUND_STOCHASTIC;
        float most = 0.0f;
        for (size_t i = 0; i < BLOCK; i++) {
            values[i] = codec_random_unit() * ldexpf(1.0f, round % 200 - 100);
            most = fmaxf(most, fabsf(values[i]));
        }
        round_trip(bits, rounding, (uint64_t)round);
        double step = ldexp(1.0, expected_exponent(bits, most));
        for (size_t i = 0; i < BLOCK; i++)
            REQUIRE(fabs((double)decoded[i] - (double)values[i]) <= (rounding == IQ_ROUND_NEAREST ? 0.5 : 1.0) * step);
    }
}
END_TEST

/* Each value by itself: the mean over many calls. Denormal numbers too, whose steps are 2^-127. */
START_TEST(stochastic_rounding_has_no_bias)
{
    enum { CALLS = 4000 };
    unsigned bits = _i % 2 ? 8 : 4;
    double sum[BLOCK] = {0}, squares[BLOCK] = {0};
    for (size_t i = 0; i < BLOCK; i++)
        values[i] = codec_random_unit() * ldexpf(_i < 2 ? 1.0f : _i < 4 ? 0x1p-126f : 0x1p127f, -(int)(i % 5));
    for (uint64_t call = 0; call < CALLS; call++) {
        round_trip(bits, IQ_ROUND_STOCHASTIC, call);
        double step = ldexp(1.0, field() - 127);
        for (size_t i = 0; i < BLOCK; i++) {
            double error = ((double)decoded[i] - (double)values[i]) / step;
            sum[i] += error;
            squares[i] += error * error;
        }
    }
    for (size_t i = 0; i < BLOCK; i++)
        ck_assert_msg(fabs(sum[i]) <= 5.0 * sqrt(squares[i]) + 1e-3, "bits %u element %zu: %g of %g", bits, i, sum[i],
                      sqrt(squares[i]));
}
END_TEST

/* ---- the codec ---- */

static codec_run_t make_run(const iq_codec_t *codec, isgq_red_op_t op, int nranks)
{
    codec_run_t run = {.codec = *codec, .count = COUNT};
    run.call = (iq_codec_call_t){.datatype = ISGQ_FLOAT32, .op = op, .nranks = nranks, .seed = 7, .call = 9};
    for (int rank = 0; rank < nranks; rank++) {
        run.inputs[rank] = inputs[rank];
        for (int i = 0; i < COUNT; i++)
            inputs[rank][i] = codec_random_unit() * ldexpf(1.0f, -(i / 300));
    }
    return run;
}

START_TEST(all_ways_decode_to_the_same)
{
    for (int nranks = 2; nranks <= 5; nranks++) {
        iq_codec_t codec = make_codec(nranks % 2 ? 8 : 4, nranks < 4 ? IQ_ROUND_NEAREST : IQ_ROUND_STOCHASTIC);
        codec_run_t run = make_run(&codec, ISGQ_AVG, nranks);
        codec_run(&run, CODEC_DIRECT, 0, out);
        codec_run(&run, CODEC_OWNER, BLOCK, again);
        ck_assert_mem_eq(again, out, sizeof(out));
        codec_run(&run, CODEC_CHAIN, BLOCK, again);
        ck_assert_mem_eq(again, out, sizeof(out));
    }
}
END_TEST

/* Within a step of each contribution and one of the sum, all divided by the ranks. */
START_TEST(sums_are_within_their_steps)
{
    enum { RANKS = 4 };
    iq_codec_t codec = make_codec(_i ? 8 : 4, IQ_ROUND_STOCHASTIC);
    codec_run_t run = make_run(&codec, ISGQ_AVG, RANKS);
    codec_run(&run, CODEC_DIRECT, BLOCK, out);
    for (size_t begin = 0; begin < COUNT; begin += BLOCK) {
        size_t end = iq_min(begin + BLOCK, COUNT);
        double steps = 0.0, sums = 0.0;
        for (int rank = 0; rank < RANKS; rank++) {
            float most = 0.0f;
            for (size_t i = begin; i < end; i++)
                most = fmaxf(most, fabsf(inputs[rank][i]));
            steps += ldexp(1.0, expected_exponent(codec.bits, most)) / RANKS;
            sums += (double)most / RANKS;
        }
        steps += ldexp(1.0, expected_exponent(codec.bits, (float)(sums + steps)));
        for (size_t i = begin; i < end; i++) {
            double mean = 0.0;
            for (int rank = 0; rank < RANKS; rank++)
                mean += (double)inputs[rank][i] / RANKS;
            REQUIRE(fabs((double)out[i] - mean) <= steps);
        }
    }
}
END_TEST

START_TEST(messages_have_the_stated_sizes)
{
    iq_codec_call_t call = {.datatype = ISGQ_FLOAT32, .nranks = 8};
    for (unsigned bits = 4; bits <= 8; bits += 4) {
        iq_codec_t codec = make_codec(bits, IQ_ROUND_NEAREST);
        ck_assert_uint_eq(codec.ops->partial_bytes(&codec, &call, (iq_span_t){0, 1024}, 1), 32 + 128 * bits); /* bits + 1/4 */
        ck_assert_uint_eq(codec.ops->result_bytes(&codec, &call, (iq_span_t){0, 1024}), 32 + 128 * bits);
        ck_assert_uint_eq(codec.ops->result_bytes(&codec, &call, (iq_span_t){31, 34}), 3 + (bits == 4 ? 20 : 34));
    }
}
END_TEST

/* ---- extremes ---- */

START_TEST(zeros_and_spoilt_blocks)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t k = 0; k < 6; k++) {
        iq_codec_t codec = make_codec(k % 2 ? 8 : 4, IQ_ROUND_STOCHASTIC);
        codec_run_t run = make_run(&codec, ISGQ_SUM, 2);
        memset(inputs[0] + BLOCK, 0, BLOCK * sizeof(float));
        memset(inputs[1] + BLOCK, 0, BLOCK * sizeof(float));
        for (int i = 0; i < 5; i++)
            inputs[0][i] = inputs[1][i] = 0.0f;
        inputs[1][3 * BLOCK] = bad[k / 2];
        codec_run(&run, CODEC_DIRECT, 0, out);
        for (size_t i = 0; i < COUNT; i++) {
            REQUIRE(!isnan(out[i]) == (i / BLOCK != 3));
            REQUIRE((i / BLOCK != 1 && i >= 5) || out[i] == 0.0f);
        }
    }
}
END_TEST

/* The last step of the coarsest grid is beyond f32. */
START_TEST(the_largest_values_stay_finite)
{
    for (unsigned bits = 4; bits <= 8; bits += 4) {
        for (int rounding = IQ_ROUND_NEAREST; rounding <= IQ_ROUND_STOCHASTIC; rounding++) {
            for (size_t i = 0; i < BLOCK; i++)
                values[i] = i % 2 ? FLT_MAX : -FLT_MAX;
            round_trip(bits, (iq_rounding_t)rounding, 5);
            for (size_t i = 0; i < BLOCK; i++)
                REQUIRE(isfinite(decoded[i]) && fabs((double)decoded[i] / (double)values[i] - 1.0) < 0.01);
        }
    }
}
END_TEST

/* ---- damage ---- */

START_TEST(damage_is_refused_or_harmless)
{
    int accepted = 0, refused = 0;
    for (int round = 0; round < 3000; round++) {
        iq_codec_t codec = make_codec(round % 2 ? 8 : 4, IQ_ROUND_STOCHASTIC);
        codec_run_t run = {.codec = codec, .count = COUNT, .inputs = {inputs[0], inputs[1]}};
        run.call = (iq_codec_call_t){.datatype = ISGQ_FLOAT32, .op = ISGQ_SUM, .nranks = 2, .seed = 7, .call = 9};
        iq_span_t span = {codec_random() % 1000, 1 + codec_random() % 300};
        size_t bytes;
        unsigned char *message = codec_run_message(&run, round % 2, span, NULL, &bytes);
        for (unsigned flips = codec_random() % 8; flips > 0; flips--)
            message[1 + codec_random() % bytes] ^= (unsigned char)(1u << codec_random() % 8);
        for (size_t i = 1; round % 3 == 0 && i <= bytes; i++)
            message[i] = (unsigned char)codec_random();
        isgq_result_t result = codec.ops->decode(&codec, &run.call, span, message + 1, out);
        REQUIRE(result == ISGQ_SUCCESS || result == ISGQ_ERR_CORRUPT);
        for (size_t i = 0; result == ISGQ_SUCCESS && i < span.count; i++)
            REQUIRE(!isinf(out[i]));
        accepted += result == ISGQ_SUCCESS;
        refused += result != ISGQ_SUCCESS;
        free(message);
    }
    ck_assert_int_gt(accepted, 100);
    ck_assert_int_gt(refused, 10);
}
END_TEST

START_TEST(exponents_beyond_the_largest_are_refused)
{
    iq_codec_t codec = make_codec(8, IQ_ROUND_NEAREST);
    iq_level_draw_t draw = {.seed = 3};
    memset(codes, 0, sizeof(codes));
    *(unsigned char *)header = 253;
    ck_assert_int_eq(codec.model->decode(&codec, &draw, header, codes, BLOCK, decoded), ISGQ_SUCCESS);
    ck_assert(isfinite(decoded[0]));
    *(unsigned char *)header = 254;
    ck_assert_int_eq(codec.model->decode(&codec, &draw, header, codes, BLOCK, decoded), ISGQ_ERR_CORRUPT);
    ck_assert_ptr_nonnull(strstr(iq_last_error(), "mx"));
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("mx");
    TCase *tcase = tcase_create("exponents");
    tcase_add_test(tcase, exponents_are_the_smallest_that_clip_nothing);
    tcase_add_test(tcase, multiples_of_the_step_are_exact);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("errors");
    tcase_add_test(tcase, errors_are_below_a_step);
    tcase_add_loop_test(tcase, stochastic_rounding_has_no_bias, 0, 6);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("sums");
    tcase_add_test(tcase, all_ways_decode_to_the_same);
    tcase_add_loop_test(tcase, sums_are_within_their_steps, 0, 2);
    tcase_add_test(tcase, messages_have_the_stated_sizes);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("extremes");
    tcase_add_test(tcase, zeros_and_spoilt_blocks);
    tcase_add_test(tcase, the_largest_values_stay_finite);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("damage");
    tcase_add_test(tcase, damage_is_refused_or_harmless);
    tcase_add_test(tcase, exponents_beyond_the_largest_are_refused);
    suite_add_tcase(suite, tcase);
    return suite;
}
