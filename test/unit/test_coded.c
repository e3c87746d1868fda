/* SPDX-License-Identifier: Apache-2.0 */
/* Codec `coded` under plans made by hand: exact sums, the stated bounds, no bias, one answer by every way; and inputs that end
 * in NaN, zero or an error. What ranks plan by themselves is in test_coded_budget.c. */
#include "support/check_main.h"
#include "support/codec_run.h"
#include "support/require.h"

#include "base/status.h"
#include "base/util.h"
#include "codec/coded.h"
#include "codec/coded_message.h"
#include "codec/coder.h"
#include "codec/dense.h"
#include "codec/strata.h"
#include "kernels/kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT 40011 /* three units of the agreement, and messages of several blocks */
#define SHORT 1003

static float inputs[CODEC_RUN_MAX_RANKS][COUNT];
static float out[COUNT], again[COUNT];

static iq_codec_t make_codec(double bits, double nmse)
{
    return (iq_codec_t){
        .ops = &iq_codec_coded_ops, .rounding = IQ_ROUND_STRATIFIED, .shared = true, .budget_bits = bits, .budget_nmse = nmse};
}

static codec_run_t make_run(const iq_codec_t *codec, isgq_red_op_t op, int nranks, size_t count)
{
    codec_run_t run = {.codec = *codec, .count = count};
    run.call = (iq_codec_call_t){.datatype = ISGQ_FLOAT32, .op = op, .nranks = nranks, .seed = 7, .call = 9, .count = count};
    for (int rank = 0; rank < nranks; rank++)
        run.inputs[rank] = inputs[rank];
    return run;
}

static void fill_inputs(double alike)
{
    for (int i = 0; i < COUNT; i++) {
        float common = codec_random_unit() * codec_random_unit();
        for (int rank = 0; rank < CODEC_RUN_MAX_RANKS; rank++)
            inputs[rank][i] = (float)alike * common + codec_random_unit() * codec_random_unit() * ldexpf(1.0f, -(i / 10000));
    }
}

static double sum_of(int nranks, int i)
{
    double sum = 0.0;
    for (int rank = 0; rank < nranks; rank++)
        sum += (double)inputs[rank][i];
    return sum;
}

/* ---- plans made by hand ---- */

/* All contributions through messages under this plan, to `dst`. */
static void run_plan(const codec_run_t *run, const iq_coded_plan_t *plan, float *dst)
{
    static int32_t acc[COUNT];
    static uint32_t strata[IQ_STRATA];
    const iq_codec_ops_t *ops = run->codec.ops;
    iq_codec_call_t call = run->call;
    float scales[IQ_CODED_PLAN_FLOATS];
    iq_span_t span = {0, run->count};
    memcpy(scales, plan, sizeof(scales));
    call.scales = scales;
    unsigned char *message = malloc(ops->result_bytes(&run->codec, &call, span));
    for (int rank = 0; rank < call.nranks; rank++) {
        call.rank = rank;
        iq_strata_fill(call.seed, call.nranks, rank, strata);
        call.strata = strata;
        ops->encode(&run->codec, &call, span, run->inputs[rank], message);
        ck_assert_int_eq(ops->add(&run->codec, &call, span, message, 1, acc, rank == 0), ISGQ_SUCCESS);
    }
    ops->finish(&run->codec, &call, span, acc, message);
    call.strata = NULL; /* decoding asks for nobody's place */
    ck_assert_int_eq(ops->decode(&run->codec, &call, span, message, dst), ISGQ_SUCCESS);
    free(message);
}

/* Multiples of the step add up exactly; AVG divides last. */
START_TEST(multiples_of_the_step_are_exact)
{
    static const int counts[] = {1, 2, 3, 8, 17};
    int nranks = counts[_i];
    iq_codec_t codec = make_codec(4.0, 0.0);
    iq_coded_plan_t plan = {.step = 0.25f, .merge = 1.0f};
    for (int op = 0; op < 2; op++) {
        codec_run_t run = make_run(&codec, op ? ISGQ_AVG : ISGQ_SUM, nranks, COUNT);
        for (int rank = 0; rank < nranks; rank++)
            for (int i = 0; i < COUNT; i++)
                inputs[rank][i] = 0.25f * (float)((int)(codec_random() % (1u << codec_random() % 20)) - (i % 3) * 100);
        run_plan(&run, &plan, out);
        for (int i = 0; i < COUNT; i++)
            REQUIRE(out[i] == (float)sum_of(nranks, i) / (float)(op ? nranks : 1));
    }
}
END_TEST

