/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fibers by ucontext. Once a fiber has started, _setjmp and _longjmp change stacks: swapcontext asks the kernel for the signal mask
 * each time. Sanitizers know swapcontext only, and are told about every change.
 */
#undef _FORTIFY_SOURCE /* its longjmp takes another stack for a damaged one */
#include "cudasim/sim_fiber.h"
#include "cudasim/sim.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

namespace cudasim {

enum { page = 4096, stack_bytes = 256 << 10 };

struct Fiber::Inside {
    void (*body)();
    char *mapping;
    ucontext_t context;
    jmp_buf jump;
    bool started;
    void *fake_stack, *history; /* of the sanitizers for addresses and threads */
};

/* The other side of every change. */
static thread_local struct {
    ucontext_t context;
    jmp_buf jump;
    void *history;
    const void *stack;
    size_t stack_size;
} scheduler;
static thread_local Fiber::Inside *starting;

Fiber::Fiber(void (*body)()) : inside(new Inside{})
{
    inside->body = body;
    void *mapping =
        mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (mapping == MAP_FAILED || mprotect(mapping, page, PROT_NONE) != 0)
        die("there is no memory for the stack of one more thread of a block: are there too many mappings?");
    inside->mapping = static_cast<char *>(mapping);
    getcontext(&inside->context);
    inside->context.uc_stack.ss_sp = inside->mapping + page;
    inside->context.uc_stack.ss_size = stack_bytes - page;
    inside->context.uc_link = nullptr;
    makecontext(&inside->context, Fiber::start, 0);
#ifdef __SANITIZE_THREAD__
    inside->history = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber()
{
#ifdef __SANITIZE_THREAD__
    __tsan_destroy_fiber(inside->history);
#endif
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(inside->mapping, stack_bytes);
#endif
    munmap(inside->mapping, stack_bytes);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)

void Fiber::start()
{
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack, &scheduler.stack_size);
#endif
    starting->body();
}

void Fiber::enter()
{
    starting = inside.get();
#ifdef __SANITIZE_ADDRESS__
    void *fake_stack;
    __sanitizer_start_switch_fiber(&fake_stack, inside->mapping + page, stack_bytes - page);
#endif
#ifdef __SANITIZE_THREAD__
    scheduler.history = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(inside->history, 0);
#endif
    swapcontext(&scheduler.context, &inside->context);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void Fiber::leave()
{
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&inside->fake_stack, scheduler.stack, scheduler.stack_size);
#endif
#ifdef __SANITIZE_THREAD__
    __tsan_switch_to_fiber(scheduler.history, 0);
#endif
    swapcontext(&inside->context, &scheduler.context);
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(inside->fake_stack, &scheduler.stack, &scheduler.stack_size);
#endif
}

#else

void Fiber::start() { starting->body(); }

void Fiber::enter()
{
    if (_setjmp(scheduler.jump) != 0)
        return;
    if (inside->started)
        _longjmp(inside->jump, 1);
    inside->started = true;
    starting = inside.get();
    setcontext(&inside->context);
}

void Fiber::leave()
{
    if (_setjmp(inside->jump) == 0)
        _longjmp(scheduler.jump, 1);
}

#endif

} // namespace cudasim
