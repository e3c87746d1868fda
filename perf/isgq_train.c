/* SPDX-License-Identifier: Apache-2.0 */
/*
 * isgq_train: one network, several ways to sum its gradients, side by side. This file holds the command line and the report.
 *
 * Every mode starts from the same weights and sees the same images in the same order, so rows differ by the gradients alone.
 */
#include "perf/train.h"
#include "tools/common/json.h"
#include "tools/common/launch.h"
#include "tools/common/names.h"
#include "tools/common/options.h"
#include "tools/common/progress.h"
#include "tools/common/table.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_MODES = 32, MAX_LAYER_SIZE = 65536 };

static const iq_program_t program = {
    .name = "isgq_train",
    .usage = "[-n RANKS] [--grad MODES] [-q QUANTIZER] [options]",
    .about = "Train a fully connected network on IDX files (MNIST, Fashion-MNIST) with N data-parallel ranks, once for each "
             "gradient mode:\n"
             "  exact     gradients summed in fp32\n"
             "  dense     gradients quantized by -q\n"
             "  factored  the layers' inputs and output gradients quantized by -q and exchanged instead of the gradients\n"
             "  coarse    gradients quantized by --coarse: how a bad quantizer looks in the same table\n"
             "Columns: accuracy and loss on the test images; nmse of the summed gradients (mean over every 50th step); seconds "
             "of training\n"
             "and of waiting for gradients; bytes that the busiest rank sent for gradients; ratio: the bytes of an fp32 ring "
             "over that;\n"
             "gain: a rank's fp32 gradients over what it contributed itself; hash of the final weights, equal on all ranks.",
};

typedef struct command {
    size_t nranks, epochs, batch, total_batch, seed;
    double rate;
    const char *grad, *quantizer, *coarse, *layers, *data, *transport, *device, *json;
    bool local;
} command_t;

typedef struct program_state {
    const command_t *command;
    iq_train_mode_t modes[MAX_MODES];
    size_t nmodes;
    size_t sizes[IQ_TRAIN_MAX_LAYERS + 1], nlayers;
    iq_train_data_t data;
    iq_train_net_t net;
    const iq_train_ops_t *ops; /* that of --device */
    char device_name[128];
    iq_train_setup_t setup;
    iq_table_t table;
    iq_json_t json;
} state_t;

static void parse(command_t *c, int argc, char **argv)
{
    iq_option_t options[] = {
        IQ_COUNT('n', "nranks", "RANKS", c->nranks, 1, 4096, NULL, "start so many local ranks [the launcher's environment]"),
        IQ_TEXT(
            'g', "grad", "LIST", c->grad, "exact,dense,factored,coarse",
            "gradient modes, with commas; mode:quantizer overrides -q,\nas in exact,factored:isgq:bits=2,factored:isgq:bits=4"),
        IQ_TEXT('q', "quantizer", "TEXT", c->quantizer, "isgq:bits=4", "quantizer of dense and factored"),
        IQ_TEXT(0, "coarse", "TEXT", c->coarse, "uniform:bits=2", "quantizer of coarse"),
        IQ_TEXT(0, "layers", "LIST", c->layers, "784,1000,300,100,10", "units: input, hidden layers, output"),
        IQ_COUNT('e', "epochs", "NUMBER", c->epochs, 1, 1e6, "3", "passes over the training images"),
        IQ_COUNT('b', "batch", "ROWS", c->batch, 1, 1e6, "32", "images of one step on each rank"),
        IQ_COUNT('B', "total-batch", "ROWS", c->total_batch, 1, 1e8, NULL,
                 "images of one step, divided among the ranks; instead of --batch"),
        IQ_REAL(0, "lr", "RATE", c->rate, 1e-9, 100, "0.2", "learning rate of the first step; falls linearly to 0"),
        IQ_COUNT('s', "seed", "NUMBER", c->seed, 1, 9e15, "1", "of weights, order of images and every random decision"),
        IQ_TEXT('d', "data", "FOLDER", c->data, "/usr/share/datasets/fashion-mnist",
                "folder with train-images-idx3-ubyte, train-labels-idx1-ubyte,\n"
                "t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte (or each with .gz)"),
        IQ_TEXT('t', "transport", "LIST", c->transport, "auto", "allowed transports, with commas: local, shm, ucx"),
        IQ_TEXT(0, "device", "KIND", c->device, "host",
                "where the network and its gradients are: host, or cuda for the current device"),
        IQ_TEXT('J', "json", "FILE", c->json, NULL, "write JSON to FILE; -: to stdout and nothing else there"),
        IQ_OPTIONS_END,
    };

    iq_options_parse(&program, options, argc, argv);
    c->local = iq_options_given(options, "nranks");
    if (!iq_options_given(options, "total-batch"))
        c->total_batch = 0;
    else if (iq_options_given(options, "batch"))
        iq_die(IQ_EXIT_USAGE, "--batch and --total-batch exclude each other");
    if (c->local && c->total_batch > 0 && c->total_batch < c->nranks)
        iq_die(IQ_EXIT_USAGE, "--total-batch: %zu rows leave some of %zu ranks without any", c->total_batch, c->nranks);
}

