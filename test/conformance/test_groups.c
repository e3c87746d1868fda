/* SPDX-License-Identifier: Apache-2.0 */
/* Groups, forked children, and all the ways to make communicators. Invariant 12 of the design. */
#include "support/cases.h"
#include "support/check_main.h"
#include "support/samples.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- the same bits as outside ---- */

#define CALLS 24

/* CALLS calls of growing sizes with stochastic rounding, all at once or one by one; values[i] is the hash of what call i left. */
static void bits_body(iq_rank_t *rank)
{
    bool grouped = rank->argument != NULL;
    isgq_quantizer_t quantizers[3] = {iq_quantizer(rank, "none"), iq_quantizer(rank, "uniform:bits=3"),
                                      iq_quantizer(rank, "uniform:bits=5,scale=local,bucket=64")};
    float *in[CALLS], *out[CALLS];
    if (grouped)
        RANK_OK(rank, isgq_group_start());
    for (size_t i = 0; i < CALLS; i++) {
        size_t count = i * i * 7;
        in[i] = malloc((count + 1) * sizeof(float));
        out[i] = calloc(count + 1, sizeof(float));
        iq_samples_fill(ISGQ_FLOAT32, i, rank->rank, 0, count, in[i]);
        RANK_OK(rank, isgq_allreduce(in[i], out[i], count, ISGQ_FLOAT32, ISGQ_SUM, quantizers[i % 3], rank->comm, NULL, NULL));
    }
    for (int i = 0; i < 3; i++) /* grouped calls keep what they need */
        isgq_quantizer_destroy(quantizers[i]);
    if (grouped)
        RANK_OK(rank, isgq_group_end());
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    for (size_t i = 0; i < CALLS; i++) {
        rank->values[i] = isgqx_hash(out[i], i * i * 7 * sizeof(float));
        iq_rank_agree(rank, rank->values[i], "a grouped call");
        free(in[i]);
        free(out[i]);
    }
}

START_TEST(grouped_calls_have_the_same_bits)
{
    static iq_ranks_values_t outside, inside;
    iq_ranks_t ranks = {.nranks = iq_test_nranks(_i), .body = bits_body};
    iq_ranks_run(&ranks, &outside);
    ranks.argument = &ranks;
    iq_ranks_run(&ranks, &inside);
    for (int i = 0; i < CALLS; i++)
        ck_assert_msg(inside.of[0][i] == outside.of[0][i], "call %d has other bits in a group", i);
}
END_TEST

/* ---- nesting ---- */

static uint64_t sequence_of(iq_rank_t *rank)
{
    uint64_t sequence = 0;
    RANK_OK(rank, isgq_comm_get_sequence(rank->comm, &sequence));
    return sequence;
}

static void nested_body(iq_rank_t *rank)
{
    int32_t in = 1, out[3] = {0};
    RANK_STATUS(rank, isgq_group_end(), ISGQ_ERR_INVALID_USAGE);
    RANK_OK(rank, isgq_group_start());
    RANK_OK(rank, isgq_group_end()); /* empty */
    RANK_OK(rank, isgq_group_start());
    RANK_OK(rank, isgq_allreduce(&in, &out[0], 1, ISGQ_INT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL));
    RANK_OK(rank, isgq_group_start());
    RANK_OK(rank, isgq_allreduce(&in, &out[1], 1, ISGQ_INT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL));
    RANK_OK(rank, isgq_group_end());
    RANK_CHECK(rank, sequence_of(rank) == 0, "an inner group was launched");
    RANK_OK(rank, isgq_allreduce(&in, &out[2], 1, ISGQ_INT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL));
    RANK_OK(rank, isgq_group_end());
    RANK_CHECK(rank, sequence_of(rank) == 3, "3 calls in the group, %d launched", (int)sequence_of(rank));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    for (int i = 0; i < 3; i++)
        RANK_CHECK(rank, out[i] == rank->nranks, "call %d of the group is wrong", i);
    RANK_STATUS(rank, isgq_group_end(), ISGQ_ERR_INVALID_USAGE);
}

