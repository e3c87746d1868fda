/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kernels: blocks one after the other, the threads of a block as fibers. A thread runs until it must wait for others; then whoever
 * need not wait any more goes on, or a new thread starts. If nobody can go on, the kernel is wrong, and the process ends with the
 * reason instead of hanging. Threads that have left the kernel are missed at barriers, although GPUs forgive that.
 */
#include "cudasim/sim.h"
#include "cudasim/sim_fiber.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <vector>

namespace cudasim {

enum class State { fresh, running, at_barrier, at_warp, left };

struct Thread {
    uint3 index;
    State state;
    Fiber *fiber;
    /* what it brought to its warp, or to the barrier, and what it takes away */
    unsigned mask, from;
    cudasim_warp_t operation;
    uint64_t value, result;
};

class Executor {
  public:
    void run(const Launch &what);
    unsigned barrier(int predicate);
    uint64_t warp_step(unsigned mask, cudasim_warp_t operation, uint64_t value, unsigned from);
    unsigned lane() const { return current & 31; }
    [[noreturn]] void fail(const char *reason) const;

  private:
    void run_block();
    unsigned start_thread();
    void resume(unsigned thread);
    void finish_warp_step(unsigned first, unsigned present);
    [[noreturn]] void stuck() const;
    static void body();

