/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names shared by the programs; see names.h.
 */
#include "tools/common/names.h"

#include "tools/common/options.h"

#include "isgqcoll_ext.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const iq_type_name_t iq_type_names[] = {
    {"i8", ISGQ_INT8, 1, false},      {"u8", ISGQ_UINT8, 1, false},   {"i32", ISGQ_INT32, 4, false},
    {"u32", ISGQ_UINT32, 4, false},   {"i64", ISGQ_INT64, 8, false},  {"u64", ISGQ_UINT64, 8, false},
    {"f16", ISGQ_FLOAT16, 2, true},   {"f32", ISGQ_FLOAT32, 4, true}, {"f64", ISGQ_FLOAT64, 8, false},
    {"bf16", ISGQ_BFLOAT16, 2, true}, {NULL, ISGQ_INT8, 0, false},
};

const iq_op_name_t iq_op_names[] = {
    {"sum", ISGQ_SUM}, {"prod", ISGQ_PROD}, {"max", ISGQ_MAX}, {"min", ISGQ_MIN}, {"avg", ISGQ_AVG}, {NULL, ISGQ_SUM},
};

const iq_type_name_t *iq_type_by_name(const char *name)
{
    for (const iq_type_name_t *row = iq_type_names; row->name != NULL; row++)
        if (strcmp(row->name, name) == 0)
            return row;
    iq_die(IQ_EXIT_USAGE, "'%s' is not an element type; there are i8, u8, i32, u32, i64, u64, f16, bf16, f32, f64", name);
}

const iq_op_name_t *iq_op_by_name(const char *name)
{
    for (const iq_op_name_t *row = iq_op_names; row->name != NULL; row++)
        if (strcmp(row->name, name) == 0)
            return row;
    iq_die(IQ_EXIT_USAGE, "'%s' is not a reduction; there are sum, prod, max, min, avg", name);
}

isgq_quantizer_t iq_quantizer_or_die(const char *text)
{
    isgq_quantizer_t quantizer = NULL;

    if (isgq_quantizer_create(&quantizer, text) != ISGQ_SUCCESS)
        iq_die(IQ_EXIT_USAGE, "%s", isgq_get_last_error());
    return quantizer;
}

/* What isgqx_info_print says about transports: lines "transport   shm". */
typedef struct transports {
    char names[128]; /* "local, shm, ucx" */
    const char *word;
    size_t length;
    bool found;
} transports_t;

static void one_transport(void *context, const char *line)
{
    transports_t *transports = context;
    static const char head[] = "transport ";
    size_t used = strlen(transports->names);

    if (strncmp(line, head, sizeof(head) - 1) != 0)
        return;
    const char *name = line + sizeof(head) - 1;
    name += strspn(name, " ");
    size_t length = strcspn(name, " ");
    snprintf(transports->names + used, sizeof(transports->names) - used, "%s%.*s", used > 0 ? ", " : "", (int)length, name);
    transports->found |= length == transports->length && memcmp(name, transports->word, length) == 0;
}

void iq_transports_or_die(const char *list, size_t local_ranks)
{
    const char *items[16];
    char *copy;
    bool shared_memory = false;

    if (strcmp(list, "auto") == 0)
        return;
    size_t count = iq_split("--transport", list, ",", &copy, items, 16);
    for (size_t i = 0; i < count; i++) {
        transports_t transports = {.word = items[i], .length = strlen(items[i])};
        isgqx_info_print(one_transport, &transports);
        if (!transports.found)
            iq_die(IQ_EXIT_USAGE, "--transport: this build has no '%s'; it has %s", items[i], transports.names);
        shared_memory |= strcmp(items[i], "shm") == 0;
    }
    if (local_ranks > 1 && !shared_memory)
        iq_die(IQ_EXIT_USAGE, "--transport: '%s' does not connect processes of one host; add shm", list);
    free(copy);
}

void iq_check(isgq_result_t result, int rank, const char *what)
{
    if (result == ISGQ_SUCCESS)
        return;
    const char *text = isgq_get_last_error()[0] ? isgq_get_last_error() : isgq_get_error_string(result);
    if (rank < 0)
        iq_die(IQ_EXIT_FAILED, "%s: %s", what, text);
    iq_die(IQ_EXIT_FAILED, "rank %d: %s: %s", rank, what, text);
}
