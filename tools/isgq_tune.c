/* SPDX-License-Identifier: Apache-2.0 */
/*
 * isgq_tune: measure this machine or cluster and write a table that the library loads (ISGQ_TUNE_TABLE): latency and rate of links from the
 * times of allreduces of values, speeds of copies, sums, codes and products. Then predict two calls from it and time them.
 */
#include "tools/common/json.h"
#include "tools/common/launch.h"
#include "tools/common/names.h"
#include "tools/common/options.h"
#include "tools/common/progress.h"
#include "tools/common/table.h"
#include "tools/tune.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const iq_program_t program = {
    .name = "isgq_tune",
    .usage = "[-n RANKS] [-o FILE] [options]",
    .about = "Measure this machine or cluster, and write a tuning table. Without -n the launcher's environment says who the ranks are.\n"
             "Programs that run on as many ranks, placed alike, load it with ISGQ_TUNE_TABLE=FILE (docs/model.md).",
};

#define QUANTIZERS "uniform:bits=4;uniform:bits=8;uniform:bits=2;bf16;isgq:bits=4"

typedef struct command {
    size_t nranks, least, most, iterations;
    const char *transport, *quantizers, *output, *json;
    bool local;
} command_t;

typedef struct report {
    iq_table_t table;
    iq_json_t json;
} report_t;

static const iq_column_t columns[] = {
    {"measured", "", 10, true}, {"of", "", 21, true}, {"size", "B", 9, false}, {"time", "us", 10, false}, {"model", "us", 10, false},
    {"rate", "GB/s", 9, false}, {NULL, NULL, 0, false},
};

/* Before ranks are started: each would say it. */
static void check_quantizers(const char *list)
{
    const char *items[ISGQX_TUNED_CODECS];
    char *copy;
    size_t count = iq_split("--quantizer", list, ";", &copy, items, ISGQX_TUNED_CODECS);
    for (size_t i = 0; i < count; i++) {
        isgq_quantizer_destroy(iq_quantizer_or_die(items[i]));
        if (strcmp(items[i], "none") == 0 || strlen(items[i]) >= sizeof(((isgqx_tuned_codec_t *)NULL)->quantizer))
            iq_die(IQ_EXIT_USAGE, "--quantizer: '%s' has no codes, or a name too long for a table", items[i]);
    }
    free(copy);
}

static void parse(command_t *c, int argc, char **argv)
{
    iq_option_t options[] = {
        IQ_COUNT('n', "ranks", "RANKS", c->nranks, 2, 4096, NULL, "start that many local ranks"),
        IQ_TEXT('t', "transport", "LIST", c->transport, "auto", "transports to use, separated by commas"),
        IQ_BYTES('b', "begin", "SIZE", c->least, "4k", "smallest tensor in bytes"),
        IQ_BYTES('e', "end", "SIZE", c->most, "16M", "largest tensor in bytes; each is four times the one before"),
        IQ_COUNT('i', "iterations", "COUNT", c->iterations, 1, 100000, "21", "timed iterations of everything, fewer of what is slow; medians count"),
        IQ_TEXT('q', "quantizer", "LIST", c->quantizers, QUANTIZERS,
                "quantizers whose speed is measured, separated by semicolons;\nthe first stands for those that are not there"),
        IQ_TEXT('o', "output", "FILE", c->output, "isgqcoll.tune", "the table"),
        IQ_TEXT('J', "json", "FILE", c->json, NULL, "write JSON to FILE; -: to stdout and nothing else there"),
        IQ_OPTIONS_END,
    };
    iq_options_parse(&program, options, argc, argv);
    c->local = iq_options_given(options, "ranks");
    if (c->least < 64 || c->most < 4 * c->least)
        iq_die(IQ_EXIT_USAGE, "--begin has to be 64 bytes or more, and --end at least four times that");
    check_quantizers(c->quantizers);
}

/* ---- rows ---- */

/* Numbers that a row does not have are NAN. */
static void print_row(report_t *report, const char *measured, const char *of, double bytes, double seconds, double model, double rate)
{
    const struct {
        const char *name;
        double value, shown;
    } numbers[] = {{"bytes", bytes, 1}, {"time_us", 1e6 * seconds, 1}, {"model_us", 1e6 * model, 1}, {"rate", rate, 1e-9}};
    iq_progress_clear();
    iq_table_cell(&report->table, "%s", measured);
    iq_table_cell(&report->table, "%s", of);
    iq_json_row_begin(&report->json);
    iq_json_text(&report->json, "measured", measured);
    iq_json_text(&report->json, "of", of);
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        if (isfinite(numbers[i].value))
            iq_table_cell(&report->table, i == 0 ? "%.0f" : i == 3 ? "%.3f" : "%.1f", numbers[i].value * numbers[i].shown);
        else
            iq_table_cell(&report->table, "-");
        iq_json_real(&report->json, numbers[i].name, numbers[i].value);
    }
    iq_json_row_end(&report->json);
}

