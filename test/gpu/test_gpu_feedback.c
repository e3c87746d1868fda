/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Error feedback on device memory: results, residuals and what the weighted rule knows have the bits that they have on host memory, whoever carries the
 * messages and however they are cut; and a state that one has saved goes on with the other.
 */
#include "gpu/gpu_main.h"
#include "support/numbers.h"
#include "support/samples.h"

#include <stdlib.h>
#include <string.h>

#define COUNT 9029
#define STATE_BYTES (8 * COUNT + 4096)

/* One kind of call. `count` is a rank's part where there are parts. */
typedef struct job {
    const char *quantizer;
    isgq_data_type_t type;
    isgq_red_op_t op;
    bool scatter, in_place, accumulate;
    const char *algorithm;
} job_t;

/* Steps of all kinds: owners that round again and owners that do not, rings, a single span and many, scales of all sorts. */
static const job_t jobs[] = {
    {"onebit:bucket=256", ISGQ_FLOAT32, ISGQ_SUM, false, false, false, NULL},
    {"uniform:bits=2,rounding=nearest,sum=requantized,bucket=tensor,feedback=full", ISGQ_FLOAT32, ISGQ_AVG, false, true, false, NULL},
    {"uniform:bits=2,sum=exact,bucket=64,feedback=weighted", ISGQ_FLOAT32, ISGQ_SUM, false, false, true, "ring"},
    {"qsgd:bits=3,bucket=96,feedback=weighted", ISGQ_BFLOAT16, ISGQ_SUM, false, false, false, "direct"},
    {"uniform:bits=3,scale=local,bucket=256,feedback=weighted", ISGQ_FLOAT16, ISGQ_AVG, true, false, false, NULL},
    {"ef-sign", ISGQ_FLOAT32, ISGQ_AVG, true, false, false, NULL},
    {"uniform:bits=4,rounding=stratified,feedback=weighted", ISGQ_FLOAT32, ISGQ_SUM, false, true, false, NULL},
};
#define JOBS (int)(sizeof(jobs) / sizeof(jobs[0]))

/* A communicator of one kind of memory with buffers there. */
typedef struct side {
    isgq_comm_t comm;
    cudaStream_t stream; /* NULL: host memory */
    unsigned char *input, *output;
    isgq_tensor_t tensor;
} side_t;

static side_t open_side(iq_rank_t *rank, bool on_gpu)
{
    side_t side = {0};
    isgq_unique_id_t id = gpu_id(rank);
    side.comm = gpu_join(rank, on_gpu ? ISGQ_DEVICE_CUDA : ISGQ_DEVICE_HOST, id);
    if (!on_gpu) {
        side.input = malloc(4 * COUNT);
        side.output = malloc(4 * COUNT);
        return side;
    }
    side.stream = gpu_stream(rank);
    RANK_CUDA(rank, cudaMalloc((void **)&side.input, 4 * COUNT));
    RANK_CUDA(rank, cudaMalloc((void **)&side.output, 4 * COUNT));
    return side;
}

static void close_side(iq_rank_t *rank, side_t *side)
{
    gpu_leave(rank, side->comm);
    if (side->stream == NULL) {
        free(side->input);
        free(side->output);
        return;
    }
    RANK_CUDA(rank, cudaStreamDestroy(side->stream));
    RANK_CUDA(rank, cudaFree(side->input));
    RANK_CUDA(rank, cudaFree(side->output));
}

static void put(iq_rank_t *rank, const side_t *side, unsigned char *where, const void *from)
{
    if (side->stream == NULL) {
        memcpy(where, from, 4 * COUNT);
        return;
    }
    RANK_CUDA(rank, cudaMemcpyAsync(where, from, 4 * COUNT, cudaMemcpyDefault, side->stream));
    RANK_CUDA(rank, cudaStreamSynchronize(side->stream));
}

static void call(iq_rank_t *rank, const job_t *job, const side_t *side, isgq_quantizer_t quantizer)
{
    isgq_call_options_t options = {.size = sizeof(options), .tensor = side->tensor, .algorithm = job->algorithm, .accumulate = job->accumulate};
    size_t part = COUNT / (size_t)rank->nranks;
    if (job->scatter)
        RANK_OK(rank, isgq_reduce_scatter(side->input, side->output, part, job->type, job->op, quantizer, side->comm, side->stream, &options));
    else
        RANK_OK(rank, isgq_allreduce(job->in_place ? side->output : side->input, side->output, COUNT, job->type, job->op, quantizer, side->comm,
                                     side->stream, &options));
}

