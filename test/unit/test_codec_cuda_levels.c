/* SPDX-License-Identifier: Apache-2.0 */
/* The device row of codec `levels`, side by side with the host's, for all models: see support/codec_twin.h. */
#include "support/check_main.h"
#include "support/codec_run.h"
#include "support/codec_twin.h"
#include "support/level_kinds.h"

#include "base/util.h"

static const isgq_data_type_t floats[] = {ISGQ_FLOAT32, ISGQ_FLOAT16, ISGQ_BFLOAT16};

enum { BEFORE_MX = LEVEL_KINDS + ROTATED_KINDS, MX_KINDS = 3, ALL_LEVEL_KINDS = BEFORE_MX + MX_KINDS };

static iq_codec_t mx_codec(int kind)
{
    iq_codec_t codec = codec_of_family("mx");
    codec.bits = kind == 0 ? 8 : 4;
    codec.rounding = kind == 2 ? IQ_ROUND_NEAREST : IQ_ROUND_STOCHASTIC;
    return codec;
}

static iq_codec_t level_codec(int kind)
{
    if (kind >= BEFORE_MX)
        return mx_codec(kind - BEFORE_MX);
    return kind < LEVEL_KINDS ? level_kind_codec(kind) : rotated_kind_codec(kind - LEVEL_KINDS);
}

/* Spans that are cut inside buckets, quads and bytes; buckets of a warp and of a block. */
START_TEST(levels)
{
    static const iq_span_t spans[] = {{0, 1}, {5, 77}, {4096, 64}, {1001, 515}, {992, 1065}, {2048, 2600}};
    twin_start();
    for (unsigned i = 0; i < IQ_ARRAY_SIZE(spans); i++) {
        unsigned turn = i + (unsigned)_i;
        codec_twin_t setup = {.codec = level_codec(_i),
                              .datatype = floats[turn % 3],
                              .op = turn / 2 % 2 ? ISGQ_AVG : ISGQ_SUM,
                              .nranks = i == 3 ? 3 : i == 2 ? 1 : 2,
                              .span = spans[i],
                              .place = turn % 2 ? PINNED : ON_DEVICE,
                              .replays = i == 1 ? 77 : 0};
        codec_twin_run(&setup);
    }
    twin_end();
}
END_TEST

START_TEST(damage_is_found_where_the_host_finds_it)
{
    twin_start();
    for (int kind = 0; kind < ALL_LEVEL_KINDS; kind++) {
        codec_twin_t setup = {.codec = level_codec(kind),
                              .datatype = ISGQ_FLOAT32,
                              .nranks = 2,
                              .span = {kind % 2 ? 32 : 8160, kind % 3 ? 37 : 17}, /* 8160: into the next bucket */
                              .place = kind % 2 ? PINNED : ON_DEVICE};
        codec_twin_flip_bits(&setup, kind / 2 % 2);
    }
    twin_end();
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("codec_cuda_levels");
    TCase *tcase = tcase_create("messages");
    tcase_add_loop_test(tcase, levels, 0, ALL_LEVEL_KINDS);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("damage");
    tcase_add_test(tcase, damage_is_found_where_the_host_finds_it);
    suite_add_tcase(suite, tcase);
    return suite;
}
