/* SPDX-License-Identifier: Apache-2.0 */
/* The factored codec gives one answer: whatever way the rows come together, the bits are those of a plain int64 sum. */
#include "support/check_main.h"
#include "support/factor_ranks.h"

/* What decoded rows must give, by the definition alone. Integers first: m * n of the product, n of the bias. */
static void reference_integers(const ranks_t *ranks, int64_t *sums)
{
    const iq_factor_rows_t *rows = &ranks->rows;
    size_t m = ranks->call.m, n = ranks->call.n;
    memset(sums, 0, (m * n + n) * sizeof(*sums));
    for (size_t r = 0; r < rows->count; r++)
        for (size_t j = 0; j < n; j++) {
            int64_t p = rows->p[r * n + j];
            for (size_t i = 0; i < m; i++)
                sums[i * n + j] += rows->weight_c[r] * rows->q[r * m + i] * p;
            if (ranks->call.want_bias)
                sums[m * n + j] += rows->weight_b[r] * p;
        }
}

/* Peaks stand at the top of the grid, or one octave below if there is a bias. */
static double unit_of(float peak, bool want_bias)
{
    int exponent;
    frexp((double)peak, &exponent);
    return ldexp(1, exponent - 4 - (IQ_FACTOR_OCTAVES - (want_bias ? 2 : 1)));
}

static void finish_reference(const ranks_t *ranks, const int64_t *sums, bool avg, void *grad, void *bias)
{
    int finer = (int)ranks->call.fraction;
    size_t product = ranks->call.m * ranks->call.n;
    double divisor = avg ? ranks->call.nranks : 1;
    for (size_t i = 0; i < product; i++)
        set_value(ranks->call.datatype, grad, i, ldexp((double)sums[i], -2 * finer) * unit_of(ranks->peaks[1], ranks->call.want_bias) / divisor);
    for (size_t j = 0; ranks->call.want_bias && j < ranks->call.n; j++)
        set_value(ranks->call.datatype, bias, j, ldexp((double)sums[product + j], -finer) * unit_of(ranks->peaks[0], true) / divisor);
}

static void add_sums(isgq_data_type_t type, size_t count, const void *part, void *total)
{
    for (size_t i = 0; i < count; i++)
        if (type == ISGQ_INT32)
            ((int32_t *)total)[i] += ((const int32_t *)part)[i];
        else
            ((int64_t *)total)[i] += ((const int64_t *)part)[i];
}

/* Every rank multiplies its own rows, integers are added, the sums become the result. */
static void reduce_products(ranks_t *ranks, bool avg, void *grad, void *bias)
{
    const iq_factor_call_t *call = &ranks->call;
    isgq_data_type_t type = iq_factor_sum_type(&ranks->spec, call);
    size_t count = call->m * call->n + (call->want_bias ? call->n : 0), tiles = iq_factor_product_tiles(call);
    void *part = calloc(count + 1, 8), *total = calloc(count + 1, 8);
    for (int r = 0; r < call->nranks; r++) {
        ranks->rows.count = 0;
        ck_assert_int_eq(iq_factor_decode(&ranks->spec, call, r, ranks->blob[r], ranks->bytes[r], &ranks->rows), ISGQ_SUCCESS);
        for (size_t tile = 0; tile < tiles; tile++)
            ck_assert_int_eq(iq_factor_product_integers(&ranks->spec, call, &ranks->rows, tile, part, ranks->scratch),
                             ISGQ_SUCCESS);
        add_sums(type, count, part, total);
    }
    for (size_t tile = 0; tile < tiles; tile++)
        iq_factor_from_integers(&ranks->spec, call, total, ranks->peaks, tile, avg, false, grad, call->want_bias ? bias : NULL);
    free(part);
    free(total);
}

