/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Times, each the median over iterations of the slowest rank's. All ranks work at once, as they do in a training step. A measurement takes about
 * as long as BUDGET: over slow links few iterations do, for there little else is as long as the wire.
 */
#include "tools/common/names.h"
#include "tools/common/options.h"
#include "tools/tune.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BUDGET 0.4 /* seconds */
#define LEAST_ITERATIONS 3

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static float *buffer(size_t bytes)
{
    float *values = malloc(bytes + sizeof(float));
    if (values == NULL)
        iq_die(IQ_EXIT_FAILED, "out of memory: %zu bytes", bytes);
    for (size_t i = 0; i < bytes / sizeof(float); i++)
        values[i] = (float)((i * 2654435761u) % 2001) * 1e-3f - 1.0f;
    return values;
}

/* Seconds of each iteration on this rank, to the median of the slowest. */
static double slowest(const iq_tune_t *tune, double *seconds, size_t iterations)
{
    isgq_quantizer_t none = iq_quantizer_or_die("none");
    iq_check(isgq_allreduce(seconds, seconds, iterations, ISGQ_FLOAT64, ISGQ_MAX, none, tune->comm, NULL, NULL), tune->rank, "allreduce");
    iq_check(isgq_comm_synchronize(tune->comm), tune->rank, "allreduce");
    isgq_quantizer_destroy(none);
    double median = iq_tune_median(seconds, iterations);
    return median > 0 ? median : 1e-9; /* what the clock does not see */
}

typedef struct work {
    void (*run)(const iq_tune_t *tune, struct work *work);
    isgq_comm_t comm;
    isgq_quantizer_t quantizer;
    float *from, *to, *fresh; /* fresh: what `from` holds before each run; NULL: whatever */
    void *message;
    size_t bytes, room, rows, columns;
} work_t;

static double clock_once(const iq_tune_t *tune, work_t *work)
{
    for (size_t i = 0; work->fresh != NULL && i < work->bytes / sizeof(float); i++) /* as after a backward pass, not as the last call left it */
        work->from[i] = work->fresh[i];
    iq_check(isgq_barrier(tune->comm, NULL), tune->rank, "barrier");
    iq_check(isgq_comm_synchronize(tune->comm), tune->rank, "barrier");
    double start = now();
    work->run(tune, work);
    return now() - start;
}

/* As many as asked for, or as fit into BUDGET, the same number on all ranks. */
static size_t affordable(const iq_tune_t *tune, double seconds)
{
    double most = slowest(tune, &seconds, 1);
    return BUDGET / most >= (double)tune->iterations ? tune->iterations : BUDGET / most < LEAST_ITERATIONS ? LEAST_ITERATIONS : (size_t)(BUDGET / most);
}

/* Two runs that do not count: plans are made, and pages are there. */
static double clock_work(const iq_tune_t *tune, work_t *work)
{
    double *seconds = malloc((tune->iterations + LEAST_ITERATIONS) * sizeof(*seconds));
    if (seconds == NULL)
        iq_die(IQ_EXIT_FAILED, "out of memory");
    clock_once(tune, work);
    size_t iterations = affordable(tune, clock_once(tune, work));
    for (size_t i = 0; i < iterations; i++)
        seconds[i] = clock_once(tune, work);
    double median = slowest(tune, seconds, iterations);
    free(seconds);
    return median;
}

static void run_allreduce(const iq_tune_t *tune, work_t *work)
{
    isgq_call_options_t options = {.size = sizeof(options), .algorithm = "auto"};
    iq_check(isgq_allreduce(work->from, work->to, work->bytes / sizeof(float), ISGQ_FLOAT32, ISGQ_AVG, work->quantizer, work->comm, NULL, &options),
             tune->rank, "allreduce");
    iq_check(isgq_comm_synchronize(work->comm), tune->rank, "allreduce");
}

double iq_tune_allreduce(const iq_tune_t *tune, isgq_comm_t part, size_t bytes, isgq_quantizer_t quantizer)
{
    work_t work = {.run = run_allreduce, .comm = part, .quantizer = quantizer, .bytes = bytes};
    work.fresh = buffer(bytes);
    work.from = buffer(bytes);
    work.to = buffer(bytes);
    double seconds = clock_work(tune, &work);
    free(work.fresh);
    free(work.from);
    free(work.to);
    return seconds;
}

