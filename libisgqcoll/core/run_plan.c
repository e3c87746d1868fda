/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One action of a plan, done with a codec and links. Each step kind is one function in a table; a step that needs a message which is not
 * there, or a slot which is not free, changes nothing and says whom it waits for.
 *
 * In a stage on device memory codecs only launch their work. A step that sends or receives has two halves there: it `starts` once, and is called again
 * until that work is `finished`; the second half hands the message on. In host memory both halves are one call.
 */
#include "base/util.h"
#include "core/frame.h"
#include "core/gpu.h"
#include "core/step.h"

#include <string.h>

/* Everything a step function needs. */
typedef struct step {
    isgq_comm_t comm;
    iq_run_t *run;
    const iq_stage_t *stage;
    const iq_action_t *action;
    iq_step_data_t data;
    int blocked_on; /* rank, or -1: done */
} step_t;

typedef isgq_result_t (*step_fn)(step_t *step);

/* ---- the two halves of a step ---- */

static bool starts(const step_t *step) { return !step->stage->on_device || !iq_gpu_busy(step->comm); }

/* *finished: codec work of this step is done, and its messages may be handed on. */
static isgq_result_t finish_work(step_t *step, bool *finished)
{
    *finished = true;
    if (!step->stage->on_device)
        return ISGQ_SUCCESS;
    isgq_result_t result = iq_gpu_finish(step->comm, step->stage->codec.ops->name);
    if (result != ISGQ_IN_PROGRESS)
        return result;
    *finished = false;
    step->blocked_on = step->comm->rank;
    return ISGQ_SUCCESS;
}

static void move_bytes(const step_t *step, void *dst, const void *src, size_t bytes)
{
    if (step->stage->on_device)
        iq_device_copy(iq_gpu_device(step->comm), dst, src, bytes);
    else
        memcpy(dst, src, bytes);
}

/* ---- messages ---- */

static iq_link_t *link_to(const step_t *step, int peer) { return step->comm->links[peer]; }

/* Payload room of the link's next slot, or where its message is staged; NULL and blocked_on if no slot is free. */
static unsigned char *begin_send(step_t *step, iq_link_t *link)
{
    unsigned char *slot = link->ops->acquire(link);
    if (slot == NULL) {
        step->blocked_on = link->peer;
        return NULL;
    }
    return step->stage->on_device ? iq_gpu_outgoing(step->comm) : slot + sizeof(iq_frame_t);
}

static isgq_result_t end_send(step_t *step, iq_link_t *link, unsigned char *payload, size_t bytes)
{
    iq_run_t *run = step->run;
    iq_frame_t frame = {.magic = IQ_FRAME_MAGIC,
                        .bytes = (uint32_t)bytes,
                        .sequence = run->call->sequence,
                        .fingerprint = run->call->fingerprint,
                        .stage = (uint16_t)run->stage,
                        .step = step->action->step,
                        .chunk = step->action->chunk};
    unsigned char *slot = link->ops->acquire(link); /* the one that begin_send got */
    if (slot + sizeof(frame) != payload)
        memcpy(slot + sizeof(frame), payload, bytes);
    memcpy(slot, &frame, sizeof(frame));
    *(step->stage->shares_work ? &run->shared_bytes : &run->wire_bytes) += sizeof(frame) + bytes;
    return link->ops->commit(link, sizeof(frame) + bytes);
}

/* The frame belongs to another call or another place in it: let the ranks compare their arguments, and wait for the verdict. */
static void report_mismatch(step_t *step, int peer, uint64_t sequence)
{
    step->blocked_on = peer;
    if (step->run->mismatch_reported)
        return;
    step->run->mismatch_reported = true;
    if (sequence == 0 || sequence > step->run->call->sequence)
        sequence = step->run->call->sequence;
    uint64_t later = step->run->call->grouped > 0 ? step->run->call->grouped - 1u : 0; /* calls of its group, which it may carry */
    iq_control_report_mismatch(step->comm->control, sequence, step->run->call->sequence + later, peer);
}

/*
 * Nothing on `link`. A peer writes to its link and to its board in the order of its calls, so what lies on the other one, when this one is still
 * empty, is of a call that this rank is not in.
 */
