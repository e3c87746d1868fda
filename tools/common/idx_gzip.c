/* SPDX-License-Identifier: Apache-2.0 */
/* Files with and without gzip, through zlib, whose gz functions read plain files as they are. */
#include "tools/common/idx_file.h"

#include <errno.h>
#include <string.h>
#include <zlib.h>

iq_idx_file_t *iq_idx_file_open(const char *path, const char **why)
{
    errno = 0;
    gzFile file = gzopen(path, "rb");
    *why = errno ? strerror(errno) : "out of memory";
    return (iq_idx_file_t *)file;
}

ptrdiff_t iq_idx_file_read(iq_idx_file_t *file, void *data, size_t bytes, const char **why)
{
    int got = gzread((gzFile)file, data, bytes > (1u << 30) ? 1u << 30 : (unsigned)bytes), code;

    if (got < 0) {
        *why = gzerror((gzFile)file, &code);
        *why = code == Z_ERRNO ? strerror(errno) : *why;
    }
    return got;
}

bool iq_idx_file_close(iq_idx_file_t *file) { return gzclose_r((gzFile)file) == Z_OK; }
