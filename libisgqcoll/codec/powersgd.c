/* SPDX-License-Identifier: Apache-2.0 */
/* The arithmetic of PowerSGD: see powersgd.h. */
#include "codec/powersgd.h"

#include "kernels/gemm.h"
#include "kernels/philox.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

/* What is left of a column that depends on the others is rounding: so much of its length at most. */
#define DEPENDENT 1e-6

static bool column_is_zero(const float *q, size_t columns, unsigned rank, unsigned column)
{
    for (size_t j = 0; j < columns; j++)
        if (q[j * rank + column] != 0.0f)
            return false;
    return true;
}

void iq_powersgd_start(uint64_t key, uint64_t call, size_t columns, unsigned rank, float *q)
{
    for (unsigned column = 0; column < rank; column++) {
        if (!column_is_zero(q, columns, rank, column))
            continue;
        for (size_t j = 0; j < columns; j++) {
            iq_philox_block_t block = iq_draw(key, call, IQ_STREAM_POWER, column, j);
            q[j * rank + column] = (float)(int32_t)block.word[j % 4] * 0x1p-31f;
        }
    }
}

void iq_powersgd_left(const float *v, size_t columns, unsigned rank, const float *q, size_t first, size_t count, float *p)
{
    for (size_t i = first; i < first + count; i++) {
        float sums[IQ_POWERSGD_RANK_MOST] = {0};
        const float *row = v + i * columns;
        for (size_t j = 0; j < columns; j++)
            for (unsigned k = 0; k < rank; k++)
                sums[k] += row[j] * q[j * rank + k];
        memcpy(p + i * rank, sums, rank * sizeof(float));
    }
}

static double dot(const float *p, size_t rows, unsigned rank, unsigned a, unsigned b)
{
    double sum = 0.0;
    for (size_t i = 0; i < rows; i++)
        sum += (double)p[i * rank + a] * (double)p[i * rank + b];
    return sum;
}

static void scale_column(float *p, size_t rows, unsigned rank, unsigned column, double by)
{
    for (size_t i = 0; i < rows; i++)
        p[i * rank + column] = (float)((double)p[i * rank + column] * by);
}

void iq_powersgd_orthonormal(float *p, size_t rows, unsigned rank)
{
    for (unsigned column = 0; column < rank; column++) {
        double before = dot(p, rows, rank, column, column);
        for (unsigned other = 0; other < column; other++) {
            double share = dot(p, rows, rank, column, other);
            for (size_t i = 0; i < rows; i++)
                p[i * rank + column] = (float)((double)p[i * rank + column] - share * (double)p[i * rank + other]);
        }
        double left = dot(p, rows, rank, column, column);
        bool dependent = left <= before * DEPENDENT * DEPENDENT; /* also where all is zero */
        scale_column(p, rows, rank, column, dependent ? 0.0 : 1.0 / sqrt(left));
    }
}

void iq_powersgd_right(const float *v, size_t rows, size_t columns, unsigned rank, const float *p, float *q)
{
    iq_gemm_tn_f32(columns, rank, rows, v, columns, p, rank, q, rank, false);
}

void iq_powersgd_product(const float *p, const float *q, size_t columns, unsigned rank, size_t first, size_t count, float *values)
{
    for (size_t e = 0; e < count; e++) {
        const float *left = p + (first + e) / columns * rank, *right = q + (first + e) % columns * rank;
        float sum = 0.0f;
        for (unsigned k = 0; k < rank; k++)
            sum += left[k] * right[k];
        values[e] = sum;
    }
}
