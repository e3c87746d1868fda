/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_gpu, kernels of one codec or feature alone: error feedback, and codes of powers of two. Rows, repetitions and bytes as in bench_kernels.c.
 */
#include "codec/device.h"
#include "gpu/bench_gpu.h"
#include "kernels/feedback_math.h"

#include <stdio.h>
#include <stdlib.h>

enum { MOST_SETS = 8, MOST_REPETITIONS = 64, BITS = 8, SLOTS = 2, SUM_BYTES = 2 + SLOTS };

/* Device memory. Sums are of two ranks. */
typedef struct set {
    float *gradient, *values, *decoded, *residual;
    void *codes, *sums;
} set_t;

static const iq_cuda_module_t *cuda;
static isgq_stream_t stream;
static set_t sets[MOST_SETS];
static iq_feedback_state_t *state;
static float *scale;
static uint32_t *fault; /* pinned */

static void *take(size_t bytes)
{
    void *memory = NULL;
    TRY(cuda->alloc(0, stream, bytes, &memory));
    TRY(cuda->clear(0, stream, memory, bytes));
    return memory;
}

static void settle(void)
{
    TRY_CUDA(cudaStreamSynchronize(stream));
    if (*fault != IQ_CUDA_NO_FAULT)
        bench_die(__FILE__, __LINE__, "exponent", "a kernel found a fault in codes that it was given");
}

/* ---- launches ---- */

static void launch_feedback(const bench_t *bench, const set_t *set, int step)
{
    iq_cuda_feedback_t feedback = {.step = (iq_cuda_feedback_step_t)step,
                                   .type = ISGQ_FLOAT32,
                                   .gradient = set->gradient,
                                   .input = set->values,
                                   .decoded = set->decoded,
                                   .output = set->values,
                                   .residual = set->residual,
                                   .weight = 1.0f,
                                   .weighted = true,
                                   .state = state,
                                   .count = bench->count,
                                   .corrected = bench->count};
    TRY(cuda->feedback(0, stream, &feedback));
}

typedef struct change {
    const char *name; /* as in codec.h */
    iq_cuda_form_t from, to;
    bool starts;
} change_t;

/* Codes before sums before what is made of them: each row leaves what the next one reads. */
static const change_t changes[] = {
    {"encode powers", IQ_CUDA_VALUES, IQ_CUDA_CODES, false}, {"add_own powers", IQ_CUDA_VALUES, IQ_CUDA_SUMS, true},
    {"add powers", IQ_CUDA_CODES, IQ_CUDA_SUMS, false},      {"store powers", IQ_CUDA_SUMS, IQ_CUDA_CODES, false},
    {"deliver powers", IQ_CUDA_SUMS, IQ_CUDA_VALUES, false}, {"decode powers", IQ_CUDA_CODES, IQ_CUDA_VALUES, false}};

static void launch_change(const bench_t *bench, const set_t *set, int index)
{
    const change_t *change = &changes[index];
    void *places[] = {[IQ_CUDA_VALUES] = set->decoded, [IQ_CUDA_SUMS] = set->sums, [IQ_CUDA_CODES] = set->codes};
    iq_cuda_exponent_t exponent = {.from = change->from,
                                   .to = change->to,
                                   .type = ISGQ_FLOAT32,
                                   .src = change->from == IQ_CUDA_VALUES ? set->gradient : places[change->from],
                                   .dst = places[change->to],
                                   .starts = change->starts,
                                   .scales = scale,
                                   .bits = BITS,
                                   .slots = SLOTS,
                                   .head = 1,
                                   .least = 1,
                                   .parts = 1,
                                   .largest_of_one = 2.0,
                                   .first = 0,
                                   .count = bench->count,
                                   .fault = fault};
    TRY(cuda->exponent(0, stream, &exponent));
}

/* ---- rows ---- */

