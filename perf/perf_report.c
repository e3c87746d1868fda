/* SPDX-License-Identifier: Apache-2.0 */
/*
 * isgq_perf's table and JSON. What each column means is in perf/README.md.
 */
#include "perf/perf.h"

#include <inttypes.h>
#include <math.h>

static const iq_column_t columns[] = {
    {"coll", "", 10, true},          {"dtype", "", 5, true},     {"op", "", 4, true},         {"quantizer", "", 10, true},
    {"algorithm", "", 9, true},      {"transport", "", 5, true}, {"bytes", "B", 10, false},   {"count", "elements", 9, false},
    {"time", "us", 10, false},       {"p99", "us", 10, false},   {"algbw", "GB/s", 7, false}, {"busbw", "GB/s", 7, false},
    {"bound", "GB/s", 6, false},     {"wire", "B", 10, false},   {"ratio", "", 6, false},     {"nmse", "", 9, false},
    {"wrong", "elements", 5, false}, {"hash", "", 16, true},     {NULL, NULL, 0, false},
};

/* nccl-tests' factors: what makes bus bandwidth comparable over rank counts. */
static double bus_factor(const iq_perf_case_t *test, int nranks)
{
    double n = nranks;

    switch (test->collective) {
    case IQ_PERF_ALLREDUCE:
    case IQ_PERF_FACTORED: return 2.0 * (n - 1.0) / n;
    case IQ_PERF_REDUCE_SCATTER: return (n - 1.0) / n;
    case IQ_PERF_ALLGATHER: return n - 1.0; /* nccl-tests counts the output: (n - 1) / n of n times the input */
    default: return 1.0;
    }
}

/* Bytes that one rank sends when a ring does this collective in fp32. */
static double ring_bytes(const iq_perf_setup_t *setup, const iq_perf_case_t *test)
{
    size_t elements = test->bytes / test->type->bytes;

    if (test->collective == IQ_PERF_FACTORED && setup->bias)
        elements += test->n;
    switch (test->collective) {
    case IQ_PERF_REDUCE_SCATTER: return isgqx_fp32_ring_bytes(elements, setup->nranks) / 2.0;
    case IQ_PERF_ALLGATHER: return isgqx_fp32_ring_bytes(elements * (size_t)setup->nranks, setup->nranks) / 2.0;
    case IQ_PERF_BROADCAST: return setup->nranks > 1 ? 4.0 * (double)elements : 0.0;
    default: return isgqx_fp32_ring_bytes(elements, setup->nranks);
    }
}

void iq_perf_report_head(iq_table_t *table, const iq_perf_setup_t *setup, FILE *file, int quantizer_width)
{
    iq_table_init(table, file, columns);
    iq_table_reserve(table, "quantizer", quantizer_width);
    if (file == NULL)
        return;
    fprintf(file,
            "# isgq_perf: %d ranks, %zu timed iterations of %zu calls after %zu, %s, misalignment %zu B, seed %" PRIu64 "\n",
            setup->nranks, setup->iterations, setup->calls, setup->warmup, setup->in_place ? "in place" : "out of place",
            setup->misalign, setup->seed);
    fprintf(file, "# buffers: %s\n", setup->device_name);
    fprintf(file, "# bound B: every rank copies its own %zu B at once: %.3f GB/s\n", setup->bound_bytes, setup->bound_gbs);
    iq_table_head(table);
}

static void put_row(iq_table_t *table, const iq_perf_setup_t *setup, const iq_perf_case_t *test, const iq_perf_result_t *result,
                    const double rates[2], double ratio)
{
    iq_table_cell(table, "%s", iq_perf_collective_names[test->collective]);
    iq_table_cell(table, "%s", test->type->name);
    iq_table_cell(table, "%s", test->op_name);
    iq_table_cell(table, "%s", test->quantizer_typed);
    iq_table_cell(table, "%s", result->record.algorithm);
    iq_table_cell(table, "%s", result->record.transport);
    iq_table_cell(table, "%zu", test->bytes);
    iq_table_cell(table, "%zu", test->count);
    iq_table_cell(table, "%.2f", result->time_us);
    iq_table_cell(table, "%.2f", result->p99_us);
    iq_table_cell(table, "%.3f", rates[0]);
    iq_table_cell(table, "%.3f", rates[1]);
    iq_table_cell(table, "%.3f", setup->bound_gbs);
    iq_table_cell(table, "%" PRIu64, result->wire_bytes);
    if (isfinite(ratio))
        iq_table_cell(table, "%.2f", ratio);
    else
        iq_table_cell(table, "-");
    iq_table_cell(table, result->nmse > 0.0 ? "%.3e" : "%.0f", result->nmse);
    iq_table_cell(table, "%" PRIu64, result->wrong);
    if (result->hashes_differ)
        iq_table_cell(table, "RANKS DIFFER");
    else
        iq_table_cell(table, "%016" PRIx64, result->hash);
}

static void put_json(iq_json_t *json, const iq_perf_setup_t *setup, const iq_perf_case_t *test, const iq_perf_result_t *result,
                     const double rates[2], double ratio)
{
    iq_json_row_begin(json);
    iq_json_text(json, "coll", iq_perf_collective_names[test->collective]);
    iq_json_text(json, "dtype", test->type->name);
    iq_json_text(json, "op", test->op_name);
    iq_json_text(json, "quantizer", test->quantizer_text);
    iq_json_text(json, "algorithm", result->record.algorithm);
    iq_json_text(json, "transport", result->record.transport);
    iq_json_text(json, "why", result->record.why);
    iq_json_text(json, "device", setup->device_name);
    iq_json_count(json, "nranks", (uint64_t)setup->nranks);
    iq_json_count(json, "count", test->count);
    iq_json_count(json, "bytes", test->bytes);
    if (test->collective == IQ_PERF_FACTORED) {
        iq_json_count(json, "rows", test->rows);
        iq_json_count(json, "m", test->m);
        iq_json_count(json, "n", test->n);
    }
    iq_json_real(json, "time_us", result->time_us);
    iq_json_real(json, "p99_us", result->p99_us);
    iq_json_count(json, "iters", setup->iterations);
    iq_json_real(json, "algbw_gbs", rates[0]);
    iq_json_real(json, "busbw_gbs", rates[1]);
    iq_json_count(json, "wire_bytes", result->wire_bytes);
    iq_json_real(json, "ratio", ratio);
    iq_json_real(json, "nmse", result->nmse);
    iq_json_real(json, "bound", setup->bound_gbs);
    iq_json_count(json, "wrong", result->wrong);
    iq_json_hash(json, "hash", result->hash);
    iq_json_row_end(json);
}

void iq_perf_report_row(iq_table_t *table, iq_json_t *json, const iq_perf_setup_t *setup, const iq_perf_case_t *test,
                        const iq_perf_result_t *result)
{
    double algbw = result->time_us > 0.0 ? (double)test->bytes / result->time_us * 1e-3 : 0.0;
    double rates[2] = {algbw, algbw * bus_factor(test, setup->nranks)};
    double ratio = result->wire_bytes > 0 ? ring_bytes(setup, test) / (double)result->wire_bytes : NAN;

    put_row(table, setup, test, result, rates, ratio);
    put_json(json, setup, test, result, rates, ratio);
}
