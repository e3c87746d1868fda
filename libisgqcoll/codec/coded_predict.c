/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Prediction of rates and errors: see coded_predict.h.
 *
 * Rates of a rank's own codes are known, because every rank has counted them. Those of the sum follow from samples of it: at
 * what step would the ranks' own samples have the entropy that these have, and what is the rate of the whole tensors there? What
 * is wrong with entropies of few samples is wrong with both, and cancels.
 */
#include "codec/coded_predict.h"

#include "base/util.h"
#include "codec/coded_math.h"
#include "codec/coded_message.h"

#include <math.h>
#include <string.h>

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

double iq_coded_rate_at(const iq_coded_knots_t *curve, double step)
{
    size_t last = curve->count - 1;
    if (step <= curve->step[last])
        return curve->rate[last] + curve->step[last] - step;
    if (step >= curve->step[0])
        return curve->rate[0] / (1.0 + (step - curve->step[0]));
    return between(curve->rate, curve->step, curve->count, interval(curve->step, curve->count, step), step);
}

double iq_coded_noise_at(const iq_coded_knots_t *curve, double step)
{
    size_t last = curve->count - 1;
    if (step <= curve->step[last])
        return curve->noise[last];
    if (step >= curve->step[0])
        return curve->noise[0] / (1.0 + (step - curve->step[0]));
    return between(curve->noise, curve->step, curve->count, interval(curve->step, curve->count, step), step);
}

double iq_coded_step_of_rate(const iq_coded_knots_t *curve, double rate)
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
        *(iq_coded_rate_at(curve, middle) > rate ? &low : &high) = middle;
    }
    return (low + high) / 2;
}

/* ---- the view ---- */

static void read_curves(iq_coded_view_t *view)
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

static void read_points(iq_coded_view_t *view)
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

/* How many times larger the mean square of sums is than that of one rank's values, and the variance of this estimate,
 * relatively. */
static double times_larger(const float *sums, size_t count, double one, double *variance)
{
    double squares = 0.0, fourths = 0.0;
    one = count > 0 ? one : 0.0;
    for (size_t i = 0; i < count; i++) {
        double square = (double)sums[i] * (double)sums[i];
        squares += square;
        fourths += square * square;
    }
    *variance = squares > 0.0 && one > 0.0 ? fourths / (squares * squares) : 1e30;
    return one > 0.0 ? squares / (double)count / (one * one) : 0.0;
}

/* Mean square of the sum's elements: that of a rank's, times what sketches and samples of the sum are larger than those of one
 * rank. What chance does to those of a rank it does to those of the sum too, as far as ranks are alike. */
static void compare_sums(iq_coded_view_t *view)
{
    const iq_coded_layout_t *layout = view->layout;
    double n = view->nranks, sketch_variance, sample_variance;
    double sketch = times_larger(view->agreed + layout->sketch, layout->sketches, (double)view->agreed[IQ_CODED_SKETCH_RMS] / n,
                                 &sketch_variance);
    double sample = times_larger(view->agreed + layout->samples, layout->nsamples, (double)view->agreed[IQ_CODED_SAMPLE_RMS] / n,
                                 &sample_variance);
    double times = (sketch * sample_variance + sample * sketch_variance) / (sketch_variance + sample_variance);
    if (layout->sketches == 0)
        times = n;
    times = fmin(times, n * n);
    view->sum_squares = times * view->rank_squares;
    view->like = n < 1.5 ? 1.0 : fmin(fmax((times / n - 1.0) / (n - 1.0), 0.0), 1.0);
}

/* Where plan/choose.c moves a short vector in one round, every rank sends all of it to every other one. */
#define ONE_ROUND_RANKS 16

double iq_coded_message_elements(const iq_codec_call_t *call, size_t count)
{
    double part = (double)count / call->nranks;
    return part < 1.0 ? 1.0 : part < IQ_CODED_BLOCK ? part : IQ_CODED_BLOCK;
}

