/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Factored allreduce: one answer by gathering factors and by reducing products, errors within the codes' steps, budgets kept, odd shapes,
 * batches that differ between ranks.
 *
 * Invariants 1, 2, 3, 5 and 6 of the design for factors. References are sums of products in double.
 */
#include "support/check_main.h"
#include "support/samples.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct layer {
    size_t m, n, max_batch;
    bool bias, unsigned_x;
    isgq_data_type_t type;
    isgq_red_op_t op;
    int whole; /* 0: batches differ between ranks; else this many rows in all, shared out in order */
} layer_t;

/* One rank's call, and what all ranks' rows make exactly. */
typedef struct call {
    const layer_t *layer;
    size_t batch, first_row;
    iq_buffer_t x, delta, grad, bias;
} call_t;

static double roundoff(isgq_data_type_t type) { return type == ISGQ_FLOAT32 ? 0x1p-24 : type == ISGQ_FLOAT16 ? 0x1p-11 : 0x1p-8; }

/* Rows are known by number, wherever they live. Sizes of rows differ by a few octaves, a quarter of the elements is zero. */
static double factor_at(const layer_t *layer, bool is_x, size_t row, size_t column)
{
    uint64_t salt = is_x ? 21 : 22, bits = iq_mix(salt, row, column);
    double size = ldexp(1.0, (int)(iq_mix(salt, row, 1u << 20) % 4) - 2), rounded[1];
    double value = bits % 4 == 0 ? 0.0 : size * (double)iq_mix_unit(salt + 10, row, column);
    iq_numbers_set(layer->type, rounded, 0, is_x && layer->unsigned_x ? fabs(value) : value);
    return iq_numbers_get(layer->type, rounded, 0);
}

static size_t batch_of(const layer_t *layer, int rank, int nranks)
{
    if (layer->whole == 0)
        return (size_t)(rank * 3 + 1) % (layer->max_batch + 1);
    return (size_t)(layer->whole * (rank + 1) / nranks - layer->whole * rank / nranks);
}

static size_t first_row_of(const layer_t *layer, int rank, int nranks)
{
    return layer->whole == 0 ? (size_t)rank * 1000 : (size_t)(layer->whole * rank / nranks);
}

static void fill(const layer_t *layer, bool is_x, size_t first_row, size_t batch, iq_buffer_t *buffer)
{
    size_t columns = is_x ? layer->m : layer->n, bytes = iq_types[layer->type].bytes;
    *buffer = iq_buffer_new(batch * columns * bytes, bytes);
    for (size_t r = 0; r < batch; r++)
        for (size_t i = 0; i < columns; i++)
            iq_numbers_set(layer->type, buffer->data, r * columns + i, factor_at(layer, is_x, first_row + r, i));
}

/* `place`: whose rows this rank brings. */
static call_t call_new(const layer_t *layer, int place, int nranks)
{
    size_t bytes = iq_types[layer->type].bytes;
    call_t call = {.layer = layer, .batch = batch_of(layer, place, nranks), .first_row = first_row_of(layer, place, nranks)};
    fill(layer, true, call.first_row, call.batch, &call.x);
    fill(layer, false, call.first_row, call.batch, &call.delta);
    call.grad = iq_buffer_new(layer->m * layer->n * bytes, bytes);
    call.bias = iq_buffer_new(layer->n * bytes, bytes);
    memset(call.grad.data, 0, call.grad.bytes);
    memset(call.bias.data, 0, call.bias.bytes);
    return call;
}

static void call_run(iq_rank_t *rank, call_t *call, isgq_quantizer_t quantizer, const char *algorithm, bool accumulate)
{
    const layer_t *layer = call->layer;
    isgq_call_options_t options = {.size = sizeof(options), .algorithm = algorithm, .accumulate = accumulate};
    isgq_factors_t factors = {.size = sizeof(factors), .x = call->x.data, .delta = call->delta.data, .batch = call->batch, .m = layer->m,
                              .n = layer->n, .bias = layer->bias ? call->bias.data : NULL};
    RANK_OK(rank, isgq_allreduce_factored(&factors, layer->max_batch, call->grad.data, layer->type, layer->op, quantizer, rank->comm, NULL, &options));
    memset(&factors, 0xff, sizeof(factors)); /* the struct is read until the call returns, no longer */
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    RANK_CHECK(rank, iq_buffer_intact(&call->grad) && iq_buffer_intact(&call->bias), "wrote outside the gradient");
}

