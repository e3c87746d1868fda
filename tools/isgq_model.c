/* SPDX-License-Identifier: Apache-2.0 */
/*
 * isgq_model: predicted time of a training step's sums on a cluster that is described, not there: every way, every quantizer, any number
 * of ranks, and which of them is best, doing nothing included.
 */
#include "tools/common/json.h"
#include "tools/common/names.h"
#include "tools/common/options.h"
#include "tools/common/table.h"
#include "tools/model_cluster.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const iq_program_t program = {
    .name = "isgq_model",
    .usage = "[--cluster LEVELS] [--layers LIST] [options]",
    .about = "Predict the time that the gradients of a network's layers take to be summed, from closed formulas (docs/model.md).\n"
             "Ways: direct, ring, levels (hierarchical), tree (as the Global-QSGD paper models it), powersgd;\n"
             "for factors: gather, shared (a host's ranks share the product), owners (a grid of ranks).\n"
             "\"best\" takes for each layer what is fastest, values as they are included.",
};

#define MAX_QUANTIZERS 32
#define MAX_SIZES 32
#define PRESETS "none;bf16;uniform:bits=8;uniform:bits=4;global-qsgd:levels=7;isgq:bits=4;isgq:bits=2"

typedef struct model {
    isgqx_machine_t machine;
    isgqx_tuning_t tuning;           /* with --table */
    bool own_encode, own_decode;     /* speeds of each quantizer are those of the table */
    bool corrects;                   /* by the table: the cluster is where it was measured */
    iq_model_layer_t layers[IQ_MODEL_LAYERS];
    size_t nlayers;
    double rows;
    double compute, hidden; /* seconds, share */
    bool per_layer;
    iq_table_t table;
    iq_json_t json;
} model_t;

typedef struct options {
    const char *cluster, *layers, *quantizers, *ranks, *json, *table;
    double rows, copy, sum, encode, decode, product, message, overlap, compute, hidden;
    bool per_layer, given[7]; /* given: the speeds, in the order of speed_names */
    bool cluster_given;
} options_t;

static const char *const speed_names[] = {"copy", "sum", "encode", "decode", "product", "message", "overlap"};

/* The sum over layers of one way; `exists` is false where it cannot run. */
typedef struct sums {
    bool exists;
    isgqx_cost_t cost;
} sums_t;

static const iq_column_t columns[] = {
    {"ranks", "", 6, false}, {"layer", "", 9, true},       {"way", "", 8, true},       {"quantizer", "", 20, true}, {"ratio", "", 7, false},
    {"sent", "MB", 9, false}, {"latency", "ms", 9, false}, {"wire", "ms", 9, false},   {"codec", "ms", 9, false},   {"product", "ms", 9, false},
    {"total", "ms", 9, false}, {"step", "ms", 9, false},   {"speed-up", "", 8, false}, {NULL, NULL, 0, false},
};

/* ---- asking the library ---- */

static void add(isgqx_cost_t *sum, const isgqx_cost_t *cost)
{
    sum->sent += cost->sent;
    sum->latency += cost->latency;
    sum->wire += cost->wire;
    sum->codec += cost->codec;
    sum->product += cost->product;
    sum->total += cost->total;
}

static bool is_dense(const char *way)
{
    const char *name;
    int factored = 1;
    for (size_t i = 0; isgqx_cost_way(i, &name, &factored) == ISGQ_SUCCESS; i++)
        if (strcmp(name, way) == 0)
            return !factored && strcmp(name, "powersgd") != 0;
    return false;
}

