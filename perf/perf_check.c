/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Checking a dense result: every input is made again, block by block, reduced in double, and compared with what was delivered.
 *
 * Where all ranks hold the same result (their hashes say so) each checks its own n-th of it; of a reduce_scatter each checks its
 * part.
 */
#include "perf/perf.h"
#include "tools/common/options.h"

#include <math.h>
#include <stdlib.h>
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
    const char *delivered;
    iq_perf_tally_t tally;
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

static const char *delivered_at(const checker_t *checker, const stretch_t *s, size_t offset)
{
    return checker->delivered + (s->result_first + offset) * checker->test->type->bytes;
}

/* Lossless: the result is the exact one, rounded to the type where an average needs it. */
static void check_exact(checker_t *checker, const stretch_t *s, size_t offset, size_t count)
{
    double values[BLOCK], exact[BLOCK];
    isgq_data_type_t type = checker->test->type->type;

    for (int rank = s->from; rank < s->to; rank++) {
        iq_perf_values(&checker->source, rank, s->input_first + offset, count, values);
        if (rank == s->from)
            memcpy(exact, values, count * sizeof(double));
        else
            reduce(checker->source.op, exact, values, count);
    }
    if (checker->source.op == ISGQ_AVG)
        for (size_t i = 0; i < count; i++)
            exact[i] /= checker->setup->nranks;
    iq_perf_round(type, exact, count);
    iq_perf_load(type, delivered_at(checker, s, offset), count, values);
    for (size_t i = 0; i < count; i++) {
        double error = values[i] - exact[i];
        checker->tally.sums.wrong += !(error == 0.0); /* a NaN is wrong too */
        checker->tally.sums.error += error * error;
        checker->tally.sums.norm += exact[i] * exact[i];
    }
}

static void check_lossy(checker_t *checker, const stretch_t *s, size_t offset, size_t count, double *values)
{
    size_t parts = (size_t)(s->to - s->from);
    double *got = values + parts * count;
    iq_perf_block_t block = {.values = values,
                             .stride = count,
                             .count = count,
                             .got = got,
                             .divisor = checker->source.op == ISGQ_AVG ? checker->setup->nranks : 1.0,
                             .max = IQ_PERF_REAL_MAX};

    for (size_t part = 0; part < parts; part++)
        iq_perf_values(&checker->source, s->from + (int)part, s->input_first + offset, count, values + part * count);
    iq_perf_load(checker->test->type->type, delivered_at(checker, s, offset), count, got);
    iq_perf_tally_add(&checker->tally, &block);
}

static void check_stretch(checker_t *checker, const stretch_t *s)
{
    int parts = s->to - s->from;
    size_t step = checker->test->lossless ? BLOCK : iq_perf_block_elements(parts);
    double *values = checker->test->lossless ? NULL : malloc(((size_t)parts + 1) * step * sizeof(double));

    if (values == NULL && !checker->test->lossless)
        iq_die(IQ_EXIT_FAILED, "rank %d: no memory for %zu doubles", checker->setup->rank, ((size_t)parts + 1) * step);
    for (size_t offset = 0; offset < s->count; offset += step) {
        size_t count = s->count - offset < step ? s->count - offset : step;
        if (checker->test->lossless)
            check_exact(checker, s, offset, count);
        else
            check_lossy(checker, s, offset, count, values);
    }
    free(values);
}

enum { LEAST_SHARE = 4096 };

/* This rank's n-th of `count` elements; few are all rank 0's, so that a model of buckets has whole ones. */
static size_t share_start(size_t count, int rank, int nranks)
{
    if (count < LEAST_SHARE * (size_t)nranks)
        return rank == 0 ? 0 : count;
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
    checker_t checker = {.setup = setup, .test = test, .source = iq_perf_case_source(setup, test), .delivered = delivered};

    checker.tally = iq_perf_tally_open(setup, test, result->record.algorithm);
    check_share(&checker);
    result->wrong = iq_perf_tally_close(setup, &checker.tally, test->type->type, &result->nmse);
}
