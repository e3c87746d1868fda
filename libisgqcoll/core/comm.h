/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The communicator: owner of everything. Which thread may touch what:
 *
 *   constant after init      rank, nranks, links, transports, control, config copies
 *   under queue_lock         the ring of calls, stats, the record of the last call, what the communicator's thread does
 *   the calling thread       decisions
 *   under progress_lock      run (the call in progress), scratch, plan cache, links
 *   atomic                   submitted (written under queue_lock), completed, failed, waiters, awaited
 *
 * Lock order: progress_lock, then queue_lock. Neither is held while calling into the control channel's `failed`.
 */
#ifndef ISGQ_CORE_COMM_H
#define ISGQ_CORE_COMM_H

#include "base/status.h"
#include "codec/quantizer.h"
#include "core/plan_cache.h"
#include "isgqcoll_ext.h"
#include "plan/cost.h"
#include "plan/plan.h"
#include "transport/control.h"
#include "transport/transport.h"
#include "transport/views.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#define IQ_QUEUE_CALLS 256 /* calls queued or remembered for mismatch reports; a power of two */
#define IQ_DECISIONS 64    /* remembered; a power of two */
#define IQ_SLOTS 4         /* messages per link and direction */
#define IQ_BOARDS 64       /* ranks that have them at most: beyond, nothing is gained by them */
#define IQ_FUSE_CALLS 64   /* of a group that are queued at once: among these the small ones travel together */
#define IQ_MAX_TRANSPORTS 4
#define IQ_MAX_STAGES 16

typedef enum iq_call_kind {
    IQ_CALL_ALLREDUCE,
    IQ_CALL_REDUCE_SCATTER,
    IQ_CALL_ALLGATHER,
    IQ_CALL_BROADCAST,
    IQ_CALL_BARRIER,
    IQ_CALL_FACTORED,
    IQ_CALL_KIND_COUNT
} iq_call_kind_t;

/* One call: the user's arguments, and what was decided from them when it was queued. */
typedef struct iq_call {
    iq_call_kind_t kind;
    isgq_data_type_t datatype;
    isgq_red_op_t op;
    int root;
    const void *send;
    void *recv;
    size_t count;            /* elements of the whole tensor: all ranks' parts of an allgather or reduce_scatter */
    size_t input_bytes;      /* that this rank reads */
    isgq_factors_t factors;  /* factored only; recv is the gradient */
    size_t max_batch;
    bool accumulate;
    isgq_stream_t stream;    /* device memory: where the call takes its turn */
    bool fallback;           /* sent uncompressed although a quantizer was asked for */
    uint32_t timeout_ms;
    isgq_quantizer_t quantizer; /* holds a reference while the call is remembered */
    isgq_tensor_t tensor;       /* held until the call is complete; NULL: none, or nothing of it is needed */
    bool corrects;              /* error feedback */
    bool names_tensor;          /* its options do; and that tensor's shape, 0 where none was set */
    size_t rows, columns;
    unsigned power_rank;        /* PowerSGD (core/run_powersgd.c); 0: the call does something else */
    uint64_t history;           /* 1 and the calls that the tensor's history is of; 0: the codec gets none */
    uint64_t history_mark;      /* hash of which calls these are */
    /* decided */
    iq_codec_t codec;                 /* of the dense data */
    iq_factor_spec_t factor;          /* of the factors */
    iq_factored_way_t way;
    const iq_algorithm_t *algorithm;  /* of the main plan */
    char why[96];
    uint64_t sequence, fingerprint;
    bool streamed;                    /* enqueued on its stream as a whole (core/exec_stream.h) */
    bool captured;                    /* streamed into a CUDA graph */
    uint64_t wire_bytes, own_bytes;   /* streamed: what was enqueued; carried: its part of what was sent */
    bool may_fuse;                    /* may travel with others of its group (core/fuse.c) */
    bool carried;                     /* does, with an earlier one */
    uint16_t fused;                   /* carries others: how many there are with itself */
    uint16_t next_fused;              /* so many calls later comes the next of them; 0: none does */
    uint16_t grouped;                 /* calls that were queued at once with it, from it on; 0: none */
    uint64_t time_ns;                 /* carried: that the exchange took */
} iq_call_t;

/* What decide.c made of a call without a tensor: the same again for the next of its kind. */
typedef struct iq_decision {
    isgq_quantizer_t quantizer; /* holds a reference; NULL: no decision here */
    iq_call_kind_t kind;
    isgq_data_type_t datatype;
    isgq_red_op_t op;
    size_t count;
    bool accumulate;
    /* decided */
    bool fallback, may_fuse;
    iq_codec_t codec;
    const iq_algorithm_t *algorithm;
    char why[96];
} iq_decision_t;

