/* SPDX-License-Identifier: Apache-2.0 */
/* The codecs `none`, `fp16` and `bf16` against references in wider arithmetic, and what holds for every codec of the table. */
#include "support/check_main.h"
#include "support/codec_run.h"
#include "support/require.h"

#include "base/status.h"
#include "codec/dense.h"
#include "codec/families.h"
#include "kernels/kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT 3001

/* Holds any integer type's values and, modulo 2^64, their sums and products. */
__extension__ typedef __int128 wide_t;
__extension__ typedef unsigned __int128 uwide_t;

static const isgq_red_op_t all_ops[] = {ISGQ_SUM, ISGQ_PROD, ISGQ_MAX, ISGQ_MIN, ISGQ_AVG};
static const int rank_counts[] = {1, 2, 3, 8};

static bool is_half(isgq_data_type_t type) { return type == ISGQ_FLOAT16 || type == ISGQ_BFLOAT16; }

/* ---- one element of any type ---- */

static uint16_t to_half(isgq_data_type_t type, float value)
{
    return type == ISGQ_FLOAT16 ? iq_float_to_f16(value) : iq_float_to_bf16(value);
}

static float from_half(isgq_data_type_t type, uint16_t half)
{
    return type == ISGQ_FLOAT16 ? iq_f16_to_float(half) : iq_bf16_to_float(half);
}

static void set_float(isgq_data_type_t type, void *array, size_t i, double value)
{
    if (type == ISGQ_FLOAT64)
        ((iq_f64_any_t *)array)[i] = value;
    else if (type == ISGQ_FLOAT32)
        ((iq_f32_any_t *)array)[i] = (float)value;
    else
        ((iq_u16_any_t *)array)[i] = to_half(type, (float)value);
}

static double get_float(isgq_data_type_t type, const void *array, size_t i)
{
    if (type == ISGQ_FLOAT64)
        return ((const iq_f64_any_t *)array)[i];
    return (double)(type == ISGQ_FLOAT32 ? ((const iq_f32_any_t *)array)[i] : from_half(type, ((const iq_u16_any_t *)array)[i]));
}

/* Integers sign- or zero-extended. */
static wide_t get_integer(isgq_data_type_t type, const void *array, size_t i)
{
    size_t bytes = iq_datatype_bytes(type);
    uint64_t bits = 0;
    memcpy(&bits, (const char *)array + i * bytes, bytes);
    bool is_negative = (type == ISGQ_INT8 || type == ISGQ_INT32 || type == ISGQ_INT64) && bits >> (8 * bytes - 1) != 0;
    return is_negative ? (wide_t)bits - ((wide_t)1 << 8 * bytes) : (wide_t)bits;
}

static bool is_integer(isgq_data_type_t type) { return type <= ISGQ_UINT64; }

static void fill(isgq_data_type_t type, void *array, size_t count)
{
    unsigned char *bytes = array;
    for (size_t i = 0; i < count * iq_datatype_bytes(type); i++)
        bytes[i] = (unsigned char)codec_random();
    for (size_t i = 0; !is_integer(type) && i < count; i++)
        set_float(type, array, i, (double)codec_random_unit() * 2);
}

static codec_run_t make_run(const iq_codec_t *codec, isgq_data_type_t type, isgq_red_op_t op, int nranks, size_t count)
{
    codec_run_t run = {.codec = *codec, .count = count};
    run.call = (iq_codec_call_t){.datatype = type, .op = op, .nranks = nranks, .seed = 7, .call = 9};
    for (int rank = 0; rank < nranks; rank++) {
        void *values = malloc(count * iq_datatype_bytes(type));
        fill(type, values, count);
        run.inputs[rank] = values;
    }
    return run;
}

static void free_run(codec_run_t *run)
{
    for (int rank = 0; rank < run->call.nranks; rank++)
        free((void *)(uintptr_t)run->inputs[rank]);
}

/* ---- none ---- */

