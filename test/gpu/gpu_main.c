/* SPDX-License-Identifier: Apache-2.0 */
/* The runner of gpu_main.h. */
#include "gpu/gpu_main.h"

#include "isgqcoll_ext.h"

#include <dlfcn.h>
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

static void count_devices(void)
{
    int count = 0;
    finish(cudaGetDeviceCount(&count) != cudaSuccess ? 0 : count < 64 ? count : 64);
}

int gpu_devices(void) { return in_child(count_devices); }

void gpu_skip(const char *why)
{
    printf("skipped: %s\n", why);
    finish(SKIPPED);
}

/* ---- ways ---- */

typedef struct way {
    const char *name;
    const char *transports; /* NULL: as the library has it */
    bool (*available)(void);
} way_t;

/* Asks in a child: NCCL is not to be loaded in a process that forks ranks. */
static void look_for_nccl(void)
{
    const char *named = getenv("ISGQ_NCCL_LIB");
    if (dlopen(named != NULL && named[0] != '\0' ? named : "libnccl.so.2", RTLD_LAZY | RTLD_LOCAL) != NULL)
        return;
    printf("skipped: no NCCL here (%s)\n", dlerror());
    finish(SKIPPED);
}

static bool have_nccl(void) { return in_child(look_for_nccl) == 0; }

/* The first one is taken if none is named. */
static const way_t ways[] = {{"cuda_ipc", NULL, NULL}, {"nccl", "local,shm,ucx,nccl", have_nccl}, {"staged", "local,shm,ucx", NULL}, {NULL, NULL, NULL}};
static const way_t *over = ways;

static const way_t *find_way(const char *name)
{
    for (const way_t *way = ways; way->name != NULL; way++)
        if (strcmp(way->name, name) == 0)
            return way;
    return NULL;
}

/* Several ranks of NCCL on one GPU and one host; what the user has set stays. */
static void prepare_nccl(void)
{
    static const char *const settings[][2] = {{"NCCL_SOCKET_IFNAME", "lo"}, {"NCCL_IB_DISABLE", "1"},   {"NCCL_MNNVL_ENABLE", "0"},
                                              {"NCCL_NET_PLUGIN", "none"},  {"NCCL_PROTO", "Simple"}, {"NCCL_MAX_CTAS", "2"}};
    for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++)
        setenv(settings[i][0], settings[i][1], 0);
}

static void choose_way(const way_t *way)
{
    over = way;
    if (way->transports != NULL)
        setenv("ISGQ_TRANSPORTS", way->transports, 1);
    if (gpu_over("nccl"))
        prepare_nccl();
}

bool gpu_over(const char *way) { return strcmp(over->name, way) == 0; }

void gpu_not_over(const char *way, const char *why)
{
    if (gpu_over(way))
        gpu_skip(why);
}

void gpu_check_way(iq_rank_t *rank, isgq_comm_t comm)
{
    isgqx_call_record_t record = {.size = sizeof(record)};
    if (rank->nranks == 1)
        return;
    RANK_OK(rank, isgqx_last_call(comm, &record));
    for (const way_t *way = ways; way->name != NULL; way++)
        RANK_CHECK(rank, (strstr(record.transport, way->name) != NULL) == (way == over && !gpu_over("staged")), "transport \"%s\" over %s",
                   record.transport, over->name);
}

/* ---- ranks ---- */

static iq_rank_fn body_on_machine;

static void on_own_machine(iq_rank_t *rank)
{
    char name[16];
    snprintf(name, sizeof(name), "rank-%d", rank->rank);
    setenv("NCCL_HOSTID", name, 1);
    body_on_machine(rank);
}

void gpu_run_ranks(const iq_ranks_t *ranks)
{
    static char failures[16384];
    iq_ranks_t mine = *ranks;
    if (gpu_over("nccl")) {
        body_on_machine = ranks->body;
        mine.body = on_own_machine;
        mine.kind = ranks->kind == IQ_RANKS_THREADS ? IQ_RANKS_PROCESSES : ranks->kind;
    }
    if (iq_ranks_try(&mine, NULL, failures, sizeof(failures)))
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
        printf("%-24s %s\n", one->name, status == 0 ? "passed" : status == SKIPPED ? "skipped" : "FAILED");
        failed += status != 0 && status != SKIPPED;
    }
    return failed > 0;
}

static int list(void)
{
    for (const gpu_case_t *one = gpu_cases; one->name != NULL; one++)
        puts(one->name);
    return 0;
}

int main(int argc, char **argv)
{
    const char *program = argv[0];
    const way_t *way = ways;
    if (argc == 2 && strcmp(argv[1], "--list") == 0)
        return list();
    if (argc > 2 && strcmp(argv[1], "--over") == 0) {
        way = find_way(argv[2]);
        argc -= 2;
        argv += 2;
    }
    const gpu_case_t *one = argc == 2 ? find(argv[1]) : NULL;
    if (way == NULL || argc > 2 || (argc == 2 && one == NULL)) {
        fprintf(stderr, "usage: %s [--over cuda_ipc|nccl|staged] [CASE] | --list\n", program);
        return 2;
    }
    if (gpu_devices() == 0)
        gpu_skip("no usable GPU here");
    if (way->available != NULL && !way->available())
        return SKIPPED;
    choose_way(way);
    if (one == NULL)
        return run_all();
    one->run();
    return 0;
}
