/* SPDX-License-Identifier: Apache-2.0 */
/* The codec `levels`, whatever the model: messages and their sizes, the same bits on every way, types, extremes. */
#include "support/check_main.h"
#include "support/codec_run.h"
#include "support/level_kinds.h"
#include "support/require.h"

#include "base/status.h"
#include "base/util.h"
#include "kernels/kernels.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT 5003

static float inputs[CODEC_RUN_MAX_RANKS][COUNT];
static float out[COUNT], again[COUNT];

static codec_run_t make_run(const iq_codec_t *codec, isgq_red_op_t op, int nranks)
{
    codec_run_t run = {.codec = *codec, .count = COUNT};
    run.call = (iq_codec_call_t){.datatype = ISGQ_FLOAT32, .op = op, .nranks = nranks, .seed = 7, .call = 9};
    for (int rank = 0; rank < nranks; rank++)
        run.inputs[rank] = inputs[rank];
    return run;
}

/* Buckets of very different sizes. */
static void fill_inputs(void)
{
    for (int rank = 0; rank < CODEC_RUN_MAX_RANKS; rank++) {
        for (int i = 0; i < COUNT; i++)
            inputs[rank][i] = codec_random_unit() * codec_random_unit() * ldexpf(1.0f, -(i / 500));
    }
}

/* Every way to the result in cuts that do not part buckets. */
static void check_ways(const codec_run_t *run)
{
    static const codec_way_t ways[] = {CODEC_DIRECT, CODEC_OWNER, CODEC_CHAIN};
    codec_run(run, CODEC_DIRECT, 0, out);
    for (size_t way = 0; way < IQ_ARRAY_SIZE(ways); way++) {
        codec_run(run, ways[way], 0, again);
        ck_assert_mem_eq(again, out, sizeof(out));
        if (run->codec.bucket < COUNT) {
            codec_run(run, ways[way], run->codec.bucket, again);
            ck_assert_mem_eq(again, out, sizeof(out));
        }
    }
}

/* ---- sums ---- */

START_TEST(ways_have_one_answer)
{
    iq_codec_t codec = level_kind_codec(_i);
    fill_inputs();
    for (int nranks = 2; nranks <= 5; nranks++) {
        codec_run_t run = make_run(&codec, nranks % 2 ? ISGQ_SUM : ISGQ_AVG, nranks);
        check_ways(&run);
        for (int i = 0; i < COUNT; i++)
            REQUIRE(isfinite(out[i]));
    }
}
END_TEST

/* The only contribution (allgather) is rounded once: its result is the message of its values. */
START_TEST(a_single_rank_is_rounded_once)
{
    iq_codec_t codec = level_kind_codec(_i);
    iq_span_t span = {0, COUNT};
    fill_inputs();
    codec_run_t run = make_run(&codec, ISGQ_SUM, 1);
    size_t bytes = codec.ops->result_bytes(&codec, &run.call, span);
    unsigned char *message = malloc(bytes);
    codec.ops->finish(&codec, &run.call, span, inputs[0], message);
    ck_assert_int_eq(codec.ops->decode(&codec, &run.call, span, message, out), ISGQ_SUCCESS);
    codec_run(&run, CODEC_OWNER, 0, again);
    ck_assert_mem_eq(again, out, sizeof(out));
    codec_run(&run, CODEC_CHAIN, codec.bucket < COUNT ? codec.bucket : 0, again);
    ck_assert_mem_eq(again, out, sizeof(out));
    codec_run(&run, CODEC_DELIVER, 1, again); /* and where nothing is sent, not at all */
    ck_assert_mem_eq(again, inputs[0], sizeof(out));
    free(message);
}
END_TEST

