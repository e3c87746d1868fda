/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What isgq_train computes with: one table of functions for host memory, one for a GPU. The network and the training loop know
 * nothing else of where they run.
 *
 * Pointers are to memory of the table, unless they are called `host`. Everything is done in order; `upload`, `download` and
 * `synchronize` wait for it, nothing else needs to. Whatever fails ends the program through open()'s `fail`.
 */
#ifndef ISGQ_PERF_TRAIN_OPS_H
#define ISGQ_PERF_TRAIN_OPS_H

#include "isgqcoll.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IQ_TRAIN_OPS_ABI 1

/* One fully connected layer: y = x * weights + bias. Weights and bias lie behind each other, and so do their gradients. */
typedef struct iq_train_layer {
    size_t m, n;
    float *weights; /* [m x n], then the bias [n] */
    float *grad;    /* the same shape */
    float *x;       /* [rows x m] input */
    float *delta;   /* [rows x n] gradient of the loss by the layer's output */
} iq_train_layer_t;

/* Images and their labels, as bytes. */
typedef struct iq_train_set {
    uint8_t *images; /* [count x pixels] */
    uint8_t *labels; /* [count] */
    size_t count, pixels;
} iq_train_set_t;

/* Ends the program; does not return. */
typedef void (*iq_train_fail_fn)(const char *sentence);

typedef struct iq_train_ops {
    uint32_t abi; /* IQ_TRAIN_OPS_ABI */
    isgq_device_type_t device_type;

    void (*open)(iq_train_fail_fn fail);
    void (*close)(void);
    isgq_stream_t (*stream)(void); /* that all this happens on; NULL: on the caller's thread */

    void *(*alloc)(size_t bytes); /* zeros, aligned to 64 bytes */
    void (*release)(void *memory);
    void (*upload)(void *to, const void *host, size_t bytes);
    void (*download)(void *host, const void *from, size_t bytes);
    void (*synchronize)(void);

    /* A clock that runs between begin and end, in the order of everything else; seconds() reads it and sets it to 0. */
    void (*clock_begin)(void);
    void (*clock_end)(void);
    double (*clock_seconds)(void);

    /* Images numbered order[first..first+rows-1] (order NULL: first..first+rows-1) as floats in 0..1, and their labels. */
    void (*batch)(const iq_train_set_t *set, const uint32_t *order, size_t first, size_t rows, float *x, uint8_t *labels);

    /* y = x * weights + bias; with `relu` nothing below 0. */
    void (*forward)(const iq_train_layer_t *layer, size_t rows, float *y, bool relu);

    /* Gradient of the summed softmax cross-entropy by the logits, times `scale`. */
    void (*softmax)(const float *logits, const uint8_t *labels, size_t rows, size_t n, float scale, float *delta);

    /* `below`, the delta of the layer before, whose ReLU gave this one's x. */
    void (*backward)(const iq_train_layer_t *layer, size_t rows, float *below);

    /* layer->grad, weights and bias. */
    void (*gradient)(const iq_train_layer_t *layer, size_t rows);

    /* weights -= rate * grad */
    void (*step)(float *weights, const float *grad, size_t count, float rate);

    /* The cross-entropy of each row, and whether its largest logit (the first, if there are several) is its label's. */
    void (*score)(const float *logits, const uint8_t *labels, size_t rows, size_t n, double *losses, uint8_t *right);
} iq_train_ops_t;

/* train_host.c */
extern const iq_train_ops_t iq_train_ops_host;

/* The table for "host" or "cuda". The program ends with one line if there is none: status 2 for another name, 1 for what this build or machine lacks. */
const iq_train_ops_t *iq_train_ops_find(const char *device);

/* train_blas.c, or train_loops.c in builds without BLAS: row-major, c[m x n] = a[m x k] * b[k x n] + beta * c. a_turned: a is [k x m]; b_turned: b is [n x k]. */
void iq_train_gemm(bool a_turned, bool b_turned, size_t m, size_t n, size_t k, const float *a, const float *b, float beta,
                   float *c);

#endif
