/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A plan on a stream: its actions become launches and messages of a wire, one function for each kind of step in a table, as in run_plan.c. Nothing waits here.
 *
 * Two things are done ahead of their turn. Where a wire goes in rounds, the messages of a round move together, so what later actions receive in it is announced first.
 * And neighbouring REDUCE steps on one span are one launch where the codec has a form for that. Where the wire itself adds words (NCCL) and ISGQ_WIRE_SUM asks for it,
 * exact sums of codes need no plan at all.
 */
#include "core/exec_stream.h"

#include "base/util.h"
#include "core/step.h"

#define SIGNAL_BYTES 4 /* of a message that says nothing */

typedef struct walk {
    isgq_comm_t comm;
    iq_stream_exec_t *exec;
    iq_run_t *run;
    const iq_stage_t *stage;
    iq_plan_cursor_t cursor; /* behind `action` */
    iq_action_t action;
    iq_step_data_t data;
    bool sent;        /* with rounds: messages of send_round wait for their exchange */
    uint32_t round;   /* the one they belong to */
    uint32_t fetched; /* rounds below this one have been exchanged */
} walk_t;

typedef isgq_result_t (*step_fn)(walk_t *walk);

static isgq_stream_t stream_of(const walk_t *walk) { return walk->exec->device.stream; }

/* ---- messages ---- */

static bool receives(const walk_t *walk, const iq_action_t *action)
{
    static const bool table[IQ_STEP_KIND_COUNT] = {[IQ_STEP_REDUCE] = true, [IQ_STEP_RECV_RESULT] = true, [IQ_STEP_HOP] = true,
                                                   [IQ_STEP_LAST_HOP] = true, [IQ_STEP_FORWARD] = true, [IQ_STEP_AWAIT] = true};
    return table[action->kind] && action->peer != walk->comm->rank;
}

static bool sends(const iq_action_t *action)
{
    static const bool table[IQ_STEP_KIND_COUNT] = {[IQ_STEP_SEND_OWN] = true, [IQ_STEP_SEND_RESULT] = true, [IQ_STEP_HOP] = true,
                                                   [IQ_STEP_FORWARD] = true, [IQ_STEP_SIGNAL] = true};
    return table[action->kind] || (action->kind == IQ_STEP_LAST_HOP && action->to >= 0);
}

/* Bytes of the message that an action receives. */
static size_t incoming_bytes(const iq_step_data_t *data)
{
    switch (data->action->kind) {
    case IQ_STEP_REDUCE: return iq_step_partial_bytes(data, 1);
    case IQ_STEP_HOP:
    case IQ_STEP_LAST_HOP: return iq_step_partial_bytes(data, data->action->parts - 1);
    case IQ_STEP_AWAIT: return SIGNAL_BYTES;
    default: return iq_step_result_bytes(data);
    }
}

/* All messages of a round: what was sent is there, and what the actions from here on receive in the same round is announced. */
static isgq_result_t exchange(walk_t *walk, uint32_t round)
{
    const iq_wire_ops_t *wire = walk->exec->wire->ops;
    iq_plan_cursor_t cursor = walk->cursor;
    iq_action_t action = walk->action;
    do {
        iq_step_data_t data = iq_step_data(walk->stage, &action);
        if (receives(walk, &action) && action.receive_round > round)
            break;
        if (receives(walk, &action) && action.receive_round == round)
            IQ_TRY(wire->expect(walk->exec->wire, action.peer, incoming_bytes(&data)));
        if (sends(&action) && action.send_round > round)
            break;
    } while (iq_plan_next(walk->stage->plan, &cursor, &action));
    walk->sent = false;
    walk->fetched = round + 1;
    return wire->exchange(walk->exec->wire, stream_of(walk));
}

static isgq_result_t begin_send(walk_t *walk, int peer, size_t bytes, void **message)
{
    iq_wire_t *wire = walk->exec->wire;
    if (wire->ops->rounds && walk->sent && walk->round != walk->action.send_round)
        IQ_TRY(exchange(walk, walk->round));
    walk->run->wire_bytes += bytes;
    return wire->ops->begin_send(wire, stream_of(walk), peer, bytes, message);
}

static isgq_result_t end_send(walk_t *walk, int peer)
{
    iq_wire_t *wire = walk->exec->wire;
    walk->sent = true;
    walk->round = walk->action.send_round;
    return wire->ops->end_send(wire, stream_of(walk), peer);
}

static isgq_result_t begin_receive(walk_t *walk, int peer, size_t bytes, const void **message)
{
    iq_wire_t *wire = walk->exec->wire;
    if (wire->ops->rounds && walk->sent && walk->round < walk->action.receive_round)
        IQ_TRY(exchange(walk, walk->round));
    if (wire->ops->rounds && walk->action.receive_round >= walk->fetched)
        IQ_TRY(exchange(walk, walk->action.receive_round));
    return wire->ops->begin_receive(wire, stream_of(walk), peer, bytes, message);
}

static isgq_result_t end_receive(walk_t *walk, int peer)
{
    iq_wire_t *wire = walk->exec->wire;
    return wire->ops->end_receive(wire, stream_of(walk), peer);
}