/* Input and what accumulation adds to, by `salt`. */
static void fill(iq_rank_t *rank, const job_t *job, const side_t *side, uint64_t salt)
{
    static _Thread_local unsigned char values[4 * COUNT];
    memset(values, 0, sizeof(values));
    iq_samples_fill(job->type, salt, rank->rank, 0, COUNT, values);
    put(rank, side, side->input, values);
    if (!job->in_place)
        iq_numbers_fill(job->type, ISGQ_SUM, 5, 0, 0, COUNT, values);
    put(rank, side, side->output, values);
}

static void get(iq_rank_t *rank, const side_t *side, unsigned char *values)
{
    RANK_OK(rank, isgq_comm_synchronize(side->comm));
    if (side->stream == NULL)
        memcpy(values, side->output, 4 * COUNT);
    else
        RANK_CUDA(rank, cudaMemcpy(values, side->output, 4 * COUNT, cudaMemcpyDefault));
}

static size_t save(iq_rank_t *rank, const side_t *side, unsigned char *state)
{
    size_t bytes = STATE_BYTES;
    RANK_OK(rank, isgq_tensor_save(side->tensor, state, &bytes));
    return bytes;
}

static void make_tensor(iq_rank_t *rank, const job_t *job, side_t *side)
{
    size_t part = COUNT / (size_t)rank->nranks;
    RANK_OK(rank, isgq_tensor_create(&side->tensor, "w", job->scatter ? part * (size_t)rank->nranks : COUNT));
}

/* The same calls on both sides: the same results, and in the end the same state. */
static void compare(iq_rank_t *rank, const job_t *job, side_t *one, side_t *other)
{
    static _Thread_local unsigned char states[2][STATE_BYTES], results[2][4 * COUNT];
    isgq_quantizer_t quantizer = iq_quantizer(rank, job->quantizer);
    side_t *sides[] = {one, other};
    make_tensor(rank, job, one);
    make_tensor(rank, job, other);
    for (uint64_t i = 0; i < 4; i++) {
        for (int s = 0; s < 2; s++) {
            fill(rank, job, sides[s], 300 + i);
            call(rank, job, sides[s], quantizer);
            get(rank, sides[s], results[s]);
        }
        RANK_CHECK(rank, memcmp(results[0], results[1], 4 * COUNT) == 0, "%s, call %d: other bits than on the host", job->quantizer, (int)i);
    }
    size_t bytes = save(rank, one, states[0]);
    RANK_CHECK(rank, save(rank, other, states[1]) == bytes && bytes > 4 * (COUNT / 8 * 7), "%s: states of %zu bytes", job->quantizer, bytes);
    RANK_CHECK(rank, memcmp(states[0], states[1], bytes) == 0, "%s: another state than on the host", job->quantizer);
    isgq_tensor_destroy(one->tensor);
    isgq_tensor_destroy(other->tensor);
    isgq_quantizer_destroy(quantizer);
}

static void same_body(iq_rank_t *rank)
{
    side_t host = open_side(rank, false), device = open_side(rank, true);
    for (int j = 0; j < JOBS; j++)
        compare(rank, &jobs[j], &host, &device);
    gpu_check_way(rank, device.comm);
    close_side(rank, &host);
    close_side(rank, &device);
}

/* Hosts cut into many messages what wires carry in one. */
static void feedback_threads(void)
{
    setenv("ISGQ_CHUNK_BYTES", "4k", 1);
    gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_THREADS, .nranks = 3, .body = same_body, .apart = true});
}

static void feedback_one_rank(void) { gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_THREADS, .nranks = 1, .body = same_body, .apart = true}); }
static void feedback_processes(void) { gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_PROCESSES, .nranks = 2, .body = same_body, .apart = true}); }

/* Even ranks on host memory, odd ones on the device. */
static void mixed_body(iq_rank_t *rank)
{
    side_t host = open_side(rank, false), mixed = open_side(rank, rank->rank % 2 == 1);
    for (int j = 0; j < JOBS; j++)
        compare(rank, &jobs[j], &host, &mixed);
    close_side(rank, &host);
    close_side(rank, &mixed);
}

static void feedback_mixed(void)
{
    gpu_not_over("nccl", "a rank on a CPU has no part in a wire");
    gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_THREADS, .nranks = 3, .body = mixed_body, .apart = true});
}

