/* SPDX-License-Identifier: Apache-2.0 */
/* The machine: hwloc's view if its module is there, else what the C library says. And what makes two processes neighbours. */
#include "transport/topology.h"

#include "base/config.h"
#include "base/log.h"
#include "base/status.h"
#include "base/util.h"
#include "transport/hwloc_module.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- what is one host ---- */

/* Differs between machines and changes at every boot, so that no two machines cloned from one image are taken for one. */
static uint64_t hash_boot_id(uint64_t hash)
{
    char text[64];
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    size_t bytes = file == NULL ? 0 : fread(text, 1, sizeof(text), file);
    if (file != NULL)
        fclose(file);
    if (bytes == 0 && gethostname(text, sizeof(text)) == 0)
        bytes = strnlen(text, sizeof(text));
    return iq_hash(hash, text, bytes);
}

/* Two network namespaces are two hosts: abstract unix sockets, by which shared memory is handed over, end there too. */
static uint64_t hash_network_namespace(uint64_t hash)
{
    struct stat namespace;
    if (stat("/proc/self/ns/net", &namespace) != 0)
        return hash;
    uint64_t words[2] = {(uint64_t) namespace.st_dev, (uint64_t) namespace.st_ino};
    return iq_hash(hash, words, sizeof(words));
}

uint64_t iq_host_id(void)
{
    const char *label = iq_config()->hostid;
    return iq_hash(hash_network_namespace(hash_boot_id(IQ_HASH_START)), label, strlen(label));
}

/* ---- the machine ---- */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static iq_topology_t topology;

/* A set of CPUs that grows until the kernel's fits. */
static int count_usable_cpus(void)
{
    int count = 0;
    for (int cpus = 1024; count == 0 && cpus <= 1 << 20; cpus *= 2) {
        cpu_set_t *set = CPU_ALLOC(cpus);
        if (set != NULL && sched_getaffinity(getpid(), CPU_ALLOC_SIZE(cpus), set) == 0)
            count = CPU_COUNT_S(CPU_ALLOC_SIZE(cpus), set);
        CPU_FREE(set);
    }
    return count > 0 ? count : (int)iq_max((size_t)sysconf(_SC_NPROCESSORS_ONLN), 1);
}

static size_t cache_bytes(int name)
{
    long bytes = sysconf(name);
    return bytes > 0 ? (size_t)bytes : 0;
}

static void read_from_libc(iq_topology_t *found)
{
    *found = (iq_topology_t){
        .source = "libc",
        .cores = count_usable_cpus(),
        .l1_bytes = cache_bytes(_SC_LEVEL1_DCACHE_SIZE),
        .l2_bytes = cache_bytes(_SC_LEVEL2_CACHE_SIZE),
        .l3_bytes = cache_bytes(_SC_LEVEL3_CACHE_SIZE),
    };
    snprintf(found->description, sizeof(found->description), "%d usable cores, caches L1 %zu KiB, L2 %zu KiB, L3 %zu KiB",
             found->cores, found->l1_bytes / 1024, found->l2_bytes / 1024, found->l3_bytes / 1024);
}

/* hwloc is welcome, not needed: its absence leaves no trace in the caller's last error. */
static void read_machine(void)
{
    char error[IQ_ERROR_TEXT_BYTES];
    snprintf(error, sizeof(error), "%s", iq_last_error());
    const iq_hwloc_module_t *module = (const iq_hwloc_module_t *)iq_module_load("hwloc");
    if (module == NULL || module->read(&topology) != ISGQ_SUCCESS) {
        IQ_DEBUG("topology from libc: %s", iq_last_error());
        read_from_libc(&topology);
        iq_set_last_error(error);
    }
}

const iq_topology_t *iq_topology(void)
{
    pthread_once(&once, read_machine);
    return &topology;
}
