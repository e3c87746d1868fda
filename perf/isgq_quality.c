/* SPDX-License-Identifier: Apache-2.0 */
/*
 * isgq_quality: the error of every quantizer, and the bytes it takes. This file holds the command line and the report.
 *
 * All quantizers see the same values, so rows of one table differ by the quantizers alone.
 */
#include "perf/quality.h"
#include "tools/common/json.h"
#include "tools/common/launch.h"
#include "tools/common/names.h"
#include "tools/common/options.h"
#include "tools/common/progress.h"
#include "tools/common/table.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_QUANTIZERS = 128, MAX_LAYER_SIZE = 65536 };

const char *const iq_quality_kind_names[IQ_QUALITY_KINDS + 1] = {"dense", "factored", NULL};

static const iq_program_t program = {
    .name = "isgq_quality",
    .usage = "[-n RANKS] [--source SOURCE] [-q QUANTIZERS] [options]",
    .about =
        "The error of quantizers against the bytes they take: allreduces of the same values, repeated, between N ranks. One row "
        "for each\n"
        "quantizer and kind of call; perf/README.md says what the columns mean. Without -n the launcher's environment "
        "(torchrun,\n"
        "mpirun, srun) says who the ranks are.",
};

typedef struct command {
    size_t nranks, count, draws, seed, epochs, batch, layer, m, n;
    double correlation, rate;
    const char *source, *quantizers, *kind, *steps, *layers, *data, *transport, *json;
    bool local, trains, drawn, factors, counted;
} command_t;

typedef struct entry {
    isgq_quantizer_t quantizer;
    char typed[512]; /* as the user, or the list of presets, wrote it */
    bool preset;     /* of `all` */
    bool wanted[IQ_QUALITY_KINDS];
} entry_t;

typedef struct state {
    const command_t *command;
    entry_t entries[MAX_QUANTIZERS];
    size_t nentries;
    iq_quality_training_t training;
    iq_quality_setup_t setup;
    iq_quality_source_t source;
    iq_table_t table;
    iq_json_t json;
    size_t wanted, rows, broken;
    char unsupported[4096]; /* presets that this version does not have */
} state_t;

/* ---- the command line ---- */

static void check_together(const command_t *c, const iq_option_t *options)
{
    static const char *const training[] = {"steps", "layer", "layers", "epochs", "lr", "data"}, *const shape[] = {"m", "n"};

    for (size_t i = 0; i < sizeof(shape) / sizeof(shape[0]); i++)
        if (!c->factors && iq_options_given(options, shape[i]))
            iq_die(IQ_EXIT_USAGE, "--%s belongs to --source factors", shape[i]);
    if (!c->trains && !c->factors && iq_options_given(options, "batch"))
        iq_die(IQ_EXIT_USAGE, "--batch belongs to --source train and factors");
    for (size_t i = 0; i < sizeof(training) / sizeof(training[0]); i++)
        if (!c->trains && iq_options_given(options, training[i]))
            iq_die(IQ_EXIT_USAGE, "--%s belongs to --source train", training[i]);
    if ((c->trains || c->factors) && c->counted)
        iq_die(IQ_EXIT_USAGE, "--count means nothing to --source %s: layers have the sizes that they have", c->source);
    if (!c->drawn && iq_options_given(options, "correlation"))
        iq_die(IQ_EXIT_USAGE, "--correlation belongs to --source normal, laplace and student3");
    if (strcmp(c->kind, "auto") != 0 && strcmp(c->kind, "dense") != 0 && strcmp(c->kind, "factored") != 0 &&
        strcmp(c->kind, "both") != 0)
        iq_die(IQ_EXIT_USAGE, "--kind: '%s' is neither dense, factored, both nor auto", c->kind);
    if (!c->trains && !c->factors && (strcmp(c->kind, "factored") == 0 || strcmp(c->kind, "both") == 0))
        iq_die(IQ_EXIT_USAGE, "--kind %s needs --source train or factors: other sources have no factors", c->kind);
}

