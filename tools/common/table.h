/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Aligned tables, row by row: a head of names and units, then rows as they become known. A column knows how wide its text can
 * become.
 */
#ifndef ISGQ_TOOLS_TABLE_H
#define ISGQ_TOOLS_TABLE_H

#include <stdbool.h>
#include <stdio.h>

enum { IQ_TABLE_MAX_COLUMNS = 24, IQ_TABLE_CELL_BYTES = 160 };

typedef struct iq_column {
    const char *name;
    const char *unit; /* "" for none */
    int width;        /* at least; name and unit may make it wider */
    bool left;        /* text: aligned left */
} iq_column_t;

typedef struct iq_table {
    FILE *file; /* NULL: nothing is printed */
    const iq_column_t *columns;
    int count, filled;
    int widths[IQ_TABLE_MAX_COLUMNS];
} iq_table_t;

/* `columns` ends with a row whose name is NULL and outlives the table. */
void iq_table_init(iq_table_t *table, FILE *file, const iq_column_t *columns);

/* Make room in a column for text that is known to come. */
void iq_table_reserve(iq_table_t *table, const char *column, int width);

void iq_table_head(const iq_table_t *table);

/* The next cell of the row; after the last column the line ends. */
void iq_table_cell(iq_table_t *table, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
