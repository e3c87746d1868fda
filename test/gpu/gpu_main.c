/* SPDX-License-Identifier: Apache-2.0 */
/* The runner of gpu_main.h. */
#include "gpu/gpu_main.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define SKIPPED 77

static _Noreturn void finish(int status)
{
    fflush(NULL);
    _exit(status);
}

/* Run `function` in a child that may use CUDA; its exit status. */
static int in_child(void (*function)(void))
{
    int status = 0;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        function();
        finish(0);
    }
    if (child < 0 || waitpid(child, &status, 0) != child)
        return 1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void look_for_gpu(void)
{
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0)
        finish(SKIPPED);
}

void gpu_run_ranks(const iq_ranks_t *ranks)
{
    static char failures[16384];
    if (iq_ranks_try(ranks, NULL, failures, sizeof(failures)))
        return;
    printf("%s\n", failures);
    finish(1);
}

isgq_comm_t gpu_join(iq_rank_t *rank, isgq_device_type_t type, isgq_unique_id_t id)
{
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    isgq_comm_t comm = NULL;
    config.device_type = type;
    RANK_OK(rank, isgq_comm_init_rank(&comm, rank->nranks, id, rank->rank, &config));
    return comm;
}

void gpu_leave(iq_rank_t *rank, isgq_comm_t comm)
{
    RANK_OK(rank, isgq_comm_finalize(comm));
    RANK_OK(rank, isgq_comm_destroy(comm));
}

/* The ranks' values are theirs alone, so ids travel in the flags: 128 bytes in sixteen words, one id at a time. */
isgq_unique_id_t gpu_id(iq_rank_t *rank)
{
    isgq_unique_id_t id;
    _Static_assert(sizeof(id) == IQ_RANK_FLAGS * sizeof(uint64_t), "an id fills the flags");
    iq_rank_meet(rank);
    if (rank->rank == 0) {
        uint64_t words[IQ_RANK_FLAGS];
        RANK_OK(rank, isgq_get_unique_id(&id));
        memcpy(words, &id, sizeof(id));
        for (int i = 0; i < IQ_RANK_FLAGS; i++)
            atomic_store(&rank->flags[i], words[i]);
    }
    iq_rank_meet(rank);
    uint64_t words[IQ_RANK_FLAGS];
    for (int i = 0; i < IQ_RANK_FLAGS; i++)
        words[i] = atomic_load(&rank->flags[i]);
    memcpy(&id, words, sizeof(id));
    return id;
}

cudaStream_t gpu_stream(iq_rank_t *rank)
{
    cudaStream_t stream = NULL;
    RANK_CUDA(rank, cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return stream;
}

static const gpu_case_t *find(const char *name)
{
    for (const gpu_case_t *one = gpu_cases; one->name != NULL; one++)
        if (strcmp(one->name, name) == 0)
            return one;
    return NULL;
}

static int run_all(void)
{
    int failed = 0;
    for (const gpu_case_t *one = gpu_cases; one->name != NULL; one++) {
        int status = in_child(one->run);
        printf("%-24s %s\n", one->name, status == 0 ? "passed" : "FAILED");
        failed += status != 0;
    }
    return failed > 0;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--list") == 0) {
        for (const gpu_case_t *one = gpu_cases; one->name != NULL; one++)
            puts(one->name);
        return 0;
    }
    const gpu_case_t *one = argc == 2 ? find(argv[1]) : NULL;
    if (argc > 2 || (argc == 2 && one == NULL)) {
        fprintf(stderr, "usage: %s [CASE | --list]\n", argv[0]);
        return 2;
    }
    if (in_child(look_for_gpu) == SKIPPED) {
        puts("skipped: no usable GPU here");
        return SKIPPED;
    }
    if (one == NULL)
        return run_all();
    one->run();
    return 0;
}
