/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decoded rows to the gradient, tile by tile. Everything up to the last multiplication is a sum of integers below 2^53 held in
 * doubles: exact in any order, so a BLAS, the reference loops and a reduction of integers between ranks all give the same bits.
 */
#include "base/util.h"
#include "codec/convert.h"
#include "codec/factor_internal.h"
#include "kernels/gemm.h"
#include "kernels/quant_math.h"

#include <math.h>
#include <string.h>

/* Outputs of a tile, and rows that enter it at a time: the three panels fill 640 KiB of cache. */
enum { TILE_M = 128, TILE_N = IQ_FACTOR_CHUNK, PANEL_ROWS = 128 };

typedef struct tile {
    size_t i, j, m, n; /* first row and column of the gradient, rows and columns */
} tile_t;

/* Memory of one product, carved from the caller's scratch. */
typedef struct panels {
    double *a, *b, *sums;
} panels_t;

static tile_t tile_of_band(const iq_factor_call_t *call, iq_factor_band_t band, size_t index)
{
    size_t across = iq_max(1, iq_ceil_div(call->n, TILE_N));
    size_t i = index / across * TILE_M, j = index % across * TILE_N;
    return (tile_t){band.first + i, j, iq_min(TILE_M, band.count - iq_min(i, band.count)), iq_min(TILE_N, call->n - iq_min(j, call->n))};
}

static tile_t tile_of(const iq_factor_call_t *call, size_t index)
{
    return tile_of_band(call, (iq_factor_band_t){0, call->m}, index);
}

static panels_t panels_of(void *scratch)
{
    double *p = scratch;
    return (panels_t){p, p + PANEL_ROWS * TILE_M, p + PANEL_ROWS * (TILE_M + TILE_N)};
}

size_t iq_factor_product_scratch(const iq_factor_call_t *call, size_t rows)
{
    (void)call;
    (void)rows;
    return (PANEL_ROWS * (TILE_M + TILE_N) + TILE_M * TILE_N) * sizeof(double);
}

size_t iq_factor_band_tiles(const iq_factor_call_t *call, iq_factor_band_t band)
{
    return iq_ceil_div(band.count, TILE_M) * iq_ceil_div(call->n, TILE_N);
}

size_t iq_factor_product_tiles(const iq_factor_call_t *call)
{
    return iq_max(1, iq_ceil_div(call->m, TILE_M)) * iq_max(1, iq_ceil_div(call->n, TILE_N)); /* m 0 still has a bias */
}

/* Row r of the tile into row `at` of the panels. */
static void load_row(const iq_factor_call_t *call, const iq_factor_rows_t *rows, size_t r, tile_t tile, panels_t panels, size_t at)
{
    const int16_t *q = rows->q + r * call->m + tile.i, *p = rows->p + r * call->n + tile.j;
    double weight = (double)rows->weight_c[r], *a = panels.a + at * TILE_M, *b = panels.b + at * TILE_N;
    for (size_t i = 0; i < tile.m; i++)
        a[i] = weight * q[i];
    for (size_t j = 0; j < tile.n; j++)
        b[j] = p[j];
}

/* panels.sums [tile.m x TILE_N] = the tile's integers. Rows that speak for the bias alone stay out. */
static void sum_tile(const iq_factor_call_t *call, const iq_factor_rows_t *rows, tile_t tile, panels_t panels)
{
    bool any = false;
    size_t filled = 0;
    for (; rows != NULL; rows = rows->next)
        for (size_t r = 0; r < rows->count; r++) {
            if (rows->weight_c[r] == 0)
                continue;
            load_row(call, rows, r, tile, panels, filled++);
            if (filled == PANEL_ROWS) {
                iq_gemm_tn_f64(tile.m, tile.n, filled, panels.a, TILE_M, panels.b, TILE_N, panels.sums, TILE_N, any);
                any = true;
                filled = 0;
            }
        }
    if (filled > 0)
        iq_gemm_tn_f64(tile.m, tile.n, filled, panels.a, TILE_M, panels.b, TILE_N, panels.sums, TILE_N, any);
    else if (!any)
        memset(panels.sums, 0, tile.m * TILE_N * sizeof(double));
}

