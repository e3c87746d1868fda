/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The transports by their common contract, and what is special to each.
 *
 * A world is a number of ranks laid out over hosts, processes and threads. Ranks of one process are threads; processes are forked; hosts
 * exist only in the descriptions, so UCX runs over this machine's own network. The parent serves the allgather over socket pairs.
 */
#include "transport/transport.h"

#include "base/module.h"
#include "base/util.h"
#include "support/check_main.h"

#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define MAX_RANKS 6
#define MESSAGES 60
#define EPOCHS 2
#define LONG_NAP_NS 20000000000u

typedef struct rank rank_t;

typedef struct world {
    const char *transports;
    int nranks;
    int host[MAX_RANKS], process[MAX_RANKS];
    int (*body)(rank_t *self); /* 0: all is well */
    int victim;                /* a rank that dies of SIGKILL, -1: none */
    const char *interface;
    size_t slot_bytes;
    unsigned slots;
    uint64_t open_ns;
    void (*after_gather)(rank_t *self, const void *all, size_t bytes);
} world_t;

struct rank {
    const world_t *world;
    int rank, socket, epoch, gathers;
    int result;
    iq_peer_t peers[MAX_RANKS];
    const char *interface;
    int ntransports;
    iq_transport_t *transports[4];
    iq_link_t *links[MAX_RANKS];
};

/* In ranks, which are not where Check can see a failed assertion. */
#define EXPECT(condition)                                                                                       \
    do {                                                                                                        \
        if (!(condition)) {                                                                                     \
            fprintf(stderr, "rank %d, line %d: not so: %s; last error: %s\n", self->rank, __LINE__, #condition, \
                    iq_last_error());                                                                           \
            return 1;                                                                                           \
        }                                                                                                       \
    } while (0)

/* ---- allgather ---- */

static bool read_all(int fd, void *data, size_t bytes)
{
    return bytes == 0 || recv(fd, data, bytes, MSG_WAITALL) == (ssize_t)bytes;
}

static bool write_all(int fd, const void *data, size_t bytes) { return send(fd, data, bytes, MSG_NOSIGNAL) == (ssize_t)bytes; }

static isgq_result_t gather(void *context, const void *send_data, void *recv_data, size_t bytes)
{
    rank_t *self = context;
    if (!write_all(self->socket, &bytes, sizeof(bytes)) || !write_all(self->socket, send_data, bytes) ||
        !read_all(self->socket, recv_data, bytes * (size_t)self->world->nranks))
        return IQ_FAIL(ISGQ_ERR_REMOTE, "allgather: a rank has left");
    self->gathers++;
    if (self->world->after_gather != NULL)
        self->world->after_gather(self, recv_data, bytes);
    return ISGQ_SUCCESS;
}

/* Until a rank leaves. */
static void serve_gathers(const int *sockets, int nranks)
{
    static unsigned char all[MAX_RANKS * 65536];
    for (;;) {
        size_t bytes = 0, first = 0;
        for (int r = 0; r < nranks; r++) {
            if (!read_all(sockets[r], &bytes, sizeof(bytes)) || bytes > 65536 ||
                !read_all(sockets[r], all + (size_t)r * bytes, bytes))
                return;
            first = r == 0 ? bytes : first;
            ck_assert_uint_eq(bytes, first);
        }
        for (int r = 0; r < nranks; r++)
            write_all(sockets[r], all, bytes * (size_t)nranks);
    }
}

/* ---- ranks ---- */

