/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Ranks that cannot come together on the wire between GPUs of one host: all say so with the same sentence, keep nothing, and can
 * try again. See support/wire_end.h.
 */
#include "support/check_main.h"
#include "support/wire_end.h"

#include "base/util.h"

#include <stdlib.h>
#include <string.h>

/* All ranks return the same sentence; nothing is left that hinders a second attempt. */
static int expect_refusal(end_t *end, isgq_result_t result, isgq_result_t expected, const char *text)
{
    rank_t *self = end->self;
    char mine[IQ_ERROR_TEXT_BYTES] = "", all[MAX_RANKS][IQ_ERROR_TEXT_BYTES];
    EXPECT(result == expected && end->wire == NULL);
    EXPECT(strncmp(iq_last_error(), "cuda_ipc: rank ", 15) == 0 && strstr(iq_last_error(), text) != NULL);
    memcpy(mine, iq_last_error(), strlen(iq_last_error()));
    EXPECT(world_gather(self, mine, all, sizeof(mine)) == ISGQ_SUCCESS);
    for (int r = 0; r < self->world->nranks; r++)
        EXPECT(strcmp(all[r], mine) == 0);
    return 0;
}

static int second_attempt(end_t *end)
{
    rank_t *self = end->self;
    EXPECT(wire_open(end) == ISGQ_SUCCESS);
    EXPECT(wire_exchange(end) == 0);
    return wire_finish(end);
}

/* What the machine cannot do, on all ranks. */
static const struct {
    const char *layout;
    int devices;
    const char *name, *value, *text;
} limits[] = {
    {"00", 2, "CUDASIM_NO_PEERS", "1", "rank 0: cudaDeviceCanAccessPeer: device 0 cannot use memory of device 1"},
    {"01", 2, "CUDASIM_NO_PEERS", "1", "rank 0: cudaIpcOpenMemHandle"},
    {"01", 1, "CUDASIM_NO_IPC", "1", "rank 0: cudaIpcGetMemHandle"},
    {"012", 1, "CUDASIM_NO_IPC", "open", "rank 0: cudaIpcOpenMemHandle"},
    {"00", 1, "CUDASIM_NO_WORDS", "64", "rank 0: streams of device 0 (Simulated GPU) cannot wait for other ranks"},
};
static size_t limit;

static bool first_of_process(const rank_t *self)
{
    for (int r = 0; r < self->rank; r++)
        if (self->world->process[r] == self->world->process[self->rank])
            return false;
    return true;
}

static int meet_limit(rank_t *self)
{
    end_t end;
    EXPECT(wire_start(&end, self) == 0);
    EXPECT(world_barrier(self) == 0); /* nobody reads the environment meanwhile */
    if (first_of_process(self))
        setenv(limits[limit].name, limits[limit].value, 1);
    EXPECT(world_barrier(self) == 0);
    EXPECT(expect_refusal(&end, wire_open(&end), ISGQ_ERR_UNSUPPORTED, limits[limit].text) == 0);
    if (first_of_process(self))
        unsetenv(limits[limit].name);
    EXPECT(world_barrier(self) == 0);
    return second_attempt(&end);
}

static void run_limits(bool forked)
{
    for (limit = 0; limit < IQ_ARRAY_SIZE(limits); limit++)
        if (forked == (strchr(limits[limit].layout, '1') != NULL))
            wire_run(limits[limit].layout, limits[limit].devices, meet_limit);
}

START_TEST(limits_of_threads)
{
    run_limits(false);
}
END_TEST

START_TEST(limits_of_processes)
{
    run_limits(true);
}
END_TEST

/* Peers are only joined if shared memory works between them. */
static int meet_hosts(rank_t *self)
{
    end_t end;
    world_t apart = *self->world;
    const world_t *together = self->world;
    EXPECT(wire_start(&end, self) == 0);
    apart.host[2] = 1;
    self->world = &apart;
    EXPECT(expect_refusal(&end, wire_open(&end), ISGQ_ERR_UNSUPPORTED, "ranks 0 and 2 are on different hosts") == 0);
    self->world = together;
    return second_attempt(&end);
}

START_TEST(hosts)
{
    wire_run("000", 2, meet_hosts);
}
END_TEST

/* ---- what fails at one rank alone ---- */

static isgq_result_t no_memory(int device, size_t bytes, void **memory)
{
    (void)memory;
    return IQ_FAIL(ISGQ_ERR_NO_MEMORY, "no %zu bytes on device %d", bytes, device);
}

static isgq_result_t no_export(int device, void *memory, iq_cuda_handle_t *handle)
{
    (void)memory;
    (void)handle;
    return IQ_FAIL(ISGQ_ERR_CUDA, "no export from device %d", device);
}

static isgq_result_t no_pin(int device, void *memory, size_t bytes)
{
    (void)memory;
    return IQ_FAIL(ISGQ_ERR_CUDA, "no pages of %zu bytes pinned for device %d", bytes, device);
}

