/* SPDX-License-Identifier: Apache-2.0 */
/* The formulas of cost.h. N ranks; a child of level l has below(l) ranks, and N - below(l) others lie outside of it. */
#include "plan/cost.h"

#include "base/util.h"

#include <math.h>

const char *const iq_cost_way_names[IQ_COST_WAY_COUNT] = {"direct", "ring", "levels", "tree"};
const char *const iq_cost_factored_way_names[IQ_COST_FACTORED_WAY_COUNT] = {"gather", "shared", "owners"};

double iq_cost_ranks(const iq_cost_machine_t *machine)
{
    double ranks = 1;
    for (unsigned l = 0; l < machine->nlevels; l++)
        ranks *= machine->levels[l].children;
    return ranks;
}

/* The highest level that joins anything: messages between its children are the slowest. */
static const iq_cost_level_t *top_level(const iq_cost_machine_t *machine)
{
    const iq_cost_level_t *top = &machine->levels[0];
    for (unsigned l = 1; l < machine->nlevels; l++)
        if (machine->levels[l].children > 1)
            top = &machine->levels[l];
    return top;
}

/* ---- traffic ---- */

/* Every rank sends `bytes` to every other rank. */
static void all_to_all(const iq_cost_machine_t *machine, double bytes, iq_cost_t *cost)
{
    double ranks = iq_cost_ranks(machine), below = 1, wire = 0;
    if (ranks <= 1)
        return;
    for (unsigned l = 0; l < machine->nlevels; l++) {
        wire = fmax(wire, below * (ranks - below) * bytes / machine->levels[l].rate);
        below *= machine->levels[l].children;
    }
    cost->sent += (ranks - 1) * bytes;
    cost->wire += wire;
    cost->latency += top_level(machine)->latency + (ranks - 1) * machine->message;
}

/* So many steps, in each of which every rank sends `bytes` to its neighbour: links between neighbours carry one message a step. */
static void ring_steps(const iq_cost_machine_t *machine, double steps, double bytes, iq_cost_t *cost)
{
    double slowest = 0;
    for (unsigned l = 0; l < machine->nlevels; l++)
        if (machine->levels[l].children > 1)
            slowest = fmax(slowest, bytes / machine->levels[l].rate);
    cost->sent += steps * bytes;
    cost->wire += steps * slowest;
    cost->latency += steps * (top_level(machine)->latency + machine->message);
}

/* The children of a level exchange parts: `bytes` leave each child, spread over `lanes` ranks of it. */
static void level_exchange(const iq_cost_machine_t *machine, unsigned level, double bytes, double lanes, iq_cost_t *cost)
{
    const iq_cost_level_t *joins = &machine->levels[level];
    if (joins->children <= 1)
        return;
    cost->sent += bytes / lanes;
    cost->wire += bytes / joins->rate;
    cost->latency += joins->latency + (joins->children - 1) * machine->message;
}

static void finish(const iq_cost_machine_t *machine, iq_cost_t *cost)
{
    double work = cost->codec + cost->product;
    cost->total = cost->latency + cost->wire + work - machine->overlap * fmin(cost->wire, work);
}

/* ---- dense ---- */

/* `bytes` of f32 that pass a rank in each phase, `others` of all. First: encode what is sent, take in what is received. */
static double scatter_seconds(const iq_cost_machine_t *machine, double bytes, double others, bool encodes)
{
    return bytes * others * (encodes ? 1 / machine->encode_rate + 1 / machine->decode_rate : 1 / machine->copy_rate + 1 / machine->sum_rate);
}

/* Second: encode the own part, write the result. */
static double gather_seconds(const iq_cost_machine_t *machine, double bytes, double others, bool encodes)
{
    return encodes ? bytes * (1 - others) / machine->encode_rate + bytes / machine->decode_rate : bytes / machine->copy_rate;
}

static double codec_seconds(const iq_cost_machine_t *machine, double bytes, double others, bool encodes)
{
    return scatter_seconds(machine, bytes, others, encodes) + gather_seconds(machine, bytes, others, encodes);
}