void iq_tune_turns(const iq_tune_t *tune, size_t bytes, const char *const *quantizers, size_t count, double *seconds)
{
    float *from = buffer(bytes), *to = buffer(bytes), *fresh = buffer(bytes);
    work_t *works = calloc(count, sizeof(*works));
    double *times = calloc(count * (tune->iterations + LEAST_ITERATIONS), sizeof(*times)), sum = 0;
    if (works == NULL || times == NULL)
        iq_die(IQ_EXIT_FAILED, "out of memory");
    for (size_t q = 0; q < count; q++) {
        works[q] = (work_t){.run = run_allreduce, .comm = tune->comm, .quantizer = iq_quantizer_or_die(quantizers[q]), .bytes = bytes,
                            .from = from, .to = to, .fresh = fresh};
        clock_once(tune, &works[q]);
    }
    for (size_t q = 0; q < count; q++)
        sum += clock_once(tune, &works[q]);
    size_t iterations = affordable(tune, sum / (double)count);
    for (size_t i = 0; i < iterations; i++)
        for (size_t q = 0; q < count; q++)
            times[q * iterations + i] = clock_once(tune, &works[q]);
    for (size_t q = 0; q < count; q++) {
        seconds[q] = slowest(tune, times + q * iterations, iterations);
        isgq_quantizer_destroy(works[q].quantizer);
    }
    free(times);
    free(works);
    free(from);
    free(to);
    free(fresh);
}

/* ---- local work ---- */

static void run_copy(const iq_tune_t *tune, work_t *work)
{
    (void)tune;
    memcpy(work->to, work->from, work->bytes);
    __asm__ volatile("" : : "r"(work->to) : "memory");
}

static void run_sum(const iq_tune_t *tune, work_t *work)
{
    (void)tune;
    for (size_t i = 0; i < work->bytes / sizeof(float); i++)
        work->to[i] += work->from[i];
    __asm__ volatile("" : : "r"(work->to) : "memory");
}

static double local_rate(const iq_tune_t *tune, size_t bytes, void (*run)(const iq_tune_t *, work_t *))
{
    work_t work = {.run = run, .from = buffer(bytes), .to = buffer(bytes), .bytes = bytes};
    double seconds = clock_work(tune, &work);
    free(work.from);
    free(work.to);
    return (double)bytes / seconds;
}

double iq_tune_copy_rate(const iq_tune_t *tune, size_t bytes) { return local_rate(tune, bytes, run_copy); }
double iq_tune_sum_rate(const iq_tune_t *tune, size_t bytes) { return local_rate(tune, bytes, run_sum); }

static void run_product(const iq_tune_t *tune, work_t *work)
{
    isgq_factors_t factors = {.size = sizeof(factors), .x = work->from, .delta = work->from, .batch = work->rows, .m = work->columns, .n = work->columns};
    isgq_call_options_t options = {.size = sizeof(options), .algorithm = "gather"};
    iq_check(isgq_allreduce_factored(&factors, work->rows, work->to, ISGQ_FLOAT32, ISGQ_SUM, work->quantizer, work->comm, NULL, &options),
             tune->rank, "allreduce_factored");
    iq_check(isgq_comm_synchronize(work->comm), tune->rank, "allreduce_factored");
}

double iq_tune_factored(const iq_tune_t *tune, isgq_comm_t alone, size_t rows, size_t side, const char *quantizer)
{
    work_t work = {.run = run_product, .comm = alone, .quantizer = iq_quantizer_or_die(quantizer),
                   .from = buffer(rows * side * sizeof(float)), .to = buffer(side * side * sizeof(float)),
                   .rows = rows, .columns = side};
    double seconds = clock_work(tune, &work);
    isgq_quantizer_destroy(work.quantizer);
    free(work.from);
    free(work.to);
    return seconds;
}

/* ---- codes ---- */

static isgqx_contribution_t contribution(const work_t *work)
{
    return (isgqx_contribution_t){.size = sizeof(isgqx_contribution_t), .quantizer = work->quantizer, .datatype = ISGQ_FLOAT32,
                                  .count = work->bytes / sizeof(float), .seed = 1, .call = 1};
}

static void run_encode(const iq_tune_t *tune, work_t *work)
{
    isgqx_contribution_t what = contribution(work);
    size_t bytes;
    iq_check(isgqx_encode(&what, work->from, work->message, work->room, &bytes), tune->rank, "encode");
    work->rows = bytes; /* of the message */
}

static void run_decode(const iq_tune_t *tune, work_t *work)
{
    isgqx_contribution_t what = contribution(work);
    iq_check(isgqx_decode(&what, work->message, work->rows, work->to), tune->rank, "decode");
}

bool iq_tune_codec(const iq_tune_t *tune, size_t bytes, isgq_quantizer_t quantizer, isgqx_tuned_codec_t *codec)
{
    work_t work = {.run = run_encode, .quantizer = quantizer, .bytes = bytes};
    isgqx_contribution_t what = contribution(&work);
    if (isgqx_encode(&what, NULL, NULL, 0, &work.room) != ISGQ_SUCCESS)
        return false;
    work.from = buffer(bytes);
    work.to = buffer(bytes);
    work.message = buffer(work.room);
    codec->encode_rate = (double)bytes / clock_work(tune, &work);
    work.run = run_decode;
    codec->decode_rate = (double)bytes / clock_work(tune, &work);
    free(work.from);
    free(work.to);
    free(work.message);
    return true;
}
