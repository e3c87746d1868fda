/* SPDX-License-Identifier: Apache-2.0 */
/* Codec `uniform` with levels, L2 norms and clipping: what ranks agree on, three levels in 1.6 bits, and the published
 * variances. */
#include "support/check_main.h"
#include "support/codec_run.h"
#include "support/require.h"

#include "base/status.h"
#include "base/util.h"
#include "codec/dense.h"
#include "codec/uniform.h"
#include "kernels/kernels.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT 5003

static float inputs[CODEC_RUN_MAX_RANKS][COUNT];
static float out[COUNT], again[COUNT];

/* As quantizer texts make them: global-qsgd, or terngrad if it clips. */
static iq_codec_t make_codec(unsigned levels, iq_norm_t norm, float clip, size_t bucket)
{
    iq_codec_t codec = codec_of_family(clip > 0.0f ? "terngrad" : "global-qsgd");
    bool maxima = norm == IQ_NORM_MAX && clip == 0.0f;
    codec.ops = maxima ? &iq_codec_uniform_ops : &iq_codec_uniform_norm_ops;
    codec.levels = levels;
    codec.bits = iq_bit_width(2 * levels);
    codec.norm = norm;
    codec.clip = clip;
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

/* Elements of very different sizes, about a mean that is not zero. */
static void fill_inputs(void)
{
    for (int rank = 0; rank < CODEC_RUN_MAX_RANKS; rank++)
        for (int i = 0; i < COUNT; i++)
            inputs[rank][i] = (codec_random_unit() + 0.1f * (float)rank) * ldexpf(1.0f, -(i / 500));
}

/* ---- what ranks agree on ---- */

/* The definition, two passes in double: a bucket's norm over all ranks, or the largest of their clipped scales. */
static double scale_of(const iq_codec_t *codec, int nranks, size_t begin)
{
    size_t end = codec->bucket == 0 ? COUNT : iq_min(begin + codec->bucket, COUNT);
    double squares = 0.0, largest = 0.0;
    for (int rank = 0; rank < nranks; rank++) {
        double mean = 0.0, variance = 0.0, most = 0.0;
        for (size_t i = begin; i < end; i++) {
            double x = (double)inputs[rank][i];
            mean += x / (double)(end - begin);
            squares += x * x;
            most = fmax(most, fabs(x));
        }
        for (size_t i = begin; i < end; i++)
            variance += ((double)inputs[rank][i] - mean) * ((double)inputs[rank][i] - mean) / (double)(end - begin);
        largest = fmax(largest, fmin(most, (double)codec->clip * sqrt(variance)));
    }
    return codec->norm == IQ_NORM_L2 ? sqrt(squares) : largest;
}

START_TEST(scales_follow_their_definition)
{
    static const size_t buckets[] = {32, 1000, 0, 256, 4096, 40};
    fill_inputs();
    for (int turn = 0; turn < 24; turn++) {
        int nranks = 1 + turn % 5;
        iq_codec_t codec = make_codec(3, turn % 2 ? IQ_NORM_L2 : IQ_NORM_MAX, turn % 2 ? 0.0f : 0.5f + 0.5f * (float)(turn % 8),
                                      buckets[turn / 2 % 6]);
        codec_run_t run = make_run(&codec, ISGQ_SUM, nranks);
        float *scales = codec_run_scales(&run), *other_cuts = codec_run_scales(&run);
        size_t n = codec.ops->shared_scales(&codec, COUNT);
        ck_assert_uint_eq(n, codec.bucket == 0 ? 1 : (COUNT - 1) / codec.bucket + 1);
        ck_assert_mem_eq(scales, other_cuts, n * sizeof(*scales));
        for (size_t b = 0; b < n; b++) {
            double due = scale_of(&codec, nranks, b * codec.bucket);
            REQUIRE(fabs((double)scales[b] - due) <= 1e-6 * due);
        }
        free(scales);
        free(other_cuts);
    }
}
END_TEST

/* One value alone is its own norm: never below it, so it is never clipped. */
START_TEST(no_value_is_above_its_norm)
{
    iq_codec_t codec = make_codec(7, IQ_NORM_L2, 0.0f, 0);
    codec_run_t run = make_run(&codec, ISGQ_SUM, 3);
    memset(inputs, 0, sizeof(inputs));
    run.count = 40;
    for (int round = 0; round < 20000; round++) {
        float x = ldexpf(codec_random_unit(), round % 80 - 50);
        inputs[round % 3][round % 40] = x;
        float *scales = codec_run_scales(&run);
        REQUIRE(scales[0] >= fabsf(x));
        REQUIRE((double)scales[0] <= fmax(fabs((double)x), 0x1p-63) * (1 + 1e-6));
        free(scales);
        inputs[round % 3][round % 40] = 0.0f;
    }
}
END_TEST

/* What varies by less than a rounding error is not clipped, and zeros stay zeros. */
START_TEST(values_that_are_alike_are_not_clipped)
{
    iq_codec_t codec = make_codec(1, IQ_NORM_MAX, 2.5f, 1000);
    codec_run_t run = make_run(&codec, ISGQ_SUM, 2);
    for (int i = 0; i < COUNT; i++) {
        inputs[0][i] = i < 1000 ? 0.0f : 0.1f;
        inputs[1][i] = i < 1000 ? 0.0f : -0.1f;
    }
    float *scales = codec_run_scales(&run);
    ck_assert(scales[0] == 0.0f);
    for (int b = 1; b <= 5; b++)
        ck_assert(scales[b] == 0.1f);
    free(scales);
    codec_run(&run, CODEC_CHAIN, 1, out);
    for (int i = 0; i < COUNT; i++)
        REQUIRE(out[i] == 0.0f);
}
END_TEST

/* Values beyond the shared scale come back as it, with their sign. */
START_TEST(values_beyond_the_scale_are_clipped)
{
    iq_codec_t codec = make_codec(1, IQ_NORM_MAX, 1.0f, 0);
    codec_run_t run = make_run(&codec, ISGQ_AVG, 1);
    for (int i = 0; i < COUNT; i++)
        inputs[0][i] = i % 100 == 7 ? -50.0f : codec_random_unit();
    float *scales = codec_run_scales(&run);
    codec_run(&run, CODEC_OWNER, 64, out);
    ck_assert(scales[0] > 1.0f && scales[0] < 6.0f);
    for (int i = 7; i < COUNT; i += 100)
        REQUIRE(fabsf(out[i] + scales[0]) < 1e-6f);
    free(scales);
}
END_TEST

/* ---- sums ---- */

static const struct {
    unsigned levels;
    iq_norm_t norm;
    float clip;
    size_t bucket;
} settings[] = {{1, IQ_NORM_MAX, 0.0f, 0},   {1, IQ_NORM_MAX, 2.5f, 0},   {1, IQ_NORM_L2, 0.0f, 64},
                {2, IQ_NORM_MAX, 1.0f, 96},  {3, IQ_NORM_L2, 0.0f, 1000}, {15, IQ_NORM_MAX, 0.0f, 40},
                {127, IQ_NORM_MAX, 0.0f, 0}, {127, IQ_NORM_L2, 0.0f, 512}};
enum { SETTINGS = sizeof(settings) / sizeof(settings[0]) };

static iq_codec_t codec_of_setting(int i)
{
    return make_codec(settings[i].levels, settings[i].norm, settings[i].clip, settings[i].bucket);
}

START_TEST(sums_have_one_answer)
{
    iq_codec_t codec = codec_of_setting(_i);
    fill_inputs();
    for (int nranks = 1; nranks <= 17; nranks += nranks < 4 ? 1 : 6) {
        codec_run_t run = make_run(&codec, nranks % 2 ? ISGQ_AVG : ISGQ_SUM, nranks);
        codec_run(&run, CODEC_DIRECT, 0, out);
        for (unsigned way = 0; way < CODEC_WAYS; way++) {
            codec_run(&run, (codec_way_t)way, 1, again);
            ck_assert_mem_eq(again, out, sizeof(out));
            codec_run(&run, (codec_way_t)way, 32, again);
            ck_assert_mem_eq(again, out, sizeof(out));
        }
    }
}
END_TEST

/* Global-QSGD as published wraps where all ranks have the largest value: n * ceil(127 / n) does not fit a byte. */
START_TEST(equal_extremes_do_not_wrap)
{
    for (int nranks = 1; nranks <= CODEC_RUN_MAX_RANKS; nranks++) {
        iq_codec_t codec = make_codec(127, IQ_NORM_MAX, 0.0f, 0);
        codec_run_t run = make_run(&codec, ISGQ_SUM, nranks);
        for (int rank = 0; rank < nranks; rank++)
            for (int i = 0; i < COUNT; i++)
                inputs[rank][i] = i % 2 ? -0.75f : 0.75f;
        codec_run(&run, CODEC_CHAIN, 0, out);
        for (int i = 0; i < COUNT; i++)
            REQUIRE(fabs((double)out[i] - (i % 2 ? -0.75 : 0.75) * nranks) <= 1e-6 * nranks);
    }
}
END_TEST

START_TEST(messages_have_the_stated_sizes)
{
    iq_codec_t three = make_codec(1, IQ_NORM_MAX, 2.5f, 64), bytes = make_codec(127, IQ_NORM_L2, 0.0f, 0);
    iq_codec_call_t call = {.datatype = ISGQ_FLOAT32, .nranks = 8};
    iq_span_t span = {60, 73}; /* buckets 0, 1 and 2 */
    ck_assert_uint_eq(three.ops->partial_bytes(&three, &call, span, 1), 15);
    ck_assert_uint_eq(three.ops->partial_bytes(&three, &call, span, 2), 10 * 3);
    ck_assert_uint_eq(three.ops->result_bytes(&three, &call, span), 10 * 5);
    ck_assert_uint_eq(bytes.ops->partial_bytes(&bytes, &call, span, 1), 10 * 8);
    ck_assert_uint_eq(bytes.ops->result_bytes(&bytes, &call, span), 10 * 11);
    three.shared = false;
    ck_assert_uint_eq(three.ops->result_bytes(&three, &call, span), 3 * 4 + 15);
    call.nranks = 1;
    three.shared = true;
    ck_assert_uint_eq(three.ops->result_bytes(&three, &call, span), 15);
}
END_TEST

/* ---- allgather: scales of a message's own, which are maxima ---- */

START_TEST(own_scales_are_maxima)
{
    fill_inputs();
    for (int i = 0; i < SETTINGS; i++) {
        iq_codec_t codec = codec_of_setting(i);
        codec_run_t run = make_run(&codec, ISGQ_SUM, 1);
        run.codec.shared = false;
        ck_assert(!codec.ops->needs_scales(&run.codec));
        codec_run(&run, CODEC_OWNER, 0, out);
        for (size_t e = 0; e < COUNT; e++) {
            size_t size = codec.bucket == 0 ? COUNT : codec.bucket;
            float most = 0.0f;
            for (size_t j = e / size * size; j < COUNT && j < (e / size + 1) * size && size < 200; j++)
                most = fmaxf(most, fabsf(inputs[0][j]));
            most = size < 200 ? most : 2.0f;
            REQUIRE(fabsf(out[e] - inputs[0][e]) <= most / (float)codec.levels * 1.00001f);
        }
    }
}
END_TEST

/* ---- errors ---- */

enum { RANKS = 4, MANY = 100000 };
static float many[RANKS][MANY], mean[MANY];

/* Squared error of the average: measured, and the sum of what rounding each value to the grid costs. */
static void measure_variance(const iq_codec_t *codec, double *measured, double *due, double *scale)
{
    codec_run_t run = {.codec = *codec, .count = MANY};
    run.call = (iq_codec_call_t){.datatype = ISGQ_FLOAT32, .op = ISGQ_AVG, .nranks = RANKS, .seed = 5, .call = codec->levels};
    for (int rank = 0; rank < RANKS; rank++)
        run.inputs[rank] = many[rank];
    float *scales = codec_run_scales(&run);
    codec_run(&run, CODEC_DIRECT, 0, mean);
    *measured = *due = 0.0;
    *scale = (double)scales[0];
    for (int i = 0; i < MANY; i++) {
        double error = (double)mean[i];
        for (int rank = 0; rank < RANKS; rank++) {
            double y = (double)many[rank][i] * codec->levels / *scale, part = y - floor(y);
            *due += part * (1 - part) * *scale * *scale / codec->levels / codec->levels / RANKS / RANKS;
            error -= (double)many[rank][i] / RANKS;
        }
        *measured += error * error;
    }
    free(scales);
}

/* The closed form within 5 %, and Global-QSGD's bounds: d M^2 / (4 s^2 n) for maxima, theta / n |x|^2 for the L2 norm. */
START_TEST(variance_is_as_published)
{
    static const unsigned levels[] = {1, 2, 7, 127};
    double squares = 0.0, d = MANY, n = RANKS;
    for (int rank = 0; rank < RANKS; rank++) {
        for (int i = 0; i < MANY; i++) {
            many[rank][i] = codec_random_unit() * codec_random_unit() * codec_random_unit();
            squares += (double)many[rank][i] * (double)many[rank][i];
        }
    }
    for (int i = 0; i < 4; i++) {
        double measured, due, scale, s = levels[i];
        iq_codec_t largest = make_codec(levels[i], IQ_NORM_MAX, 0.0f, 0), l2 = make_codec(levels[i], IQ_NORM_L2, 0.0f, 0);
        measure_variance(&largest, &measured, &due, &scale);
        ck_assert_msg(fabs(measured / due - 1) < 0.05, "maximum, %u levels: variance %g, not %g", levels[i], measured, due);
        ck_assert(measured <= 1.05 * d * scale * scale / (4 * s * s * n));
        measure_variance(&l2, &measured, &due, &scale);
        ck_assert_msg(fabs(measured / due - 1) < 0.05, "l2, %u levels: variance %g, not %g", levels[i], measured, due);
        ck_assert(measured <= 1.05 * fmin(d / (s * s), sqrt(d / n) / s) / n * squares);
        ck_assert_double_eq_tol(scale * scale, squares, 1e-5 * squares);
    }
}
END_TEST

/* In standard errors, along fixed signs. Values that are clipped are left out. */
START_TEST(sums_are_unbiased)
{
    iq_codec_t codec = codec_of_setting(_i);
    codec_run_t run = make_run(&codec, ISGQ_SUM, 3);
    double projection = 0.0, squares = 0.0;
    fill_inputs();
    float *scales = codec_run_scales(&run);
    for (uint64_t call = 1; call <= 20; call++) {
        run.call.call = call;
        codec_run(&run, CODEC_CHAIN, 0, out);
        uint32_t signs = 99;
        for (size_t i = 0; i < COUNT; i++) {
            float scale = scales[codec.bucket == 0 ? 0 : i / codec.bucket];
            double error = (double)out[i];
            bool clipped = false;
            for (int rank = 0; rank < 3; rank++) {
                error -= (double)inputs[rank][i];
                clipped |= fabsf(inputs[rank][i]) > scale;
            }
            signs = signs * 1664525u + 1013904223u;
            projection += clipped ? 0.0 : signs >> 31 ? error : -error;
            squares += clipped ? 0.0 : error * error;
        }
    }
    ck_assert_msg(fabs(projection) < 5 * sqrt(squares), "%g standard errors", fabs(projection) / sqrt(squares));
    free(scales);
}
END_TEST

/* ---- extreme and damaged input ---- */

START_TEST(nan_and_infinity_spoil_their_bucket_visibly)
{
    static const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    for (int i = 0; i < SETTINGS; i++) {
        for (int k = 0; k < 4; k++) {
            iq_codec_t codec = codec_of_setting(i);
            codec_run_t run = make_run(&codec, ISGQ_SUM, 3);
            fill_inputs();
            inputs[k % 3][100] = bad[k];
            codec_run(&run, (codec_way_t)(k % CODEC_WAYS), 1, out);
            for (size_t e = 0; e < COUNT; e++)
                REQUIRE(isnan(out[e]) == (codec.bucket == 0 || e / codec.bucket == 100 / codec.bucket));
        }
    }
}
END_TEST

/* Squares that f32 cannot hold: norms below 2^-63 count as that, above 2^64 they spoil the bucket; clipping squares in double. */
START_TEST(tiny_and_huge_norms_show)
{
    static const float sizes[] = {0x1p-149f, 0x1p-100f, 0x1p-64f, 0x1p-60f, 0x1p62f, 0x1p65f, 0x1p125f};
    iq_codec_t l2 = make_codec(127, IQ_NORM_L2, 0.0f, 64), clip = make_codec(127, IQ_NORM_MAX, 3.0f, 64);
    memset(inputs, 0, sizeof(inputs));
    for (unsigned k = 0; k < sizeof(sizes) / sizeof(sizes[0]); k++) {
        codec_run_t run = make_run(&l2, ISGQ_SUM, 2), clip_run = make_run(&clip, ISGQ_SUM, 2);
        inputs[0][70] = sizes[k];
        inputs[1][71] = -sizes[k];
        codec_run(&run, CODEC_DIRECT, 64, out);
        double scale = fmax(1.5 * (double)sizes[k], 0x1p-62);
        if (sizes[k] >= 0x1p64f)
            REQUIRE(isnan(out[70]) && isnan(out[64]));
        else
            REQUIRE(fabs((double)out[70] - (double)sizes[k]) <= 2 * scale / 127 && out[90] == 0.0f);
        REQUIRE(out[3] == 0.0f && out[128] == 0.0f);
        codec_run(&clip_run, CODEC_DIRECT, 64, out);
        REQUIRE(!isnan(out[70]) && out[70] >= 0.0f && (double)out[70] <= fmax((double)sizes[k], 0x1p-120) * 1.001);
    }
}
END_TEST

START_TEST(half_types_are_measured_as_their_values)
{
    static uint16_t halves[2][COUNT], halves_out[COUNT];
    fill_inputs();
    for (int rank = 0; rank < 2; rank++) {
        for (int i = 0; i < COUNT; i++) {
            halves[rank][i] = iq_float_to_bf16(inputs[rank][i]);
            inputs[rank][i] = iq_bf16_to_float(halves[rank][i]);
        }
    }
    for (int i = 0; i < SETTINGS; i++) {
        iq_codec_t codec = codec_of_setting(i);
        codec_run_t run = make_run(&codec, ISGQ_SUM, 2), half_run = run;
        half_run.call.datatype = ISGQ_BFLOAT16;
        half_run.inputs[0] = halves[0];
        half_run.inputs[1] = halves[1];
        codec_run(&run, CODEC_DIRECT, 0, out);
        codec_run(&half_run, CODEC_OWNER, 1, halves_out);
        for (int e = 0; e < COUNT; e++)
            REQUIRE(halves_out[e] == iq_float_to_bf16(out[e]));
    }
}
END_TEST

START_TEST(damaged_digits_are_rejected)
{
    iq_codec_t codec = make_codec(1, IQ_NORM_MAX, 0.0f, 0);
    iq_span_t span = {0, 7}; /* the second byte has two digits: below 9 */
    float one = 1.0f;
    uint32_t sums[7];
    iq_codec_call_t call = {.datatype = ISGQ_FLOAT32, .op = ISGQ_SUM, .nranks = 2, .scales = &one};
    for (unsigned byte = 0; byte < 256; byte++) {
        unsigned char first[2] = {(unsigned char)byte, 0}, second[2] = {0, (unsigned char)byte};
        ck_assert_int_eq(codec.ops->add(&codec, &call, span, first, 1, sums, true), byte < 243 ? ISGQ_SUCCESS : ISGQ_ERR_CORRUPT);
        ck_assert_int_eq(codec.ops->add(&codec, &call, span, second, 1, sums, true), byte < 9 ? ISGQ_SUCCESS : ISGQ_ERR_CORRUPT);
    }
    unsigned char wide[3] = {5, 0, 0}; /* of two ranks: 0..4 in 3 bits */
    ck_assert_int_eq(codec.ops->decode(&codec, &call, span, wide, out), ISGQ_ERR_CORRUPT);
    wide[0] = 4;
    ck_assert_int_eq(codec.ops->decode(&codec, &call, span, wide, out), ISGQ_SUCCESS);
    ck_assert(out[0] == 2.0f && out[1] == -2.0f);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("uniform_scales");
    TCase *tcase = tcase_create("agreement");
    tcase_add_test(tcase, scales_follow_their_definition);
    tcase_add_test(tcase, no_value_is_above_its_norm);
    tcase_add_test(tcase, values_that_are_alike_are_not_clipped);
    tcase_add_test(tcase, values_beyond_the_scale_are_clipped);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("sums");
    tcase_add_loop_test(tcase, sums_have_one_answer, 0, SETTINGS);
    tcase_add_test(tcase, equal_extremes_do_not_wrap);
    tcase_add_test(tcase, messages_have_the_stated_sizes);
    tcase_add_test(tcase, own_scales_are_maxima);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("errors");
    tcase_add_test(tcase, variance_is_as_published);
    tcase_add_loop_test(tcase, sums_are_unbiased, 0, SETTINGS);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("extremes");
    tcase_add_test(tcase, nan_and_infinity_spoil_their_bucket_visibly);
    tcase_add_test(tcase, tiny_and_huge_norms_show);
    tcase_add_test(tcase, half_types_are_measured_as_their_values);
    tcase_add_test(tcase, damaged_digits_are_rejected);
    suite_add_tcase(suite, tcase);
    return suite;
}
