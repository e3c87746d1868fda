/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From what ranks agreed on to the plan of the call: see coded.h. Every rank computes this from the same numbers by the same additions,
 * multiplications and square roots, so all conclude the same.
 *
 * With step s each rank's codes err by a variance of s^2/6 an element at most, and stratified rounding makes their sum err by less than the sum
 * of that. The owner of a block rounds the sum of codes to multiples of k, which errs by (k^2 - 1)/12 s^2 at most and saves log2 k bits on the way
 * back. For a given k the budget decides on s; the k with the best result wins. k = 1 is the exact sum.
 */
#include "base/util.h"
#include "codec/coded.h"
#include "codec/coded_math.h"
#include "codec/coded_message.h"

#include <math.h>
#include <string.h>

/* Steps that a curve is known for. */
enum { KNOTS = 40 };

typedef struct curve {
    size_t count;
    double step[KNOTS], rate[KNOTS], noise[KNOTS]; /* log2 of steps, falling; rates rise */
} curve_t;

/* What all ranks know. */
typedef struct view {
    const iq_codec_t *codec;
    const iq_codec_call_t *call;
    const iq_coded_layout_t *layout;
    const float *agreed;
    double nranks, count;
    double most;         /* no sum is larger */
    double rank_squares; /* mean square of a rank's elements */
    double sum_squares;  /* and of the sum's */
    double zeros;        /* share of zeros */
    double fixed_bits;   /* what the agreement and headers take, an element of one phase */
    double like;          /* how alike ranks are: 0 as strangers, 1 the same */
    curve_t own, compared; /* rates of a rank's tensor; and of its samples (curves), or if it were normally distributed (points) */
} view_t;

/* What a choice of step and k comes to. */
typedef struct outcome {
    double step, k;
    double bits;  /* an element, mean of both phases, everything counted */
    double error; /* mean square, of the sum */
    double mend_own, mend_result;
} outcome_t;

/* ---- curves ---- */

static double between(const double *y, const double *x, size_t count, size_t i, double at)
{
    double h = x[i + 1] - x[i], t = h != 0.0 ? (at - x[i]) / h : 0.0, slope = y[i + 1] - y[i];
    /* slopes at both ends as those of the parabola through three knots, so that the curve is smooth */
    double before = i > 0 ? (y[i + 1] - y[i - 1]) / (x[i + 1] - x[i - 1]) * h : slope;
    double after = i + 2 < count ? (y[i + 2] - y[i]) / (x[i + 2] - x[i]) * h : slope;
    double u = 1.0 - t;
    return y[i] * u * u * (1.0 + 2.0 * t) + y[i + 1] * t * t * (3.0 - 2.0 * t) + before * t * u * u - after * t * t * u;
}

/* The interval of falling x that holds `at`, or the nearest. */
static size_t interval(const double *x, size_t count, double at)
{
    size_t i = 0;
    while (i + 2 < count && x[i + 1] > at)
        i++;
    return i;
}

/* Rate at log2 step. Beyond the knots: a bit an octave below, ever less above. */
static double rate_at(const curve_t *curve, double step)
{
    size_t last = curve->count - 1;
    if (step <= curve->step[last])
        return curve->rate[last] + curve->step[last] - step;
    if (step >= curve->step[0])
        return curve->rate[0] / (1.0 + (step - curve->step[0]));
    return between(curve->rate, curve->step, curve->count, interval(curve->step, curve->count, step), step);
}

static double noise_at(const curve_t *curve, double step)
{
    size_t last = curve->count - 1;
    if (step <= curve->step[last])
        return curve->noise[last];
    if (step >= curve->step[0])
        return curve->noise[0] / (1.0 + (step - curve->step[0]));
    return between(curve->noise, curve->step, curve->count, interval(curve->step, curve->count, step), step);
}

