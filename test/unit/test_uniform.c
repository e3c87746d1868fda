/* SPDX-License-Identifier: Apache-2.0 */
/* The codec `uniform`: exact sums on every route, error bounds, no bias, and what damaged or extreme input gets. */
#include "support/check_main.h"
#include "support/codec_run.h"
#include "support/require.h"

#include "base/status.h"
#include "base/util.h"
#include "codec/dense.h"
#include "kernels/kernels.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COUNT 5003

static float inputs[CODEC_RUN_MAX_RANKS][COUNT];
static float out[COUNT], again[COUNT];

static iq_codec_t make_codec(unsigned bits, size_t bucket, iq_rounding_t rounding, bool shared, int exact)
{
    return (iq_codec_t){
        .ops = &iq_codec_uniform_ops, .bits = bits, .bucket = bucket, .rounding = rounding, .shared = shared, .exact = exact};
}

static codec_run_t make_run(const iq_codec_t *codec, isgq_red_op_t op, int nranks)
{
    codec_run_t run = {.codec = *codec, .count = COUNT};
    run.call = (iq_codec_call_t){.datatype = ISGQ_FLOAT32, .op = op, .nranks = nranks, .seed = 7, .call = 9};
    for (int rank = 0; rank < nranks; rank++)
        run.inputs[rank] = inputs[rank];
    return run;
}

/* Buckets of very different sizes. */
static void fill_inputs(void)
{
    for (int rank = 0; rank < CODEC_RUN_MAX_RANKS; rank++) {
        for (int i = 0; i < COUNT; i++)
            inputs[rank][i] = codec_random_unit() * ldexpf(1.0f, -(i / 500));
    }
}

static double top_of(unsigned bits) { return bits == 1 ? 1.0 : (double)((1u << bits) - 2u); }

/* Largest magnitude of rank `rank` in the bucket that starts at element `begin`. */
static double bucket_max(const iq_codec_t *codec, int rank, size_t begin)
{
    size_t end = codec->bucket == 0 ? COUNT : iq_min(begin + codec->bucket, COUNT);
    double most = 0.0;
    for (size_t i = begin; i < end; i++)
        most = fmax(most, fabs((double)inputs[rank][i]));
    return most;
}

/* ---- exact sums ---- */

/* Whatever the route and the cuts, the same bits; any grid that can be exact. */
START_TEST(exact_sums_have_one_answer)
{
    static const size_t buckets[] = {32, 1024, 0, 40};
    unsigned bits = (unsigned)_i;
    fill_inputs();
    for (int nranks = 1; nranks <= 9; nranks++) {
        iq_codec_t codec = make_codec(bits, buckets[nranks % 4], nranks % 3 ? IQ_ROUND_STOCHASTIC : IQ_ROUND_NEAREST, true, 1);
        codec_run_t run = make_run(&codec, nranks % 2 ? ISGQ_SUM : ISGQ_AVG, nranks);
        codec_run(&run, CODEC_DIRECT, 0, out);
        for (unsigned way = 0; way < CODEC_WAYS; way++) {
            codec_run(&run, (codec_way_t)way, 1, again);
            ck_assert_mem_eq(again, out, sizeof(out));
            codec_run(&run, (codec_way_t)way, 8, again);
            ck_assert_mem_eq(again, out, sizeof(out));
        }
    }
}
END_TEST

/* Values on the grid come back exactly: multiples of the step sum to multiples of the step. */
START_TEST(values_on_the_grid_are_exact)
{
    unsigned bits = (unsigned)_i;
    int top = (int)top_of(bits), nranks = 5;
    for (int rank = 0; rank < nranks; rank++) {
        for (int i = 0; i < COUNT; i++)
            inputs[rank][i] = (float)(2 * (int)(codec_random() % (unsigned)(top + 1)) - top) * 0.5f;
        for (int i = 0; i < COUNT; i += 8)
            inputs[rank][i] = (float)top * 0.5f; /* the maximum of every bucket */
    }
    for (int shared = 0; shared <= 1; shared++) {
        iq_codec_t codec = make_codec(bits, 64, IQ_ROUND_STOCHASTIC, shared, shared);
        codec_run_t run = make_run(&codec, ISGQ_SUM, nranks);
        codec_run(&run, shared ? CODEC_CHAIN : CODEC_DELIVER, 64, out);
        for (int i = 0; i < COUNT; i++) {
            float sum = 0.0f;
            for (int rank = 0; rank < nranks; rank++)
                sum += inputs[rank][i];
            REQUIRE(out[i] == sum);
        }
    }
}
END_TEST

