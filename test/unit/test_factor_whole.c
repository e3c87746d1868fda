/* SPDX-License-Identifier: Apache-2.0 */
/* isgq-mse, isgq-mvu, isgq-dithered: the published methods against their definitions, and dither by itself. */
#include "support/check_main.h"
#include "support/factor_ranks.h"

#include "codec/factor_lloyd.h"
#include "codec/factor_whole.h"
#include "kernels/factor_dither.h"

/* ---- dither ---- */

/* For every z on the grid the 2^t dithers leave errors of mean 0 and variance (1 - 4^-t) / 12, and stay within the range. */
START_TEST(test_dither)
{
    for (int32_t bits = 0; bits <= IQ_DITHER_BITS_MOST; bits++) {
        int32_t fine = 1 << bits;
        for (int32_t z = -7 * fine; z <= 7 * fine; z++) {
            int32_t sum = 0, squares = 0;
            for (int32_t k = 0; k < fine; k++) {
                int32_t q = iq_dither_round((float)z / (float)fine, 12345, k, bits, -7, 7);
                int32_t error = iq_dither_value(q, k, bits) - 2 * z; /* in units of 2^-(t+1) */
                ck_assert_int_le(abs(q), 7);
                ck_assert_int_le(abs(error), fine);
                sum += error;
                squares += error * error;
            }
            ck_assert_int_eq(sum, 0);
            ck_assert_int_eq(3 * squares, fine * (fine * fine - 1));
        }
    }
}
END_TEST

/* Sums stay below 2^53 with as many rows as there may be. */
START_TEST(test_dither_limits)
{
    for (uint64_t rows = 1; rows <= (uint64_t)1 << 21; rows *= 2) {
        int32_t bits = iq_dither_bits(rows);
        double code = 2 * (double)(1 << bits);
        ck_assert_int_ge(bits, 0);
        ck_assert_double_lt((double)rows * 15 * 2048 * (255.5 * code) * (127.5 * code), 0x1p53);
        ck_assert_double_lt(255.5 * code, 32768);
    }
    ck_assert_int_eq(iq_dither_bits(8192), 4);
    ck_assert_int_eq(iq_dither_bits(8193), 3);
    ck_assert_int_lt(iq_dither_bits(((uint64_t)1 << 21) + 1), 0);
    iq_factor_spec_t spec = {.method = IQ_FACTOR_MSE, .levels = 4};
    iq_factor_call_t call = shape(4, 3, 3, false);
    for (call.max_batch = 1; call.max_batch <= (size_t)1 << 20; call.max_batch *= 2) {
        double most = iq_factor_whole_most(&spec, &call, true);
        ck_assert_double_ge(most, 255);
        ck_assert_double_lt(4 * (double)call.max_batch * 15 * 2048 * most * most, 0x1p53);
    }
    call.max_batch = ((size_t)1 << 20) + 1;
    ck_assert_uint_eq(iq_factor_blob_bytes(&spec, &call), 0);
}
END_TEST

/* ---- levels ---- */

static double density(double t) { return exp(-t * t / 2) / sqrt(2 * 3.14159265358979323846); }
static double mass(double from, double to) { return (erfc(from / sqrt(2)) - erfc(to / sqrt(2))) / 2; }

/* Lloyd's iteration from somewhere else ends at the table. */
START_TEST(test_lloyd)
{
    for (unsigned count = 1; count <= 8; count *= 2) {
        double levels[8], bounds[9];
        for (unsigned i = 0; i < count; i++)
            levels[i] = 0.1 + 3.0 * i / count;
        for (int round = 0; round < 20000; round++) {
            bounds[0] = (double)IQ_LLOYD_ZERO;
            bounds[count] = 40;
            for (unsigned i = 1; i < count; i++)
                bounds[i] = (levels[i - 1] + levels[i]) / 2;
            for (unsigned i = 0; i < count; i++)
                levels[i] = (density(bounds[i]) - density(bounds[i + 1])) / mass(bounds[i], bounds[i + 1]);
        }
        for (unsigned i = 0; i < count; i++)
            ck_assert_double_eq_tol((double)iq_lloyd_levels(count)[i], levels[i], 3e-7);
    }
    ck_assert_ptr_null(iq_lloyd_levels(3));
}
END_TEST

