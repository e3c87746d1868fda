/* SPDX-License-Identifier: Apache-2.0 */
/* The codec `intsgd`: sums as wide as one contribution, never beyond their bits, unbiased, and the same on every route. */
#include "support/check_main.h"
#include "support/codec_run.h"
#include "support/require.h"

#include "base/status.h"
#include "codec/dense.h"
#include "kernels/kernels.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define COUNT 5003

static float inputs[CODEC_RUN_MAX_RANKS][COUNT];
static float out[COUNT], again[COUNT];

static codec_run_t make_run(unsigned bits, isgq_red_op_t op, int nranks)
{
    codec_run_t run = {.codec = codec_of_family("intsgd"), .count = COUNT};
    run.codec.bits = bits;
    run.call = (iq_codec_call_t){.datatype = ISGQ_FLOAT32, .op = op, .nranks = nranks, .seed = 21, .call = 4};
    for (int rank = 0; rank < nranks && rank < CODEC_RUN_MAX_RANKS; rank++)
        run.inputs[rank] = inputs[rank];
    return run;
}

static void fill_inputs(float size)
{
    for (int rank = 0; rank < CODEC_RUN_MAX_RANKS; rank++)
        for (int i = 0; i < COUNT; i++)
            inputs[rank][i] = codec_random_unit() * size;
}

static int top_of(unsigned bits) { return (1 << (bits - 1)) - 1; }

/* The definition: the first power of two above the largest magnitude, in floor(T / N) steps. */
static double step_of(double most, unsigned bits, int nranks)
{
    int exponent;
    frexp(most, &exponent); /* most = fraction * 2^exponent, fraction in [1/2, 1) */
    return ldexp(1.0, exponent) / (top_of(bits) / nranks);
}

/* ---- sums ---- */

START_TEST(sums_have_one_answer)
{
    unsigned bits = (unsigned)_i;
    fill_inputs(3.0f);
    for (int nranks = 1; nranks <= top_of(bits) && nranks <= CODEC_RUN_MAX_RANKS; nranks++) {
        codec_run_t run = make_run(bits, nranks % 2 ? ISGQ_SUM : ISGQ_AVG, nranks);
        double step = step_of(3.0, bits, nranks);
        codec_run(&run, CODEC_DIRECT, 0, out);
        for (unsigned way = 0; way < CODEC_WAYS; way++) {
            codec_run(&run, (codec_way_t)way, 1, again);
            ck_assert_mem_eq(again, out, sizeof(out));
        }
        for (int i = 0; i < COUNT; i++) {
            double sum = 0.0;
            for (int rank = 0; rank < nranks; rank++)
                sum += (double)inputs[rank][i];
            double found = (double)out[i] * (nranks % 2 ? 1 : nranks), codes = found / step;
            REQUIRE(fabs(found - sum) <= nranks * step * 1.00001);
            REQUIRE(fabs(codes - nearbyint(codes)) < 1e-3 && fabs(codes) < top_of(bits) + 1e-3);
        }
    }
}
END_TEST

START_TEST(all_messages_have_one_width)
{
    iq_span_t span = {11, 75};
    for (unsigned bits = 2; bits <= 8; bits++) {
        codec_run_t run = make_run(bits, ISGQ_SUM, 1);
        const iq_codec_ops_t *ops = run.codec.ops;
        ck_assert_int_eq(ops->most_ranks(&run.codec), top_of(bits));
        run.call.nranks = top_of(bits);
        for (int parts = 1; parts <= run.call.nranks; parts++)
            ck_assert_uint_eq(ops->partial_bytes(&run.codec, &run.call, span, parts), 10 * bits);
        ck_assert_uint_eq(ops->result_bytes(&run.codec, &run.call, span), 10 * bits);
        ck_assert(ops->result_is_exact(&run.codec, &run.call));
        run.codec.shared = false;
        ck_assert_uint_eq(ops->result_bytes(&run.codec, &run.call, span), 4 + 10 * bits);
    }
}
END_TEST

