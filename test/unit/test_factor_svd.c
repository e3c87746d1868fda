/* SPDX-License-Identifier: Apache-2.0 */
/* rows=svd: other rows with the same product, few and orthogonal, and a bias of its own. Where there is no LAPACK rows stay as they are. */
#include "support/check_main.h"
#include "support/factor_ranks.h"

#include "codec/factor_internal.h"
#include "isgqcoll_ext.h"
#include "kernels/gemm.h"

static const iq_factor_spec_t svd = {.budget_bits = 64, .dither = true, .coded = true, .svd = true};

/* What prepare made of one rank's rows. */
typedef struct made {
    iq_factor_state_t state;
    size_t rows;
    float peaks[2];
} made_t;

static made_t prepare(ranks_t *ranks)
{
    iq_factor_call_t call = call_of(ranks, 0);
    made_t made = {.state = iq_factor_state(&ranks->spec, &call, ranks->state)};
    iq_factor_prepare(&ranks->spec, &call, ranks->x[0], ranks->delta[0], ranks->state, made.peaks);
    made.rows = made.state.facts->svd_rows;
    return made;
}

/* The new rows have the product and the bias of the old ones, within what rounding them to f32 makes. */
static void check_rows(isgq_data_type_t type, size_t batch, size_t m, size_t n, bool bias, double spread)
{
    iq_factor_call_t call = shape(1, m, n, bias);
    call.datatype = type;
    ranks_t *ranks = ranks_create(svd, call, &batch);
    double *exact = calloc(m * n + n, sizeof(*exact)), norm = 0, most = 0;
    fill_normal(ranks, 40 + batch, true, spread);
    exact_sums(ranks, exact, exact + m * n);
    for (size_t r = 0; r < batch; r++) {
        double x = 0, delta = 0;
        for (size_t i = 0; i < m; i++)
            x += pow((double)value_at(type, ranks->x[0], r * m + i), 2);
        for (size_t j = 0; j < n; j++)
            delta += pow((double)value_at(type, ranks->delta[0], r * n + j), 2);
        norm += sqrt(x * delta);
    }
    made_t made = prepare(ranks);
    size_t products = made.rows - (bias && batch > 0 ? 1 : 0);
    ck_assert_uint_le(made.rows, ranks->call.max_batch);
    if (iq_product_svd_present())
        ck_assert_uint_le(products, iq_min(batch, iq_min(m, n)));
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            double sum = 0;
            for (size_t r = 0; r < made.rows; r++)
                sum += (double)made.state.svd_x[r * m + i] * (double)made.state.svd_delta[r * n + j];
            most = fmax(most, fabs(sum - exact[i * n + j]));
        }
    ck_assert_msg(most <= 2e-7 * norm, "%zu rows of %zu x %zu: off by %g of %g", batch, m, n, most, norm);
    for (size_t j = 0; bias && batch > 0 && j < n; j++)
        ck_assert_float_eq(made.state.svd_delta[products * n + j], (float)exact[m * n + j]);
    for (size_t i = 0; bias && batch > 0 && i < m; i++)
        ck_assert_float_eq(made.state.svd_x[products * m + i], 0.0f);
    free(exact);
    ranks_destroy(ranks);
}

START_TEST(test_same_product)
{
    for (int bias = 0; bias < 2; bias++) {
        check_rows(ISGQ_FLOAT32, 0, 5, 4, bias, 1);
        check_rows(ISGQ_FLOAT32, 1, 9, 7, bias, 1);
        check_rows(ISGQ_FLOAT32, 12, 40, 30, bias, 2);
        check_rows(ISGQ_BFLOAT16, 30, 33, 60, bias, 1);
        check_rows(ISGQ_FLOAT16, 30, 60, 33, bias, 1);
        check_rows(ISGQ_FLOAT32, 50, 20, 30, bias, 1); /* more rows than columns: of X */
        check_rows(ISGQ_FLOAT32, 50, 30, 20, bias, 6); /* of Delta */
        check_rows(ISGQ_FLOAT32, 50, 8, 9, bias, 1);   /* of both */
        check_rows(ISGQ_FLOAT32, 6, 300, 1, bias, 1);
        check_rows(ISGQ_FLOAT32, 6, 1, 300, bias, 1);
    }
}
END_TEST

