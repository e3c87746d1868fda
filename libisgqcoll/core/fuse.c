/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Small allreduces of a group that travel together (ADR 0023).
 *
 * The calls of a group on a communicator are queued in windows of at most IQ_FUSE_CALLS. In a window the small allreduces of the same type, operation and
 * quantizer are marked: the first of them carries the others, which have nothing left to do when their turn comes. Each keeps its own call number. What
 * is marked follows from values that are equal on all ranks, as everything that decides; so ranks have to group alike.
 *
 * A call that is carried is done before calls between it and its carrier. Buffers of calls of a window on which that order shows are refused.
 */
#include "base/config.h"
#include "base/util.h"
#include "codec/fused.h"
#include "codec/guarded.h"
#include "core/run.h"

#include <stdio.h>
#include <string.h>

bool iq_fuse_may(isgq_comm_t comm, const iq_call_t *call, const char *forced)
{
    bool plain = call->kind == IQ_CALL_ALLREDUCE && call->power_rank == 0 && call->codec.feedback == IQ_FEEDBACK_OFF &&
                 !iq_codec_predicts(&call->codec) && (forced == NULL || strcmp(forced, "auto") == 0);
    bool shadowed = comm->shadow_every != 0 && call->codec.ops != iq_codec_none.ops;
    bool at_once = (call->algorithm->needs & IQ_IN_LEVELS) == 0; /* sums of hosts have bits of their own */
    bool small = call->count > 0 && call->input_bytes <= iq_config()->fuse_bytes;
    iq_codec_call_t codec_call = {.datatype = call->datatype, .op = call->op, .nranks = comm->nranks};
    return plain && at_once && small && !shadowed && iq_fuse_window(comm) > 1 && iq_codec_fuses(&call->codec, &codec_call);
}

/* Nothing may be refused fused that fits alone: scratch has room for any window's parts and scales many times over. */
size_t iq_fuse_window(isgq_comm_t comm)
{
    size_t bytes = iq_config()->fuse_bytes, room = (comm->scratch.bytes - comm->scratch_reserved) / IQ_FUSE_CALLS;
    bool roomy = room > sizeof(iq_fused_part_t) && bytes < (room - sizeof(iq_fused_part_t)) / 2;
    return bytes > 0 && comm->nranks > 1 && !comm->devices && roomy ? IQ_FUSE_CALLS : 1;
}

/* ---- buffers on which the order of calls shows ---- */

static bool overlap(const void *a, size_t a_bytes, const void *b, size_t b_bytes)
{
    uintptr_t first = (uintptr_t)a, second = (uintptr_t)b;
    return a_bytes > 0 && b_bytes > 0 && first < second + b_bytes && second < first + a_bytes;
}

/* Bytes that the call may write. */
static size_t output_bytes(const iq_call_t *call, int nranks)
{
    return call->count / (call->kind == IQ_CALL_REDUCE_SCATTER ? (size_t)nranks : 1) * iq_datatype_bytes(call->datatype);
}

static bool depend(const iq_call_t *a, const iq_call_t *b, int nranks)
{
    size_t written = output_bytes(a, nranks);
    return overlap(a->recv, written, b->send, b->input_bytes) || overlap(a->recv, written, b->recv, b->input_bytes) ||
           overlap(a->send, a->input_bytes, b->recv, b->input_bytes);
}

/* A factored call reads factors. */
static bool depend_on_factors(const iq_call_t *factored, const iq_call_t *b)
{
    const isgq_factors_t *f = &factored->factors;
    size_t bytes = iq_datatype_bytes(factored->datatype), written = b->input_bytes, product = f->m * f->n * bytes;
    return overlap(f->x, f->batch * f->m * bytes, b->recv, written) || overlap(f->delta, f->batch * f->n * bytes, b->recv, written) ||
           overlap(factored->recv, product, b->send, b->input_bytes) ||
           overlap(factored->recv, product, b->recv, written) ||
           (f->bias != NULL && (overlap(f->bias, f->n * bytes, b->send, b->input_bytes) || overlap(f->bias, f->n * bytes, b->recv, written)));
}

