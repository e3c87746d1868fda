/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Quantizers whose work hosts do for tensors on devices, entropy-coded `isgq` and `powersgd`: the bits of host memory on whatever ranks work, in their
 * turn among calls that streams carry, and refused where a stream is being captured.
 */
#include "gpu/gpu_main.h"
#include "isgqcoll_ext.h"
#include "support/numbers.h"
#include "support/samples.h"

#include <stdlib.h>
#include <string.h>

#define ROWS 97
#define COLUMNS 132
#define COUNT (ROWS * COLUMNS)
#define BYTES (4 * COUNT)
#define STATE_BYTES (BYTES + 65536)

typedef struct job {
    const char *quantizer;
    isgq_data_type_t type;
    isgq_red_op_t op;
    bool scatter, in_place, accumulate;
} job_t;

static const job_t coded[] = {
    {"isgq:bits=2.5,coding=zstd", ISGQ_FLOAT32, ISGQ_SUM, false, false, false},
    {"isgq:nmse=0.01", ISGQ_FLOAT32, ISGQ_AVG, false, true, false},
    {"dense=isgq:bits=4,coding=zstd", ISGQ_BFLOAT16, ISGQ_SUM, false, false, true},
    {"isgq:bits=3,coding=zstd", ISGQ_FLOAT16, ISGQ_AVG, true, false, false},
    {"isgq:bits=1.5,coding=zstd", ISGQ_FLOAT32, ISGQ_SUM, false, false, true},
    {NULL, 0, 0, false, false, false},
};

static const job_t low_rank[] = {
    {"powersgd:rank=2", ISGQ_FLOAT32, ISGQ_AVG, false, true, false},
    {"powersgd:rank=3,feedback=off", ISGQ_BFLOAT16, ISGQ_SUM, false, false, true},
    {"powersgd:rank=60", ISGQ_FLOAT32, ISGQ_SUM, false, false, false}, /* as it is, since its factors are larger */
    {NULL, 0, 0, false, false, false},
};

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
        side.input = malloc(BYTES);
        side.output = malloc(BYTES);
        return side;
    }
    side.stream = gpu_stream(rank);
    RANK_CUDA(rank, cudaMalloc((void **)&side.input, BYTES));
    RANK_CUDA(rank, cudaMalloc((void **)&side.output, BYTES));
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

static void move(iq_rank_t *rank, const side_t *side, void *to, const void *from)
{
    if (side->stream == NULL) {
        memcpy(to, from, BYTES);
        return;
    }
    RANK_CUDA(rank, cudaMemcpyAsync(to, from, BYTES, cudaMemcpyDefault, side->stream));
    RANK_CUDA(rank, cudaStreamSynchronize(side->stream));
}

static void fill(iq_rank_t *rank, const job_t *job, const side_t *side, uint64_t salt)
{
    static _Thread_local unsigned char values[BYTES];
    memset(values, 0, sizeof(values));
    iq_samples_fill(job->type, salt, rank->rank, 0, COUNT, values);
    move(rank, side, side->input, values);
    if (!job->in_place)
        iq_numbers_fill(job->type, ISGQ_SUM, 5, 0, 0, COUNT, values);
    move(rank, side, side->output, values);
}

static void call(iq_rank_t *rank, const job_t *job, const side_t *side, isgq_quantizer_t quantizer)
{
    isgq_call_options_t options = {.size = sizeof(options), .tensor = side->tensor, .accumulate = job->accumulate};
    size_t part = COUNT / (size_t)rank->nranks;
    if (job->scatter)
        RANK_OK(rank, isgq_reduce_scatter(side->input, side->output, part, job->type, job->op, quantizer, side->comm, side->stream, &options));
    else
        RANK_OK(rank, isgq_allreduce(job->in_place ? side->output : side->input, side->output, COUNT, job->type, job->op, quantizer, side->comm,
                                     side->stream, &options));
}

/* NULL, and the case is over, where the build has no coder. */
static isgq_quantizer_t quantizer_of(iq_rank_t *rank, const char *text)
{
    isgq_quantizer_t quantizer = NULL;
    isgq_result_t result = isgq_quantizer_create(&quantizer, text);
    RANK_CHECK(rank, result == ISGQ_SUCCESS || (result == ISGQ_ERR_UNSUPPORTED && strstr(isgq_get_last_error(), "libzstd") != NULL), "%s: %s", text,
               isgq_get_last_error());
    return quantizer;
}

