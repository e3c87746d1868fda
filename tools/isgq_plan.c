/* SPDX-License-Identifier: Apache-2.0 */
/*
 * isgq_plan: the steps that each rank would run in one collective. Starts no ranks and sends nothing: plans are data.
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
    .about = "Print the steps that each rank would run in one collective call. Nothing is started or sent.",
};

typedef struct plan_options {
    const char *collective, *algorithm, *quantizer, *type, *json;
    size_t nranks, count, rank;
    bool one_rank;
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
    iq_option_t options[] = {
        IQ_TEXT('c', "collective", "NAME", o->collective, "allreduce",
                "allreduce, reduce_scatter, allgather, broadcast or barrier; a factored\ncall is an allgather of bytes, or an "
                "allreduce"),
        IQ_COUNT('n', "nranks", "RANKS", o->nranks, 1, 65536, "4", "number of ranks"),
        IQ_TEXT('a', "algorithm", "NAME", o->algorithm, "auto", "algorithm; help lists them"),
        IQ_TEXT('q', "quantizer", "TEXT", o->quantizer, "none", "quantizer"),
        IQ_BYTES(0, "count", "ELEMENTS", o->count, "1m",
                 "elements of the whole tensor, all ranks' parts of an allgather or\n"
                 "reduce_scatter included (k, m, g: powers of 1024)"),
        IQ_TEXT('d', "datatype", "TYPE", o->type, "f32", "element type: i8 u8 i32 u32 i64 u64 f16 bf16 f32 f64"),
        IQ_COUNT('r', "rank", "RANK", o->rank, 0, 65535, NULL, "only this rank's steps [all ranks]"),
        IQ_TEXT('J', "json", "FILE", o->json, NULL, "write JSON to FILE; -: to stdout and nothing else there"),
        IQ_OPTIONS_END,
    };

    iq_options_parse(&program, options, argc, argv);
    o->one_rank = iq_options_given(options, "rank");
    if (o->one_rank && o->rank >= o->nranks)
        iq_die(IQ_EXIT_USAGE, "--rank: there is no rank %zu among %zu ranks", o->rank, o->nranks);
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
    const char *algorithm = strcmp(o.algorithm, "auto") == 0 ? NULL : o.algorithm;
    iq_json_open(&output.json, o.json);
    output.text = output.json.file != stdout;
    size_t first = o.one_rank ? o.rank : 0, end = o.one_rank ? o.rank + 1 : o.nranks;
    for (size_t rank = first; rank < end; rank++) {
        output.rank = (int)rank;
        if (isgqx_plan_print(o.collective, algorithm, o.quantizer, (int)o.nranks, (int)rank, o.count, type->type, one_line,
                             &output) != ISGQ_SUCCESS)
            iq_die(IQ_EXIT_USAGE, "%s", isgq_get_last_error());
        if (output.text && rank + 1 < end)
            putchar('\n');
    }
    return iq_json_close(&output.json) ? IQ_EXIT_OK : IQ_EXIT_FAILED;
}
