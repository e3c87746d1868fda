/* SPDX-License-Identifier: Apache-2.0 */
/*
 * isgq_quality's parts: what is summed (samples of tensors, on every rank its own), how one quantizer is measured on it, the
 * presets of `-q all`.
 */
#ifndef ISGQ_PERF_QUALITY_H
#define ISGQ_PERF_QUALITY_H

#include "isgqcoll.h"
#include "isgqcoll_ext.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum iq_quality_kind { IQ_QUALITY_DENSE, IQ_QUALITY_FACTORED, IQ_QUALITY_KINDS } iq_quality_kind_t;

extern const char *const iq_quality_kind_names[IQ_QUALITY_KINDS + 1]; /* ends with NULL */

typedef struct iq_quality_setup {
    isgq_comm_t comm;    /* the calls that are measured and nothing else: its counters are the result */
    isgq_comm_t measure; /* everything else */
    isgq_quantizer_t none;
    int rank, nranks;
    uint64_t seed;
    size_t draws;
} iq_quality_setup_t;

/* ---- samples ---- */

/* One tensor that a call sums over ranks. Where it is a layer's gradient its factors are there too. */
typedef struct iq_quality_tensor {
    size_t count;      /* elements; of a layer m * n weights, then n biases */
    float *grad;       /* [count] this rank's */
    size_t rows, m, n; /* m is 0: no factors */
    float *x, *delta;  /* [rows x m], [rows x n] */
    double *exact;     /* [end - first] the mean over ranks of elements first.. */
    size_t first, end; /* the part that this rank compares */
} iq_quality_tensor_t;

/* What is summed at one time: all layers of a step, or one tensor. */
typedef struct iq_quality_sample {
    size_t step;
    size_t ntensors, count; /* elements of all */
    iq_quality_tensor_t *tensors;
    double norm; /* squared, of the exact mean */
} iq_quality_sample_t;

typedef struct iq_quality_source {
    size_t nsamples;
    iq_quality_sample_t *samples;
    double correlation; /* between ranks: of every two ranks' gradients, mean inner product over mean squared norm */
    char about[160];    /* for the head of the table */
} iq_quality_source_t;

void iq_quality_source_open(iq_quality_source_t *source, size_t nsamples, size_t ntensors);
void iq_quality_source_close(iq_quality_source_t *source);

/* When every tensor's grad is there: the exact mean, norms, the correlation. */
void iq_quality_source_settle(iq_quality_source_t *source, const iq_quality_setup_t *setup);

/* quality_source.c: "normal", "laplace", "student3": unit variance; `correlation` of the energy is common to all ranks. */
bool iq_quality_is_drawn(const char *name);
void iq_quality_draw(iq_quality_source_t *source, const iq_quality_setup_t *setup, const char *name, size_t count,
                     double correlation);

/* Numbers in (0, 1), and normal ones: a pure function of key and counter. */
double iq_quality_uniform(uint64_t key, uint64_t counter);
double iq_quality_normal(uint64_t key, uint64_t counter);

/* quality_factors.c: factors of one layer, and their product. */
void iq_quality_draw_factors(iq_quality_source_t *source, const iq_quality_setup_t *setup, size_t rows, size_t m, size_t n);

/* A file of f32, little-endian: rank r has the r-th of nranks equal parts, or the first `most` elements of it. The program ends
 * with status 2 if there is nothing to read or a value is not finite. */
void iq_quality_read(iq_quality_source_t *source, const iq_quality_setup_t *setup, const char *path, size_t most);

/* Elements of one part; the same end of the program, before there are ranks that would all say the same. */
size_t iq_quality_file_part(const char *path, int nranks);

enum { IQ_QUALITY_MOST_STEPS = 16, IQ_QUALITY_MOST_LAYERS = 16 };

/* quality_train.c: gradients and factors of isgq_train's network in exact training. */
typedef struct iq_quality_training {
    const char *data;
    size_t sizes[IQ_QUALITY_MOST_LAYERS + 1], nlayers; /* units: nlayers + 1 of them */
    size_t epochs, batch, layer;                       /* layer 0: all */
    double rate;
    size_t steps[IQ_QUALITY_MOST_STEPS], nsteps; /* ascending; to capture */
} iq_quality_training_t;

/* The program ends with one line if the data is missing or does not fit: before there are ranks that would all say the same. */
void iq_quality_train_check(const iq_quality_training_t *training, int nranks);

void iq_quality_train(iq_quality_source_t *source, const iq_quality_setup_t *setup, const iq_quality_training_t *training);

/* ---- quality_presets.c ---- */

typedef struct iq_quality_preset {
    const char *text;
    bool dense, factored; /* kinds of calls that it is for */
} iq_quality_preset_t;

extern const iq_quality_preset_t iq_quality_presets[]; /* ends with text NULL */

/* ---- quality_measure.c ---- */

typedef struct iq_quality_result {
    double ratio, gain, nmse;      /* medians over samples */
    double bias;                   /* largest of the projections, in standard errors */
    double encode_gbs, decode_gbs; /* NAN where there is no such thing */
    bool broken;                   /* ranks hold different results, or one is not finite */
} iq_quality_result_t;

/* ISGQ_ERR_UNSUPPORTED comes back; other failures end the program. */
isgq_result_t iq_quality_measure(const iq_quality_setup_t *setup, const iq_quality_source_t *source, iq_quality_kind_t kind,
                                 isgq_quantizer_t quantizer, iq_quality_result_t *result);

/* A median, sorting in place. */
double iq_quality_median(double *values, size_t count);

/* quality_clock.c: input bytes a second of encoding and decoding one contribution, on rank 0 while the others wait; on all ranks. */
void iq_quality_clock(const iq_quality_setup_t *setup, const iq_quality_source_t *source, isgq_quantizer_t quantizer,
                      iq_quality_result_t *result);

/* Exact reduction of numbers over ranks, in place, and a gathering of one each; neither counts in the result. */
void iq_quality_combine(const iq_quality_setup_t *setup, isgq_red_op_t op, double *values, size_t count);
void iq_quality_gather(const iq_quality_setup_t *setup, uint64_t own, uint64_t *all);

#endif
