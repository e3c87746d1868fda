/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The same seed, ranks and calls give the same bits: again, between threads, between processes, between hosts, whatever
 * floating-point environment the caller is in. Another seed gives other bits. Invariant 1 of the design, section 3.4 too.
 */
#include "support/cases.h"
#include "support/check_main.h"
#include "support/samples.h"

#include <fenv.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT 5003

/* A program of calls of every kind; values[i] is the hash of what call i left on this rank. */
typedef struct step {
    const char *quantizer, *algorithm;
    char kind;   /* a allreduce, r reduce_scatter, g allgather, f factored */
    bool random; /* depends on the seed */
} step_t;

static const step_t steps[] = {
    {"none", NULL, 'a', false},
    {"uniform:bits=4,rounding=nearest", NULL, 'a', false},
    {"none", "ring", 'a', false},
    {"bf16", NULL, 'a', false},
    {"uniform:bits=4", NULL, 'a', true},
    {"uniform:bits=3,scale=local,bucket=256", NULL, 'a', true},
    {"uniform:bits=2,sum=exact", "ring", 'a', true},
    {"uniform:bits=5,sum=requantized,bucket=tensor", NULL, 'a', true},
    {"isgq:bits=4", NULL, 'a', true},
    {"uniform:bits=4", NULL, 'r', true},
    {"uniform:bits=4", NULL, 'g', true},
    {"factor:width=3/3", "gather", 'f', true},
    {"factor:width=4/4", "reduce", 'f', true},
    {"isgq:bits=2.5", NULL, 'f', true},
    {"factor:bits=3,rounding=dither,coding=range", "gather", 'f', true},
    {"isgq-dithered:coding=range", "reduce", 'f', true},
    {"isgq-mvu", "gather", 'f', false},
    {"dense=uniform:bits=3", "dense", 'f', true},
};
#define STEPS (sizeof(steps) / sizeof(steps[0]))

static void run_factored(iq_rank_t *rank, const float *in, float *out, isgq_quantizer_t quantizer,
                         const isgq_call_options_t *options)
{
    isgq_factors_t factors = {
        .size = sizeof(factors), .x = in, .delta = in + 600, .batch = 12, .m = 50, .n = 30, .bias = out + 1500};
    RANK_OK(rank, isgq_allreduce_factored(&factors, 12, out, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, options));
}

static uint64_t run_step(iq_rank_t *rank, const step_t *step, const float *in, float *out)
{
    isgq_call_options_t options = {.size = sizeof(options), .algorithm = step->algorithm};
    isgq_quantizer_t quantizer = iq_quantizer(rank, step->quantizer);
    size_t n = (size_t)rank->nranks;
    memset(out, 0, n * COUNT * sizeof(*out));
    if (step->kind == 'a')
        RANK_OK(rank, isgq_allreduce(in, out, COUNT, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, &options));
    else if (step->kind == 'r')
        RANK_OK(rank, isgq_reduce_scatter(in, out, COUNT / n, ISGQ_FLOAT32, ISGQ_AVG, quantizer, rank->comm, NULL, &options));
    else if (step->kind == 'g')
        RANK_OK(rank, isgq_allgather(in, out, COUNT, ISGQ_FLOAT32, quantizer, rank->comm, NULL, &options));
    else
        run_factored(rank, in, out, quantizer, &options);
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    isgq_quantizer_destroy(quantizer);
    uint64_t hash = isgqx_hash(out, n * COUNT * sizeof(*out));
    if (step->kind != 'r')
        iq_rank_agree(rank, hash, step->quantizer);
    return hash;
}

static void program_body(iq_rank_t *rank)
{
    float *in = malloc(COUNT * sizeof(*in)), *out = malloc((size_t)rank->nranks * COUNT * sizeof(*out));
    for (size_t i = 0; i < COUNT; i++)
        in[i] = iq_mix_unit(5, (uint64_t)rank->rank, i) * (float)(1 + i % 7);
    for (size_t s = 0; s < STEPS; s++)
        rank->values[s] = run_step(rank, &steps[s], in, out);
    free(in);
    free(out);
}

static bool at_home; /* even where there is a lab */

static const iq_ranks_values_t *program(iq_ranks_kind_t kind, int hosts, int nranks, uint64_t seed,
                                        const char *const *environment, iq_ranks_values_t *values)
{
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    config.seed = seed;
    config.chunk_bytes = 4096;
    iq_ranks_t ranks = {.kind = kind,
                        .nranks = nranks,
                        .hosts = hosts,
                        .body = program_body,
                        .config = &config,
                        .environment = environment,
                        .home = at_home};
    iq_ranks_run(&ranks, values);
    return values;
}

