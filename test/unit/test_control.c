/* SPDX-License-Identifier: Apache-2.0 */
/* How ranks meet over the control channel: all together, with strangers at the door, with ranks missing or in disagreement. */
#include "support/check_main.h"
#include "support/control_ranks.h"

#include "transport/auth.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

static const iq_address_kind_t kinds[] = {IQ_ADDRESS_UNIX, IQ_ADDRESS_TCP};

static void gather_rounds(control_rank_t *rank)
{
    static const size_t sizes[] = {8, 0, 1, 1000, IQ_GATHER_BYTES};
    uint8_t *send = malloc(IQ_GATHER_BYTES), *recv = malloc(IQ_GATHER_BYTES * (size_t)rank->nranks);

    for (size_t i = 0; i < IQ_ARRAY_SIZE(sizes); i++) {
        memset(send, rank->rank + (int)i, sizes[i]);
        memset(recv, 0xff, IQ_GATHER_BYTES * (size_t)rank->nranks);
        ck_assert_int_eq(iq_control_allgather(rank->control, send, recv, sizes[i], iq_now_ns() + SOON_NS), ISGQ_SUCCESS);
        for (int peer = 0; peer < rank->nranks; peer++) {
            memset(send, peer + (int)i, sizes[i]);
            ck_assert_int_eq(memcmp(recv + (size_t)peer * sizes[i], send, sizes[i]), 0);
        }
    }
    ck_assert_int_eq(iq_control_allgather(rank->control, send, recv, IQ_GATHER_BYTES + 1, 0), ISGQ_ERR_INVALID_ARGUMENT);
    free(send);
    free(recv);
}

START_TEST(ranks_meet_and_gather)
{
    static control_rank_t ranks[MAX_RANKS];
    int before = count_descriptors();

    for (size_t k = 0; k < IQ_ARRAY_SIZE(kinds); k++)
        for (int nranks = 1; nranks <= MAX_RANKS; nranks++) {
            control_ranks_init(ranks, nranks, kinds[k]);
            control_ranks_each(ranks, nranks, control_rank_open);
            for (int i = 0; i < nranks; i++)
                ck_assert_msg(ranks[i].result == ISGQ_SUCCESS, "%s", ranks[i].error);
            control_ranks_each(ranks, nranks, gather_rounds);
            control_ranks_each(ranks, nranks, control_rank_goodbye);
            for (int i = 0; i < nranks; i++) /* one after the other: no end of file is a death any more */
                control_rank_close(&ranks[i]);
            for (int i = 0; i < nranks; i++) {
                ck_assert_msg(ranks[i].result == ISGQ_SUCCESS, "%s", ranks[i].error);
                ck_assert_int_eq(ranks[i].failures, 0);
            }
            ck_assert_int_eq(count_descriptors(), before);
        }
}
END_TEST

START_TEST(communicators_do_not_disturb_each_other)
{
    static control_rank_t ranks[8]; /* two communicators of four ranks in one process */

    control_ranks_init(ranks, 4, IQ_ADDRESS_UNIX);
    control_ranks_init(ranks + 4, 4, IQ_ADDRESS_UNIX);
    control_ranks_each(ranks, 8, control_rank_open);
    iq_control_abort(ranks[1].control, ISGQ_ERR_REMOTE, 1, "the first one fails");
    for (int i = 0; i < 4; i++)
        ck_assert(control_rank_wait_failed(&ranks[i], SOON_NS));
    control_ranks_each(ranks + 4, 4, gather_rounds);
    control_ranks_each(ranks + 4, 4, control_rank_goodbye);
    for (int i = 0; i < 8; i++) {
        control_rank_close(&ranks[i]);
        ck_assert_int_eq(ranks[i].failures, i < 4);
    }
}
END_TEST

/* A fork takes nothing away from the parent; what the child opens under an old number stays open. */
START_TEST(forked_child_keeps_no_connection)
{
    static control_rank_t ranks[2];

    control_ranks_init(ranks, 2, IQ_ADDRESS_UNIX);
    control_ranks_each(ranks, 2, control_rank_open);
    int fd = ranks[0].control->members[1].conn.fd;
    pid_t pid = fork();
    if (pid == 0) {
        bool closed = fcntl(fd, F_GETFD) == -1 && dup2(STDERR_FILENO, fd) == fd;
        iq_conn_close(&ranks[0].control->members[1].conn);
        _exit(closed && fcntl(fd, F_GETFD) != -1 ? 0 : 1);
    }
    ck_assert(control_rank_reap(pid));
    control_ranks_each(ranks, 2, gather_rounds);
    control_ranks_each(ranks, 2, control_rank_goodbye);
    for (int i = 0; i < 2; i++) {
        control_rank_close(&ranks[i]);
        ck_assert_int_eq(ranks[i].failures, 0);
    }
}
END_TEST