/* log2 of the step at which the rate is this. */
static double step_of_rate(const curve_t *curve, double rate)
{
    size_t i = 0, last = curve->count - 1;
    if (rate <= curve->rate[0])
        return curve->step[0];
    if (rate >= curve->rate[last])
        return curve->step[last] - (rate - curve->rate[last]);
    while (i + 1 < last && curve->rate[i + 1] < rate)
        i++;
    double low = curve->step[i + 1], high = curve->step[i];
    for (int turn = 0; turn < 24; turn++) {
        double middle = (low + high) / 2;
        *(rate_at(curve, middle) > rate ? &low : &high) = middle;
    }
    return (low + high) / 2;
}

/* ---- the view ---- */

static void read_curves(view_t *view)
{
    const iq_coded_layout_t *layout = view->layout;
    float most = (float)view->most;
    int top = (int)(iq_float_bits(most) >> 23) + IQ_CODED_ABOVE;
    if (top > 254 + IQ_CODED_ABOVE)
        top = 254 + IQ_CODED_ABOVE;
    for (size_t i = 0; i < IQ_CODED_WINDOW; i++) {
        size_t slot = (size_t)(top - (int)i) % IQ_CODED_SLOTS;
        view->own.step[i] = view->compared.step[i] = top - (int)i - 127;
        view->own.rate[i] = (double)view->agreed[layout->rates + slot] / view->nranks;
        view->own.noise[i] = (double)view->agreed[layout->noises + slot] / view->nranks;
        view->compared.rate[i] = (double)view->agreed[layout->compared + slot] / view->nranks;
        if (i > 0) { /* where values are all the same rates fall in places */
            view->own.rate[i] = fmax(view->own.rate[i], view->own.rate[i - 1]);
            view->compared.rate[i] = fmax(view->compared.rate[i], view->compared.rate[i - 1]);
        }
    }
    view->own.count = view->compared.count = IQ_CODED_WINDOW;
}

static void read_points(view_t *view)
{
    const iq_coded_layout_t *layout = view->layout;
    double weight = (double)view->agreed[IQ_CODED_WEIGHT], rates[IQ_CODED_POINTS_MOST];
    iq_coded_point_rates(view->codec, layout->points, (size_t)view->count, rates);
    for (size_t i = 0; i < layout->points; i++) {
        double step = (double)view->agreed[layout->rates + i] / weight;
        if (i > 0 && step > view->own.step[i - 1] - 1e-3)
            break;
        view->compared.step[i] = layout->points > 1 ? (double)view->agreed[layout->compared + i] / weight : step;
        view->compared.rate[i] = rates[i] * weight / view->nranks;
        view->own.step[i] = step;
        view->own.rate[i] = rates[i] * weight / view->nranks; /* ranks without values have no rate */
        view->own.noise[i] = (double)view->agreed[layout->noises + i] / view->nranks;
        view->own.count = view->compared.count = i + 1;
    }
}

/* How many times larger the mean square of sums is than that of one rank's values, and the variance of this estimate, relatively. */
static double times_larger(const float *sums, size_t count, double one, double *variance)
{
    double squares = 0.0, fourths = 0.0;
    for (size_t i = 0; i < count; i++) {
        double square = (double)sums[i] * (double)sums[i];
        squares += square;
        fourths += square * square;
    }
    *variance = squares > 0.0 && one > 0.0 ? fourths / (squares * squares) : 1e30;
    return one > 0.0 ? squares / (double)count / (one * one) : 0.0;
}

/* Mean square of the sum's elements: that of a rank's, times what sketches and samples of the sum are larger than those of one rank. What chance does
 * to those of a rank it does to those of the sum too, as far as ranks are alike. */
