/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rounds: every rank gives rank 0 some bytes and gets everybody's. An allgather is one round; goodbye is a round of no bytes
 * after which the end of a connection is no death. Ranks are in the same round, or one of them has not yet called it.
 */
#include "transport/control_internal.h"

#include "base/util.h"

#include <stdlib.h>
#include <string.h>

static const char *kind_name(iq_round_kind_t kind) { return kind == IQ_ROUND_GOODBYE ? "goodbye" : "allgather"; }

/* The caller of this rank has its result; late ones have gone away already. */
static void finish(iq_control_t *control, iq_round_kind_t kind)
{
    if (kind == IQ_ROUND_GOODBYE)
        control->left = true;
    control->round.done = true;
    pthread_cond_broadcast(&control->changed);
}

static void send_result(iq_control_t *control, iq_member_t *member)
{
    const iq_collection_t *collection = &control->collection;
    size_t total = (size_t)control->nranks * collection->bytes, offset = 0;

    do {
        size_t piece = iq_min(total - offset, IQ_GATHER_BYTES);
        iq_pack_t head = {.used = 0};
        iq_pack_u64(&head, collection->number);
        iq_pack_u64(&head, total);
        iq_pack_u64(&head, offset);
        if (!iq_conn_send(&member->conn, IQ_FRAME_RESULT, &head, collection->data + offset, piece)) {
            iq_control_fail(control, false, ISGQ_ERR_NO_MEMORY, 0, "rank 0 has no memory to send %zu bytes to rank %d", total,
                            member->rank);
            return;
        }
        offset += piece;
    } while (offset < total);
}

static void publish(iq_control_t *control)
{
    iq_collection_t *collection = &control->collection;

    for (int rank = 1; rank < control->nranks; rank++) {
        if (control->members[rank].conn.fd < 0)
            continue;
        send_result(control, &control->members[rank]);
        (void)iq_conn_flush(&control->members[rank].conn); /* now: after the last round the caller may end the process */
    }
    pthread_mutex_lock(&control->lock);
    if (control->round.active && collection->bytes > 0)
        memcpy(control->round.recv, collection->data, (size_t)control->nranks * collection->bytes);
    finish(control, collection->kind);
    pthread_mutex_unlock(&control->lock);
    collection->count = 0;
    memset(collection->present, 0, (size_t)control->nranks * sizeof(*collection->present));
}

/* The first contribution says what this round is. */
static bool begin_collection(iq_control_t *control, int rank, iq_round_kind_t kind, size_t bytes)
{
    iq_collection_t *collection = &control->collection;
    uint8_t *data = realloc(collection->data, iq_max((size_t)control->nranks * bytes, 1));

    if (data == NULL) {
        iq_control_fail(control, false, ISGQ_ERR_NO_MEMORY, 0, "rank 0 has no memory to gather %zu bytes of %d ranks", bytes,
                        control->nranks);
        return false;
    }
    collection->data = data;
    collection->number++;
    collection->kind = kind;
    collection->bytes = bytes;
    collection->first = rank;
    return true;
}

static void contribute(iq_control_t *control, int rank, uint64_t number, iq_round_kind_t kind, const void *data, size_t bytes)
{
    iq_collection_t *collection = &control->collection;

    if (collection->count == 0 && !begin_collection(control, rank, kind, bytes))
        return;
    if (kind != collection->kind) {
        iq_control_fail(
            control, false, ISGQ_ERR_MISMATCH, rank, "round %llu of the control channel is %s on rank %d and %s on rank %d",
            (unsigned long long)collection->number, kind_name(collection->kind), collection->first, kind_name(kind), rank);
        return;
    }
    if (bytes != collection->bytes) {
        iq_control_fail(control, false, ISGQ_ERR_MISMATCH, rank,
                        "control allgather %llu: bytes is %zu on rank %d and %zu on rank %d",
                        (unsigned long long)collection->number, collection->bytes, collection->first, bytes, rank);
        return;
    }
    if (number != collection->number || collection->present[rank]) {
        iq_control_fail(control, false, ISGQ_ERR_CORRUPT, rank, "control allgather %llu: rank %d is in round %llu",
                        (unsigned long long)collection->number, rank, (unsigned long long)number);
        return;
    }
    if (bytes > 0)
        memcpy(collection->data + (size_t)rank * bytes, data, bytes);
    collection->present[rank] = true;
    if (kind == IQ_ROUND_GOODBYE)
        control->members[rank].left = true;
    if (++collection->count == control->nranks)
        publish(control);
}

