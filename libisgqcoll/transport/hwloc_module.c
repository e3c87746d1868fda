/* SPDX-License-Identifier: Apache-2.0 */
/* The module "hwloc", the only file that knows hwloc: cores, packages, NUMA nodes and caches as far as this process may use them. */
#include "transport/hwloc_module.h"

#include <hwloc.h>
#include <stdio.h>

/* A module links nothing of the library: IQ_FAIL goes through the services that it was given. */
static const iq_services_t *services;
#define iq_fail (services->fail)

static void module_start(const iq_services_t *given) { services = given; }

/* hwloc answers -1 for "on several levels", which for us is unknown as well. */
static int count_objects(hwloc_topology_t machine, hwloc_obj_type_t type)
{
    int count = hwloc_get_nbobjs_by_type(machine, type);
    return count > 0 ? count : 0;
}

static size_t cache_bytes(hwloc_topology_t machine, hwloc_obj_type_t type)
{
    hwloc_obj_t cache = hwloc_get_obj_by_type(machine, type, 0);
    return cache == NULL ? 0 : (size_t)cache->attr->cache.size;
}

/* Hardware threads in this process's binding, as libc counts them. */
static int count_usable(hwloc_topology_t machine)
{
    hwloc_bitmap_t binding = hwloc_bitmap_alloc();
    int count = 0;
    if (binding != NULL && hwloc_get_cpubind(machine, binding, HWLOC_CPUBIND_PROCESS) == 0)
        count = hwloc_bitmap_weight(binding);
    hwloc_bitmap_free(binding);
    return count > 0 ? count : count_objects(machine, HWLOC_OBJ_PU);
}

static const char *processor_name(hwloc_topology_t machine)
{
    hwloc_obj_t package = hwloc_get_obj_by_type(machine, HWLOC_OBJ_PACKAGE, 0);
    const char *name = package == NULL ? NULL : hwloc_obj_get_info_by_name(package, "CPUModel");
    return name == NULL ? "unknown processor" : name;
}

static void describe(hwloc_topology_t machine, iq_topology_t *topology)
{
    static char source[32];
    unsigned version = hwloc_get_api_version();
    snprintf(source, sizeof(source), "hwloc %u.%u.%u", version >> 16, version >> 8 & 255, version & 255);
    *topology = (iq_topology_t){
        .source = source,
        .cores = count_usable(machine),
        .packages = count_objects(machine, HWLOC_OBJ_PACKAGE),
        .numa_nodes = count_objects(machine, HWLOC_OBJ_NUMANODE),
        .l1_bytes = cache_bytes(machine, HWLOC_OBJ_L1CACHE),
        .l2_bytes = cache_bytes(machine, HWLOC_OBJ_L2CACHE),
        .l3_bytes = cache_bytes(machine, HWLOC_OBJ_L3CACHE),
    };
    snprintf(topology->description, sizeof(topology->description),
             "%s, %d packages, %d NUMA nodes, %d of %d hardware threads usable, caches L1 %zu KiB, L2 %zu KiB, L3 %zu KiB",
             processor_name(machine), topology->packages, topology->numa_nodes, topology->cores,
             count_objects(machine, HWLOC_OBJ_PU), topology->l1_bytes / 1024, topology->l2_bytes / 1024,
             topology->l3_bytes / 1024);
}

static isgq_result_t module_read(iq_topology_t *topology)
{
    hwloc_topology_t machine;
    if (hwloc_topology_init(&machine) != 0)
        return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "hwloc: no topology object");
    if (hwloc_topology_load(machine) != 0) {
        hwloc_topology_destroy(machine);
        return IQ_FAIL(ISGQ_ERR_SYSTEM, "hwloc: the machine cannot be read");
    }
    describe(machine, topology);
    hwloc_topology_destroy(machine);
    return ISGQ_SUCCESS;
}

const iq_hwloc_module_t iq_module_hwloc = {
    .base = {.abi = IQ_MODULE_ABI, .start = module_start},
    .read = module_read,
};
