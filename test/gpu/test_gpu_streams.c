/* SPDX-License-Identifier: Apache-2.0 */
/* Calls that streams carry out by themselves, joined by a wire: no host in between, and a CUDA graph may capture them. */
#include "gpu/gpu_ends.h"
#include "isgqcoll_ext.h"
#include "support/numbers.h"
#include "support/samples.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- no host in between ---- */

/* The result is there when the stream has been waited for; the communicator is asked nothing. */
static void alone_body(iq_rank_t *rank)
{
    ends_t ends = open_ends(rank);
    for (int i = 0; i < 5; i++) {
        upload(rank, &ends, 5 + (uint64_t)i);
        allreduce(rank, &ends, "none");
        (void)download(rank, &ends);
        for (size_t e = 0; e < COUNT; e += 97) {
            float expected = 0, one;
            for (int r = 0; r < rank->nranks; r++) {
                iq_samples_fill(ISGQ_FLOAT32, 5 + (uint64_t)i, r, e, 1, (unsigned char *)&one);
                expected = r == 0 ? one : expected + one;
            }
            RANK_CHECK(rank, ends.values[e] == expected, "call %d, element %zu: %g, not %g", i, e, (double)ends.values[e], (double)expected);
        }
    }
    RANK_OK(rank, isgq_comm_synchronize(ends.comm));
    gpu_check_way(rank, ends.comm);
    close_ends(rank, &ends, false);
}

static void alone_threads(void) { gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_THREADS, .nranks = 4, .body = alone_body, .apart = true}); }
static void alone_processes(void) { gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_PROCESSES, .nranks = 4, .body = alone_body, .apart = true}); }
static void alone_one(void) { gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_THREADS, .nranks = 1, .body = alone_body, .apart = true}); }

/* One thread holds the ranks of two devices, as programs of NCCL do; no group is needed, since calls only enqueue. */
static void devices_body(iq_rank_t *rank)
{
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    isgq_comm_t comms[2];
    cudaStream_t streams[2];
    int32_t *device[2], value = 0;
    isgq_unique_id_t id = gpu_id(rank);
    config.device_type = ISGQ_DEVICE_CUDA;
    RANK_OK(rank, isgq_group_start());
    for (int i = 0; i < 2; i++) {
        RANK_CUDA(rank, cudaSetDevice(i));
        RANK_OK(rank, isgq_comm_init_rank(&comms[i], 2, id, i, &config));
    }
    RANK_OK(rank, isgq_group_end());
    for (int i = 0; i < 2; i++) {
        RANK_CUDA(rank, cudaSetDevice(i));
        streams[i] = gpu_stream(rank);
        RANK_CUDA(rank, cudaMalloc((void **)&device[i], COUNT * sizeof(int32_t)));
        RANK_CUDA(rank, cudaMemsetAsync(device[i], i + 1, COUNT * sizeof(int32_t), streams[i]));
        RANK_OK(rank, isgq_allreduce(device[i], device[i], COUNT, ISGQ_INT32, ISGQ_SUM, NULL, comms[i], streams[i], NULL));
    }
    for (int i = 0; i < 2; i++) {
        RANK_CUDA(rank, cudaSetDevice(i));
        RANK_CUDA(rank, cudaMemcpyAsync(&value, device[i] + COUNT - 1, sizeof(value), cudaMemcpyDefault, streams[i]));
        RANK_CUDA(rank, cudaStreamSynchronize(streams[i]));
        RANK_CHECK(rank, value == 0x03030303, "device %d: %08x", i, (unsigned)value);
        RANK_OK(rank, isgq_comm_synchronize(comms[i]));
    }
    for (int i = 0; i < 2; i++) {
        RANK_OK(rank, isgq_comm_destroy(comms[i]));
        RANK_CUDA(rank, cudaStreamDestroy(streams[i]));
        RANK_CUDA(rank, cudaFree(device[i]));
    }
}

static void one_thread_two_devices(void)
{
    setenv("CUDASIM_DEVICES", "2", 1);
    if (gpu_devices() < 2)
        gpu_skip("a machine with one GPU");
    gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_PROCESSES, .nranks = 1, .body = devices_body, .apart = true});
}

/* Where messages part a bucket, a wire's large chunks must not show in the bits. */
static const char *const parted[] = {"uniform:bits=4,sum=requantized,bucket=tensor", "uniform:bits=5,scale=local,bucket=104", "uniform:bits=4,sum=requantized",
                                     "onebit:bucket=8160", "drive:bucket=2048", NULL};

