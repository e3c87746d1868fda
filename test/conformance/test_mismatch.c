/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranks that disagree: ERR_MISMATCH on every rank, with both values in the text. Invariant 10 of the design.
 *
 * The odd one out is each rank in turn, so the rank in the middle of the control channel is wrong as well as right.
 */
#include "support/cases.h"
#include "support/check_main.h"
#include "support/samples.h"

#include <stdio.h>
#include <string.h>

#define NRANKS 3

/* ---- calls ---- */

/* A call with one argument that depends on `odd`, and the two values that the text must hold. */
typedef struct disagreement {
    const char *name;
    isgq_result_t (*call)(iq_rank_t *rank, bool odd);
    const char *common, *odd;
    int victim;
} disagreement_t;

static float space[4096 * NRANKS];

/* Threads share `space`, and garbage is allowed in a failed call; each rank has its own part. */
static float *own(iq_rank_t *rank) { return space + 4096 * rank->rank; }

static isgq_result_t call_count(iq_rank_t *rank, bool odd)
{
    return isgq_allreduce(own(rank), own(rank), odd ? 1001 : 1000, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL);
}

static isgq_result_t call_zero_count(iq_rank_t *rank, bool odd)
{
    return isgq_allreduce(own(rank), own(rank), odd ? 0 : 17, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL);
}

static isgq_result_t call_datatype(iq_rank_t *rank, bool odd)
{
    return isgq_allreduce(own(rank), own(rank), 100, odd ? ISGQ_INT32 : ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL);
}

static isgq_result_t call_op(iq_rank_t *rank, bool odd)
{
    return isgq_allreduce(own(rank), own(rank), 100, ISGQ_FLOAT32, odd ? ISGQ_MAX : ISGQ_SUM, NULL, rank->comm, NULL, NULL);
}

static isgq_result_t call_algorithm(iq_rank_t *rank, bool odd)
{
    isgq_call_options_t options = {.size = sizeof(options), .algorithm = odd ? "ring" : "direct"};
    return isgq_allreduce(own(rank), own(rank), 100, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, &options);
}

static isgq_result_t call_quantizer(iq_rank_t *rank, bool odd)
{
    isgq_quantizer_t quantizer = iq_quantizer(rank, odd ? "uniform:bits=5" : "uniform:bits=4");
    isgq_result_t result = isgq_allreduce(own(rank), own(rank), 100, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, NULL);
    isgq_quantizer_destroy(quantizer);
    return result;
}

static isgq_result_t call_root(iq_rank_t *rank, bool odd)
{
    return isgq_broadcast(own(rank), own(rank), 100, ISGQ_FLOAT32, odd ? 2 : 1, rank->comm, NULL);
}

static isgq_result_t call_part(iq_rank_t *rank, bool odd)
{
    return isgq_allgather(own(rank), own(rank) + 100, odd ? 20 : 21, ISGQ_FLOAT32, NULL, rank->comm, NULL, NULL);
}

static isgq_result_t call_scattered_op(iq_rank_t *rank, bool odd)
{
    return isgq_reduce_scatter(own(rank), own(rank) + 1000, 50, ISGQ_FLOAT32, odd ? ISGQ_AVG : ISGQ_PROD, NULL, rank->comm, NULL,
                               NULL);
}

static isgq_result_t call_kind(iq_rank_t *rank, bool odd)
{
    if (odd)
        return isgq_barrier(rank->comm, NULL);
    return isgq_allreduce(own(rank), own(rank), 100, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL);
}

static isgq_result_t call_gather_or_reduce(iq_rank_t *rank, bool odd)
{
    if (odd)
        return isgq_allgather(own(rank), own(rank) + 100, 30, ISGQ_FLOAT32, NULL, rank->comm, NULL, NULL);
    return isgq_reduce_scatter(own(rank), own(rank) + 100, 30, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL);
}

