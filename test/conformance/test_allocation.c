/* SPDX-License-Identifier: Apache-2.0 */
/*
 * After the first call of a shape nothing allocates: not the caller that queues, not the thread that does the work. Invariant
 * 9 of the design.
 *
 * This program's malloc and its relatives take the place of libc's for the whole process, and count while counting is on. A
 * sanitizer brings its own; there the calls are made and nothing is counted.
 */
#include "support/cases.h"
#include "support/check_main.h"
#include "support/samples.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

static atomic_bool counting;
static atomic_int allocations;
static atomic_size_t last_size;

static void note(size_t size)
{
    if (atomic_load_explicit(&counting, memory_order_relaxed)) {
        atomic_fetch_add(&allocations, 1);
        atomic_store(&last_size, size);
    }
}

#if !IQ_TEST_SANITIZED

/* What dlsym itself asks for before the real functions are known. */
static _Alignas(64) char early[8192];
static size_t early_used;

static bool is_early(const void *memory) { return (const char *)memory >= early && (const char *)memory < early + sizeof(early); }

static void *early_alloc(size_t size)
{
    void *memory = early + early_used;
    early_used += (size + 63) / 64 * 64;
    return early_used <= sizeof(early) ? memory : NULL;
}

typedef void *(*alloc_fn)(size_t, size_t);

/* The next definition of a function: libc's. NULL while it is being looked up. */
static void *next(const char *name, void **cache)
{
    static _Thread_local bool looking;
    if (*cache == NULL && !looking) {
        looking = true;
        *cache = dlsym(RTLD_NEXT, name);
        looking = false;
    }
    return *cache;
}

void *malloc(size_t size);
void *calloc(size_t count, size_t size);
void *realloc(void *memory, size_t size);
void *aligned_alloc(size_t alignment, size_t size);
int posix_memalign(void **memory, size_t alignment, size_t size);
void free(void *memory);

void *malloc(size_t size)
{
    static void *real;
    note(size);
    void *found = next("malloc", &real);
    return found == NULL ? early_alloc(size) : (*(void *(**)(size_t)) & found)(size);
}

void *calloc(size_t count, size_t size)
{
    static void *real;
    note(count * size);
    void *found = next("calloc", &real);
    return found == NULL ? early_alloc(count * size) : (*(alloc_fn *)&found)(count, size);
}

