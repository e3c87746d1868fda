/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory: one table of everything that CUDA knows, by address.
 *
 * Allocated memory ends at a page that may not be touched, up to the 256 bytes to which it is rounded; these last bytes are checked
 * when it is released. Released memory keeps its address for a while, without access, so that late users are found.
 */
#include "cudasim/sim_memory.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(memory, bytes) ((void)(memory), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(memory, bytes) ((void)(memory), (void)(bytes))
#endif

namespace cudasim {

enum { alignment = 256, fill = 0xCB, redzone = 0xFD, kept_released = 256 };

Table &table()
{
    static Table *made = new Table{};
    return *made;
}

static size_t rounded(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

/* Call with the lock held. The block that holds an address, or nullptr. */
static Block *block_at(uintptr_t address)
{
    std::map<uintptr_t, Block> &blocks = table().blocks;
    auto next = blocks.upper_bound(address);
    if (next == blocks.begin())
        return nullptr;
    Block &block = std::prev(next)->second;
    return address - block.start < block.size ? &block : nullptr;
}

Place locate(const void *memory, size_t bytes)
{
    Table &all = table();
    std::lock_guard<std::mutex> guard(all.lock);
    uintptr_t start = number(memory);
    if (Block *block = block_at(start))
        return {block->kind, block->device, bytes <= block->start + block->size - start};
    auto next = all.blocks.lower_bound(start);
    return {Kind::unknown, -1, next == all.blocks.end() || next->first - start >= bytes};
}

void require_present(const char *what, const void *memory, size_t bytes)
{
    Table &all = table();
    std::lock_guard<std::mutex> guard(all.lock);
    Block *block = block_at(number(memory));
    if (block != nullptr && (block->kind == Kind::gone || !block->present))
        die("%s of %zu bytes at %p runs %s the stream of the allocation gets there", what, bytes, memory,
            block->present ? "although it was released before" : "before");
}

/* ---- blocks ---- */

void make_present(const Block &block, bool fresh)
{
    size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    uintptr_t first = number(block.mapping) + page, end = block.start + rounded(block.size, alignment);
    if (mprotect(pointer(first), end - first, PROT_READ | PROT_WRITE) != 0)
        die("mprotect of %zu bytes fails: are there too many mappings?", block.size);
    if (fresh) {
        memset(pointer(first), redzone, end - first);
        memset(pointer(block.start), fill, block.size);
    }
    ASAN_POISON_MEMORY_REGION(pointer(first), block.start - first);
    ASAN_POISON_MEMORY_REGION(pointer(block.start + block.size), end - block.start - block.size);
}

cudaError_t map_block(size_t size, Kind kind, Origin origin, Block *block)
{
    size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    size_t inside = rounded(rounded(size, alignment), page);
    if (size == 0 || inside < size)
        return cudaErrorInvalidValue;
    void *mapping = mmap(nullptr, inside + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED)
        return cudaErrorMemoryAllocation;
    uintptr_t end = number(mapping) + page + inside;
    *block = {};
    block->start = end - rounded(size, alignment);
    block->size = size;
    block->kind = kind;
    block->origin = origin;
    block->device = current_device();
    block->mapping = mapping;
    block->mapped = inside + 2 * page;
    block->file = -1;
    block->present = origin != Origin::malloc_async;
    return cudaSuccess;
}

/* Takes its bytes from the device's memory. */
static bool take(const Block &block)
{
    Table &all = table();
    if (block.kind == Kind::pinned) {
        all.count.pinned_blocks++;
        return true;
    }
    size_t &used = all.used[block.device];
    if (block.size > settings().memory || used > settings().memory - block.size)
        return false;
    used += block.size;
    all.count.device_blocks++;
    return true;
}

static cudaError_t allocate(size_t size, Kind kind, Origin origin, Block *block)
{
    cudaError_t error = map_block(size, kind, origin, block);
    if (error != cudaSuccess)
        return error;
    Table &all = table();
    std::lock_guard<std::mutex> guard(all.lock);
    error = origin == Origin::malloc ? share_block(block) : cudaSuccess;
    if (error == cudaSuccess && !take(*block))
        error = cudaErrorMemoryAllocation;
    if (error != cudaSuccess) {
        munmap(block->mapping, block->mapped);
        if (block->file >= 0)
            close(block->file);
        return error;
    }
    if (block->present)
        make_present(*block, true);
    all.blocks[block->start] = *block;
    return cudaSuccess;
}

static void check_redzones(const Block &block)
{
    size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    uintptr_t first = number(block.mapping) + page, end = block.start + rounded(block.size, alignment);
    ASAN_UNPOISON_MEMORY_REGION(pointer(first), end - first);
    for (uintptr_t at = first; at < end; at++)
        if ((at < block.start || at >= block.start + block.size) && *static_cast<unsigned char *>(pointer(at)) != redzone)
            die("memory of %zu bytes at %p was written %s it, at offset %td", block.size, pointer(block.start),
                at < block.start ? "before" : "after", static_cast<ptrdiff_t>(at - block.start));
        else if (at == block.start)
            at += block.size - 1;
}

void make_gone(Block *block)
{
    Table &all = table();
    ASAN_UNPOISON_MEMORY_REGION(block->mapping, block->mapped);
    block->kind = Kind::gone;
    if (mmap(block->mapping, block->mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) ==
        MAP_FAILED)
        die("mmap fails: are there too many mappings?");
    if (block->file >= 0)
        close(block->file);
    all.released.push_back(block->start);
    if (all.released.size() <= kept_released)
        return;
    auto oldest = all.blocks.find(all.released.front());
    all.released.pop_front();
    munmap(oldest->second.mapping, oldest->second.mapped);
    all.blocks.erase(oldest);
}

/* Call with the lock held. */
static void release(Block *block)
{
    Table &all = table();
    check_redzones(*block);
    if (block->kind == Kind::device)
        all.used[block->device] -= block->size;
    (block->kind == Kind::device ? all.count.device_blocks : all.count.pinned_blocks)--;
    make_gone(block);
}

Block *owned_block(void *memory, Origin origin)
{
    auto found = table().blocks.find(number(memory));
    if (found == table().blocks.end() || found->second.kind == Kind::gone || found->second.origin != origin ||
        found->second.releasing)
        return nullptr;
    return &found->second;
}

} // namespace cudasim

using namespace cudasim;

CUDASIM_EXPORT cudasim_count_t cudasim_objects(void)
{
    std::lock_guard<std::mutex> guard(table().lock);
    cudasim_count_t objects = table().count;
    objects.streams = stream_count();
    objects.events = event_count();
    objects.graphs = graph_count();
    return objects;
}

CUDASIM_EXPORT cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *ptr)
{
    CUDASIM_ENTER();
    Place place = locate(ptr, 1);
    *attributes = {};
    attributes->device = place.device;
    if (place.kind == Kind::device || place.kind == Kind::pinned) {
        attributes->type = place.kind == Kind::device ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
        attributes->devicePointer = const_cast<void *>(ptr);
    } else {
        attributes->device = -2; /* as CUDA does */
    }
    if (place.kind != Kind::device)
        attributes->hostPointer = const_cast<void *>(ptr);
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaMalloc(void **devPtr, size_t size)
{
    CUDASIM_ENTER_UNSAFE();
    Block block;
    *devPtr = nullptr;
    if (size == 0)
        return cudaSuccess;
    cudaError_t error = allocate(size, Kind::device, Origin::malloc, &block);
    if (error == cudaSuccess)
        *devPtr = pointer(block.start);
    return report(error);
}

CUDASIM_EXPORT cudaError_t cudaMallocAsync(void **devPtr, size_t size, cudaStream_t stream)
{
    CUDASIM_ENTER();
    std::shared_ptr<Stream> found = find_stream(stream);
    if (found == nullptr)
        return report(cudaErrorInvalidResourceHandle);
    Block block;
    *devPtr = nullptr;
    cudaError_t error = check_not_captured(found); /* memory of graphs is not supported */
    if (error == cudaSuccess)
        error = allocate(size, Kind::device, Origin::malloc_async, &block);
    if (error != cudaSuccess)
        return report(error);
    *devPtr = pointer(block.start);
    found->push([block] {
        std::lock_guard<std::mutex> guard(table().lock);
        make_present(block, true);
        table().blocks[block.start].present = true;
    });
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaFree(void *devPtr)
{
    CUDASIM_ENTER_UNSAFE();
    if (devPtr == nullptr)
        return cudaSuccess;
    drain_device(current_device());
    std::lock_guard<std::mutex> guard(table().lock);
    Block *block = owned_block(devPtr, Origin::malloc);
    if (block == nullptr)
        block = owned_block(devPtr, Origin::malloc_async);
    if (block == nullptr || !block->present)
        return report(cudaErrorInvalidValue);
    release(block);
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaFreeAsync(void *devPtr, cudaStream_t stream)
{
    CUDASIM_ENTER();
    std::shared_ptr<Stream> found = find_stream(stream);
    if (found == nullptr)
        return report(cudaErrorInvalidResourceHandle);
    if (devPtr == nullptr)
        return cudaSuccess;
    cudaError_t error = check_not_captured(found);
    if (error != cudaSuccess)
        return report(error);
    {
        std::lock_guard<std::mutex> guard(table().lock);
        Block *block = owned_block(devPtr, Origin::malloc_async);
        if (block == nullptr)
            return report(cudaErrorInvalidValue);
        block->releasing = true;
    }
    found->push([devPtr] {
        std::lock_guard<std::mutex> guard(table().lock);
        Block *block = &table().blocks[number(devPtr)];
        if (!block->present)
            die("cudaFreeAsync of %p runs before the stream of its cudaMallocAsync gets there", devPtr);
        release(block);
    });
    return cudaSuccess;
}

static cudaError_t allocate_pinned(void **ptr, size_t size)
{
    Block block;
    *ptr = nullptr;
    cudaError_t error = allocate(size, Kind::pinned, Origin::host_alloc, &block);
    if (error == cudaSuccess)
        *ptr = pointer(block.start);
    return report(error);
}

CUDASIM_EXPORT cudaError_t cudaHostAlloc(void **ptr, size_t size, unsigned int)
{
    CUDASIM_ENTER_UNSAFE();
    return allocate_pinned(ptr, size);
}

CUDASIM_EXPORT cudaError_t cudaMallocHost(void **ptr, size_t size)
{
    CUDASIM_ENTER_UNSAFE();
    return allocate_pinned(ptr, size);
}

CUDASIM_EXPORT cudaError_t cudaFreeHost(void *ptr)
{
    CUDASIM_ENTER_UNSAFE();
    if (ptr == nullptr)
        return cudaSuccess;
    drain_device(current_device());
    std::lock_guard<std::mutex> guard(table().lock);
    Block *block = owned_block(ptr, Origin::host_alloc);
    if (block == nullptr)
        return report(cudaErrorInvalidValue);
    release(block);
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaHostRegister(void *ptr, size_t size, unsigned int)
{
    CUDASIM_ENTER_UNSAFE();
    if (ptr == nullptr || size == 0)
        return report(cudaErrorInvalidValue);
    Place place = locate(ptr, size);
    if (place.kind == Kind::device || place.kind == Kind::gone)
        return report(cudaErrorInvalidValue);
    if (place.kind != Kind::unknown || !place.whole)
        return report(cudaErrorHostMemoryAlreadyRegistered);
    std::lock_guard<std::mutex> guard(table().lock);
    Block block = {};
    block.start = number(ptr);
    block.size = size;
    block.kind = Kind::pinned;
    block.origin = Origin::host_register;
    block.device = current_device();
    block.file = -1;
    block.present = true;
    table().blocks[block.start] = block;
    table().count.registrations++;
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaHostUnregister(void *ptr)
{
    CUDASIM_ENTER_UNSAFE();
    std::lock_guard<std::mutex> guard(table().lock);
    if (owned_block(ptr, Origin::host_register) == nullptr)
        return report(cudaErrorHostMemoryNotRegistered);
    table().blocks.erase(number(ptr));
    table().count.registrations--;
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaHostGetDevicePointer(void **pDevice, void *pHost, unsigned int)
{
    CUDASIM_ENTER();
    *pDevice = nullptr;
    if (locate(pHost, 1).kind != Kind::pinned)
        return report(cudaErrorInvalidValue);
    *pDevice = pHost;
    return cudaSuccess;
}

CUDASIM_EXPORT cudaError_t cudaMemGetInfo(size_t *free, size_t *total)
{
    CUDASIM_ENTER();
    std::lock_guard<std::mutex> guard(table().lock);
    *total = settings().memory;
    *free = settings().memory - table().used[current_device()];
    return cudaSuccess;
}
