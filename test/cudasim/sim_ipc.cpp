/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory of other processes and of other devices.
 *
 * cudaMalloc takes memory from a file without a name, which goes when the last process that has it open or mapped ends. A handle
 * says which descriptor of which process that is, so that processes of the same user open it through /proc; a random number behind
 * the memory tells whether the descriptor is still the one that was meant. Opened memory stays usable when its owner has released
 * it or died, which CUDA does not promise.
 */
#include "cudasim/sim_memory.h"

#include <fcntl.h>
#include <set>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

namespace cudasim {

static const char magic[8] = {'c', 'u', 'd', 'a', 's', 'i', 'm', '1'};

/* In a file, after the pages of the block. */
struct Trailer {
    char magic[8];
    uint64_t token, size;
    int device;
};

/* What is in a cudaIpcMemHandle_t. */
struct Handle {
    char magic[8];
    uint64_t token;
    int process, file;
    int64_t trailer; /* where in the file */
};
static_assert(sizeof(Handle) <= sizeof(cudaIpcMemHandle_t), "a handle has 64 bytes");

static bool is_set(const char *variable, const char *value)
{
    const char *text = getenv(variable);
    return text != nullptr && strcmp(text, value) == 0;
}

/* ---- files ---- */

static size_t page_size() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

/* Puts a file behind the inside of a block's mapping. */
static bool map_file(const Block &block, int file)
{
    uintptr_t inside = number(block.mapping) + page_size();
    return mmap(pointer(inside), block.mapped - 2 * page_size(), PROT_NONE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, file, 0) !=
           MAP_FAILED;
}

cudaError_t share_block(Block *block)
{
    Trailer trailer = {};
    memcpy(trailer.magic, magic, sizeof(magic));
    trailer.size = block->size;
    trailer.device = block->device;
    block->file = memfd_create("cudasim", MFD_CLOEXEC);
    off_t end = static_cast<off_t>(block->mapped - 2 * page_size());
    if (block->file < 0 || getrandom(&trailer.token, sizeof(trailer.token), 0) != sizeof(trailer.token) ||
        pwrite(block->file, &trailer, sizeof(trailer), end) != sizeof(trailer) || !map_file(*block, block->file))
        return cudaErrorMemoryAllocation;
    return cudaSuccess;
}

static bool read_trailer(int file, int64_t where, Trailer *trailer)
{
    return pread(file, trailer, sizeof(*trailer), where) == sizeof(*trailer) && memcmp(trailer->magic, magic, sizeof(magic)) == 0;
}

/* The file that a handle names, or -1. Nothing else is opened: that could have effects. */
static int open_file(const Handle &handle, Trailer *trailer)
{
    char path[64], target[64] = "";
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", handle.process, handle.file);
    if (readlink(path, target, sizeof(target) - 1) < 0 || strncmp(target, "/memfd:cudasim ", 15) != 0)
        return -1;
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file >= 0 && read_trailer(file, handle.trailer, trailer) && trailer->token == handle.token)
        return file;
    if (file >= 0)
        close(file);
    return -1;
}

/* ---- handles ---- */

static cudaError_t export_block(void *memory, Handle *handle)
{
    std::lock_guard<std::mutex> guard(table().lock);
    Block *block = owned_block(memory, Origin::malloc);
    Trailer trailer;
    if (block == nullptr)
        return cudaErrorInvalidValue;
    memcpy(handle->magic, magic, sizeof(magic));
    handle->process = getpid();
    handle->file = block->file;
    handle->trailer = static_cast<int64_t>(block->mapped - 2 * page_size());
    if (!read_trailer(block->file, handle->trailer, &trailer))
        return cudaErrorMapBufferObjectFailed;
    handle->token = trailer.token;
    return cudaSuccess;
}

/* By token: memory is opened once, however often it is asked for. Call with the table's lock held. */
static std::map<uint64_t, uintptr_t> &opened()
{
    static std::map<uint64_t, uintptr_t> *all = new std::map<uint64_t, uintptr_t>;
    return *all;
}

