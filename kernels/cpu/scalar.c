/* SPDX-License-Identifier: Apache-2.0 */
/* The portable row: runs on any CPU, and says what every other row must compute. */
#include "kernels/cpu/rows.h"
#include "kernels/cpu/squeeze.h"

#define ROW iq_kernels_portable
#define ROW_NAME "portable"
#define TARGET

static bool usable(void) { return true; }

static void draw_tile(const iq_grid_t *grid, uint64_t quad, uint32_t quads, uint32_t *random)
{
    uint32_t key0 = (uint32_t)grid->seed, key1 = (uint32_t)(grid->seed >> 32);
    uint32_t c2 = (uint32_t)grid->call, c3 = (uint32_t)(grid->call >> 32);
    uint32_t tag = (grid->stream << 8) | (grid->rank << 16);
    uint32_t word[4][QUADS];
    for (uint32_t lane = 0; lane < quads; lane++) {
        uint32_t c0 = (uint32_t)quad + lane;
        uint32_t carry = c0 < lane;
        uint32_t c1 = (((uint32_t)(quad >> 32) + carry) & 0xffu) | tag;
        iq_philox_block_t block = iq_philox(c0, c1, c2, c3, key0, key1);
        word[0][lane] = block.word[0];
        word[1][lane] = block.word[1];
        word[2][lane] = block.word[2];
        word[3][lane] = block.word[3];
    }
    for (uint32_t lane = 0; lane < quads; lane++) {
        random[4 * lane + 0] = word[0][lane];
        random[4 * lane + 1] = word[1][lane];
        random[4 * lane + 2] = word[2][lane];
        random[4 * lane + 3] = word[3][lane];
    }
}

#define SUM sum_of_values

static void sum_of_values(const void *const terms[], int nterms, size_t count, float by, iq_f32_any_t *dst, const iq_sum_output_t *output)
{
    (void)output;
    for (size_t i = 0; i < count; i++) {
        float total = ((const iq_f32_any_t *)terms[0])[i];
        for (int term = 1; term < nterms; term++)
            total += ((const iq_f32_any_t *)terms[term])[i];
        dst[i] = by != 1 ? total / by : total;
    }
}

#include "kernels/cpu/body.h"
