/* SPDX-License-Identifier: Apache-2.0 */
/* isgqcoll_ext.h: the inside of the library for its own programs. Plans as text are explain.c. */
#include "isgqcoll_ext.h"

#include "base/module.h"
#include "base/util.h"
#include "core/run.h"
#include "transport/topology.h"

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

/* ---- the build and the machine ---- */

isgq_result_t isgqx_info_print(isgqx_line_fn line, void *context)
{
    static const char *const modules[] = {"ucx", "hwloc", "blas"};
    char text[IQ_ERROR_TEXT_BYTES + 32];
    if (line == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "info: line is NULL");
    snprintf(text, sizeof(text), "version     %d.%d.%d", ISGQ_VERSION_MAJOR, ISGQ_VERSION_MINOR, ISGQ_VERSION_PATCH);
    line(context, text);
    line(context, "devices     host memory; this build has no CUDA data path");
    for (size_t i = 0; iq_transports[i] != NULL; i++) {
        snprintf(text, sizeof(text), "transport   %s", iq_transports[i]->name);
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

double isgqx_fp32_ring_bytes(size_t count, int nranks)
{
    return nranks < 1 ? 0.0 : 2.0 * (nranks - 1) / nranks * 4.0 * (double)count;
}

uint64_t isgqx_hash(const void *data, size_t bytes) { return iq_hash(IQ_HASH_START, data, bytes); }