static void dense_direct(const iq_cost_machine_t *machine, const iq_cost_dense_t *dense, iq_cost_t *cost)
{
    double ranks = iq_cost_ranks(machine), others = (ranks - 1) / ranks;
    if (dense->phases != IQ_COST_GATHERING) {
        all_to_all(machine, dense->elements / ranks * dense->partial_bits / 8, cost);
        cost->codec += scatter_seconds(machine, 4 * dense->elements, others, dense->encodes);
    }
    if (dense->phases != IQ_COST_SCATTER) {
        all_to_all(machine, dense->elements / ranks * dense->result_bits / 8, cost);
        cost->codec += gather_seconds(machine, 4 * dense->elements, others, dense->encodes);
    }
}

/* What grows from hop to hop is taken at its mean. */
static void dense_ring(const iq_cost_machine_t *machine, const iq_cost_dense_t *dense, iq_cost_t *cost)
{
    double ranks = iq_cost_ranks(machine), block = dense->elements / ranks;
    ring_steps(machine, ranks - 1, block * (dense->partial_bits + dense->result_bits) / 2 / 8, cost);
    ring_steps(machine, ranks - 1, block * dense->result_bits / 8, cost);
    cost->codec += codec_seconds(machine, 4 * dense->elements, (ranks - 1) / ranks, dense->encodes);
    if (dense->encodes) /* sums are written again at every hop */
        cost->codec += 4 * dense->elements * (ranks - 1) / ranks / machine->encode_rate;
}

static void dense_levels(const iq_cost_machine_t *machine, const iq_cost_dense_t *dense, iq_cost_t *cost)
{
    double lanes = 1;
    for (unsigned l = 0; l < machine->nlevels; l++) {
        double children = machine->levels[l].children, part = (children - 1) / children, bytes = dense->elements / 8;
        bool encodes = dense->encodes && l > 0;
        double partial_bits = encodes ? dense->partial_bits : 32, result_bits = encodes ? dense->result_bits : 32;
        if (children <= 1)
            continue;
        level_exchange(machine, l, bytes * part * partial_bits, lanes, cost);
        level_exchange(machine, l, bytes * part * result_bits, lanes, cost);
        cost->codec += codec_seconds(machine, 4 * dense->elements / lanes, part, encodes);
        lanes *= children;
    }
}

/* T = 2 log n (alpha + S / beta) + log n S / gamma, codes instead of S; gamma is the sum's speed, or that of decoding, adding and encoding. */
static void dense_tree(const iq_cost_machine_t *machine, const iq_cost_dense_t *dense, iq_cost_t *cost)
{
    double hops = log2(iq_cost_ranks(machine)), bytes = 4 * dense->elements;
    double sent = dense->elements * (dense->partial_bits + dense->result_bits) / 2 / 8;
    const iq_cost_level_t *top = top_level(machine);
    cost->sent += 2 * hops * sent;
    cost->latency += 2 * hops * (top->latency + machine->message);
    cost->wire += 2 * hops * sent / top->rate;
    cost->codec += dense->encodes ? hops * bytes * (1 / machine->decode_rate + 1 / machine->encode_rate) : hops * bytes / machine->sum_rate;
}

/* Scales that ranks agree on: a pass over the values, and a small exact sum that goes the same way. */
static void agreement(const iq_cost_machine_t *machine, iq_cost_way_t way, const iq_cost_dense_t *dense, iq_cost_t *cost)
{
    double bytes = dense->elements * dense->agreement_bits / 8;
    cost->codec += 4 * dense->elements / machine->copy_rate;
    if (way != IQ_COST_LEVELS_WAY)
        all_to_all(machine, bytes / iq_cost_ranks(machine), cost);
    for (unsigned l = 1; l < machine->nlevels && way == IQ_COST_LEVELS_WAY; l++)
        level_exchange(machine, l, bytes, machine->levels[0].children, cost);
}

iq_cost_t iq_cost_dense(const iq_cost_machine_t *machine, iq_cost_way_t way, const iq_cost_dense_t *dense)
{
    static void (*const ways[IQ_COST_WAY_COUNT])(const iq_cost_machine_t *, const iq_cost_dense_t *, iq_cost_t *) = {
        dense_direct, dense_ring, dense_levels, dense_tree};
    iq_cost_t cost = {0};
    if (iq_cost_ranks(machine) > 1) {
        if (dense->agreement_bits > 0)
            agreement(machine, way, dense, &cost);
        ways[way](machine, dense, &cost);
    }
    finish(machine, &cost);
    return cost;
}

/* ---- factors ---- */

static double blob_bytes(const iq_cost_factors_t *factors)
{
    return factors->rows * (factors->m + factors->n) * factors->factor_bits / 8;
}

