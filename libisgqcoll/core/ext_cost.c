/* SPDX-License-Identifier: Apache-2.0 */
/* isgqcoll_ext.h: the cost model (plan/cost.h) for a quantizer's text, whose codec says how many bits travel. */
#include "isgqcoll_ext.h"

#include "base/util.h"
#include "codec/families.h"
#include "core/comm.h"
#include "core/tuned.h"
#include "plan/cost.h"

#include <limits.h>
#include <math.h>
#include <string.h>

static isgq_result_t check_number(const char *what, double value, double least)
{
    if (!(value >= least) || isinf(value))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "cost: %s is %g, it has to be a number of at least %g", what, value, least);
    return ISGQ_SUCCESS;
}

static isgq_result_t check_rate(const char *what, double value)
{
    if (!(value > 0) || isinf(value))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "cost: %s is %g, it has to be above 0", what, value);
    return ISGQ_SUCCESS;
}

static isgq_result_t take_machine(const isgqx_machine_t *machine, iq_cost_machine_t *taken)
{
    if (machine == NULL || machine->size != sizeof(*machine) || machine->nlevels < 1 || machine->nlevels > ISGQX_LEVELS)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "cost: machine is NULL, of another size, or has no levels or more than %d", ISGQX_LEVELS);
    *taken = (iq_cost_machine_t){.nlevels = machine->nlevels,
                                 .message = machine->message,
                                 .copy_rate = machine->copy_rate,
                                 .sum_rate = machine->sum_rate,
                                 .encode_rate = machine->encode_rate,
                                 .decode_rate = machine->decode_rate,
                                 .product_rate = machine->product_rate,
                                 .overlap = machine->overlap};
    for (unsigned l = 0; l < machine->nlevels; l++) {
        const isgqx_level_t *level = &machine->levels[l];
        IQ_TRY(check_number("children of a level", level->children, 1));
        IQ_TRY(check_number("latency of a level", level->latency, 0));
        IQ_TRY(check_rate("rate of a level", level->rate));
        taken->levels[l] = (iq_cost_level_t){level->children, level->latency, level->rate};
    }
    IQ_TRY(check_number("message", machine->message, 0));
    IQ_TRY(check_rate("copy_rate", machine->copy_rate));
    IQ_TRY(check_rate("sum_rate", machine->sum_rate));
    IQ_TRY(check_rate("encode_rate", machine->encode_rate));
    IQ_TRY(check_rate("decode_rate", machine->decode_rate));
    IQ_TRY(check_rate("product_rate", machine->product_rate));
    if (!(machine->overlap >= 0 && machine->overlap <= 1))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "cost: overlap is %g, it lies between 0 and 1", machine->overlap);
    if (iq_cost_ranks(taken) > INT_MAX)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "cost: %g ranks, at most %d are known", iq_cost_ranks(taken), INT_MAX);
    return ISGQ_SUCCESS;
}

#define MOST_COLUMNS 1e9

/* ---- what a quantizer makes of a layer ---- */

static isgq_result_t take_dense(isgq_quantizer_t quantizer, const isgqx_layer_t *layer, int contributions, bool passes_sums,
                                iq_cost_dense_t *dense)
{
    iq_codec_t codec;
    IQ_TRY(iq_quantizer_dense(quantizer, contributions, false, &codec));
    if (codec.power_rank != 0)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "cost: '%s' goes the way \"powersgd\"", quantizer->text);
    if (passes_sums && codec.ops->passes_sums != NULL && !codec.ops->passes_sums(&codec))
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "cost: sums of '%s' cannot be passed on in a ring", quantizer->text);
    if (codec.ops->most_ranks != NULL && codec.ops->most_ranks(&codec) < contributions)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "cost: '%s' sums at most %d ranks, these are %d", quantizer->text, codec.ops->most_ranks(&codec),
                       contributions);
    *dense = iq_tuned_describe(&codec, ISGQ_FLOAT32, layer->m * layer->n, contributions);
    return ISGQ_SUCCESS;
}

/* Bits of an element of X and Delta on average, headers included: counted for one rank, whose blob knows nothing of others. */
static isgq_result_t take_factors(isgq_quantizer_t quantizer, const isgqx_layer_t *layer, int nranks, iq_cost_factors_t *factors)
{
    iq_factor_spec_t spec;
    iq_codec_t product;
    bool dense_only;
    const iq_factor_call_t call = {.datatype = ISGQ_FLOAT32, .nranks = 1, .max_batch = (size_t)layer->rows, .batch = (size_t)layer->rows,
                                   .m = (size_t)layer->m, .n = (size_t)layer->n};
    IQ_TRY(iq_quantizer_factored(quantizer, false, &spec, &dense_only));
    size_t bytes = dense_only || call.max_batch == 0 ? 0 : iq_factor_mean_bytes(&spec, &call);
    if (bytes == 0)
        return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "cost: '%s' sends no factors of %zu x (%zu + %zu)", quantizer->text, call.max_batch, call.m, call.n);
    iq_quantizer_product(quantizer, nranks, false, &product);
    *factors = (iq_cost_factors_t){.rows = layer->rows, .m = layer->m, .n = layer->n,
                                   .factor_bits = 8.0 * (double)bytes / (layer->rows * (layer->m + layer->n)),
                                   .result_bits = iq_decide_bits(&product, ISGQ_FLOAT32, 1, true)};
    return ISGQ_SUCCESS;
}