/* The communicator's thread. Asleep it has to be woken for work, napping it comes by itself, soon or a little later. */
typedef enum iq_thread_state { IQ_THREAD_AWAKE, IQ_THREAD_NAPPING, IQ_THREAD_NAPPING_LONG, IQ_THREAD_ASLEEP } iq_thread_state_t;

struct iq_run;    /* core/run.h */
struct iq_gpu;    /* core/gpu.c */
struct iq_cuda_module;
struct iq_memory; /* core/memory.c */

/* Where a communicator comes from. */
typedef struct iq_origin {
    uint64_t lineage; /* 0: joined by itself */
    int device;       /* that it works on if it is to work on one; IQ_CURRENT_DEVICE: the calling thread's */
    void *native;     /* an ncclComm_t of the application, which joins the ranks' devices; NULL: none */
    const isgqx_tuning_t *tuning; /* the parent's table; NULL: it has no parent */
} iq_origin_t;

#define IQ_CURRENT_DEVICE (-1)

typedef struct iq_scratch {
    unsigned char *base; /* where the rank works */
    size_t bytes, used;  /* `bytes` is the same on all ranks */
    size_t mapped;       /* host memory behind it, 0 on a device */
} iq_scratch_t;

/* Where calls get memory and plans from, and how they cut tensors. Whoever lays out a call owns its site. */
typedef struct iq_site {
    iq_scratch_t *memory;      /* where the rank works */
    iq_scratch_t *host;        /* in host memory; the same on ranks that work there */
    iq_plan_cache_t *plans;
    struct iq_device *device;  /* NULL: host memory */
    size_t chunk_bytes;        /* of input */
    size_t slot_bytes;         /* largest message */
    unsigned slots;            /* that a link holds per direction */
    bool rounds;               /* links hold nothing, see iq_wire_ops_t */
    bool streams;              /* everything is enqueued, nothing waits for hosts */
} iq_site_t;

struct isgq_comm {
    int rank, nranks, nhosts;
    int *host_ranks;                  /* the ranks of this host, ascending */
    int host_size, host_index;        /* how many, and which of them this rank is */
    bool hosts_alike;                 /* all hosts have as many */
    int lanes;                        /* ranks of the smallest host: rank number l of every host is in lane l */
    int *lane_ranks, lane_index;      /* [nhosts] the ranks of this rank's lane, host by host; lane 0 where it is in none. And which is of this host */
    pid_t pid;
    uint64_t seed;                    /* as the user gave it: what ranks compare */
    uint64_t lineage;                 /* 0, or by which splits it came from a communicator that was joined by itself */
    uint64_t key;                     /* seed and lineage: of every random decision, what codecs know as the seed */
    uint32_t strata[IQ_STRATA];       /* this rank's offsets for stratified rounding */
    uint32_t (*all_strata)[IQ_STRATA]; /* [nranks] those of all ranks; NULL where they are too many */
    uint32_t lane_strata[IQ_STRATA];  /* the same among the ranks of its lane, under their key (run_levels.c) */
    uint64_t number;                  /* of this communicator in this process, from 1; never used again */
    uint64_t splits;                  /* of this communicator so far, equal on all ranks */
    size_t chunk_bytes, slot_bytes;
    uint32_t timeout_ms;
    int crowded;                      /* more ranks on this host than cores: yield instead of spinning */
    isgq_quantizer_t quantizer;       /* default */
    isgq_device_type_t device_type;   /* of this rank */
    bool devices;                     /* some rank works on device memory */
    int device;                       /* wanted, see iq_origin_t */
    void *native;                     /* see there */
    struct iq_gpu *gpu;               /* NULL: this rank works on host memory; scratch lies where it works */
    struct iq_stream_exec *stream_exec; /* NULL: no wire joins the ranks' devices, and calls are driven by hosts */
    const struct iq_cuda_module *watch; /* host memory, but the process uses CUDA: pointers are looked at */
    isgq_comm_config_t config;        /* as given, for split */
    uint64_t init_deadline_ns;
    char algorithm[32];               /* ISGQ_ALGORITHM */
    bool tells_table;                 /* joined by itself, and rank 0 has ISGQ_TUNE_TABLE */
    bool tuned;                       /* by a table (core/tuned.h), and: */
    isgqx_tuning_t tuning;
    iq_cost_machine_t machine;
    char transports_allowed[64];
    char transport_names[32];

