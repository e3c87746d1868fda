/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Factored calls on device memory, step by step, against the codec of the host (codec/factor.h): the same peaks, the same blobs
 * byte for byte, the same products bit for bit, and the same blobs refused.
 */
#include "support/check_main.h"
#include "support/factor_twin.h"

/* ---- blobs ---- */

/* What prepare finds on rank `r`, and what the host finds. */
static void check_prepare(const device_t *device, int r, const box_t *x, const box_t *delta)
{
    ranks_t *host = device->host;
    iq_factor_call_t call = call_of(host, r);
    iq_cuda_factor_call_t own = call_for(host, r);
    float due[2];
    iq_factor_prepare(&host->spec, &call, host->x[r], host->delta[r], host->state, due);
    REQUIRE(cuda->factor->prepare(0, cuda_stream, &own, x->device, delta->device, device->state.device,
                                  (float *)(void *)device->peaks.device) == ISGQ_SUCCESS);
    ck_assert_mem_eq(box_result(&device->peaks), due, sizeof(due));
}

/* Prepare and encode on every rank, after encode_all(host); the messages are checked. */
static void check_encoding(const device_t *device, size_t skew)
{
    ranks_t *host = device->host;
    memcpy(device->shared.host, host->peaks, 8);
    box_push(&device->shared);
    for (int r = 0; r < host->call.nranks; r++) {
        iq_cuda_factor_call_t call = call_for(host, r);
        box_t x = factor_box(host, host->x[r], call.batch * call.m, skew),
              delta = factor_box(host, host->delta[r], call.batch * call.n, skew);
        check_prepare(device, r, &x, &delta);
        REQUIRE(cuda->factor->encode(0, cuda_stream, &call, x.device, delta.device, device->state.device,
                                     (const float *)(const void *)device->shared.device,
                                     message_of(device, device->messages.device, r)) == ISGQ_SUCCESS);
        box_free(&x);
        box_free(&delta);
    }
    const unsigned char *found = box_result(&device->messages);
    for (int r = 0; r < host->call.nranks; r++) {
        const unsigned char *message = message_of(device, found, r), *blob = message + device->blob_at;
        uint32_t count, length;
        memcpy(&count, blob + 4, 4);
        REQUIRE(count <= host->call.max_batch);
        memcpy(&length, message + 4 * count, 4);
        ck_assert_msg(length == host->bytes[r], "rank %d: a blob of %u bytes, not %zu", r, length, host->bytes[r]);
        ck_assert_msg(memcmp(blob, host->blob[r], length) == 0, "rank %d: other bytes than on the host", r);
    }
}

/* ---- products ---- */

static void multiply(const device_t *device, const iq_cuda_outcome_t *grad, const iq_cuda_outcome_t *bias)
{
    REQUIRE(cuda->factor->multiply(0, cuda_stream, &device->call, device->rows.device, device->host->call.nranks, grad, bias) ==
            ISGQ_SUCCESS);
}

/* The host's rows, and the gradient of the device's: `count` elements of which the last n are the bias. */
static void check_values(const device_t *device, bool avg, bool accumulate)
{
    ranks_t *host = device->host;
    isgq_data_type_t type = host->call.datatype;
    size_t each = value_bytes(type), product = host->call.m * host->call.n,
           count = product + (host->call.want_bias ? host->call.n : 0);
    box_t result = box_new(count * each, each);
    for (size_t i = 0; i < count; i++)
        set_value(type, result.host, i, (double)(i % 7) - 3.0);
    box_push(&result);
    iq_cuda_outcome_t grad = {.type = type,
                              .data = result.device,
                              .divisor = avg ? host->call.nranks : 1,
                              .accumulate = accumulate,
                              .peaks = (const float *)(const void *)device->shared.device,
                              .peak = 1,
                              .want_bias = host->call.want_bias};
    iq_cuda_outcome_t bias = grad;
    bias.data = result.device + product * each;
    bias.peak = 0;
    multiply(device, &grad, &bias);
    const unsigned char *found = box_result(&result);
    product_all(host, avg, accumulate, result.host, host->call.want_bias ? result.host + product * each : NULL);
    for (size_t i = 0; i < count; i++)
        if (memcmp(result.host + i * each, found + i * each, each) != 0 &&
            !(isnan(value_at(type, result.host, i)) && isnan(value_at(type, found, i))))
            ck_abort_msg("%s %zu of %zu: %g, not %g", i < product ? "gradient" : "bias", i, count,
                         (double)value_at(type, found, i), (double)value_at(type, result.host, i));
    box_free(&result);
}

