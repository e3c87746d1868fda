/* SPDX-License-Identifier: Apache-2.0 */
/* See low_rank.h. */
#include "perf/low_rank.h"

#include <stdlib.h>
#include <string.h>

bool iq_low_rank(const char *text, unsigned *rank)
{
    static const char family[] = "powersgd:rank=";
    const char *at = strstr(text, "dense=");

    at = at != NULL ? at + strlen("dense=") : text;
    if (strncmp(at, family, strlen(family)) != 0)
        return false;
    *rank = (unsigned)strtoul(at + strlen(family), NULL, 10);
    return true;
}

void iq_low_rank_shape(size_t count, size_t *rows, size_t *columns)
{
    size_t most = 1;

    for (size_t d = 1; d * d <= count; d++)
        most = count % d == 0 ? d : most;
    *rows = count == 0 ? 0 : most;
    *columns = count / most;
}

bool iq_low_rank_pays(size_t rows, size_t columns, unsigned rank) { return rank * (rows + columns) < rows * columns; }
