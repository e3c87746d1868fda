/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What ranks agree on for codec `uniform` where that is not the largest magnitude of a bucket:
 *
 *   norm=l2   the L2 norm of the bucket's values on all ranks: sums of squares, SUM, then their roots
 *   clip=c    the largest of the ranks' scales, each min(largest magnitude, c standard deviations of its bucket): MAX
 *
 * Until they are closed, scales have room for moments in double, whose order kernels/moment_math.h states: nothing depends on how
 * the tensor comes in spans, which begin at panels.
 */
#include "codec/convert.h"
#include "codec/uniform.h"
#include "kernels/moment_math.h"

#include <string.h>

_Static_assert(IQ_CODEC_TILE % IQ_MOMENT_BLOCK == 0, "a tile has room for a block");

static size_t words_of_bucket(const iq_codec_t *codec) { return codec->norm == IQ_NORM_L2 ? IQ_NORM_WORDS : IQ_CLIP_WORDS; }

size_t iq_uniform_shared_scales(const iq_codec_t *codec, size_t count)
{
    return iq_uniform_buckets(codec, (iq_span_t){0, count});
}

size_t iq_uniform_room_scales(const iq_codec_t *codec, size_t count)
{
    return words_of_bucket(codec) * iq_uniform_shared_scales(codec, count);
}

size_t iq_uniform_scales_unit(const iq_codec_t *codec)
{
    (void)codec;
    return IQ_MOMENT_PANEL;
}

isgq_red_op_t iq_uniform_scales_op(const iq_codec_t *codec) { return codec->norm == IQ_NORM_L2 ? ISGQ_SUM : ISGQ_MAX; }

/* ---- moments ---- */

/* Whole rows of lanes. Lanes of its own: nobody indexes them by what compilers do not know, so they stay in registers. */
static inline void add_rows(const iq_f32_any_t *values, size_t count, bool squares, double lanes[IQ_MOMENT_LANES])
{
    double sum[IQ_MOMENT_LANES];
    memcpy(sum, lanes, sizeof(sum));
    for (size_t i = 0; i < count; i += IQ_MOMENT_LANES) {
        for (size_t j = 0; j < IQ_MOMENT_LANES; j++) {
            double x = (double)values[i + j];
            sum[j] += squares ? x * x : x;
        }
    }
    memcpy(lanes, sum, sizeof(sum));
}

/* Values of one block's elements in one bucket, or their squares, the first of which is in lane `lane`. */
static inline double sum_of(const iq_f32_any_t *values, size_t count, size_t lane, bool squares)
{
    double lanes[IQ_MOMENT_LANES] = {0};
    size_t i = 0;
    for (; lane % IQ_MOMENT_LANES != 0 && i < count; i++, lane++)
        lanes[lane] += squares ? (double)values[i] * (double)values[i] : (double)values[i];
    size_t whole = (count - i) / IQ_MOMENT_LANES * IQ_MOMENT_LANES;
    add_rows(values + i, whole, squares, lanes);
    i += whole;
    for (size_t j = 0; i < count; i++, j++)
        lanes[j] += squares ? (double)values[i] * (double)values[i] : (double)values[i];
    return iq_moment_fold(lanes, IQ_MOMENT_LANES);
}

/* What a bucket has of a block or a panel. */
typedef struct moments {
    double squares, sum;
    float most;
} moments_t;

/* Of elements of one bucket in one block. */
static moments_t moments_of_block(const iq_codec_t *codec, const iq_codec_call_t *call, size_t element, const void *src,
                                  size_t offset, size_t count)
{
    float tile[IQ_MOMENT_BLOCK];
    moments_t found = {0};
    const iq_f32_any_t *values = iq_load_f32(call->datatype, src, offset, count, tile);
    found.squares = sum_of(values, count, element % IQ_MOMENT_LANES, true);
    if (codec->norm != IQ_NORM_L2) {
        found.sum = sum_of(values, count, element % IQ_MOMENT_LANES, false);
        found.most = iq_kernels()->absmax(values, count);
    }
    return found;
}

