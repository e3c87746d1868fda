/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls that a tuning table decides: quantized where links are slow, values as they are where they are fast, hosts first where the network is
 * slow, and on all ranks alike.
 */
#include "isgqcoll_ext.h"
#include "support/cases.h"
#include "support/check_main.h"
#include "support/ranks.h"
#include "support/samples.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RANKS 4 /* at most */
#define COUNT 65536

enum { SLOW, FAST, TABLES, MISSING = TABLES };

static char paths[TABLES][64];
static float values[RANKS][COUNT], results[RANKS][COUNT];

/* What a table says of links; a processor that is not this one's. */
typedef struct links {
    int table;
    double host_latency, host_rate, network_rate;
    bool foreign;
} links_t;

/* A table of this machine; but for the rates that are given nothing in it matters. */
static void write_body(iq_rank_t *rank)
{
    const links_t *links = rank->argument;
    isgqx_tuning_t table = {.size = sizeof(table)};
    int first, index;
    RANK_OK(rank, isgqx_tuning_place(rank->comm, &table, &first, &index));
    if (rank->rank != 0)
        return;
    table.host_latency = links->host_latency;
    table.host_rate = links->host_rate;
    table.network_rate = links->network_rate;
    table.copy_rate = table.sum_rate = table.product_rate = table.factor_rate = 1e10;
    table.ncodecs = 1;
    table.codecs[0] = (isgqx_tuned_codec_t){"uniform:bits=4", 1e9, 1e9, {1, 1, 1, 1}};
    memcpy(table.correction, table.codecs[0].correction, sizeof(table.correction));
    if (links->foreign)
        snprintf(table.cpu, sizeof(table.cpu), "another");
    RANK_OK(rank, isgqx_tuning_write(paths[links->table], &table));
}

static void write_table(links_t links)
{
    iq_ranks_t ranks = {.kind = IQ_RANKS_PROCESSES, .nranks = 2, .body = write_body, .argument = &links};
    iq_ranks_run(&ranks, NULL);
}

typedef enum collective { ALLREDUCE, REDUCE_SCATTER, ALLGATHER } collective_t;

/* What a case sets: the tables of ranks, the switch, what is called on which communicator, and what should come of it. */
typedef struct tuned {
    int table[RANKS];
    const char *exact_if_faster;
    collective_t collective;
    const char *quantizer; /* NULL: uniform:bits=4 */
    bool tensor; /* of rank 0, and of no other */
    bool child, quantized;
    const char *algorithm; /* that runs; NULL: whatever */
} tuned_t;

static isgq_result_t call(iq_rank_t *rank, const tuned_t *about, isgq_quantizer_t quantizer, const isgq_call_options_t *options)
{
    const size_t part = COUNT / (size_t)rank->nranks;
    if (about->collective == REDUCE_SCATTER)
        return isgq_reduce_scatter(values[rank->rank], results[rank->rank], part, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, options);
    if (about->collective == ALLGATHER)
        return isgq_allgather(values[rank->rank], results[rank->rank], part, ISGQ_FLOAT32, quantizer, rank->comm, NULL, options);
    return isgq_allreduce(values[rank->rank], results[rank->rank], COUNT, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, options);
}

/* Whole numbers, so that sums are exact in any order. */
static float value_of(int rank, size_t i) { return (float)((i * 37 + (size_t)rank * 11) % 101); }

/* Elements of the result that are not the exact ones; `place` is this rank's in the communicator of the call, which counts ranks up or down. */
static size_t count_wrong(const iq_rank_t *rank, const tuned_t *about, int place)
{
    const size_t part = COUNT / (size_t)rank->nranks, first = about->collective == REDUCE_SCATTER ? (size_t)place * part : 0;
    size_t wrong = 0;
    for (size_t i = 0; i < (about->collective == REDUCE_SCATTER ? part : COUNT); i++) {
        int owner = (int)(i / part);
        float due = about->collective == ALLGATHER ? value_of(about->child ? rank->nranks - 1 - owner : owner, i % part) : 0;
        for (int r = 0; r < rank->nranks && about->collective != ALLGATHER; r++)
            due += value_of(r, first + i);
        wrong += results[rank->rank][i] != due;
    }
    return wrong;
}

