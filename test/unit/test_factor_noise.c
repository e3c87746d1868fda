/* SPDX-License-Identifier: Apache-2.0 */
/* The factored codec's noise: unbiased, as large as the closed form says, within its budget of bytes. Fixed seeds. */
#include "support/check_main.h"
#include "support/factor_ranks.h"

#include "codec/factor_internal.h"

/* Means over draws of the product and the bias, and of the squared error. */
typedef struct moments {
    size_t count;
    double *mean, *square;
    double error; /* mean squared error of the product, all elements together */
    double bytes; /* mean of all ranks' blobs */
} moments_t;

static moments_t draw_moments(ranks_t *ranks, size_t draws)
{
    size_t product = ranks->call.m * ranks->call.n, count = product + ranks->call.n;
    moments_t moments = {.count = count, .mean = calloc(count, sizeof(double)), .square = calloc(count, sizeof(double))};
    float *got = calloc(count, sizeof(*got));
    double *exact = calloc(count, sizeof(*exact));
    exact_sums(ranks, exact, exact + product);
    for (size_t draw = 1; draw <= draws; draw++) {
        moments.bytes += (double)encode_all(ranks, draw) / (double)draws;
        decode_all(ranks, false);
        product_all(ranks, false, false, got, ranks->call.want_bias ? got + product : NULL);
        for (size_t i = 0; i < count; i++) {
            double difference = i < product || ranks->call.want_bias ? (double)got[i] - exact[i] : 0;
            moments.mean[i] += difference / (double)draws;
            moments.square[i] += difference * difference / (double)draws;
            moments.error += i < product ? difference * difference / (double)draws : 0;
        }
    }
    free(got);
    free(exact);
    return moments;
}

static void moments_free(moments_t *moments)
{
    free(moments->mean);
    free(moments->square);
}

/* Standard errors of an unbiased mean are normal: none is far out, and their squares average 1 (less strictly where few random
 * choices decide all outputs together). */
static void check_unbiased(const moments_t *moments, size_t draws, double limit, const char *what, double label)
{
    double sum = 0, most = 0;
    size_t used = 0;
    for (size_t i = 0; i < moments->count; i++)
        if (moments->square[i] > 0) {
            double z = moments->mean[i] / sqrt(moments->square[i] / (double)draws);
            sum += z * z;
            most = fmax(most, fabs(z));
            used++;
        }
    ck_assert_uint_gt(used, moments->count / 2);
    ck_assert_msg(most < 5, "%s %g: a mean error of %.1f standard errors", what, label, most);
    ck_assert_msg(sum / (double)used < limit, "%s %g: mean square of %.2f standard errors", what, label, sum / (double)used);
}

START_TEST(test_fixed_widths)
{
    static const unsigned fixed[] = {2, 3, 4, 8};
    static const size_t batch[] = {3, 4};
    for (size_t w = 0; w < IQ_ARRAY_SIZE(fixed); w++)
        for (int kind = 0; kind < 4; kind++) {
            bool relu = kind % 2 != 0;
            iq_factor_spec_t spec = widths(fixed[w], fixed[w]);
            spec.dither = spec.coded = kind > 1;
            ranks_t *ranks = ranks_create(spec, shape(2, 6, 7, true), batch);
            fill_normal(ranks, 11 + w, relu, 1);
            size_t draws = kind > 1 ? 500 : 1500;
            moments_t moments = draw_moments(ranks, draws);
            check_unbiased(&moments, draws, 2.2, "width", fixed[w]);
            moments_free(&moments);
            ranks_destroy(ranks);
        }
}
END_TEST

