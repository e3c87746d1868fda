/* SPDX-License-Identifier: Apache-2.0 */
/* The cost model: its formulas against those written down by hand, and laws that any description of a machine obeys. */
#include "base/util.h"
#include "plan/cost.h"
#include "support/check_main.h"

#include <math.h>

/* One level, round numbers, nothing but the wire costs anything unless a test says so. */
static iq_cost_machine_t flat(double ranks)
{
    return (iq_cost_machine_t){.nlevels = 1,
                               .levels = {{ranks, 1e-5, 1e9}},
                               .copy_rate = 1e30,
                               .sum_rate = 1e30,
                               .encode_rate = 1e30,
                               .decode_rate = 1e30,
                               .product_rate = 1e30};
}

static iq_cost_machine_t hosts(double ranks_of_a_host, double count)
{
    iq_cost_machine_t machine = flat(ranks_of_a_host);
    machine.levels[0] = (iq_cost_level_t){ranks_of_a_host, 1e-6, 1e11};
    machine.levels[machine.nlevels++] = (iq_cost_level_t){count, 1e-5, 1e9};
    return machine;
}

static const iq_cost_dense_t values = {.elements = 1 << 20, .partial_bits = 32, .result_bits = 32};
static const iq_cost_dense_t codes = {.elements = 1 << 20, .partial_bits = 4, .result_bits = 6, .encodes = true};

static void near(double value, double expected) { ck_assert_double_le(fabs(value - expected), 1e-9 * fabs(expected) + 1e-30); }

/* 2 (N-1) / N S over every rank's link, in two rounds or 2 (N-1). */
START_TEST(ring_and_direct)
{
    for (int n = 2; n <= 1024; n *= 2) {
        iq_cost_machine_t machine = flat(n);
        double bytes = 2.0 * (n - 1) / n * 4 * values.elements;
        iq_cost_t ring = iq_cost_dense(&machine, IQ_COST_RING, &values), direct = iq_cost_dense(&machine, IQ_COST_DIRECT, &values);
        near(ring.sent, bytes);
        near(direct.sent, bytes);
        near(ring.wire, bytes / 1e9);
        near(direct.wire, bytes / 1e9);
        near(ring.latency, 2 * (n - 1) * 1e-5);
        near(direct.latency, 2e-5);
    }
}
END_TEST

/* T = 2 log n alpha + 2 log n S / beta + log n S / gamma; compressed: S / rho on the wire, gamma / omega. Better for large S if
 * beta < 2 gamma (1 - 1 / rho) / (omega - 1), which is 6 gamma / (omega - 4) for rho = 4 and omega counted per byte of codes. */
START_TEST(tree_of_the_paper)
{
    double alpha = 1e-5, beta = 1e9, gamma = 2e12, rho = 4, bytes = 4 * values.elements;
    iq_cost_machine_t machine = flat(64);
    iq_cost_dense_t compressed = {.elements = values.elements, .partial_bits = 8, .result_bits = 8, .encodes = true};
    machine.sum_rate = gamma;
    near(iq_cost_dense(&machine, IQ_COST_TREE, &values).total, 12 * alpha + 12 * bytes / beta + 6 * bytes / gamma);
    for (double omega = 2; omega < 200; omega *= 3) {
        machine.decode_rate = gamma * rho / omega; /* omega for each of the S / rho codes */
        near(iq_cost_dense(&machine, IQ_COST_TREE, &compressed).total, 12 * alpha + 12 * bytes / rho / beta + 6 * bytes / rho * omega / gamma);
        double threshold = omega <= 4 ? INFINITY : 6 * gamma / (omega - 4);
        for (double share = 0.9; share < 1.2; share += 0.2) {
            if (isinf(threshold))
                continue;
            machine.levels[0].rate = share * threshold;
            machine.levels[0].latency = 0;
            bool gains = iq_cost_dense(&machine, IQ_COST_TREE, &compressed).total < iq_cost_dense(&machine, IQ_COST_TREE, &values).total;
            ck_assert_int_eq(gains, share < 1);
        }
        machine.levels[0] = (iq_cost_level_t){64, alpha, beta};
    }
}
END_TEST

/* Direct over hosts: each host's link carries what its ranks send to all others outside. Levels: only one host's share. */
START_TEST(shared_links)
{
    iq_cost_machine_t machine = hosts(8, 4);
    double block = values.elements * 4 / 32;
    iq_cost_t direct = iq_cost_dense(&machine, IQ_COST_DIRECT, &values), levels = iq_cost_dense(&machine, IQ_COST_LEVELS_WAY, &values);
    near(direct.wire, 2 * 8 * 24 * block / 1e9);
    double inside = 2 * 7.0 / 8 * 4 * values.elements / 1e11, between = 2 * 3.0 / 4 * 4 * values.elements / 1e9;
    near(levels.wire, inside + between);
    near(levels.latency, 2e-6 + 2e-5);
}
END_TEST

/* The phases of an allreduce alone are halves of it. */
START_TEST(phases)
{
    iq_cost_machine_t machine = flat(4);
    machine.encode_rate = 1e9;
    machine.decode_rate = 3e9;
    const iq_cost_dense_t *both[] = {&values, &codes};
    for (int i = 0; i < 2; i++) {
        iq_cost_dense_t first = *both[i], second = *both[i];
        first.phases = IQ_COST_SCATTER;
        second.phases = IQ_COST_GATHERING;
        iq_cost_t whole = iq_cost_dense(&machine, IQ_COST_DIRECT, both[i]), scatter = iq_cost_dense(&machine, IQ_COST_DIRECT, &first),
                  gather = iq_cost_dense(&machine, IQ_COST_DIRECT, &second);
        near(scatter.total + gather.total, whole.total);
        near(scatter.sent, 3.0 / 4 * both[i]->elements * both[i]->partial_bits / 8);
        near(gather.sent, 3.0 / 4 * both[i]->elements * both[i]->result_bits / 8);
        near(scatter.codec, 3.0 / 4 * 4 * both[i]->elements *
                                (i == 0 ? 1 / machine.copy_rate + 1 / machine.sum_rate : 1 / machine.encode_rate + 1 / machine.decode_rate));
    }
}
END_TEST

