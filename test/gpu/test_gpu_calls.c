/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How calls on device memory behave: they take their turn on the caller's stream without the host waiting, refuse what they cannot do, and let streams go
 * when something fails.
 */
#include "gpu/gpu_main.h"
#include "support/numbers.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define COUNT 30000

/* ---- turns ---- */

/* Many calls on two streams, inputs written and results read by the streams themselves; the host looks only at the end. */
static void turns_body(iq_rank_t *rank)
{
    enum { ROUNDS = 60 };
    isgq_unique_id_t id = gpu_id(rank);
    isgq_comm_t comm = gpu_join(rank, ISGQ_DEVICE_CUDA, id);
    const size_t bytes = COUNT * sizeof(int32_t);
    cudaStream_t streams[2];
    int32_t *device, *results = malloc(ROUNDS * bytes);
    RANK_CHECK(rank, results != NULL, "no memory");
    RANK_CUDA(rank, cudaMalloc((void **)&device, 2 * bytes));
    for (int s = 0; s < 2; s++)
        RANK_CUDA(rank, cudaStreamCreateWithFlags(&streams[s], cudaStreamNonBlocking));
    for (int round = 0; round < ROUNDS; round++) {
        int32_t *mine = device + (round % 2) * COUNT;
        RANK_CUDA(rank, cudaMemsetAsync(mine, round + rank->rank, bytes, streams[round % 2]));
        RANK_OK(rank, isgq_allreduce(mine, mine, COUNT, ISGQ_INT32, ISGQ_SUM, NULL, comm, streams[round % 2], NULL));
        RANK_CUDA(rank, cudaMemcpyAsync(results + round * COUNT, mine, bytes, cudaMemcpyDefault, streams[round % 2]));
    }
    for (int s = 0; s < 2; s++)
        RANK_CUDA(rank, cudaStreamSynchronize(streams[s]));
    for (int round = 0; round < ROUNDS; round++) {
        uint32_t expected = 0;
        for (int r = 0; r < rank->nranks; r++)
            expected += (uint32_t)(round + r) * 0x01010101u;
        for (size_t i = 0; i < COUNT; i++)
            RANK_CHECK(rank, results[round * COUNT + (int)i] == (int32_t)expected, "round %d, element %zu: %08x, not %08x", round, i,
                       (unsigned)results[round * COUNT + (int)i], expected);
    }
    gpu_leave(rank, comm);
    for (int s = 0; s < 2; s++)
        RANK_CUDA(rank, cudaStreamDestroy(streams[s]));
    RANK_CUDA(rank, cudaFree(device));
    free(results);
}

static void turns(void) { gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_THREADS, .nranks = 3, .body = turns_body, .apart = true}); }
static void turns_processes(void)
{
    gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_PROCESSES, .nranks = 2, .body = turns_body, .apart = true});
}

/* A group of calls, a barrier, and memory of the communicator's own. */
static void groups_body(iq_rank_t *rank)
{
    isgq_unique_id_t id = gpu_id(rank);
    isgq_comm_t comm = gpu_join(rank, ISGQ_DEVICE_CUDA, id);
    void *memory;
    float *device, values[2] = {0, 0};
    cudaStream_t stream = gpu_stream(rank);
    RANK_OK(rank, isgq_mem_alloc(&memory, comm, 2 * COUNT * sizeof(float)));
    device = memory;
    RANK_CUDA(rank, cudaMemsetAsync(device, 0, 2 * COUNT * sizeof(float), stream));
    values[0] = (float)(rank->rank + 1);
    RANK_CUDA(rank, cudaMemcpyAsync(device, values, sizeof(float), cudaMemcpyDefault, stream));
    RANK_CUDA(rank, cudaMemcpyAsync(device + COUNT, values, sizeof(float), cudaMemcpyDefault, stream));
    RANK_CUDA(rank, cudaStreamSynchronize(stream));
    RANK_OK(rank, isgq_group_start());
    RANK_OK(rank, isgq_allreduce(device, device, COUNT, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, stream, NULL));
    RANK_OK(rank, isgq_allreduce(device + COUNT, device + COUNT, COUNT, ISGQ_FLOAT32, ISGQ_MAX, NULL, comm, stream, NULL));
    RANK_OK(rank, isgq_group_end());
    RANK_OK(rank, isgq_barrier(comm, stream));
    RANK_CUDA(rank, cudaMemcpyAsync(&values[0], device, sizeof(float), cudaMemcpyDefault, stream));
    RANK_CUDA(rank, cudaMemcpyAsync(&values[1], device + COUNT, sizeof(float), cudaMemcpyDefault, stream));
    RANK_CUDA(rank, cudaStreamSynchronize(stream));
    RANK_CHECK(rank, values[0] == (float)(rank->nranks * (rank->nranks + 1) / 2) && values[1] == (float)rank->nranks, "sum %g, maximum %g",
               (double)values[0], (double)values[1]);
    RANK_OK(rank, isgq_mem_free(memory, comm));
    gpu_leave(rank, comm);
    RANK_CUDA(rank, cudaStreamDestroy(stream));
}

