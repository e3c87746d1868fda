/* SPDX-License-Identifier: Apache-2.0 */
/* The simulated CUDA: memory of other processes and of other devices. */
#include "cudasim/test_support.h"

#include <dirent.h>
#include <stdio.h>

/* A child that was forked before anything of CUDA, with a pipe each way. */
struct Child {
    pid_t process;
    int to, from; /* the child's ends in the child */
};

#define CHILD_REQUIRE(condition)                                      \
    do {                                                              \
        if (!(condition)) {                                           \
            fprintf(stderr, "not so in the child: %s\n", #condition); \
            _exit(1);                                                 \
        }                                                             \
    } while (0)

template <typename T> static void send(const Child &child, const T &value)
{
    ck_assert_int_eq(write(child.to, &value, sizeof(value)), sizeof(value));
}

template <typename T> static T receive(const Child &child)
{
    T value;
    ck_assert_int_eq(read(child.from, &value, sizeof(value)), sizeof(value));
    return value;
}

static Child start(void (*body)(const Child &self))
{
    int down[2], up[2];
    ck_assert_int_eq(pipe(down), 0);
    ck_assert_int_eq(pipe(up), 0);
    pid_t process = fork();
    ck_assert_int_ge(process, 0);
    if (process == 0) {
        close(down[1]);
        close(up[0]);
        body({getpid(), up[1], down[0]});
        _exit(0);
    }
    close(down[0]);
    close(up[1]);
    return {process, down[1], up[0]};
}

static void finish(const Child &child)
{
    int status;
    ck_assert_int_eq(waitpid(child.process, &status, 0), child.process);
    ck_assert_int_eq(status, 0);
    close(child.to);
    close(child.from);
}

static cudaIpcMemHandle_t handle_of(void *memory)
{
    cudaIpcMemHandle_t handle;
    OK(cudaIpcGetMemHandle(&handle, memory));
    return handle;
}

static cudaError_t open_handle(const cudaIpcMemHandle_t &handle, void **memory)
{
    return cudaIpcOpenMemHandle(memory, handle, cudaIpcMemLazyEnablePeerAccess);
}

__global__ static void double_words(unsigned *words, unsigned count)
{
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x)
        words[i] *= 2;
}

enum { COUNT = 5000, BYTES = COUNT * 4 };

/* ---- other processes ---- */

static void open_and_double(const Child &self)
{
    cudaIpcMemHandle_t handle = receive<cudaIpcMemHandle_t>(self);
    void *opened = nullptr, *again = nullptr;
    cudaPointerAttributes attributes;
    size_t unused, total;
    CHILD_REQUIRE(cudaIpcOpenMemHandle(&opened, handle, 0) == cudaErrorInvalidValue);
    CHILD_REQUIRE(open_handle(handle, &opened) == cudaSuccess && open_handle(handle, &again) == cudaSuccess && again == opened);
    CHILD_REQUIRE(cudasim_objects().opened_blocks == 1 && cudasim_objects().device_blocks == 0);
    CHILD_REQUIRE(cudaMemGetInfo(&unused, &total) == cudaSuccess && unused == total); /* it is the owner's */
    char *bytes = static_cast<char *>(opened);
    CHILD_REQUIRE(cudaPointerGetAttributes(&attributes, bytes + BYTES - 1) == cudaSuccess);
    CHILD_REQUIRE(attributes.type == cudaMemoryTypeDevice && attributes.device == 0);
    CHILD_REQUIRE(cudaPointerGetAttributes(&attributes, bytes + BYTES) == cudaSuccess);
    CHILD_REQUIRE(attributes.type == cudaMemoryTypeUnregistered);
    CHILD_REQUIRE(cudaMemset(bytes + 1, 0, BYTES) == cudaErrorInvalidValue);
    CHILD_REQUIRE(cudaFree(opened) == cudaErrorInvalidValue);
    CHILD_REQUIRE(cudaIpcGetMemHandle(&handle, opened) == cudaErrorInvalidValue); /* the owner exports */
    cudaLaunchConfig_t config = on(nullptr, 1, 64);
    CHILD_REQUIRE(cudaLaunchKernelEx(&config, double_words, static_cast<unsigned *>(opened), unsigned{COUNT}) == cudaSuccess);
    CHILD_REQUIRE(cudaDeviceSynchronize() == cudaSuccess);
    CHILD_REQUIRE(cudaIpcCloseMemHandle(opened) == cudaSuccess);
    CHILD_REQUIRE(cudaMemset(opened, 0, 0) == cudaSuccess && cudasim_objects().opened_blocks == 1);
    CHILD_REQUIRE(cudaIpcCloseMemHandle(opened) == cudaSuccess && cudasim_objects().opened_blocks == 0);
    CHILD_REQUIRE(cudaIpcCloseMemHandle(opened) == cudaErrorInvalidValue);
    CHILD_REQUIRE(cudaMemset(opened, 0, 1) == cudaErrorInvalidValue);
    send(self, 1);
}

