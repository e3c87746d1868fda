/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inside of the wire "nccl": messages lie in staging memory of this rank's device, and all messages of a round are one NCCL group of sends
 * and receives on the caller's stream.
 *
 * The communicator of NCCL is the application's, which this library only borrows, or the wire's own. NCCL waits where a wire must not: for
 * ranks that do not come, when one is made; for CUDA graphs that hold it, when one is ended. So both are done by threads that nobody has to
 * wait for, and the wire is freed by whoever holds it last.
 */
#ifndef ISGQ_TRANSPORT_NCCL_WIRE_H
#define ISGQ_TRANSPORT_NCCL_WIRE_H

#include "transport/nccl.h"
#include "transport/wire.h"

#include <pthread.h>
#include <stdatomic.h>

#define IQ_NCCL_MESSAGES 8 /* of a round, per peer and direction */

typedef enum iq_nccl_stage {
    IQ_NCCL_OPEN,      /* outgoing: being written. Incoming: being read */
    IQ_NCCL_READY,     /* outgoing: to be sent. Incoming: to be received */
    IQ_NCCL_ARRIVED,   /* incoming: to be read */
    IQ_NCCL_DONE
} iq_nccl_stage_t;

typedef struct iq_nccl_message {
    int peer;
    iq_nccl_stage_t stage;
    unsigned char *data;
    size_t bytes;
} iq_nccl_message_t;

/* Messages of one direction, in the order in which they were begun or announced. */
typedef struct iq_nccl_box {
    unsigned char *memory; /* of the device */
    size_t bytes, used;
    iq_nccl_message_t *messages;
    size_t room, count;
} iq_nccl_box_t;

typedef struct iq_nccl {
    iq_wire_t base;
    const iq_nccl_functions_t *nccl;
    const iq_cuda_module_t *cuda;
    int rank, nranks, device;
    size_t slot_bytes;
    iq_nccl_box_t out, in;
    atomic_bool captured; /* some graph may hold the communicator */

    iq_nccl_comm_t comm;
    bool own;
    pthread_rwlock_t gate; /* read: somebody is in a function of NCCL; write: the communicator is ended */
    atomic_bool gone;      /* nobody enters any more */
    bool orderly;          /* closed without having been let go; written before `gone` */

    pthread_mutex_t lock;
    pthread_cond_t changed;
    int holders;
    pthread_t connector;  /* joined once it is `connected`: iq_nccl_connect has come back with `result` and its text */
    bool connected;
    pthread_t ender;      /* of the own communicator, if `ending`; joined once it is `ended` */
    bool ending, ended;
    bool closed;          /* nobody joins threads any more */
    isgq_result_t result;
    char text[256];
    iq_nccl_id_t id;
    uint64_t deadline_ns;
} iq_nccl_t;

/* ---- nccl.c ---- */

extern const iq_wire_ops_t iq_wire_nccl;

/* For a call of NCCL that lasts; ISGQ_ERR_REMOTE when the wire has been let go. */
isgq_result_t iq_nccl_enter(iq_nccl_t *wire);
void iq_nccl_leave(iq_nccl_t *wire);

/* ---- nccl_open.c ---- */

isgq_result_t iq_nccl_open(const iq_wire_params_t *params, iq_wire_t **wire);

/* Make the own communicator if it is that, take memory, and send a trial message to every peer. May hang for ever. */
isgq_result_t iq_nccl_connect(iq_nccl_t *wire);

/* ---- nccl_end.c ---- */

iq_nccl_t *iq_nccl_new(const iq_wire_params_t *params, const iq_nccl_functions_t *nccl);

/* iq_nccl_connect on a thread of its own; ISGQ_ERR_TIMEOUT if it has not come back by the wire's deadline. */
isgq_result_t iq_nccl_connect_apart(iq_nccl_t *wire);

void iq_nccl_close(iq_wire_t *wire);
void iq_nccl_let_go(iq_wire_t *wire);

#endif