/* What integers become: exact, then wrapped to the type by writing and reading it. */
static wide_t expected_integer(const codec_run_t *run, size_t i)
{
    isgq_data_type_t type = run->call.datatype;
    uwide_t total = (uwide_t)get_integer(type, run->inputs[0], i);
    uint64_t wrapped;
    for (int rank = 1; rank < run->call.nranks; rank++) {
        wide_t term = get_integer(type, run->inputs[rank], i);
        if (run->call.op == ISGQ_MAX)
            total = (uwide_t)((wide_t)total > term ? (wide_t)total : term);
        else if (run->call.op == ISGQ_MIN)
            total = (uwide_t)((wide_t)total < term ? (wide_t)total : term);
        else
            total = run->call.op == ISGQ_PROD ? total * (uwide_t)term : total + (uwide_t)term;
    }
    wrapped = (uint64_t)total;
    wide_t value = get_integer(type, &wrapped, 0); /* little-endian: the lower bytes */
    return run->call.op == ISGQ_AVG ? value / run->call.nranks : value;
}

/* Floats: the same operations in the accumulator's type, in rank order. */
static double expected_float(const codec_run_t *run, size_t i)
{
    isgq_data_type_t type = run->call.datatype;
    double total = get_float(type, run->inputs[0], i);
    for (int rank = 1; rank < run->call.nranks; rank++) {
        double term = get_float(type, run->inputs[rank], i);
        if (run->call.op == ISGQ_MAX)
            total = term > total ? term : total;
        else if (run->call.op == ISGQ_MIN)
            total = term < total ? term : total;
        else
            total = run->call.op == ISGQ_PROD ? total * term : total + term;
        if (type != ISGQ_FLOAT64)
            total = (double)(float)total; /* double rounding is harmless: 53 >= 2 * 24 + 2 */
    }
    if (run->call.op == ISGQ_AVG)
        total = type == ISGQ_FLOAT64 ? total / run->call.nranks : (double)(float)(total / run->call.nranks);
    return is_half(type) ? (double)from_half(type, to_half(type, (float)total)) : total;
}

START_TEST(none_is_exact)
{
    isgq_data_type_t type = (isgq_data_type_t)_i;
    uint64_t *out = malloc(COUNT * sizeof(*out));
    for (unsigned o = 0; o < 5; o++) {
        for (unsigned n = 0; n < 4; n++) {
            codec_run_t run = make_run(&iq_codec_none, type, all_ops[o], rank_counts[n], COUNT);
            ck_assert_int_eq(iq_codec_none.ops->supports(&iq_codec_none, type, all_ops[o]), ISGQ_SUCCESS);
            for (unsigned way = 0; way < CODEC_WAYS; way++) {
                codec_run(&run, (codec_way_t)way, way == CODEC_CHAIN, out);
                for (size_t i = 0; i < COUNT; i++) {
                    if (is_integer(type))
                        REQUIRE(get_integer(type, out, i) == expected_integer(&run, i));
                    else
                        REQUIRE(get_float(type, out, i) == expected_float(&run, i));
                }
            }
            free_run(&run);
        }
    }
    free(out);
}
END_TEST

START_TEST(none_accumulates_in_the_type)
{
    isgq_data_type_t type = (isgq_data_type_t)_i;
    size_t bytes = COUNT * iq_datatype_bytes(type);
    void *before = malloc(bytes), *plain = malloc(bytes), *decoded = malloc(bytes), *delivered = malloc(bytes);
    codec_run_t run = make_run(&iq_codec_none, type, ISGQ_AVG, 3, COUNT);
    fill(type, before, COUNT);
    memcpy(decoded, before, bytes);
    memcpy(delivered, before, bytes);
    codec_run(&run, CODEC_OWNER, 0, plain);
    run.call.accumulate = true;
    codec_run(&run, CODEC_OWNER, 1, decoded);
    codec_run(&run, CODEC_DELIVER, 1, delivered);
    ck_assert_mem_eq(decoded, delivered, bytes);
    for (size_t i = 0; i < COUNT; i++) {
        if (is_integer(type)) {
            uint64_t wrapped = (uint64_t)(get_integer(type, before, i) + get_integer(type, plain, i));
            REQUIRE(get_integer(type, decoded, i) == get_integer(type, &wrapped, 0));
        } else {
            uint64_t rounded;
            set_float(type, &rounded, 0, get_float(type, before, i) + get_float(type, plain, i));
            REQUIRE(get_float(type, decoded, i) == get_float(type, &rounded, 0));
        }
    }
    free_run(&run);
    free(before), free(plain), free(decoded), free(delivered);
}
END_TEST

