/* SPDX-License-Identifier: Apache-2.0 */
/*
 * isgq_perf's parts: what is measured (iq_perf_case_t), the input data, the calls, the checks, the report.
 */
#ifndef ISGQ_PERF_PERF_H
#define ISGQ_PERF_PERF_H

#include "tools/common/json.h"
#include "tools/common/names.h"
#include "tools/common/table.h"

#include "isgqcoll.h"
#include "isgqcoll_ext.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum iq_perf_collective {
    IQ_PERF_ALLREDUCE,
    IQ_PERF_FACTORED,
    IQ_PERF_REDUCE_SCATTER,
    IQ_PERF_ALLGATHER,
    IQ_PERF_BROADCAST,
    IQ_PERF_COLLECTIVES
} iq_perf_collective_t;

extern const char *const iq_perf_collective_names[IQ_PERF_COLLECTIVES + 1]; /* ends with NULL */

/* Settings of the whole run. */
typedef struct iq_perf_setup {
    isgq_comm_t comm;
    int rank, nranks;
    size_t warmup, iterations, calls; /* calls: back to back in one timed iteration */
    size_t misalign;                  /* bytes */
    bool in_place, library_memory, bias;
    bool device; /* calls work on device memory; library_memory is set */
    char device_name[128];
    int root;
    uint64_t seed;
    isgq_quantizer_t none; /* for the program's own exchanges */
    size_t bound_bytes;    /* that every rank copies for B; a power of two */
    double bound_gbs;      /* B, GB/s */
} iq_perf_setup_t;

/* One row of the table. */
typedef struct iq_perf_case {
    iq_perf_collective_t collective;
    const iq_type_name_t *type;
    isgq_red_op_t op;
    const char *op_name; /* "none" where there is no reduction */
    isgq_quantizer_t quantizer;
    const char *quantizer_typed; /* as the user wrote it */
    const char *quantizer_text;  /* canonical */
    const char *algorithm;       /* NULL: the library's choice */
    size_t count;                /* the call's count argument */
    size_t bytes;                /* a rank's input; factored: the gradient that the call stands for */
    size_t rows, m, n;           /* factored */
    bool lossless;               /* the result is the exact one */
} iq_perf_case_t;

typedef struct iq_perf_result {
    double time_us, p99_us;
    double nmse;
    uint64_t wire_bytes; /* most over ranks */
    uint64_t wrong;
    uint64_t hash;
    bool hashes_differ;
    isgqx_call_record_t record; /* this rank's */
} iq_perf_result_t;

/* ---- perf_data.c ---- */

/*
 * Input data: a pure function of (seed, rank, element), so that any rank can make any rank's input. Exact data are small integers
 * (floats: times 2^-3) whose reduction is exactly representable in the type. Real data are bell-shaped, |x| <= IQ_PERF_REAL_MAX.
 */
#define IQ_PERF_REAL_MAX 3.5

typedef struct iq_perf_source {
    uint64_t seed;
    const iq_type_name_t *type;
    isgq_red_op_t op; /* ISGQ_MAX also where nothing is reduced */
    bool real;
    int nranks;
} iq_perf_source_t;

/* values[i] = element first + i of that rank's input. */
void iq_perf_values(const iq_perf_source_t *source, int rank, size_t first, size_t count, double *values);

/* Between doubles and elements of a type; store rounds to nearest even. */
void iq_perf_store(isgq_data_type_t type, const double *values, size_t count, void *elements);
void iq_perf_load(isgq_data_type_t type, const void *elements, size_t count, double *values);

/* Round values to what the type can hold. */
void iq_perf_round(isgq_data_type_t type, double *values, size_t count);

/* A number in [0, 1): a function of both arguments. */
double iq_perf_uniform(uint64_t seed, uint64_t number);

/* ---- perf_promise.c ---- */

/* Random numbers in [0, 1), one after the other. */
typedef struct iq_perf_dice {
    uint64_t seed, rolled;
} iq_perf_dice_t;

double iq_perf_roll(iq_perf_dice_t *dice);

struct iq_perf_grid;

/* Round a bucket in place, by levels of its own. */
typedef void (*iq_perf_round_fn)(const struct iq_perf_grid *grid, iq_perf_dice_t *dice, double *values, size_t count);

