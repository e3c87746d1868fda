/* SPDX-License-Identifier: Apache-2.0 */
/*
 * JSON as the programs write it: one array of flat objects.
 */
#ifndef ISGQ_TOOLS_JSON_H
#define ISGQ_TOOLS_JSON_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef struct iq_json {
    FILE *file; /* NULL: nothing is written */
    const char *path;
    int rows, fields;
} iq_json_t;

/* Can the file be written? Leaves its contents alone; ends the program with one line if not. NULL and "-" always can. */
void iq_json_probe(const char *path);

/* Start the array in the file, on stdout for "-", nowhere for NULL. A failure ends the program with one line. */
void iq_json_open(iq_json_t *json, const char *path);

void iq_json_row_begin(iq_json_t *json);
void iq_json_text(iq_json_t *json, const char *name, const char *value);
void iq_json_count(iq_json_t *json, const char *name, uint64_t value);
void iq_json_real(iq_json_t *json, const char *name, double value); /* not finite: null */
void iq_json_hash(iq_json_t *json, const char *name,
                  uint64_t value); /* as 16 hexadecimal digits: 64 bits do not fit a JSON number */
void iq_json_row_end(iq_json_t *json);

/* End the array. False and one line on stderr if anything could not be written. */
bool iq_json_close(iq_json_t *json);

#endif