START_TEST(test_budgets)
{
    static const double bits[] = {1.5, 3, 5};
    static const size_t batch[] = {8, 6};
    for (size_t b = 0; b < IQ_ARRAY_SIZE(bits); b++)
        for (int kind = 0; kind < 6; kind++) {
            iq_factor_spec_t spec = budget(bits[b]);
            int bias = kind % 2;
            spec.dither = kind > 1;
            spec.coded = kind > 3;
            ranks_t *ranks = ranks_create(spec, shape(2, 16, 13, bias != 0), batch);
            fill_normal(ranks, 21 + b, true, 1.5);
            size_t draws = kind > 1 ? 500 : 1500;
            moments_t moments = draw_moments(ranks, draws);
            check_unbiased(&moments, draws, 2.2, "budget", bits[b]);
            moments_free(&moments);
            ranks_destroy(ranks);
        }
}
END_TEST

/* One heavy row on rank 0, on rank 1 rows whose products weigh 2^-9 .. 2^-33 of it. `skew` moves weight from delta to x, so that
 * the weights of the bias lie elsewhere on their grid than those of the product and rows are split. */
static void check_light_rows(iq_factor_spec_t spec, double skew, bool want_bias)
{
    static const size_t batch[] = {1, 100};
    ranks_t *ranks = ranks_create(spec, shape(2, 3, 3, want_bias), batch);
    fill_normal(ranks, 5, false, 0);
    float *x = ranks->x[1], *delta = ranks->delta[1];
    for (size_t i = 0; i < 3; i++) { /* the heavy row has no part in most outputs */
        ((float *)ranks->x[0])[i] = i == 0 ? 1 : 0;
        ((float *)ranks->delta[0])[i] = i == 0 ? 1 : 0;
    }
    for (size_t r = 0; r < 100; r++)
        for (size_t i = 0; i < 3; i++) {
            double weight = -9 - 24 * (double)r / 99, to_x = skew * (double)(r % 5) / 4;
            x[r * 3 + i] = (float)exp2(to_x) * fabsf(x[r * 3 + i]);
            delta[r * 3 + i] = (float)exp2(weight - to_x) * fabsf(delta[r * 3 + i]);
        }
    moments_t moments = draw_moments(ranks, 3000);
    check_unbiased(&moments, 3000, 9, "skew", skew);
    ck_assert_uint_lt(ranks->rows.count, 70); /* light rows were dropped */
    moments_free(&moments);
    ranks_destroy(ranks);
}

START_TEST(test_light_rows)
{
    iq_factor_spec_t dithered = {.width_x = 4, .width_delta = 4, .dither = true};
    check_light_rows(widths(4, 4), 0, false);
    check_light_rows(widths(4, 4), 0, true);
    check_light_rows(widths(4, 4), 6, true);
    check_light_rows(widths(4, 4), -6, true);
    check_light_rows(dithered, 0, false);
    check_light_rows(dithered, 6, true);
}
END_TEST

/* A heavy x with a delta too light for the bias, and the opposite: rows that only the split can say. */
START_TEST(test_split_rows)
{
    static const size_t batch[] = {3};
    ranks_t *ranks = ranks_create(widths(4, 4), shape(1, 2, 2, true), batch);
    static const float x[] = {1, 0.5f, 70000, 41000, 1e-5f, 2e-5f}, delta[] = {1, -0.7f, 1.1e-5f, 1.3e-5f, 0.9f, -0.3f};
    size_t lone = 0;
    memcpy(ranks->x[0], x, sizeof(x));
    memcpy(ranks->delta[0], delta, sizeof(delta));
    moments_t moments = draw_moments(ranks, 10000);
    check_unbiased(&moments, 10000, 9, "split", 0);
    for (size_t draw = 1; draw <= 50; draw++) {
        encode_all(ranks, draw);
        decode_all(ranks, false);
        for (size_t r = 0; r < ranks->rows.count; r++)
            lone += (ranks->rows.weight_b[r] == 0) != (ranks->rows.weight_c[r] == 0);
    }
    ck_assert_uint_gt(lone, 25);
    moments_free(&moments);
    ranks_destroy(ranks);
}
END_TEST

