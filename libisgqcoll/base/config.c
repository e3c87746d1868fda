/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of ISGQ_* variables at work: config_vars.def expanded into rows, the environment read through them once.
 *
 * Reading and warning are two steps: while the environment is being read nobody may log, because the log asks for the
 * configuration. So the reader only marks rows with bad values, and the first caller of iq_config speaks about them afterwards.
 */
#include "base/config.h"

#include "base/log.h"
#include "base/status.h"
#include "base/util.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PREFIX "ISGQ_"
#define PREFIX_LENGTH (sizeof(PREFIX) - 1)

/* Smallest and largest value of the numbers that do not use their type's whole range. */
typedef struct range {
    const char *name;
    uint64_t least, most;
} range_t;

static const range_t ranges[] = {
    {"CHUNK_BYTES", 4096, 16u << 20}, {"SCRATCH_BYTES", 1u << 16, UINT64_MAX}, {"PLAN_CACHE", 8, 1u << 20},
    {"TIMEOUT_MS", 1, UINT32_MAX},    {"INIT_TIMEOUT_MS", 1, UINT32_MAX},      {"MASTER_PORT", 0, 65535},
    {"BLAS_THREADS", 0, 4096},
};
static const range_t whole_range = {NULL, 0, UINT64_MAX};

typedef struct row {
    const char *name, *default_text, *help;
    bool (*parse)(const char *text, const range_t *range, void *field);
    size_t offset; /* of the field in iq_config_t */
} row_t;

/* Texts that were ever in effect stay for ever: the configuration hands out pointers to them. */
typedef struct kept_text {
    struct kept_text *next;
    char text[];
} kept_text_t;

static bool parse_number(const char *text, uint64_t *value)
{
    int base = text[0] == '0' && (text[1] == 'x' || text[1] == 'X') ? 16 : 10;
    char *end;
    if (text[0] < '0' || text[0] > '9') /* strtoull would take signs and blanks */
        return false;
    errno = 0;
    *value = strtoull(text, &end, base);
    return errno == 0 && *end == '\0';
}

static bool parse_text(const char *text, const range_t *range, void *field)
{
    (void)range;
    *(const char **)field = text;
    return true;
}

static bool parse_bytes(const char *text, const range_t *range, void *field)
{
    size_t bytes;
    if (!iq_parse_bytes(text, &bytes) || bytes < range->least || bytes > range->most)
        return false;
    *(size_t *)field = bytes;
    return true;
}

static bool parse_u64(const char *text, const range_t *range, void *field)
{
    uint64_t value;
    if (!parse_number(text, &value) || value < range->least || value > range->most)
        return false;
    *(uint64_t *)field = value;
    return true;
}

static bool parse_u32(const char *text, const range_t *range, void *field)
{
    uint64_t value;
    if (!parse_u64(text, range, &value) || value > UINT32_MAX)
        return false;
    *(uint32_t *)field = (uint32_t)value;
    return true;
}

static bool parse_flag(const char *text, const range_t *range, void *field)
{
    (void)range;
    if (strcmp(text, "0") != 0 && strcmp(text, "1") != 0)
        return false;
    *(bool *)field = text[0] == '1';
    return true;
}

static const row_t rows[] = {
#define X(field, kind, name, default_text, help) {name, default_text, help, parse_##kind, offsetof(iq_config_t, field)},
#include "base/config_vars.def"
#undef X
};
#define NROWS IQ_ARRAY_SIZE(rows)

static pthread_once_t read_once = PTHREAD_ONCE_INIT;
static iq_config_t config;
static const char *texts[NROWS]; /* in effect */
static bool rejected[NROWS];     /* the environment holds a bad value */
static atomic_bool warned;
static kept_text_t *kept_texts;

bool iq_parse_bytes(const char *text, size_t *bytes)
{
    unsigned shift = 0;
    uint64_t value;
    char *end;
    if (text == NULL || text[0] < '0' || text[0] > '9')
        return false;
    errno = 0;
    value = strtoull(text, &end, 10);
    switch (*end | 0x20) {
    case 'k': shift = 10; break;
    case 'm': shift = 20; break;
    case 'g': shift = 30; break;
    default: break;
    }
    if (errno != 0 || end[shift != 0] != '\0' || value > SIZE_MAX >> shift)
        return false;
    *bytes = (size_t)value << shift;
    return true;
}

static const range_t *range_of(const char *name)
{
    for (size_t i = 0; i < IQ_ARRAY_SIZE(ranges); i++)
        if (strcmp(ranges[i].name, name) == 0)
            return &ranges[i];
    return &whole_range;
}

/* `text` must stay. */
static bool apply(size_t index, const char *text)
{
    const row_t *row = &rows[index];
    if (strcmp(row->name, "LOG") == 0 && !iq_log_set_level(text))
        return false;
    if (!row->parse(text, range_of(row->name), (char *)&config + row->offset))
        return false;
    texts[index] = text;
    return true;
}

