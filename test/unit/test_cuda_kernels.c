/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `map` of module "cuda" against its description, element by element and bit for bit: all forms, types, widths and roundings, with
 * buckets, first elements, counts and alignments that fit nothing. A reference in plain C works on host copies of the same bytes.
 */
#include "support/check_main.h"
#include "support/cuda_box.h"
#include "support/require.h"

#include "kernels/kernels.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* One run to try; what is not here is drawn at random. */
typedef struct trial {
    iq_cuda_map_t map; /* pointers into the host's copies */
    box_t src, dst, scales, grid_scales, fault;
} trial_t;

static const isgq_data_type_t float_types[] = {ISGQ_FLOAT32, ISGQ_FLOAT16, ISGQ_BFLOAT16};

static size_t type_bytes(isgq_data_type_t type) { return type == ISGQ_FLOAT32 ? 4 : 2; }

/* ---- the reference ---- */

static float load_value(isgq_data_type_t type, const void *data, size_t i)
{
    if (type == ISGQ_FLOAT32)
        return ((const iq_f32_any_t *)data)[i];
    uint16_t half = ((const iq_u16_any_t *)data)[i];
    return type == ISGQ_FLOAT16 ? iq_f16_to_float(half) : iq_bf16_to_float(half);
}

static void store_value(isgq_data_type_t type, void *data, size_t i, float value)
{
    if (type == ISGQ_FLOAT32)
        ((iq_f32_any_t *)data)[i] = value;
    else
        ((iq_u16_any_t *)data)[i] = type == ISGQ_FLOAT16 ? iq_float_to_f16(value) : iq_float_to_bf16(value);
}

static float round_to(isgq_data_type_t type, float value)
{
    if (type == ISGQ_FLOAT16)
        return iq_f16_to_float(iq_float_to_f16(value));
    return type == ISGQ_BFLOAT16 ? iq_bf16_to_float(iq_float_to_bf16(value)) : value;
}

static uint32_t load_code(const unsigned char *packed, unsigned width, size_t i)
{
    uint32_t code = 0;
    for (unsigned bit = 0; bit < width; bit++)
        code |= (uint32_t)(packed[(i * width + bit) / 8] >> (i * width + bit) % 8 & 1) << bit;
    return code;
}

static void store_code(unsigned char *packed, unsigned width, size_t i, uint32_t code)
{
    for (unsigned bit = 0; bit < width; bit++) {
        size_t at = i * width + bit;
        packed[at / 8] = (unsigned char)((packed[at / 8] & ~(1u << at % 8)) | (code >> bit & 1) << at % 8);
    }
}

static float scale_of(const iq_cuda_map_t *map, const float *scales, size_t i)
{
    return map->bucket == 0 ? scales[0] : scales[(map->first + i) / map->bucket - map->first / map->bucket];
}

static uint32_t code_of(const iq_cuda_map_t *map, size_t i, float value)
{
    const iq_cuda_grid_t *grid = &map->grid;
    uint64_t element = map->first + i;
    int32_t low = grid->top == 1 ? 0 : -(int32_t)(grid->top / 2), high = grid->top == 1 ? 1 : (int32_t)(grid->top / 2);
    float y = value * iq_inverse_step(grid->top, scale_of(map, grid->scales, i)) + (grid->top == 1 ? 0.5f : 0.0f);
    if (!grid->stochastic)
        return (uint32_t)(iq_round_nearest(y, low, high) - low);
    iq_philox_block_t block = iq_draw(grid->seed, grid->call, grid->stream, grid->rank, element);
    return (uint32_t)(iq_round_stochastic(y, block.word[element % 4] >> 8, low, high) - low);
}

static void refer_element(const iq_cuda_map_t *map, size_t i)
{
    const iq_cuda_source_t *source = &map->source;
    const iq_cuda_target_t *target = &map->target;
    uint32_t code = 0;
    float value = 0.0f;
    if (source->form == IQ_CUDA_CODES)
        code = load_code(source->data, source->width, i);
    else if (source->form == IQ_CUDA_SUMS)
        code = ((const iq_u32_any_t *)source->data)[i];
    if (map->grid.used || target->form == IQ_CUDA_VALUES) {
        if (source->form == IQ_CUDA_VALUES)
            value = load_value(source->type, source->data, i);
        else
            value = (float)(int32_t)(2 * code - (uint32_t)source->zero) * iq_half_step(source->top, scale_of(map, source->scales, i));
        value = round_to(map->through, value / source->divisor);
    }
    if (map->grid.used) {
        code = code_of(map, i, value);
        value = (float)((int32_t)(2 * code) - (int32_t)map->grid.top) * iq_half_step(map->grid.top, scale_of(map, map->grid.scales, i));
    }
    if (target->form == IQ_CUDA_CODES) {
        store_code(target->data, target->width, i, code);
    } else if (target->form == IQ_CUDA_SUMS) {
        iq_u32_any_t *sums = target->data;
        sums[i] = code + (target->accumulate ? sums[i] : 0);
    } else {
        value = round_to(target->type, value);
        if (target->accumulate)
            value = load_value(target->type, target->data, i) + value;
        store_value(target->type, target->data, i, value);
    }
}

