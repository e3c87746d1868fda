/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Machines that are small or odd: far more ranks than cores, hosts of one rank and of five, limits on files, descriptors, memory and threads, no /dev/shm.
 * It works, slower, or every rank is told in one line why not; nothing hangs or ends by a signal.
 */
#include "support/cases.h"
#include "support/check_main.h"
#include "support/samples.h"

#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

/* Sums of whole numbers, by a codec, by factors. */
static void use(iq_rank_t *rank, isgq_comm_t comm)
{
    enum { COUNT = 3000 };
    float *values = malloc(COUNT * sizeof(*values)), expected = 0;
    isgq_quantizer_t quantizer = iq_quantizer(rank, "uniform:bits=4");
    for (int r = 0; r < rank->nranks; r++)
        expected += (float)r;
    for (int i = 0; i < COUNT; i++)
        values[i] = (float)rank->rank;
    RANK_OK(rank, isgq_allreduce(values, values, COUNT, ISGQ_FLOAT32, ISGQ_SUM, NULL, comm, NULL, NULL));
    RANK_OK(rank, isgq_comm_synchronize(comm));
    for (int i = 0; i < COUNT; i++)
        RANK_CHECK(rank, values[i] == expected, "element %d is %g, not %g", i, (double)values[i], (double)expected);
    RANK_OK(rank, isgq_allreduce(values, values, COUNT, ISGQ_FLOAT32, ISGQ_AVG, quantizer, comm, NULL, NULL));
    isgq_factors_t factors = {.size = sizeof(factors), .x = values, .delta = values + 100, .batch = 2, .m = 20, .n = 30};
    RANK_OK(rank, isgq_comm_synchronize(comm));
    RANK_OK(rank, isgq_allreduce_factored(&factors, 2, values + 1000, ISGQ_FLOAT32, ISGQ_AVG, quantizer, comm, NULL, NULL));
    RANK_OK(rank, isgq_comm_synchronize(comm));
    iq_rank_agree(rank, isgqx_hash(values, COUNT * sizeof(*values)), "the values");
    isgq_quantizer_destroy(quantizer);
    free(values);
}

static isgq_result_t join(iq_rank_t *rank, isgq_comm_t *comm) { return isgq_comm_init_rank(comm, rank->nranks, iq_rank_id(rank), rank->rank, NULL); }

static void join_and_use(iq_rank_t *rank)
{
    isgq_comm_t comm = NULL;
    RANK_OK(rank, join(rank, &comm));
    use(rank, comm);
    RANK_OK(rank, isgq_comm_finalize(comm));
    RANK_OK(rank, isgq_comm_destroy(comm));
}

/* ---- cores ---- */

/* All ranks on the first cores that the test may use. */
static void crowded_body(iq_rank_t *rank)
{
    int left = *(const int *)rank->argument;
    cpu_set_t may, set;
    CPU_ZERO(&set);
    RANK_CHECK(rank, sched_getaffinity(0, sizeof(may), &may) == 0, "no affinity");
    for (int cpu = 0; cpu < CPU_SETSIZE && left > 0; cpu++)
        if (CPU_ISSET(cpu, &may)) {
            CPU_SET(cpu, &set);
            left--;
        }
    RANK_CHECK(rank, sched_setaffinity(0, sizeof(set), &set) == 0, "cannot bind");
    join_and_use(rank);
}

