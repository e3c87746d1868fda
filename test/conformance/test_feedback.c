/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Error feedback: nothing is lost between the inputs of many calls and their results.
 *
 * What is not delivered yet is in the ranks' residuals. Calls of zeros with fine codes flush them, and then the sum of all results
 * is the sum of all inputs: for every codec with feedback, algorithm, type, reduction and number of ranks.
 */
#include "support/cases.h"
#include "support/check_main.h"
#include "support/samples.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define COUNT 2600 /* of 4096-byte chunks: several for every block, none of them whole buckets */
#define CALLS 24
#define FLUSHES 5

static const isgq_comm_config_t *small_chunks(void)
{
    static isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    config.chunk_bytes = 4096;
    config.timeout_ms = 20000;
    return &config;
}

/* ---- one kind of call, as often as wanted ---- */

typedef struct repeated {
    const char *quantizer, *algorithm;
    isgq_data_type_t type;
    isgq_red_op_t op;
    bool scatter, in_place;
} repeated_t;

/* One rank's side of it: what was delivered and what should have been, of all elements or (scatter) its own part. */
typedef struct tally {
    isgq_tensor_t tensor;
    size_t count, first, own; /* of the tensor; where results begin; how many */
    double delivered[COUNT], due[COUNT];
    float out[COUNT];
    unsigned char in[4 * COUNT], raw[4 * COUNT];
} tally_t;

static tally_t *start(iq_rank_t *rank, const repeated_t *how)
{
    tally_t *tally = calloc(1, sizeof(*tally));
    size_t part = COUNT / (size_t)rank->nranks;
    tally->count = how->scatter ? part * (size_t)rank->nranks : COUNT;
    tally->own = how->scatter ? part : COUNT;
    tally->first = how->scatter ? part * (size_t)rank->rank : 0;
    RANK_OK(rank, isgq_tensor_create(&tally->tensor, "w", tally->count));
    return tally;
}

static void end(tally_t *tally)
{
    isgq_tensor_destroy(tally->tensor);
    free(tally);
}

/* tally->in is the input; the result is in tally->out. */
static void call_once(iq_rank_t *rank, const repeated_t *how, isgq_quantizer_t quantizer, tally_t *tally)
{
    isgq_call_options_t options = {.size = sizeof(options), .tensor = tally->tensor, .algorithm = how->algorithm};
    void *out = how->in_place ? tally->in + tally->first * iq_types[how->type].bytes : tally->raw;
    if (how->scatter)
        RANK_OK(rank, isgq_reduce_scatter(tally->in, out, tally->own, how->type, how->op, quantizer, rank->comm, NULL, &options));
    else
        RANK_OK(rank, isgq_allreduce(tally->in, out, tally->count, how->type, how->op, quantizer, rank->comm, NULL, &options));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    for (size_t i = 0; i < tally->own; i++)
        tally->out[i] = (float)iq_numbers_get(how->type, out, i);
}

static void add_result(tally_t *tally)
{
    for (size_t i = 0; i < tally->own; i++)
        tally->delivered[i] += (double)tally->out[i];
}

static void call_of_samples(iq_rank_t *rank, const repeated_t *how, isgq_quantizer_t quantizer, tally_t *tally, uint64_t salt)
{
    iq_samples_fill(how->type, salt, rank->rank, 0, tally->count, tally->in);
    call_once(rank, how, quantizer, tally);
    add_result(tally);
    for (size_t i = 0; i < tally->own; i++)
        tally->due[i] += iq_samples_sum(how->type, how->op, salt, rank->nranks, tally->first + i);
}

/* Of the worst element, relative to the largest value that was due. */
static double worst(const tally_t *tally)
{
    double most = 0.0, error = 0.0;
    for (size_t i = 0; i < tally->own; i++) {
        most = fmax(most, fabs(tally->due[i]));
        error = fmax(error, fabs(tally->delivered[i] - tally->due[i]));
    }
    return error / most;
}

/* ---- nothing is lost ---- */

static const char *const kept[] = {
    "uniform:bits=1,rounding=nearest,scale=local,bucket=256,feedback=full",
    "uniform:bits=2,rounding=nearest,sum=exact,feedback=full",
    "uniform:bits=2,rounding=nearest,sum=requantized,bucket=tensor,feedback=full",
    "uniform:bits=2,rounding=stochastic,sum=requantized,bucket=64,feedback=weighted",
    "onebit:bucket=256",
    "ef-sign:bucket=2048",
    "bingrad-b:bucket=64,feedback=full",
    "qsgd:bits=3,norm=max,bucket=128,feedback=weighted",
};
#define KEPT (int)(sizeof(kept) / sizeof(kept[0]))