static void look_elsewhere(step_t *step, iq_link_t *link)
{
    const iq_call_t *call = step->run->call;
    isgq_comm_t comm = step->comm;
    iq_link_t *other = link == comm->links[link->peer] ? comm->boards[link->peer] : comm->links[link->peer];
    size_t bytes, nothing;
    iq_frame_t frame;
    const void *message = other->ops->peek(other, &bytes);
    if (message == NULL || bytes < sizeof(frame) || link->ops->peek(link, &nothing) != NULL)
        return;
    memcpy(&frame, message, sizeof(frame));
    if (frame.magic == IQ_FRAME_MAGIC && (frame.sequence != call->sequence || frame.fingerprint != call->fingerprint))
        report_mismatch(step, link->peer, frame.sequence);
}

static bool has_any_length(const iq_stage_t *stage) { return stage->lengths != NULL || stage->length_at != 0 || stage->codec.ops->varies; }

/*
 * The payload of the oldest message on the link, or NULL with blocked_on. `expected` bytes, or at most so many if the stage is variable.
 */
static isgq_result_t begin_receive(step_t *step, iq_link_t *link, size_t expected, const unsigned char **payload, size_t *payload_bytes)
{
    const iq_call_t *call = step->run->call;
    int peer = link->peer;
    size_t bytes;
    const unsigned char *message = link->ops->peek(link, &bytes);
    iq_frame_t frame;
    *payload = NULL;
    if (message == NULL) {
        step->blocked_on = peer;
        if (step->comm->has_boards)
            look_elsewhere(step, link);
        return ISGQ_SUCCESS;
    }
    if (bytes < sizeof(frame))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "call %llu: message of %zu bytes from rank %d is shorter than a frame",
                       (unsigned long long)call->sequence, bytes, peer);
    memcpy(&frame, message, sizeof(frame));
    if (frame.magic != IQ_FRAME_MAGIC || frame.bytes != bytes - sizeof(frame))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "call %llu: damaged frame from rank %d (magic %08x, %u of %zu bytes)",
                       (unsigned long long)call->sequence, peer, frame.magic, frame.bytes, bytes);
    if (frame.sequence != call->sequence || frame.fingerprint != call->fingerprint) {
        report_mismatch(step, peer, frame.sequence);
        return ISGQ_SUCCESS;
    }
    if (frame.stage != step->run->stage || frame.chunk != step->action->chunk ||
        (has_any_length(step->stage) ? frame.bytes > expected : frame.bytes != expected))
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "call %llu: rank %d sent stage %u chunk %u with %u bytes where stage %d chunk %u with %zu was due",
                       (unsigned long long)call->sequence, peer, frame.stage, frame.chunk, frame.bytes, step->run->stage,
                       step->action->chunk, expected);
    *payload = message + sizeof(frame);
    *payload_bytes = frame.bytes;
    if (step->stage->on_device)
        *payload = memcpy(iq_gpu_incoming(step->comm), *payload, frame.bytes);
    return ISGQ_SUCCESS;
}

static isgq_result_t end_receive(iq_link_t *link) { return link->ops->release(link); }

/* ---- blobs of variable length: bytes as they are ---- */

/* How much of a blob of `there` bytes of this rank lies in the span. */
static size_t blob_part(const step_t *step, size_t there)
{
    size_t start = step->data.span.first - (size_t)step->stage->plan->rank * step->stage->stride;
    return there > start ? iq_min(there - start, step->data.span.count) : 0;
}

/* How much of this rank's blob, which lies on the device, is in the span: the host reads its length when the piece that holds it passes through pinned
 * memory. Where that is not the first piece, all of the blob travels. */
static size_t device_blob_part(const step_t *step, const unsigned char *piece)
{
    iq_factored_run_t *factored = &step->run->factored;
    size_t start = step->data.span.first - (size_t)step->comm->rank * factored->blob_stride;
    uint32_t behind;
    if (start == 0) {
        factored->sent_bytes = factored->blob_stride;
        if (step->stage->length_at + sizeof(behind) <= step->data.span.count) {
            memcpy(&behind, piece + step->stage->length_at, sizeof(behind));
            factored->sent_bytes = iq_min(step->stage->length_from + behind, factored->blob_stride);
        }
    }
    return factored->sent_bytes > start ? iq_min(factored->sent_bytes - start, step->data.span.count) : 0;
}

/* Keep what arrived, in order: a blob ends where its last non-empty piece does, and a piece that is not full is the last of these. */
static isgq_result_t keep_blob_part(const step_t *step, const unsigned char *payload, size_t bytes)
{
    const iq_stage_t *stage = step->stage;
    const iq_span_t *span = &step->data.span;
    size_t owner = span->first / stage->stride;
    if (stage->arrived != NULL && stage->arrived[owner] && bytes > 0)
        return IQ_FAIL(ISGQ_ERR_CORRUPT, "blob of rank %zu: %zu bytes after its end", owner, bytes);
    if (bytes > 0)
        stage->lengths[owner] = span->first - owner * stage->stride + bytes;
    memcpy(step->data.dst, payload, bytes);
    if (stage->arrived != NULL)
        stage->arrived[owner] |= bytes < span->count || span->first + span->count == (owner + 1) * stage->stride;
    return ISGQ_SUCCESS;
}

