/* SPDX-License-Identifier: Apache-2.0 */
/* The texts of a policy: ISGQ_POLICY or the file that it names, cut into rules, and these into words. Whatever is wrong is one sentence. */
#include "bindings/preload/policy.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FILE_MOST = 1 << 16 };

typedef struct name {
    const char *text;
    uint32_t bit;
} name_t;

static const name_t types[] = {
    {"f16", IQ_POLICY_F16}, {"bf16", IQ_POLICY_BF16}, {"f32", IQ_POLICY_F32}, {"f64", IQ_POLICY_F64}, {NULL, 0}};
static const name_t ops[] = {{"sum", IQ_POLICY_SUM}, {"avg", IQ_POLICY_AVG}, {NULL, 0}};
static const name_t calls[] = {{"allreduce", IQ_POLICY_ALLREDUCE},
                               {"reduce_scatter", IQ_POLICY_REDUCE_SCATTER},
                               {"allgather", IQ_POLICY_ALLGATHER},
                               {NULL, 0}};

/* Where the reader is, and where complaints go. */
typedef struct reader {
    iq_policy_t *policy;
    const char *file; /* or NULL: the variable itself */
    int place;        /* line of the file, or number of the rule; from 1 */
    char *error;
} reader_t;

static const char *name_of(const name_t *names, uint32_t bit)
{
    for (; names->text != NULL; names++)
        if (names->bit == bit)
            return names->text;
    return "?";
}

const char *iq_policy_type_name(uint32_t type) { return name_of(types, type); }
const char *iq_policy_op_name(uint32_t op) { return name_of(ops, op); }
const char *iq_policy_call_name(uint32_t call) { return name_of(calls, call); }

static bool __attribute__((format(printf, 2, 3))) complain(const reader_t *r, const char *format, ...)
{
    va_list arguments;
    int used = r->file != NULL ? snprintf(r->error, IQ_POLICY_ERROR, "%.100s, line %d: ", r->file, r->place)
                               : snprintf(r->error, IQ_POLICY_ERROR, "ISGQ_POLICY, rule %d: ", r->place);
    va_start(arguments, format);
    vsnprintf(r->error + used, IQ_POLICY_ERROR - (size_t)used, format, arguments);
    va_end(arguments);
    return false;
}

/* "f32,f64": names separated by commas, any of them wrong is an error. */
static bool read_names(const reader_t *r, const name_t *names, const char *key, const char *value, uint32_t *bits)
{
    *bits = 0;
    for (size_t length; *value != '\0'; value += length + (value[length] == ',')) {
        const name_t *name = names;
        length = strcspn(value, ",");
        while (name->text != NULL && (strlen(name->text) != length || strncmp(name->text, value, length) != 0))
            name++;
        if (name->text == NULL)
            return complain(r, "%s=%.*s is not known; %s", key, (int)length, value,
                            names == types ? "types are f16, bf16, f32 and f64"
                            : names == ops ? "operations are sum and avg"
                                           : "calls are allreduce, reduce_scatter and allgather");
        *bits |= name->bit;
    }
    return *bits != 0 || complain(r, "%s= names nothing", key);
}

/* A whole number with k, m or g behind it, from *text on; *text moves behind it. */
static bool read_size(const char **text, uint64_t *value)
{
    char *end;
    unsigned shift = 0;
    if (**text < '0' || **text > '9')
        return false;
    errno = 0;
    *value = strtoull(*text, &end, 10);
    if ((*end | 0x20) == 'k')
        shift = 10;
    else if ((*end | 0x20) == 'm')
        shift = 20;
    else if ((*end | 0x20) == 'g')
        shift = 30;
    *text = end + (shift != 0);
    if (errno != 0 || *value > UINT64_MAX >> shift)
        return false;
    *value <<= shift;
    return true;
}

/* "64k-", "64k-1m": the smallest and the largest, both included. A single number would be an accident, so it is refused. */
static bool read_range(const reader_t *r, const char *key, const char *value, uint64_t largest, uint64_t *least, uint64_t *most)
{
    const char *p = value;
    *most = largest;
    bool right = read_size(&p, least) && *p++ == '-' && (*p == '\0' || (read_size(&p, most) && *p == '\0'));
    if (!right || *least > *most || *most > largest)
        return complain(r, "%s=%s is no range; write %s=LEAST- or %s=LEAST-MOST", key, value, key, key);
    return true;
}