/* Sum over rows of (|x|^2 + v)(|delta|^2 + w) - |x|^2 |delta|^2 with the steps that `growth` times the finest ones are. */
static double closed_form(const ranks_t *ranks, bool unsigned_x, double growth)
{
    double total = 0;
    size_t sizes[] = {ranks->call.m, ranks->call.n};
    int32_t levels[] = {iq_factor_levels(ranks->spec.width_x, unsigned_x), iq_factor_levels(ranks->spec.width_delta, false)};
    for (int r = 0; r < ranks->call.nranks; r++)
        for (size_t row = 0; row < ranks->batch[r]; row++) {
            double norm[2] = {0, 0}, variance[2] = {0, 0};
            for (int side = 0; side < 2; side++) {
                const float *values = (const float *)(side == 0 ? ranks->x[r] : ranks->delta[r]) + row * sizes[side];
                double most = 0;
                for (size_t i = 0; i < sizes[side]; i++)
                    most = fmax(most, fabs((double)values[i]));
                for (size_t i = 0; i < sizes[side]; i++) {
                    double step = growth * most / levels[side], y = fabs((double)values[i]) / step, f = y - floor(y);
                    norm[side] += (double)values[i] * (double)values[i];
                    variance[side] += values[i] == 0        ? 0
                                      : ranks->spec.dither ? step * step / 12 * (1 + 1.0 / 256)
                                                           : step * step * f * (1 - f);
                }
            }
            total += (norm[0] + variance[0]) * (norm[1] + variance[1]) - norm[0] * norm[1];
        }
    return total;
}

START_TEST(test_variance)
{
    static const unsigned fixed[] = {2, 3, 4, 6, 8};
    static const size_t batch[] = {20, 12};
    for (size_t w = 0; w < IQ_ARRAY_SIZE(fixed); w++)
        for (int kind = 0; kind < 4; kind++) {
            bool relu = kind % 2 != 0;
            iq_factor_spec_t spec = widths(fixed[w], fixed[w]);
            spec.dither = kind > 1;
            ranks_t *ranks = ranks_create(spec, shape(2, 60, 50, false), batch);
            fill_normal(ranks, 31 + w, relu, 0.7);
            moments_t moments = draw_moments(ranks, 100);
            double low = closed_form(ranks, relu, 1), high = closed_form(ranks, relu, 1.125);
            ck_assert_msg(moments.error > 0.9 * low && moments.error < 1.1 * high, "width %u: %g is not in %g .. %g", fixed[w],
                          moments.error, low, high);
            moments_free(&moments);
            ranks_destroy(ranks);
        }
}
END_TEST

/* encode_all checks the hard bound of every blob; here the mean. */
START_TEST(test_budget_is_met)
{
    static const double bits[] = {0.5, 1, 2, 4, 6, 12};
    for (uint64_t round = 0; round < 60; round++) {
        size_t batch[3], m = 1 + round * 37 % 180, n = 1 + round * 53 % 150;
        double expected = 0;
        ranks_t *ranks;
        for (size_t r = 0; r < 3; r++)
            batch[r] = 1 + (round * 7 + r * 11) % 24;
        ranks = ranks_create(budget(bits[round % 6]), shape(3, m, n, round % 2 == 0), batch);
        fill_normal(ranks, 100 + round, round % 3 == 0, (double)(round % 7));
        for (size_t r = 0; r < 3; r++)
            expected += fmax(32, bits[round % 6] * (double)batch[r] * (double)(m + n) / 8);
        moments_t moments = draw_moments(ranks, 60);
        ck_assert_msg(moments.bytes < 1.03 * expected, "round %d: %g bytes for a budget of %g", (int)round, moments.bytes,
                      expected);
        if (bits[round % 6] <= 4 && m + n > 100)
            ck_assert_msg(moments.bytes > 0.75 * expected, "round %d: %g bytes of %g", (int)round, moments.bytes, expected);
        moments_free(&moments);
        ranks_destroy(ranks);
    }
}
END_TEST