static void groups(void) { gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_THREADS, .nranks = 4, .body = groups_body, .apart = true}); }

/* NaN in one rank's input shows in every rank's output. */
static void nan_body(iq_rank_t *rank)
{
    static const char *const texts[] = {"none", "bf16", "uniform:bits=4", "uniform:bits=4,scale=local"};
    isgq_unique_id_t id = gpu_id(rank);
    isgq_comm_t comm = gpu_join(rank, ISGQ_DEVICE_CUDA, id);
    float values[64], *device;
    cudaStream_t stream = gpu_stream(rank);
    RANK_CUDA(rank, cudaMalloc((void **)&device, sizeof(values)));
    for (size_t t = 0; t < sizeof(texts) / sizeof(texts[0]); t++) {
        isgq_quantizer_t quantizer;
        RANK_OK(rank, isgq_quantizer_create(&quantizer, texts[t]));
        for (int i = 0; i < 64; i++)
            values[i] = i == 17 && rank->rank == 1 ? NAN : (float)i;
        RANK_CUDA(rank, cudaMemcpy(device, values, sizeof(values), cudaMemcpyDefault));
        RANK_OK(rank, isgq_allreduce(device, device, 64, ISGQ_FLOAT32, ISGQ_SUM, quantizer, comm, stream, NULL));
        RANK_OK(rank, isgq_comm_synchronize(comm));
        RANK_CUDA(rank, cudaMemcpy(values, device, sizeof(values), cudaMemcpyDefault));
        RANK_CHECK(rank, isnan(values[17]), "%s: NaN became %g", texts[t], (double)values[17]);
        isgq_quantizer_destroy(quantizer);
    }
    gpu_leave(rank, comm);
    RANK_CUDA(rank, cudaStreamDestroy(stream));
    RANK_CUDA(rank, cudaFree(device));
}

static void nan_shows(void) { gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_THREADS, .nranks = 2, .body = nan_body, .apart = true}); }

/* ---- refusals ---- */

static void refusals_body(iq_rank_t *rank)
{
    isgq_unique_id_t id = gpu_id(rank);
    isgq_comm_t comm = gpu_join(rank, ISGQ_DEVICE_CUDA, id);
    static float host[64];
    float *device, value = 0;
    isgq_factors_t factors = {.size = sizeof(factors), .x = host, .delta = host, .batch = 1, .m = 4, .n = 4};
    RANK_CUDA(rank, cudaMalloc((void **)&device, 64 * sizeof(float)));
    RANK_STATUS(rank, isgq_allreduce(host, device, 64, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL), ISGQ_ERR_INVALID_ARGUMENT);
    RANK_CHECK(rank, strstr(isgq_get_last_error(), "sendbuff is host memory") != NULL, "\"%s\"", isgq_get_last_error());
    RANK_STATUS(rank, isgq_allreduce(device, host, 64, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL), ISGQ_ERR_INVALID_ARGUMENT);
    RANK_STATUS(rank, isgq_allreduce(device, (char *)device + 1, 8, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL), ISGQ_ERR_INVALID_ARGUMENT);
    RANK_STATUS(rank, isgq_allreduce_factored(&factors, 1, device, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL), ISGQ_ERR_INVALID_ARGUMENT);
    RANK_CHECK(rank, strstr(isgq_get_last_error(), "factors->x is host memory") != NULL, "\"%s\"", isgq_get_last_error());
    factors.x = factors.delta = device;
    factors.bias = host;
    RANK_STATUS(rank, isgq_allreduce_factored(&factors, 1, device + 16, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL), ISGQ_ERR_INVALID_ARGUMENT);
    factors.bias = NULL;
    RANK_STATUS(rank, isgq_allreduce_factored(&factors, 1, host, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL), ISGQ_ERR_INVALID_ARGUMENT);
    isgq_quantizer_t history = NULL;
    RANK_OK(rank, isgq_quantizer_create(&history, "intsgd:scale=history"));
    RANK_STATUS(rank, isgq_allreduce(device, device, 64, ISGQ_FLOAT32, ISGQ_SUM, history, comm, NULL, NULL), ISGQ_ERR_UNSUPPORTED);
    RANK_CHECK(rank, strstr(isgq_get_last_error(), "host memory only") != NULL, "\"%s\"", isgq_get_last_error());
    isgq_quantizer_destroy(history);
    RANK_CUDA(rank, cudaMemset(device, 0, 64 * sizeof(float)));
    cudaStream_t stream = gpu_stream(rank);
    RANK_OK(rank, isgq_allreduce(device, device, 64, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, stream, NULL)); /* none of this broke it */
    RANK_OK(rank, isgq_comm_synchronize(comm));
    RANK_CUDA(rank, cudaMemcpy(&value, device, sizeof(value), cudaMemcpyDefault));
    RANK_CHECK(rank, value == 0.0f, "%g", (double)value);
    gpu_leave(rank, comm);
    RANK_CUDA(rank, cudaStreamDestroy(stream));
    RANK_CUDA(rank, cudaFree(device));
}