static isgq_result_t call_factors(iq_rank_t *rank, size_t m, size_t n, size_t max_batch, bool bias, const char *text)
{
    isgq_factors_t factors = {.size = sizeof(factors),
                              .x = own(rank),
                              .delta = own(rank) + 500,
                              .batch = 3,
                              .m = m,
                              .n = n,
                              .bias = bias ? own(rank) + 900 : NULL};
    isgq_quantizer_t quantizer = iq_quantizer(rank, text);
    isgq_result_t result =
        isgq_allreduce_factored(&factors, max_batch, own(rank) + 1000, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, NULL);
    isgq_quantizer_destroy(quantizer);
    return result;
}

static isgq_result_t call_m(iq_rank_t *rank, bool odd)
{
    return call_factors(rank, odd ? 23 : 24, 30, 3, false, "factor:width=4");
}
static isgq_result_t call_n(iq_rank_t *rank, bool odd)
{
    return call_factors(rank, 23, odd ? 31 : 37, 3, true, "factor:width=4");
}
static isgq_result_t call_max_batch(iq_rank_t *rank, bool odd)
{
    return call_factors(rank, 23, 30, odd ? 7 : 9, true, "factor:width=4");
}
static isgq_result_t call_bias(iq_rank_t *rank, bool odd) { return call_factors(rank, 23, 30, 3, odd, "factor:width=4"); }
static isgq_result_t call_width(iq_rank_t *rank, bool odd)
{
    return call_factors(rank, 23, 30, 3, false, odd ? "factor:width=4" : "factor:width=5");
}

static const disagreement_t disagreements[] = {
    {"count", call_count, "1000", "1001", 0},
    {"zero count", call_zero_count, "17", "0", 0},
    {"datatype", call_datatype, "f32", "i32", 0},
    {"op", call_op, "sum", "max", 0},
    {"algorithm", call_algorithm, "direct", "ring", 0},
    {"quantizer", call_quantizer, "bits=4", "bits=5", 0},
    {"root", call_root, "1", "2", 0},
    {"sendcount", call_part, "63", "60", 0},
    {"op of reduce_scatter", call_scattered_op, "prod", "avg", 0},
    {"kind of call", call_kind, "allreduce", "barrier", 0},
    {"gather or scatter", call_gather_or_reduce, "reduce_scatter", "allgather", 0},
    {"m", call_m, "24", "23", 0},
    {"n", call_n, "37", "31", 0},
    {"max_batch", call_max_batch, "9", "7", 0},
    {"bias", call_bias, "no", "yes", 0},
    {"width", call_width, "width=5", "width=4", 0},
};
#define DISAGREEMENTS (int)(sizeof(disagreements) / sizeof(disagreements[0]))

/*
 * A rank may finish its own part of the call before the others see the difference; it learns of it with a later call at
 * the latest.
 */
static void disagree_body(iq_rank_t *rank)
{
    const disagreement_t *about = rank->argument;
    uint64_t started = iq_test_now_ns();
    RANK_OK(rank, isgq_barrier(rank->comm, NULL));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    iq_rank_meet(rank);
    isgq_result_t result = about->call(rank, rank->rank == about->victim);
    for (int turn = 0; result == ISGQ_SUCCESS && turn < 3; turn++) {
        result = isgq_comm_synchronize(rank->comm);
        if (result == ISGQ_SUCCESS)
            result = isgq_barrier(rank->comm, NULL);
    }
    RANK_CHECK(rank, result == ISGQ_ERR_MISMATCH, "%s differs on rank %d: status %d, \"%s\"", about->name, about->victim,
               (int)result, isgq_get_last_error());
    const char *text = isgq_comm_get_last_error(rank->comm);
    RANK_CHECK(rank, iq_test_one_line(text) && strstr(text, about->common) != NULL && strstr(text, about->odd) != NULL,
               "%s: \"%s\" lacks %s or %s", about->name, text, about->common, about->odd);
    RANK_CHECK(rank, iq_test_now_ns() - started < 10000000000u, "%s: too late", about->name);
}