START_TEST(messages_have_the_stated_sizes)
{
    iq_codec_t shared = make_codec(4, 64, IQ_ROUND_STOCHASTIC, true, -1),
               local = make_codec(3, 64, IQ_ROUND_STOCHASTIC, false, 0);
    iq_codec_call_t call = {.datatype = ISGQ_FLOAT32, .nranks = 8};
    iq_span_t span = {60, 73}; /* buckets 0, 1 and 2 */
    ck_assert_uint_eq(shared.ops->partial_bytes(&shared, &call, span, 1), 10 * 4);
    ck_assert_uint_eq(shared.ops->partial_bytes(&shared, &call, span, 2), 10 * 5);
    ck_assert_uint_eq(shared.ops->partial_bytes(&shared, &call, span, 8), 10 * 7);
    ck_assert_uint_eq(shared.ops->result_bytes(&shared, &call, span), 10 * 7);
    ck_assert(shared.ops->result_is_exact(&shared, &call));
    call.nranks = 9;
    ck_assert_uint_eq(shared.ops->result_bytes(&shared, &call, span), 3 * 4 + 10 * 4);
    ck_assert(!shared.ops->result_is_exact(&shared, &call));
    ck_assert_uint_eq(local.ops->partial_bytes(&local, &call, span, 1), 3 * 4 + 10 * 3);
    ck_assert_uint_eq(local.ops->partial_bytes(&local, &call, span, 2), 73 * 4);
    ck_assert_uint_eq(local.ops->result_bytes(&local, &call, span), 3 * 4 + 10 * 3);
    local.bucket = 0;
    ck_assert_uint_eq(local.ops->result_bytes(&local, &call, span), 4 + 10 * 3);
}
END_TEST

/* ---- errors ---- */

/* Error bound of one bucket's sums: a step (nearest: half a step) for every rounding. Steps of the result follow from its own
 * maximum. */
static double bucket_bound(const iq_codec_t *codec, int nranks, bool exact, size_t begin)
{
    double top = top_of(codec->bits), part = codec->rounding == IQ_ROUND_NEAREST ? 0.5 : 1.0;
    double largest = 0.0, sum = 0.0;
    for (int rank = 0; rank < nranks; rank++) {
        double max = bucket_max(codec, rank, begin);
        largest = fmax(largest, max);
        sum += max;
    }
    if (codec->shared)
        sum = nranks * largest;
    double bound = part * 2.0 * sum / top;
    if (!exact)
        bound += part * 2.0 * (sum + bound) / top;
    return bound * (1 + 1e-5) + 1e-6 * sum;
}

static void check_bounds(const iq_codec_t *codec, isgq_red_op_t op, int nranks, bool exact)
{
    double divisor = op == ISGQ_AVG ? nranks : 1.0, bound = 0.0;
    for (size_t i = 0; i < COUNT; i++) {
        double sum = 0.0;
        if (i % codec->bucket == 0)
            bound = bucket_bound(codec, nranks, exact, i);
        for (int rank = 0; rank < nranks; rank++)
            sum += (double)inputs[rank][i];
        REQUIRE(fabs((double)out[i] - sum / divisor) <= bound / divisor);
    }
}

START_TEST(errors_stay_within_their_bounds)
{
    unsigned bits = (unsigned)_i;
    fill_inputs();
    for (int variant = 0; variant < 12; variant++) {
        bool shared = variant % 3 != 0;
        int exact = variant % 3 == 1;
        isgq_red_op_t op = variant % 2 ? ISGQ_AVG : ISGQ_SUM;
        iq_codec_t codec = make_codec(bits, 512, variant / 3 % 2 ? IQ_ROUND_NEAREST : IQ_ROUND_STOCHASTIC, shared, exact);
        codec_run_t run = make_run(&codec, op, 3);
        codec_run(&run, CODEC_DIRECT, 512, out);
        check_bounds(&codec, op, 3, exact);
        codec_run(&run, CODEC_OWNER, 512, again); /* cuts between buckets change nothing */
        ck_assert_mem_eq(again, out, sizeof(out));
        codec_run(&run, CODEC_DELIVER, 512, out);
        check_bounds(&codec, op, 3, true);
    }
}
END_TEST

