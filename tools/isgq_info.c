/* SPDX-License-Identifier: Apache-2.0 */
/*
 * isgq_info: what this build can do, what it found on this machine, and every variable that steers it.
 */
#include "tools/common/json.h"
#include "tools/common/options.h"

#include "isgqcoll.h"
#include "isgqcoll_ext.h"

#include <stdio.h>
#include <string.h>

static const iq_program_t program = {
    .name = "isgq_info",
    .usage = "[--config] [--json]",
    .about = "Print how libisgqcoll was built, its devices, transports and modules, this machine's topology, and every ISGQ_* "
             "variable with\n"
             "its value, default and meaning.",
};

typedef struct output {
    iq_json_t json;
    bool text; /* lines go to stdout */
} output_t;

static void one_line(void *context, const char *line)
{
    output_t *output = context;

    if (output->text)
        printf("%s\n", line);
    iq_json_row_begin(&output->json);
    iq_json_text(&output->json, "kind", "info");
    iq_json_text(&output->json, "line", line);
    iq_json_row_end(&output->json);
}

static int print_info(output_t *output)
{
    if (isgqx_info_print(one_line, output) != ISGQ_SUCCESS) {
        iq_complain("%s", isgq_get_last_error());
        return IQ_EXIT_FAILED;
    }
    return IQ_EXIT_OK;
}

/* Help texts, broken at blanks. */
static void print_wrapped(const char *text, int indent, int width)
{
    int column = 0;

    for (const char *word = text; *word;) {
        int length = (int)strcspn(word, " ");
        if (column > 0 && column + 1 + length > width) {
            putchar('\n');
            column = 0;
        }
        column += printf("%*s%.*s", column > 0 ? 1 : indent, column > 0 ? " " : "", length, word);
        word += length;
        word += strspn(word, " ");
    }
    putchar('\n');
}

static void print_variable(output_t *output, const isgq_config_var_t *variable)
{
    if (output->text) {
        printf("%s = %s", variable->name, variable->value[0] ? variable->value : "(empty)");
        if (strcmp(variable->value, variable->default_value) != 0)
            printf("   (default %s)", variable->default_value[0] ? variable->default_value : "empty");
        putchar('\n');
        print_wrapped(variable->help, 4, 110);
    }
    iq_json_row_begin(&output->json);
    iq_json_text(&output->json, "kind", "variable");
    iq_json_text(&output->json, "name", variable->name);
    iq_json_text(&output->json, "value", variable->value);
    iq_json_text(&output->json, "default", variable->default_value);
    iq_json_text(&output->json, "help", variable->help);
    iq_json_row_end(&output->json);
}

static void print_config(output_t *output)
{
    isgq_config_var_t variable = {.size = sizeof(variable)};

    for (size_t i = 0; isgq_get_config_var(i, &variable) == ISGQ_SUCCESS; i++)
        print_variable(output, &variable);
}

int main(int argc, char **argv)
{
    bool config_only, as_json;
    const char *path;
    iq_option_t options[] = {
        IQ_FLAG('c', "config", config_only, "only the variables"),
        IQ_FLAG('j', "json", as_json, "JSON on stdout, as -J -"),
        IQ_TEXT('J', "json-file", "FILE", path, NULL, "write JSON to FILE; -: to stdout and nothing else there"),
        IQ_OPTIONS_END,
    };
    output_t output = {.text = true};
    int status = IQ_EXIT_OK;

    config_only = as_json = false;
    path = NULL;
    iq_options_parse(&program, options, argc, argv);
    if (as_json && path != NULL)
        iq_die(IQ_EXIT_USAGE, "--json and --json-file exclude each other");
    path = as_json ? "-" : path;
    iq_json_open(&output.json, path);
    output.text = output.json.file != stdout;
    if (!config_only) {
        status = print_info(&output);
        if (output.text)
            printf("\nvariables:\n");
    }
    print_config(&output);
    return iq_json_close(&output.json) ? status : IQ_EXIT_FAILED;
}