/* Symbols and centers of a few values, by hand: RMS 1 as given, four levels. */
START_TEST(test_bins)
{
    static const float values[] = {0, 1e-7f, -1e-7f, 0.3f, -0.3f, 0.98f, -0.99f, 5};
    static const uint16_t with_signs[] = {0, 0, 0, 3, 2, 3, 1, 4}, folded[] = {0, 0, 0, 1, 1, 2, 2, 4};
    uint16_t symbols[8];
    iq_factor_call_t call = {.datatype = ISGQ_FLOAT32, .batch = 2};
    iq_fit_factor_t factor = {.values = values, .symbols = symbols, .columns = 4, .levels = 4};
    iq_fit_assign(&call, 1, false, &factor);
    ck_assert_mem_eq(symbols, with_signs, sizeof(symbols));
    ck_assert_double_eq(factor.centers[1], -(double)iq_lloyd_levels(2)[1]);
    ck_assert_double_eq(factor.centers[4], (double)iq_lloyd_levels(2)[1]);
    iq_fit_assign(&call, 1, true, &factor);
    ck_assert_mem_eq(symbols, folded, sizeof(symbols));
    ck_assert_double_eq(factor.centers[1], (double)iq_lloyd_levels(4)[0]);
}
END_TEST

enum { B = 5, M = 7, N = 6 };

static void products(const iq_fit_factor_t *x, const iq_fit_factor_t *delta, double *fitted, double *exact)
{
    const float *xs = x->values, *deltas = delta->values;
    for (size_t e = 0; e < M * N; e++) {
        size_t i = e / N, j = e % N;
        fitted[e] = exact[e] = 0;
        for (size_t r = 0; r < B; r++) {
            fitted[e] += x->centers[x->symbols[r * M + i]] * delta->centers[delta->symbols[r * N + j]];
            exact[e] += (double)xs[r * M + i] * (double)deltas[r * N + j];
        }
    }
}

static double error_of(const iq_fit_factor_t *x, const iq_fit_factor_t *delta)
{
    double fitted[M * N], exact[M * N], error = 0;
    products(x, delta, fitted, exact);
    for (size_t e = 0; e < M * N; e++)
        error += (fitted[e] - exact[e]) * (fitted[e] - exact[e]);
    return error;
}

static double missing_sum(const iq_fit_factor_t *x, const iq_fit_factor_t *delta)
{
    double fitted[M * N], exact[M * N], missing = 0, all = 0;
    products(x, delta, fitted, exact);
    for (size_t e = 0; e < M * N; e++) {
        missing += fitted[e] - exact[e];
        all += fabs(exact[e]);
    }
    return missing / all;
}

/* After the round the centers of X are the best for those of Delta: no small step of any lowers the error, by the products themselves, which
 * the fit never forms. With the condition, the sum is kept. */
START_TEST(test_fit)
{
    for (uint64_t seed = 0; seed < 20; seed++)
        for (unsigned levels = 2; levels <= 8; levels *= 2)
            for (int condition = 0; condition < 2; condition++) {
                float x[B * M], delta[B * N];
                uint16_t of_x[B * M], of_delta[B * N];
                iq_factor_call_t call = {.datatype = ISGQ_FLOAT32, .batch = B};
                iq_fit_factor_t fx = {.values = x, .symbols = of_x, .columns = M, .levels = levels};
                iq_fit_factor_t fd = {.values = delta, .symbols = of_delta, .columns = N, .levels = levels};
                for (size_t i = 0; i < B * M; i++)
                    x[i] = (float)(normal(seed, i) < 0 ? 0 : fabs(normal(seed, 100 + i)));
                for (size_t i = 0; i < B * N; i++)
                    delta[i] = (float)normal(seed, 200 + i);
                iq_fit_assign(&call, 1, true, &fx);
                iq_fit_assign(&call, 1, false, &fd);
                double before = error_of(&fx, &fd);
                iq_fit_centers(&call, condition != 0, &fx, &fd);
                double best = error_of(&fx, &fd);
                if (condition) {
                    ck_assert_double_eq_tol(missing_sum(&fx, &fd), 0, 1e-9);
                    continue;
                }
                ck_assert_double_le(best, before * (1 + 1e-12));
                for (unsigned i = 1; i <= levels; i++)
                    for (int sign = -1; sign <= 1; sign += 2) {
                        iq_fit_factor_t moved = fx;
                        moved.centers[i] += sign * 1e-3;
                        ck_assert_double_ge(error_of(&moved, &fd), best * (1 - 1e-9));
                    }
            }
}
END_TEST

/* ---- blobs ---- */

