/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_gpu, factored calls: the steps of one rank's call (kernels/cuda/factor_module.h) at a few shapes, and cuBLASLt's
 * product of as many rows of plain 8-bit integers beside ours, which also has weights to carry.
 *
 * A repetition is one step; the factors of the large shapes are larger than any L2. Bytes are those that a step must read and
 * write, each once; operations are two for each row and output. Rows of either factor span two octaves.
 */
#include "codec/factor_device.h"
#include "gpu/bench_cublaslt.h"
#include "gpu/bench_gpu.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { MOST_REPETITIONS = 64 };

typedef struct shape {
    size_t rows, m, n;
    iq_factor_spec_t spec;
} shape_t;

typedef enum step { PREPARE, ENCODE, DECODE, PRODUCT, CUBLASLT } step_t;

static const char *const names[] = {"prepare", "encode", "decode", "product", "cuBLASLt int8"};

typedef struct work {
    iq_factor_call_t shape;
    iq_cuda_factor_call_t call;
    void *x, *delta, *state, *message, *rows, *grad, *integers, *workspace;
    float *peaks;
    uint32_t *fault; /* pinned */
    size_t blob_bytes;
    double product_us, cublas_us; /* medians */
} work_t;

static const iq_cuda_module_t *cuda;
static isgq_stream_t stream;

static void *take(size_t bytes)
{
    void *memory = NULL;
    TRY(cuda->alloc(0, stream, bytes, &memory));
    return memory;
}

/* ---- one shape ---- */

static void *take_factor(size_t rows, size_t columns, unsigned salt)
{
    float *host = malloc(rows * columns * sizeof(float));
    void *memory = take(rows * columns * sizeof(float));
    if (host == NULL)
        bench_die(__FILE__, __LINE__, "malloc", "no memory");
    bench_fill(host, rows * columns, salt);
    for (size_t r = 0; r < rows; r++) {
        float scale = exp2f((float)(r % 16) / 8);
        for (size_t i = 0; i < columns; i++)
            host[r * columns + i] *= scale;
    }
    TRY(cuda->copy(0, stream, memory, host, rows * columns * sizeof(float)));
    TRY_CUDA(cudaStreamSynchronize(stream));
    free(host);
    return memory;
}

static work_t open_work(const shape_t *shape)
{
    work_t work = {.shape = {.datatype = ISGQ_FLOAT32,
                             .nranks = 1,
                             .seed = 1,
                             .call = 1,
                             .max_batch = shape->rows,
                             .m = shape->m,
                             .n = shape->n,
                             .batch = shape->rows}};
    work.call = iq_factor_on_device(&shape->spec, &work.shape, NULL);
    work.x = take_factor(shape->rows, shape->m, 1);
    work.delta = take_factor(shape->rows, shape->n, 2);
    work.state = take(iq_cuda_factor_lay_state(shape->rows, shape->m, shape->n).bytes);
    work.message = take(iq_cuda_factor_message_bytes(shape->rows, work.call.blob_bytes));
    work.rows = take(iq_cuda_factor_lay_rows(&work.call, 1).bytes);
    work.grad = take(shape->m * shape->n * sizeof(float));
    work.integers = take(shape->rows * (shape->m + shape->n));
    work.workspace = take(BENCH_CUBLASLT_WORKSPACE);
    work.peaks = take(2 * sizeof(float));
    TRY_CUDA(cudaMallocHost((void **)&work.fault, sizeof(*work.fault)));
    *work.fault = IQ_CUDA_NO_FAULT;
    TRY(cuda->clear(0, stream, work.integers, shape->rows * (shape->m + shape->n)));
    return work;
}

static void close_work(work_t *work)
{
    void *all[] = {work->x,    work->delta,    work->state,     work->message, work->rows,
                   work->grad, work->integers, work->workspace, work->peaks};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        cuda->release(0, stream, all[i]);
    TRY_CUDA(cudaStreamSynchronize(stream));
    if (*work->fault != IQ_CUDA_NO_FAULT)
        bench_die(__FILE__, __LINE__, "decode", "a message of ours was refused");
    TRY_CUDA(cudaFreeHost(work->fault));
}

