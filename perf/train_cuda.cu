/* SPDX-License-Identifier: Apache-2.0 */
/*
 * isgq_train on a GPU: products are cuBLAS's, in fp32, the rest are kernels here. All of it is enqueued on one stream, that of the calls between
 * ranks too.
 *
 * Sums are made in an order that depends on sizes alone, so a run gives the same bits each time. Rounding is the CPU's (no contraction), so that
 * ranks on CPUs and on GPUs would make the same step from the same gradient.
 */
#include <cublas_v2.h>
#include <cuda_runtime.h>

#include "perf/train_ops.h"

#include <stdio.h>

enum { THREADS = 256, WARP = 32, WARPS = THREADS / WARP, CLOCKS = 4 };

static const size_t most_blocks = 4096; /* that a launch has */

static struct {
    iq_train_fail_fn fail;
    cudaStream_t stream;
    cublasHandle_t blas;
    cudaEvent_t begins[CLOCKS], ends[CLOCKS];
    size_t begun, read; /* intervals; number i has events i % CLOCKS */
    double seconds;     /* of those that were read */
} gpu;

static void check(cudaError_t error, const char *function)
{
    char text[256];
    if (error == cudaSuccess)
        return;
    snprintf(text, sizeof(text), "%s: %s (%s)", function, cudaGetErrorString(error), cudaGetErrorName(error));
    gpu.fail(text);
}

static void check(cublasStatus_t status, const char *function)
{
    char text[256];
    if (status == CUBLAS_STATUS_SUCCESS)
        return;
    snprintf(text, sizeof(text), "%s: %s", function, cublasGetStatusString(status));
    gpu.fail(text);
}

#define CALL(function, ...) check(function(__VA_ARGS__), #function)

/* ---- memory, stream, clock ---- */

static void open_gpu(iq_train_fail_fn fail)
{
    gpu.fail = fail;
    CALL(cudaStreamCreateWithFlags, &gpu.stream, cudaStreamNonBlocking);
    CALL(cublasCreate, &gpu.blas);
    CALL(cublasSetStream, gpu.blas, gpu.stream);
    CALL(cublasSetMathMode, gpu.blas, CUBLAS_DEFAULT_MATH); /* no TF32 */
    for (int i = 0; i < CLOCKS; i++) {
        CALL(cudaEventCreate, &gpu.begins[i]);
        CALL(cudaEventCreate, &gpu.ends[i]);
    }
}

static void close_gpu(void)
{
    CALL(cudaStreamSynchronize, gpu.stream);
    for (int i = 0; i < CLOCKS; i++) {
        CALL(cudaEventDestroy, gpu.begins[i]);
        CALL(cudaEventDestroy, gpu.ends[i]);
    }
    CALL(cublasDestroy, gpu.blas);
    CALL(cudaStreamDestroy, gpu.stream);
}

static isgq_stream_t stream(void) { return gpu.stream; }

static void *take(size_t bytes)
{
    void *memory = NULL;
    CALL(cudaMalloc, &memory, bytes);
    CALL(cudaMemsetAsync, memory, 0, bytes, gpu.stream);
    return memory;
}

static void release(void *memory) { CALL(cudaFree, memory); }

static void synchronize(void) { CALL(cudaStreamSynchronize, gpu.stream); }

static void upload(void *to, const void *host, size_t bytes)
{
    CALL(cudaMemcpyAsync, to, host, bytes, cudaMemcpyHostToDevice, gpu.stream);
    synchronize();
}

static void download(void *host, const void *from, size_t bytes)
{
    CALL(cudaMemcpyAsync, host, from, bytes, cudaMemcpyDeviceToHost, gpu.stream);
    synchronize();
}

static void read_clock(void)
{
    float milliseconds = 0;
    size_t i = gpu.read++ % CLOCKS;
    CALL(cudaEventSynchronize, gpu.ends[i]);
    CALL(cudaEventElapsedTime, &milliseconds, gpu.begins[i], gpu.ends[i]);
    gpu.seconds += (double)milliseconds * 1e-3;
}

/* Waits when the GPU is CLOCKS steps behind: the stream's queue must not fill up, because launches by the library's thread, for a call
 * that the stream waits for, could then wait too. */
static void clock_begin(void)
{
    if (gpu.begun - gpu.read == CLOCKS)
        read_clock();
    CALL(cudaEventRecord, gpu.begins[gpu.begun % CLOCKS], gpu.stream);
}

