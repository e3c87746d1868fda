/* SPDX-License-Identifier: Apache-2.0 */
/* Damaged messages of codec `levels`: what is no message is refused, and what is accepted decodes to finite values or NaN. */
#include "support/check_main.h"
#include "support/codec_run.h"
#include "support/level_kinds.h"
#include "support/require.h"

#include "base/status.h"
#include "base/util.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT 1500

static float inputs[2][COUNT], out[COUNT], again[COUNT];

static void fill_inputs(void)
{
    for (int i = 0; i < 2 * COUNT; i++)
        inputs[i / COUNT][i % COUNT] = codec_random_unit() * codec_random_unit() * ldexpf(1.0f, -(i / 500));
}

static codec_run_t make_run(const iq_codec_t *codec)
{
    return (codec_run_t){.codec = *codec,
                         .call = {.datatype = ISGQ_FLOAT32, .op = ISGQ_SUM, .nranks = 2, .seed = 7, .call = 9},
                         .count = COUNT,
                         .inputs = {inputs[0], inputs[1]}};
}

static isgq_result_t read_all(const iq_codec_t *codec, iq_span_t span, const unsigned char *message)
{
    iq_codec_call_t call = {.datatype = ISGQ_FLOAT32, .op = ISGQ_SUM, .nranks = 2, .seed = 7, .call = 9};
    isgq_result_t result = codec->ops->decode(codec, &call, span, message, out);
    ck_assert_int_eq(codec->ops->add(codec, &call, span, message, 1, again, true), result);
    if (result == ISGQ_SUCCESS)
        for (size_t i = 0; i < span.count; i++)
            REQUIRE(!isinf(out[i]) && !isinf(again[i]));
    else
        ck_assert_int_eq(result, ISGQ_ERR_CORRUPT);
    return result;
}

START_TEST(damage_is_refused_or_harmless)
{
    iq_codec_t codec = level_kind_codec(_i);
    codec_run_t run = make_run(&codec);
    int accepted = 0, refused = 0;
    fill_inputs();
    for (int round = 0; round < 1500; round++) {
        iq_span_t span = {codec_random() % 1000, 1 + codec_random() % 300};
        size_t bytes;
        unsigned char *message = codec_run_message(&run, round % 2, span, NULL, &bytes);
        for (unsigned flips = codec_random() % 4; flips > 0; flips--)
            message[1 + codec_random() % bytes] ^= (unsigned char)(1u << codec_random() % 8);
        for (size_t i = 1; round % 3 == 0 && i <= bytes; i++)
            message[i] = (unsigned char)codec_random();
        isgq_result_t result = read_all(&codec, span, message + 1);
        accepted += result == ISGQ_SUCCESS;
        refused += result != ISGQ_SUCCESS;
        free(message);
    }
    ck_assert_int_gt(accepted, 100);
    ck_assert_int_gt(refused, 10);
}
END_TEST

START_TEST(headers_and_padding_are_checked)
{
    iq_codec_t codec = level_kind_codec(_i);
    iq_span_t span = {0, 31}; /* no group of codes ends here */
    codec_run_t run = make_run(&codec);
    size_t bytes, header = codec.model->header != NULL ? codec.model->header(&codec) : codec.model->header_bytes;
    const float bad[] = {INFINITY, -INFINITY, NAN};
    fill_inputs();
    unsigned char *message = codec_run_message(&run, 0, span, NULL, &bytes);
    ck_assert_int_eq(read_all(&codec, span, message + 1), ISGQ_SUCCESS);
    if (level_kinds[_i].bits != 8) { /* there a code is a byte, and there is no padding */
        message[bytes] ^= 0x80;
        ck_assert_int_eq(read_all(&codec, span, message + 1), ISGQ_ERR_CORRUPT);
        ck_assert_ptr_nonnull(strstr(iq_last_error(), level_kinds[_i].family));
        message[bytes] ^= 0x80;
    }
    for (size_t k = 0; header >= sizeof(float) && k < IQ_ARRAY_SIZE(bad); k++) {
        unsigned char kept[sizeof(float)];
        memcpy(kept, message + 1, sizeof(kept));
        memcpy(message + 1, &bad[k], sizeof(kept));
        ck_assert_int_eq(read_all(&codec, span, message + 1), ISGQ_ERR_CORRUPT);
        memcpy(message + 1, kept, sizeof(kept));
    }
    memset(message + 1, 0xff, header); /* not finite, but with codes */
    ck_assert_int_eq(read_all(&codec, span, message + 1), ISGQ_ERR_CORRUPT);
    memset(message + 1 + header, 0, bytes - header);
    ck_assert_int_eq(read_all(&codec, span, message + 1), ISGQ_SUCCESS);
    ck_assert(isnan(out[0]) && isnan(out[30]));
    if (header == 1) {
        message[1] = 1;
        ck_assert_int_eq(read_all(&codec, span, message + 1), ISGQ_ERR_CORRUPT);
    }
    free(message);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("levels_damage");
    TCase *tcase = tcase_create("fuzz");
    tcase_add_loop_test(tcase, damage_is_refused_or_harmless, 0, LEVEL_KINDS);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("format");
    tcase_add_loop_test(tcase, headers_and_padding_are_checked, 0, LEVEL_KINDS);
    suite_add_tcase(suite, tcase);
    return suite;
}