static uint64_t call_hash(const call_t *call)
{
    uint64_t both[2] = {isgqx_hash(call->grad.data, call->grad.bytes), isgqx_hash(call->bias.data, call->bias.bytes)};
    return isgqx_hash(both, sizeof(both));
}

static void call_free(call_t *call)
{
    iq_buffer_free(&call->x);
    iq_buffer_free(&call->delta);
    iq_buffer_free(&call->grad);
    iq_buffer_free(&call->bias);
}

/* ---- one answer ---- */

static const layer_t layers[] = {
    {.m = 1, .n = 1, .max_batch = 1, .bias = true, .type = ISGQ_FLOAT32},
    {.m = 3, .n = 5, .max_batch = 2, .unsigned_x = true, .type = ISGQ_FLOAT32, .op = ISGQ_AVG},
    {.m = 17, .n = 33, .max_batch = 5, .bias = true, .type = ISGQ_FLOAT32, .op = ISGQ_AVG},
    {.m = 129, .n = 31, .max_batch = 7, .bias = true, .unsigned_x = true, .type = ISGQ_FLOAT32},
    {.m = 64, .n = 10, .max_batch = 32, .type = ISGQ_FLOAT16, .op = ISGQ_AVG, .bias = true},
    {.m = 5, .n = 70, .max_batch = 9, .type = ISGQ_BFLOAT16, .unsigned_x = true},
    {.m = 7, .n = 3, .max_batch = 0, .bias = true, .type = ISGQ_FLOAT32},
    {.m = 0, .n = 4, .max_batch = 3, .bias = true, .type = ISGQ_FLOAT32},
    {.m = 4, .n = 0, .max_batch = 3, .type = ISGQ_FLOAT32},
    {.m = 300, .n = 40, .max_batch = 3, .bias = true, .type = ISGQ_FLOAT32},
};
#define LAYERS (sizeof(layers) / sizeof(layers[0]))

static const char *const factor_texts[] = {"factor:width=4/4", "factor:width=2/8", "factor:width=3,rounding=nearest", "isgq:bits=4", "isgq:bits=2.5"};
#define FACTOR_TEXTS 5

/* values[q * LAYERS + l]: the hash of layer l with quantizer q. */
static void answer_body(iq_rank_t *rank)
{
    const char *algorithm = rank->argument;
    for (size_t q = 0; q < FACTOR_TEXTS; q++) {
        isgq_quantizer_t quantizer = iq_quantizer(rank, factor_texts[q]);
        for (size_t l = 0; l < LAYERS; l++) {
            isgqx_call_record_t record = {.size = sizeof(record)};
            call_t call = call_new(&layers[l], rank->rank, rank->nranks);
            call_run(rank, &call, quantizer, algorithm, false);
            RANK_OK(rank, isgqx_last_call(rank->comm, &record));
            RANK_CHECK(rank, strcmp(record.algorithm, algorithm) == 0, "ran %s instead of %s", record.algorithm, algorithm);
            rank->values[q * LAYERS + l] = call_hash(&call);
            iq_rank_agree(rank, call_hash(&call), factor_texts[q]);
            call_free(&call);
        }
        isgq_quantizer_destroy(quantizer);
    }
}

START_TEST(gather_and_reduce_give_one_answer)
{
    static iq_ranks_values_t gather, reduce;
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    config.chunk_bytes = 4096;
    iq_ranks_t ranks = {.nranks = iq_test_nranks(_i), .body = answer_body, .argument = (void *)(uintptr_t) "gather", .config = &config};
    iq_ranks_run(&ranks, &gather);
    ranks.argument = (void *)(uintptr_t) "reduce";
    iq_ranks_run(&ranks, &reduce);
    for (size_t i = 0; i < FACTOR_TEXTS * LAYERS; i++)
        ck_assert_msg(gather.of[0][i] == reduce.of[0][i], "%s, layer %d, %d ranks: gather and reduce differ", factor_texts[i / LAYERS],
                      (int)(i % LAYERS), ranks.nranks);
}
END_TEST

/* The same rows on other ranks, or on more of them: the same sum, bit for bit (nearest rounding: no random numbers). */
typedef struct deal {
    layer_t layer;
    const char *algorithm;
    int shift;
} deal_t;

static void deal_body(iq_rank_t *rank)
{
    const deal_t *deal = rank->argument;
    isgq_quantizer_t quantizer = iq_quantizer(rank, "factor:width=4/5,rounding=nearest");
    call_t call = call_new(&deal->layer, (rank->rank + deal->shift) % rank->nranks, rank->nranks);
    call_run(rank, &call, quantizer, deal->algorithm, false);
    rank->values[0] = call_hash(&call);
    call_free(&call);
    isgq_quantizer_destroy(quantizer);
}

