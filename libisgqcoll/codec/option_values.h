/* SPDX-License-Identifier: Apache-2.0 */
/* Values of quantizers' options, from and to text: for codec/families.c. */
#ifndef ISGQ_CODEC_OPTION_VALUES_H
#define ISGQ_CODEC_OPTION_VALUES_H

#include "codec/families.h"
#include "codec/quantizer_text.h"

#include <stdio.h>
#include <string.h>

#define MICRO IQ_QUANTIZER_MICRO

/* Decimal digits only; false if `text` is anything else or not in `least`..`most`. */
static inline bool parse_count(const char *text, size_t least, size_t most, size_t *value)
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
    return total >= least;
}

static inline bool parse_small(const char *text, unsigned least, unsigned most, unsigned *value)
{
    size_t count;
    if (!parse_count(text, least, most, &count))
        return false;
    *value = (unsigned)count;
    return true;
}

/* "4", "2.5": `least` to `most` millionths. */
static inline bool parse_fraction(const char *text, unsigned least, unsigned most, double *value)
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
    if (!parse_count(whole_text, 0, most / MICRO, &whole) || !parse_count(digits, 0, MICRO, &fraction))
        return false;
    size_t micro = whole * MICRO + fraction;
    *value = (double)micro / MICRO;
    return micro >= least && micro <= most;
}

/* "4", "2.5" */
static inline bool write_fraction(double value, char *text)
{
    unsigned micro = (unsigned)(value * MICRO + 0.5);
    int length = snprintf(text, IQ_OPTION_TEXT_BYTES, "%u.%06u", micro / MICRO, micro % MICRO);
    while (text[length - 1] == '0')
        text[--length] = '\0';
    if (text[length - 1] == '.')
        text[length - 1] = '\0';
    return true;
}

static inline bool write_number(size_t number, char *text) { return snprintf(text, IQ_OPTION_TEXT_BYTES, "%zu", number) > 0; }

static inline bool write_word(const char *word, char *text) { return snprintf(text, IQ_OPTION_TEXT_BYTES, "%s", word) > 0; }

/* Which of `words` (NULL at the end) is it? -1: none. */
static inline int parse_word(const char *text, const char *const *words)
{
    for (int i = 0; words[i] != NULL; i++)
        if (strcmp(words[i], text) == 0)
            return i;
    return -1;
}

#endif
