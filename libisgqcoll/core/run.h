/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A call in progress: a short list of stages, run one after another. A stage is a plan (messages and codec) or some local work cut into trips.
 *
 *   dense                 [scales, plan: max of scales,] plan
 *   factored, gather      prepare, plan: max of peaks, encode, plan: gather blobs, decode x N, product x tiles
 *   factored, reduce      prepare, plan: max of peaks, encode, decode own, integers x tiles, plan: sum of integers, deliver x tiles
 *   factored, dense       local gradient x tiles, the dense stages, copy out
 *
 * All ranks have the same stages, also where some work on devices: messages name them. A stage's data lie where the rank works, but those of factored calls
 * that move peaks and blobs are on the host everywhere.
 *
 * Everything here is resumable: iq_run_advance returns when a message is not there yet and goes on at the same place later.
 */
#ifndef ISGQ_CORE_RUN_H
#define ISGQ_CORE_RUN_H

#include "core/comm.h"
#include "kernels/cuda/factor_module.h"

struct iq_run;

/* One trip of local work. ISGQ_IN_PROGRESS: this rank's device has to get somewhere first; the same trip is tried again. */
typedef isgq_result_t (*iq_work_fn)(isgq_comm_t comm, struct iq_run *run, size_t trip);

/* Room for one chunk: what a plan's steps leave for later ones. */
typedef struct iq_room {
    unsigned char *acc;    /* accumulator */
    unsigned char *result; /* result message */
} iq_room_t;

typedef struct iq_stage {
    const char *name;
    iq_work_fn work; /* local work, or NULL: a plan */
    size_t trips;
    /* plan stages */
    const iq_plan_t *plan;
    iq_codec_t codec;
    iq_codec_call_t codec_call;
    size_t element_bytes;
    const unsigned char *src; /* where element 0 of the tensor would be */
    unsigned char *dst;
    bool on_device;           /* where these lie: src, dst, room */
    iq_room_t room;
    bool sums_in_place;       /* values as they are: the output serves as accumulator, and its bytes are the result message */
    bool variable;            /* byte blobs: messages are cut to what is there, lengths are kept in run->blob_bytes */
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
    size_t sent_bytes;      /* of this rank's blob, where it lies on a device */
    iq_factor_rows_t rows;
    void *product_scratch;  /* in host memory: panels; on a device: rows */
    void *sums;             /* integers of the product reduction, or f32 gradient and bias of the dense way */
} iq_factored_run_t;

/* What is done where the rank works: one const row for host memory, one for devices. */
typedef struct iq_factored_work {
    iq_work_fn prepare, product, integers, from_integers, local_gradient, copy_out;
    size_t (*prepare_trips)(isgq_comm_t comm, const struct iq_run *run);
    size_t (*product_trips)(isgq_comm_t comm, const struct iq_run *run);  /* of `product` and `integers` */
    size_t (*tiles)(const iq_factor_call_t *call);                        /* trips of `from_integers` and `local_gradient` */
    size_t (*product_scratch)(const iq_factor_call_t *call, size_t rows); /* where the rank works */
} iq_factored_work_t;

typedef struct iq_run {
    iq_call_t *call; /* NULL: idle */
    iq_site_t *site;
    iq_stage_t stages[IQ_MAX_STAGES];
    int nstages, stage;
    size_t trip;
    iq_plan_cursor_t cursor;
    iq_action_t action;
    bool has_action;
    bool arrived, drained;  /* on a device: the caller's stream has reached the call; all its work is done */
    bool mismatch_reported, stall_reported;
    bool polls_device;      /* what could not be done waits for a device: nobody rings */
    int awaits;             /* whom local work waits for: this rank's device unless it says so */
    iq_room_t room;         /* where the rank works */
    iq_room_t host_room;    /* on the host; only factored calls on devices need it */
    float *scales;
    iq_factored_run_t factored;
    uint64_t started_ns, progress_ns, blocked_ns, waited_ns;
    uint64_t wire_bytes, own_bytes;
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

/* ---- run_factored.c ---- */

isgq_result_t iq_run_begin_factored(isgq_comm_t comm, iq_run_t *run);

/* The codec's part of `prepare`, when the factors are in host memory. */
void iq_factored_prepare(iq_run_t *run);

/* ---- run_factored_gpu.c ---- */

extern const iq_factored_work_t iq_factored_on_device;

/* ---- run_factored_device.c ---- */

bool iq_factored_all_on_devices(isgq_comm_t comm);

/* The stages of gather and reduce where all ranks work on devices, when run->factored.call is set. */
isgq_result_t iq_run_begin_on_devices(isgq_comm_t comm, iq_run_t *run);

/* ---- run.c, for the builders of stages ---- */

/* 64-byte aligned memory that lives until the call ends; NULL with a sentence if ISGQ_SCRATCH_BYTES is too small. */
void *iq_scratch_take(iq_run_t *run, size_t bytes);

/* The same in host memory, also where the rank works on a device. */
void *iq_host_take(iq_run_t *run, size_t bytes);

iq_stage_t *iq_run_add_work(iq_run_t *run, const char *name, iq_work_fn work, size_t trips);

/* A dense collective (scales first if the codec shares them) from src to dst, which point at the tensor's element 0. */
isgq_result_t iq_run_add_dense(isgq_comm_t comm, iq_run_t *run, const iq_algorithm_t *algorithm, iq_codec_t codec, isgq_data_type_t datatype,
                               isgq_red_op_t op, size_t count, const void *src, void *dst, bool accumulate);

/* A lossless allreduce of a few values in scratch (scales, peaks, integers), in place. */
isgq_result_t iq_run_add_exact(isgq_comm_t comm, iq_run_t *run, const char *name, isgq_data_type_t datatype, isgq_red_op_t op, size_t count,
                               void *data, bool on_device);

/* A gather of byte blobs, in place: blob r at blobs + r * stride. In host memory no more of them than run->factored.blob_bytes travels. */
isgq_result_t iq_run_add_gather(isgq_comm_t comm, iq_run_t *run, size_t stride, void *blobs, bool on_device);

#endif
