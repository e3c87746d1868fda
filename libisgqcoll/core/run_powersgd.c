/* SPDX-License-Identifier: Apache-2.0 */
/*
 * PowerSGD (codec/powersgd.h) as stages of an allreduce:
 *
 *   directions    Q of the tensor's last call made orthonormal; what is zero is drawn
 *   product P     v = gradient + residual, and this rank's P = Q transpose(v)
 *   sum of P      exact allreduce
 *   basis         P made orthonormal
 *   product Q     this rank's Q = P v
 *   sum of Q      exact allreduce, in the tensor: the next call goes on from it
 *   result        transpose(P) Q delivered; residual = v - transpose(P) (own Q)
 *
 * The residual's memory holds v meanwhile. It is the error of what this rank sent, as in the paper; other implementations keep
 * v - result / nranks, of which the sum over ranks is the same, and so are all later results but for rounding.
 */
#include "base/util.h"
#include "codec/convert.h"
#include "codec/powersgd.h"
#include "core/run.h"
#include "core/tensor.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define PIECE_ELEMENTS 16384 /* of one trip, so that hosts look at the network in between; whole tiles */

/* ---- spans of the matrix, a tile at a time ---- */

typedef struct tiles {
    size_t at, end;
} tiles_t;

static tiles_t tiles_of(const iq_run_t *run, size_t trip)
{
    size_t first = trip * PIECE_ELEMENTS;
    return (tiles_t){first, iq_min(first + PIECE_ELEMENTS, run->call->count)};
}

static size_t tile_count(const tiles_t *tiles) { return iq_min(tiles->end - tiles->at, IQ_CODEC_TILE); }

/* v, once the residual has been added; `tile` where it has to be converted. */
static const iq_f32_any_t *values_at(const iq_run_t *run, size_t first, size_t count, float *tile)
{
    const iq_call_t *call = run->call;
    return call->corrects ? call->tensor->residual + first : iq_load_f32(call->datatype, run->send, first, count, tile);
}

/* e += g: a residual must not make a gradient infinite that is not. */
static void add_gradient(const iq_run_t *run, size_t first, size_t count)
{
    const iq_call_t *call = run->call;
    float tile[IQ_CODEC_TILE], *residual = call->tensor->residual + first;
    const iq_f32_any_t *gradient = iq_load_f32(call->datatype, run->send, first, count, tile);
    for (size_t i = 0; i < count; i++) {
        float sum = residual[i] + gradient[i];
        float within = sum > FLT_MAX ? FLT_MAX : sum < -FLT_MAX ? -FLT_MAX : sum;
        residual[i] = iq_is_finite(gradient[i]) ? within : gradient[i];
    }
}

/* ---- stages ---- */

/* One vector a trip. */
static isgq_result_t work_directions(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_call_t *call = run->call;
    unsigned number = (unsigned)trip;
    if (trip == 0) {
        memset(run->power.p, 0, call->power_rank * call->rows * sizeof(float));
        if (call->history == 1)
            memset(run->power.q, 0, call->power_rank * call->columns * sizeof(float));
    }
    iq_powersgd_start(comm->key, call->sequence, number, call->columns, run->power.q + trip * call->columns);
    iq_powersgd_orthonormal(run->power.q, call->columns, number);
    return ISGQ_SUCCESS;
}

static isgq_result_t work_left(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_call_t *call = run->call;
    float tile[IQ_CODEC_TILE];
    (void)comm;
    for (tiles_t tiles = tiles_of(run, trip); tiles.at < tiles.end; tiles.at += tile_count(&tiles)) {
        size_t count = tile_count(&tiles);
        if (call->corrects)
            add_gradient(run, tiles.at, count);
        iq_powersgd_left(values_at(run, tiles.at, count, tile), call->rows, call->columns, call->power_rank, run->power.q, tiles.at, count,
                         run->power.p);
    }
    return ISGQ_SUCCESS;
}

static isgq_result_t work_basis(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_call_t *call = run->call;
    (void)comm;
    iq_powersgd_orthonormal(run->power.p, call->rows, (unsigned)trip);
    if (trip == 0)
        memset(run->power.q, 0, call->power_rank * call->columns * sizeof(float));
    return ISGQ_SUCCESS;
}