/* As many ranks as there may be, all with the largest value: the sum fits its bits, with the right sign. */
START_TEST(extremes_of_all_ranks_fit)
{
    static float values[64], decoded[64];
    static uint32_t sums[64];
    int lower = 0;
    for (unsigned bits = 2; bits <= 8; bits++) {
        for (int nranks = 1; nranks <= top_of(bits); nranks++) {
            codec_run_t run = make_run(bits, ISGQ_SUM, nranks);
            const iq_codec_ops_t *ops = run.codec.ops;
            iq_span_t span = {0, 64};
            unsigned char message[64];
            float scale = 0.0f;
            for (int i = 0; i < 64; i++)
                values[i] = i % 2 ? -0x1.fffffep0f : 0x1.fffffep0f; /* just below 2 */
            ops->local_scales(&run.codec, &run.call, span, values, &scale);
            ops->open_scales(&run.codec, &run.call, 64, &scale);
            run.call.scales = &scale;
            for (run.call.rank = 0; run.call.rank < nranks; run.call.rank++)
                ops->add_own(&run.codec, &run.call, span, values, sums, run.call.rank == 0);
            ops->finish(&run.codec, &run.call, span, sums, message);
            ck_assert_int_eq(ops->decode(&run.codec, &run.call, span, message, decoded), ISGQ_SUCCESS);
            for (int i = 0; i < 64; i++)
                lower += fabs((double)decoded[i] - (double)values[i] * nranks) > 2e-6 * nranks;
            for (int i = 0; i < 64; i++)
                REQUIRE(fabs((double)decoded[i]) <= 2.000002 * nranks && signbit(decoded[i]) == signbit(values[i]));
        }
    }
    ck_assert_int_le(lower, 50); /* of 32000: steps are rounded, so a maximum may lie 10^-7 below its code */
}
END_TEST

/* What a rank knows of its own contribution, as error feedback asks: the sum of one, delivered. */
START_TEST(a_contribution_alone_is_delivered)
{
    codec_run_t run = make_run(8, ISGQ_SUM, 5);
    iq_span_t span = {0, COUNT};
    static uint32_t sums[COUNT];
    float scale = 0.0f;
    fill_inputs(1.0f);
    run.codec.ops->local_scales(&run.codec, &run.call, span, inputs[0], &scale);
    run.codec.ops->open_scales(&run.codec, &run.call, COUNT, &scale);
    run.call.scales = &scale;
    run.codec.ops->add_own(&run.codec, &run.call, span, inputs[0], sums, true);
    run.call.nranks = 1;
    run.codec.ops->deliver(&run.codec, &run.call, span, sums, out);
    for (int i = 0; i < COUNT; i++)
        REQUIRE(fabsf(out[i] - inputs[0][i]) <= scale);
}
END_TEST

/* Allgather: each message has the step of its own values. */
START_TEST(own_steps_are_for_one_rank)
{
    fill_inputs(1.0f);
    for (unsigned bits = 2; bits <= 8; bits++) {
        codec_run_t run = make_run(bits, ISGQ_SUM, 1);
        run.codec.shared = false;
        codec_run(&run, CODEC_OWNER, 64, out);
        for (int i = 0; i < COUNT; i++)
            REQUIRE(fabs((double)out[i] - (double)inputs[0][i]) <= step_of(0.999, bits, 1));
    }
}
END_TEST

/* ---- errors ---- */

/* Over calls, in standard errors along fixed signs; and the variance is that of rounding to the grid. */
START_TEST(sums_are_unbiased)
{
    unsigned bits = (unsigned)_i;
    int nranks = bits < 4 ? 1 : 3;
    double projection = 0.0, squares = 0.0, due = 0.0, step = step_of(1.0 - 1e-6, bits, nranks);
    codec_run_t run = make_run(bits, ISGQ_SUM, nranks);
    fill_inputs(1.0f);
    for (uint64_t call = 1; call <= 40; call++) {
        uint32_t signs = 7;
        run.call.call = call;
        codec_run(&run, CODEC_OWNER, 0, out);
        for (int i = 0; i < COUNT; i++) {
            double error = (double)out[i];
            for (int rank = 0; rank < nranks; rank++) {
                double y = (double)inputs[rank][i] / step, part = y - floor(y);
                error -= (double)inputs[rank][i];
                due += part * (1 - part) * step * step;
            }
            signs = signs * 1664525u + 1013904223u;
            projection += signs >> 31 ? error : -error;
            squares += error * error;
        }
    }
    ck_assert_msg(fabs(projection) < 5 * sqrt(squares), "%g standard errors", fabs(projection) / sqrt(squares));
    ck_assert_msg(fabs(squares / due - 1) < 0.02, "variance %g, not %g", squares, due);
}
END_TEST

/* ---- extreme and damaged input ---- */

