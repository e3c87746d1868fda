/* SPDX-License-Identifier: Apache-2.0 */
/* How ranks come together over NCCL, and every way in which they do not: all of them then say the same. See support/nccl_rank.h. */
#include "support/check_main.h"
#include "support/nccl_rank.h"

#include "base/config.h"
#include "base/util.h"

#include <dlfcn.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static const char *due; /* what all ranks say */

static int expect_refusal(end_t *end)
{
    rank_t *self = end->self;
    char text[256] = "", texts[MAX_RANKS][256];
    EXPECT(nccl_open(end) == ISGQ_ERR_UNSUPPORTED);
    EXPECT(strstr(iq_last_error(), due) != NULL);
    snprintf(text, sizeof(text), "%s", iq_last_error());
    EXPECT(world_gather(self, text, texts, sizeof(text)) == ISGQ_SUCCESS);
    EXPECT(strcmp(text, texts[0]) == 0);
    return 0;
}

static int refused(rank_t *self)
{
    end_t end;
    EXPECT(nccl_start(&end, self) == 0);
    EXPECT(expect_refusal(&end) == 0);
    return nccl_finish(&end);
}

static void expect_all_refuse(const char *layout, const char *sentence)
{
    due = sentence;
    nccl_run(layout, refused);
}

/* ---- one GPU ---- */

START_TEST(shared_by_threads)
{
    nccl_devices = 2;
    expect_all_refuse("000", "nccl: ranks 0 and 2 share GPU 0000:01:00.0, which NCCL refuses");
}
END_TEST

START_TEST(shared_by_processes)
{
    nccl_one_machine = true;
    expect_all_refuse("01", "nccl: ranks 0 and 1 share GPU");
}
END_TEST

/* NCCL finds out what was not foreseen. */
static isgq_result_t describe_falsely(int device, iq_cuda_device_t *description)
{
    const iq_cuda_module_t *cuda = (const iq_cuda_module_t *)iq_module_load("cuda");
    static atomic_int calls;
    IQ_TRY(cuda->describe(device, description));
    snprintf(description->pci, sizeof(description->pci), "%d", atomic_fetch_add(&calls, 1));
    return ISGQ_SUCCESS;
}

static int misjudge(rank_t *self)
{
    end_t end;
    EXPECT(nccl_start(&end, self) == 0);
    iq_cuda_module_t spoilt = *end.cuda;
    const iq_cuda_module_t *cuda = end.cuda;
    spoilt.describe = describe_falsely;
    end.cuda = &spoilt;
    EXPECT(expect_refusal(&end) == 0);
    end.cuda = cuda;
    return nccl_finish(&end);
}

START_TEST(shared_unforeseen)
{
    nccl_devices = 1;
    due = "invalid usage: Duplicate GPU detected";
    nccl_run("00", misjudge);
}
END_TEST

/* ---- time ---- */

/* Rank 1 hangs in NCCL and comes back when nobody waits any more; what it then makes is ended. */
static int hang(rank_t *self)
{
    end_t end;
    if (self->rank == 0)
        setenv("CUDASIM_NCCL_HANG", "1", 1);
    EXPECT(world_barrier(self) == 0);
    EXPECT(nccl_start(&end, self) == 0);
    end.open_ns = 400000000;
    EXPECT(expect_refusal(&end) == 0);
    EXPECT(world_barrier(self) == 0);
    if (self->rank == 0)
        unsetenv("CUDASIM_NCCL_HANG");
    return nccl_finish(&end);
}

START_TEST(too_late)
{
    due = "did not come together in time";
    nccl_run("000", hang);
}
END_TEST

/* The other ranks wait in the trial for one whose communicator failed it. */
static isgq_result_t copy_nothing(int device, isgq_stream_t stream, void *dst, const void *src, size_t bytes)
{
    (void)device, (void)stream, (void)dst, (void)src, (void)bytes;
    return IQ_FAIL(ISGQ_ERR_CUDA, "no copies today");
}

static int fail_trial(rank_t *self)
{
    end_t end;
    EXPECT(nccl_start(&end, self) == 0);
    iq_cuda_module_t spoilt = *end.cuda;
    const iq_cuda_module_t *cuda = end.cuda;
    spoilt.copy = copy_nothing;
    if (self->rank == 1)
        end.cuda = &spoilt;
    end.open_ns = 400000000;
    EXPECT(expect_refusal(&end) == 0);
    EXPECT(world_barrier(self) == 0);
    end.cuda = cuda;
    return nccl_finish(&end);
}

START_TEST(trial_fails)
{
    due = "rank 0: the ranks did not come together in time";
    nccl_run("000", fail_trial);
}
END_TEST

/* ---- the application's communicator ---- */

static int one_without(rank_t *self)
{
    end_t end;
    const iq_nccl_functions_t *nccl;
    EXPECT(nccl_start(&end, self) == 0);
    EXPECT(nccl_make_native(&end) == 0);
    EXPECT(iq_nccl_load(&nccl) == ISGQ_SUCCESS);
    iq_nccl_comm_t comm = end.native;
    end.native = self->rank == 1 ? NULL : comm;
    EXPECT(expect_refusal(&end) == 0);
    EXPECT(nccl->comm_destroy(comm) == IQ_NCCL_SUCCESS);
    return nccl_finish(&end);
}

START_TEST(half_borrowed)
{
    due = "nccl: of ranks 0 and 1 only one brought a communicator";
    nccl_run("000", one_without);
}
END_TEST

