/* SPDX-License-Identifier: Apache-2.0 */
/*
 * isgq_train's parts: the data, the network, one training run.
 */
#ifndef ISGQ_PERF_TRAIN_H
#define ISGQ_PERF_TRAIN_H

#include "isgqcoll.h"
#include "isgqcoll_ext.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- train_data.c ---- */

typedef struct iq_train_set {
    uint8_t *images; /* [count x pixels] */
    uint8_t *labels; /* [count] */
    size_t count, pixels;
} iq_train_set_t;

typedef struct iq_train_data {
    iq_train_set_t train, test;
} iq_train_data_t;

/* Read the four files of an MNIST-like folder; the program ends with one line if one is missing or damaged. */
void iq_train_data_open(iq_train_data_t *data, const char *folder, size_t classes);
void iq_train_data_close(iq_train_data_t *data);

/* Images numbered order[0..rows-1] (NULL: first..first+rows-1) as floats in 0..1, and their labels. */
void iq_train_data_batch(const iq_train_set_t *set, const uint32_t *order, size_t first, size_t rows, float *x, uint8_t *labels);

/* The order of an epoch: a permutation that depends on seed and epoch alone. */
void iq_train_data_shuffle(uint32_t *order, size_t count, uint64_t seed, size_t epoch);

/* A number from a counter: 64 well-mixed bits. */
uint64_t iq_train_random(uint64_t key, uint64_t counter);

/* ---- train_net.c ---- */

enum { IQ_TRAIN_MAX_LAYERS = 16 };

/* One fully connected layer: y = x * weights + bias. Weights and bias lie behind each other, and so do their gradients. */
typedef struct iq_train_layer {
    size_t m, n;
    float *weights; /* [m x n], then the bias [n] */
    float *grad;    /* the same shape */
    float *x;       /* [rows x m] input */
    float *delta;   /* [rows x n] gradient of the loss by the layer's output */
} iq_train_layer_t;

typedef struct iq_train_net {
    size_t nlayers, max_rows;
    size_t parameters;  /* all layers */
    float *weights;     /* [parameters] */
    float *grad;        /* [parameters] */
    float *activations; /* what layers[].x point into */
    float *deltas;
    float *output; /* [max_rows x classes] logits */
    iq_train_layer_t layers[IQ_TRAIN_MAX_LAYERS];
} iq_train_net_t;

/* `sizes` has nlayers + 1 numbers. */
void iq_train_net_open(iq_train_net_t *net, const size_t *sizes, size_t nlayers, size_t max_rows);
void iq_train_net_close(iq_train_net_t *net);

/* He et al. (2015), doi:10.1109/ICCV.2015.123: normal weights of variance 2 / m, zero biases. */
void iq_train_net_init(iq_train_net_t *net, uint64_t seed);

/* The input is in layers[0].x. */
void iq_train_net_forward(iq_train_net_t *net, size_t rows);

/* Summed softmax cross-entropy of the output; *correct counts the rows whose largest output is their label. */
double iq_train_net_loss(const iq_train_net_t *net, size_t rows, const uint8_t *labels, size_t *correct);

/* Deltas of all layers for the summed loss times `scale`. */
void iq_train_net_backward(iq_train_net_t *net, size_t rows, const uint8_t *labels, float scale);

/* This rank's own gradient of one layer, weights and bias. */
void iq_train_net_gradient(const iq_train_layer_t *layer, size_t rows, float *grad);

/* weights -= rate * grad */
void iq_train_net_step(iq_train_net_t *net, float rate);

/* ---- train_run.c ---- */

typedef enum iq_train_kind { IQ_TRAIN_DENSE, IQ_TRAIN_FACTORED } iq_train_kind_t;

typedef struct iq_train_mode {
    const char *name; /* "exact", "dense", "factored", "coarse" */
    iq_train_kind_t kind;
    isgq_quantizer_t quantizer;
    char typed[256]; /* the quantizer as the user wrote it */
} iq_train_mode_t;

typedef struct iq_train_setup {
    isgq_comm_t comm;    /* gradients and nothing else: its counters are the result */
    isgq_comm_t measure; /* everything else */
    isgq_quantizer_t none;
    int rank, nranks;
    size_t epochs;
    size_t total_rows;      /* of one step, all ranks */
    size_t first_row, rows; /* this rank's share of them */
    size_t max_rows;        /* largest share */
    double rate;
    uint64_t seed;
    const iq_train_data_t *data;
    iq_train_net_t *net;
} iq_train_setup_t;

typedef struct iq_train_result {
    size_t steps;
    double accuracy; /* percent of the test images */
    double loss;     /* mean cross-entropy of the test images */
    double nmse;     /* of the gradients, mean over every 50th step */
    double seconds, comm_seconds;
    uint64_t grad_bytes; /* most that any rank sent */
    double ratio, gain;
    uint64_t hash; /* of the final weights */
    bool hashes_differ;
} iq_train_result_t;

void iq_train_run(const iq_train_setup_t *setup, const iq_train_mode_t *mode, iq_train_result_t *result);

#endif
