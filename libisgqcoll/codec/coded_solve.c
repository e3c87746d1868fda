/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From what ranks agreed on to the plan of the call: see coded.h. Every rank computes this from the same numbers by the same
 * additions, multiplications and square roots, so all conclude the same.
 *
 * With step s each rank's codes err by a variance of s^2/6 an element at most, and stratified rounding makes their sum err by
 * less than the sum of that. The owner of a block rounds the sum of codes to multiples of k, which errs by (k^2 - 1)/12 s^2 at
 * most and saves log2 k bits on the way back. For a given k the budget decides on s; the k with the best result wins. k = 1 is
 * the exact sum.
 */
#include "codec/coded_math.h"
#include "codec/coded_predict.h"

#include <math.h>
#include <string.h>

/* ---- choosing ---- */

/* No code may pass 2^26, nor may a sum of them. */
static double least_step(const iq_coded_view_t *view) { return fmax(view->most * 0x1p-26, 0x1p-120); }

static double most_step(const iq_coded_view_t *view) { return fmax(view->most * 32.0, least_step(view)); }

/* 2^x for small x. */
static double power_of_2(double x)
{
    double whole = floor(x), part = (x - whole) * 0.69314718055994531, sum = 1.0, term = 1.0;
    for (int i = 1; i <= 12; i++) {
        term *= part / i;
        sum += term;
    }
    return sum * iq_exp2_whole((int)whole);
}

/* Where headers are most of a short tensor's messages, codes get this part of the budget all the same. */
#define LEAST_PART 0.6

static double bits_to_spend(const iq_coded_view_t *view)
{
    double budget = view->codec->budget_bits;
    return fmax(budget, LEAST_PART * budget + view->fixed_bits);
}

/* The step with which k spends what may be spent. Bits fall with the step, by a little less than a bit an octave. */
static void meet_bits(const iq_coded_view_t *view, double k, double start, iq_coded_outcome_t *outcome)
{
    double low = least_step(view), high = most_step(view), step = fmin(fmax(start, low), high), budget = bits_to_spend(view);
    for (int turn = 0; turn < 16; turn++) {
        iq_coded_evaluate(view, step, k, outcome);
        double over = outcome->bits - budget;
        if ((over < 0.004 && over > -0.004) || !(high > low * 1.0005))
            return;
        *(over > 0.0 ? &low : &high) = step;
        double next = step * power_of_2(over > 8.0 ? 8.0 : over < -8.0 ? -8.0 : over * 1.15);
        step = next > low && next < high ? next : sqrt(low * high);
    }
}

/* The same for an error. It grows with the square of the step. */
static void meet_error(const iq_coded_view_t *view, double k, double start, iq_coded_outcome_t *outcome)
{
    double low = least_step(view), high = most_step(view), step = fmin(fmax(start, low), high);
    double budget = view->codec->budget_nmse * view->sum_squares;
    for (int turn = 0; turn < 16; turn++) {
        iq_coded_evaluate(view, step, k, outcome);
        double part = outcome->error / budget;
        if ((part < 1.0 && part > 0.98) || !(high > low * 1.0005))
            return;
        *(part > 1.0 ? &high : &low) = step;
        double next = step / sqrt(part > 0.0 ? part * 1.01 : 0.25);
        step = next > low && next < high ? next : sqrt(low * high);
    }
}

static bool is_better(const iq_coded_view_t *view, const iq_coded_outcome_t *a, const iq_coded_outcome_t *b)
{
    return view->codec->budget_bits > 0.0 ? a->error < b->error : a->bits < b->bits;
}

static iq_coded_outcome_t choose(const iq_coded_view_t *view)
{
    iq_coded_outcome_t best, next;
    double start = sqrt(view->rank_squares), k = 1.0, most = 4.0 * sqrt(view->nranks) + 1.0;
    bool bits = view->codec->budget_bits > 0.0;
    (bits ? meet_bits : meet_error)(view, k, start, &best);
    for (int worse = 0; k < most && worse < 2 && view->nranks > 1.5;) {
        k = k < 6.0 ? k + 1.0 : floor(k * 1.25);
        (bits ? meet_bits : meet_error)(view, k, best.step * sqrt(best.k / k), &next);
        worse++;
        if (is_better(view, &next, &best)) {
            best = next;
            worse = 0;
        }
    }
    return best;
}

/* Steps may be larger than any value, but not than an f32, which would say that some rank has NaN. */
static float step_of(double step) { return (float)fmin(step, 0x1p126); }

/* Where one point is all that is known: a rank's codes take what the budget says, and the sum is exact; or errors add up as if nothing
 * cancelled, and so do values. */
static iq_coded_plan_t fixed_rule(const iq_coded_view_t *view)
{
    bool bits = view->codec->budget_bits > 0.0 && view->own.count > 0;
    double step = bits ? power_of_2(view->own.step[0]) : sqrt(6.0 * view->codec->budget_nmse * view->rank_squares);
    return (iq_coded_plan_t){.step = step_of(fmin(fmax(step, least_step(view)), most_step(view))), .merge = 1.0f};
}

void iq_coded_open_scales(const iq_codec_t *codec, const iq_codec_call_t *call, size_t count, float *scales)
{
    iq_coded_view_t view;
    iq_coded_layout_t layout = iq_coded_layout(codec, count);
    iq_coded_plan_t plan = {.merge = 1.0f};
    iq_coded_make_view(&view, codec, call, &layout, count, scales);
    if (iq_not_finite(scales[IQ_CODED_MAX])) {
        plan.step = iq_bits_float(0x7fc00000u);
    } else if (scales[IQ_CODED_WEIGHT] > 0.0f && view.own.count > 1) {
        iq_coded_outcome_t best = choose(&view);
        plan = (iq_coded_plan_t){step_of(best.step), (float)best.k, (float)best.mend_own, (float)best.mend_result};
    } else if (scales[IQ_CODED_WEIGHT] > 0.0f) {
        plan = fixed_rule(&view);
    }
    memcpy(scales, &plan, sizeof(plan));
}
