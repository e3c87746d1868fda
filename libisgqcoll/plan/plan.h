/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plans: what one rank does in one collective, as data. Builders are pure functions of (rank, nranks, shape); executors walk a
 * plan with iq_plan_next and never know which algorithm they run; test/support/plan_sim.c proves plans for 1..17 ranks.
 *
 * A tensor is cut into blocks (one per rank, or one in all), a block into chunks. Blocks are parts of the tensor that follow one another, or they
 * are dealt out: the tensor is cut into as many chunks as there are, and block b has the chunks b, 2N-1-b, 2N+b, 4N-1-b, ..., so that what
 * changes along the tensor is shared by all. A plan is a list of loops; a loop is a few
 * steps repeated for k = 0..trips-1, each time for `group` neighbouring chunks. The walk is
 *
 *     for t = 0, 1, ...                                  until no chunk is left
 *         for each loop
 *             for k in 0..trips-1
 *                 for each chunk of group t - lag        (nothing to do where there is no such group)
 *                     for each step of the loop
 *
 * so `lag` is software pipelining: while group g is reduced, group g + 1 is already on the wire. Messages between two ranks are
 * first in, first out, so both ends must meet in the same order, and a link holds few messages. A plan keeps at most `slots`
 * messages on any link and never deadlocks with that much room, even if a step that receives and sends keeps what it received
 * until there is room to send. A step whose span is empty (blocks differ in length) does nothing on either side.
 */
#ifndef ISGQ_PLAN_PLAN_H
#define ISGQ_PLAN_PLAN_H

#include "isgqcoll.h"
#include "plan/cost.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum iq_collective {
    IQ_ALLREDUCE,
    IQ_REDUCE_SCATTER,
    IQ_ALLGATHER,
    IQ_BROADCAST,
    IQ_BARRIER,
    IQ_ALLTOALL, /* every rank has a part for every rank: block b of the output is what rank b had for this one */
    IQ_COLLECTIVE_COUNT
} iq_collective_t;

/* Step kinds. "own" is this rank's input; "acc" is the one accumulator chunk; "result" is the one result message in scratch. */
typedef enum iq_step_kind {
    IQ_STEP_SEND_OWN, /* encode own span as partial(1), send to peer */
    IQ_STEP_REDUCE,   /* acc op= partial(1) from peer; if peer is this rank, own. Then acc holds `parts`: 1 means overwrite it */
    IQ_STEP_FINISH,   /* acc -> result message (kept) and output. Lossless results need no result message if nobody sends it */
    IQ_STEP_DELIVER,  /* acc -> output only (nobody else needs it) */
    IQ_STEP_SEND_RESULT, /* send the kept result message to peer */
    IQ_STEP_RECV_RESULT, /* result from peer -> output */
    IQ_STEP_HOP,         /* partial(parts - 1) from peer, plus own, as partial(parts) to `to`; uses acc */
    IQ_STEP_LAST_HOP, /* partial(parts - 1) from peer, plus own, finished: output and result to `to` (to < 0: deliver); uses acc */
    IQ_STEP_FORWARD,  /* result from peer -> output, and the same message on to `to` */
    IQ_STEP_SIGNAL,   /* empty message to peer; its span is empty, it is done all the same */
    IQ_STEP_AWAIT,    /* empty message from peer, likewise */
    IQ_STEP_POST,     /* encode own span as partial(1) onto this rank's board, where all others read it */
    IQ_STEP_SUM,      /* the sum of own span and of partial(1) from all other boards, in rank order -> output */
    IQ_STEP_SEND_PART, /* to peer its part of own input, as it is; it becomes a result, the span's, of the peer's output */
    IQ_STEP_KIND_COUNT
} iq_step_kind_t;

/* How peer, target and block follow from rank and k. All but FIXED are modulo nranks. */
typedef enum iq_rule {
    IQ_RULE_NONE,     /* nobody (-1); block 0 in plans of one block */
    IQ_RULE_INDEX,    /* arg + k: 0, 1, 2, ... in rank order when arg is 0 */
    IQ_RULE_AHEAD,    /* rank + arg + k */
    IQ_RULE_BEHIND,   /* rank - arg - k */
    IQ_RULE_NEXT,     /* rank + arg, whatever k */
    IQ_RULE_PREV,     /* rank - arg, whatever k */
    IQ_RULE_FIXED,    /* arg, whatever k */
    IQ_RULE_LEAP,     /* rank + 2^k (dissemination) */
    IQ_RULE_LEAP_BACK /* rank - 2^k */
} iq_rule_t;

typedef struct iq_place {
    uint8_t rule; /* iq_rule_t */
    int16_t arg;
} iq_place_t;

