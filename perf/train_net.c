/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A fully connected network with ReLU and softmax cross-entropy: what lies where, and which operations follow each other. The operations themselves
 * are a table's (train_ops.h).
 */
#include "perf/train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static float *floats(const iq_train_net_t *net, size_t count) { return net->ops->alloc(count * sizeof(float)); }

void iq_train_net_open(iq_train_net_t *net, const iq_train_ops_t *ops, const size_t *sizes, size_t nlayers, size_t max_rows)
{
    size_t units = 0, deltas = 0, at = 0;

    *net = (iq_train_net_t){.ops = ops, .nlayers = nlayers, .max_rows = max_rows};
    for (size_t l = 0; l < nlayers; l++) {
        net->parameters += (sizes[l] + 1) * sizes[l + 1];
        units += sizes[l];
        deltas += sizes[l + 1];
    }
    net->weights = floats(net, net->parameters);
    net->grad = floats(net, net->parameters);
    net->activations = floats(net, max_rows * units);
    net->deltas = floats(net, max_rows * deltas);
    net->output = floats(net, max_rows * sizes[nlayers]);
    net->labels = ops->alloc(max_rows);
    net->losses = ops->alloc(max_rows * sizeof(double));
    net->right = ops->alloc(max_rows);
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
    void *all[] = {net->weights, net->grad, net->activations, net->deltas, net->output, net->labels, net->losses, net->right};

    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        net->ops->release(all[i]);
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
    size_t bytes = net->parameters * sizeof(float);
    float *weights = iq_train_memory(bytes);

    memset(weights, 0, bytes);
    for (size_t l = 0; l < net->nlayers; l++) {
        const iq_train_layer_t *layer = &net->layers[l];
        float *to = weights + (layer->weights - net->weights);
        uint64_t key = iq_train_random(seed, 0xe1 + l);
        double deviation = sqrt(2.0 / (double)layer->m);
        for (size_t i = 0; i < layer->m * layer->n; i++)
            to[i] = (float)(deviation * normal(key, i));
    }
    net->ops->upload(net->weights, weights, bytes);
    free(weights);
}

void iq_train_net_batch(iq_train_net_t *net, const iq_train_set_t *set, const uint32_t *order, size_t first, size_t rows)
{
    net->ops->batch(set, order, first, rows, net->layers[0].x, net->labels);
}

void iq_train_net_forward(iq_train_net_t *net, size_t rows)
{
    for (size_t l = 0; l < net->nlayers; l++) {
        bool hidden = l + 1 < net->nlayers;
        net->ops->forward(&net->layers[l], rows, hidden ? net->layers[l + 1].x : net->output, hidden);
    }
}

double iq_train_net_loss(const iq_train_net_t *net, size_t rows, size_t *correct)
{
    double *losses = iq_train_memory(rows * sizeof(double)), loss = 0.0;
    uint8_t *right = iq_train_memory(rows);

    net->ops->score(net->output, net->labels, rows, net->layers[net->nlayers - 1].n, net->losses, net->right);
    net->ops->download(losses, net->losses, rows * sizeof(double));
    net->ops->download(right, net->right, rows);
    *correct = 0;
    for (size_t i = 0; i < rows; i++) {
        loss += losses[i];
        *correct += right[i];
    }
    free(losses);
    free(right);
    return loss;
}

void iq_train_net_backward(iq_train_net_t *net, size_t rows, float scale)
{
    const iq_train_layer_t *last = &net->layers[net->nlayers - 1];

    net->ops->softmax(net->output, net->labels, rows, last->n, scale, last->delta);
    for (size_t l = net->nlayers - 1; l > 0; l--)
        net->ops->backward(&net->layers[l], rows, net->layers[l - 1].delta);
}

void iq_train_net_gradients(iq_train_net_t *net, size_t rows)
{
    for (size_t l = 0; l < net->nlayers; l++)
        net->ops->gradient(&net->layers[l], rows);
}

void iq_train_net_step(iq_train_net_t *net, float rate) { net->ops->step(net->weights, net->grad, net->parameters, rate); }
