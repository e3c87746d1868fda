/* SPDX-License-Identifier: Apache-2.0 */
/*
 * isgq_perf: time and check collectives, with nccl-tests' conventions. This file holds the command line and the sweep.
 *
 * Everything in the sweep is a list: collectives x types x reductions x quantizers x sizes. Combinations that the library does
 * not support are skipped with a word on stderr when they come out of such lists, and are an error when they are all that was
 * asked for.
 */
#include "perf/perf.h"
#include "tools/common/launch.h"
#include "tools/common/options.h"
#include "tools/common/progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_QUANTIZERS = 64, MAX_LIST = 16 };

const char *const iq_perf_collective_names[IQ_PERF_COLLECTIVES + 1] = {"allreduce", "factored",  "reduce_scatter",
                                                                       "allgather", "broadcast", NULL};

static const iq_program_t program = {
    .name = "isgq_perf",
    .usage = "[-n RANKS] [-c COLLECTIVES] [-b BYTES -e BYTES -f FACTOR] [-d TYPES] [-o OPS] [-q QUANTIZERS] [options]",
    .about = "Time and check collectives. One row for each collective, type, reduction, quantizer and size; perf/README.md says "
             "what the\n"
             "columns mean. Without -n the launcher's environment (torchrun, mpirun, srun) says who the ranks are.",
};

/* The command line. */
typedef struct command {
    size_t nranks, first_bytes, last_bytes, bound_bytes, factor, rows, m, n, warmup, iterations, calls, misalign, root, seed;
    const char *collectives, *types, *ops, *quantizers, *algorithm, *transport, *device, *memory, *json;
    bool in_place, bias;
    bool local; /* -n was given */
    bool cuda;  /* --device cuda */
} command_t;

/* The lists in it, looked up. */
typedef struct sweep {
    iq_perf_collective_t collectives[MAX_LIST];
    const iq_type_name_t *types[MAX_LIST];
    const iq_op_name_t *ops[MAX_LIST];
    isgq_quantizer_t quantizers[MAX_QUANTIZERS];
    char *typed[MAX_QUANTIZERS]; /* the same, as the user wrote them */
    size_t ncollectives, ntypes, nops, nquantizers;
    const command_t *command;
    const char *algorithm; /* NULL: the library's choice */
    iq_perf_setup_t setup;
    iq_table_t table;
    iq_json_t json;
    size_t rows_done, bad_rows;
} sweep_t;

static void check_together(const command_t *c, const iq_option_t *options)
{
    bool factored = strstr(c->collectives, "factored") != NULL || strcmp(c->collectives, "all") == 0;
    bool dense = strcmp(c->collectives, "factored") != 0;
    static const char *const sizes[] = {"minbytes", "maxbytes", "stepfactor"}, *const shapes[] = {"rows", "m", "n", "bias"};

    for (size_t i = 0; i < 3; i++)
        if (!dense && iq_options_given(options, sizes[i]))
            iq_die(IQ_EXIT_USAGE, "--%s means nothing to -c factored: its size follows from --rows, --m and --n", sizes[i]);
    for (size_t i = 0; i < 4; i++)
        if (!factored && iq_options_given(options, shapes[i]))
            iq_die(IQ_EXIT_USAGE, "--%s belongs to -c factored", shapes[i]);
    if (c->first_bytes > c->last_bytes)
        iq_die(IQ_EXIT_USAGE, "--minbytes (%zu B) is more than --maxbytes (%zu B)", c->first_bytes, c->last_bytes);
    if (factored && c->in_place && !dense)
        iq_die(IQ_EXIT_USAGE, "--inplace: a factored call's gradient must not overlap its factors");
    if (c->bound_bytes < 4096 || (c->bound_bytes & (c->bound_bytes - 1)) != 0)
        iq_die(IQ_EXIT_USAGE, "--bound-bytes: %zu is not a power of two from 4096 on", c->bound_bytes);
    if (c->local && c->root >= c->nranks)
        iq_die(IQ_EXIT_USAGE, "--root: there is no rank %zu among %zu ranks", c->root, c->nranks);
    if (strcmp(c->memory, "malloc") != 0 && strcmp(c->memory, "isgq") != 0)
        iq_die(IQ_EXIT_USAGE, "--memory: '%s' is neither malloc nor isgq", c->memory);
    if (!c->cuda && strcmp(c->device, "host") != 0)
        iq_die(IQ_EXIT_USAGE, "--device: '%s' is neither host nor cuda", c->device);
    if (c->cuda && iq_options_given(options, "memory") && strcmp(c->memory, "isgq") != 0)
        iq_die(IQ_EXIT_USAGE, "--memory %s is host memory; --device cuda takes isgq only", c->memory);
}

