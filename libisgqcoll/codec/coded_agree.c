/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a rank says about its tensor before it encodes: see coded.h.
 *
 * Units of IQ_CODED_UNIT elements are described one by one, because messages are coded one by one: where the scale of values
 * changes along the tensor that takes fewer bits than one code for all. Curves lie in slots for all exponents while units are
 * added up, and in IQ_CODED_SLOTS modulo that number when they are shared: ranks' curves fall into each other's places only if
 * their largest values are 2^30 apart.
 */
#include "base/util.h"
#include "codec/coded.h"
#include "codec/coded_math.h"
#include "codec/convert.h"

#include <math.h>
#include <string.h>

enum {
    OWN_FIRST = -32, /* exponent of the first slot */
    OWN_SLOTS = 256 + IQ_CODED_ABOVE + 32 + 3,
    OWN_RATES = 0,
    OWN_NOISES = OWN_SLOTS,
    OWN_NORMALS = 2 * OWN_SLOTS, /* rates if every unit were normally distributed */
    OWN_SQUARES = 3 * OWN_SLOTS,   /* a double, as those below */
    OWN_FOURTHS = OWN_SQUARES + 2, /* sum of fourth powers */
    OWN_BLOCKS = OWN_FOURTHS + 2,  /* sum of squares of what blocks of 32 elements' squares add up to */
    OWN_FLOATS = OWN_BLOCKS + 2
};

/* ---- layout ---- */

/* Short tensors have no room for more than the least. */
#define TINY_COUNT 4096
/* Of the shortest, headers and the agreement are the most, and codes need not be spared: they may take as much as these, or so many
 * bits. */
#define HEADERS_BITS 1000.0
#define FREE_BITS 8.0
#define TINY_BITS 2.0 /* at least: the coder's own bits are one of them, and with no more than that nearly all codes would be 0 */
#define SKETCHES_OF_SHORT 16
#define WORTH_A_ROUND 6 /* times as many are worth an agreement in two rounds */
#define FLOATS_OF_LONG 512
#define FLOATS_MOST IQ_CODED_SAMPLES_MOST
/* One float in so many bits of the tensor's messages: both ways it is 64 bits, so 2 % of them. */
#define BITS_OF_FLOAT 1600.0
#define BITS_OF_NMSE 3.0 /* taken where the budget is an error */

bool iq_coded_is_short(size_t count) { return count <= TINY_COUNT; }

iq_coded_layout_t iq_coded_layout(const iq_codec_t *codec, size_t count)
{
    double bits = codec->budget_bits > 0.0 ? codec->budget_bits : BITS_OF_NMSE;
    double floats = (double)count * bits / BITS_OF_FLOAT;
    iq_coded_layout_t layout = {.rates = IQ_CODED_CURVES};
    if (floats < FLOATS_OF_LONG) {
        layout.points = iq_coded_is_short(count) ? 1 : IQ_CODED_POINTS_MOST;
        layout.noises = layout.rates + layout.points;
        layout.compared = layout.noises + layout.points;
        layout.sketch = layout.compared + (iq_coded_is_short(count) ? 0 : layout.points);
        layout.sketches = iq_coded_is_short(count) ? 0 : SKETCHES_OF_SHORT;
        if (floats > (double)(layout.sketch + (codec->budget_nmse > 0.0 ? 1 : WORTH_A_ROUND) * SKETCHES_OF_SHORT))
            layout.sketches = ((size_t)floats - layout.sketch) / 8 * 8; /* the error is relative to what they tell */
    } else {
        size_t limit = (size_t)(floats < FLOATS_MOST ? floats : FLOATS_MOST);
        layout.noises = layout.rates + IQ_CODED_SLOTS;
        layout.compared = layout.noises + IQ_CODED_SLOTS;
        layout.sketch = layout.compared + IQ_CODED_SLOTS;
        layout.sketches = (limit - layout.sketch) / (codec->budget_nmse > 0.0 ? 2 : 5) / 8 * 8;
        layout.nsamples = (limit - layout.sketch - layout.sketches) / 8 * 8;
    }
    layout.samples = layout.sketch + layout.sketches;
    layout.shared = layout.samples + layout.nsamples;
    layout.own = layout.shared;
    layout.room = layout.own + OWN_FLOATS;
    return layout;
}

