/* SPDX-License-Identifier: Apache-2.0 */
/* Unique ids and the file store: round trips, damage, misuse, files of other jobs. */
#include "support/check_main.h"
#include "support/control_ranks.h"

#include "base/config.h"
#include "transport/auth.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

START_TEST(id_round_trip)
{
    int before = count_descriptors();
    isgq_unique_id_t id, other;
    iq_rendezvous_t a, b;

    ck_assert_int_eq(iq_rendezvous_new_id(&id), ISGQ_SUCCESS);
    ck_assert_int_eq(iq_rendezvous_new_id(&other), ISGQ_SUCCESS);
    ck_assert_int_ne(memcmp(&id, &other, sizeof(id)), 0);
    ck_assert_int_eq(iq_rendezvous_from_id(&id, 1, &b), ISGQ_SUCCESS);
    ck_assert_int_eq(iq_rendezvous_from_id(&id, 0, &a), ISGQ_SUCCESS);
    ck_assert_int_ge(a.listen_fd, 0);
    ck_assert_int_eq(b.listen_fd, -1);
    ck_assert_int_eq(a.kind, IQ_ADDRESS_UNIX);
    ck_assert_str_eq(a.text, b.text);
    ck_assert_int_eq(memcmp(a.secret, b.secret, sizeof(a.secret)), 0);
    ck_assert(a.has_secret && b.has_secret);
    ck_assert_int_eq(iq_rendezvous_from_id(&id, 0, &b), ISGQ_ERR_INVALID_USAGE); /* used */
    close(a.listen_fd);
    ck_assert_int_eq(iq_rendezvous_from_id(&other, 0, &a), ISGQ_SUCCESS);
    close(a.listen_fd);
    ck_assert_int_eq(count_descriptors(), before);
}
END_TEST

START_TEST(id_that_is_not_used)
{
    int before = count_descriptors();
    isgq_unique_id_t id, other;
    iq_rendezvous_t place;
    char reason[64];

    ck_assert_int_eq(iq_rendezvous_new_id(&id), ISGQ_SUCCESS);
    ck_assert_int_eq(iq_rendezvous_new_id(&other), ISGQ_SUCCESS);
    ck_assert_int_eq(iq_rendezvous_from_id(&id, 1, &place), ISGQ_SUCCESS);
    iq_rendezvous_drop_id(&id);
    ck_assert_int_eq(iq_socket_connect(&place, iq_now_ns() + SOON_NS, reason, sizeof(reason)), -1); /* nobody listens any more */
    ck_assert_int_eq(iq_rendezvous_from_id(&id, 0, &place), ISGQ_ERR_INVALID_USAGE);
    iq_rendezvous_drop_id(&id); /* not there: nothing happens, nor to others */
    ck_assert_int_eq(iq_rendezvous_from_id(&other, 0, &place), ISGQ_SUCCESS);
    close(place.listen_fd);
    iq_rendezvous_drop_id(&other);
    ck_assert_int_eq(count_descriptors(), before);
}
END_TEST

START_TEST(id_is_bound_to_its_process)
{
    isgq_unique_id_t id;
    iq_rendezvous_t place;
    int status = 0;

    ck_assert_int_eq(iq_rendezvous_new_id(&id), ISGQ_SUCCESS);
    pid_t pid = fork();
    if (pid == 0)
        _exit(iq_rendezvous_from_id(&id, 0, &place) == ISGQ_ERR_INVALID_USAGE ? 0 : 1);
    waitpid(pid, &status, 0);
    ck_assert_int_eq(status, 0);
    ck_assert_int_eq(iq_rendezvous_from_id(&id, 0, &place), ISGQ_SUCCESS);
    close(place.listen_fd);
}
END_TEST

