/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_kernels: how fast the kernels of kernels/kernels.h are, every row that this CPU can run beside memcpy.
 *
 * Speed is bytes of f32 that the values have or would have, per second, whatever a kernel reads and writes besides: so all figures
 * compare, and memcpy of the same bytes is the yardstick. A repetition runs memcpy and then each row, one after the other, so that
 * what else happens on the machine happens to all; ratios are medians over repetitions. The clock is the thread's CPU time. Kernels
 * work on a tile after the other, as codecs do.
 */
#include "kernels/kernels.h"
#include "tools/common/json.h"
#include "tools/common/options.h"
#include "tools/common/table.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TILE = 1024, MOST_ROWS = 8, MOST_REPETITIONS = 101, MOST_SIZES = 8, MOST_KERNELS = 64 };

static const double SHORTEST_SECONDS = 1e-3; /* what is faster is repeated within a repetition */

/* What a kernel works on: some of a buffer's elements. */
typedef struct piece {
    const iq_kernels_t *row;
    unsigned width;
    size_t first, count;
    float *values, *output;
    unsigned char *codes, *packed;
} piece_t;

typedef struct kernel {
    const char *name;
    bool has_width;
    void (*work)(const piece_t *piece);
} kernel_t;

static uint32_t strata[256];
static volatile uint32_t sink; /* results that nobody reads */

/* ---- the kernels ---- */

static void copy(const piece_t *p) { memcpy(p->output, p->values, p->count * sizeof(float)); }

static void run_absmax(const piece_t *p) { sink = iq_float_bits(p->row->absmax(p->values, p->count)); }

static iq_grid_t grid_of(unsigned width, bool stochastic, const uint32_t *offsets)
{
    int32_t half = (1 << (width - 1)) - 1;
    iq_grid_t grid = {.inverse = width == 1 ? 0.5f : (float)half, .shift = width == 1 ? 0.5f : 0.0f, .low = -half,
                      .high = width == 1 ? 1 : half, .stochastic = stochastic, .seed = 1, .strata = offsets};
    return grid;
}

static void quantize(const piece_t *p, bool stochastic, const uint32_t *offsets)
{
    iq_grid_t grid = grid_of(8, stochastic, offsets);
    p->row->quantize(&grid, p->first, p->values, p->count, p->codes);
}

static void run_nearest(const piece_t *p) { quantize(p, false, NULL); }
static void run_stochastic(const piece_t *p) { quantize(p, true, NULL); }
static void run_stratified(const piece_t *p) { quantize(p, true, strata); }

static void run_draw(const piece_t *p)
{
    iq_grid_t grid = grid_of(8, true, NULL);
    p->row->draw(&grid, p->first, p->count, (uint32_t *)p->output);
}

static void run_pack8(const piece_t *p) { p->row->pack8(p->codes, p->count, p->width, p->packed); }
static void run_unpack8(const piece_t *p) { p->row->unpack8(p->packed, p->count, p->width, p->codes); }
static void run_pack32(const piece_t *p) { p->row->pack32((iq_u32_any_t *)p->output, p->count, p->width, p->packed); }
static void run_unpack32(const piece_t *p) { p->row->unpack32(p->packed, p->count, p->width, (iq_u32_any_t *)p->output); }
static void run_add8(const piece_t *p) { sink = p->row->add8(p->codes, p->count, false, (iq_u32_any_t *)p->output); }

static void run_add32(const piece_t *p)
{
    sink = p->row->add32((iq_u32_any_t *)p->values, p->count, false, (iq_u32_any_t *)p->output);
}

static void run_dequantize(const piece_t *p)
{
    p->row->dequantize((iq_u32_any_t *)p->values, p->count, 255, 0.01f, 1.0f, p->output);
}

static void encode(const piece_t *p, bool stochastic, const uint32_t *offsets)
{
    iq_grid_t grid = grid_of(p->width, stochastic, offsets);
    p->row->encode(&grid, p->first, p->values, p->count, p->width, p->packed);
}