static void check_same(const iq_ranks_values_t *found, const iq_ranks_values_t *due, int nranks, const char *what)
{
    for (int r = 0; r < nranks; r++)
        for (size_t s = 0; s < STEPS; s++)
            ck_assert_msg(found->of[r][s] == due->of[r][s], "%s: step %d (%s) differs on rank %d", what, (int)s,
                          steps[s].quantizer, r);
}

static iq_ranks_values_t first, second;

START_TEST(again_and_another_seed)
{
    int nranks = 1 + 2 * _i;
    program(IQ_RANKS_THREADS, 0, nranks, 42, NULL, &first);
    check_same(program(IQ_RANKS_THREADS, 0, nranks, 42, NULL, &second), &first, nranks, "again");
    program(IQ_RANKS_THREADS, 0, nranks, 43, NULL, &second);
    for (size_t s = 0; s < STEPS; s++)
        ck_assert_msg((second.of[0][s] != first.of[0][s]) == steps[s].random, "another seed: step %d (%s)", (int)s,
                      steps[s].quantizer);
}
END_TEST

START_TEST(any_transport)
{
    static const char *const seed[] = {"ISGQ_SEED=42", NULL};
    bool network = iq_ranks_have_network();
    if (network)
        program(IQ_RANKS_HOSTS, 0, 3, 42, NULL, &first);
    program(IQ_RANKS_PROCESSES, 0, 3, 42, NULL, &second);
    if (network) {
        check_same(&first, &second, 3, "hosts and processes");
        program(IQ_RANKS_HOSTS, 2, 3, 42, NULL, &first); /* ranks 0 and 2 share one */
        check_same(&first, &second, 3, "two transports at once");
    }
    program(IQ_RANKS_PROCESSES, 0, 3, 0, seed, &first);
    check_same(&first, &second, 3, "ISGQ_SEED");
    at_home = true;
    program(IQ_RANKS_THREADS, 0, 3, 42, NULL, &first);
    at_home = false;
    check_same(&first, &second, 3, "threads and processes");
}
END_TEST

/* Different calls of one program round differently, and so do ranks: none of the hashes that should be random repeats. */
static void streams_body(iq_rank_t *rank)
{
    isgq_quantizer_t quantizer = iq_quantizer(rank, "uniform:bits=2,bucket=tensor");
    float in[COUNT], out[COUNT];
    for (size_t i = 0; i < COUNT; i++)
        in[i] = i == 0 ? 1.0f : 0.5f;
    for (int call = 0; call < 8; call++) {
        int differing = 0;
        RANK_OK(rank, isgq_allreduce(in, out, COUNT, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, NULL));
        RANK_OK(rank, isgq_comm_synchronize(rank->comm));
        for (size_t i = 1; i < COUNT; i++)
            differing += out[i] != 0.0f && out[i] != (float)rank->nranks;
        RANK_CHECK(rank, differing > COUNT / 4, "ranks round alike: %d of %d sums are mixed", differing, COUNT);
        rank->values[call] = isgqx_hash(out, sizeof(out));
        for (int other = 0; other < call; other++)
            RANK_CHECK(rank, rank->values[other] != rank->values[call], "calls %d and %d rounded alike", other, call);
    }
    isgq_quantizer_destroy(quantizer);
}