static isgq_result_t work_right(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_call_t *call = run->call;
    float tile[IQ_CODEC_TILE];
    tiles_t tiles = tiles_of(run, trip);
    (void)comm;
    for (; tiles.at < tiles.end; tiles.at += tile_count(&tiles)) {
        size_t count = tile_count(&tiles);
        iq_powersgd_right(values_at(run, tiles.at, count, tile), call->rows, call->columns, call->power_rank, run->power.p, tiles.at,
                          count, run->power.q);
    }
    if (tiles.end == call->count && run->power.own_q != NULL)
        memcpy(run->power.own_q, run->power.q, call->power_rank * call->columns * sizeof(float));
    return ISGQ_SUCCESS;
}

/* What became of v: sums for statistics, and the residual. Elements that are not finite leave none. */
static void look_at_own(iq_run_t *run, size_t first, size_t count, const float *sent)
{
    iq_own_error_t *own = &run->own_error;
    float tile[IQ_CODEC_TILE], *residual = run->call->corrects ? run->call->tensor->residual + first : tile;
    const iq_f32_any_t *values = values_at(run, first, count, tile);
    double errors = 0.0, squares = 0.0;
    for (size_t i = 0; i < count; i++) {
        float value = values[i], error = value - sent[i];
        bool counts = iq_is_finite(error);
        error = counts ? error : 0.0f;
        own->lost += !counts;
        errors += (double)error * (double)error;
        squares += counts ? (double)value * (double)value : 0.0;
        own->zeros += sent[i] == 0.0f;
        residual[i] = error;
    }
    own->count += count;
    iq_exact_add(&own->error, errors);
    iq_exact_add(&own->square, squares);
    own->residual_square = run->call->corrects ? iq_exact_value(&own->error) : 0.0;
}

static bool all_finite(const float *values, size_t count)
{
    bool finite = true;
    for (size_t i = 0; i < count; i++)
        finite &= iq_is_finite(values[i]);
    return finite;
}

static isgq_result_t work_result(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_call_t *call = run->call;
    const iq_power_run_t *power = &run->power;
    float tile[IQ_CODEC_TILE], divisor = call->op == ISGQ_AVG ? (float)comm->nranks : 1.0f;
    tiles_t tiles = tiles_of(run, trip);
    for (; tiles.at < tiles.end; tiles.at += tile_count(&tiles)) {
        size_t count = tile_count(&tiles);
        if (power->own_q != NULL) {
            iq_powersgd_product(power->p, power->own_q, call->rows, call->columns, call->power_rank, tiles.at, count, tile);
            look_at_own(run, tiles.at, count, tile);
        }
        iq_powersgd_product(power->p, power->q, call->rows, call->columns, call->power_rank, tiles.at, count, tile);
        for (size_t i = 0; i < count; i++)
            tile[i] /= divisor;
        iq_store_f32(call->datatype, tile, count, run->accumulate, run->recv, tiles.at);
    }
    if (tiles.end == call->count && !all_finite(power->q, call->power_rank * call->columns)) /* no direction to go on from */
        memset(power->q, 0, call->power_rank * call->columns * sizeof(float));
    return ISGQ_SUCCESS;
}

isgq_result_t iq_run_begin_powersgd(isgq_comm_t comm, iq_run_t *run)
{
    const iq_call_t *call = run->call;
    size_t p_count = call->power_rank * call->rows, q_count = call->power_rank * call->columns;
    size_t pieces = iq_ceil_div(call->count, PIECE_ELEMENTS);
    run->own_error.measures = !comm->devices && iq_accuracy_wanted(comm, call);
    run->power.p = iq_run_take(run, p_count * sizeof(float));
    run->power.q = call->tensor->directions;
    run->power.own_q = call->corrects || run->own_error.measures ? iq_run_take(run, q_count * sizeof(float)) : NULL;
    if (run->power.p == NULL || (run->power.own_q == NULL && (call->corrects || run->own_error.measures)))
        return ISGQ_ERR_NO_MEMORY;
    iq_run_add_work(run, "directions", work_directions, call->power_rank);
    iq_run_add_work(run, "product P", work_left, pieces);
    IQ_TRY(iq_run_add_sum(comm, run, iq_run_everybody(comm), "sum of P", call->algorithm, ISGQ_FLOAT32, ISGQ_SUM, p_count,
                          run->power.p, false));
    iq_run_add_work(run, "basis", work_basis, call->power_rank);
    iq_run_add_work(run, "product Q", work_right, pieces);
    IQ_TRY(iq_run_add_sum(comm, run, iq_run_everybody(comm), "sum of Q", call->algorithm, ISGQ_FLOAT32, ISGQ_SUM, q_count,
                          run->power.q, false));
    iq_run_add_work(run, "result", work_result, pieces);
    return ISGQ_SUCCESS;
}
