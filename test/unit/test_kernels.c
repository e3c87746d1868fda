/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels: every row against plain arithmetic, and all rows against each other, bit for bit. */
#include "support/check_main.h"
#include "support/require.h"

#include "kernels/kernels.h"

#include <math.h>
#include <stdlib.h>
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

/* Next usable row after `row`; start with NULL. */
static const iq_kernels_t *const *next_row(const iq_kernels_t *const *row)
{
    do
        row = row == NULL ? iq_kernel_rows : row + 1;
    while (*row != NULL && !(*row)->usable());
    return row;
}

#define FOR_ROWS(row) for (const iq_kernels_t *const *row = next_row(NULL); *row != NULL; row = next_row(row))

/* ---- conversions ---- */

/* The value of binary16 bits in double arithmetic. */
static double half_value(uint16_t half, unsigned mantissa_bits, int bias)
{
    unsigned exponents = 15 - mantissa_bits;
    unsigned exponent = (unsigned)(half >> mantissa_bits) & ((1u << exponents) - 1u);
    double mantissa = (double)(half & ((1u << mantissa_bits) - 1u)) / (double)(1u << mantissa_bits);
    double sign = half & 0x8000 ? -1.0 : 1.0;
    if (exponent == (1u << exponents) - 1u)
        return mantissa == 0.0 ? sign * (double)INFINITY : (double)NAN;
    return sign * (exponent == 0 ? ldexp(mantissa, 1 - bias) : ldexp(1.0 + mantissa, (int)exponent - bias));
}

static void check_decoded(float value, double expected)
{
    if (isnan(expected))
        REQUIRE(isnan(value));
    else
        REQUIRE((double)value == expected && !signbit(value) == !signbit(expected));
}

START_TEST(halves_decode_exactly)
{
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        check_decoded(iq_f16_to_float((uint16_t)bits), half_value((uint16_t)bits, 10, 15));
        check_decoded(iq_bf16_to_float((uint16_t)bits), half_value((uint16_t)bits, 7, 127));
    }
}
END_TEST

/* Is `half` the nearest to `value`, ties to even, by comparison with its neighbours? Finite values, halves by magnitude. */
static void check_rounded(float value, uint16_t half, unsigned mantissa_bits, int bias)
{
    uint16_t magnitude = half & 0x7fff, infinity = (uint16_t)(0x7fffu >> mantissa_bits << mantissa_bits);
    double x = fabs((double)value), largest = half_value((uint16_t)(infinity - 1), mantissa_bits, bias);
    double beyond = largest + (largest - half_value((uint16_t)(infinity - 2), mantissa_bits, bias));
    double here = magnitude == infinity ? beyond : half_value(magnitude, mantissa_bits, bias);
    double below = magnitude == 0 ? -1.0 : half_value((uint16_t)(magnitude - 1), mantissa_bits, bias);
    double above = magnitude >= infinity - 1 ? beyond : half_value((uint16_t)(magnitude + 1), mantissa_bits, bias);
    double miss = fabs(x - here);
    REQUIRE(magnitude <= infinity);
    REQUIRE(!signbit(value) == !(half & 0x8000));
    if (magnitude == infinity) {
        REQUIRE(x >= (largest + beyond) / 2);
        return;
    }
    REQUIRE(miss < fabs(x - below) || (miss == fabs(x - below) && magnitude % 2 == 0));
    REQUIRE(miss < fabs(x - above) || (miss == fabs(x - above) && magnitude % 2 == 0));
}

/* Every half, every midpoint between halves and the floats beside them: that is where rounding decides. */
START_TEST(halves_round_to_nearest_even)
{
    for (uint32_t bits = 0; bits < 0x10000; bits++) {
        for (int type = 0; type < 2; type++) {
            float here = type == 0 ? iq_f16_to_float((uint16_t)bits) : iq_bf16_to_float((uint16_t)bits);
            float next = type == 0 ? iq_f16_to_float((uint16_t)(bits + 1)) : iq_bf16_to_float((uint16_t)(bits + 1));
            uint16_t again = type == 0 ? iq_float_to_f16(here) : iq_float_to_bf16(here);
            if (isnan(here)) {
                REQUIRE(again == (bits | (type == 0 ? 0x200 : 0x40)));
                continue;
            }
            REQUIRE(again == bits);
            if (isinf(here) || isnan(next))
                continue;
            float middle =
                isinf(next) ? (type == 0 ? copysignf(65520.0f, here) : copysignf(0x1.ffp+127f, here)) : here / 2 + next / 2;
            float points[] = {middle, nextafterf(middle, -INFINITY), nextafterf(middle, INFINITY), nextafterf(here, INFINITY)};
            for (int i = 0; i < 4; i++) {
                if (isfinite(points[i]) && type == 0)
                    check_rounded(points[i], iq_float_to_f16(points[i]), 10, 15);
                else if (isfinite(points[i]))
                    check_rounded(points[i], iq_float_to_bf16(points[i]), 7, 127);
            }
        }
    }
}
END_TEST

