/* SPDX-License-Identifier: Apache-2.0 */
/* The codec `exponential`: no bias on any number of ranks, one answer, extremes, damage. */
#include "support/check_main.h"
#include "support/codec_run.h"
#include "support/require.h"

#include "base/status.h"
#include "base/util.h"
#include "codec/dense.h"
#include "kernels/kernels.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT 2503

static float inputs[CODEC_RUN_MAX_RANKS][COUNT], out[COUNT], again[COUNT];

/* ---- sums over ranks ---- */

static iq_codec_t make_codec(unsigned bits, size_t bucket)
{
    iq_codec_t codec = codec_of_family("global-qsgd-exp");
    codec.bits = bits;
    codec.bucket = bucket;
    return codec;
}

static codec_run_t make_run(const iq_codec_t *codec, isgq_red_op_t op, int nranks)
{
    codec_run_t run = {.codec = *codec, .count = COUNT};
    run.call = (iq_codec_call_t){.datatype = ISGQ_FLOAT32, .op = op, .nranks = nranks, .seed = 7, .call = 9};
    for (int rank = 0; rank < nranks; rank++)
        run.inputs[rank] = inputs[rank];
    return run;
}

static void fill_inputs(void)
{
    for (int rank = 0; rank < CODEC_RUN_MAX_RANKS; rank++) {
        for (int i = 0; i < COUNT; i++)
            inputs[rank][i] = codec_random_unit() * ldexpf(1.0f, -(i % 7));
    }
}

/* Whoever adds in rank order gets the same, however the tensor is cut: direct, exchange, reduce_scatter. */
START_TEST(sums_in_rank_order_have_one_answer)
{
    static const size_t buckets[] = {0, 1024, 40};
    fill_inputs();
    for (int nranks = 1; nranks <= CODEC_RUN_MAX_RANKS; nranks += nranks < 9 ? 1 : 4) {
        iq_codec_t codec = make_codec(3 + (unsigned)nranks % 6, buckets[nranks % 3]);
        codec_run_t run = make_run(&codec, nranks % 2 ? ISGQ_SUM : ISGQ_AVG, nranks);
        codec_run(&run, CODEC_DIRECT, 0, out);
        for (size_t unit = 1; unit <= 8; unit += 7) {
            codec_run(&run, CODEC_DIRECT, unit, again);
            ck_assert_mem_eq(again, out, sizeof(out));
            codec_run(&run, CODEC_OWNER, unit, again);
            ck_assert_mem_eq(again, out, sizeof(out));
            codec_run(&run, CODEC_DELIVER, unit, again);
            ck_assert_mem_eq(again, out, sizeof(out));
            codec_run(&run, CODEC_CHAIN, unit, again); /* another tree from four ranks on */
            ck_assert((memcmp(again, out, sizeof(out)) == 0) == (nranks <= 3));
        }
    }
}
END_TEST

/* Random numbers: of the ranks for their values, of each addition for itself. */
START_TEST(no_two_decisions_share_their_bits)
{
    iq_codec_t codec = make_codec(8, 0);
    double alike = 0.0;
    for (int rank = 0; rank < 3; rank++)
        for (int i = 0; i < COUNT; i++)
            inputs[rank][i] = i == 0 ? 1.0f : rank < 2 ? 0.375f : 0.25f; /* 2/3 of 1/4 and 1/2 */
    codec_run_t run = make_run(&codec, ISGQ_SUM, 3);
    float *scales = codec_run_scales(&run);
    unsigned char *messages[2];
    size_t bytes;
    for (int rank = 0; rank < 2; rank++)
        messages[rank] = codec_run_message(&run, rank, (iq_span_t){0, COUNT}, scales, &bytes);
    for (size_t i = 1; i < COUNT; i++)
        alike += messages[0][i + 1] == messages[1][i + 1] ? 1.0 / (COUNT - 1) : -1.0 / (COUNT - 1);
    REQUIRE(fabs(alike) < 5 / sqrt(COUNT));
    free(messages[0]), free(messages[1]), free(scales);
}
END_TEST

