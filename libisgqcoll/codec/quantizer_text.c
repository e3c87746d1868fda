/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Texts to quantizers.
 *
 *     text    = recipe | part [ ";" part ]          part = ( "dense=" | "factored=" ) recipe
 *     recipe  = family [ ":" option { "," option } ]          option = name "=" value
 *
 * A family is a row with its options. A recipe is parsed into a draft, and a quantizer takes its dense or factored half from a
 * draft.
 */
#include "codec/quantizer_text.h"

#include "base/config.h"
#include "base/status.h"
#include "base/util.h"
#include "codec/dense.h"

#include <string.h>

#define DEFAULT_BUCKET 1024
#define MICRO IQ_QUANTIZER_MICRO

/* ---- drafts ---- */

struct family;

typedef struct draft {
    const struct family *family;
    unsigned given;      /* options of the family that the text names, by index */
    unsigned bits_micro; /* bits, in millionths */
    size_t bucket;
    bool nearest, local;
    int exact;
    unsigned width_x, width_delta;
} draft_t;

typedef struct option {
    const char *name;
    const char *range;                              /* what values there are, for the error text */
    bool (*set)(draft_t *draft, const char *value); /* false: not one of them */
} option_t;

typedef struct family {
    const char *name;
    const iq_codec_ops_t *dense; /* NULL: none of its own */
    bool factored;
    const option_t *options; /* ends with name NULL */
    const char *later;       /* words of later versions, each between commas */
} family_t;

/* Decimal digits only; false if `text` is anything else or above `most`. */
static bool parse_count(const char *text, size_t most, size_t *value)
{
    size_t total = 0;
    if (*text == '\0')
        return false;
    for (; *text != '\0'; text++) {
        if (*text < '0' || *text > '9')
            return false;
        total = total * 10 + (size_t)(*text - '0');
        if (total > most)
            return false;
    }
    *value = total;
    return true;
}

/* "4", "2.5": 1 to 8 in millionths. */
static bool parse_bits(const char *text, unsigned *micro)
{
    char digits[] = "000000"; /* after the point */
    char whole_text[8];
    size_t whole, fraction, length = strcspn(text, ".");
    if (length >= sizeof(whole_text))
        return false;
    memcpy(whole_text, text, length);
    whole_text[length] = '\0';
    if (text[length] == '.') {
        const char *point = text + length + 1;
        if (*point == '\0' || strlen(point) > 6)
            return false;
        memcpy(digits, point, strlen(point));
    }
    if (!parse_count(whole_text, 8, &whole) || !parse_count(digits, MICRO, &fraction))
        return false;
    *micro = (unsigned)(whole * MICRO + fraction);
    return *micro >= MICRO && *micro <= 8 * MICRO;
}

static bool set_whole_bits(draft_t *draft, const char *value)
{
    size_t bits;
    if (!parse_count(value, 8, &bits) || bits == 0)
        return false;
    draft->bits_micro = (unsigned)bits * MICRO;
    return true;
}

static bool set_bits(draft_t *draft, const char *value) { return parse_bits(value, &draft->bits_micro); }

static bool set_rounding(draft_t *draft, const char *value)
{
    draft->nearest = strcmp(value, "nearest") == 0;
    return draft->nearest || strcmp(value, "stochastic") == 0;
}

static bool set_scale(draft_t *draft, const char *value)
{
    draft->local = strcmp(value, "local") == 0;
    return draft->local || strcmp(value, "shared") == 0;
}

static bool set_bucket(draft_t *draft, const char *value)
{
    if (strcmp(value, "tensor") == 0) {
        draft->bucket = 0;
        return true;
    }
    return parse_count(value, (size_t)1 << 40, &draft->bucket) && draft->bucket >= 32 && draft->bucket % 8 == 0;
}

static bool set_sum(draft_t *draft, const char *value)
{
    draft->exact = strcmp(value, "exact") == 0 ? 1 : strcmp(value, "requantized") == 0 ? 0 : -1;
    return draft->exact >= 0 || strcmp(value, "auto") == 0;
}

static bool parse_width(const char *text, unsigned *width)
{
    size_t value;
    if (!parse_count(text, 8, &value) || value < 2)
        return false;
    *width = (unsigned)value;
    return true;
}

static bool set_width(draft_t *draft, const char *value)
{
    char first[4] = "";
    const char *slash = strchr(value, '/');
    if (slash == NULL)
        return parse_width(value, &draft->width_x) && parse_width(value, &draft->width_delta);
    if ((size_t)(slash - value) >= sizeof(first))
        return false;
    memcpy(first, value, (size_t)(slash - value));
    return parse_width(first, &draft->width_x) && parse_width(slash + 1, &draft->width_delta);
}

/* ---- families ---- */

