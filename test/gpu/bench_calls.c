/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_gpu, whole calls: allreduce of device memory between ranks that are threads of this process and share its GPU; enqueued as a whole or
 * replayed from a CUDA graph where a wire joins them, and staged through host memory to compare. A call's time is that between two events on
 * the rank's stream around it; of the ranks' times the longest counts.
 */
#include "gpu/bench_gpu.h"
#include "isgqcoll_ext.h"
#include "support/ranks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct way {
    const char *name, *transports;
    bool graph; /* one call, captured and replayed */
} way_t;

enum { MOST_CALLS = 9 };

typedef struct call {
    const char *quantizer;
    size_t count;
    float *microseconds; /* [nranks][repetitions] */
} call_t;

/* All that one communicator is measured with. */
typedef struct job {
    const bench_t *bench;
    const way_t *way;
    call_t calls[MOST_CALLS];
    size_t ncalls, most; /* the largest count */
    bool missed;         /* the library chose another way; rank 0 says so */
} job_t;

typedef struct ends {
    float *input, *output;
    cudaEvent_t before, after;
    cudaStream_t stream;
    isgq_quantizer_t quantizer; /* of the call */
    size_t count;
    cudaGraphExec_t exec; /* NULL: no graph */
} ends_t;

static void enqueue(const ends_t *ends, isgq_comm_t comm)
{
    TRY(isgq_allreduce(ends->input, ends->output, ends->count, ISGQ_FLOAT32, ISGQ_SUM, ends->quantizer, comm, ends->stream, NULL));
}

static void capture(ends_t *ends, isgq_comm_t comm)
{
    cudaGraph_t graph;
    TRY_CUDA(cudaStreamBeginCapture(ends->stream, cudaStreamCaptureModeThreadLocal));
    enqueue(ends, comm);
    TRY_CUDA(cudaStreamEndCapture(ends->stream, &graph));
    TRY_CUDA(cudaGraphInstantiate(&ends->exec, graph, 0));
    TRY_CUDA(cudaGraphDestroy(graph));
}

static ends_t open_ends(const job_t *job, int rank)
{
    ends_t ends = {0};
    size_t bytes = job->most * sizeof(float);
    float *host = malloc(bytes);
    if (host == NULL)
        bench_die(__FILE__, __LINE__, "malloc", "no memory");
    TRY_CUDA(cudaStreamCreateWithFlags(&ends.stream, cudaStreamNonBlocking));
    TRY_CUDA(cudaEventCreate(&ends.before));
    TRY_CUDA(cudaEventCreate(&ends.after));
    TRY_CUDA(cudaMalloc((void **)&ends.input, bytes));
    TRY_CUDA(cudaMalloc((void **)&ends.output, bytes));
    bench_fill(host, job->most, 1000u + (unsigned)rank);
    TRY_CUDA(cudaMemcpy(ends.input, host, bytes, cudaMemcpyDefault));
    free(host);
    return ends;
}

static void close_ends(ends_t *ends)
{
    TRY_CUDA(cudaFree(ends->input));
    TRY_CUDA(cudaFree(ends->output));
    TRY_CUDA(cudaEventDestroy(ends->before));
    TRY_CUDA(cudaEventDestroy(ends->after));
    TRY_CUDA(cudaStreamDestroy(ends->stream));
}

/* The first call of a kind opens what there is to open, and shows which way it went. */
static void look(iq_rank_t *rank, job_t *job, const ends_t *ends)
{
    isgqx_call_record_t record = {.size = sizeof(record)};
    enqueue(ends, rank->comm);
    TRY(isgq_comm_synchronize(rank->comm));
    TRY(isgqx_last_call(rank->comm, &record));
    bool wired = strstr(record.transport, "cuda_ipc") != NULL;
    if (rank->rank == 0)
        job->missed = wired != (strcmp(job->way->name, "cuda_ipc") == 0);
    iq_rank_meet(rank);
}

static float time_once(iq_rank_t *rank, const ends_t *ends)
{
    float milliseconds = 0;
    iq_rank_meet(rank);
    TRY_CUDA(cudaEventRecord(ends->before, ends->stream));
    if (ends->exec != NULL)
        TRY_CUDA(cudaGraphLaunch(ends->exec, ends->stream));
    else
        enqueue(ends, rank->comm);
    TRY_CUDA(cudaEventRecord(ends->after, ends->stream));
    TRY_CUDA(cudaEventSynchronize(ends->after));
    TRY_CUDA(cudaEventElapsedTime(&milliseconds, ends->before, ends->after));
    return milliseconds * 1e3f;
}

