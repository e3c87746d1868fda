/* SPDX-License-Identifier: Apache-2.0 */
/* The rule by which shared scales are guessed: see predict.h. */
#include "core/predict.h"

#include "base/util.h"

#include <float.h>
#include <math.h>

#define MARGIN 1.25f
#define DECAY 0.9f  /* of levels, a call */
#define FLOOR 0.5   /* of the root mean square of levels */
#define MOST_FAILURES 6 /* waits of 63 calls */
#define TOO_WIDE 4.0

void iq_prediction_forget(iq_prediction_t *prediction)
{
    prediction->known = false;
    prediction->failures = prediction->waits = 0;
}

bool iq_prediction_due(iq_prediction_t *prediction)
{
    if (!prediction->known)
        return false;
    if (prediction->waits == 0)
        return true;
    prediction->waits--;
    return false;
}

void iq_prediction_guess(const iq_prediction_t *prediction, size_t buckets, float most, float *guess)
{
    double squares = 0.0;
    for (size_t b = 0; b < buckets; b++)
        squares += (double)prediction->levels[b] * (double)prediction->levels[b];
    float least = (float)(FLOOR * sqrt(squares / (double)iq_max(buckets, 1)));
    for (size_t b = 0; b < buckets; b++) {
        float level = prediction->levels[b] > least ? prediction->levels[b] : least, value = MARGIN * level;
        guess[b] = value <= most ? value : most;
    }
}

void iq_prediction_compare(iq_verdict_sums_t *sums, float guess, float seen, float agreed)
{
    sums->beyond |= !(seen <= guess);
    sums->guessed += (double)guess * (double)guess;
    sums->agreed += (double)agreed * (double)agreed;
}

bool iq_prediction_too_wide(const iq_verdict_sums_t *sums) { return sums->guessed > TOO_WIDE * sums->agreed; }

/* What is not finite is no level. */
static float next_level(float before, float seen)
{
    float decayed = DECAY * before;
    return !(seen <= FLT_MAX) ? before : seen > decayed ? seen : decayed;
}

void iq_prediction_learn(iq_prediction_t *prediction, size_t buckets, const float *seen)
{
    iq_verdict_sums_t sums = {0};
    for (size_t b = 0; b < buckets; b++) {
        prediction->levels[b] = next_level(prediction->known ? prediction->levels[b] : 0.0f, seen[b]);
        iq_prediction_compare(&sums, MARGIN * prediction->levels[b], seen[b], seen[b]);
    }
    for (size_t b = 0; b < buckets && iq_prediction_too_wide(&sums); b++) /* what was is over */
        prediction->levels[b] = seen[b] <= FLT_MAX ? seen[b] : prediction->levels[b];
    prediction->known = true;
}

void iq_prediction_count(iq_prediction_t *prediction, bool stands)
{
    if (stands) {
        prediction->failures -= prediction->failures > 0;
        return;
    }
    prediction->failures += prediction->failures < MOST_FAILURES;
    prediction->waits = (1u << prediction->failures) - 1;
}
