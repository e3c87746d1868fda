/* SPDX-License-Identifier: Apache-2.0 */
/* The steps of a collective by a codec's row for host memory and by that for devices: after each, buffers must be the same. */
#ifndef ISGQ_TEST_SUPPORT_CODEC_TWIN_H
#define ISGQ_TEST_SUPPORT_CODEC_TWIN_H

#include "support/device_twin.h"

#define CODEC_TWIN_RANKS 70 /* at most */

/* One collective's worth of steps. */
typedef struct codec_twin {
    iq_codec_t codec;
    isgq_data_type_t datatype;
    isgq_red_op_t op;
    int nranks; /* up to CODEC_TWIN_RANKS */
    iq_span_t span;
    twin_place_t place; /* of messages */
    uint32_t replays;   /* of the device's graph: the host adds them to the number of the call itself */
} codec_twin_t;

/* Between twin_start and twin_end. Aborts the test at the first difference. */
void codec_twin_run(const codec_twin_t *setup);

/* Each bit of a message of `parts` ranks in turn, 0 of a result: both rows must agree on whether it is damaged. */
void codec_twin_flip_bits(const codec_twin_t *setup, int parts);

#endif