/* Call `moved` is done with `carrier`: does anything between them, or among the others it travels with, depend on it? */
static isgq_result_t check_order(iq_call_t *const calls[], size_t carrier, size_t moved, int nranks)
{
    for (size_t i = carrier; i < moved; i++) {
        const iq_call_t *call = calls[i];
        bool bad = call->kind == IQ_CALL_FACTORED ? depend_on_factors(call, calls[moved]) : depend(call, calls[moved], nranks);
        if (call->kind != IQ_CALL_BARRIER && bad)
            return IQ_FAIL(ISGQ_ERR_INVALID_USAGE,
                           "group: buffers of call %zu (%s) and of call %zu (allreduce) overlap, and small calls of a group are done together unless "
                           "ISGQ_FUSE_BYTES is 0",
                           i + 1, iq_call_kind_name(call->kind), moved + 1);
    }
    return ISGQ_SUCCESS;
}

/* ---- marking ---- */

/* A tuning table may send values of one size as they are and quantize those of another. */
static bool alike(const iq_call_t *a, const iq_call_t *b)
{
    return b->may_fuse && a->datatype == b->datatype && a->op == b->op && a->codec.ops == b->codec.ops && strcmp(a->quantizer->text, b->quantizer->text) == 0;
}

/* The carrier's marks go to all it carries: algorithm and reason are those of the joint tensor. */
static isgq_result_t decide_together(isgq_comm_t comm, iq_call_t *const calls[], size_t first, size_t elements, unsigned members)
{
    iq_call_t *carrier = calls[first];
    char why[sizeof(carrier->why)];
    IQ_TRY(iq_decide_algorithm(IQ_ALLREDUCE, comm->nranks, comm->nhosts, comm->has_boards, &carrier->codec, carrier->datatype, carrier->op, elements,
                               NULL, &carrier->algorithm, why, sizeof(why)));
    snprintf(carrier->why, sizeof(carrier->why), "fused with %u others: %.64s", members - 1, why);
    for (iq_call_t *call = carrier; call->next_fused != 0;) {
        first += call->next_fused;
        call = calls[first];
        call->algorithm = carrier->algorithm;
        memcpy(call->why, carrier->why, sizeof(call->why));
        if (call->timeout_ms < carrier->timeout_ms)
            carrier->timeout_ms = call->timeout_ms;
    }
    return ISGQ_SUCCESS;
}

/* Marks what travels with calls[first]. */
static isgq_result_t mark(isgq_comm_t comm, iq_call_t *const calls[], size_t ncalls, size_t first)
{
    size_t last = first, elements = calls[first]->count;
    unsigned members = 1;
    for (size_t i = first + 1; i < ncalls; i++) {
        if (calls[i]->carried || !alike(calls[first], calls[i]))
            continue;
        IQ_TRY(check_order(calls, first, i, comm->nranks));
        calls[last]->next_fused = (uint16_t)(i - last);
        calls[i]->carried = true;
        elements = iq_align_up(elements, IQ_FUSED_UNIT) + calls[i]->count;
        last = i;
        members++;
    }
    if (members == 1)
        return ISGQ_SUCCESS;
    calls[first]->fused = (uint16_t)members;
    return decide_together(comm, calls, first, elements, members);
}

isgq_result_t iq_fuse(isgq_comm_t comm, iq_call_t *const calls[], size_t ncalls)
{
    for (size_t i = 0; i < ncalls; i++)
        calls[i]->grouped = (uint16_t)(ncalls - i);
    for (size_t i = 0; i < ncalls; i++)
        if (calls[i]->may_fuse && !calls[i]->carried)
            IQ_TRY(mark(comm, calls, ncalls, i));
    return ISGQ_SUCCESS;
}

uint64_t iq_fuse_fingerprint(isgq_comm_t comm, const iq_call_t *carrier)
{
    uint64_t hash = carrier->fingerprint, sequence = carrier->sequence;
    for (const iq_call_t *call = carrier; call->next_fused != 0;) {
        sequence += call->next_fused;
        call = &comm->calls[sequence % IQ_QUEUE_CALLS];
        uint64_t member[] = {sequence, call->fingerprint};
        hash = iq_hash(hash, member, sizeof(member));
    }
    return hash;
}