/* NaN wins over everything, and the order of ranks does not matter, not even for the signs of zeros. */
START_TEST(none_maxima_ignore_the_order)
{
    static const float specials[] = {NAN, -NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1.0f, -1.0f};
    enum { N = 8 * 8 * 8 };
    static float a[N], b[N], c[N], forward[N], backward[N];
    static double da[N], db[N], dc[N], dforward[N], dbackward[N];
    for (int i = 0; i < N; i++) {
        da[i] = (double)(a[i] = specials[i % 8]);
        db[i] = (double)(b[i] = specials[i / 8 % 8]);
        dc[i] = (double)(c[i] = specials[i / 64]);
    }
    for (int op = ISGQ_MAX; op <= ISGQ_MIN; op++) {
        codec_run_t run = {.codec = iq_codec_none,
                           .call = {.datatype = ISGQ_FLOAT32, .op = (isgq_red_op_t)op, .nranks = 3},
                           .count = N,
                           .inputs = {a, b, c}};
        codec_run(&run, CODEC_DIRECT, 0, forward);
        codec_run(&(codec_run_t){run.codec, run.call, N, {c, b, a}}, CODEC_DIRECT, 0, backward);
        ck_assert_mem_eq(forward, backward, sizeof(forward));
        for (int i = 0; i < N; i++)
            REQUIRE(!isnan(forward[i]) == !(isnan(a[i]) || isnan(b[i]) || isnan(c[i])));
        REQUIRE(!signbit(forward[4 + 8 * 5 + 64 * 4]) == (op == ISGQ_MAX));
        run.call.datatype = ISGQ_FLOAT64;
        codec_run(&(codec_run_t){run.codec, run.call, N, {da, db, dc}}, CODEC_DIRECT, 0, dforward);
        codec_run(&(codec_run_t){run.codec, run.call, N, {dc, db, da}}, CODEC_DIRECT, 0, dbackward);
        ck_assert_mem_eq(dforward, dbackward, sizeof(dforward));
        for (int i = 0; i < N; i++)
            REQUIRE(isnan(dforward[i]) ? isnan(forward[i]) : (float)dforward[i] == forward[i]);
    }
}
END_TEST

START_TEST(none_integer_averages_truncate_toward_zero)
{
    int8_t a[] = {-7, 7, -128, 127, 1}, b[] = {0, 0, 0, 0, -2}, out[5];
    codec_run_t run = {
        .codec = iq_codec_none, .call = {.datatype = ISGQ_INT8, .op = ISGQ_AVG, .nranks = 2}, .count = 5, .inputs = {a, b}};
    codec_run(&run, CODEC_DIRECT, 0, out);
    ck_assert_int_eq(out[0], -3);
    ck_assert_int_eq(out[1], 3);
    ck_assert_int_eq(out[2], -64);
    ck_assert_int_eq(out[3], 63);
    ck_assert_int_eq(out[4], 0);
}
END_TEST

/* ---- casts ---- */

