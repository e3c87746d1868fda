/* SPDX-License-Identifier: Apache-2.0 */
/*
 * isgq_soak: many calls of random shapes, types, quantizers and collectives, each checked; memory must stay flat.
 *
 *     isgq_soak [--calls N] [--seed S] [-n RANKS] [--processes]
 *
 * All ranks draw call i from (seed, i) alone, so they agree without talking. Lossless calls are compared with exact
 * references; lossy ones must have the same bits on all ranks and errors within a bound. What is resident after a tenth of the
 * calls may hardly grow until the end.
 */
#include "support/samples.h"

#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST 40000               /* elements of a buffer */
#define GROWTH_BYTES (24u << 20) /* in all ranks together; a leak of 100 bytes a call is 10 MB a rank in 10^5 calls */

typedef struct soak {
    uint64_t seed;
    long calls;
} soak_t;

/* The random numbers of one call, one after the other. */
typedef struct dice {
    uint64_t seed, call, throws;
} dice_t;

static size_t below(dice_t *dice, size_t limit) { return (size_t)(iq_mix(dice->seed, dice->call, dice->throws++) % limit); }

static const char *const dense_texts[] = {"fp16",
                                          "bf16",
                                          "uniform:bits=1",
                                          "uniform:bits=3,bucket=64",
                                          "uniform:bits=4,rounding=nearest",
                                          "uniform:bits=6,sum=requantized",
                                          "uniform:bits=8,scale=local,bucket=tensor",
                                          "uniform:bits=2,sum=exact,bucket=tensor",
                                          "isgq:bits=4",
                                          "isgq:bits=2.5"};
static const char *const factor_texts[] = {"factor:width=4/4",
                                           "factor:width=2/8,rounding=nearest",
                                           "isgq:bits=4",
                                           "isgq:bits=2",
                                           "none",
                                           "dense=uniform:bits=4;factored=factor:width=3"};
#define DENSE_TEXTS 10
#define FACTOR_TEXTS 6

typedef struct workplace {
    iq_rank_t *rank;
    unsigned char *in, *out, *due; /* MOST elements of 8 bytes */
    isgq_quantizer_t dense[DENSE_TEXTS], factored[FACTOR_TEXTS], none;
} workplace_t;

/* Small most of the time, odd, sometimes large, sometimes nothing. */
static size_t draw_count(dice_t *dice, size_t most)
{
    size_t range = below(dice, 10);
    return below(dice, range < 2 ? 4 : range < 7 ? (most < 700 ? most : 700) : most);
}

static const char *draw_algorithm(dice_t *dice, bool exact)
{
    static const char *const names[] = {NULL, "direct", "exchange", "ring"};
    return names[below(dice, exact ? 4 : 3)];
}

/* ---- exact calls ---- */

static void check_exact(const workplace_t *place, size_t bytes, const char *what)
{
    RANK_CHECK(place->rank, memcmp(place->out, place->due, bytes) == 0, "%s is wrong", what);
}

static void exact_allreduce(const workplace_t *place, dice_t *dice)
{
    isgq_data_type_t type = (isgq_data_type_t)below(dice, IQ_TYPE_COUNT);
    isgq_red_op_t op = (isgq_red_op_t)below(dice, 5);
    size_t count = draw_count(dice, MOST);
    bool in_place = below(dice, 2) == 1;
    isgq_call_options_t options = {.size = sizeof(options), .algorithm = draw_algorithm(dice, true)};
    void *send = in_place ? place->out : place->in;
    iq_numbers_fill(type, op, dice->call, place->rank->rank, 0, count, send);
    iq_numbers_reduce(type, op, dice->call, place->rank->nranks, 0, count, place->due);
    RANK_OK(place->rank, isgq_allreduce(send, place->out, count, type, op, place->none, place->rank->comm, NULL, &options));
    RANK_OK(place->rank, isgq_comm_synchronize(place->rank->comm));
    check_exact(place, count * iq_types[type].bytes, "allreduce");
}

static void exact_reduce_scatter(const workplace_t *place, dice_t *dice)
{
    isgq_data_type_t type = (isgq_data_type_t)below(dice, IQ_TYPE_COUNT);
    isgq_red_op_t op = (isgq_red_op_t)below(dice, 5);
    size_t n = (size_t)place->rank->nranks, part = draw_count(dice, MOST / n), first = part * (size_t)place->rank->rank;
    iq_numbers_fill(type, op, dice->call, place->rank->rank, 0, n * part, place->in);
    iq_numbers_reduce(type, op, dice->call, place->rank->nranks, first, part, place->due);
    RANK_OK(place->rank, isgq_reduce_scatter(place->in, place->out, part, type, op, place->none, place->rank->comm, NULL, NULL));
    RANK_OK(place->rank, isgq_comm_synchronize(place->rank->comm));
    check_exact(place, part * iq_types[type].bytes, "reduce_scatter");
}