START_TEST(more_ranks_than_cores)
{
    static const int cores[] = {2, 1};
    int available = cores[_i];
    iq_ranks_t ranks = {.kind = IQ_RANKS_PROCESSES, .nranks = _i == 0 ? 20 : 6, .body = crowded_body, .argument = &available, .apart = true};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- hosts of other sizes ---- */

static void uneven_body(iq_rank_t *rank)
{
    setenv("ISGQ_HOSTID", rank->rank == *(const int *)rank->argument ? "small" : "large", 1); /* read at the first call */
    join_and_use(rank);
}

START_TEST(one_rank_here_and_five_there)
{
    int alone = _i == 0 ? 0 : 3;
    iq_ranks_t ranks = {.kind = IQ_RANKS_PROCESSES, .nranks = 6, .body = uneven_body, .argument = &alone, .apart = true};
    if (iq_ranks_have_network())
        iq_ranks_run(&ranks, NULL);
}
END_TEST

/* ---- limits ---- */

typedef struct limit {
    const char *name;
    int resource;
    rlim_t value;
    const char *text; /* that somebody's error has, "" if it works */
} limit_t;

/* Descriptors are counted from those that are open; a few do for nothing, a dozen for all. */
static const limit_t limits[] = {
    {"file size", RLIMIT_FSIZE, 65536, "ulimit -f"},
    {"memory", RLIMIT_AS, (rlim_t)256 << 20, "ISGQ_SCRATCH_BYTES"},
    {"descriptors", RLIMIT_NOFILE, 2, "Too many open files"},
    {"descriptors", RLIMIT_NOFILE, 4, "Too many open files"},
    {"descriptors", RLIMIT_NOFILE, 40, ""},
};

static void limited_body(iq_rank_t *rank)
{
    const limit_t *about = rank->argument;
    isgq_comm_t comm = NULL;
    isgq_unique_id_t id = iq_rank_id(rank);
    struct rlimit limit = {.rlim_cur = about->value, .rlim_max = RLIM_INFINITY};
    iq_rank_meet(rank);
    getrlimit(about->resource, &limit);
    limit.rlim_cur = about->value;
    if (about->resource == RLIMIT_NOFILE) {
        int next = open("/dev/null", O_RDONLY | O_CLOEXEC);
        close(next);
        limit.rlim_cur += (rlim_t)next;
    }
    RANK_CHECK(rank, setrlimit(about->resource, &limit) == 0, "cannot limit %s", about->name);
    isgq_result_t result = isgq_comm_init_rank(&comm, rank->nranks, id, rank->rank, NULL);
    const char *text = isgq_get_last_error();
    if (result != ISGQ_SUCCESS) {
        RANK_CHECK(rank, comm == NULL && iq_test_one_line(text), "%s: \"%s\"", about->name, text);
        rank->values[0] = strstr(text, about->text) != NULL;
        rank->values[1] = 1;
        return;
    }
    use(rank, comm);
    RANK_OK(rank, isgq_comm_finalize(comm));
    RANK_OK(rank, isgq_comm_destroy(comm));
}

START_TEST(limits_are_told)
{
    static const char *const environment[] = {"ISGQ_INIT_TIMEOUT_MS=1500", NULL};
    static iq_ranks_values_t values;
    limit_t about = limits[_i];
    iq_ranks_t ranks = {.kind = IQ_RANKS_PROCESSES, .nranks = 3, .body = limited_body, .argument = &about, .environment = environment, .apart = true};
    uint64_t told = 0, failed = 0;
    if (IQ_TEST_SANITIZED && about.resource == RLIMIT_AS) /* its shadow is larger than any memory */
        return;
    iq_ranks_run(&ranks, &values);
    for (int r = 0; r < 3; r++) {
        told += values.of[r][0];
        failed += values.of[r][1];
    }
    /* Without a descriptor rank 0 says why at once, in a line; which rank's deadline comes first decides whose words are in the errors. */
    bool may_be_late = about.resource == RLIMIT_NOFILE;
    ck_assert_msg(about.text[0] == '\0' ? failed == 0 : failed == 3 && (told > 0 || may_be_late), "%s: %d ranks failed, %d say \"%s\"", about.name, (int)failed,
                  (int)told, about.text);
}
END_TEST

/* ---- no shared memory folder ---- */

static void no_shm_body(iq_rank_t *rank)
{
    if (unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0) /* root alone may */
        (void)mount("none", "/dev/shm", "tmpfs", MS_RDONLY, "size=4k");
    join_and_use(rank);
}

START_TEST(a_folder_that_nobody_can_write)
{
    iq_ranks_t ranks = {.kind = IQ_RANKS_PROCESSES, .nranks = 3, .body = no_shm_body, .apart = true};
    iq_ranks_run(&ranks, NULL);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("limits");
    iq_add_case(suite, tcase_create("cores"), more_ranks_than_cores, 2);
    iq_add_case(suite, tcase_create("uneven"), one_rank_here_and_five_there, 2);
    iq_add_case(suite, tcase_create("resources"), limits_are_told, (int)(sizeof(limits) / sizeof(limits[0])));
    iq_add_case(suite, tcase_create("no_shm"), a_folder_that_nobody_can_write, 1);
    return suite;
}
