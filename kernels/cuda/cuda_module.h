/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of module "cuda": memory, order and arithmetic on GPUs. Everything that knows CUDA lies behind it; the library itself
 * links nothing of CUDA and runs where neither driver nor toolkit is installed.
 *
 * Every function takes the device it works on and leaves the caller's current device as it was; none disturbs a capture that another
 * thread has begun. Functions that take a stream only enqueue. Nothing allocates but `alloc`, `pin` and the create functions. A failure is one sentence by the services' `fail`: ISGQ_ERR_CUDA with
 * CUDA's own text, ISGQ_ERR_NO_MEMORY, or ISGQ_ERR_UNSUPPORTED. Any thread may call anything.
 *
 * Arithmetic: three kernels work on runs of elements, as kernels/kernels.h does on CPUs, with the same bits. `measure` finds scales, `map`
 * turns values, codes and sums of codes into one another, `reduce` and `divide` work on all types for sums without loss. `combine` does what
 * several maps would, in one pass.
 * Packed codes have the layout of kernels.h. Device pointers to elements are aligned to their element, packed codes and scales to 4
 * bytes. Elements of a run are numbered first, first + 1, ...; element e lies in bucket e / bucket, and scales[0] belongs to the
 * bucket of element `first`. Only the bits of a NaN may differ from a CPU's.
 */
#ifndef ISGQ_KERNELS_CUDA_CUDA_MODULE_H
#define ISGQ_KERNELS_CUDA_CUDA_MODULE_H

#include "base/module.h"
#include "isgqcoll.h"
#include "kernels/cuda/factor_module.h"
#include "kernels/cuda/level_module.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct CUevent_st *iq_cuda_event_t; /* a cudaEvent_t */

typedef struct iq_cuda_device {
    char name[64];
    char pci[24]; /* "0000:01:00.0" */
    int major, minor, processors;
    size_t bytes;      /* of device memory */
    bool awaits_words; /* `await` works: without it there are no device communicators */
    bool orders_ranks; /* `flags` works: streams of different ranks can wait for each other */
} iq_cuda_device_t;

/* Two neighbouring words of pinned memory: `state` is written by streams, `gone` by hosts, once and for good. */
typedef struct iq_cuda_flag {
    uint32_t state, gone;
} __attribute__((aligned(8))) iq_cuda_flag_t;

/* One operation of a stream on a flag: wait until (state & value) != 0 or gone != 0, or state = value. */
typedef struct iq_cuda_flag_op {
    iq_cuda_flag_t *flag;
    uint32_t value;
    bool wait;
} iq_cuda_flag_op_t;

#define IQ_CUDA_FLAG_OPS 32 /* most of one batch */

/* Names memory of another process. Plain bytes. */
typedef struct iq_cuda_handle {
    unsigned char bytes[64];
} iq_cuda_handle_t;

typedef enum iq_cuda_place {
    IQ_CUDA_HOST,    /* memory that CUDA does not know */
    IQ_CUDA_PINNED,  /* host memory that kernels may use */
    IQ_CUDA_DEVICE,  /* memory of `device` */
    IQ_CUDA_MANAGED, /* migrates; kernels of any device may use it */
} iq_cuda_place_t;

/* What a run of elements is made of. */
typedef enum iq_cuda_form {
    IQ_CUDA_VALUES, /* elements of `type`: f32, f16 or bf16 */
    IQ_CUDA_SUMS,   /* uint32_t sums of codes */
    IQ_CUDA_CODES,  /* packed codes of `width` bits */
    IQ_CUDA_LANES,  /* codes of `width` bits, 32 / width of them in each uint32_t, from its lowest bits on; other bits are 0 */
    IQ_CUDA_TERNARY /* codes 0..2, five to a byte: c0 + 3 c1 + 9 c2 + 27 c3 + 81 c4; digits after the last code are 0 */
} iq_cuda_form_t;