/* Own factors are encoded; so many rows are decoded, of `columns` columns in all. */
static double factor_codec(const iq_cost_machine_t *machine, const iq_cost_factors_t *factors, double rows, double columns)
{
    return 4 * factors->rows * (factors->m + factors->n) / machine->encode_rate + 4 * rows * columns / machine->decode_rate;
}

static void factors_gather(const iq_cost_machine_t *machine, const iq_cost_factors_t *factors, iq_cost_t *cost)
{
    double rows = iq_cost_ranks(machine) * factors->rows;
    all_to_all(machine, blob_bytes(factors), cost);
    cost->codec += factor_codec(machine, factors, rows, factors->m + factors->n);
    cost->product += rows * factors->m * factors->n / machine->product_rate;
}

/* Down the tree: children of a level send each other what they hold, so every link carries a blob once. */
static void factors_shared(const iq_cost_machine_t *machine, const iq_cost_factors_t *factors, iq_cost_t *cost)
{
    double rows = iq_cost_ranks(machine) * factors->rows, below = 1, host = machine->levels[0].children;
    double gradient = 4 * factors->m * factors->n;
    for (unsigned l = 0; l < machine->nlevels; l++) {
        level_exchange(machine, l, (machine->levels[l].children - 1) * below * blob_bytes(factors), below, cost);
        below *= machine->levels[l].children;
    }
    level_exchange(machine, 0, (host - 1) * (below - host) / host * blob_bytes(factors), 1, cost); /* what came from outside, inside */
    cost->codec += factor_codec(machine, factors, rows, factors->m + factors->n);
    cost->product += rows * factors->m * factors->n / host / machine->product_rate;
    level_exchange(machine, 0, (host - 1) / host * gradient, 1, cost);
    cost->codec += (host - 1) / host * gradient / machine->copy_rate;
}

/* The grid that divides the ranks and sends least: r parts of X's columns, N / r of Delta's. */
static double grid_columns(const iq_cost_factors_t *factors, double ranks)
{
    double least = INFINITY;
    for (double divisor = 1; divisor * divisor <= ranks; divisor++) {
        if (fmod(ranks, divisor) != 0)
            continue;
        if (divisor <= factors->m && ranks / divisor <= factors->n)
            least = fmin(least, factors->m / divisor + factors->n * divisor / ranks);
        if (ranks / divisor <= factors->m && divisor <= factors->n)
            least = fmin(least, factors->m * divisor / ranks + factors->n / divisor);
    }
    return least < INFINITY ? least : factors->m + factors->n;
}

static void factors_owners(const iq_cost_machine_t *machine, const iq_cost_factors_t *factors, iq_cost_t *cost)
{
    double ranks = iq_cost_ranks(machine), rows = ranks * factors->rows, columns = grid_columns(factors, ranks);
    double gradient = factors->m * factors->n;
    all_to_all(machine, factors->rows * columns * factors->factor_bits / 8, cost);
    all_to_all(machine, gradient / ranks * factors->result_bits / 8, cost);
    cost->codec += factor_codec(machine, factors, rows, columns) + 4 * gradient / machine->decode_rate;
    cost->product += rows * gradient / ranks / machine->product_rate;
}

iq_cost_t iq_cost_factored(const iq_cost_machine_t *machine, iq_cost_factored_way_t way, const iq_cost_factors_t *factors)
{
    static void (*const ways[IQ_COST_FACTORED_WAY_COUNT])(const iq_cost_machine_t *, const iq_cost_factors_t *, iq_cost_t *) = {
        factors_gather, factors_shared, factors_owners};
    iq_cost_t cost = {0};
    if (iq_cost_ranks(machine) > 1)
        ways[way](machine, factors, &cost);
    finish(machine, &cost);
    return cost;
}

iq_cost_t iq_cost_powersgd(const iq_cost_machine_t *machine, double m, double n, double rank)
{
    const iq_cost_dense_t left = {.elements = rank * m, .partial_bits = 32, .result_bits = 32};
    const iq_cost_dense_t right = {.elements = rank * n, .partial_bits = 32, .result_bits = 32};
    iq_cost_t cost = {0};
    if (iq_cost_ranks(machine) > 1) {
        dense_direct(machine, &left, &cost);
        dense_direct(machine, &right, &cost);
        cost.product += 3 * m * n * rank / machine->product_rate; /* P, Q, and their product */
    }
    finish(machine, &cost);
    return cost;
}
