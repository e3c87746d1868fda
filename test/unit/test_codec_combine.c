/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sums of all parts in one pass on device memory, against the host codec's steps, part by part: the same bytes in results and
 * outputs, and around them. Only NaNs may have other bits.
 */
#include "support/check_main.h"
#include "support/codec_run.h"
#include "support/device_twin.h"

#include "base/status.h"
#include "base/util.h"
#include "codec/dense.h"
#include "kernels/kernels.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum wanted { RESULT = 1, OUTPUT = 2, BOTH = 3 } wanted_t;

typedef struct setup {
    iq_codec_t codec;
    isgq_data_type_t datatype;
    isgq_red_op_t op;
    int nparts, own; /* own < 0: all are messages */
    iq_span_t span;
    size_t skew; /* elements or words by which buffers miss an even address */
    wanted_t wanted;
    bool accumulate, in_place;
    uint32_t replays;
} setup_t;

typedef struct sum {
    const setup_t *setup;
    iq_codec_t codec;
    iq_codec_call_t call; /* the host's */
    twin_t inputs[IQ_CUDA_PARTS], messages[IQ_CUDA_PARTS], scales, scratch, result, output;
    float *acc;
} sum_t;

/* ---- inputs ---- */

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

static void describe(const setup_t *setup)
{
    const iq_codec_t *codec = &setup->codec;
    snprintf(twin_what, sizeof(twin_what),
             "%s bits %u bucket %zu %s %s exact %d, %s %s of %d parts, own %d, elements %zu+%zu, skew %zu, %d%s%s",
             codec->ops->name, codec->bits, codec->bucket, codec->rounding == IQ_ROUND_NEAREST ? "nearest" : "stochastic",
             codec->shared ? "shared" : "local", codec->exact, iq_red_op_name(setup->op), iq_datatype_name(setup->datatype),
             setup->nparts, setup->own, setup->span.first, setup->span.count, setup->skew, (int)setup->wanted,
             setup->accumulate ? " added" : "", setup->in_place ? " in place" : "");
}

/* Scales from the bucket before the span's first on, if there is one. */
static void share_scales(sum_t *sum)
{
    const setup_t *setup = sum->setup;
    size_t bucket = setup->codec.bucket, first = bucket == 0 ? 0 : setup->span.first / bucket;
    size_t last = bucket == 0 ? 0 : (setup->span.first + setup->span.count - 1) / bucket;
    first -= first > 0;
    sum->scales = twin_new((last - first + 1) * sizeof(float), 4, ON_DEVICE);
    memset(sum->scales.host, 0, sum->scales.bytes);
    sum->call.first_bucket = first;
    for (int rank = 0; rank < setup->nparts; rank++)
        sum->codec.ops->local_scales(&sum->codec, &sum->call, setup->span, sum->inputs[rank].host, (float *)sum->scales.host);
    if (sum->codec.ops->open_scales != NULL)
        sum->codec.ops->open_scales(&sum->codec, &sum->call, setup->span.count, (float *)sum->scales.host);
    twin_push(&sum->scales);
    sum->call.scales = (const float *)sum->scales.host;
}

/* Room for scales, not a byte more than the codec asks for. */
static twin_t scratch_new(const setup_t *setup)
{
    twin_t scratch = twin_new(iq_codec_device_scratch(&setup->codec, setup->span.count), 0, ON_DEVICE);
    twin_device.scratch = (float *)scratch.device;
    twin_device.scratch_bytes = scratch.bytes;
    return scratch;
}

/* The word that counts a graph's replays, where kernels read it. */
static void replays_new(const setup_t *setup)
{
    twin_t word = twin_new(sizeof(setup->replays), 0, ON_DEVICE);
    memcpy(word.host, &setup->replays, sizeof(setup->replays));
    twin_push(&word);
    twin_device.replays = (const uint32_t *)word.device;
}

