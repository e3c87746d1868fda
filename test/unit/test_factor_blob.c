/* SPDX-License-Identifier: Apache-2.0 */
/* Blobs that nobody of ours wrote: decode refuses or accepts them, and touches nothing beyond its arrays either way. */
#include "support/check_main.h"
#include "support/factor_ranks.h"

static uint32_t random_word(uint64_t index) { return iq_draw(99, 0, 1, 0, index * 4).word[0]; }

/* Decode exactly `bytes` bytes (a copy of that size, for the address sanitizer); an accepted blob must keep all promises. */
static isgq_result_t decode_copy(ranks_t *ranks, const unsigned char *blob, size_t bytes)
{
    const iq_factor_call_t *call = &ranks->call;
    unsigned char *copy = malloc(bytes > 0 ? bytes : 1);
    memcpy(copy, blob, bytes);
    ranks->rows.count = 0;
    isgq_result_t result = iq_factor_decode(&ranks->spec, call, 0, copy, bytes, &ranks->rows);
    free(copy);
    require(result == ISGQ_SUCCESS || result == ISGQ_ERR_CORRUPT, "an unknown status");
    require(ranks->rows.count <= (result == ISGQ_SUCCESS ? call->max_batch : 0), "rows of a refused blob");
    bool good = true;
    for (size_t r = 0; r < ranks->rows.count; r++)
        good &= ranks->rows.weight_c[r] <= 15 << (IQ_FACTOR_OCTAVES - 1);
    int finer = 1 << call->fraction, most = ranks->spec.levels > 0 ? 4095 : 255 * finer + finer / 2;
    for (size_t i = 0; i < ranks->rows.count * call->m; i++)
        good &= ranks->rows.q[i] >= -most && ranks->rows.q[i] <= most;
    for (size_t j = 0; j < ranks->rows.count * call->n; j++)
        good &= ranks->rows.p[j] >= -most && ranks->rows.p[j] <= most;
    require(good, "a weight or a code out of range");
    return result;
}

static ranks_t *make_ranks(iq_factor_spec_t spec, bool bias, bool relu)
{
    static const size_t batch[] = {6};
    ranks_t *ranks = ranks_create(spec, shape(1, 19, 13, bias), batch);
    fill_normal(ranks, 17, relu, 1);
    encode_all(ranks, 1);
    ck_assert_int_eq(decode_copy(ranks, ranks->blob[0], ranks->bytes[0]), ISGQ_SUCCESS);
    return ranks;
}

/* Decoded rows from a rank of the same host: cut, with more rows than a batch, with weights beyond the grid. */
START_TEST(test_damaged_rows)
{
    ranks_t *ranks = make_ranks(widths(4, 4), true, false);
    iq_factor_rows_t rows;
    size_t most = iq_factor_rows_bytes(&ranks->call), used, bytes;
    uint64_t *packed = malloc(most), *copy;
    bytes = iq_factor_rows_pack(&ranks->call, &ranks->rows, packed);
    ck_assert_uint_gt(ranks->rows.count, 2);
    for (size_t length = 0; length < bytes; length++) {
        copy = malloc(length > 0 ? length : 1); /* exact, for the address sanitizer */
        memcpy(copy, packed, length);
        ck_assert_int_eq(iq_factor_rows_open(&ranks->spec, &ranks->call, copy, length, &rows, &used), ISGQ_ERR_CORRUPT);
        free(copy);
    }
    for (size_t word = 0; word < 1 + 2 * ranks->rows.count; word++) { /* the count, and all weights */
        uint64_t good = packed[word];
        packed[word] = UINT64_MAX / 3;
        ck_assert_int_eq(iq_factor_rows_open(&ranks->spec, &ranks->call, packed, bytes, &rows, &used), ISGQ_ERR_CORRUPT);
        packed[word] = 17; /* five bits where a weight has four */
        ck_assert_int_eq(iq_factor_rows_open(&ranks->spec, &ranks->call, packed, bytes, &rows, &used), ISGQ_ERR_CORRUPT);
        packed[word] = (uint64_t)-8;
        ck_assert_int_eq(iq_factor_rows_open(&ranks->spec, &ranks->call, packed, bytes, &rows, &used), ISGQ_ERR_CORRUPT);
        packed[word] = good;
    }
    ck_assert_int_eq(iq_factor_rows_open(&ranks->spec, &ranks->call, packed, bytes, &rows, &used), ISGQ_SUCCESS);
    free(packed);
    ranks_destroy(ranks);
}
END_TEST