/* Rows as bytes and back, a rank's blob at a time, and the gradient in bands of so many rows. */
static void share_product(ranks_t *ranks, size_t band, bool avg, void *grad, void *bias)
{
    const iq_factor_call_t *call = &ranks->call;
    size_t bytes = iq_factor_rows_bytes(call), used;
    iq_factor_rows_t rows[MOST_RANKS];
    unsigned char *packed = aligned_alloc(64, iq_align_up((size_t)call->nranks * bytes, 64));
    float *values = malloc((call->m * call->n + 1) * sizeof(*values));
    for (int r = 0; r < call->nranks; r++) {
        ranks->rows.count = 0;
        ck_assert_int_eq(iq_factor_decode(&ranks->spec, call, r, ranks->blob[r], ranks->bytes[r], &ranks->rows), ISGQ_SUCCESS);
        size_t packed_bytes = iq_factor_rows_pack(call, &ranks->rows, packed + (size_t)r * bytes);
        ck_assert_uint_le(packed_bytes, bytes);
        ck_assert_int_eq(iq_factor_rows_open(&ranks->spec, call, packed + (size_t)r * bytes, packed_bytes, &rows[r], &used),
                         ISGQ_SUCCESS);
        ck_assert_uint_eq(used, packed_bytes);
        rows[r].next = r + 1 < call->nranks ? &rows[r + 1] : NULL;
    }
    for (size_t first = 0; first < call->m; first += band) {
        iq_factor_band_t part = {first, iq_min(band, call->m - first)};
        for (size_t tile = 0; tile < iq_factor_band_tiles(call, part); tile++)
            iq_factor_product_band(call, rows, ranks->peaks, part, tile, avg, values + first * call->n, ranks->scratch);
    }
    for (size_t i = 0; i < call->m * call->n; i++)
        set_value(call->datatype, grad, i, (double)values[i]);
    if (call->want_bias)
        iq_factor_bias(call, rows, ranks->peaks, avg, false, bias, ranks->scratch);
    free(packed);
    free(values);
}

/* What encoding leaves of a rank's own rows is what others decode of its blob, behind rows that are there already. */
static void check_own_rows(ranks_t *ranks)
{
    size_t m = ranks->call.m, n = ranks->call.n, bound = iq_factor_blob_bytes(&ranks->spec, &ranks->call);
    size_t capacity = 2 * ranks->call.max_batch;
    void *memory = aligned_alloc(64, iq_factor_rows_layout(&ranks->call, capacity, NULL, NULL));
    unsigned char *blob = malloc(bound);
    iq_factor_rows_t own;
    iq_factor_rows_layout(&ranks->call, capacity, memory, &own);
    for (int r = 0; r < ranks->call.nranks; r++) {
        iq_factor_call_t call = call_of(ranks, r);
        float peaks[2];
        size_t before = r % 2 == 1 && ranks->call.max_batch > 1 ? 1 : 0;
        own.count = before;
        ranks->rows.count = 0;
        iq_factor_prepare(&ranks->spec, &call, ranks->x[r], ranks->delta[r], ranks->state, peaks);
        size_t bytes = iq_factor_encode(&ranks->spec, &call, ranks->x[r], ranks->delta[r], ranks->state, ranks->peaks, blob, &own);
        require(bytes == ranks->bytes[r] && memcmp(blob, ranks->blob[r], bytes) == 0, "another blob where own rows are kept");
        require(iq_factor_decode(&ranks->spec, &call, r, blob, bytes, &ranks->rows) == ISGQ_SUCCESS, "a blob of ours was refused");
        size_t count = ranks->rows.count;
        require(own.count == before + count, "own rows are more or fewer");
        require(memcmp(own.weight_c + before, ranks->rows.weight_c, count * sizeof(int64_t)) == 0, "another weight C");
        require(!call.want_bias || memcmp(own.weight_b + before, ranks->rows.weight_b, count * sizeof(int64_t)) == 0, "another weight B");
        require(memcmp(own.q + before * m, ranks->rows.q, count * m * sizeof(int16_t)) == 0, "other codes of X");
        require(memcmp(own.p + before * n, ranks->rows.p, count * n * sizeof(int16_t)) == 0, "other codes of Delta");
    }
    free(blob);
    free(memory);
}

static void same_bits(const void *a, const void *b, size_t bytes, const char *what)
{
    ck_assert_msg(memcmp(a, b, bytes) == 0, "%s differs from the int64 reference", what);
}

