/* SPDX-License-Identifier: Apache-2.0 */
/* What a step of a plan does with data: see step.h. */
#include "core/step.h"

#include "base/status.h"

#include <string.h>

static const iq_codec_ops_t *ops_of(const iq_step_data_t *data) { return data->stage->codec.ops; }

iq_step_data_t iq_step_data(const iq_stage_t *stage, const iq_action_t *action)
{
    /* src and dst may be notional: only the part that this rank has is ever touched. Arithmetic goes through uintptr_t for that reason. */
    return (iq_step_data_t){.stage = stage,
                            .action = action,
                            .span = {action->first, action->count},
                            .src = (const unsigned char *)((uintptr_t)stage->src + action->first * stage->own_bytes),
                            .dst = (unsigned char *)((uintptr_t)stage->dst + action->first * stage->element_bytes)};
}

size_t iq_step_partial_bytes(const iq_step_data_t *data, int parts)
{
    return ops_of(data)->partial_bytes(&data->stage->codec, &data->stage->codec_call, data->span, parts);
}

size_t iq_step_result_bytes(const iq_step_data_t *data)
{
    return ops_of(data)->result_bytes(&data->stage->codec, &data->stage->codec_call, data->span);
}

static uint32_t length_of(const void *message)
{
    uint32_t length;
    memcpy(&length, message, sizeof(length));
    return length;
}

size_t iq_step_message_bytes(const iq_step_data_t *data, const void *message, size_t most)
{
    return ops_of(data)->varies ? length_of(message) : most;
}

isgq_result_t iq_step_check_length(const iq_step_data_t *data, const void *message, size_t bytes)
{
    if (!ops_of(data)->varies || (bytes >= sizeof(uint32_t) && length_of(message) == bytes))
        return ISGQ_SUCCESS;
    return IQ_FAIL(ISGQ_ERR_CORRUPT, "codec %s: a message of %zu bytes says that it has %u", ops_of(data)->name, bytes,
                   bytes >= sizeof(uint32_t) ? length_of(message) : 0);
}

void *iq_step_accumulator(const iq_step_data_t *data)
{
    return data->stage->sums_in_place && data->src != data->dst ? data->dst : data->stage->room.acc;
}

void iq_step_encode(const iq_step_data_t *data, void *message)
{
    ops_of(data)->encode(&data->stage->codec, &data->stage->own_call, data->span, data->src, message);
}

void iq_step_add_own(const iq_step_data_t *data, void *acc, bool first)
{
    ops_of(data)->add_own(&data->stage->codec, &data->stage->own_call, data->span, data->src, acc, first);
    iq_own_error_look(data, NULL);
}

isgq_result_t iq_step_add(const iq_step_data_t *data, const void *message, int parts, void *acc, bool first)
{
    return ops_of(data)->add(&data->stage->codec, &data->stage->codec_call, data->span, message, parts, acc, first);
}

void iq_step_store(const iq_step_data_t *data, const void *acc, int parts, void *message)
{
    ops_of(data)->store(&data->stage->codec, &data->stage->codec_call, data->span, acc, parts, message);
}

isgq_result_t iq_step_sum(const iq_step_data_t *data, const void *const messages[], int nranks)
{
    const iq_stage_t *stage = data->stage;
    void *acc = stage->room.acc;
    if (ops_of(data)->sum != NULL && stage->own == NULL) {
        size_t posted = data->span.first + IQ_SLOTS * stage->plan->chunk; /* where POST goes on when this slot is free */
        bool more = stage->plan->count > data->span.count && posted <= stage->plan->count - data->span.count;
        ops_of(data)->sum(&stage->codec, &stage->codec_call, data->span, messages, data->src,
                          more ? data->src + (posted - data->span.first) * stage->own_bytes : NULL, data->dst);
        return ISGQ_SUCCESS;
    }
    for (int rank = 0; rank < nranks; rank++) {
        if (messages[rank] == NULL)
            iq_step_add_own(data, acc, rank == 0);
        else
            IQ_TRY(iq_step_add(data, messages[rank], 1, acc, rank == 0));
    }
    return iq_step_finish_into(data, acc, NULL);
}

/* Lossless results go straight to the output. */
isgq_result_t iq_step_finish_into(const iq_step_data_t *data, const void *acc, void *message)
{
    const iq_stage_t *stage = data->stage;
    if (message != NULL)
        ops_of(data)->finish(&stage->codec, &stage->codec_call, data->span, acc, message);
    if (message != NULL && !ops_of(data)->result_is_exact(&stage->codec, &stage->codec_call)) {
        iq_own_error_look_at_result(data, acc, message);
        return iq_step_decode(data, message);
    }
    ops_of(data)->deliver(&stage->codec, &stage->codec_call, data->span, acc, data->dst);
    return ISGQ_SUCCESS;
}

isgq_result_t iq_step_finish(const iq_step_data_t *data)
{
    const iq_stage_t *stage = data->stage;
    if (stage->sums_in_place) /* the output is the result message */
        return iq_step_deliver(data);
    return iq_step_finish_into(data, stage->room.acc, stage->room.result);
}

isgq_result_t iq_step_deliver(const iq_step_data_t *data)
{
    const void *acc = iq_step_accumulator(data);
    return acc == data->dst ? ISGQ_SUCCESS : iq_step_finish_into(data, acc, NULL);
}

const void *iq_step_result(const iq_step_data_t *data) { return data->stage->sums_in_place ? data->dst : data->stage->room.result; }

isgq_result_t iq_step_decode(const iq_step_data_t *data, const void *message)
{
    return ops_of(data)->decode(&data->stage->codec, &data->stage->codec_call, data->span, message, data->dst);
}
