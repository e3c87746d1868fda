/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rest of module "cuda": reductions and divisions against codec `none` on the host, scales against the kernels for CPUs, bit for
 * bit; then where memory lies and in which order things happen.
 */
#include "support/check_main.h"
#include "support/cuda_box.h"
#include "support/require.h"

#include "codec/codec.h"
#include "kernels/kernels.h"

#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

static const isgq_data_type_t types[] = {ISGQ_INT8,   ISGQ_UINT8,   ISGQ_INT32,   ISGQ_UINT32,  ISGQ_INT64,
                                         ISGQ_UINT64, ISGQ_FLOAT32, ISGQ_FLOAT64, ISGQ_FLOAT16, ISGQ_BFLOAT16};
static const size_t counts[] = {1, 3, 16, 33, 255, 1024, 2500};

static bool is_half(isgq_data_type_t type) { return type == ISGQ_FLOAT16 || type == ISGQ_BFLOAT16; }

static isgq_data_type_t acc_type(isgq_data_type_t type) { return is_half(type) ? ISGQ_FLOAT32 : type; }

/* Random bits, of which floats hold few NaNs; now and then zeros, ones, infinities and NaNs, or small numbers. */
static void fill(isgq_data_type_t type, unsigned char *data, size_t count)
{
    static const double special[] = {0.0, -0.0, 1.0, -1.0, (double)INFINITY, -(double)INFINITY, (double)NAN, 3.0};
    size_t bytes = iq_datatype_bytes(type);
    for (size_t i = 0; i < count * bytes; i++)
        data[i] = (unsigned char)random_bits();
    for (size_t i = 0; i < count; i++) {
        double value = special[random_below(8)];
        float narrow = (float)value;
        uint16_t half = type == ISGQ_FLOAT16 ? iq_float_to_f16(narrow) : iq_float_to_bf16(narrow);
        if (random_below(4) != 0)
            continue;
        if (type == ISGQ_FLOAT32)
            memcpy(data + i * bytes, &narrow, bytes);
        else if (type == ISGQ_FLOAT64)
            memcpy(data + i * bytes, &value, bytes);
        else if (is_half(type))
            memcpy(data + i * bytes, &half, bytes);
    }
}

static bool is_nan(isgq_data_type_t type, const unsigned char *at)
{
    float narrow = 0.0f;
    double value = 0.0;
    uint16_t half = 0;
    if (type == ISGQ_FLOAT32)
        memcpy(&narrow, at, sizeof(narrow));
    else if (type == ISGQ_FLOAT64)
        memcpy(&value, at, sizeof(value));
    else if (is_half(type))
        memcpy(&half, at, sizeof(half));
    if (is_half(type))
        narrow = type == ISGQ_FLOAT16 ? iq_f16_to_float(half) : iq_bf16_to_float(half);
    return isnan(narrow) || isnan(value);
}

static void compare(isgq_data_type_t type, const unsigned char *found, const unsigned char *expected, size_t count, const char *what)
{
    size_t bytes = iq_datatype_bytes(type);
    for (size_t i = 0; i < count; i++) {
        const unsigned char *a = found + i * bytes, *b = expected + i * bytes;
        if (memcmp(a, b, bytes) != 0 && !(is_nan(type, a) && is_nan(type, b)))
            ck_abort_msg("%s of %s: element %zu of %zu differs", what, iq_datatype_name(type), i, count);
    }
}

/* Elements at any of their own multiples, half of the time at 16 bytes'. */
static box_t box_of(isgq_data_type_t type, size_t count)
{
    size_t bytes = iq_datatype_bytes(type);
    box_t box = box_new(count * bytes, random_below(2) == 0 ? 0 : random_below((uint32_t)(64 / bytes)) * bytes);
    fill(type, box.host, count);
    box_push(&box);
    return box;
}

