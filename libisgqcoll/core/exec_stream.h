/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The executor of streams: where a wire joins the devices of all ranks, a call is enqueued as a whole on the caller's stream by the thread that makes it.
 *
 *     caller's stream     ... | arrival | kernels of the codec, waits and messages of the wire | departure | ...
 *     progress thread     agreement with the other ranks (messages of hosts), then polls arrival and departure
 *
 * It walks the plans of run.h with the steps of step.h; nothing of a call waits for a host, nothing allocates, and a CUDA graph may capture it. Hosts
 * only agree that all mean the same call, which may happen later than the call itself: a mismatch is reported on every rank, buffers are garbage then.
 *
 * A captured call is agreed on when it is captured. Replays are the device's own business: they follow the streams' order, which the user keeps, their random
 * numbers are fresh (a counter in device memory is the upper half of the call number), and a failure of the communicator lets them pass.
 *
 * Calls on different streams follow each other by events. Everything here belongs to the one thread that makes calls, but what is marked.
 */
#ifndef ISGQ_CORE_EXEC_STREAM_H
#define ISGQ_CORE_EXEC_STREAM_H

#include "codec/device.h"
#include "core/run.h"
#include "transport/wire.h"

typedef struct iq_stream_exec {
    iq_wire_t *wire; /* NULL: one rank */
    iq_device_t device;
    iq_scratch_t memory, host;
    iq_plan_cache_t plans;
    iq_site_t site;
    iq_run_t run;
    uint32_t *replays; /* device memory */
    bool sums_words;   /* exact sums of codes go through the wire's own allreduce */
    uint64_t last;     /* the eager call that was enqueued last; 0: none */
    uint64_t activity; /* of the wire, when the progress thread looked last */
} iq_stream_exec_t;

/* Collective. comm->stream_exec if a wire of ISGQ_TRANSPORTS joins all ranks; NULL if none does, with the reasons in the log. All ranks alike. */
isgq_result_t iq_stream_open(isgq_comm_t comm, uint64_t token);
void iq_stream_close(isgq_comm_t comm);

/* Can the call be enqueued as a whole? Equal on all ranks. */
bool iq_stream_takes(isgq_comm_t comm, const iq_call_t *call);

/* Enqueue all of *call, which has its number; sets captured, wire_bytes and own_bytes. *begun: part of it may be on the stream, and after a failure the
 * communicator cannot go on. */
isgq_result_t iq_stream_enqueue(isgq_comm_t comm, iq_call_t *call, bool *begun);

/* A call that hosts do, in its turn among those that streams do. Refuses streams that are being captured. */
isgq_result_t iq_stream_enqueue_hosted(isgq_comm_t comm, iq_call_t *call);

/* ---- stream_plan.c ---- */

/* Enqueue a plan stage of exec->run on exec->device.stream. */
isgq_result_t iq_stream_enqueue_plan(isgq_comm_t comm, const iq_stage_t *stage);

/* ---- the host side: whoever holds progress_lock ---- */

/* ISGQ_IN_PROGRESS until the stream has passed the run's call; run->awaits is the rank that it waits for, this one if it waits for nobody, and messages that
 * move are progress. Then the verdict on them. */
isgq_result_t iq_stream_passed(isgq_comm_t comm, iq_run_t *run);

/* ISGQ_SUCCESS, or that what streams have passed may be void: a rank has let go, which this one may not have heard yet. Any thread. */
isgq_result_t iq_stream_verdict(isgq_comm_t comm);

/* Streams that wait for other ranks go on for good. Any thread; touches no GPU. */
void iq_stream_let_go(isgq_comm_t comm);

#endif
