/* SPDX-License-Identifier: Apache-2.0 */
/* Stratified rounding: permutations of the ranks, numbers that lie evenly, errors that cancel, and no bias of any one rank. */
#include "support/check_main.h"
#include "support/codec_run.h"
#include "support/require.h"

#include "codec/dense.h"
#include "codec/strata.h"
#include "kernels/kernels.h"

#include <math.h>
#include <stdlib.h>

#define NUMBERS 0x1000000u /* of 24 bits */

/* ---- permutations ---- */

/* strata[rank][s], malloced. */
static uint32_t (*all_strata(uint64_t key, int nranks))[IQ_STRATA]
{
    uint32_t(*strata)[IQ_STRATA] = malloc((size_t)nranks * sizeof(*strata));
    for (int rank = 0; rank < nranks; rank++)
        iq_strata_fill(key, nranks, rank, strata[rank]);
    return strata;
}

/* The ranks' offsets are those of 0, 1, ..., N - 1 parts in N, each once. */
static void check_permutations(uint64_t key, int nranks)
{
    uint32_t(*strata)[IQ_STRATA] = all_strata(key, nranks);
    bool *taken = malloc((size_t)nranks * sizeof(*taken));
    for (int s = 0; s < IQ_STRATA; s++) {
        for (int place = 0; place < nranks; place++)
            taken[place] = false;
        for (int rank = 0; rank < nranks; rank++) {
            uint64_t place = ((uint64_t)strata[rank][s] * (uint64_t)nranks + NUMBERS - 1) / NUMBERS;
            REQUIRE(place < (uint64_t)nranks && strata[rank][s] == place * NUMBERS / (uint64_t)nranks);
            REQUIRE(!taken[place]);
            taken[place] = true;
        }
    }
    free(taken);
    free(strata);
}

START_TEST(every_permutation_is_one)
{
    static const int large[] = {64, 100, 127, 257};
    for (int nranks = 1; nranks <= 40; nranks++)
        check_permutations((uint64_t)nranks * 0x9e3779b97f4a7c15u, nranks);
    for (int i = 0; i < 4; i++)
        check_permutations(5, large[i]);
}
END_TEST

/* What is made for all at once is what each makes by itself. */
START_TEST(all_are_those_of_each)
{
    static const int counts[] = {1, 2, 5, IQ_STRATA_KEPT_RANKS};
    uint32_t(*each)[IQ_STRATA] = all_strata(77, counts[_i]), all[IQ_STRATA_KEPT_RANKS][IQ_STRATA];
    iq_strata_fill_all(77, counts[_i], all);
    ck_assert_mem_eq(all, each, (size_t)counts[_i] * sizeof(*each));
    free(each);
}
END_TEST

/* Words drawn with strata are those without, sent through iq_stratified_bits, on every kind of CPU. */
START_TEST(words_are_drawn_with_strata)
{
    enum { WORDS = 1500 };
    uint32_t offsets[IQ_STRATA], plain[WORDS], words[WORDS];
    iq_grid_t grid = {.stream = IQ_STREAM_STRATA, .seed = 4, .call = 9};
    iq_strata_fill(3, 6, 2, offsets);
    iq_kernels()->draw(&grid, 70 + (uint64_t)_i, WORDS, plain);
    grid.strata = offsets;
    for (const iq_kernels_t *const *row = iq_kernel_rows; *row != NULL; row++) {
        if (!(*row)->usable())
            continue;
        (*row)->draw(&grid, 70 + (uint64_t)_i, WORDS, words);
        for (int i = 0; i < WORDS; i++)
            REQUIRE(words[i] == iq_stratified_bits(plain[i], offsets));
    }
}
END_TEST

/* A few of many ranks: distinct places, within range. */
START_TEST(many_ranks_have_places)
{
    static uint32_t first[IQ_STRATA], other[IQ_STRATA];
    static const int counts[] = {4096, 65521};
    for (int i = 0; i < 2; i++) {
        iq_strata_fill(3, counts[i], 0, first);
        iq_strata_fill(3, counts[i], counts[i] - 1, other);
        for (int s = 0; s < IQ_STRATA; s++)
            REQUIRE(first[s] < NUMBERS && other[s] < NUMBERS && first[s] != other[s]);
    }
}
END_TEST

