/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Train a 784-128-10 network on Fashion-MNIST, every rank on images of its own. What travels is never a gradient: a rank hands over the
 * inputs of a layer and the gradients of its outputs, and gets the gradient back, averaged over all ranks.
 *
 * usage: train_factored [IMAGES]      of 60000, in /usr/share/datasets/fashion-mnist (Debian: dataset-fashion-mnist)
 */
#define _POSIX_C_SOURCE 200809L
#include <isgqcoll.h>

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FOLDER "/usr/share/datasets/fashion-mnist/"
enum { PIXELS = 784, HIDDEN = 128, CLASSES = 10, ROWS = 32, EPOCHS = 4 };
static const float rate = 0.1f;

typedef struct layer {
    size_t m, n;
    float *weights, *bias;           /* [m x n], [n] */
    float *gradient, *bias_gradient; /* the same, averaged over all ranks */
    float x[ROWS * PIXELS];          /* [ROWS x m] what went in */
    float y[ROWS * HIDDEN];          /* [ROWS x n] what came out; on the way back, its gradient */
} layer_t;

static void check(isgq_result_t result)
{
    if (result == ISGQ_SUCCESS)
        return;
    fprintf(stderr, "%s: %s\n", isgq_get_error_string(result), isgq_get_last_error());
    exit(1);
}

static void *allocate(size_t bytes)
{
    void *memory = calloc(bytes, 1);
    if (memory == NULL)
        exit(1);
    return memory;
}

/* The first `bytes` bytes behind the header of a compressed file. */
static uint8_t *load(const char *name, size_t header, size_t bytes)
{
    char command[256];
    uint8_t *data = allocate(header + bytes);

    snprintf(command, sizeof(command), "gzip -dc " FOLDER "%s", name);
    FILE *file = popen(command, "r");
    if (file == NULL || fread(data, 1, header + bytes, file) != header + bytes) {
        fprintf(stderr, "cannot read %s%s\n", FOLDER, name);
        exit(1);
    }
    pclose(file);
    return memmove(data, data + header, bytes);
}

static layer_t *make_layer(size_t m, size_t n, isgq_comm_t comm)
{
    layer_t *layer = allocate(sizeof(*layer));
    layer->m = m;
    layer->n = n;
    layer->weights = allocate(m * n * sizeof(float));
    layer->gradient = allocate(m * n * sizeof(float));
    layer->bias = allocate(n * sizeof(float));
    layer->bias_gradient = allocate(n * sizeof(float));
    for (size_t i = 0; i < m * n; i++)
        layer->weights[i] = ((float)rand() / (float)RAND_MAX - 0.5f) * 2.0f * sqrtf(3.0f / (float)m);
    check(isgq_broadcast(layer->weights, layer->weights, m * n, ISGQ_FLOAT32, 0, comm, NULL)); /* all start from rank 0's */
    check(isgq_comm_synchronize(comm));
    return layer;
}

static void forward(layer_t *layer)
{
    for (size_t row = 0; row < ROWS; row++) {
        float *y = layer->y + row * layer->n;
        memcpy(y, layer->bias, layer->n * sizeof(float));
        for (size_t i = 0; i < layer->m; i++)
            for (size_t j = 0; j < layer->n; j++)
                y[j] += layer->x[row * layer->m + i] * layer->weights[i * layer->n + j];
    }
}

/* Turns outputs into their gradient and returns the sum of the rows' losses: softmax and cross-entropy. */
static double losses(layer_t *layer, const uint8_t *labels)
{
    double sum = 0.0;
    for (size_t row = 0; row < ROWS; row++) {
        float *y = layer->y + row * layer->n, total = 0.0f;
        for (size_t j = 0; j < layer->n; j++)
            total += y[j] = expf(y[j]);
        sum -= log((double)(y[labels[row]] / total));
        for (size_t j = 0; j < layer->n; j++)
            y[j] = (y[j] / total - (labels[row] == j ? 1.0f : 0.0f)) / (float)ROWS;
    }
    return sum;
}

/* The gradient of the outputs below, through the weights and the ReLU between. */
static void backward(const layer_t *layer, layer_t *below)
{
    for (size_t row = 0; row < ROWS; row++)
        for (size_t i = 0; i < layer->m; i++) {
            float sum = 0.0f;
            for (size_t j = 0; j < layer->n; j++)
                sum += layer->y[row * layer->n + j] * layer->weights[i * layer->n + j];
            below->y[row * below->n + i] = layer->x[row * layer->m + i] > 0.0f ? sum : 0.0f;
        }
}

