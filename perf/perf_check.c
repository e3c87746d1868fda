/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checking a dense result: every input is made again, block by block, reduced in double, and compared with what was delivered.
 *
 * Where all ranks hold the same result (their hashes say so) each checks its own n-th of it; of a reduce_scatter each checks its
 * part.
 */
#include "perf/perf.h"

#include <math.h>
#include <string.h>

enum { BLOCK = 2048 };

/* A stretch of the result and of the inputs that made it: inputs of ranks from..to-1, elements first.. of their tensors. */
typedef struct stretch {
    size_t result_first; /* element of the delivered buffer */
    size_t input_first;
    size_t count;
    int from, to;
} stretch_t;

typedef struct checker {
    const iq_perf_setup_t *setup;
    const iq_perf_case_t *test;
    iq_perf_source_t source;
    iq_perf_bound_t bound;
    const char *delivered;
    double wrong, error, norm; /* sums so far; numbers of elements stay exact in a double */
} checker_t;

iq_perf_source_t iq_perf_case_source(const iq_perf_setup_t *setup, const iq_perf_case_t *test)
{
    bool reduces = test->collective == IQ_PERF_ALLREDUCE || test->collective == IQ_PERF_REDUCE_SCATTER;

    return (iq_perf_source_t){.seed = setup->seed,
                              .type = test->type,
                              .op = reduces ? test->op : ISGQ_MAX,
                              .real = !test->lossless,
                              .nranks = setup->nranks};
}

static void reduce(isgq_red_op_t op, double *sum, const double *values, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        switch (op) {
        case ISGQ_SUM:
        case ISGQ_AVG: sum[i] += values[i]; break;
        case ISGQ_PROD: sum[i] *= values[i]; break;
        case ISGQ_MAX: sum[i] = fmax(sum[i], values[i]); break;
        case ISGQ_MIN: sum[i] = fmin(sum[i], values[i]); break;
        }
    }
}

static void compare(checker_t *checker, const double *got, const double *exact, const double *magnitude, size_t count)
{
    double parts = checker->source.op == ISGQ_AVG ? checker->setup->nranks : 1.0;
    iq_perf_bound_t bound = checker->bound;

    for (size_t i = 0; i < count; i++) {
        double error = got[i] - exact[i];
        double allowed = checker->test->lossless
                             ? 0.0
                             : (bound.relative * magnitude[i] + bound.step * IQ_PERF_REAL_MAX) / parts + bound.absolute;
        checker->wrong += !(fabs(error) <= allowed); /* a NaN is wrong too */
        checker->error += error * error;
        checker->norm += exact[i] * exact[i];
    }
}

static void check_block(checker_t *checker, const stretch_t *s, size_t offset, size_t count)
{
    double values[BLOCK], exact[BLOCK], magnitude[BLOCK];
    isgq_data_type_t type = checker->test->type->type;

    for (int rank = s->from; rank < s->to; rank++) {
        iq_perf_values(&checker->source, rank, s->input_first + offset, count, values);
        if (rank == s->from) {
            memcpy(exact, values, count * sizeof(double));
            memset(magnitude, 0, count * sizeof(double));
        } else {
            reduce(checker->source.op, exact, values, count);
        }
        for (size_t i = 0; i < count; i++)
            magnitude[i] += fabs(values[i]);
    }
    if (checker->source.op == ISGQ_AVG)
        for (size_t i = 0; i < count; i++)
            exact[i] /= checker->setup->nranks;
    if (checker->test->lossless)
        iq_perf_round(type, exact, count);
    iq_perf_load(type, checker->delivered + (s->result_first + offset) * checker->test->type->bytes, count, values);
    compare(checker, values, exact, magnitude, count);
}

static void check_stretch(checker_t *checker, const stretch_t *s)
{
    for (size_t offset = 0; offset < s->count; offset += BLOCK)
        check_block(checker, s, offset, s->count - offset < BLOCK ? s->count - offset : BLOCK);
}

/* This rank's n-th of `count` elements. */
static size_t share_start(size_t count, int rank, int nranks)
{
    size_t whole = count / (size_t)nranks, rest = count % (size_t)nranks;

    return whole * (size_t)rank + (rest < (size_t)rank ? rest : (size_t)rank);
}

static void check_share(checker_t *checker)
{
    const iq_perf_setup_t *setup = checker->setup;
    size_t count = checker->test->count;
    size_t first = share_start(count, setup->rank, setup->nranks), end = share_start(count, setup->rank + 1, setup->nranks);
    stretch_t s = {.result_first = first, .input_first = first, .count = end - first, .from = 0, .to = setup->nranks};

    switch (checker->test->collective) {
    case IQ_PERF_BROADCAST:
        s.from = setup->root;
        s.to = setup->root + 1;
        break;
    case IQ_PERF_REDUCE_SCATTER:
        s = (stretch_t){.input_first = (size_t)setup->rank * count, .count = count, .from = 0, .to = setup->nranks};
        break;
    case IQ_PERF_ALLGATHER: /* this rank's n-th of each part */
        for (int rank = 0; rank < setup->nranks; rank++) {
            stretch_t part = {first + (size_t)rank * count, first, end - first, rank, rank + 1};
            check_stretch(checker, &part);
        }
        return;
    default: break;
    }
    check_stretch(checker, &s);
}

void iq_perf_check(const iq_perf_setup_t *setup, const iq_perf_case_t *test, const void *delivered, iq_perf_result_t *result)
{
    bool reduces = test->collective == IQ_PERF_ALLREDUCE || test->collective == IQ_PERF_REDUCE_SCATTER;
    checker_t checker = {.setup = setup,
                         .test = test,
                         .source = iq_perf_case_source(setup, test),
                         .bound =
                             iq_perf_bound(test->quantizer_text, test->type->type, reduces ? setup->nranks : 1, setup->nranks),
                         .delivered = delivered};

    check_share(&checker);
    double sums[3] = {checker.wrong, checker.error, checker.norm};
    iq_perf_combine(setup, ISGQ_SUM, sums, 3);
    result->wrong = (uint64_t)sums[0];
    result->nmse = sums[1] == 0.0 ? 0.0 : sums[1] / sums[2];
}