static void launch(const work_t *work, step_t step)
{
    const iq_cuda_factor_table_t *factor = cuda->factor;
    const iq_cuda_factor_call_t *call = &work->call;
    iq_cuda_outcome_t grad = {.type = ISGQ_FLOAT32, .data = work->grad, .divisor = 1, .peaks = work->peaks, .peak = 1};
    if (step == PREPARE)
        TRY(factor->prepare(0, stream, call, work->x, work->delta, work->state, work->peaks));
    else if (step == ENCODE)
        TRY(factor->encode(0, stream, call, work->x, work->delta, work->state, work->peaks, work->message));
    else if (step == DECODE)
        TRY(factor->decode(0, stream, call, work->message, 1, work->rows, work->fault));
    else if (step == PRODUCT)
        TRY(factor->multiply(0, stream, call, work->rows, 1, &grad, &grad));
    else if (!bench_cublaslt_run(work->integers, (char *)work->integers + call->batch * call->m, work->grad, work->workspace,
                                 BENCH_CUBLASLT_WORKSPACE, stream))
        bench_die(__FILE__, __LINE__, "cublasLtMatmul", "it fails");
}

/* The blob's bytes, which is what starts says behind the last row. */
static size_t read_blob_bytes(const work_t *work)
{
    uint32_t count = 0, bytes = 0;
    TRY_CUDA(cudaMemcpyAsync(&count, (char *)work->message + iq_cuda_factor_blob_at(work->call.max_batch) + 4, 4,
                             cudaMemcpyDefault, stream));
    TRY_CUDA(cudaStreamSynchronize(stream));
    TRY_CUDA(cudaMemcpyAsync(&bytes, (uint32_t *)work->message + count, 4, cudaMemcpyDefault, stream));
    TRY_CUDA(cudaStreamSynchronize(stream));
    return bytes;
}

static double step_bytes(const work_t *work, step_t step)
{
    const iq_cuda_factor_call_t *call = &work->call;
    double elements = (double)call->batch * (double)(call->m + call->n), outputs = (double)call->m * (double)call->n;
    double sent = (double)(work->blob_bytes + 4 * call->batch);
    switch (step) {
    case PREPARE: return 4 * elements;
    case ENCODE: return 4 * elements + sent;
    case DECODE: return sent + elements; /* a byte for each code at least */
    default: return elements + 4 * outputs;
    }
}

/* ---- output ---- */

static void head(const bench_t *bench)
{
    if (!bench->json)
        printf("\n%-14s %6s %6s %6s %-12s %10s %9s %8s %9s %8s\n", "factors", "rows", "m", "n", "quantizer", "us", "GB/s",
               "of copy", "TOPS", "of Lt");
}

static void put(const bench_t *bench, const work_t *work, step_t step, const char *quantizer, double us)
{
    const iq_cuda_factor_call_t *call = &work->call;
    bool timed = !bench->simulated && !bench->quick && us > 0, multiplies = step >= PRODUCT;
    double gbs = timed ? step_bytes(work, step) / us * 1e-3 : 0;
    double tops = timed && multiplies ? 2.0 * (double)call->batch * (double)call->m * (double)call->n / us * 1e-6 : 0;
    double ratio = !timed                                   ? 0
                   : !multiplies                            ? gbs / bench->copy_gbs
                   : step == PRODUCT && work->cublas_us > 0 ? work->cublas_us / us
                                                            : 0;
    if (bench->json) {
        printf("{\"part\": \"factor\", \"name\": \"%s\", \"rows\": %zu, \"m\": %zu, \"n\": %zu, \"quantizer\": \"%s\"",
               names[step], call->batch, call->m, call->n, quantizer);
        if (timed)
            printf(", \"us\": %.3f, \"gbs\": %.2f", us, gbs);
        if (tops > 0)
            printf(", \"tops\": %.2f", tops);
        if (ratio > 0)
            printf(", \"ratio\": %.4f", ratio);
        puts("}");
        return;
    }
    printf("%-14s %6zu %6zu %6zu %-12s ", names[step], call->batch, call->m, call->n, quantizer);
    if (!timed)
        puts("       ran");
    else if (multiplies)
        printf("%10.2f %9s %8s %9.1f %7.1f%%\n", us, "", "", tops, 100 * ratio);
    else
        printf("%10.2f %9.1f %7.1f%%\n", us, gbs, 100 * ratio);
}