START_TEST(halves_keep_nan_and_infinity)
{
    REQUIRE(iq_float_to_f16(INFINITY) == 0x7c00);
    REQUIRE(iq_float_to_f16(-INFINITY) == 0xfc00);
    REQUIRE(iq_float_to_bf16(-INFINITY) == 0xff80);
    REQUIRE(iq_float_to_f16(65519.996f) == 0x7bff);
    REQUIRE(iq_float_to_f16(65520.0f) == 0x7c00);
    REQUIRE(iq_float_to_f16(3e38f) == 0x7c00);
    REQUIRE(iq_float_to_bf16(3.4e38f) == 0x7f80);
    REQUIRE(iq_float_to_f16(iq_bits_float(0x7f800001u)) == 0x7e00);
    REQUIRE(iq_float_to_bf16(iq_bits_float(0xff800001u)) == 0xffc0);
    REQUIRE(iq_float_to_f16(0x1p-25f) == 0);
    REQUIRE(iq_float_to_f16(0x1.000002p-25f) == 1);
}
END_TEST

START_TEST(rows_convert_alike)
{
    static float values[COUNT], back[COUNT];
    static uint16_t halves[COUNT];
    FOR_ROWS(row)
    {
        for (int round = 0; round < 200; round++) {
            for (int i = 0; i < COUNT; i++)
                values[i] = iq_bits_float(random_bits());
            (*row)->f32_to_f16(values, COUNT, halves);
            (*row)->f16_to_f32(halves, COUNT, back);
            for (int i = 0; i < COUNT; i++) {
                REQUIRE(halves[i] == iq_float_to_f16(values[i]));
                REQUIRE(iq_float_bits(back[i]) == iq_float_bits(iq_f16_to_float(halves[i])));
            }
            (*row)->f32_to_bf16(values, COUNT, halves);
            (*row)->bf16_to_f32(halves, COUNT, back);
            for (int i = 0; i < COUNT; i++) {
                REQUIRE(halves[i] == iq_float_to_bf16(values[i]));
                REQUIRE(iq_float_bits(back[i]) == (uint32_t)halves[i] << 16);
            }
        }
    }
}
END_TEST

/* ---- scales ---- */

START_TEST(absmax_finds_the_largest)
{
    static float values[COUNT + 1];
    static char bytes[sizeof(values) + 1];
    FOR_ROWS(row)
    {
        REQUIRE(iq_float_bits((*row)->absmax(values, 0)) == 0);
        for (int i = 0; i <= COUNT; i++)
            values[i] = random_unit();
        for (int at = 0; at < COUNT; at++) {
            float was = values[at];
            values[at] = at % 2 ? -3.5f : 3.5f;
            REQUIRE((*row)->absmax(values, COUNT) == 3.5f);
            REQUIRE((*row)->absmax(values + at, 1) == 3.5f);
            memcpy(bytes + 1, values, sizeof(values)); /* unaligned */
            REQUIRE((*row)->absmax((const iq_f32_any_t *)(bytes + 1), COUNT) == 3.5f);
            values[at] = at % 3 == 0 ? NAN : at % 3 == 1 ? -INFINITY : iq_bits_float(0xff800001u);
            REQUIRE(iq_float_bits((*row)->absmax(values, COUNT)) == 0x7f800000u);
            values[at] = was;
        }
        memset(values, 0, sizeof(values));
        values[17] = -0x1p-149f;
        REQUIRE((*row)->absmax(values, COUNT) == 0x1p-149f);
    }
}
END_TEST

/* ---- packing ---- */

static unsigned bit_of(const unsigned char *packed, size_t bit) { return packed[bit / 8] >> bit % 8 & 1u; }