static void refusals(void) { gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_THREADS, .nranks = 2, .body = refusals_body, .apart = true}); }

/* Staged messages cannot be part of a graph; the refusal breaks nothing. */
static void captured_body(iq_rank_t *rank)
{
    isgq_unique_id_t id = gpu_id(rank);
    isgq_comm_t comm = gpu_join(rank, ISGQ_DEVICE_CUDA, id);
    cudaStream_t stream = gpu_stream(rank);
    cudaGraph_t graph;
    float *device, value = 1;
    RANK_CUDA(rank, cudaMalloc((void **)&device, sizeof(*device)));
    RANK_CUDA(rank, cudaMemcpy(device, &value, sizeof(value), cudaMemcpyDefault));
    RANK_CUDA(rank, cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    RANK_STATUS(rank, isgq_allreduce(device, device, 1, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, stream, NULL), ISGQ_ERR_UNSUPPORTED);
    RANK_CUDA(rank, cudaStreamEndCapture(stream, &graph));
    RANK_CUDA(rank, cudaGraphDestroy(graph));
    RANK_OK(rank, isgq_allreduce(device, device, 1, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, stream, NULL));
    RANK_CUDA(rank, cudaMemcpyAsync(&value, device, sizeof(value), cudaMemcpyDefault, stream));
    RANK_CUDA(rank, cudaStreamSynchronize(stream));
    RANK_CHECK(rank, value == (float)rank->nranks, "%g", (double)value);
    gpu_leave(rank, comm);
    RANK_CUDA(rank, cudaStreamDestroy(stream));
    RANK_CUDA(rank, cudaFree(device));
}

static void captured(void)
{
    static const char *const environment[] = {"ISGQ_TRANSPORTS=local,shm,ucx", NULL};
    gpu_not_over("nccl", "the case is about messages that hosts carry");
    gpu_run_ranks(&(iq_ranks_t){
        .kind = IQ_RANKS_PROCESSES, .nranks = 2, .body = captured_body, .apart = true, .environment = environment});
}

/* A device without room for scratch: every rank is told, by whom and why. A real device has room. */
static void memory_body(iq_rank_t *rank)
{
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    isgq_comm_t comm = NULL;
    config.device_type = rank->rank == 1 ? ISGQ_DEVICE_CUDA : ISGQ_DEVICE_HOST;
    isgq_unique_id_t id = gpu_id(rank);
    isgq_result_t result = isgq_comm_init_rank(&comm, rank->nranks, id, rank->rank, &config);
    if (result == ISGQ_SUCCESS) {
        gpu_leave(rank, comm);
        return;
    }
    RANK_CHECK(rank, result == ISGQ_ERR_NO_MEMORY || (rank->rank != 1 && result == ISGQ_ERR_REMOTE), "status %d, \"%s\"", (int)result,
               isgq_get_last_error());
    RANK_CHECK(rank, strstr(isgq_get_last_error(), "bytes for scratch") != NULL, "\"%s\" does not say what for", isgq_get_last_error());
}

static void out_of_memory(void)
{
    static const char *const environment[] = {"CUDASIM_MEMORY=65536", NULL};
    gpu_not_over("nccl", "a rank on a CPU has no part in a wire");
    gpu_run_ranks(&(iq_ranks_t){
        .kind = IQ_RANKS_PROCESSES, .nranks = 2, .body = memory_body, .apart = true, .environment = environment});
}

/* ---- several devices ---- */

static int device_of(const void *memory)
{
    struct cudaPointerAttributes attributes;
    return cudaPointerGetAttributes(&attributes, memory) == cudaSuccess ? attributes.device : -1;
}

/* One thread holds both ranks, as programs of NCCL do: each communicator works on the device that was current when it was asked for, and so does its child. */
static void devices_body(iq_rank_t *rank)
{
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    isgq_comm_t comms[2];
    void *memory[2];
    int ordinal = -1;
    isgq_unique_id_t id = gpu_id(rank);
    config.device_type = ISGQ_DEVICE_CUDA;
    RANK_OK(rank, isgq_group_start());
    for (int i = 0; i < 2; i++) {
        RANK_CUDA(rank, cudaSetDevice(i));
        RANK_OK(rank, isgq_comm_init_rank(&comms[i], 2, id, i, &config));
    }
    RANK_OK(rank, isgq_group_end());
    RANK_CUDA(rank, cudaSetDevice(0));
    for (int i = 0; i < 2; i++) {
        RANK_OK(rank, isgq_mem_alloc(&memory[i], comms[i], 1024));
        RANK_CHECK(rank, device_of(memory[i]) == i, "rank %d works on device %d", i, device_of(memory[i]));
        RANK_OK(rank, isgq_mem_free(memory[i], comms[i]));
    }
    RANK_CUDA(rank, cudaGetDevice(&ordinal));
    RANK_CHECK(rank, ordinal == 0, "the current device became %d", ordinal);
    for (int i = 0; i < 2; i++)
        RANK_OK(rank, isgq_comm_destroy(comms[i]));
}

static void devices(void)
{
    setenv("CUDASIM_DEVICES", "2", 1);
    if (gpu_devices() < 2)
        gpu_skip("a machine with one GPU");
    gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_PROCESSES, .nranks = 1, .body = devices_body, .apart = true});
}

