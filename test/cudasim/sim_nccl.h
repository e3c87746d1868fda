/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stand-in for NCCL over the simulated CUDA, for tests: libnccl-simulated.so, which ISGQ_NCCL_LIB names. It has the functions of
 * transport/nccl.h and NCCL's rules where they can go wrong: nothing of a group is done before its outermost end, all of it is then one
 * operation of its stream, a send is over when its receive has taken everything, calls outside of a group wait for each other, buffers
 * must be known to CUDA, ranks of one machine must have different devices, and abort stops this rank's operations only.
 *
 * Ranks are threads or processes: what they share is a file without a name that rank 0's process made, and an id says where it is.
 *
 * Read at each call:
 *     NCCL_HOSTID               as in NCCL: ranks with different texts are on different machines; read once in a process
 *     CUDASIM_NCCL_VERSION      22809
 *     CUDASIM_NCCL_ERROR        0; what ncclCommGetAsyncError says
 *     CUDASIM_NCCL_IN_PROGRESS  1: calls that enqueue return ncclInProgress, as with a non-blocking communicator
 *     CUDASIM_NCCL_HANG         a rank that never leaves ncclCommInitRank
 */
#ifndef CUDASIM_SIM_NCCL_H
#define CUDASIM_SIM_NCCL_H

#include "transport/nccl.h"

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

namespace simnccl {

constexpr int MAX_RANKS = 32;
constexpr size_t CHANNEL_BYTES = 16384;

/* From one rank to another: a ring of bytes. */
struct Channel {
    alignas(64) std::atomic<uint64_t> written;
    alignas(64) std::atomic<uint64_t> read;
    unsigned char bytes[CHANNEL_BYTES];
};

struct Seat {
    std::atomic<int> taken;
    int device;
    uint64_t machine;
};

/* Shared by the ranks of one communicator. */
struct World {
    uint64_t token;
    int process, file;       /* that hold it */
    std::atomic<int> closed; /* the file is */
    std::atomic<int> nranks; /* as the first one said */
    std::atomic<int> refused;
    Seat seats[MAX_RANKS];
    Channel channels[MAX_RANKS][MAX_RANKS]; /* [from][to] */
};
static_assert(std::atomic<uint64_t>::is_always_lock_free && std::atomic<int>::is_always_lock_free, "processes share them");

/* Makes one and writes an id that names it; the world of an id, nullptr if it is gone. */
bool make_world(iq_nccl_id_t *id);
World *join_world(const iq_nccl_id_t &id);
void leave_world(World *world);
void all_have_joined(World *world); /* the process that made it needs no longer hold it for others */

/* One message on its way. */
class Transfer {
  public:
    Transfer(Channel *way, void *data, size_t size, bool is_send)
        : channel(way), memory(static_cast<unsigned char *>(data)), bytes(size), sends(is_send)
    {
    }
    bool move(); /* what can be moved now; false if nothing can */
    bool done() const { return over; }
    Channel *const channel;

  private:
    bool write_some();
    bool read_some();
    unsigned char *part(size_t offset, size_t *size);

    unsigned char *const memory;
    const size_t bytes;
    const bool sends;
    uint64_t header = 0, start = 0, moved = 0; /* the size goes first */
    bool started = false, over = false;
};

/* All of them, side by side; those of one channel in turn. False if *stop became true. */
bool run_transfers(std::vector<Transfer> *transfers, const std::atomic<bool> *stop);

enum class Kind { send, receive, sum, reduce_scatter, allgather, broadcast };

struct Item {
    Kind kind;
    const void *from;
    void *to;
    size_t count; /* of a reduce_scatter and an allgather: of one rank's part */
    unsigned type;
    int peer; /* root of a broadcast */
};

/* What one group gives to one communicator. */
struct Work {
    ncclComm *comm;
    isgq_stream_t stream;
    std::vector<Item> items;
    uint64_t ticket;
    bool captured; /* it may run again, and stays */
};

/* On the thread of a stream. */
void run_work(Work *work);

size_t type_bytes(unsigned type);                     /* 0: not known here */
bool add_to(unsigned type, void *sum, const void *term, size_t count); /* false: not known here */

[[noreturn]] void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

} // namespace simnccl

/* Never freed: whoever uses one that has ended is found out. */
struct ncclComm {
    simnccl::World *world;
    int rank, nranks, device;
    std::atomic<bool> stopped{false}, ended{false};
    std::mutex lock;
    std::condition_variable passed;
    uint64_t tickets = 0, served = 0; /* of operations that were not captured */
    bool busy = false;
    int progress = 0; /* ncclInProgress so many times more */
};

#endif
