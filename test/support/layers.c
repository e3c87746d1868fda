/* SPDX-License-Identifier: Apache-2.0 */
/* Layers for tests of factored calls: see layers.h. */
#include "support/layers.h"

#include "netlab/lab.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Rows are known by number, wherever they live. */
static double factor_at(const iq_layer_t *layer, bool is_x, size_t row, size_t column)
{
    uint64_t salt = is_x ? 21 : 22, bits = iq_mix(salt, row, column);
    double size = ldexp(1.0, (int)(iq_mix(salt, row, 1u << 20) % 4) - 2), rounded[1];
    double value = bits % 4 == 0 ? 0.0 : size * (double)iq_mix_unit(salt + 10, row, column);
    iq_numbers_set(layer->type, rounded, 0, is_x && layer->unsigned_x ? fabs(value) : value);
    return iq_numbers_get(layer->type, rounded, 0);
}

static size_t batch_of(const iq_layer_t *layer, int rank, int nranks)
{
    if (layer->whole == 0)
        return (size_t)(rank * 3 + 1) % (layer->max_batch + 1);
    return (size_t)(layer->whole * (rank + 1) / nranks - layer->whole * rank / nranks);
}

static size_t first_row_of(const iq_layer_t *layer, int rank, int nranks)
{
    return layer->whole == 0 ? (size_t)rank * 1000 : (size_t)(layer->whole * rank / nranks);
}

static void fill(const iq_layer_t *layer, bool is_x, size_t first_row, size_t batch, iq_buffer_t *buffer)
{
    size_t columns = is_x ? layer->m : layer->n, bytes = iq_types[layer->type].bytes;
    *buffer = iq_buffer_new(batch * columns * bytes, bytes);
    for (size_t r = 0; r < batch; r++)
        for (size_t i = 0; i < columns; i++)
            iq_numbers_set(layer->type, buffer->data, r * columns + i, factor_at(layer, is_x, first_row + r, i));
}

iq_layer_call_t iq_layer_call_new(const iq_layer_t *layer, int place, int nranks)
{
    size_t bytes = iq_types[layer->type].bytes;
    iq_layer_call_t call = {
        .layer = layer, .batch = batch_of(layer, place, nranks), .first_row = first_row_of(layer, place, nranks)};
    fill(layer, true, call.first_row, call.batch, &call.x);
    fill(layer, false, call.first_row, call.batch, &call.delta);
    call.grad = iq_buffer_new(layer->m * layer->n * bytes, bytes);
    call.bias = iq_buffer_new(layer->n * bytes, bytes);
    memset(call.grad.data, 0, call.grad.bytes);
    memset(call.bias.data, 0, call.bias.bytes);
    return call;
}

void iq_layer_call_run(iq_rank_t *rank, iq_layer_call_t *call, isgq_quantizer_t quantizer, const char *algorithm, bool accumulate)
{
    const iq_layer_t *layer = call->layer;
    isgq_call_options_t options = {.size = sizeof(options), .algorithm = iq_lab_algorithm(algorithm, rank->nranks), .accumulate = accumulate};
    isgq_factors_t factors = {.size = sizeof(factors),
                              .x = call->x.data,
                              .delta = call->delta.data,
                              .batch = call->batch,
                              .m = layer->m,
                              .n = layer->n,
                              .bias = layer->bias ? call->bias.data : NULL};
    RANK_OK(rank, isgq_allreduce_factored(&factors, layer->max_batch, call->grad.data, layer->type, layer->op, quantizer,
                                          rank->comm, NULL, &options));
    memset(&factors, 0xff, sizeof(factors)); /* the struct is read until the call returns, no longer */
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    RANK_CHECK(rank, iq_buffer_intact(&call->grad) && iq_buffer_intact(&call->bias), "wrote outside the gradient");
}

uint64_t iq_layer_call_hash(const iq_layer_call_t *call)
{
    uint64_t both[2] = {isgqx_hash(call->grad.data, call->grad.bytes), isgqx_hash(call->bias.data, call->bias.bytes)};
    return isgqx_hash(both, sizeof(both));
}

void iq_layer_call_free(iq_layer_call_t *call)
{
    iq_buffer_free(&call->x);
    iq_buffer_free(&call->delta);
    iq_buffer_free(&call->grad);
    iq_buffer_free(&call->bias);
}

static void load_row(const iq_layer_t *layer, bool is_x, size_t row, double *values, double *most)
{
    *most = 0;
    for (size_t i = 0; i < (is_x ? layer->m : layer->n); i++) {
        values[i] = factor_at(layer, is_x, row, i);
        *most = fmax(*most, fabs(values[i]));
    }
}

iq_layer_sums_t iq_layer_sums_new(const iq_layer_t *layer, int nranks)
{
    iq_layer_sums_t all = {.layer = layer, .nranks = nranks};
    size_t row = 0;
    for (int r = 0; r < nranks; r++)
        all.rows += batch_of(layer, r, nranks);
    all.x = calloc(all.rows * layer->m + 1, sizeof(double));
    all.delta = calloc(all.rows * layer->n + 1, sizeof(double));
    all.max_x = calloc(all.rows + 1, sizeof(double));
    all.max_delta = calloc(all.rows + 1, sizeof(double));
    for (int r = 0; r < nranks; r++) {
        for (size_t k = 0; k < batch_of(layer, r, nranks); k++, row++) {
            load_row(layer, true, first_row_of(layer, r, nranks) + k, all.x + row * layer->m, &all.max_x[row]);
            load_row(layer, false, first_row_of(layer, r, nranks) + k, all.delta + row * layer->n, &all.max_delta[row]);
        }
    }
    return all;
}

void iq_layer_sums_free(iq_layer_sums_t *all)
{
    free(all->x);
    free(all->delta);
    free(all->max_x);
    free(all->max_delta);
}

iq_layer_exact_t iq_layer_exact(const iq_layer_sums_t *all, unsigned width_x, unsigned width_delta, size_t i, size_t j, bool bias)
{
    iq_layer_exact_t exact = {0, 0, 0};
    for (size_t row = 0; row < all->rows; row++) {
        double x = bias ? 1.0 : all->x[row * all->layer->m + i], delta = all->delta[row * all->layer->n + j];
        double step_x = bias ? 0.0 : 1.126 * all->max_x[row] / (double)((1ll << (width_x - 1)) - 1);
        double step_delta = 1.126 * all->max_delta[row] / (double)((1ll << (width_delta - 1)) - 1);
        exact.value += x * delta;
        exact.size += fabs(x * delta);
        exact.allowed += fabs(x) * step_delta + fabs(delta) * step_x + step_x * step_delta;
    }
    if (all->layer->op == ISGQ_AVG)
        exact = (iq_layer_exact_t){exact.value / all->nranks, exact.size / all->nranks, exact.allowed / all->nranks};
    return exact;
}
