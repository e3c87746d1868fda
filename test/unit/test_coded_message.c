/* SPDX-License-Identifier: Apache-2.0 */
/* Blocks of integers: what is written is read, in no more bytes than promised and in few where the distribution allows; damage
 * is noticed or harmless. And the curves that foretell those bytes. */
#include "support/check_main.h"
#include "support/codec_run.h"
#include "support/require.h"

#include "base/status.h"
#include "codec/coded_math.h"
#include "codec/coded_message.h"
#include "codec/coded_rate.h"
#include "codec/coded_shapes.h"
#include "codec/coder.h"
#include "codec/letter_coder.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int32_t codes[IQ_CODED_BLOCK], back[IQ_CODED_BLOCK];
static float values[IQ_CODED_BLOCK];
static uint8_t contexts[IQ_CODED_BLOCK];

/* ---- distributions ---- */

typedef enum kind { NORMAL, LAPLACE, HEAVY, SPARSE, ONE_SIDED, KINDS } kind_t;

static double uniform(void) { return ((double)codec_random() + 0.5) * 0x1p-32; }
static double normal(void) { return sqrt(-2.0 * log(uniform())) * cos(6.283185307179586 * uniform()); }
static double laplace(void) { return log(uniform() / uniform()) / sqrt(2.0); }

static double draw(kind_t kind)
{
    switch (kind) {
    case NORMAL: return normal();
    case LAPLACE: return laplace();
    case HEAVY: return normal() / sqrt(uniform() + 1e-3);
    case SPARSE: return codec_random() % 5 ? 0.0 : laplace();
    default: return fabs(normal());
    }
}

static void fill(kind_t kind, double step)
{
    for (int i = 0; i < IQ_CODED_BLOCK; i++) {
        values[i] = (float)draw(kind);
        double u = uniform();
        codes[i] = (int32_t)floor((double)values[i] / step + u);
        contexts[i] = (uint8_t)(u * IQ_CODED_CONTEXTS);
    }
}

/* Bits an element by the counts of what occurs among those of context `which`, or which lie opposite; -1: of all. */
static double entropy_of(size_t count, int which)
{
    enum { HALF = 1 << 16 };
    static uint32_t counts[2 * HALF];
    double bits = 0.0, all = 0.0;
    memset(counts, 0, sizeof(counts));
    for (size_t i = 0; i < count; i++) {
        bool mirrored = which >= 0 && contexts[i] == IQ_CODED_CONTEXTS - 1 - which;
        int32_t code = mirrored ? -codes[i] : codes[i];
        if (which >= 0 && contexts[i] != which && !mirrored)
            continue;
        counts[code < -HALF ? 0 : code >= HALF ? 2 * HALF - 1 : code + HALF]++;
        all += 1.0;
    }
    for (int i = 0; i < 2 * HALF; i++)
        if (counts[i] > 0)
            bits -= counts[i] * log2((double)counts[i] / all);
    return bits / (double)count;
}

static double entropy(size_t count) { return entropy_of(count, -1); }

static double known_entropy(size_t count)
{
    double bits = 0.0;
    for (int context = 0; context < IQ_CODED_CONTEXTS / 2; context++)
        bits += entropy_of(count, context);
    return bits;
}

/* ---- there and back ---- */

/* In memory of exactly the promised size, at an odd address. */
static size_t check_with(size_t count, const uint8_t *known)
{
    size_t most = iq_coded_block_bytes(count), used;
    unsigned char *memory = malloc(most + 1), *exact;
    size_t bytes = iq_coded_write(codes, known, count, memory + 1);
    REQUIRE(bytes <= most);
    exact = malloc(bytes + 1);
    memcpy(exact + 1, memory + 1, bytes);
    memset(back, 0x55, sizeof(back));
    ck_assert_int_eq(iq_coded_read(exact + 1, bytes, known, count, back, &used), ISGQ_SUCCESS);
    ck_assert_uint_eq(used, bytes);
    ck_assert_mem_eq(back, codes, count * sizeof(*codes));
    free(exact);
    free(memory);
    return bytes;
}

static size_t check_block(size_t count) { return check_with(count, NULL); }

START_TEST(blocks_come_back)
{
    kind_t kind = (kind_t)_i;
    for (double step = 16.0; step > 1e-5; step /= 3.0) {
        fill(kind, step);
        check_block(IQ_CODED_BLOCK);
        for (size_t count = 1; count < 40; count += 1 + count / 9)
            check_block(count);
        check_block(1000 + codec_random() % 9000);
        check_with(IQ_CODED_BLOCK, contexts);
        check_with(1 + codec_random() % 900, contexts);
    }
}
END_TEST