static void refer(const iq_cuda_map_t *map)
{
    if (map->target.form == IQ_CUDA_CODES)
        memset(map->target.data, 0, iq_packed_bytes(map->count, map->target.width));
    for (size_t i = 0; i < map->count; i++)
        refer_element(map, i);
}

/* ---- inputs ---- */

static float random_value(void)
{
    static const uint32_t special[] = {0x00000000, 0x80000000, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc12345, 0x00000001, 0x80000001,
                                       0x3f800000, 0xbf800000, 0x3f000000, 0xbf000000, 0x7f7fffff, 0x33800000, 0xb3800000, 0x477ff000};
    if (random_below(16) == 0)
        return iq_bits_float(special[random_below(16)]);
    float value = (float)((double)random_bits() / 2147483648.0 - 1.0);
    return random_below(8) == 0 ? value * 1e-6f : value * 1.01f;
}

static void fill_values(isgq_data_type_t type, void *data, size_t count)
{
    for (size_t i = 0; i < count; i++)
        store_value(type, data, i, random_value());
}

static void fill_scales(box_t *box)
{
    static const uint32_t special[] = {0x00000000, 0x7f800000, 0x00000001, 0x7f7fffff, 0x03000000, 0x3f800000, 0x3f800000, 0x3f800000};
    for (size_t i = 0; i < box->bytes / 4; i++)
        ((float *)box->host)[i] = random_below(6) == 0 ? iq_bits_float(special[random_below(8)]) : 1.0f + (float)random_below(100) / 300.0f;
    box_push(box);
}

static size_t bytes_of(iq_cuda_form_t form, isgq_data_type_t type, unsigned width, size_t count)
{
    if (form == IQ_CUDA_CODES)
        return iq_packed_bytes(count, width);
    return count * (form == IQ_CUDA_SUMS ? 4 : type_bytes(type));
}

/* Elements may begin anywhere, packed codes at multiples of 4. */
static size_t random_skew(iq_cuda_form_t form, isgq_data_type_t type)
{
    if (random_below(2) == 0)
        return 0;
    return form == IQ_CUDA_VALUES ? random_below(16) * type_bytes(type) : random_below(16) * 4;
}

static void fill_source(trial_t *trial)
{
    iq_cuda_source_t *source = &trial->map.source;
    size_t count = trial->map.count;
    if (source->form == IQ_CUDA_VALUES)
        fill_values(source->type, trial->src.host, count);
    else if (source->form == IQ_CUDA_SUMS)
        for (size_t i = 0; i < count; i++)
            ((iq_u32_any_t *)trial->src.host)[i] = random_below(source->most + 1);
    else
        memset(trial->src.host, 0, trial->src.bytes);
    if (source->form == IQ_CUDA_CODES)
        for (size_t i = 0; i < count; i++)
            store_code(trial->src.host, source->width, i, source->most == UINT32_MAX ? random_bits() : random_below(source->most + 1));
    box_push(&trial->src);
}

static void choose_place(iq_cuda_map_t *map)
{
    static const size_t buckets[] = {0, 0, 1, 3, 4, 64, 100, 128, 512, 512, 1000, 1024, (size_t)3 << 31};
    static const uint64_t firsts[] = {0, 0, 512, 4096, 1, 2, 3, 1023, ((uint64_t)1 << 34) - 8, ((uint64_t)5 << 34) + 4, ((uint64_t)3 << 31) - 70};
    static const size_t counts[] = {1, 3, 7, 8, 9, 255, 257, 511, 512, 513, 1024, 1536, 2051, 3000};
    map->bucket = buckets[random_below(13)];
    map->first = firsts[random_below(11)];
    map->count = counts[random_below(14)];
}

