/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file isgqcoll.h
 * Lossy-compressed and factored collectives for distributed training.
 *
 * Reading order: (1) status codes, (2) communicators, (3) quantizers,
 * (4) collectives, (5) groups, (6) introspection. Sections 1, 2 and 5 mirror
 * nccl.h call for call; sections 3 and the `quantizer` arguments are what
 * isgqcoll adds.
 *
 * Conventions used by every comment below
 *   - "count" is a number of elements, "bytes" a number of bytes; nothing is
 *     ever measured in both.
 *   - Matrices are row-major and dense. Shapes are written [rows x cols].
 *   - Handles are opaque, created by isgq_*_create/_init and released by the
 *     matching isgq_*_destroy, which accepts NULL.
 *   - Output parameters come first for handles (as in nccl.h) and are written
 *     only on ISGQ_SUCCESS.
 *   - Unless a comment says otherwise, a function may be called from any
 *     thread, but a communicator may be used by one thread at a time.
 */
#ifndef ISGQCOLL_H
#define ISGQCOLL_H

#include <stddef.h>
#include <stdint.h>

/** @name Version
 *  Written down only here; CMake and isgqcoll.pc read it from this file.
 *  @{ */
#define ISGQ_VERSION_MAJOR 0 /**< changes when the ABI breaks */
#define ISGQ_VERSION_MINOR 1 /**< changes when the API grows */
#define ISGQ_VERSION_PATCH 0 /**< changes for fixes */
/** One number, comparable with <. */
#define ISGQ_VERSION_CODE \
    (ISGQ_VERSION_MAJOR * 10000 + ISGQ_VERSION_MINOR * 100 + ISGQ_VERSION_PATCH)
/** @} */

/** @cond attributes */
#if defined(__GNUC__)
#define ISGQ_API __attribute__((visibility("default")))
#define ISGQ_NODISCARD __attribute__((warn_unused_result))
#else
#define ISGQ_API
#define ISGQ_NODISCARD
#endif
/** @endcond */