/* The mean over many calls of the sum in every element, and of all its projections on what it was made of. */
static void check_bias(const iq_codec_t *codec, int nranks, codec_way_t way, uint64_t calls, size_t count)
{
    static double sums[COUNT], squares[COUNT], exact[COUNT];
    codec_run_t run = make_run(codec, ISGQ_SUM, nranks);
    double total = 0.0, total_square = 0.0;
    run.count = count;
    memset(sums, 0, sizeof(sums)), memset(squares, 0, sizeof(squares)), memset(exact, 0, sizeof(exact));
    for (int rank = 0; rank < nranks; rank++)
        for (size_t i = 0; i < count; i++)
            exact[i] += (double)inputs[rank][i];
    for (uint64_t call = 0; call < calls; call++) {
        double projection = 0.0;
        run.call.call = call;
        codec_run(&run, way, 0, out);
        for (size_t i = 0; i < count; i++) {
            double error = (double)out[i] - exact[i];
            sums[i] += error;
            squares[i] += error * error;
            projection += copysign(error, error * exact[i]) / fmax(fabs(exact[i]), 1e-3);
        }
        total += projection;
        total_square += projection * projection;
    }
    ck_assert_msg(fabs(total) <= 5 * sqrt(total_square) + 1e-6, "%d ranks, bits %u: z = %g", nranks, codec->bits,
                  total / sqrt(total_square));
    for (size_t i = 0; i < count; i++)
        ck_assert_msg(fabs(sums[i]) <= 5.5 * sqrt(squares[i]) + 1e-6 * (double)calls, "%d ranks, bits %u, element %zu: z = %g",
                      nranks, codec->bits, i, sums[i] / sqrt(squares[i]));
}

START_TEST(there_is_no_bias)
{
    int nranks = _i;
    fill_inputs();
    for (int rank = 0; rank < nranks; rank++) {
        for (int i = 0; i < 16; i++)
            inputs[rank][i] = i % 2 ? 1.0f : -0.7f; /* as large as sums can be */
        for (int i = 16; i < 24; i++)
            inputs[rank][i] = i % 2 ? 1e-3f : (float)(rank % 2) - 0.5f; /* opposite, and small */
    }
    for (unsigned bits = 3; bits <= 8; bits += bits == 3 ? 1 : 2) {
        iq_codec_t codec = make_codec(bits, 0);
        if (nranks > 4 && bits == 3) /* too few codes for as many */
            continue;
        check_bias(&codec, nranks, CODEC_DIRECT, 600, 64);
        if (bits == 8)
            check_bias(&codec, nranks, CODEC_CHAIN, 600, 64);
    }
}
END_TEST

/* Second moments grow by 9/8 for a rounding and for each level of the tree. */
START_TEST(errors_are_as_the_tree_has_them)
{
    fill_inputs();
    for (int nranks = 1; nranks <= 16; nranks++) {
        iq_codec_t codec = make_codec(8, 0);
        codec_run_t run = make_run(&codec, ISGQ_SUM, nranks);
        double square = 0.0, limit = 0.0, error = 0.0;
        codec_run(&run, CODEC_DIRECT, 0, out);
        for (size_t i = 0; i < COUNT; i++) {
            double sum = 0.0, magnitudes = 0.0;
            for (int rank = 0; rank < nranks; rank++) {
                sum += (double)inputs[rank][i];
                magnitudes += fabs((double)inputs[rank][i]);
            }
            square += (double)out[i] * (double)out[i];
            error += ((double)out[i] - sum) * ((double)out[i] - sum);
            limit += magnitudes * magnitudes;
            REQUIRE(fabs((double)out[i]) <= ldexp(1.0, (int)iq_bit_width((uint64_t)nranks - 1) + 1));
        }
        REQUIRE(square <= limit * pow(9.0 / 8, 1 + (double)iq_bit_width((uint64_t)nranks - 1)));
        REQUIRE(error > 0.0);
    }
}
END_TEST

/* As many equal powers of two as make a power of two are added without any error, at the very end of the codes' range. */
START_TEST(equal_contributions_are_exact)
{
    for (unsigned bits = 3; bits <= 8; bits++) {
        for (int nranks = 1; nranks <= 16; nranks *= 2) {
            iq_codec_t codec = make_codec(bits, 64);
            codec_run_t run = make_run(&codec, ISGQ_AVG, nranks);
            if (bits == 3 && nranks > 4)
                continue;
            for (int rank = 0; rank < nranks; rank++)
                for (int i = 0; i < COUNT; i++)
                    inputs[rank][i] = (i % 3 == 0 ? -1.7f : i % 3 == 1 ? 1.7f : 0.0f) * ldexpf(1.0f, i / 64);
            codec_run(&run, CODEC_DIRECT, 8, out);
            ck_assert_mem_eq(out, inputs[0], sizeof(out));
        }
    }
}
END_TEST