static isgq_result_t no_open(int device, const iq_cuda_handle_t *handle, void **memory)
{
    (void)handle;
    (void)memory;
    return IQ_FAIL(ISGQ_ERR_CUDA, "no access from device %d", device);
}

static isgq_result_t crooked_open(int device, const iq_cuda_handle_t *handle, void **memory)
{
    (void)device;
    (void)handle;
    (void)memory;
    return ISGQ_SUCCESS; /* and no address */
}

static isgq_result_t no_reach(int device, int other)
{
    return IQ_FAIL(ISGQ_ERR_CUDA, "no way from device %d to %d", device, other);
}

static isgq_result_t no_stream(int device, isgq_stream_t *stream)
{
    (void)stream;
    return IQ_FAIL(ISGQ_ERR_CUDA, "no stream on device %d", device);
}

static isgq_result_t no_flags(int device, isgq_stream_t stream, const iq_cuda_flag_op_t *ops, unsigned count)
{
    (void)stream;
    (void)ops;
    return IQ_FAIL(ISGQ_ERR_CUDA, "no %u operations on device %d", count, device);
}

static isgq_result_t void_flags(int device, isgq_stream_t stream, const iq_cuda_flag_op_t *ops, unsigned count)
{
    (void)device;
    (void)stream;
    (void)ops;
    (void)count;
    return ISGQ_SUCCESS;
}

static isgq_result_t void_copy(int device, isgq_stream_t stream, void *dst, const void *src, size_t bytes)
{
    (void)device;
    (void)stream;
    (void)dst;
    (void)src;
    (void)bytes;
    return ISGQ_SUCCESS;
}

static isgq_result_t never(int device, iq_cuda_event_t event)
{
    (void)device;
    (void)event;
    return ISGQ_IN_PROGRESS;
}

/* What differs in the table of rank 1. */
static const struct {
    iq_cuda_module_t with;
    bool threads, processes; /* where it matters */
    isgq_result_t result;
    const char *text;
} faults[] = {
    {{.shared_alloc = no_memory}, true, true, ISGQ_ERR_NO_MEMORY, "rank 1: no 16384 bytes"},
    {{.shared_export = no_export}, false, true, ISGQ_ERR_UNSUPPORTED, "rank 1: no export"},
    {{.pin = no_pin}, true, true, ISGQ_ERR_UNSUPPORTED, "rank 1: no pages"},
    {{.shared_open = no_open}, false, true, ISGQ_ERR_UNSUPPORTED, "rank 1: no access"},
    {{.shared_open = crooked_open}, false, true, ISGQ_ERR_UNSUPPORTED, "rank 1: memory of rank 0 appears at"},
    {{.reach = no_reach}, true, false, ISGQ_ERR_UNSUPPORTED, "rank 1: no way from device 1 to 0"},
    {{.stream_create = no_stream}, true, true, ISGQ_ERR_UNSUPPORTED, "rank 1: no stream"},
    {{.flags = no_flags}, true, true, ISGQ_ERR_UNSUPPORTED, "rank 1: no 3 operations"},
    {{.flags = void_flags}, true, true, ISGQ_ERR_UNSUPPORTED, "rank 0: the flag of a message from rank 1 is 2 instead of 1"},
    {{.copy = void_copy}, true, true, ISGQ_ERR_UNSUPPORTED, "rank 0: a trial message from rank 1 did not arrive as it was sent"},
    {{.event_poll = never}, true, true, ISGQ_ERR_UNSUPPORTED, "rank 1: a trial message has not moved"},
};
static size_t fault;

static void spoil(iq_cuda_module_t *table, const iq_cuda_module_t *with)
{
#define OVERRIDE(function) table->function = with->function != NULL ? with->function : table->function
    OVERRIDE(shared_alloc);
    OVERRIDE(shared_export);
    OVERRIDE(pin);
    OVERRIDE(shared_open);
    OVERRIDE(reach);
    OVERRIDE(stream_create);
    OVERRIDE(flags);
    OVERRIDE(copy);
    OVERRIDE(event_poll);
#undef OVERRIDE
}

static int meet_fault(rank_t *self)
{
    end_t end;
    EXPECT(wire_start(&end, self) == 0);
    if (self->rank == 1) {
        spoil(&wire_tables[1], &faults[fault].with);
        if (faults[fault].with.event_poll != NULL)
            end.open_ns = 400000000;
    }
    EXPECT(expect_refusal(&end, wire_open(&end), faults[fault].result, faults[fault].text) == 0);
    wire_tables[self->rank] = *end.cuda;
    end.open_ns = self->world->open_ns;
    return second_attempt(&end);
}

START_TEST(faults_of_threads)
{
    for (fault = 0; fault < IQ_ARRAY_SIZE(faults); fault++)
        if (faults[fault].threads)
            wire_run("000", 2, meet_fault);
}
END_TEST

START_TEST(faults_of_processes)
{
    for (fault = 0; fault < IQ_ARRAY_SIZE(faults); fault++)
        if (faults[fault].processes)
            wire_run("012", 2, meet_fault);
}
END_TEST

/* ---- allgathers that lie or fail ---- */