    iq_control_t *control;
    iq_peer_t *peers;                 /* [nranks] */
    iq_link_t **links;                /* [nranks], NULL for this rank */
    iq_link_t **boards;               /* [nranks] */
    const void **posted;              /* [nranks] what lies on them now; NULL for this rank */
    bool has_boards;                  /* equal on all ranks */
    bool may_view;                    /* the boards' transport can let ranks map others' memory; equal on all ranks */
    iq_views_t *views;                /* transport/views.h; NULL: not here */
    iq_transport_t *transports[IQ_MAX_TRANSPORTS];
    int ntransports;

    pthread_mutex_t progress_lock;
    _Atomic(pthread_t) driver;        /* who holds it and advances the work; 0: nobody */
    struct iq_run *run;
    iq_scratch_t scratch;
    size_t scratch_reserved;          /* at the front of every call: accumulator and result message */
    unsigned char *own_room;          /* of iq_own_error_t: behind the scratch; in a device's memory from the first call with error feedback on */
    uint32_t shadow_every;            /* ISGQ_SHADOW; 0 where a rank works on device memory */
    uint64_t shadow_turn, accuracy_turn; /* calls so far that count for either */
    iq_plan_cache_t plans;
    iq_site_t site;                   /* of the calls that are driven by hosts */

    pthread_mutex_t queue_lock;
    pthread_cond_t queue_changed;     /* for the communicator's thread: work came, a waiter left, stop */
    iq_call_t *calls;                 /* [IQ_QUEUE_CALLS], call s at s % IQ_QUEUE_CALLS */
    atomic_uint_fast64_t submitted;
    iq_decision_t *decisions;         /* [IQ_DECISIONS] of earlier calls */
    struct iq_memory *memory;         /* of isgq_mem_alloc */
    isgq_stats_t stats;
    isgqx_call_record_t record;
    uint64_t own_bytes;               /* contributed so far, see isgqx_call_record_t */
    bool stop;
    bool thread_running;
    iq_thread_state_t thread_state;
    pthread_t thread;

    atomic_uint_fast64_t completed;
    atomic_int waiters;
    atomic_int users;                 /* threads inside a call; destroy waits until they have left */
    atomic_int failed;                /* isgq_result_t; text is written before */
    atomic_int awaited;               /* rank that the call in progress waits for, -1 */
    atomic_uint_fast64_t current;     /* call in progress, 0 */
    pthread_mutex_t failure_lock;
    char failure_text[IQ_ERROR_TEXT_BYTES];
    bool finalized;
    bool group_skips;                 /* group_end: full in this pass; only the thread that uses the communicator looks */
};

/* ---- comm.c ---- */

/* First failure wins; wakes everybody. Any thread. */
void iq_comm_fail(isgq_comm_t comm, isgq_result_t result, const char *text);

/* ISGQ_SUCCESS, or the communicator's failure with its text as this thread's last error. */
isgq_result_t iq_comm_check(isgq_comm_t comm);

/* NULL, or a process other than the one that made it. */
isgq_result_t iq_comm_check_handle(isgq_comm_t comm, const char *operation);

/* Checked settings and memory, nobody met yet; and the opposite of everything, each part of which may be absent. */
isgq_result_t iq_comm_new(int nranks, int rank, iq_origin_t origin, const isgq_comm_config_t *config, isgq_comm_t *comm);

/* Scratch at the front of every call: accumulator, result message and, on devices, one chunk's scales. */
size_t iq_scratch_reserved(const iq_site_t *site);
void iq_comm_release(isgq_comm_t comm);

/* ---- memory.c ---- */

void iq_memory_release(isgq_comm_t comm); /* all that was not freed */

/* ---- join.c ---- */

isgq_result_t iq_comm_create(isgq_comm_t *comm, int nranks, int rank, iq_origin_t origin, const iq_rendezvous_t *rendezvous,
                             const isgq_comm_config_t *config);

/* ---- drive.c: who advances the work, and how to wait ---- */

isgq_result_t iq_progress_start(isgq_comm_t comm); /* the communicator's thread */
void iq_progress_stop(isgq_comm_t comm);

/* Wait until call `sequence` is complete; until all are, and the communicator is well. */
#define IQ_FOREVER UINT64_MAX
isgq_result_t iq_progress_wait(isgq_comm_t comm, uint64_t sequence, uint64_t until_ns);
isgq_result_t iq_progress_synchronize(isgq_comm_t comm);

