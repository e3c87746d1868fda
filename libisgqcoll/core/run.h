/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A call in progress: a short list of stages, run one after another. A stage is a plan (messages and codec) or some local work cut into trips.
 *
 *   dense                 [error feedback,] [scales, plan: max of scales, [agreed scales,]] plan [, estimate] [, history]
 *   fused                 [scales of all parts, plan: max of scales,] plan
 *   PowerSGD              directions, product P, plan: sum of P, basis, product Q, plan: sum of Q, result
 *   ... predicted         [error feedback,] guarded plan, verdict, results, plan if the guess was wrong [, history]
 *   factored, gather      prepare, plan: max of peaks, encode, plan: gather blobs, decode x N, product x tiles
 *   factored, share       prepare, plan: max of peaks, encode, plan: gather blobs, decode some, plan in the host: gather rows, product x some tiles,
 *                         plan in the host: gather the gradient, copy out
 *   factored, owner       prepare, plan: max of peaks, encode, decode own, cut, plan: parts to their owners, open parts x N, product x some tiles,
 *                         plan: gather blocks, deliver x N
 *   factored, reduce      prepare, plan: max of peaks, encode, decode own, integers x tiles, plan: sum of integers, deliver x tiles
 *   factored, dense       local gradient x tiles, the dense stages, copy out
 *   levels                [widen,] plan in the host: sums of lanes, [scales, plan: max of scales, [agreed scales,]] plan between hosts,
 *                         plan in the host: gather lanes, [copy out]
 *   hosted                to host, the stages of the call on host memory, to device (run_hosted.c)
 *   every k-th of them    copy for the shadow, the stages above, shadow, plan: exact sum, comparison
 *
 * All ranks have the same stages, also where some work on devices: messages name them. A stage's data lie where the rank works, but those of factored calls
 * that move peaks and blobs are on the host everywhere.
 *
 * Decoding does not wait for all blobs: while the gather waits for messages, blobs that have arrived are decoded.
 *
 * Everything here is resumable: iq_run_advance returns when a message is not there yet and goes on at the same place later.
 */
#ifndef ISGQ_CORE_RUN_H
#define ISGQ_CORE_RUN_H

#include "codec/fused.h"
#include "core/comm.h"
#include "core/own_error.h"
#include "kernels/cuda/factor_module.h"

struct iq_run;

/* One trip of local work. ISGQ_IN_PROGRESS: this rank's device has to get somewhere first; the same trip is tried again. */
typedef isgq_result_t (*iq_work_fn)(isgq_comm_t comm, struct iq_run *run, size_t trip);

/* Is there all that this trip needs, although the plan before its stage is not over? */
typedef bool (*iq_ready_fn)(isgq_comm_t comm, const struct iq_run *run, size_t trip);

/* Room for one chunk: what a plan's steps leave for later ones. */
typedef struct iq_room {
    unsigned char *acc;    /* accumulator */
    unsigned char *result; /* result message */
} iq_room_t;

/* Among whom a plan is: it counts them from 0. */
typedef struct iq_members {
    const int *ranks; /* NULL: all ranks of the communicator, as they are numbered */
    int size, index;  /* how many, and which of them this rank is */
    int lanes;        /* see iq_plan_request_t */
} iq_members_t;

typedef struct iq_stage {
    const char *name;
    iq_work_fn work; /* local work, or NULL: a plan */
    size_t trips;
    iq_ready_fn ready; /* the stage may begin while the plan before it waits for messages; NULL: it may not */
    size_t ahead;      /* trips that were done that way */
    /* plan stages */
    const iq_plan_t *plan;
    iq_codec_t codec;
    iq_codec_call_t codec_call;
    size_t element_bytes;
    iq_codec_call_t own_call; /* of own input: the same, but values with residual are f32 */
    size_t own_bytes;         /* of an element there */
    iq_own_error_t *own;      /* looks at own input, or NULL */
    const unsigned char *src; /* where element 0 of the tensor would be */
    unsigned char *dst;
    bool skipped;             /* nothing of it is done */
    bool on_device;           /* where these lie: src, dst, room */
    iq_room_t room;
    bool sums_in_place;       /* values as they are: the output serves as accumulator, and its bytes are the result message */
    const int *members;       /* ranks among which the plan is; NULL: all */
    bool shares_work;         /* computing is shared inside a host: what it sends is counted in run->shared_bytes */
    size_t *lengths;          /* byte blobs of so many bytes each: messages are cut to what is there; NULL: they are not */
    size_t stride;            /* from one blob to the next */
    const size_t *part_lengths; /* alltoall of blobs: the part for rank r has so many bytes and is at src + r * stride */
    bool *arrived;            /* set when all of a blob is there; NULL: nobody asks before the plan is over */
    size_t length_at;         /* byte blobs on a device: where in a blob the 32-bit length of what lies behind `length_from` is; 0: they have full length */
    size_t length_from;
} iq_stage_t;