/* The bias integers of columns first..first+count-1. */
static void sum_bias(const iq_factor_call_t *call, const iq_factor_rows_t *rows, size_t first, size_t count, double *sums)
{
    memset(sums, 0, count * sizeof(double));
    for (; rows != NULL; rows = rows->next)
        for (size_t r = 0; r < rows->count; r++) {
            const int16_t *p = rows->p + r * call->n + first;
            double weight = (double)rows->weight_b[r];
            for (size_t j = 0; j < count; j++)
                sums[j] += weight * p[j];
        }
}

/* How integers become the result. */
typedef struct finish {
    double scale, divisor;
    bool accumulate;
} finish_t;

double iq_factor_scale(const iq_factor_call_t *call, const float peaks[2], bool bias)
{
    bool finite = !iq_not_finite(peaks[0]) && !iq_not_finite(peaks[1]);
    int finer = (int)call->fraction * (bias ? 1 : 2); /* codes of one factor, or of both */
    return finite ? iq_power_of_two(iq_factor_grid_of(call->want_bias, peaks[bias ? 0 : 1]).exponent - finer) : NAN;
}

static finish_t finish_of(const iq_factor_call_t *call, const float peaks[2], bool bias, bool avg, bool accumulate)
{
    return (finish_t){iq_factor_scale(call, peaks, bias), avg ? call->nranks : 1, accumulate};
}

static void to_values(const finish_t *finish, const double *integers, size_t count, float *values)
{
    for (size_t i = 0; i < count; i++)
        values[i] = (float)(integers[i] * finish->scale / finish->divisor);
}

static void deliver(const iq_factor_call_t *call, const finish_t *finish, const double *integers, size_t count, void *dst,
                    size_t first)
{
    float values[IQ_FACTOR_CHUNK];
    to_values(finish, integers, count, values);
    iq_store_f32(call->datatype, values, count, finish->accumulate, dst, first);
}

void iq_factor_bias(const iq_factor_call_t *call, const iq_factor_rows_t *rows, const float peaks[2], bool avg, bool accumulate,
                    void *bias, void *scratch)
{
    panels_t panels = panels_of(scratch);
    finish_t finish = finish_of(call, peaks, true, avg, accumulate);
    for (size_t j = 0; j < call->n; j += TILE_N) {
        size_t count = iq_min(TILE_N, call->n - j);
        sum_bias(call, rows, j, count, panels.sums);
        deliver(call, &finish, panels.sums, count, bias, j);
    }
}

isgq_result_t iq_factor_product(const iq_factor_call_t *call, const iq_factor_rows_t *rows, const float peaks[2], size_t index,
                                bool avg, bool accumulate, void *grad, void *bias, void *scratch)
{
    tile_t tile = tile_of(call, index);
    panels_t panels = panels_of(scratch);
    finish_t finish = finish_of(call, peaks, false, avg, accumulate);
    sum_tile(call, rows, tile, panels);
    for (size_t i = 0; i < tile.m; i++)
        deliver(call, &finish, panels.sums + i * TILE_N, tile.n, grad, (tile.i + i) * call->n + tile.j);
    if (index == 0 && bias != NULL)
        iq_factor_bias(call, rows, peaks, avg, accumulate, bias, scratch);
    return ISGQ_SUCCESS;
}

void iq_factor_product_band(const iq_factor_call_t *call, const iq_factor_rows_t *rows, const float peaks[2], iq_factor_band_t band,
                            size_t index, bool avg, float *values, void *scratch)
{
    tile_t tile = tile_of_band(call, band, index);
    panels_t panels = panels_of(scratch);
    finish_t finish = finish_of(call, peaks, false, avg, false);
    sum_tile(call, rows, tile, panels);
    for (size_t i = 0; i < tile.m; i++)
        to_values(&finish, panels.sums + i * TILE_N, tile.n, values + (tile.i - band.first + i) * call->n + tile.j);
}

static void store_integers(isgq_data_type_t type, const double *integers, size_t count, void *sums, size_t first)
{
    int32_t *narrow = sums;
    int64_t *wide = sums;
    if (type == ISGQ_INT32)
        for (size_t i = 0; i < count; i++)
            narrow[first + i] = (int32_t)integers[i];
    else
        for (size_t i = 0; i < count; i++)
            wide[first + i] = (int64_t)integers[i];
}

static void load_integers(isgq_data_type_t type, const void *sums, size_t first, size_t count, double *integers)
{
    const int32_t *narrow = sums;
    const int64_t *wide = sums;
    if (type == ISGQ_INT32)
        for (size_t i = 0; i < count; i++)
            integers[i] = narrow[first + i];
    else
        for (size_t i = 0; i < count; i++)
            integers[i] = (double)wide[first + i];
}

