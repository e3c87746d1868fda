/* SPDX-License-Identifier: Apache-2.0 */
/*
 * isgq_plan: the stages and steps that each rank would run in one collective. Starts no ranks and sends nothing: plans are data.
 */
#include "tools/common/json.h"
#include "tools/common/names.h"
#include "tools/common/options.h"

#include "isgqcoll.h"
#include "isgqcoll_ext.h"

#include <stdio.h>
#include <string.h>

static const iq_program_t program = {
    .name = "isgq_plan",
    .usage = "[-c COLLECTIVE] [-n RANKS] [options]",
    .about = "Print what each rank would do in one collective call: which way and why, the stages, the steps of each, bytes.\n"
             "Nothing is started or sent. Sums are printed for reductions.",
};

typedef struct plan_options {
    const char *collective, *algorithm, *quantizer, *type, *json;
    size_t nranks, count, rank, rows, m, n;
    bool bias, one_rank, factored;
} plan_options_t;

typedef struct output {
    iq_json_t json;
    bool text;
    int rank;
} output_t;

static void one_line(void *context, const char *line)
{
    output_t *output = context;

    if (output->text)
        printf("%s\n", line);
    iq_json_row_begin(&output->json);
    iq_json_count(&output->json, "rank", (uint64_t)output->rank);
    iq_json_text(&output->json, "line", line);
    iq_json_row_end(&output->json);
}

static int list_algorithms(void)
{
    isgqx_algorithm_t algorithm = {.size = sizeof(algorithm)};

    for (size_t i = 0; isgqx_algorithm(i, &algorithm) == ISGQ_SUCCESS; i++)
        printf("%-14s  %-12s  %s\n", algorithm.collective, algorithm.name, algorithm.help);
    return IQ_EXIT_OK;
}

static void parse(plan_options_t *o, int argc, char **argv)
{
    static const char *const shapes[] = {"rows", "m", "n", "bias"};
    iq_option_t options[] = {
        IQ_TEXT('c', "collective", "NAME", o->collective, "allreduce",
                "allreduce, factored, reduce_scatter, allgather, broadcast or barrier"),
        IQ_COUNT('n', "nranks", "RANKS", o->nranks, 1, 65536, "4", "number of ranks"),
        IQ_TEXT('a', "algorithm", "NAME", o->algorithm, "auto", "algorithm; help lists them"),
        IQ_TEXT('q', "quantizer", "TEXT", o->quantizer, "none", "quantizer"),
        IQ_BYTES(0, "count", "ELEMENTS", o->count, "1m",
                 "elements of the whole tensor, all ranks' parts of an allgather or\n"
                 "reduce_scatter included (k, m, g: powers of 1024)"),
        IQ_COUNT(0, "rows", "ROWS", o->rows, 0, 1e9, "128", "factored: rows of X and Delta on each rank"),
        IQ_COUNT(0, "m", "COLUMNS", o->m, 1, 1e9, "784", "factored: columns of X"),
        IQ_COUNT(0, "n", "COLUMNS", o->n, 1, 1e9, "1000", "factored: columns of Delta"),
        IQ_FLAG(0, "bias", o->bias, "factored: the bias gradient too"),
        IQ_TEXT('d', "datatype", "TYPE", o->type, "f32", "element type: i8 u8 i32 u32 i64 u64 f16 bf16 f32 f64"),
        IQ_COUNT('r', "rank", "RANK", o->rank, 0, 65535, NULL, "only this rank's steps [all ranks]"),
        IQ_TEXT('J', "json", "FILE", o->json, NULL, "write JSON to FILE; -: to stdout and nothing else there"),
        IQ_OPTIONS_END,
    };

    iq_options_parse(&program, options, argc, argv);
    o->one_rank = iq_options_given(options, "rank");
    o->factored = strcmp(o->collective, "factored") == 0;
    if (o->factored && iq_options_given(options, "count"))
        iq_die(IQ_EXIT_USAGE, "--count means nothing to -c factored: its size follows from --rows, --m and --n");
    for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
        if (!o->factored && iq_options_given(options, shapes[i]))
            iq_die(IQ_EXIT_USAGE, "--%s belongs to -c factored", shapes[i]);
    if (o->one_rank && o->rank >= o->nranks)
        iq_die(IQ_EXIT_USAGE, "--rank: there is no rank %zu among %zu ranks", o->rank, o->nranks);
}

static isgq_result_t print_rank(const plan_options_t *o, isgq_data_type_t type, int rank, output_t *output)
{
    const char *algorithm = strcmp(o->algorithm, "auto") == 0 ? NULL : o->algorithm;
    isgqx_factored_shape_t shape = {.size = sizeof(shape), .max_batch = o->rows, .m = o->m, .n = o->n, .bias = o->bias};

    if (o->factored)
        return isgqx_plan_print_factored(&shape, algorithm, o->quantizer, (int)o->nranks, rank, type, one_line, output);
    return isgqx_plan_print(o->collective, algorithm, o->quantizer, (int)o->nranks, rank, o->count, type, one_line, output);
}

int main(int argc, char **argv)
{
    plan_options_t o = {0};
    output_t output = {.text = true};

    parse(&o, argc, argv);
    if (strcmp(o.algorithm, "help") == 0)
        return list_algorithms();
    const iq_type_name_t *type = iq_type_by_name(o.type);
    isgq_quantizer_destroy(iq_quantizer_or_die(o.quantizer));
    iq_json_open(&output.json, o.json);
    output.text = output.json.file != stdout;
    size_t first = o.one_rank ? o.rank : 0, end = o.one_rank ? o.rank + 1 : o.nranks;
    for (size_t rank = first; rank < end; rank++) {
        output.rank = (int)rank;
        if (print_rank(&o, type->type, output.rank, &output) != ISGQ_SUCCESS)
            iq_die(IQ_EXIT_USAGE, "%s", isgq_get_last_error());
        if (output.text && rank + 1 < end)
            putchar('\n');
    }
    return iq_json_close(&output.json) ? IQ_EXIT_OK : IQ_EXIT_FAILED;
}