static void parse(command_t *c, int argc, char **argv)
{
    iq_option_t options[] = {
        IQ_COUNT('n', "nranks", "RANKS", c->nranks, 1, 4096, NULL, "start so many local ranks [the launcher's environment]"),
        IQ_TEXT(0, "source", "SOURCE", c->source, "normal",
                "normal, laplace, student3 (of 3 degrees of freedom): drawn;\n"
                "train: gradients and factors of isgq_train's network;\n"
                "factors: drawn, sparse as a trained network's, of one layer;\n"
                "or a file of little-endian f32, an n-th of it for each rank"),
        IQ_TEXT('q', "quantizer", "LIST", c->quantizers, "all",
                "quantizers; several with semicolons; all: a row for every family"),
        IQ_TEXT(0, "kind", "KIND", c->kind, "auto", "dense, factored, both; auto: both with --source train and\nfactors, else dense"),
        IQ_BYTES(0, "count", "ELEMENTS", c->count, "1m", "elements on each rank (k, m, g may follow); of a file at most"),
        IQ_REAL(0, "correlation", "SHARE", c->correlation, 0, 1, "0.05", "of the drawn values' energy, common to all ranks"),
        IQ_COUNT(0, "draws", "CALLS", c->draws, 2, 1e6, "32", "calls with fresh random numbers for each row"),
        IQ_TEXT(0, "steps", "LIST", c->steps, "100,400,1000",
                "train: the steps whose gradients are taken, ascending, with commas"),
        IQ_COUNT(0, "layer", "NUMBER", c->layer, 1, IQ_QUALITY_MOST_LAYERS, NULL, "train: this layer only, from 1 [all]"),
        IQ_TEXT(0, "layers", "LIST", c->layers, "784,1000,300,100,10", "train: units of the input, hidden layers, output"),
        IQ_COUNT('e', "epochs", "NUMBER", c->epochs, 1, 1e6, "3", "train: after which the learning rate would be 0"),
        IQ_COUNT('b', "batch", "ROWS", c->batch, 1, 1e6, "32", "train, factors: rows of one step on each rank"),
        IQ_COUNT(0, "m", "COLUMNS", c->m, 1, MAX_LAYER_SIZE, "1000", "factors: columns of X"),
        IQ_COUNT(0, "n", "COLUMNS", c->n, 1, MAX_LAYER_SIZE, "1000", "factors: columns of Delta"),
        IQ_REAL(0, "lr", "RATE", c->rate, 1e-9, 100, "0.2", "train: learning rate of the first step"),
        IQ_TEXT('d', "data", "FOLDER", c->data, "/usr/share/datasets/fashion-mnist", "train: as of isgq_train"),
        IQ_COUNT('s', "seed", "NUMBER", c->seed, 1, 9e15, "1", "of the values and of every random decision"),
        IQ_TEXT('t', "transport", "LIST", c->transport, "auto", "allowed transports, with commas: local, shm, ucx"),
        IQ_TEXT('J', "json", "FILE", c->json, NULL, "write JSON to FILE; -: to stdout and nothing else there"),
        IQ_OPTIONS_END,
    };

    iq_options_parse(&program, options, argc, argv);
    c->local = iq_options_given(options, "nranks");
    c->trains = strcmp(c->source, "train") == 0;
    c->factors = strcmp(c->source, "factors") == 0;
    c->drawn = iq_quality_is_drawn(c->source);
    c->counted = iq_options_given(options, "count");
    if (!iq_options_given(options, "layer"))
        c->layer = 0;
    if (c->count == 0)
        iq_die(IQ_EXIT_USAGE, "--count: there is nothing to measure in 0 elements");
    check_together(c, options);
}

/* Whole numbers with commas, ascending if `ascending`; returns how many. */
static size_t list_numbers(const char *what, const char *text, size_t least, size_t most, bool ascending, size_t *numbers,
                           size_t room)
{
    const char *items[32];
    char *copy, *end;
    size_t count = iq_split(what, text, ",", &copy, items, room);

    for (size_t i = 0; i < count; i++) {
        unsigned long number = strtoul(items[i], &end, 10);
        if (*end != '\0' || items[i][0] == '-' || number < least || number > most)
            iq_die(IQ_EXIT_USAGE, "%s: '%s' is not a number from %zu to %zu", what, items[i], least, most);
        numbers[i] = (size_t)number;
        if (ascending && i > 0 && numbers[i] <= numbers[i - 1])
            iq_die(IQ_EXIT_USAGE, "%s: %zu does not follow on %zu", what, numbers[i], numbers[i - 1]);
    }
    free(copy);
    return count;
}

