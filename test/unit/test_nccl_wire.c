/* SPDX-License-Identifier: Apache-2.0 */
/* The wire over NCCL by its contract, with the stand-in for NCCL on simulated GPUs: see support/nccl_rank.h. */
#include "support/check_main.h"
#include "support/nccl_rank.h"

#include "base/util.h"

#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

/* What runs in this process comes first: under the sanitizers a case is one process, and a simulated GPU does not survive a fork. */
enum { THREADS = 3 };
static const char *const layouts[] = {"00", "000", "0000", "01", "012", "0123", "001", "0011", "010122"};

/* ---- messages ---- */

static int talk(rank_t *self)
{
    end_t end;
    EXPECT(nccl_start(&end, self) == 0);
    EXPECT(nccl_open(&end) == ISGQ_SUCCESS);
    EXPECT(nccl_exchange(&end) == 0);
    EXPECT(nccl_exchange(&end) == 0);
    return nccl_finish(&end);
}

START_TEST(messages)
{
    nccl_run(layouts[_i], talk);
}
END_TEST

/* Over a communicator of the application, which is as usable afterwards as it was before. */
static int borrow(rank_t *self)
{
    end_t end;
    const iq_nccl_functions_t *nccl;
    iq_nccl_result_t error;
    EXPECT(nccl_start(&end, self) == 0);
    EXPECT(nccl_make_native(&end) == 0);
    EXPECT(nccl_open(&end) == ISGQ_SUCCESS);
    EXPECT(nccl_exchange(&end) == 0);
    nccl_close(&end);
    EXPECT(nccl_open(&end) == ISGQ_SUCCESS);
    EXPECT(nccl_exchange(&end) == 0);
    nccl_close(&end);
    EXPECT(iq_nccl_load(&nccl) == ISGQ_SUCCESS);
    EXPECT(nccl->comm_get_async_error(end.native, &error) == IQ_NCCL_SUCCESS);
    EXPECT(nccl->comm_destroy(end.native) == IQ_NCCL_SUCCESS);
    return nccl_finish(&end);
}

START_TEST(borrowed)
{
    nccl_run(layouts[_i], borrow);
}
END_TEST

/* The application's communicator may be non-blocking. */
START_TEST(in_progress)
{
    setenv("CUDASIM_NCCL_IN_PROGRESS", "1", 1);
    nccl_run("000", borrow);
    unsetenv("CUDASIM_NCCL_IN_PROGRESS");
}
END_TEST

/* ---- graphs ---- */

#define OK(call) EXPECT((call) == cudaSuccess)

