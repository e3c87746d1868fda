/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Command lines of the programs: a table of options, parsed strictly.
 *
 * One row says everything about an option: how it is written, where its value goes, what is allowed and what it is by default.
 * The default is parsed like any other value, so the help cannot lie. Whatever is wrong with a command line is one line on stderr
 * and exit status 2.
 */
#ifndef ISGQ_TOOLS_OPTIONS_H
#define ISGQ_TOOLS_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Exit statuses of all programs. */
enum { IQ_EXIT_OK = 0, IQ_EXIT_FAILED = 1, IQ_EXIT_USAGE = 2 };

typedef enum iq_option_kind {
    IQ_OPTION_FLAG,  /* bool, takes no value */
    IQ_OPTION_TEXT,  /* const char *, points into argv */
    IQ_OPTION_COUNT, /* size_t, a whole number */
    IQ_OPTION_BYTES, /* size_t, a whole number with k, m or g */
    IQ_OPTION_REAL   /* double */
} iq_option_kind_t;

typedef struct iq_option {
    char letter;          /* or 0 */
    const char *name;     /* long form without the dashes */
    const char *argument; /* what the help calls the value; NULL for a flag */
    iq_option_kind_t kind;
    void *value;        /* written by the parser */
    double low, high;   /* allowed numbers, both inclusive */
    const char *preset; /* default as text, or NULL: *value stays as it is */
    const char *help;   /* may hold newlines */
    bool given;         /* set by the parser */
} iq_option_t;

/* Rows of an option table, one line each. `field` is the variable itself. */
#define IQ_COUNT(letter_, name_, argument_, field, low_, high_, preset_, help_)                                           \
    {                                                                                                                     \
        .letter = letter_, .name = name_, .argument = argument_, .kind = IQ_OPTION_COUNT, .value = &(field), .low = low_, \
        .high = high_, .preset = preset_, .help = help_                                                                   \
    }
#define IQ_REAL(letter_, name_, argument_, field, low_, high_, preset_, help_)                                           \
    {                                                                                                                    \
        .letter = letter_, .name = name_, .argument = argument_, .kind = IQ_OPTION_REAL, .value = &(field), .low = low_, \
        .high = high_, .preset = preset_, .help = help_                                                                  \
    }
#define IQ_BYTES(letter_, name_, argument_, field, preset_, help_)                                                     \
    {                                                                                                                  \
        .letter = letter_, .name = name_, .argument = argument_, .kind = IQ_OPTION_BYTES, .value = &(field), .low = 0, \
        .high = 1e13, .preset = preset_, .help = help_                                                                 \
    }
#define IQ_TEXT(letter_, name_, argument_, field, preset_, help_)                                                              \
    {                                                                                                                          \
        .letter = letter_, .name = name_, .argument = argument_, .kind = IQ_OPTION_TEXT, .value = &(field), .preset = preset_, \
        .help = help_                                                                                                          \
    }
#define IQ_FLAG(letter_, name_, field, help_)                                                      \
    {                                                                                              \
        .letter = letter_, .name = name_, .kind = IQ_OPTION_FLAG, .value = &(field), .help = help_ \
    }
#define IQ_OPTIONS_END \
    {                  \
        .name = NULL   \
    }

typedef struct iq_program {
    const char *name;
    const char *usage; /* what follows the name in the usage line */
    const char *about; /* a few lines */
} iq_program_t;

/* Parse everything. --help and --version print and exit 0, mistakes exit 2. `options` ends with a row whose name is NULL. */
void iq_options_parse(const iq_program_t *program, iq_option_t *options, int argc, char **argv);

/* Was the option on the command line? */
bool iq_options_given(const iq_option_t *options, const char *name);

/* "512", "64k", "16M", "1g"; false if it is no size. */
bool iq_options_bytes(const char *text, size_t *bytes);

/* One line on stderr, after the name of the program that was parsed last; then exit. */
void iq_die(int status, const char *format, ...) __attribute__((format(printf, 2, 3), noreturn));

/* The same line without the end of the program. */
void iq_complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

/*
 * Cut a copy of `text` at any of `separators`; blanks around items go, empty items are an error that ends the program. Returns
 * the number of items (at most `room`, more end the program); items[] point into *copy, which the caller frees.
 */
size_t iq_split(const char *what, const char *text, const char *separators, char **copy, const char **items, size_t room);

#endif
