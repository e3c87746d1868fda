/* SPDX-License-Identifier: Apache-2.0 */
/*
 * isgq_doctor: would the preloads catch a program's MPI or NCCL, and if not, why. The program is not run: the loader is asked to bind its
 * symbols with the preloads in front and to say which it took, and the file is read for what no loader sees.
 */
#include "tools/common/json.h"
#include "tools/common/options.h"
#include "tools/doctor_elf.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const iq_program_t program = {
    .name = "isgq_doctor",
    .usage = "[-J FILE] -- PROGRAM",
    .about = "Say for MPI_Allreduce and ncclAllReduce whether a preload would catch PROGRAM's calls, and if not, why and what to "
             "do about it.\n"
             "PROGRAM (or a shared library that it loads later) is not run. Exit status 0: caught, or not used; 1: used and not "
             "caught.",
};

typedef enum verdict { UNUSED, CAUGHT, MISSED, LATER } verdict_t;
static const char *const verdict_names[] = {"not used", "caught", "missed", "decided later"};

/* One interface and how programs get at it. */
typedef struct interface {
    const char *name, *object;
    const char *symbols[5]; /* what programs and their libraries call */
    const char *library;    /* what they open */
} interface_t;

static const interface_t interfaces[] = {
    {"MPI", "libisgq_mpi.so", {"MPI_Allreduce", "mpi_allreduce_", "ompi_allreduce_f", "MPI_Allreduce_c", NULL}, "libmpi.so"},
    {"NCCL", "libnccl.so.2", {"ncclAllReduce", NULL}, "libnccl.so"},
};

typedef struct diagnosis {
    verdict_t verdict;
    char why[2 * DOCTOR_TEXT], advice[DOCTOR_TEXT];
} diagnosis_t;

typedef struct patient {
    char path[PATH_MAX], folder[PATH_MAX]; /* the program; where the preloads are */
    iq_elf_facts_t facts;
    bool privileged; /* set-user-id or set-group-id */
    FILE *bindings;  /* what the loader said */
} patient_t;

static void find_program(const char *name, char *path)
{
    const char *folders = getenv("PATH");
    if (strchr(name, '/') != NULL) {
        snprintf(path, PATH_MAX, "%s", name);
        return;
    }
    for (size_t length; folders != NULL && *folders != '\0'; folders += length + (folders[length] != '\0')) {
        length = strcspn(folders, ":");
        if (snprintf(path, PATH_MAX, "%.*s/%s", (int)length, folders, name) < PATH_MAX && access(path, X_OK) == 0)
            return;
    }
    iq_die(IQ_EXIT_USAGE, "%s: there is no such program in PATH", name);
}