static void parse(command_t *c, int argc, char **argv)
{
    iq_option_t options[] = {
        IQ_COUNT('n', "nranks", "RANKS", c->nranks, 1, 4096, NULL, "start so many local ranks [the launcher's environment]"),
        IQ_TEXT('c', "collective", "LIST", c->collectives, "allreduce",
                "allreduce, factored, reduce_scatter, allgather, broadcast; all;\nseveral with commas"),
        IQ_BYTES('b', "minbytes", "BYTES", c->first_bytes, "8", "smallest size: bytes of a rank's input (k, m, g may follow)"),
        IQ_BYTES('e', "maxbytes", "BYTES", c->last_bytes, "16m", "largest size"),
        IQ_COUNT('f', "stepfactor", "FACTOR", c->factor, 2, 1e6, "8",
                 "each size is so many times the one before; 0 is followed by 4 bytes"),
        IQ_COUNT(0, "rows", "ROWS", c->rows, 0, 1e9, "128", "factored: rows of X and Delta on each rank"),
        IQ_COUNT(0, "m", "COLUMNS", c->m, 1, 1e9, "784", "factored: columns of X"),
        IQ_COUNT(0, "n", "COLUMNS", c->n, 1, 1e9, "1000", "factored: columns of Delta"),
        IQ_FLAG(0, "bias", c->bias, "factored: the bias gradient too"),
        IQ_TEXT('d', "datatype", "LIST", c->types, "f32", "i8 u8 i32 u32 i64 u64 f16 bf16 f32 f64; all; several with commas"),
        IQ_TEXT('o', "op", "LIST", c->ops, "sum", "sum prod max min avg; all; several with commas"),
        IQ_TEXT('q', "quantizer", "LIST", c->quantizers, "none", "quantizers; several with semicolons"),
        IQ_TEXT('a', "algorithm", "NAME", c->algorithm, "auto", "algorithm; help lists them"),
        IQ_TEXT('t', "transport", "LIST", c->transport, "auto", "allowed transports, with commas: local, shm, ucx"),
        IQ_COUNT('w', "warmup", "CALLS", c->warmup, 0, 1e6, "5", "iterations before the clock runs"),
        IQ_COUNT('i', "iters", "CALLS", c->iterations, 1, 1e6, "20", "timed iterations"),
        IQ_COUNT(0, "calls", "CALLS", c->calls, 1, 1e6, "1", "calls back to back in one iteration; its time is divided by them"),
        IQ_FLAG('p', "inplace", c->in_place, "input and output are the same buffer"),
        IQ_BYTES(0, "misalign", "BYTES", c->misalign, "0",
                 "put buffers so many bytes behind a multiple of 64; must be\na multiple of the element"),
        IQ_TEXT(0, "device", "KIND", c->device, "host", "where calls work: host, or cuda for the current device"),
        IQ_BYTES(0, "bound-bytes", "BYTES", c->bound_bytes, "64m", "what every rank copies to find the speed that memory allows;\na power of two from 4k on"),
        IQ_TEXT(0, "memory", "KIND", c->memory, "malloc", "malloc, or isgq for isgq_mem_alloc; on devices always isgq"),
        IQ_COUNT('r', "root", "RANK", c->root, 0, 65535, "0", "broadcast: the source"),
        IQ_COUNT('s', "seed", "NUMBER", c->seed, 1, 9e15, "1", "of the data and of every random decision"),
        IQ_TEXT('J', "json", "FILE", c->json, NULL, "write JSON to FILE; -: to stdout and nothing else there"),
        IQ_OPTIONS_END,
    };

    iq_options_parse(&program, options, argc, argv);
    c->local = iq_options_given(options, "nranks");
    c->cuda = strcmp(c->device, "cuda") == 0;
    check_together(c, options);
}