static isgq_result_t open_transport(rank_t *self, const iq_transport_ops_t *ops)
{
    const world_t *world = self->world;
    bool mine[MAX_RANKS] = {false};
    for (int r = 0; r < world->nranks; r++)
        mine[r] = r != self->rank && iq_transport_choose(world->transports, &self->peers[self->rank], &self->peers[r]) == ops;
    const iq_transport_params_t params = {.rank = self->rank,
                                          .nranks = world->nranks,
                                          .peers = self->peers,
                                          .mine = mine,
                                          .token = 0x123456789abcdef0ull + (uint64_t)self->epoch,
                                          .slot_bytes = world->slot_bytes,
                                          .slots = world->slots,
                                          .allgather = gather,
                                          .allgather_context = self,
                                          .deadline_ns = iq_now_ns() + world->open_ns,
                                          .interface = self->interface};
    iq_transport_t *transport;
    IQ_TRY(ops->open(&params, &transport));
    self->transports[self->ntransports++] = transport;
    for (int r = 0; r < world->nranks; r++) {
        iq_link_t *link = ops->link(transport, r);
        if ((link != NULL) != mine[r] || (link != NULL && (link->peer != r || strcmp(link->transport, ops->name) != 0)))
            return IQ_FAIL(ISGQ_ERR_INTERNAL, "%s: link to rank %d is wrong", ops->name, r);
        if (link != NULL)
            self->links[r] = link;
    }
    return ISGQ_SUCCESS;
}

/* Everything that the world names, also what it has no use for. */
static isgq_result_t open_all(rank_t *self)
{
    self->ntransports = 0;
    memset(self->links, 0, sizeof(self->links));
    for (int r = 0; r < self->world->nranks; r++) {
        memset(&self->peers[r], 0, sizeof(self->peers[r]));
        self->peers[r].host = 100 + (uint64_t)self->world->host[r];
        self->peers[r].process = 200 + (uint64_t)self->world->process[r];
    }
    for (size_t i = 0; iq_transports[i] != NULL; i++)
        if (strstr(self->world->transports, iq_transports[i]->name) != NULL)
            IQ_TRY(open_transport(self, iq_transports[i]));
    return ISGQ_SUCCESS;
}

static void close_all(rank_t *self)
{
    while (self->ntransports > 0) {
        iq_transport_t *transport = self->transports[--self->ntransports];
        transport->ops->close(transport);
    }
}

static isgq_result_t progress_all(rank_t *self, bool settle, int *failed_peer)
{
    isgq_result_t result = ISGQ_SUCCESS;
    *failed_peer = -1;
    for (int i = 0; i < self->ntransports; i++) {
        isgq_result_t one = self->transports[i]->ops->progress(self->transports[i], settle, failed_peer);
        if (one != ISGQ_SUCCESS && one != ISGQ_IN_PROGRESS)
            return one;
        if (one == ISGQ_IN_PROGRESS)
            result = one;
    }
    return result;
}

/* With one transport its own wake-ups must do, with several a short nap in the last. */
static void sleep_briefly(rank_t *self)
{
    if (self->ntransports > 0) {
        iq_transport_t *last = self->transports[self->ntransports - 1];
        last->ops->sleep(last, self->ntransports == 1 ? LONG_NAP_NS : 1000000);
    }
}

static uint64_t scramble(uint64_t x)
{
    x = (x + 0x9e3779b97f4a7c15ull) * 0xbf58476d1ce4e5b9ull;
    return x ^ x >> 29;
}

static uint64_t message_key(const rank_t *self, int from, int to, int i)
{
    return scramble(((uint64_t)self->epoch << 48) + ((uint64_t)from << 40) + ((uint64_t)to << 32) + (uint64_t)i);
}

static size_t message_bytes(const rank_t *self, uint64_t key, int i)
{
    return i == 0 ? 1 : i == 1 ? self->world->slot_bytes : 1 + (size_t)(key % self->world->slot_bytes);
}

static int send_one(rank_t *self, int peer, int i, bool *moved)
{
    iq_link_t *link = self->links[peer];
    unsigned char *slot = link->ops->acquire(link);
    if (slot == NULL)
        return 0;
    uint64_t key = message_key(self, self->rank, peer, i);
    size_t bytes = message_bytes(self, key, i);
    EXPECT((uintptr_t)slot % 64 == 0);
    EXPECT(link->ops->acquire(link) == slot);
    for (size_t k = 0; k < bytes; k++)
        slot[k] = (unsigned char)(key + k * 3 + (k >> 8));
    EXPECT(link->ops->commit(link, bytes) == ISGQ_SUCCESS);
    *moved = true;
    return 0;
}