START_TEST(casts_round_each_contribution_and_the_sum)
{
    static const isgq_data_type_t types[] = {ISGQ_FLOAT32, ISGQ_FLOAT16, ISGQ_BFLOAT16};
    const iq_codec_t codec = {.ops = _i == 0 ? &iq_codec_fp16_ops : &iq_codec_bf16_ops};
    isgq_data_type_t wire = _i == 0 ? ISGQ_FLOAT16 : ISGQ_BFLOAT16;
    uint32_t *out = malloc(COUNT * sizeof(*out)), *again = malloc(COUNT * sizeof(*again));
    for (unsigned t = 0; t < 3; t++) {
        for (unsigned n = 0; n < 4; n++) {
            int nranks = rank_counts[n];
            isgq_red_op_t op = n % 2 ? ISGQ_AVG : ISGQ_SUM;
            codec_run_t run = make_run(&codec, types[t], op, nranks, COUNT);
            codec_run(&run, CODEC_DIRECT, 1, out);
            for (size_t i = 0; i < COUNT; i++) {
                float sum = 0.0f;
                for (int rank = 0; rank < nranks; rank++) {
                    float value = from_half(wire, to_half(wire, (float)get_float(types[t], run.inputs[rank], i)));
                    sum = rank == 0 ? value : sum + value;
                }
                sum = op == ISGQ_AVG ? sum / (float)nranks : sum;
                uint64_t expected;
                set_float(types[t], &expected, 0, (double)from_half(wire, to_half(wire, sum)));
                REQUIRE(get_float(types[t], out, i) == get_float(types[t], &expected, 0));
            }
            codec_run(&run, CODEC_OWNER, 0, again);
            ck_assert_mem_eq(out, again, COUNT * iq_datatype_bytes(types[t]));
            codec_run(&run, CODEC_CHAIN, 1, again);
            ck_assert_mem_eq(out, again, COUNT * iq_datatype_bytes(types[t]));
            free_run(&run);
        }
    }
    free(out), free(again);
}
END_TEST

START_TEST(casts_show_nan_and_infinity)
{
    float a[] = {NAN, 1, INFINITY, 65504, -INFINITY, 1e6f}, b[] = {1, NAN, 1, 65504, INFINITY, -1e6f}, out[6];
    codec_run_t run = {.codec = {.ops = &iq_codec_fp16_ops},
                       .call = {.datatype = ISGQ_FLOAT32, .op = ISGQ_SUM, .nranks = 2},
                       .count = 6,
                       .inputs = {a, b}};
    codec_run(&run, CODEC_DIRECT, 0, out);
    ck_assert(isnan(out[0]) && isnan(out[1]) && isnan(out[4]) && isnan(out[5]));
    ck_assert(isinf(out[2]) && isinf(out[3]));
    run.call.op = ISGQ_AVG;
    codec_run(&run, CODEC_DIRECT, 0, out);
    ck_assert(out[3] == 65504.0f); /* the average fits: only the end is rounded */
}
END_TEST

/* ---- every codec ---- */

/* With settings that it has: those of the first family that is made of it. */
static iq_codec_t some_codec(const iq_codec_ops_t *ops)
{
    for (const iq_family_t *family = iq_families; family->name != NULL; family++)
        if (family->codec.ops == ops)
            return codec_of_family(family->name);
    ck_abort_msg("no family is made of codec %s", ops->name);
}

