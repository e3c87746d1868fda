/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What joins ranks in module "cuda": flags in the order of streams, hosts that let them go, memory that two processes share, and
 * counters of replays, in a graph too. Only on the simulated CUDA: environment variables make it refuse things.
 */
#include "support/check_main.h"
#include "support/cuda_box.h"
#include "support/require.h"

#include <cuda_runtime.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FLAGS = 8, BYTES = 4096 };

static iq_cuda_flag_t *flags; /* of this process and its children */
static isgq_stream_t other;
static iq_cuda_event_t passed;

static void map_flags(void)
{
    flags = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    REQUIRE(flags != MAP_FAILED);
}

static void start(void)
{
    cuda_start();
    if (flags == NULL)
        map_flags();
    REQUIRE(cuda->pin(0, flags, BYTES) == ISGQ_SUCCESS);
    REQUIRE(cuda->stream_create(0, &other) == ISGQ_SUCCESS);
    REQUIRE(cuda->event_create(0, &passed) == ISGQ_SUCCESS);
}

static void end(void)
{
    cuda->event_destroy(0, passed);
    cuda->stream_destroy(0, other);
    cuda->unpin(flags);
    munmap(flags, BYTES);
    flags = NULL;
    cuda_end();
}

static iq_cuda_flag_op_t wait_for(unsigned flag, uint32_t value) { return (iq_cuda_flag_op_t){&flags[flag], value, true}; }
static iq_cuda_flag_op_t set(unsigned flag, uint32_t value) { return (iq_cuda_flag_op_t){&flags[flag], value, false}; }

static void enqueue(isgq_stream_t stream, iq_cuda_flag_op_t op)
{
    ck_assert_msg(cuda->flags(0, stream, &op, 1) == ISGQ_SUCCESS, "%s", iq_last_error());
}

/* A stream does what it can, which is not to pass `passed`. */
static void require_waiting(void)
{
    for (int i = 0; i < 100; i++) {
        REQUIRE(cuda->event_poll(0, passed) == ISGQ_IN_PROGRESS);
        sched_yield();
    }
}

static void require_passing(void)
{
    isgq_result_t result;
    while ((result = cuda->event_poll(0, passed)) == ISGQ_IN_PROGRESS)
        sched_yield();
    ck_assert_msg(result == ISGQ_SUCCESS, "%s", iq_last_error());
}

static uint32_t state_of(unsigned flag) { return __atomic_load_n(&flags[flag].state, __ATOMIC_ACQUIRE); }

/* ---- flags ---- */

/* One stream writes a box and hands it over, the other reads it and hands it back, all of it enqueued before the first may start. */
START_TEST(flags_order_streams)
{
    enum { ROUNDS = 40, SIZE = 1000, FULL = 0, EMPTY = 1 };
    iq_cuda_device_t description;
    REQUIRE(cuda->describe(0, &description) == ISGQ_SUCCESS && description.orders_ranks);
    box_t source = box_new(ROUNDS * SIZE, 0), slot = box_new(SIZE, 0), copies = box_new(ROUNDS * SIZE, 0);
    for (size_t round = 0; round < ROUNDS; round++) {
        iq_cuda_flag_op_t taken[] = {wait_for(FULL, 4 | 2), set(FULL, 0)};
        REQUIRE(cuda->flags(0, other, taken, 2) == ISGQ_SUCCESS);
        REQUIRE(cuda->copy(0, other, copies.device + round * SIZE, slot.device, SIZE) == ISGQ_SUCCESS);
        enqueue(other, set(EMPTY, 1));
    }
    REQUIRE(cuda->event_record(0, passed, other) == ISGQ_SUCCESS);
    for (size_t round = 0; round < ROUNDS; round++) {
        iq_cuda_flag_op_t taken[] = {wait_for(EMPTY, 1), set(EMPTY, 0)};
        REQUIRE(cuda->flags(0, cuda_stream, taken, 2) == ISGQ_SUCCESS);
        REQUIRE(cuda->copy(0, cuda_stream, slot.device, source.device + round * SIZE, SIZE) == ISGQ_SUCCESS);
        enqueue(cuda_stream, set(FULL, round % 2 == 0 ? 2 : 4));
    }
    require_waiting();
    __atomic_store_n(&flags[EMPTY].state, 0x80000001u, __ATOMIC_RELEASE);
    require_passing();
    REQUIRE(memcmp(box_result(&copies), source.host, ROUNDS * SIZE) == 0);
    REQUIRE(state_of(EMPTY) == 1 && state_of(FULL) == 0);
    box_free(&source);
    box_free(&slot);
    box_free(&copies);
}
END_TEST

