/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One quantizer on one source: real calls, repeated with fresh random numbers, against the exact mean.
 *
 * Unbiased means that the error goes away in the mean over draws. That is looked at along a few fixed directions of the space of all
 * elements: in each, the mean of the error's projection over the draws divided by its standard error, and the largest of these
 * counts. A quantizer that always errs alike has no scatter at all; so f32's own rounding is taken as scatter that is always there.
 */
#include "perf/low_rank.h"
#include "perf/quality.h"
#include "perf/train.h"
#include "tools/common/names.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { DIRECTIONS = 8, RANDOM_FROM = 4, SUMS = DIRECTIONS + 1 /* and the squared error */ };

#define F32_ROUNDOFF 0x1p-24

typedef struct measure {
    const iq_quality_setup_t *setup;
    const iq_quality_source_t *source;
    iq_quality_kind_t kind;
    isgq_quantizer_t quantizer;
    float *delivered; /* of all tensors of a sample */
    double *sums;     /* [samples][draws][SUMS] */
    double *floor;    /* [DIRECTIONS] variance of f32's rounding, all samples */
    uint64_t *bytes;  /* [samples][2]: sent, contributed */
    uint64_t hash;    /* of all that was delivered */
    isgq_tensor_t *tensors; /* of a sample, for quantizers that need them; or NULL */
} measure_t;

void iq_quality_combine(const iq_quality_setup_t *setup, isgq_red_op_t op, double *values, size_t count)
{
    iq_check(isgq_allreduce(values, values, count, ISGQ_FLOAT64, op, setup->none, setup->measure, NULL, NULL), setup->rank,
             "measuring");
    iq_check(isgq_comm_synchronize(setup->measure), setup->rank, "measuring");
}