static bool keep_and_apply(size_t index, const char *text)
{
    size_t bytes = strlen(text) + 1;
    kept_text_t *kept = malloc(sizeof(*kept) + bytes);
    if (kept == NULL)
        return false;
    memcpy(kept->text, text, bytes);
    if (!apply(index, kept->text)) {
        free(kept);
        return false;
    }
    kept->next = kept_texts;
    kept_texts = kept;
    return true;
}

/* An empty variable counts as unset, as in `ISGQ_SEED= program`. */
static const char *environment_text(const char *name)
{
    char variable[64] = PREFIX;
    strncat(variable, name, sizeof(variable) - PREFIX_LENGTH - 1);
    const char *text = getenv(variable);
    return text != NULL && text[0] != '\0' ? text : NULL;
}

static void read_environment(void)
{
    for (size_t i = 0; i < NROWS; i++) {
        const char *text = environment_text(rows[i].name);
        bool right = apply(i, rows[i].default_text);
        iq_assert(right);
        (void)right;
        rejected[i] = text != NULL && !keep_and_apply(i, text);
    }
}

static void warn_bad_values(void)
{
    for (size_t i = 0; i < NROWS; i++) {
        const char *text = rejected[i] ? environment_text(rows[i].name) : NULL;
        if (text != NULL)
            IQ_WARN(PREFIX "%s: \"%.64s\" is no valid value, using \"%s\" instead. %s", rows[i].name, text, rows[i].default_text,
                    rows[i].help);
    }
}

static const char *nearest_name(const char *name)
{
    const char *names[NROWS + 1];
    for (size_t i = 0; i < NROWS; i++)
        names[i] = rows[i].name;
    names[NROWS] = NULL;
    return iq_nearest_word(name, names);
}

static size_t find_row(const char *name)
{
    size_t i = 0;
    while (i < NROWS && strcmp(rows[i].name, name) != 0)
        i++;
    return i;
}

/* Names of the bindings are theirs to check. */
static bool is_of_a_binding(const char *entry)
{
    static const char *const prefixes[] = {PREFIX "NCCL_", PREFIX "MPI_", PREFIX "PYTHON_"};
    for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++) {
        if (strncmp(entry, prefixes[i], strlen(prefixes[i])) == 0)
            return true;
    }
    return false;
}

/* `entry` is one "NAME=value" of the environment. */
static void warn_if_unknown(const char *entry)
{
    char name[64];
    size_t length = strcspn(entry, "=");
    if (strncmp(entry, PREFIX, PREFIX_LENGTH) != 0 || is_of_a_binding(entry))
        return;
    length = iq_min(length - PREFIX_LENGTH, sizeof(name) - 1);
    memcpy(name, entry + PREFIX_LENGTH, length);
    name[length] = '\0';
    if (find_row(name) < NROWS)
        return;
    const char *near = nearest_name(name);
    if (near != NULL)
        IQ_WARN(PREFIX "%s is unknown and ignored; did you mean " PREFIX "%s?", name, near);
    else
        IQ_WARN(PREFIX "%s is unknown and ignored; isgq_info --config lists all variables", name);
}

const iq_config_t *iq_config(void)
{
    pthread_once(&read_once, read_environment);
    if (!atomic_load_explicit(&warned, memory_order_relaxed) && !atomic_exchange(&warned, true)) {
        warn_bad_values();
        for (char **entry = environ; entry != NULL && *entry != NULL; entry++)
            warn_if_unknown(*entry);
    }
    return &config;
}

isgq_result_t iq_config_set(const char *name, const char *value)
{
    (void)iq_config();
    size_t index = find_row(name);
    if (index == NROWS) {
        const char *near = nearest_name(name);
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "configuration: no variable is named " PREFIX "%s%s%s", name,
                       near == NULL ? "" : "; the nearest is " PREFIX, near == NULL ? "" : near);
    }
    if (value == NULL ? !apply(index, rows[index].default_text) : !keep_and_apply(index, value))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "configuration: \"%s\" is no valid value of " PREFIX "%s", value, name);
    return ISGQ_SUCCESS;
}

/* What may be shown of a value: all of it, but never a secret. */
static const char *shown_text(size_t index)
{
    bool is_secret = strcmp(rows[index].name, "SECRET") == 0 && texts[index][0] != '\0';
    return is_secret ? "(hidden)" : texts[index];
}

isgq_result_t iq_config_describe(size_t index, isgq_config_var_t *var)
{
    static const char *const names[] = {
#define X(field, kind, name, default_text, help) PREFIX name,
#include "base/config_vars.def"
#undef X
    };
    if (var == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "configuration: var is NULL");
    if (index >= NROWS)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "configuration: index is %zu, there are %zu variables", index, NROWS);
    if (var->size < sizeof(var->size))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "configuration: var->size is %zu, not sizeof(isgq_config_var_t)", var->size);
    (void)iq_config();
    isgq_config_var_t full = {var->size, names[index], rows[index].default_text, shown_text(index), rows[index].help};
    memcpy(var, &full, iq_min(var->size, sizeof(full)));
    return ISGQ_SUCCESS;
}
