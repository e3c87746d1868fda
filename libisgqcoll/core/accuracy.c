/* SPDX-License-Identifier: Apache-2.0 */
/* What was measured of calls' accuracy, for isgq_comm_get_stats and the log: own contributions (own_error.h) and shadows (shadow.c). */
#include "base/config.h"
#include "base/log.h"
#include "core/run.h"

#include <math.h>

/* 0 / 0 is no error; anything else over 0 is an infinite one. */
static double ratio(double error, double square)
{
    if (square > 0.0)
        return error / square;
    return error > 0.0 ? (double)INFINITY : 0.0;
}

bool iq_accuracy_wanted(isgq_comm_t comm, const iq_call_t *call)
{
    uint32_t every = iq_config()->accuracy_every;
    bool loses = call->codec.ops != iq_codec_none.ops || call->power_rank != 0;
    return every != 0 && loses && ++comm->accuracy_turn % every == 0;
}

static void take(double value, uint64_t calls, double *last, double *mean)
{
    *last = value;
    *mean += (value - *mean) / (double)calls;
}

static double part(uint64_t some, uint64_t all) { return all > 0 ? (double)some / (double)all : 0.0; }

static double own_nmse(const iq_own_error_t *own) { return ratio(iq_exact_value(&own->error), iq_exact_value(&own->square)); }

static double residual_norm(const iq_own_error_t *own) { return sqrt(fmax(own->residual_square, 0.0)); }

void iq_accuracy_count(isgq_comm_t comm, const iq_run_t *run)
{
    const iq_own_error_t *own = &run->own_error;
    const iq_shadow_t *shadow = &run->shadow;
    isgq_stats_t *stats = &comm->stats;
    double shadow_nmse = ratio(shadow->error, shadow->square);
    stats->lost_errors += own->lost;
    if (own->measures) {
        uint64_t calls = ++stats->accuracy_calls;
        take(own_nmse(own), calls, &stats->nmse, &stats->mean_nmse);
        take(part(own->zeros, own->count), calls, &stats->zeros, &stats->mean_zeros);
        take(part(own->limits, own->count), calls, &stats->limits, &stats->mean_limits);
        take(residual_norm(own), calls, &stats->residual_norm, &stats->mean_residual_norm);
    }
    stats->shadow_bytes += shadow->wire_bytes;
    if (shadow->runs && isfinite(shadow_nmse))
        take(shadow_nmse, ++stats->shadow_calls, &stats->shadow_nmse, &stats->mean_shadow_nmse);
}

void iq_accuracy_log(const iq_run_t *run)
{
    const iq_own_error_t *own = &run->own_error;
    const iq_shadow_t *shadow = &run->shadow;
    const iq_call_t *call = run->call;
    unsigned long long sequence = call->sequence;
    if (own->measures)
        IQ_INFO("call %llu: %s of %zu elements, %s: own contribution has nmse %.3g, %.3g of it zeros, %.3g at its limits, residual %.3g", sequence,
                iq_call_kind_name(call->kind), call->count, call->quantizer->text, own_nmse(own),
                part(own->zeros, own->count), part(own->limits, own->count), residual_norm(own));
    if (shadow->runs)
        IQ_INFO("call %llu: %s of %zu elements, %s: nmse %.3g against the exact result, %llu bytes sent to know", sequence,
                iq_call_kind_name(call->kind), call->count, call->quantizer->text, ratio(shadow->error, shadow->square),
                (unsigned long long)shadow->wire_bytes);
}