START_TEST(rows_may_live_anywhere)
{
    static const int nranks[] = {1, 2, 3, 4, 6, 9};
    static iq_ranks_values_t values;
    deal_t deal = {.layer = {.m = 37, .n = 21, .max_batch = 12, .bias = true, .type = ISGQ_FLOAT32, .whole = 12}};
    iq_ranks_t ranks = {.body = deal_body, .argument = &deal};
    uint64_t due = 0;
    for (int i = 0; i < 6; i++) {
        for (deal.shift = 0; deal.shift < 2; deal.shift++) {
            ranks.nranks = nranks[i];
            deal.algorithm = (i + deal.shift) % 2 ? "gather" : "reduce";
            iq_ranks_run(&ranks, &values);
            due = i + deal.shift == 0 ? values.of[0][0] : due;
            ck_assert_msg(values.of[0][0] == due, "12 rows on %d ranks, shifted by %d, %s: other bits", nranks[i], deal.shift, deal.algorithm);
        }
    }
}
END_TEST

/* ---- errors ---- */

/* All ranks' rows in double. */
typedef struct reference {
    const layer_t *layer;
    int nranks;
    size_t rows;
    double *x, *delta, *max_x, *max_delta;
} reference_t;

static void load_row(const layer_t *layer, bool is_x, size_t row, double *values, double *most)
{
    *most = 0;
    for (size_t i = 0; i < (is_x ? layer->m : layer->n); i++) {
        values[i] = factor_at(layer, is_x, row, i);
        *most = fmax(*most, fabs(values[i]));
    }
}