/* Columns of decoded rows, which come from anywhere: cut, longer, of too many rows, with a weight that is none, a width beyond 16, codes beyond
 * 16 bits. */
START_TEST(test_damaged_parts)
{
    ranks_t *ranks = make_ranks(widths(4, 4), true, false);
    iq_factor_part_t part = {.i = 3, .m = 9, .j = 5, .n = 8};
    iq_factor_call_t block = ranks->call;
    block.m = part.m;
    block.n = part.n;
    iq_factor_rows_t rows;
    void *memory = aligned_alloc(64, iq_factor_rows_layout(&block, block.max_batch, NULL, NULL));
    iq_factor_rows_layout(&block, block.max_batch, memory, &rows);
    size_t most = iq_factor_part_bytes(&ranks->call, &part, 16);
    unsigned char *good = malloc(most + 1);
    size_t bytes = iq_factor_part_pack(&ranks->call, &ranks->rows, &part, good);
    ck_assert_uint_le(bytes, iq_factor_part_bytes(&ranks->call, &part, 4));
    ck_assert_int_eq(iq_factor_part_open(&ranks->spec, &block, good, bytes, &rows), ISGQ_SUCCESS);
    ck_assert_uint_eq(rows.count, ranks->rows.count);
    for (size_t r = 0; r < rows.count; r++) {
        ck_assert(rows.weight_c[r] == ranks->rows.weight_c[r] && rows.weight_b[r] == ranks->rows.weight_b[r]);
        ck_assert_mem_eq(rows.q + r * block.m, ranks->rows.q + r * 19 + part.i, block.m * sizeof(int16_t));
        ck_assert_mem_eq(rows.p + r * block.n, ranks->rows.p + r * 13 + part.j, block.n * sizeof(int16_t));
    }
    ck_assert_int_eq(iq_factor_part_open(&ranks->spec, &block, good, bytes, &rows), ISGQ_ERR_CORRUPT); /* no room for more */
    static const struct {
        size_t at;
        unsigned char value;
    } wrong[] = {{0, 7}, {3, 1}, {4, 17}, {5, 0xff}, {8, 17}, {10, 0x7f}};
    for (size_t i = 0; i < IQ_ARRAY_SIZE(wrong); i++) {
        unsigned char old = good[wrong[i].at];
        rows.count = 0;
        good[wrong[i].at] = wrong[i].value;
        good[9] = i == 5 ? 0xff : good[9]; /* smallest code 32767 */
        ck_assert_msg(iq_factor_part_open(&ranks->spec, &block, good, bytes, &rows) == ISGQ_ERR_CORRUPT, "byte %zu", wrong[i].at);
        good[wrong[i].at] = old;
    }
    iq_factor_part_pack(&ranks->call, &ranks->rows, &part, good);
    good[bytes] = 0;
    rows.count = 0;
    ck_assert_int_eq(iq_factor_part_open(&ranks->spec, &block, good, bytes + 1, &rows), ISGQ_ERR_CORRUPT);
    for (size_t length = 0; length < bytes; length++) {
        unsigned char *copy = malloc(length > 0 ? length : 1); /* exact, for the address sanitizer */
        memcpy(copy, good, length);
        rows.count = 0;
        ck_assert_int_eq(iq_factor_part_open(&ranks->spec, &block, copy, length, &rows), ISGQ_ERR_CORRUPT);
        free(copy);
    }
    free(good);
    free(memory);
    ranks_destroy(ranks);
}
END_TEST

