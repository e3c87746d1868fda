/* SPDX-License-Identifier: Apache-2.0 */
#include "support/low_rank_twin.h"

#include <math.h>
#include <string.h>

static void gram_schmidt(double *vectors, int count, size_t length)
{
    for (int k = 0; k < count; k++) {
        double *vector = vectors + (size_t)k * length, square = 0.0;
        for (int other = 0; other < k; other++) {
            const double *before = vectors + (size_t)other * length;
            double share = 0.0;
            for (size_t i = 0; i < length; i++)
                share += vector[i] * before[i];
            for (size_t i = 0; i < length; i++)
                vector[i] -= share * before[i];
        }
        for (size_t i = 0; i < length; i++)
            square += vector[i] * vector[i];
        for (size_t i = 0; i < length; i++)
            vector[i] /= sqrt(square);
    }
}

void low_rank_twin_call(low_rank_twin_t *twin, bool keeps)
{
    static double total[LOW_RANK_COUNT], p[LOW_RANK_VECTORS][LOW_RANK_ROWS];
    memset(total, 0, sizeof(total));
    memset(p, 0, sizeof(p));
    for (int r = 0; r < twin->nranks; r++)
        for (size_t e = 0; e < LOW_RANK_COUNT; e++)
            total[e] += twin->residuals[r][e];
    gram_schmidt(twin->q[0], twin->vectors, LOW_RANK_COLUMNS);
    for (int k = 0; k < twin->vectors; k++)
        for (size_t e = 0; e < LOW_RANK_COUNT; e++)
            p[k][e / LOW_RANK_COLUMNS] += total[e] * twin->q[k][e % LOW_RANK_COLUMNS];
    gram_schmidt(p[0], twin->vectors, LOW_RANK_ROWS);
    memset(twin->q, 0, sizeof(twin->q));
    for (int k = 0; k < twin->vectors; k++)
        for (size_t e = 0; e < LOW_RANK_COUNT; e++)
            twin->q[k][e % LOW_RANK_COLUMNS] += total[e] * p[k][e / LOW_RANK_COLUMNS];
    memset(twin->out, 0, sizeof(twin->out));
    for (int k = 0; k < twin->vectors; k++)
        for (size_t e = 0; e < LOW_RANK_COUNT; e++)
            twin->out[e] += p[k][e / LOW_RANK_COLUMNS] * twin->q[k][e % LOW_RANK_COLUMNS];
    for (int r = 0; r < twin->nranks; r++)
        for (size_t e = 0; e < LOW_RANK_COUNT; e++)
            twin->residuals[r][e] = keeps ? twin->residuals[r][e] - twin->out[e] / twin->nranks : 0.0;
}

double low_rank_twin_differs(const low_rank_twin_t *twin, isgq_red_op_t op, const float *out)
{
    double worst = 0.0, most = 0.0, divisor = op == ISGQ_AVG ? twin->nranks : 1.0;
    for (size_t e = 0; e < LOW_RANK_COUNT; e++) {
        worst = fmax(worst, fabs((double)out[e] - twin->out[e] / divisor));
        most = fmax(most, fabs(twin->out[e] / divisor));
    }
    return worst / most;
}

void low_rank_twin_first(low_rank_twin_t *twin, isgq_red_op_t op, bool keeps, const float *out)
{
    double scale = op == ISGQ_AVG ? twin->nranks : 1.0;
    static double basis[LOW_RANK_VECTORS][LOW_RANK_ROWS];
    memset(basis, 0, sizeof(basis));
    for (int k = 0; k < twin->vectors; k++)
        for (size_t e = 0; e < LOW_RANK_COUNT; e++)
            basis[k][e / LOW_RANK_COLUMNS] += scale * (double)out[e] * twin->q[k][e % LOW_RANK_COLUMNS];
    gram_schmidt(basis[0], twin->vectors, LOW_RANK_ROWS);
    memset(twin->q, 0, sizeof(twin->q));
    for (int r = 0; r < twin->nranks; r++)
        for (int k = 0; k < twin->vectors; k++)
            for (size_t e = 0; e < LOW_RANK_COUNT; e++)
                twin->q[k][e % LOW_RANK_COLUMNS] += twin->residuals[r][e] * basis[k][e / LOW_RANK_COLUMNS];
    memset(twin->out, 0, sizeof(twin->out));
    for (int k = 0; k < twin->vectors; k++)
        for (size_t e = 0; e < LOW_RANK_COUNT; e++)
            twin->out[e] += basis[k][e / LOW_RANK_COLUMNS] * twin->q[k][e % LOW_RANK_COLUMNS];
    for (int r = 0; r < twin->nranks; r++)
        for (size_t e = 0; e < LOW_RANK_COUNT; e++)
            twin->residuals[r][e] = keeps ? twin->residuals[r][e] - twin->out[e] / twin->nranks : 0.0;
}
