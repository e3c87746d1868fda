/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Communicators over NCCL through the public functions: around one of the application, and with one of their own. With the stand-in for NCCL
 * on simulated GPUs; the stand-in's own rules come last.
 */
#include "support/check_main.h"
#include "support/nccl_rank.h"

#include "base/util.h"
#include "isgqcoll_ext.h"

#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define COUNT 30011

static const char *const layouts[] = {"00", "000", "01", "0011"};
enum { THREADS = 2 };

/* ---- values ---- */

typedef struct values {
    float *host;
    void *device;
} values_t;

static float value_of(int rank, size_t i) { return (float)((int)((i * 37 + (size_t)rank * 101) % 251) - 125) / 8; } /* sums are exact */

static int values_new(end_t *end, values_t *values)
{
    rank_t *self = end->self;
    values->host = malloc(COUNT * sizeof(float));
    EXPECT(values->host != NULL);
    EXPECT(end->cuda->shared_alloc(end->device, COUNT * sizeof(float), &values->device) == ISGQ_SUCCESS);
    for (size_t i = 0; i < COUNT; i++)
        values->host[i] = value_of(self->rank, i);
    EXPECT(end->cuda->copy(end->device, end->stream, values->device, values->host, COUNT * sizeof(float)) == ISGQ_SUCCESS);
    return 0;
}

/* The stream's last result is the sum, up to `error`. */
static int values_check(end_t *end, values_t *values, float error)
{
    rank_t *self = end->self;
    EXPECT(end->cuda->copy(end->device, end->stream, values->host, values->device, COUNT * sizeof(float)) == ISGQ_SUCCESS);
    EXPECT(nccl_record(end) == 0 && nccl_arrive(end) == 0);
    for (size_t i = 0; i < COUNT; i++) {
        float sum = 0;
        for (int rank = 0; rank < self->world->nranks; rank++)
            sum += value_of(rank, i);
        EXPECT(values->host[i] - sum <= error && sum - values->host[i] <= error);
    }
    return 0;
}

static void values_free(end_t *end, values_t *values)
{
    end->cuda->shared_free(end->device, values->device);
    free(values->host);
}

/* ---- calls ---- */

static int allreduce(end_t *end, isgq_comm_t comm, const char *text, float error)
{
    rank_t *self = end->self;
    values_t values;
    isgq_quantizer_t quantizer;
    EXPECT(values_new(end, &values) == 0);
    EXPECT(isgq_quantizer_create(&quantizer, text) == ISGQ_SUCCESS);
    EXPECT(isgq_allreduce(values.device, values.device, COUNT, ISGQ_FLOAT32, ISGQ_SUM, quantizer, comm, end->stream, NULL) ==
           ISGQ_SUCCESS);
    EXPECT(values_check(end, &values, error) == 0);
    EXPECT(isgq_comm_synchronize(comm) == ISGQ_SUCCESS);
    isgq_quantizer_destroy(quantizer);
    values_free(end, &values);
    return 0;
}

static int use(end_t *end, isgq_comm_t comm)
{
    rank_t *self = end->self;
    isgqx_call_record_t record = {.size = sizeof(record)};
    EXPECT(allreduce(end, comm, "none", 0) == 0);
    EXPECT(allreduce(end, comm, "uniform:bits=8", 4) == 0);
    EXPECT(isgqx_last_call(comm, &record) == ISGQ_SUCCESS);
    EXPECT(strstr(record.transport, "nccl") != NULL && strstr(record.transport, "cuda_ipc") == NULL);
    EXPECT(record.wire_bytes > 0);
    return 0;
}

/* The application's own sum over its own communicator, in between. */
static int sum_natively(end_t *end)
{
    rank_t *self = end->self;
    const iq_nccl_functions_t *nccl;
    values_t values;
    EXPECT(iq_nccl_load(&nccl) == ISGQ_SUCCESS);
    EXPECT(values_new(end, &values) == 0);
    EXPECT(nccl->all_reduce(values.device, values.device, COUNT, ISGQ_FLOAT32, IQ_NCCL_SUM, end->native, end->stream) ==
           IQ_NCCL_SUCCESS);
    EXPECT(values_check(end, &values, 0) == 0);
    values_free(end, &values);
    return 0;
}