/* Decoded values are the centers, to a small part of the largest; all of X and Delta is there. */
START_TEST(test_centers_travel)
{
    static const size_t batch[] = {9, 4};
    iq_factor_spec_t spec = {.method = IQ_FACTOR_MSE, .levels = 8};
    ranks_t *ranks = ranks_create(spec, shape(2, 30, 20, true), batch);
    fill_normal(ranks, 3, true, 0.5);
    ck_assert_uint_eq(encode_all(ranks, 1), 2 * (8 + 2 + 32) + 108 + 72 + 48 + 32); /* 9 symbols: five in two bytes */
    decode_all(ranks, false);
    ck_assert_uint_eq(ranks->rows.count, 13);
    double unit_b = ldexp(1, ilogb((double)ranks->peaks[0]) - 3 - 10), unit_c = ldexp(1, ilogb((double)ranks->peaks[1]) - 3 - 10);
    for (int r = 0; r < 2; r++) {
        iq_factor_call_t call = call_of(ranks, r);
        float own[2];
        iq_factor_prepare(&ranks->spec, &call, ranks->x[r], ranks->delta[r], ranks->state, own);
        const iq_factor_whole_t *whole = iq_factor_state(&spec, &call, ranks->state).whole;
        double most = 0;
        for (int i = 1; i <= 8; i++)
            most = fmax(most, fabs(whole->delta.centers[i]));
        for (size_t e = 0; e < batch[r] * 20; e++) {
            size_t row = (r == 0 ? 0 : 9) + e / 20;
            double got = ranks->rows.p[row * 20 + e % 20] * (double)ranks->rows.weight_b[row] * unit_b;
            ck_assert_double_eq_tol(got, whole->delta.centers[whole->delta.symbols[e]], most * 1.2 * 0x1p-13);
        }
        ck_assert_double_eq((double)ranks->rows.weight_c[r == 0 ? 0 : 9] * unit_c, whole->c);
    }
    ranks_destroy(ranks);
}
END_TEST

/* A rank far lighter than another is there at the right rate. */
START_TEST(test_light_ranks)
{
    static const size_t batch[] = {2, 2};
    static const double light[] = {1e-3, 1e-5, 3e-6};
    for (size_t k = 0; k < IQ_ARRAY_SIZE(light); k++) {
        iq_factor_spec_t spec = {.method = IQ_FACTOR_DITHERED, .width_x = 6, .width_delta = 6};
        ranks_t *ranks = ranks_create(spec, shape(2, 4, 3, true), batch);
        double sums[3] = {0, 0, 0}, squares = 0, exact = 0;
        fill_normal(ranks, 9, false, 0);
        memset(ranks->delta[0], 0, 3 * sizeof(float)); /* the heavy rank has nothing in column 0 */
        ((float *)ranks->delta[0])[3] = 0;
        ((float *)ranks->delta[0])[1] = 1;
        for (size_t i = 0; i < 6; i++)
            ((float *)ranks->delta[1])[i] = (float)(light[k] * normal(5, i));
        for (size_t r = 0; r < 2; r++)
            exact += (double)((const float *)ranks->delta[1])[3 * r];
        for (uint64_t draw = 1; draw <= 8000; draw++) {
            float grad[12], bias[3];
            encode_all(ranks, draw);
            decode_all(ranks, false);
            product_all(ranks, false, false, grad, bias);
            double error = ((double)bias[0] - exact) / light[k];
            sums[0] += error / 8000;
            squares += error * error / 8000;
        }
        ck_assert_double_lt(fabs(sums[0]) / sqrt(squares / 8000), 5);
        ranks_destroy(ranks);
    }
}
END_TEST

/* Unbiased for every element, zeros stay zero, and the variance is that of the published formula with steps of max / L. */
START_TEST(test_dithered)
{
    static const size_t batch[] = {4, 3};
    for (unsigned width = 3; width <= 5; width++) {
        iq_factor_spec_t spec = {.method = IQ_FACTOR_DITHERED, .width_x = width, .width_delta = width, .coded = width == 4};
        ranks_t *ranks = ranks_create(spec, shape(2, 6, 5, false), batch);
        double exact[30], unused[5], mean[30] = {0}, square[30] = {0}, total = 0, low = 0;
        fill_normal(ranks, 40 + width, true, 0.5);
        for (size_t r = 0; r < 2; r++)
            for (size_t row = 0; row < batch[r]; row++)
                ((float *)ranks->x[r])[row * 6] = 0;
        exact_sums(ranks, exact, unused);
        for (uint64_t draw = 1; draw <= 4000; draw++) {
            float grad[30];
            encode_all(ranks, draw);
            decode_all(ranks, false);
            product_all(ranks, false, false, grad, NULL);
            for (int e = 0; e < 30; e++) {
                double error = (double)grad[e] - exact[e];
                mean[e] += error / 4000;
                square[e] += error * error / 4000;
                total += error * error / 4000;
            }
            for (int e = 0; e < 5; e++)
                require(grad[e] == 0, "a column of zeros became something");
        }
        for (int e = 5; e < 30; e++) /* not less than: where a column of X happens to be zero there is no error at all */
            ck_assert_double_le(fabs(mean[e]), 5 * sqrt(square[e] / 4000));
        for (size_t r = 0; r < 2; r++) {
            const float *x = ranks->x[r], *delta = ranks->delta[r];
            double most_x = 0, most_delta = 0, levels = (1 << (width - 1)) - 1;
            for (size_t i = 0; i < batch[r] * 6; i++)
                most_x = fmax(most_x, fabs((double)x[i]));
            for (size_t i = 0; i < batch[r] * 5; i++)
                most_delta = fmax(most_delta, fabs((double)delta[i]));
            for (size_t row = 0; row < batch[r]; row++) {
                double square_x = 0, square_delta = 0, v = 0, w = 0;
                for (size_t i = row * 6; i < row * 6 + 6; i++) {
                    square_x += (double)x[i] * (double)x[i];
                    v += x[i] != 0 ? most_x * most_x / (levels * levels * 12) : 0;
                }
                for (size_t i = row * 5; i < row * 5 + 5; i++) {
                    square_delta += (double)delta[i] * (double)delta[i];
                    w += most_delta * most_delta / (levels * levels * 12);
                }
                low += (square_x + v) * (square_delta + w) - square_x * square_delta;
            }
        }
        ck_assert_msg(total > 0.95 * low && total < 1.3 * low, "width %u: %g, not %g", width, total, low);
        ranks_destroy(ranks);
    }
}
END_TEST