/* The same of rows cut up for their owners. */
static void check_largest_of_parts(ranks_t *ranks, int most_x, int most_delta)
{
    iq_factor_part_t all = {.m = ranks->call.m, .n = ranks->call.n};
    iq_factor_rows_t rows;
    void *memory = aligned_alloc(64, iq_factor_rows_layout(&ranks->call, ranks->call.max_batch, NULL, NULL));
    void *bytes = malloc(iq_factor_part_bytes(&ranks->call, &all, 16));
    iq_factor_rows_layout(&ranks->call, ranks->call.max_batch, memory, &rows);
    for (int i = 0; i < 8; i++) {
        int16_t *code = i % 2 == 0 ? ranks->rows.q : ranks->rows.p, good = *code;
        int most = (i % 2 == 0 ? most_x : most_delta) + i / 4;
        *code = (int16_t)(i / 2 % 2 == 0 ? most : -most);
        rows.count = 0;
        isgq_result_t result = iq_factor_part_open(&ranks->spec, &ranks->call, bytes, iq_factor_part_pack(&ranks->call, &ranks->rows, &all, bytes), &rows);
        ck_assert_msg(result == (i < 4 ? ISGQ_SUCCESS : ISGQ_ERR_CORRUPT), "a code of %d: %d", *code, result);
        *code = good;
    }
    free(bytes);
    free(memory);
}

/* The largest code of either factor is taken, and the next refused: one that large would make sums that are not exact. */
START_TEST(test_damaged_codes)
{
    static const struct {
        iq_factor_spec_t spec;
        int x, delta;
    } cases[] = {
        {{.width_x = 4, .width_delta = 3}, 15, 3},
        {{.budget_bits = 3}, 255, 127},
        {{.budget_bits = 3, .dither = true, .coded = true}, 255 * 32 + 15, 127 * 32 + 15},
        {{.method = IQ_FACTOR_MSE, .levels = 4}, 4095, 4095},
        {{.method = IQ_FACTOR_DITHERED, .width_x = 4, .width_delta = 3}, 7 * 32 + 15, 3 * 32 + 15},
    };
    for (size_t c = 0; c < IQ_ARRAY_SIZE(cases); c++) {
        ranks_t *ranks = make_ranks(cases[c].spec, true, false);
        iq_factor_rows_t rows;
        uint64_t *packed = malloc(iq_factor_rows_bytes(&ranks->call));
        size_t used, bytes = iq_factor_rows_pack(&ranks->call, &ranks->rows, packed), count = ranks->rows.count;
        int16_t *q = (int16_t *)(void *)(packed + 1 + 2 * count), *p = q + count * ranks->call.m;
        int16_t *last[] = {&q[count * ranks->call.m - 1], &p[count * ranks->call.n - 1]};
        for (int side = 0; side < 2; side++)
            for (int sign = -1; sign <= 1; sign += 2) {
                int16_t good = *last[side];
                int most = side == 0 ? cases[c].x : cases[c].delta;
                *last[side] = (int16_t)(sign * most);
                ck_assert_int_eq(iq_factor_rows_open(&ranks->spec, &ranks->call, packed, bytes, &rows, &used), ISGQ_SUCCESS);
                *last[side] = (int16_t)(sign * (most + 1));
                ck_assert_msg(iq_factor_rows_open(&ranks->spec, &ranks->call, packed, bytes, &rows, &used) == ISGQ_ERR_CORRUPT,
                              "case %zu: %d was taken", c, sign * (most + 1));
                *last[side] = good;
            }
        free(packed);
        check_largest_of_parts(ranks, cases[c].x, cases[c].delta);
        ranks_destroy(ranks);
    }
}
END_TEST