/* Rows that say the same become one; rows of zeros none. */
START_TEST(test_rank)
{
    static const size_t batch[] = {6};
    ranks_t *ranks = ranks_create(svd, shape(1, 10, 8, false), batch);
    if (iq_product_svd_present()) {
        ck_assert_uint_eq(prepare(ranks).rows, 0);
        fill_normal(ranks, 3, false, 0);
        float *x = ranks->x[0], *delta = ranks->delta[0];
        for (size_t r = 1; r < 6; r++)
            for (size_t i = 0; i < 10; i++)
                x[r * 10 + i] = r == 3 ? 0 : x[i] * (float)(1 << r);
        ck_assert_uint_eq(prepare(ranks).rows, 1);
        x[17] += 1;
        ck_assert_uint_eq(prepare(ranks).rows, 2);
        for (size_t j = 0; j < 48; j++)
            delta[j] *= 1e-30f; /* far below one in magnitude, and far above */
        for (size_t i = 0; i < 60; i++)
            x[i] *= 1e30f;
        ck_assert_uint_eq(prepare(ranks).rows, 2);
    }
    ranks_destroy(ranks);
}
END_TEST

/* NaN and Inf of any rank make everything NaN; a rank without rows is content. */
START_TEST(test_not_finite)
{
    static const size_t batch[] = {5, 0, 3};
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t k = 0; k < 2 * IQ_ARRAY_SIZE(bad); k++) {
        ranks_t *ranks = ranks_create(svd, shape(3, 6, 4, true), batch);
        float got[6 * 4 + 4];
        fill_normal(ranks, 9, true, 1);
        encode_all(ranks, 1);
        decode_all(ranks, false);
        product_all(ranks, false, false, got, got + 24);
        for (size_t i = 0; i < IQ_ARRAY_SIZE(got); i++)
            require(isfinite(got[i]), "a result that is not finite");
        ((float *)(k % 2 == 0 ? ranks->x[2] : ranks->delta[2]))[7] = bad[k / 2];
        encode_all(ranks, 2);
        decode_all(ranks, false);
        product_all(ranks, false, false, got, got + 24);
        for (size_t i = 0; i < IQ_ARRAY_SIZE(got); i++)
            require(isnan(got[i]), "NaN does not show");
        ranks_destroy(ranks);
    }
}
END_TEST

/* A budget that leaves rows out still meets the product and the bias on average. */
START_TEST(test_unbiased)
{
    static const size_t batch[] = {16, 12};
    enum { M = 9, N = 8, ALL = M * N + N, DRAWS = 1500 };
    iq_factor_spec_t spec = {.budget_bits = 1.5, .dither = true, .coded = true, .svd = true};
    ranks_t *ranks = ranks_create(spec, shape(2, M, N, true), batch);
    double exact[ALL], mean[ALL] = {0}, square[ALL] = {0}, sum = 0;
    float got[ALL];
    fill_normal(ranks, 77, true, 1);
    exact_sums(ranks, exact, exact + M * N);
    for (uint64_t draw = 1; draw <= DRAWS; draw++) {
        encode_all(ranks, draw);
        decode_all(ranks, false);
        product_all(ranks, false, false, got, got + M * N);
        for (size_t i = 0; i < ALL; i++) {
            double error = (double)got[i] - exact[i];
            mean[i] += error / DRAWS;
            square[i] += error * error / DRAWS;
        }
    }
    for (size_t i = 0; i < ALL; i++) {
        double z = mean[i] / sqrt(square[i] / DRAWS);
        ck_assert_msg(fabs(z) < 5, "element %zu: %.1f standard errors", i, z);
        sum += z * z / ALL;
    }
    ck_assert_double_lt(sum, 2.2);
    ranks_destroy(ranks);
}
END_TEST