/* What the accumulator delivers is the sum of what every rank's message says, in rank order. */
START_TEST(deliver_gives_the_sum_of_messages)
{
    static float decoded[COUNT];
    iq_codec_t codec = level_kind_codec(_i);
    iq_span_t span = {0, COUNT};
    fill_inputs();
    codec_run_t run = make_run(&codec, ISGQ_AVG, 3);
    for (int rank = 0; rank < 3; rank++) {
        size_t bytes;
        unsigned char *message = codec_run_message(&run, rank, span, NULL, &bytes);
        ck_assert_int_eq(codec.ops->add(&codec, &run.call, span, message + 1, 1, decoded, true), ISGQ_SUCCESS);
        for (int i = 0; i < COUNT; i++)
            out[i] = rank == 0 ? decoded[i] : out[i] + decoded[i];
        free(message);
    }
    codec_run(&run, CODEC_DELIVER, codec.bucket < COUNT ? codec.bucket : 0, again);
    for (int i = 0; i < COUNT; i++)
        REQUIRE(again[i] == out[i] / 3.0f);
}
END_TEST

/* Values of one magnitude that every model keeps, so that any cut gives the same; a cut bucket has a header for each part. */
START_TEST(cuts_inside_buckets_are_whole)
{
    iq_codec_t codec = level_kind_codec(_i);
    for (int rank = 0; rank < 4; rank++) {
        for (int i = 0; i < COUNT; i++)
            inputs[rank][i] = codec_random() % 2 ? 0.25f : -0.25f;
    }
    if (codec.norm == IQ_NORM_L2 && level_kinds[_i].bits != 0)
        return; /* the norm of many is above each */
    for (int nranks = 1; nranks <= 4; nranks++) {
        codec_run_t run = make_run(&codec, ISGQ_SUM, nranks);
        codec_run(&run, nranks == 1 ? CODEC_DIRECT : CODEC_DELIVER, 1, out);
        for (int i = 0; i < COUNT; i++) {
            float sum = 0.0f;
            for (int rank = 0; rank < nranks; rank++)
                sum += inputs[rank][i];
            REQUIRE(fabsf(out[i] - sum) <= 1e-6f);
        }
        codec_run(&run, CODEC_CHAIN, 1, out);
    }
}
END_TEST

/* A power of two scales levels and values alike: the average of four is the sum's message, a quarter as large. */
START_TEST(averages_are_divided_before_they_are_rounded)
{
    iq_codec_t codec = level_kind_codec(_i);
    fill_inputs();
    codec_run_t run = make_run(&codec, ISGQ_SUM, 4);
    codec_run(&run, CODEC_DIRECT, 0, out);
    run.call.op = ISGQ_AVG;
    codec_run(&run, CODEC_DIRECT, 0, again);
    for (int i = 0; i < COUNT; i++)
        REQUIRE(again[i] == out[i] / 4.0f);
}
END_TEST

START_TEST(half_types_are_quantized_as_their_values)
{
    static uint16_t halves[2][COUNT], halves_out[COUNT], accumulated[COUNT];
    iq_codec_t codec = level_kind_codec(_i);
    fill_inputs();
    for (int type = ISGQ_FLOAT16; type <= ISGQ_BFLOAT16; type += ISGQ_BFLOAT16 - ISGQ_FLOAT16) {
        bool f16 = type == ISGQ_FLOAT16;
        for (int rank = 0; rank < 2; rank++) {
            for (int i = 0; i < COUNT; i++) {
                halves[rank][i] = f16 ? iq_float_to_f16(inputs[rank][i]) : iq_float_to_bf16(inputs[rank][i]);
                inputs[rank][i] = f16 ? iq_f16_to_float(halves[rank][i]) : iq_bf16_to_float(halves[rank][i]);
            }
        }
        codec_run_t run = make_run(&codec, ISGQ_AVG, 2), half_run = run;
        half_run.call.datatype = (isgq_data_type_t)type;
        half_run.inputs[0] = halves[0];
        half_run.inputs[1] = halves[1];
        codec_run(&run, CODEC_DIRECT, 0, out);
        codec_run(&half_run, CODEC_OWNER, 0, halves_out);
        memcpy(accumulated, halves[0], sizeof(accumulated));
        half_run.call.accumulate = true;
        codec_run(&half_run, CODEC_OWNER, 0, accumulated);
        for (int i = 0; i < COUNT; i++) {
            REQUIRE(halves_out[i] == (f16 ? iq_float_to_f16(out[i]) : iq_float_to_bf16(out[i])));
            float value = f16 ? iq_f16_to_float(halves_out[i]) : iq_bf16_to_float(halves_out[i]);
            REQUIRE(accumulated[i] == (f16 ? iq_float_to_f16(inputs[0][i] + value) : iq_float_to_bf16(inputs[0][i] + value)));
        }
    }
}
END_TEST