/* A state saved on one kind of memory goes on with the other as if nothing had happened; a reset tensor too may change places. */
static void moved_body(iq_rank_t *rank)
{
    static _Thread_local unsigned char states[2][STATE_BYTES], results[2][4 * COUNT];
    const job_t *job = &jobs[2];
    isgq_quantizer_t quantizer = iq_quantizer(rank, job->quantizer);
    side_t sides[] = {open_side(rank, false), open_side(rank, true)};
    make_tensor(rank, job, &sides[0]);
    make_tensor(rank, job, &sides[1]);
    for (uint64_t round = 0; round < 3; round++) {
        for (int s = 0; s < 2; s++) {
            fill(rank, job, &sides[s], 70 + round);
            call(rank, job, &sides[s], quantizer);
            get(rank, &sides[s], results[s]);
            (void)save(rank, &sides[s], states[s]);
        }
        RANK_CHECK(rank, memcmp(results[0], results[1], 4 * COUNT) == 0, "round %d: other bits", (int)round);
        isgq_tensor_t tensor = sides[0].tensor;
        sides[0].tensor = sides[1].tensor;
        sides[1].tensor = tensor;
        for (int s = 0; s < 2; s++) {
            size_t bytes = STATE_BYTES;
            RANK_OK(rank, isgq_tensor_save(sides[s].tensor, NULL, &bytes));
            if (round == 1)
                RANK_OK(rank, isgq_tensor_reset(sides[s].tensor)); /* its memory is where it was */
            else
                RANK_OK(rank, isgq_tensor_load(sides[s].tensor, states[s], bytes));
        }
    }
    for (int s = 0; s < 2; s++) {
        isgq_tensor_destroy(sides[s].tensor);
        close_side(rank, &sides[s]);
    }
    isgq_quantizer_destroy(quantizer);
}

static void feedback_moved(void) { gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_THREADS, .nranks = 2, .body = moved_body, .apart = true}); }

/* Each replay of a graph is a call with the residual of the one before. */
static void replayed_body(iq_rank_t *rank)
{
    static _Thread_local unsigned char results[2][4 * COUNT];
    const job_t job = {"bingrad-b:bucket=64,feedback=weighted", ISGQ_FLOAT32, ISGQ_SUM, false, false, false, NULL};
    isgq_quantizer_t quantizer = iq_quantizer(rank, job.quantizer);
    side_t host = open_side(rank, false), device = open_side(rank, true);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    make_tensor(rank, &job, &host);
    make_tensor(rank, &job, &device);
    RANK_CUDA(rank, cudaStreamBeginCapture(device.stream, cudaStreamCaptureModeThreadLocal));
    call(rank, &job, &device, quantizer);
    RANK_CUDA(rank, cudaStreamEndCapture(device.stream, &graph));
    RANK_CUDA(rank, cudaGraphInstantiate(&exec, graph, 0));
    for (uint64_t i = 0; i < 4; i++) {
        fill(rank, &job, &host, 90 + i);
        fill(rank, &job, &device, 90 + i);
        call(rank, &job, &host, quantizer);
        get(rank, &host, results[0]);
        RANK_CUDA(rank, cudaGraphLaunch(exec, device.stream));
        RANK_CUDA(rank, cudaStreamSynchronize(device.stream));
        get(rank, &device, results[1]);
        RANK_CHECK(rank, memcmp(results[0], results[1], 4 * COUNT) == 0, "replay %d: other bits than the call on the host", (int)i);
    }
    RANK_CUDA(rank, cudaGraphExecDestroy(exec));
    RANK_CUDA(rank, cudaGraphDestroy(graph));
    isgq_tensor_destroy(host.tensor);
    isgq_tensor_destroy(device.tensor);
    close_side(rank, &host);
    close_side(rank, &device);
    isgq_quantizer_destroy(quantizer);
}

static void feedback_replayed(void)
{
    gpu_not_over("staged", "what hosts carry cannot be captured");
    gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_THREADS, .nranks = 2, .body = replayed_body, .apart = true});
}