/* ---- steps ---- */

static isgq_result_t step_send_own(walk_t *walk)
{
    void *message;
    size_t bytes = iq_step_partial_bytes(&walk->data, 1);
    IQ_TRY(begin_send(walk, walk->action.peer, bytes, &message));
    iq_step_encode(&walk->data, message);
    if (walk->stage->plan->nblocks > 1) { /* with one block every peer gets the same, and REDUCE counts it */
        walk->run->own_bytes += bytes;
        iq_own_error_look(&walk->data, message);
    }
    return end_send(walk, walk->action.peer);
}

/* Neighbouring REDUCE steps on one span, and what follows them. */
typedef struct gathering {
    int nparts, own; /* own: which of them is this rank's input */
    int peers[IQ_CUDA_PARTS];
    const void *messages[IQ_CUDA_PARTS]; /* NULL: own */
    iq_action_t last;                        /* FINISH or DELIVER of the same span, if `whole` */
    bool whole;
    iq_plan_cursor_t after_parts, after_last;
} gathering_t;

static bool on_same_span(const iq_action_t *a, const iq_action_t *b) { return a->first == b->first && a->count == b->count; }

static void look_ahead(const walk_t *walk, gathering_t *gathering)
{
    iq_plan_cursor_t cursor = walk->cursor;
    iq_action_t next = walk->action;
    bool more = true;
    *gathering = (gathering_t){.own = -1, .after_parts = cursor};
    while (more && next.kind == IQ_STEP_REDUCE && on_same_span(&next, &walk->action) && gathering->nparts < IQ_CUDA_PARTS) {
        if (next.peer == walk->comm->rank)
            gathering->own = gathering->nparts;
        gathering->peers[gathering->nparts++] = next.peer;
        gathering->after_parts = cursor;
        more = iq_plan_next(walk->stage->plan, &cursor, &next);
    }
    gathering->last = next;
    gathering->after_last = cursor;
    gathering->whole = more && gathering->own >= 0 && (next.kind == IQ_STEP_FINISH || next.kind == IQ_STEP_DELIVER) &&
                       on_same_span(&next, &walk->action) && walk->action.parts == 1;
}

/* One pass over memory for the sum and what is made of it, where the codec has that; else, and where error feedback asks what becomes of own
 * values and of the sum, the parts one by one. */
static isgq_result_t sum_parts(walk_t *walk, const gathering_t *gathering, bool *finished)
{
    const iq_stage_t *stage = walk->stage;
    void *acc = iq_step_accumulator(&walk->data);
    void *result = gathering->last.kind == IQ_STEP_FINISH && !stage->sums_in_place ? stage->room.result : NULL;
    *finished = gathering->whole && stage->own == NULL &&
                iq_codec_combine(&stage->codec, &stage->codec_call, walk->data.span, gathering->nparts, gathering->messages,
                                                     gathering->own, walk->data.src, walk->data.dst, result);
    for (int i = 0; i < gathering->nparts && !*finished; i++) {
        bool first = walk->action.parts == 1 && i == 0;
        if (i == gathering->own)
            iq_step_add_own(&walk->data, acc, first);
        else
            IQ_TRY(iq_step_add(&walk->data, gathering->messages[i], 1, acc, first));
    }
    return ISGQ_SUCCESS;
}

static isgq_result_t step_reduce(walk_t *walk)
{
    gathering_t gathering;
    bool finished;
    size_t bytes = iq_step_partial_bytes(&walk->data, 1);
    look_ahead(walk, &gathering);
    for (int i = 0; i < gathering.nparts; i++)
        if (i != gathering.own)
            IQ_TRY(begin_receive(walk, gathering.peers[i], bytes, &gathering.messages[i]));
    IQ_TRY(sum_parts(walk, &gathering, &finished));
    for (int i = 0; i < gathering.nparts; i++)
        if (i != gathering.own)
            IQ_TRY(end_receive(walk, gathering.peers[i]));
    walk->run->own_bytes += gathering.own >= 0 ? bytes : 0;
    walk->cursor = finished ? gathering.after_last : gathering.after_parts;
    return ISGQ_SUCCESS;
}

static isgq_result_t step_finish(walk_t *walk) { return iq_step_finish(&walk->data); }

static isgq_result_t step_deliver(walk_t *walk) { return iq_step_deliver(&walk->data); }

static isgq_result_t step_send_result(walk_t *walk)
{
    void *message;
    size_t bytes = iq_step_result_bytes(&walk->data);
    IQ_TRY(begin_send(walk, walk->action.peer, bytes, &message));
    iq_device_copy(&walk->exec->device, message, iq_step_result(&walk->data), bytes);
    return end_send(walk, walk->action.peer);
}

static isgq_result_t step_recv_result(walk_t *walk)
{
    const void *message;
    IQ_TRY(begin_receive(walk, walk->action.peer, iq_step_result_bytes(&walk->data), &message));
    IQ_TRY(iq_step_decode(&walk->data, message));
    return end_receive(walk, walk->action.peer);
}