/* Where ranks have equal values, all of what stratified rounding errs is known: less than half a step stays. */
START_TEST(equal_values_err_by_half_a_step)
{
    static const int counts[] = {1, 2, 4, 8, 16};
    int nranks = counts[_i];
    iq_codec_t codec = make_codec(4.0, 0.0);
    codec_run_t run = make_run(&codec, ISGQ_SUM, nranks, COUNT);
    iq_coded_plan_t plan = {.step = 0.125f, .merge = 1.0f, .mend_own = 1.0f};
    double plain = 0.0, mended = 0.0;
    for (int i = 0; i < COUNT; i++) {
        inputs[0][i] = 10.0f * codec_random_unit();
        for (int rank = 1; rank < nranks; rank++)
            inputs[rank][i] = inputs[0][i];
    }
    run_plan(&run, &plan, out);
    plan.mend_own = 0.0f;
    run_plan(&run, &plan, again);
    for (int i = 0; i < COUNT; i++) {
        double sum = sum_of(nranks, i);
        REQUIRE(fabs((double)out[i] - sum) <= 0.5 * 0.125 * (1.0 + 1e-4));
        REQUIRE(fabs((double)again[i] - sum) <= 0.125 * (1.0 + 1e-4));
        mended += ((double)out[i] - sum) * ((double)out[i] - sum) / COUNT;
        plain += ((double)again[i] - sum) * ((double)again[i] - sum) / COUNT;
    }
    ck_assert_double_eq_tol(mended / (0.125 * 0.125), 1.0 / 12.0, 0.003);
    ck_assert_double_eq_tol(plain / (0.125 * 0.125), 1.0 / 6.0, 0.005);
}
END_TEST

/* Sums of codes in units of k: off by less than k, and once mended by at most (k - 1) / 2, by (k^2 - 1) / 12 in the mean
 * square. */
START_TEST(merged_results_have_their_bounds)
{
    iq_codec_t codec = make_codec(4.0, 0.0);
    codec_run_t run = make_run(&codec, ISGQ_SUM, 5, COUNT);
    for (int rank = 0; rank < 5; rank++)
        for (int i = 0; i < COUNT; i++)
            inputs[rank][i] = (float)((int)(codec_random() % 2001) - 1000);
    for (int k = 2; k <= 9; k++) {
        iq_coded_plan_t plan = {.step = 1.0f, .merge = (float)k};
        double squares = 0.0;
        run_plan(&run, &plan, out);
        plan.mend_result = 1.0f;
        run_plan(&run, &plan, again);
        for (int i = 0; i < COUNT; i++) {
            double sum = sum_of(5, i), off = (double)again[i] - sum;
            REQUIRE(fabs((double)out[i] - sum) < k && fmod((double)out[i], k) == 0.0);
            REQUIRE(fabs(off) <= 0.5 * (k - 1));
            squares += off * off / COUNT;
        }
        ck_assert_double_eq_tol(squares, (k * k - 1) / 12.0, 0.02 * k * k / 12.0);
    }
}
END_TEST

/* One rank's codes alone, as accuracy is measured: its own random number is known, so half a step is the most that stays. */
START_TEST(one_ranks_codes_err_by_half_a_step)
{
    static int32_t acc[COUNT];
    static uint32_t strata[IQ_STRATA];
    iq_codec_t codec = make_codec(4.0, 0.0);
    codec_run_t run = make_run(&codec, ISGQ_SUM, 6, COUNT);
    const iq_coded_plan_t plan = {.step = 0.125f, .merge = 3.0f, .mend_own = 1.0f, .mend_result = 1.0f};
    iq_codec_call_t call = run.call;
    float scales[IQ_CODED_PLAN_FLOATS];
    fill_inputs(0.0);
    memcpy(scales, &plan, sizeof(scales));
    call.scales = scales;
    call.rank = 4;
    iq_strata_fill(call.seed, call.nranks, call.rank, strata);
    call.strata = strata;
    codec.ops->add_own(&codec, &call, (iq_span_t){0, COUNT}, inputs[4], acc, true);
    call.nranks = 1;
    codec.ops->deliver(&codec, &call, (iq_span_t){0, COUNT}, acc, out);
    for (int i = 0; i < COUNT; i++)
        REQUIRE(fabsf(out[i] - inputs[4][i]) <= 0.5f * 0.125f * 1.0001f);
}
END_TEST