/* Every place of every rank is about equally frequent over keys: chi-square of 7 x 7 places. */
START_TEST(places_are_uniform)
{
    enum { N = 7, KEYS = 40 };
    static unsigned counts[N][N];
    double expected = (double)KEYS * IQ_STRATA / N, chi_square = 0.0;
    for (uint64_t key = 0; key < KEYS; key++) {
        uint32_t(*strata)[IQ_STRATA] = all_strata(key, N);
        for (int rank = 0; rank < N; rank++)
            for (int s = 0; s < IQ_STRATA; s++)
                counts[rank][((uint64_t)strata[rank][s] * N + NUMBERS - 1) / NUMBERS]++;
        free(strata);
    }
    for (int rank = 0; rank < N; rank++)
        for (int place = 0; place < N; place++)
            chi_square += (counts[rank][place] - expected) * (counts[rank][place] - expected) / expected;
    /* 36 degrees of freedom: mean 36, variance 72 */
    ck_assert_msg(chi_square < 36 + 6 * sqrt(72), "chi-square %g", chi_square);
    ck_assert_msg(chi_square > 8, "chi-square %g: too even to be random", chi_square);
}
END_TEST

START_TEST(keys_give_other_permutations)
{
    uint32_t a[IQ_STRATA], b[IQ_STRATA];
    int same = 0;
    iq_strata_fill(1, 16, 3, a);
    iq_strata_fill(2, 16, 3, b);
    for (int s = 0; s < IQ_STRATA; s++)
        same += a[s] == b[s];
    ck_assert_int_lt(same, 48); /* 16 expected */
}
END_TEST

/* ---- numbers of one element ---- */

/* Of N ranks with the same fraction, as many round up as fraction * N says, up to one: any permutation, any common number. */
START_TEST(equal_fractions_are_shared_out)
{
    static const uint32_t thresholds[] = {0, 1, 2, 0x3fffff, 0x400000, 0x555555, 0x800000, 0xabcdef, 0xfffffe, 0xffffff};
    int nranks = 1 + _i;
    uint32_t(*strata)[IQ_STRATA] = all_strata(77, nranks);
    for (int round = 0; round < 20000; round++) {
        uint32_t word = round < 512 ? (uint32_t)round * 0x800001u : codec_random();
        uint64_t threshold = round % 2 ? codec_random() >> 8 : thresholds[round / 2 % 10];
        int up = 0;
        for (int rank = 0; rank < nranks; rank++)
            up += iq_stratified_bits(word, strata[rank]) < threshold;
        int64_t excess = (int64_t)up * NUMBERS - (int64_t)threshold * nranks;
        REQUIRE(excess > -(int64_t)NUMBERS && excess < (int64_t)NUMBERS);
    }
    free(strata);
}
END_TEST

/* Over all common numbers each of the 2^24 comes once, for each rank and permutation: no rank has a bias of its own. */
START_TEST(each_rank_alone_is_uniform)
{
    uint32_t offsets[IQ_STRATA];
    uint64_t *seen = malloc(NUMBERS / 8);
    iq_strata_fill(9, 5, _i % 5, offsets);
    for (uint32_t i = 0; i < NUMBERS / 64; i++)
        seen[i] = 0;
    for (uint32_t v = 0; v < NUMBERS; v++) {
        uint32_t number = iq_stratified_bits(v << 8 | (uint32_t)_i, offsets);
        seen[number / 64] |= 1ull << number % 64;
    }
    for (uint32_t i = 0; i < NUMBERS / 64; i++)
        REQUIRE(seen[i] == ~0ull);
    free(seen);
}
END_TEST

/* ---- the codec ---- */

#define COUNT 20000
static float inputs[CODEC_RUN_MAX_RANKS][COUNT], out[COUNT], again[COUNT];

