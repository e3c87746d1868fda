/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared scales guessed from a tensor's earlier calls: the rule, apart from messages. All it looks at is equal on all ranks, so all ranks guess
 * and judge alike.
 *
 *   level    of a bucket: the largest magnitude over all ranks of the last call, or that of calls before, decaying
 *   guess    level * margin, but no less than a part of the root mean square of all levels: small buckets jump most
 *   verdict  what ranks would have agreed on is known when the call's data have arrived. A value beyond the guess, NaN or Inf: repair.
 *            Squares of the guess that add up to over four times those of what would have been agreed: more than one bit of each
 *            code was wasted, repair. Else the call stands.
 *   waiting  after k repairs in a row (those that stood in between count against them) 2^k - 1 calls agree as if nothing were known
 */
#ifndef ISGQ_CORE_PREDICT_H
#define ISGQ_CORE_PREDICT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a tensor remembers for it. */
typedef struct iq_prediction {
    float *levels;     /* [bucket], for buckets of 32 and more; NULL before the first call that may be predicted */
    bool known;        /* levels are of a call */
    uint32_t failures; /* in a row, see above */
    uint32_t waits;    /* calls to come that agree */
} iq_prediction_t;

/* As if there had been no call. The buffer stays. */
void iq_prediction_forget(iq_prediction_t *prediction);

/* A call is about to begin: is it predicted? Asked once for each. */
bool iq_prediction_due(iq_prediction_t *prediction);

/* No guess is above `most`. */
void iq_prediction_guess(const iq_prediction_t *prediction, size_t buckets, float most, float *guess);

/* A bucket after the other: what was guessed, what was there, what would have been agreed on. Start with zeros. */
typedef struct iq_verdict_sums {
    bool beyond;           /* some value is beyond the guess */
    double guessed, agreed; /* sums of squares */
} iq_verdict_sums_t;

void iq_prediction_compare(iq_verdict_sums_t *sums, float guess, float seen, float agreed);
bool iq_prediction_too_wide(const iq_verdict_sums_t *sums);

/* The call's maxima are known, whether it was predicted (`stands` says how that went) or not. */
void iq_prediction_learn(iq_prediction_t *prediction, size_t buckets, const float *seen);
void iq_prediction_count(iq_prediction_t *prediction, bool stands);

#endif