/* ---- steps ---- */

static isgq_result_t step_send_own(step_t *step)
{
    bool finished;
    unsigned char *payload = begin_send(step, link_to(step, step->action->peer));
    if (payload == NULL)
        return ISGQ_SUCCESS;
    size_t bytes = iq_step_partial_bytes(&step->data, 1);
    bool counts = step->stage->plan->nblocks > 1; /* with one block every peer gets the same, and REDUCE counts it */
    if (starts(step))
        iq_step_encode(&step->data, payload);
    if (starts(step) && counts)
        iq_own_error_look(&step->data, payload);
    IQ_TRY(finish_work(step, &finished));
    if (!finished)
        return ISGQ_SUCCESS;
    bytes = iq_step_message_bytes(&step->data, payload, bytes);
    step->run->own_bytes += counts ? bytes : 0;
    return end_send(step, link_to(step, step->action->peer), payload, bytes);
}

/* What this rank's own part of its own block would have taken on the wire. */
static size_t unsent_bytes(const step_t *step, size_t most)
{
    const iq_stage_t *stage = step->stage;
    if (stage->length_at != 0 && step->comm->nranks > 1)
        return 0; /* counted when it is sent */
    if (stage->codec.ops->varies && stage->room.result != NULL)
        iq_step_encode(&step->data, stage->room.result);
    return iq_step_message_bytes(&step->data, stage->room.result, most);
}

static isgq_result_t step_reduce(step_t *step)
{
    bool first = step->action->parts == 1;
    int peer = step->action->peer;
    size_t bytes;
    const unsigned char *payload;
    bool finished;
    if (step->stage->lengths != NULL)
        return ISGQ_SUCCESS;
    size_t expected = iq_step_partial_bytes(&step->data, 1);
    if (peer == step->comm->rank) {
        iq_step_add_own(&step->data, iq_step_accumulator(&step->data), first);
        step->run->own_bytes += unsent_bytes(step, expected);
        return ISGQ_SUCCESS;
    }
    if (starts(step)) {
        IQ_TRY(begin_receive(step, link_to(step, peer), expected, &payload, &bytes));
        if (payload == NULL)
            return ISGQ_SUCCESS;
        IQ_TRY(iq_step_check_length(&step->data, payload, bytes));
        IQ_TRY(iq_step_add(&step->data, payload, 1, iq_step_accumulator(&step->data), first));
    }
    IQ_TRY(finish_work(step, &finished));
    return finished ? end_receive(link_to(step, peer)) : ISGQ_SUCCESS;
}

static isgq_result_t step_finish(step_t *step) { return (step->stage->lengths != NULL) ? ISGQ_SUCCESS : iq_step_finish(&step->data); }

static isgq_result_t step_deliver(step_t *step) { return (step->stage->lengths != NULL) ? ISGQ_SUCCESS : iq_step_deliver(&step->data); }

static isgq_result_t step_send_result(step_t *step)
{
    bool finished;
    unsigned char *payload = begin_send(step, link_to(step, step->action->peer));
    if (payload == NULL)
        return ISGQ_SUCCESS;
    size_t bytes = (step->stage->lengths != NULL) ? blob_part(step, step->stage->lengths[step->stage->plan->rank])
                                         : iq_step_message_bytes(&step->data, iq_step_result(&step->data), iq_step_result_bytes(&step->data));
    if (starts(step))
        move_bytes(step, payload, (step->stage->lengths != NULL) ? step->data.dst : iq_step_result(&step->data), bytes);
    IQ_TRY(finish_work(step, &finished));
    if (finished && step->stage->length_at != 0) {
        bytes = device_blob_part(step, payload);
        step->run->own_bytes += step->action->peer == (step->comm->rank + 1) % step->comm->nranks ? bytes : 0; /* once */
    }
    return finished ? end_send(step, link_to(step, step->action->peer), payload, bytes) : ISGQ_SUCCESS;
}

/* The span is this rank's block of the peer's output. */
static isgq_result_t step_send_part(step_t *step)
{
    const iq_stage_t *stage = step->stage;
    size_t bytes = blob_part(step, stage->part_lengths[step->action->peer]);
    unsigned char *payload = begin_send(step, link_to(step, step->action->peer));
    if (payload == NULL)
        return ISGQ_SUCCESS;
    memcpy(payload, step->data.src + (ptrdiff_t)stage->stride * (step->action->peer - stage->plan->rank), bytes);
    return end_send(step, link_to(step, step->action->peer), payload, bytes);
}

