/* SPDX-License-Identifier: Apache-2.0 */
/* isgqx_encode and isgqx_decode: what comes back, how many bytes it takes, and what is refused. */
#include "isgqcoll.h"
#include "isgqcoll_ext.h"
#include "support/check_main.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { COUNT = 40000 }; /* three chunks */

static float values[COUNT], back[COUNT];

static void fill(void)
{
    uint32_t state = 1;
    for (size_t i = 0; i < COUNT; i++) {
        state = state * 1664525u + 1013904223u;
        values[i] = (float)(int32_t)state * 0x1p-31f;
    }
}

static isgqx_contribution_t contribution_of(const char *text, size_t count)
{
    isgqx_contribution_t contribution = {.size = sizeof(contribution), .datatype = ISGQ_FLOAT32, .count = count, .seed = 3, .call = 1};
    ck_assert_int_eq(isgq_quantizer_create(&contribution.quantizer, text), ISGQ_SUCCESS);
    return contribution;
}

/* The message, malloced with room for nothing more than was asked for. */
static unsigned char *encoded(const isgqx_contribution_t *contribution, size_t *bytes)
{
    size_t room;
    ck_assert_int_eq(isgqx_encode(contribution, NULL, NULL, 0, &room), ISGQ_SUCCESS);
    unsigned char *message = malloc(room + 1);
    ck_assert_ptr_nonnull(message);
    ck_assert_int_eq(isgqx_encode(contribution, values, message, room, bytes), ISGQ_SUCCESS);
    ck_assert_uint_le(*bytes, room);
    return message;
}

static const struct {
    const char *text;
    double most_bits; /* an element, scales and lengths of chunks included */
    double most_nmse;
} expected[] = {
    {"none", 32.01, 0.0},
    {"fp16", 16.01, 1e-6},
    {"uniform:bits=8", 8.1, 1e-4},
    {"uniform:bits=4,scale=local", 4.1, 2e-2},
    {"uniform:bits=4,rounding=stratified", 4.1, 2e-2},
    {"global-qsgd:norm=l2,bucket=512", 8.2, 0.5},
    {"orq-9", 3.5, 0.05},
    {"eden:bits=4", 4.1, 0.02},
    {"mx", 8.3, 1e-3},
    {"intsgd", 8.1, 1e-3},
};

START_TEST(test_round_trip)
{
    static const size_t counts[] = {0, 1, 16385, COUNT};
    isgqx_contribution_t contribution = contribution_of(expected[_i].text, 0);
    fill();
    for (size_t c = 0; c < sizeof(counts) / sizeof(counts[0]); c++) {
        double error = 0.0, norm = 0.0;
        size_t bytes;
        contribution.count = counts[c];
        unsigned char *message = encoded(&contribution, &bytes);
        memset(back, 0xff, sizeof(back)); /* NaN */
        ck_assert_int_eq(isgqx_decode(&contribution, message, bytes, back), ISGQ_SUCCESS);
        for (size_t i = 0; i < counts[c]; i++) {
            error += ((double)back[i] - (double)values[i]) * ((double)back[i] - (double)values[i]);
            norm += (double)values[i] * (double)values[i];
        }
        ck_assert_msg(error <= expected[_i].most_nmse * norm || counts[c] == 1, "%s: nmse %g", expected[_i].text, error / norm);
        if (counts[c] > 1000)
            ck_assert_msg((double)bytes * 8.0 <= expected[_i].most_bits * (double)counts[c], "%s: %zu bytes for %zu elements",
                          expected[_i].text, bytes, counts[c]);
        ck_assert_msg(counts[c] == COUNT || isnan(back[counts[c]]), "%s: more than %zu elements", expected[_i].text, counts[c]);
        free(message);
    }
    isgq_quantizer_destroy(contribution.quantizer);
}
END_TEST

START_TEST(test_seed)
{
    isgqx_contribution_t contribution = contribution_of("uniform:bits=4", COUNT);
    size_t bytes, again;
    fill();
    unsigned char *first = encoded(&contribution, &bytes), *second = encoded(&contribution, &again);
    ck_assert_uint_eq(bytes, again);
    ck_assert_mem_eq(first, second, bytes);
    free(second);
    contribution.call = 2;
    second = encoded(&contribution, &again);
    ck_assert_mem_ne(first, second, bytes);
    free(first);
    free(second);
    isgq_quantizer_destroy(contribution.quantizer);
}
END_TEST

