/* SPDX-License-Identifier: Apache-2.0 */
/* Ranks of a control channel for tests: threads or forked processes, each with a listener that records what it is told. */
#ifndef ISGQ_TEST_SUPPORT_CONTROL_RANKS_H
#define ISGQ_TEST_SUPPORT_CONTROL_RANKS_H

#include "base/util.h"
#include "transport/control_internal.h"

#define MAX_RANKS 9
#define SOON_NS (30 * IQ_SECOND) /* nothing should take so long */

typedef struct control_rank {
    int rank, nranks, version;
    iq_rendezvous_t place;
    uint64_t deadline_ns;
    iq_control_t *control;
    isgq_result_t result; /* of the last call, with its text */
    char error[IQ_ERROR_TEXT_BYTES];

    /* what the listener answers */
    iq_rank_status_t status;
    uint64_t call; /* whose arguments it knows */
    const char *arguments;

    /* what it was told */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int failures;
    isgq_result_t failure;
    int culprit;
    char text[IQ_ERROR_TEXT_BYTES];
} control_rank_t;

typedef void (*control_rank_fn)(control_rank_t *rank);

/* This build can prove that it knows a secret (libsodium); without it there is no TCP. */
bool have_proofs(void);

/* `nranks` ranks that will meet at a fresh place; `kind` TCP: loopback, or a unix socket where there is no TCP.
 * Nothing is opened yet. */
void control_ranks_init(control_rank_t *ranks, int nranks, iq_address_kind_t kind);

/* Run `fn` for count ranks at once, one thread each, and wait. */
void control_ranks_each(control_rank_t *ranks, int count, control_rank_fn fn);

/* For control_ranks_each. */
void control_rank_open(control_rank_t *rank); /* and listen */
void control_rank_barrier(
    control_rank_t *rank); /* all have opened and are in their channel's thread; failures are left to the listener */
void control_rank_goodbye(control_rank_t *rank);
void control_rank_close(control_rank_t *rank);

/* Open the control of a rank in a forked child: then the barrier, then `fn`, then the child ends with status 0. Returns its pid. */
pid_t control_rank_fork(control_rank_t *ranks, int rank, control_rank_fn fn);
/* Wait for the child; true if it ended with status 0. */
bool control_rank_reap(pid_t pid);

/* Wait until the listener was told of a failure. */
bool control_rank_wait_failed(control_rank_t *rank, uint64_t limit_ns);

/* Open descriptors of this process. */
int count_descriptors(void);

#endif