static int other_device(rank_t *self)
{
    end_t end;
    const iq_nccl_functions_t *nccl;
    EXPECT(nccl_start(&end, self) == 0);
    EXPECT(nccl_make_native(&end) == 0);
    EXPECT(iq_nccl_load(&nccl) == ISGQ_SUCCESS);
    int device = end.device;
    end.device = 3 - device;
    EXPECT(expect_refusal(&end) == 0);
    end.device = device;
    EXPECT(nccl->comm_destroy(end.native) == IQ_NCCL_SUCCESS);
    return nccl_finish(&end);
}

START_TEST(wrongly_borrowed)
{
    due = "rank 0: the application's communicator is rank 0 of 2 on device 0, not 0 of 2 on 3";
    nccl_run("00", other_device);
}
END_TEST

/* ---- libraries: a process looks once, so each has a case ---- */

START_TEST(old)
{
    setenv("CUDASIM_NCCL_VERSION", "20906", 1);
    expect_all_refuse("00", "rank 0: its version is 20906; the oldest that this library works with is 21000 (2.10)");
}
END_TEST

START_TEST(missing)
{
    ck_assert_int_eq(iq_config_set("NCCL_LIB", "/nowhere/libnccl.so.2"), ISGQ_SUCCESS);
    expect_all_refuse("00", "rank 0: ISGQ_NCCL_LIB: /nowhere/libnccl.so.2: cannot open shared object file");
}
END_TEST

/* Versions differ from process to process. */
static int differ(rank_t *self)
{
    end_t end;
    setenv("CUDASIM_NCCL_VERSION", self->rank == 1 ? "22703" : "22809", 1);
    EXPECT(nccl_start(&end, self) == 0);
    EXPECT(expect_refusal(&end) == 0);
    return nccl_finish(&end);
}

START_TEST(different)
{
    due = "nccl: rank 0 has version 22809, rank 1 has version 22703";
    nccl_run("012", differ);
}
END_TEST

/* What stands in for dlsym: a library without one function, then nothing else is looked for. */
static void *find_but_one(void *context, const char *symbol)
{
    return strcmp(symbol, "ncclRecv") == 0 ? NULL : dlsym(context, symbol);
}

START_TEST(incomplete)
{
    void *library = dlopen(getenv("ISGQ_NCCL_LIB"), RTLD_NOW);
    ck_assert_ptr_nonnull(library);
    ck_assert_int_eq(iq_nccl_use(find_but_one, library), ISGQ_SUCCESS);
    expect_all_refuse("00", "rank 0: the library has no function ncclRecv");
    ck_assert_int_eq(iq_nccl_use(find_but_one, library), ISGQ_ERR_INVALID_USAGE);
}
END_TEST

static void *find_counted(void *context, const char *symbol)
{
    int *asked = context;
    ++*asked;
    return strcmp(symbol, "ncclGetLastError") == 0 ? NULL : dlsym(RTLD_DEFAULT, symbol); /* it is younger than 2.10 */
}

START_TEST(given)
{
    const iq_nccl_functions_t *nccl;
    int asked = 0;
    ck_assert_ptr_nonnull(dlopen(getenv("ISGQ_NCCL_LIB"), RTLD_NOW | RTLD_GLOBAL));
    ck_assert_int_eq(iq_nccl_use(find_counted, &asked), ISGQ_SUCCESS);
    ck_assert_int_eq(iq_nccl_load(&nccl), ISGQ_SUCCESS);
    ck_assert_int_eq(iq_nccl_load(&nccl), ISGQ_SUCCESS);
    ck_assert_int_eq(asked, 17);
    ck_assert_int_eq(nccl->version, 22809);
    ck_assert(nccl->get_last_error == NULL);
    ck_assert_int_eq(iq_nccl_result(nccl, NULL, nccl->comm_count(NULL, &asked), "size"), ISGQ_ERR_INVALID_ARGUMENT);
    ck_assert_str_eq(iq_last_error(), "nccl: size: invalid argument");
    ck_assert_int_eq(iq_nccl_result(nccl, NULL, 77, "size"), ISGQ_ERR_INTERNAL);
    ck_assert_int_eq(iq_nccl_result(nccl, NULL, IQ_NCCL_IN_PROGRESS, "size"), ISGQ_IN_PROGRESS);
}
END_TEST

static void add(Suite *suite, TCase *tcase, const TTest *test)
{
    tcase_set_timeout(tcase, 100);
    suite_add_tcase(suite, tcase);
    tcase_add_test(tcase, test);
}

Suite *iq_suite(void)
{
    Suite *suite = suite_create("nccl_open");
    setenv("CUDASIM_DEVICES", "4", 1);
    add(suite, tcase_create("shared_by_threads"), shared_by_threads);
    add(suite, tcase_create("shared_by_processes"), shared_by_processes);
    add(suite, tcase_create("shared_unforeseen"), shared_unforeseen);
    add(suite, tcase_create("too_late"), too_late);
    add(suite, tcase_create("trial_fails"), trial_fails);
    add(suite, tcase_create("half_borrowed"), half_borrowed);
    add(suite, tcase_create("wrongly_borrowed"), wrongly_borrowed);
    add(suite, tcase_create("old"), old);
    add(suite, tcase_create("missing"), missing);
    add(suite, tcase_create("different"), different);
    add(suite, tcase_create("incomplete"), incomplete);
    add(suite, tcase_create("given"), given);
    return suite;
}
