/* SPDX-License-Identifier: Apache-2.0 */
/* See factor_lloyd.h. The fixed points of Lloyd's iteration, which the unit test of these methods computes again. */
#include "codec/factor_lloyd.h"

#include <stddef.h>

static const float one[] = {0.797885197f};
static const float two[] = {0.452780826f, 1.510418134f};
static const float four[] = {0.245095066f, 0.756006000f, 1.343909858f, 2.151946150f};
static const float eight[] = {0.128395971f, 0.388049140f, 0.656759872f, 0.942341133f, 1.256231802f, 1.618046923f, 2.069017694f, 2.732589959f};

const float *iq_lloyd_levels(unsigned count)
{
    switch (count) {
    case 1:
        return one;
    case 2:
        return two;
    case 4:
        return four;
    case 8:
        return eight;
    default:
        return NULL;
    }
}