/* What contexts tell is weighed against what their tables take. */
START_TEST(contexts_never_cost)
{
    static const size_t counts[] = {100, 700, 3000, IQ_CODED_BLOCK};
    if (!iq_coder_present())
        return;
    for (double step = 8.0; step > 0.1; step /= 1.5)
        for (int i = 0; i < 4; i++) {
            fill((kind_t)_i, step);
            size_t known = check_with(counts[i], contexts), plain = check_block(counts[i]);
            ck_assert_msg(known <= plain + 4 + plain / 200, "kind %d step %g, %zu elements: %zu bytes, %zu without contexts", _i, step, counts[i],
                          known, plain);
        }
}
END_TEST

START_TEST(extreme_integers_come_back)
{
    static const int32_t extremes[] = {
        0, 1, -1, 2, -2, 15, -16, 31, 32, 127, 128, -129, 255, 256, 65535, -65536, IQ_CODED_LARGEST - 1, 1 - IQ_CODED_LARGEST};
    for (int turn = 0; turn < 40; turn++) {
        size_t kinds = 1 + codec_random() % (sizeof(extremes) / sizeof(*extremes)),
               count = 1 + codec_random() % (turn < 20 ? 30 : IQ_CODED_BLOCK);
        for (size_t i = 0; i < count; i++)
            codes[i] = extremes[codec_random() % kinds];
        check_block(count);
    }
    for (int i = 0; i < IQ_CODED_BLOCK; i++) /* nothing to gain: all bits are random */
        codes[i] = (int32_t)(codec_random() % IQ_CODED_LARGEST) - IQ_CODED_LARGEST / 2;
    ck_assert_uint_le(check_block(IQ_CODED_BLOCK), 6 + IQ_CODED_BLOCK / 8 * 29);
    memset(codes, 0, sizeof(codes));
    ck_assert_uint_eq(check_block(IQ_CODED_BLOCK), IQ_CODED_BLOCK_HEADER);
}
END_TEST

/* Close to the entropy of the integers, and of rare ones not much more than a bit for every eight of them. */
START_TEST(blocks_are_small)
{
    kind_t kind = (kind_t)_i;
    if (!iq_coder_present())
        return;
    for (double step = kind == HEAVY ? 2.0 : 8.0; step > 0.01; step /= 2.0) { /* a few far values cost bytes each */
        fill(kind, step);
        double bits = 8.0 * (double)check_block(IQ_CODED_BLOCK) / IQ_CODED_BLOCK, least = entropy(IQ_CODED_BLOCK);
        ck_assert_msg(bits < 1.03 * least + (kind == SPARSE ? 0.1 : 0.06), "kind %d step %g: %.3f bits, entropy %.3f", kind, step,
                      bits, least);
        if (least > 3.5 || kind == ONE_SIDED)
            continue;
        least = known_entropy(IQ_CODED_BLOCK);
        bits = 8.0 * (double)check_with(IQ_CODED_BLOCK, contexts) / IQ_CODED_BLOCK;
        ck_assert_msg(bits < 1.02 * least + (kind == SPARSE ? 0.1 : 0.04), /* bytes for what is far off */
                      "kind %d step %g: %.3f bits, entropy %.3f in contexts", kind, step, bits, least);
    }
}
END_TEST

/* ---- damage ---- */

static void read_damaged(const unsigned char *block, size_t bytes, size_t count)
{
    size_t used;
    unsigned char *exact = malloc(bytes + 1);
    memcpy(exact + 1, block, bytes);
    bool known = codec_random() % 4 > 0;
    isgq_result_t result = iq_coded_read(exact + 1, bytes, known ? contexts : NULL, count, back, &used);
    REQUIRE(result == ISGQ_SUCCESS || result == ISGQ_ERR_CORRUPT);
    REQUIRE(result != ISGQ_SUCCESS || known || !iq_coded_asks_for_contexts(exact + 1, bytes));
    for (size_t i = 0; i < count && result == ISGQ_SUCCESS; i++)
        REQUIRE(back[i] > -IQ_CODED_LARGEST && back[i] < IQ_CODED_LARGEST);
    REQUIRE(result != ISGQ_SUCCESS || used <= bytes);
    free(exact);
}

START_TEST(damage_is_harmless)
{
    static unsigned char block[IQ_CODED_BLOCK_HEADER + 4 * 2048];
    for (int turn = 0; turn < 3000; turn++) {
        size_t count = turn % 3 ? 1 + codec_random() % 2048 : 40;
        fill(turn % 2 ? (kind_t)(turn % KINDS) : SPARSE, turn % 7 == 0 ? 1e-4 : 8.0 / (1 << turn % 8));
        size_t bytes = iq_coded_write(codes, turn % 3 ? contexts : NULL, count, block);
        for (unsigned flips = codec_random() % 4; flips-- > 0;)
            block[codec_random() % (turn % 5 ? bytes : IQ_CODED_BLOCK_HEADER)] ^= (unsigned char)(1u << codec_random() % 8);
        read_damaged(block, turn % 4 ? bytes : codec_random() % (bytes + 1),
                     turn % 11 ? count : 1 + codec_random() % IQ_CODED_BLOCK);
    }
}
END_TEST