/* ---- rows of the output ---- */

static int ascending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double median_of(const bench_t *bench, const work_t *work, step_t step)
{
    static cudaEvent_t marks[MOST_REPETITIONS + 1];
    float us[MOST_REPETITIONS];
    size_t all = bench->warm + bench->repetitions;
    for (size_t i = 0; i <= MOST_REPETITIONS && marks[MOST_REPETITIONS] == NULL; i++)
        TRY_CUDA(cudaEventCreate(&marks[i]));
    for (size_t i = 0; i < all; i++) {
        TRY_CUDA(cudaEventRecord(marks[i], stream));
        launch(work, step);
    }
    TRY_CUDA(cudaEventRecord(marks[all], stream));
    TRY_CUDA(cudaStreamSynchronize(stream));
    for (size_t i = 0; i < bench->repetitions; i++) {
        TRY_CUDA(cudaEventElapsedTime(&us[i], marks[bench->warm + i], marks[bench->warm + i + 1]));
        us[i] *= 1e3f;
    }
    qsort(us, bench->repetitions, sizeof(*us), ascending);
    return (double)(us[(bench->repetitions - 1) / 2] + us[bench->repetitions / 2]) / 2;
}

static void run_shape(bench_t *bench, const shape_t *shape, const char *quantizer)
{
    const char *why;
    work_t work = open_work(shape);
    bool compared = bench_cublaslt_open(shape->rows, shape->m, shape->n, &why);
    for (step_t step = PREPARE; step <= ENCODE; step++)
        launch(&work, step);
    work.blob_bytes = read_blob_bytes(&work);
    if (compared)
        work.cublas_us = median_of(bench, &work, CUBLASLT);
    for (step_t step = PREPARE; step <= PRODUCT; step++)
        put(bench, &work, step, quantizer, median_of(bench, &work, step));
    if (compared)
        put(bench, &work, CUBLASLT, quantizer, work.cublas_us);
    else if (bench->json)
        printf("{\"part\": \"factor\", \"name\": \"%s\", \"rows\": %zu, \"m\": %zu, \"n\": %zu, \"quantizer\": \"%s\", \"skipped\": \"%s\"}\n",
               names[CUBLASLT], shape->rows, shape->m, shape->n, quantizer, why);
    else
        printf("%-14s skipped: %s\n", names[CUBLASLT], why);
    close_work(&work);
}

void bench_factors(bench_t *bench)
{
    const iq_factor_spec_t narrow = {.width_x = 4, .width_delta = 4}, wide = {.width_x = 8, .width_delta = 8},
                           budget = {.budget_bits = 4};
    const shape_t full[] = {{8192, 4096, 4096, narrow}, {8192, 4096, 4096, wide}, {8192, 4096, 4096, budget},
                            {512, 4096, 4096, narrow},  {512, 784, 1000, narrow}, {512, 784, 1000, budget}};
    static const char *const texts[] = {"width=4/4", "width=8/8", "bits=4", "width=4/4", "width=4/4", "bits=4"};
    cuda = (const iq_cuda_module_t *)iq_module_load("cuda");
    if (cuda == NULL)
        bench_die(__FILE__, __LINE__, "iq_module_load", isgq_get_last_error());
    TRY(cuda->warm_up(0));
    TRY(cuda->stream_create(0, &stream));
    head(bench);
    for (size_t i = 0; i < sizeof(full) / sizeof(full[0]); i++) {
        shape_t shape = full[i];
        if (bench->quick)
            shape = (shape_t){48, 80, 72, shape.spec};
        run_shape(bench, &shape, texts[i]);
    }
    cuda->stream_destroy(0, stream);
}