static void clock_end(void)
{
    CALL(cudaEventRecord, gpu.ends[gpu.begun % CLOCKS], gpu.stream);
    gpu.begun++;
}

static double clock_seconds(void)
{
    while (gpu.read < gpu.begun)
        read_clock();
    double read = gpu.seconds;
    gpu.seconds = 0;
    return read;
}

/* ---- launches ---- */

/* Work for so many blocks; kernels stride over what is more than are launched. */
template <typename... Parameters, typename... Arguments>
static void launch(void (*kernel)(Parameters...), const char *name, size_t blocks, Arguments... arguments)
{
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)(blocks < most_blocks ? blocks : most_blocks));
    config.blockDim = dim3(THREADS);
    config.stream = gpu.stream;
    check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), name);
}
#define LAUNCH(kernel, blocks, ...) launch(kernel, #kernel, blocks, __VA_ARGS__)

static size_t blocks_for(size_t count, size_t each) { return (count + each - 1) / each; }

#define FOR_EACH(i, count)                                                                   \
    for (size_t i = (size_t)blockIdx.x * THREADS + threadIdx.x; i < (count); i += (size_t)gridDim.x * THREADS)

/* ---- images ---- */

static __global__ void gather_images(iq_train_set_t set, const uint32_t *order, size_t first, size_t rows, float *x, uint8_t *labels)
{
    for (size_t row = blockIdx.x; row < rows; row += gridDim.x) {
        size_t number = order != NULL ? order[first + row] : first + row;
        const uint8_t *image = set.images + number * set.pixels;
        for (size_t i = threadIdx.x; i < set.pixels; i += THREADS)
            x[row * set.pixels + i] = (float)image[i] * (1.0f / 255.0f);
        if (threadIdx.x == 0)
            labels[row] = set.labels[number];
    }
}

static void batch(const iq_train_set_t *set, const uint32_t *order, size_t first, size_t rows, float *x, uint8_t *labels)
{
    LAUNCH(gather_images, rows, *set, order, first, rows, x, labels);
}

/* ---- layers ---- */

/* Row-major, c[m x n] = a[m x k] * b[k x n]; turned: stored the other way round. For cuBLAS, which is column-major, every matrix is its transpose. */
static void multiply(bool a_turned, bool b_turned, size_t m, size_t n, size_t k, const float *a, const float *b, float *c)
{
    const float one = 1, zero = 0;
    CALL(cublasSgemm, gpu.blas, b_turned ? CUBLAS_OP_T : CUBLAS_OP_N, a_turned ? CUBLAS_OP_T : CUBLAS_OP_N, (int)n, (int)m, (int)k, &one, b,
         (int)(b_turned ? k : n), a, (int)(a_turned ? m : k), &zero, c, (int)n);
}

static __global__ void add_bias(float *y, const float *bias, size_t count, size_t n, bool relu)
{
    FOR_EACH (i, count) {
        float sum = y[i] + bias[i % n];
        y[i] = relu && !(sum > 0.0f) ? 0.0f : sum;
    }
}

static void forward(const iq_train_layer_t *layer, size_t rows, float *y, bool relu)
{
    size_t m = layer->m, n = layer->n, count = rows * n;
    multiply(false, false, rows, n, m, layer->x, layer->weights, y);
    LAUNCH(add_bias, blocks_for(count, THREADS), y, layer->weights + m * n, count, n, relu);
}

static __global__ void pass_back(float *below, const float *x, size_t count)
{
    FOR_EACH (i, count)
        below[i] = x[i] > 0.0f ? below[i] : 0.0f;
}

static void backward(const iq_train_layer_t *layer, size_t rows, float *below)
{
    size_t count = rows * layer->m;
    multiply(false, true, rows, layer->m, layer->n, layer->delta, layer->weights, below);
    LAUNCH(pass_back, blocks_for(count, THREADS), below, layer->x, count);
}

/* A block: 32 columns side by side, whose rows its warps share. */
static __global__ void add_columns(const float *delta, size_t rows, size_t n, float *sums)
{
    __shared__ float parts[WARPS][WARP];
    size_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (size_t first = (size_t)blockIdx.x * WARP; first < n; first += (size_t)gridDim.x * WARP) {
        size_t column = first + lane;
        float sum = 0;
        for (size_t row = warp; column < n && row < rows; row += WARPS)
            sum += delta[row * n + column];
        parts[warp][lane] = sum;
        __syncthreads();
        if (warp == 0 && column < n) {
            for (int i = 1; i < WARPS; i++)
                sum += parts[i][lane];
            sums[column] = sum;
        }
        __syncthreads();
    }
}

