/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A world for tests of transports: a number of ranks laid out over hosts, processes and threads. Ranks of one process are threads; processes
 * are forked; hosts exist only in the descriptions, so UCX runs over this machine's own network. The parent serves the allgather over
 * socket pairs.
 */
#ifndef ISGQ_TEST_SUPPORT_WORLD_H
#define ISGQ_TEST_SUPPORT_WORLD_H

#include "base/status.h"
#include "transport/transport.h"

#include <stdio.h>

#define MAX_RANKS 6
#define LONG_NAP_NS 20000000000u /* a lost wake-up costs one nap: time limits show it */

typedef struct rank rank_t;

typedef struct world {
    const char *transports;
    int nranks;
    int host[MAX_RANKS], process[MAX_RANKS]; /* processes are numbered 0, 1, ... */
    int (*body)(rank_t *self);               /* what a rank does in each of two epochs; 0: all is well */
    int victim;                              /* a rank that dies of SIGKILL, -1: none */
    const char *interface;
    size_t slot_bytes;
    unsigned slots;
    uint64_t open_ns;
    void (*after_gather)(rank_t *self, const void *all, size_t bytes);
} world_t;

struct rank {
    const world_t *world;
    int rank, socket, epoch, gathers;
    int result;
    iq_peer_t peers[MAX_RANKS];
    const char *interface;
    int ntransports;
    iq_transport_t *transports[4];
    iq_link_t *links[MAX_RANKS];
};

/* In ranks, which are not where Check can see a failed assertion. */
#define EXPECT(condition)                                                                                       \
    do {                                                                                                        \
        if (!(condition)) {                                                                                     \
            fprintf(stderr, "rank %d, line %d: not so: %s; last error: %s\n", self->rank, __LINE__, #condition, \
                    iq_last_error());                                                                           \
            return 1;                                                                                           \
        }                                                                                                       \
    } while (0)

/* A world whose body is `world_talk`. "ucx" puts every rank on a host of its own, "local" all into one process. */
world_t world_make(const char *transports, int nranks);

/* Run it; fails the test if a rank's body fails, or if a process leaves descriptors or mappings behind. */
void world_run(const world_t *world);

/* ---- for bodies; those that return int return 0 when all is well ---- */

isgq_result_t world_open(rank_t *self); /* everything that the world names, also what it has no use for */
void world_close(rank_t *self);
isgq_result_t world_progress(rank_t *self, bool settle, int *failed_peer);
isgq_result_t world_gather(void *rank, const void *send_data, void *recv_data, size_t bytes);
int world_barrier(rank_t *self);

/* Messages of all sizes to and from every peer at once, but not to or from `without`; contents checked. */
int world_exchange(rank_t *self, int without);

/* Until everything has left this rank: before it stops making progress. */
int world_settle(rank_t *self);

/* Open, exchange, settle, meet, close. */
int world_talk(rank_t *self);

#endif