static void run_disagreement(iq_ranks_kind_t kind, int index)
{
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    disagreement_t about = disagreements[index];
    config.timeout_ms = 1500;
    iq_ranks_t ranks = {
        .kind = kind, .nranks = NRANKS, .body = disagree_body, .argument = &about, .config = &config, .broken = true};
    for (about.victim = 0; about.victim < NRANKS; about.victim++)
        iq_ranks_run(&ranks, NULL);
}

START_TEST(arguments_that_differ)
{
    run_disagreement(IQ_RANKS_THREADS, _i);
}
END_TEST

START_TEST(arguments_that_differ_in_processes)
{
    run_disagreement(IQ_RANKS_PROCESSES, 5 * _i);
}
END_TEST

/* ---- settings ---- */

typedef struct setting {
    const char *name, *common, *odd;
    int victim;
} setting_t;

static const setting_t settings[] = {
    {"chunk_bytes", "8192", "16384", 0},
    {"quantizer", "bits=4", "bits=5", 0},
    {"seed", "17", "18", 0},
    {"transports", "local", "local,shm", 0},
    {"nranks", "3", "4", 0},
};

static void settle_body(iq_rank_t *rank)
{
    const setting_t *about = rank->argument;
    bool odd = rank->rank == about->victim;
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    isgq_comm_t comm = NULL;
    int nranks = rank->nranks;
    if (strcmp(about->name, "chunk_bytes") == 0)
        config.chunk_bytes = odd ? 16384 : 8192;
    else if (strcmp(about->name, "quantizer") == 0)
        config.quantizer = iq_quantizer(rank, odd ? "uniform:bits=5" : "uniform:bits=4");
    else if (strcmp(about->name, "seed") == 0)
        config.seed = odd ? 18 : 17;
    else if (strcmp(about->name, "transports") == 0)
        config.transports = odd ? "local,shm" : "local";
    else
        nranks += odd;
    isgq_result_t result = isgq_comm_init_rank(&comm, nranks, iq_rank_id(rank), rank->rank, &config);
    RANK_CHECK(rank, result == ISGQ_ERR_MISMATCH && comm == NULL, "%s differs on rank %d: status %d, \"%s\"", about->name,
               about->victim, (int)result, isgq_get_last_error());
    const char *text = isgq_get_last_error();
    RANK_CHECK(rank, iq_test_one_line(text) && strstr(text, about->common) != NULL && strstr(text, about->odd) != NULL,
               "%s: \"%s\" lacks %s or %s", about->name, text, about->common, about->odd);
    isgq_quantizer_destroy(config.quantizer);
}

START_TEST(settings_that_differ)
{
    setting_t about = settings[_i];
    iq_ranks_t ranks = {.nranks = NRANKS, .body = settle_body, .argument = &about, .apart = true};
    for (about.victim = 0; about.victim < NRANKS; about.victim += 2) /* the one in the middle, and another */
        iq_ranks_run(&ranks, NULL);
}
END_TEST

/* Two ranks of one number: a wrong argument on every rank. */
static void twin_body(iq_rank_t *rank)
{
    isgq_comm_t comm = NULL;
    isgq_unique_id_t id = iq_rank_id(rank);
    RANK_STATUS(rank, isgq_comm_init_rank(&comm, NRANKS, id, rank->rank == 2 ? 1 : rank->rank, NULL), ISGQ_ERR_INVALID_ARGUMENT);
    RANK_CHECK(rank, strstr(isgq_get_last_error(), "rank 1") != NULL, "\"%s\" does not name the rank", isgq_get_last_error());
}

START_TEST(two_ranks_of_one_number)
{
    iq_ranks_t ranks = {.nranks = NRANKS, .body = twin_body, .apart = true};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("mismatch");
    iq_add_case(suite, tcase_create("processes"), arguments_that_differ_in_processes, 3);
    iq_add_case(suite, tcase_create("arguments"), arguments_that_differ, DISAGREEMENTS);
    iq_add_case(suite, tcase_create("settings"), settings_that_differ, (int)(sizeof(settings) / sizeof(settings[0])));
    iq_add_case(suite, tcase_create("twins"), two_ranks_of_one_number, 1);
    return suite;
}