static void check_reduce(isgq_data_type_t type, isgq_red_op_t op, bool first, size_t count)
{
    isgq_data_type_t wide = acc_type(type);
    box_t src = box_of(type, count), acc = box_of(wide, count);
    iq_codec_call_t call = {.datatype = type, .op = op, .nranks = 3};
    iq_cuda_reduce_t reduce = {wide, type, op, src.device, acc.device, first, count};
    ck_assert_msg(cuda->reduce(0, cuda_stream, &reduce) == ISGQ_SUCCESS, "%s", iq_last_error());
    iq_codec_none.ops->add_own(&iq_codec_none, &call, (iq_span_t){0, count}, src.host, acc.host, first);
    compare(wide, box_result(&acc), acc.host, count, iq_red_op_name(op));
    box_free(&src);
    box_free(&acc);
}

START_TEST(reductions_are_those_of_codec_none)
{
    for (size_t type = 0; type < 10; type++)
        for (int op = ISGQ_SUM; op <= ISGQ_AVG; op++)
            for (size_t i = 0; i < 7; i++)
                check_reduce(types[type], (isgq_red_op_t)op, i == 2, counts[i]);
}
END_TEST

static void check_divide(isgq_data_type_t type, int divisor, bool accumulate, size_t count)
{
    isgq_data_type_t wide = acc_type(type);
    box_t src = box_of(wide, count), dst = box_of(type, count);
    iq_codec_call_t call = {.datatype = type, .op = divisor == 1 ? ISGQ_SUM : ISGQ_AVG, .nranks = divisor, .accumulate = accumulate};
    iq_cuda_divide_t divide = {wide, type, src.device, dst.device, divisor, accumulate, count};
    ck_assert_msg(cuda->divide(0, cuda_stream, &divide) == ISGQ_SUCCESS, "%s", iq_last_error());
    iq_codec_none.ops->deliver(&iq_codec_none, &call, (iq_span_t){0, count}, src.host, dst.host);
    compare(type, box_result(&dst), dst.host, count, "quotient");
    box_free(&src);
    box_free(&dst);
}

START_TEST(quotients_are_those_of_codec_none)
{
    static const int divisors[] = {1, 2, 3, 7, 1000};
    for (size_t type = 0; type < 10; type++)
        for (size_t i = 0; i < 5; i++)
            for (size_t j = 0; j < 7; j++)
                check_divide(types[type], divisors[i], j % 2 == 0, counts[j]);
}
END_TEST

START_TEST(other_types_are_refused)
{
    uint32_t place[4];
    iq_cuda_reduce_t reduce = {ISGQ_FLOAT64, ISGQ_FLOAT16, ISGQ_SUM, place, place, false, 1};
    iq_cuda_divide_t divide = {ISGQ_INT32, ISGQ_INT8, place, place, 2, false, 1};
    REQUIRE(cuda->reduce(0, cuda_stream, &reduce) == ISGQ_ERR_INTERNAL);
    REQUIRE(cuda->divide(0, cuda_stream, &divide) == ISGQ_ERR_INTERNAL);
    reduce.count = divide.count = 0;
    REQUIRE(cuda->reduce(0, cuda_stream, &reduce) == ISGQ_SUCCESS);
    REQUIRE(cuda->divide(0, cuda_stream, &divide) == ISGQ_SUCCESS);
    REQUIRE(cuda->measure(0, cuda_stream, &(iq_cuda_source_t){.form = IQ_CUDA_VALUES}, 0, 0, 0, NULL) == ISGQ_SUCCESS);
}
END_TEST

/* ---- scales ---- */

static float magnitude(const iq_cuda_source_t *source, const box_t *src, const box_t *scales, size_t i, size_t bucket)
{
    float value;
    if (source->form == IQ_CUDA_SUMS)
        value = (float)(int32_t)(2 * ((const iq_u32_any_t *)src->host)[i] - (uint32_t)source->zero) *
                iq_half_step(source->top, ((const float *)scales->host)[bucket]);
    else if (source->type == ISGQ_FLOAT32)
        value = ((const iq_f32_any_t *)src->host)[i];
    else
        value = source->type == ISGQ_FLOAT16 ? iq_f16_to_float(((const iq_u16_any_t *)src->host)[i])
                                             : iq_bf16_to_float(((const iq_u16_any_t *)src->host)[i]);
    value /= source->divisor;
    return iq_kernels()->absmax(&value, 1);
}