/* Of elements of one bucket in one panel, the first of which is `element`. */
static moments_t moments_of_cell(const iq_codec_t *codec, const iq_codec_call_t *call, size_t element, const void *src, size_t offset,
                                 size_t count)
{
    if (element % IQ_MOMENT_BLOCK + count <= IQ_MOMENT_BLOCK) /* zeros in the other places change nothing */
        return moments_of_block(codec, call, element, src, offset, count);
    moments_t cell = {0};
    double squares[IQ_MOMENT_PLACES] = {0}, sum[IQ_MOMENT_PLACES] = {0};
    for (size_t i = 0, n; i < count; i += n) {
        size_t at = element + i, place = at / IQ_MOMENT_BLOCK % IQ_MOMENT_PLACES;
        n = iq_min(count - i, IQ_MOMENT_BLOCK - at % IQ_MOMENT_BLOCK);
        moments_t found = moments_of_block(codec, call, at, src, offset + i, n);
        squares[place] = found.squares;
        sum[place] = found.sum;
        cell.most = found.most > cell.most ? found.most : cell.most;
    }
    cell.squares = iq_moment_fold(squares, IQ_MOMENT_PLACES);
    cell.sum = iq_moment_fold(sum, IQ_MOMENT_PLACES);
    return cell;
}

/* To a bucket's words in the room. */
static void add_to_room(const iq_codec_t *codec, const moments_t *cell, size_t stride, size_t bucket, float *room)
{
    if (codec->norm == IQ_NORM_L2) {
        iq_moment_add(room, stride, IQ_NORM_SQUARES, bucket, cell->squares);
        return;
    }
    iq_moment_add(room, stride, IQ_CLIP_SQUARES, bucket, cell->squares);
    iq_moment_add(room, stride, IQ_CLIP_SUM, bucket, cell->sum);
    room[bucket] = cell->most > room[bucket] ? cell->most : room[bucket];
}

void iq_uniform_norm_scales(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, float *scales)
{
    size_t stride = iq_uniform_shared_scales(codec, call->count), first = iq_uniform_scale_at(codec, call, span);
    for (size_t i = 0; i < span.count; i += IQ_MOMENT_PANEL) {
        iq_uniform_run_t run = {.offset = i};
        while (iq_uniform_next_run(codec, span, iq_min(i + IQ_MOMENT_PANEL, span.count), &run)) {
            moments_t cell = moments_of_cell(codec, call, span.first + run.offset, src, run.offset, run.count);
            add_to_room(codec, &cell, stride, first + run.bucket, scales);
        }
    }
}

/* ---- moments to scales ---- */

void iq_uniform_close_scales(const iq_codec_t *codec, const iq_codec_call_t *call, size_t count, float *scales)
{
    size_t buckets = iq_uniform_shared_scales(codec, count), size = codec->bucket == 0 ? count : codec->bucket;
    (void)call;
    for (size_t b = 0; b < buckets; b++) {
        if (codec->norm == IQ_NORM_L2)
            scales[b] = iq_round_squares(iq_moment_load(scales, buckets, IQ_NORM_SQUARES, b));
        else
            scales[b] = iq_clipped_scale(codec->clip, iq_moment_load(scales, buckets, IQ_CLIP_SQUARES, b),
                                         iq_moment_load(scales, buckets, IQ_CLIP_SUM, b), scales[b], iq_min(size, count - b * size));
    }
}

void iq_uniform_open_scales(const iq_codec_t *codec, const iq_codec_call_t *call, size_t count, float *scales)
{
    size_t buckets = iq_uniform_shared_scales(codec, count);
    (void)call;
    for (size_t b = 0; b < buckets && codec->norm == IQ_NORM_L2; b++)
        scales[b] = sqrtf(scales[b]);
}
