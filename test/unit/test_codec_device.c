/* SPDX-License-Identifier: Apache-2.0 */
/* What needs no GPU of the codecs' device rows: the table, scratch, launches that fail and launches that are not made. */
#include "support/check_main.h"
#include "support/require.h"

#include "base/status.h"
#include "base/util.h"
#include "codec/dense.h"
#include "codec/device.h"
#include "codec/levels.h"

#include <stdio.h>

/* ---- launches that fail, and launches that need not be ---- */

static int launches, launches_that_work;

static isgq_result_t launch(void)
{
    return launches++ < launches_that_work ? ISGQ_SUCCESS : IQ_FAIL(ISGQ_ERR_CUDA, "launch %d failed", launches);
}

static isgq_result_t fake_copy(int ordinal, isgq_stream_t stream, void *dst, const void *src, size_t bytes)
{
    (void)ordinal, (void)stream, (void)dst, (void)src, (void)bytes;
    return launch();
}

static isgq_result_t fake_clear(int ordinal, isgq_stream_t stream, void *dst, size_t bytes)
{
    (void)ordinal, (void)stream, (void)dst, (void)bytes;
    return launch();
}

static isgq_result_t fake_measure(int ordinal, isgq_stream_t stream, const iq_cuda_source_t *source, uint64_t first,
                                  size_t bucket, size_t count, float *scales)
{
    (void)ordinal, (void)stream, (void)source, (void)first, (void)bucket, (void)count, (void)scales;
    return launch();
}

static isgq_result_t fake_map(int ordinal, isgq_stream_t stream, const iq_cuda_map_t *map)
{
    (void)ordinal, (void)stream, (void)map;
    return launch();
}

static isgq_result_t fake_reduce(int ordinal, isgq_stream_t stream, const iq_cuda_reduce_t *reduce)
{
    (void)ordinal, (void)stream, (void)reduce;
    return launch();
}

static isgq_result_t fake_divide(int ordinal, isgq_stream_t stream, const iq_cuda_divide_t *divide)
{
    (void)ordinal, (void)stream, (void)divide;
    return launch();
}

static isgq_result_t fake_combine(int ordinal, isgq_stream_t stream, const iq_cuda_combine_t *combine)
{
    (void)ordinal, (void)stream, (void)combine;
    return launch();
}

static isgq_result_t fake_moments(int ordinal, isgq_stream_t stream, const iq_cuda_moments_t *moments)
{
    (void)ordinal, (void)stream, (void)moments;
    return launch();
}

static isgq_result_t fake_rescale(int ordinal, isgq_stream_t stream, const iq_cuda_rescale_t *rescale)
{
    (void)ordinal, (void)stream, (void)rescale;
    return launch();
}

static isgq_result_t fake_levels(int ordinal, isgq_stream_t stream, const iq_cuda_levels_t *levels)
{
    (void)ordinal, (void)stream, (void)levels;
    return launch();
}

static isgq_result_t fake_exponent(int ordinal, isgq_stream_t stream, const iq_cuda_exponent_t *exponent)
{
    (void)ordinal, (void)stream, (void)exponent;
    return launch();
}

static const iq_cuda_level_table_t fake_level_table = {.encode = fake_levels, .decode = fake_levels};

static const iq_cuda_module_t fake_module = {.moments = fake_moments,
                                             .rescale = fake_rescale,
                                             .copy = fake_copy,
                                             .clear = fake_clear,
                                             .measure = fake_measure,
                                             .map = fake_map,
                                             .reduce = fake_reduce,
                                             .divide = fake_divide,
                                             .combine = fake_combine,
                                             .exponent = fake_exponent,
                                             .level = &fake_level_table};

/* Levels have models, and are added up message by message. */
static iq_codec_t device_codec(const iq_codec_ops_t *host, bool shared)
{
    bool levels = host == &iq_codec_levels_ops;
    return (iq_codec_t){
        .ops = iq_codec_on_device(host), .model = levels ? &iq_level_qsgd : NULL, .bits = 3, .bucket = 32, .shared = shared};
}

