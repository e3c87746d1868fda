/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Quantized collectives: the same bits on every rank, errors within what the grid allows, exact integer sums on any algorithm.
 *
 * Invariants 1, 2, 5, 6 and 10 of the design for dense quantizers.
 */
#include "support/cases.h"
#include "support/check_main.h"
#include "support/samples.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static isgq_comm_config_t small_chunks(void)
{
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    config.chunk_bytes = 4096;
    return config;
}

/* Unit roundoff of a type. */
static double roundoff(isgq_data_type_t type) { return type == ISGQ_FLOAT32 ? 0x1p-24 : type == ISGQ_FLOAT16 ? 0x1p-11 : 0x1p-8; }

static const isgq_data_type_t float_types[] = {ISGQ_FLOAT32, ISGQ_FLOAT16, ISGQ_BFLOAT16};

/* ---- casts ---- */

/* Each rank's value and the sum are rounded once to `wire`; sums are f32; the output is rounded to its type. */
static void check_cast(iq_rank_t *rank, const char *text, isgq_data_type_t wire, isgq_data_type_t type, isgq_red_op_t op,
                       size_t count)
{
    isgq_quantizer_t quantizer = iq_quantizer(rank, text);
    void *out = malloc(count * 8 + 1);
    iq_allreduce_samples(rank, quantizer, type, op, count, count, count % 2 ? "ring" : NULL, out);
    for (size_t i = 0; i < count; i++) {
        double due = iq_samples_sum(type, op, count, rank->nranks, i), size = 0;
        for (int r = 0; r < rank->nranks; r++)
            size += fabs(iq_sample(type, count, r, i));
        if (op == ISGQ_AVG)
            size /= rank->nranks;
        double allowed = 1.01 * size * (2 * roundoff(wire) + roundoff(type) + 10 * 0x1p-24) + 3 * rank->nranks * 0x1p-25;
        double found = iq_numbers_get(type, out, i);
        RANK_CHECK(rank, fabs(found - due) <= allowed, "%s %s: element %zu is %.9g, not %.9g within %.3g", text,
                   iq_types[type].name, i, found, due, allowed);
    }
    iq_rank_agree(rank, isgqx_hash(out, count * iq_types[type].bytes), text);
    free(out);
    isgq_quantizer_destroy(quantizer);
}

static void cast_body(iq_rank_t *rank)
{
    static const size_t counts[] = {0, 1, 2, 31, 1000, 4099};
    for (size_t c = 0; c < 6; c++) {
        for (size_t t = 0; t < 3; t++) {
            check_cast(rank, "fp16", ISGQ_FLOAT16, float_types[t], c % 2 ? ISGQ_SUM : ISGQ_AVG, counts[c]);
            check_cast(rank, "bf16", ISGQ_BFLOAT16, float_types[t], c % 2 ? ISGQ_AVG : ISGQ_SUM, counts[c]);
        }
    }
}