static void check_measure(iq_cuda_source_t source, uint64_t first, size_t bucket, size_t count)
{
    size_t buckets = bucket == 0 ? 1 : (size_t)((first + count - 1) / bucket - first / bucket + 1);
    box_t src = box_of(source.form == IQ_CUDA_SUMS ? ISGQ_UINT32 : source.type, count);
    box_t scales = box_new(buckets * 4, 4), found = box_new(buckets * 4, 8);
    for (size_t i = 0; source.form == IQ_CUDA_SUMS && i < count; i++)
        ((iq_u32_any_t *)src.host)[i] = random_below(3 * source.top);
    for (size_t i = 0; i < buckets; i++) {
        ((float *)scales.host)[i] = random_below(9) == 0 ? INFINITY : (float)random_below(1000) / 100.0f;
        ((float *)found.host)[i] = random_below(2) == 0 ? 0.0f : 5.0f;
    }
    box_push(&src);
    box_push(&scales);
    box_push(&found);
    source.data = src.device;
    source.scales = (const float *)scales.device;
    ck_assert_msg(cuda->measure(0, cuda_stream, &source, first, bucket, count, (float *)found.device) == ISGQ_SUCCESS, "%s",
                  iq_last_error());
    for (size_t i = 0; i < count; i++) {
        size_t at = bucket == 0 ? 0 : (size_t)((first + i) / bucket - first / bucket);
        float most = magnitude(&source, &src, &scales, i, at), *scale = (float *)found.host + at;
        *scale = most > *scale ? most : *scale;
    }
    compare(ISGQ_FLOAT32, box_result(&found), found.host, buckets, "scales");
    box_free(&src);
    box_free(&scales);
    box_free(&found);
}

START_TEST(scales_are_largest_magnitudes)
{
    static const size_t buckets[] = {0, 1, 5, 32, 100, 128, 512, 1000, (size_t)3 << 31};
    static const uint64_t firsts[] = {0, 1, 512, 777, ((uint64_t)3 << 31) - 300, (uint64_t)5 << 34};
    static const isgq_data_type_t float_types[] = {ISGQ_FLOAT32, ISGQ_FLOAT16, ISGQ_BFLOAT16};
    for (int i = 0; i < 400; i++) {
        iq_cuda_source_t source = {.form = i % 4 == 3 ? IQ_CUDA_SUMS : IQ_CUDA_VALUES, .top = 14, .zero = 42};
        source.type = float_types[i % 4 % 3];
        source.divisor = random_below(3) == 0 ? 3.0f : 1.0f;
        check_measure(source, firsts[random_below(6)], buckets[random_below(9)], 1 + random_below(3000));
    }
}
END_TEST

/* ---- places ---- */

START_TEST(devices_are_described)
{
    int count = 0, device = -1;
    iq_cuda_device_t description;
    REQUIRE(cuda->devices(&count) == ISGQ_SUCCESS && count >= 1);
    REQUIRE(cuda->current(&device) == ISGQ_SUCCESS && device >= 0 && device < count);
    REQUIRE(cuda->describe(0, &description) == ISGQ_SUCCESS);
    REQUIRE(description.name[0] != '\0' && strlen(description.pci) >= 12 && description.processors > 0 && description.bytes > 0);
    REQUIRE(cuda->describe(count, &description) == ISGQ_ERR_CUDA);
    REQUIRE(strstr(iq_last_error(), "cudaGetDeviceProperties: ") == iq_last_error());
}
END_TEST

START_TEST(memory_is_located)
{
    iq_cuda_place_t place;
    int device;
    void *page = NULL;
    box_t box = box_new(100, 0);
    REQUIRE(posix_memalign(&page, 4096, 4096) == 0);
    REQUIRE(cuda->locate(0, box.device, &place, &device) == ISGQ_SUCCESS && place == IQ_CUDA_DEVICE && device == 0);
    REQUIRE(cuda->locate(0, box.host, &place, &device) == ISGQ_SUCCESS && place == IQ_CUDA_HOST && device == -1);
    REQUIRE(cuda->locate(-1, NULL, &place, &device) == ISGQ_SUCCESS && place == IQ_CUDA_HOST && device == -1);
    REQUIRE(cuda->pin(0, page, 4096) == ISGQ_SUCCESS);
    REQUIRE(cuda->locate(0, (char *)page + 100, &place, &device) == ISGQ_SUCCESS && place == IQ_CUDA_PINNED && device == -1);
    cuda->unpin(page);
    REQUIRE(cuda->locate(0, page, &place, &device) == ISGQ_SUCCESS && place == IQ_CUDA_HOST);
    free(page);
    box_free(&box);
}
END_TEST