static void check_record(iq_rank_t *rank, const job_t *job, isgq_comm_t comm)
{
    isgqx_call_record_t record = {.size = sizeof(record)};
    RANK_OK(rank, isgqx_last_call(comm, &record));
    bool hosted = strcmp(job->quantizer, "powersgd:rank=60") != 0;
    RANK_CHECK(rank, (strstr(record.why, "on hosts") != NULL) == hosted, "%s: why is \"%s\"", job->quantizer, record.why);
}

static void same_calls(iq_rank_t *rank, const job_t *job, side_t *host, side_t *other)
{
    static _Thread_local unsigned char results[2][BYTES], states[2][STATE_BYTES];
    size_t bytes[2] = {STATE_BYTES, STATE_BYTES};
    isgq_quantizer_t quantizer = quantizer_of(rank, job->quantizer);
    side_t *sides[] = {host, other};
    if (quantizer == NULL)
        return;
    for (int s = 0; s < 2; s++) {
        RANK_OK(rank, isgq_tensor_create(&sides[s]->tensor, "w", job->scatter ? COUNT / (size_t)rank->nranks * (size_t)rank->nranks : COUNT));
        if (!job->scatter)
            RANK_OK(rank, isgq_tensor_shape(sides[s]->tensor, ROWS, COLUMNS));
    }
    for (uint64_t i = 0; i < 3; i++) {
        for (int s = 0; s < 2; s++) {
            fill(rank, job, sides[s], 40 + i);
            call(rank, job, sides[s], quantizer);
            RANK_OK(rank, isgq_comm_synchronize(sides[s]->comm));
            move(rank, sides[s], results[s], sides[s]->output);
        }
        RANK_CHECK(rank, memcmp(results[0], results[1], BYTES) == 0, "%s, call %d: other bits than on host memory", job->quantizer, (int)i);
    }
    check_record(rank, job, other->comm);
    for (int s = 0; s < 2; s++) {
        RANK_OK(rank, isgq_tensor_save(sides[s]->tensor, states[s], &bytes[s]));
        isgq_tensor_destroy(sides[s]->tensor);
        sides[s]->tensor = NULL;
    }
    RANK_CHECK(rank, bytes[0] == bytes[1], "%s: states of %zu and %zu bytes", job->quantizer, bytes[0], bytes[1]);
    if (strstr(job->quantizer, "powersgd") != NULL)
        RANK_CHECK(rank, memcmp(states[0], states[1], bytes[0]) == 0, "%s: another state than on host memory", job->quantizer);
    isgq_quantizer_destroy(quantizer);
}

typedef struct plan {
    const job_t *jobs;
    bool mixed;
} plan_t;

static void same_body(iq_rank_t *rank)
{
    const plan_t *plan = rank->argument;
    side_t host = open_side(rank, false), other = open_side(rank, !plan->mixed || rank->rank % 2 == 1);
    for (const job_t *job = plan->jobs; job->quantizer != NULL; job++)
        same_calls(rank, job, &host, &other);
    close_side(rank, &host);
    close_side(rank, &other);
}

static void same(const job_t *jobs, int nranks, iq_ranks_kind_t kind, bool mixed)
{
    static plan_t plan;
    plan = (plan_t){jobs, mixed};
    setenv("ISGQ_CHUNK_BYTES", "8k", 1);
    gpu_run_ranks(&(iq_ranks_t){.kind = kind, .nranks = nranks, .body = same_body, .argument = &plan, .apart = true});
}

static void coded_threads(void) { same(coded, 3, IQ_RANKS_THREADS, false); }
static void coded_one(void) { same(coded, 1, IQ_RANKS_THREADS, false); }
static void coded_processes(void) { same(coded, 2, IQ_RANKS_PROCESSES, false); }

static void coded_mixed(void)
{
    gpu_not_over("nccl", "a rank on a CPU has no part in a wire");
    same(coded, 3, IQ_RANKS_THREADS, true);
}

static void low_rank_threads(void) { same(low_rank, 3, IQ_RANKS_THREADS, false); }

static void low_rank_mixed(void)
{
    gpu_not_over("nccl", "a rank on a CPU has no part in a wire");
    same(low_rank, 2, IQ_RANKS_PROCESSES, true);
}

