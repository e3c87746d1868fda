/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lossy results against the exact sum: element by element, and the tensor as a whole.
 *
 * A bound for one element says little about coarse codes: zero is within it. So the same inputs are rounded here once more, by the
 * definition and with other random numbers, and two numbers of the delivered tensor are held to that model's: the squared error,
 * and the shift, that is the error's projection on the exact sum (-1 for a result of zeros, -2 for a flipped sign, -1/N where one
 * of N ranks is missing, about 0 for unbiased rounding).
 */
#include "perf/perf.h"
#include "tools/common/options.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Fewer elements scatter too much for statements about the whole. */
#define LEAST_ELEMENTS 256.0

/* The squared error may exceed the model's by MOST_EXCESS + EXCESS_OF_FEW / sqrt(elements): scales of sums are random, too. */
#define MOST_EXCESS 1.2
#define EXCESS_OF_FEW 40.0

/* The shift may differ by so many standard deviations. */
#define MOST_SIGMAS 7.0

/* Where nothing is random only buckets may be cut in other places: by ALIKE + ALIKE_OF_FEW / sqrt(elements) of the norm. */
#define ALIKE 0.01
#define ALIKE_OF_FEW 2.0

/* Errors that are promised as a whole: their squares may go along with those of the values, by so much. */
#define TOGETHER 3.0

/* And by so much of the norm if rounding is to nearest, where ties may go either way by the last bit of fp32. */
#define TIES 0.25

enum { MOST_VALUES = 1 << 18, LEAST_BLOCK = 1024 };

size_t iq_perf_block_elements(int parts)
{
    size_t elements = MOST_VALUES / (size_t)parts / LEAST_BLOCK * LEAST_BLOCK;

    return elements > LEAST_BLOCK ? elements : LEAST_BLOCK;
}

iq_perf_tally_t iq_perf_tally_open(const iq_perf_setup_t *setup, const iq_perf_case_t *test, const char *algorithm)
{
    return (iq_perf_tally_t){.promise = iq_perf_promise(test, algorithm, setup->nranks),
                             .total = iq_perf_case_elements(test, setup->nranks),
                             .dice = {.seed = setup->seed + 0x5eed + (uint64_t)setup->rank}};
}

static double largest(const double *values, size_t count, double least)
{
    for (size_t i = 0; i < count; i++)
        least = fmax(least, fabs(values[i]));
    return least;
}

/* Round a stretch to one scale, or to levels of its own, in place. */
static void round_stretch(iq_perf_tally_t *tally, const iq_perf_grid_t *grid, double *values, size_t count, double max)
{
    if (grid->round != NULL) {
        grid->round(grid, &tally->dice, values, count);
        return;
    }
    for (size_t i = 0; i < count; i++)
        values[i] = iq_perf_round_to(grid, values[i], max, iq_perf_roll(&tally->dice));
}

static double squares_of(const double *values, size_t count)
{
    double sum = 0.0;

    for (size_t i = 0; i < count; i++)
        sum += values[i] * values[i];
    return sum;
}

/* A rank's scale of a bucket; of a whole tensor as far as one block tells. Values are taken to have mean 0. */
static double scale_of(const iq_perf_tally_t *tally, const double *values, size_t count, double least)
{
    const iq_perf_grid_t *grid = &tally->promise.grid;
    double scale = largest(values, count, least);

    if (grid->clip > 0.0)
        scale = fmin(scale, grid->clip * sqrt(squares_of(values, count) / (double)count));
    return grid->power_of_two && scale > 0.0 ? exp2(floor(log2(scale)) + 1.0) : scale;
}

/* The scale that all ranks share. This rank may see a part of the bucket only. */
static double shared_scale(const iq_perf_tally_t *tally, const iq_perf_block_t *block, size_t first, size_t count)
{
    const iq_perf_promise_t *promise = &tally->promise;
    double scale = 0.0, squares = 0.0, bucket = promise->grid.bucket == 0 ? tally->total : (double)promise->grid.bucket;

    for (int part = 0; part < promise->parts; part++) {
        const double *values = block->values + (size_t)part * block->stride + first;
        scale = fmax(scale, scale_of(tally, values, count, block->least_max));
        squares += squares_of(values, count);
    }
    return promise->grid.l2 ? sqrt(squares * fmin(bucket, tally->total) / (double)count) : scale;
}

