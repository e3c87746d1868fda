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

static size_t control_bytes(unsigned slots)
{
    return iq_align_up(offsetof(iq_ring_shared_t, lengths) + slots * sizeof(uint32_t), IQ_CACHE_LINE);
}

size_t iq_ring_bytes(size_t slot_bytes, unsigned slots)
{
    size_t data, total;
    if (slot_bytes > UINT32_MAX || !iq_checked_mul(slot_bytes, slots, &data))
        return 0;
    return __builtin_add_overflow(data, control_bytes(slots), &total) ? 0 : total;
}

void iq_ring_attach(iq_ring_t *ring, void *memory, size_t slot_bytes, unsigned slots)
{
    iq_assert(slots > 0 && slot_bytes % IQ_CACHE_LINE == 0 && (uintptr_t)memory % IQ_CACHE_LINE == 0);
    *ring = (iq_ring_t){
        .shared = memory,
        .slot_memory = (unsigned char *)memory + control_bytes(slots),
        .slot_bytes = slot_bytes,
        .slots = slots,
    };
}

static void *current_slot(const iq_ring_t *ring) { return ring->slot_memory + ring->index * ring->slot_bytes; }

static void advance(iq_ring_t *ring)
{
    ring->position++;
    ring->index = ring->index + 1 == ring->slots ? 0 : ring->index + 1;
}

void *iq_ring_acquire(iq_ring_t *ring)
{
    if (ring->position - ring->seen >= ring->slots) {
        ring->seen = atomic_load_explicit(&ring->shared->head, memory_order_acquire);
        if (ring->position - ring->seen >= ring->slots) { /* full, or a head beyond our tail */
            ring->corrupt |= ring->position - ring->seen > ring->slots;
            ring->starved = true;
            return NULL;
        }
    }
    return current_slot(ring);
}

void iq_ring_commit(iq_ring_t *ring, size_t bytes)
{
    iq_assert(bytes > 0 && bytes <= ring->slot_bytes);
    atomic_store_explicit(&ring->shared->lengths[ring->index], (uint32_t)bytes, memory_order_relaxed);
    advance(ring);
    atomic_store(&ring->shared->tail, ring->position);
}

const void *iq_ring_peek(iq_ring_t *ring, size_t *bytes)
{
    if (ring->seen == ring->position) {
        ring->seen = atomic_load_explicit(&ring->shared->tail, memory_order_acquire);
        if (ring->seen == ring->position)
            return NULL;
    }
    size_t length = atomic_load_explicit(&ring->shared->lengths[ring->index], memory_order_relaxed);
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
    atomic_store(&ring->shared->head, ring->position);
}

bool iq_ring_arrived(iq_ring_t *receiver)
{
    if (receiver->noted == receiver->position + 1 || atomic_load(&receiver->shared->tail) == receiver->position)
        return false;
    receiver->noted = receiver->position + 1;
    return true;
}

bool iq_ring_has_room(iq_ring_t *sender)
{
    if (!sender->starved || sender->position - atomic_load(&sender->shared->head) >= sender->slots)
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