static void check_packing(const iq_kernels_t *row, size_t count, unsigned width)
{
    static uint32_t codes[64], back[64];
    static uint8_t narrow[64], narrow_back[64];
    unsigned char packed[64 * 4 + 2], packed8[64 * 4 + 2];
    size_t bytes = iq_packed_bytes(count, width);
    for (size_t i = 0; i < count; i++) {
        codes[i] = random_bits() & (0xffffffffu >> (32 - width));
        narrow[i] = (uint8_t)codes[i];
    }
    memset(packed, 0xa5, sizeof(packed));
    row->pack32(codes, count, width, packed + 1); /* unaligned on purpose */
    REQUIRE(packed[0] == 0xa5);
    REQUIRE(packed[1 + bytes] == 0xa5);
    for (size_t bit = 0; bit < 8 * bytes; bit++) {
        unsigned expected = bit / width < count ? codes[bit / width] >> bit % width & 1u : 0u;
        REQUIRE(bit_of(packed + 1, bit) == expected);
    }
    memset(back, 0xa5, sizeof(back));
    row->unpack32(packed + 1, count, width, back);
    ck_assert_mem_eq(back, codes, count * sizeof(*codes));
    if (count < 64)
        REQUIRE(back[count] == 0xa5a5a5a5u);
    if (width > 8)
        return;
    memset(packed8, 0xa5, sizeof(packed8));
    memset(narrow_back, 0xa5, sizeof(narrow_back));
    row->pack8(narrow, count, width, packed8 + 1);
    ck_assert_mem_eq(packed8, packed, bytes + 2);
    row->unpack8(packed8 + 1, count, width, narrow_back);
    ck_assert_mem_eq(narrow_back, narrow, count);
    if (count < 64)
        REQUIRE(narrow_back[count] == 0xa5);
}

START_TEST(codes_are_a_bit_stream)
{
    FOR_ROWS(row)
    {
        for (unsigned width = 1; width <= 32; width++) {
            for (size_t count = 0; count <= 64; count++)
                check_packing(*row, count, width);
        }
    }
}
END_TEST

START_TEST(long_runs_pack)
{
    static uint32_t codes[COUNT], back[COUNT];
    static unsigned char packed[COUNT * 4 + 32];
    FOR_ROWS(row)
    {
        for (unsigned width = 1; width <= 32; width++) {
            for (int i = 0; i < COUNT; i++)
                codes[i] = random_bits() & (0xffffffffu >> (32 - width));
            (*row)->pack32(codes, COUNT, width, packed);
            (*row)->unpack32(packed, COUNT, width, back);
            ck_assert_mem_eq(back, codes, sizeof(codes));
        }
    }
}
END_TEST

START_TEST(padding_is_checked)
{
    unsigned char packed[3 * 32];
    for (unsigned width = 1; width <= 32; width++) {
        for (size_t count = 1; count <= 24; count++) {
            size_t bits = 8 * iq_packed_bytes(count, width);
            memset(packed, 0, sizeof(packed));
            REQUIRE(iq_packed_is_clean(packed, count, width));
            for (size_t bit = 0; bit < bits; bit++) {
                packed[bit / 8] = (unsigned char)(1u << bit % 8);
                REQUIRE(iq_packed_is_clean(packed, count, width) == (bit < count * width));
                packed[bit / 8] = 0;
            }
        }
    }
}
END_TEST

/* ---- quantization ---- */

/* The definition in kernels.h, one value at a time, in double where that is exact. */
static uint8_t code_of(const iq_grid_t *grid, uint64_t number, float x)
{
    float y = x * grid->inverse;
    y += grid->shift;
    if (isnan(y) || y <= (float)grid->low)
        return 0;
    if (y >= (float)grid->high)
        return (uint8_t)(grid->high - grid->low);
    double whole = floor((double)y);
    float fraction = y - (float)whole;
    if (grid->stochastic) {
        uint32_t word = iq_draw(grid->seed, grid->call, grid->stream, grid->rank, number).word[number % 4];
        uint32_t random = grid->strata == NULL ? word >> 8 : ((word >> 8) + grid->strata[word % 256]) % 0x1000000u;
        whole += (double)random < floor((double)fraction * 0x1p24);
    } else {
        whole += fraction >= 0.5f;
    }
    return (uint8_t)(whole - grid->low);
}

