/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_gpu: rates of module "cuda" on one GPU, and calls between ranks that share it. This file holds the command line and the
 * output; docs/performance-gpu.md says what the rows mean. Results are not checked here: the tests do that.
 */
#include "gpu/bench_gpu.h"

#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SKIPPED = 77, USAGE = 2 };

static const char usage[] =
    "usage: bench_gpu [--kernels | --calls] [--json] [--quick]\n"
    "\n"
    "  --kernels   each kernel's rate beside that of a device-to-device copy, and a factored call's product beside cuBLASLt's\n"
    "  --calls     allreduce of device memory between 2 and 4 ranks on the one GPU\n"
    "  --json      a JSON object a line instead of a table\n"
    "  --quick     small buffers and few repetitions: every row runs, the times mean nothing\n"
    "  --help      this text\n"
    "\n"
    "Both parts run unless one is named. The module is the one in ISGQ_MODULE_DIR, or in ../lib/isgqcoll beside this program.\n"
    "Exit status: 0, 1 if something fails, 77 if there is no usable GPU.\n";

_Noreturn void bench_die(const char *file, int line, const char *call, const char *why)
{
    const char *name = strrchr(file, '/');
    fflush(stdout);
    fprintf(stderr, "bench_gpu: %s:%d: %s: %s\n", name != NULL ? name + 1 : file, line, call, why);
    _exit(1); /* other ranks' threads may be anywhere */
}

void bench_fill(float *values, size_t count, unsigned salt)
{
    uint64_t state = 88172645463325252ull + salt;
    for (size_t i = 0; i < count; i++) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        values[i] = (float)(int32_t)(state >> 32) * 0x1p-31f;
    }
}

/* ---- output ---- */

void bench_head(const bench_t *bench, const char *part)
{
    if (bench->json)
        return;
    if (strcmp(part, "kernel") == 0)
        printf("\n%-12s %-5s %5s %6s %7s %-11s %10s %9s %8s\n", "kernel", "type", "bits", "width", "bucket", "rounding", "us", "GB/s", "of copy");
    else
        printf("\n%-12s %-6s %-9s %-6s %-16s %10s %12s %9s\n", "call", "ranks", "over", "mode", "quantizer", "bytes", "us", "GB/s");
}

static int ascending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void put_json(const bench_t *bench, const bench_row_t *row, double median, double lowest, double gbs)
{
    printf("{\"part\": \"%s\", \"name\": \"%s\", \"type\": \"%s\", \"count\": %zu, \"bytes\": %zu", row->part, row->name, row->type, row->count,
           row->bytes);
    if (row->bits > 0)
        printf(", \"bits\": %u, \"width\": %u", row->bits, row->width);
    if (row->bucket > 0 || row->tensor)
        printf(", \"bucket\": %zu", row->bucket);
    if (row->rounding != NULL)
        printf(", \"rounding\": \"%s\"", row->rounding);
    if (row->ranks > 0)
        printf(", \"ranks\": %u, \"quantizer\": \"%s\", \"way\": \"%s\", \"mode\": \"%s\"", row->ranks, row->quantizer, row->way, row->mode);
    if (row->skipped != NULL)
        printf(", \"skipped\": \"%s\"", row->skipped);
    else if (!bench->simulated && !bench->quick)
        printf(", \"us\": %.3f, \"us_lowest\": %.3f, \"gbs\": %.2f", median, lowest, gbs);
    if (!bench->simulated && !bench->quick && row->rated)
        printf(", \"ratio\": %.4f", gbs / bench->copy_gbs);
    printf("}\n");
}

static void put_table(const bench_t *bench, const bench_row_t *row, double median, double gbs)
{
    char bits[12] = "", width[12] = "", bucket[24] = "", times[64] = "ran";
    if (row->bits > 0) {
        snprintf(bits, sizeof(bits), "%u", row->bits);
        snprintf(width, sizeof(width), "%u", row->width);
    }
    if (row->tensor)
        snprintf(bucket, sizeof(bucket), "tensor");
    else if (row->bucket > 0)
        snprintf(bucket, sizeof(bucket), "%zu", row->bucket);
    if (row->ranks > 0) {
        if (row->skipped != NULL)
            snprintf(times, sizeof(times), "skipped: %s", row->skipped);
        else if (!bench->simulated && !bench->quick)
            snprintf(times, sizeof(times), "%12.1f %9.2f", median, gbs);
        printf("%-12s %-6u %-9s %-6s %-16s %10zu %12s\n", row->name, row->ranks, row->way, row->mode, row->quantizer, row->bytes, times);
        return;
    }
    if (!bench->simulated && !bench->quick)
        snprintf(times, sizeof(times), "%10.2f %9.1f %7.1f%%", median, gbs, 100.0 * gbs / bench->copy_gbs);
    printf("%-12s %-5s %5s %6s %7s %-11s %10s\n", row->name, row->type, bits, width, bucket, row->rounding != NULL ? row->rounding : "", times);
}

