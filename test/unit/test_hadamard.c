/* SPDX-License-Identifier: Apache-2.0 */
/* Random rotations: the transform's bits, that nothing is lost, independent signs, and what comes out of spikes. */
#include "support/check_main.h"
#include "support/numbers.h"
#include "support/require.h"

#include "base/util.h"
#include "kernels/hadamard.h"
#include "kernels/kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MOST 8192

static float values[MOST], again[MOST], room[MOST];

static const size_t counts[] = {1, 2, 3, 4, 5, 7, 8, 31, 32, 33, 96, 127, 1000, 1023, 1024, 1025, 4097, 8191, 8192};

static void fill(size_t count)
{
    for (size_t i = 0; i < count; i++)
        values[i] = again[i] = iq_mix_unit(1, count, i) * iq_mix_unit(2, count, i);
}

/* ---- the transform ---- */

/* As it is usually written, in place: stage by stage from neighbours on. */
static void butterflies(float *x, size_t count)
{
    for (size_t far = 1; far < count; far *= 2) {
        for (size_t i = 0; i < count; i++) {
            if ((i & far) == 0) {
                float a = x[i], b = x[i + far];
                x[i] = a + b;
                x[i + far] = a - b;
            }
        }
    }
}

/* Every row for every kind of CPU. */
START_TEST(bits_are_those_of_the_butterflies)
{
    for (int row = 0; iq_kernel_rows[row] != NULL; row++) {
        for (size_t count = 1; count <= MOST && iq_kernel_rows[row]->usable(); count *= 2) {
            fill(count);
            iq_kernel_rows[row]->hadamard(values, count, room);
            butterflies(again, count);
            ck_assert_mem_eq(values, again, count * sizeof(float));
        }
    }
}
END_TEST

START_TEST(entries_are_plus_and_minus_one)
{
    for (size_t count = 1; count <= 64; count *= 2) {
        for (size_t row = 0; row < count; row++) {
            memset(values, 0, sizeof(values));
            values[row] = 1.0f;
            iq_kernels()->hadamard(values, count, room);
            for (size_t i = 0; i < count; i++)
                REQUIRE(values[i] == (__builtin_popcountll(row & i) % 2 ? -1.0f : 1.0f));
        }
    }
}
END_TEST

/* ---- rotations ---- */

static double square(const float *x, size_t count)
{
    double sum = 0.0;
    for (size_t i = 0; i < count; i++)
        sum += (double)x[i] * (double)x[i];
    return sum;
}

START_TEST(rotations_keep_lengths_and_come_back)
{
    for (size_t k = 0; k < IQ_ARRAY_SIZE(counts); k++) {
        size_t count = counts[k];
        iq_rotation_t rotation = {.seed = 5, .call = k, .rank = 3, .first = 1000 * k};
        fill(count);
        double before = square(values, count);
        iq_rotate(&rotation, values, count, room);
        REQUIRE(fabs(square(values, count) - before) <= 2e-6 * before);
        if (count > 8)
            REQUIRE(memcmp(values, again, count * sizeof(float)) != 0);
        iq_rotate_back(&rotation, values, count, room);
        double error = 0.0;
        for (size_t i = 0; i < count; i++)
            error += ((double)values[i] - (double)again[i]) * ((double)values[i] - (double)again[i]);
        REQUIRE(error <= 1e-12 * before);
    }
}
END_TEST

/* Angles are kept as lengths are: all products of two. */
START_TEST(rotations_are_orthogonal)
{
    static float matrix[40][40];
    for (size_t count = 1; count <= 40; count++) {
        iq_rotation_t rotation = {.seed = count, .call = 1};
        for (size_t row = 0; row < count; row++) {
            memset(matrix[row], 0, sizeof(matrix[row]));
            matrix[row][row] = 1.0f;
            iq_rotate(&rotation, matrix[row], count, room);
        }
        for (size_t a = 0; a < count; a++) {
            for (size_t b = 0; b <= a; b++) {
                double product = 0.0;
                for (size_t i = 0; i < count; i++)
                    product += (double)matrix[a][i] * (double)matrix[b][i];
                REQUIRE(fabs(product - (a == b)) < 2e-6);
            }
        }
    }
}
END_TEST

/* ---- signs ---- */

/* The sign that an element has in a layer, as hadamard.h says. */
static float sign_of(const iq_rotation_t *rotation, uint32_t layer, uint64_t element)
{
    uint64_t at = element / 32 + ((uint64_t)(layer + (rotation->is_result ? 8 : 0)) << 38);
    iq_philox_block_t block = iq_draw(rotation->seed, rotation->call, IQ_STREAM_ROTATION, rotation->rank, at);
    return block.word[at % 4] >> element % 32 & 1 ? -1.0f : 1.0f;
}

/* A count of 1 is signs alone: two or more layers of them. */
START_TEST(signs_belong_to_elements)
{
    for (uint64_t element = 0; element < 2000; element++) {
        iq_rotation_t rotation = {.seed = 5, .call = 6, .rank = 7, .is_result = element % 3 == 0, .first = element};
        float sign = 1.0f;
        for (uint32_t layer = 0; layer < iq_rotation_layers(1); layer++)
            sign *= sign_of(&rotation, layer, element);
        values[0] = 3.0f;
        iq_rotate(&rotation, values, 1, room);
        REQUIRE(values[0] == 3.0f * sign);
    }
}
END_TEST

