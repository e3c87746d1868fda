/* SPDX-License-Identifier: Apache-2.0 */
/* What a program's file says about itself, before anybody runs it. */
#ifndef ISGQ_TOOLS_DOCTOR_ELF_H
#define ISGQ_TOOLS_DOCTOR_ELF_H

#include <stdbool.h>

enum { DOCTOR_TEXT = 512 };

typedef struct iq_elf_facts {
    bool is_elf;
    bool is_static;                /* no loader: nothing can be preloaded */
    char interpreter[DOCTOR_TEXT]; /* the loader, or of a script the program that runs it */
    char run_path[DOCTOR_TEXT];    /* DT_RPATH or DT_RUNPATH, "" if none */
    bool run_path_is_old;          /* DT_RPATH: searched before LD_LIBRARY_PATH */
} iq_elf_facts_t;

/* One function that a program may call: where its file stands to it. */
typedef struct iq_elf_symbol {
    bool defined; /* in the file itself: linked statically */
    bool wanted;  /* the loader will look for it */
} iq_elf_symbol_t;

/* False: the file cannot be read, and `error` (DOCTOR_TEXT bytes) says why. */
bool iq_elf_read(const char *path, iq_elf_facts_t *facts, char *error);

iq_elf_symbol_t iq_elf_symbol(const char *path, const char *name);

/* Does the file hold a text that contains `part`? The text, up to its end, goes to `found` (DOCTOR_TEXT bytes). */
bool iq_elf_text(const char *path, const char *part, char *found);

#endif
