/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every collective on device memory gives the bits that it gives on host memory, for every codec, type and kind of ranks; and ranks on both may meet in one
 * communicator.
 */
#include "gpu/gpu_main.h"
#include "support/numbers.h"
#include "support/samples.h"

#include <stdlib.h>
#include <string.h>

#define MOST_COUNT 70001

typedef enum collective { ALLREDUCE, REDUCE_SCATTER, ALLGATHER, BROADCAST, COLLECTIVES } collective_t;

/* One call, the same on both communicators. `count` is a rank's part where there are parts. */
typedef struct job {
    collective_t collective;
    isgq_data_type_t type;
    isgq_red_op_t op;
    const char *quantizer, *algorithm;
    size_t count;
    bool in_place, accumulate;
} job_t;

typedef struct pair {
    isgq_comm_t host, device;
    cudaStream_t stream;
    unsigned char *input, *expected, *output; /* host memory */
    unsigned char *device_input, *device_output;
} pair_t;

static size_t parts_in(const job_t *job, int nranks) { return job->collective == REDUCE_SCATTER ? (size_t)nranks : 1; }
static size_t parts_out(const job_t *job, int nranks) { return job->collective == ALLGATHER ? (size_t)nranks : 1; }

static void call(iq_rank_t *rank, const job_t *job, isgq_comm_t comm, const void *in, void *out, isgq_stream_t stream)
{
    isgq_quantizer_t quantizer = iq_quantizer(rank, job->quantizer);
    isgq_call_options_t options = {.size = sizeof(options), .algorithm = job->algorithm, .accumulate = job->accumulate};
    if (job->collective == ALLREDUCE)
        RANK_OK(rank, isgq_allreduce(in, out, job->count, job->type, job->op, quantizer, comm, stream, &options));
    else if (job->collective == REDUCE_SCATTER)
        RANK_OK(rank, isgq_reduce_scatter(in, out, job->count, job->type, job->op, quantizer, comm, stream, &options));
    else if (job->collective == ALLGATHER)
        RANK_OK(rank, isgq_allgather(in, out, job->count, job->type, quantizer, comm, stream, &options));
    else
        RANK_OK(rank, isgq_broadcast(in, out, job->count, job->type, rank->nranks - 1, comm, stream));
    isgq_quantizer_destroy(quantizer);
}

/* NaN is NaN: its payload is the processor's business. */
static bool same(isgq_data_type_t type, const void *a, const void *b, size_t count)
{
    size_t bytes = iq_types[type].bytes;
    if (memcmp(a, b, count * bytes) == 0)
        return true;
    for (size_t i = 0; i < count; i++)
        if (memcmp((const char *)a + i * bytes, (const char *)b + i * bytes, bytes) != 0 &&
            (!iq_types[type].is_float || iq_numbers_get(type, a, i) == iq_numbers_get(type, a, i) ||
             iq_numbers_get(type, b, i) == iq_numbers_get(type, b, i)))
            return false;
    return true;
}

static void compare(iq_rank_t *rank, const pair_t *pair, const job_t *job)
{
    size_t bytes = iq_types[job->type].bytes;
    size_t in = job->count * parts_in(job, rank->nranks), out = job->count * parts_out(job, rank->nranks);
    uint64_t salt = 977 + (uint64_t)job->collective;
    bool real = strcmp(job->quantizer, "none") != 0 && (job->type == ISGQ_FLOAT32 || job->type == ISGQ_FLOAT16 || job->type == ISGQ_BFLOAT16);
    if (real)
        iq_samples_fill(job->type, salt, rank->rank, 0, in, pair->input);
    else
        iq_numbers_fill(job->type, job->op, salt, rank->rank, 0, in, pair->input);
    iq_numbers_fill(job->type, ISGQ_SUM, salt + 1, 0, 0, out, pair->expected); /* what accumulation adds to */
    const void *host_in = job->in_place ? pair->expected : pair->input;
    if (job->in_place)
        memcpy(pair->expected, pair->input, in * bytes);
    RANK_CUDA(rank, cudaMemcpyAsync(pair->device_input, pair->input, in * bytes, cudaMemcpyDefault, pair->stream));
    RANK_CUDA(rank, cudaMemcpyAsync(pair->device_output, pair->expected, out * bytes, cudaMemcpyDefault, pair->stream));
    RANK_CUDA(rank, cudaStreamSynchronize(pair->stream)); /* `expected` is about to change */
    call(rank, job, pair->host, host_in, pair->expected, NULL);
    RANK_OK(rank, isgq_comm_synchronize(pair->host));
    call(rank, job, pair->device, job->in_place ? pair->device_output : pair->device_input, pair->device_output, pair->stream);
    RANK_CUDA(rank, cudaMemcpyAsync(pair->output, pair->device_output, out * bytes, cudaMemcpyDefault, pair->stream));
    RANK_CUDA(rank, cudaStreamSynchronize(pair->stream));
    RANK_OK(rank, isgq_comm_synchronize(pair->device));
    RANK_CHECK(rank, same(job->type, pair->expected, pair->output, out), "collective %d, %s, op %d, %s, %s, %zu elements: other bits than on the host",
               (int)job->collective, iq_types[job->type].name, (int)job->op, job->quantizer, job->algorithm != NULL ? job->algorithm : "auto", job->count);
}

