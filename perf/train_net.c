/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A fully connected network with ReLU and softmax cross-entropy; all matrices are row-major, all products are cblas_sgemm.
 */
#include "perf/train.h"
#include "tools/common/options.h"

#include <cblas.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static float *floats(size_t count)
{
    void *memory = NULL;

    if (posix_memalign(&memory, 64, (count + 16) * sizeof(float)) != 0)
        iq_die(IQ_EXIT_FAILED, "no memory for %zu floats", count);
    memset(memory, 0, (count + 16) * sizeof(float));
    return memory;
}

void iq_train_net_open(iq_train_net_t *net, const size_t *sizes, size_t nlayers, size_t max_rows)
{
    size_t units = 0, deltas = 0, at = 0;

    *net = (iq_train_net_t){.nlayers = nlayers, .max_rows = max_rows};
    for (size_t l = 0; l < nlayers; l++) {
        net->parameters += (sizes[l] + 1) * sizes[l + 1];
        units += sizes[l];
        deltas += sizes[l + 1];
    }
    net->weights = floats(net->parameters);
    net->grad = floats(net->parameters);
    net->activations = floats(max_rows * units);
    net->deltas = floats(max_rows * deltas);
    net->output = floats(max_rows * sizes[nlayers]);
    units = deltas = 0;
    for (size_t l = 0; l < nlayers; l++) {
        net->layers[l] = (iq_train_layer_t){.m = sizes[l],
                                            .n = sizes[l + 1],
                                            .weights = net->weights + at,
                                            .grad = net->grad + at,
                                            .x = net->activations + max_rows * units,
                                            .delta = net->deltas + max_rows * deltas};
        at += (sizes[l] + 1) * sizes[l + 1];
        units += sizes[l];
        deltas += sizes[l + 1];
    }
}

void iq_train_net_close(iq_train_net_t *net)
{
    free(net->weights);
    free(net->grad);
    free(net->activations);
    free(net->deltas);
    free(net->output);
}

/* Box and Muller. */
static double normal(uint64_t key, uint64_t counter)
{
    double u = ((double)(iq_train_random(key, 2 * counter) >> 11) + 0.5) * 0x1p-53;
    double v = (double)(iq_train_random(key, 2 * counter + 1) >> 11) * 0x1p-53;

    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}

void iq_train_net_init(iq_train_net_t *net, uint64_t seed)
{
    for (size_t l = 0; l < net->nlayers; l++) {
        iq_train_layer_t *layer = &net->layers[l];
        uint64_t key = iq_train_random(seed, 0xe1 + l);
        double deviation = sqrt(2.0 / (double)layer->m);
        for (size_t i = 0; i < layer->m * layer->n; i++)
            layer->weights[i] = (float)(deviation * normal(key, i));
        memset(layer->weights + layer->m * layer->n, 0, layer->n * sizeof(float));
    }
}

static float *output_of(const iq_train_net_t *net, size_t l) { return l + 1 < net->nlayers ? net->layers[l + 1].x : net->output; }

void iq_train_net_forward(iq_train_net_t *net, size_t rows)
{
    for (size_t l = 0; l < net->nlayers; l++) {
        const iq_train_layer_t *layer = &net->layers[l];
        size_t m = layer->m, n = layer->n;
        float *y = output_of(net, l);
        for (size_t row = 0; row < rows; row++)
            memcpy(y + row * n, layer->weights + m * n, n * sizeof(float));
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)rows, (int)n, (int)m, 1.0f, layer->x, (int)m, layer->weights,
                    (int)n, 1.0f, y, (int)n);
        for (size_t i = 0; l + 1 < net->nlayers && i < rows * n; i++)
            y[i] = y[i] > 0.0f ? y[i] : 0.0f;
    }
}

/* Largest of a row, and the sum of exponentials relative to it. */
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

double iq_train_net_loss(const iq_train_net_t *net, size_t rows, const uint8_t *labels, size_t *correct)
{
    size_t n = net->layers[net->nlayers - 1].n;
    double loss = 0.0;

    *correct = 0;
    for (size_t i = 0; i < rows; i++) {
        const float *row = net->output + i * n;
        double sum;
        size_t best = largest(row, n, &sum);
        *correct += best == labels[i];
        loss += log(sum) - ((double)row[labels[i]] - (double)row[best]);
    }
    return loss;
}

void iq_train_net_backward(iq_train_net_t *net, size_t rows, const uint8_t *labels, float scale)
{
    iq_train_layer_t *last = &net->layers[net->nlayers - 1];

    for (size_t i = 0; i < rows; i++) {
        const float *row = net->output + i * last->n;
        float *delta = last->delta + i * last->n;
        double sum;
        size_t best = largest(row, last->n, &sum);
        for (size_t j = 0; j < last->n; j++)
            delta[j] = scale * (float)(exp((double)row[j] - (double)row[best]) / sum - (j == labels[i]));
    }
    for (size_t l = net->nlayers - 1; l > 0; l--) {
        const iq_train_layer_t *layer = &net->layers[l];
        size_t m = layer->m, n = layer->n;
        float *below = net->layers[l - 1].delta;
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)rows, (int)m, (int)n, 1.0f, layer->delta, (int)n,
                    layer->weights, (int)n, 0.0f, below, (int)m);
        for (size_t i = 0; i < rows * m; i++)
            below[i] = layer->x[i] > 0.0f ? below[i] : 0.0f;
    }
}

void iq_train_net_gradient(const iq_train_layer_t *layer, size_t rows, float *grad)
{
    size_t m = layer->m, n = layer->n;
    float *bias = grad + m * n;

    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)m, (int)n, (int)rows, 1.0f, layer->x, (int)m, layer->delta, (int)n,
                0.0f, grad, (int)n);
    memset(bias, 0, n * sizeof(float));
    for (size_t row = 0; row < rows; row++)
        for (size_t j = 0; j < n; j++)
            bias[j] += layer->delta[row * n + j];
}

void iq_train_net_step(iq_train_net_t *net, float rate)
{
    for (size_t i = 0; i < net->parameters; i++)
        net->weights[i] -= rate * net->grad[i];
}