static void exact_allgather(const workplace_t *place, dice_t *dice)
{
    isgq_data_type_t type = (isgq_data_type_t)below(dice, IQ_TYPE_COUNT);
    size_t n = (size_t)place->rank->nranks, part = draw_count(dice, MOST / n), bytes = part * iq_types[type].bytes;
    bool in_place = below(dice, 2) == 1;
    void *send = in_place ? place->out + bytes * (size_t)place->rank->rank : place->in;
    iq_numbers_fill(type, ISGQ_SUM, dice->call, place->rank->rank, 0, part, send);
    for (size_t r = 0; r < n; r++)
        iq_numbers_fill(type, ISGQ_SUM, dice->call, (int)r, 0, part, place->due + r * bytes);
    RANK_OK(place->rank, isgq_allgather(send, place->out, part, type, place->none, place->rank->comm, NULL, NULL));
    RANK_OK(place->rank, isgq_comm_synchronize(place->rank->comm));
    check_exact(place, n * bytes, "allgather");
}

static void broadcast_and_barrier(const workplace_t *place, dice_t *dice)
{
    isgq_data_type_t type = (isgq_data_type_t)below(dice, IQ_TYPE_COUNT);
    size_t count = draw_count(dice, MOST);
    int root = (int)below(dice, (size_t)place->rank->nranks);
    iq_numbers_fill(type, ISGQ_SUM, dice->call, root, 0, count, place->due);
    if (place->rank->rank == root)
        memcpy(place->in, place->due, count * iq_types[type].bytes);
    RANK_OK(place->rank, isgq_broadcast(place->in, place->out, count, type, root, place->rank->comm, NULL));
    RANK_OK(place->rank, isgq_barrier(place->rank->comm, NULL));
    RANK_OK(place->rank, isgq_comm_synchronize(place->rank->comm));
    check_exact(place, count * iq_types[type].bytes, "broadcast");
}

/* A few calls at once. */
static void grouped(const workplace_t *place, dice_t *dice)
{
    size_t calls = 1 + below(dice, 12), starts[13] = {0};
    RANK_OK(place->rank, isgq_group_start());
    for (size_t c = 0; c < calls; c++) {
        size_t count = below(dice, 300);
        int32_t *values = (int32_t *)(void *)place->out + starts[c];
        iq_numbers_fill(ISGQ_INT32, ISGQ_SUM, dice->call + c, place->rank->rank, 0, count, values);
        iq_numbers_reduce(ISGQ_INT32, ISGQ_SUM, dice->call + c, place->rank->nranks, 0, count,
                          (int32_t *)(void *)place->due + starts[c]);
        RANK_OK(place->rank,
                isgq_allreduce(values, values, count, ISGQ_INT32, ISGQ_SUM, place->none, place->rank->comm, NULL, NULL));
        starts[c + 1] = starts[c] + count;
    }
    RANK_OK(place->rank, isgq_group_end());
    RANK_OK(place->rank, isgq_comm_synchronize(place->rank->comm));
    check_exact(place, starts[calls] * sizeof(int32_t), "a group");
}

/* ---- lossy calls ---- */

static isgq_data_type_t draw_float(dice_t *dice)
{
    static const isgq_data_type_t types[] = {ISGQ_FLOAT32, ISGQ_FLOAT16, ISGQ_BFLOAT16};
    return types[below(dice, 3)];
}

/* Samples are below 2: one rank's code is off by less than 4 at 1 bit, and the sum may be rounded once more. */
static void check_lossy(const workplace_t *place, isgq_data_type_t type, isgq_red_op_t op, size_t count, uint64_t salt,
                        const char *text)
{
    double nranks = place->rank->nranks, allowed = 4.1 * nranks + 4.1 * nranks * 3;
    for (size_t i = 0; i < count; i += 1 + count / 64) {
        double due = iq_samples_sum(type, op, salt, place->rank->nranks, i), found = iq_numbers_get(type, place->out, i);
        RANK_CHECK(place->rank, fabs(found - due) <= allowed, "%s: element %zu is %g, not %g", text, i, found, due);
    }
    iq_rank_agree(place->rank, isgqx_hash(place->out, count * iq_types[type].bytes), text);
}