    const Launch *launch = nullptr;
    unsigned size = 0, started = 0, left = 0, waiting = 0, current = 0; /* threads of the block */
    unsigned votes = 0;
    std::vector<Thread> threads;
    std::vector<unsigned> arrived; /* lanes that wait, for each warp */
    std::vector<unsigned> ready;   /* who may go on, from `next_ready` */
    size_t next_ready = 0;
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<Fiber *> idle;
};

/* Of this thread of a stream. */
static __thread Executor *executor;

void kernel_name(const void *kernel, char *text, size_t size)
{
    Dl_info info;
    if (dladdr(kernel, &info) == 0)
        snprintf(text, size, "%p", kernel);
    else if (info.dli_sname != nullptr && info.dli_saddr == kernel)
        snprintf(text, size, "%s", info.dli_sname);
    else
        snprintf(text, size, "%s+0x%tx", info.dli_fname,
                 static_cast<const char *>(kernel) - static_cast<const char *>(info.dli_fbase));
}

void Executor::fail(const char *reason) const
{
    char name[512];
    kernel_name(launch->kernel, name, sizeof(name));
    uint3 at = threads[current].index;
    die("kernel %s, block (%u, %u, %u), thread (%u, %u, %u): %s", name, blockIdx.x, blockIdx.y, blockIdx.z, at.x, at.y, at.z,
        reason);
}

/* ---- running ---- */

void Executor::run(const Launch &what)
{
    launch = &what;
    gridDim = what.grid;
    blockDim = what.block;
    size = what.block.x * what.block.y * what.block.z;
    threads.resize(size);
    uint64_t blocks = uint64_t{what.grid.x} * what.grid.y * what.grid.z;
    for (uint64_t i = 0; i < blocks; i++) {
        uint64_t number = settings().backward ? blocks - 1 - i : i;
        blockIdx = {static_cast<unsigned>(number % what.grid.x), static_cast<unsigned>(number / what.grid.x % what.grid.y),
                    static_cast<unsigned>(number / what.grid.x / what.grid.y)};
        run_block();
    }
}

void Executor::run_block()
{
    dim3 shape = launch->block;
    for (unsigned i = 0; i < size; i++) {
        Thread &thread = threads[i];
        thread.index = {i % shape.x, i / shape.x % shape.y, i / shape.x / shape.y};
        thread.state = State::fresh;
    }
    arrived.assign((size + 31) / 32, 0);
    ready.clear();
    next_ready = started = left = waiting = votes = 0;
    while (left < size) {
        if (next_ready < ready.size()) {
            unsigned next = ready[next_ready++];
            if (next_ready == ready.size() || next_ready >= 4096) {
                ready.erase(ready.begin(), ready.begin() + static_cast<ptrdiff_t>(next_ready));
                next_ready = 0;
            }
            resume(next);
        } else if (started < size) {
            if (idle.empty()) {
                fibers.emplace_back(new Fiber(body));
                idle.push_back(fibers.back().get());
            }
            Fiber *fiber = idle.back();
            idle.pop_back();
            unsigned next = start_thread();
            threads[next].fiber = fiber;
            resume(next);
        } else {
            stuck();
        }
    }
}

unsigned Executor::start_thread()
{
    unsigned number = settings().backward ? size - 1 - started : started;
    started++;
    return number;
}

void Executor::resume(unsigned thread)
{
    current = thread;
    threads[thread].state = State::running;
    threadIdx = threads[thread].index;
    threads[thread].fiber->enter();
}

/* A fiber runs one thread after the other; it leaves when somebody else should go on first. */
void Executor::body()
{
    Executor &own = *executor;
    for (;;) {
        own.launch->run(own.launch->closure);
        Fiber *fiber = own.threads[own.current].fiber;
        own.threads[own.current].state = State::left;
        own.left++;
        if (own.next_ready == own.ready.size() && own.started < own.size) {
            own.current = own.start_thread();
            own.threads[own.current].fiber = fiber;
            own.threads[own.current].state = State::running;
            threadIdx = own.threads[own.current].index;
        } else {
            own.idle.push_back(fiber);
            fiber->leave();
        }
    }
}

/* ---- waiting ---- */

unsigned Executor::barrier(int predicate)
{
    Thread &self = threads[current];
    votes += predicate != 0;
    if (++waiting < size) {
        self.state = State::at_barrier;
        self.fiber->leave();
        return static_cast<unsigned>(self.result);
    }
    for (unsigned i = 0; i < size; i++) {
        threads[i].result = votes;
        if (i != current)
            ready.push_back(i);
    }
    waiting = votes = 0;
    return static_cast<unsigned>(self.result);
}

uint64_t Executor::warp_step(unsigned mask, cudasim_warp_t operation, uint64_t value, unsigned from)
{
    unsigned me = current & 31, first = current - me;
    Thread &self = threads[current];
    unsigned lanes = size - first < 32 ? (1u << (size - first)) - 1 : 0xffffffffu;
    if ((mask >> me & 1) == 0)
        fail("it is not in the mask of its own warp operation");
    self.mask = mask;
    self.operation = operation;
    self.value = value;
    self.from = from;
    unsigned &here = arrived[first / 32];
    here |= 1u << me;
    if ((here & mask & lanes) == (mask & lanes)) {
        here &= ~mask;
        finish_warp_step(first, mask & lanes);
    } else {
        self.state = State::at_warp;
        self.fiber->leave();
    }
    return self.result;
}

static uint64_t combine(cudasim_warp_t operation, uint64_t so_far, uint64_t value)
{
    uint32_t a = static_cast<uint32_t>(so_far), b = static_cast<uint32_t>(value);
    int32_t signed_a = static_cast<int32_t>(a), signed_b = static_cast<int32_t>(b);
    switch (operation) {
    case CUDASIM_WARP_MAX_INT: return static_cast<uint32_t>(signed_a > signed_b ? signed_a : signed_b);
    case CUDASIM_WARP_MIN_INT: return static_cast<uint32_t>(signed_a < signed_b ? signed_a : signed_b);
    case CUDASIM_WARP_MAX_UNSIGNED: return a > b ? a : b;
    case CUDASIM_WARP_MIN_UNSIGNED: return a < b ? a : b;
    case CUDASIM_WARP_ADD: return a + b;
    case CUDASIM_WARP_AND: return a & b;
    case CUDASIM_WARP_OR: return a | b;
    case CUDASIM_WARP_XOR: return a ^ b;
    default: return 0;
    }
}

/* All lanes of the mask that exist have come: every one gets its result, before any goes on to its next operation. */
void Executor::finish_warp_step(unsigned first, unsigned present)
{
    const Thread &mine = threads[current];
    uint64_t ballot = 0, combined = 0;
    bool any = false;
    for (unsigned lane = 0; lane < 32; lane++) {
        if ((present >> lane & 1) == 0)
            continue;
        const Thread &other = threads[first + lane];
        if (other.mask != mine.mask || other.operation != mine.operation)
            fail("lanes of its warp wait in another warp operation or with another mask");
        ballot |= uint64_t{other.value != 0} << lane;
        combined = any ? combine(mine.operation, combined, other.value) : other.value;
        any = true;
    }
    for (unsigned lane = 0; lane < 32; lane++) {
        if ((present >> lane & 1) == 0)
            continue;
        Thread &other = threads[first + lane];
        /* What an absent lane would say is not defined. */
        if (mine.operation == CUDASIM_WARP_SHUFFLE)
            other.result = (present >> other.from & 1) ? threads[first + other.from].value : 0xCBCBCBCBCBCBCBCBull;
        else
            other.result = mine.operation == CUDASIM_WARP_BALLOT ? ballot : combined;
        if (first + lane != current)
            ready.push_back(first + lane);
    }
}

void Executor::stuck() const
{
    unsigned at_barrier = 0, at_warp = 0, example = 0;
    for (unsigned i = size; i-- > 0;) {
        at_barrier += threads[i].state == State::at_barrier;
        at_warp += threads[i].state == State::at_warp;
        example = threads[i].state == State::left ? example : i;
    }
    char text[256];
    if (threads[example].state == State::at_warp)
        snprintf(text, sizeof(text), "it waits in a warp operation with mask 0x%08x, lanes 0x%08x came", threads[example].mask,
                 arrived[example / 32]);
    else
        snprintf(text, sizeof(text), "it waits at __syncthreads");
    size_t length = strlen(text);
    snprintf(text + length, sizeof(text) - length,
             "; of %u threads %u wait at __syncthreads, %u in warp operations, %u have left", size, at_barrier, at_warp, left);
    const_cast<Executor *>(this)->current = example;
    fail(text);
}

void run_kernel(const Launch &launch)
{
    static thread_local Executor own;
    executor = &own;
    own.run(launch);
}

} // namespace cudasim

using namespace cudasim;

__attribute__((visibility("default"))) __thread uint3 threadIdx, blockIdx;
__attribute__((visibility("default"))) __thread dim3 blockDim, gridDim;

CUDASIM_EXPORT unsigned int cudasim_block_barrier(int predicate) { return executor->barrier(predicate); }

CUDASIM_EXPORT uint64_t cudasim_warp_step(unsigned int mask, cudasim_warp_t operation, uint64_t value, unsigned int from)
{
    return executor->warp_step(mask, operation, value, from);
}

CUDASIM_EXPORT unsigned int cudasim_lane(void) { return executor->lane(); }

CUDASIM_EXPORT void cudasim_trap(void) { executor->fail("__trap"); }
