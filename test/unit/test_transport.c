/* SPDX-License-Identifier: Apache-2.0 */
/* The transports by their common contract, and what is special to each. The ranks live in a world: see support/world.h. */
#include "transport/transport.h"

#include "base/module.h"
#include "base/util.h"
#include "support/check_main.h"
#include "support/world.h"

#include <dirent.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- the choice ---- */

static const char *chosen(const char *allowed, int host_a, int process_a, int host_b, int process_b)
{
    iq_peer_t a = {.host = (uint64_t)host_a, .process = (uint64_t)process_a};
    iq_peer_t b = {.host = (uint64_t)host_b, .process = (uint64_t)process_b};
    const iq_transport_ops_t *there = iq_transport_choose(allowed, &a, &b), *back = iq_transport_choose(allowed, &b, &a);
    ck_assert_ptr_eq(there, back);
    return there == NULL ? "none" : there->name;
}

START_TEST(choice)
{
    ck_assert_str_eq(chosen("local,shm,ucx", 1, 1, 1, 1), "local");
    ck_assert_str_eq(chosen("local,shm,ucx", 1, 1, 1, 2), "shm");
    ck_assert_str_eq(chosen("local,shm,ucx", 1, 1, 2, 2), "ucx");
    ck_assert_str_eq(chosen("ucx,shm", 1, 1, 1, 2), "shm");
    ck_assert_str_eq(chosen("ucx", 1, 1, 1, 2), "none"); /* never inside a host */
    ck_assert_str_eq(chosen("shm,ucx", 1, 1, 1, 1), "none");
    ck_assert_str_eq(chosen(" nccl , shm ,", 1, 1, 1, 2), "shm");
    ck_assert_str_eq(chosen("shmem,sh,loca", 1, 1, 1, 2), "none");
    ck_assert_str_eq(chosen("", 1, 1, 1, 1), "none");
}
END_TEST

START_TEST(peers)
{
    iq_peer_t here, again, child;
    int channel[2];
    iq_peer_describe(&here);
    iq_peer_describe(&again);
    ck_assert_uint_eq(here.host, again.host);
    ck_assert_uint_eq(here.process, again.process);
    ck_assert_int_eq(here.pid, getpid());

    ck_assert_int_eq(pipe(channel), 0);
    pid_t pid = fork();
    if (pid == 0) {
        iq_peer_describe(&child);
        _exit(write(channel[1], &child, sizeof(child)) == sizeof(child) ? 0 : 1);
    }
    ck_assert_int_eq(read(channel[0], &child, sizeof(child)), sizeof(child));
    ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
    close(channel[0]);
    close(channel[1]);
    ck_assert_uint_eq(child.host, here.host);
    ck_assert_uint_ne(child.process, here.process);
}
END_TEST

/* ---- everybody talks to everybody ---- */

START_TEST(talk_local)
{
    world_t world = world_make("local", _i);
    world_run(&world);
}
END_TEST

START_TEST(talk_shm)
{
    world_t world = world_make("shm", _i);
    world_run(&world);
}
END_TEST

/* Only a build without the module may do without it. */
static bool have_ucx(void)
{
    bool have = iq_module_load("ucx") != NULL;
    ck_assert_msg(have || strstr(iq_last_error(), "built without it") != NULL, "%s", iq_last_error());
    return have;
}

static int expect_no_ucx(rank_t *self)
{
    EXPECT(world_open(self) == ISGQ_ERR_UNSUPPORTED);
    EXPECT(strstr(iq_last_error(), "ucx") != NULL);
    world_close(self);
    return 0;
}

/* A build without the module must say so on every rank instead of hanging. */
static void run_ucx_world(world_t *world)
{
    if (strcmp(world->transports, "ucx") == 0 && !have_ucx())
        world->body = expect_no_ucx;
    world_run(world);
}

START_TEST(talk_ucx)
{
    world_t world = world_make("ucx", _i);
    run_ucx_world(&world);
}
END_TEST