/* Gather in both orders, product reduction and reference: the same bits. */
static void check_one_answer(iq_factor_spec_t spec, iq_factor_call_t call, const size_t *batch, bool relu, double spread,
                             bool avg)
{
    ranks_t *ranks = ranks_create(spec, call, batch);
    size_t product = call.m * call.n, each = value_bytes(call.datatype);
    int64_t *sums = calloc(product + call.n + 1, sizeof(*sums));
    char *want = calloc(product + call.n + 1, each), *got = calloc(product + call.n + 1, each);
    char *want_bias = want + product * each, *bias = got + product * each;
    size_t bytes = (product + (call.want_bias ? call.n : 0)) * each;
    fill_normal(ranks, call.m + 31 * call.n, relu, spread);
    encode_all(ranks, 1);
    check_own_rows(ranks);
    decode_all(ranks, false);
    reference_integers(ranks, sums);
    finish_reference(ranks, sums, avg, want, want_bias);
    product_all(ranks, avg, false, got, call.want_bias ? bias : NULL);
    same_bits(want, got, bytes, "gather");
    decode_all(ranks, true);
    memset(got, 0x55, bytes);
    product_all(ranks, avg, false, got, call.want_bias ? bias : NULL);
    same_bits(want, got, bytes, "gather in the opposite order");
    memset(got, 0x55, bytes);
    reduce_products(ranks, avg, got, bias);
    same_bits(want, got, bytes, "product reduction");
    memset(got, 0x55, bytes);
    share_product(ranks, call.m / 3 + 1, avg, got, bias);
    same_bits(want, got, bytes, "bands of rows that were passed on");
    free(sums);
    free(want);
    free(got);
    ranks_destroy(ranks);
}

static const iq_factor_spec_t specs[] = {
    {.width_x = 4, .width_delta = 4},
    {.width_x = 2, .width_delta = 8},
    {.width_x = 8, .width_delta = 3},
    {.width_x = 5, .width_delta = 6, .nearest = true},
    {.budget_bits = 1},
    {.budget_bits = 4},
    {.budget_bits = 40},
    {.width_x = 4, .width_delta = 4, .dither = true},
    {.width_x = 8, .width_delta = 8, .dither = true, .coded = true},
    {.width_x = 5, .width_delta = 3, .coded = true},
    {.width_x = 2, .width_delta = 3, .coded = true, .nearest = true},
    {.budget_bits = 3, .dither = true},
    {.budget_bits = 3, .dither = true, .coded = true},
    {.budget_bits = 1, .coded = true},
    {.budget_nmse = 0.01, .dither = true, .coded = true},
    {.budget_bits = 3, .dither = true, .coded = true, .svd = true},
    {.width_x = 4, .width_delta = 5, .svd = true},
    {.method = IQ_FACTOR_MSE, .levels = 4},
    {.method = IQ_FACTOR_MVU, .levels = 8, .coded = true},
    {.method = IQ_FACTOR_DITHERED, .width_x = 8, .width_delta = 8},
    {.method = IQ_FACTOR_DITHERED, .width_x = 2, .width_delta = 4, .coded = true},
};

START_TEST(test_ranks_and_shapes)
{
    static const size_t shapes[][2] = {{1, 1}, {1, 7}, {8, 1}, {17, 3}, {129, 257}, {33, 300}};
    for (int nranks = 1; nranks <= MOST_RANKS; nranks++)
        for (size_t s = 0; s < IQ_ARRAY_SIZE(shapes); s++) {
            size_t batch[MOST_RANKS];
            for (int r = 0; r < nranks; r++)
                batch[r] = ((size_t)(r + nranks) * 7 + s * 5) % 9; /* 0..8 */
            iq_factor_call_t call = shape(nranks, shapes[s][0], shapes[s][1], (nranks + (int)s) % 2 == 0);
            check_one_answer(specs[((size_t)nranks + s) % IQ_ARRAY_SIZE(specs)], call, batch, s % 2 == 0, 2, nranks % 2 == 0);
        }
}
END_TEST

START_TEST(test_specs_and_types)
{
    static const isgq_data_type_t types[] = {ISGQ_FLOAT32, ISGQ_FLOAT16, ISGQ_BFLOAT16};
    static const size_t batch[] = {5, 0, 200};
    for (size_t t = 0; t < IQ_ARRAY_SIZE(types); t++)
        for (size_t s = 0; s < IQ_ARRAY_SIZE(specs); s++) {
            iq_factor_call_t call = shape(3, 37, 21, true);
            call.datatype = types[t];
            check_one_answer(specs[s], call, batch, t == 1, 2.5, s % 2 == 0);
        }
}
END_TEST