static int receive_one(rank_t *self, int peer, int i, bool *moved)
{
    iq_link_t *link = self->links[peer];
    size_t bytes = 0;
    const unsigned char *message = link->ops->peek(link, &bytes);
    if (message == NULL)
        return 0;
    uint64_t key = message_key(self, peer, self->rank, i);
    EXPECT((uintptr_t)message % 64 == 0);
    EXPECT(bytes == message_bytes(self, key, i));
    EXPECT(link->ops->peek(link, &bytes) == message);
    for (size_t k = 0; k < bytes; k++)
        EXPECT(message[k] == (unsigned char)(key + k * 3 + (k >> 8)));
    EXPECT(link->ops->release(link) == ISGQ_SUCCESS);
    *moved = true;
    return 0;
}

/* MESSAGES to and from every peer at once, but not to or from `without`. */
static int exchange(rank_t *self, int without)
{
    int sent[MAX_RANKS] = {0}, received[MAX_RANKS] = {0}, failed_peer;
    bool moved = true, all = false;
    while (!all) {
        all = true;
        moved = false;
        for (int peer = 0; peer < self->world->nranks; peer++) {
            bool step = false;
            if (peer == without || self->links[peer] == NULL)
                continue;
            if (sent[peer] < MESSAGES && send_one(self, peer, sent[peer], &step) != 0)
                return 1;
            sent[peer] += step;
            moved |= step;
            step = false;
            if (received[peer] < MESSAGES && receive_one(self, peer, received[peer], &step) != 0)
                return 1;
            received[peer] += step;
            moved |= step;
            all &= sent[peer] == MESSAGES && received[peer] == MESSAGES;
        }
        EXPECT(without >= 0 || progress_all(self, false, &failed_peer) == ISGQ_SUCCESS);
        if (!moved && !all)
            sleep_briefly(self);
    }
    return 0;
}

static int settle(rank_t *self)
{
    int failed_peer;
    isgq_result_t result;
    uint64_t limit = iq_now_ns() + LONG_NAP_NS;
    while ((result = progress_all(self, true, &failed_peer)) == ISGQ_IN_PROGRESS && iq_now_ns() < limit)
        usleep(100);
    EXPECT(result == ISGQ_SUCCESS);
    return 0;
}

/* A wake before the sleep counts: otherwise it could come a moment too early and be lost. */
static int wake_then_sleep(rank_t *self)
{
    for (int i = 0; i < self->ntransports; i++) {
        uint64_t start = iq_now_ns();
        self->transports[i]->ops->wake(self->transports[i]);
        self->transports[i]->ops->sleep(self->transports[i], LONG_NAP_NS);
        EXPECT(iq_now_ns() - start < LONG_NAP_NS / 2);
    }
    return 0;
}

static int barrier(rank_t *self)
{
    char all[MAX_RANKS], here = 1;
    EXPECT(gather(self, &here, all, 1) == ISGQ_SUCCESS);
    return 0;
}

static int talk(rank_t *self)
{
    int result = 1;
    EXPECT(open_all(self) == ISGQ_SUCCESS);
    if (exchange(self, -1) == 0 && settle(self) == 0 && wake_then_sleep(self) == 0)
        result = barrier(self);
    close_all(self);
    return result;
}

/* ---- processes and threads ---- */

extern int __lsan_do_recoverable_leak_check(void) __attribute__((weak)); /* the leak sanitizer's, if it is there */

static int count_descriptors(void)
{
    int count = 0;
    DIR *folder = opendir("/proc/self/fd");
    while (folder != NULL && readdir(folder) != NULL)
        count++;
    if (folder != NULL)
        closedir(folder);
    return count;
}

static int count_segments(void)
{
    char line[512];
    int count = 0;
    FILE *file = fopen("/proc/self/maps", "re");
    while (file != NULL && fgets(line, sizeof(line), file) != NULL)
        count += strstr(line, "memfd:isgqcoll") != NULL;
    if (file != NULL)
        fclose(file);
    return count;
}

static void *run_rank(void *argument)
{
    rank_t *self = argument;
    self->result = self->world->body(self);
    return NULL;
}

