/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A radix sort by bytes, least significant first, of the integers that order as floats do.
 */
#include "codec/float_sort.h"

#include "codec/levels.h"
#include "kernels/level_fit.h"

#include <string.h>

enum { PASSES = 4, BINS = 256 };

/* By one byte of the keys, those with equal bytes in their order. `bins` counts the keys and becomes where the next of a bin goes. */
static void sort_by_byte(const uint32_t *from, size_t count, unsigned shift, uint32_t bins[BINS], uint32_t *to)
{
    uint32_t next = 0;
    for (int bin = 0; bin < BINS; bin++) {
        uint32_t size = bins[bin];
        bins[bin] = next;
        next += size;
    }
    for (size_t i = 0; i < count; i++)
        to[bins[from[i] >> shift & 0xff]++] = from[i];
}

void iq_sort_floats(float *values, size_t count)
{
    uint32_t bins[PASSES][BINS] = {{0}};
    uint32_t keys[2][IQ_LEVELS_BUCKET_MOST];
    uint32_t *from = keys[0], *to = keys[1];
    for (size_t i = 0; i < count; i++) {
        from[i] = iq_float_key(values[i]);
        for (int pass = 0; pass < PASSES; pass++)
            bins[pass][from[i] >> 8 * pass & 0xff]++;
    }
    for (unsigned pass = 0; pass < PASSES; pass++) {
        if (count == 0 || bins[pass][from[0] >> 8 * pass & 0xff] == count)
            continue; /* all alike */
        sort_by_byte(from, count, 8 * pass, bins[pass], to);
        uint32_t *other = from;
        from = to;
        to = other;
    }
    for (size_t i = 0; i < count; i++)
        values[i] = iq_key_float(from[i]);
}