static reference_t reference_new(const layer_t *layer, int nranks)
{
    reference_t all = {.layer = layer, .nranks = nranks};
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

static void reference_free(reference_t *all)
{
    free(all->x);
    free(all->delta);
    free(all->max_x);
    free(all->max_delta);
}

/* Exact values of one element, and the error that codes of these widths may have: less than one step each, grid rounded up by an eighth. */
typedef struct exact {
    double value, size, allowed;
} exact_t;

static exact_t exact_gradient(const reference_t *all, unsigned width_x, unsigned width_delta, size_t i, size_t j, bool bias)
{
    exact_t exact = {0, 0, 0};
    for (size_t row = 0; row < all->rows; row++) {
        double x = bias ? 1.0 : all->x[row * all->layer->m + i], delta = all->delta[row * all->layer->n + j];
        double step_x = bias ? 0.0 : 1.126 * all->max_x[row] / (double)((1ll << (width_x - 1)) - 1);
        double step_delta = 1.126 * all->max_delta[row] / (double)((1ll << (width_delta - 1)) - 1);
        exact.value += x * delta;
        exact.size += fabs(x * delta);
        exact.allowed += fabs(x) * step_delta + fabs(delta) * step_x + step_x * step_delta;
    }
    if (all->layer->op == ISGQ_AVG)
        exact = (exact_t){exact.value / all->nranks, exact.size / all->nranks, exact.allowed / all->nranks};
    return exact;
}

static void check_element(iq_rank_t *rank, const char *text, const layer_t *layer, const void *values, size_t index, exact_t exact)
{
    double found = iq_numbers_get(layer->type, values, index);
    double allowed = exact.allowed + 1.01 * roundoff(layer->type) * (fabs(exact.value) + exact.allowed) + 64 * 0x1p-24 * exact.size + 0x1p-24;
    RANK_CHECK(rank, fabs(found - exact.value) <= allowed, "%s: element %zu of %zu x %zu %s is %.9g, not %.9g within %.3g", text, index, layer->m,
               layer->n, iq_types[layer->type].name, found, exact.value, allowed);
}

static void check_errors(iq_rank_t *rank, const char *text, const call_t *call, unsigned width_x, unsigned width_delta)
{
    const layer_t *layer = call->layer;
    reference_t all = reference_new(layer, rank->nranks);
    for (size_t i = 0; i < layer->m * layer->n; i++)
        check_element(rank, text, layer, call->grad.data, i, exact_gradient(&all, width_x, width_delta, i / layer->n, i % layer->n, false));
    for (size_t j = 0; layer->bias && j < layer->n; j++)
        check_element(rank, text, layer, call->bias.data, j, exact_gradient(&all, width_x, width_delta, 0, j, true));
    reference_free(&all);
}

static void errors_body(iq_rank_t *rank)
{
    static const struct {
        const char *text, *algorithm;
        unsigned width_x, width_delta; /* 31: exact */
    } rows[] = {{"factor:width=4/4", NULL, 4, 4},         {"factor:width=8/8", "gather", 8, 8},  {"factor:width=2/3", "reduce", 2, 3},
                {"factor:width=6,rounding=nearest", NULL, 6, 6}, {"none", NULL, 31, 31},         {"none", "dense", 31, 31},
                {"dense=none;factored=factor:width=4/4", "dense", 31, 31}};
    for (size_t q = 0; q < sizeof(rows) / sizeof(rows[0]); q++) {
        isgq_quantizer_t quantizer = iq_quantizer(rank, rows[q].text);
        for (size_t l = 0; l < LAYERS; l++) {
            call_t call = call_new(&layers[l], rank->rank, rank->nranks);
            call_run(rank, &call, quantizer, rows[q].algorithm, false);
            if (rank->rank == rank->nranks - 1)
                check_errors(rank, rows[q].text, &call, rows[q].width_x, rows[q].width_delta);
            iq_rank_agree(rank, call_hash(&call), rows[q].text);
            call_free(&call);
        }
        isgq_quantizer_destroy(quantizer);
    }
}

START_TEST(errors_stay_within_the_steps)
{
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    config.chunk_bytes = 4096;
    iq_ranks_t ranks = {.nranks = iq_test_nranks(_i), .body = errors_body, .config = &config};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* Accumulation adds what a call without it would have written. */
static void accumulate_body(iq_rank_t *rank)
{
    static const char *const algorithms[] = {"gather", "reduce", "dense"};
    isgq_quantizer_t quantizer = iq_quantizer(rank, "dense=none;factored=factor:width=4/4,rounding=nearest");
    for (int a = 0; a < 3; a++) {
        layer_t layer = {.m = 19, .n = 11, .max_batch = 6, .bias = true, .type = a == 1 ? ISGQ_BFLOAT16 : ISGQ_FLOAT32};
        call_t plain = call_new(&layer, rank->rank, rank->nranks), added = call_new(&layer, rank->rank, rank->nranks);
        iq_samples_fill(layer.type, 3, 0, 0, layer.m * layer.n, added.grad.data);
        iq_samples_fill(layer.type, 4, 0, 0, layer.n, added.bias.data);
        call_run(rank, &added, quantizer, algorithms[a], true);
        call_run(rank, &plain, quantizer, algorithms[a], false);
        void *due = malloc(layer.m * layer.n * 8);
        iq_samples_fill(layer.type, 3, 0, 0, layer.m * layer.n, due);
        iq_numbers_add(layer.type, plain.grad.data, layer.m * layer.n, due);
        RANK_CHECK(rank, memcmp(due, added.grad.data, added.grad.bytes) == 0, "%s: accumulated gradient", algorithms[a]);
        iq_samples_fill(layer.type, 4, 0, 0, layer.n, due);
        iq_numbers_add(layer.type, plain.bias.data, layer.n, due);
        RANK_CHECK(rank, memcmp(due, added.bias.data, added.bias.bytes) == 0, "%s: accumulated bias", algorithms[a]);
        free(due);
        call_free(&plain);
        call_free(&added);
    }
    isgq_quantizer_destroy(quantizer);
}

START_TEST(accumulation_adds)
{
    iq_ranks_t ranks = {.nranks = 1 + _i, .body = accumulate_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- budgets ---- */

static double nmse(const reference_t *all, const call_t *call)
{
    const layer_t *layer = call->layer;
    double error = 0, energy = 0;
    for (size_t i = 0; i < layer->m * layer->n; i++) {
        double due = exact_gradient(all, 8, 8, i / layer->n, i % layer->n, false).value;
        double found = iq_numbers_get(layer->type, call->grad.data, i);
        error += (found - due) * (found - due);
        energy += due * due;
    }
    return error / energy;
}

/* More bits, less error; no call contributes more than its budget and a largest row. */
static void budget_body(iq_rank_t *rank)
{
    static const double limits[] = {0.8, 0.2, 0.05, 0.02, 0.005}; /* of bits 2, 3, 4, 5, 6 */
    layer_t layer = {.m = 60, .n = 25, .max_batch = 24, .unsigned_x = true, .bias = true, .type = ISGQ_FLOAT32, .whole = 24 * rank->nranks};
    reference_t all = reference_new(&layer, rank->nranks);
    double before = 1e9;
    for (int bits = 2; bits <= 6; bits++) {
        char text[32];
        snprintf(text, sizeof(text), "isgq:bits=%d", bits);
        isgq_quantizer_t quantizer = iq_quantizer(rank, text);
        isgqx_call_record_t record = {.size = sizeof(record)};
        call_t call = call_new(&layer, rank->rank, rank->nranks);
        call_run(rank, &call, quantizer, "gather", false);
        RANK_OK(rank, isgqx_last_call(rank->comm, &record));
        double error = nmse(&all, &call), budget = bits * 24.0 * (60 + 25) / 8;
        RANK_CHECK(rank, error < limits[bits - 2] && error < before, "%s: nmse %g (before %g)", text, error, before);
        RANK_CHECK(rank, (double)record.own_bytes <= budget + 60 + 25 + 32, "%s: %d bytes where the budget is %g", text, (int)record.own_bytes, budget);
        iq_rank_agree(rank, call_hash(&call), text);
        before = error;
        call_free(&call);
        isgq_quantizer_destroy(quantizer);
    }
    reference_free(&all);
}

START_TEST(budgets_are_kept)
{
    iq_ranks_t ranks = {.nranks = 1 + 2 * _i, .body = budget_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- no bias ---- */

/* The mean of many calls tends to the exact gradient: its error falls as the number of calls, unless the quantizer is biased. */
static void unbiased_body(iq_rank_t *rank)
{
    enum { M = 6, N = 5 };
    const char *text = rank->argument;
    const int calls = IQ_TEST_SANITIZED ? 200 : 1500;
    isgq_quantizer_t quantizer = iq_quantizer(rank, text);
    layer_t layer = {.m = M, .n = N, .max_batch = 8, .bias = true, .unsigned_x = true, .type = ISGQ_FLOAT32, .whole = 8 * rank->nranks};
    double sums[M * N + N] = {0}, squares[M * N + N] = {0}, score = 0;
    call_t call = call_new(&layer, rank->rank, rank->nranks);
    reference_t all = reference_new(&layer, rank->nranks);
    for (int k = 0; k < calls; k++) {
        call_run(rank, &call, quantizer, NULL, false);
        for (int i = 0; i < M * N + N; i++) {
            double value = iq_numbers_get(ISGQ_FLOAT32, i < M * N ? call.grad.data : call.bias.data, (size_t)(i < M * N ? i : i - M * N));
            sums[i] += value;
            squares[i] += value * value;
        }
    }
    for (int i = 0; i < M * N + N; i++) {
        bool bias = i >= M * N;
        double due = exact_gradient(&all, 8, 8, bias ? 0 : (size_t)i / N, (size_t)i % N, bias).value;
        double mean = sums[i] / calls, sigma = sqrt(fmax(squares[i] / calls - mean * mean, 0) / calls);
        RANK_CHECK(rank, fabs(mean - due) <= 6 * sigma + 1e-5, "%s: the mean of element %d is %g, not %g (sigma %g)", text, i, mean, due, sigma);
        score += (mean - due) / (sigma + 1e-6);
    }
    RANK_CHECK(rank, fabs(score) <= 6 * (M * N + N), "%s: all means are off to one side, %g sigma together", text, score);
    reference_free(&all);
    call_free(&call);
    isgq_quantizer_destroy(quantizer);
}

START_TEST(stochastic_factors_have_no_bias)
{
    static const char *const texts[] = {"factor:width=2/2", "isgq:bits=2", "factor:width=4/3"};
    iq_ranks_t ranks = {.nranks = 2, .body = unbiased_body, .argument = (void *)(uintptr_t)texts[_i]};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- NaN and Inf ---- */

static void special_body(iq_rank_t *rank)
{
    static const char *const texts[] = {"factor:width=4/4", "factor:width=4/4", "isgq:bits=3", "none", "dense=uniform:bits=4;factored=factor:width=4"};
    static const char *const algorithms[] = {"gather", "reduce", NULL, NULL, "dense"};
    for (int q = 0; q < 5; q++) {
        isgq_quantizer_t quantizer = iq_quantizer(rank, texts[q]);
        for (int where = 0; where < 2; where++) {
            layer_t layer = {.m = 13, .n = 9, .max_batch = 4, .bias = true, .type = where ? ISGQ_FLOAT16 : ISGQ_FLOAT32, .whole = 4 * rank->nranks};
            call_t call = call_new(&layer, rank->rank, rank->nranks);
            if (rank->rank == (q + where) % rank->nranks) /* row 2: x[2][3], or delta[2][3] */
                iq_numbers_set(layer.type, where ? call.delta.data : call.x.data, 2 * (where ? layer.n : layer.m) + 3, where ? (double)INFINITY : (double)NAN);
            call_run(rank, &call, quantizer, algorithms[q], false);
            size_t element = where ? 0 * layer.n + 3 : 3 * layer.n + 0;
            bool shows = !isfinite(iq_numbers_get(layer.type, call.grad.data, element));
            for (size_t i = 0; i < layer.m && where; i++) /* Inf times zero or not */
                shows |= !isfinite(iq_numbers_get(layer.type, call.grad.data, i * layer.n + 3));
            RANK_CHECK(rank, shows, "%s %s: it is lost", texts[q], where ? "Inf" : "NaN");
            RANK_CHECK(rank, !where || !isfinite(iq_numbers_get(layer.type, call.bias.data, 3)), "%s: Inf is lost in the bias", texts[q]);
            iq_rank_agree(rank, call_hash(&call), texts[q]);
            call_free(&call);
        }
        isgq_quantizer_destroy(quantizer);
    }
}

START_TEST(nan_and_inf_show)
{
    iq_ranks_t ranks = {.nranks = 1 + _i, .body = special_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- refusals ---- */

static void refused_body(iq_rank_t *rank)
{
    isgq_quantizer_t quantizer = iq_quantizer(rank, "factor:width=4/4"), dense = iq_quantizer(rank, "uniform:bits=4");
    double x[12] = {0}, delta[12] = {0}, grad[9];
    isgq_call_options_t gather = {.size = sizeof(gather), .algorithm = "gather"};
    isgq_factors_t factors = {.size = sizeof(factors), .x = x, .delta = delta, .batch = 2, .m = 3, .n = 3};
    for (int type = 0; type < IQ_TYPE_COUNT; type++)
        if (type != ISGQ_FLOAT32 && type != ISGQ_FLOAT16 && type != ISGQ_BFLOAT16)
            RANK_STATUS(rank, isgq_allreduce_factored(&factors, 2, grad, (isgq_data_type_t)type, ISGQ_SUM, quantizer, rank->comm, NULL, NULL), ISGQ_ERR_UNSUPPORTED);
    for (int op = ISGQ_PROD; op <= ISGQ_MIN; op++)
        RANK_STATUS(rank, isgq_allreduce_factored(&factors, 2, grad, ISGQ_FLOAT32, (isgq_red_op_t)op, quantizer, rank->comm, NULL, NULL), ISGQ_ERR_UNSUPPORTED);
    RANK_STATUS(rank, isgq_allreduce_factored(&factors, 2, grad, ISGQ_FLOAT32, ISGQ_SUM, dense, rank->comm, NULL, &gather), ISGQ_ERR_UNSUPPORTED);
    RANK_STATUS(rank, isgq_allreduce_factored(&factors, 1, grad, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, NULL), ISGQ_ERR_INVALID_ARGUMENT);
    isgq_quantizer_destroy(quantizer);
    isgq_quantizer_destroy(dense);
}

START_TEST(what_makes_no_gradient_is_refused)
{
    iq_ranks_t ranks = {.nranks = 2, .body = refused_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

static TCase *add(Suite *suite, TCase *tcase, const TTest *test, int loops)
{
    tcase_set_timeout(tcase, 110);
    tcase_add_loop_test(tcase, test, 0, loops);
    suite_add_tcase(suite, tcase);
    return tcase;
}

Suite *iq_suite(void)
{
    Suite *suite = suite_create("factored");
    add(suite, tcase_create("one_answer"), gather_and_reduce_give_one_answer, IQ_RANK_COUNTS);
    add(suite, tcase_create("any_deal"), rows_may_live_anywhere, 1);
    add(suite, tcase_create("errors"), errors_stay_within_the_steps, IQ_RANK_COUNTS);
    add(suite, tcase_create("accumulate"), accumulation_adds, 3);
    add(suite, tcase_create("budget"), budgets_are_kept, 2);
    add(suite, tcase_create("unbiased"), stochastic_factors_have_no_bias, 3);
    add(suite, tcase_create("nan"), nan_and_inf_show, 3);
    add(suite, tcase_create("refused"), what_makes_no_gradient_is_refused, 1);
    return suite;
}