static iq_perf_collective_t collective_by_name(const char *name)
{
    for (int i = 0; iq_perf_collective_names[i] != NULL; i++)
        if (strcmp(iq_perf_collective_names[i], name) == 0)
            return (iq_perf_collective_t)i;
    iq_die(IQ_EXIT_USAGE, "'%s' is not a collective; there are allreduce, factored, reduce_scatter, allgather, broadcast", name);
}

static void list_collectives(sweep_t *sweep)
{
    const char *items[MAX_LIST];
    char *copy;
    size_t count = iq_split("--collective", sweep->command->collectives, ",", &copy, items, MAX_LIST);

    if (strcmp(items[0], "all") == 0 && count == 1)
        for (; sweep->ncollectives < IQ_PERF_COLLECTIVES; sweep->ncollectives++)
            sweep->collectives[sweep->ncollectives] = (iq_perf_collective_t)sweep->ncollectives;
    else
        for (; sweep->ncollectives < count; sweep->ncollectives++)
            sweep->collectives[sweep->ncollectives] = collective_by_name(items[sweep->ncollectives]);
    free(copy);
}

static void list_types(sweep_t *sweep)
{
    const char *items[MAX_LIST];
    char *copy;
    size_t count = iq_split("--datatype", sweep->command->types, ",", &copy, items, MAX_LIST);

    if (strcmp(items[0], "all") == 0 && count == 1)
        for (; iq_type_names[sweep->ntypes].name != NULL; sweep->ntypes++)
            sweep->types[sweep->ntypes] = &iq_type_names[sweep->ntypes];
    else
        for (; sweep->ntypes < count; sweep->ntypes++)
            sweep->types[sweep->ntypes] = iq_type_by_name(items[sweep->ntypes]);
    free(copy);
}

static void list_ops(sweep_t *sweep)
{
    const char *items[MAX_LIST];
    char *copy;
    size_t count = iq_split("--op", sweep->command->ops, ",", &copy, items, MAX_LIST);

    if (strcmp(items[0], "all") == 0 && count == 1)
        for (; iq_op_names[sweep->nops].name != NULL; sweep->nops++)
            sweep->ops[sweep->nops] = &iq_op_names[sweep->nops];
    else
        for (; sweep->nops < count; sweep->nops++)
            sweep->ops[sweep->nops] = iq_op_by_name(items[sweep->nops]);
    free(copy);
}

/* "dense=...;factored=..." is one quantizer although it holds a semicolon. */
static bool is_second_half(const char *first, const char *second)
{
    return (strncmp(first, "dense=", 6) == 0 && strncmp(second, "factored=", 9) == 0) ||
           (strncmp(first, "factored=", 9) == 0 && strncmp(second, "dense=", 6) == 0);
}

static void list_quantizers(sweep_t *sweep)
{
    const char *items[MAX_QUANTIZERS];
    char *copy, text[512];
    size_t count = iq_split("--quantizer", sweep->command->quantizers, ";", &copy, items, MAX_QUANTIZERS);

    for (size_t i = 0; i < count; i++) {
        snprintf(text, sizeof(text), "%s", items[i]);
        if (i + 1 < count && is_second_half(items[i], items[i + 1])) {
            snprintf(text, sizeof(text), "%s;%s", items[i], items[i + 1]);
            i++;
        }
        sweep->quantizers[sweep->nquantizers] = iq_quantizer_or_die(text);
        sweep->typed[sweep->nquantizers] = strdup(text);
        if (sweep->typed[sweep->nquantizers++] == NULL)
            iq_die(IQ_EXIT_FAILED, "out of memory");
    }
    free(copy);
}

static int list_algorithms(void)
{
    isgqx_algorithm_t algorithm = {.size = sizeof(algorithm)};

    for (size_t i = 0; isgqx_algorithm(i, &algorithm) == ISGQ_SUCCESS; i++)
        printf("%-14s  %-12s  %s\n", algorithm.collective, algorithm.name, algorithm.help);
    return IQ_EXIT_OK;
}

