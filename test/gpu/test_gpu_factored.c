/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Factored calls on device memory give the bits that they give on host memory, for every way, quantizer, type and kind of ranks;
 * and ranks on both may meet in one communicator.
 *
 * On the dense way each rank sums floats in its own order. Factors of small integers make those sums exact, so that bits can be
 * compared there too; what other factors give is compared within the sums' errors.
 */
#include "gpu/gpu_main.h"
#include "support/numbers.h"
#include "support/samples.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MOST_FACTOR 20000 /* elements of X and Delta together */
#define MOST_RESULT 66000 /* of gradient and bias */

typedef struct shape {
    size_t m, n, max_batch;
} shape_t;

/* One call, the same on both communicators. */
typedef struct job {
    shape_t shape;
    isgq_data_type_t type;
    isgq_red_op_t op;
    const char *quantizer, *algorithm;
    bool bias, accumulate, integers, nan;
    bool empty; /* rank 1 has no rows */
} job_t;

/* Factors and results of one rank in one memory: X, then Delta; one element that is nobody's, gradient, bias. */
typedef struct memory {
    unsigned char *factors, *results;
} memory_t;

typedef struct pair {
    isgq_comm_t host, device; /* `device`: of this rank, which may work on host memory too */
    bool on_gpu, all_on_gpus;
    cudaStream_t stream;
    memory_t in_host, on_device, expected, output; /* the last two hold results only */
} pair_t;

static size_t batch_of(const job_t *job, int rank)
{
    return job->empty && rank == 1 ? 0 : job->shape.max_batch - (size_t)rank % (job->shape.max_batch + 1);
}

static void call(iq_rank_t *rank, const job_t *job, isgq_comm_t comm, memory_t memory, isgq_stream_t stream)
{
    size_t bytes = iq_types[job->type].bytes;
    const shape_t *shape = &job->shape;
    isgq_quantizer_t quantizer = iq_quantizer(rank, job->quantizer);
    isgq_call_options_t options = {.size = sizeof(options), .algorithm = job->algorithm, .accumulate = job->accumulate};
    unsigned char *grad = memory.results + bytes;
    isgq_factors_t factors = {.size = sizeof(factors),
                              .batch = batch_of(job, rank->rank),
                              .m = shape->m,
                              .n = shape->n,
                              .x = memory.factors,
                              .bias = job->bias ? grad + shape->m * shape->n * bytes : NULL};
    factors.delta = memory.factors + factors.batch * shape->m * bytes;
    if (factors.batch == 0)
        factors.x = factors.delta = NULL;
    RANK_OK(rank,
            isgq_allreduce_factored(&factors, shape->max_batch, grad, job->type, job->op, quantizer, comm, stream, &options));
    memset(&factors, 0xff, sizeof(factors));
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
            !(isnan(iq_numbers_get(type, a, i)) && isnan(iq_numbers_get(type, b, i))))
            return false;
    return true;
}

static size_t count_factors(const job_t *job, int rank) { return batch_of(job, rank) * (job->shape.m + job->shape.n); }
static size_t count_results(const job_t *job) { return 1 + job->shape.m * job->shape.n + (job->bias ? job->shape.n : 0); }

static void fill(const job_t *job, int rank, uint64_t salt, memory_t memory)
{
    size_t count = count_factors(job, rank);
    if (job->integers)
        iq_numbers_fill(job->type, ISGQ_SUM, salt, rank, 0, count, memory.factors);
    else
        iq_samples_fill(job->type, salt, rank, 0, count, memory.factors);
    if (job->nan && rank == 0 && count > 0)
        iq_numbers_set(job->type, memory.factors, count - 1, (double)NAN);                    /* in Delta's last column */
    iq_numbers_fill(job->type, ISGQ_SUM, salt + 1, 0, 0, count_results(job), memory.results); /* what accumulation adds to */
}

/* Where all ranks work on devices, gathered factors travel as the most bytes that they could take, and wires have no frames. Ranks on hosts write
 * sums once for all to read (boards); beside devices each gets its own message. */