/* ---- modes ---- */

static const struct mode_kind {
    const char *name;
    iq_train_kind_t kind;
} mode_kinds[] = {
    {"exact", IQ_TRAIN_DENSE},  {"dense", IQ_TRAIN_DENSE}, {"factored", IQ_TRAIN_FACTORED},
    {"coarse", IQ_TRAIN_DENSE}, {NULL, IQ_TRAIN_DENSE},
};

/* The mode that an item names, alone or before a colon. NULL: it belongs to the quantizer before it, as in
 * "dense:uniform:bits=4,scale=local". */
static const struct mode_kind *mode_of(const char *item)
{
    for (const struct mode_kind *kind = mode_kinds; kind->name != NULL; kind++) {
        size_t length = strlen(kind->name);
        if (strncmp(item, kind->name, length) == 0 && (item[length] == '\0' || item[length] == ':'))
            return kind;
    }
    return NULL;
}

static void add_mode(state_t *state, const char *text)
{
    const command_t *c = state->command;
    const struct mode_kind *kind = mode_of(text);
    const char *colon = strchr(text, ':'), *quantizer = c->quantizer;

    if (state->nmodes == MAX_MODES)
        iq_die(IQ_EXIT_USAGE, "--grad: more than %d modes", MAX_MODES);
    if (strcmp(kind->name, "exact") == 0)
        quantizer = "none";
    if (strcmp(kind->name, "coarse") == 0)
        quantizer = c->coarse;
    if (colon != NULL && strcmp(kind->name, "exact") == 0)
        iq_die(IQ_EXIT_USAGE, "--grad: exact takes no quantizer");
    if (colon != NULL)
        quantizer = colon + 1;
    iq_train_mode_t *mode = &state->modes[state->nmodes++];
    *mode = (iq_train_mode_t){.name = kind->name, .kind = kind->kind, .quantizer = iq_quantizer_or_die(quantizer)};
    snprintf(mode->typed, sizeof(mode->typed), "%s", quantizer);
}

static void list_modes(state_t *state)
{
    const char *items[4 * MAX_MODES];
    char *copy, text[512];
    size_t count = iq_split("--grad", state->command->grad, ",", &copy, items, 4 * MAX_MODES);

    for (size_t i = 0; i < count;) {
        if (mode_of(items[i]) == NULL)
            iq_die(IQ_EXIT_USAGE, "--grad: '%s' is not a mode; there are exact, dense, factored, coarse", items[i]);
        int used = snprintf(text, sizeof(text), "%s", items[i]);
        bool may_go_on = strchr(items[i++], ':') != NULL;
        for (; may_go_on && i < count && mode_of(items[i]) == NULL && used < (int)sizeof(text); i++)
            used += snprintf(text + used, sizeof(text) - (size_t)used, ",%s", items[i]);
        if (used >= (int)sizeof(text))
            iq_die(IQ_EXIT_USAGE, "--grad: '%.40s...' is too long", text);
        add_mode(state, text);
    }
    free(copy);
}