/* Cuts inside buckets give the parts scales of their own: other bits, same bounds. */
START_TEST(cuts_inside_buckets_stay_within_bounds)
{
    fill_inputs();
    for (int shared = 0; shared <= 1; shared++) {
        iq_codec_t codec = make_codec(5, 512, IQ_ROUND_STOCHASTIC, shared, 0);
        codec_run_t run = make_run(&codec, ISGQ_SUM, 4);
        codec_run(&run, CODEC_OWNER, 1, out);
        check_bounds(&codec, ISGQ_SUM, 4, false);
        codec_run(&run, CODEC_CHAIN, 1, out);
        check_bounds(&codec, ISGQ_SUM, 4, false);
    }
}
END_TEST

/* One contribution (allgather) is rounded once. */
START_TEST(a_single_rank_is_rounded_once)
{
    fill_inputs();
    for (unsigned bits = 1; bits <= 8; bits++) {
        iq_codec_t codec = make_codec(bits, 256, IQ_ROUND_NEAREST, false, 0);
        codec_run_t run = make_run(&codec, ISGQ_SUM, 1);
        codec_run(&run, CODEC_OWNER, 256, out);
        check_bounds(&codec, ISGQ_SUM, 1, true);
    }
}
END_TEST

START_TEST(half_types_are_quantized_as_their_values)
{
    static uint16_t halves[2][COUNT], halves_out[COUNT], accumulated[COUNT];
    fill_inputs();
    for (int type = ISGQ_FLOAT16; type <= ISGQ_BFLOAT16; type += ISGQ_BFLOAT16 - ISGQ_FLOAT16) {
        for (int rank = 0; rank < 2; rank++) {
            for (int i = 0; i < COUNT; i++) {
                halves[rank][i] = type == ISGQ_FLOAT16 ? iq_float_to_f16(inputs[rank][i]) : iq_float_to_bf16(inputs[rank][i]);
                inputs[rank][i] = type == ISGQ_FLOAT16 ? iq_f16_to_float(halves[rank][i]) : iq_bf16_to_float(halves[rank][i]);
            }
        }
        iq_codec_t codec = make_codec(6, 128, IQ_ROUND_STOCHASTIC, true, 1);
        codec_run_t run = make_run(&codec, ISGQ_AVG, 2), half_run = run;
        half_run.call.datatype = (isgq_data_type_t)type;
        half_run.inputs[0] = halves[0];
        half_run.inputs[1] = halves[1];
        codec_run(&run, CODEC_DIRECT, 0, out);
        codec_run(&half_run, CODEC_OWNER, 1, halves_out);
        memcpy(accumulated, halves[0], sizeof(accumulated));
        half_run.call.accumulate = true;
        codec_run(&half_run, CODEC_DELIVER, 1, accumulated);
        for (int i = 0; i < COUNT; i++) {
            bool f16 = type == ISGQ_FLOAT16;
            REQUIRE(halves_out[i] == (f16 ? iq_float_to_f16(out[i]) : iq_float_to_bf16(out[i])));
            float value = f16 ? iq_f16_to_float(halves_out[i]) : iq_bf16_to_float(halves_out[i]);
            REQUIRE(accumulated[i] == (f16 ? iq_float_to_f16(inputs[0][i] + value) : iq_float_to_bf16(inputs[0][i] + value)));
        }
    }
}
END_TEST

/* ---- no bias ---- */

/* In standard errors: mean of n decoded draws of x in a bucket whose maximum is 1. */
static double z_of(const iq_codec_t *codec, float x, int nranks, uint64_t call)
{
    enum { N = 200000 };
    static float values[N], decoded[N];
    codec_run_t run = {.codec = *codec, .count = N};
    run.call = (iq_codec_call_t){.datatype = ISGQ_FLOAT32, .op = ISGQ_SUM, .nranks = nranks, .seed = 1234, .call = call};
    for (int i = 0; i < N; i++)
        values[i] = x;
    values[0] = 1.0f;
    for (int rank = 0; rank < nranks; rank++)
        run.inputs[rank] = values;
    codec_run(&run, CODEC_OWNER, 0, decoded);
    double step = 2.0 / top_of(codec->bits), sum = 0.0, square = 0.0, target = (double)x * nranks;
    for (int i = 1; i < N; i++) {
        double error = (double)decoded[i] - target;
        sum += error;
        square += error * error;
    }
    /* What float arithmetic and 24 random bits cannot resolve is no bias; nor is luck below one draw. */
    double resolution = step * nranks * 0x1p-20, deviation = sqrt(fmax(square / N, step * step / N) / N);
    return fmax(0.0, fabs(sum / (N - 1)) - resolution) / deviation;
}

