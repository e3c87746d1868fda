/* SPDX-License-Identifier: Apache-2.0 */
/* Launchers' environments, as tables; and ranks that really meet through them. */
#include "support/check_main.h"
#include "support/control_ranks.h"

#include "base/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define VARIABLES 12

typedef struct environment {
    const char *variables[VARIABLES]; /* "NAME=value" */
    isgq_result_t result;
    const char *error; /* part of it */
    const char *launcher;
    int rank, nranks;
    iq_meeting_place_t place;
    const char *address; /* its start */
    unsigned port, port_count;
    const char *job;
} environment_t;

static const char *look(void *context, const char *name)
{
    const environment_t *environment = context;
    size_t length = strlen(name);
    for (int i = 0; i < VARIABLES && environment->variables[i] != NULL; i++)
        if (strncmp(environment->variables[i], name, length) == 0 && environment->variables[i][length] == '=')
            return environment->variables[i] + length + 1;
    return NULL;
}

static const environment_t right[] = {
    {{"ISGQ_RANK=2", "ISGQ_NRANKS=4"}, 0, NULL, "isgqcoll", 2, 4, IQ_PLACE_UNIX, "isgq.", 0, 0, ""},
    {{"ISGQ_RANK=2", "ISGQ_NRANKS=4", "RANK=0", "WORLD_SIZE=9", "MASTER_ADDR=far", "ISGQ_JOB=j"},
     0,
     NULL,
     "isgqcoll",
     2,
     4,
     IQ_PLACE_UNIX,
     "isgq.",
     0,
     0,
     "isgq:j"},
    {{"ISGQ_RANK=0", "ISGQ_NRANKS=2", "ISGQ_MASTER_ADDR=10.0.0.1"},
     0,
     NULL,
     "isgqcoll",
     0,
     2,
     IQ_PLACE_TCP,
     "10.0.0.1",
     29533,
     1,
     ""},
    {{"ISGQ_RANK=0", "ISGQ_NRANKS=2", "ISGQ_RENDEZVOUS=file:/tmp/x:y"}, 0, NULL, "isgqcoll", 0, 2, IQ_PLACE_FILE, "", 0, 0, ""},
    {{"ISGQ_RANK=0", "ISGQ_NRANKS=2", "ISGQ_RENDEZVOUS=unix:here"}, 0, NULL, "isgqcoll", 0, 2, IQ_PLACE_UNIX, "here", 0, 0, ""},
    {{"ISGQ_RANK=0", "ISGQ_NRANKS=2", "ISGQ_RENDEZVOUS=tcp:node1:77"},
     0,
     NULL,
     "isgqcoll",
     0,
     2,
     IQ_PLACE_TCP,
     "node1",
     77,
     1,
     ""},
    {{"ISGQ_RANK=0", "ISGQ_NRANKS=2", "ISGQ_RENDEZVOUS=tcp:[fd00::1]:77"},
     0,
     NULL,
     "isgqcoll",
     0,
     2,
     IQ_PLACE_TCP,
     "fd00::1",
     77,
     1,
     ""},
    {{"RANK=3", "WORLD_SIZE=4", "LOCAL_WORLD_SIZE=4", "MASTER_ADDR=node1", "MASTER_PORT=29500", "TORCHELASTIC_RUN_ID=none"},
     0,
     NULL,
     "torchrun",
     3,
     4,
     IQ_PLACE_UNIX,
     "isgq.",
     0,
     0,
     "torch:none"},
    {{"RANK=3", "WORLD_SIZE=8", "LOCAL_WORLD_SIZE=4", "MASTER_ADDR=node1", "MASTER_PORT=29500", "TORCHELASTIC_RUN_ID=r",
      "TORCHELASTIC_RESTART_COUNT=2", "TORCHELASTIC_USE_AGENT_STORE=True"},
     0,
     NULL,
     "torchrun",
     3,
     8,
     IQ_PLACE_TCP,
     "node1",
     29501,
     16,
     "torch:r"},
    {{"RANK=3", "WORLD_SIZE=8", "LOCAL_WORLD_SIZE=4", "MASTER_ADDR=node1", "MASTER_PORT=29500", "ISGQ_MASTER_PORT=7000"},
     0,
     NULL,
     "torchrun",
     3,
     8,
     IQ_PLACE_TCP,
     "node1",
     7000,
     1,
     ""},
    {{"RANK=1", "WORLD_SIZE=2", "MASTER_ADDR=127.0.0.1", "MASTER_PORT=29500"},
     0,
     NULL,
     "torchrun",
     1,
     2,
     IQ_PLACE_UNIX,
     "isgq.",
     0,
     0,
     ""},
    {{"RANK=5", "OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_LOCAL_SIZE=2", "PMIX_NAMESPACE=42"},
     0,
     NULL,
     "Open MPI",
     1,
     2,
     IQ_PLACE_UNIX,
     "isgq.",
     0,
     0,
     "pmix:42"},
    {{"OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=4", "OMPI_COMM_WORLD_LOCAL_SIZE=2", "ISGQ_MASTER_ADDR=fd00::1"},
     0,
     NULL,
     "Open MPI",
     1,
     4,
     IQ_PLACE_TCP,
     "fd00::1",
     29533,
     1,
     ""},
    {{"PMI_RANK=0", "PMI_SIZE=3", "MPI_LOCALNRANKS=3"}, 0, NULL, "MPICH", 0, 3, IQ_PLACE_UNIX, "isgq.", 0, 0, ""},
    {{"SLURM_PROCID=5", "SLURM_STEP_NUM_TASKS=8", "SLURM_STEP_NUM_NODES=2", "SLURM_STEP_NODELIST=gpu[07-08]", "SLURM_JOB_ID=11",
      "SLURM_STEP_ID=0", "SLURM_LAUNCH_NODE_IPADDR=10.1.1.1"},
     0,
     NULL,
     "srun",
     5,
     8,
     IQ_PLACE_TCP,
     "gpu07",
     29533,
     1,
     "slurm:11.0"},
    {{"SLURM_PROCID=5", "SLURM_STEP_NUM_TASKS=8", "SLURM_STEP_NUM_NODES=2", "SLURM_STEP_NODELIST=login,gpu[1-9]"},
     0,
     NULL,
     "srun",
     5,
     8,
     IQ_PLACE_TCP,
     "login",
     29533,
     1,
     ""},
    {{"SLURM_PROCID=5", "SLURM_STEP_NUM_TASKS=8", "SLURM_STEP_NUM_NODES=2", "SLURM_LAUNCH_NODE_IPADDR=10.1.1.1"},
     0,
     NULL,
     "srun",
     5,
     8,
     IQ_PLACE_TCP,
     "10.1.1.1",
     29533,
     1,
     ""},
    {{"SLURM_PROCID=1", "SLURM_STEP_NUM_TASKS=2", "SLURM_STEP_NUM_NODES=1"},
     0,
     NULL,
     "srun",
     1,
     2,
     IQ_PLACE_UNIX,
     "isgq.",
     0,
     0,
     ""},
};