/* Rows that span far more than the grid, in x against delta too, so that light and split rows occur. */
START_TEST(test_spanning_rows)
{
    static const size_t batch[] = {40, 40};
    for (size_t s = 0; s < IQ_ARRAY_SIZE(specs); s++) {
        check_one_answer(specs[s], shape(2, 9, 11, true), batch, false, 12, false);
        check_one_answer(specs[s], shape(2, 9, 11, false), batch, false, 12, true);
    }
}
END_TEST

START_TEST(test_accumulate)
{
    static const size_t batch[] = {6, 3};
    iq_factor_call_t call = shape(2, 10, 13, true);
    ranks_t *ranks = ranks_create(widths(4, 4), call, batch);
    float once[130], bias_once[13], twice[130], bias_twice[13];
    fill_normal(ranks, 3, false, 1);
    encode_all(ranks, 1);
    decode_all(ranks, false);
    product_all(ranks, false, false, once, bias_once);
    for (int i = 0; i < 130; i++)
        twice[i] = 1.5f;
    for (int j = 0; j < 13; j++)
        bias_twice[j] = -2;
    product_all(ranks, false, true, twice, bias_twice);
    for (int i = 0; i < 130; i++)
        ck_assert_float_eq(twice[i], 1.5f + once[i]);
    for (int j = 0; j < 13; j++)
        ck_assert_float_eq(bias_twice[j], -2 + bias_once[j]);
    ranks_destroy(ranks);
}
END_TEST

START_TEST(test_unaligned)
{
    static const size_t batch[] = {4};
    iq_factor_call_t call = shape(1, 6, 5, false);
    ranks_t *ranks = ranks_create(widths(4, 4), call, batch);
    float peaks[2], grad[30];
    char shifted_x[4 * 6 * 4 + 1], shifted_delta[4 * 5 * 4 + 1], blob[512], out[30 * 4 + 1];
    fill_normal(ranks, 3, false, 1);
    size_t bytes = encode_all(ranks, 1);
    decode_all(ranks, false);
    product_all(ranks, false, false, grad, NULL);
    memcpy(shifted_x + 1, ranks->x[0], sizeof(shifted_x) - 1);
    memcpy(shifted_delta + 1, ranks->delta[0], sizeof(shifted_delta) - 1);
    call = call_of(ranks, 0);
    iq_factor_prepare(&ranks->spec, &call, shifted_x + 1, shifted_delta + 1, ranks->state, peaks);
    ck_assert_mem_eq(peaks, ranks->peaks, sizeof(peaks));
    ck_assert_uint_eq(iq_factor_encode(&ranks->spec, &call, shifted_x + 1, shifted_delta + 1, ranks->state, peaks, blob + 1, NULL),
                      bytes);
    ck_assert_mem_eq(blob + 1, ranks->blob[0], bytes);
    product_all(ranks, false, false, out + 1, NULL);
    ck_assert_mem_eq(out + 1, grad, sizeof(grad));
    ranks_destroy(ranks);
}
END_TEST

/* One bad value on one rank: NaN in every element, by both ways. */
START_TEST(test_not_finite)
{
    static const size_t batch[] = {3, 2};
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t k = 0; k < 12; k++) {
        bool bias = k % 2 == 0;
        ranks_t *ranks = ranks_create(k < 6 ? widths(4, 4) : budget(3), shape(2, 4, 5, bias), batch);
        float grad[20] = {0}, sums[5] = {0};
        fill_normal(ranks, 1, false, 1);
        ((float *)(k % 4 < 2 ? ranks->x[1] : ranks->delta[1]))[7] = bad[k % 3];
        ck_assert_uint_eq(encode_all(ranks, 1), 16);
        decode_all(ranks, false);
        product_all(ranks, true, false, grad, bias ? sums : NULL);
        for (int way = 0; way < 2; way++) {
            for (int i = 0; i < 20; i++)
                ck_assert(isnan(grad[i]));
            for (int j = 0; bias && j < 5; j++)
                ck_assert(isnan(sums[j]));
            memset(grad, 0, sizeof(grad));
            memset(sums, 0, sizeof(sums));
            reduce_products(ranks, true, grad, sums);
        }
        ranks_destroy(ranks);
    }
}
END_TEST