/* Interfaces by name and address; one slot in flight at the very least, and many. */
START_TEST(talk_ucx_settings)
{
    static const struct {
        const char *interface;
        unsigned slots;
        size_t slot_bytes;
    } settings[] = {{"lo", 3, 65536}, {"127.0.0.1", 3, 65536}, {"", 2, 1024}, {"", 16, 1024}};
    world_t world = world_make("ucx", 2);
    world.interface = settings[_i].interface;
    world.slots = settings[_i].slots;
    world.slot_bytes = settings[_i].slot_bytes;
    run_ucx_world(&world);
}
END_TEST

/* Rank 0 sends more than the network buffers, while the others look elsewhere: it waits for rank 2. */
static int await_the_busy(rank_t *self)
{
    int peer, messages = 3;
    size_t bytes;
    EXPECT(world_open(self) == ISGQ_SUCCESS);
    iq_link_t *link = self->links[self->rank == 0 ? 2 : 0];
    for (int i = 0; i < messages && self->rank == 0; i++)
        EXPECT(link->ops->acquire(link) != NULL && link->ops->commit(link, self->world->slot_bytes) == ISGQ_SUCCESS);
    for (int i = 0; i < 20 && self->rank == 0; i++)
        EXPECT(world_progress(self, true, &peer) == ISGQ_IN_PROGRESS && peer == 2);
    EXPECT(world_barrier(self) == 0);
    for (int i = 0; i < messages && self->rank == 2; i++) {
        while (link->ops->peek(link, &bytes) == NULL)
            EXPECT(world_progress(self, false, &peer) == ISGQ_SUCCESS && peer == -1);
        EXPECT(link->ops->release(link) == ISGQ_SUCCESS);
    }
    EXPECT(world_settle(self) == 0 && world_barrier(self) == 0);
    world_close(self);
    return 0;
}

START_TEST(settle_names_the_awaited_peer)
{
    world_t world = world_make("ucx", 3);
    world.body = await_the_busy;
    world.slot_bytes = 4 << 20;
    run_ucx_world(&world);
}
END_TEST

/* Two hosts with a process of two threads and one of one thread each. */
START_TEST(talk_mixed)
{
    world_t world = world_make(have_ucx() ? "local,shm,ucx" : "local,shm", have_ucx() ? 6 : 3);
    static const int process[] = {0, 0, 1, 2, 2, 3}, host[] = {0, 0, 0, 1, 1, 1};
    memcpy(world.process, process, sizeof(process));
    memcpy(world.host, host, sizeof(host));
    world_run(&world);
}
END_TEST

/* Two processes of two threads under shm alone: threads of one process have no link. */
START_TEST(talk_shm_threads)
{
    world_t world = world_make("shm", 4);
    static const int process[] = {0, 1, 0, 1};
    memcpy(world.process, process, sizeof(process));
    world_run(&world);
}
END_TEST

/* Rank 0 sends, rank 1 receives slowly: nothing but the room that comes free can end the naps of rank 0, nothing but messages those of rank 1. */
static int stream_slowly(rank_t *self)
{
    int failed_peer, moved = 0;
    uint64_t start = iq_now_ns();
    EXPECT(world_open(self) == ISGQ_SUCCESS);
    iq_link_t *link = self->links[1 - self->rank];
    while (moved < 20) {
        size_t bytes;
        EXPECT(iq_now_ns() - start < LONG_NAP_NS / 2);
        if (self->rank == 0 && link->ops->acquire(link) != NULL) {
            EXPECT(link->ops->commit(link, 1) == ISGQ_SUCCESS);
            moved++;
        } else if (self->rank == 1 && link->ops->peek(link, &bytes) != NULL) {
            usleep(2000); /* long enough for the other side to fall asleep; if it does not, nothing is lost but the point */
            EXPECT(link->ops->release(link) == ISGQ_SUCCESS);
            moved++;
        } else {
            EXPECT(world_progress(self, false, &failed_peer) == ISGQ_SUCCESS);
            self->transports[0]->ops->sleep(self->transports[0], LONG_NAP_NS);
        }
    }
    EXPECT(world_settle(self) == 0 && world_barrier(self) == 0);
    world_close(self);
    return 0;
}