static void check_integers(const device_t *device)
{
    ranks_t *host = device->host;
    isgq_data_type_t type = iq_factor_sum_type(&host->spec, &host->call);
    size_t each = type == ISGQ_INT32 ? 4 : 8, product = host->call.m * host->call.n;
    size_t bytes = (product + (host->call.want_bias ? host->call.n : 0)) * each;
    box_t result = box_new(bytes, each);
    iq_cuda_outcome_t grad = {.type = type, .data = result.device, .scale = 1, .divisor = 1}, bias = grad;
    bias.data = result.device + product * each;
    multiply(device, &grad, &bias);
    const unsigned char *found = box_result(&result);
    for (size_t tile = 0; tile < iq_factor_product_tiles(&host->call); tile++)
        REQUIRE(iq_factor_product_integers(&host->spec, &host->call, &host->rows, tile, result.host, host->scratch) ==
                ISGQ_SUCCESS);
    ck_assert_msg(memcmp(found, result.host, bytes) == 0, "other integers than on the host");
    box_free(&result);
}

static void check_all(ranks_t *host, uint64_t number)
{
    device_t device;
    encode_all(host, number);
    device = device_open(host);
    check_encoding(&device, number % 4);
    ck_assert_msg(decode_messages(&device), "messages of ours were refused");
    decode_all(host, false);
    check_values(&device, number % 2 == 0, number % 3 == 0);
    check_integers(&device);
    device_close(&device);
}

/* ---- both ---- */

static iq_factor_spec_t spec_of(size_t i)
{
    const iq_factor_spec_t specs[] = {widths(4, 4), budget(4), widths(8, 8), budget(2),   widths(2, 3), widths(3, 8),
                                      widths(7, 4), budget(7), widths(5, 6), budget(0.5), widths(6, 2), widths(8, 4)};
    iq_factor_spec_t spec = specs[i % 12];
    spec.nearest = i % 7 == 3;
    return spec;
}

static ranks_t *random_ranks(size_t i, size_t m, size_t n, const size_t *batch, int nranks)
{
    static const isgq_data_type_t types[] = {ISGQ_FLOAT32, ISGQ_FLOAT16, ISGQ_BFLOAT16};
    iq_factor_call_t call = shape(nranks, m, n, i % 2 == 0);
    call.datatype = types[i / 2 % 3];
    ranks_t *ranks = ranks_create(spec_of(i), call, batch);
    fill_normal(ranks, 100 + i, i % 5 < 2, i % 3 == 0 ? 6 : 1);
    return ranks;
}

/* Values of zero, whole rows of them, and columns. */
static void thin_out(ranks_t *ranks, unsigned most)
{
    isgq_data_type_t type = ranks->call.datatype;
    for (int r = 0; r < ranks->call.nranks; r++)
        for (size_t row = 0; row < ranks->batch[r]; row++) {
            unsigned share = random_below(most + 1);
            for (size_t i = 0; i < ranks->call.m; i++)
                if (random_below(most) < share || row % 5 == 2)
                    set_value(type, ranks->x[r], row * ranks->call.m + i, 0);
            for (size_t j = 0; j < ranks->call.n; j++)
                if (random_below(most) < share || row % 7 == 3)
                    set_value(type, ranks->delta[r], row * ranks->call.n + j, -0.0);
        }
}

START_TEST(every_shape)
{
    static const size_t shapes[][2] = {{1, 1}, {8, 8}, {17, 5}, {3, 130}, {64, 64}, {257, 9}, {1, 300}, {260, 1}, {33, 71}};
    static const size_t batch[] = {9, 0, 1};
    for (size_t s = 0; s < IQ_ARRAY_SIZE(shapes); s++)
        for (size_t i = 0; i < 4; i++) {
            ranks_t *ranks = random_ranks(4 * s + i, shapes[s][0], shapes[s][1], batch, 3);
            if (i % 2 == 1)
                thin_out(ranks, 3);
            check_all(ranks, 1 + s + i);
            ranks_destroy(ranks);
        }
}
END_TEST

