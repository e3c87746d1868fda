/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A JSON writer; see json.h.
 */
#include "tools/common/json.h"

#include "tools/common/options.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

void iq_json_probe(const char *path)
{
    if (path == NULL || strcmp(path, "-") == 0)
        return;
    FILE *file = fopen(path, "a");
    if (file == NULL)
        iq_die(IQ_EXIT_USAGE, "cannot write %s: %s", path, strerror(errno));
    fclose(file);
}

void iq_json_open(iq_json_t *json, const char *path)
{
    *json = (iq_json_t){.path = path};
    if (path == NULL)
        return;
    json->file = strcmp(path, "-") == 0 ? stdout : fopen(path, "w");
    if (json->file == NULL)
        iq_die(IQ_EXIT_USAGE, "cannot write %s: %s", path, strerror(errno));
}

static void put_string(FILE *file, const char *text)
{
    fputc('"', file);
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        if (*c == '"' || *c == '\\')
            fprintf(file, "\\%c", *c);
        else if (*c < 0x20 || *c >= 0x7f) /* bytes beyond ASCII as Latin-1: always valid JSON */
            fprintf(file, "\\u%04x", *c);
        else
            fputc(*c, file);
    }
    fputc('"', file);
}

static bool put_name(iq_json_t *json, const char *name)
{
    if (json->file == NULL)
        return false;
    if (json->fields++ > 0)
        fputs(", ", json->file);
    put_string(json->file, name);
    fputs(": ", json->file);
    return true;
}

void iq_json_row_begin(iq_json_t *json)
{
    if (json->file == NULL)
        return;
    fputs(json->rows++ > 0 ? ",\n {" : "[\n {", json->file);
    json->fields = 0;
}

void iq_json_row_end(iq_json_t *json)
{
    if (json->file != NULL)
        fputs("}", json->file);
}

void iq_json_text(iq_json_t *json, const char *name, const char *value)
{
    if (put_name(json, name))
        put_string(json->file, value);
}

void iq_json_count(iq_json_t *json, const char *name, uint64_t value)
{
    if (put_name(json, name))
        fprintf(json->file, "%" PRIu64, value);
}

void iq_json_real(iq_json_t *json, const char *name, double value)
{
    if (!put_name(json, name))
        return;
    if (isfinite(value))
        fprintf(json->file, "%.9g", value);
    else
        fputs("null", json->file);
}

void iq_json_hash(iq_json_t *json, const char *name, uint64_t value)
{
    if (put_name(json, name))
        fprintf(json->file, "\"%016" PRIx64 "\"", value);
}

bool iq_json_close(iq_json_t *json)
{
    if (json->file == NULL)
        return true;
    fputs(json->rows > 0 ? "\n]\n" : "[]\n", json->file);
    bool bad = fflush(json->file) != 0 || ferror(json->file);
    if (json->file != stdout)
        bad |= fclose(json->file) != 0;
    json->file = NULL;
    if (bad)
        iq_complain("cannot write %s: %s", json->path, strerror(errno));
    return !bad;
}