/* Is the calling thread the one that advances the work now? */
bool iq_progress_is_mine(isgq_comm_t comm);

/* ---- api.c ---- */

/* Types and sizes that factors may have. */
isgq_result_t iq_check_factored_shape(size_t m, size_t n, size_t max_batch, isgq_data_type_t datatype);

/* ---- decide.c ---- */

/* Fill in what follows from the arguments: codec, algorithm, way. Pure, equal on all ranks. */
isgq_result_t iq_decide(isgq_comm_t comm, iq_call_t *call, const char *algorithm);

/* Where `bytes` bytes are for other ranks; false if they are not in memory of isgq_mem_alloc that these can map. */
bool iq_memory_view(isgq_comm_t comm, const void *data, size_t bytes, iq_view_t *view);

/* Let go of all that was decided before. */
void iq_decisions_forget(isgq_comm_t comm);

/* The algorithm of one plan; `forced` is a name or NULL. */
isgq_result_t iq_decide_algorithm(iq_collective_t collective, int nranks, int nhosts, bool boards, const iq_codec_t *codec, isgq_data_type_t datatype,
                                  isgq_red_op_t op, size_t count, const char *forced, const iq_algorithm_t **algorithm, char *why,
                                  size_t why_bytes);

/* Wire bits per element on a long tensor, of what a rank has to say or of the finished sum. */
double iq_decide_bits(const iq_codec_t *codec, isgq_data_type_t datatype, int nranks, bool result);

/* ---- run_hosted.c ---- */

/* Some rank works on a device, and the call is done on hosts all the same. Of a decided call, equal on all ranks. */
bool iq_call_is_hosted(isgq_comm_t comm, const iq_call_t *call);

/* ---- submit.c ---- */

/* Queue decided calls, all of them at once; they are copied. Waits for room if IQ_QUEUE_CALLS are queued. More than one: in host memory alone. */
isgq_result_t iq_submit(isgq_comm_t comm, iq_call_t *const calls[], size_t ncalls);

/* No room for so many calls now; and waiting for room. */
bool iq_queue_full(isgq_comm_t comm, size_t ncalls);
isgq_result_t iq_queue_wait(isgq_comm_t comm, size_t ncalls);

/* The arguments of call `sequence` as text, false if it is not remembered. */
bool iq_call_arguments(isgq_comm_t comm, uint64_t sequence, char text[IQ_ARGUMENTS_TEXT_BYTES]);

const char *iq_call_kind_name(iq_call_kind_t kind);
const char *iq_call_algorithm_name(const iq_call_t *call); /* "direct", ..., or the way of a factored call */

/* ---- fuse.c: small calls of a group that travel together ---- */

/* Of a decided call; `forced` as for iq_decide. Equal on all ranks. */
bool iq_fuse_may(isgq_comm_t comm, const iq_call_t *call, const char *forced);

/* How many calls of a group are queued at once; 1: nothing is fused. */
size_t iq_fuse_window(isgq_comm_t comm);

/* Mark which of the calls, that will be queued at once, travel together. ISGQ_ERR_INVALID_USAGE if their buffers depend on one another. */
isgq_result_t iq_fuse(isgq_comm_t comm, iq_call_t *const calls[], size_t ncalls);

/* Of a call that carries others and of these, which lie in comm->calls (queue_lock is held). */
uint64_t iq_fuse_fingerprint(isgq_comm_t comm, const iq_call_t *carrier);

/* ---- group.c ---- */

/* Inside a group: keep the call for later and return true. */
bool iq_group_defer(isgq_comm_t comm, const iq_call_t *call, isgq_result_t *result);

/* Inside a group: note that a call on `comm` (or NULL) was refused, so that nothing is launched. Yields `result`. */
isgq_result_t iq_group_refuse(isgq_comm_t comm, isgq_result_t result);

/* ISGQ_ERR_INVALID_USAGE inside a group: for collective functions that cannot be kept for later. */
isgq_result_t iq_group_forbid(const char *operation);

/* Inside a group: keep an initialisation for later and return true. */
bool iq_group_defer_init(isgq_comm_t *comm, int nranks, isgq_unique_id_t id, int rank, const isgq_comm_config_t *config);

/* Joins now, on this thread, whatever group is open. */
isgq_result_t iq_comm_join(isgq_comm_t *comm, int nranks, isgq_unique_id_t id, int rank, int device, const isgq_comm_config_t *config);

#endif
