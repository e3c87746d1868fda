/* SPDX-License-Identifier: Apache-2.0 */
/* What tests of streamed calls share: a communicator with a stream and buffers, one allreduce on it, and graphs of such calls. */
#ifndef ISGQ_TEST_GPU_ENDS_H
#define ISGQ_TEST_GPU_ENDS_H

#include "gpu/gpu_main.h"

#define COUNT 20011 /* elements */

typedef struct ends {
    isgq_comm_t comm;
    cudaStream_t stream;
    float *values, *device; /* COUNT each; device: input, then output */
} ends_t;

ends_t open_ends(iq_rank_t *rank);
void close_ends(iq_rank_t *rank, ends_t *ends, bool failed);

/* Samples to the input; the output to `values`, with its hash. Both wait for the stream. */
void upload(iq_rank_t *rank, ends_t *ends, uint64_t salt);
uint64_t download(iq_rank_t *rank, ends_t *ends);

/* Enqueue the sum of all ranks' inputs. */
void allreduce(iq_rank_t *rank, ends_t *ends, const char *quantizer);

typedef struct graph {
    cudaGraph_t graph;
    cudaGraphExec_t exec;
} graph_t;

/* A graph of one allreduce for each quantizer; `texts` ends with NULL. */
graph_t capture(iq_rank_t *rank, ends_t *ends, const char *const *texts);
void destroy(iq_rank_t *rank, graph_t *graph);

#endif
