/* SPDX-License-Identifier: Apache-2.0 */
/*
 * IDX files (MNIST and its relatives): arrays of bytes with a big-endian header, compressed with gzip or not.
 */
#ifndef ISGQ_TOOLS_IDX_H
#define ISGQ_TOOLS_IDX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct iq_idx {
    uint8_t *data;     /* [items x item_bytes], the caller frees it */
    size_t items;      /* first dimension */
    size_t item_bytes; /* product of the others */
} iq_idx_t;

/*
 * Read `folder`/`name`, or `folder`/`name`.gz if there is no such file. It must hold unsigned bytes in `dimensions` dimensions,
 * all of them at least 1, and exactly as many bytes as its header says. On failure: false, and one line in `error`.
 */
bool iq_idx_read(const char *folder, const char *name, unsigned dimensions, iq_idx_t *idx, char *error, size_t error_bytes);

#endif