/* mvu keeps the grand sum of each rank's product, but for the rounding of centers. */
START_TEST(test_grand_sum)
{
    static const size_t batch[] = {12, 7};
    for (unsigned levels = 2; levels <= 8; levels *= 2) {
        iq_factor_spec_t spec = {.method = IQ_FACTOR_MVU, .levels = levels, .coded = levels == 4};
        ranks_t *ranks = ranks_create(spec, shape(2, 20, 30, false), batch);
        double exact[600], unused[30], sum = 0, want = 0, all = 0;
        float grad[600];
        fill_normal(ranks, 60, true, 1);
        exact_sums(ranks, exact, unused);
        encode_all(ranks, 1);
        decode_all(ranks, false);
        product_all(ranks, false, false, grad, NULL);
        for (int e = 0; e < 600; e++) {
            sum += (double)grad[e];
            want += exact[e];
            all += fabs(exact[e]);
        }
        ck_assert_double_eq_tol(sum, want, 2e-3 * all);
        ranks_destroy(ranks);
    }
}
END_TEST

/* One NaN, nothing but zeros, no rows: as with all factored calls. */
START_TEST(test_edges)
{
    static const size_t batch[] = {2, 0, 3};
    static const iq_factor_method_t methods[] = {IQ_FACTOR_MSE, IQ_FACTOR_MVU, IQ_FACTOR_DITHERED};
    for (size_t k = 0; k < 6; k++) {
        iq_factor_spec_t spec = {.method = methods[k / 2], .coded = k % 2 == 0};
        if (spec.method == IQ_FACTOR_DITHERED)
            spec.width_x = spec.width_delta = 4;
        else
            spec.levels = 4;
        ranks_t *ranks = ranks_create(spec, shape(3, 5, 4, true), batch);
        float grad[20], bias[4];
        encode_all(ranks, 1);
        decode_all(ranks, false);
        product_all(ranks, false, false, grad, bias);
        for (int e = 0; e < 20; e++)
            ck_assert(iq_float_bits(grad[e]) == 0);
        fill_normal(ranks, 3, false, 0);
        ((float *)ranks->delta[2])[1] = NAN;
        ck_assert_uint_eq(encode_all(ranks, 2), 24);
        decode_all(ranks, false);
        product_all(ranks, true, false, grad, bias);
        for (int e = 0; e < 20; e++)
            ck_assert(isnan(grad[e]));
        for (int e = 0; e < 4; e++)
            ck_assert(isnan(bias[e]));
        ranks_destroy(ranks);
    }
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("factor_whole");
    TCase *dither = tcase_create("dither"), *fit = tcase_create("fit"), *blobs = tcase_create("blobs");
    TCase *all[] = {dither, fit, blobs};
    tcase_add_test(dither, test_dither);
    tcase_add_test(dither, test_dither_limits);
    tcase_add_test(dither, test_dithered);
    tcase_add_test(dither, test_light_ranks);
    tcase_add_test(fit, test_lloyd);
    tcase_add_test(fit, test_bins);
    tcase_add_test(fit, test_fit);
    tcase_add_test(blobs, test_centers_travel);
    tcase_add_test(blobs, test_grand_sum);
    tcase_add_test(blobs, test_edges);
    for (size_t i = 0; i < IQ_ARRAY_SIZE(all); i++) {
        tcase_set_timeout(all[i], 120);
        suite_add_tcase(suite, all[i]);
    }
    return suite;
}