/* A child works where its parent does, whatever is current. */
static void split_body(iq_rank_t *rank)
{
    isgq_comm_t parent, child;
    void *memory;
    int count = 0;
    RANK_CUDA(rank, cudaGetDeviceCount(&count));
    RANK_CUDA(rank, cudaSetDevice(count - 1));
    isgq_unique_id_t id = gpu_id(rank);
    parent = gpu_join(rank, ISGQ_DEVICE_CUDA, id);
    RANK_CUDA(rank, cudaSetDevice(0));
    RANK_OK(rank, isgq_comm_split(parent, 0, rank->rank, &child, NULL));
    RANK_OK(rank, isgq_mem_alloc(&memory, child, 1024));
    RANK_CHECK(rank, device_of(memory) == count - 1, "the child works on device %d", device_of(memory));
    RANK_OK(rank, isgq_mem_free(memory, child));
    gpu_leave(rank, child);
    gpu_leave(rank, parent);
}

static void split(void)
{
    setenv("CUDASIM_DEVICES", "2", 1);
    gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_PROCESSES, .nranks = 2, .body = split_body, .apart = true});
}

/* More calls than may be queued, while the caller's stream is busy with something else. */
static void deep_body(iq_rank_t *rank)
{
    enum { CALLS = 200 };
    isgq_unique_id_t id = gpu_id(rank);
    isgq_comm_t comm = gpu_join(rank, ISGQ_DEVICE_CUDA, id);
    cudaStream_t stream = gpu_stream(rank);
    int32_t *device, value = 0;
    RANK_CUDA(rank, cudaMalloc((void **)&device, sizeof(*device)));
    RANK_CUDA(rank, cudaMemsetAsync(device, 0, sizeof(*device), stream));
    for (int i = 0; i < CALLS; i++) {
        RANK_OK(rank, isgq_allreduce(device, device, 1, ISGQ_INT32, ISGQ_MAX, NULL, comm, stream, NULL));
        if (i % 7 == 0)
            RANK_CUDA(rank, cudaMemsetAsync(device, i % 100 + rank->rank, 1, stream));
    }
    RANK_CUDA(rank, cudaMemcpyAsync(&value, device, sizeof(value), cudaMemcpyDefault, stream));
    RANK_CUDA(rank, cudaStreamSynchronize(stream));
    RANK_CHECK(rank, value == 196 % 100 + rank->nranks - 1, "%d", value);
    gpu_leave(rank, comm);
    RANK_CUDA(rank, cudaStreamDestroy(stream));
    RANK_CUDA(rank, cudaFree(device));
}