static void count_headers(iq_coded_view_t *view)
{
    double n = view->nranks, floats = (double)view->layout->shared,
           message = iq_coded_message_elements(view->call, (size_t)view->count);
    double agreement = 4.0 * floats + IQ_CODED_FRAME_BYTES * n;
    if (n <= ONE_ROUND_RANKS && floats <= IQ_SCALES_IN_ONE_ROUND)
        agreement = n / 2.0 * (4.0 * floats + IQ_CODED_FRAME_BYTES);
    view->fixed_bits = 8.0 * (IQ_CODED_FRAME_BYTES + IQ_CODED_HEADER_BYTES) / message;
    view->fixed_bits += 8.0 * agreement / view->count;
}

/* What is known of errors is not 0 where codes are, so taking it back would turn zeros into noise: of samples at most this
 * share may be lost to that, and of ranks' own zeros, which others may not have, this one. */
#define FEW_ZEROS 0.01
#define FEW_OWN_ZEROS 0.125

static bool has_few_zeros(const iq_coded_view_t *view)
{
    const iq_coded_layout_t *layout = view->layout;
    size_t zeros = 0;
    for (size_t t = 0; t < layout->nsamples; t++)
        zeros += view->agreed[layout->samples + t] == 0.0f;
    if (layout->nsamples > 0)
        return (double)zeros < FEW_ZEROS * (double)layout->nsamples;
    return (double)view->agreed[IQ_CODED_ZEROS] < FEW_OWN_ZEROS * view->nranks;
}

void iq_coded_make_view(iq_coded_view_t *view, const iq_codec_t *codec, const iq_codec_call_t *call,
                        const iq_coded_layout_t *layout, size_t count, const float *agreed)
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
    view->mends = has_few_zeros(view);
    double changes = layout->points > 0 && agreed[IQ_CODED_WEIGHT] > 0.0f ? fmin((double)(agreed[IQ_CODED_SHAPE] / agreed[IQ_CODED_WEIGHT]), 1.0) : 0.0;
    view->own_shape = changes + (1.0 - changes) / view->nranks;
    compare_sums(view);
    count_headers(view);
    if (layout->points > 0)
        read_points(view);
    else
        read_curves(view);
}

/* ---- what a step and k come to ---- */

double iq_coded_normal_rate(double step, bool knows)
{
    /* at -3, -2.5, ... 7 */
    static const double both[2][21] = {{5.049,  4.5508, 4.0546, 3.562, 3.0765, 2.6048, 2.1583, 1.7545, 1.4146, 1.1444, 0.9203,
                                        0.7279, 0.5676, 0.438,  0.335, 0.2543, 0.1916, 0.143,  0.1053, 0.0754, 0.0504},
                                       {5.048, 4.549,  4.0509, 3.5547, 3.0622, 2.577,  2.1057, 1.6599, 1.2572, 0.9186, 0.6577,
                                        0.47,  0.3388, 0.2485, 0.1876, 0.1469, 0.1162, 0.0906, 0.0692, 0.0512, 0.0354}};
    const double *rates = both[knows];
    double place = (step + 3.0) * 2.0;
    if (place <= 0.0)
        return rates[0] - place / 2;
    if (place >= 20.0)
        return rates[20] / (1.0 + (place - 20.0) / 2);
    size_t i = (size_t)place;
    i -= i == 20;
    return rates[i] + (place - (double)i) * (rates[i + 1] - rates[i]);
}

/* Up to about this rate letters serve, above it classes. */
#define LETTERS_RATE 3.2

double iq_coded_coder_bits(double rate, double elements)
{
    double states = elements < 8192.0 ? 80.0 : 152.0;
    double table = (rate < LETTERS_RATE ? states + 24.0 * (3.0 + 2.5 * rate) : 420.0) / elements;
    return rate <= 0.0 ? 0.0 : (rate < LETTERS_RATE ? 0.005 : 0.02) + (table < 1.0 ? table : 1.0); /* short messages are packed */
}

/* 6 / pi^2 times the sum of cos(2 pi n d) / n^2 over the distribution of d, taken as Laplace's of this variance: 1 where ranks
 * agree to much less than a step, 0 where they do not. */