/* ---- measuring ---- */

static isgq_comm_t join(const command_t *c)
{
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    isgq_comm_t comm;
    config.device_type = ISGQ_DEVICE_HOST;
    config.transports = strcmp(c->transport, "auto") == 0 ? NULL : c->transport;
    isgq_result_t result = isgq_comm_init_env(&comm, &config);
    if (result == ISGQ_ERR_INVALID_USAGE)
        iq_die(IQ_EXIT_USAGE, "%s; or give -n RANKS", isgq_get_last_error());
    if (result == ISGQ_ERR_INVALID_ARGUMENT)
        iq_die(IQ_EXIT_USAGE, "%s", isgq_get_last_error());
    iq_check(result, -1, "joining");
    return comm;
}

static void show(const iq_tune_t *tune, const char *what, double bytes)
{
    if (tune->rank == 0)
        iq_progress_show("%s, %.0f bytes", what, bytes);
}

static iq_tune_line_t measure_line(const iq_tune_t *tune, const command_t *c, isgq_comm_t part, const char *what)
{
    iq_tune_line_t line = {0};
    isgq_quantizer_t none = iq_quantizer_or_die("none");
    for (size_t bytes = c->least; bytes <= c->most && line.count < IQ_TUNE_SIZES; bytes *= 4) {
        show(tune, what, (double)bytes);
        line.bytes[line.count] = (double)bytes;
        line.seconds[line.count++] = iq_tune_allreduce(tune, part, bytes, none);
    }
    isgq_quantizer_destroy(none);
    iq_tune_fit(&line);
    return line;
}

static isgq_comm_t part_of(const iq_tune_t *tune, int color)
{
    isgq_comm_t part;
    iq_check(isgq_comm_split(tune->comm, color, tune->rank, &part, NULL), tune->rank, "split");
    return part;
}

static void leave(const iq_tune_t *tune, isgq_comm_t comm)
{
    iq_check(isgq_comm_finalize(comm), tune->rank, "leaving");
    isgq_comm_destroy(comm);
}

static void print_line(report_t *report, const iq_tune_line_t *line, const char *name, double rate)
{
    for (size_t i = 0; i < line->count; i++)
        print_row(report, "allreduce", name, line->bytes[i], line->seconds[i], line->alpha + line->beta * line->bytes[i],
                  line->bytes[i] / line->seconds[i]);
    print_row(report, "link", name, NAN, line->alpha / 2, NAN, rate);
}

static void measure_work(const iq_tune_t *tune, const command_t *c, isgqx_tuning_t *tuning, report_t *report)
{
    static const size_t rows = 64;
    static const double sides[] = {128, 384};
    double seconds[2], coded[2];
    isgq_comm_t alone = part_of(tune, tune->rank);
    show(tune, "copy and sum", (double)c->most);
    tuning->copy_rate = iq_tune_copy_rate(tune, c->most);
    tuning->sum_rate = iq_tune_sum_rate(tune, c->most);
    for (int i = 0; i < 2; i++) {
        show(tune, "factors", (double)rows * sides[i] * sizeof(float));
        seconds[i] = iq_tune_factored(tune, alone, rows, (size_t)sides[i], "factor:width=4");
        coded[i] = iq_tune_factored(tune, alone, rows, (size_t)sides[i], "isgq:bits=4");
    }
    tuning->product_rate = iq_tune_product((double)rows, sides, seconds);
    tuning->factor_rate = 2 * (double)rows * sides[1] / fmax(coded[1] - (double)rows * sides[1] * sides[1] / tuning->product_rate, 0.1 * coded[1]);
    leave(tune, alone);
    print_row(report, "copy", "f32", (double)c->most, (double)c->most / tuning->copy_rate, NAN, tuning->copy_rate);
    print_row(report, "sum", "f32", (double)c->most, (double)c->most / tuning->sum_rate, NAN, tuning->sum_rate);
    print_row(report, "factors", "isgq:bits=4, 10^9/s", NAN, coded[1], NAN, tuning->factor_rate);
    print_row(report, "product", "64 rows, 10^9/s", NAN, seconds[1], NAN, tuning->product_rate);
}

/* ---- codes ---- */

/* Seconds that the formulas say an allreduce of all ranks takes. */
static double calculate(const iq_tune_t *tune, const isgqx_tuning_t *tuning, const char *quantizer, size_t bytes)
{
    isgqx_machine_t machine = {.size = sizeof(machine)};
    isgqx_cost_t cost = {.size = sizeof(cost)};
    const isgqx_layer_t layer = {0, (double)(bytes / sizeof(float)), 1};
    iq_check(isgqx_tuning_machine(tuning, quantizer, &machine), tune->rank, "table");
    iq_check(isgqx_cost(&machine, &layer, "direct", quantizer, &cost), tune->rank, "prediction");
    return cost.total;
}

