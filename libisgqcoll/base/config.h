/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Configuration: config_vars.def read from the environment once, constant afterwards.
 *
 * A bad value is one warning and the default; an unknown ISGQ_* variable is one warning with the nearest right name.
 */
#ifndef ISGQ_BASE_CONFIG_H
#define ISGQ_BASE_CONFIG_H

#include "isgqcoll.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Members: `const char *` for text (never NULL), size_t for bytes, uint32_t, uint64_t, bool for flag. */
typedef const char *iq_config_text_t;
typedef size_t iq_config_bytes_t;
typedef uint32_t iq_config_u32_t;
typedef uint64_t iq_config_u64_t;
typedef bool iq_config_flag_t;

typedef struct iq_config {
#define X(field, kind, name, default_text, help) iq_config_##kind##_t field;
#include "base/config_vars.def"
#undef X
} iq_config_t;

/* The process's configuration, read at the first call. Any thread. */
const iq_config_t *iq_config(void);

/* Set one variable for this process as if the environment had held it (NULL: its default). For tests, before threads start.
 * `name` without ISGQ_. ISGQ_ERR_INVALID_ARGUMENT for an unknown name or a bad value. */
isgq_result_t iq_config_set(const char *name, const char *value);

/* Row `index` for isgq_get_config_var; ISGQ_ERR_INVALID_ARGUMENT past the last. */
isgq_result_t iq_config_describe(size_t index, isgq_config_var_t *var);

/* Parse "64k", "1m", "2g", "512"; false if it is no size. For programs' options too. */
bool iq_parse_bytes(const char *text, size_t *bytes);

/* The candidate nearest to `word` by edit distance, NULL if none is near. Candidates end with NULL. */
const char *iq_nearest_word(const char *word, const char *const *candidates);

#endif