START_TEST(damaged_ids_are_refused)
{
    isgq_unique_id_t id, damaged;
    iq_rendezvous_t place;

    ck_assert_int_eq(iq_rendezvous_new_id(&id), ISGQ_SUCCESS);
    for (size_t i = 0; i < sizeof(id.internal); i++) {
        damaged = id;
        damaged.internal[i] = (char)(damaged.internal[i] ^ 4);
        bool is_version = i >= 8 && i < 16; /* format and library version */
        ck_assert_int_eq(iq_rendezvous_from_id(&damaged, 1, &place), is_version ? ISGQ_ERR_MISMATCH : ISGQ_ERR_INVALID_ARGUMENT);
    }
    memset(&damaged, 0, sizeof(damaged));
    ck_assert_int_eq(iq_rendezvous_from_id(&damaged, 0, &place), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_str_eq(iq_last_error(), "these bytes are no unique id");
    ck_assert_int_eq(iq_rendezvous_from_id(&id, 0, &place), ISGQ_SUCCESS);
    close(place.listen_fd);
}
END_TEST

START_TEST(interface_means_tcp)
{
    static control_rank_t ranks[2];
    isgq_unique_id_t id;

    if (!have_proofs())
        return;
    ck_assert_int_eq(iq_config_set("INTERFACE", "lo"), ISGQ_SUCCESS);
    ck_assert_int_eq(iq_rendezvous_new_id(&id), ISGQ_SUCCESS);
    control_ranks_init(ranks, 2, IQ_ADDRESS_UNIX); /* made at the same interface */
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(ranks[i].place.kind, IQ_ADDRESS_TCP);
        ck_assert_str_eq(ranks[i].place.text, "127.0.0.1");
        ck_assert_uint_gt(ranks[i].place.port, 0);
    }
    control_ranks_each(ranks, 2, control_rank_open);
    ck_assert_int_eq(ranks[1].result, ISGQ_SUCCESS);
    control_ranks_each(ranks, 2, control_rank_goodbye);
    control_ranks_each(ranks, 2, control_rank_close);
    ck_assert_int_eq(iq_rendezvous_from_id(&id, 0, &ranks[0].place), ISGQ_SUCCESS);
    close(ranks[0].place.listen_fd);
    ck_assert_int_eq(iq_config_set("INTERFACE", "no such thing"), ISGQ_SUCCESS);
    ck_assert_int_eq(iq_rendezvous_new_id(&id), ISGQ_ERR_SYSTEM);
    ck_assert_msg(strstr(iq_last_error(), "no such thing") != NULL, "%s", iq_last_error());
    ck_assert_int_eq(iq_config_set("INTERFACE", NULL), ISGQ_SUCCESS);
}
END_TEST

/* ---- the file store ---- */

static char folder[64], path[96];

static void make_folder(void)
{
    snprintf(folder, sizeof(folder), "/tmp/isgq-test-XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/meet", folder);
}

static void remove_folder(void)
{
    unlink(path);
    ck_assert_int_eq(rmdir(folder), 0); /* nothing else was left behind */
}

static isgq_result_t await(const char *job, unsigned count, isgq_unique_id_t *id)
{
    return iq_rendezvous_file_await(path, job, count, iq_now_ns() + 50 * IQ_MILLISECOND, id);
}

static void expect_refused(const char *job, unsigned count, const char *reason)
{
    isgq_unique_id_t id;
    ck_assert_int_eq(await(job, count, &id), ISGQ_ERR_TIMEOUT);
    ck_assert_msg(strstr(iq_last_error(), reason) != NULL, "%s", iq_last_error());
}

static isgq_unique_id_t some_id(void)
{
    isgq_unique_id_t id;
    for (size_t i = 0; i < sizeof(id.internal); i++)
        id.internal[i] = (char)(i * 3 + 200);
    return id;
}