/* What the factored stages share. Where all ranks work on devices, everything that these point at lies there. */
typedef struct iq_factored_run {
    iq_factor_call_t call;
    iq_cuda_factor_call_t on_device;
    const struct iq_factored_work *work;
    const void *x, *delta;  /* in host memory: the caller's, or copies */
    void *state;
    float peaks[2];
    float *shared_peaks;
    unsigned char *blobs;   /* [nranks x blob_stride]; product reduction: only this rank's */
    size_t blob_stride;
    size_t *blob_bytes;     /* [nranks] */
    bool *arrived;          /* [nranks] all of the blob is there */
    size_t sent_bytes;      /* of this rank's blob, where it lies on a device */
    iq_factor_rows_t rows;
    void *product_scratch;  /* in host memory: panels; on a device: rows */
    void *sums;             /* integers of the product reduction, or f32 gradient and bias of the dense way */
    struct iq_factored_share *share; /* way `share` only */
    struct iq_factored_owner *owner; /* way `owner` only */
} iq_factored_run_t;

/* What is done where the rank works: one const row for host memory, one for devices. */
typedef struct iq_factored_work {
    iq_work_fn prepare, product, integers, from_integers, local_gradient, copy_out;
    size_t (*prepare_trips)(isgq_comm_t comm, const struct iq_run *run);
    size_t (*product_trips)(isgq_comm_t comm, const struct iq_run *run);  /* of `product` and `integers` */
    size_t (*tiles)(const iq_factor_call_t *call);                        /* trips of `from_integers` and `local_gradient` */
    size_t (*product_scratch)(const iq_factor_call_t *call, size_t rows); /* where the rank works */
} iq_factored_work_t;

/* A call that is redone exactly (ISGQ_SHADOW). */
typedef struct iq_shadow {
    bool runs;
    bool accumulates;       /* the call was to add to its output: then that is done at the end */
    float *exact;           /* own input, then the exact sum */
    unsigned char *before;  /* what the output held */
    void *product_scratch;  /* of the local gradient */
    double error, square;   /* |result - exact|^2, |exact|^2 */
    uint64_t call_wire_bytes, call_own_bytes, wire_bytes;
} iq_shadow_t;

/* What the stages of PowerSGD share, named as in codec/powersgd.h. */
typedef struct iq_power_run {
    float *p, *q;  /* q is the tensor's */
    float *own_q;  /* this rank's part of it before the sum; NULL: nobody asks what becomes of own values */
} iq_power_run_t;

/* Shared scales that are guessed: run_predicted.c. */
typedef struct iq_prediction_run {
    bool learns;         /* ranks agree, and the tensor remembers on what */
    bool guards;         /* run->scales are a guess */
    bool repairs;        /* which was wrong */
    size_t scales;       /* how many */
    float *seen, *agreed; /* largest magnitudes over all ranks; and the scales that follow */
} iq_prediction_run_t;