static double likeness(double variance)
{
    double sum = 0.0;
    for (int n = 1; n <= 6; n++)
        sum += 1.0 / (n * n * (1.0 + 19.739208802178716 * n * n * variance)); /* 2 pi^2 */
    return sum / 1.4913888888888889;
}

/* Variance of the sum of all ranks' codes, in squared steps. Ranks' errors cancel: see stratified rounding, codec/strata.h. */
static double code_noise(const iq_coded_view_t *view, double step, double noise, double noise_fine)
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

/* How much of the codes' noise there is likely to be at each sample: where values are small, codes are 0 and do not err. The
 * mean is 1. */
static void spread_noise(const iq_coded_view_t *view, double step, float *shares)
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

/* Rate and error of rounding the sum to multiples of k steps, from the samples of the sum. `noise`: variance that codes add to
 * it. */
static void sample_sum(const iq_coded_view_t *view, double step, double k, double noise, double *rate, double *known,
                       double *fraction_noise)
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
    iq_coded_point(&tally, 127, rate, known, fraction_noise);
}

void iq_coded_evaluate(const iq_coded_view_t *view, double step, double k, iq_coded_outcome_t *outcome)
{
    double log_step = iq_log2(step), rate, sum_rate, fraction;
    double noise = iq_coded_noise_at(&view->own, log_step),
           fine = iq_coded_noise_at(&view->own, log_step - iq_log2(view->nranks));
    double codes = code_noise(view, step, noise, fine);
    rate = iq_coded_rate_at(&view->own, log_step);
    bool knows = iq_coded_knows(view->call);
    double told = knows && k > 1.5 ? 1.0 - 1.0 / (k * k) : 0.0; /* of what contexts tell where offsets are continuous */
    if (view->layout->nsamples > 0) {
        double sum_rounding = 0.0, known;
        if (k < 1.5) { /* codes are whole already, and what makes them so is in their noise */
            sample_sum(view, step, 1.0, 0.0, &sum_rate, &known, &sum_rounding);
            sum_rounding = sum_rounding < codes ? sum_rounding : codes;
        }
        sample_sum(view, step, k, codes - sum_rounding, &sum_rate, &known, &fraction);
        sum_rate -= told * (sum_rate - known);
        sum_rate = iq_coded_rate_at(&view->own, iq_coded_step_of_rate(&view->compared, sum_rate));
    } else { /* as a rank's tensor, only wider, and nearer to the normal distribution */
        double wide = (view->sum_squares + codes * step * step) / (view->rank_squares + 0x1p-1000);
        double as_step = log_step + iq_log2(k) - iq_log2(wide) / 2, own_shape = view->like + (1.0 - view->like) * view->own_shape;
        sum_rate =
            own_shape * iq_coded_rate_at(&view->own, as_step) + (1.0 - own_shape) * iq_coded_rate_at(&view->compared, as_step);
        double relative = as_step - iq_log2(view->rank_squares + 0x1p-1000) / 2;
        if (knows)
            sum_rate += (1.0 - told) * (iq_coded_normal_rate(relative, false) - iq_coded_normal_rate(relative, true));
        fraction = iq_coded_noise_at(&view->own, as_step);
    }
    /* the codes' own noise spreads fractions of k */
    fraction += (1.0 / 6.0 - fraction) * (1.0 - 1.0 / (1.0 + 19.739208802178716 * codes / (k * k)));
    outcome->step = step;
    outcome->k = k;
    outcome->mend_own = view->mends ? fmin(1.0, 6.0 * fine) : 0.0;
    outcome->mend_result = view->mends && k > 1.5 ? fmin(1.0, 6.0 * fraction) : 0.0;
    double own_error = codes - fine * outcome->mend_own + outcome->mend_own * outcome->mend_own / 12.0;
    double result_error =
        (k * k - 1.0) * (fraction * (1.0 - outcome->mend_result) + outcome->mend_result * outcome->mend_result / 12.0);
    if (own_error < 0.0)
        own_error = 0.0;
    outcome->error = step * step * (own_error + result_error);
    outcome->bits = (rate + sum_rate) / 2 + view->fixed_bits;
}
