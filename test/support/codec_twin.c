/* SPDX-License-Identifier: Apache-2.0 */
/* Both rows of a codec, host and device, through one collective's steps: see codec_twin.h. */
#include "support/codec_twin.h"

#include "base/status.h"
#include "base/util.h"
#include "codec/dense.h"
#include "codec/levels.h"
#include "codec/strata.h"
#include "kernels/kernels.h"
#include "kernels/moment_math.h"
#include "support/codec_run.h"

#include <check.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define BYTES ISGQ_UINT8

/* Codec and call as either side sees them. */
typedef struct pair {
    const codec_twin_t *setup;
    iq_codec_t host, device;
    iq_codec_call_t host_call, device_call;
} pair_t;

static pair_t make_pair(const codec_twin_t *setup)
{
    pair_t pair = {.setup = setup, .host = setup->codec, .device = setup->codec};
    char text[128];
    const iq_codec_t *codec = &setup->codec;
    pair.device.ops = iq_codec_on_device(codec->ops);
    pair.host_call = (iq_codec_call_t){
        .datatype = setup->datatype, .op = setup->op, .nranks = setup->nranks, .seed = 0x123456789abcdef, .call = 77};
    pair.device_call = pair.host_call;
    pair.device_call.device = &twin_device;
    pair.host_call.call += (uint64_t)setup->replays << 32;
    text[0] = '\0';
    if (codec->bits != 0)
        snprintf(text, sizeof(text), " bits %u levels %u bucket %zu %s %s exact %d", codec->bits, codec->levels, codec->bucket,
                 (const char *[]){"nearest", "stochastic", "stratified"}[codec->rounding], codec->shared ? "shared" : "local",
                 codec->exact);
    snprintf(twin_what, sizeof(twin_what), "%s%s, %s %s of %d ranks, elements %zu+%zu",
             codec->model == NULL ? codec->ops->name : codec->model->name, text,
             iq_red_op_name(setup->op), iq_datatype_name(setup->datatype), setup->nranks, setup->span.first, setup->span.count);
    return pair;
}

/* Offsets for stratified rounding, of one rank after the other. */
static twin_t strata;

static void strata_new(const pair_t *pair)
{
    strata = twin_new((size_t)pair->setup->nranks * IQ_STRATA * sizeof(uint32_t), 0, ON_DEVICE);
    for (int rank = 0; rank < pair->setup->nranks; rank++)
        iq_strata_fill(pair->host_call.seed, pair->setup->nranks, rank, (uint32_t *)strata.host + rank * IQ_STRATA);
    twin_push(&strata);
}

static void set_rank(pair_t *pair, int rank)
{
    pair->host_call.rank = pair->device_call.rank = rank;
    if (pair->host.rounding == IQ_ROUND_STRATIFIED) {
        pair->host_call.strata = (const uint32_t *)strata.host + rank * IQ_STRATA;
        twin_device.strata = (const uint32_t *)strata.device + rank * IQ_STRATA;
    }
}

static bool is_uniform(const codec_twin_t *setup)
{
    return setup->codec.ops == &iq_codec_uniform_ops || setup->codec.ops == &iq_codec_uniform_norm_ops;
}

/* What a message of `parts` ranks, or a result (parts 1), is made of. */
static isgq_data_type_t message_type(const codec_twin_t *setup, int parts)
{
    if (setup->codec.ops == &iq_codec_intsgd_ops || setup->codec.ops == &iq_codec_exponential_ops)
        return BYTES;
    if (setup->codec.ops == &iq_codec_levels_ops)
        return parts == 1 ? BYTES : ISGQ_FLOAT32;
    if (is_uniform(setup))
        return setup->codec.shared || parts == 1 ? BYTES : ISGQ_FLOAT32;
    if (setup->codec.ops == &iq_codec_none_ops)
        return parts == 1 || iq_datatype_bytes(setup->datatype) != 2 ? setup->datatype : ISGQ_FLOAT32;
    return parts > 1 ? ISGQ_FLOAT32 : setup->codec.ops == &iq_codec_fp16_ops ? ISGQ_FLOAT16 : ISGQ_BFLOAT16;
}