static pair_t open_pair(iq_rank_t *rank)
{
    size_t most = (size_t)MOST_COUNT * 8 * (size_t)rank->nranks;
    pair_t pair = {.input = malloc(most), .expected = malloc(most), .output = malloc(most)};
    RANK_CHECK(rank, pair.input != NULL && pair.expected != NULL && pair.output != NULL, "no memory");
    isgq_unique_id_t id = gpu_id(rank);
    pair.host = gpu_join(rank, ISGQ_DEVICE_HOST, id);
    id = gpu_id(rank);
    pair.device = gpu_join(rank, ISGQ_DEVICE_CUDA, id);
    pair.stream = gpu_stream(rank);
    RANK_CUDA(rank, cudaMalloc((void **)&pair.device_input, most));
    RANK_CUDA(rank, cudaMalloc((void **)&pair.device_output, most));
    return pair;
}

static void close_pair(iq_rank_t *rank, pair_t *pair)
{
    if (gpu_over("nccl") || getenv("ISGQ_HOSTID") == NULL) /* between hosts there is no other wire */
        gpu_check_way(rank, pair->device);
    gpu_leave(rank, pair->host);
    gpu_leave(rank, pair->device);
    RANK_CUDA(rank, cudaStreamDestroy(pair->stream));
    RANK_CUDA(rank, cudaFree(pair->device_input));
    RANK_CUDA(rank, cudaFree(pair->device_output));
    free(pair->input);
    free(pair->expected);
    free(pair->output);
}

/* Every codec, collective and half of the counts; enough algorithms to pass through every kind of step. */
static void quantized_body(iq_rank_t *rank)
{
    static const char *const quantizers[] = {"none", "fp16", "bf16", "uniform:bits=1", "uniform:bits=3,bucket=64", "uniform:bits=4",
                                             "uniform:bits=8,rounding=nearest", "uniform:bits=4,scale=local", "uniform:bits=5,bucket=tensor",
                                             "uniform:bits=4,sum=requantized", "isgq:bits=4,coding=none",
                                             /* from here on a few jobs each */
                                             "uniform:bits=4,rounding=stratified", "terngrad", "global-qsgd:norm=l2,levels=7", "global-qsgd-exp", "intsgd",
                                             "qsgd:bits=3", "orq-5:bucket=96", "drive", "mx:bits=4"};
    const size_t basic = sizeof(quantizers) / sizeof(quantizers[0]) - 9;
    static const isgq_data_type_t types[] = {ISGQ_FLOAT32, ISGQ_FLOAT16, ISGQ_BFLOAT16};
    static const size_t counts[] = {1, 33, 4097, MOST_COUNT};
    pair_t pair = open_pair(rank);
    for (size_t q = 0; q < sizeof(quantizers) / sizeof(quantizers[0]); q++)
        for (size_t i = q < basic ? 0 : 8; i < 12; i++) {
            job_t job = {.collective = (collective_t)((q + i) % COLLECTIVES),
                         .type = types[i % 3],
                         .op = (q + i) % 2 == 0 ? ISGQ_SUM : ISGQ_AVG,
                         .quantizer = quantizers[q],
                         .count = counts[i % 4],
                         .in_place = (q + i / 4) % 3 == 0};
            if (i % 4 >= 2) {
                job.collective = ALLREDUCE;
                job.algorithm = i % 4 == 2 ? "ring" : NULL;
            }
            job.in_place &= job.collective == ALLREDUCE;
            job.accumulate = !job.in_place && job.collective == ALLREDUCE && i % 5 == 0;
            compare(rank, &pair, &job);
        }
    close_pair(rank, &pair);
}

/* Every type and reduction, exactly. */
static void exact_body(iq_rank_t *rank)
{
    pair_t pair = open_pair(rank);
    for (int type = 0; type < IQ_TYPE_COUNT; type++)
        for (int op = ISGQ_SUM; op <= ISGQ_AVG; op++) {
            job_t job = {.collective = op % 2 == 0 ? ALLREDUCE : REDUCE_SCATTER,
                         .type = iq_types[type].type,
                         .op = (isgq_red_op_t)op,
                         .quantizer = "none",
                         .algorithm = type % 3 == 0 && op % 2 == 0 ? "ring" : NULL,
                         .count = (size_t)(1 + 997 * (type + op))};
            compare(rank, &pair, &job);
        }
    close_pair(rank, &pair);
}