typedef struct iq_run {
    iq_call_t *call; /* NULL: idle */
    iq_site_t *site;
    const void *send;       /* the call's, or copies in host memory: `hosted` */
    void *recv;
    bool accumulate, hosted;
    iq_stage_t stages[IQ_MAX_STAGES];
    int nstages, stage;
    size_t trip;
    iq_plan_cursor_t cursor;
    iq_action_t action;
    bool has_action;
    bool arrived, drained;  /* on a device: the caller's stream has reached the call; all its work is done */
    bool mismatch_reported, stall_reported;
    bool polls_device;      /* what could not be done waits for a device: nobody rings */
    unsigned spins, waits;  /* turns that are worth spinning, and waits that were longer; kept from call to call */
    int awaits;             /* whom local work waits for: this rank's device unless it says so */
    iq_room_t room;         /* where the rank works */
    iq_room_t host_room;    /* on the host; only factored calls on devices need it */
    float *scales;
    iq_own_error_t own_error;
    iq_prediction_run_t prediction;
    iq_fused_t fused;            /* calls that travel together: run_fused.c */
    double history[IQ_HISTORY];  /* of the tensor when the call began */
    iq_shadow_t shadow;
    unsigned char *level_sums; /* of a call in levels: sums of hosts, then of all; the output, or in scratch */
    iq_power_run_t power;
    struct iq_views_run *views; /* run_views.c; in scratch */
    iq_factored_run_t factored;
    uint64_t started_ns, progress_ns, blocked_ns, waited_ns;
    uint64_t wire_bytes, own_bytes, shared_bytes;
} iq_run_t;

/* Lay out scratch and stages of `call`; the run is then ready to advance. Of a streamed call: those of its host side. */
isgq_result_t iq_run_begin(isgq_comm_t comm, iq_run_t *run, iq_call_t *call);

/* The same for the stages of a streamed call that are enqueued. */
isgq_result_t iq_run_lay_out(isgq_comm_t comm, iq_run_t *run, iq_site_t *site, iq_call_t *call);

/* Do what can be done now: at most `actions` steps. *done: the call is complete. *moved: something happened. */
isgq_result_t iq_run_advance(isgq_comm_t comm, iq_run_t *run, unsigned actions, bool *done, bool *moved);

/* ---- run_plan.c ---- */

/* One action of a plan stage. *blocked_on: a rank if it could not be done yet, else -1. */
isgq_result_t iq_run_action(isgq_comm_t comm, iq_run_t *run, const iq_stage_t *stage, const iq_action_t *action, int *blocked_on);

/* ---- run_tensor.c: what tensors add to a dense call ---- */

/* The stage of error feedback, if the codec has it: own input becomes *src, of type *datatype. */
void iq_run_add_feedback(isgq_comm_t comm, iq_run_t *run, const iq_codec_t *codec, size_t count, const void **src, void *dst,
                         isgq_data_type_t *datatype);

/* What codecs read of earlier calls, or NULL; and the stage that adds this one's result. */
const double *iq_run_history(iq_run_t *run);
void iq_run_add_history(iq_run_t *run);

/* The call is over: the tensor's running estimates; on devices by a stage of its own. */
void iq_run_add_estimate(iq_run_t *run);
void iq_run_keep_estimates(iq_run_t *run);

/* ---- run_powersgd.c ---- */

isgq_result_t iq_run_begin_powersgd(isgq_comm_t comm, iq_run_t *run);

/* ---- run_levels.c: exact inside hosts, the codec between them ---- */

isgq_result_t iq_run_begin_levels(isgq_comm_t comm, iq_run_t *run);

/* Once, when hosts and lanes are known: how the ranks of a lane round. */
void iq_levels_prepare(isgq_comm_t comm);

/* Refuses what cannot be done that way; equal on all ranks. Scratch that it needs beside scales. */
isgq_result_t iq_levels_check(isgq_comm_t comm, const iq_call_t *call);
size_t iq_levels_scratch(const iq_call_t *call);

/* ---- run_hosted.c: hosts' work for tensors on devices ---- */

/* Before and behind the stages of a call that iq_call_is_hosted. Between them run->send and run->recv are in host memory. */
isgq_result_t iq_run_bring_to_host(isgq_comm_t comm, iq_run_t *run);
void iq_run_bring_to_device(isgq_comm_t comm, iq_run_t *run);

/* Memory of the host that a rank on a device needs for it. */
size_t iq_hosted_bytes(const iq_call_t *call);

