/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What ranks of codec `coded` plan by themselves: the bits or the error that the budget names, whatever the values are like and
 * however many ranks there are. Everything that travels is counted: both phases, frames, and what is agreed on.
 */
#include "support/check_main.h"
#include "support/codec_run.h"
#include "support/require.h"

#include "base/util.h"
#include "codec/coded.h"
#include "codec/coder.h"
#include "codec/dense.h"
#include "codec/strata.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 16384, FRAME = 32 };

/* ---- distributions ---- */

typedef enum kind { NORMAL, LAPLACE, STUDENT, LAYERS, SPARSE, ALIKE, EQUAL, KINDS, ROWS = KINDS } kind_t;
static const char *const kind_names[] = {"normal", "laplace", "student", "layers", "sparse", "alike", "equal", "rows"};

static double uniform(void) { return ((double)codec_random() + 0.5) * 0x1p-32; }

/* Sum of two of those of equal variance would do for a normal one; eight uniform bytes are nearer and as fast. */
static double normal(void)
{
    uint32_t a = codec_random(), b = codec_random();
    int sum = 0;
    for (int i = 0; i < 32; i += 8)
        sum += (int)(a >> i & 255) + (int)(b >> i & 255);
    return (sum + uniform() - 1020.5) / 209.0;
}

static double laplace(void) { return log(uniform() / uniform()); }

static double student(void) /* three degrees of freedom */
{
    double a = normal(), b = normal(), c = normal();
    return normal() / sqrt((a * a + b * b + c * c) / 3.0 + 1e-9);
}

static double draw(kind_t kind, size_t i, double common)
{
    static const double layers[] = {1.0, 0.2, 0.01, 0.05};
    switch (kind) {
    case NORMAL: return normal();
    case LAPLACE: return laplace();
    case STUDENT: return student();
    case LAYERS: return laplace() * layers[i / 50000 % 4];
    case SPARSE: return codec_random() % 4 ? 0.0 : laplace();
    case ROWS: return laplace() * exp2(-(double)((i / 100 * 2654435761u >> 8) % 12)); /* sizes that all ranks have in common */
    case ALIKE: return common + 0.5 * normal();
    default: return common;
    }
}

typedef struct ranks {
    codec_run_t run;
    float *inputs;
} ranks_t;

static ranks_t make_ranks(kind_t kind, int nranks, size_t count, double bits, double nmse)
{
    iq_codec_t codec = {
        .ops = &iq_codec_coded_ops, .rounding = IQ_ROUND_STRATIFIED, .shared = true, .budget_bits = bits, .budget_nmse = nmse};
    ranks_t ranks = {.run = {.codec = codec, .count = count}, .inputs = malloc(count * (size_t)nranks * sizeof(float))};
    ranks.run.call =
        (iq_codec_call_t){.datatype = ISGQ_FLOAT32, .op = ISGQ_SUM, .nranks = nranks, .seed = 11, .call = 5, .count = count};
    for (int rank = 0; rank < nranks; rank++)
        ranks.run.inputs[rank] = ranks.inputs + (size_t)rank * count;
    for (size_t i = 0; i < count; i++) {
        double common = laplace();
        for (int rank = 0; rank < nranks; rank++)
            ranks.inputs[(size_t)rank * count + i] = (float)(1e-3 * draw(kind, i, common));
    }
    return ranks;
}

/* ---- what an allreduce comes to ---- */

typedef struct outcome {
    double bits, nmse;
} outcome_t;

static uint32_t length_of(const unsigned char *message)
{
    uint32_t length;
    memcpy(&length, message, sizeof(length));
    return length;
}

/* One chunk of one block: phase 1 of every rank, phase 2 of the owner. Bits go to both phases' sum, squares to error and norm. */
static void run_chunk(const ranks_t *ranks, const float *scales, iq_span_t span, double *bits, double *error, double *norm)
{
    static int32_t acc[CHUNK];
    static float out[CHUNK];
    uint32_t strata[IQ_STRATA];
    const codec_run_t *run = &ranks->run;
    const iq_codec_ops_t *ops = run->codec.ops;
    iq_codec_call_t call = run->call;
    size_t most;
    call.scales = scales;
    iq_strata_fill(call.seed, call.nranks, 0, strata);
    call.strata = strata;
    for (int rank = 0; rank < call.nranks; rank++) {
        unsigned char *message = codec_run_message(run, rank, span, scales, &most);
        *bits += 8.0 * (length_of(message + 1) + FRAME) / call.nranks;
        ck_assert_int_eq(ops->add(&run->codec, &call, span, message + 1, 1, acc, rank == 0), ISGQ_SUCCESS);
        free(message);
    }
    unsigned char *result = malloc(ops->result_bytes(&run->codec, &call, span));
    ops->finish(&run->codec, &call, span, acc, result);
    *bits += 8.0 * (length_of(result) + FRAME);
    ck_assert_int_eq(ops->decode(&run->codec, &call, span, result, out), ISGQ_SUCCESS);
    free(result);
    for (size_t i = 0; i < span.count; i++) {
        double sum = 0.0;
        for (int rank = 0; rank < call.nranks; rank++)
            sum += (double)((const float *)run->inputs[rank])[span.first + i];
        *error += ((double)out[i] - sum) * ((double)out[i] - sum);
        *norm += sum * sum;
    }
}