START_TEST(test_zero_factors)
{
    static const size_t batch[] = {3, 0, 4};
    ranks_t *ranks = ranks_create(budget(4), shape(3, 4, 5, true), batch);
    float grad[20], bias[5], expected_bias[5] = {0, 0, 127, 0, 0};
    memset(grad, 1, sizeof(grad));
    ck_assert_uint_eq(encode_all(ranks, 1), 24); /* rows without content are free */
    decode_all(ranks, false);
    product_all(ranks, false, false, grad, bias);
    for (int i = 0; i < 20; i++)
        ck_assert(iq_float_bits(grad[i]) == 0);
    for (int j = 0; j < 5; j++)
        ck_assert(iq_float_bits(bias[j]) == 0);
    ((float *)ranks->delta[2])[7] = 127; /* X stays 0: the bias still counts */
    ck_assert_uint_gt(encode_all(ranks, 1), 24);
    decode_all(ranks, false);
    product_all(ranks, false, false, grad, bias);
    for (int j = 0; j < 5; j++)
        ck_assert_float_eq_tol(bias[j], expected_bias[j], 127 * 0.13f);
    ck_assert_float_eq(bias[0], 0);
    ck_assert_float_eq(grad[0], 0);
    ranks_destroy(ranks);
}
END_TEST

/* Shapes with nothing in them, and the values at the ends of float. */
START_TEST(test_extremes)
{
    static const size_t none[] = {0, 0}, some[] = {2, 2};
    static const double scales[] = {1e-44, 1e-38, 1e-20, 1e20, 1e30};
    check_one_answer(widths(4, 4), shape(2, 5, 5, true), none, false, 1, false);
    check_one_answer(budget(4), shape(2, 0, 5, true), some, false, 1, false);
    check_one_answer(budget(4), shape(2, 5, 0, true), some, false, 1, false);
    check_one_answer(widths(8, 2), shape(2, 0, 0, false), some, false, 1, false);
    for (size_t a = 0; a < IQ_ARRAY_SIZE(scales); a++)
        for (size_t b = 0; b < IQ_ARRAY_SIZE(scales); b++) {
            ranks_t *ranks = ranks_create(widths(8, 8), shape(2, 3, 4, true), some);
            float grad[12], bias[4];
            for (int r = 0; r < 2; r++)
                for (int i = 0; i < 8; i++) {
                    ((float *)ranks->delta[r])[i] = (float)scales[a];
                    ((float *)ranks->x[r])[i % 6] = (float)scales[b];
                }
            double exact = 4 * (double)(float)scales[a] * (double)(float)scales[b], mean = 0;
            /* Weights end at 2^-120: what is far below comes through at random, in the mean and never large. */
            uint64_t draws = scales[a] < 1e-30 ? 64 : 1;
            for (uint64_t draw = draws; draw > 0; draw--) {
                encode_all(ranks, draw);
                decode_all(ranks, false);
                product_all(ranks, false, false, grad, bias);
                mean += (double)grad[5] / (double)draws;
            }
            if (exact > 1e38)
                ck_assert(!isfinite(grad[5]));
            else if (scales[a] > 1e-30)
                ck_assert_float_eq_tol(bias[1], 4 * (float)scales[a], 0.02f * 4 * (float)scales[a]);
            else
                ck_assert_double_le(fabs((double)bias[1]), 1e-34);
            if (exact > 1e-33 && exact < 1e38)
                ck_assert_double_eq_tol(mean, exact, (draws > 1 ? 0.25 : 0.03) * exact);
            else if (exact <= 1e-33)
                ck_assert_double_le(fabs((double)grad[5]), 1e-32);
            ranks_destroy(ranks);
        }
}
END_TEST