START_TEST(codecs_say_what_they_take)
{
    for (const iq_codec_ops_t *const *ops = iq_codecs; *ops != NULL; ops++) {
        const iq_codec_t codec = some_codec(*ops);
        for (int type = 0; type < 10; type++) {
            for (int op = 0; op < 5; op++) {
                bool lossless = *ops == iq_codec_none.ops;
                bool small = type == ISGQ_FLOAT32 || type == ISGQ_FLOAT16 || type == ISGQ_BFLOAT16;
                bool adds = op == ISGQ_SUM || op == ISGQ_AVG;
                isgq_result_t expected = lossless || (small && adds) ? ISGQ_SUCCESS : ISGQ_ERR_UNSUPPORTED;
                ck_assert_int_eq((*ops)->supports(&codec, (isgq_data_type_t)type, (isgq_red_op_t)op), expected);
            }
        }
    }
    ck_assert_int_eq(iq_codec_none.ops->supports(&iq_codec_none, (isgq_data_type_t)10, ISGQ_SUM), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_int_eq(iq_codec_none.ops->supports(&iq_codec_none, ISGQ_INT8, (isgq_red_op_t)5), ISGQ_ERR_INVALID_ARGUMENT);
    const iq_codec_t fp16 = {.ops = &iq_codec_fp16_ops};
    fp16.ops->supports(&fp16, ISGQ_INT64, ISGQ_SUM);
    ck_assert_ptr_nonnull(strstr(iq_last_error(), "i64"));
    fp16.ops->supports(&fp16, ISGQ_FLOAT32, ISGQ_MAX);
    ck_assert_ptr_nonnull(strstr(iq_last_error(), "max"));
}
END_TEST

START_TEST(empty_spans_have_no_bytes)
{
    for (const iq_codec_ops_t *const *ops = iq_codecs; *ops != NULL; ops++) {
        const iq_codec_t codec = some_codec(*ops);
        iq_codec_call_t call = {.datatype = ISGQ_FLOAT32, .op = ISGQ_SUM, .nranks = 2};
        iq_span_t span = {100, 0};
        float nothing[1] = {5};
        ck_assert_uint_eq((*ops)->partial_bytes(&codec, &call, span, 1), 0);
        ck_assert_uint_eq((*ops)->partial_bytes(&codec, &call, span, 2), 0);
        ck_assert_uint_eq((*ops)->result_bytes(&codec, &call, span), 0);
        (*ops)->encode(&codec, &call, span, nothing, nothing);
        (*ops)->add_own(&codec, &call, span, nothing, nothing, true);
        ck_assert_int_eq((*ops)->add(&codec, &call, span, nothing, 1, nothing, true), ISGQ_SUCCESS);
        (*ops)->finish(&codec, &call, span, nothing, nothing);
        ck_assert_int_eq((*ops)->decode(&codec, &call, span, nothing, nothing), ISGQ_SUCCESS);
        (*ops)->deliver(&codec, &call, span, nothing, nothing);
        ck_assert(nothing[0] == 5);
    }
}
END_TEST

START_TEST(types_have_names_and_sizes)
{
    static const char *const names[] = {"i8", "u8", "i32", "u32", "i64", "u64", "f16", "f32", "f64", "bf16"};
    static const size_t sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
    static const char *const ops[] = {"sum", "prod", "max", "min", "avg"};
    for (int type = 0; type < 10; type++) {
        ck_assert_str_eq(iq_datatype_name((isgq_data_type_t)type), names[type]);
        ck_assert_uint_eq(iq_datatype_bytes((isgq_data_type_t)type), sizes[type]);
    }
    ck_assert_uint_eq(iq_datatype_bytes((isgq_data_type_t)10), 0);
    ck_assert_uint_eq(iq_datatype_bytes((isgq_data_type_t)-1), 0);
    ck_assert_str_eq(iq_datatype_name((isgq_data_type_t)77), "unknown");
    for (int op = 0; op < 5; op++)
        ck_assert_str_eq(iq_red_op_name((isgq_red_op_t)op), ops[op]);
    ck_assert_str_eq(iq_red_op_name((isgq_red_op_t)5), "unknown");
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("codec");
    TCase *tcase = tcase_create("none");
    tcase_set_timeout(tcase, 60);
    tcase_add_loop_test(tcase, none_is_exact, 0, 10);
    tcase_add_loop_test(tcase, none_accumulates_in_the_type, 0, 10);
    tcase_add_test(tcase, none_maxima_ignore_the_order);
    tcase_add_test(tcase, none_integer_averages_truncate_toward_zero);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("cast");
    tcase_set_timeout(tcase, 60);
    tcase_add_loop_test(tcase, casts_round_each_contribution_and_the_sum, 0, 2);
    tcase_add_test(tcase, casts_show_nan_and_infinity);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("table");
    tcase_add_test(tcase, codecs_say_what_they_take);
    tcase_add_test(tcase, empty_spans_have_no_bytes);
    tcase_add_test(tcase, types_have_names_and_sizes);
    suite_add_tcase(suite, tcase);
    return suite;
}