START_TEST(groups_nest)
{
    iq_ranks_t ranks = {.nranks = 3, .body = nested_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* More calls than the queue remembers. */
static void long_body(iq_rank_t *rank)
{
    enum { MANY = 700 };
    int32_t *values = malloc(MANY * sizeof(*values));
    RANK_OK(rank, isgq_group_start());
    for (int i = 0; i < MANY; i++) {
        values[i] = i;
        RANK_OK(rank, isgq_allreduce(&values[i], &values[i], 1, ISGQ_INT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL));
    }
    RANK_OK(rank, isgq_group_end());
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    for (int i = 0; i < MANY; i++)
        RANK_CHECK(rank, values[i] == i * rank->nranks, "call %d of a long group is wrong", i);
    free(values);
}

START_TEST(long_groups)
{
    iq_ranks_t ranks = {.nranks = 3, .body = long_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- one thread, all ranks ---- */

START_TEST(one_thread_holds_all_ranks)
{
    enum { N = 4 };
    isgq_comm_t comms[N] = {NULL};
    isgq_unique_id_t id;
    int32_t in[N], sum[N], gathered[N][N];
    ck_assert_int_eq(isgq_get_unique_id(&id), ISGQ_SUCCESS);
    ck_assert_int_eq(isgq_group_start(), ISGQ_SUCCESS);
    for (int r = 0; r < N; r++)
        ck_assert_int_eq(isgq_comm_init_rank(&comms[r], N, id, r, NULL), ISGQ_SUCCESS);
    ck_assert_msg(isgq_group_end() == ISGQ_SUCCESS, "%s", isgq_get_last_error());
    ck_assert_int_eq(isgq_group_start(), ISGQ_SUCCESS);
    for (int r = 0; r < N; r++) {
        in[r] = 10 + r;
        ck_assert_int_eq(isgq_allreduce(&in[r], &sum[r], 1, ISGQ_INT32, ISGQ_SUM, NULL, comms[r], NULL, NULL), ISGQ_SUCCESS);
        ck_assert_int_eq(isgq_allgather(&in[r], gathered[r], 1, ISGQ_INT32, NULL, comms[r], NULL, NULL), ISGQ_SUCCESS);
    }
    ck_assert_msg(isgq_group_end() == ISGQ_SUCCESS, "%s", isgq_get_last_error());
    for (int r = N - 1; r >= 0; r--)
        ck_assert_msg(isgq_comm_synchronize(comms[r]) == ISGQ_SUCCESS, "%s", isgq_get_last_error());
    for (int r = 0; r < N; r++)
        ck_assert_msg(sum[r] == 46 && gathered[r][3] == 13 && gathered[r][0] == 10, "rank %d has %d", r, sum[r]);
    for (int r = 0; r < N; r++)
        ck_assert_int_eq(isgq_comm_destroy(comms[r]), ISGQ_SUCCESS);
}
END_TEST

/* ---- an error in a group ---- */

static void refused_body(iq_rank_t *rank)
{
    float in[16] = {0}, out[16];
    isgq_result_t result;
    RANK_OK(rank, isgq_group_start());
    RANK_OK(rank, isgq_allreduce(in, out, 16, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL));
    if (rank->rank == 1)
        RANK_STATUS(rank, isgq_allreduce(in, NULL, 16, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL),
                    ISGQ_ERR_INVALID_ARGUMENT);
    RANK_OK(rank, isgq_barrier(rank->comm, NULL));
    iq_rank_meet(rank); /* nobody knows yet */
    if (rank->rank == 1) {
        RANK_STATUS(rank, isgq_group_end(), ISGQ_ERR_INVALID_ARGUMENT);
        RANK_CHECK(rank, strstr(isgq_get_last_error(), "recvbuff") != NULL, "\"%s\" is not the refused call's text",
                   isgq_get_last_error());
        RANK_CHECK(rank, sequence_of(rank) == 0, "a refused group was launched");
        RANK_STATUS(rank, isgq_group_end(), ISGQ_ERR_INVALID_USAGE);
        return;
    }
    result = isgq_group_end(); /* it may know already */
    if (result == ISGQ_SUCCESS)
        result = isgq_comm_synchronize(rank->comm);
    RANK_CHECK(rank, result != ISGQ_SUCCESS, "an error in rank 1's group did not reach rank %d", rank->rank);
    RANK_CHECK(rank, strstr(isgq_get_last_error(), "rank 1") != NULL && strstr(isgq_get_last_error(), "recvbuff") != NULL,
               "\"%s\" does not name rank 1", isgq_get_last_error());
}

START_TEST(an_error_reaches_all_ranks)
{
    iq_ranks_t ranks = {
        .kind = _i == 0 ? IQ_RANKS_PROCESSES : IQ_RANKS_THREADS, .nranks = 3, .body = refused_body, .broken = true};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- forked children ---- */

static int child_main(isgq_comm_t comm)
{
    float value[4] = {0};
    isgq_result_t async;
    isgq_stats_t stats = {.size = sizeof(stats)};
    uint64_t sequence;
    int failures = 0;
    failures += isgq_allreduce(value, value, 4, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL) != ISGQ_ERR_INVALID_USAGE;
    failures += !iq_test_one_line(isgq_get_last_error());
    failures += isgq_allgather(value, value, 0, ISGQ_FLOAT32, NULL, comm, NULL, NULL) != ISGQ_ERR_INVALID_USAGE;
    failures += isgq_reduce_scatter(value, value, 0, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL) != ISGQ_ERR_INVALID_USAGE;
    failures += isgq_broadcast(value, value, 1, ISGQ_FLOAT32, 0, comm, NULL) != ISGQ_ERR_INVALID_USAGE;
    failures += isgq_barrier(comm, NULL) != ISGQ_ERR_INVALID_USAGE;
    failures += isgq_comm_synchronize(comm) != ISGQ_ERR_INVALID_USAGE;
    failures += isgq_comm_get_sequence(comm, &sequence) != ISGQ_ERR_INVALID_USAGE;
    failures += isgq_comm_get_stats(comm, &stats) != ISGQ_ERR_INVALID_USAGE;
    failures += isgq_comm_get_async_error(comm, &async) != ISGQ_ERR_INVALID_USAGE;
    failures += isgq_comm_split(comm, 0, 0, &comm, NULL) != ISGQ_ERR_INVALID_USAGE;
    failures += isgq_comm_abort(comm) != ISGQ_ERR_INVALID_USAGE || isgq_comm_finalize(comm) != ISGQ_ERR_INVALID_USAGE;
    failures += isgq_comm_destroy(comm) != ISGQ_ERR_INVALID_USAGE;
    failures += isgq_group_end() != ISGQ_ERR_INVALID_USAGE || strstr(isgq_get_last_error(), "forked") == NULL;
    failures += isgq_group_start() != ISGQ_SUCCESS || isgq_group_end() != ISGQ_SUCCESS;
    return failures;
}

static void fork_body(iq_rank_t *rank)
{
    float *buffer = calloc(100000, sizeof(*buffer));
    int status = -1;
    for (int call = 0; call < 3; call++) /* while calls are running */
        RANK_OK(rank, isgq_allreduce(buffer, buffer, 100000, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL));
    RANK_OK(rank, isgq_group_start()); /* and a group is open */
    RANK_OK(rank, isgq_allreduce(buffer, buffer, 1000, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL));
    pid_t child = rank->rank == 1 ? fork() : -1;
    if (child == 0)
        _exit(child_main(rank->comm));
    RANK_OK(rank, isgq_group_end() != ISGQ_SUCCESS ? ISGQ_ERR_INTERNAL : isgq_comm_synchronize(rank->comm));
    if (rank->rank == 1) {
        RANK_CHECK(rank, waitpid(child, &status, 0) == child, "no child");
        RANK_CHECK(rank, WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child saw %d wrong answers (status %x)",
                   WEXITSTATUS(status), status);
    }
    for (int call = 0; call < 20; call++) { /* the child's end is nobody's death */
        buffer[0] = 1.0f;
        RANK_OK(rank, isgq_allreduce(buffer, buffer, 1000, ISGQ_FLOAT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL));
        RANK_OK(rank, isgq_comm_synchronize(rank->comm));
        RANK_CHECK(rank, buffer[0] == (float)rank->nranks, "wrong sum after a fork");
    }
    free(buffer);
}

START_TEST(forked_child_is_refused)
{
    iq_ranks_t ranks = {.kind = IQ_RANKS_PROCESSES, .nranks = 3, .body = fork_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* A process that has used the library forks: the children make communicators of their own. */
static void plain_body(iq_rank_t *rank)
{
    isgqx_call_record_t record = {.size = sizeof(record)};
    int32_t one = 1, sum = 0;
    RANK_OK(rank, isgq_allreduce(&one, &sum, 1, ISGQ_INT32, ISGQ_SUM, NULL, rank->comm, NULL, NULL));
    RANK_OK(rank, isgq_comm_synchronize(rank->comm));
    RANK_CHECK(rank, sum == rank->nranks, "the sum is %d", sum);
    RANK_OK(rank, isgqx_last_call(rank->comm, &record));
    RANK_CHECK(rank, strcmp(record.transport, rank->argument) == 0, "ranks talk over %s instead of %s", record.transport,
               (const char *)rank->argument);
}

START_TEST(children_start_afresh)
{
    static char local[] = "local", shm[] = "shm";
    iq_ranks_t ranks = {.nranks = 3, .body = plain_body, .argument = local};
    iq_ranks_run(&ranks, NULL);
    ranks.kind = IQ_RANKS_PROCESSES;
    ranks.argument = shm;
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- split ---- */

static void check_sum(iq_rank_t *rank, isgq_comm_t comm, int due)
{
    int32_t in = rank->rank + 1, out = 0;
    RANK_OK(rank, isgq_allreduce(&in, &out, 1, ISGQ_INT32, ISGQ_SUM, NULL, comm, NULL, NULL));
    RANK_OK(rank, isgq_comm_synchronize(comm));
    RANK_CHECK(rank, out == due, "the sum is %d, not %d", out, due);
}

static void leave(iq_rank_t *rank, isgq_comm_t comm)
{
    RANK_OK(rank, isgq_comm_finalize(comm));
    RANK_OK(rank, isgq_comm_destroy(comm));
}

/* Six ranks: odd and even ones, in reversed order; then the even ones again in twos; rank 5 stays out of a third. */
static void split_body(iq_rank_t *rank)
{
    isgq_comm_t half = NULL, pair = NULL, most = (isgq_comm_t)(uintptr_t)64;
    int count = 0, place = 0;
    RANK_OK(rank, isgq_comm_split(rank->comm, rank->rank % 2, -rank->rank, &half, NULL));
    RANK_OK(rank, isgq_comm_count(half, &count));
    RANK_OK(rank, isgq_comm_user_rank(half, &place));
    RANK_CHECK(rank, count == 3 && place == 2 - rank->rank / 2, "rank %d of %d in the half", place, count);
    check_sum(rank, half, rank->rank % 2 ? 2 + 4 + 6 : 1 + 3 + 5);
    check_sum(rank, rank->comm, 21);
    if (rank->rank % 2 == 0) {
        RANK_OK(rank, isgq_comm_split(half, place / 2, 0, &pair, NULL));
        check_sum(rank, pair, rank->rank == 0 ? 1 : 3 + 5);
        leave(rank, pair);
    }
    leave(rank, half);
    RANK_OK(rank, isgq_comm_split(rank->comm, rank->rank == 5 ? -1 : 7, 0, &most, NULL));
    RANK_CHECK(rank, (most == NULL) == (rank->rank == 5), "a negative color means no communicator");
    if (most != NULL) {
        RANK_OK(rank, isgq_comm_user_rank(most, &place));
        RANK_CHECK(rank, place == rank->rank, "ties go by old rank");
        check_sum(rank, most, 15);
        leave(rank, most);
    }
    check_sum(rank, rank->comm, 21);
}

START_TEST(splitting)
{
    iq_ranks_t ranks = {.kind = _i == 0 ? IQ_RANKS_PROCESSES : IQ_RANKS_THREADS, .nranks = 6, .body = split_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* A split inherits the default quantizer, unless the call brings its own settings. */
static void inherit_body(iq_rank_t *rank)
{
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    isgq_comm_t child = NULL, plain = NULL;
    float in[256], out[256];
    config.quantizer = iq_quantizer(rank, "uniform:bits=2,rounding=nearest");
    RANK_OK(rank, isgq_comm_init_rank(&rank->comm, rank->nranks, iq_rank_id(rank), rank->rank, &config));
    isgq_quantizer_destroy(config.quantizer);
    config = (isgq_comm_config_t)ISGQ_COMM_CONFIG_INIT;
    iq_samples_fill(ISGQ_FLOAT32, 1, 0, 0, 256, in);
    RANK_OK(rank, isgq_comm_split(rank->comm, 0, rank->rank, &child, NULL));
    RANK_OK(rank, isgq_comm_split(rank->comm, 0, rank->rank, &plain, &config));
    RANK_OK(rank, isgq_allreduce(in, out, 256, ISGQ_FLOAT32, ISGQ_AVG, NULL, child, NULL, NULL));
    RANK_OK(rank, isgq_comm_synchronize(child));
    RANK_CHECK(rank, memcmp(in, out, sizeof(in)) != 0, "the quantizer was not inherited");
    RANK_OK(rank, isgq_allreduce(in, out, 256, ISGQ_FLOAT32, ISGQ_AVG, NULL, plain, NULL, NULL));
    RANK_OK(rank, isgq_comm_synchronize(plain));
    RANK_CHECK(rank, memcmp(in, out, sizeof(in)) == 0, "the quantizer was inherited in spite of a configuration");
    leave(rank, child);
    leave(rank, plain);
}

START_TEST(splits_inherit)
{
    iq_ranks_t ranks = {.nranks = 2, .body = inherit_body, .apart = true};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* Several communicators at once over the same ranks do not disturb each other. */
static void several_body(iq_rank_t *rank)
{
    isgq_comm_t comms[3] = {NULL};
    int32_t in[3], out[3][20];
    for (int c = 0; c < 3; c++) {
        in[c] = c + 1;
        RANK_OK(rank, isgq_comm_split(rank->comm, 0, c == 1 ? -rank->rank : rank->rank, &comms[c], NULL));
    }
    for (int call = 0; call < 20; call++) { /* ranks queue in different orders: only the order on one communicator matters */
        for (int k = 0; k < 3; k++) {
            int c = (k + rank->rank + call) % 3;
            RANK_OK(rank, isgq_allreduce(&in[c], &out[c][call], 1, ISGQ_INT32, ISGQ_SUM, NULL, comms[c], NULL, NULL));
        }
    }
    for (int c = 0; c < 3; c++) {
        RANK_OK(rank, isgq_comm_synchronize(comms[c]));
        for (int call = 0; call < 20; call++)
            RANK_CHECK(rank, out[c][call] == (c + 1) * rank->nranks, "call %d on communicator %d is wrong", call, c);
        leave(rank, comms[c]);
    }
}

START_TEST(several_communicators)
{
    iq_ranks_t ranks = {.kind = _i == 0 ? IQ_RANKS_PROCESSES : IQ_RANKS_THREADS, .nranks = 3, .body = several_body};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- other ways to join ---- */

/* The caller's own allgather, through memory that the threads share. */
typedef struct exchange {
    iq_rank_t *rank;
    unsigned char (*memory)[4096];
} exchange_t;

static int exchange_allgather(void *context, const void *send, void *recv, size_t bytes)
{
    exchange_t *exchange = context;
    if (bytes > sizeof(exchange->memory[0]))
        return 1;
    memcpy(exchange->memory[exchange->rank->rank], send, bytes);
    iq_rank_meet(exchange->rank);
    for (int r = 0; r < exchange->rank->nranks; r++)
        memcpy((unsigned char *)recv + (size_t)r * bytes, exchange->memory[r], bytes);
    iq_rank_meet(exchange->rank);
    return 0;
}

static void oob_body(iq_rank_t *rank)
{
    exchange_t exchange = {.rank = rank, .memory = rank->argument};
    RANK_OK(rank, isgq_comm_init_oob(&rank->comm, rank->nranks, rank->rank, exchange_allgather, &exchange, NULL));
    memset(&exchange, 0xff, sizeof(exchange)); /* called during initialisation only */
    check_sum(rank, rank->comm, rank->nranks * (rank->nranks + 1) / 2);
}

START_TEST(callers_allgather)
{
    size_t bytes = IQ_RANKS_MOST * 4096;
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0); /* of processes too */
    iq_ranks_t ranks = {.nranks = 1 + _i, .body = oob_body, .argument = memory, .apart = true};
    iq_ranks_run(&ranks, NULL);
    munmap(memory, bytes);
}
END_TEST

/* Names of the variable that holds the rank; the rest of the environment is equal on all ranks. */
static void env_body(iq_rank_t *rank)
{
    char number[16];
    isgq_comm_t second = NULL;
    snprintf(number, sizeof(number), "%d", rank->rank);
    setenv(rank->argument, number, 1);
    isgq_result_t result = isgq_comm_init_env(&rank->comm, NULL);
    if (getenv("ISGQ_SECRET") != NULL && result == ISGQ_ERR_UNSUPPORTED && strstr(isgq_get_last_error(), "libsodium") != NULL)
        return; /* the minimal build, which cannot prove a secret, says so */
    RANK_OK(rank, result);
    check_sum(rank, rank->comm, 6);
    RANK_OK(rank, isgq_comm_init_env(&second, NULL)); /* a second one of the same job */
    check_sum(rank, second, 6);
    check_sum(rank, rank->comm, 6);
    leave(rank, second);
}

static void run_env(const char *rank_name, const char *const *environment)
{
    iq_ranks_t ranks = {.kind = IQ_RANKS_PROCESSES,
                        .nranks = 3,
                        .body = env_body,
                        .argument = (void *)(uintptr_t)rank_name,
                        .environment = environment,
                        .apart = true};
    iq_ranks_run(&ranks, NULL);
}

START_TEST(environments)
{
    char job[64], file[96], port[64], path[64], address[64];
    const char *lab = iq_lab_hosts() > 0 ? address : NULL, *secret = "ISGQ_SECRET=rosebud"; /* NULL ends the lists */
    const char *const own[] = {"ISGQ_NRANKS=3", job, lab, secret, NULL};
    const char *const torchrun[] = {
        "WORLD_SIZE=3", "LOCAL_WORLD_SIZE=3", "MASTER_ADDR=127.0.0.1", port, "TORCHELASTIC_RUN_ID=test", job, lab, secret, NULL};
    const char *const open_mpi[] = {"OMPI_COMM_WORLD_SIZE=3", "OMPI_COMM_WORLD_LOCAL_SIZE=3", job, lab, secret, NULL};
    const char *const store[] = {"ISGQ_NRANKS=3", file, NULL};
    snprintf(job, sizeof(job), "ISGQ_JOB=conformance-%d", (int)getpid());
    snprintf(address, sizeof(address), "ISGQ_MASTER_ADDR=%s", iq_lab_address());
    snprintf(port, sizeof(port), "MASTER_PORT=%d", iq_lab_port());
    snprintf(path, sizeof(path), "/tmp/isgq-conformance-%d", (int)getpid());
    snprintf(file, sizeof(file), "ISGQ_RENDEZVOUS=file:%s", path);
    run_env("ISGQ_RANK", own);
    run_env("RANK", torchrun);
    run_env("OMPI_COMM_WORLD_RANK", open_mpi);
    run_env("ISGQ_RANK", store);
    ck_assert_msg(access(path, F_OK) != 0, "%s was left behind", path);
}
END_TEST

/* A secret and an address: what several hosts use. */
START_TEST(tcp_rendezvous)
{
    char place[96];
    const char *const right[] = {"ISGQ_NRANKS=3", place, "ISGQ_SECRET=rosebud", NULL};
    snprintf(place, sizeof(place), "ISGQ_RENDEZVOUS=tcp:%s:%d", iq_lab_address(), iq_lab_port());
    run_env("ISGQ_RANK", right);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("groups");
    TCase *environment = iq_add_case(suite, tcase_create("environment"), environments, 1);
    tcase_add_test(environment, tcp_rendezvous);
    TCase *forked = iq_add_case(suite, tcase_create("fork"), forked_child_is_refused, 1);
    if (!iq_lab_skips("children_start_afresh", "the test itself, outside of the hosts, must use the library first"))
        tcase_add_test(forked, children_start_afresh);
    iq_add_case(suite, tcase_create("refused"), an_error_reaches_all_ranks, 2);
    TCase *split = iq_add_case(suite, tcase_create("split"), splitting, 2);
    tcase_add_test(split, splits_inherit);
    iq_add_case(suite, tcase_create("several"), several_communicators, 2);
    iq_add_case(suite, tcase_create("bits"), grouped_calls_have_the_same_bits, IQ_RANK_COUNTS);
    TCase *nested = iq_add_case(suite, tcase_create("nested"), groups_nest, 1);
    tcase_add_test(nested, long_groups);
    if (!iq_lab_skips("one_thread_holds_all_ranks", "a thread lives on one host"))
        iq_add_case(suite, tcase_create("one_thread"), one_thread_holds_all_ranks, 1);
    iq_add_case(suite, tcase_create("oob"), callers_allgather, 4);
    return suite;
}
