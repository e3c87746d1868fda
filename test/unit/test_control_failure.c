/* SPDX-License-Identifier: Apache-2.0 */
/* Bad news over the control channel: deaths, stalls, mismatches, aborts; each must name the rank at fault, on every rank. */
#include "support/check_main.h"
#include "support/control_ranks.h"

#include "base/config.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define NRANKS 4

static control_rank_t ranks[MAX_RANKS];
static pid_t pids[MAX_RANKS];

/* What forked ranks expect to be told; set before the fork. */
static struct {
    isgq_result_t result;
    int culprit;
} expected;

static void expect_failure(control_rank_t *rank)
{
    if (!control_rank_wait_failed(rank, SOON_NS) || rank->failure != expected.result || rank->culprit != expected.culprit) {
        fprintf(stderr, "rank %d was told: %d, rank %d, %s\n", rank->rank, (int)rank->failure, rank->culprit, rank->text);
        _exit(2);
    }
}

static void sleep_for_ever(control_rank_t *rank)
{
    (void)rank;
    for (;;)
        pause();
}

static const char *victim_host; /* its ISGQ_HOSTID, NULL: it shares the others' */
static int leash[2], born[2];   /* see leave_a_child */
static void leave_a_child(control_rank_t *rank);

/* Fork all ranks but `parent`, which opens here; rank `victim` sleeps, the others expect the failure. */
static void fork_ranks(iq_address_kind_t kind, int parent, int victim, control_rank_fn victim_fn)
{
    control_ranks_init(ranks, NRANKS, kind);
    for (int i = 0; i < NRANKS; i++) { /* rank 3 awaits 1, that one 2, that one 0 */
        static const int32_t awaited[NRANKS] = {1, 2, 0, 1};
        ranks[i].status = (iq_rank_status_t){.completed = 4, .current = 5, .awaited = awaited[i], .text = "step"};
    }
    for (int i = 0; i < NRANKS; i++) {
        ck_assert_int_eq(iq_config_set("HOSTID", i == victim ? victim_host : NULL), ISGQ_SUCCESS);
        pids[i] = i == parent ? 0 : control_rank_fork(ranks, i, i == victim ? victim_fn : expect_failure);
    }
    ck_assert_int_eq(iq_config_set("HOSTID", NULL), ISGQ_SUCCESS);
    if (parent != 0)
        close(ranks[0].place.listen_fd);
    control_rank_open(&ranks[parent]);
    ck_assert_msg(ranks[parent].result == ISGQ_SUCCESS, "%s", ranks[parent].error);
    control_rank_barrier(&ranks[parent]);
    char byte;
    if (victim_fn == leave_a_child)
        ck_assert_int_eq(read(born[0], &byte, 1), 1);
}

static void reap_others(int parent, int victim)
{
    for (int i = 0; i < NRANKS; i++)
        if (i != parent && i != victim)
            ck_assert(control_rank_reap(pids[i]));
    waitpid(pids[victim], NULL, 0);
    control_rank_close(&ranks[parent]);
}

/* ---- deaths ---- */

static void check_death(iq_address_kind_t kind, int parent, int victim, control_rank_fn victim_fn)
{
    char text[64];

    expected.result = ISGQ_ERR_REMOTE;
    expected.culprit = victim;
    fork_ranks(kind, parent, victim, victim_fn);
    uint64_t start_ns = iq_now_ns();
    kill(pids[victim], SIGKILL);
    ck_assert(control_rank_wait_failed(&ranks[parent], SOON_NS));
    ck_assert_uint_lt(iq_now_ns() - start_ns, 5 * IQ_SECOND);
    snprintf(text, sizeof(text), "rank %d (pid %d) died%s", victim, (int)pids[victim],
             victim_host == NULL ? "" : " or closed its connection");
    ck_assert_str_eq(ranks[parent].text, text);
    ck_assert_int_eq(ranks[parent].culprit, victim);
    reap_others(parent, victim);
    ck_assert_int_eq(ranks[parent].failures, 1);
}

START_TEST(killed_rank_is_named_by_all)
{
    int before = count_descriptors();
    check_death(IQ_ADDRESS_UNIX, 0, 2, sleep_for_ever);
    check_death(IQ_ADDRESS_UNIX, 3, 1, sleep_for_ever);
    check_death(IQ_ADDRESS_UNIX, 3, 0, sleep_for_ever);
    check_death(IQ_ADDRESS_TCP, 0, 3, sleep_for_ever);
    check_death(IQ_ADDRESS_TCP, 1, 0, sleep_for_ever);
    ck_assert_int_eq(count_descriptors(), before);
}
END_TEST