/* This rank's caller has begun a round. Its buffer is ours only while it waits, hence the copy under the lock. */
void iq_gather_begin(iq_control_t *control)
{
    iq_pack_t head = {.used = 0};
    uint8_t *copy = NULL;
    bool out_of_memory = false;

    pthread_mutex_lock(&control->lock);
    iq_round_t round = control->round;
    if (round.active && iq_control_is_root(control)) {
        copy = malloc(iq_max(round.bytes, 1));
        out_of_memory = copy == NULL;
        if (!out_of_memory && round.bytes > 0)
            memcpy(copy, round.send, round.bytes);
    } else if (round.active && control->members[0].conn.fd >= 0) {
        iq_pack_u64(&head, round.number);
        iq_pack_u32(&head, (uint32_t)round.kind);
        out_of_memory = !iq_conn_send(&control->members[0].conn, IQ_FRAME_GATHER, &head, round.send, round.bytes);
    }
    pthread_mutex_unlock(&control->lock);

    if (out_of_memory)
        iq_control_fail(control, false, ISGQ_ERR_NO_MEMORY, control->rank, "rank %d has no memory to gather %zu bytes",
                        control->rank, round.bytes);
    else if (copy != NULL)
        contribute(control, 0, round.number, round.kind, copy, round.bytes);
    free(copy);
}

void iq_gather_contribution(iq_control_t *control, int rank, const iq_control_frame_t *frame)
{
    iq_unpack_t unpack = {.data = frame->payload, .left = frame->bytes};
    uint64_t number = iq_unpack_u64(&unpack);
    uint32_t kind = iq_unpack_u32(&unpack);

    if (unpack.bad || unpack.left > IQ_GATHER_BYTES || kind > IQ_ROUND_GOODBYE) {
        iq_control_fail(control, false, ISGQ_ERR_CORRUPT, rank, "control channel: rank %d sent a broken contribution", rank);
        return;
    }
    contribute(control, rank, number, (iq_round_kind_t)kind, unpack.data, unpack.left);
}

void iq_gather_result(iq_control_t *control, const iq_control_frame_t *frame)
{
    iq_unpack_t unpack = {.data = frame->payload, .left = frame->bytes};
    uint64_t number = iq_unpack_u64(&unpack), total = iq_unpack_u64(&unpack), offset = iq_unpack_u64(&unpack);

    pthread_mutex_lock(&control->lock);
    iq_round_t *round = &control->round;
    uint64_t expected = (uint64_t)control->nranks * round->bytes;
    bool right = !unpack.bad && number == round->number && !round->done && total == expected && offset == round->received &&
                 unpack.left <= expected - offset;
    if (right && round->active) {
        if (unpack.left > 0)
            memcpy(round->recv + offset, unpack.data, unpack.left);
        round->received += unpack.left;
        if (round->received == expected)
            finish(control, round->kind);
    }
    pthread_mutex_unlock(&control->lock);
    if (!right)
        iq_control_fail(control, false, ISGQ_ERR_CORRUPT, 0, "control channel: rank 0 sent a broken result of round %llu",
                        (unsigned long long)number);
}

/* A caller's deadline has passed. Whoever is not in the round by now is at fault; if all are, the result is on its way. */
void iq_gather_late(iq_control_t *control, uint64_t number)
{
    const iq_collection_t *collection = &control->collection;
    iq_pack_t head = {.used = 0};
    char missing[256];

    if (!iq_control_is_root(control)) {
        iq_pack_u64(&head, number);
        if (control->members[0].conn.fd >= 0)
            iq_conn_send(&control->members[0].conn, IQ_FRAME_LATE, &head, NULL, 0);
        return;
    }
    if (collection->count == 0 || number != collection->number)
        return;
    int first = 0;
    while (first < control->nranks - 1 && collection->present[first])
        first++;
    int count = iq_name_missing(collection->present, control->nranks, missing, sizeof(missing));
    iq_control_fail(control, false, ISGQ_ERR_TIMEOUT, first,
                    "%s %s not joined in %s %llu of the control channel before the deadline", missing,
                    count == 1 ? "has" : "have", kind_name(collection->kind), (unsigned long long)number);
}