START_TEST(noise_is_harmless)
{
    unsigned char block[300];
    for (int turn = 0; turn < 6000; turn++) {
        size_t bytes = codec_random() % sizeof(block);
        for (size_t i = 0; i < bytes; i++)
            block[i] = (unsigned char)codec_random();
        block[0] %= 5;
        block[1] = turn % 2 ? 0 : block[1] % 64;
        block[2] = (unsigned char)(bytes / 2);
        block[4] = (unsigned char)(bytes - bytes / 2 - IQ_CODED_BLOCK_HEADER);
        block[3] = block[5] = 0;
        read_damaged(block, bytes, 1 + codec_random() % 600);
    }
}
END_TEST

/* What no writer writes is refused, each for a reason of its own. */
START_TEST(strange_blocks_are_refused)
{
    unsigned char block[64] = {0};
    size_t used;
    memset(codes, 0, sizeof(codes));
    ck_assert_uint_eq(iq_coded_write(codes, NULL, 8, block), 6);
    ck_assert_int_eq(iq_coded_read(block, 5, NULL, 8, back, &used), ISGQ_ERR_CORRUPT); /* no room for a header */
    for (int byte = 0; byte < 6; byte++) {                                             /* zeros say nothing else */
        memset(block, 0, sizeof(block));
        block[byte] = 200;
        ck_assert_int_eq(iq_coded_read(block, sizeof(block), NULL, 8, back, &used), ISGQ_ERR_CORRUPT);
    }
    memcpy(block, "\1\4\0\0\0\0\xff\xff\xff\xff", 10); /* packed: eight integers of four bits */
    ck_assert_int_eq(iq_coded_read(block, 10, NULL, 8, back, &used), ISGQ_SUCCESS);
    ck_assert_int_eq(back[7], -8);
    ck_assert_int_eq(iq_coded_read(block, 9, NULL, 8, back, &used), ISGQ_ERR_CORRUPT);
    ck_assert_int_eq(iq_coded_read(block, 10, NULL, 7, back, &used), ISGQ_ERR_CORRUPT); /* bits after the last */
    block[1] = 33;
    ck_assert_int_eq(iq_coded_read(block, sizeof(block), NULL, 1, back, &used), ISGQ_ERR_CORRUPT);
    memcpy(block, "\1\40\0\0\0\0\xff\xff\xff\xff", 10); /* an integer of 2^31 */
    memset(block + 10, 0, 28);
    ck_assert_int_eq(iq_coded_read(block, 38, NULL, 1, back, &used), ISGQ_ERR_CORRUPT);
}
END_TEST

/* One integer that is the last of two letters, and what is beyond. Below, letters have a name for it. */
START_TEST(nothing_beyond_letters_is_negative)
{
    static const unsigned char beyond[2][8] = {"\1\1\0\0\0\0\1", "\1\2\0\0\0\0\2"}; /* -1, and 1 */
    size_t extras = 7 + (size_t)_i;
    unsigned char block[128] = {IQ_SHAPE_LETTERS, 1, (unsigned char)extras};
    const uint8_t letter = 1, table = 0;
    const iq_letter_counts_t counts = {.of = {{0, 1}}};
    size_t used;
    memcpy(block + 6, beyond[_i], extras);
    block[4] = (unsigned char)iq_letters_write(&letter, &table, 1, 2, &counts, block + 6 + extras, sizeof(block) - 6 - extras);
    ck_assert_uint_gt(block[4], 0);
    isgq_result_t result = iq_coded_read(block, sizeof(block), NULL, 1, back, &used);
    ck_assert_msg(result == (_i == 0 ? ISGQ_ERR_CORRUPT : ISGQ_SUCCESS), "%s", iq_last_error());
    ck_assert(_i == 0 || back[0] == 1);
}
END_TEST

/* ---- rates foretold ---- */

START_TEST(logarithms_are_right)
{
    for (int i = 0; i < 100000; i++) {
        double x = ldexp(1.0 + uniform(), (int)(codec_random() % 600) - 300);
        REQUIRE(fabs(iq_log2(x) - log2(x)) < 1e-9 + 1e-14 * fabs(log2(x)));
    }
    ck_assert(iq_log2(1.0) == 0.0 && iq_log2(0x1p-1000) == -1000.0 && iq_log2(8.0) == 3.0);
    ck_assert(iq_exp2_whole(-1022) == 0x1p-1022 && iq_exp2_whole(1023) == 0x1p1023);
}
END_TEST