/* Leave a child behind that lives until the test lets it go. */
static void leave_a_child(control_rank_t *rank)
{
    char byte = 0;
    close(leash[1]);
    if (fork() == 0) {
        while (read(leash[0], &byte, 1) > 0) {
        }
        _exit(0);
    }
    if (write(born[1], &byte, 1) == 1)
        sleep_for_ever(rank);
}

static void check_death_of_a_father(iq_address_kind_t kind, int parent, int victim, const char *host)
{
    ck_assert(pipe(leash) == 0 && pipe(born) == 0);
    victim_host = host;
    check_death(kind, parent, victim, leave_a_child);
    victim_host = NULL;
    for (int i = 0; i < 2; i++) {
        close(leash[i]);
        close(born[i]);
    }
}

START_TEST(death_is_seen_although_a_child_lives)
{
    check_death_of_a_father(IQ_ADDRESS_UNIX, 0, 1, NULL);
    if (have_proofs()) { /* the process cannot be watched from another host: its end of file alone must tell */
        check_death_of_a_father(IQ_ADDRESS_TCP, 0, 1, "elsewhere");
        check_death_of_a_father(IQ_ADDRESS_TCP, 1, 0, "elsewhere");
    }
}
END_TEST

START_TEST(closing_without_goodbye_is_a_death)
{
    control_ranks_init(ranks, 3, IQ_ADDRESS_UNIX);
    control_ranks_each(ranks, 3, control_rank_open);
    control_rank_close(&ranks[1]);
    for (int i = 0; i < 3; i += 2) {
        ck_assert(control_rank_wait_failed(&ranks[i], SOON_NS));
        ck_assert_int_eq(ranks[i].failure, ISGQ_ERR_REMOTE);
        ck_assert_int_eq(ranks[i].culprit, 1);
        ck_assert_msg(strstr(ranks[i].text, "died or closed its connection") != NULL, "%s", ranks[i].text);
        control_rank_goodbye(&ranks[i]);
        ck_assert_int_eq(ranks[i].result, ISGQ_ERR_REMOTE);
        ck_assert_str_eq(ranks[i].error, ranks[i].text);
    }
    control_rank_close(&ranks[0]);
    control_rank_close(&ranks[2]);
}
END_TEST

/* ---- stalls ---- */

static void check_stopped(int parent, int victim, const char *text)
{
    int status;

    expected.result = ISGQ_ERR_TIMEOUT;
    expected.culprit = victim;
    fork_ranks(IQ_ADDRESS_UNIX, parent, victim, sleep_for_ever);
    kill(pids[victim], SIGSTOP);
    waitpid(pids[victim], &status, WUNTRACED);
    uint64_t start_ns = iq_now_ns();
    iq_control_report_stall(ranks[parent].control, 5, ranks[parent].status.awaited, "reduce, chunk 3");
    ck_assert(control_rank_wait_failed(&ranks[parent], SOON_NS));
    ck_assert_uint_lt(iq_now_ns() - start_ns, 5 * IQ_SECOND);
    ck_assert_str_eq(ranks[parent].text, text);
    ck_assert_int_eq(ranks[parent].culprit, victim);
    kill(pids[victim], SIGKILL);
    reap_others(parent, victim);
    ck_assert_int_eq(ranks[parent].failures, 1);
}

START_TEST(stopped_rank_is_named_not_the_neighbour)
{
    check_stopped(3, 2, "call 5: rank 2 does not answer: stopped or cut off? (rank 3 waited for rank 1: reduce, chunk 3)");
    check_stopped(0, 2, "call 5: rank 2 does not answer: stopped or cut off? (rank 0 waited for rank 1: reduce, chunk 3)");
}
END_TEST

/* The other ranks hear nothing from rank 0 either; they report by themselves. */
static void report_and_expect(control_rank_t *rank)
{
    for (int i = 0; i < 3; i++) /* again and again must not put the verdict off */
        iq_control_report_stall(rank->control, 5, 0, "reduce, chunk 3");
    ck_assert(control_rank_wait_failed(rank, SOON_NS));
}