/* A run between two forms with everything else at random. */
static trial_t trial_new(iq_cuda_form_t from, iq_cuda_form_t to, bool grid)
{
    static const uint32_t tops[] = {1, 2, 6, 14, 30, 62, 126, 254};
    trial_t trial = {.map = {.through = float_types[random_below(4) == 0 ? random_below(3) : 0]}};
    iq_cuda_map_t *map = &trial.map;
    uint32_t ranks = random_below(3) == 0 ? 1 : 1 + random_below(9);
    choose_place(map);
    unsigned bits = random_below(8);
    map->source = (iq_cuda_source_t){.form = from, .type = float_types[random_below(3)], .foreign_scales = random_below(2) == 0,
                                     .divisor = random_below(3) == 0 ? 3.0f : 1.0f};
    map->source.top = tops[bits];
    map->source.zero = (int32_t)(ranks * tops[bits]);
    map->source.most = ranks * tops[bits];
    for (map->source.width = 1; map->source.most >> map->source.width != 0;)
        map->source.width++;
    map->grid = (iq_cuda_grid_t){.used = grid, .stochastic = random_below(3) != 0, .top = tops[random_below(8)],
                                 .stream = random_below(5), .rank = random_below(1000)};
    map->grid.seed = (uint64_t)random_bits() << 32 | random_bits();
    map->grid.call = (uint64_t)random_below(9) << 32 | random_bits();
    map->target = (iq_cuda_target_t){.form = to, .type = float_types[random_below(3)]};
    map->target.width = map->source.width + (random_below(3) == 0 ? random_below(33 - map->source.width) : 0);
    if (grid)
        for (map->target.width = 1; map->grid.top >> map->target.width != 0;)
            map->target.width++;
    map->target.accumulate = to != IQ_CUDA_CODES && random_below(2) == 0;
    return trial;
}

/* ---- comparing ---- */

static bool same_value(isgq_data_type_t type, const void *one, const void *other, size_t i)
{
    float a = load_value(type, one, i), b = load_value(type, other, i);
    return (isnan(a) && isnan(b)) || memcmp((const char *)one + i * type_bytes(type), (const char *)other + i * type_bytes(type),
                                            type_bytes(type)) == 0;
}

static void complain(const iq_cuda_map_t *map, size_t i)
{
    ck_abort_msg("form %d type %d width %u -> form %d type %d width %u%s, grid %d top %u %s, through %d, divisor %g, first %llu, bucket "
                 "%zu, count %zu, source at %p: element %zu differs",
                 map->source.form, map->source.type, map->source.width, map->target.form, map->target.type, map->target.width,
                 map->target.accumulate ? " +" : "", map->grid.used, map->grid.top, map->grid.stochastic ? "stochastic" : "nearest",
                 map->through, (double)map->source.divisor, (unsigned long long)map->first, map->bucket, map->count, map->source.data, i);
}

static void compare(const trial_t *trial, const unsigned char *found)
{
    const iq_cuda_map_t *map = &trial->map;
    const unsigned char *expected = trial->dst.host;
    if (map->target.form == IQ_CUDA_VALUES) {
        for (size_t i = 0; i < map->count; i++)
            if (!same_value(map->target.type, found, expected, i))
                complain(map, i);
        return;
    }
    for (size_t byte = 0; byte < trial->dst.bytes; byte++)
        if (found[byte] != expected[byte])
            complain(map, map->target.form == IQ_CUDA_SUMS ? byte / 4 : byte * 8 / map->target.width);
}

/* Runs a trial whose forms, types and widths are set; returns the fault. */
static uint32_t run(trial_t *trial, void (*spoil)(trial_t *))
{
    iq_cuda_map_t *map = &trial->map, there;
    size_t scales = map->bucket == 0 ? 1 : (size_t)((map->first + map->count - 1) / map->bucket - map->first / map->bucket + 1);
    const iq_cuda_source_t *source = &map->source;
    const iq_cuda_target_t *target = &map->target;
    trial->src = box_new(bytes_of(source->form, source->type, source->width, map->count), random_skew(source->form, source->type));
    trial->dst = box_new(bytes_of(target->form, target->type, target->width, map->count), random_skew(target->form, target->type));
    trial->scales = box_new(scales * sizeof(float), 4 * random_below(4));
    trial->grid_scales = box_new(scales * sizeof(float), 4 * random_below(4));
    trial->fault = box_new(4, 0);
    fill_source(trial);
    if (target->form == IQ_CUDA_VALUES)
        fill_values(target->type, trial->dst.host, map->count);
    box_push(&trial->dst);
    fill_scales(&trial->scales);
    fill_scales(&trial->grid_scales);
    REQUIRE(cuda->clear(0, cuda_stream, trial->fault.device, 4) == ISGQ_SUCCESS);
    if (spoil != NULL)
        spoil(trial);

    there = *map;
    there.source.data = trial->src.device;
    there.target.data = trial->dst.device;
    there.source.scales = (const float *)trial->scales.device;
    there.grid.scales = (const float *)trial->grid_scales.device;
    there.fault = (uint32_t *)trial->fault.device;
    ck_assert_msg(cuda->map(0, cuda_stream, &there) == ISGQ_SUCCESS, "%s", iq_last_error());
    map->source.data = trial->src.host;
    map->target.data = trial->dst.host;
    map->source.scales = (const float *)trial->scales.host;
    map->grid.scales = (const float *)trial->grid_scales.host;
    refer(map);
    compare(trial, box_result(&trial->dst));

    uint32_t fault;
    memcpy(&fault, box_result(&trial->fault), 4);
    box_t *boxes[] = {&trial->src, &trial->dst, &trial->scales, &trial->grid_scales, &trial->fault};
    for (int i = 0; i < 5; i++)
        box_free(boxes[i]);
    return fault;
}

