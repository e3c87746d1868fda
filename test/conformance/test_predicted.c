/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared scales that are guessed from a tensor's earlier calls: calls that stand stay within the grid of the guess and take fewer bytes, calls that are
 * repaired have the bits of calls that were never predicted, and all ranks decide alike.
 */
#include "support/cases.h"
#include "support/check_main.h"
#include "support/samples.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT 9001
#define CALLS 12

typedef enum outcome { AGREES, STANDS, REPAIRED } outcome_t;

/* One call: samples times a factor, NaN if it is 0 and the call spoils a value. */
typedef struct call {
    float factor;
    bool spoiled;
    outcome_t outcome;
} call_t;

/* Twice more of everything is beyond the guess, a fifth too wide for it; after the k-th repair 2^k - 1 calls agree. */
static const call_t story[CALLS] = {{1.0f, false, AGREES},  {1.1f, false, STANDS},   {30.0f, false, REPAIRED}, {30.0f, false, AGREES},
                                    {28.0f, false, STANDS}, {1.0f, false, REPAIRED}, {1.0f, false, AGREES},    {1.0f, true, REPAIRED},
                                    {1.0f, false, AGREES},  {1.0f, false, AGREES},   {1.0f, false, AGREES},    {1.0f, false, STANDS}};

typedef struct scenario {
    const char *quantizer; /* without its option */
    const char *option;
    isgq_data_type_t type;
    bool in_place;
    const char *algorithm;
    bool counts; /* the outcomes are those of the story */
    bool predicts;
} scenario_t;

static void fill(const scenario_t *scenario, int rank, const call_t *call, void *values)
{
    for (size_t i = 0; i < COUNT; i++)
        iq_numbers_set(scenario->type, values, i, iq_sample(scenario->type, 5, rank, i) * (double)call->factor);
    if (call->spoiled && rank == 1)
        iq_numbers_set(scenario->type, values, COUNT / 2, NAN);
}

static void check_outcome(iq_rank_t *rank, const scenario_t *scenario, int k, const isgq_stats_t *before, const isgq_stats_t *after)
{
    uint64_t predicted = after->predicted_calls - before->predicted_calls, repaired = after->repaired_calls - before->repaired_calls;
    outcome_t found = repaired ? REPAIRED : predicted ? STANDS : AGREES, due = scenario->predicts ? story[k].outcome : AGREES;
    RANK_CHECK(rank, !scenario->counts || found == due, "%s: call %d ended as %d, not %d", scenario->quantizer, k, (int)found, (int)due);
    iq_rank_agree(rank, (uint64_t)found, "the outcome");
}

/* The hash of call k's result to values[k], and its outcome to values[CALLS + k]. */
static void story_body(iq_rank_t *rank)
{
    const scenario_t *scenario = rank->argument;
    char text[128];
    void *in = malloc(COUNT * sizeof(float)), *out = scenario->in_place ? in : malloc(COUNT * sizeof(float));
    isgq_tensor_t tensor = NULL;
    snprintf(text, sizeof(text), "%s%s", scenario->quantizer, scenario->predicts ? scenario->option : "");
    isgq_quantizer_t quantizer = iq_quantizer(rank, text);
    isgq_stats_t before = {.size = sizeof(before)}, after = {.size = sizeof(after)};
    RANK_OK(rank, isgq_tensor_create(&tensor, "w", COUNT));
    isgq_call_options_t options = {.size = sizeof(options), .tensor = tensor, .algorithm = scenario->algorithm};
    for (int k = 0; k < CALLS; k++) {
        fill(scenario, rank->rank, &story[k], in);
        RANK_OK(rank, isgq_comm_get_stats(rank->comm, &before));
        RANK_OK(rank, isgq_allreduce(in, out, COUNT, scenario->type, ISGQ_AVG, quantizer, rank->comm, NULL, &options));
        RANK_OK(rank, isgq_comm_synchronize(rank->comm));
        RANK_OK(rank, isgq_comm_get_stats(rank->comm, &after));
        check_outcome(rank, scenario, k, &before, &after);
        rank->values[k] = isgqx_hash(out, COUNT * (scenario->type == ISGQ_FLOAT32 ? 4 : 2));
        rank->values[CALLS + k] = after.predicted_calls > before.predicted_calls && after.repaired_calls == before.repaired_calls;
        rank->values[2 * CALLS + k] = after.wire_bytes - before.wire_bytes;
        iq_rank_agree(rank, rank->values[k], text);
        RANK_CHECK(rank, isnan(iq_numbers_get(scenario->type, out, COUNT / 2)) == story[k].spoiled, "%s: call %d hides NaN", text, k);
    }
    isgq_tensor_destroy(tensor);
    isgq_quantizer_destroy(quantizer);
    if (!scenario->in_place)
        free(out);
    free(in);
}

