/* SPDX-License-Identifier: Apache-2.0 */
/* Rates and errors of grids from a histogram: see coded_rate.h. */
#include "codec/coded_rate.h"

#include "codec/coded_math.h"
#include "codec/coded_message.h"

#include <string.h>

enum {
    QUARTERS = 4, /* classes in an octave */
    EXPONENTS = 256,
    FINE = 3, /* octaves of codes that are told apart: -8..8 */
    CODES = 1 << FINE,
    FAINT = 12 /* octaves below the step that still count */
};

void iq_coded_tally(iq_coded_tally_t *tally, const iq_f32_any_t *values, size_t count)
{
    for (size_t i = 0; i < count; i++)
        tally->counts[iq_float_bits(values[i]) >> 21]++;
    tally->count += count;
}

static uint32_t both_signs(const iq_coded_tally_t *tally, unsigned class)
{
    return tally->counts[class] + tally->counts[IQ_CODED_CLASSES / 2 + class];
}

size_t iq_coded_zeros(const iq_coded_tally_t *tally) { return both_signs(tally, 0); }

double iq_coded_squares(const iq_coded_tally_t *tally)
{
    double sum = 0.0;
    for (unsigned exponent = 1; exponent < EXPONENTS - 1; exponent++) {
        double unit = iq_exp2_whole((int)exponent - 127), squares = 0.0;
        for (unsigned q = 0; q < QUARTERS; q++) {
            double low = 1.0 + 0.25 * q, high = low + 0.25; /* spread evenly between */
            squares += (double)both_signs(tally, exponent * QUARTERS + q) * (low * low + low * high + high * high) / 3.0;
        }
        sum += squares * unit * unit;
    }
    return sum;
}

/* -n log2(n / count) */
static inline double plog(double n, double count) { return n > 0.0 ? -n * iq_log2(n / count) : 0.0; }

/* Everything of at least 2^exponent, for all exponents: how many, and their entropy but for how many codes a class spreads
 * over. */
typedef struct tails {
    double many[EXPONENTS + 1], bits[EXPONENTS + 1];
} tails_t;

static void sum_tails(const iq_coded_tally_t *tally, tails_t *tails)
{
    double count = (double)tally->count;
    tails->many[EXPONENTS - 1] = tails->bits[EXPONENTS - 1] = 0.0;
    for (int exponent = EXPONENTS - 2; exponent >= 0; exponent--) {
        double many = 0.0, bits = 0.0;
        for (unsigned q = 0; q < 2 * QUARTERS; q++) {
            unsigned class = (unsigned)exponent * QUARTERS + q % QUARTERS + (q < QUARTERS ? 0 : IQ_CODED_CLASSES / 2);
            double n = (double)tally->counts[class];
            many += n;
            bits += plog(n, count) + n * (exponent - 2); /* in steps of 2^j a class has 2^(exponent - 2 - j) codes */
        }
        tails->many[exponent] = tails->many[exponent + 1] + many;
        tails->bits[exponent] = tails->bits[exponent + 1] + bits;
    }
}

/* Mean of f (1 - f) for fractions spread evenly over a class. */
static double class_noise(double low, double width)
{
    double from = low - (int)low, to = from + width;
    if (to > 1.0)
        return 1.0 / 6.0; /* several whole steps */
    return ((to * to - from * from) / 2 - (to * to * to - from * from * from) / 3) / width;
}

/* A class of values below eight steps, by its place: to which multiple they go, how many of them to the next one, and the variance
 * of that. */
typedef struct fine_class {
    int whole;
    double up, noise;
} fine_class_t;

enum { FINE_CLASSES = (FINE + FAINT) * QUARTERS };

static void make_fine_classes(fine_class_t fine[FINE_CLASSES])
{
    for (int place = 0; place < FINE_CLASSES; place++) {
        double unit = iq_exp2_whole(place / QUARTERS - FAINT), low = 1.0 + 0.25 * (place % QUARTERS), y = (low + 0.125) * unit;
        int whole = (int)y;
        fine[place] = (fine_class_t){whole, y - whole, class_noise(low * unit, 0.25 * unit)};
    }
}

/* The classes that lie below eight steps of 2^(step - 127): from which place on, and to which. */
static void fine_places(int step, int *first, int *end)
{
    int least = step - FAINT >= 1 ? step - FAINT : 1, most = step + FINE <= EXPONENTS - 1 ? step + FINE : EXPONENTS - 1;
    *first = (least - (step - FAINT)) * QUARTERS;
    *end = (most - (step - FAINT)) * QUARTERS;
}

/* Where their codes go. */
static double fine_codes(const iq_coded_tally_t *tally, const fine_class_t *fine, int step, double codes[2 * CODES + 1])
{
    double noise = 0.0;
    int first, end;
    fine_places(step, &first, &end);
    for (int place = end - 1; place >= first; place--) {
        const fine_class_t *to = &fine[place];
        int class = (step - FAINT) * QUARTERS + place;
        double above = (double)tally->counts[class], below = (double)tally->counts[class + IQ_CODED_CLASSES / 2];
        codes[CODES + to->whole] += above - above * to->up;
        codes[CODES + to->whole + 1] += above * to->up;
        codes[CODES - to->whole] += below - below * to->up;
        codes[CODES - to->whole - 1] += below * to->up;
        noise += (above + below) * to->noise;
    }
    return noise;
}