/* Bits an element of the agreement, mean of both phases: directly, or in one round where that is what short vectors do. */
static double agreement_bits(const ranks_t *ranks)
{
    const codec_run_t *run = &ranks->run;
    double n = run->call.nranks, bytes = 4.0 * (double)run->codec.ops->shared_scales(&run->codec, run->count);
    bool one_round = n <= 16 && bytes <= 4.0 * IQ_SCALES_IN_ONE_ROUND;
    return 8.0 * (one_round ? n / 2 * (bytes + FRAME) : bytes + FRAME * n) / (double)run->count;
}

/* Every `every`th chunk stands for all. */
static outcome_t run_allreduce(const ranks_t *ranks, size_t every)
{
    const codec_run_t *run = &ranks->run;
    size_t block = iq_align_up(iq_ceil_div(run->count, (size_t)run->call.nranks), 32), elements = 0, number = 0;
    double bits = 0.0, error = 0.0, norm = 0.0;
    float *scales = codec_run_scales(run);
    for (size_t begin = 0; begin < run->count; begin += block) {
        size_t end = iq_min(begin + block, run->count);
        for (size_t first = begin; first < end; first += CHUNK) {
            iq_span_t span = {first, iq_min(CHUNK, end - first)};
            if (number++ % every != 0)
                continue;
            run_chunk(ranks, scales, span, &bits, &error, &norm);
            elements += span.count;
        }
    }
    free(scales);
    return (outcome_t){bits / (double)elements / 2 + agreement_bits(ranks), norm > 0.0 ? error / norm : error};
}

/* ---- budgets ---- */

static void check_bits(kind_t kind, int nranks, size_t count, double bits, double tolerance, size_t every)
{
    ranks_t ranks = make_ranks(kind, nranks, count, bits, 0.0);
    outcome_t outcome = run_allreduce(&ranks, kind == LAYERS ? 1 : every); /* where chunks differ, none stands for others */
    free(ranks.inputs);
    ck_assert_msg(fabs(outcome.bits - bits) <= tolerance * bits, "%s, %d ranks, %zu elements, bits=%g: %.3f, nmse %.3g",
                  kind_names[kind], nranks, count, bits, outcome.bits, outcome.nmse);
}

/* A million elements: within 3 %. */
START_TEST(long_tensors_meet_bits)
{
    static const struct {
        kind_t kind;
        int nranks;
        double bits;
    } cases[] = {{NORMAL, 8, 2.0}, {LAPLACE, 4, 4.0}, {STUDENT, 8, 3.0}, {LAYERS, 2, 2.0}, {SPARSE, 2, 4.0},
                 {ALIKE, 4, 8.0},  {EQUAL, 2, 1.5},   {NORMAL, 1, 3.0},  {STUDENT, 2, 2.0}};
    if (!iq_coder_present())
        return;
    check_bits(cases[_i].kind, cases[_i].nranks, (size_t)1 << 20, cases[_i].bits, 0.03, 7);
}
END_TEST

START_TEST(many_ranks_meet_bits)
{
    if (!iq_coder_present())
        return;
    check_bits(_i ? STUDENT : NORMAL, 17, (size_t)1 << 19, _i ? 2.5 : 4.0, 0.03, 11);
}
END_TEST

/* Fewer elements foretell less: 8 % from 65536 elements on. */
START_TEST(short_tensors_nearly_meet_bits)
{
    static const size_t counts[] = {65536, 100003, 262144};
    if (!iq_coder_present())
        return;
    check_bits((kind_t)(_i % 4), 1 << (_i * 7 % 4), counts[_i / 4], _i % 3 ? 4.0 : 3.0, 0.08, 1);
}
END_TEST

/* Values of a row are small on all ranks or on none, so sums of ranks are no nearer to the normal distribution: taken for that they were
 * foretold to take so many bits more that a sixth of the budget was left. */
START_TEST(sums_of_rows_stay_rows)
{
    if (!iq_coder_present())
        return;
    check_bits(ROWS, 1 << (_i % 2 + 2), 30100 * (1 + 3 * (size_t)(_i / 2)), 4.0, 0.12, 1);
}
END_TEST

/* An error: not more than 25 % above, and not so far below that bits are wasted. */
START_TEST(errors_are_met)
{
    static const double errors[] = {0.1, 1e-2, 1e-3, 1e-5};
    kind_t kind = (kind_t)(_i % KINDS);
    static const int counts[] = {8, 3, 2, 4};
    int nranks = counts[_i / 2 % 4];
    double nmse = errors[_i % 4];
    if (!iq_coder_present())
        return;
    ranks_t ranks = make_ranks(kind, nranks, 250000, 0.0, nmse);
    outcome_t outcome = run_allreduce(&ranks, kind == LAYERS ? 1 : 3);
    free(ranks.inputs);
    double least = kind == SPARSE ? 0.4 : 0.8; /* zeros err less than is foretold */
    ck_assert_msg(outcome.nmse <= 1.25 * nmse && outcome.nmse >= least * nmse, "%s, %d ranks, nmse=%g: %.3g with %.2f bits",
                  kind_names[kind], nranks, nmse, outcome.nmse, outcome.bits);
}
END_TEST