static int run_epoch(const world_t *world, const int *sockets, int process, int epoch)
{
    rank_t ranks[MAX_RANKS];
    pthread_t threads[MAX_RANKS];
    int failures = 0, count = 0;
    for (int r = 0; r < world->nranks; r++)
        if (world->process[r] == process)
            ranks[count++] = (rank_t){
                .world = world, .rank = r, .socket = sockets[r], .epoch = epoch, .interface = world->interface, .result = 1};
    for (int i = 1; i < count; i++)
        failures += pthread_create(&threads[i], NULL, run_rank, &ranks[i]) != 0;
    run_rank(&ranks[0]);
    for (int i = 1; i < count; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < count; i++)
        failures += ranks[i].result != 0;
    return failures;
}

/* Twice, so that what a library keeps from its first use does not count as ours. */
static int run_process(const world_t *world, const int *sockets, int process)
{
    int failures = 0, descriptors[EPOCHS];
    for (int epoch = 0; epoch < EPOCHS && failures == 0; epoch++) {
        failures = run_epoch(world, sockets, process, epoch);
        descriptors[epoch] = count_descriptors();
        if (failures == 0 && (descriptors[epoch] != descriptors[0] || count_segments() != 0)) {
            fprintf(stderr, "process %d left %d descriptors behind instead of %d, and %d segments\n", process, descriptors[epoch],
                    descriptors[0], count_segments());
            failures++;
        }
    }
    return failures;
}

static pid_t start_process(const world_t *world, int *mine, int *parents, int process)
{
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    for (int r = 0; r < world->nranks; r++) {
        close(parents[r]);
        if (world->process[r] != process)
            close(mine[r]);
    }
    int failures = run_process(world, mine, process);
    if (world->victim < 0 && __lsan_do_recoverable_leak_check != NULL)
        failures += __lsan_do_recoverable_leak_check();
    _exit(failures == 0 ? 0 : 1);
}

static void check_process(const world_t *world, pid_t pid, int process)
{
    int status;
    bool victim = world->victim >= 0 && world->process[world->victim] == process;
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    if (victim)
        ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "the victim lives");
    else
        ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "process %d: status %#x", process, (unsigned)status);
}

typedef struct thread_world {
    const world_t *world;
    const int *sockets;
    int failures;
} thread_world_t;

static void *run_threads(void *argument)
{
    thread_world_t *job = argument;
    job->failures = run_process(job->world, job->sockets, 0);
    for (int r = 0; r < job->world->nranks; r++)
        shutdown(job->sockets[r], SHUT_RDWR);
    return NULL;
}

/* Process numbers are 0..; a world of one process stays inside this one, where the sanitizers see most. */
static void run_world(const world_t *world)
{
    int mine[MAX_RANKS], parents[MAX_RANKS], processes = 1;
    pid_t pids[MAX_RANKS];
    for (int r = 0; r < world->nranks; r++) {
        int pair[2];
        ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        mine[r] = pair[0];
        parents[r] = pair[1];
        processes = world->process[r] >= processes ? world->process[r] + 1 : processes;
    }
    if (processes == 1) {
        pthread_t thread;
        thread_world_t job = {world, mine, 1};
        ck_assert_int_eq(pthread_create(&thread, NULL, run_threads, &job), 0);
        serve_gathers(parents, world->nranks);
        pthread_join(thread, NULL);
        ck_assert_int_eq(job.failures, 0);
    } else {
        fflush(NULL);
        for (int p = 0; p < processes; p++)
            pids[p] = start_process(world, mine, parents, p);
    }
    for (int r = 0; r < world->nranks; r++)
        close(mine[r]);
    if (processes > 1)
        serve_gathers(parents, world->nranks);
    for (int r = 0; r < world->nranks; r++)
        close(parents[r]);
    for (int p = 0; p < processes && processes > 1; p++)
        check_process(world, pids[p], p);
}

