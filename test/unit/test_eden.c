/* SPDX-License-Identifier: Apache-2.0 */
/* The levels `eden` and `drive`: errors as the normal distribution has them whatever the values, no bias, extremes, damage. */
#include "support/check_main.h"
#include "support/codec_run.h"
#include "support/numbers.h"
#include "support/require.h"

#include "base/status.h"
#include "base/util.h"
#include "codec/levels.h"
#include "kernels/quant_math.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT 8192

static float values[COUNT], decoded[COUNT], inputs[CODEC_RUN_MAX_RANKS][COUNT], out[COUNT], again[COUNT];
static uint16_t codes[COUNT];

static const double limits[] = {0, 0.5708, 0.1331, 0.03578, 0.009592}; /* normal values with Lloyd-Max levels: D / (1 - D) */

static iq_codec_t make_codec(unsigned bits, size_t bucket)
{
    iq_codec_t codec = codec_of_family(bits == 1 ? "drive" : "eden");
    codec.bits = bits;
    codec.bucket = bucket;
    return codec;
}

/* One bucket to levels and back. */
static void round_trip(unsigned bits, uint64_t call, uint32_t rank, uint64_t first, size_t count)
{
    double header[IQ_LEVELS_HEADER_MOST / 8];
    iq_codec_t codec = make_codec(bits, COUNT);
    iq_level_draw_t draw = {.seed = 3, .call = call, .stream = IQ_STREAM_OWN, .rank = rank, .first = first};
    codec.model->encode(&codec, &draw, values, count, header, codes);
    draw.rank = 0; /* who decodes does not know */
    ck_assert_int_eq(codec.model->decode(&codec, &draw, header, codes, count, decoded), ISGQ_SUCCESS);
}

/* ---- values of many shapes ---- */

static double normal(uint64_t salt, size_t i)
{
    double sum = 0.0;
    for (uint64_t k = 0; k < 12; k++)
        sum += (double)iq_mix_unit(salt, i, k);
    return sum / 2;
}

typedef enum shape { NORMAL, HEAVY, TWO, SPIKE, RAMP, CONSTANT, HALF_ZERO, SHAPES } shape_t;

static void fill(shape_t shape, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        double x = normal(7, i);
        double made[SHAPES] = {x,       x * x * x * x * x,      i == 10 ? 1.0 : i == 50 ? 0.3 : 0.0, i == count - 1, (double)i,
                               1.0 / 3, 2 * i < count ? 0.0 : x};
        values[i] = (float)made[shape];
    }
}

static double dot(const float *a, const float *b, size_t count)
{
    double sum = 0.0;
    for (size_t i = 0; i < count; i++)
        sum += (double)a[i] * (double)b[i];
    return sum;
}

/* |decoded - values|^2 / |values|^2 */
static double nmse(size_t count)
{
    double error = 0.0;
    for (size_t i = 0; i < count; i++)
        error += ((double)decoded[i] - (double)values[i]) * ((double)decoded[i] - (double)values[i]);
    return error / dot(values, values, count);
}

/* ---- errors ---- */

START_TEST(errors_are_those_of_normal_values)
{
    static const size_t counts[] = {512, 1000, 1024, 2048, 8191, 8192};
    unsigned bits = (unsigned)_i;
    for (size_t k = 0; k < IQ_ARRAY_SIZE(counts); k++) {
        for (unsigned shape = 0; shape < SHAPES; shape++) {
            uint64_t calls = 3 + 40000 / counts[k];
            double mean = 0.0;
            fill((shape_t)shape, counts[k]);
            for (uint64_t call = 0; call < calls; call++) {
                round_trip(bits, call, 1, 0, counts[k]);
                mean += nmse(counts[k]) / (double)calls;
            }
            ck_assert_msg(fabs(mean / limits[bits] - 1.0) < 0.05, "bits %u shape %u count %zu: %g", bits, shape, counts[k], mean);
        }
    }
}
END_TEST

static double density(double x) { return exp(-x * x / 2) / sqrt(2 * acos(-1.0)); }