static void run_encode_nearest(const piece_t *p) { encode(p, false, NULL); }
static void run_encode_stochastic(const piece_t *p) { encode(p, true, NULL); }
static void run_encode_stratified(const piece_t *p) { encode(p, true, strata); }

static void run_decode_add(const piece_t *p)
{
    sink = p->row->decode(p->packed, p->count, p->width, (1 << p->width) - 2, 1e-3f, 1.0f, true, p->output);
}

static void run_hadamard(const piece_t *p)
{
    float room[TILE];
    p->row->hadamard(p->output, p->count, room);
}

static void run_flip(const piece_t *p) { p->row->flip(strata, 0, 1.0f, p->output, p->count); }
static void run_to_f16(const piece_t *p) { p->row->f32_to_f16(p->values, p->count, (iq_u16_any_t *)p->output); }
static void run_from_f16(const piece_t *p) { p->row->f16_to_f32((iq_u16_any_t *)p->values, p->count, p->output); }
static void run_to_bf16(const piece_t *p) { p->row->f32_to_bf16(p->values, p->count, (iq_u16_any_t *)p->output); }
static void run_from_bf16(const piece_t *p) { p->row->bf16_to_f32((iq_u16_any_t *)p->values, p->count, p->output); }

static const kernel_t kernels[] = {
    {"absmax", false, run_absmax},
    {"quantize-nearest", false, run_nearest},
    {"quantize-stochastic", false, run_stochastic},
    {"quantize-stratified", false, run_stratified},
    {"draw", false, run_draw},
    {"pack8", true, run_pack8},
    {"unpack8", true, run_unpack8},
    {"pack32", true, run_pack32},
    {"unpack32", true, run_unpack32},
    {"add8", false, run_add8},
    {"add32", false, run_add32},
    {"dequantize", false, run_dequantize},
    {"encode-nearest", true, run_encode_nearest},
    {"encode-stochastic", true, run_encode_stochastic},
    {"encode-stratified", true, run_encode_stratified},
    {"decode-add", true, run_decode_add},
    {"hadamard", false, run_hadamard},
    {"flip", false, run_flip},
    {"f32-to-f16", false, run_to_f16},
    {"f16-to-f32", false, run_from_f16},
    {"f32-to-bf16", false, run_to_bf16},
    {"bf16-to-f32", false, run_from_bf16},
};

enum { KERNELS = sizeof(kernels) / sizeof(kernels[0]) };