static void limit_descriptors(rlim_t limit)
{
    struct rlimit limits;
    ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &limits), 0);
    limits.rlim_cur = limit;
    ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &limits), 0);
}

/* poll counts its entries against the limit, those without a descriptor too. */
START_TEST(few_descriptors_are_enough)
{
    static control_rank_t ranks[MAX_RANKS];
    struct rlimit before;

    ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
    control_ranks_init(ranks, MAX_RANKS, IQ_ADDRESS_TCP);
    limit_descriptors(60); /* less than the guests that rank 0 has room for */
    control_ranks_each(ranks, MAX_RANKS, control_rank_open);
    for (int i = 0; i < MAX_RANKS; i++)
        ck_assert_msg(ranks[i].result == ISGQ_SUCCESS, "%s", ranks[i].error);
    limit_descriptors(MAX_RANKS + 1); /* rank 0 has as many connections; what is open stays open */
    control_ranks_each(ranks, MAX_RANKS, gather_rounds);
    limit_descriptors(3);
    control_ranks_each(ranks, MAX_RANKS, control_rank_barrier); /* wakes rank 0 */
    for (int i = 0; i < MAX_RANKS; i++) {
        ck_assert(control_rank_wait_failed(&ranks[i], SOON_NS));
        ck_assert_int_eq(ranks[i].failure, ISGQ_ERR_SYSTEM);
        ck_assert_int_eq(ranks[i].culprit, 0);
        ck_assert_msg(strstr(ranks[i].text, "rank 0: control channel: poll") != NULL, "%s", ranks[i].text);
    }
    limit_descriptors(before.rlim_cur);
    for (int i = 0; i < MAX_RANKS; i++)
        control_rank_close(&ranks[i]);
}
END_TEST

/* ---- strangers ---- */

static int knock(const iq_rendezvous_t *place)
{
    char reason[64];
    int fd = iq_socket_connect(place, iq_now_ns() + SOON_NS, reason, sizeof(reason));
    ck_assert_msg(fd >= 0, "%s", reason);
    return fd;
}

static void say(int fd, const void *data, size_t bytes) { ck_assert_int_eq(send(fd, data, bytes, MSG_NOSIGNAL), (ssize_t)bytes); }

/* A header with everything right but what the caller changes. */
static void say_header(int fd, uint32_t magic, uint32_t version, uint32_t type, uint32_t length)
{
    iq_pack_t pack = {.used = 0};
    iq_pack_u32(&pack, magic);
    iq_pack_u32(&pack, version | type << 16);
    iq_pack_u32(&pack, length);
    say(fd, pack.data, pack.used);
}

START_TEST(strangers_do_no_harm)
{
    static control_rank_t ranks[5];
    uint8_t rubbish[4096];
    int fds[40];

    for (size_t k = 0; k < IQ_ARRAY_SIZE(kinds); k++) {
        int before = count_descriptors();
        control_ranks_init(ranks, 4, kinds[k]);
        int count = have_proofs() ? 5 : 4;
        ranks[4] = ranks[3]; /* who believes to be rank 3 but has another secret */
        ranks[4].place.secret[0] ^= 1;
        ranks[4].deadline_ns = iq_now_ns() + IQ_SECOND;
        for (size_t i = 0; i < sizeof(rubbish); i++)
            rubbish[i] = (uint8_t)(i * 37 + 11);
        for (int i = 0; i < 40; i++) {
            fds[i] = knock(&ranks[1].place);
            switch (i % 8) {
            case 0: say(fds[i], rubbish, sizeof(rubbish)); break;
            case 1: say_header(fds[i], IQ_CONTROL_MAGIC, IQ_FRAME_VERSION, IQ_FRAME_HELLO, 0xffffffffu); break;
            case 2: say_header(fds[i], IQ_CONTROL_MAGIC, IQ_FRAME_VERSION, IQ_FRAME_HELLO, 56); break; /* and not a word more */
            case 3: say_header(fds[i], IQ_CONTROL_MAGIC, IQ_FRAME_VERSION, IQ_FRAME_PROOF, 0); break;
            case 4: say_header(fds[i], IQ_CONTROL_MAGIC, IQ_FRAME_VERSION + 1, IQ_FRAME_HELLO, 0); break;
            case 5: say_header(fds[i], IQ_CONTROL_MAGIC, IQ_FRAME_VERSION, IQ_FRAME_GATHER, 0); break;
            case 6: shutdown(fds[i], SHUT_WR); break;
            default: break; /* silent */
            }
        }
        control_ranks_each(ranks, count, control_rank_open);
        for (int i = 0; i < 4; i++)
            ck_assert_msg(ranks[i].result == ISGQ_SUCCESS, "%s", ranks[i].error);
        if (count == 5) {
            ck_assert_int_eq(ranks[4].result, ISGQ_ERR_TIMEOUT);
            ck_assert_msg(strstr(ranks[4].error, "rank 0 never answered rank 3 at ") != NULL, "%s", ranks[4].error);
        }
        control_ranks_each(ranks, 4, gather_rounds);
        control_ranks_each(ranks, 4, control_rank_goodbye);
        for (int i = 0; i < 4; i++)
            control_rank_close(&ranks[i]);
        for (int i = 0; i < 40; i++)
            close(fds[i]);
        ck_assert_int_eq(count_descriptors(), before);
    }
}
END_TEST