START_TEST(stopped_rank_0_is_named)
{
    int status;

    control_ranks_init(ranks, 3, IQ_ADDRESS_UNIX);
    pids[0] = control_rank_fork(ranks, 0, sleep_for_ever);
    close(ranks[0].place.listen_fd);
    control_ranks_each(ranks + 1, 2, control_rank_open);
    control_ranks_each(ranks + 1, 2, control_rank_barrier);
    kill(pids[0], SIGSTOP);
    waitpid(pids[0], &status, WUNTRACED);
    control_ranks_each(ranks + 1, 2, report_and_expect);
    for (int i = 1; i < 3; i++) {
        ck_assert_int_eq(ranks[i].failure, ISGQ_ERR_TIMEOUT);
        ck_assert_int_eq(ranks[i].culprit, 0);
        ck_assert_msg(strstr(ranks[i].text, "rank 0 does not answer: stopped or cut off?") != NULL, "%s", ranks[i].text);
        control_rank_close(&ranks[i]);
    }
    kill(pids[0], SIGKILL);
    waitpid(pids[0], NULL, 0);
}
END_TEST

static void open_threads(int nranks, iq_address_kind_t kind)
{
    control_ranks_init(ranks, nranks, kind);
    control_ranks_each(ranks, nranks, control_rank_open);
    for (int i = 0; i < nranks; i++)
        ck_assert_msg(ranks[i].result == ISGQ_SUCCESS, "%s", ranks[i].error);
}

static void expect_all_and_close(int nranks, isgq_result_t result, int culprit, const char *text)
{
    for (int i = 0; i < nranks; i++)
        ck_assert(control_rank_wait_failed(&ranks[i], SOON_NS));
    for (int i = 0; i < nranks; i++) {
        control_rank_close(&ranks[i]);
        ck_assert_str_eq(ranks[i].text, text);
        ck_assert_int_eq(ranks[i].failure, result);
        ck_assert_int_eq(ranks[i].culprit, culprit);
        ck_assert_int_eq(ranks[i].failures, 1);
    }
}

START_TEST(rank_that_has_not_made_the_call)
{
    control_ranks_init(ranks, 3, IQ_ADDRESS_UNIX);
    for (int i = 0; i < 3; i++)
        ranks[i].status = (iq_rank_status_t){.completed = 16, .current = 17, .awaited = 2};
    ranks[2].status = (iq_rank_status_t){.completed = 16, .current = 0, .awaited = -1};
    control_ranks_each(ranks, 3, control_rank_open);
    iq_control_report_stall(ranks[1].control, 17, 0, "send");
    expect_all_and_close(3, ISGQ_ERR_TIMEOUT, 2,
                         "call 17: rank 2 has not made call 17 (it finished 16) (rank 1 waited for rank 0: send)");
}
END_TEST

/* ---- mismatches ---- */

static void set_arguments(int nranks, uint64_t call)
{
    for (int i = 0; i < nranks; i++) {
        ranks[i].call = call;
        ranks[i].arguments = "op allreduce\ncount 1000\ndatatype f32\n";
    }
}

START_TEST(mismatch_names_the_value)
{
    for (int stall = 0; stall < 2; stall++) {
        control_ranks_init(ranks, 4, IQ_ADDRESS_UNIX);
        set_arguments(4, 17);
        ranks[2].arguments = "op allreduce\ncount 1001\ndatatype f32\n";
        control_ranks_each(ranks, 4, control_rank_open);
        if (stall)
            iq_control_report_stall(ranks[3].control, 17, 1, "recv");
        else
            iq_control_report_mismatch(ranks[1].control, 17, 17, 2);
        expect_all_and_close(4, ISGQ_ERR_MISMATCH, 2, "call 17: count is 1000 on rank 0 and 1001 on rank 2");
    }
}
END_TEST

START_TEST(agreeing_arguments_mean_a_corrupt_frame)
{
    control_ranks_init(ranks, 3, IQ_ADDRESS_UNIX);
    set_arguments(3, 17);
    ranks[2].arguments = NULL; /* has not made the call and is not waited for */
    control_ranks_each(ranks, 3, control_rank_open);
    iq_control_report_mismatch(ranks[0].control, 17, 17, 1);
    expect_all_and_close(
        3, ISGQ_ERR_CORRUPT, 1,
        "call 17: rank 0 got a frame of rank 1 that belongs to no call both are in, though their arguments agree");
}
END_TEST

/* ---- abort and rounds ---- */