/* Every step once; the last result. */
static isgq_result_t all_steps(const iq_codec_t *codec, iq_device_t *fake, iq_span_t span)
{
    float memory[64] = {0};
    iq_codec_call_t call = {
        .datatype = ISGQ_FLOAT16, .op = ISGQ_AVG, .nranks = 2, .scales = memory, .first_bucket = 1, .device = fake};
    const iq_codec_ops_t *ops = codec->ops;
    if (ops->local_scales != NULL)
        ops->local_scales(codec, &call, span, memory, memory);
    if (ops->close_scales != NULL)
        ops->close_scales(codec, &call, span.count, memory);
    if (ops->open_scales != NULL)
        ops->open_scales(codec, &call, span.count, memory);
    ops->encode(codec, &call, span, memory, memory);
    ops->add_own(codec, &call, span, memory, memory, true);
    isgq_result_t added = ops->add(codec, &call, span, memory, 1, memory, false);
    ck_assert_int_eq(added, fake->result);
    ops->store(codec, &call, span, memory, 1, memory);
    ops->store(codec, &call, span, memory, 2, memory);
    ops->finish(codec, &call, span, memory, memory);
    ops->deliver(codec, &call, span, memory, memory);
    const void *messages[] = {memory, NULL};
    (void)iq_codec_combine(codec, &call, span, 2, messages, 1, memory, memory, memory);
    return ops->decode(codec, &call, span, memory, memory);
}

enum { LAUNCHES_MOST = 40 };

START_TEST(the_first_failure_stays)
{
    float scratch[32];
    uint32_t word = IQ_CUDA_NO_FAULT;
    for (int i = 0; iq_codecs[i] != NULL; i++) {
        if (iq_codec_on_device(iq_codecs[i]) == NULL)
            continue;
        for (int works = 0; works < LAUNCHES_MOST; works++) {
            iq_codec_t codec = device_codec(iq_codecs[i], works % 2);
            iq_device_t fake = {.cuda = &fake_module, .fault = &word, .scratch = scratch, .scratch_bytes = sizeof(scratch)};
            char text[64];
            launches = 0;
            launches_that_work = 1000;
            ck_assert_int_eq(all_steps(&codec, &fake, (iq_span_t){32, 16}), ISGQ_SUCCESS);
            int total = launches;
            ck_assert_int_lt(total, LAUNCHES_MOST);
            if (works >= total)
                continue;
            launches = 0;
            launches_that_work = works;
            word = IQ_CUDA_BAD_CODE;
            ck_assert_int_eq(all_steps(&codec, &fake, (iq_span_t){32, 16}), ISGQ_ERR_CUDA);
            snprintf(text, sizeof(text), "launch %d failed", works + 1);
            ck_assert_str_eq(iq_last_error(), text);
            ck_assert_int_eq(launches, works + 1);
            ck_assert_int_eq(iq_device_check(&fake, "any"), ISGQ_ERR_CUDA);
            ck_assert_str_eq(iq_last_error(), text);
        }
    }
}
END_TEST

START_TEST(empty_spans_launch_nothing)
{
    launches = launches_that_work = 0;
    for (int i = 0; iq_codecs[i] != NULL; i++) {
        if (iq_codec_on_device(iq_codecs[i]) == NULL)
            continue;
        for (int shared = 0; shared <= 1; shared++) {
            iq_codec_t codec = device_codec(iq_codecs[i], shared);
            iq_device_t fake = {.cuda = &fake_module};
            ck_assert_int_eq(all_steps(&codec, &fake, (iq_span_t){32, 0}), ISGQ_SUCCESS);
        }
    }
    ck_assert_int_eq(launches, 0);
}
END_TEST

START_TEST(faults_are_told_apart)
{
    static const struct {
        uint32_t fault;
        const char *text;
    } faults[] = {{IQ_CUDA_BAD_CODE, "codec uniform: a code of a message is above the largest one"},
                  {IQ_CUDA_BAD_PADDING, "codec uniform: bits set after the last code of a message"},
                  {IQ_CUDA_BAD_SCALE, "codec uniform: a scale of a message is negative or NaN"},
                  {IQ_CUDA_BAD_HEADER, "codec uniform: a header of a message is none that a sender writes"},
                  {77, "codec uniform: a fault that this version does not know"}};
    uint32_t word = IQ_CUDA_NO_FAULT;
    iq_device_t unused = {.fault = &word};
    ck_assert_int_eq(iq_device_check(&unused, "uniform"), ISGQ_SUCCESS);
    for (size_t i = 0; i < IQ_ARRAY_SIZE(faults); i++) {
        word = faults[i].fault;
        ck_assert_int_eq(iq_device_check(&unused, "uniform"), ISGQ_ERR_CORRUPT);
        ck_assert_str_eq(iq_last_error(), faults[i].text);
        ck_assert_uint_eq(word, IQ_CUDA_NO_FAULT);
    }
}
END_TEST

