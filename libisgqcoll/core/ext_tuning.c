/* SPDX-License-Identifier: Apache-2.0 */
/*
 * isgqcoll_ext.h: tuning tables as files. One "key = value" a line, '#' begins a remark, every key once and none left out, so that a file that
 * was cut off or edited by accident is noticed; "complete" ends it.
 */
#include "isgqcoll_ext.h"

#include "base/util.h"
#include "core/comm.h"
#include "core/tuned.h"
#include "transport/topology.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FORMAT 1
#define LINE_BYTES 256   /* of what the kernel says of a processor */
#define FILE_BYTES 16384 /* no table is longer */
#define MOST 1e18 /* of any number */

typedef enum kind { TEXT, WHOLE, TIME, RATE, CURVE } kind_t;

typedef struct field {
    const char *key;
    kind_t kind;
    size_t offset, bytes; /* bytes: of a text */
    const char *help;
} field_t;

#define FIELD(name, kind, help) {#name, kind, offsetof(isgqx_tuning_t, name), sizeof(((isgqx_tuning_t *)NULL)->name), help}

static const field_t fields[] = {
    FIELD(library, TEXT, "what measured, and where"),
    FIELD(cpu, TEXT, NULL),
    FIELD(transport, TEXT, NULL),
    FIELD(cores, WHOLE, NULL),
    FIELD(hosts, WHOLE, NULL),
    FIELD(ranks_per_host, WHOLE, NULL),
    FIELD(host_latency, TIME, "seconds of a round of messages, bytes/s"),
    FIELD(host_rate, RATE, NULL),
    FIELD(network_latency, TIME, NULL),
    FIELD(network_rate, RATE, NULL),
    FIELD(copy_rate, RATE, "bytes of f32 per second and rank; multiplications per second; values of factors to codes and back"),
    FIELD(sum_rate, RATE, NULL),
    FIELD(product_rate, RATE, NULL),
    FIELD(factor_rate, RATE, NULL),
    FIELD(correction, CURVE, "times measured over those of the formulas: allreduces of 4 KiB, 64 KiB, 1 MiB, 16 MiB"),
};

/* ---- values ---- */

static bool number_fits(kind_t kind, double value)
{
    double least = kind == TIME ? 0 : kind == WHOLE ? 1 : 1e-18;
    return value >= least && value <= (kind == WHOLE ? INT_MAX : MOST) && (kind != WHOLE || value == floor(value));
}

static double number_of(const isgqx_tuning_t *tuning, const field_t *field)
{
    const char *at = (const char *)tuning + field->offset;
    return field->kind == WHOLE ? *(const int *)(const void *)at : *(const double *)(const void *)at;
}

static bool curve_fits(const double *curve)
{
    for (int i = 0; i < ISGQX_TUNED_SIZES; i++)
        if (!number_fits(RATE, curve[i]))
            return false;
    return true;
}

static bool text_fits(const char *text, size_t room)
{
    size_t length = strnlen(text, room);
    return length > 0 && length < room && strpbrk(text, "\n#") == NULL && text[0] != ' ' && text[length - 1] != ' ';
}

static bool field_fits(const isgqx_tuning_t *tuning, const field_t *field)
{
    const char *at = (const char *)tuning + field->offset;
    if (field->kind == TEXT)
        return text_fits(at, field->bytes);
    return field->kind == CURVE ? curve_fits((const double *)(const void *)at) : number_fits(field->kind, number_of(tuning, field));
}

static isgq_result_t check(const isgqx_tuning_t *tuning)
{
    if (tuning == NULL || tuning->size != sizeof(*tuning))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "tuning table: NULL or of another size");
    for (size_t i = 0; i < IQ_ARRAY_SIZE(fields); i++)
        if (!field_fits(tuning, &fields[i]))
            return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "tuning table: %s has a value that no table may have", fields[i].key);
    if (tuning->ncodecs < 1 || tuning->ncodecs > ISGQX_TUNED_CODECS)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "tuning table: %d quantizers, there may be 1 to %d", tuning->ncodecs, ISGQX_TUNED_CODECS);
    for (int c = 0; c < tuning->ncodecs; c++)
        if (!text_fits(tuning->codecs[c].quantizer, sizeof(tuning->codecs[c].quantizer)) ||
            !number_fits(RATE, tuning->codecs[c].encode_rate) || !number_fits(RATE, tuning->codecs[c].decode_rate) ||
            !curve_fits(tuning->codecs[c].correction))
            return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "tuning table: quantizer %d has a value that no table may have", c);
    return ISGQ_SUCCESS;
}

/* ---- writing ---- */