START_TEST(random_bits_depend_on_rank_call_and_seed_only)
{
    iq_codec_t codec = level_kind_codec(_i);
    iq_span_t span = {0, COUNT};
    unsigned char *messages[5], *results[2];
    size_t bytes;
    fill_inputs();
    memcpy(inputs[1], inputs[0], sizeof(inputs[0]));
    codec_run_t run = make_run(&codec, ISGQ_SUM, 2), next_call = run, next_seed = run;
    next_call.call.call++;
    next_seed.call.seed++;
    messages[0] = codec_run_message(&run, 0, span, NULL, &bytes);
    messages[1] = codec_run_message(&run, 1, span, NULL, &bytes);
    messages[2] = codec_run_message(&next_call, 0, span, NULL, &bytes);
    messages[3] = codec_run_message(&next_seed, 0, span, NULL, &bytes);
    messages[4] = codec_run_message(&run, 0, span, NULL, &bytes);
    for (int i = 1; i < 4; i++)
        ck_assert((memcmp(messages[0] + 1, messages[i] + 1, bytes) != 0) == level_kinds[_i].is_random);
    ck_assert_mem_eq(messages[0] + 1, messages[4] + 1, bytes);
    for (int rank = 0; rank < 2; rank++) { /* nobody can tell who owned a result */
        iq_codec_call_t call = run.call;
        call.rank = rank;
        results[rank] = malloc(bytes);
        codec.ops->finish(&codec, &call, span, inputs[0], results[rank]);
    }
    ck_assert_mem_eq(results[0], results[1], bytes);
    ck_assert((memcmp(results[0], messages[0] + 1, bytes) != 0) == level_kinds[_i].is_random);
    for (int i = 0; i < 5; i++)
        free(messages[i]);
    free(results[0]), free(results[1]);
}
END_TEST

/* ---- messages ---- */

START_TEST(messages_have_the_stated_sizes)
{
    static const struct {
        const char *family;
        unsigned bits;
        size_t bytes; /* of 2048 elements in buckets of 512, from the middle of one on: five headers */
    } sizes[] = {{"onebit", 1, 5 * 8 + 256},  {"ef-sign", 1, 5 * 4 + 256},  {"bingrad-b", 1, 5 * 8 + 256}, {"bingrad-pb", 1, 5 * 4 + 256},
                 {"orq-3", 2, 5 * 12 + 410},  {"orq-5", 3, 5 * 20 + 602},   {"orq-9", 4, 5 * 36 + 820},    {"natural", 8, 5 * 1 + 2304},
                 {"qsgd", 2, 5 * 4 + 410},    {"qsgd", 3, 5 * 4 + 768},     {"qsgd", 4, 5 * 4 + 1024},     {"qsgd", 8, 5 * 4 + 2048}};
    iq_codec_call_t call = {.datatype = ISGQ_FLOAT32, .nranks = 8};
    for (size_t i = 0; i < IQ_ARRAY_SIZE(sizes); i++) {
        iq_codec_t codec = codec_of_family(sizes[i].family);
        codec.bits = sizes[i].bits;
        codec.bucket = 512;
        ck_assert_uint_eq(codec.ops->partial_bytes(&codec, &call, (iq_span_t){256, 2048}, 1), sizes[i].bytes);
        ck_assert_uint_eq(codec.ops->result_bytes(&codec, &call, (iq_span_t){256, 2048}), sizes[i].bytes);
        ck_assert_uint_eq(codec.ops->partial_bytes(&codec, &call, (iq_span_t){256, 2048}, 2), 8192);
        ck_assert_uint_eq(codec.ops->partial_bytes(&codec, &call, (iq_span_t){256, 0}, 1), 0);
        ck_assert_uint_eq(codec.ops->result_bytes(&codec, &call, (iq_span_t){100, 0}), 0);
    }
}
END_TEST

