/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process's number is kept in a page that the kernel empties in forked children (MADV_WIPEONFORK): a child finds 0 there and asks anew.
 * Where the kernel does not know that, everybody asks every time.
 */
#include "base/process.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

static _Atomic(pid_t) *kept; /* NULL: not there */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void make_page(void)
{
#ifdef MADV_WIPEONFORK
    size_t bytes = (size_t)sysconf(_SC_PAGESIZE);
    void *page = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return;
    if (madvise(page, bytes, MADV_WIPEONFORK) == 0)
        kept = page;
    else
        munmap(page, bytes);
#endif
}

pid_t iq_process_id(void)
{
    pthread_once(&once, make_page);
    if (kept == NULL)
        return getpid();
    pid_t id = atomic_load_explicit(kept, memory_order_relaxed);
    if (id == 0) {
        id = getpid();
        atomic_store_explicit(kept, id, memory_order_relaxed);
    }
    return id;
}