START_TEST(launchers_are_recognised)
{
    const environment_t *want = &right[_i];
    iq_launch_t launch;

    isgq_result_t result = iq_launch_parse(look, (void *)want, 1234, &launch);
    ck_assert_msg(result == ISGQ_SUCCESS, "%s", iq_last_error());
    ck_assert_str_eq(launch.launcher, want->launcher);
    ck_assert_int_eq(launch.rank, want->rank);
    ck_assert_int_eq(launch.nranks, want->nranks);
    ck_assert_int_eq(launch.place, want->place);
    ck_assert_msg(strncmp(launch.address, want->address, strlen(want->address)) == 0, "%s", launch.address);
    if (want->place == IQ_PLACE_TCP)
        ck_assert_str_eq(launch.address, want->address);
    ck_assert_uint_eq(launch.port, want->port);
    ck_assert_uint_eq(launch.port_count, want->port_count);
    ck_assert_str_eq(launch.job, want->job);
    if (want->place == IQ_PLACE_FILE)
        ck_assert_str_eq(launch.path, "/tmp/x:y");
}
END_TEST

static const environment_t wrong[] = {
    {.variables = {"SLURM_PROCID=0", "SLURM_NTASKS=8"}, .error = "no launcher is recognised"},
    {.variables = {"RANK=0"}, .error = "no launcher is recognised"},
    {.variables = {"ISGQ_RANK=0", "RANK=0", "WORLD_SIZE=1"}, .error = "ISGQ_RANK is set but ISGQ_NRANKS is not"},
    {.variables = {"ISGQ_NRANKS=3"}, .error = "ISGQ_NRANKS is set but ISGQ_RANK is not"},
    {.variables = {"ISGQ_RANK=4", "ISGQ_NRANKS=4"}, .error = "ISGQ_RANK is \"4\", must be a number in 0..3"},
    {.variables = {"RANK=1x", "WORLD_SIZE=4"}, .error = "RANK is \"1x\""},
    {.variables = {"RANK=1", "WORLD_SIZE=0"}, .error = "WORLD_SIZE is \"0\""},
    {.variables = {"RANK=1", "WORLD_SIZE=99999999999999999999"}, .error = "WORLD_SIZE is \"9999"},
    {.variables = {"OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=4", "OMPI_COMM_WORLD_LOCAL_SIZE=2"},
     .error = "set ISGQ_MASTER_ADDR"},
    {.variables = {"RANK=1", "WORLD_SIZE=4", "MASTER_ADDR=far", "MASTER_PORT=65530"}, .error = "MASTER_PORT is \"65530\""},
    {.variables = {"ISGQ_RANK=0", "ISGQ_NRANKS=2", "ISGQ_RENDEZVOUS=tcp:here"},
     .error = "must be file:PATH, tcp:ADDRESS:PORT or unix:NAME"},
    {.variables = {"ISGQ_RANK=0", "ISGQ_NRANKS=2", "ISGQ_RENDEZVOUS=tcp:here:0"}, .error = "must be a number in 1..65535"},
    {.variables = {"ISGQ_RANK=0", "ISGQ_NRANKS=2", "ISGQ_RENDEZVOUS=file:"}, .error = "ISGQ_RENDEZVOUS is \"file:\""},
    {.variables = {"ISGQ_RANK=0", "ISGQ_NRANKS=2", "ISGQ_RENDEZVOUS=smoke"}, .error = "ISGQ_RENDEZVOUS is \"smoke\""},
};