typedef struct iq_step {
    uint8_t kind; /* iq_step_kind_t */
    iq_place_t peer, to, block;
    int16_t parts, parts_per_trip; /* parts = parts + k * parts_per_trip */
    uint16_t receive_round, send_round; /* in a plan of rounds: within the iteration, at k = 0 */
} iq_step_t;

typedef struct iq_loop {
    uint16_t trips, first_step, nsteps, lag;
    uint16_t rounds_per_trip; /* in a plan of rounds: later by so many for each k */
} iq_loop_t;

#define IQ_PLAN_MAX_LOOPS 8
#define IQ_PLAN_MAX_STEPS 12
#define IQ_PLAN_MAX_RANKS 16384 /* rules count in 16 bits */

typedef struct iq_plan {
    const char *algorithm; /* the builder's name */
    iq_collective_t collective;
    int rank, nranks, root;
    size_t count;           /* elements of the whole tensor (allgather, reduce_scatter, alltoall: all ranks' parts) */
    size_t block_unit;      /* elements; blocks are whole units, but the tensor may end within one */
    size_t block_units;     /* units of a block ... */
    uint32_t longer_blocks; /* ... and one more in so many of the first blocks */
    uint32_t nblocks;       /* nranks or 1 */
    bool dealt;             /* what is said of a block is meant of a chunk, and chunks make blocks in turns */
    size_t chunk;           /* elements per chunk */
    uint32_t nchunks;       /* chunks of the longest block; barrier: 1 */
    uint32_t group;         /* chunks that go through a loop side by side */
    uint64_t ngroups;
    uint64_t iterations; /* t ends here */
    uint32_t first_round, rounds; /* t begins with round first_round + t * rounds; rounds is 0 in a plan without rounds */
    uint16_t nloops, nsteps;
    iq_loop_t loops[IQ_PLAN_MAX_LOOPS];
    iq_step_t steps[IQ_PLAN_MAX_STEPS];
} iq_plan_t;

_Static_assert(sizeof(iq_plan_t) <= 4096, "a plan stays within 4 KiB whatever the count");

typedef struct iq_plan_request {
    iq_collective_t collective;
    int rank, nranks, root;
    size_t count;      /* as in iq_plan_t */
    size_t block_unit; /* allreduce: blocks are multiples of so many elements (32, or the bucket); others cut into nranks alike */
    size_t chunk;      /* elements, at least 1 */
    unsigned slots;    /* messages that every link holds per direction, at least 2 (0 means 2); more allows more overlap */
    int lanes;         /* reduce_scatter, allgather: only the first so many ranks have blocks, multiples of block_unit; 0: all, equal parts */
    bool dealt;        /* allreduce: blocks of equal numbers of chunks from all over the tensor */
    bool rounds;       /* for links that hold nothing: what is sent in one round is received in the same round (iq_action_t) */
} iq_plan_request_t;

/* ISGQ_ERR_UNSUPPORTED with a sentence if the algorithm does not do this collective. */
typedef isgq_result_t (*iq_plan_build_fn)(const iq_plan_request_t *request, iq_plan_t *plan);

/* What an algorithm asks of the codec. */
enum {
    IQ_NEEDS_PARTIAL_SUMS = 1, /* moves partial(k) with k > 1: codecs whose partial sums are not exact would round at every hop */
    IQ_ROUNDS_LATE = 2, /* every rank sums all contributions itself: a result that is requantized elsewhere is not rounded here */
    IQ_NEEDS_BOARDS = 4, /* all ranks see memory that every one of them writes for all others */
    IQ_IN_LEVELS = 8 /* the plan is the one between hosts, others go before and after it */
};

typedef struct iq_algorithm {
    const char *name; /* "direct", "ring", "exchange", ... */
    iq_collective_t collective;
    unsigned needs;
    iq_plan_build_fn build;
    const char *help; /* one line: steps and bytes */
} iq_algorithm_t;

/* All algorithms, ends with name NULL. */
extern const iq_algorithm_t iq_algorithms[];

const iq_algorithm_t *iq_algorithm_find(iq_collective_t collective, const char *name); /* NULL if there is none */
const char *iq_collective_name(iq_collective_t collective);                            /* "allreduce", ... */
const char *iq_step_kind_name(iq_step_kind_t kind);

/* One concrete thing to do now. */
typedef struct iq_action {
    iq_step_kind_t kind;
    int peer, to;        /* -1: none */
    size_t first, count; /* span within the tensor */
    int parts;           /* contributions in the partial sum that the step leaves; 0 where it handles no partial sum */
    uint32_t block, chunk;
    uint16_t step; /* index of the step, for frames and messages */
    /* In a plan of rounds: which one this step's message is received or sent in, from 0; a REDUCE of own data has that of the loop's other
     * steps. Else 0. */
    uint32_t receive_round, send_round;
} iq_action_t;