static void cuts_body(iq_rank_t *rank)
{
    const char *const *texts = rank->argument;
    enum { LONG = 300007 };
    float *values = malloc(LONG * sizeof(float)), *expected = malloc(LONG * sizeof(float)), *device;
    isgq_unique_id_t id = gpu_id(rank);
    isgq_comm_t host = gpu_join(rank, ISGQ_DEVICE_HOST, id);
    id = gpu_id(rank);
    isgq_comm_t comm = gpu_join(rank, ISGQ_DEVICE_CUDA, id);
    cudaStream_t stream = gpu_stream(rank);
    RANK_CHECK(rank, values != NULL && expected != NULL, "no memory");
    RANK_CUDA(rank, cudaMalloc((void **)&device, LONG * sizeof(float)));
    for (size_t t = 0; texts[t] != NULL; t++) {
        isgq_quantizer_t quantizer;
        RANK_OK(rank, isgq_quantizer_create(&quantizer, texts[t]));
        iq_samples_fill(ISGQ_FLOAT32, 40 + t, rank->rank, 0, LONG, values);
        RANK_OK(rank, isgq_allreduce(values, expected, LONG, ISGQ_FLOAT32, ISGQ_SUM, quantizer, host, NULL, NULL));
        RANK_OK(rank, isgq_comm_synchronize(host));
        RANK_CUDA(rank, cudaMemcpyAsync(device, values, LONG * sizeof(float), cudaMemcpyDefault, stream));
        RANK_OK(rank, isgq_allreduce(device, device, LONG, ISGQ_FLOAT32, ISGQ_SUM, quantizer, comm, stream, NULL));
        RANK_CUDA(rank, cudaMemcpyAsync(values, device, LONG * sizeof(float), cudaMemcpyDefault, stream));
        RANK_CUDA(rank, cudaStreamSynchronize(stream));
        RANK_CHECK(rank, memcmp(values, expected, LONG * sizeof(float)) == 0, "%s: other bits than on host memory", texts[t]);
        isgq_quantizer_destroy(quantizer);
    }
    gpu_leave(rank, host);
    gpu_leave(rank, comm);
    RANK_CUDA(rank, cudaStreamDestroy(stream));
    RANK_CUDA(rank, cudaFree(device));
    free(values);
    free(expected);
}

static void cuts(void)
{
    gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_THREADS, .nranks = 3, .body = cuts_body, .argument = (void *)parted, .apart = true});
}

/* Wires asked to cut finer than hosts: room is made for what hosts cut. */
static void fine_cuts(void)
{
    setenv("ISGQ_WIRE_CHUNK_BYTES", "8k", 1);
    gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_PROCESSES, .nranks = 3, .body = cuts_body, .argument = (void *)parted, .apart = true});
}

/* Exact sums of codes in lanes of words, added by the wire itself: the same bits again, and what a ring would send of the words counts. */
static void lanes_body(iq_rank_t *rank)
{
    isgqx_call_record_t record = {.size = sizeof(record)};
    ends_t ends = open_ends(rank);
    upload(rank, &ends, 9);
    allreduce(rank, &ends, "uniform:bits=4"); /* three ranks' sums need six bits: five lanes a word, two thirds of the words twice */
    RANK_OK(rank, isgq_comm_synchronize(ends.comm));
    RANK_OK(rank, isgqx_last_call(ends.comm, &record));
    RANK_CHECK(rank, record.wire_bytes >= COUNT / 5 * 4 * 4 / 3 && record.wire_bytes < COUNT / 5 * 4 * 4 / 3 + 1024, "%llu bytes",
               (unsigned long long)record.wire_bytes);
    close_ends(rank, &ends, false);
    cuts_body(rank);
}

static void lanes(void)
{
    static const char *const exact[] = {"uniform:bits=4", "uniform:bits=1,bucket=64", "uniform:bits=8,rounding=nearest", "uniform:bits=3,bucket=tensor", NULL};
    if (!gpu_over("nccl"))
        gpu_skip("only NCCL adds words");
    setenv("ISGQ_WIRE_SUM", "1", 1);
    gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_PROCESSES, .nranks = 3, .body = lanes_body, .argument = (void *)exact, .apart = true});
}

/* ---- graphs ---- */

