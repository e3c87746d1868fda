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
        {.letter = 'c',
         .name = "collective",
         .argument = "NAME",
         .kind = IQ_OPTION_TEXT,
         .value = &o->collective,
         .preset = "allreduce",
         .help = "allreduce, reduce_scatter, allgather, broadcast or barrier; a factored\ncall is an allgather of bytes, or an "
                 "allreduce"},
        {.letter = 'n',
         .name = "nranks",
         .argument = "RANKS",
         .kind = IQ_OPTION_COUNT,
         .value = &o->nranks,
         .low = 1,
         .high = 65536,
         .preset = "4",
         .help = "number of ranks"},
        {.letter = 'a',
         .name = "algorithm",
         .argument = "NAME",
         .kind = IQ_OPTION_TEXT,
         .value = &o->algorithm,
         .preset = "auto",
         .help = "algorithm; help lists them"},
        {.letter = 'q',
         .name = "quantizer",
         .argument = "TEXT",
         .kind = IQ_OPTION_TEXT,
         .value = &o->quantizer,
         .preset = "none",
         .help = "quantizer"},
        {.name = "count",
         .argument = "ELEMENTS",
         .kind = IQ_OPTION_BYTES,
         .value = &o->count,
         .low = 0,
         .high = 1e15,
         .preset = "1m",
         .help = "elements of the whole tensor, all ranks' parts of an allgather or\nreduce_scatter included (k, m, g: powers of "
                 "1024)"},
        {.letter = 'd',
         .name = "datatype",
         .argument = "TYPE",
         .kind = IQ_OPTION_TEXT,
         .value = &o->type,
         .preset = "f32",
         .help = "element type: i8 u8 i32 u32 i64 u64 f16 bf16 f32 f64"},
        {.letter = 'r',
         .name = "rank",
         .argument = "RANK",
         .kind = IQ_OPTION_COUNT,
         .value = &o->rank,
         .low = 0,
         .high = 65535,
         .help = "only this rank's steps [all ranks]"},
        {.letter = 'J',
         .name = "json",
         .argument = "FILE",
         .kind = IQ_OPTION_TEXT,
         .value = &o->json,
         .help = "write JSON to FILE; -: to stdout and nothing else there"},
        {.name = NULL},
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