static void write_curve(FILE *file, const char *key, const double *curve)
{
    fprintf(file, "%s =", key);
    for (int i = 0; i < ISGQX_TUNED_SIZES; i++)
        fprintf(file, " %.9g", curve[i]);
    fputc('\n', file);
}

static void write_codec(FILE *file, const isgqx_tuned_codec_t *codec)
{
    char key[sizeof(codec->quantizer) + 16];
    snprintf(key, sizeof(key), "correction %s", codec->quantizer);
    fprintf(file, "encode_rate %s = %.9g\ndecode_rate %s = %.9g\n", codec->quantizer, codec->encode_rate, codec->quantizer, codec->decode_rate);
    write_curve(file, key, codec->correction);
}

static void write_lines(FILE *file, const isgqx_tuning_t *tuning)
{
    fprintf(file, "# isgqcoll tuning table, written by isgq_tune, read through ISGQ_TUNE_TABLE\nversion = %d\n", FORMAT);
    for (size_t i = 0; i < IQ_ARRAY_SIZE(fields); i++) {
        if (fields[i].help != NULL)
            fprintf(file, "# %s\n", fields[i].help);
        if (fields[i].kind == TEXT)
            fprintf(file, "%s = %s\n", fields[i].key, (const char *)tuning + fields[i].offset);
        else if (fields[i].kind == CURVE)
            write_curve(file, fields[i].key, (const double *)(const void *)((const char *)tuning + fields[i].offset));
        else
            fprintf(file, "%s = %.9g\n", fields[i].key, number_of(tuning, &fields[i]));
    }
    for (int c = 0; c < tuning->ncodecs; c++)
        write_codec(file, &tuning->codecs[c]);
    fprintf(file, "complete = yes\n");
}

/* Numbers have a point in files, whatever the program's language is. */
static locale_t speak_plainly(locale_t *before)
{
    locale_t plain = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    *before = plain != (locale_t)0 ? uselocale(plain) : (locale_t)0;
    return plain;
}

static void speak_as(locale_t before, locale_t plain)
{
    if (plain == (locale_t)0)
        return;
    uselocale(before);
    freelocale(plain);
}

isgq_result_t isgqx_tuning_write(const char *path, const isgqx_tuning_t *tuning)
{
    IQ_TRY(check(tuning));
    FILE *file = path != NULL ? fopen(path, "we") : NULL;
    if (file == NULL)
        return IQ_FAIL(path == NULL ? ISGQ_ERR_INVALID_ARGUMENT : ISGQ_ERR_SYSTEM, "tuning table: %s cannot be written: %s",
                       path != NULL ? path : "NULL", path != NULL ? strerror(errno) : "no path");
    locale_t before, plain = speak_plainly(&before);
    write_lines(file, tuning);
    speak_as(before, plain);
    bool written = ferror(file) == 0;
    if (fclose(file) != 0 || !written)
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "tuning table: %s cannot be written: %s", path, strerror(errno));
    return ISGQ_SUCCESS;
}

/* ---- reading ---- */

typedef struct reader {
    isgqx_tuning_t *tuning;
    bool seen[IQ_ARRAY_SIZE(fields)], versioned, complete;
} reader_t;

static bool read_number(kind_t kind, const char *text, double *value)
{
    char *end;
    *value = strtod(text, &end);
    return end != text && *end == '\0' && number_fits(kind, *value);
}

static bool read_curve(const char *text, double *curve)
{
    char *end;
    for (int i = 0; i < ISGQX_TUNED_SIZES; i++, text = end) {
        curve[i] = strtod(text, &end);
        if (end == text || *end != (i + 1 < ISGQX_TUNED_SIZES ? ' ' : '\0'))
            return false;
    }
    return curve_fits(curve);
}

/* "encode_rate uniform:bits=4", then the same with decode_rate, then with correction. */
static bool take_codec(isgqx_tuning_t *tuning, const char *key, const char *value)
{
    const char *name = strchr(key, ' ');
    size_t length = name != NULL ? (size_t)(name++ - key) : 0;
    isgqx_tuned_codec_t *last = &tuning->codecs[iq_max((size_t)tuning->ncodecs, 1) - 1];
    if (name == NULL)
        return false;
    if (length == strlen("encode_rate") && strncmp(key, "encode_rate", length) == 0) {
        bool follows = tuning->ncodecs == 0 || last->correction[0] > 0;
        if (!follows || tuning->ncodecs == ISGQX_TUNED_CODECS || strlen(name) >= sizeof(last->quantizer))
            return false;
        last = &tuning->codecs[tuning->ncodecs++];
        snprintf(last->quantizer, sizeof(last->quantizer), "%s", name);
        return read_number(RATE, value, &last->encode_rate);
    }
    if (tuning->ncodecs == 0 || strcmp(last->quantizer, name) != 0)
        return false;
    if (length == strlen("decode_rate") && strncmp(key, "decode_rate", length) == 0)
        return last->decode_rate == 0 && read_number(RATE, value, &last->decode_rate);
    return length == strlen("correction") && strncmp(key, "correction", length) == 0 && last->correction[0] == 0 &&
           read_curve(value, last->correction);
}