static void list_layers(state_t *state)
{
    const char *items[IQ_TRAIN_MAX_LAYERS + 1];
    char *copy, *end;
    size_t count = iq_split("--layers", state->command->layers, ",", &copy, items, IQ_TRAIN_MAX_LAYERS + 1);

    if (count < 2)
        iq_die(IQ_EXIT_USAGE, "--layers: '%s' needs at least an input and an output size", state->command->layers);
    for (size_t i = 0; i < count; i++) {
        unsigned long units = strtoul(items[i], &end, 10);
        if (*end != '\0' || items[i][0] == '-' || units < 1 || units > MAX_LAYER_SIZE)
            iq_die(IQ_EXIT_USAGE, "--layers: '%s' is not a number of units from 1 to %d", items[i], MAX_LAYER_SIZE);
        state->sizes[i] = (size_t)units;
    }
    state->nlayers = count - 1;
    free(copy);
}

/* ---- ranks ---- */

static void share_rows(state_t *state)
{
    const command_t *c = state->command;
    iq_train_setup_t *setup = &state->setup;
    size_t n = (size_t)setup->nranks, rank = (size_t)setup->rank;

    setup->total_rows = c->total_batch > 0 ? c->total_batch : c->batch * n;
    size_t rest = setup->total_rows % n, whole = setup->total_rows / n;
    setup->rows = whole + (rank < rest);
    setup->first_row = whole * rank + (rank < rest ? rank : rest);
    setup->max_rows = whole + (rest > 0);
    if (whole == 0)
        iq_die(IQ_EXIT_USAGE, "--total-batch: %zu rows leave some of %zu ranks without any", setup->total_rows, n);
}

static int own_rank = -1; /* not known yet */

static void give_up(const char *sentence)
{
    if (own_rank < 0)
        iq_die(IQ_EXIT_FAILED, "%s", sentence);
    iq_die(IQ_EXIT_FAILED, "rank %d: %s", own_rank, sentence);
}

static void join(state_t *state)
{
    const command_t *c = state->command;
    iq_train_setup_t *setup = &state->setup;
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;

    config.device_type = state->ops->device_type;
    config.transports = strcmp(c->transport, "auto") == 0 ? NULL : c->transport;
    config.seed = c->seed;
    isgq_result_t result = isgq_comm_init_env(&setup->comm, &config);
    if (result == ISGQ_ERR_INVALID_USAGE)
        iq_die(IQ_EXIT_USAGE, "%s; or give -n RANKS", isgq_get_last_error());
    if (result == ISGQ_ERR_INVALID_ARGUMENT)
        iq_die(IQ_EXIT_USAGE, "%s", isgq_get_last_error());
    iq_check(result, -1, "joining");
    iq_check(isgq_comm_user_rank(setup->comm, &setup->rank), -1, "rank");
    own_rank = setup->rank;
    iq_check(isgq_comm_count(setup->comm, &setup->nranks), -1, "ranks");
    iq_check(isgqx_device_name(setup->comm, state->device_name, sizeof(state->device_name)), setup->rank, "device");
    if (config.device_type != ISGQ_DEVICE_HOST)
        config.transports = NULL;
    config.device_type = ISGQ_DEVICE_HOST;
    iq_check(isgq_comm_split(setup->comm, 0, setup->rank, &setup->measure, &config), setup->rank, "splitting");
    setup->ops = state->ops;
    setup->none = iq_quantizer_or_die("none");
    setup->epochs = c->epochs;
    setup->rate = c->rate;
    setup->seed = c->seed;
    setup->data = &state->data;
    setup->net = &state->net;
    share_rows(state);
}