static size_t expected_result(const step_t *step)
{
    return (step->stage->lengths != NULL) ? step->data.span.count : iq_step_result_bytes(&step->data);
}

/* A result message to the output. */
static isgq_result_t take_result(step_t *step, const unsigned char *payload, size_t bytes)
{
    if (step->stage->lengths != NULL)
        return keep_blob_part(step, payload, bytes);
    if (step->stage->length_at == 0) {
        IQ_TRY(iq_step_check_length(&step->data, payload, bytes));
        return iq_step_decode(&step->data, payload);
    }
    move_bytes(step, step->data.dst, payload, bytes);
    return ISGQ_SUCCESS;
}

static isgq_result_t step_recv_result(step_t *step)
{
    const unsigned char *payload;
    size_t bytes;
    bool finished;
    if (starts(step)) {
        IQ_TRY(begin_receive(step, link_to(step, step->action->peer), expected_result(step), &payload, &bytes));
        if (payload == NULL)
            return ISGQ_SUCCESS;
        IQ_TRY(take_result(step, payload, bytes));
    }
    IQ_TRY(finish_work(step, &finished));
    return finished ? end_receive(link_to(step, step->action->peer)) : ISGQ_SUCCESS;
}

static isgq_result_t step_forward(step_t *step)
{
    const unsigned char *in;
    size_t bytes;
    bool finished;
    if (starts(step)) {
        unsigned char *out = begin_send(step, link_to(step, step->action->to));
        if (out == NULL)
            return ISGQ_SUCCESS;
        IQ_TRY(begin_receive(step, link_to(step, step->action->peer), expected_result(step), &in, &bytes));
        if (in == NULL)
            return ISGQ_SUCCESS;
        memcpy(out, in, bytes);
        IQ_TRY(end_send(step, link_to(step, step->action->to), out, bytes)); /* first pass it on, then use it */
        IQ_TRY(take_result(step, in, bytes));
    }
    IQ_TRY(finish_work(step, &finished));
    return finished ? end_receive(link_to(step, step->action->peer)) : ISGQ_SUCCESS;
}

/* acc = partial sum from the peer + own; *there is false if the message is not. */
static isgq_result_t add_partial_and_own(step_t *step, void *acc, bool *there)
{
    int before = step->action->parts - 1;
    const unsigned char *payload;
    size_t bytes;
    IQ_TRY(begin_receive(step, link_to(step, step->action->peer), iq_step_partial_bytes(&step->data, before), &payload, &bytes));
    *there = payload != NULL;
    if (payload == NULL)
        return ISGQ_SUCCESS;
    IQ_TRY(iq_step_check_length(&step->data, payload, bytes));
    IQ_TRY(iq_step_add(&step->data, payload, before, acc, true));
    iq_step_add_own(&step->data, acc, false);
    step->run->own_bytes += unsent_bytes(step, iq_step_partial_bytes(&step->data, 1));
    return ISGQ_SUCCESS;
}

/* The end of a hop: the message is given back, and the next one, if there is one, sent. */
static isgq_result_t end_hop(step_t *step, unsigned char *out, size_t bytes)
{
    bool finished;
    IQ_TRY(finish_work(step, &finished));
    if (!finished)
        return ISGQ_SUCCESS;
    IQ_TRY(end_receive(link_to(step, step->action->peer)));
    return out == NULL ? ISGQ_SUCCESS : end_send(step, link_to(step, step->action->to), out, bytes);
}

static isgq_result_t step_hop(step_t *step)
{
    const iq_stage_t *stage = step->stage;
    int parts = step->action->parts;
    bool there;
    unsigned char *out = begin_send(step, link_to(step, step->action->to));
    if (out == NULL)
        return ISGQ_SUCCESS;
    if (starts(step)) { /* in host memory sums as they are go straight into the next message */
        void *acc = stage->sums_in_place && !stage->on_device ? out : stage->room.acc;
        IQ_TRY(add_partial_and_own(step, acc, &there));
        if (!there)
            return ISGQ_SUCCESS;
        if (acc != out)
            iq_step_store(&step->data, acc, parts, out);
    }
    return end_hop(step, out, iq_step_message_bytes(&step->data, out, iq_step_partial_bytes(&step->data, parts)));
}