static cudaError_t open_block(const Handle &handle, void **memory)
{
    std::lock_guard<std::mutex> guard(table().lock);
    auto known = opened().find(handle.token);
    if (known != opened().end()) {
        table().blocks[known->second].opens++;
        *memory = pointer(known->second);
        return cudaSuccess;
    }
    Trailer trailer;
    int file = open_file(handle, &trailer);
    if (file < 0)
        return cudaErrorMapBufferObjectFailed;
    Block block;
    cudaError_t error = map_block(trailer.size, Kind::device, Origin::opened, &block);
    if (error == cudaSuccess) {
        block.device = trailer.device < settings().devices ? trailer.device : current_device();
        block.opens = 1;
        bool may = block.device == current_device() || can_reach(current_device(), block.device);
        if (!may || !map_file(block, file)) {
            munmap(block.mapping, block.mapped);
            error = cudaErrorMapBufferObjectFailed;
        }
    }
    close(file);
    if (error != cudaSuccess)
        return error;
    make_present(block, false);
    table().blocks[block.start] = block;
    table().count.opened_blocks++;
    opened()[handle.token] = block.start;
    *memory = pointer(block.start);
    return cudaSuccess;
}

static cudaError_t close_block(void *memory)
{
    std::lock_guard<std::mutex> guard(table().lock);
    Block *block = owned_block(memory, Origin::opened);
    if (block == nullptr)
        return cudaErrorInvalidValue;
    if (--block->opens > 0)
        return cudaSuccess;
    for (auto each = opened().begin(); each != opened().end(); ++each)
        if (each->second == block->start) {
            opened().erase(each);
            break;
        }
    table().count.opened_blocks--;
    make_gone(block);
    return cudaSuccess;
}

/* ---- peers ---- */

struct Peers {
    std::mutex lock;
    std::set<std::pair<int, int>> enabled; /* who, whose memory */
};

static Peers &peers()
{
    static Peers *made = new Peers;
    return *made;
}

bool can_reach(int device, int other) { return device != other && !is_set("CUDASIM_NO_PEERS", "1"); }

bool reaches(int device, int other)
{
    std::lock_guard<std::mutex> guard(peers().lock);
    return device == other || peers().enabled.count({device, other}) != 0;
}

} // namespace cudasim

using namespace cudasim;

CUDASIM_EXPORT cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *handle, void *devPtr)
{
    CUDASIM_ENTER_UNSAFE();
    if (is_set("CUDASIM_NO_IPC", "1"))
        return report(cudaErrorNotSupported);
    Handle made = {};
    cudaError_t error = export_block(devPtr, &made);
    memset(handle, 0, sizeof(*handle));
    if (error == cudaSuccess)
        memcpy(handle, &made, sizeof(made));
    return report(error);
}

CUDASIM_EXPORT cudaError_t cudaIpcOpenMemHandle(void **devPtr, cudaIpcMemHandle_t handle, unsigned int flags)
{
    CUDASIM_ENTER_UNSAFE();
    Handle wanted;
    memcpy(&wanted, &handle, sizeof(wanted));
    if (is_set("CUDASIM_NO_IPC", "1"))
        return report(cudaErrorNotSupported);
    if (is_set("CUDASIM_NO_IPC", "open"))
        return report(cudaErrorMapBufferObjectFailed);
    if (flags != cudaIpcMemLazyEnablePeerAccess || memcmp(wanted.magic, magic, sizeof(magic)) != 0)
        return report(cudaErrorInvalidValue);
    if (wanted.process == getpid())
        return report(cudaErrorDeviceUninitialized); /* as CUDA does */
    return report(open_block(wanted, devPtr));
}

CUDASIM_EXPORT cudaError_t cudaIpcCloseMemHandle(void *devPtr)
{
    CUDASIM_ENTER_UNSAFE();
    drain_device(current_device());
    return report(close_block(devPtr));
}

CUDASIM_EXPORT cudaError_t cudaDeviceCanAccessPeer(int *canAccessPeer, int device, int peerDevice)
{
    CUDASIM_ENTER();
    int devices = settings().devices;
    if (device < 0 || device >= devices || peerDevice < 0 || peerDevice >= devices)
        return report(cudaErrorInvalidDevice);
    *canAccessPeer = can_reach(device, peerDevice);
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaDeviceEnablePeerAccess(int peerDevice, unsigned int flags)
{
    CUDASIM_ENTER_UNSAFE();
    if (peerDevice < 0 || peerDevice >= settings().devices || !can_reach(current_device(), peerDevice))
        return report(cudaErrorInvalidDevice);
    if (flags != 0)
        return report(cudaErrorInvalidValue);
    std::lock_guard<std::mutex> guard(peers().lock);
    bool fresh = peers().enabled.insert({current_device(), peerDevice}).second;
    return report(fresh ? cudaSuccess : cudaErrorPeerAccessAlreadyEnabled);
}