static void flush(iq_rank_t *rank, const repeated_t *how, tally_t *tally)
{
    isgq_quantizer_t fine = iq_quantizer(rank, "uniform:bits=8,rounding=nearest,scale=local,bucket=32,feedback=full");
    for (int i = 0; i < FLUSHES; i++) {
        memset(tally->in, 0, sizeof(tally->in));
        call_once(rank, how, fine, tally);
        add_result(tally);
    }
    isgq_quantizer_destroy(fine);
}

static void keeps_body(iq_rank_t *rank)
{
    const repeated_t *how = rank->argument;
    double roundoff = how->type == ISGQ_FLOAT32 ? 0x1p-24 : how->type == ISGQ_FLOAT16 ? 0x1p-11 : 0x1p-8;
    isgq_quantizer_t quantizer = iq_quantizer(rank, how->quantizer);
    tally_t *tally = start(rank, how);
    for (int k = 0; k < CALLS; k++)
        call_of_samples(rank, how, quantizer, tally, (uint64_t)k);
    double before = worst(tally);
    flush(rank, how, tally);
    double after = worst(tally), bound = roundoff * 8.0 * CALLS;
    RANK_CHECK(rank, before > 20.0 * 0x1p-24, "%s lost nothing in the first place", how->quantizer);
    RANK_CHECK(rank, after < bound, "%s, %s: %g of the sum is lost, at most %g may be (%g before the flush)", how->quantizer,
               how->algorithm != NULL ? how->algorithm : "auto", after, bound, before);
    end(tally);
    isgq_quantizer_destroy(quantizer);
}

static void run_kept(iq_ranks_kind_t kind, int nranks, repeated_t how)
{
    iq_ranks_t ranks = {.kind = kind, .nranks = nranks, .body = keeps_body, .argument = &how, .config = small_chunks()};
    iq_ranks_run(&ranks, NULL);
}

START_TEST(nothing_is_lost)
{
    for (int nranks = 1; nranks <= 5; nranks++)
        run_kept(IQ_RANKS_THREADS, nranks, (repeated_t){.quantizer = kept[_i], .type = ISGQ_FLOAT32, .op = nranks % 2 ? ISGQ_SUM : ISGQ_AVG});
}
END_TEST

START_TEST(nothing_is_lost_on_any_way)
{
    static const char *const algorithms[] = {"direct", "ring", "exchange"};
    for (int a = 0; a < 3; a++) {
        run_kept(IQ_RANKS_THREADS, 3,
                 (repeated_t){.quantizer = kept[_i], .algorithm = algorithms[a], .type = ISGQ_FLOAT32, .op = ISGQ_AVG, .in_place = a == 0});
        run_kept(IQ_RANKS_THREADS, 4,
                 (repeated_t){.quantizer = kept[_i], .algorithm = algorithms[a], .type = a == 0 ? ISGQ_FLOAT16 : ISGQ_BFLOAT16, .op = ISGQ_SUM, .in_place = a == 1});
    }
}
END_TEST

START_TEST(nothing_is_lost_in_parts)
{
    run_kept(IQ_RANKS_THREADS, 3, (repeated_t){.quantizer = kept[_i], .type = ISGQ_FLOAT32, .op = ISGQ_SUM, .scatter = true});
    run_kept(IQ_RANKS_THREADS, 4,
             (repeated_t){.quantizer = kept[_i], .algorithm = "ring", .type = ISGQ_FLOAT32, .op = ISGQ_AVG, .scatter = true, .in_place = true});
}
END_TEST

START_TEST(nothing_is_lost_between_processes)
{
    run_kept(IQ_RANKS_PROCESSES, 3, (repeated_t){.quantizer = kept[_i], .type = ISGQ_FLOAT32, .op = ISGQ_AVG});
}
END_TEST

/* ---- without a tensor the same codecs lose the same again and again ---- */