static isgq_data_type_t acc_type(const codec_twin_t *setup)
{
    if (setup->codec.ops == &iq_codec_exponential_ops)
        return setup->codec.shared ? BYTES : ISGQ_FLOAT32;
    if (is_uniform(setup) || setup->codec.ops == &iq_codec_intsgd_ops)
        return setup->codec.shared ? ISGQ_UINT32 : ISGQ_FLOAT32;
    return message_type(setup, 2);
}

/* Buckets of sizes of their own, zeros, a few values that spoil a bucket. */
static float sample(size_t i)
{
    static const float special[] = {NAN, -INFINITY, -0.0f, 0x1p-130f, 1e30f, 0x1p-24f, INFINITY, 65519.0f};
    uint32_t draw = codec_random();
    if (draw % 1500 == 0)
        return special[draw / 1500 % 8];
    return draw % 7 == 0 || i / 128 % 5 == 3 ? 0.0f : codec_random_unit() * ldexpf(1.0f, -(int)(i / 100));
}

static twin_t input_new(const codec_twin_t *setup, size_t skew)
{
    size_t bytes = iq_datatype_bytes(setup->datatype);
    twin_t twin = twin_new(setup->span.count * bytes, skew * bytes, ON_DEVICE);
    for (size_t i = 0; i < setup->span.count; i++) {
        float value = sample(i);
        double wide = (double)value * 1.000000001;
        uint16_t half = setup->datatype == ISGQ_FLOAT16 ? iq_float_to_f16(value) : iq_float_to_bf16(value);
        if (setup->datatype == ISGQ_FLOAT32)
            memcpy(twin.host + i * 4, &value, 4);
        else if (setup->datatype == ISGQ_FLOAT64)
            memcpy(twin.host + i * 8, &wide, 8);
        else if (bytes == 2)
            memcpy(twin.host + i * 2, &half, 2);
    } /* integers are any */
    twin_push(&twin);
    return twin;
}

static twin_t message_new(const codec_twin_t *setup, size_t bytes, twin_place_t place)
{
    return twin_new(bytes, setup->codec.ops == &iq_codec_none_ops ? 8 : 4, place);
}

/* The device's words. */
static const float *fetch(const twin_t *room)
{
    twin_t moved = twin_new(room->bytes, 0, PINNED);
    ck_assert_int_eq(
        twin_device.cuda->copy(twin_device.ordinal, twin_device.stream, moved.device, room->device, room->bytes), ISGQ_SUCCESS);
    twin_settle();
    return (const float *)moved.device;
}

/* Doubles in two planes of words, of which one may be another NaN than the host's. */
static void compare_moments(const twin_t *room, size_t buckets, int planes)
{
    const float *found = fetch(room);
    for (int plane = planes % 2; plane < planes; plane += 2) {
        for (size_t b = 0; b < buckets; b++) {
            double expected = iq_moment_load((const float *)room->host, buckets, plane, b);
            double is = iq_moment_load(found, buckets, plane, b);
            if (memcmp(&is, &expected, sizeof(is)) != 0 && !(isnan(is) && isnan(expected)))
                ck_abort_msg("%s: moment %d of bucket %zu is %a, not %a", twin_what, plane, b, is, expected);
        }
    }
}