#ifdef __cplusplus
extern "C" {
#endif

/* ---- 1. Status codes -------------------------------------------------- */

/**
 * All status codes: X(name, value, text). Values 0..8 equal ncclResult_t, so
 * the preload shim can pass them through; isgqcoll's own start at 100.
 * Codes are never renumbered or reused.
 */
#define ISGQ_RESULT_MAP(X)                                               \
    X(SUCCESS, 0, "success")                                             \
    X(ERR_CUDA, 1, "a CUDA call failed")                                 \
    X(ERR_SYSTEM, 2, "a system call failed")                             \
    X(ERR_INTERNAL, 3, "internal error, please report it")               \
    X(ERR_INVALID_ARGUMENT, 4, "an argument is invalid")                 \
    X(ERR_INVALID_USAGE, 5, "calls were made in an invalid order")       \
    X(ERR_REMOTE, 6, "a peer failed or the network connection was lost") \
    X(IN_PROGRESS, 7, "the operation has not finished yet")              \
    X(ERR_TIMEOUT, 8, "the operation timed out")                         \
    X(ERR_UNSUPPORTED, 100, "not supported by this build or device")     \
    X(ERR_MISMATCH, 101, "ranks disagree on arguments or configuration") \
    X(ERR_NO_MEMORY, 102, "out of host or device memory")                \
    X(ERR_CORRUPT, 103, "a received chunk failed validation")

/** @cond expanded */
typedef enum isgq_result {
#define ISGQ_X(name, value, text) ISGQ_##name = value,
    ISGQ_RESULT_MAP(ISGQ_X)
#undef ISGQ_X
} isgq_result_t;
/** @endcond */

/**
 * Fixed text for a status code.
 * @param result  any value, known or not
 * @return a static string, never NULL
 */
ISGQ_API const char *isgq_get_error_string(isgq_result_t result);

/**
 * What went wrong in the last failing isgqcoll call of the calling thread:
 * the failing check, its operands and the peer, in one line.
 * @return a thread-local string, "" if no call has failed; valid until the
 *         thread's next failing call
 */
ISGQ_API const char *isgq_get_last_error(void);

/**
 * Version of the library that is loaded, as ISGQ_VERSION_CODE.
 * @param[out] version_code  receives the code
 * @return ISGQ_SUCCESS, ISGQ_ERR_INVALID_ARGUMENT
 */
ISGQ_API isgq_result_t isgq_get_version(int *version_code);

/* ---- 2. Communicators ------------------------------------------------- */

/** A group of ranks, their transport and their scratch memory. */
typedef struct isgq_comm *isgq_comm_t;

/** How values are made small; see section 3. */
typedef struct isgq_quantizer *isgq_quantizer_t;

/** Identical to cudaStream_t, declared here so that this header does not need
 *  the CUDA Toolkit. */
typedef struct CUstream_st *isgq_stream_t;

/** Bytes to hand from rank 0 to the others. */
#define ISGQ_UNIQUE_ID_BYTES 128

/** Names one communicator before it exists. Copy it byte for byte. */
typedef struct isgq_unique_id {
    char internal[ISGQ_UNIQUE_ID_BYTES]; /**< not for the caller */
} isgq_unique_id_t;

/** Where the buffers of a communicator live. */
typedef enum isgq_device_type {
    ISGQ_DEVICE_AUTO = 0, /**< host memory in this version */
    ISGQ_DEVICE_CUDA = 1, /**< memory of the CUDA device that is current when the communicator is made; calls take their
                               turn on a stream. Ranks on host and on device memory may meet in one communicator */
    ISGQ_DEVICE_HOST = 2  /**< host memory; calls run in order, on whoever waits or in the background */
} isgq_device_type_t;

/**
 * Options of a communicator. Start from ISGQ_COMM_CONFIG_INIT and change what
 * you need; a field left at its initial value follows the environment variable
 * named beside it, then the built-in default.
 */
typedef struct isgq_comm_config {
    size_t size;                    /**< sizeof(isgq_comm_config_t), set by the initializer */
    isgq_device_type_t device_type; /**< CUDA or host buffers */
    const char *transports;         /**< allowed ones, "shm,ucx,nccl", or NULL: ISGQ_TRANSPORTS; chosen per pair of ranks */
    isgq_quantizer_t quantizer;     /**< default quantizer or NULL: ISGQ_QUANTIZER;
                                         retained, so the caller may destroy it */
    size_t chunk_bytes;             /**< pipeline chunk, bytes of input or 0: ISGQ_CHUNK_BYTES */
    uint32_t timeout_ms;            /**< a call without progress for so long fails; milliseconds or 0: ISGQ_TIMEOUT_MS */
    uint64_t seed;                  /**< of every random decision or 0: ISGQ_SEED; equal on every rank. Splits of a
                                         communicator draw numbers of their own; communicators made by isgq_comm_init_*
                                         draw alike if their seeds are equal, so give them different ones */
} isgq_comm_config_t;

/* clang-format off */
/** Everything from the environment. */
#define ISGQ_COMM_CONFIG_INIT                                                  \
    { sizeof(isgq_comm_config_t), ISGQ_DEVICE_AUTO, NULL, NULL, 0, 0, 0 }
/* clang-format on */

/**
 * Make the id that rank 0 hands to every other rank out of band. It contains the job's secret: treat it as a
 * password. Listens on ISGQ_INTERFACE (default: a unix socket of this host).
 * @param[out] id  holds the rendezvous address and the secret
 * @return ISGQ_SUCCESS, ISGQ_ERR_SYSTEM (no usable network interface), ISGQ_ERR_INVALID_ARGUMENT
 */
ISGQ_API ISGQ_NODISCARD isgq_result_t isgq_get_unique_id(isgq_unique_id_t *id);

/**
 * Join a communicator. Collective: returns once all ranks have joined and have
 * been found to agree on version, configuration and default quantizer.
 *
 * @param[out] comm    the new communicator
 * @param[in]  nranks  number of ranks, at least 1
 * @param[in]  id      from isgq_get_unique_id, equal on every rank
 * @param[in]  rank    this rank, 0..nranks-1, each used once
 * @param[in]  config  options, or NULL for all defaults
 * @return ISGQ_SUCCESS; ISGQ_ERR_MISMATCH when ranks disagree (the text names
 *         the first differing setting); ISGQ_ERR_TIMEOUT; ISGQ_ERR_UNSUPPORTED;
 *         ISGQ_ERR_INVALID_ARGUMENT; ISGQ_ERR_NO_MEMORY; ISGQ_ERR_SYSTEM
 */
ISGQ_API ISGQ_NODISCARD isgq_result_t isgq_comm_init_rank(
    isgq_comm_t *comm, int nranks, isgq_unique_id_t id, int rank, const isgq_comm_config_t *config);

/**
 * Join the communicator that the launcher's environment describes: torchrun, mpirun (Open MPI, MPICH), srun, or
 * ISGQ_RANK, ISGQ_NRANKS and ISGQ_RENDEZVOUS. Collective, as isgq_comm_init_rank.
 * @param[out] comm    the new communicator
 * @param[in]  config  options, or NULL for all defaults
 * @return as isgq_comm_init_rank; ISGQ_ERR_INVALID_USAGE when no launcher is recognised
 */
ISGQ_API ISGQ_NODISCARD isgq_result_t
isgq_comm_init_env(isgq_comm_t *comm, const isgq_comm_config_t *config);

/** Exchange @p bytes with every rank: recv holds nranks * bytes, in rank order. Returns 0 on success. */
typedef int (*isgq_oob_allgather_fn)(void *context, const void *send, void *recv, size_t bytes);

/**
 * Join a communicator whose ranks can already talk to each other, through the caller's allgather (MPI, a store).
 * @param[out] comm       the new communicator
 * @param[in]  nranks     number of ranks, at least 1
 * @param[in]  rank       this rank
 * @param[in]  allgather  called a few times during this call only
 * @param[in]  context    handed to @p allgather
 * @param[in]  config     options, or NULL
 * @return as isgq_comm_init_rank
 */
ISGQ_API ISGQ_NODISCARD isgq_result_t isgq_comm_init_oob(
    isgq_comm_t *comm, int nranks, int rank, isgq_oob_allgather_fn allgather, void *context,
    const isgq_comm_config_t *config);

/**
 * Split a communicator, as ncclCommSplit and MPI_Comm_split do. Collective.
 * @param[in]  comm      parent
 * @param[in]  color     ranks with equal color share the new communicator; negative: none, *new_comm = NULL
 * @param[in]  key       order of the ranks in it, ties by old rank
 * @param[out] new_comm  the new communicator
 * @param[in]  config    options, or NULL to inherit the parent's
 * @return as isgq_comm_init_rank
 */
ISGQ_API ISGQ_NODISCARD isgq_result_t isgq_comm_split(
    isgq_comm_t comm, int color, int key, isgq_comm_t *new_comm, const isgq_comm_config_t *config);

/** @cond */
struct ncclComm; /* ncclComm_t is a pointer to it */
/** @endcond */

/**
 * Wrap an existing NCCL communicator, which supplies ranks, device and the way between the devices. Collective over @p nccl_comm.
 * Compressed data travels as grouped ncclSend and ncclRecv of bytes on the streams of the calls, so calls on @p comm and on
 * @p nccl_comm are made in the same order on every rank, and no ncclGroupStart is open meanwhile. If @p comm fails, streams may wait
 * until the application calls ncclCommAbort: this library only reports. The hosts meet as for isgq_comm_init_rank (ISGQ_INTERFACE).
 *
 * NCCL is loaded while the program runs: libnccl.so.2, 2.10 or later, or what ISGQ_NCCL_LIB names.
 *
 * @param[out] comm       the new communicator; does not own @p nccl_comm and must be destroyed before it
 * @param[in]  nccl_comm  an ncclComm_t
 * @param[in]  config     options or NULL; device_type is ignored, transports concern only what hosts tell each other
 * @return as isgq_comm_init_rank; ISGQ_ERR_UNSUPPORTED without NCCL or without module "cuda", with the reason
 */
ISGQ_API ISGQ_NODISCARD isgq_result_t isgq_comm_init_nccl(
    isgq_comm_t *comm, struct ncclComm *nccl_comm, const isgq_comm_config_t *config);

/**
 * Wait for all work given to @p comm, then leave it. Collective.
 * @param[in] comm  communicator
 * @return ISGQ_SUCCESS or the communicator's async error
 */
ISGQ_API isgq_result_t isgq_comm_finalize(isgq_comm_t comm);

/**
 * Free local resources. Aborts first if isgq_comm_finalize was not called.
 * @param[in] comm  communicator or NULL; dangling afterwards
 * @return ISGQ_SUCCESS or the first error of the clean-up, which is always
 *         carried through
 */
ISGQ_API isgq_result_t isgq_comm_destroy(isgq_comm_t comm);

/**
 * Stop outstanding work on every rank. Running calls wake and return ISGQ_ERR_REMOTE; memory goes when the last of them
 * has left, and isgq_comm_destroy is still required. Like isgq_comm_get_async_error, isgq_comm_get_stats and
 * isgq_comm_get_last_error it may be called from any thread at any time.
 * @param[in] comm  communicator or NULL
 * @return ISGQ_SUCCESS
 */
ISGQ_API isgq_result_t isgq_comm_abort(isgq_comm_t comm);

/**
 * Block the calling thread until all work given to @p comm is complete.
 * @param[in] comm  communicator
 * @return ISGQ_SUCCESS, ISGQ_ERR_TIMEOUT or the communicator's async error
 */
ISGQ_API isgq_result_t isgq_comm_synchronize(isgq_comm_t comm);

/**
 * Number of the last call given to @p comm; calls are numbered from 1.
 * @param[in]  comm      communicator
 * @param[out] sequence  0 before the first call
 * @return ISGQ_SUCCESS, ISGQ_ERR_INVALID_ARGUMENT
 */
ISGQ_API isgq_result_t isgq_comm_get_sequence(isgq_comm_t comm, uint64_t *sequence);

/**
 * Block until call @p sequence and all before it are complete (host communicators; the waiting thread does the work).
 * @param[in] comm      communicator
 * @param[in] sequence  from isgq_comm_get_sequence
 * @return as isgq_comm_synchronize
 */
ISGQ_API isgq_result_t isgq_comm_wait(isgq_comm_t comm, uint64_t sequence);

/**
 * The same for no longer than so long: for callers that must look at other things now and then, as at signals. Work goes on in the background
 * after a return without @p done.
 * @param[in]  comm          communicator
 * @param[in]  sequence      from isgq_comm_get_sequence
 * @param[in]  milliseconds  0: as isgq_comm_test. One step of work that has begun is ended first
 * @param[out] done          0 or 1
 * @return as isgq_comm_synchronize
 */
ISGQ_API isgq_result_t isgq_comm_wait_for(isgq_comm_t comm, uint64_t sequence, uint32_t milliseconds, int *done);

/**
 * Ask whether call @p sequence and all before it are complete; never blocks.
 * @param[in]  comm      communicator
 * @param[in]  sequence  from isgq_comm_get_sequence
 * @param[out] done      0 or 1
 * @return ISGQ_SUCCESS or the communicator's async error
 */
ISGQ_API isgq_result_t isgq_comm_test(isgq_comm_t comm, uint64_t sequence, int *done);

/**
 * Text of the communicator's async error: operation, rank at fault, value.
 * @param[in] comm  communicator
 * @return a string that lives as long as @p comm, "" while all is well
 */
ISGQ_API const char *isgq_comm_get_last_error(isgq_comm_t comm);

/**
 * Memory for collectives, aligned. Ordinary memory works too; an allreduce of 1 MiB or more without a quantizer is faster where all ranks' buffers are from
 * here, all ranks are processes of one host, and these are 8 at most: then it is done in place (ADR 0024). Other ranks write to such a receive buffer, also
 * for a moment after a call that failed here: it may be freed then, but what it holds means nothing until the communicator is destroyed on all ranks.
 * @param[out] ptr    64-byte aligned
 * @param[in]  comm   communicator
 * @param[in]  bytes  more than 0
 * @return ISGQ_SUCCESS, ISGQ_ERR_NO_MEMORY, ISGQ_ERR_INVALID_ARGUMENT
 */
ISGQ_API ISGQ_NODISCARD isgq_result_t isgq_mem_alloc(void **ptr, isgq_comm_t comm, size_t bytes);

/**
 * Free memory of isgq_mem_alloc.
 * @param[in] ptr   or NULL
 * @param[in] comm  the communicator it came from
 * @return ISGQ_SUCCESS, ISGQ_ERR_INVALID_ARGUMENT
 */
ISGQ_API isgq_result_t isgq_mem_free(void *ptr, isgq_comm_t comm);

/**
 * Number of ranks.
 * @param[in]  comm    communicator
 * @param[out] nranks  at least 1
 * @return ISGQ_SUCCESS, ISGQ_ERR_INVALID_ARGUMENT
 */
ISGQ_API isgq_result_t isgq_comm_count(isgq_comm_t comm, int *nranks);

/**
 * Rank of the caller.
 * @param[in]  comm  communicator
 * @param[out] rank  0..nranks-1
 * @return ISGQ_SUCCESS, ISGQ_ERR_INVALID_ARGUMENT
 */
ISGQ_API isgq_result_t isgq_comm_user_rank(isgq_comm_t comm, int *rank);

/**
 * First error that happened after a call had returned ISGQ_SUCCESS.
 * Sticky: once set, every later call on @p comm returns it.
 * @param[in]  comm         communicator
 * @param[out] async_error  ISGQ_SUCCESS while all is well
 * @return ISGQ_SUCCESS, ISGQ_ERR_INVALID_ARGUMENT
 */
ISGQ_API isgq_result_t isgq_comm_get_async_error(isgq_comm_t comm, isgq_result_t *async_error);

/* ---- 3. Quantizers ---------------------------------------------------- */

/** Element types; values equal ncclDataType_t. Integers and FLOAT64 are summed exactly and never quantized. */
typedef enum isgq_data_type {
    ISGQ_INT8 = 0,
    ISGQ_UINT8 = 1,
    ISGQ_INT32 = 2,
    ISGQ_UINT32 = 3,
    ISGQ_INT64 = 4,
    ISGQ_UINT64 = 5,
    ISGQ_FLOAT16 = 6, /**< IEEE 754 binary16 */
    ISGQ_FLOAT32 = 7, /**< IEEE 754 binary32 */
    ISGQ_FLOAT64 = 8, /**< IEEE 754 binary64 */
    ISGQ_BFLOAT16 = 9 /**< upper half of a binary32 */
} isgq_data_type_t;

/** Reductions; values equal ncclRedOp_t. Quantizers other than NONE take SUM and AVG only. */
typedef enum isgq_red_op {
    ISGQ_SUM = 0,
    ISGQ_PROD = 1,
    ISGQ_MAX = 2,
    ISGQ_MIN = 3,
    ISGQ_AVG = 4 /**< sum divided by the number of ranks */
} isgq_red_op_t;

/**
 * Build a quantizer from its text form.
 *
 *   "none"  "fp16"  "bf16"                   lossless; 16 bits on the wire, sums in f32
 *   "uniform:bits=4,rounding=stochastic,scale=shared,bucket=1024,sum=auto"   codes of 1 to 8 bits on a grid
 *   "factor:width=4/4"  "factor:bits=4"      the factors of isgq_allreduce_factored (widths of X/Delta, or a budget)
 *   "isgq:bits=4"  "isgq:nmse=0.01"          this library's default for either kind of call, by a budget of wire bits an element or of error
 *   "powersgd:rank=4"                        low-rank factors of an allreduce's tensor, which needs a shape (isgq_tensor_shape)
 *   "dense=...;factored=..."                 one for each kind of call
 *
 * Published methods by their names: global-qsgd, global-qsgd-exp, terngrad, intsgd, qsgd, onebit, ef-sign, bingrad-b, bingrad-pb, orq-3,
 * orq-5, orq-9, natural, drive, eden, mx, powersgd; for factors isgq-mse, isgq-mvu, isgq-dithered. Communicators with devices
 * answer ISGQ_ERR_UNSUPPORTED for those for factors and for intsgd:scale=history. There dense "isgq:bits=4" has no entropy coding unless the text
 * says coding=zstd; that, isgq:nmse and powersgd are work of the hosts, to which tensors go and from which they come back: slower, not enqueued
 * whole, and refused on a stream that is being captured. docs/numerics.md gives grammar, formula, error and source of each.
 * The same text is accepted by ISGQ_QUANTIZER and by the programs.
 *
 * The object is immutable and may be shared by threads and communicators.
 * @param[out] quantizer  the new quantizer
 * @param[in]  text       as above; the error text names the first word that is wrong and the nearest right one
 * @return ISGQ_SUCCESS, ISGQ_ERR_INVALID_ARGUMENT, ISGQ_ERR_UNSUPPORTED, ISGQ_ERR_NO_MEMORY
 */
ISGQ_API ISGQ_NODISCARD isgq_result_t
isgq_quantizer_create(isgq_quantizer_t *quantizer, const char *text);

/**
 * Drop the caller's reference.
 * @param[in] quantizer  or NULL
 */
ISGQ_API void isgq_quantizer_destroy(isgq_quantizer_t quantizer);

/**
 * Upper bound of the size of one message that carries a rank's contribution to @p count elements. A tensor travels in several messages,
 * each with scales of its own for the buckets it touches.
 * @param[in]  quantizer  not NULL
 * @param[in]  datatype   element type of the input
 * @param[in]  count      elements
 * @param[out] bytes      most bytes of codes and scales, whatever the number of ranks; the 32-byte frame comes on top
 * @return ISGQ_SUCCESS, ISGQ_ERR_INVALID_ARGUMENT, ISGQ_ERR_UNSUPPORTED (a quantizer for factored calls only)
 */
ISGQ_API isgq_result_t isgq_quantizer_max_bytes(
    isgq_quantizer_t quantizer, isgq_data_type_t datatype, size_t count, size_t *bytes);

/**
 * What one gradient tensor remembers between calls, each of which names it in its options:
 *
 *   - The residual of error feedback, where the quantizer has it ("onebit", "ef-sign", and others with feedback=full or weighted): what
 *     this rank's contributions, and the sums that it rounded for others, have lost so far is added to the next contribution of
 *     allreduce and reduce_scatter (all elements of the input), and of an allreduce_factored whose product is quantized (bias
 *     excepted). It is the rank's own: no other rank sees whether there is one. Without a tensor these quantizers lose the same
 *     again and again. allgather has no residual. The first such call allocates four bytes an element, and four more where the
 *     output cannot hold input and residual (other types than f32, accumulate, reduce_scatter). Elements that are not finite leave no residual.
 *   - The directions of "powersgd", from which the next call goes on: four bytes for each column and direction.
 *   - What quantizers learn from earlier results. For this and the directions all ranks must
 *     then name a tensor with the same past, else the call fails with ISGQ_ERR_MISMATCH.
 *   - The largest values of each bucket, where the quantizer says predict=on (or intsgd:scale=history): later allreduces guess the
 *     scales that ranks would agree on first. A wrong guess is noticed on the way, and the call is done again as if nothing had
 *     been guessed. What holds for directions about the past holds here too. An eighth of a byte an element, and four bytes for calls in place,
 *     four for error feedback.
 *
 * Calls on one tensor may be in flight together and take effect in their order, in groups too. What is remembered belongs to the
 * communicator of the first such call: calls on others are refused (ISGQ_ERR_INVALID_USAGE) until the tensor is reset or loaded. A call
 * that fails in the middle resets its tensor. On a rank that works on a device the residual lies in that device's memory, and a CUDA graph
 * may capture calls that have one: every replay goes on from the one before. The tensor, like buffers, must outlive the graph, and save,
 * load and reset are between replays that the caller has waited for. A tensor that was reset or loaded may change between host and device.
 */
typedef struct isgq_tensor *isgq_tensor_t;

/**
 * Give a tensor an identity. Predictions and residuals hang on it, never on a pointer or on the order of calls.
 * @param[out] tensor  the new state, empty
 * @param[in]  name    equal on every rank; shown in statistics and logs
 * @param[in]  count   elements
 * @return ISGQ_SUCCESS, ISGQ_ERR_INVALID_ARGUMENT, ISGQ_ERR_NO_MEMORY
 */
ISGQ_API ISGQ_NODISCARD isgq_result_t
isgq_tensor_create(isgq_tensor_t *tensor, const char *name, size_t count);

/**
 * Say how the tensor is a matrix, row by row: what "powersgd" needs to know. Tensors without a shape, and matrices too small for the
 * rank asked for, are sent as they are. Another shape than before forgets the directions. All ranks give the same.
 * @param[in] tensor   not NULL
 * @param[in] rows     of the matrix; usually the first dimension of a weight
 * @param[in] columns  all the others together; rows * columns is the tensor's count
 * @return ISGQ_SUCCESS, ISGQ_ERR_INVALID_ARGUMENT, ISGQ_ERR_INVALID_USAGE (calls in flight)
 */
ISGQ_API isgq_result_t isgq_tensor_shape(isgq_tensor_t tensor, size_t rows, size_t columns);

/** Forget everything. @param[in] tensor not NULL @return ISGQ_SUCCESS, ISGQ_ERR_INVALID_ARGUMENT, ISGQ_ERR_INVALID_USAGE (calls in flight) */
ISGQ_API isgq_result_t isgq_tensor_reset(isgq_tensor_t tensor);

/**
 * Write this rank's state for a checkpoint, residual included. A restart from it changes nothing but random decisions, which follow from
 * the seed and the number of a call on its communicator.
 * @param[in]     tensor  not NULL
 * @param[out]    buffer  or NULL to ask for the size
 * @param[in,out] bytes   room in, used out
 * @return ISGQ_SUCCESS, ISGQ_ERR_INVALID_ARGUMENT, ISGQ_ERR_INVALID_USAGE (calls in flight)
 */
ISGQ_API isgq_result_t isgq_tensor_save(isgq_tensor_t tensor, void *buffer, size_t *bytes);

/** Counterpart of isgq_tensor_save; name and count must be those of the tensor that was saved. @return also ISGQ_ERR_CORRUPT (damaged, or of
 *  another version), ISGQ_ERR_NO_MEMORY. A state that is refused changes nothing. */
ISGQ_API isgq_result_t isgq_tensor_load(isgq_tensor_t tensor, const void *buffer, size_t bytes);

/** Free the state, or let it go once the calls in flight that hold it are complete. @param[in] tensor or NULL */
ISGQ_API void isgq_tensor_destroy(isgq_tensor_t tensor);

/** Rarely needed settings of one call; NULL means all defaults. Start from {sizeof(isgq_call_options_t)}. */
typedef struct isgq_call_options {
    size_t size;           /**< sizeof(isgq_call_options_t) */
    isgq_tensor_t tensor;  /**< or NULL: nothing is remembered */
    int accumulate;        /**< non-zero: add to the output instead of overwriting it */
    const char *algorithm; /**< "direct", "ring", ...; or NULL: chosen by the library */
    uint32_t timeout_ms;   /**< or 0: the communicator's */
} isgq_call_options_t;

/* ---- 4. Collectives ---------------------------------------------------
 *
 * As in NCCL: every rank makes the same calls in the same order, and a call
 * returns once its work is queued. Results are ready, and buffers may be used
 * again, after isgq_comm_synchronize or isgq_comm_wait; on device memory also
 * by whatever follows the call on its `stream`. Buffers are aligned to
 * their elements; sendbuff == recvbuff means in place.
 *
 * ISGQ_DEVICE_HOST: `stream` is NULL. ISGQ_DEVICE_CUDA: buffers are device,
 * managed or pinned memory; a call starts when `stream` (NULL: the default
 * stream) reaches it, and the stream goes on when the call is complete or the
 * communicator has failed. Where cuda_ipc or nccl joins the devices of all
 * ranks, the whole call is enqueued on the stream, and a CUDA graph may capture
 * it: on all ranks or on none, and launched by all in the same order among the
 * communicator's other calls, which is the caller's to keep. Replays draw fresh
 * random numbers; graphs end before their communicator. Otherwise a stream that
 * is being captured is refused (ISGQ_ERR_UNSUPPORTED). While a call waits for other ranks its stream does
 * not move, so until isgq_comm_wait or isgq_comm_synchronize has returned,
 * do not call what waits for the whole device: making or destroying a
 * communicator on it, cudaFree, cudaHostRegister,
 * cudaDeviceSynchronize. Ranks that share a process and a GPU need a
 * non-blocking stream each, never NULL, and no more of them than
 * CUDA_DEVICE_MAX_CONNECTIONS: a stream behind another rank's call in the same
 * queue would wait for what it is to send.
 *
 * No call allocates memory once the communicator has seen that shape.
 *
 * `quantizer` NULL means the communicator's default ("dense=...;factored=..." sets one for each kind of call).
 * `options` NULL means defaults. Every rank receives
 * bit-identical results, and a fixed seed, rank count and call order reproduce
 * them.
 *
 * All of them return ISGQ_SUCCESS; ISGQ_ERR_INVALID_ARGUMENT; ISGQ_ERR_INVALID_USAGE
 * (after finalize, or in a forked child);
 * ISGQ_ERR_UNSUPPORTED (this type or reduction with this quantizer);
 * ISGQ_ERR_NO_MEMORY; ISGQ_ERR_CUDA; or the communicator's async error.
 */

/**
 * Reduce @p count elements over all ranks; every rank gets the result.
 *
 * @param[in]  sendbuff   [count]
 * @param[out] recvbuff   [count], disjoint from or equal to @p sendbuff
 * @param[in]  count      elements, equal on every rank
 * @param[in]  datatype   element type
 * @param[in]  op         any; with a quantizer other than "none" ISGQ_SUM or ISGQ_AVG
 * @param[in]  quantizer  or NULL
 * @param[in]  comm       communicator
 * @param[in]  stream     stream of the communicator's device
 * @param[in]  options    or NULL
 * @return see the head of section 4
 */
ISGQ_API ISGQ_NODISCARD isgq_result_t isgq_allreduce(
    const void *sendbuff, void *recvbuff, size_t count, isgq_data_type_t datatype, isgq_red_op_t op,
    isgq_quantizer_t quantizer, isgq_comm_t comm, isgq_stream_t stream,
    const isgq_call_options_t *options);

/**
 * One rank's factors of a gradient G = transpose(x) * delta.
 * For a fully connected layer: x is its input, delta the gradient of its
 * output, batch the local batch size.
 */
typedef struct isgq_factors {
    size_t size;       /**< sizeof(isgq_factors_t) */
    const void *x;     /**< [batch x m] */
    const void *delta; /**< [batch x n] */
    size_t batch;      /**< rows on this rank; may differ between ranks, may be 0 */
    size_t m;          /**< equal on every rank */
    size_t n;          /**< equal on every rank */
    void *bias;        /**< [n] receives the summed columns of delta (the bias gradient), or NULL */
} isgq_factors_t;

/**
 * Sum over ranks of transpose(x_k) * delta_k, exchanging the quantized factors
 * instead of the products. Sends about nranks * batch * (m + n) codes per rank
 * where isgq_allreduce would move about 2 * m * n.
 *
 * Reference: A. Abdi and F. Fekri, "Indirect Stochastic Gradient Quantization
 * and Its Application in Distributed Deep Learning", AAAI 2020,
 * doi:10.1609/aaai.v34i04.5707.
 *
 * @param[in]  factors          read until the call completes on the stream;
 *                              the struct itself only until it returns
 * @param[in]  max_batch        upper bound of batch over ranks; equal on all
 * @param[out] grad             [m x n], must not overlap the factors
 * @param[in]  datatype         element type of x, delta and grad
 * @param[in]  op               ISGQ_SUM or ISGQ_AVG (divides by nranks)
 * @param[in]  quantizer        a "factor:..." or "isgq:..." quantizer, any other (the product is then quantized), or NULL
 * @param[in]  comm             communicator
 * @param[in]  stream           stream of the communicator's device
 * @return see the head of section 4; ISGQ_ERR_INVALID_ARGUMENT also when
 *         factors->batch exceeds max_batch
 */
ISGQ_API ISGQ_NODISCARD isgq_result_t isgq_allreduce_factored(
    const isgq_factors_t *factors, size_t max_batch, void *grad, isgq_data_type_t datatype,
    isgq_red_op_t op, isgq_quantizer_t quantizer, isgq_comm_t comm, isgq_stream_t stream,
    const isgq_call_options_t *options);

/**
 * Reduce over all ranks; rank r gets elements [r*recvcount, (r+1)*recvcount).
 *
 * @param[in]  sendbuff   [nranks * recvcount]
 * @param[out] recvbuff   [recvcount]; in place when it is sendbuff + rank * recvcount
 * @param[in]  recvcount  elements per rank
 * @param[in]  datatype   element type
 * @param[in]  op         any; with a quantizer other than "none" ISGQ_SUM or ISGQ_AVG
 * @param[in]  quantizer  or NULL
 * @param[in]  comm       communicator
 * @param[in]  stream     stream of the communicator's device
 * @return see the head of section 4
 */
ISGQ_API ISGQ_NODISCARD isgq_result_t isgq_reduce_scatter(
    const void *sendbuff, void *recvbuff, size_t recvcount, isgq_data_type_t datatype,
    isgq_red_op_t op, isgq_quantizer_t quantizer, isgq_comm_t comm, isgq_stream_t stream,
    const isgq_call_options_t *options);

/**
 * Concatenate every rank's elements in rank order. A rank's own part is
 * quantized too, so that all ranks hold the same bits.
 *
 * @param[in]  sendbuff   [sendcount]; in place when it is recvbuff + rank * sendcount
 * @param[out] recvbuff   [nranks * sendcount]
 * @param[in]  sendcount  elements per rank
 * @param[in]  datatype   element type
 * @param[in]  quantizer  or NULL
 * @param[in]  comm       communicator
 * @param[in]  stream     stream of the communicator's device
 * @return see the head of section 4
 */
ISGQ_API ISGQ_NODISCARD isgq_result_t isgq_allgather(
    const void *sendbuff, void *recvbuff, size_t sendcount, isgq_data_type_t datatype,
    isgq_quantizer_t quantizer, isgq_comm_t comm, isgq_stream_t stream,
    const isgq_call_options_t *options);

/**
 * Copy @p count elements from @p root to every rank. Never quantized.
 *
 * @param[in]  sendbuff  [count], read on root only
 * @param[out] recvbuff  [count]
 * @param[in]  count     elements
 * @param[in]  datatype  element type
 * @param[in]  root      source rank
 * @param[in]  comm      communicator
 * @param[in]  stream    stream of the communicator's device
 * @return see the head of section 4
 */
ISGQ_API ISGQ_NODISCARD isgq_result_t isgq_broadcast(
    const void *sendbuff, void *recvbuff, size_t count, isgq_data_type_t datatype, int root,
    isgq_comm_t comm, isgq_stream_t stream);

/**
 * Complete once every rank has called it.
 * @param[in]  comm    communicator
 * @param[in]  stream  stream of the communicator's device
 * @return see the head of section 4
 */
ISGQ_API ISGQ_NODISCARD isgq_result_t isgq_barrier(isgq_comm_t comm, isgq_stream_t stream);

/* ---- 5. Groups -------------------------------------------------------- */

/**
 * Defer the calling thread's collectives until the matching isgq_group_end.
 * Groups nest.
 * @return ISGQ_SUCCESS
 */
ISGQ_API isgq_result_t isgq_group_start(void);

/**
 * Launch what the outermost group holds; isgq_comm_init_rank inside a group is completed here too (the other ways to a communicator answer
 * ISGQ_ERR_INVALID_USAGE inside a group), so one thread may drive
 * several devices. Calls keep the bits they would have had alone. Small allreduces among them (ISGQ_FUSE_BYTES) are done together: all ranks group
 * these alike, and none of their buffers may overlap one that an earlier call of the group reads or writes, unless both only read it.
 * On an error nothing is launched, and the communicators in the group fail on every rank.
 * @return as the collectives in the group; ISGQ_ERR_INVALID_USAGE without a
 *         matching isgq_group_start
 */
ISGQ_API isgq_result_t isgq_group_end(void);

/**
 * Treat an error of the caller as this library treats a call that it refuses: @p reason becomes the thread's last error, and a group that the
 * thread has open is refused with it, so that isgq_group_end launches nothing and the communicators in the group fail on every rank. For
 * bindings that check arguments of their own, and for scopes that are left before their isgq_group_end, which is still required.
 * @param[in] comm    the communicator that the refused call was meant for, or NULL: it fails too
 * @param[in] result  any status but ISGQ_SUCCESS
 * @param[in] reason  one sentence; copied
 * @return @p result; ISGQ_ERR_INVALID_ARGUMENT where @p result or @p reason says nothing
 */
ISGQ_API isgq_result_t isgq_group_refuse(isgq_comm_t comm, isgq_result_t result, const char *reason);

/* ---- 6. Introspection ------------------------------------------------- */

/** Counters of one communicator since its creation or the last reset. */
typedef struct isgq_stats {
    size_t size;             /**< sizeof(isgq_stats_t), set by the caller */
    uint64_t calls;          /**< collectives launched */
    uint64_t input_bytes;    /**< bytes the same calls would read uncompressed */
    uint64_t wire_bytes;     /**< bytes this rank wrote into messages, frames included: once for each peer that gets one, but once in all what it posts
                              *   on a board, which all ranks of the host read in place; see shared_bytes */
    uint64_t fallback_calls; /**< calls sent uncompressed by policy */
    uint64_t quantize_ns;    /**< nanoseconds in quantize and dequantize */
    uint64_t transfer_ns;    /**< nanoseconds waiting for the transport */

    /* Of what this rank sent itself, v, and what the others decoded, C(v), in every ISGQ_ACCURACY_EVERY-th quantized allreduce and
     * reduce_scatter: the last such call, and the mean. Local to the rank. Elements that are not finite are left out. */
    uint64_t accuracy_calls;   /**< calls measured */
    double nmse, mean_nmse;    /**< |v - C(v)|^2 / |v|^2 */
    double zeros, mean_zeros;  /**< part of C(v) that is zero */
    double limits, mean_limits; /**< part of C(v) that has the largest magnitude of its bucket: codes at the end of their range */
    double residual_norm, mean_residual_norm; /**< |residual| of error feedback after the call, 0 without */
    uint64_t lost_errors;      /**< elements of calls that were measured or have error feedback whose error was not finite */

    /* Every ISGQ_SHADOW-th quantized allreduce, dense or factored, against the exact one. Equal on all ranks. */
    uint64_t shadow_calls;                /**< calls compared; those with results that are not finite are left out */
    uint64_t shadow_bytes;                /**< bytes this rank sent for it, not in wire_bytes */
    double shadow_nmse, mean_shadow_nmse; /**< |result - exact|^2 / |exact|^2 of the last one, and the mean */

    uint64_t shared_bytes; /**< bytes this rank passed to ranks of its host to divide the work of factored calls ("share"), not in wire_bytes */

    /* Calls whose shared scales were guessed from the tensor's earlier ones (option predict of quantizers). Equal on all ranks. */
    uint64_t predicted_calls; /**< that went out under a guess */
    uint64_t repaired_calls;  /**< of them, those that were done again because the guess was too small or too wide */
} isgq_stats_t;

/**
 * Copy the counters. Does not synchronise; times lag by the calls in flight.
 * @param[in]     comm   communicator
 * @param[in,out] stats  stats->size set on entry; fields beyond it are not written
 * @return ISGQ_SUCCESS, ISGQ_ERR_INVALID_ARGUMENT
 */
ISGQ_API isgq_result_t isgq_comm_get_stats(isgq_comm_t comm, isgq_stats_t *stats);

/**
 * Set all counters to zero.
 * @param[in] comm  communicator
 * @return ISGQ_SUCCESS, ISGQ_ERR_INVALID_ARGUMENT
 */
ISGQ_API isgq_result_t isgq_comm_reset_stats(isgq_comm_t comm);

/** One environment variable, as printed by isgq_info --config. */
typedef struct isgq_config_var {
    size_t size;               /**< sizeof(isgq_config_var_t), set by the caller */
    const char *name;          /**< "ISGQ_CHUNK_BYTES" */
    const char *default_value; /**< as text */
    const char *value;         /**< in effect in this process */
    const char *help;          /**< one paragraph: meaning, unit, range */
} isgq_config_var_t;

/**
 * Enumerate configuration variables.
 * @param[in]  index  0, 1, 2, ...
 * @param[out] var    static strings
 * @return ISGQ_SUCCESS, or ISGQ_ERR_INVALID_ARGUMENT past the last one
 */
ISGQ_API isgq_result_t isgq_get_config_var(size_t index, isgq_config_var_t *var);

#ifdef __cplusplus
}
#endif

#endif /* ISGQCOLL_H */
