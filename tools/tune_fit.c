/* SPDX-License-Identifier: Apache-2.0 */
#include "tools/tune.h"

#include <math.h>
#include <stdlib.h>

#define LEAST_WIRE 0.1    /* of a call's time, whatever copies and sums seem to take */
#define LEAST_CODES 0.1   /* of the time that codes take alone, however much of it the wire hides */
#define LEAST_PRODUCT 0.1 /* of a factored call's time, whatever its codes seem to take */

static int by_value(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

double iq_tune_median(double *values, size_t count)
{
    qsort(values, count, sizeof(*values), by_value);
    return count % 2 == 1 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

void iq_tune_fit(iq_tune_line_t *line)
{
    double weights = 0, x = 0, xx = 0, y = 0, xy = 0;
    for (size_t i = 0; i < line->count; i++) {
        double weight = 1 / line->seconds[i], bytes = line->bytes[i];
        weights += weight;
        x += weight * bytes;
        xx += weight * bytes * bytes;
        y += weight * line->seconds[i];
        xy += weight * bytes * line->seconds[i];
    }
    double spread = weights * xx - x * x;
    line->beta = spread > 0 ? (weights * xy - x * y) / spread : 0;
    line->alpha = (y - line->beta * x) / weights;
    if (line->alpha < 0) { /* small calls pass at a rate of their own: the smallest shows what a call takes at least */
        line->alpha = line->seconds[0];
        line->beta = (xy - line->alpha * x) / xx;
    }
    if (line->beta < 0) {
        line->beta = 0;
        line->alpha = y / weights;
    }
}

/* Copies and sums of an allreduce among so many ranks, seconds a byte: the model's codec_seconds. */
static double local_seconds(const isgqx_tuning_t *tuning, double ranks)
{
    return (ranks - 1) / ranks * (1 / tuning->copy_rate + 1 / tuning->sum_rate) + 1 / tuning->copy_rate;
}

static void raise_rates(isgqx_tuning_t *tuning, const iq_tune_line_t *line, double ranks)
{
    double most = (1 - LEAST_WIRE) * line->beta, local = local_seconds(tuning, ranks);
    if (most <= 0 || local <= most)
        return;
    tuning->copy_rate *= local / most;
    tuning->sum_rate *= local / most;
}

/* Bytes/s of a link that `sharing` ranks use at once, each with a call of so many ranks. */
static double link_rate(const isgqx_tuning_t *tuning, const iq_tune_line_t *line, double ranks, double sharing)
{
    double wire = line->beta - local_seconds(tuning, ranks); /* at least LEAST_WIRE of it */
    return wire > 0 ? 2 * sharing * (ranks - 1) / ranks / wire : tuning->copy_rate;
}

double iq_tune_speedup(double seconds, double coded, double uncoded)
{
    double codes = coded - uncoded;
    return codes > 0 ? codes / fmax(seconds - uncoded, LEAST_CODES * codes) : 1;
}

double iq_tune_product(double rows, const double sides[2], const double seconds[2])
{
    double products = rows * sides[1] * (sides[1] - sides[0]), more = seconds[1] - sides[1] / sides[0] * seconds[0];
    return products / fmax(more, LEAST_PRODUCT * seconds[1]);
}

void iq_tune_fill(double *values, size_t count)
{
    for (size_t i = 1; i < count; i++)
        values[i] = values[i] != 0 ? values[i] : values[i - 1];
    for (size_t i = count - 1; i-- > 0;)
        values[i] = values[i] != 0 ? values[i] : values[i + 1];
}

void iq_tune_links(isgqx_tuning_t *tuning, const iq_tune_line_t *inside, const iq_tune_line_t *across)
{
    if (inside != NULL)
        raise_rates(tuning, inside, tuning->ranks_per_host);
    if (across != NULL)
        raise_rates(tuning, across, tuning->hosts);
    tuning->host_latency = inside != NULL ? inside->alpha / 2 : 0; /* two rounds of messages */
    tuning->host_rate = inside != NULL ? link_rate(tuning, inside, tuning->ranks_per_host, 1) : tuning->copy_rate;
    tuning->network_latency = across != NULL ? across->alpha / 2 : tuning->host_latency;
    tuning->network_rate = across != NULL ? link_rate(tuning, across, tuning->hosts, tuning->ranks_per_host) : tuning->host_rate;
}
