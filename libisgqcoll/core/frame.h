/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The frame in front of every message: which call, which place in it, how many bytes. docs/wire-format.md.
 *
 *      0        4        8               16              24   26   28       32
 *      | magic  | bytes  | sequence      | fingerprint   |stage|step| chunk  | payload ...
 */
#ifndef ISGQ_CORE_FRAME_H
#define ISGQ_CORE_FRAME_H

#include <stdint.h>

#define IQ_FRAME_MAGIC 0x32515149u /* "IQQ2", little endian; the digit is the format version */

typedef struct iq_frame {
    uint32_t magic;
    uint32_t bytes;       /* payload */
    uint64_t sequence;    /* call number */
    uint64_t fingerprint; /* hash of the call's arguments */
    uint16_t stage;       /* of the call */
    uint16_t step;        /* of the sender's plan: for people who read dumps */
    uint32_t chunk;
} iq_frame_t;

_Static_assert(sizeof(iq_frame_t) == 32, "the frame is 32 bytes on the wire");

#endif
