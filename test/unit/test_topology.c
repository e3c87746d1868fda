/* SPDX-License-Identifier: Apache-2.0 */
/* What is one host, and what the machine looks like, with and without hwloc. */
#include "transport/topology.h"

#include "base/config.h"
#include "base/module.h"
#include "support/check_main.h"

#include <dirent.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

START_TEST(host_id)
{
    uint64_t plain = iq_host_id();
    ck_assert_uint_eq(iq_host_id(), plain);
    ck_assert_int_eq(iq_config_set("HOSTID", "left"), ISGQ_SUCCESS);
    uint64_t left = iq_host_id();
    ck_assert_int_eq(iq_config_set("HOSTID", "right"), ISGQ_SUCCESS);
    uint64_t right = iq_host_id();
    ck_assert_int_eq(iq_config_set("HOSTID", NULL), ISGQ_SUCCESS);
    ck_assert_uint_ne(left, plain);
    ck_assert_uint_ne(left, right);
    ck_assert_uint_eq(iq_host_id(), plain);
}
END_TEST

/* A process in a network namespace of its own is another host. Needs the right to make one; without it the kernel's answer is checked. */
START_TEST(namespaces_are_hosts)
{
    uint64_t plain = iq_host_id();
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        if (unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0)
            _exit(iq_host_id() == plain ? 0 : 1);
        _exit(iq_host_id() != plain ? 0 : 2);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_int_eq(status, 0);
}
END_TEST

static void check_plausible(const iq_topology_t *topology)
{
    ck_assert_int_ge(topology->cores, 1);
    ck_assert_int_le(topology->cores, (int)sysconf(_SC_NPROCESSORS_CONF));
    ck_assert_uint_gt(strlen(topology->description), 10);
    ck_assert_ptr_null(strchr(topology->description, '\n'));
}

START_TEST(machine)
{
    const iq_topology_t *topology = iq_topology();
    bool hwloc = iq_module_load("hwloc") != NULL; /* only a build without the module may do without it */
    ck_assert_msg(hwloc || strstr(iq_last_error(), "built without it") != NULL, "%s", iq_last_error());
    check_plausible(topology);
    ck_assert_ptr_eq(topology, iq_topology());
    ck_assert_int_eq(strncmp(topology->source, hwloc ? "hwloc 2." : "libc", hwloc ? 8 : 4), 0);
    if (hwloc) {
        ck_assert_int_ge(topology->packages, 1);
        ck_assert_int_ge(topology->numa_nodes, 1);
    }
}
END_TEST

/* Without the module the C library answers, and nothing stays behind as the caller's last error. In a process that has not asked before. */
START_TEST(without_hwloc)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        if (iq_config_set("MODULE_DIR", "/nonexistent") != ISGQ_SUCCESS)
            _exit(1);
        iq_set_last_error("kept");
        const iq_topology_t *topology = iq_topology();
        _exit(strcmp(topology->source, "libc") == 0 && topology->cores >= 1 && strcmp(iq_last_error(), "kept") == 0 ? 0 : 2);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_int_eq(status, 0);
}
END_TEST

/* All threads of this process: a sanitizer has some of its own. */
static bool bind_process(const cpu_set_t *set)
{
    DIR *threads = opendir("/proc/self/task");
    bool bound = threads != NULL;
    for (struct dirent *thread; bound && (thread = readdir(threads)) != NULL;)
        if (thread->d_name[0] != '.')
            bound = sched_setaffinity((pid_t)strtol(thread->d_name, NULL, 10), sizeof(*set), set) == 0;
    if (threads != NULL)
        closedir(threads);
    return bound;
}

/* The count follows the binding: a process bound to one core has one. */
START_TEST(bound_to_one_core)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        cpu_set_t set;
        int cpu = sched_getcpu();
        CPU_ZERO(&set);
        CPU_SET((size_t)(cpu < 0 ? 0 : cpu), &set);
        if (!bind_process(&set))
            _exit(1);
        _exit(iq_topology()->cores == 1 ? 0 : 2);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert_int_eq(status, 0);
}
END_TEST

Suite *iq_suite(void)
{
    Suite *suite = suite_create("topology");
    TCase *host = tcase_create("host");
    TCase *bound = tcase_create("bound");
    TCase *shape = tcase_create("machine");
    tcase_add_test(host, host_id);
    tcase_add_test(host, namespaces_are_hosts);
    tcase_add_test(bound, without_hwloc); /* before anything asks for the topology, should all run in one process */
    tcase_add_test(bound, bound_to_one_core);
    tcase_add_test(shape, machine);
    suite_add_tcase(suite, host);
    suite_add_tcase(suite, bound);
    suite_add_tcase(suite, shape);
    return suite;
}