static void gather_or_abort(control_rank_t *rank)
{
    uint64_t value = 0, all[NRANKS];
    if (rank->rank == 2)
        iq_control_abort(rank->control, ISGQ_ERR_CUDA, 2, "rank 2 had enough");
    else
        rank->result = iq_control_allgather(rank->control, &value, all, sizeof(value), iq_now_ns() + SOON_NS);
}

START_TEST(abort_wakes_everybody)
{
    open_threads(NRANKS, IQ_ADDRESS_TCP);
    control_ranks_each(ranks, NRANKS, gather_or_abort);
    for (int i = 0; i < NRANKS; i++)
        ck_assert_int_eq(ranks[i].result, i == 2 ? ISGQ_SUCCESS : ISGQ_ERR_CUDA);
    iq_control_abort(ranks[0].control, ISGQ_ERR_SYSTEM, 0, "too late");
    expect_all_and_close(NRANKS, ISGQ_ERR_CUDA, 2, "rank 2 had enough");
}
END_TEST

START_TEST(failure_waits_for_the_listener)
{
    char text[2 * IQ_ERROR_TEXT_BYTES];
    iq_control_params_t params = {.rank = 0, .nranks = 1};
    iq_rendezvous_t place = {.listen_fd = -1};
    iq_control_t *control;

    open_threads(2, IQ_ADDRESS_UNIX); /* for a listener: rank 1 lends its own */
    iq_control_events_t events = ranks[1].control->events;
    params.rendezvous = &place;
    ck_assert_int_eq(iq_control_open(&params, &control), ISGQ_SUCCESS);
    memset(text, 'x', sizeof(text));
    text[sizeof(text) - 1] = '\0';
    iq_control_abort(control, ISGQ_ERR_SYSTEM, 0, text);
    ck_assert_int_eq(iq_control_allgather(control, text, text, 1, 0), ISGQ_ERR_SYSTEM);
    ck_assert_int_eq(ranks[1].failures, 0);
    iq_control_start(control, &events);
    ck_assert(control_rank_wait_failed(&ranks[1], SOON_NS));
    ck_assert_uint_eq(strlen(ranks[1].text), IQ_ERROR_TEXT_BYTES - 1);
    iq_control_close(control);
    control_ranks_each(ranks, 2, control_rank_goodbye);
    control_ranks_each(ranks, 2, control_rank_close);
}
END_TEST

static void late_round(control_rank_t *rank)
{
    uint64_t value = 0, all[NRANKS];
    rank->result =
        iq_control_allgather(rank->control, &value, all, rank->rank == 1 ? 8 : (size_t)rank->call, iq_now_ns() + IQ_SECOND / 5);
}

START_TEST(who_misses_a_round_is_named)
{
    open_threads(3, IQ_ADDRESS_UNIX);
    ranks[0].call = 8;
    control_ranks_each(ranks, 2, late_round);
    ck_assert_int_eq(ranks[0].result, ISGQ_ERR_TIMEOUT);
    ck_assert_int_eq(ranks[1].result, ISGQ_ERR_TIMEOUT);
    expect_all_and_close(3, ISGQ_ERR_TIMEOUT, 2,
                         "rank 2 has not joined in allgather 1 of the control channel before the deadline");

    open_threads(3, IQ_ADDRESS_UNIX);
    ck_assert_int_eq(iq_control_goodbye(ranks[1].control, iq_now_ns() + IQ_SECOND / 5), ISGQ_ERR_TIMEOUT);
    expect_all_and_close(3, ISGQ_ERR_TIMEOUT, 0,
                         "ranks 0 and 2 have not joined in goodbye 1 of the control channel before the deadline");
}
END_TEST

START_TEST(rounds_of_different_sizes)
{
    open_threads(2, IQ_ADDRESS_UNIX);
    ranks[0].call = 4;
    control_ranks_each(ranks, 2, late_round);
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(ranks[i].result, ISGQ_ERR_MISMATCH);
        ck_assert(control_rank_wait_failed(&ranks[i], SOON_NS));
        ck_assert_msg(strstr(ranks[i].text, "control allgather 1: bytes is ") != NULL, "%s", ranks[i].text);
        control_rank_close(&ranks[i]);
    }
}
END_TEST

/* ---- the judge ---- */

static void judge(const iq_answer_t *answers, int nranks, int awaited, int culprit, const char *text)
{
    iq_report_t report = {.rank = 0, .peer = awaited, .sequence = 9, .step = "s"};
    iq_verdict_t verdict;
    iq_judge_stall(answers, nranks, &report, &verdict);
    ck_assert_int_eq(verdict.culprit, culprit);
    ck_assert_msg(strstr(verdict.text, text) != NULL, "%s", verdict.text);
}