static codec_run_t make_run(unsigned bits, size_t bucket, iq_rounding_t rounding, int exact, int nranks)
{
    codec_run_t run = {
        .codec =
            {.ops = &iq_codec_uniform_ops, .bits = bits, .bucket = bucket, .rounding = rounding, .shared = true, .exact = exact},
        .call = {.datatype = ISGQ_FLOAT32, .op = ISGQ_SUM, .nranks = nranks, .seed = 11, .call = 3},
        .count = COUNT};
    for (int rank = 0; rank < nranks; rank++)
        run.inputs[rank] = inputs[rank];
    return run;
}

/* Equal values on all ranks: the sum of codes is right up to one step, whatever N. */
START_TEST(equal_values_err_by_less_than_a_step)
{
    int nranks = 1 + _i;
    for (int i = 0; i < 4000; i++)
        for (int rank = 0; rank < nranks; rank++)
            inputs[rank][i] = rank == 0 ? codec_random_unit() : inputs[0][i];
    for (unsigned bits = 1; bits <= 8; bits++) {
        codec_run_t run = make_run(bits, 256, IQ_ROUND_STRATIFIED, 1, nranks);
        double most = 0.0, step = bits == 1 ? 2.0 : 2.0 / ((1u << bits) - 2);
        run.count = 4000;
        codec_run(&run, CODEC_DIRECT, 0, out);
        for (int i = 0; i < 4000; i++) {
            for (int j = i; i % 256 == 0 && j < 4000 && j < i + 256; j++)
                most = fmax(j == i ? 0.0 : most, fabs((double)inputs[0][j]));
            REQUIRE(fabs((double)out[i] - nranks * (double)inputs[0][i]) <= most * (step * (1 + 1e-5) + nranks * 1e-6));
        }
    }
}
END_TEST

/* Any route, any cut, the same bits; and other bits than independent rounding. */
START_TEST(sums_have_one_answer)
{
    for (int rank = 0; rank < 5; rank++)
        for (int i = 0; i < COUNT; i++)
            inputs[rank][i] = codec_random_unit();
    codec_run_t run = make_run(3, 96, IQ_ROUND_STRATIFIED, 1, 5), plain = make_run(3, 96, IQ_ROUND_STOCHASTIC, 1, 5);
    codec_run(&run, CODEC_DIRECT, 0, out);
    for (unsigned way = 0; way < CODEC_WAYS; way++) {
        codec_run(&run, (codec_way_t)way, 1, again);
        ck_assert_mem_eq(again, out, sizeof(out));
    }
    codec_run(&plain, CODEC_DIRECT, 0, again);
    ck_assert_mem_ne(again, out, sizeof(out));
}
END_TEST

/* Mean square error of the sum and, in standard errors, its mean error along fixed signs. */
static void measure_errors(const codec_run_t *run, int rank, double *mean_square, double *z)
{
    double square = 0.0, projection = 0.0;
    uint32_t signs = 12345;
    codec_run(run, CODEC_OWNER, 0, out);
    for (int i = 0; i < COUNT; i++) {
        double error = (double)out[i];
        for (int r = 0; r < run->call.nranks; r++)
            error -= rank < 0 || r == rank ? (double)((const float *)run->inputs[r])[i] : 0.0;
        signs = signs * 1664525u + 1013904223u;
        projection += signs >> 31 ? error : -error;
        square += error * error;
    }
    *mean_square = square / COUNT;
    *z = fabs(projection) / sqrt(square);
}

/* Gradients of ranks are alike up to noise: then errors cancel. Where they have nothing in common nothing is lost. */
START_TEST(errors_cancel_where_ranks_are_alike)
{
    static const struct {
        float noise; /* of a rank's own, beside what all have */
        double most; /* variance over that of independent rounding */
    } rows[] = {{0.0f, 0.2}, {0.02f, 0.5}, {0.2f, 1.02}, {1.0f, 1.05}};
    for (int row = 0; row < 4; row++) {
        for (int i = 0; i < COUNT; i++) {
            float common = codec_random_unit();
            for (int rank = 0; rank < 16; rank++)
                inputs[rank][i] = (1.0f - rows[row].noise) * common + rows[row].noise * codec_random_unit();
        }
        for (unsigned bits = 2; bits <= 4; bits++) {
            double spread, independent, z;
            codec_run_t run = make_run(bits, 0, IQ_ROUND_STRATIFIED, 1, 16),
                        plain = make_run(bits, 0, IQ_ROUND_STOCHASTIC, 1, 16);
            measure_errors(&run, -1, &spread, &z);
            ck_assert_msg(z < 5, "noise %g, %u bits: %g standard errors", (double)rows[row].noise, bits, z);
            measure_errors(&plain, -1, &independent, &z);
            ck_assert_msg(spread < rows[row].most * independent, "noise %g, %u bits: variance %g of independent rounding",
                          (double)rows[row].noise, bits, spread / independent);
        }
    }
}
END_TEST