static void try_many(iq_cuda_form_t from, iq_cuda_form_t to, bool grid, int runs)
{
    for (int i = 0; i < runs; i++) {
        trial_t trial = trial_new(from, to, grid);
        REQUIRE(run(&trial, NULL) == IQ_CUDA_NO_FAULT);
    }
}

/* ---- cases ---- */

START_TEST(values_become_values)
{
    try_many(IQ_CUDA_VALUES, IQ_CUDA_VALUES, false, 150);
    try_many(IQ_CUDA_VALUES, IQ_CUDA_VALUES, true, 150);
}
END_TEST

START_TEST(values_become_codes)
{
    try_many(IQ_CUDA_VALUES, IQ_CUDA_CODES, true, 500);
    try_many(IQ_CUDA_VALUES, IQ_CUDA_SUMS, true, 200);
}
END_TEST

START_TEST(codes_become_values)
{
    try_many(IQ_CUDA_CODES, IQ_CUDA_VALUES, false, 300);
    try_many(IQ_CUDA_SUMS, IQ_CUDA_VALUES, false, 200);
    try_many(IQ_CUDA_CODES, IQ_CUDA_VALUES, true, 100);
    try_many(IQ_CUDA_SUMS, IQ_CUDA_VALUES, true, 100);
}
END_TEST

START_TEST(codes_become_sums_and_back)
{
    try_many(IQ_CUDA_CODES, IQ_CUDA_SUMS, false, 200);
    try_many(IQ_CUDA_SUMS, IQ_CUDA_CODES, false, 200);
    try_many(IQ_CUDA_CODES, IQ_CUDA_CODES, false, 60);
    try_many(IQ_CUDA_SUMS, IQ_CUDA_SUMS, false, 60);
}
END_TEST

START_TEST(sums_become_codes_of_their_values)
{
    try_many(IQ_CUDA_SUMS, IQ_CUDA_CODES, true, 200);
    try_many(IQ_CUDA_SUMS, IQ_CUDA_SUMS, true, 60);
    try_many(IQ_CUDA_CODES, IQ_CUDA_CODES, true, 60);
    try_many(IQ_CUDA_CODES, IQ_CUDA_SUMS, true, 60);
}
END_TEST

/* Every width there is, full of any bits. */
START_TEST(widths_up_to_32)
{
    for (unsigned width = 1; width <= 32; width++) {
        for (int i = 0; i < 6; i++) {
            trial_t trial = trial_new(i % 2 == 0 ? IQ_CUDA_CODES : IQ_CUDA_SUMS, i % 2 == 0 ? IQ_CUDA_SUMS : IQ_CUDA_CODES, false);
            trial.map.source.width = trial.map.target.width = width;
            trial.map.source.most = (uint32_t)(((uint64_t)1 << width) - 1);
            if (i % 2 != 0)
                trial.map.source.most -= width == 32; /* random_below's end */
            REQUIRE(run(&trial, NULL) == IQ_CUDA_NO_FAULT);
        }
    }
}
END_TEST