static void check_quantize(const iq_kernels_t *row, const iq_grid_t *grid, uint64_t first, const float *values, size_t count)
{
    static uint8_t codes[COUNT + 1];
    memset(codes, 0xa5, sizeof(codes));
    row->quantize(grid, first, values, count, codes);
    for (size_t i = 0; i < count; i++)
        REQUIRE(codes[i] == code_of(grid, first + i, values[i]));
    REQUIRE(codes[count] == 0xa5);
    if (!grid->stochastic)
        return;
    static int32_t integers[COUNT + 1];
    integers[count] = 0x5a5a5a5a;
    row->quantize32(grid, first, values, count, integers); /* the same, not counted from the lowest */
    for (size_t i = 0; i < count; i++)
        REQUIRE(integers[i] == (int32_t)codes[i] + grid->low);
    REQUIRE(integers[count] == 0x5a5a5a5a);
}

START_TEST(quantize_follows_its_definition)
{
    static float values[COUNT];
    static uint32_t strata[256];
    for (int i = 0; i < 256; i++)
        strata[i] = random_bits() >> 8;
    static const uint64_t firsts[] = {0, 1, 2, 3, 5, 1021, 0x3fffffffeull, 0xfffffffffull, 0x3fffffff0ull, 0x7ffffffffffull};
    FOR_ROWS(row)
    {
        for (unsigned i = 0; i < sizeof(firsts) / sizeof(firsts[0]); i++) {
            iq_grid_t grid = {.inverse = 127.0f,
                              .low = -127,
                              .high = 127,
                              .stochastic = true,
                              .stream = i % 5,
                              .rank = 1000 * i,
                              .seed = 0x123456789abcdefull * i,
                              .call = 0xfedcba987654321ull * i};
            for (int k = 0; k < COUNT; k++)
                values[k] = random_unit() * 1.1f;
            values[0] = NAN;
            values[1] = -INFINITY;
            values[2] = 3e38f;
            check_quantize(*row, &grid, firsts[i], values, COUNT);
            for (size_t count = 0; count < 9; count++)
                check_quantize(*row, &grid, firsts[i], values, count);
            grid.strata = strata;
            check_quantize(*row, &grid, firsts[i], values, COUNT - i);
            grid.stochastic = false;
            check_quantize(*row, &grid, firsts[i], values, COUNT);
            grid = (iq_grid_t){.inverse = 255.0f, .low = 0, .high = 255, .stochastic = i % 2, .shift = 0.5f};
            check_quantize(*row, &grid, firsts[i], values, COUNT);
        }
    }
}
END_TEST

START_TEST(rounding_stays_within_the_range)
{
    for (uint32_t i = 0; i < 1000000; i++) {
        uint32_t random = random_bits() >> 8;
        float largest = i % 2 ? 127.0f : nextafterf(127.0f, 200.0f);
        REQUIRE(iq_round_stochastic(largest, random, -127, 127) == 127);
        REQUIRE(iq_round_stochastic(-largest, random, -127, 127) == -127);
    }
    REQUIRE(iq_round_stochastic(-0.0f, 0, -7, 7) == 0);
    REQUIRE(iq_round_stochastic(-1e-30f, 0xffffff, -7, 7) == 0);
    REQUIRE(iq_round_nearest(0.49999997f, -7, 7) == 0);
    REQUIRE(iq_round_nearest(0.5f, -7, 7) == 1);
    REQUIRE(iq_round_nearest(-0.5f, -7, 7) == 0);
    REQUIRE(iq_round_nearest(1e30f, -7, 7) == 7);
    REQUIRE(iq_round_nearest(NAN, -7, 7) == -7);
}
END_TEST

/* ---- sums ---- */

START_TEST(codes_add_up)
{
    static uint8_t narrow[COUNT];
    static uint32_t wide[COUNT], sums[COUNT], expected[COUNT];
    FOR_ROWS(row)
    {
        uint32_t most8 = 0, most32 = 0;
        for (int i = 0; i < COUNT; i++) {
            narrow[i] = (uint8_t)(random_bits() % 200);
            wide[i] = random_bits();
            most8 = narrow[i] > most8 ? narrow[i] : most8;
            most32 = wide[i] > most32 ? wide[i] : most32;
            expected[i] = narrow[i] + 2u * wide[i];
        }
        REQUIRE((*row)->add32(wide, COUNT, true, sums) == most32);
        REQUIRE((*row)->add32(wide, COUNT, false, sums) == most32);
        REQUIRE((*row)->add8(narrow, COUNT, false, sums) == most8);
        ck_assert_mem_eq(sums, expected, sizeof(sums));
        REQUIRE((*row)->add8(narrow, COUNT, true, sums) == most8);
        for (int i = 0; i < COUNT; i++)
            REQUIRE(sums[i] == narrow[i]);
        REQUIRE((*row)->add8(narrow, 0, true, sums) == 0);
    }
}
END_TEST