static void read_training(state_t *state)
{
    const command_t *c = state->command;
    iq_quality_training_t *training = &state->training;

    *training =
        (iq_quality_training_t){.data = c->data, .epochs = c->epochs, .batch = c->batch, .layer = c->layer, .rate = c->rate};
    size_t sizes = list_numbers("--layers", c->layers, 1, MAX_LAYER_SIZE, false, training->sizes, IQ_QUALITY_MOST_LAYERS + 1);
    if (sizes < 2)
        iq_die(IQ_EXIT_USAGE, "--layers: '%s' needs at least an input and an output size", c->layers);
    training->nlayers = sizes - 1;
    if (c->layer > training->nlayers)
        iq_die(IQ_EXIT_USAGE, "--layer: there is no layer %zu among %zu", c->layer, training->nlayers);
    training->nsteps = list_numbers("--steps", c->steps, 0, 1000000000, true, training->steps, IQ_QUALITY_MOST_STEPS);
}

/* ---- quantizers ---- */

static bool is_kind(const command_t *c, iq_quality_kind_t kind)
{
    if (strcmp(c->kind, "both") == 0 || (strcmp(c->kind, "auto") == 0 && (c->trains || c->factors)))
        return true;
    return strcmp(c->kind, "factored") == 0 ? kind == IQ_QUALITY_FACTORED : kind == IQ_QUALITY_DENSE;
}

static void add_entry(state_t *state, const char *text, isgq_quantizer_t quantizer, bool preset, bool dense, bool factored)
{
    if (state->nentries == MAX_QUANTIZERS)
        iq_die(IQ_EXIT_USAGE, "--quantizer: more than %d quantizers", MAX_QUANTIZERS);
    entry_t *entry = &state->entries[state->nentries++];
    *entry = (entry_t){.quantizer = quantizer, .preset = preset};
    snprintf(entry->typed, sizeof(entry->typed), "%s", text);
    entry->wanted[IQ_QUALITY_DENSE] = dense && is_kind(state->command, IQ_QUALITY_DENSE);
    entry->wanted[IQ_QUALITY_FACTORED] = factored && is_kind(state->command, IQ_QUALITY_FACTORED);
    state->wanted += (size_t)entry->wanted[IQ_QUALITY_DENSE] + (size_t)entry->wanted[IQ_QUALITY_FACTORED];
}

static void note_unsupported(state_t *state, const char *text)
{
    size_t used = strlen(state->unsupported);

    snprintf(state->unsupported + used, sizeof(state->unsupported) - used, "%s%s", used > 0 ? "; " : "", text);
}

static void list_presets(state_t *state)
{
    for (const iq_quality_preset_t *preset = iq_quality_presets; preset->text != NULL; preset++) {
        isgq_quantizer_t quantizer;
        isgq_result_t result = isgq_quantizer_create(&quantizer, preset->text);
        if (result == ISGQ_SUCCESS)
            add_entry(state, preset->text, quantizer, true, preset->dense, preset->factored);
        else if (result == ISGQ_ERR_UNSUPPORTED)
            note_unsupported(state, preset->text);
        else
            iq_check(result, -1, preset->text);
    }
}

/* "dense=...;factored=..." is one quantizer although it holds a semicolon. */
static bool is_second_half(const char *first, const char *second)
{
    return (strncmp(first, "dense=", 6) == 0 && strncmp(second, "factored=", 9) == 0) ||
           (strncmp(first, "factored=", 9) == 0 && strncmp(second, "dense=", 6) == 0);
}

static void list_quantizers(state_t *state)
{
    const char *items[MAX_QUANTIZERS];
    char *copy, text[512];
    size_t count = iq_split("--quantizer", state->command->quantizers, ";", &copy, items, MAX_QUANTIZERS);

    for (size_t i = 0; i < count; i++) {
        snprintf(text, sizeof(text), "%s", items[i]);
        if (strcmp(text, "all") == 0) {
            list_presets(state);
            continue;
        }
        if (i + 1 < count && is_second_half(items[i], items[i + 1])) {
            snprintf(text, sizeof(text), "%s;%s", items[i], items[i + 1]);
            i++;
        }
        add_entry(state, text, iq_quantizer_or_die(text), false, true, true);
    }
    free(copy);
}

/* ---- ranks ---- */

static void join(state_t *state)
{
    const command_t *c = state->command;
    iq_quality_setup_t *setup = &state->setup;
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;

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
    iq_check(isgq_comm_split(setup->comm, 0, setup->rank, &setup->measure, &config), setup->rank, "splitting");
    setup->none = iq_quantizer_or_die("none");
    setup->seed = c->seed;
    setup->draws = c->draws;
}