static world_t make_world(const char *transports, int nranks)
{
    world_t world = {.transports = transports,
                     .nranks = nranks,
                     .body = talk,
                     .victim = -1,
                     .interface = "",
                     .slot_bytes = 65536,
                     .slots = 3,
                     .open_ns = 20000000000u};
    for (int r = 0; r < nranks && strcmp(transports, "local") != 0; r++)
        world.process[r] = r;
    for (int r = 0; r < nranks && strcmp(transports, "ucx") == 0; r++)
        world.host[r] = r;
    return world;
}

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
    world_t world = make_world("local", _i);
    run_world(&world);
}
END_TEST

START_TEST(talk_shm)
{
    world_t world = make_world("shm", _i);
    run_world(&world);
}
END_TEST

static bool have_ucx(void) { return iq_module_load("ucx") != NULL; }

static int expect_no_ucx(rank_t *self)
{
    EXPECT(open_all(self) == ISGQ_ERR_UNSUPPORTED);
    EXPECT(strstr(iq_last_error(), "ucx") != NULL);
    close_all(self);
    return 0;
}

/* A build without the module must say so on every rank instead of hanging. */
static void run_ucx_world(world_t *world)
{
    if (!have_ucx())
        world->body = expect_no_ucx;
    run_world(world);
}

START_TEST(talk_ucx)
{
    world_t world = make_world("ucx", _i);
    run_ucx_world(&world);
}
END_TEST

START_TEST(talk_ucx_on_interface)
{
    static const char *const interfaces[] = {"lo", "127.0.0.1"};
    world_t world = make_world("ucx", 2);
    world.interface = interfaces[_i];
    run_ucx_world(&world);
}
END_TEST

/* One slot in flight at the very least, and many. */
START_TEST(talk_ucx_slots)
{
    static const unsigned slots[] = {2, 16};
    world_t world = make_world("ucx", 2);
    world.slots = slots[_i];
    world.slot_bytes = 1024;
    run_ucx_world(&world);
}
END_TEST

/* Two hosts with a process of two threads and one of one thread each. */
START_TEST(talk_mixed)
{
    world_t world = make_world(have_ucx() ? "local,shm,ucx" : "local,shm", have_ucx() ? 6 : 3);
    static const int process[] = {0, 0, 1, 2, 2, 3}, host[] = {0, 0, 0, 1, 1, 1};
    memcpy(world.process, process, sizeof(process));
    memcpy(world.host, host, sizeof(host));
    run_world(&world);
}
END_TEST

/* Two processes of two threads under shm alone: threads of one process have no link. */
START_TEST(talk_shm_threads)
{
    world_t world = make_world("shm", 4);
    static const int process[] = {0, 1, 0, 1};
    memcpy(world.process, process, sizeof(process));
    run_world(&world);
}
END_TEST

/* ---- death ---- */

static int count_shared_files(void)
{
    int count = 0;
    DIR *folder = opendir("/dev/shm");
    while (folder != NULL && readdir(folder) != NULL)
        count++;
    if (folder != NULL)
        closedir(folder);
    return count;
}

/* The victim dies with a message half written; the others go on among themselves and fill its queue. */
static int survive_shm(rank_t *self)
{
    size_t bytes;
    int victim = self->world->victim;
    EXPECT(open_all(self) == ISGQ_SUCCESS);
    if (exchange(self, -1) != 0 || settle(self) != 0 || barrier(self) != 0)
        return 1;
    if (self->rank == victim) {
        iq_link_t *link = self->links[0];
        memset(link->ops->acquire(link), 0xff, self->world->slot_bytes);
        kill(getpid(), SIGKILL);
    }
    if (exchange(self, victim) != 0)
        return 1;
    iq_link_t *dead = self->links[victim];
    while (dead->ops->acquire(dead) != NULL)
        EXPECT(dead->ops->commit(dead, 1) == ISGQ_SUCCESS);
    EXPECT(dead->ops->peek(dead, &bytes) == NULL);
    close_all(self);
    return 0;
}

/* Only the first epoch has a victim; nobody is left to meet in a second. */
static int survive_shm_once(rank_t *self) { return self->epoch == 0 ? survive_shm(self) : 0; }

