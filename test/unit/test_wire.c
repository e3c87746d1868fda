/* SPDX-License-Identifier: Apache-2.0 */
/* The wire between GPUs of one host by its contract, on simulated GPUs: see support/wire_end.h. */
#include "support/check_main.h"
#include "support/wire_end.h"

#include "base/util.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

/* What is threads alone comes first: under the sanitizers a case is one process, and a simulated GPU does not survive a fork. */
enum { THREADS = 3 };
static const char *const layouts[] = {"00", "000", "0000", "01", "012", "0123", "001", "0011", "0101"};
static const char *const pairs[] = {"00", "01"};
static const char *const triples[] = {"000", "012"};

/* ---- messages ---- */

static int talk(rank_t *self)
{
    end_t end;
    void *slot;
    EXPECT(wire_start(&end, self) == 0);
    EXPECT(wire_open(&end) == ISGQ_SUCCESS);
    EXPECT(wire_exchange(&end) == 0);
    EXPECT(end.ops->begin_send(end.wire, end.stream, self->rank == 0, SLOT_BYTES + 1, &slot) == ISGQ_ERR_INTERNAL);
    return wire_finish(&end);
}

START_TEST(messages)
{
    wire_run(layouts[_i], 1, talk);
    wire_run(layouts[_i], 2, talk);
}
END_TEST

/* All messages of rank 0 come before the first of rank 1. */
static int burst(rank_t *self)
{
    end_t end;
    EXPECT(wire_start(&end, self) == 0);
    EXPECT(wire_open(&end) == ISGQ_SUCCESS);
    for (int i = 0; i < 2 * MESSAGES; i++)
        EXPECT(((i < MESSAGES) == (self->rank == 0) ? wire_send : wire_receive)(&end, 1 - self->rank, i % MESSAGES) == 0);
    EXPECT(wire_record(&end) == 0 && wire_arrive(&end) == 0);
    for (int i = 0; i < MESSAGES; i++)
        EXPECT(wire_check_message(&end, 1 - self->rank, i) == 0);
    return wire_finish(&end);
}

START_TEST(bursts)
{
    wire_run(pairs[_i], 1, burst);
}
END_TEST

/* A communicator of one rank has a wire that joins nobody. */
static int alone(rank_t *self)
{
    end_t end;
    EXPECT(wire_start(&end, self) == 0);
    EXPECT(wire_open(&end) == ISGQ_SUCCESS);
    EXPECT(end.ops->awaited(end.wire) == -1 && end.ops->check(end.wire) == ISGQ_SUCCESS);
    end.ops->let_go(end.wire);
    return wire_finish(&end);
}

START_TEST(one_rank)
{
    wire_run("0", 1, alone);
}
END_TEST

/* ---- waiting ---- */

static void see_awaited(end_t *end, int peer)
{
    while (end->ops->awaited(end->wire) != peer)
        sched_yield();
}

/* Rank 0 waits for room at rank 2, rank 1 for a message from rank 2. */
static int await_peers(rank_t *self)
{
    end_t end;
    EXPECT(wire_start(&end, self) == 0);
    EXPECT(wire_open(&end) == ISGQ_SUCCESS);
    for (int i = 0; i < 3 && self->rank == 0; i++)
        EXPECT(wire_send(&end, 2, i) == 0);
    if (self->rank == 1)
        EXPECT(wire_receive(&end, 2, 0) == 0);
    EXPECT(wire_record(&end) == 0);
    if (self->rank < 2)
        see_awaited(&end, 2);
    EXPECT(self->rank == 2 || end.cuda->event_poll(end.device, end.event) == ISGQ_IN_PROGRESS);
    EXPECT(world_barrier(self) == 0);
    for (int i = 0; i < 3 && self->rank == 2; i++)
        EXPECT(wire_receive(&end, 0, i) == 0);
    if (self->rank == 2)
        EXPECT(wire_send(&end, 1, 0) == 0 && wire_record(&end) == 0);
    EXPECT(wire_arrive(&end) == 0);
    EXPECT(end.ops->awaited(end.wire) == -1);
    return wire_finish(&end);
}

