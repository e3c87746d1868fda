/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Running one case: buffers, timed iterations, then one more that is checked.
 *
 * An iteration is: refill the input, barrier, clock, call, wait, clock. Its time is that of the slowest rank. Calls work on host
 * or device memory alike: everything else here reaches their buffers by iq_perf_copy only.
 */
#include "perf/low_rank.h"
#include "perf/perf.h"
#include "tools/common/options.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ALIGNMENT = 64, FILL_BLOCK = 4096 };

/* A buffer that may be misaligned on purpose. */
typedef struct buffer {
    char *memory, *data;
    size_t bytes;
} buffer_t;

typedef struct bench {
    const iq_perf_setup_t *setup;
    const iq_perf_case_t *test;
    buffer_t pristine, input, output;     /* dense; factored: grad is the output */
    buffer_t pristine_delta, delta, bias; /* factored: input is x */
    char *send, *receive;                 /* the call's arguments */
    size_t send_bytes, receive_bytes;
    isgq_tensor_t tensor; /* of quantizers that need one, or NULL */
} bench_t;

double iq_perf_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

void iq_perf_synchronize(const iq_perf_setup_t *setup, const char *what)
{
    iq_check(isgq_comm_synchronize(setup->comm), setup->rank, what);
}

void iq_perf_barrier(const iq_perf_setup_t *setup)
{
    iq_check(isgq_barrier(setup->comm, NULL), setup->rank, "barrier");
    iq_perf_synchronize(setup, "barrier");
}

void iq_perf_copy(const iq_perf_setup_t *setup, void *to, const void *from, size_t bytes)
{
    iq_check(isgqx_copy(setup->comm, to, from, bytes), setup->rank, "copying");
}

void *iq_perf_memory(const iq_perf_setup_t *setup, size_t bytes)
{
    void *memory = NULL;

    iq_check(isgq_mem_alloc(&memory, setup->comm, bytes), setup->rank, "isgq_mem_alloc");
    return memory;
}

/* What a call exchanges for the program itself: `host`, or memory of the device that stands for it. */
static char *stage(const iq_perf_setup_t *setup, void *host, size_t bytes)
{
    return setup->device ? iq_perf_memory(setup, bytes) : host;
}

static void unstage(const iq_perf_setup_t *setup, char *staged, void *host, size_t bytes)
{
    if (!setup->device)
        return;
    iq_perf_copy(setup, host, staged, bytes);
    iq_check(isgq_mem_free(staged, setup->comm), setup->rank, "isgq_mem_free");
}

void iq_perf_gather(const iq_perf_setup_t *setup, isgq_data_type_t type, const void *own, size_t count, void *all)
{
    size_t bytes = count * sizeof(uint64_t), total = bytes * (size_t)setup->nranks;
    char *to = stage(setup, all, total), *from = to + bytes * (size_t)setup->rank;

    iq_perf_copy(setup, from, own, bytes);
    iq_check(isgq_allgather(from, to, count, type, setup->none, setup->comm, NULL, NULL), setup->rank, "gathering results");
    iq_perf_synchronize(setup, "gathering results");
    unstage(setup, to, all, total);
}

void iq_perf_combine(const iq_perf_setup_t *setup, isgq_red_op_t op, double *values, size_t count)
{
    size_t bytes = count * sizeof(double);
    void *staged = stage(setup, values, bytes);

    if (setup->device)
        iq_perf_copy(setup, staged, values, bytes);
    iq_check(isgq_allreduce(staged, staged, count, ISGQ_FLOAT64, op, setup->none, setup->comm, NULL, NULL), setup->rank,
             "combining results");
    iq_perf_synchronize(setup, "combining results");
    unstage(setup, staged, values, bytes);
}

/* ---- buffers ---- */

/* Inputs to refill from lie where calls work too, but are never the library's memory on hosts. */
static bool is_library_memory(const iq_perf_setup_t *setup, bool may_share)
{
    return setup->device || (setup->library_memory && may_share);
}

static void buffer_open(const iq_perf_setup_t *setup, buffer_t *buffer, size_t bytes, bool may_share)
{
    size_t room = bytes + setup->misalign + 1;
    void *memory = NULL;

    if (is_library_memory(setup, may_share))
        memory = iq_perf_memory(setup, room);
    else if (posix_memalign(&memory, ALIGNMENT, room) != 0)
        iq_die(IQ_EXIT_FAILED, "rank %d: no memory for %zu bytes", setup->rank, room);
    *buffer = (buffer_t){.memory = memory, .data = (char *)memory + setup->misalign, .bytes = bytes};
}