/* More ranks than the accumulator has room for in its tree, and too few codes: what passes the largest code stays there. */
START_TEST(many_ranks_do_not_wrap)
{
    static const int counts[] = {17, 63, 64, 65, 100, 1000, 16384};
    for (size_t k = 0; k < IQ_ARRAY_SIZE(counts); k++) {
        for (unsigned bits = 3; bits <= 8; bits++) {
            iq_codec_t codec = make_codec(bits, 0);
            float input = -1.0f, scale = 1.0f, value;
            double mean = 0.0;
            enum { CALLS = 12 };
            iq_codec_call_t call = {.datatype = ISGQ_FLOAT32, .op = ISGQ_AVG, .nranks = counts[k], .seed = 7, .scales = &scale};
            unsigned char *acc = malloc(codec.ops->acc_bytes(&codec, &call));
            ck_assert_uint_le(codec.ops->acc_bytes(&codec, &call), 8);
            for (int round = 0; round < CALLS; round++) {
                call.call = (uint64_t)round;
                for (call.rank = 0; call.rank < counts[k]; call.rank++)
                    codec.ops->add_own(&codec, &call, (iq_span_t){5, 1}, &input, acc, call.rank == 0);
                codec.ops->deliver(&codec, &call, (iq_span_t){5, 1}, acc, &value);
                REQUIRE(value <= 0.0f && value >= -ldexpf(1.0f, 18));
                mean += (double)value / CALLS;
            }
            REQUIRE(mean > (bits == 8 ? -1.6 : -4.0) && (bits < 5 || mean < -0.6));
            free(acc);
        }
    }
}
END_TEST

/* A contribution by itself is what its message says: what error feedback looks at. */
START_TEST(one_of_many_contributions_can_be_delivered)
{
    iq_codec_t codec = make_codec(6, 256);
    fill_inputs();
    codec_run_t run = make_run(&codec, ISGQ_SUM, 5);
    float *scales = codec_run_scales(&run);
    iq_span_t span = {100, 900};
    size_t bytes;
    run.call.scales = scales;
    run.call.rank = 3;
    unsigned char *message = codec_run_message(&run, 3, span, scales, &bytes), *acc = malloc(900 * 8);
    codec.ops->add_own(&codec, &run.call, span, inputs[3] + 100, acc, true);
    codec.ops->deliver(&codec, &run.call, span, acc, out);
    ck_assert_int_eq(codec.ops->add(&codec, &run.call, span, message + 1, 1, acc, true), ISGQ_SUCCESS);
    codec.ops->deliver(&codec, &run.call, span, acc, again);
    ck_assert_mem_eq(out, again, 900 * sizeof(float));
    for (size_t i = 0; i < 900; i++) {
        double value = (double)inputs[3][100 + i];
        REQUIRE(fabs((double)out[i] - value) <= fmax(fabs(value), ldexp(1.0, -20)));
    }
    free(message), free(acc), free(scales);
}
END_TEST

START_TEST(half_types_are_quantized_as_their_values)
{
    static uint16_t halves[3][COUNT], result[COUNT];
    iq_codec_t codec = make_codec(8, 128);
    fill_inputs();
    for (int rank = 0; rank < 3; rank++)
        for (int i = 0; i < COUNT; i++)
            inputs[rank][i] = iq_bf16_to_float(halves[rank][i] = iq_float_to_bf16(inputs[rank][i]));
    codec_run_t run = make_run(&codec, ISGQ_AVG, 3), half_run = run;
    half_run.call.datatype = ISGQ_BFLOAT16;
    half_run.call.accumulate = true;
    for (int rank = 0; rank < 3; rank++)
        half_run.inputs[rank] = halves[rank];
    codec_run(&run, CODEC_DIRECT, 0, out);
    memcpy(result, halves[0], sizeof(result));
    codec_run(&half_run, CODEC_DIRECT, 64, result);
    for (int i = 0; i < COUNT; i++) {
        float value = iq_bf16_to_float(iq_float_to_bf16(out[i]));
        REQUIRE(result[i] == iq_float_to_bf16(inputs[0][i] + value));
    }
}
END_TEST

/* ---- what is only moved: scales of its own, one rounding ---- */