START_TEST(naps)
{
    static const char *const transports[] = {"local", "shm", "ucx"};
    world_t world = world_make(transports[_i], 2);
    world.body = stream_slowly;
    run_ucx_world(&world);
}
END_TEST

/* ---- death ---- */

/* Ours, should we ever have any: other programs come and go there. */
static int count_shared_files(void)
{
    int count = 0;
    DIR *folder = opendir("/dev/shm");
    for (struct dirent *file; folder != NULL && (file = readdir(folder)) != NULL;)
        count += strstr(file->d_name, "isgq") != NULL;
    if (folder != NULL)
        closedir(folder);
    return count;
}

/* The victim dies with a message half written; the others go on among themselves and fill its queue. */
static int survive_shm(rank_t *self)
{
    size_t bytes;
    int victim = self->world->victim;
    EXPECT(world_open(self) == ISGQ_SUCCESS);
    if (world_exchange(self, -1) != 0 || world_settle(self) != 0 || world_barrier(self) != 0)
        return 1;
    if (self->rank == victim) {
        iq_link_t *link = self->links[0];
        memset(link->ops->acquire(link), 0xff, self->world->slot_bytes);
        kill(getpid(), SIGKILL);
    }
    if (world_exchange(self, victim) != 0)
        return 1;
    iq_link_t *dead = self->links[victim];
    while (dead->ops->acquire(dead) != NULL)
        EXPECT(dead->ops->commit(dead, 1) == ISGQ_SUCCESS);
    EXPECT(dead->ops->peek(dead, &bytes) == NULL);
    world_close(self);
    return 0;
}

/* Only the first epoch has a victim; nobody is left to meet in a second. */
static int survive_shm_once(rank_t *self) { return self->epoch == 0 ? survive_shm(self) : 0; }

START_TEST(killed_shm)
{
    world_t world = world_make("shm", 3);
    world.body = survive_shm_once;
    world.victim = 1;
    world_run(&world);
    ck_assert_int_eq(count_shared_files(), 0);
}
END_TEST

static atomic_int *survivors; /* who has seen the death, in memory that all processes share */

static int survive_ucx(rank_t *self)
{
    int failed_peer = -1;
    isgq_result_t result = ISGQ_SUCCESS;
    if (self->epoch > 0)
        return 0;
    EXPECT(world_open(self) == ISGQ_SUCCESS);
    if (world_exchange(self, -1) != 0 || world_settle(self) != 0 || world_barrier(self) != 0)
        return 1;
    if (self->rank == self->world->victim)
        kill(getpid(), SIGKILL);
    uint64_t start = iq_now_ns();
    while (result == ISGQ_SUCCESS && iq_now_ns() - start < LONG_NAP_NS) {
        self->transports[0]->ops->sleep(self->transports[0], 50000000);
        result = world_progress(self, false, &failed_peer);
    }
    EXPECT(result == ISGQ_ERR_REMOTE);
    EXPECT(failed_peer == self->world->victim);
    EXPECT(strstr(iq_last_error(), "rank 1") != NULL);
    EXPECT(iq_now_ns() - start < 5000000000u);
    atomic_fetch_add(survivors, 1);
    while (atomic_load(survivors) < self->world->nranks - 1 && iq_now_ns() - start < LONG_NAP_NS)
        usleep(1000); /* whoever closes now would die before the other's eyes too */
    start = iq_now_ns();
    world_close(self);
    EXPECT(iq_now_ns() - start < 5000000000u);
    return 0;
}