/* A thousand replays (fewer where everything is slow) with changing inputs: every sum is right, and all ranks have the same bits. */
static void replays_body(iq_rank_t *rank)
{
    static const char *const texts[] = {"none", NULL};
    const int replays = IQ_TEST_SANITIZED || gpu_over("nccl") ? 50 : 1000;
    enum { SMALL = 257 };
    ends_t ends = open_ends(rank);
    upload(rank, &ends, 1);
    graph_t graph = capture(rank, &ends, texts);
    for (int i = 0; i < replays; i++) {
        iq_numbers_fill(ISGQ_FLOAT32, ISGQ_SUM, (uint64_t)i, rank->rank, 0, SMALL, (unsigned char *)ends.values);
        RANK_CUDA(rank, cudaMemcpyAsync(ends.device, ends.values, SMALL * sizeof(float), cudaMemcpyDefault, ends.stream));
        RANK_CUDA(rank, cudaGraphLaunch(graph.exec, ends.stream));
        RANK_CUDA(rank, cudaMemcpyAsync(ends.values, ends.device + COUNT, SMALL * sizeof(float), cudaMemcpyDefault, ends.stream));
        RANK_CUDA(rank, cudaStreamSynchronize(ends.stream));
        for (size_t e = 0; e < SMALL; e++) {
            double expected = 0;
            float one;
            for (int r = 0; r < rank->nranks; r++) {
                iq_numbers_fill(ISGQ_FLOAT32, ISGQ_SUM, (uint64_t)i, r, e, 1, (unsigned char *)&one);
                expected += (double)one;
            }
            RANK_CHECK(rank, (double)ends.values[e] == expected, "replay %d, element %zu: %g, not %g", i, e, (double)ends.values[e], expected);
        }
    }
    RANK_OK(rank, isgq_comm_synchronize(ends.comm));
    gpu_check_way(rank, ends.comm);
    destroy(rank, &graph);
    close_ends(rank, &ends, false);
}

static void replays(void)
{
    gpu_not_over("staged", "what hosts carry cannot be captured");
    gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_THREADS, .nranks = 2, .body = replays_body, .apart = true, .watchdog_s = 300});
}

static void replays_processes(void)
{
    gpu_not_over("staged", "what hosts carry cannot be captured");
    gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_PROCESSES, .nranks = 4, .body = replays_body, .apart = true, .watchdog_s = 300});
}

/* Stochastic rounding in a graph: the first replay has the bits of the same call on host memory, later ones are drawn afresh, and their mean tends to the sum. */
static void fresh_body(iq_rank_t *rank)
{
    static const char *const texts[] = {"uniform:bits=4", NULL};
    enum { REPLAYS = 64 };
    static double mean[IQ_RANKS_MOST][COUNT];
    uint64_t hashes[REPLAYS];
    double error = 0, single = 0;
    float *exact = malloc(COUNT * sizeof(float));
    RANK_CHECK(rank, exact != NULL, "no memory");
    isgq_unique_id_t id = gpu_id(rank);
    isgq_comm_t host = gpu_join(rank, ISGQ_DEVICE_HOST, id);
    ends_t ends = open_ends(rank);
    upload(rank, &ends, 3);
    isgq_quantizer_t quantizer;
    RANK_OK(rank, isgq_quantizer_create(&quantizer, texts[0]));
    RANK_OK(rank, isgq_allreduce(ends.values, exact, COUNT, ISGQ_FLOAT32, ISGQ_SUM, quantizer, host, NULL, NULL));
    RANK_OK(rank, isgq_comm_synchronize(host));
    isgq_quantizer_destroy(quantizer);
    uint64_t expected = isgqx_hash(exact, COUNT * sizeof(float));
    RANK_OK(rank, isgq_allreduce(ends.values, exact, COUNT, ISGQ_FLOAT32, ISGQ_SUM, NULL, host, NULL, NULL));
    RANK_OK(rank, isgq_comm_synchronize(host));
    graph_t graph = capture(rank, &ends, texts);
    memset(mean[rank->rank], 0, sizeof(mean[rank->rank]));
    for (int i = 0; i < REPLAYS; i++) {
        RANK_CUDA(rank, cudaGraphLaunch(graph.exec, ends.stream));
        hashes[i] = download(rank, &ends);
        iq_rank_agree(rank, hashes[i], "bits of a replay");
        RANK_CHECK(rank, i > 0 || hashes[0] == expected, "the first replay has other bits than the call on host memory");
        for (int j = 0; j < i; j++)
            RANK_CHECK(rank, hashes[i] != hashes[j], "replays %d and %d drew the same numbers", j, i);
        for (size_t e = 0; e < COUNT; e++) {
            double deviation = (double)ends.values[e] - (double)exact[e];
            mean[rank->rank][e] += deviation / REPLAYS;
            single += deviation * deviation / REPLAYS;
        }
    }
    for (size_t e = 0; e < COUNT; e++)
        error += mean[rank->rank][e] * mean[rank->rank][e];
    RANK_CHECK(rank, error < 1.2 * single / REPLAYS && error > 0.8 * single / REPLAYS,
               "mean of %d replays: %g times the error of one, not about %g", (int)REPLAYS, error / single, 1.0 / REPLAYS);
    destroy(rank, &graph);
    gpu_leave(rank, host);
    close_ends(rank, &ends, false);
    free(exact);
}