START_TEST(without_shared_scales_one_contribution_is_rounded_once)
{
    iq_codec_t codec = make_codec(8, 1024);
    codec.shared = false;
    fill_inputs();
    codec_run_t run = make_run(&codec, ISGQ_SUM, 1);
    ck_assert(!codec.ops->needs_scales(&codec));
    ck_assert_uint_eq(codec.ops->result_bytes(&codec, &run.call, (iq_span_t){1000, 48}), 2 * 4 + 48);
    codec_run(&run, CODEC_OWNER, 0, out);
    codec_run(&run, CODEC_CHAIN, 1024, again);
    ck_assert_mem_eq(out, again, sizeof(out));
    for (int i = 0; i < COUNT; i++) {
        double value = (double)inputs[0][i];
        REQUIRE(fabs((double)out[i] - value) <= fabs(value));
        REQUIRE((double)out[i] * value > 0.0);
    }
    codec_run(&run, CODEC_DELIVER, 64, again); /* nothing is sent, nothing rounded */
    ck_assert_mem_eq(again, inputs[0], sizeof(again));
}
END_TEST

START_TEST(messages_have_the_stated_sizes)
{
    iq_codec_call_t call = {.datatype = ISGQ_FLOAT32, .nranks = 8};
    for (unsigned bits = 3; bits <= 8; bits++) {
        iq_codec_t codec = make_codec(bits, 1024);
        for (int parts = 1; parts <= 8; parts++)
            ck_assert_uint_eq(codec.ops->partial_bytes(&codec, &call, (iq_span_t){5, 1000}, parts), 125 * bits);
        ck_assert_uint_eq(codec.ops->result_bytes(&codec, &call, (iq_span_t){5, 1001}), 126 * bits);
        ck_assert(codec.ops->needs_scales(&codec) && !codec.ops->result_is_exact(&codec, &call));
        ck_assert_int_eq(codec.ops->supports(&codec, ISGQ_FLOAT16, ISGQ_AVG), ISGQ_SUCCESS);
        ck_assert_int_eq(codec.ops->supports(&codec, ISGQ_FLOAT64, ISGQ_SUM), ISGQ_ERR_UNSUPPORTED);
        ck_assert_int_eq(codec.ops->supports(&codec, ISGQ_FLOAT32, ISGQ_MIN), ISGQ_ERR_UNSUPPORTED);
    }
}
END_TEST

/* ---- extremes ---- */

START_TEST(nan_and_infinity_spoil_their_bucket_and_zeros_stay)
{
    static const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    for (size_t k = 0; k < IQ_ARRAY_SIZE(bad); k++) {
        for (int way = 0; way < CODEC_WAYS; way++) {
            iq_codec_t codec = make_codec(3 + (unsigned)way, 512);
            codec_run_t run = make_run(&codec, ISGQ_SUM, 3);
            fill_inputs();
            inputs[2][700] = bad[k];
            for (int rank = 0; rank < 3; rank++)
                for (int i = 1024; i < 1600; i++)
                    inputs[rank][i] = i % 2 ? 0.0f : -0.0f;
            codec_run(&run, (codec_way_t)way, 1, out);
            for (int i = 0; i < COUNT; i++) {
                REQUIRE(!isnan(out[i]) == (i / 512 != 1));
                REQUIRE(i < 1024 || i >= 1600 || iq_float_bits(out[i]) == 0);
            }
        }
    }
}
END_TEST

START_TEST(any_size_of_values_works)
{
    static const float sizes[] = {0x1p-149f, 0x1p-140f, 0x1.8p-127f, 0x1p-126f, 1e-30f, 3.0f, 1e30f, 0x1p127f, FLT_MAX};
    for (size_t k = 0; k < IQ_ARRAY_SIZE(sizes); k++) {
        iq_codec_t codec = make_codec(8, 0);
        codec_run_t run = make_run(&codec, ISGQ_AVG, 4);
        for (int rank = 0; rank < 4; rank++)
            for (int i = 0; i < COUNT; i++)
                inputs[rank][i] = sizes[k];
        codec_run(&run, CODEC_DIRECT, 0, out);
        ck_assert_mem_eq(out, inputs[0], sizeof(out));
    }
}
END_TEST

/* ---- damage ---- */

