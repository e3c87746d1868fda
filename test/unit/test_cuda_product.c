/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `product` and `convert` of module "cuda" against their description, bit for bit: all types, with shapes that fill no tile. A
 * reference in plain C sums codes in 64-bit integers, and values in double in the order of rows: products of two floats are exact
 * there.
 */
#include "support/check_main.h"
#include "support/cuda_box.h"
#include "support/require.h"

#include "kernels/quant_math.h"

#include <math.h>
#include <string.h>

static const isgq_data_type_t float_types[] = {ISGQ_FLOAT32, ISGQ_FLOAT16, ISGQ_BFLOAT16};

static size_t type_bytes(isgq_data_type_t type)
{
    return type == ISGQ_INT64 ? 8 : type == ISGQ_FLOAT16 || type == ISGQ_BFLOAT16 ? 2 : 4;
}

/* ---- the reference ---- */

static float load_value(isgq_data_type_t type, const void *data, size_t i)
{
    if (type == ISGQ_FLOAT32)
        return ((const float *)data)[i];
    uint16_t half = ((const uint16_t *)data)[i];
    return type == ISGQ_FLOAT16 ? iq_f16_to_float(half) : iq_bf16_to_float(half);
}

static void store_value(isgq_data_type_t type, void *data, size_t i, float value)
{
    if (type == ISGQ_FLOAT32)
        ((float *)data)[i] = value;
    else
        ((uint16_t *)data)[i] = type == ISGQ_FLOAT16 ? iq_float_to_f16(value) : iq_float_to_bf16(value);
}

/* Element i of the outcome, on the host's copy. */
static void store_outcome(const iq_cuda_outcome_t *outcome, void *data, size_t i, double sum)
{
    if (outcome->type == ISGQ_INT32) {
        ((int32_t *)data)[i] = (int32_t)sum;
    } else if (outcome->type == ISGQ_INT64) {
        ((int64_t *)data)[i] = (int64_t)sum;
    } else {
        float before = load_value(outcome->type, data, i);
        store_value(outcome->type, data, i, (float)(sum * outcome->scale / outcome->divisor));
        if (outcome->accumulate)
            store_value(outcome->type, data, i, before + load_value(outcome->type, data, i));
    }
}

static bool same(isgq_data_type_t type, const void *due, const void *found, size_t count)
{
    size_t bytes = type_bytes(type);
    for (size_t i = 0; i < count; i++)
        if (memcmp((const char *)due + i * bytes, (const char *)found + i * bytes, bytes) != 0 &&
            (type == ISGQ_INT32 || type == ISGQ_INT64 || !isnan(load_value(type, due, i)) || !isnan(load_value(type, found, i))))
            return false;
    return true;
}

/* ---- inputs ---- */

static void fill_values(isgq_data_type_t type, const box_t *box)
{
    for (size_t i = 0; i < box->bytes / type_bytes(type); i++)
        store_value(type, box->host, i, random_below(5) == 0 ? 0 : (float)((double)random_bits() / 2147483648.0 - 1.0));
    box_push(box);
}

/* Codes as those of eight bits, of either sign. */
static void fill_codes(const box_t *box, int most)
{
    for (size_t i = 0; i < box->bytes / 2; i++)
        ((int16_t *)(void *)box->host)[i] = (int16_t)((int)random_below((uint32_t)(2 * most + 1)) - most);
    box_push(box);
}

static void fill_weights(const box_t *box, int64_t most)
{
    for (size_t i = 0; i < box->bytes / 8; i++)
        ((int64_t *)(void *)box->host)[i] = random_below(8) == 0 ? most : (int64_t)random_bits() % (most + 1);
    box_push(box);
}

static iq_cuda_outcome_t random_outcome(isgq_data_type_t type, const box_t *box)
{
    static const int divisors[] = {1, 2, 3, 7, 64, 1000};
    iq_cuda_outcome_t outcome = {.type = type,
                                 .data = box->device,
                                 .scale = ldexp(1, (int)random_below(24) - 56),
                                 .divisor = divisors[random_below(6)],
                                 .accumulate = random_below(2) == 0};
    if (random_below(16) == 0)
        outcome.scale = (double)NAN;
    return outcome;
}

/* A box for `count` elements of the outcome: finite ones to add to. */
static box_t outcome_box(isgq_data_type_t type, size_t count)
{
    size_t bytes = type_bytes(type);
    box_t box = box_new(count * bytes, bytes);
    if (type != ISGQ_INT32 && type != ISGQ_INT64)
        fill_values(type, &box);
    return box;
}

/* ---- products ---- */