START_TEST(judge_finds_the_end_of_the_chain)
{
    const iq_answer_t busy = {.answered = true, .status = {.completed = 8, .current = 9, .awaited = -1, .text = "encode"}};
    iq_answer_t answers[4];

    for (int i = 0; i < 4; i++) {
        answers[i] = busy;
        answers[i].status.awaited = (i + 1) % 4;
    }
    judge(answers, 4, 1, 1, "rank 1 and others wait for each other");
    judge(answers, 4, -1, 0, "rank 0 makes no progress");
    judge(answers, 4, 0, 0, "rank 0 makes no progress");
    answers[3] = busy;
    judge(answers, 4, 1, 3, "rank 3 awaits nobody in call 9 (encode)");
    answers[3].status = (iq_rank_status_t){.completed = 9, .current = 0, .awaited = -1};
    judge(answers, 4, 1, 3, "rank 3 has moved on: it finished call 9");
    answers[2].status.completed = 3; /* behind: what it waits for is call 4 */
    answers[2].status.current = 4;
    answers[3].status = (iq_rank_status_t){.completed = 3, .current = 0, .awaited = -1};
    judge(answers, 4, 1, 3, "rank 3 has not made call 4 (it finished 3)");
    answers[2].answered = false;
    judge(answers, 4, 1, 2, "rank 2 does not answer");
    answers[2].status.awaited = 77;
    answers[2].answered = true;
    judge(answers, 4, 1, 2, "rank 2 makes no progress");
}
END_TEST

START_TEST(judge_compares_arguments)
{
    static iq_answer_t answers[3];
    iq_verdict_t verdict;

    ck_assert(!iq_judge_arguments(answers, 3, 1, &verdict));
    answers[1] = answers[2] = (iq_answer_t){.has_arguments = true, .arguments = "op sum\ncount 3\n"};
    ck_assert(!iq_judge_arguments(answers, 3, 1, &verdict));
    snprintf(answers[2].arguments, sizeof(answers[2].arguments), "op sum\ncount 3\nroot 1\n");
    ck_assert(iq_judge_arguments(answers, 3, 1, &verdict));
    ck_assert_str_eq(verdict.text, "call 1: nothing is nothing on rank 1 where rank 2 has root 1");
    memset(answers[2].arguments, 'z', sizeof(answers[2].arguments) - 1); /* one endless word */
    ck_assert(iq_judge_arguments(answers, 3, 1, &verdict));
    ck_assert_int_eq(verdict.culprit, 2);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("control_failure");
    TCase *death = tcase_create("death");
    TCase *stall = tcase_create("stall");
    TCase *mismatch = tcase_create("mismatch");
    TCase *abort_case = tcase_create("abort");
    TCase *judge_case = tcase_create("judge");

    tcase_set_timeout(death, 60);
    tcase_add_test(death, killed_rank_is_named_by_all);
    tcase_add_test(death, death_is_seen_although_a_child_lives);
    tcase_add_test(death, closing_without_goodbye_is_a_death);
    suite_add_tcase(suite, death);
    tcase_set_timeout(stall, 60);
    tcase_add_test(stall, stopped_rank_is_named_not_the_neighbour);
    tcase_add_test(stall, stopped_rank_0_is_named);
    tcase_add_test(stall, rank_that_has_not_made_the_call);
    suite_add_tcase(suite, stall);
    tcase_set_timeout(mismatch, 60);
    tcase_add_test(mismatch, mismatch_names_the_value);
    tcase_add_test(mismatch, agreeing_arguments_mean_a_corrupt_frame);
    suite_add_tcase(suite, mismatch);
    tcase_set_timeout(abort_case, 60);
    tcase_add_test(abort_case, abort_wakes_everybody);
    tcase_add_test(abort_case, failure_waits_for_the_listener);
    tcase_add_test(abort_case, who_misses_a_round_is_named);
    tcase_add_test(abort_case, rounds_of_different_sizes);
    suite_add_tcase(suite, abort_case);
    tcase_add_test(judge_case, judge_finds_the_end_of_the_chain);
    tcase_add_test(judge_case, judge_compares_arguments);
    suite_add_tcase(suite, judge_case);
    return suite;
}