static bool read_text(const reader_t *r, const char *key, const char *value, char *field)
{
    if (value[0] == '\0' || strlen(value) >= IQ_POLICY_TEXT)
        return complain(r, "%s= wants 1 to %d letters", key, IQ_POLICY_TEXT - 1);
    memcpy(field, value, strlen(value) + 1);
    return true;
}

enum { WORDS = 7 };
static const char *const words[WORDS] = {"comm", "type", "bytes", "with", "op", "ranks", "call"};

/* seen: bits of the words of this rule so far. */
static bool read_word(const reader_t *r, iq_policy_rule_t *rule, char *word, unsigned *seen)
{
    char *value = strchr(word, '=');
    uint64_t least, most;
    if (value == NULL)
        return complain(r, "\"%s\" has no =; a rule is \"quantize comm=... type=... bytes=...- with=...\"", word);
    *value++ = '\0';
    for (int i = 0; i < WORDS; i++)
        if (strcmp(word, words[i]) == 0) {
            if ((*seen >> i & 1) != 0)
                return complain(r, "%s= is there twice", word);
            *seen |= 1u << i;
        }
    if (strcmp(word, "comm") == 0)
        return read_text(r, word, value, rule->comm);
    if (strcmp(word, "with") == 0)
        return rule->exclude ? complain(r, "an exclude rule has no quantizer") : read_text(r, word, value, rule->with);
    if (strcmp(word, "type") == 0)
        return read_names(r, types, word, value, &rule->types);
    if (strcmp(word, "op") == 0)
        return read_names(r, ops, word, value, &rule->ops);
    if (strcmp(word, "call") == 0)
        return read_names(r, calls, word, value, &rule->calls);
    if (strcmp(word, "bytes") == 0)
        return read_range(r, word, value, UINT64_MAX, &rule->least_bytes, &rule->most_bytes);
    if (strcmp(word, "ranks") != 0)
        return complain(r, "\"%s\" is no word of a rule; there are comm, type, bytes, with, op, ranks and call", word);
    if (!read_range(r, word, value, INT_MAX, &least, &most))
        return false;
    rule->least_ranks = (int)least;
    rule->most_ranks = (int)most;
    return true;
}

/* Nothing is quantized that the rule does not name. */
static bool check_complete(const reader_t *r, const iq_policy_rule_t *rule)
{
    const char *missing = rule->comm[0] == '\0'                  ? "comm"
                          : rule->exclude                        ? NULL
                          : rule->types == 0                     ? "type"
                          : rule->least_bytes > rule->most_bytes ? "bytes"
                          : rule->with[0] == '\0'                ? "with"
                                                                 : NULL;
    return missing == NULL ||
           complain(r, "%s= is missing: communicators, types, sizes and quantizer are named, never assumed", missing);
}

static bool read_rule(const reader_t *r, char *line)
{
    iq_policy_t *policy = r->policy;
    char *rest = NULL, *word;
    unsigned seen = 0;
    line[strcspn(line, "#")] = '\0';
    word = strtok_r(line, " \t\r", &rest);
    if (word == NULL)
        return true;
    if (policy->nrules == IQ_POLICY_RULES)
        return complain(r, "there may be %d rules at most", IQ_POLICY_RULES);
    iq_policy_rule_t *rule = &policy->rules[policy->nrules];
    /* bytes LEAST above MOST: not named yet */
    *rule = (iq_policy_rule_t){.ops = UINT32_MAX, .least_bytes = 1, .least_ranks = 2, .most_ranks = INT_MAX};
    rule->exclude = strcmp(word, "exclude") == 0;
    if (!rule->exclude && strcmp(word, "quantize") != 0)
        return complain(r, "\"%s\" begins no rule; rules begin with quantize or exclude", word);
    while ((word = strtok_r(NULL, " \t\r", &rest)) != NULL)
        if (!read_word(r, rule, word, &seen))
            return false;
    if (!check_complete(r, rule))
        return false;
    if (rule->calls == 0)
        rule->calls = rule->exclude ? UINT32_MAX : IQ_POLICY_ALLREDUCE;
    if (rule->exclude && rule->types == 0)
        rule->types = UINT32_MAX;
    if (rule->exclude && rule->least_bytes > rule->most_bytes) {
        rule->least_bytes = 0;
        rule->most_bytes = UINT64_MAX;
    }
    policy->nrules++;
    return true;
}