static void deep(void) { gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_THREADS, .nranks = 2, .body = deep_body, .apart = true}); }

/* ---- failures ---- */

/* Rank 1 never calls; the streams of the others are let go when it aborts, or dies. */
static void abandoned_body(iq_rank_t *rank)
{
    bool dies = *(const bool *)rank->argument;
    const struct timespec pause = {.tv_nsec = 200000000};
    isgq_unique_id_t id = gpu_id(rank);
    isgq_comm_t comm = gpu_join(rank, ISGQ_DEVICE_CUDA, id);
    float *device;
    cudaStream_t stream = gpu_stream(rank);
    isgq_result_t error = ISGQ_SUCCESS;
    RANK_CUDA(rank, cudaMalloc((void **)&device, COUNT * sizeof(float)));
    RANK_CUDA(rank, cudaMemset(device, 0, COUNT * sizeof(float)));
    if (rank->rank == 1) {
        nanosleep(&pause, NULL);
        if (dies)
            _exit(0);
        RANK_OK(rank, isgq_comm_abort(comm));
    } else {
        RANK_OK(rank, isgq_allreduce(device, device, COUNT, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, stream, NULL));
        RANK_CUDA(rank, cudaStreamSynchronize(stream));
        RANK_OK(rank, isgq_comm_get_async_error(comm, &error));
        RANK_CHECK(rank, error == ISGQ_ERR_REMOTE, "status %d", (int)error);
    }
    RANK_OK(rank, isgq_comm_destroy(comm));
    RANK_CUDA(rank, cudaStreamDestroy(stream));
    RANK_CUDA(rank, cudaFree(device));
}

static void aborted(void)
{
    static bool dies = false;
    gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_THREADS, .nranks = 3, .body = abandoned_body, .argument = &dies, .apart = true});
}

static void died(void)
{
    static bool dies = true;
    gpu_run_ranks(
        &(iq_ranks_t){.kind = IQ_RANKS_PROCESSES, .nranks = 3, .body = abandoned_body, .argument = &dies, .apart = true, .lost = 1u << 1});
}

/* Ranks that disagree about a call are told so, and their streams go on. */
static void mismatch_body(iq_rank_t *rank)
{
    isgq_unique_id_t id = gpu_id(rank);
    isgq_comm_t comm = gpu_join(rank, ISGQ_DEVICE_CUDA, id);
    float *device;
    cudaStream_t stream = gpu_stream(rank);
    RANK_CUDA(rank, cudaMalloc((void **)&device, COUNT * sizeof(float)));
    size_t count = gpu_over("nccl") ? COUNT : (size_t)(COUNT - rank->rank); /* to NCCL sizes that differ mean nothing */
    isgq_red_op_t op = gpu_over("nccl") && rank->rank == 1 ? ISGQ_MAX : ISGQ_SUM;
    RANK_OK(rank, isgq_allreduce(device, device, count, ISGQ_FLOAT32, op, NULL, comm, stream, NULL));
    RANK_STATUS(rank, isgq_comm_synchronize(comm), ISGQ_ERR_MISMATCH);
    RANK_CUDA(rank, cudaStreamSynchronize(stream));
    RANK_OK(rank, isgq_comm_destroy(comm));
    RANK_CUDA(rank, cudaStreamDestroy(stream));
    RANK_CUDA(rank, cudaFree(device));
}

static void mismatch(void) { gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_THREADS, .nranks = 2, .body = mismatch_body, .apart = true}); }

/* clang-format off: one line a case */
const gpu_case_t gpu_cases[] = {
    GPU_CASE(turns),
    GPU_CASE(turns_processes),
    GPU_CASE(groups),
    GPU_CASE(nan_shows),
    GPU_CASE(refusals),
    GPU_CASE(captured),
    GPU_CASE(out_of_memory),
    GPU_CASE(devices),
    GPU_CASE(split),
    GPU_CASE(deep),
    GPU_CASE(aborted),
    GPU_CASE(died),
    GPU_CASE(mismatch),
    {NULL, NULL},
};
