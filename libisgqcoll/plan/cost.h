/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a sum of gradients costs: seconds and bytes of each way of doing it, on a machine that is described by a tree of links and a few
 * speeds. Pure arithmetic in closed form, for any number of ranks; whoever has measured a machine, or thought one up, can ask.
 *
 * Ranks are the leaves of the tree. Level 0 joins `children` ranks into a host, level 1 so many hosts into a rack, and so on. Every child
 * of a level hangs on one link, which carries `rate` bytes per second in either direction at once, shared by all ranks below the child.
 * A round of messages that crosses a level waits `latency` once; every message costs its sender `message` seconds besides.
 *
 * Sources: alpha-beta-gamma models as in the Global-QSGD paper (its tree is IQ_COST_TREE, formula by formula), rings and direct
 * exchanges from counting bytes on every link.
 */
#ifndef ISGQ_PLAN_COST_H
#define ISGQ_PLAN_COST_H

#include <stdbool.h>
#include <stddef.h>

#define IQ_COST_LEVELS 8

typedef struct iq_cost_level {
    double children; /* at least 1 */
    double latency;  /* seconds */
    double rate;     /* bytes/s of a child's link, each direction */
} iq_cost_level_t;

/* Rates are bytes of f32 per second and rank, while all ranks of a host work at once. */
typedef struct iq_cost_machine {
    unsigned nlevels; /* at least 1 */
    iq_cost_level_t levels[IQ_COST_LEVELS];
    double message;      /* seconds of a rank for each message */
    double copy_rate;    /* into and out of messages that carry values as they are */
    double sum_rate;     /* adding such a message to what is there */
    double encode_rate;  /* values to codes */
    double decode_rate;  /* codes to values, adding included */
    double product_rate; /* multiplications and additions of the factors' product, pairs/s */
    double factor_rate;  /* values of factors that budgets' codes are made of and decoded from, values/s; formulas do not ask */
    double overlap;      /* 0: arithmetic and wire one after the other; 1: the shorter hides behind the longer */
} iq_cost_machine_t;

/* How a dense sum travels. */
typedef enum iq_cost_way {
    IQ_COST_DIRECT, /* every rank owns a block: all send it their part, it sends all the sum */
    IQ_COST_RING,   /* the same blocks, passed on between neighbours; ranks are in the tree's order */
    IQ_COST_LEVELS_WAY, /* level by level: scattered sums on the way up, gathered on the way down; only levels above 0 are quantized */
    IQ_COST_TREE,   /* whole tensors up and down a binary tree, as the Global-QSGD paper models it */
    IQ_COST_WAY_COUNT
} iq_cost_way_t;

extern const char *const iq_cost_way_names[IQ_COST_WAY_COUNT];

/* How factors travel. */
typedef enum iq_cost_factored_way {
    IQ_COST_GATHER,        /* every rank's factors to every rank, which multiplies all rows */
    IQ_COST_GATHER_SHARED, /* the same level by level; the ranks of a host share the product out */
    IQ_COST_OWNERS,        /* a grid of ranks: each gets the columns that its block of the product needs; then the blocks are gathered */
    IQ_COST_FACTORED_WAY_COUNT
} iq_cost_factored_way_t;

extern const char *const iq_cost_factored_way_names[IQ_COST_FACTORED_WAY_COUNT];

/* Which of the two phases of a sum; the others are for IQ_COST_DIRECT alone. */
typedef enum iq_cost_phases {
    IQ_COST_ALLREDUCE, /* both */
    IQ_COST_SCATTER,   /* sums of blocks end with their owners */
    IQ_COST_GATHERING  /* finished blocks go to everybody */
} iq_cost_phases_t;

/* A dense tensor and its codec. Bits are wire bits per element of the first and of the second phase. */
typedef struct iq_cost_dense {
    double elements;
    double partial_bits, result_bits;
    bool encodes;          /* codes, not values as they are */
    double agreement_bits; /* per element, of scales that ranks agree on in a round of its own; 0: there is none */
    iq_cost_phases_t phases;
} iq_cost_dense_t;

/* Factors of one layer. Bits are wire bits per element of X and Delta; result_bits those of a block that its owner sends on. */
typedef struct iq_cost_factors {
    double rows; /* of each rank */
    double m, n;
    double factor_bits, result_bits;
} iq_cost_factors_t;

typedef struct iq_cost {
    double sent;                             /* bytes that leave a rank */
    double latency, wire, codec, product;    /* seconds */
    double total;                            /* with the overlap */
} iq_cost_t;

/* Leaves of the tree. */
double iq_cost_ranks(const iq_cost_machine_t *machine);

iq_cost_t iq_cost_dense(const iq_cost_machine_t *machine, iq_cost_way_t way, const iq_cost_dense_t *dense);
iq_cost_t iq_cost_factored(const iq_cost_machine_t *machine, iq_cost_factored_way_t way, const iq_cost_factors_t *factors);

/* PowerSGD: two exact sums of rank * m and rank * n values, and its products. */
iq_cost_t iq_cost_powersgd(const iq_cost_machine_t *machine, double m, double n, double rank);

#endif