/* Rows that have much in common, as in training: the same bytes, an error at least twice as small. */
START_TEST(test_pays)
{
    static const size_t batch[] = {64};
    double error[2] = {0, 0};
    for (int kind = 0; kind < 2; kind++) {
        iq_factor_spec_t spec = {.budget_bits = 0.5, .dither = true, .coded = true, .svd = kind == 1};
        ranks_t *ranks = ranks_create(spec, shape(1, 80, 60, false), batch);
        double *exact = calloc(80 * 60 + 60, sizeof(*exact));
        float *got = calloc((size_t)80 * 60, sizeof(*got)), *x = ranks->x[0], *delta = ranks->delta[0];
        fill_normal(ranks, 5, false, 0);
        for (size_t r = 4; r < 64; r++) {
            for (size_t i = 0; i < 80; i++)
                x[r * 80 + i] = x[r % 4 * 80 + i] + 0.1f * x[r * 80 + i];
            for (size_t j = 0; j < 60; j++)
                delta[r * 60 + j] = delta[r % 4 * 60 + j] + 0.1f * delta[r * 60 + j];
        }
        exact_sums(ranks, exact, exact + 80 * 60);
        for (uint64_t draw = 1; draw <= 10; draw++) {
            encode_all(ranks, draw);
            decode_all(ranks, false);
            product_all(ranks, false, false, got, NULL);
            for (size_t i = 0; i < 80 * 60; i++)
                error[kind] += pow((double)got[i] - exact[i], 2);
        }
        free(exact);
        free(got);
        ranks_destroy(ranks);
    }
    if (iq_product_svd_present())
        ck_assert_msg(error[1] < error[0] / 2, "%g, and plain rows %g", error[1], error[0]);
}
END_TEST

/* A build that cannot do it says so when the quantizer is made. */
START_TEST(test_texts)
{
    static const char *const texts[][2] = {
        {"isgq:rows=svd,bits=2", "isgq:bits=2"},
        {"factor:rows=svd,width=4", "factor:width=4/4,rounding=stochastic"},
    };
    isgq_quantizer_t quantizer;
    for (size_t t = 0; t < IQ_ARRAY_SIZE(texts); t++) {
        isgq_result_t result = isgq_quantizer_create(&quantizer, texts[t][0]);
        if (!iq_product_svd_present()) {
            ck_assert_int_eq(result, ISGQ_ERR_UNSUPPORTED);
            ck_assert_ptr_nonnull(strstr(isgq_get_last_error(), "rows=svd needs LAPACK"));
            continue;
        }
        ck_assert_int_eq(result, ISGQ_SUCCESS);
        const char *text = isgqx_quantizer_text(quantizer);
        ck_assert_int_eq(strncmp(text, texts[t][1], strlen(texts[t][1])), 0);
        ck_assert_ptr_nonnull(strstr(text, "rows=svd"));
        isgq_quantizer_destroy(quantizer);
    }
    ck_assert_int_eq(isgq_quantizer_create(&quantizer, "factor:rows=none"), ISGQ_ERR_INVALID_ARGUMENT);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("factor_svd");
    TCase *rows = tcase_create("rows"), *noise = tcase_create("noise");
    tcase_set_timeout(noise, 120);
    tcase_add_test(rows, test_same_product);
    tcase_add_test(rows, test_rank);
    tcase_add_test(rows, test_not_finite);
    tcase_add_test(rows, test_texts);
    tcase_add_test(noise, test_unbiased);
    tcase_add_test(noise, test_pays);
    suite_add_tcase(suite, rows);
    suite_add_tcase(suite, noise);
    return suite;
}