typedef struct iq_cuda_source {
    iq_cuda_form_t form;
    isgq_data_type_t type; /* VALUES */
    const void *data;
    unsigned width;        /* CODES and LANES: 1..32 */
    uint32_t least, most;  /* CODES: a smaller or larger one, or bits set after the last one, is a fault; LANES: a larger one */
    /* SUMS, CODES and LANES as values: (float)(2 * code - zero) * iq_half_step(top, scale of its bucket) */
    const float *scales;
    bool foreign_scales;   /* they came in a message: negative or NaN is a fault */
    uint32_t top;
    int32_t zero;
    float divisor;         /* values of any form are divided by it; 1 divides nothing */
} iq_cuda_source_t;

typedef struct iq_cuda_target {
    iq_cuda_form_t form;
    isgq_data_type_t type; /* VALUES */
    void *data;
    unsigned width;        /* CODES and LANES: 1..32; the bits after the last code are cleared */
    bool accumulate;       /* VALUES: rounded to `type`, then added in `type`; SUMS: integers are added */
} iq_cuda_target_t;

/* How values become codes: iq_round_stochastic or iq_round_nearest of value * iq_inverse_step(top, scale) + shift, minus `low`. */
typedef struct iq_cuda_grid {
    bool used;
    bool stochastic;
    uint32_t top;
    int32_t reach, base; /* reach > 0: codes are -reach..reach less `base`, whatever top says; not to LANES or TERNARY */
    const float *scales; /* f32, as for sources */
    uint32_t stream, rank; /* where the random bits are (iq_draw), 24 upper bits of word (element mod 4) */
    uint64_t seed, call;
    const uint32_t *replays; /* device memory, read when the kernel runs: added to the upper half of `call`; NULL: 0 */
    const uint32_t *strata;  /* device memory, [256]: the bits are iq_stratified_bits of the words; NULL: not stratified */
} iq_cuda_grid_t;

/* Faults that kernels write to the fault word; the last one written stays. */
typedef enum iq_cuda_fault { IQ_CUDA_NO_FAULT, IQ_CUDA_BAD_CODE, IQ_CUDA_BAD_PADDING, IQ_CUDA_BAD_SCALE, IQ_CUDA_BAD_BLOB, IQ_CUDA_BAD_HEADER } iq_cuda_fault_t;

/*
 * One run of elements from one form to another:
 *     CODES -> SUMS, SUMS -> CODES           integers as they are; no scales, no grid
 *     anything -> VALUES                     as values; with a grid, values become codes and values of those codes first
 *     anything -> SUMS, CODES, with a grid   as values, which become codes
 *     VALUES -> LANES with a grid of less than 256 codes, LANES -> VALUES without one; nothing else has lanes
 *     TERNARY as CODES, but not to CODES; with a grid of top 2, and not `through` anything
 * `through` rounds values to f16 or bf16 before anything else is done with them; ISGQ_FLOAT32 does nothing.
 */
typedef struct iq_cuda_map {
    iq_cuda_source_t source;
    iq_cuda_target_t target;
    iq_cuda_grid_t grid;
    isgq_data_type_t through;
    uint64_t first;
    size_t bucket; /* elements per scale; 0: one scale for all */
    size_t count;
    uint32_t offset; /* added to integers as they go from CODES to SUMS or back */
    uint32_t *fault; /* pinned or device memory */
} iq_cuda_map_t;

#define IQ_CUDA_PARTS 16 /* most of one sum */

typedef struct iq_cuda_part {
    const void *data;
    const float *scales; /* of CODES that are added as values */
} iq_cuda_part_t;

/*
 * The sum of parts in one pass and what becomes of it: the bits of one `map` per part into SUMS (`integers`) or into f32 VALUES, the
 * first of them overwriting, and then of maps from those to the targets; only that the sum is never in memory.
 *     measure != NULL    nothing but measure[b] = max(measure[b], largest |value of the sum| in bucket b), as function `measure` does
 *     result             the sum as CODES, with `result_grid` or as integers, or as VALUES; data NULL: not wanted
 *     output             VALUES that `result` stands for, or those of the sum without a result; data NULL: not wanted
 */
