/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Codes in lanes of 32-bit words: each rank's words are the host codec's codes laid out anew, and the sum of all ranks' words
 * decodes to what the host codec delivers.
 */
#include "support/check_main.h"
#include "support/codec_run.h"
#include "support/device_twin.h"

#include "base/status.h"
#include "base/util.h"
#include "codec/dense.h"
#include "codec/uniform.h"
#include "kernels/kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_RANKS = 17, MOST_COUNT = 5000 };

typedef struct setup {
    iq_codec_t codec;
    isgq_data_type_t datatype;
    isgq_red_op_t op;
    int nranks;
    iq_span_t span;
    size_t skew; /* elements or words by which buffers miss an even address */
    bool accumulate;
    uint32_t replays;
} setup_t;

static const isgq_data_type_t floats[] = {ISGQ_FLOAT32, ISGQ_FLOAT16, ISGQ_BFLOAT16};

static float sample(size_t i)
{
    static const float special[] = {NAN, -INFINITY, -0.0f, 0x1p-130f, 1e30f, 0x1p-24f, INFINITY, 65519.0f};
    uint32_t draw = codec_random();
    if (draw % 1500 == 0)
        return special[draw / 1500 % 8];
    return draw % 7 == 0 || i / 128 % 5 == 3 ? 0.0f : codec_random_unit() * ldexpf(1.0f, -(int)(i / 100 % 40));
}

static twin_t input_new(const setup_t *setup)
{
    size_t bytes = iq_datatype_bytes(setup->datatype);
    twin_t twin = twin_new(setup->span.count * bytes, setup->skew * bytes, ON_DEVICE);
    for (size_t i = 0; i < setup->span.count; i++) {
        float value = sample(i);
        uint16_t half = setup->datatype == ISGQ_FLOAT16 ? iq_float_to_f16(value) : iq_float_to_bf16(value);
        memcpy(twin.host + i * bytes, bytes == 4 ? (const void *)&value : &half, bytes);
    }
    twin_push(&twin);
    return twin;
}

/* Both sides' calls. */
typedef struct pair {
    iq_codec_call_t host, device;
} pair_t;

static pair_t calls_of(const setup_t *setup)
{
    pair_t pair = {.host = {.datatype = setup->datatype,
                            .op = setup->op,
                            .nranks = setup->nranks,
                            .seed = 0x123456789abcdef,
                            .call = 77,
                            .accumulate = setup->accumulate}};
    twin_t word = twin_new(sizeof(setup->replays), 0, ON_DEVICE);
    memcpy(word.host, &setup->replays, sizeof(setup->replays));
    twin_push(&word);
    twin_device.replays = (const uint32_t *)word.device;
    pair.device = pair.host;
    pair.device.device = &twin_device;
    pair.host.call += (uint64_t)setup->replays << 32;
    snprintf(twin_what, sizeof(twin_what), "bits %u bucket %zu %s, %s %s of %d ranks, elements %zu+%zu, skew %zu%s",
             setup->codec.bits, setup->codec.bucket, setup->codec.rounding == IQ_ROUND_NEAREST ? "nearest" : "stochastic",
             iq_red_op_name(setup->op), iq_datatype_name(setup->datatype), setup->nranks, setup->span.first, setup->span.count,
             setup->skew, setup->accumulate ? " added" : "");
    return pair;
}

/* Scales of all ranks' inputs. */
static void share_scales(const setup_t *setup, const twin_t *inputs, pair_t *pair)
{
    size_t bucket = setup->codec.bucket, first = bucket == 0 ? 0 : setup->span.first / bucket;
    size_t last = bucket == 0 ? 0 : (setup->span.first + setup->span.count - 1) / bucket;
    twin_t scales = twin_new((last - first + 1) * sizeof(float), 0, ON_DEVICE);
    memset(scales.host, 0, scales.bytes);
    pair->host.first_bucket = pair->device.first_bucket = first;
    for (int rank = 0; rank < setup->nranks; rank++)
        setup->codec.ops->local_scales(&setup->codec, &pair->host, setup->span, inputs[rank].host, (float *)scales.host);
    twin_push(&scales);
    pair->host.scales = (const float *)scales.host;
    pair->device.scales = (const float *)scales.device;
}

