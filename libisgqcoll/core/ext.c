/* SPDX-License-Identifier: Apache-2.0 */
/* isgqcoll_ext.h: the inside of the library for its own programs. Plans as text are explain.c. */
#include "isgqcoll_ext.h"

#include "base/module.h"
#include "base/util.h"
#include "core/gpu.h"
#include "core/run.h"
#include "transport/nccl.h"
#include "transport/topology.h"
#include "transport/wire.h"

#include <stdio.h>
#include <string.h>

isgq_result_t isgqx_last_call(isgq_comm_t comm, isgqx_call_record_t *record)
{
    IQ_TRY(iq_comm_check_handle(comm, "last_call"));
    if (record == NULL || record->size != sizeof(*record))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "last_call: record is NULL or of another size");
    pthread_mutex_lock(&comm->queue_lock);
    *record = comm->record;
    pthread_mutex_unlock(&comm->queue_lock);
    record->size = sizeof(*record);
    snprintf(record->transport, sizeof(record->transport), "%s", comm->transport_names);
    return ISGQ_SUCCESS;
}

isgq_result_t isgqx_own_bytes(isgq_comm_t comm, uint64_t *bytes)
{
    IQ_TRY(iq_comm_check_handle(comm, "own_bytes"));
    if (bytes == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "own_bytes: bytes is NULL");
    pthread_mutex_lock(&comm->queue_lock);
    *bytes = comm->own_bytes;
    pthread_mutex_unlock(&comm->queue_lock);
    return ISGQ_SUCCESS;
}

isgq_result_t isgqx_algorithm(size_t index, isgqx_algorithm_t *algorithm)
{
    size_t dense = 0;
    if (algorithm == NULL || algorithm->size != sizeof(*algorithm))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "algorithm: algorithm is NULL or of another size");
    while (iq_algorithms[dense].name != NULL)
        dense++;
    if (index >= dense + IQ_FACTORED_WAY_COUNT)
        return ISGQ_ERR_INVALID_ARGUMENT; /* the end of an enumeration is no failure worth a text */
    if (index < dense) {
        algorithm->collective = iq_collective_name(iq_algorithms[index].collective);
        algorithm->name = iq_algorithms[index].name;
        algorithm->help = iq_algorithms[index].help;
        return ISGQ_SUCCESS;
    }
    algorithm->collective = "factored";
    algorithm->name = iq_factored_ways[index - dense].name;
    algorithm->help = iq_factored_ways[index - dense].help;
    return ISGQ_SUCCESS;
}

/* ---- devices ---- */

#define DESCRIPTION_BYTES 256

static isgq_result_t load_cuda(const iq_cuda_module_t **cuda)
{
    *cuda = (const iq_cuda_module_t *)iq_module_load("cuda");
    return *cuda != NULL ? ISGQ_SUCCESS : ISGQ_ERR_UNSUPPORTED;
}

static isgq_result_t describe(const iq_cuda_module_t *cuda, int ordinal, char text[DESCRIPTION_BYTES])
{
    iq_cuda_device_t device;
    IQ_TRY(cuda->describe(ordinal, &device));
    snprintf(text, DESCRIPTION_BYTES,
             "%s, compute capability %d.%d, %zu MiB, %d processors, PCI %s, stream memory operations: %s, streams wait for other ranks: %s",
             device.name, device.major, device.minor, device.bytes >> 20, device.processors, device.pci, device.awaits_words ? "yes" : "no",
             device.orders_ranks ? "yes" : "no");
    return ISGQ_SUCCESS;
}

isgq_result_t isgqx_device_count(int *count)
{
    const iq_cuda_module_t *cuda;
    if (count == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "device_count: count is NULL");
    IQ_TRY(load_cuda(&cuda));
    return cuda->devices(count);
}

isgq_result_t isgqx_device_name(isgq_comm_t comm, char *text, size_t bytes)
{
    iq_cuda_device_t found;
    IQ_TRY(iq_comm_check_handle(comm, "device_name"));
    if (text == NULL || bytes == 0)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "device_name: no room for text");
    snprintf(text, bytes, "host memory");
    if (comm->gpu == NULL)
        return ISGQ_SUCCESS;
    const iq_device_t *device = iq_gpu_device(comm);
    IQ_TRY(device->cuda->describe(device->ordinal, &found));
    snprintf(text, bytes, "device %d, %s", device->ordinal, found.name);
    return ISGQ_SUCCESS;
}

