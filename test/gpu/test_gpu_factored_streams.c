/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Factored calls that streams carry out by themselves: nothing on the host knows what the factors are, so a CUDA graph may
 * capture them, and every replay takes the factors that are there then.
 */
#include "gpu/gpu_main.h"
#include "isgqcoll_ext.h"
#include "support/samples.h"

#include <stdlib.h>
#include <string.h>

enum { M = 70, N = 45, BATCH = 24, FACTORS = BATCH * (M + N), RESULTS = M * N + N };

/* A rank's two communicators and its memory: X and Delta; gradient and bias. */
typedef struct ends {
    isgq_comm_t host, comm;
    cudaStream_t stream;
    float *factors, *due, *found, *device;
} ends_t;

static ends_t open_ends(iq_rank_t *rank)
{
    ends_t ends = {.factors = malloc(FACTORS * sizeof(float)),
                   .due = malloc(RESULTS * sizeof(float)),
                   .found = malloc(RESULTS * sizeof(float))};
    RANK_CHECK(rank, ends.factors != NULL && ends.due != NULL && ends.found != NULL, "no memory");
    isgq_unique_id_t id = gpu_id(rank);
    ends.host = gpu_join(rank, ISGQ_DEVICE_HOST, id);
    id = gpu_id(rank);
    ends.comm = gpu_join(rank, ISGQ_DEVICE_CUDA, id);
    ends.stream = gpu_stream(rank);
    RANK_CUDA(rank, cudaMalloc((void **)&ends.device, (FACTORS + RESULTS) * sizeof(float)));
    return ends;
}

static void close_ends(iq_rank_t *rank, ends_t *ends)
{
    RANK_OK(rank, isgq_comm_synchronize(ends->comm));
    gpu_check_way(rank, ends->comm);
    gpu_leave(rank, ends->host);
    gpu_leave(rank, ends->comm);
    RANK_CUDA(rank, cudaStreamDestroy(ends->stream));
    RANK_CUDA(rank, cudaFree(ends->device));
    free(ends->factors);
    free(ends->due);
    free(ends->found);
}

/* Later ranks have fewer rows. */
static void call(iq_rank_t *rank, isgq_comm_t comm, float *factors, float *results, const char *text, const char *way,
                 cudaStream_t stream)
{
    isgq_quantizer_t quantizer = iq_quantizer(rank, text);
    isgq_call_options_t options = {.size = sizeof(options), .algorithm = way};
    isgq_factors_t call = {.size = sizeof(call),
                           .batch = BATCH - (size_t)rank->rank,
                           .m = M,
                           .n = N,
                           .x = factors,
                           .delta = factors + BATCH * M,
                           .bias = results + M * N};
    RANK_OK(rank, isgq_allreduce_factored(&call, BATCH, results, ISGQ_FLOAT32, ISGQ_SUM, quantizer, comm, stream, &options));
    isgq_quantizer_destroy(quantizer);
}

static void upload(iq_rank_t *rank, ends_t *ends, uint64_t salt)
{
    for (size_t i = 0; i < FACTORS; i++)
        ends->factors[i] = iq_mix_unit(salt, (uint64_t)rank->rank, i);
    RANK_CUDA(rank, cudaMemcpyAsync(ends->device, ends->factors, FACTORS * sizeof(float), cudaMemcpyDefault, ends->stream));
}

static void on_device(iq_rank_t *rank, ends_t *ends, const char *text, const char *way)
{
    call(rank, ends->comm, ends->device, ends->device + FACTORS, text, way, ends->stream);
}

/* What a call on host memory makes of the same factors. */
static void on_host(iq_rank_t *rank, ends_t *ends, const char *text, const char *way)
{
    call(rank, ends->host, ends->factors, ends->due, text, way, NULL);
    RANK_OK(rank, isgq_comm_synchronize(ends->host));
}

static void download(iq_rank_t *rank, ends_t *ends)
{
    RANK_CUDA(rank,
              cudaMemcpyAsync(ends->found, ends->device + FACTORS, RESULTS * sizeof(float), cudaMemcpyDefault, ends->stream));
    RANK_CUDA(rank, cudaStreamSynchronize(ends->stream));
}

static void compare(iq_rank_t *rank, const ends_t *ends, const char *way, int number)
{
    for (size_t i = 0; i < RESULTS; i++)
        RANK_CHECK(rank, memcmp(&ends->due[i], &ends->found[i], sizeof(float)) == 0, "%s, call %d, element %zu: %g, not %g", way,
                   number, i, (double)ends->found[i], (double)ends->due[i]);
}

static const char *const ways[] = {"gather", "reduce", "dense"};

