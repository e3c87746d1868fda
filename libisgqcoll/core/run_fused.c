/* SPDX-License-Identifier: Apache-2.0 */
/* Calls that travel together (core/fuse.c): one dense allreduce of all their tensors side by side, and its bytes divided among them. */
#include "base/util.h"
#include "core/run.h"

#include <string.h>

static iq_call_t *next_member(isgq_comm_t comm, const iq_call_t *call, uint64_t *sequence)
{
    *sequence += call->next_fused;
    return &comm->calls[*sequence % IQ_QUEUE_CALLS];
}

/* The call as its codec would see it alone. */
static iq_codec_call_t own_call(isgq_comm_t comm, const iq_call_t *call)
{
    return (iq_codec_call_t){.datatype = call->datatype,
                             .op = call->op,
                             .nranks = comm->nranks,
                             .rank = comm->rank,
                             .seed = comm->key,
                             .call = call->sequence,
                             .count = call->count,
                             .strata = comm->strata,
                             .accumulate = call->accumulate};
}

/* One part a trip. */
static isgq_result_t work_fused_scales(isgq_comm_t comm, iq_run_t *run, size_t trip)
{
    const iq_fused_part_t *part = &run->fused.parts[trip];
    const iq_codec_t *codec = &run->call->codec;
    float *scales = run->scales + (part->call.scales - run->scales);
    (void)comm;
    codec->ops->local_scales(codec, &part->call, (iq_span_t){0, part->call.count}, part->src, scales);
    return ISGQ_SUCCESS;
}

/* Scales of all parts, one after another, and one agreement on them. */
static isgq_result_t add_fused_scales(isgq_comm_t comm, iq_run_t *run, iq_fused_part_t *parts)
{
    const iq_codec_t *codec = &run->call->codec;
    size_t scales = 0, nparts = run->fused.nparts;
    for (size_t i = 0; i < nparts; i++)
        scales += iq_codec_scales(codec, parts[i].call.count);
    run->scales = iq_scratch_take(run, scales * sizeof(float));
    if (run->scales == NULL)
        return ISGQ_ERR_NO_MEMORY;
    memset(run->scales, 0, scales * sizeof(float));
    const float *next = run->scales;
    for (size_t i = 0; i < nparts; i++) {
        parts[i].call.scales = next;
        next += iq_codec_scales(codec, parts[i].call.count);
    }
    iq_run_add_work(run, "scales", work_fused_scales, nparts);
    return iq_run_add_exact(comm, run, "maximum of scales", ISGQ_FLOAT32, ISGQ_MAX, scales, run->scales, false);
}

isgq_result_t iq_run_begin_fused(isgq_comm_t comm, iq_run_t *run)
{
    const iq_call_t *carrier = run->call, *call = carrier;
    iq_fused_part_t *parts = iq_scratch_take(run, carrier->fused * sizeof(*parts));
    iq_stage_t *stage;
    size_t count = 0;
    uint64_t sequence = carrier->sequence;
    if (parts == NULL)
        return ISGQ_ERR_NO_MEMORY;
    for (size_t i = 0; i < carrier->fused; i++, call = next_member(comm, call, &sequence)) {
        count = iq_align_up(count, IQ_FUSED_UNIT);
        parts[i] = (iq_fused_part_t){.first = count, .call = own_call(comm, call), .src = call->send, .dst = call->recv};
        count += call->count;
    }
    run->fused = (iq_fused_t){.codec = &carrier->codec, .parts = parts, .nparts = carrier->fused};
    if (carrier->codec.ops->needs_scales(&carrier->codec))
        IQ_TRY(add_fused_scales(comm, run, parts));
    iq_codec_t codec = iq_codec_fused(&carrier->codec, comm->nranks);
    iq_codec_call_t codec_call = {.datatype = carrier->datatype, .op = carrier->op, .nranks = comm->nranks, .rank = comm->rank,
                                  .count = count, .fused = &run->fused};
    IQ_TRY(iq_run_add_plan(comm, run, "fused allreduces", carrier->algorithm, &codec, &codec_call, count, false, iq_run_everybody(comm), &stage));
    stage->src = parts[0].src; /* only the parts' are looked at */
    stage->dst = parts[0].dst;
    return ISGQ_SUCCESS;
}

void iq_run_divide_fused(isgq_comm_t comm, iq_run_t *run, uint64_t time_ns)
{
    uint64_t sequence = run->call->sequence, sent = run->wire_bytes, own = run->own_bytes, all = 0;
    const iq_call_t *call = run->call;
    for (size_t i = 0; i < run->fused.nparts; i++, call = next_member(comm, call, &sequence))
        all += call->input_bytes;
    sequence = run->call->sequence;
    call = run->call;
    for (size_t i = 1; i < run->fused.nparts; i++) {
        iq_call_t *member = next_member(comm, call, &sequence);
        member->wire_bytes = sent * member->input_bytes / all;
        member->own_bytes = own * member->input_bytes / all;
        member->time_ns = time_ns;
        run->wire_bytes -= member->wire_bytes;
        run->own_bytes -= member->own_bytes;
        call = member;
    }
}