/* How the values of each bucket are rounded, as docs/numerics.md defines it: to a uniform grid unless `round` says otherwise. */
typedef struct iq_perf_grid {
    unsigned bits; /* 0: not at all */
    size_t levels; /* of the uniform grid, on one side; 0: as many as the bits hold */
    size_t bucket; /* 0: the tensor */
    bool nearest, shared;
    bool again;        /* the sum is rounded once more */
    bool l2;           /* scales are Euclidean norms, not maxima: of all ranks' values together where they are shared */
    bool power_of_two; /* scales are the first power of two above the maximum */
    double clip;       /* a rank's scale is at most so many standard deviations; 0: no limit */
    double smallest;   /* powers of two from so much of the scale on, which sums are rounded to, too; 0: a uniform grid */
    iq_perf_round_fn round;
    bool fixed;   /* round: nothing in it is random */
    double reach; /* round: |rounded value| is at most so many times the largest magnitude */
} iq_perf_grid_t;

/*
 * What a quantizer promises of every element where `parts` values x_r with |x_r| <= max are added (perf/README.md has the
 * derivation):   |result - exact| <= relative * sum |x_r| + step * max + absolute
 */
typedef struct iq_perf_promise {
    int parts;
    double relative, step, absolute;
    iq_perf_grid_t grid;
    double nmse; /* of the whole, instead of what a grid makes; 0: none */
} iq_perf_promise_t;

/* A factored case: of the dense call on the ranks' own products. `algorithm` is the one that ran. */
iq_perf_promise_t iq_perf_promise(const iq_perf_case_t *test, const char *algorithm, int nranks);

/* ---- perf_levels.c: the grid of a family with levels of its own; false if it is none of them ---- */
bool iq_perf_levels(const char *recipe, iq_perf_grid_t *grid);

/* The best levels for a normal distribution of variance 1, 2^(bits-1) of either sign: the one that is nearest. 1 <= bits <= 4. */
double iq_perf_normal_level(unsigned bits, double value);

/* A power of two at random and right in the mean, or zero instead of anything below the smallest. */
double iq_perf_power(double value, double smallest, double random);

/* One value on the grid of a bucket with that scale; random in [0, 1). */
double iq_perf_round_to(const iq_perf_grid_t *grid, double value, double max, double random);

/* Elements of the tensor that a case's call works on. */
double iq_perf_case_elements(const iq_perf_case_t *test, int nranks);

/* The recipe for one kind ("dense=", "factored=") of call, or the whole text; a number in it. */
void iq_perf_recipe(const char *text, const char *kind, char *recipe, size_t bytes);
double iq_perf_setting(const char *recipe, const char *key, double otherwise);

/* The error that a factored call is to have, or 0. */
double iq_perf_promised_nmse(const char *quantizer_text);

/* Half the spacing of the type's values around 1. */
double iq_perf_unit_roundoff(isgq_data_type_t type);

/* ---- perf_tally.c ---- */

typedef struct iq_perf_sums {
    double wrong, error, norm, shift, elements; /* shift: sum of error * exact */
    double model_error, model_shift, model_spread;
} iq_perf_sums_t;

typedef struct iq_perf_tally {
    iq_perf_promise_t promise;
    iq_perf_dice_t dice;
    double total; /* elements of the tensor */
    iq_perf_sums_t sums;
} iq_perf_tally_t;

/* Elements of a tensor: what was summed and what came out. */
typedef struct iq_perf_block {
    double *values; /* [parts][stride], the model works in place */
    size_t stride, count;
    const double *got;
    double divisor;   /* of the sum */
    double max;       /* of |values| */
    double least_max; /* of every bucket: what else may be in it */
} iq_perf_block_t;

iq_perf_tally_t iq_perf_tally_open(const iq_perf_setup_t *setup, const iq_perf_case_t *test, const char *algorithm);

/* A good size for blocks: scales of whole tensors are taken from one block. */
size_t iq_perf_block_elements(int parts);

void iq_perf_tally_add(iq_perf_tally_t *tally, const iq_perf_block_t *block);