/* Inputs and messages of all ranks; `own` sends none. */
static sum_t open_sum(const setup_t *setup)
{
    sum_t sum = {.setup = setup, .codec = setup->codec};
    size_t element = iq_datatype_bytes(setup->datatype);
    describe(setup);
    twin_forget();
    sum.call = (iq_codec_call_t){.datatype = setup->datatype,
                                 .op = setup->op,
                                 .nranks = setup->nparts,
                                 .seed = 0x123456789abcdef,
                                 .call = 77 + ((uint64_t)setup->replays << 32),
                                 .accumulate = setup->accumulate};
    sum.scratch = scratch_new(setup);
    replays_new(setup);
    for (int rank = 0; rank < setup->nparts; rank++)
        sum.inputs[rank] = input_new(setup);
    if (sum.codec.ops->needs_scales(&sum.codec))
        share_scales(&sum);
    for (int rank = 0; rank < setup->nparts; rank++) {
        sum.call.rank = rank;
        if (rank == setup->own)
            continue;
        sum.messages[rank] =
            twin_new(sum.codec.ops->partial_bytes(&sum.codec, &sum.call, setup->span, 1), setup->skew * 4, ON_DEVICE);
        sum.codec.ops->encode(&sum.codec, &sum.call, setup->span, sum.inputs[rank].host, sum.messages[rank].host);
        twin_push(&sum.messages[rank]);
    }
    sum.call.rank = setup->own < 0 ? 0 : setup->own;
    sum.acc = malloc(setup->span.count * sum.codec.ops->acc_bytes(&sum.codec, &sum.call));
    sum.result = twin_new(sum.codec.ops->result_bytes(&sum.codec, &sum.call, setup->span), setup->skew * 4, ON_DEVICE);
    sum.output =
        setup->in_place ? sum.inputs[setup->own] : twin_new(setup->span.count * element, setup->skew * element, ON_DEVICE);
    return sum;
}

/* ---- both sides ---- */

/* Of the first message that is damaged. */
static isgq_result_t add_on_host(const sum_t *sum)
{
    isgq_result_t result = ISGQ_SUCCESS;
    for (int part = 0; part < sum->setup->nparts && result == ISGQ_SUCCESS; part++) {
        if (part == sum->setup->own)
            sum->codec.ops->add_own(&sum->codec, &sum->call, sum->setup->span, sum->inputs[part].host, sum->acc, part == 0);
        else
            result =
                sum->codec.ops->add(&sum->codec, &sum->call, sum->setup->span, sum->messages[part].host, 1, sum->acc, part == 0);
    }
    return result;
}

static void finish_on_host(const sum_t *sum)
{
    const setup_t *setup = sum->setup;
    const iq_codec_ops_t *ops = sum->codec.ops;
    bool rounded = (setup->wanted & RESULT) != 0 && !ops->result_is_exact(&sum->codec, &sum->call);
    if (setup->wanted & RESULT)
        ops->finish(&sum->codec, &sum->call, setup->span, sum->acc, sum->result.host);
    if (setup->wanted == RESULT)
        return;
    if (rounded)
        ck_assert_int_eq(ops->decode(&sum->codec, &sum->call, setup->span, sum->result.host, sum->output.host), ISGQ_SUCCESS);
    else
        ops->deliver(&sum->codec, &sum->call, setup->span, sum->acc, sum->output.host);
}

static bool combine_on_device(const sum_t *sum)
{
    const setup_t *setup = sum->setup;
    const void *messages[IQ_CUDA_PARTS];
    iq_codec_call_t call = sum->call;
    call.call = 77;
    call.device = &twin_device;
    call.scales = (const float *)sum->scales.device;
    for (int part = 0; part < setup->nparts; part++)
        messages[part] = part == setup->own ? NULL : sum->messages[part].device;
    return iq_codec_combine(&sum->codec, &call, setup->span, setup->nparts, messages, setup->own,
                            setup->own < 0 ? NULL : sum->inputs[setup->own].device,
                            setup->wanted & OUTPUT ? sum->output.device : NULL,
                            setup->wanted & RESULT ? sum->result.device : NULL);
}

/* Results of codecs that round to halves, or do not round, are values. */
static isgq_data_type_t result_type(const setup_t *setup)
{
    if (setup->codec.ops == &iq_codec_none_ops)
        return setup->datatype;
    bool packed = setup->codec.ops == &iq_codec_uniform_ops || setup->codec.ops == &iq_codec_intsgd_ops;
    return packed ? ISGQ_UINT8
           : setup->codec.ops == &iq_codec_fp16_ops  ? ISGQ_FLOAT16
                                                     : ISGQ_BFLOAT16;
}

static void run_setup(const setup_t *setup)
{
    sum_t sum = open_sum(setup);
    ck_assert_msg(combine_on_device(&sum), "%s: no fused form", twin_what);
    ck_assert_int_eq(add_on_host(&sum), ISGQ_SUCCESS);
    finish_on_host(&sum);
    twin_compare(&sum.result, result_type(setup), "result");
    twin_compare(&sum.output, setup->datatype, "output");
    ck_assert_msg(iq_device_check(&twin_device, "test") == ISGQ_SUCCESS, "%s: %s", twin_what, iq_last_error());
    twin_check_ends(&sum.scratch, "scratch");
    free(sum.acc);
}

/* ---- all kinds of sums ---- */

static const isgq_data_type_t floats[] = {ISGQ_FLOAT32, ISGQ_FLOAT16, ISGQ_BFLOAT16};