START_TEST(rows_draw_and_flip_alike)
{
    static uint32_t words[MOST], other[MOST];
    for (int row = 0; iq_kernel_rows[row] != NULL; row++) {
        const iq_kernels_t *kernels = iq_kernel_rows[row];
        for (size_t k = 0; k < 200 && kernels->usable(); k++) {
            iq_grid_t place = {.seed = k, .call = 9, .stream = IQ_STREAM_ROTATION, .rank = 3};
            uint64_t first = iq_mix(1, k, 0) >> 22;
            size_t count = 1 + iq_mix(2, k, 0) % (k % 4 ? 70 : 2000), bit = iq_mix(3, k, 0) % 100;
            memset(words, 0xab, sizeof(words));
            kernels->draw(&place, first, count, words);
            for (size_t i = 0; i < count; i++)
                REQUIRE(words[i] == iq_draw(k, 9, IQ_STREAM_ROTATION, 3, first + i).word[(first + i) % 4]);
            REQUIRE(words[count] == 0xabababab);
            iq_kernel_rows[0]->draw(&place, 0, MOST, other);
            fill(MOST);
            kernels->flip(other, bit, 0.5f, values, count);
            for (size_t i = 0; i < MOST; i++)
                REQUIRE(values[i] == again[i] * (i >= count ? 1.0f : other[(bit + i) / 32] >> (bit + i) % 32 & 1 ? -0.5f : 0.5f));
        }
    }
}
END_TEST

START_TEST(signs_are_drawn_for_each_rank_call_seed_phase_layer_and_bucket)
{
    static const struct {
        iq_rotation_t rotation;
        uint32_t layer;
    } places[] = {
        {{5, 6, 0, 0, 0}, 0}, {{5, 6, 1, 0, 0}, 0},     {{5, 7, 0, 0, 0}, 0},   {{6, 6, 0, 0, 0}, 0},
        {{5, 6, 0, 1, 0}, 0}, {{5, 6, 0, 0, 0}, 1},     {{5, 6, 0, 0, 128}, 0}, {{5, 6, 0, 0, MOST}, 0},
        {{5, 6, 0, 0, 0}, 5}, {{5, 6, 65535, 0, 0}, 0}, {{5, 6, 0, 1, 0}, 1},   {{5, 6, 0, 0, (uint64_t)1 << 40}, 0},
    };
    static float signs[IQ_ARRAY_SIZE(places)][MOST];
    for (size_t a = 0; a < IQ_ARRAY_SIZE(places); a++) {
        double sum = 0.0;
        for (size_t i = 0; i < MOST; i++) {
            signs[a][i] = sign_of(&places[a].rotation, places[a].layer, places[a].rotation.first + i);
            sum += (double)signs[a][i];
        }
        REQUIRE(fabs(sum) < 5.0 * sqrt(MOST));
        for (size_t b = 0; b < a; b++) {
            double alike = 0.0;
            for (size_t i = 0; i < MOST; i++)
                alike += (double)signs[a][i] * (double)signs[b][i];
            REQUIRE(fabs(alike) < 5.0 * sqrt(MOST));
        }
    }
}
END_TEST

/* The mean magnitude of what a unit vector becomes, times sqrt(count): 0.798 if normal, 1/sqrt(count) for one spike. */
static double spread_of_spike(size_t count, size_t at, uint64_t call)
{
    iq_rotation_t rotation = {.seed = 5, .call = call};
    double sum = 0.0;
    memset(values, 0, sizeof(values));
    values[at] = 1.0f;
    iq_rotate(&rotation, values, count, room);
    for (size_t i = 0; i < count; i++)
        sum += fabs((double)values[i]);
    return sum / sqrt((double)count);
}

START_TEST(spikes_are_spread_wherever_they_are)
{
    static const size_t lengths[] = {64, 96, 127, 129, 1000, 1023, 1024, 1025};
    for (size_t k = 0; k < IQ_ARRAY_SIZE(lengths); k++) {
        size_t count = lengths[k];
        for (size_t at = 0; at < count; at += count < 200 ? 1 : 31) {
            double mean = 0.0;
            for (uint64_t call = 0; call < 20; call++)
                mean += spread_of_spike(count, at, call) / 20;
            REQUIRE(mean > 0.77 && mean < 0.83);
        }
    }
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("hadamard");
    TCase *tcase = tcase_create("transform");
    tcase_add_test(tcase, bits_are_those_of_the_butterflies);
    tcase_add_test(tcase, entries_are_plus_and_minus_one);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("rotation");
    tcase_add_test(tcase, rotations_keep_lengths_and_come_back);
    tcase_add_test(tcase, rotations_are_orthogonal);
    tcase_add_test(tcase, spikes_are_spread_wherever_they_are);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("signs");
    tcase_add_test(tcase, signs_belong_to_elements);
    tcase_add_test(tcase, rows_draw_and_flip_alike);
    tcase_add_test(tcase, signs_are_drawn_for_each_rank_call_seed_phase_layer_and_bucket);
    suite_add_tcase(suite, tcase);
    return suite;
}