START_TEST(stochastic_rounding_is_unbiased)
{
    static const float points[] = {1e-9f,    -1e-4f, 0.01f,        -0.3f, 0.123456f, 0.5f,
                                   -0.7071f, 0.999f, -0.99999994f, 1.0f,  -1.0f,     0.0f};
    unsigned bits = (unsigned)_i;
    for (unsigned k = 0; k < sizeof(points) / sizeof(points[0]); k++) {
        iq_codec_t exact = make_codec(bits, 0, IQ_ROUND_STOCHASTIC, true, 1);
        iq_codec_t twice = make_codec(bits, 0, IQ_ROUND_STOCHASTIC, true, 0);
        iq_codec_t local = make_codec(bits, 0, IQ_ROUND_STOCHASTIC, false, 0);
        ck_assert_msg(z_of(&exact, points[k], 1, k) < 5.0, "exact, 1 rank, %g", (double)points[k]);
        ck_assert_msg(z_of(&exact, points[k], 2, k) < 5.0, "exact, 2 ranks, %g", (double)points[k]);
        ck_assert_msg(z_of(&twice, points[k], 2, k) < 5.0, "requantized, %g", (double)points[k]);
        ck_assert_msg(z_of(&local, points[k], 2, k) < 5.0, "local, %g", (double)points[k]);
    }
}
END_TEST

/* The same test must see a bias when there is one. */
START_TEST(nearest_rounding_is_seen_to_be_biased)
{
    iq_codec_t codec = make_codec(4, 0, IQ_ROUND_NEAREST, true, 1);
    ck_assert(z_of(&codec, 0.3f, 1, 0) > 100.0);
}
END_TEST

/* Maxima of every mantissa keep their code: never beyond the grid, never wrapped around to the other sign. */
START_TEST(maxima_stay_on_the_grid)
{
    static float values[COUNT];
    int lower = 0;
    for (int round = 0; round < 200; round++) {
        unsigned bits = 1 + (unsigned)round % 8;
        iq_codec_t codec = make_codec(bits, 0, IQ_ROUND_STOCHASTIC, false, 0);
        float max = fabsf(codec_random_unit()) + 0x1p-20f;
        codec_run_t run = {.codec = codec,
                           .count = COUNT,
                           .inputs = {values},
                           .call = {.datatype = ISGQ_FLOAT32, .nranks = 1, .seed = (uint64_t)round}};
        for (int i = 0; i < COUNT; i++)
            values[i] = i % 2 ? max : -max;
        codec_run(&run, CODEC_DIRECT, 0, out);
        for (int i = 0; i < COUNT; i++) {
            bool is_whole = fabs((double)out[i] - (double)values[i]) <= 3e-7 * (double)max;
            REQUIRE(fabs((double)out[i]) <= (double)max * (1 + 3e-7) && signbit(out[i]) == signbit(values[i]));
            lower += !is_whole;
        }
    }
    ck_assert_int_le(lower, 100); /* of 10^6: 1 / step is rounded, so a maximum may lie 10^-7 below its code */
}
END_TEST

START_TEST(random_bits_depend_on_rank_call_and_seed_only)
{
    iq_codec_t codec = make_codec(2, 0, IQ_ROUND_STOCHASTIC, true, 0);
    codec_run_t run = make_run(&codec, ISGQ_SUM, 2);
    float one = 1.0f;
    size_t bytes;
    iq_span_t span = {0, COUNT};
    for (int i = 0; i < COUNT; i++)
        inputs[0][i] = inputs[1][i] = 0.5f;
    codec_run_t next_call = run, next_seed = run;
    next_call.call.call++;
    next_seed.call.seed++;
    unsigned char *first = codec_run_message(&run, 0, span, &one, &bytes);
    unsigned char *other_rank = codec_run_message(&run, 1, span, &one, &bytes);
    unsigned char *other_call = codec_run_message(&next_call, 0, span, &one, &bytes);
    unsigned char *other_seed = codec_run_message(&next_seed, 0, span, &one, &bytes);
    unsigned char *same = codec_run_message(&run, 0, span, &one, &bytes);
    ck_assert(memcmp(first + 1, other_rank + 1, bytes) != 0);
    ck_assert(memcmp(first + 1, other_call + 1, bytes) != 0);
    ck_assert(memcmp(first + 1, other_seed + 1, bytes) != 0);
    ck_assert_mem_eq(first + 1, same + 1, bytes);

    /* A requantized result does not tell who owned it. */
    uint32_t sums[COUNT];
    unsigned char *results[2];
    for (int i = 0; i < COUNT; i++)
        sums[i] = codec_random() % 5;
    for (int rank = 0; rank < 2; rank++) {
        iq_codec_call_t call = {.op = ISGQ_SUM, .nranks = 2, .rank = rank, .seed = 7, .call = 9, .scales = &one};
        bytes = codec.ops->result_bytes(&codec, &call, span);
        results[rank] = malloc(bytes);
        codec.ops->finish(&codec, &call, span, sums, results[rank]);
    }
    ck_assert_mem_eq(results[0], results[1], bytes);
    free(first), free(other_rank), free(other_call), free(other_seed), free(same), free(results[0]), free(results[1]);
}
END_TEST