static bool take_field(reader_t *reader, const char *key, const char *value)
{
    for (size_t i = 0; i < IQ_ARRAY_SIZE(fields); i++) {
        char *at = (char *)reader->tuning + fields[i].offset;
        double number;
        if (strcmp(fields[i].key, key) != 0)
            continue;
        if (reader->seen[i])
            return false;
        reader->seen[i] = true;
        if (fields[i].kind == TEXT) {
            snprintf(at, fields[i].bytes, "%s", value);
            return strlen(value) < fields[i].bytes && value[0] != '\0';
        }
        if (fields[i].kind == CURVE)
            return read_curve(value, (double *)(void *)at);
        if (!read_number(fields[i].kind, value, &number))
            return false;
        if (fields[i].kind == WHOLE)
            *(int *)(void *)at = (int)number;
        else
            *(double *)(void *)at = number;
        return true;
    }
    return take_codec(reader->tuning, key, value);
}

/* The version comes first, so that a newer format is known before its lines puzzle anybody. */
static isgq_result_t take_line(reader_t *reader, const char *path, int number, char *line)
{
    char *value = NULL, *end = line + strlen(line);
    while (end > line && (end[-1] == '\n' || end[-1] == '\r' || end[-1] == ' '))
        *--end = '\0';
    if (line[0] == '#' || line[0] == '\0')
        return ISGQ_SUCCESS;
    value = strstr(line, " = ");
    if (value != NULL) {
        *value = '\0';
        value += 3;
    }
    if (value != NULL && !reader->versioned && strcmp(line, "version") == 0) {
        char *rest;
        long version = strtol(value, &rest, 10);
        if (*rest == '\0' && version > FORMAT)
            return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "%s is of format %ld, this library reads %d", path, version, FORMAT);
        reader->versioned = *rest == '\0' && version == FORMAT;
        if (reader->versioned)
            return ISGQ_SUCCESS;
    } else if (value != NULL && reader->versioned && !reader->complete) {
        if (strcmp(line, "complete") == 0 && strcmp(value, "yes") == 0) {
            reader->complete = true;
            return ISGQ_SUCCESS;
        }
        if (take_field(reader, line, value))
            return ISGQ_SUCCESS;
    }
    return IQ_FAIL(ISGQ_ERR_CORRUPT, "%s is no tuning table or damaged: line %d", path, number);
}

/* At most FILE_BYTES of a regular file, which nobody can be made to wait for. */
static isgq_result_t load(const char *path, char text[FILE_BYTES + 1])
{
    struct stat about;
    size_t used = 0;
    ssize_t got = 1;
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0)
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "%s cannot be read: %s", path, strerror(errno));
    bool regular = fstat(file, &about) == 0 && S_ISREG(about.st_mode);
    while (regular && got > 0 && used < FILE_BYTES) {
        got = read(file, text + used, FILE_BYTES - used);
        used += got > 0 ? (size_t)got : 0;
    }
    int error = errno;
    close(file);
    text[used] = '\0';
    if (!regular || got < 0)
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "%s cannot be read: %s", path, regular ? strerror(error) : "it is no regular file");
    if (got > 0 || strlen(text) != used)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "%s is no tuning table or damaged: it has %s", path, got > 0 ? "more bytes than any" : "zeros in it");
    return ISGQ_SUCCESS;
}

static isgq_result_t take_text(const char *path, char *text, isgqx_tuning_t *tuning)
{
    reader_t reader = {.tuning = tuning};
    char *line;
    for (int number = 1; (line = strsep(&text, "\n")) != NULL; number++)
        IQ_TRY(take_line(&reader, path, number, line));
    for (size_t i = 0; i < IQ_ARRAY_SIZE(fields); i++)
        if (!reader.seen[i])
            return IQ_FAIL(ISGQ_ERR_CORRUPT, "%s is no tuning table or damaged: %s is missing", path, fields[i].key);
    if (!reader.complete || check(tuning) != ISGQ_SUCCESS)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "%s is no tuning table or damaged: its end is missing", path);
    return ISGQ_SUCCESS;
}