/* Shorter than a tile, many tiles, a last quad of one to three elements, buckets that end anywhere. */
static const iq_span_t spans[] = {{0, 1},     {32, 333}, {992, 1065}, {0, 2048},   {4, 77},
                                  {4096, 64}, {5, 515},  {0, 1539},   {1 << 20, 3}};

/* What takes turns whatever the codec is. */
static setup_t setup_of(iq_codec_t codec, size_t turn)
{
    static const int nparts[] = {2, 3, 1, 8, 4, 16, 5, 9};
    setup_t setup = {.codec = codec,
                     .datatype = floats[turn % 3],
                     .op = turn / 2 % 2 ? ISGQ_AVG : ISGQ_SUM,
                     .nparts = nparts[turn % IQ_ARRAY_SIZE(nparts)],
                     .span = spans[turn % IQ_ARRAY_SIZE(spans)],
                     .skew = turn / 5 % 3 == 2 ? 1 : 0,
                     .wanted = (wanted_t)(turn / 3 % 3 + 1),
                     .accumulate = turn / 4 % 2,
                     .replays = (uint32_t)(turn % 2 * turn)};
    setup.own = (int)(turn / 7 % (unsigned)(setup.nparts + 1)) - 1;
    setup.in_place = setup.own >= 0 && !setup.accumulate && turn / 11 % 2;
    return setup;
}

START_TEST(values)
{
    static const iq_codec_ops_t *const codecs[] = {&iq_codec_none_ops, &iq_codec_fp16_ops, &iq_codec_bf16_ops};
    twin_start();
    for (size_t turn = 0; turn < 72; turn++) {
        setup_t setup = setup_of((iq_codec_t){.ops = codecs[_i]}, turn);
        run_setup(&setup);
    }
    twin_end();
}
END_TEST

/* Codes of 1 to 8 bits. */
static void run_uniform(unsigned bits, bool shared, size_t turns)
{
    static const size_t buckets[] = {0, 32, 64, 1000, 512, 100};
    static const int exacts[] = {1, 0, -1};
    twin_start();
    for (size_t turn = 0; turn < turns; turn++) {
        iq_codec_t codec = {.ops = &iq_codec_uniform_ops,
                            .bits = bits,
                            .bucket = buckets[(turn + turn / 6) % 6],
                            .rounding = turn / 2 % 3 ? IQ_ROUND_STOCHASTIC : IQ_ROUND_NEAREST,
                            .shared = shared,
                            .exact = shared ? exacts[turn / 3 % 3] : 0};
        setup_t setup = setup_of(codec, turn + bits);
        run_setup(&setup);
    }
    twin_end();
}

START_TEST(uniform_shared)
{
    run_uniform((unsigned)_i, true, _i % 4 == 0 ? 144 : 36);
}
END_TEST

START_TEST(uniform_local)
{
    run_uniform((unsigned)_i, false, 36);
}
END_TEST

/* Three levels, five to a byte; other numbers of them; integers that are not counted from 0. */
START_TEST(families)
{
    static const size_t buckets[] = {0, 32, 1000, 100};
    twin_start();
    for (size_t turn = 0; turn < 60; turn++) {
        unsigned levels = turn % 3 == 1 ? 5 : 1;
        iq_codec_t codec = {.ops = turn % 3 == 2 ? &iq_codec_intsgd_ops : &iq_codec_uniform_ops,
                            .levels = turn % 3 == 2 ? 0 : levels,
                            .bits = turn % 3 == 2 ? 6 + (unsigned)turn % 2 * 2 : iq_bit_width(2 * levels),
                            .bucket = turn % 3 == 2 ? 0 : buckets[turn / 3 % 4],
                            .rounding = IQ_ROUND_STOCHASTIC,
                            .shared = true,
                            .exact = 1};
        setup_t setup = setup_of(codec, turn + turn / 3);
        if (levels == 1 && setup.nparts == 1)
            continue;
        run_setup(&setup);
    }
    twin_end();
}
END_TEST

/* Every number of parts, and every place of own values among them. */
START_TEST(parts)
{
    twin_start();
    for (int nparts = 1; nparts <= IQ_CUDA_PARTS; nparts++) {
        for (int own = -1; own<nparts; own += nparts> 8 ? 5 : 1) {
            bool shared = (nparts + own) % 2;
            iq_codec_t codec = {
                .ops = &iq_codec_uniform_ops, .bits = own % 3 ? 8 : 4, .bucket = 256, .shared = shared, .exact = 1};
            setup_t setup = {
                .codec = codec, .datatype = ISGQ_FLOAT32, .nparts = nparts, .own = own, .span = {64, 130}, .wanted = BOTH};
            run_setup(&setup);
            setup.codec = (iq_codec_t){.ops = shared ? &iq_codec_none_ops : &iq_codec_bf16_ops};
            run_setup(&setup);
        }
    }
    twin_end();
}
END_TEST

