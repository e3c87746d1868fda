/* SPDX-License-Identifier: Apache-2.0 */
/* The stand-in for NCCL: shared memory, messages through it, and what the stream's thread does with a group. */
#include "cudasim/sim_nccl.h"

#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <memory>

namespace simnccl {

void die(const char *format, ...)
{
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    fprintf(stderr, "simulated NCCL: %s\n", text);
    abort();
}

/* ---- the world ---- */

static const char magic[8] = {'s', 'i', 'm', 'n', 'c', 'c', 'l', '1'};

struct Id {
    char magic[8];
    uint64_t token;
    int process, file;
};
static_assert(sizeof(Id) <= sizeof(iq_nccl_id_t), "an id has 128 bytes");

static World *map(int file)
{
    void *memory = mmap(nullptr, sizeof(World), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, file, 0);
    return memory == MAP_FAILED ? nullptr : static_cast<World *>(memory); /* all zero, which is a world without ranks */
}

static std::mutex files; /* opened by one thread, closed by another */

bool make_world(iq_nccl_id_t *id)
{
    Id made;
    std::lock_guard<std::mutex> guard(files);
    memcpy(made.magic, magic, sizeof(magic));
    made.process = getpid();
    made.file = memfd_create("nccl", MFD_CLOEXEC); /* stays open: others find the world through it */
    if (made.file < 0 || ftruncate(made.file, sizeof(World)) != 0 ||
        getrandom(&made.token, sizeof(made.token), 0) != static_cast<ssize_t>(sizeof(made.token)))
        return false;
    World *world = map(made.file);
    if (world == nullptr)
        return false;
    world->token = made.token;
    world->process = made.process;
    world->file = made.file;
    munmap(world, sizeof(World));
    memset(id, 0, sizeof(*id));
    memcpy(id, &made, sizeof(made));
    return true;
}

World *join_world(const iq_nccl_id_t &id)
{
    Id of;
    char path[64];
    memcpy(&of, &id, sizeof(of));
    if (memcmp(of.magic, magic, sizeof(magic)) != 0)
        return nullptr;
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", of.process, of.file);
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0)
        return nullptr;
    World *world = map(file);
    close(file);
    if (world != nullptr && world->token != of.token) {
        munmap(world, sizeof(World));
        return nullptr;
    }
    return world;
}

void leave_world(World *world) { munmap(world, sizeof(World)); }

void all_have_joined(World *world)
{
    std::lock_guard<std::mutex> guard(files);
    if (world->process == getpid() && world->closed.exchange(1) == 0)
        close(world->file);
}

/* ---- messages ---- */

/* Bytes from `offset` on of what is sent: the size, then the data. */
unsigned char *Transfer::part(size_t offset, size_t *size)
{
    if (offset < sizeof(header)) {
        *size = sizeof(header) - offset;
        return reinterpret_cast<unsigned char *>(&header) + offset;
    }
    *size = sizeof(header) + bytes - offset;
    return memory + (offset - sizeof(header));
}

bool Transfer::write_some()
{
    uint64_t end = start + sizeof(header) + bytes;
    bool progress = false;
    while (start + moved < end) {
        size_t size, place = (start + moved) % CHANNEL_BYTES;
        size_t room = CHANNEL_BYTES - (start + moved - channel->read.load(std::memory_order_acquire));
        const unsigned char *data = part(moved, &size);
        size = std::min({size, room, CHANNEL_BYTES - place});
        if (size == 0)
            return progress;
        memcpy(channel->bytes + place, data, size);
        moved += size;
        channel->written.store(start + moved, std::memory_order_release);
        progress = true;
    }
    over = channel->read.load(std::memory_order_acquire) == end;
    return progress || over;
}

bool Transfer::read_some()
{
    bool progress = false;
    while (moved < sizeof(header) + bytes) {
        size_t size, place = (start + moved) % CHANNEL_BYTES;
        size_t there = channel->written.load(std::memory_order_acquire) - (start + moved);
        unsigned char *data = part(moved, &size);
        size = std::min({size, there, CHANNEL_BYTES - place});
        if (size == 0)
            return progress;
        memcpy(data, channel->bytes + place, size);
        moved += size;
        if (moved == sizeof(header) && header != bytes)
            die("a message of %llu bytes meets a receive of %zu", static_cast<unsigned long long>(header), bytes);
        channel->read.store(start + moved, std::memory_order_release);
        progress = true;
    }
    over = true;
    return true;
}

bool Transfer::move()
{
    if (!started) {
        started = true;
        header = sends ? bytes : 0;
        start = sends ? channel->written.load() : channel->read.load();
    }
    return sends ? write_some() : read_some();
}

static bool is_next(const std::vector<Transfer> &transfers, size_t i)
{
    for (size_t before = 0; before < i; before++)
        if (transfers[before].channel == transfers[i].channel && !transfers[before].done())
            return false;
    return true;
}

bool run_transfers(std::vector<Transfer> *transfers, const std::atomic<bool> *stop)
{
    for (unsigned idle = 0;;) {
        bool progress = false, done = true;
        if (*stop) /* first of all: what an operation has left half done, the next one must not take for its own */
            return false;
        for (size_t i = 0; i < transfers->size(); i++) {
            Transfer &each = (*transfers)[i];
            if (!each.done() && is_next(*transfers, i))
                progress |= each.move();
            done &= each.done();
        }
        if (done)
            return true;
        idle = progress ? 0 : idle + 1;
        if (idle > 1000)
            usleep(50);
        else if (idle > 0)
            sched_yield();
    }
}

/* ---- sums ---- */

size_t type_bytes(unsigned type)
{
    static const size_t bytes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
    return type < sizeof(bytes) / sizeof(bytes[0]) ? bytes[type] : 0;
}