static void fuzz(iq_factor_spec_t spec, bool bias, bool relu)
{
    ranks_t *ranks = make_ranks(spec, bias, relu);
    size_t bytes = ranks->bytes[0], accepted = 0;
    unsigned char blob[512];
    ck_assert_uint_lt(bytes, sizeof(blob) - 8);
    for (size_t length = 0; length < bytes; length++) /* cut anywhere */
        ck_assert_int_eq(decode_copy(ranks, ranks->blob[0], length), ISGQ_ERR_CORRUPT);
    memset(blob, 0, sizeof(blob));
    memcpy(blob, ranks->blob[0], bytes);
    ck_assert_int_eq(decode_copy(ranks, blob, bytes + 1), ISGQ_ERR_CORRUPT);
    for (uint64_t i = 0; i < 5000; i++) { /* one to three bytes changed */
        memcpy(blob, ranks->blob[0], bytes);
        for (uint64_t k = 0; k <= i % 3; k++)
            blob[random_word(i * 8 + k) % bytes] ^= (unsigned char)(1 + random_word(i * 8 + k + 4) % 255);
        accepted += decode_copy(ranks, blob, bytes) == ISGQ_SUCCESS;
    }
    ck_assert_uint_gt(accepted, 0);       /* a changed code is another legal code */
    for (uint64_t i = 0; i < 5000; i++) { /* rubbish behind a good start */
        size_t good = i % 2 == 0 ? 8 : 0, length = random_word(900000 + i) % sizeof(blob);
        memcpy(blob, ranks->blob[0], 8);
        for (size_t at = good; at < sizeof(blob); at += 4) {
            uint32_t word = random_word(i * 512 + at);
            memcpy(blob + at, &word, 4);
        }
        decode_copy(ranks, blob, length);
    }
    ranks_destroy(ranks);
}

START_TEST(test_fuzz)
{
    fuzz(widths(4, 4), true, false);
    fuzz(widths(3, 8), false, true);
    fuzz(budget(4), true, true);
    fuzz(budget(6), false, false);
}
END_TEST

START_TEST(test_fuzz_versions)
{
    static const iq_factor_spec_t specs[] = {
        {.width_x = 4, .width_delta = 5, .dither = true},
        {.budget_bits = 4, .dither = true, .coded = true},
        {.width_x = 3, .width_delta = 3, .coded = true},
        {.budget_bits = 4, .dither = true, .svd = true},
        {.method = IQ_FACTOR_MSE, .levels = 2},
        {.method = IQ_FACTOR_MSE, .levels = 4, .coded = true},
        {.method = IQ_FACTOR_MVU, .levels = 8},
        {.method = IQ_FACTOR_DITHERED, .width_x = 3, .width_delta = 5},
        {.method = IQ_FACTOR_DITHERED, .width_x = 4, .width_delta = 4, .coded = true},
    };
    for (size_t s = 0; s < IQ_ARRAY_SIZE(specs); s++) {
        fuzz(specs[s], true, false);
        fuzz(specs[s], false, true);
    }
}
END_TEST

/* A blob of one quantizer is damage to every other one. */
START_TEST(test_versions)
{
    static const iq_factor_spec_t specs[] = {
        {.width_x = 4, .width_delta = 4},
        {.width_x = 4, .width_delta = 4, .dither = true},
        {.method = IQ_FACTOR_MSE, .levels = 4},
        {.method = IQ_FACTOR_DITHERED, .width_x = 4, .width_delta = 4},
    };
    for (size_t s = 0; s < IQ_ARRAY_SIZE(specs); s++) {
        ranks_t *ranks = make_ranks(specs[s], true, false);
        ck_assert_uint_eq(ranks->blob[0][0], s + 1);
        for (size_t other = 0; other < IQ_ARRAY_SIZE(specs); other++) {
            ranks->spec = specs[other];
            ck_assert_int_eq(decode_copy(ranks, ranks->blob[0], ranks->bytes[0]), other == s ? ISGQ_SUCCESS : ISGQ_ERR_CORRUPT);
        }
        ranks_destroy(ranks);
    }
}
END_TEST

