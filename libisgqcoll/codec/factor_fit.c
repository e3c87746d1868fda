/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Levels of isgq-mse and isgq-mvu: Lloyd-Max bins, and the centers that fit the product X' Delta best (Abdi and Fekri, AAAI 2020, Algorithm 1).
 *
 * With X^ kept, the product is linear in Delta's centers v: sum of v_i A_i with A_i = X^' 1[Delta is in bin i]. The best v solves M v = e, M_ij =
 * <A_i, A_j>, e_i = <A_i, X' Delta>, where products of size m x n never appear: with K = X^ X^' and C = X^ X' (batch x batch),
 *
 *   M_ij = sum over rows r, s of K_rs * #{columns where Delta_r is in bin i and Delta_s in bin j}
 *   e_i  = sum over rows r, s of C_rs * sum of Delta_s over the columns where Delta_r is in bin i
 *
 * The same holds with the roles of X and Delta exchanged. isgq-mvu keeps f'v = d besides, f_i the sum of A_i's elements, d that of X' Delta.
 */
#include "base/util.h"
#include "codec/factor_lloyd.h"
#include "codec/factor_whole.h"

#include <math.h>
#include <string.h>

/* Neighbours are counted apart, so that they need not wait for each other. */
enum { LANES = IQ_FACTOR_LANES, SYMBOLS = IQ_SYMBOLS_MOST, WAYS = 4 };

/* ---- bins ---- */

/* Levels of one sign: `count` positive ones. Returns the number of the level nearest to `size`, from 0. */
static unsigned nearest_level(const float *levels, unsigned count, float size)
{
    unsigned level = 0;
    while (level + 1 < count && size > (levels[level] + levels[level + 1]) / 2)
        level++;
    return level;
}

/* Negative levels come first, from the largest. */
static uint16_t symbol_of(const float *levels, unsigned positive, bool folded, float y)
{
    float size = fabsf(y);
    if (!(size > IQ_LLOYD_ZERO))
        return 0;
    unsigned level = nearest_level(levels, positive, size);
    return (uint16_t)(1 + (folded ? level : y < 0 ? positive - 1 - level : positive + level));
}

void iq_fit_assign(const iq_factor_call_t *call, double scale, bool folded, iq_fit_factor_t *factor)
{
    unsigned positive = folded ? factor->levels : factor->levels / 2;
    const float *levels = iq_lloyd_levels(positive);
    size_t count = call->batch * factor->columns;
    factor->centers[0] = 0;
    for (unsigned level = 0; level < positive; level++) {
        factor->centers[1 + (folded ? level : positive + level)] = scale * (double)levels[level];
        if (!folded)
            factor->centers[positive - level] = -scale * (double)levels[level];
    }
    for (size_t done = 0; done < count; done += IQ_FACTOR_CHUNK) {
        float values[IQ_FACTOR_CHUNK];
        size_t part = iq_min(count - done, IQ_FACTOR_CHUNK);
        iq_factor_load(call->datatype, factor->values, done, part, values);
        for (size_t i = 0; i < part; i++)
            factor->symbols[done + i] = symbol_of(levels, positive, folded, scale > 0 ? (float)((double)values[i] / scale) : 0);
    }
}

/* ---- sums over a pair of rows ---- */

/* K_rs and C_rs. */
static void dot_rows(const iq_factor_call_t *call, const iq_fit_factor_t *factor, size_t r, size_t s, double *fitted, double *exact)
{
    const uint16_t *of_r = factor->symbols + r * factor->columns, *of_s = factor->symbols + s * factor->columns;
    double k[LANES] = {0}, c[LANES] = {0};
    for (size_t done = 0; done < factor->columns; done += IQ_FACTOR_CHUNK) {
        float values[IQ_FACTOR_CHUNK];
        size_t part = iq_min(factor->columns - done, IQ_FACTOR_CHUNK);
        iq_factor_load(call->datatype, factor->values, s * factor->columns + done, part, values);
        for (size_t i = 0; i < part; i++) {
            double center = factor->centers[of_r[done + i]];
            k[i % LANES] += center * factor->centers[of_s[done + i]];
            c[i % LANES] += center * (double)values[i];
        }
    }
    for (size_t half = LANES / 2; half > 0; half /= 2)
        for (size_t lane = 0; lane < half; lane++) {
            k[lane] += k[lane + half];
            c[lane] += c[lane + half];
        }
    *fitted = k[0];
    *exact = c[0];
}

/* What M and e are made of, and f and d. */
typedef struct normal_equations {
    double m[SYMBOLS][SYMBOLS], e[SYMBOLS], f[SYMBOLS], d;
} normal_equations_t;

static void add_pair(const iq_factor_call_t *call, const iq_fit_factor_t *factor, size_t r, size_t s, double fitted, double exact,
                     normal_equations_t *equations)
{
    const uint16_t *of_r = factor->symbols + r * factor->columns, *of_s = factor->symbols + s * factor->columns;
    uint32_t together[WAYS][SYMBOLS][SYMBOLS] = {{{0}}};
    double sums[WAYS][SYMBOLS] = {{0}};
    for (size_t done = 0; done < factor->columns; done += IQ_FACTOR_CHUNK) {
        float values[IQ_FACTOR_CHUNK];
        size_t part = iq_min(factor->columns - done, IQ_FACTOR_CHUNK);
        iq_factor_load(call->datatype, factor->values, s * factor->columns + done, part, values);
        for (size_t i = 0; i < part; i++) {
            together[i % WAYS][of_r[done + i]][of_s[done + i]]++;
            sums[i % WAYS][of_r[done + i]] += (double)values[i];
        }
    }
    for (int i = 1; i < SYMBOLS; i++) {
        for (int j = 1; j < SYMBOLS; j++)
            equations->m[i][j] += fitted * (together[0][i][j] + together[1][i][j] + together[2][i][j] + together[3][i][j]);
        equations->e[i] += exact * ((sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]));
    }
}