static void compare_sums(view_t *view)
{
    const iq_coded_layout_t *layout = view->layout;
    double n = view->nranks, sketch_variance, sample_variance;
    double sketch = times_larger(view->agreed + layout->sketch, layout->sketches, (double)view->agreed[IQ_CODED_SKETCH_RMS] / n, &sketch_variance);
    double sample = times_larger(view->agreed + layout->samples, layout->nsamples, (double)view->agreed[IQ_CODED_SAMPLE_RMS] / n, &sample_variance);
    double times = (sketch * sample_variance + sample * sketch_variance) / (sketch_variance + sample_variance);
    if (layout->sketches == 0)
        times = n;
    times = fmin(times, n * n);
    view->sum_squares = times * view->rank_squares;
    view->like = n < 1.5 ? 1.0 : fmin(fmax((times / n - 1.0) / (n - 1.0), 0.0), 1.0);
}

/* Where plan/choose.c moves a short vector in one round, every rank sends all of it to every other one. */
#define ONE_ROUND_RANKS 16
#define ONE_ROUND_BYTES 32768.0
#define FRAME_BYTES 32.0
#define MESSAGE_HEADER_BYTES 14.0

double iq_coded_message_elements(const iq_codec_call_t *call, size_t count)
{
    double part = (double)count / call->nranks;
    return part < 1.0 ? 1.0 : part < IQ_CODED_BLOCK ? part : IQ_CODED_BLOCK;
}

static void count_headers(view_t *view)
{
    double n = view->nranks, floats = (double)view->layout->shared, message = iq_coded_message_elements(view->call, (size_t)view->count);
    double agreement = 4.0 * floats + FRAME_BYTES * n;
    if (n <= ONE_ROUND_RANKS && (n - 1.0) * 4.0 * floats <= ONE_ROUND_BYTES)
        agreement = n / 2.0 * (4.0 * floats + FRAME_BYTES);
    view->fixed_bits = 8.0 * (FRAME_BYTES + MESSAGE_HEADER_BYTES) / message;
    view->fixed_bits += 8.0 * agreement / view->count;
}

static void make_view(view_t *view, const iq_codec_t *codec, const iq_codec_call_t *call, const iq_coded_layout_t *layout, size_t count,
                      const float *agreed)
{
    memset(view, 0, sizeof(*view));
    view->codec = codec;
    view->call = call;
    view->layout = layout;
    view->agreed = agreed;
    view->nranks = call->nranks;
    view->count = (double)count;
    view->most = (double)agreed[IQ_CODED_MAX] / IQ_CODED_SCALE;
    double rms = (double)agreed[IQ_CODED_RMS] / IQ_CODED_SCALE / view->nranks;
    view->rank_squares = rms * rms;
    view->zeros = (double)agreed[IQ_CODED_ZEROS] / view->nranks;
    compare_sums(view);
    count_headers(view);
    if (layout->points > 0)
        read_points(view);
    else
        read_curves(view);
}

/* ---- what a step and k come to ---- */

double iq_coded_normal_rate(double step)
{
    /* at -3, -2.5, ... 7 */
    static const double rates[] = {5.049,  4.5508, 4.0546, 3.562,  3.0765, 2.6048, 2.1583, 1.7546, 1.4146, 1.1444, 0.9204,
                                   0.728,  0.5679, 0.4384, 0.3357, 0.2554, 0.1932, 0.1456, 0.1092, 0.0816, 0.0609};
    double place = (step + 3.0) * 2.0;
    if (place <= 0.0)
        return rates[0] - place / 2;
    if (place >= 20.0)
        return rates[20] / (1.0 + (place - 20.0) / 2);
    size_t i = (size_t)place;
    i -= i == 20;
    return rates[i] + (place - (double)i) * (rates[i + 1] - rates[i]);
}

#define LOSS_OF_CODER 0.02
#define TABLE_BITS 420.0

double iq_coded_coder_bits(double rate, double elements)
{
    double low = rate < 0.6 ? 0.6 - rate : 0.0; /* a code word has one bit at least */
    double table = TABLE_BITS / elements;
    return rate <= 0.0 ? 0.0 : LOSS_OF_CODER + (table < 1.0 ? table : 1.0) + 0.2 * low; /* short messages are packed */
}

