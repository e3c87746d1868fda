/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Drawn factors of one layer of any shape, where there is no network to take them from.
 *
 * They are like those of a trained fully connected network with ReLU (measured on isgq_train's, steps 50 to 1200, hidden layers): six in ten elements are
 * exactly zero in X and in Delta, X is not negative, rows of X are about equally long, and those of Delta differ by the factor
 * exp(2.1 z), z normal: a few rows hold most of the gradient. Elements of a row are independent.
 */
#include "perf/quality.h"
#include "perf/train.h"

#include <math.h>
#include <stdio.h>

enum { STREAM_X = 0xfac7, STREAM_DELTA = 0xfac8, STREAM_ZEROS = 0xfac9, STREAM_LENGTHS = 0xfaca };

static const double zeros = 0.6, spread_x = 0.3, spread_delta = 2.1;

typedef struct keys {
    uint64_t values, zeros, lengths;
} keys_t;

static keys_t keys_of(const iq_quality_setup_t *setup, uint64_t stream)
{
    uint64_t own = iq_train_random(iq_train_random(setup->seed, stream), (uint64_t)setup->rank);
    return (keys_t){own, iq_train_random(own, STREAM_ZEROS), iq_train_random(own, STREAM_LENGTHS)};
}

static float *draw(const iq_quality_setup_t *setup, uint64_t stream, size_t rows, size_t columns, bool positive, double spread)
{
    keys_t keys = keys_of(setup, stream);
    float *values = iq_train_memory(rows * columns * sizeof(float));

    for (size_t r = 0; r < rows; r++) {
        double length = exp(spread * iq_quality_normal(keys.lengths, r));
        for (size_t c = 0; c < columns; c++) {
            size_t i = r * columns + c;
            double value = iq_quality_uniform(keys.zeros, i) < zeros ? 0.0 : length * iq_quality_normal(keys.values, i);
            values[i] = (float)(positive ? fabs(value) : value);
        }
    }
    return values;
}

/* m * n weights, then n biases. */
static void multiply(iq_quality_tensor_t *tensor)
{
    for (size_t r = 0; r < tensor->rows; r++) {
        const float *x = tensor->x + r * tensor->m, *delta = tensor->delta + r * tensor->n;
        for (size_t i = 0; i <= tensor->m; i++) {
            float *grad = tensor->grad + i * tensor->n, weight = i < tensor->m ? x[i] : 1.0f;
            for (size_t j = 0; j < tensor->n && weight != 0.0f; j++)
                grad[j] += weight * delta[j];
        }
    }
}

void iq_quality_draw_factors(iq_quality_source_t *source, const iq_quality_setup_t *setup, size_t rows, size_t m, size_t n)
{
    iq_quality_source_open(source, 1, 1);
    iq_quality_tensor_t *tensor = &source->samples[0].tensors[0];
    *tensor = (iq_quality_tensor_t){.count = (m + 1) * n, .rows = rows, .m = m, .n = n};
    tensor->x = draw(setup, STREAM_X, rows, m, true, spread_x);
    tensor->delta = draw(setup, STREAM_DELTA, rows, n, false, spread_delta);
    tensor->grad = iq_train_memory(tensor->count * sizeof(float));
    for (size_t i = 0; i < tensor->count; i++)
        tensor->grad[i] = 0.0f;
    multiply(tensor);
    snprintf(source->about, sizeof(source->about), "drawn factors of %zu x %zu, %zu rows a rank", m, n, rows);
}