/* ---- ways ---- */

#define WAYS (IQ_COST_WAY_COUNT + IQ_COST_FACTORED_WAY_COUNT + 1)

isgq_result_t isgqx_cost_way(size_t index, const char **name, int *factored)
{
    if (name == NULL || factored == NULL)
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "cost_way: name or factored is NULL");
    if (index >= WAYS)
        return ISGQ_ERR_INVALID_ARGUMENT; /* the end of an enumeration is no failure worth a text */
    *factored = index >= IQ_COST_WAY_COUNT && index + 1 < WAYS;
    *name = index + 1 == WAYS            ? "powersgd"
            : index < IQ_COST_WAY_COUNT ? iq_cost_way_names[index]
                                        : iq_cost_factored_way_names[index - IQ_COST_WAY_COUNT];
    return ISGQ_SUCCESS;
}

static isgq_result_t cost_of(const iq_cost_machine_t *machine, const isgqx_layer_t *layer, size_t way, isgq_quantizer_t quantizer,
                             iq_cost_t *cost)
{
    int ranks = (int)iq_cost_ranks(machine);
    if (way + 1 == WAYS) {
        unsigned rank = quantizer->has_dense ? quantizer->dense.codec.power_rank : 0;
        if (rank == 0)
            return IQ_FAIL(ISGQ_ERR_UNSUPPORTED, "cost: the way \"powersgd\" wants powersgd:rank=r, not '%s'", quantizer->text);
        *cost = iq_cost_powersgd(machine, layer->m, layer->n, rank);
    } else if (way < IQ_COST_WAY_COUNT) {
        iq_cost_dense_t dense = {0};
        int contributions = way == IQ_COST_LEVELS_WAY ? ranks / (int)machine->levels[0].children : ranks;
        IQ_TRY(take_dense(quantizer, layer, contributions, way == IQ_COST_RING, &dense));
        *cost = iq_cost_dense(machine, (iq_cost_way_t)way, &dense);
    } else {
        iq_cost_factors_t factors = {0};
        IQ_TRY(take_factors(quantizer, layer, ranks, &factors));
        *cost = iq_cost_factored(machine, (iq_cost_factored_way_t)(way - IQ_COST_WAY_COUNT), &factors);
    }
    return ISGQ_SUCCESS;
}

static isgq_result_t find_way(const char *name, size_t *way)
{
    const char *candidate;
    int factored;
    for (*way = 0; name != NULL && isgqx_cost_way(*way, &candidate, &factored) == ISGQ_SUCCESS; ++*way)
        if (strcmp(candidate, name) == 0)
            return ISGQ_SUCCESS;
    return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "cost: no way is called \"%.32s\"", name == NULL ? "NULL" : name);
}

isgq_result_t isgqx_cost(const isgqx_machine_t *machine, const isgqx_layer_t *layer, const char *way, const char *quantizer,
                         isgqx_cost_t *cost)
{
    iq_cost_machine_t taken;
    iq_cost_t found;
    size_t row;
    isgq_quantizer_t parsed;
    if (layer == NULL || quantizer == NULL || cost == NULL || cost->size != sizeof(*cost))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "cost: layer, quantizer or cost is NULL, or cost of another size");
    IQ_TRY(take_machine(machine, &taken));
    IQ_TRY(check_number("rows of a layer", layer->rows, 0));
    IQ_TRY(check_number("m of a layer", layer->m, 1));
    IQ_TRY(check_number("n of a layer", layer->n, 1));
    if (!(layer->m <= MOST_COLUMNS && layer->n <= MOST_COLUMNS && layer->rows <= MOST_COLUMNS))
        return IQ_FAIL(ISGQ_ERR_INVALID_ARGUMENT, "cost: a layer of %g x %g and %g rows; %g is the most of each", layer->m, layer->n, layer->rows,
                       MOST_COLUMNS);
    IQ_TRY(find_way(way, &row));
    IQ_TRY(isgq_quantizer_create(&parsed, quantizer));
    isgq_result_t result = cost_of(&taken, layer, row, parsed, &found);
    isgq_quantizer_destroy(parsed);
    if (result == ISGQ_SUCCESS)
        *cost = (isgqx_cost_t){sizeof(*cost), found.sent, found.latency, found.wire, found.codec, found.product, found.total};
    return result;
}