/* All ranks' tallies together: how much is wrong. */
uint64_t iq_perf_tally_close(const iq_perf_setup_t *setup, iq_perf_tally_t *tally, isgq_data_type_t type, double *nmse);

/* ---- perf_bound.c ---- */

/* The bound B: every rank copies a buffer of its own, where calls work, at the same time; slowest rank, median. GB/s. */
double iq_perf_copy_bound(const iq_perf_setup_t *setup);

/* ---- perf_noise.c: what error a factored quantizer's definition makes expected ---- */

typedef struct iq_perf_noise {
    double gradient, bias; /* expected squared error, at most */
    double least_x;        /* the least squared norm of a row of X, plus 1 */
    double draws;          /* of about so many independent decisions */
    bool only_rounding;    /* all rows are sent */
} iq_perf_noise_t;

/* Add one rank's factors, x [rows x m] and delta [rows x n]. */
void iq_perf_noise_add(iq_perf_noise_t *noise, const iq_perf_case_t *test, bool bias, const double *x, const double *delta);

/* ---- perf_centers.c: isgq-mse and isgq-mvu ---- */

/* The Lloyd-Max levels that a quantizer with a fit of levels to the gradient starts from: x and delta in place. False: it is another. */
bool iq_perf_centers(const iq_perf_case_t *test, double *x, double *delta);

/* ---- perf_run.c ---- */

/* Seconds of a clock that only goes forward. */
double iq_perf_now(void);

/* Wait for the queued calls, or end the program. */
void iq_perf_synchronize(const iq_perf_setup_t *setup, const char *what);

void iq_perf_barrier(const iq_perf_setup_t *setup);

/* A copy between host memory and where calls work, or within either; finished on return. */
void iq_perf_copy(const iq_perf_setup_t *setup, void *to, const void *from, size_t bytes);

/* Memory of the communicator (isgq_mem_free), or the end of the program. */
void *iq_perf_memory(const iq_perf_setup_t *setup, size_t bytes);

/* Gather `count` numbers of 8 bytes from every rank: all[nranks * count]. Here and below: in host memory. */
void iq_perf_gather(const iq_perf_setup_t *setup, isgq_data_type_t type, const void *own, size_t count, void *all);

/* Exact sum, or maximum, over ranks; in place. */
void iq_perf_combine(const iq_perf_setup_t *setup, isgq_red_op_t op, double *values, size_t count);

/* Time one dense or factored case and check it. ISGQ_ERR_UNSUPPORTED and ISGQ_ERR_INVALID_ARGUMENT come back, other failures
 * end the program. */
isgq_result_t iq_perf_run(const iq_perf_setup_t *setup, const iq_perf_case_t *test, iq_perf_result_t *result);

/* ---- perf_check.c, perf_factored.c: one delivered result, in host memory, against the exact one; fills nmse and wrong ---- */

void iq_perf_check(const iq_perf_setup_t *setup, const iq_perf_case_t *test, const void *delivered, iq_perf_result_t *result);

/* perf_low_rank.c: the same where the call was PowerSGD's and began with a new tensor; else false. */
bool iq_perf_check_low_rank(const iq_perf_setup_t *setup, const iq_perf_case_t *test, const void *delivered, iq_perf_result_t *result);

/* Input of one rank, as doubles: x [rows x m], delta [rows x n]. */
void iq_perf_factors(const iq_perf_setup_t *setup, const iq_perf_case_t *test, int rank, double *x, double *delta);

/* `bias` may be NULL. Reads result->record: a call may have been done densely. */
void iq_perf_check_factored(const iq_perf_setup_t *setup, const iq_perf_case_t *test, const void *grad, const void *bias,
                            iq_perf_result_t *result);

/* Source of a dense case's input. */
iq_perf_source_t iq_perf_case_source(const iq_perf_setup_t *setup, const iq_perf_case_t *test);

/* ---- perf_report.c ---- */

/* `file`: NULL on ranks that print no table. */
void iq_perf_report_head(iq_table_t *table, const iq_perf_setup_t *setup, FILE *file, int quantizer_width);
void iq_perf_report_row(iq_table_t *table, iq_json_t *json, const iq_perf_setup_t *setup, const iq_perf_case_t *test,
                        const iq_perf_result_t *result);

#endif
