/* SPDX-License-Identifier: Apache-2.0 */
/*
 * isgq_train's parts: the data, the network, one training run.
 */
#ifndef ISGQ_PERF_TRAIN_H
#define ISGQ_PERF_TRAIN_H

#include "perf/train_ops.h"

#include "isgqcoll.h"
#include "isgqcoll_ext.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- train_data.c ---- */

typedef struct iq_train_data {
    iq_train_set_t train, test;
} iq_train_data_t;

/* Read the four files of an MNIST-like folder; the program ends with one line if one is missing or damaged. */
void iq_train_data_open(iq_train_data_t *data, const char *folder, size_t classes);
void iq_train_data_close(iq_train_data_t *data);

/* The same data where `ops` computes: what was opened here is closed, and the new is given back. */
void iq_train_data_place(iq_train_data_t *data, const iq_train_ops_t *ops);
void iq_train_data_release(iq_train_data_t *data, const iq_train_ops_t *ops);

/* The order of an epoch: a permutation that depends on seed and epoch alone. */
void iq_train_data_shuffle(uint32_t *order, size_t count, uint64_t seed, size_t epoch);

/* A number from a counter: 64 well-mixed bits. */
uint64_t iq_train_random(uint64_t key, uint64_t counter);

/* ---- train_net.c ---- */

enum { IQ_TRAIN_MAX_LAYERS = 16 };

/* Everything but the struct itself lies where `ops` computes. */
typedef struct iq_train_net {
    const iq_train_ops_t *ops;
    size_t nlayers, max_rows;
    size_t parameters;  /* all layers */
    float *weights;     /* [parameters] */
    float *grad;        /* [parameters] */
    float *activations; /* what layers[].x point into */
    float *deltas;
    float *output;   /* [max_rows x classes] logits */
    uint8_t *labels; /* [max_rows] */
    double *losses;  /* [max_rows] */
    uint8_t *right;  /* [max_rows] */
    iq_train_layer_t layers[IQ_TRAIN_MAX_LAYERS];
} iq_train_net_t;

/* `sizes` has nlayers + 1 numbers. */
void iq_train_net_open(iq_train_net_t *net, const iq_train_ops_t *ops, const size_t *sizes, size_t nlayers, size_t max_rows);
void iq_train_net_close(iq_train_net_t *net);

/* He et al. (2015), doi:10.1109/ICCV.2015.123: normal weights of variance 2 / m, zero biases. */
void iq_train_net_init(iq_train_net_t *net, uint64_t seed);

/* Images and labels of the next step: see iq_train_ops_t. */
void iq_train_net_batch(iq_train_net_t *net, const iq_train_set_t *set, const uint32_t *order, size_t first, size_t rows);

void iq_train_net_forward(iq_train_net_t *net, size_t rows);

/* Summed softmax cross-entropy of the output; *correct counts the rows whose largest output is their label. Waits. */
double iq_train_net_loss(const iq_train_net_t *net, size_t rows, size_t *correct);

/* Deltas of all layers for the summed loss times `scale`. */
void iq_train_net_backward(iq_train_net_t *net, size_t rows, float scale);

/* This rank's own gradients of all layers. */
void iq_train_net_gradients(iq_train_net_t *net, size_t rows);

/* weights -= rate * grad */
void iq_train_net_step(iq_train_net_t *net, float rate);

/* ---- train_run.c ---- */

/* malloc, or the end of the program. */
void *iq_train_memory(size_t bytes);

typedef enum iq_train_kind { IQ_TRAIN_DENSE, IQ_TRAIN_FACTORED } iq_train_kind_t;

typedef struct iq_train_mode {
    const char *name; /* "exact", "dense", "factored", "coarse" */
    iq_train_kind_t kind;
    isgq_quantizer_t quantizer;
    char typed[256]; /* the quantizer as the user wrote it */
} iq_train_mode_t;

typedef struct iq_train_setup {
    isgq_comm_t comm;    /* gradients and nothing else: its counters are the result */
    isgq_comm_t measure; /* everything else, on host memory */
    const iq_train_ops_t *ops;
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

/*
 * One step without calls and without a trace, before the first run. On a GPU it loads all kernels that training needs: loading one
 * may wait for the whole device, where a call of this rank may be waiting for another rank.
 */
void iq_train_warm_up(const iq_train_setup_t *setup);

void iq_train_run(const iq_train_setup_t *setup, const iq_train_mode_t *mode, iq_train_result_t *result);

#endif