START_TEST(another_process_opens_memory)
{
    Child child = start(open_and_double);
    unsigned *memory = nullptr, *back = pinned<unsigned>(COUNT);
    OK(cudaMalloc(&memory, BYTES));
    for (unsigned i = 0; i < COUNT; i++)
        back[i] = i;
    OK(cudaMemcpy(memory, back, BYTES, cudaMemcpyDefault));
    send(child, handle_of(memory));
    ck_assert_int_eq(receive<int>(child), 1);
    OK(cudaMemcpy(back, memory, BYTES, cudaMemcpyDefault));
    for (unsigned i = 0; i < COUNT; i++)
        ck_assert_uint_eq(back[i], 2 * i);
    OK(cudaFree(memory));
    OK(cudaFreeHost(back));
    finish(child);
}
END_TEST

/* Each handle that comes gets an answer. */
static void answer_handles(const Child &self)
{
    void *opened = nullptr;
    cudaIpcMemHandle_t handle;
    while (read(self.from, &handle, sizeof(handle)) == sizeof(handle))
        send(self, open_handle(handle, &opened));
}

static int open_files()
{
    int count = 0;
    DIR *folder = opendir("/proc/self/fd");
    ck_assert_ptr_nonnull(folder);
    while (readdir(folder) != nullptr)
        count++;
    closedir(folder);
    return count;
}

/* A handle names one allocation, not the descriptor that it happens to have. */
START_TEST(stale_handles)
{
    Child child = start(answer_handles);
    void *memory = nullptr, *next = nullptr;
    int files = open_files();
    OK(cudaMalloc(&memory, BYTES));
    cudaIpcMemHandle_t old = handle_of(memory), garbage = {};
    OK(cudaFree(memory));
    ck_assert_int_eq(open_files(), files);
    OK(cudaMalloc(&next, BYTES));
    cudaIpcMemHandle_t fresh = handle_of(next);
    ck_assert_int_ne(memcmp(&old, &fresh, sizeof(old)), 0);
    send(child, old);
    ck_assert_int_eq(receive<cudaError_t>(child), cudaErrorMapBufferObjectFailed);
    send(child, garbage);
    ck_assert_int_eq(receive<cudaError_t>(child), cudaErrorInvalidValue);
    send(child, fresh);
    OK(receive<cudaError_t>(child));
    OK(cudaFree(next));
    close(child.to);
    finish({child.process, -1, child.from});
}
END_TEST

static void export_and_die(const Child &self)
{
    void *memory = nullptr;
    cudaIpcMemHandle_t handle;
    CHILD_REQUIRE(cudaMalloc(&memory, BYTES) == cudaSuccess && cudaIpcGetMemHandle(&handle, memory) == cudaSuccess);
    send(self, handle);
}

/* What is left when both processes are gone is nothing: there is no name that could stay. */
START_TEST(owners_die)
{
    Child child = start(export_and_die);
    cudaIpcMemHandle_t handle = receive<cudaIpcMemHandle_t>(child);
    finish(child);
    void *opened = nullptr;
    ck_assert_int_eq(open_handle(handle, &opened), cudaErrorMapBufferObjectFailed);
}
END_TEST

