/* SPDX-License-Identifier: Apache-2.0 */
/*
 * isgq_soak: many calls of random shapes, types, quantizers and collectives, each checked; memory must stay flat.
 *
 *     isgq_soak [--calls N] [--seed S] [-n RANKS] [--processes]
 *
 * All ranks draw call i from (seed, i) alone, so they agree without talking. Lossless calls are compared with exact
 * references; lossy ones must have the same bits on all ranks and the errors that their quantizers promise (soak_check.c). What is resident after a tenth of the
 * calls may hardly grow until the end.
 */
#include "soak/soak_check.h"

#include <getopt.h>
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

typedef struct workplace {
    iq_rank_t *rank;
    unsigned char *in, *out, *due; /* MOST elements of 8 bytes */
    isgq_quantizer_t dense[SOAK_DENSE_TEXTS], factored[SOAK_FACTOR_TEXTS], none;
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

/* The same bits on all ranks; one of them, each in turn, has a look at what they are. */
static bool is_my_turn(const workplace_t *place, uint64_t call)
{
    return call % (uint64_t)place->rank->nranks == (uint64_t)place->rank->rank;
}

static void lossy_allreduce(const workplace_t *place, dice_t *dice)
{
    size_t q = below(dice, SOAK_DENSE_TEXTS), count = draw_count(dice, MOST);
    isgq_data_type_t type = draw_float(dice);
    isgq_red_op_t op = below(dice, 2) ? ISGQ_SUM : ISGQ_AVG;
    isgq_call_options_t options = {.size = sizeof(options), .algorithm = draw_algorithm(dice, false)};
    bool in_place = below(dice, 2) == 1;
    void *send = in_place ? place->out : place->in;
    iq_samples_fill(type, dice->call, place->rank->rank, 0, count, send);
    RANK_OK(place->rank, isgq_allreduce(send, place->out, count, type, op, place->dense[q], place->rank->comm, NULL, &options));
    RANK_OK(place->rank, isgq_comm_synchronize(place->rank->comm));
    if (is_my_turn(place, dice->call))
        soak_check_dense(place->rank, &soak_dense_texts[q], type, op, dice->call, count, place->out);
    iq_rank_agree(place->rank, isgqx_hash(place->out, count * iq_types[type].bytes), soak_dense_texts[q].text);
}

static void fill_factors(const soak_layer_t *layer, int rank, unsigned char *x, unsigned char *delta)
{
    for (size_t r = 0; r < soak_batch_of(layer, rank); r++) {
        for (size_t i = 0; i < layer->m; i++)
            iq_numbers_set(layer->type, x, r * layer->m + i, soak_factor_at(layer, 0, r, i, rank));
        for (size_t j = 0; j < layer->n; j++)
            iq_numbers_set(layer->type, delta, r * layer->n + j, soak_factor_at(layer, 1, r, j, rank));
    }
}

static void lossy_factored(const workplace_t *place, dice_t *dice)
{
    static const char *const ways[] = {NULL, NULL, "gather", "reduce", "dense"};
    size_t q = below(dice, SOAK_FACTOR_TEXTS);
    soak_layer_t layer = {.type = draw_float(dice),
                          .m = 1 + below(dice, 150),
                          .n = 1 + below(dice, 60),
                          .max_batch = below(dice, 17),
                          .salt = dice->call};
    isgqx_call_record_t record = {.size = sizeof(record)};
    const char *way = ways[below(dice, 5)];
    if (q == 4 || (way != NULL && strcmp(way, "dense") == 0 && q < 2)) /* no factored form; no dense form */
        way = NULL;
    size_t bytes = iq_types[layer.type].bytes, batch = soak_batch_of(&layer, place->rank->rank);
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
    RANK_OK(place->rank, isgqx_last_call(place->rank->comm, &record));
    if (is_my_turn(place, dice->call))
        soak_check_gradient(place->rank, &soak_factor_texts[q], &layer, strcmp(record.algorithm, "dense") == 0, place->out);
    iq_rank_agree(place->rank, isgqx_hash(place->out, (layer.m * layer.n + (factors.bias != NULL ? layer.n : 0)) * bytes),
                  soak_factor_texts[q].text);
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
    for (int q = 0; q < SOAK_DENSE_TEXTS; q++)
        place.dense[q] = iq_quantizer(rank, soak_dense_texts[q].text);
    for (int q = 0; q < SOAK_FACTOR_TEXTS; q++)
        place.factored[q] = iq_quantizer(rank, soak_factor_texts[q].text);
    return place;
}

static void workplace_free(workplace_t *place)
{
    free(place->in);
    free(place->out);
    free(place->due);
    isgq_quantizer_destroy(place->none);
    for (int q = 0; q < SOAK_DENSE_TEXTS; q++)
        isgq_quantizer_destroy(place->dense[q]);
    for (int q = 0; q < SOAK_FACTOR_TEXTS; q++)
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

static const char help[] =
    "usage: isgq_soak [--calls N] [--seed S] [-n RANKS] [--processes]\n\n"
    "Many calls of random shapes, types, quantizers and collectives, each checked; memory must stay flat.\n\n"
    "      --calls N      calls on each rank [10000]\n"
    "      --seed S       of what is called and with which data [1]\n"
    "  -n, --ranks RANKS  1 to %d [4]\n"
    "      --processes    ranks are processes [threads]\n"
    "  -h, --help         this text\n\n"
    "Exit status: 0 if every result was right and memory flat, 1 if not, 2 for a wrong command line.\n";

static void parse(int argc, char **argv, soak_t *soak, iq_ranks_t *ranks)
{
    static const struct option options[] = {{"calls", required_argument, NULL, 'c'}, {"seed", required_argument, NULL, 's'},
                                            {"ranks", required_argument, NULL, 'n'}, {"processes", no_argument, NULL, 'p'},
                                            {"help", no_argument, NULL, 'h'},        {0}};
    int option;
    while ((option = getopt_long(argc, argv, "n:h", options, NULL)) != -1) {
        if (option == 'c')
            soak->calls = number(optarg);
        else if (option == 's')
            soak->seed = (uint64_t)number(optarg);
        else if (option == 'n')
            ranks->nranks = (int)number(optarg);
        else if (option == 'p')
            ranks->kind = IQ_RANKS_PROCESSES;
        else if (option == 'h') {
            printf(help, IQ_RANKS_MOST);
            exit(0);
        } else {
            exit(2);
        }
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
