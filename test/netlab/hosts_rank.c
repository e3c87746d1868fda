/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One rank of the several-hosts test: every kind of call between hosts, results checked, and the interface's own byte counter held against what
 * the library says it sent. Run by netlab.py, one process a host; the launcher's environment says who the ranks are.
 *
 * usage: hosts_rank INTERFACE MEGABYTES | hosts_rank INTERFACE cut
 * "cut": rank 1's interface disappears between calls; every rank has to be told who cannot be reached, within the call's time-out and a few seconds.
 * One line per phase on stdout, "phase wire_bytes interface_bytes seconds"; exit 1 if a result is wrong or the counters differ by more than 10 %.
 */
#include "isgqcoll.h"
#include "isgqcoll_ext.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int rank, nranks, wrong;
static const char *interface_name;
static isgq_comm_t comm;

static void check(isgq_result_t result, const char *what)
{
    if (result == ISGQ_SUCCESS)
        return;
    fprintf(stderr, "rank %d: %s: %s: %s\n", rank, what, isgq_get_error_string(result), isgq_get_last_error());
    exit(1);
}

/* Bytes that left through the interface, from /proc/net/dev of this network namespace. */
static double interface_bytes(void)
{
    char line[512];
    double sent = -1;
    FILE *file = fopen("/proc/net/dev", "r");
    if (file == NULL)
        return -1;
    while (fgets(line, sizeof(line), file) != NULL) {
        char *colon = strchr(line, ':');
        char *name = line + strspn(line, " ");
        if (colon == NULL || (size_t)(colon - name) != strlen(interface_name) || strncmp(name, interface_name, (size_t)(colon - name)) != 0)
            continue;
        char *field = colon + 1; /* eight receive counters, then bytes sent */
        for (int i = 0; i < 9; i++)
            sent = strtod(field, &field);
    }
    fclose(file);
    return sent;
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static double sent_bytes(void)
{
    isgq_stats_t stats = {.size = sizeof(stats)};
    check(isgq_comm_get_stats(comm, &stats), "stats");
    return (double)stats.wire_bytes;
}

/* Small integers scaled by a power of two: every sum of them is exact in f32. */
static float value(int of_rank, size_t i) { return (float)((int)((i * 2654435761u + (unsigned)of_rank * 40503u) % 255u) - 127) * 0.0625f; }

static void fill(float *data, size_t count)
{
    for (size_t i = 0; i < count; i++)
        data[i] = value(rank, i);
}

static double exact(size_t i)
{
    double sum = 0;
    for (int r = 0; r < nranks; r++)
        sum += (double)value(r, i);
    return sum;
}

typedef struct phase {
    const char *name, *quantizer, *algorithm;
    double tolerance; /* of one element */
} phase_t;

static void run_phase(const phase_t *phase, float *input, float *output, size_t count)
{
    isgq_quantizer_t quantizer;
    isgq_call_options_t options = {.size = sizeof(options), .algorithm = phase->algorithm};
    check(isgq_quantizer_create(&quantizer, phase->quantizer), phase->quantizer);
    fill(input, count);
    check(isgq_barrier(comm, NULL), "barrier");
    check(isgq_comm_synchronize(comm), "barrier");
    double wire = sent_bytes(), wires = interface_bytes(), start = now();
    check(isgq_allreduce(input, output, count, ISGQ_FLOAT32, ISGQ_SUM, quantizer, comm, NULL, &options), phase->name);
    check(isgq_comm_synchronize(comm), phase->name);
    check(isgq_barrier(comm, NULL), "barrier");
    check(isgq_comm_synchronize(comm), "barrier");
    double seconds = now() - start;
    wire = sent_bytes() - wire;
    wires = interface_bytes() - wires;
    for (size_t i = 0; i < count; i++)
        if (!(fabs((double)output[i] - exact(i)) <= phase->tolerance))
            wrong++;
    printf("%s %.0f %.0f %.6f\n", phase->name, wire, wires, seconds);
    if (fabs(wires - wire) > 0.1 * wire) {
        fprintf(stderr, "rank %d: %s: the library counts %.0f bytes, the interface %.0f\n", rank, phase->name, wire, wires);
        wrong++;
    }
    isgq_quantizer_destroy(quantizer);
}

/* The factored call: factors of small integers are exact in 8-bit codes up to the step, so a coarse bound suffices here; bits are
 * compared between ranks by hash. */
static void run_factored(float *grad)
{
    enum { BATCH = 16, M = 500, N = 300 };
    static float x[BATCH * M], delta[BATCH * N];
    isgq_quantizer_t quantizer;
    uint64_t hash, hashes[64];
    for (size_t i = 0; i < BATCH * M; i++)
        x[i] = fabsf(value(rank, i));
    for (size_t i = 0; i < BATCH * N; i++)
        delta[i] = value(rank + 100, i);
    isgq_factors_t factors = {.size = sizeof(factors), .x = x, .delta = delta, .batch = BATCH, .m = M, .n = N};
    check(isgq_quantizer_create(&quantizer, "isgq:bits=4"), "quantizer");
    check(isgq_allreduce_factored(&factors, BATCH, grad, ISGQ_FLOAT32, ISGQ_AVG, quantizer, comm, NULL, NULL), "factored");
    check(isgq_comm_synchronize(comm), "factored");
    hash = isgqx_hash(grad, M * N * sizeof(float));
    check(isgq_allgather(&hash, hashes, 1, ISGQ_UINT64, NULL, comm, NULL, NULL), "hashes");
    check(isgq_comm_synchronize(comm), "hashes");
    for (int r = 0; r < nranks; r++)
        wrong += hashes[r] != hash;
    isgq_quantizer_destroy(quantizer);
}

/* Exit 0 if the calls end with one line that names rank 1 (on rank 1: anybody else). */
static int run_cut(void)
{
    enum { COUNT = 100000 };
    static float values[COUNT];
    char command[96], name[8];
    isgq_call_options_t options = {.size = sizeof(options), .timeout_ms = 1500};
    isgq_result_t result = ISGQ_SUCCESS;
    double start = now();
    for (int call = 0; call < 5; call++)
        check(isgq_allreduce(values, values, COUNT, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, &options), "allreduce");
    check(isgq_comm_synchronize(comm), "allreduce");
    snprintf(command, sizeof(command), "ip link delete %s", interface_name);
    if (rank == 1 && system(command) != 0)
        return 77;
    while (result == ISGQ_SUCCESS && now() - start < 30) {
        result = isgq_allreduce(values, values, COUNT, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, &options);
        if (result == ISGQ_SUCCESS)
            result = isgq_comm_synchronize(comm);
    }
    const char *text = isgq_get_last_error();
    snprintf(name, sizeof(name), "rank %d", rank == 1 ? 0 : 1);
    bool told = (result == ISGQ_ERR_TIMEOUT || result == ISGQ_ERR_REMOTE) && strchr(text, '\n') == NULL && strstr(text, name) != NULL;
    if (!told || now() - start > 20)
        fprintf(stderr, "rank %d: status %d after %.1f s: \"%s\"\n", rank, (int)result, now() - start, text);
    return !told || now() - start > 20;
}

int main(int argc, char **argv)
{
    static const phase_t phases[] = {
        {"none", "none", "direct", 0},
        {"ring", "none", "ring", 0},
        {"bf16", "bf16", NULL, 4.0},
        {"uniform8", "uniform:bits=8", NULL, 4.0},
        {"uniform4", "uniform:bits=4", NULL, 10.0},
    };
    if (argc != 3) {
        fprintf(stderr, "usage: hosts_rank INTERFACE MEGABYTES | hosts_rank INTERFACE cut\n");
        return 2;
    }
    interface_name = argv[1];
    size_t count = (size_t)(atof(argv[2]) * 262144.0);
    check(isgq_comm_init_env(&comm, NULL), "init");
    check(isgq_comm_user_rank(comm, &rank), "rank");
    check(isgq_comm_count(comm, &nranks), "count");
    if (strcmp(argv[2], "cut") == 0)
        _exit(run_cut()); /* nobody could say goodbye */
    float *input = malloc(count * sizeof(float)), *output = malloc(count * sizeof(float));
    if (input == NULL || output == NULL || nranks > 64)
        return 1;
    for (size_t i = 0; i < sizeof(phases) / sizeof(phases[0]); i++)
        run_phase(&phases[i], input, output, count);
    run_factored(output);
    check(isgq_comm_finalize(comm), "finalize");
    check(isgq_comm_destroy(comm), "destroy");
    free(input);
    free(output);
    if (wrong > 0)
        fprintf(stderr, "rank %d: %d wrong\n", rank, wrong);
    return wrong > 0;
}
