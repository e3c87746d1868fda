/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of all memory that CUDA knows, for the files that keep it. Its functions are called with the lock held.
 */
#ifndef CUDASIM_SIM_MEMORY_H
#define CUDASIM_SIM_MEMORY_H

#include "cudasim/sim.h"

#include <cudasim.h>

namespace cudasim {

/* Who made a block: only who made it releases it, each with a function of its own. */
enum class Origin { malloc, malloc_async, host_alloc, host_register, opened };

struct Block {
    uintptr_t start;
    size_t size;
    Kind kind;
    Origin origin;
    int device;
    void *mapping; /* of allocated memory: a page, the memory, a page */
    size_t mapped;
    int file;       /* behind memory that other processes may open; -1: none */
    unsigned opens; /* of opened memory */
    bool present;   /* its stream got to the allocation */
    bool releasing; /* cudaFreeAsync was called */
};

struct Table {
    std::mutex lock;
    std::map<uintptr_t, Block> blocks;
    std::map<int, size_t> used; /* by device */
    std::deque<uintptr_t> released;
    cudasim_count_t count;
};
Table &table();

static inline uintptr_t number(const void *memory) { return reinterpret_cast<uintptr_t>(memory); }
static inline void *pointer(uintptr_t address) { return reinterpret_cast<void *>(address); }

/* What starts at an address and is no longer released by anyone else, or nullptr. */
Block *owned_block(void *memory, Origin origin);

/* Reserves addresses for a block: pages without access, at the end of which its `size` bytes start. */
cudaError_t map_block(size_t size, Kind kind, Origin origin, Block *block);

/* Makes the pages of a block accessible, with the bytes around it out of bounds. `fresh`: and fills them. */
void make_present(const Block &block, bool fresh);

/* Its addresses stay without access for a while. */
void make_gone(Block *block);

/* ---- sim_ipc.cpp ---- */

/* A file behind the inside of a block, so that other processes may open it. */
cudaError_t share_block(Block *block);

} // namespace cudasim

#endif