/* ---- time ---- */

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static double median(double *values, size_t count)
{
    for (size_t i = 1; i < count; i++) {
        double value = values[i];
        size_t at = i;
        for (; at > 0 && values[at - 1] > value; at--)
            values[at] = values[at - 1];
        values[at] = value;
    }
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

/* Buffers of `count` values, and what else is known of a measurement. */
typedef struct bench {
    size_t count, repetitions;
    const iq_kernels_t *rows[MOST_ROWS];
    size_t nrows;
    piece_t whole;
} bench_t;

static void sweep(const bench_t *bench, void (*work)(const piece_t *), const iq_kernels_t *row, unsigned width)
{
    piece_t piece = bench->whole;
    piece.row = row;
    piece.width = width;
    for (size_t i = 0; i < bench->count; i += TILE) {
        piece.first = i;
        piece.count = bench->count - i < TILE ? bench->count - i : TILE;
        work(&piece);
        piece.values += TILE;
        piece.output += TILE;
        piece.codes += TILE;
        piece.packed += TILE / 8 * width;
    }
}

/* memcpy has no row: one call for everything. */
static double seconds_of(const bench_t *bench, const kernel_t *kernel, const iq_kernels_t *row, unsigned width)
{
    double start = now(), passed;
    size_t sweeps = 0;
    do {
        if (row == NULL) {
            piece_t piece = bench->whole;
            piece.count = bench->count;
            copy(&piece);
        } else {
            sweep(bench, kernel->work, row, width);
        }
        sweeps++;
        passed = now() - start;
    } while (passed < SHORTEST_SECONDS);
    return passed / (double)sweeps;
}

/* ---- report ---- */

static const iq_column_t columns[] = {
    {"kernel", "", 19, true},    {"width", "", 5, false},     {"row", "", 8, true},   {"bytes", "B", 9, false},
    {"speed", "GB/s", 7, false}, {"memcpy", "GB/s", 7, false}, {"ratio", "", 6, false}, {NULL, NULL, 0, false},
};

static void report(const bench_t *bench, const kernel_t *kernel, unsigned width, iq_table_t *table, iq_json_t *json)
{
    static double seconds[MOST_ROWS + 1][MOST_REPETITIONS], ratios[MOST_REPETITIONS];
    size_t bytes = bench->count * sizeof(float);
    for (size_t i = 0; i < bench->repetitions; i++) {
        seconds[bench->nrows][i] = seconds_of(bench, kernel, NULL, width);
        for (size_t r = 0; r < bench->nrows; r++)
            seconds[r][i] = seconds_of(bench, kernel, bench->rows[r], width);
    }
    for (size_t r = 0; r < bench->nrows; r++) {
        double copies[MOST_REPETITIONS];
        for (size_t i = 0; i < bench->repetitions; i++)
            ratios[i] = seconds[bench->nrows][i] / seconds[r][i];
        memcpy(copies, seconds[bench->nrows], sizeof(copies));
        double speed = (double)bytes * 1e-9 / median(seconds[r], bench->repetitions);
        double memcpy_speed = (double)bytes * 1e-9 / median(copies, bench->repetitions);
        double ratio = median(ratios, bench->repetitions);
        iq_table_cell(table, "%s", kernel->name);
        if (kernel->has_width)
            iq_table_cell(table, "%u", width);
        else
            iq_table_cell(table, "-");
        iq_table_cell(table, "%s", bench->rows[r]->name);
        iq_table_cell(table, "%zu", bytes);
        iq_table_cell(table, "%.2f", speed);
        iq_table_cell(table, "%.2f", memcpy_speed);
        iq_table_cell(table, "%.2f", ratio);
        iq_json_row_begin(json);
        iq_json_text(json, "kernel", kernel->name);
        iq_json_count(json, "width", kernel->has_width ? width : 0);
        iq_json_text(json, "row", bench->rows[r]->name);
        iq_json_count(json, "bytes", bytes);
        iq_json_real(json, "gbs", speed);
        iq_json_real(json, "memcpy_gbs", memcpy_speed);
        iq_json_real(json, "ratio", ratio);
        iq_json_row_end(json);
    }
}

/* ---- buffers ---- */

static void *take(size_t bytes)
{
    void *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    if (memory == NULL)
        iq_die(IQ_EXIT_FAILED, "no memory for %zu bytes", bytes);
    return memory;
}

static void take_buffers(bench_t *bench, size_t bytes)
{
    iq_grid_t grid = {.seed = 2};
    bench->count = bytes / sizeof(float);
    bench->whole.values = take(bytes);
    bench->whole.output = take(bytes);
    bench->whole.codes = take(bench->count);
    bench->whole.packed = take(bench->count);
    for (size_t i = 0; i < bench->count; i += TILE) {
        uint32_t words[TILE];
        size_t n = bench->count - i < TILE ? bench->count - i : TILE;
        iq_kernels()->draw(&grid, i, n, words);
        for (size_t j = 0; j < n; j++)
            bench->whole.values[i + j] = (float)(int32_t)words[j] * 0x1p-31f;
    }
    memset(bench->whole.output, 0, bytes);
    memset(bench->whole.codes, 0, bench->count);
    memset(bench->whole.packed, 0, bench->count);
}

static void give_buffers(bench_t *bench)
{
    free(bench->whole.values);
    free(bench->whole.output);
    free(bench->whole.codes);
    free(bench->whole.packed);
}

/* ---- the command line ---- */

static bool is_listed(const char *name, const char *const *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(list[i], name) == 0 || strcmp(list[i], "all") == 0)
            return true;
    }
    return false;
}