/* Each level is the mean of the normal values that are nearest to it (Lloyd-Max). A single value's rotation is a sign. */
START_TEST(levels_are_those_of_the_normal_distribution)
{
    unsigned bits = (unsigned)_i, half = 1u << (bits - 1);
    double header[IQ_LEVELS_HEADER_MOST / 8] = {0}, levels[8];
    iq_codec_t codec = make_codec(bits, 64);
    iq_level_draw_t draw = {.seed = 3};
    float one = 1.0f;
    memcpy(header, &one, sizeof(one));
    for (unsigned code = 0; code < 2 * half; code++) {
        codes[0] = (uint16_t)code;
        ck_assert_int_eq(codec.model->decode(&codec, &draw, header, codes, 1, decoded), ISGQ_SUCCESS);
        if (code >= half)
            levels[code - half] = fabs((double)decoded[0]);
        else
            values[half - 1 - code] = fabsf(decoded[0]);
    }
    for (unsigned k = 0; k < half; k++) {
        double from = k == 0 ? 0.0 : (levels[k - 1] + levels[k]) / 2, to = k + 1 == half ? 40.0 : (levels[k] + levels[k + 1]) / 2;
        double mean = (density(from) - density(to)) / (0.5 * (erf(to / sqrt(2)) - erf(from / sqrt(2))));
        ck_assert_double_eq_tol(levels[k], mean, 1e-6);
        REQUIRE(levels[k] == (double)values[k]);
    }
}
END_TEST

/* What makes it unbiased: the component along the values is right in every rotation. */
START_TEST(the_length_along_the_values_is_kept)
{
    for (size_t count = 1; count < 300; count++) {
        for (unsigned bits = 1; bits <= 4; bits++) {
            fill(count % 2 ? NORMAL : HEAVY, count);
            round_trip(bits, count, 2, 77, count);
            double square = dot(values, values, count);
            REQUIRE(fabs(dot(values, decoded, count) - square) <= 3e-6 * square * sqrt((double)count));
        }
    }
}
END_TEST

/* Every projection of the mean over many calls is that of the values. */
START_TEST(there_is_no_bias)
{
    static const size_t counts[] = {512, 1000, 64};
    enum { PROJECTIONS = 12 };
    static float directions[PROJECTIONS][1024];
    unsigned bits = (unsigned)_i % 4 + 1;
    size_t count = counts[_i / 4], calls = 150 * 1024 / count;
    for (unsigned shape = 0; shape < SHAPES; shape++) {
        double sum[PROJECTIONS] = {0}, squares[PROJECTIONS] = {0};
        fill((shape_t)shape, count);
        for (size_t p = 0; p < PROJECTIONS; p++) {
            for (size_t i = 0; i < count; i++)
                directions[p][i] = p == 0   ? i == 50
                                   : p == 1 ? i == 10
                                   : p == 2 ? copysignf(1.0f, values[i])
                                   : p == 3 ? i == count - 1
                                            : iq_mix_unit(p, i, 5);
        }
        for (uint64_t call = 0; call < calls; call++) {
            round_trip(bits, call, 1, 0, count);
            for (size_t i = 0; i < count; i++)
                decoded[i] -= values[i];
            for (size_t p = 0; p < PROJECTIONS; p++) {
                double error = dot(decoded, directions[p], count);
                sum[p] += error;
                squares[p] += error * error;
            }
        }
        for (size_t p = 0; p < PROJECTIONS; p++) {
            /* along the values themselves there is nothing but rounding to f32 */
            double length = sqrt(dot(values, values, count) * dot(directions[p], directions[p], count));
            double most = 5.0 * sqrt(squares[p]) + (double)calls * 1e-6 * length;
            ck_assert_msg(fabs(sum[p]) < most, "bits %u shape %u count %zu projection %zu: %g, not below %g", bits, shape, count,
                          p, sum[p], most);
        }
    }
}
END_TEST

/* Rotations of ranks, calls and buckets are independent: errors of equal inputs cancel like those of different ones. */
START_TEST(errors_of_ranks_calls_and_buckets_cancel)
{
    enum { TIMES = 64, LENGTH = 1024 };
    for (int way = 0; way < 3; way++) {
        double mean[LENGTH] = {0};
        fill(HEAVY, LENGTH);
        for (uint64_t k = 0; k < TIMES; k++) {
            round_trip(1, way == 0 ? k : 4, way == 1 ? (uint32_t)k : 0, way == 2 ? k * LENGTH : 0, LENGTH);
            for (size_t i = 0; i < LENGTH; i++)
                mean[i] += (double)decoded[i] / TIMES;
        }
        for (size_t i = 0; i < LENGTH; i++)
            decoded[i] = (float)mean[i];
        double error = nmse(LENGTH) * TIMES;
        REQUIRE(error > 0.9 * limits[1] && error < 1.1 * limits[1]);
    }
}
END_TEST