/* The quantized product of a factored call has a residual too. */
static void factored_body(iq_rank_t *rank)
{
    enum { M = 33, N = 65, BATCH = 6 };
    static _Thread_local float x[BATCH * M], delta[BATCH * N], results[2][M * N];
    isgq_quantizer_t quantizer = iq_quantizer(rank, "dense=uniform:bits=2,rounding=nearest,feedback=full;factored=factor:width=4");
    side_t sides[] = {open_side(rank, false), open_side(rank, true)};
    for (int s = 0; s < 2; s++)
        RANK_OK(rank, isgq_tensor_create(&sides[s].tensor, "w", M * N));
    for (uint64_t i = 0; i < 3; i++) {
        iq_samples_fill(ISGQ_FLOAT32, 2 * i, rank->rank, 0, BATCH * M, x);
        iq_samples_fill(ISGQ_FLOAT32, 2 * i + 1, rank->rank, 0, BATCH * N, delta);
        for (int s = 0; s < 2; s++) {
            isgq_call_options_t options = {.size = sizeof(options), .tensor = sides[s].tensor, .algorithm = "dense"};
            float *in = (float *)(void *)sides[s].input;
            isgq_factors_t factors = {.size = sizeof(factors), .x = in, .delta = in + BATCH * M, .batch = BATCH, .m = M, .n = N};
            enum cudaMemcpyKind kind = cudaMemcpyDefault;
            RANK_CUDA(rank, cudaMemcpy(in, x, sizeof(x), kind));
            RANK_CUDA(rank, cudaMemcpy(in + BATCH * M, delta, sizeof(delta), kind));
            RANK_OK(rank, isgq_allreduce_factored(&factors, BATCH, sides[s].output, ISGQ_FLOAT32, ISGQ_SUM, quantizer, sides[s].comm, sides[s].stream,
                                                  &options));
            RANK_OK(rank, isgq_comm_synchronize(sides[s].comm));
            RANK_CUDA(rank, cudaMemcpy(results[s], sides[s].output, sizeof(results[s]), kind));
        }
        double difference = 0, size = 0; /* local products are rounded in another order there */
        for (int e = 0; e < M * N; e++) {
            difference += ((double)results[0][e] - (double)results[1][e]) * ((double)results[0][e] - (double)results[1][e]);
            size += (double)results[0][e] * (double)results[0][e];
        }
        RANK_CHECK(rank, difference <= 1e-3 * size && size > 0, "call %d: %g of %g differ", (int)i, difference, size);
    }
    for (int s = 0; s < 2; s++) {
        isgq_tensor_destroy(sides[s].tensor);
        close_side(rank, &sides[s]);
    }
    isgq_quantizer_destroy(quantizer);
}

static void feedback_factored(void) { gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_THREADS, .nranks = 2, .body = factored_body, .apart = true}); }

/* A call that fails in the middle leaves a tensor that remembers nothing. */
static void failed_body(iq_rank_t *rank)
{
    static _Thread_local unsigned char states[2][STATE_BYTES];
    const job_t *job = &jobs[0];
    isgq_quantizer_t quantizer = iq_quantizer(rank, job->quantizer);
    side_t device = open_side(rank, true);
    make_tensor(rank, job, &device);
    fill(rank, job, &device, 1);
    call(rank, job, &device, quantizer);
    RANK_OK(rank, isgq_comm_synchronize(device.comm));
    iq_rank_meet(rank);
    if (rank->rank == 0)
        call(rank, job, &device, quantizer);
    iq_rank_meet(rank);
    if (rank->rank == 1)
        RANK_OK(rank, isgq_comm_abort(device.comm));
    else
        RANK_STATUS(rank, isgq_comm_synchronize(device.comm), ISGQ_ERR_REMOTE);
    RANK_OK(rank, isgq_comm_destroy(device.comm));
    size_t bytes = save(rank, &device, states[0]);
    isgq_tensor_t after = device.tensor;
    make_tensor(rank, job, &device);
    size_t fresh = save(rank, &device, states[1]), header = fresh;
    RANK_CHECK(rank, bytes >= header, "%zu bytes", bytes);
    for (size_t i = header; i < bytes && rank->rank == 0; i++)
        RANK_CHECK(rank, states[0][i] == 0, "byte %zu of the residual is still there", i - header);
    isgq_tensor_destroy(after);
    isgq_tensor_destroy(device.tensor);
    isgq_quantizer_destroy(quantizer);
    RANK_CUDA(rank, cudaStreamDestroy(device.stream));
    RANK_CUDA(rank, cudaFree(device.input));
    RANK_CUDA(rank, cudaFree(device.output));
}

static void feedback_failed(void) { gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_THREADS, .nranks = 2, .body = failed_body, .apart = true}); }

/* clang-format off: one line a case */
const gpu_case_t gpu_cases[] = {
    GPU_CASE(feedback_threads),
    GPU_CASE(feedback_one_rank),
    GPU_CASE(feedback_processes),
    GPU_CASE(feedback_mixed),
    GPU_CASE(feedback_moved),
    GPU_CASE(feedback_replayed),
    GPU_CASE(feedback_factored),
    GPU_CASE(feedback_failed),
    {NULL, NULL},
};