static void time_call(iq_rank_t *rank, job_t *job, ends_t *ends, const call_t *call)
{
    size_t warm = job->bench->warm, repetitions = job->bench->repetitions;
    ends->count = call->count;
    TRY(isgq_quantizer_create(&ends->quantizer, call->quantizer));
    look(rank, job, ends);
    if (!job->missed && job->way->graph)
        capture(ends, rank->comm);
    for (size_t i = 0; i < warm + repetitions && !job->missed; i++) {
        float microseconds = time_once(rank, ends);
        if (i >= warm)
            call->microseconds[(size_t)rank->rank * repetitions + i - warm] = microseconds;
    }
    TRY(isgq_comm_synchronize(rank->comm));
    iq_rank_meet(rank);
    if (ends->exec != NULL)
        TRY_CUDA(cudaGraphExecDestroy(ends->exec));
    ends->exec = NULL;
    isgq_quantizer_destroy(ends->quantizer);
}

/* Calls of CUDA that might wait for the whole device stay outside the meetings: another rank's stream may be waiting for this rank. */
static void body(iq_rank_t *rank)
{
    job_t *job = rank->argument;
    ends_t ends = open_ends(job, rank->rank);
    iq_rank_meet(rank);
    for (size_t i = 0; i < job->ncalls; i++)
        time_call(rank, job, &ends, &job->calls[i]);
    iq_rank_meet(rank);
    close_ends(&ends);
}

static void put(const job_t *job, bench_t *bench, int nranks, const call_t *call)
{
    float *times = call->microseconds;
    for (int r = 1; r < nranks; r++)
        for (size_t i = 0; i < bench->repetitions; i++)
            if (times[(size_t)r * bench->repetitions + i] > times[i])
                times[i] = times[(size_t)r * bench->repetitions + i];
    bench_row_t row = {.part = "call",
                       .name = "allreduce",
                       .type = "f32",
                       .quantizer = call->quantizer,
                       .way = job->way->name,
                       .mode = job->way->graph ? "graph" : "eager",
                       .skipped = job->missed ? "the library takes another way here" : NULL,
                       .ranks = (unsigned)nranks,
                       .count = call->count,
                       .bytes = call->count * sizeof(float)};
    bench_put(bench, &row, times, bench->repetitions);
}

static void run(bench_t *bench, int nranks, const way_t *way, job_t job)
{
    static char failures[IQ_RANKS_MOST * IQ_RANK_FAILURE_BYTES];
    size_t each = (size_t)nranks * bench->repetitions;
    float *times = calloc(job.ncalls * each, sizeof(*times));
    if (times == NULL)
        bench_die(__FILE__, __LINE__, "calloc", "no memory");
    for (size_t i = 0; i < job.ncalls; i++)
        job.calls[i].microseconds = times + i * each;
    job.bench = bench;
    job.way = way;
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    config.device_type = ISGQ_DEVICE_CUDA;
    config.transports = way->transports;
    iq_ranks_t ranks = {.kind = IQ_RANKS_THREADS, .nranks = nranks, .body = body, .argument = &job, .config = &config, .home = true};
    if (!iq_ranks_try(&ranks, NULL, failures, sizeof(failures)))
        bench_die(__FILE__, __LINE__, "allreduce", failures);
    for (size_t i = 0; i < job.ncalls; i++)
        put(&job, bench, nranks, &job.calls[i]);
    free(times);
}

/* Each size with each quantizer. */
static job_t calls_of(const bench_t *bench, const size_t *parts, size_t nparts)
{
    static const char *const quantizers[] = {"none", "uniform:bits=8", "uniform:bits=4"};
    job_t job = {.most = bench->count};
    for (size_t p = 0; p < nparts; p++)
        for (size_t q = 0; q < sizeof(quantizers) / sizeof(quantizers[0]); q++)
            job.calls[job.ncalls++] = (call_t){.quantizer = quantizers[q], .count = bench->count / parts[p]};
    return job;
}

void bench_calls(bench_t *bench)
{
    static const way_t ways[] = {{"cuda_ipc", "local,cuda_ipc", false}, {"cuda_ipc", "local,cuda_ipc", true}, {"staged", "local", false}};
    static const size_t parts[] = {64, 4, 1}; /* 1, 16 and 64 MiB */
    bench_head(bench, "call");
    for (size_t w = 0; w < sizeof(ways) / sizeof(ways[0]); w++)
        run(bench, 2, &ways[w], calls_of(bench, parts, 3));
    for (size_t w = 0; w < sizeof(ways) / sizeof(ways[0]); w++)
        run(bench, 4, &ways[w], calls_of(bench, &parts[2], 1));
}