/* ---- the codec ---- */

static codec_run_t make_run(const iq_codec_t *codec, int nranks)
{
    codec_run_t run = {.codec = *codec, .count = COUNT};
    run.call = (iq_codec_call_t){.datatype = ISGQ_FLOAT32, .op = ISGQ_AVG, .nranks = nranks, .seed = 7, .call = 9};
    for (int rank = 0; rank < nranks; rank++) {
        run.inputs[rank] = inputs[rank];
        for (size_t i = 0; i < COUNT; i++)
            inputs[rank][i] = (float)(normal((uint64_t)rank, i) * ldexp(1.0, -(int)(i / 700)));
    }
    return run;
}

START_TEST(all_ways_decode_to_the_same)
{
    iq_codec_t codec = make_codec((unsigned)_i, 96 << _i);
    for (int nranks = 2; nranks <= 5; nranks++) {
        codec_run_t run = make_run(&codec, nranks);
        codec_run(&run, CODEC_DIRECT, 0, out);
        codec_run(&run, CODEC_OWNER, codec.bucket, again);
        ck_assert_mem_eq(again, out, sizeof(out));
        codec_run(&run, CODEC_CHAIN, codec.bucket, again);
        ck_assert_mem_eq(again, out, sizeof(out));
    }
}
END_TEST

/* Two roundings: that of eight contributions, an eighth as large in the mean, and that of the result. */
START_TEST(two_phases_add_their_errors)
{
    enum { CALLS = 12 };
    unsigned bits = (unsigned)_i;
    iq_codec_t codec = make_codec(bits, 1024);
    codec_run_t run = make_run(&codec, 8);
    for (int rank = 1; rank < 8; rank++)
        memcpy(inputs[rank], inputs[0], sizeof(inputs[0]));
    memcpy(values, inputs[0], sizeof(values));
    double one = 0.0, two = 0.0, both = limits[bits] / 8 + limits[bits] * (1 + limits[bits] / 8);
    for (run.call.call = 0; run.call.call < CALLS; run.call.call++) {
        codec_run(&run, CODEC_DELIVER, 1024, decoded);
        one += nmse(COUNT) / CALLS;
        codec_run(&run, CODEC_DIRECT, 1024, decoded);
        two += nmse(COUNT) / CALLS;
    }
    ck_assert_double_eq_tol(one, limits[bits] / 8, 0.08 * limits[bits] / 8);
    ck_assert_double_eq_tol(two, both, 0.08 * both);
}
END_TEST

START_TEST(messages_have_the_stated_sizes)
{
    for (unsigned bits = 1; bits <= 4; bits++) {
        iq_codec_t codec = make_codec(bits, 1024);
        iq_codec_call_t call = {.datatype = ISGQ_FLOAT32, .nranks = 8};
        ck_assert_uint_eq(codec.ops->partial_bytes(&codec, &call, (iq_span_t){0, 4096}, 1), 4 * 6 + 512 * bits);
        ck_assert_uint_eq(codec.ops->result_bytes(&codec, &call, (iq_span_t){0, 4096}), 4 * 6 + 512 * bits);
        ck_assert_uint_eq(codec.ops->result_bytes(&codec, &call, (iq_span_t){1000, 48}), 2 * 6 + 6 * bits);
    }
}
END_TEST

/* ---- extremes ---- */

START_TEST(zeros_and_spoilt_buckets)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    iq_codec_t codec = make_codec((unsigned)_i, 1024);
    codec_run_t run = make_run(&codec, 2);
    for (size_t k = 0; k < IQ_ARRAY_SIZE(bad); k++) {
        memset(inputs[0] + 1024, 0, 1024 * sizeof(float));
        memset(inputs[1] + 1024, 0, 1024 * sizeof(float));
        inputs[1][3000] = bad[k];
        codec_run(&run, CODEC_DIRECT, 0, out);
        for (size_t i = 0; i < COUNT; i++) {
            REQUIRE(!isnan(out[i]) == (i / 1024 != 2));
            REQUIRE(i / 1024 != 1 || iq_float_bits(out[i]) == 0);
        }
    }
}
END_TEST

