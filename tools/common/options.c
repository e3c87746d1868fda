/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The option parser. It is strict: no abbreviations, no positional arguments, no value outside its range.
 */
#include "tools/common/options.h"

#include "isgqcoll.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *program_name = "isgqcoll";

static void print_line(const char *format, va_list arguments)
{
    char line[1024];

    vsnprintf(line, sizeof(line), format, arguments);
    for (char *c = line; *c; c++)
        if (*c == '\n')
            *c = ' ';
    fprintf(stderr, "%s: %s\n", program_name, line); /* one write: lines of several ranks do not mix */
}

void iq_complain(const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    print_line(format, arguments);
    va_end(arguments);
}

void iq_die(int status, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    print_line(format, arguments);
    va_end(arguments);
    exit(status);
}

bool iq_options_bytes(const char *text, size_t *bytes)
{
    if (!isdigit((unsigned char)text[0]))
        return false;
    char *end;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    unsigned shift = 0;
    switch (tolower((unsigned char)*end)) {
    case 'k': shift = 10; break;
    case 'm': shift = 20; break;
    case 'g': shift = 30; break;
    default: break;
    }
    end += shift != 0;
    if (errno != 0 || *end != '\0' || number > (SIZE_MAX >> shift))
        return false;
    *bytes = (size_t)number << shift;
    return true;
}

static void wrong_value(const iq_option_t *option, const char *text, const char *wanted)
{
    iq_die(IQ_EXIT_USAGE, "--%s: '%s' is not %s", option->name, text, wanted);
}

static void check_range(const iq_option_t *option, const char *text, double value)
{
    if (value >= option->low && value <= option->high)
        return;
    iq_die(IQ_EXIT_USAGE, "--%s: %s is outside %.15g to %.15g", option->name, text, option->low, option->high);
}

static void set_count(const iq_option_t *option, const char *text)
{
    char *end;

    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    if (!isdigit((unsigned char)text[0]) || *end != '\0' || errno != 0)
        wrong_value(option, text, "a whole number");
    check_range(option, text, (double)number);
    *(size_t *)option->value = (size_t)number;
}

static void set_real(const iq_option_t *option, const char *text)
{
    char *end;
    double number = strtod(text, &end);

    if (end == text || *end != '\0' || !isfinite(number))
        wrong_value(option, text, "a number");
    check_range(option, text, number);
    *(double *)option->value = number;
}

static void set_value(const iq_option_t *option, const char *text)
{
    switch (option->kind) {
    case IQ_OPTION_FLAG: *(bool *)option->value = true; return;
    case IQ_OPTION_TEXT: *(const char **)option->value = text; return;
    case IQ_OPTION_COUNT: set_count(option, text); return;
    case IQ_OPTION_REAL: set_real(option, text); return;
    case IQ_OPTION_BYTES:
        if (!iq_options_bytes(text, option->value))
            wrong_value(option, text, "a size in bytes (a whole number, k, m or g may follow)");
        check_range(option, text, (double)*(size_t *)option->value);
        return;
    }
}

/* Indented lines of help text, the first one beside the option. */
static void print_help_text(const char *help, const char *preset)
{
    for (const char *c = help; *c; c++) {
        putchar(*c);
        if (*c == '\n')
            printf("%28s", "");
    }
    if (preset != NULL)
        printf(" [%s]", preset[0] ? preset : "none");
    putchar('\n');
}

static void print_help(const iq_program_t *program, const iq_option_t *options)
{
    printf("usage: %s %s\n\n%s\n\noptions, defaults in []:\n", program->name, program->usage, program->about);
    for (const iq_option_t *option = options; option->name != NULL; option++) {
        char left[64];
        const char *argument = option->argument ? option->argument : "";
        const char *blank = option->argument ? " " : "";
        if (option->letter)
            snprintf(left, sizeof(left), "-%c, --%s%s%s", option->letter, option->name, blank, argument);
        else
            snprintf(left, sizeof(left), "    --%s%s%s", option->name, blank, argument);
        printf("  %-25s ", left);
        print_help_text(option->help, option->preset);
    }
    printf("  %-25s this text\n  %-25s version of the program and the library\n", "-h, --help", "-V, --version");
    printf("\nexit status: 0 all is right, 1 a result is wrong or a rank failed, 2 the command line or a file is wrong\n");
}