void iq_coded_point_rates(const iq_codec_t *codec, size_t points, size_t count, double rates[IQ_CODED_POINTS_MOST])
{
    static const double any[IQ_CODED_POINTS_MOST] = {0.5, 1.0, 2.0, 3.0, 4.5, 6.5, 9.0};
    for (size_t i = 0; i < points; i++) {
        double offset = points == 1 ? 0.0 : 0.5 * (double)i - 1.5, rate = codec->budget_bits + offset;
        rates[i] = codec->budget_bits == 0.0 ? any[points == 1 ? 2 : i] : rate < 0.25 ? 0.25 * iq_exp2_whole((int)i - 3) : rate;
        if (points == 1 && rates[i] < TINY_BITS)
            rates[i] = TINY_BITS;
        if (points == 1)
            rates[i] = fmax(rates[i], fmin(FREE_BITS, HEADERS_BITS / (double)count));
    }
}

/* ---- places ---- */

/* Element of sample t: one in each of nsamples equal parts. */
static size_t sample_place(const iq_codec_call_t *call, const iq_coded_layout_t *layout, size_t count, size_t t)
{
    iq_philox_block_t block = iq_draw(call->seed, call->call, IQ_STREAM_STRATA, 0xffffu, t);
    double within = (double)(block.word[t & 3] >> 8) * 0x1p-24;
    size_t place = (size_t)(((double)t + within) / (double)layout->nsamples * (double)count);
    return iq_min(place, count - 1);
}

static void take_samples(const iq_codec_call_t *call, const iq_coded_layout_t *layout, iq_span_t span, size_t count,
                         const void *src, float *scales)
{
    float tile[1];
    double share = (double)layout->nsamples / (double)count;
    size_t t = (size_t)((double)span.first * share);
    for (t -= t > 0; t < layout->nsamples; t++) {
        size_t place = sample_place(call, layout, count, t);
        if (place >= span.first + span.count)
            break;
        if (place >= span.first)
            scales[layout->samples + t] =
                iq_load_f32(call->datatype, src, place - span.first, 1, tile)[0] * (float)IQ_CODED_SCALE;
    }
}

/* Blocks of 32 elements go round the sketches, each element with a sign of its own. */
static void add_sketch(const iq_codec_call_t *call, const iq_coded_layout_t *layout, size_t first, const iq_f32_any_t *values,
                       size_t count, float *scales)
{
    iq_philox_block_t block = {{0}};
    uint32_t bit[32]; /* not all vectors can shift by numbers that differ */
    for (unsigned j = 0; j < 32; j++)
        bit[j] = 1u << j;
    for (size_t i = 0; i < count; i += 32) {
        size_t number = (first + i) / 32, n = iq_min(count - i, 32);
        if (i == 0 || number % 4 == 0)
            block = iq_draw(call->seed, call->call, IQ_STREAM_STRATA, 0xfffeu, number);
        float turned[32] = {0}, lanes[8] = {0};
        uint32_t signs = block.word[number % 4];
        for (size_t j = 0; j < n; j++) {
            uint32_t flip = (signs & bit[j]) != 0 ? 1u << 31 : 0;
            turned[j] = iq_bits_float(iq_float_bits(values[i + j]) ^ flip) * (float)IQ_CODED_SCALE;
        }
        for (size_t j = 0; j < 32; j += 8)
            for (size_t lane = 0; lane < 8; lane++)
                lanes[lane] += turned[j + lane];
        scales[layout->sketch + number % layout->sketches] +=
            ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
    }
}

/* ---- a rank's own curves ---- */

static void add_to_double(float *two_floats, double more)
{
    double sum;
    memcpy(&sum, two_floats, sizeof(sum));
    sum += more;
    memcpy(two_floats, &sum, sizeof(sum));
}

/* Rates of more bits than this are not looked at closely. Of points they are not asked for; else k is that of the result with the least
 * error, which is a long way from one with hardly any bits on the way back. */
static double enough_bits(const iq_codec_t *codec, const iq_coded_layout_t *layout, size_t count)
{
    double rates[IQ_CODED_POINTS_MOST];
    if (layout->points > 0) {
        iq_coded_point_rates(codec, layout->points, count, rates);
        return rates[layout->points - 1] + 0.5;
    }
    return codec->budget_bits > 0.0 ? 2.0 * codec->budget_bits + 4.0 : 1e9;
}

/* For points: see shape_of_sums(). */
static void add_fourths(const iq_f32_any_t *values, size_t count, float *own)
{
    double fourths = 0.0, blocks = 0.0;
    for (size_t i = 0; i < count; i += 32) {
        double squares = 0.0;
        for (size_t j = i; j < iq_min(count, i + 32); j++) {
            double square = (double)values[j] * (double)values[j];
            squares += square;
            fourths += square * square;
        }
        blocks += squares * squares;
    }
    add_to_double(own + OWN_FOURTHS, fourths);
    add_to_double(own + OWN_BLOCKS, blocks);
}

