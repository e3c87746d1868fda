/* SPDX-License-Identifier: Apache-2.0 */
/* What tests of streamed calls share: see gpu_ends.h. */
#include "gpu/gpu_ends.h"

#include "isgqcoll_ext.h"
#include "support/samples.h"

#include <stdlib.h>

ends_t open_ends(iq_rank_t *rank)
{
    ends_t ends = {.values = malloc(COUNT * sizeof(float))};
    isgq_unique_id_t id = gpu_id(rank);
    RANK_CHECK(rank, ends.values != NULL, "no memory");
    ends.comm = gpu_join(rank, ISGQ_DEVICE_CUDA, id);
    ends.stream = gpu_stream(rank);
    RANK_CUDA(rank, cudaMalloc((void **)&ends.device, 2 * COUNT * sizeof(float)));
    return ends;
}

void close_ends(iq_rank_t *rank, ends_t *ends, bool failed)
{
    if (failed)
        RANK_OK(rank, isgq_comm_destroy(ends->comm));
    else
        gpu_leave(rank, ends->comm);
    RANK_CUDA(rank, cudaStreamDestroy(ends->stream));
    RANK_CUDA(rank, cudaFree(ends->device));
    free(ends->values);
}

void upload(iq_rank_t *rank, ends_t *ends, uint64_t salt)
{
    iq_samples_fill(ISGQ_FLOAT32, salt, rank->rank, 0, COUNT, (unsigned char *)ends->values);
    RANK_CUDA(rank, cudaMemcpyAsync(ends->device, ends->values, COUNT * sizeof(float), cudaMemcpyDefault, ends->stream));
    RANK_CUDA(rank, cudaStreamSynchronize(ends->stream));
}

uint64_t download(iq_rank_t *rank, ends_t *ends)
{
    RANK_CUDA(rank, cudaMemcpyAsync(ends->values, ends->device + COUNT, COUNT * sizeof(float), cudaMemcpyDefault, ends->stream));
    RANK_CUDA(rank, cudaStreamSynchronize(ends->stream));
    return isgqx_hash(ends->values, COUNT * sizeof(float));
}

void allreduce(iq_rank_t *rank, ends_t *ends, const char *text)
{
    isgq_quantizer_t quantizer;
    RANK_OK(rank, isgq_quantizer_create(&quantizer, text));
    RANK_OK(rank, isgq_allreduce(ends->device, ends->device + COUNT, COUNT, ISGQ_FLOAT32, ISGQ_SUM, quantizer, ends->comm, ends->stream, NULL));
    isgq_quantizer_destroy(quantizer);
}

graph_t capture(iq_rank_t *rank, ends_t *ends, const char *const *texts)
{
    graph_t graph;
    RANK_CUDA(rank, cudaStreamBeginCapture(ends->stream, cudaStreamCaptureModeThreadLocal));
    for (; *texts != NULL; texts++)
        allreduce(rank, ends, *texts);
    RANK_CUDA(rank, cudaStreamEndCapture(ends->stream, &graph.graph));
    RANK_CUDA(rank, cudaGraphInstantiate(&graph.exec, graph.graph, 0));
    return graph;
}

void destroy(iq_rank_t *rank, graph_t *graph)
{
    RANK_CUDA(rank, cudaGraphExecDestroy(graph->exec));
    RANK_CUDA(rank, cudaGraphDestroy(graph->graph));
}
