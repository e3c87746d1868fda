/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_gpu, whole calls: allreduce of device memory between ranks that are threads of this process and share its GPU. A call's time is
 * that between two events on the rank's stream around it; of the ranks' times the longest counts.
 */
#include "gpu/bench_gpu.h"
#include "support/ranks.h"

#include <stdio.h>
#include <stdlib.h>

typedef struct job {
    const bench_t *bench;
    const char *quantizer;
    float *microseconds; /* [nranks][repetitions] */
} job_t;

/* Calls of CUDA that might wait for the whole device stay outside the meetings: another rank's stream may be waiting for this rank. */
static void body(iq_rank_t *rank)
{
    const job_t *job = rank->argument;
    size_t count = job->bench->count, warm = job->bench->warm, all = warm + job->bench->repetitions;
    float *host = malloc(count * sizeof(float)), *input, *output;
    cudaEvent_t before, after;
    cudaStream_t stream;
    isgq_quantizer_t quantizer;
    if (host == NULL)
        bench_die(__FILE__, __LINE__, "malloc", "no memory");
    TRY_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    TRY_CUDA(cudaEventCreate(&before));
    TRY_CUDA(cudaEventCreate(&after));
    TRY_CUDA(cudaMalloc((void **)&input, count * sizeof(float)));
    TRY_CUDA(cudaMalloc((void **)&output, count * sizeof(float)));
    bench_fill(host, count, 1000u + (unsigned)rank->rank);
    TRY_CUDA(cudaMemcpy(input, host, count * sizeof(float), cudaMemcpyDefault));
    TRY(isgq_quantizer_create(&quantizer, job->quantizer));
    for (size_t i = 0; i < all; i++) {
        float milliseconds = 0;
        iq_rank_meet(rank);
        TRY_CUDA(cudaEventRecord(before, stream));
        TRY(isgq_allreduce(input, output, count, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, stream, NULL));
        TRY_CUDA(cudaEventRecord(after, stream));
        TRY_CUDA(cudaEventSynchronize(after));
        TRY_CUDA(cudaEventElapsedTime(&milliseconds, before, after));
        if (i >= warm)
            job->microseconds[(size_t)rank->rank * (all - warm) + i - warm] = milliseconds * 1e3f;
    }
    TRY(isgq_comm_synchronize(rank->comm));
    iq_rank_meet(rank);
    isgq_quantizer_destroy(quantizer);
    TRY_CUDA(cudaFree(input));
    TRY_CUDA(cudaFree(output));
    TRY_CUDA(cudaEventDestroy(before));
    TRY_CUDA(cudaEventDestroy(after));
    TRY_CUDA(cudaStreamDestroy(stream));
    free(host);
}

static void run(bench_t *bench, int nranks, const char *quantizer)
{
    static char failures[IQ_RANKS_MOST * IQ_RANK_FAILURE_BYTES];
    size_t repetitions = bench->repetitions;
    float *times = calloc((size_t)nranks * repetitions, sizeof(*times));
    if (times == NULL)
        bench_die(__FILE__, __LINE__, "calloc", "no memory");
    job_t job = {bench, quantizer, times};
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    config.device_type = ISGQ_DEVICE_CUDA;
    iq_ranks_t ranks = {.kind = IQ_RANKS_THREADS, .nranks = nranks, .body = body, .argument = &job, .config = &config, .home = true};
    if (!iq_ranks_try(&ranks, NULL, failures, sizeof(failures)))
        bench_die(__FILE__, __LINE__, "allreduce", failures);
    for (int r = 1; r < nranks; r++)
        for (size_t i = 0; i < repetitions; i++)
            if (times[(size_t)r * repetitions + i] > times[i])
                times[i] = times[(size_t)r * repetitions + i];
    bench_row_t row = {.part = "call",
                       .name = "allreduce",
                       .type = "f32",
                       .quantizer = quantizer,
                       .ranks = (unsigned)nranks,
                       .count = bench->count,
                       .bytes = bench->count * sizeof(float)};
    bench_put(bench, &row, times, repetitions);
    free(times);
}

void bench_calls(bench_t *bench)
{
    static const char *const quantizers[] = {"none", "uniform:bits=8", "uniform:bits=4"};
    bench_head(bench, "call");
    for (int nranks = 2; nranks <= 4; nranks += 2)
        for (size_t q = 0; q < sizeof(quantizers) / sizeof(quantizers[0]); q++)
            run(bench, nranks, quantizers[q]);
}