START_TEST(calls_and_ranks_round_apart)
{
    iq_ranks_t ranks = {.nranks = 2, .body = streams_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* Every rank in another rounding mode: same bits, and the mode is the caller's again afterwards. */
static void rounding_body(iq_rank_t *rank)
{
    static const int modes[] = {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
    int mode = rank->argument != NULL ? modes[rank->rank % 3] : FE_TONEAREST;
    fesetround(mode);
    float *in = malloc(COUNT * sizeof(*in)), *out = malloc((size_t)rank->nranks * COUNT * sizeof(*out));
    for (size_t i = 0; i < COUNT; i++) /* exact in any mode */
        in[i] = iq_mix_unit(5, (uint64_t)rank->rank, i);
    for (size_t s = 0; s < STEPS; s++)
        rank->values[s] = run_step(rank, &steps[s], in, out);
    RANK_CHECK(rank, fegetround() == mode, "the caller's rounding mode was lost");
    fesetround(FE_TONEAREST);
    free(in);
    free(out);
}

START_TEST(callers_rounding_mode)
{
    iq_ranks_t ranks = {.nranks = 3, .body = rounding_body};
    iq_ranks_run(&ranks, &first);
    ranks.argument = &ranks;
    iq_ranks_run(&ranks, &second);
    check_same(&second, &first, 3, "rounding modes");
}
END_TEST

/*
 * The shape of a communicator's past does not matter, only the number of calls: other shapes in between, same call number,
 * same bits.
 */
static void history_body(iq_rank_t *rank)
{
    const size_t *before = rank->argument;
    isgq_quantizer_t quantizer = iq_quantizer(rank, "uniform:bits=3");
    float *out = malloc(20011 * sizeof(*out));
    iq_allreduce_samples(rank, quantizer, ISGQ_FLOAT32, ISGQ_SUM, 1, *before, NULL, out);
    iq_allreduce_samples(rank, quantizer, ISGQ_FLOAT32, ISGQ_SUM, 2, COUNT, NULL, out);
    rank->values[0] = isgqx_hash(out, COUNT * sizeof(*out));
    free(out);
    isgq_quantizer_destroy(quantizer);
}

START_TEST(only_the_call_number_counts)
{
    size_t before = 3;
    iq_ranks_t ranks = {.nranks = 3, .body = history_body, .argument = &before};
    iq_ranks_run(&ranks, &first);
    before = 20011;
    iq_ranks_run(&ranks, &second);
    ck_assert_msg(first.of[0][0] == second.of[0][0], "an earlier call's size changed the bits");
}
END_TEST

/*
 * Where a communicator comes from keys its numbers: the first calls of a parent, of its children and of theirs round apart,
 * and all of that again gives the same bits. Communicators that were joined by themselves round alike if their seeds are equal.
 */
enum { PARENT, FIRST_SPLIT, SECOND_SPLIT, GRANDCHILD, OWN_SEED, RELATIVES };

/* Every rank of every communicator has the same data, so only the random numbers tell results apart. */
static uint64_t first_call(iq_rank_t *rank, isgq_comm_t comm, isgq_quantizer_t quantizer)
{
    float in[COUNT], out[COUNT];
    for (size_t i = 0; i < COUNT; i++)
        in[i] = iq_mix_unit(9, 0, i);
    RANK_OK(rank, isgq_allreduce(in, out, COUNT, ISGQ_FLOAT32, ISGQ_SUM, quantizer, comm, NULL, NULL));
    RANK_OK(rank, isgq_comm_synchronize(comm));
    return isgqx_hash(out, sizeof(out));
}

static void lineage_body(iq_rank_t *rank)
{
    isgq_comm_t comms[RELATIVES] = {[PARENT] = rank->comm};
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    isgq_quantizer_t quantizer = iq_quantizer(rank, "uniform:bits=2,bucket=tensor");
    int half = rank->rank / 2, place = rank->rank;
    config.seed = 43;
    RANK_OK(rank, isgq_comm_split(rank->comm, 0, place, &comms[FIRST_SPLIT], NULL));
    RANK_OK(rank, isgq_comm_split(rank->comm, 0, place, &comms[SECOND_SPLIT], NULL));
    RANK_OK(rank, isgq_comm_split(comms[FIRST_SPLIT], half, place, &comms[GRANDCHILD], NULL));
    RANK_OK(rank, isgq_comm_split(comms[SECOND_SPLIT], half, place, &comms[OWN_SEED], &config));
    for (int c = 0; c < RELATIVES; c++) {
        rank->values[c] = first_call(rank, comms[c], quantizer);
        for (int other = 0; other < c; other++)
            RANK_CHECK(rank, rank->values[other] != rank->values[c], "communicators %d and %d rounded alike", other, c);
    }
    for (int c = FIRST_SPLIT; c < RELATIVES; c++) {
        RANK_OK(rank, isgq_comm_finalize(comms[c]));
        RANK_OK(rank, isgq_comm_destroy(comms[c]));
    }
    isgq_quantizer_destroy(quantizer);
}

START_TEST(relatives_round_apart)
{
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    iq_ranks_t ranks = {.kind = IQ_RANKS_PROCESSES, .nranks = 4, .body = lineage_body, .config = &config};
    config.seed = 42;
    iq_ranks_run(&ranks, &first);
    ranks.kind = IQ_RANKS_THREADS;
    iq_ranks_run(&ranks, &second);
    for (int r = 0; r < 4; r++) {
        for (int c = 0; c < RELATIVES; c++) {
            bool due_alike = c < GRANDCHILD || r / 2 == 0; /* below, the other half has another color */
            ck_assert_msg(second.of[r][c] == first.of[r][c], "rank %d: communicator %d has other bits the second time", r, c);
            ck_assert_msg((first.of[r][c] == first.of[0][c]) == due_alike, "rank %d, communicator %d: colors", r, c);
        }
    }
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("determinism");
    iq_add_case(suite, tcase_create("transports"), any_transport, 1);
    iq_add_case(suite, tcase_create("seed"), again_and_another_seed, 3);
    iq_add_case(suite, tcase_create("streams"), calls_and_ranks_round_apart, 1);
    iq_add_case(suite, tcase_create("rounding_mode"), callers_rounding_mode, 1);
    iq_add_case(suite, tcase_create("history"), only_the_call_number_counts, 1);
    iq_add_case(suite, tcase_create("lineage"), relatives_round_apart, 1);
    return suite;
}
