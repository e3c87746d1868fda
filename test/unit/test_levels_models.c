/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The models of codec `levels`: published vectors, levels against brute force, bias on fixed projections, errors against the closed
 * form and published figures.
 */
#include "support/check_main.h"
#include "support/codec_run.h"
#include "support/require.h"

#include "base/util.h"
#include "codec/levels.h"
#include "kernels/philox.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = IQ_LEVELS_BUCKET_MOST, SIZE = 2048 };

static const float vector[] = {-4, -1, 0, 1, 2, 3, 9}; /* algorithms of section 5 are worked out on it */

/* ---- one bucket, once ---- */

typedef struct once {
    float levels[IQ_LEVELS_HEADER_MOST / sizeof(float)]; /* the header */
    float values[MOST];                                  /* what it decodes to */
} once_t;

static void code_once(const iq_codec_t *codec, uint64_t call_number, const float *values, size_t count, once_t *once)
{
    unsigned char message[4 * MOST];
    iq_codec_call_t call = {.datatype = ISGQ_FLOAT32, .op = ISGQ_SUM, .nranks = 2, .seed = 5, .call = call_number};
    iq_span_t span = {0, count};
    size_t header = codec->model->header != NULL ? codec->model->header(codec) : codec->model->header_bytes;
    REQUIRE(count <= codec->bucket && codec->ops->partial_bytes(codec, &call, span, 1) <= sizeof(message));
    codec->ops->encode(codec, &call, span, values, message);
    memcpy(once->levels, message, header);
    REQUIRE(codec->ops->add(codec, &call, span, message, 1, once->values, true) == ISGQ_SUCCESS);
}

static double square(double value) { return value * value; }

/* ---- published vectors ---- */

/* What random rounding to these levels adds: sum of (upper - v)(v - lower). */
static double rounding_variance(const float *levels, unsigned count, const float *values, size_t n)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        unsigned k = 0;
        while (k + 2 < count && values[i] >= levels[k + 1])
            k++;
        REQUIRE(levels[k] <= values[i] && values[i] <= levels[k + 1]);
        sum += ((double)levels[k + 1] - (double)values[i]) * ((double)values[i] - (double)levels[k]);
    }
    return sum;
}

START_TEST(orq_has_its_vector)
{
    static const float three[] = {-4, 2, 9}, five[] = {-4, 0, 2, 3, 9};
    iq_codec_t codec = codec_of_family("orq-3");
    once_t once;
    code_once(&codec, 1, vector, 7, &once);
    ck_assert_mem_eq(once.levels, three, sizeof(three));
    ck_assert(rounding_variance(three, 3, vector, 7) == 28.0);
    codec = codec_of_family("orq-5");
    code_once(&codec, 1, vector, 7, &once);
    ck_assert_mem_eq(once.levels, five, sizeof(five));
    ck_assert(rounding_variance(five, 5, vector, 7) == 4.0);
    codec = codec_of_family("orq-9"); /* as many levels as it takes */
    code_once(&codec, 1, vector, 7, &once);
    ck_assert_mem_eq(once.values, vector, sizeof(vector));
}
END_TEST

START_TEST(two_levels_have_their_vector)
{
    static const struct {
        const char *family;
        float low, high;
        unsigned ups; /* which of the seven become `high`, if that is not random */
    } cases[] = {{"bingrad-b", -1.0f, 14.0f / 3.0f, 0x70}, {"onebit", -5.0f / 3.0f, 15.0f / 4.0f, 0x78}, {"ef-sign", -20.0f / 7.0f, 20.0f / 7.0f, 0x7c}};
    once_t once;
    for (size_t k = 0; k < IQ_ARRAY_SIZE(cases); k++) {
        iq_codec_t codec = codec_of_family(cases[k].family);
        code_once(&codec, 1, vector, 7, &once);
        for (int i = 0; i < 7; i++)
            ck_assert(once.values[i] == (cases[k].ups >> i & 1 ? cases[k].high : cases[k].low));
    }
    iq_codec_t codec = codec_of_family("bingrad-pb");
    code_once(&codec, 1, vector, 7, &once);
    ck_assert(once.levels[0] == 16.0f / 7.0f);
    ck_assert(once.values[0] == -16.0f / 7.0f && once.values[5] == 16.0f / 7.0f && once.values[6] == 16.0f / 7.0f);
}
END_TEST