/* The exchange: two thin factors instead of an [m x n] gradient. */
static void exchange(layer_t *layer, isgq_quantizer_t quantizer, isgq_comm_t comm)
{
    isgq_factors_t factors = {.size = sizeof(factors),
                              .x = layer->x,
                              .delta = layer->y,
                              .batch = ROWS,
                              .m = layer->m,
                              .n = layer->n,
                              .bias = layer->bias_gradient};
    check(isgq_allreduce_factored(&factors, ROWS, layer->gradient, ISGQ_FLOAT32, ISGQ_AVG, quantizer, comm, NULL, NULL));
}

static void descend(layer_t *layer)
{
    for (size_t i = 0; i < layer->m * layer->n; i++)
        layer->weights[i] -= rate * layer->gradient[i];
    for (size_t j = 0; j < layer->n; j++)
        layer->bias[j] -= rate * layer->bias_gradient[j];
}

static double step(layer_t *first, layer_t *second, const uint8_t *images, const uint8_t *labels, isgq_quantizer_t quantizer,
                   isgq_comm_t comm)
{
    for (size_t i = 0; i < ROWS * PIXELS; i++)
        first->x[i] = (float)images[i] / 255.0f;
    forward(first);
    for (size_t i = 0; i < ROWS * HIDDEN; i++)
        second->x[i] = fmaxf(first->y[i], 0.0f);
    forward(second);
    double loss = losses(second, labels);
    exchange(second, quantizer, comm); /* travels while we go on: only reads what it was given */
    backward(second, first);
    exchange(first, quantizer, comm);
    check(isgq_comm_synchronize(comm));
    descend(second);
    descend(first);
    return loss;
}

/* All ranks have the same weights, to the last bit. */
static int ranks_agree(const layer_t *layer, isgq_comm_t comm)
{
    uint32_t hash = 2166136261u, least, most;
    const uint8_t *bytes = (const uint8_t *)layer->weights;
    for (size_t i = 0; i < layer->m * layer->n * sizeof(float); i++)
        hash = (hash ^ bytes[i]) * 16777619u;
    check(isgq_allreduce(&hash, &least, 1, ISGQ_UINT32, ISGQ_MIN, NULL, comm, NULL, NULL));
    check(isgq_allreduce(&hash, &most, 1, ISGQ_UINT32, ISGQ_MAX, NULL, comm, NULL, NULL));
    check(isgq_comm_synchronize(comm));
    return least == most;
}

int main(int argc, char **argv)
{
    size_t images = argc > 1 ? strtoul(argv[1], NULL, 10) : 6000;
    isgq_comm_t comm;
    isgq_quantizer_t quantizer;
    isgq_stats_t stats = {.size = sizeof(stats)};
    int rank, nranks;

    check(isgq_comm_init_env(&comm, NULL));
    check(isgq_comm_user_rank(comm, &rank));
    check(isgq_comm_count(comm, &nranks));
    check(isgq_quantizer_create(&quantizer, "isgq:bits=4"));
    size_t steps = images / (ROWS * (size_t)nranks),
           own = (size_t)rank * steps * ROWS; /* every rank has its part of the images */
    uint8_t *pixels = load("train-images-idx3-ubyte.gz", 16, images * PIXELS),
            *labels = load("train-labels-idx1-ubyte.gz", 8, images);
    layer_t *first = make_layer(PIXELS, HIDDEN, comm), *second = make_layer(HIDDEN, CLASSES, comm);

    double loss = 0.0, first_loss = 0.0;
    check(isgq_comm_reset_stats(comm));
    for (int epoch = 0; epoch < EPOCHS; epoch++) {
        loss = 0.0;
        for (size_t i = own; i < own + steps * ROWS; i += ROWS)
            loss += step(first, second, pixels + i * PIXELS, labels + i, quantizer, comm) / (double)(steps * ROWS);
        check(isgq_allreduce(&loss, &loss, 1, ISGQ_FLOAT64, ISGQ_AVG, NULL, comm, NULL, NULL));
        check(isgq_comm_synchronize(comm));
        first_loss = epoch == 0 ? loss : first_loss;
        if (rank == 0)
            printf("epoch %d: loss %.3f\n", epoch + 1, loss);
    }
    check(isgq_comm_get_stats(comm, &stats));
    double ring = 2.0 * (nranks - 1) / nranks * sizeof(float) * (PIXELS * HIDDEN + HIDDEN * CLASSES) * (double)steps * EPOCHS;
    int agree = ranks_agree(first, comm) && ranks_agree(second, comm);
    if (rank == 0)
        printf("%.2f MB sent; gradients in an exact fp32 ring: %.2f MB; ranks %s\n", (double)stats.wire_bytes * 1e-6, ring * 1e-6,
               agree ? "agree" : "differ");
    isgq_quantizer_destroy(quantizer);
    check(isgq_comm_finalize(comm));
    check(isgq_comm_destroy(comm));
    return agree && loss < first_loss ? 0 : 1;
}
