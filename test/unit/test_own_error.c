/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The error of a rank's own contribution: for every codec that there is it is what the others decode that is compared, and the
 * residual of error feedback follows its formula to the bit.
 */
#include "support/check_main.h"
#include "support/codec_run.h"
#include "support/require.h"

#include "base/util.h"
#include "codec/families.h"
#include "codec/quantizer.h"
#include "core/own_error.h"
#include "core/step.h"
#include "core/tensor.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define RANKS 3
#define COUNT 3000
#define FIRST 64 /* of the span in the tensor: a chunk in the middle */

static float inputs[RANKS][FIRST + COUNT], own_values[RANKS][COUNT], sum[COUNT];
static _Alignas(64) unsigned char acc[8 * COUNT], room[16 * 4 * COUNT];

/* One rank's stage and the step that it is at. */
typedef struct stand {
    iq_stage_t stage;
    iq_action_t action;
    iq_own_error_t own;
    iq_step_data_t data;
} stand_t;

static void make_stand(stand_t *stand, const iq_codec_t *codec, isgq_red_op_t op, int nranks, int rank, const float *scales)
{
    memset(stand, 0, sizeof(*stand));
    iq_own_error_place(&stand->own, room, 4 * COUNT);
    stand->stage.codec = *codec;
    stand->stage.codec_call = (iq_codec_call_t){.datatype = ISGQ_FLOAT32,
                                                .op = op,
                                                .nranks = nranks,
                                                .rank = rank,
                                                .seed = 3,
                                                .call = 11,
                                                .count = FIRST + COUNT,
                                                .scales = scales};
    stand->stage.own_call = stand->stage.codec_call;
    stand->stage.element_bytes = stand->stage.own_bytes = sizeof(float);
    stand->stage.own = &stand->own;
    stand->action.first = FIRST;
    stand->action.count = COUNT;
    stand->data = (iq_step_data_t){.stage = &stand->stage,
                                   .action = &stand->action,
                                   .span = {FIRST, COUNT},
                                   .src = (const unsigned char *)(inputs[rank] + FIRST)};
}

static void fill_inputs(void)
{
    for (int r = 0; r < RANKS; r++)
        for (int i = 0; i < FIRST + COUNT; i++)
            inputs[r][i] = i % 5 == 0 ? 0.0f : codec_random_unit() * ldexpf(1.0f, -(i / 400));
}

/* What ranks agree on first, from the inputs of all of them. */
static float *agree(const iq_codec_t *codec)
{
    const iq_codec_ops_t *ops = codec->ops;
    size_t count = FIRST + COUNT;
    if (!ops->needs_scales(codec))
        return NULL;
    size_t many = iq_codec_scales(codec, count), shared = ops->shared_scales == NULL ? many : ops->shared_scales(codec, count);
    bool adds = ops->scales_op != NULL && ops->scales_op(codec) == ISGQ_SUM;
    float *all = calloc(many, sizeof(*all)), *one = malloc(many * sizeof(*one));
    stand_t stand;
    for (int r = 0; r < RANKS; r++) {
        memset(one, 0, many * sizeof(*one));
        make_stand(&stand, codec, ISGQ_SUM, RANKS, r, NULL);
        ops->local_scales(codec, &stand.stage.own_call, (iq_span_t){0, count}, inputs[r], one);
        if (ops->close_scales != NULL)
            ops->close_scales(codec, &stand.stage.own_call, count, one);
        for (size_t i = 0; i < shared; i++)
            all[i] = adds ? all[i] + one[i] : fmaxf(all[i], one[i]);
    }
    if (ops->open_scales != NULL)
        ops->open_scales(codec, &stand.stage.own_call, count, all);
    free(one);
    return all;
}

/* ---- every codec ---- */

static int families(void)
{
    int many = 0;
    while (iq_families[many].name != NULL)
        many++;
    return many;
}

/* A dense codec of this version, or NULL. */
static bool find_codec(int index, iq_codec_t *codec)
{
    isgq_quantizer_t quantizer;
    bool there = iq_families[index].codec.ops != NULL;
    if (!there || isgq_quantizer_create(&quantizer, iq_families[index].name) != ISGQ_SUCCESS)
        return false;
    there = iq_quantizer_dense(quantizer, RANKS, false, codec) == ISGQ_SUCCESS &&
            codec->ops->supports(codec, ISGQ_FLOAT32, ISGQ_SUM) == ISGQ_SUCCESS;
    isgq_quantizer_destroy(quantizer);
    return there && codec->ops != iq_codec_none.ops;
}

