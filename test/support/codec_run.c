/* SPDX-License-Identifier: Apache-2.0 */
#include "support/codec_run.h"

#include "base/util.h"
#include "codec/families.h"
#include "codec/strata.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

iq_codec_t codec_of_family(const char *name)
{
    const iq_family_t *family = iq_families;
    while (family->name != NULL && strcmp(family->name, name) != 0)
        family++;
    ck_assert_msg(family->name != NULL && family->codec.ops != NULL, "no dense family is called %s", name);
    iq_codec_t codec = family->codec;
    codec.family = family;
    return codec;
}

static uint64_t state = 88172645463325252ull;

uint32_t codec_random(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 16);
}

float codec_random_unit(void) { return (float)((double)codec_random() / 2147483648.0 - 1.0); }

static const void *input(const codec_run_t *run, int rank, iq_span_t span)
{
    return (const char *)run->inputs[rank] + span.first * iq_datatype_bytes(run->call.datatype);
}

/* One rank's floats of room, measured in pieces and closed. */
static float *measure(const codec_run_t *run, int rank)
{
    const iq_codec_ops_t *ops = run->codec.ops;
    size_t unit = ops->scales_unit == NULL ? 1 : ops->scales_unit(&run->codec);
    float *scales = calloc(iq_codec_scales(&run->codec, run->count) + 1, sizeof(*scales));
    iq_codec_call_t call = run->call;
    call.count = run->count;
    for (iq_span_t span = {0, 0}; span.first < run->count; span.first += span.count) {
        span.count = iq_align_up(1 + codec_random() % 3000, unit);
        if (span.count > run->count - span.first)
            span.count = run->count - span.first;
        ops->local_scales(&run->codec, &call, span, input(run, rank, span), scales);
    }
    if (ops->close_scales != NULL)
        ops->close_scales(&run->codec, &run->call, run->count, scales);
    return scales;
}

float *codec_run_scales(const codec_run_t *run)
{
    const iq_codec_ops_t *ops = run->codec.ops;
    if (!ops->needs_scales(&run->codec))
        return NULL;
    size_t room = iq_codec_scales(&run->codec, run->count);
    size_t shared = ops->shared_scales == NULL ? room : ops->shared_scales(&run->codec, run->count);
    bool adds = ops->scales_op != NULL && ops->scales_op(&run->codec) == ISGQ_SUM;
    float *scales = measure(run, 0);
    for (int rank = 1; rank < run->call.nranks; rank++) {
        float *own = measure(run, rank);
        for (size_t i = 0; i < shared; i++)
            scales[i] = adds ? scales[i] + own[i] : own[i] > scales[i] ? own[i] : scales[i];
        free(own);
    }
    if (ops->open_scales != NULL)
        ops->open_scales(&run->codec, &run->call, run->count, scales);
    return scales;
}

/* What rank `rank` of the run tells the codec. */
static iq_codec_call_t rank_call(const codec_run_t *run, int rank, const float *scales)
{
    static uint32_t strata[CODEC_RUN_MAX_RANKS][IQ_STRATA];
    static uint64_t seed;
    static int nranks;
    iq_codec_call_t call = run->call;
    call.rank = rank;
    call.scales = scales;
    if (call.strata == NULL && run->codec.rounding == IQ_ROUND_STRATIFIED) {
        for (int r = 0; r < call.nranks && (nranks != call.nranks || seed != call.seed); r++)
            iq_strata_fill(call.seed, call.nranks, r, strata[r]);
        seed = call.seed;
        nranks = call.nranks;
        call.strata = strata[rank];
    }
    return call;
}

static unsigned char *message_room(size_t bytes) { return malloc(bytes + 1); }

unsigned char *codec_run_message(const codec_run_t *run, int rank, iq_span_t span, const float *scales, size_t *bytes)
{
    iq_codec_call_t call = rank_call(run, rank, scales);
    *bytes = run->codec.ops->partial_bytes(&run->codec, &call, span, 1);
    unsigned char *message = message_room(*bytes);
    run->codec.ops->encode(&run->codec, &call, span, input(run, rank, span), message + 1);
    return message;
}

/* Rank order through the accumulator; `owner` adds its input without a message (-1: nobody). */
static void add_all(const codec_run_t *run, const float *scales, iq_span_t span, int owner, void *acc)
{
    for (int rank = 0; rank < run->call.nranks; rank++) {
        iq_codec_call_t call = rank_call(run, rank, scales);
        size_t bytes;
        if (rank == owner) {
            run->codec.ops->add_own(&run->codec, &call, span, input(run, rank, span), acc, rank == 0);
            continue;
        }
        unsigned char *message = codec_run_message(run, rank, span, scales, &bytes);
        ck_assert_int_eq(run->codec.ops->add(&run->codec, &call, span, message + 1, 1, acc, rank == 0), ISGQ_SUCCESS);
        free(message);
    }
}

static void add_in_chain(const codec_run_t *run, const float *scales, iq_span_t span, void *acc)
{
    size_t bytes;
    unsigned char *message = codec_run_message(run, 0, span, scales, &bytes);
    if (run->call.nranks == 1)
        add_all(run, scales, span, 0, acc);
    for (int rank = 1; rank < run->call.nranks; rank++) {
        iq_codec_call_t call = rank_call(run, rank, scales);
        ck_assert_int_eq(run->codec.ops->add(&run->codec, &call, span, message + 1, rank, acc, true), ISGQ_SUCCESS);
        run->codec.ops->add_own(&run->codec, &call, span, input(run, rank, span), acc, false);
        free(message);
        message = message_room(run->codec.ops->partial_bytes(&run->codec, &call, span, rank + 1));
        run->codec.ops->store(&run->codec, &call, span, acc, rank + 1, message + 1);
    }
    free(message);
}

static void run_span(const codec_run_t *run, const float *scales, codec_way_t way, iq_span_t span, void *dst)
{
    const iq_codec_ops_t *ops = run->codec.ops;
    iq_codec_call_t call = rank_call(run, run->call.nranks / 2, scales);
    void *acc = malloc(span.count * ops->acc_bytes(&run->codec, &call) + 1);
    if (way == CODEC_CHAIN)
        add_in_chain(run, scales, span, acc);
    else
        add_all(run, scales, span, way == CODEC_DIRECT ? -1 : call.rank, acc);
    if (way == CODEC_DELIVER) {
        ops->deliver(&run->codec, &call, span, acc, dst);
    } else {
        unsigned char *message = message_room(ops->result_bytes(&run->codec, &call, span));
        ops->finish(&run->codec, &call, span, acc, message + 1);
        call.rank = 0;
        ck_assert_int_eq(ops->decode(&run->codec, &call, span, message + 1, dst), ISGQ_SUCCESS);
        free(message);
    }
    free(acc);
}

void codec_run(const codec_run_t *run, codec_way_t way, size_t unit, void *dst)
{
    float *scales = codec_run_scales(run);
    size_t element_bytes = iq_datatype_bytes(run->call.datatype);
    for (iq_span_t span = {0, 0}; span.first < run->count; span.first += span.count) {
        span.count = unit == 0 ? run->count : unit * (1 + codec_random() % (3000 / unit + 1));
        if (span.count > run->count - span.first)
            span.count = run->count - span.first;
        run_span(run, scales, way, span, (char *)dst + span.first * element_bytes);
    }
    free(scales);
}