START_TEST(killed_ucx)
{
    world_t world = world_make("ucx", 3);
    world.body = have_ucx() ? survive_ucx : expect_no_ucx;
    world.victim = have_ucx() ? 1 : -1;
    survivors = mmap(NULL, sizeof(*survivors), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ck_assert_ptr_ne(survivors, MAP_FAILED);
    atomic_store(survivors, 0);
    world_run(&world);
    munmap(survivors, sizeof(*survivors));
}
END_TEST

static int leave_early(rank_t *self)
{
    EXPECT(world_open(self) == ISGQ_SUCCESS);
    iq_link_t *link = self->links[1 - self->rank];
    if (self->rank == 1) {
        EXPECT(link->ops->acquire(link) != NULL);
        EXPECT(link->ops->commit(link, 7) == ISGQ_SUCCESS);
        world_close(self);
    }
    EXPECT(world_barrier(self) == 0);
    if (self->rank == 0) {
        size_t bytes = 0;
        EXPECT(link->ops->peek(link, &bytes) != NULL && bytes == 7); /* what was sent before is still there */
        EXPECT(link->ops->release(link) == ISGQ_SUCCESS);
        EXPECT(link->ops->acquire(link) != NULL);
        EXPECT(link->ops->commit(link, 1) == ISGQ_ERR_REMOTE);
        EXPECT(strstr(iq_last_error(), "rank 1") != NULL);
        world_close(self);
    }
    return 0;
}

START_TEST(left_early)
{
    world_t world = world_make(_i == 0 ? "local" : "shm", 2);
    world.body = leave_early;
    world_run(&world);
}
END_TEST

/* Rank 0 overwrites the length of a message that it has sent. */
static int damage(rank_t *self)
{
    EXPECT(world_open(self) == ISGQ_SUCCESS);
    iq_link_t *link = self->links[1 - self->rank];
    if (self->rank == 0) {
        unsigned char *slot = link->ops->acquire(link);
        EXPECT(slot != NULL && link->ops->commit(link, 7) == ISGQ_SUCCESS);
        uint32_t length = UINT32_MAX; /* lengths lie behind the tail, one line before the first slot: see ring.h */
        memcpy(slot - 64 + 8, &length, sizeof(length));
    }
    EXPECT(world_barrier(self) == 0);
    if (self->rank == 1) {
        size_t bytes;
        int failed_peer = -1;
        EXPECT(link->ops->peek(link, &bytes) == NULL);
        EXPECT(world_progress(self, false, &failed_peer) == ISGQ_ERR_CORRUPT);
        EXPECT(failed_peer == 0);
    }
    EXPECT(world_barrier(self) == 0);
    world_close(self);
    return 0;
}

START_TEST(damaged)
{
    world_t world = world_make(_i == 0 ? "local" : "shm", 2);
    world.body = damage;
    world_run(&world);
}
END_TEST

/* ---- open that fails ---- */

static int bad_interface(rank_t *self)
{
    if (self->rank == 1)
        self->interface = "nosuch0";
    EXPECT(world_open(self) == (self->rank == 1 ? ISGQ_ERR_INVALID_ARGUMENT : ISGQ_ERR_REMOTE));
    EXPECT(strstr(iq_last_error(), self->rank == 1 ? "nosuch0" : "rank 1") != NULL);
    world_close(self);
    return 0;
}

START_TEST(open_on_a_wrong_interface)
{
    world_t world = world_make("ucx", 3);
    world.body = bad_interface;
    run_ucx_world(&world);
}
END_TEST

/* Rank 1 makes the allgather calls but never comes for the segment. */
static int absent_member(rank_t *self)
{
    unsigned char offer[20] = {0}, offers[MAX_RANKS * 20];
    int32_t fine = 0, all[MAX_RANKS];
    if (self->rank == 1) {
        EXPECT(world_gather(self, offer, offers, sizeof(offer)) == ISGQ_SUCCESS);
        EXPECT(world_gather(self, &fine, all, sizeof(fine)) == ISGQ_SUCCESS);
        return 0;
    }
    EXPECT(world_open(self) == (self->rank == 0 ? ISGQ_ERR_TIMEOUT : ISGQ_ERR_REMOTE));
    EXPECT(self->rank != 0 || strstr(iq_last_error(), "rank 1") != NULL);
    world_close(self);
    return 0;
}

START_TEST(open_without_a_member)
{
    world_t world = world_make("shm", 3);
    world.body = absent_member;
    world.open_ns = 400000000;
    world_run(&world);
}
END_TEST

/* Before rank 2 comes for the segment, strangers come: one that says nothing, one that talks rubbish, one that hangs up. */
static void send_strangers(rank_t *self, const void *all, size_t bytes)
{
    static const char rubbish[64] = "GET / HTTP/1.1";
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const unsigned char *name = all;
    if (self->rank != 2 || self->gathers != 1 || bytes != 20)
        return;
    int length = snprintf(address.sun_path + 1, sizeof(address.sun_path) - 1, "isgqcoll-");
    for (int i = 0; i < 16; i++)
        length += snprintf(address.sun_path + 1 + length, 3, "%02x", name[i]);
    for (int stranger = 0; stranger < 3; stranger++) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(fd, (struct sockaddr *)&address, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length)) !=
                0 ||
            (stranger == 1 && send(fd, rubbish, sizeof(rubbish), MSG_NOSIGNAL) != sizeof(rubbish)))
            self->interface = NULL; /* noticed below */
        if (stranger == 2)
            close(fd);
        else
            self->result = fd; /* kept open; the epoch's end closes the last */
    }
}