/* Rank 0 alone with one who has another secret: both end at their deadlines and say why. */
START_TEST(wrong_secret_never_joins)
{
    static control_rank_t ranks[2];

    if (!have_proofs())
        return;
    control_ranks_init(ranks, 2, IQ_ADDRESS_TCP);
    ranks[1].place.secret[31] ^= 0x80;
    ranks[0].deadline_ns = ranks[1].deadline_ns = iq_now_ns() + 500 * IQ_MILLISECOND;
    ranks[0].deadline_ns += 500 * IQ_MILLISECOND;
    control_ranks_each(ranks, 2, control_rank_open);
    ck_assert_int_eq(ranks[0].result, ISGQ_ERR_TIMEOUT);
    ck_assert_msg(strstr(ranks[0].error, "rank 1 of 2 never came to tcp:127.0.0.1:") != NULL, "%s", ranks[0].error);
    ck_assert_int_eq(ranks[1].result, ISGQ_ERR_TIMEOUT);
    ck_assert_msg(strstr(ranks[1].error, "do all ranks have the same secret?") != NULL, "%s", ranks[1].error);
}
END_TEST

/* Who listens in rank 0's place, without the secret, gets a proof it can do nothing with and is left. */
static void *impostor(void *argument)
{
    int listen_fd = *(int *)argument, fd = -1;
    iq_pack_t pack = {.used = 0};
    iq_hello_t hello;
    iq_conn_t conn;
    iq_control_frame_t frame;

    while (fd < 0) {
        struct pollfd poll_fd = {.fd = listen_fd, .events = POLLIN};
        poll(&poll_fd, 1, 1000);
        fd = iq_socket_accept(listen_fd, IQ_ADDRESS_TCP);
    }
    iq_conn_open(&conn, fd, IQ_GUEST_FRAME_BYTES);
    iq_hello_init(&hello, 0, 2, ISGQ_VERSION_CODE);
    iq_hello_pack(&pack, &hello);
    iq_conn_send(&conn, IQ_FRAME_CHALLENGE, &pack, NULL, 0);
    pack.used = 32;
    iq_conn_send(&conn, IQ_FRAME_WELCOME, &pack, NULL, 0);
    iq_conn_send(&conn, IQ_FRAME_START, NULL, NULL, 0);
    iq_conn_flush(&conn);
    while (iq_conn_read(&conn) != IQ_READ_CLOSED)
        while (iq_conn_next(&conn, &frame) == IQ_NEXT_FRAME) {
        }
    iq_conn_close(&conn);
    close(listen_fd);
    return NULL;
}

START_TEST(impostor_is_not_believed)
{
    static control_rank_t ranks[2];
    pthread_t thread;

    if (!have_proofs())
        return;
    control_ranks_init(ranks, 2, IQ_ADDRESS_TCP);
    ck_assert_int_eq(pthread_create(&thread, NULL, impostor, &ranks[0].place.listen_fd), 0);
    ranks[1].deadline_ns = iq_now_ns() + 300 * IQ_MILLISECOND;
    control_rank_open(&ranks[1]);
    pthread_join(thread, NULL);
    ck_assert_int_eq(ranks[1].result, ISGQ_ERR_TIMEOUT);
}
END_TEST