START_TEST(bad_environments_get_a_sentence)
{
    iq_launch_t launch;
    ck_assert_int_eq(iq_launch_parse(look, (void *)&wrong[_i], 1234, &launch), ISGQ_ERR_INVALID_USAGE);
    ck_assert_msg(strstr(iq_last_error(), wrong[_i].error) != NULL, "%s", iq_last_error());
}
END_TEST

static void address_of(const char *const *variables, int parent, char address[256])
{
    environment_t environment = {.variables = {"ISGQ_RANK=0", "ISGQ_NRANKS=2"}};
    iq_launch_t launch;
    for (int i = 0; variables[i] != NULL; i++)
        environment.variables[2 + i] = variables[i];
    ck_assert_int_eq(iq_launch_parse(look, &environment, parent, &launch), ISGQ_SUCCESS);
    snprintf(address, 256, "%s", launch.address);
}

START_TEST(jobs_meet_apart)
{
    static const char *const none[] = {NULL}, *const job[] = {"ISGQ_JOB=a", NULL}, *const other[] = {"ISGQ_JOB=b", NULL};
    static const char *const first[] = {"TORCHELASTIC_RUN_ID=none", "TORCHELASTIC_RESTART_COUNT=0", "MASTER_PORT=1", NULL};
    static const char *const again[] = {"TORCHELASTIC_RUN_ID=none", "TORCHELASTIC_RESTART_COUNT=1", "MASTER_PORT=1", NULL};
    static const char *const beside[] = {"TORCHELASTIC_RUN_ID=none", "TORCHELASTIC_RESTART_COUNT=0", "MASTER_PORT=2", NULL};
    const char *const *sets[] = {none, job, other, first, again, beside};
    char addresses[7][256], same[256];

    for (size_t i = 0; i < IQ_ARRAY_SIZE(sets); i++)
        address_of(sets[i], 100, addresses[i]);
    address_of(none, 101, addresses[6]);
    for (int i = 0; i < 7; i++)
        for (int k = 0; k < i; k++)
            ck_assert_str_ne(addresses[i], addresses[k]);
    address_of(job, 101, same); /* a job with a name does not depend on the parent */
    ck_assert_str_eq(same, addresses[1]);
}
END_TEST