static void gradient(const iq_train_layer_t *layer, size_t rows)
{
    size_t m = layer->m, n = layer->n;
    multiply(true, false, m, n, rows, layer->x, layer->delta, layer->grad);
    LAUNCH(add_columns, blocks_for(n, WARP), layer->delta, rows, n, layer->grad + m * n);
}

static __global__ void take_step(float *weights, const float *grad, size_t count, float rate)
{
    FOR_EACH (i, count)
        weights[i] -= rate * grad[i];
}

static void step(float *weights, const float *grad, size_t count, float rate)
{
    LAUNCH(take_step, blocks_for(count, THREADS), weights, grad, count, rate);
}

/* ---- softmax and cross-entropy: a warp for each row ---- */

typedef struct row_facts {
    size_t best;    /* the first of the largest */
    double largest; /* its value */
    double sum;     /* of exponentials relative to it */
} row_facts_t;

static __device__ row_facts_t look_at_row(const float *row, size_t n)
{
    const unsigned everybody = 0xffffffffu;
    unsigned lane = threadIdx.x % WARP, best = 0;
    float largest = row[0];
    double sum = 0;
    for (size_t j = lane; j < n; j += WARP)
        if (row[j] > largest) {
            largest = row[j];
            best = (unsigned)j;
        }
    for (int bits = WARP / 2; bits > 0; bits /= 2) {
        float other = __shfl_xor_sync(everybody, largest, bits);
        unsigned place = __shfl_xor_sync(everybody, best, bits);
        if (other > largest || (other == largest && place < best)) {
            largest = other;
            best = place;
        }
    }
    for (size_t j = lane; j < n; j += WARP)
        sum += exp((double)row[j] - (double)largest);
    for (int bits = WARP / 2; bits > 0; bits /= 2)
        sum += __shfl_xor_sync(everybody, sum, bits);
    return {best, (double)largest, sum};
}

#define FOR_EACH_ROW(i, rows) for (size_t i = (size_t)blockIdx.x * WARPS + threadIdx.x / WARP; i < (rows); i += (size_t)gridDim.x * WARPS)

static __global__ void make_deltas(const float *logits, const uint8_t *labels, size_t rows, size_t n, float scale, float *delta)
{
    FOR_EACH_ROW (i, rows) {
        const float *row = logits + i * n;
        row_facts_t facts = look_at_row(row, n);
        for (size_t j = threadIdx.x % WARP; j < n; j += WARP)
            delta[i * n + j] = scale * (float)(exp((double)row[j] - facts.largest) / facts.sum - (j == labels[i] ? 1.0 : 0.0));
    }
}

static void softmax(const float *logits, const uint8_t *labels, size_t rows, size_t n, float scale, float *delta)
{
    LAUNCH(make_deltas, blocks_for(rows, WARPS), logits, labels, rows, n, scale, delta);
}

static __global__ void score_rows(const float *logits, const uint8_t *labels, size_t rows, size_t n, double *losses, uint8_t *right)
{
    FOR_EACH_ROW (i, rows) {
        const float *row = logits + i * n;
        row_facts_t facts = look_at_row(row, n);
        if (threadIdx.x % WARP == 0) {
            losses[i] = log(facts.sum) - ((double)row[labels[i]] - facts.largest);
            right[i] = facts.best == labels[i];
        }
    }
}

static void score(const float *logits, const uint8_t *labels, size_t rows, size_t n, double *losses, uint8_t *right)
{
    LAUNCH(score_rows, blocks_for(rows, WARPS), logits, labels, rows, n, losses, right);
}

/* In the order of iq_train_ops_t: C++17 knows no names here. */
extern "C" {
extern const iq_train_ops_t iq_module_train_cuda __attribute__((visibility("default")));
const iq_train_ops_t iq_module_train_cuda = {
    IQ_TRAIN_OPS_ABI, ISGQ_DEVICE_CUDA, open_gpu, close_gpu, stream,   take,     release,  upload, download, synchronize,
    clock_begin,      clock_end,        clock_seconds, batch, forward, softmax, backward, gradient, step,   score,
};
}