START_TEST(test_refusals)
{
    isgqx_contribution_t good = contribution_of("uniform:bits=4", 100), bad = good;
    isgqx_contribution_t factors = contribution_of("factor:width=4", 100);
    unsigned char message[1000];
    size_t bytes = 0;
    fill();
    bad.size = 1;
    ck_assert_int_eq(isgqx_encode(&bad, values, message, sizeof(message), &bytes), ISGQ_ERR_INVALID_ARGUMENT);
    bad = good;
    bad.quantizer = NULL;
    ck_assert_int_eq(isgqx_encode(&bad, values, message, sizeof(message), &bytes), ISGQ_ERR_INVALID_ARGUMENT);
    bad = good;
    bad.datatype = ISGQ_INT32;
    ck_assert_int_eq(isgqx_encode(&bad, values, message, sizeof(message), &bytes), ISGQ_ERR_UNSUPPORTED);
    bad.datatype = (isgq_data_type_t)77;
    ck_assert_int_eq(isgqx_encode(&bad, values, message, sizeof(message), &bytes), ISGQ_ERR_INVALID_ARGUMENT);
    bad = good;
    bad.count = SIZE_MAX;
    ck_assert_int_eq(isgqx_encode(&bad, values, message, sizeof(message), &bytes), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_int_eq(isgqx_encode(NULL, values, message, sizeof(message), &bytes), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_int_eq(isgqx_encode(&good, values, message, sizeof(message), NULL), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_int_eq(isgqx_encode(&good, NULL, message, sizeof(message), &bytes), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_int_eq(isgqx_encode(&good, values, message, 10, &bytes), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_int_eq(isgqx_encode(&factors, values, message, sizeof(message), &bytes), ISGQ_ERR_UNSUPPORTED);
    ck_assert_int_eq(isgqx_decode(&factors, message, 10, back), ISGQ_ERR_UNSUPPORTED);
    ck_assert_int_eq(isgqx_decode(&good, NULL, 10, back), ISGQ_ERR_INVALID_ARGUMENT);
    isgq_quantizer_destroy(good.quantizer);
    isgq_quantizer_destroy(factors.quantizer);
}
END_TEST

/* Cut anywhere, or with a length that is none, a message is refused; so is what goes on behind its end. */
START_TEST(test_damage)
{
    static const char *const texts[] = {"uniform:bits=4", "none", "eden:bits=2", "isgq:bits=4"};
    isgqx_contribution_t contribution = contribution_of(texts[_i], 20000);
    size_t bytes;
    fill();
    unsigned char *message = encoded(&contribution, &bytes);
    for (size_t cut = 0; cut < bytes; cut += cut < 100 ? 1 : 997) {
        unsigned char *part = malloc(cut + 1); /* a sanitizer sees what is read behind it */
        ck_assert_ptr_nonnull(part);
        memcpy(part, message, cut);
        ck_assert_int_eq(isgqx_decode(&contribution, part, cut, back), ISGQ_ERR_CORRUPT);
        free(part);
    }
    unsigned char *longer = calloc(bytes + 1, 1);
    ck_assert_ptr_nonnull(longer);
    memcpy(longer, message, bytes);
    ck_assert_int_eq(isgqx_decode(&contribution, longer, bytes + 1, back), ISGQ_ERR_CORRUPT);
    free(longer);
    free(message);
    isgq_quantizer_destroy(contribution.quantizer);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("ext_codec");
    TCase *round_trip = tcase_create("round_trip"), *seed = tcase_create("seed"), *refusals = tcase_create("refusals");
    TCase *damage = tcase_create("damage");
    tcase_add_loop_test(round_trip, test_round_trip, 0, (int)(sizeof(expected) / sizeof(expected[0])));
    tcase_add_test(seed, test_seed);
    tcase_add_test(refusals, test_refusals);
    tcase_add_loop_test(damage, test_damage, 0, 4);
    suite_add_tcase(suite, round_trip);
    suite_add_tcase(suite, seed);
    suite_add_tcase(suite, refusals);
    suite_add_tcase(suite, damage);
    return suite;
}