static void leave(state_t *state)
{
    iq_quality_setup_t *setup = &state->setup;

    iq_check(isgq_comm_finalize(setup->measure), setup->rank, "leaving");
    isgq_comm_destroy(setup->measure);
    iq_check(isgq_comm_finalize(setup->comm), setup->rank, "leaving");
    isgq_comm_destroy(setup->comm);
    isgq_quantizer_destroy(setup->none);
}

static void make_source(state_t *state)
{
    const command_t *c = state->command;

    if (c->trains)
        iq_quality_train(&state->source, &state->setup, &state->training);
    else if (c->factors)
        iq_quality_draw_factors(&state->source, &state->setup, c->batch, c->m, c->n);
    else if (c->drawn)
        iq_quality_draw(&state->source, &state->setup, c->source, c->count, c->correlation);
    else
        iq_quality_read(&state->source, &state->setup, c->source, c->counted ? c->count : SIZE_MAX);
    iq_quality_source_settle(&state->source, &state->setup);
}

/* ---- report ---- */

static const iq_column_t columns[] = {
    {"kind", "", 8, true},        {"quantizer", "", 16, true},  {"family", "", 12, true}, {"bits", "", 7, false},
    {"ratio", "", 7, false},      {"gain", "", 7, false},       {"nmse", "", 9, false},   {"bias", "std err", 8, false},
    {"encode", "GB/s", 7, false}, {"decode", "GB/s", 7, false}, {NULL, NULL, 0, false},
};

static void report_head(state_t *state)
{
    const command_t *c = state->command;
    bool table = state->setup.rank == 0 && state->json.file != stdout;

    iq_table_init(&state->table, table ? stdout : NULL, columns);
    for (size_t i = 0; i < state->nentries; i++)
        iq_table_reserve(&state->table, "quantizer", (int)strlen(state->entries[i].typed));
    if (table) {
        printf("# isgq_quality: %s on each of %d ranks, %zu draws, seed %zu", state->source.about, state->setup.nranks, c->draws,
               c->seed);
        if (isfinite(state->source.correlation))
            printf(", correlation of ranks %.3f", state->source.correlation);
        printf("\n");
    }
    iq_table_head(&state->table);
}

/* The family that serves this kind of call: "uniform" of "dense=uniform:bits=4;factored=isgq". */
static void family_of(const char *text, iq_quality_kind_t kind, char *family, size_t bytes)
{
    const char *part = strstr(text, kind == IQ_QUALITY_DENSE ? "dense=" : "factored=");

    snprintf(family, bytes, "%s", part == NULL ? text : strchr(part, '=') + 1);
    family[strcspn(family, ":;")] = '\0';
}

static void cell(iq_table_t *table, const char *format, double value)
{
    char text[64];

    if (isnan(value)) {
        iq_table_cell(table, "-");
        return;
    }
    if (strcmp(format, "bias") == 0)
        snprintf(text, sizeof(text), value < 1e4 ? "%.2f" : "%.1e", value);
    else if (strcmp(format, "nmse") == 0)
        snprintf(text, sizeof(text), value > 0.0 ? "%.3e" : "%.0f", value);
    else
        snprintf(text, sizeof(text), value < 100.0 ? "%.3f" : "%.1f", value);
    iq_table_cell(table, "%s", text);
}

static void report_table(state_t *state, const entry_t *entry, iq_quality_kind_t kind, const char *family,
                         const iq_quality_result_t *result)
{
    iq_table_t *table = &state->table;

    iq_table_cell(table, "%s", iq_quality_kind_names[kind]);
    iq_table_cell(table, "%s", entry->typed);
    iq_table_cell(table, "%s", family);
    cell(table, "", 32.0 / result->ratio);
    cell(table, "", result->ratio);
    cell(table, "", result->gain);
    cell(table, "nmse", result->nmse);
    cell(table, "bias", result->bias);
    cell(table, "", result->encode_gbs);
    cell(table, "", result->decode_gbs);
}