/* ---- levels against brute force ---- */

/* Small buckets of all kinds: few different values, outliers, one sign only. */
static size_t fill_small(float *values, int round)
{
    size_t count = 1 + codec_random() % 40;
    for (size_t i = 0; i < count; i++) {
        values[i] = codec_random_unit();
        if (round % 3 == 0)
            values[i] = (float)(codec_random() % 5) - 2.0f;
        if (round % 5 == 0 && i % 7 == 0)
            values[i] *= 1000.0f;
        if (round % 7 == 0)
            values[i] = fabsf(values[i]);
    }
    return count;
}

/* Among all levels that are values, which is where the least must be. */
START_TEST(orq_3_is_the_best)
{
    float values[40];
    once_t once;
    iq_codec_t codec = codec_of_family("orq-3");
    for (int round = 0; round < 3000; round++) {
        size_t count = fill_small(values, round);
        double least = INFINITY;
        code_once(&codec, 1, values, count, &once);
        for (size_t i = 0; i < count; i++) {
            const float levels[] = {once.levels[0], values[i], once.levels[2]};
            least = fmin(least, rounding_variance(levels, 3, values, count));
        }
        double found = rounding_variance(once.levels, 3, values, count);
        REQUIRE(found <= least * (1 + 1e-12));
    }
}
END_TEST

/* Twice the levels, never more error; all of them in order, the first and last at the ends. */
START_TEST(orq_halves_intervals)
{
    static const char *const families[] = {"orq-3", "orq-5", "orq-9"};
    float values[40];
    once_t once;
    for (int round = 0; round < 3000; round++) {
        size_t count = fill_small(values, round);
        double last = INFINITY;
        float least = values[0], most = values[0];
        for (size_t i = 0; i < count; i++) {
            least = fminf(least, values[i]);
            most = fmaxf(most, values[i]);
        }
        for (unsigned k = 0; k < 3; k++) {
            iq_codec_t codec = codec_of_family(families[k]);
            code_once(&codec, 1, values, count, &once);
            REQUIRE(once.levels[0] == least && once.levels[codec.levels - 1] == most);
            double variance = rounding_variance(once.levels, codec.levels, values, count);
            REQUIRE(variance <= last * (1 + 1e-12));
            last = variance;
        }
    }
}
END_TEST

/* Squared error to be expected of levels -b and b. */
static double error_of_magnitude(double b, const float *values, size_t count)
{
    double sum = 0.0;
    for (size_t i = 0; i < count; i++) {
        double size = fabs((double)values[i]);
        sum += size <= b ? square(b) - square(size) : square(size - b);
    }
    return sum;
}

START_TEST(bingrad_pb_is_the_best)
{
    float values[40];
    once_t once;
    iq_codec_t codec = codec_of_family("bingrad-pb");
    for (int round = 0; round < 3000; round++) {
        size_t count = fill_small(values, round);
        code_once(&codec, 1, values, count, &once);
        double found = error_of_magnitude((double)once.levels[0], values, count), bound = found * (1 - 1e-6) - 1e-9;
        for (size_t i = 0; i < count; i++)
            REQUIRE(error_of_magnitude(fabs((double)values[i]), values, count) >= bound);
        for (int step = 0; step < 50; step++)
            REQUIRE(error_of_magnitude((double)once.levels[0] * (0.5 + step / 50.0), values, count) >= bound);
    }
}
END_TEST

/* ---- bias ---- */

