/* SPDX-License-Identifier: Apache-2.0 */
/* The rule by which shared scales are guessed (core/predict.h), and the messages that tell whether a guess held (codec/guarded.h). */
#include "support/check_main.h"

#include "codec/dense.h"
#include "codec/guarded.h"
#include "core/predict.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- the rule ---- */

START_TEST(levels_follow)
{
    float levels[4], guess[4];
    static const float first[4] = {4.0f, 4.0f, 4.0f, 0.0f}, second[4] = {6.0f, 1.0f, INFINITY, 0.0f}, small[4] = {0.5f, 0.25f, 0.5f, 0.0f};
    iq_prediction_t prediction = {.levels = levels};
    ck_assert(!iq_prediction_due(&prediction)); /* nothing is known */
    iq_prediction_learn(&prediction, 4, first);
    ck_assert(iq_prediction_due(&prediction));
    iq_prediction_guess(&prediction, 4, FLT_MAX, guess); /* a quarter above, and half of the root mean square for who had nothing */
    float least = 1.25f * (float)(0.5 * sqrt(48.0 / 4.0));
    ck_assert(guess[0] == 5.0f && guess[1] == 5.0f && guess[2] == 5.0f && guess[3] == least);
    iq_prediction_learn(&prediction, 4, second); /* up at once, down slowly, NaN and Inf not at all */
    ck_assert(levels[0] == 6.0f && levels[1] == 0.9f * 4.0f && levels[2] == 4.0f && levels[3] == 0.0f);
    iq_prediction_learn(&prediction, 4, small); /* what was is over */
    ck_assert(memcmp(levels, small, sizeof(levels)) == 0);
    levels[0] = 3e38f;
    iq_prediction_guess(&prediction, 1, FLT_MAX, guess);
    ck_assert(isfinite(guess[0]));
    levels[0] = 60000.0f; /* of f16, whose largest value is 65504 */
    iq_prediction_guess(&prediction, 1, 65504.0f, guess);
    ck_assert(guess[0] == 65504.0f);
}
END_TEST

/* Beyond, NaN as Inf, and too wide: above four times the squares, not at four. */
START_TEST(verdicts)
{
    static const struct {
        float guess, seen;
        bool beyond, wide;
    } cases[] = {{1.0f, 1.0f, false, false}, {1.0f, 1.0000001f, true, false}, {1.0f, INFINITY, true, false},
                 {2.0f, 1.0f, false, false}, {2.0001f, 1.0f, false, true},    {0.0f, 0.0f, false, false},
                 {1.0f, 0.0f, false, true}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        iq_verdict_sums_t sums = {0};
        iq_prediction_compare(&sums, cases[i].guess, cases[i].seen, cases[i].seen);
        ck_assert_msg(sums.beyond == cases[i].beyond && iq_prediction_too_wide(&sums) == cases[i].wide, "case %zu", i);
    }
}
END_TEST

/* Repairs in a row: 1, 3, 7, ... 63 calls without; every call that stands takes one back. */
START_TEST(repairs_back_off)
{
    static const unsigned waits[] = {1, 3, 7, 15, 31, 63, 63};
    float level = 1.0f;
    iq_prediction_t prediction = {.levels = &level, .known = true};
    for (int k = 0; k < 7; k++) {
        unsigned waited = 0;
        iq_prediction_count(&prediction, false);
        while (!iq_prediction_due(&prediction))
            waited++;
        ck_assert_uint_eq(waited, waits[k]);
    }
    for (int k = 0; k < 8; k++) {
        iq_prediction_count(&prediction, true);
        ck_assert(iq_prediction_due(&prediction));
    }
    iq_prediction_count(&prediction, false);
    ck_assert_uint_eq(prediction.waits, 1);
}
END_TEST

/* ---- messages ---- */

enum { COUNT = 200, FIRST = 30, BUCKET = 64 };