/* ---- extreme and damaged input ---- */

/* One bucket of two ranks through every kind of uniform codec. */
static void run_bucket(float a, float b, int variant)
{
    iq_codec_t codec = make_codec(1 + (unsigned)variant % 8, 64, variant / 8 % 2 ? IQ_ROUND_NEAREST : IQ_ROUND_STOCHASTIC,
                                  variant % 3 != 0, variant % 3 == 1);
    codec_run_t run = make_run(&codec, ISGQ_SUM, 2);
    fill_inputs();
    for (int i = 64; i < 128; i++)
        inputs[0][i] = inputs[1][i] = 0.0f;
    inputs[0][100] = a;
    inputs[1][101] = b;
    codec_run(&run, variant % 3 == 1 && variant % 2 ? CODEC_CHAIN : CODEC_DIRECT, 64, out);
}

START_TEST(nan_and_infinity_spoil_their_bucket_visibly)
{
    static const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    for (int variant = 0; variant < 48; variant++) {
        run_bucket(variant % 2 ? bad[variant % 4] : 0.0f, variant % 2 ? 0.0f : bad[variant / 2 % 4], variant);
        for (int i = 0; i < COUNT; i++)
            REQUIRE(!isnan(out[i]) == !(i >= 64 && i < 128));
        ck_assert(iq_float_bits(out[64]) == 0x7fc00000u);
    }
}
END_TEST

START_TEST(zeros_stay_zero)
{
    for (int variant = 0; variant < 48; variant++) {
        run_bucket(0.0f, 0.0f, variant);
        for (int i = 64; i < 128; i++)
            REQUIRE(out[i] == 0.0f);
        if (variant % 8 == 0)
            continue; /* one bit has no zero */
        run_bucket(1.0f, -1.0f, variant);
        for (int i = 64; i < 128; i++)
            REQUIRE(i == 100 || i == 101 || out[i] == 0.0f);
    }
}
END_TEST

START_TEST(tiny_and_huge_buckets_are_finite)
{
    static const float sizes[] = {0x1p-149f, 0x1p-130f, 0x1p-126f, 0x1p-121f, 0x1p-119f, 1e30f, 0x1p125f, FLT_MAX / 4};
    for (int variant = 0; variant < 48; variant++) {
        for (unsigned k = 0; k < sizeof(sizes) / sizeof(sizes[0]); k++) {
            double top = top_of(1 + (unsigned)variant % 8), scale = fmax((double)sizes[k], 0x1p-120);
            run_bucket(sizes[k], -sizes[k], variant);
            /* two contributions and perhaps the sum are off by a step each (one bit: of the larger sum) */
            double bound = 2 * 2 * scale / top + 2 * 4 * scale / top + 1e-6 * scale;
            REQUIRE(fabs((double)out[100] - (double)sizes[k]) <= bound && fabs((double)out[101] + (double)sizes[k]) <= bound);
        }
    }
    run_bucket(FLT_MAX, 0.0f, 22); /* beyond this sums may overflow, but a lone FLT_MAX is not NaN */
    ck_assert(!isnan(out[100]) && out[100] > 3e38f);
}
END_TEST

static isgq_result_t add_message(const codec_run_t *run, const float *scales, const void *message, int parts)
{
    static float acc[COUNT];
    iq_codec_call_t call = run->call;
    call.scales = scales;
    return run->codec.ops->add(&run->codec, &call, (iq_span_t){0, run->count}, message, parts, acc, true);
}