/* Against one rank that is unlike all others too: its own rounding must not depend on who else is there. */
START_TEST(no_rank_has_a_bias)
{
    for (int rank = 0; rank < 6; rank++) {
        for (int r = 0; r < 6; r++)
            for (int i = 0; i < COUNT; i++)
                inputs[r][i] = r != rank ? 0.0f : i == 0 ? 1.0f : 0.3f;
        codec_run_t run = make_run(2, 0, IQ_ROUND_STRATIFIED, 1, 6);
        double sum = 0.0;
        codec_run(&run, CODEC_DIRECT, 0, out);
        for (int i = 1; i < COUNT; i++)
            sum += (double)out[i] - 0.3;
        double z = fabs(sum) / sqrt(0.3 * 0.7 * COUNT);
        ck_assert_msg(z < 5, "rank %d: %g standard errors", rank, z);
    }
}
END_TEST

/* What is rounded a second time is rounded as without strata, by the sum's own numbers. */
START_TEST(results_are_rounded_stochastically)
{
    float one = 1.0f;
    uint32_t sums[64], strata[IQ_STRATA];
    unsigned char stratified[2][64], plain[64];
    iq_span_t span = {0, 64};
    codec_run_t run = make_run(2, 64, IQ_ROUND_STRATIFIED, 0, 4), other = make_run(2, 64, IQ_ROUND_STOCHASTIC, 0, 4);
    for (int i = 0; i < 64; i++)
        sums[i] = codec_random() % 9;
    for (int rank = 0; rank < 2; rank++) {
        iq_strata_fill(run.call.seed, 4, rank, strata);
        run.call.rank = rank;
        run.call.strata = strata;
        run.call.scales = &one;
        run.codec.ops->finish(&run.codec, &run.call, span, sums, stratified[rank]);
    }
    other.call.scales = &one;
    other.codec.ops->finish(&other.codec, &other.call, span, sums, plain);
    size_t bytes = run.codec.ops->result_bytes(&run.codec, &run.call, span);
    ck_assert_mem_eq(stratified[0], stratified[1], bytes);
    ck_assert_mem_eq(stratified[0], plain, bytes);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("strata");
    TCase *tcase = tcase_create("permutations");
    tcase_add_test(tcase, every_permutation_is_one);
    tcase_add_loop_test(tcase, all_are_those_of_each, 0, 4);
    tcase_add_loop_test(tcase, words_are_drawn_with_strata, 0, 4);
    tcase_add_test(tcase, many_ranks_have_places);
    tcase_add_test(tcase, places_are_uniform);
    tcase_add_test(tcase, keys_give_other_permutations);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("numbers");
    tcase_add_loop_test(tcase, equal_fractions_are_shared_out, 0, CODEC_RUN_MAX_RANKS);
    tcase_add_loop_test(tcase, each_rank_alone_is_uniform, 0, 6);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("sums");
    tcase_add_loop_test(tcase, equal_values_err_by_less_than_a_step, 0, CODEC_RUN_MAX_RANKS);
    tcase_add_test(tcase, sums_have_one_answer);
    tcase_add_test(tcase, errors_cancel_where_ranks_are_alike);
    tcase_add_test(tcase, no_rank_has_a_bias);
    tcase_add_test(tcase, results_are_rounded_stochastically);
    suite_add_tcase(suite, tcase);
    return suite;
}