static const scenario_t scenarios[] = {
    {"uniform:bits=4,bucket=tensor", ",predict=on", ISGQ_FLOAT32, false, "direct", true, true},
    {"uniform:bits=4,bucket=tensor", ",predict=on", ISGQ_FLOAT32, true, "exchange", true, true},
    {"uniform:bits=5,bucket=tensor", ",predict=on", ISGQ_FLOAT16, true, "ring", true, true},
    {"uniform:bits=4,bucket=1024,sum=requantized", ",predict=on", ISGQ_FLOAT32, true, "direct", true, true},
    {"uniform:bits=1,bucket=tensor", ",predict=on", ISGQ_BFLOAT16, false, NULL, true, true},
    {"uniform:bits=3,bucket=4096,rounding=stratified", ",predict=on", ISGQ_FLOAT32, false, NULL, true, true},
    {"global-qsgd", ":predict=on", ISGQ_FLOAT32, true, NULL, true, true},
    {"terngrad:clip=0", ",predict=on", ISGQ_FLOAT32, false, NULL, true, true},
    {"intsgd", ":predict=on", ISGQ_FLOAT32, true, NULL, true, true},
    {"intsgd", ":scale=history", ISGQ_FLOAT32, false, NULL, false, true},
};
#define SCENARIOS (int)(sizeof(scenarios) / sizeof(scenarios[0]))

/* Calls that do not stand have the bits that they have without prediction; those that stand take fewer bytes. */
START_TEST(repairs_are_exact)
{
    static iq_ranks_values_t with, without;
    for (int predicts = 0; predicts < 2; predicts++) {
        scenario_t scenario = scenarios[_i];
        scenario.predicts = predicts;
        iq_ranks_t ranks = {.kind = _i % 2 ? IQ_RANKS_PROCESSES : IQ_RANKS_THREADS, .nranks = 2 + _i % 3, .body = story_body, .argument = &scenario};
        iq_ranks_run(&ranks, predicts ? &with : &without);
    }
    for (int k = 0; k < CALLS; k++) {
        bool stands = with.of[0][CALLS + k];
        ck_assert_msg(stands || with.of[0][k] == without.of[0][k], "%s: call %d has other bits than an agreed one", scenarios[_i].quantizer, k);
        ck_assert_msg(!stands || with.of[0][2 * CALLS + k] < without.of[0][2 * CALLS + k], "%s: call %d sent %llu bytes, agreed %llu",
                      scenarios[_i].quantizer, k, (unsigned long long)with.of[0][2 * CALLS + k],
                      (unsigned long long)without.of[0][2 * CALLS + k]);
    }
}
END_TEST

/* ---- the grid of the guess ---- */

static void grid_body(iq_rank_t *rank)
{
    enum { TURNS = 6, LEVELS = 7 };
    isgq_quantizer_t quantizer = iq_quantizer(rank, "uniform:bits=4,bucket=tensor,predict=on");
    isgqx_call_record_t record = {.size = sizeof(record)};
    isgq_tensor_t tensor = NULL;
    float *out = malloc(COUNT * sizeof(*out)), *in = malloc(COUNT * sizeof(*in));
    double level = 0.0, n = rank->nranks;
    RANK_OK(rank, isgq_tensor_create(&tensor, "w", COUNT));
    isgq_call_options_t options = {.size = sizeof(options), .tensor = tensor};
    for (uint64_t k = 0; k < TURNS; k++) {
        double most = iq_samples_max(ISGQ_FLOAT32, k, rank->nranks, 0, COUNT), guess = 1.25 * level;
        bool stands = k > 0 && most <= guess;
        double allowed = n * (stands ? guess : most) / LEVELS * 1.0001;
        iq_samples_fill(ISGQ_FLOAT32, k, rank->rank, 0, COUNT, in);
        RANK_OK(rank, isgq_allreduce(in, out, COUNT, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, &options));
        RANK_OK(rank, isgq_comm_synchronize(rank->comm));
        for (size_t i = 0; i < COUNT; i++)
            RANK_CHECK(rank, fabs((double)out[i] - iq_samples_sum(ISGQ_FLOAT32, ISGQ_SUM, k, rank->nranks, i)) <= allowed,
                       "call %d: element %zu is off by more than %g", (int)k, i, allowed);
        RANK_OK(rank, isgqx_last_call(rank->comm, &record));
        RANK_CHECK(rank, (strstr(record.why, "scales guessed") != NULL) == (k > 0), "call %d: \"%s\"", (int)k, record.why);
        RANK_CHECK(rank, k == 0 || (strstr(record.why, "repaired") == NULL) == stands, "call %d: \"%s\"", (int)k, record.why);
        level = fmax(most, 0.9 * level);
    }
    isgq_tensor_destroy(tensor);
    isgq_quantizer_destroy(quantizer);
    free(in);
    free(out);
}