typedef struct iq_cuda_combine {
    unsigned nparts; /* 1..IQ_CUDA_PARTS */
    iq_cuda_part_t parts[IQ_CUDA_PARTS];
    iq_cuda_source_t part; /* what they are, but for data and scales. CODES as values are not divided */
    int own;               /* this one is VALUES of own_type instead, rounded `through`, then codes of `own_grid` if used; -1: none is */
    isgq_data_type_t own_type, through;
    iq_cuda_grid_t own_grid;
    bool integers;        /* CODES or TERNARY are added as they are, plus `offset`, which the result's CODES have less */
    uint32_t offset;
    iq_cuda_source_t sum; /* as values: integers by scales, top and zero; both are divided */
    float *measure;
    iq_cuda_grid_t result_grid;
    iq_cuda_target_t result, output;
    uint64_t first;
    size_t bucket;
    size_t count;
    uint32_t *fault;
} iq_cuda_combine_t;

/* acc = acc op src; or acc = src if `first`. src may be f16 or bf16 where acc is f32. AVG sums. */
typedef struct iq_cuda_reduce {
    isgq_data_type_t acc_type, src_type;
    isgq_red_op_t op;
    const void *src;
    void *acc;
    bool first;
    size_t count;
} iq_cuda_reduce_t;

/* dst = src / divisor, in src_type, then rounded to dst_type (equal, or f32 to f16 or bf16); with `accumulate` added to dst in dst_type. */
typedef struct iq_cuda_divide {
    isgq_data_type_t src_type, dst_type;
    const void *src;
    void *dst;
    int divisor;
    bool accumulate;
    size_t count;
} iq_cuda_divide_t;

/* Where a double goes: as an INT32 or INT64 it is stored as it is. As a FLOAT32, FLOAT16 or BFLOAT16 it becomes (float)(it * scale / divisor), rounded
 * to the type; with `accumulate` that is added in the type. */
typedef struct iq_cuda_outcome {
    isgq_data_type_t type;
    void *data;
    double scale;
    int divisor;
    bool accumulate;
    /* Device memory, NULL: `scale` as it is. Else the scale is the power of two of iq_factor_scale, from peaks[0] for the bias and peaks[1] for
     * the gradient; NaN if one of the two is not finite. */
    const float *peaks;
    int peak;
    bool want_bias;
} iq_cuda_outcome_t;

/* Output i * n + j: the sum over all rows r of weights[r] * q[r * m + i] * p[r * n + j]. Codes: every product and partial sum is an integer below 2^53
 * in magnitude, and the sum is exact. Values: f32 from double sums in the order of rows. */
typedef struct iq_cuda_product {
    bool codes;             /* q and p are int16_t; else values of `type` */
    isgq_data_type_t type;
    const int64_t *weights; /* [rows]; NULL: all are 1 */
    const void *q;          /* [rows x m]; NULL: all are 1 */
    const void *p;          /* [rows x n] */
    size_t rows, m, n;
    iq_cuda_outcome_t outcome;
} iq_cuda_product_t;

/* INT32 or INT64 sums of products to values. */
typedef struct iq_cuda_convert {
    isgq_data_type_t type;
    const void *src;
    iq_cuda_outcome_t outcome;
    size_t count;
} iq_cuda_convert_t;

/*
 * Moments of the elements of every bucket, added to what there is in planes of words (kernels/moment_math.h): sums of squares, or
 * with `clips` largest magnitudes, sums of squares and sums. `first` begins a panel; the scratch is the stream's alone.
 */
typedef struct iq_cuda_moments {
    isgq_data_type_t type;
    const void *src;
    uint64_t first;
    size_t bucket, count;
    bool clips;
    float *room;   /* the first plane, from the word of the bucket of element `first` on */
    size_t stride; /* words of a plane */
    void *scratch; /* aligned to 8 bytes, at least IQ_CUDA_MOMENTS_LEAST bytes; with more, long tensors take fewer launches */
    size_t scratch_bytes;
} iq_cuda_moments_t;

#define IQ_CUDA_MOMENTS_LEAST 48

typedef enum iq_cuda_rescaling {
    IQ_CUDA_CLOSE_NORM, /* iq_round_squares of moments */
    IQ_CUDA_CLOSE_CLIP, /* iq_clipped_scale of moments */
    IQ_CUDA_OPEN_NORM,  /* square roots */
    IQ_CUDA_SHARE_STEP  /* iq_share_step of maxima */
} iq_cuda_rescaling_t;