/* ---- better than grids ---- */

/* With heavy tails a tenth, or less, of the error of a shared grid up to the maximum, for half its bits. */
START_TEST(tails_cost_little)
{
    if (!iq_coder_present())
        return;
    for (int heavy = 0; heavy < 2; heavy++) {
        ranks_t ranks = make_ranks(heavy ? STUDENT : LAPLACE, 8, (size_t)1 << 18, 4.0, 0.0);
        outcome_t coded = run_allreduce(&ranks, 2);
        double error = 0.0, norm = 0.0, most = 0.0;
        size_t count = ranks.run.count;
        for (size_t i = 0; i < 8 * count; i++)
            most = fmax(most, fabs((double)ranks.inputs[i]));
        for (size_t i = 0; i < count; i++) {
            double sum = 0.0;
            for (size_t rank = 0; rank < 8; rank++) {
                double y = fabs((double)ranks.inputs[rank * count + i]) / most * 7.0, f = y - floor(y); /* bits=4: codes -7..7 */
                sum += (double)ranks.inputs[rank * count + i];
                error += f * (1.0 - f) * (most / 7.0) * (most / 7.0);
            }
            norm += sum * sum;
        }
        free(ranks.inputs);
        ck_assert_double_lt(coded.nmse, error / norm / (heavy ? 100.0 : 10.0));
        ck_assert_double_lt(coded.bits, 4.2);
    }
}
END_TEST

/* A bit an element is less than the coder's own share of so short messages: codes are not spared there. */
START_TEST(tiny_tensors_are_no_noise)
{
    ranks_t ranks = make_ranks(NORMAL, 8, 1010, 1.0, 0.0);
    outcome_t outcome = run_allreduce(&ranks, 1);
    free(ranks.inputs);
    ck_assert_double_lt(outcome.nmse, 1.0); /* it was 189 once, and 1.3 with sums that were rounded again */
}
END_TEST

/* Short tensors may go in one round, because everybody knows before that their sums are exact; plans keep to that. */
START_TEST(short_sums_are_exact)
{
    static const size_t counts[] = {1, 10, 1010, 4096};
    ranks_t ranks = make_ranks(LAPLACE, 8, counts[_i], 4.0, _i % 2 ? 0.01 : 0.0);
    float *scales = codec_run_scales(&ranks.run);
    ranks.run.call.scales = NULL;
    ck_assert(iq_codec_coded_ops.result_is_exact(&ranks.run.codec, &ranks.run.call));
    ranks.run.call.scales = scales;
    ck_assert(iq_coded_plan(&ranks.run.call).merge == 1.0f && iq_coded_plan(&ranks.run.call).step > 0.0f);
    ranks.run.call.scales = NULL;
    ranks.run.call.count = 4097;
    ck_assert(!iq_codec_coded_ops.result_is_exact(&ranks.run.codec, &ranks.run.call));
    free(scales);
    free(ranks.inputs);
}
END_TEST

/* The agreement of a million elements at two bits is under 2 % of what it serves. */
START_TEST(agreements_are_small)
{
    iq_codec_t codec = {.ops = &iq_codec_coded_ops, .shared = true, .budget_bits = 2.0};
    size_t floats = codec.ops->shared_scales(&codec, (size_t)1 << 20);
    ck_assert_double_lt(64.0 * (double)floats, 0.02 * 2 * 2 * 0x1p20 * 1.001);
    ck_assert_uint_lt(codec.ops->shared_scales(&codec, 4096), 12);
    ck_assert_uint_lt(codec.ops->shared_scales(&codec, (size_t)1 << 40), 4400);
    for (size_t count = 1; count < (size_t)1 << 30; count += count / 3 + 1)
        ck_assert_uint_le(codec.ops->shared_scales(&codec, count), codec.ops->room_scales(&codec, count));
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("coded_budget");
    TCase *bits = tcase_create("bits");
    TCase *shorter = tcase_create("short");
    TCase *errors = tcase_create("errors");
    TCase *tails = tcase_create("tails");
    tcase_add_loop_test(bits, long_tensors_meet_bits, 0, 9);
    tcase_add_loop_test(bits, many_ranks_meet_bits, 0, 2);
    tcase_add_loop_test(shorter, short_tensors_nearly_meet_bits, 0, 12);
    tcase_add_loop_test(shorter, sums_of_rows_stay_rows, 0, 4);
    tcase_add_loop_test(errors, errors_are_met, 0, KINDS);
    tcase_add_test(tails, tails_cost_little);
    tcase_add_test(tails, tiny_tensors_are_no_noise);
    tcase_add_loop_test(tails, short_sums_are_exact, 0, 4);
    tcase_add_test(tails, agreements_are_small);
    suite_add_tcase(suite, bits);
    suite_add_tcase(suite, shorter);
    suite_add_tcase(suite, errors);
    suite_add_tcase(suite, tails);
    return suite;
}
