/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Texts to quantizers and back.
 *
 *     text    = recipe | part [ ";" part ]          part = ( "dense=" | "factored=" ) recipe
 *     recipe  = family [ ":" option { "," option } ]          option = name "=" value
 *
 * A family is a row of codec/families.c: its defaults, its options, and what they exclude. Settings are kept as recipes, and the
 * canonical text is written from a recipe alone, so equal settings cannot have different texts.
 */
#include "codec/quantizer_text.h"

#include "base/config.h"
#include "base/status.h"
#include "base/util.h"
#include "codec/families.h"

#include <stdio.h>
#include <string.h>

/* ---- families ---- */

const struct iq_family *iq_family_find(const char *name)
{
    for (const iq_family_t *family = iq_families; family->name != NULL; family++)
        if (strcmp(family->name, name) == 0)
            return family;
    return NULL;
}

iq_codec_t iq_family_codec(const struct iq_family *family)
{
    iq_codec_t codec = family->codec;
    codec.family = family;
    return codec;
}

/* ---- writing ---- */

int iq_recipe_text(const iq_recipe_t *recipe, char *text, size_t room)
{
    char value[IQ_OPTION_TEXT_BYTES];
    int used = snprintf(text, room, "%s", recipe->family->name);
    char before = ':';
    for (const iq_option_t *option = recipe->family->options; option->name != NULL; option++) {
        if (!option->write(recipe, value))
            continue;
        used += snprintf(text + iq_min((size_t)used, room), room - iq_min((size_t)used, room), "%c%s=%s", before, option->name, value);
        before = ',';
    }
    return used;
}

void iq_codec_text(const iq_codec_t *codec, char *text, size_t bytes)
{
    iq_recipe_t recipe = {.family = codec->family != NULL ? codec->family : iq_family_find(codec->ops->name), .codec = *codec};
    iq_recipe_text(&recipe, text, bytes);
}

/* ---- parsing; texts are cut in place ---- */

static isgq_result_t unknown_word(const char *text, const char *what, const char *word, const char *const *candidates)
{
    const char *nearest = iq_nearest_word(word, candidates);
    if (nearest == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer '%s': unknown %s '%s'", text, what, word);
    return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer '%s': unknown %s '%s'; did you mean '%s'?", text, what, word, nearest);
}

static isgq_result_t find_family(const char *text, const char *name, const iq_family_t **family)
{
    const char *candidates[IQ_FAMILIES_MOST + 3] = {"dense=", "factored="};
    size_t n = 2;
    *family = iq_family_find(name);
    if (*family != NULL)
        return ISGQ_SUCCESS;
    for (const iq_family_t *row = iq_families; row->name != NULL; row++)
        candidates[n++] = row->name;
    return unknown_word(text, "quantizer", name, candidates);
}

static isgq_result_t unknown_option(const char *text, const iq_family_t *family, const char *name)
{
    const char *candidates[IQ_OPTIONS_MOST + 1] = {0};
    for (size_t i = 0; family->options[i].name != NULL; i++)
        candidates[i] = family->options[i].name;
    return unknown_word(text, "option", name, candidates);
}

static isgq_result_t parse_option(const char *text, char *words, iq_recipe_t *recipe, unsigned *given)
{
    const iq_option_t *option = recipe->family->options;
    char *value = strchr(words, '=');
    if (value != NULL)
        *value++ = '\0';
    while (option->name != NULL && strcmp(option->name, words) != 0)
        option++;
    if (option->name == NULL)
        return unknown_option(text, recipe->family, words);
    if (value == NULL || *value == '\0')
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer '%s': option '%s' needs a value: %s", text, words, option->range);
    unsigned bit = 1u << (option - recipe->family->options);
    if (*given & bit)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer '%s': option '%s' is given twice", text, words);
    *given |= bit;
    if (!option->set(recipe, value))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer '%s': %s is %s, not '%s'", text, words, option->range, value);
    return ISGQ_SUCCESS;
}

/* `text` is the whole, for error texts. */
static isgq_result_t parse_recipe(const char *text, char *words, iq_recipe_t *recipe)
{
    unsigned given = 0;
    char *rest = strchr(words, ':');
    if (rest != NULL)
        *rest++ = '\0';
    *recipe = (iq_recipe_t){0};
    IQ_TRY(find_family(text, words, &recipe->family));
    recipe->codec = iq_family_codec(recipe->family);
    recipe->factor = recipe->family->factor;
    recipe->is_isgq = recipe->family->is_isgq;
    while (rest != NULL) {
        char *option = rest;
        rest = strchr(option, ',');
        if (rest != NULL)
            *rest++ = '\0';
        IQ_TRY(parse_option(text, option, recipe, &given));
    }
    return recipe->family->settle == NULL ? ISGQ_SUCCESS : recipe->family->settle(text, recipe);
}

static isgq_result_t take_dense(const char *text, const iq_recipe_t *recipe, isgq_quantizer_t quantizer)
{
    if (recipe->codec.ops == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer '%s': '%s' is for factors, not for dense calls", text,
                       recipe->family->name);
    quantizer->has_dense = true;
    quantizer->dense = *recipe;
    return ISGQ_SUCCESS;
}

static isgq_result_t take_factored(const char *text, const iq_recipe_t *recipe, isgq_quantizer_t quantizer)
{
    if (!recipe->family->factored)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer '%s': '%s' is for dense calls, not for factors", text,
                       recipe->family->name);
    quantizer->has_factored = true;
    quantizer->factored = *recipe;
    return ISGQ_SUCCESS;
}

static isgq_result_t parse_part(const char *text, char *part, isgq_quantizer_t quantizer)
{
    static const char *const prefixes[] = {"dense=", "factored=", NULL};
    iq_recipe_t recipe;
    bool is_dense = strncmp(part, "dense=", 6) == 0;
    if (!is_dense && strncmp(part, "factored=", 9) != 0)
        return unknown_word(text, "part", part, prefixes);
    if (is_dense ? quantizer->has_dense : quantizer->has_factored)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer '%s': '%s' is given twice", text, is_dense ? "dense" : "factored");
    IQ_TRY(parse_recipe(text, part + (is_dense ? 6 : 9), &recipe));
    return is_dense ? take_dense(text, &recipe, quantizer) : take_factored(text, &recipe, quantizer);
}

isgq_result_t iq_quantizer_parse(const char *text, isgq_quantizer_t quantizer)
{
    char words[IQ_QUANTIZER_TEXT_BYTES];
    iq_recipe_t recipe;
    char *rest = words;
    size_t length = strlen(text);
    if (length == 0 || length >= sizeof(words))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "quantizer: text of %zu characters, 1 to %zu are allowed", length,
                       sizeof(words) - 1);
    memcpy(words, text, length + 1);
    if (strchr(words, ';') == NULL && strncmp(words, "dense=", 6) != 0 && strncmp(words, "factored=", 9) != 0) {
        IQ_TRY(parse_recipe(text, words, &recipe));
        if (recipe.codec.ops != NULL)
            IQ_TRY(take_dense(text, &recipe, quantizer));
        return recipe.family->factored ? take_factored(text, &recipe, quantizer) : ISGQ_SUCCESS;
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