START_TEST(ranks_that_come_first_wait_for_rank_0)
{
    static control_rank_t ranks[1];
    iq_rendezvous_t place = {.kind = IQ_ADDRESS_UNIX, .listen_fd = -1};

    control_ranks_init(ranks, 1, IQ_ADDRESS_TCP);
    close(ranks[0].place.listen_fd);
    snprintf(place.text, sizeof(place.text), "isgq.test.nobody.%d", (int)getpid());
    ranks[0] = (control_rank_t){.rank = 1, .nranks = 3, .version = ISGQ_VERSION_CODE, .place = place};
    ranks[0].deadline_ns = iq_now_ns() + 200 * IQ_MILLISECOND;
    control_rank_open(&ranks[0]);
    ck_assert_int_eq(ranks[0].result, ISGQ_ERR_TIMEOUT);
    ck_assert_msg(strstr(ranks[0].error, "rank 0 never answered rank 1 at unix:isgq.test.nobody.") != NULL, "%s", ranks[0].error);
    ck_assert_msg(strstr(ranks[0].error, strerror(ECONNREFUSED)) != NULL, "%s", ranks[0].error);
}
END_TEST

START_TEST(missing_ranks_are_named)
{
    static control_rank_t ranks[6];

    for (int early = 0; early < 2; early++) { /* whose deadline comes first: rank 0's or the others' */
        control_ranks_init(ranks, 6, IQ_ADDRESS_UNIX);
        for (int i = 0; i < 6; i++)
            ranks[i].deadline_ns = iq_now_ns() + ((i == 0) == (early == 0) ? 500 : 2000) * IQ_MILLISECOND;
        control_ranks_each(ranks, 4, control_rank_open); /* not 4 and 5 */
        for (int i = 0; i < 4; i++) {
            ck_assert_int_eq(ranks[i].result, ISGQ_ERR_TIMEOUT);
            ck_assert_msg(strstr(ranks[i].error, "ranks 4 and 5 of 6 never came") != NULL, "%s", ranks[i].error);
        }
    }
}
END_TEST

static void next_frame(iq_conn_t *conn, iq_frame_type_t type, iq_control_frame_t *frame)
{
    while (iq_conn_next(conn, frame) != IQ_NEXT_FRAME) {
        struct pollfd poll_fd = {.fd = conn->fd, .events = POLLIN};
        poll(&poll_fd, 1, 1000);
        ck_assert_int_eq(iq_conn_read(conn), IQ_READ_EMPTY);
    }
    ck_assert_int_eq(frame->type, type);
}

/* Rank 1 joins as it should and is gone before rank 2 has come. */
static void join_and_vanish(control_rank_t *rank)
{
    iq_pack_t hello = {.used = 0}, proof = {.used = IQ_PROOF_BYTES};
    char reason[64];
    iq_hello_t ours, theirs;
    iq_control_frame_t frame;
    iq_conn_t conn;

    if (rank->rank == 0) {
        control_rank_open(rank);
        return;
    }
    iq_conn_open(&conn, iq_socket_connect(&rank->place, rank->deadline_ns, reason, sizeof(reason)), IQ_FRAME_BYTES);
    iq_hello_init(&ours, rank->rank, rank->nranks, rank->version);
    iq_hello_pack(&hello, &ours);
    iq_conn_send(&conn, IQ_FRAME_HELLO, &hello, NULL, 0);
    iq_conn_flush(&conn);
    next_frame(&conn, IQ_FRAME_CHALLENGE, &frame);
    ck_assert(iq_hello_unpack(&frame, &theirs));
    iq_hello_prove(&rank->place, "rank", &ours, &theirs, proof.data);
    iq_conn_send(&conn, IQ_FRAME_PROOF, &proof, NULL, 0);
    iq_conn_flush(&conn);
    next_frame(&conn, IQ_FRAME_WELCOME, &frame);
    iq_conn_close(&conn);
}

START_TEST(death_before_the_start)
{
    static control_rank_t ranks[3];

    control_ranks_init(ranks, 3, IQ_ADDRESS_TCP);
    ranks[0].nranks = 3;
    control_ranks_each(ranks, 2, join_and_vanish);
    ck_assert_int_eq(ranks[0].result, ISGQ_ERR_REMOTE);
    ck_assert_msg(strstr(ranks[0].error, "died before all ranks had met") != NULL, "%s", ranks[0].error);
}
END_TEST