enum { WIDTH = 128, PROJECTIONS = 64, DRAWS = 4096 };

/* The largest |z| of 64 fixed projections of the mean error. Values beyond `clip` count as clipped. */
static double largest_z(const iq_codec_t *codec, const float *values, double clip)
{
    static double sums[PROJECTIONS], squares[PROJECTIONS];
    static signed char signs[WIDTH][PROJECTIONS];
    once_t once;
    double largest = 0.0;
    for (int i = 0; i < WIDTH * PROJECTIONS; i++)
        signs[i / PROJECTIONS][i % PROJECTIONS] = iq_draw(12, 0, 0, 0, (uint64_t)i).word[i % 4] % 2 ? 1 : -1;
    memset(sums, 0, sizeof(sums));
    memset(squares, 0, sizeof(squares));
    for (uint64_t draw = 1; draw <= DRAWS; draw++) {
        float projected[PROJECTIONS] = {0};
        code_once(codec, draw, values, WIDTH, &once);
        for (int i = 0; i < WIDTH; i++) {
            float error = once.values[i] - (float)fmin(fmax((double)values[i], -clip), clip);
            for (int k = 0; k < PROJECTIONS; k++)
                projected[k] += (float)signs[i][k] * error;
        }
        for (int k = 0; k < PROJECTIONS; k++) {
            sums[k] += (double)projected[k];
            squares[k] += square((double)projected[k]);
        }
    }
    for (int k = 0; k < PROJECTIONS; k++) {
        double mean = sums[k] / DRAWS, variance = squares[k] / DRAWS - square(mean);
        largest = fmax(largest, fabs(mean) / sqrt(variance / DRAWS));
    }
    return largest;
}

/* Standard normal, Laplace, Student's t with three degrees of freedom. */
enum { NORMAL, LAPLACE, STUDENT, SOURCES };

/* Samples of their own for each test, in whatever order tests run. */
static uint64_t sample_test, sample_number;
static iq_philox_block_t sample_block;

static void begin_samples(uint64_t test)
{
    sample_test = test;
    sample_number = 0;
}

static double uniform(void)
{
    if (sample_number % 4 == 0)
        sample_block = iq_draw(11, sample_test, 0, 0, sample_number);
    return ((double)sample_block.word[sample_number++ % 4] + 0.5) / 4294967296.0;
}

static double normal(void) { return sqrt(-2.0 * log(uniform())) * cos(6.283185307179586 * uniform()); }

static float sample(int source)
{
    double value = normal();
    if (source == LAPLACE)
        value = (value < 0 ? 1 : -1) * log(uniform());
    if (source == STUDENT)
        value /= sqrt((square(normal()) - 2.0 * log(uniform())) / 3.0); /* chi-squared of 1 + 2 degrees */
    return (float)value;
}

static void fill_samples(int source, float *values, size_t count)
{
    for (size_t i = 0; i < count; i++)
        values[i] = sample(source);
}

START_TEST(random_models_are_unbiased)
{
    static const struct {
        const char *family;
        unsigned bits;
        iq_norm_t norm;
    } cases[] = {{"orq-3", 2, 0}, {"orq-5", 3, 0}, {"orq-9", 4, 0}, {"qsgd", 2, IQ_NORM_MAX}, {"qsgd", 4, IQ_NORM_L2}, {"qsgd", 8, IQ_NORM_L2}, {"natural", 8, 0}};
    float values[WIDTH];
    iq_codec_t codec = codec_of_family(cases[_i].family);
    codec.bits = cases[_i].bits;
    codec.norm = cases[_i].norm;
    begin_samples((uint64_t)_i);
    fill_samples(_i % SOURCES, values, WIDTH);
    double z = largest_z(&codec, values, INFINITY);
    ck_assert_msg(z < 5.0, "%s: z = %g", cases[_i].family, z);
}
END_TEST