static void run(bench_t *bench, bench_row_t row, void (*launch)(const bench_t *bench, const set_t *set, int which), int which)
{
    static cudaEvent_t marks[MOST_REPETITIONS + 1];
    float microseconds[MOST_REPETITIONS];
    size_t all = bench->warm + bench->repetitions;
    if (marks[0] == NULL)
        for (size_t i = 0; i <= MOST_REPETITIONS; i++)
            TRY_CUDA(cudaEventCreate(&marks[i]));
    for (size_t i = 0; i < all; i++) {
        TRY_CUDA(cudaEventRecord(marks[i], stream));
        for (size_t s = 0; s < bench->sets; s++)
            launch(bench, &sets[s], which);
    }
    TRY_CUDA(cudaEventRecord(marks[all], stream));
    settle();
    for (size_t i = 0; i < bench->repetitions; i++) {
        TRY_CUDA(cudaEventElapsedTime(&microseconds[i], marks[bench->warm + i], marks[bench->warm + i + 1]));
        microseconds[i] *= 1e3f / (float)bench->sets;
    }
    row.part = "kernel";
    row.type = "f32";
    row.count = bench->count;
    row.rated = true;
    bench_put(bench, &row, microseconds, bench->repetitions);
}

static size_t form_bytes(const bench_t *bench, iq_cuda_form_t form)
{
    return bench->count * (form == IQ_CUDA_VALUES ? sizeof(float) : form == IQ_CUDA_SUMS ? SUM_BYTES : BITS / 8);
}

static void open_sets(const bench_t *bench)
{
    size_t bytes = bench->count * sizeof(float);
    float *host = malloc(bytes), one = 1.0f;
    if (host == NULL)
        bench_die(__FILE__, __LINE__, "malloc", "no memory");
    bench_fill(host, bench->count, 0);
    for (size_t s = 0; s < bench->sets; s++) {
        sets[s] = (set_t){take(bytes), take(bytes), take(bytes), take(bytes), take(form_bytes(bench, IQ_CUDA_CODES) + 8), take(form_bytes(bench, IQ_CUDA_SUMS))};
        TRY(cuda->copy(0, stream, sets[s].gradient, host, bytes));
    }
    state = take(sizeof(*state));
    scale = take(sizeof(*scale));
    TRY(cuda->copy(0, stream, scale, &one, sizeof(one)));
    settle();
    free(host);
}

static void close_sets(const bench_t *bench)
{
    for (size_t s = 0; s < bench->sets; s++) {
        void *all[] = {sets[s].gradient, sets[s].values, sets[s].decoded, sets[s].residual, sets[s].codes, sets[s].sums};
        for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
            cuda->release(0, stream, all[i]);
    }
    cuda->release(0, stream, state);
    cuda->release(0, stream, scale);
    settle();
}

void bench_steps(bench_t *bench)
{
    static const char *const feedback[] = {
        [IQ_CUDA_ADD_RESIDUAL] = "add residual", [IQ_CUDA_KEEP_ERROR] = "keep error", [IQ_CUDA_SETTLE_ERROR] = "settle error"};
    cuda = (const iq_cuda_module_t *)iq_module_load("cuda");
    if (cuda == NULL)
        bench_die(__FILE__, __LINE__, "iq_module_load", isgq_get_last_error());
    TRY(cuda->stream_create(0, &stream));
    TRY_CUDA(cudaMallocHost((void **)&fault, sizeof(*fault)));
    *fault = IQ_CUDA_NO_FAULT;
    open_sets(bench);
    for (int step = IQ_CUDA_ADD_RESIDUAL; step <= IQ_CUDA_SETTLE_ERROR; step++)
        run(bench, (bench_row_t){.name = feedback[step], .bytes = 4 * bench->count * sizeof(float)}, launch_feedback, step);
    for (int i = 0; i < (int)(sizeof(changes) / sizeof(changes[0])); i++) {
        size_t kept = changes[i].to == IQ_CUDA_SUMS && !changes[i].starts ? form_bytes(bench, IQ_CUDA_SUMS) : 0;
        bench_row_t row = {.name = changes[i].name, .rounding = "stochastic", .bits = BITS, .width = BITS, .tensor = true};
        row.bytes = form_bytes(bench, changes[i].from) + form_bytes(bench, changes[i].to) + kept;
        run(bench, row, launch_change, i);
    }
    close_sets(bench);
    cuda->stream_destroy(0, stream);
    TRY_CUDA(cudaFreeHost(fault));
}
