/* SPDX-License-Identifier: Apache-2.0 */
/* The queue and the doorbell of ring.h. Read the picture there first. */
#include "transport/ring.h"

#include "base/status.h"
#include "base/util.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* ---- the queue ---- */

static size_t tail_at(unsigned receivers) { return receivers * sizeof(iq_ring_head_t); }

static size_t control_bytes(iq_ring_shape_t shape)
{
    return iq_align_up(tail_at(shape.receivers) + offsetof(iq_ring_tail_t, lengths) + shape.slots * sizeof(uint32_t), IQ_CACHE_LINE);
}

size_t iq_ring_bytes(iq_ring_shape_t shape)
{
    size_t data, total;
    if (shape.slot_bytes > UINT32_MAX || !iq_checked_mul(shape.slot_bytes, shape.slots, &data))
        return 0;
    return __builtin_add_overflow(data, control_bytes(shape), &total) ? 0 : total;
}

void iq_ring_attach_sender(iq_ring_t *ring, void *memory, iq_ring_shape_t shape)
{
    unsigned char *bytes = memory;
    iq_assert(shape.slots > 0 && shape.slot_bytes % IQ_CACHE_LINE == 0 && (uintptr_t)memory % IQ_CACHE_LINE == 0);
    *ring = (iq_ring_t){
        .heads = memory,
        .tail = (iq_ring_tail_t *)(void *)(bytes + tail_at(shape.receivers)),
        .slot_memory = bytes + control_bytes(shape),
        .slot_bytes = shape.slot_bytes,
        .slots = shape.slots,
        .receivers = shape.receivers,
    };
}

void iq_ring_attach_receiver(iq_ring_t *ring, void *memory, iq_ring_shape_t shape, unsigned receiver)
{
    iq_ring_attach_sender(ring, memory, shape);
    ring->heads += receiver;
}

static void *current_slot(const iq_ring_t *ring) { return ring->slot_memory + ring->index * ring->slot_bytes; }

static void advance(iq_ring_t *ring)
{
    ring->position++;
    ring->index = ring->index + 1 == ring->slots ? 0 : ring->index + 1;
}

/* How far the slowest receiver is behind; more than `slots` if one wrote nonsense, like a head beyond our tail. */
static uint64_t look_behind(iq_ring_t *ring)
{
    uint64_t most = 0;
    for (unsigned receiver = 0; receiver < ring->receivers; receiver++) {
        uint64_t behind = ring->position - atomic_load(&ring->heads[receiver].released);
        if (behind >= most) {
            most = behind;
            ring->laggard = receiver;
        }
    }
    return most;
}

void *iq_ring_acquire(iq_ring_t *ring)
{
    if (ring->position - ring->seen >= ring->slots) {
        uint64_t behind = look_behind(ring);
        ring->seen = ring->position - behind;
        if (behind >= ring->slots) {
            ring->corrupt |= behind > ring->slots;
            ring->starved = true;
            return NULL;
        }
    }
    return current_slot(ring);
}

void iq_ring_commit(iq_ring_t *ring, size_t bytes)
{
    iq_assert(bytes > 0 && bytes <= ring->slot_bytes);
    atomic_store_explicit(&ring->tail->lengths[ring->index], (uint32_t)bytes, memory_order_relaxed);
    advance(ring);
    atomic_store(&ring->tail->committed, ring->position);
}

const void *iq_ring_peek(iq_ring_t *ring, size_t *bytes)
{
    if (ring->seen == ring->position) {
        ring->seen = atomic_load_explicit(&ring->tail->committed, memory_order_acquire);
        if (ring->seen == ring->position)
            return NULL;
    }
    size_t length = atomic_load_explicit(&ring->tail->lengths[ring->index], memory_order_relaxed);
    if (ring->corrupt || ring->seen - ring->position > ring->slots || length == 0 || length > ring->slot_bytes) {
        ring->corrupt = true;
        return NULL;
    }
    ring->noted = ring->position + 1;
    *bytes = length;
    return current_slot(ring);
}

void iq_ring_release(iq_ring_t *ring)
{
    advance(ring);
    atomic_store(&ring->heads->released, ring->position);
}

bool iq_ring_arrived(iq_ring_t *receiver)
{
    if (receiver->noted == receiver->position + 1 || atomic_load(&receiver->tail->committed) == receiver->position)
        return false;
    receiver->noted = receiver->position + 1;
    return true;
}

bool iq_ring_has_room(iq_ring_t *sender)
{
    if (!sender->starved || look_behind(sender) >= sender->slots)
        return false;
    sender->starved = false;
    return true;
}

/* ---- the doorbell ---- */

bool iq_doorbell_ring(iq_doorbell_t *doorbell)
{
    uint32_t state = atomic_load(&doorbell->state);
    if (state == IQ_SLEEPING && atomic_compare_exchange_strong(&doorbell->state, &state, IQ_AWAKE))
        syscall(SYS_futex, &doorbell->state, FUTEX_WAKE, 1, NULL, NULL, 0);
    return state != IQ_CLOSED;
}

void iq_doorbell_prepare(iq_doorbell_t *doorbell) { atomic_store(&doorbell->state, IQ_SLEEPING); }

void iq_doorbell_nap(iq_doorbell_t *doorbell, uint64_t ns)
{
    struct timespec timeout = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    syscall(SYS_futex, &doorbell->state, FUTEX_WAIT, IQ_SLEEPING, &timeout, NULL, 0);
    atomic_store(&doorbell->state, IQ_AWAKE);
}

void iq_doorbell_cancel(iq_doorbell_t *doorbell) { atomic_store(&doorbell->state, IQ_AWAKE); }

void iq_doorbell_close(iq_doorbell_t *doorbell) { atomic_store(&doorbell->state, IQ_CLOSED); }