START_TEST(file_round_trip)
{
    isgq_unique_id_t id = some_id(), found;
    struct stat status;

    make_folder();
    expect_refused("job", 0, "No such file");
    ck_assert_int_eq(iq_rendezvous_file_publish(path, "job", 0, &id), ISGQ_SUCCESS);
    ck_assert_int_eq(stat(path, &status), 0);
    ck_assert_uint_eq(status.st_mode & 0777, 0600);
    ck_assert_int_eq(await("job", 0, &found), ISGQ_SUCCESS);
    ck_assert_int_eq(memcmp(&id, &found, sizeof(id)), 0);
    ck_assert_int_eq(iq_rendezvous_file_publish(path, "", 1, &id), ISGQ_SUCCESS); /* takes the place of the old one */
    ck_assert_int_eq(await("", 1, &found), ISGQ_SUCCESS);
    remove_folder();
}
END_TEST

START_TEST(foreign_files_are_ignored)
{
    isgq_unique_id_t id = some_id();

    make_folder();
    ck_assert_int_eq(iq_rendezvous_file_publish(path, "job", 7, &id), ISGQ_SUCCESS);
    expect_refused("other", 7, "another job");
    expect_refused("job", 8, "another job or communicator");
    chmod(path, 0640);
    expect_refused("job", 7, "others than its owner");
    chmod(path, 0600);
    ck_assert_int_eq(truncate(path, 100), 0);
    expect_refused("job", 7, "no rendezvous file");
    unlink(path);
    ck_assert_int_eq(symlink("/etc/passwd", path), 0);
    expect_refused("job", 7, "symbolic links");
    pid_t pid = fork();
    if (pid == 0)
        _exit(iq_rendezvous_file_publish(path, "job", 7, &id) == ISGQ_SUCCESS ? 0 : 1);
    ck_assert(control_rank_reap(pid));
    expect_refused("job", 7, "the process that wrote it has ended");
    remove_folder();
}
END_TEST

START_TEST(file_in_a_missing_folder)
{
    isgq_unique_id_t id = some_id();
    ck_assert_int_eq(iq_rendezvous_file_publish("/nonexistent/meet", "job", 0, &id), ISGQ_ERR_SYSTEM);
    ck_assert_msg(strstr(iq_last_error(), "/nonexistent/meet") != NULL, "%s", iq_last_error());
}
END_TEST

/* ---- secrets ---- */

START_TEST(secret_file_must_be_private)
{
    char phrase[64];
    size_t bytes;

    make_folder();
    int fd = open(path, O_CREAT | O_WRONLY, 0600);
    ck_assert_int_eq(write(fd, "correct horse\n", 14), 14);
    close(fd);
    ck_assert_int_eq(iq_secret_read(path, phrase, sizeof(phrase), &bytes), ISGQ_SUCCESS);
    ck_assert_uint_eq(bytes, 13);
    ck_assert_int_eq(iq_secret_read(path, phrase, 10, &bytes), ISGQ_ERR_INVALID_USAGE);
    chmod(path, 0644);
    ck_assert_int_eq(iq_secret_read(path, phrase, sizeof(phrase), &bytes), ISGQ_ERR_INVALID_USAGE);
    chmod(path, 0600);
    ck_assert_int_eq(truncate(path, 0), 0);
    ck_assert_int_eq(iq_secret_read(path, phrase, sizeof(phrase), &bytes), ISGQ_ERR_INVALID_USAGE);
    remove_folder();
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("rendezvous");
    TCase *id = tcase_create("id");
    TCase *file = tcase_create("file");
    TCase *secret = tcase_create("secret");

    tcase_add_test(id, id_round_trip);
    tcase_add_test(id, id_that_is_not_used);
    tcase_add_test(id, id_is_bound_to_its_process);
    tcase_add_test(id, damaged_ids_are_refused);
    tcase_add_test(id, interface_means_tcp);
    suite_add_tcase(suite, id);
    tcase_add_test(file, file_round_trip);
    tcase_add_test(file, foreign_files_are_ignored);
    tcase_add_test(file, file_in_a_missing_folder);
    suite_add_tcase(suite, file);
    tcase_add_test(secret, secret_file_must_be_private);
    suite_add_tcase(suite, secret);
    return suite;
}