/* z of the mean error along a fixed direction, over many calls. */
static void check_bias(const iq_coded_plan_t *plan, int nranks)
{
    enum { CALLS = 300, DIRECTIONS = 4 };
    iq_codec_t codec = make_codec(4.0, 0.0);
    double sums[DIRECTIONS] = {0}, squares[DIRECTIONS] = {0};
    codec_run_t run = make_run(&codec, ISGQ_SUM, nranks, SHORT);
    for (int number = 0; number < CALLS; number++) {
        double along[DIRECTIONS] = {0};
        run.call.call = (uint64_t)number + 1;
        run_plan(&run, plan, out);
        for (int i = 0; i < SHORT; i++) {
            double error = (double)out[i] - sum_of(nranks, i);
            along[0] += error;
            along[1] += i % 2 ? error : -error;
            along[2] += error * sum_of(nranks, i);
            along[3] += error * (double)inputs[0][i];
        }
        for (int d = 0; d < DIRECTIONS; d++) {
            sums[d] += along[d];
            squares[d] += along[d] * along[d];
        }
    }
    for (int d = 0; d < DIRECTIONS; d++)
        ck_assert_msg(fabs(sums[d]) < 5.0 * sqrt(squares[d]), "direction %d: z = %.2f", d, sums[d] / sqrt(squares[d]));
}

START_TEST(nothing_is_biased)
{
    static const iq_coded_plan_t plans[] = {{0.7f, 1.0f, 0.0f, 0.0f}, {0.7f, 1.0f, 1.0f, 0.0f},  {0.7f, 3.0f, 0.0f, 0.0f},
                                            {0.7f, 3.0f, 1.0f, 1.0f}, {0.01f, 4.0f, 0.8f, 0.9f}, {5.0f, 2.0f, 0.4f, 0.3f}};
    fill_inputs(_i % 2);
    check_bias(&plans[_i], 1 + _i);
}
END_TEST

/* ---- one answer ---- */

/* Steps as ranks plan them; the owner's own values, chains of sums and any cut of the tensor give the same bits. */
START_TEST(every_way_has_one_answer)
{
    static const int counts[] = {1, 2, 3, 5, 9};
    static const struct {
        double bits, nmse;
    } budgets[] = {{1.0, 0.0}, {2.5, 0.0}, {8.0, 0.0}, {0.0, 0.01}};
    int nranks = counts[_i];
    fill_inputs(_i % 2);
    for (int b = 0; b < 4; b++) {
        iq_codec_t codec = make_codec(budgets[b].bits, budgets[b].nmse);
        codec_run_t run = make_run(&codec, b % 2 ? ISGQ_AVG : ISGQ_SUM, nranks, COUNT);
        float *scales = codec_run_scales(&run);
        bool exact = scales[1] == 1.0f;
        free(scales);
        codec_run(&run, CODEC_DIRECT, 0, out);
        for (unsigned way = 0; way < CODEC_WAYS; way++) {
            if (way == CODEC_DELIVER && !exact)
                continue;
            codec_run(&run, (codec_way_t)way, way % 2 ? 8 : 1000, again);
            ck_assert_mem_eq(again, out, sizeof(out));
        }
    }
}
END_TEST

/* Where many elements are 0 on all ranks, these stay 0: nothing that is known of errors is taken back there. */
START_TEST(common_zeros_stay_zero)
{
    fill_inputs(0.0);
    for (int rank = 0; rank < 8; rank++)
        for (int i = 0; i < COUNT; i += 5)
            inputs[rank][i] = 0.0f;
    for (int b = 1; b <= 8; b++) {
        iq_codec_t codec = make_codec(b, 0.0);
        codec_run_t run = make_run(&codec, ISGQ_SUM, 8, COUNT);
        codec_run(&run, CODEC_OWNER, 0, out);
        for (int i = 0; i < COUNT; i += 5)
            REQUIRE(out[i] == 0.0f);
    }
}
END_TEST