static void join(sweep_t *sweep)
{
    const command_t *c = sweep->command;
    iq_perf_setup_t *setup = &sweep->setup;
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;

    config.device_type = c->cuda ? ISGQ_DEVICE_CUDA : ISGQ_DEVICE_HOST;
    config.transports = strcmp(c->transport, "auto") == 0 ? NULL : c->transport;
    config.seed = c->seed;
    isgq_result_t result = isgq_comm_init_env(&setup->comm, &config);
    if (result == ISGQ_ERR_INVALID_USAGE)
        iq_die(IQ_EXIT_USAGE, "%s; or give -n RANKS", isgq_get_last_error());
    if (result == ISGQ_ERR_INVALID_ARGUMENT)
        iq_die(IQ_EXIT_USAGE, "%s", isgq_get_last_error());
    iq_check(result, -1, "joining");
    iq_check(isgq_comm_user_rank(setup->comm, &setup->rank), -1, "rank");
    iq_check(isgq_comm_count(setup->comm, &setup->nranks), -1, "ranks");
    setup->warmup = c->warmup;
    setup->bound_bytes = c->bound_bytes;
    setup->iterations = c->iterations;
    setup->calls = c->calls;
    setup->misalign = c->misalign;
    setup->in_place = c->in_place;
    setup->device = c->cuda;
    setup->library_memory = c->cuda || strcmp(c->memory, "isgq") == 0;
    iq_check(isgqx_device_name(setup->comm, setup->device_name, sizeof(setup->device_name)), setup->rank, "device");
    setup->bias = c->bias;
    setup->root = (int)c->root;
    setup->seed = c->seed;
    setup->none = iq_quantizer_or_die("none");
    if (setup->root >= setup->nranks)
        iq_die(IQ_EXIT_USAGE, "--root: there is no rank %d among %d ranks", setup->root, setup->nranks);
}

/* All ranks end here with status 2 and leave together; one of them says why. */
static void refuse(const sweep_t *sweep, const char *what)
{
    if (sweep->setup.rank == 0)
        iq_complain("%s: %s", what, isgq_get_last_error());
    isgq_comm_finalize(sweep->setup.comm);
    isgq_comm_destroy(sweep->setup.comm);
    exit(IQ_EXIT_USAGE);
}

/* With the first row, so that a refused command line prints nothing else. */
static void print_head(sweep_t *sweep)
{
    bool visible = sweep->setup.rank == 0 && sweep->json.file != stdout;
    int width = 0;

    for (size_t q = 0; q < sweep->nquantizers; q++) {
        int length = (int)strlen(sweep->typed[q]);
        width = length > width ? length : width;
    }
    iq_perf_report_head(&sweep->table, &sweep->setup, visible ? stdout : NULL, width);
}

static bool is_list(const sweep_t *sweep) { return sweep->ncollectives * sweep->ntypes * sweep->nops * sweep->nquantizers > 1; }

/* False: the library does not do this combination, whatever the size. */
static bool run_case(sweep_t *sweep, const iq_perf_case_t *test)
{
    iq_perf_result_t result;
    char what[256];

    snprintf(what, sizeof(what), "%s %s %s %s", iq_perf_collective_names[test->collective], test->type->name, test->op_name,
             test->quantizer_typed);
    if (sweep->setup.rank == 0)
        iq_progress_show("isgq_perf: row %zu: %s, %zu B", sweep->rows_done + 1, what, test->bytes);
    isgq_result_t status = iq_perf_run(&sweep->setup, test, &result);
    if (sweep->setup.rank == 0)
        iq_progress_clear();
    if (status == ISGQ_ERR_UNSUPPORTED && is_list(sweep)) {
        if (sweep->setup.rank == 0)
            iq_complain("skipped %s: %s", what, isgq_get_last_error());
        return false;
    }
    if (status == ISGQ_ERR_UNSUPPORTED || status == ISGQ_ERR_INVALID_ARGUMENT)
        refuse(sweep, what);
    iq_check(status, sweep->setup.rank, what);
    if (sweep->rows_done == 0)
        print_head(sweep);
    iq_perf_report_row(&sweep->table, &sweep->json, &sweep->setup, test, &result);
    sweep->rows_done++;
    sweep->bad_rows += result.wrong != 0 || result.hashes_differ;
    return true;
}

static void run_factored(sweep_t *sweep, iq_perf_case_t *test)
{
    const command_t *c = sweep->command;

    test->rows = c->rows;
    test->m = c->m;
    test->n = c->n;
    test->count = test->m * test->n;
    test->bytes = test->count * test->type->bytes; /* the gradient that the call stands for */
    run_case(sweep, test);
}