static const struct {
    size_t rows, m, n;
} shapes[] = {{0, 3, 5},   {1, 1, 1},    {16, 64, 64}, {17, 65, 63}, {40, 130, 71},
              {5, 1, 400}, {33, 200, 1}, {3, 0, 7},    {3, 7, 0},    {31, 1, 64}};
#define SHAPES (sizeof(shapes) / sizeof(shapes[0]))

/* `ones`: no q. */
static void try_codes(isgq_data_type_t type, size_t shape, bool ones)
{
    size_t rows = shapes[shape].rows, m = ones ? 1 : shapes[shape].m, n = shapes[shape].n;
    bool narrow = type == ISGQ_INT32;
    box_t weights = box_new(rows * 8, 8), q = box_new(rows * m * 2, 2), p = box_new(rows * n * 2, 6),
          dst = outcome_box(type, m * n);
    fill_weights(&weights, narrow ? 1000 : (int64_t)1 << 32); /* 40 * 2^32 * 255 * 127 is below 2^53 */
    fill_codes(&q, 255);
    fill_codes(&p, 127);
    iq_cuda_product_t product = {.codes = true,
                                 .weights = (const int64_t *)(void *)weights.device,
                                 .q = ones ? NULL : q.device,
                                 .p = p.device,
                                 .rows = rows,
                                 .m = m,
                                 .n = n,
                                 .outcome = random_outcome(type, &dst)};
    REQUIRE(cuda->product(0, cuda_stream, &product) == ISGQ_SUCCESS);
    const unsigned char *found = box_result(&dst);
    for (size_t i = 0; i < m * n; i++) {
        int64_t sum = 0;
        for (size_t r = 0; r < rows; r++)
            sum += ((int64_t *)(void *)weights.host)[r] * (ones ? 1 : ((int16_t *)(void *)q.host)[r * m + i / n]) *
                   ((int16_t *)(void *)p.host)[r * n + i % n];
        store_outcome(&product.outcome, dst.host, i, (double)sum);
    }
    ck_assert_msg(same(type, dst.host, found, m * n), "%zu rows of codes, %zu x %zu, to type %d: other bits", rows, m, n,
                  (int)type);
    box_free(&weights);
    box_free(&q);
    box_free(&p);
    box_free(&dst);
}

START_TEST(products_of_codes_are_exact)
{
    static const isgq_data_type_t types[] = {ISGQ_FLOAT32, ISGQ_FLOAT16, ISGQ_BFLOAT16, ISGQ_INT32, ISGQ_INT64};
    for (size_t shape = 0; shape < SHAPES; shape++)
        for (int type = 0; type < 5; type++)
            try_codes(types[type], shape, (shape + (size_t)type) % 4 == 3);
}
END_TEST

static void try_values(isgq_data_type_t type, size_t shape, bool ones)
{
    size_t rows = shapes[shape].rows, m = ones ? 1 : shapes[shape].m, n = shapes[shape].n, bytes = type_bytes(type);
    box_t q = box_new(rows * m * bytes, bytes), p = box_new(rows * n * bytes, 3 * bytes), dst = outcome_box(ISGQ_FLOAT32, m * n);
    fill_values(type, &q);
    fill_values(type, &p);
    iq_cuda_product_t product = {.type = type,
                                 .q = ones ? NULL : q.device,
                                 .p = p.device,
                                 .rows = rows,
                                 .m = m,
                                 .n = n,
                                 .outcome = {.type = ISGQ_FLOAT32, .data = dst.device, .scale = 1, .divisor = 1}};
    REQUIRE(cuda->product(0, cuda_stream, &product) == ISGQ_SUCCESS);
    const unsigned char *found = box_result(&dst);
    for (size_t i = 0; i < m * n; i++) {
        double sum = 0;
        for (size_t r = 0; r < rows; r++)
            sum +=
                (ones ? 1.0 : (double)load_value(type, q.host, r * m + i / n)) * (double)load_value(type, p.host, r * n + i % n);
        store_outcome(&product.outcome, dst.host, i, sum);
    }
    ck_assert_msg(same(ISGQ_FLOAT32, dst.host, found, m * n), "%zu rows of type %d, %zu x %zu: other bits", rows, (int)type, m,
                  n);
    box_free(&q);
    box_free(&p);
    box_free(&dst);
}

START_TEST(products_of_values_keep_the_order_of_rows)
{
    for (size_t shape = 0; shape < SHAPES; shape++)
        for (size_t type = 0; type < 3; type++)
            try_values(float_types[type], shape, (shape + type) % 4 == 3);
}
END_TEST

