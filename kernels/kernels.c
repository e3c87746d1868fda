/* SPDX-License-Identifier: Apache-2.0 */
/* The table of CPU kernels and the choice of a row; kernels/cpu/ holds the rows. */
#include "kernels/kernels.h"

#include "kernels/cpu/rows.h"

/* Per architecture, not per dependency: a compiler for one can always make its rows. */
#ifdef __x86_64__
const iq_kernels_t *const iq_kernel_rows[] = {&iq_kernels_portable, &iq_kernels_avx2, &iq_kernels_avx512, NULL};
#elif defined(__aarch64__)
const iq_kernels_t *const iq_kernel_rows[] = {&iq_kernels_portable, &iq_kernels_neon, NULL};
#else
const iq_kernels_t *const iq_kernel_rows[] = {&iq_kernels_portable, NULL};
#endif

const iq_kernels_t *iq_kernels(void)
{
    static const iq_kernels_t *chosen; /* every thread would choose the same */
    const iq_kernels_t *row = __atomic_load_n(&chosen, __ATOMIC_RELAXED);
    if (row != NULL)
        return row;
    for (const iq_kernels_t *const *next = iq_kernel_rows; *next != NULL; next++) {
        if ((*next)->usable())
            row = *next;
    }
    __atomic_store_n(&chosen, row, __ATOMIC_RELAXED);
    return row;
}

bool iq_packed_is_clean(const void *packed, size_t count, unsigned width)
{
    unsigned used = (unsigned)(count % 8) * width;
    const unsigned char *group = (const unsigned char *)packed + count / 8 * width;
    unsigned rest = 0;
    if (used == 0)
        return true;
    if (used % 8 != 0)
        rest = group[used / 8] >> used % 8;
    for (unsigned byte = (used + 7) / 8; byte < width; byte++)
        rest |= group[byte];
    return rest == 0;
}
