/* SPDX-License-Identifier: Apache-2.0 */
/*
 * isgq_tune's parts: calls and loops timed (tune_measure.c), and the numbers of a tuning table found from such times (tune_fit.c).
 */
#ifndef ISGQ_TOOLS_TUNE_H
#define ISGQ_TOOLS_TUNE_H

#include "isgqcoll.h"
#include "isgqcoll_ext.h"

#include <stdbool.h>
#include <stddef.h>

#define IQ_TUNE_SIZES 16

/* ---- tune_fit.c ---- */

/* Median times of one call at several sizes, and the line through them. */
typedef struct iq_tune_line {
    size_t count;
    double bytes[IQ_TUNE_SIZES], seconds[IQ_TUNE_SIZES];
    double alpha, beta; /* seconds; seconds a byte: time = alpha + beta * bytes */
} iq_tune_line_t;

/* Least squares, an error weighed by the time it is an error of: between absolute and relative ones. Relative errors would believe small calls,
 * which a token bucket of a network lets pass at once. Neither number falls below 0. */
void iq_tune_fit(iq_tune_line_t *line);

/*
 * Latencies and rates of links, from allreduces of values among the ranks of a host (NULL: there is one) and across hosts, one rank of each, in
 * all ranks at once (NULL: one host). The table has the rates of copies and sums. Where calls take less time than copies and sums would at these
 * rates, they are raised: the calls are what is to be predicted.
 */
void iq_tune_links(isgqx_tuning_t *tuning, const iq_tune_line_t *inside, const iq_tune_line_t *across);

/* How many times as fast as they were timed alone codes are in a call that took so long, where the model says `coded`, and `uncoded` without them:
 * slower where ranks wait for each other, faster where the wire hides part of them. */
double iq_tune_speedup(double seconds, double coded, double uncoded);

/* Multiplications per second, from factored calls of rows x side x side: codes take as long as sides say, products as their squares. */
double iq_tune_product(double rows, const double sides[2], const double seconds[2]);

/* Zeros become the nearest number that is none; there is one. */
void iq_tune_fill(double *values, size_t count);

/* Sorts. */
double iq_tune_median(double *values, size_t count);

/* ---- tune_measure.c ---- */

typedef struct iq_tune {
    isgq_comm_t comm;  /* all ranks */
    int rank, nranks;
    size_t iterations;
} iq_tune_t;

/* Median over iterations, fewer where one is long, of the slowest rank's allreduce, of a communicator that this rank belongs to, while all others
 * do theirs. */
double iq_tune_allreduce(const iq_tune_t *tune, isgq_comm_t part, size_t bytes, isgq_quantizer_t quantizer);

/* The same of several quantizers in turn, so that what disturbs one disturbs the others. */
void iq_tune_turns(const iq_tune_t *tune, size_t bytes, const char *const *quantizers, size_t count, double *seconds);

/* The same of local work, while all ranks do it: bytes of f32 per second. */
double iq_tune_copy_rate(const iq_tune_t *tune, size_t bytes);
double iq_tune_sum_rate(const iq_tune_t *tune, size_t bytes);

/* Of a factored call of one rank. */
double iq_tune_factored(const iq_tune_t *tune, isgq_comm_t alone, size_t rows, size_t side, const char *quantizer);

/* False: the quantizer has no codes to time. */
bool iq_tune_codec(const iq_tune_t *tune, size_t bytes, isgq_quantizer_t quantizer, isgqx_tuned_codec_t *codec);

#endif