/* ---- no host in between ---- */

/* Results are there when the stream has been waited for; the communicator is asked nothing. */
static void alone_body(iq_rank_t *rank)
{
    static const char *const texts[] = {"factor:bits=3", "factor:width=4/4", "uniform:bits=4"};
    ends_t ends = open_ends(rank);
    for (int i = 0; i < 9; i++) {
        const char *way = i % 3 == 2 ? "dense" : ways[i % 2]; /* "uniform" has no other; its local gradients are sums of floats */
        upload(rank, &ends, (uint64_t)i);
        on_device(rank, &ends, texts[i % 3], way);
        download(rank, &ends);
        on_host(rank, &ends, texts[i % 3], way);
        if (i % 3 != 2)
            compare(rank, &ends, way, i);
        iq_rank_agree(rank, isgqx_hash(ends.found, RESULTS * sizeof(float)), way);
    }
    close_ends(rank, &ends);
}

static void factored_alone(void)
{
    gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_THREADS, .nranks = 3, .body = alone_body, .apart = true});
}

static void factored_alone_processes(void)
{
    gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_PROCESSES, .nranks = 2, .body = alone_body, .apart = true});
}

/* ---- graphs ---- */

static cudaGraphExec_t capture(iq_rank_t *rank, ends_t *ends, const char *text, const char *way)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    RANK_CUDA(rank, cudaStreamBeginCapture(ends->stream, cudaStreamCaptureModeThreadLocal));
    on_device(rank, ends, text, way);
    RANK_CUDA(rank, cudaStreamEndCapture(ends->stream, &graph));
    RANK_CUDA(rank, cudaGraphInstantiate(&exec, graph, 0));
    RANK_CUDA(rank, cudaGraphDestroy(graph));
    return exec;
}

/* Replays with changing factors have the bits of as many calls on host memory. With nearest rounding nothing is left to
 * chance: no row is so light that it were kept less often. */
static void replays_body(iq_rank_t *rank)
{
    static const char text[] = "factor:width=6/5,rounding=nearest";
    ends_t ends = open_ends(rank);
    for (int w = 0; w < 2; w++) {
        upload(rank, &ends, 77);
        RANK_CUDA(rank, cudaStreamSynchronize(ends.stream));
        cudaGraphExec_t graph = capture(rank, &ends, text, ways[w]);
        for (int i = 0; i < 20; i++) {
            upload(rank, &ends, 100 + (uint64_t)i);
            RANK_CUDA(rank, cudaGraphLaunch(graph, ends.stream));
            download(rank, &ends);
            on_host(rank, &ends, text, ways[w]);
            compare(rank, &ends, ways[w], i);
        }
        RANK_CUDA(rank, cudaGraphExecDestroy(graph));
    }
    close_ends(rank, &ends);
}

static void factored_replays(void)
{
    gpu_not_over("staged", "what hosts carry cannot be captured");
    gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_THREADS, .nranks = 2, .body = replays_body, .apart = true});
}

/* The first replay has the bits of the call that was captured, the others draw numbers of their own. */
static void fresh_body(iq_rank_t *rank)
{
    enum { REPLAYS = 12 };
    uint64_t hashes[REPLAYS];
    ends_t ends = open_ends(rank);
    upload(rank, &ends, 5);
    RANK_CUDA(rank, cudaStreamSynchronize(ends.stream));
    cudaGraphExec_t graph = capture(rank, &ends, "factor:bits=2", "gather");
    on_host(rank, &ends, "factor:bits=2", "gather");
    for (int i = 0; i < REPLAYS; i++) {
        RANK_CUDA(rank, cudaGraphLaunch(graph, ends.stream));
        download(rank, &ends);
        hashes[i] = isgqx_hash(ends.found, RESULTS * sizeof(float));
        iq_rank_agree(rank, hashes[i], "a replay");
        if (i == 0)
            compare(rank, &ends, "gather", 0);
        for (int j = 0; j < i; j++)
            RANK_CHECK(rank, hashes[i] != hashes[j], "replays %d and %d drew the same numbers", j, i);
    }
    RANK_CUDA(rank, cudaGraphExecDestroy(graph));
    close_ends(rank, &ends);
}

static void factored_fresh(void)
{
    gpu_not_over("staged", "what hosts carry cannot be captured");
    gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_THREADS, .nranks = 2, .body = fresh_body, .apart = true});
}

/* clang-format off: one line a case */
const gpu_case_t gpu_cases[] = {
    GPU_CASE(factored_alone),
    GPU_CASE(factored_alone_processes),
    GPU_CASE(factored_replays),
    GPU_CASE(factored_fresh),
    {NULL, NULL},
};