/* Bytes through the coder are known only roughly before. */
START_TEST(test_coded_budget)
{
    static const double bits[] = {1, 2, 3};
    static const size_t batch[] = {24, 24};
    for (size_t b = 0; b < IQ_ARRAY_SIZE(bits); b++) {
        iq_factor_spec_t spec = {.budget_bits = bits[b], .dither = true, .coded = true};
        ranks_t *ranks = ranks_create(spec, shape(2, 300, 200, true), batch);
        fill_normal(ranks, 300 + b, true, 2);
        moments_t moments = draw_moments(ranks, 20);
        double expected = 2 * bits[b] * 24 * 500 / 8;
        ck_assert_msg(moments.bytes < 1.03 * expected && moments.bytes > 0.9 * expected, "%g bits: %g bytes for %g", bits[b],
                      moments.bytes, expected);
        moments_free(&moments);
        ranks_destroy(ranks);
    }
}
END_TEST

/* The error is that of the rows' energies, with as few bytes as it takes. */
START_TEST(test_error_is_met)
{
    static const double errors[] = {0.1, 0.01, 0.001};
    static const size_t batch[] = {24, 24};
    double before = 0;
    for (size_t e = 0; e < IQ_ARRAY_SIZE(errors); e++) {
        iq_factor_spec_t spec = {.budget_nmse = errors[e], .dither = true, .coded = true};
        ranks_t *ranks = ranks_create(spec, shape(2, 120, 100, false), batch);
        double energy = 0;
        fill_normal(ranks, 400, true, 1.5);
        for (int r = 0; r < 2; r++)
            for (size_t row = 0; row < 24; row++) {
                double x = 0, delta = 0;
                for (size_t i = 0; i < 120; i++)
                    x += pow((double)((const float *)ranks->x[r])[row * 120 + i], 2);
                for (size_t j = 0; j < 100; j++)
                    delta += pow((double)((const float *)ranks->delta[r])[row * 100 + j], 2);
                energy += x * delta;
            }
        moments_t moments = draw_moments(ranks, 60);
        ck_assert_msg(moments.error < 1.15 * errors[e] * energy && moments.error > 0.7 * errors[e] * energy, "%g became %g", errors[e],
                      moments.error / energy);
        ck_assert_double_gt(moments.bytes, before);
        before = moments.bytes;
        moments_free(&moments);
        ranks_destroy(ranks);
    }
}
END_TEST

static double nmse(const moments_t *moments, const ranks_t *ranks)
{
    size_t product = ranks->call.m * ranks->call.n;
    double *exact = calloc(product + ranks->call.n, sizeof(*exact)), energy = 0;
    exact_sums(ranks, exact, exact + product);
    for (size_t i = 0; i < product; i++)
        energy += exact[i] * exact[i];
    free(exact);
    return moments->error / energy;
}

/* What training looks like: half of X is zero, rows of delta span 2^10. The same bits, spent as a budget, are worth 20 times as
 * much; with dither 1.5 times that, and with the coder, at 2 bits, twice that of dither alone. */
START_TEST(test_budget_beats_width)
{
    static const size_t batch[] = {32, 32, 32, 32};
    iq_factor_spec_t specs[] = {widths(4, 4), budget(3.5), budget(3.5), budget(2), budget(2)};
    double error[5], bytes[5];
    specs[2].dither = specs[3].dither = specs[4].dither = true;
    specs[4].coded = true;
    for (int k = 0; k < 5; k++) {
        ranks_t *ranks = ranks_create(specs[k], shape(4, 196, 250, true), batch);
        fill_normal(ranks, 7, true, 2.5);
        moments_t moments = draw_moments(ranks, 10);
        error[k] = nmse(&moments, ranks);
        bytes[k] = moments.bytes;
        moments_free(&moments);
        ranks_destroy(ranks);
    }
    ck_assert_double_lt(bytes[1], 1.02 * bytes[0]);
    ck_assert_double_lt(bytes[2], 1.02 * bytes[0]);
    ck_assert_double_lt(bytes[4], 1.02 * bytes[3]);
    for (int k = 1; k < 5; k++)
        ck_assert_msg(k == 3 || error[k] < error[k - 1] / (k == 1 ? 20 : k == 2 ? 1.5 : 2),
                      "spec %d: nmse %g in %g bytes; before: %g in %g", k, error[k], bytes[k], error[k - 1], bytes[k - 1]);
}
END_TEST