START_TEST(codes_that_nobody_sends_are_refused)
{
    iq_codec_t codec = make_codec(5, 0); /* 1 and 3 of 15 powers are head room */
    float scale = 1.0f;
    iq_codec_call_t call = {.datatype = ISGQ_FLOAT32, .op = ISGQ_SUM, .nranks = 8, .seed = 7, .scales = &scale};
    unsigned char acc[16];
    for (uint8_t code = 0; code < 32; code++) {
        unsigned char message[5] = {0};
        iq_kernels()->pack8(&code, 1, 5, message);
        unsigned exponent = code % 16;
        isgq_result_t whole = code == 16 ? ISGQ_ERR_CORRUPT : ISGQ_SUCCESS;
        isgq_result_t part = code == 16 || (exponent != 0 && exponent < 5) ? ISGQ_ERR_CORRUPT : ISGQ_SUCCESS;
        scale = 1.0f;
        ck_assert_int_eq(codec.ops->add(&codec, &call, (iq_span_t){0, 1}, message, 1, acc, true), part);
        ck_assert_int_eq(codec.ops->add(&codec, &call, (iq_span_t){0, 1}, message, 2, acc, true), whole);
        ck_assert_int_eq(codec.ops->decode(&codec, &call, (iq_span_t){0, 1}, message, out), whole);
        scale = code % 2 ? INFINITY : 0.0f; /* a bucket without codes */
        ck_assert_int_eq(codec.ops->decode(&codec, &call, (iq_span_t){0, 1}, message, out),
                         code == 0 ? ISGQ_SUCCESS : ISGQ_ERR_CORRUPT);
    }
    scale = 1.0f;
    ck_assert_int_eq(codec.ops->decode(&codec, &call, (iq_span_t){0, 1}, (unsigned char[]){5, 0, 0, 0, 1}, out),
                     ISGQ_ERR_CORRUPT);
    ck_assert_ptr_nonnull(strstr(iq_last_error(), "after the last code"));
}
END_TEST

START_TEST(damage_is_refused_or_harmless)
{
    int accepted = 0, refused = 0;
    fill_inputs();
    for (int round = 0; round < 3000; round++) {
        iq_codec_t codec = make_codec(3 + (unsigned)round % 6, round % 5 ? 128 : 0);
        codec.shared = round % 2;
        codec_run_t run = make_run(&codec, ISGQ_SUM, codec.shared ? 3 : 1);
        iq_span_t span = {codec_random() % 1000, 1 + codec_random() % 300};
        float *scales = codec_run_scales(&run);
        size_t bytes;
        unsigned char *message = codec_run_message(&run, 0, span, scales, &bytes), *acc = malloc(300 * 8);
        run.call.scales = scales;
        for (unsigned flips = codec_random() % 4; flips > 0; flips--)
            message[1 + codec_random() % bytes] ^= (unsigned char)(1u << codec_random() % 8);
        for (size_t i = 1; round % 7 == 0 && i <= bytes; i++)
            message[i] = (unsigned char)codec_random();
        isgq_result_t result = codec.ops->add(&codec, &run.call, span, message + 1, 1, acc, true);
        REQUIRE(result == ISGQ_SUCCESS || result == ISGQ_ERR_CORRUPT);
        if (result == ISGQ_SUCCESS) {
            codec.ops->deliver(&codec, &run.call, span, acc, out);
            ck_assert_int_eq(codec.ops->decode(&codec, &run.call, span, message + 1, again), ISGQ_SUCCESS);
            if (codec.shared) /* the same of one contribution */
                ck_assert_mem_eq(out, again, span.count * sizeof(float));
        }
        accepted += result == ISGQ_SUCCESS;
        refused += result != ISGQ_SUCCESS;
        free(message), free(acc), free(scales);
    }
    ck_assert_int_gt(accepted, 500);
    ck_assert_int_gt(refused, 300);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("exponential");
    TCase *tcase = tcase_create("sums");
    tcase_add_test(tcase, sums_in_rank_order_have_one_answer);
    tcase_add_test(tcase, no_two_decisions_share_their_bits);
    tcase_add_test(tcase, equal_contributions_are_exact);
    tcase_add_test(tcase, many_ranks_do_not_wrap);
    tcase_add_test(tcase, one_of_many_contributions_can_be_delivered);
    tcase_add_test(tcase, half_types_are_quantized_as_their_values);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("errors");
    tcase_add_loop_test(tcase, there_is_no_bias, 2, 9);
    tcase_add_test(tcase, errors_are_as_the_tree_has_them);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("messages");
    tcase_add_test(tcase, without_shared_scales_one_contribution_is_rounded_once);
    tcase_add_test(tcase, messages_have_the_stated_sizes);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("extremes");
    tcase_add_test(tcase, nan_and_infinity_spoil_their_bucket_and_zeros_stay);
    tcase_add_test(tcase, any_size_of_values_works);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("damage");
    tcase_add_test(tcase, codes_that_nobody_sends_are_refused);
    tcase_add_test(tcase, damage_is_refused_or_harmless);
    suite_add_tcase(suite, tcase);
    return suite;
}
