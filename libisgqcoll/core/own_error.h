/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What becomes of a rank's own contribution on its way: v, the values that it encodes, and C(v), what the others decode. The steps of a call ask this file to
 * look at every span of them once, in the cut in which it travels, for two purposes that may both be there or not:
 *
 *   error feedback   v = g + beta e, and afterwards e = (1 - beta) e + v - C(v). The owner of a block, which rounds the sum once
 *                    more, adds that error to its own e, so that nothing is lost between all ranks' inputs and the results.
 *   accuracy         |v - C(v)|^2 / |v|^2, zeros and codes at the end of their range, of every k-th call (ISGQ_ACCURACY_EVERY)
 *
 * No codec knows of it: C(v) is what add (or add_own) and deliver make of one contribution.
 *
 * On a device all of it lies in the device's memory, what the weighted rule knows as well, and these functions launch work; only error
 * feedback is there. So a graph that has captured a call goes on with the residual from replay to replay.
 */
#ifndef ISGQ_CORE_OWN_ERROR_H
#define ISGQ_CORE_OWN_ERROR_H

#include "codec/codec.h"
#include "kernels/feedback_math.h"

struct iq_step_data;

/* Of one call. */
typedef struct iq_own_error {
    bool corrects, measures; /* what for; neither: nobody looks */
    const unsigned char *gradient; /* g */
    isgq_data_type_t datatype;     /* of g */
    float *input;                  /* v, where it is not g itself */
    float *residual;         /* e: [corrected] */
    float *next;             /* where the new e goes, if e is to stay as it is; or NULL */
    size_t corrected;        /* elements; a factored call's bias has no residual */
    float beta;
    struct iq_device *device;   /* NULL: host memory. Else input, residual, acc and values are there, and for beta: */
    iq_feedback_state_t *state; /* the tensor's */
    bool weighted;              /* beta follows from it; else it is 1 */
    unsigned char *acc;      /* room of one chunk, beside the run's */
    float *values;
    /* sums over the spans so far, of elements whose error is finite */
    iq_exact_t error, square; /* |v - C(v)|^2, |v|^2 */
    double residual_square;  /* |e|^2, of both roundings */
    uint64_t count, zeros, limits;
    uint64_t lost;           /* elements whose error is not finite: their residual is 0 */
} iq_own_error_t;

/* Bytes of `acc` and `values` together, aligned for both; and where they are in them. */
size_t iq_own_error_room(size_t chunk_bytes);
void iq_own_error_place(iq_own_error_t *own, unsigned char *room, size_t chunk_bytes);

/* v of a span, and what of e is not in it. On a device: of all elements, `count` of them. */
void iq_own_error_add(iq_own_error_t *own, iq_span_t span);
void iq_own_error_add_on_device(iq_own_error_t *own, size_t count);

/* The call is over: the weighted rule learns from it. On a device. */
void iq_own_error_take_estimate(iq_own_error_t *own);

/* A span of own input was encoded: as `message`, or straight into a sum (NULL). On a device it is encoded once more: the message may lie
 * in memory of hosts or of another device. */
void iq_own_error_look(const struct iq_step_data *data, const void *message);

/* The owner rounded a finished sum to `message`. */
void iq_own_error_look_at_result(const struct iq_step_data *data, const void *acc, const void *message);

#endif