START_TEST(nan_and_infinity_show)
{
    static const float bad[] = {NAN, -INFINITY, INFINITY};
    for (int k = 0; k < 3; k++) {
        codec_run_t run = make_run(8, ISGQ_SUM, 3);
        fill_inputs(1.0f);
        inputs[k][77] = bad[k];
        codec_run(&run, (codec_way_t)k, 1, out);
        for (int i = 0; i < COUNT; i++)
            REQUIRE(iq_float_bits(out[i]) == 0x7fc00000u);
        run = make_run(8, ISGQ_SUM, 1);
        run.inputs[0] = inputs[k];
        run.codec.shared = false;
        codec_run(&run, CODEC_OWNER, 0, out);
        REQUIRE(isnan(out[77]));
    }
}
END_TEST

START_TEST(all_magnitudes_are_finite)
{
    static const float sizes[] = {0.0f, 0x1p-149f, 0x1p-126f, 0x1p-121f, 0x1p-114f, 0x1p-113f, 1e-20f, 1.0f, 0x1p126f, 0x1p127f, FLT_MAX};
    for (unsigned k = 0; k < sizeof(sizes) / sizeof(sizes[0]); k++) {
        for (unsigned bits = 2; bits <= 8; bits++) {
            codec_run_t run = make_run(bits, ISGQ_AVG, 1);
            memset(inputs, 0, sizeof(inputs));
            inputs[0][9] = sizes[k];
            inputs[0][10] = -sizes[k];
            codec_run(&run, CODEC_DELIVER, 0, out);
            double step = fmin(fmax(2.0 * (double)sizes[k], 0x1p-112), (double)FLT_MAX) / top_of(bits) * 1.00001;
            REQUIRE(fabs((double)out[9] - (double)sizes[k]) <= step && fabs((double)out[10] + (double)sizes[k]) <= step);
            REQUIRE(out[8] == 0.0f && !isnan(out[9]));
        }
    }
}
END_TEST

START_TEST(damaged_messages_are_rejected)
{
    codec_run_t run = make_run(4, ISGQ_SUM, 3); /* T = 7, L = 2: a rank's codes are 5..9, all ranks' sums 1..13 */
    const iq_codec_ops_t *ops = run.codec.ops;
    iq_span_t span = {0, 3};
    float one = 1.0f;
    uint32_t sums[3];
    run.call.scales = &one;
    for (unsigned code = 0; code < 16; code++) {
        for (int parts = 1; parts <= 3; parts++) {
            unsigned char message[4] = {(unsigned char)(7 | code << 4), 7};
            bool good = (int)code >= 7 - 2 * parts && (int)code <= 7 + 2 * parts;
            isgq_result_t due = good ? ISGQ_SUCCESS : ISGQ_ERR_CORRUPT;
            ck_assert_int_eq(ops->add(&run.codec, &run.call, span, message, parts, sums, true), due);
            if (parts == 3)
                ck_assert_int_eq(ops->decode(&run.codec, &run.call, span, message, out), due);
        }
    }
    unsigned char padded[4] = {0x77, 0x17};
    ck_assert_int_eq(ops->add(&run.codec, &run.call, span, padded, 1, sums, true), ISGQ_ERR_CORRUPT);
    ck_assert_int_eq(ops->decode(&run.codec, &run.call, span, padded, out), ISGQ_ERR_CORRUPT);

    static const float bad[] = {-1.0f, NAN, -0.0f, -INFINITY};
    run.codec.shared = false;
    run.call.nranks = 1;
    for (int i = 0; i < 4; i++) {
        unsigned char alone[8] = {0, 0, 0, 0, 0x77, 0x07};
        ck_assert_int_eq(ops->decode(&run.codec, &run.call, span, alone, out), ISGQ_SUCCESS);
        memcpy(alone, &bad[i], 4);
        ck_assert_int_eq(ops->decode(&run.codec, &run.call, span, alone, out), ISGQ_ERR_CORRUPT);
    }
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("intsgd");
    TCase *tcase = tcase_create("sums");
    tcase_add_loop_test(tcase, sums_have_one_answer, 2, 9);
    tcase_add_test(tcase, all_messages_have_one_width);
    tcase_add_test(tcase, extremes_of_all_ranks_fit);
    tcase_add_test(tcase, a_contribution_alone_is_delivered);
    tcase_add_test(tcase, own_steps_are_for_one_rank);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("errors");
    tcase_add_loop_test(tcase, sums_are_unbiased, 2, 9);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("extremes");
    tcase_add_test(tcase, nan_and_infinity_show);
    tcase_add_test(tcase, all_magnitudes_are_finite);
    tcase_add_test(tcase, damaged_messages_are_rejected);
    suite_add_tcase(suite, tcase);
    return suite;
}
