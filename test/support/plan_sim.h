/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs the plans of all ranks in one loop and proves them: messages carry symbols (which ranks' contributions, in which order)
 * instead of numbers, links are bounded queues.
 *
 * Ranks execute in order, block on an empty or a full link, and never look at both: such a network ends the same way under every
 * schedule, so one schedule decides about deadlock. Others are run to check the simulator itself.
 */
#ifndef ISGQ_TEST_PLAN_SIM_H
#define ISGQ_TEST_PLAN_SIM_H

#include "plan/plan.h"

#define IQ_SIM_MAX_RANKS 33

typedef enum iq_sim_schedule {
    IQ_SIM_LOWEST_FIRST, /* the lowest rank that can move does: higher ones starve */
    IQ_SIM_HIGHEST_FIRST,
    IQ_SIM_RANDOM
} iq_sim_schedule_t;

typedef struct iq_sim_options {
    unsigned capacity;   /* messages a link holds; 0: no limit */
    bool releases_early; /* steps that receive and send give the received slot back before they wait for room to send */
    bool rounds;         /* plans of rounds, over links that hold nothing (plan_sim_rounds.h); capacity is 0 then */
    bool ring_order;     /* sums of block b are due in the order b + 1, ..., b; else 0, ..., N - 1 */
    iq_sim_schedule_t schedule;
    uint64_t seed;
} iq_sim_options_t;

/* What one rank sent, in elements. */
typedef struct iq_sim_traffic {
    uint64_t partial[IQ_SIM_MAX_RANKS + 1]; /* by contributions in the sum */
    uint64_t result;
    uint64_t messages;
} iq_sim_traffic_t;

typedef struct iq_sim_report {
    char error[256]; /* the first thing that was wrong, "" if nothing was */
    unsigned peak;   /* most messages that lay on one link, or went over it in one round */
    iq_sim_traffic_t sent[IQ_SIM_MAX_RANKS];
} iq_sim_report_t;

/*
 * plans[r] is rank r's. True if all went well: sends met receives of the same kind, block, chunk, span and parts; nothing
 * deadlocked or was left over; the accumulator and the kept result were used as plan.h says; every output element was written
 * exactly once, with every contribution that belongs there exactly once and in order; own input was never read after it was
 * overwritten in place.
 */
bool iq_sim_run(const iq_plan_t *plans, int nranks, const iq_sim_options_t *options, iq_sim_report_t *report);

#endif