/* Packed codes to lanes. */
static void lay_out(const setup_t *setup, const unsigned char *message, iq_u32_any_t *words)
{
    static uint32_t codes[MOST_COUNT];
    unsigned width = iq_uniform_width(&setup->codec, setup->nranks), lanes = 32 / width;
    iq_kernels()->unpack32(message, setup->span.count, setup->codec.bits, codes);
    for (size_t i = 0; i < setup->span.count; i++)
        words[i / lanes] = (i % lanes == 0 ? 0 : words[i / lanes]) | codes[i] << i % lanes * width;
}

static void run_setup(const setup_t *setup)
{
    const iq_codec_ops_t *ops = setup->codec.ops;
    static unsigned char message[MOST_COUNT];
    static float acc[MOST_COUNT];
    twin_t inputs[MOST_RANKS], words, sums, output;
    size_t element = iq_datatype_bytes(setup->datatype), bytes;
    twin_forget();
    pair_t pair = calls_of(setup);
    for (int rank = 0; rank < setup->nranks; rank++)
        inputs[rank] = input_new(setup);
    share_scales(setup, inputs, &pair);
    bytes = iq_codec_lane_bytes(&setup->codec, &pair.device, setup->span);
    ck_assert_uint_eq(bytes % 4, 0);
    words = twin_new(bytes, setup->skew * 4, ON_DEVICE);
    sums = twin_new(bytes, setup->skew * 4, ON_DEVICE);
    memset(sums.host, 0, bytes);
    for (int rank = 0; rank < setup->nranks; rank++) {
        pair.host.rank = pair.device.rank = rank;
        ops->encode(&setup->codec, &pair.host, setup->span, inputs[rank].host, message);
        ops->add_own(&setup->codec, &pair.host, setup->span, inputs[rank].host, acc, rank == 0);
        lay_out(setup, message, (iq_u32_any_t *)words.host);
        iq_codec_encode_lanes(&setup->codec, &pair.device, setup->span, inputs[rank].device, words.device);
        twin_compare(&words, ISGQ_UINT32, "encode_lanes");
        for (size_t i = 0; i < bytes / 4; i++)
            ((iq_u32_any_t *)sums.host)[i] += ((const iq_u32_any_t *)words.host)[i];
    }
    twin_push(&sums);
    output = twin_new(setup->span.count * element, setup->skew * element, ON_DEVICE);
    ops->deliver(&setup->codec, &pair.host, setup->span, acc, output.host);
    iq_codec_decode_lanes(&setup->codec, &pair.device, setup->span, sums.device, output.device);
    twin_compare(&output, setup->datatype, "decode_lanes");
    ck_assert_msg(iq_device_check(&twin_device, "test") == ISGQ_SUCCESS, "%s: %s", twin_what, iq_last_error());
}

static iq_codec_t codec_of(unsigned bits, size_t bucket)
{
    return (iq_codec_t){.ops = &iq_codec_uniform_ops,
                        .bits = bits,
                        .bucket = bucket,
                        .rounding = IQ_ROUND_STOCHASTIC,
                        .shared = true,
                        .exact = 1};
}

/* One rank alone too: the widest words of the narrowest lanes. */
START_TEST(ranks)
{
    static const iq_span_t spans[] = {{0, 1},       {32, 333}, {992, 1065}, {0, 2048},    {4, 77},
                                      {4096, 1281}, {5, 515},  {0, 4999},   {1 << 20, 3}, {1001, 78}};
    static const size_t buckets[] = {0, 32, 1000, 512, 100};
    size_t turn = (size_t)_i;
    twin_start();
    for (unsigned bits = 1; bits <= 8; bits++) {
        for (int twice = 0; twice < 2; twice++, turn++) {
            setup_t setup = {.codec = codec_of(bits, buckets[turn % 5]),
                             .datatype = floats[turn % 3],
                             .op = turn / 2 % 2 ? ISGQ_AVG : ISGQ_SUM,
                             .nranks = _i,
                             .span = spans[turn % IQ_ARRAY_SIZE(spans)],
                             .skew = turn % 7 == 5,
                             .accumulate = turn / 3 % 2,
                             .replays = turn % 2 ? (uint32_t)turn : 0};
            if (bits == 1 && turn % 2 == 0)
                setup.span.count = iq_min(setup.span.count, 300); /* narrower tiles and wider ones */
            if (turn % 4 == 3)
                setup.codec.rounding = IQ_ROUND_NEAREST;
            run_setup(&setup);
        }
    }
    twin_end();
}
END_TEST