START_TEST(awaited)
{
    wire_run(triples[_i], 1, await_peers);
}
END_TEST

static int expect_void(end_t *end)
{
    rank_t *self = end->self;
    EXPECT(end->ops->check(end->wire) == ISGQ_ERR_REMOTE);
    EXPECT(strstr(iq_last_error(), "rank 0") != NULL);
    return 0;
}

/* Ranks 0 and 2 wait for rank 1, which sends nothing. Rank 0 gives up: its waits pass, now and later, those of rank 2 do not. */
static int give_up(rank_t *self)
{
    end_t end;
    EXPECT(wire_start(&end, self) == 0);
    EXPECT(wire_open(&end) == ISGQ_SUCCESS);
    if (self->rank != 1) {
        EXPECT(wire_receive(&end, 1, 0) == 0 && wire_record(&end) == 0);
        see_awaited(&end, 1);
        EXPECT(end.cuda->event_poll(end.device, end.event) == ISGQ_IN_PROGRESS);
    }
    EXPECT(end.ops->check(end.wire) == ISGQ_SUCCESS);
    EXPECT(world_barrier(self) == 0);
    if (self->rank == 0) {
        end.ops->let_go(end.wire);
        EXPECT(wire_arrive(&end) == 0);
        for (int i = 0; i < 5; i++)
            EXPECT(wire_send(&end, 1, i) == 0 && wire_receive(&end, 2, i) == 0);
        EXPECT(wire_record(&end) == 0 && wire_arrive(&end) == 0);
    }
    EXPECT(world_barrier(self) == 0);
    EXPECT(expect_void(&end) == 0);
    if (self->rank == 2) {
        EXPECT(end.ops->awaited(end.wire) == 1);
        EXPECT(end.cuda->event_poll(end.device, end.event) == ISGQ_IN_PROGRESS);
        end.ops->let_go(end.wire);
        EXPECT(wire_arrive(&end) == 0);
    }
    return wire_finish(&end);
}

START_TEST(let_go)
{
    wire_run(triples[_i], 1, give_up);
}
END_TEST

/* ---- the end ---- */

/* Rank 0 is gone when the others write into its memory. */
static int outlive(rank_t *self)
{
    end_t end;
    EXPECT(wire_start(&end, self) == 0);
    EXPECT(wire_open(&end) == ISGQ_SUCCESS);
    if (self->rank == 0)
        wire_close(&end);
    EXPECT(world_barrier(self) == 0);
    for (int i = 0; i < 2 && self->rank > 0; i++)
        EXPECT(wire_send(&end, 0, i) == 0);
    EXPECT(self->rank == 0 || (wire_record(&end) == 0 && wire_arrive(&end) == 0));
    EXPECT(world_barrier(self) == 0);
    return wire_finish(&end);
}

START_TEST(left_early)
{
    wire_run(layouts[_i], 1, outlive);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("wire");
    TCase *in_threads = tcase_create("threads");
    TCase *in_processes = tcase_create("processes");
    TCase *const cases[] = {in_threads, in_processes};
    setenv("CUDASIM_DEVICES", "2", 1);
    for (int forked = 0; forked < 2; forked++) {
        tcase_set_timeout(cases[forked], 100);
        tcase_add_loop_test(cases[forked], messages, forked ? THREADS : 0, forked ? (int)IQ_ARRAY_SIZE(layouts) : THREADS);
        tcase_add_loop_test(cases[forked], left_early, forked ? THREADS : 0, forked ? (int)IQ_ARRAY_SIZE(layouts) : THREADS);
        tcase_add_loop_test(cases[forked], bursts, forked, forked + 1);
        tcase_add_loop_test(cases[forked], awaited, forked, forked + 1);
        tcase_add_loop_test(cases[forked], let_go, forked, forked + 1);
        suite_add_tcase(suite, cases[forked]);
    }
    tcase_add_test(in_threads, one_rank);
    return suite;
}