START_TEST(test_sizes)
{
    iq_factor_call_t call = shape(4, 784, 1000, true);
    iq_factor_spec_t fixed = widths(4, 4), wide = widths(8, 8), some = budget(4), bad = widths(1, 4), big = widths(4, 9),
                     none = budget(1e-9);
    call.max_batch = 32;
    ck_assert_uint_eq(iq_factor_blob_bytes(&fixed, &call), 8 + 32 * (3 + 784 / 2 + 1000 / 2));
    ck_assert_uint_eq(iq_factor_blob_bytes(&some, &call), 4 * 32 * 1784 / 8 + 3 + 1784);
    ck_assert_uint_eq(iq_factor_blob_bytes(&bad, &call), 0);
    ck_assert_uint_eq(iq_factor_blob_bytes(&big, &call), 0);
    ck_assert_uint_eq(iq_factor_blob_bytes(&none, &call), 0);
    ck_assert_int_eq(iq_factor_sum_type(&fixed, &call), ISGQ_INT32);
    ck_assert_int_eq(iq_factor_sum_type(&some, &call), ISGQ_INT64);
    ck_assert_int_eq(iq_factor_sum_type(&wide, &call), ISGQ_INT64);
    call.max_batch = 2147483647 / (15 * 7 * 15 * 2048) / 4;
    ck_assert_int_eq(iq_factor_sum_type(&fixed, &call), ISGQ_INT32);
    call.max_batch += 1;
    ck_assert_int_eq(iq_factor_sum_type(&fixed, &call), ISGQ_INT64);
    call.max_batch = (1u << 23) / 4;
    ck_assert_uint_gt(iq_factor_blob_bytes(&fixed, &call), 0);
    call.max_batch += 1;
    ck_assert_uint_eq(iq_factor_blob_bytes(&fixed, &call), 0);
    call.max_batch = 1;
    call.m = (size_t)1 << 60;
    ck_assert_uint_eq(iq_factor_blob_bytes(&fixed, &call), 0);
    ck_assert_uint_eq(iq_factor_rows_layout(&call, SIZE_MAX / 4, NULL, NULL), 0);
}
END_TEST

START_TEST(test_local_gradient)
{
    static const size_t batch[] = {150};
    static const isgq_data_type_t types[] = {ISGQ_FLOAT32, ISGQ_FLOAT16, ISGQ_BFLOAT16};
    for (size_t t = 0; t < IQ_ARRAY_SIZE(types); t++) {
        iq_factor_call_t call = shape(1, 131, 261, true);
        call.datatype = types[t];
        ranks_t *ranks = ranks_create(widths(4, 4), call, batch);
        float *grad = malloc(131 * 261 * sizeof(*grad)), bias[261];
        double *exact = malloc(131 * 261 * sizeof(*exact)), exact_bias[261];
        fill_normal(ranks, 3, false, 1);
        exact_sums(ranks, exact, exact_bias);
        call = call_of(ranks, 0);
        for (size_t tile = 0; tile < iq_factor_product_tiles(&call); tile++)
            ck_assert_int_eq(iq_factor_local_gradient(&call, ranks->x[0], ranks->delta[0], grad, bias, tile, ranks->scratch), 0);
        for (size_t i = 0; i < 131 * 261; i++)
            ck_assert_double_eq_tol((double)grad[i], exact[i], 1e-5);
        for (size_t j = 0; j < 261; j++)
            ck_assert_double_eq_tol((double)bias[j], exact_bias[j], 1e-5);
        free(grad);
        free(exact);
        ranks_destroy(ranks);
    }
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("factor");
    TCase *one = tcase_create("one_answer"), *edges = tcase_create("edges"), *sizes = tcase_create("sizes");
    tcase_set_timeout(one, 120);
    tcase_set_timeout(edges, 120);
    tcase_add_test(one, test_ranks_and_shapes);
    tcase_add_test(one, test_specs_and_types);
    tcase_add_test(one, test_spanning_rows);
    tcase_add_test(edges, test_accumulate);
    tcase_add_test(edges, test_unaligned);
    tcase_add_test(edges, test_not_finite);
    tcase_add_test(edges, test_zero_factors);
    tcase_add_test(edges, test_extremes);
    tcase_add_test(edges, test_local_gradient);
    tcase_add_test(sizes, test_sizes);
    suite_add_tcase(suite, one);
    suite_add_tcase(suite, edges);
    suite_add_tcase(suite, sizes);
    return suite;
}