START_TEST(halves_are_taken_too)
{
    static const isgq_data_type_t types[] = {ISGQ_FLOAT16, ISGQ_BFLOAT16};
    static uint16_t halves[3][COUNT], result[COUNT];
    iq_codec_t codec = make_codec(6.0, 0.0);
    double error = 0.0, norm = 0.0;
    fill_inputs(0.0);
    for (int rank = 0; rank < 3; rank++)
        (_i ? iq_kernels()->f32_to_bf16 : iq_kernels()->f32_to_f16)(inputs[rank], COUNT, halves[rank]);
    codec_run_t run = make_run(&codec, ISGQ_SUM, 3, COUNT);
    run.call.datatype = types[_i];
    for (int rank = 0; rank < 3; rank++)
        run.inputs[rank] = halves[rank];
    codec_run(&run, CODEC_OWNER, 0, result);
    (_i ? iq_kernels()->bf16_to_f32 : iq_kernels()->f16_to_f32)(result, COUNT, out);
    for (int i = 0; i < COUNT; i++) {
        error += ((double)out[i] - sum_of(3, i)) * ((double)out[i] - sum_of(3, i));
        norm += sum_of(3, i) * sum_of(3, i);
    }
    ck_assert_double_lt(error / norm, 2e-3);
    memset(result, 0, sizeof(result)); /* accumulate: on top of what is there */
    for (int i = 0; i < COUNT; i++)
        result[i] = types[_i] == ISGQ_BFLOAT16 ? 0x4480 : 0x6400; /* 1024 */
    run.call.accumulate = true;
    codec_run(&run, CODEC_OWNER, 0, result);
    (_i ? iq_kernels()->bf16_to_f32 : iq_kernels()->f16_to_f32)(result, COUNT, again);
    for (int i = 0; i < COUNT; i++)
        REQUIRE(fabsf(again[i] - 1024.0f - out[i]) <= (_i ? 4.0f : 0.5f));
}
END_TEST

/* ---- extremes ---- */

static void check_error(const codec_run_t *run, double most)
{
    double error = 0.0, norm = 0.0;
    codec_run(run, CODEC_OWNER, 0, out);
    for (size_t i = 0; i < run->count; i++) {
        REQUIRE(isfinite(out[i]));
        error += pow((double)out[i] - sum_of(run->call.nranks, (int)i), 2.0);
        norm += pow(sum_of(run->call.nranks, (int)i), 2.0);
    }
    ck_assert_msg(error <= most * norm, "%zu elements: error %g of %g", run->count, error, norm);
}

START_TEST(extremes_are_survived)
{
    static const size_t counts[] = {1, 2, 31, 33, 4096, 5000, COUNT};
    size_t count = counts[_i];
    for (int b = 0; b < 3; b++) {
        iq_codec_t codec = make_codec(b == 2 ? 0.0 : b ? 4.0 : 1.0, b == 2 ? 0.01 : 0.0);
        codec_run_t run = make_run(&codec, ISGQ_SUM, 4, count);
        memset(inputs, 0, sizeof(inputs));
        check_error(&run, 0.0); /* zeros are zeros */
        inputs[2][count / 2] = -3.5f;
        check_error(&run, b == 2 ? 0.3 : 4.0); /* one value among zeros */
        for (int rank = 0; rank < 4; rank++)
            for (size_t i = 0; i < count; i++)
                inputs[rank][i] = 1.5f;
        check_error(&run, 10.0);
        for (int rank = 0; rank < 4; rank++)
            for (size_t i = 0; i < count; i++)
                inputs[rank][i] = 1e37f;
        check_error(&run, 10.0);
        for (int rank = 0; rank < 4; rank++)
            for (size_t i = 0; i < count; i++)
                inputs[rank][i] = 1e-41f; /* a denormal: less than the smallest step */
        codec_run(&run, CODEC_OWNER, 0, out);
        for (size_t i = 0; i < count; i++)
            REQUIRE(fabsf(out[i]) <= 1e-35f);
        for (int rank = 0; rank < 4; rank++)
            for (size_t i = 0; i < count; i++)
                inputs[rank][i] = codec_random_unit() * (i == count / 3 ? 1e6f : 1.0f);
        check_error(&run, b == 0 ? 20.0 : 2.0);
    }
}
END_TEST

/* One value that is not finite on one rank: NaN everywhere, on every rank alike. */
START_TEST(not_finite_is_nan_for_all)
{
    static const float strange[] = {INFINITY, -INFINITY, NAN};
    static const size_t counts[] = {5, 5000, COUNT};
    for (int kind = 0; kind < 3; kind++) {
        for (int c = 0; c < 3; c++) {
            iq_codec_t codec = make_codec(kind == 1 ? 0.0 : 3.0, kind == 1 ? 0.01 : 0.0);
            codec_run_t run = make_run(&codec, ISGQ_SUM, 3, counts[c]);
            fill_inputs(0.0);
            inputs[1][counts[c] - 2] = strange[kind];
            for (unsigned way = 0; way < CODEC_WAYS; way++) {
                codec_run(&run, (codec_way_t)way, 0, out);
                for (size_t i = 0; i < counts[c]; i++)
                    REQUIRE(isnan(out[i]));
            }
        }
    }
}
END_TEST