/* Sums of a row's centers and of its values. */
static void sum_row(const iq_factor_call_t *call, const iq_fit_factor_t *factor, size_t r, double *fitted, double *exact)
{
    *fitted = *exact = 0;
    for (size_t done = 0; done < factor->columns; done += IQ_FACTOR_CHUNK) {
        float values[IQ_FACTOR_CHUNK];
        size_t part = iq_min(factor->columns - done, IQ_FACTOR_CHUNK);
        iq_factor_load(call->datatype, factor->values, r * factor->columns + done, part, values);
        for (size_t i = 0; i < part; i++) {
            *fitted += factor->centers[factor->symbols[r * factor->columns + done + i]];
            *exact += (double)values[i];
        }
    }
}

static void add_condition(const iq_factor_call_t *call, const iq_fit_factor_t *kept, const iq_fit_factor_t *fitted, size_t r,
                          normal_equations_t *equations)
{
    double kept_fitted, kept_exact, own_fitted, own_exact;
    sum_row(call, kept, r, &kept_fitted, &kept_exact);
    sum_row(call, fitted, r, &own_fitted, &own_exact);
    equations->d += kept_exact * own_exact;
    for (size_t i = 0; i < fitted->columns; i++)
        equations->f[fitted->symbols[r * fitted->columns + i]] += kept_fitted;
}

/* ---- solving ---- */

/* x with M x = y, M symmetric and not negative; where a pivot is too small, what is left of M there does not count and x is 0. */
static void solve(double m[SYMBOLS][SYMBOLS], const double *y, const bool *free_bin, double *x)
{
    double a[SYMBOLS][SYMBOLS], most = 0;
    bool good[SYMBOLS] = {false};
    memcpy(a, m, sizeof(a));
    memcpy(x, y, SYMBOLS * sizeof(*x));
    for (int i = 1; i < SYMBOLS; i++)
        most = free_bin[i] && a[i][i] > most ? a[i][i] : most;
    for (int i = 1; i < SYMBOLS; i++) {
        good[i] = free_bin[i] && a[i][i] > 1e-9 * most;
        for (int j = i + 1; j < SYMBOLS && good[i]; j++) {
            double factor = a[j][i] / a[i][i];
            for (int k = i + 1; k < SYMBOLS; k++)
                a[j][k] -= factor * a[i][k];
            x[j] -= factor * x[i];
        }
    }
    for (int i = SYMBOLS - 1; i > 0; i--) {
        for (int j = i + 1; j < SYMBOLS; j++)
            x[i] -= a[i][j] * x[j];
        x[i] = good[i] ? x[i] / a[i][i] : 0;
    }
    x[0] = 0;
}

static double dot(const double *a, const double *b)
{
    double sum = 0;
    for (int i = 1; i < SYMBOLS; i++)
        sum += a[i] * b[i];
    return sum;
}

/* New centers of `fitted`. Bins without weight in the product stay as they are. */
static void refit(const iq_factor_call_t *call, bool unbiased_sum, const iq_fit_factor_t *kept, iq_fit_factor_t *fitted)
{
    normal_equations_t equations = {0};
    double change[SYMBOLS], along[SYMBOLS], all = 0;
    bool free_bin[SYMBOLS] = {false};
    for (size_t r = 0; r < call->batch; r++) {
        for (size_t s = 0; s < call->batch; s++) {
            double k, c;
            dot_rows(call, kept, r, s, &k, &c);
            if (k != 0 || c != 0)
                add_pair(call, fitted, r, s, k, c, &equations);
        }
        if (unbiased_sum)
            add_condition(call, kept, fitted, r, &equations);
    }
    for (int i = 1; i < SYMBOLS; i++)
        for (int j = 1; j < SYMBOLS; j++)
            all += equations.m[i][j];
    for (int i = 1; i < SYMBOLS; i++) {
        free_bin[i] = equations.m[i][i] > 1e-12 * fabs(all);
        equations.e[i] -= dot(equations.m[i], fitted->centers); /* what a change has to make good */
    }
    for (int i = 1; i < SYMBOLS; i++)
        for (int j = 1; j < SYMBOLS; j++)
            if (!free_bin[i] || !free_bin[j])
                equations.m[i][j] = 0;
    solve(equations.m, equations.e, free_bin, change);
    if (unbiased_sum) {
        solve(equations.m, equations.f, free_bin, along);
        double slope = dot(equations.f, along), missing = equations.d - dot(equations.f, fitted->centers) - dot(equations.f, change);
        for (int i = 1; i < SYMBOLS && slope > 0; i++)
            change[i] += missing / slope * along[i];
    }
    for (int i = 1; i < SYMBOLS; i++)
        if (isfinite(change[i]))
            fitted->centers[i] += change[i];
}

void iq_fit_centers(const iq_factor_call_t *call, bool unbiased_sum, iq_fit_factor_t *x, iq_fit_factor_t *delta)
{
    refit(call, unbiased_sum, x, delta);
    refit(call, unbiased_sum, delta, x);
}