/* model[] = what this grid makes of one bucket of all parts; values[] are rounded in place. */
static void model_bucket(iq_perf_tally_t *tally, const iq_perf_block_t *block, size_t first, size_t count, double *model)
{
    const iq_perf_promise_t *promise = &tally->promise;
    double shared = shared_scale(tally, block, first, count);

    memset(model, 0, count * sizeof(double));
    for (int part = 0; part < promise->parts; part++) {
        double *values = block->values + (size_t)part * block->stride + first;
        round_stretch(tally, &promise->grid, values, count,
                      promise->grid.shared ? shared : scale_of(tally, values, count, block->least_max));
        for (size_t i = 0; i < count; i++)
            model[i] += values[i];
        for (size_t i = 0; i < count && part > 0 && promise->grid.smallest > 0.0 && shared > 0.0; i++)
            model[i] = shared * iq_perf_power(model[i] / shared, 0.0, iq_perf_roll(&tally->dice));
    }
    if (promise->grid.again)
        round_stretch(tally, &promise->grid, model, count, largest(model, count, block->least_max));
}

static void add_model(iq_perf_tally_t *tally, const iq_perf_block_t *block, const double *exact, double *model)
{
    size_t bucket = tally->promise.grid.bucket == 0 ? block->count : tally->promise.grid.bucket;

    for (size_t first = 0; first < block->count; first += bucket) {
        size_t count = block->count - first < bucket ? block->count - first : bucket;
        model_bucket(tally, block, first, count, model);
        for (size_t i = 0; i < count; i++) {
            double error = model[i] / block->divisor - exact[first + i], product = error * exact[first + i];
            tally->sums.model_error += error * error;
            tally->sums.model_shift += product;
            tally->sums.model_spread += product * product;
        }
    }
}

void iq_perf_tally_add(iq_perf_tally_t *tally, const iq_perf_block_t *block)
{
    const iq_perf_promise_t *promise = &tally->promise;
    double *exact = malloc(2 * (block->count + 1) * sizeof(double));

    if (exact == NULL)
        iq_die(IQ_EXIT_FAILED, "no memory for %zu doubles", 2 * block->count);
    for (size_t i = 0; i < block->count; i++) {
        double sum = 0.0, magnitude = 0.0;
        for (int part = 0; part < promise->parts; part++) {
            sum += block->values[(size_t)part * block->stride + i];
            magnitude += fabs(block->values[(size_t)part * block->stride + i]);
        }
        exact[i] = sum / block->divisor;
        double error = block->got[i] - exact[i];
        double allowed = (promise->relative * magnitude + promise->step * block->max) / block->divisor + promise->absolute;
        tally->sums.wrong += !(fabs(error) <= allowed); /* a NaN is wrong too */
        tally->sums.error += error * error;
        tally->sums.norm += exact[i] * exact[i];
        tally->sums.shift += error * exact[i];
    }
    tally->sums.elements += (double)block->count;
    if (promise->grid.bits > 0)
        add_model(tally, block, exact, exact + block->count + 1);
    free(exact);
}

uint64_t iq_perf_tally_close(const iq_perf_setup_t *setup, iq_perf_tally_t *tally, isgq_data_type_t type, double *nmse)
{
    iq_perf_sums_t *s = &tally->sums;
    const iq_perf_grid_t *grid = &tally->promise.grid;
    double promised = tally->promise.nmse, u = iq_perf_unit_roundoff(type),
           numbers[] = {s->wrong, s->error, s->norm, s->shift, s->elements, s->model_error, s->model_shift, s->model_spread};

    iq_perf_combine(setup, ISGQ_SUM, numbers, sizeof(numbers) / sizeof(numbers[0]));
    *s = (iq_perf_sums_t){numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6], numbers[7]};
    *nmse = s->error == 0.0 ? 0.0 : s->error / s->norm;
    if ((grid->bits == 0 && promised == 0.0) || s->elements < LEAST_ELEMENTS)
        return (uint64_t)s->wrong;
    if (promised > 0.0) {
        s->model_error = promised * s->norm;
        s->model_spread = TOGETHER * promised * s->norm * s->norm / s->elements;
    }
    double most_error = (MOST_EXCESS + EXCESS_OF_FEW / sqrt(s->elements)) * s->model_error + (4.0 * u * u + 1e-12) * s->norm;
    double scatter = MOST_SIGMAS * sqrt(2.0 * s->model_spread);
    if (grid->fixed)
        scatter = fmin(scatter, (ALIKE + ALIKE_OF_FEW / sqrt(s->elements)) * s->norm);
    double most_shift = scatter + ((grid->nearest ? TIES : 0.0) + u + 1e-6) * s->norm;
    double least_shift = s->model_shift - most_shift;
    most_shift += s->model_shift;
    if (grid->again &&
        tally->promise.parts == 1) /* the same grid twice adds nothing here; a message's own maximum is another grid */
        most_error *= 2.0;
    if (grid->nearest || setup->nranks == 1) { /* a rank's own part may stay as it is */
        least_shift = fmin(least_shift, 0.0);
        most_shift = fmax(most_shift, 0.0);
    }
    return (uint64_t)s->wrong + !(s->error <= most_error) + !(s->shift >= least_shift && s->shift <= most_shift);
}