/* 6 / pi^2 times the sum of cos(2 pi n d) / n^2 over the distribution of d, taken as Laplace's of this variance: 1 where ranks agree to much
 * less than a step, 0 where they do not. */
static double likeness(double variance)
{
    double sum = 0.0;
    for (int n = 1; n <= 6; n++)
        sum += 1.0 / (n * n * (1.0 + 19.739208802178716 * n * n * variance)); /* 2 pi^2 */
    return sum / 1.4913888888888889;
}

/* Variance of the sum of all ranks' codes, in squared steps. Ranks' errors cancel: see stratified rounding, codec/strata.h. */
static double code_noise(const view_t *view, double step, double noise, double noise_fine)
{
    double n = view->nranks, apart = 0.0, s2 = step * step;
    if (n < 1.5)
        return noise;
    apart = (n * view->rank_squares - view->sum_squares / n) / (n - 1.0); /* variance of a rank's value about the mean */
    if (apart < 0.0)
        apart = 0.0;
    double alike = likeness(2.0 * apart / s2), strangers = likeness(2.0 * view->rank_squares / s2);
    double like = alike > strangers && strangers < 1.0 ? (alike - strangers) / (1.0 - strangers) : 0.0;
    double share = 0.25 + 1.5 * noise;
    double cancels = noise * (share + (1.0 - share) * like);
    double left = n * (noise - cancels) + noise_fine * (0.5 + 0.5 * like);
    return left < n * noise ? left : n * noise;
}

/* Samples on each side that tell how large values are where a sample lies. */
#define NEIGHBOURS 2

/* How much of the codes' noise there is likely to be at each sample: where values are small, codes are 0 and do not err. The mean is 1. */
static void spread_noise(const view_t *view, double step, float *shares)
{
    const float *samples = view->agreed + view->layout->samples;
    size_t count = view->layout->nsamples;
    double full = 0.6 * sqrt(view->nranks) * step * IQ_CODED_SCALE * (2 * NEIGHBOURS + 1), sum = 0.0;
    for (size_t t = 0; t < count; t++) {
        double near = 0.0;
        for (size_t i = 0; i <= 2 * NEIGHBOURS; i++) {
            size_t at = t + i < NEIGHBOURS ? 0 : t + i - NEIGHBOURS < count ? t + i - NEIGHBOURS : count - 1;
            near += fabs((double)samples[at]);
        }
        shares[t] = samples[t] == 0.0f ? 0.0f : near < full ? (float)(near / full) : 1.0f;
        sum += (double)shares[t];
    }
    for (size_t t = 0; t < count && sum > 0.0; t++)
        shares[t] = (float)((double)shares[t] * (double)count / sum);
}

/* Rate and error of rounding the sum to multiples of k steps, from the samples of the sum. `noise`: variance that codes add to it. */
static void sample_sum(const view_t *view, double step, double k, double noise, double *rate, double *fraction_noise)
{
    const float *samples = view->agreed + view->layout->samples;
    float shares[IQ_CODED_SAMPLES_MOST];
    iq_coded_tally_t tally = {.count = 0};
    double inverse = 1.0 / (step * k * IQ_CODED_SCALE), spread = sqrt(noise) / k / 147.8; /* deviation of four bytes */
    spread_noise(view, step, shares);
    for (size_t t = 0; t < view->layout->nsamples; t += 4) {
        iq_philox_block_t block = iq_draw(view->call->seed, view->call->call, IQ_STREAM_STRATA, 0xfffdu, t);
        float values[4];
        for (unsigned i = 0; i < 4; i++) {
            uint32_t word = block.word[i];
            int bell = (int)(word & 255) + (int)(word >> 8 & 255) + (int)(word >> 16 & 255) + (int)(word >> 24) - 510;
            values[i] = (float)((double)samples[t + i] * inverse + spread * sqrt((double)shares[t + i]) * bell);
        }
        iq_coded_tally(&tally, values, 4);
    }
    iq_coded_point(&tally, 127, rate, fraction_noise);
}

