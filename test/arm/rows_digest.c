/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every row of kernels makes of the same values, as one number for each kernel: all rows of this CPU must agree, and the lines of
 * another architecture must be the same. Needs libc only, so that it can be compiled for a CPU that is not there (arm/check_rows.sh).
 */
#include "kernels/kernels.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { COUNT = 1237, POWER = 1024, KERNELS = 64 };

static float values[COUNT + 1], result[COUNT + 1];
static uint32_t words[COUNT], wide[COUNT + 1];
static uint8_t codes[COUNT], packed[4 * COUNT + 64];
static uint32_t strata[256];

/* ---- digests ---- */

typedef struct digest {
    const char *name[KERNELS];
    uint64_t value[KERNELS];
    int count;
} digest_t;

/* FNV-1a of all bytes that were noted under this name. */
static void note(digest_t *all, const char *name, const void *bytes, size_t count)
{
    int at = 0;
    while (at < all->count && strcmp(all->name[at], name) != 0)
        at++;
    if (at == all->count) {
        all->name[all->count] = name;
        all->value[all->count++] = 14695981039346656037ull;
    }
    for (size_t i = 0; i < count; i++)
        all->value[at] = (all->value[at] ^ ((const unsigned char *)bytes)[i]) * 1099511628211ull;
}

/* ---- inputs ---- */

/* What every run begins with: some values are tiny, one is NaN and one infinite. */
static void prepare(void)
{
    uint32_t random = 1;
    for (int i = 0; i < COUNT; i++) {
        random = random * 1664525u + 1013904223u;
        words[i] = random;
        values[i] = (float)(int32_t)random * 0x1.2p-31f * (i % 5 == 0 ? ldexpf(1.0f, -(i % 140)) : 1.0f);
        codes[i] = (uint8_t)(random >> 24);
    }
    values[2] = NAN;
    values[130] = -INFINITY;
    for (int i = 0; i < 256; i++)
        strata[i] = words[i] >> 8;
}

/* ---- kernels ---- */

static void note_codes(digest_t *all, const iq_kernels_t *row, unsigned width)
{
    static const char *const encodings[] = {"encode nearest", "encode stochastic", "encode stratified"};
    static const uint64_t firsts[] = {0, 5, 0xfffffff0ull, 0x3fffffff0ull};
    int32_t half = (1 << (width - 1)) - 1;
    for (int how = 0; how < 3; how++) {
        for (int k = 0; k < 4; k++) {
            size_t count = (size_t)(COUNT - 3 * k);
            iq_grid_t grid = {.inverse = width == 1 ? 0.5f : (float)half, .shift = width == 1 ? 0.5f : 0.0f, .low = -half,
                              .high = width == 1 ? 1 : half, .stochastic = how > 0, .stream = 3, .rank = 700, .seed = 0x9876543210fedcbaull,
                              .call = 0x123456789abcdef0ull, .strata = how == 2 ? strata : NULL};
            row->encode(&grid, firsts[k], values + 1, count, width, packed);
            note(all, encodings[how], packed, iq_packed_bytes(count, width));
        }
    }
    for (int how = 0; how < 4; how++) {
        memset(result, 0, sizeof(result));
        memcpy(result + 200, values + 200, (COUNT - 200) * sizeof(float)); /* sums without NaN: its bits are each architecture's own */
        uint32_t most = row->decode(packed, COUNT - 9, width, 11, 0.3f, how / 2 ? 3.0f : 1.0f, how % 2, result);
        note(all, "decode", result, sizeof(result));
        note(all, "decode", &most, sizeof(most));
    }
}

static void note_packing(digest_t *all, const iq_kernels_t *row, unsigned width)
{
    for (size_t count = 0; count <= COUNT; count += count < 70 ? 1 : 389) {
        for (size_t i = 0; i < count; i++)
            wide[i] = words[i] & (0xffffffffu >> (32 - width));
        memset(packed, 0, sizeof(packed));
        row->pack32(wide, count, width, packed);
        note(all, "pack32", packed, iq_packed_bytes(count, width) + 1);
        memset(wide, 0, sizeof(wide));
        row->unpack32(packed, count, width, wide);
        note(all, "unpack32", wide, sizeof(wide));
    }
}