template <typename Number> static void add_numbers(void *sum, const void *term, size_t count)
{
    for (size_t i = 0; i < count; i++)
        static_cast<Number *>(sum)[i] += static_cast<const Number *>(term)[i];
}

bool add_to(unsigned type, void *sum, const void *term, size_t count)
{
    switch (type) {
    case ISGQ_INT32:
    case ISGQ_UINT32: add_numbers<uint32_t>(sum, term, count); return true;
    case ISGQ_INT64:
    case ISGQ_UINT64: add_numbers<uint64_t>(sum, term, count); return true;
    case ISGQ_FLOAT32: add_numbers<float>(sum, term, count); return true;
    case ISGQ_FLOAT64: add_numbers<double>(sum, term, count); return true;
    default: return false;
    }
}

/* ---- a group, on the thread of a stream ---- */

/* Contributions of all ranks to one sum, or to this rank's part of it, in the order of ranks. */
struct Sum {
    const Item *item;
    std::unique_ptr<unsigned char[]> parts;
};

static void plan_sum(const ncclComm *comm, const Item &item, std::vector<Transfer> *transfers, std::vector<Sum> *sums)
{
    size_t bytes = item.count * type_bytes(item.type);
    Sum sum = {&item, std::make_unique<unsigned char[]>(bytes * static_cast<size_t>(comm->nranks))};
    for (int peer = 0; peer < comm->nranks; peer++) {
        unsigned char *part = sum.parts.get() + bytes * static_cast<size_t>(peer);
        size_t offset = item.kind == Kind::reduce_scatter ? bytes * static_cast<size_t>(peer) : 0;
        unsigned char *given = static_cast<unsigned char *>(const_cast<void *>(item.from)) + offset;
        if (peer == comm->rank) {
            memcpy(part, given, bytes);
            continue;
        }
        transfers->emplace_back(&comm->world->channels[comm->rank][peer], given, bytes, true);
        transfers->emplace_back(&comm->world->channels[peer][comm->rank], part, bytes, false);
    }
    sums->push_back(std::move(sum));
}

static void plan_allgather(const ncclComm *comm, const Item &item, std::vector<Transfer> *transfers)
{
    size_t bytes = item.count * type_bytes(item.type);
    for (int peer = 0; peer < comm->nranks; peer++) {
        unsigned char *place = static_cast<unsigned char *>(item.to) + bytes * static_cast<size_t>(peer);
        if (peer == comm->rank) {
            memmove(place, item.from, bytes);
            continue;
        }
        transfers->emplace_back(&comm->world->channels[comm->rank][peer], const_cast<void *>(item.from), bytes, true);
        transfers->emplace_back(&comm->world->channels[peer][comm->rank], place, bytes, false);
    }
}

static void plan_broadcast(const ncclComm *comm, const Item &item, std::vector<Transfer> *transfers)
{
    size_t bytes = item.count * type_bytes(item.type);
    if (comm->rank != item.peer)
        transfers->emplace_back(&comm->world->channels[item.peer][comm->rank], item.to, bytes, false);
    for (int peer = 0; peer < comm->nranks && comm->rank == item.peer; peer++)
        if (peer != comm->rank)
            transfers->emplace_back(&comm->world->channels[comm->rank][peer], const_cast<void *>(item.from), bytes, true);
    if (comm->rank == item.peer && item.to != item.from)
        memmove(item.to, item.from, bytes);
}

static void plan_item(const ncclComm *comm, const Item &item, std::vector<Transfer> *transfers, std::vector<Sum> *sums)
{
    size_t bytes = item.count * type_bytes(item.type);
    switch (item.kind) {
    case Kind::send:
        transfers->emplace_back(&comm->world->channels[comm->rank][item.peer], const_cast<void *>(item.from), bytes, true);
        break;
    case Kind::receive: transfers->emplace_back(&comm->world->channels[item.peer][comm->rank], item.to, bytes, false); break;
    case Kind::sum:
    case Kind::reduce_scatter: plan_sum(comm, item, transfers, sums); break;
    case Kind::allgather: plan_allgather(comm, item, transfers); break;
    case Kind::broadcast: plan_broadcast(comm, item, transfers); break;
    }
}

static void finish_sum(const ncclComm *comm, const Sum &sum)
{
    size_t bytes = sum.item->count * type_bytes(sum.item->type);
    for (int rank = 1; rank < comm->nranks; rank++)
        add_to(sum.item->type, sum.parts.get(), sum.parts.get() + bytes * static_cast<size_t>(rank), sum.item->count);
    memcpy(sum.item->to, sum.parts.get(), bytes);
}

/* Operations of a communicator run one at a time, in the order in which they were enqueued; those of graphs when it is their turn in
 * their stream. */
static void take_turn(const Work *work)
{
    ncclComm *comm = work->comm;
    std::unique_lock<std::mutex> guard(comm->lock);
    while (comm->busy || (!work->captured && comm->served != work->ticket))
        comm->passed.wait(guard);
    comm->busy = true;
}

static void end_turn(const Work *work)
{
    ncclComm *comm = work->comm;
    std::lock_guard<std::mutex> guard(comm->lock);
    comm->busy = false;
    comm->served += work->captured ? 0 : 1;
    comm->passed.notify_all();
}

void run_work(Work *work)
{
    std::vector<Transfer> transfers;
    std::vector<Sum> sums;
    take_turn(work);
    if (work->comm->ended)
        die("a graph runs whose communicator has been ended");
    for (const Item &item : work->items)
        plan_item(work->comm, item, &transfers, &sums);
    if (run_transfers(&transfers, &work->comm->stopped))
        for (const Sum &sum : sums)
            finish_sum(work->comm, sum);
    end_turn(work);
    if (!work->captured)
        delete work;
}

} // namespace simnccl
