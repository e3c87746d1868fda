/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ends of the wire over NCCL: see nccl_rank.h. Everything is enqueued before anything is waited for, so a function of the wire that waited
 * for a peer's host would hang the test.
 */
#include "support/nccl_rank.h"

#include "base/util.h"

#include <cudasim.h>
#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define WORDS 1500
#define MESSAGE_PLACES ((size_t)MAX_RANKS * ROUNDS * MOST_MESSAGES)
#define WORDS_AT (2 * MESSAGE_PLACES * SLOT_BYTES)
#define PINNED_BYTES (WORDS_AT + iq_align_up(ROUNDS * WORDS * sizeof(uint32_t), 4096))

bool nccl_one_machine;
int nccl_devices = 4;

/* ---- ranks ---- */

/* Which of its process's ranks it is. */
static int place_in_process(const rank_t *self)
{
    int place = 0;
    for (int r = 0; r < self->rank; r++)
        place += self->world->process[r] == self->world->process[self->rank];
    return place;
}

/* NCCL's own variable for tests with one GPU. */
static void choose_machine(const rank_t *self)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static pid_t chosen;
    char text[16];
    snprintf(text, sizeof(text), "%d", nccl_one_machine ? 0 : self->world->process[self->rank]);
    pthread_mutex_lock(&lock);
    if (chosen != getpid())
        setenv("NCCL_HOSTID", text, 1);
    chosen = getpid();
    pthread_mutex_unlock(&lock);
}