/* Other bits of the state end no wait. */
START_TEST(bits_count)
{
    flags[0].state = 0xfffffffeu;
    flags[1].state = 1; /* neighbours do not matter */
    flags[1].gone = 1;
    enqueue(other, wait_for(0, 1));
    REQUIRE(cuda->event_record(0, passed, other) == ISGQ_SUCCESS);
    require_waiting();
    __atomic_store_n(&flags[0].state, 3, __ATOMIC_RELEASE);
    require_passing();
}
END_TEST

/* A host ends all waits for a flag, those enqueued later too, and what streams write takes none of it back. */
START_TEST(hosts_let_go)
{
    iq_cuda_flag_op_t all[IQ_CUDA_FLAG_OPS];
    for (unsigned i = 0; i < IQ_CUDA_FLAG_OPS; i++)
        all[i] = i % 2 == 0 ? wait_for(2, 1) : set(2, 0);
    REQUIRE(cuda->flags(0, other, all, IQ_CUDA_FLAG_OPS) == ISGQ_SUCCESS);
    REQUIRE(cuda->event_record(0, passed, other) == ISGQ_SUCCESS);
    require_waiting();
    __atomic_store_n(&flags[2].gone, 1, __ATOMIC_RELEASE);
    require_passing();
    enqueue(other, wait_for(2, 8));
    REQUIRE(cuda->event_record(0, passed, other) == ISGQ_SUCCESS);
    require_passing();
    REQUIRE(state_of(2) == 0 && flags[2].gone == 1);
}
END_TEST

START_TEST(bad_batches_are_refused)
{
    iq_cuda_flag_op_t many[IQ_CUDA_FLAG_OPS + 1] = {{0}};
    iq_cuda_flag_t unknown = {1, 1};
    iq_cuda_flag_op_t outside = {&unknown, 1, true};
    REQUIRE(cuda->flags(0, other, many, IQ_CUDA_FLAG_OPS + 1) == ISGQ_ERR_INVALID_ARGUMENT);
    REQUIRE(strcmp(iq_last_error(), "flags: 33 operations, a batch has at most 32") == 0);
    REQUIRE(cuda->flags(0, other, &outside, 1) == ISGQ_ERR_CUDA);
    REQUIRE(strncmp(iq_last_error(), "cuStreamBatchMemOp: invalid argument", 36) == 0);
    REQUIRE(cuda->flags(0, other, many, 0) == ISGQ_SUCCESS);
}
END_TEST

/* Each in a process of its own: what a driver has is asked once. */
static void require_order(const char *missing, bool awaits)
{
    iq_cuda_device_t description;
    setenv("CUDASIM_NO_WORDS", missing, 1);
    start();
    REQUIRE(cuda->describe(0, &description) == ISGQ_SUCCESS);
    REQUIRE(!description.orders_ranks && description.awaits_words == awaits);
    iq_cuda_flag_op_t op = wait_for(0, 1);
    REQUIRE(cuda->flags(0, other, &op, 1) == ISGQ_ERR_UNSUPPORTED);
    end();
}

START_TEST(drivers_without_words)
{
    require_order("1", false);
}
END_TEST
START_TEST(drivers_with_narrow_words)
{
    require_order("64", true);
}
END_TEST

/* ---- shared memory ---- */

enum { SHARED = 3000000, FILLED = 0, ANSWERED = 1 };