/* Resumable walk. Zero-initialise. */
typedef struct iq_plan_cursor {
    uint64_t t;
    uint32_t k, member; /* member: which chunk of the group */
    uint16_t loop, step;
} iq_plan_cursor_t;

/* The action at the cursor, which then moves on; false at the end. Skips what is empty, and sends to oneself never occur. */
bool iq_plan_next(const iq_plan_t *plan, iq_plan_cursor_t *cursor, iq_action_t *action);

/* One line of text for an action, as isgq_plan prints it. Always terminated. */
void iq_action_format(const iq_plan_t *plan, const iq_action_t *action, char *text, size_t bytes);

/* Start and length of block b (0 if it is empty); of a plan that deals, of chunk b of the tensor. */
void iq_plan_block(const iq_plan_t *plan, uint32_t block, size_t *first, size_t *count);

/* ---- choosing ---- */

typedef struct iq_choice_request {
    iq_collective_t collective;
    int nranks, nhosts;
    bool boards; /* see IQ_NEEDS_BOARDS */
    size_t count, element_bytes;
    double partial_bits, result_bits; /* wire bits per element of partial(1) and of the result */
    bool partial_sums_exact;          /* the codec can carry partial sums without rounding */
    bool lossless;                    /* the wire carries the elements themselves: nothing is rounded on the way */
    bool result_exact;                /* the finished sum is not rounded again (implied by lossless) */
    bool any_order;                   /* contributions may be added in any order: same bits (integers) */
    bool spares;                      /* a budget counts every byte: one round only where it sends no more than two */
    const char *forced;               /* an algorithm's name, or NULL / "auto" */
} iq_choice_request_t;

/*
 * Picks the algorithm from values that are equal on all ranks; `why` gets a few words. A size never decides between ways that
 * give different bits. A forced name that no collective knows is ISGQ_ERR_INVALID_ARGUMENT; one that is not for this collective,
 * or unfit for the codec, is ISGQ_ERR_UNSUPPORTED; either with one sentence.
 */
isgq_result_t iq_choose(const iq_choice_request_t *request, const iq_algorithm_t **algorithm, char *why, size_t why_bytes);

/* Factored calls: "gather" (factors travel), "reduce" (integer products travel), "dense" (the local product is quantized), "share" (factors travel,
 * and the ranks of a host divide decoding and product among them), "owner" (columns of factors travel to the rank that makes their block of the product). */
typedef enum iq_factored_way {
    IQ_FACTORED_GATHER,
    IQ_FACTORED_REDUCE,
    IQ_FACTORED_DENSE,
    IQ_FACTORED_SHARE,
    IQ_FACTORED_OWNER,
    IQ_FACTORED_WAY_COUNT
} iq_factored_way_t;

typedef struct iq_factored_way_text {
    const char *name, *help;
} iq_factored_way_text_t;

extern const iq_factored_way_text_t iq_factored_ways[IQ_FACTORED_WAY_COUNT];

typedef struct iq_factored_choice_request {
    int nranks;
    size_t m, n, max_batch;
    size_t blob_bytes;        /* most bytes of one rank's factors */
    size_t sum_element_bytes; /* 4 or 8: one integer of the product */
    double dense_bits;        /* wire bits per element of the dense alternative, both phases averaged */
    size_t scratch_needed_gather, scratch_needed_reduce, scratch_needed_share, scratch_limit;
    double owner_bytes;         /* what a rank sends as one of all owners */
    size_t scratch_needed_owner;
    double decode_ns;   /* one rank's factors, on the machine that choose_factored.c assumes */
    const iq_cost_machine_t *machine; /* measured, or NULL: bytes decide, and times are those of the assumed one */
    double dense_seconds;             /* with a machine: of the dense alternative, but for the own product */
    int ranks_per_host; /* of every host; 0 if they differ, or if work cannot be shared */
    bool may_own;       /* ranks can be owners: all work on host memory */
    bool may_gather;    /* false: the quantizer has no factored form, so dense it is */
    const char *forced; /* "gather", "reduce", "dense", "share", "owner", or NULL / "auto" */
} iq_factored_choice_request_t;

/* Of the ways that fit into scratch the one that takes the least time on the machine; without one the way with the fewest bytes that a rank
 * sends, and sharing instead of gathering where it takes less time. `why` gets the numbers. Errors: iq_choose. */
isgq_result_t iq_choose_factored(const iq_factored_choice_request_t *request, iq_factored_way_t *way, char *why,
                                 size_t why_bytes);

#endif