static void print_version(const iq_program_t *program)
{
    int code = 0;

    isgq_get_version(&code);
    printf("%s %d.%d.%d (libisgqcoll %d.%d.%d)\n", program->name, ISGQ_VERSION_MAJOR, ISGQ_VERSION_MINOR, ISGQ_VERSION_PATCH,
           code / 10000, code / 100 % 100, code % 100);
}

static iq_option_t *find_long(iq_option_t *options, const char *name, size_t length)
{
    for (iq_option_t *option = options; option->name != NULL; option++)
        if (strlen(option->name) == length && strncmp(option->name, name, length) == 0)
            return option;
    return NULL;
}

static iq_option_t *find_letter(iq_option_t *options, char letter)
{
    for (iq_option_t *option = options; option->name != NULL; option++)
        if (option->letter != 0 && option->letter == letter)
            return option;
    return NULL;
}

static bool is(const char *word, const char *letter_form, const char *long_form)
{
    return strcmp(word, letter_form) == 0 || strcmp(word, long_form) == 0;
}

/* Parse the option at argv[i]; returns how many words it took. */
static int parse_one(iq_option_t *options, int i, int argc, char **argv)
{
    const char *word = argv[i];
    const char *attached = NULL;
    iq_option_t *option = NULL;

    if (strncmp(word, "--", 2) == 0 && word[2] != '\0') {
        const char *equals = strchr(word, '=');
        option = find_long(options, word + 2, equals ? (size_t)(equals - word - 2) : strlen(word + 2));
        attached = equals ? equals + 1 : NULL;
    } else if (word[0] == '-' && word[1] != '\0') {
        option = find_letter(options, word[1]);
        attached = word[2] != '\0' ? word + 2 : NULL;
    } else {
        iq_die(IQ_EXIT_USAGE, "'%s' is not an option; --help lists them", word);
    }
    if (option == NULL)
        iq_die(IQ_EXIT_USAGE, "unknown option %s; --help lists them", word);
    option->given = true;
    if (option->kind == IQ_OPTION_FLAG) {
        if (attached != NULL)
            iq_die(IQ_EXIT_USAGE, "%s: --%s takes no value", word, option->name);
        set_value(option, NULL);
        return 1;
    }
    if (attached == NULL && i + 1 >= argc)
        iq_die(IQ_EXIT_USAGE, "--%s needs a value: %s", option->name, option->argument);
    set_value(option, attached ? attached : argv[i + 1]);
    return attached ? 1 : 2;
}

void iq_options_parse(const iq_program_t *program, iq_option_t *options, int argc, char **argv)
{
    program_name = program->name;
    for (iq_option_t *option = options; option->name != NULL; option++) {
        option->given = false;
        if (option->preset != NULL)
            set_value(option, option->preset);
    }
    for (int i = 1; i < argc;) {
        if (is(argv[i], "-h", "--help")) {
            print_help(program, options);
            exit(IQ_EXIT_OK);
        }
        if (is(argv[i], "-V", "--version")) {
            print_version(program);
            exit(IQ_EXIT_OK);
        }
        i += parse_one(options, i, argc, argv);
    }
}

bool iq_options_given(const iq_option_t *options, const char *name)
{
    for (const iq_option_t *option = options; option->name != NULL; option++)
        if (strcmp(option->name, name) == 0)
            return option->given;
    return false;
}

size_t iq_split(const char *what, const char *text, const char *separators, char **copy, const char **items, size_t room)
{
    size_t count = 0;
    char *rest = strdup(text);

    if (rest == NULL)
        iq_die(IQ_EXIT_FAILED, "out of memory");
    *copy = rest;
    for (char *item; (item = strsep(&rest, separators)) != NULL;) {
        while (isspace((unsigned char)*item))
            item++;
        for (size_t n = strlen(item); n > 0 && isspace((unsigned char)item[n - 1]);)
            item[--n] = '\0';
        if (*item == '\0')
            iq_die(IQ_EXIT_USAGE, "%s: '%s' has an empty item", what, text);
        if (count == room)
            iq_die(IQ_EXIT_USAGE, "%s: more than %zu items", what, room);
        items[count++] = item;
    }
    return count;
}