/* ---- for real ---- */

static void set(const char *name, const char *value) { ck_assert_int_eq(iq_config_set(name, value), ISGQ_SUCCESS); }

static void set_rank(int rank)
{
    char text[16];
    snprintf(text, sizeof(text), "%d", rank);
    set("RANK", text);
    set("NRANKS", "3");
}

static void reset(void)
{
    static const char *const names[] = {"RANK", "NRANKS", "RENDEZVOUS", "SECRET", "INSECURE", "MASTER_ADDR", "INTERFACE"};
    for (size_t i = 0; i < IQ_ARRAY_SIZE(names); i++)
        set(names[i], NULL);
}

/* Meet twice: the second communicator must not run into the first. Returns 0 if all went well. */
static int meet_twice(int rank)
{
    uint64_t deadline_ns = iq_now_ns() + SOON_NS;
    iq_control_t *controls[2] = {NULL, NULL};

    set_rank(rank);
    for (int i = 0; i < 2; i++) {
        iq_rendezvous_t place;
        int seen_rank, seen_nranks, all[3];
        if (iq_rendezvous_from_environment(deadline_ns, &seen_rank, &seen_nranks, &place) != ISGQ_SUCCESS || seen_rank != rank ||
            seen_nranks != 3)
            return 1;
        iq_control_params_t params = {.rank = rank, .nranks = 3, .rendezvous = &place, .deadline_ns = deadline_ns};
        if (iq_control_open(&params, &controls[i]) != ISGQ_SUCCESS)
            return 2;
        if (iq_control_allgather(controls[i], &rank, all, sizeof(rank), deadline_ns) != ISGQ_SUCCESS || all[1] != 1 ||
            all[2] != 2)
            return 3;
    }
    for (int i = 0; i < 2; i++) {
        if (iq_control_goodbye(controls[i], deadline_ns) != ISGQ_SUCCESS)
            return 4;
        iq_control_close(controls[i]);
    }
    return 0;
}

static void meet_in_processes(void)
{
    pid_t pids[3];
    for (int rank = 0; rank < 3; rank++) {
        pids[rank] = fork();
        if (pids[rank] == 0) {
            int failed = meet_twice(rank);
            if (failed != 0)
                fprintf(stderr, "rank %d, step %d: %s\n", rank, failed, iq_last_error());
            _exit(failed);
        }
    }
    for (int rank = 0; rank < 3; rank++)
        ck_assert(control_rank_reap(pids[rank]));
}

START_TEST(processes_meet)
{
    char folder[] = "/tmp/isgq-test-XXXXXX", text[64], job[64];

    snprintf(job, sizeof(job), "test-%d", (int)getpid());
    set("JOB", job);
    meet_in_processes();
    ck_assert_ptr_nonnull(mkdtemp(folder));
    snprintf(text, sizeof(text), "file:%s/meet", folder);
    set("RENDEZVOUS", text);
    meet_in_processes();
    ck_assert_int_eq(rmdir(folder), 0); /* rank 0 removed the file */
    set("JOB", NULL);
    reset();
}
END_TEST