static bool ask(const model_t *model, size_t layer, const char *way, const char *quantizer, isgqx_cost_t *cost)
{
    const isgqx_layer_t shape = {model->rows, model->layers[layer].m, model->layers[layer].n};
    isgqx_machine_t machine = model->machine, table = {.size = sizeof(table)};
    if (model->tuning.size != 0 && isgqx_tuning_machine(&model->tuning, quantizer, &table) == ISGQ_SUCCESS) {
        machine.encode_rate = model->own_encode ? table.encode_rate : machine.encode_rate;
        machine.decode_rate = model->own_decode ? table.decode_rate : machine.decode_rate;
    }
    cost->size = sizeof(*cost);
    isgq_result_t result = isgqx_cost(&machine, &shape, way, quantizer, cost);
    if (result != ISGQ_SUCCESS && result != ISGQ_ERR_UNSUPPORTED)
        iq_die(IQ_EXIT_USAGE, "%s", isgq_get_last_error());
    if (result == ISGQ_SUCCESS && model->corrects && is_dense(way))
        cost->total *= isgqx_tuning_correction(&model->tuning, quantizer, sizeof(float) * shape.m * shape.n);
    return result == ISGQ_SUCCESS;
}

static sums_t sum_layers(const model_t *model, size_t first, size_t end, const char *way, const char *quantizer)
{
    sums_t sums = {.exists = true};
    for (size_t layer = first; layer < end && sums.exists; layer++) {
        isgqx_cost_t cost;
        sums.exists = ask(model, layer, way, quantizer, &cost);
        if (sums.exists)
            add(&sums.cost, &cost);
    }
    return sums;
}

/* Values as they are by any way, or this quantizer by any way of this library: the fastest for each layer. */
static sums_t sum_best(const model_t *model, size_t first, size_t end, const char *quantizer)
{
    sums_t sums = {.exists = true};
    for (size_t layer = first; layer < end; layer++) {
        isgqx_cost_t best = {.total = INFINITY}, cost;
        const char *way;
        int factored;
        for (size_t i = 0; isgqx_cost_way(i, &way, &factored) == ISGQ_SUCCESS; i++) {
            if (strcmp(way, "tree") == 0)
                continue;
            if (ask(model, layer, way, quantizer, &cost) && cost.total < best.total)
                best = cost;
            if (ask(model, layer, way, "none", &cost) && cost.total < best.total)
                best = cost;
        }
        add(&sums.cost, &best);
    }
    return sums;
}

/* ---- rows ---- */

static double step_seconds(const model_t *model, const isgqx_cost_t *cost)
{
    return model->compute + fmax(0, cost->total - model->hidden * model->compute);
}

static double ring_bytes(const model_t *model, size_t first, size_t end)
{
    double elements = 0;
    for (size_t layer = first; layer < end; layer++)
        elements += model->layers[layer].m * model->layers[layer].n;
    return isgqx_fp32_ring_bytes((size_t)elements, (int)iq_model_ranks(&model->machine));
}

static void print_row(model_t *model, const char *layer, double ring, const char *way, const char *quantizer, const isgqx_cost_t *cost,
                      const isgqx_cost_t *plain)
{
    double ranks = iq_model_ranks(&model->machine), step = step_seconds(model, cost);
    double speedup = step > 0 ? step_seconds(model, plain) / step : 1;
    const struct {
        const char *name;
        double value, shown;
        int digits;
    } numbers[] = {{"ratio", cost->sent > 0 ? ring / cost->sent : 1, 1, 2},
                   {"sent_bytes", cost->sent, 1e-6, 3},
                   {"latency_s", cost->latency, 1e3, 3},
                   {"wire_s", cost->wire, 1e3, 3},
                   {"codec_s", cost->codec, 1e3, 3},
                   {"product_s", cost->product, 1e3, 3},
                   {"total_s", cost->total, 1e3, 3},
                   {"step_s", step, 1e3, 3},
                   {"speedup", speedup, 1, 2}};

    iq_table_cell(&model->table, "%.0f", ranks);
    iq_table_cell(&model->table, "%s", layer);
    iq_table_cell(&model->table, "%s", way);
    iq_table_cell(&model->table, "%s", quantizer);
    iq_json_row_begin(&model->json);
    iq_json_count(&model->json, "nranks", (uint64_t)ranks);
    iq_json_text(&model->json, "layer", layer);
    iq_json_text(&model->json, "way", way);
    iq_json_text(&model->json, "quantizer", quantizer);
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        iq_table_cell(&model->table, "%.*f", numbers[i].digits, numbers[i].value * numbers[i].shown);
        iq_json_real(&model->json, numbers[i].name, numbers[i].value);
    }
    iq_json_row_end(&model->json);
}