START_TEST(every_width)
{
    static const size_t batch[] = {40, 31};
    for (unsigned x = 2; x <= 8; x++)
        for (unsigned delta = 2; delta <= 8; delta++) {
            iq_factor_call_t call = shape(2, 20 + x, 12 + delta, (x + delta) % 3 == 0);
            ranks_t *ranks = ranks_create(widths(x, delta), call, batch);
            fill_normal(ranks, x * 10 + delta, (x + delta) % 2 == 0, 4);
            check_all(ranks, x);
            ranks_destroy(ranks);
        }
}
END_TEST

START_TEST(every_budget)
{
    static const size_t batch[] = {70, 13};
    static const double bits[] = {0.01, 0.1, 0.5, 1, 2, 3, 4, 5, 6, 8, 64};
    for (size_t b = 0; b < IQ_ARRAY_SIZE(bits); b++) {
        iq_factor_call_t call = shape(2, 50, 34, b % 2 == 0);
        ranks_t *ranks = ranks_create(budget(bits[b]), call, batch);
        fill_normal(ranks, b, b % 3 == 0, (double)(b % 4) * 3.0);
        thin_out(ranks, 4);
        check_all(ranks, b);
        ranks_destroy(ranks);
    }
}
END_TEST

/* More rows than a block of one thread a row has, and more than one step of every loop. */
START_TEST(many_rows)
{
    static const size_t batch[] = {700, 300};
    for (size_t i = 0; i < 2; i++) {
        iq_factor_call_t call = shape(2, 24, 10, i == 0);
        ranks_t *ranks = ranks_create(i == 0 ? budget(3) : widths(4, 4), call, batch);
        fill_normal(ranks, i, true, 3);
        thin_out(ranks, 3);
        check_all(ranks, i);
        ranks_destroy(ranks);
    }
}
END_TEST

/* Tiles of both sizes, of which the last are not full; rows longer than a warp takes at once. */
START_TEST(large_products)
{
    static const size_t shapes[][2] = {{300, 260}, {129, 513}, {2100, 70}, {40, 2300}};
    static const size_t batch[] = {37, 20};
    for (size_t s = 0; s < IQ_ARRAY_SIZE(shapes); s++) {
        ranks_t *ranks = random_ranks(s, shapes[s][0], shapes[s][1], batch, 2);
        check_all(ranks, s);
        ranks_destroy(ranks);
    }
}
END_TEST

/* ---- edges ---- */

START_TEST(nothing_to_send)
{
    static const size_t none[] = {0, 0}, some[] = {3, 2};
    for (size_t i = 0; i < 4; i++) {
        ranks_t *ranks = random_ranks(i, 5, 7, none, 2);
        check_all(ranks, i);
        ranks_destroy(ranks);
        ranks = random_ranks(i, i % 2 == 0 ? 0 : 6, i % 2 == 0 ? 6 : 0, some, 2);
        check_all(ranks, i);
        ranks_destroy(ranks);
        ranks = ranks_create(spec_of(i), shape(2, 6, 6, i % 2 == 0), some); /* all zero */
        check_all(ranks, i);
        ranks_destroy(ranks);
    }
}
END_TEST

START_TEST(what_is_not_finite)
{
    static const size_t batch[] = {4, 5};
    static const float values[] = {NAN, INFINITY, -INFINITY, -NAN};
    for (size_t i = 0; i < 16; i++) {
        ranks_t *ranks = random_ranks(i, 9, 11, batch, 2);
        bool in_x = i % 2 == 0;
        set_value(ranks->call.datatype, in_x ? ranks->x[i / 2 % 2] : ranks->delta[i / 2 % 2], in_x ? 3 * 9 + 2 : 11 + 10,
                  (double)values[i / 4]);
        check_all(ranks, i);
        ranks_destroy(ranks);
    }
}
END_TEST

/* Values near the least and the greatest float, in one factor or both. */
START_TEST(extremes)
{
    static const size_t batch[] = {6, 3};
    static const double scales[][2] = {{0x1p-140, 1},    {1, 0x1p-140},      {0x1p-149, 0x1p-149}, {0x1p120, 0x1p-100},
                                       {0x1p60, 0x1p60}, {0x1p126, 0x1p126}, {0x1p-60, 0x1p-80},   {0x1p100, 0x1p-149}};
    for (size_t i = 0; i < 2 * IQ_ARRAY_SIZE(scales); i++) {
        ranks_t *ranks = ranks_create(spec_of(i), shape(2, 13, 9, i % 3 == 0), batch);
        fill_normal(ranks, i, i % 2 == 0, 10);
        for (int r = 0; r < 2; r++) {
            for (size_t k = 0; k < batch[r] * 13; k++)
                ((float *)ranks->x[r])[k] *= (float)scales[i / 2][0];
            for (size_t k = 0; k < batch[r] * 9; k++)
                ((float *)ranks->delta[r])[k] *= (float)scales[i / 2][1];
        }
        check_all(ranks, i);
        ranks_destroy(ranks);
    }
}
END_TEST