static void fresh(void)
{
    gpu_not_over("staged", "what hosts carry cannot be captured");
    gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_THREADS, .nranks = 3, .body = fresh_body, .apart = true});
}

/* Calls before, between and after replays, on the same stream: nothing loses its place. */
static void interleaved_body(iq_rank_t *rank)
{
    static const char *const texts[] = {"uniform:bits=8", "none", "uniform:bits=3,bucket=64", NULL};
    ends_t ends = open_ends(rank);
    upload(rank, &ends, 11);
    allreduce(rank, &ends, "none");
    iq_rank_agree(rank, download(rank, &ends), "bits before");
    graph_t graph = capture(rank, &ends, texts);
    for (int i = 0; i < 6; i++) {
        RANK_CUDA(rank, cudaGraphLaunch(graph.exec, ends.stream));
        iq_rank_agree(rank, download(rank, &ends), "bits of a replay");
        allreduce(rank, &ends, i % 2 == 0 ? "uniform:bits=4" : "bf16");
        RANK_OK(rank, isgq_barrier(ends.comm, ends.stream));
        iq_rank_agree(rank, download(rank, &ends), "bits between");
    }
    RANK_OK(rank, isgq_comm_synchronize(ends.comm));
    destroy(rank, &graph);
    close_ends(rank, &ends, false);
}

static void interleaved(void)
{
    gpu_not_over("staged", "what hosts carry cannot be captured");
    gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_THREADS, .nranks = 3, .body = interleaved_body, .apart = true});
}

static void interleaved_processes(void)
{
    gpu_not_over("staged", "what hosts carry cannot be captured");
    gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_PROCESSES, .nranks = 2, .body = interleaved_body, .apart = true});
}

/* A call waits for the one before it on another stream, also if a capture lies between. */
static void order_body(iq_rank_t *rank)
{
    static const char *const texts[] = {"none", NULL};
    const struct timespec pause = {.tv_nsec = 100000000};
    ends_t ends = open_ends(rank), blocker = open_ends(rank), capturing = ends;
    cudaStream_t second = gpu_stream(rank);
    capturing.stream = gpu_stream(rank);
    upload(rank, &ends, 21);
    upload(rank, &blocker, 22);
    if (rank->rank == 0) { /* keeps the first stream busy until rank 1 comes */
        cudaStream_t own = blocker.stream;
        blocker.stream = ends.stream;
        allreduce(rank, &blocker, "none");
        blocker.stream = own;
    }
    allreduce(rank, &ends, "none");
    graph_t graph = capture(rank, &capturing, texts);
    RANK_OK(rank, isgq_allreduce(ends.device + COUNT, ends.device + COUNT, COUNT, ISGQ_FLOAT32, ISGQ_MAX, NULL, ends.comm, second, NULL));
    if (rank->rank == 0) {
        nanosleep(&pause, NULL);
        RANK_CHECK(rank, cudaStreamQuery(second) == cudaErrorNotReady, "the second call did not wait for the first");
    }
    iq_rank_meet(rank);
    if (rank->rank != 0)
        allreduce(rank, &blocker, "none");
    RANK_OK(rank, isgq_comm_synchronize(blocker.comm));
    RANK_OK(rank, isgq_comm_synchronize(ends.comm));
    iq_rank_agree(rank, download(rank, &ends), "bits of both calls");
    destroy(rank, &graph);
    RANK_CUDA(rank, cudaStreamDestroy(second));
    RANK_CUDA(rank, cudaStreamDestroy(capturing.stream));
    close_ends(rank, &blocker, false);
    close_ends(rank, &ends, false);
}

static void order(void)
{
    gpu_not_over("nccl", "two communicators of NCCL wait for each other on one device");
    gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_PROCESSES, .nranks = 2, .body = order_body, .apart = true});
}

/* clang-format off: one line a case */
const gpu_case_t gpu_cases[] = {
    GPU_CASE(alone_threads),
    GPU_CASE(alone_processes),
    GPU_CASE(alone_one),
    GPU_CASE(one_thread_two_devices),
    GPU_CASE(cuts),
    GPU_CASE(fine_cuts),
    GPU_CASE(lanes),
    GPU_CASE(replays),
    GPU_CASE(replays_processes),
    GPU_CASE(fresh),
    GPU_CASE(interleaved),
    GPU_CASE(interleaved_processes),
    GPU_CASE(order),
    {NULL, NULL},
};