/* Own values as looked at, with a message and without: the same bits. */
static void look_both_ways(const iq_codec_t *codec, int rank, const float *scales, void *message)
{
    stand_t stand, again;
    make_stand(&stand, codec, ISGQ_SUM, RANKS, rank, scales);
    make_stand(&again, codec, ISGQ_SUM, RANKS, rank, scales);
    iq_step_encode(&stand.data, message);
    iq_own_error_look(&stand.data, message);
    memcpy(own_values[rank], stand.own.values, sizeof(own_values[rank]));
    iq_own_error_look(&again.data, NULL);
    REQUIRE(memcmp(own_values[rank], again.own.values, sizeof(own_values[rank])) == 0);
    ck_assert(memcmp(&stand.own.error, &again.own.error, sizeof(iq_exact_t)) == 0 && stand.own.lost == 0);
    ck_assert(memcmp(&stand.own.square, &again.own.square, sizeof(iq_exact_t)) == 0);
}

/* All ranks' own values add up to the sum that the codec delivers, or do so on average. */
START_TEST(own_values_are_the_sums)
{
    iq_codec_t codec;
    stand_t stand;
    if (!find_codec(_i, &codec))
        return;
    fill_inputs();
    float *scales = agree(&codec);
    make_stand(&stand, &codec, ISGQ_SUM, RANKS, 0, scales);
    size_t most = codec.ops->partial_bytes(&codec, &stand.stage.codec_call, (iq_span_t){FIRST, COUNT}, 1);
    unsigned char *message = malloc(most);
    for (int r = 0; r < RANKS; r++) {
        make_stand(&stand, &codec, ISGQ_SUM, RANKS, r, scales);
        look_both_ways(&codec, r, scales, message);
        iq_step_encode(&stand.data, message);
        ck_assert_int_eq(iq_step_add(&stand.data, message, 1, acc, r == 0), ISGQ_SUCCESS);
    }
    codec.ops->deliver(&codec, &stand.stage.codec_call, (iq_span_t){FIRST, COUNT}, acc, sum);
    double error = 0.0, spread = 0.0;
    for (int i = 0; i < COUNT; i++) {
        double due = 0.0, size = 0.0;
        for (int r = 0; r < RANKS; r++) {
            due += (double)own_values[r][i];
            size += fabs((double)own_values[r][i]);
        }
        error += (double)sum[i] - due;
        spread += size * size;
        if (!codec.ops->counts_parts && fabs((double)sum[i] - due) > 2e-6 * size)
            ck_abort_msg("%s, element %d: the sum is %.9g, own values add up to %.9g", iq_families[_i].name, i, (double)sum[i], due);
    }
    if (fabs(error) > 5.0 * sqrt(spread)) /* where sums are rounded at random they are right on average */
        ck_abort_msg("%s: sums are off by %g altogether", iq_families[_i].name, error);
    free(message);
    free(scales);
}
END_TEST

/* The loop above is not over nothing. */
START_TEST(codecs_are_there)
{
    int there = 0;
    iq_codec_t codec;
    for (int i = 0; i < families(); i++)
        there += find_codec(i, &codec);
    ck_assert_int_ge(there, 5);
}
END_TEST

/* ---- residuals ---- */

static const char *const texts[] = {"uniform:bits=2,rounding=nearest,bucket=64", "uniform:bits=3,scale=local,bucket=256",
                                    "uniform:bits=1,bucket=tensor,sum=requantized", "bf16"};
#define TEXTS (int)(sizeof(texts) / sizeof(texts[0]))

static iq_codec_t codec_of_text(const char *text)
{
    isgq_quantizer_t quantizer;
    iq_codec_t codec;
    ck_assert_int_eq(isgq_quantizer_create(&quantizer, text), ISGQ_SUCCESS);
    ck_assert_int_eq(iq_quantizer_dense(quantizer, RANKS, false, &codec), ISGQ_SUCCESS);
    isgq_quantizer_destroy(quantizer);
    return codec;
}

/* C(v) by another way: the message of a single rank, finished and decoded as results are. */
static void decode_alone(const iq_codec_t *codec, const float *scales, int rank, float *values)
{
    stand_t stand;
    make_stand(&stand, codec, ISGQ_SUM, RANKS, rank, scales);
    unsigned char *message = malloc(codec->ops->partial_bytes(codec, &stand.stage.codec_call, stand.data.span, 1));
    iq_step_encode(&stand.data, message);
    iq_codec_t exact = *codec;
    exact.exact = codec->shared; /* of one rank's codes: they are not rounded again */
    stand.stage.codec_call.nranks = 1;
    ck_assert_int_eq(codec->ops->decode(&exact, &stand.stage.codec_call, stand.data.span, message, values), ISGQ_SUCCESS);
    free(message);
}

