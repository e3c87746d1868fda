/* SPDX-License-Identifier: Apache-2.0 */
/* Kernels that encode and decode in one: against the portable row's steps, each of which test_kernels.c holds against plain arithmetic. */
#include "support/check_main.h"
#include "support/require.h"

#include "kernels/kernels.h"

#include <math.h>
#include <string.h>

#define COUNT 1237

static uint64_t state = 88172645463325252ull;

static uint32_t random_bits(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 16);
}

static float random_unit(void) { return (float)((double)random_bits() / 2147483648.0 - 1.0); }

/* encode is quantize and pack8, decode is unpack8 and the values, for every width, tail, alignment and place in the stream. */
static void check_encode(const iq_kernels_t *row, const iq_grid_t *grid, unsigned width, uint64_t first, const float *values,
                         size_t count)
{
    static uint8_t codes[COUNT], packed[COUNT + 8], expected[COUNT + 8];
    static char floats[COUNT * sizeof(float) + 8];
    size_t bytes = iq_packed_bytes(count, width);
    memcpy(floats + 1, values, count * sizeof(float)); /* unaligned */
    iq_kernel_rows[0]->quantize(grid, first, values, count, codes);
    memset(packed, 0xa5, sizeof(packed));
    memset(expected, 0xa5, sizeof(expected));
    iq_kernel_rows[0]->pack8(codes, count, width, expected + 1);
    row->encode(grid, first, (const iq_f32_any_t *)(floats + 1), count, width, packed + 1);
    ck_assert_mem_eq(packed, expected, bytes + 2);

    uint32_t most = 0;
    for (int how = 0; how < 4; how++) {
        bool add = how % 2;
        float divisor = how / 2 ? 3.0f : 1.0f;
        char back[8 + sizeof(floats)];
        memcpy(back + 1, values, count * sizeof(float));
        memset(back + 1 + count * sizeof(float), 0xa5, 4);
        uint32_t found = row->decode(packed + 1, count, width, (1 << width) - 2, 0.3f, divisor, add, (iq_f32_any_t *)(back + 1));
        for (size_t i = 0; i < count; i++) {
            float value, due = (float)(2 * codes[i] - (1 << width) + 2) * 0.3f;
            due /= divisor;
            memcpy(&value, back + 1 + i * sizeof(float), sizeof(value));
            due = add ? values[i] + due : due;
            REQUIRE(iq_float_bits(value) == iq_float_bits(due) || (isnan(value) && isnan(due)));
            most = codes[i] > most ? codes[i] : most;
        }
        REQUIRE(found == most);
        REQUIRE(back[1 + count * sizeof(float)] == (char)0xa5);
    }
}

START_TEST(encode_is_quantize_and_pack)
{
    static float values[COUNT];
    static uint32_t strata[256];
    static const size_t counts[] = {0, 1, 7, 8, 63, 64, 65, 127, 128, 129, 255, 256, 263, 520, 1237};
    for (int i = 0; i < 256; i++)
        strata[i] = random_bits() >> 8;
    for (int i = 0; i < COUNT; i++)
        values[i] = i % 4 == 0 ? ldexpf(random_unit(), -(i % 140)) : random_unit() * 1.1f;
    values[2] = NAN;
    values[130] = -INFINITY;
    for (const iq_kernels_t *const *row = iq_kernel_rows; *row != NULL; row++) {
        if (!(*row)->usable())
            continue;
        for (unsigned width = 1; width <= 8; width++) {
            for (unsigned i = 0; i < 45; i++) {
                int32_t half = (1 << (width - 1)) - 1;
                iq_grid_t grid = {.inverse = width == 1 ? 0.5f : (float)half,
                                  .shift = width == 1 ? 0.5f : 0.0f,
                                  .low = -half,
                                  .high = width == 1 ? 1 : half,
                                  .stochastic = i % 3 > 0,
                                  .stream = 1,
                                  .rank = 65535,
                                  .seed = 0x9876543210fedcbaull,
                                  .call = 0x123456789abcdef0ull,
                                  .strata = i % 3 == 2 ? strata : NULL};
                check_encode(*row, &grid, width, i % 2 ? 0x3fffffffcull : 41 * i, values, counts[i / 3]);
            }
        }
    }
}
END_TEST

/* A value just below a code is that code but for less than 2^-24, which rounds to nothing: the largest random number too takes it up. Offsets of
 * stratified rounding make every random number the largest. */
START_TEST(just_below_a_code)
{
    enum { JUST = 256 };
    static float values[JUST];
    static uint8_t codes[JUST];
    uint32_t strata[256] = {0}, largest = 0;
    iq_grid_t grid = {.inverse = 7.0f, .low = -7, .high = 7, .stochastic = true, .stream = 1, .seed = 5, .call = 9, .strata = strata};
    for (uint32_t i = 0; i < JUST; i++) {
        uint32_t word = iq_draw(grid.seed, grid.call, grid.stream, grid.rank, i).word[i % 4];
        strata[word & 0xff] = (0xffffffu - (word >> 8)) & 0xffffffu;
        values[i] = i % 2 ? -1e-9f : -0x1p-28f;
    }
    for (uint32_t i = 0; i < JUST; i++) {
        uint32_t word = iq_draw(grid.seed, grid.call, grid.stream, grid.rank, i).word[i % 4];
        largest += (((word >> 8) + strata[word & 0xff]) & 0xffffffu) == 0xffffffu;
    }
    ck_assert_uint_gt(largest, 100);
    for (const iq_kernels_t *const *row = iq_kernel_rows; *row != NULL; row++) {
        if (!(*row)->usable())
            continue;
        (*row)->quantize(&grid, 0, (const iq_f32_any_t *)values, JUST, codes);
        for (int i = 0; i < JUST; i++)
            ck_assert_msg(codes[i] == 7, "%s: value %d has code %d", (*row)->name, i, codes[i] - 7);
    }
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("encode");
    TCase *tcase = tcase_create("encode");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, encode_is_quantize_and_pack);
    tcase_add_test(tcase, just_below_a_code);
    suite_add_tcase(suite, tcase);
    return suite;
}
