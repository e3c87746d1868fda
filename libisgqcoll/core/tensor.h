/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is remembered of one tensor between calls. Calls in flight hold the tensor, so destroying the handle under them is harmless. Who may touch what:
 *
 *   constant                      name, count; where the buffers are, once they are there
 *   the thread that makes calls   comm, calls, learner, learned, mark, loaded, power_rank, shape
 *   the calls, one after another  what is in the buffers, history, prediction, variance, corrected
 *
 * Handle functions look at all of it, and therefore refuse to while a call holds the tensor.
 */
#ifndef ISGQ_CORE_TENSOR_H
#define ISGQ_CORE_TENSOR_H

#include "core/comm.h"
#include "core/predict.h"
#include "kernels/feedback_math.h"

#define IQ_TENSOR_NAME_BYTES 256

struct isgq_tensor {
    char name[IQ_TENSOR_NAME_BYTES];
    size_t count;
    atomic_int holders;         /* the caller, and calls in flight */
    uint64_t comm;              /* number of the communicator whose calls it remembers; 0: none yet */
    uint64_t calls;
    float *residual;            /* [count] of error feedback; NULL before the first call that has it */
    float *next_residual;       /* [count] of a predicted call, until it is known to stand; or NULL */
    float *held;                /* [count and some] results of a predicted call in place, likewise, not decoded yet; or NULL */
    float *input;               /* [count] values with residual, where the output cannot hold them; or NULL */
    const struct iq_cuda_module *cuda; /* NULL: residual and input are in host memory. Else in that of device */
    int ordinal;                       /* this one, and */
    iq_feedback_state_t *state;        /* variance and corrected are there: these two are what it began with */
    size_t rows, columns;       /* as a matrix; 0: no shape was set */
    float *directions;          /* Q of PowerSGD: room for the largest rank that pays; NULL before the first call that has one */
    unsigned power_rank;        /* vectors in it that the last call left; 0: none */
    double variance;            /* running mean of |error|^2 / |values|^2 of what this rank sent */
    uint64_t corrected;         /* calls in it */
    uint64_t learner;           /* hash of the quantizer's text for which the history is */
    uint64_t learned;           /* calls in it, those in flight included */
    uint64_t mark;              /* hash of which calls these are */
    uint64_t loaded;            /* hash of a history that was loaded, until the next call; or 0 */
    iq_prediction_t prediction;
    double history[IQ_HISTORY]; /* of the codec: iq_codec_call_t.history */
};

/*
 * A decided call names this tensor (or NULL), whose count must be the call's. Gets the memory that the call will need, and sets
 * call->tensor if it needs the tensor at all, call->corrects and call->history. Counts the call.
 */
isgq_result_t iq_tensor_use(isgq_comm_t comm, isgq_tensor_t tensor, iq_call_t *call);

/* What iq_decide has to know of the tensor that a call names, or of NULL. */
void iq_tensor_lend_shape(isgq_tensor_t tensor, iq_call_t *call);

/* Room for Q of PowerSGD with the tensor's shape. */
isgq_result_t iq_tensor_make_directions(isgq_tensor_t tensor);

/* Floats of prediction.levels: for the smallest buckets that there are. */
static inline size_t iq_tensor_levels(isgq_tensor_t tensor) { return tensor->count / 32 + 1; }

/* The call, whose history is this tensor's, is number `sequence` of its communicator: which calls the history is of, those before. */
uint64_t iq_tensor_mark(isgq_tensor_t tensor, const iq_call_t *call, uint64_t sequence);

/* The call that was changing what the tensor has has ended in the middle: what is there is neither the old nor the new. */
void iq_tensor_forget(isgq_tensor_t tensor);

/* Does the output of a call with error feedback take values and residual before it takes the result? Else the tensor's buffer does. */
bool iq_tensor_uses_output(const iq_call_t *call);

/* A call that is kept holds its tensor; NULL is none. The last holder frees it. */
void iq_tensor_hold(isgq_tensor_t tensor);
void iq_tensor_release(isgq_tensor_t tensor);

#endif