static void note_sums(digest_t *all, const iq_kernels_t *row)
{
    const void *terms[] = {values + 200, words, values + 131, codes};
    float most = row->absmax(values + 131, COUNT - 131);
    note(all, "absmax", &most, sizeof(most));
    uint32_t largest = row->add8(codes, COUNT, true, wide);
    note(all, "add8", &largest, sizeof(largest));
    row->add8(codes, COUNT, false, wide);
    note(all, "add8", wide, sizeof(wide));
    largest = row->add32(words, COUNT, false, wide);
    note(all, "add32", &largest, sizeof(largest));
    note(all, "add32", wide, sizeof(wide));
    for (int by = 1; by <= 7; by += 6) {
        row->dequantize(wide, COUNT, 12345, 0.3f, (float)by, result);
        note(all, "dequantize", result, sizeof(result));
        terms[1] = result;
        terms[3] = values + 200;
        for (int nterms = 1; nterms <= 4; nterms++) {
            memcpy(result, values + 140, 500 * sizeof(float));
            row->sum(terms, nterms, 499, (float)by, result + 600, &(iq_sum_output_t){.streams = nterms % 2});
            note(all, "sum", result + 600, 499 * sizeof(float));
        }
    }
}

static void note_rest(digest_t *all, const iq_kernels_t *row)
{
    static uint16_t halves[COUNT];
    static float room[POWER];
    iq_grid_t grid = {.stream = 2, .rank = 9, .seed = 77, .call = 3};
    row->draw(&grid, 0xfffffff3ull, COUNT, wide);
    note(all, "draw", wide, COUNT * sizeof(*wide));
    for (size_t count = 1; count <= POWER; count *= 2) {
        memcpy(result, values + 131, count * sizeof(float));
        row->hadamard(result, count, room);
        row->flip(words, count % 37, 0.25f, result, count);
        note(all, "hadamard", result, count * sizeof(float));
    }
    row->f32_to_f16((const iq_f32_any_t *)words, COUNT, halves);
    note(all, "f32_to_f16", halves, sizeof(halves));
    row->f16_to_f32(halves, COUNT, result);
    note(all, "f16_to_f32", result, COUNT * sizeof(float));
    row->f32_to_bf16((const iq_f32_any_t *)words, COUNT, halves);
    note(all, "f32_to_bf16", halves, sizeof(halves));
    row->bf16_to_f32(halves, COUNT, result);
    note(all, "bf16_to_f32", result, COUNT * sizeof(float));
}

static void measure(digest_t *all, const iq_kernels_t *row)
{
    prepare();
    for (unsigned width = 1; width <= 8; width++)
        note_codes(all, row, width);
    for (unsigned width = 1; width <= 32; width++)
        note_packing(all, row, width);
    note_sums(all, row);
    note_rest(all, row);
}

int main(void)
{
    static digest_t first;
    int differences = 0;
    for (const iq_kernels_t *const *row = iq_kernel_rows; *row != NULL; row++) {
        digest_t all = {.count = 0};
        if (!(*row)->usable())
            continue;
        measure(&all, *row);
        if (row == iq_kernel_rows)
            first = all;
        for (int k = 0; k < all.count; k++) {
            if (all.value[k] == first.value[k])
                continue;
            fprintf(stderr, "%s: %s differs from the portable row's\n", (*row)->name, all.name[k]);
            differences++;
        }
        fprintf(stderr, "row %s\n", (*row)->name);
    }
    for (int k = 0; k < first.count; k++)
        printf("%016llx %s\n", (unsigned long long)first.value[k], first.name[k]);
    return differences > 0;
}