static void buffer_close(const iq_perf_setup_t *setup, buffer_t *buffer, bool may_share)
{
    if (is_library_memory(setup, may_share))
        isgq_mem_free(buffer->memory, setup->comm);
    else
        free(buffer->memory);
}

/* Host memory of the size of a buffer, full of ones, and so is the buffer from now on. */
static char *mirror_of(const iq_perf_setup_t *setup, const buffer_t *buffer)
{
    void *mirror = NULL;

    if (posix_memalign(&mirror, ALIGNMENT, buffer->bytes + 1) != 0)
        iq_die(IQ_EXIT_FAILED, "rank %d: no memory for %zu bytes", setup->rank, buffer->bytes);
    memset(mirror, 0xff, buffer->bytes + 1);
    iq_perf_copy(setup, buffer->data, mirror, buffer->bytes);
    return mirror;
}

static void put_values(const iq_perf_setup_t *setup, const iq_type_name_t *type, const double *values, size_t count, char *to)
{
    _Alignas(ALIGNMENT) char elements[FILL_BLOCK * sizeof(double)];

    for (size_t first = 0; first < count; first += FILL_BLOCK) {
        size_t block = count - first < FILL_BLOCK ? count - first : FILL_BLOCK;
        iq_perf_store(type->type, values + first, block, elements);
        iq_perf_copy(setup, to + first * type->bytes, elements, block * type->bytes);
    }
}

static void fill_dense(const iq_perf_setup_t *setup, const iq_perf_case_t *test, char *to, size_t count)
{
    iq_perf_source_t source = iq_perf_case_source(setup, test);
    double values[FILL_BLOCK];

    for (size_t first = 0; first < count; first += FILL_BLOCK) {
        size_t block = count - first < FILL_BLOCK ? count - first : FILL_BLOCK;
        iq_perf_values(&source, setup->rank, first, block, values);
        put_values(setup, test->type, values, block, to + first * test->type->bytes);
    }
}

static void open_tensor(bench_t *bench)
{
    const iq_perf_case_t *test = bench->test;
    size_t rows, columns;
    unsigned rank;

    if (test->collective != IQ_PERF_ALLREDUCE || !iq_low_rank(test->quantizer_text, &rank))
        return;
    iq_low_rank_shape(test->count, &rows, &columns);
    iq_check(isgq_tensor_create(&bench->tensor, "isgq_perf", test->count), bench->setup->rank, "isgq_tensor_create");
    iq_check(isgq_tensor_shape(bench->tensor, rows, columns), bench->setup->rank, "isgq_tensor_shape");
}

static void open_dense(bench_t *bench)
{
    const iq_perf_setup_t *setup = bench->setup;
    const iq_perf_case_t *test = bench->test;
    size_t part = test->count * test->type->bytes, whole = part * (size_t)setup->nranks, own = part * (size_t)setup->rank;

    bench->send_bytes = test->collective == IQ_PERF_REDUCE_SCATTER ? whole : part;
    bench->receive_bytes = test->collective == IQ_PERF_ALLGATHER ? whole : part;
    buffer_open(setup, &bench->pristine, bench->send_bytes, false);
    buffer_open(setup, &bench->output,
                setup->in_place && bench->send_bytes > bench->receive_bytes ? bench->send_bytes : bench->receive_bytes, true);
    bench->send = bench->receive = bench->output.data;
    if (!setup->in_place) {
        buffer_open(setup, &bench->input, bench->send_bytes, true);
        bench->send = bench->input.data;
    } else if (test->collective == IQ_PERF_REDUCE_SCATTER) {
        bench->receive += own;
    } else if (test->collective == IQ_PERF_ALLGATHER) {
        bench->send += own;
    }
    fill_dense(setup, test, bench->pristine.data, bench->send_bytes / test->type->bytes);
    open_tensor(bench);
}

static void fill_factors(bench_t *bench)
{
    const iq_perf_case_t *test = bench->test;
    size_t nx = test->rows * test->m, ndelta = test->rows * test->n;
    double *values = malloc((nx + ndelta + 1) * sizeof(double));

    if (values == NULL)
        iq_die(IQ_EXIT_FAILED, "rank %d: no memory for %zu doubles", bench->setup->rank, nx + ndelta);
    iq_perf_factors(bench->setup, test, bench->setup->rank, values, values + nx);
    put_values(bench->setup, test->type, values, nx, bench->pristine.data);
    put_values(bench->setup, test->type, values + nx, ndelta, bench->pristine_delta.data);
    free(values);
}

