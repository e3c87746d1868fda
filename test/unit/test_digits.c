/* SPDX-License-Identifier: Apache-2.0 */
/* Packed codes of any number of symbols: sizes, every code back, no byte beyond, and no group accepted that is none. */
#include "support/check_main.h"
#include "support/codec_run.h"
#include "support/require.h"

#include "base/util.h"
#include "codec/digits.h"

#include <stdlib.h>
#include <string.h>

static const unsigned symbol_counts[] = {2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 31, 63, 127, 128, 255, 256, 257, 511, 512, 65536};

/* ---- packing ---- */

START_TEST(sizes_are_as_documented)
{
    static const struct {
        unsigned symbols;
        size_t count, bytes;
    } sizes[] = {{2, 8, 1},   {2, 9, 2},    {2, 2048, 256}, {3, 1, 1},     {3, 5, 1},      {3, 6, 2},       {3, 2048, 410},
                 {5, 24, 7},  {5, 25, 14},  {5, 1, 7},      {5, 2048, 602}, {9, 5, 2},     {9, 6, 4},       {9, 2048, 820},
                 {7, 8, 3},   {15, 2048, 1024}, {16, 3, 4}, {255, 3, 3},   {256, 2048, 2048}, {512, 8, 9},  {512, 2048, 2304},
                 {65536, 3, 6}};
    for (size_t i = 0; i < IQ_ARRAY_SIZE(sizes); i++) {
        iq_digits_t digits = iq_digits_of(sizes[i].symbols);
        ck_assert_msg(iq_digits_bytes(&digits, sizes[i].count) == sizes[i].bytes, "%zu codes of %u symbols: %zu bytes", sizes[i].count,
                      sizes[i].symbols, iq_digits_bytes(&digits, sizes[i].count));
        ck_assert_uint_eq(iq_digits_bytes(&digits, 0), 0);
    }
}
END_TEST

/* Exactly the bytes that are named, in a block of their own, unaligned. */
static void check_round_trip(unsigned symbols, size_t count)
{
    iq_digits_t digits = iq_digits_of(symbols);
    size_t bytes = iq_digits_bytes(&digits, count);
    uint16_t *codes = malloc((count + 1) * sizeof(*codes)), *back = malloc((count + 1) * sizeof(*back));
    unsigned char *packed = malloc(bytes + 1);
    for (size_t i = 0; i < count; i++)
        codes[i] = (uint16_t)(i % 11 == 0 ? symbols - 1 : codec_random() % symbols);
    memset(packed, 0xa5, bytes + 1);
    iq_digits_pack(&digits, codes, count, packed + 1);
    REQUIRE(iq_digits_unpack(&digits, packed + 1, count, back));
    REQUIRE(memcmp(codes, back, count * sizeof(*codes)) == 0);
    /* The same in pieces of whole units. */
    unsigned char *pieces = malloc(bytes + 1);
    size_t unit = iq_digits_unit(&digits), at = 0;
    REQUIRE(unit <= IQ_DIGITS_UNIT_MOST);
    for (size_t i = 0; i < count; i += unit) {
        size_t n = iq_min(unit, count - i);
        iq_digits_pack(&digits, codes + i, n, pieces + at);
        at += iq_digits_bytes(&digits, n);
    }
    REQUIRE(at == bytes && memcmp(packed + 1, pieces, bytes) == 0);
    free(codes), free(back), free(packed), free(pieces);
}

START_TEST(codes_come_back)
{
    unsigned symbols = symbol_counts[_i];
    for (size_t count = 0; count < 100; count++)
        check_round_trip(symbols, count);
    for (size_t count = 1270; count < 1300; count++)
        check_round_trip(symbols, count);
    check_round_trip(symbols, 8192);
}
END_TEST

START_TEST(groups_are_digits)
{
    static const uint16_t codes[] = {2, 0, 1, 2, 1};
    unsigned char packed[2];
    iq_digits_t three = iq_digits_of(3), nine = iq_digits_of(9);
    iq_digits_pack(&three, codes, 5, packed);
    ck_assert_uint_eq(packed[0], 2 + 3 * (0 + 3 * (1 + 3 * (2 + 3 * 1))));
    iq_digits_pack(&nine, codes, 4, packed);
    ck_assert_uint_eq(packed[0] + 256u * packed[1], 2 + 9 * (0 + 9 * (1 + 9 * 2)));
}
END_TEST

/* ---- damage ---- */

/* Every byte sequence that unpacks is what packing makes of its codes. */
START_TEST(only_what_is_packed_is_unpacked)
{
    unsigned symbols = symbol_counts[_i];
    iq_digits_t digits = iq_digits_of(symbols);
    unsigned accepted = 0, refused = 0;
    for (int round = 0; round < 20000; round++) {
        unsigned char packed[64], again[64];
        uint16_t codes[64];
        size_t count = 1 + codec_random() % 31, bytes = iq_digits_bytes(&digits, count);
        for (size_t i = 0; i < count; i++)
            codes[i] = (uint16_t)(codec_random() % symbols);
        iq_digits_pack(&digits, codes, count, packed);
        packed[codec_random() % bytes] ^= (unsigned char)(1u << codec_random() % 8);
        if (!iq_digits_unpack(&digits, packed, count, codes)) {
            refused++;
            continue;
        }
        accepted++;
        for (size_t i = 0; i < count; i++)
            REQUIRE(codes[i] < symbols);
        iq_digits_pack(&digits, codes, count, again);
        REQUIRE(memcmp(packed, again, bytes) == 0);
    }
    ck_assert_uint_gt(accepted, 0);
    ck_assert(refused > 0 || symbols == 256 || symbols == 65536);
}
END_TEST

/* Each group of its width: those below symbols^count, and no others. */
START_TEST(groups_beyond_the_digits_are_refused)
{
    static const struct {
        unsigned symbols, values;
    } cases[] = {{3, 243}, {5, 125}, {9, 59049}, {7, 7}, {15, 15}, {255, 255}};
    for (size_t k = 0; k < IQ_ARRAY_SIZE(cases); k++) {
        iq_digits_t digits = iq_digits_of(cases[k].symbols);
        for (uint32_t group = 0; group >> digits.bits == 0; group++) {
            unsigned char packed[16] = {(unsigned char)group, (unsigned char)(group >> 8)};
            uint16_t codes[5];
            REQUIRE(iq_digits_unpack(&digits, packed, digits.count, codes) == (group < cases[k].values));
        }
    }
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("digits");
    TCase *tcase = tcase_create("packing");
    tcase_add_test(tcase, sizes_are_as_documented);
    tcase_add_loop_test(tcase, codes_come_back, 0, (int)IQ_ARRAY_SIZE(symbol_counts));
    tcase_add_test(tcase, groups_are_digits);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("damage");
    tcase_add_loop_test(tcase, only_what_is_packed_is_unpacked, 0, (int)IQ_ARRAY_SIZE(symbol_counts));
    tcase_add_test(tcase, groups_beyond_the_digits_are_refused);
    suite_add_tcase(suite, tcase);
    return suite;
}