isgq_result_t isgqx_tuning_read(const char *path, isgqx_tuning_t *tuning)
{
    char text[FILE_BYTES + 1];
    if (path == NULL || tuning == NULL || tuning->size != sizeof(*tuning))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "tuning table: no path, or the struct is NULL or of another size");
    memset(tuning, 0, sizeof(*tuning));
    tuning->size = sizeof(*tuning);
    IQ_TRY(load(path, text));
    locale_t before, plain = speak_plainly(&before);
    isgq_result_t result = take_text(path, text, tuning);
    speak_as(before, plain);
    return result;
}

/* ---- the machine ---- */

isgq_result_t isgqx_tuning_machine(const isgqx_tuning_t *tuning, const char *quantizer, isgqx_machine_t *machine)
{
    IQ_TRY(check(tuning));
    if (machine == NULL || machine->size != sizeof(*machine))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "tuning table: machine is NULL or of another size");
    const isgqx_tuned_codec_t *codec = quantizer != NULL ? iq_tuned_codec(tuning, quantizer) : &tuning->codecs[0];
    *machine = (isgqx_machine_t){.size = sizeof(*machine),
                                 .nlevels = tuning->hosts > 1 ? 2 : 1,
                                 .levels = {{tuning->ranks_per_host, tuning->host_latency, tuning->host_rate},
                                            {tuning->hosts, tuning->network_latency, tuning->network_rate}},
                                 .copy_rate = tuning->copy_rate,
                                 .sum_rate = tuning->sum_rate,
                                 .encode_rate = codec->encode_rate,
                                 .decode_rate = codec->decode_rate,
                                 .product_rate = tuning->product_rate};
    return ISGQ_SUCCESS;
}

double isgqx_tuning_correction(const isgqx_tuning_t *tuning, const char *quantizer, double bytes)
{
    if (tuning == NULL || quantizer == NULL)
        return 1;
    const double *curve = strcmp(quantizer, "none") == 0 ? tuning->correction : iq_tuned_codec(tuning, quantizer)->correction;
    double below = 4096, above = 16 * below;
    int i = 0;
    for (; i + 2 < ISGQX_TUNED_SIZES && bytes > above; i++, above *= 16)
        below = above;
    double share = bytes <= below ? 0 : bytes >= above ? 1 : (bytes - below) / (above - below);
    return curve[i] + share * (curve[i + 1] - curve[i]);
}

/* The processor's name as the kernel gives it; some architectures have none, but a number of the part. */
static void cpu_name(char *text, size_t bytes)
{
    static const char *const keys[] = {"model name", "Model", "CPU part"};
    char line[LINE_BYTES];
    FILE *file = fopen("/proc/cpuinfo", "r");
    snprintf(text, bytes, "unknown");
    while (file != NULL && fgets(line, sizeof(line), file) != NULL)
        for (size_t i = 0; i < IQ_ARRAY_SIZE(keys); i++) {
            char *value = strncmp(line, keys[i], strlen(keys[i])) == 0 ? strstr(line, ": ") : NULL;
            if (value == NULL)
                continue;
            value += 2 + strspn(value + 2, " ");
            value[strcspn(value, "\n#")] = '\0';
            for (size_t end = strlen(value); end > 0 && value[end - 1] == ' ';)
                value[--end] = '\0';
            snprintf(text, bytes, "%s", value[0] != '\0' ? value : "unknown");
            fclose(file);
            return;
        }
    if (file != NULL)
        fclose(file);
}

isgq_result_t isgqx_tuning_place(isgq_comm_t comm, isgqx_tuning_t *tuning, int *first, int *index)
{
    IQ_TRY(iq_comm_check_handle(comm, "tuning_place"));
    if (tuning == NULL || tuning->size != sizeof(*tuning) || first == NULL || index == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "tuning_place: an argument is NULL or of another size");
    memset(tuning, 0, sizeof(*tuning));
    tuning->size = sizeof(*tuning);
    snprintf(tuning->library, sizeof(tuning->library), "%d.%d.%d", ISGQ_VERSION_MAJOR, ISGQ_VERSION_MINOR, ISGQ_VERSION_PATCH);
    cpu_name(tuning->cpu, sizeof(tuning->cpu));
    size_t length = strlen(tuning->cpu);
    if (tuning->cpu[length - 1] == ' ') /* cut off there */
        tuning->cpu[length - 1] = '\0';
    snprintf(tuning->transport, sizeof(tuning->transport), "%s", comm->transport_names);
    tuning->cores = iq_topology()->cores;
    tuning->hosts = comm->nhosts;
    tuning->ranks_per_host = comm->hosts_alike ? comm->host_size : 0;
    *first = comm->host_ranks[0];
    *index = comm->host_index;
    return ISGQ_SUCCESS;
}
