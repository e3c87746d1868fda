/* SPDX-License-Identifier: Apache-2.0 */
/*
 * isgq_run: one command with the preloads in front of it, and nothing else changed: isgq_run --bits 4 --comm gradients -- ./program.
 */
#include "tools/common/options.h"

#include "isgqcoll.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const iq_program_t program = {
    .name = "isgq_run",
    .usage = "[options] -- PROGRAM [ARGUMENTS]",
    .about = "Run PROGRAM with the preloads for MPI and NCCL in front of it, and a policy that says which of its sums may be "
             "quantized. "
             "Inside mpirun, as\n"
             "in: mpirun -n 4 isgq_run --bits 4 --comm gradients -- ./program. Without options nothing is quantized: use "
             "--record first.",
};

typedef struct run_options {
    const char *quantizer, *comm, *type, *bytes, *exclude, *policy, *record, *log;
    double bits;
    bool dry;
} run_options_t;

/* "A" and "B", as A, then what separates, then B. */
static void append(char *text, size_t room, const char *format, const char *value)
{
    size_t used = strlen(text);
    int more = snprintf(text + used, room - used, format, value);
    if (more < 0 || (size_t)more >= room - used)
        iq_die(IQ_EXIT_USAGE, "the policy is longer than %zu letters; write it into a file and use --policy", room - 1);
}

/* The value of ISGQ_POLICY. */
static void write_policy(const run_options_t *o, bool quantizes, char *text, size_t room)
{
    text[0] = '\0';
    if (o->policy != NULL) {
        append(text, room, "@%s", o->policy);
    } else if (o->record != NULL) {
        append(text, room, "record:%s", o->record);
    } else if (!quantizes) {
        append(text, room, "%s", "off");
    } else {
        char bits[32];
        snprintf(bits, sizeof(bits), "isgq:bits=%g", o->bits);
        append(text, room, "quantize comm=%s", o->comm);
        append(text, room, " type=%s", o->type);
        append(text, room, " bytes=%s", o->bytes);
        append(text, room, " with=%s", o->quantizer != NULL ? o->quantizer : bits);
        if (o->exclude != NULL)
            append(text, room, "; exclude comm=%s", o->exclude);
    }
}

/* Append a preloaded object that lies beside this program's library, if this build has it. */
static void add_object(const char *folder, const char *name, char *objects, size_t room)
{
    char path[PATH_MAX];
    if (snprintf(path, sizeof(path), "%s/%s", folder, name) >= (int)sizeof(path) || access(path, R_OK) != 0)
        return;
    if (strpbrk(path, " :") != NULL)
        iq_die(IQ_EXIT_FAILED, "%s: LD_PRELOAD cannot hold a path with a blank or a colon", path);
    append(objects, room, objects[0] != '\0' ? ":%s" : "%s", path);
}