static bool read_rules(reader_t *r, char *text, const char *separator)
{
    for (r->place = 1; text != NULL; r->place++) {
        char *line = strsep(&text, separator);
        if (!read_rule(r, line))
            return false;
    }
    r->place--;
    return r->policy->nrules > 0 || complain(r, "there is no rule");
}

static bool read_file(reader_t *r, const char *path)
{
    FILE *file = fopen(path, "re");
    r->file = path;
    if (file == NULL)
        return complain(r, "cannot be opened: %s", strerror(errno));
    char *text = malloc(FILE_MOST + 1);
    size_t length = text != NULL ? fread(text, 1, FILE_MOST + 1, file) : 0;
    bool whole = text != NULL && !ferror(file) && length <= FILE_MOST;
    fclose(file);
    if (whole)
        text[length] = '\0';
    bool right = !whole                   ? complain(r, "cannot be read, or is longer than %d bytes", FILE_MOST)
                 : strlen(text) != length ? complain(r, "holds a zero byte, so it is no text; rules behind it would be lost")
                                          : read_rules(r, text, "\n");
    free(text);
    return right;
}

static bool read_record(reader_t *r, const char *text)
{
    const char *path = text[strlen("record")] == ':' ? text + strlen("record:") : "isgq-policy";
    r->policy->mode = IQ_POLICY_RECORD;
    return read_text(r, "record", path, r->policy->record);
}

static uint64_t mix(uint64_t hash, const void *data, size_t bytes)
{
    const unsigned char *p = data;
    for (size_t i = 0; i < bytes; i++)
        hash = (hash ^ p[i]) * 0x100000001b3u;
    return hash;
}

/* Field by field: padding between them has no value. The file that a record goes to may differ. */
static uint64_t hash_of(const iq_policy_t *policy)
{
    uint64_t hash = mix(0xcbf29ce484222325u, &policy->mode, sizeof(policy->mode));
    for (size_t i = 0; i < policy->nrules; i++) {
        const iq_policy_rule_t *rule = &policy->rules[i];
        uint64_t numbers[] = {rule->exclude,
                              rule->calls,
                              rule->types,
                              rule->ops,
                              rule->least_bytes,
                              rule->most_bytes,
                              (uint64_t)rule->least_ranks,
                              (uint64_t)rule->most_ranks};
        hash = mix(hash, numbers, sizeof(numbers));
        hash = mix(hash, rule->comm, strlen(rule->comm) + 1);
        hash = mix(hash, rule->with, strlen(rule->with) + 1);
    }
    return hash;
}

bool iq_policy_parse(iq_policy_t *policy, const char *text, char *error)
{
    reader_t reader = {.policy = policy, .place = 1, .error = error};
    bool right = true;
    memset(policy, 0, sizeof(*policy));
    error[0] = '\0';
    if (text == NULL || text[0] == '\0' || strcmp(text, "off") == 0) {
        policy->mode = IQ_POLICY_OFF;
    } else if (strcmp(text, "record") == 0 || strncmp(text, "record:", strlen("record:")) == 0) {
        right = read_record(&reader, text);
    } else if (text[0] == '@') {
        policy->mode = IQ_POLICY_QUANTIZE;
        right = read_file(&reader, text + 1);
    } else {
        char *copy = strdup(text);
        policy->mode = IQ_POLICY_QUANTIZE;
        right = copy != NULL ? read_rules(&reader, copy, ";\n") : complain(&reader, "no memory");
        free(copy);
    }
    if (!right)
        memset(policy, 0, sizeof(*policy));
    policy->hash = hash_of(policy);
    return right;
}