/* ---- what has no fused form ---- */

START_TEST(other_sums_go_step_by_step)
{
    twin_start();
    setup_t setup = {
        .codec = {.ops = &iq_codec_none_ops}, .datatype = ISGQ_FLOAT32, .nparts = 2, .span = {0, 100}, .wanted = BOTH};
    static const isgq_red_op_t ops[] = {ISGQ_PROD, ISGQ_MAX, ISGQ_MIN};
    sum_t sum = open_sum(&setup);
    for (size_t i = 0; i < IQ_ARRAY_SIZE(ops); i++) {
        sum.call.op = ops[i];
        ck_assert(!combine_on_device(&sum));
    }
    sum.call.op = ISGQ_SUM;
    sum.call.datatype = ISGQ_INT32;
    ck_assert(!combine_on_device(&sum));
    sum.call.datatype = ISGQ_FLOAT64;
    ck_assert(!combine_on_device(&sum));
    sum.call.datatype = ISGQ_FLOAT32;
    const void *messages[IQ_CUDA_PARTS + 1] = {NULL};
    sum.call.device = &twin_device;
    ck_assert(!iq_codec_combine(&sum.codec, &sum.call, setup.span, IQ_CUDA_PARTS + 1, messages, 0, sum.inputs[0].device,
                                sum.output.device, NULL));
    ck_assert(
        !iq_codec_combine(&sum.codec, &sum.call, setup.span, 0, messages, 0, sum.inputs[0].device, sum.output.device, NULL));
    twin_compare(&sum.result, ISGQ_UINT8, "result"); /* nothing was launched */
    twin_compare(&sum.output, ISGQ_UINT8, "output");
    free(sum.acc);
    twin_end();
}
END_TEST

/* ---- damaged messages ---- */

/* Each bit of a message in turn: the host's verdict must be the device's. */
static void flip_bits(const setup_t *setup)
{
    sum_t sum = open_sum(setup);
    twin_t *message = &sum.messages[setup->nparts - 1];
    size_t harmless = 0;
    for (size_t bit = 0; bit < message->bytes * 8; bit++) {
        message->host[bit / 8] ^= (unsigned char)(1u << bit % 8);
        twin_push(message);
        isgq_result_t host = add_on_host(&sum);
        ck_assert(combine_on_device(&sum));
        twin_settle();
        ck_assert_msg(iq_device_check(&twin_device, "uniform") == host, "%s, bit %zu: the host says %d, %s", twin_what, bit, host,
                      iq_last_error());
        ck_assert(iq_device_check(&twin_device, "uniform") == ISGQ_SUCCESS);
        harmless += host == ISGQ_SUCCESS;
        message->host[bit / 8] ^= (unsigned char)(1u << bit % 8);
    }
    ck_assert_uint_gt(harmless, 0);
    ck_assert_uint_lt(harmless, message->bytes * 8);
    free(sum.acc);
}

START_TEST(damage_is_found_where_the_host_finds_it)
{
    twin_start();
    for (unsigned bits = 2; bits <= 8; bits++) {
        for (int shared = 0; shared <= 1; shared++) {
            iq_codec_t codec = {.ops = &iq_codec_uniform_ops, .bits = bits, .bucket = 32, .shared = shared, .exact = 1};
            setup_t setup = {.codec = codec,
                             .datatype = ISGQ_FLOAT32,
                             .nparts = 3,
                             .own = shared - (bits == 8),
                             .span = {32, bits % 4 ? 17 : 37},
                             .skew = bits % 2,
                             .wanted = OUTPUT};
            flip_bits(&setup);
            if (!shared || bits > 4)
                continue;
            setup.codec.levels = 1; /* the last of five in a byte, and of eight in a lane */
            setup.codec.bits = 2;
            setup.span.count = (size_t[]){16, 20, 37}[bits - 2];
            flip_bits(&setup);
            setup.codec = (iq_codec_t){.ops = &iq_codec_intsgd_ops, .bits = bits + 4, .shared = true, .exact = 1};
            flip_bits(&setup);
        }
    }
    twin_end();
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("codec_combine");
    TCase *tcase = tcase_create("values");
    tcase_add_loop_test(tcase, values, 0, 3);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("uniform_shared");
    tcase_add_loop_test(tcase, uniform_shared, 1, 9);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("uniform_local");
    tcase_add_loop_test(tcase, uniform_local, 1, 9);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("families");
    tcase_add_test(tcase, families);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("parts");
    tcase_add_test(tcase, parts);
    tcase_add_test(tcase, other_sums_go_step_by_step);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("damage");
    tcase_add_test(tcase, damage_is_found_where_the_host_finds_it);
    suite_add_tcase(suite, tcase);
    return suite;
}