START_TEST(errors_stay_within_the_guess)
{
    iq_ranks_t ranks = {.nranks = 3, .body = grid_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- error feedback ---- */

/* All results and residuals together are all inputs, whatever was predicted and repaired: with nothing new, what is left comes out. */
static void feedback_body(iq_rank_t *rank)
{
    bool in_place = *(int *)rank->argument;
    isgq_quantizer_t quantizer = iq_quantizer(rank, "uniform:bits=2,bucket=tensor,rounding=nearest,feedback=full,predict=on");
    isgq_stats_t stats = {.size = sizeof(stats)};
    isgq_tensor_t tensor = NULL;
    float *in = malloc(COUNT * sizeof(*in)), *out = in_place ? in : malloc(COUNT * sizeof(*out));
    double *due = calloc(COUNT, sizeof(*due)), *got = calloc(COUNT, sizeof(*got)), worst = 0.0;
    RANK_OK(rank, isgq_tensor_create(&tensor, "w", COUNT));
    isgq_call_options_t options = {.size = sizeof(options), .tensor = tensor};
    for (int k = 0; k < 40; k++) {
        double factor = k % 8 == 5 ? 20.0 : 1.0; /* jumps, back and forth */
        for (size_t i = 0; i < COUNT; i++) {
            in[i] = (float)(factor * iq_sample(ISGQ_FLOAT32, 5, rank->rank, i));
            for (int r = 0; r < rank->nranks; r++)
                due[i] += (double)(float)(factor * iq_sample(ISGQ_FLOAT32, 5, r, i));
        }
        RANK_OK(rank, isgq_allreduce(in, out, COUNT, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, &options));
        RANK_OK(rank, isgq_comm_synchronize(rank->comm));
        for (size_t i = 0; i < COUNT; i++)
            got[i] += (double)out[i];
        iq_rank_agree(rank, isgqx_hash(out, COUNT * sizeof(*out)), "the result");
    }
    for (size_t i = 0; i < COUNT; i++)
        worst = fmax(worst, fabs(got[i] - due[i]));
    RANK_OK(rank, isgq_comm_get_stats(rank->comm, &stats));
    RANK_CHECK(rank, stats.predicted_calls > stats.repaired_calls && stats.repaired_calls >= 3, "%d predicted, %d repaired",
               (int)stats.predicted_calls, (int)stats.repaired_calls);
    double most = 20.0 * iq_samples_max(ISGQ_FLOAT32, 5, rank->nranks, 0, COUNT);
    RANK_CHECK(rank, worst <= rank->nranks * 1.25 * most, "40 calls lose %g of values up to %g", worst, most);
    isgq_tensor_destroy(tensor);
    isgq_quantizer_destroy(quantizer);
    if (!in_place)
        free(out);
    free(in);
    free(due);
    free(got);
}

START_TEST(residuals_survive_repairs)
{
    iq_ranks_t ranks = {.nranks = 2 + _i, .body = feedback_body, .argument = &_i};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- saved, and ranks that differ ---- */

static void reduce(iq_rank_t *rank, isgq_tensor_t tensor, isgq_quantizer_t quantizer, float *out)
{
    float *in = malloc(COUNT * sizeof(*in));
    isgq_call_options_t options = {.size = sizeof(options), .tensor = tensor};
    iq_samples_fill(ISGQ_FLOAT32, 5, rank->rank, 0, COUNT, in);
    RANK_OK(rank, isgq_allreduce(in, out, COUNT, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, &options));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    free(in);
}

/* A state that is loaded predicts what the tensor would have; without its option or its tensor a quantizer has no memory. */
static void saved_body(iq_rank_t *rank)
{
    isgq_quantizer_t on = iq_quantizer(rank, "uniform:bucket=512,predict=on"), off = iq_quantizer(rank, "uniform:bucket=512,predict=off");
    isgq_stats_t stats = {.size = sizeof(stats)};
    isgq_tensor_t tensor = NULL, loaded = NULL;
    unsigned char *state = malloc(8 * COUNT);
    size_t bytes = 8 * COUNT;
    float *out = malloc(COUNT * sizeof(*out));
    RANK_OK(rank, isgq_tensor_create(&tensor, "w", COUNT));
    RANK_OK(rank, isgq_tensor_create(&loaded, "w", COUNT));
    for (int k = 0; k < 3; k++) {
        reduce(rank, NULL, on, out);
        reduce(rank, tensor, off, out);
    }
    RANK_OK(rank, isgq_comm_get_stats(rank->comm, &stats));
    RANK_CHECK(rank, stats.predicted_calls == 0, "%d calls were predicted from nothing", (int)stats.predicted_calls);
    for (int k = 0; k < 3; k++)
        reduce(rank, tensor, on, out);
    RANK_OK(rank, isgq_tensor_save(tensor, state, &bytes));
    RANK_OK(rank, isgq_tensor_load(loaded, state, bytes));
    reduce(rank, loaded, on, out);
    RANK_OK(rank, isgq_comm_get_stats(rank->comm, &stats));
    RANK_CHECK(rank, stats.predicted_calls == 3 && stats.repaired_calls == 0, "%d predicted, %d repaired", (int)stats.predicted_calls,
               (int)stats.repaired_calls);
    isgq_tensor_destroy(tensor);
    isgq_tensor_destroy(loaded);
    isgq_quantizer_destroy(on);
    isgq_quantizer_destroy(off);
    free(state);
    free(out);
}

START_TEST(states_predict)
{
    iq_ranks_t ranks = {.nranks = 2, .body = saved_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* Rank 1 takes another tensor, which was in as many calls: another memory. Or it takes none. */
static void differing_body(iq_rank_t *rank)
{
    isgq_quantizer_t quantizer = iq_quantizer(rank, "uniform:predict=on");
    isgq_tensor_t tensors[2] = {NULL, NULL};
    float *in = calloc(COUNT, sizeof(*in)), *out = malloc(COUNT * sizeof(*out));
    for (int t = 0; t < 2; t++) {
        RANK_OK(rank, isgq_tensor_create(&tensors[t], "w", COUNT));
        reduce(rank, tensors[t], quantizer, out);
    }
    bool none = *(int *)rank->argument == 1;
    isgq_call_options_t options = {.size = sizeof(options), .tensor = rank->rank == 0 ? tensors[0] : none ? NULL : tensors[1]};
    RANK_OK(rank, isgq_allreduce(in, out, COUNT, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, &options));
    RANK_STATUS(rank, isgq_comm_synchronize(rank->comm), ISGQ_ERR_MISMATCH);
    RANK_CHECK(rank, strstr(isgq_get_last_error(), none ? "history is" : "history_mark") != NULL, "it says \"%s\"", isgq_get_last_error());
    RANK_OK(rank, isgq_comm_destroy(rank->comm));
    rank->comm = NULL;
    for (int t = 0; t < 2; t++)
        isgq_tensor_destroy(tensors[t]);
    isgq_quantizer_destroy(quantizer);
    free(in);
    free(out);
}

START_TEST(other_memories_are_a_mismatch)
{
    iq_ranks_t ranks = {.nranks = 2, .body = differing_body, .argument = &_i, .broken = true};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("predicted");
    iq_add_case(suite, tcase_create("repairs"), repairs_are_exact, SCENARIOS);
    iq_add_case(suite, tcase_create("grid"), errors_stay_within_the_guess, 1);
    iq_add_case(suite, tcase_create("feedback"), residuals_survive_repairs, 2);
    TCase *memory = iq_add_case(suite, tcase_create("memory"), states_predict, 1);
    tcase_add_loop_test(memory, other_memories_are_a_mismatch, 0, 2);
    return suite;
}