void *realloc(void *memory, size_t size)
{
    static void *real;
    note(size);
    if (is_early(memory)) {
        void *copy = malloc(size);
        size_t room = (size_t)(early + sizeof(early) - (char *)memory);
        return copy == NULL ? NULL : memcpy(copy, memory, size < room ? size : room);
    }
    void *found = next("realloc", &real);
    return found == NULL ? early_alloc(size) : (*(void *(**)(void *, size_t)) & found)(memory, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    static void *real;
    note(size);
    void *found = next("aligned_alloc", &real);
    return found == NULL ? NULL : (*(alloc_fn *)&found)(alignment, size);
}

int posix_memalign(void **memory, size_t alignment, size_t size)
{
    static void *real;
    note(size);
    void *found = next("posix_memalign", &real);
    return found == NULL ? 12 : (*(int (**)(void **, size_t, size_t)) & found)(memory, alignment, size);
}

void free(void *memory)
{
    static void *real;
    void *found = next("free", &real);
    if (!is_early(memory) && found != NULL)
        (*(void (**)(void *)) & found)(memory);
}

#endif

/* ---- the calls ---- */

typedef struct data {
    float *in, *out;
    isgq_quantizer_t quantizers[5];
} data_t;

#define COUNT 20011

static void factored(iq_rank_t *rank, const data_t *data, isgq_quantizer_t quantizer, const char *algorithm)
{
    isgq_call_options_t options = {.size = sizeof(options), .algorithm = algorithm};
    isgq_factors_t factors = {.size = sizeof(factors),
                              .x = data->in,
                              .delta = data->in + 3000,
                              .batch = 16,
                              .m = 120,
                              .n = 40,
                              .bias = data->out + 4800};
    RANK_OK(rank,
            isgq_allreduce_factored(&factors, 16, data->out, ISGQ_FLOAT32, ISGQ_SUM, quantizer, rank->comm, NULL, &options));
}

/* One call of every kind, each waited for. */
static void all_kinds(iq_rank_t *rank, const data_t *data)
{
    static const char *const algorithms[] = {"direct", "ring", "exchange", "board"};
    size_t n = (size_t)rank->nranks;
    for (int i = 0; i < 4; i++) {
        isgq_call_options_t options = {.size = sizeof(options), .algorithm = algorithms[i]};
        RANK_OK(rank, isgq_allreduce(data->in, data->out, COUNT, ISGQ_FLOAT32, ISGQ_AVG, data->quantizers[0], rank->comm, NULL,
                                     &options));
        RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    }
    for (int q = 1; q < 4; q++) {
        RANK_OK(rank,
                isgq_allreduce(data->in, data->out, COUNT, ISGQ_FLOAT32, ISGQ_SUM, data->quantizers[q], rank->comm, NULL, NULL));
        RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    }
    RANK_OK(rank, isgq_reduce_scatter(data->in, data->out, COUNT / n, ISGQ_FLOAT32, ISGQ_SUM, data->quantizers[1], rank->comm,
                                      NULL, NULL));
    RANK_OK(rank, isgq_allgather(data->in, data->out, COUNT / n, ISGQ_FLOAT32, data->quantizers[0], rank->comm, NULL, NULL));
    RANK_OK(rank, isgq_broadcast(data->in, data->out, COUNT, ISGQ_FLOAT32, 1, rank->comm, NULL));
    RANK_OK(rank, isgq_barrier(rank->comm, NULL));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    factored(rank, data, data->quantizers[3], "gather");
    factored(rank, data, data->quantizers[3], "reduce");
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    factored(rank, data, data->quantizers[4], "dense");
    factored(rank, data, data->quantizers[4], "gather");
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
}

static void quiet_body(iq_rank_t *rank)
{
    static const char *const texts[] = {"none", "uniform:bits=4", "fp16", "isgq:bits=4",
                                        "dense=uniform:bits=3;factored=factor:bits=3,rounding=dither,coding=range"};
    data_t data = {.in = malloc(COUNT * sizeof(float)), .out = malloc(COUNT * sizeof(float))};
    iq_samples_fill(ISGQ_FLOAT32, 1, rank->rank, 0, COUNT, data.in);
    for (int q = 0; q < 5; q++)
        data.quantizers[q] = iq_quantizer(rank, texts[q]);
    for (int round = 0; round < 3; round++)
        all_kinds(rank, &data);
    iq_rank_meet(rank);
    if (rank->rank == 0)
        atomic_store(&counting, true);
    iq_rank_meet(rank);
    for (int round = 0; round < (IQ_TEST_SANITIZED ? 1 : 30); round++)
        all_kinds(rank, &data);
    iq_rank_meet(rank);
    if (rank->rank == 0)
        atomic_store(&counting, false);
    iq_rank_meet(rank);
    for (int q = 0; q < 5; q++)
        isgq_quantizer_destroy(data.quantizers[q]);
    free(data.in);
    free(data.out);
}

START_TEST(repeated_shapes_allocate_nothing)
{
    iq_ranks_t ranks = {.nranks = 2 + _i, .body = quiet_body};
    iq_ranks_run(&ranks, NULL);
    ck_assert_msg(atomic_load(&allocations) == 0, "%d allocations, the last of %zu bytes", atomic_load(&allocations),
                  atomic_load(&last_size));
}
END_TEST

/* The counter counts: without this the case above could not fail. */
START_TEST(counter_counts)
{
    atomic_store(&counting, true);
    void *volatile memory = malloc(10);
    atomic_store(&counting, false);
    free(memory);
    ck_assert(IQ_TEST_SANITIZED || atomic_load(&allocations) == 1);
    atomic_store(&allocations, 0);
    note(1); /* off: nothing */
    ck_assert_int_eq(atomic_load(&allocations), 0);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("allocation");
    iq_add_case(suite, tcase_create("counter"), counter_counts, 1);
    iq_add_case(suite, tcase_create("quiet"), repeated_shapes_allocate_nothing, 3);
    return suite;
}