/* Sizes are bytes of a rank's input: of a reduce_scatter that is what all ranks receive together, of an allgather its own part. */
static void run_sizes(sweep_t *sweep, iq_perf_case_t *test)
{
    const command_t *c = sweep->command;
    size_t parts = test->collective == IQ_PERF_REDUCE_SCATTER ? (size_t)sweep->setup.nranks : 1;

    for (size_t bytes = c->first_bytes; bytes <= c->last_bytes; bytes = bytes == 0 ? 4 : bytes * c->factor) {
        test->count = bytes / test->type->bytes / parts;
        test->bytes = test->count * parts * test->type->bytes;
        if (!run_case(sweep, test))
            return;
    }
}

/* One collective, type and quantizer: all reductions that it has. */
static void run_ops(sweep_t *sweep, iq_perf_case_t *test)
{
    bool reduces = test->collective != IQ_PERF_ALLGATHER && test->collective != IQ_PERF_BROADCAST;

    for (size_t i = 0; i < (reduces ? sweep->nops : 1); i++) {
        test->op = reduces ? sweep->ops[i]->op : ISGQ_SUM;
        test->op_name = reduces ? sweep->ops[i]->name : "none";
        if (test->collective == IQ_PERF_FACTORED)
            run_factored(sweep, test);
        else
            run_sizes(sweep, test);
    }
}

static void run_all(sweep_t *sweep)
{
    for (size_t c = 0; c < sweep->ncollectives; c++)
        for (size_t d = 0; d < sweep->ntypes; d++)
            for (size_t q = 0; q < sweep->nquantizers; q++) {
                bool exact_only = sweep->collectives[c] == IQ_PERF_BROADCAST; /* never quantized: once is enough */
                isgq_quantizer_t quantizer = exact_only ? sweep->setup.none : sweep->quantizers[q];
                iq_perf_case_t test = {.collective = sweep->collectives[c],
                                       .type = sweep->types[d],
                                       .quantizer = quantizer,
                                       .quantizer_typed = exact_only ? "none" : sweep->typed[q],
                                       .quantizer_text = isgqx_quantizer_text(quantizer),
                                       .algorithm = sweep->algorithm};
                test.lossless = !test.type->quantizable || strcmp(test.quantizer_text, "none") == 0;
                if (!exact_only || q == 0)
                    run_ops(sweep, &test);
            }
}

static int run_ranks(sweep_t *sweep)
{
    iq_perf_setup_t *setup = &sweep->setup;

    join(sweep);
    setup->bound_gbs = iq_perf_copy_bound(setup);
    iq_json_open(&sweep->json, setup->rank == 0 ? sweep->command->json : NULL);
    run_all(sweep);
    bool written = iq_json_close(&sweep->json);
    if (sweep->rows_done == 0 && setup->rank == 0)
        iq_complain("nothing ran: the library supports none of these combinations");
    if (sweep->bad_rows > 0 && setup->rank == 0)
        iq_complain("%zu of %zu rows are wrong", sweep->bad_rows, sweep->rows_done);
    iq_check(isgq_comm_finalize(setup->comm), setup->rank, "leaving");
    isgq_comm_destroy(setup->comm);
    isgq_quantizer_destroy(setup->none);
    if (sweep->rows_done == 0)
        return IQ_EXIT_USAGE;
    return sweep->bad_rows == 0 && written ? IQ_EXIT_OK : IQ_EXIT_FAILED;
}

int main(int argc, char **argv)
{
    static sweep_t sweep;
    command_t command = {0};
    int devices;

    parse(&command, argc, argv);
    if (strcmp(command.algorithm, "help") == 0)
        return list_algorithms();
    sweep.command = &command;
    sweep.algorithm = strcmp(command.algorithm, "auto") == 0 ? NULL : command.algorithm;
    iq_transports_or_die(command.transport, command.local ? command.nranks : 0);
    list_collectives(&sweep);
    list_types(&sweep);
    list_ops(&sweep);
    list_quantizers(&sweep);
    if (command.cuda) /* before there are ranks that would all say the same */
        iq_check(isgqx_device_count(&devices), -1, "--device cuda");
    if (command.local && !iq_launch_is_rank()) {
        iq_json_probe(command.json);
        return iq_launch((int)command.nranks, argv);
    }
    int status = run_ranks(&sweep);
    for (size_t q = 0; q < sweep.nquantizers; q++) {
        isgq_quantizer_destroy(sweep.quantizers[q]);
        free(sweep.typed[q]);
    }
    return status;
}