static void over(iq_ranks_kind_t kind, int nranks, iq_rank_fn body)
{
    iq_ranks_t ranks = {.kind = kind, .nranks = nranks, .body = body, .apart = true, .watchdog_s = 240};
    gpu_run_ranks(&ranks);
}

static void one_rank(void) { over(IQ_RANKS_THREADS, 1, quantized_body); }
static void threads(void) { over(IQ_RANKS_THREADS, 3, quantized_body); }
static void four_threads(void) { over(IQ_RANKS_THREADS, 4, exact_body); }
static void processes(void) { over(IQ_RANKS_PROCESSES, 2, quantized_body); }
static void processes_exact(void) { over(IQ_RANKS_PROCESSES, 3, exact_body); }

static void hosts(void)
{
    gpu_not_over("staged", "without a wire between hosts messages are staged anyway");
    if (!iq_ranks_have_network())
        gpu_skip("no UCX here");
    over(IQ_RANKS_HOSTS, 2, quantized_body);
}

/* ---- ranks on CPUs and GPUs together ---- */

/* Even ranks compute on the CPU, odd ones on the GPU; all must hold what a communicator on host memory gives. */
static void mixed_body(iq_rank_t *rank)
{
    static const char *const quantizers[] = {"none", "uniform:bits=4", "uniform:bits=4,scale=local", "bf16", "terngrad", "global-qsgd:norm=l2", "intsgd",
                                             "global-qsgd-exp:bucket=512"};
    bool on_gpu = rank->rank % 2 == 1;
    const size_t count = 20011, bytes = count * sizeof(float);
    float *input = malloc(bytes), *expected = malloc(bytes), *output = malloc(bytes), *device = NULL;
    isgq_unique_id_t id = gpu_id(rank);
    isgq_comm_t host = gpu_join(rank, ISGQ_DEVICE_HOST, id);
    id = gpu_id(rank);
    isgq_comm_t comm = gpu_join(rank, on_gpu ? ISGQ_DEVICE_CUDA : ISGQ_DEVICE_HOST, id);
    cudaStream_t stream = on_gpu ? gpu_stream(rank) : NULL;
    RANK_CHECK(rank, input != NULL && expected != NULL && output != NULL, "no memory");
    if (on_gpu)
        RANK_CUDA(rank, cudaMalloc((void **)&device, bytes));
    for (size_t q = 0; q < sizeof(quantizers) / sizeof(quantizers[0]); q++) {
        job_t job = {.type = ISGQ_FLOAT32, .op = ISGQ_AVG, .quantizer = quantizers[q], .algorithm = q % 2 == 0 ? "ring" : NULL, .count = count};
        iq_samples_fill(ISGQ_FLOAT32, 31 + q, rank->rank, 0, count, input);
        call(rank, &job, host, input, expected, NULL);
        RANK_OK(rank, isgq_comm_synchronize(host));
        if (on_gpu)
            RANK_CUDA(rank, cudaMemcpy(device, input, bytes, cudaMemcpyDefault));
        call(rank, &job, comm, on_gpu ? device : input, on_gpu ? device : output, stream);
        RANK_OK(rank, isgq_comm_synchronize(comm));
        if (on_gpu)
            RANK_CUDA(rank, cudaMemcpy(output, device, bytes, cudaMemcpyDefault));
        RANK_CHECK(rank, memcmp(expected, output, bytes) == 0, "%s: other bits in mixed company", quantizers[q]);
    }
    gpu_leave(rank, host);
    gpu_leave(rank, comm);
    if (on_gpu) {
        RANK_CUDA(rank, cudaStreamDestroy(stream));
        RANK_CUDA(rank, cudaFree(device));
    }
    free(input);
    free(expected);
    free(output);
}

static void mixed(void)
{
    gpu_not_over("nccl", "a rank on a CPU has no part in a wire");
    over(IQ_RANKS_THREADS, 4, mixed_body);
}

static void mixed_processes(void)
{
    gpu_not_over("nccl", "a rank on a CPU has no part in a wire");
    over(IQ_RANKS_PROCESSES, 3, mixed_body);
}

/* clang-format off: one line a case */
const gpu_case_t gpu_cases[] = {
    GPU_CASE(one_rank),
    GPU_CASE(threads),
    GPU_CASE(four_threads),
    GPU_CASE(processes),
    GPU_CASE(processes_exact),
    GPU_CASE(hosts),
    GPU_CASE(mixed),
    GPU_CASE(mixed_processes),
    {NULL, NULL},
};