/* What is measured of all inputs, in pieces, and what is agreed on in the end. The tensor ends with the span. */
static twin_t agreed_new(pair_t *pair, const twin_t *inputs)
{
    const codec_twin_t *setup = pair->setup;
    const iq_codec_ops_t *host = pair->host.ops, *device = pair->device.ops;
    size_t count = setup->span.first + setup->span.count, unit = host->scales_unit(&pair->host), shared = host->shared_scales(&pair->host, count);
    size_t room = iq_codec_scales(&pair->host, count), element_bytes = iq_datatype_bytes(setup->datatype);
    twin_t scales = twin_new(room * sizeof(float), 4, ON_DEVICE);
    ck_assert_uint_eq(setup->span.first % unit, 0);
    pair->host_call.count = pair->device_call.count = count;
    memset(scales.host, 0, scales.bytes);
    twin_push(&scales);
    for (int rank = 0; rank < setup->nranks; rank++) {
        set_rank(pair, rank);
        for (iq_span_t span = setup->span; span.first < count; span.first += span.count) {
            size_t offset = (span.first - setup->span.first) * element_bytes;
            span.count = unit == 1 ? setup->span.count : iq_min(count - span.first, unit * (1 + (size_t)rank));
            host->local_scales(&pair->host, &pair->host_call, span, inputs[rank].host + offset,
                               (float *)scales.host);
            device->local_scales(&pair->device, &pair->device_call, span, inputs[rank].device + offset,
                                 (float *)scales.device);
        }
        if (room > shared)
            compare_moments(&scales, shared, (int)(room / shared));
    }
    host->close_scales(&pair->host, &pair->host_call, count, (float *)scales.host);
    device->close_scales(&pair->device, &pair->device_call, count, (float *)scales.device);
    host->open_scales(&pair->host, &pair->host_call, count, (float *)scales.host);
    device->open_scales(&pair->device, &pair->device_call, count, (float *)scales.device);
    const float *found = fetch(&scales);
    for (size_t b = 0; b < shared; b++)
        if (memcmp(&found[b], scales.host + b * sizeof(float), sizeof(float)) != 0)
            ck_abort_msg("%s: scale %zu is %a", twin_what, b, (double)found[b]);
    twin_check_ends(&scales, "scales");
    pair->host_call.scales = (const float *)scales.host;
    pair->device_call.scales = (const float *)scales.device;
    return scales;
}

/* Shared scales of all inputs, of one bucket before the span's first too if there is one. */
static twin_t scales_new(pair_t *pair, const twin_t *inputs)
{
    const codec_twin_t *setup = pair->setup;
    if (pair->host.ops->room_scales != NULL)
        return agreed_new(pair, inputs);
    size_t bucket = setup->codec.bucket, first = bucket == 0 ? 0 : setup->span.first / bucket;
    size_t last = bucket == 0 ? 0 : (setup->span.first + setup->span.count - 1) / bucket;
    first -= first > 0;
    twin_t scales = twin_new((last - first + 1) * sizeof(float), 4, ON_DEVICE);
    memset(scales.host, 0, scales.bytes);
    twin_push(&scales);
    pair->host_call.first_bucket = pair->device_call.first_bucket = first;
    for (int rank = 0; rank < setup->nranks; rank++) {
        set_rank(pair, rank);
        pair->host.ops->local_scales(&pair->host, &pair->host_call, setup->span, inputs[rank].host, (float *)scales.host);
        pair->device.ops->local_scales(&pair->device, &pair->device_call, setup->span, inputs[rank].device,
                                       (float *)scales.device);
        twin_compare(&scales, ISGQ_FLOAT32, "local_scales");
    }
    pair->host_call.scales = (const float *)scales.host;
    pair->device_call.scales = (const float *)scales.device;
    return scales;
}

static void encode(pair_t *pair, int rank, const twin_t *input, twin_t *message)
{
    set_rank(pair, rank);
    pair->host.ops->encode(&pair->host, &pair->host_call, pair->setup->span, input->host, message->host);
    pair->device.ops->encode(&pair->device, &pair->device_call, pair->setup->span, input->device, message->device);
    twin_compare(message, message_type(pair->setup, 1), "encode");
}

static void add_own(pair_t *pair, int rank, const twin_t *input, twin_t *acc, bool first)
{
    set_rank(pair, rank);
    pair->host.ops->add_own(&pair->host, &pair->host_call, pair->setup->span, input->host, acc->host, first);
    pair->device.ops->add_own(&pair->device, &pair->device_call, pair->setup->span, input->device, acc->device, first);
    twin_compare(acc, acc_type(pair->setup), first ? "add_own first" : "add_own");
}