static int wrap(rank_t *self)
{
    end_t end;
    isgq_comm_t comm;
    int nranks, rank;
    const iq_nccl_functions_t *nccl;
    EXPECT(nccl_start(&end, self) == 0);
    EXPECT(nccl_make_native(&end) == 0);
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    config.device_type = ISGQ_DEVICE_HOST;
    EXPECT(isgq_comm_init_nccl(&comm, end.native, self->rank % 2 == 0 ? NULL : &config) == ISGQ_SUCCESS);
    EXPECT(isgq_comm_count(comm, &nranks) == ISGQ_SUCCESS && isgq_comm_user_rank(comm, &rank) == ISGQ_SUCCESS);
    EXPECT(nranks == self->world->nranks && rank == self->rank);
    EXPECT(use(&end, comm) == 0);
    EXPECT(sum_natively(&end) == 0);
    EXPECT(use(&end, comm) == 0);
    EXPECT(isgq_comm_finalize(comm) == ISGQ_SUCCESS);
    EXPECT(isgq_comm_destroy(comm) == ISGQ_SUCCESS);
    EXPECT(sum_natively(&end) == 0);
    EXPECT(iq_nccl_load(&nccl) == ISGQ_SUCCESS);
    EXPECT(world_barrier(self) == 0);
    EXPECT(nccl->comm_destroy(end.native) == IQ_NCCL_SUCCESS);
    return nccl_finish(&end);
}

START_TEST(wrapped)
{
    nccl_run(layouts[_i], wrap);
}
END_TEST

static int gather(void *context, const void *send, void *recv, size_t bytes)
{
    return world_gather(context, send, recv, bytes) == ISGQ_SUCCESS ? 0 : 1;
}

/* Without the application's help: where nothing nearer joins the GPUs. */
static int join_ranks(end_t *end, isgq_comm_t *comm)
{
    rank_t *self = end->self;
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    EXPECT(end->cuda->use(end->device) == ISGQ_SUCCESS);
    config.device_type = ISGQ_DEVICE_CUDA;
    config.transports = "local,shm,nccl";
    EXPECT(isgq_comm_init_oob(comm, self->world->nranks, self->rank, gather, self, &config) == ISGQ_SUCCESS);
    return 0;
}

static int join(rank_t *self)
{
    end_t end;
    isgq_comm_t comm;
    EXPECT(nccl_start(&end, self) == 0);
    EXPECT(join_ranks(&end, &comm) == 0);
    EXPECT(use(&end, comm) == 0);
    EXPECT(isgq_comm_finalize(comm) == ISGQ_SUCCESS);
    EXPECT(isgq_comm_destroy(comm) == ISGQ_SUCCESS);
    return nccl_finish(&end);
}

START_TEST(joined)
{
    nccl_run(layouts[_i], join);
}
END_TEST

/* A rank dies: what waits for it goes on, and the call has failed. */
static int survive(rank_t *self)
{
    end_t end;
    isgq_comm_t comm;
    values_t values;
    if (self->epoch > 0) /* nobody is left to meet */
        return 0;
    EXPECT(nccl_start(&end, self) == 0);
    EXPECT(join_ranks(&end, &comm) == 0);
    EXPECT(use(&end, comm) == 0);
    EXPECT(values_new(&end, &values) == 0);
    if (self->rank != self->world->victim)
        EXPECT(isgq_allreduce(values.device, values.device, COUNT, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, end.stream, NULL) ==
               ISGQ_SUCCESS);
    EXPECT(world_barrier(self) == 0);
    if (self->rank == self->world->victim)
        kill(getpid(), SIGKILL);
    EXPECT(nccl_record(&end) == 0 && nccl_arrive(&end) == 0);
    EXPECT(isgq_comm_synchronize(comm) == ISGQ_ERR_REMOTE);
    EXPECT(strstr(isgq_get_last_error(), "rank 2") != NULL);
    values_free(&end, &values);
    EXPECT(isgq_comm_destroy(comm) == ISGQ_SUCCESS);
    nccl_finish_alone(&end);
    return 0;
}

START_TEST(killed)
{
    world_t world = nccl_world("012", survive);
    world.victim = 2;
    world_run(&world);
}
END_TEST

/* ---- refusals ---- */