/* What is not finite shows in its row and column and nowhere else: tiles are filled up with zeros. */
START_TEST(what_is_not_finite_stays_in_its_place)
{
    enum { ROWS = 3, M = 70, N = 66 };
    box_t q = box_new(ROWS * M * 4, 4), p = box_new(ROWS * N * 4, 4), dst = outcome_box(ISGQ_FLOAT32, M * N);
    fill_values(ISGQ_FLOAT32, &q);
    fill_values(ISGQ_FLOAT32, &p);
    ((float *)(void *)q.host)[M + 69] = NAN;
    ((float *)(void *)p.host)[2 * N + 65] = INFINITY;
    ((float *)(void *)q.host)[2 * M] = 1;
    box_push(&q);
    box_push(&p);
    iq_cuda_product_t product = {.type = ISGQ_FLOAT32,
                                 .q = q.device,
                                 .p = p.device,
                                 .rows = ROWS,
                                 .m = M,
                                 .n = N,
                                 .outcome = {.type = ISGQ_FLOAT32, .data = dst.device, .scale = 1, .divisor = 1}};
    REQUIRE(cuda->product(0, cuda_stream, &product) == ISGQ_SUCCESS);
    const float *found = (const float *)(const void *)box_result(&dst);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++)
            REQUIRE(i == 69 ? isnan(found[i * N + j]) : j == 65 ? !isfinite(found[i * N + j]) : isfinite(found[i * N + j]));
    REQUIRE(isinf(found[65]));
    box_free(&q);
    box_free(&p);
    box_free(&dst);
}
END_TEST

/* ---- conversions ---- */

static void try_convert(isgq_data_type_t from, isgq_data_type_t to, size_t count)
{
    box_t src = box_new(count * type_bytes(from), type_bytes(from)), dst = outcome_box(to, count);
    for (size_t i = 0; i < count && from == ISGQ_INT64; i++) /* below 2^53 */
        ((int64_t *)(void *)src.host)[i] >>= 11 + random_below(50);
    box_push(&src);
    iq_cuda_convert_t convert = {.type = from, .src = src.device, .outcome = random_outcome(to, &dst), .count = count};
    REQUIRE(cuda->convert(0, cuda_stream, &convert) == ISGQ_SUCCESS);
    const unsigned char *found = box_result(&dst);
    for (size_t i = 0; i < count; i++)
        store_outcome(&convert.outcome, dst.host, i,
                      from == ISGQ_INT32 ? (double)((int32_t *)(void *)src.host)[i] : (double)((int64_t *)(void *)src.host)[i]);
    ck_assert_msg(same(to, dst.host, found, count), "%zu sums of type %d to type %d: other bits", count, (int)from, (int)to);
    box_free(&src);
    box_free(&dst);
}

START_TEST(sums_become_values)
{
    static const size_t counts[] = {0, 1, 255, 257, 40001};
    for (int i = 0; i < 5; i++)
        for (int type = 0; type < 3; type++)
            for (int wide = 0; wide < 2; wide++)
                for (int again = 0; again < 4; again++)
                    try_convert(wide ? ISGQ_INT64 : ISGQ_INT32, float_types[type], counts[i]);
}
END_TEST

START_TEST(other_types_are_refused)
{
    iq_cuda_product_t product = {.codes = true, .m = 1, .n = 1, .outcome = {.type = ISGQ_UINT8}};
    iq_cuda_convert_t convert = {.type = ISGQ_FLOAT32, .count = 1, .outcome = {.type = ISGQ_FLOAT32}};
    ck_assert_int_eq(cuda->product(0, cuda_stream, &product), ISGQ_ERR_INTERNAL);
    product = (iq_cuda_product_t){.type = ISGQ_FLOAT16, .m = 1, .n = 1, .outcome = {.type = ISGQ_FLOAT16}};
    ck_assert_int_eq(cuda->product(0, cuda_stream, &product), ISGQ_ERR_INTERNAL);
    ck_assert_int_eq(cuda->convert(0, cuda_stream, &convert), ISGQ_ERR_INTERNAL);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("cuda_product");
    TCase *product = tcase_create("product");
    tcase_add_checked_fixture(product, cuda_start, cuda_end);
    tcase_add_test(product, products_of_codes_are_exact);
    tcase_add_test(product, products_of_values_keep_the_order_of_rows);
    tcase_add_test(product, what_is_not_finite_stays_in_its_place);
    tcase_add_test(product, other_types_are_refused);
    suite_add_tcase(suite, product);
    TCase *convert = tcase_create("convert");
    tcase_add_checked_fixture(convert, cuda_start, cuda_end);
    tcase_add_test(convert, sums_become_values);
    suite_add_tcase(suite, convert);
    return suite;
}