static int gathers[MAX_RANKS]; /* of the open that runs */
static int broken_gather;      /* counted from 1 */

/* Rank 1 says that it failed, in a way that no rank of ours would. */
static isgq_result_t lie(void *context, const void *send, void *recv, size_t bytes)
{
    const rank_t *self = context;
    unsigned char altered[1024];
    const int32_t result = 99;
    if (self->rank != 1 || gathers[self->rank]++ > 0 || bytes > sizeof(altered))
        return world_gather(context, send, recv, bytes);
    memcpy(altered, send, bytes);
    memset(altered, 'x', 256); /* a result, then a text that does not end */
    memcpy(altered, &result, sizeof(result));
    altered[5] = '\n';
    return world_gather(context, altered, recv, bytes);
}

static int meet_liar(rank_t *self)
{
    end_t end;
    EXPECT(wire_start(&end, self) == 0);
    gathers[self->rank] = 0;
    end.gather = lie;
    EXPECT(expect_refusal(&end, wire_open(&end), ISGQ_ERR_UNSUPPORTED, "rank 1: x xxx") == 0);
    EXPECT(strlen(iq_last_error()) < 300);
    end.gather = world_gather;
    return second_attempt(&end);
}

START_TEST(lies)
{
    wire_run("000", 2, meet_liar);
}
END_TEST

static isgq_result_t break_down(void *context, const void *send, void *recv, size_t bytes)
{
    const rank_t *self = context;
    if (++gathers[self->rank] == broken_gather)
        return IQ_FAIL(ISGQ_ERR_REMOTE, "allgather %d breaks down", broken_gather);
    return world_gather(context, send, recv, bytes);
}

static int meet_breakdown(rank_t *self)
{
    end_t end;
    EXPECT(wire_start(&end, self) == 0);
    gathers[self->rank] = 0;
    end.gather = break_down;
    EXPECT(wire_open(&end) == ISGQ_ERR_REMOTE && strstr(iq_last_error(), "breaks down") != NULL);
    end.gather = world_gather;
    return second_attempt(&end);
}

START_TEST(breakdowns_of_threads)
{
    for (broken_gather = 1; broken_gather <= 5; broken_gather++)
        wire_run("000", 2, meet_breakdown);
}
END_TEST

START_TEST(breakdowns_of_processes)
{
    for (broken_gather = 1; broken_gather <= 5; broken_gather++)
        wire_run("012", 2, meet_breakdown);
}
END_TEST

/* Rank 1 does not learn that all share memory now; the others go on and write into memory that it has given up. */
static isgq_result_t go_deaf(void *context, const void *send, void *recv, size_t bytes)
{
    const rank_t *self = context;
    isgq_result_t result = world_gather(context, send, recv, bytes);
    if (++gathers[self->rank] != 3)
        return result;
    if (self->rank == 1)
        return IQ_FAIL(ISGQ_ERR_REMOTE, "allgather 3 breaks down");
    return world_barrier(context) == 0 ? result : ISGQ_ERR_INTERNAL; /* until rank 1 has closed */
}

static int meet_deaf(rank_t *self)
{
    static const char fine[256]; /* what a rank says that has no complaint */
    char all[MAX_RANKS * sizeof(fine)];
    end_t end;
    EXPECT(wire_start(&end, self) == 0);
    gathers[self->rank] = 0;
    end.gather = go_deaf;
    EXPECT(wire_open(&end) == (self->rank == 1 ? ISGQ_ERR_REMOTE : ISGQ_ERR_UNSUPPORTED));
    EXPECT(self->rank == 1 || strstr(iq_last_error(), "rank 0: the flag of a message from rank 1") != NULL);
    EXPECT(self->rank != 1 || world_barrier(self) == 0);
    for (int i = 0; i < 2 && self->rank == 1; i++)
        EXPECT(world_gather(self, fine, all, sizeof(fine)) == ISGQ_SUCCESS);
    end.gather = world_gather;
    return second_attempt(&end);
}

START_TEST(deaf_thread)
{
    wire_run("000", 2, meet_deaf);
}
END_TEST

START_TEST(deaf_process)
{
    wire_run("012", 2, meet_deaf);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("wire_open");
    TCase *in_threads = tcase_create("threads");
    TCase *in_processes = tcase_create("processes");
    setenv("CUDASIM_DEVICES", "2", 1);
    tcase_add_test(in_threads, limits_of_threads);
    tcase_add_test(in_threads, hosts);
    tcase_add_test(in_threads, faults_of_threads);
    tcase_add_test(in_threads, lies);
    tcase_add_test(in_threads, breakdowns_of_threads);
    tcase_add_test(in_threads, deaf_thread);
    tcase_add_test(in_processes, limits_of_processes);
    tcase_add_test(in_processes, faults_of_processes);
    tcase_add_test(in_processes, breakdowns_of_processes);
    tcase_add_test(in_processes, deaf_process);
    suite_add_tcase(suite, in_threads);
    suite_add_tcase(suite, in_processes);
    return suite;
}