START_TEST(killed_shm)
{
    int before = count_shared_files();
    world_t world = make_world("shm", 3);
    world.body = survive_shm_once;
    world.victim = 1;
    run_world(&world);
    ck_assert_int_eq(count_shared_files(), before);
}
END_TEST

static int survive_ucx(rank_t *self)
{
    int failed_peer = -1;
    isgq_result_t result = ISGQ_SUCCESS;
    if (self->epoch > 0)
        return 0;
    EXPECT(open_all(self) == ISGQ_SUCCESS);
    if (exchange(self, -1) != 0 || settle(self) != 0 || barrier(self) != 0)
        return 1;
    if (self->rank == self->world->victim)
        kill(getpid(), SIGKILL);
    uint64_t start = iq_now_ns();
    while (result == ISGQ_SUCCESS && iq_now_ns() - start < LONG_NAP_NS) {
        self->transports[0]->ops->sleep(self->transports[0], 50000000);
        result = progress_all(self, false, &failed_peer);
    }
    EXPECT(result == ISGQ_ERR_REMOTE);
    EXPECT(failed_peer == self->world->victim);
    EXPECT(strstr(iq_last_error(), "rank 1") != NULL);
    EXPECT(iq_now_ns() - start < 5000000000u);
    start = iq_now_ns();
    close_all(self);
    EXPECT(iq_now_ns() - start < 5000000000u);
    return 0;
}

START_TEST(killed_ucx)
{
    world_t world = make_world("ucx", 3);
    world.body = have_ucx() ? survive_ucx : expect_no_ucx;
    world.victim = have_ucx() ? 1 : -1;
    run_world(&world);
}
END_TEST

static int leave_early(rank_t *self)
{
    EXPECT(open_all(self) == ISGQ_SUCCESS);
    iq_link_t *link = self->links[1 - self->rank];
    if (self->rank == 1) {
        EXPECT(link->ops->acquire(link) != NULL);
        EXPECT(link->ops->commit(link, 7) == ISGQ_SUCCESS);
        close_all(self);
    }
    if (barrier(self) != 0)
        return 1;
    if (self->rank == 0) {
        size_t bytes = 0;
        EXPECT(link->ops->peek(link, &bytes) != NULL && bytes == 7); /* what was sent before is still there */
        EXPECT(link->ops->release(link) == ISGQ_SUCCESS);
        EXPECT(link->ops->acquire(link) != NULL);
        EXPECT(link->ops->commit(link, 1) == ISGQ_ERR_REMOTE);
        EXPECT(strstr(iq_last_error(), "rank 1") != NULL);
        close_all(self);
    }
    return 0;
}

START_TEST(left_early)
{
    world_t world = make_world(_i == 0 ? "local" : "shm", 2);
    world.body = leave_early;
    run_world(&world);
}
END_TEST

/* Rank 0 overwrites the length of a message that it has sent. */
static int damage(rank_t *self)
{
    EXPECT(open_all(self) == ISGQ_SUCCESS);
    iq_link_t *link = self->links[1 - self->rank];
    if (self->rank == 0) {
        unsigned char *slot = link->ops->acquire(link);
        EXPECT(slot != NULL && link->ops->commit(link, 7) == ISGQ_SUCCESS);
        uint32_t length = UINT32_MAX; /* lengths lie behind the tail, one line before the first slot: see ring.h */
        memcpy(slot - 64 + 8, &length, sizeof(length));
    }
    if (barrier(self) != 0)
        return 1;
    if (self->rank == 1) {
        size_t bytes;
        int failed_peer = -1;
        EXPECT(link->ops->peek(link, &bytes) == NULL);
        EXPECT(progress_all(self, false, &failed_peer) == ISGQ_ERR_CORRUPT);
        EXPECT(failed_peer == 0);
    }
    if (barrier(self) != 0)
        return 1;
    close_all(self);
    return 0;
}

START_TEST(damaged)
{
    world_t world = make_world(_i == 0 ? "local" : "shm", 2);
    world.body = damage;
    run_world(&world);
}
END_TEST

/* ---- open that fails ---- */