START_TEST(sums_become_values)
{
    static uint32_t sums[COUNT];
    static float values[COUNT];
    FOR_ROWS(row)
    {
        for (int i = 0; i < COUNT; i++)
            sums[i] = random_bits() % 1017;
        for (int divisor = 1; divisor <= 7; divisor += 6) {
            (*row)->dequantize(sums, COUNT, 1016, 0.3f, (float)divisor, values);
            for (int i = 0; i < COUNT; i++) {
                float expected = (float)(2 * (int)sums[i] - 1016) * 0.3f;
                expected /= (float)divisor;
                REQUIRE(iq_float_bits(values[i]) == iq_float_bits(expected));
            }
        }
    }
}
END_TEST

/* The first row's bits in all rows, wherever the arrays begin and however they are written; NaNs with their payloads too, also where nothing is
 * fetched ahead: compilers make loops of their own for that, in which they may turn operands round. */
START_TEST(arrays_add_up)
{
    enum { LENGTH = 203, ROOM = LENGTH + 16, TERMS = 5 };
    static uint32_t inputs[TERMS][ROOM], due[ROOM];
    static _Alignas(64) uint32_t outputs[ROOM];
    uint32_t random = 1;
    for (int t = 0; t < TERMS; t++)
        for (int i = 0; i < ROOM; i++) {
            random = random * 1664525u + 1013904223u;
            inputs[t][i] = (random & 0x807fffff) | (120 + (random >> 8) % 16) << 23;
            if (i % 7 == t || i % 5 == 0)
                inputs[t][i] = 0x7fc00000 + (uint32_t)(t + 1);
        }
    for (int nterms = 1; nterms <= TERMS; nterms++)
        for (int by = 1; by <= 3; by += 2)
            for (size_t skip = 0; skip < 16; skip++) {
                const void *terms[TERMS] = {inputs[0] + skip, inputs[1], inputs[2] + 1, inputs[3], inputs[4]};
                iq_kernel_rows[0]->sum(terms, nterms, LENGTH - skip, (float)by, (iq_f32_any_t *)due, &(iq_sum_output_t){0});
                for (const iq_kernels_t *const *row = iq_kernel_rows; *row != NULL; row++) {
                    iq_sum_output_t output = {.streams = skip % 3 != 0, .ahead = skip % 2 != 0 ? inputs[0] : NULL};
                    if (!(*row)->usable())
                        continue;
                    memset(outputs, 0x55, sizeof(outputs));
                    (*row)->sum(terms, nterms, LENGTH - skip, (float)by, (iq_f32_any_t *)outputs + skip, &output);
                    ck_assert_msg(memcmp(outputs + skip, due, (LENGTH - skip) * sizeof(*due)) == 0, "%s, %d terms by %d, skip %zu",
                                  (*row)->name, nterms, by, skip);
                    ck_assert_uint_eq(outputs[LENGTH], 0x55555555);
                }
            }
}
END_TEST

START_TEST(the_best_row_is_usable)
{
    REQUIRE(iq_kernel_rows[0]->usable());
    ck_assert_str_eq(iq_kernel_rows[0]->name, "portable");
    REQUIRE(iq_kernels()->usable());
    ck_assert_ptr_eq(iq_kernels(), iq_kernels());
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("kernels");
    TCase *tcase = tcase_create("halves");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, halves_decode_exactly);
    tcase_add_test(tcase, halves_round_to_nearest_even);
    tcase_add_test(tcase, halves_keep_nan_and_infinity);
    tcase_add_test(tcase, rows_convert_alike);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("packing");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, codes_are_a_bit_stream);
    tcase_add_test(tcase, long_runs_pack);
    tcase_add_test(tcase, padding_is_checked);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("quantize");
    tcase_set_timeout(tcase, 60);
    tcase_add_test(tcase, absmax_finds_the_largest);
    tcase_add_test(tcase, quantize_follows_its_definition);
    tcase_add_test(tcase, rounding_stays_within_the_range);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("sums");
    tcase_add_test(tcase, codes_add_up);
    tcase_add_test(tcase, arrays_add_up);
    tcase_add_test(tcase, sums_become_values);
    tcase_add_test(tcase, the_best_row_is_usable);
    suite_add_tcase(suite, tcase);
    return suite;
}