START_TEST(damaged_messages_are_rejected)
{
    iq_codec_t shared = make_codec(4, 64, IQ_ROUND_STOCHASTIC, true, 1), local = make_codec(4, 64, IQ_ROUND_STOCHASTIC, false, 0);
    codec_run_t run = make_run(&shared, ISGQ_SUM, 3), local_run = make_run(&local, ISGQ_SUM, 3);
    unsigned char message[64] = {0};
    float scales[1] = {1.0f}, bad[] = {-1.0f, NAN, -0.0f, -INFINITY};
    run.count = local_run.count = 13; /* two groups: 8 bytes of codes, the last 12 bits unused */

    message[3] = 0xf0; /* code 15 of 0..14 */
    ck_assert_int_eq(add_message(&run, scales, message, 1), ISGQ_ERR_CORRUPT);
    ck_assert_ptr_nonnull(strstr(iq_last_error(), "15"));
    message[3] = 0xe0;
    ck_assert_int_eq(add_message(&run, scales, message, 1), ISGQ_SUCCESS);
    message[6] = 0x10; /* padding */
    ck_assert_int_eq(add_message(&run, scales, message, 1), ISGQ_ERR_CORRUPT);

    memset(message, 0, sizeof(message));
    message[0] = 29; /* of 0..28 in 5 bits */
    ck_assert_int_eq(add_message(&run, scales, message, 2), ISGQ_ERR_CORRUPT);
    message[0] = 28;
    ck_assert_int_eq(add_message(&run, scales, message, 2), ISGQ_SUCCESS);
    message[0] = 43; /* a result of 3 ranks: 0..42 in 6 bits */
    iq_codec_call_t call = run.call;
    call.scales = scales;
    ck_assert_int_eq(shared.ops->decode(&shared, &call, (iq_span_t){0, 13}, message, out), ISGQ_ERR_CORRUPT);
    message[0] = 42;
    ck_assert_int_eq(shared.ops->decode(&shared, &call, (iq_span_t){0, 13}, message, out), ISGQ_SUCCESS);

    for (int i = 0; i < 4; i++) {
        memset(message, 0, sizeof(message));
        memcpy(message, &bad[i], 4);
        ck_assert_int_eq(add_message(&local_run, NULL, message, 1), ISGQ_ERR_CORRUPT);
        ck_assert_int_eq(local.ops->decode(&local, &local_run.call, (iq_span_t){0, 13}, message, out), ISGQ_ERR_CORRUPT);
    }
    memset(message, 0, sizeof(message));
    ck_assert_int_eq(add_message(&local_run, NULL, message, 1), ISGQ_SUCCESS);
    memset(message + 4, 0xff, 4);
    ck_assert_int_eq(local.ops->decode(&local, &local_run.call, (iq_span_t){0, 13}, message, out), ISGQ_ERR_CORRUPT);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("uniform");
    TCase *tcase = tcase_create("sums");
    tcase_set_timeout(tcase, 120);
    tcase_add_loop_test(tcase, exact_sums_have_one_answer, 1, 9);
    tcase_add_loop_test(tcase, values_on_the_grid_are_exact, 1, 9);
    tcase_add_test(tcase, messages_have_the_stated_sizes);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("errors");
    tcase_set_timeout(tcase, 120);
    tcase_add_loop_test(tcase, errors_stay_within_their_bounds, 1, 9);
    tcase_add_test(tcase, cuts_inside_buckets_stay_within_bounds);
    tcase_add_test(tcase, a_single_rank_is_rounded_once);
    tcase_add_test(tcase, half_types_are_quantized_as_their_values);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("bias");
    tcase_set_timeout(tcase, 120);
    tcase_add_loop_test(tcase, stochastic_rounding_is_unbiased, 1, 9);
    tcase_add_test(tcase, nearest_rounding_is_seen_to_be_biased);
    tcase_add_test(tcase, maxima_stay_on_the_grid);
    tcase_add_test(tcase, random_bits_depend_on_rank_call_and_seed_only);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("extremes");
    tcase_set_timeout(tcase, 120);
    tcase_add_test(tcase, nan_and_infinity_spoil_their_bucket_visibly);
    tcase_add_test(tcase, zeros_stay_zero);
    tcase_add_test(tcase, tiny_and_huge_buckets_are_finite);
    tcase_add_test(tcase, damaged_messages_are_rejected);
    suite_add_tcase(suite, tcase);
    return suite;
}