START_TEST(processes_meet_with_a_secret)
{
    char text[64];
    isgq_unique_id_t id; /* for a port that is free */
    iq_rendezvous_t place;

    if (!have_proofs())
        return;
    set("JOB", "secret test");
    set("SECRET", "a phrase");
    meet_in_processes();
    set("SECRET", NULL);
    set("INTERFACE", "lo");
    ck_assert_int_eq(iq_rendezvous_new_id(&id), ISGQ_SUCCESS);
    ck_assert_int_eq(iq_rendezvous_from_id(&id, 0, &place), ISGQ_SUCCESS);
    close(place.listen_fd);
    set("INTERFACE", NULL);
    snprintf(text, sizeof(text), "tcp:127.0.0.1:%u", (unsigned)place.port);
    set("RENDEZVOUS", text);
    meet_in_processes();
    set("JOB", NULL);
    reset();
}
END_TEST

START_TEST(several_hosts_need_a_secret)
{
    iq_rendezvous_t place;
    int rank, nranks;

    if (!have_proofs())
        return;
    set_rank(1);
    set("MASTER_ADDR", "192.0.2.1");
    ck_assert_int_eq(iq_rendezvous_from_environment(0, &rank, &nranks, &place), ISGQ_ERR_INVALID_USAGE);
    ck_assert_msg(strstr(iq_last_error(), "set ISGQ_SECRET_FILE or ISGQ_SECRET, or ISGQ_INSECURE=1") != NULL, "%s",
                  iq_last_error());
    set("INSECURE", "1");
    ck_assert_int_eq(iq_rendezvous_from_environment(0, &rank, &nranks, &place), ISGQ_SUCCESS);
    ck_assert(!place.has_secret);
    set("SECRET", "phrase");
    ck_assert_int_eq(iq_rendezvous_from_environment(0, &rank, &nranks, &place), ISGQ_SUCCESS);
    ck_assert(place.has_secret);
    ck_assert_int_eq(rank, 1);
    ck_assert_int_eq(nranks, 3);
    ck_assert_str_eq(place.text, "192.0.2.1");
    set_rank(0); /* and rank 0 is on another host */
    ck_assert_int_eq(iq_rendezvous_from_environment(0, &rank, &nranks, &place), ISGQ_ERR_SYSTEM);
    ck_assert_msg(strstr(iq_last_error(), "rank 0 must run on the host that has this address") != NULL, "%s", iq_last_error());
    reset();
}
END_TEST

/* torch's agent holds MASTER_PORT, something else the port above it: the handshake finds rank 0. */
static void open_with_range(control_rank_t *rank)
{
    if (rank->rank > 0) {
        rank->place.port = (uint16_t)(rank->place.port - 3);
        rank->place.port_count = 16;
    }
    control_rank_open(rank);
}

START_TEST(rank_0_is_found_among_several_ports)
{
    static control_rank_t ranks[3];
    iq_rendezvous_t silent;
    int fd = -1;

    if (!have_proofs())
        return;
    control_ranks_init(ranks, 3, IQ_ADDRESS_TCP);
    silent = ranks[1].place;
    silent.port = (uint16_t)(silent.port - 2);
    if (iq_socket_listen(&silent, "", &fd) != ISGQ_SUCCESS)
        fd = -1; /* somebody else is there: as good */
    control_ranks_each(ranks, 3, open_with_range);
    for (int i = 0; i < 3; i++)
        ck_assert_msg(ranks[i].result == ISGQ_SUCCESS, "%s", ranks[i].error);
    control_ranks_each(ranks, 3, control_rank_goodbye);
    control_ranks_each(ranks, 3, control_rank_close);
    if (fd >= 0)
        close(fd);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("environment");
    TCase *parse = tcase_create("parse");
    TCase *meet = tcase_create("meet");

    tcase_add_loop_test(parse, launchers_are_recognised, 0, (int)IQ_ARRAY_SIZE(right));
    tcase_add_loop_test(parse, bad_environments_get_a_sentence, 0, (int)IQ_ARRAY_SIZE(wrong));
    tcase_add_test(parse, jobs_meet_apart);
    suite_add_tcase(suite, parse);
    tcase_set_timeout(meet, 60);
    tcase_add_test(meet, processes_meet);
    tcase_add_test(meet, processes_meet_with_a_secret);
    tcase_add_test(meet, several_hosts_need_a_secret);
    tcase_add_test(meet, rank_0_is_found_among_several_ports);
    suite_add_tcase(suite, meet);
    return suite;
}