static int bad_interface(rank_t *self)
{
    if (self->rank == 1)
        self->interface = "nosuch0";
    EXPECT(open_all(self) == (self->rank == 1 ? ISGQ_ERR_INVALID_ARGUMENT : ISGQ_ERR_REMOTE));
    EXPECT(strstr(iq_last_error(), self->rank == 1 ? "nosuch0" : "rank 1") != NULL);
    close_all(self);
    return 0;
}

START_TEST(open_on_a_wrong_interface)
{
    world_t world = make_world("ucx", 3);
    world.body = have_ucx() ? bad_interface : expect_no_ucx;
    run_world(&world);
}
END_TEST

/* Rank 1 makes the allgather calls but never comes for the segment. */
static int absent_member(rank_t *self)
{
    unsigned char offer[20] = {0}, offers[MAX_RANKS * 20];
    int32_t fine = 0, all[MAX_RANKS];
    if (self->rank == 1) {
        EXPECT(gather(self, offer, offers, sizeof(offer)) == ISGQ_SUCCESS);
        EXPECT(gather(self, &fine, all, sizeof(fine)) == ISGQ_SUCCESS);
        return 0;
    }
    EXPECT(open_all(self) == (self->rank == 0 ? ISGQ_ERR_TIMEOUT : ISGQ_ERR_REMOTE));
    EXPECT(self->rank != 0 || strstr(iq_last_error(), "rank 1") != NULL);
    close_all(self);
    return 0;
}

START_TEST(open_without_a_member)
{
    world_t world = make_world("shm", 3);
    world.body = absent_member;
    world.open_ns = 400000000;
    run_world(&world);
}
END_TEST

/* Before rank 2 comes for the segment, strangers come: one that says nothing, one that talks rubbish, one that hangs up. */
static void send_strangers(rank_t *self, const void *all, size_t bytes)
{
    static const char rubbish[64] = "GET / HTTP/1.1";
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const unsigned char *name = all;
    int length = 0;
    if (self->rank != 2 || self->gathers != 1 || bytes != 20)
        return;
    length += snprintf(address.sun_path + 1, sizeof(address.sun_path) - 1, "isgqcoll-");
    for (int i = 0; i < 16; i++)
        length += snprintf(address.sun_path + 1 + length, 3, "%02x", name[i]);
    for (int stranger = 0; stranger < 3; stranger++) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(fd, (struct sockaddr *)&address, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)length)) !=
                0 ||
            (stranger == 1 && !write_all(fd, rubbish, sizeof(rubbish))))
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
    int result = talk(self);
    EXPECT(self->interface != NULL);
    return result;
}

START_TEST(strangers)
{
    world_t world = make_world("shm", 3);
    world.body = meet_strangers;
    world.after_gather = send_strangers;
    run_world(&world);
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
    TCase *death = tcase_create("death");
    TCase *failing = tcase_create("failing_open");
    tcase_add_test(choosing, choice);
    tcase_add_test(choosing, peers);
    tcase_add_loop_test(local, talk_local, 1, 6);
    tcase_add_loop_test(shm, talk_shm, 2, 6);
    tcase_add_test(shm, talk_shm_threads);
    tcase_add_loop_test(ucx, talk_ucx, 2, 6);
    tcase_add_loop_test(ucx, talk_ucx_on_interface, 0, 2);
    tcase_add_loop_test(ucx, talk_ucx_slots, 0, 2);
    tcase_add_test(mixed, talk_mixed);
    tcase_add_test(death, killed_shm);
    tcase_add_test(death, killed_ucx);
    tcase_add_loop_test(death, left_early, 0, 2);
    tcase_add_loop_test(death, damaged, 0, 2);
    tcase_add_test(failing, open_on_a_wrong_interface);
    tcase_add_test(failing, open_without_a_member);
    tcase_add_test(failing, strangers);
    TCase *const cases[] = {choosing, local, shm, ucx, mixed, death, failing};
    for (size_t i = 0; i < IQ_ARRAY_SIZE(cases); i++) {
        tcase_set_timeout(cases[i], 100);
        suite_add_tcase(suite, cases[i]);
    }
    return suite;
}