/* Also in the parent of local ranks, so that one process complains and not all. */
static void check_data(const state_t *state, size_t nranks)
{
    const command_t *c = state->command;
    size_t total = c->total_batch > 0 ? c->total_batch : c->batch * nranks;

    if (state->data.train.pixels != state->sizes[0])
        iq_die(IQ_EXIT_USAGE, "--layers: the images have %zu pixels, the first layer %zu units", state->data.train.pixels,
               state->sizes[0]);
    if (total > state->data.train.count)
        iq_die(IQ_EXIT_USAGE, "a step of %zu rows is more than the %zu training images", total, state->data.train.count);
}

/* ---- report ---- */

static const iq_column_t columns[] = {
    {"mode", "", 8, true},
    {"quantizer", "", 12, true},
    {"nranks", "", 6, false},
    {"epochs", "", 6, false},
    {"batch", "rows/rank", 5, false},
    {"accuracy", "%", 8, false},
    {"loss", "nats", 6, false},
    {"nmse", "", 9, false},
    {"seconds", "s", 7, false},
    {"comm_seconds", "s", 12, false},
    {"grad_bytes", "B", 12, false},
    {"ratio", "", 7, false},
    {"gain", "", 7, false},
    {"hash", "", 16, true},
    {NULL, NULL, 0, false},
};

static void report_head(state_t *state)
{
    const iq_train_setup_t *setup = &state->setup;
    bool table = setup->rank == 0 && state->json.file != stdout;

    iq_table_init(&state->table, table ? stdout : NULL, columns);
    for (size_t i = 0; i < state->nmodes; i++)
        iq_table_reserve(&state->table, "quantizer", (int)strlen(state->modes[i].typed));
    if (table)
        printf("# isgq_train: layers %s, %zu training and %zu test images, %zu rows a step on %d ranks, learning rate %g, seed "
               "%" PRIu64 "\n",
               state->command->layers, state->data.train.count, state->data.test.count, setup->total_rows, setup->nranks,
               setup->rate, setup->seed);
    if (table && state->ops->device_type != ISGQ_DEVICE_HOST)
        printf("# network and gradients: %s\n", state->device_name);
    iq_table_head(&state->table);
}

static void cell_if_finite(iq_table_t *table, double value)
{
    if (isfinite(value))
        iq_table_cell(table, "%.2f", value);
    else
        iq_table_cell(table, "-");
}

static void report_table(state_t *state, const iq_train_mode_t *mode, const iq_train_result_t *result)
{
    iq_table_t *table = &state->table;

    iq_table_cell(table, "%s", mode->name);
    iq_table_cell(table, "%s", mode->typed);
    iq_table_cell(table, "%d", state->setup.nranks);
    iq_table_cell(table, "%zu", state->setup.epochs);
    iq_table_cell(table, "%zu", state->setup.max_rows);
    iq_table_cell(table, "%.2f", result->accuracy);
    iq_table_cell(table, "%.4f", result->loss);
    iq_table_cell(table, result->nmse > 0.0 ? "%.3e" : "%.0f", result->nmse);
    iq_table_cell(table, "%.2f", result->seconds);
    iq_table_cell(table, "%.2f", result->comm_seconds);
    iq_table_cell(table, "%" PRIu64, result->grad_bytes);
    cell_if_finite(table, result->ratio);
    cell_if_finite(table, result->gain);
    if (result->hashes_differ)
        iq_table_cell(table, "RANKS DIFFER");
    else
        iq_table_cell(table, "%016" PRIx64, result->hash);
}