START_TEST(any_size_of_values_is_kept)
{
    static const float sizes[] = {0x1p-149f, 0x1p-140f, 0x1p-127f, 0x1p-126f, 1e-30f, 1.0f, 1e30f, 0x1p127f, FLT_MAX};
    unsigned bits = (unsigned)_i;
    for (size_t k = 0; k < IQ_ARRAY_SIZE(sizes); k++) {
        for (size_t i = 0; i < 1024; i++)
            values[i] = sizes[k] * (float)copysign(1.0, normal(1, i));
        round_trip(bits, k, 0, 0, 1024);
        double error = 0.0;
        for (size_t i = 0; i < 1024; i++) {
            REQUIRE(isfinite(decoded[i]));
            double difference = ((double)decoded[i] - (double)values[i]) / (double)sizes[k];
            error += difference * difference / 1024;
        }
        /* multipliers and values of a few 2^-149 are coarse; those beyond f32 are cut */
        if (sizes[k] > 0x1p-135f && sizes[k] < 0x1p127f)
            REQUIRE(error < 1.5 * limits[bits]);
        else
            REQUIRE(error < (sizes[k] > 1.0f ? 1.0 : 4.0));
        values[0] = sizes[k];
        round_trip(bits, k, 0, 0, 1);
        REQUIRE(fabs((double)decoded[0] - (double)sizes[k]) <
                2 * 0x1p-149 + (sizes[k] < 0x1p127f ? 1e-5 : 0.3) * (double)sizes[k]);
    }
}
END_TEST

/* ---- damage ---- */

START_TEST(damage_is_refused_or_harmless)
{
    iq_codec_t codec = make_codec((unsigned)_i, 128);
    codec_run_t run = make_run(&codec, 2);
    int accepted = 0, refused = 0;
    for (int round = 0; round < 1000; round++) {
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

START_TEST(multipliers_are_checked)
{
    static const float bad[] = {NAN, -NAN, INFINITY, -INFINITY, -1.0f, -0.0f};
    double header[IQ_LEVELS_HEADER_MOST / 8] = {0};
    iq_codec_t codec = make_codec(2, 64);
    iq_level_draw_t draw = {.seed = 3};
    memset(codes, 0, sizeof(codes));
    for (size_t k = 0; k < IQ_ARRAY_SIZE(bad); k++) {
        memcpy(header, &bad[k], sizeof(float));
        ck_assert_int_eq(codec.model->decode(&codec, &draw, header, codes, 64, decoded), ISGQ_ERR_CORRUPT);
        ck_assert_ptr_nonnull(strstr(iq_last_error(), "eden"));
    }
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("eden");
    TCase *tcase = tcase_create("errors");
    tcase_add_loop_test(tcase, errors_are_those_of_normal_values, 1, 5);
    tcase_add_loop_test(tcase, levels_are_those_of_the_normal_distribution, 1, 5);
    tcase_add_test(tcase, the_length_along_the_values_is_kept);
    tcase_add_test(tcase, errors_of_ranks_calls_and_buckets_cancel);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("bias");
    tcase_add_loop_test(tcase, there_is_no_bias, 0, 12);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("sums");
    tcase_add_loop_test(tcase, all_ways_decode_to_the_same, 1, 5);
    tcase_add_loop_test(tcase, two_phases_add_their_errors, 1, 5);
    tcase_add_test(tcase, messages_have_the_stated_sizes);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("extremes");
    tcase_add_loop_test(tcase, zeros_and_spoilt_buckets, 1, 5);
    tcase_add_loop_test(tcase, any_size_of_values_is_kept, 1, 5);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("damage");
    tcase_add_loop_test(tcase, damage_is_refused_or_harmless, 1, 5);
    tcase_add_test(tcase, multipliers_are_checked);
    suite_add_tcase(suite, tcase);
    return suite;
}