isgq_result_t isgqx_copy(isgq_comm_t comm, void *dst, const void *src, size_t bytes)
{
    IQ_TRY(iq_comm_check_handle(comm, "copy"));
    if (bytes == 0)
        return ISGQ_SUCCESS;
    if (dst == NULL || src == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "copy: %s is NULL", dst == NULL ? "dst" : "src");
    if (comm->gpu != NULL)
        return iq_gpu_copy_now(comm, dst, src, bytes);
    IQ_TRY(iq_gpu_check_buffer(comm, "copy", "dst", dst));
    IQ_TRY(iq_gpu_check_buffer(comm, "copy", "src", src));
    memcpy(dst, src, bytes);
    return ISGQ_SUCCESS;
}

/* ---- the build and the machine ---- */

/* How kernels on one device reach the memory of another: directly, or only through host memory. */
static void print_device_links(const iq_cuda_module_t *cuda, int count, isgqx_line_fn line, void *context)
{
    char text[96];
    for (int a = 0; a < count; a++)
        for (int b = a + 1; b < count; b++) {
            bool direct = cuda->reach(a, b) == ISGQ_SUCCESS && cuda->reach(b, a) == ISGQ_SUCCESS;
            snprintf(text, sizeof(text), "link        device %d to device %d: %s", a, b, direct ? "peer access" : "through host memory");
            line(context, text);
        }
}

static void print_devices(isgqx_line_fn line, void *context)
{
    const iq_cuda_module_t *cuda;
    char text[IQ_ERROR_TEXT_BYTES + 32], description[DESCRIPTION_BYTES];
    int count = 0;
    if (load_cuda(&cuda) != ISGQ_SUCCESS || cuda->devices(&count) != ISGQ_SUCCESS) {
        snprintf(text, sizeof(text), "devices     host memory; %s", iq_last_error());
        line(context, text);
        return;
    }
    line(context, "devices     host memory");
    for (int i = 0; i < count; i++) {
        bool known = describe(cuda, i, description) == ISGQ_SUCCESS;
        snprintf(text, sizeof(text), "device      %d: %s", i, known ? description : iq_last_error());
        line(context, text);
    }
    print_device_links(cuda, count, line, context);
}

isgq_result_t isgqx_info_print(isgqx_line_fn line, void *context)
{
    static const char *const modules[] = {"ucx", "hwloc", "blas", "cuda"};
    char text[IQ_ERROR_TEXT_BYTES + 32];
    if (line == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "info: line is NULL");
    snprintf(text, sizeof(text), "version     %d.%d.%d", ISGQ_VERSION_MAJOR, ISGQ_VERSION_MINOR, ISGQ_VERSION_PATCH);
    line(context, text);
    print_devices(line, context);
    for (size_t i = 0; iq_transports[i] != NULL; i++) {
        snprintf(text, sizeof(text), "transport   %s", iq_transports[i]->name);
        line(context, text);
    }
    for (size_t i = 0; iq_wires[i] != NULL; i++) {
        snprintf(text, sizeof(text), "wire        %s", iq_wires[i]->name);
        line(context, text);
    }
    for (size_t i = 0; i < IQ_ARRAY_SIZE(modules); i++) {
        const iq_module_t *module = iq_module_load(modules[i]);
        snprintf(text, sizeof(text), "module      %s: %s", modules[i], module != NULL ? "loaded" : iq_last_error());
        line(context, text);
    }
    const iq_topology_t *topology = iq_topology();
    snprintf(text, sizeof(text), "topology    %s (%s)", topology->description, topology->source);
    line(context, text);
    snprintf(text, sizeof(text), "host id     %016llx", (unsigned long long)iq_host_id());
    line(context, text);
    return ISGQ_SUCCESS;
}

isgq_result_t isgqx_use_nccl(isgqx_find_symbol_fn find, void *context)
{
    if (find == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "use_nccl: find is NULL");
    return iq_nccl_use(find, context);
}

double isgqx_fp32_ring_bytes(size_t count, int nranks)
{
    return nranks < 1 ? 0.0 : 2.0 * (nranks - 1) / nranks * 4.0 * (double)count;
}

uint64_t isgqx_hash(const void *data, size_t bytes) { return iq_hash(IQ_HASH_START, data, bytes); }
