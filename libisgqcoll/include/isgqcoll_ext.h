/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file isgqcoll_ext.h
 * Looking inside isgqcoll: for its own tools, tests and curious users. Installed, but unstable: anything here may change in any release.
 *
 * The conventions of isgqcoll.h hold.
 */
#ifndef ISGQCOLL_EXT_H
#define ISGQCOLL_EXT_H

#include "isgqcoll.h"

#ifdef __cplusplus
extern "C" {
#endif

/** What the last finished call of a communicator did. */
typedef struct isgqx_call_record {
    size_t size;         /**< sizeof(isgqx_call_record_t), set by the caller */
    uint64_t sequence;   /**< call number */
    char algorithm[32];  /**< the one that ran, never "auto" */
    char transport[32];  /**< of this rank's links, joined by '+' */
    char why[96];        /**< what decided, in a few words */
    uint64_t input_bytes;/**< bytes of input on this rank */
    uint64_t wire_bytes; /**< bytes this rank sent, frames and scales included; of a fused call its part, in proportion to its input */
    uint64_t own_bytes;  /**< bytes of this rank's own contribution, counted once however many ranks it went to */
    uint64_t time_ns;    /**< from start to completion; of a fused call, of all that travel together */
} isgqx_call_record_t;

/**
 * Record of the last finished call.
 * @param[in]     comm    communicator
 * @param[in,out] record  record->size set on entry
 * @return ISGQ_SUCCESS, ISGQ_ERR_INVALID_ARGUMENT
 */
ISGQ_API isgq_result_t isgqx_last_call(isgq_comm_t comm, isgqx_call_record_t *record);

/**
 * Bytes of this rank's own contributions, all calls together: what the papers' "gain" is measured with.
 * @param[in]  comm   communicator
 * @param[out] bytes  since creation or the last isgq_comm_reset_stats
 * @return ISGQ_SUCCESS, ISGQ_ERR_INVALID_ARGUMENT
 */
ISGQ_API isgq_result_t isgqx_own_bytes(isgq_comm_t comm, uint64_t *bytes);

/** One algorithm. */
typedef struct isgqx_algorithm_info {
    size_t size;            /**< sizeof(isgqx_algorithm_t), set by the caller */
    const char *collective; /**< "allreduce", "reduce_scatter", "allgather", "broadcast", "barrier", "factored" */
    const char *name;       /**< "direct", "ring", ... */
    const char *help;       /**< one line */
} isgqx_algorithm_t;

/**
 * Enumerate algorithms.
 * @param[in]     index      0, 1, 2, ...
 * @param[in,out] algorithm  static strings
 * @return ISGQ_SUCCESS, or ISGQ_ERR_INVALID_ARGUMENT past the last one
 */
ISGQ_API isgq_result_t isgqx_algorithm(size_t index, isgqx_algorithm_t *algorithm);

/** Receives one line of text without a newline. */
typedef void (*isgqx_line_fn)(void *context, const char *line);

/**
 * Print what one rank would do in a collective call (a sum, where it reduces): the algorithm and why, the stages of the
 * call, the steps of each and their bytes. Nothing is sent.
 * @param[in] collective  as in isgqx_algorithm_t, but for "factored"
 * @param[in] algorithm   a name, "auto", or NULL: ISGQ_ALGORITHM
 * @param[in] quantizer   a quantizer's text, or NULL: ISGQ_QUANTIZER
 * @param[in] nranks      at least 1
 * @param[in] rank        0..nranks-1
 * @param[in] count       elements of the whole tensor, all ranks' parts of an allgather or reduce_scatter
 * @param[in] datatype    element type
 * @param[in] line        called once for each line
 * @param[in] context     handed to @p line
 * @return ISGQ_SUCCESS, or what the call itself would return: ISGQ_ERR_INVALID_ARGUMENT, ISGQ_ERR_UNSUPPORTED, ISGQ_ERR_NO_MEMORY
 */
ISGQ_API isgq_result_t isgqx_plan_print(const char *collective, const char *algorithm, const char *quantizer, int nranks, int rank,
                                        size_t count, isgq_data_type_t datatype, isgqx_line_fn line, void *context);

/** Sizes of a factored call. */
typedef struct isgqx_factored_shape {
    size_t size;      /**< sizeof(isgqx_factored_shape_t), set by the caller */
    size_t max_batch; /**< rows on each rank, at most */
    size_t m;         /**< columns of X */
    size_t n;         /**< columns of Delta */
    int bias;         /**< not 0: the bias gradient too */
} isgqx_factored_shape_t;

/**
 * The same for isgq_allreduce_factored: the way and why, and what follows. Blobs are as long as the data makes them; their
 * bytes are upper bounds.
 * @param[in] shape      sizes
 * @param[in] algorithm  "gather", "share", "owner", "reduce", "dense", "auto", or NULL: ISGQ_ALGORITHM
 * @param[in] quantizer  a quantizer's text, or NULL: ISGQ_QUANTIZER
 * @param[in] nranks     at least 1
 * @param[in] rank       0..nranks-1
 * @param[in] datatype   element type of factors and gradient
 * @param[in] line       called once for each line
 * @param[in] context    handed to @p line
 * @return as isgqx_plan_print
 */
ISGQ_API isgq_result_t isgqx_plan_print_factored(const isgqx_factored_shape_t *shape, const char *algorithm,
                                                 const char *quantizer, int nranks, int rank, isgq_data_type_t datatype,
                                                 isgqx_line_fn line, void *context);

/**
 * Print build, devices, transports, modules and topology.
 * @param[in] line     called once for each line
 * @param[in] context  handed to @p line
 * @return ISGQ_SUCCESS
 */
ISGQ_API isgq_result_t isgqx_info_print(isgqx_line_fn line, void *context);

/**
 * How many GPUs this process sees. Opens none of them.
 * @param[out] count  at least 1
 * @return ISGQ_SUCCESS, or ISGQ_ERR_UNSUPPORTED with the reason why there is none: no module "cuda" in this build, no driver, no GPU
 */
ISGQ_API isgq_result_t isgqx_device_count(int *count);

/**
 * Where a communicator works, as text: "host memory", or a GPU's number and name.
 * @param[in]  comm   communicator
 * @param[out] text   cut off if it does not fit
 * @param[in]  bytes  room in @p text; 128 are enough
 * @return ISGQ_SUCCESS, ISGQ_ERR_INVALID_ARGUMENT, ISGQ_ERR_CUDA
 */
ISGQ_API isgq_result_t isgqx_device_name(isgq_comm_t comm, char *text, size_t bytes);

/**
 * A finished copy between host memory and memory that @p comm works on, or within either: for programs that run on host and device
 * memory alike and link no CUDA. It is ordered after nothing: wait first for calls that write @p src or use @p dst.
 * @param[in]  comm   communicator
 * @param[out] dst    does not overlap @p src
 * @param[in]  src    NULL, like @p dst, only if @p bytes is 0
 * @param[in]  bytes  how many
 * @return ISGQ_SUCCESS, ISGQ_ERR_INVALID_ARGUMENT, ISGQ_ERR_CUDA
 */
ISGQ_API isgq_result_t isgqx_copy(isgq_comm_t comm, void *dst, const void *src, size_t bytes);

/** The address of one of NCCL's functions ("ncclSend"), or NULL. */
typedef void *(*isgqx_find_symbol_fn)(void *context, const char *symbol);

/**
 * Where NCCL's functions come from, instead of a library that is looked for: for a library that stands in for NCCL itself, where
 * a search would find the stand-in. Before the first communicator on a GPU.
 * @param[in] find     called once for each function, in any thread, when NCCL is first needed
 * @param[in] context  handed to @p find
 * @return ISGQ_SUCCESS, ISGQ_ERR_INVALID_ARGUMENT, ISGQ_ERR_INVALID_USAGE when NCCL has been looked for already
 */
ISGQ_API isgq_result_t isgqx_use_nccl(isgqx_find_symbol_fn find, void *context);

/** One rank's contribution to a sum, apart from any communicator: for timing and looking at quantizers. */
typedef struct isgqx_contribution {
    size_t size;                /**< sizeof(isgqx_contribution_t), set by the caller */
    isgq_quantizer_t quantizer; /**< not NULL */
    isgq_data_type_t datatype;  /**< element type */
    size_t count;               /**< elements */
    uint64_t seed;              /**< of random decisions, with @p call */
    uint64_t call;              /**< a call's number */
} isgqx_contribution_t;

/**
 * Encode values as the only rank of a communicator would, chunk by chunk on the calling thread. What ranks agree on before they encode is
 * this rank's own and precedes the data. Host memory.
 * @param[in]  contribution  what is encoded
 * @param[in]  src           values
 * @param[out] message       NULL to ask for @p bytes of room
 * @param[in]  room          bytes at @p message
 * @param[out] bytes         that were written; without @p message: that are enough
 * @return ISGQ_SUCCESS, ISGQ_ERR_INVALID_ARGUMENT, ISGQ_ERR_UNSUPPORTED (quantizers for factors too), ISGQ_ERR_NO_MEMORY
 */
ISGQ_API isgq_result_t isgqx_encode(const isgqx_contribution_t *contribution, const void *src, void *message, size_t room,
                                    size_t *bytes);

/**
 * The values that a message of isgqx_encode stands for.
 * @param[in]  contribution  as given to isgqx_encode
 * @param[in]  message       what it wrote, by this version of the library
 * @param[in]  bytes         how many
 * @param[out] dst           values
 * @return ISGQ_SUCCESS, ISGQ_ERR_INVALID_ARGUMENT, ISGQ_ERR_UNSUPPORTED, ISGQ_ERR_NO_MEMORY, ISGQ_ERR_CORRUPT
 */
ISGQ_API isgq_result_t isgqx_decode(const isgqx_contribution_t *contribution, const void *message, size_t bytes, void *dst);

/** Levels of a machine that isgqx_cost knows. */
#define ISGQX_LEVELS 8

/** One level of the tree of links: level 0 joins ranks into a host, level 1 hosts into a rack, ... */
typedef struct isgqx_level {
    double children; /**< that it joins, at least 1 */
    double latency;  /**< seconds that a round of messages between them waits */
    double rate;     /**< bytes per second of the link on which a child hangs, in either direction at once */
} isgqx_level_t;

/** A machine for isgqx_cost. Rates are bytes of f32 per second and rank while all ranks of a host work at once, all above 0. */
typedef struct isgqx_machine {
    size_t size;                        /**< sizeof(isgqx_machine_t), set by the caller */
    unsigned nlevels;                   /**< 1..ISGQX_LEVELS */
    isgqx_level_t levels[ISGQX_LEVELS]; /**< from the ranks outwards */
    double message;                     /**< seconds of a rank for each message it sends */
    double copy_rate;                   /**< values into and out of messages as they are */
    double sum_rate;                    /**< values of a message added to others */
    double encode_rate;                 /**< values to codes */
    double decode_rate;                 /**< codes to values, addition included */
    double product_rate;                /**< multiplications with addition per second, of the factors' product */
    double overlap;                     /**< 0: arithmetic and wire one after the other, 1: the shorter hides behind the longer */
} isgqx_machine_t;

/** A layer for isgqx_cost. */
typedef struct isgqx_layer {
    double rows; /**< of each rank; only factors ask */
    double m;    /**< columns of X */
    double n;    /**< columns of Delta; the gradient has m * n elements */
} isgqx_layer_t;

/** What isgqx_cost says. */
typedef struct isgqx_cost_parts {
    size_t size;    /**< sizeof(isgqx_cost_t), set by the caller */
    double sent;    /**< bytes that leave a rank */
    double latency; /**< seconds of waiting for rounds of messages */
    double wire;    /**< seconds of the busiest links */
    double codec;   /**< seconds of copies, sums and codes on a rank */
    double product; /**< seconds of products on a rank */
    double total;   /**< seconds in all, with the machine's overlap */
} isgqx_cost_t;

/**
 * Names of the ways that isgqx_cost knows: "direct", "ring", "levels", "tree", "powersgd" for gradients, "gather", "shared", "owners" for
 * factors.
 * @param[in]  index     0, 1, 2, ...
 * @param[out] name      static string
 * @param[out] factored  1 if it moves factors
 * @return ISGQ_SUCCESS, or ISGQ_ERR_INVALID_ARGUMENT past the last one
 */
ISGQ_API isgq_result_t isgqx_cost_way(size_t index, const char **name, int *factored);

/**
 * What the gradient of one layer costs, summed over all ranks of a described machine: closed formulas for any number of ranks, nothing
 * is run. Not every way is one that this library can run.
 * @param[in]     machine    the machine
 * @param[in]     layer      sizes
 * @param[in]     way        a name of isgqx_cost_way
 * @param[in]     quantizer  a quantizer's text: it says how many bits travel
 * @param[in,out] cost       cost->size set on entry
 * @return ISGQ_SUCCESS, ISGQ_ERR_INVALID_ARGUMENT, ISGQ_ERR_UNSUPPORTED (this way with this quantizer)
 */
ISGQ_API isgq_result_t isgqx_cost(const isgqx_machine_t *machine, const isgqx_layer_t *layer, const char *way, const char *quantizer,
                                  isgqx_cost_t *cost);

/** Quantizers whose speed a tuning table holds, at most. */
#define ISGQX_TUNED_CODECS 8

/** Sizes that a tuning table has corrections for: allreduces of 4 KiB, 64 KiB, 1 MiB and 16 MiB of f32. */
#define ISGQX_TUNED_SIZES 4

/** Speed of one quantizer, in bytes of f32 per second and rank while all ranks of a host work. */
typedef struct isgqx_tuned_codec {
    char quantizer[64]; /**< its text */
    double encode_rate; /**< values to codes */
    double decode_rate; /**< codes to values, addition included */
    double correction[ISGQX_TUNED_SIZES]; /**< times that were measured over those that isgqx_cost says */
} isgqx_tuned_codec_t;

/** What isgq_tune measured, where. As a file: ISGQ_TUNE_TABLE. */
typedef struct isgqx_tuning {
    size_t size;            /**< sizeof(isgqx_tuning_t), set by the caller */
    char library[16];       /**< version that measured: "0.1.0" */
    char cpu[96];           /**< model name of rank 0's processor */
    char transport[32];     /**< of rank 0's links, as in isgqx_call_record_t */
    int cores;              /**< that rank 0 may run on */
    int hosts;              /**< how many */
    int ranks_per_host;     /**< of every host; 0: they differ */
    double host_latency;    /**< seconds that a round of messages waits, between ranks of a host */
    double host_rate;       /**< bytes/s that a rank of a host moves to others of it, all at once */
    double network_latency; /**< as host_latency, between hosts */
    double network_rate;    /**< bytes/s of a host's link, each direction */
    double copy_rate;       /**< as in isgqx_machine_t */
    double sum_rate;        /**< likewise */
    double product_rate;    /**< likewise */
    double factor_rate;     /**< values/s of factors, to codes of "isgq:bits=4" and back, on one rank */
    double correction[ISGQX_TUNED_SIZES]; /**< as in isgqx_tuned_codec_t, of values as they are */
    int ncodecs;            /**< at least 1; the first stands for quantizers that are not there */
    isgqx_tuned_codec_t codecs[ISGQX_TUNED_CODECS]; /**< their speeds */
} isgqx_tuning_t;

/**
 * Where a communicator runs: fills in library, cpu, transport, cores, hosts and ranks_per_host, and sets everything else to 0.
 * @param[in]     comm    communicator
 * @param[in,out] tuning  tuning->size set on entry
 * @param[out]    first   lowest rank on this rank's host: names the host
 * @param[out]    index   which of its host's ranks this one is, from 0
 * @return ISGQ_SUCCESS, ISGQ_ERR_INVALID_ARGUMENT
 */
ISGQ_API isgq_result_t isgqx_tuning_place(isgq_comm_t comm, isgqx_tuning_t *tuning, int *first, int *index);

/**
 * Write a tuning table.
 * @param[in] path    file; what it held is replaced
 * @param[in] tuning  what to write
 * @return ISGQ_SUCCESS, ISGQ_ERR_INVALID_ARGUMENT (a value that no table may have), ISGQ_ERR_SYSTEM
 */
ISGQ_API isgq_result_t isgqx_tuning_write(const char *path, const isgqx_tuning_t *tuning);

/**
 * Read a tuning table, of whatever machine.
 * @param[in]     path    file
 * @param[in,out] tuning  tuning->size set on entry
 * @return ISGQ_SUCCESS, ISGQ_ERR_SYSTEM (it cannot be read), ISGQ_ERR_CORRUPT (damaged), ISGQ_ERR_UNSUPPORTED (of a newer format)
 */
ISGQ_API isgq_result_t isgqx_tuning_read(const char *path, isgqx_tuning_t *tuning);

/**
 * The machine of a table as isgqx_cost takes it: one level for one host, two for several.
 * @param[in]     tuning     a table
 * @param[in]     quantizer  whose codes are meant: the most alike in the table; NULL: its first
 * @param[in,out] machine    machine->size set on entry
 * @return ISGQ_SUCCESS, ISGQ_ERR_INVALID_ARGUMENT
 */
ISGQ_API isgq_result_t isgqx_tuning_machine(const isgqx_tuning_t *tuning, const char *quantizer, isgqx_machine_t *machine);

/**
 * What isgqx_cost says on this machine, times what this returns, is what allreduces took: caches, and links that let bursts pass, are in no
 * formula. Between measured sizes it is interpolated.
 * @param[in] tuning     a table
 * @param[in] quantizer  as in isgqx_tuning_machine, or "none"
 * @param[in] bytes      of f32, of one rank
 * @return the factor; 1 if an argument is NULL
 */
ISGQ_API double isgqx_tuning_correction(const isgqx_tuning_t *tuning, const char *quantizer, double bytes);

/**
 * Bytes that one rank sends for an exact fp32 ring allreduce of @p count elements: what every ratio is measured against.
 * @param[in] count   elements
 * @param[in] nranks  at least 1
 * @return bytes, 2 (nranks - 1) / nranks * 4 * count
 */
ISGQ_API double isgqx_fp32_ring_bytes(size_t count, int nranks);

/**
 * 64-bit hash of bytes, the one programs print.
 * @param[in] data   bytes
 * @param[in] bytes  how many
 * @return FNV-1a
 */
ISGQ_API uint64_t isgqx_hash(const void *data, size_t bytes);

/**
 * Canonical text of a quantizer.
 * @param[in] quantizer  not NULL
 * @return a string that lives as long as @p quantizer, "" for NULL
 */
ISGQ_API const char *isgqx_quantizer_text(isgq_quantizer_t quantizer);

#ifdef __cplusplus
}
#endif

#endif /* ISGQCOLL_EXT_H */