static const option_t no_options[] = {{0}};

static const option_t uniform_options[] = {
    {"bits", "1 to 8", set_whole_bits},
    {"rounding", "nearest or stochastic", set_rounding},
    {"scale", "shared or local", set_scale},
    {"bucket", "a multiple of 8 from 32 on, or tensor", set_bucket},
    {"sum", "exact, requantized or auto", set_sum},
    {0},
};

static const option_t factor_options[] = {
    {"width", "2 to 8, or two of them as in 4/8", set_width},
    {"bits", "1 to 8, fractions allowed", set_bits},
    {"rounding", "nearest or stochastic", set_rounding},
    {0},
};

static const option_t isgq_options[] = {{"bits", "1 to 8, fractions allowed", set_bits}, {0}};

static const family_t families[] = {
    {"none", &iq_codec_none_ops, false, no_options, ""},
    {"fp16", &iq_codec_fp16_ops, false, no_options, ""},
    {"bf16", &iq_codec_bf16_ops, false, no_options, ""},
    {"uniform", &iq_codec_uniform_ops, false, uniform_options, ",rotate,rounding=dither,rounding=stratified,"},
    {"factor", NULL, true, factor_options, ",drop,rounding=dither,rounding=stratified,"},
    {"isgq", &iq_codec_uniform_ops, true, isgq_options, ",nmse,"},
};

static const char *const later_families[] = {
    "global-qsgd", "global-qsgd-exp", "qsgd",     "terngrad", "onebit", "ef-sign",  "bingrad-b", "bingrad-pb",
    "orq-3",       "orq-5",           "orq-9",    "natural",  "intsgd", "isgq-mse", "isgq-mvu",  "isgq-dithered",
    "exponential", "levels",          "powersgd", "drive",    "eden",   "mx",
};

/* ---- parsing; texts are cut in place ---- */

static isgq_result_t unknown_word(const char *text, const char *what, const char *word, const char *const *candidates)
{
    const char *nearest = iq_nearest_word(word, candidates);
    if (nearest == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer '%s': unknown %s '%s'", text, what, word);
    return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer '%s': unknown %s '%s'; did you mean '%s'?", text, what, word, nearest);
}

static isgq_result_t find_family(const char *text, const char *name, const family_t **family)
{
    const char *candidates[IQ_ARRAY_SIZE(families) + IQ_ARRAY_SIZE(later_families) + 3] = {"dense=", "factored="};
    size_t n = 2;
    for (size_t i = 0; i < IQ_ARRAY_SIZE(families); i++) {
        candidates[n++] = families[i].name;
        if (strcmp(name, families[i].name) == 0) {
            *family = &families[i];
            return ISGQ_SUCCESS;
        }
    }
    for (size_t i = 0; i < IQ_ARRAY_SIZE(later_families); i++) {
        candidates[n++] = later_families[i];
        if (strcmp(name, later_families[i]) == 0)
            return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "quantizer '%s' is not part of this version", name);
    }
    return unknown_word(text, "quantizer", name, candidates);
}

/* Is "word" one of a list ",a,b,"? */
static bool is_listed(const char *list, const char *word)
{
    size_t length = strlen(word);
    for (const char *at = strstr(list, word); at != NULL && length > 0; at = strstr(at + 1, word)) {
        if (at > list && at[-1] == ',' && at[length] == ',')
            return true;
    }
    return false;
}

static isgq_result_t unknown_option(const char *text, const family_t *family, const char *name)
{
    const char *candidates[8] = {0};
    if (is_listed(family->later, name))
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "quantizer '%s': option '%s' is not part of this version", text, name);
    for (size_t i = 0; family->options[i].name != NULL; i++)
        candidates[i] = family->options[i].name;
    return unknown_word(text, "option", name, candidates);
}

static isgq_result_t parse_option(const char *text, char *words, draft_t *draft)
{
    const option_t *option = draft->family->options;
    char *value = strchr(words, '=');
    if (is_listed(draft->family->later, words))
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "quantizer '%s': '%s' is not part of this version", text, words);
    if (value != NULL)
        *value++ = '\0';
    while (option->name != NULL && strcmp(option->name, words) != 0)
        option++;
    if (option->name == NULL)
        return unknown_option(text, draft->family, words);
    if (value == NULL || *value == '\0')
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer '%s': option '%s' needs a value: %s", text, words, option->range);
    unsigned bit = 1u << (option - draft->family->options);
    if (draft->given & bit)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer '%s': option '%s' is given twice", text, words);
    draft->given |= bit;
    if (!option->set(draft, value))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer '%s': %s is %s, not '%s'", text, words, option->range, value);
    return ISGQ_SUCCESS;
}