/* With what the coder adds in messages of `message` elements: each unit by itself, because that is how they are coded. */
static void add_unit(const iq_coded_tally_t *tally, double message, double enough, bool knows, bool compares, float *own)
{
    iq_coded_curves_t curves;
    double count = (double)tally->count;
    iq_coded_curves(tally, enough, &curves);
    for (int i = 0; i < IQ_CODED_WINDOW && curves.top > 0; i++) {
        int slot = curves.top - i - OWN_FIRST;
        double rate = knows ? curves.known[i] : curves.rate[i];
        rate += iq_coded_coder_bits(rate, message);
        own[OWN_RATES + slot] += (float)(rate * count);
        own[OWN_NOISES + slot] += (float)(curves.noise[i] * count);
    }
    double squares = iq_coded_squares(tally), deviation = iq_log2(squares / count + 0x1p-1000) / 2;
    for (int i = 0; i < IQ_CODED_WINDOW && curves.top > 0 && compares; i++) {
        double rate = iq_coded_normal_rate(curves.top - i - 127 - deviation, knows);
        rate += iq_coded_coder_bits(rate, message);
        own[OWN_NORMALS + curves.top - i - OWN_FIRST] += (float)(rate * count);
    }
    add_to_double(own + OWN_SQUARES, squares);
}

void iq_coded_local_scales(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, float *scales)
{
    iq_coded_layout_t layout = iq_coded_layout(codec, call->count);
    double message = iq_coded_message_elements(call, call->count), enough = enough_bits(codec, &layout, call->count);
    for (size_t done = 0; done < span.count; done += IQ_CODED_UNIT) {
        iq_coded_tally_t tally = {.count = 0};
        size_t count = iq_min(span.count - done, IQ_CODED_UNIT);
        float most = 0.0f;
        for (size_t i = done; i < done + count; i += IQ_CODEC_TILE) {
            float tile[IQ_CODEC_TILE];
            size_t n = iq_min(done + count - i, IQ_CODEC_TILE);
            const iq_f32_any_t *values = iq_load_f32(call->datatype, src, i, n, tile);
            float here = iq_kernels()->absmax(values, n);
            most = here > most ? here : most;
            iq_coded_tally(&tally, values, n);
            if (layout.points > 1)
                add_fourths(values, n, scales + layout.own);
            if (layout.sketches > 0)
                add_sketch(call, &layout, span.first + i, values, n, scales);
        }
        if (iq_not_finite(most)) {
            scales[IQ_CODED_MAX] = most;
            continue;
        }
        scales[IQ_CODED_MAX] = most > scales[IQ_CODED_MAX] ? most : scales[IQ_CODED_MAX];
        scales[IQ_CODED_ZEROS] += (float)iq_coded_zeros(&tally);
        add_unit(&tally, message, enough, iq_coded_knows(call), layout.points > 1, scales + layout.own);
    }
    if (layout.nsamples > 0)
        take_samples(call, &layout, span, call->count, src, scales);
}

/* ---- from own curves to what is shared ---- */

/* log2 of the step at which this rank's mean rate is `rate`, by one of its curves, and the error there. */
static void find_point(const float *own, int curve, double count, double rate, float *step, float *noise)
{
    int slot = OWN_SLOTS - 1;
    double here = 0.0, above = 0.0;
    for (; slot > 0 && here < rate; slot--) {
        above = here;
        here = (double)own[curve + slot] / count;
        if (here == 0.0 && above > 0.0) /* below what any unit has described */
            break;
    }
    slot++; /* the first at which the rate is reached */
    double part = here > above && here >= rate ? (here - rate) / (here - above) : 0.0; /* of an octave, upwards */
    double noise_here = (double)own[OWN_NOISES + slot] / count;
    double noise_above = slot + 1 < OWN_SLOTS ? (double)own[OWN_NOISES + slot + 1] / count : noise_here;
    *step = (float)(OWN_FIRST + slot - 127 + part);
    *noise = (float)(noise_here + part * (noise_above - noise_here));
}

static void share_points(const iq_codec_t *codec, const iq_coded_layout_t *layout, size_t count, float *scales)
{
    double rates[IQ_CODED_POINTS_MOST];
    float noise;
    const float *own = scales + layout->own;
    iq_coded_point_rates(codec, layout->points, count, rates);
    for (size_t i = 0; i < layout->points; i++)
        find_point(own, OWN_RATES, (double)count, rates[i], &scales[layout->rates + i], &scales[layout->noises + i]);
    for (size_t i = 0; i < layout->sketch - layout->compared; i++)
        find_point(own, OWN_NORMALS, (double)count, rates[i], &scales[layout->compared + i], &noise);
}