typedef struct best {
    char way[16];
    const char *quantizer;
    double total;
} best_t;

static void note_best(best_t *best, const char *way, const char *quantizer, const isgqx_cost_t *cost)
{
    if (cost->total >= best->total)
        return;
    snprintf(best->way, sizeof(best->way), "%s", way);
    best->quantizer = quantizer;
    best->total = cost->total;
}

/* The fastest way for values as they are that a library of today takes: the paper's tree is for comparison only. */
static isgqx_cost_t plain_cost(const model_t *model, size_t first, size_t end, char way[16])
{
    static const char *const ways[] = {"direct", "ring", "levels"};
    isgqx_cost_t best = {.total = INFINITY};
    for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
        sums_t sums = sum_layers(model, first, end, ways[i], "none");
        if (sums.exists && sums.cost.total < best.total) {
            best = sums.cost;
            snprintf(way, 16, "%s", ways[i]);
        }
    }
    return best;
}

static void verdict(const model_t *model, const char *layer, const best_t *best, const isgqx_cost_t *plain, const char *plain_way)
{
    double ranks = iq_model_ranks(&model->machine);
    if (model->table.file == NULL)
        return;
    if (best->total < 0.99 * plain->total)
        printf("%.0f ranks, %s: %s by %s takes %.3f ms, values as they are by %s %.3f ms: %.2f times as long\n", ranks, layer, best->quantizer,
               best->way, 1e3 * best->total, plain_way, 1e3 * plain->total, plain->total / best->total);
    else
        printf("%.0f ranks, %s: do nothing; values as they are by %s take %.3f ms, and nothing here is faster by more than 1 %%\n", ranks,
               layer, plain_way, 1e3 * plain->total);
}

/* All rows of some layers together. */
static void print_layers(model_t *model, const char *name, size_t first, size_t end, const char *const *quantizers, size_t count, bool rows)
{
    char plain_way[16];
    isgqx_cost_t plain = plain_cost(model, first, end, plain_way);
    best_t best = {.total = INFINITY, .quantizer = "none"};
    double ring = ring_bytes(model, first, end);
    for (size_t q = 0; q < count; q++) {
        const char *way;
        int factored;
        for (size_t i = 0; isgqx_cost_way(i, &way, &factored) == ISGQ_SUCCESS; i++) {
            sums_t sums = sum_layers(model, first, end, way, quantizers[q]);
            if (sums.exists && rows)
                print_row(model, name, ring, way, quantizers[q], &sums.cost, &plain);
            if (sums.exists && strcmp(way, "tree") != 0)
                note_best(&best, way, quantizers[q], &sums.cost);
        }
        sums_t sums = sum_best(model, first, end, quantizers[q]);
        if (rows && strcmp(quantizers[q], "none") != 0)
            print_row(model, name, ring, "best", quantizers[q], &sums.cost, &plain);
        note_best(&best, "best", quantizers[q], &sums.cost);
    }
    if (!rows) {
        sums_t sums = strcmp(best.way, "best") == 0 ? sum_best(model, first, end, best.quantizer)
                                                    : sum_layers(model, first, end, best.way, best.quantizer);
        print_row(model, name, ring, best.way, best.quantizer, &sums.cost, &plain);
        return;
    }
    verdict(model, name, &best, &plain, plain_way);
}

static void print_cluster(model_t *model, const char *const *quantizers, size_t count)
{
    print_layers(model, "all", 0, model->nlayers, quantizers, count, true);
    for (size_t layer = 0; layer < model->nlayers && model->per_layer; layer++) {
        char name[48];
        snprintf(name, sizeof(name), "%.0fx%.0f", model->layers[layer].m, model->layers[layer].n);
        print_layers(model, name, layer, layer + 1, quantizers, count, false);
    }
}

/* ---- the command line ---- */