static void evaluate(const view_t *view, double step, double k, outcome_t *outcome)
{
    double log_step = iq_log2(step), rate, sum_rate, fraction;
    double noise = noise_at(&view->own, log_step), fine = noise_at(&view->own, log_step - iq_log2(view->nranks));
    double codes = code_noise(view, step, noise, fine);
    rate = rate_at(&view->own, log_step);
    if (view->layout->nsamples > 0) {
        double sum_rounding = 0.0;
        if (k < 1.5) { /* codes are whole already, and what makes them so is in their noise */
            sample_sum(view, step, 1.0, 0.0, &sum_rate, &sum_rounding);
            sum_rounding = sum_rounding < codes ? sum_rounding : codes;
        }
        sample_sum(view, step, k, codes - sum_rounding, &sum_rate, &fraction);
        sum_rate = rate_at(&view->own, step_of_rate(&view->compared, sum_rate));
    } else { /* as a rank's tensor, only wider, and nearer to the normal distribution */
        double wide = (view->sum_squares + codes * step * step) / (view->rank_squares + noise * step * step);
        double as_step = log_step + iq_log2(k) - iq_log2(wide) / 2, own_shape = view->like + (1.0 - view->like) / view->nranks;
        sum_rate = own_shape * rate_at(&view->own, as_step) + (1.0 - own_shape) * rate_at(&view->compared, as_step);
        fraction = noise_at(&view->own, as_step);
    }
    /* the codes' own noise spreads fractions of k */
    fraction += (1.0 / 6.0 - fraction) * (1.0 - 1.0 / (1.0 + 19.739208802178716 * codes / (k * k)));
    bool mends = view->zeros < 0.125;
    outcome->step = step;
    outcome->k = k;
    outcome->mend_own = mends ? fmin(1.0, 6.0 * fine) : 0.0;
    outcome->mend_result = mends && k > 1.5 ? fmin(1.0, 6.0 * fraction) : 0.0;
    double own_error = codes - fine * outcome->mend_own + outcome->mend_own * outcome->mend_own / 12.0;
    double result_error = (k * k - 1.0) * (fraction * (1.0 - outcome->mend_result) + outcome->mend_result * outcome->mend_result / 12.0);
    if (own_error < 0.0)
        own_error = 0.0;
    outcome->error = step * step * (own_error + result_error);
    outcome->bits = (rate + sum_rate) / 2 + view->fixed_bits;
}

/* ---- choosing ---- */

/* No code may pass 2^26, nor may a sum of them. */
static double least_step(const view_t *view) { return fmax(view->most * 0x1p-26, 0x1p-120); }

static double most_step(const view_t *view) { return fmax(view->most * 32.0, least_step(view)); }

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

static double bits_to_spend(const view_t *view)
{
    double budget = view->codec->budget_bits;
    return fmax(budget, LEAST_PART * budget + view->fixed_bits);
}

/* The step with which k spends what may be spent. Bits fall with the step, by a little less than a bit an octave. */
static void meet_bits(const view_t *view, double k, double start, outcome_t *outcome)
{
    double low = least_step(view), high = most_step(view), step = fmin(fmax(start, low), high), budget = bits_to_spend(view);
    for (int turn = 0; turn < 16; turn++) {
        evaluate(view, step, k, outcome);
        double over = outcome->bits - budget;
        if ((over < 0.004 && over > -0.004) || !(high > low * 1.0005))
            return;
        *(over > 0.0 ? &low : &high) = step;
        double next = step * power_of_2(over > 8.0 ? 8.0 : over < -8.0 ? -8.0 : over * 1.15);
        step = next > low && next < high ? next : sqrt(low * high);
    }
}