static void find_preloads(char *folder)
{
    char self[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
    char *slash = length > 0 ? memrchr(self, '/', (size_t)length) : NULL;
    if (slash == NULL)
        iq_die(IQ_EXIT_FAILED, "/proc/self/exe cannot be read");
    *slash = '\0';
    snprintf(folder, PATH_MAX, "%.3000s/" ISGQ_BIN_TO_LIB "/isgq", self);
}

/* In the child: the loader itself as the program, told to bind everything, to say what it binds, and to end there. */
static void ask_loader(const patient_t *patient, const char *log)
{
    char preload[2 * PATH_MAX + 64];
    int nothing = open("/dev/null", O_WRONLY);
    snprintf(preload, sizeof(preload), "%s/libisgq_mpi.so:%s/libnccl.so.2", patient->folder, patient->folder);
    if (nothing >= 0 && dup2(nothing, STDOUT_FILENO) >= 0 && dup2(nothing, STDERR_FILENO) >= 0 &&
        setenv("LD_PRELOAD", preload, 1) == 0 && setenv("LD_TRACE_LOADED_OBJECTS", "1", 1) == 0 &&
        setenv("LD_BIND_NOW", "1", 1) == 0 && setenv("LD_WARN", "yes", 1) == 0 && setenv("LD_DEBUG", "bindings", 1) == 0 &&
        setenv("LD_DEBUG_OUTPUT", log, 1) == 0)
        execl(patient->facts.interpreter, patient->facts.interpreter, patient->path, (char *)NULL);
    _exit(127);
}

/* A loader that is not glibc's might run the program instead, and one that the program brings along is a program of its own. */
static bool loader_can_be_asked(const patient_t *patient)
{
    char real[PATH_MAX];
    const char *slash = strrchr(patient->facts.interpreter, '/');
    return patient->facts.is_elf && !patient->facts.is_static && slash != NULL &&
           strncmp(slash + 1, "ld-linux", strlen("ld-linux")) == 0 && realpath(patient->facts.interpreter, real) != NULL &&
           (strncmp(real, "/lib", strlen("/lib")) == 0 || strncmp(real, "/usr/lib", strlen("/usr/lib")) == 0);
}

static void listen_to_loader(patient_t *patient)
{
    char folder[] = "/tmp/isgq_doctor.XXXXXX", log[64], name[96];
    int status;
    if (!loader_can_be_asked(patient))
        return;
    if (mkdtemp(folder) == NULL)
        iq_die(IQ_EXIT_FAILED, "no temporary folder: %s", strerror(errno));
    snprintf(log, sizeof(log), "%s/log", folder);
    pid_t child = fork();
    if (child == 0)
        ask_loader(patient, log);
    if (child < 0 || waitpid(child, &status, 0) < 0)
        iq_die(IQ_EXIT_FAILED, "the loader cannot be started: %s", strerror(errno));
    snprintf(name, sizeof(name), "%s.%d", log, (int)child);
    patient->bindings = fopen(name, "re"); /* it stays open when it is gone */
    (void)unlink(name);
    (void)rmdir(folder);
}

/* "binding file WHO [0] to WHOM [0]: normal symbol `NAME'": did anybody's NAME go to `object`, and did anybody's go elsewhere? */
static void read_bindings(const patient_t *patient, const interface_t *interface, bool *caught, char *elsewhere)
{
    char line[4096], who[1024], whom[1024], symbol[256];
    *caught = false;
    elsewhere[0] = '\0';
    if (patient->bindings == NULL)
        return;
    rewind(patient->bindings);
    while (fgets(line, sizeof(line), patient->bindings) != NULL) {
        const char *begin = strstr(line, "binding file ");
        if (begin == NULL ||
            sscanf(begin, "binding file %1023s [%*d] to %1023s [%*d]: normal symbol `%255[^']'", who, whom, symbol) != 3)
            continue;
        for (size_t i = 0; interface->symbols[i] != NULL; i++) {
            if (strcmp(symbol, interface->symbols[i]) != 0 || strstr(who, "/isgq/lib") != NULL)
                continue;
            if (strstr(whom, interface->object) != NULL && strstr(whom, "/isgq/") != NULL)
                *caught = true;
            else
                snprintf(elsewhere, DOCTOR_TEXT, "%.240s takes it from %.240s", who, whom);
        }
    }
}

static bool is_linked_in(const patient_t *patient, const interface_t *interface)
{
    for (size_t i = 0; interface->symbols[i] != NULL; i++)
        if (iq_elf_symbol(patient->path, interface->symbols[i]).defined)
            return true;
    return false;
}

static bool is_wanted(const patient_t *patient, const interface_t *interface)
{
    for (size_t i = 0; interface->symbols[i] != NULL; i++)
        if (iq_elf_symbol(patient->path, interface->symbols[i]).wanted)
            return true;
    return false;
}

static void set(diagnosis_t *d, verdict_t verdict, const char *why, const char *advice)
{
    d->verdict = verdict;
    snprintf(d->why, sizeof(d->why), "%s", why);
    snprintf(d->advice, sizeof(d->advice), "%s", advice);
}

/* What the program opens when it runs: by name the loader finds the preload, by path it does not. */
static void look_at_texts(const patient_t *patient, const interface_t *interface, diagnosis_t *d)
{
    char text[DOCTOR_TEXT], why[2 * DOCTOR_TEXT];
    if (!iq_elf_text(patient->path, interface->library, text))
        return;
    snprintf(why, sizeof(why), "it holds the text \"%.300s\" and may open that", text);
    if (text[0] == '/')
        set(d, MISSED, why,
            "a library opened by an absolute path is not looked for; LD_AUDIT=.../lib/isgq/libisgq_audit.so redirects NCCL's all "
            "the same");
    else
        set(d, LATER, why,
            "opened by name it is caught if the preload has that name (NCCL's has); ISGQ_LOG=info tells when it runs");
}

static void look_at_binary(const patient_t *patient, const interface_t *interface, diagnosis_t *d)
{
    char elsewhere[DOCTOR_TEXT];
    bool caught;
    read_bindings(patient, interface, &caught, elsewhere);
    if (is_linked_in(patient, interface))
        set(d, MISSED, "it is linked into the program itself",
            "link it dynamically (Horovod: HOROVOD_NCCL_LINK=SHARED), or build with isgqcoll.h");
    else if (patient->facts.is_static)
        set(d, UNUSED, "a static program without it", "");
    else if (elsewhere[0] != '\0')
        set(d, MISSED, elsewhere,
            "something stands before the preload: another tool's LD_PRELOAD, or a symbol of the program's own");
    else if (caught)
        set(d, CAUGHT, "the loader binds it to the preload", "");
    else if (is_wanted(patient, interface))
        set(d, patient->bindings != NULL ? MISSED : LATER, "the file asks for it, but no loader that can be asked would bind it",
            "look at a program that uses this file, or run it with ISGQ_LOG=info");
    else
        look_at_texts(patient, interface, d);
}

static diagnosis_t diagnose(const patient_t *patient, const interface_t *interface)
{
    diagnosis_t d = {.verdict = UNUSED};
    char why[2 * DOCTOR_TEXT];
    if (!patient->facts.is_elf) {
        snprintf(why, sizeof(why), "a script of %.300s",
                 patient->facts.interpreter[0] != '\0' ? patient->facts.interpreter : "an unknown program");
        set(&d, LATER, why, "ask about the interpreter, and about the extension that calls it (isgq_doctor -- libtorch_cuda.so)");
        return d;
    }
    look_at_binary(patient, interface, &d);
    if (patient->privileged && d.verdict != UNUSED)
        set(&d, MISSED, "it is a set-user-id or set-group-id program, for which the loader ignores LD_PRELOAD",
            "run it without these rights");
    char object[PATH_MAX];
    snprintf(object, sizeof(object), "%.3500s/%s", patient->folder, interface->object);
    if (d.verdict != UNUSED && access(object, R_OK) != 0)
        set(&d, MISSED, "this build has no preload for it", "build it where its header is installed");
    return d;
}

static bool print(const patient_t *patient, iq_json_t *json, bool text)
{
    bool well = true;
    for (size_t i = 0; i < sizeof(interfaces) / sizeof(interfaces[0]); i++) {
        diagnosis_t d = diagnose(patient, &interfaces[i]);
        well = well && d.verdict != MISSED;
        if (text)
            printf("%-5s %s%s%s%s%s\n", interfaces[i].name, verdict_names[d.verdict], d.why[0] != '\0' ? ": " : "", d.why,
                   d.advice[0] != '\0' ? "\n      " : "", d.advice);
        iq_json_row_begin(json);
        iq_json_text(json, "interface", interfaces[i].name);
        iq_json_text(json, "verdict", verdict_names[d.verdict]);
        iq_json_text(json, "why", d.why);
        iq_json_text(json, "advice", d.advice);
        iq_json_row_end(json);
    }
    if (text && patient->facts.run_path[0] != '\0')
        printf("run path (%s): %s%s\n", patient->facts.run_path_is_old ? "DT_RPATH" : "DT_RUNPATH", patient->facts.run_path,
               patient->facts.run_path_is_old ? "; LD_LIBRARY_PATH does not come before it, LD_PRELOAD does" : "");
    return well;
}

int main(int argc, char **argv)
{
    static patient_t patient;
    const char *path = NULL;
    char error[DOCTOR_TEXT];
    struct stat file;
    iq_json_t json;
    iq_option_t options[] = {
        IQ_TEXT('J', "json", "FILE", path, NULL, "write JSON to FILE; -: to stdout and nothing else there"),
        IQ_OPTIONS_END,
    };
    int command = 1;
    while (command < argc && strcmp(argv[command], "--") != 0)
        command++;

    iq_options_parse(&program, options, command, argv);
    if (command + 1 >= argc)
        iq_die(IQ_EXIT_USAGE, "no program: isgq_doctor -- PROGRAM");
    find_program(argv[command + 1], patient.path);
    find_preloads(patient.folder);
    if (stat(patient.path, &file) != 0 || !S_ISREG(file.st_mode))
        iq_die(IQ_EXIT_USAGE, "%s: %s", patient.path, errno != 0 ? strerror(errno) : "not a file");
    if (!iq_elf_read(patient.path, &patient.facts, error))
        iq_die(IQ_EXIT_USAGE, "%s", error);
    patient.privileged = (file.st_mode & (S_ISUID | S_ISGID)) != 0;
    listen_to_loader(&patient);
    iq_json_open(&json, path);
    bool well = print(&patient, &json, json.file != stdout);
    if (patient.bindings != NULL)
        fclose(patient.bindings);
    return iq_json_close(&json) && well ? IQ_EXIT_OK : IQ_EXIT_FAILED;
}
