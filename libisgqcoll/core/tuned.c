/* SPDX-License-Identifier: Apache-2.0 */
#include "core/tuned.h"

#include "base/config.h"
#include "base/log.h"
#include "base/util.h"
#include "codec/families.h"

#include <stdio.h>
#include <string.h>

/* ---- loading ---- */

/* What table and machine say of one thing, if it is not the same. */
static bool differs(const char *path, const char *what, const char *table, const char *here)
{
    if (strcmp(table, here) == 0)
        return false;
    IQ_WARN("ISGQ_TUNE_TABLE: %s is of another machine: %s \"%s\", here \"%s\"; it is not used", path, what, table, here);
    return true;
}

static bool counts_differ(const char *path, const char *what, int table, int here)
{
    if (table == here)
        return false;
    IQ_WARN("ISGQ_TUNE_TABLE: %s is of another machine: %d %s, here %d; it is not used", path, table, what, here);
    return true;
}

/* Asked by rank 0 about itself. */
static bool fits(isgq_comm_t comm, const isgqx_tuning_t *table)
{
    const char *path = iq_config()->tune_table;
    isgqx_tuning_t here = {.size = sizeof(here)};
    int first, index;
    if (isgqx_tuning_place(comm, &here, &first, &index) != ISGQ_SUCCESS || differs(path, "library", table->library, here.library) ||
        differs(path, "processor", table->cpu, here.cpu) || counts_differ(path, "cores", table->cores, here.cores))
        return false;
    if (comm->devices) {
        IQ_WARN("ISGQ_TUNE_TABLE is for communicators on host memory only; %s is not used", path);
        return false;
    }
    return !differs(path, "transport", table->transport, here.transport) && !counts_differ(path, "hosts", table->hosts, here.hosts) &&
           !counts_differ(path, "ranks per host", table->ranks_per_host, here.ranks_per_host);
}

void iq_tuned_load(isgq_comm_t comm, isgqx_tuning_t *table)
{
    const char *path = iq_config()->tune_table;
    *table = (isgqx_tuning_t){.size = sizeof(*table)};
    if (comm->nranks < 2) /* nothing to decide, and nothing to say */
        memset(table, 0, sizeof(*table));
    else if (isgqx_tuning_read(path, table) != ISGQ_SUCCESS)
        IQ_WARN("ISGQ_TUNE_TABLE: %s; it is not used", iq_last_error());
    else if (fits(comm, table))
        return;
    memset(table, 0, sizeof(*table));
}

void iq_tuned_take(isgq_comm_t comm, const isgqx_tuning_t *table)
{
    isgqx_machine_t machine = {.size = sizeof(machine)};
    comm->tuned = table->size == sizeof(*table) && comm->hosts_alike && !comm->devices && isgqx_tuning_machine(table, NULL, &machine) == ISGQ_SUCCESS;
    if (table != &comm->tuning)
        comm->tuning = *table;
    if (!comm->tuned)
        return;
    comm->machine = (iq_cost_machine_t){.nlevels = comm->nhosts > 1 ? 2 : 1,
                                        .levels = {{comm->host_size, table->host_latency, table->host_rate},
                                                   {comm->nhosts, table->network_latency, table->network_rate}},
                                        .copy_rate = machine.copy_rate,
                                        .sum_rate = machine.sum_rate,
                                        .encode_rate = machine.encode_rate,
                                        .decode_rate = machine.decode_rate,
                                        .product_rate = machine.product_rate,
                                        .factor_rate = table->factor_rate};
}

/* ---- predicting ---- */

const isgqx_tuned_codec_t *iq_tuned_codec(const isgqx_tuning_t *table, const char *quantizer)
{
    const isgqx_tuned_codec_t *best = &table->codecs[0];
    size_t longest = 0;
    for (int c = 0; c < table->ncodecs; c++) {
        size_t common = 0;
        while (quantizer[common] != '\0' && quantizer[common] == table->codecs[c].quantizer[common])
            common++;
        if (common > longest && common >= strcspn(quantizer, ":")) {
            longest = common;
            best = &table->codecs[c];
        }
    }
    return best;
}

