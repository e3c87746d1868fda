/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The device rows of all codecs, side by side with the host's: every buffer exists twice, every step runs on both, and after it
 * the bytes must be the same, those around the buffer too. Only NaNs may have other bits.
 */
#include "support/check_main.h"
#include "support/codec_twin.h"

#include "base/util.h"
#include "codec/dense.h"

/* Blocks and chunks of plans start at multiples of 32, but nothing relies on that. */
static const iq_span_t spans[] = {{0, 1}, {32, 333}, {992, 1065}, {0, 800}, {5, 77}, {4096, 64}, {1001, 515}};

START_TEST(none)
{
    static const int nranks[] = {1, 2, 5};
    size_t next = 0;
    twin_start();
    for (int op = ISGQ_SUM; op <= ISGQ_AVG; op++) {
        for (int i = 0; i < 6; i++) {
            codec_twin_t setup = {.codec = {.ops = &iq_codec_none_ops},
                             .datatype = (isgq_data_type_t)_i,
                             .op = (isgq_red_op_t)op,
                             .nranks = nranks[i % 3],
                             .span = spans[next++ % IQ_ARRAY_SIZE(spans)],
                             .place = i % 2 ? PINNED : ON_DEVICE};
            codec_twin_run(&setup);
        }
    }
    twin_end();
}
END_TEST

static const isgq_data_type_t floats[] = {ISGQ_FLOAT32, ISGQ_FLOAT16, ISGQ_BFLOAT16};

START_TEST(cast)
{
    static const int nranks[] = {1, 2, 5};
    twin_start();
    for (size_t i = 0; i < 6 * IQ_ARRAY_SIZE(spans); i++) {
        codec_twin_t setup = {.codec = {.ops = _i ? &iq_codec_bf16_ops : &iq_codec_fp16_ops},
                         .datatype = floats[i % 3],
                         .op = i % 2 ? ISGQ_AVG : ISGQ_SUM,
                         .nranks = nranks[i / 6 % 3],
                         .span = spans[i % IQ_ARRAY_SIZE(spans)],
                         .place = i / 2 % 2 ? PINNED : ON_DEVICE};
        codec_twin_run(&setup);
    }
    twin_end();
}
END_TEST

/* Every combination; spans, operations and places take turns. */
static void run_uniform(unsigned bits, bool shared)
{
    static const int nranks[] = {1, 2, 5}, exacts[] = {1, 0, -1};
    static const size_t buckets[] = {0, 32, 64, 1000};
    twin_start();
    for (size_t i = 0; i < 3 * 3 * 4 * 2 * (shared ? 3 : 1); i++) {
        size_t turn = i + bits + i / 8 + i / 24;
        iq_codec_t codec = {.ops = &iq_codec_uniform_ops,
                            .bits = bits,
                            .bucket = buckets[i % 4],
                            .rounding = i / 4 % 2 ? IQ_ROUND_NEAREST : IQ_ROUND_STOCHASTIC,
                            .shared = shared,
                            .exact = shared ? exacts[i / 72] : 0};
        codec_twin_t setup = {.codec = codec,
                         .datatype = floats[i / 8 % 3],
                         .op = turn % 2 ? ISGQ_AVG : ISGQ_SUM,
                         .nranks = nranks[i / 24 % 3],
                         .span = spans[turn % IQ_ARRAY_SIZE(spans)],
                         .place = turn / 2 % 2 ? PINNED : ON_DEVICE};
        codec_twin_run(&setup);
    }
    twin_end();
}

START_TEST(uniform_shared)
{
    run_uniform((unsigned)_i, true);
}
END_TEST

START_TEST(uniform_local)
{
    run_uniform((unsigned)_i, false);
}
END_TEST