/* A child must not go on with the tests of its parent. */
#define CHILD_REQUIRE(condition)                                                           \
    do {                                                                                   \
        if (!(condition)) {                                                                \
            fprintf(stderr, "not so in the child: %s: %s\n", #condition, iq_last_error()); \
            _exit(1);                                                                      \
        }                                                                                  \
    } while (0)

/* Opens the parent's memory; when the parent's stream has filled the first half, its own stream copies that to the second. */
static void open_and_answer(int from_parent)
{
    iq_cuda_handle_t handle;
    void *opened = NULL, *again = NULL;
    iq_cuda_place_t place;
    int device = -1;
    start();
    CHILD_REQUIRE(read(from_parent, &handle, sizeof(handle)) == (ssize_t)sizeof(handle));
    CHILD_REQUIRE(cuda->shared_open(0, &handle, &opened) == ISGQ_SUCCESS);
    CHILD_REQUIRE(cuda->shared_open(0, &handle, &again) == ISGQ_SUCCESS && again == opened);
    unsigned char *bytes = opened;
    CHILD_REQUIRE(cuda->locate(0, bytes + SHARED - 1, &place, &device) == ISGQ_SUCCESS);
    CHILD_REQUIRE(place == IQ_CUDA_DEVICE && device == 0);
    enqueue(other, wait_for(FILLED, 1));
    CHILD_REQUIRE(cuda->copy(0, other, bytes + SHARED / 2, bytes, SHARED / 2) == ISGQ_SUCCESS);
    enqueue(other, set(ANSWERED, 1));
    CHILD_REQUIRE(cuda->event_record(0, passed, other) == ISGQ_SUCCESS);
    require_passing();
    cuda->shared_close(0, again);
    CHILD_REQUIRE(cuda->locate(0, bytes, &place, &device) == ISGQ_SUCCESS && place == IQ_CUDA_DEVICE);
    cuda->shared_close(0, opened);
    CHILD_REQUIRE(cuda->locate(0, bytes, &place, &device) == ISGQ_SUCCESS && place == IQ_CUDA_HOST);
    end();
}

/* The child's part and the parent's are ordered by flags alone. */
START_TEST(processes_share_memory)
{
    int ends[2], status = -1;
    void *memory = NULL, *opened = NULL;
    iq_cuda_handle_t handle;
    map_flags();
    REQUIRE(pipe(ends) == 0);
    pid_t child = fork(); /* before anything of CUDA */
    REQUIRE(child >= 0);
    if (child == 0) {
        open_and_answer(ends[0]);
        _exit(0);
    }
    start();
    box_t source = box_new(SHARED / 2, 0), copies = box_new(SHARED, 0);
    REQUIRE(cuda->shared_alloc(0, SHARED, &memory) == ISGQ_SUCCESS && (uintptr_t)memory % 256 == 0);
    REQUIRE(cuda->copy(0, cuda_stream, copies.device, memory, SHARED) == ISGQ_SUCCESS);
    const unsigned char *found = box_result(&copies);
    for (size_t i = 0; i < SHARED; i++)
        REQUIRE(found[i] == 0);
    REQUIRE(cuda->shared_export(0, memory, &handle) == ISGQ_SUCCESS);
    REQUIRE(cuda->shared_open(0, &handle, &opened) == ISGQ_ERR_CUDA); /* not in this process */
    REQUIRE(write(ends[1], &handle, sizeof(handle)) == (ssize_t)sizeof(handle));

    REQUIRE(cuda->copy(0, cuda_stream, memory, source.device, SHARED / 2) == ISGQ_SUCCESS);
    enqueue(cuda_stream, set(FILLED, 1));
    enqueue(cuda_stream, wait_for(ANSWERED, 1));
    REQUIRE(cuda->copy(0, cuda_stream, copies.device, memory, SHARED) == ISGQ_SUCCESS);
    found = box_result(&copies);
    REQUIRE(memcmp(found, source.host, SHARED / 2) == 0 && memcmp(found + SHARED / 2, source.host, SHARED / 2) == 0);
    REQUIRE(waitpid(child, &status, 0) == child && status == 0);

    box_free(&source);
    box_free(&copies);
    cuda->shared_free(0, memory);
    REQUIRE(cuda->shared_export(0, memory, &handle) == ISGQ_ERR_CUDA);
    end();
    close(ends[0]);
    close(ends[1]);
}
END_TEST

START_TEST(what_cannot_be_shared)
{
    void *memory = NULL;
    iq_cuda_handle_t handle = {{0}};
    box_t box = box_new(100, 0);
    REQUIRE(cuda->shared_export(0, box.device_all, &handle) == ISGQ_ERR_CUDA); /* of the stream-ordered pool */
    REQUIRE(cuda->shared_open(0, &handle, &memory) == ISGQ_ERR_CUDA);
    REQUIRE(cuda->shared_alloc(0, SIZE_MAX - 1, &memory) == ISGQ_ERR_NO_MEMORY);
    REQUIRE(cuda->shared_alloc(0, (size_t)1 << 50, &memory) == ISGQ_ERR_NO_MEMORY);
    REQUIRE(strncmp(iq_last_error(), "cudaMalloc: no ", 15) == 0 && memory == NULL);
    setenv("CUDASIM_NO_IPC", "1", 1);
    REQUIRE(cuda->shared_alloc(0, 1, &memory) == ISGQ_SUCCESS);
    REQUIRE(cuda->shared_export(0, memory, &handle) == ISGQ_ERR_UNSUPPORTED);
    unsetenv("CUDASIM_NO_IPC");
    REQUIRE(cuda->shared_export(0, memory, &handle) == ISGQ_SUCCESS);
    cuda->shared_free(0, memory);
    box_free(&box);
}
END_TEST

START_TEST(devices_reach_each_other)
{
    setenv("CUDASIM_DEVICES", "3", 1);
    setenv("CUDASIM_NO_PEERS", "1", 1);
    start();
    REQUIRE(cuda->reach(0, 0) == ISGQ_SUCCESS);
    REQUIRE(cuda->reach(0, 1) == ISGQ_ERR_UNSUPPORTED);
    REQUIRE(strcmp(iq_last_error(), "cudaDeviceCanAccessPeer: device 0 cannot use memory of device 1") == 0);
    unsetenv("CUDASIM_NO_PEERS");
    for (int round = 0; round < 2; round++)
        REQUIRE(cuda->reach(0, 1) == ISGQ_SUCCESS && cuda->reach(2, 0) == ISGQ_SUCCESS);
    REQUIRE(cuda->reach(0, 3) == ISGQ_ERR_CUDA);
    REQUIRE(cudaGetLastError() == cudaSuccess);
    int device = -1;
    REQUIRE(cuda->current(&device) == ISGQ_SUCCESS && device == 0);
    end();
}
END_TEST

/* ---- replays ---- */

START_TEST(replays_are_counted)
{
    box_t box = box_new(12, 0);
    uint32_t before[3], after[3];
    memcpy(before, box.host, sizeof(before));
    for (int i = 0; i < 5; i++)
        REQUIRE(cuda->advance(0, cuda_stream, (uint32_t *)box.device + 1) == ISGQ_SUCCESS);
    memcpy(after, box_result(&box), sizeof(after));
    REQUIRE(after[0] == before[0] && after[1] == before[1] + 5 && after[2] == before[2]);
    box_free(&box);
}
END_TEST

/* ---- graphs ---- */

static cudaGraphExec_t end_capture(isgq_stream_t stream)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    REQUIRE(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
    REQUIRE(cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess && cudaGraphDestroy(graph) == cudaSuccess);
    return exec;
}

/* Rounds 0.3 to 4 bits at random, as the call-th call. */
static void round_at_random(const box_t *values, const box_t *scale, const box_t *codes, uint64_t call, const uint32_t *replays)
{
    enum { VALUES = 1000 };
    iq_cuda_map_t map = {
        .source = {.form = IQ_CUDA_VALUES, .type = ISGQ_FLOAT32, .data = values->device, .divisor = 1.0f},
        .target = {.form = IQ_CUDA_CODES, .data = codes->device, .width = 4},
        .grid = {.used = true,
                 .stochastic = true,
                 .top = 14,
                 .scales = (const float *)scale->device,
                 .seed = 5,
                 .call = call,
                 .replays = replays},
        .count = VALUES,
        .fault = &flags[FLAGS].state,
    };
    ck_assert_msg(cuda->map(0, cuda_stream, &map) == ISGQ_SUCCESS, "%s", iq_last_error());
}

static box_t box_of(float value, size_t count)
{
    box_t box = box_new(count * sizeof(float), 0);
    for (size_t i = 0; i < count; i++)
        ((float *)box.host)[i] = value;
    box_push(&box);
    return box;
}

/* Each replay waits for its flag again, counts itself, and draws what a call of its own would have drawn. */
START_TEST(replays_wait_and_draw_again)
{
    enum { WAITED = 3, DONE = 4, BYTES_OF_CODES = 500 };
    const uint64_t call = 0x700000009ull;
    box_t values = box_of(0.3f, 1000), scale = box_of(1.0f, 1), replays = box_new(4, 0), codes = box_new(BYTES_OF_CODES, 0);
    uint32_t first, now;
    unsigned char found[BYTES_OF_CODES], before[BYTES_OF_CODES];
    memcpy(&first, replays.host, 4);
    iq_cuda_flag_op_t waiting[] = {wait_for(WAITED, 1), set(WAITED, 0)};
    REQUIRE(cudaStreamBeginCapture(cuda_stream, cudaStreamCaptureModeGlobal) == cudaSuccess);
    REQUIRE(cuda->flags(0, cuda_stream, waiting, 2) == ISGQ_SUCCESS);
    REQUIRE(cuda->advance(0, cuda_stream, (uint32_t *)replays.device) == ISGQ_SUCCESS);
    round_at_random(&values, &scale, &codes, call, (uint32_t *)replays.device);
    enqueue(cuda_stream, set(DONE, 1));
    cudaGraphExec_t exec = end_capture(cuda_stream);
    for (uint32_t i = 1; i <= 4; i++) {
        flags[DONE].state = 0;
        REQUIRE(cudaGraphLaunch(exec, cuda_stream) == cudaSuccess);
        REQUIRE(cuda->event_record(0, passed, cuda_stream) == ISGQ_SUCCESS);
        require_waiting();
        REQUIRE(state_of(DONE) == 0);
        __atomic_store_n(&flags[WAITED].state, 1, __ATOMIC_RELEASE);
        require_passing();
        REQUIRE(state_of(DONE) == 1 && state_of(WAITED) == 0);
        memcpy(&now, box_result(&replays), 4);
        REQUIRE(now == first + i);
        memcpy(found, box_result(&codes), BYTES_OF_CODES);
        REQUIRE(i == 1 || memcmp(found, before, BYTES_OF_CODES) != 0);
        memcpy(before, found, BYTES_OF_CODES);
        round_at_random(&values, &scale, &codes, call + ((uint64_t)now << 32), NULL);
        REQUIRE(memcmp(found, box_result(&codes), BYTES_OF_CODES) == 0);
    }
    REQUIRE(cudaGraphExecDestroy(exec) == cudaSuccess);
    REQUIRE(flags[FLAGS].state == IQ_CUDA_NO_FAULT);
    box_free(&values);
    box_free(&scale);
    box_free(&replays);
    box_free(&codes);
}
END_TEST

/* All that the library may do at any time, while the application captures a stream of its own in this thread. */
START_TEST(nothing_disturbs_a_capture)
{
    int count;
    iq_cuda_device_t description;
    iq_cuda_place_t place;
    iq_cuda_handle_t handle;
    isgq_stream_t stream;
    iq_cuda_event_t event;
    void *memory = NULL;
    bool capturing = true;
    static char page[8192] __attribute__((aligned(4096)));
    box_t box = box_new(100, 0);
    REQUIRE(cudaStreamBeginCapture(other, cudaStreamCaptureModeGlobal) == cudaSuccess);
    REQUIRE(cuda->devices(&count) == ISGQ_SUCCESS && cuda->describe(0, &description) == ISGQ_SUCCESS);
    REQUIRE(cuda->warm_up(0) == ISGQ_SUCCESS && cuda->locate(-1, box.device, &place, &count) == ISGQ_SUCCESS);
    REQUIRE(cuda->alloc(0, cuda_stream, 100, &memory) == ISGQ_SUCCESS);
    cuda->release(0, cuda_stream, memory);
    REQUIRE(cuda->pin(0, page, sizeof(page)) == ISGQ_SUCCESS);
    cuda->unpin(page);
    REQUIRE(cuda->stream_create(0, &stream) == ISGQ_SUCCESS && cuda->event_create(0, &event) == ISGQ_SUCCESS);
    REQUIRE(cuda->stream_capturing(0, stream, &capturing) == ISGQ_SUCCESS && !capturing);
    REQUIRE(cuda->copy(0, stream, box.device, box.device + 50, 50) == ISGQ_SUCCESS);
    REQUIRE(cuda->clear(0, stream, box.device, 100) == ISGQ_SUCCESS);
    REQUIRE(cuda->event_record(0, event, stream) == ISGQ_SUCCESS && cuda->wait_event(0, cuda_stream, event) == ISGQ_SUCCESS);
    while (cuda->event_poll(0, event) == ISGQ_IN_PROGRESS)
        sched_yield();
    REQUIRE(cuda->event_poll(0, event) == ISGQ_SUCCESS);
    REQUIRE(cuda->shared_alloc(0, 100, &memory) == ISGQ_SUCCESS && cuda->shared_export(0, memory, &handle) == ISGQ_SUCCESS);
    REQUIRE(cuda->shared_open(0, &handle, &memory) == ISGQ_ERR_CUDA && cuda->reach(0, 0) == ISGQ_SUCCESS);
    cuda->shared_free(0, memory);
    cuda->event_destroy(0, event);
    cuda->stream_destroy(0, stream);
    REQUIRE(cuda->stream_capturing(0, other, &capturing) == ISGQ_SUCCESS && capturing);
    REQUIRE(cudaGraphExecDestroy(end_capture(other)) == cudaSuccess);
    cuda_settle();
    box_free(&box);
}
END_TEST

/* One test case for what is read once or needs a process without CUDA: a process may run all tests of a case. */
#define CASE_OF_ONE(suite, test_case, test) \
    do {                                    \
        TCase *one = test_case;             \
        tcase_add_test(one, test);          \
        suite_add_tcase(suite, one);        \
    } while (0)

Suite *iq_suite(void)
{
    Suite *suite = suite_create("cuda_between");
    TCase *c = tcase_create("flags");
    tcase_add_checked_fixture(c, start, end);
    tcase_add_test(c, flags_order_streams);
    tcase_add_test(c, bits_count);
    tcase_add_test(c, hosts_let_go);
    tcase_add_test(c, bad_batches_are_refused);
    suite_add_tcase(suite, c);

    c = tcase_create("memory");
    tcase_add_checked_fixture(c, start, end);
    tcase_add_test(c, what_cannot_be_shared);
    suite_add_tcase(suite, c);

    c = tcase_create("replays");
    tcase_add_checked_fixture(c, start, end);
    tcase_add_test(c, replays_are_counted);
    suite_add_tcase(suite, c);

    c = tcase_create("graphs");
    tcase_add_checked_fixture(c, start, end);
    tcase_add_test(c, replays_wait_and_draw_again);
    tcase_add_test(c, nothing_disturbs_a_capture);
    suite_add_tcase(suite, c);

    CASE_OF_ONE(suite, tcase_create("without_words"), drivers_without_words);
    CASE_OF_ONE(suite, tcase_create("narrow_words"), drivers_with_narrow_words);
    CASE_OF_ONE(suite, tcase_create("processes"), processes_share_memory);
    CASE_OF_ONE(suite, tcase_create("peers"), devices_reach_each_other);
    return suite;
}