static void add(pair_t *pair, const twin_t *message, int parts, twin_t *acc, bool first)
{
    iq_span_t span = pair->setup->span;
    ck_assert_int_eq(pair->host.ops->add(&pair->host, &pair->host_call, span, message->host, parts, acc->host, first),
                     ISGQ_SUCCESS);
    ck_assert_int_eq(pair->device.ops->add(&pair->device, &pair->device_call, span, message->device, parts, acc->device, first),
                     ISGQ_SUCCESS);
    twin_compare(acc, acc_type(pair->setup), parts == 1 ? "add" : "add of a partial sum");
}

static twin_t store(pair_t *pair, const twin_t *acc, int parts)
{
    iq_span_t span = pair->setup->span;
    size_t bytes = pair->device.ops->partial_bytes(&pair->device, &pair->device_call, span, parts);
    twin_t message = message_new(pair->setup, bytes, pair->setup->place);
    pair->host.ops->store(&pair->host, &pair->host_call, span, acc->host, parts, message.host);
    pair->device.ops->store(&pair->device, &pair->device_call, span, acc->device, parts, message.device);
    twin_compare(&message, message_type(pair->setup, parts), "store");
    return message;
}

static void finish(pair_t *pair, const twin_t *acc, twin_t *message)
{
    pair->host.ops->finish(&pair->host, &pair->host_call, pair->setup->span, acc->host, message->host);
    pair->device.ops->finish(&pair->device, &pair->device_call, pair->setup->span, acc->device, message->device);
    twin_compare(message, message_type(pair->setup, 1), "finish");
}

/* To the output, written and then added to. */
static void output(pair_t *pair, const twin_t *acc, const twin_t *message, twin_t *out)
{
    iq_span_t span = pair->setup->span;
    for (int accumulate = 0; accumulate <= 1; accumulate++) {
        pair->host_call.accumulate = pair->device_call.accumulate = accumulate;
        ck_assert_int_eq(pair->host.ops->decode(&pair->host, &pair->host_call, span, message->host, out->host), ISGQ_SUCCESS);
        ck_assert_int_eq(pair->device.ops->decode(&pair->device, &pair->device_call, span, message->device, out->device),
                         ISGQ_SUCCESS);
        twin_compare(out, pair->setup->datatype, "decode");
        pair->host.ops->deliver(&pair->host, &pair->host_call, span, acc->host, out->host);
        pair->device.ops->deliver(&pair->device, &pair->device_call, span, acc->device, out->device);
        twin_compare(out, pair->setup->datatype, "deliver");
    }
}

/* Room for scales, not a byte more than the codec asks for. */
static twin_t scratch_new(const codec_twin_t *setup)
{
    twin_t scratch = twin_new(iq_codec_device_scratch(&setup->codec, setup->span.count), 0, ON_DEVICE);
    twin_device.scratch = (float *)scratch.device;
    twin_device.scratch_bytes = scratch.bytes;
    return scratch;
}

/* The word that counts them, where kernels read it. */
static void replays_new(const codec_twin_t *setup)
{
    twin_t word = twin_new(sizeof(setup->replays), 0, ON_DEVICE);
    memcpy(word.host, &setup->replays, sizeof(setup->replays));
    twin_push(&word);
    twin_device.replays = (const uint32_t *)word.device;
}