void iq_quality_gather(const iq_quality_setup_t *setup, uint64_t own, uint64_t *all)
{
    iq_check(isgq_allgather(&own, all, 1, ISGQ_UINT64, setup->none, setup->measure, NULL, NULL), setup->rank, "measuring");
    iq_check(isgq_comm_synchronize(setup->measure), setup->rank, "measuring");
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

double iq_quality_median(double *values, size_t count)
{
    qsort(values, count, sizeof(double), ascending);
    return 0.5 * (values[(count - 1) / 2] + values[count / 2]);
}

/* ---- calls ---- */

static isgq_result_t call(const measure_t *measure, const iq_quality_tensor_t *tensor, isgq_tensor_t memory, float *delivered)
{
    const isgq_call_options_t options = {.size = sizeof(options), .tensor = memory};
    const iq_quality_setup_t *setup = measure->setup;
    isgq_factors_t factors = {.size = sizeof(factors),
                              .x = tensor->x,
                              .delta = tensor->delta,
                              .batch = tensor->rows,
                              .m = tensor->m,
                              .n = tensor->n,
                              .bias = delivered + tensor->m * tensor->n};

    if (measure->kind == IQ_QUALITY_FACTORED)
        return isgq_allreduce_factored(&factors, tensor->rows, delivered, ISGQ_FLOAT32, ISGQ_AVG, measure->quantizer, setup->comm,
                                       NULL, NULL);
    return isgq_allreduce(tensor->grad, delivered, tensor->count, ISGQ_FLOAT32, ISGQ_AVG, measure->quantizer, setup->comm, NULL,
                          &options);
}

/* All tensors of a sample, the last one first as backpropagation finishes them. */
static isgq_result_t call_all(const measure_t *measure, const iq_quality_sample_t *sample)
{
    size_t at = sample->count;
    isgq_result_t result = ISGQ_SUCCESS;

    for (size_t t = sample->ntensors; t-- > 0 && result == ISGQ_SUCCESS;) {
        at -= sample->tensors[t].count;
        result = call(measure, &sample->tensors[t], measure->tensors != NULL ? measure->tensors[t] : NULL, measure->delivered + at);
    }
    if (result != ISGQ_SUCCESS)
        return result;
    iq_check(isgq_comm_synchronize(measure->setup->comm), measure->setup->rank, "a measured call");
    return ISGQ_SUCCESS;
}

/* ---- errors ---- */

/* The directions' components at one element; `value` is the exact one in units of its root mean square. */
static void directions(uint64_t seed, size_t element, double value, double to[DIRECTIONS])
{
    uint64_t signs = iq_train_random(seed ^ 0xd12ec7, element);

    to[0] = value;
    to[1] = value * fabs(value);
    to[2] = (value > 0.0) - (value < 0.0);
    to[3] = 1.0;
    for (int d = RANDOM_FROM; d < DIRECTIONS; d++)
        to[d] = signs >> d & 1u ? 1.0 : -1.0;
}

/* This rank's part of one tensor; `number` counts elements over the tensors of a sample. */
static void compare(measure_t *measure, const iq_quality_tensor_t *tensor, const float *delivered, size_t number, double scale,
                    bool first_draw, double sums[SUMS])
{
    double at[DIRECTIONS];

    for (size_t i = tensor->first; i < tensor->end; i++) {
        double exact = tensor->exact[i - tensor->first] * scale, error = delivered[i] * scale - exact;
        double rounding = F32_ROUNDOFF * F32_ROUNDOFF * exact * exact * measure->setup->nranks;
        directions(measure->setup->seed, number + i, exact, at);
        for (int d = 0; d < DIRECTIONS; d++) {
            sums[d] += at[d] * error;
            if (first_draw)
                measure->floor[d] += at[d] * at[d] * rounding;
        }
        sums[DIRECTIONS] += error * error;
    }
}

static void compare_all(measure_t *measure, const iq_quality_sample_t *sample, bool first_draw, double sums[SUMS])
{
    double scale = sample->norm > 0.0 ? 1.0 / sqrt(sample->norm / (double)sample->count) : 1.0;
    size_t at = 0;

    for (size_t t = 0; t < sample->ntensors; t++) {
        compare(measure, &sample->tensors[t], measure->delivered + at, at, scale, first_draw, sums);
        at += sample->tensors[t].count;
    }
    uint64_t hashes[2] = {measure->hash, isgqx_hash(measure->delivered, sample->count * sizeof(float))};
    measure->hash = isgqx_hash(hashes, sizeof(hashes));
}

/* A layer's matrix has the bias as one more row; what is drawn has any. */
static void open_tensors(measure_t *measure, const iq_quality_sample_t *sample)
{
    unsigned rank;

    if (measure->kind != IQ_QUALITY_DENSE || !iq_low_rank(isgqx_quantizer_text(measure->quantizer), &rank))
        return;
    measure->tensors = iq_train_memory(sample->ntensors * sizeof(isgq_tensor_t));
    for (size_t t = 0; t < sample->ntensors; t++) {
        const iq_quality_tensor_t *tensor = &sample->tensors[t];
        size_t rows = tensor->m + 1, columns = tensor->n;
        if (tensor->m == 0)
            iq_low_rank_shape(tensor->count, &rows, &columns);
        iq_check(isgq_tensor_create(&measure->tensors[t], "isgq_quality", tensor->count), measure->setup->rank, "isgq_tensor_create");
        iq_check(isgq_tensor_shape(measure->tensors[t], rows, columns), measure->setup->rank, "isgq_tensor_shape");
    }
}

static void close_tensors(measure_t *measure, const iq_quality_sample_t *sample)
{
    for (size_t t = 0; t < sample->ntensors && measure->tensors != NULL; t++)
        isgq_tensor_destroy(measure->tensors[t]);
    free(measure->tensors);
    measure->tensors = NULL;
}

static isgq_result_t run_sample(measure_t *measure, size_t s)
{
    const iq_quality_setup_t *setup = measure->setup;
    const iq_quality_sample_t *sample = &measure->source->samples[s];
    isgq_stats_t stats = {.size = sizeof(stats)};

    iq_check(isgq_comm_reset_stats(setup->comm), setup->rank, "isgq_comm_reset_stats");
    for (size_t draw = 0; draw < setup->draws; draw++) {
        isgq_result_t result = call_all(measure, sample);
        if (result != ISGQ_SUCCESS)
            return result;
        compare_all(measure, sample, draw == 0, measure->sums + (s * setup->draws + draw) * SUMS);
    }
    iq_check(isgq_comm_get_stats(setup->comm, &stats), setup->rank, "isgq_comm_get_stats");
    measure->bytes[2 * s] = stats.wire_bytes;
    iq_check(isgqx_own_bytes(setup->comm, &measure->bytes[2 * s + 1]), setup->rank, "isgqx_own_bytes");
    return ISGQ_SUCCESS;
}

/* ---- what follows ---- */

static double median_nmse(const measure_t *measure)
{
    size_t draws = measure->setup->draws, nsamples = measure->source->nsamples;
    double *errors = iq_train_memory(nsamples * sizeof(double));

    for (size_t s = 0; s < nsamples; s++) {
        errors[s] = 0.0;
        for (size_t draw = 0; draw < draws; draw++)
            errors[s] += measure->sums[(s * draws + draw) * SUMS + DIRECTIONS];
        errors[s] /= (double)draws * (double)measure->source->samples[s].count; /* values were scaled to a mean square of 1 */
    }
    double median = iq_quality_median(errors, nsamples);
    free(errors);
    return median;
}

/* A draw's projection is that of all samples together. */
static double largest_bias(const measure_t *measure)
{
    size_t draws = measure->setup->draws;
    double worst = 0.0, n = (double)draws;

    for (int d = 0; d < DIRECTIONS; d++) {
        double sum = 0.0, squares = 0.0;
        for (size_t draw = 0; draw < draws; draw++) {
            double projection = 0.0;
            for (size_t s = 0; s < measure->source->nsamples; s++)
                projection += measure->sums[(s * draws + draw) * SUMS + (size_t)d];
            sum += projection;
            squares += projection * projection;
        }
        double variance = fmax(0.0, squares - sum * sum / n) / (n - 1.0) / n + measure->floor[d];
        if (variance > 0.0)
            worst = fmax(worst, fabs(sum / n) / sqrt(variance));
        else if (sum != 0.0)
            worst = INFINITY;
    }
    return worst;
}

/* Most bytes over ranks, and their medians over samples. */
static void count_bytes(const measure_t *measure, iq_quality_result_t *result)
{
    const iq_quality_setup_t *setup = measure->setup;
    size_t nsamples = measure->source->nsamples;
    double *most = iq_train_memory(2 * nsamples * sizeof(double));

    for (size_t i = 0; i < 2 * nsamples; i++)
        most[i] = (double)measure->bytes[i];
    iq_quality_combine(setup, ISGQ_MAX, most, 2 * nsamples);
    double *ratios = iq_train_memory(2 * nsamples * sizeof(double)), *gains = ratios + nsamples;
    for (size_t s = 0; s < nsamples; s++) {
        size_t count = measure->source->samples[s].count;
        ratios[s] = isgqx_fp32_ring_bytes(count, setup->nranks) * (double)setup->draws / most[2 * s];
        gains[s] = 4.0 * (double)count * (double)setup->draws / most[2 * s + 1];
    }
    result->ratio = iq_quality_median(ratios, nsamples);
    result->gain = iq_quality_median(gains, nsamples);
    free(ratios);
    free(most);
}

static bool ranks_differ(const measure_t *measure)
{
    const iq_quality_setup_t *setup = measure->setup;
    uint64_t *all = iq_train_memory((size_t)setup->nranks * sizeof(uint64_t));
    bool differ = false;

    iq_quality_gather(setup, measure->hash, all);
    for (int rank = 0; rank < setup->nranks; rank++)
        differ |= all[rank] != all[0];
    free(all);
    return differ;
}

isgq_result_t iq_quality_measure(const iq_quality_setup_t *setup, const iq_quality_source_t *source, iq_quality_kind_t kind,
                                 isgq_quantizer_t quantizer, iq_quality_result_t *result)
{
    size_t nsums = source->nsamples * setup->draws * SUMS, largest = 0;
    measure_t measure = {.setup = setup, .source = source, .kind = kind, .quantizer = quantizer};
    isgq_result_t status = ISGQ_SUCCESS;

    for (size_t s = 0; s < source->nsamples; s++)
        largest = source->samples[s].count > largest ? source->samples[s].count : largest;
    measure.delivered = iq_train_memory(largest * sizeof(float));
    measure.sums = iq_train_memory((nsums + DIRECTIONS) * sizeof(double));
    measure.floor = measure.sums + nsums;
    measure.bytes = iq_train_memory(2 * source->nsamples * sizeof(uint64_t));
    memset(measure.sums, 0, (nsums + DIRECTIONS) * sizeof(double));
    for (size_t s = 0; s < source->nsamples && status == ISGQ_SUCCESS; s++) {
        open_tensors(&measure, &source->samples[s]);
        status = run_sample(&measure, s);
        close_tensors(&measure, &source->samples[s]);
    }
    if (status == ISGQ_SUCCESS) {
        iq_quality_combine(setup, ISGQ_SUM, measure.sums, nsums + DIRECTIONS);
        *result = (iq_quality_result_t){.nmse = median_nmse(&measure), .bias = largest_bias(&measure)};
        result->broken = ranks_differ(&measure) || !isfinite(result->nmse);
        count_bytes(&measure, result);
    }
    free(measure.delivered);
    free(measure.sums);
    free(measure.bytes);
    return status;
}