START_TEST(messages_have_worked_bytes)
{
    static const float values[] = {1, -0.5f, 0.25f, 0, -1};
    static const struct {
        const char *family;
        size_t bytes;
        unsigned char message[27];
    } worked[] = {
        {"bingrad-b", 9, {0x00, 0x00, 0x40, 0xbf, 0x55, 0x55, 0xd5, 0x3e, 0x0d}}, /* -3/4, 5/12; 1 0 1 1 0 */
        {"onebit", 9, {0x00, 0x00, 0x00, 0xbf, 0x00, 0x00, 0x20, 0x3f, 0x05}},    /* -1/2, 5/8; 1 0 1 0 0 */
        {"ef-sign", 5, {0xcd, 0xcc, 0x0c, 0x3f, 0x0d}},                           /* 0.55; 1 0 1 1 0 */
        {"orq-5",                                                                 /* all values; 4 1 3 and 2 0 */
         27,
         {0x00, 0x00, 0x80, 0xbf, 0x00, 0x00, 0x00, 0xbf, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
          0x80, 0x3e, 0x00, 0x00, 0x80, 0x3f, 0x54, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00}}};
    for (size_t i = 0; i < IQ_ARRAY_SIZE(worked); i++) {
        iq_codec_t codec = codec_of_family(worked[i].family);
        iq_codec_call_t call = {.datatype = ISGQ_FLOAT32, .op = ISGQ_SUM, .nranks = 2, .seed = 1, .call = 1};
        unsigned char message[27];
        ck_assert_uint_eq(codec.ops->partial_bytes(&codec, &call, (iq_span_t){0, 5}, 1), worked[i].bytes);
        codec.ops->encode(&codec, &call, (iq_span_t){0, 5}, values, message);
        ck_assert_mem_eq(message, worked[i].message, worked[i].bytes);
    }
}
END_TEST

/* The same bits from any compiler, at any optimization, on any CPU. */
START_TEST(messages_have_known_bytes)
{
    static const uint64_t hashes[LEVEL_KINDS] = {
        0xcfe3be6619dcbf75u, 0x2b470e180ad2b3f3u, 0x827144a0da46cc79u, 0x52692195273ac917u, 0xc15c3817d6b029e8u,
        0x04c2e3c1c4eece7cu, 0x5e10019ab6473629u, 0x009453be6e89f610u, 0x5c184db6c4fe1943u, 0x1997afbfb04d1e94u,
        0x8db67794bbfa7911u, 0xa154dca83a767536u, 0x554358bcce5ef935u,
    };
    iq_codec_t codec = level_kind_codec(_i);
    iq_span_t span = {61, 4093};
    size_t bytes;
    for (int i = 0; i < COUNT; i++) {
        iq_philox_block_t block = iq_draw(3, 1, 0, 0, 4 * (uint64_t)i);
        inputs[1][i] = ((float)(int32_t)block.word[0] * 0x1p-31f) * ((float)(block.word[1] >> 8) * 0x1p-24f) * ldexpf(1.0f, i / 500);
    }
    codec_run_t run = make_run(&codec, ISGQ_SUM, 2);
    unsigned char *message = codec_run_message(&run, 1, span, NULL, &bytes);
    uint64_t hash = iq_hash(IQ_HASH_START, message + 1, bytes);
    ck_assert_msg(hash == hashes[_i], "%s: 0x%016llxu", level_kinds[_i].family, (unsigned long long)hash);
    free(message);
}
END_TEST

