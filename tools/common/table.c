/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Aligned tables; see table.h.
 */
#include "tools/common/table.h"

#include <stdarg.h>
#include <string.h>

static int at_least(int width, const char *text) { return (int)strlen(text) > width ? (int)strlen(text) : width; }

void iq_table_init(iq_table_t *table, FILE *file, const iq_column_t *columns)
{
    *table = (iq_table_t){.file = file, .columns = columns};
    for (; columns->name != NULL && table->count < IQ_TABLE_MAX_COLUMNS; columns++)
        table->widths[table->count++] = at_least(at_least(columns->width, columns->name), columns->unit);
}

void iq_table_reserve(iq_table_t *table, const char *column, int width)
{
    for (int i = 0; i < table->count; i++)
        if (strcmp(table->columns[i].name, column) == 0 && table->widths[i] < width)
            table->widths[i] = width;
}

static void put(const iq_table_t *table, int i, const char *text)
{
    bool last = i == table->count - 1;
    const char *between = i == 0 || (last && text[0] == '\0') ? "" : "  ";

    if (!table->columns[i].left)
        fprintf(table->file, "%s%*s", between, table->widths[i], text);
    else if (last) /* no blanks at the end of a line */
        fprintf(table->file, "%s%s", between, text);
    else
        fprintf(table->file, "%s%-*s", between, table->widths[i], text);
    if (last)
        fputc('\n', table->file);
}

void iq_table_head(const iq_table_t *table)
{
    if (table->file == NULL)
        return;
    for (int i = 0; i < table->count; i++)
        put(table, i, table->columns[i].name);
    for (int i = 0; i < table->count; i++)
        put(table, i, table->columns[i].unit);
    fflush(table->file);
}

void iq_table_cell(iq_table_t *table, const char *format, ...)
{
    char text[IQ_TABLE_CELL_BYTES];
    va_list arguments;

    if (table->file == NULL)
        return;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    put(table, table->filled, text);
    if (++table->filled == table->count) {
        table->filled = 0;
        fflush(table->file);
    }
}
