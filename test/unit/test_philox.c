/* SPDX-License-Identifier: Apache-2.0 */
/* Philox4x32-10 against the known answers that its authors publish (Random123, kat_vectors), and the addressing of random numbers. */
#include "support/check_main.h"

#include "kernels/philox.h"

#include <stddef.h>

typedef struct known_answer {
    uint32_t counter[4], key[2], answer[4];
} known_answer_t;

static const known_answer_t known_answers[] = {
    {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
    {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
     {0xffffffff, 0xffffffff},
     {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
    {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
     {0xa4093822, 0x299f31d0},
     {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
};

static void check_block(iq_philox_block_t block, const uint32_t answer[4])
{
    for (int i = 0; i < 4; i++)
        ck_assert_msg(block.word[i] == answer[i], "word %d is %08x, not %08x", i, block.word[i], answer[i]);
}

START_TEST(published_vectors)
{
    const known_answer_t *k = &known_answers[_i];
    check_block(iq_philox(k->counter[0], k->counter[1], k->counter[2], k->counter[3], k->key[0], k->key[1]), k->answer);
}
END_TEST

START_TEST(draw_is_the_documented_counter)
{
    uint64_t seed = 0x299f31d0a4093822u, call = 0x0370734413198a2eu, element = 0x3f6a88d2aau;
    uint64_t quad = element >> 2;
    iq_philox_block_t expected = iq_philox((uint32_t)quad, (uint32_t)(quad >> 32) | IQ_STREAM_FACTOR_X << 8 | 7u << 16,
                                           0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0);
    check_block(iq_draw(seed, call, IQ_STREAM_FACTOR_X, 7, element), expected.word);
}
END_TEST

START_TEST(four_elements_share_a_block)
{
    iq_philox_block_t first = iq_draw(1, 2, IQ_STREAM_OWN, 3, 4000);
    for (uint64_t element = 4001; element < 4004; element++)
        check_block(iq_draw(1, 2, IQ_STREAM_OWN, 3, element), first.word);
    ck_assert_uint_ne(iq_draw(1, 2, IQ_STREAM_OWN, 3, 4004).word[0], first.word[0]);
}
END_TEST

START_TEST(every_coordinate_matters)
{
    const uint32_t base = iq_draw(1, 1, IQ_STREAM_OWN, 0, 0).word[0];
    ck_assert_uint_ne(iq_draw(2, 1, IQ_STREAM_OWN, 0, 0).word[0], base);
    ck_assert_uint_ne(iq_draw(1ull << 32 | 1, 1, IQ_STREAM_OWN, 0, 0).word[0], base);
    ck_assert_uint_ne(iq_draw(1, 2, IQ_STREAM_OWN, 0, 0).word[0], base);
    ck_assert_uint_ne(iq_draw(1, 1ull << 32 | 1, IQ_STREAM_OWN, 0, 0).word[0], base);
    ck_assert_uint_ne(iq_draw(1, 1, IQ_STREAM_RESULT, 0, 0).word[0], base);
    ck_assert_uint_ne(iq_draw(1, 1, IQ_STREAM_OWN, 1, 0).word[0], base);
    ck_assert_uint_ne(iq_draw(1, 1, IQ_STREAM_OWN, 0, 1ull << 34).word[0], base);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("philox");
    TCase *known = tcase_create("known_answers");
    tcase_add_loop_test(known, published_vectors, 0, (int)(sizeof(known_answers) / sizeof(known_answers[0])));
    suite_add_tcase(suite, known);
    TCase *draw = tcase_create("draw");
    tcase_add_test(draw, draw_is_the_documented_counter);
    tcase_add_test(draw, four_elements_share_a_block);
    tcase_add_test(draw, every_coordinate_matters);
    suite_add_tcase(suite, draw);
    return suite;
}