START_TEST(refused)
{
    isgq_comm_t comm;
    isgq_comm_config_t config = ISGQ_COMM_CONFIG_INIT;
    struct ncclComm *some = (struct ncclComm *)&config; /* is not looked at */
    config.size--;
    ck_assert_int_eq(isgq_comm_init_nccl(NULL, some, NULL), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_int_eq(isgq_comm_init_nccl(&comm, NULL, NULL), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_int_eq(isgq_comm_init_nccl(&comm, some, &config), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_int_eq(isgq_group_start(), ISGQ_SUCCESS);
    ck_assert_int_eq(isgq_comm_init_nccl(&comm, some, NULL), ISGQ_ERR_INVALID_USAGE);
    (void)isgq_group_end();
    ck_assert_int_eq(isgqx_use_nccl(NULL, NULL), ISGQ_ERR_INVALID_ARGUMENT);
}
END_TEST

static void *find_nothing(void *context, const char *symbol)
{
    (void)context, (void)symbol;
    return NULL;
}

START_TEST(absent)
{
    isgq_comm_t comm;
    ck_assert_int_eq(isgqx_use_nccl(find_nothing, NULL), ISGQ_SUCCESS);
    ck_assert_int_eq(isgq_comm_init_nccl(&comm, (struct ncclComm *)&comm, NULL), ISGQ_ERR_UNSUPPORTED);
    ck_assert_str_eq(isgq_get_last_error(), "nccl: the library has no function ncclGetVersion");
    ck_assert_int_eq(isgqx_use_nccl(find_nothing, NULL), ISGQ_ERR_INVALID_USAGE);
}
END_TEST

/* ---- the stand-in ---- */

static bool has_passed(end_t *end)
{
    bool passed = false;
    for (int i = 0; i < 200 && !passed; i++) {
        passed = end->cuda->event_poll(end->device, end->event) == ISGQ_SUCCESS;
        sched_yield();
    }
    return passed;
}

/* A send waits for its receive, however short; a group is one operation, and begins when it ends. */
static int rules(rank_t *self)
{
    end_t end;
    const iq_nccl_functions_t *nccl;
    void *memory;
    char word[4] = "abc";
    int peer = 1 - self->rank;
    EXPECT(nccl_start(&end, self) == 0);
    EXPECT(nccl_make_native(&end) == 0);
    EXPECT(iq_nccl_load(&nccl) == ISGQ_SUCCESS);
    EXPECT(end.cuda->shared_alloc(end.device, 512, &memory) == ISGQ_SUCCESS);
    EXPECT(nccl->send(word, 4, IQ_NCCL_UINT8, peer, end.native, end.stream) == 4); /* memory that CUDA does not know */
    EXPECT(nccl->send(memory, 4, IQ_NCCL_UINT8, 2, end.native, end.stream) == 4);
    EXPECT(nccl->group_end() == IQ_NCCL_INVALID_USAGE);

    if (self->rank == 0) {
        EXPECT(nccl->send(memory, 4, IQ_NCCL_UINT8, 1, end.native, end.stream) == IQ_NCCL_SUCCESS);
        EXPECT(nccl_record(&end) == 0 && !has_passed(&end));
    }
    EXPECT(world_barrier(self) == 0);
    if (self->rank == 1) {
        EXPECT(nccl->group_start() == IQ_NCCL_SUCCESS);
        EXPECT(nccl->recv(memory, 4, IQ_NCCL_UINT8, 0, end.native, end.stream) == IQ_NCCL_SUCCESS);
        EXPECT(nccl_record(&end) == 0 && nccl_arrive(&end) == 0); /* nothing was enqueued */
    }
    EXPECT(world_barrier(self) == 0);
    EXPECT(self->rank == 1 || !has_passed(&end));
    EXPECT(world_barrier(self) == 0);
    EXPECT(self->rank == 0 || (nccl->group_end() == IQ_NCCL_SUCCESS && nccl_record(&end) == 0));
    EXPECT(nccl_arrive(&end) == 0);

    EXPECT(nccl->group_start() == IQ_NCCL_SUCCESS); /* in a group the order of sends and receives does not matter */
    EXPECT(nccl->send(memory, 4, IQ_NCCL_UINT8, peer, end.native, end.stream) == IQ_NCCL_SUCCESS);
    EXPECT(nccl->recv((char *)memory + 256, 4, IQ_NCCL_UINT8, peer, end.native, end.stream) == IQ_NCCL_SUCCESS);
    EXPECT(nccl->group_end() == IQ_NCCL_SUCCESS);
    EXPECT(nccl_record(&end) == 0 && nccl_arrive(&end) == 0);
    EXPECT(world_barrier(self) == 0);
    EXPECT(nccl->comm_destroy(end.native) == IQ_NCCL_SUCCESS);
    end.cuda->shared_free(end.device, memory);
    return nccl_finish(&end);
}

START_TEST(stand_in)
{
    nccl_run(_i == 0 ? "00" : "01", rules);
}
END_TEST

static TCase *add_case(Suite *suite, TCase *tcase)
{
    tcase_set_timeout(tcase, 100);
    suite_add_tcase(suite, tcase);
    return tcase;
}

Suite *iq_suite(void)
{
    Suite *suite = suite_create("nccl_native");
    TCase *threads = add_case(suite, tcase_create("threads"));
    TCase *processes = add_case(suite, tcase_create("processes"));
    TCase *refusals = add_case(suite, tcase_create("refusals"));
    TCase *nothing = add_case(suite, tcase_create("absent"));
    setenv("CUDASIM_DEVICES", "4", 1);
    setenv("ISGQ_SCRATCH_BYTES", "4m", 1); /* simulated memory is filled when it is made */
    tcase_add_loop_test(threads, wrapped, 0, THREADS);
    tcase_add_loop_test(threads, joined, 0, THREADS);
    tcase_add_loop_test(threads, stand_in, 0, 1);
    tcase_add_loop_test(processes, wrapped, THREADS, (int)IQ_ARRAY_SIZE(layouts));
    tcase_add_loop_test(processes, joined, THREADS, (int)IQ_ARRAY_SIZE(layouts));
    tcase_add_loop_test(processes, stand_in, 1, 2);
    tcase_add_test(processes, killed);
    tcase_add_test(refusals, refused);
    tcase_add_test(nothing, absent);
    return suite;
}