START_TEST(what_is_not_supported_is_named)
{
    iq_codec_t codec = level_kind_codec(_i);
    ck_assert_int_eq(codec.ops->supports(&codec, ISGQ_BFLOAT16, ISGQ_AVG), ISGQ_SUCCESS);
    ck_assert_int_eq(codec.ops->supports(&codec, ISGQ_INT32, ISGQ_SUM), ISGQ_ERR_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(iq_last_error(), level_kinds[_i].family));
    ck_assert_ptr_nonnull(strstr(iq_last_error(), "i32"));
    ck_assert_int_eq(codec.ops->supports(&codec, ISGQ_FLOAT32, ISGQ_MAX), ISGQ_ERR_UNSUPPORTED);
    ck_assert_ptr_nonnull(strstr(iq_last_error(), "max"));
    ck_assert(!codec.ops->needs_scales(&codec) && !codec.ops->result_is_exact(&codec, NULL));
}
END_TEST

/* ---- extremes ---- */

/* Two ranks; the second bucket is a and b once, and `rest` beside. */
static void run_bucket(const iq_codec_t *codec, float a, float b, float rest)
{
    codec_run_t run = make_run(codec, ISGQ_SUM, 2);
    fill_inputs();
    for (size_t i = codec->bucket; i < 2 * codec->bucket && i < COUNT; i++)
        inputs[0][i] = inputs[1][i] = rest;
    inputs[0][codec->bucket + 10] = a;
    inputs[1][codec->bucket + 11] = b;
    codec_run(&run, CODEC_DIRECT, 0, out);
    codec_run(&run, CODEC_CHAIN, 0, again);
    ck_assert_mem_eq(again, out, sizeof(out));
}

START_TEST(nan_and_infinity_spoil_their_bucket_visibly)
{
    static const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    iq_codec_t codec = level_kind_codec(_i);
    codec.bucket = iq_min(codec.bucket, 1024);
    for (int variant = 0; variant < 8; variant++) {
        run_bucket(&codec, variant % 2 ? bad[variant / 2] : 0.0f, variant % 2 ? 0.0f : bad[variant / 2], 0.0f);
        for (size_t i = 0; i < COUNT; i++)
            REQUIRE(!isnan(out[i]) == !(i >= codec.bucket && i < 2 * codec.bucket));
        ck_assert(iq_float_bits(out[codec.bucket]) == 0x7fc00000u);
    }
    run_bucket(&codec, 0.0f, 0.0f, 0x1.fffffep127f); /* the sum overflows, or the model's levels do not reach so far */
    for (size_t i = 0; i < COUNT; i++)
        REQUIRE(isfinite(out[i]) || (i >= codec.bucket && i < 2 * codec.bucket && isnan(out[i])));
}
END_TEST

START_TEST(zeros_stay_zero)
{
    iq_codec_t codec = level_kind_codec(_i);
    codec.bucket = iq_min(codec.bucket, 1024);
    run_bucket(&codec, 0.0f, 0.0f, 0.0f);
    for (size_t i = codec.bucket; i < 2 * codec.bucket; i++)
        REQUIRE(out[i] == 0.0f);
    run_bucket(&codec, -0.0f, 0.0f, -0.0f);
    for (size_t i = codec.bucket; i < 2 * codec.bucket; i++)
        REQUIRE(out[i] == 0.0f);
}
END_TEST