/* Every replay of a graph counts up a word, and draws the numbers of another call. */
START_TEST(replays_draw_anew)
{
    static const size_t batch[] = {12};
    ranks_t *ranks = ranks_create(widths(4, 4), shape(1, 30, 20, true), batch);
    box_t replays = box_new(4, 4);
    fill_normal(ranks, 5, false, 1);
    encode_all(ranks, 3 + ((uint64_t)2 << 32));
    device_t device = device_open(ranks);
    iq_cuda_factor_call_t call = call_for(ranks, 0);
    box_t x = factor_box(ranks, ranks->x[0], 12 * 30, 0), delta = factor_box(ranks, ranks->delta[0], 12 * 20, 0);
    uint32_t two = 2;
    memcpy(replays.host, &two, 4);
    box_push(&replays);
    memcpy(device.shared.host, ranks->peaks, 8);
    box_push(&device.shared);
    call.call = 3;
    call.replays = (const uint32_t *)(const void *)replays.device;
    REQUIRE(cuda->factor->prepare(0, cuda_stream, &call, x.device, delta.device, device.state.device,
                                  (float *)(void *)device.peaks.device) == ISGQ_SUCCESS);
    REQUIRE(cuda->factor->encode(0, cuda_stream, &call, x.device, delta.device, device.state.device,
                                 (const float *)(const void *)device.shared.device, device.messages.device) == ISGQ_SUCCESS);
    ck_assert_mem_eq(box_result(&device.messages) + device.blob_at, ranks->blob[0], ranks->bytes[0]);
    box_free(&x);
    box_free(&delta);
    box_free(&replays);
    device_close(&device);
    ranks_destroy(ranks);
}
END_TEST

/* Sums of 32 bits are full before the rows of a band are at an end. */
START_TEST(sums_stay_whole)
{
    enum { ROWS = 140000 };
    iq_cuda_factor_call_t call = {
        .type = ISGQ_FLOAT32, .max_batch = ROWS, .batch = ROWS, .m = 4, .n = 4, .width_x = 4, .width_delta = 4};
    iq_cuda_factor_rows_t layout = iq_cuda_factor_lay_rows(&call, 1);
    box_t rows = box_new(layout.bytes, 0), sums = box_new(16 * 8, 8);
    iq_cuda_factor_bands_t bands = {.rows = {[11] = ROWS}};
    iq_cuda_outcome_t grad = {.type = ISGQ_INT64, .data = sums.device, .scale = 1, .divisor = 1};
    memset(rows.host, 0, layout.bytes);
    memcpy(rows.host, &bands, sizeof(bands));
    memset(rows.host + layout.words[0], 127, (size_t)ROWS * 4);
    memset(rows.host + layout.words[1], 127, (size_t)ROWS * 4);
    box_push(&rows);
    REQUIRE(cuda->factor->multiply(0, cuda_stream, &call, rows.device, 1, &grad, &grad) == ISGQ_SUCCESS);
    const int64_t *found = (const int64_t *)(const void *)box_result(&sums);
    for (int i = 0; i < 16; i++)
        ck_assert_int_eq(found[i], ((int64_t)127 * 127 * ROWS) << 11);
    box_free(&rows);
    box_free(&sums);
}
END_TEST

/* ---- damage ---- */