/* Entropy and variance of what stochastic rounding really makes of the values. */
START_TEST(curves_tell_rates_and_errors)
{
    kind_t kind = (kind_t)_i;
    iq_coded_tally_t tally = {.count = 0};
    iq_coded_curves_t curves;
    double squares = 0.0;
    fill(kind, 1.0);
    for (int i = 0; i < IQ_CODED_BLOCK; i++)
        squares += (double)values[i] * (double)values[i];
    iq_coded_tally(&tally, values, IQ_CODED_BLOCK);
    iq_coded_curves(&tally, 1e9, &curves);
    ck_assert_double_eq_tol(iq_coded_squares(&tally) / squares, 1.0, 0.03);
    for (int point = 0; point < 14; point++) {
        double step = ldexp(1.0, curves.top - point - 127), errors = 0.0, rate, known, noise;
        for (int i = 0; i < IQ_CODED_BLOCK; i++) {
            double y = (double)values[i] / step;
            double u = uniform();
            codes[i] = (int32_t)floor(y + u);
            contexts[i] = (uint8_t)(u * IQ_CODED_CONTEXTS);
            errors += (codes[i] - y) * (codes[i] - y);
        }
        double bits = entropy(IQ_CODED_BLOCK); /* of so many codes it is a little less than it would be of more */
        ck_assert_double_eq_tol(curves.rate[point], bits, 0.02 + (kind == SPARSE ? 0.05 : 0.02) * bits);
        ck_assert_double_eq_tol(curves.noise[point], errors / IQ_CODED_BLOCK, 0.004 + 0.03 * curves.noise[point]);
        bits = known_entropy(IQ_CODED_BLOCK);
        if (kind == ONE_SIDED) /* mirrors nothing, and is coded without contexts */
            continue;
        ck_assert_double_eq_tol(curves.known[point], bits, 0.03 + (kind == SPARSE ? 0.05 : 0.02) * bits);
        ck_assert(curves.known[point] <= curves.rate[point] + 0.001);
        iq_coded_point(&tally, curves.top - point, &rate, &known, &noise);
        ck_assert(rate == curves.rate[point] && known == curves.known[point] && noise == curves.noise[point]);
    }
}
END_TEST

/* Beyond what is asked for curves are not worked out, and go on as straight lines, which they nearly are. */
START_TEST(curves_end_where_nobody_asks)
{
    iq_coded_tally_t tally = {.count = 0};
    iq_coded_curves_t all, some;
    fill((kind_t)_i, 1.0);
    iq_coded_tally(&tally, values, IQ_CODED_BLOCK);
    iq_coded_curves(&tally, 1e9, &all);
    iq_coded_curves(&tally, 8.0, &some);
    for (int i = 0; i < IQ_CODED_WINDOW && all.rate[i] < 14.0; i++) {
        bool asked = i == 0 || all.rate[i - 1] < 8.0;
        ck_assert(!asked || (some.rate[i] == all.rate[i] && some.known[i] == all.known[i] && some.noise[i] == all.noise[i]));
        ck_assert_double_eq_tol(some.rate[i], all.rate[i], 0.03 * all.rate[i]);
    }
}
END_TEST

START_TEST(tallies_see_zeros)
{
    const float plain[] = {0.0f, -0.0f, 1e-45f, 3e38f, -3e38f, 1.0f};
    iq_coded_tally_t tally = {.count = 0};
    iq_coded_tally(&tally, plain, 6);
    ck_assert_uint_eq(iq_coded_zeros(&tally), 3);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("coded_message");
    TCase *blocks = tcase_create("blocks");
    TCase *small = tcase_create("small");
    TCase *damage = tcase_create("damage");
    TCase *curves = tcase_create("curves");
    tcase_add_loop_test(blocks, blocks_come_back, 0, KINDS);
    tcase_add_test(blocks, extreme_integers_come_back);
    tcase_add_loop_test(small, blocks_are_small, 0, KINDS);
    tcase_add_loop_test(small, contexts_never_cost, 0, KINDS);
    tcase_add_test(damage, damage_is_harmless);
    tcase_add_test(damage, noise_is_harmless);
    tcase_add_test(damage, strange_blocks_are_refused);
    tcase_add_loop_test(damage, nothing_beyond_letters_is_negative, 0, 2);
    tcase_add_test(curves, logarithms_are_right);
    tcase_add_loop_test(curves, curves_tell_rates_and_errors, 0, KINDS);
    tcase_add_loop_test(curves, curves_end_where_nobody_asks, 0, KINDS);
    tcase_add_test(curves, tallies_see_zeros);
    suite_add_tcase(suite, blocks);
    suite_add_tcase(suite, small);
    suite_add_tcase(suite, damage);
    suite_add_tcase(suite, curves);
    return suite;
}
