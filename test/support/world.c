/* SPDX-License-Identifier: Apache-2.0 */
/* Worlds of ranks: see world.h. From the bottom up: the allgather, what ranks do, processes and threads. */
#include "support/world.h"

#include "base/util.h"
#include "support/check_main.h"

#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define MESSAGES 60
#define EPOCHS 2

/* ---- allgather ---- */

static bool read_all(int fd, void *data, size_t bytes)
{
    return bytes == 0 || recv(fd, data, bytes, MSG_WAITALL) == (ssize_t)bytes;
}

static bool write_all(int fd, const void *data, size_t bytes) { return send(fd, data, bytes, MSG_NOSIGNAL) == (ssize_t)bytes; }

isgq_result_t world_gather(void *context, const void *send_data, void *recv_data, size_t bytes)
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
                                          .allgather = world_gather,
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
isgq_result_t world_open(rank_t *self)
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

void world_close(rank_t *self)
{
    while (self->ntransports > 0) {
        iq_transport_t *transport = self->transports[--self->ntransports];
        transport->ops->close(transport);
    }
}

isgq_result_t world_progress(rank_t *self, bool settle, int *failed_peer)
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
int world_exchange(rank_t *self, int without)
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
        EXPECT(without >= 0 || world_progress(self, false, &failed_peer) == ISGQ_SUCCESS);
        if (!moved && !all)
            sleep_briefly(self);
    }
    return 0;
}

int world_settle(rank_t *self)
{
    int failed_peer;
    isgq_result_t result;
    uint64_t limit = iq_now_ns() + LONG_NAP_NS;
    while ((result = world_progress(self, true, &failed_peer)) == ISGQ_IN_PROGRESS && iq_now_ns() < limit)
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

int world_barrier(rank_t *self)
{
    char all[MAX_RANKS], here = 1;
    EXPECT(world_gather(self, &here, all, 1) == ISGQ_SUCCESS);
    return 0;
}

int world_talk(rank_t *self)
{
    int result = 1;
    EXPECT(world_open(self) == ISGQ_SUCCESS);
    if (world_exchange(self, -1) == 0 && world_settle(self) == 0 && wake_then_sleep(self) == 0)
        result = world_barrier(self);
    world_close(self);
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
void world_run(const world_t *world)
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

world_t world_make(const char *transports, int nranks)
{
    world_t world = {.transports = transports,
                     .nranks = nranks,
                     .body = world_talk,
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