/* The expected squared error of rank 0's rows, as they are sent; `fit` as encoding does it. */
static double expected_error(ranks_t *ranks, bool fit)
{
    iq_factor_call_t call = call_of(ranks, 0);
    float peaks[2];
    double error = 0;
    iq_factor_prepare(&ranks->spec, &call, ranks->x[0], ranks->delta[0], ranks->state, peaks);
    iq_factor_state_t state = iq_factor_state(&ranks->spec, &call, ranks->state);
    iq_factor_frame_t frame = iq_factor_frame_of(call.want_bias, state.facts->unsigned_x, peaks[0], peaks[1]);
    if (fit)
        iq_factor_fit_rows(&ranks->spec, &call, &frame, &state);
    for (size_t r = 0; r < call.batch; r++) {
        const iq_factor_row_t *row = &state.rows[r];
        double exact = (row->x.sum_squares + (call.want_bias ? 1 : 0)) * row->delta.sum_squares;
        error += row->keep != 0 ? iq_factor_loss(&frame, row) * (double)IQ_FACTOR_CERTAIN - exact : 0;
    }
    return error;
}

/* More budget never costs error, also where all rows fit in their widest codes and many are lighter than the grid. */
START_TEST(test_more_is_better)
{
    static const double bits[] = {1, 2, 3, 4, 5, 8};
    static const size_t batch[] = {200};
    for (int kind = 0; kind < 6; kind++) {
        double before = (double)INFINITY, plain = 0;
        for (size_t b = 0; b < IQ_ARRAY_SIZE(bits); b++) {
            iq_factor_spec_t spec = budget(bits[b]);
            spec.dither = kind > 1;
            spec.coded = kind > 3;
            ranks_t *ranks = ranks_create(spec, shape(1, 60, 50, kind % 2 == 1), batch);
            fill_normal(ranks, 500, true, 4);
            plain = expected_error(ranks, false);
            double error = expected_error(ranks, true);
            ck_assert_msg(error <= plain && error < 1.001 * before, "kind %d, %g bits: %g; with less budget %g", kind, bits[b], error, before);
            before = error;
            ranks_destroy(ranks);
        }
        ck_assert_msg(plain > 1.01 * before, "kind %d: no row was light", kind);
    }
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("factor_noise");
    TCase *unbiased = tcase_create("unbiased"), *light = tcase_create("light_rows"), *error = tcase_create("error"),
          *bytes = tcase_create("budget");
    TCase *all[] = {unbiased, light, error, bytes};
    tcase_add_test(unbiased, test_fixed_widths);
    tcase_add_test(unbiased, test_budgets);
    tcase_add_test(light, test_light_rows);
    tcase_add_test(light, test_split_rows);
    tcase_add_test(error, test_variance);
    tcase_add_test(error, test_budget_beats_width);
    tcase_add_test(error, test_more_is_better);
    tcase_add_test(bytes, test_budget_is_met);
    tcase_add_test(bytes, test_coded_budget);
    tcase_add_test(bytes, test_error_is_met);
    for (size_t i = 0; i < IQ_ARRAY_SIZE(all); i++) {
        tcase_set_timeout(all[i], 300);
        suite_add_tcase(suite, all[i]);
    }
    return suite;
}
