/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bytes of a file that may be compressed with gzip: idx_gzip.c reads both kinds, idx_plain.c, in builds without zlib, the other.
 */
#ifndef ISGQ_TOOLS_IDX_FILE_H
#define ISGQ_TOOLS_IDX_FILE_H

#include <stdbool.h>
#include <stddef.h>

typedef struct iq_idx_file iq_idx_file_t;

/* NULL: it cannot be read, and *why says so until the next call. */
iq_idx_file_t *iq_idx_file_open(const char *path, const char **why);

/* How many bytes there were, at most `bytes`; 0 at the end, -1 if the file is damaged, and *why says how. */
ptrdiff_t iq_idx_file_read(iq_idx_file_t *file, void *data, size_t bytes, const char **why);

/* False if the compressed data end early. */
bool iq_idx_file_close(iq_idx_file_t *file);

#endif