START_TEST(sums_that_are_rounded_have_no_lanes)
{
    iq_codec_call_t call = {.datatype = ISGQ_FLOAT32, .nranks = 4};
    iq_codec_t exact = codec_of(8, 512), rounded = exact, many = exact, local = exact;
    iq_span_t span = {0, 100};
    rounded.exact = 0;
    many.exact = -1;
    local.shared = false;
    ck_assert_uint_eq(iq_codec_lane_bytes(&exact, &call, span), 34 * 4); /* lanes of 10 bits, three a word */
    ck_assert_uint_eq(iq_codec_lane_bytes(&many, &call, span), 34 * 4);
    ck_assert_uint_eq(iq_codec_lane_bytes(&rounded, &call, span), 0);
    ck_assert_uint_eq(iq_codec_lane_bytes(&local, &call, span), 0);
    call.nranks = 9;
    ck_assert_uint_eq(iq_codec_lane_bytes(&many, &call, span), 0);
    ck_assert_uint_eq(iq_codec_lane_bytes(&iq_codec_none, &call, span), 0);
}
END_TEST

/* Scales, 12 words of three lanes of 10 bits, and 36 values. */
typedef struct small {
    setup_t setup;
    pair_t pair;
    twin_t input, words, output;
} small_t;

static small_t open_small(void)
{
    small_t small = {.setup = {.codec = codec_of(8, 0), .datatype = ISGQ_FLOAT32, .nranks = 4, .span = {0, 36}}};
    twin_t inputs[4];
    twin_forget();
    small.pair = calls_of(&small.setup);
    for (int rank = 0; rank < 4; rank++)
        inputs[rank] = input_new(&small.setup);
    share_scales(&small.setup, inputs, &small.pair);
    small.input = inputs[0];
    small.words = twin_new(48, 0, ON_DEVICE);
    small.output = twin_new(144, 0, ON_DEVICE);
    return small;
}

START_TEST(sums_above_the_largest_are_found)
{
    twin_start();
    for (uint32_t sum = 4 * 254; sum <= 4 * 254 + 1; sum++) {
        small_t small = open_small();
        memset(small.words.host, 0, 48);
        ((uint32_t *)small.words.host)[7] = sum << 20;
        twin_push(&small.words);
        iq_codec_decode_lanes(&small.setup.codec, &small.pair.device, small.setup.span, small.words.device, small.output.device);
        twin_settle();
        ck_assert_int_eq(iq_device_check(&twin_device, "uniform"), sum > 4 * 254 ? ISGQ_ERR_CORRUPT : ISGQ_SUCCESS);
    }
    twin_end();
}
END_TEST

START_TEST(other_forms_do_not_become_lanes)
{
    twin_start();
    small_t small = open_small();
    iq_cuda_map_t map = {.source = {.form = IQ_CUDA_SUMS, .data = small.words.device, .divisor = 1.0f},
                         .target = {.form = IQ_CUDA_LANES, .data = small.output.device, .width = 10},
                         .through = ISGQ_FLOAT32,
                         .count = 12};
    iq_device_map(&twin_device, map);
    ck_assert_int_eq(iq_device_check(&twin_device, "uniform"), ISGQ_ERR_INTERNAL);
    ck_assert_str_eq(iq_last_error(), "map: lanes are made of values on a grid, and become values");
    twin_compare(&small.output, ISGQ_UINT32, "a map that is refused");
    twin_end();
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("codec_lanes");
    TCase *tcase = tcase_create("ranks");
    tcase_add_loop_test(tcase, ranks, 1, MOST_RANKS + 1);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("limits");
    tcase_add_test(tcase, sums_that_are_rounded_have_no_lanes);
    tcase_add_test(tcase, sums_above_the_largest_are_found);
    tcase_add_test(tcase, other_forms_do_not_become_lanes);
    suite_add_tcase(suite, tcase);
    return suite;
}