static void lossy_allreduce(const workplace_t *place, dice_t *dice)
{
    size_t q = below(dice, DENSE_TEXTS), count = draw_count(dice, MOST);
    isgq_data_type_t type = draw_float(dice);
    isgq_red_op_t op = below(dice, 2) ? ISGQ_SUM : ISGQ_AVG;
    isgq_call_options_t options = {.size = sizeof(options), .algorithm = draw_algorithm(dice, false)};
    bool in_place = below(dice, 2) == 1;
    void *send = in_place ? place->out : place->in;
    iq_samples_fill(type, dice->call, place->rank->rank, 0, count, send);
    RANK_OK(place->rank, isgq_allreduce(send, place->out, count, type, op, place->dense[q], place->rank->comm, NULL, &options));
    RANK_OK(place->rank, isgq_comm_synchronize(place->rank->comm));
    check_lossy(place, type, op, count, dice->call, dense_texts[q]);
}

static double factor_at(isgq_data_type_t type, uint64_t salt, size_t row, size_t column, int rank)
{
    return iq_sample(type, salt + row * 1000, rank, column % 64);
}

typedef struct layer {
    isgq_data_type_t type;
    size_t m, n, max_batch;
    uint64_t salt;
} layer_t;

static size_t batch_of(const layer_t *layer, int rank)
{
    return (size_t)(layer->salt + (uint64_t)rank * 5) % (layer->max_batch + 1);
}

static void fill_factors(const layer_t *layer, int rank, unsigned char *x, unsigned char *delta)
{
    for (size_t r = 0; r < batch_of(layer, rank); r++) {
        for (size_t i = 0; i < layer->m; i++)
            iq_numbers_set(layer->type, x, r * layer->m + i, factor_at(layer->type, layer->salt, r, i, rank));
        for (size_t j = 0; j < layer->n; j++)
            iq_numbers_set(layer->type, delta, r * layer->n + j, factor_at(layer->type, layer->salt + 1, r, j, rank));
    }
}

/* Exact factors give the exact gradient; of quantized ones only so much is known here that they are numbers. */
static void check_gradient(const workplace_t *place, const layer_t *layer, bool exact, const char *text)
{
    for (size_t i = 0; i < layer->m * layer->n; i += 1 + layer->m * layer->n / 16) {
        double due = 0, size = 0, found = iq_numbers_get(layer->type, place->out, i);
        for (int rank = 0; exact && rank < place->rank->nranks; rank++) {
            for (size_t r = 0; r < batch_of(layer, rank); r++) {
                double term = factor_at(layer->type, layer->salt, r, i / layer->n, rank) *
                              factor_at(layer->type, layer->salt + 1, r, i % layer->n, rank);
                due += term;
                size += fabs(term);
            }
        }
        double allowed = exact ? 0.005 * size + 1e-6 : INFINITY; /* bf16 rounds to 1 in 256 */
        RANK_CHECK(place->rank, isfinite(found) && fabs(found - due) <= allowed, "%s: element %zu is %g, not %g", text, i, found,
                   due);
    }
}

static void lossy_factored(const workplace_t *place, dice_t *dice)
{
    static const char *const ways[] = {NULL, NULL, "gather", "reduce", "dense"};
    size_t q = below(dice, FACTOR_TEXTS);
    layer_t layer = {.type = draw_float(dice),
                     .m = 1 + below(dice, 150),
                     .n = 1 + below(dice, 60),
                     .max_batch = below(dice, 17),
                     .salt = dice->call};
    const char *way = ways[below(dice, 5)];
    if (q == 4 || (way != NULL && strcmp(way, "dense") == 0 && q < 2)) /* no factored form; no dense form */
        way = NULL;
    size_t bytes = iq_types[layer.type].bytes, batch = batch_of(&layer, place->rank->rank);
    isgq_call_options_t options = {.size = sizeof(options), .algorithm = way};
    isgq_factors_t factors = {.size = sizeof(factors),
                              .x = place->in,
                              .delta = place->in + batch * layer.m * bytes,
                              .batch = batch,
                              .m = layer.m,
                              .n = layer.n,
                              .bias = below(dice, 2) ? place->out + layer.m * layer.n * bytes : NULL};
    fill_factors(&layer, place->rank->rank, place->in, place->in + batch * layer.m * bytes);
    RANK_OK(place->rank, isgq_allreduce_factored(&factors, layer.max_batch, place->out, layer.type, ISGQ_SUM, place->factored[q],
                                                 place->rank->comm, NULL, &options));
    RANK_OK(place->rank, isgq_comm_synchronize(place->rank->comm));
    check_gradient(place, &layer, q == 4, factor_texts[q]);
    iq_rank_agree(place->rank, isgqx_hash(place->out, (layer.m * layer.n + (factors.bias != NULL ? layer.n : 0)) * bytes),
                  factor_texts[q]);
}

typedef void (*kind_fn)(const workplace_t *place, dice_t *dice);

static const kind_fn kinds[] = {exact_allreduce, lossy_allreduce,       lossy_factored, exact_reduce_scatter,
                                exact_allgather, broadcast_and_barrier, grouped,        lossy_allreduce};

