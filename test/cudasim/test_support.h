/* SPDX-License-Identifier: Apache-2.0 */
/* What the test programs of the simulated CUDA use. */
#ifndef CUDASIM_TEST_SUPPORT_H
#define CUDASIM_TEST_SUPPORT_H

#include <cuda.h>
#include <cuda_runtime.h>
#include <cudasim.h>

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern "C" {
#include "support/check_main.h"
}

#define OK(call) ck_assert_int_eq(call, cudaSuccess)

template <typename T> static inline T *pinned(size_t count)
{
    T *memory = nullptr;
    OK(cudaMallocHost(&memory, count * sizeof(T)));
    memset(static_cast<void *>(memory), 0, count * sizeof(T));
    return memory;
}

static inline cudaLaunchConfig_t on(cudaStream_t stream, dim3 grid, dim3 block)
{
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.stream = stream;
    return config;
}

static inline cudaStream_t new_stream()
{
    cudaStream_t stream;
    OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return stream;
}

static inline cudaEvent_t new_event()
{
    cudaEvent_t event;
    OK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    return event;
}

typedef CUresult (*word_function_t)(CUstream stream, CUdeviceptr word, cuuint32_t value, unsigned flags);
typedef CUresult (*batch_function_t)(CUstream stream, unsigned count, CUstreamBatchMemOpParams *params, unsigned flags);

static inline void *driver_function(const char *name)
{
    void *found = nullptr;
    cudaDriverEntryPointQueryResult result;
    OK(cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result));
    ck_assert_int_eq(result, cudaDriverEntryPointSuccess);
    return found;
}

static inline word_function_t word_function(const char *name) { return reinterpret_cast<word_function_t>(driver_function(name)); }
static inline batch_function_t batch_function()
{
    return reinterpret_cast<batch_function_t>(driver_function("cuStreamBatchMemOp"));
}

static inline CUdeviceptr address(void *memory) { return reinterpret_cast<CUdeviceptr>(memory); }

static inline void wait_word(cudaStream_t stream, unsigned *word, unsigned value)
{
    ck_assert_int_eq(word_function("cuStreamWaitValue32")(stream, address(word), value, CU_STREAM_WAIT_VALUE_GEQ), CUDA_SUCCESS);
}

static inline void set_word(unsigned *word, unsigned value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }

__global__ static inline void append(unsigned *list, unsigned value) { list[++list[0]] = value; }
__global__ static inline void copy_word(const unsigned *from, unsigned *to) { *to = *from; }
__global__ static inline void nothing() {}

template <typename... Parameters, typename... Arguments>
static inline cudaError_t launch(cudaStream_t stream, void (*kernel)(Parameters...), Arguments... arguments)
{
    cudaFuncAttributes attributes;
    OK(cudaFuncGetAttributes(&attributes, kernel));
    cudaLaunchConfig_t config = on(stream, 1, 1);
    return cudaLaunchKernelEx(&config, kernel, arguments...);
}

/* Calls `body` in a child, which must abort with a text that holds `reason`. The parent must not have used CUDA. */
static inline void require_death(void (*body)(), const char *reason)
{
    int ends[2];
    ck_assert_int_eq(pipe(ends), 0);
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        signal(SIGABRT, SIG_DFL);
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        body();
        _exit(0);
    }
    close(ends[1]);
    char text[4096];
    size_t length = 0;
    for (ssize_t got; length < sizeof(text) - 1 && (got = read(ends[0], text + length, sizeof(text) - 1 - length)) > 0;)
        length += static_cast<size_t>(got);
    text[length] = '\0';
    close(ends[0]);
    int status;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, "it did not abort (status %d): %s", status, text);
    ck_assert_msg(strstr(text, reason) != nullptr, "it said: %s", text);
}

/* One test case for each setting that is read once: a process may run all tests of a case. */
#define CASE_OF_ONE(suite, test_case, test) \
    do {                                    \
        TCase *one = test_case;             \
        tcase_add_test(one, test);          \
        suite_add_tcase(suite, one);        \
    } while (0)

#endif
