/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The IDX reader. Header: two zero bytes, the type (8: unsigned byte), the number of dimensions, then each dimension in four
 * bytes, most significant first.
 */
#include "tools/common/idx.h"
#include "tools/common/idx_file.h"

#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TYPE_UNSIGNED_BYTE = 8, MAX_DIMENSIONS = 4 };

#define MAX_BYTES ((size_t)1 << 32) /* larger than any data set of this kind; a damaged header must not ask for more */

typedef struct reader {
    iq_idx_file_t *file;
    char path[PATH_MAX];
    char *error;
    size_t error_bytes;
} reader_t;

__attribute__((format(printf, 2, 3))) static bool fail(const reader_t *reader, const char *format, ...)
{
    va_list arguments;
    int used = snprintf(reader->error, reader->error_bytes, "%s: ", reader->path);

    if (used < 0 || (size_t)used >= reader->error_bytes)
        return false;
    va_start(arguments, format);
    vsnprintf(reader->error + used, reader->error_bytes - (size_t)used, format, arguments);
    va_end(arguments);
    return false;
}

static bool open_file(reader_t *reader, const char *folder, const char *name)
{
    snprintf(reader->path, sizeof(reader->path), "%s/%s", folder, name);
    if (access(reader->path, F_OK) != 0) {
        size_t length = strlen(reader->path);
        snprintf(reader->path + length, sizeof(reader->path) - length, ".gz");
        if (access(reader->path, F_OK) != 0) {
            reader->path[length] = '\0';
            return fail(reader, "no such file, nor one with .gz behind");
        }
    }
    const char *why;
    reader->file = iq_idx_file_open(reader->path, &why);
    return reader->file != NULL || fail(reader, "cannot open: %s", why);
}

/* Exactly `bytes` bytes. */
static bool read_exactly(const reader_t *reader, uint8_t *data, size_t bytes)
{
    size_t have = 0;

    while (have < bytes) {
        const char *why;
        ptrdiff_t got = iq_idx_file_read(reader->file, data + have, bytes - have, &why);
        if (got < 0)
            return fail(reader, "damaged: %s", why);
        if (got == 0)
            return fail(reader, "damaged: ends after %zu of %zu bytes", have, bytes);
        have += (size_t)got;
    }
    return true;
}

static bool read_header(const reader_t *reader, unsigned dimensions, iq_idx_t *idx)
{
    uint8_t head[4 + 4 * MAX_DIMENSIONS];
    size_t total = 1;

    if (!read_exactly(reader, head, 4))
        return false;
    if (head[0] != 0 || head[1] != 0)
        return fail(reader, "not an IDX file (it starts with bytes %u, %u instead of 0, 0)", head[0], head[1]);
    if (head[2] != TYPE_UNSIGNED_BYTE)
        return fail(reader, "holds type %u, only unsigned bytes (type %d) can be read", head[2], TYPE_UNSIGNED_BYTE);
    if (head[3] != dimensions)
        return fail(reader, "has %u dimensions, expected %u", head[3], dimensions);
    if (!read_exactly(reader, head + 4, 4 * (size_t)dimensions))
        return false;
    for (unsigned i = 0; i < dimensions; i++) {
        const uint8_t *at = head + 4 + 4 * (size_t)i;
        size_t size = (size_t)at[0] << 24 | (size_t)at[1] << 16 | (size_t)at[2] << 8 | (size_t)at[3];
        if (size == 0 || size > MAX_BYTES / total)
            return fail(reader, "damaged: dimension %u is %zu", i, size);
        total *= size;
        if (i == 0)
            idx->items = size;
    }
    idx->item_bytes = total / idx->items;
    return true;
}

static bool read_data(const reader_t *reader, iq_idx_t *idx)
{
    size_t bytes = idx->items * idx->item_bytes;
    const char *why;
    uint8_t beyond;

    idx->data = malloc(bytes);
    if (idx->data == NULL)
        return fail(reader, "no memory for %zu bytes", bytes);
    if (!read_exactly(reader, idx->data, bytes))
        return false;
    ptrdiff_t more = iq_idx_file_read(reader->file, &beyond, 1, &why);
    if (more > 0)
        return fail(reader, "damaged: more bytes than the %zu of its header", bytes);
    return more == 0 || fail(reader, "damaged: its checksum is wrong");
}

bool iq_idx_read(const char *folder, const char *name, unsigned dimensions, iq_idx_t *idx, char *error, size_t error_bytes)
{
    reader_t reader = {.error = error, .error_bytes = error_bytes};

    *idx = (iq_idx_t){0};
    if (dimensions < 1 || dimensions > MAX_DIMENSIONS)
        return fail(&reader, "%s: %u dimensions are not supported", name, dimensions);
    if (!open_file(&reader, folder, name))
        return false;
    bool good = read_header(&reader, dimensions, idx) && read_data(&reader, idx);
    bool ended = iq_idx_file_close(reader.file);
    if (good && !ended)
        good = fail(&reader, "damaged: the compressed data end early");
    if (!good) {
        free(idx->data);
        *idx = (iq_idx_t){0};
    }
    return good;
}