static isgq_result_t step_last_hop(step_t *step)
{
    unsigned char *out = NULL;
    bool there;
    if (step->action->to >= 0) {
        out = begin_send(step, link_to(step, step->action->to));
        if (out == NULL)
            return ISGQ_SUCCESS;
    }
    if (starts(step)) {
        IQ_TRY(add_partial_and_own(step, step->stage->room.acc, &there));
        if (!there)
            return ISGQ_SUCCESS;
        IQ_TRY(iq_step_finish_into(&step->data, step->stage->room.acc, out));
    }
    return end_hop(step, out, out == NULL ? 0 : iq_step_message_bytes(&step->data, out, iq_step_result_bytes(&step->data)));
}

static isgq_result_t step_signal(step_t *step)
{
    unsigned char *payload = begin_send(step, link_to(step, step->action->peer));
    return payload == NULL ? ISGQ_SUCCESS : end_send(step, link_to(step, step->action->peer), payload, 0);
}

static isgq_result_t step_await(step_t *step)
{
    const unsigned char *payload;
    IQ_TRY(begin_receive(step, link_to(step, step->action->peer), 0, &payload, &(size_t){0}));
    return payload == NULL ? ISGQ_SUCCESS : end_receive(link_to(step, step->action->peer));
}

static isgq_result_t step_post(step_t *step)
{
    iq_link_t *board = step->comm->boards[step->comm->rank];
    unsigned char *payload = begin_send(step, board);
    if (payload == NULL)
        return ISGQ_SUCCESS;
    iq_step_encode(&step->data, payload);
    size_t bytes = iq_step_message_bytes(&step->data, payload, iq_step_partial_bytes(&step->data, 1));
    step->run->own_bytes += bytes;
    return end_send(step, board, payload, bytes);
}

/* What lies on all boards, into comm->posted. *there: all has come. */
static isgq_result_t look_at_boards(step_t *step, bool *there)
{
    isgq_comm_t comm = step->comm;
    size_t expected = iq_step_partial_bytes(&step->data, 1), bytes = 0;
    *there = false;
    for (int rank = 0; rank < comm->nranks; rank++) {
        const unsigned char *payload;
        if (rank == comm->rank)
            continue;
        IQ_TRY(begin_receive(step, comm->boards[rank], expected, &payload, &bytes));
        if (payload == NULL)
            return ISGQ_SUCCESS;
        IQ_TRY(iq_step_check_length(&step->data, payload, bytes));
        comm->posted[rank] = payload;
    }
    *there = true;
    return ISGQ_SUCCESS;
}

static isgq_result_t step_sum(step_t *step)
{
    isgq_comm_t comm = step->comm;
    bool there;
    IQ_TRY(look_at_boards(step, &there));
    if (!there)
        return ISGQ_SUCCESS;
    if (comm->nranks == 1) /* nothing was posted; in place the sum takes the input's room */
        step->run->own_bytes += unsent_bytes(step, iq_step_partial_bytes(&step->data, 1));
    IQ_TRY(iq_step_sum(&step->data, comm->posted, comm->nranks));
    for (int rank = 0; rank < comm->nranks; rank++)
        if (rank != comm->rank)
            IQ_TRY(end_receive(comm->boards[rank]));
    return ISGQ_SUCCESS;
}

static const step_fn step_functions[IQ_STEP_KIND_COUNT] = {
    [IQ_STEP_SEND_OWN] = step_send_own,
    [IQ_STEP_REDUCE] = step_reduce,
    [IQ_STEP_FINISH] = step_finish,
    [IQ_STEP_DELIVER] = step_deliver,
    [IQ_STEP_SEND_RESULT] = step_send_result,
    [IQ_STEP_RECV_RESULT] = step_recv_result,
    [IQ_STEP_HOP] = step_hop,
    [IQ_STEP_LAST_HOP] = step_last_hop,
    [IQ_STEP_FORWARD] = step_forward,
    [IQ_STEP_SIGNAL] = step_signal,
    [IQ_STEP_AWAIT] = step_await,
    [IQ_STEP_POST] = step_post,
    [IQ_STEP_SUM] = step_sum,
    [IQ_STEP_SEND_PART] = step_send_part,
};

isgq_result_t iq_run_action(isgq_comm_t comm, iq_run_t *run, const iq_stage_t *stage, const iq_action_t *action, int *blocked_on)
{
    step_t step = {.comm = comm, .run = run, .stage = stage, .action = action, .data = iq_step_data(stage, action), .blocked_on = -1};
    isgq_result_t result = step_functions[action->kind](&step);
    *blocked_on = step.blocked_on;
    return result;
}
