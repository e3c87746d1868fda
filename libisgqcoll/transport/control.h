/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The control channel: how the ranks of a communicator find each other, and how bad news travels. Data never does.
 *
 * A star of authenticated stream sockets with rank 0 in the middle: unix sockets (abstract names, uid checked) when all ranks are
 * on this host, TCP otherwise. Both sides prove by challenge and response (libsodium) that they know the job's secret, which
 * never travels. The channel owns one thread, nearly always asleep in poll: it carries abort, mismatch, heartbeat, "whom do you
 * await", and notices deaths (end of file, pidfd of local processes; a forked child keeps no connection that would hide one).
 * Frames are bounded; strangers who connect, send rubbish or stay silent are dropped without harm.
 */
#ifndef ISGQ_TRANSPORT_CONTROL_H
#define ISGQ_TRANSPORT_CONTROL_H

#include "isgqcoll.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IQ_SECRET_BYTES 32
#define IQ_ADDRESS_TEXT_BYTES 64

/* Where rank 0 listens. */
typedef enum iq_address_kind { IQ_ADDRESS_UNIX, IQ_ADDRESS_TCP } iq_address_kind_t;

typedef struct iq_rendezvous {
    iq_address_kind_t kind;
    char text[IQ_ADDRESS_TEXT_BYTES]; /* abstract unix name without the leading NUL, or "address" (IPv4, IPv6, host name) */
    uint16_t port;                    /* TCP; 0 and listen_fd >= 0: see listen_fd */
    uint8_t secret[IQ_SECRET_BYTES];
    bool has_secret;     /* false: loopback or unix only (the uid check remains) */
    int listen_fd;       /* rank 0: a socket that already listens there, owned by control_open from then on; -1: bind now */
    uint16_t port_count; /* other ranks, TCP: rank 0 is on one of the ports port..port+port_count-1; 0 means 1 */
    char *file;          /* rank 0: file store to remove once all have met, owned by control_open from then on; or NULL */
} iq_rendezvous_t;

/* ---- making a rendezvous ---- */

/* Listen now (unix socket, or TCP on ISGQ_INTERFACE if set) under a fresh name and secret, and put it all into the id; the socket
 * stays in a table of this process until iq_rendezvous_from_id finds it. */
isgq_result_t iq_rendezvous_new_id(isgq_unique_id_t *id);

/* The other direction. `rank` 0 takes the listening socket out of the table. ISGQ_ERR_INVALID_ARGUMENT for bytes that are no id,
 * ISGQ_ERR_MISMATCH for an id of another version, ISGQ_ERR_INVALID_USAGE if rank 0 is not in the process that made it or the id
 * was used. */
isgq_result_t iq_rendezvous_from_id(const isgq_unique_id_t *id, int rank, iq_rendezvous_t *rendezvous);

/* Forget the listener of an id that will not be used after all. Nothing happens if this process has none for it (any more). */
void iq_rendezvous_drop_id(const isgq_unique_id_t *id);

/* From ISGQ_RANK.., torchrun, Open MPI, MPICH, srun. Counts calls, so that a second communicator of
 * the same job meets elsewhere. file:PATH waits for rank 0's file until the deadline. ISGQ_ERR_INVALID_USAGE when no launcher is
 * recognised. */
isgq_result_t iq_rendezvous_from_environment(uint64_t deadline_ns, int *rank, int *nranks, iq_rendezvous_t *rendezvous);

/* For a rendezvous that is not opened after all: closes rank 0's listener, removes its file. */
void iq_rendezvous_drop(const iq_rendezvous_t *rendezvous);

/* ---- the channel ---- */

/* What a rank is doing, for the search for the rank at fault. */
typedef struct iq_rank_status {
    uint64_t completed; /* calls finished */
    uint64_t current;   /* call being run, 0: none */
    int32_t awaited;    /* rank it waits for, -1: none */
    char text[96];      /* "call 17" */
} iq_rank_status_t;

/* One call's arguments as "name value" pairs, in one fixed order, e.g. "op allreduce\ncount 1000\ndatatype f32\n...". */
#define IQ_ARGUMENTS_TEXT_BYTES 576

typedef struct iq_control_events {
    void *context;
    /* All are called on the channel's thread, without locks held. */
    void (*status)(void *context, iq_rank_status_t *status);
    /* Arguments of call `sequence` if this rank has made it recently; false if not (yet, or too long ago). */
    bool (*arguments)(void *context, uint64_t sequence, char text[IQ_ARGUMENTS_TEXT_BYTES]);
    /* The communicator has failed: a rank died, aborted or disagreed. Called at most once; text names rank, operation, value. */
    void (*failed)(void *context, isgq_result_t result, int culprit, const char *text);
} iq_control_events_t;

typedef struct iq_control iq_control_t;

typedef struct iq_control_params {
    int rank, nranks;
    const iq_rendezvous_t *rendezvous;
    uint64_t deadline_ns;
    iq_control_events_t events; /* may be zero until iq_control_start */
} iq_control_params_t;

/* Collective. Meets and authenticates all ranks: version, nranks, rank range and duplicates are checked here (ISGQ_ERR_MISMATCH,
 * ISGQ_ERR_INVALID_ARGUMENT on every rank). At the deadline the error names the ranks that never came. A host name is looked up
 * by the system's resolver, whose own time limits come on top. */
isgq_result_t iq_control_open(const iq_control_params_t *params, iq_control_t **control);

/* recv holds nranks * bytes in rank order. Collective, one at a time, any thread; bytes at most 64 KiB. Fails when the
 * communicator fails. */
isgq_result_t iq_control_allgather(iq_control_t *control, const void *send, void *recv, size_t bytes, uint64_t deadline_ns);

/* Give the channel its listener, once, after open. Until then failures are kept. */
void iq_control_start(iq_control_t *control, const iq_control_events_t *events);

/* Tell all ranks that the communicator has failed; also calls this rank's `failed`. First report wins. Any thread, at most once
 * matters. */
void iq_control_abort(iq_control_t *control, isgq_result_t result, int culprit, const char *text);

/* This rank has waited for `awaited` beyond its deadline. The ranks ask each other whom they await; the end of the chain (a rank
 * that does not answer within a second, or has not made the call, or is dead) is named in `failed` on every rank,
 * ISGQ_ERR_TIMEOUT. If the arguments of the call turn out to differ it is ISGQ_ERR_MISMATCH. Returns at once; `failed` follows
 * within 3 seconds in any case, also when rank 0 is the one that hangs. */
void iq_control_report_stall(iq_control_t *control, uint64_t sequence, int awaited, const char *step);

/* A frame of `peer` does not belong to the call we are in. The ranks exchange the arguments of calls `first` to `last` one by one, until they find
 * some that differ; `failed` follows with
 * ISGQ_ERR_MISMATCH and the differing value: "call 17: count is 1000 on rank 0 and 1001 on rank 2". If all agree after all:
 * ISGQ_ERR_CORRUPT naming the peer. */
void iq_control_report_mismatch(iq_control_t *control, uint64_t first, uint64_t last, int peer);

/* Leave in good order: returns when all ranks have called it (or at the deadline, ISGQ_ERR_TIMEOUT naming who has not).
 * Afterwards end of file is no death. */
isgq_result_t iq_control_goodbye(iq_control_t *control, uint64_t deadline_ns);

/* Stop the thread, close everything. Without goodbye the peers see a death. */
void iq_control_close(iq_control_t *control);

#endif