/* ---- the table ---- */

/* The others are for host memory only until they have a row. */
static const iq_codec_ops_t *const with_devices[] = {&iq_codec_none_ops, &iq_codec_fp16_ops, &iq_codec_bf16_ops,
                                                     &iq_codec_uniform_ops, &iq_codec_uniform_norm_ops, &iq_codec_intsgd_ops,
                                                     &iq_codec_levels_ops, &iq_codec_exponential_ops};

START_TEST(device_rows_have_their_codecs_shape)
{
    iq_codec_ops_t stranger = {.name = "stranger"};
    iq_level_model_t unknown = {.name = "unknown"};
    for (int i = 0; iq_codecs[i] != NULL; i++) {
        const iq_codec_ops_t *host = iq_codecs[i], *row = iq_codec_on_device(host);
        ck_assert(iq_codec_has_device(&(iq_codec_t){.ops = host, .model = &iq_level_qsgd}) == (row != NULL) && row != host);
        if (row == NULL)
            continue;
        ck_assert_ptr_eq(iq_codec_on_device(row), row);
        ck_assert_str_eq(row->name, host->name);
        ck_assert(row->supports == host->supports && row->needs_scales == host->needs_scales &&
                  row->acc_bytes == host->acc_bytes);
        ck_assert(row->result_is_exact == host->result_is_exact && row->partial_bytes == host->partial_bytes);
        ck_assert(row->result_bytes == host->result_bytes);
    }
    for (size_t i = 0; i < IQ_ARRAY_SIZE(with_devices); i++)
        ck_assert_msg(iq_codec_on_device(with_devices[i]) != NULL, "codec %s has no device row", with_devices[i]->name);
    ck_assert_ptr_null(iq_codec_on_device(&stranger));
    ck_assert(!iq_codec_has_device(&(iq_codec_t){.ops = &iq_codec_levels_ops, .model = &unknown}));
}
END_TEST

START_TEST(scratch_has_room_for_any_span)
{
    iq_codec_t codec = {.ops = &iq_codec_uniform_ops, .bits = 2, .bucket = 0, .shared = true};
    ck_assert_uint_eq(iq_codec_device_scratch(&codec, 5000), 4);
    ck_assert_uint_eq(iq_codec_device_scratch(&codec, 0), 0);
    for (codec.bucket = 32; codec.bucket < 200; codec.bucket += 8) {
        for (size_t count = 1; count < 300; count++) {
            size_t most = 0;
            for (size_t first = 0; first < codec.bucket; first++)
                most = iq_max(most, (first + count - 1) / codec.bucket + 1);
            codec.shared = true;
            REQUIRE(iq_codec_device_scratch(&codec, count) == most * 4);
            codec.shared = false; /* own values have scales beside those of the sum */
            REQUIRE(iq_codec_device_scratch(&codec, count) == most * 8);
        }
    }
    codec.ops = &iq_codec_none_ops;
    ck_assert_uint_eq(iq_codec_device_scratch(&codec, 5000), 0);
    /* edges of units of 24 codes, 16 bytes at a time, and a message: a header of five levels each, and 3 codes in 7 bits */
    codec = (iq_codec_t){.ops = &iq_codec_levels_ops, .model = &iq_level_orq, .levels = 5, .bucket = 32};
    ck_assert_uint_eq(iq_codec_device_scratch(&codec, 34), 3 * 24 * 2 + 3 * 20 + 14);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("codec_device");
    TCase *tcase = tcase_create("launches");
    tcase_add_test(tcase, the_first_failure_stays);
    tcase_add_test(tcase, empty_spans_launch_nothing);
    tcase_add_test(tcase, faults_are_told_apart);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("table");
    tcase_add_test(tcase, device_rows_have_their_codecs_shape);
    tcase_add_test(tcase, scratch_has_room_for_any_span);
    suite_add_tcase(suite, tcase);
    return suite;
}