static void bounded_body(iq_rank_t *rank)
{
    const repeated_t *how = rank->argument;
    isgq_quantizer_t quantizer = iq_quantizer(rank, how->quantizer);
    tally_t *with = start(rank, how), *without = start(rank, how);
    isgq_tensor_destroy(without->tensor);
    without->tensor = NULL;
    double early = 0.0;
    iq_samples_fill(how->type, 5, rank->rank, 0, COUNT, with->in);
    memcpy(without->in, with->in, sizeof(with->in));
    for (int k = 1; k <= 160; k++) { /* one gradient again and again */
        call_once(rank, how, quantizer, with);
        call_once(rank, how, quantizer, without);
        add_result(with);
        add_result(without);
        for (size_t i = 0; i < COUNT && (k == 40 || k == 160); i++)
            with->due[i] = without->due[i] = k * iq_samples_sum(how->type, how->op, 5, rank->nranks, i);
        early = k == 40 ? worst(with) * k : early;
    }
    double late = worst(with) * 160.0, lost = worst(without) * 160.0;
    RANK_CHECK(rank, late < 2.0 * early && lost > 5.0 * late, "%s: off by %g gradients after 40 calls, %g after 160, %g without feedback",
               how->quantizer, early, late, lost);
    end(with);
    end(without);
    isgq_quantizer_destroy(quantizer);
}

/* Not one bit at the maximum: codes of 0 to 1 times it do not shrink what is left, and its residual grows. */
static const char *const contracting[] = {
    "uniform:bits=2,rounding=nearest,sum=exact,feedback=full",
    "uniform:bits=2,rounding=nearest,sum=requantized,bucket=tensor,feedback=full",
    "onebit:bucket=32",
    "ef-sign:bucket=32",
    "bingrad-b:bucket=32,feedback=full",
};
#define CONTRACTING (int)(sizeof(contracting) / sizeof(contracting[0]))