/* Any number of levels, three of which are five to a byte; and random numbers that ranks have in common. */
START_TEST(uniform_levels)
{
    static const unsigned levels[] = {1, 5, 127, 1};
    static const size_t buckets[] = {0, 32, 1000};
    static const int nranks[] = {2, 5, 1};
    static const iq_span_t long_span = {637, 1927};
    twin_start();
    for (size_t i = 0; i < 42; i++) {
        bool shared = i % 5 != 0;
        iq_codec_t codec = {.ops = &iq_codec_uniform_ops,
                            .levels = levels[i % 4],
                            .bits = iq_bit_width(2 * levels[i % 4]),
                            .bucket = buckets[i / 2 % 3],
                            .rounding = shared && i % 3 == 0 ? IQ_ROUND_STRATIFIED : (iq_rounding_t)(i / 4 % 2),
                            .shared = shared,
                            .exact = shared && i % 7 < 4};
        codec_twin_t setup = {.codec = codec,
                         .datatype = floats[(i + i / 3) % 3],
                         .op = i / 4 % 2 ? ISGQ_AVG : ISGQ_SUM,
                         .nranks = nranks[i / 4 % 3],
                         .span = i % 6 == 5 ? long_span : spans[i % IQ_ARRAY_SIZE(spans)],
                         .place = i / 2 % 2 ? PINNED : ON_DEVICE,
                         .replays = i % 11 == 0 ? 3 : 0};
        codec_twin_run(&setup);
    }
    for (size_t i = 0; i < 8; i++) { /* all bits that there are, in their own kernels */
        iq_codec_t codec = {.ops = &iq_codec_uniform_ops,
                            .bits = (unsigned)i + 1,
                            .bucket = i % 3 * 500,
                            .rounding = IQ_ROUND_STRATIFIED,
                            .shared = true,
                            .exact = i % 2};
        codec_twin_t setup = {
            .codec = codec, .datatype = floats[i % 3], .nranks = 3, .span = spans[(i + 1) % IQ_ARRAY_SIZE(spans)]};
        codec_twin_run(&setup);
    }
    twin_end();
}
END_TEST

START_TEST(intsgd)
{
    static const int nranks[] = {2, 5, 1};
    twin_start();
    for (size_t i = 0; i < 3 * IQ_ARRAY_SIZE(spans); i++) {
        iq_codec_t codec = {.ops = &iq_codec_intsgd_ops, .bits = i % 2 ? 8 : 4 + (unsigned)i % 5, .shared = i % 4 != 3, .exact = 1};
        codec_twin_t setup = {.codec = codec,
                         .datatype = floats[(i + i / 3) % 3],
                         .op = i / 4 % 2 ? ISGQ_AVG : ISGQ_SUM,
                         .nranks = codec.shared ? nranks[i % 3] : 1,
                         .span = spans[i % IQ_ARRAY_SIZE(spans)],
                         .place = i / 2 % 2 ? PINNED : ON_DEVICE,
                         .replays = i % 5 == 0 ? 9 : 0};
        codec_twin_run(&setup);
    }
    twin_end();
}
END_TEST

/* Sums in trees: of more contributions than slots have room for, in slots that a ring leaves half empty. */
START_TEST(exponential)
{
    static const int nranks[] = {2, 5, 1, 3, 4};
    static const size_t buckets[] = {0, 32, 1000};
    twin_start();
    for (size_t i = 0; i < 6 * IQ_ARRAY_SIZE(spans); i++) {
        bool many = i == 6 || i == 16;
        iq_codec_t codec = {.ops = &iq_codec_exponential_ops,
                            .bits = many ? 8 : 3 + (unsigned)((i + i / 6) % 6),
                            .bucket = buckets[i / 2 % 3],
                            .rounding = IQ_ROUND_STOCHASTIC,
                            .shared = many || i % 7 != 6};
        codec_twin_t setup = {.codec = codec,
                         .datatype = floats[(i + i / 3) % 3],
                         .op = i / 4 % 2 ? ISGQ_AVG : ISGQ_SUM,
                         .nranks = many ? CODEC_TWIN_RANKS : codec.shared ? nranks[i % 5] : 1,
                         .span = spans[many ? 4 : (i + i / 6) % IQ_ARRAY_SIZE(spans)],
                         .place = i / 2 % 2 ? PINNED : ON_DEVICE,
                         .replays = i % 5 == 0 ? 9 : 0};
        codec_twin_run(&setup);
    }
    twin_end();
}
END_TEST

/* Random bits of every kernel that draws them: of quads, of single elements, of any run. */
START_TEST(replays)
{
    static const uint32_t numbers[] = {1, 77, UINT32_MAX};
    twin_start();
    for (size_t i = 0; i < 2 * 8 * IQ_ARRAY_SIZE(spans); i++) {
        iq_codec_t codec = {.ops = &iq_codec_uniform_ops,
                            .bits = (unsigned)(i / 2 % 8) + 1,
                            .bucket = i % 3 == 0 ? 0 : 100,
                            .rounding = IQ_ROUND_STOCHASTIC,
                            .shared = i % 2,
                            .exact = i % 5 == 0};
        codec_twin_t setup = {.codec = codec,
                         .datatype = floats[i % 3],
                         .nranks = 2,
                         .span = spans[i / 16],
                         .place = ON_DEVICE,
                         .replays = numbers[i / 3 % 3]};
        codec_twin_run(&setup);
    }
    twin_end();
}
END_TEST