/* bingrad-pb has the clipped value as mean; against the value itself the same test sees the bias. */
START_TEST(bingrad_pb_is_biased_by_clipping_only)
{
    float values[WIDTH];
    once_t once;
    iq_codec_t codec = codec_of_family("bingrad-pb");
    begin_samples(20);
    fill_samples(LAPLACE, values, WIDTH);
    code_once(&codec, 1, values, WIDTH, &once);
    double z = largest_z(&codec, values, (double)once.levels[0]);
    ck_assert_msg(z < 5.0, "z = %g", z);
    ck_assert_double_gt(largest_z(&codec, values, INFINITY), 100.0);
}
END_TEST

/* ---- errors ---- */

typedef struct errors {
    double ratio;            /* squared error by squared norm: mean over buckets */
    double drawn, predicted; /* squared errors in all: measured, and of the closed form (orq) */
} errors_t;

static errors_t measure(const iq_codec_t *codec, int source, int buckets)
{
    static float values[SIZE];
    once_t once;
    errors_t errors = {0};
    begin_samples(30 + (uint64_t)source);
    for (int b = 0; b < buckets; b++) {
        double error = 0.0, norm = 0.0;
        fill_samples(source, values, SIZE);
        code_once(codec, (uint64_t)b, values, SIZE, &once);
        for (int i = 0; i < SIZE; i++) {
            error += square((double)once.values[i] - (double)values[i]);
            norm += square((double)values[i]);
        }
        errors.ratio += error / norm / buckets;
        errors.drawn += error;
        if (codec->levels != 0)
            errors.predicted += rounding_variance(once.levels, codec->levels, values, SIZE);
    }
    return errors;
}

static void check_near(const char *what, int source, double found, double expected, double tolerance)
{
    ck_assert_msg(fabs(found - expected) <= tolerance * expected, "%s, source %d: %g, not %g", what, source, found, expected);
}

/* Buckets of 2048; 4 * 10^5 values each. */
START_TEST(orq_has_the_published_variance)
{
    static const struct {
        const char *family;
        double variance[SOURCES];
    } table[] = {{"orq-3", {1.78, 2.75, 5.02}}, {"orq-5", {0.346, 0.502, 0.704}}, {"orq-9", {0.078, 0.113, 0.150}}};
    iq_codec_t codec = codec_of_family(table[_i].family);
    for (int source = 0; source < SOURCES; source++) {
        errors_t errors = measure(&codec, source, 200);
        check_near(table[_i].family, source, errors.ratio, table[_i].variance[source], 0.05);
        check_near("closed form", source, errors.drawn, errors.predicted, 0.05);
    }
}
END_TEST

START_TEST(two_levels_have_the_published_error)
{
    static const struct {
        const char *family;
        double error[SOURCES]; /* 0: not published */
    } table[] = {{"bingrad-b", {0.3632, 0.5008, 0}},
                 {"ef-sign", {0.3635, 0.5014, 0}},
                 {"onebit", {0.3635, 0.5014, 0}},
                 {"bingrad-pb", {0.454, 0.579, 0.645}}};
    iq_codec_t codec = codec_of_family(table[_i].family);
    for (int source = 0; source < SOURCES; source++) {
        if (table[_i].error[source] > 0)
            check_near(table[_i].family, source, measure(&codec, source, 200).ratio, table[_i].error[source], 0.01);
    }
}
END_TEST

/* What clipping alone loses, and the magnitude itself, by the bucket's root mean square. */
START_TEST(bingrad_pb_clips_as_published)
{
    static const double bias[SOURCES] = {0.316, 0.448, 0.541}, magnitude[SOURCES] = {0.65, 0.57, 0.52};
    static float values[SIZE];
    once_t once;
    iq_codec_t codec = codec_of_family("bingrad-pb");
    for (int source = 0; source < SOURCES; source++) {
        double ratio = 0.0, mean = 0.0;
        begin_samples(40 + (uint64_t)source);
        for (int b = 0; b < 200; b++) {
            double clipped = 0.0, norm = 0.0;
            fill_samples(source, values, SIZE);
            code_once(&codec, 1, values, SIZE, &once);
            for (int i = 0; i < SIZE; i++) {
                clipped += square(fmax(fabs((double)values[i]) - (double)once.levels[0], 0.0));
                norm += square((double)values[i]);
            }
            ratio += clipped / norm / 200;
            mean += (double)once.levels[0] / sqrt(norm / SIZE) / 200;
        }
        check_near("bias", source, ratio, bias[source], 0.02);
        check_near("magnitude", source, mean, magnitude[source], 0.02);
    }
}
END_TEST

