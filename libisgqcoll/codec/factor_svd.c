/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rows=svd: a rank's rows are replaced by as few as have the same product. Their outer products are orthogonal and fall off as fast as any
 * can, so a budget that leaves rows out loses the least. The bias is no longer the sum of their deltas: it is sent as a row without X.
 *
 * Other ranks see rows like any others, so nothing depends on whether two machines decompose alike.
 */
#include "base/util.h"
#include "codec/factor_internal.h"
#include "kernels/gemm.h"

#include <string.h>

/* Both factors in doubles, and what the decomposition itself needs. */
size_t iq_factor_svd_scratch(const iq_factor_call_t *call)
{
    return call->max_batch * (call->m + call->n) * sizeof(double) + iq_product_svd_scratch(call->max_batch, call->m, call->n);
}

static void widen(const iq_factor_call_t *call, const void *factor, size_t columns, double *values)
{
    for (size_t r = 0; r < call->batch; r++)
        for (size_t done = 0, count; done < columns; done += count) {
            float chunk[IQ_FACTOR_CHUNK];
            count = iq_min(columns - done, IQ_FACTOR_CHUNK);
            iq_factor_load(call->datatype, factor, r * columns + done, count, chunk);
            for (size_t i = 0; i < count; i++)
                values[r * columns + done + i] = (double)chunk[i];
        }
}

static void narrow(const double *values, size_t count, float *floats)
{
    for (size_t i = 0; i < count; i++)
        floats[i] = (float)values[i];
}

/* X of zeros, and the sum of all rows of Delta. */
static void add_bias_row(const iq_factor_call_t *call, const void *delta, size_t row, iq_factor_state_t *state)
{
    double *sums = state->svd_scratch;
    memset(state->svd_x + row * call->m, 0, call->m * sizeof(float));
    memset(sums, 0, call->n * sizeof(*sums));
    for (size_t r = 0; r < call->batch; r++)
        for (size_t done = 0, count; done < call->n; done += count) {
            float chunk[IQ_FACTOR_CHUNK];
            count = iq_min(call->n - done, IQ_FACTOR_CHUNK);
            iq_factor_load(call->datatype, delta, r * call->n + done, count, chunk);
            for (size_t i = 0; i < count; i++)
                sums[done + i] += (double)chunk[i];
        }
    narrow(sums, call->n, state->svd_delta + row * call->n);
}

/* Should the decomposition fail, the rows are sent as they are. */
void iq_factor_decompose(const iq_factor_call_t *call, const void *x, const void *delta, iq_factor_state_t *state)
{
    double *wide_x = state->svd_scratch, *wide_delta = wide_x + call->max_batch * call->m;
    widen(call, x, call->m, wide_x);
    widen(call, delta, call->n, wide_delta);
    int found = iq_product_svd(call->batch, call->m, call->n, wide_x, wide_delta, wide_delta + call->max_batch * call->n);
    size_t rows = found < 0 ? call->batch : (size_t)found;
    if (found < 0) {
        widen(call, x, call->m, wide_x);
        widen(call, delta, call->n, wide_delta);
    }
    narrow(wide_x, rows * call->m, state->svd_x);
    narrow(wide_delta, rows * call->n, state->svd_delta);
    if (call->want_bias && call->batch > 0)
        add_bias_row(call, delta, rows++, state);
    state->facts->svd_rows = rows;
}

iq_factor_call_t iq_factor_svd_call(const iq_factor_call_t *call, const iq_factor_state_t *state)
{
    iq_factor_call_t own = *call;
    own.datatype = ISGQ_FLOAT32;
    own.batch = state->facts->svd_rows;
    return own;
}
