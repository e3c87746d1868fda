/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One piece of memory that several ranks of a host see, each through a mapping of its own, whether they share a process or not.
 *
 * The first of them, the leader, makes a sealed memfd and listens on an abstract unix socket under a random name; the others
 * connect and are handed the descriptor. Neither has a name in any file system, and `iq_segment_settle` closes both descriptors,
 * so nothing is left behind however the processes end.
 *
 *     prepare; tell all ranks the leader's name by an allgather; join if all could prepare; settle; agree whether all joined
 */
#ifndef ISGQ_TRANSPORT_SEGMENT_H
#define ISGQ_TRANSPORT_SEGMENT_H

#include "isgqcoll.h"

#include <stddef.h>
#include <stdint.h>

/* The leader's socket. Random, so that knowing it is half a proof; the token is the other half. */
typedef struct iq_segment_name {
    uint8_t bytes[16];
} iq_segment_name_t;

/* Equal on all members but for `rank`. */
typedef struct iq_segment_params {
    const char *user;  /* "shm": begins error messages, at most 15 characters */
    uint64_t token;    /* of the communicator */
    uint64_t shape[2]; /* what the memory is made of, in the user's words: members must agree */
    size_t bytes;      /* of `memory` */
    uint64_t beyond;   /* bytes of the file that nobody maps yet, for iq_segment_keep; a file system or a limit may refuse them */
    const int *ranks;  /* [count] ascending; the first is the leader. Kept until settle */
    unsigned count;
    int rank;             /* this one, among them */
    uint64_t deadline_ns; /* iq_now_ns() clock; leave time for the agreement after it */
} iq_segment_params_t;

typedef struct iq_segment {
    void *memory;  /* 64-byte aligned, zeroed before the first member sees it; NULL before join */
    void *mapping; /* whole pages; `memory` lies within */
    size_t mapped;
    uint64_t beyond_at; /* where those begin; 0: there are none */
    iq_segment_params_t params;
    int memory_fd, listen_fd; /* -1: none */
} iq_segment_t;

/* Leader: make memory and socket, and draw the name. Others: remember the params. Settle and leave are due after a failure, too. */
isgq_result_t iq_segment_prepare(iq_segment_t *segment, const iq_segment_params_t *params, iq_segment_name_t *name);

/* Leader: hand the memory to all members, until the deadline. Others: fetch it from the leader, whose name it is. Then map it. */
isgq_result_t iq_segment_join(iq_segment_t *segment, const iq_segment_name_t *name);

/* A descriptor of one's own, from join until settle; -1 if there is nothing beyond. */
int iq_segment_keep(const iq_segment_t *segment);

/* Close the descriptors: nobody joins any more. Also for a zeroed segment that was never prepared. */
void iq_segment_settle(iq_segment_t *segment);

/* Give the mapping back. The memory goes with the last one. Also for a segment that was never joined. */
void iq_segment_leave(iq_segment_t *segment);

#endif
