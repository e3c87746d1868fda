/* SPDX-License-Identifier: Apache-2.0 */
/* What `-q all` measures: every family at its usual settings, and at 2, 3, 4 and 8 bits where it has such a choice. */
#include "perf/quality.h"

#define DENSE(text_)                 \
    {                                \
        .text = text_, .dense = true \
    }
#define FACTORED(text_)                 \
    {                                   \
        .text = text_, .factored = true \
    }
#define EITHER(text_)                                  \
    {                                                  \
        .text = text_, .dense = true, .factored = true \
    }

const iq_quality_preset_t iq_quality_presets[] = {
    DENSE("none"),
    DENSE("fp16"),
    DENSE("bf16"),
    DENSE("uniform:bits=2"),
    DENSE("uniform:bits=3"),
    DENSE("uniform:bits=4"),
    DENSE("uniform:bits=8"),
    DENSE("uniform:bits=2,rounding=stratified"),
    DENSE("uniform:bits=3,rounding=stratified"),
    DENSE("uniform:bits=4,rounding=stratified"),
    DENSE("uniform:bits=8,rounding=stratified"),
    DENSE("uniform:bits=4,rounding=nearest"),
    EITHER("isgq:bits=2"),
    EITHER("isgq:bits=3"),
    EITHER("isgq:bits=4"),
    EITHER("isgq:bits=8"),
    EITHER("isgq:bits=2,coding=none"),
    EITHER("isgq:bits=3,coding=none"),
    EITHER("isgq:bits=4,coding=none"),
    EITHER("isgq:bits=8,coding=none"),
    EITHER("isgq:nmse=0.1"),
    EITHER("isgq:nmse=0.01"),
    EITHER("isgq:nmse=0.001"),
    /* sums of codes */
    DENSE("global-qsgd:levels=1"),
    DENSE("global-qsgd:levels=3"),
    DENSE("global-qsgd:levels=7"),
    DENSE("global-qsgd:levels=127"),
    DENSE("global-qsgd:levels=127,norm=l2"),
    DENSE("global-qsgd-exp:bits=3"),
    DENSE("global-qsgd-exp:bits=4"),
    DENSE("global-qsgd-exp:bits=8"),
    DENSE("terngrad"),
    DENSE("intsgd:bits=2"),
    DENSE("intsgd:bits=3"),
    DENSE("intsgd:bits=4"),
    DENSE("intsgd:bits=8"),
    /* low rank: draws go on from each other's directions, and owe each other nothing */
    DENSE("powersgd:rank=1,feedback=off"),
    DENSE("powersgd:rank=2,feedback=off"),
    DENSE("powersgd:rank=4,feedback=off"),
    DENSE("powersgd:rank=8,feedback=off"),
    DENSE("powersgd:rank=16,feedback=off"),
    DENSE("powersgd:rank=32,feedback=off"),
    /* levels of each rank's own */
    DENSE("qsgd:bits=2"),
    DENSE("qsgd:bits=3"),
    DENSE("qsgd:bits=4"),
    DENSE("qsgd:bits=8"),
    DENSE("onebit"),
    DENSE("ef-sign"),
    DENSE("bingrad-b"),
    DENSE("bingrad-pb"),
    DENSE("orq-3"),
    DENSE("orq-5"),
    DENSE("orq-9"),
    DENSE("natural"),
    DENSE("drive"),
    DENSE("eden:bits=1"),
    DENSE("eden:bits=2"),
    DENSE("eden:bits=3"),
    DENSE("eden:bits=4"),
    DENSE("mx:bits=4"),
    DENSE("mx:bits=8"),
    /* factors */
    FACTORED("factor:width=2"),
    FACTORED("factor:width=3"),
    FACTORED("factor:width=4"),
    FACTORED("factor:width=8"),
    FACTORED("factor:bits=2"),
    FACTORED("factor:bits=3"),
    FACTORED("factor:bits=4"),
    FACTORED("factor:bits=8"),
    FACTORED("factor:width=2,rounding=dither"),
    FACTORED("factor:width=3,rounding=dither"),
    FACTORED("factor:width=4,rounding=dither"),
    FACTORED("factor:width=8,rounding=dither"),
    FACTORED("isgq-mse:levels=2"),
    FACTORED("isgq-mse:levels=4"),
    FACTORED("isgq-mse:levels=8"),
    FACTORED("isgq-mvu:levels=2"),
    FACTORED("isgq-mvu:levels=4"),
    FACTORED("isgq-mvu:levels=8"),
    FACTORED("isgq-dithered:width=2"),
    FACTORED("isgq-dithered:width=3"),
    FACTORED("isgq-dithered:width=4"),
    FACTORED("isgq-dithered:width=8"),
    {.text = NULL},
};