static void report_json(state_t *state, const entry_t *entry, iq_quality_kind_t kind, const char *family,
                        const iq_quality_result_t *result)
{
    iq_json_t *json = &state->json;

    iq_json_row_begin(json);
    iq_json_text(json, "source", state->command->source);
    iq_json_text(json, "kind", iq_quality_kind_names[kind]);
    iq_json_text(json, "quantizer", isgqx_quantizer_text(entry->quantizer));
    iq_json_text(json, "typed", entry->typed);
    iq_json_text(json, "family", family);
    iq_json_count(json, "nranks", (uint64_t)state->setup.nranks);
    iq_json_count(json, "count", state->source.samples[0].count);
    iq_json_count(json, "draws", state->setup.draws);
    iq_json_real(json, "correlation", state->source.correlation);
    iq_json_real(json, "bits", 32.0 / result->ratio);
    iq_json_real(json, "ratio", result->ratio);
    iq_json_real(json, "gain", result->gain);
    iq_json_real(json, "nmse", result->nmse);
    iq_json_real(json, "bias", result->bias);
    iq_json_real(json, "encode_gbs", result->encode_gbs);
    iq_json_real(json, "decode_gbs", result->decode_gbs);
    iq_json_row_end(json);
}

/* Presets are named together at the end; what the user asked for gets the library's sentence. */
static void refused(state_t *state, const entry_t *entry, iq_quality_kind_t kind)
{
    char text[540];

    iq_progress_clear();
    snprintf(text, sizeof(text), "%s (%s)", entry->typed, iq_quality_kind_names[kind]);
    if (entry->preset)
        note_unsupported(state, text);
    else if (state->wanted > 1)
        iq_complain("skipped %s: %s", text, isgq_get_last_error());
    else
        iq_complain("%s: %s", text, isgq_get_last_error());
}

static void run_entry(state_t *state, const entry_t *entry, iq_quality_kind_t kind)
{
    iq_quality_result_t result;
    char family[64];
    bool first = state->setup.rank == 0;

    if (first)
        iq_progress_show("isgq_quality: row %zu: %s, %s", state->rows + 1, entry->typed, iq_quality_kind_names[kind]);
    isgq_result_t status = iq_quality_measure(&state->setup, &state->source, kind, entry->quantizer, &result);
    if (status == ISGQ_ERR_UNSUPPORTED) {
        if (first)
            refused(state, entry, kind);
        return;
    }
    iq_check(status, state->setup.rank, entry->typed);
    result.encode_gbs = result.decode_gbs = NAN;
    if (kind == IQ_QUALITY_DENSE)
        iq_quality_clock(&state->setup, &state->source, entry->quantizer, &result);
    if (first)
        iq_progress_clear();
    if (state->rows++ == 0)
        report_head(state);
    family_of(isgqx_quantizer_text(entry->quantizer), kind, family, sizeof(family));
    report_table(state, entry, kind, family, &result);
    report_json(state, entry, kind, family, &result);
    if (result.broken && first)
        iq_complain("%s, %s: ranks hold different results, or one is not finite", entry->typed, iq_quality_kind_names[kind]);
    state->broken += result.broken;
}

static int run_ranks(state_t *state)
{
    join(state);
    make_source(state);
    iq_json_open(&state->json, state->setup.rank == 0 ? state->command->json : NULL);
    for (int kind = 0; kind < IQ_QUALITY_KINDS; kind++)
        for (size_t i = 0; i < state->nentries; i++)
            if (state->entries[i].wanted[kind])
                run_entry(state, &state->entries[i], (iq_quality_kind_t)kind);
    bool written = iq_json_close(&state->json);
    if (state->setup.rank == 0 && state->unsupported[0] != '\0')
        iq_complain("not supported by this version: %s", state->unsupported);
    if (state->rows == 0 && state->wanted > 1 && state->setup.rank == 0)
        iq_complain("nothing ran: the library supports none of these quantizers here");
    iq_quality_source_close(&state->source);
    leave(state);
    if (state->rows == 0)
        return IQ_EXIT_USAGE;
    return state->broken == 0 && written ? IQ_EXIT_OK : IQ_EXIT_FAILED;
}

int main(int argc, char **argv)
{
    static state_t state;
    command_t command = {0};
    int status;

    parse(&command, argc, argv);
    state.command = &command;
    iq_transports_or_die(command.transport, command.local ? command.nranks : 0);
    list_quantizers(&state);
    if (command.trains)
        read_training(&state);
    if (command.local && !iq_launch_is_rank()) {
        if (command.trains)
            iq_quality_train_check(&state.training, (int)command.nranks);
        else if (!command.drawn && !command.factors)
            (void)iq_quality_file_part(command.source, (int)command.nranks);
        iq_json_probe(command.json);
        status = iq_launch((int)command.nranks, argv);
    } else {
        status = run_ranks(&state);
    }
    for (size_t i = 0; i < state.nentries; i++)
        isgq_quantizer_destroy(state.entries[i].quantizer);
    return status;
}