START_TEST(what_cannot_be_exported)
{
    char *memory = nullptr, *ordered = nullptr, *host = pinned<char>(64);
    void *opened = nullptr;
    cudaIpcMemHandle_t handle;
    OK(cudaMalloc(&memory, 64));
    OK(cudaMallocAsync(&ordered, 64, nullptr));
    OK(cudaDeviceSynchronize());
    ck_assert_int_eq(cudaIpcGetMemHandle(&handle, ordered), cudaErrorInvalidValue);
    ck_assert_int_eq(cudaIpcGetMemHandle(&handle, host), cudaErrorInvalidValue);
    ck_assert_int_eq(cudaIpcGetMemHandle(&handle, memory + 1), cudaErrorInvalidValue);
    ck_assert_int_eq(open_handle(handle_of(memory), &opened), cudaErrorDeviceUninitialized); /* its own process */
    setenv("CUDASIM_NO_IPC", "1", 1);
    ck_assert_int_eq(cudaIpcGetMemHandle(&handle, memory), cudaErrorNotSupported);
    setenv("CUDASIM_NO_IPC", "open", 1);
    handle = handle_of(memory);
    ck_assert_int_eq(open_handle(handle, &opened), cudaErrorMapBufferObjectFailed);
    unsetenv("CUDASIM_NO_IPC");
    OK(cudaFree(memory));
    OK(cudaFree(ordered));
    OK(cudaFreeHost(host));
}
END_TEST

/* ---- other devices ---- */

/* Opens memory of device 1 on device 0. */
static void open_on_another_device(const Child &self)
{
    setenv("CUDASIM_DEVICES", "2", 1);
    cudaIpcMemHandle_t handle = receive<cudaIpcMemHandle_t>(self);
    void *opened = nullptr;
    cudaPointerAttributes attributes;
    setenv("CUDASIM_NO_PEERS", "1", 1);
    CHILD_REQUIRE(open_handle(handle, &opened) == cudaErrorMapBufferObjectFailed);
    unsetenv("CUDASIM_NO_PEERS");
    CHILD_REQUIRE(open_handle(handle, &opened) == cudaSuccess);
    CHILD_REQUIRE(cudaPointerGetAttributes(&attributes, opened) == cudaSuccess && attributes.device == 1);
    CHILD_REQUIRE(cudaIpcCloseMemHandle(opened) == cudaSuccess);
    send(self, 1);
}

START_TEST(peers)
{
    Child child = start(open_on_another_device);
    setenv("CUDASIM_DEVICES", "2", 1);
    int can = -1;
    unsigned *memory = nullptr;
    cudaStream_t stream = new_stream();
    word_function_t write = word_function("cuStreamWriteValue32");
    OK(cudaDeviceCanAccessPeer(&can, 0, 0));
    ck_assert_int_eq(can, 0);
    OK(cudaDeviceCanAccessPeer(&can, 0, 1));
    ck_assert_int_eq(can, 1);
    ck_assert_int_eq(cudaDeviceCanAccessPeer(&can, 0, 2), cudaErrorInvalidDevice);
    OK(cudaSetDevice(1));
    OK(cudaMalloc(&memory, 4));
    OK(cudaSetDevice(0));
    ck_assert_int_eq(write(stream, address(memory), 1, 0), CUDA_ERROR_INVALID_VALUE);
    setenv("CUDASIM_NO_PEERS", "1", 1);
    OK(cudaDeviceCanAccessPeer(&can, 0, 1));
    ck_assert_int_eq(can, 0);
    ck_assert_int_eq(cudaDeviceEnablePeerAccess(1, 0), cudaErrorInvalidDevice);
    unsetenv("CUDASIM_NO_PEERS");
    ck_assert_int_eq(cudaDeviceEnablePeerAccess(0, 0), cudaErrorInvalidDevice);
    ck_assert_int_eq(cudaDeviceEnablePeerAccess(1, 1), cudaErrorInvalidValue);
    OK(cudaDeviceEnablePeerAccess(1, 0));
    ck_assert_int_eq(cudaDeviceEnablePeerAccess(1, 0), cudaErrorPeerAccessAlreadyEnabled);
    ck_assert_int_eq(write(stream, address(memory), 1, 0), CUDA_SUCCESS);
    OK(cudaStreamSynchronize(stream));
    send(child, handle_of(memory));
    ck_assert_int_eq(receive<int>(child), 1);
    OK(cudaSetDevice(1));
    OK(cudaFree(memory));
    OK(cudaSetDevice(0));
    OK(cudaStreamDestroy(stream));
    finish(child);
}
END_TEST

extern "C" Suite *iq_suite(void)
{
    Suite *suite = suite_create("cudasim_ipc");
    CASE_OF_ONE(suite, tcase_create("another_process"), another_process_opens_memory);
    CASE_OF_ONE(suite, tcase_create("stale_handles"), stale_handles);
    CASE_OF_ONE(suite, tcase_create("owners_die"), owners_die);
    CASE_OF_ONE(suite, tcase_create("no_export"), what_cannot_be_exported);
    CASE_OF_ONE(suite, tcase_create("peers"), peers);
    return suite;
}