/* The sizes of a table's corrections, as far as tensors of this size are measured; 0: they are not. */
static size_t corrected_size(const command_t *c, int i)
{
    size_t bytes = (size_t)4096 << 4 * i;
    return bytes >= c->least && bytes <= c->most ? bytes : 0;
}

#define CHOICES (1 + ISGQX_TUNED_CODECS)

/* Seconds of all choices, the first of them "none", at sizes of corrections and, last, at the largest. */
typedef struct curves {
    double seconds[ISGQX_TUNED_SIZES + 1][CHOICES];
} curves_t;

static void measure_curves(const iq_tune_t *tune, const command_t *c, const char *const *texts, size_t count, curves_t *curves)
{
    int known = ISGQX_TUNED_SIZES;
    for (int i = 0; i < ISGQX_TUNED_SIZES; i++) {
        size_t bytes = corrected_size(c, i);
        known = bytes == c->most ? i : known;
        show(tune, "quantizers in turn", (double)bytes);
        if (bytes != 0)
            iq_tune_turns(tune, bytes, texts, count, curves->seconds[i]);
    }
    if (known == ISGQX_TUNED_SIZES)
        iq_tune_turns(tune, c->most, texts, count, curves->seconds[known]);
    memcpy(curves->seconds[ISGQX_TUNED_SIZES], curves->seconds[known], sizeof(curves->seconds[known]));
}

/* Sizes that were not measured are as far off as the nearest that were. */
static void correct(const iq_tune_t *tune, const command_t *c, const isgqx_tuning_t *tuning, const char *text, const curves_t *curves, size_t choice,
                    double correction[ISGQX_TUNED_SIZES], report_t *report)
{
    double found[ISGQX_TUNED_SIZES];
    for (int i = 0; i < ISGQX_TUNED_SIZES; i++) {
        size_t bytes = corrected_size(c, i);
        double model = bytes != 0 ? calculate(tune, tuning, text, bytes) : 0;
        double seconds = curves->seconds[i][choice];
        found[i] = bytes != 0 ? seconds / model : 0;
        if (bytes != 0)
            print_row(report, "allreduce", text, (double)bytes, seconds, model, (double)bytes / seconds);
    }
    iq_tune_fill(found, ISGQX_TUNED_SIZES);
    memcpy(correction, found, sizeof(found));
}

/* Codes as fast as one rank makes them alone, then as fast as they are in a call. */
static void measure_codec(const iq_tune_t *tune, const command_t *c, const char *text, const curves_t *curves, isgqx_tuning_t *tuning,
                          report_t *report)
{
    const double instantly = 1e18;
    size_t choice = (size_t)tuning->ncodecs + 1;
    isgqx_tuned_codec_t alone = {.encode_rate = 1e9, .decode_rate = 1e9}, *codec = &tuning->codecs[tuning->ncodecs++];
    isgq_quantizer_t quantizer = iq_quantizer_or_die(text);
    show(tune, text, (double)c->most);
    if (iq_tune_codec(tune, c->most, quantizer, &alone)) {
        print_row(report, "encode", text, (double)c->most, (double)c->most / alone.encode_rate, NAN, alone.encode_rate);
        print_row(report, "decode", text, (double)c->most, (double)c->most / alone.decode_rate, NAN, alone.decode_rate);
    }
    isgq_quantizer_destroy(quantizer);
    snprintf(codec->quantizer, sizeof(codec->quantizer), "%s", text);
    memcpy(codec->correction, tuning->correction, sizeof(codec->correction)); /* for as long as it has none */
    codec->encode_rate = codec->decode_rate = instantly;
    double uncoded = calculate(tune, tuning, text, c->most);
    codec->encode_rate = alone.encode_rate;
    codec->decode_rate = alone.decode_rate;
    double speedup = iq_tune_speedup(curves->seconds[ISGQX_TUNED_SIZES][choice], calculate(tune, tuning, text, c->most), uncoded);
    codec->encode_rate *= speedup;
    codec->decode_rate *= speedup;
    correct(tune, c, tuning, text, curves, choice, codec->correction, report);
}

static void measure_codecs(const iq_tune_t *tune, const command_t *c, isgqx_tuning_t *tuning, report_t *report)
{
    const char *items[CHOICES] = {"none"};
    char *copy;
    size_t count = iq_split("--quantizer", c->quantizers, ";", &copy, items + 1, ISGQX_TUNED_CODECS);
    curves_t curves;
    memset(&curves, 0, sizeof(curves));
    measure_curves(tune, c, items, count + 1, &curves);
    for (size_t i = 1; i <= count; i++)
        measure_codec(tune, c, items[i], &curves, tuning, report);
    correct(tune, c, tuning, "none", &curves, 0, tuning->correction, report);
    free(copy);
}

