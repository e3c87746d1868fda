/* SPDX-License-Identifier: Apache-2.0 */
/* The stand-in for NCCL: its functions. What they do is told in sim_nccl.h. */
#include "cudasim/sim_nccl.h"

#include <cuda_runtime.h>

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <memory>
#include <type_traits>

using namespace simnccl;

#define EXPORT extern "C" __attribute__((visibility("default")))

enum { UNHANDLED_CUDA = 1, SYSTEM_ERROR = 2, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE_ERROR = 6 };

static thread_local char last_error[256];

__attribute__((format(printf, 2, 3))) static iq_nccl_result_t fail(iq_nccl_result_t result, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(last_error, sizeof(last_error), format, args);
    va_end(args);
    return result;
}

static long setting(const char *name, long otherwise)
{
    const char *text = getenv(name);
    return text == nullptr || text[0] == '\0' ? otherwise : strtol(text, nullptr, 10);
}

/* ---- versions and texts ---- */

EXPORT iq_nccl_result_t ncclGetVersion(int *version)
{
    if (version == nullptr)
        return fail(INVALID_ARGUMENT, "ncclGetVersion: version is NULL");
    *version = static_cast<int>(setting("CUDASIM_NCCL_VERSION", 22809));
    return IQ_NCCL_SUCCESS;
}

EXPORT const char *ncclGetErrorString(iq_nccl_result_t result)
{
    static const char *const texts[] = {"no error",         "unhandled cuda error", "unhandled system error", "internal error",
                                        "invalid argument", "invalid usage",        "remote process exited",  "NCCL operation in progress"};
    return result < sizeof(texts) / sizeof(texts[0]) ? texts[result] : "unknown result code";
}

EXPORT const char *ncclGetLastError(iq_nccl_comm_t) { return last_error; }

/* ---- communicators ---- */

/* For the life of the process, and so that it does not count as lost. */
static void keep(void *object)
{
    static std::mutex lock;
    static std::vector<void *> *kept = new std::vector<void *>;
    std::lock_guard<std::mutex> guard(lock);
    kept->push_back(object);
}

/* As NCCL does: once in a process. */
static uint64_t machine()
{
    static const uint64_t made = [] {
        const char *text = getenv("NCCL_HOSTID");
        uint64_t hash = 0xcbf29ce484222325ull;
        for (const char *c = text == nullptr ? "" : text; *c != '\0'; c++)
            hash = (hash ^ static_cast<unsigned char>(*c)) * 0x100000001b3ull;
        return hash;
    }();
    return made;
}

static void check_alive(const ncclComm *comm, const char *function)
{
    if (comm->ended)
        die("%s: the communicator has been ended", function);
}

#define CHECK_COMM(comm)                                                     \
    do {                                                                     \
        if ((comm) == nullptr)                                               \
            return fail(INVALID_ARGUMENT, "%s: comm is NULL", __func__);     \
        check_alive(comm, __func__);                                         \
    } while (0)

EXPORT iq_nccl_result_t ncclGetUniqueId(iq_nccl_id_t *id)
{
    if (!make_world(id))
        return fail(SYSTEM_ERROR, "ncclGetUniqueId: no memory to share");
    return IQ_NCCL_SUCCESS;
}

static iq_nccl_result_t take_seat(World *world, int nranks, int rank, int device)
{
    int first = 0;
    if (!world->nranks.compare_exchange_strong(first, nranks) && first != nranks)
        return fail(INVALID_ARGUMENT, "ncclCommInitRank: %d ranks here, %d elsewhere", nranks, first);
    Seat &seat = world->seats[rank];
    seat.device = device;
    seat.machine = machine();
    if (seat.taken.exchange(1) != 0)
        return fail(INVALID_ARGUMENT, "ncclCommInitRank: there are two of rank %d", rank);
    return IQ_NCCL_SUCCESS;
}

/* Only the ranks that share a device find that out; the others lose them. */
static iq_nccl_result_t meet(World *world, int nranks, int rank)
{
    for (int peer = 0; peer < nranks; peer++) {
        while (world->seats[peer].taken == 0 && world->refused == 0)
            usleep(100);
        if (world->seats[peer].taken == 0)
            return fail(REMOTE_ERROR, "ncclCommInitRank: rank %d has left", peer);
    }
    all_have_joined(world);
    for (int peer = 0; peer < nranks; peer++)
        if (peer != rank && world->seats[peer].device == world->seats[rank].device &&
            world->seats[peer].machine == world->seats[rank].machine) {
            world->refused = 1;
            return fail(INVALID_USAGE, "Duplicate GPU detected : rank %d and rank %d both on CUDA device %d", rank, peer,
                        world->seats[rank].device);
        }
    return IQ_NCCL_SUCCESS;
}