/* v = g + beta e; e = (1 - beta) e + v - C(v), element by element, behind the tensor's own elements nothing. */
START_TEST(residuals)
{
    iq_codec_t codec = codec_of_text(texts[_i]);
    static float gradient[FIRST + COUNT], residual[FIRST + COUNT], before[FIRST + COUNT], decoded[COUNT];
    float beta = _i % 2 == 0 ? 1.0f : 0.625f;
    size_t corrected = FIRST + COUNT - 100;
    stand_t stand;
    fill_inputs();
    memcpy(gradient, inputs[1], sizeof(gradient));
    for (int i = 0; i < FIRST + COUNT; i++)
        before[i] = residual[i] = codec_random_unit();
    make_stand(&stand, &codec, ISGQ_SUM, RANKS, 1, NULL);
    stand.own = (iq_own_error_t){.corrects = true,
                                 .measures = true,
                                 .gradient = (const unsigned char *)gradient,
                                 .datatype = ISGQ_FLOAT32,
                                 .input = inputs[1],
                                 .residual = residual,
                                 .corrected = corrected,
                                 .beta = beta};
    iq_own_error_place(&stand.own, room, 4 * COUNT);
    for (size_t i = 0; i < FIRST + COUNT; i += 1000)
        iq_own_error_add(&stand.own, (iq_span_t){i, iq_min(1000, FIRST + COUNT - i)});
    for (size_t i = 0; i < FIRST + COUNT; i++)
        REQUIRE(inputs[1][i] == (i < corrected ? gradient[i] + beta * before[i] : gradient[i]));
    float *scales = agree(&codec);
    stand.stage.codec_call.scales = stand.stage.own_call.scales = scales;
    iq_own_error_look(&stand.data, NULL);
    decode_alone(&codec, scales, 1, decoded);
    double square = 0.0, error = 0.0, values = 0.0;
    for (size_t i = 0; i < FIRST + COUNT; i++) {
        float rest = before[i] - beta * before[i], due = before[i];
        if (i < corrected)
            due = i < FIRST ? rest : rest + (inputs[1][i] - decoded[i - FIRST]);
        if (residual[i] != due)
            ck_abort_msg("%s, element %zu: residual %.9g, not %.9g", texts[_i], i, (double)residual[i], (double)due);
        if (i < FIRST)
            continue;
        square += i < corrected ? (double)due * (double)due : 0.0;
        error += pow((double)(inputs[1][i] - decoded[i - FIRST]), 2.0);
        values += pow((double)inputs[1][i], 2.0);
    }
    ck_assert(fabs(stand.own.residual_square - square) <= 1e-9 * square);
    ck_assert(fabs(iq_exact_value(&stand.own.error) - error) <= 1e-9 * error);
    ck_assert(fabs(iq_exact_value(&stand.own.square) - values) <= 1e-9 * values);
    ck_assert_uint_eq(stand.own.count, COUNT);
    free(scales);
}
END_TEST

/* The owner of a sum keeps what its second rounding loses, times the ranks that an average was divided by. */
START_TEST(second_roundings)
{
    iq_codec_t codec = codec_of_text("uniform:bits=3,rounding=nearest,scale=local,bucket=128");
    static float residual[FIRST + COUNT], values[COUNT], delivered[COUNT];
    isgq_red_op_t op = _i == 0 ? ISGQ_SUM : ISGQ_AVG;
    float *sums = (float *)(void *)acc;
    unsigned char message[2 * COUNT];
    stand_t stand;
    for (int i = 0; i < COUNT; i++) {
        sums[i] = codec_random_unit();
        values[i] = op == ISGQ_AVG ? sums[i] / (float)RANKS : sums[i];
        residual[FIRST + i] = 0.25f;
    }
    make_stand(&stand, &codec, op, RANKS, 2, NULL);
    stand.own.corrects = true;
    stand.own.residual = residual;
    stand.own.corrected = FIRST + COUNT;
    stand.data.dst = (unsigned char *)delivered;
    ck_assert_int_eq(iq_step_finish_into(&stand.data, acc, message), ISGQ_SUCCESS);
    for (int i = 0; i < COUNT; i++) {
        float due = 0.25f + (op == ISGQ_AVG ? (float)RANKS : 1.0f) * (values[i] - delivered[i]);
        REQUIRE(residual[FIRST + i] == due);
    }
}
END_TEST

