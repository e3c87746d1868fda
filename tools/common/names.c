/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names shared by the programs; see names.h.
 */
#include "tools/common/names.h"

#include "tools/common/options.h"

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
        iq_die(IQ_EXIT_USAGE, "quantizer '%s': %s", text, isgq_get_last_error());
    return quantizer;
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
