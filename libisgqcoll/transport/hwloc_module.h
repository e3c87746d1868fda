/* SPDX-License-Identifier: Apache-2.0 */
/* What the library (topology.c) and the module "hwloc" (hwloc_module.c) must agree on. */
#ifndef ISGQ_TRANSPORT_HWLOC_MODULE_H
#define ISGQ_TRANSPORT_HWLOC_MODULE_H

#include "base/module.h"
#include "transport/topology.h"

typedef struct iq_hwloc_module {
    iq_module_t base;
    isgq_result_t (*read)(iq_topology_t *topology); /* fills everything in */
} iq_hwloc_module_t;

#endif