int nccl_start(end_t *end, rank_t *self)
{
    *end = (end_t){.self = self, .device = place_in_process(self) % nccl_devices};
    choose_machine(self);
    end->open_ns = self->world->open_ns;
    for (size_t i = 0; iq_wires[i] != NULL; i++)
        if (strcmp(iq_wires[i]->name, "nccl") == 0)
            end->ops = iq_wires[i];
    EXPECT(end->ops != NULL && end->ops->rounds && end->ops->slots == 0);
    end->cuda = (const iq_cuda_module_t *)iq_module_load("cuda");
    EXPECT(end->cuda != NULL);
    EXPECT(end->cuda->stream_create(end->device, &end->stream) == ISGQ_SUCCESS);
    EXPECT(end->cuda->event_create(end->device, &end->event) == ISGQ_SUCCESS);
    end->pinned = mmap(NULL, PINNED_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    EXPECT(end->pinned != MAP_FAILED);
    EXPECT(end->cuda->pin(end->device, end->pinned, PINNED_BYTES) == ISGQ_SUCCESS);
    return 0;
}

isgq_result_t nccl_open(end_t *end)
{
    rank_t *self = end->self;
    const world_t *world = self->world;
    for (int r = 0; r < world->nranks; r++)
        self->peers[r] = (iq_peer_t){.host = 100 + (uint64_t)world->process[r],
                                     .process = 200 + (uint64_t)world->process[r],
                                     .device_type = ISGQ_DEVICE_CUDA};
    const iq_wire_params_t params = {.rank = self->rank,
                                     .nranks = world->nranks,
                                     .peers = self->peers,
                                     .token = 1,
                                     .cuda = end->cuda,
                                     .device = end->device,
                                     .slot_bytes = SLOT_BYTES,
                                     .allgather = world_gather,
                                     .allgather_context = self,
                                     .deadline_ns = iq_now_ns() + end->open_ns,
                                     .native = end->native};
    return end->ops->open(&params, &end->wire);
}

void nccl_close(end_t *end)
{
    if (end->wire != NULL)
        end->ops->close(end->wire);
    end->wire = NULL;
}

/* The stand-in holds a file for ranks that have not come yet: while this process has one, a thread may still make a communicator. */
static bool has_file(void)
{
    char path[64], target[64];
    bool found = false;
    DIR *folder = opendir("/proc/self/fd");
    for (struct dirent *entry; folder != NULL && (entry = readdir(folder)) != NULL;) {
        snprintf(path, sizeof(path), "/proc/self/fd/%.20s", entry->d_name);
        ssize_t length = readlink(path, target, sizeof(target));
        found |= length > 12 && memcmp(target, "/memfd:nccl ", 12) == 0;
    }
    if (folder != NULL)
        closedir(folder);
    return found;
}

static bool nothing_left(void)
{
    cudasim_count_t left = cudasim_objects();
    return left.streams == 0 && left.events == 0 && left.device_blocks == 0 && left.registrations == 0;
}

static void free_all(end_t *end)
{
    nccl_close(end);
    end->cuda->stream_destroy(end->device, end->stream);
    end->cuda->event_destroy(end->device, end->event);
    end->cuda->unpin(end->pinned);
    munmap(end->pinned, PINNED_BYTES);
}

void nccl_finish_alone(end_t *end)
{
    free_all(end);
    while (!nothing_left())
        sched_yield();
}

int nccl_finish(end_t *end)
{
    rank_t *self = end->self;
    free_all(end);
    EXPECT(world_barrier(self) == 0);
    if (self->world->process[0] == self->world->process[self->rank]) /* it made the id */
        while (has_file())
            sched_yield();
    while (!nothing_left())
        sched_yield();
    return world_barrier(self);
}

world_t nccl_world(const char *layout, int (*body)(rank_t *self))
{
    int nranks = (int)strlen(layout);
    world_t world = world_make("local", nranks);
    for (int r = 0; r < nranks; r++)
        world.process[r] = layout[r] - '0';
    world.body = body;
    return world;
}

void nccl_run(const char *layout, int (*body)(rank_t *self))
{
    world_t world = nccl_world(layout, body);
    world_run(&world);
}

int nccl_make_native(end_t *end)
{
    rank_t *self = end->self;
    const iq_nccl_functions_t *nccl;
    iq_nccl_id_t id, ids[MAX_RANKS];
    EXPECT(iq_nccl_load(&nccl) == ISGQ_SUCCESS);
    memset(&id, 0, sizeof(id));
    if (self->rank == 0)
        EXPECT(nccl->get_unique_id(&id) == IQ_NCCL_SUCCESS);
    EXPECT(world_gather(self, &id, ids, sizeof(id)) == ISGQ_SUCCESS);
    EXPECT(end->cuda->use(end->device) == ISGQ_SUCCESS);
    EXPECT(nccl->comm_init_rank(&end->native, self->world->nranks, ids[0], self->rank) == IQ_NCCL_SUCCESS);
    return 0;
}

/* ---- messages ---- */

static uint32_t mix(int i, int from, int to, int m)
{
    uint32_t value = (uint32_t)(i * 7919 + from * 104729 + to * 1299709 + m * 15485863 + 1) * 2654435761u;
    return value ^ value >> 15;
}

/* Round 0 has the longest message for everybody, round 1 none. */
static int messages_of(int i, int from, int to)
{
    return i == 0 ? 1 : i == 1 ? 0 : (int)(mix(i, from, to, 0) % (MOST_MESSAGES + 1));
}

static size_t bytes_of(int i, int from, int to, int m)
{
    if (messages_of(i, from, to) == 1)
        return i == 0 ? SLOT_BYTES : 1 + mix(i, from, to, m) % SLOT_BYTES;
    return 1 + mix(i, from, to, m) % (SLOT_BYTES / 4);
}

static unsigned char *place_of(const end_t *end, bool incoming, int i, int peer, int m)
{
    size_t place = ((size_t)peer * ROUNDS + (size_t)i) * MOST_MESSAGES + (size_t)m;
    return end->pinned + (place + (incoming ? MESSAGE_PLACES : 0)) * SLOT_BYTES;
}

static unsigned char byte_of(int i, int from, int to, int m, int salt, size_t k)
{
    return (unsigned char)(mix(i, from, to, m) + (uint32_t)salt * 101 + k * 3 + (k >> 8));
}

void nccl_fill(end_t *end, int i, int salt)
{
    int own = end->self->rank;
    for (int peer = 0; peer < end->self->world->nranks; peer++)
        for (int m = 0; m < messages_of(i, own, peer) && peer != own; m++)
            for (size_t k = 0; k < bytes_of(i, own, peer, m); k++)
                place_of(end, false, i, peer, m)[k] = byte_of(i, own, peer, m, salt, k);
}

int nccl_check_round(const end_t *end, int i, int salt)
{
    int own = end->self->rank;
    for (int peer = 0; peer < end->self->world->nranks; peer++)
        for (int m = 0; m < messages_of(i, peer, own) && peer != own; m++)
            for (size_t k = 0; k < bytes_of(i, peer, own, m); k++)
                if (place_of(end, true, i, peer, m)[k] != byte_of(i, peer, own, m, salt, k)) {
                    fprintf(stderr, "rank %d, round %d: message %d from rank %d is wrong from byte %zu on\n", own, i, m, peer, k);
                    return 1;
                }
    return 0;
}

static int send_message(end_t *end, int i, int peer, int m)
{
    rank_t *self = end->self;
    void *slot;
    size_t bytes = bytes_of(i, self->rank, peer, m);
    EXPECT(end->ops->begin_send(end->wire, end->stream, peer, bytes, &slot) == ISGQ_SUCCESS);
    EXPECT((uintptr_t)slot % 256 == 0);
    EXPECT(end->cuda->copy(end->device, end->stream, slot, place_of(end, false, i, peer, m), bytes) == ISGQ_SUCCESS);
    return 0;
}

static int send_round(end_t *end, int i)
{
    rank_t *self = end->self;
    int nranks = self->world->nranks;
    bool at_once = i % 3 == 0; /* the first messages to all peers are open at a time */
    for (int peer = 0; peer < nranks && at_once; peer++)
        if (peer != self->rank && messages_of(i, self->rank, peer) > 0)
            EXPECT(send_message(end, i, peer, 0) == 0);
    for (int peer = nranks - 1; peer >= 0; peer--)
        for (int m = 0; m < messages_of(i, self->rank, peer) && peer != self->rank; m++) {
            EXPECT((at_once && m == 0) || send_message(end, i, peer, m) == 0);
            EXPECT(end->ops->end_send(end->wire, end->stream, peer) == ISGQ_SUCCESS);
        }
    return 0;
}

int nccl_round(end_t *end, int i)
{
    rank_t *self = end->self;
    int nranks = self->world->nranks;
    EXPECT(send_round(end, i) == 0);
    for (int peer = 0; peer < nranks; peer++)
        for (int m = 0; m < messages_of(i, peer, self->rank) && peer != self->rank; m++)
            EXPECT(end->ops->expect(end->wire, peer, bytes_of(i, peer, self->rank, m)) == ISGQ_SUCCESS);
    EXPECT(end->ops->exchange(end->wire, end->stream) == ISGQ_SUCCESS);
    for (int m = 0; m < MOST_MESSAGES; m++)
        for (int peer = nranks - 1; peer >= 0; peer--) {
            const void *slot;
            if (peer == self->rank || m >= messages_of(i, peer, self->rank))
                continue;
            size_t bytes = bytes_of(i, peer, self->rank, m);
            EXPECT(end->ops->begin_receive(end->wire, end->stream, peer, bytes, &slot) == ISGQ_SUCCESS);
            EXPECT((uintptr_t)slot % 256 == 0);
            EXPECT(end->cuda->copy(end->device, end->stream, place_of(end, true, i, peer, m), slot, bytes) == ISGQ_SUCCESS);
            EXPECT(end->ops->end_receive(end->wire, end->stream, peer) == ISGQ_SUCCESS);
        }
    return 0;
}

/* ---- sums ---- */

static uint32_t *words_of(const end_t *end, int i) { return (uint32_t *)(void *)(end->pinned + WORDS_AT) + i * WORDS; }

static uint32_t word_of(int rank, int i, size_t k) { return mix(i, rank, (int)k, 5); } /* their sum wraps */

static size_t words_in(int i) { return i == 0 ? 1 : (size_t)i * 131; }

static int sum_round(end_t *end, int i, void *memory)
{
    rank_t *self = end->self;
    size_t bytes = words_in(i) * sizeof(uint32_t);
    for (size_t k = 0; k < words_in(i); k++)
        words_of(end, i)[k] = word_of(self->rank, i, k);
    EXPECT(end->cuda->copy(end->device, end->stream, memory, words_of(end, i), bytes) == ISGQ_SUCCESS);
    EXPECT(end->ops->sum_words(end->wire, end->stream, memory, words_in(i)) == ISGQ_SUCCESS);
    EXPECT(end->cuda->copy(end->device, end->stream, words_of(end, i), memory, bytes) == ISGQ_SUCCESS);
    return 0;
}

static int check_sum(const end_t *end, int i)
{
    rank_t *self = end->self;
    for (size_t k = 0; k < words_in(i); k++) {
        uint32_t sum = 0;
        for (int rank = 0; rank < self->world->nranks; rank++)
            sum += word_of(rank, i, k);
        EXPECT(words_of(end, i)[k] == sum);
    }
    return 0;
}

/* ---- all of it ---- */

int nccl_record(end_t *end)
{
    rank_t *self = end->self;
    EXPECT(end->cuda->event_record(end->device, end->event, end->stream) == ISGQ_SUCCESS);
    return 0;
}

int nccl_arrive(end_t *end)
{
    rank_t *self = end->self;
    isgq_result_t result;
    while ((result = end->cuda->event_poll(end->device, end->event)) == ISGQ_IN_PROGRESS)
        sched_yield();
    EXPECT(result == ISGQ_SUCCESS);
    return 0;
}

static int enqueue_all(end_t *end, void *memory)
{
    for (int i = 0; i < ROUNDS; i++) {
        nccl_fill(end, i, 0);
        if (nccl_round(end, i) != 0 || sum_round(end, i, memory) != 0)
            return 1;
    }
    return nccl_record(end);
}

int nccl_exchange(end_t *end)
{
    rank_t *self = end->self;
    int failures = 0;
    void *memory;
    EXPECT(end->cuda->shared_alloc(end->device, WORDS * sizeof(uint32_t), &memory) == ISGQ_SUCCESS);
    if (self->rank > 0)
        EXPECT(world_barrier(self) == 0);
    EXPECT(enqueue_all(end, memory) == 0);
    if (self->rank == 0)
        EXPECT(world_barrier(self) == 0);
    EXPECT(nccl_arrive(end) == 0);
    for (int i = 0; i < ROUNDS; i++)
        failures += nccl_check_round(end, i, 0) + check_sum(end, i);
    EXPECT(failures == 0);
    EXPECT(end->ops->awaited(end->wire) == -1);
    EXPECT(end->ops->check(end->wire) == ISGQ_SUCCESS);
    end->cuda->shared_free(end->device, memory);
    return world_barrier(self); /* the wire is closed when all streams have passed */
}