/* Every field by itself, on a blob of one row: C, form, X in 4 bits (8 columns), delta in 4 bits (8 columns). */
START_TEST(test_fields)
{
    static const size_t batch[] = {1};
    static const unsigned char good[] = {1,          1,    0,    0,    1,    0,    0,    0,    12 << 3 | 7,
                                         3 << 3 | 3, 0x21, 0x43, 0x65, 0x87, 0x10, 0x32, 0x54, 0xe6};
    static const struct {
        size_t at;
        unsigned char value;
    } bad[] = {
        {0, 0},      {0, 2},     {1, 3},    {1, 5},          {2, 1},          {3, 1},
        {4, 2},      {7, 1},     {8, 0},    {8, 3},          {8, 13 << 3},    {8, 255},
        {9, 3 << 3}, {9, 3},     {9, 0xff}, {9, 2 << 3 | 3}, {9, 3 << 3 | 4}, {9, 0x40 | 3 << 3 | 3},
        {17, 0xf6},  {17, 0xef},
    };
    ranks_t *ranks = ranks_create(widths(4, 4), shape(1, 8, 8, false), batch);
    unsigned char blob[sizeof(good)];
    ck_assert_int_eq(decode_copy(ranks, good, sizeof(good)), ISGQ_SUCCESS);
    ck_assert_int_eq(ranks->rows.weight_c[0], 15 << 11);
    for (int i = 0; i < 8; i++)
        ck_assert_int_eq(ranks->rows.q[i], i + 1);
    for (int j = 0; j < 8; j++)
        ck_assert_int_eq(ranks->rows.p[j], j == 7 ? 7 : j - 7);
    for (size_t k = 0; k < IQ_ARRAY_SIZE(bad); k++) {
        memcpy(blob, good, sizeof(good));
        blob[bad[k].at] = bad[k].value;
        ck_assert_msg(decode_copy(ranks, blob, sizeof(blob)) == ISGQ_ERR_CORRUPT, "byte %zu as %u was accepted", bad[k].at,
                      bad[k].value);
    }
    ranks_destroy(ranks);
}
END_TEST

/* A zero plane: canonical or refused. X: columns 1 and 3 hold 5 and 9. */
START_TEST(test_zero_plane)
{
    static const size_t batch[] = {1};
    unsigned char blob[] = {1, 1, 0, 0, 1, 0, 0, 0, 1 << 3, 0x40 | 3 << 3 | 3, 0x0a, 0x95, 0, 0, 0, 0x47, 0x03, 0, 0};
    ranks_t *ranks = ranks_create(widths(4, 4), shape(1, 5, 3, false), batch);
    ck_assert_int_eq(decode_copy(ranks, blob, sizeof(blob)), ISGQ_SUCCESS);
    static const int16_t q[] = {0, 5, 0, 9, 0}, p[] = {0, -3, -4};
    ck_assert_mem_eq(ranks->rows.q, q, sizeof(q));
    ck_assert_mem_eq(ranks->rows.p, p, sizeof(p));
    blob[11] = 0x90; /* a zero among the non-zero */
    ck_assert_int_eq(decode_copy(ranks, blob, sizeof(blob)), ISGQ_ERR_CORRUPT);
    blob[11] = 0x95;
    blob[10] = 0x2a; /* a column that is none */
    ck_assert_int_eq(decode_copy(ranks, blob, sizeof(blob)), ISGQ_ERR_CORRUPT);
    blob[10] = 0x0a;
    blob[13] = 1; /* bits after the last code */
    ck_assert_int_eq(decode_copy(ranks, blob, sizeof(blob)), ISGQ_ERR_CORRUPT);
    ranks_destroy(ranks);
}
END_TEST

/* A second blob that does not fit leaves the rows of the first. */
START_TEST(test_too_many_rows)
{
    ranks_t *ranks = make_ranks(widths(4, 4), true, false);
    size_t before = ranks->rows.count;
    ck_assert_uint_gt(before, 0);
    ck_assert_int_eq(iq_factor_decode(&ranks->spec, &ranks->call, 0, ranks->blob[0], ranks->bytes[0], &ranks->rows),
                     ISGQ_ERR_CORRUPT);
    ck_assert_uint_eq(ranks->rows.count, before);
    ranks_destroy(ranks);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("factor_blob");
    TCase *fuzzed = tcase_create("fuzz"), *format = tcase_create("format");
    tcase_set_timeout(fuzzed, 120);
    tcase_add_test(fuzzed, test_fuzz);
    tcase_add_test(fuzzed, test_fuzz_versions);
    tcase_add_test(format, test_fields);
    tcase_add_test(format, test_versions);
    tcase_add_test(format, test_zero_plane);
    tcase_add_test(format, test_too_many_rows);
    tcase_add_test(format, test_damaged_rows);
    tcase_add_test(format, test_damaged_parts);
    tcase_add_test(format, test_damaged_codes);
    suite_add_tcase(suite, fuzzed);
    suite_add_tcase(suite, format);
    return suite;
}