START_TEST(errors_stay_bounded)
{
    repeated_t how = {.quantizer = contracting[_i], .type = ISGQ_FLOAT32, .op = ISGQ_AVG};
    iq_ranks_t ranks = {.nranks = 3, .body = bounded_body, .argument = &how, .config = small_chunks()};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- the same bits in place, out of place and added to something ---- */

static void places_body(iq_rank_t *rank)
{
    const repeated_t apart = {.quantizer = rank->argument, .type = ISGQ_FLOAT32, .op = ISGQ_SUM};
    repeated_t in_place = apart;
    in_place.in_place = true;
    isgq_quantizer_t quantizer = iq_quantizer(rank, apart.quantizer);
    tally_t *a = start(rank, &apart), *b = start(rank, &in_place), *c = start(rank, &apart);
    isgq_call_options_t options = {.size = sizeof(options), .tensor = c->tensor, .accumulate = 1};
    for (int k = 0; k < 4; k++) {
        call_of_samples(rank, &apart, quantizer, a, (uint64_t)k);
        call_of_samples(rank, &in_place, quantizer, b, (uint64_t)k);
        iq_samples_fill(ISGQ_FLOAT32, (uint64_t)k, rank->rank, 0, COUNT, c->in);
        for (size_t i = 0; i < COUNT; i++)
            c->out[i] = 3.0f;
        RANK_OK(rank, isgq_allreduce(c->in, c->out, COUNT, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, &options));
        RANK_OK(rank, isgq_comm_synchronize(rank->comm));
        RANK_CHECK(rank, memcmp(a->out, b->out, sizeof(a->out)) == 0, "call %d: in place gives other bits", k);
        for (size_t i = 0; i < COUNT; i++)
            RANK_CHECK(rank, c->out[i] == 3.0f + a->out[i], "call %d, element %zu: %g is not 3 + %g", k, i, (double)c->out[i],
                       (double)a->out[i]);
    }
    end(a);
    end(b);
    end(c);
    isgq_quantizer_destroy(quantizer);
}

START_TEST(places)
{
    static const char *const nearest[] = {"uniform:bits=1,rounding=nearest,scale=local,bucket=256,feedback=full", "onebit:bucket=256"};
    iq_ranks_t ranks = {.nranks = 3, .body = places_body, .argument = (void *)(uintptr_t)nearest[_i], .config = small_chunks()};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- one call's NaN and Inf ---- */

static void nan_body(iq_rank_t *rank)
{
    const repeated_t *how = rank->argument;
    isgq_quantizer_t quantizer = iq_quantizer(rank, how->quantizer);
    tally_t *tally = start(rank, how);
    isgq_stats_t stats = {.size = sizeof(stats)};
    call_of_samples(rank, how, quantizer, tally, 1);
    iq_samples_fill(how->type, 2, rank->rank, 0, COUNT, tally->in);
    if (rank->rank == 0) {
        iq_numbers_set(how->type, tally->in, 700, NAN);
        iq_numbers_set(how->type, tally->in, 2000, INFINITY);
    }
    call_once(rank, how, quantizer, tally);
    RANK_CHECK(rank, !isfinite(tally->out[700]) && !isfinite(tally->out[2000]), "not finite, but %g and %g came out",
               (double)tally->out[700], (double)tally->out[2000]);
    RANK_OK(rank, isgq_comm_get_stats(rank->comm, &stats));
    RANK_CHECK(rank, (stats.lost_errors >= 2) == (rank->rank == 0 || how->scatter), "%llu errors are not finite",
               (unsigned long long)stats.lost_errors);
    memset(tally->delivered, 0, sizeof(tally->delivered));
    memset(tally->due, 0, sizeof(tally->due));
    call_of_samples(rank, how, quantizer, tally, 3);
    for (size_t i = 0; i < COUNT; i++)
        RANK_CHECK(rank, isfinite(tally->out[i]), "element %zu is %g a call later", i, (double)tally->out[i]);
    end(tally);
    isgq_quantizer_destroy(quantizer);
}

START_TEST(not_finite)
{
    static const char *const texts[] = {"uniform:bits=2,rounding=nearest,scale=local,bucket=256,feedback=full", "onebit:bucket=256"};
    repeated_t how = {.quantizer = texts[_i], .type = ISGQ_FLOAT32, .op = ISGQ_SUM};
    iq_ranks_t ranks = {.nranks = 3, .body = nan_body, .argument = &how, .config = small_chunks()};
    iq_ranks_run(&ranks, NULL);
    how.type = ISGQ_BFLOAT16;
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- groups, and calls that are not waited for ---- */

static void queued_body(iq_rank_t *rank)
{
    const repeated_t how = {.quantizer = rank->argument, .type = ISGQ_FLOAT32, .op = ISGQ_SUM};
    isgq_quantizer_t quantizer = iq_quantizer(rank, how.quantizer);
    tally_t *one = start(rank, &how), *many = start(rank, &how);
    float(*in)[COUNT] = calloc(8, sizeof(*in)), (*out)[COUNT] = calloc(8, sizeof(*out));
    isgq_call_options_t options = {.size = sizeof(options), .tensor = many->tensor};
    for (uint64_t k = 0; k < 8; k++)
        iq_samples_fill(ISGQ_FLOAT32, k, rank->rank, 0, COUNT, in[k]);
    for (int k = 0; k < 8; k++) {
        if (k == 4)
            RANK_OK(rank, isgq_group_start());
        RANK_OK(rank, isgq_allreduce(in[k], out[k], COUNT, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, &options));
    }
    isgq_tensor_destroy(many->tensor); /* held by what is under way */
    many->tensor = NULL;
    RANK_OK(rank, isgq_group_end());
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    for (int k = 0; k < 8; k++) {
        call_of_samples(rank, &how, quantizer, one, (uint64_t)k);
        RANK_CHECK(rank, memcmp(one->out, out[k], sizeof(one->out)) == 0, "call %d has other bits when nobody waits for it", k);
    }
    free(in);
    free(out);
    end(one);
    end(many);
    isgq_quantizer_destroy(quantizer);
}

START_TEST(queued)
{
    iq_ranks_t ranks = {.nranks = 3, .body = queued_body, .argument = (void *)(uintptr_t) "onebit:bucket=256", .config = small_chunks()};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("feedback");
    iq_add_case(suite, tcase_create("processes"), nothing_is_lost_between_processes, KEPT);
    iq_add_case(suite, tcase_create("lossless"), nothing_is_lost, KEPT);
    iq_add_case(suite, tcase_create("algorithms"), nothing_is_lost_on_any_way, KEPT);
    iq_add_case(suite, tcase_create("scatter"), nothing_is_lost_in_parts, KEPT);
    iq_add_case(suite, tcase_create("bounded"), errors_stay_bounded, CONTRACTING);
    iq_add_case(suite, tcase_create("places"), places, 2);
    iq_add_case(suite, tcase_create("nan"), not_finite, 2);
    iq_add_case(suite, tcase_create("queued"), queued, 1);
    return suite;
}