static int capture(end_t *end, cudaGraphExec_t *exec)
{
    rank_t *self = end->self;
    cudaGraph_t graph;
    OK(cudaStreamBeginCapture((cudaStream_t)end->stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < ROUNDS; i++)
        EXPECT(nccl_round(end, i) == 0);
    OK(cudaStreamEndCapture((cudaStream_t)end->stream, &graph));
    OK(cudaGraphInstantiate(exec, graph, 0));
    OK(cudaGraphDestroy(graph));
    return 0;
}

static int replay(rank_t *self)
{
    end_t end;
    cudaGraphExec_t exec;
    EXPECT(nccl_start(&end, self) == 0);
    EXPECT(nccl_open(&end) == ISGQ_SUCCESS);
    OK(cudaSetDevice(end.device));
    EXPECT(capture(&end, &exec) == 0);
    for (int salt = 1; salt <= 4; salt++) {
        for (int i = 0; i < ROUNDS; i++)
            nccl_fill(&end, i, salt);
        OK(cudaGraphLaunch(exec, (cudaStream_t)end.stream));
        EXPECT(nccl_record(&end) == 0 && nccl_arrive(&end) == 0);
        for (int i = 0; i < ROUNDS; i++)
            EXPECT(nccl_check_round(&end, i, salt) == 0);
        if (salt == 2)
            EXPECT(nccl_exchange(&end) == 0); /* between replays */
    }
    EXPECT(world_barrier(self) == 0);
    OK(cudaGraphExecDestroy(exec));
    return nccl_finish(&end);
}

START_TEST(replays)
{
    nccl_run(layouts[_i], replay);
}
END_TEST

/* ---- mistakes of the caller ---- */

static int expect_refused(rank_t *self, isgq_result_t result, const char *mention)
{
    EXPECT(result == ISGQ_ERR_INTERNAL);
    EXPECT(strstr(iq_last_error(), mention) != NULL);
    return 0;
}

static int misuse(rank_t *self)
{
    end_t end;
    void *slot;
    const void *message;
    EXPECT(nccl_start(&end, self) == 0);
    EXPECT(nccl_open(&end) == ISGQ_SUCCESS);
    const iq_wire_ops_t *ops = end.ops;
    int peer = 1 - self->rank;
    EXPECT(expect_refused(self, ops->begin_send(end.wire, end.stream, peer, SLOT_BYTES + 1, &slot), "4097 bytes") == 0);
    EXPECT(expect_refused(self, ops->end_send(end.wire, end.stream, peer), "was begun") == 0);
    EXPECT(expect_refused(self, ops->end_receive(end.wire, end.stream, peer), "was begun") == 0);
    EXPECT(expect_refused(self, ops->begin_receive(end.wire, end.stream, peer, 8, &message), "not in this round") == 0);
    EXPECT(ops->begin_send(end.wire, end.stream, peer, SLOT_BYTES, &slot) == ISGQ_SUCCESS);
    EXPECT(expect_refused(self, ops->begin_send(end.wire, end.stream, peer, 1, &slot), "4096 of 4096 bytes") == 0);
    EXPECT(expect_refused(self, ops->exchange(end.wire, end.stream), "not ended") == 0);
    EXPECT(ops->end_send(end.wire, end.stream, peer) == ISGQ_SUCCESS);
    EXPECT(ops->expect(end.wire, peer, SLOT_BYTES) == ISGQ_SUCCESS);
    EXPECT(expect_refused(self, ops->begin_receive(end.wire, end.stream, peer, SLOT_BYTES, &message), "not in this round") == 0);
    EXPECT(ops->exchange(end.wire, end.stream) == ISGQ_SUCCESS);
    EXPECT(expect_refused(self, ops->begin_receive(end.wire, end.stream, peer, SLOT_BYTES - 1, &message), "4095 bytes") == 0);
    EXPECT(expect_refused(self, ops->expect(end.wire, peer, 1), "4096 of 4096 bytes") == 0);
    EXPECT(ops->begin_receive(end.wire, end.stream, peer, SLOT_BYTES, &message) == ISGQ_SUCCESS);
    EXPECT(ops->end_receive(end.wire, end.stream, peer) == ISGQ_SUCCESS);
    for (int i = 0; i < 16; i++) /* 2 ranks, 8 messages for each */
        EXPECT(ops->expect(end.wire, peer, 1) == ISGQ_SUCCESS);
    EXPECT(expect_refused(self, ops->expect(end.wire, peer, 1), "the 17th of its round") == 0);
    EXPECT(nccl_record(&end) == 0 && nccl_arrive(&end) == 0);
    EXPECT(world_barrier(self) == 0);
    return nccl_finish(&end);
}

START_TEST(mistakes)
{
    nccl_run("00", misuse);
}
END_TEST

/* ---- failures ---- */

/* Ranks 0 and 2 wait for rank 1, which sends nothing. Rank 0 gives up: its stream goes on, that of rank 2 does not. */
static int give_up(rank_t *self)
{
    end_t end;
    void *slot;
    EXPECT(nccl_start(&end, self) == 0);
    EXPECT(nccl_open(&end) == ISGQ_SUCCESS);
    if (self->rank != 1)
        EXPECT(end.ops->expect(end.wire, 1, 64) == ISGQ_SUCCESS && end.ops->exchange(end.wire, end.stream) == ISGQ_SUCCESS);
    EXPECT(nccl_record(&end) == 0);
    EXPECT(self->rank == 1 || end.cuda->event_poll(end.device, end.event) == ISGQ_IN_PROGRESS);
    EXPECT(end.ops->check(end.wire) == ISGQ_SUCCESS);
    EXPECT(world_barrier(self) == 0);
    if (self->rank == 0) {
        end.ops->let_go(end.wire);
        end.ops->let_go(end.wire);
        EXPECT(nccl_arrive(&end) == 0);
        EXPECT(end.ops->check(end.wire) == ISGQ_ERR_REMOTE);
        EXPECT(strstr(iq_last_error(), "rank 0 has given up") != NULL);
        EXPECT(end.ops->begin_send(end.wire, end.stream, 1, 64, &slot) == ISGQ_SUCCESS);
        EXPECT(end.ops->end_send(end.wire, end.stream, 1) == ISGQ_SUCCESS);
        EXPECT(end.ops->exchange(end.wire, end.stream) == ISGQ_ERR_REMOTE);
        EXPECT(end.ops->sum_words(end.wire, end.stream, slot, 1) == ISGQ_ERR_REMOTE);
    }
    EXPECT(world_barrier(self) == 0);
    if (self->rank == 2) {
        EXPECT(end.cuda->event_poll(end.device, end.event) == ISGQ_IN_PROGRESS);
        end.ops->let_go(end.wire);
        EXPECT(nccl_arrive(&end) == 0);
    }
    return nccl_finish(&end);
}

START_TEST(let_go)
{
    nccl_run(layouts[_i], give_up);
}
END_TEST

/* The application's communicator is left alone: only the application can make its streams go on. */
static int give_up_borrowed(rank_t *self)
{
    end_t end;
    const iq_nccl_functions_t *nccl;
    EXPECT(nccl_start(&end, self) == 0);
    EXPECT(nccl_make_native(&end) == 0);
    EXPECT(nccl_open(&end) == ISGQ_SUCCESS);
    EXPECT(iq_nccl_load(&nccl) == ISGQ_SUCCESS);
    if (self->rank == 0) {
        EXPECT(end.ops->expect(end.wire, 1, 64) == ISGQ_SUCCESS && end.ops->exchange(end.wire, end.stream) == ISGQ_SUCCESS);
        EXPECT(nccl_record(&end) == 0);
        end.ops->let_go(end.wire);
        EXPECT(end.ops->check(end.wire) == ISGQ_ERR_REMOTE);
        EXPECT(end.ops->exchange(end.wire, end.stream) == ISGQ_SUCCESS); /* there is nothing to exchange */
        EXPECT(end.cuda->event_poll(end.device, end.event) == ISGQ_IN_PROGRESS);
    }
    EXPECT(nccl->comm_abort(end.native) == IQ_NCCL_SUCCESS);
    EXPECT(self->rank != 0 || nccl_arrive(&end) == 0);
    return nccl_finish(&end);
}

START_TEST(let_go_borrowed)
{
    nccl_run("00", give_up_borrowed);
}
END_TEST

static int find_error(rank_t *self)
{
    end_t end;
    EXPECT(nccl_start(&end, self) == 0);
    EXPECT(nccl_open(&end) == ISGQ_SUCCESS);
    EXPECT(end.ops->check(end.wire) == ISGQ_SUCCESS && world_barrier(self) == 0);
    if (self->rank == 0)
        setenv("CUDASIM_NCCL_ERROR", "6", 1);
    EXPECT(world_barrier(self) == 0);
    EXPECT(end.ops->check(end.wire) == ISGQ_ERR_REMOTE);
    EXPECT(strstr(iq_last_error(), "nccl: communicator: remote process exited") != NULL);
    EXPECT(world_barrier(self) == 0);
    if (self->rank == 0)
        unsetenv("CUDASIM_NCCL_ERROR");
    EXPECT(world_barrier(self) == 0);
    return nccl_finish(&end);
}

START_TEST(async_error)
{
    nccl_run("00", find_error);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("nccl_wire");
    TCase *in_threads = tcase_create("threads");
    TCase *in_processes = tcase_create("processes");
    TCase *failures = tcase_create("failures");
    TCase *const cases[] = {in_threads, in_processes};
    setenv("CUDASIM_DEVICES", "4", 1);
    for (int forked = 0; forked < 2; forked++) {
        int first = forked ? THREADS : 0, end = forked ? (int)IQ_ARRAY_SIZE(layouts) : THREADS;
        tcase_set_timeout(cases[forked], 100);
        tcase_add_loop_test(cases[forked], messages, first, end);
        tcase_add_loop_test(cases[forked], borrowed, first, end);
        tcase_add_loop_test(cases[forked], replays, first, end);
        tcase_add_loop_test(cases[forked], let_go, first + 1, first + 2);
        suite_add_tcase(suite, cases[forked]);
    }
    tcase_add_test(in_threads, in_progress);
    tcase_set_timeout(failures, 100);
    tcase_add_test(failures, mistakes);
    tcase_add_test(failures, let_go_borrowed);
    tcase_add_test(failures, async_error);
    suite_add_tcase(suite, failures);
    return suite;
}