void bench_put(bench_t *bench, const bench_row_t *row, float *microseconds, size_t count)
{
    qsort(microseconds, count, sizeof(*microseconds), ascending);
    double median = (microseconds[(count - 1) / 2] + microseconds[count / 2]) / 2.0;
    double gbs = median > 0.0 ? (double)row->bytes / median * 1e-3 : 0.0;
    if (row->rated && bench->copy_gbs <= 0.0) /* the first of the rated rows is the copy */
        bench->copy_gbs = gbs;
    if (bench->json)
        put_json(bench, row, median, microseconds[0], gbs);
    else
        put_table(bench, row, median, gbs);
    fflush(stdout);
}

static void say_what_this_is(bench_t *bench)
{
    struct cudaDeviceProp properties;
    int driver = 0, runtime = 0;
    TRY_CUDA(cudaGetDeviceProperties(&properties, 0));
    TRY_CUDA(cudaDriverGetVersion(&driver));
    TRY_CUDA(cudaRuntimeGetVersion(&runtime));
    bench->simulated = strstr(properties.name, "Simulated") != NULL;
    if (bench->json)
        printf("{\"part\": \"device\", \"name\": \"%s\", \"processors\": %d, \"driver\": %d, \"runtime\": %d, \"simulated\": %s, \"quick\": %s}\n",
               properties.name, properties.multiProcessorCount, driver, runtime, bench->simulated ? "true" : "false",
               bench->quick ? "true" : "false");
    else
        printf("%s, %d processors, CUDA driver %d, runtime %d; %zu elements, %zu sets of buffers, medians of %zu\n", properties.name,
               properties.multiProcessorCount, driver, runtime, bench->count, bench->sets, bench->repetitions);
    if (!bench->json && bench->simulated)
        puts("This GPU is simulated: rows only run, and there are no times.");
    else if (!bench->json && bench->quick)
        puts("A quick run: rows only run, and there are no times.");
    fflush(stdout);
}

/* ---- the command line ---- */

/* The modules of this build, unless the user names others: the library's inside is linked in, so no library lies beside them. */
static void find_modules(void)
{
    char path[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - 32);
    if (length <= 0)
        return;
    path[length] = '\0';
    char *slash = strrchr(path, '/');
    if (slash == NULL)
        return;
    memcpy(slash, "/../lib/isgqcoll", sizeof("/../lib/isgqcoll"));
    setenv("ISGQ_MODULE_DIR", path, 0);
}

int main(int argc, char **argv)
{
    enum { KERNELS = 1, CALLS = 2 };
    static const struct option options[] = {{"kernels", no_argument, NULL, 'k'}, {"calls", no_argument, NULL, 'c'}, {"json", no_argument, NULL, 'j'},
                                            {"quick", no_argument, NULL, 'q'},   {"help", no_argument, NULL, 'h'},  {NULL, 0, NULL, 0}};
    bench_t bench = {.count = (size_t)16 << 20, .sets = 8, .warm = 4, .repetitions = 30};
    int parts = 0, option, devices = 0;
    while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        if (option == '?')
            return USAGE;
        if (option == 'h') {
            fputs(usage, stdout);
            return 0;
        }
        parts |= option == 'k' ? KERNELS : option == 'c' ? CALLS : 0;
        bench.json |= option == 'j';
        bench.quick |= option == 'q';
    }
    if (optind < argc) {
        fputs(usage, stderr);
        return USAGE;
    }
    if (bench.quick)
        bench = (bench_t){.json = bench.json, .quick = true, .count = 9000, .sets = 2, .warm = 1, .repetitions = 2};
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        puts("skipped: no usable GPU here");
        return SKIPPED;
    }
    find_modules();
    say_what_this_is(&bench);
    if (parts != CALLS) {
        bench_kernels(&bench);
        bench_steps(&bench);
        bench_factors(&bench);
    }
    if (parts != KERNELS)
        bench_calls(&bench);
    return 0;
}