static void compare_bytes(iq_rank_t *rank, const pair_t *pair, const isgqx_call_record_t *due, const isgqx_call_record_t *found)
{
    bool longer = pair->all_on_gpus && strcmp(found->algorithm, "gather") == 0;
    bool same_own = longer ? found->own_bytes >= due->own_bytes : found->own_bytes == due->own_bytes;
    bool same_wire = pair->all_on_gpus ? found->wire_bytes > 0 || due->wire_bytes == 0
                                       : found->wire_bytes >= due->wire_bytes && found->wire_bytes <= due->wire_bytes * (uint64_t)rank->nranks;
    RANK_CHECK(rank, same_own && same_wire, "%s: %zu and %zu bytes, on hosts %zu and %zu", due->algorithm, (size_t)found->own_bytes,
               (size_t)found->wire_bytes, (size_t)due->own_bytes, (size_t)due->wire_bytes);
}

/* One call on both communicators; the results lie in expected and output. */
static void run_both(iq_rank_t *rank, const pair_t *pair, const job_t *job, uint64_t salt)
{
    size_t bytes = iq_types[job->type].bytes, results = count_results(job) * bytes;
    isgqx_call_record_t due = {.size = sizeof(due)}, found = {.size = sizeof(found)};
    fill(job, rank->rank, salt, pair->in_host);
    memcpy(pair->output.results, pair->in_host.results, results);
    if (pair->on_gpu) {
        RANK_CUDA(rank, cudaMemcpyAsync(pair->on_device.factors, pair->in_host.factors, count_factors(job, rank->rank) * bytes,
                                        cudaMemcpyDefault, pair->stream));
        RANK_CUDA(rank, cudaMemcpyAsync(pair->on_device.results, pair->output.results, results, cudaMemcpyDefault, pair->stream));
        call(rank, job, pair->device, pair->on_device, pair->stream);
        RANK_CUDA(rank, cudaMemcpyAsync(pair->output.results, pair->on_device.results, results, cudaMemcpyDefault, pair->stream));
        RANK_CUDA(rank, cudaStreamSynchronize(pair->stream));
    } else {
        call(rank, job, pair->device, (memory_t){pair->in_host.factors, pair->output.results}, NULL);
    }
    RANK_OK(rank, isgq_comm_synchronize(pair->device));
    memcpy(pair->expected.results, pair->in_host.results, results);
    call(rank, job, pair->host, (memory_t){pair->in_host.factors, pair->expected.results}, NULL);
    RANK_OK(rank, isgq_comm_synchronize(pair->host));
    RANK_OK(rank, isgqx_last_call(pair->host, &due));
    RANK_OK(rank, isgqx_last_call(pair->device, &found));
    bool shares = strcmp(due.algorithm, "share") == 0; /* for hosts alone; gather has its bits */
    RANK_CHECK(rank, strcmp(shares ? "gather" : due.algorithm, found.algorithm) == 0, "%s in place of %s", found.algorithm, due.algorithm);
    compare_bytes(rank, pair, &due, &found);
}

static void compare(iq_rank_t *rank, const pair_t *pair, const job_t *job)
{
    static const char *const ops[] = {[ISGQ_SUM] = "sum", [ISGQ_AVG] = "mean"};
    run_both(rank, pair, job, 4711 + job->shape.m);
    RANK_CHECK(rank, same(job->type, pair->expected.results, pair->output.results, count_results(job)),
               "%zu x %zu, batch %zu, %s %s, %s, %s%s%s: other bits than on the host", job->shape.m, job->shape.n,
               job->shape.max_batch, iq_types[job->type].name, ops[job->op], job->quantizer,
               job->algorithm != NULL ? job->algorithm : "auto", job->bias ? ", bias" : "",
               job->accumulate ? ", accumulated" : "");
}

/* ---- communicators and memory ---- */

static isgq_comm_t join(iq_rank_t *rank, isgq_device_type_t type)
{
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    isgq_comm_t comm = NULL;
    isgq_unique_id_t id = gpu_id(rank);
    config.device_type = type;
    config.chunk_bytes = 4096; /* factors and rows travel in several pieces */
    RANK_OK(rank, isgq_comm_init_rank(&comm, rank->nranks, id, rank->rank, &config));
    return comm;
}