static void choose_rows(bench_t *bench, const char *text)
{
    const char *names[MOST_ROWS];
    char *copied;
    size_t count = iq_split("rows", text, ",", &copied, names, MOST_ROWS);
    for (const iq_kernels_t *const *row = iq_kernel_rows; *row != NULL; row++) {
        if ((*row)->usable() && is_listed((*row)->name, names, count) && bench->nrows < MOST_ROWS)
            bench->rows[bench->nrows++] = *row;
    }
    free(copied);
    if (bench->nrows == 0)
        iq_die(IQ_EXIT_USAGE, "no row of '%s' is one that this CPU can run", text);
}

static void bench_size(bench_t *bench, const char *size, const char *const *names, size_t count, size_t only, iq_table_t *table,
                       iq_json_t *json)
{
    size_t bytes;
    if (!iq_options_bytes(size, &bytes) || bytes < sizeof(float) * TILE || bytes % (sizeof(float) * TILE) != 0)
        iq_die(IQ_EXIT_USAGE, "'%s' is no size that is a multiple of 4k", size);
    take_buffers(bench, bytes);
    for (size_t k = 0; k < KERNELS; k++) {
        if (!is_listed(kernels[k].name, names, count))
            continue;
        for (unsigned width = 1; width <= 8; width++) {
            if (kernels[k].has_width ? only == 0 || width == only : width == 8)
                report(bench, &kernels[k], width, table, json);
        }
    }
    give_buffers(bench);
}

static const iq_program_t program = {
    .name = "bench_kernels",
    .usage = "[-k KERNELS] [-r ROWS] [-w WIDTH] [-b SIZES] [-i REPETITIONS] [-J FILE]",
    .about = "Speed of the codecs' CPU kernels in bytes of f32 per second, beside memcpy of the same bytes, on one core.",
};

int main(int argc, char **argv)
{
    static const char *kernel_text, *row_text, *size_text, *json_path;
    static size_t width, repetitions;
    iq_option_t options[] = {
        IQ_TEXT('k', "kernels", "LIST", kernel_text, "all", "kernels by name, or all"),
        IQ_TEXT('r', "rows", "LIST", row_text, "all", "implementations: portable, avx2, avx512, neon, or all that this CPU can run"),
        IQ_COUNT('w', "width", "BITS", width, 0, 8, "0", "bits of a code; 0: each from 1 to 8"),
        IQ_TEXT('b', "bytes", "LIST", size_text, "256k,64m", "bytes of the values: what fits a cache, and what does not"),
        IQ_COUNT('i', "iterations", "COUNT", repetitions, 1, MOST_REPETITIONS, "7", "repetitions; figures are medians"),
        IQ_TEXT('J', "json", "FILE", json_path, NULL, "write the results as JSON, - for stdout"),
        IQ_OPTIONS_END,
    };
    iq_options_parse(&program, options, argc, argv);
    bench_t bench = {.repetitions = repetitions};
    const char *names[MOST_KERNELS], *sizes[MOST_SIZES];
    char *name_copy, *size_copy;
    iq_json_t json;
    iq_table_t table;
    size_t nnames = iq_split("kernels", kernel_text, ",", &name_copy, names, MOST_KERNELS);
    size_t nsizes = iq_split("bytes", size_text, ",", &size_copy, sizes, MOST_SIZES);
    choose_rows(&bench, row_text);
    for (size_t i = 0; i < 256; i++)
        strata[i] = (uint32_t)i * 0x10000u;
    iq_json_open(&json, json_path);
    iq_table_init(&table, json_path != NULL && strcmp(json_path, "-") == 0 ? NULL : stdout, columns);
    iq_table_head(&table);
    for (size_t i = 0; i < nsizes; i++)
        bench_size(&bench, sizes[i], names, nnames, width, &table, &json);
    free(name_copy);
    free(size_copy);
    return iq_json_close(&json) ? IQ_EXIT_OK : IQ_EXIT_FAILED;
}
