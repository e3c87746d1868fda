/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packing eight codes with plain integers, for rows whose CPUs have no instruction for it. Neighbours are merged: eight bytes become
 * four pairs, then two quads, then one run of 8 * width bits.
 *
 *     width 3:   .....aaa .....bbb ...  ->  ..........bbbaaa ...  ->  ....................dddcccbbbaaa ...  ->  hhhgg...baaa
 */
#ifndef ISGQ_KERNELS_CPU_SQUEEZE_H
#define ISGQ_KERNELS_CPU_SQUEEZE_H

#include <stdint.h>

static inline uint64_t iq_squeeze(uint64_t group, unsigned width)
{
    group = (group & 0x00ff00ff00ff00ffull) | (group & 0xff00ff00ff00ff00ull) >> (8 - width);
    group = (group & 0x0000ffff0000ffffull) | (group & 0xffff0000ffff0000ull) >> (16 - 2 * width);
    return (group & 0xffffffffull) | (group >> 32) << 4 * width;
}

static inline uint64_t iq_spread(uint64_t group, unsigned width)
{
    uint64_t pair = ~0ull >> (64 - 4 * width), two = (1ull << 2 * width) - 1, one = (1ull << width) - 1;
    group = (group & pair) | (group >> 4 * width & pair) << 32;
    group = (group & two * 0x0000000100000001ull) | (group >> 2 * width & two * 0x0000000100000001ull) << 16;
    return (group & one * 0x0001000100010001ull) | (group >> width & one * 0x0001000100010001ull) << 8;
}

#define SQUEEZE(group, width) iq_squeeze(group, width)
#define SPREAD(group, width) iq_spread(group, width)

#endif
