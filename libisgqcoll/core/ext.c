/* SPDX-License-Identifier: Apache-2.0 */
/* isgqcoll_ext.h: the inside of the library for its own programs. */
#include "isgqcoll_ext.h"

#include "base/config.h"
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

/* ---- plans as text ---- */

static isgq_result_t find_collective(const char *name, iq_collective_t *collective)
{
    for (int c = 0; c < IQ_COLLECTIVE_COUNT; c++) {
        if (strcmp(name, iq_collective_name((iq_collective_t)c)) == 0) {
            *collective = (iq_collective_t)c;
            return ISGQ_SUCCESS;
        }
    }
    return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "plan: no collective '%s' has a plan; a factored call is an allgather of bytes, or an allreduce", name);
}

static isgq_result_t choose_for_print(iq_collective_t collective, const char *algorithm, const char *quantizer, int nranks, size_t count,
                                      isgq_data_type_t datatype, iq_codec_t *codec, const iq_algorithm_t **chosen, char *why,
                                      size_t why_bytes)
{
    isgq_quantizer_t parsed;
    IQ_TRY(isgq_quantizer_create(&parsed, quantizer != NULL ? quantizer : "none"));
    isgq_result_t result = iq_quantizer_dense(parsed, nranks, codec);
    isgq_quantizer_destroy(parsed);
    IQ_TRY(result);
    IQ_TRY(codec->ops->supports(codec, datatype, ISGQ_SUM));
    return iq_decide_algorithm(collective, nranks, 1, codec, datatype, ISGQ_SUM, count, algorithm, chosen, why, why_bytes);
}

static void print_steps(const iq_plan_t *plan, isgqx_line_fn line, void *context)
{
    iq_plan_cursor_t cursor = {0};
    iq_action_t action;
    char text[192];
    while (iq_plan_next(plan, &cursor, &action)) {
        iq_action_format(plan, &action, text, sizeof(text));
        line(context, text);
    }
}

isgq_result_t isgqx_plan_print(const char *collective, const char *algorithm, const char *quantizer, int nranks, int rank, size_t count,
                               isgq_data_type_t datatype, isgqx_line_fn line, void *context)
{
    iq_collective_t kind = IQ_ALLREDUCE;
    const iq_algorithm_t *chosen;
    iq_codec_t codec = iq_codec_none;
    iq_plan_t plan;
    char why[96], text[256];
    size_t bytes = iq_datatype_bytes(datatype);
    if (collective == NULL || line == NULL || bytes == 0 || nranks < 1 || rank < 0 || rank >= nranks)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "plan: collective, line, datatype or rank %d of %d is invalid", rank, nranks);
    IQ_TRY(find_collective(collective, &kind));
    if (algorithm != NULL && strcmp(algorithm, "auto") == 0)
        algorithm = NULL;
    IQ_TRY(choose_for_print(kind, algorithm, quantizer, nranks, count, datatype, &codec, &chosen, why, sizeof(why)));
    iq_plan_request_t request = iq_run_request(&codec, kind, rank, nranks, 0, count, bytes, iq_config()->chunk_bytes);
    IQ_TRY(chosen->build(&request, &plan));
    snprintf(text, sizeof(text), "%s %s, rank %d of %d, %zu elements: %s", collective, chosen->name, rank, nranks, count, why);
    line(context, text);
    if (codec.ops->needs_scales(&codec) && (kind == IQ_ALLREDUCE || kind == IQ_REDUCE_SCATTER)) {
        size_t scales = iq_codec_scales(&codec, count);
        snprintf(text, sizeof(text), "before it: an allreduce (max) of %zu shared scales, f32; print it with -q none --count %zu", scales, scales);
        line(context, text);
    }
    print_steps(&plan, line, context);
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
