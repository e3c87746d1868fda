/* SPDX-License-Identifier: Apache-2.0 */
/* Files that are not compressed, for builds without zlib. */
#include "tools/common/idx_file.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

iq_idx_file_t *iq_idx_file_open(const char *path, const char **why)
{
    size_t length = strlen(path);

    *why = "this program was built without zlib; unpack it with gunzip";
    if (length > 3 && strcmp(path + length - 3, ".gz") == 0)
        return NULL;
    FILE *file = fopen(path, "rb");
    *why = file == NULL ? strerror(errno) : NULL;
    return (iq_idx_file_t *)file;
}

ptrdiff_t iq_idx_file_read(iq_idx_file_t *file, void *data, size_t bytes, const char **why)
{
    size_t got = fread(data, 1, bytes, (FILE *)file);

    if (got > 0 || !ferror((FILE *)file))
        return (ptrdiff_t)got;
    *why = strerror(errno);
    return -1;
}

bool iq_idx_file_close(iq_idx_file_t *file) { return fclose((FILE *)file) == 0; }