EXPORT iq_nccl_result_t ncclCommInitRank(iq_nccl_comm_t *comm, int nranks, iq_nccl_id_t id, int rank)
{
    int device;
    if (comm == nullptr || nranks < 1 || nranks > MAX_RANKS || rank < 0 || rank >= nranks)
        return fail(INVALID_ARGUMENT, "ncclCommInitRank: rank %d of %d", rank, nranks);
    if (cudaGetDevice(&device) != cudaSuccess)
        return fail(UNHANDLED_CUDA, "ncclCommInitRank: no device");
    while (setting("CUDASIM_NCCL_HANG", -1) == rank)
        usleep(1000);
    World *world = join_world(id);
    if (world == nullptr)
        return fail(SYSTEM_ERROR, "ncclCommInitRank: the id's process is gone");
    iq_nccl_result_t result = take_seat(world, nranks, rank, device);
    if (result == IQ_NCCL_SUCCESS)
        result = meet(world, nranks, rank);
    if (result != IQ_NCCL_SUCCESS) {
        leave_world(world);
        return result;
    }
    ncclComm *made = new ncclComm;
    keep(made);
    made->world = world;
    made->rank = rank;
    made->nranks = nranks;
    made->device = device;
    *comm = made;
    return IQ_NCCL_SUCCESS;
}

static iq_nccl_result_t end_communicator(ncclComm *comm, bool stop)
{
    std::unique_lock<std::mutex> guard(comm->lock);
    if (stop)
        comm->stopped = true;
    while (comm->served != comm->tickets || comm->busy)
        comm->passed.wait(guard);
    comm->ended = true;
    leave_world(comm->world);
    return IQ_NCCL_SUCCESS;
}

EXPORT iq_nccl_result_t ncclCommDestroy(iq_nccl_comm_t comm)
{
    if (comm == nullptr)
        return IQ_NCCL_SUCCESS;
    CHECK_COMM(comm);
    return end_communicator(comm, false);
}

EXPORT iq_nccl_result_t ncclCommAbort(iq_nccl_comm_t comm)
{
    if (comm == nullptr)
        return IQ_NCCL_SUCCESS;
    CHECK_COMM(comm);
    return end_communicator(comm, true);
}

EXPORT iq_nccl_result_t ncclCommCount(const iq_nccl_comm_t comm, int *count)
{
    CHECK_COMM(comm);
    *count = comm->nranks;
    return IQ_NCCL_SUCCESS;
}

EXPORT iq_nccl_result_t ncclCommUserRank(const iq_nccl_comm_t comm, int *rank)
{
    CHECK_COMM(comm);
    *rank = comm->rank;
    return IQ_NCCL_SUCCESS;
}

EXPORT iq_nccl_result_t ncclCommCuDevice(const iq_nccl_comm_t comm, int *device)
{
    CHECK_COMM(comm);
    *device = comm->device;
    return IQ_NCCL_SUCCESS;
}

EXPORT iq_nccl_result_t ncclCommGetAsyncError(iq_nccl_comm_t comm, iq_nccl_result_t *error)
{
    CHECK_COMM(comm);
    *error = static_cast<iq_nccl_result_t>(setting("CUDASIM_NCCL_ERROR", 0));
    std::lock_guard<std::mutex> guard(comm->lock);
    if (comm->progress > 0) {
        comm->progress--;
        *error = IQ_NCCL_IN_PROGRESS;
    }
    return IQ_NCCL_SUCCESS;
}

/* ---- groups ---- */

static thread_local int depth;
static thread_local iq_nccl_result_t group_error;
static thread_local std::vector<std::unique_ptr<Work>> group;

static void CUDART_CB run(void *work) { run_work(static_cast<Work *>(work)); }

static iq_nccl_result_t launch(std::unique_ptr<Work> work)
{
    cudaStreamCaptureStatus status;
    ncclComm *comm = work->comm;
    if (cudaStreamIsCapturing(work->stream, &status) != cudaSuccess)
        return fail(UNHANDLED_CUDA, "no such stream");
    work->captured = status == cudaStreamCaptureStatusActive;
    std::lock_guard<std::mutex> guard(comm->lock);
    if (comm->progress > 0)
        return fail(INVALID_USAGE, "the call before is still in progress");
    work->ticket = comm->tickets;
    if (cudaLaunchHostFunc(work->stream, run, work.get()) != cudaSuccess)
        return fail(UNHANDLED_CUDA, "cannot launch");
    comm->tickets += work->captured ? 0 : 1;
    if (work->captured)
        keep(work.get());
    (void)work.release();
    if (setting("CUDASIM_NCCL_IN_PROGRESS", 0) == 0)
        return IQ_NCCL_SUCCESS;
    comm->progress = 3;
    return IQ_NCCL_IN_PROGRESS;
}

EXPORT iq_nccl_result_t ncclGroupStart(void)
{
    depth++;
    return IQ_NCCL_SUCCESS;
}

EXPORT iq_nccl_result_t ncclGroupEnd(void)
{
    if (depth == 0)
        return fail(INVALID_USAGE, "ncclGroupEnd: not in a group call.");
    if (--depth > 0)
        return IQ_NCCL_SUCCESS;
    iq_nccl_result_t result = group_error;
    group_error = IQ_NCCL_SUCCESS;
    std::vector<std::unique_ptr<Work>> works = std::move(group);
    group.clear();
    for (std::unique_ptr<Work> &work : works)
        if (result == IQ_NCCL_SUCCESS || result == IQ_NCCL_IN_PROGRESS)
            result = launch(std::move(work));
    return result;
}