/* The same for an error. It grows with the square of the step. */
static void meet_error(const view_t *view, double k, double start, outcome_t *outcome)
{
    double low = least_step(view), high = most_step(view), step = fmin(fmax(start, low), high);
    double budget = view->codec->budget_nmse * view->sum_squares;
    for (int turn = 0; turn < 16; turn++) {
        evaluate(view, step, k, outcome);
        double part = outcome->error / budget;
        if ((part < 1.0 && part > 0.98) || !(high > low * 1.0005))
            return;
        *(part > 1.0 ? &high : &low) = step;
        double next = step / sqrt(part > 0.0 ? part * 1.01 : 0.25);
        step = next > low && next < high ? next : sqrt(low * high);
    }
}

static bool is_better(const view_t *view, const outcome_t *a, const outcome_t *b)
{
    return view->codec->budget_bits > 0.0 ? a->error < b->error : a->bits < b->bits;
}

static outcome_t choose(const view_t *view)
{
    outcome_t best, next;
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

/* Where one point is all that is known: a rank's codes take what the budget says, and those of the sum about as much; or errors add up as if
 * nothing cancelled, and so do values. */
static iq_coded_plan_t fixed_rule(const view_t *view)
{
    bool bits = view->codec->budget_bits > 0.0 && view->own.count > 0;
    double step = bits ? power_of_2(view->own.step[0]) : sqrt(6.0 * view->codec->budget_nmse * view->rank_squares);
    double merge = bits ? floor(sqrt(view->nranks) + 0.5) : 1.0;
    return (iq_coded_plan_t){.step = (float)fmin(fmax(step, least_step(view)), most_step(view)), .merge = (float)merge};
}

void iq_coded_open_scales(const iq_codec_t *codec, const iq_codec_call_t *call, size_t count, float *scales)
{
    view_t view;
    iq_coded_layout_t layout = iq_coded_layout(codec, count);
    iq_coded_plan_t plan = {.merge = 1.0f};
    make_view(&view, codec, call, &layout, count, scales);
    if (iq_not_finite(scales[IQ_CODED_MAX])) {
        plan.step = iq_bits_float(0x7fc00000u);
    } else if (scales[IQ_CODED_WEIGHT] > 0.0f && view.own.count > 1) {
        outcome_t best = choose(&view);
        plan = (iq_coded_plan_t){(float)best.step, (float)best.k, (float)best.mend_own, (float)best.mend_result};
    } else if (scales[IQ_CODED_WEIGHT] > 0.0f) {
        plan = fixed_rule(&view);
    }
    memcpy(scales, &plan, sizeof(plan));
}

/* ---- a message of its own ---- */

float iq_coded_own_step(const iq_codec_t *codec, const iq_coded_tally_t *tally)
{
    iq_coded_curves_t curves;
    curve_t curve = {.count = IQ_CODED_WINDOW};
    if (iq_coded_not_finite(tally))
        return iq_bits_float(0x7fc00000u);
    iq_coded_curves(tally, &curves);
    if (curves.top == 0)
        return 0.0f;
    for (int i = 0; i < IQ_CODED_WINDOW; i++) {
        curve.step[i] = curves.top - i - 127;
        curve.rate[i] = curves.rate[i];
        curve.noise[i] = curves.noise[i];
    }
    double n = (double)tally->count, step, fixed = 8.0 * (FRAME_BYTES + MESSAGE_HEADER_BYTES) / n;
    if (codec->budget_bits > 0.0) {
        double rate = codec->budget_bits - fixed - iq_coded_coder_bits(codec->budget_bits, n);
        step = step_of_rate(&curve, fmax(rate, 0.1));
    } else {
        double squares = codec->budget_nmse * iq_coded_squares(tally) / n, low = curve.step[IQ_CODED_WINDOW - 1], high = curve.step[0];
        for (int turn = 0; turn < 24; turn++) {
            step = (low + high) / 2;
            double size = power_of_2(step);
            *(noise_at(&curve, step) * size * size > squares ? &high : &low) = step;
        }
        step = low;
    }
    return (float)power_of_2(fmax(step, -120.0));
}