static char *networks_help(void)
{
    static char text[1024];
    size_t used = (size_t)snprintf(text, sizeof(text), "layers as m x n, or a network:");
    for (const iq_model_network_t *network = iq_model_networks; network->name != NULL; network++)
        used += (size_t)snprintf(text + used, sizeof(text) - used, "\n%s: %s", network->name, network->help);
    return text;
}

static void parse(options_t *o, int argc, char **argv)
{
    iq_option_t options[] = {
        IQ_TEXT('c', "cluster", "LEVELS", o->cluster, "4@5GB/s:2us,4@1Gbit/s:50us",
                "the tree of links, from the ranks outwards, as COUNT@RATE:LATENCY:\n"
                "ranks of a host, hosts of a rack, racks, ...; RATE is a child's link\n"
                "in either direction (kB/s to TB/s, kbit/s to Tbit/s)"),
        IQ_TEXT('T', "table", "FILE", o->table, NULL,
                "tuning table of isgq_tune: its links unless --cluster is given, its speeds\nbut for those that are given; codes have the speed of the most alike quantizer there"),
        IQ_TEXT('n', "ranks", "LIST", o->ranks, NULL, "numbers of ranks: the outermost level grows or shrinks to each"),
        IQ_TEXT('l', "layers", "LIST", o->layers, "paper", networks_help()),
        IQ_REAL('r', "rows", "ROWS", o->rows, 0, 1e9, "32", "rows of X and Delta on each rank"),
        IQ_TEXT('q', "quantizer", "LIST", o->quantizers, PRESETS, "quantizers, separated by semicolons"),
        IQ_FLAG('L', "per-layer", o->per_layer, "the best row of each layer too"),
        IQ_REAL(0, "compute", "MS", o->compute, 0, 1e9, "0", "milliseconds of computation in a step"),
        IQ_REAL(0, "hidden", "SHARE", o->hidden, 0, 1, "0", "share of it that sums can hide behind"),
        IQ_REAL(0, "copy", "GB/S", o->copy, 1e-6, 1e9, "5", "copying, bytes of f32 a second and rank"),
        IQ_REAL(0, "sum", "GB/S", o->sum, 1e-6, 1e9, "5", "adding"),
        IQ_REAL(0, "encode", "GB/S", o->encode, 1e-6, 1e9, "3", "encoding"),
        IQ_REAL(0, "decode", "GB/S", o->decode, 1e-6, 1e9, "3", "decoding and adding"),
        IQ_REAL(0, "product", "G/S", o->product, 1e-6, 1e12, "20", "product of factors, 10^9 multiplications a second and rank"),
        IQ_REAL(0, "message", "US", o->message, 0, 1e9, "1", "microseconds of a rank for each message"),
        IQ_REAL(0, "overlap", "SHARE", o->overlap, 0, 1, "0", "of arithmetic and wire: 1 hides the shorter of them"),
        IQ_TEXT('J', "json", "FILE", o->json, NULL, "write JSON to FILE; -: to stdout and nothing else there"),
        IQ_OPTIONS_END,
    };
    iq_options_parse(&program, options, argc, argv);
    for (size_t i = 0; i < sizeof(speed_names) / sizeof(speed_names[0]); i++)
        o->given[i] = iq_options_given(options, speed_names[i]);
    o->cluster_given = iq_options_given(options, "cluster");
}

static bool speed_given(const options_t *o, const char *speed)
{
    for (size_t i = 0; i < sizeof(speed_names) / sizeof(speed_names[0]); i++)
        if (o->given[i] && strcmp(speed_names[i], speed) == 0)
            return true;
    return false;
}