/* The widths that have kernels of their own, for all types and both roundings, in every place; what divides them stays out. */
START_TEST(widths_4_and_8)
{
    for (int i = 0; i < 480; i++) {
        bool encodes = i & 1;
        unsigned width = i & 2 ? 8 : 4;
        trial_t trial = encodes ? trial_new(IQ_CUDA_VALUES, i & 4 ? IQ_CUDA_SUMS : IQ_CUDA_CODES, true)
                                : trial_new(IQ_CUDA_CODES, i & 4 ? IQ_CUDA_SUMS : IQ_CUDA_VALUES, false);
        trial.map.through = ISGQ_FLOAT32;
        trial.map.source.divisor = encodes || i & 8 ? 1.0f : 7.0f;
        trial.map.grid.top = trial.map.source.top = trial.map.source.most = (1u << width) - 2;
        trial.map.source.zero = (int32_t)trial.map.source.top;
        trial.map.source.width = trial.map.target.width = width;
        if (i % 3 == 0 && trial.map.count > 500)
            trial.map.bucket = i % 2 == 0 ? 0 : 2048, trial.map.count = 5000;
        REQUIRE(run(&trial, NULL) == IQ_CUDA_NO_FAULT);
    }
}
END_TEST

static void spoil_code(trial_t *trial)
{
    size_t i = random_below(2) == 0 ? trial->map.count * 3 / 4 : trial->map.count - 1;
    store_code(trial->src.host, trial->map.source.width, i, trial->map.source.most + 1);
    box_push(&trial->src);
}

static void spoil_padding(trial_t *trial)
{
    trial->src.host[trial->src.bytes - 1] |= 0x80;
    box_push(&trial->src);
}

static void spoil_scale(trial_t *trial)
{
    ((float *)trial->scales.host)[trial->scales.bytes / 4 - 1] = random_below(2) == 0 ? -1.0f : NAN;
    box_push(&trial->scales);
}

START_TEST(faults_are_found)
{
    static const unsigned widths[] = {4, 8, 5, 11};
    for (int i = 0; i < 144; i++) {
        void (*const spoils[])(trial_t *) = {spoil_code, spoil_padding, spoil_scale};
        const uint32_t faults[] = {IQ_CUDA_BAD_CODE, IQ_CUDA_BAD_PADDING, IQ_CUDA_BAD_SCALE};
        int what = i / 4 % 3;
        trial_t trial = trial_new(IQ_CUDA_CODES, what < 2 && i / 12 % 2 == 0 ? IQ_CUDA_SUMS : IQ_CUDA_VALUES, false);
        unsigned width = widths[i % 4];
        trial.map.source.width = width;
        trial.map.source.top = trial.map.source.most = (1u << width) - 2;
        trial.map.source.zero = (int32_t)trial.map.source.top;
        trial.map.source.foreign_scales = true;
        if (i / 24 % 2 == 0)
            trial.map.bucket = 0, trial.map.count = 3000;
        trial.map.count += what == 1 && trial.map.count % 8 == 0;
        REQUIRE(run(&trial, spoils[what]) == faults[what]);
    }
}
END_TEST

START_TEST(own_scales_are_trusted)
{
    for (int i = 0; i < 8; i++) {
        trial_t trial = trial_new(IQ_CUDA_CODES, IQ_CUDA_VALUES, false);
        trial.map.source.foreign_scales = false;
        REQUIRE(run(&trial, spoil_scale) == IQ_CUDA_NO_FAULT);
    }
}
END_TEST

START_TEST(nothing_is_nothing)
{
    iq_cuda_map_t map = {.count = 0};
    REQUIRE(cuda->map(0, cuda_stream, &map) == ISGQ_SUCCESS);
    map.count = 1; /* values cannot become sums without a grid */
    map.target.form = IQ_CUDA_SUMS;
    REQUIRE(cuda->map(0, cuda_stream, &map) == ISGQ_ERR_INTERNAL);
    REQUIRE(strcmp(iq_last_error(), "map: values become codes on a grid only") == 0);
}
END_TEST

static void add(Suite *suite, TCase *tcase, const TTest *const *tests, size_t count)
{
    tcase_add_checked_fixture(tcase, cuda_start, cuda_end);
    for (size_t i = 0; i < count; i++)
        tcase_add_test(tcase, tests[i]);
    suite_add_tcase(suite, tcase);
}

Suite *iq_suite(void)
{
    Suite *suite = suite_create("cuda_kernels");
    const TTest *const forms[] = {values_become_values, values_become_codes, codes_become_values, codes_become_sums_and_back,
                                  sums_become_codes_of_their_values};
    const TTest *const widths[] = {widths_up_to_32, widths_4_and_8};
    const TTest *const faults[] = {faults_are_found, own_scales_are_trusted, nothing_is_nothing};
    add(suite, tcase_create("forms"), forms, 5);
    add(suite, tcase_create("widths"), widths, 2);
    add(suite, tcase_create("faults"), faults, 3);
    return suite;
}