/* Calls of streams and of hosts in one another's wake, on two streams that nobody waits for: each works on what the one before left. */
static void turns_body(iq_rank_t *rank)
{
    enum { ROUNDS = 12 };
    side_t device = open_side(rank, true);
    cudaStream_t second = gpu_stream(rank);
    isgq_quantizer_t quantizer = quantizer_of(rank, "isgq:bits=8,coding=zstd");
    float *values = (float *)(void *)device.output, found[2];
    RANK_CUDA(rank, cudaMemsetAsync(values, 0, BYTES, device.stream));
    RANK_CUDA(rank, cudaStreamSynchronize(device.stream));
    for (int round = 0; round < ROUNDS; round++) {
        RANK_OK(rank, isgq_allreduce(values, values, COUNT, ISGQ_FLOAT32, ISGQ_SUM, round % 3 == 1 ? quantizer : NULL, device.comm,
                                     round % 2 == 0 ? device.stream : second, NULL));
        if (round == 5) { /* the first element becomes 2, and then the ranks' product of it */
            float two = 2.0f;
            RANK_OK(rank, isgq_comm_synchronize(device.comm));
            RANK_CUDA(rank, cudaMemcpyAsync(values, &two, sizeof(two), cudaMemcpyDefault, device.stream));
            RANK_CUDA(rank, cudaStreamSynchronize(device.stream));
        }
    }
    RANK_OK(rank, isgq_comm_synchronize(device.comm));
    RANK_CUDA(rank, cudaMemcpy(found, values, sizeof(found), cudaMemcpyDefault));
    float expected = 2.0f;
    for (int round = 6; round < ROUNDS; round++)
        expected *= (float)rank->nranks;
    if (quantizer != NULL) /* codes err by less than a step of some hundredths */
        RANK_CHECK(rank, found[0] > 0.9f * expected && found[0] < 1.1f * expected, "%g, not %g", (double)found[0], (double)expected);
    isgq_quantizer_destroy(quantizer);
    close_side(rank, &device);
    RANK_CUDA(rank, cudaStreamDestroy(second));
}

static void hosted_turns(void) { gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_PROCESSES, .nranks = 2, .body = turns_body, .apart = true}); }

/* No graph can contain them; the refusal says why and breaks nothing. */
static void graph_body(iq_rank_t *rank)
{
    side_t device = open_side(rank, true);
    isgq_quantizer_t quantizer = quantizer_of(rank, "isgq:nmse=0.1");
    float *values = (float *)(void *)device.output, one = 1, sum = 0;
    cudaGraph_t graph;
    if (quantizer != NULL) {
        RANK_CUDA(rank, cudaStreamBeginCapture(device.stream, cudaStreamCaptureModeThreadLocal));
        RANK_STATUS(rank, isgq_allreduce(values, values, COUNT, ISGQ_FLOAT32, ISGQ_SUM, quantizer, device.comm, device.stream, NULL),
                    ISGQ_ERR_UNSUPPORTED);
        RANK_CHECK(rank, strstr(isgq_get_last_error(), "being captured") != NULL, "\"%s\"", isgq_get_last_error());
        RANK_CUDA(rank, cudaStreamEndCapture(device.stream, &graph));
        RANK_CUDA(rank, cudaGraphDestroy(graph));
    }
    RANK_CUDA(rank, cudaMemcpy(values, &one, sizeof(one), cudaMemcpyDefault));
    RANK_OK(rank, isgq_allreduce(values, values, 1, ISGQ_FLOAT32, ISGQ_SUM, NULL, device.comm, device.stream, NULL));
    RANK_OK(rank, isgq_comm_synchronize(device.comm));
    RANK_CUDA(rank, cudaMemcpy(&sum, values, sizeof(sum), cudaMemcpyDefault));
    RANK_CHECK(rank, sum == (float)rank->nranks, "%g", (double)sum);
    isgq_quantizer_destroy(quantizer);
    close_side(rank, &device);
}

static void hosted_graph(void) { gpu_run_ranks(&(iq_ranks_t){.kind = IQ_RANKS_THREADS, .nranks = 2, .body = graph_body, .apart = true}); }

/* clang-format off: one line a case */
const gpu_case_t gpu_cases[] = {
    GPU_CASE(coded_threads),
    GPU_CASE(coded_one),
    GPU_CASE(coded_processes),
    GPU_CASE(coded_mixed),
    GPU_CASE(low_rank_threads),
    GPU_CASE(low_rank_mixed),
    GPU_CASE(hosted_turns),
    GPU_CASE(hosted_graph),
    {NULL, NULL},
};