static void report_json(state_t *state, const iq_train_mode_t *mode, const iq_train_result_t *result)
{
    iq_json_t *json = &state->json;

    iq_json_row_begin(json);
    iq_json_text(json, "mode", mode->name);
    iq_json_text(json, "quantizer", isgqx_quantizer_text(mode->quantizer));
    iq_json_text(json, "device", state->device_name);
    iq_json_count(json, "nranks", (uint64_t)state->setup.nranks);
    iq_json_count(json, "epochs", state->setup.epochs);
    iq_json_count(json, "batch", state->setup.max_rows);
    iq_json_count(json, "total_batch", state->setup.total_rows);
    iq_json_count(json, "steps", result->steps);
    iq_json_real(json, "accuracy", result->accuracy);
    iq_json_real(json, "loss", result->loss);
    iq_json_real(json, "nmse", result->nmse);
    iq_json_real(json, "seconds", result->seconds);
    iq_json_real(json, "comm_seconds", result->comm_seconds);
    iq_json_count(json, "grad_bytes", result->grad_bytes);
    iq_json_real(json, "ratio", result->ratio);
    iq_json_real(json, "gain", result->gain);
    iq_json_hash(json, "hash", result->hash);
    iq_json_row_end(json);
}

/* False if ranks ended with different weights. */
static bool run_mode(state_t *state, const iq_train_mode_t *mode)
{
    iq_train_result_t result;

    iq_train_run(&state->setup, mode, &result);
    if (state->setup.rank == 0 && (!isatty(STDERR_FILENO) || state->json.file == stdout))
        iq_complain("%s %s: accuracy %.2f %%, nmse %.2e, %.1f s, %.1f MB sent", mode->name, mode->typed, result.accuracy,
                    result.nmse, result.seconds, (double)result.grad_bytes * 1e-6);
    report_table(state, mode, &result);
    report_json(state, mode, &result);
    if (result.hashes_differ && state->setup.rank == 0)
        iq_complain("%s %s: ranks ended with different weights", mode->name, mode->typed);
    return !result.hashes_differ;
}

static int run_ranks(state_t *state)
{
    bool good = true;

    state->ops->open(give_up);
    join(state);
    check_data(state, (size_t)state->setup.nranks);
    iq_train_data_place(&state->data, state->ops);
    iq_train_net_open(&state->net, state->ops, state->sizes, state->nlayers, state->setup.max_rows);
    iq_train_warm_up(&state->setup);
    iq_json_open(&state->json, state->setup.rank == 0 ? state->command->json : NULL);
    report_head(state);
    for (size_t i = 0; i < state->nmodes; i++)
        good &= run_mode(state, &state->modes[i]);
    good &= iq_json_close(&state->json);
    iq_train_net_close(&state->net);
    iq_train_data_release(&state->data, state->ops);
    iq_check(isgq_comm_finalize(state->setup.measure), state->setup.rank, "leaving");
    isgq_comm_destroy(state->setup.measure);
    iq_check(isgq_comm_finalize(state->setup.comm), state->setup.rank, "leaving");
    isgq_comm_destroy(state->setup.comm);
    state->ops->close();
    isgq_quantizer_destroy(state->setup.none);
    return good ? IQ_EXIT_OK : IQ_EXIT_FAILED;
}

int main(int argc, char **argv)
{
    static state_t state;
    command_t command = {0};
    int status;

    parse(&command, argc, argv);
    state.command = &command;
    iq_transports_or_die(command.transport, command.local ? command.nranks : 0);
    list_modes(&state);
    list_layers(&state);
    state.ops = iq_train_ops_find(command.device); /* before there are ranks that would all say the same */
    iq_train_data_open(&state.data, command.data, state.sizes[state.nlayers]);
    if (command.local && !iq_launch_is_rank()) {
        check_data(&state, command.nranks);
        iq_train_data_close(&state.data); /* each rank reads it itself */
        iq_json_probe(command.json);
        status = iq_launch((int)command.nranks, argv);
    } else {
        status = run_ranks(&state);
    }
    for (size_t i = 0; i < state.nmodes; i++)
        isgq_quantizer_destroy(state.modes[i].quantizer);
    return status;
}