void codec_twin_run(const codec_twin_t *setup)
{
    twin_t inputs[CODEC_TWIN_RANKS], messages[CODEC_TWIN_RANKS], acc, own, result, out, scratch;
    pair_t pair = make_pair(setup);
    size_t acc_bytes = setup->span.count * setup->codec.ops->acc_bytes(&pair.host, &pair.host_call);
    twin_forget();
    scratch = scratch_new(setup);
    if (setup->codec.rounding == IQ_ROUND_STRATIFIED)
        strata_new(&pair);
    if (setup->replays != 0)
        replays_new(setup);
    for (int rank = 0; rank < setup->nranks; rank++)
        inputs[rank] = input_new(setup, rank % 2);
    if (pair.device.ops->needs_scales(&pair.device))
        scales_new(&pair, inputs);
    acc = twin_new(acc_bytes, 0, ON_DEVICE);
    own = twin_new(acc_bytes, 8, ON_DEVICE);
    for (int rank = 0; rank < setup->nranks; rank++) {
        size_t bytes = pair.device.ops->partial_bytes(&pair.device, &pair.device_call, setup->span, 1);
        messages[rank] = message_new(setup, bytes, rank % 2 == 0 ? setup->place : ON_DEVICE);
        encode(&pair, rank, &inputs[rank], &messages[rank]);
        if (rank % 2 == 0)
            add(&pair, &messages[rank], 1, &acc, rank == 0);
        else
            add_own(&pair, rank, &inputs[rank], &acc, false);
    }
    add_own(&pair, setup->nranks - 1, &inputs[setup->nranks - 1], &own, true);
    store(&pair, &own, 1);
    twin_t partial = store(&pair, &acc, setup->nranks);
    add(&pair, &partial, setup->nranks, &own, false);
    add(&pair, &partial, setup->nranks, &own, true);
    result = message_new(setup, pair.device.ops->result_bytes(&pair.device, &pair.device_call, setup->span), setup->place);
    finish(&pair, &acc, &result);
    out = twin_new(setup->span.count * iq_datatype_bytes(setup->datatype), iq_datatype_bytes(setup->datatype), ON_DEVICE);
    output(&pair, &acc, &result, &out);
    ck_assert_msg(iq_device_check(&twin_device, "test") == ISGQ_SUCCESS, "%s: %s", twin_what, iq_last_error());
    twin_check_ends(&scratch, "scratch");
}

/* ---- damaged messages ---- */

/* The host's verdict on the message as it is must be the device's. */
static bool verdicts_agree(pair_t *pair, const twin_t *message, int parts, twin_t *acc)
{
    iq_span_t span = pair->setup->span;
    twin_push(message);
    isgq_result_t host = parts > 0
                             ? pair->host.ops->add(&pair->host, &pair->host_call, span, message->host, parts, acc->host, true)
                             : pair->host.ops->decode(&pair->host, &pair->host_call, span, message->host, acc->host);
    isgq_result_t launched =
        parts > 0 ? pair->device.ops->add(&pair->device, &pair->device_call, span, message->device, parts, acc->device, true)
                  : pair->device.ops->decode(&pair->device, &pair->device_call, span, message->device, acc->device);
    ck_assert_int_eq(launched, ISGQ_SUCCESS);
    twin_settle();
    ck_assert_msg(iq_device_check(&twin_device, "uniform") == host, "%s: the host says %d, %s", twin_what, host, iq_last_error());
    ck_assert_msg(iq_device_check(&twin_device, "uniform") == ISGQ_SUCCESS, "%s: the fault stays", twin_what);
    return host == ISGQ_SUCCESS;
}

void codec_twin_flip_bits(const codec_twin_t *setup, int parts)
{
    pair_t pair = make_pair(setup);
    size_t harmless = 0;
    twin_forget();
    twin_t scratch = scratch_new(setup), input = input_new(setup, 0), inputs[2] = {input, input};
    twin_t acc = twin_new(setup->span.count * 4, 0, ON_DEVICE);
    if (pair.device.ops->needs_scales(&pair.device))
        scales_new(&pair, inputs);
    add_own(&pair, 0, &input, &acc, true);
    if (parts != 1)
        add_own(&pair, 1, &input, &acc, false);
    twin_t message = store(&pair, &acc, parts == 0 ? 2 : parts);
    if (parts == 0) {
        message = message_new(setup, pair.device.ops->result_bytes(&pair.device, &pair.device_call, setup->span), setup->place);
        finish(&pair, &acc, &message);
    }
    ck_assert(verdicts_agree(&pair, &message, parts, &acc));
    for (size_t bit = 0; bit < message.bytes * 8; bit++) {
        message.host[bit / 8] ^= (unsigned char)(1u << bit % 8);
        harmless += verdicts_agree(&pair, &message, parts, &acc);
        message.host[bit / 8] ^= (unsigned char)(1u << bit % 8);
    }
    ck_assert_uint_lt(harmless, message.bytes * 8);
    twin_check_ends(&scratch, "scratch");
}