START_TEST(casts_round_once)
{
    isgq_comm_config_t config = small_chunks();
    iq_ranks_t ranks = {.nranks = iq_test_nranks(_i), .body = cast_body, .config = &config};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- the uniform grid ---- */

typedef struct grid {
    unsigned bits;
    bool stochastic, shared, exact;
    size_t bucket; /* 0: the tensor */
} grid_t;

static void grid_text(const grid_t *grid, char *text, size_t bytes)
{
    char bucket[24] = "tensor";
    if (grid->bucket != 0)
        snprintf(bucket, sizeof(bucket), "%zu", grid->bucket);
    snprintf(text, bytes, "uniform:bits=%u,rounding=%s,scale=%s,bucket=%s%s", grid->bits,
             grid->stochastic ? "stochastic" : "nearest", grid->shared ? "shared" : "local", bucket,
             !grid->shared ? ""
             : grid->exact ? ",sum=exact"
                           : ",sum=requantized");
}

/* Largest error of one rounding, as a part of the largest value: codes lie 2 / top apart. */
static double rounding_error(const grid_t *grid)
{
    double step = grid->bits == 1 ? 2.0 : 2.0 / ((1 << grid->bits) - 2);
    return grid->stochastic ? step : step / 2;
}

/* Every rank rounds once, then maybe the owner rounds the sum; a bucket's largest value bounds its step. */
static double allowed_error(const grid_t *grid, isgq_data_type_t type, isgq_red_op_t op, int nranks, double most,
                            bool whole_sum_rounded)
{
    double once = nranks * most * rounding_error(grid);
    double sum_most = nranks * most + once;
    double twice = whole_sum_rounded ? sum_most * rounding_error(grid) : 0.0;
    double error = (once + twice + sum_most * (roundoff(type) + 32 * 0x1p-24)) * 1.0001 + 0x1p-24;
    return op == ISGQ_AVG ? error / nranks : error;
}

static void check_bucket(iq_rank_t *rank, const grid_t *grid, const char *text, isgq_data_type_t type, isgq_red_op_t op,
                         uint64_t salt, size_t first, size_t count, const void *out)
{
    double most = iq_samples_max(type, salt, rank->nranks, first, count);
    bool again = !(grid->shared && grid->exact);
    double allowed = allowed_error(grid, type, op, rank->nranks, most, again);
    for (size_t i = first; i < first + count; i++) {
        double due = iq_samples_sum(type, op, salt, rank->nranks, i), found = iq_numbers_get(type, out, i);
        RANK_CHECK(rank, fabs(found - due) <= allowed, "%s %s: element %zu is %.9g, not %.9g within %.3g", text,
                   iq_types[type].name, i, found, due, allowed);
    }
}

static void check_grid(iq_rank_t *rank, const grid_t *grid, isgq_data_type_t type, isgq_red_op_t op, size_t count,
                       const char *algorithm)
{
    char text[128];
    size_t bucket = grid->bucket == 0 ? count + 1 : grid->bucket;
    uint64_t salt = count + grid->bits;
    void *out = malloc(count * 8 + 1);
    grid_text(grid, text, sizeof(text));
    isgq_quantizer_t quantizer = iq_quantizer(rank, text);
    iq_allreduce_samples(rank, quantizer, type, op, salt, count, algorithm, out);
    for (size_t first = 0; first < count && rank->rank == 0; first += bucket)
        check_bucket(rank, grid, text, type, op, salt, first, count - first < bucket ? count - first : bucket, out);
    iq_rank_agree(rank, isgqx_hash(out, count * iq_types[type].bytes), text);
    free(out);
    isgq_quantizer_destroy(quantizer);
}

/* All settings; type, reduction, bucket, count and algorithm take turns. */
static void grid_body(iq_rank_t *rank)
{
    static const size_t buckets[] = {1024, 32, 0, 256, 40};
    static const size_t counts[] = {1, 33, 1000, 4099, 2, 0, 71, 31};
    static const char *const algorithms[] = {NULL, "ring", "direct", "exchange"};
    unsigned turn = (unsigned)rank->nranks;
    for (unsigned bits = 1; bits <= 8; bits++) {
        for (unsigned settings = 0; settings < 16; settings++, turn++) {
            grid_t grid = {.bits = bits,
                           .stochastic = settings & 1,
                           .shared = settings & 2,
                           .exact = settings & 4,
                           .bucket = buckets[turn % 5]};
            if (grid.exact && !grid.shared)
                continue;
            check_grid(rank, &grid, float_types[turn % 3], settings & 8 ? ISGQ_SUM : ISGQ_AVG, counts[turn / 2 % 8],
                       algorithms[turn / 3 % 4]);
        }
    }
}

START_TEST(errors_stay_within_the_grid)
{
    isgq_comm_config_t config = small_chunks();
    iq_ranks_t ranks = {.nranks = iq_test_nranks(_i), .body = grid_body, .config = &config};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- one answer: the integer sum on any algorithm and chunking ---- */

static void exact_body(iq_rank_t *rank)
{
    static const char *const algorithms[] = {"direct", "exchange", "ring", NULL};
    static const size_t counts[] = {1, 7, 1000, 4099, 20011};
    const char *text = rank->argument;
    isgq_quantizer_t quantizer = iq_quantizer(rank, text);
    float *out = malloc(counts[4] * sizeof(*out));
    for (size_t c = 0; c < 5; c++) {
        for (size_t a = 0; a < 4; a++) {
            uint64_t hash;
            iq_allreduce_samples(rank, quantizer, ISGQ_FLOAT32, ISGQ_SUM, c, counts[c], algorithms[a], out);
            hash = isgqx_hash(out, counts[c] * sizeof(*out));
            iq_rank_agree(rank, hash, text);
            rank->values[4 * c + a] = hash;
        }
    }
    free(out);
    isgq_quantizer_destroy(quantizer);
}

/* Nearest rounding: no random numbers, so calls may be compared with each other. */
static void check_one_answer(const char *text, int nranks)
{
    static iq_ranks_values_t coarse, fine;
    isgq_comm_config_t config = small_chunks();
    iq_ranks_t ranks = {.nranks = nranks, .body = exact_body, .argument = (void *)(uintptr_t)text, .config = &config};
    iq_ranks_run(&ranks, &coarse);
    config.chunk_bytes = 16384;
    iq_ranks_run(&ranks, &fine);
    for (int i = 0; i < 20; i++) {
        ck_assert_msg(coarse.of[0][i] == coarse.of[0][i / 4 * 4],
                      "%s, %d ranks: algorithm %d, count %d gives other bits than direct", text, nranks, i % 4, i / 4);
        ck_assert_msg(coarse.of[0][i] == fine.of[0][i], "%s, %d ranks: algorithm %d, count %d: chunks change the bits", text,
                      nranks, i % 4, i / 4);
    }
}

START_TEST(exact_sums_have_one_answer)
{
    check_one_answer("uniform:bits=4,rounding=nearest,scale=shared,bucket=1024,sum=exact", iq_test_nranks(_i));
    check_one_answer("uniform:bits=8,rounding=nearest,scale=shared,bucket=64,sum=exact", iq_test_nranks(_i));
    check_one_answer("uniform:bits=1,rounding=nearest,scale=shared,bucket=tensor,sum=exact", iq_test_nranks(_i));
}
END_TEST

/* Stochastic: the same call number on communicators of the same seed. */
static void exact_stochastic_body(iq_rank_t *rank)
{
    const char *algorithm = rank->argument;
    isgq_quantizer_t quantizer = iq_quantizer(rank, "uniform:bits=3,scale=shared,sum=exact");
    float *out = malloc(5003 * sizeof(*out));
    for (int i = 0; i < 3; i++) {
        iq_allreduce_samples(rank, quantizer, ISGQ_FLOAT32, ISGQ_AVG, 5, 5003, algorithm, out);
        rank->values[i] = isgqx_hash(out, 5003 * sizeof(*out));
        iq_rank_agree(rank, rank->values[i], algorithm);
    }
    free(out);
    isgq_quantizer_destroy(quantizer);
}

START_TEST(stochastic_sums_have_one_answer)
{
    static const char *const algorithms[] = {"direct", "exchange", "ring"};
    static iq_ranks_values_t values[3];
    isgq_comm_config_t config = small_chunks();
    for (int a = 0; a < 3; a++) {
        iq_ranks_t ranks = {.nranks = iq_test_nranks(_i),
                            .body = exact_stochastic_body,
                            .argument = (void *)(uintptr_t)algorithms[a],
                            .config = &config};
        iq_ranks_run(&ranks, &values[a]);
        ck_assert_msg(memcmp(values[a].of[0], values[0].of[0], 3 * sizeof(uint64_t)) == 0, "%s differs from direct",
                      algorithms[a]);
        ck_assert_msg(values[a].of[0][0] != values[a].of[0][1], "two calls rounded alike");
    }
}
END_TEST

/* ---- what is never quantized, what is refused ---- */

static void fallback_body(iq_rank_t *rank)
{
    static const char *const texts[] = {"fp16", "bf16", "uniform:bits=4", "isgq:bits=4"};
    isgq_stats_t stats = {.size = sizeof(stats)};
    uint64_t calls = 0;
    for (int type = 0; type < IQ_TYPE_COUNT; type++) {
        for (int q = 0; q < 4 && type != ISGQ_FLOAT32 && type != ISGQ_FLOAT16 && type != ISGQ_BFLOAT16; q++) {
            isgq_quantizer_t quantizer = iq_quantizer(rank, texts[q]);
            uint64_t in[301], out[301], due[301];
            size_t bytes = 301 * iq_types[type].bytes;
            iq_numbers_fill((isgq_data_type_t)type, ISGQ_SUM, 9, rank->rank, 0, 301, in);
            iq_numbers_reduce((isgq_data_type_t)type, ISGQ_SUM, 9, rank->nranks, 0, 301, due);
            RANK_OK(rank, isgq_allreduce(in, out, 301, (isgq_data_type_t)type, ISGQ_SUM, quantizer, rank->comm, NULL, NULL));
            RANK_OK(rank, isgq_comm_synchronize(rank->comm));
            RANK_CHECK(rank, memcmp(out, due, bytes) == 0, "%s of %s is not exact", texts[q], iq_types[type].name);
            calls++;
            isgq_quantizer_destroy(quantizer);
        }
    }
    RANK_OK(rank, isgq_comm_get_stats(rank->comm, &stats));
    RANK_CHECK(rank, stats.fallback_calls == calls, "%d fallback calls counted, %d made", (int)stats.fallback_calls, (int)calls);
}

START_TEST(integers_and_doubles_stay_exact)
{
    iq_ranks_t ranks = {.nranks = 1 + _i, .body = fallback_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* Refused on every rank before anything is sent; the communicator goes on. */
static void refusal_body(iq_rank_t *rank)
{
    static const char *const texts[] = {"fp16", "bf16", "uniform:bits=4", "uniform:bits=8,scale=local", "isgq:bits=4"};
    float in[64] = {0}, out[64];
    for (int q = 0; q < 5; q++) {
        isgq_quantizer_t quantizer = iq_quantizer(rank, texts[q]);
        for (int op = ISGQ_PROD; op <= ISGQ_MIN; op++)
            for (int t = 0; t < 3; t++)
                RANK_STATUS(rank,
                            isgq_allreduce(in, out, 16, float_types[t], (isgq_red_op_t)op, quantizer, rank->comm, NULL, NULL),
                            ISGQ_ERR_UNSUPPORTED);
        isgq_quantizer_destroy(quantizer);
    }
    isgq_quantizer_t factors = iq_quantizer(rank, "factor:width=4/4");
    RANK_STATUS(rank, isgq_allreduce(in, out, 16, ISGQ_FLOAT32, ISGQ_SUM, factors, rank->comm, NULL, NULL), ISGQ_ERR_UNSUPPORTED);
    isgq_quantizer_destroy(factors);
    RANK_OK(rank, isgq_barrier(rank->comm, NULL));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
}

START_TEST(unsupported_reductions_are_refused)
{
    iq_ranks_t ranks = {.nranks = 1 + _i, .body = refusal_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- NaN and Inf ---- */

static void special_body(iq_rank_t *rank)
{
    static const char *const texts[] = {"fp16",
                                        "bf16",
                                        "uniform:bits=4,bucket=64",
                                        "uniform:bits=1,scale=local,bucket=64",
                                        "uniform:bits=8,sum=requantized,bucket=64",
                                        "isgq:bits=4"};
    enum { COUNT = 4001 };
    double storage[COUNT];
    for (int q = 0; q < 6; q++) {
        isgq_quantizer_t quantizer = iq_quantizer(rank, texts[q]);
        for (int t = 0; t < 3; t++) {
            isgq_data_type_t type = float_types[t];
            double bad = t == 1 ? (double)INFINITY : (double)NAN;
            iq_samples_fill(type, 2, rank->rank, 0, COUNT, storage);
            if (rank->rank == (q + t) % rank->nranks)
                iq_numbers_set(type, storage, 1234, bad);
            RANK_OK(rank, isgq_allreduce(storage, storage, COUNT, type, ISGQ_SUM, quantizer, rank->comm, NULL, NULL));
            RANK_OK(rank, isgq_comm_synchronize(rank->comm));
            RANK_CHECK(rank, !isfinite(iq_numbers_get(type, storage, 1234)), "%s %s: %g is lost", texts[q], iq_types[type].name,
                       bad);
            RANK_CHECK(rank, q == 5 || isfinite(iq_numbers_get(type, storage, 0)), "%s %s: the first bucket suffers", texts[q],
                       iq_types[type].name);
            iq_rank_agree(rank, isgqx_hash(storage, COUNT * iq_types[type].bytes), texts[q]);
        }
        isgq_quantizer_destroy(quantizer);
    }
}

START_TEST(nan_and_inf_show)
{
    iq_ranks_t ranks = {.nranks = 1 + 2 * _i, .body = special_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- the other collectives ---- */

/* A rank's own part is quantized too: all ranks hold the same bits, close to the input. */
static void check_allgather(iq_rank_t *rank, const char *text, size_t part, double allowed)
{
    isgq_quantizer_t quantizer = iq_quantizer(rank, text);
    size_t n = (size_t)rank->nranks;
    float *in = malloc((part + 1) * sizeof(*in)), *out = malloc((n * part + 1) * sizeof(*out));
    iq_samples_fill(ISGQ_FLOAT32, 6, rank->rank, 0, part, in);
    RANK_OK(rank, isgq_allgather(in, out, part, ISGQ_FLOAT32, quantizer, rank->comm, NULL, NULL));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    for (size_t i = 0; i < n * part; i++) {
        double due = iq_sample(ISGQ_FLOAT32, 6, (int)(i / part), i % part);
        RANK_CHECK(rank, fabs((double)out[i] - due) <= allowed, "%s: allgathered element %zu is %g, not %g", text, i,
                   (double)out[i], due);
    }
    iq_rank_agree(rank, isgqx_hash(out, n * part * sizeof(*out)), text);
    free(in);
    free(out);
    isgq_quantizer_destroy(quantizer);
}

/* What reduce_scatter leaves on the ranks is what allreduce gives, up to the second rounding that it does not need. */
static void check_reduce_scatter(iq_rank_t *rank, const char *text, size_t part, double allowed)
{
    isgq_quantizer_t quantizer = iq_quantizer(rank, text);
    size_t n = (size_t)rank->nranks, first = (size_t)rank->rank * part;
    float *in = malloc((n * part + 1) * sizeof(*in)), *out = malloc((part + 1) * sizeof(*out));
    iq_samples_fill(ISGQ_FLOAT32, 6, rank->rank, 0, n * part, in);
    RANK_OK(rank, isgq_reduce_scatter(in, out, part, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, NULL));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    for (size_t i = 0; i < part; i++) {
        double due = iq_samples_sum(ISGQ_FLOAT32, ISGQ_SUM, 6, rank->nranks, first + i);
        RANK_CHECK(rank, fabs((double)out[i] - due) <= allowed * rank->nranks, "%s: reduce_scattered element %zu is %g, not %g",
                   text, i, (double)out[i], due);
    }
    free(in);
    free(out);
    isgq_quantizer_destroy(quantizer);
}

static void others_body(iq_rank_t *rank)
{
    static const struct {
        const char *text;
        double allowed; /* error of one rank's value; samples are below 2 */
    } rows[] = {{"fp16", 0.002},
                {"bf16", 0.02},
                {"uniform:bits=8,bucket=256", 4.0 / 254 * 1.01},
                {"uniform:bits=4,scale=local", 4.0 / 14 * 1.01},
                {"uniform:bits=6,rounding=nearest", 2.0 / 62 * 1.01},
                {"isgq:bits=6", 1.0}};
    static const size_t parts[] = {0, 1, 33, 1000, 3001};
    for (size_t q = 0; q < 6; q++) {
        for (size_t p = 0; p < 5; p++) {
            check_allgather(rank, rows[q].text, parts[p], rows[q].allowed);
            check_reduce_scatter(rank, rows[q].text, parts[p], 2.2 * rows[q].allowed);
        }
    }
}

START_TEST(allgather_and_reduce_scatter)
{
    isgq_comm_config_t config = small_chunks();
    iq_ranks_t ranks = {.nranks = iq_test_nranks(_i), .body = others_body, .config = &config};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/*
 * Broadcasts are never quantized, whatever the communicator's default. The default quantizer may be destroyed once the
 * communicator is made.
 */
static void default_body(iq_rank_t *rank)
{
    isgq_comm_config_t config = small_chunks();
    isgqx_call_record_t record = {.size = sizeof(record)};
    float in[1000], out[1000];
    config.quantizer = iq_quantizer(rank, "uniform:bits=2,rounding=nearest");
    RANK_OK(rank, isgq_comm_init_rank(&rank->comm, rank->nranks, iq_rank_id(rank), rank->rank, &config));
    isgq_quantizer_destroy(config.quantizer);
    iq_samples_fill(ISGQ_FLOAT32, 1, 0, 0, 1000, in);
    RANK_OK(rank, isgq_broadcast(in, out, 1000, ISGQ_FLOAT32, 0, rank->comm, NULL));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    RANK_CHECK(rank, memcmp(in, out, sizeof(in)) == 0, "a broadcast was quantized");
    RANK_OK(rank, isgq_allreduce(in, out, 1000, ISGQ_FLOAT32, ISGQ_AVG, NULL, rank->comm, NULL, NULL));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    RANK_CHECK(rank, memcmp(in, out, sizeof(in)) != 0, "the default quantizer was not used");
    RANK_OK(rank, isgqx_last_call(rank->comm, &record));
    RANK_CHECK(rank, rank->nranks == 1 || record.wire_bytes < 4000, "%d bytes for 1000 values of 2 bits", (int)record.wire_bytes);
}

START_TEST(default_quantizer)
{
    iq_ranks_t ranks = {.nranks = 1 + _i, .body = default_body, .apart = true};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("quantized");
    iq_add_case(suite, tcase_create("casts"), casts_round_once, IQ_RANK_COUNTS);
    iq_add_case(suite, tcase_create("uniform"), errors_stay_within_the_grid, IQ_RANK_COUNTS);
    TCase *one_answer = iq_add_case(suite, tcase_create("one_answer"), exact_sums_have_one_answer, IQ_RANK_COUNTS);
    tcase_add_loop_test(one_answer, stochastic_sums_have_one_answer, 0, IQ_RANK_COUNTS);
    iq_add_case(suite, tcase_create("fallback"), integers_and_doubles_stay_exact, 3);
    iq_add_case(suite, tcase_create("refused"), unsupported_reductions_are_refused, 3);
    iq_add_case(suite, tcase_create("nan"), nan_and_inf_show, 4);
    iq_add_case(suite, tcase_create("other_collectives"), allgather_and_reduce_scatter, IQ_RANK_COUNTS);
    iq_add_case(suite, tcase_create("default"), default_quantizer, 3);
    return suite;
}