static void share_curves(const iq_codec_t *codec, const iq_coded_layout_t *layout, size_t count, int top, bool knows,
                         float *scales)
{
    const float *own = scales + layout->own;
    iq_coded_tally_t tally = {.count = 0};
    iq_coded_curves_t sampled;
    for (int i = 0; i < IQ_CODED_WINDOW; i++) {
        int slot = top - i - OWN_FIRST;
        scales[layout->rates + (size_t)(top - i) % IQ_CODED_SLOTS] = own[OWN_RATES + slot] / (float)count;
        scales[layout->noises + (size_t)(top - i) % IQ_CODED_SLOTS] = own[OWN_NOISES + slot] / (float)count;
    }
    for (size_t t = 0; t < layout->nsamples; t++) { /* as they were before IQ_CODED_SCALE, so that exponents agree */
        float value = scales[layout->samples + t] * (float)(1.0 / IQ_CODED_SCALE);
        iq_coded_tally(&tally, &value, 1);
    }
    iq_coded_curves(&tally, enough_bits(codec, layout, count), &sampled);
    for (int i = 0; i < IQ_CODED_WINDOW && sampled.top > 0; i++)
        scales[layout->compared + (size_t)(sampled.top - i) % IQ_CODED_SLOTS] =
            (float)(knows ? sampled.known[i] : sampled.rate[i]);
}

static float rms_of(const float *values, size_t count)
{
    double sum = 0.0;
    for (size_t i = 0; i < count; i++)
        sum += (double)values[i] * (double)values[i];
    return count == 0 ? 0.0f : (float)sqrt(sum / (double)count);
}

static double read_double(const float *two_floats)
{
    double value;
    memcpy(&value, two_floats, sizeof(value));
    return value;
}

/* Values that are drawn alike and independently on all ranks add up to what is nearer to the normal distribution. Those whose size changes
 * along the tensor do not, where it changes alike on all ranks, as it does in gradients: where a unit of a layer is silent there are zeros.
 * How much of the excess kurtosis is of that kind, 0 to 1, blocks of 32 elements tell: with values v of mean square 1, the mean square of
 * theirs is 1 + (E v^4 - 1) / 32 if they know nothing of each other, and a third of E v^4 if blocks are normally distributed. */
static float shape_of_sums(const float *own, size_t count)
{
    double n = (double)count, square = read_double(own + OWN_SQUARES) / n;
    double fourth = read_double(own + OWN_FOURTHS) / n / (square * square);
    double blocks = read_double(own + OWN_BLOCKS) / n / 32.0 / (square * square);
    double alone = 1.0 + (fourth - 1.0) / 32.0, together = fourth / 3.0;
    double share = together > alone + 0.01 ? (blocks - alone) / (together - alone) : 0.0;
    return share > 0.0 ? (float)fmin(share, 1.0) : 0.0f; /* NaN is none */
}

void iq_coded_close_scales(const iq_codec_t *codec, const iq_codec_call_t *call, size_t count, float *scales)
{
    iq_coded_layout_t layout = iq_coded_layout(codec, count);
    float most = scales[IQ_CODED_MAX];
    if (iq_not_finite(most)) { /* in every sum, whatever the others say */
        for (size_t i = 0; i < layout.shared; i++)
            scales[i] = iq_bits_float(0x7fc00000u);
        return;
    }
    double squares = read_double(scales + layout.own + OWN_SQUARES);
    scales[IQ_CODED_MAX] = most * (float)IQ_CODED_SCALE;
    scales[IQ_CODED_RMS] = (float)(sqrt(squares / (double)count) * IQ_CODED_SCALE);
    scales[IQ_CODED_ZEROS] /= (float)count;
    scales[IQ_CODED_SKETCH_RMS] = rms_of(scales + layout.sketch, layout.sketches);
    scales[IQ_CODED_SAMPLE_RMS] = rms_of(scales + layout.samples, layout.nsamples);
    int exponent = (int)(iq_float_bits(most) >> 23);
    if (exponent == 0) /* nothing but zeros, and what is taken for them */
        return;
    scales[IQ_CODED_WEIGHT] = 1.0f;
    if (layout.points > 1)
        scales[IQ_CODED_SHAPE] = shape_of_sums(scales + layout.own, count);
    if (layout.points > 0)
        share_points(codec, &layout, count, scales);
    else
        share_curves(codec, &layout, count, exponent + IQ_CODED_ABOVE, iq_coded_knows(call), scales);
}