/* ---- run_views.c: sums in place, where all ranks see all buffers ---- */

/* Equal on all ranks: may this sum be done so? */
bool iq_views_may_serve(isgq_comm_t comm, const iq_run_t *run, const iq_algorithm_t *algorithm, const iq_codec_t *codec,
                        const iq_codec_call_t *codec_call);

/* The stages that do it, or find that it cannot be done and leave it to the next stage. */
isgq_result_t iq_run_add_views(isgq_comm_t comm, iq_run_t *run, const iq_codec_call_t *codec_call);

/* ---- run_fused.c ---- */

isgq_result_t iq_run_begin_fused(isgq_comm_t comm, iq_run_t *run);

/* The calls that run->call carried get their parts of its bytes, by their input's; it keeps the rest. queue_lock is held. */
void iq_run_divide_fused(isgq_comm_t comm, iq_run_t *run, uint64_t time_ns);

/* ---- run_scales.c ---- */

/* Room for shared scales, in run->scales; and the stages that fill them: what ranks agree on before they encode. */
isgq_result_t iq_run_take_scales(iq_run_t *run, const iq_codec_t *codec, size_t count);
isgq_result_t iq_run_add_scales(isgq_comm_t comm, iq_run_t *run, iq_members_t among, const iq_codec_t *codec, const iq_codec_call_t *codec_call);

/* ---- run_predicted.c: shared scales that are guessed ---- */

/* Where the call may be predicted and is: run->scales are a guess, and run->prediction.guards is set. */
isgq_result_t iq_run_predict(iq_run_t *run, const iq_codec_t *codec, const iq_codec_call_t *codec_call);

/* The last stage, laid out like the call's plan, becomes the one under the guess; the stages between it and that plan. */
void iq_run_add_verdict(iq_run_t *run, iq_stage_t *guarded);

/* Ranks have agreed on run->scales, not opened yet: the stage that remembers them, where that is wanted. */
void iq_run_add_learning(iq_run_t *run);

/* "", or how it went, for the record of the call. */
const char *iq_run_prediction_text(const iq_run_t *run);

/* ---- shadow.c ---- */

/* Is it this call's turn? Then the stage that has to come first. */
void iq_shadow_begin(isgq_comm_t comm, iq_run_t *run);

/* The stages that come last. */
isgq_result_t iq_shadow_end(isgq_comm_t comm, iq_run_t *run);

/* ---- accuracy.c ---- */

/* The call has a codec and is one of those that are measured. Asked once for each call. */
bool iq_accuracy_wanted(isgq_comm_t comm, const iq_call_t *call);

/* What was measured of a call to comm->stats (queue_lock is held), and as a line of the log. */
void iq_accuracy_count(isgq_comm_t comm, const iq_run_t *run);
void iq_accuracy_log(const iq_run_t *run);

/* ---- run_factored.c ---- */

isgq_result_t iq_run_begin_factored(isgq_comm_t comm, iq_run_t *run);

/* The codec's part of `prepare`, when the factors are in host memory. */
void iq_factored_prepare(iq_run_t *run);

/* What all ways but `dense` begin with: memory for the blobs of `ranks` ranks and decoded rows of `batches` batches; preparing and encoding. */
isgq_result_t iq_factored_take_memory(iq_run_t *run, size_t ranks, size_t batches);
isgq_result_t iq_factored_add_encoding(isgq_comm_t comm, iq_run_t *run);

/* ---- run_factored_share.c ---- */

isgq_result_t iq_factored_begin_share(isgq_comm_t comm, iq_run_t *run);
bool iq_factored_shares_own_first(isgq_comm_t comm);

/* Scratch that it needs beyond blobs and one batch of rows. Equal on all ranks. 0 on overflow. */
size_t iq_factored_share_bytes(isgq_comm_t comm, const iq_factor_call_t *call);

/* ---- run_factored_owner.c ---- */

isgq_result_t iq_factored_begin_owner(isgq_comm_t comm, iq_run_t *run);

