/* SPDX-License-Identifier: Apache-2.0 */
/* What both test programs of the simulated CUDA use. */
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

#endif