static void join(iq_rank_t *rank, const tuned_t *about)
{
    int table = about->table[rank->rank];
    setenv("ISGQ_TUNE_TABLE", table == MISSING ? "/nowhere/table" : paths[table], 1);
    setenv("ISGQ_EXACT_IF_FASTER", about->exact_if_faster, 1);
    isgq_unique_id_t id = iq_rank_id(rank); /* the library reads its variables now */
    RANK_OK(rank, isgq_comm_init_rank(&rank->comm, rank->nranks, id, rank->rank, NULL));
    if (!about->child)
        return;
    isgq_comm_t parent = rank->comm;
    RANK_OK(rank, isgq_comm_split(parent, 0, -rank->rank, &rank->comm, NULL));
    RANK_OK(rank, isgq_comm_finalize(parent));
    isgq_comm_destroy(parent);
}

static void call_body(iq_rank_t *rank)
{
    const tuned_t *about = rank->argument;
    join(rank, about);
    for (size_t i = 0; i < COUNT; i++)
        values[rank->rank][i] = value_of(rank->rank, i);
    isgq_quantizer_t quantizer = iq_quantizer(rank, about->quantizer != NULL ? about->quantizer : "uniform:bits=4");
    isgq_tensor_t tensor = NULL;
    isgq_call_options_t options = {.size = sizeof(options)};
    if (about->tensor && rank->rank == 0) {
        RANK_OK(rank, isgq_tensor_create(&tensor, "t", COUNT));
        options.tensor = tensor;
    }
    RANK_OK(rank, call(rank, about, quantizer, &options));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    size_t wrong = count_wrong(rank, about, about->child ? rank->nranks - 1 - rank->rank : rank->rank);
    isgqx_call_record_t record = {.size = sizeof(record)};
    RANK_OK(rank, isgqx_last_call(rank->comm, &record));
    RANK_CHECK(rank, (wrong > 0) == about->quantized, "%zu values differ from the exact ones, why: %s", wrong, record.why);
    bool said = strstr(record.why, "uniform:bits=4 would take") != NULL || strstr(record.why, "values as they are") != NULL;
    RANK_CHECK(rank, said == (!about->quantized && about->quantizer == NULL), "why: %s", record.why);
    RANK_CHECK(rank, about->algorithm == NULL || strcmp(record.algorithm, about->algorithm) == 0, "%s, why: %s", record.algorithm, record.why);
    rank->values[0] = about->collective == REDUCE_SCATTER ? 0 : isgqx_hash(results[rank->rank], sizeof(results[0]));
    isgq_tensor_destroy(tensor);
    isgq_quantizer_destroy(quantizer);
}

static void run_case(tuned_t about)
{
    static iq_ranks_values_t found;
    iq_ranks_t ranks = {.kind = IQ_RANKS_PROCESSES, .nranks = 2, .body = call_body, .argument = &about, .apart = true};
    iq_ranks_run(&ranks, &found);
    ck_assert_uint_eq(found.of[0][0], found.of[1][0]);
}

static void set_up(void)
{
    for (int i = 0; i < TABLES; i++) {
        snprintf(paths[i], sizeof(paths[i]), "/tmp/isgq-tuned-XXXXXX");
        int file = mkstemp(paths[i]);
        ck_assert_int_ge(file, 0);
        close(file);
    }
    write_table((links_t){SLOW, 0, 1e6, 1e6, false});
    write_table((links_t){FAST, 0, 1e11, 1e11, false});
}

static void tear_down(void)
{
    for (int i = 0; i < TABLES; i++)
        unlink(paths[i]);
}

START_TEST(speed_of_links)
{
    run_case((tuned_t){.table = {SLOW, SLOW}, .exact_if_faster = "1", .quantized = true});
    run_case((tuned_t){.table = {FAST, FAST}, .exact_if_faster = "1", .quantized = false});
    run_case((tuned_t){.table = {FAST, FAST}, .exact_if_faster = "0", .quantized = true});
    run_case((tuned_t){.table = {FAST, FAST}, .exact_if_faster = "1", .tensor = true, .quantized = false});
    run_case((tuned_t){.table = {FAST, FAST}, .exact_if_faster = "1", .quantizer = "uniform:bits=4,feedback=full", .tensor = true, .quantized = true});
}
END_TEST

