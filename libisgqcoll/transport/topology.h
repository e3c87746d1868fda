/* SPDX-License-Identifier: Apache-2.0 */
/* The machine as far as we use it: hosts, cores, caches. hwloc knows (module "hwloc"); without it the C library's answers do. */
#ifndef ISGQ_TRANSPORT_TOPOLOGY_H
#define ISGQ_TRANSPORT_TOPOLOGY_H

#include "isgqcoll.h"

#include <stddef.h>
#include <stdint.h>

/* boot id + network namespace + ISGQ_HOSTID : what counts as one host. */
uint64_t iq_host_id(void);

typedef struct iq_topology {
    const char *source;   /* "hwloc 2.9.0" or "libc" */
    int cores;            /* hardware threads that this process may run on */
    int packages, numa_nodes; /* 0: unknown */
    size_t l1_bytes, l2_bytes, l3_bytes; /* of one cache, 0: unknown */
    char description[256]; /* one line */
} iq_topology_t;

/* Read once per process. Never fails. */
const iq_topology_t *iq_topology(void);

#endif
