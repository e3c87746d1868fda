/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The word that somebody probably meant: nearest by optimal string alignment distance, where an inserted, dropped, replaced or
 * swapped letter costs one. (Three rows of the usual dynamic programme; rows[0] is the current one.)
 */
#include "base/config.h"
#include "base/util.h"

#include <string.h>

#define WORD_BYTES 48

static char lower(char letter) { return letter >= 'A' && letter <= 'Z' ? (char)(letter - 'A' + 'a') : letter; }

static unsigned least(unsigned a, unsigned b) { return a < b ? a : b; }

static unsigned distance(const char *a, const char *b)
{
    unsigned buffer[3][WORD_BYTES + 1], *row = buffer[0], *above = buffer[1], *above_that = buffer[2];
    unsigned columns = (unsigned)strlen(b);
    for (unsigned j = 0; j <= columns; j++)
        row[j] = j;
    for (unsigned i = 1; a[i - 1] != '\0'; i++) {
        unsigned *spare = above_that;
        above_that = above;
        above = row;
        row = spare;
        row[0] = i;
        for (unsigned j = 1; j <= columns; j++) {
            unsigned differs = lower(a[i - 1]) != lower(b[j - 1]);
            row[j] = least(above[j - 1] + differs, least(above[j], row[j - 1]) + 1);
            if (i > 1 && j > 1 && lower(a[i - 1]) == lower(b[j - 2]) && lower(a[i - 2]) == lower(b[j - 1]))
                row[j] = least(row[j], above_that[j - 2] + 1);
        }
    }
    return row[columns];
}

/* A third of the letters may be wrong; a word cut short (at least three letters of it) counts as one mistake. */
const char *iq_nearest_word(const char *word, const char *const *candidates)
{
    size_t length = strlen(word);
    unsigned best = least((unsigned)iq_max(length / 3, 1), 4) + 1;
    const char *nearest = NULL;
    if (length == 0 || length > WORD_BYTES)
        return NULL;
    for (; *candidates != NULL; candidates++) {
        if (strlen(*candidates) > WORD_BYTES)
            continue;
        unsigned cost = distance(word, *candidates);
        if (length >= 3 && strncasecmp(word, *candidates, length) == 0)
            cost = least(cost, 1);
        if (cost < best) {
            best = cost;
            nearest = *candidates;
        }
    }
    return nearest;
}