START_TEST(too_much_memory_is_refused)
{
    void *memory = NULL;
    iq_cuda_device_t description;
    REQUIRE(cuda->describe(0, &description) == ISGQ_SUCCESS);
    REQUIRE(cuda->alloc(0, cuda_stream, description.bytes * 2, &memory) == ISGQ_ERR_NO_MEMORY);
    REQUIRE(memory == NULL);
    REQUIRE(strncmp(iq_last_error(), "cudaMallocAsync: no ", 20) == 0);
}
END_TEST

/* ---- order ---- */

START_TEST(streams_wait_for_words_and_events)
{
    uint32_t *word = NULL, value = 7;
    isgq_stream_t other;
    iq_cuda_event_t late, done;
    bool capturing = true;
    box_t box = box_new(4, 0);
    REQUIRE(posix_memalign((void **)&word, 4096, 4096) == 0);
    *word = 0xfffffff0u; /* before 5, as numbers that go round */
    REQUIRE(cuda->pin(0, word, 4096) == ISGQ_SUCCESS);
    REQUIRE(cuda->stream_create(0, &other) == ISGQ_SUCCESS);
    REQUIRE(cuda->stream_capturing(0, other, &capturing) == ISGQ_SUCCESS && !capturing);
    REQUIRE(cuda->event_create(0, &late) == ISGQ_SUCCESS && cuda->event_create(0, &done) == ISGQ_SUCCESS);

    REQUIRE(cuda->await(0, other, word, 5) == ISGQ_SUCCESS);
    REQUIRE(cuda->event_record(0, late, other) == ISGQ_SUCCESS);
    REQUIRE(cuda->wait_event(0, cuda_stream, late) == ISGQ_SUCCESS);
    REQUIRE(cuda->clear(0, cuda_stream, box.device, 4) == ISGQ_SUCCESS);
    REQUIRE(cuda->event_record(0, done, cuda_stream) == ISGQ_SUCCESS);
    for (int i = 0; i < 100; i++) {
        REQUIRE(cuda->event_poll(0, late) == ISGQ_IN_PROGRESS);
        REQUIRE(cuda->event_poll(0, done) == ISGQ_IN_PROGRESS);
        sched_yield();
    }
    __atomic_store_n(word, 6, __ATOMIC_RELEASE); /* beyond 5 will do */
    cuda_settle();
    REQUIRE(cuda->event_poll(0, late) == ISGQ_SUCCESS && cuda->event_poll(0, done) == ISGQ_SUCCESS);
    memcpy(&value, box_result(&box), 4);
    REQUIRE(value == 0);

    cuda->event_destroy(0, late);
    cuda->event_destroy(0, done);
    cuda->stream_destroy(0, other);
    cuda->unpin(word);
    free(word);
    box_free(&box);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("cuda_native");
    TCase *arithmetic = tcase_create("arithmetic");
    tcase_add_checked_fixture(arithmetic, cuda_start, cuda_end);
    tcase_add_test(arithmetic, reductions_are_those_of_codec_none);
    tcase_add_test(arithmetic, quotients_are_those_of_codec_none);
    tcase_add_test(arithmetic, other_types_are_refused);
    suite_add_tcase(suite, arithmetic);
    TCase *scales = tcase_create("scales");
    tcase_add_checked_fixture(scales, cuda_start, cuda_end);
    tcase_add_test(scales, scales_are_largest_magnitudes);
    suite_add_tcase(suite, scales);
    TCase *order = tcase_create("order");
    tcase_add_checked_fixture(order, cuda_start, cuda_end);
    tcase_add_test(order, devices_are_described);
    tcase_add_test(order, memory_is_located);
    tcase_add_test(order, too_much_memory_is_refused);
    tcase_add_test(order, streams_wait_for_words_and_events);
    suite_add_tcase(suite, order);
    return suite;
}