static void open_factored(bench_t *bench)
{
    const iq_perf_setup_t *setup = bench->setup;
    const iq_perf_case_t *test = bench->test;
    size_t x_bytes = test->rows * test->m * test->type->bytes, delta_bytes = test->rows * test->n * test->type->bytes;

    bench->send_bytes = x_bytes;
    bench->receive_bytes = test->m * test->n * test->type->bytes;
    buffer_open(setup, &bench->pristine, x_bytes, false);
    buffer_open(setup, &bench->pristine_delta, delta_bytes, false);
    buffer_open(setup, &bench->input, x_bytes, true);
    buffer_open(setup, &bench->delta, delta_bytes, true);
    buffer_open(setup, &bench->output, bench->receive_bytes, true);
    buffer_open(setup, &bench->bias, test->n * test->type->bytes, true);
    bench->send = bench->input.data;
    bench->receive = bench->output.data;
    fill_factors(bench);
}

static void close_bench(bench_t *bench)
{
    isgq_tensor_destroy(bench->tensor);
    buffer_close(bench->setup, &bench->pristine, false);
    buffer_close(bench->setup, &bench->pristine_delta, false);
    buffer_close(bench->setup, &bench->input, true);
    buffer_close(bench->setup, &bench->delta, true);
    buffer_close(bench->setup, &bench->output, true);
    buffer_close(bench->setup, &bench->bias, true);
}

static void refill(bench_t *bench)
{
    iq_perf_copy(bench->setup, bench->send, bench->pristine.data, bench->send_bytes);
    if (bench->delta.data != NULL)
        iq_perf_copy(bench->setup, bench->delta.data, bench->pristine_delta.data, bench->delta.bytes);
}

static isgq_result_t call(bench_t *bench)
{
    const iq_perf_setup_t *setup = bench->setup;
    const iq_perf_case_t *test = bench->test;
    isgq_data_type_t type = test->type->type;
    isgq_call_options_t options = {.size = sizeof(options), .tensor = bench->tensor, .algorithm = test->algorithm};
    isgq_factors_t factors = {.size = sizeof(factors),
                              .x = bench->send,
                              .delta = bench->delta.data,
                              .batch = test->rows,
                              .m = test->m,
                              .n = test->n,
                              .bias = setup->bias ? bench->bias.data : NULL};

    switch (test->collective) {
    case IQ_PERF_ALLREDUCE:
        return isgq_allreduce(bench->send, bench->receive, test->count, type, test->op, test->quantizer, setup->comm, NULL,
                              &options);
    case IQ_PERF_FACTORED:
        return isgq_allreduce_factored(&factors, test->rows, bench->receive, type, test->op, test->quantizer, setup->comm, NULL,
                                       &options);
    case IQ_PERF_REDUCE_SCATTER:
        return isgq_reduce_scatter(bench->send, bench->receive, test->count, type, test->op, test->quantizer, setup->comm, NULL,
                                   &options);
    case IQ_PERF_ALLGATHER:
        return isgq_allgather(bench->send, bench->receive, test->count, type, test->quantizer, setup->comm, NULL, &options);
    default: return isgq_broadcast(bench->send, bench->receive, test->count, type, setup->root, setup->comm, NULL);
    }
}