/* What is made of scales where they lie: `buckets` of them, of `bucket` elements each but for the last; 0: all `count`. */
typedef struct iq_cuda_rescale {
    iq_cuda_rescaling_t kind;
    float *scales;
    size_t buckets, bucket, count;
    float clip;
    int32_t share;
} iq_cuda_rescale_t;

/*
 * Codes of powers of two (kernels/exponent_math.h) from VALUES to CODES or into SUMS, from CODES into SUMS or to VALUES, from SUMS to CODES or
 * VALUES. SUMS are those of codec/exponential.c: [contributions, u16][code or none] * slots for each element.
 */
typedef struct iq_cuda_exponent {
    iq_cuda_form_t from, to;
    isgq_data_type_t type; /* of values */
    const void *src;
    void *dst;
    bool accumulate;       /* to VALUES: added in their type */
    bool starts;           /* into SUMS: nothing is in them yet */
    const float *scales;   /* [buckets] from that of element `first` on */
    bool foreign_scales;   /* they came in a message: negative or NaN is a fault */
    unsigned bits, slots;
    uint32_t head;         /* powers above the largest contribution */
    uint32_t least;        /* CODES: a smaller exponent is a fault */
    uint32_t parts;        /* into SUMS: contributions of a code */
    double largest_of_one; /* to VALUES: what the largest code stands for under a scale of 1 */
    uint32_t stream, rank; /* of VALUES that become codes */
    uint64_t seed, call;
    const uint32_t *replays;
    uint64_t first;
    size_t bucket, count;
    uint32_t *fault;
} iq_cuda_exponent_t;

typedef enum iq_cuda_feedback_step {
    IQ_CUDA_ADD_RESIDUAL, /* output = gradient + a part of residual, which loses that part */
    IQ_CUDA_KEEP_ERROR,   /* residual += input - decoded; their squares to the state's sums */
    IQ_CUDA_SETTLE_ERROR, /* residual += weight * (input - decoded) */
    IQ_CUDA_TAKE_ESTIMATE /* the call is over: the state's sums become part of its mean */
} iq_cuda_feedback_step_t;

/* Error feedback (kernels/feedback_math.h) in a span of `count` elements, of which the first `corrected` have a residual. */
typedef struct iq_cuda_feedback {
    iq_cuda_feedback_step_t step;
    isgq_data_type_t type; /* of the gradient */
    const void *gradient;
    const float *input, *decoded;
    float *output;         /* may be the gradient, if that is f32 */
    float *residual;
    float weight;
    bool weighted;         /* the part is that of the state's mean; else all of it */
    struct iq_feedback_state *state; /* device memory */
    size_t count, corrected;
} iq_cuda_feedback_t;