static int meet_strangers(rank_t *self)
{
    if (self->epoch > 0)
        return 0;
    int result = world_talk(self);
    EXPECT(self->interface != NULL);
    return result;
}

START_TEST(strangers)
{
    world_t world = world_make("shm", 3);
    world.body = meet_strangers;
    world.after_gather = send_strangers;
    world_run(&world);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("transport");
    TCase *choosing = tcase_create("choice");
    TCase *local = tcase_create("local");
    TCase *shm = tcase_create("shm");
    TCase *ucx = tcase_create("ucx");
    TCase *mixed = tcase_create("mixed");
    TCase *naps_case = tcase_create("naps");
    TCase *death = tcase_create("death");
    TCase *failing = tcase_create("failing_open");
    tcase_add_test(choosing, choice);
    tcase_add_test(choosing, peers);
    tcase_add_loop_test(local, talk_local, 1, 6);
    tcase_add_loop_test(shm, talk_shm, 2, 6);
    tcase_add_test(shm, talk_shm_threads);
    tcase_add_loop_test(ucx, talk_ucx, 2, 6);
    tcase_add_loop_test(ucx, talk_ucx_settings, 0, 4);
    tcase_add_test(mixed, talk_mixed);
    tcase_add_test(ucx, settle_names_the_awaited_peer);
    tcase_add_loop_test(ucx, naps, 2, 3); /* CMakeLists.txt knows the cases with UCX */
    tcase_add_loop_test(naps_case, naps, 0, 2);
    tcase_add_test(death, killed_shm);
    tcase_add_test(death, killed_ucx);
    tcase_add_loop_test(death, left_early, 0, 2);
    tcase_add_loop_test(death, damaged, 0, 2);
    tcase_add_test(failing, open_on_a_wrong_interface);
    tcase_add_test(failing, open_without_a_member);
    tcase_add_test(failing, strangers);
    TCase *const cases[] = {choosing, local, shm, ucx, mixed, naps_case, death, failing};
    for (size_t i = 0; i < IQ_ARRAY_SIZE(cases); i++) {
        tcase_set_timeout(cases[i], 100);
        suite_add_tcase(suite, cases[i]);
    }
    return suite;
}
