/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The GPU side of a communicator: the executor of run.h works on device memory through a stream of its own.
 *
 * A call starts when the caller's stream has reached it and the caller's stream goes on when the call is complete:
 *
 *     caller's stream     ... | arrival event | await done >= sequence | departure event | ...
 *     progress thread     polls the arrival, runs the plan, then stores `done` = sequence
 *
 * `done` lies in pinned memory. Nothing ever blocks on the communicator's own stream, so it drains at any time. A failure stores a value that lets every
 * waiting stream go on, after the communicator's own stream has drained: callers' buffers are then theirs again.
 *
 * Callers' streams of ranks that share a process and a GPU must be able to run side by side: a call starts when all ranks' streams have reached it. The
 * header tells users what that asks of them. No lock is held while something is enqueued on a caller's stream, which may block when its queue is full.
 *
 * Messages are staged: kernels write and read one outgoing and one incoming message in pinned memory, and the progress thread copies between it and the
 * transports' slots, so every transport works and ranks on CPUs and GPUs may meet. Codec work is launched when a step begins, and a step that
 * sends or receives ends when the event behind that work has been reached.
 *
 * Stages of factored calls that work on the host find what they need in host memory of the communicator's own.
 */
#ifndef ISGQ_CORE_GPU_H
#define ISGQ_CORE_GPU_H

#include "codec/device.h"
#include "core/comm.h"

/* What a communicator on device memory has beside the others. */
typedef struct iq_gpu iq_gpu_t;

/* Scratch of a communicator with a rank on a device is at most this, on every rank: device memory is not lent lazily. */
#define IQ_GPU_SCRATCH_BYTES ((size_t)256 << 20)

/* Host memory beside it, for factored calls, touched as far as they need it: what a rank on host memory has, and once more the factors, at most twice as
 * many bytes as their decoded rows. */
#define IQ_GPU_HOST_BYTES(scratch_bytes) (4 * (scratch_bytes))

/* Calls that may be queued on a device: three entries each in the queue of the caller's stream, which must not fill up. */
#define IQ_GPU_QUEUE_CALLS 64

/* The device that a communicator with this configuration would work on if it were made by the calling thread now. */
int iq_gpu_current(const isgq_comm_config_t *config);

/* Opens comm->device, or the current one. Fails with a sentence if this build, machine or driver cannot. */
isgq_result_t iq_gpu_open(isgq_comm_t comm);

/* Waits until callers' streams have passed (they can: a communicator that ends lets them go), then frees everything. */
void iq_gpu_close(isgq_comm_t comm);

/* For a communicator on host memory: look at pointers too if this process uses CUDA at all. */
void iq_gpu_watch(isgq_comm_t comm);

/* ---- for calls: any thread ---- */

/* The buffer lies where this communicator works; NULL is fine. */
isgq_result_t iq_gpu_check_buffer(isgq_comm_t comm, const char *operation, const char *name, const void *buffer);

/* A stream that calls may be enqueued on: NULL for host memory, none that is being captured. */
isgq_result_t iq_gpu_check_stream(isgq_comm_t comm, const char *operation, isgq_stream_t stream);

/* Enqueue arrival, wait and departure of call `sequence` on its stream, before anybody sees the call. Holds no lock. */
isgq_result_t iq_gpu_enqueue(isgq_comm_t comm, uint64_t sequence, isgq_stream_t stream);

/* For calls that are streamed: the two marks alone, and a wait for the departure of call `sequence`. */
isgq_result_t iq_gpu_mark_arrival(isgq_comm_t comm, uint64_t sequence, isgq_stream_t stream);
isgq_result_t iq_gpu_mark_departure(isgq_comm_t comm, uint64_t sequence, isgq_stream_t stream);
isgq_result_t iq_gpu_follow(isgq_comm_t comm, uint64_t sequence, isgq_stream_t stream);

/* A stream waits for a call that will never be made in full: the communicator cannot go on. Returns `result`, whose text is the last error. */
isgq_result_t iq_gpu_give_up(isgq_comm_t comm, isgq_result_t result);

/* The fault word of streamed calls. */
uint32_t *iq_gpu_stream_fault(isgq_comm_t comm);

/* On a device: comm->own_room is there from now on. */
isgq_result_t iq_gpu_take_own_room(isgq_comm_t comm);

/* ---- for the run: whoever holds progress_lock ---- */

/* ISGQ_IN_PROGRESS until the caller's stream has reached call `sequence`. */
isgq_result_t iq_gpu_arrival(isgq_comm_t comm, uint64_t sequence);

/* ISGQ_IN_PROGRESS until it has passed it. */
isgq_result_t iq_gpu_departure(isgq_comm_t comm, uint64_t sequence);

/* Is the work of a step launched and not yet finished? */
bool iq_gpu_busy(isgq_comm_t comm);

/* The first time: mark the end of what was launched. ISGQ_IN_PROGRESS until that is reached, then the verdict on it, which names the codec. */
isgq_result_t iq_gpu_finish(isgq_comm_t comm, const char *codec);

/* Where messages are staged, slot_bytes each. */
unsigned char *iq_gpu_outgoing(isgq_comm_t comm);
unsigned char *iq_gpu_incoming(isgq_comm_t comm);

/* What codecs work with. */
iq_device_t *iq_gpu_device(isgq_comm_t comm);

/* This thread works for the communicator from now on. */
void iq_gpu_use(isgq_comm_t comm);

/* Let streams go on that wait for calls up to `sequence`. */
void iq_gpu_complete(isgq_comm_t comm, uint64_t sequence);

/* The communicator has failed: wait for what is launched, then let all streams go on, for good. */
void iq_gpu_surrender(isgq_comm_t comm);

/* The same from any thread, which touches no GPU: leaves it to whoever drives, and lets go without waiting if nobody does it soon. */
void iq_gpu_failed(isgq_comm_t comm);

/* ---- memory.c ---- */

isgq_result_t iq_gpu_alloc(isgq_comm_t comm, size_t bytes, void **memory);
void iq_gpu_free(isgq_comm_t comm, void *memory);

/* ---- ext.c ---- */

/* A copy between any places, finished on return; in no order with callers' streams. Any thread. */
isgq_result_t iq_gpu_copy_now(isgq_comm_t comm, void *dst, const void *src, size_t bytes);

#endif