isgq_result_t iq_factor_product_integers(const iq_factor_spec_t *spec, const iq_factor_call_t *call, const iq_factor_rows_t *rows,
                                         size_t index, void *sums, void *scratch)
{
    isgq_data_type_t type = iq_factor_sum_type(spec, call);
    tile_t tile = tile_of(call, index);
    panels_t panels = panels_of(scratch);
    sum_tile(call, rows, tile, panels);
    for (size_t i = 0; i < tile.m; i++)
        store_integers(type, panels.sums + i * TILE_N, tile.n, sums, (tile.i + i) * call->n + tile.j);
    if (index != 0 || !call->want_bias)
        return ISGQ_SUCCESS;
    for (size_t j = 0; j < call->n; j += TILE_N) {
        size_t count = iq_min(TILE_N, call->n - j);
        sum_bias(call, rows, j, count, panels.sums);
        store_integers(type, panels.sums, count, sums, call->m * call->n + j);
    }
    return ISGQ_SUCCESS;
}

void iq_factor_from_integers(const iq_factor_spec_t *spec, const iq_factor_call_t *call, const void *sums, const float peaks[2],
                             size_t index, bool avg, bool accumulate, void *grad, void *bias)
{
    isgq_data_type_t type = iq_factor_sum_type(spec, call);
    tile_t tile = tile_of(call, index);
    finish_t finish = finish_of(call, peaks, false, avg, accumulate);
    double integers[TILE_N];
    for (size_t i = 0; i < tile.m; i++) {
        size_t first = (tile.i + i) * call->n + tile.j;
        load_integers(type, sums, first, tile.n, integers);
        deliver(call, &finish, integers, tile.n, grad, first);
    }
    if (index != 0 || bias == NULL)
        return;
    finish = finish_of(call, peaks, true, avg, accumulate);
    for (size_t j = 0; j < call->n; j += TILE_N) {
        size_t count = iq_min(TILE_N, call->n - j);
        load_integers(type, sums, call->m * call->n + j, count, integers);
        deliver(call, &finish, integers, count, bias, j);
    }
}

/* Rows first..first+count-1, columns column..column+width-1 of a factor as a float panel. */
static void load_panel(isgq_data_type_t datatype, const void *factor, size_t columns, size_t first, size_t count, size_t column,
                       size_t width, float *panel, size_t stride)
{
    for (size_t r = 0; r < count; r++)
        iq_factor_load(datatype, factor, (first + r) * columns + column, width, panel + r * stride);
}

static void add_rows(const float *panel, size_t count, size_t stride, size_t width, float *sums)
{
    for (size_t r = 0; r < count; r++)
        for (size_t j = 0; j < width; j++)
            sums[j] += panel[r * stride + j];
}

isgq_result_t iq_factor_local_gradient(const iq_factor_call_t *call, const void *x, const void *delta, float *grad, float *bias,
                                       size_t index, void *scratch)
{
    tile_t tile = tile_of(call, index);
    panels_t panels = panels_of(scratch);
    float *a = (float *)panels.a, *b = (float *)panels.b, *sums = (float *)panels.sums;
    if (call->batch == 0)
        memset(sums, 0, tile.m * TILE_N * sizeof(float));
    if (tile.i == 0 && bias != NULL)
        memset(bias + tile.j, 0, tile.n * sizeof(float));
    for (size_t first = 0; first < call->batch; first += PANEL_ROWS) {
        size_t count = iq_min(PANEL_ROWS, call->batch - first);
        load_panel(call->datatype, x, call->m, first, count, tile.i, tile.m, a, TILE_M);
        load_panel(call->datatype, delta, call->n, first, count, tile.j, tile.n, b, TILE_N);
        iq_gemm_tn_f32(tile.m, tile.n, count, a, TILE_M, b, TILE_N, sums, TILE_N, first > 0);
        if (tile.i == 0 && bias != NULL)
            add_rows(b, count, TILE_N, tile.n, bias + tile.j);
    }
    for (size_t i = 0; i < tile.m; i++)
        memcpy(grad + (tile.i + i) * call->n + tile.j, sums + i * TILE_N, tile.n * sizeof(float));
    return ISGQ_SUCCESS;
}