typedef struct iq_cuda_module {
    iq_module_t module;

    /* ---- devices ---- */

    /* At least one; ISGQ_ERR_UNSUPPORTED with the reason if this machine has no usable GPU or driver. */
    isgq_result_t (*devices)(int *count);
    isgq_result_t (*describe)(int device, iq_cuda_device_t *description);
    isgq_result_t (*current)(int *device);
    isgq_result_t (*use)(int device); /* makes it the calling thread's current device */

    /* Has the calling thread a CUDA context? Makes none; false where that cannot be known. */
    bool (*in_use)(void);

    /* Load every kernel now: a first launch that loads code could wait for streams that wait for this rank. Once per communicator. */
    isgq_result_t (*warm_up)(int device);

    /* Where memory lies; *device is -1 for host memory. `from` is the device that asks, -1 for the current one. */
    isgq_result_t (*locate)(int from, const void *pointer, iq_cuda_place_t *place, int *device);

    /* ---- memory ---- */

    isgq_result_t (*alloc)(int device, isgq_stream_t stream, size_t bytes, void **memory); /* 256-byte aligned; usable at once */
    void (*release)(int device, isgq_stream_t stream, void *memory);                       /* when the stream gets there */
    isgq_result_t (*pin)(int device, void *memory, size_t bytes); /* host memory: kernels use it under the same address */
    void (*unpin)(void *memory);

    /* ---- order ---- */

    isgq_result_t (*stream_create)(int device, isgq_stream_t *stream); /* of the highest priority, apart from the default stream */
    void (*stream_destroy)(int device, isgq_stream_t stream);          /* after what is enqueued */
    isgq_result_t (*stream_capturing)(int device, isgq_stream_t stream, bool *capturing);
    isgq_result_t (*event_create)(int device, iq_cuda_event_t *event);
    void (*event_destroy)(int device, iq_cuda_event_t event);
    isgq_result_t (*event_record)(int device, iq_cuda_event_t event, isgq_stream_t stream);
    isgq_result_t (*event_poll)(int device, iq_cuda_event_t event); /* ISGQ_SUCCESS, ISGQ_IN_PROGRESS or a failure of earlier work */

    /* What is enqueued on `stream` later starts after the event; or after (int32_t)(*word - value) >= 0, `word` in pinned memory. */
    isgq_result_t (*wait_event)(int device, isgq_stream_t stream, iq_cuda_event_t event);
    isgq_result_t (*await)(int device, isgq_stream_t stream, uint32_t *word, uint32_t value);

    /* ---- between ranks ---- */

    /* Operations done one after another when the stream gets there. What it did before is visible to hosts and other devices before a state is; a
     * capture takes them into its graph. At most IQ_CUDA_FLAG_OPS. */
    isgq_result_t (*flags)(int device, isgq_stream_t stream, const iq_cuda_flag_op_t *ops, unsigned count);

    /* Device memory that other processes may open. These may wait for the whole device: for communicators that are made or ended. */
    isgq_result_t (*shared_alloc)(int device, size_t bytes, void **memory); /* 256-byte aligned, zeroed */
    void (*shared_free)(int device, void *memory);
    isgq_result_t (*shared_export)(int device, void *memory, iq_cuda_handle_t *handle);
    isgq_result_t (*shared_open)(int device, const iq_cuda_handle_t *handle, void **memory); /* not in the process that exported it */
    void (*shared_close)(int device, void *memory);

    /* From now on kernels on `device` may use memory of `other` that this process allocated; ISGQ_ERR_UNSUPPORTED if they cannot. */
    isgq_result_t (*reach)(int device, int other);

    /* ++*replays, device memory, when the stream gets there. */
    isgq_result_t (*advance)(int device, isgq_stream_t stream, uint32_t *replays);

    /* ---- data: enqueued ---- */

    isgq_result_t (*copy)(int device, isgq_stream_t stream, void *dst, const void *src, size_t bytes); /* any places */
    isgq_result_t (*clear)(int device, isgq_stream_t stream, void *dst, size_t bytes);

    /* ---- arithmetic: enqueued ---- */

    /* scales[b] = max(scales[b], largest |value| in bucket b), +Inf for NaN and Inf. source: VALUES, or SUMS as values. */
    isgq_result_t (*measure)(int device, isgq_stream_t stream, const iq_cuda_source_t *source, uint64_t first, size_t bucket, size_t count,
                             float *scales);
    isgq_result_t (*map)(int device, isgq_stream_t stream, const iq_cuda_map_t *map);
    isgq_result_t (*reduce)(int device, isgq_stream_t stream, const iq_cuda_reduce_t *reduce);
    isgq_result_t (*divide)(int device, isgq_stream_t stream, const iq_cuda_divide_t *divide);
    isgq_result_t (*product)(int device, isgq_stream_t stream, const iq_cuda_product_t *product);
    isgq_result_t (*convert)(int device, isgq_stream_t stream, const iq_cuda_convert_t *convert);
    isgq_result_t (*combine)(int device, isgq_stream_t stream, const iq_cuda_combine_t *combine);
    const iq_cuda_factor_table_t *factor;
    isgq_result_t (*moments)(int device, isgq_stream_t stream, const iq_cuda_moments_t *moments);
    isgq_result_t (*rescale)(int device, isgq_stream_t stream, const iq_cuda_rescale_t *rescale);
    const iq_cuda_level_table_t *level;
    isgq_result_t (*feedback)(int device, isgq_stream_t stream, const iq_cuda_feedback_t *feedback);
    isgq_result_t (*exponent)(int device, isgq_stream_t stream, const iq_cuda_exponent_t *exponent);
} iq_cuda_module_t;

#endif