/* Scratch that it needs beyond one blob and one batch of rows, and what a rank is expected to send. Equal on all ranks. */
size_t iq_factored_owner_bytes(const iq_factor_call_t *factors);
double iq_factored_owner_sends(const iq_call_t *call, const iq_factor_call_t *factors);

/* ---- run_factored_gpu.c ---- */

extern const iq_factored_work_t iq_factored_on_device;

/* ---- run_factored_device.c ---- */

bool iq_factored_all_on_devices(isgq_comm_t comm);

/* The stages of gather and reduce where all ranks work on devices, when run->factored.call is set. */
isgq_result_t iq_run_begin_on_devices(isgq_comm_t comm, iq_run_t *run);

/* ---- run.c, for the builders of stages ---- */

/* Do the call's data lie on a device? */
static inline bool iq_run_on_device(const iq_run_t *run) { return run->site->device != NULL && !run->hosted; }

/* Memory where they lie. */
void *iq_run_take(iq_run_t *run, size_t bytes);

/* 64-byte aligned memory that lives until the call ends; NULL with a sentence if ISGQ_SCRATCH_BYTES is too small. */
void *iq_scratch_take(iq_run_t *run, size_t bytes);

/* The same in host memory, also where the rank works on a device. */
void *iq_host_take(iq_run_t *run, size_t bytes);

iq_stage_t *iq_run_add_work(iq_run_t *run, const char *name, iq_work_fn work, size_t trips);

/* The same for work that follows a plan and whose trips may be done as soon as `ready` says so. */
void iq_run_add_eager_work(iq_run_t *run, const char *name, iq_work_fn work, iq_ready_fn ready, size_t trips);

/* A dense collective (scales first if the codec shares them) from src to dst, which point at the tensor's element 0. */
isgq_result_t iq_run_add_dense(isgq_comm_t comm, iq_run_t *run, const iq_algorithm_t *algorithm, iq_codec_t codec, isgq_data_type_t datatype,
                               isgq_red_op_t op, size_t count, const void *src, void *dst, bool accumulate);

/* A lossless allreduce of a few values in scratch (scales, peaks, integers), in place. */
isgq_result_t iq_run_add_exact(isgq_comm_t comm, iq_run_t *run, const char *name, isgq_data_type_t datatype, isgq_red_op_t op, size_t count,
                               void *data, bool on_device);

/* The same among some, with an algorithm that was decided on. */
isgq_result_t iq_run_add_sum(isgq_comm_t comm, iq_run_t *run, iq_members_t among, const char *name, const iq_algorithm_t *algorithm,
                             isgq_data_type_t datatype, isgq_red_op_t op, size_t count, void *data, bool on_device);

/* The algorithm for a stage that moves values as they are. */
isgq_result_t iq_run_exact_algorithm(isgq_comm_t comm, const iq_members_t *among, iq_collective_t collective, isgq_data_type_t datatype,
                                     isgq_red_op_t op, size_t count, const iq_algorithm_t **algorithm);

iq_members_t iq_run_everybody(isgq_comm_t comm);
iq_members_t iq_run_in_host(isgq_comm_t comm);

/* A stage that is a plan; src and dst are still to be set. */
isgq_result_t iq_run_add_plan(isgq_comm_t comm, iq_run_t *run, const char *name, const iq_algorithm_t *algorithm, const iq_codec_t *codec,
                              const iq_codec_call_t *codec_call, size_t count, bool on_device, iq_members_t among, iq_stage_t **stage);

/* Elements per chunk: the same on every rank, whole groups of 32. */
size_t iq_chunk_elements(size_t chunk_bytes, size_t element_bytes);

/* A gather of byte blobs, in place: blob r at blobs + r * stride. With `lengths` no more of them travels than is there. */
typedef struct iq_gather {
    const char *name;
    void *blobs;
    size_t stride, *lengths;
    bool in_host;   /* among the ranks of this host: blob i is that of comm->host_ranks[i] */
    bool on_device;
    bool *arrived;  /* see iq_stage_t */
} iq_gather_t;

isgq_result_t iq_run_add_gather(isgq_comm_t comm, iq_run_t *run, const iq_gather_t *gather);

#endif
