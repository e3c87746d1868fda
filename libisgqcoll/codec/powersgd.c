/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The arithmetic of PowerSGD: see powersgd.h. Sums have LANES parts that are added up in order at the end, so they have the same bits
 * whatever the width of vectors.
 */
#include "codec/powersgd.h"

#include "base/util.h"
#include "kernels/philox.h"

#include <math.h>
#include <string.h>

#define LANES 16

/* What is left of a vector that depends on the others is rounding: so much of its length at most. */
#define DEPENDENT 1e-6

bool iq_powersgd_pays(size_t rows, size_t columns, unsigned rank)
{
    size_t numbers;
    return iq_checked_mul(rank, rows + columns, &numbers) && columns != 0 && numbers / columns < rows;
}

/* ---- vectors ---- */

void iq_powersgd_start(uint64_t key, uint64_t call, unsigned number, size_t length, float *vector)
{
    for (size_t j = 0; j < length; j++)
        if (vector[j] != 0.0f)
            return;
    for (size_t j = 0; j < length; j++) {
        iq_philox_block_t block = iq_draw(key, call, IQ_STREAM_POWER, number, j);
        vector[j] = (float)(int32_t)block.word[j % 4] * 0x1p-31f;
    }
}

static double dot(const float *a, const float *b, size_t length)
{
    double lanes[LANES] = {0}, sum = 0.0;
    size_t whole = length / LANES * LANES;
    for (size_t i = 0; i < whole; i += LANES)
        for (size_t lane = 0; lane < LANES; lane++)
            lanes[lane] += (double)a[i + lane] * (double)b[i + lane];
    for (size_t i = whole; i < length; i++)
        lanes[i - whole] += (double)a[i] * (double)b[i];
    for (size_t lane = 0; lane < LANES; lane++)
        sum += lanes[lane];
    return sum;
}

static void subtract(float *vector, const float *other, size_t length, double share)
{
    for (size_t i = 0; i < length; i++)
        vector[i] = (float)((double)vector[i] - share * (double)other[i]);
}

/* Returns the squared length that it had. */
static double scale_to_unit(float *vector, size_t length, double least)
{
    double square = dot(vector, vector, length);
    double by = square <= least ? 0.0 : 1.0 / sqrt(square); /* also where all is zero */
    for (size_t i = 0; i < length; i++)
        vector[i] = (float)((double)vector[i] * by);
    return square;
}

/* The second pass takes away what rounding left of the others: it may be much of a vector that was nearly dependent. */
void iq_powersgd_orthonormal(float *vectors, size_t length, unsigned number)
{
    float *vector = vectors + number * length;
    double least = 0.0;
    (void)scale_to_unit(vector, length, least);
    for (int pass = 0; pass < 2; pass++) {
        for (unsigned other = 0; other < number; other++)
            subtract(vector, vectors + other * length, length, dot(vector, vectors + other * length, length));
        (void)scale_to_unit(vector, length, DEPENDENT * DEPENDENT);
    }
}

/* ---- matrices ---- */

/* A piece of one row: `count` elements from `column` on. */
typedef struct segment {
    size_t row, column, count;
} segment_t;

/* Where element `first` is, as far as the row and the span go. */
static segment_t segment_at(size_t columns, size_t first, size_t end)
{
    size_t column = first % columns;
    return (segment_t){first / columns, column, iq_min(columns - column, end - first)};
}

/* Four vectors at once: each value is loaded once for them. */
static void dot_four(const iq_f32_any_t *v, const float *q, size_t stride, size_t count, float sums[4])
{
    float lanes[4][LANES] = {{0}};
    size_t whole = count / LANES * LANES;
    for (size_t i = 0; i < whole; i += LANES)
        for (size_t k = 0; k < 4; k++)
            for (size_t lane = 0; lane < LANES; lane++)
                lanes[k][lane] += v[i + lane] * q[k * stride + i + lane];
    for (size_t k = 0; k < 4; k++) {
        for (size_t i = whole; i < count; i++)
            lanes[k][i - whole] += v[i] * q[k * stride + i];
        sums[k] = 0.0f;
        for (size_t lane = 0; lane < LANES; lane++)
            sums[k] += lanes[k][lane];
    }
}

static float dot_one(const iq_f32_any_t *v, const float *q, size_t count)
{
    float lanes[LANES] = {0}, sum = 0.0f;
    size_t whole = count / LANES * LANES;
    for (size_t i = 0; i < whole; i += LANES)
        for (size_t lane = 0; lane < LANES; lane++)
            lanes[lane] += v[i + lane] * q[i + lane];
    for (size_t i = whole; i < count; i++)
        lanes[i - whole] += v[i] * q[i];
    for (size_t lane = 0; lane < LANES; lane++)
        sum += lanes[lane];
    return sum;
}

void iq_powersgd_left(const iq_f32_any_t *v, size_t rows, size_t columns, unsigned rank, const float *q, size_t first, size_t count,
                      float *p)
{
    segment_t at;
    for (size_t e = first; e < first + count; e += at.count, v += at.count) {
        size_t k = 0;
        at = segment_at(columns, e, first + count);
        for (; k + 4 <= rank; k += 4) {
            float sums[4];
            dot_four(v, q + k * columns + at.column, columns, at.count, sums);
            for (size_t i = 0; i < 4; i++)
                p[(k + i) * rows + at.row] += sums[i];
        }
        for (; k < rank; k++)
            p[k * rows + at.row] += dot_one(v, q + k * columns + at.column, at.count);
    }
}

static void add_scaled(float *restrict to, const iq_f32_any_t *restrict values, float factor, size_t count)
{
    for (size_t i = 0; i < count; i++)
        to[i] += factor * values[i];
}

void iq_powersgd_right(const iq_f32_any_t *v, size_t rows, size_t columns, unsigned rank, const float *p, size_t first, size_t count,
                       float *q)
{
    segment_t at;
    for (size_t e = first; e < first + count; e += at.count, v += at.count) {
        at = segment_at(columns, e, first + count);
        for (size_t k = 0; k < rank; k++)
            add_scaled(q + k * columns + at.column, v, p[k * rows + at.row], at.count);
    }
}

void iq_powersgd_product(const float *p, const float *q, size_t rows, size_t columns, unsigned rank, size_t first, size_t count,
                         float *values)
{
    segment_t at;
    for (size_t e = first; e < first + count; e += at.count, values += at.count) {
        at = segment_at(columns, e, first + count);
        memset(values, 0, at.count * sizeof(float));
        for (size_t k = 0; k < rank; k++)
            add_scaled(values, q + k * columns + at.column, p[k * rows + at.row], at.count);
    }
}