/* ---- disagreement ---- */

static void expect_on_all(control_rank_t *ranks, int nranks, isgq_result_t result, const char *text)
{
    uint64_t start_ns = iq_now_ns();
    control_ranks_each(ranks, nranks, control_rank_open);
    ck_assert_uint_lt(iq_now_ns() - start_ns, SOON_NS / 2); /* nobody waits for a deadline */
    for (int i = 0; i < nranks; i++) {
        ck_assert_int_eq(ranks[i].result, result);
        ck_assert_msg(strstr(ranks[i].error, text) != NULL, "rank %d: %s", i, ranks[i].error);
    }
}

START_TEST(disagreement_is_told_to_all)
{
    static control_rank_t ranks[4];
    char text[64];

    control_ranks_init(ranks, 4, IQ_ADDRESS_UNIX);
    ranks[2].version = 20304;
    snprintf(text, sizeof(text), "library version is %d.%d.%d on rank 0 and 2.3.4 on rank 2", ISGQ_VERSION_MAJOR,
             ISGQ_VERSION_MINOR, ISGQ_VERSION_PATCH);
    expect_on_all(ranks, 4, ISGQ_ERR_MISMATCH, text);

    control_ranks_init(ranks, 4, IQ_ADDRESS_TCP);
    ranks[3].nranks = 5;
    expect_on_all(ranks, 4, ISGQ_ERR_MISMATCH, "nranks is 4 on rank 0 and 5 on rank 3");

    control_ranks_init(ranks, 4, IQ_ADDRESS_UNIX);
    ranks[1].rank = 3;
    expect_on_all(ranks, 4, ISGQ_ERR_INVALID_ARGUMENT, "both call themselves rank 3");
}
END_TEST

START_TEST(bad_parameters)
{
    static control_rank_t ranks[2];

    control_ranks_init(ranks, 2, IQ_ADDRESS_UNIX);
    ranks[0].rank = 2;
    control_rank_open(&ranks[0]);
    ck_assert_int_eq(ranks[0].result, ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_str_eq(ranks[0].error, "rank is 2, must be in 0..1");
    ranks[1].nranks = 0;
    control_rank_open(&ranks[1]);
    ck_assert_int_eq(ranks[1].result, ISGQ_ERR_INVALID_ARGUMENT);
}
END_TEST

START_TEST(without_proofs_there_is_no_tcp)
{
    static control_rank_t ranks[2];

    if (have_proofs())
        return;
    control_ranks_init(ranks, 2, IQ_ADDRESS_UNIX);
    ranks[1].place.kind = IQ_ADDRESS_TCP;
    control_rank_open(&ranks[1]);
    ck_assert_int_eq(ranks[1].result, ISGQ_ERR_UNSUPPORTED);
    ck_assert_msg(strstr(ranks[1].error, "no libsodium") != NULL, "%s", ranks[1].error);
    close(ranks[0].place.listen_fd);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("control");
    TCase *meet = tcase_create("meet");
    TCase *strangers = tcase_create("strangers");
    TCase *missing = tcase_create("missing");
    TCase *disagree = tcase_create("disagree");

    tcase_set_timeout(meet, 60);
    tcase_add_test(meet, ranks_meet_and_gather);
    tcase_add_test(meet, communicators_do_not_disturb_each_other);
    tcase_add_test(meet, forked_child_keeps_no_connection);
    tcase_add_test(meet, few_descriptors_are_enough);
    suite_add_tcase(suite, meet);
    tcase_set_timeout(strangers, 60);
    tcase_add_test(strangers, strangers_do_no_harm);
    tcase_add_test(strangers, wrong_secret_never_joins);
    tcase_add_test(strangers, impostor_is_not_believed);
    suite_add_tcase(suite, strangers);
    tcase_set_timeout(missing, 60);
    tcase_add_test(missing, ranks_that_come_first_wait_for_rank_0);
    tcase_add_test(missing, missing_ranks_are_named);
    tcase_add_test(missing, death_before_the_start);
    suite_add_tcase(suite, missing);
    tcase_set_timeout(disagree, 60);
    tcase_add_test(disagree, disagreement_is_told_to_all);
    tcase_add_test(disagree, bad_parameters);
    tcase_add_test(disagree, without_proofs_there_is_no_tcp);
    suite_add_tcase(suite, disagree);
    return suite;
}