/* At a size that no correction is for. */
static void check_prediction(const iq_tune_t *tune, const command_t *c, const isgqx_tuning_t *tuning, report_t *report)
{
    const char *const texts[] = {"none", tuning->codecs[0].quantizer};
    size_t bytes = c->most / 4;
    for (size_t i = 0; i < 2; i++) {
        isgq_quantizer_t quantizer = iq_quantizer_or_die(texts[i]);
        show(tune, texts[i], (double)bytes);
        double seconds = iq_tune_allreduce(tune, tune->comm, bytes, quantizer);
        isgq_quantizer_destroy(quantizer);
        double model = calculate(tune, tuning, texts[i], bytes) * isgqx_tuning_correction(tuning, texts[i], (double)bytes);
        print_row(report, "predicted", texts[i], (double)bytes, seconds, model, (double)bytes / seconds);
    }
}

static void measure_links(const iq_tune_t *tune, const command_t *c, isgqx_tuning_t *tuning, int first, int index, report_t *report)
{
    iq_tune_line_t inside, across;
    bool shared = tuning->ranks_per_host > 1, several = tuning->hosts > 1;
    if (shared) {
        isgq_comm_t host = part_of(tune, first);
        inside = measure_line(tune, c, host, "inside a host");
        leave(tune, host);
    }
    if (several) {
        isgq_comm_t hosts = part_of(tune, index);
        across = measure_line(tune, c, hosts, "between hosts");
        leave(tune, hosts);
    }
    iq_tune_links(tuning, shared ? &inside : NULL, several ? &across : NULL);
    if (shared)
        print_line(report, &inside, "inside a host", tuning->host_rate);
    if (several)
        print_line(report, &across, "between hosts", tuning->network_rate);
}

static int run_ranks(const command_t *c)
{
    iq_tune_t tune = {.comm = join(c), .iterations = c->iterations};
    isgqx_tuning_t tuning = {.size = sizeof(tuning)};
    report_t report = {0};
    int first, index;
    iq_check(isgq_comm_user_rank(tune.comm, &tune.rank), -1, "rank");
    iq_check(isgq_comm_count(tune.comm, &tune.nranks), -1, "ranks");
    iq_check(isgqx_tuning_place(tune.comm, &tuning, &first, &index), tune.rank, "place");
    if (tune.nranks < 2 || tuning.ranks_per_host == 0)
        iq_die(IQ_EXIT_USAGE, tune.nranks < 2 ? "there is one rank, and nothing to measure between ranks"
                                              : "hosts have different numbers of ranks, which no table can describe");
    iq_json_open(&report.json, tune.rank == 0 ? c->json : NULL);
    if (tune.rank == 0)
        iq_json_probe(c->output);
    iq_table_init(&report.table, tune.rank == 0 && report.json.file != stdout ? stdout : NULL, columns);
    iq_table_head(&report.table);
    measure_work(&tune, c, &tuning, &report);
    measure_links(&tune, c, &tuning, first, index, &report);
    for (int i = 0; i < ISGQX_TUNED_SIZES; i++)
        tuning.correction[i] = 1; /* until it is known */
    measure_codecs(&tune, c, &tuning, &report);
    check_prediction(&tune, c, &tuning, &report);
    if (tune.rank == 0) {
        if (isgqx_tuning_write(c->output, &tuning) != ISGQ_SUCCESS)
            iq_die(IQ_EXIT_FAILED, "%s", isgq_get_last_error());
        if (report.table.file != NULL)
            printf("written: %s; programs on %d host%s of %d ranks load it with ISGQ_TUNE_TABLE=%s\n", c->output, tuning.hosts,
                   tuning.hosts == 1 ? "" : "s", tuning.ranks_per_host, c->output);
    }
    leave(&tune, tune.comm);
    return iq_json_close(&report.json) ? IQ_EXIT_OK : IQ_EXIT_FAILED;
}

int main(int argc, char **argv)
{
    command_t command = {0};
    unsetenv("ISGQ_TUNE_TABLE"); /* what is measured is what the library does without one */
    unsetenv("ISGQ_ALGORITHM");
    parse(&command, argc, argv);
    iq_transports_or_die(command.transport, command.local ? command.nranks : 0);
    if (command.local && !iq_launch_is_rank()) {
        iq_json_probe(command.json);
        iq_json_probe(command.output);
        return iq_launch((int)command.nranks, argv);
    }
    return run_ranks(&command);
}