/* In a program without MPI or without NCCL the one for it does nothing. */
static void find_objects(char *objects, size_t room)
{
    char self[PATH_MAX], folder[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
    char *slash;
    if (length < 0)
        iq_die(IQ_EXIT_FAILED, "/proc/self/exe cannot be read: %s", strerror(errno));
    self[length] = '\0';
    slash = strrchr(self, '/');
    if (slash != NULL)
        *slash = '\0';
    objects[0] = '\0';
    if (snprintf(folder, sizeof(folder), "%s/" ISGQ_BIN_TO_LIB "/isgq", self) < (int)sizeof(folder)) {
        add_object(folder, "libisgq_mpi.so", objects, room);
        add_object(folder, "libnccl.so.2", objects, room);
    }
    if (objects[0] == '\0')
        iq_die(IQ_EXIT_FAILED, "%s holds no preload: this build has none", folder);
}

static void set(const char *name, const char *value)
{
    if (setenv(name, value, 1) != 0)
        iq_die(IQ_EXIT_FAILED, "%s cannot be set: %s", name, strerror(errno));
}

/* Whoever asked for other preloads keeps them, behind ours. */
static void set_preload(const char *objects, char *value, size_t room)
{
    const char *before = getenv("LD_PRELOAD");
    if (snprintf(value, room, "%s%s%s", objects, before != NULL && before[0] != '\0' ? ":" : "", before != NULL ? before : "") >=
        (int)room)
        iq_die(IQ_EXIT_USAGE, "LD_PRELOAD is too long");
    set("LD_PRELOAD", value);
}

static int split_command(int argc, char **argv)
{
    int i = 1;
    while (i < argc && strcmp(argv[i], "--") != 0)
        i++;
    return i;
}

int main(int argc, char **argv)
{
    run_options_t o = {0};
    char policy[1024], objects[2 * PATH_MAX], preload[3 * PATH_MAX];
    iq_option_t options[] = {
        IQ_REAL('b', "bits", "BITS", o.bits, 0.1, 32, NULL, "quantize with isgq:bits=BITS"),
        IQ_TEXT('q', "quantizer", "TEXT", o.quantizer, NULL, "quantize with this quantizer"),
        IQ_TEXT('c', "comm", "PATTERN", o.comm, NULL, "communicators whose name fits this shell pattern; needed to quantize"),
        IQ_TEXT('t', "type", "TYPES", o.type, "f32", "f32, f64 or both separated by a comma"),
        IQ_TEXT(0, "bytes", "LEAST-[MOST]", o.bytes, "64k-", "sizes of one rank's input (k, m, g)"),
        IQ_TEXT(0, "exclude", "PATTERN", o.exclude, NULL, "never on communicators whose name fits"),
        IQ_TEXT('p', "policy", "FILE", o.policy, NULL, "take all rules from FILE instead"),
        IQ_TEXT(0, "record", "FILE", o.record, NULL, "quantize nothing; write what the program does, and a policy, to FILE.RANK"),
        IQ_TEXT(0, "log", "LEVEL", o.log, NULL, "ISGQ_LOG for the program: info tells at the end what was done"),
        IQ_FLAG(0, "dry-run", o.dry, "print the environment and the command, run nothing"),
        IQ_OPTIONS_END,
    };
    int command = split_command(argc, argv);

    iq_options_parse(&program, options, command, argv);
    bool quantizes = iq_options_given(options, "bits") || o.quantizer != NULL;
    int ways = (o.policy != NULL) + (o.record != NULL) + quantizes;
    if (ways > 1 || (iq_options_given(options, "bits") && o.quantizer != NULL))
        iq_die(IQ_EXIT_USAGE, "one of --bits, --quantizer, --policy and --record is enough");
    if (quantizes && o.comm == NULL)
        iq_die(IQ_EXIT_USAGE,
               "--comm is missing: name the communicators that may be quantized, '*' for all (--record tells their names)");
    if (!quantizes && (o.comm != NULL || o.exclude != NULL))
        iq_die(IQ_EXIT_USAGE, "--comm and --exclude belong to --bits and --quantizer");
    if (command + 1 >= argc)
        iq_die(IQ_EXIT_USAGE, "no program: isgq_run [options] -- PROGRAM [ARGUMENTS]");
    isgq_quantizer_t checked = NULL;
    if (o.quantizer != NULL && isgq_quantizer_create(&checked, o.quantizer) != ISGQ_SUCCESS)
        iq_die(IQ_EXIT_USAGE, "%s", isgq_get_last_error());
    isgq_quantizer_destroy(checked);
    write_policy(&o, quantizes, policy, sizeof(policy));
    find_objects(objects, sizeof(objects));
    set("ISGQ_POLICY", policy);
    set_preload(objects, preload, sizeof(preload));
    if (o.log != NULL)
        set("ISGQ_LOG", o.log);
    if (o.dry) {
        printf("ISGQ_POLICY='%s' LD_PRELOAD='%s'", policy, preload);
        for (int i = command + 1; i < argc; i++)
            printf(" %s", argv[i]);
        putchar('\n');
        return IQ_EXIT_OK;
    }
    execvp(argv[command + 1], argv + command + 1);
    iq_die(IQ_EXIT_FAILED, "%s cannot be run: %s", argv[command + 1], strerror(errno));
}