START_TEST(halves_of_allreduces)
{
    for (int c = REDUCE_SCATTER; c <= ALLGATHER; c++) {
        run_case((tuned_t){.table = {SLOW, SLOW}, .exact_if_faster = "1", .collective = (collective_t)c, .quantized = true});
        run_case((tuned_t){.table = {FAST, FAST}, .exact_if_faster = "1", .collective = (collective_t)c, .quantized = false});
    }
}
END_TEST

/* Rank 0's table is everybody's, whatever others have or lack; and their children's, whoever is rank 0 there. */
START_TEST(another_table_on_one_rank)
{
    run_case((tuned_t){.table = {FAST, SLOW}, .exact_if_faster = "1", .quantized = false});
    run_case((tuned_t){.table = {SLOW, FAST}, .exact_if_faster = "1", .quantized = true});
    run_case((tuned_t){.table = {FAST, MISSING}, .exact_if_faster = "1", .quantized = false});
    run_case((tuned_t){.table = {MISSING, FAST}, .exact_if_faster = "1", .quantized = true});
    run_case((tuned_t){.table = {FAST, SLOW}, .exact_if_faster = "1", .child = true, .quantized = false});
    run_case((tuned_t){.table = {MISSING, FAST}, .exact_if_faster = "1", .child = true, .quantized = true});
}
END_TEST

static void switch_body(iq_rank_t *rank)
{
    setenv("ISGQ_EXACT_IF_FASTER", rank->rank == 0 ? "1" : "0", 1);
    isgq_unique_id_t id = iq_rank_id(rank);
    isgq_comm_t comm = NULL;
    isgq_result_t result = isgq_comm_init_rank(&comm, rank->nranks, id, rank->rank, NULL);
    RANK_CHECK(rank, result == ISGQ_ERR_MISMATCH && strstr(isgq_get_last_error(), "ISGQ_EXACT_IF_FASTER is 1 on rank 0 and 0 on rank 1") != NULL,
               "status %d, \"%s\"", (int)result, isgq_get_last_error());
}

/* What tables decide by has to be the same everywhere, or nobody joins. */
START_TEST(another_switch_on_one_rank)
{
    iq_ranks_t ranks = {.kind = IQ_RANKS_PROCESSES, .nranks = 2, .body = switch_body, .apart = true};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

START_TEST(table_of_another_machine)
{
    write_table((links_t){FAST, 0, 1e11, 1e11, true});
    run_case((tuned_t){.table = {FAST, FAST}, .exact_if_faster = "1", .quantized = true});
}
END_TEST

/* Two ranks on each of two hosts. Hosts first is two rounds inside hosts more. */
static void run_on_hosts(links_t links, tuned_t about)
{
    iq_ranks_t ranks = {.nranks = RANKS, .hosts = 2, .kind = IQ_RANKS_HOSTS, .body = write_body, .argument = &links, .home = true};
    iq_ranks_run(&ranks, NULL);
    ranks.body = call_body;
    ranks.argument = &about;
    ranks.apart = true;
    iq_ranks_values_t found;
    iq_ranks_run(&ranks, &found);
    for (int r = 1; r < RANKS; r++)
        ck_assert_uint_eq(found.of[0][0], found.of[r][0]);
}

START_TEST(hosts_first)
{
    const links_t slow_network = {SLOW, 0, 1e10, 1e6, false}, slow_hosts = {SLOW, 1, 1e10, 1e6, false};
    if (!iq_ranks_have_network())
        return;
    run_on_hosts(slow_network, (tuned_t){.exact_if_faster = "1", .quantizer = "none", .algorithm = "levels"});
    run_on_hosts(slow_network, (tuned_t){.exact_if_faster = "1", .quantized = true, .algorithm = "levels"});
    run_on_hosts(slow_network, (tuned_t){.exact_if_faster = "1", .quantizer = "uniform:bits=4,feedback=full", .tensor = true, .quantized = true,
                                         .algorithm = "direct"});
    run_on_hosts(slow_hosts, (tuned_t){.exact_if_faster = "1", .quantizer = "none", .algorithm = "direct"});
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("tuned");
    TCase *tcase = tcase_create("calls");
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_add_test(tcase, speed_of_links);
    tcase_add_test(tcase, halves_of_allreduces);
    tcase_add_test(tcase, another_table_on_one_rank);
    tcase_add_test(tcase, another_switch_on_one_rank);
    tcase_add_test(tcase, table_of_another_machine);
    tcase_add_test(tcase, hosts_first);
    suite_add_tcase(suite, tcase);
    return suite;
}