/* min(d / s^2, sqrt(d) / s) of the squared norm at most: and with the largest magnitude as scale, s^-2 / 4 of its square an element. */
START_TEST(qsgd_keeps_its_bound)
{
    iq_codec_t codec = codec_of_family("qsgd");
    static float values[SIZE];
    once_t once;
    codec.bucket = SIZE;
    for (codec.bits = 2; codec.bits <= 8; codec.bits++) {
        double s = (double)((1u << (codec.bits - 1)) - 1), d = SIZE;
        codec.norm = IQ_NORM_L2;
        for (int source = 0; source < SOURCES; source++)
            ck_assert_double_le(measure(&codec, source, 20).ratio, fmin(d / square(s), sqrt(d) / s));
        codec.norm = IQ_NORM_MAX;
        begin_samples(50);
        fill_samples(NORMAL, values, SIZE);
        float most = 0.0f;
        for (int i = 0; i < SIZE; i++)
            most = fmaxf(most, fabsf(values[i]));
        code_once(&codec, 1, values, SIZE, &once);
        for (int i = 0; i < SIZE; i++)
            REQUIRE(fabs((double)once.values[i] - (double)values[i]) <= (double)most / s * (1 + 1e-6));
    }
}
END_TEST

/* 4/3 is the worst of all: an eighth of its square, which 2 * 10^5 draws meet. */
START_TEST(natural_has_an_eighth_at_most)
{
    static float values[SIZE];
    once_t once;
    iq_codec_t codec = codec_of_family("natural");
    double error = 0.0;
    for (int i = 0; i < SIZE; i++)
        values[i] = (i % 2 ? 4.0f : -4.0f) / 3.0f;
    for (uint64_t draw = 0; draw < 100; draw++) {
        code_once(&codec, draw, values, SIZE, &once);
        for (int i = 0; i < SIZE; i++)
            error += square((double)once.values[i] - (double)values[i]) / square(4.0 / 3.0);
    }
    check_near("natural", 0, error / (100.0 * SIZE), 0.125, 0.01);
    for (int source = 0; source < SOURCES; source++)
        ck_assert_double_le(measure(&codec, source, 50).ratio, 0.125);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("levels_models");
    TCase *tcase = tcase_create("vectors");
    tcase_add_test(tcase, orq_has_its_vector);
    tcase_add_test(tcase, two_levels_have_their_vector);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("levels");
    tcase_add_test(tcase, orq_3_is_the_best);
    tcase_add_test(tcase, orq_halves_intervals);
    tcase_add_test(tcase, bingrad_pb_is_the_best);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("bias");
    tcase_add_loop_test(tcase, random_models_are_unbiased, 0, 7);
    tcase_add_test(tcase, bingrad_pb_is_biased_by_clipping_only);
    suite_add_tcase(suite, tcase);

    tcase = tcase_create("errors");
    tcase_add_loop_test(tcase, orq_has_the_published_variance, 0, 3);
    tcase_add_loop_test(tcase, two_levels_have_the_published_error, 0, 4);
    tcase_add_test(tcase, bingrad_pb_clips_as_published);
    tcase_add_test(tcase, qsgd_keeps_its_bound);
    tcase_add_test(tcase, natural_has_an_eighth_at_most);
    suite_add_tcase(suite, tcase);
    return suite;
}
