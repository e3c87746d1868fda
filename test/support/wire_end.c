/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ends of the wire: see wire_end.h. Everything is enqueued before anything is waited for, so a function of the wire that waited
 * for a peer's host would hang the test.
 */
#include "support/wire_end.h"

#include "base/util.h"
#include "transport/cuda_ipc.h"

#include <cudasim.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>

#define PINNED_BYTES ((size_t)2 * MAX_RANKS * MESSAGES * SLOT_BYTES)

iq_cuda_module_t wire_tables[MAX_RANKS];
static int device_count;

/* ---- ranks ---- */

int wire_start(end_t *end, rank_t *self)
{
    *end = (end_t){.self = self, .ops = iq_wires[0], .device = self->rank % device_count, .gather = world_gather};
    end->open_ns = self->world->open_ns;
    EXPECT(strcmp(end->ops->name, "cuda_ipc") == 0 && !end->ops->rounds && end->ops->slots == 2);
    const iq_module_t *module = iq_module_load("cuda");
    EXPECT(module != NULL);
    end->cuda = (const iq_cuda_module_t *)module;
    wire_tables[self->rank] = *end->cuda;
    EXPECT(end->cuda->stream_create(end->device, &end->stream) == ISGQ_SUCCESS);
    EXPECT(end->cuda->event_create(end->device, &end->event) == ISGQ_SUCCESS);
    end->outgoing = mmap(NULL, PINNED_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT(end->outgoing != MAP_FAILED);
    EXPECT(end->cuda->pin(end->device, end->outgoing, PINNED_BYTES) == ISGQ_SUCCESS);
    end->incoming = end->outgoing + PINNED_BYTES / 2;
    return 0;
}

isgq_result_t wire_open(end_t *end)
{
    rank_t *self = end->self;
    const world_t *world = self->world;
    for (int r = 0; r < world->nranks; r++)
        self->peers[r] = (iq_peer_t){.host = 100 + (uint64_t)world->host[r],
                                     .process = 200 + (uint64_t)world->process[r],
                                     .device_type = ISGQ_DEVICE_CUDA};
    const iq_wire_params_t params = {.rank = self->rank,
                                     .nranks = world->nranks,
                                     .peers = self->peers,
                                     .token = 0x123456789abcdef0ull + (uint64_t)self->epoch,
                                     .cuda = &wire_tables[self->rank],
                                     .device = end->device,
                                     .slot_bytes = SLOT_BYTES,
                                     .allgather = end->gather,
                                     .allgather_context = self,
                                     .deadline_ns = iq_now_ns() + end->open_ns};
    return end->ops->open(&params, &end->wire);
}

void wire_close(end_t *end)
{
    if (end->wire != NULL)
        end->ops->close(end->wire);
    end->wire = NULL;
}

static int nothing_left(rank_t *self)
{
    cudasim_count_t left = cudasim_objects();
    EXPECT(left.streams == 0 && left.events == 0);
    EXPECT(left.device_blocks == 0 && left.opened_blocks == 0);
    EXPECT(left.pinned_blocks == 0 && left.registrations == 0);
    return 0;
}

int wire_finish(end_t *end)
{
    rank_t *self = end->self;
    wire_close(end);
    end->cuda->stream_destroy(end->device, end->stream);
    end->cuda->event_destroy(end->device, end->event);
    end->cuda->unpin(end->outgoing);
    munmap(end->outgoing, PINNED_BYTES);
    EXPECT(world_barrier(self) == 0);
    iq_cuda_ipc_sweep();
    EXPECT(world_barrier(self) == 0);
    EXPECT(nothing_left(self) == 0);
    return world_barrier(self);
}

void wire_run(const char *layout, int devices, int (*body)(rank_t *self))
{
    int nranks = (int)strlen(layout);
    world_t world = world_make("local", nranks);
    for (int r = 0; r < nranks; r++)
        world.process[r] = layout[r] - '0';
    world.body = body;
    device_count = devices;
    world_run(&world);
}

/* ---- messages ---- */

static size_t message_bytes(int from, int to, int i)
{
    uint32_t mixed = (uint32_t)(from * 7919 + to * 104729 + i * 1299709) * 2654435761u;
    return i == 0 ? 1 : i == 1 ? SLOT_BYTES : 1 + (mixed >> 8) % SLOT_BYTES;
}

static unsigned char byte_of(int from, int to, int i, size_t k)
{
    return (unsigned char)((size_t)(from * 31 + to * 17 + i * 7) + k * 3 + (k >> 8));
}

static size_t place_of(int peer, int i) { return (size_t)(peer * MESSAGES + i) * SLOT_BYTES; }

static int begin_send(end_t *end, int peer, int i, void **slot)
{
    rank_t *self = end->self;
    EXPECT(end->ops->begin_send(end->wire, end->stream, peer, message_bytes(self->rank, peer, i), slot) == ISGQ_SUCCESS);
    EXPECT(*slot != NULL && (uintptr_t)*slot % 256 == 0);
    return 0;
}

static int write_message(end_t *end, int peer, int i, void *slot)
{
    rank_t *self = end->self;
    unsigned char *bytes = end->outgoing + place_of(peer, i);
    size_t count = message_bytes(self->rank, peer, i);
    for (size_t k = 0; k < count; k++)
        bytes[k] = byte_of(self->rank, peer, i, k);
    EXPECT(end->cuda->copy(end->device, end->stream, slot, bytes, count) == ISGQ_SUCCESS);
    return 0;
}

static int end_send(end_t *end, int peer)
{
    rank_t *self = end->self;
    EXPECT(end->ops->end_send(end->wire, end->stream, peer) == ISGQ_SUCCESS);
    return 0;
}

int wire_send(end_t *end, int peer, int i)
{
    void *slot;
    return begin_send(end, peer, i, &slot) || write_message(end, peer, i, slot) || end_send(end, peer);
}

static int begin_receive(end_t *end, int peer, int i)
{
    rank_t *self = end->self;
    const void *slot;
    size_t count = message_bytes(peer, self->rank, i);
    EXPECT(end->ops->begin_receive(end->wire, end->stream, peer, count, &slot) == ISGQ_SUCCESS);
    EXPECT(slot != NULL && (uintptr_t)slot % 256 == 0);
    EXPECT(end->cuda->copy(end->device, end->stream, end->incoming + place_of(peer, i), slot, count) == ISGQ_SUCCESS);
    return 0;
}

static int end_receive(end_t *end, int peer)
{
    rank_t *self = end->self;
    EXPECT(end->ops->end_receive(end->wire, end->stream, peer) == ISGQ_SUCCESS);
    return 0;
}

int wire_receive(end_t *end, int peer, int i) { return begin_receive(end, peer, i) || end_receive(end, peer); }

int wire_check_message(const end_t *end, int peer, int i)
{
    rank_t *self = end->self;
    const unsigned char *bytes = end->incoming + place_of(peer, i);
    for (size_t k = 0; k < message_bytes(peer, self->rank, i); k++)
        if (bytes[k] != byte_of(peer, self->rank, i, k)) {
            fprintf(stderr, "rank %d: message %d from rank %d is wrong from byte %zu on\n", self->rank, i, peer, k);
            return 1;
        }
    return 0;
}

int wire_record(end_t *end)
{
    rank_t *self = end->self;
    EXPECT(end->cuda->event_record(end->device, end->event, end->stream) == ISGQ_SUCCESS);
    return 0;
}

int wire_arrive(end_t *end)
{
    rank_t *self = end->self;
    isgq_result_t result;
    while ((result = end->cuda->event_poll(end->device, end->event)) == ISGQ_IN_PROGRESS)
        sched_yield();
    EXPECT(result == ISGQ_SUCCESS);
    return 0;
}

/* Sends to all peers and receives from all; in every third round all of them are open at once. */
static int enqueue_round(end_t *end, int i)
{
    void *slots[MAX_RANKS];
    int nranks = end->self->world->nranks, own = end->self->rank, failures = 0;
    bool at_once = i % 3 == 0;
    for (int peer = 0; peer < nranks && at_once; peer++)
        failures += peer != own && begin_send(end, peer, i, &slots[peer]) != 0;
    for (int peer = nranks - 1; peer >= 0 && at_once && failures == 0; peer--)
        failures += peer != own && (write_message(end, peer, i, slots[peer]) || end_send(end, peer));
    for (int peer = 0; peer < nranks && !at_once; peer++)
        failures += peer != own && wire_send(end, peer, i) != 0;
    for (int peer = 0; peer < nranks; peer++)
        failures += peer != own && (at_once ? begin_receive(end, peer, i) : wire_receive(end, peer, i)) != 0;
    for (int peer = nranks - 1; peer >= 0 && at_once; peer--)
        failures += peer != own && end_receive(end, peer) != 0;
    return failures;
}

int wire_exchange(end_t *end)
{
    rank_t *self = end->self;
    int failures = 0;
    if (self->rank > 0)
        EXPECT(world_barrier(self) == 0);
    for (int i = 0; i < MESSAGES; i++)
        EXPECT(enqueue_round(end, i) == 0);
    EXPECT(wire_record(end) == 0);
    if (self->rank == 0)
        EXPECT(world_barrier(self) == 0);
    EXPECT(wire_arrive(end) == 0);
    for (int peer = 0; peer < self->world->nranks; peer++)
        for (int i = 0; i < MESSAGES && peer != self->rank; i++)
            failures += wire_check_message(end, peer, i);
    EXPECT(failures == 0);
    EXPECT(end->ops->awaited(end->wire) == -1);
    EXPECT(end->ops->check(end->wire) == ISGQ_SUCCESS);
    return 0;
}