/* One contribution of any size comes back finite, and no larger than its bucket, but for what rounding to a power of two adds. */
START_TEST(tiny_and_huge_buckets_are_finite)
{
    static const float sizes[] = {0x1p-149f, 0x1p-140f, 0x1p-127f, 0x1p-126f, 0x1p-121f, 0x1p-119f, 1e30f, 0x1p127f, FLT_MAX};
    iq_codec_t codec = level_kind_codec(_i);
    for (size_t k = 0; k < IQ_ARRAY_SIZE(sizes); k++) {
        codec_run_t run = make_run(&codec, ISGQ_SUM, 1);
        double most = fmax(2.0 * (double)sizes[k], 0x1p-120 * 2);
        if (codec.norm == IQ_NORM_L2)
            most *= sqrt((double)codec.bucket);
        for (int i = 0; i < COUNT; i++)
            inputs[0][i] = i % 3 == 0 ? -sizes[k] : codec_random_unit() * sizes[k];
        for (size_t unit = 0; unit <= 1; unit++) {
            codec_run(&run, CODEC_DIRECT, unit, out);
            for (int i = 0; i < COUNT; i++)
                REQUIRE(isfinite(out[i]) && fabs((double)out[i]) <= most);
        }
    }
}
END_TEST

START_TEST(a_single_element_is_kept)
{
    static const float values[] = {0.0f, 1.0f, -0.3f, 0x1p-149f, -0x1p-126f, FLT_MAX, -FLT_MAX};
    iq_codec_t codec = level_kind_codec(_i);
    for (size_t k = 0; k < IQ_ARRAY_SIZE(values); k++) {
        codec_run_t run = make_run(&codec, ISGQ_SUM, 1);
        run.count = 1;
        inputs[0][0] = values[k];
        codec_run(&run, CODEC_DIRECT, 0, out);
        double size = fabs((double)values[k]), error = fabs((double)out[0] - (double)values[k]);
        if (strcmp(level_kinds[_i].family, "natural") == 0)
            REQUIRE(error <= fmax(size, 0x1p-126)); /* the next powers of two */
        else if (strcmp(level_kinds[_i].family, "qsgd") == 0)
            REQUIRE(error <= fmax(size * 0x1p-19, 0x1p-120)); /* f32 steps */
        else
            REQUIRE(out[0] == values[k]);
    }
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("levels");
    TCase *tcase = tcase_create("sums");
    tcase_add_loop_test(tcase, ways_have_one_answer, 0, LEVEL_KINDS);
    tcase_add_loop_test(tcase, a_single_rank_is_rounded_once, 0, LEVEL_KINDS);
    tcase_add_loop_test(tcase, deliver_gives_the_sum_of_messages, 0, LEVEL_KINDS);
    tcase_add_loop_test(tcase, cuts_inside_buckets_are_whole, 0, LEVEL_KINDS);
    tcase_add_loop_test(tcase, averages_are_divided_before_they_are_rounded, 0, LEVEL_KINDS);
    tcase_add_loop_test(tcase, half_types_are_quantized_as_their_values, 0, LEVEL_KINDS);
    tcase_add_loop_test(tcase, random_bits_depend_on_rank_call_and_seed_only, 0, LEVEL_KINDS);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("messages");
    tcase_add_test(tcase, messages_have_the_stated_sizes);
    tcase_add_test(tcase, messages_have_worked_bytes);
    tcase_add_loop_test(tcase, messages_have_known_bytes, 0, LEVEL_KINDS);
    tcase_add_loop_test(tcase, what_is_not_supported_is_named, 0, LEVEL_KINDS);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("extremes");
    tcase_add_loop_test(tcase, nan_and_infinity_spoil_their_bucket_visibly, 0, LEVEL_KINDS);
    tcase_add_loop_test(tcase, zeros_stay_zero, 0, LEVEL_KINDS);
    tcase_add_loop_test(tcase, tiny_and_huge_buckets_are_finite, 0, LEVEL_KINDS);
    tcase_add_loop_test(tcase, a_single_element_is_kept, 0, LEVEL_KINDS);
    suite_add_tcase(suite, tcase);
    return suite;
}
