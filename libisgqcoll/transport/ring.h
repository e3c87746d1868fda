/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A message queue from one sender to one receiver, or to several that all read every message, in memory that they see; and a doorbell for
 * whoever sleeps beside it.
 *
 *     byte 0    | head          | messages released, written by the receiver only; a line for each receiver
 *          64   | tail, lengths | messages committed and the bytes of each slot, written by the sender only
 *          ...  | slot 0 | slot 1 | ... | slot n-1 |   slot_bytes each, 64-byte aligned
 *
 * Message number i lies in slot i mod n; head <= tail <= head + n for every head. All ends are one cache line away from "nothing new": no
 * line is written by two. The other side's counters and lengths are foreign bytes: they are checked before use.
 *
 * Nobody makes a system call unless somebody sleeps. A commit stores tail and then reads the peer's doorbell; a sleeper stores SLEEPING
 * and then reads tail. All four are sequentially consistent, so at least one of the two sees the other: no wake-up is lost.
 */
#ifndef ISGQ_TRANSPORT_RING_H
#define ISGQ_TRANSPORT_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- the queue ---- */

typedef struct iq_ring_head {
    _Alignas(64) _Atomic uint64_t released;
} iq_ring_head_t;

typedef struct iq_ring_tail {
    _Alignas(64) _Atomic uint64_t committed;
    _Atomic uint32_t lengths[];
} iq_ring_tail_t;

/* One end of a ring: private to its thread. */
typedef struct iq_ring {
    iq_ring_head_t *heads; /* sender: of all receivers; receiver: its own */
    iq_ring_tail_t *tail;
    unsigned char *slot_memory;
    size_t slot_bytes;
    uint32_t slots, index; /* index: slot of message number `position` */
    unsigned receivers;
    unsigned laggard;      /* sender: the receiver that was furthest behind when the heads were last read */
    uint64_t position;     /* messages that this end has committed or released */
    uint64_t seen;         /* the other end's counter when it was last read */
    uint64_t noted;        /* receiver: 1 + the message that peek has shown or the sleeper was told of */
    bool starved;          /* sender: acquire has found no room since */
    bool corrupt;          /* the other end wrote nonsense; nothing is received any more */
} iq_ring_t;

/* What a ring is made of: the same at all ends. */
typedef struct iq_ring_shape {
    size_t slot_bytes;
    unsigned slots, receivers;
} iq_ring_shape_t;

/* Bytes of a ring, a multiple of 64; 0 if that does not fit in size_t or slot_bytes not in 32 bits. */
size_t iq_ring_bytes(iq_ring_shape_t shape);

/* Make the sender's end, or that of receiver 0, 1, ..., of the ring in `memory` (64-byte aligned, zeroed before the first end is made). */
void iq_ring_attach_sender(iq_ring_t *ring, void *memory, iq_ring_shape_t shape);
void iq_ring_attach_receiver(iq_ring_t *ring, void *memory, iq_ring_shape_t shape, unsigned receiver);

/* Sender. acquire: a free slot or NULL. commit: 1..slot_bytes bytes. */
void *iq_ring_acquire(iq_ring_t *ring);
void iq_ring_commit(iq_ring_t *ring, size_t bytes);

/* Receiver. peek: the oldest message or NULL; sets `corrupt` if the counters or the length make no sense. */
const void *iq_ring_peek(iq_ring_t *ring, size_t *bytes);
void iq_ring_release(iq_ring_t *ring);

/* For sleepers: is there an oldest message that neither peek has shown nor this function reported? Has room come free since acquire
 * found none? True once per event, so a message that nobody wants yet does not keep its receiver awake. */
bool iq_ring_arrived(iq_ring_t *receiver);
bool iq_ring_has_room(iq_ring_t *sender);

/* ---- the doorbell ---- */

typedef enum iq_doorbell_state { IQ_AWAKE, IQ_SLEEPING, IQ_CLOSED } iq_doorbell_state_t;

/* One per rank, a cache line. Only its owner stores SLEEPING and CLOSED; others turn SLEEPING into AWAKE. */
typedef struct iq_doorbell {
    _Atomic uint32_t state; /* also the futex word */
    uint32_t padding[15];
} iq_doorbell_t;

/* Wake the owner if it sleeps; after the caller's change to what the owner waits for. False if the owner has closed. */
bool iq_doorbell_ring(iq_doorbell_t *doorbell);

/* Owner: announce the nap, then look at everything once more, then either nap for at most `ns` or cancel. */
void iq_doorbell_prepare(iq_doorbell_t *doorbell);
void iq_doorbell_nap(iq_doorbell_t *doorbell, uint64_t ns);
void iq_doorbell_cancel(iq_doorbell_t *doorbell);

/* Owner: from now on ringing says that nobody is at home. */
void iq_doorbell_close(iq_doorbell_t *doorbell);

#endif