static memory_t host_memory(iq_rank_t *rank)
{
    memory_t memory = {malloc(MOST_FACTOR * sizeof(float)), malloc(MOST_RESULT * sizeof(float))};
    RANK_CHECK(rank, memory.factors != NULL && memory.results != NULL, "no memory");
    return memory;
}

static void free_host_memory(memory_t memory)
{
    free(memory.factors);
    free(memory.results);
}

static pair_t open_pair(iq_rank_t *rank, bool on_gpu, bool all_on_gpus)
{
    pair_t pair = {.on_gpu = on_gpu,
                   .all_on_gpus = all_on_gpus,
                   .in_host = host_memory(rank),
                   .expected = host_memory(rank),
                   .output = host_memory(rank)};
    pair.host = join(rank, ISGQ_DEVICE_HOST);
    pair.device = join(rank, on_gpu ? ISGQ_DEVICE_CUDA : ISGQ_DEVICE_HOST);
    if (!on_gpu)
        return pair;
    pair.stream = gpu_stream(rank);
    RANK_CUDA(rank, cudaMalloc((void **)&pair.on_device.factors, MOST_FACTOR * sizeof(float)));
    RANK_CUDA(rank, cudaMalloc((void **)&pair.on_device.results, MOST_RESULT * sizeof(float)));
    return pair;
}

static void close_pair(iq_rank_t *rank, pair_t *pair)
{
    gpu_leave(rank, pair->host);
    gpu_leave(rank, pair->device);
    if (pair->on_gpu) {
        RANK_CUDA(rank, cudaStreamDestroy(pair->stream));
        RANK_CUDA(rank, cudaFree(pair->on_device.factors));
        RANK_CUDA(rank, cudaFree(pair->on_device.results));
    }
    free_host_memory(pair->in_host);
    free_host_memory(pair->expected);
    free_host_memory(pair->output);
}

/* ---- one answer ---- */

static const isgq_data_type_t types[] = {ISGQ_FLOAT32, ISGQ_FLOAT16, ISGQ_BFLOAT16};
static const shape_t shapes[] = {{1, 1, 1},   {130, 97, 40}, {17, 33, 5}, {1, 300, 19},  {65, 1, 70},
                                 {0, 300, 3}, {64, 64, 16},  {4, 0, 3},   {300, 200, 35}};
#define SHAPES (sizeof(shapes) / sizeof(shapes[0]))

/* Every shape and way for every quantizer; types, reductions, biases and empty ranks in turns. Where only messages travel in another way, three shapes and
 * a third of the quantizers. */
static void answer(iq_rank_t *rank, const pair_t *pair, size_t shapes_used)
{
    static const char *const quantizers[] = {"factor:bits=4",      "factor:bits=2",   "factor:width=4/4",
                                             "factor:width=8/8", "factor:bits=6", "factor:width=2/3,rounding=nearest",
                                             "uniform:bits=4",   "none"};
    static const char *const ways[] = {NULL, "gather", "reduce", "dense"};
    bool all = gpu_over("cuda_ipc");
    for (size_t q = 0; q < 8; q += all ? 1 : 3)
        for (size_t s = 0; s < shapes_used && (all || s < 3); s++)
            for (size_t w = 0; w < 4; w++) {
                size_t i = q + s + w;
                job_t job = {.shape = shapes[s],
                             .type = types[i % 3],
                             .op = i % 2 == 0 ? ISGQ_SUM : ISGQ_AVG,
                             .quantizer = quantizers[q],
                             .algorithm = ways[w],
                             .bias = (q + w) % 2 == 0,
                             .accumulate = (q + 2 * s + w) % 4 == 0,
                             .integers = w == 0 || w == 3,
                             .empty = (q + s) % 3 == 0};
                if (q < 6 || w == 0 || w == 3) /* the others have no factored form */
                    compare(rank, pair, &job);
            }
}

static void answer_body(iq_rank_t *rank)
{
    pair_t pair = open_pair(rank, true, true);
    answer(rank, &pair, SHAPES);
    close_pair(rank, &pair);
}

static void short_body(iq_rank_t *rank)
{
    pair_t pair = open_pair(rank, true, true);
    answer(rank, &pair, 3);
    close_pair(rank, &pair);
}