/* One iteration; *seconds is this rank's time of one call. */
static isgq_result_t iterate(bench_t *bench, size_t calls, double *seconds)
{
    refill(bench);
    iq_perf_barrier(bench->setup);
    double start = iq_perf_now();
    for (size_t i = 0; i < calls; i++) {
        isgq_result_t result = call(bench);
        if (result != ISGQ_SUCCESS)
            return result;
        iq_perf_synchronize(bench->setup, iq_perf_collective_names[bench->test->collective]);
    }
    *seconds = (iq_perf_now() - start) / (double)calls;
    return ISGQ_SUCCESS;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static isgq_result_t measure(bench_t *bench, iq_perf_result_t *result)
{
    const iq_perf_setup_t *setup = bench->setup;
    size_t iterations = setup->iterations;
    double *seconds = malloc(iterations * sizeof(double)), ignored;
    isgq_result_t status = ISGQ_SUCCESS;

    if (seconds == NULL)
        iq_die(IQ_EXIT_FAILED, "rank %d: out of memory", setup->rank);
    for (size_t i = 0; i < setup->warmup && status == ISGQ_SUCCESS; i++)
        status = iterate(bench, 1, &ignored);
    for (size_t i = 0; i < iterations && status == ISGQ_SUCCESS; i++)
        status = iterate(bench, setup->calls, &seconds[i]);
    if (status == ISGQ_SUCCESS) {
        iq_perf_combine(setup, ISGQ_MAX, seconds, iterations);
        qsort(seconds, iterations, sizeof(double), ascending);
        result->time_us = 0.5e6 * (seconds[(iterations - 1) / 2] + seconds[iterations / 2]);
        result->p99_us = 1e6 * seconds[(iterations * 99 + 99) / 100 - 1];
    }
    free(seconds);
    return status;
}

/* What was delivered, in host memory; bias: NULL if there is none. */
static void compare_hashes(bench_t *bench, const char *delivered, const char *bias, iq_perf_result_t *result)
{
    const iq_perf_setup_t *setup = bench->setup;
    size_t nranks = (size_t)setup->nranks;
    uint64_t own[2] = {isgqx_hash(delivered, bench->receive_bytes), result->record.wire_bytes};
    uint64_t *all = malloc(2 * nranks * sizeof(uint64_t)), hashes[2] = {0};

    if (all == NULL)
        iq_die(IQ_EXIT_FAILED, "rank %d: out of memory", setup->rank);
    if (bias != NULL) {
        hashes[0] = own[0];
        hashes[1] = isgqx_hash(bias, bench->bias.bytes);
        own[0] = isgqx_hash(hashes, sizeof(hashes));
    }
    iq_perf_gather(setup, ISGQ_UINT64, own, 2, all);
    result->hash = all[0];
    for (size_t rank = 0; rank < nranks; rank++) {
        result->hashes_differ |= all[2 * rank] != all[0];
        result->wire_bytes = all[2 * rank + 1] > result->wire_bytes ? all[2 * rank + 1] : result->wire_bytes;
    }
    if (bench->test->collective == IQ_PERF_REDUCE_SCATTER) { /* ranks hold different parts: the hash of their hashes */
        result->hashes_differ = false;
        for (size_t rank = 0; rank < nranks; rank++)
            all[rank] = all[2 * rank];
        result->hash = isgqx_hash(all, nranks * sizeof(uint64_t));
    }
    free(all);
}

/* One more call into outputs full of ones, then the check of what it delivered. */
static isgq_result_t verify(bench_t *bench, iq_perf_result_t *result)
{
    const iq_perf_setup_t *setup = bench->setup;
    bool has_bias = bench->test->collective == IQ_PERF_FACTORED && setup->bias;
    char *output = mirror_of(setup, &bench->output), *bias = has_bias ? mirror_of(setup, &bench->bias) : NULL;
    const char *delivered = output + (bench->receive - bench->output.data);
    double ignored;

    if (bench->tensor != NULL) /* what is checked owes nothing to earlier calls */
        iq_check(isgq_tensor_reset(bench->tensor), setup->rank, "isgq_tensor_reset");
    isgq_result_t status = iterate(bench, 1, &ignored);
    if (status == ISGQ_SUCCESS) {
        result->record.size = sizeof(result->record);
        iq_check(isgqx_last_call(setup->comm, &result->record), setup->rank, "isgqx_last_call");
        iq_perf_copy(setup, output, bench->output.data, bench->output.bytes);
        if (has_bias)
            iq_perf_copy(setup, bias, bench->bias.data, bench->bias.bytes);
        compare_hashes(bench, delivered, bias, result);
        if (bench->test->collective == IQ_PERF_FACTORED)
            iq_perf_check_factored(setup, bench->test, delivered, bias, result);
        else if (!iq_perf_check_low_rank(setup, bench->test, delivered, result))
            iq_perf_check(setup, bench->test, delivered, result);
    }
    free(output);
    free(bias);
    return status;
}

isgq_result_t iq_perf_run(const iq_perf_setup_t *setup, const iq_perf_case_t *test, iq_perf_result_t *result)
{
    bench_t bench = {.setup = setup, .test = test};

    *result = (iq_perf_result_t){0};
    if (test->collective == IQ_PERF_FACTORED)
        open_factored(&bench);
    else
        open_dense(&bench);
    isgq_result_t status = measure(&bench, result);
    if (status == ISGQ_SUCCESS)
        status = verify(&bench, result);
    close_bench(&bench);
    return status;
}