/* What the command line does not say comes from the table. */
static void take_table(model_t *model, const options_t *o)
{
    isgqx_machine_t *machine = &model->machine, table = {.size = sizeof(table)};
    model->tuning.size = sizeof(model->tuning);
    if (isgqx_tuning_read(o->table, &model->tuning) != ISGQ_SUCCESS || isgqx_tuning_machine(&model->tuning, NULL, &table) != ISGQ_SUCCESS)
        iq_die(IQ_EXIT_USAGE, "--table: %s", isgq_get_last_error());
    if (o->cluster_given) {
        table.nlevels = machine->nlevels;
        memcpy(table.levels, machine->levels, sizeof(table.levels));
    }
    double *const speeds[][2] = {{&table.copy_rate, &machine->copy_rate},     {&table.sum_rate, &machine->sum_rate},
                                 {&table.encode_rate, &machine->encode_rate}, {&table.decode_rate, &machine->decode_rate},
                                 {&table.product_rate, &machine->product_rate}, {&table.message, &machine->message},
                                 {&table.overlap, &machine->overlap}};
    for (size_t i = 0; i < sizeof(speeds) / sizeof(speeds[0]); i++)
        if (o->given[i])
            *speeds[i][0] = *speeds[i][1];
    *machine = table;
    model->corrects = !o->cluster_given;
    model->own_encode = !speed_given(o, "encode");
    model->own_decode = !speed_given(o, "decode");
}

static void set_up(model_t *model, const options_t *o)
{
    model->machine = (isgqx_machine_t){.size = sizeof(model->machine),
                                       .message = 1e-6 * o->message,
                                       .copy_rate = 1e9 * o->copy,
                                       .sum_rate = 1e9 * o->sum,
                                       .encode_rate = 1e9 * o->encode,
                                       .decode_rate = 1e9 * o->decode,
                                       .product_rate = 1e9 * o->product,
                                       .overlap = o->overlap};
    iq_model_read_cluster(o->cluster, &model->machine);
    if (o->table != NULL)
        take_table(model, o);
    model->nlayers = iq_model_read_network(o->layers, model->layers);
    model->rows = floor(o->rows);
    model->compute = 1e-3 * o->compute;
    model->hidden = o->hidden;
    model->per_layer = o->per_layer;
    iq_json_open(&model->json, o->json);
    iq_table_init(&model->table, model->json.file == stdout ? NULL : stdout, columns);
}

/* The sizes of the list, all of which the cluster can have; its own where there is no list. */
static size_t read_sizes(const char *list, const isgqx_machine_t *machine, double sizes[MAX_SIZES])
{
    const char *items[MAX_SIZES];
    char *copy;
    isgqx_machine_t resized = *machine;
    sizes[0] = iq_model_ranks(machine);
    if (list == NULL)
        return 1;
    size_t count = iq_split("--ranks", list, ",", &copy, items, MAX_SIZES);
    for (size_t i = 0; i < count; i++) {
        size_t ranks;
        if (!iq_options_bytes(items[i], &ranks) || ranks == 0 || ranks > 2147483647)
            iq_die(IQ_EXIT_USAGE, "--ranks: \"%s\" is no number of ranks", items[i]);
        if (!iq_model_resize(&resized, (double)ranks))
            iq_die(IQ_EXIT_USAGE, "--ranks: %zu ranks do not fill whole children of the outermost level of --cluster", ranks);
        sizes[i] = (double)ranks;
    }
    free(copy);
    return count;
}

int main(int argc, char **argv)
{
    static model_t model;
    options_t o = {0};
    const char *quantizers[MAX_QUANTIZERS];
    double sizes[MAX_SIZES];
    char *copy;

    parse(&o, argc, argv);
    size_t count = iq_split("--quantizer", o.quantizers, ";", &copy, quantizers, MAX_QUANTIZERS);
    for (size_t q = 0; q < count; q++)
        isgq_quantizer_destroy(iq_quantizer_or_die(quantizers[q]));
    set_up(&model, &o);
    size_t nsizes = read_sizes(o.ranks, &model.machine, sizes);
    iq_table_head(&model.table);
    for (size_t i = 0; i < nsizes && iq_model_resize(&model.machine, sizes[i]); i++)
        print_cluster(&model, quantizers, count);
    free(copy);
    return iq_json_close(&model.json) ? IQ_EXIT_OK : IQ_EXIT_FAILED;
}
