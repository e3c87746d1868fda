/* SPDX-License-Identifier: Apache-2.0 */
/*
 * isgq_train on host memory: matrices are row-major, products are iq_train_gemm's, everything is done when it returns.
 */
#include "perf/train_ops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static iq_train_fail_fn fail;
static double began, seconds;

static void open_host(iq_train_fail_fn on_failure) { fail = on_failure; }

static void nothing(void) {}

static isgq_stream_t no_stream(void) { return NULL; }

static void *take(size_t bytes)
{
    void *memory = NULL;

    if (posix_memalign(&memory, 64, bytes + 64) != 0)
        fail("there is not enough memory");
    memset(memory, 0, bytes + 64);
    return memory;
}

static void copy(void *to, const void *from, size_t bytes) { memcpy(to, from, bytes); }

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void clock_begin(void) { began = now(); }

static void clock_end(void) { seconds += now() - began; }

static double clock_seconds(void)
{
    double read = seconds;

    seconds = 0.0;
    return read;
}

static void batch(const iq_train_set_t *set, const uint32_t *order, size_t first, size_t rows, float *x, uint8_t *labels)
{
    for (size_t row = 0; row < rows; row++) {
        size_t number = order != NULL ? order[first + row] : first + row;
        const uint8_t *image = set->images + number * set->pixels;
        float *to = x + row * set->pixels;
        for (size_t i = 0; i < set->pixels; i++)
            to[i] = (float)image[i] * (1.0f / 255.0f);
        labels[row] = set->labels[number];
    }
}

static void forward(const iq_train_layer_t *layer, size_t rows, float *y, bool relu)
{
    size_t m = layer->m, n = layer->n;

    for (size_t row = 0; row < rows; row++)
        memcpy(y + row * n, layer->weights + m * n, n * sizeof(float));
    iq_train_gemm(false, false, rows, n, m, layer->x, layer->weights, 1.0f, y);
    for (size_t i = 0; relu && i < rows * n; i++)
        y[i] = y[i] > 0.0f ? y[i] : 0.0f;
}

/* The largest of a row, and the sum of exponentials relative to it. */
static size_t largest(const float *row, size_t n, double *sum)
{
    size_t best = 0;

    for (size_t j = 1; j < n; j++)
        if (row[j] > row[best])
            best = j;
    *sum = 0.0;
    for (size_t j = 0; j < n; j++)
        *sum += exp((double)row[j] - (double)row[best]);
    return best;
}

static void softmax(const float *logits, const uint8_t *labels, size_t rows, size_t n, float scale, float *delta)
{
    for (size_t i = 0; i < rows; i++) {
        const float *row = logits + i * n;
        double sum;
        size_t best = largest(row, n, &sum);
        for (size_t j = 0; j < n; j++)
            delta[i * n + j] = scale * (float)(exp((double)row[j] - (double)row[best]) / sum - (j == labels[i]));
    }
}

static void backward(const iq_train_layer_t *layer, size_t rows, float *below)
{
    iq_train_gemm(false, true, rows, layer->m, layer->n, layer->delta, layer->weights, 0.0f, below);
    for (size_t i = 0; i < rows * layer->m; i++)
        below[i] = layer->x[i] > 0.0f ? below[i] : 0.0f;
}

static void gradient(const iq_train_layer_t *layer, size_t rows)
{
    size_t m = layer->m, n = layer->n;
    float *bias = layer->grad + m * n;

    iq_train_gemm(true, false, m, n, rows, layer->x, layer->delta, 0.0f, layer->grad);
    memset(bias, 0, n * sizeof(float));
    for (size_t row = 0; row < rows; row++)
        for (size_t j = 0; j < n; j++)
            bias[j] += layer->delta[row * n + j];
}

static void step(float *weights, const float *grad, size_t count, float rate)
{
    for (size_t i = 0; i < count; i++)
        weights[i] -= rate * grad[i];
}

static void score(const float *logits, const uint8_t *labels, size_t rows, size_t n, double *losses, uint8_t *right)
{
    for (size_t i = 0; i < rows; i++) {
        const float *row = logits + i * n;
        double sum;
        size_t best = largest(row, n, &sum);
        losses[i] = log(sum) - ((double)row[labels[i]] - (double)row[best]);
        right[i] = best == labels[i];
    }
}

const iq_train_ops_t iq_train_ops_host = {
    .abi = IQ_TRAIN_OPS_ABI,
    .device_type = ISGQ_DEVICE_HOST,
    .open = open_host,
    .close = nothing,
    .stream = no_stream,
    .alloc = take,
    .release = free,
    .upload = copy,
    .download = copy,
    .synchronize = nothing,
    .clock_begin = clock_begin,
    .clock_end = clock_end,
    .clock_seconds = clock_seconds,
    .batch = batch,
    .forward = forward,
    .softmax = softmax,
    .backward = backward,
    .gradient = gradient,
    .step = step,
    .score = score,
};
