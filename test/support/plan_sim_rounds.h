/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rounds of the plan simulator: when messages reach their receivers in a plan of rounds.
 *
 * A rank hands all messages of a round over in one group, together with what it wants to receive in it, and stays in the group until
 * all of them have met their counterparts (grouped ncclSend and ncclRecv). A message crosses only while both ends are in groups that
 * hold it. So a wrong order shows as a deadlock; besides, both ends must call the round by the same number, and nothing that was
 * received may lie about when the next group begins.
 */
#ifndef ISGQ_TEST_PLAN_SIM_ROUNDS_H
#define ISGQ_TEST_PLAN_SIM_ROUNDS_H

#include "support/plan_sim.h"

typedef struct iq_sim_pair {
    unsigned posted;          /* sent, for the sender's next group */
    unsigned offered, wanted; /* in the groups that the ends are in now */
    unsigned arrived;         /* not yet taken by the receiver */
} iq_sim_pair_t;

typedef struct iq_sim_rounds {
    const iq_plan_t *plans;
    int nranks;
    unsigned peak; /* most messages of one pair in a group */
    struct {
        uint32_t next; /* rounds before this one are over */
        bool in_group;
    } ranks[IQ_SIM_MAX_RANKS];
    iq_sim_pair_t pairs[IQ_SIM_MAX_RANKS][IQ_SIM_MAX_RANKS]; /* [from][to] */
    char error[96];
} iq_sim_rounds_t;

/*
 * Go on until all rounds that must be over before the action are: those before the one that it sends in, and the one that it
 * receives in. `cursor` stands behind the action; action NULL stands for the end of the plan. False: the rank waits, or `error` says
 * what is wrong. `moved`: something happened.
 */
bool iq_sim_rounds_reach(iq_sim_rounds_t *rounds, int rank, const iq_action_t *action, iq_plan_cursor_t cursor, bool *moved);

void iq_sim_rounds_sent(iq_sim_rounds_t *rounds, int rank, int to, uint32_t round);

/* False: nothing has arrived that could be taken. */
bool iq_sim_rounds_take(iq_sim_rounds_t *rounds, int from, int rank);

#endif