/* ---- damage ---- */

static void damage(unsigned char *message, uint32_t bytes)
{
    for (unsigned flips = 1 + codec_random() % 3; flips-- > 0;)
        message[codec_random() % (codec_random() % 2 ? bytes : iq_min(bytes, 20))] ^= (unsigned char)(1u << codec_random() % 8);
}

/* Messages whose first word is their length, as who moves them has checked; all else is anything. */
START_TEST(damage_is_harmless)
{
    static int32_t acc[COUNT];
    const iq_codec_ops_t *ops = &iq_codec_coded_ops;
    iq_codec_t codec = make_codec(3.0, 0.0);
    int refused = 0;
    fill_inputs(0.0);
    for (int turn = 0; turn < 1200; turn++) {
        codec_run_t run = make_run(&codec, ISGQ_SUM, 4, COUNT);
        iq_coded_plan_t plan = {turn % 13 ? 0.05f : turn % 26 ? 0.0f : NAN, (float)(1 + turn % 3), 0.5f, 0.5f};
        iq_span_t span = {codec_random() % 20000, 1 + codec_random() % (turn % 4 ? 700 : 20000)};
        size_t most;
        uint32_t bytes;
        const float *scales = &plan.step;
        unsigned char *message = codec_run_message(&run, 0, span, scales, &most);
        iq_codec_call_t call = run.call;
        call.scales = scales;
        memcpy(&bytes, message + 1, sizeof(bytes));
        REQUIRE(bytes <= most);
        if (turn % 2) { /* a result, which decoders know more of than of sums */
            call.nranks = 1;
            ops->add_own(&run.codec, &call, span, (const float *)run.inputs[0] + span.first, acc, true);
            call.nranks = run.call.nranks;
            ops->finish(&run.codec, &call, span, acc, message + 1);
            memcpy(&bytes, message + 1, sizeof(bytes));
        }
        damage(message + 1, bytes);
        if (turn % 6 == 0)
            bytes = 4 + codec_random() % (bytes - 3);
        unsigned char *exact = malloc(bytes + 1);
        memcpy(exact + 1, message + 1, bytes);
        memcpy(exact + 1, &bytes, sizeof(bytes));
        isgq_result_t added = ops->add(&run.codec, &call, span, exact + 1, 1, acc, true);
        isgq_result_t decoded = ops->decode(&run.codec, &call, span, exact + 1, out);
        REQUIRE(added == ISGQ_SUCCESS || added == ISGQ_ERR_CORRUPT);
        REQUIRE(decoded == ISGQ_SUCCESS || decoded == ISGQ_ERR_CORRUPT);
        refused += (turn % 2 ? decoded : added) != ISGQ_SUCCESS;
        free(exact);
        free(message);
    }
    ck_assert_int_gt(refused, 300);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("coded");
    TCase *plans = tcase_create("plans");
    TCase *bias = tcase_create("bias");
    TCase *answer = tcase_create("one_answer");
    TCase *extremes = tcase_create("extremes");
    TCase *damaged = tcase_create("damage");
    tcase_add_loop_test(plans, multiples_of_the_step_are_exact, 0, 5);
    tcase_add_loop_test(plans, equal_values_err_by_half_a_step, 0, 5);
    tcase_add_test(plans, merged_results_have_their_bounds);
    tcase_add_test(plans, one_ranks_codes_err_by_half_a_step);
    tcase_add_loop_test(bias, nothing_is_biased, 0, 6);
    tcase_add_loop_test(answer, every_way_has_one_answer, 0, 5);
    tcase_add_test(answer, common_zeros_stay_zero);
    tcase_add_loop_test(answer, halves_are_taken_too, 0, 2);
    tcase_add_loop_test(extremes, extremes_are_survived, 0, 7);
    tcase_add_test(extremes, not_finite_is_nan_for_all);
    tcase_add_test(damaged, damage_is_harmless);
    suite_add_tcase(suite, plans);
    suite_add_tcase(suite, bias);
    suite_add_tcase(suite, answer);
    suite_add_tcase(suite, extremes);
    suite_add_tcase(suite, damaged);
    return suite;
}