/* ---- one rank ---- */

static uint64_t resident_bytes(void)
{
    unsigned long total = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file != NULL && fscanf(file, "%lu %lu", &total, &resident) != 2)
        resident = 0;
    if (file != NULL)
        fclose(file);
    return (uint64_t)resident * 4096;
}

static workplace_t workplace_new(iq_rank_t *rank)
{
    workplace_t place = {.rank = rank,
                         .in = malloc(MOST * 8),
                         .out = malloc(MOST * 8),
                         .due = malloc(MOST * 8),
                         .none = iq_quantizer(rank, "none")};
    memset(place.in, 1, MOST * 8);
    memset(place.out, 1, MOST * 8);
    memset(place.due, 1, MOST * 8);
    for (int q = 0; q < DENSE_TEXTS; q++)
        place.dense[q] = iq_quantizer(rank, dense_texts[q]);
    for (int q = 0; q < FACTOR_TEXTS; q++)
        place.factored[q] = iq_quantizer(rank, factor_texts[q]);
    return place;
}

static void workplace_free(workplace_t *place)
{
    free(place->in);
    free(place->out);
    free(place->due);
    isgq_quantizer_destroy(place->none);
    for (int q = 0; q < DENSE_TEXTS; q++)
        isgq_quantizer_destroy(place->dense[q]);
    for (int q = 0; q < FACTOR_TEXTS; q++)
        isgq_quantizer_destroy(place->factored[q]);
}

static void soak_body(iq_rank_t *rank)
{
    const soak_t *soak = rank->argument;
    workplace_t place = workplace_new(rank);
    for (long call = 0; call < soak->calls; call++) {
        dice_t dice = {.seed = soak->seed, .call = (uint64_t)call};
        if (call == soak->calls / 10)
            rank->values[0] = resident_bytes();
        kinds[below(&dice, sizeof(kinds) / sizeof(kinds[0]))](&place, &dice);
    }
    rank->values[1] = resident_bytes();
    workplace_free(&place);
}

/* ---- the program ---- */

static long number(const char *text)
{
    char *end;
    long value = strtol(text, &end, 10);
    if (*text == '\0' || *end != '\0' || value < 0) {
        fprintf(stderr, "isgq_soak: \"%s\" is not a number\n", text);
        exit(2);
    }
    return value;
}

static void parse(int argc, char **argv, soak_t *soak, iq_ranks_t *ranks)
{
    static const struct option options[] = {{"calls", required_argument, NULL, 'c'},
                                            {"seed", required_argument, NULL, 's'},
                                            {"ranks", required_argument, NULL, 'n'},
                                            {"processes", no_argument, NULL, 'p'},
                                            {0}};
    int option;
    while ((option = getopt_long(argc, argv, "n:", options, NULL)) != -1) {
        if (option == 'c')
            soak->calls = number(optarg);
        else if (option == 's')
            soak->seed = (uint64_t)number(optarg);
        else if (option == 'n')
            ranks->nranks = (int)number(optarg);
        else if (option == 'p')
            ranks->kind = IQ_RANKS_PROCESSES;
        else
            exit(2);
    }
    if (optind < argc || ranks->nranks < 1 || ranks->nranks > IQ_RANKS_MOST) {
        fprintf(stderr, "usage: isgq_soak [--calls N] [--seed S] [-n RANKS, 1 to %d] [--processes]\n", IQ_RANKS_MOST);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    static iq_ranks_values_t values;
    static char failures[8192];
    soak_t soak = {.seed = 1, .calls = 10000};
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    iq_ranks_t ranks = {.nranks = 4, .body = soak_body, .argument = &soak, .config = &config, .watchdog_s = 3600};
    parse(argc, argv, &soak, &ranks);
    config.seed = soak.seed + 1;
    config.chunk_bytes = 8192;
    uint64_t started = iq_test_now_ns();
    bool fine = iq_ranks_try(&ranks, &values, failures, sizeof(failures));
    double seconds = (double)(iq_test_now_ns() - started) * 1e-9, growth = (double)values.of[0][1] - (double)values.of[0][0];
    bool flat = IQ_TEST_SANITIZED || growth <= (double)GROWTH_BYTES;
    printf("soak: %ld calls, %d ranks, seed %llu: %s in %.1f s, memory %.1f MiB after a tenth, %+.1f MiB since%s\n", soak.calls,
           ranks.nranks, (unsigned long long)soak.seed, fine ? "wrong = 0" : "FAILED", seconds,
           (double)values.of[0][0] / (1 << 20), growth / (1 << 20), flat ? "" : " (NOT FLAT)");
    if (!fine)
        printf("%s\n", failures);
    return fine && flat ? 0 : 1;
}