/* One to three bytes of a message changed: refused on the device if the host refuses the blob, and else the same product. */
static void damage(ranks_t *host, size_t tries)
{
    device_t device;
    size_t accepted = 0, refused = 0;
    encode_all(host, 1);
    device = device_open(host);
    check_encoding(&device, 0);
    memcpy(device.messages.host, box_result(&device.messages), device.messages.bytes);
    for (size_t i = 0; i < tries; i++) {
        unsigned char *blob = device.messages.host + device.blob_at, before[3];
        size_t at[3];
        for (size_t k = 0; k <= i % 3; k++) {
            at[k] = random_below((uint32_t)host->bytes[0]);
            before[k] = blob[at[k]];
            blob[at[k]] ^= (unsigned char)(1 + random_below(255));
        }
        box_push(&device.messages);
        host->rows.count = 0;
        bool good = iq_factor_decode(&host->spec, &host->call, 0, blob, host->bytes[0], &host->rows) == ISGQ_SUCCESS;
        ck_assert_msg(decode_messages(&device) == good, "try %zu: the host %s this blob", i, good ? "takes" : "refuses");
        if (good)
            check_integers(&device);
        accepted += good;
        refused += !good;
        for (size_t k = i % 3 + 1; k-- > 0;)
            blob[at[k]] = before[k];
    }
    ck_assert_uint_gt(accepted, 0);
    ck_assert_uint_gt(refused, 0);
    device_close(&device);
    ranks_destroy(host);
}

START_TEST(damaged_blobs)
{
    static const size_t batch[] = {6};
    const iq_factor_spec_t specs[] = {widths(4, 4), widths(3, 8), budget(4), budget(6)};
    for (size_t i = 0; i < 4; i++) {
        ranks_t *ranks = ranks_create(specs[i], shape(1, 19, 13, i % 2 == 0), batch);
        fill_normal(ranks, 17 + i, i % 2 == 1, 1);
        if (i > 1)
            thin_out(ranks, 3);
        damage(ranks, 150);
    }
}
END_TEST

/* Any other table than the blob's own is refused, and so is rubbish; nothing else is touched. */
START_TEST(damaged_tables)
{
    static const size_t batch[] = {5, 3};
    ranks_t *ranks = ranks_create(budget(5), shape(2, 19, 13, true), batch);
    fill_normal(ranks, 17, true, 1);
    encode_all(ranks, 1);
    device_t device = device_open(ranks);
    check_encoding(&device, 0);
    memcpy(device.messages.host, box_result(&device.messages), device.messages.bytes);
    uint32_t counts[2], *table = (uint32_t *)(void *)device.messages.host;
    for (int r = 0; r < 2; r++)
        memcpy(&counts[r], message_of(&device, device.messages.host, r) + device.blob_at + 4, 4);
    for (uint32_t k = 0; k <= counts[0] + 1; k++)
        for (int bit = 0; bit < 32; bit++) {
            uint32_t i = k <= counts[0] ? k : (uint32_t)ranks->call.max_batch; /* entries between mean nothing */
            table[i] ^= 1u << bit;
            box_push(&device.messages);
            ck_assert_msg(!decode_messages(&device), "entry %u, bit %d: a wrong table was taken", i, bit);
            table[i] ^= 1u << bit;
        }
    for (int i = 0; i < 100; i++) {
        for (size_t k = i % 2 == 0 ? 0 : device.blob_at + 8; k < device.messages.bytes; k++)
            device.messages.host[k] = (unsigned char)random_bits();
        box_push(&device.messages);
        ck_assert(!decode_messages(&device));
    }
    device_close(&device);
    ranks_destroy(ranks);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("cuda_factor");
    TCase *shapes = tcase_create("shapes");
    tcase_add_checked_fixture(shapes, cuda_start, cuda_end);
    tcase_add_test(shapes, every_shape);
    tcase_add_test(shapes, every_width);
    suite_add_tcase(suite, shapes);
    TCase *sizes = tcase_create("sizes");
    tcase_add_checked_fixture(sizes, cuda_start, cuda_end);
    tcase_add_test(sizes, every_budget);
    tcase_add_test(sizes, many_rows);
    tcase_add_test(sizes, large_products);
    suite_add_tcase(suite, sizes);
    TCase *edges = tcase_create("edges");
    tcase_add_checked_fixture(edges, cuda_start, cuda_end);
    tcase_add_test(edges, nothing_to_send);
    tcase_add_test(edges, what_is_not_finite);
    tcase_add_test(edges, extremes);
    tcase_add_test(edges, replays_draw_anew);
    tcase_add_test(edges, sums_stay_whole);
    suite_add_tcase(suite, edges);
    TCase *damaged = tcase_create("damage");
    tcase_add_checked_fixture(damaged, cuda_start, cuda_end);
    tcase_add_test(damaged, damaged_blobs);
    tcase_add_test(damaged, damaged_tables);
    suite_add_tcase(suite, damaged);
    return suite;
}
