/* SPDX-License-Identifier: Apache-2.0 */
#include "support/level_kinds.h"

#include "support/codec_run.h"

const level_kind_t level_kinds[LEVEL_KINDS] = {
    {.family = "onebit", .bucket = 512},
    {.family = "ef-sign", .bucket = 96},
    {.family = "bingrad-b", .bucket = 512},
    {.family = "bingrad-pb", .bucket = 32, .is_random = true},
    {.family = "orq-3", .is_random = true},
    {.family = "orq-5", .bucket = 512, .is_random = true},
    {.family = "orq-9", .bucket = 224, .is_random = true},
    {.family = "orq-9", .bucket = 8192, .is_random = true},
    {.family = "qsgd", .bits = 2, .norm = IQ_NORM_MAX, .bucket = 64, .is_random = true},
    {.family = "qsgd", .bits = 3, .norm = IQ_NORM_L2, .is_random = true},
    {.family = "qsgd", .bits = 4, .norm = IQ_NORM_L2, .is_random = true},
    {.family = "qsgd", .bits = 8, .norm = IQ_NORM_MAX, .is_random = true},
    {.family = "natural", .is_random = true},
};

iq_codec_t level_kind_codec(int kind)
{
    iq_codec_t codec = codec_of_family(level_kinds[kind].family);
    if (level_kinds[kind].bits != 0) {
        codec.bits = level_kinds[kind].bits;
        codec.norm = level_kinds[kind].norm;
    }
    if (level_kinds[kind].bucket != 0)
        codec.bucket = level_kinds[kind].bucket;
    return codec;
}

iq_codec_t rotated_kind_codec(int kind)
{
    static const level_kind_t rotated[ROTATED_KINDS] = {{.family = "drive", .bits = 1, .bucket = 32},
                                                        {.family = "eden", .bits = 4, .bucket = 1024},
                                                        {.family = "drive", .bits = 1, .bucket = 1056},
                                                        {.family = "eden", .bits = 3, .bucket = 96}};
    iq_codec_t codec = codec_of_family(rotated[kind].family);
    codec.bits = rotated[kind].bits;
    codec.bucket = rotated[kind].bucket;
    return codec;
}