/* Even ranks compute on the CPU, odd ones on the GPU. */
static void mixed_body(iq_rank_t *rank)
{
    pair_t pair = open_pair(rank, rank->rank % 2 == 1, false);
    answer(rank, &pair, 4);
    close_pair(rank, &pair);
}

static void over(iq_ranks_kind_t kind, int nranks, iq_rank_fn body)
{
    iq_ranks_t ranks = {.kind = kind, .nranks = nranks, .body = body, .apart = true, .watchdog_s = 240};
    gpu_run_ranks(&ranks);
}

static void one_rank_factored(void) { over(IQ_RANKS_THREADS, 1, short_body); }
static void threads_factored(void) { over(IQ_RANKS_THREADS, 3, answer_body); }
static void four_threads_factored(void) { over(IQ_RANKS_THREADS, 4, short_body); }
static void processes_factored(void) { over(IQ_RANKS_PROCESSES, 2, answer_body); }

static void mixed_factored(void)
{
    gpu_not_over("nccl", "a rank on a CPU has no part in a wire");
    over(IQ_RANKS_THREADS, 4, mixed_body);
}

static void mixed_processes_factored(void)
{
    gpu_not_over("nccl", "a rank on a CPU has no part in a wire");
    over(IQ_RANKS_PROCESSES, 3, mixed_body);
}

/* ---- NaN, and sums of floats ---- */

static void nan_body(iq_rank_t *rank)
{
    static const char *const ways[] = {"gather", "reduce", "dense"};
    pair_t pair = open_pair(rank, true, true);
    for (int i = 0; i < 6; i++) {
        job_t job = {.shape = {13, 9, 4},
                     .type = types[i % 3],
                     .quantizer = i < 3 ? "factor:bits=4" : "factor:width=4/4",
                     .algorithm = ways[i % 3],
                     .bias = true,
                     .integers = true,
                     .nan = true};
        compare(rank, &pair, &job);
        double grad = iq_numbers_get(job.type, pair.output.results, 9),
               bias = iq_numbers_get(job.type, pair.output.results, 13 * 9 + 9);
        RANK_CHECK(rank, isnan(grad) && isnan(bias), "%s: NaN became %g and %g", job.algorithm, grad, bias);
    }
    close_pair(rank, &pair);
}

static void nan_shows_factored(void) { over(IQ_RANKS_THREADS, 2, nan_body); }

/* Every rank has the same bits; they are those of the host but for the order of sums. */
static void dense_body(iq_rank_t *rank)
{
    pair_t pair = open_pair(rank, true, true);
    for (int i = 0; i < 3; i++) {
        job_t job = {
            .shape = {130, 97, 40}, .type = types[i], .op = ISGQ_AVG, .quantizer = "none", .algorithm = "dense", .bias = true};
        double roundoff = i == 0 ? 0x1p-24 : i == 1 ? 0x1p-10 : 0x1p-7, most = 0;
        run_both(rank, &pair, &job, 99);
        for (size_t k = 1; k < count_results(&job); k++)
            most = fmax(most, fabs(iq_numbers_get(job.type, pair.expected.results, k)));
        for (size_t k = 1; k < count_results(&job); k++) {
            double due = iq_numbers_get(job.type, pair.expected.results, k),
                   found = iq_numbers_get(job.type, pair.output.results, k);
            RANK_CHECK(rank, fabs(due - found) <= roundoff * fabs(due) + 160 * 0x1p-24 * most, "%s, element %zu: %.9g, not %.9g",
                       iq_types[job.type].name, k, found, due);
        }
        iq_rank_agree(rank, isgqx_hash(pair.output.results, count_results(&job) * iq_types[job.type].bytes), "dense");
    }
    close_pair(rank, &pair);
}

static void dense_is_near(void) { over(IQ_RANKS_THREADS, 3, dense_body); }

/* clang-format off: one line a case */
const gpu_case_t gpu_cases[] = {
    GPU_CASE(one_rank_factored),
    GPU_CASE(threads_factored),
    GPU_CASE(four_threads_factored),
    GPU_CASE(processes_factored),
    GPU_CASE(mixed_factored),
    GPU_CASE(mixed_processes_factored),
    GPU_CASE(nan_shows_factored),
    GPU_CASE(dense_is_near),
    {NULL, NULL},
};
