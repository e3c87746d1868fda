/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What ranks agree on for codec `uniform` where that is not the largest magnitude of a bucket:
 *
 *   norm=l2   the L2 norm of the bucket's values on all ranks: sums of squares, SUM, then their roots
 *   clip=c    the largest of the ranks' scales, each min(largest magnitude, c standard deviations of its bucket): MAX
 *
 * Until they are closed, scales have room for moments in double. A moment is summed in 16 lanes for every block of elements,
 * lanes as a tree, then blocks in order. Blocks are cut by element number, so nothing depends on how the tensor comes in spans.
 */
#include "codec/convert.h"
#include "codec/uniform.h"

#include <float.h>
#include <math.h>

enum { LANES = 16, BLOCK = 256 };
_Static_assert(IQ_CODEC_TILE % BLOCK == 0, "a tile that starts at a block is whole blocks");

/* Floats of room for a bucket: [squares, a double][sum, a double][largest magnitude]; the norm needs but the first. */
enum { SQUARES_AT = 0, SUM_AT = 2, MOST_AT = 4, ROOM_NORM = 2, ROOM_CLIP = 5 };

static size_t room_of_bucket(const iq_codec_t *codec) { return codec->norm == IQ_NORM_L2 ? ROOM_NORM : ROOM_CLIP; }

size_t iq_uniform_shared_scales(const iq_codec_t *codec, size_t count)
{
    return iq_uniform_buckets(codec, (iq_span_t){0, count});
}

size_t iq_uniform_room_scales(const iq_codec_t *codec, size_t count)
{
    return room_of_bucket(codec) * iq_uniform_shared_scales(codec, count);
}

size_t iq_uniform_scales_unit(const iq_codec_t *codec)
{
    (void)codec;
    return BLOCK;
}

isgq_red_op_t iq_uniform_scales_op(const iq_codec_t *codec) { return codec->norm == IQ_NORM_L2 ? ISGQ_SUM : ISGQ_MAX; }

/* ---- moments ---- */

static double fold(double lanes[LANES])
{
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; lane++)
            lanes[lane] += lanes[lane + half];
    return lanes[0];
}

/* Of at most a block. */
static void add_moments(const iq_f32_any_t *values, size_t count, iq_f64_any_t *squares, iq_f64_any_t *sum)
{
    double square_lanes[LANES] = {0}, sum_lanes[LANES] = {0};
    size_t whole = count / LANES * LANES;
    for (size_t i = 0; i < whole; i += LANES) {
        for (size_t lane = 0; lane < LANES; lane++) {
            double x = (double)values[i + lane];
            square_lanes[lane] += x * x;
            sum_lanes[lane] += x;
        }
    }
    for (size_t lane = 0; whole + lane < count; lane++) {
        double x = (double)values[whole + lane];
        square_lanes[lane] += x * x;
        sum_lanes[lane] += x;
    }
    *squares += fold(square_lanes);
    if (sum != NULL)
        *sum += fold(sum_lanes);
}

/* One run of a bucket's elements, the first of which is number `element`. */
static void add_run(const iq_codec_t *codec, size_t element, const iq_f32_any_t *values, size_t count, float *room)
{
    bool clips = codec->norm != IQ_NORM_L2;
    iq_f64_any_t *squares = (iq_f64_any_t *)(room + SQUARES_AT), *sum = clips ? (iq_f64_any_t *)(room + SUM_AT) : NULL;
    for (size_t i = 0, n; i < count; i += n) {
        n = iq_min(count - i, BLOCK - (element + i) % BLOCK);
        add_moments(values + i, n, squares, sum);
    }
    if (clips) {
        float most = iq_kernels()->absmax(values, count);
        room[MOST_AT] = most > room[MOST_AT] ? most : room[MOST_AT];
    }
}

void iq_uniform_norm_scales(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, float *scales)
{
    float tile[IQ_CODEC_TILE];
    float *first = scales + room_of_bucket(codec) * iq_uniform_scale_at(codec, call, span);
    for (size_t i = 0; i < span.count; i += IQ_CODEC_TILE) {
        size_t end = iq_min(i + IQ_CODEC_TILE, span.count);
        const iq_f32_any_t *from = iq_load_f32(call->datatype, src, i, end - i, tile);
        iq_uniform_run_t run = {.offset = i};
        while (iq_uniform_next_run(codec, span, end, &run))
            add_run(codec, span.first + run.offset, from + (run.offset - i), run.count,
                    first + room_of_bucket(codec) * run.bucket);
    }
}

/* ---- moments to scales ---- */

/* Not below the sum, so that no value is above the norm; nor so small that squares are lost. +Inf for NaN. */
static float round_squares(double squares)
{
    if (!(squares <= (double)FLT_MAX))
        return INFINITY;
    if (squares > 0.0 && squares < (double)FLT_MIN)
        return FLT_MIN;
    float rounded = (float)squares;
    return (double)rounded < squares ? iq_bits_float(iq_float_bits(rounded) + 1) : rounded;
}

/* Values that are alike up to a few millionths would all be clipped, or not, by how their squares were rounded. */
#define LEAST_VARIANCE 0x1p-30

/* A bucket's scale on one rank. */
static float clipped_scale(float clip, double squares, double sum, float most, size_t count)
{
    double mean = sum / (double)count, square = squares / (double)count, variance = square - mean * mean;
    double limit = (double)clip * sqrt(fmax(variance, 0.0));
    return variance > LEAST_VARIANCE * square && limit < (double)most && isfinite(most) ? (float)limit : most;
}

/* Room of bucket b begins at or behind scale b: each is read before it is overwritten. */
void iq_uniform_close_scales(const iq_codec_t *codec, const iq_codec_call_t *call, size_t count, float *scales)
{
    size_t buckets = iq_uniform_shared_scales(codec, count), size = codec->bucket == 0 ? count : codec->bucket;
    (void)call;
    for (size_t b = 0; b < buckets; b++) {
        const float *room = scales + b * room_of_bucket(codec);
        double squares = *(const iq_f64_any_t *)(room + SQUARES_AT);
        if (codec->norm == IQ_NORM_L2)
            scales[b] = round_squares(squares);
        else
            scales[b] = clipped_scale(codec->clip, squares, *(const iq_f64_any_t *)(room + SUM_AT), room[MOST_AT],
                                      iq_min(size, count - b * size));
    }
}

void iq_uniform_open_scales(const iq_codec_t *codec, const iq_codec_call_t *call, size_t count, float *scales)
{
    size_t buckets = iq_uniform_shared_scales(codec, count);
    (void)call;
    for (size_t b = 0; b < buckets && codec->norm == IQ_NORM_L2; b++)
        scales[b] = sqrtf(scales[b]);
}