/* Norms and standard deviations: buckets of several blocks, panels and pieces, which begin anywhere in them. */
START_TEST(uniform_norms)
{
    static const struct {
        size_t bucket, count;
    } cuts[] = {{0, 50001}, {1000, 17000}, {20000, 40003}, {32, 333}, {512, 2000}, {40000, 45000}, {16384, 16389}, {40, 700},
                {0, 5},     {0, 16384},    {20000, 333},   {600, 999}};
    twin_start();
    for (size_t i = 0; i < IQ_ARRAY_SIZE(cuts); i++) {
        iq_codec_t codec = {.ops = &iq_codec_uniform_norm_ops,
                            .levels = i % 4 < 2 ? 1 : 127,
                            .bits = i % 4 < 2 ? 2 : 8,
                            .bucket = cuts[i].bucket,
                            .norm = i % 2 ? IQ_NORM_L2 : IQ_NORM_MAX,
                            .clip = i % 2 ? 0.0f : 0.5f + (float)(i / 4),
                            .rounding = (iq_rounding_t)(i / 3 % 3),
                            .shared = i != 11,
                            .exact = i % 3 == 0};
        codec_twin_t setup = {.codec = codec,
                         .datatype = floats[(i + i / 3) % 3],
                         .nranks = 1 + (int)(i / 2 % 2),
                         .span = {0, cuts[i].count},
                         .place = ON_DEVICE};
        codec_twin_run(&setup);
    }
    twin_end();
}
END_TEST

/* ---- damaged messages ---- */

START_TEST(damage_is_found_where_the_host_finds_it)
{
    twin_start();
    for (unsigned bits = 1; bits <= 8; bits++) {
        for (int kind = 0; kind < 5; kind++) { /* shared: one part, two, exact result; local: one part, result */
            static const int parts[] = {1, 2, 0, 1, 0};
            iq_codec_t codec = {.ops = &iq_codec_uniform_ops, .bits = bits, .bucket = 32, .shared = kind < 3, .exact = 1};
            codec_twin_t setup = {.codec = codec,
                             .datatype = ISGQ_FLOAT32,
                             .nranks = 2,
                             .span = {32, bits % 2 ? 35 : 17},
                             .place = kind % 2 ? PINNED : ON_DEVICE};
            codec_twin_flip_bits(&setup, parts[kind]);
            if (bits > 3 && kind < 3) { /* not alone: what senders never write may decode to other bits */
                setup.codec.ops = &iq_codec_intsgd_ops;
                codec_twin_flip_bits(&setup, parts[kind]);
            }
            setup.codec.ops = &iq_codec_exponential_ops;
            setup.nranks = kind < 3 ? 2 : 1;
            if (bits >= 3)
                codec_twin_flip_bits(&setup, parts[kind]);
            if (bits > 3)
                continue;
            setup.codec.ops = &iq_codec_uniform_ops;
            setup.nranks = 2;
            setup.codec.bits = 2;
            setup.codec.levels = 1;
            codec_twin_flip_bits(&setup, parts[kind]);
        }
    }
    twin_end();
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("codec_cuda");
    TCase *tcase = tcase_create("none");
    tcase_add_loop_test(tcase, none, 0, 10);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("cast");
    tcase_add_loop_test(tcase, cast, 0, 2);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("uniform_shared");
    tcase_add_loop_test(tcase, uniform_shared, 1, 9);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("uniform_local");
    tcase_add_loop_test(tcase, uniform_local, 1, 9);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("uniform_levels");
    tcase_add_test(tcase, uniform_levels);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("uniform_norms");
    tcase_add_test(tcase, uniform_norms);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("intsgd");
    tcase_add_test(tcase, intsgd);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("exponential");
    tcase_add_test(tcase, exponential);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("replays");
    tcase_add_test(tcase, replays);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("damage");
    tcase_add_test(tcase, damage_is_found_where_the_host_finds_it);
    suite_add_tcase(suite, tcase);
    return suite;
}