static iq_nccl_result_t check_item(const ncclComm *comm, const Item &item)
{
    bool sums = item.kind == Kind::sum || item.kind == Kind::reduce_scatter;
    bool collective = item.kind != Kind::send && item.kind != Kind::receive;
    if (item.peer < 0 || item.peer >= comm->nranks || (!collective && item.peer == comm->rank))
        return fail(INVALID_ARGUMENT, "peer %d of %d", item.peer, comm->nranks);
    if (type_bytes(item.type) == 0 || (sums && !add_to(item.type, nullptr, nullptr, 0)))
        return fail(INVALID_ARGUMENT, "type %u", item.type);
    for (const void *memory : {item.from, static_cast<const void *>(item.to)}) {
        cudaPointerAttributes attributes;
        if (memory != nullptr && (cudaPointerGetAttributes(&attributes, memory) != cudaSuccess ||
                                  attributes.type == cudaMemoryTypeUnregistered))
            return fail(INVALID_ARGUMENT, "memory at %p is not known to CUDA", memory);
    }
    return IQ_NCCL_SUCCESS;
}

static iq_nccl_result_t append(ncclComm *comm, isgq_stream_t stream, const Item &item)
{
    iq_nccl_result_t result = check_item(comm, item);
    if (result != IQ_NCCL_SUCCESS)
        return result;
    for (std::unique_ptr<Work> &work : group)
        if (work->comm == comm && work->stream == stream) {
            work->items.push_back(item);
            return IQ_NCCL_SUCCESS;
        } else if (work->comm == comm) {
            return fail(INVALID_USAGE, "two streams of one communicator in a group: the stand-in cannot");
        }
    group.push_back(std::unique_ptr<Work>(new Work{comm, stream, {item}, 0, false}));
    return IQ_NCCL_SUCCESS;
}

static iq_nccl_result_t enqueue(ncclComm *comm, isgq_stream_t stream, const Item &item)
{
    ncclGroupStart();
    iq_nccl_result_t result = append(comm, stream, item);
    if (result != IQ_NCCL_SUCCESS)
        group_error = result;
    iq_nccl_result_t ended = ncclGroupEnd();
    return result != IQ_NCCL_SUCCESS ? result : ended;
}

EXPORT iq_nccl_result_t ncclSend(const void *memory, size_t count, unsigned type, int peer, iq_nccl_comm_t comm, isgq_stream_t stream)
{
    CHECK_COMM(comm);
    return enqueue(comm, stream, {Kind::send, memory, nullptr, count, type, peer});
}

EXPORT iq_nccl_result_t ncclRecv(void *memory, size_t count, unsigned type, int peer, iq_nccl_comm_t comm, isgq_stream_t stream)
{
    CHECK_COMM(comm);
    return enqueue(comm, stream, {Kind::receive, nullptr, memory, count, type, peer});
}

EXPORT iq_nccl_result_t ncclAllReduce(const void *from, void *to, size_t count, unsigned type, unsigned op, iq_nccl_comm_t comm,
                                      isgq_stream_t stream)
{
    CHECK_COMM(comm);
    if (op != IQ_NCCL_SUM)
        return fail(INVALID_ARGUMENT, "operation %u: the stand-in only sums", op);
    return enqueue(comm, stream, {Kind::sum, from, to, count, type, 0});
}

/* Not of transport/nccl.h, since the library needs neither; programs do. */
EXPORT iq_nccl_result_t ncclReduceScatter(const void *from, void *to, size_t count, unsigned type, unsigned op, iq_nccl_comm_t comm,
                                                     isgq_stream_t stream)
{
    CHECK_COMM(comm);
    if (op != IQ_NCCL_SUM)
        return fail(INVALID_ARGUMENT, "operation %u: the stand-in only sums", op);
    return enqueue(comm, stream, {Kind::reduce_scatter, from, to, count, type, 0});
}

EXPORT iq_nccl_result_t ncclAllGather(const void *from, void *to, size_t count, unsigned type, iq_nccl_comm_t comm, isgq_stream_t stream)
{
    CHECK_COMM(comm);
    return enqueue(comm, stream, {Kind::allgather, from, to, count, type, 0});
}

EXPORT iq_nccl_result_t ncclBroadcast(const void *from, void *to, size_t count, unsigned type, int root, iq_nccl_comm_t comm,
                                      isgq_stream_t stream)
{
    CHECK_COMM(comm);
    return enqueue(comm, stream, {Kind::broadcast, from, to, count, type, root});
}

/* The library calls them by the prototypes of transport/nccl.h. */
#define X(member, symbol, required, result, parameters) \
    static_assert(std::is_same<decltype(&symbol), decltype(iq_nccl_functions_t::member)>::value, #symbol);
IQ_NCCL_FUNCTIONS(X)
#undef X