static isgq_result_t step_forward(walk_t *walk)
{
    const void *in;
    void *out;
    size_t bytes = iq_step_result_bytes(&walk->data);
    IQ_TRY(begin_receive(walk, walk->action.peer, bytes, &in));
    IQ_TRY(begin_send(walk, walk->action.to, bytes, &out));
    iq_device_copy(&walk->exec->device, out, in, bytes);
    IQ_TRY(end_send(walk, walk->action.to)); /* first pass it on, then use it */
    IQ_TRY(iq_step_decode(&walk->data, in));
    return end_receive(walk, walk->action.peer);
}

/* acc = partial sum from the peer + own. */
static isgq_result_t add_partial_and_own(walk_t *walk)
{
    void *acc = walk->stage->room.acc;
    int before = walk->action.parts - 1;
    const void *message;
    IQ_TRY(begin_receive(walk, walk->action.peer, iq_step_partial_bytes(&walk->data, before), &message));
    IQ_TRY(iq_step_add(&walk->data, message, before, acc, true));
    iq_step_add_own(&walk->data, acc, false);
    walk->run->own_bytes += iq_step_partial_bytes(&walk->data, 1);
    return end_receive(walk, walk->action.peer);
}

static isgq_result_t step_hop(walk_t *walk)
{
    void *message;
    int parts = walk->action.parts;
    IQ_TRY(add_partial_and_own(walk));
    IQ_TRY(begin_send(walk, walk->action.to, iq_step_partial_bytes(&walk->data, parts), &message));
    iq_step_store(&walk->data, walk->stage->room.acc, parts, message);
    return end_send(walk, walk->action.to);
}

static isgq_result_t step_last_hop(walk_t *walk)
{
    void *message;
    IQ_TRY(add_partial_and_own(walk));
    if (walk->action.to < 0)
        return iq_step_finish_into(&walk->data, walk->stage->room.acc, NULL);
    IQ_TRY(begin_send(walk, walk->action.to, iq_step_result_bytes(&walk->data), &message));
    IQ_TRY(iq_step_finish_into(&walk->data, walk->stage->room.acc, message));
    return end_send(walk, walk->action.to);
}

static isgq_result_t step_signal(walk_t *walk)
{
    void *message;
    IQ_TRY(begin_send(walk, walk->action.peer, SIGNAL_BYTES, &message));
    return end_send(walk, walk->action.peer);
}

static isgq_result_t step_await(walk_t *walk)
{
    const void *message;
    IQ_TRY(begin_receive(walk, walk->action.peer, SIGNAL_BYTES, &message));
    return end_receive(walk, walk->action.peer);
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
};

/* ---- the plan ---- */

/* Exact sums of codes by the wire's own allreduce: any plan for them gives the same bits. What a ring would send is what counts as sent. */
static isgq_result_t enqueue_lanes(isgq_comm_t comm, const iq_stage_t *stage)
{
    iq_stream_exec_t *exec = comm->stream_exec;
    const iq_plan_t *plan = stage->plan;
    void *words = stage->room.acc;
    for (size_t first = 0; first < plan->count; first += plan->chunk) {
        iq_action_t action = {.first = first, .count = iq_min(plan->chunk, plan->count - first)};
        iq_step_data_t data = iq_step_data(stage, &action);
        size_t bytes = iq_codec_lane_bytes(&stage->codec, &stage->codec_call, data.span);
        iq_codec_encode_lanes(&stage->codec, &stage->codec_call, data.span, data.src, words);
        IQ_TRY(exec->wire->ops->sum_words(exec->wire, exec->device.stream, words, bytes / sizeof(uint32_t)));
        iq_codec_decode_lanes(&stage->codec, &stage->codec_call, data.span, words, data.dst);
        exec->run.wire_bytes += 2 * bytes * (size_t)(comm->nranks - 1) / (size_t)comm->nranks;
        exec->run.own_bytes += iq_step_partial_bytes(&data, 1);
    }
    return ISGQ_SUCCESS;
}

static bool goes_in_lanes(const iq_stream_exec_t *exec, const iq_stage_t *stage)
{
    iq_span_t chunk = {0, iq_min(stage->plan->chunk, stage->plan->count)};
    return exec->sums_words && stage->own == NULL && stage->plan->collective == IQ_ALLREDUCE && stage->plan->count > 0 &&
           iq_codec_lane_bytes(&stage->codec, &stage->codec_call, chunk) > 0;
}

isgq_result_t iq_stream_enqueue_plan(isgq_comm_t comm, const iq_stage_t *stage)
{
    iq_stream_exec_t *exec = comm->stream_exec;
    if (goes_in_lanes(exec, stage))
        return enqueue_lanes(comm, stage);
    walk_t walk = {.comm = comm, .exec = exec, .run = &exec->run, .stage = stage};
    while (iq_plan_next(stage->plan, &walk.cursor, &walk.action)) {
        walk.data = iq_step_data(stage, &walk.action);
        IQ_TRY(step_functions[walk.action.kind](&walk));
    }
    return walk.sent && exec->wire->ops->rounds && walk.round >= walk.fetched ? exchange(&walk, walk.round) : ISGQ_SUCCESS;
}