/* Contexts are worth looking at between these rates. */
#define KNOWN_LEAST 0.01
#define KNOWN_MOST 3.2

enum { TABLES = IQ_CODED_CONTEXTS / 2, PARTS = 4, NEAR = 3 };

/* `n` values of magnitude y, of either sign: a value and the opposite one go to the same tables, see coded_message.h. Context i of
 * those that are not mirrored goes to table i, and the opposite one too, to codes of the other sign. */
static void add_known(double y, double n, double codes[2 * CODES + 1][TABLES])
{
    int whole = (int)y;
    double part = (y - whole - 1.0) * IQ_CODED_CONTEXTS, share = n / IQ_CODED_CONTEXTS;
    for (int i = 0; i < TABLES; i++) {
        double up = part + i + 1, opposite = part + IQ_CODED_CONTEXTS - i;
        up = up < 0.0 ? 0.0 : up > 1.0 ? 1.0 : up;
        opposite = opposite < 0.0 ? 0.0 : opposite > 1.0 ? 1.0 : opposite;
        codes[CODES + whole][i] += share - share * up;
        codes[CODES + whole + 1][i] += share * up;
        codes[CODES - whole][i] += share - share * opposite;
        codes[CODES - whole - 1][i] += share * opposite;
    }
}

/* Bits of the values below eight steps where contexts are known; `many` values are above. */
static double known_bits(const iq_coded_tally_t *tally, int step, double many)
{
    double codes[2 * CODES + 1][TABLES] = {{0}}, count = (double)tally->count, bits = 0.0;
    int first, end, near = (FAINT - NEAR) * QUARTERS, base = (step - FAINT) * QUARTERS;
    fine_places(step, &first, &end);
    for (int place = first > near ? first : near; place < end; place++) { /* classes that are not small beside a context */
        double n = (double)both_signs(tally, (unsigned)(base + place)), unit = iq_exp2_whole(place / QUARTERS - FAINT);
        for (int i = 0; i < PARTS && n > 0.0; i++)
            add_known((1.0 + 0.25 * (place % QUARTERS + (i + 0.5) / PARTS)) * unit, n / PARTS, codes);
    }
    for (int place = first; place < end && place < near; place++) /* an eighth goes up, if any, of those for whom it lies highest */
        codes[CODES - 1][0] += (double)both_signs(tally, (unsigned)(base + place)) * (1.125 + 0.25 * (place % QUARTERS)) *
                               iq_exp2_whole(place / QUARTERS - FAINT);
    for (int table = 0; table < TABLES; table++) {
        double rest = (count - many) / TABLES;
        for (int i = 0; i < 2 * CODES + 1; i++)
            if (i != CODES) {
                bits += plog(codes[i][table], count / TABLES);
                rest -= codes[i][table];
            }
        bits += plog(rest, count / TABLES);
    }
    return bits;
}

static void curve_point(const iq_coded_tally_t *tally, const tails_t *tails, const fine_class_t *fine, int step, double *rate,
                        double *known, double *noise)
{
    double codes[2 * CODES + 1] = {0}, count = (double)tally->count;
    int least = step + FINE; /* exponent from which on codes are spread */
    double many = least < EXPONENTS ? tails->many[least < 0 ? 0 : least] : 0.0;
    double bits = least < EXPONENTS ? tails->bits[least < 0 ? 0 : least] - step * many : 0.0;
    double errors = many / 6.0 + fine_codes(tally, fine, step, codes), told = 0.0;
    double far = bits;
    for (int i = 0; i < 2 * CODES + 1; i++)
        if (i != CODES) {
            bits += plog(codes[i], count);
            told += codes[i];
        }
    bits += plog(count - many - told, count); /* the rest is code 0, fainter values too */
    *rate = *known = bits > 0.0 ? bits / count : 0.0;
    if (*rate > KNOWN_LEAST && *rate < KNOWN_MOST)
        *known = (far + known_bits(tally, step, many)) / count;
    *noise = errors / count;
}

void iq_coded_point(const iq_coded_tally_t *tally, int exponent, double *rate, double *known, double *noise)
{
    tails_t tails;
    fine_class_t fine[FINE_CLASSES];
    make_fine_classes(fine);
    sum_tails(tally, &tails);
    curve_point(tally, &tails, fine, exponent, rate, known, noise);
}

void iq_coded_curves(const iq_coded_tally_t *tally, double enough, iq_coded_curves_t *curves)
{
    tails_t tails;
    fine_class_t fine[FINE_CLASSES];
    int largest = EXPONENTS - 2, i = 0;
    memset(curves, 0, sizeof(*curves));
    make_fine_classes(fine);
    sum_tails(tally, &tails);
    while (largest > 0 && tails.many[largest] == 0.0)
        largest--;
    if (largest == 0)
        return;
    curves->top = largest + IQ_CODED_ABOVE;
    for (; i < IQ_CODED_WINDOW && (i < 2 || curves->rate[i - 1] < enough); i++)
        curve_point(tally, &tails, fine, curves->top - i, &curves->rate[i], &curves->known[i], &curves->noise[i]);
    for (double more = curves->rate[i - 1] - curves->rate[i - 2]; i < IQ_CODED_WINDOW; i++) {
        curves->rate[i] = curves->known[i] = curves->rate[i - 1] + more;
        curves->noise[i] = curves->noise[i - 1];
    }
}