/* Settings that exclude each other. */
static isgq_result_t check_draft(const char *text, draft_t *draft)
{
    if (draft->family->options == uniform_options && draft->local && draft->exact > 0)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer '%s': sum=exact needs scale=shared", text);
    if (draft->family->options == factor_options && draft->width_x != 0 && draft->bits_micro != 0)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer '%s': width and bits exclude each other", text);
    if (draft->family->options == factor_options && draft->bits_micro == 0 && draft->width_x == 0)
        draft->width_x = draft->width_delta = 4;
    if (draft->family->options != factor_options && draft->bits_micro == 0)
        draft->bits_micro = 4 * MICRO;
    if (draft->local)
        draft->exact = 0;
    return ISGQ_SUCCESS;
}

/* `text` is the whole, for error texts. */
static isgq_result_t parse_recipe(const char *text, char *recipe, draft_t *draft)
{
    char *rest = strchr(recipe, ':');
    if (rest != NULL)
        *rest++ = '\0';
    *draft = (draft_t){.bucket = DEFAULT_BUCKET, .exact = -1};
    IQ_TRY(find_family(text, recipe, &draft->family));
    while (rest != NULL) {
        char *words = rest;
        rest = strchr(words, ',');
        if (rest != NULL)
            *rest++ = '\0';
        IQ_TRY(parse_option(text, words, draft));
    }
    return check_draft(text, draft);
}

static isgq_result_t take_dense(const char *text, const draft_t *draft, isgq_quantizer_t quantizer)
{
    if (draft->family->dense == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer '%s': '%s' is for factors, not for dense calls", text,
                       draft->family->name);
    quantizer->has_dense = true;
    quantizer->isgq = draft->family->factored;
    quantizer->budget_bits = quantizer->isgq ? draft->bits_micro / (double)MICRO : 0.0;
    quantizer->dense = (iq_codec_t){.ops = draft->family->dense};
    if (draft->family->dense == &iq_codec_uniform_ops)
        quantizer->dense = (iq_codec_t){.ops = &iq_codec_uniform_ops,
                                        .bits = draft->bits_micro / MICRO,
                                        .bucket = draft->bucket,
                                        .rounding = draft->nearest ? IQ_ROUND_NEAREST : IQ_ROUND_STOCHASTIC,
                                        .shared = !draft->local,
                                        .exact = draft->exact};
    return ISGQ_SUCCESS;
}

static isgq_result_t take_factored(const char *text, const draft_t *draft, isgq_quantizer_t quantizer)
{
    if (!draft->family->factored)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer '%s': '%s' is for dense calls, not for factors", text,
                       draft->family->name);
    quantizer->has_factored = true;
    quantizer->factored = (iq_factor_spec_t){.width_x = draft->width_x,
                                             .width_delta = draft->width_delta,
                                             .budget_bits = draft->bits_micro / (double)MICRO,
                                             .nearest = draft->nearest};
    return ISGQ_SUCCESS;
}

static isgq_result_t parse_part(const char *text, char *part, isgq_quantizer_t quantizer)
{
    static const char *const prefixes[] = {"dense=", "factored=", NULL};
    draft_t draft;
    bool is_dense = strncmp(part, "dense=", 6) == 0;
    if (!is_dense && strncmp(part, "factored=", 9) != 0)
        return unknown_word(text, "part", part, prefixes);
    if (is_dense ? quantizer->has_dense : quantizer->has_factored)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer '%s': '%s' is given twice", text, is_dense ? "dense" : "factored");
    IQ_TRY(parse_recipe(text, part + (is_dense ? 6 : 9), &draft));
    return is_dense ? take_dense(text, &draft, quantizer) : take_factored(text, &draft, quantizer);
}

isgq_result_t iq_quantizer_parse(const char *text, isgq_quantizer_t quantizer)
{
    char words[IQ_QUANTIZER_TEXT_BYTES];
    draft_t draft;
    char *rest = words;
    size_t length = strlen(text);
    if (length == 0 || length >= sizeof(words))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer: text of %zu characters, 1 to %zu are allowed", length,
                       sizeof(words) - 1);
    memcpy(words, text, length + 1);
    if (strchr(words, ';') == NULL && strncmp(words, "dense=", 6) != 0 && strncmp(words, "factored=", 9) != 0) {
        IQ_TRY(parse_recipe(text, words, &draft));
        if (draft.family->dense != NULL)
            IQ_TRY(take_dense(text, &draft, quantizer));
        return draft.family->factored ? take_factored(text, &draft, quantizer) : ISGQ_SUCCESS;
    }
    while (rest != NULL) {
        char *part = rest;
        rest = strchr(part, ';');
        if (rest != NULL)
            *rest++ = '\0';
        IQ_TRY(parse_part(text, part, quantizer));
    }
    return ISGQ_SUCCESS;
}