/* Codes shrink what hosts send each other, not what ranks of a host do. */
START_TEST(levels_quantize_between_hosts)
{
    iq_cost_machine_t machine = hosts(8, 4);
    double inside = 2 * 7.0 / 8 * 4 * codes.elements / 1e11, between = 3.0 / 4 * codes.elements * (4 + 6) / 8 / 1e9;
    near(iq_cost_dense(&machine, IQ_COST_LEVELS_WAY, &codes).wire, inside + between);
}
END_TEST

/* Agreement goes the way of the sum: over the hosts' links only, where it goes level by level. */
START_TEST(agreement_goes_along)
{
    iq_cost_machine_t machine = hosts(8, 4);
    iq_cost_dense_t scaled = codes;
    scaled.agreement_bits = 1;
    double bytes = codes.elements / 8;
    iq_cost_t plain = iq_cost_dense(&machine, IQ_COST_LEVELS_WAY, &codes), agreed = iq_cost_dense(&machine, IQ_COST_LEVELS_WAY, &scaled);
    near(agreed.wire - plain.wire, bytes / 1e9);
    near(agreed.latency - plain.latency, 1e-5);
    plain = iq_cost_dense(&machine, IQ_COST_DIRECT, &codes);
    agreed = iq_cost_dense(&machine, IQ_COST_DIRECT, &scaled);
    near(agreed.wire - plain.wire, 8 * 24 * bytes / 32 / 1e9);
}
END_TEST

/* A level of one child is no level; one rank costs nothing. */
START_TEST(nothing_to_join)
{
    iq_cost_machine_t one = flat(1), plain = flat(16), padded = flat(16);
    padded.levels[padded.nlevels++] = (iq_cost_level_t){1, 1e-3, 1};
    for (iq_cost_way_t way = 0; way < IQ_COST_WAY_COUNT; way++) {
        near(iq_cost_dense(&one, way, &values).total, 0);
        near(iq_cost_dense(&padded, way, &values).total, iq_cost_dense(&plain, way, &values).total);
    }
}
END_TEST

/* Gathered factors grow with the ranks, the owners' as their square root. */
START_TEST(factors_and_ranks)
{
    const iq_cost_factors_t factors = {.rows = 128, .m = 4096, .n = 4096, .factor_bits = 4, .result_bits = 0};
    for (double n = 16; n <= 4096; n *= 4) {
        iq_cost_machine_t machine = flat(n);
        double blob = 128 * 8192 * 4 / 8.0;
        near(iq_cost_factored(&machine, IQ_COST_GATHER, &factors).sent, (n - 1) * blob);
        near(iq_cost_factored(&machine, IQ_COST_OWNERS, &factors).sent, (n - 1) * blob / sqrt(n));
        machine.product_rate = 1e9;
        double gather = iq_cost_factored(&machine, IQ_COST_GATHER, &factors).product;
        near(iq_cost_factored(&machine, IQ_COST_OWNERS, &factors).product, gather / n);
    }
}
END_TEST

/* Sharing the product inside a host divides it, and every blob crosses a host's link once. */
START_TEST(shared_product)
{
    const iq_cost_factors_t factors = {.rows = 32, .m = 784, .n = 1000, .factor_bits = 4, .result_bits = 32};
    iq_cost_machine_t machine = hosts(8, 4);
    machine.levels[0].rate = 1e30;
    machine.product_rate = 1e9;
    iq_cost_t gather = iq_cost_factored(&machine, IQ_COST_GATHER, &factors), shared = iq_cost_factored(&machine, IQ_COST_GATHER_SHARED, &factors);
    near(shared.product, gather.product / 8);
    near(gather.wire, 8 * shared.wire);
}
END_TEST

START_TEST(overlap_hides_the_shorter)
{
    iq_cost_machine_t machine = flat(4);
    machine.encode_rate = machine.decode_rate = 1e9;
    iq_cost_t apart = iq_cost_dense(&machine, IQ_COST_DIRECT, &codes);
    machine.overlap = 1;
    iq_cost_t together = iq_cost_dense(&machine, IQ_COST_DIRECT, &codes);
    near(apart.total, apart.latency + apart.wire + apart.codec);
    near(together.total, apart.latency + fmax(apart.wire, apart.codec));
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("cost");
    TCase *tcase = tcase_create("dense");
    tcase_add_test(tcase, ring_and_direct);
    tcase_add_test(tcase, tree_of_the_paper);
    tcase_add_test(tcase, shared_links);
    tcase_add_test(tcase, phases);
    tcase_add_test(tcase, levels_quantize_between_hosts);
    tcase_add_test(tcase, agreement_goes_along);
    tcase_add_test(tcase, nothing_to_join);
    tcase_add_test(tcase, overlap_hides_the_shorter);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("factors");
    tcase_add_test(tcase, factors_and_ranks);
    tcase_add_test(tcase, shared_product);
    suite_add_tcase(suite, tcase);
    return suite;
}
