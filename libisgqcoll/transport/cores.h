/* SPDX-License-Identifier: Apache-2.0 */
/* Which hardware threads the ranks of a host may run on, and whether each can have one of its own. */
#ifndef ISGQ_TRANSPORT_CORES_H
#define ISGQ_TRANSPORT_CORES_H

#include <stdbool.h>
#include <stdint.h>

#define IQ_CORES 1024 /* what is numbered higher counts modulo this: then some may seem to be shared that are not */

typedef struct iq_core_set {
    uint64_t words[IQ_CORES / 64];
} iq_core_set_t;

/* Those of the calling thread. All of them where the kernel does not say. */
iq_core_set_t iq_core_set(void);

/* Can each of `count` ranks be given a hardware thread of its set that no other one is given? */
bool iq_cores_suffice(const iq_core_set_t *sets, int count);

#endif