iq_cost_dense_t iq_tuned_describe(const iq_codec_t *codec, isgq_data_type_t datatype, double elements, int contributions)
{
    iq_cost_dense_t dense = {.elements = elements,
                             .partial_bits = iq_decide_bits(codec, datatype, contributions, false),
                             .result_bits = iq_decide_bits(codec, datatype, contributions, true),
                             .encodes = codec->ops != iq_codec_none.ops};
    if (codec->ops->needs_scales(codec))
        dense.agreement_bits = 32.0 * (double)iq_codec_scales(codec, (size_t)elements) / elements;
    return dense;
}

/* Formulas, corrected as allreduces of all ranks were on the machine; `text` names the codec. */
static double seconds_of(isgq_comm_t comm, const iq_codec_t *codec, const char *text, const iq_cost_machine_t *machine, iq_collective_t collective,
                         isgq_data_type_t datatype, size_t count, bool in_levels)
{
    static const iq_cost_phases_t phases[IQ_COLLECTIVE_COUNT] = {[IQ_REDUCE_SCATTER] = IQ_COST_SCATTER, [IQ_ALLGATHER] = IQ_COST_GATHERING};
    iq_codec_t moved = *codec;
    int parts = collective == IQ_ALLGATHER ? 1 : in_levels ? comm->nhosts : comm->nranks;
    moved.shared &= collective != IQ_ALLGATHER; /* what is only moved has scales of its own */
    iq_cost_dense_t dense = iq_tuned_describe(&moved, in_levels ? ISGQ_FLOAT32 : datatype, (double)iq_max(count, 1), parts);
    dense.phases = phases[collective];
    return iq_cost_dense(machine, in_levels ? IQ_COST_LEVELS_WAY : IQ_COST_DIRECT, &dense).total *
           isgqx_tuning_correction(&comm->tuning, text, 4 * dense.elements);
}

/* ---- choosing ---- */

#define OTHER_BITS_MARGIN 1.05 /* how much longer a call may take before its bits change */

typedef struct routes {
    iq_tuned_route_t best;
    double flat; /* seconds among all ranks at once */
} routes_t;

static routes_t routes_of(isgq_comm_t comm, const iq_codec_t *codec, const char *text, const iq_cost_machine_t *machine, iq_collective_t collective,
                          isgq_data_type_t datatype, size_t count, bool may_be_in_levels)
{
    double flat = seconds_of(comm, codec, text, machine, collective, datatype, count, false);
    double in_levels = may_be_in_levels ? seconds_of(comm, codec, text, machine, collective, datatype, count, true) : flat;
    bool pays = flat > OTHER_BITS_MARGIN * in_levels;
    return (routes_t){{.in_levels = pays, .seconds = pays ? in_levels : flat}, flat};
}

iq_tuned_route_t iq_tuned_choose(isgq_comm_t comm, const iq_codec_t *codec, iq_collective_t collective, isgq_data_type_t datatype, size_t count,
                                 bool may_be_exact, bool may_be_in_levels, char *why, size_t why_bytes)
{
    char text[IQ_QUANTIZER_TEXT_BYTES];
    iq_cost_machine_t machine = comm->machine;
    iq_codec_text(codec, text, sizeof(text));
    const isgqx_tuned_codec_t *speed = iq_tuned_codec(&comm->tuning, text);
    machine.encode_rate = speed->encode_rate;
    machine.decode_rate = speed->decode_rate;
    routes_t chosen = routes_of(comm, codec, text, &machine, collective, datatype, count, may_be_in_levels);
    double quantized = chosen.best.seconds;
    if (may_be_exact) {
        routes_t exact = routes_of(comm, &iq_codec_none, "none", &machine, collective, datatype, count, may_be_in_levels);
        exact.best.exact = true;
        if (quantized > OTHER_BITS_MARGIN * exact.best.seconds)
            chosen = exact;
    }
    if (chosen.best.exact)
        snprintf(why, why_bytes, "%.32s would take %.3g ms, values as they are %.3g ms", text, 1e3 * quantized, 1e3 * chosen.best.seconds);
    else if (chosen.best.in_levels)
        snprintf(why, why_bytes, "%d ranks a host: sums inside hosts first %.3g ms, direct %.3g ms", comm->host_size, 1e3 * quantized,
                 1e3 * chosen.flat);
    return chosen.best;
}