/* What is not finite is counted and leaves no residual; its bucket is lost for one call, other buckets are not. */
START_TEST(not_finite)
{
    iq_codec_t codec = codec_of_text("uniform:bits=4,rounding=nearest,scale=local,bucket=32");
    static float residual[FIRST + COUNT];
    stand_t stand;
    fill_inputs();
    inputs[0][FIRST + 100] = NAN;
    inputs[0][FIRST + 1000] = -INFINITY;
    make_stand(&stand, &codec, ISGQ_SUM, RANKS, 0, NULL);
    stand.own.corrects = true;
    stand.own.residual = residual;
    stand.own.corrected = FIRST + COUNT;
    iq_own_error_look(&stand.data, NULL);
    ck_assert_uint_eq(stand.own.lost, 64);
    for (int i = 0; i < COUNT; i++) {
        bool gone = i / 32 == 100 / 32 || i / 32 == 1000 / 32;
        REQUIRE(gone ? residual[FIRST + i] == 0.0f : isfinite(residual[FIRST + i]));
    }
    ck_assert(isfinite(iq_exact_value(&stand.own.error)) && isfinite(iq_exact_value(&stand.own.square)));
    ck_assert(iq_exact_value(&stand.own.error) > 0.0);
}
END_TEST

/* Sums of squares are exact: neither the order of spans nor where they are cut, at multiples of 32, shows in them. */
START_TEST(exact_sums)
{
    static const double terms[] = {0x1p-298, 0x1.fffffffffffffp+260, 0x1p-60, 0x1.8p+3, 0x1p-246, 0.1, 0x1.0000000000001p+32};
    iq_exact_t forth = {{0}}, back = {{0}}, one = {{0}};
    for (size_t i = 0; i < IQ_ARRAY_SIZE(terms); i++) {
        iq_exact_t alone = {{0}};
        iq_exact_add(&alone, terms[i]);
        ck_assert(iq_exact_value(&alone) == terms[i]);
        for (int times = 0; times < 1000; times++) {
            iq_exact_add(&forth, terms[i]);
            iq_exact_add(&back, terms[IQ_ARRAY_SIZE(terms) - 1 - i]);
        }
    }
    ck_assert(memcmp(&forth, &back, sizeof(forth)) == 0);
    for (int i = 0; i <= 1 << 20; i++) /* a double would stay at 2^53 */
        iq_exact_add(&one, i == 0 ? 0x1p+53 : 1.0);
    ck_assert(iq_exact_value(&one) == 0x1p+53 + 0x1p+20);
}
END_TEST

START_TEST(cuts)
{
    iq_codec_t codec = codec_of_text("onebit:bucket=32");
    stand_t whole, parts;
    fill_inputs();
    make_stand(&whole, &codec, ISGQ_SUM, RANKS, 0, NULL);
    iq_own_error_look(&whole.data, NULL);
    make_stand(&parts, &codec, ISGQ_SUM, RANKS, 0, NULL);
    for (size_t end = COUNT, first; end > 0; end = first) { /* from behind */
        first = end > 672 ? (end - 1) / 672 * 672 : 0;
        parts.data.span = (iq_span_t){FIRST + first, end - first};
        parts.data.src = (const unsigned char *)(inputs[0] + FIRST + first);
        iq_own_error_look(&parts.data, NULL);
    }
    ck_assert(memcmp(&whole.own.error, &parts.own.error, sizeof(iq_exact_t)) == 0);
    ck_assert(memcmp(&whole.own.square, &parts.own.square, sizeof(iq_exact_t)) == 0);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("own_error");
    TCase *codecs = tcase_create("codecs");
    tcase_add_loop_test(codecs, own_values_are_the_sums, 0, families());
    tcase_add_test(codecs, codecs_are_there);
    suite_add_tcase(suite, codecs);
    TCase *feedback = tcase_create("residuals");
    tcase_add_loop_test(feedback, residuals, 0, TEXTS);
    tcase_add_loop_test(feedback, second_roundings, 0, 2);
    tcase_add_test(feedback, not_finite);
    suite_add_tcase(suite, feedback);
    TCase *sums = tcase_create("sums");
    tcase_add_test(sums, exact_sums);
    tcase_add_test(sums, cuts);
    suite_add_tcase(suite, sums);
    return suite;
}