/* Maxima travel with partial sums and results, whichever way they go, and damaged ones are refused. */
START_TEST(maxima_travel)
{
    iq_codec_t plain = {.ops = &iq_codec_uniform_ops, .bits = 4, .rounding = IQ_ROUND_STOCHASTIC, .shared = true, .bucket = BUCKET, .exact = _i};
    iq_codec_t codec = iq_codec_guarded(&plain);
    iq_span_t span = {FIRST, COUNT}; /* touches buckets 0 to 3 */
    float scales[4] = {1.0f, 1.0f, 1.0f, 1.0f}, seen[4] = {0}, delivered[4] = {0}, in[2][COUNT], out[COUNT], again[COUNT];
    iq_codec_call_t call = {.datatype = ISGQ_FLOAT32, .op = ISGQ_SUM, .nranks = 2, .count = 300, .scales = scales, .seen = seen};
    static unsigned char message[4096], acc[4096];
    for (int i = 0; i < COUNT; i++) {
        in[0][i] = (float)(i % 7) * 0.1f;
        in[1][i] = (float)(i % 11) * -0.05f;
    }
    in[1][10] = -3.0f; /* bucket 0, beyond the guess */
    in[0][100] = NAN;  /* bucket 2 */
    codec.ops->encode(&codec, &call, span, in[0], message);
    ck_assert_int_eq(codec.ops->add(&codec, &call, span, message, 1, acc, true), ISGQ_SUCCESS);
    call.rank = 1;
    codec.ops->add_own(&codec, &call, span, in[1], acc, false);
    codec.ops->finish(&codec, &call, span, acc, message);
    ck_assert(codec.ops->result_bytes(&codec, &call, span) == plain.ops->result_bytes(&plain, &call, span) + 4 * sizeof(float));
    ck_assert_int_eq(codec.ops->decode(&codec, &call, span, message, out), ISGQ_SUCCESS);
    ck_assert(seen[0] == 3.0f && seen[1] == 0.6f && isinf(seen[2]) && seen[3] == 0.6f);
    call.seen = delivered;
    if (codec.ops->result_is_exact(&codec, &call)) {
        codec.ops->deliver(&codec, &call, span, acc, again);
        ck_assert(memcmp(seen, delivered, sizeof(seen)) == 0 && memcmp(out, again, sizeof(out)) == 0);
    }
    for (int k = 0; k < 2; k++) { /* negative; NaN */
        float bad = k == 0 ? -1.0f : NAN;
        memcpy(message + sizeof(float), &bad, sizeof(bad));
        ck_assert_int_eq(codec.ops->decode(&codec, &call, span, message, out), ISGQ_ERR_CORRUPT);
        ck_assert_int_eq(codec.ops->add(&codec, &call, span, message, 1, acc, true), ISGQ_ERR_CORRUPT);
    }
}
END_TEST

/* ---- intsgd by history ---- */

/* step = sqrt(2 N r / d), r = 0.9 r + 0.1 |mean|^2, whatever the result's spans; one with NaN changes nothing. */
START_TEST(intsgd_learns)
{
    enum { D = 3000 };
    iq_codec_t codec = {.ops = &iq_codec_intsgd_history_ops, .bits = 8, .shared = true};
    iq_codec_call_t call = {.datatype = ISGQ_FLOAT32, .op = _i ? ISGQ_AVG : ISGQ_SUM, .nranks = 4, .count = D};
    double history[IQ_HISTORY] = {0}, r = 0.0, kept[IQ_HISTORY];
    float values[D], scale = 7.0f;
    call.history = history;
    ck_assert(!codec.ops->history_scales(&codec, &call, &scale)); /* the first call agrees */
    for (int k = 0; k < 3; k++) {
        double square = 0.0;
        for (int i = 0; i < D; i++) {
            values[i] = (float)(((i * 31 + k) % 17 - 8) * (k + 1));
            double mean = (double)values[i] / (_i ? 1.0 : 4.0);
            square += mean * mean;
        }
        r = k == 0 ? square : 0.9 * r + 0.1 * square;
        codec.ops->learn(&codec, &call, (iq_span_t){0, 1234}, values, history);
        codec.ops->learn(&codec, &call, (iq_span_t){1234, D - 1234}, values + 1234, history);
        ck_assert(codec.ops->history_scales(&codec, &call, &scale));
        ck_assert(fabs((double)scale - sqrt(2.0 * 4 * r / D)) <= 1e-6 * (double)scale);
    }
    memcpy(kept, history, sizeof(kept));
    values[5] = NAN;
    codec.ops->learn(&codec, &call, (iq_span_t){0, D}, values, history);
    ck_assert(history[0] == kept[0] && history[1] == kept[1]);
    ck_assert(iq_codec_limit(&codec, &call, 2.0f) == 2.0f * 31.0f);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("predict");
    TCase *rule = tcase_create("rule");
    tcase_add_test(rule, levels_follow);
    tcase_add_test(rule, verdicts);
    tcase_add_test(rule, repairs_back_off);
    suite_add_tcase(suite, rule);
    TCase *messages = tcase_create("messages");
    tcase_add_loop_test(messages, maxima_travel, 0, 2);
    suite_add_tcase(suite, messages);
    TCase *intsgd = tcase_create("intsgd");
    tcase_add_loop_test(intsgd, intsgd_learns, 0, 2);
    suite_add_tcase(suite, intsgd);
    return suite;
}
